"""The counting subscriber against byte streams built by another HTTP/2 library, cut in every way."""

import itertools
import struct

import pytest
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from liftbridge.bench._load import ProtocolError, SubscribeCounter
from liftbridge.bench.replay import grpc_status

WINDOW = 1 << 20
OPENING = [SettingsFrame(settings={3: 100}), SettingsFrame(flags=["ACK"])]
RESPONSE = HeadersFrame(1, Encoder().encode([(":status", "200")]), flags=["END_HEADERS"])


def trailers(status: str = "8") -> HeadersFrame:
    return HeadersFrame(1, Encoder().encode([("grpc-status", status)]), flags=["END_HEADERS", "END_STREAM"])


def prefixed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def wire(*frames: Frame) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def parse(data: bytes) -> list[Frame]:
    frames = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        frames.append(frame)
        data = data[9 + length :]
    return frames


def counting(*frames: Frame, window: int = WINDOW) -> tuple[SubscribeCounter, list[Frame]]:
    counter = SubscribeCounter(window=window)
    return counter, parse(counter.feed(wire(*frames)))


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    bounds = [0, *sorted(position % (len(data) + 1) for position in positions), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@st.composite
def calls(draw):
    """The messages of a call, and frames that carry them, with other frames strewn in between."""
    messages = draw(st.lists(st.binary(max_size=300), max_size=30))
    body = b"".join(map(prefixed, messages))
    frames: list[Frame] = [*OPENING, RESPONSE]
    for piece in cut(body, draw(st.lists(st.integers(0, 10_000), max_size=12))):
        if draw(st.booleans()):
            frames.append(draw(st.sampled_from(NOISE)))
        padding = draw(st.sampled_from([None, 0, 1, 17, 255]))
        if padding is None:
            frames.append(DataFrame(1, piece))
        else:
            frames.append(DataFrame(1, piece, pad_length=padding, flags=["PADDED"]))
    return messages, [*frames, trailers()]


def unknown_frame() -> ExtensionFrame:
    frame = ExtensionFrame(0xEE, 0)
    frame.parse_flags(0xFF)
    frame.parse_body(memoryview(b"unknown"))
    return frame


NOISE = [
    PingFrame(0, b"12345678"),
    PingFrame(0, b"87654321", flags=["ACK"]),
    WindowUpdateFrame(0, window_increment=1000),
    SettingsFrame(settings={}),
    unknown_frame(),
]


@settings(deadline=None)
@given(calls(), st.lists(st.integers(0, 100_000), max_size=40))
def test_counts_do_not_depend_on_how_the_bytes_are_cut(call, positions):
    messages, frames = call
    counter = SubscribeCounter(window=WINDOW)
    answers = parse(b"".join(counter.feed(piece) for piece in cut(wire(*frames), positions)))
    assert counter.messages == len(messages)
    assert counter.message_bytes == sum(map(len, messages))
    assert counter.data_frames == sum(isinstance(frame, DataFrame) for frame in frames)
    assert counter.ended
    assert grpc_status(counter.header_blocks) == (8, "")
    pings = [frame for frame in frames if isinstance(frame, PingFrame) and "ACK" not in frame.flags]
    settings = [frame for frame in frames if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags]
    assert [a.opaque_data for a in answers if isinstance(a, PingFrame)] == [p.opaque_data for p in pings]
    assert all("ACK" in a.flags for a in answers)
    assert sum(isinstance(a, SettingsFrame) for a in answers) == len(settings)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20))
def test_bytes_one_at_a_time(messages):
    body = b"".join(map(prefixed, messages))
    counter = SubscribeCounter(window=WINDOW)
    seen = []
    counter.feed(wire(RESPONSE))
    for byte in DataFrame(1, body).serialize():
        counter.feed(bytes([byte]))
        seen.append(counter.messages)
    assert seen == sorted(seen)
    assert seen[-1] == len(messages)


@settings(deadline=None)
@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=10))
def test_garbage_is_an_error_or_nothing(data, positions):
    whole = SubscribeCounter(window=WINDOW)
    pieces = SubscribeCounter(window=WINDOW)
    assert error_of(whole, [data]) == error_of(pieces, cut(data, positions))
    assert whole.messages == pieces.messages


@settings(deadline=None)
@given(
    calls(), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4), st.integers(0, 5000)
)
def test_a_damaged_call_is_an_error_or_nothing(call, damages, position):
    data = bytearray(wire(*call[1]))
    for at, value in damages:
        data[at % len(data)] = value
    whole = SubscribeCounter(window=WINDOW)
    pieces = SubscribeCounter(window=WINDOW)
    assert error_of(whole, [bytes(data)]) == error_of(pieces, cut(bytes(data), [position]))
    assert whole.messages == pieces.messages


def error_of(counter: SubscribeCounter, pieces: list[bytes]) -> str | None:
    try:
        for piece in pieces:
            counter.feed(piece)
    except ProtocolError as error:
        return str(error)
    return None


def test_a_message_that_is_not_whole_does_not_count():
    counter, _ = counting(RESPONSE, DataFrame(1, prefixed(b"x" * 10)[:-1]))
    assert counter.messages == 0
    counter.feed(wire(DataFrame(1, b"x")))
    assert counter.messages == 1


