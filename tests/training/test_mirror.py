"""The second copy of a run: complete, bounded, verified, never in the way, and good to start from."""

import shutil
import subprocess
import sys
import textwrap

import pytest
from toys import CHECKPOINT_FACTS, CHECKPOINT_NAMES, make_checkpoint

from ftkit import training
from ftkit.errors import FtkitWarning, StorageError
from ftkit.runs import Run
from ftkit.training import HistoryPoint, checkpoints
from ftkit.training.checkpoints import Mirror, newest
from ftkit.training.history import write_points


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, not finished."""
    run = Run.create("demo", tmp_path / "runs")
    for step in (5, 10):
        make_checkpoint(run / "checkpoints", step)
    write_points(run / "history.csv", [HistoryPoint(step, 1.0) for step in range(1, 11)])
    return run


@pytest.fixture
def copy(run, tmp_path):
    return Mirror.open(tmp_path / "drive", run)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_it_holds_the_same_checkpoints_and_history(run, copy):
    assert copy.push(run)
    assert names(copy.path / "checkpoints") == ["checkpoint-10", "checkpoint-5"]
    assert training.problem(copy.path / "checkpoints/checkpoint-10") is None
    assert (copy.path / "history.csv").read_text() == (run / "history.csv").read_text()


def test_it_stays_bounded_with_the_run(run, copy):
    for step in (15, 20, 25):
        copy.push(run)
        make_checkpoint(run / "checkpoints", step)
    assert copy.push(run)
    assert names(copy.path / "checkpoints") == ["checkpoint-20", "checkpoint-25"]


def test_a_lost_run_starts_from_it(run, copy):
    """As on a new Colab machine, where only the Drive is left."""
    copy.push(run)
    shutil.rmtree(run.path)
    fresh = Run.create("demo", run.path.parent)
    assert copy.restore(fresh)
    assert newest(fresh / "checkpoints").name == "checkpoint-10"
    assert (fresh / "history.csv").exists()


def test_a_run_that_is_ahead_keeps_its_own(run, copy):
    copy.push(run)
    make_checkpoint(run / "checkpoints", 15)
    assert not copy.restore(run)
    assert newest(run / "checkpoints").name == "checkpoint-15"


@pytest.mark.filterwarnings("ignore::ftkit.errors.FtkitWarning")
def test_a_damaged_checkpoint_of_the_run_is_replaced_by_the_copy(run, copy):
    copy.push(run)
    (run / "checkpoints/checkpoint-10/optimizer.pt").write_bytes(b"cut")
    assert copy.restore(run)
    assert newest(run / "checkpoints").name == "checkpoint-10"


@pytest.mark.filterwarnings("ignore::ftkit.errors.FtkitWarning")
def test_a_damaged_copy_is_not_taken(run, copy):
    copy.push(run)
    (copy.path / "checkpoints/checkpoint-10/optimizer.pt").write_bytes(b"cut")
    shutil.rmtree(run.path)
    fresh = Run.create("demo", run.path.parent)
    assert copy.restore(fresh)
    assert newest(fresh / "checkpoints").name == "checkpoint-5"


def test_a_folder_that_vanishes_warns_and_is_made_up_for(run, copy):
    """The folder itself is never made anew: on Colab that would write beside the unmounted drive, and look well."""
    copy.push(run)
    shutil.rmtree(copy.folder)
    make_checkpoint(run / "checkpoints", 15)
    with pytest.warns(FtkitWarning, match=r"not up to date: .*drive is gone.* the next checkpoint tries again"):
        assert not copy.push(run)
    assert not copy.folder.exists()
    copy.folder.mkdir()
    assert copy.push(run)
    assert names(copy.path / "checkpoints") == ["checkpoint-10", "checkpoint-15"]


def test_a_full_drive_warns_and_leaves_nothing_half(run, tmp_path):
    """A file size limit stands for the full drive: the copy is refused half-way, and the older state stays."""
    script = textwrap.dedent(f"""
        import resource, signal, warnings
        from ftkit.training.checkpoints import Mirror
        from ftkit.runs import Run
        run = Run.open({str(run.path)!r})
        (run / "checkpoints/checkpoint-10/big.bin").write_bytes(b"x" * 100_000)
        from ftkit.training import checkpoints
        checkpoints.seal(run / "checkpoints/checkpoint-10", {CHECKPOINT_FACTS!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            print(Mirror.open({str(tmp_path / "drive")!r}, run).push(run), caught[0].message)
    """)
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.startswith("False The mirror")
    assert "Training goes on" in out
    assert newest(tmp_path / "drive/demo/checkpoints") in (
        None,
        tmp_path / "drive/demo/checkpoints/checkpoint-5",
    )
    assert not list((tmp_path / "drive/demo/checkpoints").glob(".*"))


def test_what_is_read_back_is_compared(run, copy, monkeypatch):
    """A drive that takes the bytes and gives back others is found out."""
    monkeypatch.setattr(
        checkpoints.shutil, "copytree", lambda source, target: shutil.copyfile(source / CHECKPOINT_NAMES[0], target)
    )
    with pytest.warns(FtkitWarning, match="came out different"):
        assert not copy.push(run)
    assert names(copy.path / "checkpoints") == []


def test_a_finished_run_is_copied_whole_and_comes_back_finished(run, copy):
    (run / "adapter").mkdir()
    (run / "adapter/adapter_model.safetensors").write_bytes(b"weights")
    run.finish("train", steps=10)
    copy.push(run)
    shutil.rmtree(run.path)
    fresh = Run.create("demo", run.path.parent)
    assert copy.restore(fresh)
    assert fresh.finished("train")
    assert (fresh / "adapter/adapter_model.safetensors").read_bytes() == b"weights"


def test_forgetting_leaves_other_runs_alone(run, copy):
    copy.push(run)
    (copy.folder / "other").mkdir()
    copy.clear()
    assert newest(copy.path / "checkpoints") is None
    assert names(copy.folder) == ["demo", "other"]


def test_a_drive_that_is_not_mounted_is_refused_at_the_start(run, tmp_path):
    with pytest.raises(StorageError, match="Mount the drive"):
        Mirror.open(tmp_path / "no/such/drive", run)


def test_the_run_itself_is_no_mirror(run):
    with pytest.raises(StorageError, match="where the run itself lies"):
        Mirror.open(run.path.parent, run)
