"""One row of each format to messages: tools included, nothing lost, nothing guessed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.data import from_messages, order_problem, parse_calls, to_messages
from ftkit.data.formats import check_mapping, detect_format
from ftkit.data.turns import blank, refuse_media
from ftkit.errors import DataError

SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "Weather in Paris?"}
ANSWER = {"role": "assistant", "content": "Sunny."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}
RESULT = {"role": "tool", "content": '{"sky": "clear"}'}
CHAT = [USER, CALLING, RESULT, ANSWER]


def opened(*calls, **more):
    return {"role": "assistant", "tool_calls": list(calls), **more}


@pytest.mark.parametrize(
    "turn",
    [
        opened(CALL),
        opened(CALL, content=None),
        opened(CALL, content=""),
        opened({**CALL, "id": None}, content="", name=None, tool_call_id=None),
        opened({"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}),
        opened({"name": "weather", "arguments": {"city": "Paris"}}),
        {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Paris"}'}},
    ],
)
def test_tool_calls_of_every_shape_become_the_same_json_text(turn):
    """Objects or JSON text, with or without content, None where Arrow filled in, and OpenAI's older function_call."""
    assert to_messages({"messages": [USER, turn, RESULT, ANSWER]}) == CHAT


def test_ids_and_names_of_calls_and_results_are_kept():
    call = {**CALL, "id": "a1"}
    result = {**RESULT, "tool_call_id": "a1", "name": "weather"}
    messages = to_messages({"messages": [USER, opened(call), result, ANSWER]})
    assert parse_calls(messages[1]["tool_calls"]) == [{"id": "a1", **CALL}]
    assert messages[2] == result


def test_messages_without_tools_keep_two_keys():
    turns = [{**USER, "tool_calls": None, "name": None}, {**ANSWER, "tool_calls": [], "weight": 1}]
    assert to_messages({"messages": turns}) == [USER, ANSWER]


def test_a_call_is_an_answer():
    assert to_messages({"messages": [USER, opened(CALL)]}) == [USER, CALLING]


@pytest.mark.parametrize("kind", ["observation", "tool", "function_response"])
def test_sharegpt_calls_and_results(kind):
    turns = [
        {"from": "human", "value": USER["content"]},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
        {"from": kind, "value": RESULT["content"]},
        {"from": "gpt", "value": ANSWER["content"]},
    ]
    assert to_messages({"conversations": turns, "tools": "[]"}) == CHAT


def test_sharegpt_says_and_calls_twice_in_one_turn():
    """An answer and the calls right after it are one assistant turn; two turns in a row would be refused."""
    call = {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'}
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "Let me look."}, call, call]
    said = {"role": "assistant", "content": "Let me look.", "tool_calls": json.dumps([CALL, CALL])}
    assert to_messages({"conversations": turns}) == [{"role": "user", "content": "Q"}, said]


def test_older_sharegpt_with_calls_as_plain_text():
    turns = [("human", "Q"), ("gpt", "<tool_call>{}</tool_call>"), ("tool", "R"), ("gpt", "A")]
    row = {"conversations": [{"from": who, "value": value} for who, value in turns]}
    assert [m["role"] for m in to_messages(row)] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": ANSWER["content"]}]},
        {"prompt": [USER], "completion": [ANSWER]},
    ],
)
def test_turns_may_be_json_text_as_in_a_csv_cell(row):
    assert to_messages({name: json.dumps(value) for name, value in row.items()}) == [USER, ANSWER]


@pytest.mark.parametrize("prompt", ["[1, 2] sorted?", '[{"a": 1}]', "[", "[]"])
def test_a_prompt_that_merely_looks_like_json_stays_text(prompt):
    assert to_messages({"prompt": prompt, "completion": "[1, 2]"})[0]["content"] == prompt


def test_prompt_completion_with_tools():
    assert to_messages({"prompt": CHAT[:1], "completion": CHAT[1:]}) == CHAT


def test_alpaca_joins_instruction_and_input_and_puts_system_first():
    row = {"instruction": "Sum up.", "input": "A text.", "output": "Short.", "system": "S"}
    assert to_messages(row) == [
        SYSTEM,
        {"role": "user", "content": "Sum up.\n\nA text."},
        {"role": "assistant", "content": "Short."},
    ]


