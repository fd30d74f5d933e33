"""Figures of the lessons on LoRA, quantisation, PEFT, Unsloth and memory: each answers one question.

Computes no more than a figure needs; what is drawn comes from the cells.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.figures import BLUE, GREEN, GREY, ORANGE, RED, axes, label, plain
from ftkit.lessons import lora, quantization
from ftkit.lessons.backends import SideBySide
from ftkit.lessons.measured import Measurement
from ftkit.memory import MemoryEstimate

_LOOKS = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (RED, ":", "D"), (GREY, "-", "v"))


def plot_against_measured(pairs: Sequence[tuple[Measurement, MemoryEstimate]], ax: Any = None) -> Any:
    """Can it be believed? Each measurement against its estimate, as `held_out` gives them; on the line they agree."""
    ax = axes(ax)
    marks = {"full": ("D", ORANGE), "lora": ("s", GREEN), "qlora": ("o", BLUE)}
    for method, (mark, colour) in marks.items():
        chosen = [(point, found) for point, found in pairs if point.setup.method == method]
        guesses = [found.likely_gib for _, found in chosen]
        peaks, name = [point.allocated_gib for point, _ in chosen], f"{method}, {len(chosen)} runs"
        ax.scatter(peaks, guesses, marker=mark, color=colour, alpha=0.7, s=28, label=name if chosen else None)
    measured = [point.allocated_gib for point, _ in pairs]
    ends = [0.8 * min(measured), 1.2 * max(measured)]
    ax.plot(ends, ends, color="black", linewidth=1)
    near = [[share * end for end in ends] for share in (0.95, 1.05)]
    ax.fill_between(ends, *near, color=GREY, alpha=0.3, linewidth=0, label="within 5 %")
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter("")
    ax.legend(frameon=False)
    label(ax, "measured peak, GiB (log)", "estimated, GiB (log)", "Can the estimate be believed?")
    return ax


def plot_spectrum(updates: Mapping[str, Sequence[float]], ax: Any = None) -> Any:
    """Is the update of low rank? First singular values of each, as a share of the largest, on a logarithmic axis."""
    ax = axes(ax)
    shares = {name: [max(value / values[0], 1e-9) for value in values[:64]] for name, values in updates.items()}
    _lines(ax, shares, size=3)
    ax.set_yscale("log")
    ax.set_ylim(1e-2, 1.5)
    label(ax, "singular value, largest first", "size, share of the largest (log)", "Is the update of low rank?")
    return ax


def plot_rank_tradeoff(layers: Sequence[lora.Target], values: Sequence[float], r: int = 16, ax: Any = None) -> Any:
    """What does a rank buy? Share of an update that the best approximation keeps, and parameters of the whole adapter.

    `layers` is what the adapter attaches to, `values` are the singular values of the update; rank `r` is marked.
    """
    ax = axes(ax)
    ranks = [rank for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256) if rank < len(values)]
    shares = lora.rank_shares(values)
    counts = [lora.adapter_parameters(layers, rank) / 1e6 for rank in ranks]
    ax.plot(ranks, [shares[rank] for rank in ranks], color=BLUE, marker="o", label="share of the update kept (left)")
    right = _right(ax, ranks, counts, "trainable parameters (right, log)", "trainable parameters, millions (log)")
    right.set_yscale("log")
    _powers_of_two(ax, ranks, r)
    _percent(ax)
    ax.set_ylim(0, 1.02)
    chosen = f"r={r}: {shares[r]:.0%} kept, {lora.adapter_parameters(layers, r) / 1e6:.2f} M"
    label(ax, "rank r", "share of the squared size", f"What does a rank buy?  {chosen}")
    return ax


def plot_losses(
    losses: Mapping[str, Sequence[float]], ax: Any = None, title: str = "Which variant learns faster?"
) -> Any:
    """Training losses over each other."""
    ax = axes(ax)
    _lines(ax, losses)
    ax.set_ylim(bottom=0)
    label(ax, "weight updates", "loss (nats per token)", title)
    return ax


def plot_levels(levels: Sequence[float], weights: Any, ax: Any = None) -> Any:
    """Do the levels lie where the weights are? Weights over their block's largest, and the levels as lines."""
    ax = axes(ax)
    ax.hist(weights.reshape(-1).tolist(), bins=120, color=GREY, label="real weights / largest of their block")
    for place, level in enumerate(levels):
        ax.axvline(level, color=BLUE, linewidth=1, label="levels of NF4" if place == 0 else None)
    _legend_below(ax)
    label(ax, "weight / largest of its block of 64", "weights", "Do the levels lie where the weights are?")
    return ax


def plot_rounding(errors: Mapping[str, Sequence[float]], ax: Any = None) -> Any:
    """What does rounding cost? One group of dots a format, one dot a layer, with the median as a bar."""
    ax = axes(ax)
    for place, values in enumerate(errors.values()):
        middle = statistics.median(values)
        spread = [place - 0.2 + 0.4 * i / max(1, len(values) - 1) for i in range(len(values))]
        ax.bar(place, middle, color=BLUE, alpha=0.35, width=0.6)
        ax.plot(spread, values, color=BLUE, marker="o", linestyle="", markersize=3)
        ax.annotate(f"{middle:.1%}", (place, max(values)), (0, 4), textcoords="offset points", ha="center")
    ax.set_xticks(range(len(errors)), list(map(plain, errors)))
    _percent(ax)
    ax.margins(y=0.12)
    label(ax, "stored as, blocks of 64", "relative error of a matrix", "What does rounding cost?")
    return ax


