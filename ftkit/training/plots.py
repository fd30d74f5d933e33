"""Curves of several runs in one figure."""

import base64
import io
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit import figures
from ftkit.figures import BLUE, ORANGE, _in_notebook, axes, blank_axes, label, smooth
from ftkit.training.history import History, HistoryPoint

_LOOKS = tuple(
    zip(
        (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED, figures.GREY, "#CC79A7", "#56B4E9"),
        "os^Dvx+",
        strict=True,
    )
)


def plot_runs(runs: Mapping[str, History], ax: Any = None) -> Any:
    """Which settings learn better? Smoothed training loss as lines, validation loss as markers on dashes.

    Args:
        runs: `{name: history}`, one colour and marker each.
        ax: where to draw.
    """
    ax = figures.axes(ax)
    for (name, history), (colour, marker) in zip(runs.items(), itertools.cycle(_LOOKS), strict=False):
        if history.losses:
            steps, values = zip(*history.losses, strict=True)
            ax.plot(steps, figures.smooth(values), color=colour, linewidth=2, label=name)
        if history.val_losses:
            steps, values = zip(*history.val_losses, strict=True)
            ax.plot(steps, values, color=colour, marker=marker, linestyle="--", linewidth=1)
    if runs:
        ax.legend(frameon=False, fontsize="small")
    ax.set_ylim(bottom=0)
    figures.label(
        ax, "weight updates", "loss, nats a trained token", "Which settings learn better? (dashed: validation)"
    )
    return ax


def plot_curves(runs: Mapping[str, History], axes: Any = None) -> Any:
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
            ax.plot(steps, values, color=figures.BLUE, alpha=0.35, linewidth=1)
            ax.plot(steps, figures.smooth(values), color=figures.BLUE, linewidth=2, label="training, smoothed")
        if history.val_losses:
            steps, values = zip(*history.val_losses, strict=True)
            ax.plot(steps, values, color=figures.ORANGE, marker="o", linestyle="--", label="validation")
        ax.set_ylim(bottom=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
        figures.label(ax, "weight updates", "", name)
    axes[0].set_ylabel("loss, nats a token")
    axes[0].legend(frameon=False)
    return axes


def _row(count: int) -> list[Any]:
    from matplotlib import pyplot

    return list(pyplot.subplots(1, count, figsize=(2.9 * count, 2.9), layout="constrained", squeeze=False)[1][0])


_DRAWING_SHARE = 0.01


def plot_loss(history: History, ax: Any = None) -> Any:
    """Is it learning? Training loss raw and smoothed, validation loss, in nats a trained token."""
    ax = axes(ax)
    _draw_loss(ax, history.points)
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

    def update(self, points: Sequence[HistoryPoint], total: int) -> None:
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

        ax = blank_axes()
        _draw_loss(ax, points)
        ax.set_xlim(0, total)
        buffer = io.BytesIO()
        ax.figure.savefig(buffer, format="png", dpi=100)
        self._picture = base64.b64encode(buffer.getvalue()).decode()
        self._handle.update(HTML(self._page(points, total)))

    def _page(self, points: Sequence[HistoryPoint], total: int) -> str:
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


def _draw_loss(ax: Any, points: Sequence[HistoryPoint]) -> None:
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


def _latest(points: Sequence[HistoryPoint]) -> str:
    losses = [p.loss for p in points if p.loss is not None]
    return f"· loss {losses[-1]:.3f}" if losses else ""


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
