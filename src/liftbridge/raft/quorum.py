"""Majorities, as functions of who has a vote and what is known of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from liftbridge.raft.messages import Members, NodeId


def majority(voters: Collection[NodeId]) -> int:
    """How many of them decide."""
    return len(voters) // 2 + 1


def decided(voters: Collection[NodeId], agreeing: Collection[NodeId]) -> bool:
    """Whether a majority of the voters is among those who agree."""
    return sum(node in agreeing for node in voters) >= majority(voters)


def lost(voters: Collection[NodeId], refusing: Collection[NodeId]) -> bool:
    """Whether so many refuse that a majority can no longer agree."""
    return len(voters) - sum(node in refusing for node in voters) < majority(voters)


def committed_index(voters: Collection[NodeId], match: Mapping[NodeId, int]) -> int:
    """The greatest index that a majority of the voters has on the disk; 0 for a voter nothing is known of."""
    if not voters:
        return 0
    known = sorted((match.get(node, 0) for node in voters), reverse=True)
    return known[majority(voters) - 1]


def overlap(old: Members, new: Members) -> bool:
    """Whether each majority of the one has a voter in common with each majority of the other.

    It is so when they differ by one voter, and that is how members are changed: one at a time.
    """
    return len(old.voters ^ new.voters) <= 1 and bool(new.voters)
