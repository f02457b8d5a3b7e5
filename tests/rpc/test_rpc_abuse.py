"""Broken and hostile peers: each costs its own connection or call, and the server serves on."""

from contextlib import suppress

import pytest
import trio
import trio.testing
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st
from rpc_support import PREFACE, Api, length_prefixed, serve

from liftbridge.http2 import ConnectionFailure, FrameReader
from liftbridge.proto import api_pb2
from liftbridge.rpc import Limits
from liftbridge.rpc.framing import data_frames, whole_messages
from liftbridge.rpc.headers import MalformedHeaders, RequestDecoder

MIB = 1 << 20
SMALL = Limits(
    max_concurrent_streams=5,
    stream_window=64 << 10,
    connection_window=256 << 10,
    max_partial_bytes=300_000,
    write_buffer=64 << 10,
    max_control_frames=100,
    max_resets=20,
)


@pytest.fixture
async def api(nursery):
    api = Api()
    api.server, api.port = await serve(nursery, api, limits=SMALL)
    return api


def raw(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def headers(*fields: tuple[str, str]) -> bytes:
    return Encoder().encode(fields)


OPENING = raw(
    1,
    4,
    1,
    headers(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/proto.API/Publish"),
        ("content-type", "application/grpc"),
    ),
)
BROKEN = {
    "DATA for an idle stream": (raw(0, 0, 1, b"x"), 1),
    "DATA for the connection": (raw(0, 0, 0, b"x"), 1),
    "HEADERS for a server's stream": (raw(1, 5, 2, headers((":method", "POST"))), 1),
    "HEADERS too short for a priority": (raw(1, 0x25, 1, b"abc"), 6),
    "undecodable headers": (raw(1, 5, 1, b"\xff\xff\xff\xff\xff\xff"), 9),
    "padding longer than the frame": (raw(1, 0xD, 1, b"\x09abc"), 1),
    "PRIORITY for the connection": (raw(2, 0, 0, b"abcde"), 1),
    "RST_STREAM for an idle stream": (raw(3, 0, 1, b"abcd"), 1),
    "RST_STREAM too short": (raw(3, 0, 1, b"abc"), 6),
    "SETTINGS for a stream": (raw(4, 0, 1), 1),
    "SETTINGS too short": (raw(4, 0, 0, b"abc"), 6),
    "SETTINGS ACK with settings": (raw(4, 1, 0, b"abcdef"), 6),
    "SETTINGS_ENABLE_PUSH": (raw(4, 0, 0, b"\0\2\0\0\0\2"), 1),
    "SETTINGS_INITIAL_WINDOW_SIZE": (raw(4, 0, 0, b"\0\4\xff\xff\xff\xff"), 3),
    "SETTINGS_MAX_FRAME_SIZE": (raw(4, 0, 0, b"\0\5\0\0\0\1"), 1),
    "PUSH_PROMISE": (raw(5, 4, 1, b"abcd"), 1),
    "PING too short": (raw(6, 0, 0, b"abc"), 6),
    "PING for a stream": (raw(6, 0, 1, b"12345678"), 1),
    "GOAWAY for a stream": (raw(7, 0, 1, bytes(8)), 1),
    "WINDOW_UPDATE by 0": (raw(8, 0, 0, bytes(4)), 1),
    "WINDOW_UPDATE overflow": (raw(8, 0, 0, b"\x7f\xff\xff\xff"), 3),
    "CONTINUATION alone": (raw(9, 4, 1, b"abc"), 1),
    "a frame in a header block": (raw(1, 0, 1, b"") + raw(6, 0, 0, b"12345678"), 1),
    "a frame too long": (b"\xff\xff\xff\0\0\0\0\0\1", 6),
    "endless CONTINUATION": (raw(1, 0, 1) + raw(9, 0, 1) * 40, 11),
    "endless header block": (raw(1, 0, 1) + raw(9, 0, 1, bytes(16_000)) * 10, 11),
    "header bomb": (raw(1, 5, 1, b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 60_000), 11),
    "empty DATA": (OPENING + raw(0, 0, 1) * 200, 11),
    "PRIORITY flood": (raw(2, 0, 1, bytes(4) + b"1") * 200, 11),
    "SETTINGS flood": (raw(4, 0, 0) * 200, 11),
    "unknown frames flood": (raw(99, 0, 0) * 200, 11),
    "WINDOW_UPDATE flood": (raw(8, 0, 0, b"\0\0\0\1") * 200, 11),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_http2_costs_the_connection(api, connect, name):
    data, code = BROKEN[name]
    client = await connect(api.port)
    await client.stream.send_all(data)
    goaway = await client.goaway()
    assert (goaway.error_code, name) == (code, name)
    assert await client.read() is None
    assert await (await connect(api.port)).alive()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", PREFACE + raw(6, 0, 0, b"12345678")]
)
async def test_no_preface(api, connect, garbage):
    async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
        await stream.send_all(garbage)
        answer = b""
        while received := await stream.receive_some():
            answer += received
    assert raw(7, 0, 0)[3:9] in answer
    assert await (await connect(api.port)).alive()


@given(st.binary(max_size=200))
def test_garbage_instead_of_frames_is_an_error_and_never_a_crash(data):
    with suppress(ConnectionFailure):
        assert all(len(payload) <= 16_384 for *_, payload in FrameReader(16_384).frames(data))


@given(st.binary(max_size=200))
def test_garbage_instead_of_headers_is_an_error_and_never_a_crash(data):
    with suppress(ConnectionFailure, MalformedHeaders):
        RequestDecoder(16_384).request(data)


def test_integers_of_headers_are_short():
    """The library would read on, in quadratic time."""
    with pytest.raises(ConnectionFailure, match="cannot be decoded"):
        RequestDecoder(16_384).skip(b"\x3f" + b"\x80" * 10 + b"\x00")


MALFORMED = {
    "no path": [(":method", "POST"), (":scheme", "http")],
    "upper case": [("X", "y")],
    "connection": [("connection", "close")],
    "te": [("te", "gzip")],
    "pseudo-header after another": [(":path", "/x")],
    "unknown pseudo-header": [(":what", "x")],
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_headers_cost_the_stream(api, connect, name):
    client = await connect(api.port)
    fields = MALFORMED[name]
    if name != "no path":
        fields = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), ("a", "b"), *fields]
    data = client.encoder.encode(fields)
    client.next_id = 3
    await client.send(HeadersFrame(1, data, flags=["END_HEADERS", "END_STREAM"]))
    assert await client.reset(1) == 1
    assert await client.alive()


