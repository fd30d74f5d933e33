"""Rows out of files: every kind and layout, and broken ones with the place and the cure."""

import bz2
import contextlib
import csv
import gzip
import itertools
import json
import os
import zipfile

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
        ("x.parquet", b"PAR1 nonsense", r"x\.parquet is damaged, cut off, or of another kind"),
        ("x.arrow", b"nonsense " * 9, r"x\.arrow is damaged, cut off, or of another kind"),
        ("x.jsonl.gz", b"{}", r"x\.jsonl\.gz is damaged.*Not a gzipped file"),
        (
            "x.jsonl.gz",
            gzip.compress(b'{"prompt": "Q", "completion": "A"}\n' * 99, mtime=0)[:-9],
            "is damaged, cut off",
        ),
        ("x.jsonl.bz2", bz2.compress(b"{}" * 999)[:-9], "is damaged, cut off"),
        ("x.csv.zst", pa.compress(b"a,b\n" * 999, "zstd", asbytes=True)[:-9], "is damaged, cut off"),
        ("x.zip", b"PK\x03\x04 nonsense", r"x\.zip is damaged.*not a zip file"),
        ("x.jsonl", gzip.compress(b"{}", mtime=0), "is packed by gzip: give it the ending .gz"),
        ("x.csv", b"PK\x03\x04 a sheet", "save the sheet as CSV"),
        ("x.json", b"<!doctype html><p>Not found", "is a web page: download the file itself"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        ("x.arrow", b"<html>Not found", "is a web page"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16-le"), "is UTF-16 text"),
        ("x.csv.gz", gzip.compress("a\tb\n".encode("utf-16"), mtime=0), "iconv -f UTF-16 -t UTF-8 x.csv > fixed.csv"),
        ("x.tar.gz", gzip.compress(b"x", mtime=0), "Unpack it first"),
        ("x.gz", gzip.compress(b"x", mtime=0), r"wanted a file that ends in .*perhaps packed"),
        (
            "x.csv",
            b"prompt,completion\rQ,A\r",
            r"carriage returns alone\. Convert it: tr '\\r' '\\n' < x\.csv > fixed\.csv",
        ),
        ("x.tsv", b"prompt\tcompletion\na\tb\nc\n", "line 3: has 1 cells, but the header has 2"),
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


LINE = '{"prompt": "Q", "completion": "A"}\n'
TURNS = json.dumps(WANTED) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("x.jsonl", TURNS * 2, 2),
        ("x.jsonl", TURNS, 1),
        ("x.json", TURNS, 1),
        ("x.json", json.dumps(WANTED, indent=1), 1),
        ("x.json", json.dumps([WANTED, WANTED]), 2),
        ("x.jsonl", json.dumps({"prompt": "Q", "completion": "A"}, indent=2) + "\n" + LINE, 2),
        ("x.jsonl", json.dumps({"prompt": "Q", "completion": "A"}, indent=2) * 3, 3),
        ("x.jsonl", "\n\n" + json.dumps([{"prompt": "Q", "completion": "A"}], indent=2), 1),
        ("x.jsonl", "\ufeff" + LINE + "\ufeff" + LINE, 2),
        ("x.json", "\ufeff\ufeff[" + LINE + "]", 1),
        ("x.json", json.dumps({"prompt": {"0": "Q", "7": "Q"}, "completion": {"0": "A", "7": "A"}}), 2),
        ("x.json", json.dumps({"0": {"prompt": "Q", "completion": "A"}, "1": {"prompt": "Q", "completion": "A"}}), 2),
        ("x.json", json.dumps({"columns": ["prompt", "completion"], "index": [0, 1], "data": [["Q", "A"]] * 2}), 2),
        ("x.json", json.dumps({"prompt": ["Q", "Q", "Q"], "completion": ["A", "A", "A"]}), 3),
        ("x.json", json.dumps({"prompt": WANTED[:1], "completion": WANTED[1:]}), 1),
        ("x.jsonl", json.dumps({"prompt": "Q", "completion": "A", "notes": [{"by": "B"}]}), 1),
        ("x.json", json.dumps({"version": "1.1", "data": [{"prompt": "Q", "completion": "A"}] * 2}), 2),
        ("x.json", LINE.replace("\n", ",\n") * 2, 2),
        ("x.jsonl", LINE.replace("\n", ",\n") * 2, 2),
        ("x.csv", "prompt\tcompletion\nQ\tA\n", 1),
        ("x.csv", "prompt|completion\nQ|A\n", 1),
        ("x.tsv", "prompt,completion\nQ,A\n", 1),
        ("x.csv", "sep=;\nprompt;completion\nQ;A\n", 1),
        ("x.csv", '"SEP=\t"\r\nprompt\tcompletion\r\nQ\tA\r\n', 1),
        ("x.csv", "\ufeffsep=|\nprompt|completion\nQ|A\n", 1),
    ],
)
@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".zst", ".zip"])
def test_layouts_that_other_programs_write_are_read_packed_or_not(tmp_path, name, text, rows, packing):
    path = tmp_path / f"{name}{packing}"
    packed(path, text.encode())
    assert data.load_examples(path)["messages"][:] == [WANTED] * rows


