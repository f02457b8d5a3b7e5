"""A client's connection to the gRPC server: frames of every kind, in and out of order, over a stream in
memory.

The real `Connection` serves it, with small limits and a servicer that answers, streams, waits and takes
batches. An input is a script of frames, so that the search need not find lengths and header blocks by chance;
raw bytes are one kind of step, so that it may.

Checked: what the client gets is HTTP/2, its header blocks decode; nothing but the connection ends; it ends in
the time that its limits say; the server notes no defect of its own; nothing is left of it, neither calls nor
bytes on the account that all connections share.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import trio
import trio.testing
from hpack import Decoder, Encoder

from fuzz_targets.script import Script, pieces, written
from liftbridge import http2
from liftbridge.proto import api_grpc, api_pb2
from liftbridge.rpc import Frames, Limits, StatusCode, raw_requests, rpc_error
from liftbridge.rpc.call import Methods
from liftbridge.rpc.connection import Connection
from liftbridge.rpc.immediate import Deadlines
from liftbridge.rpc.limits import Account
from liftbridge.sockets import Turn

INSTRUMENTED = ("liftbridge.rpc", "liftbridge.http2")
MAX_LENGTH = 1024
WORDS = (
    b"\0\4\0\0\0\0", b"\0\4\x7f\xff\xff\xff", b"\0\1\0\0\0\0", b"\0\5\0\0\x40\0", b"\0\0\0\1",
    b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\0\2\x1a\0", b"\x1a\5sleep", b"\x1a\6refuse", b"\x1a\4many",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\1\0\0\0\0", b"grpc-timeout",
    b"\x20", b"\x3f\xe1\x1f", b"12345678",
)  # fmt: skip

LIMITS = Limits(
    max_concurrent_streams=4, max_request_message=2000, max_header_list_size=600, max_continuations=3,
    stream_window=64 << 10, connection_window=64 << 10, max_partial_bytes=4000, max_held=8000,
    write_buffer=2000, max_unsent=4000, max_resets=10, max_control_frames=20,
)  # fmt: skip
PATHS = ("Publish", "Subscribe", "PublishAsync", "DeleteStream", "None")
REQUEST, MESSAGE, RAW, PAUSE, LATER = range(10, 15)
STEPS = 15
OUTPUT = 1 << 20  # bytes, more than the servicer has to say
AN_HOUR_AND_MORE = 4000.0  # seconds, longer than every limit


class Api(api_grpc.APIServicer):
    """Does what the name of the stream in the request says."""

    async def Publish(self, input_message, request):
        if input_message.stream == "sleep":
            await trio.sleep_forever()
        if input_message.stream == "refuse":
            raise rpc_error(StatusCode.FAILED_PRECONDITION, "not the leader: ask ünother 100% broker\n")
        return api_pb2.PublishResponse(correlationId=input_message.correlationId)

    async def Subscribe(self, input_message, request):
        for number in range(40 if input_message.stream == "many" else 2):
            yield api_pb2.Message(offset=number, value=b"x" * 500)
        if input_message.stream == "sleep":
            await trio.sleep_forever()

    @raw_requests
    async def PublishAsync(self, input_messages, request):
        async for batch in input_messages:
            yield Frames(batch.data)


METHODS = Methods()
METHODS.add([Api().service])


def message(**fields: object) -> bytes:
    data = api_pb2.PublishRequest(**fields).SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def seeds() -> Iterator[bytes]:
    """Whole calls of every kind, and ends of them."""
    sleep = (REQUEST, 4, 1, 0, b"", MESSAGE, 1, 1, message(stream="sleep")[5:])
    yield written(
        1,
        b"",
        REQUEST,
        4,
        1,
        0,
        b"",
        MESSAGE,
        1,
        1,
        b"\x3a\1c",
        REQUEST,
        4,
        3,
        1,
        b"",
        MESSAGE,
        1,
        3,
        b"\x0a\4many",
    )
    yield written(
        1, b"\3\3\3\3\3", REQUEST, 4, 1, 2, b"", MESSAGE, 0, 1, b"abc", PAUSE, MESSAGE, 1, 1, b"def"
    )
    yield written(1, b"", *sleep, PAUSE, http2.RST_STREAM, 0, 1, b"\0\0\0\x08", http2.PING, 0, 0, b"12345678")
    yield written(1, b"", *sleep, LATER, 200, http2.WINDOW_UPDATE, 0, 0, b"\0\0\1\0", LATER, 30)
    yield written(
        1,
        b"",
        REQUEST,
        0,
        1,
        0,
        b"",
        http2.CONTINUATION,
        4,
        1,
        b"",
        MESSAGE,
        0,
        1,
        b"",
        http2.HEADERS,
        5,
        1,
        b"\0\1a\1b",
    )
    yield written(
        1, b"", http2.SETTINGS, 0, 0, b"\0\4\0\0\0\5\0\1\0\0\0\0", REQUEST, 4, 1, 1, b"", MESSAGE, 1, 1, b"",
        PAUSE, http2.WINDOW_UPDATE, 0, 1, b"\0\0\x0f\0", http2.GOAWAY, 0, 0, bytes(8),
        http2.PRIORITY, 0, 3, bytes(5),
    )  # fmt: skip
    yield written(
        0,
        b"\5",
        RAW,
        http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + http2.frame(http2.PING, 0, 0, bytes(8)),
    )


def steps_of(script: Script) -> Iterator[bytes | int]:
    """What the client does: bytes to send, or seconds to wait, 0 for until the server has nothing to do."""
    encoder = Encoder()
    encoder.header_table_size = 0
    while script:
        kind = script.number() % STEPS
        if kind == RAW:
            yield script.string()
        elif kind == PAUSE:
            yield 0
        elif kind == LATER:
            yield script.number()
        else:
            flags, stream = script.number(), script.number()
            path = script.number() if kind == REQUEST else 0
            payload = script.string()
            if kind == REQUEST:
                payload = encoder.encode(
                    [
                        (":method", "POST"), (":scheme", "http"), ("te", "trailers"),
                        (":path", f"/proto.API/{PATHS[path % len(PATHS)]}"),
                        ("content-type", "application/grpc"),
                    ]
                ) + payload  # fmt: skip
            elif kind == MESSAGE:
                payload = b"\0" + len(payload).to_bytes(4, "big") + payload
            types = {REQUEST: http2.HEADERS, MESSAGE: http2.DATA}
            yield http2.frame(types.get(kind, kind), flags, stream, payload)


class Defects(logging.Handler):
    """Collects what the server logs as its own fault."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)


