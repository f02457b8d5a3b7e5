"""The in-sync replicas of a partition as its leader keeps them.

The committed set is the metadata's. The leader watches its followers and proposes another set, as a
compare-and-set on the partition epoch, one proposal at a time. Until it knows what became of one, both
outcomes
are possible, and what it does must be right in both: so it commits only what the *maximal* set has, the
committed one and everyone whose admission it ever proposed against this partition epoch. Removing needs no
such care: who is to leave counts until it has left.

A proposal that was refused is dead. One without an answer may still be applied, however late, as long as the
partition epoch that it names lasts; so its members stay in the maximal set until that changes.

Admitted is who has everything that may be committed: its position, stated in this leader epoch, is behind the
high watermark and not before the start of the epoch; whose broker takes part under the broker epoch that it
stated; and who has lately been caught up. The last is so that nobody is admitted only to be removed for its
lag.

Removed is who has not been caught up for the longest lag, and at once who states that it has less than what
is
committed: it has lost data, and must not lead.

Invariants:
- The leader is in every set.
- The maximal set contains every set that the metadata may hold in this partition epoch or the next.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from liftbridge.metadata.model import Partition
from liftbridge.metadata.replica_operations import IsrChange
from liftbridge.metadata.replicas import Result
from liftbridge.replication.progress import Progress


class Unknown(Enum):
    """What became of a proposal, when there was no answer in time."""

    UNKNOWN = "nobody knows whether it was applied"


@dataclass(frozen=True, slots=True)
class Basis:
    """What the leader knows of its log when it looks at its followers.

    Attributes:
        high_watermark: the last offset that is committed.
        epoch_start: where its leader epoch begins.
        durable: whether only what is on disk counts as replicated.
    """

    high_watermark: int
    epoch_start: int
    durable: bool


class InSync:
    """The in-sync replicas.

    Arguments:
        broker: id of the leader's broker.
        stream_id: of the partition.
        partition: as the metadata has it.
        broker_epochs: of all brokers that take part and are to stay: those that are active.
        max_lag: how long a member need not be caught up, in the unit of all times here.
    """

    def __init__(
        self,
        broker: str,
        stream_id: uuid.UUID,
        partition: Partition,
        broker_epochs: Mapping[str, int],
        max_lag: float,
    ) -> None:
        self._broker = broker
        self._stream_id = stream_id
        self._partition = partition
        self._broker_epochs = broker_epochs
        self._max_lag = max_lag
        self._pending: IsrChange | None = None
        self._possible: set[str] = set()
        self._not_before = float("-inf")

    @property
    def committed(self) -> tuple[str, ...]:
        """The set that the metadata has."""
        return self._partition.isr

    @property
    def epoch(self) -> int:
        """The partition epoch that it knows."""
        return self._partition.epoch

    @property
    def pending(self) -> IsrChange | None:
        """The proposal that has not been answered."""
        return self._pending

    @property
    def maximal(self) -> frozenset[str]:
        """Everyone who may be in the set as the metadata has it by now."""
        proposed = {broker for broker, _ in self._pending.isr} if self._pending is not None else set()
        return frozenset({*self._partition.isr, *proposed, *self._possible})

    @property
    def successors(self) -> frozenset[str]:
        """Everyone who may lead next without an unclean election: who may be in sync, and, should all those
        be taken for dead, who is eligible."""
        return self.maximal.union(self._partition.elr) - {self._broker}

    def metadata(self, partition: Partition, broker_epochs: Mapping[str, int]) -> None:
        """The metadata has changed: this is the partition now, and these are the brokers that take part."""
        self._broker_epochs = broker_epochs
        self._not_before = float("-inf")
        if partition.epoch > self._partition.epoch:
            # Whatever was proposed named the epoch before, and can have no effect any more.
            self._partition = partition
            self._pending = None
            self._possible.clear()

    def propose(self, followers: Mapping[str, Progress], basis: Basis, now: float) -> IsrChange | None:
        """The change that is called for, None when there is none or one is under way.

        Whoever takes it has it applied and tells `resolve`.
        """
        if self._pending is not None or now < self._not_before:
            return None
        staying = [
            broker
            for broker in self._partition.isr
            if broker == self._broker or self._stays(followers.get(broker), basis, now)
        ]
        coming = [
            broker
            for broker in self._partition.replicas
            if broker not in self._partition.isr
            and (progress := followers.get(broker)) is not None
            and self._admissible(broker, progress, basis, now)
        ]
        lost = tuple(
            broker
            for broker in (*self._partition.isr, *self._partition.elr)
            if broker != self._broker and _has_lost(followers.get(broker), basis)
        )
        # A proposal that nobody wants any more, and that may still be applied, is ended by another one.
        lingering = not self._possible <= {*staying, *coming}
        if len(staying) == len(self._partition.isr) and not coming and not lost and not lingering:
            return None
        members = tuple((broker, self._broker_epoch(broker, followers)) for broker in (*staying, *coming))
        self._pending = IsrChange(
            self._stream_id,
            self._partition.id,
            self._partition.epoch,
            self._broker,
            self._partition.leader_epoch,
            members,
            lost,
        )
        return self._pending

    def resolve(self, change: IsrChange, outcome: Result | Unknown, now: float) -> None:
        """What became of a proposal.

        An accepted one still has to be told of by `metadata`, with the partition in the result.
        """
        if change != self._pending:
            return
        if isinstance(outcome, Unknown):
            self._possible.update(broker for broker, _ in change.isr)
        elif outcome.refusal is None:
            return
        self._pending = None
        # What was refused would be refused again until the metadata here has caught up with the reason.
        self._not_before = now + self._max_lag / 4

    def _broker_epoch(self, broker: str, followers: Mapping[str, Progress]) -> int:
        """The epoch that it stated in this leadership; of who has stated nothing yet, the metadata's."""
        progress = followers.get(broker)
        if progress is not None and progress.verified:
            return progress.broker_epoch
        return self._broker_epochs.get(broker, 0)

    def _stays(self, progress: Progress | None, basis: Basis, now: float) -> bool:
        assert progress is not None, "the leader knows of every in-sync replica"
        return not _has_lost(progress, basis) and now - progress.last_caught_up <= self._max_lag

    def _admissible(self, broker: str, progress: Progress, basis: Basis, now: float) -> bool:
        needed = max(basis.high_watermark + 1, basis.epoch_start)
        return (
            progress.verified
            and progress.position(basis.durable) >= needed
            and progress.broker_epoch == self._broker_epochs.get(broker)
            and now - progress.last_caught_up <= self._max_lag
        )


def _has_lost(progress: Progress | None, basis: Basis) -> bool:
    """Whether a replica that had everything that is committed states that it has not."""
    return progress is not None and progress.verified and progress.next_offset <= basis.high_watermark
