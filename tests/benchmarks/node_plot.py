"""The plot of nodes.py: how many times as fast as one node, over nodes, for two shapes; what limits each line's end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shard_dist.report.figures import spread

WIDTH, HEIGHT, LEFT, TOP, SIDE, GAP = 1250, 540, 60, 112, 340, 260  # pixels; panels are squares
TICKS = (1, 2, 4, 8, 16, 32, 64)
LINES = (
    ("generation", 1_000_000, "#0b5394", "", "1,000,000 prompts"),
    ("generation", 20_000, "#0b5394", "7 4", "20,000 prompts"),
    ("generation", 939, "#0b5394", "2 4", "939 prompts"),
    ("training", 1_000_000, "#b45f06", "", "training, 64 examples a step"),
)
LEGEND = (
    "Simulated around the real row queue, calibrated on real Ray nodes. Dotted: ideal. Small: what limits at 64 nodes.",
    "Blue: a whole generation stage with its boots. Orange: a whole training.",
)
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:18px;font-weight:600}.soft{fill:#666}"
    ".grid{stroke:#e4e4e4}.ideal{stroke:#999;stroke-dasharray:1 3}.line{fill:none;stroke-width:2.5}"
    ".limit{fill:#666;font-size:12px}"
)


def plot(found: dict[str, Any]) -> str:
    body = '<text class="title" x="20" y="30">From 1 to 64 nodes of 8 H100: times as fast as one node</text>'
    for number, words in enumerate(LEGEND):
        body += f'<text class="soft" x="20" y="{52 + 18 * number}">{words}</text>'
    for number, shape in enumerate(("8B", "70B")):
        body += _panel(found, shape, LEFT + number * (SIDE + GAP))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    return f'{head}<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'


def _panel(found: dict[str, Any], shape: str, left: float) -> str:
    body = f'<text x="{left}" y="{TOP - 14}" font-weight="600">{shape} student</text>'
    for tick in TICKS:
        x, y = left + _part(tick) * SIDE, TOP + (1 - _part(tick)) * SIDE
        body += f'<line class="grid" x1="{left}" x2="{left + SIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += f'<text class="soft" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
        body += f'<text class="soft" x="{x:.1f}" y="{TOP + SIDE + 20}" text-anchor="middle">{tick}</text>'
    body += f'<line class="ideal" x1="{left}" y1="{TOP + SIDE}" x2="{left + SIDE}" y2="{TOP}"/>'
    body += f'<text class="soft" x="{left + SIDE / 2}" y="{TOP + SIDE + 42}" text-anchor="middle">nodes</text>'
    curves = [_points(found[kind], shape, prompts) for kind, prompts, *_ in LINES]
    wanted = [TOP + (1 - _part(points[-1]["times_one_node"])) * SIDE for points in curves]
    for points, (_, _, colour, dashes, name), y in zip(curves, LINES, spread(wanted, 36, TOP, TOP + SIDE), strict=True):
        path = "L".join(
            f"{left + _part(one['nodes']) * SIDE:.1f} {TOP + (1 - _part(one['times_one_node'])) * SIDE:.1f}"
            for one in points
        )
        body += f'<path class="line" stroke="{colour}" stroke-dasharray="{dashes}" d="M{path}"/>'
        end = points[-1]
        words = f"{end['times_one_node']:.1f}x  {name}"
        body += f'<text x="{left + SIDE + 8}" y="{y + 1:.1f}" style="fill:{colour}">{words}</text>'
        body += f'<text class="limit" x="{left + SIDE + 8}" y="{y + 16:.1f}">{_limit(end)}</text>'
    return body


def _points(points: Sequence[dict[str, Any]], shape: str, prompts: int) -> list[dict[str, Any]]:
    return [one for one in points if one["shape"] == shape and one["prompts"] == prompts]


def _part(value: float) -> float:
    """Of the way from 1 to 64, in powers of two."""
    return max(0.0, math.log2(value) / math.log2(TICKS[-1]))


def _limit(point: dict[str, Any]) -> str:
    saved = point["saved_if_free"][point["bottleneck"]] / point["seconds"]
    return f"{point['bottleneck']}: {saved:.0%} of the time"
