"""Plain NATS messages for `liftbridge publish --nats`: what any NATS client sends, without an ack.

nats-py runs on asyncio. Its connection lives in a thread with a loop of its own, and gets a batch at a time,
so that a slow NATS server slows down the reading; the flush at the end tells that the server has everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import nats
import nats.errors
import trio

from liftbridge.cli.exits import CommandError, Exit

CONNECT_SECONDS = 5
FLUSH_SECONDS = 30


async def publish(
    url: str, credentials: str | None, subject: str, batches: AsyncIterator[Sequence[bytes]]
) -> int:
    """Send all values; returns how many. Raises CommandError when NATS does not take them."""
    loop = asyncio.new_event_loop()
    sent = 0
    try:
        client = await _in_loop(loop, url, _connect(url, credentials))
        try:
            async for values in batches:
                await _in_loop(loop, url, _send(client, subject, values))
                sent += len(values)
        finally:
            with trio.CancelScope(shield=True):
                await _in_loop(loop, url, client.close())
    finally:
        loop.close()
    return sent


async def _in_loop(loop: asyncio.AbstractEventLoop, url: str, work: Any) -> Any:
    try:
        return await trio.to_thread.run_sync(loop.run_until_complete, work)
    except (OSError, nats.errors.Error, asyncio.TimeoutError, ValueError) as error:
        status = Exit.DENIED if isinstance(error, nats.errors.AuthorizationError) else Exit.UNAVAILABLE
        if isinstance(error, (nats.errors.BadSubjectError, nats.errors.MaxPayloadError, ValueError)):
            status = Exit.FAILED
        text = f"cannot publish through {url}: {error or type(error).__name__}; is this the NATS server?"
        raise CommandError(text, status) from error


async def _connect(url: str, credentials: str | None) -> Any:
    async def ignore(error: Exception) -> None:
        """What goes wrong is raised as well."""

    more = {} if credentials is None else {"user_credentials": credentials}
    return await nats.connect(
        url,
        allow_reconnect=False,
        max_reconnect_attempts=1,
        connect_timeout=CONNECT_SECONDS,
        error_cb=ignore,
        **more,
    )


async def _send(client: Any, subject: str, values: Sequence[bytes]) -> None:
    for value in values:
        await client.publish(subject, value)
    # Until the server has them: what nats-py keeps is bounded by a batch.
    await client.flush(timeout=FLUSH_SECONDS)
