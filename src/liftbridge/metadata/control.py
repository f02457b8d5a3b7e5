"""What the controller decides: who is alive, and who is to lead when that changes.

The controller is the leader of the consensus on metadata. It hears the heartbeats of the brokers, and what it
concludes from them, and from the state, it proposes as operations. Nothing here changes the state: operations
are agreed on, checked and applied like any other, so what was decided on a state that has changed meanwhile
is refused. Pure: times come in, operations come out.

What there is to decide:

- A broker that was not heard of for the session time is fenced, one that is heard again is not any more. What
  that means for its partitions is part of applying it (`replicas.py`).
- A broker that says it is leaving drains: others lead, and when they do, it is fenced before it goes, so that
  no message waits for it.
- A partition without a leader gets one that has every committed message as soon as there is one.
- When nobody is left who has everything, and the last known replicas are all back, or the stream allows an
  unclean election, those who can be asked are asked what they have (`wanted`, `stated`), and the most
  complete one leads.
- Preferred leaders lead again, a few at a time, when they have been there for a while.
- A consumer group whose coordinator has gone gets another one.

Invariants:
- A broker that was heard of within the session time is not fenced, except when it is leaving and has drained.
  A controller that has just begun, or was itself away, counts from then.
- While a fence is on its way no heartbeat of that broker is confirmed, whatever becomes of its session: a
  confirmed one is a lease, and the fence makes another leader.
- At most one operation about a broker is on its way, and at most one about who leads a partition.
- Nobody is to lead who is silent or about to be fenced.
- Every list that is returned is bounded. What did not fit is in the next one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from liftbridge.metadata.broker_operations import DrainBroker, FenceBroker, UnfenceBroker, Wishes
from liftbridge.metadata.brokers import Broker, BrokerState
from liftbridge.metadata.elections import Electorate, most_complete, recoverable
from liftbridge.metadata.groups import choose_coordinator
from liftbridge.metadata.model import Partition, Stream
from liftbridge.metadata.operations import ChangeGroupCoordinator, Operation
from liftbridge.metadata.replica_operations import ChangeLeaders, LeaderChange, Mode
from liftbridge.metadata.replicas import preferred_leaders
from liftbridge.metadata.state import ClusterState

# (stream UUID, partition id)
Where: TypeAlias = tuple[uuid.UUID, int]

# In session times.
_LOOK = 1 / 8  # between two looks at most
_AWAY = 1 / 2  # without a look: this controller was itself away
_AGAIN = 1.0  # until something whose outcome is not known is proposed again
_PAUSE = 1 / 8  # until something that was refused is
_SETTLED = 4.0  # how long a broker has to be there before leaderships move back to it
_FRESH = 1 / 2  # and how recently it has to be heard of
_MOVES_EVERY = 1.0  # between two lots of those
_UNCLEAN = (
    1.0  # how long others may come back before an unclean election, and how long answers are waited for
)
_DRAIN = 4.0  # how long a broker that leaves waits for others to be in sync

BROKERS_AT_ONCE = 32
CHANGES_AT_ONCE = 256
MOVES_AT_ONCE = 32
WISHES_AT_ONCE = 4096
QUESTIONS_AT_ONCE = 1024

_NEVER = float("-inf")


class Heard(Enum):
    """What a heartbeat is to be answered."""

    CONFIRMED = "it counts: nobody has taken this broker for dead"
    FENCED = "the broker is fenced, or about to be; it is going to be heard again"
    REGISTERED_ANEW = "a later run of this broker has registered; this one has no say any more"
    UNKNOWN = "there is no such registration, or it is not known here yet"
    REMOVED = "the broker was removed from the cluster"


@dataclass(frozen=True, slots=True)
class Position:
    """What a replica has, as its broker says.

    Attributes:
        last_epoch: leader epoch of its last record, 0 for an empty log.
        next_offset: behind its last record.
        synced_offset: behind its last record that is on disk.
        lost: whether it may lack what it once had on disk.
    """

    last_epoch: int
    next_offset: int
    synced_offset: int
    lost: bool


@dataclass(slots=True)
class _Session:
    """What this controller knows of a run of a broker.

    Attributes:
        epoch: its broker epoch.
        begun: when it was first seen to take part; what came before was somebody else's to judge.
        heard: when it was heard of last.
        leaving: since when it says that it is leaving, None if it does not.
        active: since when it is seen to be active, None if it is not.
    """

    epoch: int
    begun: float
    heard: float = _NEVER
    leaving: float | None = None
    active: float | None = None


@dataclass(slots=True)
class _Proposed:
    """An operation that was returned by `due`.

    Attributes:
        kind: its type.
        epoch: broker or partition epoch that it was decided on.
        again: when the same may be proposed again.
        unknown: whether it may still take effect.
    """

    kind: type[object]
    epoch: int
    again: float
    unknown: bool = True


@dataclass(frozen=True, slots=True)
class _Stated:
    """A position, and what it was stated on: another epoch of the broker or the partition makes it void."""

    broker_epoch: int
    epoch: int
    position: Position


class Control:
    """Made anew each time its broker begins to decide: sessions begin then, nobody is fenced for the time
    before. Everything that was agreed on before must have been applied then.

    A confirmed heartbeat is answered with the applied index of the state, and counts for a lease only at a
    broker that has applied as much: a broker that was fenced and unfenced meanwhile has to know it.

    Arguments:
        state: what is agreed on; read, never changed.
        now: the time, on a clock that never goes back.
        session: how long a broker may be silent, in the unit of all times here.
    """

    def __init__(self, state: ClusterState, now: float, *, session: float = 3.0) -> None:
        self._state = state
        self._session = session
        self._since = now
        self._looked = now
        self._hurry = True
        self._sessions: dict[str, _Session] = {}
        self._about_brokers: dict[str, _Proposed] = {}
        self._about_leaders: dict[Where, _Proposed] = {}
        self._about_groups: dict[str, _Proposed] = {}
        self._stated: dict[Where, dict[str, _Stated]] = {}
        self._surveyed = -1
        self._leaderless: dict[Where, tuple[Stream, Partition]] = {}
        self._leaderless_since: dict[Where, float] = {}
        self._moved = now
        self._look_at_brokers(now)

    # -- what is heard

    def heard(self, broker: str, broker_epoch: int, now: float, *, leaving: bool = False) -> Heard:
        """A heartbeat has come; returns what it is worth.

        Arguments:
            broker, broker_epoch: whose, as it says.
            now: the time.
            leaving: whether it is about to stop and wants others to lead.
        """
        record = self._state.brokers.get(broker)
        if record is None:
            return Heard.UNKNOWN
        if record.state is BrokerState.REMOVED:
            return Heard.REMOVED
        if broker_epoch != record.epoch:
            return Heard.REGISTERED_ANEW if broker_epoch < record.epoch else Heard.UNKNOWN
        session = self._session_of(record, now)
        session.heard = max(session.heard, now)
        if leaving and session.leaving is None:
            session.leaving = now
            self._hurry = True
        if record.alive and not self._may_be_fenced(record):
            return Heard.CONFIRMED
        self._hurry = self._hurry or not leaving
        return Heard.FENCED

    def stated(self, broker: str, broker_epoch: int, positions: Mapping[Where, Position]) -> None:
        """A broker has answered what its replicas have. What nobody wants to know (any more) is dropped.

        Arguments:
            broker, broker_epoch: whose, as it says.
            positions: of those that were asked for, or some of them.
        """
        record = self._state.brokers.get(broker)
        if record is None or record.epoch != broker_epoch:
            return
        self._survey(self._looked)
        for where, position in positions.items():
            found = self._leaderless.get(where)
            if found is not None and broker in self._asked(*found):
                stated = _Stated(broker_epoch, found[1].epoch, position)
                self._stated.setdefault(where, {})[broker] = stated
                self._hurry = True

    def wanted(self) -> Mapping[str, Sequence[Where]]:
        """Whose positions are needed now: partitions by broker. Those that were stated are not among them."""
        self._survey(self._looked)
        found: dict[str, list[Where]] = {}
        for where, (stream, partition) in self._leaderless.items():
            known = self._positions(where, partition)
            for broker in self._asked(stream, partition):
                questions = found.setdefault(broker, [])
                if broker not in known and len(questions) < QUESTIONS_AT_ONCE:
                    questions.append(where)
        return {broker: questions for broker, questions in found.items() if questions}

    def resolved(self, operation: Operation, now: float) -> None:
        """It is known what came of an operation that `due` returned: it was applied, or it has no effect and
        never will. Not to be called as long as it may still take effect."""
        if isinstance(operation, FenceBroker | UnfenceBroker | DrainBroker):
            self._resolve(self._about_brokers.get(operation.broker), operation, operation.broker_epoch, now)
        elif isinstance(operation, ChangeLeaders):
            for change in operation.changes:
                proposed = self._about_leaders.get((change.stream_id, change.partition))
                self._resolve(proposed, operation, change.epoch, now)

    def _resolve(self, proposed: _Proposed | None, operation: Operation, epoch: int, now: float) -> None:
        if proposed is not None and proposed.kind is type(operation) and proposed.epoch == epoch:
            proposed.unknown = False
            proposed.again = min(proposed.again, now + _PAUSE * self._session)

    # -- what is to be done

    def next_due(self) -> float:
        """When `due` is to be called next, at the latest: something may be due then."""
        if self._hurry:
            return self._looked
        ends = (
            self._ends(session)
            for broker, session in self._sessions.items()
            if self._state.registry.alive(broker) and broker not in self._about_brokers
        )
        return max(self._looked, min((self._looked + _LOOK * self._session, *ends)))

    def due(self, now: float) -> list[Operation]:
        """What is to be proposed now, in this order. It counts as proposed.

        To be called when `next_due` says so, or more often. A controller that was not able to was away, and
        begins anew to wait for heartbeats.
        """
        if now - self._looked > _AWAY * self._session:
            self._since = now
        self._looked = max(self._looked, now)
        self._hurry = False
        self._look_at_brokers(now)
        self._survey(now)
        found: list[Operation] = []
        for record in list(self._state.brokers.values()):
            operation = self._about_broker(record, now)
            if operation is None:
                continue
            if len(found) == BROKERS_AT_ONCE:
                self._hurry = True
                break
            self._about_brokers[record.id] = _Proposed(type(operation), record.epoch, self._again(now))
            found.append(operation)
        changes = self._leader_changes(now)
        for change in changes:
            proposed = _Proposed(ChangeLeaders, change.epoch, self._again(now))
            self._about_leaders[change.stream_id, change.partition] = proposed
        if changes:
            found.append(ChangeLeaders(tuple(changes)))
        found += self._coordinators(now)
        return found

    # -- brokers

    def _about_broker(self, record: Broker, now: float) -> Operation | None:
        """What is to be proposed about a broker now, if anything."""
        session = self._sessions.get(record.id)
        proposed = self._about_brokers.get(record.id)
        if proposed is not None:
            if now < proposed.again:
                return None
            if proposed.unknown and proposed.kind is FenceBroker:
                # It cannot be taken back.
                return self._fence(record, now)
            del self._about_brokers[record.id]
        if session is None or session.epoch != record.epoch or record.state is BrokerState.REMOVED:
            return None
        if not record.alive:
            heard = session.heard + self._session > now and session.leaving is None
            return UnfenceBroker(record.id, record.epoch) if heard else None
        if self._silent(record, now) or self._drained(record, session, now):
            return self._fence(record, now)
        if session.leaving is not None and record.state is BrokerState.ACTIVE:
            return DrainBroker(record.id, record.epoch, self._wishes(record.id, now))
        return None

    def _fence(self, record: Broker, now: float) -> FenceBroker:
        return FenceBroker(record.id, record.epoch, self._wishes(record.id, now))

    def _drained(self, record: Broker, session: _Session, now: float) -> bool:
        """Whether a broker that leaves may go: it leads nothing that another could lead, and its going leaves
        no partition without enough in-sync replicas that is going to have more of them soon."""
        if session.leaving is None or record.state is not BrokerState.DRAINING:
            return False
        if now >= session.leaving + _DRAIN * self._session:
            return True
        for stream, partition in self._partitions():
            others = [
                broker for broker in partition.replicas if broker != record.id and self._stays(broker, now)
            ]
            if partition.leader == record.id and others:
                return False
            staying = len(partition.isr) - 1
            coming = any(broker not in partition.isr for broker in others)
            if record.id in partition.isr and staying < stream.guarantees.min_isr and coming:
                return False
        return True

    def _wishes(self, broker: str, now: float) -> Wishes:
        """Who is to lead instead of a broker, where the operation might choose one that is silent."""
        records = self._state.brokers
        unfit = {each for each in records if self._state.registry.alive(each) and not self._stays(each, now)}
        unfit.discard(broker)
        if not unfit:
            return ()
        led = self._led()
        electorate = Electorate(self._state.registry, led)
        wishes: list[tuple[uuid.UUID, int, str]] = []
        for stream, partition in self._partitions():
            if partition.leader == broker and unfit.intersection(partition.isr):
                fit = [each for each in partition.isr if each != broker and each not in unfit]
                best = electorate.best(partition, fit)
                if best:
                    led[best] += 1
                    wishes.append((stream.stream_id, partition.id, best))
            if len(wishes) == WISHES_AT_ONCE:
                break
        return tuple(wishes)

    def _look_at_brokers(self, now: float) -> None:
        """Begin the sessions of those that take part, and forget what is over."""
        for record in self._state.brokers.values():
            if record.alive:
                session = self._session_of(record, now)
                if record.state is not BrokerState.ACTIVE:
                    session.active = None
                elif session.active is None:
                    session.active = now
            elif record.id in self._sessions:
                self._sessions[record.id].active = None
            proposed = self._about_brokers.get(record.id)
            if proposed is not None and _done(proposed, record):
                del self._about_brokers[record.id]
        for broker in self._sessions.keys() - self._state.brokers.keys():
            del self._sessions[broker]
            self._about_brokers.pop(broker, None)

    def _session_of(self, record: Broker, now: float) -> _Session:
        session = self._sessions.get(record.id)
        if session is None or session.epoch != record.epoch:
            session = self._sessions[record.id] = _Session(record.epoch, now)
        return session

    def _ends(self, session: _Session) -> float:
        return max(session.begun, session.heard, self._since) + self._session

    def _silent(self, record: Broker, now: float) -> bool:
        session = self._sessions.get(record.id)
        if session is None or session.epoch != record.epoch:
            return False
        return now >= self._ends(session)

    def _may_be_fenced(self, record: Broker) -> bool:
        """Whether a fence of this run of a broker is on its way."""
        proposed = self._about_brokers.get(record.id)
        return (
            proposed is not None
            and proposed.kind is FenceBroker
            and proposed.unknown
            and proposed.epoch == record.epoch
        )

    def _takes_part(self, broker: str, now: float) -> bool:
        """Whether a broker may be given a leadership."""
        record = self._state.brokers.get(broker)
        return (
            record is not None
            and record.alive
            and not self._silent(record, now)
            and not self._may_be_fenced(record)
        )

    def _stays(self, broker: str, now: float) -> bool:
        """Whether it takes part and is not about to stop."""
        session = self._sessions.get(broker)
        return (
            self._takes_part(broker, now)
            and self._state.brokers[broker].state is BrokerState.ACTIVE
            and (session is None or session.leaving is None)
        )

    # -- leaders

    def _leader_changes(self, now: float) -> list[LeaderChange]:
        for where in [*self._about_leaders]:
            if self._settled(where, now):
                del self._about_leaders[where]
        changes: dict[Where, LeaderChange] = {}
        for change in self._proposals(now):
            where = (change.stream_id, change.partition)
            if where in self._about_leaders or where in changes:
                continue
            if len(changes) == CHANGES_AT_ONCE:
                self._hurry = True
                break
            changes[where] = change
        return list(changes.values())

    def _settled(self, where: Where, now: float) -> bool:
        """Whether what was proposed about the leader of a partition is out of the way."""
        proposed = self._about_leaders[where]
        stream = self._state.stream_by_id(where[0])
        if stream is None or where[1] >= len(stream.partitions):
            return True
        return stream.partitions[where[1]].epoch != proposed.epoch or now >= proposed.again

    def _proposals(self, now: float) -> Iterator[LeaderChange]:
        """Changes of leaders, the most needed first."""
        led = self._led()
        electorate = Electorate(self._state.registry, led)
        for where, (stream, partition) in self._leaderless.items():
            if where in self._about_leaders:
                continue
            eligible = [each for each in partition.elr if self._takes_part(each, now)]
            leader, mode = electorate.best(partition, eligible), Mode.CLEAN
            if not leader:
                leader, mode = self._most_complete(where, stream, partition, now)
            if leader:
                led[leader] += 1
                yield LeaderChange(stream.stream_id, partition.id, partition.epoch, leader, mode)
        yield from self._off_the_draining(electorate, now)
        yield from self._moves(now)

    def _most_complete(
        self, where: Where, stream: Stream, partition: Partition, now: float
    ) -> tuple[str, Mode]:
        """Who is to lead when nobody has everything, and at what price; "" when nobody can now."""
        asked = self._asked(stream, partition)
        known = self._positions(where, partition)
        fit = {each: known[each] for each in asked if each in known and self._takes_part(each, now)}
        whole = {each: position for each, position in fit.items() if not position.lost}
        unclean = stream.guarantees.unclean_election
        if recoverable(partition, self._state.registry):
            if len(fit) < len(asked):
                return "", Mode.RECOVERED
            # Who has lost more than what was not synced is chosen only if the stream allows it.
            return (_most(whole), Mode.RECOVERED) if whole or not unclean else (_most(fit), Mode.UNCLEAN)
        if not fit or not unclean:
            return "", Mode.UNCLEAN
        waited = now - self._leaderless_since[where]
        enough = _UNCLEAN if len(fit) == len(asked) else 2 * _UNCLEAN
        return (_most(whole or fit) if waited >= enough * self._session else ""), Mode.UNCLEAN

    def _off_the_draining(self, electorate: Electorate, now: float) -> Iterator[LeaderChange]:
        """What a broker that drains still leads, and another can lead by now."""
        draining = {
            record.id for record in self._state.brokers.values() if record.state is BrokerState.DRAINING
        }
        if not draining:
            return
        for stream, partition in self._partitions():
            if partition.leader in draining and self._takes_part(partition.leader, now):
                best = electorate.best(partition, [each for each in partition.isr if self._stays(each, now)])
                if best:
                    yield LeaderChange(stream.stream_id, partition.id, partition.epoch, best)

    def _moves(self, now: float) -> Iterator[LeaderChange]:
        """Some of the leaderships that are not where they are preferred."""
        if now < self._moved + _MOVES_EVERY * self._session:
            return
        self._moved = now
        found = 0
        for change in preferred_leaders(self._state.streams, self._state.registry):
            session = self._sessions.get(change.leader)
            if (
                session is not None
                and session.active is not None
                and now >= session.active + _SETTLED * self._session
                and now < session.heard + _FRESH * self._session
                and self._stays(change.leader, now)
                and (change.stream_id, change.partition) not in self._about_leaders
            ):
                yield change
                found += 1
                if found == MOVES_AT_ONCE:
                    return

    def _asked(self, stream: Stream, partition: Partition) -> tuple[str, ...]:
        """Whose positions decide who leads a partition that nobody leads; empty when no position does."""
        brokers = self._state.registry
        if recoverable(partition, brokers):
            return partition.last_known
        if not stream.guarantees.unclean_election or any(brokers.alive(each) for each in partition.elr):
            return ()
        return tuple(each for each in partition.replicas if brokers.alive(each))

    def _positions(self, where: Where, partition: Partition) -> dict[str, Position]:
        """What was stated about the partition as it is, by those that have not registered anew since."""
        brokers = self._state.brokers
        return {
            broker: stated.position
            for broker, stated in self._stated.get(where, {}).items()
            if stated.epoch == partition.epoch
            and broker in brokers
            and brokers[broker].epoch == stated.broker_epoch
        }

    # -- consumer groups

    def _coordinators(self, now: float) -> Iterator[Operation]:
        """New coordinators for groups whose own does not take part."""
        orphans = [
            group
            for group in self._state.groups.values()
            if group.coordinator in self._state.brokers and not self._state.registry.alive(group.coordinator)
        ]
        self._about_groups = {
            group.group_id: proposed
            for group in orphans
            if (proposed := self._about_groups.get(group.group_id)) is not None
            and proposed.epoch == group.epoch
            and now < proposed.again
        }
        staying = [broker for broker in self._state.brokers if self._stays(broker, now)]
        for group in orphans:
            if not staying or len(self._about_groups) >= CHANGES_AT_ONCE:
                return
            if group.group_id not in self._about_groups:
                proposed = _Proposed(ChangeGroupCoordinator, group.epoch, self._again(now))
                self._about_groups[group.group_id] = proposed
                coordinator = choose_coordinator(staying, self._state.coordinated)
                yield ChangeGroupCoordinator(group.group_id, coordinator, group.epoch)

    # -- the state

    def _survey(self, now: float) -> None:
        """Find the partitions that nobody leads, when anything has changed."""
        if self._surveyed == self._state.applied_index:
            return
        self._surveyed = self._state.applied_index
        self._leaderless = {
            (stream.stream_id, partition.id): (stream, partition)
            for stream, partition in self._partitions()
            if not partition.leader
        }
        self._leaderless_since = {where: self._leaderless_since.get(where, now) for where in self._leaderless}
        for where in self._stated.keys() - self._leaderless.keys():
            del self._stated[where]

    def _partitions(self) -> Iterator[tuple[Stream, Partition]]:
        for stream in self._state.streams.values():
            for partition in stream.partitions:
                yield stream, partition

    def _led(self) -> dict[str, int]:
        """How many partitions each broker leads; for the caller to count on."""
        return {broker: self._state.load(broker).leaders for broker in self._state.brokers}

    def _again(self, now: float) -> float:
        return now + _AGAIN * self._session


def _done(proposed: _Proposed, record: Broker) -> bool:
    """Whether the broker is as the operation wanted it, or is another run."""
    if record.epoch != proposed.epoch or record.state is BrokerState.REMOVED:
        return True
    if proposed.kind is UnfenceBroker:
        return record.alive
    if proposed.kind is FenceBroker:
        return not record.alive
    return record.state is not BrokerState.ACTIVE


def _most(positions: Mapping[str, Position]) -> str:
    """The most complete replica, of equals the one with the most on disk; "" of none."""
    if not positions:
        return ""
    by_synced = sorted(positions, key=lambda each: (-positions[each].synced_offset, each))
    return most_complete(
        {each: (position.last_epoch, position.next_offset) for each, position in positions.items()},
        tuple(by_synced),
    )
