"""Figures of searches: which setting moved the score, and where the learning rate breaks.

Optuna's own slice plot is not used: it shows finished trials alone, and sets matplotlib's style for the whole notebook.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.figures import BLUE, GREEN, GREY, ORANGE, RED, axes, label, plain
from ftkit.tuning.range_test import RateRange
from ftkit.tuning.space import Axis, short
from ftkit.tuning.study import SearchReport, Trial

_LOOKS = {"finished": (BLUE, "o"), "pruned": (ORANGE, "s"), "diverged": (RED, "X"), "failed": (GREY, "P")}
_LINES = ((BLUE, "-"), (ORANGE, "--"), (RED, "-."), (GREEN, ":"))


def plot_search(report: SearchReport, figure: Any = None) -> Any:
    """Which setting moved the score? One panel a setting: validation loss of each trial, the best one ringed.

    Trials that were cut off stand at the loss that they had reached; those without a number stand at the top edge.

    Gives back the axes of the first panel.
    """
    width = len(report.space)
    if figure is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(max(4.6, 3.4 * width), 3.4), layout="constrained")
    panels = figure.subplots(1, width, squeeze=False, sharey=True)[0]
    values = [trial.value for trial in report.trials if trial.value is not None] or [1.0]
    top = max(values) + 0.15 * (max(values) - min(values) or 1.0)
    for panel, axis in zip(panels, report.space, strict=True):
        _panel(panel, axis, report, top)
    panels[0].set_ylabel("validation loss per token")
    panels[0].set_title("Which setting moved the score?", loc="left")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names))
    return panels[0]


def plot_rate_range(found: RateRange, ax: Any = None) -> Any:
    """Where does learning begin, and where does it break? Loss against a growing rate, rates worth trying shaded."""
    ax = axes(ax)
    ax.plot(found.rates, found.losses, color=BLUE, alpha=0.35, linewidth=1, marker=".", label="each step")
    ax.plot(found.rates, found.smoothed, color=BLUE, linewidth=2, label="smoothed")
    if found.zone is not None:
        trying = "worth trying: {:.2g} to {:.2g}".format(*found.zone)
        ax.axvspan(*found.zone, color=GREEN, alpha=0.18, label=trying)
        ax.axvline(found.suggestion, color=GREEN, linestyle="-.", label=f"begin with {found.suggestion:.2g}")
    if found.blew_up is not None:
        ax.axvline(found.blew_up, color=RED, linestyle="--", label=f"stopped at {found.blew_up:.2g}")
    ax.set_xscale("log")
    ax.set_ylim(0, 1.6 * max(found.smoothed[0], min(found.smoothed)))  # how high it climbs needs no room
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    question = "Where does learning begin, and where does it break?"
    label(ax, "learning rate (log)", "loss per token", question)
    return ax


def plot_schedules(rates: Mapping[str, Sequence[float]], peak: float, ax: Any = None) -> Any:
    """How large are the steps? The learning rate of update 0, 1 … under several schedules, and the config's `peak`."""
    ax = axes(ax)
    for (name, values), (colour, dash) in zip(rates.items(), itertools.cycle(_LINES), strict=False):
        ax.plot(range(len(values)), values, color=colour, linestyle=dash, linewidth=2, label=plain(name))
    ax.axhline(peak, color=GREY, linestyle=":", label=f"learning_rate {peak:g}")
    ax.set_ylim(0, 1.1 * peak)
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(rates) + 1)
    label(ax, "weight updates", "learning rate", "How large are the steps?")
    return ax


def _panel(panel: Any, axis: Axis, report: SearchReport, top: float) -> None:
    for state, (colour, marker) in _LOOKS.items():
        trials = [trial for trial in report.trials if trial.state == state]
        places = [_place(axis, trial) for trial in trials]
        heights = [top if trial.value is None else trial.value for trial in trials]
        panel.scatter(places, heights, color=colour, marker=marker, s=49, label=state if trials else None)
    best = [trial for trial in report.ranked[:1] if trial.state == "finished"]
    places, values = [_place(axis, trial) for trial in best], [trial.value for trial in best]
    panel.scatter(places, values, s=200, facecolors="none", edgecolors=GREEN, linewidths=2, label="best")
    label(panel, axis.field + (" (log)" if axis.log else ""), "", "")
    if axis.choices:
        panel.set_xticks(range(len(axis.choices)), [plain(short(choice)) for choice in axis.choices])
        panel.set_xlim(-0.5, len(axis.choices) - 0.5)
        return
    middle, room = (axis.low + axis.high) / 2, (axis.high - axis.low) / 10
    ends = axis.low - room, axis.high + room
    if axis.log:
        panel.set_xscale("log")
        middle, factor = (axis.low * axis.high) ** 0.5, (axis.high / axis.low) ** 0.1
        ends = axis.low / factor, axis.high * factor
    ticks = [axis.low, axis.rounded(float(f"{middle:.1g}")), axis.high]
    panel.set_xticks(ticks, [short(tick) for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlim(*ends)  # the whole space, tried or not


def _place(axis: Axis, trial: Trial) -> Any:
    value = trial.settings[axis.field]
    return axis.choices.index(value) if axis.choices else value
