"""Turns in the shape that a strict template takes."""

from ftkit import chat
from ftkit.chat import merge_turns

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]


def test_a_system_turn_goes_to_the_head_of_the_first_question():
    assert chat.fold_system(CHAT) == [{"role": "user", "content": "Be brief.\n\nWho?"}, CHAT[2]]


def test_folding_twice_changes_nothing():
    assert chat.fold_system(chat.fold_system(CHAT)) == chat.fold_system(CHAT)


def test_a_system_turn_before_an_answer_becomes_a_question():
    assert chat.fold_system([CHAT[0], CHAT[2]]) == [{"role": "user", "content": "Be brief."}, CHAT[2]]


def test_neighbours_of_one_role_are_joined():
    assert chat.merge_turns([CHAT[1], CHAT[1], CHAT[2]]) == [{"role": "user", "content": "Who?\n\nWho?"}, CHAT[2]]


def test_calls_and_their_results_stay_apart():
    called = {"role": "assistant", "content": "", "tool_calls": "[]"}
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    chat = [CHAT[1], called, *results, CHAT[2]]
    assert merge_turns(chat) == chat


def test_keys_that_arrow_filled_with_none_are_left_out():
    assert chat.merge_turns([{**CHAT[1], "tool_calls": None}, CHAT[2]]) == CHAT[1:]
