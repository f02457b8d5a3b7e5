"""Blocking sockets in threads, under Trio's cancellation, for receiving loops that nothing is to disturb."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")

CONNECT_SECONDS = 30.0


def connect(address: tuple[str, int]) -> socket.socket:
    """Connect without delay of small packets. Raises OSError."""
    connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


async def receive_in_thread(
    connection: socket.socket, receive: Callable[[], T], limiter: trio.CapacityLimiter | None = None
) -> T:
    """Run `receive`, which receives from `connection`, in a thread; returns what it returns.

    When the caller is cancelled, the socket is shut down, so that `receive` sees its end and the thread is
    never left behind. It is shut down after a success as well: one connection, one use.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_shut_down_at_end, connection)
        try:
            received = await trio.to_thread.run_sync(receive, limiter=limiter)
        except Exception:
            # What went wrong because of the shutdown is no news to whoever cancelled.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        nursery.cancel_scope.cancel()
    return received


async def _shut_down_at_end(connection: socket.socket) -> None:
    """Until cancelled; then shut the socket down."""
    try:
        await trio.sleep_forever()
    finally:
        with contextlib.suppress(OSError):  # the peer was first
            connection.shutdown(socket.SHUT_RDWR)
