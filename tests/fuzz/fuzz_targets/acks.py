"""Acks that NATS brings to a server's inboxes, on their way to the gRPC call that waits for them.

Checked: each is counted once, as given to a call, late or malformed; what counts as an ack is what protobuf
takes for one; a call gets responses that protobuf takes, in order, with the ack as it came or the error it
names; nothing grows but by what arrived, and no call gets what belongs to another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from fuzz_targets.publish import answers_of, frame
from fuzz_targets.script import Script, written
from liftbridge._wire import AckRouter, NatsParser, RouteTable, StreamRoute
from liftbridge.proto import api_pb2

INSTRUMENTED = ()
MAX_LENGTH = 1024
MAGIC = b"\xb9\x0e\x43\xb4"
WORDS = (
    MAGIC + b"\0\x08\0\1", b"ns.ack.x.0.1", b"ns.ack.x.1.2", b".0.1", b".1.2", b".2.3", b"\x32\1c", b"\x50\1",
    b"\x50\2", b"\x50\3", b"\x50\4", b"\x20\5", b"\x0b\x0c",
)  # fmt: skip

NOW = 4_000_000_000 * 10**9
ENVELOPE, RAW = range(2)


def seeds() -> Iterator[bytes]:
    """Acks good and bad to every call, to one that has ended, to none."""
    good = api_pb2.Ack(stream="s", offset=5, correlationId="c", ackPolicy="ALL").SerializeToString()
    bad = [api_pb2.Ack(correlationId="c", ackError=error).SerializeToString() for error in (1, 2, 3, 4)]
    yield written(*(part for call in range(4) for part in (call, ENVELOPE, good)))
    yield written(*(part for ack in bad for part in (0, ENVELOPE, ack)), 1, ENVELOPE, b"")
    yield written(4, b"ns.ack.x.7.1", ENVELOPE, good, 4, b"x", RAW, b"", 0, RAW, MAGIC + b"\0\x08\0\1" + good)


def run(data: bytes) -> None:
    script = Script(data)
    router = AckRouter(None, b"ns.ack.x")
    parser = NatsParser(chunk=256)
    parser.attach(1, router)
    table = RouteTable()
    table.put(StreamRoute(b"s", b"s", 1, False))
    calls = [router.open(n, table, 1 << 20, first_only=n == 1) for n in range(3)]
    calls[0].feed(frame(b"\x1a\1s") * 3)
    router.close(calls[2])
    received, given = 0, {n: [] for n in range(3)}
    while script:
        subject, payload = subject_of(script, calls), payload_of(script)
        parser.feed(b"MSG %b 1 %d\r\n%b\r\n" % (subject, len(payload), payload))
        assert parser.parse(NOW) is None
        parser.take_touched()
        received += 1
        ack = ack_of(payload)
        numbers = re.fullmatch(rb"(?:.*\.)?(\d{1,18})\.(\d{1,18})", subject, re.DOTALL)
        wanted = (int(numbers[1]), int(numbers[2])) if numbers else None
        if ack is not None and wanted in ((0, 1), (1, 2)):
            given[wanted[0]].append(ack)
    assert router.acks_received == received
    assert received == router.acks_late + router.acks_malformed + len(given[0]) + len(given[1])
    assert sorted(router.take_waiting()) == [n for n in (0, 1) if given[n]]
    assert calls[0].outstanding == max(0, 3 - len(given[0])) and calls[1].outstanding == 0
    check_answers(answers_of(calls[0].take_answers()), given[0])
    first = calls[1].take_first_ack()
    assert first == (given[1][0] if given[1] else None)
    assert calls[2].take_answers() == b"" and calls[2].take_first_ack() is None


def subject_of(script: Script, calls: list) -> bytes:
    choice = script.number() % 5
    if choice < 3:
        return calls[choice].inbox
    text = script.string()
    return bytes(byte for byte in text if byte not in b" \t\r\n") or b"x"


def payload_of(script: Script) -> bytes:
    kind, text = script.number() % 2, script.string()
    return MAGIC + b"\0\x08\0\1" + text if kind == ENVELOPE else text


def ack_of(payload: bytes) -> bytes | None:
    """The ack in an envelope, serialized; None when it is none."""
    if len(payload) < 8 or payload[:5] != MAGIC + b"\0" or payload[7] != 1 or payload[6] & 1:
        return None
    if not 8 <= payload[5] <= len(payload):
        return None
    try:
        api_pb2.Ack.FromString(payload[payload[5] :])
    except DecodeError:
        return None
    return payload[payload[5] :]


def check_answers(answers: list[api_pb2.PublishResponse], acks: list[bytes]) -> None:
    assert len(answers) == len(acks)
    for answer, serialized in zip(answers, acks, strict=True):
        ack = api_pb2.Ack.FromString(serialized)
        assert answer.correlationId == ack.correlationId
        if ack.ackError == api_pb2.Ack.OK:
            assert answer.ack == ack and not answer.HasField("asyncError")
        else:
            assert answer.ack == api_pb2.Ack() and answer.asyncError.message
