"""A reader's own file is read as the library reads it, and an empty name leaves it out with a sentence."""

import pytest

from ftkit.errors import DataError
from ftkit.lessons import own_rows

ANSWERED = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("question,reply\nTwo?,2\n")
    return str(path)


def test_no_name_says_so_and_gives_nothing(capsys):
    assert own_rows("") is None
    assert capsys.readouterr().out == "my_file is empty: nothing of your own is used.\n"


def test_columns_are_prompt_and_answer_in_this_order(table):
    assert own_rows(table, "question, reply")[0]["messages"] == ANSWERED


def test_a_file_that_says_what_it_holds_needs_no_columns(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}]}\n')
    assert own_rows(str(path))[0]["messages"] == ANSWERED


@pytest.mark.parametrize("columns", ["question", "question, answer"])
def test_columns_that_do_not_fit_are_refused(table, columns):
    with pytest.raises(DataError):
        own_rows(table, columns)
