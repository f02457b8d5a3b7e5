"""Bugs to plant in the consensus core, one line each, that simulated runs must find.

They are apart from `tests/sabotage/planted`, where each bug has the narrow test that must fail for it: here
the question is what chance alone finds, and how soon. `sensitivity.py` answers it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Planted:
    """`old` is replaced by `new` in a file of a folder of `src/liftbridge`, where it occurs once."""

    name: str
    what: str
    file: str
    old: str
    new: str
    folder: str = "raft"

    @property
    def kind(self) -> str:
        """Of the runs that have to find it."""
        return "consensus" if self.folder == "raft" else "cluster"


BUGS = (
    # ---- votes and terms ----
    Planted(
        "vote-not-stored",
        "a vote in a term that is on the disk already is not stored",
        "core.py",
        "        hard = None if self._hard == self._hard_handed else self._hard",
        "        hard = None if self._hard.term == self._hard_handed.term else self._hard",
    ),
    Planted(
        "vote-before-disk",
        "a vote leaves before the disk has it",
        "core.py",
        "        self._later.append(self._vote_reply(request, granted=True))",
        "        self._messages.append(self._vote_reply(request, granted=True))",
    ),
    Planted(
        "asks-before-disk",
        "a candidate asks for votes before its own is on the disk",
        "core.py",
        "            self._later.append(\n                VoteRequest(",
        "            self._messages.append(\n                VoteRequest(",
    ),
    Planted(
        "two-votes",
        "two candidates of a term get a vote",
        "core.py",
        "self.vote in (None, request.source)",
        "self.vote != self.node_id",
    ),
    Planted(
        "vote-kept",
        "the vote of a term goes on into the next",
        "core.py",
        "            self._hard = HardState(term, None)",
        "            self._hard = HardState(term, self.vote)",
    ),
    Planted(
        "old-log-voted-for",
        "a longer log of an older term gets a vote",
        "core.py",
        "(request.last_term, request.last_index) >= (self.log.last_term, self.log.last_index)",
        "request.last_index >= self.log.last_index",
    ),
    Planted(
        "short-log-voted-for",
        "a shorter log of the same term gets a vote",
        "core.py",
        "(request.last_term, request.last_index) >= (self.log.last_term, self.log.last_index)",
        "request.last_term >= self.log.last_term",
    ),
    Planted(
        "votes-of-anybody",
        "who is no voter counts in an election",
        "quorum.py",
        "    return sum(node in agreeing for node in voters) >= majority(voters)",
        "    return len(agreeing) >= majority(voters)",
    ),
    Planted(
        "no-stickiness",
        "who hears a leader votes for others",
        "core.py",
        "        if self._hears_leader and not request.forced:",
        "        if self._lead is not None and not request.forced:",
    ),
    Planted(
        "no-term-notice",
        "an answer of a newer term does not end a leadership",
        "core.py",
        "        if message.term > self.term:\n"
        "            self._follow(message.term, None)\n        if isinstance(message, Append",
        "        if message.term > self.term and self._lead is None:\n"
        "            self._follow(message.term, None)\n        if isinstance(message, Append",
    ),
    Planted(
        "no-check-quorum",
        "a leader that nobody answers goes on",
        "leader.py",
        "            self.lost = not quorum.decided(self._log.members.voters, heard | {self._core.node_id})",
        "            self.lost = not quorum.decided(self._log.members.voters, heard | self._log.members.all)",
    ),
    # ---- the log ----
    Planted(
        "no-empty-entry",
        "a leader begins without an entry of its term",
        "leader.py",
        '        self.append([(EntryKind.EMPTY, b"")])',
        "        self.append([])",
    ),
    Planted(
        "place-not-compared",
        "entries are taken behind one of another term",
        "core.py",
        "        elif log.term_at(prev) != message.prev_term:",
        "        elif log.term_at(prev) is None:",
    ),
    Planted(
        "same-truncated",
        "entries that are the same are removed with all behind them",
        "core.py",
        "            if log.term_at(entry.index) != entry.term:",
        "            if entry.index > log.commit:",
    ),
    Planted(
        "new-entries-not-stored",
        "what takes the place of truncated entries is not stored",
        "core.py",
        "            self._entries_handed = min(self._entries_handed, index - 1)",
        "            self._entries_handed = min(self._entries_handed, self.log.last_index + 1)",
    ),
    Planted(
        "ack-before-disk",
        "entries are acked before the disk has them",
        "core.py",
        "        stored = match <= self.log.persisted and self._hard == self._hard_persisted",
        "        stored = match <= self.log.last_index and self._hard == self._hard_persisted",
    ),
    Planted(
        "ack-of-all",
        "a follower acks its whole log instead of what was compared",
        "core.py",
        "        match = prev + len(message.entries)",
        "        match = max(prev + len(message.entries), log.persisted)",
    ),
    Planted(
        "other-entry-persisted",
        "a finished write counts for all that is in the log by then",
        "core.py",
        "            self.log.persisted = max(self.log.persisted, handed.last)",
        "            self.log.persisted = max(self.log.persisted, self.log.last_index)",
    ),
    # ---- what is committed ----
    Planted(
        "old-term-by-counting",
        "a majority commits an entry of an older term",
        "leader.py",
        "        if index > self._log.commit and self._log.term_at(index) == self._core.term:",
        "        if index > self._log.commit and self._log.term_at(index):",
    ),
    Planted(
        "commit-beyond-match",
        "a follower commits what no message has compared",
        "core.py",
        "        log.commit = max(log.commit, min(message.commit, match))",
        "        log.commit = max(log.commit, min(message.commit, log.last_index))",
    ),
    Planted(
        "commit-by-heartbeat",
        "a message without entries commits all that a follower has",
        "core.py",
        "        log.commit = max(log.commit, min(message.commit, match))",
        "        log.commit = max(log.commit, min(message.commit, match if entries else log.last_index))",
    ),
    Planted(
        "own-entries-at-once",
        "a leader counts itself for what its disk does not have",
        "leader.py",
        "        match[self._core.node_id] = self._log.persisted",
        "        match[self._core.node_id] = self._log.last_index",
    ),
    Planted(
        "learners-count",
        "learners count for what is committed",
        "leader.py",
        "        index = quorum.committed_index(self._log.members.voters, match)",
        "        index = quorum.committed_index(self._log.members.all, match)",
    ),
    Planted(
        "minority-commits",
        "half of the voters are enough",
        "quorum.py",
        "    return known[majority(voters) - 1]",
        "    return known[(len(voters) - 1) // 2]",
    ),
    Planted(
        "applied-before-disk",
        "what the own disk does not have is applied",
        "core.py",
        "self._installing is not None else min(self.log.commit, self.log.persisted)",
        "self._installing is not None else self.log.commit",
    ),
    # ---- what a leader believes ----
    Planted(
        "ack-of-any-term",
        "an ack of an older term counts",
        "core.py",
        "        elif message.term != self.term:\n            return",
        "        elif message.term != self.term and not isinstance(message, AppendReply):\n"
        "            return",
    ),
    Planted(
        "ack-of-another-life",
        "an ack that was meant for an earlier run of the leader counts",
        "core.py",
        "            if self._lead is not None and message.to_incarnation == self.incarnation:",
        "            if self._lead is not None and message.to_incarnation:",
    ),
    Planted(
        "refusal-moves-match",
        "a refusal tells what matches",
        "leader.py",
        "        progress.probe(self._core.sequence + 1, self._place(reply) + 1)",
        "        progress.matched(self._place(reply))\n"
        "        progress.probe(self._core.sequence + 1, self._place(reply) + 1)",
    ),
    Planted(
        "match-goes-back",
        "an ack that was overtaken takes back what matches",
        "progress.py",
        "        if index <= self.match:",
        "        if index == self.match:",
    ),
    Planted(
        "refusal-below-match",
        "a late refusal has the leader look below what matches",
        "progress.py",
        "        self.next = max(following, self.match + 1)",
        "        self.next = following",
    ),
    Planted(
        "lost-answers",
        "a follower whose answers to all messages under way got lost gets nothing any more",
        "leader.py",
        "            elif progress.is_unanswered(reply.sequence):",
        "            elif progress.is_unanswered(0):",
    ),
    Planted(
        "probe-above",
        "a follower behind everything that is held is asked for the same place for ever",
        "leader.py",
        "        return min(place, reply.prev_index - 1, reply.last_index)",
        "        return place",
    ),
    # ---- members ----
    Planted(
        "members-unfenced",
        "members are changed before the leader's term has committed anything",
        "leader.py",
        "        if not self.established:\n            return Refusal.TOO_EARLY",
        "        if self.start == 0:\n            return Refusal.TOO_EARLY",
    ),
    Planted(
        "two-changes-at-once",
        "members are changed while another change is not committed",
        "leader.py",
        "        if self._log.members_index > self._log.commit:\n            return Refusal.CHANGING",
        "        if self._log.members_index > self._log.last_index:\n            return Refusal.CHANGING",
    ),
    Planted(
        "two-voters-at-once",
        "all learners get a vote with one entry",
        "leader.py",
        "        assert quorum.overlap(self._log.members, changed)\n",
        "        changed = Members(changed.all, frozenset()) if len(changed.voters) > 2 else changed\n",
    ),
    Planted(
        "promoted-behind",
        "a learner that lacks much gets a vote",
        "leader.py",
        "            return Refusal.BEHIND",
        "            pass",
    ),
    Planted(
        "members-when-committed",
        "a change of members holds when it is committed, not when it is in the log",
        "entries.py",
        "        return self._members[-1][1]",
        "        return self.members_at(max(self.commit, self.base_index))",
    ),
    Planted(
        "members-stay",
        "a change of members outlives its entry",
        "entries.py",
        "        while self._members[-1][0] >= index and len(self._members) > 1:",
        "        while self._members[-1][0] > self.last_index + 9 and len(self._members) > 1:",
    ),
    Planted(
        "leads-without-vote",
        "a leader that was removed goes on",
        "core.py",
        "        outside = self.node_id not in self.log.members.voters",
        "        outside = False",
    ),
    Planted(
        "own-removal-is-final",
        "who takes its own vote away never campaigns, though only it has the entry",
        "core.py",
        " or self.node_id in log.members_before.voters",
        "",
    ),
    # ---- snapshots ----
    Planted(
        "snapshot-wipes-tail",
        "a snapshot removes what follows it",
        "entries.py",
        "        if self.term_at(meta.index) == meta.term:",
        "        if self.term_at(meta.index) == -1:",
    ),
    Planted(
        "snapshot-acked-early",
        "a snapshot is acked before the disk has it",
        "core.py",
        "        self._later.append(self._chunk_reply(chunk, chunk.total, installed=True))",
        "        self._messages.append(self._chunk_reply(chunk, chunk.total, installed=True))",
    ),
    Planted(
        "snapshot-goes-back",
        "a snapshot older than what is committed is installed",
        "core.py",
        "        if meta.index <= self.log.commit:",
        "        if meta.index <= self.log.base_index:",
    ),
    Planted(
        "applied-while-installing",
        "entries behind a snapshot are applied before it is there",
        "core.py",
        "        return self._applied if self._installing is not None else min(",
        "        return min(",
    ),
    Planted(
        "half-a-snapshot",
        "pieces of a snapshot are put together as they come, and nobody looks at the checksum",
        "incoming.py",
        "        if chunk.offset == len(self._data):\n"
        "            self._data += chunk.data\n"
        "        if len(self._data) < chunk.total:\n"
        "            return None\n"
        "        state = bytes(self._data)\n"
        "        self.clear()\n"
        "        whole = len(state) == chunk.total and zlib.crc32(state) == chunk.checksum\n",
        "        self._data += chunk.data\n"
        "        if len(self._data) < chunk.total:\n"
        "            return None\n"
        "        state = bytes(self._data)[: chunk.total]\n"
        "        self.clear()\n"
        "        whole = True\n",
    ),
    Planted(
        "lost-piece",
        "a piece of a snapshot that gets lost is never sent again",
        "leader.py",
        "        if progress.mode is Mode.SNAPSHOT and progress.idle_heartbeats():",
        "        if progress.mode is Mode.SNAPSHOT and progress.match < 0:",
    ),
    # ---- reads ----
    Planted(
        "read-by-old-answers",
        "a read is answered by what was sent before it came",
        "leader.py",
        "            if reply.sequence >= read.sequence:",
        "            if reply.sequence >= 0:",
    ),
    Planted(
        "read-at-once",
        "a read is not confirmed by anybody",
        "leader.py",
        "            if quorum.decided(self._log.members.voters, read.answered | {self._core.node_id}):",
        "            if quorum.decided(self._log.members.voters, read.answered | self._log.members.all):",
    ),
    Planted(
        "read-too-early",
        "a leader that has committed nothing yet answers reads",
        "leader.py",
        "        if not self.established:\n            return False\n        if len(self._reads)",
        "        if self.start == 0:\n            return False\n        if len(self._reads)",
    ),
)
