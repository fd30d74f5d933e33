"""What cleaning did, row by row: counts, drops with their reasons, and the doubtful ones to read."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ftkit import storage
from ftkit.texts import text_of

_SHOWN = 160


@dataclass(frozen=True)
class Drop:
    """One row that a rule dropped, flagged or changed. Rows are counted from 0; `place` is where a person finds it."""

    row: int
    place: str  # "line 7" of a JSONL or CSV file, "row 7" of anything else
    rule: str
    reason: str
    score: float | None = None
    limit: float | None = None  # what the score was held against
    twin: int | None = None  # the row that stays in place of a duplicate
    twin_place: str | None = None

    def __str__(self) -> str:
        twin = f"; {self.twin_place} stays" if self.twin_place else ""
        return f"{self.place}: {self.rule}: {self.reason}{twin}"


@dataclass(frozen=True)
class RuleCount:
    """What one rule did: rows that it saw, dropped, flagged and changed, seconds, and figures of its own."""

    name: str
    about: str
    seen: int
    dropped: int
    flagged: int
    changed: int
    seconds: float
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CleanReport:
    """What was kept and what was not. `len(kept) + len(dropped) == total`, always.

    `kept` has the order of the source; `kept_rows` holds the source positions, from 0, of its rows.
    """

    kept: Any
    dropped: tuple[Drop, ...]
    total: int
    counts: tuple[RuleCount, ...]
    kept_rows: Sequence[int] = field(repr=False)
    flagged: tuple[Drop, ...] = ()
    changed: tuple[Drop, ...] = ()
    source: Any = field(default=None, repr=False)  # every well-formed row, kept or not
    positions: Any = field(default=None, repr=False)  # source position of each row of `source`

    @property
    def ratios(self) -> dict[str, float]:
        """Share of all rows that each rule dropped, 0 to 1, and `"kept"`."""
        shares = {count.name: 0.0 for count in self.counts if count.name != "well-formed"}
        for drop in self.dropped:
            shares[drop.rule] = shares.get(drop.rule, 0.0) + 1 / self.total
        return {"kept": len(self.kept) / self.total, **shares}

    def worst(self, n: int = 5, rule: str | None = None) -> "DropTable":
        """The most doubtful drops, nearest to their rule's limit first: read them to judge a threshold by eye."""
        doubtful = [d for d in self.dropped if d.limit is not None and rule in (None, d.rule)]
        doubtful.sort(key=lambda d: abs((d.score or 0.0) - (d.limit or 0.0)) / (abs(d.limit or 0.0) or 1.0))
        return self.show(doubtful[:n])

    def show(self, drops: Sequence[Drop]) -> "DropTable":
        """These drops with the text around their first difference from their twin, or with their answer."""
        place = {int(p): i for i, p in enumerate(self.positions)} if drops else {}
        texts = []
        for drop in drops:
            part = "answer" if drop.twin is None else "all"
            rows = [place.get(row) if row is not None else None for row in (drop.row, drop.twin)]
            texts.append(tuple("" if at is None else text_of(self.source[at]["messages"], part) for at in rows))
        return DropTable(tuple(drops), tuple(texts))

    def save(self, path: str | Path) -> Path:
        """Write the report, without the kept rows, as JSON: counts, ratios, and every drop with its reason."""
        return storage.write_json(
            path,
            {
                "total": self.total,
                "kept": len(self.kept),
                "ratios": self.ratios,
                "rules": [asdict(c) for c in self.counts],
                "dropped": [asdict(d) for d in self.dropped],
                "flagged": [asdict(d) for d in self.flagged],
                "changed": [asdict(d) for d in self.changed],
            },
        )

    def __str__(self) -> str:
        lines = [f"kept {len(self.kept)} of {self.total} rows ({len(self.kept) / self.total:.1%})"]
        for c in self.counts:
            more = [f"{n} {what}" for n, what in ((c.flagged, "flagged"), (c.changed, "changed")) if n]
            notes = [f"{name} {_short(value)}" for name, value in c.notes.items()]
            lines.append(f"{c.name:>17}  {c.dropped:>6} dropped of {c.seen:<6} {'; '.join(more + notes)}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{html.escape(c.name)}</td><td style='text-align:left'>{html.escape(c.about)}</td><td>{c.seen}</td>"
            f"<td><b>{c.dropped}</b></td><td>{c.flagged or ''}</td><td>{c.changed or ''}</td><td style='text-align:left'>"
            f"{html.escape('; '.join(f'{n} {_short(v)}' for n, v in c.notes.items()))}</td><td>{c.seconds:.1f}</td></tr>"
            for c in self.counts
        )
        return (
            f"<p><b>Kept {len(self.kept)} of {self.total} rows</b> ({len(self.kept) / self.total:.1%})</p><table><tr><th>rule</th>"
            "<th style='text-align:left'>what it drops</th><th>seen</th><th>dropped</th><th>flagged</th><th>changed</th><th style='text-align:left'>notes</th><th>s</th></tr>"
            f"{cells}</table>"
        )


@dataclass(frozen=True)
class DropTable:
    """Drops with their texts, for reading."""

    drops: tuple[Drop, ...]
    texts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.drops)

    def __str__(self) -> str:
        blocks = []
        for drop, (own, twin) in zip(self.drops, self.texts, strict=True):
            lines = [str(drop), f"    {_clip(own, twin)}"] + ([f"    ↔ {_clip(twin, own)}"] if twin else [])
            blocks.append("\n".join(lines))
        return "\n".join(blocks) or "(no drops)"

    def _repr_html_(self) -> str:
        left, twins = "style='text-align:left;max-width:28em'", any(d.twin is not None for d in self.drops)
        head = [
            "row",
            "rule",
            "reason",
            "dropped" if twins else "its answer",
            *(["its twin that stays"] if twins else []),
        ]
        lines = ["<tr>" + "".join(f"<th style='text-align:left'>{name}</th>" for name in head) + "</tr>"]
        for d, (own, twin) in zip(self.drops, self.texts, strict=True):
            cells = [html.escape(d.place), html.escape(d.rule), html.escape(d.reason), _mark(own, twin)]
            cells += [f"{html.escape(d.twin_place or '')} {_mark(twin, own)}"] if twins else []
            lines.append("<tr>" + "".join(f"<td {left}>{cell}</td>" for cell in cells) + "</tr>")
        return f"<table>{''.join(lines)}</table>"


def _clip(text: str, twin: str = "") -> str:
    """The beginning of a text, or what surrounds its first difference from its twin."""
    flat, other = " ".join(text.split()), " ".join(twin.split())
    first = next((i for i, (a, b) in enumerate(zip(flat, other, strict=False)) if a != b), 0) if other else 0
    start = max(0, min(first - _SHOWN // 3, len(flat) - _SHOWN))
    cut = flat[start : start + _SHOWN]
    return ("…" if start else "") + cut + ("…" if start + _SHOWN < len(flat) else "")


def _mark(text: str, other: str) -> str:
    """The clipped text with the words that the other lacks in bold."""
    known = set(other.split())
    shown = _clip(text, other).split()
    return " ".join(html.escape(w) if not known or w.strip("…") in known else f"<b>{html.escape(w)}</b>" for w in shown)


def _short(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else json.dumps(value, default=str)
    )
