"""A node by itself, as tests of single rules need it: what is around it is made up message by message."""

from __future__ import annotations

import zlib

from raft_nodes import SMALL

from liftbridge.raft import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Members,
    Raft,
    SnapshotChunk,
    Stored,
    VoteReply,
    VoteRequest,
    encode_members,
)

THREE = Members(frozenset({1, 2, 3}))
FIRST = Entry(1, 1, EntryKind.MEMBERS, encode_members(THREE))


def command(index, term, data=b"x"):
    return Entry(index, term, EntryKind.COMMAND, data)


def node(*terms, term=None, vote=None, options=SMALL, name=1, applied=0):
    """A node of three, with entries of these terms behind the first."""
    entries = [FIRST, *(command(index, each) for index, each in enumerate(terms, 2))]
    hard = HardState(entries[-1].term if term is None else term, vote)
    return Raft(name, 77, Stored(hard, None, entries), options, 0, applied)


def store(core):
    """Let the disk finish all; what the node says, at once and after that."""
    said = []
    while core.has_ready:
        ready = core.ready()
        said += ready.messages
        core.persisted(ready.token)
        said += ready.later
    return said


def append(core, prev, entries=(), *, commit=0, term=None, source=2, sequence=1):
    return Append(
        source, core.node_id, core.term if term is None else term, 5, sequence, *prev, tuple(entries), commit
    )


def vote_request(core, last, *, term, pre=False, source=2, ballot=1, forced=False):
    return VoteRequest(source, core.node_id, term, 5, pre, *last, ballot, forced)


def leading(*terms, options=SMALL):
    """A node of three that leads, and has told nobody anything yet."""
    core = node(*terms, options=options)
    core.campaign()
    for pre in (True, False):
        asked = [message for message in store(core) if isinstance(message, VoteRequest)]
        for message in asked:
            assert message.pre == pre
            core.step(VoteReply(message.target, 1, message.term, 5, pre, True, 77, message.ballot))
    assert core.is_leader
    return core


def accept(core, source, match, *, sequence=None, term=None, last=None, incarnation=77):
    number = core.sequence if sequence is None else sequence
    last = match if last is None else last
    core.step(
        AppendReply(
            source, 1, core.term if term is None else term, 6, incarnation, number, True, match, 0, 0, 0, last
        )
    )


def chunk(core, meta, state, *, offset=0, data=None, checksum=None, term=2):
    data = state[offset:] if data is None else data
    checksum = zlib.crc32(state) if checksum is None else checksum
    return SnapshotChunk(2, core.node_id, term, 5, 1, meta, offset, len(state), checksum, data)
