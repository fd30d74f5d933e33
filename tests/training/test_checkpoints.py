"""A checkpoint is complete or absent: every cut and every changed byte is seen, and the next older one is used."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import CHECKPOINT_FACTS, CHECKPOINT_NAMES, make_checkpoint

from ftkit import training
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning
from ftkit.training.checkpoints import MARK, newest, partial_folder, refuse_other, remove_leftovers


def test_the_newest_is_chosen_and_the_number_is_bounded(tmp_path):
    for step in (5, 10, 100):
        make_checkpoint(tmp_path, step)
    assert [p.name for p in training.all_in(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    assert newest(tmp_path) == tmp_path / "checkpoint-100"


def test_what_lies_in_the_workshop_does_not_count(tmp_path):
    """There the trainer writes; a kill may have left anything."""
    working = partial_folder(tmp_path) / "checkpoint-5"
    working.mkdir(parents=True)
    (working / "optimizer.pt").write_bytes(b"half")
    assert newest(tmp_path) is None
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::ftkit.errors.FtkitWarning")
@pytest.mark.parametrize("name", [*CHECKPOINT_NAMES, MARK])
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


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(tmp_path):
    """The mark goes first."""
    place = make_checkpoint(tmp_path, 5)
    (place / MARK).unlink()
    assert "missing" in training.problem(place)


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    place = make_checkpoint(tmp_path, 5)
    (place / MARK).write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="newer ftkit"):
        newest(tmp_path)


def test_a_checkpoint_of_an_older_version_is_read(tmp_path):
    """Before digests were kept the mark held the facts alone, and the settings stood in the run's config.yaml."""
    place = make_checkpoint(tmp_path, 5)
    (place / MARK).write_text(json.dumps(CHECKPOINT_FACTS))
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
    ],
)
def test_every_fact_that_differs_is_named(tmp_path, fact, said):
    place = make_checkpoint(tmp_path, 5, facts={**CHECKPOINT_FACTS, "settings": {}})
    with pytest.raises(ConfigError, match=said):
        refuse_other(place, TrainConfig(), {**CHECKPOINT_FACTS, fact: "x"}, tmp_path / "config.yaml")
