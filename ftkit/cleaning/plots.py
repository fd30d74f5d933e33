"""Figures of cleaning: what went, and what that changed.

Each takes an `ax` and gives it back; what is counted comes from a report or from the caller.
"""

from collections.abc import Sequence
from typing import Any

from ftkit.figures import BLUE, GREY, ORANGE, axes, label, plain


def plot_cleaned(report: Any, ax: Any = None) -> Any:
    """What went, and why? One bar a rule, with the rows that it dropped; `report` is a `CleanReport`."""
    ax = axes(ax)
    counts = [(plain(count.name), count.dropped, count.flagged + count.changed) for count in reversed(report.counts)]
    names, dropped, marked = zip(*counts, strict=True)
    ax.barh(names, dropped, color=ORANGE, label="dropped")
    if any(marked):
        look = {"color": GREY, "hatch": "//", "edgecolor": "white", "label": "kept, but flagged or changed"}
        ax.barh(names, marked, left=dropped, **look)
        ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for place, (went, kept) in enumerate(zip(dropped, marked, strict=True)):
        text = f"{went} + {kept}" if kept else str(went)
        ax.annotate(text, (went + kept, place), (4, 0), textcoords="offset points", va="center")
    ax.margins(x=0.1)
    label(ax, f"rows ({len(report.kept)} of {report.total} stay)", "", "What went, and why?")
    return ax


def plot_before_after(before: Sequence[float], after: Sequence[float], unit: str = "tokens", ax: Any = None) -> Any:
    """What did cleaning change? Two histograms of lengths on a logarithmic axis, the kept rows in front."""
    import numpy as np

    ax = axes(ax)
    low, high = max(1, min(before)), max(before) + 1
    bins = np.geomspace(low, high, 40)
    behind = {"color": GREY, "hatch": "//", "edgecolor": "white", "linewidth": 0}
    ax.hist(before, bins=bins, label=f"before, {len(before)} rows", **behind)
    ax.hist(after, bins=bins, color=BLUE, label=f"after, {len(after)} rows", edgecolor="white", linewidth=0.5)
    ax.set_xscale("log")
    ticks = np.outer(10 ** np.arange(7), (1, 2, 5)).ravel()
    ax.set_xticks(ticks[(low <= ticks) & (ticks <= high)], minor=False)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.xaxis.set_minor_formatter("")
    ax.set_yscale("log")  # a single far row is as tall as the eye needs it
    ax.set_ylim(bottom=0.7)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.legend(frameon=False)
    label(ax, f"length of an example, {plain(unit)} (log)", "examples (log)", "What did cleaning change?")
    return ax
