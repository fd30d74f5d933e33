"""Drop rows, and say why: rules run over examples, and a report that accounts for every row.

Rules live in `rules`, `pii` and `balance`; overlap between train and test in `leakage`. Their public names are repeated here.
"""

import html
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ftkit import data, files
from ftkit.cleaning.privacy import personal_data
from ftkit.cleaning.rules import Outcome, Rule, Ruling, exact_duplicates, length, near_duplicates, quality
from ftkit.data import text_of
from ftkit.errors import ConfigError, DataError

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
        return files.write_json(
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


_PASS_ROWS = 1_000


def default_rules(tokenizer: Any = None, max_length: int = 2048) -> list[Rule]:
    """What every dataset wants: exact duplicates, length, plain defects, near-duplicates, and a report of personal data.

    Near-duplicates come late, so that a good row is never dropped for a twin that goes afterwards.
    """
    return [exact_duplicates(), length(tokenizer, max_length=max_length), quality(), near_duplicates(), personal_data()]


def clean(
    examples: Any,
    rules: Sequence[Rule] | None = None,
    *,
    mapping: Mapping[str, str] | None = None,
    on_error: str = "raise",
) -> CleanReport:
    """Run `rules` in their order; what one drops the next does not see, and what stays keeps its order.

    Neighbouring rules that look at one row at a time share a single pass over the data.

    Args:
        examples: a Dataset with `messages`, or anything that `data.load_examples` reads.
        rules: by default `default_rules()`.
        mapping: as in `data.load_examples`.
        on_error: malformed rows: "raise" lists them and stops, "drop" counts them among the dropped.

    Raises:
        DataError: malformed rows with "raise"; no row at all.
    """
    if on_error not in ("raise", "drop"):
        raise ConfigError(f"on_error={on_error!r} is not 'raise' or 'drop'.")
    began = time.perf_counter()
    loaded = data.read_rows(examples, mapping=mapping)
    if on_error == "raise":
        loaded.refuse_broken("on_error='drop'")
    work = _Work(loaded)
    work.broken(time.perf_counter() - began)
    rules = default_rules() if rules is None else list(rules)
    if unknown := [rule for rule in rules if not isinstance(rule, Rule)]:
        raise ConfigError(
            f"{unknown[0]!r} is no rule. Rules are made by calls such as cleaning.length(max_length=512)."
        )
    while rules:
        shared = next((i for i, rule in enumerate(rules) if rule.row is None), len(rules))
        if shared:
            work.pass_over(rules[:shared])
        if shared < len(rules):
            work.whole(rules[shared])
        rules = rules[shared + 1 :]
    return work.report()


class _Work:
    """One cleaning under way: which rows are left, and what has been found."""

    def __init__(self, loaded: "data.Loaded") -> None:
        self.loaded, self.dataset = loaded, loaded.examples
        self.left = list(range(len(self.dataset)))
        self.drops: list[Drop] = []
        self.flags: list[Drop] = []
        self.changes: dict[int, list[dict[str, Any]]] = {}
        self.changed: list[Drop] = []
        self.counts: list[RuleCount] = []

    def broken(self, seconds: float) -> None:
        """Count the rows that could not be read as drops."""
        self.drops += [Drop(b.row, b.place, "well-formed", b.reason) for b in self.loaded.broken]
        about = "rows that cannot be read as a chat with an answer"
        self.counts.append(RuleCount("well-formed", about, self.loaded.total, len(self.drops), 0, 0, seconds))

    def pass_over(self, rules: Sequence[Rule]) -> None:
        """Ask all these rules about each row, in one reading; the first that drops it wins."""
        began = time.perf_counter()
        judges = [rule.row() for rule in rules if rule.row is not None]
        seen, gone = [0] * len(rules), set()
        findings: list[list[tuple[int, Ruling]]] = [[] for _ in rules]
        view = self.dataset.select(self.left)
        for start in range(0, len(self.left), _PASS_ROWS):
            columns = view[start : start + _PASS_ROWS]
            names = list(columns)
            for offset, values in enumerate(zip(*columns.values(), strict=True)):
                at = self.left[start + offset]
                row = dict(zip(names, values, strict=True))
                row["messages"] = self.changes.get(at, row["messages"])
                for i, judge in enumerate(judges):
                    seen[i] += 1
                    finding = judge(at, row)
                    if finding is not None:
                        findings[i].append((at, finding))
                        if finding.messages is not None:
                            row["messages"] = self.changes[at] = finding.messages
                        if finding.action == "drop":
                            gone.add(at)
                            break
        self.left = [at for at in self.left if at not in gone]
        share = (time.perf_counter() - began) / len(rules)
        for rule, n, found in zip(rules, seen, findings, strict=True):
            self._note(rule, n, dict(found), share, {})

    def whole(self, rule: Rule) -> None:
        """Ask a rule that must see all rows that are left."""
        began = time.perf_counter()
        assert rule.whole is not None
        seen = len(self.left)
        outcome = rule.whole(self.current()) if self.left else Outcome({})
        found = {}
        for at, finding in sorted(outcome.findings.items()):
            twin = None if finding.twin is None else self.left[finding.twin]
            found[self.left[at]] = Ruling(**{**finding.__dict__, "twin": twin})
        gone = {at for at, finding in found.items() if finding.action == "drop"}
        self.left = [at for at in self.left if at not in gone]
        self._note(rule, seen, found, time.perf_counter() - began, outcome.notes)

    def _note(self, rule: Rule, seen: int, found: dict[int, Ruling], seconds: float, notes: Mapping[str, Any]) -> None:
        lists: dict[str, list[Drop]] = {"drop": self.drops, "flag": self.flags, "change": self.changed}
        for at, finding in found.items():
            lists[finding.action].append(self._drop(rule.name, at, finding))
        dropped, flagged, changed = (sum(f.action == a for f in found.values()) for a in ("drop", "flag", "change"))
        self.counts.append(RuleCount(rule.name, rule.about, seen, dropped, flagged, changed, seconds, notes))

    def _drop(self, rule: str, at: int, f: Ruling) -> Drop:
        row, place = self.loaded.position(at), self.loaded.place(at)
        twin = None if f.twin is None else self.loaded.position(f.twin)
        twin_place = None if f.twin is None else self.loaded.place(f.twin)
        return Drop(row, place, rule, f.reason, f.score, f.limit, twin, twin_place)

    def current(self) -> Any:
        """The rows that are left, as rules have changed them."""
        left = self.dataset.select(self.left)
        redo = {i: self.changes[at] for i, at in enumerate(self.left) if at in self.changes}
        if not redo:
            return left
        return left.map(
            lambda row, i: {"messages": redo[i]} if i in redo else {"messages": row["messages"]},
            with_indices=True,
            features=left.features,
            load_from_cache_file=False,
        )

    def report(self) -> CleanReport:
        """Close the books: every row is either kept or dropped."""
        kept = self.current()
        dropped = tuple(sorted(self.drops, key=lambda d: d.row))
        if len(kept) + len(dropped) != self.loaded.total:
            raise DataError(
                f"{len(kept)} kept and {len(dropped)} dropped rows do not make {self.loaded.total}: a rule named a row twice."
            )
        rows = [self.loaded.position(at) for at in self.left]
        return CleanReport(
            kept,
            dropped,
            self.loaded.total,
            tuple(self.counts),
            rows,
            tuple(self.flags),
            tuple(self.changed),
            self.dataset,
            [self.loaded.position(i) for i in range(len(self.dataset))],
        )
