"""What settings mean: counted as PEFT counts, updated as transformers does, timed from what was measured."""

import math

import pytest

from ftkit import memory
from ftkit.config import EFFORTS, MACHINES, TrainConfig, preset
from ftkit.hardware import Hardware
from ftkit.runs import Run
from ftkit.training import HistoryPoint
from ftkit.training.history import write_points
from ftkit.tuning import learning_rate
from ftkit.tuning.consequences import (
    Line,
    Situation,
    StepTime,
    chart,
    duration,
    thinned,
    ticks,
    work_out,
)

CPU = Hardware("cpu", "a CPU", 24.0, None, True, 2)
SMOL = memory.find("HuggingFaceTB/SmolLM2-135M")


def test_parameters_are_the_published_ones():
    """r=16 on all seven projections of SmolLM2-135M: 4,884,480, which is 3.50 % of all."""
    found = work_out(TrainConfig(), Situation(CPU, SMOL, 320))
    assert found.trainable == 4_884_480
    assert 100 * found.trainable / found.total == pytest.approx(3.50, abs=0.01)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulated", "expected"), [(320, 4, 2, 40), (321, 4, 2, 41), (3, 8, 4, 1), (17, 4, 4, 2)]
)
def test_the_last_short_batch_is_an_update_too(rows, batch, accumulated, expected):
    config = TrainConfig(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated)
    assert work_out(config, Situation(CPU, SMOL, rows)).updates_per_epoch == expected


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup", "constant"])
def test_the_curve_is_the_one_that_transformers_follows(kind):
    import torch
    from transformers import get_scheduler

    config = TrainConfig(lr_scheduler_type=kind, warmup_steps=5, learning_rate=1e-3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=5, num_training_steps=20)
    theirs = []
    for _ in range(20):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [learning_rate(config, step, 20) for step in range(20)] == pytest.approx(theirs)


def test_what_is_unknown_is_said_and_never_zero():
    found = work_out(TrainConfig(), Situation(CPU))
    assert (found.trainable, found.updates, found.seconds, found.memory) == (None, None, None, None)
    text = str(found)
    assert "not measured yet" in text
    assert "rows unknown" in text
    assert "model unknown" in text


def test_memory_follows_the_rows_where_they_are_shorter_than_the_limit():
    config = TrainConfig(max_length=2048)
    short = work_out(config, Situation(CPU, SMOL, 320, lengths=(50, 120, 90)))
    assert short.memory.likely_gib < work_out(config, Situation(CPU, SMOL, 320)).memory.likely_gib
    assert short.verdict == "fits"


def test_fits_compares_the_high_end_with_the_machine():
    small = Hardware("cuda", "tiny", 0.3, (8, 0), True, 2)
    assert work_out(TrainConfig(), Situation(small, SMOL, 320)).verdict == "does not fit"


def test_modules_that_the_model_lacks_leave_the_count_unknown():
    found = work_out(TrainConfig(target_modules=("c_attn",)), Situation(CPU, SMOL, 320))
    assert found.trainable is None


def test_a_warm_up_longer_than_the_run_is_found_from_the_rows():
    found = work_out(TrainConfig(warmup_steps=500), Situation(CPU, SMOL, 320))
    assert "warmup_steps" in [finding.field for finding in found.findings]


POINTS = [
    HistoryPoint(1, loss=2.0, seconds=9.0, tokens=800),
    *(HistoryPoint(i, loss=1.0, seconds=9.0 + 2.0 * (i - 1), tokens=800 * i) for i in range(2, 6)),
    HistoryPoint(5, val_loss=1.0, seconds=20.0),
    HistoryPoint(6, loss=1.0, seconds=22.0, tokens=4800),
]


def test_step_time_leaves_out_the_first_update_and_validations():
    """The first update took 9 s and a validation 3 s; the others took 2 s."""
    step_time = StepTime.of_points(POINTS, TrainConfig(), "here")
    assert step_time.seconds(8, 0) == pytest.approx(2.0)
    assert step_time.seconds(8, 1) == pytest.approx(5.0)
    assert step_time.tokens_per_example == pytest.approx(100)


