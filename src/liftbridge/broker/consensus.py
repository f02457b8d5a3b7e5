"""The node of the consensus on metadata: the pure core (`raft/`) with a disk, and what it agreed on applied.

Whoever makes the core want something calls `drain`, which does it all: has the journal store, tells the
core, sends what waited for the disk, applies what is committed, takes snapshots. One drains at a time, and
what came meanwhile is stored by the next in one go. So a server that is its own cluster needs no task for it,
and no message: a proposal is stored by the task that makes it. With other members `run` keeps the time, and
drains for what they send. What need not wait for the disk goes to others at once, while the disk works.

Invariants:
- What the core wants stored is stored in its order, and `persisted` is told only after the disk has it.
- What is applied is on this server's disk, in the order of the log, by one task at a time.
- Once the journal has a proposal of a server that is its own cluster, it is applied: that section is shielded
  from cancellation.
- A write that was refused leaves the journal as it was: the core is begun anew from it, and who waits is
  told. After an error that is final nothing is stored any more until a restart has read the truth from the
  disk; what was applied stays readable.
- Whoever waits here, for an entry or for an answer, is told in the end: what it waits for, or why it never
  comes. So many may wait and no more, which also bounds what a leader without a majority keeps.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from liftbridge.broker.journal import Journal, JournalError, Recovered
from liftbridge.raft import (
    Entry,
    EntryKind,
    HardState,
    Message,
    NodeId,
    Options,
    Raft,
    Ready,
    Refusal,
    Snapshot,
    SnapshotMeta,
    Stored,
)

logger = logging.getLogger("liftbridge.metadata")

# Ten of these, and up to twenty, without a word of the leader are an election.
TICK_SECONDS = 0.05
# How long a voter may take to lead when it is to.
TRANSFER_SECONDS = 1.0
# Proposals that are not committed yet, and again so many questions that are not answered.
MAX_WAITING = 4096


class NotLeadingError(Exception):
    """This node does not lead, or stopped leading before the proposal was committed.

    `begun`: whether the proposal was made, so that it may be committed yet.
    """

    def __init__(self, begun: bool = False) -> None:
        super().__init__("this node does not lead" + (" any more" if begun else ""))
        self.begun = begun


class BusyError(Exception):
    """Too many wait already."""


class MembersError(Exception):
    """The members cannot be changed so, now; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


@dataclass(frozen=True)
class Role:
    """What a node is: in which term, who leads in it as far as it knows, and whether it leads itself and has
    applied all that was committed before."""

    term: int
    leader: NodeId | None
    leads: bool


class Machine(Protocol):
    """What the cluster agrees on."""

    def apply(self, index: int, data: bytes) -> object:
        """Apply a command; what comes of it is for whoever proposed it, a refusal too."""

    def snapshot(self) -> bytes:
        """The whole state; in a worker thread, while nothing is applied."""

    def restore(self, snapshot: Snapshot) -> None:
        """Become the state of a snapshot."""


