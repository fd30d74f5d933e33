"""What a check before training found, in which words, and how it shows itself. Knows no models, data or settings."""

import dataclasses
import functools
import operator
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ftkit import files, tables
from ftkit.errors import PreflightError
from ftkit.tables import Table

# By group and id: what passing means, severity, title, evidence and fix; and, by name, variants that replace some.
GROUPS: dict[str, dict[str, Any]] = files.sample("findings")
_TEXTS: dict[str, Any] = functools.reduce(operator.or_, GROUPS.values())
CHECKS: dict[str, str] = {id: texts["passed"] for id, texts in _TEXTS.items()}

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
        head = f"{_SIGNS[self.severity]} {self.severity}: {self.title} ({self.id}){about}"
        return f"{tables.visible(head)}\n{_wrapped(self.evidence)}\n{_wrapped(f'→ {self.fix}')}"


def finding(id: str, variant: str = "", *, rows: Iterable[int] = (), **facts: Any) -> Finding:
    """What a check found, in the words of samples/findings.json, whose gaps `facts` fill.

    `variant` names texts that replace the usual ones; `rows` are training rows that it is about. One of the facts is
    `field`, where the setting is not always the same.
    """
    words = {"severity": "error", "evidence": "{listed}", "field": "{field}"} | _TEXTS[id]
    words = files.worded(words, variant, {"field": "", **facts})
    about = {name: words[name] for name in ("severity", "title", "evidence", "fix", "field")}
    return Finding(id, **about, rows=tuple(rows))


@tables.shown
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
    def unforeseen(self) -> tuple[Finding, ...]:
        """Warnings that the settings alone do not let expect."""
        return tuple(finding for finding in self.warnings if finding.id not in GROUPS["settings"])

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
        verdict = "✗ Not ready to train" if self.errors else "✓ Ready to train"
        kinds = [_counted(part, name) for name in SEVERITIES if (part := self._of(name))]
        found = ", ".join(kinds) or "nothing found"
        return f"{verdict}: {found} in {len(self.checked)} checks, {self.seconds:.1f} s"

    def _parts(self) -> list[Any]:
        parts: list[Any] = [self._verdict(), Table((), tuple(self.facts.items()))]
        if self.findings:
            parts.append(_Listed(self.findings))
        if self.passed:
            ids = _wrapped("  ".join(f"✓{_KEPT}{name}" for name in self.passed))
            parts.append(f"passed:\n{ids}")
        whys: dict[str, list[str]] = {}
        for name, why in self.skipped.items():
            whys.setdefault(why, []).append(name)
        if whys:
            lines = [_wrapped(f"{', '.join(ids)}: {why}") for why, ids in whys.items()]
            parts.append("\n".join(["not checked:", *lines]))
        return parts


@dataclass(frozen=True)
class _Listed:
    """Findings as paragraphs in a terminal, where a table would be too wide, and as a table on a page."""

    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    def _repr_html_(self) -> str:
        rows = [
            (f"{_SIGNS[f.severity]}{_KEPT}{f.severity}", f"{f.title}\n{f.id}", f.evidence, f.fix, f.field)
            for f in self.findings
        ]
        return Table(("", "found", "evidence", "what to do", "setting"), rows, prose=True)._repr_html_()


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors before warnings before notes, each in the order of the checks; the same about two parts becomes one."""
    merged: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.id, finding.title)
        if first := merged.get(key):
            evidence = f"{first.evidence}\n{finding.evidence}"
            finding = dataclasses.replace(first, evidence=evidence, rows=first.rows + finding.rows)
        merged[key] = finding
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


def _wrapped(text: str) -> str:
    """Lines of a bearable length, indented."""
    fill = textwrap.TextWrapper(
        _WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(map(fill.fill, tables.visible(text).splitlines())).replace(_KEPT, " ")
