"""Which segments retention removes: whole ones, the oldest first, never the active one.

The limits apply in the order age, messages, bytes. By age go the leading segments whose last record is too
old. For messages and bytes, walking back from the newest segment, the first that would push the total above
the limit goes, and all older ones: at most the limit remains, or the active segment alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from liftbridge.log.options import LogOptions
from liftbridge.log.segments import SealedSegment


def expired(
    sealed: Sequence[SealedSegment], active_messages: int, active_bytes: int, options: LogOptions, now: int
) -> int:
    """Return how many of the leading sealed segments are to go at time `now` (ns since the epoch)."""
    gone = 0
    if options.retention_max_age_ns:
        oldest = now - options.retention_max_age_ns
        while gone < len(sealed) and sealed[gone].summary.last_timestamp < oldest:
            gone += 1
    if options.retention_max_messages:
        counts = [segment.summary.count for segment in sealed[gone:]]
        gone += _beyond(counts, active_messages, options.retention_max_messages)
    if options.retention_max_bytes:
        sizes = [segment.size for segment in sealed[gone:]]
        gone += _beyond(sizes, active_bytes, options.retention_max_bytes)
    return gone


def _beyond(amounts: Sequence[int], total: int, limit: int) -> int:
    """Return how many leading amounts must go so that the rest and `total` stay within the limit."""
    for kept in range(len(amounts)):
        total += amounts[len(amounts) - 1 - kept]
        if total > limit:
            return len(amounts) - kept
    return 0