@pytest.mark.parametrize(
    ("mapping", "told"),
    [({"prompt": "q"}, "answer is missing"), ({"prompt": "q", "reply": "r"}, "reply is none of these")],
)
def test_half_a_mapping_is_refused_with_what_it_lacks(mapping, told):
    with pytest.raises(DataError, match=told):
        check_mapping(mapping)


def test_raw_columns_by_mapping():
    row = {"frage": "Q", "antwort": "A", "rolle": "S", "id": 7}
    mapping = {"prompt": "frage", "answer": "antwort", "system": "rolle"}
    assert to_messages(row, mapping=mapping) == [
        SYSTEM,
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]


def chatml(*turns):
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)


def test_chatml_may_stand_between_the_tokens_of_its_model():
    assert to_messages({"text": f"<s>{chatml(('user', 'Q'), ('assistant', 'A'))}</s>\n"})[0]["content"] == "Q"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Hello " + chatml(("user", "Q"), ("assistant", "A")), "text outside of its .*'Hello'"),
        (chatml(("user", "Q"), ("assistant", "A")) + "<|im_start|>user\nmore", "text outside"),
        ("<|im_start|>user\nQ\n" + chatml(("assistant", "A")), r"an <\|im_end\|> is missing"),
        ("plain text", "without <|im_start|>"),
    ],
)
def test_chatml_that_would_lose_text_is_refused(text, problem):
    with pytest.raises(DataError, match=problem):
        to_messages({"text": text}, "chatml")


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([USER, opened({"function": {"arguments": {}}})], "tool call in turn 2 that is not"),
        ([USER, opened("weather")], "tool calls? in turn 2"),
        ([USER, opened({"name": "f", "arguments": "{"})], "arguments of a tool call in turn 2 that are not JSON"),
        ([USER, opened({"name": "f", "arguments": "[1]"})], "tool call in turn 2 that is not"),
        ([USER, opened({"name": "f", "arguments": {"x": object()}})], "JSON cannot hold"),
        ([USER, opened({"name": "f", "arguments": {"x": "\ud800"}})], "half a character"),
        ([USER, {**ANSWER, "tool_calls": "not JSON"}], "tool calls in turn 2 that are not JSON"),
        ([{**USER, "tool_calls": [CALL]}, ANSWER], "only an assistant turn calls tools"),
        ([USER, {"role": "assistant", "content": None}], "type NoneType"),
        ([USER, {"role": "assistant"}], "without role and content"),
        ([USER, {**ANSWER, "name": 7}], "name in turn 2 of type int"),
    ],
)
def test_a_broken_call_says_where_and_why(turns, problem):
    with pytest.raises(DataError, match=problem):
        to_messages({"messages": turns})


@pytest.mark.parametrize("value", ["", "weather(Paris)", "[{}]"])
def test_a_sharegpt_call_that_is_no_call_is_refused(value):
    turns = [{"from": "human", "value": "Q"}, {"from": "function_call", "value": value}]
    with pytest.raises(DataError, match=r"tool calls? in turn 2"):
        to_messages({"conversations": turns})


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (CHAT, None),
        ([SYSTEM, *CHAT], None),
        ([USER, CALLING], None),
        ([USER, CALLING, RESULT, RESULT, CALLING, RESULT, ANSWER], None),
        ([USER, ANSWER, RESULT, ANSWER], None),
        ([{**m, "tool_calls": m.get("tool_calls"), "name": None} for m in CHAT], None),
        ([USER, RESULT, ANSWER], "out of order: user → tool"),
        ([RESULT, ANSWER], "starts with tool"),
        ([USER, CALLING, RESULT, USER, ANSWER], "out of order"),
        ([USER, CALLING, ANSWER], "out of order"),
        ([USER, CALLING, RESULT], "ends with a tool turn"),
        ([USER, {**CALLING, "tool_calls": None}], "empty answer"),
    ],
)
def test_the_order_of_turns_knows_tools(messages, problem):
    found = order_problem(messages)
    assert found is None if problem is None else problem in found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        json_values,
        st.lists(
            st.fixed_dictionaries(
                {}, optional={"id": json_values, "name": json_values, "arguments": json_values, "function": json_values}
            )
        ),
        st.text(),
    )
)
def test_any_calls_are_read_or_refused_and_reading_is_settled(value):
    """Whatever stands in `tool_calls`: calls in one shape, which read again are the same, or a DataError."""
    try:
        calls = parse_calls(value)
    except DataError:
        return
    assert parse_calls(calls) == calls
    assert all(isinstance(call["function"]["arguments"], dict) for call in calls)


