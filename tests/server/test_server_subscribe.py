"""Subscribing from outside: where a subscription starts and stops, what it delivers, and how it ends."""

import itertools
from dataclasses import dataclass

import grpc
import pytest
from calls import (
    PATIENCE,
    NatsClient,
    create,
    drain,
    fresh,
    nullable,
    partition_metadata,
    publish,
    publish_many,
    read,
    refused,
    subscribe,
    take,
    until,
)
from harness import Server

from liftbridge.proto import api_pb2
from liftbridge.proto.api_pb2 import Message, SubscribeRequest

NEW_ONLY, OFFSET, EARLIEST = api_pb2.NEW_ONLY, api_pb2.OFFSET, api_pb2.EARLIEST
LATEST, TIMESTAMP = api_pb2.LATEST, api_pb2.TIMESTAMP
ON_CANCEL, STOP_OFFSET = api_pb2.STOP_ON_CANCEL, api_pb2.STOP_OFFSET
STOP_LATEST, STOP_TIMESTAMP = api_pb2.STOP_LATEST, api_pb2.STOP_TIMESTAMP

END = grpc.StatusCode.RESOURCE_EXHAUSTED
FAR_FUTURE, FAR_PAST = 2**63 - 1, -(2**63)
# A client with these reads no further ahead than a few messages, so that a slow one really is slow.
SMALL_WINDOWS = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 65536}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("subscribe")) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def api(server):
    return server.api()


def result(api, stream, **fields):
    """Offsets that a subscription delivers, the status it ends with, and whether there was a handshake."""
    messages, status = drain(api.Subscribe(SubscribeRequest(stream=stream, **fields), timeout=PATIENCE))
    handshake = bool(messages) and messages[0].ByteSize() == 0
    return [message.offset for message in messages[handshake:]], status, handshake


# -- positions -----------------------------------------------------------------------------------------------
# Every start position against every stop position, forward and in reverse, over logs of several shapes. What
# one means does not depend on the other, so each is told once, and what a pair must deliver follows.


@dataclass
class Shape:
    """A log that does not change any more: the offsets it has, and the time of each."""

    stream: str
    oldest: int
    times: list[int]

    @property
    def newest(self) -> int:
        return self.oldest + len(self.times) - 1


def fill(api, count, **fields):
    """A stream with messages published one at a time, so that each has a time of its own."""
    stream = create(api, **fields)
    times = [publish(api, stream, b"%d" % number).receptionTimestamp for number in range(count)]
    assert all(later > earlier + 1 for earlier, later in itertools.pairwise(times))
    return Shape(stream, 0, times)


@pytest.fixture(scope="module")
def shapes(api):
    """Logs to read: in one file, in a file per message or two, cut by retention, and of one message."""
    tiny = {"segmentMaxBytes": nullable(400)}
    retained = fill(
        api,
        30,
        segmentMaxBytes=nullable(1),  # a file per message, so exactly ten remain
        retentionMaxMessages=nullable(10),
        cleanerInterval=nullable(5),
    )
    retained.oldest = 20
    until(lambda: read(api, retained.stream, 1)[0].offset == retained.oldest)
    retained.times = retained.times[retained.oldest :]
    return {
        "one file": fill(api, 20),
        "many files": fill(api, 20, **tiny),
        "retained": retained,
        "one message": fill(api, 1),
    }


SHAPES = ["one file", "many files", "retained", "one message"]

