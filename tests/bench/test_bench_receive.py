"""The counting subscriber on real sockets."""

import socket
import struct
import threading
import time

import pytest
import trio
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, WindowUpdateFrame

from liftbridge.bench._load import ProtocolError, SubscribeCounter
from liftbridge.bench.sockets import receive_in_thread
from liftbridge.proto import api_pb2

HEADERS = HeadersFrame(1, Encoder().encode([(":status", "200")]), flags=["END_HEADERS"]).serialize()


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        yield ours, theirs


def test_returns_at_the_wanted_count_and_answers(ends):
    ours, theirs = ends
    counter = SubscribeCounter(window=65536)
    message = b"\0\0\0\0\x0a" + b"m" * 10
    theirs.sendall(HEADERS + PingFrame(0, b"01234567").serialize())
    theirs.sendall(b"".join(DataFrame(1, message * 1000).serialize() for _ in range(3)))
    counter.receive(ours.fileno(), 3000, 10_000)
    assert (counter.messages, counter.message_bytes, counter.ended) == (3000, 30_000, False)
    answer = b""
    kinds = []
    while WindowUpdateFrame not in kinds:
        answer += theirs.recv(65536)
        while len(answer) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(answer[:9]))
            if len(answer) < 9 + length:
                break
            kinds.append(type(frame))
            answer = answer[9 + length :]
    assert kinds[0] is PingFrame


def test_returns_when_the_call_ends(ends):
    ours, theirs = ends
    counter = SubscribeCounter(window=65536)
    theirs.sendall(HEADERS + DataFrame(1, b"\0\0\0\0\0", flags=["END_STREAM"]).serialize())
    counter.receive(ours.fileno(), 5, 10_000)
    assert (counter.messages, counter.ended) == (1, True)


def test_a_closed_connection_is_an_error(ends):
    ours, theirs = ends
    theirs.sendall(HEADERS)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="in the middle of the call"):
        SubscribeCounter(window=65536).receive(ours.fileno(), 1, 10_000)


def test_silence_is_an_error(ends):
    ours, _ = ends
    with pytest.raises(TimeoutError, match=r"0\.0 s"):
        SubscribeCounter(window=65536).receive(ours.fileno(), 1, 1)


def test_a_bad_descriptor_is_an_error():
    with pytest.raises(OSError, match=r"descriptor|socket"):
        SubscribeCounter(window=65536).receive(2**30, 1, 1000)


def test_a_broken_server_is_an_error(ends):
    ours, theirs = ends
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ProtocolError):
        SubscribeCounter(window=65536).receive(ours.fileno(), 1, 10_000)


async def test_cancelling_ends_the_thread_that_receives(ends):
    ours, _ = ends
    counter = SubscribeCounter(window=65536)
    broken = []

    def receive():
        started.set()
        try:
            counter.receive(ours.fileno(), 1, 100_000)
        except ConnectionError as error:
            broken.append(error)
            raise

    started = threading.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_in_thread, ours, receive)
            await trio.to_thread.run_sync(started.wait)
            scope.cancel()
    assert len(broken) == 1


def stamped_message(serial, at_ns=None):
    at_ns = time.monotonic_ns() - 1_000_000 if at_ns is None else at_ns
    message = api_pb2.Message(offset=serial, value=struct.pack("=qQ", at_ns, serial) + b"rest", stream="s")
    data = message.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


LIVE = b"\0\0\0\0\0"


def test_stamps_are_read_wherever_a_message_is_cut():
    body = LIVE + stamped_message(1) + stamped_message(0)
    for position in range(len(body) + 1):
        counter = SubscribeCounter(window=65536, stamped=2)
        pieces = (body[:position], body[position:])
        counter.feed(HEADERS + b"".join(DataFrame(1, piece).serialize() for piece in pieces))
        assert (counter.messages, counter.stamps.total, counter.stamps.latency.total) == (3, 2, 2)
    counter = SubscribeCounter(window=65536, stamped=2)
    for byte in HEADERS + DataFrame(1, body).serialize():
        counter.feed(bytes([byte]))
    assert counter.stamps.total == 2


def test_latency_counts_from_the_stamp(ends):
    ours, theirs = ends
    counter = SubscribeCounter(window=65536, stamped=1)
    before = time.monotonic_ns()
    theirs.sendall(HEADERS + DataFrame(1, LIVE + stamped_message(0, before - 5_000_000)).serialize())
    counter.receive(ours.fileno(), 2, 10_000)
    assert 5_000_000 <= counter.stamps.latency.max <= time.monotonic_ns() - before + 5_000_000


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (stamped_message(0) + stamped_message(0), "delivered twice"),
        (stamped_message(2), "no publisher of this run"),
        (b"\0\0\0\0\x05" + b"\x1a\x03abc", "no publisher of this run"),
        (b"\0\0\0\0\x02" + b"\x1a\x7f", "cannot be decoded"),
        (b"\0\x7f\xff\xff\xff" + b"x", "longer than anything"),
    ],
)
def test_what_was_not_published_is_an_error(body, text):
    counter = SubscribeCounter(window=65536, stamped=2)
    with pytest.raises(ProtocolError, match=text):
        counter.feed(HEADERS + DataFrame(1, body).serialize())
