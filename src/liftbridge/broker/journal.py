"""The metadata journal: the log, the term and the vote of this server's node in the consensus, on its disk.

What is in the files is told in `journal_format.py`, and how they are read after a crash in
`journal_recovery.py`.

Both kinds of file come into being by renaming a synced file, so a header is never half written, and the
record a journal begins with, hard state and entries behind its base, is there as soon as the file is. A
snapshot is taken by beginning a new journal, then storing the snapshot of that index, then deleting what is
older than
the snapshot before it: two snapshots are kept with the journals since the older one, so one damaged snapshot
costs nothing. Older journals are kept while somebody has yet to read them (`keep_after`). A snapshot without
the journal of the same index is one whose journal was lost.

Invariants:
- `save` returns when all of it is on the disk. Indices are consecutive; an entry with an index that is there
  already takes its place, and what was behind it is gone.
- A crash at any moment leaves what all finished calls stored, and of the one under way all or nothing.
- A snapshot of the leader (`install`) becomes the state before a journal that begins behind it is used: a
  crash in between leaves the old log.
- An error while syncing is final. Whether the record is on the disk is unknown then, and a second attempt
  that succeeds would prove nothing.

The calls block: the consensus task makes them in worker threads, one at a time.
"""

from __future__ import annotations

import logging
import os
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
from liftbridge.broker.journal_format import (
    ITEM_BYTES,
    JOURNAL,
    MAX_PAYLOAD_BYTES,
    SNAPSHOT,
    JournalDamagedError,
    JournalError,
    JournalHeader,
    encode_items,
    encode_record,
    encode_snapshot,
    journal_path,
    listed,
    snapshot_path,
)
from liftbridge.broker.journal_recovery import Recovery, read_entries
from liftbridge.raft import Entry, HardState, Snapshot, SnapshotMeta

__all__ = [
    "KEPT_JOURNALS",
    "MAX_PAYLOAD_BYTES",
    "Journal",
    "JournalDamagedError",
    "JournalError",
    "Recovered",
    "read_entries",
]

logger = logging.getLogger("liftbridge.metadata")

KEPT_JOURNALS = 8


@dataclass(frozen=True)
class Recovered:
    """What a journal held when it was opened.

    Attributes:
        hard_state: the newest term and vote.
        snapshot: the newest usable state, None when there is none.
        entries: every entry after it, in order.
    """

    hard_state: HardState
    snapshot: Snapshot | None
    entries: list[Entry]