def run(data: bytes) -> None:
    logger, defects = logging.getLogger("liftbridge.rpc"), Defects()
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.addHandler(defects)
    clock = trio.testing.MockClock(autojump_threshold=0)
    try:
        output = trio.run(converse, data, clock, clock=clock)
    finally:
        logger.removeHandler(defects)
        logger.setLevel(level)
        logger.propagate = propagates
    for record in defects.found:
        error = record.exc_info[1] if record.exc_info else None
        raise AssertionError(f"a defect of the server: {record.getMessage()}") from error
    check_output(output)


async def converse(data: bytes, clock: trio.testing.MockClock) -> bytes:
    """One connection from its beginning to its end; returns what the client got."""
    script = Script(data)
    with_preface, cuts = script.number() & 1, script.string()
    steps: list[bytes | int] = [http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)] if with_preface else []
    steps += [
        piece
        for step in steps_of(script)
        for piece in (pieces(step, cuts) if isinstance(step, bytes) else [step])
    ]
    client, server = trio.testing.memory_stream_pair()
    account = Account(LIMITS)
    account.connections = 1
    connection = Connection(server, METHODS, LIMITS, "test", None, account, Turn(), Deadlines())
    received = bytearray()
    begun = trio.current_time()
    waited = 0

    async def serve() -> None:
        await connection.serve()
        connection.settle()
        await server.aclose()

    async def read() -> None:
        async for part in client:
            received.extend(part)
            assert len(received) < OUTPUT, "the server says more than it has to"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        nursery.start_soon(read)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for step in steps:
                if isinstance(step, bytes):
                    await client.send_all(step)
                else:
                    waited += step
                    await trio.sleep(step)
                    await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        await client.send_stream.aclose()
    assert trio.current_time() - begun <= waited + AN_HOUR_AND_MORE
    assert not connection._streams and connection.partial_bytes == 0, "calls are left"
    assert (account.held, account.unsent) == (0, 0), "bytes are left on the account"
    return bytes(received)


def check_output(output: bytes) -> None:
    reader, decoder = http2.FrameReader((1 << 24) - 1), Decoder()
    for kind, flags, _, payload in reader.frames(output):
        assert kind in (
            http2.DATA,
            http2.HEADERS,
            http2.RST_STREAM,
            http2.SETTINGS,
            http2.PING,
            http2.GOAWAY,
            http2.WINDOW_UPDATE,
        )
        if kind == http2.HEADERS:
            assert flags & http2.END_HEADERS
            assert decoder.decode(bytes(payload))
