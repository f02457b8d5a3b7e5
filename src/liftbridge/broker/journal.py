"""The metadata journal: every operation the cluster has agreed on, durable before anybody is told of it.

Files of `<data.dir>/metadata/`, integers little endian:

    journal-<20 digits>    header, then one record per operation; the digits are the index before its first
        header: magic, version u32, cluster UUID 16 bytes, base index u64, CRC-32C u32 of these
        record: magic u32, payload length u32, index u64, CRC-32C u32 of these, CRC-32C u32 of these and of
                the payload; then the payload
        Header and records begin on sectors of 512 bytes and are filled up to the next one with 0xFF: writing
        one never rewrites a sector of another, and a sector of zeros is one that was never written.
    snapshot-<20 digits>   the whole state after the operation of that index
        header: magic, version u32, cluster UUID, index u64, length u64, CRC-32C u32 of these and of the body;
        then the body

Both kinds of file come into being by renaming a synced file, so a header is never half written. A snapshot is
taken by beginning a new journal, then storing the snapshot of that index, then deleting what is older than
the snapshot before it: two snapshots are kept with the journals since the older one, so one damaged snapshot
costs nothing. Older journals are kept while somebody has yet to read them (`keep_after`). A snapshot without
the journal of the same index is one whose journal was lost.

Invariants:
- `append` returns when the record is on the disk. Indices are consecutive.
- A crash at any moment leaves the records of all finished appends, and perhaps the one under way.
- A crash can leave one unfinished record at the end of the newest journal. It is told from damage by what it
  lacks: the file ends inside it, or sectors of it were never written and read as zeros. Anything else that is
  not a valid record is damage: start-up refuses with the place, and nothing is dropped silently.
- An error while syncing is final. Whether the record is on the disk is unknown then, and a second attempt
  that succeeds would prove nothing.

The calls block: the controller makes them in worker threads, one at a time.
"""

from __future__ import annotations

import logging
import os
import struct
import uuid
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from liftbridge._log import crc32c
from liftbridge.broker.durable import (
    TEMPORARY,
    StepHook,
    make_directory,
    no_hook,
    replace_file,
    sync_directory,
    sync_file,
    write_all,
)

logger = logging.getLogger("liftbridge.metadata")

VERSION = 1
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
KEPT_JOURNALS = 8

_JOURNAL = "journal-"
_SNAPSHOT = "snapshot-"
_JOURNAL_MAGIC = b"LBJOURNL"
_SNAPSHOT_MAGIC = b"LBSNAPSH"
_RECORD_MAGIC = b"\xa7LBR"
_CRC = struct.Struct("<I")
_JOURNAL_HEADER = struct.Struct("<8sI16sQ")
_SNAPSHOT_HEADER = struct.Struct("<8sI16sQQ")
_RECORD_HEADER = struct.Struct("<4sIQ")
_RECORD_BYTES = _RECORD_HEADER.size + 2 * _CRC.size
# The unit in which a disk writes all or nothing.
_SECTOR = 512
_FILLER = b"\xff"


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


@dataclass(frozen=True)
class Recovered:
    """What a journal held when it was opened.

    Attributes:
        snapshot: the newest usable state, None when there is none.
        snapshot_index: index of the operation that state ends with, 0 without one.
        snapshot_path: the file it was read from.
        entries: index and payload of every operation after it, in order.
    """

    snapshot: bytes | None
    snapshot_index: int
    snapshot_path: Path | None
    entries: list[tuple[int, bytes]]


