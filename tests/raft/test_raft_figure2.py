"""The rules of figure 2 of the Raft paper, one test each, and what we add to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from one_node import THREE, accept, append, chunk, command, leading, node, store, vote_request
from raft_nodes import SMALL, Cluster

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
    SnapshotMeta,
    SnapshotReply,
    Stored,
    TimeoutNow,
    VoteReply,
    encode_members,
)
from liftbridge.raft.progress import Mode

# -- AppendEntries RPC, receiver ---------------------------------------------------------------------------


def test_append_1_a_leader_of_an_older_term_is_refused_and_told():
    core = node(3, term=4)
    core.step(append(core, (2, 3), [command(3, 3)], term=3))
    (reply,) = store(core)
    assert (reply.accepted, reply.term) == (False, 4)
    assert core.log.last_index == 2


def test_append_2_without_the_entry_before_it_is_refused():
    core = node(2, 2)
    core.step(append(core, (3, 1), [command(4, 2)]))
    core.step(append(core, (9, 2), [command(10, 2)], sequence=2))
    first, second = store(core)
    assert (first.accepted, first.hint_index, first.hint_term, first.last_index) == (False, 2, 2, 3)
    assert (second.accepted, second.hint_index, second.hint_term, second.last_index) == (False, 2, 2, 3)
    assert [reply.sequence for reply in (first, second)] == [1, 2]


def test_append_3_what_differs_goes_with_all_behind_it():
    core = node(2, 2, 2, term=3)
    core.step(append(core, (2, 2), [command(3, 3, b"new")]))
    store(core)
    assert [entry.term for entry in core.log.after(0)] == [1, 2, 3]


def test_append_3_what_is_the_same_stays_with_all_behind_it():
    core = node(2, 2, 2)
    core.step(append(core, (1, 1), [command(2, 2)]))
    (reply,) = store(core)
    assert (core.log.last_index, reply.match) == (4, 2)


def test_append_3_what_is_committed_is_never_removed():
    core = node(2, 2, applied=3)
    with pytest.raises(InvariantError, match="entry 3 is committed"):
        core.step(append(core, (2, 2), [command(3, 3)], term=3))


def test_append_4_what_is_missing_is_added():
    core = node(2)
    core.step(append(core, (2, 2), [command(3, 2), command(4, 2)]))
    ready = core.ready()
    assert [entry.index for entry in ready.entries] == [3, 4]


def test_append_5_the_commit_index_goes_as_far_as_the_message_proves():
    core = node(2, 2, 2)
    core.step(append(core, (1, 1), [command(2, 2)], commit=9))
    assert core.commit == 2
    core.step(append(core, (3, 2), (), commit=1))
    assert core.commit == 2, "it does not go back"
    silent = node(2, 2, 2)
    silent.step(append(silent, (2, 2), (), commit=9))
    assert silent.commit == 2, "a heartbeat proves what is before it"


def test_nothing_is_acknowledged_before_the_disk_has_it():
    core = node(2)
    core.step(append(core, (2, 2), [command(3, 2)], commit=3))
    ready = core.ready()
    assert ready.messages == []
    assert [reply.match for reply in ready.later] == [3]
    assert [entry.index for entry in ready.committed] == [1, 2], "nor applied"
    core.persisted(ready.token)
    assert [entry.index for entry in core.ready().committed] == [3]


# -- RequestVote RPC, receiver -----------------------------------------------------------------------------


def test_vote_1_a_candidate_of_an_older_term_is_refused():
    core = node(3)
    core.step(vote_request(core, (9, 9), term=2))
    (reply,) = store(core)
    assert (reply.granted, reply.term) == (False, 3)


@pytest.mark.parametrize("vote", [None, 2])
def test_vote_2_for_whom_it_has_voted_or_nobody(vote):
    core = node(2, term=3, vote=vote)
    core.step(vote_request(core, (2, 2), term=3))
    (reply,) = store(core)
    assert reply.granted
    assert core.vote == 2


def test_vote_2_not_for_a_second_one():
    core = node(2, term=3, vote=3)
    core.step(vote_request(core, (2, 2), term=3))
    (reply,) = store(core)
    assert not reply.granted


@pytest.mark.parametrize(
    ("last", "granted"), [((9, 1), False), ((2, 2), False), ((3, 2), True), ((2, 3), True)]
)
def test_vote_2_only_for_a_log_that_is_as_new_as_its_own(last, granted):
    for pre in (False, True):
        core = node(2, 2)
        core.step(vote_request(core, last, term=4, pre=pre))
        (reply,) = store(core)
        assert reply.granted == granted


def test_a_vote_is_told_when_the_disk_has_it():
    core = node(2)
    core.step(vote_request(core, (2, 2), term=4))
    ready = core.ready()
    assert ready.messages == []
    assert ready.hard_state == HardState(4, 2)
    assert [reply.granted for reply in ready.later] == [True]


def test_a_vote_is_stored_also_in_a_term_that_the_disk_has():
    core = node(2, term=4)
    core.step(vote_request(core, (2, 2), term=4))
    assert core.ready().hard_state == HardState(4, 2)


def test_a_vote_in_advance_binds_nobody():
    core = node(2, term=3)
    core.step(vote_request(core, (2, 2), term=3, pre=True))
    (reply,) = store(core)
    assert reply.granted
    assert (core.term, core.vote) == (3, None)


def test_who_hears_a_leader_gives_no_vote():
    core = node(2)
    core.tick(9)  # its time-out is to be long
    core.step(append(core, (2, 2)))
    store(core)
    for pre in (True, False):
        core.step(vote_request(core, (9, 9), term=5, pre=pre))
    assert store(core) == []
    assert core.term == 2
    for _ in range(SMALL.election_ticks):
        core.tick(9)
    core.step(vote_request(core, (9, 9), term=5))
    assert [reply.granted for reply in store(core)] == [True]


def test_who_hears_a_leader_gives_a_vote_to_its_successor():
    core = node(2)
    core.step(append(core, (2, 2)))
    store(core)
    core.step(vote_request(core, (9, 9), term=3, source=3, forced=True))
    assert [reply.granted for reply in store(core)] == [True]


# -- all servers -------------------------------------------------------------------------------------------


def test_all_1_what_is_committed_is_applied_in_order_and_once():
    core = node(2, 2)
    core.step(append(core, (3, 2), (), commit=2))
    assert [entry.index for entry in core.ready().committed] == [1, 2]
    core.step(append(core, (3, 2), [command(4, 2)], commit=4))
    ready = core.ready()
    assert [entry.index for entry in ready.committed] == [3]


@pytest.mark.parametrize("role", ["leader", "candidate"])
def test_all_2_a_greater_term_makes_a_follower(role):
    core = leading(2) if role == "leader" else node(2)
    if role == "candidate":
        core.campaign()
    later = core.term + 3
    core.step(AppendReply(2, 1, later, 6, 77, 1, False, 0, 0, 0, 0, 0))
    assert (core.role, core.term, core.vote) == (Role.FOLLOWER, later, None)


# -- followers and candidates ------------------------------------------------------------------------------


def test_followers_2_who_hears_nothing_campaigns_within_two_time_outs():
    core = node(2)
    for _ in range(SMALL.election_ticks - 1):
        core.tick(3)
    assert core.role is Role.FOLLOWER
    core.step(append(core, (2, 2)))
    for _ in range(SMALL.election_ticks + 2):
        core.tick(3)
    assert core.role is Role.FOLLOWER, "the leader was heard in between"
    core.tick(3)
    assert core.role is Role.PRE_CANDIDATE


def test_candidates_1_a_new_term_and_a_vote_for_itself_come_first():
    core = node(2)
    core.campaign()
    assert {message.pre for message in store(core)} == {True}
    assert (core.term, core.vote) == (2, None)
    core.step(VoteReply(2, 1, 2, 5, True, True, 77, 1))
    ready = core.ready()
    assert ready.hard_state == HardState(3, 1)
    assert ready.messages == []
    assert [(message.term, message.pre) for message in ready.later] == [(3, False)] * 2


def test_candidates_2_a_majority_makes_a_leader_once_its_own_vote_is_on_the_disk():
    core = node(2)
    core.campaign()
    store(core)
    core.step(VoteReply(2, 1, 2, 5, True, True, 77, 1))
    ready = core.ready()
    for voter in (2, 3):
        core.step(VoteReply(voter, 1, 3, 5, False, True, 77, 2))
    assert core.role is Role.CANDIDATE
    core.persisted(ready.token)
    assert core.is_leader


@pytest.mark.parametrize(
    "change",
    [{"incarnation": 78}, {"ballot": 1}, {"granted": False}, {"source": 9}, {"pre": True}, {"term": 2}],
)
def test_candidates_2_only_answers_to_this_question_count(change):
    core = node(2)
    core.campaign()
    store(core)
    core.step(VoteReply(2, 1, 2, 5, True, True, 77, 1))
    store(core)
    answer = {"source": 2, "term": 3, "pre": False, "granted": True, "incarnation": 77, "ballot": 2, **change}
    reply = VoteReply(
        answer["source"],
        1,
        answer["term"],
        5,
        answer["pre"],
        answer["granted"],
        answer["incarnation"],
        answer["ballot"],
    )
    core.step(reply)
    assert not core.is_leader
    core.step(replace(reply, source=3, granted=False))
    assert not core.is_leader


def test_candidates_3_a_leader_of_the_term_makes_a_follower():
    core = node(2)
    core.campaign()
    store(core)
    core.step(VoteReply(2, 1, 2, 5, True, True, 77, 1))
    store(core)
    core.step(append(core, (2, 2), term=3, source=3))
    assert (core.role, core.leader) == (Role.FOLLOWER, 3)


def test_candidates_4_another_time_out_begins_another_election():
    core = node(2)
    core.campaign()
    ballots = {message.ballot for message in store(core)}
    for _ in range(2 * SMALL.election_ticks):
        core.tick(0)
    assert {message.ballot for message in store(core)}.isdisjoint(ballots)


def test_a_learner_and_a_stranger_do_not_campaign():
    for members in (Members(frozenset({2, 3}), frozenset({1})), Members(frozenset({2, 3}))):
        entry = Entry(1, 1, EntryKind.MEMBERS, encode_members(members))
        core = Raft(1, 77, Stored(HardState(1), None, [entry]), SMALL, 0)
        core.campaign()
        core.step(TimeoutNow(2, 1, 1, 5))
        assert core.role is Role.FOLLOWER


# -- leaders -----------------------------------------------------------------------------------------------


def test_leaders_1_all_hear_of_it_at_once_and_then_time_and_again():
    core = leading(2)
    sent = [message for message in store(core) if isinstance(message, Append)]
    assert {message.target for message in sent} == {2, 3}
    for _ in range(SMALL.heartbeat_ticks):
        core.tick(0)
    assert {message.target for message in store(core)} == {2, 3}


def test_leaders_2_a_proposal_is_an_entry_of_its_term():
    core = leading(2)
    assert core.propose([b"a", b"b"]) == 4
    assert [(entry.index, entry.term, entry.data) for entry in core.log.after(3)] == [
        (4, 3, b"a"),
        (5, 3, b"b"),
    ]
    assert node(2).propose([b"a"]) is None


def test_leaders_3_a_refusal_makes_it_look_further_back():
    core = leading(2, 2, 3, 3)
    store(core)
    probe = core.leadership.progress[2].next - 1
    core.step(AppendReply(2, 1, core.term, 6, 77, core.sequence - 1, False, 0, probe, 4, 2, 5))
    (sent,) = [message for message in store(core) if message.target == 2]
    assert (sent.prev_index, sent.prev_term) == (3, 2), "the last entry here that is of no later term"


def test_leaders_3_a_whole_term_that_is_not_here_is_skipped():
    core = leading(1, 1, 4, 4)
    store(core)
    probe = core.leadership.progress[2].next - 1
    core.step(AppendReply(2, 1, core.term, 6, 77, core.sequence - 1, False, 0, probe, 3, 2, 9))
    (sent,) = [message for message in store(core) if message.target == 2]
    assert (sent.prev_index, sent.prev_term) == (2, 1)


def test_leaders_3_a_refusal_never_goes_back_behind_what_matches():
    core = leading(2, 2)
    store(core)
    accept(core, 2, 4)
    store(core)
    progress = core.leadership.progress[2]
    core.step(AppendReply(2, 1, core.term, 6, 77, 1, False, 0, 3, 1, 1, 1))
    core.step(AppendReply(2, 1, core.term, 6, 77, core.sequence, False, 0, 3, 1, 1, 1))
    assert (progress.match, progress.next, progress.mode) == (4, 5, Mode.REPLICATE)


def test_leaders_4_a_majority_of_its_own_term_commits():
    core = leading(2)
    store(core)
    assert core.commit == 0
    accept(core, 2, 3)
    assert core.commit == 3


def test_leaders_4_a_majority_of_an_older_term_commits_nothing():
    core = leading(2, 2, options=replace(SMALL, max_append_entries=1))
    store(core)
    accept(core, 2, 3)
    accept(core, 3, 3)
    assert core.commit == 0
    accept(core, 3, 4)
    assert core.commit == 4


def test_leaders_4_its_own_disk_counts_when_it_has_the_entry():
    core = leading(2)
    store(core)
    accept(core, 2, 3)
    store(core)
    core.propose([b"a"])
    ready = core.ready()
    accept(core, 2, 4)
    assert core.commit == 3
    core.persisted(ready.token)
    assert core.commit == 4


def test_leaders_4_acks_of_another_term_or_run_do_not_count():
    core = leading(2)
    store(core)
    accept(core, 2, 3, term=core.term - 1)
    accept(core, 2, 3, incarnation=78)
    assert core.commit == 0
    assert core.leadership.progress[2].match == 0


def test_what_matches_never_goes_down():
    core = leading(2)
    store(core)
    accept(core, 2, 3)
    accept(core, 2, 1)
    assert core.leadership.progress[2].match == 3


def test_entries_that_got_lost_are_sent_again():
    core = leading(2)
    store(core)
    accept(core, 2, 3)
    store(core)
    core.propose([b"a"])
    store(core)  # lost
    core.tick(0)
    core.tick(0)
    store(core)
    accept(core, 2, 3)
    (sent,) = [message for message in store(core) if message.target == 2]
    assert [entry.index for entry in sent.entries] == [4]


def test_messages_in_flight_are_bounded():
    core = leading(2, options=replace(SMALL, max_append_entries=1))
    store(core)
    accept(core, 2, 3)
    store(core)
    core.propose([b"x"] * 20)
    sent = [message for message in store(core) if message.target == 2]
    assert len(sent) == SMALL.max_in_flight
    accept(core, 2, 5, last=7)
    sent = [message for message in store(core) if message.target == 2]
    assert [message.prev_index for message in sent if message.entries] == [7, 8]


def test_a_message_has_bounds_in_bytes_and_one_entry_at_least():
    core = leading(2, options=replace(SMALL, max_append_bytes=10))
    store(core)
    accept(core, 2, 3)
    store(core)
    core.propose([b"x" * 50, b"y" * 5, b"z" * 5, b"a" * 5])
    sizes = [len(message.entries) for message in store(core) if message.target == 2]
    assert sizes == [1, 2, 1]


# -- members -----------------------------------------------------------------------------------------------


def test_no_members_are_changed_before_an_entry_of_the_own_term_is_committed():
    core = leading(2)
    store(core)
    assert core.add_learner(4) is Refusal.TOO_EARLY
    accept(core, 2, 3)
    assert core.add_learner(4) == 4
    assert core.remove(3) is Refusal.CHANGING


def test_members_count_from_the_moment_they_are_in_the_log():
    core = leading(2)
    store(core)
    accept(core, 2, 3)
    store(core)
    core.remove(3)
    assert core.members.voters == {1, 2}
    store(core)
    accept(core, 3, 4)
    assert core.commit == 3, "who is removed does not count"
    accept(core, 2, 4)
    assert core.commit == 4


def test_a_learner_does_not_count_and_gets_a_vote_when_it_is_near():
    core = leading(2)
    store(core)
    accept(core, 2, 3)
    store(core)
    core.add_learner(4)
    store(core)
    accept(core, 4, 4)
    assert core.commit == 3
    accept(core, 2, 4)
    core.propose([b"x"] * (SMALL.promotion_lag + 1))
    store(core)
    accept(core, 2, core.log.last_index)
    assert core.promote(4) is Refusal.BEHIND
    accept(core, 4, 5)
    assert core.promote(4) == core.log.last_index


def test_who_was_removed_stops_campaigning_and_strangers_wait():
    core = node(2)
    core.step(Removed(2, 1, 2, 5, 9))
    assert core.removed
    core.campaign()
    assert core.role is Role.FOLLOWER
    stranger = Raft(4, 77, Stored(), SMALL, 0)
    stranger.step(Removed(2, 4, 2, 5, 9))
    assert not stranger.removed
    newer = node(2)
    newer.step(Removed(2, 1, 2, 5, 0))
    assert not newer.removed, "it knows newer members"


# -- snapshots ---------------------------------------------------------------------------------------------


def test_a_snapshot_that_is_not_newer_is_refused():
    core = node(2, 2, applied=3)
    core.step(chunk(core, SnapshotMeta(3, 2, THREE), b"old"))
    ready = core.ready()
    assert ready.snapshot is None
    (reply,) = [*ready.messages, *ready.later]
    assert isinstance(reply, SnapshotReply)
    assert reply.installed, "what it has is as good"


def test_a_snapshot_with_a_wrong_checksum_is_asked_for_again():
    core = node(2)
    core.step(chunk(core, SnapshotMeta(9, 2, THREE), b"state", checksum=1))
    (reply,) = store(core)
    assert (reply.installed, reply.received) == (False, 0)
    assert core.commit == 0


def test_a_snapshot_larger_than_allowed_is_ignored():
    core = node(2, options=replace(SMALL, max_snapshot_bytes=4))
    core.step(chunk(core, SnapshotMeta(9, 2, THREE), b"state"))
    assert store(core) == []


def test_a_snapshot_is_acknowledged_and_applied_when_the_disk_has_it():
    core = node(2)
    core.step(chunk(core, SnapshotMeta(9, 2, THREE), b"state"))
    ready = core.ready()
    assert ready.snapshot == Snapshot(SnapshotMeta(9, 2, THREE), b"state")
    assert ready.messages == []
    assert ready.committed == ()
    core.step(append(core, (9, 2), [command(10, 2)], commit=10))
    second = core.ready()
    assert second.committed == ()
    core.persisted(ready.token)
    core.persisted(second.token)
    assert [entry.index for entry in core.ready().committed] == [10]


def test_a_snapshot_keeps_the_tail_that_follows_the_same_entry():
    kept = node(2, 2, 2)
    kept.step(chunk(kept, SnapshotMeta(3, 2, THREE), b"state"))
    assert (kept.log.base_index, kept.log.last_index) == (3, 4)
    gone = node(2, 2, 2)
    gone.step(chunk(gone, SnapshotMeta(3, 1, THREE), b"state"))
    assert (gone.log.base_index, gone.log.last_index) == (3, 3)


# -- leadership --------------------------------------------------------------------------------------------


def test_a_leader_that_hears_too_few_stops_within_two_time_outs():
    core = leading(2)
    store(core)
    for _ in range(2 * SMALL.election_ticks):
        core.tick(0)
    assert core.role is Role.FOLLOWER
    kept = leading(2)
    for _ in range(4):
        for _ in range(SMALL.election_ticks // 2):
            kept.tick(0)
        store(kept)
        accept(kept, 2, 0, last=9)
    assert kept.is_leader


def test_a_read_waits_for_a_majority_that_answers_something_sent_after_it():
    core = leading(2)
    store(core)
    assert not core.read_index("early")
    accept(core, 2, 3)
    store(core)
    old = core.sequence
    assert core.read_index("now")
    accept(core, 2, 3, sequence=old)
    assert core.ready().reads == []
    accept(core, 2, 3)
    assert core.ready().reads == [("now", 3)]


def test_leadership_goes_to_a_voter_that_has_everything():
    core = leading(2)
    store(core)
    accept(core, 2, 3)
    store(core)
    assert not core.transfer(1)
    assert not core.transfer(9)
    core.propose([b"x"])
    store(core)
    assert core.transfer(2)
    assert core.propose([b"y"]) is None
    assert not any(isinstance(message, TimeoutNow) for message in store(core))
    accept(core, 2, 4)
    assert any(isinstance(message, TimeoutNow) for message in store(core))


def test_messages_for_others_and_from_itself_are_ignored():
    core = node(2)
    core.step(vote_request(core, (9, 9), term=9, source=1))
    core.step(replace(vote_request(core, (9, 9), term=9), target=3))
    assert core.term == 2


def test_tokens_come_back_in_order():
    core = node(2)
    core.campaign()
    first = core.ready()
    core.step(VoteReply(2, 1, 2, 5, True, True, 77, 1))
    second = core.ready()
    with pytest.raises(InvariantError, match="out of turn"):
        core.persisted(second.token)
    del first


def test_a_cluster_settles():
    cluster = Cluster(Options())
    cluster.begin([1, 2, 3, 4, 5])
    cluster.nodes[3].core.campaign()
    cluster.after(3)
    cluster.settle()
    for number in range(30):
        cluster.nodes[3].core.propose([b"%d" % number])
        cluster.after(3)
    cluster.settle()
    assert {len(each.applied) for each in cluster.nodes.values() if each.name == 3} == {30}
