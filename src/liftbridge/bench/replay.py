"""One subscription over a raw HTTP/2 connection: asks, lets `_load` count, checks how it ended.

The connection offers what a gRPC client offers, with the flow-control window as the one thing to choose: grpc
libraries begin with HTTP/2's 64 KiB and grow it, so both ends of that range are of interest.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from hpack import Decoder, HPACKError

from liftbridge import http2
from liftbridge.bench import messages as encoded
from liftbridge.bench._load import STREAM_ID, Histogram, ProtocolError, SubscribeCounter
from liftbridge.bench.errors import BenchError
from liftbridge.bench.sockets import receive_in_thread
from liftbridge.bench.target import Received, Subscriber
from liftbridge.proto import api_pb2

HTTP2_WINDOW = http2.DEFAULT_WINDOW
SILENCE_MS = 30_000
RESOURCE_EXHAUSTED = 8  # the gRPC status of a subscription that has reached its stop position


class Replay(Subscriber):
    """A connection on which one subscription is about to run; with `stamped`, it measures latencies."""

    def __init__(self, connection: socket.socket, authority: str, window: int, stamped: int = 0) -> None:
        self._connection = connection
        self._authority = authority
        self._counter = SubscribeCounter(window=window, max_frame=http2.DEFAULT_FRAME_SIZE, stamped=stamped)
        self._stamped = stamped
        connection.sendall(encoded.opening(window))

    @property
    def messages(self) -> int:
        """Messages received so far, without the empty one that says that the subscription is live."""
        return max(0, self._counter.messages - 1)

    @property
    def live(self) -> bool:
        """Whether the server has said that the subscription is live."""
        return self._counter.messages > 0

    @property
    def latency(self) -> Histogram:
        """How long stamped messages took."""
        return self._counter.stamps.latency

    async def run(self, stream: str, messages: int) -> Received:
        """Replay a stream from its beginning to its end.

        Args:
            stream: its name.
            messages: how many are in it.

        Raises:
            BenchError: there come more or fewer, or the call does not end as it should.
        """
        request = api_pb2.SubscribeRequest(
            stream=stream, startPosition=api_pb2.EARLIEST, stopPosition=api_pb2.STOP_LATEST
        )
        return await self.subscribe(request, messages)

    async def subscribe(self, request: api_pb2.SubscribeRequest, messages: int) -> Received:
        """As `run`, for any subscription that reaches its stop position after so many messages."""
        return await receive_in_thread(self._connection, lambda: self._receive(request, messages, ends=True))

    async def follow(self, stream: str, messages: int) -> Received:
        """Receive the next `messages` messages that are published from now on, and leave.

        Raises:
            BenchError: fewer come, or one twice.
        """
        request = api_pb2.SubscribeRequest(stream=stream, startPosition=api_pb2.NEW_ONLY)
        return await receive_in_thread(self._connection, lambda: self._receive(request, messages, ends=False))

    def _receive(self, request: api_pb2.SubscribeRequest, messages: int, *, ends: bool) -> Received:
        """The subscription itself, in a thread of its own; it ends early when the socket is shut down."""
        counter, expected = self._counter, messages + 1
        fd = self._connection.fileno()
        cpu = time.thread_time_ns()
        start = time.monotonic_ns()
        try:
            self._connection.sendall(_request(self._authority, request))
            counter.receive(fd, expected, SILENCE_MS)
            end = time.monotonic_ns()
            cpu = time.thread_time_ns() - cpu
            if ends:
                counter.receive(fd, expected + 1, SILENCE_MS)
        except (OSError, ProtocolError) as error:
            raise BenchError(f"the replay broke off after {self.messages} messages: {error}") from error
        if ends or counter.messages < expected:
            self._check_end(expected)
        elif self._stamped and counter.stamps.total != messages:
            raise BenchError(
                f"{messages} messages were delivered, but {counter.stamps.total} of them are of this run"
            )
        return Received(start, end, cpu, counter.data_bytes, counter.data_frames)

    def _check_end(self, expected: int) -> None:
        counter = self._counter
        status, text = grpc_status(counter.header_blocks)
        if counter.messages != expected or status != RESOURCE_EXHAUSTED:
            raise BenchError(
                f"of {expected - 1} messages {self.messages} were delivered, then the call ended with gRPC "
                f"status {status} ({text or 'no text'}), reset {counter.reset_code}, "
                f"goaway {counter.goaway_code}"
            )


@asynccontextmanager
async def connect(server: tuple[str, int], window: int, *, stamped: int = 0) -> AsyncIterator[Replay]:
    """Connect to a server for one subscription.

    Args:
        server: host and port of its gRPC API.
        window: flow-control window of connection and stream, in bytes.
        stamped: how many messages there are whose values begin with a stamp; 0 for none.

    Raises:
        BenchError: it cannot be reached.
    """
    host, port = server
    try:
        connection = await trio.to_thread.run_sync(lambda: socket.create_connection((host, port), timeout=30))
    except OSError as error:
        raise BenchError(f"no server answers at {host}:{port}: {error}") from error
    with connection:
        connection.settimeout(None)  # the counter waits by itself, on a socket that blocks
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Replay(connection, f"{host}:{port}", window, stamped)


def grpc_status(header_blocks: list[bytes]) -> tuple[int | None, str]:
    """Return status and text that the header blocks of one call tell, (None, "") without a status."""
    decoder = Decoder()
    headers: dict[str, str] = {}
    try:
        for block in header_blocks:
            headers.update(decoder.decode(block))
    except HPACKError as error:
        raise BenchError(f"the server's headers cannot be decoded: {error}") from error
    status = headers.get("grpc-status", "")
    return (int(status) if status.isdigit() else None), headers.get("grpc-message", "")


def _request(authority: str, request: api_pb2.SubscribeRequest) -> bytes:
    message = request.SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    block = encoded.headers(authority, "Subscribe")
    return http2.frame(http2.HEADERS, http2.END_HEADERS, STREAM_ID, block) + http2.frame(
        http2.DATA, http2.END_STREAM, STREAM_ID, body
    )
