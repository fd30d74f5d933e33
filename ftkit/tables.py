"""Rows and a heading, as text in a terminal and as HTML in a notebook; what stands in a cell is shown, never obeyed.

A report says what it shows once, in `_parts`; `shown` gives it both faces:

```python
@tables.shown
@dataclass(frozen=True)
class Sizes:
    sizes: dict[str, int]

    def _parts(self) -> list[Table | str]:
        return [Table(("file", "bytes"), tuple(self.sizes.items())), f"{len(self.sizes)} files"]
```
"""

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Report = TypeVar("Report")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # what a terminal obeys, and what nobody sees
_LONG_LINE, _MANY_LINES = 1_500, 120
_SENTENCE = 40  # characters of a cell that is longer than a number or a name
_NUMBER = re.compile(r"[<+-]?[\d.,]+%?\s|[<>]\s[\d.]+")  # with what belongs to it: an interval, a unit, a sign
_PROSE = "text-align:left;white-space:pre-wrap;vertical-align:top;max-width:28em"


@dataclass(frozen=True)
class Table:
    """Cells of anything that `str` takes.

    Args:
        head: names of the columns; empty for a list of names with their values, whose first column is then the heading.
        rows: one sequence of cells a row.
        caption: a line above.
        prose: cells hold sentences: left-aligned, broken where they hold line breaks.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    prose: bool = False

    def __str__(self) -> str:
        lines = [[flat(cell) for cell in row] for row in ([self.head] if self.head else []) + [*self.rows]]
        columns = max(map(len, lines), default=0)
        widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(columns)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([flat(self.caption)] * bool(self.caption) + text)

    def _repr_html_(self) -> str:
        caption = f"<caption>{escaped(self.caption)}</caption>" if self.caption else ""
        styles = [self._style(i) for i in range(max(map(len, (self.head, *self.rows)), default=0))]
        names = [escaped(name).replace(" %", "&nbsp;%") for name in self.head]
        head = "".join(f"<th{style}>{name}</th>" for name, style in zip(names, styles, strict=False))
        styles = [f' style="{_PROSE}"'] * len(styles) if self.prose else styles
        rows = "".join(self._row(row, styles) for row in self.rows)
        return f"<table>{caption}{f'<tr>{head}</tr>' if head else ''}{rows}</table>"

    def _row(self, row: Sequence[Any], styles: Sequence[str]) -> str:
        names = 0 if self.head else 1
        heads = "".join(f"<th>{escaped(cell)}</th>" for cell in row[:names])
        styled = zip(row[names:], styles[names:], strict=False)
        cells = "".join(f"<td{style or _whole(cell)}>{escaped(cell)}</td>" for cell, style in styled)
        return f"<tr>{heads}{cells}</tr>"

    def _style(self, column: int) -> str:
        """Notebooks set cells flush right, as numbers are read; a column that holds a sentence is flush left."""
        sentences = any(len(str(row[column])) > _SENTENCE for row in self.rows if column < len(row))
        return ' style="text-align:left"' if self.prose or sentences else ""


def _whole(cell: Any) -> str:
    """A number with its interval or unit stays on one line, however narrow the window."""
    text = str(cell)
    return ' style="white-space:nowrap"' if len(text) <= _SENTENCE and _NUMBER.match(text) else ""


def shown(report: type[Report]) -> type[Report]:
    """Give a report `__str__` and `_repr_html_` from its method `_parts`, which lists tables, figures and sentences."""

    def text(self: Any) -> str:
        return "\n".join(visible(part) if isinstance(part, str) else str(part) for part in self._parts())

    def page(self: Any) -> str:
        parts = self._parts()
        return "".join(f"<p>{escaped(part)}</p>" if isinstance(part, str) else part._repr_html_() for part in parts)

    setattr(report, "__str__", text)  # noqa: B010
    setattr(report, "_repr_html_", page)  # noqa: B010
    return report


def escaped(cell: Any) -> str:
    """Text for a page: no markup of other people's is obeyed, control characters are spelt out."""
    return html.escape(visible(str(cell)))


def visible(text: str) -> str:
    """Text whose control and unseen characters are spelt out, as `\\x1b`; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(_spelt(character) for character in text)


def flat(cell: Any) -> str:
    """A cell on one line."""
    return visible(str(cell)).replace("\n", "⏎")


def message(text: str) -> str:
    """What a person is told: visible, and without the middle of a line or list that somebody's value made endless."""
    lines = visible(text).split("\n")
    if len(lines) > _MANY_LINES:
        lines[_MANY_LINES - 20 : -20] = [f"… and {len(lines) - _MANY_LINES:,} more lines …"]
    return "\n".join(line if len(line) <= _LONG_LINE else f"{line[:1000]} … {line[-400:]}" for line in lines)


def _spelt(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _HIDDEN:
        return character
    if character in "\u200d\ufe0f":  # joiners inside emoji and some scripts
        return character
    return ascii(character)[1:-1]
