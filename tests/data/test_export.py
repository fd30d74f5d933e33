"""Out of messages and back: every format that can hold a chat gives the same chat again, row by row and through files."""

import csv
import datetime
import json
import tracemalloc

import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import data
from ftkit.data import detect_format, from_messages, plain, to_messages
from ftkit.data.export import export
from ftkit.errors import DataError, StorageError

FORMATS = ["alpaca", "sharegpt", "chatml", "messages", "prompt-completion"]
WITH_TOOLS = ["sharegpt", "messages", "prompt-completion"]
ENDINGS = [".jsonl", ".parquet", ".csv"]
PAIR = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SYSTEM = {"role": "system", "content": "S"}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TOOL_CHAT = [
    PAIR[0],
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": json.dumps([CALL, {"id": "b", **CALL}], ensure_ascii=False),
    },
    {"role": "tool", "content": "clear", "name": "weather", "tool_call_id": "a"},
    {"role": "tool", "content": "cold"},
    {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL], ensure_ascii=False)},
    {"role": "tool", "content": "clear"},
    PAIR[1],
]

# Text that breaks careless code: zero-width, right-to-left, combined emoji, every kind of line end, JSON and CSV syntax.
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
    """A valid chat: perhaps a system turn, then questions and answers, with calls and results in between where asked."""
    chat = draw(st.lists(turn("system", said), max_size=1))
    for _ in range(draw(st.integers(1, rounds))):
        chat.append(draw(turn("user", text)))
        for _ in range(draw(st.integers(0, 2)) if tools else 0):
            chat += [draw(calling), *draw(st.lists(result, min_size=1, max_size=2))]
        chat.append(draw(turn("assistant", said)))
    return [*chat[:-1], draw(calling)] if tools and draw(st.booleans()) else chat


def holds_markers(chat):
    return any(mark in m["content"] for m in chat for mark in ("<|im_start|>", "<|im_end|>"))


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_chat_survives_every_format_that_can_hold_it(format, data):
    chat = data.draw(chats(rounds=1 if format == "alpaca" else 3, tools=format in WITH_TOOLS))
    row = from_messages(chat, format)
    assert detect_format(row) == format
    assert to_messages(row, format) == chat
    assert to_messages(json.loads(json.dumps(row)), format) == chat


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_file_gives_the_same_chats_again(tmp_path_factory, ending, format, data):
    many = st.lists(chats(rounds=1 if format == "alpaca" else 3, tools=format in WITH_TOOLS), min_size=1, max_size=4)
    written = data.draw(many)
    path = tmp_path_factory.mktemp("export") / f"x{ending}"
    assert export([{"messages": chat} for chat in written], path, format) == path
    assert read(path) == written


def read(path):
    return [[plain(m) for m in messages] for messages in data.load_examples(path)["messages"]]


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
                "text": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
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
    assert json.loads(row["conversations"][5]["value"]) == CALL["function"]
    assert json.loads(row["tools"]) == TOOLS
    assert to_messages(row) == TOOL_CHAT


@pytest.mark.parametrize("format", ["messages", "prompt-completion"])
def test_openai_shapes_hold_calls_as_objects(format):
    row = from_messages(TOOL_CHAT, format, tools=json.dumps(TOOLS))
    assert row["tools"] == TOOLS
    assert [*row.get("messages", row.get("prompt", []))][1]["tool_calls"][0] == CALL


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


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("format", WITH_TOOLS)
@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_tools_and_own_columns_come_along(tmp_path, ending, format, kind):
    """Also out of a Dataset, where turns without calls hold None in their place."""
    rows = [
        {"messages": TOOL_CHAT, "tools": json.dumps(TOOLS), "id": 1, "tags": ["a", "b"], "note": None},
        {"messages": PAIR, "tools": None, "id": 2, "tags": [], "note": 'x "y"'},
    ]
    path = export(kind(rows), tmp_path / f"x{ending}", format)
    examples = data.load_examples(path)
    assert read(path) == [TOOL_CHAT, PAIR]
    assert json.loads(examples[0]["tools"]) == TOOLS
    if ending != ".csv":  # a CSV file knows only text
        assert [examples["id"][:], examples["tags"][:], examples["note"][:]] == [
            [1, 2],
            [["a", "b"], []],
            [None, 'x "y"'],
        ]


