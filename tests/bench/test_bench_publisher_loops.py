"""The publishers' C loops against servers made of bytes: what is sent, which acks count, what is refused."""

import re
import struct
import time

import pytest
from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from liftbridge.bench import messages
from liftbridge.bench._load import GrpcPublisher, NatsPublisher, ProtocolError, RefusedError
from liftbridge.bench.publishing import explain
from liftbridge.proto import api_pb2

ACK_HEADER = b"\xb9\x0e\x43\xb4\x00\x08\x00\x01"
VALUE = messages.value(40, stamped=True)
OK_HEADERS = HeadersFrame(1, Encoder().encode([(":status", "200")]), flags=["END_HEADERS"]).serialize()


def nats(count: int = 5, window: int = 3, **options: object) -> NatsPublisher:
    template = messages.envelope("orders", "_INBOX.a", VALUE, "leader")
    return NatsPublisher(
        template.data,
        messages=count,
        window=window,
        serial_at=template.serial_at,
        stamp_at=template.stamp_at,
        **options,
    )


def json_nats(count: int = 5, window: int = 3) -> NatsPublisher:
    template = messages.plain("orders", "_INBOX.a", VALUE, "leader")
    return NatsPublisher(
        template.data, messages=count, window=window, serial_at=template.serial_at, acks="json"
    )


def grpc(count: int = 5, window: int = 3, *, unary: bool = False, size: int = 40) -> GrpcPublisher:
    template = messages.request("orders", messages.value(size, stamped=True), "leader")
    return GrpcPublisher(
        template.data,
        messages=count,
        window=window,
        serial_at=template.serial_at,
        stamp_at=template.stamp_at,
        receive_window=1 << 20,
        headers=messages.headers("host:1", "Publish", 30) if unary else b"",
    )


def ack(serial: int, error: int = 0) -> api_pb2.Ack:
    return api_pb2.Ack(stream="orders", offset=serial, correlationId=f"{serial:016x}", ackError=error)


def nats_ack(serial: int, error: int = 0) -> bytes:
    payload = ACK_HEADER + ack(serial, error).SerializeToString()
    return b"MSG _INBOX.a 1 %d\r\n%b\r\n" % (len(payload), payload)


def json_ack(serial: int, payload: bytes = b'{"stream":"orders", "seq":%d}') -> bytes:
    payload = payload % (serial + 1) if b"%d" in payload else payload
    return b"MSG _INBOX.a.%016x 1 %d\r\n%b\r\n" % (serial, len(payload), payload)


def prefixed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def response(serial: int, stream: int = 1, error: int = 0) -> bytes:
    body = api_pb2.PublishResponse(ack=ack(serial, error), correlationId=f"{serial:016x}").SerializeToString()
    return DataFrame(stream, prefixed(body)).serialize()


def trailers(stream: int = 1, status: int = 0) -> bytes:
    block = Encoder().encode([("grpc-status", str(status)), ("grpc-message", "no")])
    return HeadersFrame(stream, block, flags=["END_HEADERS", "END_STREAM"]).serialize()


def nats_payloads(data: bytes) -> "list[api_pb2.Message]":
    found = []
    while data:
        line, _, rest = data.partition(b"\r\n")
        if not line.startswith(b"PUB "):
            data = rest
            continue
        size = int(line.split()[-1])
        assert rest[size : size + 2] == b"\r\n"
        assert rest[:8] == b"\xb9\x0e\x43\xb4\x00\x08\x00\x00"
        found.append(api_pb2.Message.FromString(rest[8:size]))
        data = rest[size + 2 :]
    return found


def frames(data: bytes) -> "list[Frame]":
    found = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        found.append(frame)
        data = data[9 + length :]
    return found


def requests(sent: "list[Frame]") -> "list[api_pb2.PublishRequest]":
    data, found = b"".join(frame.data for frame in sent if isinstance(frame, DataFrame)), []
    while data:
        size = int.from_bytes(data[1:5], "big")
        found.append(api_pb2.PublishRequest.FromString(data[5 : 5 + size]))
        data = data[5 + size :]
    return found


def stamp(value: bytes) -> "tuple[int, int]":
    return struct.unpack_from("=qQ", value)


def test_envelopes_are_what_a_client_sends():
    before = time.monotonic_ns()
    sent = nats_payloads(nats().feed(b""))
    assert [message.correlationId for message in sent] == [f"{serial:016x}" for serial in range(3)]
    for serial, message in enumerate(sent):
        at_ns, stamped = stamp(message.value)
        assert stamped == serial
        assert before <= at_ns <= time.monotonic_ns()
        assert message.value[16:] == VALUE[16:]
        assert (message.ackInbox, message.ackPolicy, message.offset) == ("_INBOX.a", api_pb2.LEADER, -1)


