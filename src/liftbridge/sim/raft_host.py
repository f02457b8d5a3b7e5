"""A machine with a process that drives a core: what the broker's consensus task does, on a simulated disk
and network.

The process can be killed, lose power, be stopped and go on, lose its disk. A wiped disk makes another node,
with an id of its own; which one runs where is the cluster's to know.

Invariant: what the core says is done in the order in which it says it: messages, store, the later messages
when it is stored, `persisted`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from liftbridge.raft import (
    Entry,
    HardState,
    Message,
    NodeId,
    Options,
    Raft,
    Ready,
    Snapshot,
    SnapshotMeta,
    Stored,
)
from liftbridge.sim.disk import DiskFullError
from liftbridge.sim.raft_machine import AnyMachine, Machine
from liftbridge.sim.raft_storage import IDENTITY, JOURNAL, SNAPSHOT, DamagedError, Storage
from liftbridge.sim.raft_watch import Watch
from liftbridge.sim.world import World

TICK = 20_000  # microseconds
_INBOX = 200  # messages that wait for a process that is stopped, as socket buffers would


class Read(NamedTuple):
    """A linearizable read that waits.

    Attributes:
        floor: index that its answer must have at least.
        sequence: number of the last message that was sent before it.
    """

    floor: int
    sequence: int


class Host:
    """One machine.

    Attributes:
        number: of the machine in the world.
        node: id of the node whose disk it has; None before the first.
        core, storage, machine: of the process that runs; None when there is none.
        stopped: whether the process exists and gets no time.
        waiting: what clients wait for: index to the term of the entry and whom to tell.
        taking: whether a state of the machine is being stored.
        last_tick: number of ticks that this process has seen.
        heard: the tick at which a message of a node was last stepped.
        led: the tick at which the leader was last heard.
        options, snapshot_every: of the core, and after how many entries a snapshot is taken.

    Arguments:
        world: where it is.
        checks: who looks on.
        where: which host a node is on.
        machine: makes the state machine of a process.
        tick: of the core, microseconds.
    """

    def __init__(
        self,
        world: World,
        checks: Watch,
        options: Options,
        snapshot_every: int,
        where: Callable[[NodeId], int | None],
        machine: Callable[[], AnyMachine] = Machine,
        tick: int = TICK,
    ) -> None:
        self.number = world.add_host()
        self.node: NodeId | None = None
        self.core: Raft | None = None
        self.storage: Storage | None = None
        self.machine = machine()
        self.stopped = False
        self.waiting: dict[int, tuple[int, Callable[[int | None], None]]] = {}
        self.taking = False
        self.last_tick = 0
        self.heard: dict[NodeId, int] = {}
        self.led = 0
        self.options = options
        self.snapshot_every = snapshot_every
        self.disk = world.disks[self.number]
        self.clock = world.clocks[self.number]
        self.on_send: Callable[[Host, Message], None] | None = None
        self._world = world
        self._checks = checks
        self._where = where
        self._new_machine = machine
        self._tick_time = tick
        self._process = 0
        self._lives = 0
        self._inbox: list[Message] = []
        world.network.attach(self.number, self.receive)

    def __str__(self) -> str:
        return f"host {self.number} (node {self.node})"

    @property
    def runs(self) -> bool:
        """Whether there is a process, started completely or not."""
        return self.storage is not None

    # ---- life ----

    def found(self, snapshot: Snapshot | None) -> None:
        """A new disk for a new node, which begins with a snapshot, or with nothing as one does that will
        join.
        """
        assert not self.runs
        self._lives += 1
        self.disk.wipe()
        self.node = (self.number + 1) * 100 + self._lives
        self.disk.replace(IDENTITY, [self.node])
        if snapshot is not None:
            self.disk.replace(SNAPSHOT, [snapshot])
            self.disk.append(JOURNAL, (HardState(snapshot.meta.term), 0))
            self.disk.append(JOURNAL, (snapshot.meta, 0))
        self._world.note("found", self.number, self.node)
        # Nobody knows the node before its identity is safe, so there is no crash to look at here.
        self.disk.sync(_nothing)
        self.start()

    def start(self) -> bool:
        """Start a process; False when the disk says that it must not, as it is damaged."""
        assert not self.runs
        self._process += 1
        self._world.note("start", self.number, self.node)
        if not self.disk.read(IDENTITY):
            return False
        try:
            self.storage = Storage(self.disk, self._died, self._synced)
        except DamagedError as error:
            self._world.note("damaged", self.number, str(error))
            return False
        self.stopped = False
        self.storage.start(self._begin)
        return True

    def _begin(self) -> None:
        """The disk has what was read: now there is a core."""
        assert self.storage is not None and self.node is not None
        stored: Stored = self.storage.stored()
        self.machine = self._new_machine()
        if stored.snapshot is not None:
            self.machine.restore(stored.snapshot.state)
            self._checks.applied(self)
        random = self._world.random
        incarnation = random.getrandbits(32)
        self.core = Raft(self.node, incarnation, stored, self.options, random.getrandbits(16))
        self.last_tick, self.led, self.heard = 0, 0, {}
        self._checks.started(self)
        self.clock.after(int(random.random() * self._tick_time), self._tick, self._process)

    def kill(self) -> None:
        """The process ends here and now."""
        if self.runs:
            self._world.note("kill", self.number)
            self.disk.kill()
            self._gone(power=False)

    def lose_power(self) -> None:
        """The machine ends here and now."""
        if self.runs:
            self._world.note("power", self.number)
            self.disk.power_loss()
            self._gone(power=True)

    def stop(self) -> None:
        """The process gets no time until `go_on`."""
        if self.core is not None and not self.stopped:
            self._world.note("stop", self.number)
            self.stopped = True

    def go_on(self) -> None:
        """A stopped process gets what has waited for it."""
        if not self.stopped:
            return
        self._world.note("go on", self.number)
        self.stopped = False
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            self._take(message)

    def _gone(self, *, power: bool) -> None:
        self._process += 1
        self.core = self.storage = None
        self.stopped, self.taking = False, False
        self._inbox.clear()
        waiting, self.waiting = self.waiting, {}
        for _, tell in waiting.values():
            tell(None)
        self._checks.gone(self, power=power)

    def _died(self, error: Exception) -> None:
        """A write has ended the process: at a fuse, with power or without, or because the disk is full."""
        self._world.note("died", self.number, type(error).__name__)
        if isinstance(error, DiskFullError) or self._world.random.random() < 0.5 or not self._checks.power:
            self.kill()
        else:
            self.lose_power()

    # ---- what reaches the core ----

    def _tick(self, process: int) -> None:
        if process != self._process:
            return
        self.clock.after(self._tick_time, self._tick, process)
        core = self.core
        if core is None or self.stopped:
            return
        self.last_tick += 1
        core.tick(self._world.random.getrandbits(16))
        self._checks.ticked(self, core)
        self.work()

    def receive(self, source: int, message: Message) -> None:
        """A message has come over the network."""
        if self.core is None:
            return
        if self.stopped:
            if len(self._inbox) < _INBOX:
                self._inbox.append(message)
            return
        self._take(message)

    def _take(self, message: Message) -> None:
        core = self.core
        if core is None:
            return
        self._world.note("take", self.number, message)
        if message.target == self.node:
            self.heard[message.source] = self.last_tick
        before = self._checks.before(self, core, message)
        core.step(message)
        self._checks.stepped(self, core, message, before)
        self.work()

    def rush(self) -> None:
        """Let its time-outs pass at once: it campaigns, unless it leads."""
        core = self.core
        if core is None or self.stopped or core.is_leader:
            return
        for _ in range(2 * core.options.election_ticks):
            self.last_tick += 1
            core.tick(self._world.random.getrandbits(16))
            if core.is_leader:
                break
        self.work()

    def propose(self, data: bytes, tell: Callable[[int | None], None]) -> bool:
        """Propose a command, if this node leads. `tell` gets the index where it was applied, or None when
        that is unknown; it is called at most once. Returns whether it was proposed.
        """
        core = self.core
        if core is None or self.stopped:
            return False
        index = core.propose([data])
        if index is None:
            return False
        self._world.note("propose", self.number, index, core.term, data)
        self.waiting[index] = (core.term, tell)
        self.work()
        return True

    def read(self, floor: int) -> None:
        """Ask for a linearizable read, if this node can."""
        core = self.core
        if core is not None and not self.stopped and core.is_leader:
            self._world.note("read", self.number, floor)
            core.read_index(Read(floor, core.sequence))
            self.work()

    # ---- what the core wants ----

    def work(self) -> None:
        """Do what the core says, until it says nothing."""
        core = self.core
        assert core is not None
        self._checks.look(self, core)
        while self.core is core and core.has_ready:
            self._do(core, core.ready())
            if self.core is core:
                self._checks.look(self, core)
        if self.core is core:
            self._checks.settled(self, core)

    def _do(self, core: Raft, ready: Ready) -> None:
        storage = self.storage
        assert storage is not None
        self._checks.told(self, core, ready)
        for message in ready.messages:
            self._send(message)
        for context, index in ready.reads:
            self._checks.answered(self, core, context, index)
        for entry in ready.committed:
            self._apply(core, entry)
            if self.core is not core:
                return
        process = self._process

        def done() -> None:
            if process != self._process:
                return
            if ready.snapshot is not None:
                self._restored(ready.snapshot)
            core.persisted(ready.token)
            self._checks.look(self, core)
            for message in ready.later:
                self._send(message)
            if self.core is core:
                self.work()

        if not ready.stores and storage.idle:
            core.persisted(ready.token)
            for message in ready.later:
                self._send(message)
        else:
            storage.save(ready, done)

    def _send(self, message: Message) -> None:
        if self.core is None:  # it has died since
            return
        self._checks.sent(self, message)
        target = self._where(message.target)
        if target is not None:
            self._world.network.send(self.number, target, message)
        if self.on_send is not None:
            self.on_send(self, message)

    def _restored(self, snapshot: Snapshot) -> None:
        self.machine.restore(snapshot.state)
        self._checks.applied(self)
        for index in [index for index in self.waiting if index <= snapshot.meta.index]:
            self.waiting.pop(index)[1](None)

    def _apply(self, core: Raft, entry: Entry) -> None:
        self._checks.applies(self, core, entry)
        machine = self.machine
        machine.apply(entry)
        self._checks.applied(self)
        waiting = self.waiting.pop(entry.index, None)
        if waiting is not None:
            waiting[1](entry.index if waiting[0] == entry.term else None)
        if not self.taking and entry.index - core.log.base_index >= self.snapshot_every:
            self._take_snapshot(core)

    def _take_snapshot(self, core: Raft) -> None:
        assert self.storage is not None
        machine = self.machine
        if core.snapshot is not None and machine.index - core.snapshot.meta.index < self.snapshot_every:
            return
        self.taking = True
        members = core.log.members_at(machine.index)
        meta = SnapshotMeta(machine.index, machine.term, members)
        snapshot = Snapshot(meta, machine.state())
        process = self._process

        def done() -> None:
            if process == self._process:
                self.taking = False
                # Unless a snapshot of the leader was taken over meanwhile, or is being stored.
                if meta.index > core.log.base_index:
                    core.compact(snapshot)
                    self._checks.look(self, core)

        self.storage.keep(snapshot, done)

    def _synced(self, storage: Storage, records: Sequence[Any]) -> None:
        if self.storage is storage and self.node is not None:
            self._checks.durable(self.node, storage, records)

    def damage(self) -> bool:
        """Flip a bit in a record of the journal that was synced long ago; False when there is none."""
        records = self.disk.durable(JOURNAL)
        proven = max((record[1] for record in records if isinstance(record, tuple)), default=0)
        if proven < 1:
            return False
        self.disk.flip(JOURNAL, int(self._world.random.random() * proven))
        return True


def _nothing() -> None:
    """A sync that nobody waits for."""
