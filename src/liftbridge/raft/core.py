"""A node of the consensus: messages, ticks and proposals in; what to store, send and apply out.

Raft (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", 2014, and Ongaro's thesis),
in the shape of etcd's: the core does nothing itself. The caller feeds `tick`, `step`, `propose`, takes a
`Ready` and does what it says, and reports with `persisted` what is on the disk. Storing may take its time:
more readies can be taken meanwhile, and a leader's entries go to followers while its own disk works on them.

No clock, no randomness, no input or output: time is ticks, chance is the `jitter` argument.

Invariants, each of them tested by name:

- A message that says more than the disk does waits for the disk: a vote, a term that is new, an entry that is
  acknowledged. A node counts its own vote and its own entries only from there on.
- In a term a node votes once. It never votes for a log that is older than its own.
- A leader never changes or removes entries of its own log; a follower removes them only from the first that
  differs from the leader's, and never one that is committed.
- An entry is committed when a majority has it on the disk and it is of the leader's own term; all before it
  are too.
- A follower takes the commit index over only as far as the message proves that the logs are the same.
- What is applied is committed and on this node's own disk.
- Members change one at a time, after an entry of the leader's own term was committed.

Here is what all nodes do, and what followers and candidates do; what a leader does is in `leader.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from liftbridge.raft import quorum
from liftbridge.raft.entries import Log
from liftbridge.raft.incoming import Incoming
from liftbridge.raft.invariant import InvariantError
from liftbridge.raft.leader import Change, Leadership
from liftbridge.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Members,
    Message,
    NodeId,
    Removed,
    Snapshot,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from liftbridge.raft.options import Options
from liftbridge.raft.ready import Handed, Ready, Refusal, Role, Stored


class Raft:
    """One node.

    Attributes:
        node_id: its id.
        incarnation: number of this run of it.
        options: its bounds and times.
        role: what it is in its term.
        leader: who leads in its term, None when unknown.
        snapshot_too_large: bytes of a snapshot that a leader offers and this node does not take, so that it
            stays behind; 0 for none.
        log: its log; to be read only.
        sequence: number of the last message to a follower.
    """

    def __init__(
        self,
        node_id: NodeId,
        incarnation: int,
        stored: Stored,
        options: Options,
        jitter: int,
        applied: int = 0,
    ) -> None:
        """Begin as a follower with what storage has.

        Arguments:
            node_id: of the storage.
            incarnation: drawn at random for this run.
            stored: what storage has.
            options: bounds and times.
            jitter: any number, for the first time-out.
            applied: index of the newest entry that the state machine has, when it has more than the snapshot.
        """
        assert node_id > 0
        self.node_id = node_id
        self.incarnation = incarnation
        self.options = options
        self.role = Role.FOLLOWER
        self.leader: NodeId | None = None
        self.snapshot_too_large = 0
        self._removed_at = -1
        snapshot = stored.snapshot
        self.log = Log(None if snapshot is None else snapshot.meta, stored.entries)
        self._snapshot = snapshot
        self._hard = stored.hard_state
        if self._hard.term < self.log.last_term:
            raise InvariantError(f"the disk has term {self._hard.term} and an entry of {self.log.last_term}")
        # What has been handed out to be stored, and what is known to be on the disk.
        self._hard_handed = self._hard_persisted = self._hard
        self._entries_handed = self.log.last_index
        self._pending: list[Handed] = []
        self._token = 0
        self._applied = max(self.log.base_index, applied)  # handed out to be applied
        self.log.commit = max(self.log.commit, applied)
        if self.log.members.voters == {node_id}:
            # What the disk of the only voter has, a majority has.
            self.log.commit = self.log.last_index
        self._installing: Snapshot | None = None
        self._install_handed = True
        self._incoming = Incoming()
        self._messages: list[Message] = []
        self._later: list[Message] = []
        self._reads: list[tuple[object, int]] = []
        self._unanswered: list[object] = []
        self._elapsed = 0
        self._timeout = 0
        self._jitter = jitter
        self._ballot = 0
        self.sequence = 0
        self._granted: set[NodeId] = set()
        self._refused: set[NodeId] = set()
        self._lead: Leadership | None = None
        self._reset_timer()

    # -- what is asked ---------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """The term it is in."""
        return self._hard.term

    @property
    def vote(self) -> NodeId | None:
        """Whom it has voted for in this term."""
        return self._hard.vote

    @property
    def commit(self) -> int:
        """Index of the newest entry known to be committed."""
        return self.log.commit

    @property
    def members(self) -> Members:
        """Who the members are, by the newest entry that says so."""
        return self.log.members

    @property
    def removed(self) -> bool:
        """Whether a leader has said that this node is no member any more, and nothing newer says it is."""
        return self._removed_at >= self.log.members_index

    @property
    def is_leader(self) -> bool:
        """Whether it leads."""
        return self.role is Role.LEADER

    @property
    def leads_durably(self) -> bool:
        """Whether it leads and has committed an entry of its term: it knows of all that is committed."""
        return self._lead is not None and self._lead.established

    @property
    def leadership(self) -> Leadership | None:
        """What a leader knows; to be read only."""
        return self._lead

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest one that followers can be sent."""
        return self._snapshot

    # -- what happens ----------------------------------------------------------------------------------

    def tick(self, jitter: int) -> None:
        """Time goes on. `jitter`: any number at random, for time-outs that are drawn from now on."""
        self._jitter = jitter
        self._elapsed += 1
        if self._lead is not None:
            self._lead.tick()
            if self._lead.lost:
                self._follow(self.term, None)
        elif self._elapsed >= self._timeout:
            self._reset_timer()
            self.leader = None  # or who may not campaign would protect it for ever
            if self._may_campaign:
                self._campaign(pre=True)

    def campaign(self) -> None:
        """Try to become leader now: for the only voter there is, and for tests."""
        if self._lead is None and self._may_campaign:
            self._campaign(pre=True)

    def step(self, message: Message) -> None:
        """A message of another node has arrived; one that is not for this node is ignored."""
        if message.target != self.node_id or message.source == self.node_id:
            return
        if isinstance(message, VoteRequest):
            self._on_vote_request(message)
            return
        if message.term > self.term:
            self._follow(message.term, None)
        if isinstance(message, Append | SnapshotChunk):
            self._on_leader(message)
        elif isinstance(message, Removed):
            self._on_removed(message)
        elif message.term != self.term:
            return
        elif isinstance(message, VoteReply):
            self._on_vote_reply(message)
        elif isinstance(message, AppendReply | SnapshotReply):
            if self._lead is not None and message.to_incarnation == self.incarnation:
                self._lead.on_reply(message)
                self._after_leading()
        elif isinstance(message, TimeoutNow) and self._may_campaign and self._lead is None:
            self._reset_timer()
            self._campaign(pre=False, forced=True)

    def propose(self, data: Iterable[bytes]) -> int | None:
        """Append commands for the state machine.

        Returns the index of the first; None when this node does not lead, or is handing leadership over.
        """
        if self._lead is None or self._lead.successor is not None:
            return None
        first = self.log.last_index + 1
        self._lead.append((EntryKind.COMMAND, each) for each in data)
        return first

    def add_learner(self, node: NodeId) -> int | Refusal:
        """Let a node have the log. Returns the index of the entry, or why not."""
        if not 0 < node < 1 << 64:
            raise ValueError(f"{node} is not the id of a node: a number from 1 to 2**64 - 1")
        return self._change_members(lambda lead: lead.with_learner(node))

    def promote(self, node: NodeId) -> int | Refusal:
        """Give a learner a vote. Returns the index of the entry, or why not."""
        return self._change_members(lambda lead: lead.with_voter(node))

    def demote(self, node: NodeId) -> int | Refusal:
        """Make a voter a learner. Returns the index of the entry, or why not."""
        return self._change_members(lambda lead: lead.demoted(node))

    def remove(self, node: NodeId) -> int | Refusal:
        """Remove a member. Returns the index of the entry, or why not."""
        return self._change_members(lambda lead: lead.without(node))

    def transfer(self, node: NodeId) -> bool:
        """Hand leadership to a voter as soon as it has everything; whether that was begun.

        Proposals are refused until it leads, or an election time-out has passed.
        """
        return self._lead is not None and self._lead.transfer(node)

    def read_index(self, context: object) -> bool:
        """Ask when what is applied here is at least as new as this moment; `Ready.reads` has the answer.

        Returns whether this node can tell: only a leader that has committed an entry of its term can, for
        `Options.max_reads` at a time. When it stops leading, the context is in `Ready.unanswered`.
        """
        if self._lead is None or not self._lead.read(context):
            return False
        self._after_leading()
        return True

    def compact(self, snapshot: Snapshot) -> None:
        """The state machine's state is on the disk; entries up to there may be forgotten.

        One that a leader's snapshot has overtaken meanwhile is of no use, and ignored. Raises InvariantError
        when it is not the state after an entry of the log that is applied.
        """
        index, term = snapshot.meta.index, snapshot.meta.term
        if index < self.log.base_index:
            return
        if index > self._applied or self.log.term_at(index) != term:
            raise InvariantError(f"a snapshot of entry {index} of term {term}, which is not what was applied")
        self._snapshot = snapshot
        self.log.forget(snapshot.meta.index - self.options.retained_entries)

    # -- what is to be done ----------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        """Whether `ready` has anything to say."""
        return bool(
            self._messages
            or self._later
            or self._reads
            or self._unanswered
            or self._hard != self._hard_handed
            or self._entries_handed < self.log.last_index
            or not self._install_handed
            or self._applied < self._applicable
        )

    def ready(self) -> Ready:
        """What is to be done now. Every token has to come back through `persisted`, in order."""
        self._token += 1
        hard = None if self._hard == self._hard_handed else self._hard
        snapshot = None if self._install_handed else self._installing
        entries = self.log.after(max(self._entries_handed, self.log.base_index))
        self._pending.append(Handed(self._token, self._hard, self.log.last_index, snapshot))
        self._hard_handed, self._entries_handed, self._install_handed = self._hard, self.log.last_index, True
        committed: Sequence[Entry] = ()
        if self._applied < self._applicable:
            committed = self.log.after(self._applied, self._applicable - self._applied)
            self._applied = self._applicable
        ready = Ready(
            token=self._token,
            messages=self._messages,
            snapshot=snapshot,
            hard_state=hard,
            entries=entries,
            later=self._later,
            committed=committed,
            reads=self._reads,
            unanswered=self._unanswered,
        )
        self._messages, self._later, self._reads, self._unanswered = [], [], [], []
        return ready

    def persisted(self, token: int) -> None:
        """All that the `Ready` with this token asked to store is on the disk.

        Raises InvariantError for a token out of turn.
        """
        if not self._pending or self._pending[0].token != token:
            raise InvariantError(f"ready {token} is reported as stored, out of turn")
        handed = self._pending.pop(0)
        hard, snapshot = handed.hard, handed.snapshot
        self._hard_persisted = hard
        if snapshot is not None and self._installing is snapshot:
            self._installing = None
            self._snapshot = snapshot
            self._applied = snapshot.meta.index
            self.log.persisted = max(self.log.persisted, snapshot.meta.index)
        if self._installing is None:
            self.log.persisted = max(self.log.persisted, handed.last)
        if self.role is Role.CANDIDATE and hard == self._hard:
            self._count_vote(self.node_id, granted=True)
        if self._lead is not None:
            self._lead.own_progress()
            self._after_leading()

    @property
    def _applicable(self) -> int:
        """Up to where entries may be applied."""
        return self._applied if self._installing is not None else min(self.log.commit, self.log.persisted)

    # -- elections -------------------------------------------------------------------------------------

    @property
    def _may_campaign(self) -> bool:
        # Who takes its own vote away is a voter until that is committed: it may be the only one that has it.
        log = self.log
        votes = self.node_id in log.members.voters or self.node_id in log.members_before.voters
        return votes and not self.removed and self._installing is None

    def _campaign(self, *, pre: bool, forced: bool = False) -> None:
        """Ask for votes: whether they would be given, or for themselves in a new term."""
        assert self._lead is None
        self._ballot += 1
        self._granted, self._refused = set(), set()
        self.leader = None
        if pre:
            self.role = Role.PRE_CANDIDATE
        else:
            self.role = Role.CANDIDATE
            self._hard = HardState(self.term + 1, self.node_id)
        for node in sorted(self.log.members.voters - {self.node_id}):
            self._later.append(
                VoteRequest(
                    *self.header(node),
                    pre=pre,
                    last_index=self.log.last_index,
                    last_term=self.log.last_term,
                    ballot=self._ballot,
                    forced=forced,
                )
            )
        if pre:
            self._count_vote(self.node_id, granted=True)  # it binds nobody

    def _on_vote_request(self, request: VoteRequest) -> None:
        # A leader that is heard from is not given up because somebody else does not hear from it.
        if self._hears_leader and not request.forced:
            if self._lead is not None:
                self._lead.tell_if_removed(request.source)
            if request.term < self.term:
                self._refuse_vote(request)
            return
        if request.term > self.term:
            self._follow(request.term, None)
        newer = (request.last_term, request.last_index) >= (self.log.last_term, self.log.last_index)
        if request.pre:
            granted = newer and request.term == self.term
        else:
            granted = newer and request.term == self.term and self.vote in (None, request.source)
        if not granted:
            self._refuse_vote(request)
            return
        if not request.pre:
            self._hard = HardState(self.term, request.source)
            self._reset_timer()
        self._later.append(self._vote_reply(request, granted=True))

    def _refuse_vote(self, request: VoteRequest) -> None:
        self._later.append(self._vote_reply(request, granted=False))

    def _vote_reply(self, request: VoteRequest, *, granted: bool) -> VoteReply:
        return VoteReply(
            *self.header(request.source),
            pre=request.pre,
            granted=granted,
            to_incarnation=request.incarnation,
            ballot=request.ballot,
        )

    @property
    def _hears_leader(self) -> bool:
        if self._lead is not None:
            return True
        return self.leader is not None and self._elapsed < self.options.election_ticks

    def _on_vote_reply(self, reply: VoteReply) -> None:
        if (reply.to_incarnation, reply.ballot) != (self.incarnation, self._ballot):
            return
        if self.role is (Role.PRE_CANDIDATE if reply.pre else Role.CANDIDATE):
            self._count_vote(reply.source, granted=reply.granted)

    def _count_vote(self, node: NodeId, *, granted: bool) -> None:
        (self._granted if granted else self._refused).add(node)
        voters = self.log.members.voters
        if quorum.decided(voters, self._granted):
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(pre=False)
            elif self._hard_persisted == self._hard:
                self._become_leader()
        elif quorum.lost(voters, self._refused):
            self.role = Role.FOLLOWER

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE
        self.role, self.leader = Role.LEADER, self.node_id
        self._lead = Leadership(self)
        self._lead.begin()
        self._after_leading()

    def _follow(self, term: int, leader: NodeId | None) -> None:
        """Be a follower, in a term that is not older than the present one."""
        assert term >= self.term
        if term > self.term:
            self._hard = HardState(term, None)
        if self._lead is not None:
            self._unanswered += self._lead.reads
            self._lead = None
            self._reset_timer()
        self.role, self.leader = Role.FOLLOWER, leader

    def _after_leading(self) -> None:
        """A leader that is no voter any more, by an entry that is committed, has nothing to lead."""
        outside = self.node_id not in self.log.members.voters
        if self._lead is not None and outside and self.log.commit >= self.log.members_index:
            self._lead.leave()
            self._follow(self.term, None)

    def _reset_timer(self) -> None:
        self._elapsed = 0
        self._timeout = self.options.election_ticks + self._jitter % self.options.election_ticks

    # -- following -------------------------------------------------------------------------------------

    def _on_leader(self, message: Append | SnapshotChunk) -> None:
        """What only the leader of a term sends."""
        if message.term < self.term:
            # It hears of the new term, and stops leading.
            self._later.append(self._append_reply(message, accepted=False, match=0))
            return
        if self._lead is not None:
            raise InvariantError(f"two lead in term {self.term}: {self.node_id} and {message.source}")
        self._follow(message.term, message.source)
        self._reset_timer()
        if isinstance(message, Append):
            self._on_append(message)
        else:
            self._on_chunk(message)

    def _on_append(self, message: Append) -> None:
        log = self.log
        prev, entries = message.prev_index, message.entries
        if prev < log.base_index:
            # What is before the base is committed, so the leader has the same.
            entries = entries[log.base_index - prev :]
        elif log.term_at(prev) != message.prev_term:
            self._refuse_append(message)
            return
        match = prev + len(message.entries)
        for at, entry in enumerate(entries):
            if log.term_at(entry.index) != entry.term:
                self._replace_from(entry.index, entries[at:])
                break
        log.commit = max(log.commit, min(message.commit, match))
        self._incoming.clear_up_to(log.commit)
        reply = self._append_reply(message, accepted=True, match=match)
        self._reply_when_stored(reply, match)

    def _replace_from(self, index: int, entries: Sequence[Entry]) -> None:
        if index <= self.log.last_index:
            self.log.truncate(index)
            self._entries_handed = min(self._entries_handed, index - 1)
            for handed in self._pending:
                handed.last = min(handed.last, index - 1)
        self.log.append(entries)

    def _reply_when_stored(self, reply: AppendReply | SnapshotReply, match: int) -> None:
        stored = match <= self.log.persisted and self._hard == self._hard_persisted
        if stored and self._installing is None:
            self._messages.append(reply)
        else:
            self._later.append(reply)

    def _refuse_append(self, message: Append) -> None:
        self._later.append(self._append_reply(message, accepted=False, match=0))

    def _append_reply(self, message: Append | SnapshotChunk, *, accepted: bool, match: int) -> AppendReply:
        log = self.log
        prev = message.prev_index if isinstance(message, Append) else 0
        hint_index, hint_term = (0, 0) if accepted else log.hint_at(prev)
        return AppendReply(
            *self.header(message.source),
            to_incarnation=message.incarnation,
            sequence=message.sequence,
            accepted=accepted,
            match=match,
            prev_index=prev,
            hint_index=hint_index,
            hint_term=hint_term,
            last_index=log.last_index,
        )

    def _on_chunk(self, chunk: SnapshotChunk) -> None:
        meta = chunk.meta
        if meta.index <= self.log.commit:
            # What is committed here is in the snapshot as well, and is the leader's.
            self._reply_when_stored(self._chunk_reply(chunk, chunk.total, installed=True), meta.index)
            return
        if chunk.total > self.options.max_snapshot_bytes:
            self.snapshot_too_large = chunk.total
            return
        state = self._incoming.take(chunk)
        if state is None:
            self._later.append(self._chunk_reply(chunk, self._incoming.received, installed=False))
            return
        self.snapshot_too_large = 0
        self._install(Snapshot(meta, state))
        self._later.append(self._chunk_reply(chunk, chunk.total, installed=True))

    def _install(self, snapshot: Snapshot) -> None:
        self.log.restore(snapshot.meta)
        self._installing, self._install_handed = snapshot, False
        # What stays behind the snapshot is on the disk already, or is handed out as any entry is.
        self._entries_handed = max(min(self._entries_handed, self.log.last_index), snapshot.meta.index)

    def _chunk_reply(self, chunk: SnapshotChunk, received: int, *, installed: bool) -> SnapshotReply:
        return SnapshotReply(
            *self.header(chunk.source),
            to_incarnation=chunk.incarnation,
            sequence=chunk.sequence,
            index=chunk.meta.index,
            received=received,
            installed=installed,
        )

    def _on_removed(self, message: Removed) -> None:
        """A leader says that this node is no member by an entry that is committed, in whichever term.

        Who was never one waits to become one.
        """
        log = self.log
        if self.node_id in log.members.all or self.node_id in log.members_before.all:
            self._removed_at = max(self._removed_at, message.index)

    # -- help ------------------------------------------------------------------------------------------

    def header(self, node: NodeId) -> tuple[NodeId, NodeId, int, int]:
        """What every message to a node begins with."""
        return (self.node_id, node, self.term, self.incarnation)

    def next_sequence(self) -> int:
        """The number of the next message to a follower."""
        self.sequence += 1
        return self.sequence

    def send(self, message: Message) -> None:
        """Of the leading half: a message that need not wait for the disk."""
        if self._hard_persisted.term != self.term:
            raise InvariantError(f"a leader speaks in term {self.term}, which its disk does not have")
        self._messages.append(message)

    def answer_read(self, context: object, index: int) -> None:
        """Of the leading half: a read may be done once `index` is applied."""
        self._reads.append((context, index))

    def _change_members(self, change: Change) -> int | Refusal:
        if self._lead is None:
            return Refusal.NOT_LEADER
        result = self._lead.change_members(change)
        self._after_leading()
        return result
