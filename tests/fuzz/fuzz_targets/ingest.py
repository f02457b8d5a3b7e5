"""What publishers on NATS send to a partition: envelope or not, through parser and sink into a log and back.

Checked against an oracle that decodes envelopes with protobuf and knows the rules of docs/bad-input.md: what
is stored reads back equal, as messages that protobuf takes; what is no envelope is its own value; offsets
count on; each ack goes to the inbox that asked, with its offset or error; the rest is refused and counted.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from fuzz_targets.memory import scratch
from fuzz_targets.script import Script, pieces, written
from liftbridge._log import BatchBuilder, crc32c
from liftbridge._wire import NatsParser, PartitionSink, decode_ack_envelope, message_prefix
from liftbridge.log import Log, LogOptions
from liftbridge.proto import api_pb2

INSTRUMENTED = ()
MAX_LENGTH = 2048
MAGIC = b"\xb9\x0e\x43\xb4"
WORDS = (
    MAGIC, MAGIC + b"\0\x08\0\0", MAGIC + b"\0\x0c\1\0", b"Nats-TTL", b"NATS/1.0\r\nNats-TTL: 1s\r\n\r\n",
    b"1h30m", b"never", b"\x12\1k", b"\x1a\1v", b"\x4a\6\n\1h\x12\1v", b"\x52\5inbox", b"\x5a\1c", b"\x60\1",
    b"\x60\2", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\1", b"subject", b"reply", b"\x0b\x0c",
    b"\xf4\x8f\xbf\xbf",
)  # fmt: skip

NOW = 4_000_000_000 * 10**9  # far away, so that nothing expires while it is read
MAX_MESSAGE = 600
HEADERS_FIELD = api_pb2.Message.HEADERS_FIELD_NUMBER
PLAIN, ENVELOPE, WITH_CRC, MAGIC_ONLY, HEADERS, SUBJECT, REPLY, CONTROL = range(8)
POLICIES = {api_pb2.LEADER, api_pb2.ALL}
FRESH_LOG_AFTER = 32 << 20


def seeds() -> Iterator[bytes]:
    """Every kind of message."""
    message = api_pb2.Message(
        key=b"k", value=b"v", headers={"a": b"1", "Nats-TTL": b"5s"}, ackInbox="in.box", correlationId="c",
        ackPolicy="ALL", offset=1,
    ).SerializeToString()  # fmt: skip
    asks = api_pb2.Message(value=b"v", ackInbox="a", offset=-1).SerializeToString()
    yield written(0, b"", PLAIN, b"hello", SUBJECT, b"foo.bar", REPLY, b"re.ply", PLAIN, b"", CONTROL)
    yield written(1, b"\7\7\7", ENVELOPE, message, ENVELOPE, asks, WITH_CRC, message)
    yield written(2, b"", ENVELOPE, asks, WITH_CRC, asks, MAGIC_ONLY, b"\0\x08\0\0" + asks)
    yield written(5, b"", HEADERS, b"NATS/1.0\r\nNats-TTL: 90\r\n\r\n", ENVELOPE, asks, ENVELOPE, message)
    yield written(8, b"\x20\x10", ENVELOPE, asks, PLAIN, b"x" * 700)


class _Shared:
    """One log for all inputs, as opening one costs more than everything else."""

    log: Log | None = None
    directory: Path | None = None

    @classmethod
    def get(cls) -> Log:
        if cls.log is not None and cls.log.size_bytes > FRESH_LOG_AFTER:
            cls.log.close()
            assert cls.directory is not None
            shutil.rmtree(cls.directory)
            cls.log = None
        if cls.log is None:
            cls.directory = Path(tempfile.mkdtemp(dir=scratch()))
            cls.log = Log.open(cls.directory, stream_id=uuid.uuid4(), partition=0, options=LogOptions())
        return cls.log


class Expected:
    """The oracle: what is stored, and which acks go out."""

    def __init__(self, next_offset: int, check_offsets: bool, readonly: bool) -> None:
        self.first = self.next_offset = next_offset
        self.check_offsets = check_offsets
        self.readonly = readonly
        self.stored: list[api_pb2.Message | None] = []  # None: a TTL decided, and that has its own tests
        self.acks: list[tuple[str, str, int, int]] = []
        self.exact = True

    def add(self, subject: bytes, reply: bytes, payload: bytes) -> None:
        """A message arrives."""
        message = envelope_of(payload)
        if message is None:
            message, enveloped = api_pb2.Message(value=payload), False
        else:
            enveloped = True
        try:
            subject_text, reply_text = subject.decode(), reply.decode()
        except UnicodeDecodeError:
            return
        if any(name.lower() == "nats-ttl" for name in message.headers):
            self.exact = False
        # Of an entry with an unknown field this protobuf drops the header, others the field.
        if any(field.field_number == HEADERS_FIELD for field in UnknownFieldSet(message)):
            self.exact = False
        error = self._error(message, payload, enveloped)
        if error == 0:
            headers = {name: message.headers[name] for name in message.headers}
            headers |= {"subject": subject, "reply": reply}
            self.stored.append(
                api_pb2.Message(
                    offset=self.next_offset, key=message.key, value=message.value, timestamp=NOW,
                    stream="orders", subject=subject_text, replySubject=reply_text, headers=headers,
                )
            )  # fmt: skip
            if enveloped and message.ackPolicy in POLICIES:
                self._ack(message, self.next_offset, 0)
            self.next_offset += 1
        elif enveloped:
            self._ack(message, 0, error)

    def _error(self, message: api_pb2.Message, payload: bytes, enveloped: bool) -> int:
        if len(payload) > MAX_MESSAGE:
            return int(api_pb2.Ack.TOO_LARGE)
        if self.readonly:
            return int(api_pb2.Ack.UNKNOWN)
        offset = message.offset if enveloped else 0
        if self.check_offsets and offset not in (-1, self.next_offset):
            return int(api_pb2.Ack.INCORRECT_OFFSET)
        return 0

    def _ack(self, message: api_pb2.Message, offset: int, error: int) -> None:
        inbox = message.ackInbox.encode()
        if inbox and len(inbox) <= 2048 and is_subject(inbox):
            self.acks.append((message.ackInbox, message.correlationId, offset, error))


def is_subject(text: bytes) -> bool:
    return all(text.split(b".")) and not any(byte <= 32 or byte == 127 for byte in text)


def envelope_of(payload: bytes) -> api_pb2.Message | None:
    """The message in a publish envelope, None when the payload is none."""
    if len(payload) < 8 or payload[:5] != MAGIC + b"\0" or payload[7]:
        return None
    header = payload[5]
    if not 8 <= header <= len(payload):
        return None
    if payload[6] & 1 and (
        header != 12 or crc32c(payload[12:]) != int.from_bytes(payload[8:12], "big")
    ):  # fmt: skip
        return None
    try:
        return api_pb2.Message.FromString(payload[header:])
    except DecodeError:
        return None


def run(data: bytes) -> None:
    script = Script(data)
    options, cuts = script.number(), script.string()
    log = _Shared.get()
    first = log.next_offset
    sink = PartitionSink(
        None, stream=b"orders", base_subject=b"foo", builder=BatchBuilder(), next_offset=first,
        last_timestamp=log.last_timestamp, max_message_bytes=MAX_MESSAGE,
        batch_max_messages=(1024, 1, 2)[options % 3], check_offsets=bool(options & 4),
    )  # fmt: skip
    sink.readonly = bool(options & 8)
    expected = Expected(first, bool(options & 4), bool(options & 8))
    wire = wire_of(script, expected)
    acks = receive(wire, cuts, log, sink)
    stored = read_from(log, first)
    assert sink.messages_received == sink.messages_refused + len(stored)
    assert len(acks) + sink.acks_unsendable <= sink.messages_received
    for message in stored:
        assert (message.stream, message.timestamp) == ("orders", NOW)
    if expected.exact:
        assert stored == expected.stored, f"{stored} but {expected.stored}"
        assert sorted(acks) == sorted(expected.acks), f"{acks} but {expected.acks}"


def wire_of(script: Script, expected: Expected) -> bytes:
    """The bytes of a NATS connection that the script describes; the oracle is told of each message."""
    wire = bytearray()
    subject, reply, headers = b"foo", b"", b""
    while script:
        kind = script.number() % 8
        if kind == CONTROL:
            wire += b"PING\r\n"
            continue
        text = script.string()
        if kind == SUBJECT:
            subject = token(text) or b"foo"
        elif kind == REPLY:
            reply = token(text)
        elif kind == HEADERS:
            headers = text
        else:
            payload = payload_of(kind, text)
            wire += b"HMSG " if headers else b"MSG "
            wire += subject + b" 1 " + reply + b" " * bool(reply)
            wire += b"%d " % len(headers) if headers else b""
            wire += b"%d\r\n%b%b\r\n" % (len(headers) + len(payload), headers, payload)
            if b"nats-ttl" in headers.lower():
                expected.exact = False
            expected.add(subject, reply, payload)
    return bytes(wire)


def payload_of(kind: int, text: bytes) -> bytes:
    if kind == ENVELOPE:
        return MAGIC + b"\0\x08\0\0" + text
    if kind == WITH_CRC:
        return MAGIC + b"\0\x0c\1\0" + crc32c(text).to_bytes(4, "big") + text
    if kind == MAGIC_ONLY:
        return MAGIC + text
    return text


def token(text: bytes) -> bytes:
    """What can stand in a line of the protocol, as a NATS server sends no other."""
    return bytes(byte for byte in text if byte not in b" \t\r\n")


def receive(wire: bytes, cuts: bytes, log: Log, sink: PartitionSink) -> list[tuple[str, str, int, int]]:
    """Let the partition have it, as `broker/partition.py` does; returns the acks."""
    parser = NatsParser(chunk=256)
    parser.attach(1, sink)
    sent = b""
    for piece in pieces(wire, cuts):
        parser.feed(piece)
        while True:
            step = parser.parse(NOW)
            if isinstance(step, bytes):
                assert step == b"PING"
                continue
            parser.take_touched()
            if sink.builder.count:
                log.append(sink.builder)
                sink.appended(log.next_offset)
            sent += sink.refusals()
            if step is None:
                break
    sent += sink.leader_acks.release(log.next_offset, NOW)
    sent += sink.commit_acks.release(log.next_offset, NOW)
    assert len(sink.leader_acks) == len(sink.commit_acks) == 0
    return acks_of(sent)


def acks_of(data: bytes) -> list[tuple[str, str, int, int]]:
    """PUB commands as (inbox, correlation id, offset, error)."""
    acks = []
    while data:
        line, _, rest = data.partition(b"\r\n")
        verb, inbox, size = line.split(b" ")
        assert verb == b"PUB"
        payload, end, data = rest[: int(size)], rest[int(size) : int(size) + 2], rest[int(size) + 2 :]
        assert end == b"\r\n"
        serialized = decode_ack_envelope(payload)
        assert serialized is not None
        ack = api_pb2.Ack.FromString(serialized)
        assert ack.ackInbox.encode() == inbox
        acks.append((ack.ackInbox, ack.correlationId, ack.offset, int(ack.ackError)))
    return acks


def read_from(log: Log, offset: int) -> list[api_pb2.Message]:
    """What was stored, as subscribers get it; theirs must decode."""
    found = []
    while offset < log.next_offset:
        frames, offset = log.read_frames(offset, log.next_offset, message_prefix(b"orders", 0))
        while frames:
            length = int.from_bytes(frames[1:5], "big")
            found.append(api_pb2.Message.FromString(frames[5 : 5 + length]))
            frames = frames[5 + length :]
    return found
