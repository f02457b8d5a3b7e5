"""What the tests of the log share: batches out of plain records, frames back into messages."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from liftbridge.log import BatchBuilder, CorruptBatchError, Log, LogOptions
from liftbridge.proto import api_pb2

# Where thousands of logs can be made without the syncs of a real disk; None where there is no such place.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

STREAM = uuid.UUID("7d8ac2c5-9d0e-4c8b-8f0c-1f2e3d4c5b6a")
PREFIX = api_pb2.Message(stream="orders", partition=3).SerializeToString()
SEGMENT_HEADER = 4096
BATCH_HEADER = 80


@dataclass(frozen=True)
class Record:
    """A record as it is published; `timestamp` in ns."""

    value: bytes | None
    timestamp: int
    subject: bytes = b"orders"
    reply: bytes = b""
    key: bytes | None = None
    headers: dict[str, bytes] = field(default_factory=dict)


def encoded_headers(headers: dict[str, bytes]) -> bytes:
    return api_pb2.Message(headers=headers).SerializeToString()


def batch(records: Iterable[Record]) -> BatchBuilder:
    builder = BatchBuilder()
    for record in records:
        builder.add_record(
            value=record.value,
            timestamp=record.timestamp,
            subject=record.subject,
            reply=record.reply,
            key=record.key,
            headers=encoded_headers(record.headers),
        )
    return builder


def numbered(first: int, count: int, size: int = 20) -> BatchBuilder:
    """A batch of records whose value tells their offset and whose timestamp is 1000 times it."""
    return batch(Record(b"%d:" % n + b"x" * size, 1000 * n) for n in range(first, first + count))


def messages(frames: bytes) -> Iterator[api_pb2.Message]:
    while frames:
        compressed, length = struct.unpack_from(">BI", frames)
        assert compressed == 0
        yield api_pb2.Message.FromString(frames[5 : 5 + length])
        assert len(frames) >= 5 + length
        frames = frames[5 + length :]


def expected(offset: int, record: Record) -> api_pb2.Message:
    """The message a subscriber must get for a record."""
    return api_pb2.Message(
        offset=offset,
        stream="orders",
        partition=3,
        timestamp=record.timestamp,
        subject=record.subject.decode(),
        replySubject=record.reply.decode(),
        key=record.key or b"",
        value=record.value or b"",
        headers={**record.headers, "subject": record.subject, "reply": record.reply},
    )


def read_all(
    log: Log, start: int = 0, limit: int | None = None, max_bytes: int = 262144
) -> list[api_pb2.Message]:
    limit = log.next_offset if limit is None else limit
    found: list[api_pb2.Message] = []
    offset = start
    while True:
        frames, following = log.read_frames(offset, limit, PREFIX, max_bytes)
        if not frames and (following >= limit or following == offset):
            return found
        assert following > offset
        offset = following
        found += messages(frames)


def read_all_reverse(log: Log, start: int, floor: int = 0, max_bytes: int = 262144) -> list[api_pb2.Message]:
    found: list[api_pb2.Message] = []
    offset = start
    while True:
        frames, following = log.read_frames_reverse(offset, floor, PREFIX, max_bytes)
        if not frames:
            return found
        assert following < offset
        offset = following
        found += messages(frames)


def read_past_damage(log: Log) -> tuple[list[api_pb2.Message], list[CorruptBatchError]]:
    """Everything that can be read, and the errors of what cannot, each of which tells where to go on."""
    found: list[api_pb2.Message] = []
    damage: list[CorruptBatchError] = []
    offset = log.start_offset
    while offset < log.next_offset:
        try:
            frames, following = log.read_frames(offset, log.next_offset, PREFIX)
            found += messages(frames)
        except CorruptBatchError as error:
            assert error.first_offset <= offset < error.next_offset
            damage.append(error)
            following = error.next_offset
        assert following > offset
        offset = following
    return found, damage


def read_past_damage_reverse(log: Log) -> list[api_pb2.Message]:
    """The same from the end to the beginning; only what can be read."""
    found: list[api_pb2.Message] = []
    offset = log.next_offset - 1
    while offset >= log.start_offset:
        try:
            frames, following = log.read_frames_reverse(offset, log.start_offset, PREFIX)
            found += messages(frames)
        except CorruptBatchError as error:
            assert error.first_offset <= offset < error.next_offset
            following = error.first_offset - 1
        assert following < offset
        offset = following
    return found


def check_past_damage(log: Log, everything: int) -> set[int]:
    """All numbered records are read or told to be lost, in both directions; returns those that are lost."""
    found, damage = read_past_damage(log)
    assert read_past_damage_reverse(log) == found[::-1]
    lost = {offset for error in damage for offset in range(error.first_offset, error.next_offset)}
    assert set(numbers(found)) == set(range(everything)) - lost
    return lost


def numbers(found: Iterable[api_pb2.Message]) -> list[int]:
    """The offsets of messages from `numbered`, each checked against its value."""
    result = []
    for message in found:
        assert message.value.startswith(b"%d:" % message.offset), "a record is not where it was written"
        assert message.timestamp == 1000 * message.offset
        result.append(message.offset)
    return result


def open_log(directory: Path, *, power_lost: bool = False, **options: int) -> Log:
    return Log.open(
        directory, stream_id=STREAM, partition=3, options=LogOptions(**options), power_lost=power_lost
    )


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def indexes(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.index"))
