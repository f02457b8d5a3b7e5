"""The options of one log: when a segment is full, what retention removes, how batches are stored, when and
how the log is compacted."""

from __future__ import annotations

from dataclasses import dataclass, fields

from liftbridge.log.codec import COMPRESSIONS

MAX_SEGMENT_BYTES = (1 << 31) - 1  # positions in a segment must fit 32 bits, the last batch included

MIN_COMPACT_MEMORY_BYTES = 1024


@dataclass(frozen=True)
class LogOptions:
    """Options of one log. Zero means no limit, or off.

    Arguments:
        segment_max_bytes: of batches in a segment; one larger batch has a segment of its own.
        segment_max_age_ns: a segment takes nothing after its first record has this age.
        retention_max_bytes: of batches in the whole log, the active segment included.
        retention_max_messages: in the whole log, the active segment included.
        retention_max_age_ns: since the last record of a segment.
        preallocate_bytes: most bytes asked of the file system ahead of the data.
        compression: of batches to come: none, lz4 or zstd.
        encryption: whether segments to come are encrypted.
        compact: whether the log is compacted by key.
        compact_min_dirty_ratio: 0 to 1; the part of the sealed bytes that must have come since the last run.
        compact_min_lag_ns: a record younger than this stays whatever comes after it.
        compact_max_lag_ns: a run is due when a sealed record is older than this and was never looked at.
        tombstone_retention_ns: a tombstone stays so long after it was first seen in the clean part.
        compact_memory_bytes: most that one run takes for its map of keys, 32 bytes a key; what does not fit
            in waits for the next.

    Raises ValueError naming the option that is out of range.
    """

    segment_max_bytes: int = 268435456
    segment_max_age_ns: int = 0
    retention_max_bytes: int = 0
    retention_max_messages: int = 0
    retention_max_age_ns: int = 0
    preallocate_bytes: int = 0
    compression: str = "none"
    encryption: bool = False
    compact: bool = False
    compact_min_dirty_ratio: float = 0.5
    compact_min_lag_ns: int = 0
    compact_max_lag_ns: int = 0
    tombstone_retention_ns: int = 24 * 3600 * 10**9
    compact_memory_bytes: int = 128 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.segment_max_bytes <= MAX_SEGMENT_BYTES:
            raise ValueError(
                f"segment_max_bytes is {self.segment_max_bytes}; choose 1 to {MAX_SEGMENT_BYTES} bytes"
            )
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression is {self.compression!r}; choose one of {', '.join(COMPRESSIONS)}")
        if self.compact_min_dirty_ratio > 1:
            raise ValueError(f"compact_min_dirty_ratio is {self.compact_min_dirty_ratio}; choose 0 to 1")
        if self.compact_memory_bytes < MIN_COMPACT_MEMORY_BYTES:
            raise ValueError(
                f"compact_memory_bytes is {self.compact_memory_bytes}; "
                f"choose {MIN_COMPACT_MEMORY_BYTES} bytes or more"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{field.name} is {value}; it cannot be negative, 0 means no limit")
