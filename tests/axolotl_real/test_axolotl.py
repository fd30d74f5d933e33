"""Axolotl itself takes what is exported, makes the same rows of it, and trains from the same loss.

Run by `make test-axolotl`, which builds the environment; the schema is that of the release which is installed there.
"""

import json

import pytest

from ftkit import chat, data, headless, lessons, models, training
from ftkit.config import TrainConfig
from ftkit.files import sample
from ftkit.hardware import detect
from ftkit.publishing import from_axolotl, to_axolotl
from ftkit.runs import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(lessons.axolotl_python() is None, reason="no Axolotl beside ftkit; run: make test-axolotl"),
]
CHATS = [
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris"},
    ],
    [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "This answer is context alone.", "train": False},
        {"role": "user", "content": "Count to three."},
        {"role": "assistant", "content": "One,\n\ntwo,\n\nthree."},
    ],
    [{"role": "user", "content": "  Spaces?  "}, {"role": "assistant", "content": "Kept: <|x|> ✓ ümlaut."}],
    [
        {"role": "user", "content": "Twice two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Twice four?"},
        {"role": "assistant", "content": "Eight."},
    ],
]
VARIANTS = {
    "defaults": {},
    "fp16": {"dtype": "fp16", "bnb_4bit_use_double_quant": False},
    "fp32": {"dtype": "fp32", "load_in_4bit": False, "optim": "adamw_torch", "gradient_checkpointing": False},
    "packed": {"packing": True, "max_length": 4096},
    "grouped": {"group_by_length": True, "optim": "paged_adamw_8bit"},
    "dora": {"use_rslora": True, "use_dora": True, "lora_dropout": 0.1, "target_modules": ("q_proj",)},
    "short": {"max_steps": 10, "eval_steps": 0, "save_steps": 0, "warmup_steps": 1, "lr_scheduler_type": "constant"},
    "stopping": {"eval_steps": 20, "save_steps": 40, "early_stopping_patience": 2},
    "wandb": {"report_to": "wandb", "optim": "sgd", "lr_scheduler_type": "constant_with_warmup"},
    "trackio": {"report_to": "trackio", "lr_scheduler_type": "linear"},
    "tensorboard": {"report_to": "tensorboard", "optim": "adamw_torch_fused", "train_on": "answers"},
}


