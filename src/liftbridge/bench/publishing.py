"""Runs the publishers of a load, each in a thread of its own without the GIL, and sums up what they did."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from google.protobuf.message import DecodeError

from liftbridge.bench._load import GrpcPublisher, Histogram, ProtocolError, RefusedError
from liftbridge.bench.errors import BenchError
from liftbridge.bench.latency import merged
from liftbridge.bench.replay import grpc_status
from liftbridge.bench.sockets import receive_in_thread
from liftbridge.bench.target import Load, Publisher, Target
from liftbridge.proto import api_pb2

SILENCE_MS = 30_000


@dataclass(frozen=True)
class Published:
    """What the publishers of a load did together. Times are monotonic ns.

    Attributes:
        first_ns: when the first message was due.
        sent_ns: when the last one had been sent.
        end_ns: when the last ack was there, or, without acks, when the server had taken everything.
        cpu_ns: CPU time of the publishers.
        acks: how many there were, each for another message.
        latency: from when a message was due, or was sent in a closed loop, to its ack.
    """

    first_ns: int
    sent_ns: int
    end_ns: int
    cpu_ns: int
    acks: int
    latency: Histogram = field(compare=False)


class Publishers:
    """Publishers that are connected."""

    def __init__(
        self, target: Target, load: Load, members: Sequence[tuple[socket.socket, Publisher]]
    ) -> None:
        self._target = target
        self._load = load
        self._members = members

    @property
    def done(self) -> int:
        """How many messages are acked, or sent where there are no acks."""
        return sum(
            publisher.acks.acked if self._load.acked else publisher.sent for _, publisher in self._members
        )

    async def run(self) -> Published:
        """Publish everything.

        Raises:
            BenchError: a message was refused or has no ack, an ack is one too many, the connection broke.
        """
        async with trio.open_nursery() as nursery:
            for connection, publisher in self._members:
                nursery.start_soon(receive_in_thread, connection, _running(publisher, connection, self._load))
        publishers = [publisher for _, publisher in self._members]
        published = Published(
            first_ns=min(publisher.first_ns for publisher in publishers),
            sent_ns=max(publisher.sent_ns for publisher in publishers),
            end_ns=max(publisher.end_ns for publisher in publishers),
            cpu_ns=sum(publisher.cpu_ns for publisher in publishers),
            acks=sum(publisher.acks.acked for publisher in publishers),
            latency=merged(publisher.acks.latency for publisher in publishers),
        )
        self._check(published, sum(publisher.acks.offset_sum for publisher in publishers))
        return published

    def _check(self, published: Published, offset_sum: int) -> None:
        messages, first = self._load.messages, self._target.first_offset
        if not self._load.acked:
            return
        if published.acks != messages or published.latency.total != messages:
            raise BenchError(f"{messages} messages were published, {published.acks} were acked")
        # Each message of a new stream has an offset of its own; gRPC calls that want no ack are told none.
        if self._load.policy != "none" and offset_sum != messages * (messages - 1) // 2 + messages * first:
            raise BenchError("the acks of different messages have the same offset, or offsets are missing")


def _running(publisher: Publisher, connection: socket.socket, load: Load) -> Callable[[], None]:
    def run() -> None:
        try:
            publisher.run(connection.fileno(), SILENCE_MS)
        except RefusedError as refused:
            raise BenchError(f"{refused}: {explain(refused, publisher)}") from refused
        except TimeoutError as error:
            waiting = publisher.sent - publisher.acks.acked
            missing = f"{waiting:,} of {publisher.sent:,} messages have no ack: " if load.acked else ""
            raise BenchError(f"{missing}{error}") from error
        except (OSError, ProtocolError) as error:
            raise BenchError(f"publishing broke off after {publisher.sent:,} messages: {error}") from error

    return run


def explain(refused: RefusedError, publisher: Publisher) -> str:
    """Return what a server's refusal says."""
    try:
        if refused.kind == "ack":
            ack = api_pb2.Ack.FromString(refused.detail)
            return f"ack with the error {api_pb2.Ack.Error.Name(ack.ackError)}"
        if refused.kind == "response":
            response = api_pb2.PublishResponse.FromString(refused.detail)
            if response.HasField("asyncError"):
                error = response.asyncError
                return f"{api_pb2.PublishAsyncError.Code.Name(error.code)}: {error.message}"
            return f"ack with the error {api_pb2.Ack.Error.Name(response.ack.ackError)}"
    except (DecodeError, ValueError):
        return repr(refused.detail)
    if refused.kind == "call" and isinstance(publisher, GrpcPublisher):
        status, text = grpc_status(publisher.header_blocks)
        return f"gRPC status {status} ({text or 'no text'})"
    return refused.detail.decode("utf-8", "replace").strip()


@asynccontextmanager
async def publishers(target: Target, stream: str, load: Load) -> AsyncIterator[Publishers]:
    """Connect the publishers of a load for a block.

    Raises:
        BenchError: one cannot be connected.
    """
    members: list[tuple[socket.socket, Publisher]] = []
    try:
        for share in load.shares():
            try:
                member = await trio.to_thread.run_sync(target.publisher, stream, load, share)
            except OSError as error:
                raise BenchError(f"a publisher cannot connect: {error}") from error
            member[0].settimeout(None)  # the loop waits by itself
            members.append(member)
        yield Publishers(target, load, members)
    finally:
        for connection, _ in members:
            connection.close()
