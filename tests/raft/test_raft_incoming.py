"""A snapshot in pieces: whatever happens to them, it is the one that was sent, or none."""

from __future__ import annotations

import zlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from liftbridge.raft import Members, SnapshotChunk, SnapshotMeta
from liftbridge.raft.incoming import Incoming

META = SnapshotMeta(9, 2, Members(frozenset({1, 2})))


def pieces(state, size, **changed):
    """The pieces of a snapshot, in order; one at least."""
    return [
        replace(
            SnapshotChunk(2, 1, 2, 5, 1, META, at, len(state), zlib.crc32(state), state[at : at + size]),
            **changed,
        )
        for at in range(0, max(len(state), 1), size)
    ]


@given(state=st.binary(max_size=60), size=st.integers(1, 20), chance=st.randoms(use_true_random=False))
def test_pieces_may_be_lost_doubled_and_late(state, size, chance):
    incoming, sent = Incoming(), pieces(state, size)
    taken = None
    for _ in range(400):
        # The sender goes on from what is there, and old pieces come in between.
        wanted = next((each for each in sent if each.offset == incoming.received), sent[-1])
        taken = incoming.take(chance.choice([wanted, chance.choice(sent)]))
        if taken is not None:
            break
    assert taken == state
    assert incoming.received == 0


@given(first=st.binary(min_size=4, max_size=30), other=st.binary(min_size=4, max_size=30))
def test_pieces_of_two_snapshots_are_not_mixed(first, other):
    incoming = Incoming()
    (begun, *_), (whole,) = pieces(first, 2), pieces(other, 100, source=3)
    assert incoming.take(begun) is None
    assert incoming.take(whole) == other


def test_what_distinguishes_snapshots():
    for changed in (
        {"source": 3},
        {"incarnation": 6},
        {"meta": SnapshotMeta(10, 2, META.members)},
        {"total": 7},
        {"checksum": 1},
    ):
        incoming = Incoming()
        first, second, _ = pieces(b"abcdef", 2)
        incoming.take(first)
        assert incoming.take(replace(second, **changed)) is None
        assert incoming.received == 0, f"a piece that differs by {changed} does not continue it"


def test_a_whole_that_is_not_what_its_checksum_says_is_asked_for_from_the_beginning():
    incoming = Incoming()
    first, second = pieces(b"abcd", 2)
    incoming.take(first)
    assert incoming.take(replace(second, data=b"xx")) is None
    assert incoming.received == 0
    incoming.take(first)
    assert incoming.take(second) == b"abcd"


def test_a_whole_that_is_longer_than_it_says_is_not_taken():
    incoming = Incoming()
    (only,) = pieces(b"abcd", 4)
    longer = b"abcde"
    assert incoming.take(replace(only, data=longer, checksum=zlib.crc32(longer))) is None


def test_an_empty_state_is_a_whole():
    (only,) = pieces(b"", 4)
    assert Incoming().take(only) == b""


def test_what_is_not_newer_is_let_go():
    incoming = Incoming()
    incoming.take(pieces(b"abcd", 2)[0])
    incoming.clear_up_to(8)
    assert incoming.received == 2
    incoming.clear_up_to(9)
    assert incoming.received == 0
