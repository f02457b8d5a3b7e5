"""What a leader and its followers say to each other, as bytes on a link between their brokers.

A link is a connection on which bytes stay in order. It carries many partitions, so each is declared once and
has a short number (an alias) from then on; and within a session only what changes travels. Both ends hold the
same state of each partition: what was said of it last. What is encoded must therefore be sent, in that order;
when a link is lost, both ends begin anew with new codecs.

A message is a row of records, each a byte that says what it is and fields of fixed size, little endian.
Batches themselves are no part of it: a `Data` says how many bytes come behind its message, which whoever
sends and receives passes on untouched.

Invariants:
- An alias is never used for a second partition of a link: what is still on its way for one that was forgotten
  is told from all else, and dropped.
- What cannot have been written by a codec of this version is a `CodecError`, whoever sends it; the link is
  to end then, as nothing behind it can be trusted.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from liftbridge.replication.messages import (
    Accepted,
    Answer,
    Batch,
    BeginAt,
    Data,
    Diverging,
    Fence,
    Fenced,
    Statement,
    ToFollower,
)

Key: TypeAlias = tuple[uuid.UUID, int]
"""A partition: id of its stream, and its number."""

MAX_ALIASES = 1 << 20
"""Partitions that one link may carry at a time."""
MAX_BATCHES = (1 << 16) - 1
"""Batches of one `Data`."""
MAX_NUMBER = (1 << 63) - 1
"""Of offsets, epochs and sessions."""

# Records of a follower.
_DECLARE = struct.Struct("<BI16sI")
_BEGIN = struct.Struct("<BI7Q")
_POSITION = struct.Struct("<BIB")
_FORGET = struct.Struct("<BI")
_GRANT = struct.Struct("<BQ")
# Records of a leader.
_ACCEPTED = struct.Struct("<BIQQq")
_DIVERGING = struct.Struct("<BIQQqQ")
_BEGIN_AT = struct.Struct("<BIQQQ")
_FENCED = struct.Struct("<BIQQB")
_DATA = struct.Struct("<BIBH")
_SESSION = struct.Struct("<QQqQ")
_SIGNED = struct.Struct("<q")
_UNSIGNED = struct.Struct("<Q")
_BATCH = struct.Struct("<BII")

_DECLARES, _BEGINS, _MOVES, _FORGETS, _GRANTS = 1, 2, 3, 4, 5
_ACCEPTS, _DIVERGES, _BEGINS_AT, _FENCES, _HAS_DATA = 1, 2, 3, 4, 5

# What a position says: these fields have changed, in this order.
_NEXT, _LAST_EPOCH, _SYNCED, _LOG_START = 1, 2, 4, 8
_CHANGED = [struct.Struct(f"<{flags.bit_count()}Q") for flags in range(16)]
# What a `Data` says beside its batches.
_NEW_SESSION, _NEW_HIGH_WATERMARK, _NEW_START = 1, 2, 4
# What a batch says beside its size and how many offsets it spans.
_FIRST, _EPOCH, _WIDE = 1, 2, 4
_UINT32 = (1 << 32) - 1

_FENCE_NUMBERS = {
    Fence.OLD_LEADER_EPOCH: 1,
    Fence.UNKNOWN_LEADER_EPOCH: 2,
    Fence.NOT_A_REPLICA: 3,
    Fence.OLD_BROKER_EPOCH: 4,
    Fence.OLD_SESSION: 5,
    Fence.NOT_LEADING: 6,
}
_FENCES_BY_NUMBER = {number: fence for fence, number in _FENCE_NUMBERS.items()}


class CodecError(ValueError):
    """Bytes that no broker of this version sends on a link."""


def _checked(number: int, what: str) -> int:
    if number > MAX_NUMBER:
        raise CodecError(f"{number} is no {what}: larger than {MAX_NUMBER}")
    return number


@dataclass(slots=True)
class _Said:
    """What was said last of the data of a partition, at either end."""

    leader_epoch: int
    session: int
    high_watermark: int
    log_start: int
    next_offset: int = -1  # below 0: no batch was described in this session
    epoch: int = -1


@dataclass(slots=True)
class Heard:
    """What a message of a follower says.

    Attributes:
        statements: the newest of each partition.
        granted: bytes of credit.
        forgotten: partitions that it has nothing to do with any more.
    """

    statements: dict[Key, Statement] = field(default_factory=dict)
    granted: int = 0
    forgotten: list[Key] = field(default_factory=list)


@dataclass(slots=True)
class Told:
    """What a message of a leader says.

    Attributes:
        messages: of partitions, in order; without those of partitions that were forgotten.
        payload: how many bytes of batches come behind the message.
        payload_for: index in `messages` of the `Data` that they belong to, None to drop them.
    """

    messages: list[tuple[Key, ToFollower]] = field(default_factory=list)
    payload: int = 0
    payload_for: int | None = None


class FollowerCodec:
    """The follower's end of a link.

    Arguments:
        broker: the follower's broker, of which all statements are.
    """

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._next_alias = 0
        self._aliases: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._stated: dict[int, Statement] = {}
        self._said: dict[int, _Said] = {}

    def knows(self, key: Key) -> bool:
        """Whether the partition was declared and not forgotten."""
        return key in self._aliases

    def statement(self, key: Key, statement: Statement) -> bytes:
        """Where a partition's log is; declares the partition when it is new on this link."""
        assert statement.broker == self._broker, statement
        alias = self._aliases.get(key)
        declared = b""
        if alias is None:
            assert len(self._aliases) < MAX_ALIASES, "more partitions than a link may carry"
            alias = self._next_alias
            self._next_alias += 1
            self._aliases[key] = alias
            self._keys[alias] = key
            declared = _DECLARE.pack(_DECLARES, alias, key[0].bytes, key[1])
        before = self._stated.get(alias)
        self._stated[alias] = statement
        if (
            before is None
            or statement.session != before.session
            or statement.leader_epoch != before.leader_epoch
            or statement.broker_epoch != before.broker_epoch
        ):
            return declared + _BEGIN.pack(
                _BEGINS,
                alias,
                statement.broker_epoch,
                statement.leader_epoch,
                statement.session,
                statement.next_offset,
                statement.last_epoch,
                statement.synced_offset,
                statement.log_start,
            )
        return _moved(alias, before, statement)

    def forget(self, key: Key) -> bytes:
        """The partition has nothing to do with this link any more; nothing when it never had."""
        alias = self._aliases.pop(key, None)
        if alias is None:
            return b""
        del self._keys[alias]
        self._stated.pop(alias, None)
        self._said.pop(alias, None)
        return _FORGET.pack(_FORGETS, alias)

    def grant(self, size: int) -> bytes:
        """So many bytes of credit."""
        return _GRANT.pack(_GRANTS, size)

    def decode(self, message: bytes) -> Told:
        """What the leader says. Raises CodecError."""
        told = Told()
        position, size = 0, len(message)
        try:
            while position < size:
                if told.payload:
                    raise CodecError("a description of data is not the last of its message")
                decode = _OF_LEADER.get(message[position])
                if decode is None:
                    raise CodecError(f"a leader says something of kind {message[position]}")
                position = decode(self, message, position, told)
        except struct.error:
            raise CodecError("what a leader says is cut off") from None
        return told

    def _key(self, alias: int) -> Key | None:
        """None for one that was forgotten."""
        if alias >= self._next_alias:
            raise CodecError(f"a leader speaks of partition {alias}, which was never declared")
        return self._keys.get(alias)

    def _add(self, told: Told, alias: int, answer: Answer) -> None:
        _checked(answer.leader_epoch, "leader epoch")
        _checked(answer.session, "session")
        key = self._key(alias)
        if key is not None:
            told.messages.append((key, answer))

    def _accepted(self, message: bytes, position: int, told: Told) -> int:
        _, alias, epoch, session, high_watermark = _ACCEPTED.unpack_from(message, position)
        self._add(told, alias, Accepted(epoch, session, _offset(high_watermark)))
        return position + _ACCEPTED.size

    def _diverging(self, message: bytes, position: int, told: Told) -> int:
        _, alias, epoch, session, of, end = _DIVERGING.unpack_from(message, position)
        self._add(told, alias, Diverging(epoch, session, of, _checked(end, "offset")))
        return position + _DIVERGING.size

    def _begin_at(self, message: bytes, position: int, told: Told) -> int:
        _, alias, epoch, session, start = _BEGIN_AT.unpack_from(message, position)
        self._add(told, alias, BeginAt(epoch, session, _checked(start, "offset")))
        return position + _BEGIN_AT.size

    def _fenced(self, message: bytes, position: int, told: Told) -> int:
        _, alias, epoch, session, number = _FENCED.unpack_from(message, position)
        reason = _FENCES_BY_NUMBER.get(number)
        if reason is None:
            raise CodecError(f"a leader fences for reason {number}, which this version does not know")
        self._add(told, alias, Fenced(epoch, session, reason))
        return position + _FENCED.size

    def _data(self, message: bytes, position: int, told: Told) -> int:
        _, alias, flags, count = _DATA.unpack_from(message, position)
        position += _DATA.size
        key = self._key(alias)
        said = self._said.get(alias)
        if flags == _NEW_SESSION:
            epoch, session, high_watermark, start = _SESSION.unpack_from(message, position)
            position += _SESSION.size
            said = _Said(
                _checked(epoch, "leader epoch"),
                _checked(session, "session"),
                _offset(high_watermark),
                _checked(start, "offset"),
            )
        elif flags & ~(_NEW_HIGH_WATERMARK | _NEW_START):
            raise CodecError(f"a description of data has flags {flags:#x}")
        elif said is None:
            if key is not None:
                raise CodecError("a leader sends data in a session that it has not named")
            said = _Said(0, 0, -1, 0, 0, 0)  # of a partition that was forgotten: read over
        if flags & _NEW_HIGH_WATERMARK:
            said.high_watermark = _offset(_SIGNED.unpack_from(message, position)[0])
            position += _SIGNED.size
        if flags & _NEW_START:
            said.log_start = _checked(_UNSIGNED.unpack_from(message, position)[0], "offset")
            position += _UNSIGNED.size
        batches, position, size = _batches(message, position, count, said)
        if key is not None:
            self._said[alias] = said
            told.payload_for = len(told.messages) if size else None
            data = Data(said.leader_epoch, said.session, batches, said.high_watermark, said.log_start)
            told.messages.append((key, data))
        told.payload = size
        return position


