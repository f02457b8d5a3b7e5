"""One replay of a stream over a raw HTTP/2 connection: asks, lets `_load` count, checks how it ended.

The connection offers what a gRPC client offers, with the flow-control window as the one thing to choose: grpc
libraries begin with HTTP/2's 64 KiB and grow it, so both ends of that range are of interest.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from hpack import Decoder, Encoder, HPACKError

from liftbridge.bench._load import STREAM_ID, ProtocolError, SubscribeCounter
from liftbridge.bench.errors import BenchError
from liftbridge.bench.sockets import receive_in_thread
from liftbridge.proto import api_pb2

HTTP2_WINDOW = 65535
MAX_FRAME = 16384
SILENCE_MS = 30_000
RESOURCE_EXHAUSTED = 8  # the gRPC status of a subscription that has reached its stop position

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">HBBBL")
_DATA, _HEADERS, _SETTINGS, _WINDOW_UPDATE = 0, 1, 4, 8
_END_STREAM, _END_HEADERS = 0x1, 0x4
_ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 2, 4, 5


@dataclass(frozen=True)
class Replayed:
    """What a replay took: ns from request to last message, CPU ns of this end, and how it came."""

    duration_ns: int
    cpu_ns: int
    data_bytes: int
    data_frames: int


class Replay:
    """A connection on which one replay is about to run."""

    def __init__(self, connection: socket.socket, authority: str, window: int) -> None:
        self._connection = connection
        self._authority = authority
        self._counter = SubscribeCounter(window=window, max_frame=MAX_FRAME)
        connection.sendall(_opening(window))

    @property
    def messages(self) -> int:
        """Messages received so far, without the empty one that says that the subscription is live."""
        return max(0, self._counter.messages - 1)

    @property
    def live(self) -> bool:
        """Whether the server has said that the subscription is live."""
        return self._counter.messages > 0

    async def run(self, stream: str, messages: int) -> Replayed:
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

    async def subscribe(self, request: api_pb2.SubscribeRequest, messages: int) -> Replayed:
        """As `run`, for any subscription that reaches its stop position after so many messages."""
        return await receive_in_thread(self._connection, lambda: self._receive(request, messages))

    def _receive(self, request: api_pb2.SubscribeRequest, messages: int) -> Replayed:
        """The replay itself, in a thread of its own; it ends early when the socket is shut down."""
        counter, expected = self._counter, messages + 1
        fd = self._connection.fileno()
        cpu = time.thread_time_ns()
        start = time.monotonic_ns()
        try:
            self._connection.sendall(_request(self._authority, request))
            counter.receive(fd, expected, SILENCE_MS)
            end = time.monotonic_ns()
            cpu = time.thread_time_ns() - cpu
            counter.receive(fd, expected + 1, SILENCE_MS)
        except (OSError, ProtocolError) as error:
            raise BenchError(f"the replay broke off after {self.messages} messages: {error}") from error
        self._check_end(expected)
        return Replayed(end - start, cpu, counter.data_bytes, counter.data_frames)

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
async def connect(server: tuple[str, int], window: int) -> AsyncIterator[Replay]:
    """Connect to a server for one replay.

    Args:
        server: host and port of its gRPC API.
        window: flow-control window of connection and stream, in bytes.

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
        yield Replay(connection, f"{host}:{port}", window)


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


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _opening(window: int) -> bytes:
    """Preface and settings; beyond 65535 the connection's window has to be raised, it has no setting."""
    settings = struct.pack(
        ">HLHLHL", _ENABLE_PUSH, 0, _INITIAL_WINDOW_SIZE, window, _MAX_FRAME_SIZE, MAX_FRAME
    )
    opening = _PREFACE + _frame(_SETTINGS, 0, 0, settings)
    if window > HTTP2_WINDOW:
        opening += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">L", window - HTTP2_WINDOW))
    return opening


def _request(authority: str, request: api_pb2.SubscribeRequest) -> bytes:
    headers = Encoder().encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/proto.API/Subscribe"),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc+proto"),
            ("user-agent", "liftbridge-bench"),
        ]
    )
    message = request.SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return _frame(_HEADERS, _END_HEADERS, STREAM_ID, headers) + _frame(_DATA, _END_STREAM, STREAM_ID, body)
