"""Curves of several runs in one figure."""

import itertools
from collections.abc import Mapping
from typing import Any

from ftkit import plots
from ftkit.history import History

_LOOKS = tuple(
    zip((plots.BLUE, plots.ORANGE, plots.GREEN, plots.RED, plots.GREY, "#CC79A7", "#56B4E9"), "os^Dvx+", strict=True)
)


def compare_runs(runs: Mapping[str, History], ax: Any = None) -> Any:
    """Which settings learn better? Smoothed training loss as lines, validation loss as markers on dashes.

    Args:
        runs: `{name: history}`, one colour and marker each.
        ax: where to draw.
    """
    ax = plots.axes(ax)
    for (name, history), (colour, marker) in zip(runs.items(), itertools.cycle(_LOOKS), strict=False):
        if history.losses:
            steps, values = zip(*history.losses, strict=True)
            ax.plot(steps, plots.smooth(values), color=colour, linewidth=2, label=name)
        if history.val_losses:
            steps, values = zip(*history.val_losses, strict=True)
            ax.plot(steps, values, color=colour, marker=marker, linestyle="--", linewidth=1)
    if runs:
        ax.legend(frameon=False, fontsize="small")
    ax.set_ylim(bottom=0)
    plots.label(ax, "weight updates", "loss, nats a trained token", "Which settings learn better? (dashed: validation)")
    return ax
