"""The bytes of replication on a link: what one codec writes the other reads, and nothing else is taken."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftbridge.replication.codec import MAX_NUMBER, CodecError, FollowerCodec, LeaderCodec
from liftbridge.replication.messages import (
    Accepted,
    Batch,
    BeginAt,
    Data,
    Diverging,
    Fence,
    Fenced,
    Statement,
)

KEYS = [(uuid.UUID(int=stream), partition) for stream in (1, 2) for partition in (0, 3)]
NUMBERS = st.one_of(st.integers(0, 5), st.integers(0, MAX_NUMBER))
SMALL = st.integers(0, 3)


@st.composite
def statements(draw):
    start, end = sorted((draw(NUMBERS), draw(NUMBERS)))
    return Statement("f", draw(SMALL), draw(SMALL), draw(SMALL), end, draw(NUMBERS), draw(NUMBERS), start)


@st.composite
def datas(draw):
    batches, end = [], draw(st.integers(0, 1 << 40))
    for _ in range(draw(st.integers(0, 4))):
        first = end if draw(st.booleans()) else end + draw(SMALL)
        end = first + draw(st.one_of(SMALL, st.integers(0, 1 << 40)))
        batches.append(Batch(first, end, draw(SMALL), draw(st.integers(1, (1 << 32) - 1))))
    return Data(draw(SMALL), draw(SMALL), tuple(batches), draw(st.integers(-1, 3)), draw(SMALL))


ANSWERS = st.one_of(
    st.builds(Accepted, NUMBERS, NUMBERS, st.integers(-1, MAX_NUMBER)),
    st.builds(Diverging, NUMBERS, NUMBERS, st.integers(-1, MAX_NUMBER), NUMBERS),
    st.builds(BeginAt, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Fenced, NUMBERS, NUMBERS, st.sampled_from(Fence)),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("state"), st.sampled_from(KEYS), statements()),
        st.tuples(st.just("forget"), st.sampled_from(KEYS), st.none()),
        st.tuples(st.just("answer"), st.sampled_from(KEYS), ANSWERS),
        st.tuples(st.just("data"), st.sampled_from(KEYS), datas()),
        st.tuples(st.sampled_from(["to leader", "to follower"]), st.none(), st.none()),
    ),
    max_size=40,
)


class Link:
    """Both ends, and what is on its way between them."""

    def __init__(self):
        self.follower, self.leader = FollowerCodec("f"), LeaderCodec("f")
        self.to_leader, self.to_follower = deque(), deque()
        self.dropped = 0

    def do(self, what, key, value):
        if what == "state":
            self.to_leader.append((key, value, self.follower.statement(key, value)))
        elif what == "forget":
            self.to_leader.append((key, None, self.follower.forget(key)))
        elif what in ("answer", "data"):
            encoded = getattr(self.leader, what)(key, value)
            assert bool(encoded) == self.leader.knows(key)
            if encoded:
                self.to_follower.append((key, value, encoded))
        elif what == "to leader" and self.to_leader:
            self.lead(*self.to_leader.popleft())
        elif what == "to follower" and self.to_follower:
            self.follow(*self.to_follower.popleft())

    def lead(self, key, value, encoded):
        heard = self.leader.decode(encoded)
        assert heard.statements == ({} if value is None else {key: value})
        assert heard.forgotten == ([key] if value is None and encoded else [])
        assert self.leader.knows(key) == (value is not None)

    def follow(self, key, value, encoded):
        told = self.follower.decode(encoded)
        size = sum(batch.size for batch in value.batches) if isinstance(value, Data) else 0
        assert told.payload == size
        if told.messages:
            assert told.messages == [(key, value)]
            assert told.payload_for == (0 if size else None)
        else:
            self.dropped += 1
            assert told.payload_for is None


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_what_one_end_says_the_other_one_reads(steps):
    link = Link()
    for step in steps:
        link.do(*step)
    while link.to_leader:
        link.do("to leader", None, None)
    while link.to_follower:
        link.do("to follower", None, None)


def test_nothing_is_dropped_of_a_partition_that_was_not_forgotten():
    link = Link()
    for step in (
        ("state", KEYS[0], Statement("f", 1, 1, 1, 0, 0, 0, 0)),
        ("to leader", None, None),
        ("answer", KEYS[0], Accepted(1, 1, -1)),
        ("data", KEYS[0], Data(1, 1, (Batch(0, 1, 1, 10),), -1, 0)),
        ("data", KEYS[0], Data(1, 1, (Batch(1, 2, 1, 10),), 0, 0)),
        *[("to follower", None, None)] * 3,
    ):
        link.do(*step)
    assert link.dropped == 0


def test_within_a_session_only_what_changes_travels():
    codec, other = FollowerCodec("f"), LeaderCodec("f")
    first = Statement("f", 1, 1, 1, 10, 1, 5, 0)
    assert len(codec.statement(KEYS[0], first)) == 86
    assert len(codec.statement(KEYS[0], replace(first, next_offset=11))) == 14
    assert len(codec.statement(KEYS[0], replace(first, next_offset=11, synced_offset=11))) == 14
    other.decode(FollowerCodec("f").statement(KEYS[0], first))
    other.data(KEYS[0], Data(1, 1, (Batch(10, 20, 1, 100),), 5, 0))
    assert len(other.data(KEYS[0], Data(1, 1, (Batch(20, 30, 1, 100),), 5, 0))) == 17


def test_an_alias_is_not_used_again():
    follower, leader = FollowerCodec("f"), LeaderCodec("f")
    stated = Statement("f", 1, 1, 1, 0, 0, 0, 0)
    leader.decode(follower.statement(KEYS[0], stated))
    late = leader.data(KEYS[0], Data(1, 1, (Batch(0, 1, 1, 10),), -1, 0))
    follower.forget(KEYS[0])
    follower.statement(KEYS[1], stated)
    told = follower.decode(late)
    assert (told.messages, told.payload, told.payload_for) == ([], 10, None)


def test_a_statement_is_of_the_broker_that_has_proved_it():
    heard = LeaderCodec("proved").decode(FollowerCodec("f").statement(KEYS[0], _stated()))
    assert heard.statements[KEYS[0]].broker == "proved"


def _stated(**changes):
    return replace(Statement("f", 1, 1, 1, 0, 0, 0, 0), **changes)


def _declared():
    leader = LeaderCodec("f")
    leader.decode(FollowerCodec("f").statement(KEYS[0], _stated()))
    return leader


def _follower():
    follower = FollowerCodec("f")
    follower.statement(KEYS[0], _stated())
    return follower


def _first_data():
    return _declared().data(KEYS[0], Data(1, 1, (Batch(7, 8, 1, 10),), -1, 0))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x09", "kind 9"),
        (b"\x02\x00\x00", "cut off"),
        (b"\x01" + bytes(4) + KEYS[1][0].bytes + bytes(4), "out of turn"),
        (b"\x01\x01\0\0\0" + KEYS[0][0].bytes + bytes(4), "out of turn"),
        (b"\x02\x05\0\0\0" + bytes(56), "not declared"),
        (b"\x03\0\0\0\0\x10", "not begun"),
        (b"\x03\x05\0\0\0\x00", "not begun"),
        (b"\x03\0\0\0\0\x01" + b"\xff" * 8, "larger"),
        (b"\x03\0\0\0\0\x08\x05" + bytes(7), "begins at 5 and ends at 0"),
        (b"\x04\x05\0\0\0", "not declared"),
        (b"\x05" + b"\xff" * 8, "larger"),
    ],
)
def test_a_leader_takes_nothing_else(message, words):
    with pytest.raises(CodecError, match=words):
        _declared().decode(message)


def _other(message, position, value):
    return message[:position] + value + message[position + len(value) :]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x09", "kind 9"),
        (b"\x01\x00\x00", "cut off"),
        (b"\x03\x07\0\0\0" + bytes(24), "never declared"),
        (b"\x01\0\0\0\0" + bytes(16) + b"\xfe" + b"\xff" * 7, "no high watermark"),
        (b"\x03\0\0\0\0" + b"\xff" * 24, "larger"),
        (b"\x04\0\0\0\0" + bytes(16) + b"\x63", "reason 99"),
        (b"\x05\0\0\0\0\x00\0\0", "not named"),
        (b"\x05\0\0\0\0\x08\0\0", "flags 0x8"),
        (b"\x05\0\0\0\0\x03\0\0" + bytes(64), "flags 0x3"),
        (_other(_first_data(), 40, b"\x00"), "where it begins"),
        (_other(_first_data(), 40, b"\x13"), "flags 0x13"),
        (_other(_first_data(), 41, bytes(4)), "no bytes"),
        (_first_data() + b"\x01", "not the last"),
        (_first_data()[:-1], "cut off"),
    ],
)
def test_a_follower_takes_nothing_else(message, words):
    with pytest.raises(CodecError, match=words):
        _follower().decode(message)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=3), st.integers(0, 200))
def test_hostile_bytes_are_an_error_and_nothing_else(junk, inserted, position):
    valid = _first_data()
    for message in (junk, valid[:position] + inserted + valid[position:], valid + junk):
        try:
            told = _follower().decode(message)
        except CodecError:
            continue
        assert all(key == KEYS[0] for key, _ in told.messages)
    stated = FollowerCodec("f").statement(KEYS[0], _stated())
    for message in (junk, stated[:position] + inserted + stated[position:], stated + junk):
        try:
            heard = LeaderCodec("f").decode(message)
        except CodecError:
            continue
        assert all(each.broker == "f" for each in heard.statements.values())
