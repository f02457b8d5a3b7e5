"""What the broker that decides on metadata concludes from whom it hears and whom it does not.

The metadata says who may lead; it knows no time. This machine does, told by its caller: it keeps the sessions
of brokers, and says which operations follow. It is made anew whenever a broker begins to decide, knows
nothing then of the time before, and decides everything from the state as it is: so it makes no difference
where another one has stopped.

- A broker that was not heard of for a session is fenced: others lead what it led.
- One that is heard of again, under the registration that the metadata has, takes part again.
- One that is about to stop leads no more, where others can.
- A partition that nobody can lead for certain gets the most complete of those that were in sync last, once
  all of them have said what they have; or, if its stream allows that, the most complete of those who are
  there.
- Leaderships go back to the preferred replicas, now and then.
- A consumer group whose coordinator has gone gets another one.

Invariants:
- Nobody is fenced who was heard of within a session, nor for the time before this machine was made, nor for
  one in which it was not asked: then the process stood still, and heartbeats wait to be read.
- A session that was not confirmed is not counted on by its broker (`replication/lease.py`). It is confirmed
  only for one that takes part, and not while it is being fenced.
- What a broker has said of its replicas holds for the registration under which it was said, and for the
  partition as it was then.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from liftbridge.metadata.broker_operations import DrainBroker, FenceBroker, UnfenceBroker
from liftbridge.metadata.brokers import Broker, BrokerState
from liftbridge.metadata.elections import most_complete, recoverable
from liftbridge.metadata.groups import choose_coordinator
from liftbridge.metadata.model import Partition, Stream
from liftbridge.metadata.operations import ChangeGroupCoordinator, Operation
from liftbridge.metadata.replica_operations import ChangeLeaders, LeaderChange, Mode
from liftbridge.metadata.replicas import preferred_leaders
from liftbridge.metadata.state import ClusterState

SESSION = 3.0
# In parts of a session: how late this machine may be asked before it distrusts the clock.
LATE = 1 / 3
# In sessions: how long the brokers have to be the same before leaderships go back to the preferred replicas.
SETTLED = 20
# Changes of one operation.
MOST_CHANGES = 256

Replica = tuple[uuid.UUID, int]


@dataclass(frozen=True, slots=True)
class Position:
    """Where the log of a replica ends; attributes as in `replication.messages.LogView`. `lost`: there is no
    log that could be read."""

    last_epoch: int
    next_offset: int
    synced_offset: int
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What a heartbeat is answered.

    Attributes:
        confirmed: whether the session goes on, and with it the lease.
        reason: why not.
    """

    confirmed: bool
    reason: str = ""


@dataclass(slots=True)
class _Session:
    """Of one registration of a broker; `deadline` is when it ends, `heard` whether it began with a heartbeat
    that this machine was told of."""

    epoch: int
    deadline: float
    heard: bool
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class _Lost:
    """A partition that nobody can lead for certain: whom to ask what they have, and what choosing among them
    is then."""

    stream: Stream
    partition: Partition
    candidates: tuple[str, ...]
    mode: Mode


