"""The two figures of an evaluation as inline SVG: the plane of safety and helpfulness, and the flow of answers.

Places are in percent of the frame, so figures stretch with the page; what is drawn at a place (marks, names) keeps its
size, in pixels of a nested frame.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from markupsafe import Markup

from shard_dist.report.flow import Flow
from shard_dist.report.inputs import Estimate
from shard_dist.report.measures import Measure
from shard_dist.report.plots import svg, ticks
from shard_dist.report.text import count, escaped, interval, percent

PLANE_HEIGHT, FLOW_HEIGHT = 340, 220  # pixels, as page.css has them
LINE = 16  # pixels of a line of text
GAP = 2.5  # percent of the height between two bars of the flow


def axes_of(found: list[Measure]) -> tuple[Measure, Measure] | None:
    """The measures on x (safety) and y (help), None where the two of them are not there for two arms."""
    by_name = {measure.name: measure for measure in found if measure.measured}
    x = next((by_name[name] for name in ("safe_rate", "refusal_rate") if name in by_name), None)
    y = next((by_name[name] for name in ("benign_answer_rate", "on_topic_rate") if name in by_name), None)
    return (x, y) if x and y and len({arm for arm, _ in x.arms} & {arm for arm, _ in y.arms}) > 1 else None


def plane(x: Measure, y: Measure) -> Markup:
    """Every arm as a point with a cross of its two intervals, its name beside it."""
    others = dict(y.arms)
    points = [(arm, rate, others[arm]) for arm, rate in x.arms if arm in others]
    points = [(arm, a, b) for arm, a, b in points if a.value is not None and b.value is not None]
    xs, ys = _scale([a for _, a, _ in points]), _scale([b for _, _, b in points])
    body = _grid(xs, ys)
    for _, a, b in points:
        left, right, top, bottom = (
            _place(a.low, xs),
            _place(a.high, xs),
            100 - _place(b.high, ys),
            100 - _place(b.low, ys),
        )
        centre = (_place(a.value, xs), 100 - _place(b.value, ys))
        body += (
            f'<line class="whisker" x1="{left:.2f}%" x2="{right:.2f}%" y1="{centre[1]:.2f}%" y2="{centre[1]:.2f}%"/>'
        )
        body += (
            f'<line class="whisker" x1="{centre[0]:.2f}%" x2="{centre[0]:.2f}%" y1="{top:.2f}%" y2="{bottom:.2f}%"/>'
        )
    wanted = [PLANE_HEIGHT * (1 - _place(b.value, ys) / 100) - 10 for _, _, b in points]
    for number, ((arm, a, b), line) in enumerate(zip(points, spread(wanted, LINE, 0, PLANE_HEIGHT), strict=True)):
        at = (_place(a.value, xs), 100 - _place(b.value, ys))
        body += mark(arm, at, line, "first" if number == 0 else "other")
    told = "; ".join(f"{arm}: {_told(a)} and {_told(b)}" for arm, a, b in points)
    return svg("plane", f"{x.metric.label} (across) and {y.metric.label} (up). {told}", body)


def _told(rate: Estimate) -> str:
    return f"{percent(rate.value)} {interval(rate.low, rate.high)}"


def _scale(rates: list[Estimate]) -> list[float]:
    """Round ticks around all values and bounds, within 0..1."""
    known = [value for rate in rates for value in (rate.value, rate.low, rate.high) if value is not None]
    return [tick for tick in ticks(min(known), max(known)) if -1e-9 <= tick <= 1 + 1e-9]


def _place(value: float | None, scale: list[float]) -> float:
    """Percent of the way from the first tick to the last."""
    assert value is not None
    return 100 * (value - scale[0]) / (scale[-1] - scale[0])


def _grid(xs: list[float], ys: list[float]) -> str:
    body = ""
    for tick in ys:
        y = 100 - _place(tick, ys)
        body += f'<line class="axis" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
        body += f'<text class="tick end" x="-8" y="{y:.2f}%" dy="4">{100 * tick:g}%</text>'
    for tick in xs:
        x = _place(tick, xs)
        body += f'<line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%"/>'
        body += f'<text class="tick middle" x="{x:.2f}%" y="100%" dy="18">{100 * tick:g}%</text>'
    return body


def mark(name: str, at: tuple[float, float], line: float, style: str) -> str:
    """A ring or a disc at a place in percent, its name in the line `line` pixels from the top."""
    x, y = at
    down = line - PLANE_HEIGHT * y / 100 + 4
    side, anchor = (-1, "end") if x > 60 else (1, "start")
    leader = f'<line class="leader" x1="0" y1="0" x2="{12 * side}" y2="{down - 4:.1f}"/>' if abs(down + 6) > 3 else ""
    text = f'<text class="name {anchor}" x="{14 * side}" y="{down:.1f}">{escaped(name)}</text>'
    return f'<svg x="{x:.2f}%" y="{y:.2f}%">{leader}<circle class="mark {style}" r="5"/>{text}</svg>'


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, at least `gap` apart and, where there is room, between `low` and `high`."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [max(low, wanted[index]) for index in order]
    for number, _ in enumerate(places[1:], start=1):
        places[number] = max(places[number], places[number - 1] + gap)
    if places and places[-1] > high:
        places[-1] = high
        for number in range(len(places) - 2, -1, -1):
            places[number] = min(places[number], places[number + 1] - gap)
    result = [0.0] * len(wanted)
    for index, place in zip(order, places, strict=True):
        result[index] = place
    return result


def flow_figure(flow: Flow) -> Markup:
    """Bars of what the reference did (left) and the arm did (right), and bands of prompts between them."""
    left, right = _bars(flow, flow.before, flow.left), _bars(flow, flow.after, flow.right)
    used = {name: top for name, (top, _) in left.items()}, {name: top for name, (top, _) in right.items()}
    scale = _percent(flow, max(len(left), len(right)))
    bands = ""
    for before in left:
        for after in right:
            number = flow.counts.get((before, after), 0)
            if number:
                start, end, height = used[0][before], used[1][after], number * scale
                used[0][before] += height
                used[1][after] += height
                bands += _band(start, end, height, f"{before} → {after}: {count(number)}", before == after)
    body = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{bands}</svg>'
    body += _names(left, flow.left, "1.8%", "start") + _names(right, flow.right, "98.2%", "end")
    moved = ", ".join(f"{before} to {after} {number}" for before, after, number in flow.moves) or "nothing moved"
    return svg("flow-figure", f"Answers of {flow.reference} and {flow.arm} to {flow.total} prompts: {moved}", body)


def _percent(flow: Flow, bars: int) -> float:
    """Percent of the height per prompt."""
    return (100 - GAP * (bars - 1)) / max(1, flow.total)


def _bars(flow: Flow, names: list[str], number: Callable[[str], int]) -> dict[str, tuple[float, float]]:
    """Name -> (top, height) in percent."""
    scale = _percent(flow, max(len(flow.before), len(flow.after)))
    tops = [0.0]
    for name in names:
        tops.append(tops[-1] + number(name) * scale + GAP)
    return {name: (top, bottom - top - GAP) for name, (top, bottom) in zip(names, pairwise(tops), strict=True)}


def _band(start: float, end: float, height: float, label: str, same: bool) -> str:
    path = (
        f"M1.2 {start:.2f}C50 {start:.2f} 50 {end:.2f} 98.8 {end:.2f}"
        f"V{end + height:.2f}C50 {end + height:.2f} 50 {start + height:.2f} 1.2 {start + height:.2f}Z"
    )
    return f'<path class="band{" same" if same else ""}" d="{path}"><title>{escaped(label)}</title></path>'


def _names(bars: dict[str, tuple[float, float]], number: Callable[[str], int], x: str, anchor: str) -> str:
    body = ""
    edge = "0" if anchor == "start" else "98.8%"
    middles = [FLOW_HEIGHT * (top + height / 2) / 100 for top, height in bars.values()]
    lines = spread(middles, LINE, LINE / 2, FLOW_HEIGHT - LINE / 2)
    for (name, (top, height)), line in zip(bars.items(), lines, strict=True):
        body += f'<rect class="bar-end" x="{edge}" width="1.2%" y="{top:.2f}%" height="{height:.2f}%"/>'
        body += f'<text class="name {anchor}" x="{x}" y="{line + 4:.1f}">{escaped(name)} {count(number(name))}</text>'
    return body