# By name: the fields of the request, and the offset at which a forward subscription starts.
STARTS = {
    "new only": (lambda s: {}, lambda s: s.newest + 1),
    "earliest": (lambda s: {"startPosition": EARLIEST}, lambda s: s.oldest),
    "latest": (lambda s: {"startPosition": LATEST}, lambda s: s.newest),
    "the oldest offset": (lambda s: {"startPosition": OFFSET, "startOffset": s.oldest}, lambda s: s.oldest),
    "an offset in the middle": (
        lambda s: {"startPosition": OFFSET, "startOffset": (s.oldest + s.newest) // 2},
        lambda s: (s.oldest + s.newest) // 2,
    ),
    "the newest offset": (lambda s: {"startPosition": OFFSET, "startOffset": s.newest}, lambda s: s.newest),
    "the next offset": (
        lambda s: {"startPosition": OFFSET, "startOffset": s.newest + 1},
        lambda s: s.newest + 1,
    ),
    "an offset beyond": (lambda s: {"startPosition": OFFSET, "startOffset": 10**9}, lambda s: s.newest + 1),
    "the largest offset": (
        lambda s: {"startPosition": OFFSET, "startOffset": 2**63 - 1},
        lambda s: s.newest + 1,
    ),
    "an offset not set": (lambda s: {"startPosition": OFFSET}, lambda s: s.oldest),
    "offset -1": (lambda s: {"startPosition": OFFSET, "startOffset": -1}, lambda s: s.oldest),
    "the smallest offset": (lambda s: {"startPosition": OFFSET, "startOffset": -(2**63)}, lambda s: s.oldest),
    "the time of the oldest": (
        lambda s: {"startPosition": TIMESTAMP, "startTimestamp": s.times[0]},
        lambda s: s.oldest,
    ),
    "the time of one in the middle": (
        lambda s: {"startPosition": TIMESTAMP, "startTimestamp": s.times[len(s.times) // 2]},
        lambda s: s.oldest + len(s.times) // 2,
    ),
    "just behind one in the middle": (
        lambda s: {"startPosition": TIMESTAMP, "startTimestamp": s.times[len(s.times) // 2] + 1},
        lambda s: s.oldest + len(s.times) // 2 + 1,
    ),
    "the time of the newest": (
        lambda s: {"startPosition": TIMESTAMP, "startTimestamp": s.times[-1]},
        lambda s: s.newest,
    ),
    "behind the newest": (
        lambda s: {"startPosition": TIMESTAMP, "startTimestamp": s.times[-1] + 1},
        lambda s: s.newest + 1,
    ),
    "before the oldest": (
        lambda s: {"startPosition": TIMESTAMP, "startTimestamp": s.times[0] - 1},
        lambda s: s.oldest,
    ),
    "the end of time": (
        lambda s: {"startPosition": TIMESTAMP, "startTimestamp": FAR_FUTURE},
        lambda s: s.newest + 1,
    ),
    "the beginning of time": (
        lambda s: {"startPosition": TIMESTAMP, "startTimestamp": FAR_PAST},
        lambda s: s.oldest,
    ),
    "garbage in fields not asked for": (
        lambda s: {"startPosition": EARLIEST, "startOffset": 7, "startTimestamp": FAR_PAST, "stopOffset": 3},
        lambda s: s.oldest,
    ),
}

# By name: the fields of the request, and the last offset, inclusive, or the status when there is none.
STOPS = {
    "stop latest": (lambda s: {"stopPosition": STOP_LATEST}, lambda s: s.newest),
    "stop at the newest": (
        lambda s: {"stopPosition": STOP_OFFSET, "stopOffset": s.newest},
        lambda s: s.newest,
    ),
    "stop in the middle": (
        lambda s: {"stopPosition": STOP_OFFSET, "stopOffset": (s.oldest + s.newest) // 2},
        lambda s: (s.oldest + s.newest) // 2,
    ),
    "stop at the oldest": (
        lambda s: {"stopPosition": STOP_OFFSET, "stopOffset": s.oldest},
        lambda s: s.oldest,
    ),
    "stop below the oldest": (
        lambda s: {"stopPosition": STOP_OFFSET, "stopOffset": s.oldest - 2},
        lambda s: s.oldest - 2,
    ),
    "stop at the time of one": (
        lambda s: {"stopPosition": STOP_TIMESTAMP, "stopTimestamp": s.times[len(s.times) // 2]},
        lambda s: s.oldest + len(s.times) // 2,
    ),
    "stop just before one": (
        lambda s: {"stopPosition": STOP_TIMESTAMP, "stopTimestamp": s.times[len(s.times) // 2] - 1},
        lambda s: s.oldest + len(s.times) // 2 - 1 if len(s.times) > 1 else grpc.StatusCode.INTERNAL,
    ),
    "stop in the future": (
        lambda s: {"stopPosition": STOP_TIMESTAMP, "stopTimestamp": FAR_FUTURE},
        lambda s: s.newest,
    ),
    "stop before the oldest": (
        lambda s: {"stopPosition": STOP_TIMESTAMP, "stopTimestamp": s.times[0] - 1},
        lambda s: grpc.StatusCode.INTERNAL,
    ),
    "stop at the beginning of time": (
        lambda s: {"stopPosition": STOP_TIMESTAMP, "stopTimestamp": FAR_PAST},
        lambda s: grpc.StatusCode.INTERNAL,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", STARTS)
def test_start_and_stop_positions(api, shapes, shape, start):
    log = shapes[shape]
    fields, first = STARTS[start][0](log), STARTS[start][1](log)
    for stop, (stop_fields, last_of) in STOPS.items():
        last = last_of(log)
        if isinstance(last, grpc.StatusCode):
            expected = ([], last, False)
        elif last < first:
            expected = ([], grpc.StatusCode.INVALID_ARGUMENT, False)
        else:
            expected = (list(range(first, last + 1)), END, True)
        assert result(api, log.stream, **{**fields, **stop_fields(log)}) == expected, stop


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", STARTS)
def test_start_and_stop_positions_in_reverse(api, shapes, shape, start):
    log = shapes[shape]
    fields, first = STARTS[start][0](log), min(STARTS[start][1](log), log.newest)
    for stop, (stop_fields, last_of) in [("no stop", (lambda s: {}, lambda s: s.oldest)), *STOPS.items()]:
        last = last_of(log)
        if isinstance(last, grpc.StatusCode):
            expected = ([], last, False)
        elif last > first:
            expected = ([], grpc.StatusCode.INVALID_ARGUMENT, False)
        else:
            expected = (list(range(first, max(last, log.oldest) - 1, -1)), END, True)
        assert result(api, log.stream, reverse=True, **{**fields, **stop_fields(log)}) == expected, stop


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", STARTS)
def test_endless_subscriptions_deliver_what_is_there(api, shapes, shape, start):
    log = shapes[shape]
    fields, first = STARTS[start]
    call = subscribe(api, log.stream, **fields(log))
    expected = list(range(first(log), log.newest + 1))
    assert [message.offset for message in take(call, len(expected))] == expected
    call.cancel()


def test_positions_on_an_empty_partition(api):
    stream = create(api)
    for start, (fields, _) in STARTS.items():
        if "time" in start or "behind" in start or "before" in start:
            fields = {"startPosition": TIMESTAMP, "startTimestamp": 1}
        else:
            fields = fields(Shape(stream, 0, []))
        assert result(api, stream, stopPosition=STOP_LATEST, **fields) == ([], END, False), start
        stop = {"stopPosition": STOP_TIMESTAMP, "stopTimestamp": FAR_FUTURE}
        assert result(api, stream, **fields, **stop) == ([], grpc.StatusCode.INTERNAL, False), start
    with refused(END):
        next(api.Subscribe(SubscribeRequest(stream=stream, stopPosition=STOP_LATEST, reverse=True)))
    # Nothing to deliver, and a reverse subscription never waits.
    assert result(api, stream, reverse=True) == ([], END, True)
    waiting = [
        subscribe(api, stream, startPosition=OFFSET, startOffset=100),
        subscribe(api, stream, startPosition=OFFSET, startOffset=-1),
        subscribe(api, stream, startPosition=LATEST),
        subscribe(api, stream, startPosition=TIMESTAMP, startTimestamp=FAR_FUTURE),
        subscribe(api, stream),
    ]
    publish(api, stream, b"first")
    for call in waiting:
        assert [(message.offset, message.value) for message in take(call, 1)] == [(0, b"first")]
        call.cancel()


def test_a_start_beyond_the_end_begins_with_the_next_message(api):
    stream = create(api)
    publish_many(api, stream, [b"old"] * 5)
    calls = [
        subscribe(api, stream, startPosition=OFFSET, startOffset=100),
        subscribe(api, stream, startPosition=NEW_ONLY),
        subscribe(api, stream, startPosition=TIMESTAMP, startTimestamp=FAR_FUTURE),
    ]
    publish(api, stream, b"new")
    for call in calls:
        assert [(message.offset, message.value) for message in take(call, 1)] == [(5, b"new")]
        call.cancel()


def test_a_stop_offset_in_the_future_is_waited_for(api):
    stream = create(api)
    publish_many(api, stream, [b"old"] * 3)
    call = subscribe(api, stream, startPosition=EARLIEST, stopPosition=STOP_OFFSET, stopOffset=6)
    assert [message.offset for message in take(call, 3)] == [0, 1, 2]
    publish_many(api, stream, [b"new"] * 10)
    messages, status = drain(call)
    assert ([message.offset for message in messages], status) == ([3, 4, 5, 6], END)


def test_stop_latest_is_the_newest_at_the_time_of_the_call(api):
    stream = create(api)
    publish_many(api, stream, [b"x" * 100_000] * 50)
    slow = server_side_blocked(api, stream, stopPosition=STOP_LATEST)
    publish_many(api, stream, [b"new"] * 10)
    messages, status = drain(slow)
    assert ([message.offset for message in messages], status) == (list(range(1, 50)), END)


def server_side_blocked(api, stream, **fields):
    """A subscription from the earliest message, of which one was taken and the rest waits for the client."""
    call = subscribe(api, stream, startPosition=EARLIEST, **fields)
    assert next(call).offset == 0
    return call


# -- what a subscription checks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, code, text",
    [
        ({"stream": ""}, grpc.StatusCode.NOT_FOUND, "No such partition"),
        ({"stream": "never"}, grpc.StatusCode.NOT_FOUND, "No such partition"),
        ({"partition": 1}, grpc.StatusCode.NOT_FOUND, "No such partition"),
        ({"partition": -1}, grpc.StatusCode.NOT_FOUND, "No such partition"),
        ({"startPosition": 5}, grpc.StatusCode.INVALID_ARGUMENT, "start position"),
        ({"startPosition": -1}, grpc.StatusCode.INVALID_ARGUMENT, "start position"),
        ({"stopPosition": 4}, grpc.StatusCode.INVALID_ARGUMENT, "stop position"),
        ({"consumer": {"groupId": "g"}}, grpc.StatusCode.INVALID_ARGUMENT, "consumerId"),
        (
            {"consumer": {"groupId": "g" * 257, "consumerId": "c"}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "256 bytes",
        ),
        ({"stopPosition": STOP_LATEST}, grpc.StatusCode.INVALID_ARGUMENT, "before it starts"),
    ],
)
def test_a_subscription_that_cannot_be_has_no_handshake(api, shapes, fields, code, text):
    with refused(code, text):
        next(
            api.Subscribe(
                SubscribeRequest(**{"stream": shapes["one file"].stream, **fields}), timeout=PATIENCE
            )
        )


def test_fields_that_change_nothing_here(api, shapes):
    log = shapes["many files"]
    call = subscribe(
        api,
        log.stream,
        startPosition=EARLIEST,
        stopPosition=STOP_LATEST,
        readISRReplica=True,
        resume=True,
        consumer=api_pb2.Consumer(consumerId="of no group", groupEpoch=3),
    )
    messages, status = drain(call)
    assert (len(messages), status) == (20, END)


# -- delivery ------------------------------------------------------------------------------------------------


def test_the_handshake_is_an_empty_message(server, shapes):
    """Zero bytes of protobuf, as clients compare."""
    channel = server.api().channel
    call = channel.unary_stream("/proto.API/Subscribe")(
        SubscribeRequest(stream=shapes["one file"].stream).SerializeToString(), timeout=PATIENCE
    )
    assert next(call) == b""
    call.cancel()


def test_every_field_of_a_message(server, api):
    stream = create(api, subject=fresh("a.") + ".*", partitions=2)
    root = api.FetchMetadata(api_pb2.FetchMetadataRequest(streams=[stream])).streamMetadata[0].subject[:-2]
    with NatsClient(server.nats_url) as nats:
        nats.publish(f"{root}.b.1", b"plain", reply="answer.me")
    ack = publish(
        api, stream, b"v", partition=1, key=b"k", headers={"h": b"\xff"}, correlationId="c", ackInbox="i"
    )
    plain, published = read(api, stream, 2, partition=1)
    assert plain == Message(
        value=b"plain",
        timestamp=plain.timestamp,
        stream=stream,
        partition=1,
        subject=f"{root}.b.1",
        replySubject="answer.me",
        headers={"subject": f"{root}.b.1".encode(), "reply": b"answer.me"},
    )
    assert 0 < plain.timestamp <= published.timestamp == ack.receptionTimestamp
    assert published == Message(
        offset=1,
        key=b"k",
        value=b"v",
        timestamp=ack.receptionTimestamp,
        stream=stream,
        partition=1,
        subject=f"{root}.*.1",
        headers={"h": b"\xff", "subject": f"{root}.*.1".encode(), "reply": b""},
    )


def test_a_live_tail_sees_every_message_in_order(server, api):
    stream = create(api, segmentMaxBytes=nullable(20_000))
    publish_many(api, stream, [b"old"] * 10)
    calls = [subscribe(api, stream) for _ in range(5)]
    values = [b"%d" % number for number in range(2000)]
    with NatsClient(server.nats_url) as nats:
        for begin in range(0, 2000, 100):
            nats.publish(stream, *values[begin : begin + 100])
    for call in calls:
        messages = take(call, 2000)
        assert [message.offset for message in messages] == list(range(10, 2010))
        assert [message.value for message in messages] == values
        call.cancel()


def test_reading_across_files_of_one_message(api):
    stream = create(api, segmentMaxBytes=nullable(1))
    values = [bytes([number]) * (number * 37) for number in range(100)]
    publish_many(api, stream, values)
    call = subscribe(api, stream, startPosition=EARLIEST, stopPosition=STOP_LATEST)
    assert [message.value for message in drain(call)[0]] == values
    call = subscribe(api, stream, startPosition=LATEST, reverse=True)
    assert [message.value for message in drain(call)[0]] == values[::-1]


def test_many_subscriptions_share_a_connection(api):
    streams = [create(api) for _ in range(3)]
    calls = [(stream, subscribe(api, stream)) for stream in streams for _ in range(50)]
    for stream in streams:
        publish_many(api, stream, [stream.encode(), b"2"])
    for stream, call in calls:
        assert [message.value for message in take(call, 2)] == [stream.encode(), b"2"]
        call.cancel()


def test_a_slow_subscriber_does_not_slow_another(server, api):
    stream = create(api)
    values = [bytes([number % 256]) * 20_000 for number in range(1000)]
    publish_many(api, stream, values)
    slow_api = server.api(**SMALL_WINDOWS)
    slow = server_side_blocked(slow_api, stream, stopPosition=STOP_OFFSET, stopOffset=1100)
    beside = subscribe(slow_api, stream, startPosition=LATEST)  # on the connection of the slow one
    fast = subscribe(api, stream, startPosition=EARLIEST)
    assert [message.value for message in take(fast, 1000)] == values
    tail = [b"tail %d" % number for number in range(101)]
    publish_many(api, stream, tail)
    assert [message.value for message in take(fast, 101)] == tail
    assert [message.value for message in take(beside, 102)][1:] == tail
    messages, status = drain(slow)
    assert status == END
    assert [message.value for message in messages] == values[1:] + tail
    for call in (fast, beside):
        call.cancel()


def test_large_messages(api):
    stream = create(api, segmentMaxBytes=nullable(1_500_000))
    values = [bytes([number]) * 1_000_000 for number in range(12)]
    publish_many(api, stream, values)
    call = subscribe(api, stream, startPosition=EARLIEST, stopPosition=STOP_LATEST)
    assert [message.value for message in drain(call)[0]] == values
    call = subscribe(api, stream, reverse=True)
    assert [message.value for message in drain(call)[0]] == values[::-1]


# -- retention under readers ---------------------------------------------------------------------------------

CUT = {
    "segmentMaxBytes": nullable(100_000),
    "retentionMaxBytes": nullable(200_000),
    "cleanerInterval": nullable(10),
}


def cut(api, stream):
    """Publish so much that everything there was is removed; returns the newest offset."""
    before = partition_metadata(api, stream).newestOffset
    for _ in range(3):
        newest = publish_many(api, stream, [b"y" * 20_000] * 10)[-1].offset
    until(lambda: read(api, stream, 1)[0].offset > before)
    return newest


def test_a_slow_reader_goes_on_at_the_oldest_when_retention_removed_its_place(server, api):
    stream = create(
        api, segmentMaxBytes=nullable(100_000), cleanerInterval=nullable(10), retentionMaxAge=nullable(1)
    )
    # Retention takes sealed files only, and never waits for readers.
    slow = subscribe(server.api(**SMALL_WINDOWS), stream)
    first = publish_many(api, stream, [b"x" * 20_000] * 200)[0].offset
    assert next(slow).offset == first
    newest = cut(api, stream)
    offsets = [message.offset for message in take_until(slow, newest)]
    assert offsets == sorted(set(offsets))
    assert offsets[0] == 1
    assert offsets[-1] == newest
    assert len(offsets) < newest, "nothing was removed under the reader; the test shows nothing"
    publish(api, stream, b"later")
    assert next(slow).value == b"later"
    slow.cancel()


def take_until(call, offset):
    """The messages of a subscription up to an offset."""
    messages = []
    for message in call:
        messages.append(message)
        if message.offset == offset:
            break
    return messages


def test_a_reverse_reader_ends_when_retention_removed_the_rest(server, api):
    stream = create(api, **{**CUT, "retentionMaxBytes": nullable(10_000_000)})
    publish_many(api, stream, [b"x" * 20_000] * 200)
    slow = subscribe(server.api(**SMALL_WINDOWS), stream, startPosition=LATEST, reverse=True)
    assert next(slow).offset == 199
    # Ten megabytes later the first four are gone.
    for _ in range(13):
        publish_many(api, stream, [b"y" * 40_000] * 25)
    until(lambda: read(api, stream, 1)[0].offset > 199)
    messages, status = drain(slow)
    assert status == END
    offsets = [message.offset for message in messages]
    assert offsets == list(range(198, 198 - len(offsets), -1))
    assert offsets[-1] > 0, "nothing was removed under the reader; the test shows nothing"
    assert publish(api, stream, b"alive").offset == 200 + 13 * 25


def test_a_stop_offset_that_retention_removed_ends_the_subscription(server, api):
    stream = create(api, **{**CUT, "retentionMaxBytes": nullable(10_000_000)})
    publish_many(api, stream, [b"x" * 20_000] * 200)
    slow = server_side_blocked(server.api(**SMALL_WINDOWS), stream, stopPosition=STOP_OFFSET, stopOffset=180)
    for _ in range(13):
        publish_many(api, stream, [b"y" * 40_000] * 25)
    until(lambda: read(api, stream, 1)[0].offset > 199)
    messages, status = drain(slow)
    assert status == END
    assert [message.offset for message in messages] == list(range(1, 1 + len(messages)))
    assert len(messages) < 180, "nothing was removed under the reader; the test shows nothing"


# -- ends ----------------------------------------------------------------------------------------------------


def test_deleting_a_stream_ends_its_subscriptions(server, api):
    stream = create(api)
    publish_many(api, stream, [b"x" * 20_000] * 200)
    tail = subscribe(api, stream)
    slow = server_side_blocked(server.api(**SMALL_WINDOWS), stream)
    backward = subscribe(server.api(**SMALL_WINDOWS), stream, reverse=True)
    api.DeleteStream(api_pb2.DeleteStreamRequest(name=stream), timeout=PATIENCE)
    for call in (tail, slow, backward):
        assert drain(call)[1] == grpc.StatusCode.NOT_FOUND
    with refused(grpc.StatusCode.NOT_FOUND):
        next(api.Subscribe(SubscribeRequest(stream=stream), timeout=PATIENCE))
    create(api, stream)
    assert publish(api, stream, b"new").offset == 0
    assert read(api, stream, 1)[0].value == b"new"


def test_a_subscription_ends_at_its_deadline(api):
    stream = create(api)
    publish(api, stream)
    call = subscribe(api, stream, startPosition=EARLIEST, timeout=0.5)
    messages, status = drain(call)
    assert ([message.offset for message in messages], status) == ([0], grpc.StatusCode.DEADLINE_EXCEEDED)


def test_cancelled_subscriptions_are_gone(tmp_path):
    """The server counts the calls of a connection, so those that stayed would soon be too many."""
    with Server(tmp_path / "server", {"limits.streams.per.connection": 4}) as server:
        api = server.api()
        stream = create(api)
        publish(api, stream)
        for number in range(40):
            call = subscribe(api, stream, startPosition=EARLIEST if number % 2 else NEW_ONLY)
            if number % 4 == 1:
                assert next(call).offset == 0
            call.cancel()
        calls = [subscribe(api, stream, startPosition=EARLIEST) for _ in range(4)]
        assert [next(call).offset for call in calls] == [0] * 4


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_subscribers_of_a_server_that_goes_are_told(tmp_path, how):
    with Server(tmp_path / "server") as server:
        api = server.api()
        stream = create(api)
        publish_many(api, stream, [b"x" * 20_000] * 200)
        tail = subscribe(api, stream)
        slow = server_side_blocked(server.api(**SMALL_WINDOWS), stream)
        backward = subscribe(server.api(**SMALL_WINDOWS), stream, reverse=True)
        if how == "stop":
            assert server.stop() == 0
        else:
            server.kill()
        for call in (tail, slow, backward):
            assert drain(call)[1] == grpc.StatusCode.UNAVAILABLE
        server.start()
        assert partition_metadata(server.api(), stream).newestOffset == 199
        call = subscribe(server.api(), stream, startPosition=OFFSET, startOffset=199)
        publish(server.api(), stream, b"after")
        assert [message.offset for message in take(call, 2)] == [199, 200]
        call.cancel()
