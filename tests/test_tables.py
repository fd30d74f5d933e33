"""Tables show whatever stands in them and obey none of it."""

from dataclasses import dataclass

from ftkit import tables
from ftkit.tables import Table


@tables.shown
@dataclass(frozen=True)
class Sizes:
    sizes: dict[str, int]

    def _parts(self) -> list[Table | str]:
        return [Table(("file", "bytes"), tuple(self.sizes.items())), f"{len(self.sizes)} files"]


def test_a_report_shows_the_same_in_a_terminal_and_on_a_page():
    report = Sizes({"a.json": 10, "history.csv": 2})
    assert str(report) == "file         bytes\na.json       10\nhistory.csv  2\n2 files"
    assert report._repr_html_() == (
        "<table><tr><th>file</th><th>bytes</th></tr><tr><td>a.json</td><td>10</td></tr>"
        "<tr><td>history.csv</td><td>2</td></tr></table><p>2 files</p>"
    )


def test_markup_and_control_characters_are_text():
    report = Sizes({"<script>\x1b[2J\u202ex": 1})
    assert "<script>" not in report._repr_html_()
    assert "\\x1b[2J\\u202ex" in str(report)
    assert "\x1b" not in str(report) + report._repr_html_()


def test_without_a_head_the_first_column_is_the_heading():
    facts = Table((), [("steps", 4), ("loss", "0.5")], caption="A run")
    assert str(facts) == "A run\nsteps  4\nloss   0.5"
    assert "<th>steps</th><td>4</td>" in facts._repr_html_()


def test_line_breaks_stay_on_a_page_and_are_marked_in_a_terminal():
    prose = Table(("answer",), [("one\ntwo",)], prose=True)
    assert "one⏎two" in str(prose)
    assert "pre-wrap" in prose._repr_html_()
    assert "one\ntwo" in prose._repr_html_()


def test_emoji_and_other_scripts_stay_whole():
    assert tables.visible("👩‍🔬 ❤️ مرحبا") == "👩‍🔬 ❤️ مرحبا"


def test_a_column_of_sentences_is_flush_left_as_a_whole():
    rows = [("lr", 0.1, "how far each update moves the weights of a model"), ("seed", 1, "of the draws")]
    page = Table(("name", "value", "what it does"), rows)._repr_html_()
    assert page.count('style="text-align:left"') == 3
    assert '<th style="text-align:left">what it does</th>' in page
    assert '<td>1</td><td style="text-align:left">of the draws</td>' in page


def test_a_number_stays_on_one_line_with_what_belongs_to_it():
    cells = ("+40.0 [+22.0, +54.2]", "< 0.001", "128 s (295 tokens/s)", "40", "two words", "16-bit, averages in 8-bit")
    page = Table(["score [95 %]", *"abcde"], [cells])._repr_html_()
    assert page.count('<td style="white-space:nowrap">') == 3
    assert "<th>score [95&nbsp;%]</th>" in page
    assert "<td>40</td><td>two words</td><td>16-bit, averages in 8-bit</td>" in page
