"""A run folder says what is finished, and what is missing."""

import json
import os

import pytest

from ftkit.config import TrainConfig
from ftkit.errors import DataError, MissingArtifact, StorageError
from ftkit.runs import Run


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


@pytest.mark.parametrize(
    "text",
    ['{"finished": ["tra', "", b"\xff\xfe", b"\x00", "[" * 100_000, '{"finished": [], "x": ' + "9" * 5000 + "}"],
    ids=range(6),
)
def test_damaged_run_json_says_what_to_do(tmp_path, text):
    run = Run.create("x", tmp_path)
    (run / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
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
