"""TODO."""

import itertools
from collections.abc import Mapping
from typing import Any

from ftkit.figures import BLUE, GREEN, GREY, ORANGE, axes, label


def plot_scores(groups: Mapping[str, Mapping[str, Any]], ax: Any = None) -> Any:
    """Is it better? One bar a model in each group, in per cent, with 95 % intervals.

    Args:
        groups: `{group: {model: score}}`; a score has `value`, `low` and `high` between 0 and 1.
        ax: where to draw.
    """
    ax = axes(ax)
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    width = 0.8 / len(names)
    for place, (name, colour, hatch) in enumerate(
        zip(
            names,
            itertools.cycle((GREY, BLUE, ORANGE, GREEN)),
            itertools.cycle(("//", "", "..", "xx", "\\\\")),
            strict=False,
        )
    ):
        for group, bars in enumerate(groups.values()):
            if name not in bars:
                continue
            score, x = bars[name], group + (place - (len(names) - 1) / 2) * width
            error = [[100 * (score.value - score.low)], [100 * (score.high - score.value)]]
            ax.bar(
                x,
                100 * score.value,
                width * 0.92,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                label=name if group == 0 else None,
            )
            ax.errorbar(x, 100 * score.value, yerr=error, color="black", capsize=3, linewidth=1)
            ax.annotate(
                f"{100 * score.value:.0f}", (x, 100 * score.high), (0, 3), textcoords="offset points", ha="center"
            )
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set_ylim(0, 118)
    ax.set_yticks(range(0, 101, 20))
    ax.legend(frameon=False, ncols=len(names), loc="upper left")
    label(ax, "", "score, % (thin line: 95 % interval)", "Is it better?")
    return ax
