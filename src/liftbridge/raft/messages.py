"""What nodes say to each other, and what they keep: values, without behaviour.

Every message carries the term of its sender, who sent it, and the sender's incarnation, a number that is
drawn at each start of a process. A reply names the incarnation and the sequence number of the message that it
answers. So a
message can be lost, late, doubled or overtaken: whoever gets it can tell what it is about, and whether it
still is.

There is no heartbeat: it is an `Append` without entries, at a place that the follower is known to have, so
that a follower takes over a commit index only from a message that proves what it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

NodeId: TypeAlias = int
"""Drawn at random when a storage is made, 1 to 2**64 - 1: a wiped disk is another node."""


class EntryKind(IntEnum):
    """What an entry of the log is for."""

    EMPTY = 1
    """A leader's first: it commits what earlier terms have left."""
    COMMAND = 2
    """For the state machine."""
    MEMBERS = 3
    """Who the members are from this entry on; the data is encoded `Members`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log."""

    index: int
    term: int
    kind: EntryKind
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class HardState:
    """What has to be on the disk before anybody hears of it: the term, and this node's vote in it."""

    term: int = 0
    vote: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """Who belongs to the cluster. Learners get the log and have no vote."""

    voters: frozenset[NodeId] = frozenset()
    learners: frozenset[NodeId] = frozenset()

    def __post_init__(self) -> None:
        assert not self.voters & self.learners, self

    @property
    def all(self) -> frozenset[NodeId]:
        """Voters and learners."""
        return self.voters | self.learners


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """The entry that a snapshot ends with, and who the members were then."""

    index: int
    term: int
    members: Members


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state of the state machine after an entry."""

    meta: SnapshotMeta
    state: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """What all messages have."""

    source: NodeId
    target: NodeId
    term: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class VoteRequest(Message):
    """`pre`: would you vote for me in the next term? Otherwise: vote for me in this one.

    `last_index` and `last_term` are of the newest entry of the candidate, `ballot` counts its elections;
    `forced`: the leader wants it, so that nobody refuses because there is one.
    """

    pre: bool
    last_index: int
    last_term: int
    ballot: int
    forced: bool = False


@dataclass(frozen=True, slots=True)
class VoteReply(Message):
    """The answer to the `VoteRequest` of an incarnation with that ballot."""

    pre: bool
    granted: bool
    to_incarnation: int
    ballot: int


@dataclass(frozen=True, slots=True)
class Append(Message):
    """Entries that follow the one at `prev_index`, which must be of `prev_term`; `commit` is the leader's."""

    sequence: int
    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...]
    commit: int


@dataclass(frozen=True, slots=True)
class AppendReply(Message):
    """The answer to an `Append` of that incarnation and sequence.

    `accepted`: up to `match` the follower's log is the leader's, on its disk. Otherwise: at `prev_index` it
    has nothing or an entry of term `hint_term`, whose first it has at `hint_index`. `last_index` is of its
    newest entry, on the disk or not.
    """

    to_incarnation: int
    sequence: int
    accepted: bool
    match: int
    prev_index: int
    hint_index: int
    hint_term: int
    last_index: int


@dataclass(frozen=True, slots=True)
class SnapshotChunk(Message):
    """A piece of a snapshot, from `offset` on; `checksum` is the CRC-32 of all `total` bytes."""

    sequence: int
    meta: SnapshotMeta
    offset: int
    total: int
    checksum: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SnapshotReply(Message):
    """The answer to a `SnapshotChunk`: so much of the snapshot of `index` is there, or it is not needed:
    `installed`, up to `index` the follower's log is the leader's, on its disk."""

    to_incarnation: int
    sequence: int
    index: int
    received: int
    installed: bool


@dataclass(frozen=True, slots=True)
class TimeoutNow(Message):
    """The leader asks its successor to campaign at once."""


@dataclass(frozen=True, slots=True)
class Removed(Message):
    """The leader says that the target is no member, by the entry at `index`, which is committed."""

    index: int
