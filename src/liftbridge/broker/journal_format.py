"""The files of the metadata journal, byte by byte.

Files of `<data.dir>/metadata/`, integers little endian:

    journal-<20 digits>    header, then records; the digits are the index of the entry before its first
        header: magic, version u32, cluster UUID 16 bytes, node id u64, base index u64, base term u64, CRC-32C
                u32 of these
        record: magic u32, payload length u32, sequence u64 (of the record in its file, from 1), CRC-32C u32
                of these, CRC-32C u32 of these and of the payload; then the payload
        payload: items, each kind u8, term u64, index u64, length u32, and as many bytes
            an entry of the log: its kind, term and index, its data
            HARD_STATE: the term that the node is in, no index; its vote as u64, or nothing
        Header and records begin on sectors of 512 bytes and are filled up to the next one with 0xFF: writing
        one never rewrites a sector of another, and a sector of zeros is one that was never written.
    snapshot-<20 digits>   the whole state after the entry of that index
        header: magic, version u32, cluster UUID, index u64, term u64, members length u32, state length u64,
                CRC-32C u32 of these and of what follows; then members, then the state

What is written together is one record, as whole or not at all is how it must be found: if a vote and two
entries were records of their own, a loss of power could keep the last and lose the first, which would look
like damage.

Version 1 held operations without terms, of a server that was its own cluster.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from liftbridge._log import crc32c
from liftbridge.raft import (
    Entry,
    EntryKind,
    HardState,
    MembersError,
    Snapshot,
    SnapshotMeta,
    decode_members,
    encode_members,
)

VERSION = 2
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
JOURNAL = "journal-"
SNAPSHOT = "snapshot-"
# The unit in which a disk writes all or nothing.
SECTOR = 512

_JOURNAL_MAGIC = b"LBJOURNL"
_SNAPSHOT_MAGIC = b"LBSNAPSH"
_RECORD_MAGIC = b"\xa7LBR"
_CRC = struct.Struct("<I")
_START = struct.Struct("<8sI16s")  # of both headers, in all versions
_JOURNAL_HEADER = struct.Struct("<8sI16sQQQ")
_SNAPSHOT_HEADER = struct.Struct("<8sI16sQQIQ")
_RECORD_HEADER = struct.Struct("<4sIQ")
_RECORD_BYTES = _RECORD_HEADER.size + 2 * _CRC.size
_ITEM = struct.Struct("<BQQI")
_VOTE = struct.Struct("<Q")
_FILLER = b"\xff"

# Numbers on disk, for ever; those of the entries' kinds are not the core's own.
_HARD_STATE = 1
_KINDS = {2: EntryKind.EMPTY, 3: EntryKind.COMMAND, 4: EntryKind.MEMBERS}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}

ITEM_BYTES = _ITEM.size


class JournalError(Exception):
    """The journal cannot be used; the text says why and what to do."""


class JournalDamagedError(JournalError):
    """A file does not hold what was written to it.

    Attributes:
        path: the file.
        position: where in it, bytes.
    """

    def __init__(self, path: Path, position: int, reason: str) -> None:
        super().__init__(
            f"{path} is damaged at byte {position}: {reason}. Nothing was changed; restore the directory "
            f"{path.parent} from a copy, or move it away to look at it"
        )
        self.path = path
        self.position = position


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """What a journal file says of itself.

    Attributes:
        cluster_id: UUID of the cluster whose entries these are.
        node_id: of the node in the consensus that wrote it.
        base, base_term: index and term of the entry before its first, 0 without one.
    """

    cluster_id: uuid.UUID
    node_id: int
    base: int
    base_term: int

    def encode(self) -> bytes:
        """The first sector of the file."""
        header = _JOURNAL_HEADER.pack(
            _JOURNAL_MAGIC, VERSION, self.cluster_id.bytes, self.node_id, self.base, self.base_term
        )
        return _whole_sectors(header + _CRC.pack(crc32c(header)))

    @classmethod
    def decode(cls, path: Path, data: bytes, base: int) -> JournalHeader:
        """The header of the journal file with those contents that follows index `base`."""
        size = _JOURNAL_HEADER.size
        _check_version(path, data, _JOURNAL_MAGIC, "a journal", size + _CRC.size)
        if crc32c(data[:size]) != _CRC.unpack_from(data, size)[0]:
            raise JournalDamagedError(path, 0, "the checksum of its header is wrong")
        _, _, cluster, node_id, stored_base, base_term = _JOURNAL_HEADER.unpack_from(data)
        if stored_base != base:
            raise JournalDamagedError(path, 0, f"it is the journal that follows index {stored_base}")
        return cls(uuid.UUID(bytes=cluster), node_id, base, base_term)


def encode_snapshot(snapshot: Snapshot, cluster_id: uuid.UUID) -> bytes:
    """The file of a snapshot."""
    meta = snapshot.meta
    members = encode_members(meta.members)
    header = _SNAPSHOT_HEADER.pack(
        _SNAPSHOT_MAGIC,
        VERSION,
        cluster_id.bytes,
        meta.index,
        meta.term,
        len(members),
        len(snapshot.state),
    )
    crc = crc32c(snapshot.state, crc32c(members, crc32c(header)))
    return b"".join((header, _CRC.pack(crc), members, snapshot.state))


def decode_snapshot(path: Path, data: bytes, index: int) -> tuple[Snapshot, uuid.UUID]:
    """The snapshot of that index with those contents, and the cluster that it is of."""
    size = _SNAPSHOT_HEADER.size
    _check_version(path, data, _SNAPSHOT_MAGIC, "a snapshot", size + _CRC.size)
    _, _, cluster, stored_index, term, members_bytes, state_bytes = _SNAPSHOT_HEADER.unpack_from(data)
    body = data[size + _CRC.size :]
    if crc32c(body, crc32c(data[:size])) != _CRC.unpack_from(data, size)[0]:
        raise JournalDamagedError(path, 0, "its checksum is wrong")
    if (stored_index, members_bytes + state_bytes) != (index, len(body)):
        raise JournalDamagedError(path, 0, f"it is the snapshot of index {stored_index}")
    try:
        members = decode_members(body[:members_bytes])
    except MembersError as error:
        raise JournalDamagedError(path, 0, str(error)) from error
    return Snapshot(SnapshotMeta(index, term, members), body[members_bytes:]), uuid.UUID(bytes=cluster)


def journal_path(directory: Path, base: int) -> Path:
    """The journal that follows an index."""
    return directory / f"{JOURNAL}{base:020}"


def snapshot_path(directory: Path, index: int) -> Path:
    """The snapshot of an index."""
    return directory / f"{SNAPSHOT}{index:020}"


def listed(directory: Path, prefix: str) -> dict[int, Path]:
    """The files of one kind by the index in their name, ascending."""
    found = {}
    for path in directory.glob(prefix + "?" * 20):
        digits = path.name.removeprefix(prefix)
        if digits.isascii() and digits.isdigit():
            found[int(digits)] = path
    return dict(sorted(found.items()))


def encode_items(hard_state: HardState | None, entries: Sequence[Entry]) -> bytes:
    """The payload of a record that makes these durable together."""
    parts = []
    if hard_state is not None:
        vote = b"" if hard_state.vote is None else _VOTE.pack(hard_state.vote)
        parts += [_ITEM.pack(_HARD_STATE, hard_state.term, 0, len(vote)), vote]
    for entry in entries:
        parts += [_ITEM.pack(_NUMBERS[entry.kind], entry.term, entry.index, len(entry.data)), entry.data]
    return b"".join(parts)


def decode_items(payload: bytes) -> Iterator[HardState | Entry]:
    """What a record holds, in order. Raises ValueError when it is none of ours: the checksum was right, so
    another version has written it."""
    position = 0
    while position < len(payload):
        if position + _ITEM.size > len(payload):
            raise ValueError("an item is cut off")
        number, term, index, length = _ITEM.unpack_from(payload, position)
        position += _ITEM.size
        data = payload[position : position + length]
        position += length
        if len(data) != length:
            raise ValueError("an item is cut off")
        if number == _HARD_STATE:
            yield HardState(term, _VOTE.unpack(data)[0] if data else None)
        elif number in _KINDS:
            yield Entry(index, term, _KINDS[number], data)
        else:
            raise ValueError(
                f"it holds an item of kind {number}, which this version does not know; start the version "
                "that wrote it, or a newer one"
            )


def encode_record(sequence: int, payload: bytes) -> bytes:
    """A record, filled up to whole sectors."""
    header = _RECORD_HEADER.pack(_RECORD_MAGIC, len(payload), sequence)
    header += _CRC.pack(crc32c(header))
    return _whole_sectors(header + _CRC.pack(crc32c(payload, crc32c(header))) + payload)


def parse_record(data: bytes, position: int, sequence: int) -> tuple[bytes | None, str]:
    """The payload of the record at a position, or None and why there is no valid one of that sequence."""
    header = _parse_header(data, position)
    if header is None:
        return None, "there is no record header"
    length, stored = header
    start = position + _RECORD_BYTES
    if start + length > len(data):
        return None, f"record {stored} ends beyond the file"
    payload = data[start : start + length]
    (crc,) = _CRC.unpack_from(data, start - _CRC.size)
    if crc != crc32c(payload, crc32c(data[position : start - _CRC.size])):
        return None, f"the checksum of record {stored} is wrong"
    if stored != sequence:
        return None, f"it holds record {stored} where {sequence} was expected"
    return payload, ""


def record_bytes(payload: bytes) -> int:
    """What the record of a payload takes in the file, bytes."""
    return _sectors(_RECORD_BYTES + len(payload)) * SECTOR


def is_unfinished(data: bytes, position: int) -> bool:
    """Whether what is at a position, not a valid record, is one that a crash left unfinished.

    It is when nothing valid follows, and it lacks something: the file ends inside it, or a sector of it was
    never written and reads as zeros.
    """
    for following in range(position + SECTOR, len(data), SECTOR):
        header = _parse_header(data, following)
        if header is not None and parse_record(data, following, header[1])[0] is not None:
            return False
    if position + _RECORD_BYTES > len(data):
        return True
    header = _parse_header(data, position)
    if header is not None and position + _RECORD_BYTES + header[0] > len(data):
        return True
    return any(not any(data[start : start + SECTOR]) for start in range(position, len(data), SECTOR))


def _parse_header(data: bytes, position: int) -> tuple[int, int] | None:
    """Payload length and sequence of the record at a position, None when no record header is there."""
    if position + _RECORD_BYTES > len(data):
        return None
    magic, length, sequence = _RECORD_HEADER.unpack_from(data, position)
    (crc,) = _CRC.unpack_from(data, position + _RECORD_HEADER.size)
    if magic != _RECORD_MAGIC or crc != crc32c(data[position : position + _RECORD_HEADER.size]):
        return None
    return length, sequence


def _check_version(path: Path, data: bytes, magic: bytes, kind: str, size: int) -> None:
    """What has to be known before the rest of a header can be read."""
    if len(data) < size:
        raise JournalDamagedError(path, 0, f"{kind} of {len(data)} bytes has no header")
    stored_magic, version, _ = _START.unpack_from(data)
    if stored_magic != magic:
        raise JournalDamagedError(path, 0, f"it does not begin as {kind} does")
    if version != VERSION:
        raise JournalError(
            f"{path} has format version {version}, this version of liftbridge knows {VERSION}; start the "
            "version that wrote it, or a newer one"
        )


def _sectors(size: int) -> int:
    return -(-size // SECTOR)


def _whole_sectors(data: bytes) -> bytes:
    return data.ljust(_sectors(len(data)) * SECTOR, _FILLER)
