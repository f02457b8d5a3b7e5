"""What operations on replicas and on brokers do to partitions: the rules, as functions of the state.

A change of a partition is a compare-and-set: it names the partition epoch, and where it matters leader,
leader epoch and broker epochs, that it was decided on. One that does not fit is a `Refusal` in the outcome,
and the others of the operation go on. What happens to a broker changes every partition that it touches, in
the same operation.

Invariants:
- A change of leader, in-sync replicas or replicas makes the index of its operation the partition epoch.
- Only brokers that take part, under the broker epoch that they have now, become in-sync replicas (KIP-903);
  only the leader of the current epoch says who does, and it is one of them.
- A reassignment ends when all replicas that it adds are in sync, in the operation that makes them so.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from liftbridge.metadata.broker_operations import (
    BrokerOperation,
    DrainBroker,
    Ended,
    FenceBroker,
    RegisterBroker,
    UnfenceBroker,
    UnregisterBroker,
    Wishes,
    WithdrawReplicas,
)
from liftbridge.metadata.brokers import Broker, Brokers, BrokerState
from liftbridge.metadata.elections import (
    Electorate,
    Loss,
    elected,
    led_by,
    led_uncleanly_by,
    recoverable,
    with_isr,
    without,
)
from liftbridge.metadata.model import Partition, Stream
from liftbridge.metadata.replica_operations import (
    IsrChange,
    LeaderChange,
    Mode,
    PartitionChange,
    Reassignment,
    ReplicaOperation,
)

_LOSS = {Ended.CLEAN: Loss.NONE, Ended.UNCLEAN: Loss.UNSYNCED, Ended.LOST: Loss.ANYTHING}


class Refusal(Enum):
    """Why a change of one partition had no effect."""

    NO_PARTITION = "there is no such partition"
    PARTITION_EPOCH = "the partition has changed since"
    LEADER = "another broker leads it"
    LEADER_EPOCH = "it has a newer leader epoch"
    NOT_A_REPLICA = "a broker holds no replica of it"
    BROKER_EPOCH = "a broker has registered anew since, or never did"
    NOT_ALIVE = "a broker is fenced or was removed"
    LEADER_NOT_IN_SYNC = "the leader must be an in-sync replica"
    NOT_ELIGIBLE = "the broker may lack committed messages"
    NOT_ALLOWED = "an unclean election is not allowed, or not needed"
    INVALID = "replicas must be brokers of the cluster, each once, and one at least"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a change of one partition.

    Attributes:
        stream_id, partition_id: which.
        partition: as it is after the operation; None when there is none.
        refusal: why it was not changed, None when it was.
    """

    stream_id: uuid.UUID
    partition_id: int
    partition: Partition | None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What came of an operation on replicas or on a broker.

    Attributes:
        results: of a replica operation one for each change, in its order; of one on a broker the partitions
            that it has changed.
        broker: the broker that an operation is about, as it is after it.
    """

    results: tuple[Result, ...]
    broker: Broker | None = None


class Changes:
    """The partitions that one operation changes, on top of the streams as they are.

    Arguments:
        index: of the operation.
        streams: all streams by UUID.
        brokers: the registry; changed already, if the operation is about a broker.
        led: how many partitions each broker leads.
    """

    def __init__(
        self, index: int, streams: Mapping[uuid.UUID, Stream], brokers: Brokers, led: Mapping[str, int]
    ) -> None:
        self._index = index
        self._streams = streams
        self._brokers = brokers
        self._led = Counter(led)
        self._changed: dict[uuid.UUID, dict[int, Partition]] = {}

    def streams(self) -> Iterator[Stream]:
        """The streams that have changed, as they are then."""
        for stream_id, partitions in self._changed.items():
            stream = self._streams[stream_id]
            yield replace(
                stream,
                partitions=tuple(partitions.get(partition.id, partition) for partition in stream.partitions),
            )

    # -- operations on brokers

    def of_broker(self, operation: BrokerOperation, before: Broker | None, broker: Broker) -> Changed:
        """What an operation on a broker, whose record it has changed from `before`, does to partitions."""
        if isinstance(operation, UnregisterBroker) or (
            isinstance(operation, RegisterBroker) and before is not None and before.epoch == broker.epoch
        ):
            return Changed((), broker)
        results = []
        for stream, partition in self._touched(operation):
            changed = self._after(operation, stream, partition)
            if changed is not partition:
                self._put(stream, changed)
                results.append(Result(stream.stream_id, partition.id, changed))
        return Changed(tuple(results), broker)

    def _touched(self, operation: BrokerOperation) -> Iterator[tuple[Stream, Partition]]:
        if isinstance(operation, WithdrawReplicas):
            for stream_id, partition_id in dict.fromkeys(operation.replicas):
                found = self._find(stream_id, partition_id)
                if found is not None:
                    yield found
            return
        for stream in self._streams.values():
            for partition in stream.partitions:
                if operation.broker in partition.replicas:
                    yield stream, partition

    def _after(self, operation: BrokerOperation, stream: Stream, partition: Partition) -> Partition:
        broker, guarantees = operation.broker, stream.guarantees
        wishes = operation.wishes if isinstance(operation, FenceBroker | DrainBroker) else ()
        electorate = self._electorate(
            next(
                (who for where, which, who in wishes if (where, which) == (stream.stream_id, partition.id)),
                "",
            )
        )
        if isinstance(operation, UnfenceBroker):
            if partition.leader:
                return partition
            back = elected(partition, self._index, guarantees, electorate)
            return self._settled(stream, back) if back.leader else partition
        if isinstance(operation, DrainBroker):
            successor = electorate.best(partition, [each for each in partition.isr if each != broker])
            record = self._brokers.by_id.get(successor)
            if partition.leader != broker or record is None or record.state is not BrokerState.ACTIVE:
                return partition
            return led_by(partition, successor, self._index, guarantees)
        loss = Loss.NONE
        if isinstance(operation, WithdrawReplicas) and operation.lost:
            loss = Loss.ANYTHING
        if isinstance(operation, RegisterBroker):
            loss = _LOSS[operation.ended]
            if guarantees.synced and loss is Loss.UNSYNCED:
                loss = Loss.NONE
        left = without(partition, broker, self._index, guarantees, electorate, loss=loss)
        return left if left is partition else self._settled(stream, left)

    # -- operations on replicas

    def of_replicas(self, operation: ReplicaOperation) -> Changed:
        """What an operation on replicas does, or why not."""
        return Changed(tuple(self._result(change) for change in operation.changes))

    def _result(self, change: PartitionChange) -> Result:
        found = self._find(change.stream_id, change.partition)
        if found is None:
            return Result(change.stream_id, change.partition, None, Refusal.NO_PARTITION)
        stream, partition = found
        refusal = self._refusal(change, stream, partition)
        if refusal is not None:
            return Result(change.stream_id, change.partition, partition, refusal)
        if isinstance(change, IsrChange):
            members = {broker for broker, _ in change.isr}
            changed = replace(with_isr(partition, members, stream.guarantees), epoch=self._index)
            changed = replace(changed, elr=tuple(each for each in changed.elr if each not in change.lost))
        elif isinstance(change, LeaderChange):
            changed = self._with_leader(change, stream, partition)
        else:
            changed = self._moving(change, partition)
        changed = self._settled(stream, changed)
        self._put(stream, changed)
        return Result(change.stream_id, change.partition, changed)

    def _refusal(self, change: PartitionChange, stream: Stream, partition: Partition) -> Refusal | None:
        if isinstance(change, IsrChange):
            # The more telling first: a leader that was deposed is to learn that.
            if change.leader_epoch != partition.leader_epoch:
                return Refusal.LEADER_EPOCH
            if change.leader != partition.leader:
                return Refusal.LEADER
        if change.epoch != partition.epoch:
            return Refusal.PARTITION_EPOCH
        if isinstance(change, IsrChange):
            return self._isr_refusal(change, partition)
        if isinstance(change, LeaderChange):
            return self._leader_refusal(change, stream, partition)
        known = all(
            broker in self._brokers.by_id and self._brokers.by_id[broker].state is not BrokerState.REMOVED
            for broker in change.replicas
        )
        if not change.replicas or not known or len(set(change.replicas)) != len(change.replicas):
            return Refusal.INVALID
        return None

    def _isr_refusal(self, change: IsrChange, partition: Partition) -> Refusal | None:
        for broker, broker_epoch in change.isr:
            record = self._brokers.by_id.get(broker)
            if broker not in partition.replicas:
                return Refusal.NOT_A_REPLICA
            if record is None or record.epoch != broker_epoch:
                return Refusal.BROKER_EPOCH
            if not record.alive:
                return Refusal.NOT_ALIVE
        if partition.leader not in (broker for broker, _ in change.isr):
            return Refusal.LEADER_NOT_IN_SYNC
        return None

    def _leader_refusal(self, change: LeaderChange, stream: Stream, partition: Partition) -> Refusal | None:
        if change.leader not in partition.replicas:
            return Refusal.NOT_A_REPLICA
        if not self._brokers.alive(change.leader):
            return Refusal.NOT_ALIVE
        if change.leader in partition.isr:
            return None
        in_sync = any(self._brokers.alive(broker) for broker in partition.isr)
        if change.leader in partition.elr and not in_sync:
            return None
        if change.mode is Mode.CLEAN:
            return Refusal.NOT_ELIGIBLE
        if in_sync or any(self._brokers.alive(broker) for broker in partition.elr):
            return Refusal.NOT_ALLOWED
        if change.mode is Mode.RECOVERED:
            known = change.leader in partition.last_known and recoverable(partition, self._brokers)
            return None if known else Refusal.NOT_ALLOWED
        if change.mode is Mode.UNCLEAN and not stream.guarantees.unclean_election:
            return Refusal.NOT_ALLOWED
        return None

    def _with_leader(self, change: LeaderChange, stream: Stream, partition: Partition) -> Partition:
        if change.leader in partition.isr or change.leader in partition.elr:
            if change.leader not in partition.isr:
                partition = with_isr(partition, (), stream.guarantees)
            return led_by(partition, change.leader, self._index, stream.guarantees)
        return led_uncleanly_by(partition, change.leader, self._index)

    def _moving(self, change: Reassignment, partition: Partition) -> Partition:
        """The partition with its reassignment begun. What an unfinished one was adding is to be removed."""
        removing = tuple(broker for broker in partition.replicas if broker not in change.replicas)
        old = {broker for broker in partition.replicas if broker not in partition.adding}
        return replace(
            partition,
            replicas=change.replicas + removing,
            adding=tuple(broker for broker in change.replicas if broker not in old),
            removing=removing,
            epoch=self._index,
        )

    def _settled(self, stream: Stream, partition: Partition) -> Partition:
        """The partition with its reassignment ended, if it is at its end; else as it is."""
        if not partition.adding and not partition.removing:
            return partition
        target = tuple(broker for broker in partition.replicas if broker not in partition.removing)
        staying = [broker for broker in partition.isr if broker in target]
        enough = min(len(target), stream.guarantees.min_isr)
        if not set(partition.adding) <= set(partition.isr) or len(staying) < enough:
            return partition
        electorate = self._electorate("")
        leader = partition.leader if partition.leader in target else electorate.best(partition, staying)
        if not leader:
            return partition
        settled = with_isr(partition, staying, stream.guarantees)
        settled = replace(
            settled,
            replicas=target,
            elr=tuple(broker for broker in settled.elr if broker in target),
            last_known=tuple(broker for broker in settled.last_known if broker in target),
            adding=(),
            removing=(),
            epoch=self._index,
        )
        if leader == partition.leader:
            return settled
        return led_by(settled, leader, self._index, stream.guarantees)

    # -- the partitions

    def _electorate(self, wish: str) -> Electorate:
        return Electorate(self._brokers, self._led, wish)

    def _find(self, stream_id: uuid.UUID, partition_id: int) -> tuple[Stream, Partition] | None:
        stream = self._streams.get(stream_id)
        if stream is None or not 0 <= partition_id < len(stream.partitions):
            return None
        changed = self._changed.get(stream_id, {})
        return stream, changed.get(partition_id, stream.partitions[partition_id])

    def _put(self, stream: Stream, partition: Partition) -> None:
        before = self._find(stream.stream_id, partition.id)
        assert before is not None, partition
        self._led[before[1].leader] -= 1
        self._led[partition.leader] += 1
        self._changed.setdefault(stream.stream_id, {})[partition.id] = partition


def preferred_leaders(streams: Mapping[str, Stream], brokers: Brokers) -> tuple[LeaderChange, ...]:
    """The changes that would give each partition its preferred leader, where that one is in sync and active.

    How many of them at a time, and how fast, is up to the caller.
    """
    found = []
    for stream in streams.values():
        for partition in stream.partitions:
            preferred = next(iter(partition.replicas), "")
            record = brokers.by_id.get(preferred)
            if (
                partition.leader not in ("", preferred)
                and preferred in partition.isr
                and record is not None
                and record.state is BrokerState.ACTIVE
            ):
                found.append(LeaderChange(stream.stream_id, partition.id, partition.epoch, preferred))
    return tuple(found)


def wished_leaders(
    streams: Mapping[str, Stream],
    brokers: Brokers,
    broker: str,
    synced: Mapping[tuple[uuid.UUID, int], Mapping[str, int]],
) -> Wishes:
    """Whom to wish for instead of a broker that is to lead no more: who has synced most.

    Arguments:
        streams, brokers: as they are.
        broker: whose leaderships are to go.
        synced: by stream UUID and partition id, how far each replica is known to have synced. Partitions and
            replicas that are not known are left to the operation.
    """
    wishes = []
    for stream in streams.values():
        for partition in stream.partitions:
            known = synced.get((stream.stream_id, partition.id), {})
            candidates = [
                each for each in partition.isr if each != broker and each in known and brokers.alive(each)
            ]
            if partition.leader == broker and candidates:
                most = max(known[each] for each in candidates)
                # Of equals the operation may take its pick, by what else it knows.
                best = [each for each in candidates if known[each] == most]
                if len(best) == 1:
                    wishes.append((stream.stream_id, partition.id, best[0]))
    return tuple(wishes)
