"""The streams that the server itself keeps: `__cursors` and `__activity`.

They are streams like others in the metadata, in the log and for subscribers. What differs is who makes them:
the controller, when the configuration asks for them and they do not exist, and nobody removes them. Their
settings are fixed with them. The configuration can switch them on later, but neither off nor to another
number of partitions: a cursor is found in the partition that its key had when it was stored.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator

import trio

from liftbridge.broker.config import Config
from liftbridge.broker.controller import Controller
from liftbridge.broker.partition import Partition, State
from liftbridge.broker.pausing import NoRoomError
from liftbridge.broker.settling import Settling
from liftbridge.broker.streams import Streams
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.model import StreamSettings
from liftbridge.metadata.operations import CreateStream
from liftbridge.metadata.state import ClusterState
from liftbridge.metadata.validation import ACTIVITY_STREAM, CURSORS_STREAM
from liftbridge.proto import api_pb2

# Everything that is not the newest position of a cursor is read once more after a start, and only what is not
# in the active segment is compacted: small segments bound both.
CURSORS_SEGMENT_BYTES = 16 << 20

CURSORS_SETTINGS = StreamSettings(
    retention_max_bytes=0,
    retention_max_messages=0,
    retention_max_age_ms=0,
    segment_max_bytes=CURSORS_SEGMENT_BYTES,
    compact_enabled=True,
    auto_pause_disable_if_subscribers=True,
    optimistic_concurrency_control=False,
)
# A pause is an event, and an event resumes the stream: pausing by itself, it would do so for ever.
ACTIVITY_SETTINGS = StreamSettings(auto_pause_time_ms=0, optimistic_concurrency_control=False)

# How long the start of the server waits for the leaders of a new stream.
LEADERS_SECONDS = 5.0
# A partition may be paused again before it was of use; not for ever.
RESUME_ATTEMPTS = 10

logger = logging.getLogger("liftbridge")


class InternalStreamError(Exception):
    """A stream of the server's own cannot be created; the text says why and what to do."""


class NotLeadingError(Exception):
    """This server does not serve the partition; the text says why."""


async def create_internal_streams(
    config: Config, controller: Controller, streams: Streams, settling: Settling
) -> None:
    """Create the streams that the configuration asks for and that do not exist; when this returns they are
    led.

    Raises InternalStreamError.
    """
    cursors = config.cursors
    if config.activity.stream_enabled:
        await _create(controller, streams, settling, ACTIVITY_STREAM, "activity", 1, -1, ACTIVITY_SETTINGS)
    existing = controller.state.streams.get(CURSORS_STREAM)
    if existing is not None:
        if len(existing.partitions) != cursors.stream_partitions:
            logger.warning(
                "cursors.stream.partitions is %d, but stream %s exists with %d partitions and keeps them",
                cursors.stream_partitions,
                CURSORS_STREAM,
                len(existing.partitions),
            )
    elif cursors.stream_partitions:
        await _create(
            controller,
            streams,
            settling,
            CURSORS_STREAM,
            "cursors",
            cursors.stream_partitions,
            cursors.stream_replication_factor,
            CURSORS_SETTINGS,
        )


async def _create(
    controller: Controller,
    streams: Streams,
    settling: Settling,
    name: str,
    token: str,
    partitions: int,
    replication_factor: int,
    settings: StreamSettings,
) -> None:
    if name in controller.state.streams:
        return
    if lack := streams.lack_of_room(partitions):
        raise InternalStreamError(f"stream {name} cannot have {partitions} partitions: {lack}")

    def creation(state: ClusterState) -> CreateStream | None:
        if name in state.streams:  # another server was first
            return None
        return controller.creation(
            state,
            name=name,
            subject=f"{controller.namespace}.{token}",
            replication_factor=replication_factor,
            partitions=partitions,
            settings=settings,
        )

    try:
        created = await controller.change(creation)
        stream = controller.state.stream(name)
    except MetadataError as error:
        raise InternalStreamError(f"stream {name} cannot be created: {error.text}") from error
    if created is not None:
        logger.info("created stream %s with %d partitions", name, partitions)
    with trio.move_on_after(LEADERS_SECONDS):
        await settling.wait(stream)


Ready = Callable[[str, int], Awaitable[None]]
"""Resumes a partition, of a stream by name, if it is paused. Raises MetadataError."""


class OwnPartitions:
    """The partitions of the internal streams, for whoever uses them; `ready` resumes paused ones."""

    def __init__(self, state: ClusterState, streams: Streams, ready: Ready) -> None:
        self._state = state
        self._streams = streams
        self._ready = ready

    def find(self, name: str, partition_id: int) -> Partition | None:
        """The replica here of a partition as it is now, None when there is none."""
        return self._streams.partition(name, partition_id)

    async def leading(self, name: str, partition_id: int) -> Partition:
        """A partition, once it leads and NATS delivers to it; a paused one is resumed first.

        Raises LookupError when there is no such partition, NotLeadingError when this server does not lead it.
        """
        partition = None
        for _ in range(RESUME_ATTEMPTS):
            try:
                model = self._state.partition(name, partition_id)
            except MetadataError as error:
                raise LookupError(error.text) from error
            if model.paused:
                try:
                    await self._ready(name, partition_id)
                except MetadataError as error:
                    raise NotLeadingError(error.text) from error
                except NoRoomError as error:
                    raise NotLeadingError(str(error)) from error
                continue
            partition = self.find(name, partition_id)
            if partition is None:
                raise NotLeadingError(
                    f"partition {partition_id} of stream {name} is led by {model.leader or 'nobody'}"
                )
            await partition.settled.wait()
            if partition.state is State.LEADING:
                return partition
            if not partition.model.paused:
                break
        state = State.PAUSED if partition is None else partition.state
        why = f": {partition.reason}" if partition is not None and partition.reason else ""
        raise NotLeadingError(f"partition {partition_id} of stream {name} is {state.value}{why}")


def messages_in(frames: bytes) -> Iterator[api_pb2.Message]:
    """The messages in what `Log.read_frames` returns."""
    at = 0
    while at < len(frames):
        end = at + 5 + int.from_bytes(frames[at + 1 : at + 5], "big")
        yield api_pb2.Message.FromString(frames[at + 5 : end])
        at = end