@dataclass
class Journal:
    """An open journal. Made by `create` or `open`; not safe for two threads at a time.

    Attributes:
        directory: where its files are.
        cluster_id: UUID of the cluster whose operations these are.
        last_index: index of the newest record.
        snapshot_entries: operations after which a snapshot is due.
        snapshot_bytes: bytes of journal after which a snapshot is due.
        failed: why no append is possible any more, None while it is.
        keep_after: index after which `read_entries` is to find every operation, None for no such wish. It is
            granted for KEPT_JOURNALS journals that recovery does not need.
    """

    directory: Path
    cluster_id: uuid.UUID
    last_index: int
    snapshot_entries: int = 8192
    snapshot_bytes: int = 64 * 1024 * 1024
    failed: str | None = None
    keep_after: int | None = None
    _base: int = 0
    _snapshot_index: int = 0  # of the newest snapshot known to be good, 0 without one
    _descriptor: int = -1
    _end: int = 0
    _hook: StepHook = field(default=no_hook, repr=False)

    @staticmethod
    def exists(directory: Path) -> bool:
        """Whether a journal has been created in the directory."""
        return bool(_listed(directory, _JOURNAL) or _listed(directory, _SNAPSHOT))

    @classmethod
    def create(cls, directory: Path, cluster_id: uuid.UUID, *, hook: StepHook = no_hook) -> Journal:
        """Create and open an empty journal; the directory too when it is missing.

        Raises JournalError when there is one, OSError when the system refuses.
        """
        if cls.exists(directory):
            raise JournalError(f"{directory} holds a metadata journal already; open it or move it away")
        make_directory(directory)
        hook("directory")
        journal = cls(directory, cluster_id, 0, _hook=hook)
        journal._begin(0)
        return journal

    @classmethod
    def open(cls, directory: Path, *, hook: StepHook = no_hook) -> tuple[Journal, Recovered]:
        """Open the journal of a directory and read what it holds.

        Leftovers of an interrupted write are removed. Raises JournalError when there is none, when a file
        comes from another version or cluster, or (JournalDamagedError) is damaged; OSError when the system
        refuses.
        """
        if not cls.exists(directory):
            raise JournalError(f"{directory} holds no metadata journal")
        for leftover in directory.glob("*" + TEMPORARY):
            leftover.unlink()
        hook("leftovers removed")
        recovery = _Recovery(directory)
        recovered = recovery.run()
        assert recovery.cluster_id is not None
        journal = cls(
            directory,
            recovery.cluster_id,
            recovery.last_index,
            _base=recovery.base,
            _snapshot_index=recovered.snapshot_index,
            _hook=hook,
        )
        journal._attach(_journal_path(directory, recovery.base), recovery.end)
        return journal, recovered

    def append(self, index: int, payload: bytes) -> None:
        """Store one operation; it is on the disk when this returns.

        Arguments:
            index: the one after `last_index`.
            payload: the encoded operation, at most MAX_PAYLOAD_BYTES.

        Raises JournalError. The operation is not stored then, except when `failed` is set afterwards: it may
        be found at the next start or not, and every later append fails.
        """
        assert index == self.last_index + 1, (index, self.last_index)
        if self.failed is not None:
            raise JournalError(self.failed)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise JournalError(
                f"the operation takes {len(payload)} bytes, more than the {MAX_PAYLOAD_BYTES} that one may; "
                "ask for fewer partitions"
            )
        record = _record(index, payload)
        try:
            write_all(self._descriptor, record, self._end)
        except OSError as error:
            self._undo(error)
            raise JournalError(
                f"the metadata journal in {self.directory} could not be written: {error}"
            ) from error
        self._hook("record written")
        try:
            sync_file(self._descriptor)
        except OSError as error:
            raise self._fail("be synced", error) from error
        self._hook("record synced")
        self._end += len(record)
        self.last_index = index

    @property
    def snapshot_due(self) -> bool:
        """Whether enough was appended since the last snapshot to take another."""
        return (
            self.last_index - self._base >= self.snapshot_entries or self._end >= self.snapshot_bytes
        ) and self.failed is None

    def write_snapshot(self, body: bytes) -> None:
        """Begin a new journal, store the state after `last_index`, and delete what is not needed any more.

        Raises JournalError; appending goes on then, unless `failed` is set, and a snapshot is due again after
        as many operations as between any two.
        """
        index = self.last_index
        assert index > self._base, "nothing was appended since the last snapshot"
        if self.failed is not None:
            raise JournalError(self.failed)
        self._begin(index)
        header = _SNAPSHOT_HEADER.pack(_SNAPSHOT_MAGIC, VERSION, self.cluster_id.bytes, index, len(body))
        crc = crc32c(body, crc32c(header))
        try:
            replace_file(
                _snapshot_path(self.directory, index),
                header + _CRC.pack(crc) + body,
                lambda step: self._hook(f"snapshot {step}"),
            )
        except OSError as error:
            raise JournalError(
                f"no snapshot of the metadata could be written in {self.directory}: {error}"
            ) from error
        self._delete_before(self._snapshot_index)
        self._snapshot_index = index

    def close(self) -> None:
        """Release the file; what was appended is on the disk already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.failed = self.failed or "the metadata journal is closed"

    def _begin(self, base: int) -> None:
        """Make a new journal file the one that is appended to."""
        path = _journal_path(self.directory, base)
        header = _JOURNAL_HEADER.pack(_JOURNAL_MAGIC, VERSION, self.cluster_id.bytes, base)
        try:
            replace_file(
                path,
                _whole_sectors(header + _CRC.pack(crc32c(header))),
                lambda step: self._hook(f"journal {step}"),
            )
        except OSError as error:
            # If the new file stood in its place while the old one is appended to, the next start would find
            # entries where a newer journal says there are none.
            if path.exists():
                raise self._fail("be begun anew", error) from error
            raise JournalError(f"no new journal could be begun in {self.directory}: {error}") from error
        try:
            self._attach(path, _SECTOR)
        except OSError as error:
            raise self._fail("be opened", error) from error
        self._base = base
        self._hook("journal changed")

    def _attach(self, path: Path, end: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._end = end

    def _undo(self, error: OSError) -> None:
        """Take back a record that could not be written whole, so that the next one finds a clean end."""
        try:
            os.ftruncate(self._descriptor, self._end)
            sync_file(self._descriptor)
        except OSError:
            raise self._fail("be written, nor cut back", error) from error

    def _fail(self, action: str, error: OSError) -> JournalError:
        self.failed = (
            f"the metadata journal in {self.directory} could not {action}: {error}; no metadata can be "
            "changed until the server is restarted on a working disk"
        )
        return JournalError(self.failed)

    def _delete_before(self, index: int) -> None:
        """Delete what is not needed to recover from the snapshot of `index`, or from none when that is 0.

        Failing is harmless: recovery ignores what is too old.
        """
        kept = self._kept_before(index)
        old = [
            path
            for prefix in (_SNAPSHOT, _JOURNAL)
            for number, path in _listed(self.directory, prefix).items()
            if number < index and path not in kept
        ]
        try:
            for path in old:
                path.unlink()
                self._hook("old file deleted")
            sync_directory(self.directory)
        except OSError as error:
            logger.warning("old metadata files in %s could not be deleted: %s", self.directory, error)
        self._hook("old files deleted")

    def _kept_before(self, index: int) -> set[Path]:
        """The journals that are older than recovery needs, but have operations after `keep_after`."""
        if self.keep_after is None or self.keep_after >= index:
            return set()
        journals = _listed(self.directory, _JOURNAL)
        bases = [base for base in journals if base < index]
        first = max(bisect_right(bases, self.keep_after) - 1, 0)
        return {journals[base] for base in bases[first:][-KEPT_JOURNALS:]}


def read_entries(directory: Path, after: int, last: int) -> list[tuple[int, bytes]]:
    """Index and payload of the operations after `after`, up to `last`, as far as they are still there.

    Arguments:
        directory: of a journal, which may be open and appended to meanwhile.
        after, last: indices; those up to `last` have been appended.

    What is too old, or damaged, is missing. Raises OSError.
    """
    while True:
        journals = _listed(directory, _JOURNAL)
        bases = list(journals)
        entries: list[tuple[int, bytes]] = []
        try:
            for base in bases[max(bisect_right(bases, after) - 1, 0) :]:
                if base < last:
                    entries += _entries_of(journals[base].read_bytes(), base, after, last)
        except FileNotFoundError:
            continue  # a snapshot has made it superfluous meanwhile
        return entries


def _entries_of(data: bytes, base: int, after: int, last: int) -> Iterator[tuple[int, bytes]]:
    """The operations in a journal file whose index is above `after` and not above `last`."""
    position = _SECTOR
    for index in range(base + 1, last + 1):
        payload, _ = _parse_record(data, position, index)
        if payload is None:
            return
        if index > after:
            yield index, payload
        position += _sectors(_RECORD_BYTES + len(payload)) * _SECTOR


class _Recovery:
    """Reads a journal directory; the fields are valid after `run`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cluster_id: uuid.UUID | None = None
        self.base = 0
        self.end = 0
        self.last_index = 0

    def run(self) -> Recovered:
        """Choose a snapshot, read the journals since, cut off an unfinished record at the very end."""
        snapshot_path, snapshot_index, body = self._newest_snapshot()
        journals = _listed(self.directory, _JOURNAL)
        if snapshot_index not in journals:
            raise JournalError(
                f"{self.directory} lacks the journal that follows index {snapshot_index}; restore the "
                "directory from a copy"
            )
        chain = [base for base in journals if base >= snapshot_index]
        entries: list[tuple[int, bytes]] = []
        self.last_index = snapshot_index
        for base in chain:
            if base != self.last_index:
                raise JournalError(
                    f"{journals[base]} begins after index {base}, but the journal before it ends with "
                    f"{self.last_index}; restore the directory from a copy"
                )
            entries += self._read_journal(journals[base], base, newest=base == chain[-1])
        return Recovered(
            snapshot=body,
            snapshot_index=snapshot_index,
            snapshot_path=snapshot_path,
            entries=entries,
        )

    def _newest_snapshot(self) -> tuple[Path | None, int, bytes | None]:
        damaged: JournalDamagedError | None = None
        for index, path in reversed(_listed(self.directory, _SNAPSHOT).items()):
            try:
                body = self._read_snapshot(path, index)
            except JournalDamagedError as error:  # noqa: PERF203 (two snapshots at most)
                logger.warning("%s; trying what is older", error)
                damaged = damaged or error
            else:
                return path, index, body
        if damaged is not None and 0 not in _listed(self.directory, _JOURNAL):
            raise damaged
        return None, 0, None

    def _read_snapshot(self, path: Path, index: int) -> bytes:
        data = path.read_bytes()
        size = _SNAPSHOT_HEADER.size + _CRC.size
        if len(data) < size:
            raise JournalDamagedError(path, 0, f"a snapshot of {len(data)} bytes has no header")
        header, body = data[: _SNAPSHOT_HEADER.size], data[size:]
        magic, version, cluster, stored_index, length = _SNAPSHOT_HEADER.unpack(header)
        if magic != _SNAPSHOT_MAGIC:
            raise JournalDamagedError(path, 0, "it does not begin as a snapshot does")
        if crc32c(body, crc32c(header)) != _CRC.unpack_from(data, _SNAPSHOT_HEADER.size)[0]:
            raise JournalDamagedError(path, 0, "its checksum is wrong")
        self._check_origin(path, version, cluster)
        if (stored_index, length) != (index, len(body)):
            raise JournalDamagedError(path, 0, f"it is the snapshot of index {stored_index}")
        return body

    def _read_journal(self, path: Path, base: int, *, newest: bool) -> list[tuple[int, bytes]]:
        data = path.read_bytes()
        if len(data) < _JOURNAL_HEADER.size + _CRC.size:
            raise JournalDamagedError(path, 0, f"a journal of {len(data)} bytes has no header")
        header = data[: _JOURNAL_HEADER.size]
        magic, version, cluster, stored_base = _JOURNAL_HEADER.unpack(header)
        if magic != _JOURNAL_MAGIC or crc32c(header) != _CRC.unpack_from(data, _JOURNAL_HEADER.size)[0]:
            raise JournalDamagedError(path, 0, "its header is not one that was written")
        self._check_origin(path, version, cluster)
        if stored_base != base:
            raise JournalDamagedError(path, 0, f"it is the journal that follows index {stored_base}")
        self.base = base
        self.end = _SECTOR
        entries = []
        while self.end < len(data):
            payload, fault = _parse_record(data, self.end, self.last_index + 1)
            if payload is None:
                if not newest or not _unfinished(data, self.end):
                    raise JournalDamagedError(path, self.end, fault)
                self._cut(path, len(data))
                break
            self.last_index += 1
            self.end += _sectors(_RECORD_BYTES + len(payload)) * _SECTOR
            entries.append((self.last_index, payload))
        return entries

    def _check_origin(self, path: Path, version: int, cluster: bytes) -> None:
        if version != VERSION:
            raise JournalError(
                f"{path} has format version {version}, this version of liftbridge knows {VERSION}; start the "
                "version that wrote it, or a newer one"
            )
        cluster_id = uuid.UUID(bytes=cluster)
        if self.cluster_id is None:
            self.cluster_id = cluster_id
        elif self.cluster_id != cluster_id:
            raise JournalError(
                f"{path} belongs to cluster {cluster_id}, other files beside it to {self.cluster_id}; "
                "restore the directory from a copy"
            )

    def _cut(self, path: Path, size: int) -> None:
        """Remove an unfinished record; durable before anything is appended in its place."""
        logger.warning(
            "%s: the last %d bytes are an operation that was not finished when the server died; removed",
            path,
            size - self.end,
        )
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, self.end)
            sync_file(descriptor)
        finally:
            os.close(descriptor)


