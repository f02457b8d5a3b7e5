"""What a directory of journal files holds, after any end of the process that wrote them.

The newest good snapshot, and the journals from the one of the same index on. In a journal each entry follows
the one before it, or takes the place of entries that were there: a record whose first entry has an index that
is there already means that this entry and all behind it were truncated. So nothing that was written is ever
changed, and truncating needs no system call of its own. The newest hard state counts.

Invariants:
- A crash can leave one unfinished record at the end of the newest journal. It is told from damage by what it
  lacks (`journal_format.is_unfinished`); anything else that is not a valid record is damage: start-up refuses
  with the place, and nothing is dropped silently.
- A journal that follows an entry which neither a snapshot nor the journals before it have was begun for a
  snapshot from the leader that never came into being: it is removed when nothing was stored in it since.
"""

from __future__ import annotations

import logging
import os
import uuid
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

from liftbridge.broker.durable import sync_directory, sync_file
from liftbridge.broker.journal_format import (
    JOURNAL,
    SECTOR,
    SNAPSHOT,
    JournalDamagedError,
    JournalError,
    JournalHeader,
    decode_items,
    decode_snapshot,
    is_unfinished,
    listed,
    parse_record,
    record_bytes,
)
from liftbridge.raft import Entry, HardState, Snapshot

logger = logging.getLogger("liftbridge.metadata")

_NO_STATE = HardState()


