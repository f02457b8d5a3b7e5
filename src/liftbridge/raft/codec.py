"""Messages between nodes as bytes: protobuf (`proto/internal.proto`), read strictly.

Whoever can reach the port can send bytes. What is not a message that a node of ours would write is a
`CodecError` and nothing else: a kind that is not known, a number that leaves no room to count on from it,
entries that do not follow one another or are of a later term than their sender, members that contradict each
other. Fields that a later version adds are read over, so that servers can be updated one by one.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from liftbridge.proto import internal_pb2
from liftbridge.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Message,
    Removed,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from liftbridge.raft.storedmembers import MembersError, decode_members, encode_members

# Fields of the core's messages that are written as they are, by the name of the body in a `RaftMessage`.
_PLAIN: dict[str, tuple[type[Message], tuple[str, ...]]] = {
    "vote_request": (VoteRequest, ("pre", "last_index", "last_term", "ballot", "forced")),
    "vote_reply": (VoteReply, ("pre", "granted", "to_incarnation", "ballot")),
    "append": (Append, ("sequence", "prev_index", "prev_term", "commit")),
    "append_reply": (
        AppendReply,
        (
            "to_incarnation",
            "sequence",
            "accepted",
            "match",
            "prev_index",
            "hint_index",
            "hint_term",
            "last_index",
        ),
    ),
    "snapshot_chunk": (SnapshotChunk, ("sequence", "offset", "total", "checksum", "data")),
    "snapshot_reply": (SnapshotReply, ("to_incarnation", "sequence", "index", "received", "installed")),
    "timeout_now": (TimeoutNow, ()),
    "removed": (Removed, ("index",)),
}
_NAMES = {kind: name for name, (kind, _) in _PLAIN.items()}
_HEADER = ("source", "target", "term", "incarnation")
_DRAWN = ("source", "target", "incarnation", "to_incarnation")

MAX_MESSAGE_BYTES = 64 << 20
"""More than any message takes: an entry has at most half of it (`broker/journal_format.py`)."""
MAX_NUMBER = (1 << 63) - 1
"""Of terms, indices and all else that is counted."""


class CodecError(ValueError):
    """Bytes that are no message of a node."""


def encode_message(message: Message) -> bytes:
    """The bytes of a message."""
    name = _NAMES[type(message)]
    written = internal_pb2.RaftMessage(**{field: getattr(message, field) for field in _HEADER})
    body = getattr(written, name)
    body.SetInParent()
    for field in _PLAIN[name][1]:
        setattr(body, field, getattr(message, field))
    if isinstance(message, Append):
        for entry in message.entries:
            body.entries.add(index=entry.index, term=entry.term, kind=entry.kind, data=entry.data)
    elif isinstance(message, SnapshotChunk):
        body.meta.index, body.meta.term = message.meta.index, message.meta.term
        body.meta.members.ParseFromString(encode_members(message.meta.members))
    return written.SerializeToString(deterministic=True)


def decode_message(data: bytes) -> Message:
    """The message that was encoded as `data`. Raises CodecError."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise CodecError(f"a message of a node has {len(data)} bytes, more than {MAX_MESSAGE_BYTES}")
    read = internal_pb2.RaftMessage()
    try:
        read.ParseFromString(data)
    except DecodeError as error:
        raise CodecError("not a message of a node") from error
    name = read.WhichOneof("body")
    if name is None:
        raise CodecError("a message of a node says nothing, or what another version means")
    if not read.source or not read.target:
        raise CodecError("a message of a node lacks its source or its target")
    kind, plain = _PLAIN[name]
    body = getattr(read, name)
    fields = {field: getattr(read, field) for field in _HEADER} | {
        field: getattr(body, field) for field in plain
    }
    for field, value in fields.items():
        if field not in _DRAWN and isinstance(value, int):
            _check_number(field, value)
    if kind is Append:
        fields["entries"] = _entries(body, read.term)
    elif kind is SnapshotChunk:
        fields["meta"] = _meta(body.meta, read.term)
        if body.offset + len(body.data) > body.total:
            raise CodecError("a piece of a snapshot goes beyond its end")
    elif kind is VoteRequest:
        _check_term(body.last_term, read.term)
    return kind(**fields)


def _check_number(field: str, value: int) -> None:
    if value > MAX_NUMBER:
        raise CodecError(f"a message of a node has {value} for {field}, more than {MAX_NUMBER}")


def _check_term(term: int, of_message: int) -> None:
    """No log has an entry of a term that its node is not in yet."""
    if term > of_message:
        raise CodecError(f"a message of term {of_message} speaks of an entry of term {term}")


def _entries(body: internal_pb2.RaftAppend, of_message: int) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    index, term = body.prev_index, body.prev_term
    _check_number("index", index + len(body.entries))
    for read in body.entries:
        index += 1
        if read.index != index or read.term < term:
            raise CodecError(
                f"entry {read.index} of term {read.term} does not follow {index - 1} of term {term}"
            )
        term = read.term
        try:
            kind = EntryKind(read.kind)
            if kind is EntryKind.MEMBERS:
                decode_members(read.data)
        except MembersError as error:
            raise CodecError(f"entry {index}: {error}") from error
        except ValueError as error:
            raise CodecError(
                f"entry {index} is of kind {read.kind}, which this version does not know"
            ) from error
        entries.append(Entry(index, term, kind, read.data))
    _check_term(term, of_message)
    return tuple(entries)


def _meta(read: internal_pb2.RaftSnapshotMeta, of_message: int) -> SnapshotMeta:
    _check_number("index", read.index)
    _check_term(read.term, of_message)
    try:
        members = decode_members(read.members.SerializeToString())
    except MembersError as error:
        raise CodecError(f"a snapshot: {error}") from error
    return SnapshotMeta(read.index, read.term, members)
