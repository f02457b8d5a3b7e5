"""Majorities against their definition: all subsets."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from liftbridge.raft import Members, quorum

NODES = st.frozensets(st.integers(1, 7), max_size=7)


def majorities(voters):
    return [
        set(some)
        for size in range(len(voters) + 1)
        for some in combinations(sorted(voters), size)
        if 2 * len(some) > len(voters)
    ]


@given(voters=NODES, agreeing=NODES)
def test_decided_means_that_a_majority_agrees(voters, agreeing):
    assert quorum.decided(voters, agreeing) == any(some <= agreeing for some in majorities(voters))


@given(voters=NODES.filter(bool), refusing=NODES)
def test_lost_means_that_no_majority_can_agree_any_more(voters, refusing):
    assert quorum.lost(voters, refusing) == all(some & refusing for some in majorities(voters))


@given(voters=NODES.filter(bool), match=st.dictionaries(st.integers(1, 9), st.integers(0, 20)))
def test_committed_is_what_all_of_some_majority_have(voters, match):
    best = max(min(match.get(node, 0) for node in some) for some in majorities(voters))
    assert quorum.committed_index(voters, match) == best


def test_without_voters_nothing_is_committed_or_decided():
    assert quorum.committed_index(frozenset(), {1: 9}) == 0
    assert not quorum.decided(frozenset(), {1})


@given(old=NODES.filter(bool), new=NODES)
def test_members_that_overlap_have_a_voter_in_common_in_each_two_majorities(old, new):
    if quorum.overlap(Members(old), Members(new)):
        assert all(one & other for one in majorities(old) for other in majorities(new))
