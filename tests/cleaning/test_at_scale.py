"""datatrove's own four stages with our rows, words and bands find what the rule in memory finds."""

import json
import random
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from toys import altered, chat, chats

from ftkit import cleaning, data
from ftkit.cleaning import at_scale
from ftkit.cleaning.at_scale import Words
from ftkit.errors import DataError, MissingExtra

needs_datatrove = pytest.mark.skipif(not find_spec("datatrove"), reason="needs pip install 'ftkit[scale]'")

PIPELINE = """
import sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor as Local
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature)
from datatrove.pipeline.writers.jsonl import JsonlWriter
from ftkit.cleaning import at_scale

if __name__ == "__main__":
    work = Path(sys.argv[1])
    shards = tuple(sorted(work.glob("in/*.jsonl")))
    config, rows = at_scale.datatrove_config(), at_scale.DatatroveReader(shards)
    folders = [str(work / name) for name in ("signatures", "pairs", "clusters", "kept")]
    stages = [
        ([rows, MinhashDedupSignature(folders[0], config, language=at_scale.datatrove_words())], len(shards)),
        ([MinhashDedupBuckets(folders[0], folders[1], config=config, lines_to_buffer=100)], config.num_buckets),
        ([MinhashDedupCluster(folders[1], folders[2], config, lines_to_buffer=100)], 1),
        ([rows, MinhashDedupFilter(folders[2], lines_to_buffer=100),
          JsonlWriter(folders[3], "${rank}.jsonl", compression=None, expand_metadata=True)], len(shards)),
    ]
    for number, (steps, tasks) in enumerate(stages):
        Local(steps, tasks=tasks, workers=min(2, tasks), logging_dir=str(work / f"log{number}")).run()
"""


def write(folder, *shards):
    """Rows as JSONL files of a folder, by name in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part-{i}.jsonl" for i in range(len(shards))]
    for path, rows in zip(paths, shards, strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tuple(paths)


@pytest.fixture(scope="module")
def rows():
    """Forty chats, and twins of ten of them that differ in one word or in case: far above the threshold."""
    draw, found = random.Random(0), chats(40, seed=1)
    for i in range(10):
        question, answer = (turn["content"] for turn in found[i]["messages"])
        found.append(chat(question.upper() if i % 2 else altered(question, draw, 1), answer))
    return [dict(row, n=i) for i, row in enumerate(found)]


@needs_datatrove
@pytest.mark.slow
def test_datatrove_finds_the_same_clusters(tmp_path, rows):
    """Of each cluster one row stays, as in memory; which one is datatrove's choice."""
    write(tmp_path / "in", rows[:25], rows[25:])
    done = subprocess.run([sys.executable, "-c", PIPELINE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for path in sorted(tmp_path.glob("kept/*.jsonl")) for line in path.read_text().splitlines()]
    kept = [json.loads(line) for line in lines]

    examples = data.load_examples(rows)
    labels = data.near_pairs(data.Texts(examples)).clusters()
    ours = cleaning.clean(examples, [cleaning.near_duplicates()]).kept
    assert len(ours) == 40
    assert sorted(labels[row["n"]] for row in kept) == sorted(set(labels)) == sorted(ours["n"])
    assert data.load_examples(kept)[0]["messages"] == examples[kept[0]["n"]]["messages"]


@needs_datatrove
@pytest.mark.parametrize(
    "text",
    [
        "Ein kurzer Satz",
        "…!?",
        "一二三四五六七",
        "The\u200b QUICK brown ﬁsh, the quick brown fish",
        "a b c d e f g h " * 4,
    ],
)
def test_shingles_of_datatrove_are_ours(tmp_path, text):
    """Both cut the same 5-grams: as many distinct ones, and the same similarity to another text."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    config, words = at_scale.datatrove_config(), at_scale.datatrove_words()
    assert (config.num_buckets, config.hashes_per_bucket) == (data.SKETCH.bands, data.SKETCH.rows)
    step = MinhashDedupSignature(str(tmp_path), config, language=words)
    mine, other = (set(step.get_shingles(t).ravel().tolist()) for t in (text, text + " brown fish, the"))
    ours, other_ours = data.word_shingles(text), data.word_shingles(text + " brown fish, the")
    assert (len(mine), len(other)) == (len(ours), len(other_ours))
    assert len(mine & other) / max(len(mine | other), 1) == pytest.approx(data.jaccard(ours, other_ours))


@needs_datatrove
def test_a_task_reads_its_part_of_the_shards_and_lists_what_it_cannot_use(tmp_path):
    """Other columns survive, a row of another known format as well; each broken row is named with its reason."""
    alpaca = {"instruction": "Say it", "output": "a b c", "n": 2}
    shards = write(tmp_path / "in", [chat("one", "two", n=0)], [chat("three", "four", n=1)], [alpaca])
    with shards[0].open("ab") as file:
        file.write(b'{"messages": []}\n[1]\n\xff\n{"cut')
    reader = at_scale.DatatroveReader(shards, broken=tmp_path / "broken")
    documents = list(reader(None, rank=0, world_size=2))
    assert [(d.text, d.id, d.metadata["n"]) for d in documents] == [
        ("one\n\ntwo", "part-0.jsonl line 1", 0),
        ("Say it\n\na b c", "part-2.jsonl line 1", 2),
    ]
    assert documents[0].metadata["messages"] == chat("one", "two")["messages"]
    listed = (tmp_path / "broken" / "00000.txt").read_text().splitlines()
    assert [re.match(r"part-0.jsonl line \d", line)[0][-1] for line in listed] == ["2", "3", "4", "5"]


@needs_datatrove
def test_without_a_folder_for_them_broken_rows_stop_the_task(tmp_path):
    """No row goes in silence."""
    shards = write(tmp_path, [chat("one", "two"), {"messages": []}])
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used(.|\n)*broken='a folder'"):
        list(at_scale.DatatroveReader(shards)(None))


@needs_datatrove
def test_a_mapping_reads_any_columns(tmp_path):
    shards = write(tmp_path, [{"question": "one", "reply": "two", "n": 7}])
    (row,) = at_scale.DatatroveReader(shards, mapping={"prompt": "question", "answer": "reply"})(None)
    assert (row.text, row.metadata["n"]) == ("one\n\ntwo", 7)


def test_without_datatrove_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "datatrove"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'ftkit[scale]'")):
        at_scale.datatrove_config()


def test_a_short_text_is_one_shingle():
    """Words are the library's own; fewer than five are filled up."""
    text = "The quick brown fox jumps over it"
    assert Words().word_tokenize(text) == data.words(text)
    assert Words().word_tokenize("one two") == ["one", "two", "", "", ""]
    assert Words().word_tokenize("…") == []
