"""What the settings mean for a run, computed without running it: size, batch, updates, minutes, memory, step size.

Knows no widgets: `panel` shows what is computed here.
"""

import html
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ftkit import memory, preflight
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, DataError, FtkitError
from ftkit.figures import BLUE, GREEN, GREY, ORANGE, RED
from ftkit.hardware import Hardware
from ftkit.memory import Item, ModelShape, verdict
from ftkit.preflight import Finding
from ftkit.runs import Run
from ftkit.training import HistoryPoint, read_points


def as_text(value: Any) -> str:
    """A number as one types it: 0.0002 becomes 2e-4, 1.0 becomes 1."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or abs(value) >= 1e-2:
        return f"{value:g}"
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


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
    def of_step(cls, seconds: float, config: TrainConfig, source: str = "given") -> Self:
        """From the seconds of one weight update under `config`.

        Raises:
            ConfigError: not a positive number of seconds.
        """
        if not 0 < seconds < float("inf"):
            raise ConfigError(
                f"seconds_per_step={seconds!r}: a step takes more than 0 seconds. Leave it out to measure one."
            )
        return cls(seconds / config.effective_batch_size, source, config=config)

    @classmethod
    def of_points(cls, points: Sequence[HistoryPoint], config: TrainConfig, source: str) -> Self | None:
        """From a curve: the median time between two points; None where there are fewer than two training points.

        The first update is left out where there are others: it compiles and warms up.
        """
        deltas = _seconds_per_update(points)
        if not deltas:
            return None
        steps = max(p.step for p in points)
        tokens = max((p.tokens or 0 for p in points), default=0)
        return cls(
            statistics.median(deltas) / config.effective_batch_size,
            source,
            tokens / (steps * config.effective_batch_size) if tokens else None,
            _seconds_per_evaluation(points),
            config,
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
                pace = cls.of_points(read_points(run / "history.csv"), config, f"run {path.parent.name}")
            except (DataError, ConfigError, UnicodeDecodeError, OSError):
                continue  # a damaged run is the table's business: here it only measures nothing
            if pace is not None:
                return pace
        return None

    def other_than(self, config: TrainConfig) -> tuple[str, ...]:
        """The settings in which `config` differs from the measured ones so that a step costs something else."""
        if self.config is None:
            return ()
        return tuple(name for name in _DECISIVE if getattr(config, name) != getattr(self.config, name))

    def seconds(self, examples: float, evaluations: float, tokens_per_example: float | None = None) -> float:
        """Seconds for so many examples and validations; scaled by length where both lengths are known."""
        scale = 1.0
        if tokens_per_example and self.tokens_per_example:
            scale = tokens_per_example / self.tokens_per_example
        return scale * (examples * self.seconds_per_example + evaluations * self.seconds_per_evaluation)


def _seconds_per_update(points: Sequence[HistoryPoint]) -> list[float]:
    """Times between neighbouring training points, a validation between them left out."""
    clean = []
    for before, after in itertools.pairwise(points):
        trained = before.loss is not None and after.loss is not None
        if trained and before.seconds is not None and after.seconds is not None and after.step > before.step:
            clean.append((after.seconds - before.seconds) / (after.step - before.step))
    return [s for s in clean if s > 0]


def _seconds_per_evaluation(points: Sequence[HistoryPoint]) -> float:
    """Median time from a training point to the validation of the same step; 0 where none was measured."""
    spent = [
        after.seconds - before.seconds
        for before, after in itertools.pairwise(points)
        if after.val_loss is not None
        and before.step == after.step
        and before.seconds is not None
        and after.seconds is not None
    ]
    return max(0.0, statistics.median(spent)) if spent else 0.0


_MOST_POINTS = 300

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 22, 34


@dataclass(frozen=True)
class Line:
    """One curve; `points` are `(x, y)` in rising x. `faint` is for raw values behind a smoothed line."""

    points: Sequence[tuple[float, float]]
    name: str = ""
    colour: str = BLUE
    dash: str = ""
    marked: bool = False
    faint: bool = False


def chart(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    width: int = 420,
    height: int = 170,
    x_max: float = 0.0,
    band: tuple[float, float] | None = None,
    show: Callable[[float], str] = lambda v: f"{v:,.4g}",
) -> str:
    """Draw curves from zero upwards and give them back as one `<svg>`.

    Args:
        lines: curves; those without points are left out.
        x: name and unit of the horizontal axis.
        y: name and unit of the vertical axis, written above it.
        width: of the drawing; it shrinks with its column.
        height: of the drawing.
        x_max: right end, where it should lie beyond the last point.
        band: a range of x that is shaded (a warm-up).
        show: writes a number of the vertical axis.
    """
    drawn = [line for line in lines if line.points]
    right = max([x_max, *(line.points[-1][0] for line in drawn)], default=1.0) or 1.0
    top = max((v for line in drawn for _, v in line.points if math.isfinite(v)), default=1.0) or 1.0
    steps = ticks(top)
    top = max(top, steps[-1])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        """From values to the drawing's own units; what lies outside is put on the edge."""
        high = min(max(point[1], 0.0), top) if math.isfinite(point[1]) else top
        return (
            _LEFT + (width - _LEFT - _RIGHT) * point[0] / right,
            height - _BOTTOM - (height - _TOP - _BOTTOM) * high / top,
        )

    parts = [_axes(place, right, steps, x, y, width, height, show)]
    if band:
        (a, top_px), (b, bottom_px) = place((band[0], top)), place((min(band[1], right), 0.0))
        box = f'x="{a:.1f}" y="{top_px:.1f}" width="{max(0.0, b - a):.1f}" height="{bottom_px - top_px:.1f}"'
        parts.append(f'<rect {box} fill="currentColor" opacity="0.07"/>')
    parts += [_curve(line, place) for line in drawn]
    parts.append(_legend(drawn, width))
    return (
        f'<svg role="img" viewBox="0 0 {width} {height}" style="width:100%;max-width:{width}px;height:auto;display:block" '
        f'font-family="sans-serif" font-size="11" fill="currentColor">{"".join(parts)}</svg>'
    )