def packed(path, content):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, content)
            archive.writestr("__MACOSX/._" + path.stem, b"junk")
    else:
        pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True)}
        path.write_bytes(pack.get(path.suffix, bytes)(content))


@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_arrow_tables_are_read_packed_or_not(tmp_path, ending, packing):
    table = pa.table({"prompt": ["Q"] * 3, "completion": ["A"] * 3})
    sink = pa.BufferOutputStream()
    if ending == ".arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        pa.parquet.write_table(table, sink)
    path = tmp_path / f"x{ending}{packing}"
    packed(path, sink.getvalue().to_pybytes())
    assert data.load_examples(path)["messages"][:] == [WANTED] * 3


@pytest.mark.parametrize("broken", ["oops", '{"prompt": "Q",', '{"prompt": "Q'])
def test_a_broken_first_line_costs_no_other(tmp_path, broken):
    path = tmp_path / "x.jsonl"
    path.write_text(broken + "\n" + LINE * 2)
    with pytest.warns(UserWarning, match="line 1: is not JSON"):
        assert len(data.load_examples(path, on_error="skip")) == 2


def test_blanks_around_the_names_of_a_header_are_no_part_of_them(tmp_path):
    (tmp_path / "x.csv").write_text("prompt, completion \nQ,A\n")
    assert data.load_examples(tmp_path / "x.csv")[0]["messages"][1]["content"] == "A"


def test_lists_under_the_names_of_parts_fill_a_split_column(tmp_path):
    path = tmp_path / "x.json"
    row = {"prompt": "Q", "completion": "A"}
    path.write_text(json.dumps({"train": [row, row], "validation": [row], "more": [row]}, indent=1))
    assert data.load_examples(path)["split"][:] == ["train", "train", "validation", "more"]
    assert len(data.load_examples(path, split="val")) == 1


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_quotes_between_tabs_hold_only_where_a_writer_set_them(tmp_path, name, quoting):
    cells = ['say "hi"', "two\nlines", "a\ttab", '"', "", 'end"', "plain"]
    rows = [{"prompt": f"{a}.", "completion": f"{b}?"} for a, b in itertools.product(cells, cells)]
    path = tmp_path / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
    assert [row for _, row in read(path)] == rows


@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_a_quote_between_tabs_swallows_no_lines(tmp_path, name):
    cells = ['"begun', "plain", 'ended"', '"whole"', '"Yes," she said', '"', 'in"side']
    path = tmp_path / name
    path.write_text("prompt\tcompletion\n" + "".join(f"Q{i}\t{cell}\n" for i, cell in enumerate(cells)))
    assert [(place, row["completion"]) for place, row in read(path)] == [
        (f"line {number}", cell) for number, cell in enumerate(cells, 2)
    ]


