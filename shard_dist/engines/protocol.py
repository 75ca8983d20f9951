"""What an engine is, what a row program may ask, and how both fail."""

from __future__ import annotations

from typing import Any, Protocol

from shard_dist.records import Call, Completion, Message, Sampling


class CallRefused(Exception):
    """This call can never succeed (a prompt longer than the context, a rejected schema): the row fails, others go on.

    `reason` is one snake_case word for the counts; the message has the details.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class CallFailed(Exception):
    """This try failed (a server's 503, an injected fault); the same call may succeed later."""


class EngineDied(Exception):
    """The engine is gone; its process must be replaced and its unfinished rows asked again."""


class Engine(Protocol):
    """A model that completes. One instance lives in one process and serves many calls at once."""

    async def generate(self, call: Call) -> Completion:
        """All n samples of a call. Raises CallRefused, CallFailed, EngineDied; ValueError for a broken setting."""
        ...

    async def health(self) -> None:
        """Return if the engine can serve; raise EngineDied if not."""
        ...

    async def close(self) -> None: ...


class Ask(Protocol):
    """How a row program reaches models: through the ledger, to the engine of a role. One per row.

    `calls` collects the keys of the row's calls by step.
    """

    calls: dict[str, list[str]]

    async def __call__(
        self,
        role: str,
        step: str,
        messages: tuple[Message, ...],
        sampling: Sampling,
        schema: dict[str, Any] | None = None,
    ) -> Completion:
        """The completion of one call; `step` names it in the row's `calls`."""
        ...
