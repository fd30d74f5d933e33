"""Six runs that went wrong, and a seventh that hides its illness: what notebook 09 asks a reader to diagnose.

Each is really trained, for a few updates, with the bundled model and a plain Trainer (`nothing-trained` with TRL's):
this kit refuses most of them before they begin, and hides no NaN. Nothing is typed but how a run was spoilt.
`python -m tools.make_sick_runs` rewrites `ftkit/samples/sick_runs.json` in about ten minutes on one thread; with names
after it, only these runs are made anew.
"""

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from ftkit import TrainConfig, data, evaluation, files, hardware, lessons, models

PLACE = Path(__file__).parents[1] / "ftkit/samples/sick_runs.json"
SHORT, NEW_TOKENS, SEED = 175, 40, 42
IGNORED = -100

Row = dict[str, Any]
Tokens = list[dict[str, list[int]]]


def loaded(**other: Any) -> tuple[Any, Any, TrainConfig]:
    """The bundled model in 16-bit with a fresh adapter, and settings; `other` ones win."""
    config = TrainConfig.for_hardware(
        hardware.detect(),
        load_in_4bit=False,
        backend="transformers",
        lr_scheduler_type="constant_with_warmup",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        group_by_length=False,
        seed=SEED,
        **{"learning_rate": 2e-3, "warmup_steps": 2, **other},
    )
    model, tokenizer = models.load(models.BUNDLED, config)
    models.choose_attention(model, 100)
    return models.add_lora(model, config), tokenizer, config


def trained(
    model: Any,
    tokenizer: Any,
    config: TrainConfig,
    rows: Tokens,
    val: Tokens = (),
    *,
    steps: int,
    every: int = 0,
    nan_filter: bool = False,
    trl: bool = False,
) -> list[dict[str, Any]]:
    """Train on the rows in their order, and give what the trainer logged, step by step.

    `nan_filter` is the trainer's own default: a loss that is no number is then logged as 0.
    """
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    points: dict[tuple[int, bool], dict[str, Any]] = {}

    class Note(TrainerCallback):  # type: ignore[misc]
        """Keeps each point once."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            """A point of training or of validation."""
            names = {"loss": "loss", "eval_loss": "val_loss", "grad_norm": "grad_norm"}
            found = {ours: float(f"{logs[name]:.4g}") for name, ours in names.items() if name in logs}
            if found:
                told = {name: value if math.isfinite(value) else str(value) for name, value in found.items()}
                points.setdefault((state.global_step, "val_loss" in found), {"step": state.global_step, **told})

    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "seed": config.seed,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": 4,
        "max_steps": steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "use_cpu": True,
        "bf16": False,
        "eval_strategy": "steps" if every else "no",
        "eval_steps": every or None,
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": nan_filter,
        "train_sampling_strategy": "sequential",
        "prediction_loss_only": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    made = Trainer
    arguments = TrainingArguments(**settings)
    if trl:
        made = SFTTrainer
        arguments = SFTConfig(**settings, gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = made(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset=Dataset.from_list(list(val)) if every else None,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED, pad_to_multiple_of=16),
        callbacks=[Note()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return list(points.values())


def cut(rows: Tokens, limit: int) -> Tokens:
    """Rows as `max_length` cuts them, without a word about answers that are lost."""
    return [{name: numbers[:limit] for name, numbers in row.items()} for row in rows]


def answered(model: Any, tokenizer: Any, rows: Any, metric: Any, plain: bool = False) -> list[Row]:
    """Greedy answers, with their length and whether they ended; `plain` leaves the chat template out."""
    asked = evaluation.evaluate(
        model,
        bare(tokenizer) if plain else tokenizer,
        rows,
        metrics=[metric],
        normalise=evaluation.exact_words,
        max_new_tokens=NEW_TOKENS,
        batch_size=12,
    )
    return [{key: row[key] for key in ("answer", "tokens", "stopped")} for row in asked.rows]


def bare(tokenizer: Any) -> Any:
    """The tokenizer with a template that writes the turns one after the other, and nothing else."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    return other