class Consensus:
    """A node. `start` it; with other members, have `run` run, and give it their messages by `deliver`.

    Attributes:
        journal: where it stores.
        core: its core; to be read only.
        applied: index of the newest entry that was applied.
    """

    def __init__(
        self,
        journal: Journal,
        recovered: Recovered,
        machine: Machine,
        send: Callable[[Message], None],
        options: Options | None = None,
    ) -> None:
        """`send` gives a message to whoever brings it to another node, or loses it; it does not block."""
        self.journal = journal
        self.applied = 0
        self._machine = machine
        self._send = send
        self._options = options or Options()
        self._turn = trio.Lock()
        self._queue: list[Ready] = []  # what is to be done once it is stored
        self._news = trio.Event()
        self._waiting: dict[int, _Waiter] = {}  # for the entry of an index
        self._asking: dict[object, _Waiter] = {}  # for the answer to a read
        self._moved = trio.Event()  # something was applied, or the role is another one
        self._seen = Role(0, None, leads=False)
        self._snapshot_refused = 0
        self._closed = False
        if recovered.snapshot is not None:
            self._restore(recovered.snapshot)
        self.core = self._begin(recovered)

    @property
    def alone(self) -> bool:
        """Whether this node is the only voter, and so decides by itself."""
        return self.core.members.voters == {self.core.node_id}

    @property
    def leads(self) -> bool:
        """Whether this node leads, and what it has applied holds all that was committed before it did."""
        leadership = self.core.leadership
        return leadership is not None and self.core.leads_durably and self.applied >= leadership.start

    @property
    def role(self) -> Role:
        """What this node is now."""
        return Role(self.core.term, self.core.leader, self.leads)

    async def role_after(self, known: Role) -> Role:
        """Wait until this node is something else than `known`; returns what. Raises NotLeadingError when the
        node is closed."""
        while self.role == known:
            await self._wait_moved()
        return self.role

    async def wait_vote(self, most: int) -> None:
        """Wait until this node has a vote, or so many others have one, 0 for no bound. Raises NotLeadingError
        when the node is closed before."""
        while True:
            voters = self.core.members.voters
            if self.core.node_id in voters or 0 < most <= len(voters):
                return
            await self._wait_moved()

    async def wait_applied(self, index: int) -> None:
        """Wait until an entry was applied here. Raises NotLeadingError when the node is closed before."""
        while self.applied < index:
            await self._wait_moved()

    async def read_index(self) -> int:
        """Index of an entry with which all is applied that was agreed on before this was called.

        Raises NotLeadingError: this node does not lead, or not any more. BusyError.
        """
        if len(self._asking) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} questions to the leader of the metadata wait already")
        question = object()
        if not self.core.read_index(question):
            raise NotLeadingError
        waiter = self._asking[question] = _Waiter(self.core.term)
        try:
            with trio.CancelScope(shield=True):
                await self.drain()
            index = await waiter.wait()
        finally:
            self._asking.pop(question, None)
        assert isinstance(index, int)
        return index

    async def hand_over(self, candidates: Sequence[NodeId]) -> None:
        """Have another voter lead, the first of some that takes over, if this node leads. Returns when
        somebody else does, or nobody can be found."""
        for node in candidates:
            if node not in self.core.members.voters or node == self.core.node_id:
                continue
            with trio.move_on_after(TRANSFER_SECONDS):
                while self.core.is_leader and self.core.transfer(node):
                    role = self.role
                    await self.drain()
                    await self.role_after(role)
                while self.core.leader in (None, self.core.node_id):
                    await self.role_after(self.role)
                return

    async def change_members(self, change: Callable[[Raft], int | Refusal]) -> None:
        """Have another set of members agreed on; `change` asks the core for it.

        Raises MembersError: not so, or not now. NotLeadingError, JournalError as `propose` does.
        """
        with trio.CancelScope(shield=True):
            index = change(self.core)
            if isinstance(index, Refusal):
                raise MembersError(index)
            waiter = self._waiting[index] = _Waiter(self.core.term)
            await self.drain()
        await waiter.wait()

    async def start(self) -> None:
        """Apply what is known to be committed, and lead when there is nobody else, if the disk allows it."""
        with trio.CancelScope(shield=True):
            await self.drain()
            try:
                await self._lead_alone()
            except JournalError as error:
                logger.warning("metadata can be read and not changed: %s", error)

    async def propose(self, data: bytes) -> object:
        """Have a command agreed on. Returns what applying it returned.

        Raises NotLeadingError: another node leads, or none, and the command may take effect or not when this
        node stopped leading meanwhile; JournalError: it could not be stored here; BusyError.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} changes of the metadata wait for a majority already")
        with trio.CancelScope(shield=True):
            await self._lead_alone()
            first = self.core.propose((data,))
            if first is None:
                raise NotLeadingError
            waiter = self._waiting[first] = _Waiter(self.core.term)
            await self.drain()
        return await waiter.wait()

    def deliver(self, message: Message) -> None:
        """A message of another node has arrived."""
        self.core.step(message)
        self._pump()
        self._news.set()

    async def run(self, *, tick_seconds: float = TICK_SECONDS) -> None:
        """Keep the time, and do what messages ask for, until cancelled, or until nothing can be stored any
        more: then others do without this node."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time, tick_seconds)
            while self.journal.failed is None:
                await self._news.wait()
                self._news = trio.Event()
                try:
                    with trio.CancelScope(shield=True):
                        await self.drain()
                except JournalError as error:
                    logger.error("%s", error)  # noqa: TRY400 (the text says it all)
            nursery.cancel_scope.cancel()

    async def drain(self) -> None:
        """Do what the core wants done. Raises JournalError."""
        async with self._turn:
            self._pump()
            while self._queue:
                taken, self._queue = self._queue, []
                try:
                    await self._store(taken)
                except JournalError as error:
                    await self._after_failure(error)
                    raise
                for ready in taken:
                    self._finish(ready)
                self._pump()
                if self.journal.snapshot_due and not self._queue:
                    await self._take_snapshot()
                    self._pump()
            self._give_up_lost_proposals()
            self._note_role()

    def _pump(self) -> None:
        """Take what the core wants done, and send what need not wait."""
        while self.core.has_ready:
            ready = self.core.ready()
            for message in ready.messages:
                self._send(message)
            self._queue.append(ready)

    def _finish(self, ready: Ready) -> None:
        """What a `Ready` asked to store is on the disk."""
        if ready.snapshot is not None:
            self._restore(ready.snapshot)
        self.core.persisted(ready.token)
        for message in ready.later:
            self._send(message)
        for entry in ready.committed:
            self._apply(entry)
        for question, index in ready.reads:
            if question in self._asking:
                self._asking[question].finish(index, None)
        for question in ready.unanswered:
            if question in self._asking:
                self._asking[question].finish(None, NotLeadingError())

    def _note_role(self) -> None:
        """Wake who waits for another role, and say what an operator has to know."""
        role = self.role
        if role != self._seen:
            self._seen = role
            self._wake()
        refused = self.core.snapshot_too_large
        if refused != self._snapshot_refused:
            self._snapshot_refused = refused
            if refused:
                logger.error(
                    "the leader's snapshot of the metadata has %d bytes, more than the %d that are taken: "
                    "this server stays behind",
                    refused,
                    self._options.max_snapshot_bytes,
                )

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def _wait_moved(self) -> None:
        if self._closed:
            raise NotLeadingError
        await self._moved.wait()

    async def _keep_time(self, tick_seconds: float) -> None:
        """Tick. A process that stood still does not make up for it: others have not stood still meanwhile."""
        while True:
            await trio.sleep(tick_seconds)
            self.core.tick(secrets.randbits(31))
            self._pump()
            if self._queue or self._waiting or self.role != self._seen:
                self._news.set()

    async def close(self) -> None:
        """Wait for what is under way and release the journal."""
        with trio.CancelScope(shield=True):
            async with self._turn:
                self._closed = True
                await trio.to_thread.run_sync(self.journal.close)
                self._fail_waiting(NotLeadingError(begun=True))
                self._wake()

    async def _lead_alone(self) -> None:
        """Have the only voter lead, however it came not to."""
        if self.alone and not self.core.leads_durably:
            self.core.campaign()
            await self.drain()

    async def _store(self, readies: Sequence[Ready]) -> None:
        """Have the journal store what these ask for, as much as possible in one write."""
        journal, steps = self.journal, list(_steps(readies))
        if not steps:
            return

        def store() -> None:
            for snapshot, hard_state, entries in steps:
                if snapshot is not None:
                    journal.install(snapshot)
                if hard_state is not None or entries:
                    journal.save(hard_state, entries)

        await trio.to_thread.run_sync(store)

    def _restore(self, snapshot: Snapshot) -> None:
        self._machine.restore(snapshot)
        self.applied = snapshot.meta.index
        self._wake()

    def _apply(self, entry: Entry) -> None:
        assert entry.index == self.applied + 1, (entry.index, self.applied)
        result = None
        if entry.kind is EntryKind.COMMAND:
            result = self._machine.apply(entry.index, entry.data)
        self.applied = entry.index
        self._wake()
        waiter = self._waiting.pop(entry.index, None)
        if waiter is not None:
            # At its index another leader's entry may have come to stand.
            waiter.finish(result, None if entry.term == waiter.term else NotLeadingError(begun=True))

    async def _take_snapshot(self) -> None:
        """Bound the journal. What was applied is durable whatever comes of this."""
        index = self.applied
        if index <= self.journal.base:
            return  # much is stored, and nothing of it is committed
        term = self.core.log.term_at(index)
        assert term is not None
        meta = SnapshotMeta(index, term, self.core.log.members_at(index))

        def take() -> Snapshot:
            snapshot = Snapshot(meta, self._machine.snapshot())
            self.journal.write_snapshot(snapshot)
            return snapshot

        try:
            snapshot = await trio.to_thread.run_sync(take)
        except JournalError as error:
            logger.error("%s", error)  # noqa: TRY400 (the text says it all)
            return
        if self.core.log.term_at(index) == term:  # no snapshot of a leader has come meanwhile
            self.core.compact(snapshot)

    def _give_up_lost_proposals(self) -> None:
        if self._waiting and not self.core.is_leader:
            self._fail_waiting(NotLeadingError(begun=True))

    def _fail_waiting(self, error: Exception) -> None:
        for waiter in (*self._waiting.values(), *self._asking.values()):
            waiter.finish(None, error)
        self._waiting.clear()

    async def _after_failure(self, error: JournalError) -> None:
        """Nothing of what was to be stored is there: go back to what is, if the disk can be trusted."""
        self._fail_waiting(error)
        self._queue.clear()
        if self.journal.failed is not None:
            return
        try:
            self.journal, recovered = await trio.to_thread.run_sync(_reopen, self.journal)
        except (OSError, JournalError) as reason:
            self.journal.failed = f"{error}; then the journal could not be read again: {reason}"
            return
        self.core = self._begin(recovered)

    def _begin(self, recovered: Recovered) -> Raft:
        stored = Stored(recovered.hard_state, recovered.snapshot, recovered.entries)
        incarnation, jitter = secrets.randbits(63), secrets.randbits(31)
        return Raft(self.journal.node_id, incarnation, stored, self._options, jitter, applied=self.applied)