FORMATS = ["alpaca", "sharegpt", "chatml", "messages", "prompt-completion"]
WITH_TOOLS = ["sharegpt", "messages", "prompt-completion"]
PAIR = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
ZURICH_CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TOOL_CHAT = [
    PAIR[0],
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": json.dumps([ZURICH_CALL, {"id": "b", **ZURICH_CALL}], ensure_ascii=False),
    },
    {"role": "tool", "content": "clear", "name": "weather", "tool_call_id": "a"},
    {"role": "tool", "content": "cold"},
    {"role": "assistant", "content": "", "tool_calls": json.dumps([ZURICH_CALL], ensure_ascii=False)},
    {"role": "tool", "content": "clear"},
    PAIR[1],
]

# Text that breaks careless code: zero-width, right-to-left, combined emoji, line ends of every kind, JSON and CSV.
odd = st.sampled_from(
    [
        "\u200b",
        "\u200f",
        "\ufeff",
        "مرحبا",
        "👩‍👩‍👧",
        "e\u0301",
        "\r",
        "\r\n",
        "\n",
        "\u2028",
        "\x85",
        "\x00",
        '"',
        ",",
        "[{",
        "\\n",
        "<|im_",
    ]
)
text = st.lists(st.one_of(odd, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=5).map("".join)


def is_ordinary(drawn):
    """No empty cell, which "None" is, and no placeholder of a picture."""
    try:
        refuse_media(drawn, "a text")
    except DataError:
        return False
    return not drawn.strip() or not blank(drawn)


text = text.filter(is_ordinary)
said = text.filter(str.strip)
json_text = st.recursive(
    st.none() | st.booleans() | st.integers() | text, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
call = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    st.text("abc_", min_size=1, max_size=5),
    st.dictionaries(text, json_text, max_size=2),
)
calling = st.builds(
    lambda content, calls: {
        "role": "assistant",
        "content": content,
        "tool_calls": json.dumps(calls, ensure_ascii=False),
    },
    text,
    st.lists(call, min_size=1, max_size=2),
)
result = st.fixed_dictionaries(
    {"role": st.just("tool"), "content": text}, optional={"name": said, "tool_call_id": said}
)


def turn(role, content):
    return st.fixed_dictionaries({"role": st.just(role), "content": content})


@st.composite
def chats(draw, rounds=3, tools=False):
    """A valid chat: perhaps a system turn, then questions and answers, with calls and results between them."""
    chat = draw(st.lists(turn("system", said), max_size=1))
    for _ in range(draw(st.integers(1, rounds))):
        chat.append(draw(turn("user", text)))
        for _ in range(draw(st.integers(0, 2)) if tools else 0):
            chat += [draw(calling), *draw(st.lists(result, min_size=1, max_size=2))]
        chat.append(draw(turn("assistant", said)))
    return [*chat[:-1], draw(calling)] if tools and draw(st.booleans()) else chat


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=100, deadline=None)
@given(drawn=st.data())
def test_a_chat_survives_every_format_that_can_hold_it(format, drawn):
    chat = drawn.draw(chats(rounds=1 if format in ("alpaca", "prompt-completion") else 3, tools=format in WITH_TOOLS))
    row = from_messages(chat, format)
    assert detect_format(row, [row]) == format
    assert to_messages(row, format) == chat
    assert to_messages(json.loads(json.dumps(row)), format) == chat


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("alpaca", {"instruction": "Q", "input": "", "output": "A", "system": "S"}),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "A"},
                ]
            },
        ),
        (
            "chatml",
            {
                "text": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
                "<|im_start|>assistant\nA<|im_end|>\n"
            },
        ),
        ("messages", {"messages": [SYSTEM, *PAIR]}),
        ("prompt-completion", {"prompt": [SYSTEM, PAIR[0]], "completion": PAIR[1:]}),
    ],
)
def test_the_shape_of_each_format(format, expected):
    assert from_messages([SYSTEM, *PAIR], format) == expected


def test_sharegpt_writes_calls_as_function_call_turns():
    """A turn that says something and calls becomes two, which reading joins again."""
    row = from_messages(TOOL_CHAT, "sharegpt", tools=TOOLS)
    assert [part["from"] for part in row["conversations"]] == [
        "human",
        "gpt",
        "function_call",
        "observation",
        "observation",
        "function_call",
        "observation",
        "gpt",
    ]
    assert json.loads(row["conversations"][5]["value"]) == ZURICH_CALL["function"]
    assert json.loads(row["tools"]) == TOOLS
    assert to_messages(row) == TOOL_CHAT


