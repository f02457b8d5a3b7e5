"""How fast NATS alone delivers the same messages, to a client that throws them away.

Every plain message goes through nats-server first, so no server behind it can ingest faster than this, and
on a machine with few cores it is often what limits. It is measured right before each run of `ingest`, with
the same publishers on the same nats-server, so that what others do on the machine disturbs both alike.
"""

from __future__ import annotations

import secrets
import socket
import time

import trio

from liftbridge.bench.errors import BenchError
from liftbridge.bench.publishing import Published, publishers
from liftbridge.bench.sockets import connect, greet, receive_in_thread
from liftbridge.bench.target import Load, Target

RECEIVE_BYTES = 1 << 20


async def measure(target: Target, load: Load) -> float:
    """Return messages per second from the first message sent to the last one received.

    Args:
        target: whose NATS server it is.
        load: plain messages.

    Raises:
        BenchError: not everything arrives.
    """
    subject = f"bench-{secrets.token_hex(4)}"
    expected = load.messages * len(f"MSG {subject} 1 {load.size}\r\n{'':{load.size}}\r\n")
    published: list[Published] = []
    async with publishers(target, subject, load) as source:
        with await trio.to_thread.run_sync(_subscribe, target.server.nats, subject) as connection:

            async def publish() -> None:
                published.append(await source.run())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish)
                end_ns = await receive_in_thread(connection, lambda: _discard(connection, expected))
    return load.messages / ((end_ns - published[0].first_ns) / 1e9)


def _subscribe(nats: tuple[str, int], subject: str) -> socket.socket:
    connection = connect(nats)
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
