"""Where asyncio meets Trio: nats-py's handshake is asyncio code, everything around it is Trio's.

trio-asyncio runs an asyncio loop inside Trio, and is used where it can be imported. Python 3.14 removed parts
of asyncio that trio-asyncio 0.16 needs for that; there the asyncio side has a loop of its own in a worker
thread, and comes back to Trio for every piece of I/O. Both keep one contract: `call_asyncio` runs an asyncio
function from Trio, `call_trio` a Trio function from inside of it; results, exceptions and cancellation pass
through both ways.

Invariant: when `call_asyncio` returns or raises, nothing that it started runs any more.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

import trio

Result = TypeVar("Result")


class Bridge(Protocol):
    """See the module."""

    def opened(self) -> AbstractAsyncContextManager[asyncio.AbstractEventLoop | None]:
        """The block in which `call_asyncio` works; gives the asyncio loop when there is one for all of it."""

    async def call_asyncio(self, function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run an asyncio function from Trio."""

    async def call_trio(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a Trio function from a function that `call_asyncio` runs."""


class TrioAsyncioBridge:
    """asyncio inside Trio, by trio-asyncio."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[asyncio.AbstractEventLoop | None]:
        """A loop for all calls."""
        import trio_asyncio

        async with trio_asyncio.open_loop() as loop:
            yield loop

    async def call_asyncio(self, function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run an asyncio function from Trio."""
        import trio_asyncio

        result: Result = await trio_asyncio.aio_as_trio(function)()
        return result

    async def call_trio(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a Trio function from a function that `call_asyncio` runs."""
        import trio_asyncio

        await trio_asyncio.trio_as_aio(function)()


class ThreadBridge:
    """asyncio in a worker thread, with a loop for each call."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[asyncio.AbstractEventLoop | None]:
        """Nothing is needed."""
        yield None

    async def call_asyncio(self, function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run an asyncio function from Trio."""
        return await trio.to_thread.run_sync(_run, function)

    async def call_trio(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a Trio function. Blocks the loop of the call, so its time-outs are for the function to keep."""
        trio.from_thread.run(function)


def _run(function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """`asyncio.run`, on a loop that is asyncio's own for certain: trio-asyncio changes the default."""
    loop = asyncio.SelectorEventLoop()
    try:
        return loop.run_until_complete(function())
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left) if left else loop.shutdown_asyncgens())
        loop.close()


BRIDGE: Bridge = ThreadBridge() if sys.version_info >= (3, 14) else TrioAsyncioBridge()
