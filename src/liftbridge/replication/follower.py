"""The follower's side of one partition in one leader epoch.

It says where its log ends, and takes what the leader sends as long as it goes on exactly there. Whatever does
not fit is not appended, and it begins a new session by saying again where it is: so lost, repeated and late
messages cost time and nothing else.

Its high watermark is what the leader says is committed, as far as its own log goes. It never cuts its log off
in front of that, since readers may have seen what is there: if it had to, one of the two logs has lost
committed messages. The exception is an election that was known to cost some (`Partition.unclean_epoch`):
whose log has nothing of that epoch or a later one got its high watermark before it.

What the leader says about its disk, in batches too, is no news of this one: what is on disk here says the
log.

Invariants:
- Appended is only what follows the end of the log, in the session and the leader epoch that it is in, with
  epochs that do not fall and are not above the leader's.
- The high watermark is in front of the own end, and falls only in such an election.
- Nothing is received between an order to change the log and the session begun after it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import TypeAlias

from liftbridge.log.epochs import end_of_epoch
from liftbridge.metadata.model import Partition
from liftbridge.replication.messages import (
    NEVER,
    NO_EPOCH,
    Accepted,
    Batch,
    BeginAt,
    Data,
    Diverging,
    Fence,
    Fenced,
    LogView,
    Statement,
    ToFollower,
)


@dataclass(frozen=True, slots=True)
class Append:
    """Append the last `count` batches of the data, in their order, as they are; then `Follower.appended`."""

    count: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Cut the log off at this offset, and with what it has there without records; then `Follower.begin`."""

    offset: int


@dataclass(frozen=True, slots=True)
class Restart:
    """Drop the whole log, and begin one at this offset that has nothing and no epoch; then
    `Follower.begin`.
    """

    offset: int


class Misfit(Enum):
    """Why data was not appended."""

    GAP = "it does not begin where the log ends"
    CONFLICT = "the log has something else there"
    FALLING_EPOCH = "its epoch is below that of the log's last batch"
    FUTURE_EPOCH = "its epoch is above the leader's"
    NO_PROGRESS = "the leader tells to cut the log off where it would not become shorter"


@dataclass(frozen=True, slots=True)
class Restate:
    """Send `Follower.begin`. A `reason` is a defect somewhere, to be counted and logged; None is none."""

    reason: Misfit | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until the metadata changes, or `retry` says that the leader may know more soon."""

    reason: Fence
    retry: bool


@dataclass(frozen=True, slots=True)
class Damaged:
    """Stop, and say so: the leader's log ends at `offset`, but offsets up to `high_watermark` were
    committed.
    """

    offset: int
    high_watermark: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is nothing to do."""


Action: TypeAlias = Append | Truncate | Restart | Restate | Wait | Damaged | Nothing
NOTHING = Nothing()


def sessions_of(broker_epoch: int) -> Iterator[int]:
    """Numbers for the sessions of a broker, in all partitions: none is used again after a restart, as data
    for the run before it may be on its way."""
    return count(broker_epoch << 24)