async def test_other_stream_errors(api, connect):
    client = await connect(api.port)
    one = await client.call("Publish", api_pb2.PublishRequest(stream="sleep").SerializeToString())
    await client.send(DataFrame(one, b"more"))
    assert await client.reset(one) == 5
    two = await client.call("Publish", b"", end=False)
    await client.send(HeadersFrame(two, client.encoder.encode([("a", "b")]), flags=["END_HEADERS"]))
    assert await client.reset(two) == 1
    three = await client.call("Publish", api_pb2.PublishRequest(stream="sleep").SerializeToString())
    await client.stream.send_all(raw(8, 0, three, bytes(4)))
    assert await client.reset(three) == 1
    four = await client.call("Publish", api_pb2.PublishRequest(stream="sleep").SerializeToString())
    await client.send(WindowUpdateFrame(four, window_increment=(1 << 31) - 1))
    assert await client.reset(four) == 3
    await client.send(PriorityFrame(four, depends_on=four))
    assert await client.reset(four) == 1
    assert await client.alive()


async def test_headers_in_parts_and_trailers_of_a_request(api, connect):
    client = await connect(api.port)
    whole = client.headers("/proto.API/Publish")
    parts = [whole.data[:3], whole.data[3:10], whole.data[10:]]
    await client.send(
        HeadersFrame(1, parts[0]),
        ContinuationFrame(1, parts[1]),
        ContinuationFrame(1, parts[2], flags=["END_HEADERS"]),
        DataFrame(1, length_prefixed(b""), flags=["PADDED"], pad_length=20),
        HeadersFrame(1, client.encoder.encode([("a", "b")]), flags=["END_HEADERS", "END_STREAM"]),
    )
    assert (await client.trailers(1))["grpc-status"] == "0"