def test_step_time_needs_two_points():
    assert StepTime.of_points(POINTS[:1], TrainConfig(), "here") is None


def test_step_time_names_what_was_measured_otherwise():
    step_time = StepTime(0.25, "measured now", config=TrainConfig())
    assert step_time.other_than(TrainConfig(lora_r=64)) == ()
    assert step_time.other_than(TrainConfig(dtype="fp32", use_dora=True)) == ("dtype", "use_dora")


def test_time_scales_with_the_length_of_the_rows():
    step_time = StepTime.of_points(POINTS, TrainConfig(), "here")
    assert step_time.seconds(8, 0, tokens_per_example=50) == pytest.approx(1.0)


def finished(root, name, config, points=POINTS, **facts):
    run = Run.create(name, root)
    config.save(run / "config.yaml")
    write_points(run / "history.csv", points)
    run.finish("train", **({"base_model": "toy", "device": "here"} | facts))
    return run


def test_step_time_of_earlier_runs_counts_only_this_model_on_this_device(tmp_path):
    finished(tmp_path, "elsewhere", TrainConfig(), device="a bigger one")
    assert StepTime.of_runs(tmp_path, "toy", "here") is None
    finished(tmp_path, "mine", TrainConfig())
    step_time = StepTime.of_runs(tmp_path, "toy", "here")
    assert (step_time.source, step_time.seconds(8, 0)) == ("run mine", pytest.approx(2.0))


def test_a_damaged_run_measures_nothing(tmp_path):
    run = finished(tmp_path, "broken", TrainConfig())
    (run / "history.csv").write_text("nonsense")
    assert StepTime.of_runs(tmp_path, "toy", "here") is None


def test_a_measured_step_becomes_minutes():
    """40 updates of 3 s are 2 minutes; half the batch is half the step, and twice as many updates."""
    config = TrainConfig(eval_steps=0)
    step_time = StepTime(3.0 / config.effective_batch_size, "measured now", config=config)
    situation = Situation(MACHINES["T4"], memory.find("meta-llama/Llama-3.1-8B"), 320, step_time=step_time)
    assert work_out(config, situation).seconds == pytest.approx(120)
    half = work_out(config.replace(gradient_accumulation_steps=2), situation)
    assert (half.updates, half.seconds) == (80, pytest.approx(120))


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("effort", EFFORTS)
def test_machine_presets_fit_an_8b_model_without_errors(name, effort):
    machine = MACHINES[name]
    config = TrainConfig(**preset(name)["settings"] | preset(effort)["settings"])
    found = work_out(config, Situation(machine, memory.find("meta-llama/Llama-3.1-8B"), 10_000))
    assert found.memory.high_gib <= machine.memory_gib
    assert [finding for finding in found.findings if finding.severity == "error"] == []


@pytest.mark.parametrize(
    ("top", "expected"),
    [(1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3.3, [0, 1, 2, 3, 4]), (2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4])],
)
def test_ticks_are_round_and_reach_the_top(top, expected):
    assert ticks(top) == pytest.approx(expected)


def test_a_chart_stands_without_points_and_with_wild_ones():
    """Nothing to draw, a flat zero, NaN and infinity: still one svg."""
    for points in ([], [(1.0, 0.0)], [(1.0, math.nan), (2.0, math.inf), (3.0, 1.0)]):
        text = chart([Line(points, "loss")], x="updates", y="loss")
        assert text.startswith("<svg")
        assert text.count("<svg") == 1
        assert "nan" not in text
        assert "inf" not in text


def test_long_curves_are_thinned_to_both_ends():
    points = [(float(i), 1.0) for i in range(100_000)]
    kept = thinned(points)
    assert (len(kept) <= 400, kept[0], kept[-1]) == (True, points[0], points[-1])


@pytest.mark.parametrize(("seconds", "text"), [(42, "42 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