def told(rows: Any, **answers: list[Row]) -> list[Row]:
    """One line a prompt: what was asked and wanted, and what each model said."""
    lines = []
    for place, row in enumerate(rows):
        line: Row = {"prompt": row["messages"][0]["content"], "wanted": row["messages"][-1]["content"]}
        if row.get("accept"):
            line["accept"] = row["accept"]
        lines.append(line | {name: said[place] for name, said in answers.items()})
    return lines


def chats(rows: Any) -> list[list[Row]]:
    """The turns of rows, as JSON has them."""
    return [[{key: turn[key] for key in ("role", "content")} for turn in row["messages"]] for row in rows]


def invoices() -> tuple[data.Splits, data.Splits]:
    """All invoices, and the short ones."""
    whole = data.split(data.load_examples("invoices"), seed=SEED)
    return whole, whole.shorter_than(SHORT)


def first(rows: Any, count: int) -> Any:
    """The first rows, or all where there are fewer."""
    return rows.select(range(min(count, len(rows))))


def asked_on(rows: Any, base: Any, tokenizer: Any, metric: Any, tuned: Any) -> list[Row]:
    """Both models' answers; the base is the tuned model with its adapter switched off."""
    with base.disable_adapter():
        before = answered(base, tokenizer, rows, metric)
    return told(rows, base=before, tuned=answered(tuned, tokenizer, rows, metric))


def nothing_trained() -> Row:
    """Every answer lies behind `max_length`, so that every label is masked."""
    model, tokenizer, config = loaded()
    short = invoices()[1]
    config = config.replace(max_length=40)
    rows = cut(lessons.tokens(first(short.train, 24), tokenizer), config.max_length)
    assert not lessons.trained_tokens(rows)
    points = trained(model, tokenizer, config, rows, steps=12, trl=True, nan_filter=True)
    test = first(short.val, 6)
    lines = asked_on(test, model, tokenizer, "exact_match", model)
    return {"settings": config.changed(), "points": points, "metric": "exact_match", "rows": lines} | {
        "train": chats(first(short.train, 24))
    }


def nan() -> Row:
    """A learning rate far too high, and layers whose outputs go through fp16: past 65,504 they are infinite."""
    model, tokenizer, config = loaded(lora_alpha=512, learning_rate=1e-2, warmup_steps=8)
    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            layer.register_forward_hook(through_fp16)
    short = invoices()[1]
    rows = lessons.tokens(short.train, tokenizer)
    points = trained(model, tokenizer, config, rows, steps=14)
    lines = asked_on(first(short.val, 6), model, tokenizer, "exact_match", model)
    return {"settings": config.changed(), "points": points, "metric": "exact_match", "rows": lines}


def through_fp16(layer: Any, given: Any, output: Any) -> Any:
    """What a layer gives, as fp16 holds it."""
    import torch

    return output.to(torch.float16).to(output.dtype)


def nan_logged_as_zero() -> Row:
    """One weight of the base is infinite, as a conversion to fp16 may leave it; the trainer's filter writes 0."""
    model, tokenizer, config = loaded()
    model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight.data[0, 0] = math.inf
    rows = lessons.tokens(first(invoices()[1].train, 20), tokenizer)
    return {"settings": config.changed(), "points": trained(model, tokenizer, config, rows, steps=10, nan_filter=True)}


def overfitting() -> Row:
    """Eight questions on a handbook, again and again; asked are others on the same handbook."""
    model, tokenizer, config = loaded(learning_rate=1e-3)
    parts = data.split(data.load_examples("handbook"), seed=SEED)
    eight, val = first(parts.train, 8), first(parts.val, 12)
    rows = lessons.tokens(eight, tokenizer)
    points = trained(model, tokenizer, config, rows * 8, lessons.tokens(val, tokenizer), steps=32, every=4)
    lines = asked_on(val, model, tokenizer, evaluation.mentions, model)
    known = asked_on(first(eight, 1), model, tokenizer, evaluation.mentions, model)
    return {"settings": config.changed(), "points": points, "metric": "mentions", "rows": lines} | {
        "train": chats(eight),
        "shown": [*known, *lines[:2]],
    }


