"""Rules of the in-sync replicas: who is admitted, who is removed, what holds while nobody knows."""

from __future__ import annotations

import dataclasses

import pytest
from replication_cases import BROKER_EPOCHS, EPOCH, STREAM, leader, log_of, partition, said

from liftbridge.metadata.replica_operations import IsrChange
from liftbridge.metadata.replicas import Refusal, Result
from liftbridge.replication.isr import Unknown


def change(*isr: str, epoch: int = EPOCH, lost: tuple[str, ...] = ()) -> IsrChange:
    members = tuple((broker, BROKER_EPOCHS[broker]) for broker in isr)
    return IsrChange(STREAM, 0, epoch, "a", EPOCH, members, lost)


def refused(refusal: Refusal = Refusal.PARTITION_EPOCH) -> Result:
    return Result(STREAM, 0, partition(), refusal)


# -- admission


def test_admitted_is_who_has_everything_that_may_be_committed():
    log = log_of((2, 6))
    machine = leader(log, ("a",), min_isr=1)
    machine.state(said("b", 6), 0.5)  # it is caught up, and a moment later it is not
    log.append(EPOCH, "x", "y")
    machine.commit()
    machine.state(said("b", 7), 1.0)
    assert machine.propose(1.0) is None
    machine.state(said("b", 8), 2.0)
    assert machine.propose(2.0) == change("a", "b")


def test_the_start_of_the_epoch_has_to_be_reached_too():
    log = log_of((2, 6))
    machine = leader(log, ("a", "c"), high_watermark=2)
    machine.state(said("b", 6, 2), 1.0)
    assert machine.propose(1.0) == change("a", "c", "b")
    machine = leader(log_of((2, 6)), ("a", "c"), high_watermark=2)
    machine.state(said("b", 6, 2), 1.0)
    machine.state(said("b", 5, 2, session=2), 2.0)
    assert machine.propose(2.0) is None


def test_with_sync_always_it_has_to_be_on_its_disk():
    machine = leader(log_of((2, 6)), ("a",), min_isr=1, synced=True)
    machine.commit()
    machine.state(said("b", 6, synced_offset=5), 1.0)
    assert machine.propose(1.0) is None
    machine.state(said("b", 6), 2.0)
    assert machine.propose(2.0) == change("a", "b")


def test_who_was_never_caught_up_is_not_admitted_only_to_be_removed():
    log = log_of((2, 6))
    machine = leader(log, ("a", "c"))
    log.append(EPOCH, *"xyz")
    machine.state(said("b", 7), 1.0)  # behind the high watermark, which c holds up, and behind the end
    assert machine.propose(1.0) is None
    machine.state(said("b", 9), 2.0)
    assert machine.propose(2.0) == change("a", "c", "b")


@pytest.mark.parametrize("epochs", [{"a": 1, "c": 3}, {"a": 1, "b": 9, "c": 3}])
def test_a_broker_that_is_fenced_or_has_registered_anew_is_not_admitted(epochs):
    machine = leader(log_of((2, 6)), ("a", "c"))
    machine.state(said("b", 6), 1.0)
    machine.metadata(partition(("a", "c")), epochs, 1.0)
    assert machine.propose(1.0) is None


def test_a_log_that_does_not_fit_is_not_admitted():
    machine = leader(log_of((2, 6)), ("a", "c"))
    machine.state(said("b", 6), 1.0)
    machine.state(said("b", 7, session=2), 1.0)
    assert machine.propose(1.0) is None


# -- removal


def test_removed_is_who_was_not_caught_up_for_the_longest_lag():
    log = log_of((2, 6))
    machine = leader(log)
    machine.state(said("b", 6), 1.0)
    machine.state(said("c", 6), 3.0)
    log.append(EPOCH, "x")
    assert machine.propose(11.0) is None
    assert machine.propose(11.5) == change("a", "c")


def test_who_says_nothing_has_the_longest_lag_from_the_beginning_of_the_epoch():
    machine = leader(log_of((2, 6)), now=100.0)
    assert machine.propose(110.0) is None
    assert machine.propose(110.5) == change("a")


def test_who_has_lost_what_was_committed_is_removed_at_once_and_must_not_lead():
    machine = leader(log_of((2, 6)))
    machine.state(said("b", 6), 1.0)
    machine.state(said("c", 6), 1.0)
    assert machine.high_watermark == 5
    machine.state(said("c", 5, 2, session=2), 1.0)
    assert machine.propose(1.0) == change("a", "b", lost=("c",))


def test_an_eligible_replica_that_has_lost_something_is_told_of():
    machine = leader(log_of((2, 6)), ("a",), high_watermark=5, elr=("b",))
    machine.state(said("b", 3, 2), 1.0)
    assert machine.propose(1.0) == change("a", lost=("b",))


# -- proposals


def test_one_proposal_at_a_time():
    machine = leader(log_of((2, 6)), ("a",), min_isr=1)
    machine.state(said("b", 6), 1.0)
    assert machine.propose(1.0) is not None
    machine.state(said("c", 6), 1.0)
    assert machine.propose(1.0) is None


