"""Any source to one column of messages: formats told, bad rows listed, own columns kept."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import chats

from ftkit import cleaning, data
from ftkit.errors import DataError

WANTED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


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


def test_unknown_name_lists_the_bundled_sets():
    with pytest.raises(DataError, match="invoices, invoices_unseen, messy, messy_test, general"):
        data.load_examples("invoises")


def test_hub_dataset_without_network_says_so():
    """HF_HUB_OFFLINE stands in for a missing network."""
    with pytest.raises(DataError, match=r"could not be read from the Hub.*network"):
        data.load_examples("nobody/nothing")


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


def test_bundled_sets_have_the_promised_sizes():
    splits = data.split(data.load_examples("invoices"))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (600, 100, 100)
    assert len(data.load_examples("invoices", split="unseen")) == 100
    assert len(data.load_examples("general")) >= 60
    suites = {name: len(data.load_examples(name)) for name in ("json_skill", "tool_skill", "harmless", "harmful")}
    assert suites == {"json_skill": 24, "tool_skill": 16, "harmless": 24, "harmful": 24}
    assert len(data.load_examples("passages")) == 20


def test_unknown_split_lists_those_that_exist():
    with pytest.raises(DataError, match="test, train, val"):
        data.load_examples("invoices", split="holdout")


@pytest.mark.parametrize("asked", ["val", "valid", "validation", "dev", "eval", "evaluation", "Validation"])
def test_a_split_is_found_by_any_of_its_names(asked):
    rows = [{"prompt": "Q", "completion": "A", "split": name} for name in ("train", "Valid", "test")]
    assert data.load_examples(rows, split=asked)["split"][:] == ["Valid"]


def test_a_split_of_exactly_that_name_comes_first():
    rows = [{"prompt": "Q", "completion": "A", "split": name} for name in ("dev", "validation")]
    assert data.load_examples(rows, split="dev")["split"][:] == ["dev"]


def test_a_text_beside_a_label_is_no_chat_and_gets_a_mapping():
    with pytest.raises(DataError, match=r"mapping=\{'prompt': 'text', 'answer': 'label'\}"):
        data.load_examples([{"text": "good", "label": "pos"}])


def test_a_number_as_an_answer_is_refused_with_a_way_forward():
    with pytest.raises(DataError, match=r"of type int \('1'\), wanted text: put it in quotes"):
        data.load_examples([{"prompt": "how many?", "completion": 1}])


def test_a_long_file_stays_on_disk_and_columns_may_change_their_type(tmp_path, monkeypatch):
    """Rows are memory-mapped; an own column that turns from number to text becomes text."""
    monkeypatch.setattr("ftkit.data.loading._BATCH", 50)
    monkeypatch.setattr("ftkit.data.loading._IN_MEMORY", 1_000)
    path = tmp_path / "x.jsonl"
    rows = [dict(row, n=i if i < 60 else f"n{i}") for i, row in enumerate(chats(130, words=10))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = data.load_examples(path)
    assert len(examples.cache_files) >= 1
    assert examples["n"][:] == [str(i) if i < 60 else f"n{i}" for i in range(130)]
    assert [m[0]["content"] for m in examples["messages"][:]] == [row["messages"][0]["content"] for row in rows]


def test_numbers_beside_fractions_become_fractions_and_large_ones_text():
    rows = [{"messages": WANTED, "n": 1, "big": 2**70}, {"messages": WANTED, "n": 0.5, "big": 1}]
    examples = data.load_examples(rows)
    assert (examples["n"][:], examples["big"][:]) == ([1.0, 0.5], [str(2**70), "1"])


@pytest.mark.parametrize("depth", [300, 900, 980, 5_000])
@pytest.mark.parametrize("place", ["own", "messages", "whole"])
def test_a_deeply_nested_row_is_read_or_named(tmp_path, depth, place):
    """However deep: the row comes out, or the error names it."""
    deep = "[" * depth + "]" * depth
    row = {
        "own": f'{{"prompt": "Q", "completion": "A", "own": {deep}}}',
        "messages": f'{{"messages": {deep}}}',
        "whole": deep,
    }[place]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "Q", "completion": "A"}) + "\n" + row + "\n")
    try:
        assert len(data.load_examples(path)) == 2
    except DataError as error:
        assert "line 2" in str(error)


def test_a_table_in_memory_is_refused_with_a_way_that_works():
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    rows = [{"prompt": "Q", "completion": "A"}]
    for table, way in (
        (pandas.DataFrame(rows), "frame.to_dict('records')"),
        (arrow.Table.from_pylist(rows), "table.to_pylist()"),
    ):
        with pytest.raises(DataError) as caught:
            data.load_examples(table)
        assert str(caught.value).endswith(f"is no list of rows. Give {way}.")
        followed = eval(way, {"frame": table, "table": table})
        assert data.load_examples(followed)["messages"][:] == [WANTED]


def test_parts_in_memory_fill_a_split_column():
    datasets = pytest.importorskip("datasets")
    row = {"prompt": "Q", "completion": "A"}
    parts = {"train": [row, row], "validation": [row]}
    for source in (
        parts,
        datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}),
    ):
        assert data.load_examples(source)["split"][:] == ["train", "train", "validation"]
    assert data.load_examples({"prompt": ["Q", "Q"], "completion": ["A", "A"]})["messages"][:] == [WANTED] * 2


def test_a_licence_goes_along_with_the_rows():
    """Noted where the source names it, kept by `split` and `clean`, and joined where rows of two sources are."""
    invoices = data.load_examples("invoices")
    assert data.split(invoices).train.info.license == "apache-2.0"
    assert data.split(invoices).train.info.homepage == "invoices (bundled with ftkit)"
    cleaned = cleaning.clean("messy", [cleaning.exact_duplicates()], on_error="drop").kept
    assert cleaned.info.license == "apache-2.0"
    mine = data.load_examples([{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(3)])
    assert mine.info.license == "unknown"
    mixed = cleaning.mix(invoices.select(range(3)), mine, 0.5).examples
    assert mixed.info.license == "apache-2.0\n\nunknown"  # an empty one would be lost, and Apache claimed for all


def test_a_dataset_brings_its_licence_along():
    rows = data.load_examples([{"prompt": "What is 1?", "completion": "It is 1."}])
    rows.info.license = "cc-by-4.0"
    assert data.load_examples(rows).info.license == "cc-by-4.0"
