"""Machines whose answers are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from shard_dist.doctor.machines import NoAnswer, Node


@pytest.fixture
def scripted() -> Callable[..., Any]:
    """`scripted({function: {node: answer}})`: machines a, b, ... that give these answers, and none to anything else."""

    def make(answers: Mapping[Callable[..., Any], Mapping[str, Any]], names: str = "ab", **more: Any) -> Any:
        def ask(function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]], seconds: float) -> dict[str, Any]:
            given = answers.get(function, {})
            return {name: given.get(name, NoAnswer("silence")) for name in calls}

        nodes = [Node(name, f"10.0.0.{number}") for number, name in enumerate(names, 1)]
        return SimpleNamespace(
            **{"nodes": nodes, "silent": (), "gcs": "", "dashboard": "", "temp": "", "ask": ask, **more}
        )

    return make