@pytest.fixture(scope="module")
def config():
    """Four rows an update, in fp32 without 4 bits: what Axolotl computes on a CPU."""
    return TrainConfig.for_hardware(
        detect(),
        backend="transformers",
        load_in_4bit=False,
        dtype="fp32",
        gradient_accumulation_steps=1,
        group_by_length=False,
        max_length=256,
        max_steps=2,
        warmup_steps=0,
        eval_steps=0,
        save_steps=0,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A run of ours on the bundled model, all of whose rows are in each batch; and its history."""
    examples = data.load_examples([{"messages": turns} for turns in CHATS])
    others = data.load_examples("invoices", split="test")
    splits = data.Splits(examples, others.select([0]), others.select([1]))
    run = Run.create("ours", tmp_path_factory.mktemp("runs"))
    model, tokenizer = models.load(models.BUNDLED, config)
    history = training.train(model, tokenizer, splits, config, run)
    return run, history


def losses(run, name, **named):
    """Let Axolotl train the rows of a run on the CPU, into the folder `name`."""
    file = to_axolotl(run, output_dir=run / name, on_cpu=True, **named).save(run / f"{name}.yml")
    return lessons.train_with_axolotl(file)


def test_the_schema_takes_every_file_that_is_written(tmp_path):
    files = [
        to_axolotl(TrainConfig(**settings), base_model="org/m", train="t.jsonl", val="v.jsonl", output_dir="out").save(
            tmp_path / f"{name}.yml"
        )
        for name, settings in VARIANTS.items()
    ]
    on_cpu = to_axolotl(TrainConfig(), base_model="org/m", train="t.jsonl", adapter="a", on_cpu=True)
    files.append(on_cpu.save(tmp_path / "on_cpu.yml"))
    verdict = lessons.axolotl_says(*files)
    assert dict(zip(verdict.files, verdict.refused, strict=True)) == dict.fromkeys(verdict.files, "")
    assert set(verdict.unknown) == {()}


def test_the_schema_takes_the_recipe_before_and_after_the_round_trip(tmp_path):
    recipe = lessons.axolotl_recipe()
    read = from_axolotl(recipe)
    (tmp_path / "recipe.yml").write_text(recipe)
    back = to_axolotl(read.config, kept=read.kept).save(tmp_path / "back.yml")
    verdict = lessons.axolotl_says(tmp_path / "recipe.yml", back)
    assert (verdict.refused, verdict.unknown) == (("", ""), ((), ()))


def test_the_schema_passes_over_a_misspelt_field(tmp_path):
    """That is why `from_axolotl` refuses one."""
    (tmp_path / "wrong.yml").write_text(lessons.axolotl_recipe() + "\nlora_dropuot: 0.1\n")
    verdict = lessons.axolotl_says(tmp_path / "wrong.yml")
    assert (verdict.refused, verdict.unknown) == (("",), (("lora_dropuot",),))


def test_the_names_that_ftkit_knows_are_those_of_the_schema(tmp_path):
    known = sample("axolotl")
    (tmp_path / "m.yml").write_text("base_model: m\n")
    verdict = lessons.axolotl_says(tmp_path / "m.yml")
    if verdict.release != known["release"]:
        pytest.skip(f"Axolotl {verdict.release} is installed; the names are those of {known['release']}")
    assert verdict.fields == set(known["fields"])


def test_axolotl_makes_the_same_tokens_and_trains_the_same_of_them(trained):
    run, _ = trained
    _, tokenizer = models.load(models.BUNDLED, TrainConfig(load_in_4bit=False, backend="transformers"))
    ours = [chat.tokenize(row, tokenizer) for row in data.load_examples(run / "data/train.jsonl")]
    file = to_axolotl(run, on_cpu=True).save(run / "rows.yml")
    theirs = lessons.axolotl_rows(file)
    assert sorted(theirs, key=json.dumps) == sorted(ours, key=json.dumps)


def test_it_trains_from_the_loss_that_ftkit_trains_from_and_its_adapter_loads(trained):
    run, history = trained
    found = losses(run, "theirs")
    assert len(found) == 2
    assert found[0] == pytest.approx(history.points[0].loss, rel=0.01)
    assert found[1] < found[0]
    model, tokenizer = models.load_adapter(run / "theirs")
    changed = [weight.abs().max() for name, weight in model.named_parameters() if "lora_B" in name]
    assert min(changed) > 0
    assert tokenizer.eos_token == "<|im_end|>"


def test_an_adapter_of_ours_goes_on_in_axolotl(trained):
    """Its first loss is where ours ended, below the base model's."""
    run, history = trained
    found = losses(run, "further", adapter=run / "adapter")
    assert found[0] < history.points[1].loss < history.points[0].loss
    models.load_adapter(run / "further")


def test_axolotl_quantises_with_qlora_alone(trained, config):
    """An often-repeated recipe has `adapter: lora` beside `load_in_4bit: true`."""
    run, _ = trained
    quantised = config.replace(load_in_4bit=True)
    named = {"base_model": models.BUNDLED, "train": run / "data/train.jsonl", "on_cpu": True}
    as_we_write = to_axolotl(quantised, **named).save(run / "qlora.yml")
    as_repeated = to_axolotl(quantised, **named, kept={"adapter": "lora"}).save(run / "lora.yml")
    assert lessons.axolotl_stored(as_we_write)["4-bit"] > 100_000_000
    assert "4-bit" not in lessons.axolotl_stored(as_repeated)


def test_the_notebook_finds_the_same_rows_and_the_same_loss(tmp_path):
    """Run as where Axolotl is installed; tests/notebooks runs it as where it is not."""
    executed = headless.execute(headless.find("10_axolotl"), tmp_path, {"run_root": str(tmp_path / "runs")})
    run = Run.open(tmp_path / "runs/axolotl")
    assert run.facts["axolotl"] == {"fields": 20, "lost": [], "alike": 4, "installed": True}
    assert "✓ relative difference" in executed.html.read_text()
    models.load_adapter(run / "axolotl")
