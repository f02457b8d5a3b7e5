"""Pausing, resuming and making readonly, as clients and publishers ask for them.

A pause is metadata: it holds on every server and over restarts. What follows from it, that partitions end and
begin, is done by `Streams` when the operation is applied. This module says which operation a request becomes,
decided when it is the operation's turn, so that of many publishers that find a partition paused the first
resumes it and the others find it resumed; and it waits until what was asked for can be used.

Invariants: operations that leave here name each partition, so that whoever follows them need not know the
stream; a publisher that was told that a partition is ready may publish without waiting for anything in
between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from liftbridge.broker.autopause import is_idle
from liftbridge.broker.controller import Controller
from liftbridge.broker.partition import Partition
from liftbridge.broker.settling import Settling
from liftbridge.broker.streams import Streams
from liftbridge.metadata.model import Stream
from liftbridge.metadata.operations import PauseStream, ResumeStream, SetStreamReadonly
from liftbridge.metadata.pausing import chosen_partitions
from liftbridge.metadata.state import ClusterState

# How long PauseStream waits until partitions have given back what they took up; they go on doing so.
RELEASE_SECONDS = 5.0


class NoRoomError(Exception):
    """Resuming would give this server more partitions than it takes; the text says so."""


class Pausing:
    """The ways to pause, resume and make readonly. `clock` tells ns since the epoch."""

    def __init__(
        self, controller: Controller, streams: Streams, settling: Settling, clock: Callable[[], int]
    ) -> None:
        self._controller = controller
        self._streams = streams
        self._settling = settling
        self._clock = clock

    async def pause(self, name: str, partition_ids: Sequence[int], *, resume_all: bool) -> None:
        """Pause partitions of a stream, all of them when none is named.

        With `resume_all`, the first publish to any of the stream's paused partitions resumes them all.
        Returns when they have given back what they took up, or after a few seconds. Raises MetadataError:
        NOT_FOUND, INTERNAL.
        """

        def operation(state: ClusterState) -> PauseStream:
            stream = state.stream(name)
            chosen = chosen_partitions(stream, partition_ids)
            return PauseStream(name, stream.stream_id, chosen, resume_all, self._clock())

        stream = await self._controller.change(operation)
        assert isinstance(stream, Stream), "a pause is always carried out"
        with trio.move_on_after(RELEASE_SECONDS):
            await self._streams.released(stream, chosen_partitions(stream, partition_ids))

    async def pause_idle(self, partitions: Sequence[Partition]) -> None:
        """Pause those of some partitions of one stream that are idle; raises and returns as `pause` does."""
        name, stream_id = partitions[0].stream.name, partitions[0].stream.stream_id
        chosen: list[int] = []

        def operation(state: ClusterState) -> PauseStream | None:
            chosen.extend(partition.model.id for partition in partitions if is_idle(partition))
            if not chosen or state.stream_by_id(stream_id) is None:
                return None
            return PauseStream(name, stream_id, tuple(sorted(chosen)), False, self._clock())

        stream = await self._controller.change(operation)
        if isinstance(stream, Stream):
            with trio.move_on_after(RELEASE_SECONDS):
                await self._streams.released(stream, chosen)

    async def set_readonly(self, name: str, partition_ids: Sequence[int], *, readonly: bool) -> None:
        """Make partitions of a stream readonly, or writable again; all of them when none is named.

        Raises MetadataError: NOT_FOUND, INTERNAL.
        """

        def operation(state: ClusterState) -> SetStreamReadonly:
            stream = state.stream(name)
            chosen = chosen_partitions(stream, partition_ids)
            return SetStreamReadonly(name, stream.stream_id, chosen, readonly, self._clock())

        await self._controller.change(operation)

    async def ready(self, name: str, partition_id: int) -> None:
        """Return when a partition takes messages, at once if it does: resume it, or with it all paused
        partitions of its stream if the pause said so, and wait until NATS delivers to it.

        Waits as long as opening its log takes. Raises MetadataError: NOT_FOUND when it does not exist (any
        more), INTERNAL; NoRoomError.
        """
        resumed = False
        while True:
            if self._controller.state.partition(name, partition_id).paused:
                await self._resume(name, partition_id)
                resumed = True
            partition = self._streams.partition(name, partition_id)
            if partition is None:
                # Somebody else leads it: whom it takes a moment to begin again.
                if resumed:
                    await self._settling.wait(self._controller.state.stream(name), [partition_id])
                return
            if partition.settled.is_set():  # leading is not enough: NATS may not deliver yet
                self._streams.mark_route(partition)
                return
            await partition.settled.wait()

    async def _resume(self, name: str, partition_id: int) -> None:
        def operation(state: ClusterState) -> ResumeStream | None:
            if not state.partition(name, partition_id).paused:
                return None
            stream = state.stream(name)
            chosen = tuple(each.id for each in stream.partitions if each.paused)
            if not stream.resume_all:
                chosen = (partition_id,)
            if lack := self._streams.lack_of_room(len(chosen)):
                raise NoRoomError(f"stream {stream.name!r} is not resumed: {lack}")
            return ResumeStream(name, stream.stream_id, chosen, self._clock())

        await self._controller.change(operation)
