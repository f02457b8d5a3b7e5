"""Waits until a server has stored what was published to it, and finds out what it has lost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio

from liftbridge.bench.errors import BenchError
from liftbridge.bench.progress import Progress
from liftbridge.bench.target import Target

SETTLE_SECONDS = 10.0
"""What is not stored once nothing more was stored for so long is lost."""
# The server is asked often only when the end is near, as answering costs it time.
POLL_MIN_SECONDS = 0.001
POLL_MAX_SECONDS = 0.1


async def settle(target: Target, stream: str, messages: int, label: str) -> tuple[int, int]:
    """Wait until everything that was published is committed, or nothing more comes.

    Returns:
        How many messages are committed, and when that was known first, in monotonic ns.
    """

    async def committed() -> int:
        return (await target.stored(stream))[0]

    with Progress(messages, label) as bar:
        return await until_stored(committed, messages, bar)


async def until_stored(
    committed: Callable[[], Awaitable[int]], messages: int, bar: Progress
) -> tuple[int, int]:
    """Ask until everything is committed, or nothing more comes.

    Args:
        committed: asks how many messages are committed.
        messages: how many are everything.
        bar: shows how far it is.

    Returns:
        How many messages are committed, and when that was known first, in monotonic ns.
    """
    start = time.monotonic_ns()
    stored, changed = 0, start
    idle_since = trio.current_time()
    while stored < messages:
        count = await committed()
        now = time.monotonic_ns()
        if count > stored:
            stored, changed = count, now
            bar.update(stored)
            idle_since = trio.current_time()
        elif trio.current_time() - idle_since > SETTLE_SECONDS:
            break
        rest = (messages - stored) * (now - start) / 1e9 / stored if stored else 0.0
        await trio.sleep(min(POLL_MAX_SECONDS, max(POLL_MIN_SECONDS, rest / 2)))
    return stored, changed


async def check_stored(target: Target, stream: str, messages: int, committed: int) -> None:
    """Raise BenchError unless the server has stored all that is committed, and nothing twice."""
    stored = (await target.stored(stream))[1]
    if stored > messages or stored < committed:
        raise BenchError(
            f"{messages} messages were published, {committed} are acked, but {stored} are stored"
        )
