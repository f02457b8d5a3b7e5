"""What a leader knows of a node that it sends its log to.

PROBE: it is not known where the follower's log is the leader's; one message at a time looks for the place.
REPLICATE: messages go out one behind the other, up to a bound, as if all would arrive.
SNAPSHOT: what the follower needs next is not held any more; a snapshot goes piece by piece.

Invariants: `match` never goes down, and comes only from replies of the same term; `next` is above it. A
refusal of a message that was sent before the present state began changes nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from liftbridge.raft.messages import Snapshot


class Mode(Enum):
    """How entries are sent."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Progress:
    """A follower as the leader sees it.

    Attributes:
        next: index of the next entry to send.
        match: up to this index the follower's log is the leader's, on its disk.
        mode: how entries are sent.
        since: sequence number of the first message of this mode.
        active: whether it answered since the last check of the quorum.
        answered: the leader's tick at its last answer, None for no answer yet.
        waiting: whether a probe, or a piece of a snapshot, is out; a probe is sent again with the next
            heartbeat, without entries; a piece when it was out at the heartbeat before.
        told: the commit index that it will have when the last message to it has arrived.
        in_flight: sequence number, last index and size of each message with entries that was not answered.
        in_flight_bytes: their sizes together.
        snapshot: what is being sent.
        offset: bytes of it that have arrived.
        chunk: sequence number of the last piece sent.
        heard: whether it answered anything since the last heartbeat.
    """

    next: int
    match: int = 0
    mode: Mode = Mode.PROBE
    since: int = 0
    active: bool = True
    answered: int | None = None
    waiting: bool = False
    told: int = 0
    in_flight: deque[tuple[int, int, int]] = field(default_factory=deque)
    in_flight_bytes: int = 0
    snapshot: Snapshot | None = None
    offset: int = 0
    chunk: int = 0
    heard: bool = False
    _chunk_at_heartbeat: int = 0

    def probe(self, sequence: int, following: int) -> None:
        """Look for the place from `following` on, with messages from `sequence` on."""
        self._enter(Mode.PROBE, sequence)
        self.next = max(following, self.match + 1)

    def replicate(self, sequence: int) -> None:
        """Send as if all arrived, from behind `match`."""
        self._enter(Mode.REPLICATE, sequence)
        self.next = self.match + 1

    def send_snapshot(self, sequence: int, snapshot: Snapshot) -> None:
        """Send a snapshot from its beginning."""
        self._enter(Mode.SNAPSHOT, sequence)
        self.snapshot = snapshot

    def sent(self, sequence: int, last: int, size: int) -> None:
        """A message with `size` bytes of entries up to `last` went out."""
        self.next = last + 1
        self.in_flight.append((sequence, last, size))
        self.in_flight_bytes += size

    def matched(self, index: int) -> bool:
        """The follower has everything up to `index`; whether that is news."""
        while self.in_flight and self.in_flight[0][1] <= index:
            self.in_flight_bytes -= self.in_flight.popleft()[2]
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        return True

    def is_missing(self, sequence: int, last_index: int) -> bool:
        """Whether a message with entries got lost: a later one is answered, and the log ends before."""
        return bool(self.in_flight) and self.in_flight[0][0] < sequence and last_index < self.in_flight[0][1]

    def is_unanswered(self, sequence: int) -> bool:
        """Whether a message with entries was not answered, and a later one is."""
        return bool(self.in_flight) and self.in_flight[0][0] < sequence

    def idle_heartbeats(self) -> bool:
        """At a heartbeat: whether the piece that is out was out at the one before, and so is lost.

        Only when the follower is there: to one that says nothing it is not sent time and again.
        """
        idle = self.waiting and self._chunk_at_heartbeat == self.chunk and self.heard
        self._chunk_at_heartbeat, self.heard = self.chunk, False
        return idle

    def _enter(self, mode: Mode, sequence: int) -> None:
        self.mode, self.since = mode, sequence
        self.waiting = False
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.snapshot, self.offset = None, 0
