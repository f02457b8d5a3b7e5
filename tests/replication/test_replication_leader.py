"""Rules of the leader: comparing, fencing, committing, sending, acking."""

from __future__ import annotations

import pytest
from replication_cases import BROKER_EPOCHS, EPOCH, leader, log_of, partition, said

from liftbridge.replication.acks import AckLimits
from liftbridge.replication.lease import Lease
from liftbridge.replication.messages import Accepted, Batch, BeginAt, Diverging, Fence, Fenced

# -- comparing


@pytest.mark.parametrize(
    ("end", "epoch", "answer"),
    [
        (10, 4, None),  # all that there was before
        (10, EPOCH, None),  # and the beginning of the epoch
        (11, EPOCH, (EPOCH, 10)),  # more than there is
        (8, 4, None),
        (11, 4, (4, 10)),  # more of epoch 4 than the leader
        (6, 4, None),  # the beginning of epoch 4
        (5, 4, (2, 6)),  # in front of which there is nothing of it
        (6, 2, None),
        (3, 2, None),
        (7, 2, (2, 6)),  # it has more of epoch 2 than the leader
        (8, 3, (2, 6)),  # of an epoch that the leader never had
        (4, 1, (-1, 0)),  # older than everything
    ],
)
def test_what_a_follower_has_is_compared_with_the_log(end, epoch, answer):
    machine = leader(log_of((2, 6), (4, 4)))
    expected = Accepted(EPOCH, 1, -1) if answer is None else Diverging(EPOCH, 1, *answer)
    assert machine.state(said("b", end, epoch), 0.0) == expected


def test_a_position_in_the_running_epoch_in_front_of_its_start_is_compared_like_any_other():
    machine = leader(log_of((2, 6)))
    assert machine.state(said("b", 7), 0.0) == Diverging(EPOCH, 1, EPOCH, 6)
    assert machine.state(said("b", 5, session=2), 0.0) == Diverging(EPOCH, 2, 2, 6)


def test_a_follower_that_is_ahead_diverges_and_counts_for_nothing():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    log.append(EPOCH, "x")
    assert machine.state(said("b", 9), 1.0) == Diverging(EPOCH, 1, EPOCH, 7)
    assert machine.high_watermark == -1
    assert machine.followers["b"].last_caught_up == 0.0
    assert machine.send_from("b") is None


def test_a_follower_in_front_of_the_log_begins_anew():
    log = log_of((2, 4), (2, 2))
    log.retain(4)
    machine = leader(log)
    assert machine.state(said("b", 3, 2), 0.0) == BeginAt(EPOCH, 1, 4)
    assert machine.state(said("b", 4, 2, session=2), 0.0) == Accepted(EPOCH, 2, -1)


def test_what_retention_has_removed_while_it_was_on_its_way_is_no_difference():
    log = log_of((2, 2), (2, 2), (4, 2))
    machine = leader(log, ("a",), min_isr=1)
    machine.state(said("b", 2, 2), 0.0)
    sent = [batch.span for batch in log.behind(2, 2)]
    data = machine.data("b", 1, sent[:3], 7.0)  # up to offset 6
    assert data is not None
    assert data.sent == 7.0
    log.retain(4)
    assert machine.state(said("b", 2, 2), 1.0) == Accepted(EPOCH, 1, 5)
    assert machine.state(said("b", 4, 2), 1.0) == Accepted(EPOCH, 1, 5)
    assert machine.state(said("b", 4, 2, session=2), 1.0) == Diverging(EPOCH, 2, -1, 4)


def test_what_was_not_sent_before_retention_removed_it_is_gone():
    log = log_of((2, 2), (2, 2), (4, 2))
    machine = leader(log, ("a",), min_isr=1)
    machine.state(said("b", 2, 2), 0.0)
    log.retain(4)
    assert machine.state(said("b", 2, 2), 1.0) == BeginAt(EPOCH, 1, 4)


