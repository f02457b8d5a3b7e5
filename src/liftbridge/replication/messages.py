"""What a leader and its followers say of one partition.

Every message carries the leader epoch that it belongs to, and all but a fence the session: data of a session
that has ended, still on its way, is told from what the follower waits for. Their form on the wire is no
subject here: within a session only what changes has to travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

NO_EPOCH = 0
NEVER = float("-inf")


class LogView(Protocol):
    """What the machines look at in a log; `log.Log` has it. They never change it."""

    @property
    def start_offset(self) -> int:
        """Where the log begins: the offset of the oldest record, `next_offset` when there is none. A batch
        begins there too."""

    @property
    def next_offset(self) -> int:
        """Offset behind the newest record."""

    @property
    def synced_offset(self) -> int:
        """All offsets below it are on disk."""

    @property
    def last_epoch(self) -> int:
        """Leader epoch of the last batch, one without records included; NO_EPOCH for none."""

    @property
    def epochs(self) -> Sequence[tuple[int, int]]:
        """(epoch, first offset that can belong to it), oldest first."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Where a follower's log is. It is the request for data, and the acknowledgement of what came.

    Attributes:
        broker, broker_epoch: whose log.
        leader_epoch: of the leader that it follows.
        session: a higher number than before begins a session: what was sent in another is not in the log,
            unless it is below `next_offset`.
        next_offset, last_epoch, synced_offset, log_start: as in `LogView`.
        heard: the newest `Data.sent` that had come in this leader epoch when this was stated; NEVER for none.
    """

    broker: str
    broker_epoch: int
    leader_epoch: int
    session: int
    next_offset: int
    last_epoch: int
    synced_offset: int
    log_start: int
    heard: float = NEVER


@dataclass(frozen=True, slots=True)
class Accepted:
    """The leader's log has all that the follower's has; data follows."""

    leader_epoch: int
    session: int
    high_watermark: int


@dataclass(frozen=True, slots=True)
class Diverging:
    """The leader's log has not what the follower stated.

    Attributes:
        epoch: the largest epoch, not above the follower's last, that the leader's log has; below 0 for none.
        end_offset: where that ends in the leader's log.
    """

    leader_epoch: int
    session: int
    epoch: int
    end_offset: int


@dataclass(frozen=True, slots=True)
class BeginAt:
    """The leader's log begins behind the follower's end: the follower is to drop its log, and begin there."""

    leader_epoch: int
    session: int
    log_start: int


class Fence(Enum):
    """Why a statement has changed nothing."""

    OLD_LEADER_EPOCH = "the leader has a newer leader epoch"
    UNKNOWN_LEADER_EPOCH = "the leader does not know that leader epoch yet"
    NOT_A_REPLICA = "the sender holds no replica of the partition"
    OLD_BROKER_EPOCH = "the sender has registered anew since"
    OLD_SESSION = "the sender has begun another session since"
    NOT_LEADING = "the receiver does not lead the partition any more"


@dataclass(frozen=True, slots=True)
class Fenced:
    """A statement has changed nothing. `leader_epoch` is the one that the answering broker is in."""

    leader_epoch: int
    session: int
    reason: Fence


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of the leader's log, without its bytes.

    Attributes:
        first: the first offset that it stands for: where the batch before it ends, so that what compaction
            has removed in between is no gap.
        next_offset: where it ends; `first` if it has no records, as the beginning of an epoch.
        epoch: its leader epoch.
        size: bytes.
    """

    first: int
    next_offset: int
    epoch: int
    size: int


@dataclass(frozen=True, slots=True)
class Data:
    """Batches in the order of the leader's log; without any it is a heartbeat.

    Attributes:
        high_watermark: of the leader, when this was sent.
        log_start: of the leader's log.
        sent: when, by the leader's clock, which nobody else knows: followers tell it what they have heard.
    """

    leader_epoch: int
    session: int
    batches: tuple[Batch, ...]
    high_watermark: int
    log_start: int
    sent: float = NEVER


Answer: TypeAlias = Accepted | Diverging | BeginAt | Fenced
ToFollower: TypeAlias = Answer | Data
