"""A checkpoint is complete or absent: every cut and every changed byte is seen, and the next older one is used.

The mirror, a second copy of a run, is complete, bounded, verified, never in the way, and good to start from.
"""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import CHECKPOINT_FACTS, CHECKPOINT_NAMES, make_checkpoint

from ftkit import training
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning, StorageError
from ftkit.files import SEAL, remove_leftovers
from ftkit.runs import Run
from ftkit.training import HistoryPoint, checkpoints
from ftkit.training.checkpoints import Mirror, newest, partial_folder, refuse_other
from ftkit.training.history import write_points


def test_the_newest_is_chosen_and_the_number_is_bounded(tmp_path):
    for step in (5, 10, 100):
        make_checkpoint(tmp_path, step)
    assert [p.name for p in training.all_in(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    assert newest(tmp_path) == tmp_path / "checkpoint-100"


def test_what_is_half_written_does_not_count(tmp_path):
    """There the trainer writes; a kill may have left anything."""
    working = partial_folder(tmp_path) / "checkpoint-5"
    working.mkdir(parents=True)
    (working / "optimizer.pt").write_bytes(b"half")
    assert newest(tmp_path) is None
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::ftkit.errors.FtkitWarning")
@pytest.mark.parametrize("name", [*CHECKPOINT_NAMES, SEAL])
def test_cut_at_any_byte_the_older_one_is_used(tmp_path, name):
    """A file cut at any of its bytes, the mark among them, makes a checkpoint one that does not count."""
    older, newer = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 10)
    whole = (newer / name).read_bytes()
    assert newest(tmp_path) == newer
    end = len(whole.rstrip())  # the newline that ends the mark is no part of what it says
    for length in range(end):
        (newer / name).write_bytes(whole[:length])
        assert newest(tmp_path) == older, length
    (newer / name).write_bytes(whole)
    assert newest(tmp_path) == newer


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(name=st.sampled_from(CHECKPOINT_NAMES), place=st.integers(0, 400), change=st.integers(1, 255))
def test_a_changed_byte_is_seen(tmp_path, name, place, change):
    """Any byte, changed in any way, is told from what was written."""
    shutil.rmtree(tmp_path / "checkpoint-5", ignore_errors=True)
    path = make_checkpoint(tmp_path, 5) / name
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    assert training.problem(path.parent) == f"{name} does not have the digest that was recorded for it"


def test_a_damaged_one_is_named_with_the_reason(tmp_path):
    older, newer = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 10)
    (newer / "optimizer.pt").unlink()
    with pytest.warns(FtkitWarning, match=r"checkpoint-10 is not whole \(optimizer.pt is missing\): an older"):
        assert newest(tmp_path) == older


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_like_a_checkpoint(tmp_path, monkeypatch):
    """What is left of it has a hidden name, and is cleared with other leftovers."""
    place = make_checkpoint(tmp_path, 5)
    with monkeypatch.context() as cut_short:
        cut_short.setattr(checkpoints.shutil, "rmtree", lambda path, **_: None)
        checkpoints.remove(place)
    assert training.all_in(tmp_path) == []
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_its_mark_is_not_whole(tmp_path):
    place = make_checkpoint(tmp_path, 5)
    (place / SEAL).unlink()
    assert "missing" in training.problem(place)


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    place = make_checkpoint(tmp_path, 5)
    (place / SEAL).write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="newer ftkit"):
        newest(tmp_path)


def test_a_checkpoint_of_an_older_version_is_read(tmp_path):
    """Before digests were kept the mark held the facts alone, and the settings stood in the run's config.yaml."""
    place = make_checkpoint(tmp_path, 5)
    (place / SEAL).write_text(json.dumps(CHECKPOINT_FACTS))
    saved = TrainConfig(lora_r=8).save(tmp_path / "config.yaml")
    assert newest(tmp_path) == place
    refuse_other(place, TrainConfig(lora_r=8), CHECKPOINT_FACTS, saved)
    with pytest.raises(ConfigError, match=r"lora_r \(8 then, 16 now\)"):
        refuse_other(place, TrainConfig(), CHECKPOINT_FACTS, saved)


@pytest.mark.parametrize("settings", [{"new_knob": 3}, {"lora_r": 1000}, ["lora_r"]])
def test_settings_that_this_version_does_not_know_say_so(tmp_path, settings):
    """The checkpoint is named, and the way out; a bare "no setting" would look like the reader's own mistake."""
    place = make_checkpoint(tmp_path, 5, facts={**CHECKPOINT_FACTS, "settings": settings})
    with pytest.raises(
        ConfigError, match=r"checkpoint-5 was written by a version of ftkit with other settings .*resume=False"
    ):
        refuse_other(place, TrainConfig(), CHECKPOINT_FACTS, tmp_path / "config.yaml")