def shards(folder, names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        packed(path, f'{{"prompt": "Q{number}", "completion": "A"}}\n'.encode())


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["b.jsonl", "a.jsonl", "README.md", ".hidden.jsonl"], None),
        (["train-0.jsonl", "test-0.jsonl.gz", "validation-00000-of-00001.jsonl"], ["test", "train", "validation"]),
        (["data/train/0.jsonl", "data/test/0.jsonl", "dataset_infos.json"], ["test", "train"]),
        (["train.jsonl", "dev.jsonl"], ["dev", "train"]),
        (["trains-to-rome.jsonl", "devices.jsonl"], None),
        (["train-0.jsonl", "holdout.jsonl"], [None, "train"]),
        (["faq_train.jsonl", "faq_test.jsonl"], ["test", "train"]),
        (["faq.dev.jsonl", "faq.train.jsonl"], ["dev", "train"]),
        (["human_eval.jsonl", "smoke-test.jsonl"], None),
    ],
)
@pytest.mark.parametrize("packing", [None, "zip"])
def test_a_folder_of_shards_is_read_in_order_with_the_split_of_each_name(tmp_path, names, splits, packing):
    folder = tmp_path / "x"
    shards(folder, names)
    if packing:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name in names:
                archive.write(folder / name, name)
        folder = tmp_path / "x.zip"
    examples = data.load_examples(folder)
    assert len(examples) == (len(splits) if splits else 2)
    assert (examples["split"][:] if "split" in examples.column_names else None) == splits


def test_a_bad_row_in_a_folder_is_named_with_its_file(tmp_path):
    shards(tmp_path, ["a b.jsonl", "c.jsonl"])
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write('{"prompt": "Q"}\noops\n')
    with pytest.raises(DataError, match=r"line 2 of c\.jsonl: lacks completion(.|\n)*line 3 of c\.jsonl: is not JSON"):
        data.load_examples(tmp_path)


def test_a_good_row_of_a_folder_is_found_by_its_file(tmp_path):
    shards(tmp_path, ["a b.jsonl", "c.jsonl"])
    loaded = data.read_rows(tmp_path)
    places = [loaded.place(i) for i in range(len(loaded.examples))]
    assert places[0] == "line 1 of a b.jsonl"
    assert places[-1].endswith(" of c.jsonl")
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jsonl", "b.csv"], r"several kinds \(1 \.csv, 1 \.jsonl\)"),
        (["README.md"], "holds no data files"),
        (["x.jsonl/notes.txt"], "holds no data files"),
    ],
)
def test_a_folder_that_is_no_dataset_says_why(tmp_path, names, message):
    shards(tmp_path, names)
    with pytest.raises(DataError, match=message):
        data.load_examples(tmp_path)


def test_what_save_to_disk_wrote_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_list([{"prompt": f"Q{i}", "completion": "A"} for i in range(5)]).shuffle(seed=1)
    part.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": part, "validation": part.select([0])}).save_to_disk(tmp_path / "both")
    datasets.load_from_disk(tmp_path / "one").map(lambda row: {"prompt": "changed"})  # leaves a cache behind
    asked = [turns[0]["content"] for turns in data.load_examples(tmp_path / "one")["messages"]]
    assert asked == part["prompt"][:]
    assert data.load_examples(tmp_path / "both")["split"][:] == ["train"] * 5 + ["validation"]


def calls(source):
    turns = data.load_examples(source)["messages"][0]
    return json.loads(turns[1]["tool_calls"])[0]["function"]["arguments"]


CALLING = [
    {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
        ]
    }
    for arguments in ({"a": "1", "in": [{"b": None, "c": "2"}]}, {"d": "3", "in": [{"b": "4"}]})
]


def test_keys_that_arrow_fills_in_are_no_data_and_explicit_nulls_of_json_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = pa.Table.from_pylist(CALLING)
    pa.parquet.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text(json.dumps(CALLING))
    given = datasets.Dataset(table)
    given.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "x.parquet", tmp_path / "saved", given, given.to_iterable_dataset()):
        assert calls(source) == {"a": "1", "in": [{"c": "2"}]}
    for source in (tmp_path / "x.json", CALLING):
        assert calls(source) == {"a": "1", "in": [{"b": None, "c": "2"}]}


def bad_text(rows):
    raw = pa.array(rows, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(rows), raw.buffers())


def test_a_parquet_cell_that_is_no_text_is_named_by_its_row(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"prompt": bad_text([b"Q", b"\xff\xfe", b"Q"]), "completion": ["A", "A", "A"]})
    pa.parquet.write_table(table, path)
    with pytest.raises(DataError, match=r"1 of 3 rows(.|\n)*row 2: has a cell that cannot be read: .*UTF8"):
        data.load_examples(path)
    with pytest.warns(UserWarning, match="row 2"):
        assert data.load_examples(path, on_error="skip")["messages"][:] == [WANTED, WANTED]


