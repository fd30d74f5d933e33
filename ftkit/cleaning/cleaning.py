"""Drop rows, and say why: `clean` runs rules over examples and accounts for every row.

It knows no defect: what is wrong with a row is for rules to say (`rules`, `balancing`, `privacy`). Overlap between
train and test is `data.leakage`'s business.
"""

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ftkit import data, files, tables
from ftkit.cleaning.privacy import personal_data
from ftkit.cleaning.rules import Outcome, Rule, Ruling, exact_duplicates, length, near_duplicates, quality
from ftkit.data import text_of
from ftkit.errors import ConfigError, DataError
from ftkit.tables import Table

_PASS_ROWS = 1_000
_SHOWN = 160  # characters of a text in a table of drops


def clean(
    examples: Any,
    rules: Sequence[Rule] | None = None,
    *,
    mapping: Mapping[str, str] | None = None,
    on_error: str = "raise",
) -> "CleanReport":
    """Run `rules` in their order; what one drops the next does not see, and what stays keeps its order.

    Neighbouring rules that look at one row at a time share a single pass over the data.

    `examples` is a Dataset with `messages`, or anything that `data.load_examples` reads, with its `mapping`. Malformed
    rows: `on_error` "raise" lists them and stops, "drop" counts them among the dropped.

    Raises:
        DataError: malformed rows with "raise"; no row at all.
    """
    if on_error not in ("raise", "drop"):
        raise ConfigError(f"on_error={on_error!r} is not 'raise' or 'drop'.")
    began = time.perf_counter()
    loaded = data.read_rows(examples, mapping=mapping)
    if on_error == "raise":
        loaded.refuse_broken("on_error='drop'")
    work = _Work(loaded, time.perf_counter() - began)
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


def default_rules(tokenizer: Any = None, max_length: int = 2048) -> list[Rule]:
    """What every dataset wants: exact duplicates, length, plain defects, near-duplicates, a report of personal data.

    Near-duplicates come late, so that a good row is never dropped for a twin that goes afterwards.
    """
    return [exact_duplicates(), length(tokenizer, max_length=max_length), quality(), near_duplicates(), personal_data()]


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
        return tables.visible(f"{self.place}: {self.rule}: {self.reason}{twin}")


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


@tables.shown
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

    def worst(self, n: int = 5, rule: str | None = None) -> Table:
        """The most doubtful drops, nearest to their rule's limit first: read them to judge a threshold by eye."""
        doubtful = [d for d in self.dropped if d.limit is not None and rule in (None, d.rule)]
        doubtful.sort(key=lambda d: abs((d.score or 0.0) - (d.limit or 0.0)) / (abs(d.limit or 0.0) or 1.0))
        return self.show(doubtful[:n])

    def show(self, drops: Sequence[Drop]) -> Table:
        """These drops with the text around their first difference from their twin, or with their answer.

        Of a row and its twin, ‹words› that the other lacks are marked.
        """
        if not drops:
            return Table((), (), caption="(no drops)")
        place, lines = {int(p): i for i, p in enumerate(self.positions)}, []

        def text(row: int | None, part: str) -> str:
            at = None if row is None else place.get(row)
            return "" if at is None else text_of(self.source[at]["messages"], part)

        for drop in drops:
            part = "answer" if drop.twin is None else "all"
            own, twin = text(drop.row, part), text(drop.twin, part)
            lines.append((drop.place, f"{drop.rule}: {drop.reason}", _excerpt(own, twin)))
            if drop.twin is not None:
                lines.append((str(drop.twin_place), "its twin that stays", _excerpt(twin, own)))
        return Table(("row", "why", "its answer, or what surrounds the first difference"), lines, prose=True)

    def save(self, path: str | Path) -> Path:
        """Write the report, without the kept rows, as JSON: counts, ratios, and every drop with its reason."""
        entries: dict[str, Any] = {"total": self.total, "kept": len(self.kept), "ratios": self.ratios}
        entries["rules"] = [asdict(count) for count in self.counts]
        for name in ("dropped", "flagged", "changed"):
            entries[name] = [asdict(drop) for drop in getattr(self, name)]
        return files.write_json(path, entries)

    def _parts(self) -> list[Table | str]:
        head = ("rule", "seen", "dropped", "flagged", "changed", "s", "notes", "what it drops")
        lines = []
        for c in self.counts:
            notes = "; ".join(f"{name} {_short(value)}" for name, value in c.notes.items())
            counts = (c.seen, c.dropped, c.flagged or "", c.changed or "", f"{c.seconds:.1f}")
            lines.append((c.name, *counts, notes, c.about))
        kept = f"kept {len(self.kept)} of {self.total} rows ({len(self.kept) / self.total:.1%})"
        return [kept, Table(head, lines, prose=True)]


