"""Text for the page: what data sets and models wrote is hostile until it has been through here."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import dataclass
from typing import Any
from zlib import compress

from markupsafe import Markup, escape

# Controls other than tab and line feed are shown as pictures: a browser drops or rewrites them (NUL, C1, CR).
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
HEAD = 400  # characters that are shown before a text unfolds


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def printable(value: Any) -> Any:
    """A string without control characters and lone surrogates; other values as they are."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return CONTROLS.sub(_picture, value.replace("\r\n", "\n"))


def escaped(value: object) -> str:
    """Text for HTML and SVG, elements and quoted attributes alike."""
    return str(escape(printable(str(value))))


def packed_json(value: Any) -> Markup:
    """JSON, deflated (RFC 1950) and in base64: a third of its size, and no text in it can end an element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(b64encode(compress(text.encode("utf-8"), 6)).decode())


def percent(share: float | None) -> str:
    """0.8167 -> "81.7%"; a share that is not known (no prompts) is a dash."""
    return "–" if share is None else f"{100 * share:.1f}%"


def points(difference: float | None) -> str:
    """-0.544 -> "−54.4", a difference of shares in percentage points."""
    return "–" if difference is None else f"{_tenths(difference):+.1f}".replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """ "[73.8, 87.6]" in percent, "" where there is none."""
    return "" if low is None or high is None else f"[{_tenths(low):.1f}, {_tenths(high):.1f}]".replace("-", "−")


def _tenths(share: float) -> float:
    """In points; what rounding left of a zero is a zero."""
    return round(100 * share, 1) + 0.0


def kappa(value: float) -> str:
    """.84 and −.05, without the zero; 1.00."""
    return f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")


def p_value(value: float) -> str:
    """Two digits; below a thousandth only that it is."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def count(value: Any) -> str:
    """1234 -> "1,234"; "–" where nothing was counted."""
    if value is None:
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{int(value):,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def number(value: float) -> str:
    """1234.5 -> "1,234"; 0.84167 -> "0.842"; what rounding left of a zero is a zero."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 9) + 0:.3g}".replace("-", "−")


def duration(seconds: float) -> str:
    """8.2 -> "8.2 s"; 372 -> "6 min 12 s"; 9000 -> "2 h 30 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


Span = tuple[int, int]


@dataclass(frozen=True)
class Prose:
    """A text as the page shows it: a head, a rest that unfolds, and how many characters are left out.

    Head and rest are pieces, of which every second one is marked; together they are the text that is shown.
    """

    head: list[str]
    rest: list[str]
    left_out: int


def prose(text: str, limit: int, span: Span | None = None) -> Prose:
    """Up to `limit` characters, the characters of `span` marked. The head breaks at a space near 400 characters, so a
    short text has no rest."""
    shown, left_out = text[:limit], max(0, len(text) - limit)
    if len(shown) <= HEAD * 3 // 2:
        return Prose(_pieces(shown, 0, span), [], left_out)
    cut = shown.rfind(" ", HEAD * 3 // 4, HEAD)
    cut = cut if cut > 0 else HEAD
    return Prose(_pieces(shown[:cut], 0, span), _pieces(shown[cut:], cut, span), left_out)


def _pieces(part: str, offset: int, span: Span | None) -> list[str]:
    start, end = (0, 0) if span is None else (min(max(place - offset, 0), len(part)) for place in span)
    pieces = [part[:start], part[start:end], part[end:]] if start < end else [part]
    return [printable(piece) for piece in pieces]
