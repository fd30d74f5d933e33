"""Turns of every dialect: marks obeyed, reasoning kept, media refused, nothing dropped without its name."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import data
from ftkit.data import from_messages, merge_turns, to_messages
from ftkit.errors import DataError, FtkitWarning

ASK, SAY = {"role": "user", "content": "Which bus?"}, {"role": "assistant", "content": "The nine."}
AGAIN, BETTER = {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Quite."}
CONTEXT = {**SAY, "train": False}


def loaded(*rows, **how):
    return data.load_examples(list(rows), **how)


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"weight": "0"},
        {"train": False},
        {"train": "False"},
        {"trainable": False},
        {"loss": False},
        {"loss_weight": 0},
        {"loss_mask": 0},
        {"masked": True},
        {"train_detail": [{"begin_offset": 0, "end_offset": 8, "train": False}]},
        {"weight": 0, "train": False},
    ],
)
def test_an_answer_marked_as_not_to_be_learned_is_context(mark):
    assert to_messages({"messages": [ASK, {**SAY, **mark}, AGAIN, BETTER]}) == [ASK, CONTEXT, AGAIN, BETTER]
    shared = {
        "conversations": [{"from": "human", "value": "Which bus?"}, {"from": "gpt", "value": "The nine.", **mark}]
    }
    assert to_messages(shared) == [ASK, CONTEXT]


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 1},
        {"train": True},
        {"loss": None},
        {"masked": 0},
        {"training_detail": [{"begin_offset": 0, "end_offset": 8, "train": True}]},
    ],
)
def test_a_mark_to_train_changes_nothing(mark):
    assert to_messages({"messages": [ASK, {**SAY, **mark}]}) == [ASK, SAY]


@pytest.mark.parametrize(
    ("mark", "named"),
    [
        ({"weight": 0.5}, "weight in turn 2: '0.5'"),
        ({"train": "maybe"}, "train in turn 2"),
        ({"loss": [1]}, "loss in turn 2"),
        ({"loss_weight": float("nan")}, "loss_weight in turn 2"),
        ({"train": True, "weight": 0}, "contradict each other in turn 2: train, weight"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": True}]}, "parts of a turn"),
        ({"train_detail": "x"}, "train_detail in turn 2"),
        ({"calculate_loss": False}, "calculate_loss in turn 2, a mark"),
        ({"mask": 1}, "mask in turn 2, a mark"),
    ],
)
def test_a_mark_that_is_not_understood_is_an_error_that_names_it(mark, named):
    with pytest.raises(DataError, match=named):
        to_messages({"messages": [ASK, {**SAY, **mark}]})


@pytest.mark.parametrize(
    "unwanted",
    [
        *({"label": False}, {"label": "false"}, {"kto_tag": False}, {"kto_tag": 0}, {"desirable": False}),
        *({"train": False}, {"weight": 0}, {"loss_weight": "0.0"}, {"loss": "False"}),
    ],
)
@pytest.mark.parametrize(
    "shape", [{"prompt": "Q", "completion": "A"}, {"messages": [ASK, SAY]}, {"instruction": "Q", "output": "A"}]
)
def test_rows_with_a_refused_answer_are_left_out_with_a_warning(shape, unwanted):
    with pytest.warns(FtkitWarning, match=r"1 of 3 rows are left out: their marks .* \(row 2\)"):
        rows = loaded({**shape, "n": 1}, {**shape, **unwanted, "n": 2}, {**shape, "n": 3})
    assert rows["n"][:] == [1, 3]


def test_a_chat_without_an_answer_to_train_is_left_out_too():
    with pytest.warns(FtkitWarning, match="row 1"):
        assert len(loaded({"messages": [ASK, {**SAY, "weight": 0}]}, {"messages": [ASK, SAY]})) == 1


def test_nothing_but_refused_answers_is_an_error():
    with pytest.raises(DataError, match="no rows whose answers are to be learned"):
        loaded({"prompt": "Q", "completion": "A", "label": False})


@pytest.mark.parametrize("verdicts", [(0, 1), (0.0, 1.0), ("bad", "good"), ("rejected", "chosen")])
def test_labels_that_may_be_verdicts_must_say_what_they_are(verdicts):
    rows = [{"prompt": "Q", "completion": "A", "label": verdict} for verdict in verdicts]
    for way in (None, {"prompt": "prompt", "answer": "completion"}):
        with pytest.raises(DataError, match="call it kto_tag"):
            data.load_examples(rows, mapping=way)


def test_labels_of_0_and_1_are_read_under_the_names_that_the_error_advises():
    rows = [{"prompt": "Q", "completion": "A", "label": n} for n in (0, 1)]
    renamed = [{("kto_tag" if k == "label" else k): v for k, v in row.items()} for row in rows]
    with pytest.warns(FtkitWarning, match="1 of 2"):
        assert len(loaded(*renamed)) == 1
    classes = [{("class" if k == "label" else k): v for k, v in row.items()} for row in rows]
    assert loaded(*classes)["class"][:] == [0, 1]


def test_answers_inside_a_prompt_of_turns_are_context():
    row = {"prompt": [ASK, SAY, AGAIN], "completion": [BETTER]}
    assert to_messages(row) == [ASK, CONTEXT, AGAIN, BETTER]


def test_a_mark_lives_through_arrow_saving_and_reading_again(tmp_path):
    """Rows without marks beside it get no mark; the saved file says false, and reading it gives the same turns."""
    from ftkit.runs import Run

    rows = [{"messages": [ASK, {**SAY, "weight": 0}, AGAIN, BETTER]}] + [
        {"messages": [{"role": "user", "content": f"Number {n}?"}, SAY]} for n in range(9)
    ]
    splits = data.split(loaded(*rows), val=0.2, test=0.2, near=None)
    data.save(splits, run := Run.create("marks", tmp_path))
    again = data.load_splits(run)
    chats = [chat for part in (again.train, again.val, again.test) for chat in part["messages"]]
    flags = {turn["content"]: turn.get("train") for chat in chats if len(chat) == 4 for turn in chat}
    assert flags == {"Which bus?": None, "The nine.": False, "Sure?": None, "Quite.": None}
    assert all(turn.get("train") is None for chat in chats if len(chat) == 2 for turn in chat)


@pytest.mark.parametrize("format", ["messages", "sharegpt", "prompt-completion"])
def test_marks_and_reasoning_survive_every_format_that_holds_them(format):
    chat = [ASK, CONTEXT, AGAIN, {**BETTER, "reasoning_content": "I looked it up."}]
    assert to_messages(from_messages(chat, format)) == chat


@pytest.mark.parametrize("format", ["alpaca", "chatml"])
def test_formats_that_cannot_hold_a_mark_or_reasoning_refuse_it(format):
    for more in ({"train": False}, {"reasoning_content": "Hm."}):
        with pytest.raises(DataError, match=f"{next(iter(more))}, which {format} cannot hold$"):
            from_messages([ASK, {**SAY, **more}], format)


def test_prompt_completion_refuses_several_trained_answers():
    with pytest.raises(DataError, match="several answers that are trained"):
        from_messages([ASK, SAY, AGAIN, BETTER], "prompt-completion")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_reasoning_of_a_turn_or_beside_an_answer_is_kept(key):
    wanted = [ASK, {**SAY, "reasoning_content": "It is Monday."}]
    assert to_messages({"messages": [ASK, {**SAY, key: "It is Monday."}]}) == wanted
    assert to_messages({"prompt": "Which bus?", "completion": "The nine.", key: "It is Monday."}) == wanted


def test_reasoning_may_be_a_part_of_the_content():
    parts = [{"type": "thinking", "thinking": "It is Monday."}, {"type": "text", "text": "The nine."}]
    assert to_messages({"messages": [ASK, {"role": "assistant", "content": parts}]})[1] == {
        **SAY,
        "reasoning_content": "It is Monday.",
    }


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
def test_a_system_column_becomes_the_system_turn(column):
    system = {"role": "system", "content": "Be brief."}
    assert to_messages({"messages": [ASK, SAY], column: "Be brief."}) == [system, ASK, SAY]
    assert to_messages({"messages": [system, ASK, SAY], column: "Be brief."}) == [system, ASK, SAY]
    with pytest.raises(DataError, match=f"{column} and a system turn that say different things"):
        to_messages({"messages": [{**system, "content": "Be long."}, ASK, SAY], column: "Be brief."})


@pytest.mark.parametrize("history", [[["Which bus?", "The nine."]], json.dumps([["Which bus?", "The nine."]])])
def test_alpaca_history_comes_before_the_question(history):
    row = {"instruction": "Sure?", "input": "", "output": "Quite.", "history": history}
    assert to_messages(row) == [ASK, SAY, AGAIN, BETTER]


def test_older_functions_are_read_like_tools():
    schema = {"name": "bus", "description": "Line numbers", "parameters": {"type": "object", "properties": {}}}
    rows = [{"messages": [ASK, SAY], "functions": value} for value in ([schema], json.dumps([schema]))]
    assert set(loaded(*rows)["tools"]) == {json.dumps([{"type": "function", "function": schema}])}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, SAY], "images": ["a.jpg"]},
        {"messages": [ASK, SAY], "video": "a.mp4"},
        {"prompt": "Q", "completion": "A", "audio": {"path": "a.wav"}},
        {"messages": [{**ASK, "images": ["a.jpg"]}, SAY]},
        {"messages": [{**ASK, "content": "<image>\nHow many?"}, SAY]},
        {"messages": [{**ASK, "content": "How many?<image>"}, SAY]},
        {"messages": [{**ASK, "content": "<img>a.png</img> How many?"}, SAY]},
        {"messages": [{**ASK, "content": "<|vision_start|><|image_pad|><|vision_end|>How many?"}, SAY]},
        {"conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Rain."}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, SAY]},
        {"instruction": "<audio>", "output": "A"},
        {"instruction": "What is here? [IMG]", "output": "A"},
    ],
)
def test_media_and_their_placeholders_are_refused(row):
    with pytest.raises(DataError, match=r"image|img|IMG|video|audio|vision"):
        to_messages(row)


@pytest.mark.parametrize(
    "page",
    [
        "Explain:\n<video>\n<source src=x>\n</video>",
        "What does the <img> tag do?",
        "Why <image>, and not <img src=x>?",
        "Mend it: [IMG]http://x.example/a.png[/IMG]",
    ],
)
def test_tags_of_pages_and_forums_are_no_placeholders(page):
    assert to_messages({"prompt": page, "completion": "A player; <image> is no tag."})[0]["content"] == page


def test_what_is_not_read_is_named_once_for_the_file():
    rows = [{"messages": [ASK, {**SAY, "mood": "glad", "note": ""}], "context": "Bus 9"} for _ in range(3)]
    with pytest.warns(FtkitWarning, match=r"looks like a part of the chats: context, mood in turns\.") as caught:
        loaded(*rows)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "column", ["Complex_CoT", "systemPrompt", "instructions", "image_path", "available_tools", "rejected_response"]
)
def test_columns_that_sound_like_a_part_of_the_chat_are_named(column):
    with pytest.warns(FtkitWarning, match=rf"looks like a part of the chats: {column}\."):
        loaded({"messages": [ASK, SAY], column: "Bus 9"})


def test_columns_that_repeat_a_turn_that_are_read_or_metadata_are_not_named(recwarn):
    loaded({"prompt": "Which bus?", "messages": [ASK, SAY], "id": 7, "topic": "buses", "conversation_id": "c7"})
    loaded({"prompt": "Which bus?", "completion": "The nine.", "context": "Buses: 9.", "weight": 1})
    assert not recwarn.list


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "User", "content": "Which bus?"}, {"role": "ASSISTANT ", "content": "The nine."}],
        [{"from": "human", "content": "Which bus?"}, {"from": "gpt", "content": "The nine."}],
        [{"role": "prompter", "text": "Which bus?"}, {"role": "model", "value": "The nine."}],
        [{"speaker": "USER", "text": "Which bus?"}, {"speaker": "Bot", "text": "The nine."}],
        [{"role": "user", "content": [{"type": "text", "text": "Which bus?"}]}, {**SAY, "content": ["The nine."]}],
        ["Which bus?", "The nine."],
        [["Which bus?", "The nine."]],
        [{"input": "Which bus?", "output": "The nine."}],
        np.array([ASK, SAY], dtype=object),
        json.dumps([ASK, SAY]),
        str([ASK, SAY]),
    ],
)
@pytest.mark.parametrize("column", ["messages", "conversations", "conversation", "dialogue"])
def test_turns_of_every_shape_are_read_under_every_column(turns, column):
    rows = loaded({column: turns, "topic": "buses"})
    assert [data.plain(turn) for turn in rows[0]["messages"]] == [ASK, SAY]


@pytest.mark.parametrize(
    ("call", "result"), [("tool_call", "tool_response"), ("function_call", "observation"), ("Tool_Call", "ipython")]
)
def test_roles_of_calls_and_results(call, result):
    turns = [
        {"role": "developer", "content": "Be brief."},
        ASK,
        {"role": call, "content": '{"name": "bus", "arguments": {}}'},
        {"role": result, "content": {"line": 9, "ok": True}},
        SAY,
    ]
    messages = to_messages({"messages": turns})
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[3]["content"] == '{"line": 9, "ok": true}'


@pytest.mark.parametrize(
    "cell", ["nan", "None", "N/A", "NA", "#N/A", "<NA>", "\\N", "<noinput>", "null", " ", "", None, float("nan"), pd.NA]
)
def test_an_empty_cell_is_no_input(cell):
    assert to_messages({"instruction": "Which bus?", "input": cell, "output": "The nine."}) == [ASK, SAY]
    assert to_messages({"instruction": "Which bus?", "output": "The nine.", "system": cell, "history": cell}) == [
        ASK,
        SAY,
    ]


def test_blank_parts_leave_no_blank_lines_and_an_answer_none_stays():
    assert to_messages({"instruction": " ", "input": "Which bus?", "output": "None"}) == [
        ASK,
        {"role": "assistant", "content": "None"},
    ]


def test_an_object_as_an_answer_becomes_json_text():
    row = {"prompt": "Q", "completion": {"in_stock": False, "name": "Bus"}}
    assert to_messages(row)[1]["content"] == '{"in_stock": false, "name": "Bus"}'


@pytest.mark.parametrize(
    ("row", "asked", "said"),
    [
        ({"instruction": "High?", "context": "61 m.", "response": "61", "category": "x"}, "High?\n\n61 m.", "61"),
        ({"instruction": "High?", "context": "", "response": "61", "category": "x"}, "High?", "61"),
        (
            {"question": "High?", "context": "61 m.", "answers": {"text": ["61"], "answer_start": [0]}, "id": 1},
            "High?\n\n61 m.",
            "61",
        ),
        (
            {"question": "Rows?", "context": "CREATE TABLE x", "answer": "SELECT 1"},
            "Rows?\n\nCREATE TABLE x",
            "SELECT 1",
        ),
    ],
)
def test_known_datasets_keep_the_context_of_a_question(row, asked, said):
    messages = loaded(row)[0]["messages"]
    assert [m["content"] for m in messages] == [asked, said]


@pytest.mark.parametrize(
    ("row", "asked", "said"),
    [
        ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, "Q", "good"),
        (
            {"prompt": "Which bus?", "rejected": [ASK, {**SAY, "content": "bad"}], "chosen": [ASK, SAY]},
            "Which bus?",
            "The nine.",
        ),
        ({"rejected": [ASK, {**SAY, "content": "bad"}], "chosen": [ASK, SAY], "score": 3}, "Which bus?", "The nine."),
        ({"query": "Q", "original_question": "other", "response": "A", "type": "x"}, "Q", "A"),
        ({"question_id": 4, "Question": "Q", "Answer": "A"}, "Q", "A"),
        ({"prompt_id": "p", "instruction": "Q", "response": "A"}, "Q", "A"),
        ({"query": "Q", "passage": "P", "answer": "A", "answer_id": 3}, "Q\n\nP", "A"),
        ({"text": "Q", "summary": "A", "text_id": 2}, "Q", "A"),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"}, "Q", "A"),
    ],
)
def test_a_mapping_that_is_advised_reads_the_row_rightly(row, asked, said):
    """The advice is followed as it stands in the message; ids, metadata and refused answers are in no mapping."""
    with pytest.raises(DataError) as caught:
        loaded(row)
    mapping = eval(str(caught.value).split("mapping=")[1].split("}")[0] + "}")
    assert [m["content"] for m in loaded(row, mapping=mapping)[0]["messages"]] == [asked, said]
    left = set(row) - set(mapping.values())
    assert all(name in str(caught.value).split("That leaves out:")[1] for name in left)


@pytest.mark.parametrize("column", ["reasoning", "thought", "Complex_CoT", "rationale"])
def test_an_advised_mapping_takes_reasoning_along(column):
    with pytest.raises(DataError, match=rf"'reasoning': '{column}'\}}\.$"):
        loaded({"problem": "Q", column: "since", "answer": "A"})


def test_preference_data_and_trees_are_called_by_their_name():
    with pytest.raises(DataError, match="preference data"):
        loaded({"prompt": "Q", "chosen": "good", "rejected": "bad"})
    with pytest.raises(DataError, match="OASST"):
        loaded({"message_id": 1, "parent_id": None, "text": "Q", "role": "prompter"})


def test_columns_without_a_likely_answer_get_no_guess():
    with pytest.raises(DataError, match=r"mapping=\{'prompt': column, 'answer': column\}"):
        loaded({"id": 1, "conversation_id": 2, "rejected": "x"})


def test_neighbours_of_one_role_are_joined_on_request():
    row = {"messages": [ASK, AGAIN, SAY]}
    with pytest.raises(DataError, match="merge_turns=True"):
        loaded(row)
    assert loaded(row, merge_turns=True)[0]["messages"][0]["content"] == "Which bus?\n\nSure?"


def test_only_plain_neighbours_that_are_trained_alike_are_joined():
    assert merge_turns([ASK, {**AGAIN, "tool_calls": None}, SAY])[0]["content"] == "Which bus?\n\nSure?"
    assert merge_turns([ASK, CONTEXT, SAY]) == [ASK, CONTEXT, SAY], "a trained answer is not joined to context"
    called = {"role": "assistant", "content": "", "tool_calls": "[]"}
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    assert merge_turns([ASK, called, *results, SAY]) == [ASK, called, *results, SAY]


def test_text_alone_is_raw_text_and_other_columns_want_a_mapping(recwarn):
    rows = loaded({"text": "A long story.", "url": "x"}, {"text": "Another.", "url": "y"})
    assert (rows["text"][:], rows["messages"][:]) == (["A long story.", "Another."], [[], []])
    assert not recwarn.list
    with pytest.raises(DataError, match="Unknown format"):
        loaded({"text": "A long story.", "mood": "sad"})
    assert loaded({"story": "Long.", "mood": "sad"}, mapping={"text": "story"})["text"][:] == ["Long."]


@pytest.mark.parametrize("text", ["[INST] Q [/INST] A", "### Human: Q\n### Assistant: A", "<|user|>\nQ<|end|>"])
def test_rendered_chats_in_raw_text_are_named(text):
    with pytest.warns(FtkitWarning, match="rendered already"):
        loaded({"text": text})


keys = "role from content value type text train weight train_detail thinking input output tool_calls name arguments"
keys = st.sampled_from(f"{keys} function images begin_offset".split())
columns = "messages conversations prompt completion instruction input output history system text tools functions label"
columns = st.sampled_from(f"{columns} kto_tag data question context answers thinking".split())
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=4) | st.just("assistant"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(columns, anything, max_size=4))
def test_any_row_is_read_or_refused_and_what_is_read_is_read_again(row):
    try:
        messages = to_messages(row)
        if not messages or all(m.get("train") is False for m in messages if m["role"] == "assistant"):
            return
        again = to_messages(from_messages(messages, "messages"))
    except DataError:
        return
    assert again == messages
