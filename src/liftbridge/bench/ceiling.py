"""How fast NATS alone delivers the same messages, to a client that throws them away.

Every plain message goes through nats-server first, so no server behind it can ingest faster than this, and
on a machine with few cores it is often what limits. It is measured right before each run of `ingest`, with
the same publisher on the same nats-server, so that what others do on the machine disturbs both alike.
"""

from __future__ import annotations

import secrets
import socket
import time

import trio

from liftbridge.bench.errors import BenchError
from liftbridge.bench.publisher import greet, publishers
from liftbridge.bench.sockets import receive_in_thread

RECEIVE_BYTES = 1 << 20
SILENCE_SECONDS = 30.0


async def measure(nats: tuple[str, int], messages: int, size: int, publisher_count: int = 1) -> float:
    """Return messages per second from the publisher's first byte to the last one received.

    Args:
        nats: host and port of the NATS server.
        messages: how many messages.
        size: bytes in each.
        publisher_count: how many connections they come from.

    Raises:
        BenchError: not everything arrives.
    """
    subject = f"bench-{secrets.token_hex(4)}"
    expected = messages * len(f"MSG {subject} 1 {size}\r\n{'':{size}}\r\n")
    async with publishers(nats, subject, messages, size, publisher_count) as source:
        with await trio.to_thread.run_sync(_subscribe, nats, subject) as connection:
            await source.go()
            end_ns = await receive_in_thread(connection, lambda: _discard(connection, expected))
            published = await source.finished()
    return messages / ((end_ns - published.first_byte_ns) / 1e9)


def _subscribe(nats: tuple[str, int], subject: str) -> socket.socket:
    connection = socket.create_connection(nats, timeout=SILENCE_SECONDS)
    try:
        greet(connection, f"SUB {subject} 1\r\n".encode())
    except BaseException:
        connection.close()
        raise
    return connection


def _discard(connection: socket.socket, expected: int) -> int:
    """Receive so many bytes; returns when they had come, in monotonic ns."""
    buffer = bytearray(RECEIVE_BYTES)
    received = 0
    while received < expected:
        try:
            count = connection.recv_into(buffer)
        except OSError as error:
            raise BenchError(f"NATS alone delivered {received} of {expected} bytes: {error}") from error
        if not count:
            raise BenchError(f"NATS cut the connection after {received} of {expected} bytes")
        received += count
    return time.monotonic_ns()
