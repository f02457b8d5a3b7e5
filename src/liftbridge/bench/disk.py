"""How fast the disk under the data directory makes small appends durable.

Under the sync policy `always` nothing can be faster than this, so a figure without it says nothing. The
probe does what a log does at its slowest: append a little, wait until it is on disk, again.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from liftbridge.bench.report import percentile

SAMPLES = 200
APPEND_BYTES = 4096

# macOS has no fdatasync; its fsync is the nearest, and does not flush the drive's cache either.
_sync = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True)
class DiskSpeed:
    """Times of append and fdatasync together, in microseconds."""

    fdatasync_p50_us: float
    fdatasync_p99_us: float
    samples: int
    append_bytes: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def probe(directory: Path, samples: int = SAMPLES) -> DiskSpeed:
    """Measure the disk that holds `directory`. Blocks for as long as `samples` appends take.

    Raises:
        OSError: nothing can be written there.
    """
    times = []
    data = os.urandom(APPEND_BYTES)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(samples):
            start = time.perf_counter_ns()
            file.write(data)
            _sync(file.fileno())
            times.append((time.perf_counter_ns() - start) / 1000)
    return DiskSpeed(percentile(times, 50), percentile(times, 99), samples, APPEND_BYTES)
