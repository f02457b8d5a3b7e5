"""The activity stream: every operation on the metadata that clients may want to know of, as a message.

Events are made of operations (`metadata/activity.py`), which the controller tells of as it applies them. One
task publishes them, one at a time and each until it is stored: the order is that of the operations, none is
left out, and one that cannot be stored holds up those behind it. What waits here is bounded; beyond that, and
after a start, operations are read from the journal, which keeps them until their events are stored
([0015](docs/decisions/0015-activity-position.md)).

Whichever server leads the partition of the stream does it: all of them apply all operations, and the next one
finds in the stream where the last one stopped.

Where to go on after a start: behind the newest event in the stream, or behind the index in a file if that is
greater. The stream is exact, also after a kill between an event and its ack, but retention may have emptied
it; the file is written whenever nothing is left to publish.

Invariants:
* An event is published after the operation is durable, and again only when its ack did not come.
* With the policy `none` nothing is known of what became of an event, and none is published twice.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

import trio
from google.protobuf.message import DecodeError

from liftbridge.broker.config import ActivityConfig
from liftbridge.broker.controller import Controller
from liftbridge.broker.durable import replace_file
from liftbridge.broker.founding import METADATA_DIRECTORY
from liftbridge.broker.internal_publisher import InternalPublisher, NotStoredError, TooLargeError
from liftbridge.broker.internal_streams import NotLeadingError, OwnPartitions, messages_in
from liftbridge.broker.partition import Partition
from liftbridge.broker.publisher import Signal
from liftbridge.log import LogError
from liftbridge.metadata.activity import abridged, event_of
from liftbridge.metadata.operations import Operation, OperationError
from liftbridge.metadata.validation import ACTIVITY_STREAM
from liftbridge.proto import api_pb2

# In the directory of the metadata.
POSITION_FILE = "activity"
# Operations that wait in memory; those read from the journal at a time.
MAX_WAITING = 256
# Seconds before each attempt after the first to publish an event; the last one over and over.
PAUSES = (1, 2, 4, 8, 10)
# How much of the end of the stream is looked through for its newest event.
SEARCH_BYTES = 1 << 20

_POLICIES = {"none": api_pb2.NONE, "leader": api_pb2.LEADER, "all": api_pb2.ALL}

_logger = logging.getLogger("liftbridge.activity")


class Activity:
    """The task that feeds the activity stream: give `note` to the controller, then `run`."""

    def __init__(
        self,
        config: ActivityConfig,
        data_dir: Path,
        controller: Controller,
        partitions: OwnPartitions,
        publisher: InternalPublisher,
    ) -> None:
        self._timeout = config.stream_publish_timeout / 1e9
        self._policy = _POLICIES[config.stream_publish_ack_policy]
        self._file = data_dir / METADATA_DIRECTORY / POSITION_FILE
        self._controller = controller
        self._partitions = partitions
        self._publisher = publisher
        self._waiting: deque[tuple[int, Operation]] = deque()
        self._news = Signal()
        self._position = 0  # every event of an operation up to this index is stored
        self._saved = 0

    def note(self, index: int, operation: Operation, outcome: object) -> None:
        """The controller has applied an operation; what came of it does not matter here."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.clear()  # the journal has them
        self._waiting.append((index, operation))
        self._news.set()

    def look(self) -> None:
        """The controller has another state, of operations that came as a whole."""
        self._news.set()

    async def run(self) -> None:
        """Publish events whenever this server leads the stream, until cancelled."""
        while True:
            while not self._leads:
                await self._news.wait()
            await self._lead()

    @property
    def _leads(self) -> bool:
        stream = self._controller.state.streams.get(ACTIVITY_STREAM)
        return stream is not None and stream.partitions[0].leader == self._controller.broker

    async def _lead(self) -> None:
        """Publish events for as long as this server leads the stream."""
        position = await self._find_position()
        if position is None:
            return
        self._position = self._saved = position
        _logger.info("the activity stream goes on after operation %d", self._position)
        while self._leads:
            self._controller.keep_operations_after(self._position)
            operations = await self._next()
            for index, operation in operations:
                if index != self._position + 1:
                    self._note_gap(index - 1)
                if operation is not None and not await self._publish(index, operation):
                    return
                self._position = index
            if self._position == self._controller.state.applied_index and self._saved != self._position:
                await self._save()

    async def _next(self) -> Sequence[tuple[int, Operation | None]]:
        """Wait for operations beyond the position, and return some: the next ones."""
        while True:
            while self._waiting and self._waiting[0][0] <= self._position:
                self._waiting.popleft()
            if self._waiting and self._waiting[0][0] == self._position + 1:
                return [self._waiting.popleft()]
            applied = self._controller.state.applied_index
            if applied > self._position:
                return await self._from_journal(min(applied, self._position + MAX_WAITING))
            await self._news.wait()

    async def _from_journal(self, last: int) -> Sequence[tuple[int, Operation | None]]:
        for pause in _pauses():
            try:
                found = await self._controller.operations_after(self._position, last)
            except (OSError, OperationError) as error:
                _logger.error("the activity stream waits, the journal cannot be read: %s", error)  # noqa: TRY400
            else:
                if not found:
                    self._note_gap(last)
                    self._position = last
                return found
            await trio.sleep(pause)
        raise AssertionError("pauses do not end")

    def _note_gap(self, last: int) -> None:
        _logger.warning(
            "the activity stream lacks the operations %d to %d, which are not in the journal any more",
            self._position + 1,
            last,
        )

    # -- publishing ------------------------------------------------------------------------------------

    async def _publish(self, index: int, operation: Operation) -> bool:
        """Publish the event of an operation, however long it takes until it is stored; whether it was, as
        somebody else may lead the stream by then."""
        event = event_of(index, operation)
        if event is None:
            return True
        for pause in _pauses():
            try:
                with trio.move_on_after(self._timeout):
                    await self._publish_once(event)
                    return True
                reason = "no ack came"
            except TooLargeError as error:
                short = abridged(event)
                if short == event:
                    _logger.error("the event of operation %d is left out: %s", index, error)  # noqa: TRY400
                    return True
                _logger.warning("the event of operation %d goes without its lists: %s", index, error)
                event = short
                continue
            except (NotStoredError, NotLeadingError, LookupError) as error:
                reason = str(error)
            if not self._leads:
                return False
            _logger.warning(
                "the event of operation %d is not in the activity stream yet, trying again in %d s: %s",
                index,
                pause,
                reason,
            )
            await trio.sleep(pause)
        raise AssertionError("pauses do not end")

    async def _publish_once(self, event: api_pb2.ActivityStreamEvent) -> None:
        partition = await self._partitions.leading(ACTIVITY_STREAM, 0)
        value = event.SerializeToString()
        await self._publisher.publish(partition.stream, 0, value=value, policy=self._policy)

    # -- the position ----------------------------------------------------------------------------------

    async def _find_position(self) -> int | None:
        """The index of the operation whose event was published last, 0 when there was none; None when this
        server does not lead the stream any more."""
        stored = await trio.to_thread.run_sync(self._load)
        for pause in _pauses():
            try:
                partition = await self._partitions.leading(ACTIVITY_STREAM, 0)
                newest = await trio.to_thread.run_sync(
                    _newest_event, partition, self._controller.state.applied_index
                )
                return max(stored, newest)
            except (NotLeadingError, LookupError, LogError, OSError) as error:
                if not self._leads:
                    return None
                _logger.warning("the activity stream cannot be read, trying again in %d s: %s", pause, error)
            await trio.sleep(pause)
        raise AssertionError("pauses do not end")

    def _load(self) -> int:
        try:
            position = int(self._file.read_text())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            _logger.warning("%s cannot be read, the stream has to do without it: %s", self._file, error)
            return 0
        if not 0 <= position <= self._controller.state.applied_index:
            _logger.warning("%s is of other metadata; the stream has to do without it", self._file)
            return 0
        return position

    async def _save(self) -> None:
        position = self._position
        try:
            await trio.to_thread.run_sync(replace_file, self._file, b"%d\n" % position)
        except OSError as error:
            # It matters only when retention has removed all events.
            _logger.warning("%s cannot be written: %s", self._file, error)
        self._saved = position


def _pauses() -> Iterator[int]:
    """The pauses between attempts, without end."""
    return chain(PAUSES, repeat(PAUSES[-1]))


def _newest_event(partition: Partition, applied: int) -> int:
    """In a worker: the greatest id of an event at the end of the stream, 0 when there is none.

    Anybody who can publish to the subject can put something else there: what is no event, or of an operation
    that has not been, is none of ours.
    """
    log, offset, looked_at = partition.log, partition.high_watermark, 0
    while offset >= log.start_offset and looked_at < SEARCH_BYTES:
        frames, offset = log.read_frames_reverse(offset, 0, partition.prefix)
        looked_at += len(frames)
        for message in messages_in(frames):
            try:
                event = api_pb2.ActivityStreamEvent.FromString(message.value)
            except DecodeError:
                continue
            if 0 < event.id <= applied:
                return event.id
    return 0