def test_dates_that_python_cannot_hold_are_named_by_their_row(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"prompt": ["Q", "Q"], "completion": ["A", "A"], "day": pa.array([0, 2**31 - 1], pa.date32())})
    pa.parquet.write_table(table, path)
    with pytest.raises(DataError, match="row 2: has a cell that cannot be read"):
        data.load_examples(path)


def test_a_damaged_page_is_named_by_the_rows_before_it(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"prompt": [f"Q{i * 7919}" for i in range(3000)], "completion": ["A"] * 3000})
    pa.parquet.write_table(table, path, row_group_size=1000, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet after row \d+ is damaged|cannot be read"):
        data.load_examples(path)


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"new\nline.jsonl", b"a" * 200 + b".jsonl", b"esc\x1b[31m.jsonl"])
def test_odd_names_are_read_and_shown_on_one_line(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(LINE.encode())
    assert len(data.load_examples(path)) == 1
    path.write_bytes(b"oops\n")
    with pytest.raises(DataError) as caught:
        data.load_examples(path)
    first = str(caught.value).splitlines()[0]
    assert first.isprintable() and "1 of 1 rows cannot be used" in first


@pytest.mark.parametrize(
    "name", ["x" * 5000 + ".jsonl", "x\0.jsonl", "~nobody-at-all/x.jsonl", "no\nsuch.jsonl", "\udcff"]
)
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(DataError) as caught:
        data.load_examples(name)
    assert str(caught.value).isprintable()


def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "x.jsonl"
    os.mkfifo(path)
    with pytest.raises(DataError, match="is no ordinary file"):
        data.load_examples(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_a_packed_file_that_fills_memory_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr("ftkit.data.readers._UNPACKED", 2**16)
    content = b'{"prompt": "Q",\n"completion": "' if name == "x.json" else b"a,b\n"
    for packing in (".gz", ".bz2", ".zst", ".zip"):
        packed(tmp_path / (name + packing), content + b"\n" * 2**20)
        with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
            data.load_examples(tmp_path / (name + packing), on_error="skip")


def test_an_archive_with_a_password_is_refused(tmp_path):
    path = tmp_path / "x.jsonl.zip"
    packed(path, b"{}")
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="password"):
        data.load_examples(path)


PARENTS = {
    ".json": json.dumps([{"prompt": "Q", "completion": "A", "in": {"a": [1, None]}}] * 3, indent=1).encode(),
    ".jsonl": LINE.encode() * 3,
    ".csv": b'prompt,completion\n"Q, ""q""","A\nb"\n',
    ".tsv": b'prompt\tcompletion\nQ\t"A\tb"\n',
}


@st.composite
def mutants(draw):
    ending = draw(st.sampled_from([*PARENTS, ".parquet", ".arrow"]))
    packing = draw(st.sampled_from(["", "", ".gz", ".bz2", ".zst", ".zip"]))
    content = bytearray(draw(st.sampled_from([PARENTS.get(ending) or arrow_parent(ending), b""])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return ending + packing, bytes(content)


def arrow_parent(ending):
    table, sink = pa.Table.from_pylist(CALLING), pa.BufferOutputStream()
    if ending == ".parquet":
        pa.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


@settings(max_examples=100, deadline=None)
@given(mutants())
def test_damaged_files_are_read_or_refused(tmp_path_factory, mutant):
    """Whatever a file holds, the outcome is rows or an error of ours that names the file."""
    ending, content = mutant
    path = tmp_path_factory.mktemp("mutant") / f"x{ending}"
    packed(path, content)
    try:
        for where, _ in read(path):
            assert where.split()[0] in {"line", "row"}
    except DataError as error:
        assert path.name in str(error)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".csv.gz", ".jsonl.zst", ".zip"]),
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("bytes") / f"x{ending}"
    path.write_bytes(content)
    try:
        for where, _ in read(path):
            assert where.split()[0] in {"line", "row"}
    except DataError as error:
        assert path.name in str(error)