def test_requests_are_what_a_client_sends():
    sent = requests(frames(grpc().feed(b"")))
    assert [request.correlationId for request in sent] == [f"{serial:016x}" for serial in range(3)]
    assert [stamp(request.value)[1] for request in sent] == [0, 1, 2]
    assert {(request.stream, request.expectedOffset) for request in sent} == {("orders", -1)}


def test_the_window_bounds_what_is_outstanding():
    publisher = nats(count=5, window=3)
    assert len(nats_payloads(publisher.feed(b""))) == 3
    assert publisher.feed(nats_ack(1)) == b""  # the oldest is still there
    assert len(nats_payloads(publisher.feed(nats_ack(0)))) == 2
    assert publisher.feed(nats_ack(2) + nats_ack(4)) == b""
    assert publisher.feed(nats_ack(3)) == b"PING\r\n"
    assert (publisher.acks.acked, publisher.acks.offset_sum, publisher.acks.latency.total) == (5, 10, 5)


def test_serial_numbers_begin_where_they_are_told():
    publisher = nats(count=2, first_serial=7)
    assert [stamp(message.value)[1] for message in nats_payloads(publisher.feed(b""))] == [7, 8]
    publisher.feed(nats_ack(7) + nats_ack(8))
    with pytest.raises(ProtocolError, match="not outstanding"):
        publisher.feed(nats_ack(6))


def test_at_a_rate_latency_counts_from_when_a_message_was_due():
    """Two messages a second late: nothing was sent before, and yet they have waited."""
    publisher = nats(count=2, interval_ns=1.0, phase_ns=-1_000_000_000)
    assert len(nats_payloads(publisher.feed(b""))) == 2
    publisher.feed(nats_ack(0) + nats_ack(1))
    assert publisher.acks.latency.percentile(0) >= 990_000_000
    assert nats_payloads(nats(count=2, interval_ns=1e12, phase_ns=0).feed(b""))[1:] == []


