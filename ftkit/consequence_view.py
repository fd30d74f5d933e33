"""The right half of the panel as HTML: numbers first, then the memory bar, the step size, and what to look at.

Takes `Consequences` and gives text; the page's own colours are kept, so that it reads on light and dark themes.
"""

import html
from collections.abc import Sequence

from ftkit import sketch
from ftkit.consequences import Consequences, clock
from ftkit.estimates import Item
from ftkit.knobs import as_text
from ftkit.plots import BLUE, GREEN, GREY, ORANGE, RED

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
    drawn = sketch.chart(
        [sketch.Line(found.learning_rates)],
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
