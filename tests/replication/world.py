"""Three brokers with one partition: real metadata, real machines, logs in memory, and messages that go
nowhere by themselves. Everything that happens is a call, so a test says what happens, and in which order.

What must hold is checked at every step; the names are those of the specification's invariants:

- J-01, J-05, J-07: whatever a leader has exposed as committed stays what it is, at every replica, and every
  leader has it; except what recorded unclean elections cost.
- J-06: replicas that have a record of the same epoch at the same offset are equal up to there.
- J-10: in an epoch nobody appends but its leader, and epochs never fall along a log (`ReplicaLog.store`).
- J-11: a broker that is in sync has everything that is committed.
- J-12: nothing is committed or acked by fewer than min ISR in-sync replicas.
- J-13: a statement that is fenced changes nothing.
- J-14: nothing exposed is cut off.
- J-15: the high watermark of a follower is in front of its end, and what it exposes is what is committed.
"""

from __future__ import annotations

import copy
import itertools
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

from replica_log import ReplicaLog, Stored

from liftbridge.metadata.broker_operations import Ended, FenceBroker, RegisterBroker, UnfenceBroker
from liftbridge.metadata.brokers import BrokerState
from liftbridge.metadata.elections import most_complete, recoverable
from liftbridge.metadata.model import Guarantees, Partition, StreamSettings
from liftbridge.metadata.operations import CreateStream, Operation
from liftbridge.metadata.placement import Placement
from liftbridge.metadata.replica_operations import AlterIsr, ChangeLeaders, IsrChange, LeaderChange, Mode
from liftbridge.metadata.replicas import Changed, Result
from liftbridge.metadata.state import ClusterState
from liftbridge.replication.follower import (
    Append,
    Damaged,
    Follower,
    Restart,
    Restate,
    Truncate,
    Wait,
    sessions_of,
)
from liftbridge.replication.isr import Unknown
from liftbridge.replication.leader import Leader
from liftbridge.replication.messages import Data, Diverging, Fence, Fenced, Statement

BROKERS = ("a", "b", "c")
STREAM = uuid.UUID(int=1)
MAX_LAG = 10.0


