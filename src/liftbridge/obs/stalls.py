"""How long the event loop keeps others waiting.

A task sleeps for a fixed time, over and over, and notes how much later than that it got its turn: as long as
any other task held the loop, or the machine gave the process no time. It costs twenty wake-ups a second. A
thread is woken when the loop has not
turned for long, and tells what holds it, while it does: after the fact nobody would know.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from bisect import bisect_left

import trio

INTERVAL_SECONDS = 0.05
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# From here on the stack of what holds the loop is told, and not more often than that.
TOLD_SECONDS = 0.25
TOLD_INTERVAL_SECONDS = 60.0

logger = logging.getLogger("liftbridge.loop")


class Stalls:
    """Measures the event loop that it runs in.

    Attributes:
        counts: delays by bucket of `BOUNDS`, the last one beyond all of them.
        total: all delays together, in seconds.
        longest: the longest one, in seconds.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.longest = 0.0
        self._due = 0.0
        self._ended = threading.Event()
        self._told = -TOLD_INTERVAL_SECONDS

    def note(self, delay: float) -> None:
        """The loop was late by `delay` seconds."""
        self.counts[bisect_left(BOUNDS, delay)] += 1
        self.total += delay
        self.longest = max(self.longest, delay)

    async def run(self) -> None:
        """Measure until cancelled."""
        watched = threading.get_ident()
        self._due = time.perf_counter() + INTERVAL_SECONDS
        watcher = threading.Thread(target=self._watch, args=(watched,), name="stall watch", daemon=True)
        watcher.start()
        try:
            while True:
                started = time.perf_counter()
                self._due = started + INTERVAL_SECONDS
                await trio.sleep(INTERVAL_SECONDS)
                self.note(max(0.0, time.perf_counter() - self._due))
        finally:
            self._ended.set()
            watcher.join()

    def _watch(self, watched: int) -> None:
        """In a thread: tell what holds the loop when it holds it for long."""
        while not self._ended.wait(TOLD_SECONDS):
            late = time.perf_counter() - self._due
            if late < TOLD_SECONDS or time.perf_counter() - self._told < TOLD_INTERVAL_SECONDS:
                continue
            frame = sys._current_frames().get(watched)
            if frame is not None:
                self._told = time.perf_counter()
                stack = "".join(traceback.format_stack(frame))
                logger.warning("the event loop has not turned for %.0f ms; it is at: %s", late * 1000, stack)
