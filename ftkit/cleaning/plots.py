"""Figures of cleaning: how long the examples are, what went, and what that changed.

Each takes an `ax` and gives it back; what is counted comes from a report or from the caller.
"""

from collections.abc import Sequence
from typing import Any

from ftkit.figures import BLUE, GREY, ORANGE, RED, axes, label, plain


def plot_lengths(tokens: Sequence[int], max_length: int, ax: Any = None) -> Any:
    """How long are the examples, and which would be cut? A histogram with the limit drawn in."""
    ax = axes(ax)
    cut = sum(n > max_length for n in tokens)
    ax.hist(tokens, bins=min(40, max(5, len(set(tokens)))), color=BLUE, edgecolor="white", linewidth=0.5)
    if max_length <= 3 * max(tokens):
        ax.axvline(
            max_length, color=RED, linestyle="--", label=f"max_length {max_length}: {cut} of {len(tokens)} rows cut"
        )
        ax.legend(frameon=False)
    label(ax, "length of an example, tokens", "examples", "How long are the examples?")
    return ax


def plot_cleaned(report: Any, ax: Any = None) -> Any:
    """What went, and why? One bar a rule, with the rows that it dropped; `report` is a `CleanReport`."""
    ax = axes(ax)
    counts = [(plain(count.name), count.dropped, count.flagged + count.changed) for count in reversed(report.counts)]
    names, dropped, marked = zip(*counts, strict=True)
    ax.barh(names, dropped, color=ORANGE, label="dropped")
    if any(marked):
        ax.barh(
            names, marked, left=dropped, color=GREY, hatch="//", edgecolor="white", label="kept, but flagged or changed"
        )
        ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for place, (went, kept) in enumerate(zip(dropped, marked, strict=True)):
        ax.annotate(
            f"{went}" + (f" + {kept}" if kept else ""),
            (went + kept, place),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    ax.margins(x=0.1)
    label(ax, f"rows ({len(report.kept)} of {report.total} stay)", "", "What went, and why?")
    return ax


def plot_before_after(before: Sequence[float], after: Sequence[float], unit: str = "tokens", ax: Any = None) -> Any:
    """What did cleaning change? Two histograms of lengths on a logarithmic axis, the kept rows in front."""
    import numpy as np

    ax = axes(ax)
    low, high = max(1, min(before)), max(before) + 1
    bins = np.geomspace(low, high, 40)
    ax.hist(
        before, bins=bins, color=GREY, label=f"before, {len(before)} rows", hatch="//", edgecolor="white", linewidth=0
    )
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