@dataclass
class Journal:
    """An open journal. Made by `create` or `open`; not safe for two threads at a time.

    Attributes:
        directory: where its files are.
        cluster_id: UUID of the cluster whose entries these are.
        node_id: of this node in the consensus. It belongs to these files: with others it is another node.
        snapshot_entries: entries after which a snapshot is due.
        snapshot_bytes: bytes of journal after which a snapshot is due.
        failed: why nothing can be stored any more, None while it can.
        keep_after: index after which `read_entries` is to find every entry, None for no such wish. It is
            granted for KEPT_JOURNALS journals that recovery does not need.
    """

    directory: Path
    cluster_id: uuid.UUID
    node_id: int
    snapshot_entries: int = 8192
    snapshot_bytes: int = 64 * 1024 * 1024
    failed: str | None = None
    keep_after: int | None = None
    _hard_state: HardState = field(default_factory=lambda: HardState(0, None))
    _entries: list[Entry] = field(default_factory=list, repr=False)  # behind the base
    _base: int = 0
    _base_term: int = 0
    _snapshot_index: int = 0  # of the newest snapshot known to be good, 0 without one
    _descriptor: int = -1
    _sequence: int = 0
    _end: int = 0
    _hook: StepHook = field(default=no_hook, repr=False)

    @staticmethod
    def exists(directory: Path) -> bool:
        """Whether a journal has been created in the directory."""
        return bool(listed(directory, JOURNAL) or listed(directory, SNAPSHOT))

    @classmethod
    def create(
        cls,
        directory: Path,
        cluster_id: uuid.UUID,
        node_id: int,
        *,
        entries: Sequence[Entry] = (),
        hook: StepHook = no_hook,
    ) -> Journal:
        """Create and open a journal; the directory too when it is missing.

        Arguments:
            directory, cluster_id, node_id: as the attributes.
            entries: what the log begins with, from index 1: who the first members are.
            hook: called after each step.

        Raises JournalError when there is one, OSError when the system refuses.
        """
        if cls.exists(directory):
            raise JournalError(f"{directory} holds a metadata journal already; open it or move it away")
        make_directory(directory)
        hook("directory")
        journal = cls(directory, cluster_id, node_id, _hook=hook)
        if entries:
            journal._hard_state = HardState(entries[-1].term, None)
        journal._begin(0, 0, list(entries))
        return journal

    @classmethod
    def open(cls, directory: Path, *, hook: StepHook = no_hook) -> tuple[Journal, Recovered]:
        """Open the journal of a directory and read what it holds.

        Leftovers of an interrupted write are removed. Raises JournalError when there is none, when a file
        comes from another version, node or cluster, or (JournalDamagedError) is damaged; OSError when the
        system refuses.
        """
        if not cls.exists(directory):
            raise JournalError(f"{directory} holds no metadata journal")
        for leftover in directory.glob("*" + TEMPORARY):
            leftover.unlink()
        hook("leftovers removed")
        found = Recovery(directory)
        found.run()
        assert found.cluster_id is not None
        assert found.node_id is not None
        snapshot_index = 0 if found.snapshot is None else found.snapshot.meta.index
        journal = cls(
            directory,
            found.cluster_id,
            found.node_id,
            _hard_state=found.hard_state,
            _entries=found.entries[found.base - snapshot_index :],
            _base=found.base,
            _base_term=found.term_at(found.base),
            _snapshot_index=snapshot_index,
            _sequence=found.sequence,
            _hook=hook,
        )
        journal._attach(journal_path(directory, found.base), found.end)
        # A killed process may have left what it wrote in the page cache; from now on it counts as stored.
        sync_file(journal._descriptor)
        return journal, Recovered(found.hard_state, found.snapshot, found.entries)

    @property
    def last_index(self) -> int:
        """Index of the newest entry."""
        return self._base + len(self._entries)

    @property
    def base(self) -> int:
        """Index of the entry before the first of the newest journal."""
        return self._base

    @property
    def last_term(self) -> int:
        """Term of the newest entry, 0 without one."""
        return self._entries[-1].term if self._entries else self._base_term

    def save(self, hard_state: HardState | None, entries: Sequence[Entry] = ()) -> None:
        """Store a term and a vote, and entries; all of it is on the disk when this returns.

        Arguments:
            hard_state: None when it has not changed.
            entries: consecutive; where there are others with these indices, these and those behind them go.

        Raises JournalError. Nothing of it is stored then, except when `failed` is set afterwards: it may be
        found at the next start or not, and every later call fails.
        """
        if self.failed is not None:
            raise JournalError(self.failed)
        if entries:
            assert self._base < entries[0].index <= self.last_index + 1, (entries[0].index, self.last_index)
        assert hard_state is None or hard_state.term >= self._hard_state.term, (hard_state, self._hard_state)
        for payload in list(_payloads(hard_state, entries)):
            # One by one: a later record on the disk without an earlier one would be damage.
            self._write(encode_record(self._sequence + 1, payload))
            self._sequence += 1
        if hard_state is not None:
            self._hard_state = hard_state
        if entries:
            del self._entries[entries[0].index - self._base - 1 :]
            self._entries += entries

    @property
    def snapshot_due(self) -> bool:
        """Whether enough was stored since the last snapshot to take another."""
        return (
            self.last_index - self._base >= self.snapshot_entries or self._end >= self.snapshot_bytes
        ) and self.failed is None

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Begin a new journal, store the state after an entry of the log, and delete what is not needed.

        Raises JournalError; appending goes on then, unless `failed` is set, and a snapshot is due again after
        as many entries as between any two.
        """
        index = snapshot.meta.index
        assert self._has(snapshot.meta), (snapshot.meta, self._base, self.last_index)
        self._replace_log(snapshot, self._entries[index - self._base :])

    def install(self, snapshot: Snapshot) -> None:
        """Make a state that the leader sent the beginning of the log.

        What the log has behind it stays when it has the entry that the snapshot ends with; otherwise the log
        is empty then. Raises JournalError; the log is as it was then, unless `failed` is set.
        """
        index = snapshot.meta.index
        assert index > self._base, (index, self._base)
        self._replace_log(snapshot, self._entries[index - self._base :] if self._has(snapshot.meta) else [])

    def close(self) -> None:
        """Release the file; what was stored is on the disk already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.failed = self.failed or "the metadata journal is closed"

    def _has(self, meta: SnapshotMeta) -> bool:
        """Whether the log behind the base has the entry that a snapshot ends with."""
        within = self._base < meta.index <= self.last_index
        return within and self._entries[meta.index - self._base - 1].term == meta.term

    def _replace_log(self, snapshot: Snapshot, kept: list[Entry]) -> None:
        if self.failed is not None:
            raise JournalError(self.failed)
        index = snapshot.meta.index
        contiguous = self._has(snapshot.meta)
        self._begin(index, snapshot.meta.term, kept)
        try:
            replace_file(
                snapshot_path(self.directory, index),
                encode_snapshot(snapshot, self.cluster_id),
                lambda step: self._hook(f"snapshot {step}"),
            )
        except OSError as error:
            text = f"no snapshot of the metadata could be written in {self.directory}: {error}"
            if contiguous:
                raise JournalError(text) from error
            # The new journal follows a state that is not there: what came next would be lost with it.
            raise self._fail("be begun behind a snapshot", error) from error
        self._delete_before(self._snapshot_index)
        self._snapshot_index = index

    def _begin(self, base: int, base_term: int, entries: list[Entry]) -> None:
        """Make a new journal file, with the hard state and these entries, the one that is appended to."""
        path = journal_path(self.directory, base)
        header = JournalHeader(self.cluster_id, self.node_id, base, base_term)
        records = [
            encode_record(sequence, payload)
            for sequence, payload in enumerate(_payloads(self._hard_state, entries), 1)
        ]
        data = header.encode() + b"".join(records)
        try:
            replace_file(path, data, lambda step: self._hook(f"journal {step}"))
        except OSError as error:
            # If the new file stood in its place while the old one is appended to, the next start would find
            # entries where a newer journal says there are none.
            if path.exists():
                raise self._fail("be begun anew", error) from error
            raise JournalError(f"no new journal could be begun in {self.directory}: {error}") from error
        try:
            self._attach(path, len(data))
        except OSError as error:
            raise self._fail("be opened", error) from error
        self._base, self._base_term, self._entries = base, base_term, entries
        self._sequence = len(records)
        self._hook("journal changed")

    def _attach(self, path: Path, end: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._end = end

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._descriptor, data, self._end)
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
        self._end += len(data)

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
            for prefix in (SNAPSHOT, JOURNAL)
            for number, path in listed(self.directory, prefix).items()
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
        """The journals that are older than recovery needs, but have entries after `keep_after`."""
        if self.keep_after is None or self.keep_after >= index:
            return set()
        journals = listed(self.directory, JOURNAL)
        bases = list(journals)[: bisect_left(list(journals), index)]
        first = max(bisect_right(bases, self.keep_after) - 1, 0)
        return {journals[base] for base in bases[first:][-KEPT_JOURNALS:]}


def _payloads(hard_state: HardState | None, entries: Sequence[Entry]) -> Iterator[bytes]:
    """What is stored together, in one record unless it is too large for one.

    Of a large one the records before the first that a crash cut off are found, which is as if fewer entries
    had been stored: the hard state is in the first. Raises JournalError: one entry is too large by itself.
    """
    group: list[Entry] = []
    size = 0
    for entry in entries:
        taken = ITEM_BYTES + len(entry.data)
        if taken > MAX_PAYLOAD_BYTES // 2:
            raise JournalError(
                f"the operation takes {len(entry.data)} bytes, more than the {MAX_PAYLOAD_BYTES // 2} that "
                "one may; ask for fewer partitions"
            )
        if size + taken > MAX_PAYLOAD_BYTES // 2:
            yield encode_items(hard_state, group)
            group, size, hard_state = [], 0, None
        group.append(entry)
        size += taken
    yield encode_items(hard_state, group)
