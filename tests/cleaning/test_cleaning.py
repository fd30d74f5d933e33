"""Cleaning keeps its books: every row is kept or dropped with a reason, and the report says so."""

import json
import random

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import altered, chat, chats, random_text, rows_dropped

from ftkit import cleaning
from ftkit.cleaning import clean, exact_duplicates, length, near_duplicates, quality
from ftkit.cleaning.cleaning import _Work
from ftkit.errors import ConfigError, DataError

NASTY = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.sampled_from(["", " ", "\u200b", "🦜" * 3, "مرحبا", "\u202eabc", "x" * 2_000_000, "7"]),
    st.integers(),
    st.floats(allow_nan=True),
    st.booleans(),
    st.lists(st.none(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.binary(max_size=4),
)


@given(st.lists(st.one_of(NASTY, st.fixed_dictionaries({"prompt": NASTY, "completion": NASTY})), max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_row_is_dropped_in_silence(rows):
    """Whatever stands in the rows: kept and dropped together are all of them, and kept rows keep their order."""
    rows = [{"prompt": "What is it?", "completion": "A thing of some kind."}, *rows]
    report = clean(
        rows,
        [exact_duplicates(), near_duplicates(), length(max_length=1000), quality(), cleaning.personal_data()],
        on_error="drop",
    )
    assert len(report.kept) + len(report.dropped) == len(rows) == report.total
    assert list(report.kept_rows) == sorted(set(range(len(rows))) - {drop.row for drop in report.dropped})
    assert all(drop.reason for drop in report.dropped)
    str(report), report._repr_html_(), report.worst(3)._repr_html_()


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_broken_rows_of_files_are_counted_where_the_format_allows(tmp_path, ending):
    """A broken line of JSONL or CSV is one dropped row; the others survive."""
    good = [{"prompt": f"What is number {i}?", "completion": f"It is the number {i}."} for i in range(5)]
    path = tmp_path / f"x.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join([json.dumps(good[0]), '{"prompt": "cut', *map(json.dumps, good[1:])]) + "\n")
    elif ending == "json":
        path.write_text(json.dumps([good[0], "no object", *good[1:]]))
    elif ending == "parquet":
        Dataset.from_list([good[0], {"prompt": None, "completion": "x y"}, *good[1:]]).to_parquet(str(path))
    else:
        mark = "," if ending == "csv" else "\t"
        lines = [mark.join(row.values()) for row in good]
        path.write_text("\n".join([mark.join(good[0]), lines[0], f"a{mark}b{mark}c", *lines[1:]]) + "\n")
    with pytest.raises(DataError, match="1 of 6 rows cannot be used"):
        clean(path, [])
    report = clean(path, [], on_error="drop")
    assert (len(report.kept), [drop.rule for drop in report.dropped]) == (5, ["well-formed"])
    assert report.dropped[0].row == 1
    assert report.dropped[0].place == {"jsonl": "line 2", "json": "row 2", "parquet": "row 2"}.get(ending, "line 3")


def test_a_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion,prompt\na,b,c\n")
    with pytest.raises(DataError, match="more than once"):
        clean(path, [], on_error="drop")


def test_a_megabyte_cell_is_read_and_dropped_for_its_length(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f'prompt,completion\nWhat?,"{"word " * 250_000}"\nWho is it?,It is me again.\n')
    report = clean(path, [length(max_length=1000)])
    assert rows_dropped(report, "length") == [0]


def test_only_broken_rows_leave_nothing_to_clean():
    report = clean([3, None], [exact_duplicates()], on_error="drop")
    assert (report.total, len(report.dropped), len(report.kept)) == (2, 2, 0)


def test_rules_see_what_earlier_rules_left():
    """The near-duplicate of a dropped row stays: nothing better is there."""
    draw = random.Random(1)
    text = random_text(draw, 70)
    rows = [chat(text, "no"), chat(altered(text, draw, 1), "a real answer this time")]
    report = clean(rows, [length(min_answer_words=2), near_duplicates()])
    assert (rows_dropped(report, "length"), rows_dropped(report, "near-duplicates")) == ([0], [])


def test_rules_of_one_row_share_a_pass(monkeypatch):
    """Two such rules in a row read the data once."""
    passes = []
    kept = _Work.pass_over
    monkeypatch.setattr(_Work, "pass_over", lambda self, rules: (passes.append(len(rules)), kept(self, rules))[1])
    clean(chats(4), [exact_duplicates(), quality(), near_duplicates(), cleaning.personal_data()])
    assert passes == [2, 1]


def test_something_that_is_no_rule_is_refused():
    with pytest.raises(ConfigError, match="is no rule"):
        clean(chats(2), [length])


def test_columns_come_along():
    rows = [dict(row, task="a", n=i) for i, row in enumerate(chats(3))]
    assert clean(rows, [exact_duplicates()]).kept["n"][:] == [0, 1, 2]


def test_the_report_prints_saves_and_accounts(tmp_path):
    rows = [*chats(5), chats(5)[2], chat("Why is that so?", "ok")]
    report = clean(rows)
    assert report.ratios == {
        "kept": pytest.approx(5 / 7),
        "exact duplicates": pytest.approx(1 / 7),
        "near-duplicates": 0.0,
        "length": pytest.approx(1 / 7),
        "quality": 0.0,
        "personal data": 0.0,
    }
    saved = json.loads(report.save(tmp_path / "report.json").read_text())
    assert (saved["total"], saved["kept"], len(saved["dropped"])) == (7, 5, 2)
    assert saved["dropped"][0]["twin"] == 2
    assert "kept 5 of 7 rows" in str(report)


def test_worst_shows_the_drops_nearest_to_the_limit_beside_their_twins():
    draw = random.Random(2)
    texts = [random_text(draw, 90) for _ in range(3)]
    rows = [chat(t, "a fine answer") for t in texts] + [
        chat(altered(t, draw, n), "a fine answer") for t, n in zip(texts, (1, 3, 1), strict=True)
    ]
    worst = clean(rows, [near_duplicates(0.7)]).worst(1)
    assert [row[0] for row in worst.rows] == ["row 5", "row 2"]
    assert "‹changed" in str(worst) and "‹changed" in worst._repr_html_()


def test_a_good_row_is_not_dropped_for_a_twin_that_goes_afterwards():
    """The default order drops bad rows first."""
    text = random_text(random.Random(21), 80)
    report = clean([chat(text, "no"), chat(text, "a real answer of some words")])
    assert list(report.kept_rows) == [1]


def test_a_second_change_sees_the_first():
    """A rule of one's own after redaction works on the redacted text."""

    def louder(at, row):
        turns = [m | {"content": m["content"].upper()} for m in row["messages"]]
        return cleaning.Ruling("louder", action="change", messages=turns)

    rule = cleaning.Rule("louder", "capitals", row=lambda: louder)
    rows = [chat("mail me: ana@shop.example", "We will do that soon.")]
    for rules in (
        [cleaning.personal_data("redact"), rule],
        [cleaning.personal_data("redact"), near_duplicates(), rule],
    ):
        assert clean(rows, rules).kept["messages"][0][0]["content"] == "MAIL ME: [EMAIL]"


@pytest.mark.parametrize(
    ("source", "message"), [({"train": [1]}, "Unknown format"), ({"messages": []}, "has no turns")]
)
def test_a_dictionary_without_rows_is_refused(source, message):
    with pytest.raises(DataError, match=message):
        clean(source, [])


def test_a_misspelt_mapping_is_refused_at_once():
    with pytest.raises(DataError, match="mapping wants"):
        clean([{"q": "a", "a": "b"}], [], mapping={"promt": "q", "answer": "a"}, on_error="drop")


def test_own_columns_of_any_kind_come_along():
    rows = [dict(row, big=2**63 + i, mixed=1 if i else 0.5) for i, row in enumerate(chats(2))]
    kept = clean(rows, []).kept
    assert kept["big"][:] == [str(2**63), str(2**63 + 1)] and kept["mixed"][:] == [0.5, 1.0]
    assert len(clean([dict(chats(1)[0], note="\ud83d"), *chats(1)], [], on_error="drop").dropped) == 1
