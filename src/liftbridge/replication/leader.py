"""The leader's side of one partition in one leader epoch.

It is made when its log has the beginning of the epoch, and knows nothing then of what the others have. What a
follower states is compared with the leader's own log every time, so that a log which differs is found at
once, however it came to differ: only what was found equal, in this epoch, counts for anything.

Comparing needs no more than the end of the follower's log and the epoch of its last batch, because two logs
that have a batch of the same epoch at the same offset are equal up to there: within an epoch there is one
leader that appends, and followers append what it has where it has it. If the leader's log does not contain
(epoch, next offset), it answers with the largest epoch up to that one that it has, and where it ends
(KIP-101, KIP-279). The follower cuts its log off there, and states again.

The high watermark is the last offset that every replica of the maximal in-sync set (`isr`) has, on disk if
the stream counts only that, as long as the committed set has `min_isr` members. A replica that has not stated
its position in this epoch holds it up. It may be in front of the epoch's start for a while: what earlier
epochs have left is committed as soon as all have it, which suffices, as the next leader is one of them. But
until it has reached the start (`established`) offsets may have been committed and told by earlier leaders
that this one does not know as such.

Invariants:
- The high watermark never falls, and is in front of the own end.
- A statement of another leader epoch, of an earlier run of a broker, of an earlier session or of a stranger
  changes nothing and is answered.
- With fewer committed in-sync replicas than `min_isr` nothing is committed.
- After `retire` nothing is committed, acked, accepted or proposed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from liftbridge.log.epochs import end_of_epoch
from liftbridge.metadata.model import Guarantees, Partition
from liftbridge.metadata.replica_operations import IsrChange
from liftbridge.metadata.replicas import Result
from liftbridge.replication.acks import AckGate, AckLimits
from liftbridge.replication.isr import Basis, InSync, Unknown
from liftbridge.replication.lease import Lease
from liftbridge.replication.messages import (
    NEVER,
    Accepted,
    Answer,
    Batch,
    BeginAt,
    Data,
    Diverging,
    Fence,
    Fenced,
    LogView,
    Statement,
)
from liftbridge.replication.progress import Progress


@dataclass(frozen=True, slots=True)
class SendFrom:
    """What a follower is to be sent next: the batches of the leader's log behind this place.

    Attributes:
        session: that they are for.
        next_offset, last_epoch: where a log ends that has everything before. Of the batches at that offset
            those without records up to that epoch are in it.
    """

    session: int
    next_offset: int
    last_epoch: int


class Leader:
    """The leader of a partition.

    Arguments:
        broker: id of its broker.
        stream_id: of the partition.
        partition: as the metadata has it; its leader is `broker`.
        guarantees: of the stream.
        log: its log, the last batch of which begins the leader epoch.
        high_watermark: what it knew to be committed before.
        broker_epochs: of the active brokers.
        max_lag: how long an in-sync replica need not be caught up, in the unit of all times here.
        now: the time.
    """

    def __init__(
        self,
        broker: str,
        stream_id: uuid.UUID,
        partition: Partition,
        guarantees: Guarantees,
        log: LogView,
        *,
        high_watermark: int,
        broker_epochs: Mapping[str, int],
        max_lag: float,
        now: float,
    ) -> None:
        assert partition.leader == broker, partition
        assert log.last_epoch == partition.leader_epoch, (log.last_epoch, partition)
        self.broker = broker
        self.epoch = partition.leader_epoch
        self.epoch_start = log.next_offset
        self._guarantees = guarantees
        self._log = log
        self._replicas = partition.replicas
        self._high_watermark = min(high_watermark, log.next_offset - 1)
        self._isr = InSync(broker, stream_id, partition, broker_epochs, max_lag)
        self._broker_epochs = broker_epochs
        self._acks = AckGate(guarantees.synced)
        self._retired = False
        # In-sync replicas have the longest lag from now on to state anything.
        self._followers = {each: Progress(last_caught_up=now) for each in partition.isr if each != broker}

    @property
    def high_watermark(self) -> int:
        """The last offset that is committed, -1 for none."""
        return self._high_watermark

    @property
    def established(self) -> bool:
        """Whether all that earlier leaders have committed is known to be: only then is the high watermark the
        newest that anybody was told (KIP-207)."""
        return self._high_watermark + 1 >= self.epoch_start

    @property
    def retired(self) -> bool:
        """Whether it leads no more."""
        return self._retired

    @property
    def isr(self) -> InSync:
        """The in-sync replicas."""
        return self._isr

    @property
    def under_min_isr(self) -> bool:
        """Whether nothing can be committed: a message that is to be acked when it is may be refused."""
        return len(self._isr.committed) < self._guarantees.min_isr

    @property
    def followers(self) -> Mapping[str, Progress]:
        """What is known of the others, by broker; not to be changed."""
        return self._followers

    # -- statements

    def state(self, statement: Statement, now: float) -> Answer:
        """What a follower stated, and what to answer; may move the high watermark.

        Of answers to a position within a session only those that are not `Accepted` have to be sent.
        """
        fence = self._fence(statement)
        if fence is not None:
            return Fenced(self.epoch, statement.session, fence)
        progress = self._followers.setdefault(statement.broker, Progress())
        if progress.outdated(statement):
            return Fenced(self.epoch, statement.session, Fence.OLD_SESSION)
        refused = self._compare(statement)
        if refused is not None and not self._has_forgotten(statement, refused, progress):
            progress.doubted(statement, now)
            return refused
        progress.stated(statement, self._end, self._guarantees.synced, now)
        self.commit()
        return Accepted(self.epoch, statement.session, self._high_watermark)

    def _fence(self, statement: Statement) -> Fence | None:
        if self._retired:
            return Fence.NOT_LEADING
        if statement.leader_epoch < self.epoch:
            return Fence.OLD_LEADER_EPOCH
        if statement.leader_epoch > self.epoch:
            return Fence.UNKNOWN_LEADER_EPOCH
        if statement.broker == self.broker or statement.broker not in self._replicas:
            return Fence.NOT_A_REPLICA
        if statement.broker_epoch < self._broker_epochs.get(statement.broker, 0):
            return Fence.OLD_BROKER_EPOCH
        return None

    def _compare(self, statement: Statement) -> Diverging | BeginAt | None:
        """What is wrong with a follower's log, None if it is the beginning of the leader's."""
        log, end = self._log, statement.next_offset
        start = log.start_offset
        if end < start:
            return BeginAt(self.epoch, statement.session, start)
        if statement.last_epoch == self.epoch and self.epoch_start <= end <= log.next_offset:
            return None  # the usual case, and cheap
        epochs = log.epochs
        epoch, epoch_end = end_of_epoch(epochs, statement.last_epoch, log.next_offset)
        if epoch < 0 and statement.log_start == end:
            # It has no record, and nothing to be compared; only it must not begin behind the leader's end.
            return None if end <= log.next_offset else Diverging(self.epoch, statement.session, -1, start)
        if epoch == statement.last_epoch:
            if dict(epochs)[epoch] <= end <= epoch_end:
                return None
            if end <= epoch_end:
                # The epoch began behind it: what the follower has of that epoch is not the same.
                epoch, epoch_end = end_of_epoch(epochs, epoch - 1, log.next_offset)
        return Diverging(self.epoch, statement.session, epoch, epoch_end)

    def _has_forgotten(self, statement: Statement, refused: Diverging | BeginAt, progress: Progress) -> bool:
        """Whether a position does not fit only because retention has removed what was there since it was
        sent.

        That the follower has it is known of the session, and what comes next is on its way.
        """
        return (
            progress.verified
            and not progress.renewed(statement)
            and statement.next_offset <= progress.sent_offset
            and progress.sent_offset >= self._log.start_offset
            and (isinstance(refused, BeginAt) or refused.epoch < 0)
        )

    # -- sending

    def send_from(self, broker: str) -> SendFrom | None:
        """What to send a follower next, None as long as its log has not been found to fit."""
        progress = self._followers.get(broker)
        if progress is None or not progress.verified or self._retired:
            return None
        return SendFrom(progress.session, progress.sent_offset, progress.sent_epoch)

    def data(
        self, broker: str, session: int, batches: Iterable[Batch] = (), now: float = NEVER
    ) -> Data | None:
        """What to send with these batches, which are those that `send_from` asked for; a heartbeat for none.

        Without the time it proves nothing to this leader when the follower has heard it. None when the
        session has ended since.
        """
        progress = self._followers.get(broker)
        if progress is None or not progress.verified or progress.session != session or self._retired:
            return None
        sent = tuple(batches)
        if sent:
            assert sent[0].first == progress.sent_offset, (sent[0], progress)
            progress.sent_offset, progress.sent_epoch = sent[-1].next_offset, sent[-1].epoch
        return Data(self.epoch, session, sent, self._high_watermark, self._log.start_offset, now)

    # -- committing

    @property
    def _end(self) -> int:
        log = self._log
        return log.synced_offset if self._guarantees.synced else log.next_offset

    def commit(self) -> int:
        """Move the high watermark to where it may be, and return it. To be called after own appends and
        syncs.
        """
        if self._retired or self.under_min_isr:
            return self._high_watermark
        least = self._end
        for broker in self._isr.maximal:
            if broker == self.broker:
                continue
            progress = self._followers.get(broker)
            if progress is None or not progress.verified:
                return self._high_watermark
            least = min(least, progress.position(self._guarantees.synced))
        self._high_watermark = max(self._high_watermark, least - 1)
        return self._high_watermark

    def acks(self, lease: Lease, now: float) -> AckLimits:
        """Up to where acks may leave."""
        return self._acks.limits(
            self._log.next_offset,
            self._log.synced_offset,
            self._high_watermark,
            leased=self.leased(lease, now),
        )

    def leased(self, lease: Lease, now: float) -> bool:
        """Whether it may ack by itself, without asking anybody. Another leader may have been made meanwhile,
        but not for longer than the lease lasts."""
        return not self._retired and lease.valid(now, self._heard(self._isr.successors))

    def alone(self, lease: Lease, since: float, now: float) -> bool:
        """Whether nobody else has led at `since`: what it knows to be committed was the newest then.

        For answers that must not be old, such as that of a cursor. `since` is when the question came. Nobody
        was made leader for this one's silence, by its lease; nobody else was who is in sync, as each of them
        has followed it since. Those hear from it at the next heartbeat; the caller may send one at once. And
        what was committed before this leader must be known to be.
        """
        return (
            not self._retired
            and self.established
            and now < lease.until
            and min(self._heard(self._isr.maximal - {self.broker}), default=since) >= since
        )

    def _heard(self, brokers: Iterable[str]) -> list[float]:
        """When each of these has followed this leader for certain."""
        return [self._followers[each].heard if each in self._followers else NEVER for each in brokers]

    # -- in-sync replicas

    def propose(self, now: float) -> IsrChange | None:
        """The change of the in-sync replicas to have applied, if one is called for; see `InSync.propose`."""
        if self._retired:
            return None
        basis = Basis(self._high_watermark, self.epoch_start, self._guarantees.synced)
        return self._isr.propose(self._followers, basis, now)

    def resolve(self, change: IsrChange, outcome: Result | Unknown, now: float) -> None:
        """What became of a proposal; may move the high watermark."""
        self._isr.resolve(change, outcome, now)
        partition = outcome.partition if isinstance(outcome, Result) else None
        if partition is not None and partition.epoch > self._isr.epoch:
            # Also when it was refused: if the partition has changed, perhaps by this very proposal, which
            # came twice, then nothing may be committed on what was before.
            self.metadata(partition, self._broker_epochs, now)
        self.commit()

    def metadata(self, partition: Partition | None, broker_epochs: Mapping[str, int], now: float) -> bool:
        """The metadata is so now; returns whether it leads still. May move the high watermark.

        Arguments:
            partition: None when it was deleted.
            broker_epochs: of the active brokers.
            now: the time.
        """
        if partition is None or (partition.leader, partition.leader_epoch) != (self.broker, self.epoch):
            # An answer to a proposal may be older than what is known.
            if partition is None or partition.leader_epoch > self.epoch:
                self.retire()
            return not self._retired
        self._broker_epochs = broker_epochs
        self._isr.metadata(partition, broker_epochs)
        if partition.epoch >= self._isr.epoch:
            self._replicas = partition.replicas
        for broker in [each for each in self._followers if each not in self._replicas]:
            del self._followers[broker]
        for broker in self._isr.committed:
            if broker != self.broker:
                self._followers.setdefault(broker, Progress(last_caught_up=now))
        self.commit()
        return not self._retired

    def retire(self) -> None:
        """It leads no more: the first step of stepping down."""
        self._retired = True
        self._acks.close()
