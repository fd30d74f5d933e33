"""Figures of memory: what a run needs part by part, how it grows with length, and estimates beside public measurements."""

from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.config import TrainConfig
from ftkit.figures import BLUE, GREEN, GREY, ORANGE, RED, axes, label
from ftkit.memory.estimates import MemoryEstimate, estimate
from ftkit.memory.fitting import GPU
from ftkit.memory.shapes import ModelShape

_GROUPS = (  # what a bar's part is called, its colour and hatch, and the items that it sums up
    ("Python and its libraries", GREY, "", ("Python and its libraries", "16-bit weights, read to be quantised")),
    ("weights", BLUE, "", ("weights in 4-bit", "weights", "master weights")),
    ("embedding, head, norms beside 4-bit weights", "#56B4E9", "//", ("embedding, head, norms",)),
    ("gradients, adapter", GREEN, "..", ("adapter and its gradients", "gradients", "the update's temporary")),
    ("optimiser states", ORANGE, "xx", ("optimiser states",)),
    (
        "activations",
        "#CC79A7",
        "\\\\",
        ("inputs of layers", "activations of all layers", "one layer at work", "attention scores"),
    ),
    ("logits and their loss", "#F0E442", "++", ("logits and their loss",)),
)

_LINE_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", GREY)


def plot_parts(
    estimates: Mapping[str, MemoryEstimate], gpus: Sequence[GPU] = (), room_gib: float | None = None, ax: Any = None
) -> Any:
    """What takes the memory? One stacked bar a run, its range as a thin line, and the memory of cards as dashed lines.

    Args:
        estimates: by the name that the bar gets.
        gpus: cards whose usable memory is drawn in.
        room_gib: memory of this machine, drawn in as well.
        ax: where to draw.
    """
    ax = axes(ax)
    named: set[str] = set()
    for place, run in enumerate(reversed(list(estimates.values()))):
        left = 0.0
        for name, colour, hatch, items in _GROUPS:
            if not (size := sum(run[item] for item in items)):
                continue
            ax.barh(
                place,
                size,
                left=left,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
                label=None if name in named else name,
            )
            named.add(name)
            left += size
        ax.plot([run.low_gib, run.high_gib], [place, place], color="black", linewidth=1, marker="|", markersize=9)
    ax.set_yticks(range(len(estimates)), list(estimates)[::-1])
    _lines(
        ax,
        [(card.name, card.usable_gib) for card in gpus] + ([("this machine", room_gib)] if room_gib else []),
        len(estimates),
    )
    handles, names = ax.get_legend_handles_labels()
    order = [names.index(name) for name, *_ in _GROUPS if name in names]
    ax.legend(
        [handles[i] for i in order],
        [names[i] for i in order],
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        ncols=3,
        fontsize=8,
    )
    label(ax, "memory, GiB (thin line: from low to high)", "", "What takes the memory?")
    return ax


def _lines(ax: Any, rooms: Sequence[tuple[str, float]], bars: int) -> None:
    for name, gib in rooms:
        ax.axvline(gib, color=RED, linestyle="--", linewidth=1)
        ax.annotate(name, (gib, bars - 0.45), (3, 0), textcoords="offset points", color=RED, fontsize=8)
    ax.set_ylim(-0.6, bars - 0.2)


def plot_over_length(
    shape: ModelShape,
    configs: Mapping[str, TrainConfig],
    lengths: Sequence[int] = (512, 1024, 2048, 4096, 8192, 16384),
    gpus: Sequence[GPU] = (),
    ax: Any = None,
) -> Any:
    """How does it grow with length? One line a way of training; the band goes from low to high.

    Args:
        shape: the model.
        configs: settings by the name that the line gets; their `max_length` is replaced.
        lengths: tokens of the longest example.
        gpus: cards whose usable memory is drawn in.
        ax: where to draw.
    """
    ax = axes(ax)
    for (name, config), colour, mark in zip(configs.items(), _LINE_COLOURS, "osD^v", strict=False):
        runs = [estimate(shape, config.replace(max_length=length)) for length in lengths]
        ax.fill_between(
            lengths, [r.low_gib for r in runs], [r.high_gib for r in runs], color=colour, alpha=0.15, linewidth=0
        )
        ax.plot(lengths, [r.likely_gib for r in runs], color=colour, marker=mark, label=name)
    for card in gpus:
        ax.axhline(card.usable_gib, color=RED, linestyle="--", linewidth=1)
        ax.annotate(
            card.name,
            (lengths[-1], card.usable_gib),
            (0, 3),
            textcoords="offset points",
            ha="right",
            color=RED,
            fontsize=8,
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [f"{length:,}" for length in lengths], minor=False)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.legend(frameon=False)
    label(
        ax,
        "longest example, tokens (log)",
        "memory, GiB (log; band: low to high)",
        f"How does {shape.name} grow with length?",
    )
    return ax
