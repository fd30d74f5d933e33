"""Recorded comparisons come with their source, and are what was published."""

import html
from pathlib import Path

import pytest

from ftkit import lessons
from ftkit.errors import MissingArtifact


@pytest.mark.parametrize("name", ["length", "baseline", "t4", "h200"])
def test_each_says_where_it_comes_from(name):
    record = lessons.load_record(name)
    for part in (record.device, record.day, record.by, record.source, record.settings):
        assert part
        assert part in record.where
        assert html.escape(part) in record._repr_html_()
    assert record.source.startswith("https://") or (Path(__file__).parents[2] / record.source).is_file()
    assert record.rows


def test_an_unknown_record_names_those_that_there_are():
    with pytest.raises(MissingArtifact, match="length, baseline, t4, h200"):
        lessons.load_record("h100")


def test_a_run_without_memory_is_told():
    """At 65,536 tokens only Unsloth ran."""
    row = lessons.load_record("length").rows[-2]
    assert (row["length_tokens"], row["plain_gb"], row["unsloth_gb"]) == (65536, None, 25)
    assert "plain_gb out of memory" in str(lessons.load_record("length"))


def test_published_improvements_agree_with_the_speeds():
    """The page gives 111 to 117 % for the same rows."""
    ratios = [
        r["unsloth_tokens_per_s"] / r["plain_tokens_per_s"] for r in lessons.load_record("length").rows if r["plain_gb"]
    ]
    assert [round(100 * ratio) for ratio in ratios] == [111, 116, 117, 116, 114, 111]


def test_columns_are_named_with_their_units():
    page = lessons.load_record("length")._repr_html_()
    assert "<th>length, tokens</th>" in page
    assert "<th>plain, tokens/s</th>" in page
    assert "<th>unsloth, GB</th>" in page
    assert "<th>unsloth, GiB</th>" in lessons.load_record("h200")._repr_html_()