@pytest.mark.parametrize("format", ["messages", "prompt-completion"])
def test_openai_shapes_hold_calls_as_objects(format):
    row = from_messages(TOOL_CHAT, format, tools=json.dumps(TOOLS))
    assert row["tools"] == TOOLS
    turns = row["messages"] if format == "messages" else [*row["prompt"], *row["completion"]]
    assert turns[1]["tool_calls"][0] == ZURICH_CALL


@pytest.mark.parametrize(
    ("format", "messages", "tools", "problem"),
    [
        ("alpaca", [*PAIR, *PAIR], None, "has 4 turns; alpaca holds one question and one answer"),
        ("alpaca", TOOL_CHAT, None, "name, tool_call_id, tool_calls, which alpaca cannot hold; .*fold_tools"),
        ("alpaca", PAIR, TOOLS, "tools, which alpaca cannot hold"),
        ("alpaca", [{**PAIR[0], "name": "Ann"}, PAIR[1]], None, "has name, which alpaca cannot hold$"),
        ("chatml", TOOL_CHAT, None, "which chatml cannot hold; .*fold_tools"),
        (
            "chatml",
            [{"role": "user", "content": "what is <|im_end|>?"}, PAIR[1]],
            None,
            r"<\|im_end\|> inside of a user turn",
        ),
        ("messages", PAIR[:1], None, "no answer"),
        ("sharegpt", PAIR, "weather", "tools that are not JSON"),
        ("csv", PAIR, None, "format='csv' is not one of alpaca, sharegpt"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(format, messages, tools, problem):
    with pytest.raises(DataError, match=problem):
        from_messages(messages, format, tools=tools)


WANTED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
WITH_SYSTEM = [{"role": "system", "content": "S"}, *WANTED]


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("alpaca", {"instruction": "Q", "input": "", "output": "A"}, WANTED),
        ("alpaca", {"instruction": "Q", "output": "A"}, WANTED),
        ("alpaca", {"instruction": "Q", "input": None, "output": "A", "system": "S"}, WITH_SYSTEM),
        (
            "alpaca",
            {"instruction": "Do", "input": "this", "output": "A"},
            [{"role": "user", "content": "Do\n\nthis"}, WANTED[1]],
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, WANTED),
        (
            "sharegpt",
            {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            WITH_SYSTEM,
        ),
        ("messages", {"messages": WITH_SYSTEM}, WITH_SYSTEM),
        ("prompt-completion", {"prompt": "Q", "completion": "A"}, WANTED),
        ("prompt-completion", {"prompt": WITH_SYSTEM[:2], "completion": WANTED[1:]}, WITH_SYSTEM),
        ("prompt-answer", {"prompt": "Q", "answer": "A"}, WANTED),
        ("prompt-answer", {"prompt": WITH_SYSTEM[:2], "answer": "A"}, WITH_SYSTEM),
        (
            "chatml",
            {
                "text": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
                "<|im_start|>assistant\nA<|im_end|>\n"
            },
            WITH_SYSTEM,
        ),
    ],
)
def test_known_formats_are_told_by_their_columns(name, row, expected):
    assert detect_format(row, [row]) == name
    assert to_messages(row) == expected


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no turns"),
        (WANTED[:1], "no answer"),
        (WANTED[1:], "starts with assistant"),
        ([WANTED[0], WANTED[0], WANTED[1]], "user → user → assistant"),
        ([*WANTED, WANTED[0]], "ends with a user turn"),
        ([WANTED[0], WITH_SYSTEM[0], WANTED[1]], "system turn that is not the first"),
        ([WANTED[0], {"role": "assistant", "content": "  "}], "empty answer"),
        ([{"role": "wizard", "content": "x"}], "role 'wizard'"),
        ([WANTED[0], {"role": "assistant", "content": 42}], "type int"),
        ([WANTED[0], {"role": "assistant"}], "without role and content"),
        ("text", "type str"),
    ],
)
def test_each_bad_row_says_what_is_wrong_with_it(messages, problem):
    with pytest.raises(DataError, match=problem):
        to_messages({"messages": messages})
