"""What must hold in every run of consensus, checked at each step that could break it.

Two kinds. The properties of the Raft paper, over all nodes and all lives of them: one leader in a term,
logs that match, leaders that have everything committed, the same command at an index everywhere, nothing
acked lost. A bug shows there only when several things go wrong together. So each claim that a node makes is
also held against what it is based on: a vote or an ack against the disk of the node that sends it, a commit
index against the disks of a majority, what a leader believes of a follower against what that follower has
said in this term. There a bug shows the first time it acts.

The checks know everything, also what no node knows: all disks, all messages.

Invariant: nothing here changes what a node does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from liftbridge.raft import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Members,
    Message,
    NodeId,
    Raft,
    Ready,
    Role,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    decode_members,
)
from liftbridge.sim.raft_machine import Machine
from liftbridge.sim.raft_watch import Watch
from liftbridge.sim.world import Violation, World

if TYPE_CHECKING:
    from liftbridge.sim.raft_host import Host
    from liftbridge.sim.raft_storage import Storage


class Before(NamedTuple):
    """A core before a message was stepped."""

    term: int
    vote: NodeId | None
    commit: int
    last: tuple[int, int]
    progress: tuple[int, int, bool] | None
    leads: bool
    heard: bool
    """Whether it has heard its leader lately."""


class Checks(Watch):
    """Everything that was ever claimed in a run, and whether it is consistent.

    Attributes:
        power: whether power may be lost in this run.
        committed_to: greatest index that is committed.
        acked: what clients were told: client and number to the index.
        floor: greatest index that a client was told of.
        reads: that were answered.
    """

    def __init__(self, world: World, *, power: bool) -> None:
        super().__init__(power=power)
        self.committed_to = 0
        self.acked: dict[tuple[int, int], int] = {}
        self.floor = 0
        self.reads = 0
        self._world = world
        self._entries: dict[tuple[int, int], tuple[EntryKind, bytes, int]] = {}
        self._committed: dict[int, int] = {}  # index: term
        self._committed_in: dict[int, int] = {}  # index: term of the leader that committed it
        self._chains: dict[int, int] = {}  # index: chain of the machine's state after it
        self._leaders: dict[int, NodeId] = {}  # by term
        self._starts: dict[int, int] = {}  # term: index of the leader's first entry
        self._led_since: dict[int, int] = {}  # term: tick of the leader's process
        self._ballots: dict[int, dict[NodeId, NodeId]] = {}  # term: voter: whom its disk says it voted for
        self._had: dict[NodeId, set[tuple[int, int]]] = {}  # entries that a node's disk has had
        self._storages: dict[NodeId, Storage] = {}
        self._answers: dict[tuple[int, NodeId, NodeId], int] = {}  # term, leader, follower: newest answered
        self._said: dict[tuple[int, NodeId], int] = {}  # term and follower: what it has acked
        self._seen: dict[NodeId, tuple[int, int, bool]] = {}  # term, commit, leads; of a process
        self._quiet_members: dict[NodeId, int] = {}  # node: tick since which the leader has it as a voter

    def fail(self, what: str) -> None:
        """Raises Violation."""
        raise Violation(what)

    # ---- the world looked at from above ----

    def bootstrap(self, index: int, term: int, chain: int) -> None:
        """All nodes begin with a state of that entry."""
        self.committed_to = index
        self._committed[index], self._chains[index] = term, chain
        self._entries[index, term] = (EntryKind.EMPTY, b"", 0)

    # ---- a process ----

    def started(self, host: Host) -> None:
        """A core begins: with what its disk has, nothing less."""
        core, storage = host.core, host.storage
        assert core is not None and storage is not None and host.node is not None
        if (core.term, core.vote) != (storage.durable.hard.term, storage.durable.hard.vote):
            self.fail(f"{host} begins in term {core.term}, its disk says {storage.durable.hard}")
        self._seen[host.node] = (core.term, core.log.base_index, False)
        self.settled(host, core)
        if core.commit > self.committed_to:
            if core.members.voters != {host.node}:
                self.fail(f"{host} begins with a commit of {core.commit}, committed is {self.committed_to}")
            self._agree(core)
        self.look(host, core)

    def durable(self, node: NodeId, storage: Storage, records: Sequence[Any]) -> None:
        """A disk has more than before, by these records; of those entries some may be gone again."""
        image = storage.durable
        self._storages[node] = storage
        for hard in (*(each for each in records if isinstance(each, HardState)), image.hard):
            if hard.vote is None:
                continue
            first = self._ballots.setdefault(hard.term, {}).setdefault(node, hard.vote)
            if first != hard.vote:
                self.fail(f"node {node} votes for {hard.vote} in term {hard.term}, after one for {first}")
        had = self._had.setdefault(node, set())
        had.update((each.index, each.term) for each in records if isinstance(each, Entry))
        had.add((image.base_index, image.base_term))
        if not records:  # a start: it may be more than any sync of an earlier life has reported
            had.update(enumerate(image.terms, image.base_index + 1))

    def ticked(self, host: Host, core: Raft) -> None:
        """After a tick: a leader that a majority does not answer must have stepped down."""
        if not core.is_leader:
            return
        voters = core.members.voters
        if host.node not in voters and core.commit >= core.log.members_index:
            self.fail(f"{host} leads in term {core.term}, and its removal is committed")
        since = self._led_since.get(core.term, host.last_tick)
        patience = 2 * core.options.election_ticks
        heard = 0
        for voter in voters:
            last = max(host.heard.get(voter, 0), since, self._quiet_members.get(voter, 0))
            heard += voter == host.node or host.last_tick - last <= patience
        if heard < len(voters) // 2 + 1:
            self.fail(
                f"{host} leads in term {core.term}, and no majority has been heard of for {patience} ticks"
            )

    # ---- a message ----

    def before(self, host: Host, core: Raft, message: Message) -> Before:
        """What `stepped` compares with."""
        progress = None
        leadership = core.leadership
        if (
            leadership is not None
            and isinstance(message, AppendReply | SnapshotReply)
            and (message.term, message.to_incarnation) == (core.term, core.incarnation)
        ):
            key = (core.term, core.node_id, message.source)
            self._answers[key] = max(self._answers.get(key, 0), message.sequence)
        if leadership is not None and (found := leadership.progress.get(message.source)) is not None:
            progress = (found.match, found.next, found.active)
        last = (core.log.last_term, core.log.last_index)
        heard = core.leader is not None and host.last_tick - host.led < core.options.election_ticks
        return Before(core.term, core.vote, core.commit, last, progress, core.is_leader, heard)

    def stepped(self, host: Host, core: Raft, message: Message, before: Before) -> None:
        """What a message has changed must follow from what it says."""
        if core.term < before.term:
            self.fail(f"{host} goes back from term {before.term} to {core.term}")
        if message.target != host.node:
            if core.term != before.term or core.commit != before.commit:
                self.fail(f"{host} obeys a message for node {message.target}")
            return
        if isinstance(message, VoteRequest):
            self._voted(host, core, message, before)
            return
        if isinstance(message, Append | SnapshotChunk) and message.term == core.term:
            host.led = host.last_tick
        if core.term < message.term:
            self.fail(f"{host} stays in term {core.term} after a message of term {message.term}")
        if (
            core.term > before.term
            and message.term != core.term
            and not isinstance(message, VoteReply | TimeoutNow)
        ):
            self.fail(f"{host} goes to term {core.term} for a message of term {message.term}")
        if isinstance(message, AppendReply | SnapshotReply):
            self._replied(host, core, message, before)
        elif core.commit > before.commit:
            self._followed(host, core, message)
        elif isinstance(message, Append) and message.term == core.term and core.is_leader:
            self.fail(f"{host} and node {message.source} lead in term {core.term}")

    def _voted(self, host: Host, core: Raft, request: VoteRequest, before: Before) -> None:
        voted = core.vote is not None and (core.term, core.vote) != (before.term, before.vote)
        if not voted or core.vote == host.node:
            return
        if request.pre or core.vote != request.source or core.term != request.term:
            self.fail(f"{host} votes for {core.vote} in term {core.term} at {request}")
        if before.heard and not request.forced:
            self.fail(f"{host} hears its leader and votes for node {request.source} in term {core.term}")
        if core.term == before.term and before.vote is not None:
            self.fail(f"{host} votes twice in term {core.term}, for {before.vote} and {core.vote}")
        if (request.last_term, request.last_index) < before.last:
            self.fail(f"{host} votes for an older log than its own {before.last}: {request}")

    def _replied(self, host: Host, core: Raft, reply: AppendReply | SnapshotReply, before: Before) -> None:
        leadership = core.leadership
        progress = None if leadership is None else leadership.progress.get(reply.source)
        if progress is None or not before.leads:
            return
        if progress.next <= progress.match:
            self.fail(f"{host} sends node {reply.source} what it has: {progress}")
        foreign = reply.to_incarnation != core.incarnation or reply.term != core.term
        if foreign and before.progress != (progress.match, progress.next, progress.active):
            self.fail(f"{host} believes a reply to another life or term of it: {reply}")
        if before.progress is not None and progress.match < before.progress[0]:
            self.fail(f"{host} believes less of node {reply.source} than before")
        said = self._said.get((core.term, reply.source), 0)
        if progress.match > said:
            self.fail(
                f"{host} believes node {reply.source} to have {progress.match} in term {core.term}, "
                f"it has said {said}"
            )

    def _followed(self, host: Host, core: Raft, message: Message) -> None:
        """A commit index comes only from a message that proves that the log is the leader's up to there."""
        if isinstance(message, Append):
            proven = message.prev_index + len(message.entries)
        elif isinstance(message, SnapshotChunk):
            proven = message.meta.index
        else:
            proven = 0
        if core.commit > proven:
            self.fail(f"{host} commits {core.commit} at a message that proves {proven}: {message}")

    def sent(self, host: Host, message: Message) -> None:
        """A message leaves: it must say nothing that the disk of the sender does not say."""
        assert host.storage is not None
        disk = host.storage.durable
        if message.term > disk.hard.term:
            self.fail(f"{host} speaks in term {message.term}, its disk says {disk.hard.term}: {message}")
        if isinstance(message, VoteReply):
            ballots = self._ballots.get(message.term, {})
            if message.granted and not message.pre and ballots.get(message.source) != message.target:
                self.fail(f"{host} gives a vote that its disk does not: {message}, {disk.hard}")
        elif isinstance(message, AppendReply):
            if message.accepted:
                self._acks(host, message, message.match)
        elif isinstance(message, SnapshotReply):
            if message.installed:
                self._acks(host, message, message.index)
        elif isinstance(message, Append):
            self._leads(host, message)
            self._appends(host, message)
        elif isinstance(message, SnapshotChunk):
            self._leads(host, message)
            if self._committed.get(message.meta.index) != message.meta.term:
                self.fail(f"{host} sends a snapshot of what is not committed: {message.meta}")

    def _leads(self, host: Host, message: Message) -> None:
        if self._leaders.get(message.term) != host.node:
            self.fail(
                f"{host} leads in term {message.term}, as node {self._leaders.get(message.term)} does: "
                f"{message}"
            )

    def _acks(self, host: Host, message: AppendReply | SnapshotReply, index: int) -> None:
        """What is acked is on the disk, as the leader has it."""
        assert host.storage is not None and host.node is not None
        disk = host.storage.durable
        wanted = self._leader_term_at(message.term, index)
        if disk.hard.term == message.term:
            if index > disk.last_index:
                self.fail(f"{host} acks {index}, its disk ends at {disk.last_index}: {message}")
            term = disk.term_at(index)
            if index and None not in (term, wanted) and term != wanted:
                self.fail(f"{host} acks {index} with an entry of term {term}, the leader's is of {wanted}")
        elif index and wanted is not None and (index, wanted) not in self._had[host.node]:
            # It may have lost the entry to a newer leader since, but it must have had it.
            self.fail(f"{host} acks {index}, which its disk never had: {message}")
        key = (message.term, host.node)
        self._said[key] = max(self._said.get(key, 0), index)

    def _leader_term_at(self, term: int, index: int) -> int | None:
        """The term of the entry that the leader of a term has at an index, if it still runs."""
        storage = self._storages.get(self._leaders.get(term, 0))
        return None if storage is None or storage.view.hard.term != term else storage.view.term_at(index)

    def _appends(self, host: Host, message: Append) -> None:
        if message.commit > self.committed_to:
            self.fail(f"{host} says that {message.commit} is committed, which is {self.committed_to}")
        before = message.prev_term
        for index, entry in enumerate(message.entries, message.prev_index + 1):
            if entry.index != index or entry.term < before:
                self.fail(f"{host} sends entries out of order: {message}")
            before = entry.term

    # ---- what a core says ----

    def told(self, host: Host, core: Raft, ready: Ready) -> None:
        """Entries that are to be stored: the same everywhere, and following the same."""
        assert host.storage is not None
        view = host.storage.view
        entries = ready.entries
        if not entries:
            return
        first = entries[0]
        if first.index <= view.last_index and ready.snapshot is None:
            there = view.term_at(first.index)
            if there == first.term:
                self.fail(f"{host} truncates at {first.index}, where nothing conflicts")
            if there == self._committed.get(first.index):
                self.fail(f"{host} rewrites entry {first.index}, which is committed")
        before = core.log.term_at(first.index - 1)
        at, members = next(
            (known for known in reversed(view.members) if known[0] < first.index), (0, Members())
        )
        for entry in entries:
            known = self._entries.setdefault((entry.index, entry.term), (entry.kind, entry.data, before or 0))
            if known != (entry.kind, entry.data, before or 0) and before is not None:
                self.fail(
                    f"two entries {entry.index} of term {entry.term}: {known} and {entry} after term {before}"
                )
            before = entry.term
            if entry.kind is EntryKind.MEMBERS:
                new = decode_members(entry.data)
                if core.is_leader and entry.term == core.term:
                    self._changes(host, core, entry, at, members, new)
                at, members = entry.index, new

    def _changes(self, host: Host, core: Raft, entry: Entry, at: int, old: Members, new: Members) -> None:
        """A leader changes the members: one voter at a time, and only when it may."""
        commit = self._seen[host.node or 0][1]
        if at > commit:
            self.fail(f"{host} changes members at {entry.index}, and the change at {at} is not committed")
        if commit < self._starts.get(core.term, 0):
            self.fail(f"{host} changes members at {entry.index} before its term has committed anything")
        if len(old.voters ^ new.voters) > 1:
            self.fail(f"{host} changes more than one voter, {sorted(old.voters)} to {sorted(new.voters)}")
        for node in new.voters - old.voters:
            said = self._said.get((core.term, node), 0)
            if said + core.options.promotion_lag < entry.index - 1:
                self.fail(f"{host} gives node {node} a vote at {entry.index}, and it has {said}")
            self._quiet_members[node] = host.last_tick
        self._led_since[core.term] = host.last_tick  # another majority, from now on

    def look(self, host: Host, core: Raft) -> None:
        """After anything that may have changed a core."""
        node = core.node_id
        now = (core.term, core.commit, core.role is Role.LEADER)
        before = self._seen[node]
        if now == before:
            return
        self._seen[node] = now
        if now[2] and not (before[2] and before[0] == now[0]):
            self._elected(host, core)
        if core.commit != before[1]:
            if core.commit < before[1]:
                self.fail(f"{host} takes back a commit, from {before[1]} to {core.commit}")
            self._commits(host, core, before)

    def _elected(self, host: Host, core: Raft) -> None:
        term, node = core.term, core.node_id
        first = self._leaders.setdefault(term, node)
        self._world.note("leader", host.number, node, term)
        if first != node:
            self.fail(f"two leaders in term {term}: {first} and {node}")
        if term in self._starts:
            self.fail(f"{host} leads twice in term {term}")
        voters = core.members.voters
        votes = sum(self._ballots.get(term, {}).get(voter) == node for voter in voters)
        if votes < len(voters) // 2 + 1:
            self.fail(f"{host} leads in term {term} with {votes} votes of {len(voters)} on disks")
        log = core.log
        committed = self.committed_to
        while self._committed_in.get(committed, 0) >= term:  # by leaders that came later
            committed -= 1
        if log.base_index < committed and log.term_at(committed) != self._committed[committed]:
            self.fail(f"{host} leads in term {term} without entry {committed}, which is committed")
        newest = log.after(log.last_index - 1) if log.last_index > log.base_index else ()
        if not newest or newest[0].term != term or newest[0].kind is not EntryKind.EMPTY:
            self.fail(f"{host} leads in term {term} without an entry of it")
        self._starts[term] = log.last_index
        self._led_since[term] = host.last_tick
        self._quiet_members.clear()

    def _commits(self, host: Host, core: Raft, seen: tuple[int, int, bool]) -> None:
        before = seen[1]
        log, commit = core.log, core.commit
        term = log.term_at(commit)
        # One that commits its own removal has led until then.
        if (core.is_leader or seen == (core.term, before, True)) and commit > self.committed_to:
            if term != core.term:
                self.fail(f"{host} commits {commit} of term {term} in term {core.term} by counting")
            voters = core.members.voters
            having = sum((commit, term) in self._had.get(voter, ()) for voter in voters)
            if having < len(voters) // 2 + 1:
                self.fail(f"{host} commits {commit}, which {having} of {len(voters)} voters have on disk")
            self._agree(core)
        if commit > self.committed_to:
            self.fail(f"{host} commits {commit}, and {self.committed_to} is committed")
        for index in range(max(before, log.base_index) + 1, commit + 1):
            if log.term_at(index) != self._committed[index]:
                self.fail(
                    f"{host} commits {index} of term {log.term_at(index)}, "
                    f"committed is that of {self._committed[index]}"
                )

    def _agree(self, core: Raft) -> None:
        """What a core commits is committed."""
        for index in range(self.committed_to + 1, core.commit + 1):
            term = core.log.term_at(index)
            assert term is not None
            self._committed[index] = term
            self._committed_in[index] = core.term
        self.committed_to = core.commit

    def settled(self, host: Host, core: Raft) -> None:
        """When all that a core has said was handed to storage: they have the same log, members and hard
        state.
        """
        assert host.storage is not None
        view, log = host.storage.view, core.log
        if (log.last_index, log.last_term) != (view.last_index, view.last_term):
            self.fail(
                f"{host} has a log up to {log.last_index} of term {log.last_term}, "
                f"on its disk it ends with {view.last_index} of term {view.last_term}"
            )
        at = view.members[-1][0]
        # Behind a snapshot the entry itself is forgotten, here earlier than there.
        moved = at != log.members_index and min(at, log.members_index) > max(view.base_index, log.base_index)
        if moved or view.members[-1][1] != log.members:
            self.fail(f"{host} goes by {log.members} of {log.members_index}, its log says {view.members[-1]}")
        if (view.hard.term, view.hard.vote) != (core.term, core.vote):
            self.fail(f"{host} is in term {core.term} voting for {core.vote}, its disk gets {view.hard}")

    def applies(self, host: Host, core: Raft, entry: Entry) -> None:
        """An entry is about to be applied: in order, committed, on the own disk."""
        assert host.storage is not None
        if entry.index != host.machine.index + 1:
            self.fail(f"{host} applies {entry.index} after {host.machine.index}")
        if self._committed.get(entry.index) != entry.term:
            self.fail(f"{host} applies {entry}, committed is term {self._committed.get(entry.index)}")
        known = self._entries[entry.index, entry.term]
        if known[:2] != (entry.kind, entry.data):
            self.fail(f"{host} applies {entry}, others have {known}")
        disk = host.storage.durable
        if disk.base_index < entry.index and disk.term_at(entry.index) != entry.term:
            self.fail(f"{host} applies {entry.index}, which its disk does not have")

    def applied(self, host: Host) -> None:
        """A state machine has gone on: it is in the state that all others were in there."""
        machine = host.machine
        assert isinstance(machine, Machine)
        if self._chains.setdefault(machine.index, machine.chain) != machine.chain:
            self.fail(f"{host} has another state than others at {machine.index}")

    # ---- clients ----

    def ack(self, client: int, number: int, index: int) -> None:
        """A client was told that its command is at an index."""
        if index > self.committed_to:
            self.fail(f"command {client}:{number} was acked at {index}, committed is {self.committed_to}")
        self.acked.setdefault((client, number), index)
        self.floor = max(self.floor, index)

    def answered(self, host: Host, core: Raft, read: Any, index: int) -> None:
        """A linearizable read is answered by the state at an index."""
        if index < read.floor:
            self.fail(f"{host} lets a read see {index}, and {read.floor} was acked before it began")
        self.reads += 1
        voters = core.members.voters
        confirmed = sum(
            voter == host.node or self._answers.get((core.term, core.node_id, voter), 0) > read.sequence
            for voter in voters
        )
        if confirmed < len(voters) // 2 + 1:
            self.fail(f"{host} answers a read that {confirmed} of {len(voters)} voters have confirmed")

    def kept(self, host: Host) -> None:
        """At the end: a state has all that was acked."""
        assert isinstance(host.machine, Machine)
        for (client, number), index in self.acked.items():
            if host.machine.numbers.get(client, 0) < number:
                self.fail(f"command {client}:{number}, acked at {index}, is missing from {host}")
