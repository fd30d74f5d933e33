"""Parts that share no twins, what the search for them found, and the files of a run."""

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import altered, chat, chats, random_text

from ftkit import Run, data
from ftkit.data import leakage
from ftkit.errors import DataError, FtkitWarning, StorageError


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


def test_digest_moves_with_any_message():
    one, two = (
        data.load_examples([{"prompt": "Q", "completion": "A"}]),
        data.load_examples([{"prompt": "Q", "completion": "B"}]),
    )
    assert data.digest(one) != data.digest(two)
    assert data.digest(one) == data.digest(one)


def test_one_huge_cluster_does_not_fill_the_test_part():
    """Rows that share a long instruction are split by their prompts, with a warning."""
    instruction = random_text(random.Random(9), 200)
    rows = [chat(f"{instruction} item{i}", f"answer number {i}") for i in range(97)] + chats(3)
    with pytest.warns(FtkitWarning, match="97 of 100 rows are linked"):
        splits = data.split(data.load_examples(rows))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [80, 10, 10]


@pytest.mark.slow
@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_twins_never_straddle_a_split(seed):
    draw = random.Random(seed)
    rows = chats(30, seed=seed)
    for row in rows[:10]:
        text = row["messages"][0]["content"]  # type: ignore[index]
        rows.append(chat(altered(text, draw, 1), row["messages"][1]["content"]))  # type: ignore[index]
    splits = data.split(data.load_examples(rows), seed=seed)
    for a, b in ((splits.train, splits.test), (splits.train, splits.val), (splits.val, splits.test)):
        assert leakage(a, b).leaked_rows == ()


def test_prompts_that_share_a_long_instruction_are_still_split():
    instruction = random_text(random.Random(9), 200)
    rows = [chat(f"{instruction} item{i}", f"answer number {i}") for i in range(20)]
    with pytest.warns(FtkitWarning, match="20 of 20 rows are linked"):
        splits = data.split(data.load_examples(rows))
    assert len(splits.train) == 16


def repeated(part):
    """Groups of rows, from 1, that a search in this part alone finds."""
    groups = {}
    for row, first in enumerate(data.near_pairs(data.Texts(part)).clusters(), 1):
        groups.setdefault(first, []).append(row)
    return [tuple(rows) for rows in groups.values() if len(rows) > 1]


def twin_rows(seed=3):
    """Sixty rows; some have a twin, some share only their prompt, some form a chain."""
    draw = random.Random(seed)
    rows = chats(40, seed=seed, words=80)
    for row in rows[:12]:
        question, answer = (turn["content"] for turn in row["messages"])
        rows.append(chat(altered(question, draw, 1), answer))
        rows.append(chat(altered(question, draw, 3), random_text(draw, 60)))
    return rows


def test_the_search_of_a_split_is_the_search_of_a_check():
    """`repeats` holds what looking for near-duplicates in train alone would find, and one search serves both."""
    splits = data.split(data.load_examples(twin_rows()))
    assert splits.searched == data.THRESHOLD
    assert list(splits.repeats) == repeated(splits.train) != []


def test_prompts_and_whole_texts_are_searched_once(monkeypatch):
    calls = []
    search = data.near_pairs
    monkeypatch.setattr(
        "ftkit.data.similarity.near_pairs", lambda *given, **more: calls.append(1) or search(*given, **more)
    )
    data.split(data.load_examples(chats(20)))
    assert len(calls) == 1


def test_a_cut_that_the_file_brings_was_not_searched():
    splits = data.split(data.load_examples("invoices"))
    assert (splits.searched, splits.repeats) == (None, ())
    assert data.split(data.load_examples(chats(20)), near=None).searched is None


def named_rows(*names, rows=20):
    return data.load_examples([row | {"split": names[i % len(names)]} for i, row in enumerate(chats(rows))])


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "eval", "evaluation", "Validation", " DEV "])
def test_a_files_own_cut_holds_under_every_name_of_its_parts(name):
    splits = data.split(named_rows("train", "TRAIN", name, "Test"))
    assert {part: set(getattr(splits, part)["split"]) for part in ("train", "val", "test")} == {
        "train": {"train", "TRAIN"},
        "val": {name},
        "test": {"Test"},
    }


@pytest.mark.parametrize("column", ["Split", "subset", "partition"])
def test_a_column_like_split_is_a_cut_where_every_row_names_a_part(column):
    rows = named_rows("train", "dev", "train", "test").rename_column("split", column)
    assert set(data.split(rows).test[column]) == {"test"}
    mixed = rows.map(lambda row, i: {column: "hard" if i == 3 else row[column]}, with_indices=True)
    assert len(set(data.split(mixed).train[column])) > 1


