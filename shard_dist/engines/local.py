"""Programs without engines: in this process, answered by the ledger alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from shard_dist.engines.worker import Backend, Counters, ModelIdentity, Program, RowAsk
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion


class NotInLedger(Exception):
    """A call that only an engine can answer."""


class LedgerBackend:
    """Answers what the ledger knows; for anything else the row needs an engine."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def complete(self, key: str, call: Call) -> Completion:
        known = self.ledger.get(key)
        if known is None:
            raise NotInLedger(key)
        return known


def run_local(
    program: Program, rows: Sequence[Any], roles: Sequence[Any]
) -> tuple[dict[int, Any], list[int], Counters]:
    """Results by row index, the indices of rows that need an engine, and the calls that the ledger answered."""
    if not roles:
        return asyncio.run(_run(program, rows, {}, {}))
    with closing(Ledger(roles[0].ledger)) as ledger:
        backends: dict[str, Backend] = {role.name: LedgerBackend(ledger) for role in roles}
        return asyncio.run(_run(program, rows, backends, {role.name: role.identity for role in roles}))


async def _run(
    program: Program, rows: Sequence[Any], backends: dict[str, Backend], identities: dict[str, ModelIdentity]
) -> tuple[dict[int, Any], list[int], Counters]:
    results: dict[int, Any] = {}
    left: list[int] = []
    counters = Counters()
    for index, row in enumerate(rows):
        ask = RowAsk(backends, identities)
        try:
            results[index] = await program(row, ask)
        except NotInLedger:
            left.append(index)
            continue
        # Of finished rows only: an engine counts the calls of the others.
        answered = sum(len(keys) for keys in ask.calls.values())
        counters.add(Counters(calls=answered, hits=answered))
    return results, left, counters
