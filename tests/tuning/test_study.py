"""A search on the toy: seeded, cut off early, resumable after a kill, and every trial a run."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ftkit import data, figures, training, tuning
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, MissingArtifact, MissingExtra, PreflightError
from ftkit.runs import Run
from ftkit.training import HistoryPoint
from ftkit.training.history import write_points
from ftkit.tuning import search, study, vary
from ftkit.tuning.space import axes
from ftkit.tuning.study import SearchReport, Trial, _ask, _begin, _distribution, _Watcher

SPACE = {"learning_rate": (1e-5, 1e-2), "lora_r": [2, 4, 8]}


@pytest.fixture
def base(model, tokenizer, tmp_path):
    """The toy as a base model on the disk."""
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def run(tmp_path):
    return Run.create("search", tmp_path)


@pytest.fixture
def short(toy_config):
    return toy_config.replace(max_steps=2, eval_steps=1, save_steps=0, num_train_epochs=1.0)


def trial(tmp_path, number, settings, state="finished", value=1.0, curve=()):
    """A trial that ended, with its curve on the disk."""
    place = Run.create(f"{number:03d}", tmp_path / "trials")

    write_points(place / "history.csv", [HistoryPoint(step, val_loss=loss) for step, loss in curve])
    return Trial(number, settings, state, value, 1.0, "", place)


def plain(report):
    """What must not depend on the machine's mood: all but seconds and folders."""
    return [(t.number, t.settings, t.state, t.value) for t in report.trials]


@pytest.mark.slow
def test_a_search_leaves_runs_a_report_and_a_figure(base, splits, short, run):
    report = search(base, splits, short, SPACE, run, trials=3, progress=False)
    assert [t.number for t in report.trials] == [0, 1, 2]
    for each in report.trials:
        assert TrainConfig.load(each.run / "config.yaml") == short.replace(**each.settings)
        assert not (each.run / "checkpoints").exists()
    assert run.facts["search"]["best"] == report.best_trial.settings
    assert report.best == short.replace(**report.best_trial.settings)
    assert report.best_trial.value == min(t.value for t in report.trials)
    assert plain(SearchReport.open(run)) == plain(report)
    assert all(f"{t.value:.3f}" in str(report) and f"{t.value:.3f}" in report._repr_html_() for t in report.trials)


@pytest.mark.slow
def test_the_first_trial_is_the_config_itself(base, splits, short, run):
    """So the report can say whether searching was worth it."""
    report = search(base, splits, short, {"learning_rate": (1e-6, 1e-2)}, run, trials=1, progress=False)
    assert report.trials[0].settings == {"learning_rate": short.learning_rate}
    assert report.start is report.trials[0]
    assert "the settings that it started with" in report.verdict()


