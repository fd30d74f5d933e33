"""Labels are capped, what adds nothing new goes, and general rows are mixed in."""

import json
import random

import pytest
from datasets import Dataset
from toys import chat, random_text, rows_dropped

from ftkit import cleaning, data
from ftkit.cleaning import clean
from ftkit.errors import DataError, FtkitWarning


def test_diversity_drops_what_adds_nothing_new():
    draw = random.Random(7)
    parts = [random_text(draw, 30) for _ in range(3)]
    rows = [
        chat(parts[0], parts[1]),
        chat(parts[2], "an answer of its own"),
        chat(parts[2], parts[0]),
        chat(random_text(draw, 40), "new"),
    ]
    assert rows_dropped(clean(rows, [cleaning.diversity()]), "diversity") == [2]


def labelled(sizes: dict[str, int]) -> Dataset:
    return data.load_examples(
        [dict(chat(f"{task} {i}", "fine then"), task=task) for task, n in sizes.items() for i in range(n)]
    )


def test_balance_caps_the_large_label_at_random_and_keeps_the_order():
    report = clean(labelled({"a": 30, "b": 10, "c": 10}), [cleaning.balance("task", at_most=12)])
    assert {t: report.kept["task"][:].count(t) for t in "abc"} == {"a": 12, "b": 10, "c": 10}
    assert list(report.kept_rows) == sorted(report.kept_rows) and list(report.kept_rows)[:12] != list(range(12))
    again = clean(labelled({"a": 30, "b": 10, "c": 10}), [cleaning.balance("task", at_most=12)])
    assert list(again.kept_rows) == list(report.kept_rows)


def test_balance_names_the_columns_that_are_there():
    with pytest.raises(DataError, match=r"no column 'topic'.*task"):
        clean(labelled({"a": 3}), [cleaning.balance("topic")])


def test_two_labels_are_balanced_and_rows_without_one_stay():
    rows = labelled({"a": 10, "b": 100}).to_list() + [
        dict(chat(f"none {i}", "fine then"), task=None) for i in range(30)
    ]
    kept = clean(rows, [cleaning.balance("task")]).kept["task"][:]
    assert [kept.count(label) for label in ("a", "b", None)] == [10, 15, 30]


def test_mix_reaches_the_share_and_says_so():
    mixed = cleaning.mix(labelled({"a": 92}), data.load_examples("general"), share=0.08)
    assert (mixed.counts, len(mixed.examples)) == ({"task": 92, "general": 8}, 100)
    assert mixed.share == pytest.approx(0.08)
    assert mixed.examples["source"][:].count("general") == 8 and mixed.examples["source"][:10] != ["task"] * 10


def test_mix_of_chosen_rows_draws_no_bar(capsys):
    """Datasets copies chosen rows before it adds a column, under a bar that nobody asked for."""
    cleaning.mix(labelled({"a": 20}).select([3, 1]), data.load_examples("general").select([7, 2]), share=0.5)
    assert capsys.readouterr().err == ""


def test_mix_with_too_few_general_rows_warns_and_takes_all():
    with pytest.warns(FtkitWarning, match="there are 1, all are taken"):
        mixed = cleaning.mix(labelled({"a": 90}), labelled({"g": 1}), share=0.1)
    assert mixed.counts["general"] == 1


def test_parts_with_and_without_calls_can_be_mixed():
    call = json.dumps([{"type": "function", "function": {"name": "look", "arguments": {}}}])
    with_calls = data.load_examples(
        [
            {
                "messages": [
                    {"role": "user", "content": f"look {i}"},
                    {"role": "assistant", "content": "", "tool_calls": call},
                ]
            }
            for i in range(20)
        ]
    )
    assert len(cleaning.mix(with_calls, data.load_examples("general"), share=0.2).examples) == 25
