"""Marks a cleaning of the bundled `messy` file against the list of its planted defects, as an exam is marked.

```python
report = cleaning.clean("messy", on_error="drop")
print(lessons.mark(report))
```
"""

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

_COPIES = ("exact-duplicate", "near-duplicate")


@dataclass(frozen=True)
class Exam:
    """For each kind of defect how many were planted and caught, and the lines of good rows that were dropped or altered."""

    kinds: Mapping[str, tuple[int, int]]
    lost_lines: tuple[int, ...]

    @property
    def caught(self) -> float:
        """Share of the planted defects that were caught, 0 to 1."""
        planted = sum(planted for planted, _ in self.kinds.values())
        return sum(caught for _, caught in self.kinds.values()) / planted

    @property
    def lost(self) -> int:
        """Good rows that were dropped, and decoys that were taken for personal data."""
        return len(self.lost_lines)

    def missed(self, kind: str) -> int:
        """Planted defects of one kind that were not caught."""
        planted, caught = self.kinds[kind]
        return planted - caught

    def __str__(self) -> str:
        lines = [f"{kind:>16}  {caught:>3} of {planted} caught" for kind, (planted, caught) in self.kinds.items()]
        lost = f" (lines {', '.join(map(str, self.lost_lines[:8]))})" if self.lost_lines else ""
        return "\n".join([*lines, f"{'good rows lost':>16}  {self.lost:>3}{lost}"])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td style='text-align:left'>{html.escape(kind)}</td><td>{planted}</td><td>{caught} {'✓' if caught == planted else '✗'}</td></tr>"
            for kind, (planted, caught) in self.kinds.items()
        )
        good = f"<tr><td style='text-align:left'>good rows lost</td><td></td><td>{self.lost} {'✗' if self.lost else '✓'}</td></tr>"
        return f"<table><tr><th>kind</th><th>planted</th><th>caught</th></tr>{cells}{good}</table>"


def defects() -> list[dict[str, Any]]:
    """The planted defects of `messy` and `messy_test`: kind, line from 1, and for copies the line of the original."""
    text = resources.files("ftkit").joinpath("samples/messy_defects.json").read_text(encoding="utf-8")
    listed: list[dict[str, Any]] = json.loads(text)["defects"]
    return listed


def mark(report: Any) -> Exam:
    """Hold a `CleanReport` of `messy` against the list.

    A copy counts as caught when it or its original went and the other stayed; personal data when it was flagged, changed or
    dropped; any other defect when its row was dropped.
    """
    gone = {_line(drop) for drop in report.dropped}
    marked = {_line(drop) for drop in (*report.flagged, *report.changed)}
    kinds: dict[str, tuple[int, int]] = {}
    bad: set[int] = set()
    altered: set[int] = set()
    for defect in defects():
        kind, line = defect["kind"], defect.get("line")
        altered |= marked & {line} if defect.get("keep") else set()
        if defect.get("keep") or line is None or kind.startswith("leak"):
            continue
        pair = {line, defect.get("original", line)}
        caught = len(pair & gone) == 1 if kind in _COPIES else line in gone or (kind == "pii" and line in marked)
        planted, found = kinds.get(kind, (0, 0))
        kinds[kind] = (planted + 1, found + caught)
        bad |= {line} | (pair if kind in _COPIES and len(pair & gone) == 1 else set())
    return Exam(kinds, tuple(sorted((gone - bad) | altered)))


def _line(drop: Any) -> int:
    return int(drop.place.split()[1])