@pytest.mark.slow
def test_equal_seeds_search_alike_and_others_do_not(base, splits, short, tmp_path):
    reports = [
        search(base, splits, short, SPACE, Run.create(name, tmp_path), trials=2, seed=seed, progress=False)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert plain(reports[0]) == plain(reports[1])
    assert [t.settings for t in reports[0].trials] != [t.settings for t in reports[2].trials]


@pytest.mark.slow
def test_more_trials_go_on_with_a_finished_search(base, splits, short, run):
    first = search(base, splits, short, SPACE, run, trials=1, progress=False)
    times = (first.trials[0].run / "run.json").stat().st_mtime_ns
    more = search(base, splits, short, SPACE, run, trials=2, progress=False)
    assert plain(more)[:1] == plain(first)
    assert (more.trials[0].run / "run.json").stat().st_mtime_ns == times


@pytest.mark.slow
def test_a_search_with_another_setup_is_refused_and_says_what_differs(base, splits, short, run):
    search(base, splits, short, SPACE, run, trials=1, progress=False)
    with pytest.raises(ConfigError, match=r"learning_rate \(0.01 then, 0.001 now\)"):
        search(base, splits, short.replace(learning_rate=1e-3), SPACE, run, trials=1, progress=False)
    search(base, splits, short.replace(learning_rate=1e-3), SPACE, run, trials=1, resume=False, progress=False)
    assert len(SearchReport.open(run).trials) == 1


SCRIPT = """
import sys, transformers
from ftkit import data
from ftkit.config import TrainConfig
from ftkit.runs import Run
from ftkit.tuning import search
base, run, settings = sys.argv[1:4]
splits = data.load_splits(Run.open(sys.argv[4]))
config = TrainConfig.load(settings)
space = {"learning_rate": (1e-5, 1e-2), "lora_r": [2, 4, 8]}
search(base, splits, config, space, Run.open(run), trials=4, progress=False)
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_end(base, splits, short, run, tmp_path):
    """Kill -9 in the second trial: the first is kept untouched, and the rest comes out as if nothing had happened."""
    config = short.replace(max_steps=6, eval_steps=2, save_steps=2)
    whole = search(base, splits, config, SPACE, Run.create("whole", tmp_path), trials=4, progress=False)
    source = Run.create("data", tmp_path)
    data.save(splits, source)
    arguments = [str(base), str(run.path), str(config.save(tmp_path / "config.yaml")), str(source.path)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (run / "trials/001/history.csv").exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = SearchReport.open(run)
    assert [t.number for t in kept.trials][:1] == [0]
    assert len(kept.trials) < 4
    times = (kept.trials[0].run / "run.json").stat().st_mtime_ns
    resumed = search(base, splits, config, SPACE, run, trials=4, progress=False)
    assert (resumed.trials[0].run / "run.json").stat().st_mtime_ns == times
    assert plain(resumed) == [
        (number, settings, state, pytest.approx(value, rel=1e-5)) for number, settings, state, value in plain(whole)
    ]


@pytest.mark.slow
def test_stop_leaves_the_running_trial_resumable(base, splits, short, run):
    stop = threading.Event()
    stop.set()
    report = search(base, splits, short.replace(max_steps=4), SPACE, run, trials=2, stop=stop, progress=False)
    assert report.trials == ()
    assert not run.finished("search")
    stop.clear()
    assert (
        len(search(base, splits, short.replace(max_steps=4), SPACE, run, trials=2, stop=stop, progress=False).trials)
        == 2
    )


@pytest.mark.slow
def test_vary_runs_one_setting_through_its_values(base, splits, short, run):
    report = vary(base, splits, short, "lora_r", [8, 2], run, progress=False)
    assert [t.settings for t in report.trials] == [{"lora_r": 8}, {"lora_r": 2}]
    assert list(report.histories()) == ["lora_r 8", "lora_r 2"]
    assert all(t.state == "finished" for t in report.trials)


@pytest.mark.slow
def test_a_trial_that_cannot_work_is_recorded_and_the_search_goes_on(base, splits, short, run, monkeypatch):

    real = training.train

    def train(model, tokenizer, parts, config, place, **settings):
        if config.lora_r == 8:
            raise PreflightError("out of memory on the longest micro-batch\nand more")
        return real(model, tokenizer, parts, config, place, **settings)

    monkeypatch.setattr(study, "train", train)
    report = vary(base, splits, short, "lora_r", [8, 2], run, progress=False)
    assert [(t.state, t.reason) for t in report.trials] == [
        ("failed", "out of memory on the longest micro-batch"),
        ("finished", ""),
    ]
    assert report.best.lora_r == 2
    assert "failed: out of memory" in str(report)


def test_a_bad_space_is_refused_before_a_model_is_loaded(splits, toy_config, run):
    with pytest.raises(ConfigError) as error:
        search("no-such-model", splits, toy_config, {"lr": (1e-5, 1e-2), "lora_r": (0, 8)}, run)
    assert "lr is no setting. Did you mean learning_rate?" in str(error.value)
    assert "lora_r=0 is outside 1 to 256" in str(error.value)


@pytest.mark.parametrize("counts", [{"trials": 0}, {"trials": 2.5}, {"trials": True}, {"prune_after": 0}])
def test_counts_that_are_none_are_refused(splits, toy_config, run, counts):
    with pytest.raises(ConfigError, match=next(iter(counts))):
        search("no-such-model", splits, toy_config, SPACE, run, **counts)


def test_without_optuna_the_error_names_the_command(splits, toy_config, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"pip install 'optuna>=5,<6'"):
        search("no-such-model", splits, toy_config, SPACE, run)


@pytest.fixture
def opened(toy_config, tmp_path):
    """A study over a space, and a way to note trials that ended in it."""

    def study_over(space, name="study", prune_after=2, seed=0, queue=()):
        found = axes(space, toy_config)
        run = Run.create(name, tmp_path)
        choices = {axis.field: axis.given for axis in found if axis.choices}
        ranges = {axis.field: axis.given for axis in found if not axis.choices}
        setup = {
            "config": dataclasses.asdict(toy_config),
            "order": list(space),
            "choices": choices,
            "ranges": ranges,
            "seed": seed,
            "prune_after": prune_after,
        }
        return _begin(run, json.loads(json.dumps(setup)), found, list(queue), resume=True), found, run

    return study_over


def note(study, space, params, value, curve=()):
    """A finished trial, as a search leaves it."""
    import optuna

    number = len(study.trials)
    attributes = {
        "folder": f"{number:03d}",
        "ended": {"state": "finished", "value": value, "seconds": 1.0, "reason": ""},
    }
    distributions = {axis.field: _distribution(axis) for axis in space}
    study.add_trial(
        optuna.trial.create_trial(
            value=value,
            params=params,
            distributions=distributions,
            user_attrs=attributes,
            intermediate_values=dict(curve),
        )
    )


def test_the_draws_depend_on_what_ended_and_on_the_seed_alone(opened):
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2)):
        study, space, run = opened(SPACE, name, seed=seed)
        for i in range(3):
            note(study, space, {"learning_rate": 10.0 ** -(i + 2), "lora_r": 1}, float(i + 1))
        drawn.append(_ask(study, SearchReport.open(run)).params["learning_rate"])
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_the_sampler_learns_where_the_low_losses_are(opened):
    """After a dozen trials whose loss is the distance from 1e-3 in decades, draws gather there."""
    near = 0
    for seed in range(10):
        study, space, run = opened({"learning_rate": (1e-6, 1e-2)}, f"study-{seed}", seed=seed)
        for i in range(12):
            rate = 10 ** (-6 + 4 * i / 11)
            note(study, space, {"learning_rate": rate}, abs(math.log10(rate) + 3))
        near += 1e-4 < _ask(study, SearchReport.open(run)).params["learning_rate"] < 1e-2
    assert near > 7  # half of the range would be five by chance


def test_no_settings_are_tried_twice_and_the_search_ends_when_none_are_left(opened):
    study, _, run = opened({"lora_r": [2, 4]})
    for _ in range(2):
        trial = _ask(study, SearchReport.open(run))
        trial.set_user_attr("ended", {"state": "finished", "value": 1.0, "seconds": 1.0, "reason": ""})
        study.tell(trial, 1.0)
    assert {t.settings["lora_r"] for t in SearchReport.open(run).trials} == {2, 4}
    assert _ask(study, SearchReport.open(run)) is None


def test_a_trial_worse_than_the_median_is_cut_off(opened):
    """At the same step; only after `prune_after` finished trials, and never at the last step."""
    points = [HistoryPoint(1, loss=3.0), HistoryPoint(2, val_loss=2.5)]
    for total, prune_after, state in ((4, 2, "pruned"), (4, 3, "finished"), (4, None, "finished"), (2, 2, "finished")):
        study, space, run = opened({"learning_rate": (1e-6, 1e-2)}, f"{total}-{prune_after}", prune_after)
        for i in range(2):
            note(study, space, {"learning_rate": 10.0 ** -(i + 3)}, 1.0, curve=[(2, 2.0), (4, 1.0)])
        watcher = _Watcher(_ask(study, SearchReport.open(run)), None, lambda *_: None)
        watcher(points, total)
        assert (watcher.state, watcher.halt.is_set()) == (state, state == "pruned")


def test_a_trial_that_a_kill_left_running_is_drawn_again_with_its_settings(opened):
    study, _, run = opened(SPACE)
    left = _ask(study, SearchReport.open(run))
    again, _, _ = opened(SPACE)
    drawn = _ask(again, SearchReport.open(run))
    assert (drawn.params, drawn.user_attrs["folder"]) == (left.params, left.user_attrs["folder"])
    assert SearchReport.open(run).trials == ()


def test_a_loss_that_is_no_number_halts_a_trial():
    watcher = _Watcher(None, None, lambda *_: None)
    watcher([HistoryPoint(1, loss=float("nan"))], 4)
    assert (watcher.state, watcher.halt.is_set()) == ("diverged", True)


@pytest.fixture
def report(tmp_path, toy_config):
    """One trial of each state."""
    space = axes(SPACE | {"weight_decay": (0.0, 0.1)}, toy_config)
    ends = [("finished", 2.0), ("pruned", 2.5), ("diverged", None), ("failed", None), ("finished", 1.5)]
    trials = tuple(
        trial(tmp_path, i, {"learning_rate": 10.0 ** -(2 + 0.5 * i), "lora_r": 4, "weight_decay": 0.01 * i}, *end)
        for i, end in enumerate(ends)
    )
    return SearchReport(toy_config, space, trials, Run(tmp_path))


def test_finished_trials_come_first_by_value(report):
    assert [t.number for t in report.ranked] == [4, 0, 1, 2, 3]
    assert report.best_trial.number == 4
    assert report.best.weight_decay == 0.04
    assert report._repr_html_().count("<tr>") == 6


def test_a_search_in_which_nothing_finished_has_no_best(report):
    empty = SearchReport(report.config, report.space, report.trials[1:4], report.run)
    with pytest.raises(ConfigError, match=r"trial 1 pruned; trial 2 diverged; trial 3 failed"):
        _ = empty.best
    assert "None of 3 trials finished" in empty._repr_html_()


def blank_figure():
    figure = figures.blank_axes().figure
    figure.clear()
    return figure


def test_the_figure_has_a_panel_a_setting_and_a_mark_a_state(report):
    first = tuning.plot_search(report, figure=blank_figure())
    panels = [ax for ax in first.figure.axes if ax.get_visible()]
    assert [ax.get_xlabel() for ax in panels] == ["learning_rate (log)", "lora_r", "weight_decay"]
    assert [t.get_text() for t in first.figure.legends[0].get_texts()] == [
        "finished",
        "pruned",
        "diverged",
        "failed",
        "best",
    ]
    figures.save(first, report.run / "sweep.png")


def test_schedules_stand_below_the_rate_that_was_asked_for():
    ax = tuning.plot_schedules({"none": [1e-3, 5e-4, 0.0], "long": [0.0, 1e-5, 2e-5]}, 1e-3, ax=figures.blank_axes())
    assert [line.get_label() for line in ax.get_lines()] == ["none", "long", "learning_rate 0.001"]
    assert ax.get_ylim()[1] > 1e-3


def test_a_damaged_record_is_named(tmp_path, report):
    with pytest.raises(MissingArtifact):
        SearchReport.open(Run.create("nothing", tmp_path))
    run = Run.create("damaged", tmp_path)
    (run / "search.journal").write_text("not a journal\n")
    with pytest.raises(DataError, match=r"search\.journal is damaged"):
        SearchReport.open(run)