async def test_bytes_one_by_one(api, connect):
    client = await connect(api.port)
    head = client.headers("/proto.API/Publish")
    data = head.serialize() + DataFrame(1, length_prefixed(b""), flags=["END_STREAM"]).serialize()
    for byte in data:
        await client.stream.send_all(bytes((byte,)))
    assert (await client.trailers(1))["grpc-status"] == "0"


async def test_too_many_streams(api, connect):
    client = await connect(api.port)
    request = api_pb2.PublishRequest(stream="sleep").SerializeToString()
    ids = [await client.call("Publish", request) for _ in range(6)]
    assert await client.reset(ids[-1]) == 7
    assert await (await connect(api.port)).alive()


@pytest.mark.parametrize(
    ("timeout", "status"),
    [
        ("1S", "0"),
        ("99999999H", "0"),
        ("0m", "4"),
        ("1n", "4"),
        ("5", "3"),
        ("123456789S", "3"),
        ("-1S", "3"),
        ("1x", "3"),
    ],
)
async def test_timeouts(api, connect, timeout, status):
    client = await connect(api.port)
    action = "sleep" if status == "4" else "echo"
    request = api_pb2.PublishRequest(stream=action).SerializeToString()
    stream_id = await client.call("Publish", request, grpc_timeout=timeout)
    assert (await client.trailers(stream_id))["grpc-status"] == status


async def test_metadata_too_large(api, connect):
    client = await connect(api.port)
    stream_id = await client.call("Publish", b"", extra=[("a", "x" * 20_000)])
    assert (await client.trailers(stream_id))["grpc-status"] == "8"
    assert await client.alive()


async def test_binary_metadata_that_is_not_base64(api, connect):
    client = await connect(api.port)
    stream_id = await client.call("Publish", b"", extra=[("a-bin", "*")])
    assert (await client.trailers(stream_id))["grpc-status"] == "3"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\1\0\0\0\0", "12"),
        (b"\7\0\0\0\0", "13"),
        (b"\0\0\0\0\5ab", "13"),
        (b"\0\0", "13"),
        (b"\0\0\0\0\0" * 2, "13"),
        (b"\0\x7f\0\0\0", "8"),
    ],
)
async def test_broken_messages(api, connect, body, status):
    client = await connect(api.port)
    head = client.headers("/proto.API/Publish")
    await client.send(head, DataFrame(head.stream_id, body, flags=["END_STREAM"]))
    assert (await client.trailers(head.stream_id))["grpc-status"] == status
    assert await client.alive()


async def test_message_announced_too_long_is_refused_before_it_comes(api, connect):
    client = await connect(api.port)
    head = client.headers("/proto.API/Publish")
    await client.send(head, DataFrame(head.stream_id, b"\0\x00\x50\x00\x00" + bytes(1000)))
    assert (await client.trailers(head.stream_id))["grpc-status"] == "8"
    assert await client.reset(head.stream_id) == 0
    await client.send(DataFrame(head.stream_id, bytes(1000)))  # was under way: no error
    assert await client.alive()


async def test_data_beyond_the_window(api, connect):
    client = await connect(api.port)
    head = client.headers("/proto.API/PublishAsync")
    request = api_pb2.PublishRequest(stream="stall", value=bytes(9_000)).SerializeToString()
    await client.send(head, *[DataFrame(head.stream_id, length_prefixed(request))] * 10)
    assert await client.reset(head.stream_id) == 3
    assert await client.alive()


async def test_padding_is_given_back(api, connect):
    """A message that comes in crumbs with 255 times as much padding; the windows are for its crumbs."""
    client = await connect(api.port)
    head = client.headers("/proto.API/PublishAsync")
    request = length_prefixed(api_pb2.PublishRequest(value=bytes(2_000), stream="echo").SerializeToString())
    await client.send(head)
    for start in range(0, len(request), 200):
        crumbs = [raw(0, 8, head.stream_id, b"\xff" + crumb + bytes(255)) for crumb in _bytes(request, start)]
        await client.stream.send_all(b"".join(crumbs))
        if start + 200 < len(request):
            window = await client.until(
                lambda frame: isinstance(frame, WindowUpdateFrame) and frame.stream_id
            )
            assert window.window_increment >= SMALL.stream_window // 4
    await client.until(lambda frame: isinstance(frame, DataFrame))
    assert api.state.received == 2_000


