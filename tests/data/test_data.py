"""From any table to messages: formats, broken files with the number of the row, splits."""

import contextlib
import csv
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import data
from ftkit.data import to_messages
from ftkit.errors import DataError

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
        (
            "chatml",
            {
                "text": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            },
            WITH_SYSTEM,
        ),
    ],
)
def test_known_formats_are_told_by_their_columns(name, row, expected):
    assert data.detect_format(row) == name
    assert to_messages(row) == expected


def test_unknown_columns_name_what_exists_what_was_wanted_and_a_mapping():
    with pytest.raises(DataError) as caught:
        data.load_examples([{"question": "Q", "reply": "A", "id": 1}])
    text = str(caught.value)
    assert "id, question, reply" in text
    assert "alpaca: instruction + output" in text
    assert "mapping={'prompt': 'question', 'answer': 'reply'}" in text


def test_a_mapping_reads_any_columns():
    examples = data.load_examples([{"question": "Q", "reply": "A"}], mapping={"prompt": "question", "answer": "reply"})
    assert examples[0]["messages"] == WANTED


@pytest.mark.parametrize(
    "mapping", [{"prompt": "question"}, {"prompt": "question", "answer": "nope"}, {"q": "question"}]
)
def test_a_wrong_mapping_says_what_is_wrong(mapping):
    with pytest.raises(DataError, match=r"mapping wants|lacks nope"):
        data.load_examples([{"question": "Q", "reply": "A"}], mapping=mapping)


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


def test_all_bad_rows_are_listed_with_their_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    good = json.dumps({"messages": WANTED})
    path.write_text(
        "\n".join([good, json.dumps({"messages": WANTED[:1]}), good, json.dumps({"messages": 3}), "7"]) + "\n"
    )
    with pytest.raises(DataError, match=r"3 of 5 rows(.|\n)*line 2: has no answer(.|\n)*line 4: (.|\n)*line 5: is int"):
        data.load_examples(path)


def test_bad_rows_are_left_out_only_when_asked_and_never_in_silence(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": WANTED}) + "\n" + json.dumps({"messages": []}) + "\n")
    with pytest.warns(UserWarning, match="left out 1 of 2 rows(.|\n)*line 2"):
        assert len(data.load_examples(path, on_error="skip")) == 1


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_file_kind_gives_the_same_rows(tmp_path, ending):
    rows = [{"instruction": f'say "{i}",\nplease', "input": "", "output": f"ü {i}", "id": str(i)} for i in range(3)]
    path = tmp_path / f"x{ending}"
    write(path, rows)
    examples = data.load_examples(path)
    assert examples["messages"][2] == [
        {"role": "user", "content": 'say "2",\nplease'},
        {"role": "assistant", "content": "ü 2"},
    ]
    assert examples["id"][:] == ["0", "1", "2"]


@pytest.mark.parametrize("text", ['{"data": [ROW, ROW]}', "ROW\nROW\n", "[ROW,\nROW]"])
def test_json_files_of_every_layout(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text.replace("ROW", json.dumps({"prompt": "Q", "completion": "A"})))
    assert data.load_examples(path)["messages"][:] == [WANTED, WANTED]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "empty"),
        ("x.csv", b"instruction,output\n", "holds no rows"),
        ("x.json", b"[]", "holds no rows"),
        ("x.jsonl", b'{"prompt": "Q", "completion": "A"}\n{"prompt": "Q", "comp', r"line 2: is not JSON.*cut off"),
        ("x.json", b'[{"prompt": "Q",\n"completion": "A"},\n{"prompt": "Q', r"line 3: not JSON"),
        ("x.jsonl", b'{"prompt": "Q", "completion": "caf\xe9"}\n', r"line 1: is not UTF-8 at byte 35 \(0xe9\).*iconv"),
        ("x.csv", b"prompt,completion\na,b,c\n", "line 2: has 3 cells, but the header has 2"),
        ("x.csv", b'prompt,completion\n"a,b\n', "not CSV"),
        ("x.csv", b"prompt,prompt\na,b\n", "more than once"),
        ("x.parquet", b"PAR1 nonsense", "not Parquet"),
        ("x.xlsx", b"PK", "wanted a file that ends in"),
        ("x.json", b'"text"', "wanted a list of objects"),
        ("x.json", b'[{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}]", "nested more than 100 levels"),
        ("x.json", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 100 levels"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "line 1: holds a number that is too long"),
        ("x.json", b'[{"a": ' + b"9" * 5000 + b"}]", "holds a number that is too long"),
        ("x.jsonl", b'{"prompt": "Q", "prompt": "R", "completion": "A"}\n', "line 1: has the column prompt twice"),
        ("x.json", b'[{"prompt": "Q", "prompt": "R", "completion": "A"}]', "row 1: has the column prompt twice"),
        ("x.jsonl", '{"prompt": "Q"}'.encode("utf-16"), "is UTF-16 text.*iconv -f UTF-16 -t UTF-8"),
        ("x.json", b'[{"a": "b"},]', "A comma stands before a closing bracket"),
        ("x.json", b'[{"a": "b"},{"a', "was it cut off"),
        ("x.json", b" \n ", "holds no rows"),
        ("x.csv", b"  \n\nQ,A\n", "the first line is blank"),
    ],
)
def test_broken_files_name_the_place_and_the_cure(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.load_examples(path)


def test_a_spreadsheets_semicolons_are_understood(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt;completion\n"What; and why?";"1,5 metres"\n')
    assert data.load_examples(path)["messages"][0][1]["content"] == "1,5 metres"


@pytest.mark.parametrize("content", [b"\xff\n", b"a,b\n\xff,c\n", b'a,b\n"c', b"prompt,completion\nq,a\n"])
def test_reading_csv_leaves_the_cell_limit_as_it_was(tmp_path, content):
    """The limit is one for the whole process: other readers rely on it."""
    import csv

    before, path = csv.field_size_limit(), tmp_path / "x.csv"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        data.load_examples(path)
    assert csv.field_size_limit() == before


def test_a_hundred_megabyte_line_is_refused_without_reading_it_all(tmp_path):
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "Q", "completion": "A"}\n{"prompt": "')
        file.write(b"x" * 100_000_000)
    with pytest.raises(DataError, match="line 2: is longer than 16 MiB"):
        data.load_examples(path)


def test_a_hint_of_a_cut_is_only_given_where_the_file_ends_in_the_middle(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, oops]')
    with pytest.raises(DataError) as caught:
        data.load_examples(path)
    assert "cut off" not in str(caught.value)


def test_a_long_string_in_a_json_list_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'[{"prompt": "' + b"x" * 30_000_000 + b'", "completion": "A"}]')
    with pytest.raises(DataError, match="row 1: is longer than 16 MiB"):
        data.load_examples(path)


def test_brackets_within_text_are_no_depth(tmp_path):
    path = tmp_path / "x.json"
    rows = [{"prompt": "[" * 500 + '\\"' + "{" * 500, "completion": "\\\\"}]
    path.write_text(json.dumps(rows))
    assert len(data.load_examples(path)) == 1


def test_a_parquet_column_that_stands_there_twice_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pa.parquet.write_table(pa.table([["a"], ["b"], ["c"]], names=["prompt", "prompt", "completion"]), path)
    with pytest.raises(DataError, match="column prompt stands there more than once"):
        data.load_examples(path)


def test_missing_file_lists_its_neighbours(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"does not exist.*train\.jsonl"):
        data.load_examples(tmp_path / "tarin.jsonl")


def test_unknown_name_lists_the_bundled_sets():
    with pytest.raises(DataError, match="invoices, invoices_unseen, messy, messy_test, general"):
        data.load_examples("invoises")


def test_hub_dataset_without_network_says_so():
    """HF_HUB_OFFLINE stands in for a missing network."""
    with pytest.raises(DataError, match=r"could not be read from the Hub.*network"):
        data.load_examples("nobody/nothing")


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,completion\nQ,A\n")
    assert data.load_examples(path)["messages"][:] == [WANTED]


def test_own_columns_come_along_even_with_mixed_types():
    examples = data.load_examples([{"messages": WANTED, "tag": 1}, {"messages": WANTED, "tag": {"a": None}}])
    assert examples["tag"][:] == ["1", '{"a": null}']


cells = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.text(max_size=3), max_size=3),
)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": cells}), max_size=4
)
mess = st.one_of(
    st.fixed_dictionaries({"messages": st.one_of(turns, cells)}, optional={"note": cells}),
    st.fixed_dictionaries({"instruction": cells, "output": cells}),
    cells,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(mess, min_size=1, max_size=6))
