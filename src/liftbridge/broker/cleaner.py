"""The cleaner: retention, segment age and compaction of every partition of the process, in a few threads.

One for the process instead of a task per partition: partitions wait in a heap ordered by when they are due,
so an idle one costs an entry there and, once in its interval, a short call. The first turn of each comes
after a random part of its interval; thus partitions that began together, all of them at a start of the
server, do not come due together.

A partition that is due has its old segments removed first, which is quick, and is then queued for compaction
if its stream is compacted, which may take minutes. Each of the two has threads of its own, so that what takes
up room goes in time however long compactions take. All compactions share one limit of bytes per second.

Invariants:
* At most one job at a time works on a partition, and none begins after `discard`.
* At most `workers` threads remove, and at most so many, or `compactions` if that is less, compact.
* Of one stream, no more partitions are compacted at a time than it allows.
* A job that fails, fails alone: a failed log makes its partition offline, anything else is logged and comes
  up again when the partition is due next.
"""

from __future__ import annotations

import heapq
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import trio

from liftbridge.broker.partition import State
from liftbridge.broker.partition_settings import PartitionSettings
from liftbridge.log import CleaningStoppedError, Log, LogClosedError, LogError, Throttle
from liftbridge.metadata.model import Stream


class Cleanable(Protocol):
    """What the cleaner needs of a partition; all of it is called on the event loop's thread."""

    @property
    def settings(self) -> PartitionSettings:
        """The interval, among others."""

    @property
    def stream(self) -> Stream:
        """What it is a partition of."""

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

    def messages_changed(self) -> None:
        """Compaction has removed messages."""

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
        workers: how many threads remove at most, and how many compact.
        compactions: how many threads compact at most.
        throttle: bounds the bytes per second of all compactions.
        clock: the time, ns since the epoch.
    """

    def __init__(
        self,
        *,
        workers: int,
        compactions: int,
        throttle: Throttle,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._clock = clock
        self._throttle = throttle
        self._removers = trio.CapacityLimiter(workers)
        self._compactors = trio.CapacityLimiter(min(workers, compactions))
        self._entries: dict[Cleanable, _Entry] = {}
        self._heap: list[_Due] = []
        self._wake = trio.Event()
        self._queue: list[_Entry] = []  # of partitions to compact, the first to come is the first to go
        self._queue_changed = trio.Event()
        self._compacting: Counter[uuid.UUID] = Counter()  # partitions at work, by stream
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
        """Work until cancelled or told to stop; jobs that are at work then are waited for, which is not long:
        compactions give up."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                for _ in range(int(self._removers.total_tokens)):
                    nursery.start_soon(self._remove_due)
                for _ in range(int(self._compactors.total_tokens)):
                    nursery.start_soon(self._compact_queued)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._throttle.stop()

    def stop(self) -> None:
        """Begin no more jobs, of any partition."""
        self._throttle.stop()
        self._scope.cancel()

    def _schedule(self, entry: _Entry, delay: float) -> None:
        due = _Due(trio.current_time() + delay, entry)
        heapq.heappush(self._heap, due)
        if self._heap[0] is due:
            self._wake.set()
            self._wake = trio.Event()

    @contextmanager
    def _at_work(self, entry: _Entry) -> Iterator[None]:
        entry.idle = trio.Event()
        try:
            yield
        finally:
            entry.idle.set()
            entry.idle = None
            if entry.discarded:
                self._forget(entry)

    # -- removal ---------------------------------------------------------------------------------------

    async def _remove_due(self) -> None:
        while True:
            entry = await self._next_due()
            partition = entry.partition
            with self._at_work(entry):
                if partition.state is State.LEADING:
                    await self._retain(partition)
                partition.rest()
            if entry.discarded:
                continue
            if partition.settings.log.compact and partition.state is State.LEADING:
                self._queue.append(entry)
                self._change_queue()
            else:
                self._schedule(entry, _interval(partition))

    async def _next_due(self) -> _Entry:
        """Wait until a partition is due, and take it."""
        while True:
            while self._heap and self._heap[0].entry.discarded:
                heapq.heappop(self._heap)
            due = self._heap[0].time if self._heap else inf
            if due <= trio.current_time():
                return heapq.heappop(self._heap).entry
            with trio.CancelScope(deadline=due):
                await self._wake.wait()

    async def _retain(self, partition: Cleanable) -> None:
        try:
            removed = await trio.to_thread.run_sync(
                partition.log.retain, self._clock(), partition.high_watermark + 1, limiter=self._removers
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

    # -- compaction ------------------------------------------------------------------------------------

    async def _compact_queued(self) -> None:
        while True:
            entry = await self._next_queued()
            partition = entry.partition
            stream = partition.stream.stream_id
            self._compacting[stream] += 1
            try:
                with self._at_work(entry):
                    await self._compact(partition)
            finally:
                self._compacting[stream] -= 1
                self._change_queue()
            if not entry.discarded:
                self._schedule(entry, _interval(partition))

    async def _next_queued(self) -> _Entry:
        """Wait for a partition whose turn it is, and take it."""
        while True:
            self._queue = [entry for entry in self._queue if not entry.discarded]
            for position, entry in enumerate(self._queue):
                partition = entry.partition
                if self._compacting[partition.stream.stream_id] < partition.settings.compact_partitions:
                    return self._queue.pop(position)
            await self._queue_changed.wait()

    def _change_queue(self) -> None:
        self._queue_changed.set()
        self._queue_changed = trio.Event()

    async def _compact(self, partition: Cleanable) -> None:
        if partition.state is not State.LEADING:
            return
        try:
            done = await trio.to_thread.run_sync(
                partition.log.compact,
                self._clock(),
                partition.high_watermark + 1,
                self._throttle,
                limiter=self._compactors,
            )
        except (LogClosedError, CleaningStoppedError):
            return  # it was closed meanwhile, or the server stops
        except LogError as error:
            partition.fail(f"the log failed: {error}")
        except OSError as error:
            self._logger.error("%s: compaction failed, it will be tried again: %s", partition, error)  # noqa: TRY400
        else:
            if done.records_removed:
                partition.messages_changed()
                self._logger.info(
                    "%s: compaction removed %d messages; %d segments became %d",
                    partition,
                    done.records_removed,
                    done.segments_before,
                    done.segments_after,
                )


def _interval(partition: Cleanable) -> float:
    return partition.settings.cleaner_interval / 1e9
