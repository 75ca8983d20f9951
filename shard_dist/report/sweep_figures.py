"""Gain against cost as inline SVG: one point a variant, its interval upright, the cheapest on the left."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from shard_dist.report.figures import LINE, PLANE_HEIGHT, mark, spread
from shard_dist.report.inputs import Estimate
from shard_dist.report.plots import svg, ticks
from shard_dist.report.text import count, interval, number, points


@dataclass(frozen=True)
class Point:
    """`gain` is a share, -1 to 1; `cost` in the unit of the axis. What a `teacher` had a part in is drawn as a ring."""

    name: str
    cost: float
    gain: Estimate
    teacher: bool


def gain_plot(found: list[Point], unit: str) -> Markup:
    """Net wins over the base model, in points, over cost. No gain is a line of its own."""
    drawn = [point for point in found if point.gain.value is not None]
    gains = [value for point in drawn for value in _known(point.gain)]
    ys, xs = ticks(min([0.0, *gains]), max([0.0, *gains])), ticks(0, max((point.cost for point in drawn), default=1.0))
    body = _grid(xs, ys)
    for point in drawn:
        x, ends = _place(point.cost, xs), [100 - _place(value, ys) for value in _known(point.gain)]
        body += f'<line class="whisker" x1="{x:.2f}%" x2="{x:.2f}%" y1="{min(ends):.2f}%" y2="{max(ends):.2f}%"/>'
    tops = [100 - _place(point.gain.value or 0.0, ys) for point in drawn]
    lines = spread([PLANE_HEIGHT * top / 100 - 10 for top in tops], LINE, 0, PLANE_HEIGHT)
    for point, top, line in zip(drawn, tops, lines, strict=True):
        body += mark(point.name, (_place(point.cost, xs), top), line, "first" if point.teacher else "other")
    told = "; ".join(_told(point, unit) for point in drawn)
    return svg("plane", f"Net wins over the base model (up) and {unit} (across). {told}", body)


def _known(gain: Estimate) -> list[float]:
    """Value and bounds."""
    return [value for value in (gain.low, gain.value, gain.high) if value is not None]


def _told(point: Point, unit: str) -> str:
    size = f"{points(point.gain.value)} points {interval(point.gain.low, point.gain.high)}"
    return f"{point.name}: {size} at {number(point.cost)} {unit}"


def _place(value: float, scale: list[float]) -> float:
    return 100 * (value - scale[0]) / (scale[-1] - scale[0])


def _grid(xs: list[float], ys: list[float]) -> str:
    body = ""
    for tick in ys:
        y = 100 - _place(tick, ys)
        style = "whisker faint" if abs(tick) < 1e-9 else "axis"
        body += f'<line class="{style}" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
        name = f"{100 * tick:+g}".replace("-", "−") if abs(tick) > 1e-9 else "0"
        body += f'<text class="tick end" x="-8" y="{y:.2f}%" dy="4">{name}</text>'
    for tick in xs:
        x = _place(tick, xs)
        body += f'<line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%"/>'
        body += f'<text class="tick middle" x="{x:.2f}%" y="100%" dy="18">{count(tick)}</text>'
    return body
