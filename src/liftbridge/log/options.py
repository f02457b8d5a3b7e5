"""The options of one log: when a segment is full, what retention removes, how batches are stored.

Zero means no limit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from liftbridge.log.codec import COMPRESSIONS

MAX_SEGMENT_BYTES = (1 << 31) - 1  # positions in a segment must fit 32 bits, the last batch included


@dataclass(frozen=True)
class LogOptions:
    """Options of one log.

    Arguments:
        segment_max_bytes: of batches in a segment; one larger batch has a segment of its own.
        segment_max_age_ns: a segment takes nothing after its first record has this age.
        retention_max_bytes: of batches in the whole log, the active segment included.
        retention_max_messages: in the whole log, the active segment included.
        retention_max_age_ns: since the last record of a segment.
        preallocate_bytes: most bytes asked of the file system ahead of the data.
        compression: of batches to come: none, lz4 or zstd.
        encryption: whether segments to come are encrypted.

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

    def __post_init__(self) -> None:
        if not 1 <= self.segment_max_bytes <= MAX_SEGMENT_BYTES:
            raise ValueError(
                f"segment_max_bytes is {self.segment_max_bytes}; choose 1 to {MAX_SEGMENT_BYTES} bytes"
            )
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression is {self.compression!r}; choose one of {', '.join(COMPRESSIONS)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{field.name} is {value}; it cannot be negative, 0 means no limit")