def test_a_follower_without_anything_fits_wherever_the_log_goes():
    log = log_of((2, 4), (2, 2))
    log.retain(4)
    machine = leader(log)
    assert machine.state(said("b", 5, 0, log_start=5), 0.0) == Accepted(EPOCH, 1, -1)
    # The leader's log has forgotten an epoch without records there; so it is no matter.
    assert machine.state(said("b", 4, 1, log_start=4, session=2), 0.0) == Accepted(EPOCH, 2, -1)
    assert machine.state(said("b", 4, 1, session=3), 0.0) == Diverging(EPOCH, 3, -1, 4)
    assert machine.state(said("c", 7, 0, log_start=7), 0.0) == Diverging(EPOCH, 1, -1, 4)


# -- fencing


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"leader_epoch": EPOCH - 1}, Fence.OLD_LEADER_EPOCH),
        ({"leader_epoch": EPOCH + 1}, Fence.UNKNOWN_LEADER_EPOCH),
        ({"broker": "d"}, Fence.NOT_A_REPLICA),
        ({"broker": "a"}, Fence.NOT_A_REPLICA),
        ({"broker_epoch": BROKER_EPOCHS["b"] - 1}, Fence.OLD_BROKER_EPOCH),
        ({"session": 1}, Fence.OLD_SESSION),
        ({"next_offset": 5}, Fence.OLD_SESSION),
    ],
)
def test_what_is_fenced_changes_nothing_and_is_answered(changes, reason):
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    machine.state(said("b", 6, 2, session=2), 1.0)
    watermark = machine.high_watermark
    log.append(EPOCH, "x")
    late = said(**{"broker": "b", "next_offset": 7, "session": 2, **changes})
    assert machine.state(late, 9.0) == Fenced(EPOCH, late.session, reason)
    assert machine.high_watermark == watermark == 5
    assert (machine.followers["b"].next_offset, machine.followers["b"].last_fetch) == (6, 1.0)
    assert set(machine.followers) == {"b"}


def test_who_leads_no_more_says_so():
    machine = leader(log_of((2, 6)))
    assert not machine.metadata(partition(leader="b", leader_epoch=9, epoch=9), BROKER_EPOCHS, 0.0)
    assert machine.state(said("b", 6, 2), 0.0) == Fenced(EPOCH, 1, Fence.NOT_LEADING)


def test_an_older_answer_about_the_metadata_does_not_depose_it():
    machine = leader(log_of((2, 6)))
    assert machine.metadata(partition(leader="c", leader_epoch=3, epoch=3), BROKER_EPOCHS, 0.0)


# -- committing


def test_committed_is_what_all_in_sync_replicas_have():
    log = log_of((2, 6))
    machine = leader(log, high_watermark=2)
    log.append(EPOCH, "x", "y")
    assert machine.commit() == 2
    machine.state(said("b", 8), 0.0)
    assert machine.high_watermark == 2  # c has said nothing yet
    assert not machine.established
    machine.state(said("c", 6, 2), 0.0)
    assert machine.high_watermark == 5
    assert machine.established
    machine.state(said("c", 7), 0.0)
    assert machine.high_watermark == 6


def test_with_sync_always_only_what_is_on_disk_counts_the_own_disk_included():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"), synced=True)
    log.append(EPOCH, "x", "y")
    machine.state(said("b", 8, synced_offset=7), 0.0)
    assert machine.high_watermark == 5
    log.sync()
    assert machine.commit() == 6
    machine.state(said("b", 8), 0.0)
    assert machine.high_watermark == 7


def test_nobody_has_on_disk_what_it_has_not_written():
    machine = leader(log_of((2, 6)), ("a", "b"), synced=True)
    machine.state(said("b", 4, 2, synced_offset=6), 0.0)
    assert machine.high_watermark == 3


def test_nothing_is_committed_below_min_isr():
    log = log_of((2, 6))
    machine = leader(log, ("a",), min_isr=2, high_watermark=3)
    machine.state(said("b", 6, 2), 0.0)
    assert machine.under_min_isr
    assert machine.commit() == 3
    assert machine.metadata(partition(("a", "b"), epoch=6), BROKER_EPOCHS, 0.0)
    assert machine.high_watermark == 5


