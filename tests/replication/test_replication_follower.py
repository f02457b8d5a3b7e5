"""Rules of the follower: what it appends, where it cuts, what it exposes, what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from replica_log import Stored
from replication_cases import EPOCH, data, follower, log_of, partition

from liftbridge.replication.follower import (
    NOTHING,
    Append,
    Damaged,
    Misfit,
    Restart,
    Restate,
    Truncate,
    Wait,
)
from liftbridge.replication.messages import NEVER, Accepted, BeginAt, Diverging, Fence, Fenced

# -- appending


def test_what_goes_on_where_the_log_ends_is_appended():
    machine = follower(log_of((2, 6)))
    assert machine.receive(data((6, 6, EPOCH), (6, 8, EPOCH))) == Append(2)


@pytest.mark.parametrize(
    ("batches", "reason"),
    [
        ([(7, 8, EPOCH)], Misfit.GAP),
        ([(6, 7, EPOCH), (8, 9, EPOCH)], Misfit.GAP),
        ([(6, 7, 1)], Misfit.FALLING_EPOCH),
        ([(6, 7, EPOCH), (7, 8, 4)], Misfit.FALLING_EPOCH),
        ([(6, 7, EPOCH + 1)], Misfit.FUTURE_EPOCH),
        ([(5, 7, EPOCH)], Misfit.CONFLICT),
        ([(3, 4, EPOCH)], Misfit.CONFLICT),  # there is something of epoch 2 there
        ([(6, 7, EPOCH), (6, 7, EPOCH)], Misfit.CONFLICT),
    ],
)
def test_what_does_not_fit_is_not_appended_and_the_session_begins_anew(batches, reason):
    machine = follower(log_of((2, 6)))
    assert machine.receive(data(*batches, high_watermark=8)) == Restate(reason)
    assert machine.receive(data((6, 7, EPOCH))) is NOTHING
    assert machine.progress() is None
    statement = machine.begin()
    assert (statement.session, statement.next_offset, statement.last_epoch) == (2, 6, 2)
    assert machine.receive(data((6, 7, EPOCH), session=2)) == Append(1)


def test_what_it_has_already_is_passed_over():
    machine = follower(log_of((2, 6), (EPOCH, 0), (EPOCH, 2)))
    assert machine.receive(data((5, 6, 2), (6, 8, EPOCH), (8, 9, EPOCH))) == Append(1)
    assert machine.receive(data((6, 8, EPOCH))) is NOTHING


def test_a_beginning_of_an_epoch_that_it_has_is_passed_over_and_one_that_it_has_not_is_a_conflict():
    machine = follower(log_of((2, 6), (EPOCH, 0)))
    assert machine.receive(data((6, 6, EPOCH), (6, 7, EPOCH))) == Append(1)
    assert machine.receive(data((6, 6, 4))) == Restate(Misfit.CONFLICT)


@pytest.mark.parametrize(
    "changes", [{"session": 7}, {"leader_epoch": EPOCH - 1}, {"leader_epoch": EPOCH + 1}]
)
def test_data_of_another_session_or_epoch_changes_nothing(changes):
    machine = follower(log_of((2, 6)))
    assert machine.receive(data((6, 7, EPOCH), high_watermark=4, **changes)) is NOTHING
    assert machine.high_watermark == -1


# -- high watermark


def test_the_high_watermark_goes_as_far_as_the_own_log():
    log = log_of((2, 6))
    machine = follower(log)
    machine.receive(data(high_watermark=9))
    assert machine.high_watermark == 5
    assert machine.receive(data((6, 8, EPOCH), high_watermark=9)) == Append(1)
    assert machine.high_watermark == 5
    log.store(Stored(6, EPOCH, ("x", "y")))
    assert machine.appended() == 7


def test_the_high_watermark_does_not_fall_and_begins_in_front_of_the_end():
    machine = follower(log_of((2, 6)), high_watermark=8)
    assert machine.high_watermark == 5
    machine.receive(Accepted(EPOCH, 1, 3))
    assert machine.high_watermark == 5


# -- cutting off


@pytest.mark.parametrize(
    ("epoch", "end", "target"),
    [
        (4, 8, 8),  # the leader has less of epoch 4
        (4, 12, 10),  # the leader has more of it, but epoch 6 here is nowhere else
        (3, 7, 6),  # of an epoch that was never here
        (2, 4, 4),
    ],
)
def test_the_log_is_cut_off_where_both_may_agree(epoch, end, target):
    log = log_of((2, 4), (2, 2), (4, 2), (4, 2), (6, 2))
    machine = follower(log, leader_epoch=7)
    assert machine.receive(Diverging(7, 1, epoch, end)) == Truncate(target)
    assert machine.receive(data((12, 13, 7), leader_epoch=7)) is NOTHING
    log.truncate(target)
    assert machine.begin().next_offset == target


def test_cutting_off_never_goes_in_front_of_the_high_watermark():
    machine = follower(log_of((2, 6), (4, 4)), high_watermark=7)
    assert machine.receive(Diverging(EPOCH, 1, 2, 7)) == Damaged(6, 7)
    assert machine.damaged
    assert machine.receive(data((10, 11, EPOCH))) is NOTHING
    assert machine.progress() is None
    assert machine.position() is None


def test_up_to_the_high_watermark_it_may():
    machine = follower(log_of((2, 6), (4, 4)), high_watermark=7)
    assert machine.receive(Diverging(EPOCH, 1, 4, 8)) == Truncate(8)


def test_an_unclean_election_may_cost_what_was_committed():
    machine = follower(log_of((2, 6), (4, 4)), high_watermark=7, unclean_epoch=EPOCH)
    assert machine.receive(Diverging(EPOCH, 1, 2, 4)) == Truncate(4)
    assert machine.high_watermark == 3


def test_an_unclean_election_that_it_has_gone_through_may_not_cost_more():
    machine = follower(log_of((2, 6), (4, 4)), high_watermark=7, unclean_epoch=4)
    assert machine.receive(Diverging(EPOCH, 1, 2, 4)) == Damaged(4, 7)


def test_an_answer_that_would_not_make_the_log_shorter_is_not_followed_for_ever():
    machine = follower(log_of((2, 6)))
    assert machine.receive(Diverging(EPOCH, 1, 2, 9)) == Restate(Misfit.NO_PROGRESS)


def test_a_beginning_of_an_epoch_alone_is_cut_off_too():
    log = log_of((2, 6), (4, 0))
    machine = follower(log)
    assert machine.receive(Diverging(EPOCH, 1, 2, 6)) == Truncate(6)
    log.truncate(6)
    assert machine.begin().last_epoch == 2


# -- beginning anew


def test_in_front_of_the_leaders_log_everything_is_dropped():
    log = log_of((2, 6))
    machine = follower(log, high_watermark=5)
    assert machine.receive(BeginAt(EPOCH, 1, 20)) == Restart(20)
    log.restart(20)
    statement = machine.begin()
    assert (statement.next_offset, statement.last_epoch, statement.log_start) == (20, 0, 20)


def test_what_has_got_there_meanwhile_is_kept():
    machine = follower(log_of((2, 6)), high_watermark=5)
    assert machine.receive(BeginAt(EPOCH, 1, 4)) == Restate()
    assert machine.begin().next_offset == 6


def test_nothing_in_common_drops_what_is_not_committed_only():
    assert follower(log_of((1, 6)), high_watermark=3).receive(Diverging(EPOCH, 1, -1, 4)) == Restart(4)
    assert follower(log_of((1, 6)), high_watermark=4).receive(Diverging(EPOCH, 1, -1, 4)) == Damaged(4, 4)
    lossy = follower(log_of((1, 6)), high_watermark=4, unclean_epoch=EPOCH)
    assert lossy.receive(Diverging(EPOCH, 1, -1, 0)) == Restart(0)
    assert lossy.high_watermark == -1


# -- fences


def test_a_fence_ends_the_session():
    machine = follower(log_of((2, 6)))
    assert machine.receive(Fenced(9, 1, Fence.OLD_LEADER_EPOCH)) == Wait(Fence.OLD_LEADER_EPOCH, retry=False)
    assert machine.receive(data((6, 7, EPOCH))) is NOTHING
    machine.begin()
    assert machine.receive(Fenced(4, 2, Fence.UNKNOWN_LEADER_EPOCH)) == Wait(
        Fence.UNKNOWN_LEADER_EPOCH, retry=True
    )
    machine.begin()
    assert machine.receive(Fenced(EPOCH, 3, Fence.OLD_SESSION)) == Restate()


def test_a_fence_of_an_earlier_session_is_no_news():
    machine = follower(log_of((2, 6)))
    machine.begin()
    assert machine.receive(Fenced(EPOCH, 1, Fence.OLD_SESSION)) is NOTHING
    assert machine.receive(Fenced(EPOCH, 1, Fence.NOT_A_REPLICA)) is NOTHING
    assert machine.receive(data((6, 7, EPOCH), session=2)) == Append(1)


# -- what it says


def test_progress_is_said_once():
    log = log_of((2, 6))
    machine = follower(log)
    assert machine.progress() is None
    log.store(Stored(6, EPOCH, ("x",)))
    log.store(Stored(7, EPOCH, ("y",)))
    statement = machine.progress()
    assert statement is not None
    assert (statement.session, statement.next_offset, statement.synced_offset) == (1, 8, 6)
    assert machine.progress() is None
    log.sync()
    statement = machine.progress()
    assert statement is not None
    assert statement.synced_offset == 8
    assert machine.position() == statement


def test_what_the_leader_has_on_disk_is_no_proof_of_what_is_here():
    log = log_of((2, 6))
    machine = follower(log)
    machine.receive(data((6, 7, EPOCH), high_watermark=6))
    log.store(Stored(6, EPOCH, ("x",)))
    machine.appended()
    statement = machine.progress()
    assert statement is not None
    assert (machine.high_watermark, statement.synced_offset) == (6, 6)


def test_another_leader_epoch_is_another_machine():
    machine = follower(log_of((2, 6)))
    assert machine.metadata(partition(epoch=9))
    assert not machine.metadata(partition(leader_epoch=9, epoch=9))


# -- what it has heard


def test_it_states_the_newest_that_it_has_heard_of_its_leader():
    machine = follower(log_of((2, 6)))
    assert machine.begin().heard == NEVER
    machine.receive(replace(data(session=2), sent=5.0))
    machine.receive(replace(data(session=2), sent=4.0))
    machine.receive(replace(data(session=1), sent=8.0))
    machine.receive(replace(data(session=2), sent=9.0, leader_epoch=EPOCH - 1))
    assert machine.position().heard == 5.0
    assert machine.begin().heard == 5.0
