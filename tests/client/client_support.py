"""What the tests of the client share: a test is a coroutine that runs once on Trio and once on asyncio."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from calls import PATIENCE

both_backends = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def run(backend: str, scenario: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a scenario to its end; one that hangs fails."""

    async def main() -> Any:
        with anyio.fail_after(PATIENCE * 2):
            return await scenario(*args)

    return anyio.run(main, backend=backend)


async def in_thread(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Do what blocks, such as starting a server, beside the client."""
    return await anyio.to_thread.run_sync(functools.partial(work, *args, **options))


async def take(messages: Any, count: int) -> list[Any]:
    """The next messages of a subscription."""
    taken: list[Any] = []
    async for message in messages:
        taken.append(message)
        if len(taken) == count:
            break
    return taken
