"""What `training.train` adds to the same Unsloth + TRL run written by hand.

    python benchmarks/overhead.py [--steps 20] [--repeats 2]

Both runs tokenise the same rows in the same order, train the same steps and save the adapter, each in a process of its
own, in turn. Loading the model is outside the clock. Beside the wall times stands what the kit's own calls took inside
the training loop, and the processor seconds of both: those figures do not drown in the noise of a shared machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ftkit import data, hardware, models
from ftkit.chat import tokenize
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.training import train
from ftkit.training.recorder import Recorder
from ftkit.training.trainer import length_batches


def prepare(steps: int):
    """Model, tokenizer, splits and settings, the same for both."""
    config = TrainConfig.for_hardware(
        hardware.detect(), max_steps=steps, learning_rate=1.5e-3, warmup_steps=3, eval_steps=0, save_steps=0
    )
    model, tokenizer = models.load(models.BUNDLED, config)
    splits = data.split(data.load_examples("invoices"))
    model = models.add_lora(model, config)
    models.choose_attention(model, 200)  # the kit's choice for short rows; by hand it would be made as well
    return (
        model,
        tokenizer,
        data.Splits(splits.train, splits.val.select(range(4)), splits.test),
        config,
    )


def by_hand(model, tokenizer, splits, config, folder: str) -> None:
    """The run as an Unsloth notebook writes it, plus one validation at the end, as the kit does."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer

    parts = [
        Dataset.from_list([tokenize(m, tokenizer) for m in part["messages"]]) for part in (splits.train, splits.val)
    ]
    order = length_batches([len(ids) for ids in parts[0]["input_ids"]], config.per_device_train_batch_size, config.seed)
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=config.per_device_train_batch_size,
        max_steps=config.max_steps,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        bf16=config.dtype == "bf16",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        prediction_loss_only=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=parts[0].select(order),
        eval_dataset=parts[1],
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100, pad_to_multiple_of=16),
    )
    trainer.train()
    trainer.evaluate()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_kit(model, tokenizer, splits, config, folder: str) -> float:
    """The same through `training.train`; returns the seconds spent in its recorder."""
    spent, add = [0.0], Recorder.add

    def timed(self, *arguments):
        began = time.perf_counter()
        add(self, *arguments)
        spent[0] += time.perf_counter() - began

    Recorder.add = timed
    train(model, tokenizer, splits, config, Run.create("benchmark", folder))
    return spent[0]


def one(kind: str, steps: int) -> None:
    prepared = prepare(steps)
    with tempfile.TemporaryDirectory() as folder:
        began, busy = time.perf_counter(), time.process_time()
        inside = (by_hand if kind == "hand" else with_kit)(*prepared, folder)
        print(json.dumps({"seconds": time.perf_counter() - began, "cpu": time.process_time() - busy, "inside": inside}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", choices=("hand", "kit"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.steps)
        return
    seconds: dict[str, list[float]] = {"hand": [], "kit": []}
    cpu: dict[str, list[float]] = {"hand": [], "kit": []}
    inside = []
    for _ in range(options.repeats):
        for kind in seconds:
            command = [sys.executable, str(Path(__file__)), "--one", kind, "--steps", str(options.steps)]
            result = json.loads(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            )
            seconds[kind].append(result["seconds"])
            cpu[kind].append(result["cpu"])
            if kind == "kit":
                inside.append(result["inside"])
            print(f"{kind:>5}  {result['seconds']:7.1f} s, {result['cpu']:7.1f} processor s", flush=True)

    hand, kit = (statistics.median(seconds[kind]) for kind in ("hand", "kit"))
    busy = statistics.median(cpu["kit"]) / statistics.median(cpu["hand"]) - 1
    recorder = statistics.median(inside)
    print(
        f"\n{hardware.detect()}\n"
        f"{options.steps} steps, medians of {options.repeats}: by hand {hand:.1f} s, ftkit {kit:.1f} s: "
        f"{100 * (kit / hand - 1):+.1f} % of wall time, {100 * busy:+.1f} % of processor time\n"
        f"inside ftkit's recorder: {recorder:.2f} s, {100 * recorder / kit:.2f} % of the run"
    )


if __name__ == "__main__":
    main()
