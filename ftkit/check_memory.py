"""The estimate of a run's memory against what its device has; the arithmetic itself is `memory`'s."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.config import TrainConfig
from ftkit.errors import FtkitError
from ftkit.findings import Finding
from ftkit.hardware import Hardware

CHECKS = {
    "memory-too-small": "the estimate of memory stays below the device's",
    "memory-unknown": "the memory of this architecture can be estimated",
}
_TIPS = 4
_WORTH_GIB = 0.05


@dataclass(frozen=True)
class Need:
    """What a run needs: a `MemoryEstimate` for rows of at most `longest` tokens, or the problem why there is none."""

    shape: Any = None
    estimate: Any = None
    longest: int | None = None
    problem: str = ""

    def __str__(self) -> str:
        e = self.estimate
        return self.problem if e is None else f"likely {e.likely_gib:.1f} GiB ({e.low_gib:.1f} to {_surely(e):.1f})"


def need(source: Any, config: TrainConfig, hardware: Hardware, longest: int | None = None) -> Need:
    """Estimate for a `memory.ModelShape`, or anything that one is made from."""
    from ftkit import memory

    try:
        shape = source if isinstance(source, memory.ModelShape) else memory.ModelShape.from_config(source)
        estimated = memory.estimate(
            shape, config, device=hardware.device, longest=longest, loss_path=memory.TRL_LOSS_PATH
        )
        return Need(shape, estimated, longest)
    except FtkitError as error:
        return Need(problem=str(error))


def check(needed: Need, config: TrainConfig, hardware: Hardware) -> Iterator[Finding]:
    """What is needed against what there is: surely too much is an error, probably too much a warning, perhaps a note."""
    from ftkit import memory

    if needed.estimate is None:
        yield Finding(
            "memory-unknown",
            "note",
            "Whether the run fits in memory cannot be said beforehand.",
            needed.problem,
            "Start with few steps and look at the peak memory.",
        )
        return
    there = hardware.memory_gib
    found = memory.verdict(needed.estimate, there)
    if found == "fits":
        return
    severity, title = "note", "The run may just not fit in memory."
    if needed.estimate.low_gib > there:
        severity, title = "error", "The run does not fit in memory, even by the lowest estimate."
    elif found == "does not fit":
        severity, title = "warning", "The run will probably not fit in memory."
    changes = memory.savings(
        needed.shape,
        config,
        room_gib=there,
        device=hardware.device,
        longest=needed.longest,
        loss_path=memory.TRL_LOSS_PATH,
    )
    worth = [row for row in changes.rows[: changes.enough or _TIPS] if row.gain_gib >= _WORTH_GIB]
    most = max(worth, key=lambda row: row.gain_gib).change.split("=")[0] if worth else ""
    yield Finding(
        "memory-too-small",
        severity,
        title,
        f"{needed}; {hardware.name} has {there:.1f} GiB; most is {needed.estimate.dominant}",
        _advice(worth, enough=bool(changes.enough)),
        most,
    )


def _surely(estimated: Any) -> float:
    """GiB with which it fits for certain: without what is taken only where it is free."""
    return float(estimated.high_gib - estimated.elastic_gib)


def _advice(changes: Sequence[Any], *, enough: bool) -> str:
    tips = [f"{row.change} (saves {row.gain_gib:.1f} GiB)" for row in changes]
    end = "then it fits" if enough else "and a smaller model or a larger GPU"
    return f"Change in this order: {'; '.join([*tips, end])}." if tips else "Take a smaller model or a larger GPU."
