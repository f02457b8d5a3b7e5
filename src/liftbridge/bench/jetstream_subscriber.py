"""An ordered consumer of JetStream on a NATS connection: makes it, lets `_load` count, checks how it ended.

Ordered consumers are how JetStream is read from its beginning without acks, and the fastest way there is:
kept in memory, one replica, no redelivery, and the client notices by their sequence when a message is
missing. Two kinds are documented. To one that *pushes* the server sends until its flow control, which the
client answers, holds it back; from one that is *pulled* the client asks for so many messages at a time.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from liftbridge.bench import messages as encoded
from liftbridge.bench._load import Histogram, JetStreamCounter, ProtocolError, RefusedError
from liftbridge.bench.errors import BenchError
from liftbridge.bench.sockets import connect, greet, receive_in_thread
from liftbridge.bench.target import Received, Subscriber

KINDS = ("push", "pull")
HEARTBEAT_NS = 5_000_000_000  # what NATS clients ask an ordered consumer that pushes for
PULL_MESSAGES = 8192
SILENCE_MS = 30_000


class OrderedConsumer(Subscriber):
    """A connection on which one ordered consumer is about to run; with `stamped`, it measures latencies."""

    def __init__(self, connection: socket.socket, inbox: str, kind: str, stamped: int = 0) -> None:
        self._connection = connection
        self._inbox = inbox
        self._kind = kind
        self._stamped = stamped
        self._counter = JetStreamCounter(stamped=stamped)

    @property
    def messages(self) -> int:
        """Messages received so far."""
        return self._counter.messages

    @property
    def live(self) -> bool:
        """Whether the server has made the consumer."""
        return self._counter.answered

    @property
    def latency(self) -> Histogram:
        """How long stamped messages took."""
        return self._counter.stamps.latency

    async def run(self, stream: str, messages: int) -> Received:
        """Receive a stream from its beginning to its end.

        Raises:
            BenchError: there come more or fewer messages, one is missing, or the server refuses.
        """
        return await receive_in_thread(self._connection, lambda: self._receive(stream, messages, "all"))

    async def follow(self, stream: str, messages: int) -> Received:
        """Receive the next `messages` messages that are published from now on.

        Raises:
            BenchError: fewer come, one is missing or comes twice, or the server refuses.
        """
        return await receive_in_thread(self._connection, lambda: self._receive(stream, messages, "new"))

    def _receive(self, stream: str, messages: int, start: str) -> Received:
        """The subscription itself, in a thread of its own; it ends early when the socket is shut down."""
        counter, fd = self._counter, self._connection.fileno()
        name = f"bench-{secrets.token_hex(4)}"
        cpu = time.thread_time_ns()
        begin = time.monotonic_ns()
        try:
            self._connection.sendall(self._creation(stream, name, start))
            counter.receive(fd, 0, SILENCE_MS)
            self._check_answer(stream)
            if self._kind == "pull":
                counter.pull(self._request(stream, name), PULL_MESSAGES)
            counter.receive(fd, messages, SILENCE_MS)
        except RefusedError as error:
            raise BenchError(
                f"JetStream refuses: {error.detail.decode('utf-8', 'replace').strip()}"
            ) from error
        except (OSError, ProtocolError) as error:
            raise BenchError(f"the consumer broke off after {self.messages} messages: {error}") from error
        end = time.monotonic_ns()
        cpu = time.thread_time_ns() - cpu
        self._check(messages, whole=start == "all")
        return Received(begin, end, cpu, counter.data_bytes, 0)

    def _check(self, messages: int, *, whole: bool) -> None:
        counter = self._counter
        if counter.messages != messages or (whole and counter.pending):
            raise BenchError(
                f"of {messages} messages {counter.messages} were delivered, {counter.pending} were to follow"
            )
        if self._stamped and counter.stamps.total != messages:
            raise BenchError(
                f"{messages} messages were delivered, but {counter.stamps.total} of them are of this run"
            )

    def _creation(self, stream: str, name: str, start: str) -> bytes:
        """The call that makes the consumer."""
        config: dict[str, object] = {
            "name": name,
            "deliver_policy": start,
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": HEARTBEAT_NS,
        }
        if self._kind == "push":
            config |= {
                "deliver_subject": f"{self._inbox}.messages",
                "flow_control": True,
                "idle_heartbeat": HEARTBEAT_NS,
            }
        call = json.dumps({"stream_name": stream, "config": config}).encode()
        return encoded.nats_pub(f"$JS.API.CONSUMER.CREATE.{stream}.{name}", call, f"{self._inbox}.answer")

    def _request(self, stream: str, name: str) -> bytes:
        """What asks for the next messages; it waits for those that are not there yet."""
        call = json.dumps({"batch": PULL_MESSAGES}).encode()
        return encoded.nats_pub(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", call, f"{self._inbox}.messages")

    def _check_answer(self, stream: str) -> None:
        answer = json.loads(self._counter.answer)
        if "error" in answer:
            reason = answer["error"].get("description", answer)
            raise BenchError(f"JetStream refuses a consumer of {stream}: {reason}")


@asynccontextmanager
async def consumer(nats: tuple[str, int], kind: str, *, stamped: int = 0) -> AsyncIterator[OrderedConsumer]:
    """Connect for one ordered consumer.

    Args:
        nats: host and port of a nats-server with JetStream.
        kind: of `KINDS`.
        stamped: how many messages there are whose values begin with a stamp; 0 for none.

    Raises:
        BenchError: it cannot be reached.
    """
    inbox = f"_INBOX.{secrets.token_hex(8)}"
    subscriptions = f"SUB {inbox}.messages 1\r\nSUB {inbox}.answer 2\r\n".encode()
    connection = await trio.to_thread.run_sync(_connect, nats, subscriptions)
    with connection:
        yield OrderedConsumer(connection, inbox, kind, stamped)


def _connect(nats: tuple[str, int], subscriptions: bytes) -> socket.socket:
    try:
        connection = connect(nats)
    except OSError as error:
        raise BenchError(f"no NATS server answers at {nats[0]}:{nats[1]}: {error}") from error
    try:
        greet(connection, subscriptions, headers=True)
        connection.settimeout(None)  # the counter waits by itself, on a socket that blocks
    except OSError as error:
        connection.close()
        raise BenchError(f"a consumer cannot connect: {error}") from error
    return connection
