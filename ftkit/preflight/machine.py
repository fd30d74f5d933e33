"""The surroundings of a run: visible GPUs, order of imports, versions, and its disk. Knows neither model nor rows."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ftkit.config import TrainConfig
from ftkit.preflight.report import Finding
from ftkit.runs import Run, versions

MACHINE_CHECKS = {
    "several-gpus": "one process sees one GPU",
    "unsloth-late": "Unsloth was imported before the libraries that it patches",
    "versions-differ": "the versions are those of the run's earlier steps",
    "disk-low": "checkpoints and adapter fit on the disk",
    "run-not-writable": "the run folder can be written",
}

_PATCHED = ("transformers", "trl", "peft")
_DECISIVE = ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes")
_BYTES_A_PARAMETER = 12  # fp32 weight, and Adam's two states
_EXTRA_BYTES = 16 * 2**20  # tokenizer, scheduler and random states of a checkpoint
_MIB = 2**20


def check_gpus() -> Iterator[Finding]:
    """More than one visible GPU in a process that was not launched as one of several."""
    count = visible_gpus()
    if count > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Finding(
            id="several-gpus",
            severity="error",
            title=f"{count} GPUs are visible to one process: batches would be split, "
            "which 4-bit models do not survive.",
            evidence=f"torch sees {count} GPUs, WORLD_SIZE is not set",
            fix="Set os.environ['CUDA_VISIBLE_DEVICES'] = '0' before torch is imported, or launch with torchrun.",
        )


def visible_gpus() -> int:
    """CUDA devices that this process sees."""
    import torch

    return int(torch.cuda.device_count())


def check_imports(backend: str, loaded: Iterable[str] | None = None) -> Iterator[Finding]:
    """Unsloth imported after the libraries that it patches; `loaded` are modules in the order in which they came.

    A package moves to its place in `sys.modules` when its import is over, so Unsloth's first part tells when it began.
    """
    order = list(sys.modules if loaded is None else loaded)
    began = next((i for i, name in enumerate(order) if name.split(".")[0] in ("unsloth", "unsloth_zoo")), None)
    if backend != "unsloth" or began is None:
        return
    before = order[:began]
    if late := [name for name in _PATCHED if name in before]:
        yield Finding(
            id="unsloth-late",
            severity="warning",
            title="Unsloth came after the libraries that it patches: training may be slower and take more memory.",
            evidence=f"imported before it: {', '.join(late)}",
            fix="Restart the kernel and call models.load, or `import unsloth`, first.",
            field="backend",
        )


def check_versions(run: Run) -> Iterator[Finding]:
    """Versions of the run's earlier steps beside those of now: losses of two versions may not be compared."""
    then, now = run.facts.get("versions", {}), versions()
    changed = [
        f"{name} {then[name]} then, {now.get(name, 'none')} now"
        for name in _DECISIVE
        if name in then and then[name] != now.get(name)
    ]
    if changed:
        yield Finding(
            id="versions-differ",
            severity="warning",
            title="This run was begun with other versions: its losses may not be comparable with new ones.",
            evidence=", ".join(changed),
            fix="Start another run, or install the versions of then.",
        )


def check_disk(path: Path, config: TrainConfig, parameters: int) -> Iterator[Finding]:
    """Free space for an adapter, and for one checkpoint more than are kept: a new one is whole before the old goes."""
    checkpoints = config.save_total_limit + 1 if config.save_steps else 0
    size = _BYTES_A_PARAMETER * parameters + _EXTRA_BYTES
    wanted = checkpoints * size + 4 * parameters + _EXTRA_BYTES
    there = next(place for place in (path, *path.parents, Path()) if place.is_dir())
    free = shutil.disk_usage(there).free
    if free >= 2 * wanted:
        return
    severity, title = "warning", "The disk is nearly too full for this run."
    if free < wanted:
        severity, title = "error", "The disk is too full for the checkpoints of this run."
    yield Finding(
        id="disk-low",
        severity=severity,
        title=title,
        evidence=f"{free / _MIB:,.0f} MiB free at {path}; "
        f"{checkpoints} checkpoints and an adapter take {wanted / _MIB:,.0f} MiB",
        fix="Free some space, choose another folder, or lower save_total_limit.",
        field="save_total_limit",
    )


def check_writable(path: Path) -> Iterator[Finding]:
    """Write a file into the run folder and take it away again."""
    probe = path / ".preflight"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield Finding(
            id="run-not-writable",
            severity="error",
            title="The run folder cannot be written.",
            evidence=f"{path}: {error.strerror or error}",
            fix="Choose another folder: Run.create(name, root='runs').",
        )
