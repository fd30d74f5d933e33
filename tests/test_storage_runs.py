"""Files appear whole or not at all, and a run folder says what is finished."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from ftkit import files
from ftkit.config import TrainConfig
from ftkit.errors import DataError, MissingArtifact, StorageError
from ftkit.runs import Run


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    """A write that the system refuses half-way (here: a file size limit) changes nothing on disk."""
    script = textwrap.dedent(f"""
        import resource, signal
        from ftkit import files
        from ftkit.errors import StorageError
        files.write_text({str(tmp_path / "a.txt")!r}, "old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            files.write_text({str(tmp_path / "a.txt")!r}, "x" * 100_000)
        except StorageError as error:
            print("StorageError", error)
    """)
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.startswith("StorageError")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_no_space_left_is_explained(tmp_path):
    """/dev/full is the kernel's own full disk: every write there fails with ENOSPC."""
    with (
        pytest.raises(StorageError, match="disk is full"),
        files.disk_errors_explained(tmp_path),
        open("/dev/full", "w") as file,
    ):
        file.write("x")
        file.flush()


def test_a_folder_that_fails_half_way_never_shows(tmp_path):
    with pytest.raises(ZeroDivisionError), files.folder(tmp_path / "adapter") as working:
        (working / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for name in ("one", "two"):
        with files.folder(tmp_path / "adapter") as working:
            (working / name).write_text("x")
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("root", ["file/runs", "/sys/runs"])
def test_unwritable_root_says_what_to_do(tmp_path, root):
    (tmp_path / "file").write_text("a file where a folder is wanted")
    with pytest.raises(StorageError, match="another folder"):
        Run.create("x", tmp_path / root if root.startswith("file") else root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="may not write"):
        Run.create("x", tmp_path)


def test_require_names_the_step_that_writes_it(tmp_path):
    run = Run.create("demo", tmp_path)
    with pytest.raises(MissingArtifact, match=r"has no adapter.*09_train.*Run\.sample"):
        run.require("adapter")


def test_open_names_the_runs_that_are_there(tmp_path):
    Run.create("good", tmp_path).finish("train", steps=1)
    with pytest.raises(MissingArtifact, match="good"):
        Run.open(tmp_path / "bad")


def test_latest_is_the_one_that_finished_last(tmp_path):
    first, second = Run.create("a", tmp_path), Run.create("b", tmp_path)
    second.finish("train")
    os.utime(second / "run.json", (1, 1))
    first.finish("train")
    Run.create("unfinished", tmp_path)
    assert Run.latest(tmp_path).path.name == "a"


def test_latest_without_runs_says_how_to_get_one(tmp_path):
    with pytest.raises(MissingArtifact, match="00_quickstart"):
        Run.latest(tmp_path)


def test_finish_keeps_earlier_steps_and_reopen_takes_one_back(tmp_path):
    run = Run.create("x", tmp_path)
    run.finish("train", steps=3)
    run.finish("evaluate", exact_match=1.0)
    assert (run.facts["finished"], run.facts["train"]) == (["train", "evaluate"], {"steps": 3})
    run.reopen("train")
    assert (run.finished("train"), run.finished("evaluate")) == (False, True)


def test_versions_are_stored(tmp_path):
    run = Run.create("x", tmp_path)
    run.finish("train")
    assert {"python", "torch", "trl"} <= set(run.facts["versions"])


def test_damaged_run_json_says_what_to_do(tmp_path):
    run = Run.create("x", tmp_path)
    (run / "run.json").write_text('{"finished": ["tra')
    with pytest.raises(DataError, match="Delete it"):
        _ = run.facts


@pytest.mark.parametrize("text", ["[]", "null", '"a"', '{"format": "x"}', '{"format": null}', '{"finished": 3}'])
def test_run_json_of_another_shape_says_what_to_do(tmp_path, text):
    """It is JSON, but not what ftkit writes."""
    run = Run.create("x", tmp_path)
    (run / "run.json").write_text(text)
    with pytest.raises(DataError, match="Delete it"):
        run.finished("train")


def test_newer_run_folder_is_refused(tmp_path):
    run = Run.create("x", tmp_path)
    (run / "run.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="newer ftkit"):
        _ = run.facts


def test_older_run_folder_is_readable(tmp_path):
    """Before formats were counted `run.json` named none."""
    run = Run.create("x", tmp_path)
    (run / "run.json").write_text(json.dumps({"finished": ["train"], "train": {"steps": 3}}))
    assert run.finished("train")


def test_sweep_removes_what_a_killed_write_left_and_nothing_else(tmp_path):
    for name in (".adapter.x1", ".history.csv.x2", ".other.x3", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / ".history.csv.x4").touch()
    files.remove_leftovers(tmp_path, ("adapter", "history.csv"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.x3", "adapter"]


def test_hidden_files_are_not_listed(tmp_path):
    run = Run.create("x", tmp_path)
    (run / ".lock").touch()
    (run / "history.csv").touch()
    assert ".lock" not in run._repr_html_()
    assert "history.csv" in run._repr_html_()


def test_compare_lists_only_what_differs(tmp_path):
    a, b = Run.create("a", tmp_path), Run.create("b", tmp_path)
    TrainConfig(lora_r=8).save(a / "config.yaml")
    TrainConfig(lora_r=16).save(b / "config.yaml")
    assert Run.compare(a, b) == {"lora_r": (8, 16)}


def test_sample_is_a_finished_run():
    run = Run.sample()
    assert run.finished("train")
    assert run.require("adapter/adapter_model.safetensors").stat().st_size < 12 * 2**20


def test_weights_that_do_not_fit_are_a_storage_error_and_leave_nothing(tmp_path):
    """The library raises a class of its own when the system refuses a file of that size."""
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "import numpy, sys, pathlib; from safetensors.numpy import save_file; from ftkit import files; from ftkit.errors import StorageError\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "try:\n"
        "    with files.weight_errors_explained(path), files.folder(path) as working:\n"
        "        save_file({'a': numpy.zeros(100_000)}, working / 'x.safetensors')\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "adapter")], capture_output=True, text=True)
    assert "the disk is full or refuses a file of this size" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []
