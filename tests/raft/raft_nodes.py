"""Nodes of the consensus in one place: messages wait to be delivered, disks to be told, all in plain sight.

Nothing happens by chance. After each step the invariants of Raft are checked over all nodes; `trace` says
what happened, a line for each thing that somebody could see.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from liftbridge.raft import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Members,
    Message,
    Options,
    Raft,
    Ready,
    Removed,
    Role,
    Snapshot,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    Stored,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    decode_members,
    encode_members,
)

SMALL = Options(
    election_ticks=10,
    heartbeat_ticks=2,
    max_append_entries=8,
    max_append_bytes=64,
    max_in_flight=4,
    chunk_bytes=8,
    retained_entries=0,
    promotion_lag=2,
)
ENOUGH = 2000


@dataclass
class Disk:
    """What a node finds again."""

    hard: HardState = field(default_factory=HardState)
    snapshot: Snapshot | None = None
    entries: list[Entry] = field(default_factory=list)

    @property
    def base(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.meta.index

    def store(self, ready: Ready) -> None:
        if ready.snapshot is not None:
            self.begin_with(ready.snapshot)
        if ready.hard_state is not None:
            self.hard = ready.hard_state
        if ready.entries:
            del self.entries[ready.entries[0].index - self.base - 1 :]
            self.entries += ready.entries

    def begin_with(self, snapshot: Snapshot) -> None:
        behind = [entry for entry in self.entries if entry.index > snapshot.meta.index]
        same = [entry for entry in self.entries if entry.index == snapshot.meta.index]
        self.entries = behind if same and same[0].term == snapshot.meta.term else []
        self.snapshot = snapshot


@dataclass
class Node:
    """A node, its disk, and what it has applied."""

    name: int
    core: Raft
    disk: Disk
    waiting: list[Ready] = field(default_factory=list)  # for the disk
    applied: list[str] = field(default_factory=list)
    applied_index: int = 0
    checked_commit: int = 0
    reads: list[tuple[object, int]] = field(default_factory=list)


class Cluster:
    """Nodes by number.

    Attributes:
        nodes: those that run.
        messages: on their way, the oldest first.
        manual: whether disks wait for `persist`.
        trace: what has happened since it was last taken.
    """

    def __init__(self, options: Options = SMALL) -> None:
        self.options = options
        self.nodes: dict[int, Node] = {}
        self.down: dict[int, Disk] = {}
        self.messages: list[Message] = []
        self.manual = False
        self.cut: set[tuple[int, int]] = set()
        self.trace: list[str] = []
        # Each committed entry, and the term of who had it committed first.
        self._committed: dict[int, tuple[Entry, int]] = {}
        self._applied: dict[int, Entry] = {}
        self._leaders: dict[int, int] = {}
        self._votes: dict[tuple[int, int], int] = {}
        self._runs = 0

    # -- what a scenario does --------------------------------------------------------------------------

    def begin(
        self,
        voters: list[int],
        learners: list[int] | None = None,
        new: list[int] | None = None,
        stored: dict[int, list[int]] | None = None,
    ) -> None:
        """Start a cluster of these, and nodes beside it that belong to none yet.

        `stored` has the terms of the entries that a node's disk has behind the first.
        """
        members = encode_members(Members(frozenset(voters), frozenset(learners or ())))
        terms = stored or {}
        newest = max((max(each) for each in terms.values()), default=1)
        for name in [*voters, *(learners or ())]:
            entries = [Entry(1, 1, EntryKind.MEMBERS, members)]
            for index, term in enumerate(terms.get(name, ()), 2):
                entries.append(Entry(index, term, EntryKind.COMMAND, f"{index}.{term}".encode()))
            self._start(name, Disk(HardState(newest), entries=entries))
        for name in new or ():
            self._start(name, Disk())

    def crash(self, name: int) -> None:
        """End a node: what its disk has not finished has not happened."""
        self.down[name] = self.nodes.pop(name).disk

    def start(self, name: int) -> None:
        """Start it again."""
        self._start(name, self.down.pop(name))

    def tick(self, name: int, count: int = 1) -> None:
        """Let time go on for a node."""
        for _ in range(count):
            self.nodes[name].core.tick(name)
            self.after(name)

    def after(self, name: int) -> None:
        """Take what a core wants done, after something was asked of it."""
        node = self.nodes[name]
        for _ in range(ENOUGH):
            if not node.core.has_ready:
                break
            ready = node.core.ready()
            self._send(ready.messages)
            for entry in ready.committed:
                self._apply(node, entry)
            for read in ready.reads:
                node.reads.append(read)
                self.trace.append(f"{name}: read {read[0]} at {read[1]}")
            self.trace += [f"{name}: no answer to read {context}" for context in ready.unanswered]
            node.waiting.append(ready)
            if not self.manual or not (ready.stores or len(node.waiting) > 1):
                self._finish(name)
        else:
            raise AssertionError(f"{name} wants something for ever")
        self.check()

    def persist(self, name: int, count: int | None = None) -> None:
        """Let the disk of a node finish what it was asked for."""
        self._finish(name, count)
        self.after(name)

    def _finish(self, name: int, count: int | None = None) -> None:
        node = self.nodes[name]
        for _ in range(len(node.waiting) if count is None else count):
            ready = node.waiting.pop(0)
            node.disk.store(ready)
            if ready.stores:
                self.trace.append(f"{name}: stores {_stored(ready)}")
            if ready.snapshot is not None:
                _restore(node, ready.snapshot)
            node.core.persisted(ready.token)
            self._send(ready.later)

    def deliver(self, index: int = 0) -> None:
        """Deliver a message."""
        message = self.messages.pop(index)
        lost = message.target not in self.nodes or (message.source, message.target) in self.cut
        self.trace.append(("lost: " if lost else "") + describe(message))
        if not lost:
            node = self.nodes[message.target]
            node.core.step(message)
            self.after(message.target)

    def settle(self) -> None:
        """Deliver everything and what follows from it."""
        for _ in range(ENOUGH):
            if not self.messages:
                return
            self.deliver()
        raise AssertionError(f"after {ENOUGH} messages there are more: it does not end")

    def compact(self, name: int) -> None:
        """Have a node take a snapshot of what it has applied."""
        node = self.nodes[name]
        index = node.applied_index
        term = node.core.log.term_at(index)
        assert term is not None
        meta = SnapshotMeta(index, term, node.core.log.members_at(index))
        snapshot = Snapshot(meta, "|".join(node.applied).encode())
        node.disk.begin_with(snapshot)
        node.core.compact(snapshot)

    # -- what holds ------------------------------------------------------------------------------------

    def check(self) -> None:
        """The properties of figure 3 of the paper, and the rules of commitment."""
        for node in self.nodes.values():
            self._check_commit(node)
        for name, node in self.nodes.items():
            core = node.core
            if core.role is Role.LEADER:
                known = self._leaders.setdefault(core.term, name)
                assert known == name, f"election safety: {known} and {name} lead in term {core.term}"
                for index, (entry, committed_in) in self._committed.items():
                    held = index < core.log.base_index or core.log.term_at(index) == entry.term
                    text = f"leader completeness: {name} lacks entry {index} in term {core.term}"
                    assert held or committed_in >= core.term, text
        names = list(self.nodes)
        for one in names:
            for other in names:
                if one < other:
                    self._check_matching(self.nodes[one].core, self.nodes[other].core)

    def _check_commit(self, node: Node) -> None:
        core, seen = node.core, node.checked_commit
        assert core.commit >= seen, f"{node.name}: what is committed goes back from {seen} to {core.commit}"
        assert core.commit <= core.log.last_index, f"{node.name}: commits {core.commit}, which it lacks"
        if core.is_leader and core.commit > seen:
            term = core.log.term_at(core.commit)
            assert term == core.term, f"{node.name} commits an entry of term {term} in term {core.term}"
        for entry in core.log.after(
            max(seen, core.log.base_index), core.commit - max(seen, core.log.base_index)
        ):
            known, _ = self._committed.setdefault(entry.index, (entry, core.term))
            assert known == entry, f"{known} and {entry} are committed"
        node.checked_commit = core.commit

    def _check_matching(self, one: Raft, other: Raft) -> None:
        first = max(one.log.base_index, other.log.base_index) + 1
        last = min(one.log.last_index, other.log.last_index)
        differs = False
        for index in range(first, last + 1):
            if one.log.term_at(index) != other.log.term_at(index):
                differs = True
            else:
                assert not differs, f"log matching: the same term at {index}, and not before"
                assert one.log.after(index - 1, 1) == other.log.after(index - 1, 1), (
                    f"log matching at {index}"
                )

    def _apply(self, node: Node, entry: Entry) -> None:
        chosen = self._applied.setdefault(entry.index, entry)
        assert chosen == entry, f"state machine safety at {entry.index}: {chosen} and {entry}"
        on_disk = node.disk.base >= entry.index or entry in node.disk.entries
        assert on_disk, f"{node.name} applies {entry.index}, which is not on its disk"
        assert entry.index == node.applied_index + 1
        node.applied_index = entry.index
        if entry.kind is EntryKind.COMMAND:
            node.applied.append(entry.data.decode())
            self.trace.append(f"{node.name}: applies {entry.data.decode()}")
        elif entry.kind is EntryKind.MEMBERS:
            self.trace.append(f"{node.name}: applies {members(decode_members(entry.data))}")

    def _send(self, messages) -> None:
        for message in messages:
            disk = self.nodes[message.source].disk
            assert message.term <= max(disk.hard.term, 0), f"not on the disk: the term of {describe(message)}"
            if isinstance(message, VoteReply) and message.granted and not message.pre:
                voted = self._votes.setdefault((message.term, message.source), message.target)
                assert voted == message.target, f"{message.source} votes twice in term {message.term}"
                known = disk.hard.term > message.term or disk.hard == HardState(message.term, message.target)
                assert known, f"not on the disk: {describe(message)}"
            if isinstance(message, AppendReply) and message.accepted:
                has = message.match <= disk.base + len(disk.entries)
                assert has, f"not on the disk: {describe(message)}"
            self.messages.append(message)

    def _start(self, name: int, disk: Disk) -> None:
        self._runs += 1
        stored = Stored(disk.hard, disk.snapshot, tuple(disk.entries))
        core = Raft(name, 100 * self._runs + name, stored, self.options, name)
        node = Node(name, core, disk)
        if disk.snapshot is not None:
            _restore(node, disk.snapshot)
        self.nodes[name] = node
        self.after(name)


def describe(message: Message) -> str:
    """A message as a line."""
    head = f"{message.source}>{message.target} t{message.term} "
    if isinstance(message, VoteRequest):
        kind = "pre-vote?" if message.pre else "vote!" if message.forced else "vote?"
        return head + f"{kind} last {message.last_index}/{message.last_term}"
    if isinstance(message, VoteReply):
        return head + ("pre-vote " if message.pre else "vote ") + ("yes" if message.granted else "no")
    if isinstance(message, Append):
        entries = " ".join(f"{entry.index}/{entry.term}" for entry in message.entries)
        return (
            head
            + f"append after {message.prev_index}/{message.prev_term} [{entries}] commit {message.commit}"
        )
    if isinstance(message, AppendReply):
        if message.accepted:
            return head + f"has {message.match}"
        hint = f"{message.hint_index}/{message.hint_term} last {message.last_index}"
        return head + f"differs at {message.prev_index}, hint {hint}"
    if isinstance(message, SnapshotChunk):
        end = message.offset + len(message.data)
        return (
            head
            + f"snapshot {message.meta.index}/{message.meta.term} {message.offset}-{end} of {message.total}"
        )
    if isinstance(message, SnapshotReply):
        done = "installed" if message.installed else f"to {message.received}"
        return head + f"snapshot {message.index} {done}"
    if isinstance(message, TimeoutNow):
        return head + "campaign now"
    assert isinstance(message, Removed)
    return head + f"removed by {message.index}"


def members(found: Members) -> str:
    """Members as text."""
    learners = f" learning {sorted(found.learners)}" if found.learners else ""
    return f"members {sorted(found.voters)}{learners}"


def status(node: Node) -> str:
    """A node as a line."""
    core = node.core
    vote = "nobody" if core.vote is None else core.vote
    return (
        f"{node.name}: {core.role.value} term {core.term} vote {vote} leader {core.leader} "
        f"log {core.log.base_index}..{core.log.last_index} commit {core.commit} {members(core.members)}"
    )


def _restore(node: Node, snapshot: Snapshot) -> None:
    node.applied = snapshot.state.decode().split("|") if snapshot.state else []
    node.applied_index = snapshot.meta.index


def _stored(ready: Ready) -> str:
    parts = []
    if ready.snapshot is not None:
        parts.append(f"snapshot {ready.snapshot.meta.index}")
    if ready.hard_state is not None:
        parts.append(f"term {ready.hard_state.term} vote {ready.hard_state.vote or 'nobody'}")
    if ready.entries:
        parts.append(" ".join(f"{entry.index}/{entry.term}" for entry in ready.entries))
    return ", ".join(parts)
