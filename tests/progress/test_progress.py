"""The live line fits its terminal, and a log file has whole lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shard_dist.progress import Progress

TEXT = "3 engines, 2 faults, 182 calls/s, 9,300 tokens/s, 12 % from the ledger, 210 running, 45 waiting, KV 61 %"


def drawn(width: int, text: str) -> str:
    """What stands on a terminal of this width while the bar is live."""
    live, screen = (
        Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, _environ={}) for _ in "ab"
    )
    with Progress(live, 1.0).bar("prompts", 1_000_000) as bar:
        bar.update(999_999, text)
        assert bar.rich is not None
        with screen.capture() as capture:  # the live console would draw its own line as well
            screen.print(bar.rich.get_renderable())
    return capture.get()


@pytest.mark.parametrize("width", [30, 60, 80, 100, 139, 140, 200])
def test_the_live_line_is_one_line_and_loses_its_last_parts_first(width: int) -> None:
    line = drawn(width, TEXT)
    assert line.count("\n") == 1
    assert len(line.rstrip("\n")) <= width
    parts = TEXT.split(", ")
    kept = [part for part in parts if part in line]
    assert kept == parts[: len(kept)]
    assert width == 30 or "…" not in line
    assert len(kept) >= {30: 0, 60: 1, 80: 3, 100: 4, 139: 5, 140: 5, 200: 8}[width]


def test_eighty_columns_show_rows_and_rates() -> None:
    line = drawn(80, TEXT.replace("2 faults, ", ""))
    assert "999999/1000000 3 engines, 182 calls/s" in line
    assert "-:--:--" in line


def test_a_part_that_is_too_long_itself_is_cut_and_markup_in_it_is_text() -> None:
    line = drawn(80, "[red]" + "x" * 200)
    assert line.count("\n") == 1
    assert "[red]xxx" in line
    assert "…" in line


def test_a_heartbeat_in_a_file_is_one_line_however_long() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=80), 0.0).bar("prompts", 10) as bar:
        bar.update(5, TEXT)
    assert out.getvalue().startswith(f"  5/10 prompts: {TEXT}, ")
    assert out.getvalue().count("\n") == 1
