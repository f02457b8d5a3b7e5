"""Runs of consensus: a cluster, its faults, and at the end the question whether it still works.

`run(seed, profile)` is all: the same seed and profile make the same run. It is in three parts. For some
seconds of virtual time clients work and things go wrong. Then everything heals, clients stop, and within a
bounded time there must be a leader whose whole log is committed and applied everywhere. Then one more
command and one more read have to succeed.

Invariant: a run ends, with a result; an error of a core is a finding like any other.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from liftbridge.raft import Options
from liftbridge.sim.raft_cluster import Cluster
from liftbridge.sim.raft_faults import PROFILES, Faults
from liftbridge.sim.raft_host import TICK, Host
from liftbridge.sim.raft_machine import command
from liftbridge.sim.results import Result
from liftbridge.sim.world import MILLISECOND, SECOND, Violation, World

__all__ = ["PROFILES", "Result", "run"]

KIND = "consensus"
_HEALED = 400 * TICK  # for a cluster that is whole again
_LOOKS = 10 * MILLISECOND


def run(
    seed: int,
    profile: str,
    *,
    seconds: float = 1.5,
    remembered: int = 400,
    trace: bool = False,
    digest: bool = False,
) -> Result:
    """One run.

    Arguments:
        seed: decides everything.
        profile: one of PROFILES.
        seconds: virtual ones with faults.
        remembered: events in the trace.
        trace: whether the trace is wanted when all is well, too.
        digest: whether to digest all events, which takes time.
    """
    world = World(seed * 64 + sorted(PROFILES).index(profile), remembered=remembered, digest=digest)
    simulation = _Run(world, profile)
    problem = ""
    try:
        simulation.trouble(int(seconds * SECOND))
        simulation.recover()
    except Violation as violation:
        problem = str(violation)
    except Exception:
        # A core fails by itself, or the simulator does: both are to be looked at.
        problem = f"a node failed by itself:\n{traceback.format_exc()}"
    terms = max((host.core.term for host in simulation.cluster.hosts if host.core is not None), default=0)
    return Result(
        KIND,
        seed,
        profile,
        problem,
        tuple(world.trace()) if problem or trace else (),
        world.scheduler.handled,
        simulation.cluster.acked,
        terms,
        world.digest if digest else "",
    )


class _Run:
    def __init__(self, world: World, profile: str) -> None:
        random = world.random
        changing = profile in ("members", "everything")
        few = (
            (1, 2, 2, 4) if changing else (random.choice((1, 2, 4)),)
        )  # where a change is a change of majority
        voters = random.choice((3, 3, 3, 5, 5, 5, *few))
        tight = profile == "snapshots" or random.random() < 0.4
        election = random.choice((3, 4, 6))
        options = Options(
            election_ticks=election,
            heartbeat_ticks=1,
            max_append_entries=random.choice((1, 2, 4, 64)),
            max_append_bytes=random.choice((10, 1 << 20)),
            max_in_flight=random.choice((1, 2, 4, 16)),
            chunk_bytes=random.choice((7, 20, 1 << 20)),
            retained_entries=random.choice((0, 1, 3)) if tight else random.choice((0, 10, 1000)),
            promotion_lag=random.choice((0, 1, 3, 20)),
        )
        self.world = world
        self.cluster = Cluster(
            world,
            voters=voters,
            spare=random.choice((0, 1, 2)) if changing else 0,
            options=options,
            snapshot_every=random.choice((2, 4, 8)) if tight else random.choice((10, 50, 100_000)),
            clients=random.choice((1, 2, 3)),
            pause=random.choice((5, 40, 150)) * MILLISECOND,
            power=profile in ("power", "everything"),
        )
        for host in self.cluster.hosts:
            host.clock.set_rate(random.uniform(0.9, 1.1))
        self.faults = Faults(world, self.cluster, profile)
        self._acked: int | None = None
        self._ask_at = 0

    def trouble(self, duration: int) -> None:
        """Let things go wrong."""
        self.world.scheduler.run(duration)

    def recover(self) -> None:
        """Heal everything; the cluster must come to rest and then work. Raises Violation."""
        self.cluster.proposing = False
        self.faults.heal()
        self._until(self._at_rest, "come to rest with one leader, everything committed and applied")
        self._until(self._proposed, "ack a command")
        reads = self.cluster.checks.reads
        self._until(lambda: self.cluster.checks.reads > reads, "answer a read")
        self._until(self._at_rest, "come to rest after a command")
        for host in self._members():
            self.cluster.checks.kept(host)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        scheduler = self.world.scheduler
        end = scheduler.now + _HEALED
        while not condition():
            if scheduler.now >= end:
                raise Violation(
                    f"{_HEALED / SECOND:.0f} s after all faults healed the cluster does not {what}: "
                    f"{self._state()}"
                )
            self.cluster.tend()
            scheduler.run(scheduler.now + _LOOKS)

    def _members(self) -> list[Host]:
        found = [self.cluster.host_of(node) for node in sorted(self.cluster.members.all)]
        return [host for host in found if host is not None]

    def _at_rest(self) -> bool:
        leader = self.cluster.leader
        if leader is None or leader.core is None or self.cluster.wiped & leader.core.members.all:
            return False
        last = leader.core.log.last_index
        if leader.core.commit != last or not leader.core.leads_durably:
            return False
        return all(
            host.core is not None and host.core.log.last_index == last and host.machine.index == last
            for host in self._members()
        )

    def _proposed(self) -> bool:
        """A command of somebody who asks until there is an answer."""
        if self._acked is not None:
            return True
        leader = self.cluster.leader
        if leader is not None:

            def told(index: int | None) -> None:
                if index is not None and self._acked is None:
                    self._acked = index
                    self.cluster.checks.ack(9999, 1, index)

            now = self.world.scheduler.now
            if now >= self._ask_at and leader.propose(command(9999, 1), told):
                self._ask_at = now + 300 * MILLISECOND
        return False

    def _state(self) -> str:
        """Who is where, for a cluster that does not do what it should."""
        return "; ".join(
            f"{host} is down"
            if (core := host.core) is None
            else f"{host} {core.role.value} in {core.term}, log {core.log.base_index}-{core.log.last_index} "
            f"of {core.log.last_term}, commit {core.commit}, applied {host.machine.index}, "
            f"voters {sorted(core.members.voters)} learners {sorted(core.members.learners)}"
            f"{', removed' if core.removed else ''}"
            for host in self.cluster.hosts
        )
