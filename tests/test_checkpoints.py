"""A checkpoint is complete or absent: every cut and every changed byte is seen, and the next older one is used."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import checkpoints
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitWarning

FACTS = {"data_digest": "d", "base_model": "m", "backend": "transformers"}
NAMES = ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json")


def make(folder, step, keep=2, facts=FACTS):
    """A checkpoint of three small files, published as the trainer's are."""
    working = checkpoints.workshop(folder) / f"checkpoint-{step}"
    working.mkdir(parents=True)
    for name in NAMES:
        (working / name).write_bytes(f"{name} of step {step} ".encode() * 20)
    return checkpoints.publish(working, folder, facts, keep)


def test_the_newest_is_chosen_and_the_number_is_bounded(tmp_path):
    for step in (5, 10, 100):
        make(tmp_path, step)
    assert [p.name for p in checkpoints.all_in(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-100"


def test_what_lies_in_the_workshop_does_not_count(tmp_path):
    """There the trainer writes; a kill may have left anything."""
    working = checkpoints.workshop(tmp_path) / "checkpoint-5"
    working.mkdir(parents=True)
    (working / "optimizer.pt").write_bytes(b"half")
    assert checkpoints.newest(tmp_path) is None
    checkpoints.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::ftkit.errors.FtkitWarning")
@pytest.mark.parametrize("name", [*NAMES, checkpoints.MARK])
def test_cut_at_any_byte_the_older_one_is_used(tmp_path, name):
    """A file cut at any of its bytes, the mark among them, makes a checkpoint one that does not count."""
    older, newer = make(tmp_path, 5), make(tmp_path, 10)
    whole = (newer / name).read_bytes()
    assert checkpoints.newest(tmp_path) == newer
    end = len(whole.rstrip())  # the newline that ends the mark is no part of what it says
    for length in range(end):
        (newer / name).write_bytes(whole[:length])
        assert checkpoints.newest(tmp_path) == older, length
    (newer / name).write_bytes(whole)
    assert checkpoints.newest(tmp_path) == newer


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(name=st.sampled_from(NAMES), place=st.integers(0, 400), change=st.integers(1, 255))
def test_a_changed_byte_is_seen(tmp_path, name, place, change):
    """Any byte, changed in any way, is told from what was written."""
    shutil.rmtree(tmp_path / "checkpoint-5", ignore_errors=True)
    path = make(tmp_path, 5) / name
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    assert checkpoints.problem(path.parent) == f"{name} does not have the digest that was recorded for it"


def test_a_damaged_one_is_named_with_the_reason(tmp_path):
    older, newer = make(tmp_path, 5), make(tmp_path, 10)
    (newer / "optimizer.pt").unlink()
    with pytest.warns(FtkitWarning, match=r"checkpoint-10 is not whole \(optimizer.pt is missing\): an older"):
        assert checkpoints.newest(tmp_path) == older


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(tmp_path):
    """The mark goes first."""
    place = make(tmp_path, 5)
    (place / checkpoints.MARK).unlink()
    assert "missing" in checkpoints.problem(place)


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    place = make(tmp_path, 5)
    (place / checkpoints.MARK).write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="newer ftkit"):
        checkpoints.newest(tmp_path)


def test_a_checkpoint_of_an_older_version_is_read(tmp_path):
    """Before digests were kept the mark held the facts alone, and the settings stood in the run's config.yaml."""
    place = make(tmp_path, 5)
    (place / checkpoints.MARK).write_text(json.dumps(FACTS))
    saved = TrainConfig(lora_r=8).save(tmp_path / "config.yaml")
    assert checkpoints.newest(tmp_path) == place
    checkpoints.refuse_other(place, TrainConfig(lora_r=8), FACTS, saved)
    with pytest.raises(ConfigError, match=r"lora_r \(8 then, 16 now\)"):
        checkpoints.refuse_other(place, TrainConfig(), FACTS, saved)


@pytest.mark.parametrize("settings", [{"new_knob": 3}, {"lora_r": 1000}, ["lora_r"]])
def test_settings_that_this_version_does_not_know_say_so(tmp_path, settings):
    """The checkpoint is named, and the way out; a bare "no setting" would look like the reader's own mistake."""
    place = make(tmp_path, 5, facts={**FACTS, "settings": settings})
    with pytest.raises(
        ConfigError, match=r"checkpoint-5 was written by a version of ftkit with other settings .*resume=False"
    ):
        checkpoints.refuse_other(place, TrainConfig(), FACTS, tmp_path / "config.yaml")


def test_the_settings_in_the_mark_count_and_not_a_file_edited_since(tmp_path):
    """`config.yaml` is a file that people edit; what a checkpoint was trained with stands in the checkpoint."""
    place = make(tmp_path, 5, facts={**FACTS, "settings": {"lora_r": 8}})
    edited = TrainConfig(lora_r=32).save(tmp_path / "config.yaml")
    checkpoints.refuse_other(place, TrainConfig(lora_r=8), FACTS, edited)
    with pytest.raises(ConfigError, match=r"lora_r \(8 then, 32 now\)"):
        checkpoints.refuse_other(place, TrainConfig(lora_r=32), FACTS, edited)


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ("data_digest", "other data"),
        ("base_model", r"another base_model \(m then, x now\)"),
        ("backend", r"another backend \(transformers then, x now\)"),
    ],
)
def test_every_fact_that_differs_is_named(tmp_path, fact, said):
    place = make(tmp_path, 5, facts={**FACTS, "settings": {}})
    with pytest.raises(ConfigError, match=said):
        checkpoints.refuse_other(place, TrainConfig(), {**FACTS, fact: "x"}, tmp_path / "config.yaml")
