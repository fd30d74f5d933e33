"""Rows that stand twice: across train and val or test, where a score would say nothing, and within train."""

from collections.abc import Iterator, Mapping
from typing import Any

from ftkit import similar
from ftkit.findings import Finding, listed
from ftkit.leakage import LeakageReport, leakage
from ftkit.texts import Texts

CHECKS = {
    "leak-exact": "no val or test row stands in train",
    "leak-near": "no val or test row is nearly the same as one in train",
    "near-duplicates": "no two training rows are nearly the same",
}
MOST_ROWS = 20_000  # more would take more than a few seconds: `leakage.leakage` and `clean.clean` look at them all
_SHOWN = 5


def check_leaks(train: Any, others: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare each other part with train, on prompts and on whole chats."""
    for name, part in others.items():
        report = leakage(train, part)
        rows = sorted({overlap.test for overlap in report.exact})
        if rows:
            yield Finding(
                "leak-exact",
                "error",
                f"{len(rows)} {name} rows stand in train: a score on them says nothing.",
                _pairs(report, name, exact=True),
                "Split with data.split, which keeps twins together, or take these rows out: leakage(train, part).without_leaks(part).",
                rows=_train(report, exact=True),
            )
        near = sorted({overlap.test for overlap in report.near})
        if near:
            yield Finding(
                "leak-near",
                "warning",
                f"{len(near)} {name} rows are nearly the same as a training row: scores come out too high.",
                _pairs(report, name, exact=False),
                "Split with data.split, which keeps near-duplicates together.",
                rows=_train(report, exact=False),
            )


def check_duplicates(train: Any) -> Iterator[Finding]:
    """List groups of training rows that are the same, or nearly."""
    found = similar.near_pairs(Texts(train))
    if not found.pairs:
        return
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(found.clusters()):
        groups.setdefault(first, []).append(row + 1)
    groups = {first: rows for first, rows in groups.items() if len(rows) > 1}
    extra = sum(len(rows) - 1 for rows in groups.values())
    shown = "; ".join(listed(rows) for rows in list(groups.values())[:_SHOWN])
    yield Finding(
        "near-duplicates",
        "warning",
        f"{extra} of {len(train)} training rows repeat another one: they weigh more than the rest.",
        shown if len(groups) <= _SHOWN else f"{len(groups)} groups, such as {shown}",
        "Drop them: clean.clean with clean.near_duplicates(); keep them if repetition is meant.",
        rows=tuple(row for rows in groups.values() for row in rows[1:]),
    )


def _pairs(report: LeakageReport, name: str, *, exact: bool) -> str:
    overlaps = report.exact if exact else report.near
    shown = [
        f"{name} row {o.test} ~ train row {o.train} ({'prompt' if o.on == 'prompt' else 'prompt and answer'}, {o.similarity:.0%} alike)"
        for o in overlaps[:_SHOWN]
    ]
    more = f"\nand {len(overlaps) - _SHOWN} more" if len(overlaps) > _SHOWN else ""
    return "\n".join(shown) + more


def _train(report: LeakageReport, *, exact: bool) -> tuple[int, ...]:
    return tuple(sorted({overlap.train for overlap in (report.exact if exact else report.near)}))