def _steps(
    readies: Sequence[Ready],
) -> Iterator[tuple[Snapshot | None, HardState | None, Sequence[Entry]]]:
    """What to store, in order: those that only add to one another are one step."""
    snapshot: Snapshot | None = None
    hard_state: HardState | None = None
    entries: list[Entry] = []
    for ready in readies:
        follows = not (entries and ready.entries) or ready.entries[0].index == entries[-1].index + 1
        if ready.snapshot is not None or not follows:
            if snapshot is not None or hard_state is not None or entries:
                yield snapshot, hard_state, entries
            snapshot, hard_state, entries = ready.snapshot, None, []
        hard_state = ready.hard_state or hard_state
        entries += ready.entries
    if snapshot is not None or hard_state is not None or entries:
        yield snapshot, hard_state, entries


class _Waiter:
    """Somebody who waits for an entry of a term to be applied, or for an answer."""

    def __init__(self, term: int) -> None:
        self.term = term
        self.done = trio.Event()
        self.result: object = None
        self.error: Exception | None = None

    def finish(self, result: object, error: Exception | None) -> None:
        self.result, self.error = result, error
        self.done.set()

    async def wait(self) -> object:
        """The result. Raises the error."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.result


def _reopen(journal: Journal) -> tuple[Journal, Recovered]:
    directory: Path = journal.directory
    again, recovered = Journal.open(directory)
    again.snapshot_entries, again.snapshot_bytes = journal.snapshot_entries, journal.snapshot_bytes
    again.keep_after = journal.keep_after
    journal.close()
    return again, recovered
