"""Milliseconds against tokens, a row of panels per head and a column per supervised share."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

log = logging.getLogger("bench")

# Okabe and Ito's palette, told apart with any colour vision; markers say it once more.
STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": "#D55E00", "marker": "o", "linewidth": 2.6, "zorder": 5},
    "ours_R": {"color": "#D55E00", "marker": "o", "linestyle": "--", "fillstyle": "none"},
    "eager": {"color": "#000000", "marker": "x"},
    "torch_native": {"color": "#0072B2", "marker": "s"},
    "torch_native_auto": {"color": "#0072B2", "marker": "s", "linestyle": "--", "fillstyle": "none"},
    "trl": {"color": "#009E73", "marker": "^"},
    "liger_bf16": {"color": "#CC79A7", "marker": "D", "linestyle": "--", "fillstyle": "none"},
    "liger_fp32": {"color": "#CC79A7", "marker": "D"},
    "cce": {"color": "#E69F00", "marker": "v"},
    "quack": {"color": "#56B4E9", "marker": "P"},
    "three_gemms": {"color": "#999999", "marker": "", "linestyle": ":", "linewidth": 2.0, "zorder": 1},
}
LABEL_GAP = 0.062  # of a panel's height: one line of small print


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the plot of a document to `path`; only a warning where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        log.warning("no plot: %s. `make peers` installs matplotlib, then: python -m bench --plot-only JSON", error)
        return
    records = [record for record in document["records"] if record["hot_ms"] is not None]
    if not records:
        log.warning("no plot: no shape was measured")
        return
    heads = list(dict.fromkeys((r["head"], r["hidden"], r["vocab"], r["dtype"]) for r in records))
    shares = sorted({record["share"] for record in records}, reverse=True)
    figure = Figure(figsize=(5.0 * len(shares) + 0.6, 3.9 * len(heads) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heads), len(shares), squeeze=False, sharey="row")
    for row, (head, hidden, vocab, dtype) in enumerate(heads):
        cells = [r for r in records if (r["head"], r["dtype"]) == (head, dtype)]
        for column, share in enumerate(shares):
            panel = axes[row][column]
            panel.set_title(f"{head} ({hidden} x {vocab}), {dtype}, f = {share:g}", fontsize=10)
            _panel(panel, [record for record in cells if record["share"] == share], last=row == len(heads) - 1)
        axes[row][0].set_ylabel("ms, hot")
        _label_ends(axes[row])
    figure.suptitle(
        f"Loss of a language model's head, forward and backward, on {document['device']}: less is better", fontsize=12
    )
    figure.savefig(path, dpi=110)
    log.info("%s", path)


def _panel(panel: Any, records: list[dict[str, Any]], last: bool) -> None:
    tokens = sorted({record["tokens"] for record in records})
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    for name, style in STYLES.items():
        points = sorted((r["tokens"], r["hot_ms"]) for r in records if r["provider"] == name)
        if points:
            defaults = {"linewidth": 1.5, "markersize": 6}
            panel.plot(*zip(*points, strict=True), label=name, **(defaults | style))
    panel.set_xticks(tokens, [f"{count:,}" for count in tokens])
    panel.minorticks_off()
    # Room at the right for the labels.
    low, high = tokens[0], tokens[-1]
    span = max(math.log2(high / low), 1.0)
    panel.set_xlim(low * 2 ** (-0.06 * span), high * 2 ** (0.62 * span))
    panel.grid(True, alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    if last:
        panel.set_xlabel("tokens N")


def _label_ends(panels: Any) -> None:
    """Each line's name at its right end, pushed apart where ends are close. Panels of a row share their y axis."""
    times = [value for panel in panels for line in panel.lines for value in line.get_ydata()]
    low, high = math.log(min(times)) - 0.15, math.log(max(times)) + 0.15
    ticks = _round_numbers(math.exp(low), math.exp(high))
    for panel in panels:
        panel.set_ylim(math.exp(low), math.exp(high))
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        lines = sorted(panel.lines, key=lambda line: line.get_ydata()[-1])
        places = _spread([(math.log(line.get_ydata()[-1]) - low) / (high - low) for line in lines])
        for line, place in zip(lines, places, strict=True):
            end = (line.get_xdata()[-1], line.get_ydata()[-1])
            early = f" at {end[0]:,}" if end[0] < panel.get_xticks()[-1] else ""  # no memory for more
            panel.annotate(
                f"{line.get_label()}  {end[1]:{',.0f' if end[1] >= 100 else '.3g'}}{early}",
                end,
                xytext=(0.69, place),
                textcoords="axes fraction",
                va="center",
                fontsize=8,
                color=line.get_color(),
                fontweight="bold" if line.get_label() == "ours" else "normal",
                arrowprops={
                    "arrowstyle": "-",
                    "color": line.get_color(),
                    "alpha": 0.4,
                    "linewidth": 0.7,
                    "relpos": (0, 0.5),
                },
            )


def _spread(places: list[float]) -> list[float]:
    """Rising places, at least a label's height apart, none above the panel: halfway between pushing up and down."""
    up: list[float] = []
    for place in places:
        up.append(max(place, up[-1] + LABEL_GAP) if up else place)
    down: list[float] = []
    for place in reversed(places):
        down.append(min(place, down[-1] - LABEL_GAP) if down else place)
    spread, ceiling = [], 0.97
    for high, low in zip(reversed(up), down, strict=True):
        spread.append(min((high + low) / 2, ceiling))
        ceiling = spread[-1] - LABEL_GAP
    return spread[::-1]


def _round_numbers(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**decade for decade in decades for digit in (1, 2, 5) if low <= digit * 10.0**decade <= high]
