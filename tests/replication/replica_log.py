"""A log in memory that the machines of replication can be run on; its disk loses what was not synced."""

from __future__ import annotations

from dataclasses import dataclass

from liftbridge.replication.messages import Batch


@dataclass(frozen=True)
class Stored:
    """A batch with its payloads, by offset; none for the beginning of an epoch."""

    first: int
    epoch: int
    records: tuple[str, ...] = ()

    @property
    def next_offset(self) -> int:
        return self.first + len(self.records)

    @property
    def span(self) -> Batch:
        return Batch(self.first, self.next_offset, self.epoch, 50 + sum(map(len, self.records)))


class ReplicaLog:
    """A `LogView`, and the changes of a log.

    Invariant, checked at each append: batches follow one another, and epochs do not fall.
    """

    def __init__(self, start: int = 0) -> None:
        self.start_offset = start
        self.batches: list[Stored] = []
        self._base = start
        self._synced_batches = 0
        self._records: dict[int, tuple[int, str]] | None = None

    @property
    def next_offset(self) -> int:
        return self.batches[-1].next_offset if self.batches else self._base

    @property
    def synced_offset(self) -> int:
        return self.batches[self._synced_batches - 1].next_offset if self._synced_batches else self._base

    @property
    def last_epoch(self) -> int:
        return self.batches[-1].epoch if self.batches else 0

    @property
    def epochs(self) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        for batch in self.batches:
            if not found or batch.epoch > found[-1][0]:
                found.append((batch.epoch, max(batch.first, self.start_offset)))
        while len(found) > 1 and found[1][1] <= self.start_offset:
            del found[0]
        return tuple(found)

    @property
    def records(self) -> dict[int, tuple[int, str]]:
        """(epoch, payload) by offset."""
        if self._records is None:
            self._records = {
                batch.first + at: (batch.epoch, record)
                for batch in self.batches
                for at, record in enumerate(batch.records)
                if batch.first >= self.start_offset
            }
        return self._records

    def append(self, epoch: int, *records: str) -> None:
        """What a leader does, and what it does first, without records."""
        self.store(Stored(self.next_offset, epoch, records))

    def store(self, batch: Stored) -> None:
        assert batch.first == self.next_offset, (batch, self.next_offset)
        assert batch.epoch >= self.last_epoch, (batch, self.last_epoch)
        self.batches.append(batch)
        if self._records is not None:
            self._records.update(
                {batch.first + at: (batch.epoch, record) for at, record in enumerate(batch.records)}
            )

    def behind(self, offset: int, epoch: int) -> list[Stored]:
        """The batches behind a log that ends there in that epoch, as `SendFrom` says."""
        return [
            batch
            for batch in self.batches
            if batch.first >= offset and (batch.records or batch.first > offset or batch.epoch > epoch)
        ]

    def sync(self) -> None:
        self._synced_batches = len(self.batches)

    def lose_unsynced(self) -> None:
        del self.batches[self._synced_batches :]
        self._records = None

    def truncate(self, offset: int) -> None:
        """As `log.Log.truncate`."""
        self.batches = [
            batch
            for batch in self.batches
            if batch.next_offset <= offset and not (batch.first == offset and not batch.records)
        ]
        self._records = None
        self.sync()

    def restart(self, offset: int) -> None:
        self.start_offset = self._base = offset
        self.batches = []
        self._records = None
        self.sync()

    def retain(self, offset: int) -> None:
        """Retention removes the batches before the one that `offset` is in, as far as they are on disk."""
        offset = min(offset, self.synced_offset)
        start = max((batch.first for batch in self.batches if batch.first <= offset), default=0)
        self.start_offset = max(self.start_offset, start)
        self._records = None
