"""Messages between nodes of the consensus, as a stranger or another version would send them.

Checked: bytes are a message or a CodecError; a message that was read is written and read as the same; a node,
whether it follows or leads, takes it, its term, commit index and log stay what they may be, and what it says
can be read by others; or it names with an InvariantError what cannot be, and is not used any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from zlib import crc32

from fuzz_targets.script import Script, written
from liftbridge.raft import (
    Append,
    AppendReply,
    CodecError,
    Entry,
    EntryKind,
    HardState,
    InvariantError,
    Members,
    Message,
    Options,
    Raft,
    Removed,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    Stored,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    decode_message,
    encode_members,
    encode_message,
)

INSTRUMENTED = ("liftbridge.raft",)
MAX_LENGTH = 2048
MEMBERS = Members(frozenset({1, 2, 3}), frozenset({4}))
ENTRIES = (
    Entry(1, 1, EntryKind.MEMBERS, encode_members(MEMBERS)),
    Entry(2, 1, EntryKind.COMMAND, b"a"),
    Entry(3, 2, EntryKind.COMMAND, b"b"),
)
# So that little is large already.
OPTIONS = Options(
    max_append_entries=2, max_append_bytes=8, max_in_flight=2, chunk_bytes=4, retained_entries=0
)
INCARNATION = 7
FAR = 1 << 40
NODE = (1).to_bytes(8, "little")
WORDS = (
    NODE, b"\x09" + NODE, b"\x11" + NODE, b"\x21\7" + bytes(7), b"\x18\3", b"\x3a\4\x08\1\x10\3",
    b"\x22\x08\x08\4\x10\3\x18\2\x22\0", b"\x4a", b"\x42", b"\x52",
)  # fmt: skip

PLAIN, ADDRESSED, TICK, PROPOSE = range(4)


def messages() -> list[Message]:
    """One of each kind, from node 2 to node 1."""
    head = (2, 1, 3, 5)
    state = b"0123456"
    checksum = crc32(state)
    meta = SnapshotMeta(9, 3, MEMBERS)
    return [
        Append(*head, 1, 3, 2, (Entry(4, 3, EntryKind.EMPTY), Entry(5, 3, EntryKind.COMMAND, b"c")), 4),
        Append(*head, 2, 9, 3, (), 9),
        AppendReply(*head, INCARNATION, 1, True, 4, 3, 0, 0, 4),
        AppendReply(*head, INCARNATION, 1, False, 0, 3, 2, 1, 2),
        VoteRequest(*head, True, 9, 3, 1),
        VoteReply(*head, False, True, INCARNATION, 1),
        SnapshotChunk(*head, 3, meta, 0, 7, checksum, state[:4]),
        SnapshotChunk(*head, 4, meta, 4, 7, checksum, state[4:]),
        SnapshotReply(*head, INCARNATION, 1, 3, 7, True),
        TimeoutNow(*head),
        Removed(*head, 9),
    ]


def seeds() -> Iterator[bytes]:
    """Each kind of message to a follower and to a leader, and all of them in a row."""
    stored = [encode_message(message) for message in messages()]
    for leads in (0, 1):
        for data in stored:
            yield written(leads, PLAIN, data, TICK, ADDRESSED, data, PROPOSE)
        yield written(leads, *(part for data in stored for part in (PLAIN, data)))


def run(data: bytes) -> None:
    script = Script(data)
    core = leader() if script.number() % 2 else follower()
    try:
        while script:
            kind = script.number() % 4
            before = core.term, core.commit
            if kind == TICK:
                core.tick(script.number())
            elif kind == PROPOSE:
                core.propose([b"x"])
            else:
                take(core, script.string(), addressed=kind == ADDRESSED)
            store(core)
            assert (core.term, core.commit) >= before or core.term > before[0], "it goes back"
            assert core.commit <= core.log.last_index
            assert core.log.last_term <= core.term
    except InvariantError as error:
        assert str(error)


def take(core: Raft, data: bytes, *, addressed: bool) -> None:
    try:
        message = decode_message(data)
    except CodecError as error:
        assert str(error)
        return
    assert decode_message(encode_message(message)) == message
    if message.term > FAR or (isinstance(message, SnapshotChunk) and message.meta.index > FAR):
        return  # a member that has the others count from there has them at the end of the numbers soon
    if addressed:
        # To this node, in its term: most of what is read would be ignored otherwise.
        message = replace(message, target=1, term=core.term)
        if "to_incarnation" in message.__dataclass_fields__:
            message = replace(message, to_incarnation=INCARNATION)  # type: ignore[call-arg]
        if isinstance(message, Append) and any(entry.term > core.term for entry in message.entries):
            return
    core.step(message)


def follower() -> Raft:
    return Raft(1, INCARNATION, Stored(HardState(3), None, ENTRIES), OPTIONS, 0)


def leader() -> Raft:
    core = follower()
    core.campaign()
    for pre in (True, False):
        asked = [message for message in store(core) if isinstance(message, VoteRequest)]
        for request in asked:
            core.step(VoteReply(request.target, 1, request.term, 5, pre, True, INCARNATION, request.ballot))
    assert core.is_leader
    store(core)
    return core


def store(core: Raft) -> list[Message]:
    """Let the disk finish all; what the node says has to be what others can read."""
    said: list[Message] = []
    while core.has_ready:
        ready = core.ready()
        core.persisted(ready.token)
        said += [*ready.messages, *ready.later]
    for message in said:
        assert decode_message(encode_message(message)) == message
    return said
