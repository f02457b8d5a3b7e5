"""Several nodes of the consensus with real journals, in one process; what they say goes as bytes."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from journals import CLUSTER

from liftbridge.broker import consensus as consensus_module
from liftbridge.broker.consensus import BusyError, Consensus, MembersError, NotLeadingError, Role
from liftbridge.broker.journal import Journal
from liftbridge.raft import (
    Entry,
    EntryKind,
    Members,
    Options,
    Refusal,
    Snapshot,
    decode_message,
    encode_members,
    encode_message,
)

# Small, so that a node that was away for a little needs a snapshot, in pieces.
OPTIONS = Options(retained_entries=0, chunk_bytes=64, promotion_lag=4)
TICK_SECONDS = 0.01


class Words:
    """A state machine: the words that were proposed, in order."""

    def __init__(self) -> None:
        self.words: list[bytes] = []

    def apply(self, index: int, data: bytes) -> object:
        self.words.append(data)
        return len(self.words)

    def snapshot(self) -> bytes:
        return b" ".join(self.words)

    def restore(self, snapshot: Snapshot) -> None:
        self.words = snapshot.state.split()


class Nodes:
    """Nodes by id, and what is between them."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.running: dict[int, Consensus] = {}
        self.machines: dict[int, Words] = {}
        self.cut: set[int] = set()
        self.loss = 0.0
        self._chance = random.Random(7)
        self._nursery = nursery
        self._scopes: dict[int, trio.CancelScope] = {}
        self._ended: dict[int, trio.Event] = {}

    def create(self, name: int, voters: list[int] | None = None) -> None:
        """Make the journal of a node: one of the first voters, or one that belongs to nobody yet."""
        entries = []
        if voters is not None:
            members = encode_members(Members(frozenset(voters)))
            entries = [Entry(1, 1, EntryKind.MEMBERS, members)]
        Journal.create(self.directory / str(name), CLUSTER, name, entries=entries).close()

    async def start(self, name: int) -> Consensus:
        journal, recovered = Journal.open(self.directory / str(name))
        journal.snapshot_entries = 8
        machine = self.machines[name] = Words()
        consensus = Consensus(journal, recovered, machine, self._send, OPTIONS)
        await consensus.start()
        self.running[name] = consensus
        self._nursery.start_soon(self._run, name, consensus)
        return consensus

    async def stop(self, name: int) -> None:
        """End a node as a crash would: what it has not stored is gone."""
        self._scopes[name].cancel()
        await self._ended[name].wait()
        await self.running.pop(name).close()

    async def _run(self, name: int, consensus: Consensus) -> None:
        self._ended[name] = trio.Event()
        with trio.CancelScope() as self._scopes[name]:
            await consensus.run(tick_seconds=TICK_SECONDS)
        self._ended[name].set()

    def _send(self, message) -> None:
        lost = message.source in self.cut or message.target in self.cut or self._chance.random() < self.loss
        if not lost and message.target in self.running:
            # In a turn of its own, as from a socket.
            self._nursery.start_soon(self._arrive, message.target, encode_message(message))

    async def _arrive(self, name: int, data: bytes) -> None:
        if name in self.running:
            self.running[name].deliver(decode_message(data))

    async def leader(self) -> Consensus:
        """Whoever can lead, of those that are not cut off."""
        while True:
            for name, consensus in self.running.items():
                if consensus.core.leads_durably and name not in self.cut:
                    return consensus
            await trio.sleep(TICK_SECONDS)

    async def propose(self, word: bytes) -> object:
        """Propose until somebody takes it; a word may be there twice when a leader was lost."""
        return await self.at_leader(lambda leader: leader.propose(word))

    async def at_leader(self, ask) -> object:
        """Ask whoever leads, until one does that leads long enough to answer."""
        while True:
            with suppress(NotLeadingError):
                return await ask(await self.leader())
            await trio.sleep(TICK_SECONDS)

    async def agree(self) -> list[bytes]:
        """Wait until all that run have the same words; returns them."""
        while True:
            states = [self.machines[name].words for name in self.running]
            applied = {consensus.applied for consensus in self.running.values()}
            if len(applied) == 1 and all(words == states[0] for words in states):
                return states[0]
            await trio.sleep(TICK_SECONDS)


@asynccontextmanager
async def nodes_of(directory: Path, count: int = 3):
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nodes = Nodes(directory, nursery)
            names = list(range(1, count + 1))
            for name in names:
                nodes.create(name, names)
                await nodes.start(name)
            yield nodes
            for name in list(nodes.running):
                await nodes.stop(name)
            nursery.cancel_scope.cancel()