def test_parquet_keeps_types_and_writes_the_rest_as_json_text(tmp_path):
    rows = [
        {"messages": PAIR, "number": 1, "share": 0.5, "flag": True, "mixed": 1, "nested": {"a": None}, "big": 2**70},
        {
            "messages": PAIR,
            "number": 2,
            "share": 1.5,
            "flag": None,
            "mixed": "x",
            "nested": None,
            "day": datetime.date(2024, 2, 29),
        },
    ]
    table = pyarrow.parquet.read_table(export(rows, tmp_path / "x.parquet", "alpaca")).to_pydict()
    assert {name: table[name] for name in rows[0] if name != "messages"} == {
        "number": [1, 2],
        "share": [0.5, 1.5],
        "flag": [True, None],
        "mixed": ["1", '"x"'],
        "nested": ['{"a": null}', None],
        "big": [str(2**70), None],
    }
    assert table["day"] == [None, "2024-02-29"]


def test_all_rows_that_do_not_fit_are_numbered_before_any_file_appears(tmp_path):
    rows = [{"messages": [*PAIR, *PAIR] if i % 2 else PAIR} for i in range(30)] + [{"text": "x"}, 7]
    with pytest.raises(
        DataError, match=r"17 of 32 rows do not fit alpaca(.|\n)*row 2 has 4 turns(.|\n)*row 20 (.|\n)*and 7 more"
    ):
        export(rows, tmp_path / "new" / "x.jsonl", "alpaca")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("own", "format", "problem"),
    [
        ({"system": "S"}, "sharegpt", "reads as part of the chat: system"),
        ({"text": "x"}, "chatml", "reads as part of the chat: text"),
        ({"prompt": "x", "completion": "y"}, "chatml", "would be read as prompt-completion, not as chatml"),
        ({"raw": b"x"}, "alpaca", "a column 'raw' that JSON cannot hold"),
        ({"half": "\ud800"}, "alpaca", "a column 'half' with half a character"),
    ],
)
def test_own_columns_that_would_be_misread_or_lost_are_refused(tmp_path, own, format, problem):
    with pytest.raises(DataError, match=problem):
        export([{"messages": PAIR, **own}], tmp_path / "x.jsonl", format)


@pytest.mark.parametrize(
    ("rows", "name", "problem"),
    [
        ([], "x.jsonl", "no rows"),
        ([{"messages": PAIR}], "x.xlsx", r"wanted a file name that ends in \.jsonl, \.parquet, \.csv"),
        (iter([{"messages": PAIR}]), "x.jsonl", "read twice"),
    ],
)
def test_calls_that_cannot_work_say_so(tmp_path, rows, name, problem):
    with pytest.raises(DataError, match=problem):
        export(rows, tmp_path / name, "messages")


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_older_file_stays_whole_when_writing_fails(tmp_path, ending, monkeypatch):
    path = export([{"messages": PAIR}], tmp_path / f"x{ending}", "alpaca")
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError, match="disk is full"):
        export([{"messages": [SYSTEM, *PAIR]}], path, "alpaca")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_never_held_as_a_whole(tmp_path, ending, monkeypatch):
    """Python objects beside a Dataset of 12 MB of text stay at a few batches."""
    monkeypatch.setattr("ftkit.data.export._BATCH", 100)
    examples = Dataset.from_dict({"messages": [[PAIR[0], {"role": "assistant", "content": "x" * 6_000}]] * 2_000})
    export(examples.select(range(10)), tmp_path / f"warm{ending}", "messages")
    tracemalloc.start()
    export(examples, tmp_path / f"x{ending}", "messages")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_csv_cells_are_what_a_spreadsheet_reads(tmp_path):
    path = export(
        [{"messages": [SYSTEM, *PAIR], "id": 7}, {"messages": PAIR, "id": None}], tmp_path / "x.csv", "alpaca"
    )
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["instruction", "input", "output", "system", "id"],
            ["Q", "", "A", "S", "7"],
            ["Q", "", "A", "", ""],
        ]
