"""gRPC publishes to NATS envelopes, acks to publish responses, DATA frames."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftbridge._wire import (
    AckRouter,
    NatsParser,
    RouteTable,
    StreamRoute,
    data_frames,
)
from liftbridge.proto import api_pb2

NOW = 1_790_000_000_000_000_000


def frame(message):
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def unframe(data, kind):
    messages = []
    while data:
        assert data[0] == 0
        length = int.from_bytes(data[1:5], "big")
        messages.append(kind.FromString(data[5 : 5 + length]))
        data = data[5 + length :]
    return messages


def publishes(data):
    """PUB commands as (subject, Message)."""
    found = []
    while data:
        line, _, data = data.partition(b"\r\n")
        verb, subject, size = line.split(b" ")
        assert verb == b"PUB"
        payload, data = data[: int(size)], data[int(size) + 2 :]
        assert payload[:8] == b"\xb9\x0e\x43\xb4\x00\x08\x00\x00"
        found.append((subject.decode(), api_pb2.Message.FromString(payload[8:])))
    return found


def ack_envelope(**fields):
    return b"\xb9\x0e\x43\xb4\x00\x08\x00\x01" + api_pb2.Ack(**fields).SerializeToString()


class Owner:
    """What a publisher is to the router."""

    def __init__(self):
        self.router = AckRouter(self, b"ns.ack.x")
        self.parser = NatsParser()
        self.parser.attach(1, self.router)
        self.table = RouteTable()
        self.table.put(StreamRoute(b"orders", b"shop.orders", 3, False))
        self.table.put(StreamRoute(b"strict", b"shop.strict", 1, True))

    def open(self, max_payload=1 << 20, first_only=False):
        return self.router.open(object(), self.table, max_payload, first_only)

    def deliver(self, inbox, payload):
        self.parser.feed(b"MSG %s 1 %d\r\n%s\r\n" % (inbox, len(payload), payload))
        assert self.parser.parse(NOW) is None
        self.parser.take_touched()
        return self.router.take_waiting()


@pytest.fixture
def owner():
    return Owner()


def test_requests_become_envelopes(owner):
    call = owner.open()
    request = api_pb2.PublishRequest(
        key=b"k", value=b"v", stream="orders", partition=2, headers={"a": b"1", "b": b""}, ackInbox="ignored",
        correlationId="c", ackPolicy="ALL", expectedOffset=-1,
    )  # fmt: skip
    call.feed(frame(request) + frame(api_pb2.PublishRequest(stream="orders", ackPolicy="NONE")))
    first, second = publishes(call.take_publishes())
    inbox = call.inbox.decode()
    assert first == (
        "shop.orders.2",
        api_pb2.Message(
            offset=-1, key=b"k", value=b"v", stream="orders", subject="shop.orders.2",
            headers={"a": b"1", "b": b""}, ackInbox=inbox, correlationId="c", ackPolicy="ALL",
        ),
    )  # fmt: skip
    assert second == (
        "shop.orders",
        api_pb2.Message(stream="orders", subject="shop.orders", ackInbox=inbox, ackPolicy="NONE"),
    )
    assert call.outstanding == 1
    assert call.take_answers() == b""


@pytest.mark.parametrize(
    "fields, code, text",
    [
        ({"stream": "nothing"}, "NOT_FOUND", "no such stream"),
        ({"stream": ""}, "NOT_FOUND", "no such stream"),
        ({"stream": "orders", "partition": 3}, "NOT_FOUND", "no such partition"),
        ({"stream": "orders", "partition": -1}, "NOT_FOUND", "no such partition"),
        (
            {"stream": "strict", "ackPolicy": "NONE"},
            "BAD_REQUEST",
            "stream with concurrency control must have AckPolicy set",
        ),
        (
            {"stream": "orders", "value": b"x" * 2000},
            "INTERNAL",
            "the message is larger than NATS max_payload",
        ),
    ],
)
def test_refused_requests_are_answered(owner, fields, code, text):
    call = owner.open(max_payload=1500)
    call.feed(frame(api_pb2.PublishRequest(correlationId="c", **fields)))
    assert call.take_publishes() == b""
    (answer,) = unframe(call.take_answers(), api_pb2.PublishResponse)
    assert answer.HasField("ack")
    assert answer.ack == api_pb2.Ack()
    assert answer.asyncError == api_pb2.PublishAsyncError(code=code, message=text)
    assert answer.correlationId == "c"
    assert call.outstanding == 0


def test_without_nats_requests_get_errors(owner):
    call = owner.open()
    call.connected = False
    call.feed(frame(api_pb2.PublishRequest(stream="orders", correlationId="c")))
    (answer,) = unframe(call.take_answers(), api_pb2.PublishResponse)
    assert answer.asyncError.code == api_pb2.PublishAsyncError.INTERNAL


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0\x02\x0a\x05",
        b"\0\0\0",
        b"\1\0\0\0\0",
        b"\0\0\0\0\x04\x1a\x02\xff\xfe",
        frame(b"\x2a\x02\x0a\x05"),  # an entry of the headers that is cut off
        frame(b"\x2a\x03\x0a\x01\xff"),  # one whose name is not UTF-8
    ],
)
def test_what_is_no_request_is_an_error(owner, data):
    with pytest.raises(ValueError, match=r"PublishRequest|cut off"):
        owner.open().feed(data)


def test_a_readonly_partition_is_told_from_the_others(owner):
    call = owner.open()
    route = owner.table.get(b"orders")
    data = [
        frame(api_pb2.PublishRequest(stream="orders", partition=n, correlationId=f"{n}")) for n in (0, 1, 2)
    ]
    for readonly in ((1,), (0, 2), ()):
        for partition in range(3):
            route.mark(partition, readonly=partition in readonly, waiting=False)
        assert call.feed(b"".join(data)) == len(b"".join(data))
        assert call.waits_for is None
        answers = unframe(call.take_answers(), api_pb2.PublishResponse)
        assert [answer.correlationId for answer in answers] == [f"{partition}" for partition in readonly]
        for answer in answers:
            assert answer.asyncError.code == api_pb2.PublishAsyncError.READONLY
            assert answer.HasField("ack")
        assert len(publishes(call.take_publishes())) == 3 - len(readonly)


def test_a_partition_that_is_to_be_waited_for_stops_the_requests(owner):
    call = owner.open()
    route = owner.table.get(b"orders")
    data = [
        frame(api_pb2.PublishRequest(stream="orders", partition=n, value=b"%d" % n, correlationId=f"{n}"))
        for n in (0, 1, 2, 1)
    ]
    whole = memoryview(b"".join(data))
    call.feed(data[1])  # the call knows the route already
    call.take_publishes()
    route.mark(1, readonly=False, waiting=True)
    taken = call.feed(whole)
    assert (taken, call.waits_for) == (len(data[0]), (b"orders", 1))
    assert [subject for subject, _ in publishes(call.take_publishes())] == ["shop.orders"]
    # Nothing has changed: it stops at the same place, and nothing is sent twice.
    assert (call.feed(whole[taken:]), call.waits_for) == (0, (b"orders", 1))
    assert (call.take_publishes(), call.take_answers()) == (b"", b"")
    # Waiting was in vain for the first one; the next one waits anew.
    more = call.feed(whole[taken:], "the disk is gone")
    assert (more, call.waits_for) == (len(data[1]) + len(data[2]), (b"orders", 1))
    (answer,) = unframe(call.take_answers(), api_pb2.PublishResponse)
    assert answer.asyncError == api_pb2.PublishAsyncError(code="INTERNAL", message="the disk is gone")
    assert answer.correlationId == "1"
    assert [subject for subject, _ in publishes(call.take_publishes())] == ["shop.orders.2"]
    route.mark(1, readonly=False, waiting=False)
    # A failure that was overtaken by a resume refuses nothing.
    assert call.feed(whole[taken + more :], "the disk is gone") == len(data[3])
    assert call.waits_for is None
    assert [subject for subject, _ in publishes(call.take_publishes())] == ["shop.orders.1"]
    assert call.take_answers() == b""


def test_a_readonly_partition_is_not_waited_for(owner):
    call = owner.open()
    owner.table.get(b"strict").mark(0, readonly=True, waiting=True)
    call.feed(frame(api_pb2.PublishRequest(stream="strict", ackPolicy="NONE")))
    assert call.waits_for is None
    (answer,) = unframe(call.take_answers(), api_pb2.PublishResponse)
    assert answer.asyncError.code == api_pb2.PublishAsyncError.READONLY


@pytest.mark.parametrize("partition", [-1, 3])
def test_a_partition_that_is_not_there_cannot_be_marked(owner, partition):
    with pytest.raises(IndexError):
        owner.table.get(b"orders").mark(partition, readonly=True, waiting=False)


def test_a_deleted_stream_is_not_published_to(owner):
    call = owner.open()
    request = frame(api_pb2.PublishRequest(stream="orders"))
    call.feed(request)
    owner.table.remove(b"orders")
    call.feed(request)
    owner.table.put(StreamRoute(b"orders", b"new.orders", 1, False))
    call.feed(request)
    assert [subject for subject, _ in publishes(call.take_publishes())] == ["shop.orders", "new.orders"]
    assert len(unframe(call.take_answers(), api_pb2.PublishResponse)) == 1


def test_acks_become_responses_of_their_call(owner):
    one, two = owner.open(), owner.open()
    assert owner.deliver(two.inbox, ack_envelope(stream="orders", offset=7, correlationId="c")) == [two.owner]
    assert one.take_answers() == b""
    (answer,) = unframe(two.take_answers(), api_pb2.PublishResponse)
    assert answer.ack == api_pb2.Ack(stream="orders", offset=7, correlationId="c")
    assert answer.correlationId == "c"
    assert not answer.HasField("asyncError")


@pytest.mark.parametrize(
    "error, code",
    [
        ("INCORRECT_OFFSET", "INCORRECT_OFFSET"),
        ("TOO_LARGE", "BAD_REQUEST"),
        ("ENCRYPTION", "ENCRYPTION_FAILED"),
        ("UNKNOWN", "UNKNOWN"),
        (99, "UNKNOWN"),
    ],
)
def test_negative_acks_become_errors(owner, error, code):
    call = owner.open()
    owner.deliver(call.inbox, ack_envelope(correlationId="c", ackError=error))
    (answer,) = unframe(call.take_answers(), api_pb2.PublishResponse)
    assert answer.HasField("ack")
    assert answer.asyncError.code == api_pb2.PublishAsyncError.Code.Value(code)
    assert answer.correlationId == "c"


def test_late_and_malformed_acks_are_counted_and_dropped(owner):
    call = owner.open()
    inbox = call.inbox
    owner.deliver(inbox, b"garbage")
    owner.deliver(inbox, ack_envelope() + b"\xff")
    owner.deliver(inbox, ack_envelope() + b"\x32\x01\xff")  # a correlation id that is not UTF-8
    owner.deliver(b"ns.ack.x.one.two", ack_envelope())
    owner.deliver(b"ns.ack.x.900.1", ack_envelope())
    owner.router.close(call)
    successor = owner.open()
    assert successor.slot == call.slot
    owner.deliver(inbox, ack_envelope())
    assert owner.router.acks_malformed == 4
    assert owner.router.acks_late == 2
    assert successor.take_answers() == b""


def test_the_first_ack_is_kept_as_it_came(owner):
    call = owner.open(first_only=True)
    assert call.take_first_ack() is None
    owner.deliver(call.inbox, ack_envelope(offset=3))
    owner.deliver(call.inbox, ack_envelope(offset=4))
    assert api_pb2.Ack.FromString(call.take_first_ack()).offset == 3


def test_many_calls_share_the_router(owner):
    calls = [owner.open() for _ in range(200)]
    for call in calls[::2]:
        owner.router.close(call)
    assert len(owner.router) == 100
    for number, call in enumerate(calls[1::2]):
        owner.deliver(call.inbox, ack_envelope(offset=number))
        (answer,) = unframe(call.take_answers(), api_pb2.PublishResponse)
        assert answer.ack.offset == number


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100))
def test_garbage_requests_are_refused_or_published(data):
    owner = Owner()
    call = owner.open()
    try:
        request = api_pb2.PublishRequest.FromString(data)
    except Exception:
        request = None
    try:
        call.feed(frame(data))
    except ValueError:
        return
    assert request is not None
    sent = publishes(call.take_publishes())
    answers = unframe(call.take_answers(), api_pb2.PublishResponse)
    assert len(sent) + len(answers) == 1
    if sent:
        assert (sent[0][1].key, sent[0][1].value) == (request.key, request.value)
        assert sent[0][1].headers == request.headers


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=2000), st.integers(1, 700), st.integers(1, 2**31 - 1))
def test_data_frames_carry_every_byte(data, size, stream_id):
    framed = data_frames(stream_id, data, size)
    carried = b""
    while framed:
        length = int.from_bytes(framed[:3], "big")
        assert 0 < length <= size
        assert framed[3:5] == b"\0\0"
        assert int.from_bytes(framed[5:9], "big") == stream_id
        carried += framed[9 : 9 + length]
        framed = framed[9 + length :]
    assert carried == data


def test_a_unary_publish_is_taken_as_one_of_many_is(owner):
    request = api_pb2.PublishRequest(
        key=b"k", value=b"v", stream="orders", partition=2, headers={"a": b"1"}, correlationId="c",
        ackPolicy="ALL", expectedOffset=-1,
    )  # fmt: skip
    one, many = owner.open(first_only=True), owner.open(first_only=True)
    assert one.begin(request.SerializeToString())
    many.feed(frame(request))
    [(subject, message)] = publishes(one.take_publishes())
    assert message.ackInbox == one.inbox.decode()
    message.ackInbox = many.inbox.decode()
    assert publishes(many.take_publishes()) == [(subject, message)]


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": "nothing"},
        {"stream": "orders", "partition": 3},
        {"stream": "strict", "ackPolicy": "NONE"},
        {"stream": "orders", "ackPolicy": 7},
        {"stream": "orders", "ackInbox": "mine"},
        {"stream": "orders", "partition": 1},
        {"stream": "orders", "partition": 2},
        {"stream": "orders", "value": bytes(300)},
    ],
)
def test_an_unusual_unary_publish_is_not_taken_and_leaves_nothing(owner, fields):
    owner.table.get(b"orders").mark(1, readonly=True, waiting=False)
    owner.table.get(b"orders").mark(2, readonly=False, waiting=True)
    call = owner.open(max_payload=250, first_only=True)
    assert not call.begin(api_pb2.PublishRequest(**fields).SerializeToString())
    assert call.take_publishes() == call.take_answers() == b""
    assert call.waits_for is None
    assert call.outstanding == 0
    assert call.first_response() is None
    assert not call.begin(b"\xff")
    assert call.begin(api_pb2.PublishRequest(stream="orders").SerializeToString())


@pytest.mark.parametrize("policy, wait", [("NONE", True), ("LEADER", False), ("ALL", False)])
def test_a_unary_publish_that_nobody_waits_for_names_no_inbox(owner, policy, wait):
    call = owner.open(first_only=True)
    request = api_pb2.PublishRequest(stream="orders", value=b"v", ackPolicy=policy)
    assert call.begin(request.SerializeToString(), wait)
    assert call.outstanding == 0
    assert publishes(call.take_publishes()) == [
        (
            "shop.orders",
            api_pb2.Message(stream="orders", subject="shop.orders", value=b"v", ackPolicy=policy),
        )
    ]


def test_the_first_ack_of_a_unary_publish_is_its_response(owner):
    call = owner.open(first_only=True)
    assert call.first_response() is None
    ack = api_pb2.Ack(stream="orders", offset=3, correlationId="c")
    owner.deliver(call.inbox, ack_envelope(stream="orders", offset=3, correlationId="c"))
    owner.deliver(call.inbox, ack_envelope(stream="other", ackError="TOO_LARGE"))
    response = call.first_response()
    assert response[:5] == b"\0" + len(response[5:]).to_bytes(4, "big")
    assert api_pb2.PublishResponse.FromString(response[5:]) == api_pb2.PublishResponse(ack=ack)


def test_a_negative_first_ack_is_no_response(owner):
    call = owner.open(first_only=True)
    owner.deliver(call.inbox, ack_envelope(stream="orders", ackError="TOO_LARGE"))
    owner.deliver(call.inbox, ack_envelope(stream="orders"))
    assert call.first_response() is None
    assert api_pb2.Ack.FromString(call.take_first_ack()).ackError == api_pb2.Ack.TOO_LARGE