def _sectors(size: int) -> int:
    return -(-size // _SECTOR)


def _whole_sectors(data: bytes) -> bytes:
    return data.ljust(_sectors(len(data)) * _SECTOR, _FILLER)


def _journal_path(directory: Path, base: int) -> Path:
    return directory / f"{_JOURNAL}{base:020}"


def _snapshot_path(directory: Path, index: int) -> Path:
    return directory / f"{_SNAPSHOT}{index:020}"


def _listed(directory: Path, prefix: str) -> dict[int, Path]:
    """The files of one kind by the index in their name, ascending."""
    found = {}
    for path in directory.glob(prefix + "?" * 20):
        digits = path.name.removeprefix(prefix)
        if digits.isascii() and digits.isdigit():
            found[int(digits)] = path
    return dict(sorted(found.items()))


def _record(index: int, payload: bytes) -> bytes:
    header = _RECORD_HEADER.pack(_RECORD_MAGIC, len(payload), index)
    header += _CRC.pack(crc32c(header))
    return _whole_sectors(header + _CRC.pack(crc32c(payload, crc32c(header))) + payload)


def _parse_header(data: bytes, position: int) -> tuple[int, int] | None:
    """Payload length and index of the record at a position, None when no record header is there."""
    if position + _RECORD_BYTES > len(data):
        return None
    magic, length, index = _RECORD_HEADER.unpack_from(data, position)
    (crc,) = _CRC.unpack_from(data, position + _RECORD_HEADER.size)
    if magic != _RECORD_MAGIC or crc != crc32c(data[position : position + _RECORD_HEADER.size]):
        return None
    return length, index


def _parse_record(data: bytes, position: int, index: int) -> tuple[bytes | None, str]:
    """The payload of the record at a position, or None and why there is no valid record of that index."""
    header = _parse_header(data, position)
    if header is None:
        return None, "there is no record header"
    length, stored_index = header
    start = position + _RECORD_BYTES
    if start + length > len(data):
        return None, f"the record of index {stored_index} ends beyond the file"
    payload = data[start : start + length]
    (crc,) = _CRC.unpack_from(data, start - _CRC.size)
    if crc != crc32c(payload, crc32c(data[position : start - _CRC.size])):
        return None, f"the checksum of the record of index {stored_index} is wrong"
    if stored_index != index:
        return None, f"it holds index {stored_index} where {index} was expected"
    return payload, ""


def _unfinished(data: bytes, position: int) -> bool:
    """Whether what is at a position, not a valid record, is one that a crash left unfinished.

    It is when nothing valid follows, and it lacks something: the file ends inside it, or a sector of it was
    never written and reads as zeros.
    """
    for following in range(position + _SECTOR, len(data), _SECTOR):
        header = _parse_header(data, following)
        if header is not None and _parse_record(data, following, header[1])[0] is not None:
            return False
    if position + _RECORD_BYTES > len(data):
        return True
    header = _parse_header(data, position)
    if header is not None and position + _RECORD_BYTES + header[0] > len(data):
        return True
    return any(not any(data[start : start + _SECTOR]) for start in range(position, len(data), _SECTOR))