def test_the_high_watermark_does_not_fall():
    machine = leader(log_of((2, 6)), ("a", "b"))
    machine.state(said("b", 6, 2), 0.0)
    assert machine.high_watermark == 5
    machine.state(said("b", 2, 2, session=2), 0.0)
    assert (machine.high_watermark, machine.followers["b"].next_offset) == (5, 2)


def test_it_is_in_front_of_the_own_end_from_the_beginning():
    assert leader(log_of((2, 6)), high_watermark=9).high_watermark == 5


def test_a_new_epoch_knows_nothing_of_what_others_had():
    machine = leader(log_of((2, 6)), ("a", "b"))
    machine.state(said("b", 6, 2), 0.0)
    again = leader(log_of((2, 6)), ("a", "b"), high_watermark=1)
    assert again.commit() == 1


def test_a_log_that_does_not_fit_holds_the_high_watermark_up():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    machine.state(said("b", 6, 2), 0.0)
    log.append(EPOCH, "x")
    assert isinstance(machine.state(said("b", 7, 4, session=2), 0.0), Diverging)
    log.append(EPOCH, "y")
    assert machine.commit() == 5


# -- caught up


def test_who_keeps_up_with_a_moving_end_is_caught_up():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    for at in range(1, 40):
        behind = log.next_offset
        log.append(EPOCH, "x", "y", "z")
        machine.state(said("b", behind), float(at))
        assert machine.followers["b"].last_caught_up >= at - 2
        assert machine.propose(float(at)) is None


def test_statements_that_come_faster_than_data_do_not_move_the_mark_away():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    for at in range(1, 400):
        # Always five batches behind, and stating each of them.
        log.append(EPOCH, "x")
        machine.state(said("b", max(6, log.next_offset - 5)), at / 10)
    assert machine.followers["b"].last_caught_up > 38.0
    assert machine.propose(40.0) is None


def test_who_falls_behind_is_not_caught_up():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    for at in range(1, 21):
        log.append(EPOCH, "x", "y")
        machine.state(said("b", 6 + at), float(at))
    # At time 1 there were 8: that it had them it said at time 2, and that it had those of then, at time 6.
    assert machine.followers["b"].last_caught_up < 10.0


# -- sending


def test_data_goes_on_where_the_follower_is_and_where_it_was_sent_to():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    machine.state(said("b", 6, 2, session=3), 0.0)
    place = machine.send_from("b")
    assert place is not None
    assert (place.session, place.next_offset, place.last_epoch) == (3, 6, 2)
    sent = machine.data("b", 3, [Batch(6, 6, EPOCH, 50)])
    assert sent is not None
    assert (sent.session, sent.high_watermark) == (3, 5)
    log.append(EPOCH, "x")
    assert machine.data("b", 3, [Batch(6, 7, EPOCH, 50)]) is not None
    place = machine.send_from("b")
    assert place is not None
    assert (place.next_offset, place.last_epoch) == (7, EPOCH)
    machine.state(said("b", 6, session=3), 0.0)  # what it has had so far
    assert machine.send_from("b") == place
    machine.state(said("b", 6, session=4), 0.0)  # the rest was lost
    assert machine.data("b", 3) is None
    again = machine.send_from("b")
    assert again is not None
    assert (again.session, again.next_offset) == (4, 6)


def test_nothing_is_sent_to_whom_nothing_is_known_of():
    machine = leader(log_of((2, 6)))
    assert machine.send_from("b") is None
    assert machine.send_from("d") is None
    assert machine.data("d", 1) is None


# -- acks


def test_acks_of_each_policy():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    lease = Lease(2.0)
    lease.registered(1)
    lease.confirmed(1, 10.0)
    log.append(EPOCH, "x", "y")
    machine.state(said("b", 7), 11.0)
    assert machine.acks(lease, 11.0) == AckLimits(leader=7, all=6)


