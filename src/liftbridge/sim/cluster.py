"""Runs of whole clusters: brokers, producers, consumers, faults, and at the end whether it still works.

`run(seed, profile)` is all: the same seed and profile make the same run. For some seconds of virtual time
clients work and things go wrong, then everything heals, and within a bounded time each partition must have a
leader, all its replicas in sync, everything committed (J-21). What the cores of the product do meanwhile is
held against J-01 to J-20 at each step (`cluster_checks`). The profile `failover` has one fault, the death of
one broker of three, and bounds how long nothing is acked (J-22).

Times are a fifth of the product's defaults, so that a second of a run is worth five.

Invariant: a run ends, with a result; an error of a core is a finding like any other.
"""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Callable
from random import Random

from liftbridge.metadata.broker_operations import Ended, RegisterBroker, UnfenceBroker
from liftbridge.metadata.elections import most_complete
from liftbridge.metadata.model import Guarantees, StreamSettings
from liftbridge.metadata.operations import CreateStream, DeleteStream, JoinGroup, LeaveGroup, Operation
from liftbridge.metadata.placement import BrokerLoad, Placement, place
from liftbridge.metadata.replica_operations import ChangeLeaders, LeaderChange, Mode
from liftbridge.metadata.state import ClusterState
from liftbridge.raft import Members, NodeId, Options, Raft, Snapshot, SnapshotMeta
from liftbridge.sim.cluster_broker import Broker, Settings
from liftbridge.sim.cluster_checks import ClusterChecks
from liftbridge.sim.cluster_clients import Consumer, Producer, leads
from liftbridge.sim.cluster_faults import PROFILES, Faults
from liftbridge.sim.cluster_machine import Decoded, MetadataMachine
from liftbridge.sim.cluster_messages import Ack, Publish, Where
from liftbridge.sim.cluster_replica import Replica
from liftbridge.sim.raft_host import Host
from liftbridge.sim.raft_watch import Watch
from liftbridge.sim.results import Result
from liftbridge.sim.world import MILLISECOND, SECOND, Violation, World

__all__ = ["PROFILES", "run"]

KIND = "cluster"
_HEALED = 10 * SECOND  # for a cluster that is whole again
_LOOKS = 20 * MILLISECOND
_FAILOVER = 2 * SECOND  # without acks when one broker of three dies
_SLOWEST = 0.85  # rate of a clock


class _Watch(Watch):
    """Tells brokers what happens on their hosts."""

    def __init__(self, cluster: Cluster, *, power: bool) -> None:
        super().__init__(power=power)
        self._brokers = cluster.by_number

    def started(self, host: Host) -> None:
        self._brokers[host.number].begun()

    def gone(self, host: Host, *, power: bool) -> None:
        self._brokers[host.number].gone(power=power)

    def applied(self, host: Host) -> None:
        broker = self._brokers.get(host.number)
        if broker is not None:
            broker.changed()

    def answered(self, host: Host, core: Raft, read: object, index: int) -> None:
        self._brokers[host.number].answered(read)


