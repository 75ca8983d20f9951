"""A plan for a terminal: the verdict first, then memory, hours and costs; with `explain` every line of every sum.

Names come from configurations and models: they are shown as they are, never read as markup or control characters.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shard_dist.engines.placement import gpus_of
from shard_dist.plan.account import GIB, Account
from shard_dist.plan.generation import GenerationMemory
from shard_dist.plan.hours import Phase
from shard_dist.plan.needs import TRAIN, Part
from shard_dist.plan.plan import HUB, Plan
from shard_dist.plan.training import TrainingMemory
from shard_dist.plan.workload import Workload

BAR = 8  # columns
MIB, TIB = 2**20, 2**40


def tables(plan: Plan, explain: bool = False) -> Group:
    """What is printed, over 80 columns or more."""
    hours: list[RenderableType] = [_hours(plan), Text()] if plan.phases else []
    shown: list[RenderableType] = [
        _title(plan),
        *_verdict(plan),
        Text(),
        _memory(plan),
        Text(),
        *hours,
        *_remarks(plan, explain),
    ]
    explained = (each for part in _explained(plan) for each in (Text(), part)) if explain else ()
    return Group(*shown, *explained)


def _plain(value: object, style: str = "") -> Text:
    return Text("".join(each if each.isprintable() else "?" for each in str(value)), style)


def _title(plan: Plan) -> Text:
    nodes = plan.nodes
    gpus = f" with {nodes.gpus} x {nodes.gpu or 'GPU'}" if nodes.gpus else f" with {nodes.cpus} CPUs"
    machines = f" on {nodes.count} node{'s' * (nodes.count != 1)}{gpus}"
    return Text.assemble(_plain(plan.config.run.name, "bold"), _plain(machines), _plain(f" ({plan.origin})", "dim"))


def _verdict(plan: Plan) -> Iterator[RenderableType]:
    if plan.fits:
        yield Text("fits", "bold green")
        return
    yield Text("does not fit", "bold red")
    yield from (Padding(_plain(problem), (0, 0, 0, 2)) for problem in plan.problems)
    yield from (Padding(_plain(sentence, "red"), (0, 0, 0, 2)) for sentence in plan.fit.hopeless)
    if plan.changes:
        others = "it" if not plan.fit.hopeless else "the rest"
        yield Text(f"with these settings {others} fits", "bold")
    for change in plan.changes:
        yield Padding(_plain(shlex.join(change.words), "green"), (0, 0, 0, 2))
        yield Padding(_plain(change.why, "dim"), (0, 0, 0, 6))


def _memory(plan: Plan) -> Table:
    table = _table("memory and disk", "takes", "of", "")
    table.columns[0].no_wrap = True
    table.add_column("holds at most", overflow="fold")
    for part in plan.parts:
        for account in part.accounts:
            if account.lines:
                what, takes, holds = _place(plan, part, account)
                bar = _bar(takes, account)
                has = "not stated" if account.capacity is None else _short(account.capacity)
                table.add_row(_plain(what), _short(takes), has, bar, _plain(holds, "dim"))
    return table


def _place(plan: Plan, part: Part, account: Account) -> tuple[str, float, str]:
    """What a place is called, the bytes that it must have, and what it holds by them.

    An engine fills with cache what there is: it must have room for one sequence.
    """
    train = plan.config.train
    if isinstance(part.memory, GenerationMemory):
        memory, role = part.memory, part.name.removeprefix("models.")
        one = memory.cache.bytes(memory.max_model_len)
        least = account.total - max(memory.cache.room, one) + one
        return f"{role}, {_engines(plan, role)}", least, f"{memory.sequences:,} x {memory.max_model_len:,} tokens"
    if part.name == TRAIN and account is part.accounts[0]:
        gpus = train.workers * train.gpus_per_worker
        who = f"{gpus:g} GPU{'s' * (gpus != 1)}" if gpus else f"{train.workers} processes"
        rows = f" or {plan.most_rows} rows" if plan.most_rows and plan.most_rows > 1 else ""
        return f"training, {who}", account.total, f"{plan.longest:,} tokens{rows}" if plan.longest else ""
    return account.where.removesuffix(" in training"), account.total, ""


def _engines(plan: Plan, role: str) -> str:
    spec = plan.config.models[role]
    each = gpus_of(spec, plan.nodes.gpus > 0)
    return f"{spec.engines} x {each:g} GPU{'s' * (each > 1)}" if each else f"{spec.engines} on CPUs"


def _hours(plan: Plan) -> Table:
    names = ("hours", "gpu_hours", *(["cost"] if any(phase.cost for phase in plan.phases) else []))
    table = _table(
        "stages, once it fits" if plan.changes else "stages",
        "GPUs",
        "tokens",
        "per GPU s",
        *(name.replace("gpu_", "GPU ") for name in names),
    )
    for phase in plan.phases:
        speed = phase.tokens_per_gpu_second
        rate = f"{speed:,.0f} {phase.origin}" if speed else "unknown" if phase.gpus else ""
        amounts = (_amount(getattr(phase, name)) for name in names)
        table.add_row(_plain(_who(phase)), f"{phase.gpus:g}", _count(phase.tokens), _plain(rate), *amounts)
    table.show_footer, total = True, plan.total()
    for column, footer in zip(
        table.columns, ["all", "", "", "", *(_amount(total[name]) for name in names)], strict=True
    ):
        column.footer = footer
    return table


def _who(phase: Phase) -> str:
    return phase.stage if phase.stage == TRAIN else f"{phase.stage}: {', '.join(phase.roles)}"


def _amount(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.2f}"


def _count(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:,.1f} {letter}"
    return f"{number:,.0f}"


def _remarks(plan: Plan, explain: bool) -> Iterator[RenderableType]:
    """What is worth a look; all that was assumed only where asked."""
    notes = plan.notes if explain else [*plan.training.notes, *([] if plan.work else [HUB])]
    yield from (_plain(f"- {note}", "yellow") for note in notes)
    if not explain:
        yield Text(f"{len(plan.notes)} assumptions and notes, and every sum: --explain", "dim")


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _size(value: float) -> str:
    return f"{value / GIB:,.1f} GiB" if value >= GIB / 20 else f"{value / MIB:,.1f} MiB"


def _short(value: float) -> str:
    """For a table without sums: a size of terabytes in those."""
    return f"{value / TIB:,.1f} TiB" if value >= TIB else _size(value)


def _capacity(account: Account) -> str:
    return "not stated" if account.capacity is None else _size(account.capacity)


def _bar(takes: float, account: Account) -> RenderableType:
    if account.capacity is None:
        return ""
    style = "green" if takes <= account.capacity else "red"
    return ProgressBar(account.capacity, takes, BAR, complete_style=style, finished_style=style)


def _explained(plan: Plan) -> Iterator[RenderableType]:
    """Every line of every account; where engines run; what is asked of whom."""
    for part in plan.parts:
        yield from (_sum(part, account) for account in part.accounts if account.lines)
        if isinstance(part.memory, TrainingMemory):
            moments = (f"{each.where} {_size(each.total)}" for each in part.memory.moments)
            yield _plain(f"The largest of: {'; '.join(moments)}", "dim")
    yield _placements(plan)
    if plan.work:
        yield _asked(plan.work)


def _sum(part: Part, account: Account) -> Table:
    table = Table(
        box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, show_header=False, show_footer=True
    )
    table.title, table.title_justify = _plain(f"{part.name}: {account.where}", "bold"), "left"
    table.add_column(footer="sum\nthere is", ratio=2)
    table.add_column(ratio=3, style="dim")
    table.add_column(footer=f"{_size(account.total)}\n{_capacity(account)}", justify="right", no_wrap=True)
    for line in account.lines:
        table.add_row(_plain(line.name), _plain(line.formula), _size(line.bytes))
    return table


def _placements(plan: Plan) -> Table:
    table = _table("engines")
    for name in ("role", "bundles of an engine", "on"):
        table.add_column(name, overflow="fold")
    for wave in plan.waves:
        for role, placement in (wave.placed.placements if wave.placed else {}).items():
            bundles = Counter(" + ".join(f"{n:g} {kind}" for kind, n in each.items()) for each in placement.bundles)
            each = ", ".join(f"{count} x {bundle}" for bundle, count in bundles.items())
            nodes = Counter(node for engine in placement.nodes for node in set(engine))
            where = ", ".join(f"{node}: {count}" for node, count in sorted(nodes.items()))
            table.add_row(wave.stage, _plain(role), f"{each} ({placement.strategy})", where)
    return table


def _asked(work: Workload) -> Table:
    table = _table("calls of", "calls", "tokens read", "tokens written")
    for each in work.asked:
        numbers = (each.calls, each.prompt_tokens, each.completion_tokens)
        table.add_row(_plain(f"{each.stage}, {each.part}: {each.role}"), *(f"{number:,.0f}" for number in numbers))
    return table
