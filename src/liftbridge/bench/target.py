"""What is measured: a server that stores messages of a subject and gives them back, whichever it is.

A workload knows this interface only, so that the same workload, payload, window and sync policy can be run
against another system in the same invocation. `liftbridge_target` is the first, `jetstream_target` another.
"""

from __future__ import annotations

import abc
import socket
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import TypeAlias

from liftbridge.bench import common
from liftbridge.bench._load import GrpcPublisher, Histogram, NatsPublisher
from liftbridge.bench.messages import Template
from liftbridge.bench.server import ServerUnderTest
from liftbridge.bench.sockets import connect, greet

Publisher: TypeAlias = NatsPublisher | GrpcPublisher


@dataclass(frozen=True)
class Load:
    """What one or more publishers publish.

    Attributes:
        messages: how many, together.
        size: bytes in a value.
        publishers: how many connections share them.
        window: messages without an ack at a time on a connection; 1 is synchronous.
        via: "nats" or "grpc"; "plain" is NATS without envelopes and without acks.
        policy: ack policy: "leader", "all", "none".
        rate: messages a second, together, of an open loop; 0 is a closed loop.
        stamped: whether each value begins with the time that its latency counts from.
    """

    messages: int
    size: int
    publishers: int = 1
    window: int = 1
    via: str = "nats"
    policy: str = "leader"
    rate: float = 0.0
    stamped: bool = False

    @property
    def acked(self) -> bool:
        """Whether there are acks, or answers to calls, to wait for."""
        return self.policy != "none" or (self.via == "grpc" and self.window == 1)

    def only(self, messages: int) -> Load:
        """The same with fewer messages, for a warm-up."""
        return replace(self, messages=max(1, min(messages, self.messages)))

    def shares(self) -> list[Share]:
        """Return what each publisher gets. They take turns: each is out of phase with the one before."""
        count = min(self.publishers, self.messages)
        shares: list[Share] = []
        first = 0
        for number in range(count):
            messages = self.messages // count + (number < self.messages % count)
            interval = 1e9 * count / self.rate if self.rate else 0.0
            shares.append(Share(messages, first, interval, int(interval * number / count)))
            first += messages
        return shares


@dataclass(frozen=True)
class Share:
    """The part of a `Load` that one publisher publishes, with serial numbers from `first_serial`."""

    messages: int
    first_serial: int
    interval_ns: float
    phase_ns: int


@dataclass(frozen=True)
class Received:
    """What a subscription took: from when to when in monotonic ns, CPU ns of this end, and how it came.

    `data_frames` is 0 where there are none.
    """

    begin_ns: int
    end_ns: int
    cpu_ns: int
    data_bytes: int
    data_frames: int

    @property
    def duration_ns(self) -> int:
        """From request to last message."""
        return self.end_ns - self.begin_ns


class Subscriber(abc.ABC):
    """A connection on which one subscription is about to run."""

    @property
    @abc.abstractmethod
    def live(self) -> bool:
        """Whether the server has said that the subscription is live."""

    @property
    @abc.abstractmethod
    def messages(self) -> int:
        """Messages received so far."""

    @property
    @abc.abstractmethod
    def latency(self) -> Histogram:
        """How long stamped messages took."""

    @abc.abstractmethod
    async def run(self, stream: str, messages: int) -> Received:
        """Receive a stream from its beginning to its end, `messages` messages.

        Raises:
            BenchError: there come more or fewer, or it does not end as it should.
        """

    @abc.abstractmethod
    async def follow(self, stream: str, messages: int) -> Received:
        """Receive the next `messages` messages that are published from now on.

        Raises:
            BenchError: fewer come, or one twice.
        """


class Target(abc.ABC):
    """A server under test that runs.

    Attributes:
        name: what it is called in results.
        server: its addresses and processes.
        first_offset: what it numbers the first message of a stream with.
        via: the only way to publish to it, None if it follows the load.
    """

    name: str
    via: str | None = None
    server: ServerUnderTest
    first_offset: int

    @abc.abstractmethod
    def stream(self) -> AbstractAsyncContextManager[str]:
        """Make a stream with one partition for a block. Gives its name, which is its subject as well."""

    @abc.abstractmethod
    async def stored(self, stream: str) -> tuple[int, int]:
        """Return how many messages of a stream are committed, and how many are stored."""

    @abc.abstractmethod
    def publisher(self, stream: str, load: Load, share: Share) -> tuple[socket.socket, Publisher]:
        """Connect a publisher, which blocks for a moment.

        Raises:
            BenchError: this target cannot publish so, or the server refuses.
            OSError: the server cannot be reached.
        """

    @abc.abstractmethod
    def subscriber(self, window: int, *, stamped: int = 0) -> AbstractAsyncContextManager[Subscriber]:
        """Connect a subscriber for a block.

        Args:
            window: flow-control window in bytes.
            stamped: how many messages there are whose values begin with a stamp; 0 for none.

        Raises:
            BenchError: the server cannot be reached.
        """


def nats_publisher(
    address: tuple[str, int],
    template: Template,
    load: Load,
    share: Share,
    *,
    size: int,
    inbox: str,
    headers: bool = False,
    acks: str = "envelope",
) -> tuple[socket.socket, NatsPublisher]:
    """Connect a publisher to a NATS server, which blocks for a moment.

    Args:
        address: of the NATS server.
        template: what it sends for each message.
        size: bytes that count against the server's limit.
        inbox: where acks come; it is subscribed to.
        headers: whether it sends NATS headers.
        acks: what an ack looks like, "envelope" or "json".

    Raises:
        BenchError: the server refuses.
        OSError: the server cannot be reached.
    """
    connection = connect(address)
    try:
        limit = greet(connection, f"SUB {inbox} 1\r\n".encode(), headers=headers)
        common.check_fits(size, limit)
    except BaseException:
        connection.close()
        raise
    return connection, NatsPublisher(
        template.data,
        messages=share.messages,
        window=load.window,
        serial_at=template.serial_at,
        stamp_at=template.stamp_at,
        acked=load.policy != "none",
        first_serial=share.first_serial,
        interval_ns=share.interval_ns,
        phase_ns=share.phase_ns,
        acks=acks,
    )