def _excerpt(text: str, twin: str) -> str:
    """The beginning of a text, or what surrounds its first difference from its twin, with its own words marked."""
    flat, other = " ".join(text.split()), " ".join(twin.split())
    pairs = enumerate(zip(flat, other, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), 0)
    start = max(0, min(first - _SHOWN // 3, len(flat) - _SHOWN))
    cut = flat[start : start + _SHOWN]
    words, ended = cut.split(), start + _SHOWN >= len(flat)
    if other and words:
        known = set(other.split())
        if start:
            known.add(words[0])  # the words at both ends may be cut
        if not ended:
            known.add(words[-1])
        runs = itertools.groupby(words, key=known.__contains__)
        cut = " ".join(" ".join(run) if common else f"‹{' '.join(run)}›" for common, run in runs)
    return ("…" if start else "") + cut + ("" if ended else "…")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


class _Work:
    """One cleaning under way: which rows are left, and what has been found."""

    def __init__(self, loaded: data.Loaded, seconds: float) -> None:
        self.loaded, self.dataset = loaded, loaded.examples
        self.left = list(range(len(self.dataset)))
        self.changes: dict[int, list[dict[str, Any]]] = {}
        broken = [Drop(b.row, b.place, "well-formed", b.reason) for b in loaded.broken]
        broken += [Drop(b.row, b.place, "unwanted", b.reason) for b in loaded.unwanted]
        self.found: dict[str, list[Drop]] = {"drop": broken, "flag": [], "change": []}
        about = "rows that cannot be read as a chat with an answer"
        self.counts = [RuleCount("well-formed", about, loaded.total, len(broken), 0, 0, seconds)]

    def pass_over(self, rules: Sequence[Rule]) -> None:
        """Ask all these rules about each row, in one reading; the first that drops it wins."""
        began = time.perf_counter()
        judges = [rule.row() for rule in rules if rule.row is not None]
        rulings: list[dict[int, Ruling]] = [{} for _ in rules]
        gone: set[int] = set()
        seen = [0] * len(rules)
        for at, row in self._rows():
            for i, judge in enumerate(judges):
                seen[i] += 1
                ruling = judge(at, row)
                if ruling is None:
                    continue
                rulings[i][at] = ruling
                if ruling.messages is not None:
                    row["messages"] = self.changes[at] = ruling.messages
                if ruling.action == "drop":
                    gone.add(at)
                    break
        self.left = [at for at in self.left if at not in gone]
        share = (time.perf_counter() - began) / len(rules)
        for rule, n, found in zip(rules, seen, rulings, strict=True):
            self._note(rule, n, found, share, {})

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows that are left, as rules have changed them, with their places in the dataset."""
        view = self.dataset.select(self.left)
        for start in range(0, len(self.left), _PASS_ROWS):
            columns = view[start : start + _PASS_ROWS]
            for at, values in zip(self.left[start:], zip(*columns.values(), strict=True), strict=False):
                row = dict(zip(columns, values, strict=True))
                row["messages"] = self.changes.get(at, row["messages"])
                yield at, row

    def whole(self, rule: Rule) -> None:
        """Ask a rule that must see all rows that are left."""
        began = time.perf_counter()
        assert rule.whole is not None
        seen = len(self.left)
        outcome = rule.whole(self.current()) if self.left else Outcome({})
        found = {}
        for at, ruling in sorted(outcome.findings.items()):
            twin = None if ruling.twin is None else self.left[ruling.twin]
            found[self.left[at]] = replace(ruling, twin=twin)
        gone = {at for at, ruling in found.items() if ruling.action == "drop"}
        self.left = [at for at in self.left if at not in gone]
        self._note(rule, seen, found, time.perf_counter() - began, outcome.notes)

    def _note(
        self, rule: Rule, seen: int, found: Mapping[int, Ruling], seconds: float, notes: Mapping[str, Any]
    ) -> None:
        position, place = self.loaded.position, self.loaded.place
        for at, ruling in found.items():
            twin = ruling.twin
            told = (position(at), place(at), rule.name, ruling.reason, ruling.score, ruling.limit)
            twins = () if twin is None else (position(twin), place(twin))
            self.found[ruling.action].append(Drop(*told, *twins))
        actions = [ruling.action for ruling in found.values()]
        dropped, flagged, changed = map(actions.count, self.found)
        self.counts.append(RuleCount(rule.name, rule.about, seen, dropped, flagged, changed, seconds, notes))

    def current(self) -> Any:
        """The rows that are left, as rules have changed them."""
        left = self.dataset.select(self.left)
        redo = {i: self.changes[at] for i, at in enumerate(self.left) if at in self.changes}
        if not redo:
            return left
        settings = {"with_indices": True, "features": left.features, "load_from_cache_file": False}
        return left.map(lambda row, i: {"messages": redo.get(i, row["messages"])}, **settings)

    def report(self) -> CleanReport:
        """Close the books: every row is either kept or dropped."""
        kept = self.current()
        dropped = tuple(sorted(self.found["drop"], key=lambda d: d.row))
        if len(kept) + len(dropped) != self.loaded.total:
            sum_of = f"{len(kept)} kept and {len(dropped)} dropped rows do not make {self.loaded.total}"
            raise DataError(f"{sum_of}: a rule named a row twice.")
        return CleanReport(
            kept=kept,
            dropped=dropped,
            total=self.loaded.total,
            counts=tuple(self.counts),
            kept_rows=[self.loaded.position(at) for at in self.left],
            flagged=tuple(self.found["flag"]),
            changed=tuple(self.found["change"]),
            source=self.dataset,
            positions=[self.loaded.position(i) for i in range(len(self.dataset))],
        )