class Cluster:
    """Brokers and clients in a world.

    Attributes:
        world, settings, checks, watch, decoded: of the run.
        brokers: by name; `by_number`: by the number of their host.
        first_incarnations: of the processes that the metadata begin with.
        producers, consumers: the clients.
        publishing: whether producers begin new messages.
        acks: messages that were acked; `last_ack` when, `longest` the longest time without, since `measure`.
        happened: called when something has happened that a fault may aim at.
    """

    def __init__(self, world: World, settings: Settings, *, brokers: int, power: bool) -> None:
        self.world = world
        self.settings = settings
        self.checks = ClusterChecks(world, int(settings.lease / _SLOWEST) + 50 * MILLISECOND)
        self.by_number: dict[int, Broker] = {}
        self.brokers: dict[str, Broker] = {}
        self.watch = _Watch(self, power=power)
        self.decoded = Decoded()
        self.first_incarnations: dict[str, uuid.UUID] = {}
        self.producers: list[Producer] = []
        self.consumers: list[Consumer] = []
        self.publishing = True
        self.acks = 0
        self.last_ack = 0
        self.happened: Callable[[str, Replica], None] = _nothing
        self._streams = 0
        self._members = 0
        self._places: dict[NodeId, int] = {}
        random = world.random
        options = Options(
            election_ticks=random.choice((3, 4)),
            heartbeat_ticks=1,
            max_append_entries=random.choice((1, 4, 64)),
            max_in_flight=random.choice((1, 4, 16)),
            retained_entries=random.choice((0, 3, 1000)),
        )
        every = random.choice((5, 20, 100_000))
        for number in range(brokers):
            broker = Broker(self, f"b{number}", options, every)
            self.brokers[broker.name] = self.by_number[broker.host.number] = broker

    def begin(self, guarantees: Guarantees, partitions: int, factor: int) -> None:
        """All brokers start, registered and alive, with one stream."""
        random = self.world.random
        state = ClusterState()
        for name in self.brokers:
            incarnation = self.first_incarnations[name] = uuid.UUID(int=random.getrandbits(128))
            epoch = state.applied_index + 1
            state.apply(epoch, RegisterBroker(name, incarnation, ended=Ended.CLEAN))
            state.apply(epoch + 1, UnfenceBroker(name, epoch))
        self._streams += 1
        placed = place(partitions, factor, [BrokerLoad(name, 0, 0) for name in self.brokers])
        state.apply(state.applied_index + 1, self._creation(placed, guarantees))
        machine = MetadataMachine(self.decoded, lambda *_: None)
        machine.index, machine.term, machine.cluster = state.applied_index, 1, state
        self.checks.begin(state.snapshot(), machine.index, self.brokers)
        nodes = frozenset((broker.host.number + 1) * 100 + 1 for broker in self.brokers.values())
        first = Snapshot(SnapshotMeta(machine.index, 1, Members(nodes)), machine.state())
        for broker in self.brokers.values():
            broker.found()
            broker.host.found(first)
            assert broker.host.node is not None
            self._places[broker.host.node] = broker.host.number

    def _creation(self, placed: tuple[Placement, ...], guarantees: Guarantees) -> CreateStream:
        name = f"s{self._streams}"
        stream_id = uuid.UUID(int=self._streams)
        return CreateStream(name, name, "", stream_id, 1, StreamSettings(), placed, guarantees)

    # ---- who is where ----

    def place_of(self, node: NodeId) -> int | None:
        """The host of a node."""
        return self._places.get(node)

    def incarnation_of(self, broker: Broker) -> uuid.UUID:
        """A number for a process: at first the one that the metadata begin with."""
        first = self.first_incarnations[broker.name]
        if broker.incarnation.int == 0:
            return first
        return uuid.UUID(int=self.world.random.getrandbits(128))

    def leaders(self, where: Where) -> list[Broker]:
        """Who takes itself for the leader of a partition, the newest last."""
        found = [broker for broker in self.brokers.values() if broker.running and leads(broker, where)]
        return sorted(found, key=lambda broker: broker.replicas[where].epoch)

    def start(self, broker: Broker) -> None:
        """Start a process where none is."""
        if not broker.host.runs:
            broker.host.start()

    def may_lose(self, broker: Broker) -> bool:
        """Whether a disk can go, as fewer may than have to be in sync: of each partition another broker that
        may lead has everything, and nobody is in doubt."""
        checks = self.checks
        for where, partition in checks.partitions.items():
            if broker.name not in partition.replicas:
                continue
            story = checks.stories[where]
            if story.doubtful or story.unsettled:
                return False
            trusted = {*partition.isr, *partition.elr}
            if broker.name in trusted and story.guarantees.min_isr < 2:
                return False
            others = trusted - {broker.name}
            have = [
                name
                for name in others
                if (log := self.brokers[name].logs.get(where)) is not None
                and log.next_offset >= len(story.exposed)
                and self.brokers[name].durable_end(where) >= len(story.exposed)
            ]
            if not have:
                return False
        return True

    # ---- clients ----

    def acked(self, ack: Ack, publish: Publish) -> None:
        """A client was told that its message is there."""
        self.acks += 1
        self.last_ack = self.world.scheduler.now

    def ask(self, operation: Operation) -> None:
        """An operator asks some broker to have an operation carried out."""
        running = [broker for broker in self.brokers.values() if broker.running and not broker.host.stopped]
        if running:
            self.world.random.choice(running).request(operation, _unheard)

    def force(self) -> None:
        """An operator gives up what nobody has any more, where so many have lost something that it may be so:
        the most complete replica is to lead."""
        for where, partition in self.checks.partitions.items():
            story = self.checks.stories[where]
            gone = not (partition.leader or partition.elr or partition.last_known)
            if not gone or len(story.losers) < story.guarantees.min_isr:
                continue
            ends = {name: self.brokers[name].logs[where] for name in partition.replicas}
            best = most_complete({name: (log.last_epoch, log.next_offset) for name, log in ends.items()})
            self.ask(ChangeLeaders((LeaderChange(*where, partition.epoch, best, Mode.FORCED),)))

    def create(self) -> None:
        """Another stream."""
        random = self.world.random
        if len(self.checks.truth.streams) >= 3:
            return
        self._streams += 1
        names = sorted(self.brokers)
        factor = random.randint(1, len(names))
        placed = place(1, factor, [BrokerLoad(name, 0, 0) for name in random.sample(names, factor)])
        self.ask(self._creation(placed, Guarantees(random.choice((1, min(2, factor))), False, False)))

    def delete(self) -> None:
        """A stream that nobody publishes to goes."""
        names = [name for name in self.checks.truth.streams if name != "s1"]
        if names:
            stream = self.checks.truth.streams[self.world.random.choice(names)]
            self.ask(DeleteStream(stream.name, stream.stream_id))

    def join(self) -> None:
        """A consumer joins the group."""
        self._members += 1
        streams = tuple(sorted(self.checks.truth.streams))
        coordinator = self.world.random.choice(sorted(self.brokers))
        self.ask(JoinGroup("g", f"c{self._members}", streams, coordinator))

    def part(self) -> None:
        """And leaves it."""
        group = self.checks.truth.groups.get("g")
        if group is not None and group.members:
            member = group.members[self.world.random.choice(sorted(group.members))]
            self.ask(LeaveGroup("g", member.consumer_id, member.joined))


