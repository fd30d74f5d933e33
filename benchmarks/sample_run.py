"""Make `ftkit/samples/run`, the small finished run that `Run.sample()` opens.

    python benchmarks/sample_run.py

A rank of 4 and 16-bit weights keep the adapter small enough for a package; everything else is the quickstart.
"""

import json
import shutil
import tempfile
from pathlib import Path

import ftkit
from ftkit import data, evaluate, hardware, models
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.train import train

TARGET = Path(ftkit.__file__).parent / "samples/run"


def main() -> None:
    settings = {"lora_r": 4, "lora_alpha": 8, "learning_rate": 3e-3, "max_steps": 36, "warmup_steps": 3}
    config = TrainConfig.for_hardware(hardware.detect(), **settings, eval_steps=12, save_steps=0)
    splits = data.split(data.load_examples("invoices"), seed=config.seed)
    model, tokenizer = models.load(models.BUNDLED, config)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create("sample", folder)
        print(train(model, tokenizer, splits, config, run))
        halve(run / "adapter/adapter_model.safetensors")
        test = splits.test.select(range(40))
        reports = {}
        for name in ("before", "after"):
            if name == "before":
                tested, tokenizer = models.load(
                    models.BUNDLED, config.replace(load_in_4bit=False, backend="transformers")
                )
            else:
                tested, tokenizer = models.load_adapter(run / "adapter", merge=True)
            reports[name] = evaluate.evaluate(
                tested,
                tokenizer,
                test,
                name={"before": "base", "after": "fine-tuned"}[name],
                normalise=evaluate.exact_words,
                max_new_tokens=80,
            )
            print(reports[name])
        evaluate.leave(run, **reports)
        for name in ("checkpoints", "data/train.jsonl", "data/val.jsonl"):
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(run.path, TARGET)
    print(json.dumps(Run.sample().facts["evaluate"]))


def halve(path: Path) -> None:
    """Store the adapter's weights in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
    )


if __name__ == "__main__":
    main()
