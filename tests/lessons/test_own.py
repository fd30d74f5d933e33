"""A reader's own file is read with the columns that were typed, or left out with a sentence."""

import pytest

from ftkit import lessons
from ftkit.errors import DataError


def test_nothing_is_read_where_nothing_was_named(capsys):
    assert lessons.own_rows("") is None
    assert capsys.readouterr().out.startswith("my_file is empty")


@pytest.mark.parametrize(("head", "columns"), [("prompt,answer", ""), ("question,reply", "question, reply")])
def test_two_columns_become_a_chat(tmp_path, head, columns):
    (tmp_path / "own.csv").write_text(f"{head}\nWhat is 1 plus 1?,2\n")
    (row,) = lessons.own_rows(str(tmp_path / "own.csv"), columns)
    assert [turn["content"] for turn in row["messages"]] == ["What is 1 plus 1?", "2"]


def test_one_column_alone_is_refused_with_what_is_missing(tmp_path):
    (tmp_path / "own.csv").write_text("question,reply\nWhat is 1 plus 1?,2\n")
    with pytest.raises(DataError, match="answer is missing"):
        lessons.own_rows(str(tmp_path / "own.csv"), "question")


def test_a_third_column_is_not_dropped_silently(tmp_path):
    (tmp_path / "own.csv").write_text("question,reply,source\nWhat is 1 plus 1?,2,me\n")
    with pytest.raises(DataError, match='names 3 columns; two are wanted: "prompt, answer"'):
        lessons.own_rows(str(tmp_path / "own.csv"), "question, reply, source")
