"""Deduplication with datatrove: the same shingles and first rows as in-process, restartable, explained."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest

from ftkit import cleaning, data
from ftkit.cleaning import at_scale
from ftkit.cleaning.at_scale import Words, deduplicate, export_shards, stages
from ftkit.data import BANDS, Texts, text_of
from ftkit.errors import ConfigError, DataError, MissingExtra, StorageError

needs_datatrove = pytest.mark.skipif(not find_spec("datatrove"), reason="needs pip install 'ftkit[scale]'")
SLURM = {"time": "00:10:00", "partition": "cpu"}


def chat(text, **more):
    """A text as a chat; its words stay in their order."""
    cut = text.find(" ", len(text) // 2)
    question, answer = text[:cut], text[cut:]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def write(folder, shards):
    """Rows as JSONL files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, rows in enumerate(shards):
        (folder / f"part-{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def numbers(files):
    """The column `n` of all rows, in the order of the files."""
    return [json.loads(line)["n"] for path in files for line in Path(path).read_text().splitlines()]


def texts(count, seed=0):
    """Random texts of 80 words from a vocabulary of 5,000."""
    rng = random.Random(seed)
    return [[f"w{rng.randrange(5000)}" for _ in range(80)] for _ in range(count)]


def families(seed=1):
    """Texts with planted twins: 1,600 originals, and 1 to 3 twins of every second one; shuffled, as (family, words)."""
    rng = random.Random(seed)
    rows = []
    for family, original in enumerate(texts(1600, seed)):
        rows.append((family, original))
        for _ in range((family % 2) * rng.choice([1, 1, 2, 3])):
            twin = list(original)
            kind = rng.randrange(5)
            if kind == 0:
                twin[-1] = "tail"  # Jaccard 75 / 77
            elif kind == 1:
                twin = [word.upper() for word in twin]  # the same words
            elif kind == 2:
                twin[40] = twin[41] = f"x{rng.random()}"  # 70 / 82: adjacent words
            else:
                for place in rng.sample(range(4, 76), kind - 1):  # mostly 66 / 86 or 61 / 91: below 0.8
                    twin[place] = f"y{rng.random()}"
            rows.append((family, twin))
    rng.shuffle(rows)
    return rows


def clusters_of(work, sizes):
    """For each row the first row of its cluster, as datatrove found them."""
    import numpy as np

    begins, first, labels = np.cumsum([0, *sizes]), {}, list(range(sum(sizes)))
    for path in sorted(Path(work).glob("clusters/*.clusters")):
        for position, cluster in np.fromfile(path, dtype="<u4").reshape(-1, 2).tolist():
            row = int(begins[int(path.stem)]) + position
            labels[row] = first.setdefault(cluster, row)
    return labels


def near(rows, shingles):
    """Exact Jaccard similarity of all pairs within a family, by position."""
    members, found = {}, {}
    for i, (family, _) in enumerate(rows):
        members.setdefault(family, []).append(i)
    for group in members.values():
        found |= {pair: data.jaccard(shingles[pair[0]], shingles[pair[1]]) for pair in combinations(group, 2)}
    return found


@needs_datatrove
@pytest.mark.slow
def test_both_paths_differ_only_near_the_threshold(tmp_path, capfd):
    """Ours verifies by exact Jaccard, datatrove does not: rows on which they differ have a twin between 0.6 and 0.9."""
    rows = families()
    examples = data.load_examples([chat(" ".join(words), n=i) for i, (_, words) in enumerate(rows)])
    assert len(examples) >= 2_000
    shards = export_shards(examples, tmp_path / "in", shards=4)
    sizes = [len(path.read_text().splitlines()) for path in shards]
    report = deduplicate(tmp_path / "in", tmp_path / "out", workers=2)
    assert capfd.readouterr() == ("", "")

    ours = data.near_pairs(Texts(examples)).clusters()
    theirs = clusters_of(tmp_path / "out.work", sizes)
    assert cleaning.clean(examples, [cleaning.near_duplicates()]).kept["n"] == [
        i for i, first in enumerate(ours) if first == i
    ]
    assert numbers(report.files) == [i for i, first in enumerate(theirs) if first == i]  # the first stays, in order
    assert (report.rows_in, report.rows_kept, report.broken) == (len(rows), len(set(theirs)), 0)
    assert report.duplicates == report.rows_in - report.rows_kept

    pairs = near(rows, [data.word_shingles(text) for text in Texts(examples)])
    doubtful = {i for pair, value in pairs.items() if 0.6 <= value <= 0.9 for i in pair}
    alone = set(range(len(rows))) - {i for pair in pairs for i in pair}
    differ = {i for i in range(len(rows)) if ours[i] != theirs[i]}
    below = sum(0.6 <= value < 0.8 for value in pairs.values())
    joined = sum(theirs[a] == theirs[b] for a, b in pairs)
    print(
        f"\n{report}\nours keeps {len(set(ours))}, theirs {len(set(theirs))}; {len(differ)} of {len(rows)} rows differ; "
        f"{below} pairs at 0.6 to 0.8; {joined} of {len(pairs)} pairs joined by datatrove, "
        f"{sum(ours[a] == ours[b] for a, b in pairs)} by ours"
    )
    assert differ and differ <= doubtful
    assert all(ours[a] == ours[b] and theirs[a] == theirs[b] for (a, b), value in pairs.items() if value >= 0.95)
    assert all(ours[i] == theirs[i] == i for i in alone)
    assert {rows[i][0] for i in range(len(rows))} == {rows[i][0] for i in set(theirs)}  # no family is lost


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
    write(tmp_path / "in", [[chat("one two three")]])
    step = stages(tmp_path / "in", tmp_path / "out")[0].pipeline[1]
    mine, other = (set(step.get_shingles(t).ravel().tolist()) for t in (text, text + " brown fish, the"))
    ours, other_ours = data.word_shingles(text), data.word_shingles(text + " brown fish, the")
    assert (len(mine), len(other)) == (len(ours), len(other_ours))
    assert len(mine & other) / max(len(mine | other), 1) == pytest.approx(data.jaccard(ours, other_ours))


@needs_datatrove
def test_stages_depend_on_each_other_and_take_16_bands(tmp_path):
    """Four executors, each after the one before; none has run."""
    write(tmp_path / "in", [[chat("one two three")], [chat("four five six")], [chat("seven eight nine")]])
    built = stages(tmp_path / "in", tmp_path / "out", tasks=2)
    assert [stage.tasks for stage in built] == [2, BANDS, 1, 2]
    assert [stage.depends for stage in built] == [None, *built[:3]]
    assert not (tmp_path / "out").exists()


@needs_datatrove
def test_slurm_and_ray_executors_are_built_without_a_cluster(tmp_path):
    """Options reach the batch script, and what travels to the nodes can be pickled."""
    import dill

    source = write(tmp_path / "in", [[chat("one two three")]])
    options = {**SLURM, "mem_per_cpu_gb": 3}
    slurm = stages(source, tmp_path / "a", executor="slurm", slurm=options, workers=7)
    script = slurm[1].get_launch_file_contents(slurm[1].get_sbatch_args(BANDS), "true")
    assert {"#SBATCH --partition=cpu", "#SBATCH --mem-per-cpu=3G", "#SBATCH --array=0-15%7"} <= set(script.splitlines())
    assert dill.loads(dill.dumps(slurm[0])).pipeline[0] == slurm[0].pipeline[0]
    ray = stages(source, tmp_path / "b", executor="ray", ray={"cpus_per_task": 2})
    assert [type(stage).__name__ for stage in ray] == ["RayPipelineExecutor"] * 4


@needs_datatrove
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"executor": "spark"}, "local, slurm, ray"),
        ({"executor": "slurm"}, "'time': ..., 'partition': ..."),
        ({"executor": "slurm", "slurm": {**SLURM, "memory": 3}}, "mem_per_cpu_gb"),
        ({"executor": "slurm", "slurm": {**SLURM, "tasks": 3}}, "no such option"),
        ({"slurm": SLURM}, "executor='slurm'"),
        ({"workers": 0}, "workers=0"),
        ({"tasks": 0}, "tasks=0"),
        ({"work_folder": "in"}, "must be three"),
    ],
)
def test_bad_settings_are_named(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in", [[chat("one two three")]])
    with pytest.raises(ConfigError, match=re.escape(says)):
        stages("in", "out", **options)


def test_bad_inputs_are_explained(tmp_path):
    """No folder, a file, no JSONL, empty files, rows of no known format."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "rows.csv").write_text("a,b\n")
    (tmp_path / "empty" / "none.jsonl").write_text("")
    strange = write(tmp_path / "strange", [[{"question": "q", "reply": "r"}]])
    for source, says in (
        (tmp_path / "nowhere", "does not exist; wanted a folder"),
        (tmp_path / "empty" / "rows.csv", "is a file; wanted a folder"),
        (tmp_path / "empty", "holds: none.jsonl, rows.csv"),
        (strange, "none of its first rows can be used. line 1: Unknown format"),
    ):
        with pytest.raises(DataError, match=re.escape(says)):
            deduplicate(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_used_output_folder_is_refused(tmp_path):
    source = write(tmp_path / "in", [[chat("one two three")]])
    write(tmp_path / "out", [[chat("mine")]])
    with pytest.raises(StorageError, match=r"out is not empty \(part-0.jsonl\)"):
        deduplicate(source, tmp_path / "out")


@needs_datatrove
def test_a_work_folder_of_other_shards_is_refused(tmp_path):
    """A shard that changed since would be mixed with what was computed from the old one."""
    source = write(tmp_path / "in", [[chat("one two three")]])
    stages(source, tmp_path / "out")
    stages(source, tmp_path / "out")
    write(source, [[chat("one two thrEE")]])
    with pytest.raises(StorageError, match="belongs to another run: shards differ"):
        stages(source, tmp_path / "out")


def test_without_datatrove_the_extra_is_named(tmp_path, monkeypatch):
    source = write(tmp_path / "in", [[chat("one two three")]])
    for name in [name for name in sys.modules if name.split(".")[0] == "datatrove"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'ftkit[scale]'")):
        deduplicate(source, tmp_path / "out")


def test_export_keeps_order_and_leaves_equal_files_alone(tmp_path):
    """Shards hold all rows in order; exporting again does not touch them; foreign JSONL is not mixed in."""
    examples = data.load_examples([chat(f"text number {i} ü", n=i) for i in range(2500)])
    paths = export_shards(examples, tmp_path / "s", shards=3)
    assert numbers(paths) == list(range(2500))
    assert [len(path.read_text().splitlines()) for path in paths] == [833, 833, 834]
    assert data.load_examples(paths[0])[7] == examples[7]
    before = [path.stat().st_mtime_ns for path in paths]
    assert export_shards(examples, tmp_path / "s", shards=3) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    with pytest.raises(StorageError, match=r"other JSONL files: shard-00002\.jsonl"):
        export_shards(examples, tmp_path / "s", shards=2)
    with pytest.raises(DataError, match="no rows"):
        export_shards(examples.select([]), tmp_path / "t")


@needs_datatrove
@pytest.mark.slow
def test_rows_of_all_kinds_are_accounted_for(tmp_path):
    """Broken rows are counted and listed, short and wordless rows stay apart, other columns survive, formats are mixed."""
    alpaca = {"instruction": "Say it " + "word " * 9, "output": "a b c d e f", "n": 1}
    good = [
        chat("one two three", n=2),
        chat("ONE two three!", n=3),
        chat("...!", n=4),
        chat("...!", n=5),
        alpaca | {"n": 6},
    ]
    source = write(tmp_path / "in", [[alpaca], good, [chat("one two three four", n=7)]])
    with (source / "part-1.jsonl").open("ab") as file:
        file.write(b'{"messages": []}\n[1]\n\xff\n{"cut')
    (source / "part-9.jsonl").write_text('{"messages": []}\n')  # a shard of which nothing can be used
    report = deduplicate(source, tmp_path / "out")
    assert (report.rows_in, report.rows_kept, report.duplicates, report.broken) == (12, 5, 2, 5)
    assert numbers(report.files) == [1, 2, 4, 5, 7]
    assert data.load_examples(report.files[0])[0]["messages"][1]["content"] == "a b c d e f"
    listed = (tmp_path / "out.work" / "broken" / "00001.txt").read_text()
    assert [line.split(" has ")[0].split(" is ")[0] for line in listed.splitlines()] == [
        f"part-1.jsonl line {i}" for i in (6, 7, 8, 9)
    ]
    assert "kept 5 of 12 rows (41.7%): 2 near-duplicates and 5 broken rows left out" in str(report)


@needs_datatrove
@pytest.mark.slow
def test_mapping_and_fewer_tasks_than_shards(tmp_path):
    """Neighbouring shards share a task, so the first row in the order of the shards stays."""
    rows = [{"question": " ".join(words), "reply": "yes", "n": i} for i, words in enumerate(texts(5))]
    twin = rows[0] | {"n": 9}
    source = write(tmp_path / "in", [rows[:2], rows[2:3], [twin], rows[3:]])
    columns = {"prompt": "question", "answer": "reply"}
    report = deduplicate(source, tmp_path / "out", tasks=2, mapping=columns, work_folder=tmp_path / "w")
    assert numbers(report.files) == [0, 1, 2, 3, 4]
    assert len(report.files) == 2
    assert (tmp_path / "w" / "datatrove.log").stat().st_size > 0


@needs_datatrove
@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_lost_output_is_made_again(tmp_path):
    source = write(tmp_path / "in", [[chat(" ".join(words), n=i)] for i, words in enumerate(texts(3))])
    first = deduplicate(source, tmp_path / "out")
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.work" / "stages").rglob("completions/*")}
    first.files[1].unlink()
    again = deduplicate(source, tmp_path / "out")
    assert numbers(again.files) == [0, 1, 2]
    assert again.rows_in == 3
    redone = {path for path, when in marks.items() if path.stat().st_mtime_ns != when}
    assert redone == {tmp_path / "out.work" / "stages" / "filter" / "completions" / "00001"}


@needs_datatrove
@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_goes_on(tmp_path):
    """Kill -9 of the caller ends datatrove's processes too; the next call keeps what was finished."""
    source = write(
        tmp_path / "in", [[chat(" ".join(words), n=i) for i, words in enumerate(texts(400, s))] for s in range(6)]
    )
    script = tmp_path / "unguarded.py"  # no `if __name__ == "__main__"`: a script that a newcomer would write
    script.write_text(
        f"from ftkit import cleaning\nprint(cleaning.deduplicate({str(source)!r}, {str(tmp_path / 'out')!r}))\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(at_scale.__file__).parents[2])}
    caller = subprocess.Popen([sys.executable, str(script)], env=env)
    done = tmp_path / "out.work" / "stages" / "signatures" / "completions"
    deadline = time.monotonic() + 120
    while not list(done.glob("*")) and caller.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    marks = {path: path.stat().st_mtime_ns for path in done.glob("*")}
    assert marks
    while (left := processes_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    finished = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert re.match(r"kept 2,400 of 2,400 rows \(100.0%\)", finished.stdout), finished.stderr
    assert finished.stderr == ""
    assert all(path.stat().st_mtime_ns == when for path, when in marks.items())


def processes_of(folder):
    """Processes that name this folder on their command line or work on a file in it."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            used = [*process.cmdline(), *(file.path for file in process.open_files())]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(folder) in text for text in used):
            found.append(process.pid)
    return found


@needs_datatrove
@pytest.mark.slow
def test_what_stops_datatrove_is_told(tmp_path):
    """The reason comes out of the worker's process, with the log's place."""
    source = write(tmp_path / "in", [[chat("one two three")], [chat("four five six")]])
    (source / "part-1.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"part-1.jsonl holds no rows.\n.*datatrove.log says more"):
        deduplicate(source, tmp_path / "out")


@needs_datatrove
def test_a_second_run_at_the_same_time_is_refused(tmp_path):
    from filelock import FileLock

    source = write(tmp_path / "in", [[chat("one two three")]])
    (tmp_path / "out.work").mkdir()
    with FileLock(tmp_path / "out.work" / "lock"), pytest.raises(StorageError, match="Another run is at work"):
        deduplicate(source, tmp_path / "out")


@needs_datatrove
@pytest.mark.slow
def test_it_runs_in_a_notebook(tmp_path):
    """Both ways, the call and the executors themselves, work in a kernel."""
    import nbformat
    from nbclient import NotebookClient

    source = write(tmp_path / "in", [[chat(" ".join(words), n=i) for words in texts(2)] for i in range(2)])
    cells = [
        f"from ftkit import cleaning\nreport = cleaning.deduplicate({str(source)!r}, {str(tmp_path / 'a')!r})\nprint(report)",
        f"_ = cleaning.stages({str(source)!r}, {str(tmp_path / 'b')!r})[-1].run()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    assert [output["text"][:22] for output in book.cells[0].outputs] == ["kept 2 of 4 rows (50.0"]
    assert (tmp_path / "a" / "00000.jsonl").read_bytes() == (tmp_path / "b" / "00000.jsonl").read_bytes()


SBATCH = """#!/bin/bash
# A stand-in for Slurm: runs the tasks of an array here, one after the other, and prints what sbatch prints.
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
grep -q merge_stats "$script" || for task in $(seq 0 "$last"); do
    RUN_OFFSET=0 SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script" >> "$SLURM_LOG" 2>&1 || exit 1
done
echo Submitted batch job 17
"""


@needs_datatrove
@pytest.mark.slow
def test_slurm_scripts_do_the_same_work(tmp_path, monkeypatch):
    """The batch scripts that datatrove writes, run by a stand-in for sbatch, give what the local executor gives."""
    for name, text in (("sbatch", SBATCH), ("scontrol", "#!/bin/bash\necho here\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(at_scale.__file__).parents[2]))
    monkeypatch.setenv("SLURM_LOG", str(tmp_path / "slurm.log"))
    rows = [chat(" ".join(words), n=i) for i, words in enumerate(texts(20) + texts(5))]
    source = write(tmp_path / "in", [rows[:10], rows[10:]])
    options = {**SLURM, "tasks_per_job": BANDS, "with_srun": False}
    last = stages(source, tmp_path / "out", executor="slurm", slurm=options)[-1]
    import_module("loguru").logger.remove()  # its handler may hold another test's captured stderr
    last.run()
    assert numbers(sorted((tmp_path / "out").glob("*.jsonl"))) == list(range(20)), (tmp_path / "slurm.log").read_text()[
        -3000:
    ]


def test_a_text_reads_the_same_in_both_paths():
    """The text that datatrove sees is what the in-process rule compares."""
    row = chat("The quick brown fox jumps over it")
    assert Words().word_tokenize(text_of(row["messages"])) == data.words(text_of(row["messages"]))
    assert Words().word_tokenize("one two") == ["one", "two", "", "", ""]