def _bytes(data: bytes, start: int) -> list[bytes]:
    return [data[at : at + 1] for at in range(start, min(start + 200, len(data)))]


async def test_data_in_a_header_block(api, connect):
    """Nothing may come between the parts of a header block, not even DATA for another call that is open."""
    client = await connect(api.port)
    head = client.headers("/proto.API/PublishAsync")
    await client.send(head)
    await client.stream.send_all(raw(1, 0, 3, b"") + raw(0, 0, head.stream_id, b"x"))
    assert (await client.goaway()).error_code == 1


async def test_a_stalled_stream_does_not_stall_the_others(api, connect):
    client = await connect(api.port)
    head = client.headers("/proto.API/PublishAsync")
    request = api_pb2.PublishRequest(stream="stall", value=bytes(7_000)).SerializeToString()
    await client.send(head, *[DataFrame(head.stream_id, length_prefixed(request))] * 9)
    await api.state.until(lambda state: state.received)
    big = api_pb2.PublishRequest(value=bytes(15_000), stream="echo").SerializeToString()
    for _ in range(40):  # more than the connection's window
        stream_id = await client.call("Publish", big)
        assert (await client.trailers(stream_id))["grpc-status"] == "0"
    assert api.state.received == 7_000
    api.state.release.set()
    await client.send(DataFrame(head.stream_id, b"", flags=["END_STREAM"]))
    assert (await client.trailers(head.stream_id))["grpc-status"] == "0"
    assert api.state.received == 63_000


async def test_unfinished_messages_are_bounded(api, connect):
    """A message may be longer than the window, but not many of them at a time."""
    client = await connect(api.port)
    first = client.headers("/proto.API/Publish")
    second = client.headers("/proto.API/Publish")
    for head in (first, second):
        await client.send(head, DataFrame(head.stream_id, b"\0\0\x20\0\0"))
    statuses = {}
    window = {first.stream_id: 60_000, second.stream_id: 60_000}
    for head in (first, second) * 10:
        while window[head.stream_id] < 16_000 and head.stream_id not in statuses:
            frame = await client.read()
            if isinstance(frame, WindowUpdateFrame) and frame.stream_id:
                window[frame.stream_id] += frame.window_increment
            if "END_STREAM" in frame.flags:
                statuses[frame.stream_id] = frame.fields["grpc-status"]
        if statuses:
            break
        await client.send(DataFrame(head.stream_id, bytes(16_000)))
        window[head.stream_id] -= 16_000
    while not statuses:
        frame = await client.read()
        if "END_STREAM" in frame.flags:
            statuses[frame.stream_id] = frame.fields["grpc-status"]
    assert set(statuses.values()) == {"8"}
    assert await client.alive()


async def test_client_that_vanishes(api, connect):
    clients = [await connect(api.port) for _ in range(2)]
    request = api_pb2.SubscribeRequest(stream="idle").SerializeToString()
    for client in clients:
        for _ in range(2):
            await client.call("Subscribe", request)
    await api.state.until(lambda state: state.running == 4)
    await clients[0].stream.send_eof()
    await api.state.until(lambda state: state.running == 2)
    await trio.aclose_forcefully(clients[1].stream)
    await api.state.until(lambda state: state.running == 0)
    assert api.state.ended == ["Subscribe cancelled"] * 4


async def test_client_that_never_reads_does_not_delay_others(api, connect):
    deaf = await connect(api.port, settings={4: (1 << 31) - 1}, window=1 << 30)
    for _ in range(3):
        await deaf.call("Subscribe", api_pb2.SubscribeRequest(stream="flood frames").SerializeToString())
    await api.state.until(lambda state: state.running == 3)
    other = await connect(api.port)
    for _ in range(50):
        assert await other.alive()
    assert api.state.sent < 32 * MIB


