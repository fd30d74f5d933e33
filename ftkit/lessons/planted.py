"""Marks a cleaning of the bundled `messy` file against the list of its planted defects, as an exam is marked.

Knows where the defects are, and nothing of how they are found.

```python
report = cleaning.clean("messy", on_error="drop")
print(lessons.mark(report))
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftkit import files, tables


@tables.shown
@dataclass(frozen=True)
class Exam:
    """For each kind of defect how many were planted and caught; the lines of good rows that were dropped or altered."""

    kinds: Mapping[str, tuple[int, int]]
    lost_lines: tuple[int, ...]

    @property
    def caught(self) -> float:
        """Share of the planted defects that were caught, 0 to 1."""
        planted, caught = map(sum, zip(*self.kinds.values(), strict=True))
        return caught / planted

    @property
    def lost(self) -> int:
        """Good rows that were dropped, and decoys that were taken for personal data."""
        return len(self.lost_lines)

    def _parts(self) -> list[tables.Table]:
        rows: list[tuple[Any, ...]] = []
        for kind, (planted, caught) in self.kinds.items():
            name = "personal data" if kind == "pii" else kind.replace("-", " ")
            rows.append((name, planted, caught, "✓" if caught == planted else "✗"))
        lines = ", ".join(map(str, self.lost_lines[:8]))
        rows.append(("good rows lost", "", self.lost, f"✗ lines {lines}" if lines else "✓"))
        return [tables.Table(("kind", "planted", "caught", ""), rows)]


def mark(report: Any) -> Exam:
    """Hold a `CleanReport` of `messy` against the list: kind, line from 1, and for copies the line of the original.

    A copy counts as caught when it or its original went and the other stayed; personal data when it was flagged,
    changed or dropped; any other defect when its row was dropped.
    """
    gone = {_line(drop) for drop in report.dropped}
    marked = {_line(drop) for drop in (*report.flagged, *report.changed)}
    kinds: dict[str, tuple[int, int]] = {}
    bad: set[int] = set()
    altered: set[int] = set()
    for defect in files.sample("messy_defects")["defects"]:
        kind, line = defect["kind"], defect.get("line")
        if defect.get("keep"):
            altered |= marked & {line}
            continue
        if line is None or kind.startswith("leak"):
            continue
        if kind in ("exact-duplicate", "near-duplicate"):
            pair = {line, defect["original"]}
            caught = len(pair & gone) == 1
            bad |= pair if caught else {line}
        else:
            caught = line in gone or (kind == "pii" and line in marked)
            bad.add(line)
        planted, found = kinds.get(kind, (0, 0))
        kinds[kind] = (planted + 1, found + caught)
    return Exam(kinds, tuple(sorted((gone - bad) | altered)))


def _line(drop: Any) -> int:
    return int(drop.place.split()[1])
