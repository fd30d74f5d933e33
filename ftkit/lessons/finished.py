"""A finished run for lessons that begin where training ends: the sample's, or one that is trained on the spot."""

import shutil
from pathlib import Path

from ftkit import data, models
from ftkit.config import TrainConfig
from ftkit.hardware import detect
from ftkit.runs import Run
from ftkit.training import train


def finished_run(name: str, root: str | Path | None = None, *, max_steps: int = 0, seed: int = 42) -> Run:
    """A copy of the kit's finished run, as `root/name`; with weight updates one that was trained here, `name-trained`.

    Both read invoices with the bundled model.
    """
    if max_steps == 0:
        run = Run.create(name, root)
        shutil.copytree(Run.sample().path, run.path, dirs_exist_ok=True)
        return run
    run = Run.create(f"{name}-trained", root)
    splits = data.split(data.load_examples("invoices"), seed=seed)
    config = TrainConfig.for_hardware(detect(), max_steps=max_steps, seed=seed)
    model, tokenizer = models.load(models.BUNDLED, config)
    train(model, tokenizer, splits, config, run, resume=False)
    return run