def run(
    seed: int,
    profile: str,
    *,
    seconds: float | None = None,
    remembered: int = 400,
    trace: bool = False,
    digest: bool = False,
) -> Result:
    """One run.

    Arguments:
        seed: decides everything.
        profile: one of PROFILES.
        seconds: virtual ones with faults; some by default.
        remembered: events in the trace.
        trace: whether the trace is wanted when all is well, too.
        digest: whether to digest all events, which takes time.
    """
    world = World(seed * 64 + 32 + sorted(PROFILES).index(profile), remembered=remembered, digest=digest)
    simulation = _Run(world, profile)
    problem = ""
    try:
        simulation.trouble(seconds)
        simulation.recover()
    except Violation as violation:
        problem = str(violation)
    except Exception:
        # A machine fails by itself, or the simulator does: both are to be looked at.
        problem = f"a broker failed by itself:\n{traceback.format_exc()}"
    cluster = simulation.cluster
    cores = [broker.host.core for broker in cluster.brokers.values()]
    counts = (
        ("reads", cluster.checks.reads),
        ("leaders", sum(len(story.made) for story in cluster.checks.stories.values())),
        ("unclean elections", cluster.checks.unclean),
        ("acked by a leader alone and lost", cluster.checks.lost),
        ("ms without acks", simulation.gap // MILLISECOND),
    )
    return Result(
        KIND,
        seed,
        profile,
        problem,
        tuple(world.trace()) if problem or trace else (),
        world.scheduler.handled,
        cluster.acks,
        max((core.term for core in cores if core is not None), default=0),
        world.digest if digest else "",
        counts,
    )


class _Run:
    """One run; `gap` is the time without an ack that `failover` has seen, in microseconds."""

    def __init__(self, world: World, profile: str) -> None:
        random = world.random
        self.world = world
        self.profile = profile
        self.gap = 0
        quiet = profile == "failover"
        brokers = 3 if quiet else random.choice((3, 3, 3, 4, 5))
        factor = 3 if quiet else random.choice((2, 3, 3, 3))
        datagrams = not quiet and random.random() < 0.3
        settings = Settings(
            window=random.choice((1, 2, 5) if datagrams else (1, 5, 20, 100)),
            batches=random.choice((1, 4, 16)),
            flush_every=random.choice((0, 60_000, 200_000)),
            datagrams=datagrams,
            knows_boot=random.random() < 0.7,
            reaction=random.choice((500, 3_000, 3_000, 60_000)) if not quiet else 3_000,
        )
        power = profile in ("power", "disks", "everything")
        self.cluster = Cluster(world, settings, brokers=brokers, power=power)
        unclean = power and random.random() < 0.1
        least = 2 if quiet else random.choice((1, 2, 2))
        guarantees = Guarantees(least, unclean, random.random() < 0.5)
        partitions = 1 if quiet else random.choice((1, 1, 2))
        world.note("settings", settings, guarantees)
        self.cluster.begin(guarantees, partitions, factor)
        self._clients(random, partitions, quiet=quiet)
        for broker in self.cluster.brokers.values():
            broker.host.clock.set_rate(random.uniform(0.95, 1.05))
        self.faults = Faults(world, self.cluster, profile)

    def _clients(self, random: Random, partitions: int, *, quiet: bool) -> None:
        stream_id = uuid.UUID(int=1)
        name = 0
        for partition in range(partitions):
            where = (stream_id, partition)
            for _ in range(random.choice((1, 2))):
                name += 1
                sequential = quiet or random.random() < 0.6
                producer = Producer(
                    self.cluster,
                    name,
                    where,
                    depth=1 if sequential else random.choice((2, 8)),
                    pause=20_000 if quiet else random.choice((10, 20, 50)) * MILLISECOND,
                    policies=("all",) if sequential else ("all", "all", "leader", "leader", "none"),
                    checks_cursor=sequential and random.random() < 0.7,
                )
                self.cluster.producers.append(producer)
            name += 1
            pause = random.choice((30, 100)) * MILLISECOND
            self.cluster.consumers.append(Consumer(self.cluster, name, where, pause=pause))

    def trouble(self, seconds: float | None) -> None:
        """Let things go wrong."""
        if self.profile == "failover":
            self._failover()
            return
        if seconds is None:
            seconds = self.world.random.choice((1.0, 1.5, 2.0, 3.0))
        self.world.scheduler.run(int(seconds * SECOND))

    def _failover(self) -> None:
        """One broker of three dies, the leader or who decides: acks come again soon. Raises Violation."""
        cluster, scheduler, random = self.cluster, self.world.scheduler, self.world.random
        scheduler.run(int(random.uniform(0.6, 1.0) * SECOND))
        if not cluster.acks:
            raise Violation("J-22: nothing is acked although nothing has gone wrong")
        where = (uuid.UUID(int=1), 0)
        victims = [
            *cluster.leaders(where),
            *(broker for broker in cluster.brokers.values() if broker.controller.control is not None),
        ]
        victim = (
            random.choice(victims) if random.random() < 0.8 else random.choice([*cluster.brokers.values()])
        )
        self.world.note("fault", "kill", victim)
        victim.host.kill()
        died, before = scheduler.now, cluster.acks
        while cluster.acks < before + 3:
            if scheduler.now - died > _FAILOVER:
                raise Violation(f"J-22: {_FAILOVER / SECOND:.0f} s after {victim} died nothing is acked")
            scheduler.run(scheduler.now + _LOOKS)
        self.gap = cluster.last_ack - died

    def recover(self) -> None:
        """Heal everything; the cluster must come to rest and then work. Raises Violation."""
        cluster, checks = self.cluster, self.cluster.checks
        cluster.publishing = False
        self.faults.heal()
        self._until(self._at_rest, "come to rest with all replicas in sync and everything committed")
        for where in checks.partitions:
            if where[0].int == 1:
                self._publish(where)
        self._until(self._at_rest, "come to rest after a message")
        checks.agreed(list(cluster.brokers.values()))
        for where, partition in checks.partitions.items():
            checks.kept(where, [cluster.brokers[name] for name in partition.replicas])

    def _publish(self, where: Where) -> None:
        producer = next(each for each in self.cluster.producers if each.where == where)
        acked = producer.acked
        wait = 0

        def done() -> bool:
            nonlocal wait
            wait -= 1
            if wait < 0:
                wait = 25
                producer.publish("all")
            return producer.acked > acked

        self._until(done, "ack a message")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        scheduler = self.world.scheduler
        end = scheduler.now + _HEALED
        while not condition():
            if scheduler.now >= end:
                raise Violation(
                    f"J-21: {_HEALED / SECOND:.0f} s after all faults healed the cluster does not {what}: "
                    f"{self._state()}"
                )
            for broker in self.cluster.brokers.values():
                self.cluster.start(broker)
            if scheduler.now > end - _HEALED // 2:
                self.cluster.force()
            scheduler.run(scheduler.now + _LOOKS)

    def _at_rest(self) -> bool:
        cluster = self.cluster
        brokers = cluster.brokers
        index = max(broker.machine.index for broker in brokers.values())
        for broker in brokers.values():
            core = broker.host.core
            if core is None or not broker.running or broker.machine.index != index or core.commit != index:
                return False
        for where, partition in cluster.checks.partitions.items():
            if not partition.leader or set(partition.isr) != set(partition.replicas) or partition.removing:
                return False
            ends = set()
            for name in partition.replicas:
                replica = brokers[name].replicas.get(where)
                if replica is None or replica.role is None or replica.role.epoch != partition.leader_epoch:
                    return False
                ends.add(replica.log.next_offset)
                ends.add(replica.role.high_watermark + 1)
            if len(ends) > 1 or ends != {len(cluster.checks.stories[where].exposed)}:
                return False
        return True

    def _state(self) -> str:
        """Who is where, for a cluster that does not do what it should."""
        found = []
        for broker in self.cluster.brokers.values():
            core = broker.host.core
            where = "down" if core is None else f"{core.role.value} in {core.term}"
            roles = [
                f"{type(replica.role).__name__} in {replica.epoch} to {replica.log.next_offset}, "
                f"{replica.role.high_watermark if replica.role else None} committed"
                for replica in broker.replicas.values()
            ]
            found.append(f"{broker.name} {where}, applied {broker.machine.index}, {roles}")
        found.extend(map(str, self.cluster.checks.partitions.values()))
        found.extend(f"{each.id} {each.state.name}" for each in self.cluster.checks.truth.brokers.values())
        return "; ".join(found)


def _nothing(what: str, replica: Replica) -> None:
    """No fault aims at it."""


def _unheard(outcome: object) -> None:
    """What becomes of it shows in the metadata."""