@dataclass
class Recovery:
    """Reads a journal directory; the fields are valid after `run`.

    Attributes:
        directory: the directory.
        cluster_id, node_id: whose journal it is.
        hard_state: the newest term and vote.
        snapshot: the newest usable snapshot, None when there is none.
        entries: those after the snapshot, in order.
        base: of the newest journal.
        sequence: of the last record in it.
        end: of the last record in it, bytes.
    """

    directory: Path
    cluster_id: uuid.UUID | None = None
    node_id: int | None = None
    hard_state: HardState = _NO_STATE
    snapshot: Snapshot | None = None
    entries: list[Entry] = field(default_factory=list)
    base: int = 0
    sequence: int = 0
    end: int = 0

    @property
    def last_index(self) -> int:
        """Index of the newest entry, of the snapshot without one."""
        return self.entries[-1].index if self.entries else self._snapshot_index

    def term_at(self, index: int) -> int:
        """Term of an entry, or of the one that the snapshot ends with; 0 before the first."""
        if index > self._snapshot_index:
            return self.entries[index - self._snapshot_index - 1].term
        return 0 if self.snapshot is None else self.snapshot.meta.term

    @property
    def _snapshot_index(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.meta.index

    def run(self) -> None:
        """Choose a snapshot, read the journals since, cut off an unfinished record at the very end."""
        self.snapshot = self._newest_snapshot()
        journals = listed(self.directory, JOURNAL)
        if self._snapshot_index not in journals:
            raise JournalError(
                f"{self.directory} lacks the journal that follows index {self._snapshot_index}; restore the "
                "directory from a copy"
            )
        chain = [base for base in journals if base >= self._snapshot_index]
        for base in chain:
            newest = base == chain[-1]
            data = journals[base].read_bytes()
            header = JournalHeader.decode(journals[base], data, base)
            self._check_origin(journals[base], header.cluster_id, header.node_id)
            if base > self.last_index or self.term_at(base) != header.base_term:
                self._remove_unfinished(journals[base], data, newest=newest)
                continue
            self._read_journal(journals[base], data, header, newest=newest)

    def _newest_snapshot(self) -> Snapshot | None:
        damaged: JournalDamagedError | None = None
        for index, path in reversed(listed(self.directory, SNAPSHOT).items()):
            try:
                snapshot, cluster_id = decode_snapshot(path, path.read_bytes(), index)
            except JournalDamagedError as error:  # noqa: PERF203 (two snapshots at most)
                logger.warning("%s; trying what is older", error)
                damaged = damaged or error
            else:
                self._check_origin(path, cluster_id)
                return snapshot
        if damaged is not None and 0 not in listed(self.directory, JOURNAL):
            raise damaged
        return None

    def _read_journal(self, path: Path, data: bytes, header: JournalHeader, *, newest: bool) -> None:
        self.base, self.sequence, self.end = header.base, 0, SECTOR
        # What follows the base is in this file again, as far as it was there when the file was begun.
        self._truncate(header.base + 1)
        while self.end < len(data):
            payload, fault = parse_record(data, self.end, self.sequence + 1)
            if payload is None:
                if not newest or not is_unfinished(data, self.end):
                    raise JournalDamagedError(path, self.end, fault)
                _cut(path, self.end, len(data))
                break
            try:
                for item in decode_items(payload):
                    self._add(item, header.base)
            except ValueError as error:
                raise JournalDamagedError(path, self.end, str(error)) from error
            self.sequence += 1
            self.end += record_bytes(payload)

    def _add(self, item: HardState | Entry, base: int) -> None:
        """Take over what a record holds. Raises ValueError when no node of ours would have written it."""
        if isinstance(item, HardState):
            if item.term < self.hard_state.term:
                raise ValueError(f"it goes back from term {self.hard_state.term} to {item.term}")
            self.hard_state = item
            return
        if not base < item.index <= self.last_index + 1:
            raise ValueError(f"it holds entry {item.index} where {self.last_index + 1} was expected")
        self._truncate(item.index)
        self.entries.append(item)

    def _truncate(self, index: int) -> None:
        del self.entries[max(index - self._snapshot_index - 1, 0) :]

    def _check_origin(self, path: Path, cluster_id: uuid.UUID, node_id: int | None = None) -> None:
        if self.cluster_id is None:
            self.cluster_id = cluster_id
        elif self.cluster_id != cluster_id:
            raise JournalError(
                f"{path} belongs to cluster {cluster_id}, other files beside it to {self.cluster_id}; "
                "restore the directory from a copy"
            )
        if node_id is None:
            return
        if self.node_id is None:
            self.node_id = node_id
        elif self.node_id != node_id:
            raise JournalError(
                f"{path} was written by node {node_id:x}, other files beside it by {self.node_id:x}; restore "
                "the directory from a copy"
            )

    def _remove_unfinished(self, path: Path, data: bytes, *, newest: bool) -> None:
        """Remove a journal without its snapshot, when nothing was ever acknowledged that is in it."""
        first = parse_record(data, SECTOR, 1)[0]
        if not newest or (first is not None and len(data) > SECTOR + record_bytes(first)):
            raise JournalError(
                f"{path} follows a snapshot that is not there, and what is before it ends with entry "
                f"{self.last_index} of term {self.term_at(self.last_index)}; restore the directory from a "
                "copy"
            )
        logger.warning("%s: begun for a snapshot that never arrived whole; removed", path)
        path.unlink()
        sync_directory(self.directory)


def read_entries(directory: Path, after: int, last: int) -> list[Entry]:
    """The entries after `after`, up to `last`, as far as they are still there.

    Arguments:
        directory: of a journal, which may be open and appended to meanwhile.
        after, last: indices; those up to `last` have been committed.

    What is too old, or damaged, is missing. Raises OSError.
    """
    while True:
        journals = listed(directory, JOURNAL)
        bases = list(journals)
        entries: dict[int, Entry] = {}
        try:
            for base in bases[max(bisect_right(bases, after) - 1, 0) :]:
                if base < last:
                    _read_into(entries, journals[base].read_bytes())
        except FileNotFoundError:
            continue  # a snapshot has made it superfluous meanwhile
        return [entries[index] for index in sorted(entries) if after < index <= last]


def _read_into(entries: dict[int, Entry], data: bytes) -> None:
    """The entries of a journal file as far as it can be read; a later one takes the place of an earlier."""
    position, sequence = SECTOR, 1
    while True:
        payload, _ = parse_record(data, position, sequence)
        if payload is None:
            return
        entries.update((item.index, item) for item in decode_items(payload) if isinstance(item, Entry))
        position += record_bytes(payload)
        sequence += 1


def _cut(path: Path, end: int, size: int) -> None:
    """Remove an unfinished record; durable before anything is appended in its place."""
    logger.warning(
        "%s: the last %d bytes are a record that was not finished when the server died; removed",
        path,
        size - end,
    )
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, end)
        sync_file(descriptor)
    finally:
        os.close(descriptor)
