"""A decision drawn: scores as dots with intervals, score against cost, score against training rows."""

from typing import Any

from ftkit.decision.verdicts import Decision
from ftkit.evaluation import Score
from ftkit.figures import BLUE, GREY, ORANGE, axes, label, plain

_TUNED, _PLAIN = (ORANGE, "s"), (BLUE, "o")


def plot_approaches(decision: Decision, ax: Any = None) -> Any:
    """Which approach is right most often? One dot an approach, with its 95 % interval; squares are fine-tuned.

    The grey band is the interval of the best, and a filled dot is the approach to take.
    """
    ax, shown = axes(ax), decision.scored
    if decision.best is not None:
        best = decision.score(decision.best)
        ax.axvspan(best.low, best.high, color=GREY, alpha=0.15, linewidth=0)
    for height, one in enumerate(shown):
        score, (colour, marker) = decision.score(one), _TUNED if one.tuned else _PLAIN
        ax.plot([score.low, score.high], [height, height], color=colour, linewidth=1.5)
        fill = colour if one is decision.chosen else "white"
        ax.plot([score.value], [height], marker, color=colour, markerfacecolor=fill, markersize=7)
    ax.set_yticks(range(len(shown)), [plain(one.name) for one in shown])
    ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    said = f"{plain(decision.metric.replace('_', ' '))} (line: 95 % interval; filled: take this one)"
    label(ax, said, "", "Which approach is right most often?")
    return ax


def plot_cost(decision: Decision, ax: Any = None) -> Any:
    """What does a better score cost? Minutes for all answers that are wanted, with training and search."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    ax = axes(ax)
    for one in decision.scored:
        score, (colour, marker) = decision.score(one), _TUNED if one.tuned else _PLAIN
        minutes = decision.terms.minutes(one)
        ax.plot([minutes, minutes], [score.low, score.high], color=colour, linewidth=1)
        fill = colour if one is decision.chosen else "white"
        ax.plot([minutes], [score.value], marker, color=colour, markerfacecolor=fill, markersize=7)
    ax.set_xscale("log")
    ax.margins(y=0.12)  # room for names below
    least, most = ax.get_xlim()
    for place, one in enumerate(sorted(decision.scored, key=decision.terms.minutes)):  # neighbours above and below
        minutes, score = decision.terms.minutes(one), decision.score(one)
        side, align = (6, "left") if minutes**2 < least * most else (-6, "right")
        how = {"xytext": (side, -12 if place % 2 else 5), "textcoords": "offset points", "ha": align}
        ax.annotate(plain(one.name), (minutes, score.value), fontsize="small", **how)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)) if most > 10 * least else MaxNLocator(6))
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.xaxis.set_minor_locator(NullLocator())
    said = f"minutes of this machine for {decision.terms.answers:,} answers, with what is spent once (log)"
    label(ax, said, plain(decision.metric.replace("_", " ")), "What does a better score cost?")
    return ax


def plot_data_needed(decision: Decision, ax: Any = None) -> Any:
    """Do I have enough data? The fine-tune's score with its 95 % interval, by the rows that it was trained on."""
    ax = axes(ax)
    rows = [count for count, _ in decision.curve]
    scores: list[Score] = [report.scores[decision.metric] for _, report in decision.curve]
    ax.plot(rows, [score.value for score in scores], "s-", color=ORANGE)
    for count, score in zip(rows, scores, strict=True):
        ax.plot([count, count], [score.low, score.high], color=ORANGE, linewidth=1)
    label(ax, "training rows", plain(decision.metric.replace("_", " ")), "Do I have enough data?")
    return ax
