"""The page in a real browser: our script runs, the filter filters, hostile text runs nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from shard_dist.report.build import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = """headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
disable-component-update disable-sync enable-logging=stderr virtual-time-budget=2000 dump-dom"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian's package has it)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, synthetic: SimpleNamespace) -> Path:
    return build_report(synthetic.make_run(tmp_path_factory.mktemp("browser") / "run", size=80))


def dump(page: Path, fragment: str, profile: Path) -> str:
    """The document after its script ran. Fails where the console has an error or a blocked resource."""
    command = [
        str(CHROMIUM),
        *(f"--{switch}" for switch in SWITCHES.split()),
        f"--user-data-dir={profile}",
        page.as_uri() + fragment,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def cards(document: str, name: str) -> list[tuple[bool, str]]:
    """(shown, text with tags) of each card of a list."""
    inner = document.split(f'id="{name}-list"', 1)[1].split(f'id="{name}-empty"', 1)[0]
    found = re.findall(r"<article([^>]*)>(.*?)</article>", inner, flags=re.S)
    return [("hidden" not in attributes, body) for attributes, body in found]


def test_without_parameters_every_card_is_shown_and_nothing_hostile_ran(page: Path, tmp_path: Path) -> None:
    document = dump(page, "", tmp_path)
    assert all(shown for shown, _ in cards(document, "test"))
    assert "32 of 32 shown" in document
    assert "<img" not in document


def test_a_search_in_the_address_shows_the_cards_with_that_text_only(page: Path, tmp_path: Path) -> None:
    document = dump(page, "#q=TOPIC51", tmp_path)
    found = cards(document, "test")
    assert [shown for shown, _ in found] == ["topic51 " in body for _, body in found]
    assert sum(shown for shown, _ in found) == 1
    assert "1 of 32 shown" in document
    assert all(shown for shown, _ in cards(document, "record"))


def test_filters_in_the_address_combine_and_each_list_has_its_own(page: Path, tmp_path: Path) -> None:
    document = dump(page, "#outcome=refused+%E2%86%92+answered&level=2&record-outcome=dropped: truncated", tmp_path)
    wanted = ('data-level="2"', 'data-outcome="refused → answered"')
    inner = document.split('id="test-list"', 1)[1].split('id="test-empty"', 1)[0]
    tags = re.findall(r"<article[^>]*>", inner)
    assert [("hidden" not in tag) for tag in tags] == [all(part in tag for part in wanted) for tag in tags]
    assert any("hidden" not in tag for tag in tags)
    records = re.findall(r"<article[^>]*>", document.split('id="record-list"', 1)[1])
    assert all(("hidden" not in tag) == ('data-outcome="dropped: truncated"' in tag) for tag in records)


def test_a_search_for_nothing_that_is_there_says_so(page: Path, tmp_path: Path) -> None:
    document = dump(page, "#q=no-such-text", tmp_path)
    assert not any(shown for shown, _ in cards(document, "test"))
    assert re.search(r'<p class="absent" id="test-empty">', document)
