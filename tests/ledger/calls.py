"""Calls and answers to fill a ledger with."""

from __future__ import annotations

from dataclasses import replace

from shard_dist.ledger.key import call_key
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion, Sampling

CALL = Call("m", "f", ({"role": "user", "content": "hi"},), Sampling())


def call(number: int) -> Call:
    return replace(CALL, sampling=replace(Sampling(), seed=number))


def key(number: int) -> str:
    return call_key(call(number))


def completion(text: str) -> Completion:
    return Completion((text,), ("stop",), 3, 4, ("",))


def put(ledger: Ledger, number: int, text: str = "") -> None:
    ledger.append(key(number), call(number), completion(text or f"text {number}"))


def fill(location: object, *numbers: int) -> None:
    """One closed ledger's worth of calls, so one pack."""
    ledger = Ledger(str(location))
    for number in numbers:
        put(ledger, number)
    ledger.close()


def texts(location: object, *numbers: int) -> list[str]:
    """The answers that a new reader finds; "" for none."""
    ledger = Ledger(str(location))
    found = [ledger.get(key(number)) for number in numbers]
    ledger.close()
    return [answer.text if answer else "" for answer in found]
