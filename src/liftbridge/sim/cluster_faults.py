"""What goes wrong in a run of a cluster, and when: mostly just where it hurts.

As with consensus (`raft_faults`), a run has a random subset of the faults of its profile with random weights,
and many faults aim: at the leader of a partition, at who decides, at who is the last in sync, at the moment
right behind an ack, a proposal of in-sync replicas, the first batch of an epoch.

Invariant: what is broken can be mended: `heal` leaves a cluster that has to work again. What disks lose is
never more than the guarantees of the streams allow for: a disk is taken only when others have everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from liftbridge.metadata.replica_operations import (
    ChangeLeaders,
    LeaderChange,
    Reassignment,
    ReassignPartitions,
)
from liftbridge.replication.leader import Leader
from liftbridge.sim.cluster_messages import Where
from liftbridge.sim.world import MILLISECOND, World

if TYPE_CHECKING:
    from liftbridge.sim.cluster import Cluster
    from liftbridge.sim.cluster_broker import Broker
    from liftbridge.sim.cluster_replica import Replica

_NETWORK = (
    "isolate_leader", "isolate_controller", "isolate_one", "isolate_half", "one_way", "bridge", "weather",
    "replay", "hold", "slow_link", "cut_link", "cut_link", "cut_from_controller", "leader_and_friend",
    "stop_leader", "stop_controller", "stop_one", "skew", "burst", "burst_at_old_leader", "mend", "go_on",
    "cut_after_proposal", "double_proposal", "narrow", "narrow",
)  # fmt: skip
_CRASHES = (
    "kill_leader", "kill_leader", "kill_controller", "kill_one", "kill_follower", "kill_in_turn", "kill_all",
    "kill_fused", "kill_after", "kill_both", "kill_the_last_in_sync", "start", "start_all",
)  # fmt: skip
_POWER = (
    "power_leader", "power_leader", "power_one", "power_all", "power_in_turn", "power_after",
    "restart_before_admission", "power_followers", "slow_disk", "fast_disk", "full_disk", "power_fused",
)  # fmt: skip
_LEADERS = (
    "leave_one", "leave_leader", "transfer", "transfer", "withdraw", "hand_over", "campaign", "retain",
    "leave_in_turn",
)  # fmt: skip
_DISKS = ("wipe", "wipe", "wipe_follower", "flip", "flip")
_METADATA = ("reassign", "reassign", "create", "delete", "join", "part")
_SPIN = ("start", "mend", "go_on", "fast_disk")  # what undoes; always there
PROFILES: Final[dict[str, tuple[str, ...]]] = {
    "network": _NETWORK,
    "crashes": (*_NETWORK, *_CRASHES),
    "power": (*_NETWORK, *_CRASHES, *_POWER),
    "leaders": (*_NETWORK, *_CRASHES, *_LEADERS),
    "disks": (*_NETWORK, *_CRASHES, *_POWER, *_DISKS, "retain"),
    "metadata": (*_NETWORK, *_CRASHES, *_LEADERS, *_METADATA),
    "failover": (),
    "everything": (*_NETWORK, *_CRASHES, *_POWER, *_LEADERS, *_DISKS, *_METADATA),
}
"""Names of profiles, and the faults that each has."""

_MOMENTS = ("ack", "propose", "lead", "ack")


class Faults:
    """The bad luck of one run.

    Attributes:
        active: the faults of this run, by name, each as often as its weight.
    """

    def __init__(self, world: World, cluster: Cluster, profile: str) -> None:
        self._world = world
        self._cluster = cluster
        self._random = random = world.random
        self._on = True
        names = sorted(set(PROFILES[profile]) - set(_SPIN))
        share = random.choice((0.1, 0.2, 0.4, 0.8))
        chosen = [name for name in names if random.random() < share] or names
        self.active = [name for name in chosen for _ in range(random.choice((1, 1, 2, 4)))]
        spin = [name for name in _SPIN if name in PROFILES[profile]]
        undo = max(2, len(self.active) // random.choice((2, 3, 5)))
        self.active += [random.choice(spin) for _ in range(undo if spin else 0)]
        self._gap = random.choice((60, 150, 300, 500)) * MILLISECOND
        self._deadly: list[tuple[str, bool]] = []  # moment, with power
        self._at_proposal: list[Callable[[Replica], None]] = []
        cluster.happened = self._happened
        if self.active:
            self._weather()
            self._later(100 * MILLISECOND, self._strike)

    def _later(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Something in `delay` microseconds, unless everything is healed by then."""
        self._world.scheduler.after(delay, self._if_on, action, arguments)

    def _if_on(self, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._on:
            action(*arguments)

    def _some(self, most: int) -> int:
        return int(self._random.random() * most)

    def _strike(self) -> None:
        name = self._random.choice(self.active)
        self._world.note("fault", name)
        action: Callable[[], None] = getattr(self, f"_{name}")
        action()
        self._later(self._some(2 * self._gap), self._strike)

    def heal(self) -> None:
        """No more faults; everything that can run runs, and what was broken is mended."""
        self._on = False
        self._deadly.clear()
        self._at_proposal.clear()
        world = self._world
        world.note("heal")
        world.network.heal()
        weather = world.network.weather
        weather.loss = weather.double = weather.late = weather.hold = 0.0
        weather.delay_from, weather.delay_to = 200, 2_000
        for clock in world.clocks:
            clock.set_rate(1.0)
        for broker in self._cluster.brokers.values():
            for disk in (broker.host.disk, *broker.disks):
                disk.full = False
                disk.fuse(-1)
            broker.host.disk.speed.slow = 0.0
            broker.go_on()
            self._cluster.start(broker)

    # ---- whom ----

    def _all(self) -> list[Broker]:
        return list(self._cluster.brokers.values())

    def _one(self) -> Broker | None:
        running = [broker for broker in self._all() if broker.running]
        return self._random.choice(running) if running else None

    def _where(self) -> Where:
        return self._random.choice(sorted(self._cluster.checks.partitions))

    def _leader(self) -> Broker | None:
        """Who leads a partition, or somebody."""
        leaders = self._cluster.leaders(self._where())
        return leaders[-1] if leaders else self._one()

    def _controller(self) -> Broker | None:
        deciding = [broker for broker in self._all() if broker.controller.control is not None]
        return self._random.choice(deciding) if deciding else self._one()

    def _follower(self) -> Broker | None:
        where = self._where()
        partition = self._cluster.checks.partitions[where]
        names = [name for name in partition.replicas if name != partition.leader]
        return self._cluster.brokers[self._random.choice(names)] if names else None

    def _end(self, broker: Broker | None, *, power: bool) -> None:
        if broker is None:
            return
        if power:
            broker.host.lose_power()
        else:
            broker.host.kill()
        if self._random.random() < 0.7:
            self._start_later(broker)

    def _start_later(self, broker: Broker) -> None:
        most = self._random.choice((50, 500, 1500)) * MILLISECOND
        self._later(self._some(most), self._cluster.start, broker)

    # ---- network ----

    def _weather(self) -> None:
        random, weather = self._random, self._world.network.weather
        weather.loss = random.choice((0.0, 0.0, 0.01, 0.05, 0.2))
        weather.double = random.choice((0.0, 0.0, 0.05, 0.2))
        weather.late = random.choice((0.0, 0.05, 0.3))
        weather.hold = random.choice((0.0, 0.0, 0.01, 0.05))
        weather.hold_from, weather.hold_to = random.choice(
            ((20_000, 200_000), (100_000, 1_000_000), (300_000, 2_000_000))
        )
        weather.delay_to = random.choice((1_000, 3_000, 10_000, 30_000))

    def _hold(self) -> None:
        """For a moment nearly everything is held back, to arrive when the world is another."""
        weather = self._world.network.weather
        weather.hold = 0.6

        def over() -> None:
            weather.hold = 0.01

        self._later(self._some(60 * MILLISECOND), over)

    def _isolate(self, broker: Broker | None) -> None:
        if broker is None:
            return
        number = broker.host.number
        if self._random.random() < 0.5:
            self._world.network.isolate([number])
        else:  # clients still reach it
            others = [other.host.number for other in self._all() if other is not broker]
            self._world.network.cut([number], others)
            self._world.network.cut(others, [number])
        if self._random.random() < 0.7:
            self._later(self._some(1200 * MILLISECOND), self._mend_one, number)

    def _mend_one(self, number: int) -> None:
        everybody = range(len(self._world.disks))
        self._world.network.mend([number], everybody)
        self._world.network.mend(everybody, [number])

    def _isolate_leader(self) -> None:
        self._isolate(self._leader())

    def _isolate_controller(self) -> None:
        self._isolate(self._controller())

    def _isolate_one(self) -> None:
        self._isolate(self._one())

    def _isolate_half(self) -> None:
        numbers = range(len(self._world.disks))
        self._world.network.isolate(self._random.sample(numbers, len(numbers) // 2))

    def _one_way(self) -> None:
        numbers = [broker.host.number for broker in self._all()]
        source = self._random.choice(numbers)
        targets = self._random.sample(numbers, self._random.randint(1, len(numbers)))
        if self._random.random() < 0.5:
            self._world.network.cut([source], targets)
        else:
            self._world.network.cut(targets, [source])

    def _bridge(self) -> None:
        """Two halves that only one broker can reach."""
        numbers = [broker.host.number for broker in self._all()]
        self._random.shuffle(numbers)
        middle = 1 + len(numbers) // 2
        left, right = numbers[1:middle], numbers[middle:]
        self._world.network.cut(left, right)
        self._world.network.cut(right, left)

    def _cut_between(self, one: Broker | None, other: Broker | None) -> None:
        if one is None or other is None or one is other:
            return
        a, b = one.host.number, other.host.number
        ways = self._random.choice((((a, b),), ((b, a),), ((a, b), (b, a))))
        for source, target in ways:
            self._world.network.cut([source], [target])

        def mend() -> None:
            for source, target in ways:
                self._world.network.mend([source], [target])

        if self._random.random() < 0.7:
            self._later(self._some(1000 * MILLISECOND), mend)

    def _cut_link(self) -> None:
        """A follower and its leader do not hear each other, and everybody hears who decides."""
        self._cut_between(self._leader(), self._follower())

    def _cut_from_controller(self) -> None:
        self._cut_between(self._controller(), self._leader())

    def _leader_and_friend(self) -> None:
        """A leader and one follower are parted from all others."""
        leader, friend = self._leader(), self._follower()
        if leader is not None and friend is not None:
            inside = [leader.host.number, friend.host.number]
            self._world.network.isolate(inside)
            self._later(self._some(1200 * MILLISECOND), self._mend)

    def _mend(self) -> None:
        self._world.network.heal()

    def _replay(self) -> None:
        self._world.network.replay(self._random.choice((5, 30, 100)))

    def _slow_link(self) -> None:
        numbers = range(len(self._all()))
        source, target = self._random.choice(numbers), self._random.choice(numbers)
        self._world.network.slow(source, target, self._some(200 * MILLISECOND))

    # ---- time ----

    def _skew(self) -> None:
        """Clocks differ in speed by what lease and session allow for, and in the time by anything."""
        broker = self._one()
        if broker is not None:
            broker.host.clock.set_rate(self._random.uniform(0.85, 1.15))
            broker.host.clock.jump(int(self._random.uniform(-60e6, 60e6)))

    def _stop(self, broker: Broker | None) -> None:
        if broker is not None:
            broker.host.stop()
            self._later(self._some(1500 * MILLISECOND), broker.go_on)

    def _stop_leader(self) -> None:
        self._stop(self._leader())

    def _stop_controller(self) -> None:
        self._stop(self._controller())

    def _stop_one(self) -> None:
        self._stop(self._one())

    def _go_on(self) -> None:
        for broker in self._all():
            broker.go_on()

    # ---- clients ----

    def _burst(self) -> None:
        for producer in self._cluster.producers:
            for _ in range(self._random.randint(1, 6)):
                producer.publish(self._random.choice(producer.policies), self._random.choice((1, 3)))

    def _burst_at_old_leader(self) -> None:
        """A leader is cut off from all brokers, and clients go on to publish to it."""
        leader = self._leader()
        if leader is not None:
            others = [other.host.number for other in self._all() if other is not leader]
            self._world.network.cut([leader.host.number], others)
            self._world.network.cut(others, [leader.host.number])
            for delay in (0, 50, 300, 700):
                self._later(delay * MILLISECOND, self._burst)
            self._later(self._some(1500 * MILLISECOND), self._mend_one, leader.host.number)

    # ---- proposals of in-sync replicas ----

    def _cut_after_proposal(self) -> None:
        """A leader's proposal arrives, and it hears nothing more, while clients go on to publish to it."""

        def cut(replica: Replica) -> None:
            number = replica.broker.host.number
            others = [other.host.number for other in self._all() if other is not replica.broker]

            def after() -> None:
                self._world.network.cut(others, [number])
                for delay in (100, 450, 600):
                    self._later(delay * MILLISECOND, self._burst)
                self._later(self._some(2000 * MILLISECOND), self._mend_one, number)

            self._later(self._some(3 * MILLISECOND), after)

        self._at_proposal.append(cut)

    def _double_proposal(self) -> None:
        """A proposal, and all else for a moment, arrives twice, now and then the second first."""

        def double(replica: Replica) -> None:
            weather = self._world.network.weather
            before = weather.double, weather.late
            weather.double, weather.late = 1.0, 0.5
            self._burst()

            def over() -> None:
                weather.double, weather.late = before

            self._later(60 * MILLISECOND, over)

        self._at_proposal.append(double)

    def _restart_before_admission(self) -> None:
        """Whoever a leader wants to admit loses power meanwhile, and is started anew before the proposal
        arrives, which is late."""

        def restart(replica: Replica) -> None:
            assert isinstance(replica.role, Leader) and replica.role.isr.pending is not None
            names = {name for name, _ in replica.role.isr.pending.isr} - set(replica.role.isr.committed)
            weather = self._world.network.weather
            before = weather.hold, weather.hold_from, weather.hold_to
            weather.hold, weather.hold_from, weather.hold_to = 1.0, 300_000, 1_200_000

            def over() -> None:
                weather.hold, weather.hold_from, weather.hold_to = before
                for name in sorted(names):
                    self._cluster.brokers[name].host.lose_power()
                    self._later(MILLISECOND, self._cluster.start, self._cluster.brokers[name])

            self._later(MILLISECOND, over)

        self._at_proposal.append(restart)

    def _narrow(self) -> None:
        """One follower after the other falls behind, until the leader is alone in sync; then it is left with
        the one that has missed most, away from all others, and clients go on."""
        where = self._where()
        partition = self._cluster.checks.partitions[where]
        leaders = self._cluster.leaders(where)
        others = [self._cluster.brokers[name] for name in partition.replicas if name != partition.leader]
        if not leaders or len(others) < 2:
            return
        leader = leaders[-1].host.number
        self._random.shuffle(others)
        stranger, eligible = others[0].host.number, others[1].host.number
        self._world.network.heal()
        self._both(self._world.network.cut, leader, stranger)
        lag = 2 * leaders[-1].settings.max_lag
        self._later(lag // 2, self._burst)
        self._later(lag, self._both, self._world.network.cut, leader, eligible)
        self._later(lag + lag // 4, self._burst)

        def alone() -> None:
            everybody = [broker.host.number for broker in self._all()]
            self._both(self._world.network.mend, leader, stranger)
            inside = [leader, stranger] if self._random.random() < 0.7 else [leader]
            outside = [number for number in everybody if number not in inside]
            self._world.network.cut(inside, outside)
            self._world.network.cut(outside, inside)
            self._world.network.mend([eligible], outside)
            for delay in (50, 300, 800, 1200, 1600):
                self._later(delay * MILLISECOND, self._burst)
            self._later(2000 * MILLISECOND, self._mend)

        self._later(2 * lag, alone)

    def _both(self, change: Callable[[list[int], list[int]], None], one: int, other: int) -> None:
        change([one], [other])
        change([other], [one])

    # ---- crashes ----

    def _kill_leader(self) -> None:
        self._end(self._leader(), power=False)

    def _kill_controller(self) -> None:
        self._end(self._controller(), power=False)

    def _kill_one(self) -> None:
        self._end(self._one(), power=False)

    def _kill_follower(self) -> None:
        self._end(self._follower(), power=False)

    def _kill_all(self) -> None:
        for broker in self._all():
            if broker.host.runs:
                broker.host.kill()
                self._start_later(broker)

    def _kill_both(self) -> None:
        """A leader, and whoever leads next."""
        self._end(self._leader(), power=False)
        self._deadly.append(("lead", False))

    def _kill_the_last_in_sync(self) -> None:
        """Those who are in sync, one after the other, until nobody is."""
        partition = self._cluster.checks.partitions[self._where()]
        at = 0
        for name in partition.isr:
            at += self._some(900 * MILLISECOND)
            power = "power_one" in self.active and self._random.random() < 0.5
            self._later(at, self._end_with, self._cluster.brokers[name], power)

    def _end_with(self, broker: Broker, power: bool) -> None:
        self._end(broker, power=power)

    def _in_turn(self, *, power: bool) -> None:
        brokers = self._all()
        self._random.shuffle(brokers)
        at = 0
        for broker in brokers:
            at += self._some(400 * MILLISECOND)
            self._later(at, self._end_with, broker, power)

    def _kill_in_turn(self) -> None:
        self._in_turn(power=False)

    def _kill_fused(self) -> None:
        """Some process dies in the middle of what it writes next."""
        broker = self._leader() if self._random.random() < 0.5 else self._one()
        if broker is not None:
            self._random.choice([broker.host.disk, *broker.disks]).fuse(self._random.randint(0, 6))

    def _kill_after(self) -> None:
        """Whoever does that next dies right behind it."""
        self._deadly.append((self._random.choice(_MOMENTS), False))

    def _happened(self, what: str, replica: Replica) -> None:
        if what == "propose" and self._at_proposal:
            self._at_proposal.pop()(replica)
        broker = replica.broker
        for number, (moment, power) in enumerate(self._deadly):
            if moment == what:
                del self._deadly[number]
                self._later(self._some(3 * MILLISECOND), self._end_with, broker, power)
                return

    def _start(self) -> None:
        down = [broker for broker in self._all() if not broker.host.runs]
        if down:
            self._cluster.start(self._random.choice(down))

    def _start_all(self) -> None:
        for broker in self._all():
            self._cluster.start(broker)

    # ---- power and disks ----

    def _power_leader(self) -> None:
        self._end(self._leader(), power=True)

    def _power_one(self) -> None:
        self._end(self._one(), power=True)

    def _power_followers(self) -> None:
        """All that follow, right behind a burst."""
        self._burst()
        where = self._where()
        leaders = self._cluster.leaders(where)
        for name in self._cluster.checks.partitions[where].replicas:
            broker = self._cluster.brokers[name]
            if broker not in leaders:
                self._later(self._some(30 * MILLISECOND), self._end_with, broker, True)

    def _power_all(self) -> None:
        for broker in self._all():
            if broker.host.runs:
                broker.host.lose_power()
                self._start_later(broker)

    def _power_in_turn(self) -> None:
        self._in_turn(power=True)

    def _power_after(self) -> None:
        self._deadly.append((self._random.choice(_MOMENTS), True))

    def _power_fused(self) -> None:
        self._kill_fused()

    def _slow_disk(self) -> None:
        """Long syncs, so that there is much that a loss of power takes."""
        broker = self._one()
        if broker is not None:
            broker.host.disk.speed.slow = self._random.choice((0.2, 1.0))
            broker.host.disk.speed.slow_to = self._random.choice((20_000, 100_000, 400_000))

    def _fast_disk(self) -> None:
        for broker in self._all():
            broker.host.disk.speed.slow = 0.0
            for disk in broker.disks:
                disk.full = False

    def _full_disk(self) -> None:
        broker = self._leader() if self._random.random() < 0.5 else self._one()
        if broker is not None:
            for disk in broker.disks:
                disk.full = True
            self._later(self._some(800 * MILLISECOND), self._room, broker)

    def _room(self, broker: Broker) -> None:
        for disk in broker.disks:
            disk.full = False

    def _wipe(self) -> None:
        broker = self._one()
        if broker is not None and self._cluster.may_lose(broker):
            broker.wipe()
            self._start_later(broker)

    def _wipe_follower(self) -> None:
        broker = self._follower()
        if broker is not None and self._cluster.may_lose(broker):
            broker.wipe()
            self._start_later(broker)

    def _flip(self) -> None:
        """A batch that was synced long ago is damaged, and found at the next start."""
        broker = self._one()
        if broker is not None and broker.logs and self._cluster.may_lose(broker):
            broker.damage(self._random.choice(sorted(broker.logs)))
            self._start_later(broker)

    # ---- who leads ----

    def _leave(self, broker: Broker | None) -> None:
        if broker is not None:
            broker.leave()

    def _leave_one(self) -> None:
        self._leave(self._one())

    def _leave_leader(self) -> None:
        self._leave(self._leader())

    def _leave_in_turn(self) -> None:
        """A rolling restart, a hasty one."""
        at = 0
        for broker in self._all():
            self._later(at, broker.leave)
            at += self._some(1200 * MILLISECOND)

    def _transfer(self) -> None:
        """Another replica is to lead, whether it can or not."""
        where = self._where()
        partition = self._cluster.checks.partitions[where]
        change = LeaderChange(*where, partition.epoch, self._random.choice(partition.replicas))
        self._cluster.ask(ChangeLeaders((change,)))

    def _withdraw(self) -> None:
        """A broker gives a replica up that it could have."""
        broker = self._leader()
        if broker is not None and broker.replicas:
            broker.withdraw(self._random.choice(sorted(broker.replicas)))

    def _hand_over(self) -> None:
        """Another node is to lead the consensus."""
        for broker in self._all():
            core = broker.host.core
            if core is not None and core.is_leader and not broker.host.stopped:
                core.transfer(self._random.choice(sorted(core.members.all)))
                broker.host.work()

    def _campaign(self) -> None:
        broker = self._one()
        if broker is not None:
            broker.host.rush()

    def _retain(self) -> None:
        """Retention removes what is old, on one broker earlier than on another."""
        broker = self._one()
        if broker is not None and broker.replicas:
            replica = broker.replicas[self._random.choice(sorted(broker.replicas))]
            if replica.role is not None:
                offset = int(replica.role.high_watermark * self._random.random())
                broker.later(0, replica.retain, offset)

    # ---- metadata ----

    def _reassign(self) -> None:
        """Replicas are to be elsewhere."""
        where = self._where()
        partition = self._cluster.checks.partitions[where]
        names = sorted(self._cluster.brokers)
        least = self._cluster.checks.stories[where].guarantees.min_isr
        count = max(least, min(len(names), len(partition.replicas) + self._random.choice((-1, 0, 0, 1))))
        replicas = tuple(self._random.sample(names, count))
        self._cluster.ask(ReassignPartitions((Reassignment(*where, partition.epoch, replicas),)))

    def _create(self) -> None:
        self._cluster.create()

    def _delete(self) -> None:
        self._cluster.delete()

    def _join(self) -> None:
        self._cluster.join()

    def _part(self) -> None:
        self._cluster.part()