@pytest.mark.parametrize(("there", "cut"), [("eval", "test"), ("testing", "val")])
def test_a_part_that_the_file_lacks_is_cut_from_train(there, cut):
    """Equal prompts stay together, and nothing is taken from the part that the file brings."""
    rows = [chat(f"Q{i // 2}", f"A{i}", split="train") for i in range(40)]
    given = data.load_examples([*rows, *(chat(f"T{i}", "A", split=there) for i in range(10))])
    splits = data.split(given)
    assert (len(splits.train), len(getattr(splits, cut))) == (36, 4)
    assert set(getattr(splits, cut)["split"]) == {"train"}
    asked = [{m[0]["content"] for m in part["messages"]} for part in (splits.train, splits.val, splits.test)]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    assert len(data.split(given, near=None).train) == 36


def test_names_of_no_part_are_named_and_left_out():
    with pytest.warns(FtkitWarning, match=r"'holdout' \(5 rows\), None \(5 rows\)\. These rows are left out"):
        splits = data.split(named_rows("train", "test", "holdout", None))
    assert len(splits.train) + len(splits.val) + len(splits.test) == 10


def test_a_split_column_that_names_no_part_cuts_nothing_and_is_named():
    with pytest.warns(FtkitWarning, match="'maths' .*all rows are cut anew"):
        assert len(data.split(named_rows("maths", "poems")).train) == 16


def test_a_file_without_rows_to_train_on_is_refused_and_the_advice_works():
    rows = named_rows("test", "dev")
    with pytest.raises(DataError, match=r"names test and val, but no row to train on.*remove_columns\('split'\)"):
        data.split(rows)
    assert len(data.split(rows.remove_columns("split")).train) == 16


