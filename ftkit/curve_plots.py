"""Curves side by side, each with an axis of its own: how do runs differ in shape?"""

from collections.abc import Mapping
from typing import Any

from ftkit import plots
from ftkit.history import History


def panels(runs: Mapping[str, History], axes: Any = None) -> Any:
    """How do these runs differ in shape? One small figure a run: training loss raw and smoothed, validation loss as circles on dashes.

    Args:
        runs: `{name: history}`.
        axes: as many axes as runs; a row of new ones by default.

    Returns:
        The axes, in the order of `runs`.
    """
    axes = _row(len(runs)) if axes is None else list(axes)
    for ax, (name, history) in zip(axes, runs.items(), strict=True):
        if history.losses:
            steps, values = zip(*history.losses, strict=True)
            ax.plot(steps, values, color=plots.BLUE, alpha=0.35, linewidth=1)
            ax.plot(steps, plots.smooth(values), color=plots.BLUE, linewidth=2, label="training, smoothed")
        if history.val_losses:
            steps, values = zip(*history.val_losses, strict=True)
            ax.plot(steps, values, color=plots.ORANGE, marker="o", linestyle="--", label="validation")
        ax.set_ylim(bottom=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
        plots.label(ax, "weight updates", "", name)
    axes[0].set_ylabel("loss, nats a token")
    axes[0].legend(frameon=False)
    return axes


def _row(count: int) -> list[Any]:
    from matplotlib import pyplot

    return list(pyplot.subplots(1, count, figsize=(2.9 * count, 2.9), layout="constrained", squeeze=False)[1][0])
