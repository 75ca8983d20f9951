"""A dry run in numbers: calls of each arm, which of them are new, and what they would cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table

from shard_dist.config.schema import Config
from shard_dist.engines.placement import gpus_of
from shard_dist.progress import Progress
from shard_dist.recipes.base import find
from shard_dist.rundir import Run
from shard_dist.sweep.dry import Book, Kind, Probe, probe
from shard_dist.sweep.plan import Sweep

Row = dict[str, Any]
CHARS_PER_TOKEN = 4  # of English prose under most tokenizers
SUMS = ("calls", "new", "in_ledger", "shared", "prompt_tokens", "completion_tokens")
NOTE = (
    "ledger: answered without a call; shared: made once, for an arm above; asked, answered: tokens of new calls, one "
    f"for every {CHARS_PER_TOKEN} characters asked, and answers as long as like ones in the ledger, or as they may be"
)


def estimate(sweep: Sweep, progress: Progress) -> Row:
    """What is still to be done, in numbers. Nothing is written."""
    return estimates(sweep, *probe(sweep, progress))


def estimates(sweep: Sweep, book: Book, probes: Sequence[Probe], compared: set[str]) -> Row:
    """{"sweep", "arms": [row per arm], "comparison": a row, "total": their sums, "rates": tokens per GPU second}.

    Of an arm's distinct `calls` every one is `new`, `in_ledger` or `shared` (new for an arm above). GPU hours are those
    that are still to come, as if every record were kept and trained on; None where no rate is known.
    """
    lengths, rates = known_lengths(book), _rates(sweep)
    seen: set[str] = set()
    rows = []
    for keys, each in [*((each.keys, each) for each in probes), (compared, None)]:
        unknown = {key for key in keys if book.calls[key].tokens is None}
        new = unknown - seen
        seen |= unknown
        hours = _hours(each or probes[0], new, book, lengths, rates, trains=each is not None)
        rows.append(
            {
                "calls": len(keys),
                "new": len(new),
                "in_ledger": len(keys) - len(unknown),
                "shared": len(unknown) - len(new),
                "prompt_tokens": sum(book.calls[key].chars for key in new) // CHARS_PER_TOKEN,
                "completion_tokens": round(sum(_length(book.calls[key].kind, lengths) for key in new)),
                "gpu_hours": hours,
                "cost": hours * sweep.costs.gpu_hour if hours is not None and sweep.costs.gpu_hour else None,
            }
        )
    arms = [{**_arm(each), **row} for each, row in zip(probes, rows, strict=False)]
    return {"sweep": sweep.name, "arms": arms, "comparison": rows[-1], "total": _total(rows), "rates": rates}


def _arm(probe: Probe) -> Row:
    return {
        "arm": probe.arm.name,
        "settings": probe.arm.settings,
        "to_do": [stage.name for stage in probe.arm.stages if stage.name not in probe.done],
        "rounds": probe.arm.config.recipe.rounds,
    }


def _total(rows: Sequence[Row]) -> Row:
    optional = {
        name: sum(row[name] for row in rows) if all(row[name] is not None for row in rows) else None
        for name in ("gpu_hours", "cost")
    }
    return {name: sum(row[name] for row in rows) for name in SUMS} | optional


def known_lengths(book: Book) -> dict[Kind, float]:
    """Mean length of the answers that the ledger has, by kind of call, in tokens."""
    found: dict[Kind, list[int]] = defaultdict(list)
    for call in book.calls.values():
        if call.tokens:
            found[call.kind].append(call.tokens[1])
    return {kind: sum(tokens) / len(tokens) for kind, tokens in found.items()}


def _length(kind: Kind, lengths: Mapping[Kind, float]) -> float:
    return lengths.get(kind, kind[1])


def _rates(sweep: Sweep) -> dict[str, float | None]:
    """Tokens per GPU second: as stated, else what finished arms took."""
    costs, runs = sweep.costs, [arm.run for arm in sweep.arms]
    return {
        "generate": costs.generation_tokens_per_gpu_second or measured(runs, "generate", "completion_tokens"),
        "train": costs.training_tokens_per_gpu_second or measured(runs, "train", "tokens"),
    }


def measured(runs: Iterable[Run], stage: str, tokens: str) -> float | None:
    """Tokens over seconds x GPUs (processes, where a run has none) of the runs that have finished the stage."""
    made = seconds = 0.0
    for run in runs:
        if manifest := run.manifest(stage):
            made += manifest["counts"].get(tokens, 0)
            seconds += manifest["seconds"] * _units(run.config, stage)
    return made / seconds if made and seconds else None


def _units(config: Config, stage: str) -> float:
    if stage == "train":
        return config.train.workers * (config.train.gpus_per_worker or 1)
    specs = [config.models[name] for name in find(config.recipe.name).roles(config.recipe)]
    return sum((gpus_of(spec, has_gpus(config)) or 1) * spec.engines for spec in specs)


def has_gpus(config: Config) -> bool:
    """A configuration that trains on CPUs is for a machine without GPUs."""
    return config.train.gpus_per_worker > 0


def _hours(
    probe: Probe,
    new: set[str],
    book: Book,
    lengths: Mapping[Kind, float],
    rates: Mapping[str, float | None],
    trains: bool,
) -> float | None:
    if not has_gpus(probe.arm.config):
        return 0.0
    trains = trains and not {"train", "rounds"} & set(probe.done)
    tokens = {
        "generate": sum(_length(book.calls[key].kind, lengths) for key in new if book.calls[key].on_gpu),
        "train": _learned(probe, lengths) if trains else 0.0,
    }
    seconds = 0.0
    for stage, number in tokens.items():
        rate = rates[stage]
        if number and not rate:
            return None
        seconds += number / rate if rate else 0.0
    return seconds / 3600


def _learned(probe: Probe, lengths: Mapping[Kind, float]) -> float:
    """Tokens that training sees where every record is kept."""
    config = probe.arm.config
    longest = config.recipe.answer_sampling.max_tokens
    answers = [length for (_, most, schema), length in lengths.items() if (most, schema) == (longest, False)]
    answer = sum(answers) / len(answers) if answers else longest
    chars = sum(len(prompt.text) for prompt in probe.learned)
    return config.train.epochs * (chars / CHARS_PER_TOKEN + len(probe.learned) * answer)


def tables(found: Row) -> Group:
    """For a terminal: what the arms are, then what they would ask."""
    settings = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    settings.add_column("arm", no_wrap=True)
    settings.add_column("settings", overflow="fold")
    calls = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption=NOTE, caption_justify="left")
    calls.add_column("arm", no_wrap=True)
    calls.add_column("to do")
    costs = [] if found["total"]["cost"] is None else ["cost"]
    for name in ("calls", "new", "ledger", "shared", "asked", "answered", "GPU h", *costs):
        calls.add_column(name, justify="right", no_wrap=True)
    for row in found["arms"]:
        settings.add_row(row["arm"], " ".join(f"{key}={value}" for key, value in row["settings"].items()))
        calls.add_row(row["arm"], _to_do(row), *_cells(row, bool(costs)))
    calls.add_row("comparison", "", *_cells(found["comparison"], bool(costs)))
    calls.add_section()
    calls.add_row("all", "", *_cells(found["total"], bool(costs)))
    return Group(settings, calls)


def _to_do(row: Row) -> str:
    to_do = row["to_do"]
    rounds = f", {row['rounds']} rounds, calls of the first" if row["rounds"] > 1 else ""
    return f"{'all' if 'prompts' in to_do else f'from {to_do[0]}'}{rounds}" if to_do else "nothing"


def _cells(row: Row, costs: bool) -> list[str]:
    prices = [row["gpu_hours"], *([row["cost"]] if costs else [])]
    return [*(f"{row[name]:,}" for name in SUMS), *("unknown" if each is None else f"{each:,.2f}" for each in prices)]
