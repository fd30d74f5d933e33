"""Loss curves: of one run, of a run while it trains, of several runs side by side.

One function draws a curve, and all figures here use it. The tuning panel draws its small charts itself, as SVG: it
redraws them at every move of a slider, where a picture would be too slow.
"""

import base64
import io
import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit import figures
from ftkit.tables import escaped
from ftkit.training.history import History, HistoryPoint

_COLOURS = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED, figures.GREY, "#CC79A7", "#56B4E9")
_MARKERS = "os^Dvx+"
_DRAWING_SHARE = 0.01  # of a run's time that its figure may take
_UPDATES, _LOSS = "weight updates", "loss (nats per token)"


def plot_loss(history: History, ax: Any = None) -> Any:
    """Is it learning? Training loss raw and smoothed, validation loss, in nats per trained token."""
    ax = figures.axes(ax)
    _draw_loss(ax, history)
    if history.points:
        ax.legend(frameon=False)
    figures.label(ax, _UPDATES, _LOSS, "Is it learning?")
    return ax


def plot_runs(runs: Mapping[str, History], ax: Any = None) -> Any:
    """Which settings learn better? Smoothed training loss as lines, validation loss as markers on dashes.

    Args:
        runs: `{name: history}`, one colour and marker each.
        ax: where to draw.
    """
    ax = figures.axes(ax)
    looks = itertools.cycle(zip(_COLOURS, _MARKERS, strict=True))
    for (name, history), (colour, marker) in zip(runs.items(), looks, strict=False):
        _draw_loss(ax, history, name=name, colours=(colour, colour), marker=marker)
    ax.autoscale(axis="y")  # the first curve has fixed the upper end, and another may lie above it
    ax.set_ylim(bottom=0)
    if runs:
        ax.legend(frameon=False, fontsize="small")
    figures.label(ax, _UPDATES, _LOSS, "Which settings learn better? (lines: smoothed; dashed: validation)")
    return ax


def plot_curves(runs: Mapping[str, History], axes: Any = None) -> Any:
    """How do these runs differ in shape? One small figure a run: training loss raw and smoothed, and validation loss.

    A dotted line, with its height, is where the last third of the training loss lies: the scales differ.

    Args:
        runs: `{name: history}`.
        axes: as many axes as runs; by default new ones, up to four in a row, or rows of three.

    Returns:
        The axes, in the order of `runs`.
    """
    if axes is None:
        from matplotlib import pyplot

        columns = len(runs) if len(runs) <= 4 else 3
        rows = math.ceil(len(runs) / columns)
        size = (2.9 * columns, 2.9 * rows)
        grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1]
        axes = grid.flat[: len(runs)]
        for ax in grid.flat[len(runs) :]:
            ax.set_axis_off()
    for place, (ax, (name, history)) in enumerate(zip(axes, runs.items(), strict=True)):
        _draw_loss(ax, history)
        _draw_end(ax, history, label="last third" if place == 0 else None)
        figures.label(ax, _UPDATES, "", figures.plain(name))
    axes[0].set_ylabel(_LOSS)
    axes[0].legend(frameon=False, fontsize="small")
    return list(axes)