def test_an_empty_message_counts():
    counter, _ = counting(RESPONSE, DataFrame(1, prefixed(b"") * 3))
    assert (counter.messages, counter.message_bytes) == (3, 0)


def test_the_window_is_given_back_when_half_of_it_is_consumed():
    window = 65536
    counter, answers = counting(RESPONSE, *[DataFrame(1, bytes(16384)) for _ in range(2)], window=window)
    assert [(frame.stream_id, frame.window_increment) for frame in answers] == [(0, 32768), (1, 32768)]
    # With what was given back, the server may send another whole window.
    counter.feed(wire(*[DataFrame(1, bytes(16384)) for _ in range(4)]))


def test_a_stream_that_has_ended_is_given_no_window():
    _, answers = counting(
        RESPONSE, DataFrame(1, bytes(16384)), DataFrame(1, bytes(16384), flags=["END_STREAM"]), window=65536
    )
    assert [frame.stream_id for frame in answers] == [0]


def test_padding_is_part_of_the_window():
    with pytest.raises(ProtocolError, match="flow-control window"):
        counting(RESPONSE, DataFrame(1, b"", pad_length=10, flags=["PADDED"]), window=10)


def test_more_than_the_window_is_an_error():
    with pytest.raises(ProtocolError, match="flow-control window"):
        counting(RESPONSE, DataFrame(1, bytes(100)), window=99)


def test_a_reset_ends_the_call():
    counter, _ = counting(RESPONSE, RstStreamFrame(1, error_code=11))
    assert (counter.ended, counter.reset_code) == (True, 11)
    other, _ = counting(RESPONSE, RstStreamFrame(3, error_code=11))
    assert (other.ended, other.reset_code) == (False, -1)


def test_a_goaway_is_noted_and_does_not_end_the_call():
    counter, _ = counting(
        RESPONSE, GoAwayFrame(0, last_stream_id=1, error_code=2), DataFrame(1, prefixed(b"a"))
    )
    assert (counter.goaway_code, counter.ended, counter.messages) == (2, False, 1)


def test_headers_in_several_frames_are_one_block():
    block = Encoder().encode([("grpc-status", "5"), ("grpc-message", "no such stream")])
    counter, _ = counting(
        RESPONSE,
        HeadersFrame(1, block[:3], flags=["END_STREAM"]),
        ContinuationFrame(1, block[3:7]),
    )
    assert not counter.ended
    counter.feed(wire(ContinuationFrame(1, block[7:], flags=["END_HEADERS"])))
    assert counter.ended
    assert grpc_status(counter.header_blocks) == (5, "no such stream")


def test_padded_headers_with_priority():
    block = Encoder().encode([("grpc-status", "0")])
    frame = HeadersFrame(
        1, block, pad_length=9, stream_weight=3, depends_on=5, flags=["END_HEADERS", "PADDED", "PRIORITY"]
    )
    counter, _ = counting(frame)
    assert counter.header_blocks == [block]


def raw(length: int, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">HBBBL", length >> 8, length & 0xFF, kind, flags, stream) + payload


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (DataFrame(1, b"x").serialize(), "order"),
        (wire(RESPONSE, DataFrame(3, b"x")), "no stream of ours"),
        (wire(trailers(), DataFrame(1, b"x")), "order"),
        (wire(RESPONSE) + raw(0, 0, 8, 1, b""), "length"),
        (wire(RESPONSE) + raw(4, 0, 8, 1, b"\x04abc"), "length"),
        (wire(RESPONSE, DataFrame(1, b"\1\0\0\0\0")), "compressed"),
        (wire(RESPONSE) + raw(16385, 0, 0, 1, b""), "SETTINGS_MAX_FRAME_SIZE"),
        (raw(7, 6, 0, 0, b"1234567"), "length"),
        (raw(3, 3, 0, 1, b"123"), "length"),
        (raw(7, 7, 0, 0, b"1234567"), "length"),
        (raw(4, 5, 4, 1, b"\0\0\0\2"), "pushes"),
        (wire(HeadersFrame(1, b"\x88"), PingFrame(0, b"12345678")), "order"),
        (wire(ContinuationFrame(1, b"\x88")), "order"),
        (wire(HeadersFrame(3, b"\x88", flags=["END_HEADERS"])), "no stream of ours"),
        (raw(1, 1, 0x2C, 1, b"\0"), "length"),
        (wire(*[RESPONSE] * 9), "control frames"),
        (wire(*[PingFrame(0, b"12345678")] * 4000), "control frames"),
    ],
)
def test_what_breaks_http2_or_grpc_is_named(data, text):
    with pytest.raises(ProtocolError, match=text):
        SubscribeCounter(window=WINDOW).feed(data)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window": 0},
        {"window": 1 << 31},
        {"window": 1, "max_frame": 16383},
        {"window": 1, "max_frame": 1 << 24},
    ],
)
def test_what_http2_cannot_express_is_refused(arguments):
    with pytest.raises(ValueError, match="bytes, not"):
        SubscribeCounter(**arguments)
