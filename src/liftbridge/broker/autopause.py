"""Auto-pause: which partitions have received nothing for as long as their stream allows, found by one task.

Partitions wait in a heap ordered by when they may be idle at the earliest. Nothing is done when a message
comes: a partition that is due looks at when it was active last, and waits for the rest of its time. So a busy
partition costs a look once in its time, an idle one costs nothing until it is paused, and thousands that
become idle together are paused by one operation for each stream.

Times are of the monotonic clock: a step of the wall clock pauses nobody.

Invariants:
* A partition is never paused before its time is over since it began or received a message; that is checked
  again when it is the operation's turn.
* The heap is bounded by the partitions that are watched, whatever was resumed and paused meanwhile.
"""

from __future__ import annotations

import heapq
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import trio

from liftbridge.broker.partition import Partition, State
from liftbridge.metadata.errors import MetadataError

# When pausing failed, or while subscribers keep partitions with a very short time awake.
RETRY_SECONDS = 1.0

PauseIdle = Callable[[Sequence[Partition]], Awaitable[None]]
"""Pauses those of the partitions of one stream that are idle still."""


@dataclass(order=True)
class _Due:
    """When to look at a partition, by the monotonic clock."""

    time: float
    partition: Partition = field(compare=False)


def is_idle(partition: Partition) -> bool:
    """Whether a partition is to be paused now."""
    return (
        partition.state is State.LEADING
        and not partition.closing
        and not _kept_awake(partition)
        and time.monotonic() - partition.active_at >= _limit(partition)
    )


class AutoPause:
    """Watches the partitions that it is given while `run` runs."""

    def __init__(self) -> None:
        self._watched: set[Partition] = set()
        self._heap: list[_Due] = []
        self._wake = trio.Event()
        self._logger = logging.getLogger("liftbridge.autopause")

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, partition: Partition) -> None:
        """Watch a partition from now on, if its stream wants that."""
        if partition.settings.auto_pause_time:
            self._watched.add(partition)
            self._schedule(partition, partition.active_at + _limit(partition))

    def discard(self, partition: Partition) -> None:
        """The partition is over."""
        self._watched.discard(partition)
        # What is over may be due in hours only: it is not to be kept in memory until then.
        if len(self._heap) > 2 * len(self._watched) + 64:
            self._heap = [due for due in self._heap if due.partition in self._watched]
            heapq.heapify(self._heap)

    async def run(self, pause: PauseIdle) -> None:
        """Pause idle partitions until cancelled."""
        while True:
            for partitions in self._take_idle():
                await self._pause(partitions, pause)
            wait = self._heap[0].time - time.monotonic() if self._heap else inf
            with trio.move_on_after(max(wait, 0)):
                await self._wake.wait()

    def _take_idle(self) -> list[list[Partition]]:
        """The partitions that are idle, by stream; the others that were due are put off."""
        idle: dict[uuid.UUID, list[Partition]] = {}
        now = time.monotonic()
        while self._heap and self._heap[0].time <= now:
            partition = heapq.heappop(self._heap).partition
            if partition not in self._watched:
                continue
            if is_idle(partition):
                idle.setdefault(partition.stream.stream_id, []).append(partition)
            elif _kept_awake(partition) or partition.state is not State.LEADING:
                self._schedule(partition, now + max(_limit(partition), RETRY_SECONDS))
            else:
                self._schedule(partition, partition.active_at + _limit(partition))
        return list(idle.values())

    async def _pause(self, partitions: list[Partition], pause: PauseIdle) -> None:
        try:
            await pause(partitions)
        except MetadataError as error:
            self._logger.warning(
                "%d idle partitions of stream %s were not paused: %s",
                len(partitions),
                partitions[0].stream.name,
                error,
            )
        for partition in partitions:  # those that are not paused: they became active, or it failed
            if partition in self._watched and partition.state is not State.PAUSED:
                self._schedule(
                    partition,
                    max(partition.active_at + _limit(partition), time.monotonic() + RETRY_SECONDS),
                )

    def _schedule(self, partition: Partition, due: float) -> None:
        heapq.heappush(self._heap, _Due(due, partition))
        if self._heap[0].partition is partition:
            self._wake.set()
            self._wake = trio.Event()


def _kept_awake(partition: Partition) -> bool:
    return partition.settings.auto_pause_disable_if_subscribers and partition.subscribers > 0


def _limit(partition: Partition) -> float:
    return partition.settings.auto_pause_time / 1e9
