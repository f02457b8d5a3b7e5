"""Blocking sockets in threads, under Trio's cancellation, for loops that nothing is to disturb.

And the NATS handshake on such a socket.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")

CONNECT_SECONDS = 30.0

_CONNECT = {"verbose": False, "pedantic": False, "name": "liftbridge-bench", "lang": "python", "version": "0"}


def connect(address: tuple[str, int]) -> socket.socket:
    """Connect without delay of small packets. Raises OSError."""
    connection = socket.create_connection(address, timeout=CONNECT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def allow_many() -> None:
    """Let this process and its children have as many sockets and files as they may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def receive_in_thread(connection: socket.socket, receive: Callable[[], T]) -> T:
    """Run `receive`, which receives from `connection`, in a thread of its own; returns what it returns.

    When the caller is cancelled, the socket is shut down, so that `receive` sees its end and the thread is
    never left behind. It is shut down after a success as well: one connection, one use.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_shut_down_at_end, connection)
        try:
            received = await trio.to_thread.run_sync(receive, limiter=trio.CapacityLimiter(1))
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


def greet(connection: socket.socket, more: bytes = b"", *, headers: bool = False) -> int:
    """Do the NATS handshake, and wait until the server has taken `more` as well.

    Args:
        connection: a new connection.
        more: what to send after CONNECT.
        headers: whether to take messages with headers, such as the one that says that nobody listens.

    Returns:
        The largest payload that the server takes, in bytes.

    Raises:
        ConnectionError: it is no NATS server, or refuses us.
    """
    info = _line(connection)
    if not info.startswith(b"INFO "):
        raise ConnectionError(f"this is no NATS server; it greets with {info[:80]!r}")
    connect = _CONNECT | ({"headers": True, "no_responders": True} if headers else {})
    connection.sendall(b"CONNECT " + json.dumps(connect).encode() + b"\r\n" + more)
    _ping(connection)
    return int(json.loads(info[5:])["max_payload"])


def _ping(connection: socket.socket) -> None:
    """Wait until the server has taken everything. Raises ConnectionError if it refuses something."""
    connection.sendall(b"PING\r\n")
    while True:
        line = _line(connection)
        if line == b"PONG":
            return
        if line == b"PING":
            connection.sendall(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            raise ConnectionError(f"NATS refuses: {line.decode(errors='replace')}")


def _line(connection: socket.socket) -> bytes:
    """Receive one line. Byte by byte is enough for the few there are."""
    line = bytearray()
    while not line.endswith(b"\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("NATS closed the connection")
        line += byte
    return bytes(line[:-2])
