"""Numbers that the core works with. Time is counted in ticks; how long one takes is up to the caller."""

from __future__ import annotations

from dataclasses import dataclass

_POSITIVE = (
    "max_append_entries",
    "max_append_bytes",
    "max_in_flight",
    "max_in_flight_bytes",
    "chunk_bytes",
    "max_snapshot_bytes",
    "max_reads",
)


@dataclass(frozen=True, slots=True)
class Options:
    """Bounds and times of a node.

    Attributes:
        election_ticks: a follower that hears nothing for that long, and up to as long again, campaigns; a
            leader that does not hear from a majority for that long steps down.
        heartbeat_ticks: between two messages of a leader to a follower.
        max_append_entries, max_append_bytes: in a message; one entry always goes.
        max_in_flight, max_in_flight_bytes: messages with entries that a follower has not answered, and the
            bytes of those entries; one message always goes.
        chunk_bytes: of a snapshot in a message.
        max_snapshot_bytes: that a follower takes.
        retained_entries: kept in memory behind a snapshot for followers that are a little late.
        max_reads: that wait for a majority to confirm who leads.
        promotion_lag: entries that a learner may be behind and be made a voter.
    """

    election_ticks: int = 10
    heartbeat_ticks: int = 2
    max_append_entries: int = 256
    max_append_bytes: int = 1 << 20
    max_in_flight: int = 16
    max_in_flight_bytes: int = 4 << 20
    chunk_bytes: int = 256 << 10
    max_snapshot_bytes: int = 1 << 30
    retained_entries: int = 1024
    max_reads: int = 1024
    promotion_lag: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError(f"a heartbeat every {self.heartbeat_ticks} of {self.election_ticks} ticks")
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1")
