"""A broker of a simulated cluster: a host with consensus, replicas of partitions, and a turn at deciding.

What the Trio broker does with tasks, sockets and files is done here with events, messages and simulated
disks, one after the other. It can be killed, lose power, be stopped and go on, leave in order, lose its disk.

A life: the logs are read and synced, it registers, and takes roles from metadata that have its registration
in them. From then on it sends heartbeats, and its lease is what is confirmed of them.

Invariants:
- How it ended says its disk: a marker of an orderly end, the boot in which it ran. Both are of the last run
  that was registered: a run that found something lost, and ended before the metadata knew, changes neither.
- A confirmed heartbeat counts when as much is applied here as was there when it was confirmed.
- Metadata are looked at after they were applied, never while: applying cannot fail.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from liftbridge.metadata.broker_operations import Ended, RegisterBroker, WithdrawReplicas
from liftbridge.metadata.brokers import BrokerState
from liftbridge.metadata.control import Heard, Position
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.operations import Operation
from liftbridge.metadata.replicas import Changed
from liftbridge.metadata.state import Outcome
from liftbridge.raft import Options
from liftbridge.replication.follower import sessions_of
from liftbridge.replication.lease import Lease
from liftbridge.sim.cluster_checks import ClusterChecks, durable_end
from liftbridge.sim.cluster_controller import Barrier, Controller
from liftbridge.sim.cluster_machine import MetadataMachine
from liftbridge.sim.cluster_messages import (
    Beat,
    BeatAnswer,
    Fetch,
    FetchCursor,
    FromLeader,
    Positions,
    Propose,
    Proposed,
    Publish,
    Question,
    ToLeader,
    Where,
)
from liftbridge.sim.cluster_replica import Replica
from liftbridge.sim.disk import DAMAGED, Disk, DiskFullError, FuseError, Speed
from liftbridge.sim.raft_host import Host
from liftbridge.sim.replica_log import LOG, ReplicaLog
from liftbridge.sim.world import World

if TYPE_CHECKING:
    from liftbridge.sim.cluster import Cluster

_INBOX = 200  # messages that wait for a process that is stopped, as socket buffers would
_CLEAN, _BOOT = "clean", "boot"


@dataclass
class Settings:
    """Times, in microseconds of a broker's clock, and bounds; the same on all brokers of a run.

    Attributes:
        tick: of consensus.
        beat: between heartbeats.
        session, lease: as in `Control` and `Lease`.
        max_lag: as in `Leader`.
        silence: of a leader, until its follower connects anew.
        patience: until an answer to a proposal is given up.
        reaction: until metadata that were applied are looked at, at most.
        window, batches: records on their way to a follower, batches in a message.
        flush_every: between two syncs of a stream that does not wait for them, 0 for none.
        datagrams: how replication travels; see `cluster_replica`.
        knows_boot: whether a broker can tell that the machine has run since.
    """

    tick: int = 50_000
    beat: int = 100_000
    session: int = 600_000
    lease: int = 400_000
    max_lag: int = 400_000
    silence: int = 300_000
    patience: int = 400_000
    reaction: int = 3_000
    window: int = 20
    batches: int = 4
    flush_every: int = 150_000
    datagrams: bool = False
    knows_boot: bool = True


class Broker:
    """One broker, over all lives of its process.

    Attributes:
        name: its id.
        host: its machine, with the node of the consensus.
        settings, checks, scheduler: of the run.
        running: whether its process has read its logs.
        incarnation: of its process.
        epoch: its broker epoch, 0 until its process has registered.
        lease: of its process.
        sessions: numbers for its followers' sessions.
        leaving: whether it is about to stop in order.
        logs: by partition, as its process has them, or the last one had.
        replicas: of its process, by partition.
        controller: its part in deciding.
    """

    def __init__(self, cluster: Cluster, name: str, options: Options, snapshot_every: int) -> None:
        world: World = cluster.world
        self.name = name
        self.settings: Settings = cluster.settings
        self.checks: ClusterChecks = cluster.checks
        self.scheduler = world.scheduler
        self.running = False
        self.incarnation = uuid.UUID(int=0)
        self.epoch = 0
        self.leaving = False
        self.logs: dict[Where, ReplicaLog] = {}
        self.replicas: dict[Where, Replica] = {}
        self.lease = Lease(self.settings.lease)
        self.sessions: Iterator[int] = iter(())
        self._world = world
        self._cluster = cluster
        self._home = Disk(world.scheduler, world.random, Speed())
        self._data: dict[Where, Disk] = {}
        self._boot = 1
        self._links = 0
        self._process = 0
        self._forget()
        self.host = Host(
            world,
            cluster.watch,
            options,
            snapshot_every,
            cluster.place_of,
            self._new_machine,
            self.settings.tick,
        )
        world.network.attach(self.host.number, self.receive)

    def _new_machine(self) -> MetadataMachine:
        return MetadataMachine(self._cluster.decoded, self._applied)

    def _applied(self, index: int, operation: Operation, outcome: Outcome | MetadataError) -> None:
        self.checks.entry(index, operation, outcome)

    def __repr__(self) -> str:
        return self.name

    # -- what others ask of it

    @property
    def machine(self) -> MetadataMachine:
        """The metadata as it has applied them."""
        machine = self.host.machine
        assert isinstance(machine, MetadataMachine)
        return machine

    @property
    def now(self) -> int:
        """The time of its clock."""
        return self.host.clock.monotonic()

    def note(self, what: str, *values: object) -> None:
        """Add something to the trace."""
        self._world.note(what, self.name, *values)

    def told(self, what: str, replica: Replica) -> None:
        """Something has happened at which a fault may aim."""
        self._cluster.happened(what, replica)

    def number_of(self, name: str) -> int:
        """The host of a broker."""
        return self._cluster.brokers[name].host.number

    def new_link(self) -> int:
        """A number for a connection, higher than all before, also of earlier processes."""
        self._links += 1
        return self._links

    def disk_of(self, where: Where) -> Disk:
        """What a partition lies on."""
        disk = self._data.get(where)
        if disk is None:
            disk = self._data[where] = Disk(self._world.scheduler, self._world.random, self.host.disk.speed)
        return disk

    @property
    def disks(self) -> list[Disk]:
        """Of its partitions."""
        return list(self._data.values())

    def durable_end(self, where: Where) -> int:
        """Where a log ends that no loss of power can take any more."""
        disk = self._data.get(where)
        return 0 if disk is None else durable_end(disk.durable(LOG), torn=not self.running)

    def send(self, target: int, message: Any) -> None:
        """Send a message to a host, which may be its own."""
        if target == self.host.number:
            self.later(0, self._take, target, message)
        else:
            self._world.network.send(self.host.number, target, message)

    def later(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Something in `delay` microseconds of its clock, if its process still runs then."""
        self.host.clock.after(delay, self._fire, self._process, action, arguments)

    def guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        """The same when it is called, if its process runs then."""
        process = self._process
        return lambda: self._fire(process, action, ())

    def _fire(self, process: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if process != self._process:
            return
        if self.host.stopped:
            self._deferred.append((action, arguments))
        else:
            self._run(action, *arguments)

    def _run(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except (FuseError, DiskFullError) as error:
            self.note("died", type(error).__name__)
            if (
                isinstance(error, FuseError)
                and self._cluster.watch.power
                and self._world.random.random() < 0.5
            ):
                self.host.lose_power()
            else:
                self.host.kill()

    # -- its life

    def begun(self) -> None:
        """Its process has a node of the consensus: now for the logs."""
        self._process += 1
        self.incarnation = self._cluster.incarnation_of(self)
        self.later(0, self._open)

    def _forget(self) -> None:
        """What a process knows is gone."""
        self.running = self.leaving = self._stopping = False
        self.epoch = 0
        self.replicas = {}
        self.lease = Lease(self.settings.lease)
        self.controller = Controller(self)
        self._ended = Ended.CLEAN
        self._withdrawing: dict[Where, bool] = {}
        self._withdrawal: int | None = None
        self._registration: int | None = None
        self._requests: dict[int, Callable[[object], None]] = {}
        self._request = self._process << 20
        self._confirmed: list[tuple[int, int, int]] = []
        self._changed = False
        self._ticks = 0
        self._flushed_at = 0
        self._fenced_at = 0
        self._left_at = 0
        self._deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._inbox: list[tuple[int, Any]] = []

    def _open(self) -> None:
        self._ended = self._how_it_ended()
        self._home.delete(_CLEAN)
        for where, disk in self._data.items():
            self.logs[where] = ReplicaLog(disk)
            if self.logs[where].lost:
                self._withdrawing[where] = True
        waiting = 1 + len(self._data)

        def synced() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._opened()

        self._home.sync(self.guarded(synced))
        for log in self.logs.values():
            self._run(log.mend, self.guarded(synced))

    def found(self) -> None:
        """Begin with an empty disk that is its own."""
        self._home.replace(_BOOT, [self._boot])
        self._home.sync(lambda: None)

    def _how_it_ended(self) -> Ended:
        boot = self._home.read(_BOOT)
        if self.incarnation == self._cluster.first_incarnations.get(self.name):
            return Ended.CLEAN
        if not boot or boot[0] is DAMAGED:
            return Ended.LOST
        if self._home.read(_CLEAN) or (self.settings.knows_boot and boot[0] == self._boot):
            return Ended.CLEAN
        return Ended.UNCLEAN

    def _opened(self) -> None:
        self.running = True
        self.note("open", self._ended.name, *(log.next_offset for log in self.logs.values()))
        self.changed()
        self._tick()

    def gone(self, *, power: bool) -> None:
        """Its process has ended."""
        self._process += 1
        self.checks.gone(self, power=power)
        for disk in (self._home, *self._data.values()):
            if power:
                disk.power_loss()
            else:
                disk.kill()
        self._boot += power
        self._forget()

    def leave(self) -> None:
        """Stop in order: let others lead first."""
        if self.running and not self.leaving:
            self.note("leave")
            self.leaving = True
            self._left_at = self.now

    def _stop(self) -> None:
        """Everything is on the disk, and a marker that it is: the process ends."""
        self._stopping = True
        self.note("stop")
        for replica in self.replicas.values():
            replica.end_role()
            replica.store_mark()
        waiting = len(self.replicas)

        def marked() -> None:
            self.host.kill()

        def synced() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting <= 0:
                self._home.replace(_CLEAN, [True])
                self._home.sync(self.guarded(marked))

        if not waiting:
            synced()
        for replica in list(self.replicas.values()):
            replica.log.sync(self.guarded(synced))

    def go_on(self) -> None:
        """A stopped process gets what has waited for it."""
        if not self.host.stopped:
            return
        self.host.go_on()
        process = self._process
        deferred, self._deferred = self._deferred, []
        inbox, self._inbox = self._inbox, []
        for action, arguments in deferred:
            self._fire(process, action, arguments)
        for source, message in inbox:
            self._fire(process, self._take, (source, message))

    def wipe(self) -> None:
        """Its disk is replaced by an empty one, all but what consensus has."""
        if self.host.runs:
            self.host.kill()
        self.note("wipe")
        for where, disk in self._data.items():
            disk.wipe()
            self.checks.robbed(self, where)
        self._home.wipe()
        self.logs.clear()

    def damage(self, where: Where) -> bool:
        """Flip a bit in a batch that was synced long ago; the process ends. False when there is none."""
        records = self._data[where].durable(LOG) if where in self._data else ()
        proven = max((record[1] for record in records if record is not DAMAGED), default=0)
        if proven < 2:
            return False
        if self.host.runs:
            self.host.kill()
        self.note("flip")
        self._data[where].flip(LOG, 1 + int(self._world.random.random() * (proven - 1)))
        self.checks.robbed(self, where)
        return True

    # -- what comes

    def receive(self, source: int, message: Any) -> None:
        """A message has come over the network."""
        if self.host.core is None:
            return
        if self.host.stopped:
            if len(self._inbox) < _INBOX:
                self._inbox.append((source, message))
            return
        self._run(self._take, source, message)

    def _take(self, source: int, message: Any) -> None:
        kind = type(message)
        if kind is ToLeader or kind is FromLeader:
            replica = self.replicas.get(message.where)
            if replica is not None and not self._stopping:
                if kind is ToLeader:
                    replica.stated(source, message)
                else:
                    replica.received(message)
        elif kind is Publish or kind is Fetch or kind is FetchCursor:
            replica = self.replicas.get(message.where)
            if replica is not None and not self._stopping:
                if kind is Publish:
                    replica.publish(source, message)
                elif kind is Fetch:
                    replica.fetch(source, message)
                else:
                    replica.cursor(source, message)
        elif kind is Beat:
            self.controller.beat(source, message)
        elif kind is BeatAnswer:
            self._answered(message)
        elif kind is Propose:
            self._proposed(source, message)
        elif kind is Proposed:
            self._resolve(message.number, message.outcome)
        elif kind is Question:
            self._state_positions(source, message)
        elif kind is Positions:
            self.controller.positions(message)
        else:
            self.host.receive(source, message)

    # -- regularly

    def _tick(self) -> None:
        self.later(self.settings.beat // 2, self._tick)
        self.controller.look()
        if self._stopping:
            return
        self._register()
        self._ticks += 1
        if self._ticks % 2:
            return
        if self.epoch and not any(self._withdrawing.values()):
            self._beat()
        flushing = self.settings.flush_every and self.now >= self._flushed_at + self.settings.flush_every
        for replica in list(self.replicas.values()):
            replica.look()
            replica.store_mark()
            if flushing:
                replica.flush()
        if flushing:
            self._flushed_at = self.now
        if self.leaving and self.now > self._left_at + 6 * self.settings.session:
            self._stop()

    def _beat(self) -> None:
        core = self.host.core
        leader = None if core is None or core.leader is None else self._cluster.place_of(core.leader)
        if leader is not None:
            self.send(leader, Beat(self.name, self.epoch, self.now, self.leaving))

    def _answered(self, answer: BeatAnswer) -> None:
        """A heartbeat was answered."""
        if answer.heard is Heard.CONFIRMED:
            self._confirmed.append((answer.applied, answer.broker_epoch, answer.sent))
            self._count_confirmed()
        elif answer.heard is Heard.FENCED and self.leaving and answer.broker_epoch == self.epoch:
            record = self.machine.cluster.brokers.get(self.name)
            if record is not None and record.state is BrokerState.FENCED and not self._stopping:
                self._stop()

    def _count_confirmed(self) -> None:
        for applied, epoch, sent in self._confirmed:
            if applied <= self.machine.index:
                self.lease.confirmed(epoch, sent)
                self.checks.leased(self)
        self._confirmed = [each for each in self._confirmed[-20:] if each[0] > self.machine.index]

    # -- metadata

    def changed(self) -> None:
        """Metadata were applied: look at them in a moment."""
        if self.running and not self._changed:
            self._changed = True
            self.later(int(self._world.random.random() * self.settings.reaction), self._look)

    def _look(self) -> None:
        self._changed = False
        if self._stopping:
            return
        state = self.machine.cluster
        record = state.brokers.get(self.name)
        if record is None or record.incarnation != self.incarnation:
            if self.epoch:  # what an earlier process has asked for came late
                self.epoch = 0
                self.lease.registered(0)
            return
        if record.epoch != self.epoch:
            self.note("registered", record.epoch)
            self.epoch = record.epoch
            self.lease.registered(record.epoch)
            self.sessions = sessions_of(record.epoch)
            self._home.replace(_BOOT, [self._boot])
            for replica in self.replicas.values():
                replica.end_role()
        self._count_confirmed()
        active = {
            name: broker.epoch for name, broker in state.brokers.items() if broker.state is BrokerState.ACTIVE
        }
        here = set()
        for stream in state.streams.values():
            for partition in stream.partitions:
                if self.name in partition.replicas:
                    where = (stream.stream_id, partition.id)
                    here.add(where)
                    self._replica(where).metadata(stream, partition, active)
        for where in [where for where in self.replicas if where not in here]:
            self.replicas.pop(where).end_role()
            if state.stream_by_id(where[0]) is None or where not in here:
                del self._data[where], self.logs[where]

    def _replica(self, where: Where) -> Replica:
        replica = self.replicas.get(where)
        if replica is None:
            disk = self.disk_of(where)
            if where not in self.logs:
                self.logs[where] = ReplicaLog(disk)
            mark = disk.read("mark")
            known = mark[0] if mark and mark[0] is not DAMAGED else -1
            replica = self.replicas[where] = Replica(self, where, self.logs[where], known)
        return replica

    def _register(self) -> None:
        """Ask for what has to be in the metadata: its registration, and what its disk has lost."""
        if not self.epoch:
            record = self.machine.cluster.brokers.get(self.name)
            if record is not None and record.incarnation == self.incarnation:
                self.changed()
            elif self._registration is None or self._registration not in self._requests:
                registration = RegisterBroker(
                    self.name, self.incarnation, ended=self._ended, node_id=self.host.node or 0
                )
                self._registration = self.request(registration, _nothing)
        elif self._withdrawing and (self._withdrawal is None or self._withdrawal not in self._requests):
            lost = next(iter(self._withdrawing.values()))
            wheres = tuple(where for where, each in self._withdrawing.items() if each is lost)

            def told(outcome: object) -> None:
                if isinstance(outcome, Changed):
                    for where in wheres:
                        self._withdrawing.pop(where, None)
                        if lost and where in self.logs:
                            self.logs[where].forgive()

            withdrawal = WithdrawReplicas(self.name, self.epoch, wheres, lost)
            self._withdrawal = self.request(withdrawal, told)

    def withdraw(self, where: Where) -> None:
        """A replica cannot do what the metadata want of it."""
        self._withdrawing.setdefault(where, False)

    def _state_positions(self, source: int, question: Question) -> None:
        found = {}
        for where in question.partitions:
            stream = self.machine.cluster.stream_by_id(where[0])
            log = self.logs.get(where)
            if log is not None and stream is not None and not stream.partitions[where[1]].leader:
                found[where] = Position(log.last_epoch, log.next_offset, log.synced_offset, log.lost)
        if found and self.epoch:
            self.send(source, Positions(self.name, self.epoch, found))

    # -- proposals

    def request(self, operation: Operation, tell: Callable[[object], None]) -> int:
        """Have an operation carried out by whoever decides. `tell` gets the outcome, or None when it is not
        known; returns the number of the request, which is gone then."""
        self._request += 1
        number = self._request
        self._requests[number] = tell
        core = self.host.core
        leader = None if core is None or core.leader is None else self._cluster.place_of(core.leader)
        if leader is not None:
            self.send(leader, Propose(number, operation.encode()))
        self.later(self.settings.patience, self._resolve, number, None)
        return number

    def _proposed(self, source: int, propose: Propose) -> None:
        process = self._process

        def told(index: int | None) -> None:
            if index is not None and process == self._process:
                self.send(source, Proposed(propose.number, self.machine.outcome))

        if not self.host.propose(propose.data, told):
            self.send(source, Proposed(propose.number, None))

    def _resolve(self, number: int, outcome: object) -> None:
        tell = self._requests.pop(number, None)
        if tell is not None:
            tell(outcome)

    # -- consensus

    def answered(self, read: object) -> None:
        """A majority has confirmed that this broker leads."""
        if isinstance(read, Barrier):
            self.controller.confirmed(read)


def _nothing(outcome: object) -> None:
    """What becomes of a registration shows in the metadata."""