def test_any_mess_is_either_read_or_refused_row_by_row(rows):
    """Whatever comes in, the outcome is a dataset with one row a row, or a DataError; never another exception."""
    try:
        examples = data.load_examples(rows)
    except DataError:
        return
    assert len(examples) == len(rows)
    assert all(messages[-1]["role"] == "assistant" for messages in examples["messages"])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([".json", ".jsonl", ".csv", ".parquet"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("bytes") / f"x{ending}"
    path.write_bytes(content)
    try:
        for where, _ in data.read(path):
            assert where.split()[0] in {"line", "row"}
    except DataError as error:
        assert path.name in str(error)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=3, max_size=60), st.integers(0, 5))
def test_split_is_a_partition_that_keeps_equal_prompts_together(numbers, seed):
    """Every row lands in exactly one part, no part is empty, and no prompt stands in two."""
    rows = [{"prompt": f"Q{n}", "completion": f"A{i}"} for i, n in enumerate(numbers)]
    if len(set(numbers)) < 3:
        with pytest.raises(DataError, match="three parts"):
            data.split(data.load_examples(rows), seed=seed)
        return
    parts = data.split(data.load_examples(rows), seed=seed)
    answers = [[m[-1]["content"] for m in part["messages"]] for part in (parts.train, parts.val, parts.test)]
    prompts = [{m[0]["content"] for m in part["messages"]} for part in (parts.train, parts.val, parts.test)]
    assert sorted(sum(answers, [])) == sorted(f"A{i}" for i in range(len(rows)))
    assert all(answers)
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


def test_split_depends_on_the_seed_alone():
    examples = data.load_examples([{"prompt": f"Q{i}", "completion": "A"} for i in range(50)])
    assert data.split(examples, seed=1).test[:] == data.split(examples, seed=1).test[:]
    assert data.split(examples, seed=1).test[:] != data.split(examples, seed=2).test[:]


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.1), (0.6, 0.4), (-0.1, 0.5)])
def test_split_shares_must_leave_something_to_train_on(val, test):
    with pytest.raises(DataError, match="share"):
        data.split(data.load_examples("general"), val=val, test=test)


def test_bundled_sets_have_the_promised_sizes():
    splits = data.split(data.load_examples("invoices"))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (600, 100, 100)
    assert len(data.load_examples("invoices", split="unseen")) == 100
    assert len(data.load_examples("general")) >= 60


def test_unknown_split_lists_those_that_exist():
    with pytest.raises(DataError, match="test, train, val"):
        data.load_examples("invoices", split="dev")


def test_digest_moves_with_any_message():
    one, two = (
        data.load_examples([{"prompt": "Q", "completion": "A"}]),
        data.load_examples([{"prompt": "Q", "completion": "B"}]),
    )
    assert data.digest(one) != data.digest(two)
    assert data.digest(one) == data.digest(one)
