"""Group commit: one task per process that brings dirty logs to the disk.

Whoever needs a log on disk asks and goes on; asking again before the flush begins costs nothing more. The
flusher takes all logs asked for so far, syncs them in worker threads, and calls back. Whatever is asked for
meanwhile joins the next flush, so the number of fdatasync calls follows the speed of the disk, not the
number of messages, and a record waits for two flushes at most.

A sync policy is no more than who asks, and when: `always` asks after every append, `interval` asks with a
delay and without one once enough bytes wait, `never` asks only when a log says `needs_sync`.

A request that is made in a reader's turn (`liftbridge.sockets`) begins its flush when the turn ends, and what
the callbacks send leaves when the last of them has run: between an append and its ack lie the sync, one
change of threads and back, and no task that would have to be woken. All else is begun by the task `run`.

Invariants: a callback runs on the event loop's thread, after the sync that covers everything appended
before the request. One flush runs at a time. Cancellation waits for the syncs that are running and forgets no
request: `drain` serves them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Protocol

import trio

from liftbridge.log.errors import LogError
from liftbridge.sockets import Turn

if TYPE_CHECKING:
    from outcome import Outcome

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


_Results = list[tuple[Syncable, int | LogError, float]]


class Flusher:
    """Runs the syncs of all logs of a process; `turn` are the readers' turns, when others share them.

    Attributes:
        counts: syncs by the time they took, by bucket of `LATENCY_BOUNDS`, the last one beyond all of them.
        seconds: what they took together.
    """

    def __init__(self, turn: Turn | None = None) -> None:
        self._turn = turn or Turn()
        self._requests: _Requests = {}  # for each log who waits, in order and once
        self._due: dict[Syncable, float] = {}  # when a log may wait no longer, by Trio's clock
        self._wake = trio.Event()
        self._serving = False  # `run` is there, and is not being cancelled
        self._running = 0  # threads of the flush that is under way
        self._over = trio.Event()  # that flush
        self._defect: BaseException | None = None
        self._begin_due = self._begin_what_is_due  # one object, by which the turn knows it
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
            if due > -inf or not self._turn.later(self._begin_due):
                self._wake.set()

    def latencies(self) -> list[float]:
        """Return how long the last syncs took, in seconds, oldest first; a bounded number of them."""
        return list(self._latencies)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve requests until cancelled."""
        task_status.started()
        self._serving = True
        try:
            while True:
                # A flush that is under way begins the next one, or wakes us.
                due = inf if self._running else min(self._due.values(), default=inf)
                with trio.CancelScope(deadline=due):
                    await self._wake.wait()
                self._wake = trio.Event()
                self._check()
                if not self._running:
                    self._begin(self._due_now())
        finally:
            self._serving = False
            with trio.CancelScope(shield=True):
                await self._wait_over()

    async def drain(self) -> None:
        """Return when every request made so far has been served; `run` need not be running."""
        while self._requests or self._running:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not self._running:
                self._begin(list(self._requests))
            with trio.CancelScope(shield=True):
                await self._wait_over()
            self._check()

    async def _wait_over(self) -> None:
        while self._running:
            await self._over.wait()

    def _check(self) -> None:
        """Raise what a sync or a callback has raised that is no error of a log."""
        if self._defect is not None:
            defect, self._defect = self._defect, None
            raise defect

    def _due_now(self) -> list[Syncable]:
        now = trio.current_time()
        return [log for log, due in self._due.items() if due <= now]

    def _begin_what_is_due(self) -> None:
        """The end of a turn, or of a flush."""
        if self._running:
            return  # its end comes here again
        try:
            if self._serving:
                self._begin(self._due_now())
        except RuntimeError:  # no more threads: the task tries again, and fails for all to see
            self._wake.set()
        if self._due and not self._running:
            self._wake.set()  # the task knows when

    def _begin(self, logs: Iterable[Syncable]) -> None:
        """Begin a flush of `logs`; none may be under way. Raises RuntimeError when there is no thread."""
        due = list(logs)
        token = trio.lowlevel.current_trio_token()
        for share in (due[start::PARALLEL_SYNCS] for start in range(min(PARALLEL_SYNCS, len(due)))):
            taken = {log: self._requests[log] for log in share}
            trio.lowlevel.start_thread_soon(partial(_sync_all, share), partial(self._deliver, token, taken))
            for log in share:
                del self._requests[log], self._due[log]
            if not self._running:
                self._over = trio.Event()
            self._running += 1

    def _deliver(self, token: trio.lowlevel.TrioToken, taken: _Requests, synced: Outcome[_Results]) -> None:
        """The end of a thread."""
        token.run_sync_soon(self._finish_share, taken, synced)

    def _finish_share(self, taken: _Requests, synced: Outcome[_Results]) -> None:
        """A thread is through with its logs: called on the event loop's thread."""
        with self._turn:
            self._running -= 1
            try:
                for log, result, seconds in synced.unwrap():
                    self._latencies.append(seconds)
                    self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
                    self.seconds += seconds
                    for done, failed in taken[log]:
                        if isinstance(result, LogError):
                            failed(result)
                        else:
                            done(result)
            except BaseException as error:  # `run` or `drain` raises it
                self._defect = error
                self._wake.set()
            if not self._running:
                self._over.set()
                if self._due:
                    self._turn.later(self._begin_due)


def _sync_all(logs: list[Syncable]) -> _Results:
    results: _Results = []
    for log in logs:
        started = time.perf_counter()
        result: int | LogError
        try:
            result = log.sync()
        except LogError as error:
            result = error
        results.append((log, result, time.perf_counter() - started))
    return results
