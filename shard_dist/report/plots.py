"""Plots as inline SVG: pure functions from numbers to markup.

Bars use percentages for x, so they stretch with the page while strokes, hatches and text keep their size.
Every series has a fill of its own (solid, hatched, empty, dotted), so nothing depends on colour.
"""

from __future__ import annotations

from itertools import pairwise
from math import floor, log10

from markupsafe import Markup

from shard_dist.report.inputs import Estimate
from shard_dist.report.text import count, escaped, interval, percent

PATTERNS = Markup(
    '<svg class="defs" width="0" height="0" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="hatch-ground"/>'
    '<rect width="2.5" height="6" class="hatch-line"/></pattern>'
    '<pattern id="dots" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect width="6" height="6" class="dots-ground"/>'
    '<circle cx="3" cy="3" r="1.2" class="dots-dot"/></pattern>'
    "</defs></svg>"
)


def _svg(kind: str, label: str, body: str) -> Markup:
    name = escaped(label)
    return Markup(f'<svg class="{kind}" role="img" aria-label="{name}"><title>{name}</title>{body}</svg>')


def swatch(style: str) -> Markup:
    """The legend's sample of a fill."""
    return Markup(f'<svg class="swatch" aria-hidden="true"><rect width="100%" height="100%" class="{style}"/></svg>')


def rate_bar(rate: Estimate, style: str, label: str) -> Markup:
    """A bar from 0 to the rate on a scale of 0..1, its interval as a whisker; a bare scale without a rate."""
    scale = '<rect class="track" x="0" y="3" height="14" width="100%"/>'
    scale += "".join(f'<line class="grid" x1="{x}%" x2="{x}%" y1="3" y2="17"/>' for x in (25, 50, 75))
    if rate.value is None:
        return _svg("bar", f"{label}: not measured", scale)
    body = f'{scale}<rect class="{style}" x="0" y="3" height="14" width="{100 * rate.value:.2f}%"/>'
    if rate.low is not None and rate.high is not None:
        low, high = f"{100 * rate.low:.2f}%", f"{100 * rate.high:.2f}%"
        for kind in ("halo", "whisker"):
            body += f'<line class="{kind}" x1="{low}" x2="{high}" y1="10" y2="10"/>'
            body += "".join(f'<line class="{kind}" x1="{x}" x2="{x}" y1="5.5" y2="14.5"/>' for x in (low, high))
    return _svg("bar", f"{label}: {percent(rate.value)} {interval(rate.low, rate.high)}, n = {rate.n}", body)


def stacked_bar(parts: list[tuple[str, float, str]], label: str) -> Markup:
    """Parts of a whole, (name, amount, style), left to right in proportion; nothing where all are zero."""
    total = sum(amount for _, amount, _ in parts)
    body, left = "", 0.0
    for name, amount, style in parts:
        if amount <= 0:
            continue
        width = 100 * amount / total
        words = escaped(f"{name}: {count(amount)}" if total > 1.01 else f"{name}: {percent(amount)}")
        place = f'x="{left:.3f}%" y="1" height="18" width="{width:.3f}%"'
        body += f'<rect class="{style}" {place}><title>{words}</title></rect>'
        left += width
    return _svg("bar", label, body)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that cover [low, high], about `wanted` steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span < 1e-6 * max(1.0, abs(high)):
        span = max(1.0, abs(high))
    raw = span / wanted
    power = 10.0 ** floor(log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = floor(low / step + 1e-9), -floor(-high / step + 1e-9)
    return [float(f"{step * n:.12g}") for n in range(first, max(last, first + 1) + 1)]


def loss_curve(train: list[tuple[int, float]], val: list[tuple[int, float]]) -> Markup:
    """Training loss as a line, validation loss as ringed points, over optimizer steps; round axes."""
    points = train + val
    ys = ticks(min(loss for _, loss in points), max(loss for _, loss in points))
    xs = ticks(0, max(step for step, _ in points), 5)

    def x(step: float) -> float:
        return 100 * (step - xs[0]) / (xs[-1] - xs[0])

    def y(loss: float) -> float:
        return 100 - 100 * (loss - ys[0]) / (ys[-1] - ys[0])

    body = ""
    for tick in ys:
        body += f'<line class="axis" x1="0" x2="100%" y1="{y(tick):.2f}%" y2="{y(tick):.2f}%"/>'
        body += f'<text class="tick end" x="-8" y="{y(tick):.2f}%" dy="4">{tick:g}</text>'
    for tick in xs:
        body += f'<text class="tick middle" x="{x(tick):.2f}%" y="100%" dy="18">{count(tick)}</text>'
    # Lines take percentages, a polyline does not; percentages keep the text's size on a phone.
    for (step, loss), (after, lower) in pairwise(thinned(train)):
        start = f'x1="{x(step):.2f}%" y1="{y(loss):.2f}%"'
        body += f'<line class="curve" {start} x2="{x(after):.2f}%" y2="{y(lower):.2f}%"/>'
    for step, loss in val:
        note = escaped(f"step {step}: validation loss {loss:.4f}")
        place = f'cx="{x(step):.2f}%" cy="{y(loss):.2f}%"'
        body += f'<circle class="point" {place} r="4.5"><title>{note}</title></circle>'
    ends = f"Training loss over {len(train)} steps" if train else "Loss"
    if train:
        ends += f", from {train[0][1]:.3f} to {train[-1][1]:.3f}"
    if val:
        ends += f"; validation loss ends at {val[-1][1]:.3f}"
    return _svg("curve-plot", ends, body)


def thinned(points: list[tuple[int, float]], most: int = 400) -> list[tuple[int, float]]:
    """At most about `most` points: the mean of each run of neighbours, ends kept."""
    if len(points) <= most:
        return points
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(group[len(group) // 2][0], sum(loss for _, loss in group) / len(group)) for group in groups]
    return [points[0], *means[1:-1], points[-1]]
