"""Common GPUs with the memory that torch really sees, and whether an estimate fits on each."""

import functools
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from ftkit.errors import ConfigError
from ftkit.estimates import CONTEXT_GIB, MemoryEstimate

YES, TIGHT, NO = "fits", "tight", "does not fit"


@dataclass(frozen=True)
class GPU:
    """A card: its memory as sold, as torch sees it, whether it computes in bf16, and where the number comes from."""

    name: str
    nominal_gb: int
    usable_gib: float
    bf16: bool
    source: str


@functools.cache
def table() -> tuple[GPU, ...]:
    """The cards that come with the package, smallest first."""
    text = resources.files("ftkit").joinpath("samples/gpus.json").read_text(encoding="utf-8")
    cards = [GPU(**row) for row in json.loads(text)["gpus"]]
    return tuple(sorted(cards, key=lambda card: card.usable_gib))


def gpu(name: str) -> GPU:
    """A card by its name, such as "T4" or "A100 80 GB".

    Raises:
        ConfigError: unknown; lists the known ones.
    """
    found = [card for card in table() if card.name.lower() == name.strip().lower()]
    if not found:
        raise ConfigError(f"{name!r} is not in the table. There are: {', '.join(card.name for card in table())}.")
    return found[0]


@dataclass(frozen=True)
class Fit:
    """One card's answer; `spare_gib` is what the high end of the estimate leaves over, before what is taken only where it is free."""

    gpu: GPU
    verdict: str
    spare_gib: float


@dataclass(frozen=True)
class Fits:
    """An estimate against each card; shows itself as a table."""

    estimate: MemoryEstimate
    rows: tuple[Fit, ...]

    @property
    def smallest(self) -> GPU | None:
        """The smallest card on which it surely fits, or None."""
        return next((row.gpu for row in self.rows if row.verdict == YES), None)

    def __getitem__(self, name: str) -> str:
        """The verdict for one card, by its name."""
        return next(row.verdict for row in self.rows if row.gpu == gpu(name))

    def _lines(self) -> list[tuple[str, str, str, str]]:
        return [(row.gpu.name, f"{row.gpu.usable_gib:.1f}", row.verdict, f"{row.spare_gib:+.1f}") for row in self.rows]

    def __str__(self) -> str:
        e = self.estimate
        head = f"{e.about}\nlikely {e.likely_gib:.1f} GiB, high {e.high_gib:.1f} GiB"
        return "\n".join(
            [
                head,
                *(
                    f"{name:12} {usable:>6} GiB  {verdict:13} {spare:>7}"
                    for name, usable, verdict, spare in self._lines()
                ),
            ]
        )

    def _repr_html_(self) -> str:
        e = self.estimate
        head = ("GPU", "usable, GiB", "verdict", "spare at the high end, GiB")
        rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in self._lines())
        caption = html.escape(f"{e.about}: likely {e.likely_gib:.1f} GiB, high {e.high_gib:.1f} GiB")
        return f"<table><caption>{caption}</caption><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{rows}</table>"


def fits(estimated: MemoryEstimate, gpus: Sequence[GPU] | None = None) -> Fits:
    """Hold an estimate against cards.

    A card on which even the high end fits says "fits"; one on which the likely peak fits and the high end does not says
    "tight": try it, with a step on the longest batch first.

    Raises:
        ConfigError: the estimate is for a CPU.
    """
    if estimated.device != "cuda":
        raise ConfigError("This estimate is for a CPU's process. Estimate with device='cuda' to hold it against GPUs.")
    return Fits(
        estimated,
        tuple(
            Fit(card, verdict(estimated, card.usable_gib), card.usable_gib - estimated.high_gib + estimated.elastic_gib)
            for card in (gpus or table())
        ),
    )


def verdict(estimated: MemoryEstimate, room_gib: float) -> str:
    """Whether an estimate fits into so much memory: "fits", "tight" or "does not fit"."""
    if estimated.high_gib - estimated.elastic_gib <= room_gib:
        return YES
    context = CONTEXT_GIB if estimated.device == "cuda" else 0.0
    return TIGHT if estimated.likely_gib + context <= room_gib else NO
