"""What every figure shares: axes, labels, colours, smoothing, a file; and whether a person is there to see it.

Each room draws its own figures, one a question: `ax` in, `ax` out, never `show`. Colours are Okabe and Ito's, told
apart by colour-blind readers; every line also differs in marker or dash.
"""

import base64
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftkit import files
from ftkit.tables import escaped, flat

BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#8c8c8c", "#D55E00"


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
    return files.write_bytes(path, buffer.getvalue())


def picture(ax: Any, path: str | Path, alt: str) -> Any:
    """Save the figure of `ax`, and give it back to be shown with `alt`, which says what it shows.

    A notebook that shows the figure by itself has nowhere to put such words, so it will not.
    """
    from IPython.display import HTML

    data = base64.b64encode(save(ax, path).read_bytes()).decode()
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(ax.figure)
    width = round(100 * ax.figure.get_figwidth())
    return HTML(f'<img alt="{escaped(alt)}" width="{width}" src="data:image/png;base64,{data}">')


def smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma and Ba 2015, section 3)."""
    smoothed, running, total = [], 0.0, 0.0
    for value in values:
        running, total = weight * running + (1 - weight) * value, weight * total + (1 - weight)
        smoothed.append(running / total)
    return smoothed


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


def plain(name: Any, longest: int = 40) -> str:
    """Somebody's name as a label: a dollar sign begins no formula, a leading underscore does not hide it."""
    text = flat(name)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def in_notebook() -> bool:
    """Whether this code runs in a notebook's kernel."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ in {"ZMQInteractiveShell", "Shell"}


def front_end() -> bool:
    """Whether a person sits before this kernel; `headless` sets a mark in the environment of those it starts."""
    return in_notebook() and "FTKIT_HEADLESS" not in os.environ
