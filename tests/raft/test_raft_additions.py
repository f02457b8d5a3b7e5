"""What the core does beyond the paper, a test for each rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from one_node import FIRST, accept, append, chunk, command, leading, node, store, vote_request
from raft_nodes import SMALL

from liftbridge.raft import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    InvariantError,
    Members,
    Options,
    Raft,
    Refusal,
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
    encode_members,
)
from liftbridge.raft.entries import Log
from liftbridge.raft.progress import Mode


def to(messages, target, kind=Append):
    return [message for message in messages if isinstance(message, kind) and message.target == target]


def settled(*terms, options=SMALL):
    """A leader of three whose followers have what it has, and know what is committed."""
    core = leading(*terms, options=options)
    store(core)
    for other in (2, 3):
        accept(core, other, core.log.last_index)
    store(core)
    assert core.leads_durably
    assert {each.mode for each in core.leadership.progress.values()} == {Mode.REPLICATE}
    return core


def with_snapshot(core, state=b"0123456789abcdef"):
    """Let a leader forget its log, which follower 3 still needs from its second entry on."""
    index = core.commit
    core.compact(Snapshot(SnapshotMeta(index, core.log.term_at(index), core.members), state))
    return index


# -- what is on the disk -----------------------------------------------------------------------------------


def test_what_the_disk_has_for_a_while_only_is_not_acknowledged():
    core = node(term=2)
    core.step(append(core, (1, 1), [command(2, 2)], term=2))
    first = core.ready()
    core.step(append(core, (1, 1), [command(2, 3, b"other")], term=3, source=3))
    second = core.ready()
    # The first leader's entry is back: it is on the disk until the second write removes it.
    core.step(append(core, (1, 1), [command(2, 2)], term=4))
    third = core.ready()
    core.persisted(first.token)
    assert core.log.persisted == 1
    core.step(append(core, (2, 2), term=4, sequence=7, commit=2))
    assert not core.ready().messages
    core.persisted(second.token)
    assert core.log.persisted == 1
    core.persisted(third.token)
    assert core.log.persisted == 2
    assert [entry.index for entry in core.ready().committed] == [2]


def test_a_disk_with_an_entry_of_a_later_term_than_its_own_is_not_believed():
    with pytest.raises(InvariantError, match="term 1 and an entry of 2"):
        node(2, term=1)


def test_entries_that_do_not_follow_one_another_are_no_log():
    for entries in ([FIRST, command(3, 1)], [FIRST, command(2, 2), command(3, 1)]):
        with pytest.raises(InvariantError, match="cannot follow"):
            Log(None, entries)


def test_a_leader_begins_with_an_entry_that_commits_what_earlier_terms_have_left():
    core = leading(2)
    assert [(entry.kind, entry.term) for entry in core.log.after(2)] == [(EntryKind.EMPTY, core.term)]
    store(core)
    accept(core, 2, 3)
    assert core.commit == 3


def test_learners_do_not_count_however_many_there_are():
    core = settled()
    for learner in (4, 5):
        core.add_learner(learner)
        store(core)
        accept(core, 2, core.log.last_index)
        store(core)
    core.propose([b"x"])
    store(core)
    accept(core, 4, 5)
    accept(core, 5, 5)
    assert core.commit == 4
    accept(core, 3, 5)
    assert core.commit == 5


def test_a_snapshot_that_a_leaders_has_overtaken_is_ignored():
    core = node(2, applied=2)
    theirs = SnapshotMeta(9, 2, core.members)
    core.step(chunk(core, theirs, b"theirs"))
    ready = core.ready()
    core.compact(Snapshot(SnapshotMeta(2, 2, core.members), b"own"))
    core.persisted(ready.token)
    assert core.snapshot == Snapshot(theirs, b"theirs")
    core.compact(Snapshot(SnapshotMeta(2, 2, core.members), b"own"))
    assert core.snapshot.meta == theirs


def test_two_leaders_of_a_term_are_not_believed():
    core = settled()
    with pytest.raises(InvariantError, match="two lead in term 2"):
        core.step(append(core, (1, 1), source=3))


def test_an_ack_of_what_the_leader_does_not_have_is_not_believed():
    core = settled()
    with pytest.raises(InvariantError, match="2 has entry 9 of a log that ends at 2"):
        accept(core, 2, 9)


def test_a_snapshot_beyond_the_leaders_log_is_not_believed():
    core = settled()
    with pytest.raises(InvariantError, match="2 has entry 9 of a log that ends at 2"):
        core.step(SnapshotReply(2, 1, core.term, 6, 77, 1, 9, 0, True))


def test_a_snapshot_of_what_was_not_applied_is_not_believed():
    core = settled()
    core.propose([b"x"])
    for meta in (SnapshotMeta(3, 2, Members()), SnapshotMeta(2, 1, Members())):
        with pytest.raises(InvariantError, match="not what was applied"):
            core.compact(Snapshot(meta, b""))


# -- what followers are sent -------------------------------------------------------------------------------


def test_who_acks_late_is_told_at_once_what_is_committed():
    core = settled()
    core.propose([b"x"])
    store(core)
    accept(core, 2, 3)
    assert [message.commit for message in to(store(core), 2)] == [3]
    assert not to(store(core), 3), "it is not known to have the entry, so it cannot take that over"
    accept(core, 3, 3)
    (told,) = to(store(core), 3)
    assert (told.prev_index, told.entries, told.commit) == (3, (), 3)
    accept(core, 3, 3)
    assert not to(store(core), 3), "once"


def test_who_acks_late_is_told_by_the_next_entries_if_there_are_any():
    core = settled()
    core.propose([b"x"])
    core.propose([b"y"])
    store(core)
    accept(core, 2, 3)
    accept(core, 3, 3, sequence=core.sequence - 2)
    assert [message.entries for message in to(store(core), 3)] == []


def test_who_has_entries_and_whose_answers_got_lost_is_asked_again():
    core = settled()
    core.propose([b"x"])
    core.propose([b"y"])
    store(core)
    core.tick(0)
    core.tick(0)
    store(core)
    accept(core, 3, 2, last=4)
    (asked,) = to(store(core), 3)
    assert (asked.prev_index, asked.entries) == (3, ())


def test_who_has_entries_that_the_leader_holds_no_more_gets_a_snapshot():
    core = settled()
    core.propose([b"x"])
    core.propose([b"y"])
    store(core)
    accept(core, 2, 4)
    store(core)
    core.propose([b"z"])
    store(core)
    accept(core, 2, 5)
    store(core)
    with_snapshot(core)
    core.tick(0)
    core.tick(0)
    store(core)
    # It has the first of three messages; its answer and the other two are lost.
    accept(core, 3, 0, last=3)
    assert to(store(core), 3, SnapshotChunk)


def test_who_is_behind_all_that_is_held_gets_a_snapshot():
    core = leading(2, 2, 2, 2)
    store(core)
    accept(core, 2, 6)
    store(core)
    core.compact(Snapshot(SnapshotMeta(4, 2, core.members), b"state"))
    # Asked about entry 5, it says that it has entries of that term up to 3: the base is of that term too.
    core.step(AppendReply(3, 1, core.term, 6, 77, core.sequence, False, 0, 5, 2, 2, 3))
    assert to(store(core), 3, SnapshotChunk)


def test_bytes_in_flight_are_bounded():
    core = settled(options=replace(SMALL, max_in_flight=100, max_in_flight_bytes=100))
    for _ in range(8):
        core.propose([bytes(40)])
    sent = to(store(core), 2)
    assert [len(message.entries) for message in sent] == [1, 1, 1]
    accept(core, 2, 3, sequence=sent[0].sequence)
    (more,) = (message for message in to(store(core), 2) if message.entries)
    assert more.prev_index == 5
    accept(core, 2, 6)
    assert core.leadership.progress[2].in_flight_bytes == 120


def test_who_says_nothing_is_asked_without_entries_at_each_heartbeat():
    core = leading(2, 2)
    store(core)
    core.propose([bytes(50)])
    core.tick(0)
    core.tick(0)
    (probe,) = to(store(core), 2)
    assert (probe.prev_index, probe.entries) == (3, ())
    accept(core, 2, 3)
    assert [entry.index for message in to(store(core), 2) for entry in message.entries] == [4, 5]


def test_a_probe_of_what_is_gone_becomes_a_snapshot():
    core = leading(2, 2)
    store(core)
    accept(core, 2, 4)
    store(core)
    with_snapshot(core)
    assert core.log.base_index == 4
    core.tick(0)
    core.tick(0)
    (piece,) = to(store(core), 3, SnapshotChunk)
    assert (piece.meta.index, piece.offset, piece.total, piece.data) == (4, 0, 16, b"01234567")


def snapshotting():
    """A leader that has sent follower 3 the first piece of a snapshot."""
    core = leading(2, 2)
    store(core)
    accept(core, 2, 4)
    store(core)
    with_snapshot(core)
    core.tick(0)
    core.tick(0)
    return core, to(store(core), 3, SnapshotChunk)[0]


def chunk_reply(core, piece, received, *, sequence=None, installed=False):
    core.step(
        SnapshotReply(
            3, 1, core.term, 6, 77, sequence or piece.sequence, piece.meta.index, received, installed
        )
    )


def test_a_piece_is_sent_again_when_the_follower_speaks_and_not_otherwise():
    core, piece = snapshotting()
    for _ in range(10):
        core.tick(0)
    accept(core, 2, 4)
    assert not to(store(core), 3, SnapshotChunk)
    accept(core, 3, 0)
    core.tick(0)
    core.tick(0)
    (again,) = to(store(core), 3, SnapshotChunk)
    assert (again.offset, again.data) == (piece.offset, piece.data)


def test_pieces_go_one_by_one_and_old_answers_send_nothing():
    core, piece = snapshotting()
    chunk_reply(core, piece, 8)
    (second,) = to(store(core), 3, SnapshotChunk)
    assert second.offset == 8
    chunk_reply(core, piece, 8)
    chunk_reply(core, piece, 0)
    assert not to(store(core), 3, SnapshotChunk)


def test_a_follower_that_claims_more_than_there_is_gets_nothing_beyond_the_end():
    core, piece = snapshotting()
    chunk_reply(core, piece, 1000)
    (last,) = to(store(core), 3, SnapshotChunk)
    assert (last.offset, last.data) == (16, b"")


def test_after_a_snapshot_come_the_entries_behind_it():
    core, piece = snapshotting()
    core.propose([b"x"])
    store(core)
    chunk_reply(core, piece, 16, installed=True)
    (entries,) = (message for message in to(store(core), 3) if message.entries)
    assert (entries.prev_index, [entry.index for entry in entries.entries]) == (4, [5])


def test_the_last_piece_again_is_answered_with_installed():
    core = node()
    meta = SnapshotMeta(9, 2, Members(frozenset({1, 2, 3})))
    core.step(chunk(core, meta, b"state"))
    first = core.ready()
    # The disk still works on it.
    core.step(chunk(core, meta, b"state"))
    second = core.ready()
    assert not first.messages
    assert not second.messages
    assert second.snapshot is None
    assert [(reply.installed, reply.index) for reply in (*first.later, *second.later)] == [(True, 9)] * 2


def test_a_snapshot_that_is_too_large_is_told_to_the_caller():
    core = node(options=replace(SMALL, max_snapshot_bytes=10))
    meta = SnapshotMeta(9, 2, Members())
    core.step(chunk(core, meta, bytes(11)))
    assert core.snapshot_too_large == 11
    core.step(chunk(core, meta, bytes(10)))
    assert core.snapshot_too_large == 0
    assert core.commit == 9


def test_pieces_of_a_snapshot_are_let_go_when_entries_have_come_as_far():
    core = node()
    meta = SnapshotMeta(2, 2, Members())
    core.step(chunk(core, meta, b"state", data=b"st"))
    assert core._incoming.received == 2
    core.step(append(core, (1, 1), [command(2, 2)], commit=2))
    assert core._incoming.received == 0


# -- who leads ---------------------------------------------------------------------------------------------


def test_who_may_not_campaign_does_not_protect_a_leader_that_is_gone():
    members = Members(frozenset({2, 3}), frozenset({1}))
    first = Entry(1, 1, EntryKind.MEMBERS, encode_members(members))
    core = Raft(1, 77, Stored(HardState(1), None, [first]), SMALL, 0)
    core.step(append(core, (1, 1)))
    store(core)
    assert core.leader == 2
    for _ in range(SMALL.election_ticks):
        core.tick(0)
    assert core.role is Role.FOLLOWER
    assert core.leader is None
    core.step(vote_request(core, (1, 1), term=2, source=3))
    assert [reply.granted for reply in store(core)] == [True]


def test_who_was_asked_to_lead_has_a_whole_time_out_for_it():
    core = node()
    core.step(append(core, (1, 1)))
    for _ in range(SMALL.election_ticks - 1):
        core.tick(0)
    core.step(TimeoutNow(2, 1, core.term, 5))
    for _ in range(SMALL.election_ticks - 1):
        core.tick(0)
    assert core.role is Role.CANDIDATE


def test_a_leader_that_leaves_asks_a_successor_to_campaign():
    core = settled()
    core.remove(1)
    store(core)
    accept(core, 3, 3)
    store(core)
    assert core.is_leader, "one of two is no majority"
    accept(core, 2, 3)
    told = store(core)
    assert not core.is_leader
    assert [message.target for message in told if isinstance(message, TimeoutNow)] == [2]
    assert {message.commit for message in told if isinstance(message, Append)} == {3}


def test_who_takes_its_own_vote_away_may_campaign_until_that_is_committed():
    without = Entry(2, 2, EntryKind.MEMBERS, encode_members(Members(frozenset({2, 3}))))
    stored = Stored(HardState(2), None, [FIRST, without])
    core = Raft(1, 77, stored, SMALL, 0)
    core.campaign()
    assert core.role is Role.PRE_CANDIDATE
    assert not [message for message in store(core) if message.target == 1]
    for other in (2, 3):
        core.step(VoteReply(other, 1, 2, 5, True, True, 77, 1))
    store(core)
    for other in (2, 3):
        core.step(VoteReply(other, 1, 3, 5, False, True, 77, 2))
    assert core.is_leader
    done = Raft(1, 77, stored, SMALL, 0, applied=2)
    done.campaign()
    assert done.role is Role.FOLLOWER


# -- who was removed ---------------------------------------------------------------------------------------


def without_three():
    core = settled()
    core.remove(3)
    store(core)
    accept(core, 2, 3)
    assert [message.index for message in to(store(core), 3, Removed)] == [3]
    return core


@pytest.mark.parametrize("term", [1, 2, 9])
def test_who_was_removed_is_told_when_it_campaigns(term):
    core = without_three()
    core.step(vote_request(core, (2, 2), term=term, pre=True, source=3))
    assert [message.index for message in to(store(core), 3, Removed)] == [3]
    assert core.is_leader
    assert core.term == 2
    core.step(vote_request(core, (2, 2), term=term, pre=True, source=2))
    assert not to(store(core), 2, Removed)


def test_nobody_is_told_before_it_is_committed():
    core = settled()
    core.remove(3)
    core.step(vote_request(core, (2, 2), term=2, pre=True, source=3))
    assert not to(store(core), 3, Removed)


def test_who_was_removed_knows_it_whatever_term_it_is_in():
    core = node(term=7)
    core.step(Removed(2, 1, 3, 5, 4))
    assert core.removed
    assert core.term == 7


def test_who_was_removed_and_comes_back_is_a_member_again():
    core = node()
    core.step(Removed(2, 1, 1, 5, 2))
    assert core.removed
    away, back = (
        Entry(index, 1, EntryKind.MEMBERS, encode_members(members))
        for index, members in ((2, Members(frozenset({2, 3}))), (3, Members(frozenset({1, 2, 3}))))
    )
    core.step(append(core, (1, 1), [away]))
    assert core.removed
    core.step(append(core, (2, 1), [back]))
    assert not core.removed
    core.campaign()
    assert core.role is Role.PRE_CANDIDATE


def test_no_vote_goes_to_a_learner_that_has_never_answered():
    core = settled(options=replace(SMALL, promotion_lag=64))
    core.remove(3)
    store(core)
    accept(core, 2, 3)
    core.remove(2)
    store(core)
    core.add_learner(4)
    store(core)
    assert core.members == Members(frozenset({1}), frozenset({4}))
    assert core.promote(4) is Refusal.TOO_FEW, "1 could not even take that back alone"
    accept(core, 4, 4)
    assert core.promote(4) == 6


def test_no_vote_is_taken_that_is_needed():
    core = settled()
    for _ in range(SMALL.election_ticks + 1):
        core.tick(0)
        accept(core, 2, 2)
    assert core.remove(2) is Refusal.TOO_FEW
    assert core.demote(2) is Refusal.TOO_FEW
    assert core.demote(1) is Refusal.TOO_FEW
    assert core.add_learner(4) == 3, "that takes no vote"
    store(core)
    accept(core, 2, 3)
    assert core.remove(3) == 4, "who says nothing can be removed"


def test_only_ids_of_nodes_become_members():
    core = settled()
    for wrong in (0, -1, 1 << 64):
        with pytest.raises(ValueError, match="not the id of a node"):
            core.add_learner(wrong)


# -- reads -------------------------------------------------------------------------------------------------


def test_reads_that_wait_when_it_stops_leading_are_not_answered_and_named():
    core = settled()
    assert core.read_index("one")
    assert core.read_index("two")
    store(core)
    core.step(AppendReply(2, 1, 9, 6, 77, 1, False, 0, 0, 0, 0, 0))
    ready = core.ready()
    assert list(ready.unanswered) == ["one", "two"]
    assert not ready.reads
    assert not core.read_index("three")


def test_reads_that_wait_are_bounded():
    core = settled(options=replace(SMALL, max_reads=2))
    assert [core.read_index(each) for each in range(3)] == [True, True, False]
    store(core)
    accept(core, 2, 2)
    assert [context for context, _ in core.ready().reads] == [0, 1]
    assert core.read_index(3)


# -- bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_ticks": 0},
        {"heartbeat_ticks": 10},
        {"max_append_entries": 0},
        {"max_in_flight_bytes": 0},
        {"max_reads": 0},
    ],
)
def test_options_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match=r"heartbeat|at least 1"):
        Options(**wrong)


def test_a_candidate_asks_and_a_leader_sends_to_others_only():
    core = node()
    core.campaign()
    assert [message.target for message in store(core) if isinstance(message, VoteRequest)] == [2, 3]
