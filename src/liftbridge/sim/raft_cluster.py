"""A cluster of hosts, its clients, and the operator who looks after its members.

Clients send commands one after another, each with a number, and ask again elsewhere when they hear nothing,
as real ones do; what they were told is what the checks hold the cluster to. The operator replaces nodes
whose disks are gone and changes who belongs to the cluster, all through whoever leads.

Invariant: the operator never takes a disk from the cluster when the voters that are left with theirs would
be no majority: that no consensus survives.
"""

from __future__ import annotations

from dataclasses import dataclass

from liftbridge.raft import Members, NodeId, Options, Refusal, Snapshot, SnapshotMeta
from liftbridge.sim.raft_checks import Checks
from liftbridge.sim.raft_host import Host
from liftbridge.sim.raft_machine import Machine, command
from liftbridge.sim.world import MILLISECOND, World

_READS = 40 * MILLISECOND  # between reads, on average
_PATIENCE = 300 * MILLISECOND  # of a client with one host


@dataclass
class _Client:
    """Who sends commands; `number` is that of the present one, `attempt` counts the tries of all."""

    name: int
    number: int = 0
    attempt: int = 0
    tries: int = 0


class Cluster:
    """Hosts in a world.

    Attributes:
        hosts: all machines, with those that have not joined.
        checks: what must hold.
        acked: commands that were acked.
        proposing: whether clients begin new commands.
        wiped: nodes whose disks are gone, until they are no members.
    """

    def __init__(
        self,
        world: World,
        *,
        voters: int,
        spare: int,
        options: Options,
        snapshot_every: int,
        clients: int,
        pause: int,
        power: bool,
    ) -> None:
        """So many founding voters and machines without a node; clients that wait up to `pause` us between
        commands.
        """
        self.world = world
        self.checks = Checks(world, power=power)
        self.acked = 0
        self.proposing = True
        self.wiped: set[NodeId] = set()
        self._pause = pause
        self._places: dict[NodeId, int] = {}
        self.hosts = [
            Host(world, self.checks, options, snapshot_every, self._places.get) for _ in range(voters + spare)
        ]
        members = Members(frozenset((number + 1) * 100 + 1 for number in range(voters)))
        machine = Machine()
        machine.index = machine.term = 1
        self.checks.bootstrap(1, 1, machine.chain)
        first = Snapshot(SnapshotMeta(1, 1, members), machine.state())
        for host in self.hosts[:voters]:
            self._found(host, first)
        for name in range(1, clients + 1):
            client = _Client(name)
            world.scheduler.after(self._some(pause), self._next, client)
        world.scheduler.after(_READS, self._reading)

    def _found(self, host: Host, snapshot: Snapshot | None) -> None:
        host.found(snapshot)
        assert host.node is not None
        self._places[host.node] = host.number

    def _some(self, most: int) -> int:
        return int(self.world.random.random() * most)

    # ---- who is who ----

    @property
    def leader(self) -> Host | None:
        """The leader of the newest term among those that run, as far as anybody leads."""
        leaders = [host for host in self.hosts if host.core is not None and host.core.is_leader]
        return max(leaders, key=lambda host: host.core.term if host.core else 0, default=None)

    @property
    def members(self) -> Members:
        """As the newest leader sees them, or whoever has the newest log."""
        cores = [host.core for host in self.hosts if host.core is not None]
        if not cores:
            return Members()
        return max(cores, key=lambda core: (core.is_leader, core.log.last_term, core.log.last_index)).members

    def host_of(self, node: NodeId) -> Host | None:
        """Where a node lives, unless its disk is gone."""
        number = self._places.get(node)
        if number is None or self.hosts[number].node != node:
            return None
        return self.hosts[number]

    # ---- clients ----

    def _next(self, client: _Client) -> None:
        if self.proposing:
            client.number += 1
            client.tries = 0
            self._try(client, client.number)
        else:
            self.world.scheduler.after(self._pause, self._next, client)

    def _try(self, client: _Client, number: int) -> None:
        """Propose to whoever leads, mostly; now and then to another one that may think that it does."""
        client.attempt += 1
        client.tries += 1
        attempt = client.attempt

        def told(index: int | None) -> None:
            if attempt != client.attempt:
                return
            client.attempt += 1
            if index is None:
                self.world.scheduler.after(self._some(50 * MILLISECOND), self._again, client, client.attempt)
                return
            self.checks.ack(client.name, number, index)
            self.acked += 1
            self.world.note("ack", f"{client.name}:{number}", index)
            self.world.scheduler.after(self._some(self._pause), self._next, client)

        random = self.world.random
        leaders = [host for host in self.hosts if host.core is not None and host.core.is_leader]
        host = random.choice(leaders or self.hosts)
        proposed = host.propose(command(client.name, number), told)
        patience = _PATIENCE if proposed else self._some(40 * MILLISECOND)
        if attempt == client.attempt:
            self.world.scheduler.after(patience, self._again, client, attempt)

    def _again(self, client: _Client, attempt: int) -> None:
        if attempt != client.attempt:
            return
        if client.tries > 8 and self.world.random.random() < 0.3:
            client.attempt += 1  # given up: whether it was done is unknown
            self._next(client)
        else:
            self._try(client, client.number)

    def _reading(self) -> None:
        self.read()
        self.world.scheduler.after(self._some(2 * _READS), self._reading)

    def read(self) -> None:
        """Somebody reads, from whoever thinks that it leads."""
        for host in self.hosts:
            if host.core is not None and host.core.is_leader:
                host.read(self.checks.floor)

    # ---- the operator ----

    def change(self, what: str, node: NodeId) -> int | Refusal | None:
        """Ask all who think that they lead: `add`, `promote`, `demote` or `remove` a node. Returns what the
        last said.
        """
        result: int | Refusal | None = None
        if what in ("demote", "remove") and self.wiped and node not in self.wiped:
            return None  # whoever still has a disk is needed
        for host in self.hosts:
            core = host.core
            if core is None or host.stopped or not core.is_leader:
                continue
            if what == "add":
                result = core.add_learner(node)
            elif what == "promote":
                result = core.promote(node)
            elif what == "demote":
                result = core.demote(node)
            else:
                result = core.remove(node)
            self.world.note("members", host.number, what, node, result)
            host.work()
        return result

    def join(self, host: Host) -> None:
        """Give a machine that has none a new node; who leads will hear of it by and by."""
        if host.runs:
            return
        self._found(host, None)

    def may_lose(self, node: NodeId) -> bool:
        """Whether a disk can go: of the voters, in every view of who they are, a majority keeps theirs."""
        gone = self.wiped | {node}
        for host in self.hosts:
            if host.core is not None:
                voters = host.core.members.voters
                if voters and len(voters - gone) < len(voters) // 2 + 1:
                    return False
        return True

    def wipe(self, host: Host) -> bool:
        """Take the disk of a machine and give it another, for a new node; whether that was possible."""
        node = host.node
        if (
            node is None
            or not self.may_lose(node)
            or any(other.core is None for other in self.hosts if other.node)
        ):
            return False
        self.world.note("wipe", host.number, node)
        host.kill()
        self.wiped.add(node)
        self._found(host, None)
        return True

    def tend(self) -> None:
        """A step of looking after the members: lost disks out, machines that hold a node in, learners to
        voters.
        """
        leader = self.leader
        if leader is None or leader.core is None:
            return
        members = leader.core.members
        self.wiped &= {
            node for host in self.hosts if host.core for node in host.core.members.all
        } | members.all
        for node in sorted(self.wiped & members.all):
            self.change("remove", node)
            return
        for host in self.hosts:
            if host.node is not None and host.core is not None and host.node not in members.all:
                if host.core.removed:
                    host.kill()  # was told that it is none: a member again only with a new disk
                    self._found(host, None)
                self.change("add", host.node)
                return
        for node in sorted(members.learners):
            self.change("promote", node)
            return
