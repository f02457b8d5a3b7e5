"""What a leader knows and does: who has how much of its log, what is committed, who the members are to be.

It exists as long as its node leads, and begins knowing nothing of the others. What it sends may go before its
own disk has the entries; its node counts like any other, by what it has on the disk.

Lost messages are found by what followers answer to the next one: each reply tells where the follower's log
ends.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from liftbridge.raft import quorum
from liftbridge.raft.invariant import InvariantError
from liftbridge.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Members,
    NodeId,
    Removed,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
)
from liftbridge.raft.progress import Mode, Progress
from liftbridge.raft.ready import Refusal
from liftbridge.raft.storedmembers import encode_members

if TYPE_CHECKING:
    from liftbridge.raft.core import Raft


@dataclass(slots=True)
class _Read:
    """A read that waits until a majority has answered something that was sent after it came."""

    context: object
    commit: int
    sequence: int
    answered: set[NodeId] = field(default_factory=set)


class Leadership:
    """The leading half of a node.

    Attributes:
        progress: what is known of each other member, and of those just removed.
        start: index of the first entry of its term.
        successor: whom leadership is being handed to, None for nobody.
        lost: whether too few members have answered for too long.
    """

    def __init__(self, core: Raft) -> None:
        self._core = core
        self._log = core.log
        self._options = core.options
        self.start = core.log.last_index + 1
        self.progress: dict[NodeId, Progress] = {}
        self.successor: NodeId | None = None
        self.lost = False
        self._transfer_ticks = 0
        self._ticks = 0
        self._reads: list[_Read] = []

    @property
    def established(self) -> bool:
        """Whether an entry of its term is committed."""
        return self._log.commit >= self.start

    def begin(self) -> None:
        """Tell everybody, with an entry that commits what earlier terms have left."""
        self.append([(EntryKind.EMPTY, b"")])

    def append(self, items: Iterable[tuple[EntryKind, bytes]]) -> None:
        """Add entries of its term to the log, and send them."""
        self._log.append(
            [
                Entry(index, self._core.term, kind, data)
                for index, (kind, data) in enumerate(items, self._log.last_index + 1)
            ]
        )
        self._know_members()
        self._send_all()

    def own_progress(self) -> None:
        """Its own disk has more than before."""
        self._advance_commit()

    # -- time ------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Time goes on: followers hear from it, and it looks whether they answer."""
        self._ticks += 1
        if self._ticks % self._options.heartbeat_ticks == 0:
            for node, progress in self.progress.items():
                self._heartbeat(node, progress)
        if self._ticks % self._options.election_ticks == 0:
            heard = {node for node, progress in self.progress.items() if progress.active}
            self.lost = not quorum.decided(self._log.members.voters, heard | {self._core.node_id})
            for progress in self.progress.values():
                progress.active = False
        if self.successor is not None:
            self._transfer_ticks += 1
            if self._transfer_ticks >= self._options.election_ticks:
                self.successor = None

    def _heartbeat(self, node: NodeId, progress: Progress) -> None:
        if progress.mode is Mode.PROBE:
            if self._log.term_at(progress.next - 1) is None:
                self._send(node, progress)
            else:
                # Without entries: who is not there need not be sent them time and again.
                self._send_append(node, progress, progress.next - 1, ())
            return
        self._tell(node, progress)
        if progress.mode is Mode.SNAPSHOT and progress.idle_heartbeats():
            progress.waiting = False
            self._send(node, progress)

    def _proven(self, progress: Progress) -> int:
        """A place where the follower's log is known to be this one, and that is still held; 0 always is."""
        return progress.match if self._log.term_at(progress.match) is not None else 0

    # -- sending ---------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        for node, progress in self.progress.items():
            self._send(node, progress)

    def _send(self, node: NodeId, progress: Progress) -> None:
        """Send what the follower lacks, as far as its mode and the bounds allow."""
        log, options = self._log, self._options
        if progress.mode is not Mode.SNAPSHOT and log.term_at(progress.next - 1) is None:
            assert self._core.snapshot is not None, "entries are gone that no snapshot covers"
            progress.send_snapshot(self._core.sequence + 1, self._core.snapshot)
        if progress.mode is Mode.SNAPSHOT:
            self._send_chunk(node, progress)
            return
        if progress.mode is Mode.PROBE:
            if not progress.waiting:
                progress.waiting = True
                entries = log.batch_after(
                    progress.next - 1, options.max_append_entries, options.max_append_bytes
                )
                self._send_append(node, progress, progress.next - 1, entries)
            return
        while progress.next <= log.last_index and self._has_room(progress):
            prev = progress.next - 1
            entries = log.batch_after(prev, options.max_append_entries, options.max_append_bytes)
            size = sum(len(entry.data) for entry in entries)
            progress.sent(self._send_append(node, progress, prev, entries), prev + len(entries), size)

    def _has_room(self, progress: Progress) -> bool:
        few = len(progress.in_flight) < self._options.max_in_flight
        return few and progress.in_flight_bytes < self._options.max_in_flight_bytes

    def _tell(self, node: NodeId, progress: Progress) -> None:
        """Let a follower hear from its leader, and what is committed of what it is known to have."""
        self._send_append(node, progress, self._proven(progress), ())

    def _send_append(self, node: NodeId, progress: Progress, prev: int, entries: tuple[Entry, ...]) -> int:
        prev_term = self._log.term_at(prev) if prev else 0
        assert prev_term is not None
        sequence = self._core.next_sequence()
        progress.told = min(self._log.commit, prev + len(entries))
        self._core.send(
            Append(
                *self._core.header(node),
                sequence=sequence,
                prev_index=prev,
                prev_term=prev_term,
                entries=entries,
                commit=self._log.commit,
            )
        )
        return sequence

    def _send_chunk(self, node: NodeId, progress: Progress) -> None:
        if progress.waiting:
            return
        assert progress.snapshot is not None
        state = progress.snapshot.state
        progress.waiting = True
        progress.chunk = self._core.next_sequence()
        self._core.send(
            SnapshotChunk(
                *self._core.header(node),
                sequence=progress.chunk,
                meta=progress.snapshot.meta,
                offset=progress.offset,
                total=len(state),
                checksum=zlib.crc32(state),
                data=state[progress.offset : progress.offset + self._options.chunk_bytes],
            )
        )

    def tell_commit(self) -> None:
        """Let followers know what is committed without waiting for the next entries."""
        for node, progress in self.progress.items():
            if progress.mode is Mode.REPLICATE and progress.told < min(self._log.commit, progress.match):
                self._tell(node, progress)

    def leave(self) -> None:
        """Tell followers what is committed, so that it leads no more; one may campaign at once."""
        self.tell_commit()
        for node in sorted(self._log.members.voters & self.progress.keys()):
            if self.progress[node].match == self._log.last_index:
                self._core.send(TimeoutNow(*self._core.header(node)))
                return

    # -- answers ---------------------------------------------------------------------------------------

    def on_reply(self, reply: AppendReply | SnapshotReply) -> None:
        """A follower has answered, in this term and to this run of the node."""
        progress = self.progress.get(reply.source)
        if progress is None:
            self.tell_if_removed(reply.source)
            return
        progress.active = progress.heard = True
        progress.answered = self._ticks
        self._answer_reads(reply)
        if isinstance(reply, SnapshotReply):
            self._on_chunk_reply(progress, reply)
        elif reply.accepted:
            self._on_accepted(progress, reply)
        else:
            self._on_refused(progress, reply)
        self._send(reply.source, progress)
        self._maybe_hand_over()

    def _on_accepted(self, progress: Progress, reply: AppendReply) -> None:
        news = self._matched(progress, reply.source, reply.match)
        if reply.sequence >= progress.since:
            found = progress.mode is Mode.PROBE
            if found or progress.is_missing(reply.sequence, reply.last_index):
                progress.replicate(self._core.sequence + 1)
            elif progress.is_unanswered(reply.sequence):
                self._ask_again(reply.source, progress)
        if news:
            self._advance_commit()
            if not progress.in_flight and progress.told < min(self._log.commit, progress.match):
                self._tell(reply.source, progress)  # it came late, and nothing follows that would tell it

    def _matched(self, progress: Progress, node: NodeId, index: int) -> bool:
        if index > self._log.last_index:
            raise InvariantError(f"{node} has entry {index} of a log that ends at {self._log.last_index}")
        return progress.matched(index)

    def _ask_again(self, node: NodeId, progress: Progress) -> None:
        """A follower has entries, and what it said of them got lost: let it say that again."""
        last = progress.in_flight[0][1]
        if self._log.term_at(last) is None:
            progress.replicate(self._core.sequence + 1)  # and so sends a snapshot: they are not held any more
        else:
            self._send_append(node, progress, last, ())

    def _on_refused(self, progress: Progress, reply: AppendReply) -> None:
        outdated = reply.sequence < progress.since or reply.prev_index <= progress.match
        if outdated or progress.mode is Mode.SNAPSHOT:
            return
        if progress.mode is Mode.PROBE and reply.prev_index != progress.next - 1:
            return
        progress.probe(self._core.sequence + 1, self._place(reply) + 1)

    def _place(self, reply: AppendReply) -> int:
        """The greatest index, below the one refused, at which the logs may be the same."""
        place = self._log.last_at_most(reply.hint_term, min(reply.last_index, reply.prev_index - 1))
        if self._log.term_at(place) != reply.hint_term:
            # There the follower has entries of a term that this log does not have there.
            place = min(place, max(reply.hint_index - 1, 0))
        # Never above what was asked for: when the base is all there is, only a snapshot helps.
        return min(place, reply.prev_index - 1, reply.last_index)

    def _on_chunk_reply(self, progress: Progress, reply: SnapshotReply) -> None:
        if progress.snapshot is not None and reply.sequence == progress.chunk:
            progress.waiting = False
            progress.offset = min(reply.received, len(progress.snapshot.state))
        if not reply.installed:
            return
        news = self._matched(progress, reply.source, reply.index)
        if progress.snapshot is not None and progress.snapshot.meta.index <= progress.match:
            progress.replicate(self._core.sequence + 1)
        if news:
            self._advance_commit()

    def _advance_commit(self) -> None:
        """Commit what a majority has on the disk, when it is of this term, with all that is before it."""
        match = {node: progress.match for node, progress in self.progress.items()}
        match[self._core.node_id] = self._log.persisted
        index = quorum.committed_index(self._log.members.voters, match)
        if index > self._log.commit and self._log.term_at(index) == self._core.term:
            self._log.commit = index
            self.tell_commit()
            self._forget_removed()

    # -- members ---------------------------------------------------------------------------------------

    def change_members(self, change: Change) -> int | Refusal:
        """Append the members that `change` makes of the present ones. Returns the index, or why not."""
        if not self.established:
            return Refusal.TOO_EARLY
        if self._log.members_index > self._log.commit:
            return Refusal.CHANGING
        changed = change(self)
        if isinstance(changed, Refusal):
            return changed
        assert quorum.overlap(self._log.members, changed)
        if changed.voters != self._log.members.voters and not quorum.decided(changed.voters, self._answering):
            return Refusal.TOO_FEW
        self.append([(EntryKind.MEMBERS, encode_members(changed))])
        return self._log.last_index

    @property
    def _answering(self) -> set[NodeId]:
        """Who has answered within an election time-out, and this node."""
        since = self._ticks - self._options.election_ticks
        return {self._core.node_id} | {
            node
            for node, progress in self.progress.items()
            if progress.answered is not None and progress.answered >= since
        }

    def with_learner(self, node: NodeId) -> Members | Refusal:
        """The members with one more that has no vote."""
        members = self._log.members
        if node in members.all:
            return Refusal.SAME
        return Members(members.voters, members.learners | {node})

    def with_voter(self, node: NodeId) -> Members | Refusal:
        """The members with a learner made a voter."""
        members = self._log.members
        if node in members.voters:
            return Refusal.SAME
        if node not in members.learners:
            return Refusal.UNKNOWN
        if self.progress[node].match + self._options.promotion_lag < self._log.last_index:
            return Refusal.BEHIND
        return Members(members.voters | {node}, members.learners - {node})

    def demoted(self, node: NodeId) -> Members | Refusal:
        """The members with a voter made a learner."""
        members = self._log.members
        if node not in members.voters:
            return Refusal.SAME
        if len(members.voters) == 1:
            return Refusal.LAST_VOTER
        return Members(members.voters - {node}, members.learners | {node})

    def without(self, node: NodeId) -> Members | Refusal:
        """The members without one."""
        members = self._log.members
        if node not in members.all:
            return Refusal.SAME
        if members.voters == {node}:
            return Refusal.LAST_VOTER
        return Members(members.voters - {node}, members.learners - {node})

    def _know_members(self) -> None:
        for node in sorted(self._log.members.all - {self._core.node_id}):
            if node not in self.progress:
                self.progress[node] = Progress(next=self._log.last_index)

    def _forget_removed(self) -> None:
        """Tell those who are no members any more, once that is committed."""
        if self._log.members_index > self._log.commit:
            return
        for node in [node for node in self.progress if node not in self._log.members.all]:
            del self.progress[node]
            self.tell_if_removed(node)

    def tell_if_removed(self, node: NodeId) -> None:
        """Tell a node that it is no member, if that is committed: it may still campaign."""
        settled = self._log.members_index <= self._log.commit and self.established
        if settled and node not in self._log.members.all:
            self._core.send(Removed(*self._core.header(node), index=self._log.members_index))

    # -- handing over, and reading ---------------------------------------------------------------------

    def transfer(self, node: NodeId) -> bool:
        """Hand leadership to a voter as soon as it has everything; whether that was begun."""
        if node == self._core.node_id or node not in self._log.members.voters or not self.established:
            return False
        self.successor, self._transfer_ticks = node, 0
        self._maybe_hand_over()
        return True

    def _maybe_hand_over(self) -> None:
        node = self.successor
        if node is not None and node in self.progress and self.progress[node].match == self._log.last_index:
            self._core.send(TimeoutNow(*self._core.header(node)))

    def read(self, context: object) -> bool:
        """Answer a read when a majority has answered something sent from now on; whether it can be."""
        if not self.established:
            return False
        if len(self._reads) >= self._options.max_reads:
            return False
        self._reads.append(_Read(context, self._log.commit, self._core.sequence + 1))
        for node, progress in self.progress.items():
            self._tell(node, progress)
        self._finish_reads()
        return True

    @property
    def reads(self) -> list[object]:
        """Contexts of the reads that wait."""
        return [read.context for read in self._reads]

    def _answer_reads(self, reply: AppendReply | SnapshotReply) -> None:
        for read in self._reads:
            if reply.sequence >= read.sequence:
                read.answered.add(reply.source)
        if self._reads:
            self._finish_reads()

    def _finish_reads(self) -> None:
        waiting = []
        for read in self._reads:
            if quorum.decided(self._log.members.voters, read.answered | {self._core.node_id}):
                self._core.answer_read(read.context, read.commit)
            else:
                waiting.append(read)
        self._reads = waiting


Change: TypeAlias = Callable[[Leadership], "Members | Refusal"]
