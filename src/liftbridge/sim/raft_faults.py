"""What goes wrong in a run of consensus, and when: mostly just where it hurts.

A run has a random subset of the faults of its profile, each with a random weight, as faults that all happen
all the time hide one another. Random alone rarely meets the moments that matter, so many faults aim: a
leader is cut off with one friend right after it has appended, a process dies right behind a message of a
certain kind, an election is called while another goes on, old messages come again after a restart.

Invariant: what is broken can be mended: `heal` leaves a cluster that has to work again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from liftbridge.raft import AppendReply, Message, SnapshotReply, VoteReply, VoteRequest
from liftbridge.sim.raft_cluster import Cluster
from liftbridge.sim.raft_host import TICK, Host
from liftbridge.sim.raft_machine import command
from liftbridge.sim.world import MILLISECOND, World

_NETWORK = (
    "isolate_leader", "isolate_one", "isolate_half", "one_way", "bridge", "weather", "replay", "mend",
    "campaign", "rival_campaigns", "chop", "figure_8", "stop", "go_on", "slow_link", "skew", "transfer",
    "cut_appending_leader", "burst", "read", "hold", "blind_follower",
)  # fmt: skip
_CRASHES = (
    "kill_leader", "kill_one", "kill_in_turn", "kill_all", "start", "start_all", "kill_fused",
    "kill_after_send", "replay_at_start",
)  # fmt: skip
_POWER = (
    "power_leader", "power_one", "power_all", "power_fused", "power_after_send", "slow_disk", "power_in_turn",
    "fast_disk", "full_disk",
)  # fmt: skip
_MEMBERS = (
    "remove_one",
    "demote_one",
    "join",
    "tend",
    "add",
    "promote",
    "wipe",
    "remove_leader",
    "leave_alone",
    "hasty_changes",
)
_SNAPSHOTS = ("leave_behind", "leave_behind", "burst", "kill_after_snapshot")
_SPIN = ("start", "mend", "go_on", "fast_disk")  # what undoes; always there
PROFILES: Final[dict[str, tuple[str, ...]]] = {
    "network": _NETWORK,
    "crashes": (*_NETWORK, *_CRASHES),
    "power": (*_NETWORK, *_CRASHES, *_POWER),
    "members": (*_NETWORK, *_CRASHES, *_MEMBERS),
    "snapshots": (*_NETWORK, *_CRASHES, *_SNAPSHOTS),
    "everything": (*_NETWORK, *_CRASHES, *_POWER, *_MEMBERS, *_SNAPSHOTS, "bit_flip"),
}
"""Names of profiles, and the faults that each has."""

_TELLING = (VoteReply, AppendReply, VoteRequest, SnapshotReply)


class Faults:
    """The bad luck of one run.

    Attributes:
        active: the faults of this run, by name, each as often as its weight.
    """

    def __init__(self, world: World, cluster: Cluster, profile: str) -> None:
        self._world = world
        self._cluster = cluster
        self._random = world.random
        self._on = True
        self._tags = 1000  # of the commands that faults propose
        random = self._random
        names = sorted(set(PROFILES[profile]) - set(_SPIN))
        share = random.choice((0.25, 0.5, 0.9))
        chosen = [name for name in names if random.random() < share] or names
        self.active = [name for name in chosen for _ in range(random.choice((1, 1, 2, 4)))]
        undo = max(2, len(self.active) // random.choice((2, 3, 5)))
        spin = [name for name in _SPIN if name in PROFILES[profile]]
        self.active += [random.choice(spin) for _ in range(undo)]
        self._gap = random.choice((15, 30, 60, 120)) * MILLISECOND
        if profile in ("members", "everything"):
            self.active += ["tend"] * random.choice((1, 3, 6))
        self._weather()
        for host in cluster.hosts:
            host.on_send = self._after_send
        self._deadly: list[tuple[type[Message], int | None, bool]] = []  # kind, host or any, with power
        self._later(150 * MILLISECOND, self._strike)

    def _later(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Something in `delay` microseconds, unless everything is healed by then."""
        self._world.scheduler.after(delay, self._if_on, action, arguments)

    def _if_on(self, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._on:
            action(*arguments)

    def _strike(self) -> None:
        name = self._random.choice(self.active)
        self._world.note("fault", name)
        action: Callable[[], None] = getattr(self, f"_{name}")
        action()
        self._later(int(self._random.random() * 2 * self._gap), self._strike)

    def heal(self) -> None:
        """No more faults; everything that can run runs, and what was broken is mended."""
        self._on = False
        self._deadly.clear()
        world, cluster = self._world, self._cluster
        world.note("heal")
        world.network.heal()
        weather = world.network.weather
        weather.loss = weather.double = weather.late = weather.hold = 0.0
        weather.delay_from, weather.delay_to = 200, 2_000
        for disk in world.disks:
            disk.full = False
            disk.speed.slow = 0.0
            disk.speed.sync_from, disk.speed.sync_to = 300, 3_000
            disk.fuse(-1)
        for clock in world.clocks:
            clock.set_rate(1.0)
        for host in cluster.hosts:
            host.go_on()
            self._run(host)

    # ---- whom ----

    def _one(self) -> Host | None:
        running = [host for host in self._cluster.hosts if host.core is not None]
        return self._random.choice(running) if running else None

    def _leader(self) -> Host | None:
        """The leader, or somebody."""
        return self._cluster.leader or self._one()

    def _run(self, host: Host) -> None:
        """Start a process where none is; a disk that is damaged is replaced by a new node's."""
        if host.runs or host.node is None:
            return
        if not host.start():
            self._cluster.wiped.add(host.node)
            self._cluster.join(host)

    def _start_later(self, host: Host) -> None:
        self._later(int(self._random.random() ** 2 * 300 * MILLISECOND), self._run, host)

    def _end(self, host: Host | None, *, power: bool) -> None:
        if host is None:
            return
        if power and self._cluster.checks.power:
            host.lose_power()
        else:
            host.kill()
        if self._random.random() < 0.7:
            self._start_later(host)

    # ---- network ----

    def _weather(self) -> None:
        random, weather = self._random, self._world.network.weather
        weather.loss = random.choice((0.0, 0.0, 0.02, 0.1, 0.3))
        weather.double = random.choice((0.0, 0.0, 0.05, 0.3))
        weather.late = random.choice((0.0, 0.05, 0.3))
        weather.hold = random.choice((0.0, 0.0, 0.01, 0.1))
        weather.hold_from, weather.hold_to = random.choice(
            ((20_000, 200_000), (100_000, 1_000_000), (300_000, 2_000_000))
        )
        weather.delay_to = random.choice((1_000, 3_000, 10_000, 30_000))

    def _hold(self) -> None:
        """For a moment nearly everything is held back, to arrive when the world is another."""
        weather = self._world.network.weather
        weather.hold = 0.6

        def over() -> None:
            weather.hold = 0.02

        self._later(int(self._random.random() * 60 * MILLISECOND), over)

    def _isolate_leader(self) -> None:
        leader = self._leader()
        if leader is not None:
            self._world.network.isolate([leader.number])
            self._mend_later(leader.number)

    def _isolate_one(self) -> None:
        host = self._one()
        if host is not None:
            self._world.network.isolate([host.number])
            self._mend_later(host.number)

    def _mend_later(self, number: int) -> None:
        def mend() -> None:
            everybody = range(len(self._cluster.hosts))
            self._world.network.mend([number], everybody)
            self._world.network.mend(everybody, [number])

        if self._random.random() < 0.6:
            self._later(int(self._random.random() * 500 * MILLISECOND), mend)

    def _isolate_half(self) -> None:
        hosts = [host.number for host in self._cluster.hosts]
        self._world.network.isolate(self._random.sample(hosts, len(hosts) // 2))

    def _one_way(self) -> None:
        hosts = [host.number for host in self._cluster.hosts]
        source = self._random.choice(hosts)
        targets = self._random.sample(hosts, self._random.randint(1, len(hosts)))
        if self._random.random() < 0.5:
            self._world.network.cut([source], targets)
        else:
            self._world.network.cut(targets, [source])

    def _bridge(self) -> None:
        """Two halves that only one host can reach."""
        hosts = [host.number for host in self._cluster.hosts]
        self._random.shuffle(hosts)
        middle = 1 + len(hosts) // 2
        left, right = hosts[1:middle], hosts[middle:]
        self._world.network.cut(left, right)
        self._world.network.cut(right, left)

    def _blind_follower(self) -> None:
        """The leader is not heard by one of its followers, who goes on answering and asking."""
        leader, host = self._leader(), self._one()
        if leader is not None and host is not None:
            self._world.network.cut([leader.number], [host.number])

    def _mend(self) -> None:
        self._world.network.heal()

    def _replay(self) -> None:
        self._world.network.replay(self._random.choice((5, 30, 100)))

    def _slow_link(self) -> None:
        hosts = [host.number for host in self._cluster.hosts]
        source, target = self._random.choice(hosts), self._random.choice(hosts)
        self._world.network.slow(source, target, int(self._random.random() * 150 * MILLISECOND))

    # ---- elections ----

    def _campaign(self) -> None:
        host = self._one()
        if host is not None and host.core is not None and not host.stopped:
            host.core.campaign()
            host.work()

    def _rival_campaigns(self) -> None:
        """Leaders that are not heard, and several who would like to be, at once."""
        hosts = list(self._cluster.hosts)
        self._random.shuffle(hosts)
        for host in hosts[: self._random.randint(2, 4)]:
            host.rush()

    def _transfer(self) -> None:
        leader = self._cluster.leader
        if leader is not None and leader.core is not None and not leader.stopped:
            leader.core.transfer(self._random.choice(sorted(leader.core.members.all)))
            leader.work()

    def _skew(self) -> None:
        host = self._one()
        if host is not None:
            host.clock.set_rate(self._random.choice((0.3, 0.7, 1.0, 1.5, 3.0)))
            host.clock.jump(int(self._random.uniform(-60e6, 60e6)))

    def _stop(self) -> None:
        host = self._one() if self._random.random() < 0.5 else self._leader()
        if host is not None:
            host.stop()
            self._later(int(self._random.random() * 600 * MILLISECOND), host.go_on)

    def _go_on(self) -> None:
        for host in self._cluster.hosts:
            host.go_on()

    # ---- what leaders append ----

    def _propose(self, host: Host | None, count: int) -> None:
        for _ in range(count):
            self._tags += 1
            if host is not None:
                host.propose(command(self._tags, 1), _told)

    def _burst(self) -> None:
        self._propose(self._cluster.leader, self._random.choice((2, 5, 12)))

    def _read(self) -> None:
        self._cluster.read()

    def _cut_appending_leader(self) -> None:
        """A leader appends what nobody hears of, and finds out later."""
        leader = self._leader()
        if leader is not None:
            self._world.network.isolate([leader.number])
            self._propose(leader, self._random.randint(1, 4))
            self._later(int(self._random.random() * 100 * MILLISECOND), self._cluster.read)
            self._mend_later(leader.number)

    def _friends(self, leader: Host, count: int) -> list[int]:
        """Only so many others are heard by the leader, and hear it."""
        others = [host.number for host in self._cluster.hosts if host is not leader]
        self._random.shuffle(others)
        friends, strangers = others[:count], others[count:]
        self._world.network.cut([leader.number], strangers)
        self._world.network.cut(strangers, [leader.number])
        return friends

    def _chop(self) -> None:
        """A leader appends with one friend, and is gone; somebody else shall lead."""
        leader = self._cluster.leader
        if leader is None:
            return
        self._friends(leader, self._random.choice((0, 1, 1, 2)))
        self._propose(leader, self._random.randint(1, 3))

        def then() -> None:
            self._world.network.heal()
            self._world.network.isolate([leader.number])
            self._rival_campaigns()
            self._mend_later(leader.number)

        self._later(int(self._random.random() * 60 * MILLISECOND), then)

    def _figure_8(self, rounds: int = 4) -> None:
        """The leader's entries reach a minority, it goes, another leads and does the same, the first comes
        back.
        """
        if not rounds:
            return
        leader = self._cluster.leader
        self._world.network.heal()
        if leader is not None:
            self._friends(leader, self._random.choice((0, 1, 1)))
            self._propose(leader, self._random.choice((0, 1, 2)))

        def away() -> None:
            if leader is not None:
                self._world.network.heal()
                if self._random.random() < 0.5:
                    self._world.network.isolate([leader.number])
                else:
                    self._end(leader, power="power_one" in self.active)
            others = [host for host in self._cluster.hosts if host.core is not None and host is not leader]
            if others:
                self._random.choice(others).rush()
            pause = int((0.5 + 4 * self._random.random()) * TICK)
            self._later(pause, self._figure_8, rounds - 1)

        self._later(int(self._random.random() * 40 * MILLISECOND), away)

    # ---- crashes ----

    def _kill_leader(self) -> None:
        self._end(self._leader(), power=False)

    def _kill_one(self) -> None:
        self._end(self._one(), power=False)

    def _kill_all(self) -> None:
        for host in self._cluster.hosts:
            if host.runs:
                host.kill()
                self._start_later(host)

    def _in_turn(self, *, power: bool) -> None:
        """A majority, one after the other."""
        hosts = [host for host in self._cluster.hosts if host.runs]
        self._random.shuffle(hosts)
        at = 0
        for host in hosts[: len(hosts) // 2 + 1]:
            at += int(self._random.random() * 50 * MILLISECOND)
            self._later(at, self._end_with, host, power)

    def _end_with(self, host: Host, power: bool) -> None:
        self._end(host, power=power)

    def _kill_in_turn(self) -> None:
        self._in_turn(power=False)

    def _kill_fused(self) -> None:
        """Some process dies in the middle of what it writes next."""
        host = self._leader() if self._random.random() < 0.5 else self._one()
        if host is not None:
            host.disk.fuse(self._random.randint(0, 6))

    def _kill_after_send(self) -> None:
        """Whoever sends a message of that kind next dies right behind it."""
        self._deadly.append((self._random.choice(_TELLING), None, False))

    def _kill_after_snapshot(self) -> None:
        self._deadly.append((SnapshotReply, None, self._cluster.checks.power))

    def _after_send(self, host: Host, message: Message) -> None:
        for number, (kind, where, power) in enumerate(self._deadly):
            if isinstance(message, kind) and where in (None, host.number):
                del self._deadly[number]
                # Behind what is being done now, so that the message is on its way, and nothing else is.
                self._later(0, self._end_with, host, power)
                return

    def _start(self) -> None:
        down = [host for host in self._cluster.hosts if not host.runs and host.node is not None]
        if down:
            self._run(self._random.choice(down))

    def _start_all(self) -> None:
        for host in self._cluster.hosts:
            self._run(host)

    def _replay_at_start(self) -> None:
        """Somebody is started anew and hears what was said before."""
        host = self._one()
        if host is None:
            return
        host.kill()
        self._run(host)

        self._later(5 * MILLISECOND, self._world.network.replay, 60, host.number)

    # ---- power and disks ----

    def _power_leader(self) -> None:
        self._end(self._leader(), power=True)

    def _power_one(self) -> None:
        self._end(self._one(), power=True)

    def _power_all(self) -> None:
        for host in self._cluster.hosts:
            if host.runs:
                host.lose_power()
                self._start_later(host)

    def _power_in_turn(self) -> None:
        self._in_turn(power=True)

    def _power_fused(self) -> None:
        self._kill_fused()

    def _power_after_send(self) -> None:
        self._deadly.append((self._random.choice(_TELLING), None, True))

    def _slow_disk(self) -> None:
        """Long syncs, so that there is much that a loss of power takes."""
        host = self._one()
        if host is not None:
            host.disk.speed.slow = self._random.choice((0.2, 1.0))
            host.disk.speed.slow_to = self._random.choice((20_000, 100_000, 400_000))

    def _fast_disk(self) -> None:
        for host in self._cluster.hosts:
            host.disk.speed.slow = 0.0
            host.disk.full = False

    def _full_disk(self) -> None:
        host = self._one()
        if host is not None and host.runs:
            host.disk.full = True
            self._later(200 * MILLISECOND, self._room, host)

    def _room(self, host: Host) -> None:
        host.disk.full = False

    def _bit_flip(self) -> None:
        """A record that was synced long ago is damaged, and found at the next start; a node less."""
        host = self._one()
        if host is None or host.node is None or not self._cluster.may_lose(host.node):
            return
        if any(not other.runs for other in self._cluster.hosts if other.node is not None):
            return
        if host.damage():
            host.kill()
            self._start_later(host)
            self._cluster.wiped.add(host.node)

    # ---- members ----

    def _join(self) -> None:
        free = [host for host in self._cluster.hosts if host.node is None]
        if free:
            self._cluster.join(free[0])

    def _tend(self) -> None:
        self._cluster.tend()

    def _some_node(self) -> int | None:
        nodes = [host.node for host in self._cluster.hosts if host.node is not None]
        return self._random.choice(nodes)

    def _change(self, what: str) -> None:
        node = self._some_node()
        if node is not None:
            self._cluster.change(what, node)

    def _add(self) -> None:
        self._change("add")

    def _promote(self) -> None:
        self._change("promote")

    def _demote_one(self) -> None:
        self._change("demote")

    def _remove_one(self) -> None:
        self._change("remove")

    def _remove_leader(self) -> None:
        leader = self._cluster.leader
        if leader is not None and leader.node is not None:
            self._cluster.change(self._random.choice(("remove", "demote")), leader.node)

    def _leave_alone(self, changes: int = 4) -> None:
        """A leader takes its own vote away, only its own disk has that, and it is started anew.

        With two voters nobody else can lead then, so before that it makes them two.
        """
        leader = self._cluster.leader
        if leader is None or leader.core is None or leader.node is None:
            return
        others = sorted(leader.core.members.voters - {leader.node})
        if len(others) > 1 and changes:
            self._cluster.change("demote", self._random.choice(others))
            self._later(30 * MILLISECOND, self._leave_alone, changes - 1)
            return
        self._world.network.isolate([leader.number])
        self._cluster.change(self._random.choice(("remove", "demote")), leader.node)

        def then() -> None:
            self._world.network.heal()
            leader.kill()
            self._run(leader)

        self._later(int((0.2 + self._random.random()) * 20 * MILLISECOND), then)

    def _hasty_changes(self) -> None:
        """Changes one upon the other, of somebody who may just have become leader."""
        host = self._one()
        if host is not None:
            host.rush()
        for _ in range(4):
            self._change(self._random.choice(("add", "promote", "demote", "remove")))

    def _wipe(self) -> None:
        host = self._one()
        if host is not None:
            self._cluster.wipe(host)

    # ---- snapshots ----

    def _leave_behind(self) -> None:
        """A follower misses so much that it needs a snapshot, and then hears again."""
        leader, host = self._cluster.leader, self._one()
        if leader is None or host is None or host is leader:
            return
        self._world.network.isolate([host.number])
        self._propose(leader, min(3 * leader.snapshot_every, 30))

        def back() -> None:
            everybody = range(len(self._cluster.hosts))
            self._world.network.mend([host.number], everybody)
            self._world.network.mend(everybody, [host.number])

        self._later(int((0.2 + self._random.random()) * 150 * MILLISECOND), back)


def _told(index: int | None) -> None:
    """What a fault has proposed nobody waits for."""
