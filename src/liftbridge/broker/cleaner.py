"""The cleaner: retention and segment age of every partition of the process, in a few worker threads.

One for the process instead of a task per partition: partitions wait in a heap ordered by when they are due,
so an idle one costs an entry there and, once in its interval, a short call. The first turn of each comes
after a random part of its interval; thus partitions that began together, all of them at a start of the
server, do not come due together.

Invariants:
* At most one job at a time works on a partition, and none begins after `discard`.
* At most `workers` threads remove.
* A job that fails, fails alone: a failed log makes its partition offline, anything else is logged and comes
  up again when the partition is due next.
"""

from __future__ import annotations

import heapq
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import trio

from liftbridge.broker.partition import PartitionSettings, State
from liftbridge.log import Log, LogClosedError, LogError


class Cleanable(Protocol):
    """What the cleaner needs of a partition; all of it is called on the event loop's thread."""

    @property
    def settings(self) -> PartitionSettings:
        """The interval, among others."""

    @property
    def state(self) -> State:
        """Only partitions that lead are cleaned."""

    @property
    def log(self) -> Log:
        """The log of a partition that leads."""

    @property
    def high_watermark(self) -> int:
        """Nothing above it is removed."""

    def rest(self) -> None:
        """The partition's interval is over."""

    def fail(self, reason: str) -> None:
        """The log has failed."""


@dataclass(eq=False)
class _Entry:
    """A partition that the cleaner looks after."""

    partition: Cleanable
    discarded: bool = False
    idle: trio.Event | None = None  # set when the job at work has ended; None when there is none


@dataclass(order=True)
class _Due:
    """When a partition's next job may begin, by Trio's clock."""

    time: float
    entry: _Entry = field(compare=False)


class Cleaner:
    """Looks after the partitions that it is given, while `run` runs.

    Arguments:
        workers: how many threads work at most.
        clock: the time, ns since the epoch.
    """

    def __init__(self, *, workers: int, clock: Callable[[], int] = time.time_ns) -> None:
        self._workers = workers
        self._clock = clock
        self._limiter = trio.CapacityLimiter(workers)
        self._entries: dict[Cleanable, _Entry] = {}
        self._heap: list[_Due] = []
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self._logger = logging.getLogger("liftbridge.cleaner")

    def add(self, partition: Cleanable) -> None:
        """Look after a partition from now on, every `cleaner_interval` of its settings."""
        assert partition not in self._entries, f"{partition} is looked after already"
        entry = self._entries[partition] = _Entry(partition)
        self._schedule(entry, random.random() * _interval(partition))  # noqa: S311  # spreads load, no secret

    def discard(self, partition: Cleanable) -> None:
        """Begin no more jobs on a partition; one that is at work goes on."""
        entry = self._entries.get(partition)
        if entry is not None:
            entry.discarded = True
            if entry.idle is None:
                self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        del self._entries[entry.partition]
        # What is discarded may be due in hours only: it is not to be kept in memory until then.
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [due for due in self._heap if not due.entry.discarded]
            heapq.heapify(self._heap)

    async def wait_idle(self, partition: Cleanable) -> None:
        """Wait for the end of the job that is at work on a partition, if one is."""
        entry = self._entries.get(partition)
        if entry is not None and entry.idle is not None:
            await entry.idle.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled or told to stop; jobs that are at work then are waited for."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                for _ in range(self._workers):
                    nursery.start_soon(self._work)
                task_status.started()

    def stop(self) -> None:
        """Begin no more jobs, of any partition."""
        self._scope.cancel()

    async def _work(self) -> None:
        while True:
            entry = await self._next()
            await self._clean(entry)

    async def _next(self) -> _Entry:
        """Wait until a partition is due, and take it."""
        while True:
            while self._heap and self._heap[0].entry.discarded:
                heapq.heappop(self._heap)
            due = self._heap[0].time if self._heap else inf
            if due <= trio.current_time():
                return heapq.heappop(self._heap).entry
            with trio.CancelScope(deadline=due):
                await self._wake.wait()

    def _schedule(self, entry: _Entry, delay: float) -> None:
        due = _Due(trio.current_time() + delay, entry)
        heapq.heappush(self._heap, due)
        if self._heap[0] is due:
            self._wake.set()
            self._wake = trio.Event()

    async def _clean(self, entry: _Entry) -> None:
        """One job, and the date of the next."""
        entry.idle = trio.Event()
        try:
            if entry.partition.state is State.LEADING:
                await self._retain(entry.partition)
            entry.partition.rest()
        finally:
            entry.idle.set()
            entry.idle = None
            if entry.discarded:
                self._forget(entry)
            else:
                self._schedule(entry, _interval(entry.partition))

    async def _retain(self, partition: Cleanable) -> None:
        try:
            removed = await trio.to_thread.run_sync(
                partition.log.retain, self._clock(), partition.high_watermark + 1, limiter=self._limiter
            )
        except LogClosedError:
            return  # it was closed meanwhile
        except LogError as error:
            partition.fail(f"the log failed: {error}")
        except OSError as error:
            self._logger.error("%s: retention failed, it will be tried again: %s", partition, error)  # noqa: TRY400
        else:
            if removed:
                self._logger.info("%s: retention removed %d segments", partition, removed)


def _interval(partition: Cleanable) -> float:
    return partition.settings.cleaner_interval / 1e9
