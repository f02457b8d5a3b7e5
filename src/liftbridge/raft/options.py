"""Numbers that the core works with. Time is counted in ticks; how long one takes is up to the caller."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """Bounds and times of a node.

    Attributes:
        election_ticks: a follower that hears nothing for that long, and up to as long again, campaigns; a
            leader that does not hear from a majority for that long steps down.
        heartbeat_ticks: between two messages of a leader to a follower.
        max_append_entries, max_append_bytes: in a message; one entry always goes.
        max_in_flight: messages with entries that a follower has not answered.
        chunk_bytes: of a snapshot in a message.
        max_snapshot_bytes: that a follower takes.
        retained_entries: kept in memory behind a snapshot for followers that are a little late.
        promotion_lag: entries that a learner may be behind and be made a voter.
    """

    election_ticks: int = 10
    heartbeat_ticks: int = 2
    max_append_entries: int = 256
    max_append_bytes: int = 1 << 20
    max_in_flight: int = 16
    chunk_bytes: int = 256 << 10
    max_snapshot_bytes: int = 1 << 30
    retained_entries: int = 1024
    promotion_lag: int = 64

    def __post_init__(self) -> None:
        assert 0 < self.heartbeat_ticks < self.election_ticks, self
        for name in ("max_append_entries", "max_append_bytes", "max_in_flight", "chunk_bytes"):
            assert getattr(self, name) > 0, name
