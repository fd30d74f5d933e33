"""Drop rows, and say why: rules run over examples, and a report that accounts for every row.

Rules live in `rules`, `pii` and `balance`; overlap between train and test in `leakage`. Their public names are repeated here.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit import data
from ftkit.balance import balance, diversity
from ftkit.clean_report import CleanReport, Drop, DropTable, RuleCount
from ftkit.errors import ConfigError, DataError
from ftkit.leakage import LeakageReport, leakage
from ftkit.pii import pii
from ftkit.rules import (
    Finding,
    Outcome,
    Rule,
    exact_duplicates,
    length,
    near_duplicates,
    quality,
)

__all__ = [
    "CleanReport",
    "Drop",
    "DropTable",
    "Finding",
    "LeakageReport",
    "Outcome",
    "Rule",
    "balance",
    "clean",
    "default_rules",
    "diversity",
    "exact_duplicates",
    "leakage",
    "length",
    "near_duplicates",
    "pii",
    "quality",
]
_PASS_ROWS = 1_000


def default_rules(tokenizer: Any = None, max_length: int = 2048) -> list[Rule]:
    """What every dataset wants: exact duplicates, length, plain defects, near-duplicates, and a report of personal data.

    Near-duplicates come late, so that a good row is never dropped for a twin that goes afterwards.
    """
    return [exact_duplicates(), length(tokenizer, max_length=max_length), quality(), near_duplicates(), pii()]


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
        raise ConfigError(f"{unknown[0]!r} is no rule. Rules are made by calls such as clean.length(max_length=512).")
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
        findings: list[list[tuple[int, Finding]]] = [[] for _ in rules]
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
            found[self.left[at]] = Finding(**{**finding.__dict__, "twin": twin})
        gone = {at for at, finding in found.items() if finding.action == "drop"}
        self.left = [at for at in self.left if at not in gone]
        self._note(rule, seen, found, time.perf_counter() - began, outcome.notes)

    def _note(self, rule: Rule, seen: int, found: dict[int, Finding], seconds: float, notes: Mapping[str, Any]) -> None:
        lists: dict[str, list[Drop]] = {"drop": self.drops, "flag": self.flags, "change": self.changed}
        for at, finding in found.items():
            lists[finding.action].append(self._drop(rule.name, at, finding))
        dropped, flagged, changed = (sum(f.action == a for f in found.values()) for a in ("drop", "flag", "change"))
        self.counts.append(RuleCount(rule.name, rule.about, seen, dropped, flagged, changed, seconds, notes))

    def _drop(self, rule: str, at: int, f: Finding) -> Drop:
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
