"""Figures of searches: which setting moved the score, and where the learning rate breaks."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.figures import BLUE, GREEN, GREY, ORANGE, RED, axes, blank_axes, label
from ftkit.tuning.range_test import RateRange
from ftkit.tuning.study import Axis, SearchReport, Trial, shown

_LOOKS = {"finished": (BLUE, "o"), "pruned": (ORANGE, "s"), "diverged": (RED, "X"), "failed": (GREY, "P")}

_LINES = ((BLUE, "-"), (ORANGE, "--"), (RED, "-."), (GREEN, ":"))

_PANEL_INCHES, _A_ROW = 3.4, 3


def plot_search(report: SearchReport, figure: Any = None) -> Any:
    """Which setting moved the score? One panel a setting: validation loss of each trial, the best one ringed.

    Trials that were cut off stand at the loss that they had reached; those without a number stand at the top edge.

    Args:
        report: from `tuning.search`.
        figure: where to draw; by default a new one.

    Returns:
        The axes of the first panel.
    """
    figure = _pyplot_figure(len(report.space)) if figure is None else figure
    rows = -(-len(report.space) // _A_ROW)
    panels = figure.subplots(rows, min(_A_ROW, len(report.space)), squeeze=False, sharey=True).ravel()
    values = [trial.value for trial in report.trials if trial.value is not None]
    top = max(values, default=1.0) + 0.15 * (max(values, default=1.0) - min(values, default=0.0) or 1.0)
    for place, (panel, axis) in enumerate(zip(panels, report.space, strict=False)):
        _panel(panel, axis, report, top)
        label(
            panel,
            axis.field + (" (log)" if axis.log else ""),
            "" if place % _A_ROW else "validation loss, nats a token",
            "",
        )
    for panel in panels[len(report.space) :]:
        panel.set_visible(False)
    panels[0].set_title("Which setting moved the score?", loc="left")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names))
    return panels[0]


def plot_rate_range(found: RateRange, ax: Any = None) -> Any:
    """Where does learning begin, and where does it break? Loss against a growing rate, the rates worth trying shaded."""
    ax = axes(ax)
    ax.plot(found.rates, found.losses, color=BLUE, alpha=0.35, linewidth=1, marker=".", label="each step")
    ax.plot(found.rates, found.smoothed, color=BLUE, linewidth=2, label="smoothed")
    if found.zone is not None:
        ax.axvspan(
            *found.zone, color=GREEN, alpha=0.18, label=f"worth trying: {found.zone[0]:.2g} to {found.zone[1]:.2g}"
        )
        ax.axvline(found.suggestion, color=GREEN, linestyle="-.", label=f"begin with {found.suggestion:.2g}")
    if found.blew_up is not None:
        ax.axvline(found.blew_up, color=RED, linestyle="--", label=f"blew up at {found.blew_up:.2g}")
    ax.set_xscale("log")
    ax.set_ylim(0, 1.6 * max(found.smoothed[0], min(found.smoothed)))  # the explosion itself needs no room
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    label(
        ax, "learning rate (log)", "loss, nats a trained token", "Where does learning begin, and where does it break?"
    )
    return ax


def plot_schedules(rates: Mapping[str, Sequence[float]], peak: float, ax: Any = None) -> Any:
    """How large are the steps? The learning rate of each update under several schedules, and the rate that was asked for.

    Args:
        rates: for each schedule the rate of update 0, 1, 2 and so on.
        peak: the `learning_rate` of the config.
        ax: where to draw.
    """
    ax = axes(ax)
    for (name, values), (colour, dash) in zip(rates.items(), itertools.cycle(_LINES), strict=False):
        ax.plot(range(len(values)), values, color=colour, linestyle=dash, linewidth=2, label=name)
    ax.axhline(peak, color=GREY, linestyle=":", label=f"learning_rate {peak:g}")
    ax.set_ylim(0, 1.1 * peak)
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(rates) + 1)
    label(ax, "weight updates", "learning rate", "How large are the steps?")
    return ax


def blank_panels(panels: int) -> Any:
    """A figure for that many panels, outside pyplot: nothing pops up and nothing has to be closed."""
    figure = blank_axes(*_size(panels)).figure
    figure.clear()
    return figure


def _pyplot_figure(panels: int) -> Any:
    from matplotlib import pyplot

    return pyplot.figure(figsize=_size(panels), layout="constrained")


def _size(panels: int) -> tuple[float, float]:
    return max(4.6, _PANEL_INCHES * min(_A_ROW, panels)), 3.4 * -(-panels // _A_ROW)


def _panel(panel: Any, axis: Axis, report: SearchReport, top: float) -> None:
    for state, (colour, marker) in _LOOKS.items():
        trials = [trial for trial in report.trials if trial.state == state]
        heights = [top if trial.value is None else trial.value for trial in trials]
        panel.plot(
            [_place(axis, t) for t in trials],
            heights,
            color=colour,
            marker=marker,
            linestyle="",
            markersize=7,
            label=state if trials else None,
        )
    finished = [trial for trial in report.ranked[:1] if trial.state == "finished"]
    panel.plot(
        [_place(axis, t) for t in finished],
        [t.value for t in finished],
        color=GREEN,
        marker="o",
        markersize=14,
        markerfacecolor="none",
        markeredgewidth=2,
        linestyle="",
        label="best",
    )
    if axis.choices:
        panel.set_xticks(range(len(axis.choices)), [shown(choice) for choice in axis.choices])
        panel.set_xlim(-0.5, len(axis.choices) - 0.5)
        return
    if axis.log:
        panel.set_xscale("log")
    panel.set_xlim(*((axis.low / 1.15, axis.high * 1.15) if axis.log else _margin(axis.low, axis.high)))
    ticks = _ticks(axis)
    panel.set_xticks(ticks, [shown(tick) for tick in ticks])
    panel.set_xticks([], minor=True)


def _place(axis: Axis, trial: Trial) -> Any:
    value = trial.settings[axis.field]
    return axis.choices.index(value) if axis.choices else value


def _ticks(axis: Axis) -> list[Any]:
    """Both ends and a middle: as many numbers as fit under a small panel."""
    middle = (axis.low * axis.high) ** 0.5 if axis.log else (axis.low + axis.high) / 2
    ticks = [axis.low, axis.rounded(float(f"{middle:.1g}")), axis.high]
    return list(dict.fromkeys(ticks))


def _margin(low: float, high: float) -> tuple[float, float]:
    return low - 0.05 * (high - low), high + 0.05 * (high - low)
