"""Is it better? drawn with intervals, as dots or bars. Knows scores, and neither models nor texts."""

import itertools
from collections.abc import Mapping
from typing import Any

from ftkit.errors import DataError
from ftkit.evaluation.comparing import Comparison
from ftkit.evaluation.drift import Forgetting
from ftkit.evaluation.scoring import spelt
from ftkit.figures import BLUE, GREEN, GREY, ORANGE, RED, axes, label, plain

_LOOKS = ((GREY, "//"), (BLUE, ""), (ORANGE, ".."), (GREEN, "xx"), (RED, "\\\\"))  # told apart without colours as well
_DOTS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (RED, "D"), (GREY, "v"))


def plot_scores(groups: Mapping[str, Mapping[str, Any]], ax: Any = None) -> Any:
    """Is it better? One bar a model in each group, in per cent, with 95 % intervals.

    Args:
        groups: `{group: {model: score}}`; a score has `value`, `low` and `high` between 0 and 1.
        ax: where to draw.
    """
    ax = axes(ax)
    names = list(dict.fromkeys(itertools.chain.from_iterable(groups.values())))
    if not names:
        raise DataError("There are no scores to draw: {'exact match': {'base': before.exact_match}} is wanted.")
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
            ax.annotate(f"{height:.3g}", (left, height + reach), (0, 3), textcoords="offset points", ha="center")
    ax.set_xticks(range(len(groups)), list(map(plain, groups)))
    ax.set_ylim(0, 118)
    ax.set_yticks(range(0, 101, 20))
    ax.legend(frameon=False, ncols=len(names), loc="upper left")
    label(ax, "", "score, % (thin line: 95 % interval)", "Is it better?")
    return ax


def plot_comparison(comparison: Comparison, ax: Any = None) -> Any:
    """How far does each system lie from the baseline? One dot a system and metric, with its 95 % interval.

    Dots right of the line are better. A filled dot is a difference that this sample can tell; the grey band is what it
    could not find in the metric of the verdict.

    Args:
        comparison: of two systems or more.
        ax: where to draw.
    """
    ax = axes(ax)
    shown = [d for d in comparison.differences if d.scale > 1]
    names = [report.name for report in comparison.reports[1:]]
    metrics = list(dict.fromkeys(d.metric for d in shown))
    for place, metric in enumerate(metrics):
        colour, marker = _DOTS[place % len(_DOTS)]
        for d in (d for d in shown if d.metric == metric):
            height = names.index(d.name) + 0.16 * (place - (len(metrics) - 1) / 2)
            told = d.better or d.worse
            low, value, high = 100 * d.score.low, 100 * d.score.value, 100 * d.score.high
            ax.plot([low, high], [height, height], color=colour, linewidth=1.5)
            ax.plot(
                [value],
                [height],
                marker,
                color=colour,
                markerfacecolor=colour if told else "white",
                label=plain(spelt(metric)) if d.name == names[0] else None,
            )
    blind = min(100, max((100 * d.detectable for d in shown if d.metric == comparison.metric), default=0))
    ax.axvspan(
        -blind,
        blind,
        color=GREY,
        alpha=0.15,
        linewidth=0,
        label=f"{plain(spelt(comparison.metric))}: would often be missed",
    )
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(names)), list(map(plain, names)))
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.legend(frameon=False, fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    baseline = plain(comparison.before.name)
    label(ax, f"points beyond {baseline} (line: 95 % interval; filled: told apart)", "", "Is it better?")
    return ax


def plot_forgetting(reports: Mapping[str, Forgetting], ax: Any = None) -> Any:
    """What did each adapter forget? One dot an adapter: what it adds to the loss of general text, with its interval.

    A filled dot is a change that these texts can tell from none.

    Args:
        reports: `{adapter: forgetting}`.
        ax: where to draw.
    """
    ax = axes(ax)
    for height, report in enumerate(reports.values()):
        change, told = report.change, report.forgot or report.change.high < 0
        ax.plot([change.low, change.high], [height, height], color=BLUE, linewidth=1.5)
        ax.plot([change.value], [height], "o", color=BLUE, markerfacecolor=BLUE if told else "white")
        text = f"{round(change.value, 2) + 0:+.2f}"  # + 0 makes no -0.00 of a small loss
        ax.annotate(text, (change.value, height), (0, 6), textcoords="offset points", ha="center")
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(reports)), list(map(plain, reports)))
    ax.set_ylim(len(reports) - 0.5, -0.7)
    label(ax, "change of loss, nats per token (line: 95 % interval)", "", "What did each adapter forget?")
    return ax
