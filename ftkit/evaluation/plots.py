"""Is it better? drawn as bars with intervals. Knows scores, and neither models nor texts."""

import itertools
from collections.abc import Mapping
from typing import Any

from ftkit.figures import BLUE, GREEN, GREY, ORANGE, axes, label, plain

_LOOKS = ((GREY, "//"), (BLUE, ""), (ORANGE, ".."), (GREEN, "xx"))  # told apart without colours as well


def plot_scores(groups: Mapping[str, Mapping[str, Any]], ax: Any = None) -> Any:
    """Is it better? One bar a model in each group, in per cent, with 95 % intervals.

    Args:
        groups: `{group: {model: score}}`; a score has `value`, `low` and `high` between 0 and 1.
        ax: where to draw.
    """
    ax = axes(ax)
    names = list(dict.fromkeys(itertools.chain.from_iterable(groups.values())))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        colour, hatch = _LOOKS[place % len(_LOOKS)]
        present = [(group, bars[name]) for group, bars in enumerate(groups.values()) if name in bars]
        x = [group + (place - (len(names) - 1) / 2) * width for group, _ in present]
        heights = [100 * score.value for _, score in present]
        below = [100 * (score.value - score.low) for _, score in present]
        above = [100 * (score.high - score.value) for _, score in present]
        ax.bar(x, heights, 0.92 * width, color=colour, hatch=hatch, edgecolor="white", label=plain(name))
        ax.errorbar(x, heights, yerr=[below, above], fmt="none", color="black", capsize=3, linewidth=1)
        for left, height, reach in zip(x, heights, above, strict=True):
            ax.annotate(f"{height:.0f}", (left, height + reach), (0, 3), textcoords="offset points", ha="center")
    ax.set_xticks(range(len(groups)), list(map(plain, groups)))
    ax.set_ylim(0, 118)
    ax.set_yticks(range(0, 101, 20))
    ax.legend(frameon=False, ncols=len(names), loc="upper left")
    label(ax, "", "score, % (thin line: 95 % interval)", "Is it better?")
    return ax
