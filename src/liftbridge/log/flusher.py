"""Group commit: one task per process that brings dirty logs to the disk.

Whoever needs a log on disk asks and goes on; asking again before the flush begins costs nothing more. The
flusher takes all logs asked for so far, syncs them in worker threads, and calls back. Whatever is asked for
meanwhile joins the next flush, so the number of fdatasync calls follows the speed of the disk, not the
number of messages, and a record waits for two flushes at most.

A sync policy is no more than who asks, and when: `always` asks after every append, `interval` asks with a
delay and without one once enough bytes wait, `never` asks only when a log says `needs_sync`.

Invariants: a callback runs on the event loop's thread, after the sync that covers everything appended
before the request. Cancellation waits for the syncs that are running and forgets no request: `drain` serves
them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import Protocol

import trio

from liftbridge.log.errors import LogError

Done = Callable[[int], None]
Failed = Callable[[Exception], None]

PARALLEL_SYNCS = 4  # the file system merges concurrent fdatasync calls into few commits of its journal
LATENCY_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
REMEMBERED_LATENCIES = 4096


class Syncable(Protocol):
    """What the flusher needs of a log."""

    def sync(self) -> int:
        """Bring everything appended so far to the disk; return the first offset that is not there."""


_Requests = dict[Syncable, dict[tuple[Done, Failed], None]]


class Flusher:
    """Runs the syncs of all logs of a process.

    Attributes:
        counts: syncs by the time they took, by bucket of `LATENCY_BOUNDS`, the last one beyond all of them.
        seconds: what they took together.
    """

    def __init__(self) -> None:
        self._requests: _Requests = {}  # for each log who waits, in order and once
        self._due: dict[Syncable, float] = {}  # when a log may wait no longer, by Trio's clock
        self._wake = trio.Event()
        self._flushing = trio.Lock()
        self._limiter = trio.CapacityLimiter(PARALLEL_SYNCS)
        self._latencies: deque[float] = deque(maxlen=REMEMBERED_LATENCIES)
        self.counts = [0] * (len(LATENCY_BOUNDS) + 1)
        self.seconds = 0.0

    def request(self, log: Syncable, done: Done, failed: Failed, *, delay: float = 0) -> None:
        """Have `log` synced within `delay` seconds, and one of the callbacks called on this thread.

        Arguments:
            log: whose `sync` to call.
            done: gets the new synced offset.
            failed: gets the error; it is final for the log.
            delay: the longest time the sync may be put off; an earlier request for the log is not put off
                by it.
        """
        self._requests.setdefault(log, {})[done, failed] = None
        due = trio.current_time() + delay if delay > 0 else -inf
        if due < self._due.get(log, inf):
            self._due[log] = due
            self._wake.set()

    def latencies(self) -> list[float]:
        """Return how long the last syncs took, in seconds, oldest first; a bounded number of them."""
        return list(self._latencies)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve requests until cancelled."""
        task_status.started()
        while True:
            with trio.CancelScope(deadline=min(self._due.values(), default=inf)):
                await self._wake.wait()
            self._wake = trio.Event()
            now = trio.current_time()
            await self._flush([log for log, due in self._due.items() if due <= now])

    async def drain(self) -> None:
        """Return when every request made so far has been served; `run` need not be running."""
        while self._requests:
            await self._flush(list(self._requests))

    async def _flush(self, logs: Iterable[Syncable]) -> None:
        async with self._flushing:
            taken: _Requests = {}
            for log in logs:
                if log in self._requests:
                    taken[log] = self._requests.pop(log)
                    del self._due[log]
            shares = [list(taken)[start::PARALLEL_SYNCS] for start in range(min(PARALLEL_SYNCS, len(taken)))]
            try:
                async with trio.open_nursery() as nursery:
                    for share in shares:
                        nursery.start_soon(self._sync_share, share, taken)
            finally:
                for log, waiting in taken.items():  # cancelled before their turn
                    for done, failed in waiting:
                        self.request(log, done, failed)

    async def _sync_share(self, share: list[Syncable], taken: _Requests) -> None:
        results = await trio.to_thread.run_sync(partial(_sync_all, share), limiter=self._limiter)
        for log, result, seconds in results:
            self._latencies.append(seconds)
            self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
            self.seconds += seconds
            for done, failed in taken.pop(log):
                if isinstance(result, LogError):
                    failed(result)
                else:
                    done(result)


def _sync_all(logs: list[Syncable]) -> list[tuple[Syncable, int | LogError, float]]:
    results: list[tuple[Syncable, int | LogError, float]] = []
    for log in logs:
        started = time.perf_counter()
        result: int | LogError
        try:
            result = log.sync()
        except LogError as error:
            result = error
        results.append((log, result, time.perf_counter() - started))
    return results
