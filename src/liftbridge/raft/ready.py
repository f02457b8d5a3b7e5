"""What the core wants done, and what storage had at a start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from liftbridge.raft.messages import Entry, HardState, Message, Snapshot


class Role(Enum):
    """What a node is in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Refusal(Enum):
    """Why members are not changed."""

    NOT_LEADER = "this node does not lead"
    TOO_EARLY = "the leader has not committed an entry of its own term yet"
    CHANGING = "another change of the members is under way"
    SAME = "the members are so already"
    UNKNOWN = "there is no such learner"
    BEHIND = "the learner is too far behind to be given a vote"
    TOO_FEW = "of those who would have a vote too few answer: nothing could be agreed on any more"
    LAST_VOTER = "the last voter cannot be removed"


_NEW = HardState()


@dataclass(frozen=True, slots=True)
class Stored:
    """What storage has at a start: term and vote, a snapshot, the entries behind it."""

    hard_state: HardState = _NEW
    snapshot: Snapshot | None = None
    entries: Sequence[Entry] = ()


@dataclass(slots=True)
class Handed:
    """What a `Ready` asked to store, of which the core has not heard yet.

    `last`: the entries up to there are on the disk as they are in the log, once this is. It goes down with a
    truncation: what was handed out before that is written before it, and the disk has it for a while only.
    """

    token: int
    hard: HardState
    last: int
    snapshot: Snapshot | None


@dataclass(frozen=True, slots=True)
class Ready:
    """What is to be done, in this order.

    Attributes:
        messages: to send at once.
        snapshot: to make the beginning of the log on the disk, which keeps what follows the same entry.
        hard_state: to store, None when it has not changed.
        entries: to store; those that are there from the first one's index on go.
        token: to tell `persisted` when snapshot, hard state and entries are on the disk, tokens in order.
        later: to send after that.
        committed: to apply, in order; they are on the disk.
        reads: contexts of `read_index` with the index that must be applied before the read.
        unanswered: contexts of `read_index` that will have no answer: this node stopped leading.
    """

    token: int
    messages: Sequence[Message]
    snapshot: Snapshot | None
    hard_state: HardState | None
    entries: Sequence[Entry]
    later: Sequence[Message]
    committed: Sequence[Entry]
    reads: Sequence[tuple[object, int]]
    unanswered: Sequence[object] = ()

    @property
    def stores(self) -> bool:
        """Whether there is anything to store."""
        return self.snapshot is not None or self.hard_state is not None or bool(self.entries)
