"""What a check before training found, and how it shows itself. Knows no models, no data and no settings."""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from ftkit.errors import PreflightError
from ftkit.tables import Table, escaped

SEVERITIES = ("error", "warning", "note")

_SIGNS = {"error": "✗", "warning": "○", "note": "·"}

_LISTED = 10

_WIDTH = 110

_KEPT = "\u00a0"  # a space at which no line breaks


@dataclass(frozen=True)
class Finding:
    """One thing that a run would stumble over: an error stops it, a warning costs quality or time, a note explains.

    `evidence` is what was seen (row numbers counted from 1, tokens, figures), `fix` what to do, `field` the setting
    that it is about, and `rows` the training rows, so that a program can look at them.
    """

    id: str
    severity: str
    title: str
    evidence: str
    fix: str
    field: str = ""
    rows: tuple[int, ...] = dataclasses.field(default=(), repr=False)

    def __str__(self) -> str:
        about = f" [{self.field}]" if self.field else ""
        lines = [f"{_SIGNS[self.severity]} {self.severity}: {self.title} ({self.id}){about}"]
        lines += [_wrapped(self.evidence, "    ")] if self.evidence else []
        return "\n".join([*lines, _wrapped(f"→ {self.fix}", "    ")])


@dataclass(frozen=True)
class PreflightReport:
    """Findings, the worst first, beside what was looked at: `checked` names each check and what passing it means.

    `skipped` says why a check could not be made, `facts` holds the figures that a reader wants to see in any case.
    """

    findings: tuple[Finding, ...]
    checked: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that stop the run."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that the run survives, at a price."""
        return self._of("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings that are good to know."""
        return self._of("note")

    @property
    def ok(self) -> bool:
        """Whether nothing stops the run."""
        return not self.errors

    @property
    def passed(self) -> tuple[str, ...]:
        """Ids of the checks that were made and found nothing."""
        found = {finding.id for finding in self.findings}
        return tuple(name for name in self.checked if name not in found)

    def refuse(self) -> Self:
        """Stop here if the run cannot work; a report without errors comes back, warnings or not.

        Raises:
            PreflightError: lists all errors at once, each with its evidence and its fix.
        """
        if self.errors:
            listed = "\n".join(map(str, self.errors))
            raise PreflightError(f"{_counted(self.errors, 'error')} would make this run fail or be in vain:\n{listed}")
        return self

    def _of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def _verdict(self) -> str:
        kinds = [_counted(part, name) for name in SEVERITIES if (part := self._of(name))]
        verdict = "✗ Not ready to train" if self.errors else "✓ Ready to train"
        found = ", ".join(kinds) or "nothing found"
        return f"{verdict}: {found} in {len(self.checked)} checks, {self.seconds:.1f} s"

    def __str__(self) -> str:
        lines = [self._verdict(), *(f"  {name:>16}  {value}" for name, value in self.facts.items())]
        lines += map(str, self.findings)
        if self.passed:
            lines += ["passed:", _wrapped("  ".join(f"✓{_KEPT}{name}" for name in self.passed), "    ")]
        if self.skipped:
            lines += ["not checked:", *(_wrapped(f"{', '.join(ids)}: {why}", "    ") for why, ids in self._whys())]
        return "\n".join(lines)

    def _whys(self) -> list[tuple[str, list[str]]]:
        """Each reason for skipping with the checks that it concerns."""
        whys: dict[str, list[str]] = {}
        for name, why in self.skipped.items():
            whys.setdefault(why, []).append(name)
        return list(whys.items())

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{escaped(self._verdict())}</b></p>"]
        if self.facts:
            parts.append(Table((), [*self.facts.items()])._repr_html_())
        if self.findings:
            head = ("", "found", "evidence", "what to do", "setting")
            parts.append(Table(head, [*map(_row, self.findings)], prose=True)._repr_html_())
        if self.passed:
            parts.append("<p>" + " · ".join(f"✓ {name}" for name in self.passed) + "</p>")
        if whys := "; ".join(f"{', '.join(ids)} ({why})" for why, ids in self._whys()):
            parts.append(f"<p>Not checked: {escaped(whys)}</p>")
        return "".join(parts)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors before warnings before notes, each in the order of the checks; the same about two parts becomes one."""
    merged: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        if first := merged.get((finding.id, finding.title)):
            finding = dataclasses.replace(
                first, evidence=f"{first.evidence}\n{finding.evidence}", rows=first.rows + finding.rows
            )
        merged[finding.id, finding.title] = finding
    return tuple(sorted(merged.values(), key=lambda finding: SEVERITIES.index(finding.severity)))


def listed(numbers: Iterable[int], noun: str = "row") -> str:
    """Such as "row 4" or "rows 2, 7, 9 and 31 more"."""
    known = list(numbers)
    more = f" and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
    return f"{noun}{'s' if len(known) != 1 else ''} {', '.join(map(str, known[:_LISTED]))}{more}"


def quoted(text: str, limit: int = 60) -> str:
    """The beginning of a text in quotes, with line breaks made visible."""
    flat = text.replace("\n", "⏎")
    return f"“{flat if len(flat) <= limit else flat[: limit - 1] + '…'}”"


def _counted(findings: tuple[Finding, ...], noun: str) -> str:
    return f"{len(findings)} {noun}{'s' if len(findings) > 1 else ''}"


def _row(finding: Finding) -> tuple[str, ...]:
    severity = f"{_SIGNS[finding.severity]}{_KEPT}{finding.severity}"
    return severity, f"{finding.title}\n{finding.id}", finding.evidence, finding.fix, finding.field


def _wrapped(text: str, indent: str) -> str:
    lines = [
        textwrap.fill(
            line,
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    ]
    return "\n".join(lines).replace(_KEPT, " ")