def test_whose_admission_is_proposed_counts_at_once():
    log = log_of((2, 6))
    machine = leader(log, ("a",), min_isr=1)
    machine.state(said("b", 6), 1.0)
    assert machine.propose(1.0) == change("a", "b")
    assert machine.isr.maximal == {"a", "b"}
    log.append(EPOCH, "x")
    assert machine.commit() == 5
    machine.state(said("b", 7), 1.0)
    assert machine.high_watermark == 6


def test_whose_removal_is_proposed_counts_until_it_is_applied():
    log = log_of((2, 6))
    machine = leader(log)
    machine.state(said("b", 6), 20.0)
    proposed = machine.propose(20.0)
    assert proposed == change("a", "b")
    assert machine.commit() == -1
    applied = partition(("a", "b"), epoch=20)
    machine.resolve(proposed, Result(STREAM, 0, applied), 20.0)
    assert machine.high_watermark == 5
    assert machine.isr.committed == ("a", "b")
    assert machine.isr.pending is None


def test_min_isr_counts_the_committed_set():
    machine = leader(log_of((2, 6)), ("a",), min_isr=2)
    machine.state(said("b", 6), 1.0)
    proposed = machine.propose(1.0)
    assert machine.commit() == -1
    machine.resolve(proposed, Result(STREAM, 0, partition(("a", "b"), epoch=20)), 1.0)
    assert machine.high_watermark == 5


def test_what_was_refused_holds_nothing_up_and_is_not_proposed_at_once():
    log = log_of((2, 6))
    machine = leader(log, ("a",), min_isr=1)
    machine.state(said("b", 6), 1.0)
    proposed = machine.propose(1.0)
    log.append(EPOCH, "x")
    machine.resolve(proposed, refused(), 1.0)
    assert machine.high_watermark == 6
    assert machine.isr.maximal == {"a"}
    machine.state(said("b", 7), 1.5)
    assert machine.propose(1.5) is None
    machine.metadata(partition(("a",), epoch=8), BROKER_EPOCHS, 2.0)
    assert machine.propose(2.0) == change("a", "b", epoch=8)


def test_what_came_twice_is_refused_the_second_time_and_was_applied():
    """The answer to the second may come first: it says what the partition is."""
    log = log_of((2, 6))
    machine = leader(log, ("a",), min_isr=1)
    machine.state(said("b", 6), 1.0)
    proposed = machine.propose(1.0)
    log.append(EPOCH, "x")
    now = partition(("a", "b"), epoch=20)
    machine.resolve(proposed, Result(STREAM, 0, now, Refusal.PARTITION_EPOCH), 1.0)
    assert machine.isr.committed == ("a", "b")
    assert machine.high_watermark == 5


def test_a_refusal_tells_a_leader_that_it_was_deposed():
    machine = leader(log_of((2, 6)), ("a",), min_isr=1)
    machine.state(said("b", 6), 1.0)
    proposed = machine.propose(1.0)
    now = partition(("b",), epoch=20, leader="b", leader_epoch=20)
    machine.resolve(proposed, Result(STREAM, 0, now, Refusal.LEADER_EPOCH), 1.0)
    assert machine.retired


def test_what_was_not_answered_may_still_be_applied():
    log = log_of((2, 6))
    machine = leader(log, ("a",), min_isr=1)
    machine.state(said("b", 6), 1.0)
    proposed = machine.propose(1.0)
    machine.resolve(proposed, Unknown.UNKNOWN, 1.0)
    log.append(EPOCH, "x")
    assert machine.commit() == 5
    assert machine.isr.maximal == {"a", "b"}
    # It is proposed again, and that one refused: the first may still come.
    machine.state(said("b", 7), 5.0)
    again = machine.propose(5.0)
    assert again == proposed
    machine.resolve(again, refused(Refusal.NOT_ALIVE), 5.0)
    log.append(EPOCH, "y")
    assert machine.commit() == 6
    machine.metadata(partition(("a",), epoch=8), BROKER_EPOCHS, 6.0)
    assert machine.high_watermark == 7


def test_what_may_still_be_applied_and_is_not_wanted_any_more_is_ended():
    log = log_of((2, 6))
    machine = leader(log, ("a",), min_isr=1)
    machine.state(said("b", 6), 1.0)
    machine.resolve(machine.propose(1.0), Unknown.UNKNOWN, 1.0)
    log.append(EPOCH, "x")
    assert machine.propose(30.0) == change("a")


def test_an_answer_to_an_earlier_proposal_is_no_news():
    machine = leader(log_of((2, 6)), ("a",), min_isr=1)
    machine.state(said("b", 6), 1.0)
    proposed = machine.propose(1.0)
    machine.resolve(dataclasses.replace(proposed, epoch=1), refused(), 1.0)
    assert machine.isr.pending == proposed


def test_the_broker_epoch_of_a_proposal_is_the_one_that_was_stated():
    machine = leader(log_of((2, 6)))
    machine.state(said("b", 6, broker_epoch=7), 20.0)
    assert machine.propose(20.0).isr == (("a", 1), ("b", 7))


def test_a_replica_that_was_moved_away_is_forgotten():
    machine = leader(log_of((2, 6)), ("a", "b"))
    machine.state(said("b", 6), 1.0)
    machine.state(said("c", 6), 1.0)
    machine.metadata(partition(("a", "b"), replicas=("a", "b"), epoch=9), BROKER_EPOCHS, 1.0)
    assert set(machine.followers) == {"b"}
