"""Programs without engines: in this process, answered by the ledger alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from shard_dist.engines.rows import Rows
from shard_dist.engines.worker import Backend, Counters, ModelIdentity, Program, Role, RowAsk, RowState
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion

BLOCK = 256  # rows read at once


class NotInLedger(Exception):
    """A call that only an engine can answer."""


class LedgerBackend:
    """Answers what the ledger knows; for anything else the row needs an engine."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def complete(self, key: str, call: Call, row: RowState) -> Completion:
        known = self.ledger.get(key)
        if known is None:
            raise NotInLedger(key)
        return known


def run_local(
    program: Program,
    rows: Rows,
    missing: Sequence[int],
    roles: Sequence[Role],
    save: Callable[[int, Any], None],
) -> tuple[int, Counters]:
    """Run the rows at `missing` in order, up to the first that needs an engine: how many, and the calls behind them."""
    if not roles or not missing:
        return asyncio.run(_run(program, rows, missing, {}, {}, save))
    with closing(Ledger(roles[0].ledger)) as ledger:
        backends: dict[str, Backend] = {role.name: LedgerBackend(ledger) for role in roles}
        identities = {role.name: role.identity for role in roles}
        return asyncio.run(_run(program, rows, missing, backends, identities, save))


async def _run(
    program: Program,
    rows: Rows,
    missing: Sequence[int],
    backends: dict[str, Backend],
    identities: dict[str, ModelIdentity],
    save: Callable[[int, Any], None],
) -> tuple[int, Counters]:
    counters, done = Counters(), 0
    for start in range(0, len(missing), BLOCK):
        indices = missing[start : start + BLOCK]
        for index, row in zip(indices, rows.read(indices), strict=True):
            ask = RowAsk(backends, identities)
            try:
                save(index, await program(row, ask))
            except NotInLedger:
                return done, counters
            done += 1
            # Of finished rows only: an engine counts the calls of the others.
            answered = sum(len(keys) for keys in ask.calls.values())
            counters.add(Counters(calls=answered, hits=answered))
    return done, counters
