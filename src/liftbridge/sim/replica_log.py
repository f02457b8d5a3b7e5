"""The log of one replica on a simulated disk: batches of numbers, epochs, what is synced.

It has the rules of the real one (`log/`) as far as replication can tell: batches follow one another, an epoch
begins with a batch that has no records, a process sees what it wrote at once, a loss of power leaves a prefix
of what was written with everything synced in it. Each batch on the disk tells how many before it were synced
when it was written, so that a start tells a torn tail, which it cuts off, from damage to what somebody was
told is safe (`lost`). What retention removes is out of reach, and stays on the disk.

Invariants: a log that was read is mended and synced before anybody relies on it; it is synced after it was
cut off, before anything else is done with it; that something is lost is on the disk before the trace of it is
cut off.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from liftbridge.replication.messages import Batch
from liftbridge.sim.disk import DAMAGED, Disk

LOG = "log"
START = "start"
LOST = "lost"
_FIRST = attrgetter("first")
_BATCH_BYTES, _RECORD_BYTES = 50, 10


class Stored(NamedTuple):
    """A batch: its first offset, its leader epoch, its records; none for the beginning of an epoch."""

    first: int
    epoch: int
    records: tuple[int, ...] = ()

    @property
    def next_offset(self) -> int:
        """Where it ends."""
        return self.first + len(self.records)

    @property
    def span(self) -> Batch:
        """What is said of it."""
        count = len(self.records)
        return Batch(self.first, self.first + count, self.epoch, _BATCH_BYTES + _RECORD_BYTES * count)


class ReplicaLog:
    """A `LogView`, and what changes it. Made of what the disk has.

    Attributes:
        start_offset, next_offset, synced_offset: as in `LogView`.
        lost: whether something is gone that was synced once; remembered until `forgive`.
        batches: all of them, also those that retention has removed.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.lost = bool(disk.read(LOST))
        self._tail = -1  # records of the file that are good, when it has to be cut off
        self.batches: list[Stored] = []
        self._base = 0  # offset of the first of `_records`
        self._records: list[tuple[int, int]] = []  # epoch and record, by offset
        self._starts: list[tuple[int, int]] = []  # (epoch, first offset), oldest first
        self._epochs: tuple[tuple[int, int], ...] | None = None
        self._cuts = 0
        self.next_offset = 0
        self._recover()
        found = disk.read(START)
        self.start_offset = min(found[0], self.next_offset) if found else self._base
        self.start_offset = max(self.start_offset, self._base)
        self._synced = 0  # batches that are on the disk
        self.synced_offset = self._base

    def _recover(self) -> None:
        records = self._disk.read(LOG)
        if not records:
            self._disk.append(LOG, (0, 0))
            return
        good = next((at for at, record in enumerate(records) if record is DAMAGED), len(records))
        proven = max((record[1] for record in records if record is not DAMAGED), default=0)
        if good < proven:
            self.lost = True
            self._disk.replace(LOST, [True])
        if good == 0:
            self._tail = 0
            return
        self._base = self.next_offset = records[0][0]
        for at in range(1, good):
            batch = records[at][0]
            if batch.first != self.next_offset or (self.batches and batch.epoch < self.last_epoch):
                good = at  # the cut before it was lost
                break
            self._add(batch)
        if good < len(records):
            self._tail = good

    def mend(self, done: Callable[[], None]) -> None:
        """Cut off what is damaged, when it is on the disk that something is lost, and sync; then `done`."""

        def cut() -> None:
            if self._tail == 0:
                self._disk.replace(LOG, [(0, 0)])
            elif self._tail > 0:
                self._disk.cut(LOG, self._tail)
            self.sync(done)

        if self.lost:
            self._disk.sync(cut)
        else:
            cut()

    def forgive(self) -> None:
        """It is known elsewhere that something is lost."""
        if self.lost:
            self.lost = False
            self._disk.delete(LOST)

    # -- what is looked at

    @property
    def last_epoch(self) -> int:
        """As in `LogView`."""
        return self.batches[-1].epoch if self.batches else 0

    @property
    def epochs(self) -> Sequence[tuple[int, int]]:
        """As in `LogView`."""
        if self._epochs is None:
            start = self.start_offset
            found = [(epoch, max(first, start)) for epoch, first in self._starts]
            while len(found) > 1 and found[1][1] <= start:
                del found[0]
            self._epochs = tuple(found)
        return self._epochs

    @property
    def unsynced(self) -> bool:
        """Whether a sync would make more durable."""
        return self._synced < len(self.batches)

    def record(self, offset: int) -> tuple[int, int] | None:
        """Epoch and record at an offset, None when it has none there, or retention has removed it."""
        if self.start_offset <= offset < self.next_offset:
            return self._records[offset - self._base]
        return None

    def records(self, start: int, end: int) -> Sequence[tuple[int, int]]:
        """Epochs and records from `start` to in front of `end`, both within the log."""
        return self._records[start - self._base : end - self._base]

    def behind(self, offset: int, epoch: int, limit: int) -> list[Stored]:
        """The batches behind a log that ends there in that epoch, as `SendFrom` says; at most `limit`."""
        batches = self.batches
        at = bisect_left(batches, offset, key=_FIRST)
        while at < len(batches):
            batch = batches[at]
            if batch.records or batch.first > offset or batch.epoch > epoch:
                break
            at += 1
        return batches[at : at + limit]

    # -- what changes it; all raise DiskFullError and FuseError

    def append(self, batch: Stored) -> None:
        """Write a batch at the end."""
        assert batch.first == self.next_offset, (batch, self.next_offset)
        assert batch.epoch >= self.last_epoch, (batch, self.last_epoch)
        self._disk.append(LOG, (batch, self._synced + 1))
        self._add(batch)

    def _add(self, batch: Stored) -> None:
        if not self._starts or batch.epoch > self._starts[-1][0]:
            self._starts.append((batch.epoch, batch.first))
            self._epochs = None
        self.batches.append(batch)
        self._records.extend((batch.epoch, record) for record in batch.records)
        self.next_offset = batch.next_offset

    def sync(self, done: Callable[[], None]) -> None:
        """Sync; then `synced_offset` has moved, and `done`."""
        cuts, count = self._cuts, len(self.batches)

        def over() -> None:
            if cuts == self._cuts and count > self._synced:
                self._synced = count
                self.synced_offset = self.batches[count - 1].next_offset
            done()

        self._disk.sync(over)

    def truncate(self, offset: int) -> None:
        """Cut it off at an offset, and with what is there without records. To be synced then."""
        at = bisect_right(self.batches, offset, key=_FIRST)
        while at and (
            self.batches[at - 1].next_offset > offset
            or (self.batches[at - 1].first == offset and not self.batches[at - 1].records)
        ):
            at -= 1
        self._disk.cut(LOG, 1 + at)
        del self.batches[at:]
        self.next_offset = self.batches[-1].next_offset if self.batches else self._base
        del self._records[self.next_offset - self._base :]
        last = self.last_epoch
        while self._starts and self._starts[-1][0] > last:
            self._starts.pop()
        self._epochs = None
        self._cuts += 1
        self._synced = min(self._synced, at)
        self.synced_offset = min(self.synced_offset, self.next_offset)

    def restart(self, offset: int) -> None:
        """Drop everything, and begin at an offset. To be synced then."""
        self._disk.replace(LOG, [(offset, 0)])
        self._disk.replace(START, [offset])
        self._base = self.next_offset = self.start_offset = self.synced_offset = offset
        self.batches, self._records, self._starts, self._epochs = [], [], [], None
        self._synced = 0
        self._cuts += 1

    def retain(self, offset: int) -> None:
        """Retention removes the batches before the one that `offset` is in, as far as they are on disk."""
        offset = min(offset, self.synced_offset)
        at = bisect_right(self.batches, offset, key=_FIRST)
        if at and self.batches[at - 1].first > self.start_offset:
            self.start_offset = self.batches[at - 1].first
            self._epochs = None
            self._disk.replace(START, [self.start_offset])