def plot_blocksize(weights: Any, size: int = 64, kind: str = "nf4", ax: Any = None) -> Any:
    """What does a block size buy? Error of storing `weights`, beside the bits that the scales add."""
    ax = axes(ax)
    sizes = [16, 32, 64, 128, 256, 512, 1024, 4096]
    errors = [quantization.error(weights, kind, each) for each in sizes]
    ax.plot(sizes, errors, color=BLUE, marker="o", label="error (left)")
    _right(ax, sizes, [32 / each for each in sizes], "bits for scales (right)", "bits per parameter for fp32 scales")
    _powers_of_two(ax, sizes, size)
    _percent(ax)
    ax.set_ylim(bottom=0)
    chosen = f"{kind}, {size}: {quantization.error(weights, kind, size):.1%}, {32 / size:.3f} bits"
    label(ax, "weights that share a scale", "relative error", f"What does a block size buy?  {chosen}")
    return ax


def plot_saved_by_qlora(pairs: Sequence[Any], ax: Any = None) -> Any:
    """How much smaller is training? Published peaks of 16-bit LoRA over those of QLoRA, from `measured_pairs`."""
    ax = axes(ax)
    sizes, ratios = [pair.parameters / 1e9 for pair in pairs], [pair.ratio for pair in pairs]
    lengths = [pair.length for pair in pairs]
    marks = [15 + length / 40 for length in lengths]  # told apart without colours as well
    dots = ax.scatter(sizes, ratios, c=lengths, s=marks, cmap="viridis_r", edgecolor="white", zorder=3)
    ax.figure.colorbar(dots, label="length of a row, tokens")
    ax.axhspan(4, 8, color=ORANGE, alpha=0.3, label="often claimed: 4 to 8 times")
    ax.axhline(1, color=GREY, linestyle=":", label="nothing saved")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_yscale("log")
    ax.set_ylim(0.8, 9)
    ax.set_yticks([1, 1.5, 2, 4, 8], ["1", "1.5", "2", "4", "8"])
    ax.yaxis.set_minor_formatter("")
    _legend_below(ax)
    title = "How much smaller is training?"
    label(ax, "parameters of the model, billions (log)", "peak of LoRA / peak of QLoRA", title)
    return ax


def plot_adapter_weight(losses: Mapping[float, float], weight: float = 1.0, ax: Any = None) -> Any:
    """How loud should the adapter be? Held-out loss against the factor on BA: 0 is the base model, 1 what was trained.

    `weight`, one of the factors, is marked.
    """
    ax = axes(ax)
    ax.plot(list(losses), list(losses.values()), color=BLUE, marker="o")
    ax.axvline(weight, color=GREY, linestyle=":")
    ax.plot([weight], [losses[weight]], color=ORANGE, marker="D", markersize=9)
    ax.set_ylim(bottom=0)
    title = f"How loud should the adapter be?  at {weight:g}: {losses[weight]:.3f}"
    label(ax, "factor on BA", "held-out loss", title)
    return ax


def plot_backends(side: SideBySide) -> Any:
    """What does a backend change? Tokens a second with every repeat, memory and losses of the same run."""
    from matplotlib import pyplot

    layout = {"figsize": (10.5, 3.6), "layout": "constrained", "width_ratios": (1, 1, 1.3)}
    _, (speed, memory, loss) = pyplot.subplots(1, 3, **layout)
    names = [plain(run.name).replace(", ", ",\n") for run in side.runs]
    colours = [_LOOKS[i % len(_LOOKS)][0] for i in range(len(names))]
    told = [run.tokens_per_s if run.steady else 0 for run in side.runs]  # no bar invites a comparison that is refused
    speed.barh(names, told, color=colours, alpha=0.5)
    for place, run in enumerate(side.runs):
        speed.plot(run.rates, [place] * len(run.rates), color="black", marker="|", markersize=14, linestyle="")
        said = f"{run.tokens_per_s:.0f}" if run.steady else "too noisy" if run.spread is not None else "not repeated"
        speed.annotate(said, (0, place), (4, 0), textcoords="offset points", va="center", fontweight="bold")
    bars = memory.barh(names, [run.peak_gib for run in side.runs], color=colours)
    memory.bar_label(bars, fmt="%.2f", padding=-34, color="white", fontweight="bold")
    speed.invert_yaxis()
    memory.invert_yaxis()
    memory.set_yticks([])
    plot_losses({run.name: run.losses for run in side.runs}, ax=loss)
    label(speed, "tokens/s, a stroke each repeat", "", "Is it faster?")
    label(memory, "peak, GiB", "", "Is it smaller?")
    label(loss, "weight updates", "loss", "Does it learn the same?")
    return speed


