"""The surroundings of a run: visible GPUs, order of imports, versions, and its disk. Knows neither model nor rows."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ftkit.config import TrainConfig
from ftkit.hardware import launch
from ftkit.preflight.report import Finding, finding
from ftkit.runs import Run, versions

_PATCHED = ("transformers", "trl", "peft")
_DECISIVE = ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes")
_BYTES_A_PARAMETER = 12  # fp32 weight, and Adam's two states
_EXTRA_BYTES = 16 * 2**20  # tokenizer, scheduler and random states of a checkpoint
_MIB = 2**20


def check_gpus() -> Iterator[Finding]:
    """More than one visible GPU in a process that was not launched as one of several."""
    count = visible_gpus()
    if count > 1 and launch().processes == 1:
        yield finding("several-gpus", count=count)


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
        yield finding("unsloth-late", late=", ".join(late))


def check_versions(run: Run) -> Iterator[Finding]:
    """Versions of the run's earlier steps beside those of now: losses of two versions may not be compared."""
    then, now = run.facts.get("versions", {}), versions()
    changed = [
        f"{name} {then[name]} then, {now.get(name, 'none')} now"
        for name in _DECISIVE
        if name in then and then[name] != now.get(name)
    ]
    if changed:
        yield finding("versions-differ", changed=", ".join(changed))


def check_disk(path: Path, config: TrainConfig, parameters: int) -> Iterator[Finding]:
    """Free space for an adapter, and for one checkpoint more than are kept: a new one is whole before the old goes."""
    checkpoints = config.save_total_limit + 1 if config.save_steps else 0
    size = _BYTES_A_PARAMETER * parameters + _EXTRA_BYTES
    wanted = checkpoints * size + 4 * parameters + _EXTRA_BYTES
    there = next(place for place in (path, *path.parents, Path()) if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < 2 * wanted:
        sizes: dict[str, Any] = {"free": free / _MIB, "wanted": wanted / _MIB}
        yield finding("disk-low", "full" if free < wanted else "", path=path, checkpoints=checkpoints, **sizes)


def check_writable(path: Path) -> Iterator[Finding]:
    """Write a file into the run folder and take it away again; of several processes the first alone writes."""
    if launch().rank:
        return
    probe = path / ".preflight"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield finding("run-not-writable", path=path, why=error.strerror or error)
