"""`RequestReader` against a model in plain Python: `http2.FrameReader`, and the rules for DATA."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftbridge import http2
from liftbridge._wire import InboundStream, RequestReader, whole_messages

LARGEST = 50
WINDOW = 80
STREAM_WINDOW = 60
IDS = (1, 3, 5)


class TooLongError(Exception):
    pass


def too_long(length):
    raise TooLongError(length)


class Stream(InboundStream):
    """Notes what it was told, in the order in which everything happened."""

    def __init__(self, number, events):
        self.number, self.events = number, events
        self.receive_window = STREAM_WINDOW

    def settle(self):
        self.events.append((self.number, *self.take_fresh()))


@dataclass
class Model:
    """What one stream must have."""

    ended: bool = False
    finished: bool = False
    window: int = STREAM_WINDOW
    content: bytes = b""
    fresh: list[int] = field(default_factory=lambda: [0, 0])


def frames():
    payload = st.binary(max_size=12) | st.binary(min_size=LARGEST - 1, max_size=LARGEST + 1)
    padded = st.builds(
        lambda pad, data, after: (bytes((pad,)) + data + bytes(after)),
        st.integers(0, 9), st.binary(max_size=9), st.integers(0, 9),
    )  # fmt: skip
    flags = st.sampled_from([0, 0, 0, http2.END_STREAM, 0x40])
    plain = st.tuples(st.just(http2.DATA), flags, st.sampled_from((*IDS, 0, 7)), payload)
    with_padding = st.tuples(
        st.just(http2.DATA), flags.map(lambda value: value | http2.PADDED), st.sampled_from(IDS), padded
    )
    other = st.tuples(st.sampled_from([http2.PING, http2.HEADERS, 99]), flags, st.sampled_from(IDS), payload)
    return st.lists(plain | plain | with_padding | other, max_size=30)


def usual(model, flags, payload, window):
    """The content of a DATA frame that the reader has to take, None for any other."""
    if model is None or flags & http2.END_STREAM or model.ended or model.finished:
        return None
    try:
        data = http2.without_padding(flags, payload)
    except http2.ConnectionFailure:
        return None
    return data if data and len(payload) <= min(window, model.window) else None


@given(
    frames(),
    st.lists(st.integers(1, 40), max_size=40),
    st.dictionaries(st.sampled_from(IDS), st.sampled_from(["ended", "finished"])),
    st.booleans(),
    st.sampled_from([bytes, bytearray]),
)
def test_data_goes_to_its_stream_and_all_else_comes_back(script, cuts, states, in_block, kind):
    events, expected = [], []
    streams = {number: Stream(number, events) for number in IDS}
    models = {number: Model() for number in IDS}
    for number, state in states.items():
        setattr(streams[number], state, True)
        setattr(models[number], state, True)
    reader = RequestReader(streams, LARGEST, WINDOW, too_long)
    reader.in_header_block = in_block

    data = b"".join(http2.frame(*frame) for frame in script)
    parts = []
    for cut in cuts:
        parts.append(data[:cut])
        data = data[cut:]
    parts.append(data)

    model_reader, window = http2.FrameReader(LARGEST), WINDOW
    for part in parts:
        touched = []

        def settled(touched=touched):
            expected.extend((number, *models[number].fresh) for number in touched)
            for number in touched:
                models[number].fresh = [0, 0]
            touched.clear()

        count, failed = 0, False
        try:
            for frame_kind, flags, number, payload in model_reader.frames(part):
                count += 1
                model = models.get(number)
                content = usual(model, flags, payload, window) if frame_kind == http2.DATA else None
                if content is None or in_block:
                    settled()
                    expected.append((frame_kind, flags, number, bytes(payload)))
                    continue
                if number not in touched:
                    touched.append(number)
                window -= len(payload)
                model.window -= len(payload)
                model.content += content
                model.fresh[0] += len(content)
                model.fresh[1] += len(payload) - len(content)
        except http2.ConnectionFailure:
            failed = True
        settled()

        if failed:
            with pytest.raises(TooLongError):
                events.extend(reader.frames(kind(part)))
            break
        events.extend(reader.frames(kind(part)))
        assert (reader.progress, reader.pending) == (count > 0, model_reader.pending)
    assert events == expected
    assert reader.window == window
    for number, model in models.items():
        stream = streams[number]
        assert stream.receive_window == model.window
        assert stream.waiting == len(model.content)
        assert stream.take(stream.waiting) == model.content


def test_what_a_stream_does_meanwhile_counts_for_what_comes_behind():
    """The owner ends a stream while it handles a frame: DATA behind that frame is not taken."""
    events = []
    stream = Stream(1, events)
    reader = RequestReader({1: stream}, LARGEST, WINDOW, too_long)
    data = http2.frame(http2.DATA, 0, 1, b"a")
    back = []
    for frame in reader.frames(data + http2.frame(http2.PING, 0, 0, bytes(8)) + data):
        assert events == [(1, 1, 0)]
        stream.finished = True
        back.append(frame[0])
    assert back == [http2.PING, http2.DATA]
    assert stream.waiting == 1


def test_what_goes_beyond_a_window_comes_back():
    streams = {number: Stream(number, []) for number in IDS}
    reader = RequestReader(streams, LARGEST, WINDOW, too_long)

    def send(number, size):
        return [frame[2] for frame in reader.frames(http2.frame(http2.DATA, 0, number, bytes(size)))]

    assert send(1, 50) == []
    assert send(1, STREAM_WINDOW - 50 + 1) == [1], "the stream's window"
    assert send(1, STREAM_WINDOW - 50) == []
    assert send(3, WINDOW - STREAM_WINDOW + 1) == [3], "the connection's window"
    assert send(3, WINDOW - STREAM_WINDOW) == []
    assert send(3, 1) == [3]
    assert (reader.window, streams[1].receive_window) == (0, 0)


def test_a_stream_that_has_left_the_table_gets_nothing():
    streams = {1: Stream(1, [])}
    reader = RequestReader(streams, LARGEST, WINDOW, too_long)
    data = http2.frame(http2.DATA, 0, 1, b"a")
    assert list(reader.frames(data)) == []
    del streams[1]
    assert list(reader.frames(data)) == [(http2.DATA, 0, 1, b"a")]


@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 0, 1]), st.binary(max_size=20))),
    st.integers(0, 5),
    st.integers(0, 25),
    st.integers(0, 30),
)
def test_messages_of_a_stream(messages, missing, longest, before):
    """What the methods of a stream say of its content, also when a part was taken already."""
    data = b"".join(bytes((flag,)) + len(text).to_bytes(4, "big") + text for flag, text in messages)
    data = data[: max(0, len(data) - missing)]
    stream = Stream(1, [])
    stream.add(bytes(before), 0)
    stream.take(before)
    stream.add(data[:7], 2)
    stream.add(data[7:], 1)
    assert stream.take_fresh() == (before + len(data), 3)
    assert stream.waiting == len(data)
    assert stream.whole(longest) == whole_messages(data, longest)
    whole = len(data) >= 5
    length = int.from_bytes(data[1:5], "big")
    assert stream.first_header() == ((data[0], length) if whole else (0, -1))
    only = whole and data[0] == 0 and length == len(data) - 5 and length <= longest
    assert stream.only_message(longest) == (data[5:] if only else None)
    part = min(len(data), 6)
    skipped = min(5, part)
    assert stream.take(part, skipped) == data[skipped:part]
    stream.add(b"more", 0)
    assert stream.drop() == len(data) - part  # nobody was told of the rest
    assert stream.waiting == 0 and stream.take_fresh() == (0, 0)


def test_more_is_not_taken_than_there_is():
    stream = Stream(1, [])
    stream.add(b"abc", 0)
    with pytest.raises(AssertionError, match="more is taken"):
        stream.take(4)
    with pytest.raises(AssertionError, match="more is taken"):
        stream.take(2, 3)
    assert stream.take(3) == b"abc"
