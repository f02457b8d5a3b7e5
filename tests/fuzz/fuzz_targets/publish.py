"""PublishAsync: what a client's DATA frames bring, cut into gRPC messages and turned into NATS publishes.

Checked against protobuf's decoder: each request that is one becomes exactly one publish with its fields or
one answer with its error; the first that is none is an error and takes nothing after it; the frames of a
batch are found whatever the cuts.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from fuzz_targets.script import Script, pieces, written
from liftbridge._wire import AckRouter, RouteTable, StreamRoute, whole_messages
from liftbridge.proto import api_pb2

INSTRUMENTED = ()
MAX_LENGTH = 2048
WORDS = (
    b"\0\0\0\0", b"orders", b"strict", b"closed", b"\x1a\6orders", b"\x1a\6strict", b"\x1a\6closed",
    b"\x12\1v", b"\x0a\1k", b"\x20\1", b"\x2a\6\n\1h\x12\1v", b"\x3a\1c", b"\x40\1", b"\x40\2", b"\x48\1",
    b"\x0b\x0c", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\1",
)  # fmt: skip

MAX_MESSAGE = 1 << 20
RAW, FRAMED = range(2)


def frame(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def seeds() -> Iterator[bytes]:
    """Requests to every kind of route."""
    one = api_pb2.PublishRequest(
        key=b"k", value=b"v", stream="orders", partition=2, headers={"a": b"1", "b": b""}, correlationId="c",
        ackPolicy="ALL", expectedOffset=-1,
    ).SerializeToString()  # fmt: skip
    for stream in ("orders", "strict", "closed", "gone"):
        other = api_pb2.PublishRequest(stream=stream, value=b"v", ackPolicy="NONE").SerializeToString()
        yield written(0, b"\5\3", FRAMED, one, FRAMED, other, FRAMED, b"")
    yield written(1, b"", RAW, frame(one) * 3)
    yield written(8, b"", FRAMED, one, FRAMED, b"\x1a\6closed")
    yield written(2, b"", FRAMED, b"\x1a\6orders", FRAMED, b"\x1a\6closed\x20\1")
    yield written(4, b"\1\1\1\1\1", FRAMED, one, RAW, b"\0\0")


def routes() -> RouteTable:
    table = RouteTable()
    table.put(StreamRoute(b"orders", b"shop.orders", 3, False))
    table.put(StreamRoute(b"strict", b"shop.strict", 1, True))
    closed = StreamRoute(b"closed", b"shop.closed", 2, False)
    closed.mark(0, readonly=True, waiting=False)
    closed.mark(1, readonly=False, waiting=True)
    table.put(closed)
    return table


def expectation(request: api_pb2.PublishRequest, connected: bool) -> str:
    """The text of the refusal, "" for none, "wait" for a partition that is waited for."""
    partitions = {"orders": 3, "strict": 1, "closed": 2}.get(request.stream, 0)
    if not partitions:
        return "no such stream"
    if not 0 <= request.partition < partitions:
        return "no such partition"
    if request.stream == "closed" and request.partition == 0:
        return "the partition is readonly"
    if request.stream == "strict" and request.ackPolicy == api_pb2.NONE:
        return "stream with concurrency control must have AckPolicy set"
    if request.ackPolicy not in (api_pb2.LEADER, api_pb2.ALL, api_pb2.NONE):
        return "unknown ack policy; it is LEADER, ALL or NONE"
    if not connected:
        return "the server has no connection to NATS"
    return "wait" if request.stream == "closed" else ""


def run(data: bytes) -> None:
    script = Script(data)
    options, cuts = script.number(), script.string()
    wire = bytearray()
    while script:
        kind, text = script.number() % 2, script.string()
        wire += frame(text) if kind == FRAMED else text
    router = AckRouter(None, b"ns.ack.x")
    call = router.open(object(), routes(), 1 if options & 8 else MAX_MESSAGE)
    call.connected = not options & 2
    if options & 4:
        call.permit = lambda stream: b"not allowed" if stream == b"strict" else None
    refused = feed(call, bytes(wire), cuts)
    sent, answers = publishes(call.take_publishes()), answers_of(call.take_answers())
    check(bytes(wire), options, refused, sent, answers, call.outstanding)
    router.close(call)
    assert len(router) == 0


def feed(call, wire: bytes, cuts: bytes) -> bool:
    """Feed the call as the server does: whole messages of what has arrived; True when it is refused."""
    arrived = b""
    for piece in pieces(wire, cuts):
        arrived += piece
        end, flag, length = whole_messages(arrived, MAX_MESSAGE)
        assert 0 <= end <= len(arrived)
        at = 0
        try:
            while at < end:
                at += call.feed(memoryview(arrived)[at:end])
                if at < end:
                    assert call.waits_for == (b"closed", 1)
                    at += call.feed(memoryview(arrived)[at:end], "waited in vain")
        except ValueError:
            return True
        arrived = arrived[end:]
        if length >= 0 and (flag or length > MAX_MESSAGE):
            return True
    return False


def publishes(data: bytes) -> list[tuple[str, api_pb2.Message]]:
    """PUB commands as (subject, Message)."""
    found = []
    while data:
        line, _, rest = data.partition(b"\r\n")
        verb, subject, size = line.split(b" ")
        assert verb == b"PUB"
        payload, end, data = rest[: int(size)], rest[int(size) : int(size) + 2], rest[int(size) + 2 :]
        assert end == b"\r\n" and payload[:8] == b"\xb9\x0e\x43\xb4\0\x08\0\0"
        found.append((subject.decode(), api_pb2.Message.FromString(payload[8:])))
    return found


def answers_of(data: bytes) -> list[api_pb2.PublishResponse]:
    found = []
    while data:
        length = int.from_bytes(data[1:5], "big")
        assert data[0] == 0
        found.append(api_pb2.PublishResponse.FromString(data[5 : 5 + length]))
        data = data[5 + length :]
    return found


def check(wire: bytes, options: int, refused: bool, sent: list, answers: list, outstanding: int) -> None:
    """Hold publishes and answers against what protobuf says of the requests."""
    at, waiting, next_sent, next_answer = 0, 0, iter(sent), iter(answers)
    bad = False
    while len(wire) - at >= 5 and not bad:
        length = int.from_bytes(wire[at + 1 : at + 5], "big")
        if wire[at] or length > MAX_MESSAGE:
            bad = True
        elif len(wire) - at - 5 < length:
            break
        else:
            try:
                request = api_pb2.PublishRequest.FromString(wire[at + 5 : at + 5 + length])
            except DecodeError:
                bad = True
                break
            at += 5 + length
            waiting += judge(request, options, next_sent, next_answer)
    assert refused == bad, "protobuf disagrees on what is a request"
    assert not list(next_sent) and not list(next_answer)
    assert outstanding == waiting


def judge(request: api_pb2.PublishRequest, options: int, sent, answers) -> int:
    """One request; returns how many acks it waits for."""
    reason = expectation(request, not options & 2)
    if options & 4 and request.stream == "strict":
        reason = "not allowed"
    if not reason and options & 8:
        reason = "the message is larger than NATS max_payload"
    if not reason:
        return check_sent(request, next(sent))
    answer = next(answers)
    assert answer.asyncError.message == ("waited in vain" if reason == "wait" else reason)
    assert answer.correlationId == request.correlationId and answer.HasField("ack")
    return 0


def check_sent(request: api_pb2.PublishRequest, sent: tuple[str, api_pb2.Message]) -> int:
    subject, message = sent
    wanted = f"shop.{request.stream}" + (f".{request.partition}" if request.partition else "")
    assert subject == message.subject == wanted
    for field in ("key", "value", "stream", "headers", "correlationId", "ackPolicy"):
        assert getattr(message, field) == getattr(request, field), field
    assert message.offset == request.expectedOffset
    return int(request.ackPolicy != api_pb2.NONE)