def _moved(alias: int, before: Statement, statement: Statement) -> bytes:
    flags = 0
    changed: list[int] = []
    if statement.next_offset != before.next_offset:
        flags |= _NEXT
        changed.append(statement.next_offset)
    if statement.last_epoch != before.last_epoch:
        flags |= _LAST_EPOCH
        changed.append(statement.last_epoch)
    if statement.synced_offset != before.synced_offset:
        flags |= _SYNCED
        changed.append(statement.synced_offset)
    if statement.log_start != before.log_start:
        flags |= _LOG_START
        changed.append(statement.log_start)
    return _POSITION.pack(_MOVES, alias, flags) + _CHANGED[flags].pack(*changed)


def _offset(number: int) -> int:
    """A high watermark, -1 for none."""
    if number < -1:
        raise CodecError(f"{number} is no high watermark")
    return number


def _batches(message: bytes, position: int, count: int, said: _Said) -> tuple[tuple[Batch, ...], int, int]:
    """The descriptions of batches, where they end, and the bytes that the batches have together."""
    batches: list[Batch] = []
    total = 0
    for _ in range(count):
        flags, size, span = _BATCH.unpack_from(message, position)
        position += _BATCH.size
        if flags & ~(_FIRST | _EPOCH | _WIDE):
            raise CodecError(f"a description of a batch has flags {flags:#x}")
        if flags & _FIRST:
            (said.next_offset,) = _UNSIGNED.unpack_from(message, position)
            position += _UNSIGNED.size
        if flags & _EPOCH:
            (said.epoch,) = _UNSIGNED.unpack_from(message, position)
            position += _UNSIGNED.size
        if flags & _WIDE:
            (span,) = _UNSIGNED.unpack_from(message, position)
            position += _UNSIGNED.size
        if said.next_offset < 0 or said.epoch < 0:
            raise CodecError("the first batch of a session does not say where it begins")
        if not size:
            raise CodecError("a batch has no bytes")
        first, epoch = said.next_offset, _checked(said.epoch, "leader epoch")
        said.next_offset = _checked(first + span, "offset")
        batches.append(Batch(first, said.next_offset, epoch, size))
        total += size
    return tuple(batches), position, total