def numbered(first: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


async def test_all_apply_the_same_in_the_same_order(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        leader = await nodes.leader()
        results = []

        async def propose(word: bytes) -> None:
            results.append(await leader.propose(word))

        async with trio.open_nursery() as nursery:
            for word in numbered(0, 50):
                nursery.start_soon(propose, word)
        assert sorted(results) == list(range(1, 51)), "each is told what came of its own"
        words = await nodes.agree()
        assert sorted(words, key=int) == numbered(0, 50)
        follower = next(consensus for consensus in nodes.running.values() if consensus is not leader)
        with pytest.raises(NotLeadingError):
            await follower.propose(b"x")


async def test_what_was_agreed_on_outlives_its_leader(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        for word in numbered(0, 5):
            await nodes.propose(word)
        lost = (await nodes.leader()).core.node_id
        await nodes.stop(lost)
        for word in numbered(5, 5):
            await nodes.propose(word)
        await nodes.start(lost)
        assert await nodes.agree() == numbered(0, 10)


async def test_who_was_away_for_long_gets_a_snapshot(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        leader = (await nodes.leader()).core.node_id
        away = next(name for name in nodes.running if name != leader)
        await nodes.stop(away)
        for word in numbered(0, 40):
            await nodes.propose(word)
        await nodes.start(away)
        assert nodes.machines[away].words == []
        assert await nodes.agree() == numbered(0, 40)
        assert nodes.running[away].core.log.base_index > 1
        assert list((tmp_path / str(away)).glob("snapshot-*"))
        # From its own disk, after a crash.
        await nodes.stop(away)
        await nodes.start(away)
        assert await nodes.agree() == numbered(0, 40)


async def test_a_leader_that_is_cut_off_agrees_on_nothing_alone(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        await nodes.propose(b"first")
        old = await nodes.leader()
        nodes.cut.add(old.core.node_id)
        with pytest.raises(NotLeadingError):
            await old.propose(b"lost")
        await nodes.propose(b"second")
        nodes.cut.clear()
        await nodes.propose(b"third")
        assert await nodes.agree() == [b"first", b"second", b"third"]


async def test_a_new_node_learns_and_gets_a_vote(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        for word in numbered(0, 20):
            await nodes.propose(word)
        nodes.create(4)
        await nodes.start(4)
        for change in (lambda core: core.add_learner(4), lambda core: core.promote(4)):
            try:
                await nodes.at_leader(lambda leader, change=change: leader.change_members(change))
            except MembersError as error:  # agreed on, and its leader lost before it could say so
                assert error.refusal is Refusal.SAME
            await nodes.agree()
        await nodes.propose(b"20")
        assert await nodes.agree() == numbered(0, 21)
        assert nodes.running[4].core.members.voters == {1, 2, 3, 4}


async def test_messages_that_are_lost_cost_time_only(tmp_path):
    async with nodes_of(tmp_path, 5) as nodes:
        nodes.loss = 0.2
        for word in numbered(0, 20):
            await nodes.propose(word)
        nodes.loss = 0.0
        words = await nodes.agree()
        # A word that was agreed on while its leader was given up is there twice; none is missing.
        assert list(dict.fromkeys(words)) == numbered(0, 20)


async def test_members_are_not_changed_against_the_rules(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        leader = await nodes.leader()
        with pytest.raises(MembersError, match="the members are so already"):
            await leader.change_members(lambda core: core.add_learner(1))
        follower = next(node for node in nodes.running.values() if node is not leader)
        with pytest.raises(MembersError, match="this node does not lead"):
            await follower.change_members(lambda core: core.add_learner(4))


async def test_what_a_leader_has_agreed_on_can_be_read_elsewhere(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        for word in numbered(0, 10):
            await nodes.propose(word)
            index = await nodes.at_leader(lambda leader: leader.read_index())
            for name, node in nodes.running.items():
                await node.wait_applied(index)
                assert nodes.machines[name].words[-1] == word
        leader = await nodes.leader()
        follower = next(node for node in nodes.running.values() if node is not leader)
        with pytest.raises(NotLeadingError):
            await follower.read_index()


async def test_a_leader_that_is_cut_off_answers_no_read(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        await nodes.propose(b"first")
        old = await nodes.leader()
        assert old.leads
        nodes.cut.add(old.core.node_id)
        with pytest.raises(NotLeadingError):
            await old.read_index()


async def test_who_waits_for_a_role_hears_of_it(tmp_path):
    async with nodes_of(tmp_path) as nodes:
        old = await nodes.leader()
        watcher = next(node for node in nodes.running.values() if node is not old)
        while watcher.role.leader != old.core.node_id:
            await watcher.role_after(watcher.role)
        known = watcher.role
        assert known == Role(old.core.term, old.core.node_id, leads=False)
        await nodes.stop(old.core.node_id)
        while (known := await watcher.role_after(known)).leader in (None, old.core.node_id):
            pass
        assert known.term > old.core.term or known.leads


async def test_a_closed_node_leaves_nobody_waiting(tmp_path):
    Journal.create(tmp_path / "1", CLUSTER, 1).close()  # it belongs to nobody, so nothing ever happens to it
    journal, recovered = Journal.open(tmp_path / "1")
    node = Consensus(journal, recovered, Words(), lambda _: None, OPTIONS)
    await node.start()
    ended = []

    async def expect_end(wait) -> None:
        with pytest.raises(NotLeadingError):
            await wait
        ended.append(wait)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_end, node.wait_applied(1))
            nursery.start_soon(expect_end, node.role_after(node.role))
            await trio.testing.wait_all_tasks_blocked()
            await node.close()
        await expect_end(node.wait_applied(1))
    assert len(ended) == 3


async def test_so_many_wait_for_a_majority_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(consensus_module, "MAX_WAITING", 8)
    async with nodes_of(tmp_path) as nodes:
        await nodes.propose(b"first")
        old = await nodes.leader()
        nodes.cut.add(old.core.node_id)
        refused = []

        async def ask(question) -> None:
            try:
                await question
            except (NotLeadingError, BusyError) as error:
                refused.append(type(error))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask, old.propose(b"lost"))
                nursery.start_soon(ask, old.read_index())
        assert refused.count(BusyError) == 4
        assert refused.count(NotLeadingError) == 16
        nodes.cut.clear()
        await nodes.propose(b"second")
        assert await nodes.agree() == [b"first", b"second"]
