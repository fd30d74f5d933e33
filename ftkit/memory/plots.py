"""Figures of memory: what a run needs part by part, and how it grows with length. Draws estimates, computes none."""

from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.config import TrainConfig
from ftkit.figures import BLUE, GREEN, GREY, ORANGE, RED, axes, label, plain
from ftkit.memory.estimates import MemoryEstimate, estimate
from ftkit.memory.fitting import GPU
from ftkit.memory.shapes import ModelShape

_PINK, _SKY, _YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
_ALL_LAYERS = ("inputs of layers", "activations of all layers", "one layer at work", "attention scores")
_GROUPS = (  # what a piece of a bar is called, its colour and hatch, and the parts that it sums up
    ("Python and its libraries", GREY, "", ("Python and its libraries", "16-bit weights, read to be quantised")),
    ("weights", BLUE, "", ("weights in 4-bit", "weights", "master weights")),
    ("embedding, head, norms beside 4-bit weights", _SKY, "//", ("embedding, head, norms",)),
    ("gradients, adapter", GREEN, "..", ("adapter and its gradients", "gradients", "the update's temporary")),
    ("optimiser states", ORANGE, "xx", ("optimiser states",)),
    ("activations", _PINK, "\\\\", _ALL_LAYERS),
    ("logits and their loss", _YELLOW, "++", ("logits and their loss",)),
)


def plot_parts(
    estimates: Mapping[str, MemoryEstimate], gpus: Sequence[GPU] = (), room_gib: float | None = None, ax: Any = None
) -> Any:
    """What takes the memory? One stacked bar a run, its range as a thin line, and the memory of cards as dashed lines.

    `estimates` come by the name that the bar gets; `room_gib` is the memory of this machine.
    """
    ax = axes(ax)
    bottom_up = list(estimates.values())[::-1]
    lefts = [0.0] * len(bottom_up)
    for name, colour, hatch, parts in _GROUPS:
        sizes = [sum(run[part] for part in parts) for run in bottom_up]
        places = [place for place, size in enumerate(sizes) if size]
        if not places:
            continue
        widths, starts = [sizes[place] for place in places], [lefts[place] for place in places]
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
        ax.barh(places, widths, left=starts, label=name, **look)
        lefts = [left + size for left, size in zip(lefts, sizes, strict=True)]
    for place, run in enumerate(bottom_up):
        ax.plot([run.low_gib, run.high_gib], [place, place], color="black", linewidth=1, marker="|", markersize=9)
    ax.set_yticks(range(len(estimates)), list(map(plain, estimates))[::-1])
    rooms = [(card.name, card.usable_gib) for card in gpus]
    if room_gib:
        rooms.append(("this machine", room_gib))
    for name, gib in rooms:
        ax.axvline(gib, color=RED, linestyle="--", linewidth=1)
        ax.annotate(
            plain(name), (gib, len(estimates) - 0.45), (3, 0), textcoords="offset points", color=RED, fontsize=8
        )
    ax.set_ylim(-0.6, len(estimates) - 0.2)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize=8)
    label(ax, "memory, GiB (thin line: from low to high)", "", "What takes the memory?")
    return ax


def plot_over_length(
    shape: ModelShape,
    configs: Mapping[str, TrainConfig],
    lengths: Sequence[int] = (512, 1024, 2048, 4096, 8192, 16384),
    gpus: Sequence[GPU] = (),
    ax: Any = None,
) -> Any:
    """How does it grow with length? One line a set of settings, by its name; the band goes from low to high."""
    ax = axes(ax)
    colours = (BLUE, ORANGE, GREEN, _PINK, GREY)
    for (name, config), colour, mark in zip(configs.items(), colours, "osD^v", strict=False):
        runs = [estimate(shape, config.replace(max_length=length)) for length in lengths]
        lows, highs = [run.low_gib for run in runs], [run.high_gib for run in runs]
        ax.fill_between(lengths, lows, highs, color=colour, alpha=0.15, linewidth=0)
        ax.plot(lengths, [run.likely_gib for run in runs], color=colour, marker=mark, label=plain(name))
    for card in gpus:
        ax.axhline(card.usable_gib, color=RED, linestyle="--", linewidth=1)
        place = {"xy": (lengths[-1], card.usable_gib), "xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
        ax.annotate(plain(card.name), color=RED, fontsize=8, **place)
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [f"{length:,}" for length in lengths], minor=False)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.legend(frameon=False)
    title = f"How does {plain(shape.name)} grow with length?"
    label(ax, "longest example, tokens (log)", "memory, GiB (log; band: low to high)", title)
    return ax