_OF_LEADER: dict[int, Callable[[FollowerCodec, bytes, int, Told], int]] = {
    _ACCEPTS: FollowerCodec._accepted,
    _DIVERGES: FollowerCodec._diverging,
    _BEGINS_AT: FollowerCodec._begin_at,
    _FENCES: FollowerCodec._fenced,
    _HAS_DATA: FollowerCodec._data,
}


class LeaderCodec:
    """The leader's end of a link.

    Arguments:
        broker: the follower's broker, as it has proved: all its statements are of it.
    """

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._next_alias = 0
        self._aliases: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._stated: dict[int, Statement] = {}
        self._said: dict[int, _Said] = {}

    def knows(self, key: Key) -> bool:
        """Whether the follower has declared the partition and not forgotten it."""
        return key in self._aliases

    def decode(self, message: bytes) -> Heard:
        """What the follower says. Raises CodecError."""
        heard = Heard()
        position, size = 0, len(message)
        try:
            while position < size:
                decode = _OF_FOLLOWER.get(message[position])
                if decode is None:
                    raise CodecError(f"a follower says something of kind {message[position]}")
                position = decode(self, message, position, heard)
        except struct.error:
            raise CodecError("what a follower says is cut off") from None
        return heard

    def _declare(self, message: bytes, position: int, heard: Heard) -> int:
        _, alias, stream, partition = _DECLARE.unpack_from(message, position)
        key = uuid.UUID(bytes=stream), partition
        if alias != self._next_alias or key in self._aliases:
            raise CodecError(f"partition {partition} of stream {key[0]} is declared as {alias}, out of turn")
        if len(self._aliases) >= MAX_ALIASES:
            raise CodecError(f"a follower declares more than {MAX_ALIASES} partitions")
        self._next_alias += 1
        self._aliases[key] = alias
        self._keys[alias] = key
        return position + _DECLARE.size

    def _declared(self, alias: int) -> Key:
        key = self._keys.get(alias)
        if key is None:
            raise CodecError(f"a follower speaks of partition {alias}, which it has not declared")
        return key

    def _begin(self, message: bytes, position: int, heard: Heard) -> int:
        _, alias, *numbers = _BEGIN.unpack_from(message, position)
        self._state(alias, Statement(self._broker, *numbers), heard)
        return position + _BEGIN.size

    def _move(self, message: bytes, position: int, heard: Heard) -> int:
        _, alias, flags = _POSITION.unpack_from(message, position)
        position += _POSITION.size
        before = self._stated.get(alias)
        if before is None or flags >= len(_CHANGED):
            raise CodecError(f"partition {alias} has moved by {flags:#x} in a session that was not begun")
        changed: struct.Struct = _CHANGED[flags]
        values = iter(changed.unpack_from(message, position))
        statement = Statement(
            before.broker,
            before.broker_epoch,
            before.leader_epoch,
            before.session,
            next(values) if flags & _NEXT else before.next_offset,
            next(values) if flags & _LAST_EPOCH else before.last_epoch,
            next(values) if flags & _SYNCED else before.synced_offset,
            next(values) if flags & _LOG_START else before.log_start,
        )
        self._state(alias, statement, heard)
        return position + changed.size

    def _state(self, alias: int, statement: Statement, heard: Heard) -> None:
        key = self._declared(alias)
        for number in (
            statement.broker_epoch,
            statement.leader_epoch,
            statement.session,
            statement.next_offset,
            statement.last_epoch,
            statement.synced_offset,
            statement.log_start,
        ):
            _checked(number, "number of a statement")
        if statement.log_start > statement.next_offset:
            raise CodecError(
                f"a log of partition {key[1]} of stream {key[0]} begins at {statement.log_start} and ends "
                f"at {statement.next_offset}"
            )
        self._stated[alias] = statement
        heard.statements[key] = statement

    def _forget(self, message: bytes, position: int, heard: Heard) -> int:
        _, alias = _FORGET.unpack_from(message, position)
        key = self._declared(alias)
        del self._aliases[key], self._keys[alias]
        self._stated.pop(alias, None)
        self._said.pop(alias, None)
        heard.statements.pop(key, None)
        heard.forgotten.append(key)
        return position + _FORGET.size

    def _granted(self, message: bytes, position: int, heard: Heard) -> int:
        granted: int = _GRANT.unpack_from(message, position)[1]
        heard.granted += _checked(granted, "credit")
        return position + _GRANT.size

    def answer(self, key: Key, answer: Answer) -> bytes:
        """An answer; nothing when the follower has forgotten the partition."""
        alias = self._aliases.get(key)
        if alias is None:
            return b""
        epoch, session = answer.leader_epoch, answer.session
        if isinstance(answer, Accepted):
            return _ACCEPTED.pack(_ACCEPTS, alias, epoch, session, answer.high_watermark)
        if isinstance(answer, Diverging):
            return _DIVERGING.pack(_DIVERGES, alias, epoch, session, answer.epoch, answer.end_offset)
        if isinstance(answer, BeginAt):
            return _BEGIN_AT.pack(_BEGINS_AT, alias, epoch, session, answer.log_start)
        return _FENCED.pack(_FENCES, alias, epoch, session, _FENCE_NUMBERS[answer.reason])

    def data(self, key: Key, data: Data) -> bytes:
        """The description of data, behind which its batches are to be sent; nothing when the follower has
        forgotten the partition, and then no batches."""
        alias = self._aliases.get(key)
        if alias is None:
            return b""
        assert len(data.batches) <= MAX_BATCHES, len(data.batches)
        said = self._said.get(alias)
        parts = [b""]
        flags = 0
        if said is None or said.session != data.session or said.leader_epoch != data.leader_epoch:
            said = _Said(data.leader_epoch, data.session, data.high_watermark, data.log_start)
            self._said[alias] = said
            flags = _NEW_SESSION
            parts.append(_SESSION.pack(data.leader_epoch, data.session, data.high_watermark, data.log_start))
        else:
            if said.high_watermark != data.high_watermark:
                said.high_watermark = data.high_watermark
                flags |= _NEW_HIGH_WATERMARK
                parts.append(_SIGNED.pack(data.high_watermark))
            if said.log_start != data.log_start:
                said.log_start = data.log_start
                flags |= _NEW_START
                parts.append(_UNSIGNED.pack(data.log_start))
        parts[0] = _DATA.pack(_HAS_DATA, alias, flags, len(data.batches))
        for batch in data.batches:
            _describe(batch, said, parts)
        return b"".join(parts)


def _describe(batch: Batch, said: _Said, parts: list[bytes]) -> None:
    flags = 0
    span = batch.next_offset - batch.first
    explicit: list[bytes] = []
    if batch.first != said.next_offset:
        flags |= _FIRST
        explicit.append(_UNSIGNED.pack(batch.first))
    if batch.epoch != said.epoch:
        flags |= _EPOCH
        explicit.append(_UNSIGNED.pack(batch.epoch))
    if span > _UINT32:
        flags |= _WIDE
        explicit.append(_UNSIGNED.pack(span))
        span = 0
    said.next_offset, said.epoch = batch.next_offset, batch.epoch
    parts.append(_BATCH.pack(flags, batch.size, span))
    parts += explicit


_OF_FOLLOWER: dict[int, Callable[[LeaderCodec, bytes, int, Heard], int]] = {
    _DECLARES: LeaderCodec._declare,
    _BEGINS: LeaderCodec._begin,
    _MOVES: LeaderCodec._move,
    _FORGETS: LeaderCodec._forget,
    _GRANTS: LeaderCodec._granted,
}
