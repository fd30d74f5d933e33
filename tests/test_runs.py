"""A run folder says what is finished, and what is missing."""

import json
import os

import pytest

from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning, MissingArtifact, StorageError
from ftkit.runs import MARK, Run, remove


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


def test_a_run_inside_of_a_run_is_one_row(tmp_path):
    run = Run.create("x", tmp_path)
    for name in ("search/run.json", "search/trials/000/run.json", "search/trials/000/history.csv", "figures/a.png"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    page = run._repr_html_()
    assert "search/ (3 files)" in page
    assert "trials" not in page
    assert "figures/a.png" in page


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


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            ".",
            "..",
            "a/..",
            "../a",
            "/abs",
            "a/",
            "a//b",
            "none/a",
            "a\\b",
            "C:a",
            "C:\\a",
            ".git",
            "-r",
            "a.",
            "a ",
        ),
        *("a\0b", "a\nb", "\x1b[31m", "\ud800", "a\u2028b", "a\u202eb", "CON", "nul.txt", "x" * 151, "ü" * 100, 7),
    ],
)
def test_a_run_name_is_that_of_one_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="is no name of a run"):
        Run.create(name, tmp_path / "root")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train-constant 1e-4", "größer", "20260101-120000", "a.b", "x" * 150, "study/first"])
def test_other_names_are_taken(tmp_path, name):
    (tmp_path / "study").mkdir()
    assert Run.create(name, tmp_path).path == tmp_path / name


def test_a_folder_before_the_name_may_not_lead_out_of_the_root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="no folder link in its root"):
        Run.create("link/a", tmp_path / "root")


@pytest.mark.parametrize("there", ["notes.txt", "adapter/mine.bin", ".git/HEAD", "run.json"])
def test_a_folder_that_ftkit_did_not_make_is_refused(tmp_path, there):
    """Another program may call a file run.json too."""
    mine = tmp_path / "demo" / there
    mine.parent.mkdir(parents=True)
    mine.write_text('{"id": 7}')
    with pytest.raises(StorageError, match="ftkit did not make it"):
        Run.create("demo", tmp_path)
    with pytest.raises(StorageError, match="ftkit did not make it"):
        Run.open(tmp_path / "demo").refuse_foreign()
    if there == "run.json":
        with pytest.raises(StorageError, match="ftkit did not make it"):
            Run.open(tmp_path / "demo").finish("train")
    assert mine.read_text() == '{"id": 7}'


def test_an_empty_folder_gets_the_mark_and_a_marked_one_is_continued(tmp_path):
    (tmp_path / "demo").mkdir()
    run = Run.create("demo", tmp_path)
    assert (run / MARK).is_file()
    (run / "notes.txt").write_text("mine")
    Run.create("demo", tmp_path).refuse_foreign()


def test_a_run_of_an_earlier_version_has_no_mark_and_is_known_by_its_run_json(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.json").write_text(json.dumps({"finished": ["train"], "versions": {"ftkit": "0.1.0"}}))
    Run.create("old", tmp_path).refuse_foreign()
    Run.sample().refuse_foreign()


@pytest.mark.parametrize(
    "name", ["checkpoints", "adapter", "data", "eval", "figures", "history.csv", "run.json", ".lock"]
)
def test_a_link_in_a_run_is_not_written_through(tmp_path, name):
    run = Run.create("demo", tmp_path)
    (run / name).symlink_to(tmp_path)
    with pytest.raises(StorageError, match=f"{name} is a link"):
        run.refuse_foreign()


def test_only_a_marked_folder_is_removed(tmp_path):
    run = Run.create("demo", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(run.path)
    for path in (tmp_path / "mine", tmp_path / "link", run.path):
        remove(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "mine"]


def test_comparing_runs_of_other_versions_warns(tmp_path):
    a, b = Run.create("a", tmp_path), Run.create("b", tmp_path)
    for run in (a, b):
        run.finish("train", steps=3)
    Run.compare(a, b)
    facts = b.facts
    facts["versions"]["ftkit"] = "0.0.1"
    (b / "run.json").write_text(json.dumps(facts))
    with pytest.warns(FtkitWarning, match=r"other versions \(ftkit .* and 0\.0\.1\)"):
        Run.compare(a, b)


def test_run_json_repeats_no_secret(tmp_path):
    run = Run.create("x", tmp_path)
    run.finish("train", server="https://ada:pass@host/v1", note="hf_abcdefghijklmnop", api_key="hunter2", steps=3)
    text = (run / "run.json").read_text()
    assert not [secret for secret in ("ada", "pass", "hf_", "hunter2") if secret in text]
    assert run.facts["train"]["steps"] == 3