def _draw_end(ax: Any, history: History, label: str | None) -> None:
    """Where the last third of the training loss lies; crosses at the bottom where a loss is no number."""
    last = [value for _, value in history.losses[-max(1, len(history.losses) // 3) :] if math.isfinite(value)]
    if last:
        end = statistics.median(last)
        ax.axhline(end, color=figures.GREY, linestyle=":", linewidth=1.5, label=label)
        edge = ax.get_yaxis_transform()
        # At the left: at the right end the last validation loss may lie on it.
        ax.text(0.02, end, f"{end:.2g}", transform=edge, color=figures.GREY, va="bottom", fontsize="small")
    if lost := [step for step, value in history.losses if not math.isfinite(value)]:
        ax.plot(lost, [0.0] * len(lost), "x", color=figures.RED, label="not a number", clip_on=False)
        ax.legend(frameon=False, fontsize="small", handles=ax.lines[-1:])


def _draw_loss(
    ax: Any,
    history: History,
    *,
    name: str = "",
    colours: tuple[str, str] = (figures.BLUE, figures.ORANGE),
    marker: str = "o",
) -> None:
    """The curve of one run; under a `name` it is one of several in a figure, and its raw losses would be in the way."""
    training, validation = colours
    if history.losses:
        steps, values = zip(*history.losses, strict=True)
        if not name:
            ax.plot(steps, values, color=training, alpha=0.35, linewidth=1, label="training, each step")
        ax.plot(
            steps,
            figures.smooth(values),
            color=training,
            linewidth=2,
            label=figures.plain(name) if name else "training, smoothed",
            clip_on=False,  # a loss of 0 lies on the axis
        )
    if history.val_losses:
        steps, values = zip(*history.val_losses, strict=True)
        label = None if name else "validation"
        ax.plot(steps, values, color=validation, marker=marker, linestyle="--", label=label, clip_on=False)
    ax.set_ylim(bottom=0)


def live_loss() -> "LiveLoss":
    """The loss figure that grows while a run trains: a picture that updates in a notebook, a progress bar elsewhere."""
    return LiveLoss(figures.in_notebook())


class LiveLoss:
    """Shows progress without slowing it: a redraw happens only once a hundred times its own cost has passed."""

    def __init__(self, in_notebook: bool) -> None:
        self._in_notebook = in_notebook
        self._handle: Any = None
        self._bar: Any = None
        self._picture = ""
        self._drawn_at = self._cost_s = 0.0
        self._began = time.monotonic()
        self._first_step: int | None = None  # a resumed run does not begin at zero

    def start(self, total: int) -> None:
        """Show an empty bar for `total` updates."""
        self._began = time.monotonic()
        if self._in_notebook:
            from IPython.display import HTML, display

            self._handle = display(HTML(self._page([], total)), display_id=True)
        else:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, unit="step", file=sys.stderr, mininterval=1.0)

    def update(self, points: Sequence[HistoryPoint], total: int) -> None:
        """Take in the newest point; redraw if enough time has passed."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = points[-1].step - 1
        if self._bar is not None:
            self._bar.update(points[-1].step - self._bar.n)
            self._bar.set_postfix_str(_latest(points), refresh=False)
        elif self._handle is not None and now - self._drawn_at >= self._cost_s / _DRAWING_SHARE:
            self._show(points, total)
            self._drawn_at, self._cost_s = time.monotonic(), time.monotonic() - now

    def finish(self, points: Sequence[HistoryPoint], total: int) -> None:
        """Draw the last state."""
        if self._handle is not None:
            self._show(points, total)

    def close(self) -> None:
        """Close the bar; also after an error, or the message would stand in the middle of it."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, points: Sequence[HistoryPoint], total: int) -> None:
        from IPython.display import HTML

        ax = plot_loss(History.of(list(points)), figures.blank_axes())
        ax.set_xlim(0, total)
        buffer = io.BytesIO()
        ax.figure.savefig(buffer, format="png", dpi=100)
        self._picture = base64.b64encode(buffer.getvalue()).decode()
        self._handle.update(HTML(self._page(points, total)))

    def _page(self, points: Sequence[HistoryPoint], total: int) -> str:
        step = points[-1].step if points else 0
        line = f"step {step} of {total} {_latest(points)} {self._left(step, total)}"
        alt = escaped(f"Training loss over the weight updates, {step} of {total} {_latest(points)}")
        picture = f'<br><img alt="{alt}" src="data:image/png;base64,{self._picture}">' if self._picture else ""
        return f'<progress value="{step}" max="{total}" style="width:24em"></progress> {line}{picture}'

    def _left(self, step: int, total: int) -> str:
        spent, made = time.monotonic() - self._began, step - (self._first_step or 0)
        if step >= total:
            return f"· {_clock(spent)} in all"
        if made <= 0:
            return "· first step is the slowest"
        return f"· about {_clock(spent / made * (total - step))} left"


def _latest(points: Sequence[HistoryPoint]) -> str:
    losses = [p.loss for p in points if p.loss is not None]
    return f"· loss {losses[-1]:.3f}" if losses else ""


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
