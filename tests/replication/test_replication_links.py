"""Lease, acks, credit, turns."""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from liftbridge.replication.acks import AckGate, AckLimits
from liftbridge.replication.credit import Link, Receipts
from liftbridge.replication.lease import Lease

# -- lease


def test_a_lease_lasts_from_when_the_question_was_sent():
    lease = Lease(2.0)
    assert not lease.valid(0.0)
    lease.confirmed(0, 10.0)
    assert lease.until == 12.0
    assert lease.valid(11.9)
    assert not lease.valid(12.0)
    lease.confirmed(0, 9.0)  # an answer that was overtaken
    assert lease.valid(11.9)


def test_a_lease_ends_with_the_registration():
    lease = Lease(2.0)
    lease.registered(4)
    lease.confirmed(3, 10.0)
    assert not lease.valid(10.5)
    lease.confirmed(4, 10.0)
    lease.registered(4)
    assert lease.valid(10.5)
    lease.registered(7)
    assert not lease.valid(10.5)


def test_while_the_controller_is_away_all_other_in_sync_replicas_make_up_for_it():
    lease = Lease(2.0)
    lease.confirmed(0, 10.0)
    assert lease.valid(12.5, [11.0, 12.0])
    assert not lease.valid(13.0, [11.0, 12.0])
    assert not lease.valid(12.5, [])


# -- acks


def test_limits_do_not_fall():
    gate = AckGate(durable=False)
    assert gate.limits(8, 5, 4, leased=True) == AckLimits(7, 4)
    assert gate.limits(7, 5, 3, leased=True) == AckLimits(7, 4)
    assert gate.limits(9, 5, 6, leased=False) == AckLimits(7, 6)
    gate.close()
    assert gate.limits(9, 9, 8, leased=True) == AckLimits(-1, -1)


# -- credit


def test_what_is_on_its_way_is_bounded_by_the_window():
    link: Link[str] = Link(100, 60)
    link.offer("p")
    assert link.next() == ("p", 60)
    link.sent("p", 60, more=True)
    assert link.next() == ("p", 40)
    link.sent("p", 40, more=True)
    assert link.next() is None
    link.grant(30)
    assert link.next() == ("p", 30)


def test_a_batch_that_is_larger_than_everything_goes():
    link: Link[str] = Link(100, 10)
    link.offer("p")
    assert link.next() == ("p", 10)
    link.sent("p", 5000, more=True)
    assert link.credit == -4900
    assert link.next() is None
    link.grant(5000)
    assert link.next() == ("p", 10)


def test_who_has_sent_too_much_waits_for_the_others():
    link: Link[str] = Link(1_000_000, 10)
    link.offer("big")
    link.offer("small")
    assert link.next() == ("big", 10)
    link.sent("big", 35, more=True)
    turns = []
    for _ in range(6):
        key, size = link.next()  # type: ignore[misc]
        turns.append(key)
        link.sent(key, size, more=True)
    assert turns == ["small", "small", "small", "big", "small", "big"]


def test_who_has_nothing_to_send_has_no_turn():
    link: Link[str] = Link(100, 10)
    assert link.next() is None
    link.offer("p")
    link.offer("p")
    assert link.next() == ("p", 10)
    link.sent("p", 4, more=False)
    assert link.next() is None
    link.offer("p")
    link.withdraw("p")
    assert link.next() is None


@given(
    st.dictionaries(st.integers(0, 5), st.lists(st.integers(1, 500), min_size=1, max_size=30), min_size=1),
    st.integers(1, 200),
    st.integers(1, 100),
)
def test_everything_goes_and_nobody_is_left_behind(batches, window, quantum):
    link: Link[int] = Link(window, quantum)
    left = {key: deque(sizes) for key, sizes in batches.items()}
    largest = max(max(sizes) for sizes in batches.values())
    sent: Counter[int] = Counter()
    for key in left:
        link.offer(key)
    while any(left.values()):
        turn = link.next()
        if turn is None:
            link.grant(window - link.credit)
            continue
        key, limit = turn
        assert limit >= 1
        size = left[key].popleft()
        while left[key] and size + left[key][0] <= limit:
            size += left[key].popleft()
        assert link.credit > 0
        link.sent(key, size, more=bool(left[key]))
        assert link.credit > -largest
        sent[key] += size
        waiting = [sent[other] for other in left if left[other]]
        if waiting:
            assert max(waiting) - min(waiting) <= 2 * (quantum + largest)
    assert link.next() is None


def test_who_is_forgotten_in_its_turn_has_sent_all_the_same():
    """The follower may forget a partition while a batch for it is being read, and begin with it anew."""
    link: Link[str] = Link(100, 60)
    for again in (False, True):
        link.offer("a")
        link.offer("b")
        assert link.next() == ("a", min(60, link.credit))
        link.withdraw("a")
        if again:
            link.offer("a")
        link.sent("a", 10, more=True)
        turn = link.next()
        assert turn is not None
        assert turn[0] == "b"
        link.sent("b", 10, more=False)
    assert link.credit == 60
    assert link.next() == ("a", 60)


def test_credit_is_given_back_in_few_pieces():
    receipts = Receipts(100)
    receipts.dealt_with(24)
    assert receipts.grant() == 0
    receipts.dealt_with(1)
    assert receipts.grant() == 25
    receipts.dealt_with(3)
    assert receipts.grant() == 0
    assert receipts.grant(idle=True) == 3
    assert receipts.grant(idle=True) == 0