def ticks(top: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to at least `top`, at most `most` + 1 of them."""
    raw = top / most
    size = 10.0 ** math.floor(math.log10(raw)) if raw > 0 and math.isfinite(raw) else 1.0
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def _axes(
    place: Callable[[tuple[float, float]], tuple[float, float]],
    right: float,
    steps: Sequence[float],
    x: str,
    y: str,
    width: int,
    height: int,
    show: Callable[[float], str],
) -> str:
    floor = height - _BOTTOM
    parts = [f'<text x="{4}" y="12" opacity="0.75">{html.escape(y)}</text>']
    for value in steps:
        level = place((0.0, value))[1]
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="currentColor" opacity="0.13"/>'
            f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end" opacity="0.75">{show(value)}</text>'
        )
    for value in [v for v in ticks(right, 4) if v <= right * (1 + 1e-9)]:
        along = place((value, 0.0))[0]
        parts.append(f'<text x="{along:.1f}" y="{floor + 14}" text-anchor="middle" opacity="0.75">{value:,.4g}</text>')
    parts.append(
        f'<text x="{(_LEFT + width - _RIGHT) / 2:.0f}" y="{height - 4}" text-anchor="middle" opacity="0.75">{html.escape(x)}</text>'
        f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{floor}" y2="{floor}" stroke="currentColor" opacity="0.5"/>'
    )
    return "".join(parts)


def _curve(line: Line, place: Callable[[tuple[float, float]], tuple[float, float]]) -> str:
    spots = [place(point) for point in thinned(line.points)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    look = 'stroke-width="1" opacity="0.4"' if line.faint else 'stroke-width="2"'
    parts = [f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-linejoin="round" {look}{dash}/>']
    if line.marked or len(spots) == 1:
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{line.colour}"/>' for a, b in spots]
    return "".join(parts)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most a few hundred of the points, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    stride = math.ceil(len(points) / _MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def _legend(lines: Sequence[Line], width: int) -> str:
    named, parts, edge = [line for line in lines if line.name], [], float(width - _RIGHT)
    for line in reversed(named):
        edge -= 6.2 * len(line.name)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        faint = ' opacity="0.4"' if line.faint else ""
        parts.append(
            f'<line x1="{edge - 22:.0f}" x2="{edge - 5:.0f}" y1="8" y2="8" stroke="{line.colour}" stroke-width="2"{dash}{faint}/>'
            f'<text x="{edge:.0f}" y="12">{html.escape(line.name)}</text>'
        )
        edge -= 34
    return "".join(parts)


_CURVE_POINTS = 121


@dataclass(frozen=True)
class Situation:
    """What is known besides the settings: the model's shape, the rows, the machine and a measured step."""

    hardware: Hardware
    shape: ModelShape | None = None
    rows: int | None = None
    lengths: tuple[int, ...] = field(default=(), repr=False)  # tokens of each row, or of a sample of them
    pace: StepTime | None = None

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row; None where lengths are unknown."""
        return max(self.lengths, default=None)

    def mean_length(self, config: TrainConfig) -> float | None:
        """Mean tokens of a row after the cut; None where lengths are unknown."""
        return sum(min(n, config.max_length) for n in self.lengths) / len(self.lengths) if self.lengths else None


@dataclass(frozen=True)
class Consequences:
    """What one config means in one situation. None stands for what cannot be known, never for zero."""

    config: TrainConfig
    situation: Situation
    trainable: int | None
    total: int | None
    updates_per_epoch: int | None
    updates: int | None
    seconds: float | None
    memory: Any = None  # memory.MemoryEstimate
    memory_problem: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def effective_batch_size(self) -> int:
        """Examples behind each weight update."""
        return self.config.effective_batch_size

    @property
    def epochs(self) -> float | None:
        """Passes over the data that the run makes."""
        if self.updates is None or not self.updates_per_epoch:
            return None
        return self.updates / self.updates_per_epoch

    @property
    def verdict(self) -> str | None:
        """What `memory.verdict` says of the estimate on this device; None where there is no estimate."""
        return None if self.memory is None else verdict(self.memory, self.situation.hardware.memory_gib)

    @property
    def learning_rates(self) -> list[tuple[float, float]]:
        """The learning rate of each update, as `(update, rate)`, at most a hundred or so of them."""
        total = self.updates or max(4 * self.config.warmup_steps, 100)
        stops = sorted(
            {round(total * i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)}
            | {min(self.config.warmup_steps, total)}
        )
        return [(float(step), learning_rate(self.config, step, total)) for step in stops]

    def facts(self) -> dict[str, str]:
        """The same in words, with units."""
        known = {
            "trainable parameters": _share(self.trainable, self.total),
            "effective batch size": f"{self.effective_batch_size} examples",
            "updates an epoch": "rows unknown" if self.updates_per_epoch is None else f"{self.updates_per_epoch:,}",
            "updates in all": "rows unknown" if self.updates is None else f"{self.updates:,}",
            "time on this machine": "not measured yet" if self.seconds is None else clock(self.seconds),
            "memory": self.memory_problem
            if self.memory is None
            else f"{self.memory.likely_gib:.1f} GiB ({self.memory.low_gib:.1f} to {self.memory.high_gib:.1f}) of "
            f"{self.situation.hardware.memory_gib:.1f} GiB",
        }
        return known | {f"{f.severity}: {f.field or f.id}": f"{f.title} {f.fix}" for f in self.findings}

    def __str__(self) -> str:
        return "\n".join(f"{name:>22}  {value}" for name, value in self.facts().items())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in self.facts().items())
        return f"<table>{rows}</table>"


def work_out(config: TrainConfig, situation: Situation) -> Consequences:
    """Work out what `config` means; takes milliseconds and loads no weights."""
    per_epoch = updates_per_epoch(config, situation.rows) if situation.rows else None
    updates = preflight.updates_in(config, situation.rows)
    trainable, total = _parameters(config, situation)
    memory, problem = _memory(config, situation)
    return Consequences(
        config,
        situation,
        trainable,
        total,
        per_epoch,
        updates,
        _seconds(config, situation, updates),
        memory,
        problem,
        _findings(config, situation),
    )


def updates_per_epoch(config: TrainConfig, rows: int) -> int:
    """Weight updates in one pass over the data."""
    return preflight.updates_in(config.replace(max_steps=-1, num_train_epochs=1.0), rows) or 1


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The step size at an update: the warm-up and decay of `transformers.get_scheduler`."""
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


def clock(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _share(trainable: int | None, total: int | None) -> str:
    if trainable is None:
        return "model unknown"
    return f"{trainable:,}" + (f" ({100 * trainable / total:.2f} %)" if total else "")


def _seconds(config: TrainConfig, situation: Situation, updates: int | None) -> float | None:
    if situation.pace is None or updates is None:
        return None
    evaluations = 1 + (updates // config.eval_steps if config.eval_steps else 0)
    examples = updates * config.effective_batch_size
    if situation.rows:  # the last update of a pass may see fewer
        per_epoch = updates_per_epoch(config, situation.rows)
        examples = min(examples, round(updates / per_epoch * situation.rows))
    return situation.pace.seconds(examples, evaluations, situation.mean_length(config))


def _parameters(config: TrainConfig, situation: Situation) -> tuple[int | None, int | None]:
    """Trainable and all parameters, the adapter's among them, as PEFT counts."""
    shape = situation.shape
    if shape is None:
        return None, None
    try:
        trainable = shape.lora_parameters(config.lora_r, config.target_modules, use_dora=config.use_dora)
    except ConfigError:  # names that this model lacks: the findings say so
        return None, shape.parameters
    return trainable, shape.parameters + trainable


def _findings(config: TrainConfig, situation: Situation) -> tuple[Finding, ...]:

    return preflight.check_settings(
        config, situation.hardware, situation.shape, rows=situation.rows, longest=situation.longest
    )


def _memory(config: TrainConfig, situation: Situation) -> tuple[Any, str]:

    if situation.shape is None:
        return None, "model unknown"
    device = "cpu" if situation.hardware.device == "cpu" else "cuda"
    try:
        found = memory.estimate(
            situation.shape, config, device=device, longest=situation.longest, loss_path=memory.TRL_LOSS_PATH
        )
    except FtkitError as error:
        return None, str(error)
    return found, ""


_SEGMENTS = (BLUE, "#56B4E9", GREEN, ORANGE, "#CC79A7", GREY)

_MOST_PARTS = len(_SEGMENTS) - 1

STYLE = """<style>
.ftkit-panel { max-width: 1080px; font-size: 13px; line-height: 1.35; }
.ftkit-panel .ftkit-label { font-size: 11px; background: none; padding: 0; white-space: nowrap; }
.ftkit-panel .ftkit-help { font-size: 11.5px; line-height: 1.3; opacity: .72; white-space: normal; }
.ftkit-panel .ftkit-help b { font-weight: 600; }
.ftkit-panel .ftkit-note { font-size: 12px; line-height: 1.3; margin-top: 1px; white-space: normal; }
.ftkit-panel .ftkit-row { border-bottom: 1px solid #8883; padding: 1px 0; overflow: hidden; }
.ftkit-meaning { padding-right: 10px; line-height: 1.35; }
.ftkit-panel .lm-TabBar-tab, .ftkit-panel .p-TabBar-tab { flex: 0 1 auto !important; min-width: 0 !important; padding: 0 9px !important; }
.ftkit-row .mod-active { background: #0072B2 !important; color: #fff !important; }
.ftkit-status { white-space: pre-line; line-height: 1.35; }
.ftkit-tiles { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; margin-bottom: 8px; }
.ftkit-tile { border: 1px solid #8885; border-radius: 6px; padding: 4px 9px 5px; }
.ftkit-tile span { font-size: 11.5px; opacity: .72; display: block; }
.ftkit-tile b { font-size: 19px; font-weight: 600; line-height: 1.25; }
.ftkit-tile small { font-size: 11.5px; opacity: .72; display: block; line-height: 1.25; }
.ftkit-tile .ftkit-unknown { font-size: 14px; opacity: .8; display: block; }
.ftkit-head { font-size: 12px; font-weight: 600; margin: 8px 0 3px; }
.ftkit-bar { position: relative; height: 18px; border: 1px solid #8889; border-radius: 4px; }
.ftkit-bar i { position: absolute; top: 0; bottom: 0; }
.ftkit-keys { font-size: 11.5px; line-height: 1.5; opacity: .9; }
.ftkit-keys span { white-space: nowrap; margin-right: 9px; }
.ftkit-keys i { display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 3px; }
.ftkit-table table { border-collapse: collapse; font-size: 12px; }
</style>"""


def view(found: Consequences) -> str:
    """Everything that the settings mean, as one block of HTML."""
    parts = (_tiles(found), memory_bar(found), _step_size(found), _loose_findings(found))
    return f'<div class="ftkit-meaning">{"".join(parts)}</div>'


def _tiles(found: Consequences) -> str:
    config, pace = found.config, found.situation.pace
    rows = found.situation.rows
    share = f"{100 * found.trainable / found.total:.2f} % of the model" if found.trainable and found.total else ""
    passes = "rows unknown"
    if found.epochs is not None:
        passes = f"{found.updates_per_epoch:,} an epoch · {found.epochs:.3g} epochs of {rows:,} rows"
    tiles = [
        (
            "trainable parameters",
            "?" if found.trainable is None else f"{found.trainable:,}",
            share or "model unknown",
            "trainable",
        ),
        (
            "effective batch size",
            f"{found.effective_batch_size}",
            f"{config.per_device_train_batch_size} at once × {config.gradient_accumulation_steps}",
            "batch",
        ),
        ("weight updates", "?" if found.updates is None else f"{found.updates:,}", passes, "updates"),
        (
            "time on this machine",
            "not measured yet" if found.seconds is None else clock(found.seconds),
            _pace(found) if pace else "press Measure, or give seconds_per_step",
            "time",
        ),
    ]
    cells = "".join(
        f'<div class="ftkit-tile ftkit-{key}"><span>{title}</span><b{_dim(value)}>{value}</b><small>{html.escape(small)}</small></div>'
        for title, value, small, key in tiles
    )
    return f'<div class="ftkit-tiles">{cells}</div>'


def _dim(value: str) -> str:
    return ' class="ftkit-unknown"' if value == "not measured yet" else ""


def _pace(found: Consequences) -> str:
    pace = found.situation.pace
    assert pace is not None
    step = pace.seconds(found.effective_batch_size, 0, found.situation.mean_length(found.config))
    changed = pace.other_than(found.config)
    caveat = f"; measured with other {', '.join(changed)}" if changed else ""
    return f"{step:.3g} s an update ({pace.source}{caveat})"


def memory_bar(found: Consequences) -> str:
    """Line items of the estimate on a bar as long as the device's memory, with the range as a bracket."""
    machine = found.situation.hardware
    head = f'<div class="ftkit-head">Memory on {html.escape(_short(machine.name))}, {machine.memory_gib:.1f} GiB</div>'
    if found.memory is None:
        return f'{head}<div class="ftkit-help">No estimate: {html.escape(found.memory_problem)}</div>'
    estimate = found.memory
    full = max(machine.memory_gib, estimate.high_gib)
    items = _largest(estimate.items)
    left, parts, keys = 0.0, [], []
    for (name, size, how), colour in zip(items, _SEGMENTS, strict=False):
        parts.append(f'<i style="left:{left:.2f}%;width:{100 * size / full:.2f}%;background:{colour}"></i>')
        keys.append(
            f'<span title="{html.escape(how)}"><i style="background:{colour}"></i>{html.escape(name)} {_size(size)}</span>'
        )
        left += 100 * size / full
    low, high, edge = (100 * v / full for v in (estimate.low_gib, estimate.high_gib, machine.memory_gib))
    bracket = f'<i style="left:{low:.2f}%;width:{high - low:.2f}%;top:6px;height:5px;bottom:auto;border:solid currentColor;border-width:0 2px;background:linear-gradient(currentColor,currentColor) center/100% 1px no-repeat"></i>'
    limit = f'<i style="left:{edge:.2f}%;border-left:3px solid {RED};top:-4px;bottom:-4px"></i>' if edge < 99.9 else ""
    word = _verdict(found)
    text = f"{word}: likely {estimate.likely_gib:.1f} GiB, between {estimate.low_gib:.1f} and {estimate.high_gib:.1f}"
    return (
        f'{head}<div class="ftkit-bar">{"".join(parts)}{bracket}{limit}</div>'
        f'<div class="ftkit-memory" style="margin-top:3px">{text}</div><div class="ftkit-keys">{"".join(keys)}</div>'
    )


def _largest(items: Sequence[Item]) -> list[tuple[str, float, str]]:
    """Name, GiB and reason of the largest parts; the small ones in one sum, last."""
    falling = sorted((item for item in items if item.gib > 0), key=lambda item: -item.gib)
    shown = [(item.name, item.gib, item.how) for item in falling[:_MOST_PARTS]]
    rest = falling[_MOST_PARTS:]
    return shown + ([("the rest", sum(i.gib for i in rest), ", ".join(i.name for i in rest))] if rest else [])


def _verdict(found: Consequences) -> str:
    word = found.verdict or ""
    colour, sign = {"fits": (GREEN, "✓"), "tight": ("#ad6500", "!"), "does not fit": (RED, "✗")}[word]
    return f'<b style="color:{colour}">{sign} {word}</b>'


def _step_size(found: Consequences) -> str:
    config = found.config
    warms = config.warmup_steps > 0 and config.lr_scheduler_type != "constant"
    notes = ["" if found.updates is not None else " (their number is unknown)", "; shaded: warm-up" if warms else ""]
    drawn = chart(
        [Line(found.learning_rates)],
        x=f"weight updates{''.join(notes)}",
        y="learning rate",
        height=150,
        band=(0.0, float(config.warmup_steps)) if warms else None,
        show=as_text,
    )
    return f'<div class="ftkit-head">Step size over the run</div>{drawn}'


def _loose_findings(found: Consequences) -> str:
    loose = [f for f in found.findings if f.field not in found.config.__dataclass_fields__]
    lines = "".join(f'<div class="ftkit-note"><b>{html.escape(f.title)}</b> {html.escape(f.fix)}</div>' for f in loose)
    return f'<div class="ftkit-head">To look at</div>{lines}' if lines else ""


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33].rstrip() + "…"