def test_the_settings_in_the_mark_count_and_not_a_file_edited_since(tmp_path):
    """`config.yaml` is a file that people edit; what a checkpoint was trained with stands in the checkpoint."""
    place = make_checkpoint(tmp_path, 5, facts={**CHECKPOINT_FACTS, "settings": {"lora_r": 8}})
    edited = TrainConfig(lora_r=32).save(tmp_path / "config.yaml")
    refuse_other(place, TrainConfig(lora_r=8), CHECKPOINT_FACTS, edited)
    with pytest.raises(ConfigError, match=r"lora_r \(8 then, 32 now\)"):
        refuse_other(place, TrainConfig(lora_r=32), CHECKPOINT_FACTS, edited)


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ("data_digest", "other data"),
        ("base_model", r"another base_model \(m then, x now\)"),
        ("backend", r"another backend \(transformers then, x now\)"),
        ("base_weights", r"other weights of the base model, under the same name \(w then, x now\)"),
        ("token_digest", "other tokens or labels, of another chat template"),
    ],
)
def test_every_fact_that_differs_is_named(tmp_path, fact, said):
    place = make_checkpoint(tmp_path, 5, facts={**CHECKPOINT_FACTS, "settings": {}})
    with pytest.raises(ConfigError, match=said):
        refuse_other(place, TrainConfig(), {**CHECKPOINT_FACTS, fact: "x"}, tmp_path / "config.yaml")


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
        from ftkit import files
        files.seal(run / "checkpoints/checkpoint-10", {CHECKPOINT_FACTS!r})
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


def test_a_checkpoint_without_its_seal_is_moved_aside_and_told(tmp_path):
    """Nobody knows who wrote it; one with a stranger in it is kept as well."""
    for step, edit in (
        (5, lambda place: (place / SEAL).unlink()),
        (10, lambda place: (place / "notes").write_text("x")),
    ):
        place = make_checkpoint(tmp_path, step, keep=9)
        edit(place)
        (tmp_path / f"{place.name}.not-ours").mkdir()
        with pytest.warns(FtkitWarning, match=rf"kept as checkpoint-{step}\.not-ours-2"):
            checkpoints.remove(place)
        assert (tmp_path / f"checkpoint-{step}.not-ours-2/optimizer.pt").exists()
    assert training.all_in(tmp_path) == []


def test_a_linked_checkpoint_is_not_removed_where_it_lies(tmp_path):
    place = make_checkpoint(tmp_path / "elsewhere", 5)
    (tmp_path / "checkpoint-5").symlink_to(place)
    with pytest.warns(FtkitWarning, match="is kept as"):
        checkpoints.remove(tmp_path / "checkpoint-5")
    assert (place / "optimizer.pt").exists()


@pytest.mark.parametrize("inside", ["data", "checkpoints", "new"])
def test_a_mirror_within_the_run_is_refused(run, inside):
    with pytest.raises(StorageError, match="lie within each other"):
        Mirror.open(run / inside, run)


def test_a_run_within_its_mirror_is_refused(run):
    with pytest.raises(StorageError, match="lie within each other"):
        Mirror.open(run.path.parents[1], run)


def test_a_link_to_the_run_is_no_mirror(run, tmp_path):
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(StorageError, match="lie within each other"):
        Mirror.open(tmp_path / "link", run)


def test_a_folder_of_somebody_else_in_the_mirror_is_left_alone(run, tmp_path):
    mine = tmp_path / "drive/demo/adapter/mine.bin"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(StorageError, match="ftkit did not make it"):
        Mirror.open(tmp_path / "drive", run)
    assert mine.read_text() == "mine"


def test_a_stranger_in_the_mirror_outlives_pushes_and_clearing(run, copy):
    (run / "figures").mkdir()
    (run / "figures/loss.png").write_bytes(b"new")
    copy.push(run)
    for name in ("figures/paper.svg", "checkpoints/.git", "data.csv"):
        (copy.path / name).write_text("mine")
    (run / "figures/loss.png").write_bytes(b"newer")
    copy.push(run)
    copy.clear()
    assert (copy.path / "figures/loss.png").read_bytes() == b"newer"
    assert [(copy.path / name).read_text() for name in ("figures/paper.svg", "checkpoints/.git", "data.csv")] == [
        "mine"
    ] * 3


def test_the_run_itself_is_no_mirror(run):
    with pytest.raises(StorageError, match="where the run itself lies"):
        Mirror.open(run.path.parent, run)
