"""What the settings of a run mean before it runs: parameters, batch, updates, minutes, memory and step size.

First they are worked out, in under a millisecond, from the model's shape alone; then drawn as HTML and SVG.
Loads no weights and knows no widgets.
"""

import contextlib
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ftkit import memory, preflight, tables
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitError
from ftkit.figures import BLUE, GREEN, GREY, ORANGE, RED
from ftkit.hardware import Hardware
from ftkit.memory import MemoryEstimate, ModelShape
from ftkit.preflight import Finding
from ftkit.runs import Run
from ftkit.tables import escaped
from ftkit.training import HistoryPoint, read_points

UNMEASURED = "not measured yet"

# Settings that change what a step costs in a way that cannot be scaled from another one.
_DECISIVE = ("backend", "load_in_4bit", "dtype", "gradient_checkpointing", "use_dora", "target_modules")


@dataclass(frozen=True)
class StepTime:
    """Seconds of training an example, and of one validation, with the settings under which they were measured."""

    seconds_per_example: float
    source: str
    tokens_per_example: float | None = None
    seconds_per_evaluation: float = 0.0
    config: TrainConfig | None = None

    @classmethod
    def of_points(cls, points: Sequence[HistoryPoint], config: TrainConfig, source: str) -> Self | None:
        """From a curve: the median time between two points; None where there are fewer than two training points.

        The first update, which compiles and warms up, is thereby left out, and so are validations.
        """
        updates, validations = [], []
        for before, after in itertools.pairwise(points):
            if before.seconds is None or after.seconds is None:
                continue
            spent, made = after.seconds - before.seconds, after.step - before.step
            if before.loss is not None and after.loss is not None and made > 0 and spent > 0:
                updates.append(spent / made)
            elif after.val_loss is not None and made == 0:
                validations.append(spent)
        if not updates:
            return None
        examples = max(point.step for point in points) * config.effective_batch_size
        tokens = max(point.tokens or 0 for point in points)
        return cls(
            seconds_per_example=statistics.median(updates) / config.effective_batch_size,
            source=source,
            tokens_per_example=tokens / examples if tokens else None,
            seconds_per_evaluation=max(0.0, statistics.median(validations)) if validations else 0.0,
            config=config,
        )

    @classmethod
    def of_runs(cls, root: str | Path, base_model: str, device: str) -> Self | None:
        """From the newest finished run below `root` with this base model on this device; None where there is none."""
        for path in sorted(Path(root).glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
            run = Run(path.parent)
            try:
                facts = run.facts.get("train", {})
                if (facts.get("base_model"), facts.get("device")) != (base_model, device):
                    continue
                config = TrainConfig.load(run / "config.yaml")
                found = cls.of_points(read_points(run / "history.csv"), config, f"run {path.parent.name}")
            except (DataError, ConfigError, UnicodeDecodeError, OSError):
                continue  # a damaged run is the table's business: here it only measures nothing
            if found is not None:
                return found
        return None

    def other_than(self, config: TrainConfig) -> tuple[str, ...]:
        """The settings in which `config` differs from the measured ones so that a step costs something else."""
        return tuple(name for name in _DECISIVE if getattr(config, name) != getattr(self.config or config, name))

    def seconds(self, examples: float, evaluations: float, tokens_per_example: float | None = None) -> float:
        """Seconds for so many examples and validations; scaled by length where both lengths are known."""
        scale = 1.0
        if tokens_per_example and self.tokens_per_example:
            scale = tokens_per_example / self.tokens_per_example
        return scale * (examples * self.seconds_per_example + evaluations * self.seconds_per_evaluation)


@dataclass(frozen=True)
class Situation:
    """What is known besides the settings: the machine, the model's shape, the rows and a measured step."""

    hardware: Hardware
    shape: ModelShape | None = None
    rows: int | None = None
    lengths: tuple[int, ...] = field(default=(), repr=False)  # tokens of each row, or of a sample of them
    step_time: StepTime | None = None

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row; None where lengths are unknown."""
        return max(self.lengths, default=None)

    def mean_length(self, config: TrainConfig) -> float | None:
        """Mean tokens of a row after the cut; None where lengths are unknown."""
        return statistics.fmean(min(n, config.max_length) for n in self.lengths) if self.lengths else None


@tables.shown
@dataclass(frozen=True)
class Consequences:
    """What one config means in one situation. None stands for what cannot be known, never for zero."""

    config: TrainConfig
    situation: Situation
    trainable: int | None  # parameters, as PEFT counts them
    total: int | None  # parameters, the adapter's among them
    updates_per_epoch: int | None
    updates: int | None
    seconds: float | None
    memory: MemoryEstimate | None = None
    memory_problem: str = ""  # why there is no estimate
    findings: tuple[Finding, ...] = ()

    @property
    def epochs(self) -> float | None:
        """Passes over the data that the run makes."""
        if self.updates is None or not self.updates_per_epoch:
            return None
        return self.updates / self.updates_per_epoch

    @property
    def verdict(self) -> str | None:
        """What `memory.verdict` says of the estimate on this device; None where there is no estimate."""
        return memory.verdict(self.memory, self.situation.hardware.memory_gib) if self.memory else None

    @property
    def learning_rates(self) -> list[tuple[float, float]]:
        """The learning rate of each update, as `(update, rate)`, at most a hundred or so of them."""
        total = self.updates or max(4 * self.config.warmup_steps, 100)
        steps = {round(total * i / 120) for i in range(121)} | {min(self.config.warmup_steps, total)}
        return [(float(step), learning_rate(self.config, step, total)) for step in sorted(steps)]

    @property
    def facts(self) -> dict[str, tuple[str, str]]:
        """What is counted, by name: a value and what it is made of."""
        config, share, passes = self.config, "model unknown", "rows unknown"
        if self.trainable and self.total:
            share = f"{100 * self.trainable / self.total:.2f} % of the model"
        if self.epochs is not None:
            passes = f"{self.updates_per_epoch:,} an epoch · {self.epochs:.3g} epochs of {self.situation.rows:,} rows"
        batch = f"{config.per_device_train_batch_size} at once × {config.gradient_accumulation_steps}"
        return {
            "trainable parameters": (_counted(self.trainable), share),
            "effective batch size": (str(config.effective_batch_size), batch),
            "weight updates": (_counted(self.updates), passes),
            "time on this machine": (UNMEASURED if self.seconds is None else duration(self.seconds), self._step()),
        }

    def _step(self) -> str:
        """What one update takes, where that was measured and under which other settings."""
        measured = self.situation.step_time
        if measured is None:
            return "press Measure"
        step = measured.seconds(self.config.effective_batch_size, 0, self.situation.mean_length(self.config))
        changed = measured.other_than(self.config)
        caveat = f"; measured with other {', '.join(changed)}" if changed else ""
        return f"{step:.3g} s an update ({measured.source}{caveat})"

    def _parts(self) -> list[tables.Table | str]:
        rows = [(name, *fact) for name, fact in self.facts.items()]
        need = ("memory", "?", self.memory_problem)
        if self.memory is not None:
            between = f"{self.memory.low_gib:.1f} to {self.memory.high_gib:.1f}"
            machine = f"{self.verdict}, the machine has {self.situation.hardware.memory_gib:.1f} GiB"
            need = ("memory", f"{self.memory.likely_gib:.1f} GiB ({between})", machine)
        found = [(f"{f.severity}: {f.field or f.id}", f.title, f.fix) for f in self.findings]
        return [tables.Table((), [*rows, need, *found])]


def work_out(config: TrainConfig, situation: Situation) -> Consequences:
    """Work out what `config` means; takes less than a millisecond and loads no weights."""
    shape, rows, longest = situation.shape, situation.rows, situation.longest
    trainable = total = estimate = None
    problem = "model unknown"
    if shape is not None:
        with contextlib.suppress(ConfigError):  # names that this model lacks: the findings say so
            trainable = shape.lora_parameters(config.lora_r, config.target_modules, use_dora=config.use_dora)
        total = shape.parameters + (trainable or 0)
        device = "cpu" if situation.hardware.device == "cpu" else "cuda"
        try:
            estimate = memory.estimate(shape, config, device=device, longest=longest, loss_path=memory.TRL_LOSS_PATH)
        except FtkitError as error:
            problem = str(error)
    updates = preflight.updates_in(config, rows)
    per_epoch = preflight.updates_in(config.replace(max_steps=-1, num_train_epochs=1.0), rows)
    seconds = None
    if situation.step_time is not None and updates is not None:
        evaluations = 1 + (updates // config.eval_steps if config.eval_steps else 0)
        seen = updates * config.effective_batch_size
        if rows and per_epoch:  # the last update of a pass may see fewer
            seen = min(seen, round(updates / per_epoch * rows))
        seconds = situation.step_time.seconds(seen, evaluations, situation.mean_length(config))
    return Consequences(
        config=config,
        situation=situation,
        trainable=trainable,
        total=total,
        updates_per_epoch=per_epoch,
        updates=updates,
        seconds=seconds,
        memory=estimate,
        memory_problem="" if estimate else problem,
        findings=preflight.check_settings(config, situation.hardware, shape, rows=rows, longest=longest),
    )


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The step size at an update, as `transformers.get_scheduler` has it, which would load torch and walk there."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return peak
    if step < warmup:
        return peak * step / max(1, warmup)
    if config.lr_scheduler_type == "constant_with_warmup":
        return peak
    passed = min(1.0, (step - warmup) / max(1, total - warmup))
    if config.lr_scheduler_type == "linear":
        return peak * (1.0 - passed)
    return peak * 0.5 * (1.0 + math.cos(math.pi * passed))


def as_text(value: Any) -> str:
    """A number as one types it: 0.0002 becomes 2e-4, 1.0 becomes 1."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or abs(value) >= 1e-2:
        return f"{value:g}"
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def duration(seconds: float) -> str:
    """A time span as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counted(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def drawn(found: Consequences) -> str:
    """Everything that the settings mean, as one block of HTML: four tiles, the memory bar, the step size."""
    parts = _tiles(found) + _memory_bar(found) + _step_size(found)
    loose = [
        finding for finding in found.findings if not hasattr(found.config, finding.field)
    ]  # others: at their field
    if loose:
        parts += _heading("To look at")
    for finding in loose:
        text = f"{element('b', escaped(finding.title))} {escaped(finding.fix)}"
        parts += element("div", text, class_="ftkit-note")
    return element("div", parts, class_="ftkit-meaning")


def _tiles(found: Consequences) -> str:
    cells, names = "", ("trainable", "batch", "updates", "time")
    for name, (title, (value, small)) in zip(names, found.facts.items(), strict=True):
        size = "ftkit-unknown" if value == UNMEASURED else ""
        inside = element("span", title) + element("b", escaped(value), class_=size) + element("small", escaped(small))
        cells += element("div", inside, class_=f"ftkit-tile ftkit-{name}")
    return element("div", cells, class_="ftkit-tiles")


_SEGMENTS = (BLUE, "#56B4E9", GREEN, ORANGE, "#CC79A7", GREY)  # the last for the sum of the small ones
_VERDICTS = {"fits": (GREEN, "✓"), "tight": ("#ad6500", "!"), "does not fit": (RED, "✗")}


def _memory_bar(found: Consequences) -> str:
    """Line items of the estimate on a bar as long as the device's memory, with the range as a bracket."""
    machine, estimate = found.situation.hardware, found.memory
    name = machine.name if len(machine.name) <= 34 else machine.name[:33].rstrip() + "…"
    head = _heading(escaped(f"Memory on {name}, {machine.memory_gib:.1f} GiB"))
    if estimate is None:
        return head + element("div", f"No estimate: {escaped(found.memory_problem)}", class_="ftkit-help")

    per_gib = 100 / max(machine.memory_gib, estimate.high_gib)  # of the bar's width, in per cent
    items = sorted((item for item in estimate.parts if item.gib > 0), key=lambda item: -item.gib)
    rest = items[len(_SEGMENTS) - 1 :]
    shown = [(item.name, item.gib, item.how) for item in items[: len(_SEGMENTS) - 1]]
    if rest:
        shown.append(("the rest", sum(item.gib for item in rest), ", ".join(item.name for item in rest)))
    left, bar, keys = 0.0, "", ""
    for (name, gib, how), colour in zip(shown, _SEGMENTS, strict=False):
        size = f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"
        bar += element("i", style=f"left:{left:.2f}%;width:{gib * per_gib:.2f}%;background:{colour}")
        keys += element("span", element("i", style=f"background:{colour}") + f"{escaped(name)} {size}", title=how)
        left += gib * per_gib
    low, high, edge = (gib * per_gib for gib in (estimate.low_gib, estimate.high_gib, machine.memory_gib))
    bar += element("i", class_="ftkit-range", style=f"left:{low:.2f}%;width:{high - low:.2f}%")
    if edge < 99.9:
        bar += element("i", class_="ftkit-limit", style=f"left:{edge:.2f}%")

    word = found.verdict or ""
    colour, sign = _VERDICTS[word]
    between = f"between {estimate.low_gib:.1f} and {estimate.high_gib:.1f}"
    text = f"{element('b', f'{sign} {word}', style=f'color:{colour}')}: likely {estimate.likely_gib:.1f} GiB, {between}"
    blocks = {"ftkit-bar": bar, "ftkit-memory": text, "ftkit-keys": keys}
    return head + "".join(element("div", inside, class_=name) for name, inside in blocks.items())


def _step_size(found: Consequences) -> str:
    config = found.config
    warms = config.warmup_steps > 0 and config.lr_scheduler_type != "constant"
    unknown = " (their number is unknown)" if found.updates is None else ""
    return _heading("Step size over the run") + chart(
        [Line(found.learning_rates)],
        x=f"weight updates{unknown}{'; shaded: warm-up' if warms else ''}",
        y="learning rate",
        height=150,
        shaded_to=float(config.warmup_steps) if warms else 0.0,
        show=as_text,
    )


def _heading(text: str) -> str:
    return element("div", text, class_="ftkit-head")


def element(tag: str, inside: str = "", **attributes: Any) -> str:
    """One HTML or SVG element. Attributes are escaped, empty ones left out; `class_` is class, `x_y` is x-y."""
    written = tag
    for name, value in attributes.items():
        if value != "":
            written += f' {_as_attribute(name)}="{escaped(value)}"'
    return f"<{written}>{inside}</{tag}>"


@functools.cache
def _as_attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


@dataclass(frozen=True)
class Line:
    """One curve; `points` are `(x, y)` in rising x. `faint` is for raw values behind a smoothed line."""

    points: Sequence[tuple[float, float]]
    name: str = ""
    colour: str = BLUE
    dash: str = ""
    marked: bool = False
    faint: bool = False


_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 22, 34  # margins of a chart
_MOST_POINTS = 300


def chart(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    width: int = 420,
    height: int = 170,
    x_max: float = 0.0,
    shaded_to: float = 0.0,
    show: Callable[[float], str] = "{:,.4g}".format,
) -> str:
    """Draw curves from zero upwards as one `<svg>`, fast enough to follow a slider, which matplotlib is not.

    `x` and `y` name the axes with their units; `x_max` lies beyond the last point, where it should. Up to `shaded_to`
    the ground is shaded (a warm-up); `show` writes a number of the vertical axis.
    """
    lines = [line for line in lines if line.points]
    right = max([x_max, *(line.points[-1][0] for line in lines)]) or 1.0
    heights = itertools.chain.from_iterable(line.points for line in lines)
    levels = ticks(max((value for _, value in heights if math.isfinite(value)), default=1.0) or 1.0)
    top, floor, edge = levels[-1], height - _BOTTOM, width - _RIGHT

    def across(value: float) -> float:
        return _LEFT + (edge - _LEFT) * value / right

    def down(value: float) -> float:
        """What lies outside, or is no number, is put on the edge."""
        inside = min(max(value, 0.0), top) if math.isfinite(value) else top
        return floor - (floor - _TOP) * inside / top

    def text(words: str, left: float, bottom: float, anchor: str = "start") -> str:
        place = f'x="{left:.1f}" y="{bottom:.1f}" text-anchor="{anchor}"'
        return f'<text {place} opacity="0.75">{escaped(words)}</text>'

    def rule(level: float, opacity: float) -> str:
        return f'<path d="M{_LEFT} {level:.1f}H{edge}" stroke="currentColor" opacity="{opacity}"/>'

    parts = [text(y, 4, 12), text(x, (_LEFT + edge) / 2, height - 4, "middle"), rule(floor, 0.5)]
    for level in levels:
        parts += [rule(down(level), 0.13), text(show(level), _LEFT - 6, down(level) + 4, "end")]
    parts += [text(f"{v:,.4g}", across(v), floor + 14, "middle") for v in ticks(right, 4) if v <= right * (1 + 1e-9)]
    if shaded_to:
        wide = round(across(min(shaded_to, right)) - _LEFT, 1)
        high = floor - _TOP
        parts.append(element("rect", x=_LEFT, y=_TOP, width=wide, height=high, fill="currentColor", opacity=0.07))
    for line in lines:
        spots = [(across(a), down(b)) for a, b in thinned(line.points)]
        path = " ".join([f"{a:.1f},{b:.1f}" for a, b in spots])
        look: dict[str, Any] = {
            "fill": "none",
            "stroke": line.colour,
            "stroke_linejoin": "round",
            "stroke_dasharray": line.dash,
        }
        look |= {"stroke_width": 1, "opacity": 0.4} if line.faint else {"stroke_width": 2}
        parts.append(element("polyline", points=path, **look))
        if line.marked or len(spots) == 1:
            parts += [element("circle", cx=round(a, 1), cy=round(b, 1), r=3, fill=line.colour) for a, b in spots]
    for line in reversed([line for line in lines if line.name]):  # the legend: one row that ends at the right edge
        edge = round(edge - 6.2 * len(line.name))
        look = {"stroke": line.colour, "stroke_dasharray": line.dash, "stroke_width": 2}
        look |= {"opacity": 0.4} if line.faint else {}
        parts.append(element("line", x1=edge - 22, x2=edge - 5, y1=8, y2=8, **look))
        parts.append(element("text", escaped(line.name), x=edge, y=12))
        edge -= 34
    style = f"width:100%;max-width:{width}px;height:auto;display:block"
    font: dict[str, Any] = {"font_family": "sans-serif", "font_size": 11, "fill": "currentColor"}
    return element("svg", "".join(parts), role="img", viewBox=f"0 0 {width} {height}", style=style, **font)


def ticks(top: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to at least `top`, at most `most` + 1 of them."""
    raw = top / most
    size = 10.0 ** math.floor(math.log10(raw)) if raw > 0 and math.isfinite(raw) else 1.0
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most a few hundred of the points, the first and the last among them."""
    stride = math.ceil(len(points) / _MOST_POINTS)
    return [*points[:-1:stride], points[-1]]
