"""`shard-dist ledger ...`, as a person meets it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from calls import CALL, call, completion, fill, key, put, texts
from typer.testing import CliRunner

from shard_dist.cli import app
from shard_dist.ledger.key import call_key
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Sampling

HOSTILE = "\x1b]0;title\x07\x1b[31m red \u202e \x9b31m"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with three calls in a pack, two in a segment of a process that was killed, one of them a repetition."""
    (tmp_path / "config.yaml").write_text("run: {name: x, ledger: ''}\n")
    (tmp_path / "generate.json").write_text('{"counts": {"ledger_hits": 4}}')
    (tmp_path / "evaluate.json").write_text('{"counts": {"ledger_hits": 3}}')
    (tmp_path / "metrics.json").write_text("[1]")
    fill(tmp_path / "ledger", 0, 1, 2)
    killed = Ledger(tmp_path / "ledger")
    put(killed, 2)
    put(killed, 3)
    with killed._own.segment.path.open("ab") as stream:
        stream.write(b'{"key":"torn')
    return tmp_path


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["ledger", *map(str, words)])
    if isinstance(result.exception, ValueError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_stats(run: Path) -> None:
    counts = json.loads(invoke("stats", run, "--json")[1])
    assert counts.pop("bytes") > 500
    assert counts == {
        "entries": 4,
        "calls_made": 5,
        "hits": 7,
        "torn_lines": 1,
        "damaged_packs": 0,
        "segments": 1,
        "packs": 1,
    }
    assert "calls_made" in invoke("stats", run)[1]
    assert json.loads(invoke("stats", run / "ledger", "--json")[1])["hits"] == 0


def test_a_shared_ledger_is_found_through_the_configuration(run: Path, tmp_path: Path) -> None:
    fill(tmp_path / "shared", 7)
    (run / "config.yaml").write_text(f"run: {{ledger: {tmp_path / 'shared'}}}\n")
    assert json.loads(invoke("stats", run, "--json")[1])["entries"] == 1


def test_what_is_no_run_and_no_ledger_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run directory"):
        invoke("stats", tmp_path)


def test_get_escapes_what_a_terminal_would_obey(run: Path) -> None:
    ledger = Ledger(run / "ledger")
    ledger.append(key(9), call(9), completion(HOSTILE))
    ledger.close()
    code, text = invoke("get", run, key(9))
    assert code == 0
    assert json.loads(text)["completion"]["texts"] == [HOSTILE]
    assert text.replace("\n", "").isascii()
    assert text.replace("\n", "").isprintable()
    with pytest.raises(ValueError, match="has no call"):
        invoke("get", run, key(8))
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        invoke("get", run, "x\x1b")


def test_export(run: Path) -> None:
    other = Call("other", "g", CALL.messages, Sampling())
    ledger = Ledger(run / "ledger")
    ledger.append(call_key(other), other, completion(HOSTILE))
    ledger.close()
    assert invoke("export", run, run / "all.jsonl")[0] == 0
    lines = [json.loads(line) for line in (run / "all.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted([*map(key, range(4)), call_key(other)])
    invoke("export", run, run / "some.parquet", "--model", "other")
    (row,) = pq.read_table(run / "some.parquet").to_pylist()
    assert (row["key"], row["fingerprint"]) == (call_key(other), "g")
    assert json.loads(row["completion"])["texts"] == [HOSTILE]
    invoke("export", run, run / "none.parquet", "--older-than", "1")
    assert pq.read_table(run / "none.parquet").num_rows == 0
    with pytest.raises(ValueError, match=r"must end in \.jsonl or \.parquet"):
        invoke("export", run, run / "all.csv")


def test_verify_names_what_is_wrong(run: Path) -> None:
    code, text = invoke("verify", run)
    assert (code, text) == (0, "5 sound, 0 wrong, 1 cut off by a kill\n")
    ledger = Ledger(run / "ledger")
    ledger.append(key(5), call(6), completion("not the answer to that"))
    ledger.close()
    (run / "ledger" / "x.jsonl").write_text("{}\n")
    (run / "ledger" / "x.parquet").write_text("{}\n")
    with pytest.warns(UserWarning, match="is damaged"):
        code, text = invoke("verify", run)
    assert code == 1
    assert f"row 0: key {key(5)} is not that of its call, {key(6)}" in text
    assert "x.jsonl: byte 0: a damaged line" in text
    assert "x.parquet: no pack can be read in it" in text
    assert "5 sound, 3 wrong" in text


def test_prune_counts_first_and_leaves_writers_alone(run: Path) -> None:
    with pytest.raises(ValueError, match="say which calls to drop"):
        invoke("prune", run, "--yes")
    assert "0 calls would be dropped" in invoke("prune", run, "--model", "no such")[1]
    text = invoke("prune", run, "--fingerprint", "f")[1]
    assert "3 calls would be dropped; add --yes" in text
    assert "1 segments may have writers" in text
    assert texts(run / "ledger", 0, 3) == ["text 0", "text 3"]
    assert "3 calls dropped" in invoke("prune", run, "--fingerprint", "f", "--yes")[1]
    assert texts(run / "ledger", 0, 1, 2, 3) == ["", "", "text 2", "text 3"]
    assert "2 calls dropped" in invoke("prune", run, "--fingerprint", "f", "--all", "--yes")[1]
    stats = json.loads(invoke("stats", run, "--json")[1])
    assert (stats["entries"], stats["calls_made"], stats["torn_lines"]) == (0, 5, 1)


def test_prune_by_age(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_days_ago = time.time() - 3 * 86_400
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: three_days_ago)
        fill(run / "ledger", 10)
    assert "1 calls dropped" in invoke("prune", run, "--older-than", "2", "--yes")[1]
    assert texts(run / "ledger", 0, 10) == ["text 0", ""]


def test_compact(run: Path) -> None:
    assert "0 files into 0" in invoke("compact", run)[1]
    assert "2 files into 1, 1 repeated calls dropped" in invoke("compact", run, "--all")[1]
    assert [os.path.splitext(path)[1] for path in os.listdir(run / "ledger")] == [".parquet"]
