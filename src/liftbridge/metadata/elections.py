"""Who is to lead a partition, and what remains of its in-sync replicas when one goes.

Pure functions from one immutable partition to the next. The order of who may lead:

1. In-sync replicas. They have every committed message.
2. Eligible leader replicas (ELR, KIP-966). A replica that leaves the in-sync ones when too few stay for
   anything to be committed has every committed message for as long as they are too few: so long it is
   remembered.
3. The most complete of the last known replicas, when neither of these sets has anybody left: each of their
   members has come back without what it had not synced. One that was alone leads again by itself; of several,
   all have to be alive and asked what they have (`most_complete`), as in KIP-966's balanced recovery.
4. Any replica, only if the stream or an operator allows it: the one with the most (`most_complete`).

3 and 4 may lose committed messages, so they are recorded in the partition (`unclean_epoch`).

Invariants:
- A leader takes part (`Broker.alive`) and is an in-sync replica. Without a leader nobody is in sync.
- A leader epoch is the index of the operation that made the leader; also when it led before.
- Whoever may lack committed messages is neither in sync nor eligible.
- With `min_isr` in-sync replicas nobody else is eligible: they commit without the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from liftbridge.metadata.brokers import Brokers, BrokerState
from liftbridge.metadata.model import Guarantees, Partition


class Loss(Enum):
    """What a replica may lack of what it had."""

    NONE = 0
    UNSYNCED = 1  # what no sync had covered
    ANYTHING = 2


@dataclass(slots=True)
class Electorate:
    """What a choice depends on, beside the partition.

    Attributes:
        brokers: the registry.
        led: how many partitions each broker leads; whoever elects counts on.
        wish: who the proposer would like to lead, "" for nobody.
    """

    brokers: Brokers
    led: Mapping[str, int] = field(default_factory=dict)
    wish: str = ""

    def best(self, partition: Partition, candidates: Iterable[str]) -> str:
        """Who of the candidates is to lead, "" when none can.

        Not one that is about to stop; then whom the proposer wishes; then the preferred leader, which is the
        first replica; then one that leads little; then one in another rack than the last leader's.
        """
        records = self.brokers.by_id
        rack = records[partition.leader].rack if partition.leader in records else ""

        def order(broker: str) -> tuple[bool, bool, bool, int, bool, str]:
            record = records[broker]
            return (
                record.state is not BrokerState.ACTIVE,
                broker != self.wish,
                partition.replicas[:1] != (broker,),
                self.led.get(broker, 0),
                record.rack == rack,
                broker,
            )

        alive = [broker for broker in candidates if self.brokers.alive(broker)]
        return min(alive, key=order, default="")


def most_complete(positions: Mapping[str, tuple[int, int]], preferred: Collection[str] = ()) -> str:
    """Whom an unclean election is to choose: the replica with the highest (last epoch, next offset), as in
    KIP-1275.

    Arguments:
        positions: the position of each replica that is alive; not empty.
        preferred: earlier ones are chosen among equals.
    """
    ranks = {broker: rank for rank, broker in enumerate(preferred)}

    def order(broker: str) -> tuple[int, int, int, str]:
        epoch, next_offset = positions[broker]
        return -epoch, -next_offset, ranks.get(broker, len(ranks)), broker

    return min(positions, key=order)


def with_isr(partition: Partition, members: Collection[str], guarantees: Guarantees) -> Partition:
    """The partition with these in-sync replicas, and what that makes of the eligible ones.

    Those that leave, and those that were eligible, are eligible when the members are fewer than `min_isr`.
    """
    isr = tuple(broker for broker in partition.replicas if broker in members)
    if len(isr) >= guarantees.min_isr:
        return replace(partition, isr=isr, elr=(), last_known=())
    eligible = {*partition.elr, *partition.isr} - set(isr)
    return replace(
        partition,
        isr=isr,
        elr=tuple(broker for broker in partition.replicas if broker in eligible),
        last_known=_others(partition.last_known, *isr),
    )


def led_by(partition: Partition, leader: str, index: int, guarantees: Guarantees) -> Partition:
    """The partition with a leader that has every committed message, from operation `index` on."""
    assert leader in partition.isr or leader in partition.elr, (leader, partition)
    if leader not in partition.isr:
        partition = with_isr(partition, {*partition.isr, leader}, guarantees)
    return replace(partition, leader=leader, leader_epoch=index, epoch=index)


def led_uncleanly_by(partition: Partition, leader: str, index: int) -> Partition:
    """The partition with a leader that may lack committed messages, from operation `index` on."""
    return replace(
        partition,
        leader=leader,
        isr=(leader,),
        elr=(),
        leader_epoch=index,
        epoch=index,
        last_known=(),
        unclean_epoch=index,
    )


def offline(partition: Partition, index: int, guarantees: Guarantees) -> Partition:
    """The partition without a leader: those that are in sync are eligible from now on."""
    partition = with_isr(partition, (), guarantees)
    return replace(partition, leader="", leader_epoch=index, epoch=index)


def elected(
    partition: Partition, index: int, guarantees: Guarantees, electorate: Electorate, *, not_by: str = ""
) -> Partition:
    """The partition after an election without an operator, offline when there is nobody.

    It is not led by `not_by`.
    """
    leader = electorate.best(partition, _others(partition.isr, not_by))
    if not leader:
        # Nobody in sync takes part: they are eligible, like those that left before.
        partition = with_isr(partition, (), guarantees)
        leader = electorate.best(partition, _others(partition.elr, not_by))
    if leader:
        return led_by(partition, leader, index, guarantees)
    if recoverable(partition, electorate.brokers) and len(partition.last_known) == 1 and not not_by:
        return led_uncleanly_by(partition, partition.last_known[0], index)
    return offline(partition, index, guarantees)


def without(
    partition: Partition,
    broker: str,
    index: int,
    guarantees: Guarantees,
    electorate: Electorate,
    *,
    loss: Loss,
) -> Partition:
    """The partition when a replica is taken out of the in-sync ones, or the same object if it makes no
    difference.

    Arguments:
        broker: whose replica.
        index: of the operation.
        loss: what it may lack; if anything, it must not lead before it has caught up.
    """
    leads = partition.leader == broker
    trusted = {*partition.isr, *(partition.elr if loss is not Loss.NONE else ())}
    if loss is Loss.ANYTHING:
        trusted.update(partition.last_known)
    if not leads and broker not in trusted:
        return partition
    left = with_isr(partition, _others(partition.isr, broker), guarantees)
    if loss is not Loss.NONE:
        known = _others(left.last_known, broker)
        if loss is Loss.UNSYNCED and len(left.isr) < guarantees.min_isr:
            known = (*known, broker)
        left = replace(left, elr=_others(left.elr, broker), last_known=known)
    if not leads:
        return replace(left, epoch=index)
    # The epoch of its leadership ends also when nobody else can lead.
    return elected(left, index, guarantees, electorate, not_by=broker)


def recoverable(partition: Partition, brokers: Brokers) -> bool:
    """Whether the most complete of the last known replicas may lead.

    That is so when nobody is left who has everything, and all of them can be asked what they have.
    """
    return bool(
        not partition.isr
        and not partition.elr
        and partition.last_known
        and all(brokers.alive(broker) for broker in partition.last_known)
    )


def _others(brokers: Iterable[str], *without: str) -> tuple[str, ...]:
    return tuple(each for each in brokers if each not in without)