def plot_by_length(rows: Sequence[Mapping[str, Any]], ax: Any = None) -> Any:
    """When does Unsloth pay? Recorded speed-up and memory saved against the length of the sequences, beside the claim.

    Lengths at which the plain run was out of memory have nothing to compare with: there the figure says so.
    """
    ax = axes(ax)
    both = [row for row in rows if row["plain_gb"]]
    lengths = [row["length_tokens"] for row in both]
    faster = [row["unsloth_tokens_per_s"] / row["plain_tokens_per_s"] - 1 for row in both]
    saved = [1 - row["unsloth_gb"] / row["plain_gb"] for row in both]
    _lines(ax, {"faster by": faster, "memory saved": saved}, xs=lengths)
    ax.axhline(1.0, color=BLUE, linewidth=1, linestyle=":", label="the claim: 2 times as fast")
    ax.axhline(0.6, color=ORANGE, linewidth=1, linestyle=":", label="the claim: 60 % less memory")
    lost = [row["length_tokens"] for row in rows if not row["plain_gb"]]
    if lost:
        ax.axvspan(lost[0] / 1.41, lost[-1] * 1.2, color=GREY, alpha=0.25, linewidth=0)
        ax.annotate("plain: out\nof memory", ((lost[0] * lost[-1]) ** 0.5, 0.3), ha="center", fontsize=9)
    _powers_of_two(ax, [*lengths, *lost])
    ax.set_xticklabels([f"{tick / 1024:.0f}k" for tick in (*lengths, *lost)])
    _percent(ax)
    ax.set_ylim(0, 1.08)
    _legend_below(ax)
    label(ax, "length of a sequence, tokens (1k is 1,024)", "against the plain run", "When does Unsloth pay?")
    return ax


def plot_speed_ups(speed_ups: Mapping[str, Sequence[float]], claim: float = 2.0, ax: Any = None) -> Any:
    """Faster than what? One line of dots for each opponent, each dot a measured run; the claim is dotted."""
    ax = axes(ax)
    for place, (opponent, times) in enumerate(speed_ups.items()):
        colour, _, marker = _LOOKS[place % len(_LOOKS)]
        ax.plot(times, [place] * len(times), color=colour, marker=marker, linestyle="", label=opponent)
    ax.axvline(claim, color=ORANGE, linestyle=":", label="the claim")
    ax.axvline(1, color=GREY, linewidth=1)
    ax.set_yticks(range(len(speed_ups)), list(map(plain, speed_ups)))
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    label(ax, "Unsloth, times as fast as this opponent", "", "Faster than what?")
    return ax


def plot_translation(fields: Mapping[str, Mapping[str, int]], ax: Any = None) -> Any:
    """What becomes of settings and fields on the other side? A bar for each direction, by how many have which fate."""
    ax = axes(ax)
    fates = list(dict.fromkeys(itertools.chain.from_iterable(fields.values())))
    left = dict.fromkeys(fields, 0)
    for fate, (colour, hatch) in zip(fates, ((BLUE, ""), (ORANGE, "//"), (GREY, "..")), strict=False):
        counts = [fields[way].get(fate, 0) for way in fields]
        bars = ax.barh(list(fields), counts, left=list(left.values()), color=colour, hatch=hatch, edgecolor="white")
        bars.set_label(fate)
        ax.bar_label(bars, [count or "" for count in counts], label_type="center", bbox={"fc": "white", "ec": "none"})
        left = {way: left[way] + count for way, count in zip(fields, counts, strict=True)}
    ax.invert_yaxis()
    label(ax, "settings or fields", "", "What becomes of each on the other side?")
    _legend_below(ax)
    return ax


def _lines(ax: Any, series: Mapping[str, Sequence[float]], size: float = 4, xs: Sequence[float] | None = None) -> None:
    """Lines that differ in colour, dash and marker, over 1, 2, 3 … unless `xs` says otherwise, with a legend."""
    for (name, values), (colour, dash, marker) in zip(series.items(), itertools.cycle(_LOOKS), strict=False):
        places = xs or range(1, len(values) + 1)
        ax.plot(places, values, color=colour, linestyle=dash, marker=marker, markersize=size, label=plain(name))
    if xs is None:
        ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False)


def _right(ax: Any, xs: Sequence[float], values: Sequence[float], name: str, unit: str) -> Any:
    """A second quantity with an axis of its own on the right; both are named below."""
    right = ax.twinx()
    right.plot(xs, values, color=ORANGE, marker="s", linestyle="--", label=name)
    right.set_ylabel(unit)
    right.spines["top"].set_visible(False)
    _legend_below(ax, [*ax.get_lines(), *right.get_lines()])
    return right


def _legend_below(ax: Any, handles: Sequence[Any] | None = None) -> None:
    place = {"frameon": False, "loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
    ax.legend(handles=handles, **place)


def _powers_of_two(ax: Any, ticks: Sequence[int], marked: int | None = None) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    if marked is not None:
        ax.axvline(marked, color=GREY, linestyle=":")


def _percent(ax: Any) -> None:
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