def test_acks_by_the_leader_alone_wait_for_its_disk_with_sync_always():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"), synced=True)
    lease = Lease(2.0)
    lease.confirmed(0, 10.0)
    log.append(EPOCH, "x", "y")
    assert machine.acks(lease, 11.0).leader == 5
    log.sync()
    assert machine.acks(lease, 11.0).leader == 7


def test_without_a_lease_only_what_is_committed_is_acked():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    lease = Lease(2.0)
    lease.confirmed(0, 10.0)
    assert machine.acks(lease, 11.0).leader == 5
    log.append(EPOCH, "x", "y")
    machine.state(said("b", 7), 0.0)
    assert machine.acks(lease, 12.0) == AckLimits(leader=5, all=6)
    lease.confirmed(0, 12.0)
    assert machine.acks(lease, 13.0) == AckLimits(leader=7, all=6)


def test_a_follower_that_has_heard_its_leader_keeps_it_from_giving_up():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b", "c"))
    lease = Lease(2.0)
    for name in "bc":
        machine.state(said(name, 6, 2), 9.0)
        machine.state(said(name, 6, 2, heard=10.0), 11.0)
    assert machine.leased(lease, 11.9)
    assert not machine.leased(lease, 12.0)


def test_eligible_replicas_may_lead_next_as_well():
    machine = leader(log_of((2, 6)), ("a", "b"), min_isr=3, elr=("c",))
    machine.state(said("b", 6, 2, heard=10.0), 11.0)
    assert not machine.leased(Lease(2.0), 11.0)
    machine.state(said("c", 6, 2, heard=10.0), 11.0)
    assert machine.leased(Lease(2.0), 11.0)


def test_a_statement_that_was_on_its_way_for_long_is_no_sign_of_life():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    machine.state(said("b", 6, 2, heard=10.0), 100.0)
    assert machine.followers["b"].last_fetch == 100.0
    assert not machine.leased(Lease(2.0), 100.0)
    # Nor is one that was overtaken, and one whose log does not fit says as much.
    machine.state(said("b", 9, heard=99.0), 100.0)
    machine.state(said("b", 6, 2, heard=98.0, session=2), 100.0)
    assert machine.leased(Lease(2.0), 100.9)
    assert not machine.leased(Lease(2.0), 101.0)


def test_what_must_not_be_old_is_answered_when_nobody_else_can_have_led():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    lease = Lease(2.0)
    machine.state(said("b", 6, heard=9.0), 10.0)
    lease.confirmed(0, 10.0)
    assert not machine.alone(lease, 10.0, 11.0)  # b may lead since 9
    machine.state(said("b", 6, heard=10.0), 11.0)
    assert machine.alone(lease, 10.0, 11.0)
    assert not machine.alone(lease, 10.1, 11.0)
    assert not machine.alone(lease, 10.0, 12.0)  # it may have been fenced
    machine.retire()
    assert not machine.alone(lease, 10.0, 11.0)


def test_what_must_not_be_old_is_not_answered_before_the_newest_is_known():
    log = log_of((2, 6))
    machine = leader(log, ("a",), min_isr=2)
    lease = Lease(2.0)
    lease.confirmed(0, 10.0)
    assert not machine.alone(lease, 10.0, 11.0)
    machine = leader(log_of((2, 6)), ("a",), min_isr=1)
    machine.commit()
    assert machine.alone(lease, 10.0, 11.0)


def test_after_stepping_down_nothing_is_acked_committed_or_proposed():
    log = log_of((2, 6))
    machine = leader(log, ("a", "b"))
    lease = Lease(2.0)
    lease.confirmed(0, 10.0)
    machine.state(said("b", 6, 2), 10.0)
    machine.retire()
    log.append(EPOCH, "x")
    assert machine.acks(lease, 11.0) == AckLimits(-1, -1)
    assert machine.commit() == 5
    assert machine.propose(1000.0) is None
    assert machine.send_from("b") is None
    assert machine.data("b", 1) is None
    assert not machine.leased(lease, 11.0)