async def test_peer_that_asks_and_never_reads_is_not_read(nursery, api, connect):
    """Answers to PINGs are not DATA, and yet they must not gather without bound."""
    _, port = await serve(nursery, api, limits=Limits(write_buffer=1000, max_control_frames=1 << 40))
    client = await connect(port)
    pings = PingFrame(0, opaque_data=b"12345678").serialize() * 10_000
    sent = 0

    async def ask():
        nonlocal sent
        while sent < 64 * MIB:
            await client.stream.send_all(pings)
            sent += len(pings)

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.1)
        asking.cancel_scope.cancel()
    assert sent < 64 * MIB


async def test_small_windows_of_the_client(api, connect):
    client = await connect(api.port, settings={4: 10})
    stream_id = await client.call("Subscribe", api_pb2.SubscribeRequest(stream="few").SerializeToString())
    data = b""
    while len(data) < 5 * 17 + 4 * 2:
        frame = await client.read()
        if isinstance(frame, DataFrame):
            assert len(frame.data) <= 10
            data += frame.data
            await client.send(WindowUpdateFrame(stream_id, window_increment=max(len(frame.data), 1)))
    assert (await client.trailers(stream_id))["grpc-status"] == "0"
    end, *_ = whole_messages(data, 1000)
    assert end == len(data)


async def test_window_made_negative_and_positive_again(api, connect):
    client = await connect(api.port, settings={4: 100})
    request = api_pb2.SubscribeRequest(stream="messages").SerializeToString()
    stream_id = await client.call("Subscribe", request)
    await client.until(lambda frame: isinstance(frame, DataFrame))
    await client.send(SettingsFrame(0, settings={4: 0}))
    await client.ping()
    assert not [frame for frame in client.frames if isinstance(frame, DataFrame)][1:]
    await client.send(SettingsFrame(0, settings={4: 300}))
    frame = await client.until(lambda frame: isinstance(frame, DataFrame))
    assert len(frame.data) == 200
    await client.send(RstStreamFrame(stream_id, error_code=8))


async def test_table_size_of_the_client_is_heeded(api, connect):
    client = await connect(api.port, settings={1: 0})
    client.decoder.max_allowed_table_size = 0
    client.decoder.header_table_size = 4096  # until the server says otherwise
    assert await client.alive()
    assert client.decoder.header_table_size == 0
    assert await client.alive()


async def test_too_many_connections(nursery, connect):
    _, port = await serve(nursery, Api(), limits=Limits(max_connections=2))
    first, second = await connect(port), await connect(port)
    assert await first.alive()
    assert await second.alive()
    third = await trio.open_tcp_stream("127.0.0.1", port)
    async with third:
        with suppress(trio.BrokenResourceError):
            assert await third.receive_some() == b""
    await first.stream.aclose()
    await second.ping()
    while True:
        fourth = await connect(port)
        try:
            assert await fourth.alive()
            break
        except (AssertionError, trio.BrokenResourceError):
            await trio.sleep(0)  # the server has not noticed yet that the first one is gone


@given(
    st.lists(st.binary(max_size=40), max_size=20),
    st.integers(0, 200),
    st.integers(1, 60),
)
def test_whole_messages(messages, cut, longest):
    data = length_prefixed(*messages)[: cut or None]
    end, flag, length = whole_messages(data, longest)
    expected = 0
    for message in messages:
        if len(message) > longest or expected + 5 + len(message) > len(data):
            if len(data) - expected >= 5:
                assert (flag, length) == (0, len(message))
            break
        expected += 5 + len(message)
    assert end == expected


@given(st.binary(min_size=1, max_size=500), st.integers(1, 100))
def test_data_frames(data, size):
    reader = FrameReader(size)
    frames = list(reader.frames(data_frames(7, data, size)))
    assert b"".join(payload for *_, payload in frames) == data
    assert all(frame[:3] == (0, 0, 7) and 0 < len(frame[3]) <= size for frame in frames)
