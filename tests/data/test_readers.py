"""Rows out of files: every kind and layout, and broken ones with the place and the cure."""

import contextlib
import csv
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import data
from ftkit.data.readers import read
from ftkit.errors import DataError

WANTED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


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
        ("x.json", b'[{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}]", "row 1 is nested too many levels"),
        ("x.json", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too many levels"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "line 1: holds a number that is too long"),
        ("x.json", b'[{"a": ' + b"9" * 5000 + b"}]", "holds a number that is too long"),
        ("x.jsonl", '{"prompt": "Q"}'.encode("utf-16"), "is UTF-16 text.*iconv -f UTF-16 -t UTF-8"),
        ("x.json", b'[{"a": "b"},]', "row 2 line 1: not JSON"),
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


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,completion\nQ,A\n")
    assert data.load_examples(path)["messages"][:] == [WANTED]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([".json", ".jsonl", ".csv", ".parquet"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("bytes") / f"x{ending}"
    path.write_bytes(content)
    try:
        for where, _ in read(path):
            assert where.split()[0] in {"line", "row"}
    except DataError as error:
        assert path.name in str(error)
