"""Publishes plain NATS messages as fast as the socket takes them: the process behind `ingest`.

It is a process of its own, so that neither measuring nor waiting slows it down. What it sends is built
beforehand, in blocks of many PUBs, so a run costs it one `sendall` per block: some 7,000 messages of 128
bytes.

It is driven through its standard input and output by `Publisher`: it connects, builds, prints "ready",
waits for a line, publishes, waits until NATS has taken everything (PING, PONG), prints what happened as
JSON, ends.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import string
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from liftbridge.bench.errors import BenchError

BLOCK_BYTES = 1 << 20
START_SECONDS = 30.0
SOCKET_SECONDS = 120.0

_CONNECT = {"verbose": False, "pedantic": False, "name": "liftbridge-bench", "lang": "python", "version": "0"}


# The parent's side


@dataclass(frozen=True)
class Published:
    """What the publisher did. Times are `time.monotonic_ns`, which all processes of a machine share."""

    first_byte_ns: int
    last_byte_ns: int
    accepted_ns: int  # NATS has taken everything
    cpu_ns: int  # used between the first two


class Publisher:
    """A publisher process that is ready to go."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._pending = b""

    async def go(self) -> None:
        """Let it publish."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(b"go\n")

    async def finished(self) -> Published:
        """Wait for its end. Raises BenchError if it failed."""
        return Published(**json.loads(await self.line()))

    async def line(self) -> str:
        """Wait for its next line. Raises BenchError if it ends without one."""
        assert self._process.stdout is not None
        while b"\n" not in self._pending:
            chunk = await self._process.stdout.receive_some()
            if not chunk:
                raise BenchError("the publisher ended early; what went wrong is printed above")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()


@asynccontextmanager
async def publisher(
    nats: tuple[str, int], subject: str, messages: int, size: int
) -> AsyncIterator[Publisher]:
    """Start a publisher that is connected and has built what it will send.

    Args:
        nats: host and port of the NATS server.
        subject: where to publish.
        messages: how many messages.
        size: bytes in each.

    Raises:
        BenchError: it does not get ready.
    """
    host, port = nats
    process = await trio.lowlevel.open_process(
        [
            sys.executable,
            "-m",
            "liftbridge.bench.publisher",
            host,
            str(port),
            subject,
            str(messages),
            str(size),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        running = Publisher(process)
        with trio.move_on_after(START_SECONDS) as scope:
            await running.line()
        if scope.cancelled_caught:
            raise BenchError(f"the publisher was not ready within {START_SECONDS:.0f} s")
        yield running
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


class Publishers:
    """Several publisher processes that go together."""

    def __init__(self, members: list[Publisher]) -> None:
        self._members = members

    async def go(self) -> None:
        """Let them publish."""
        for member in self._members:
            await member.go()

    async def finished(self) -> Published:
        """Wait for their end; the first byte of any, the last of any, the CPU time of all."""
        done = [await member.finished() for member in self._members]
        return Published(
            first_byte_ns=min(one.first_byte_ns for one in done),
            last_byte_ns=max(one.last_byte_ns for one in done),
            accepted_ns=max(one.accepted_ns for one in done),
            cpu_ns=sum(one.cpu_ns for one in done),
        )


@asynccontextmanager
async def publishers(
    nats: tuple[str, int], subject: str, messages: int, size: int, count: int
) -> AsyncIterator[Publishers]:
    """Start `count` publishers that share the messages; otherwise as `publisher`."""
    count = min(count, messages)
    async with AsyncExitStack() as stack:
        yield Publishers(
            [
                await stack.enter_async_context(
                    publisher(nats, subject, messages // count + (number < messages % count), size)
                )
                for number in range(count)
            ]
        )


# The publisher itself


def publish_lines(subject: str, messages: int, size: int) -> bytes:
    """Return `messages` PUBs back to back, each with another value of `size` bytes.

    The values are letters, so that no value is taken for a publish envelope.
    """
    head = f"PUB {subject} {size}\r\n".encode()
    letters = string.ascii_letters.encode()
    source = random.Random(messages)  # noqa: S311  # values are to differ, not to be secret
    values = bytes(source.choices(letters, k=size + messages))
    return b"".join(head + values[i : i + size] + b"\r\n" for i in range(messages))


def _main() -> int:
    parser = argparse.ArgumentParser(prog="liftbridge.bench.publisher")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("subject")
    parser.add_argument("messages", type=int)
    parser.add_argument("size", type=int)
    options = parser.parse_args()
    one = len(publish_lines(options.subject, 1, options.size))
    in_block = min(options.messages, max(1, BLOCK_BYTES // one))
    blocks, rest = divmod(options.messages, in_block)
    block = publish_lines(options.subject, in_block, options.size)
    with socket.create_connection((options.host, options.port), timeout=SOCKET_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit = greet(connection)
        if options.size > limit:
            print(f"NATS takes messages of at most {limit} bytes, not of {options.size}", file=sys.stderr)
            return 1
        print("ready", flush=True)
        if not sys.stdin.readline():
            return 1
        published = _publish(connection, block, blocks, block[: rest * one])
    print(json.dumps(published), flush=True)
    return 0


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


def _publish(connection: socket.socket, block: bytes, blocks: int, rest: bytes) -> dict[str, int]:
    """Send a block so many times, and a rest; returns the fields of `Published`."""
    cpu = time.process_time_ns()
    first = time.monotonic_ns()
    for _ in range(blocks):
        connection.sendall(block)
    connection.sendall(rest)
    last = time.monotonic_ns()
    cpu = time.process_time_ns() - cpu
    _ping(connection)
    return {
        "first_byte_ns": first,
        "last_byte_ns": last,
        "accepted_ns": time.monotonic_ns(),
        "cpu_ns": cpu,
    }


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


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except OSError as error:
        sys.exit(f"publisher: {error}")
