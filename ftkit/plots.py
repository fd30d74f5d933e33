"""One figure a question. Each takes an `ax` and gives it back; none calls `show`.

Colours are Okabe and Ito's, told apart by colour-blind readers; every line also differs in marker or dash.
"""

import base64
import io
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit import storage
from ftkit.history import History, Point

BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#8c8c8c", "#D55E00"
_DRAWING_SHARE = 0.01


def blank_axes(width: float = 7.0, height: float = 3.6) -> Any:
    """Axes on a figure of their own, outside pyplot: nothing pops up and nothing has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def save(ax: Any, path: str | Path) -> Path:
    """Write the figure of `ax` as PNG, whole or not at all."""
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png", dpi=120)
    return storage.write_bytes(path, buffer.getvalue())


def loss(history: History, ax: Any = None) -> Any:
    """Is it learning? Training loss raw and smoothed, validation loss, in nats a trained token."""
    ax = axes(ax)
    _draw_loss(ax, history.points)
    return ax


def lengths(tokens: Sequence[int], max_length: int, ax: Any = None) -> Any:
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


def cleaned(report: Any, ax: Any = None) -> Any:
    """What went, and why? One bar a rule, with the rows that it dropped; `report` is a `CleanReport`."""
    ax = axes(ax)
    counts = [(count.name, count.dropped, count.flagged + count.changed) for count in reversed(report.counts)]
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


def before_after(before: Sequence[float], after: Sequence[float], unit: str = "tokens", ax: Any = None) -> Any:
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
    ticks = [round(digit * 10.0**power) for power in range(7) for digit in (1, 2, 5)]
    ax.set_xticks([tick for tick in ticks if low <= tick <= high], minor=False)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.xaxis.set_minor_formatter("")
    ax.set_yscale("log")  # a single far row is as tall as the eye needs it
    ax.set_ylim(bottom=0.7)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.legend(frameon=False)
    label(ax, f"length of an example, {unit} (log)", "examples (log)", "What did cleaning change?")
    return ax


def scores(groups: Mapping[str, Mapping[str, Any]], ax: Any = None) -> Any:
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


def live_loss() -> "LiveLoss":
    """The loss figure that grows while a run trains: one picture that updates in a notebook, a progress bar elsewhere."""
    return LiveLoss(_in_notebook())


class LiveLoss:
    """Shows progress without slowing it: a redraw happens only once a hundred times its own cost has passed."""

    def __init__(self, in_notebook: bool) -> None:
        self._in_notebook = in_notebook
        self._handle: Any = None
        self._bar: Any = None
        self._picture = ""
        self._drawn_at = self._cost_s = 0.0
        self._began, self._first_step, self._updated = time.monotonic(), 0, False

    def start(self, total: int) -> None:
        """Show an empty bar for `total` updates."""
        self._began = time.monotonic()
        if self._in_notebook:
            from IPython.display import HTML, display

            self._handle = display(HTML(self._page([], total)), display_id=True)
        else:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, unit="step", file=sys.stderr, mininterval=1.0)

    def update(self, points: Sequence[Point], total: int) -> None:
        """Take in the newest point; redraw if enough time has passed."""
        now = time.monotonic()
        if not self._updated:
            self._updated, self._first_step = True, points[-1].step - 1
        if self._bar is not None:
            self._bar.update(points[-1].step - self._bar.n)
            self._bar.set_postfix_str(_latest(points), refresh=False)
        elif self._handle is not None and now - self._drawn_at >= self._cost_s / _DRAWING_SHARE:
            self._show(points, total)
            self._drawn_at, self._cost_s = time.monotonic(), time.monotonic() - now

    def finish(self, points: Sequence[Point], total: int) -> None:
        """Draw the last state."""
        if self._handle is not None:
            self._show(points, total)

    def close(self) -> None:
        """Close the bar; also after an error, or the message would stand in the middle of it."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, points: Sequence[Point], total: int) -> None:
        from IPython.display import HTML

        ax = blank_axes()
        _draw_loss(ax, points)
        ax.set_xlim(0, total)
        buffer = io.BytesIO()
        ax.figure.savefig(buffer, format="png", dpi=100)
        self._picture = base64.b64encode(buffer.getvalue()).decode()
        self._handle.update(HTML(self._page(points, total)))

    def _page(self, points: Sequence[Point], total: int) -> str:
        step = points[-1].step if points else 0
        line = f"step {step} of {total} {_latest(points)} {self._left(step, total)}"
        picture = f'<br><img alt="loss curve" src="data:image/png;base64,{self._picture}">' if self._picture else ""
        return f'<progress value="{step}" max="{total}" style="width:24em"></progress> {line}{picture}'

    def _left(self, step: int, total: int) -> str:
        spent = time.monotonic() - self._began
        if step >= total:
            return f"· {_clock(spent)} in all"
        return (
            f"· about {_clock(spent / (step - self._first_step) * (total - step))} left"
            if step > self._first_step
            else "· first step is the slowest"
        )


def _draw_loss(ax: Any, points: Sequence[Point]) -> None:
    trained = [(p.step, p.loss) for p in points if p.loss is not None]
    measured = [(p.step, p.val_loss) for p in points if p.val_loss is not None]
    if trained:
        steps, values = zip(*trained, strict=True)
        ax.plot(steps, values, color=BLUE, alpha=0.35, linewidth=1, label="training, each step")
        ax.plot(steps, smooth(values), color=BLUE, linewidth=2, label="training, smoothed")
    if measured:
        steps, values = zip(*measured, strict=True)
        ax.plot(steps, values, color=ORANGE, marker="o", linestyle="--", label="validation", clip_on=False)
    if trained or measured:
        ax.legend(frameon=False)
    ax.set_ylim(bottom=0)
    label(ax, "weight updates", "loss, nats a trained token", "Is it learning?")


def smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma and Ba 2015, section 3)."""
    smoothed, running, total = [], 0.0, 0.0
    for value in values:
        running, total = weight * running + (1 - weight) * value, weight * total + (1 - weight)
        smoothed.append(running / total)
    return smoothed


def _latest(points: Sequence[Point]) -> str:
    losses = [p.loss for p in points if p.loss is not None]
    return f"· loss {losses[-1]:.3f}" if losses else ""


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def axes(ax: Any) -> Any:
    """`ax` itself, or a new one where there is none."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(7.0, 3.6), layout="constrained")[1]


def label(ax: Any, x: str, y: str, title: str) -> None:
    """Name both axes with their units and ask the figure's question."""
    ax.set_xlabel(x)
    if x == "weight updates":  # there is no half update
        ax.locator_params(axis="x", integer=True)
    ax.set_ylabel(y)
    ax.set_title(title, loc="left")
    ax.spines[["top", "right"]].set_visible(False)


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ in {"ZMQInteractiveShell", "Shell"}
