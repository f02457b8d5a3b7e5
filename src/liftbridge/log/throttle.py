"""The rate at which cleaning may use the disk: a token bucket that all workers of the process share.

Who has used bytes takes them afterwards and waits while the bucket is in debt. So one piece may be larger
than the bucket, nobody has to know beforehand what a piece will cost, and the sum of all workers keeps to the
rate all the same.

Invariant: after `stop` nobody waits here any more, so a server can stop as soon as the piece that each
worker is at is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from liftbridge.log.errors import CleaningStoppedError

_BURST_SECONDS = 0.1  # of the rate; what an idle throttle saves up for whoever comes next


class Throttle:
    """Limits bytes per second; usable from several threads.

    Arguments:
        bytes_per_second: 0 for no limit.
        clock: seconds, never going back.
        wait: waits for so many seconds or until the throttle is stopped; by default it does just that.

    Raises ValueError when the rate is negative.
    """

    def __init__(
        self,
        bytes_per_second: float = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        if bytes_per_second < 0:
            raise ValueError(f"{bytes_per_second} bytes per second is no rate; 0 means no limit")
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._stopped = threading.Event()
        self._wait = self._stopped.wait if wait is None else wait
        self._lock = threading.Lock()
        self._saved = bytes_per_second * _BURST_SECONDS  # bytes; negative is debt
        self._filled_at = clock()

    def take(self, count: int) -> None:
        """Account for `count` bytes just read or written; block until the rate allows to go on.

        Raises CleaningStoppedError once `stop` was called, also while this waits.
        """
        delay = self._owe(count) if self.bytes_per_second else 0.0
        if delay > 0:
            self._wait(delay)
        if self._stopped.is_set():
            raise CleaningStoppedError("cleaning was stopped; the next run begins where this one did")

    def _owe(self, count: int) -> float:
        """Take from the bucket; return the seconds until it is out of debt."""
        with self._lock:
            now = self._clock()
            self._saved += (now - self._filled_at) * self.bytes_per_second
            self._saved = min(self._saved, self.bytes_per_second * _BURST_SECONDS) - count
            self._filled_at = now
            return -self._saved / self.bytes_per_second

    def stop(self) -> None:
        """Make every `take`, waiting or to come, raise CleaningStoppedError."""
        self._stopped.set()
