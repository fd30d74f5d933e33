"""Test rows that training has seen, exactly or nearly."""

import json
import random

import pytest
from toys import altered, chat, chats, random_text

from ftkit import data
from ftkit.data import leakage
from ftkit.errors import DataError


def test_leakage_finds_copies_and_near_copies_on_prompt_and_on_both():
    draw = random.Random(8)
    train = data.load_examples(chats(40, seed=8))
    source = train["messages"][:]
    near = altered(source[3][0]["content"], draw, 1)
    test = data.load_examples(
        [
            {"messages": source[0]},
            chat(source[1][0]["content"].upper(), random_text(draw, 30)),
            chat(near, source[3][1]["content"]),
            *chats(5, seed=9),
        ]
    )
    report = leakage(train, test)
    assert [(o.test, o.train, o.on) for o in report.exact] == [(1, 1, "all"), (2, 2, "prompt")]
    assert [(o.test, o.train) for o in report.near] == [(3, 4)]
    assert report.leaked_rows == (1, 2, 3)
    with pytest.raises(DataError, match=r"2 of 8 test rows are training rows too(.|\n)*test row 1 = train row 1"):
        report.refuse_exact()
    assert "3" in report._repr_html_()


def test_parts_with_and_without_calls_can_be_compared():
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
    assert leakage(with_calls, data.load_examples(chats(3))).exact == ()


def test_test_rows_without_leaks_are_picked_out():
    train = data.load_examples(chats(10, seed=1))
    test = data.load_examples([{"messages": train["messages"][0]}, *chats(2, seed=5)])
    rest = leakage(train, test).without_leaks(test)
    assert len(rest) == 2 and leakage(train, rest).leaked_rows == ()


def test_clean_parts_pass():
    report = leakage(data.load_examples(chats(20, seed=1)), data.load_examples(chats(9, seed=2)))
    report.refuse_exact()
    assert (report.exact, report.near) == ((), ())
