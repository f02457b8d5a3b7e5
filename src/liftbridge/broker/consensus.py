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
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import trio

from liftbridge.broker.journal import Journal, JournalError, Recovered
from liftbridge.raft import (
    Entry,
    EntryKind,
    HardState,
    Message,
    Options,
    Raft,
    Ready,
    Snapshot,
    SnapshotMeta,
    Stored,
)

logger = logging.getLogger("liftbridge.metadata")

# Ten of these, and up to twenty, without a word of the leader are an election.
TICK_SECONDS = 0.05


class NotLeadingError(Exception):
    """This node does not lead, or stopped leading before the proposal was committed."""


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
        self._waiting: dict[int, _Waiter] = {}
        if recovered.snapshot is not None:
            self._restore(recovered.snapshot)
        self.core = self._begin(recovered)

    @property
    def alone(self) -> bool:
        """Whether this node is the only voter, and so decides by itself."""
        return self.core.members.voters == {self.core.node_id}

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
        node stopped leading meanwhile; JournalError: it could not be stored here.
        """
        with trio.CancelScope(shield=True):
            await self._lead_alone()
            first = self.core.propose((data,))
            if first is None:
                raise NotLeadingError
            waiter = self._waiting[first] = _Waiter(self.core.term)
            await self.drain()
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error
        return waiter.result

    def deliver(self, message: Message) -> None:
        """A message of another node has arrived."""
        self.core.step(message)
        self._pump()
        self._news.set()

    async def run(self, *, tick_seconds: float = TICK_SECONDS) -> None:
        """Keep the time, and do what messages ask for, until cancelled. Raises JournalError."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time, tick_seconds)
            while True:
                await self._news.wait()
                self._news = trio.Event()
                with trio.CancelScope(shield=True):
                    await self.drain()

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

    async def _keep_time(self, tick_seconds: float) -> None:
        """Tick. A process that stood still does not make up for it: others have not stood still meanwhile."""
        while True:
            await trio.sleep(tick_seconds)
            self.core.tick(secrets.randbits(31))
            self._pump()
            if self._queue or self._waiting:
                self._news.set()

    async def close(self) -> None:
        """Wait for what is under way and release the journal."""
        with trio.CancelScope(shield=True):
            async with self._turn:
                await trio.to_thread.run_sync(self.journal.close)
                self._fail_waiting(NotLeadingError())

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

    def _apply(self, entry: Entry) -> None:
        assert entry.index == self.applied + 1, (entry.index, self.applied)
        result = None
        if entry.kind is EntryKind.COMMAND:
            result = self._machine.apply(entry.index, entry.data)
        self.applied = entry.index
        waiter = self._waiting.pop(entry.index, None)
        if waiter is not None:
            # At its index another leader's entry may have come to stand.
            waiter.finish(result, None if entry.term == waiter.term else NotLeadingError())

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
            self._fail_waiting(NotLeadingError())

    def _fail_waiting(self, error: Exception) -> None:
        for waiter in self._waiting.values():
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
    """Somebody who waits for an entry of a term to be applied."""

    def __init__(self, term: int) -> None:
        self.term = term
        self.done = trio.Event()
        self.result: object = None
        self.error: Exception | None = None

    def finish(self, result: object, error: Exception | None) -> None:
        self.result, self.error = result, error
        self.done.set()


def _reopen(journal: Journal) -> tuple[Journal, Recovered]:
    directory: Path = journal.directory
    again, recovered = Journal.open(directory)
    again.snapshot_entries, again.snapshot_bytes = journal.snapshot_entries, journal.snapshot_bytes
    again.keep_after = journal.keep_after
    journal.close()
    return again, recovered
