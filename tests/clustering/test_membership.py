"""Who is to be a member of the consensus, as a function of who is and who has registered."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftbridge.broker.membership import Add, Demote, Promote, Remove, changes
from liftbridge.metadata.broker_operations import Ended
from liftbridge.metadata.brokers import Broker, BrokerState
from liftbridge.raft import Members

ACTIVE, FENCED, REMOVED = BrokerState.ACTIVE, BrokerState.FENCED, BrokerState.REMOVED


def brokers(**nodes: tuple[int, BrokerState]) -> dict[str, Broker]:
    return {
        name: Broker(name, uuid.UUID(int=node), 1, (), "", 0, Ended.CLEAN, node, state)
        for name, (node, state) in nodes.items()
    }


def members(voters=(), learners=()) -> Members:
    return Members(frozenset(voters), frozenset(learners))


THREE = brokers(a=(1, ACTIVE), b=(2, ACTIVE), c=(3, ACTIVE))


@pytest.mark.parametrize(
    "who, registered, most, wanted",
    [
        (members([1]), {}, 0, []),
        (members([1]), brokers(a=(1, ACTIVE)), 0, []),
        (members([1]), brokers(a=(1, ACTIVE), b=(2, FENCED)), 0, [Add(2)]),
        (members([1], [2]), brokers(a=(1, ACTIVE), b=(2, FENCED)), 0, []),
        (members([1], [2, 3]), THREE, 0, [Promote(2), Promote(3)]),
        (members([1, 2], [3]), THREE, 2, []),
        (members([1, 2], [3]), THREE, 3, [Promote(3)]),
        (members([1, 2, 3]), THREE, 0, []),
        # A disk was replaced: the node that it was goes first.
        (members([1, 2, 3]), brokers(a=(1, ACTIVE), b=(20, FENCED), c=(3, ACTIVE)), 0, [Remove(2), Add(20)]),
        # A broker has gone for good.
        (members([1, 2, 3]), brokers(a=(1, ACTIVE), b=(2, REMOVED), c=(3, ACTIVE)), 0, [Remove(2)]),
        # One that is dead has a vote that another could use.
        (members([1, 2], [3]), brokers(a=(1, ACTIVE), b=(2, FENCED), c=(3, ACTIVE)), 2, [Demote(2)]),
        (members([1, 2, 3]), brokers(a=(1, ACTIVE), b=(2, FENCED), c=(3, ACTIVE)), 3, []),
        # The leader stays, whatever is known of it: it was begun before brokers registered.
        (members([1, 2]), brokers(b=(2, ACTIVE)), 0, []),
    ],
)
def test_what_is_changed_next(who, registered, most, wanted):
    assert changes(who, registered, most, own=1) == wanted


nodes = st.integers(1, 6)


@given(
    st.sets(nodes), st.sets(nodes), st.dictionaries(nodes, st.sampled_from(BrokerState)), st.integers(0, 4)
)
def test_the_changes_come_to_an_end(voters, learners, states, most):
    who = members(voters | {1}, learners - voters - {1})
    registered = brokers(**{f"b{node}": (node, state) for node, state in states.items()})
    for _ in range(50):
        possible = changes(who, registered, most, own=1)
        if not possible:
            break
        before = who
        who = changed(who, possible[0])
        assert len(before.voters ^ who.voters) <= 1
        assert 1 in who.voters
    else:
        raise AssertionError(f"no end: {who}")
    wanted = {node for node, state in states.items() if state is not REMOVED} | {1}
    assert who.voters | who.learners == wanted
    if not most or len(voters | {1}) <= most:
        assert not most or len(who.voters) <= most
        alive = {node for node in wanted if node == 1 or states[node] in (ACTIVE, BrokerState.DRAINING)}
        assert alive <= who.voters or len(who.voters) == most


def changed(who: Members, change) -> Members:
    voters, learners = set(who.voters), set(who.learners)
    voters.discard(change.node)
    learners.discard(change.node)
    if isinstance(change, Promote):
        voters.add(change.node)
    elif isinstance(change, Add | Demote):
        learners.add(change.node)
    return members(voters, learners)