@pytest.mark.parametrize("seed", range(8))
def test_stratified_parts_hold_no_more_of_a_value_than_its_share(seed):
    """A partition that keeps equal prompts together, in which no value is crowded into a part."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(40), draw.choice("abc")) for _ in range(80)]
    rows = data.load_examples([chat(f"Q{n}", f"A{i}", kind=kind) for i, (n, kind) in enumerate(pairs)])
    splits = data.split(rows, val=0.2, test=0.2, seed=seed, near=None, stratify="kind")
    parts = [splits.train, splits.val, splits.test]
    prompts = [{m[0]["content"] for m in part["messages"]} for part in parts]
    assert sum(map(len, parts)) == len(pairs)
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    for part, kind in itertools.product(parts[1:], "abc"):
        assert part["kind"][:].count(kind) <= 0.2 * sum(k == kind for _, k in pairs) + 1


def test_stratified_parts_keep_the_shares_of_a_column():
    rows = data.load_examples([row | {"lang": ["de", "en", "en", "en"][i % 4]} for i, row in enumerate(chats(200))])
    splits = data.split(rows, stratify="lang")
    counted = [
        [part["lang"][:].count(lang) for lang in ("de", "en")] for part in (splits.train, splits.val, splits.test)
    ]
    assert counted == [[40, 120], [5, 15], [5, 15]]
    lists = rows.map(lambda row: {"tags": [row["lang"]]})
    assert len(data.split(lists, stratify="tags").test) == 20


def test_a_column_to_stratify_by_must_be_there_and_be_used():
    rows = named_rows("train", "val", "test")
    with pytest.raises(DataError, match=r"stratify='lang' is no column; there are: .*split"):
        data.split(rows, stratify="lang")
    with pytest.warns(FtkitWarning, match="cuts nothing: the split column does"):
        data.split(rows, stratify="split")


def test_short_rows_keep_what_the_search_found():
    """Rows that are too long go; groups of the rest are counted anew, and a chain without its middle falls apart."""
    core = [random_text(random.Random(n), 60) for n in range(3)]
    chain = [f"{core[0]} {' '.join(core[1].split()[:14])}", core[0], " ".join(core[0].split()[12:])]
    rows = [*(chat(text, f"answer {i}") for i, text in enumerate(chain)), *twin_rows()]
    splits = data.split(data.load_examples(rows))
    sizes = [sum(len(turn["content"]) for turn in turns) for turns in splits.train["messages"]]
    for most in (0, sorted(sizes)[len(sizes) // 2], max(sizes), max(sizes) + 1):
        short = splits.shorter_than(most)
        assert len(short.train) == sum(size < most for size in sizes)
        assert sorted(short.repeats) == sorted(repeated(short.train))
        assert short.searched == splits.searched
    few = splits.shorter_than(max(sizes) + 1, most=20)
    assert few.train[:] == splits.train[:20]
    assert sorted(few.repeats) == sorted(repeated(few.train))


def test_a_chain_without_its_middle_falls_apart():
    """A ~ B ~ C: with B gone for its length, A and C are no group."""
    core, end, middle = (random_text(random.Random(n), words) for n, words in ((1, 74), (2, 15), (3, 3)))
    question = [f"{core} {end}", f"{core} {middle} padding-padding-padding-padding-padding-padding", core]
    train = data.load_examples([chat(text, "yes") for text in question])
    sizes = [sum(len(turn["content"]) for turn in turns) for turns in train["messages"]]
    splits = data.Splits(train, train, train, 0.8, ((1, 2, 3),))
    assert sizes[0] == max(sizes)
    assert splits.shorter_than(max(sizes)).repeats == ((1, 2),)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def test_saved_splits_come_back_with_all_columns(tmp_path):
    """Calls and schemas are objects in the file; what Arrow fills in for rows without them is not written."""
    calling = chat("look", "", tools=json.dumps(TOOLS), id=1, note=None, tags=["a", "b"])
    calling["messages"][1]["tool_calls"] = json.dumps([CALL], ensure_ascii=False)
    rows = [calling, chat("Q", "A", id=None, note='x "y"', tags=[])]
    part = data.load_examples(rows)
    run = Run(tmp_path / "here")
    folder = data.save(data.Splits(part, part, part), run)
    first, second = map(json.loads, (folder / "train.jsonl").read_text().splitlines())
    assert first["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert (first["tools"], first["id"], second["id"]) == (TOOLS, 1, None)
    assert second["messages"] == rows[1]["messages"] and "tools" not in second
    back = data.load_splits(run).train
    assert back[:] == part[:]
    assert data.digest(back) == data.digest(part)


def test_an_older_file_stays_whole_when_writing_fails(tmp_path, monkeypatch):
    part = data.load_examples(chats(3))
    run = Run(tmp_path / "here")
    data.save(data.Splits(part, part, part), run)
    before = (run / "data/train.jsonl").read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError, match="disk is full"):
        data.save(data.Splits(part.select([0]), part, part), run)
    assert (run / "data/train.jsonl").read_bytes() == before
    assert sorted(path.name for path in (run / "data").glob("[!.]*")) == ["test.jsonl", "train.jsonl", "val.jsonl"]


def test_a_part_that_cannot_be_written_is_named(tmp_path):
    part = data.load_examples(chats(3))
    with pytest.raises(DataError, match="val has no rows"):
        data.save(data.Splits(part, part.select([]), part), Run(tmp_path / "here"))
    raw = part.add_column("raw", [b"x"] * 3)
    with pytest.raises(DataError, match=r"train row 1 cannot be written: JSON cannot hold bytes"):
        data.save(data.Splits(raw, part, part), Run(tmp_path / "here"))


def test_a_prompt_ends_before_the_last_answer_that_may_be_trained():
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First.", "train": None},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Draft.", "train": False},
    ]
    assert data.prompt(turns) == turns[:1]
    assert data.prompt(turns[:2]) == turns[:1]
    assert data.prompt({"messages": turns, "tools": TOOLS, "id": 7}) == {"messages": turns[:1], "tools": TOOLS}
    assert data.prompt({"messages": turns, "tools": None}) == {"messages": turns[:1]}
    assert data.prompt({"messages": [], "text": "A mill."}) == {"messages": [], "text": "A mill."}
    assert data.prompt([]) == []


def test_documents_are_split_told_apart_and_saved(tmp_path):
    """Rows of raw text have no messages: their text stands for them everywhere."""
    texts = [f"Mill number {i} stands by river {i * 7}, and its wheel has {i + 9} blades of oak." for i in range(30)]
    part = data.load_examples([{"text": text} for text in texts])
    parts = data.split(part)
    assert sorted(row["text"] for name in (parts.train, parts.val, parts.test) for row in name) == sorted(texts)
    assert data.digest(part) != data.digest(part.select(range(29, -1, -1)))
    assert len(data.leakage(part, part).exact) == 30
    assert data.leakage(parts.train, parts.test).exact == ()
    data.save(parts, Run(tmp_path / "here"))
    assert data.digest(data.load_splits(Run(tmp_path / "here")).train) == data.digest(parts.train)


def test_other_files_beside_the_rows_stay_and_saving_again_works(tmp_path):
    """A report that somebody put into `data` is nobody's to replace, and no reason to refuse."""
    run = Run.create("kept", tmp_path)
    splits = data.split(data.load_examples([{"prompt": f"Question {i}?", "completion": "Yes."} for i in range(9)]))
    data.save(splits, run)
    (run / "data/notes").mkdir()
    (run / "data/notes/report.json").write_text("{}")
    for _ in range(2):
        data.save(splits, run)
    assert (run / "data/notes/report.json").read_text() == "{}"
    (run / "data/train.jsonl").write_text("mine")
    with pytest.raises(StorageError, match=r"did not write what is in it: train\.jsonl"):
        data.save(splits, run)
