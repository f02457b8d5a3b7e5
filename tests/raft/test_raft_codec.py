"""Messages between nodes as bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftbridge.proto import internal_pb2
from liftbridge.raft import (
    Append,
    AppendReply,
    CodecError,
    Entry,
    EntryKind,
    Members,
    MembersError,
    Removed,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    decode_members,
    decode_message,
    encode_members,
    encode_message,
)
from liftbridge.raft.codec import MAX_MESSAGE_BYTES

NUMBER = st.integers(0, 2**63 - 1)
TERM = st.integers(0, 2**62)
NODE = st.integers(1, 2**64 - 1)
DRAWN = st.integers(0, 2**64 - 1)
HEADER = (NODE, NODE, NUMBER, DRAWN)
MEMBERS = st.sets(NODE, max_size=6).flatmap(
    lambda nodes: st.sets(st.sampled_from(sorted(nodes) or [1])).map(
        lambda some: Members(frozenset(some), frozenset(nodes - some))
    )
)


@st.composite
def appends(draw):
    prev, term = draw(st.integers(0, 2**32)), draw(st.integers(0, 2**32))
    entries = []
    first_term = term
    for index in range(prev + 1, prev + 1 + draw(st.integers(0, 5))):
        term += draw(st.integers(0, 3))
        kind = draw(st.sampled_from(EntryKind))
        data = encode_members(draw(MEMBERS)) if kind is EntryKind.MEMBERS else draw(st.binary(max_size=20))
        entries.append(Entry(index, term, kind, data))
    header = [draw(NODE), draw(NODE), term + draw(TERM), draw(DRAWN)]
    return Append(*header, draw(NUMBER), prev, first_term, tuple(entries), draw(NUMBER))


@st.composite
def chunks(draw):
    meta = SnapshotMeta(draw(NUMBER), draw(TERM), draw(MEMBERS))
    data, offset = draw(st.binary(max_size=50)), draw(st.integers(0, 2**40))
    total = offset + len(data) + draw(st.integers(0, 100))
    header = [draw(NODE), draw(NODE), meta.term + draw(TERM), draw(DRAWN)]
    return SnapshotChunk(*header, draw(NUMBER), meta, offset, total, draw(st.integers(0, 2**32 - 1)), data)


@st.composite
def vote_requests(draw):
    last_term = draw(TERM)
    header = [draw(NODE), draw(NODE), last_term + draw(TERM), draw(DRAWN)]
    return VoteRequest(
        *header, draw(st.booleans()), draw(NUMBER), last_term, draw(NUMBER), draw(st.booleans())
    )


MESSAGES = st.one_of(
    vote_requests(),
    st.builds(VoteReply, *HEADER, st.booleans(), st.booleans(), DRAWN, NUMBER),
    appends(),
    st.builds(AppendReply, *HEADER, DRAWN, NUMBER, st.booleans(), *[NUMBER] * 5),
    chunks(),
    st.builds(SnapshotReply, *HEADER, DRAWN, NUMBER, NUMBER, NUMBER, st.booleans()),
    st.builds(TimeoutNow, *HEADER),
    st.builds(Removed, *HEADER, NUMBER),
)


@given(message=MESSAGES)
def test_what_was_written_is_read(message):
    assert decode_message(encode_message(message)) == message


@given(data=st.binary(max_size=200))
def test_anything_else_is_an_error_of_its_own(data):
    with contextlib.suppress(CodecError):
        decode_message(data)


@given(message=MESSAGES, cut=st.integers(0, 200), changed=st.binary(max_size=3))
def test_a_message_that_was_changed_is_a_message_or_an_error(message, cut, changed):
    data = encode_message(message)
    with contextlib.suppress(CodecError):
        decode_message(data[:cut] + changed + data[cut + len(changed) :])


def written(**fields):
    return internal_pb2.RaftMessage(**{"source": 1, "target": 2, "term": 9} | fields).SerializeToString()


APPEND, ENTRY = internal_pb2.RaftAppend, internal_pb2.RaftEntry


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff", "not a message"),
        (written(), "says nothing"),
        (internal_pb2.RaftMessage(target=1, timeout_now={}).SerializeToString(), "lacks its source"),
        (internal_pb2.RaftMessage(source=1, timeout_now={}).SerializeToString(), "lacks its source"),
        (written(append=APPEND(prev_index=3, entries=[ENTRY(index=5, kind=2)])), "does not follow 3"),
        (written(append=APPEND(prev_term=3, entries=[ENTRY(index=1, term=2, kind=2)])), "does not follow"),
        (written(append=APPEND(entries=[ENTRY(index=1, kind=9)])), "kind 9"),
        (written(append=APPEND(entries=[ENTRY(index=1, kind=3, data=b"\xff")])), "entry 1: the members"),
        (written(snapshot_chunk={"offset": 2, "total": 3, "data": b"xy"}), "beyond its end"),
        (written(append=APPEND(entries=[ENTRY(index=1, term=10, kind=2)])), "term 9 speaks of .* term 10"),
        (written(append=APPEND(prev_term=10)), "term 9 speaks of .* term 10"),
        (written(append=APPEND(prev_index=2**63)), "for prev_index"),
        (written(append=APPEND(prev_index=2**63 - 1, entries=[ENTRY(index=2**63, kind=2)])), "for index"),
        (written(vote_request={"last_term": 10}), "term 9 speaks of .* term 10"),
        (written(term=2**63, timeout_now={}), "for term"),
        (written(snapshot_chunk={"meta": {"term": 10}}), "term 9 speaks of .* term 10"),
        (written(snapshot_chunk={"meta": {"index": 2**63}}), "for index"),
        (written(snapshot_chunk={"meta": {"members": {"voters": [1], "learners": [1]}}}), "contradict"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_no_node_of_ours_writes_is_refused(data, text):
    with pytest.raises(CodecError, match=text):
        decode_message(data)


def test_a_message_has_bounds():
    entry = Entry(1, 1, EntryKind.COMMAND, bytes(MAX_MESSAGE_BYTES // 2))
    message = Append(1, 2, 1, 5, 1, 0, 0, (entry,), 0)
    assert decode_message(encode_message(message)) == message
    with pytest.raises(CodecError, match="more than"):
        decode_message(bytes(MAX_MESSAGE_BYTES + 1))


@given(data=st.binary(max_size=60))
def test_members_are_members_or_an_error(data):
    with contextlib.suppress(MembersError):
        members = decode_members(data)
        assert not members.voters & members.learners
        assert decode_members(encode_members(members)) == members