class Follower:
    """The follower of a partition.

    Arguments:
        broker, broker_epoch: its broker.
        partition: as the metadata has it, with another leader.
        log: its log.
        high_watermark: what it knew to be committed before.
        sessions: those of `sessions_of`, shared by all followers of the broker.
    """

    def __init__(
        self,
        broker: str,
        broker_epoch: int,
        partition: Partition,
        log: LogView,
        *,
        high_watermark: int,
        sessions: Iterator[int],
    ) -> None:
        assert partition.leader not in ("", broker), partition
        self._broker = broker
        self._broker_epoch = broker_epoch
        self.epoch = partition.leader_epoch
        self._unclean_epoch = partition.unclean_epoch
        self._log = log
        self._high_watermark = min(high_watermark, log.next_offset - 1)
        self._told = self._high_watermark
        self._sessions = sessions
        self._session: int | None = None
        self._stated: tuple[int, int, int] | None = None
        self._accepted = False
        self._heard = NEVER
        self.damaged = False

    @property
    def high_watermark(self) -> int:
        """The last offset here that is committed, -1 for none."""
        return self._high_watermark

    @property
    def readable(self) -> bool:
        """Whether what is up to the high watermark may be read here. Not as long as an unclean election may
        have made something else of it."""
        return not self.damaged and (self._accepted or not self._may_lose)

    def metadata(self, partition: Partition) -> bool:
        """The metadata is so now; returns whether this is the same leader epoch still."""
        self._unclean_epoch = max(self._unclean_epoch, partition.unclean_epoch)
        return partition.leader_epoch == self.epoch

    # -- statements

    def begin(self) -> Statement:
        """A statement that begins a session: the first on a connection, and after a change of the log."""
        assert not self.damaged, "a damaged replica states nothing"
        self._session = next(self._sessions)
        return self._statement(self._session)

    def progress(self) -> Statement | None:
        """A statement in the session if the log has grown or was synced since the last one."""
        if self._session is None or self._stated == self._ends():
            return None
        return self._statement(self._session)

    def position(self) -> Statement | None:
        """A statement in the session, to be heard of; None between sessions."""
        return None if self._session is None else self._statement(self._session)

    def _ends(self) -> tuple[int, int, int]:
        log = self._log
        return log.next_offset, log.last_epoch, log.synced_offset

    def _statement(self, session: int) -> Statement:
        self._stated = self._ends()
        next_offset, last_epoch, synced_offset = self._stated
        return Statement(
            self._broker,
            self._broker_epoch,
            self.epoch,
            session,
            next_offset,
            last_epoch,
            min(synced_offset, next_offset),
            self._log.start_offset,
            self._heard,
        )

    # -- what comes

    def receive(self, message: ToFollower) -> Action:
        """What to do with what has come from the leader."""
        if self.damaged:
            return NOTHING
        if isinstance(message, Fenced):
            return self._fenced(message)
        if message.leader_epoch != self.epoch or message.session != self._session:
            return NOTHING  # a session that has ended
        if isinstance(message, Data):
            self._heard = max(self._heard, message.sent)
            return self._data(message)
        if isinstance(message, Accepted):
            self._accepted = True
            self._committed(message.high_watermark)
            return NOTHING
        if isinstance(message, BeginAt):
            if self._log.next_offset >= message.log_start:
                return self._restate()  # what was on its way when it was said has brought it there
            return self._begin_at(message.log_start)
        return self._diverging(message)

    def appended(self) -> int:
        """The data of the last `Append` is in the log; returns the high watermark."""
        self._committed(self._told)
        return self._high_watermark

    def _committed(self, high_watermark: int) -> None:
        self._told = max(self._told, high_watermark)
        self._high_watermark = max(self._high_watermark, min(self._told, self._log.next_offset - 1))

    def _fenced(self, message: Fenced) -> Action:
        if message.session != self._session and message.reason is not Fence.OLD_SESSION:
            return NOTHING
        if message.reason is Fence.OLD_SESSION:
            # Of a newer one there is nothing to be said again.
            return self._restate() if message.session == self._session else NOTHING
        self._session = None
        # The leader may not have heard yet of its own epoch, or of a replica that was added; all else
        # is for this broker to hear.
        retry = message.reason in (Fence.UNKNOWN_LEADER_EPOCH, Fence.NOT_A_REPLICA)
        return Wait(message.reason, retry)

    def _restate(self, reason: Misfit | None = None) -> Restate:
        self._session = None
        return Restate(reason)

    def _data(self, data: Data) -> Action:
        end, epoch = self._log.next_offset, self._log.last_epoch
        fresh = 0
        for batch in data.batches:
            if not fresh and self._is_duplicate(batch, end, epoch):
                if self._epoch_at(batch) != batch.epoch:
                    return self._restate(Misfit.CONFLICT)
                continue
            misfit = self._misfit(batch, end, epoch)
            if misfit is not None:
                return self._restate(misfit)
            end, epoch = batch.next_offset, batch.epoch
            fresh += 1
        self._told = max(self._told, data.high_watermark)
        if fresh:
            return Append(fresh)
        self._committed(data.high_watermark)
        return NOTHING

    def _misfit(self, batch: Batch, end: int, epoch: int) -> Misfit | None:
        if batch.epoch > self.epoch:
            return Misfit.FUTURE_EPOCH
        if batch.first > end:
            return Misfit.GAP
        if batch.first < end or batch.next_offset < batch.first:
            return Misfit.CONFLICT
        if batch.epoch < epoch:
            return Misfit.FALLING_EPOCH
        return None

    @staticmethod
    def _is_duplicate(batch: Batch, end: int, epoch: int) -> bool:
        if batch.first == batch.next_offset == end:
            return batch.epoch <= epoch
        return batch.first < end and batch.next_offset <= end

    def _epoch_at(self, batch: Batch) -> int:
        """The epoch of what the log has in the place of a batch."""
        epochs = self._log.epochs
        if batch.first == batch.next_offset:
            # It has no records: the epoch is there if the log has had it.
            return batch.epoch if any(epoch == batch.epoch for epoch, _ in epochs) else -1
        at = bisect_right(epochs, batch.first, key=lambda entry: entry[1])
        return epochs[at - 1][0] if at else batch.epoch

    def _diverging(self, message: Diverging) -> Action:
        log = self._log
        if message.epoch < 0:
            return self._begin_at(message.end_offset)
        _, own_end = end_of_epoch(log.epochs, message.epoch, log.next_offset)
        target = min(own_end, message.end_offset)
        if target <= log.start_offset:
            return self._begin_at(target)
        if message.epoch >= log.last_epoch and target >= log.next_offset:
            return self._restate(Misfit.NO_PROGRESS)
        if target <= self._high_watermark:
            if not self._may_lose:
                return self._damage(target)
            self._high_watermark = self._told = target - 1
        self._session = None
        return Truncate(target)

    def _begin_at(self, offset: int) -> Action:
        """Nothing of the log is in the leader's. What is dropped of it is in front of where that begins,
        unless it was not committed."""
        if offset <= self._high_watermark and not self._may_lose:
            return self._damage(offset)
        if (self._log.start_offset, self._log.next_offset, self._log.last_epoch) == (
            offset,
            offset,
            NO_EPOCH,
        ):
            return self._restate(Misfit.NO_PROGRESS)
        self._high_watermark = self._told = min(self._high_watermark, offset - 1)
        self._session = None
        return Restart(offset)

    @property
    def _may_lose(self) -> bool:
        return self._unclean_epoch > self._log.last_epoch

    def _damage(self, offset: int) -> Damaged:
        self.damaged = True
        self._session = None
        return Damaged(offset, self._high_watermark)