SCRIPTS = {
    "envelope acks": (nats, [b"PING\r\n", nats_ack(0), b"+OK\r\n", nats_ack(2), nats_ack(1), b"INFO {}\r\n"]),
    "json acks": (json_nats, [json_ack(0), b"PING\r\n", json_ack(1), json_ack(2)]),
    "PublishAsync": (
        grpc,
        [
            SettingsFrame(settings={4: 1000, 5: 20000}).serialize(),
            OK_HEADERS,
            PingFrame(0, b"12345678").serialize(),
            response(0) + response(1),
            WindowUpdateFrame(1, window_increment=500).serialize(),
            response(2),
        ],
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_acks_count_wherever_they_are_cut(name):
    make, pieces = SCRIPTS[name]
    script = b"".join(pieces)
    for position in range(len(script) + 1):
        publisher = make()
        publisher.feed(b"")
        publisher.feed(script[:position])
        publisher.feed(script[position:])
        assert publisher.acks.acked == 3
        assert publisher.acks.latency.total == 3
    publisher = make()
    publisher.feed(b"")
    for byte in script:
        publisher.feed(bytes([byte]))
    assert publisher.acks.acked == 3


def test_unary_calls_follow_one_another_wherever_they_are_cut():
    def answers(stream: int, serial: int) -> bytes:
        block = Encoder().encode([(":status", "200")])
        return (
            HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize()
            + response(serial, stream)
            + trailers(stream)
        )

    for position in range(len(answers(1, 0)) + 1):
        publisher = grpc(count=3, window=1, unary=True)
        first = frames(publisher.feed(b""))
        assert [type(frame) for frame in first] == [HeadersFrame, DataFrame]
        assert "END_STREAM" in first[1].flags
        fields = dict(Decoder().decode(first[0].data))
        assert (fields[":path"], fields["grpc-timeout"]) == ("/proto.API/Publish", "30S")
        script = answers(1, 0)
        second = frames(publisher.feed(script[:position]) + publisher.feed(script[position:]))
        assert {frame.stream_id for frame in second} == {3}
        assert requests(second)[0].correlationId == f"{1:016x}"
        assert frames(publisher.feed(answers(3, 1)))[0].stream_id == 5
        assert publisher.feed(answers(5, 2)) == b""
        assert publisher.acks.acked == 3


def test_pings_are_answered():
    assert nats(count=1).feed(b"PING\r\nPING\r\n").startswith(b"PONG\r\nPONG\r\n")
    answered = frames(grpc().feed(PingFrame(0, b"12345678").serialize()))
    assert answered[0].opaque_data == b"12345678"


def test_flow_control_and_frame_size_are_obeyed():
    publisher = grpc(count=1, size=100_000)
    first = frames(publisher.feed(b""))
    assert sum(len(frame.data) for frame in first) == 65535
    assert max(len(frame.data) for frame in first) == 16384
    assert publisher.feed(WindowUpdateFrame(0, window_increment=1 << 20).serialize()) == b""
    assert publisher.acks.sent == 1
    more = frames(
        publisher.feed(
            SettingsFrame(settings={4: 65535 + 100, 5: 32768}).serialize()
            + WindowUpdateFrame(1, window_increment=1 << 20).serialize()
        )
    )
    assert max(len(frame.data) for frame in more if isinstance(frame, DataFrame)) == 32768
    (request,) = requests([*first, *more])
    assert len(request.value) == 100_000


def test_publish_async_is_closed_when_everything_is_acked():
    publisher = grpc(count=2)
    publisher.feed(OK_HEADERS)
    (last,) = frames(publisher.feed(response(0) + response(1)))
    assert (last.data, "END_STREAM" in last.flags) == (b"", True)
    publisher.feed(trailers())
    assert publisher.end_ns >= publisher.first_ns > 0


@pytest.mark.parametrize(
    ("make", "data", "text"),
    [
        (nats, nats_ack(0, error=3), "ack with the error TOO_LARGE"),
        (nats, b"-ERR 'Permissions Violation'\r\n", "Permissions Violation"),
        (json_nats, json_ack(0, b'{"error":{"code":503}}'), "503"),
        (json_nats, json_ack(0, b'{"error":{"code":503},"seq":1}'), "503"),
        (json_nats, b"HMSG _INBOX.a.x 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", "NATS/1.0 503"),
        (grpc, OK_HEADERS + response(0, error=2), "ack with the error INCORRECT_OFFSET"),
        (grpc, trailers(status=5), r"gRPC status 5 \(no\)"),
        (grpc, OK_HEADERS + response(0) + trailers(), r"gRPC status 0 \(no\)"),
        (grpc, GoAwayFrame(0, error_code=2).serialize(), "gRPC status None"),
        (
            grpc,
            OK_HEADERS
            + DataFrame(
                1,
                prefixed(
                    api_pb2.PublishResponse(
                        ack=api_pb2.Ack(), asyncError=api_pb2.PublishAsyncError(code=2, message="gone")
                    ).SerializeToString()
                ),
            ).serialize(),
            "NOT_FOUND: gone",
        ),
    ],
)
def test_a_refusal_says_what_the_server_says(make, data, text):
    publisher = make()
    publisher.feed(b"")
    with pytest.raises(RefusedError) as refused:
        publisher.feed(data)
    assert re.search(text, explain(refused.value, publisher))


@pytest.mark.parametrize(
    ("make", "data", "text"),
    [
        (nats, nats_ack(0) + nats_ack(0), "not outstanding"),
        (nats, nats_ack(3), "not outstanding"),
        (nats, b"MSG _INBOX.a 1 5\r\nhello\r\n", "which message"),
        (nats, b"MSG _INBOX.a 1 -5\r\n", "not the NATS protocol"),
        (nats, b"MSG _INBOX.a 1 99999999\r\n", "not the NATS protocol"),
        (nats, b"MSG _INBOX.a 1 2\r\nabcd", "not the NATS protocol"),
        (nats, b"HTTP/1.1 400 Bad Request\r\n", "not the NATS protocol"),
        (nats, b"x" * 9000, "not the NATS protocol"),
        (nats, b"MSG _INBOX.a 1 11\r\n" + ACK_HEADER + b"\x0a\xff\x01\r\n", "cannot be decoded"),
        (json_nats, b'MSG short 1 9\r\n{"seq":1}\r\n', "which message"),
        (json_nats, b'MSG _INBOX.a.zzzzzzzzzzzzzzzz 1 9\r\n{"seq":1}\r\n', "which message"),
        (grpc, OK_HEADERS + response(0) + response(0), "not outstanding"),
        (grpc, OK_HEADERS + DataFrame(1, prefixed(b"\x0a\xff")).serialize(), "cannot be decoded"),
        (grpc, response(0), "order"),
        (grpc, b"HTTP/1.1 400 Bad Request\r\n", "frame"),
    ],
)
def test_what_breaks_the_protocol_is_an_error(make, data, text):
    publisher = make()
    publisher.feed(b"")
    with pytest.raises(ProtocolError, match=text):
        publisher.feed(data)


@pytest.mark.parametrize(
    "options",
    [{"serial_at": 4}, {"stamp_at": 6}, {"window": 0}, {"messages": 0}, {"acks": "xml"}, {"interval_ns": -1}],
)
def test_what_no_publisher_can_do_is_refused(options):
    with pytest.raises(ValueError, match=r"."):
        NatsPublisher(b"PUB x 0\r\n\r\n", **{"messages": 1, "window": 1, **options})