class Control:
    """The machine. Times are in seconds, of one clock.

    Arguments:
        state: what the cluster has agreed on; it changes as operations are applied.
        now: the time.
        session: how long a session lasts without a heartbeat.
    """

    def __init__(self, state: ClusterState, now: float, *, session: float = SESSION) -> None:
        self._state = state
        self._session = session
        self._asked = now
        self._sessions = {
            broker.id: _Session(broker.epoch, now + session, heard=False)
            for broker in state.brokers.values()
            if broker.state is not BrokerState.REMOVED
        }
        self._proposed: list[Operation] = []
        self._positions: dict[tuple[str, Replica], tuple[int, int, Position]] = {}
        self._lost: tuple[_Lost, ...] = ()
        self._lost_at = -1
        self._membership: frozenset[tuple[str, int]] = frozenset()
        self._settled = now + SETTLED * session

    # -- what is heard

    def heard(self, broker: str, broker_epoch: int, now: float, *, leaving: bool = False) -> Heard:
        """A broker has said that it is there, and whether it is about to stop."""
        record = self._state.brokers.get(broker)
        if record is None or record.state is BrokerState.REMOVED:
            return Heard(False, f"broker {broker!r} is not in the cluster")
        if record.epoch != broker_epoch:
            return Heard(
                False, f"broker {broker!r} is registered with epoch {record.epoch}, not {broker_epoch}"
            )
        self._sessions[broker] = _Session(broker_epoch, now + self._session, heard=True, leaving=leaving)
        if not record.alive:
            return Heard(False, f"broker {broker!r} is fenced and about to be let in")
        if any(isinstance(each, FenceBroker) and each.broker == broker for each in self._proposed):
            return Heard(
                False, f"broker {broker!r} was not heard of for {self._session:g} s, and is being fenced"
            )
        return Heard(True)

    def stated(self, broker: str, broker_epoch: int, positions: Mapping[Replica, Position]) -> None:
        """A broker has said where the logs of some of its replicas end."""
        record = self._state.brokers.get(broker)
        if record is None or record.epoch != broker_epoch:
            return
        asked = {_replica(lost) for lost in self._find_lost()}
        for replica, position in positions.items():
            if replica in asked:
                partition = self._partition(replica)
                assert partition is not None, replica
                self._positions[broker, replica] = broker_epoch, partition.epoch, position

    def wanted(self) -> Mapping[str, Sequence[Replica]]:
        """Of whom it has to be known where which logs end, by broker."""
        wanted: dict[str, list[Replica]] = {}
        for lost in self._find_lost():
            for broker in lost.candidates:
                asked = wanted.setdefault(broker, [])
                if self._position(broker, lost) is None and len(asked) < MOST_CHANGES:
                    asked.append(_replica(lost))
        return {broker: asked for broker, asked in wanted.items() if asked}

    # -- what follows

    def due(self, now: float) -> list[Operation]:
        """What is to be proposed now. Whoever proposes it tells `resolved` of each."""
        self._distrust_clock(now)
        self._note_membership(now)
        found = [
            operation for broker in self._state.brokers.values() for operation in self._of_broker(broker, now)
        ]
        found += self._elections()
        found += self._coordinators()
        if not found and now >= self._settled:
            self._settled = now + SETTLED * self._session
            preferred = preferred_leaders(self._state.streams, self._state.registry)
            if preferred:
                found.append(ChangeLeaders(preferred[:MOST_CHANGES]))
        found = [operation for operation in found if operation not in self._proposed]
        self._proposed += found
        return found

    def resolved(self, operation: Operation) -> None:
        """An operation was applied, or refused, or it is not known what became of it."""
        self._proposed.remove(operation)

    def next_due(self) -> float:
        """When something is to be proposed, if nothing is heard and the state stays as it is."""
        alive = [
            self._sessions[broker.id].deadline
            for broker in self._state.brokers.values()
            if broker.alive and broker.id in self._sessions
        ]
        return min([self._settled, *alive])

    # -- brokers

    def _distrust_clock(self, now: float) -> None:
        """Give everybody back the time in which this machine was not asked."""
        gap = now - self._asked
        self._asked = now
        if gap > LATE * self._session:
            for session in self._sessions.values():
                session.deadline += gap

    def _note_membership(self, now: float) -> None:
        membership = frozenset(
            (broker.id, broker.epoch)
            for broker in self._state.brokers.values()
            if broker.state is BrokerState.ACTIVE
        )
        if membership != self._membership:
            self._membership = membership
            self._settled = now + SETTLED * self._session

    def _of_broker(self, broker: Broker, now: float) -> Iterator[Operation]:
        if broker.state is BrokerState.REMOVED:
            self._sessions.pop(broker.id, None)
            return
        session = self._sessions.get(broker.id)
        if session is None or session.epoch != broker.epoch:
            # It has registered since, which is a sign of life.
            session = self._sessions[broker.id] = _Session(broker.epoch, now + self._session, heard=False)
        if broker.alive and now >= session.deadline:
            yield FenceBroker(broker.id, broker.epoch)
        elif broker.state is BrokerState.FENCED and session.heard and not session.leaving:
            if now < session.deadline:
                yield UnfenceBroker(broker.id, broker.epoch)
        elif broker.state is BrokerState.ACTIVE and session.leaving:
            yield DrainBroker(broker.id, broker.epoch)

    # -- partitions

    def _find_lost(self) -> tuple[_Lost, ...]:
        """The partitions that nobody can lead for certain, and that somebody can lead at all."""
        if self._lost_at != self._state.applied_index:
            self._lost_at = self._state.applied_index
            self._lost = tuple(
                lost
                for stream in self._state.streams.values()
                for partition in stream.partitions
                if not partition.leader
                for lost in self._lost_of(stream, partition)
            )
            known = {_replica(lost) for lost in self._lost}
            self._positions = {
                (broker, replica): known_of
                for (broker, replica), known_of in self._positions.items()
                if replica in known
            }
        return self._lost

    def _lost_of(self, stream: Stream, partition: Partition) -> Iterator[_Lost]:
        registry = self._state.registry
        if any(registry.alive(broker) for broker in (*partition.isr, *partition.elr)):
            return  # the next change of a broker makes one of them the leader
        if recoverable(partition, registry):
            yield _Lost(stream, partition, partition.last_known, Mode.RECOVERED)
        elif stream.guarantees.unclean_election:
            alive = tuple(broker for broker in partition.replicas if registry.alive(broker))
            if alive:
                yield _Lost(stream, partition, alive, Mode.UNCLEAN)

    def _elections(self) -> Iterator[Operation]:
        changes = []
        for lost in self._find_lost():
            positions = {broker: self._position(broker, lost) for broker in lost.candidates}
            usable = {
                broker: (position.last_epoch, position.next_offset)
                for broker, position in positions.items()
                if position is not None and not position.lost
            }
            if None in positions.values() or not usable:
                continue  # not all are known yet, or nobody has anything
            partition = lost.partition
            leader = most_complete(usable, partition.replicas)
            changes.append(
                LeaderChange(lost.stream.stream_id, partition.id, partition.epoch, leader, lost.mode)
            )
        if changes:
            yield ChangeLeaders(tuple(changes[:MOST_CHANGES]))

    def _position(self, broker: str, lost: _Lost) -> Position | None:
        known = self._positions.get((broker, _replica(lost)))
        if known is None or known[:2] != (self._state.brokers[broker].epoch, lost.partition.epoch):
            return None
        return known[2]

    def _partition(self, replica: Replica) -> Partition | None:
        stream = self._state.stream_by_id(replica[0])
        return None if stream is None else stream.partitions[replica[1]]

    # -- consumer groups

    def _coordinators(self) -> Iterator[Operation]:
        active = [broker.id for broker in self._state.brokers.values() if broker.state is BrokerState.ACTIVE]
        if not active:
            return
        for group in self._state.groups.values():
            record = self._state.brokers.get(group.coordinator)
            if record is not None and record.state is not BrokerState.ACTIVE:
                coordinator = choose_coordinator(active, self._state.coordinated)
                yield ChangeGroupCoordinator(group.group_id, coordinator, group.epoch)


def _replica(lost: _Lost) -> Replica:
    return lost.stream.stream_id, lost.partition.id
