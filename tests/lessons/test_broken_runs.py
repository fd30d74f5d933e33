"""What spoils a run on purpose: rows with others' answers, eight rows, the shortest rows; and weights compared."""

import pytest

from ftkit import Run, data
from ftkit.data import Splits
from ftkit.lessons import adapter_difference
from ftkit.lessons.broken_runs import eight_rows, shortest, swapped


@pytest.fixture(scope="module")
def splits():
    return data.split(data.load_examples("invoices"))


def answers(rows):
    return [row["messages"][-1]["content"] for row in rows]


def test_answers_are_swapped_and_none_is_lost(splits):
    mixed = swapped(splits, seed=1)
    assert sorted(answers(mixed.train)) == sorted(answers(splits.train))
    pairs = zip(answers(mixed.train), answers(splits.train), strict=True)
    assert sum(new == old for new, old in pairs) < 0.1 * len(splits.train)
    assert mixed.val is splits.val


def test_the_shortest_quarter_is_kept(splits):
    kept = shortest(splits)
    sizes = [sum(len(turn["content"]) for turn in row["messages"]) for row in kept.train]
    assert len(splits.train) / 5 < len(sizes) < len(splits.train) / 3
    assert max(sizes) < 250
    assert kept.val


def test_of_few_rows_all_are_kept():
    rows = data.load_examples([{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(30)])
    parts = data.split(rows, near=None)
    kept = shortest(parts)
    assert len(kept.train) == len(parts.train)
    assert len(kept.val) == len(parts.val)


def test_eight_rows_are_the_bundled_ones_or_ones_own(splits):
    assert len(eight_rows(None, 1).train) == len(eight_rows(splits, 1).train) == 8
    assert set(answers(eight_rows(splits, 1).train)) <= set(answers(splits.train))


def test_an_adapter_equals_itself():
    assert adapter_difference(Run.sample(), Run.sample()) == 0


def test_splits_without_short_val_rows_keep_those_that_there_are():
    short = [{"prompt": f"a {i}", "completion": "b"} for i in range(60)]
    long = data.load_examples([{"prompt": "c " * 50, "completion": "d"}])
    kept = shortest(Splits(data.load_examples(short), long, long))
    assert len(kept.val) == 1
