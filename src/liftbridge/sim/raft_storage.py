"""How a node's consensus state lies on a simulated disk, by the rules of the real one.

Two files. `journal` has a record for each hard state, for each entry, and for each beginning of the log; a
record that was written is never changed, and an entry whose index is there already takes the place of it
and of all behind it. `snapshot` is the newest state of the state machine, replaced as a whole. Each is a
write of its own, so that a crash falls between any two. Jobs are done one at a time, as by a worker thread:
what came while a sync was under way is written together afterwards and shares the next one.

Each record tells how many records before it were synced when it was written. So a start can tell a tail
that was torn, which is cut off, from damage to what somebody was told is safe, which it refuses.

Invariants: the snapshot is on the disk before the record that lets the log begin behind it; the journal is
on the disk before a snapshot that it belongs to; a start syncs what it has read before anybody may rely on
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from liftbridge.raft import (
    Entry,
    EntryKind,
    HardState,
    Members,
    Ready,
    Snapshot,
    SnapshotMeta,
    Stored,
    decode_members,
)
from liftbridge.sim.disk import DAMAGED, Disk, DiskFullError, FuseError

JOURNAL, SNAPSHOT, IDENTITY = "journal", "snapshot", "identity"
_REWRITE = 60  # records in a journal, of which most are behind the snapshot, until it is written anew

_Record: TypeAlias = "tuple[HardState | Entry | SnapshotMeta, int]"
_Done: TypeAlias = Callable[[], None]


class DamagedError(Exception):
    """Something is gone that was synced once; the node must not start with the rest."""


class Image:
    """What some records amount to: a hard state and a log, of which only terms and members matter here."""

    __slots__ = ("base_index", "base_term", "hard", "members", "terms")

    def __init__(self) -> None:
        self.hard = HardState()
        self.base_index = 0
        self.base_term = 0
        self.terms: list[int] = []
        self.members: list[tuple[int, Members]] = [(0, Members())]

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.terms)

    @property
    def last_term(self) -> int:
        return self.terms[-1] if self.terms else self.base_term

    def term_at(self, index: int) -> int | None:
        """Term of an entry; None when it is not there, or before the base."""
        if self.base_index < index <= self.base_index + len(self.terms):
            return self.terms[index - self.base_index - 1]
        return self.base_term if index == self.base_index else None

    def put(self, entry: Entry) -> None:
        """An entry, in the place of those from its index on."""
        if entry.index > self.last_index + 1:
            raise DamagedError(f"entry {entry.index} follows {self.last_index}")
        if entry.index <= self.last_index:
            del self.terms[entry.index - self.base_index - 1 :]
            while len(self.members) > 1 and self.members[-1][0] >= entry.index:
                self.members.pop()
        self.terms.append(entry.term)
        if entry.kind is EntryKind.MEMBERS:
            self.members.append((entry.index, decode_members(entry.data)))

    def begin(self, meta: SnapshotMeta) -> None:
        """Let the log begin behind a snapshot, with what follows the same entry if that is there."""
        if meta.index < self.base_index:
            return
        if self.term_at(meta.index) == meta.term:
            del self.terms[: meta.index - self.base_index]
            later = [known for known in self.members if known[0] > meta.index]
        else:
            self.terms, later = [], []
        self.base_index, self.base_term = meta.index, meta.term
        self.members = [(meta.index, meta.members), *later]

    def take(self, value: HardState | Entry | SnapshotMeta) -> None:
        """What a record says."""
        if isinstance(value, Entry):
            self.put(value)
        elif isinstance(value, HardState):
            self.hard = value
        else:
            self.begin(value)


class Storage:
    """The consensus state of one process on its disk.

    Attributes:
        view: what everything that was handed over amounts to, written or not.
        durable: what no loss of power can take any more.
    """

    def __init__(
        self, disk: Disk, died: Callable[[Exception], None], synced: Callable[[Storage, Sequence[Any]], None]
    ) -> None:
        """Read what there is; `died` is told of a write that ended the process, `synced` when `durable` has
        changed, by which records. Raises DamagedError."""
        self.view, self.durable = Image(), Image()
        self._disk = disk
        self._died = died
        self._synced = synced
        self._jobs: list[tuple[Ready | Snapshot, _Done]] = []
        self._busy = True  # until `start` is over
        self._proof = 0
        self._entries: list[Entry] = []  # behind the snapshot
        self._snapshot: Snapshot | None = None
        self._recover()

    # ---- start ----

    def _recover(self) -> None:
        found = self._disk.read(SNAPSHOT)
        self._snapshot = found[0] if found else None
        have = 0 if self._snapshot is None else self._snapshot.meta.index
        records = self._disk.read(JOURNAL)
        good = next((at for at, record in enumerate(records) if record is DAMAGED), len(records))
        proven = max((record[1] for record in records if record is not DAMAGED), default=0)
        if good < proven:
            raise DamagedError(f"record {good} of the journal is damaged, and {proven} were synced")
        entries: dict[int, Entry] = {}
        for at, (value, _) in enumerate(records[:good]):
            if isinstance(value, SnapshotMeta) and value.index > have:
                raise DamagedError(
                    f"the log begins behind {value.index}, the snapshot is of {have}, record {at}"
                )
            self.view.take(value)
            if isinstance(value, Entry):
                entries[value.index] = value
        if self._snapshot is not None:
            self.view.begin(self._snapshot.meta)  # between the snapshot and the record of it
        first = self.view.base_index + 1
        self._entries = [entries[index] for index in range(first, self.view.last_index + 1)]
        if good < len(records):
            self._disk.cut(JOURNAL, good)

    def start(self, done: _Done) -> None:
        """Sync what was read; then `done`, and jobs are taken. Raises FuseError."""
        length = len(self._disk.read(JOURNAL))

        def over() -> None:
            self._proof = length
            self.durable.hard = self.view.hard
            self.durable.base_index, self.durable.base_term = self.view.base_index, self.view.base_term
            self.durable.terms, self.durable.members = list(self.view.terms), list(self.view.members)
            self._busy = False
            self._synced(self, ())
            done()
            self._work()

        self._disk.sync(over)

    def stored(self) -> Stored:
        """What the core begins with."""
        return Stored(self.view.hard, self._snapshot, tuple(self._entries))

    # ---- jobs ----

    def save(self, ready: Ready, done: _Done) -> None:
        """Store what a ready wants stored; `done` when it is on the disk, in order."""
        if ready.hard_state is not None:
            self.view.take(ready.hard_state)
        if ready.snapshot is not None:
            self.view.begin(ready.snapshot.meta)
        for entry in ready.entries:
            self.view.put(entry)
        self._jobs.append((ready, done))
        self._work()

    def keep(self, snapshot: Snapshot, done: _Done) -> None:
        """Store a state of the own state machine; the log begins behind it then."""
        self._jobs.append((snapshot, done))
        self._work()

    @property
    def idle(self) -> bool:
        """Whether everything is done."""
        return not self._busy and not self._jobs

    def _work(self) -> None:
        """Begin the next jobs, if none is under way."""
        if self._busy or not self._jobs:
            return
        self._busy = True
        try:
            first = self._jobs[0][0]
            if isinstance(first, Snapshot):
                self._keep(first, self._jobs.pop(0)[1])
                return
            saves: list[tuple[Ready, _Done]] = []
            while self._jobs and isinstance(ready := self._jobs[0][0], Ready):
                if ready.snapshot is not None and saves:
                    break
                saves.append((ready, self._jobs.pop(0)[1]))
                if ready.snapshot is not None:
                    break
            self._save(saves)
        except (FuseError, DiskFullError) as error:
            self._died(error)

    def _save(self, saves: list[tuple[Ready, _Done]]) -> None:
        first = saves[0][0]
        values: list[Any] = []
        for ready, _ in saves:
            if ready.hard_state is not None:
                values.append(ready.hard_state)
            if ready.snapshot is None:
                values.extend(ready.entries)
        dones = [done for _, done in saves]
        if first.snapshot is None:
            self._write(values, dones)
            return
        snapshot = first.snapshot

        def then() -> None:
            self._install(snapshot, [snapshot.meta, *first.entries], dones, last=True)

        self._write(values, [then], last=False)

    def _write(self, values: list[Any], dones: list[_Done], *, last: bool = True) -> None:
        """Append records and sync; then the callbacks, and if that was the `last` step the next jobs."""
        if not values and self._disk.unsynced == 0:
            self._finish(values, 0, dones, last=last)
            return
        for value in values:
            self._disk.append(JOURNAL, (value, self._proof))
        length = len(self._disk.read(JOURNAL))
        self._disk.sync(lambda: self._finish(values, length, dones, last=last))

    def _finish(self, values: list[Any], length: int, dones: list[_Done], *, last: bool) -> None:
        for value in values:
            self.durable.take(value)
            if isinstance(value, Entry):
                if self._entries and value.index <= self._entries[-1].index:
                    del self._entries[value.index - self._entries[0].index :]
                self._entries.append(value)
            elif isinstance(value, SnapshotMeta):
                self._entries = [entry for entry in self._entries if entry.index > value.index]
                if not self.durable.terms:
                    self._entries = []
        self._proof = max(self._proof, length)
        if values:
            self._synced(self, values)
        try:
            for done in dones:
                done()
        except (FuseError, DiskFullError) as error:
            self._died(error)
            return
        if last:
            self._over()

    def _over(self) -> None:
        """Nothing is under way; whoever was told first has put its next wishes in the queue."""
        self._busy = False
        self._work()

    def _install(self, snapshot: Snapshot, records: list[Any], dones: list[_Done], *, last: bool) -> None:
        """The snapshot, synced; then what the log is from there on."""
        self._disk.replace(SNAPSHOT, [snapshot])

        def then() -> None:
            self._snapshot = snapshot
            try:
                self._write(records, dones, last=last)
            except (FuseError, DiskFullError) as error:
                self._died(error)

        self._disk.sync(then)

    def _keep(self, snapshot: Snapshot, done: _Done) -> None:
        if snapshot.meta.index <= self.durable.base_index:  # the leader's was newer
            done()
            self._over()
            return
        self._install(snapshot, [snapshot.meta], [done, self._rewrite], last=False)

    def _rewrite(self) -> None:
        """Write the journal anew without what nobody needs, when it is mostly that."""
        if len(self._disk.read(JOURNAL)) < _REWRITE:
            self._over()
            return
        meta = None if self._snapshot is None else self._snapshot.meta
        values = [self.durable.hard, *([] if meta is None else [meta]), *self._entries]
        self._disk.replace(JOURNAL, [(value, 0) for value in values])
        self._proof = 0
        self._disk.sync(lambda: self._finish([], len(values), [], last=True))
