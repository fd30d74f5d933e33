"""Small line charts as inline SVG text: a panel redraws them in a millisecond, where a figure would take a tenth of a second.

Text and axes take the page's own colour, so that a sketch reads on a light and on a dark theme.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ftkit.plots import BLUE

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
