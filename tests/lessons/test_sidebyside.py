"""Runs of two backends are compared fairly: the same rows, a process each, and nothing of Unsloth in the plain one."""

import json

import pytest

from ftkit import hardware, lessons, models
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError
from ftkit.lessons.backends import Measured, SideBySide


def run(name, tokens_per_s=100.0, peak_gib=2.0, losses=(2.0, 1.0), **facts):
    return Measured(name, "a machine", "2026-01-01", losses, tokens_per_s, peak_gib, 10.0, 0, {"torch": "2"}, **facts)


@pytest.fixture
def side():
    return SideBySide((run("plain"), run("fast", 150.0, 1.5, (2.0, 1.1))))


def test_speed_up_is_a_ratio_of_tokens_a_second(side):
    assert side.speed_up("fast", "plain") == 1.5
    assert side.speed_up("plain", "fast") == pytest.approx(2 / 3)


def test_memory_saved_is_a_share_and_may_be_negative(side):
    assert side.memory_saved("fast", "plain") == 0.25
    assert side.memory_saved("plain", "fast") < 0


def test_loss_gap_is_the_largest_relative_one(side):
    assert side.loss_gap("fast", "plain") == pytest.approx(0.1)


def test_runs_of_other_lengths_cannot_be_compared(side):
    with pytest.raises(ValueError, match="zip"):
        (side + SideBySide((run("short", losses=(2.0,)),))).loss_gap("short", "plain")


def test_an_unknown_run_is_named(side):
    with pytest.raises(KeyError, match="no run 'x', only plain, fast"):
        side["x"]


def test_sum_holds_both(side):
    assert [r.name for r in (side + SideBySide((run("late"),))).runs] == ["plain", "fast", "late"]


def test_save_holds_device_day_and_versions(side, tmp_path):
    saved = json.loads(side.save(tmp_path / "side.json").read_text())
    assert [(r["name"], r["device"], r["day"], r["versions"]) for r in saved] == [
        ("plain", "a machine", "2026-01-01", {"torch": "2"}),
        ("fast", "a machine", "2026-01-01", {"torch": "2"}),
    ]


def test_table_says_where_and_when_once(side):
    assert str(side).splitlines()[-1] == "a machine, 2026-01-01"
    assert side._repr_html_().count("2026-01-01") == 1
    assert "<td>150</td><td>1.50</td>" in side._repr_html_()


def test_names_are_escaped():
    assert "<b>" not in SideBySide((run("<b>"),))._repr_html_()


def test_a_single_step_is_refused():
    """The first step compiles and is not timed: nothing would be left."""
    with pytest.raises(ConfigError, match="one: max_steps=1 leaves nothing to time"):
        lessons.measure_backends({"one": TrainConfig(max_steps=1)}, model="any")


@pytest.mark.slow
def test_a_failed_run_says_which_and_why(tmp_path):
    """Its process's last words come with the error."""
    with pytest.raises(FtkitError, match=r"(?s)run 'wrong' failed.*no-such-model"):
        lessons.measure_backends(
            {"wrong": TrainConfig(backend="transformers", max_steps=2)}, model=str(tmp_path / "no-such-model")
        )


@pytest.fixture(scope="module")
def measured():
    """A plain run, and one that imports Unsloth last, on the bundled model."""
    settings = TrainConfig.for_hardware(
        hardware.detect(),
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        warmup_steps=0,
        eval_steps=0,
        save_steps=0,
    )
    plain = lessons.measure_backends({"plain": settings.replace(backend="transformers")}, model=models.BUNDLED, rows=8)
    return plain + lessons.measure_backends(
        {"late": settings.replace(backend="unsloth")}, model=models.BUNDLED, rows=8, late=True
    )


@pytest.mark.slow
def test_unsloth_never_enters_the_plain_process(measured):
    assert (measured["plain"].replaced, measured["plain"].stale, measured["plain"].warned) == (0, (), "")


@pytest.mark.slow
def test_late_import_warns_and_leaves_stale_names(measured):
    assert measured["late"].warned.startswith("Unsloth is imported after")
    assert "trl.SFTTrainer" in measured["late"].stale
    assert measured["late"].replaced > 0


@pytest.mark.slow
def test_both_learn_the_same(measured):
    assert measured.loss_gap("late", "plain") < 0.05
    assert all(r.tokens_per_s > 0 and 0.1 < r.peak_gib < 4 and len(r.losses) == 2 for r in measured.runs)