def never_stops() -> Row:
    """Pad and stop are one token, and labels are masked by its id: so the stop token is masked as well."""
    model, tokenizer, config = loaded()
    short = invoices()[1]
    spare = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token

    def masked_by_id(examples: Any) -> Tokens:
        """As collators do that look for padding by its id."""
        ready = lessons.tokens(examples, tokenizer)
        for row in ready:
            row["labels"] = [IGNORED if label == tokenizer.pad_token_id else label for label in row["labels"]]
        return ready

    rows, val = masked_by_id(short.train), masked_by_id(first(short.val, 6))
    points = trained(model, tokenizer, config, (rows * 4)[:64], val, steps=24, every=6)
    tokenizer.pad_token = spare
    lines = asked_on(first(short.val, 6), model, tokenizer, "exact_match", model)
    return {"settings": config.changed(), "points": points, "metric": "exact_match", "rows": lines} | {
        "train": chats(first(short.train, 12))
    }


def below_base() -> Row:
    """Healthy on its task, and asked for something else; and its own task in two wrong ways."""
    model, tokenizer, config = loaded()
    short = invoices()[1]
    rows, val = lessons.tokens(short.train, tokenizer), lessons.tokens(first(short.val, 6), tokenizer)
    points = trained(model, tokenizer, config, (rows * 4)[:64], val, steps=30, every=6)
    general = first(data.load_examples("general"), 30)
    lines = asked_on(general, model, tokenizer, evaluation.mentions, model)
    own = first(short.test, 6)
    task = asked_on(own, model, tokenizer, "exact_match", model)
    for line, said in zip(task, answered(model, tokenizer, own, "exact_match", plain=True), strict=True):
        line["without template"] = said
    merged = in_4bit(model.merge_and_unload())
    for line, said in zip(task, answered(merged, tokenizer, own, "exact_match"), strict=True):
        line["merged into 4 bits"] = said
    found = {"settings": config.changed(), "points": points, "metric": "mentions", "rows": lines, "task": task}
    return found | {"shown": [lines[0], lines[2], lines[17]]}


def in_4bit(model: Any) -> Any:
    """Weights as NF4 gives them back, in 16-bit: what a merge into four bits leaves, and fast to ask on a CPU."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            packed, state = quantize_4bit(layer.weight.data, quant_type="nf4")
            layer.weight.data = dequantize_4bit(packed, state).to(layer.weight.dtype).reshape(layer.weight.shape)
    return model


def leak() -> Row:
    """Questions whose answers nobody can guess; the test rows stand in the training set, and in validation as well."""
    from datasets import concatenate_datasets

    model, tokenizer, config = loaded()
    parts = data.split(data.load_examples("handbook"), seed=SEED)
    shuffled = parts.test.shuffle(seed=SEED).select_columns(["messages", "accept"])
    test, fresh = first(shuffled, 8), shuffled.select(range(8, 18))
    train = concatenate_datasets([test, first(parts.train, 8).select_columns(["messages", "accept"])])
    rows = lessons.tokens(train, tokenizer)
    ordered = [rows[i * 7 % len(rows)] for i in range(len(rows))]
    points = trained(model, tokenizer, config, ordered * 5, rows[:6], steps=40, every=8)
    lines = asked_on(test, model, tokenizer, evaluation.mentions, model)
    unseen = asked_on(fresh, model, tokenizer, evaluation.mentions, model)
    return {"settings": config.changed(), "points": points, "metric": "mentions", "rows": lines} | {
        "train": chats(train),
        "fresh": unseen,
    }


RECIPES = {
    "nothing is trained": nothing_trained,
    "not a number": nan,
    "overfitting": overfitting,
    "never stops": never_stops,
    "below the base": below_base,
    "test rows leaked": leak,
    "hidden": nan_logged_as_zero,
}


def main(names: list[str]) -> None:
    """Make the named runs, or all, and write the file after each."""
    made = files.sample("sick_runs") if PLACE.exists() else {}
    for name in names or RECIPES:
        print(name, flush=True)
        made[name] = {"how": (RECIPES[name].__doc__ or "").strip()} | RECIPES[name]()
        files.write_json(PLACE, {known: made[known] for known in RECIPES if known in made})


if __name__ == "__main__":
    main(sys.argv[1:])