class Node:
    """A broker: its log, what it knows of the metadata, and the machine of its role."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log = ReplicaLog()
        self.high_watermark = -1  # as it was when its last role ended
        self.epoch = 0
        self.sessions: Iterator[int] = itertools.count(1)
        self.up = False
        self.role: Leader | Follower | None = None

    @property
    def leader(self) -> Leader:
        assert isinstance(self.role, Leader), (self.name, self.role)
        return self.role

    @property
    def follower(self) -> Follower:
        assert isinstance(self.role, Follower), (self.name, self.role)
        return self.role

    def end_role(self) -> None:
        if self.role is not None:
            self.high_watermark = self.role.high_watermark
        if isinstance(self.role, Leader):
            self.role.retire()
        self.role = None


class World:
    """The cluster.

    Arguments:
        min_isr, synced, unclean: of the stream.
        start: whether brokers are registered and know their roles.
    """

    def __init__(self, *, min_isr: int = 2, synced: bool = False, unclean: bool = False) -> None:
        self.guarantees = Guarantees(min_isr, unclean, synced)
        self.state = ClusterState()
        self.now = 0.0
        self.nodes = {name: Node(name) for name in BROKERS}
        self.links: dict[tuple[str, str], deque[Any]] = {
            (one, other): deque() for one in BROKERS for other in BROKERS if one != other
        }
        self.exposed: dict[int, tuple[int, str]] = {}  # what was committed, by offset
        self.acked: dict[int, str] = {}
        self.appenders: dict[int, str] = {}
        self.unclean_epoch = 0
        self.given_up = 0  # unclean epoch whose leader has shown what is left
        self.doubtful: set[str] = set()  # they have lost data, and the metadata does not know yet
        self.actions: list[object] = []
        self._incarnations = itertools.count(100)
        self._payloads = itertools.count()
        for name in BROKERS:
            self.start(name, Ended.CLEAN, learn=False)
            self.unfence(name)
        self.apply(
            CreateStream(
                "s", "s", "", STREAM, 1, StreamSettings(), (Placement(BROKERS, "a"),), self.guarantees
            )
        )
        for name in BROKERS:
            self.learn(name)

    # -- metadata

    @property
    def partition(self) -> Partition:
        return self.state.partition("s", 0)

    def apply(self, operation: Operation) -> Any:
        before = self.partition if self.state.streams else None
        outcome = self.state.apply(self.state.applied_index + 1, operation)
        after = self.partition if self.state.streams else None
        if after is not None and after.unclean_epoch > (before.unclean_epoch if before else 0):
            # Others may have had more, and that is lost.
            self.unclean_epoch = after.unclean_epoch
        if after is not None:
            assert bool(after.isr) == bool(after.leader), after
            assert after.leader in (*after.isr, ""), after
        return outcome

    @property
    def active(self) -> dict[str, int]:
        return {
            name: broker.epoch
            for name, broker in self.state.brokers.items()
            if broker.state is BrokerState.ACTIVE
        }

    def start(self, name: str, ended: Ended = Ended.CLEAN, *, learn: bool = True) -> None:
        """A broker starts and registers; it is fenced."""
        node = self.nodes[name]
        changed = self.apply(RegisterBroker(name, uuid.UUID(int=next(self._incarnations)), ended=ended))
        node.epoch = changed.broker.epoch
        node.sessions = sessions_of(node.epoch)
        node.up = True
        self.doubtful.discard(name)
        if learn:
            self.learn(name)

    def unfence(self, name: str) -> None:
        self.apply(UnfenceBroker(name, self.state.brokers[name].epoch))

    def fence(self, name: str) -> None:
        """The controller takes a broker for dead."""
        self.apply(FenceBroker(name, self.state.brokers[name].epoch))

    def transfer(self, name: str, mode: Mode = Mode.CLEAN) -> Result:
        """Another leader, whoever leads."""
        changed: Changed = self.apply(
            ChangeLeaders((LeaderChange(STREAM, 0, self.partition.epoch, name, mode),))
        )
        return changed.results[0]

    def recover(self) -> None:
        """The controller asks the last known replicas what they have, and makes the best one leader."""
        if recoverable(self.partition, self.state.registry):
            ends = {name: self.nodes[name].log for name in self.partition.last_known}
            best = most_complete({name: (log.last_epoch, log.next_offset) for name, log in ends.items()})
            assert self.transfer(best, Mode.RECOVERED).refusal is None

    def learn(self, name: str) -> None:
        """A broker hears of the metadata as they are, and takes its role."""
        node, partition = self.nodes[name], self.partition
        if not node.up:
            return
        if node.role is not None and node.role.epoch == partition.leader_epoch:
            if isinstance(node.role, Leader):
                node.role.metadata(partition, self.active, self.now)
            else:
                node.role.metadata(partition)
            self.check()
            return
        node.end_role()
        if partition.leader == name:
            self._lead(node, partition)
        elif partition.leader:
            node.role = Follower(
                name,
                node.epoch,
                partition,
                node.log,
                high_watermark=node.high_watermark,
                sessions=node.sessions,
            )
            self.connect(name)

    def _lead(self, node: Node, partition: Partition) -> None:
        if self.given_up < partition.unclean_epoch:
            self.given_up = partition.unclean_epoch
            # What it does not have is lost, and recorded to be.
            self.exposed = {
                offset: record
                for offset, record in self.exposed.items()
                if node.log.records.get(offset) == record
            }
            self.acked = {offset: uid for offset, uid in self.acked.items() if offset in self.exposed}
        for offset, record in self.exposed.items():
            if offset >= node.log.start_offset:
                assert node.log.records.get(offset) == record, f"J-07: {node.name} leads without {offset}"
        assert self.appenders.setdefault(partition.leader_epoch, node.name) == node.name, "J-10"
        node.log.append(partition.leader_epoch)
        node.role = Leader(
            node.name,
            STREAM,
            partition,
            self.guarantees,
            node.log,
            high_watermark=node.high_watermark,
            broker_epochs=self.active,
            max_lag=MAX_LAG,
            now=self.now,
        )
        self.check()

    def alter_isr(self, name: str, *, answer: bool = True, apply: bool = True) -> Result | None:
        """A leader looks at its followers; what it proposes is applied, and it is told."""
        change = self.nodes[name].leader.propose(self.now)
        if change is None:
            return None
        return self.decide(name, change, answer=answer, apply=apply)

    def decide(
        self, name: str, change: IsrChange, *, answer: bool = True, apply: bool = True
    ) -> Result | None:
        """A proposal reaches the controller, or not, and so does the answer."""
        result = self.apply(AlterIsr((change,))).results[0] if apply else None
        role = self.nodes[name].role
        if isinstance(role, Leader):
            role.resolve(change, result if answer and result is not None else Unknown.UNKNOWN, self.now)
        self.check()
        return result

    # -- brokers

    def crash(self, name: str, *, power: bool = False) -> None:
        """A broker dies; `power`: what its disk had not synced is gone too."""
        node = self.nodes[name]
        node.end_role()
        node.up = False
        for (one, other), link in self.links.items():
            if name in (one, other):
                link.clear()
        if power:
            before = node.log.next_offset
            node.log.lose_unsynced()
            if node.log.next_offset < before and not self.guarantees.synced:
                self.doubtful.add(name)
        node.high_watermark = min(node.high_watermark, node.log.next_offset - 1)

    def wipe(self, name: str) -> None:
        """The disk of a dead broker is replaced by an empty one."""
        self.nodes[name].log = ReplicaLog()
        self.nodes[name].high_watermark = -1
        self.doubtful.add(name)

    def publish(self, name: str, count: int = 1) -> None:
        """A leader, or who takes itself for one, appends a batch."""
        leader = self.nodes[name].leader
        assert self.appenders[leader.epoch] == name, "J-10"
        self.nodes[name].log.append(
            leader.epoch, *(f"{name}{leader.epoch}-{next(self._payloads)}" for _ in range(count))
        )
        leader.commit()
        self.check()

    def sync(self, name: str) -> None:
        node = self.nodes[name]
        node.log.sync()
        if isinstance(node.role, Leader):
            node.role.commit()
        elif isinstance(node.role, Follower):
            self._say(name, node.role.progress())
        self.check()

    # -- messages

    def connect(self, name: str) -> None:
        """A follower has (again) a connection to its leader; what was on its way is lost."""
        node = self.nodes[name]
        other = self._leader_of(name)
        if other is None or node.follower.damaged:
            return
        self.links[name, other].clear()
        self.links[other, name].clear()
        self._say(name, node.follower.begin())

    def state_position(self, name: str) -> None:
        """A follower states where it is, whatever it stated before."""
        self._say(name, self.nodes[name].follower.position())

    def _leader_of(self, name: str) -> str | None:
        leader = self.appenders_of(self.nodes[name].follower.epoch)
        return leader if leader != name else None

    def appenders_of(self, epoch: int) -> str | None:
        """Whom a follower of that epoch takes for its leader; the metadata told it."""
        if self.partition.leader_epoch == epoch:
            return self.partition.leader
        return self.appenders.get(epoch)

    def _say(self, name: str, statement: Statement | None) -> None:
        other = self._leader_of(name)
        if statement is not None and other is not None:
            self.links[name, other].append(statement)

    def send(self, name: str, to: str, limit: int = 100) -> bool:
        """A leader sends a follower what it has not had, or a heartbeat; whether there was anything."""
        leader = self.nodes[name].leader
        place = leader.send_from(to)
        if place is None:
            return False
        batches = self.nodes[name].log.behind(place.next_offset, place.last_epoch)[:limit]
        data = leader.data(to, place.session, [batch.span for batch in batches], self.now)
        assert data is not None
        self.links[name, to].append((data, batches))
        return bool(batches)

    def deliver(self, source: str, target: str) -> bool:
        """The next message of a link arrives."""
        link = self.links[source, target]
        if not link:
            return False
        message = link.popleft()
        node = self.nodes[target]
        if isinstance(message, Statement):
            self._stated(node, message)
        elif isinstance(node.role, Follower):
            data, batches = message if isinstance(message, tuple) else (message, [])
            self._received(node, data, batches)
        self.check()
        return True

    def _stated(self, node: Node, statement: Statement) -> None:
        if not isinstance(node.role, Leader):
            epoch = node.role.epoch if node.role is not None else 0
            self.links[node.name, statement.broker].append(
                Fenced(epoch, statement.session, Fence.NOT_LEADING)
            )
            return
        before = copy.deepcopy({each: vars_of(progress) for each, progress in node.role.followers.items()})
        watermark = node.role.high_watermark
        answer = node.role.state(statement, self.now)
        if isinstance(answer, Fenced):
            after = {each: vars_of(progress) for each, progress in node.role.followers.items()}
            assert {each: after[each] for each in before} == before, "J-13"
            assert node.role.high_watermark == watermark, "J-13"
        self.links[node.name, statement.broker].append(answer)

    def _received(self, node: Node, message: Any, batches: list[Stored]) -> None:
        follower = node.follower
        action = follower.receive(message)
        self.actions.append(action)
        if isinstance(action, Append):
            for batch in batches[len(batches) - action.count :]:
                node.log.store(batch)
            follower.appended()
            self._say(node.name, follower.progress())
        elif isinstance(action, Truncate):
            self._check_truncation(node, action.offset)
            node.log.truncate(action.offset)
            self._say(node.name, follower.begin())
        elif isinstance(action, Restart):
            self._check_truncation(node, min(action.offset, node.log.next_offset), drop=True)
            node.log.restart(action.offset)
            self._say(node.name, follower.begin())
        elif isinstance(action, Restate):
            assert action.reason is None, action
            self._say(node.name, follower.begin())
        elif isinstance(action, Damaged):
            raise AssertionError(f"{node.name} takes its log for damaged, and it is whole: {action}")
        elif isinstance(action, Wait):
            pass

    def _check_truncation(self, node: Node, offset: int, *, drop: bool = False) -> None:
        if node.role is None or self.unclean_epoch > node.log.last_epoch or drop:
            return
        for at in range(offset, node.log.next_offset):
            exposed = self.exposed.get(at)
            assert exposed is None or node.log.records.get(at) != exposed, f"J-14: {node.name} cuts off {at}"

    # -- until nothing happens any more

    def pump(self, *names: str) -> None:
        """Everything among these brokers is said, sent and delivered until nothing changes."""
        names = names or BROKERS
        for _ in range(50):
            busy = self._deliver_all(names)
            for name, other in itertools.permutations(names, 2):
                if self.has_to_send(name, other):
                    busy |= self.send(name, other)
            if not busy:
                break
        else:
            raise AssertionError("it goes on for ever")
        # High watermarks travel with heartbeats.
        for name, other in itertools.permutations(names, 2):
            if isinstance(self.nodes[name].role, Leader):
                self.send(name, other)
        self._deliver_all(names)

    def has_to_send(self, name: str, to: str) -> bool:
        """Whether a leader has batches that a follower has not had."""
        role = self.nodes[name].role
        place = role.send_from(to) if isinstance(role, Leader) else None
        return place is not None and bool(self.nodes[name].log.behind(place.next_offset, place.last_epoch))

    def _deliver_all(self, names: tuple[str, ...]) -> bool:
        busy = False
        for one, other in itertools.permutations(names, 2):
            while self.deliver(one, other):
                busy = True
        return busy

    def settle(self) -> None:
        """All faults are over: everybody is alive, hears everything, and has time to catch up."""
        for name, node in self.nodes.items():
            if not node.up:
                self.start(name, Ended.UNCLEAN if name in self.doubtful else Ended.CLEAN, learn=False)
            self.unfence(name)
        self.recover()
        for _ in range(8):
            for name in BROKERS:
                self.learn(name)
                if isinstance(self.nodes[name].role, Follower):
                    self.connect(name)
            self.pump()
            for name in BROKERS:
                self.sync(name)
            self.pump()
            self.now += MAX_LAG / 2
            for name in BROKERS:
                if isinstance(self.nodes[name].role, Follower):
                    self.state_position(name)
            self.pump()
            if self.partition.leader:
                self.alter_isr(self.partition.leader)
                self.pump()

    def check_settled(self) -> None:
        """After `settle`: there is a leader, all are in sync, all is committed, and all logs are equal."""
        partition = self.partition
        assert partition.leader, partition
        assert set(partition.isr) == set(BROKERS), partition
        leader = self.nodes[partition.leader]
        assert leader.leader.high_watermark == leader.log.next_offset - 1
        for node in self.nodes.values():
            assert node.role is not None
            assert node.role.high_watermark == leader.leader.high_watermark
            assert node.log.next_offset == leader.log.next_offset
            assert node.log.last_epoch == leader.log.last_epoch
            for offset in range(max(node.log.start_offset, leader.log.start_offset), leader.log.next_offset):
                assert node.log.records[offset] == leader.log.records[offset]

    # -- what must hold

    def check(self) -> None:
        for node in self.nodes.values():
            role = node.role
            if role is None:
                continue
            assert role.high_watermark < node.log.next_offset, "J-15"
            if role.epoch < self.unclean_epoch:
                continue  # what it exposes may have been given up
            if isinstance(role, Leader):
                self._expose(node, role)
            elif role.readable:
                records = node.log.records
                for offset in range(node.log.start_offset, role.high_watermark + 1):
                    if offset in self.exposed:
                        assert records.get(offset) == self.exposed[offset], f"J-15: {node.name} {offset}"
        self._check_logs()
        self._check_isr()

    def _expose(self, node: Node, role: Leader) -> None:
        for offset in range(max(self.exposed, default=-1) + 1, role.high_watermark + 1):
            if offset < node.log.start_offset:
                continue
            record = node.log.records[offset]
            assert len(role.isr.committed) >= self.guarantees.min_isr, f"J-12: {offset}"
            # A leader that has not heard yet that somebody is out may count what that one had.
            if not self.doubtful and role.isr.epoch == self.partition.epoch:
                holders = [each for each in self.nodes.values() if each.log.records.get(offset) == record]
                assert len(holders) >= self.guarantees.min_isr, f"J-12: {offset}"
            self.exposed[offset] = record
            self.acked[offset] = record[1]
        records = node.log.records
        for offset in range(node.log.start_offset, role.high_watermark + 1):
            assert records[offset] == self.exposed.get(offset), f"J-05: {node.name} {offset}"
        for offset, uid in self.acked.items():
            assert self.exposed[offset][1] == uid, "J-01"

    def _check_logs(self) -> None:
        for one, other in itertools.combinations(self.nodes.values(), 2):
            mine, others = one.log.records, other.log.records
            common = [at for at in mine if at in others and mine[at][0] == others[at][0]]
            for at in range(max(one.log.start_offset, other.log.start_offset), max(common, default=-1) + 1):
                assert mine.get(at) == others.get(at), f"J-06: {one.name}, {other.name} at {at}"

    def _check_isr(self) -> None:
        partition = self.partition if self.state.streams else None
        if partition is None or partition.leader_epoch < self.unclean_epoch:
            return
        for name in (*partition.isr, *partition.elr):
            if name in self.doubtful or self.given_up < partition.unclean_epoch:
                continue
            log, records = self.nodes[name].log, self.nodes[name].log.records
            for offset, record in self.exposed.items():
                if offset >= log.start_offset:
                    assert records.get(offset) == record, f"J-11: {name} lacks {offset}"


def vars_of(progress: object) -> dict[str, object]:
    return {name: getattr(progress, name) for name in progress.__slots__}  # type: ignore[attr-defined]


__all__ = ["BROKERS", "MAX_LAG", "STREAM", "Data", "Diverging", "World"]
