"""A member of a consumer group: partitions come and go, cursors remember what was handled.

The group's coordinator deals out the partitions; a member asks it for its share, which also tells it that the
member lives. A message counts as handled when the next one is asked for, and every few seconds the last
handled offset of each partition is stored as the cursor `__group:<group>`, which is where the next owner goes
on.

Delivery is at least once: what was handled after the last checkpoint of a member that died is delivered
again. When a partition changes hands among members that live, the old owner notices (the server ends its
subscription), stops, and stores its cursor; the new one has the subscription first, waits for `handover`, and
only then looks where to go on.

Unlike the Go client, a member keeps the subscriptions of partitions that stay its own when the epoch changes,
asks again at once when it has learnt of a new epoch, and joins again when the group no longer knows it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.abc

from liftbridge.client.errors import (
    ClientClosedError,
    ConsumerReplacedError,
    LiftbridgeError,
    NotFoundError,
    PartitionPausedError,
    RpcError,
    StatusCode,
    UnavailableError,
)
from liftbridge.client.options import Options
from liftbridge.client.routing import Router
from liftbridge.client.subscription import Member, Subscription, Wanted
from liftbridge.client.values import Message, StartPosition
from liftbridge.proto import api_pb2

logger = logging.getLogger("liftbridge.client")

_POLL_SHARE = 0.4  # of the consumer timeout
_AFTER_ERROR = 2.0

FetchCursor = Callable[[str, str, int], Awaitable[int]]
SetCursor = Callable[[str, str, int, int], Awaitable[None]]


@dataclass(eq=False)
class _Place:
    """A partition that is this member's, and how far it has come."""

    stream: str
    partition: int
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    storing: anyio.Lock = field(default_factory=anyio.Lock)
    """One position is stored at a time: an older one must not arrive behind a newer one."""
    handled: int | None = None
    stored: int | None = None
    revoked: bool = False
    """Nothing of it is handed out any more."""


class Consumer:
    """Messages of the partitions that the group has given to this member; made by `Client.consumer`.

    Iterate it. Messages of one partition come in order; a message is handled when the next one is asked for.
    """

    def __init__(
        self,
        router: Router,
        options: Options,
        *,
        group: str,
        consumer: str,
        streams: Sequence[str],
        start: StartPosition,
        checkpoint_interval: float,
        handover: float,
        fetch_cursor: FetchCursor,
        set_cursor: SetCursor,
    ) -> None:
        if not streams:
            raise ValueError("a consumer needs the names of streams")
        self.group = group
        self.id = consumer
        self._router = router
        self._options = options
        self._streams = list(streams)
        self._start: StartPosition = start
        self._checkpoint_interval = checkpoint_interval
        self._handover = handover
        self._fetch_cursor = fetch_cursor
        self._set_cursor = set_cursor
        self._cursor_id = f"__group:{group}"
        self._coordinator = ""
        self._epoch = 0
        self._poll_interval = 1.0
        self._coordinator_timeout = 15.0
        self._places: dict[tuple[str, int], _Place] = {}
        self._handing_over: set[_Place] = set()
        self._sender, self._receiver = anyio.create_memory_object_stream[tuple[_Place, list[Message]]](1)
        self._batch: list[Message] = []
        self._batch_place: _Place | None = None
        self._current: tuple[_Place, int] | None = None  # handed out, not handled yet
        self._let_go = anyio.Event()
        self._poll_now = anyio.Event()
        self._failure: LiftbridgeError | None = None
        self._closed = False

    # The caller's side.

    @property
    def assignments(self) -> Mapping[str, tuple[int, ...]]:
        """The partitions this member reads now, by stream."""
        found: dict[str, list[int]] = {}
        for stream, partition in sorted(self._places):
            found.setdefault(stream, []).append(partition)
        return {stream: tuple(partitions) for stream, partitions in found.items()}

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        self._note_handled()
        while True:
            place = self._batch_place
            if place is not None and not place.revoked and self._batch:
                message = self._batch.pop()
                self._current = place, message.offset
                return message
            if self._closed:
                raise ClientClosedError("a consumer is read inside of its `async with` block")
            try:
                self._batch_place, batch = await self._receiver.receive()
            except anyio.EndOfStream:
                if self._failure is not None:
                    raise self._failure from None
                raise StopAsyncIteration from None
            self._batch = batch[::-1]

    async def checkpoint(self) -> None:
        """Store how far each partition was handled.

        Raises:
            RpcError: a cursor cannot be stored.
        """
        for place in list(self._places.values()):
            if not place.revoked:
                await self._store(place)

    def _note_handled(self) -> None:
        if self._current is not None:
            place, offset = self._current
            place.handled = offset
            self._current = None
            self._let_go.set()

    async def _store(self, place: _Place) -> None:
        async with place.storing:
            handled = place.handled
            if handled is not None and handled != place.stored:
                await self._set_cursor(self._cursor_id, place.stream, place.partition, handled)
                place.stored = handled

    # Membership.

    async def join(self) -> None:
        """Become a member.

        Raises:
            RpcError: the group refuses it, or does not exist on this server.
        """
        request = api_pb2.JoinConsumerGroupRequest(
            groupId=self.group, consumerId=self.id, streams=self._streams
        )
        raw = await self._router.call("JoinConsumerGroup", request.SerializeToString(), self._options.timeout)
        response = api_pb2.JoinConsumerGroupResponse.FromString(raw)
        self._coordinator, self._epoch = response.coordinator, response.epoch
        self._poll_interval = max(response.consumerTimeout * _POLL_SHARE / 1e9, 0.05)
        self._coordinator_timeout = response.coordinatorTimeout / 1e9

    async def leave(self) -> None:
        """Store the last cursors, then give up the membership; errors are logged."""
        self._closed = True
        # A message that was being handled when the block was left is not handled.
        self._current = None
        try:
            await self.checkpoint()
            for place in self._handing_over:
                await self._store(place)
        except LiftbridgeError as error:
            logger.warning("consumer %s: the last positions are not stored: %s", self.id, error)
        request = api_pb2.LeaveConsumerGroupRequest(groupId=self.group, consumerId=self.id)
        try:
            await self._router.call("LeaveConsumerGroup", request.SerializeToString(), self._options.timeout)
        except LiftbridgeError as error:
            logger.warning("consumer %s: group %s is not left: %s", self.id, self.group, error)
        self._receiver.close()
        self._sender.close()

    async def run(self) -> None:
        """Keep the membership, and read what is assigned; runs until it is cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                if self._checkpoint_interval > 0:
                    tasks.start_soon(self._checkpoints)
                await self._poll(tasks)
        finally:
            self._sender.close()

    async def _checkpoints(self) -> None:
        while True:
            await anyio.sleep(self._checkpoint_interval)
            try:
                await self.checkpoint()
            except RpcError as error:
                logger.warning("consumer %s: positions are not stored: %s", self.id, error)

    async def _poll(self, tasks: anyio.abc.TaskGroup) -> None:
        contact = anyio.current_time()
        while self._failure is None:
            pause = self._poll_interval
            self._poll_now = anyio.Event()
            try:
                assigned = await self._ask()
            except RpcError as error:
                changed = await self._find_coordinator(error, anyio.current_time() - contact)
                pause = 0.0 if changed else _AFTER_ERROR
            else:
                contact = anyio.current_time()
                self._apply(assigned, tasks)
            with anyio.move_on_after(max(pause, 0.01)):
                await self._poll_now.wait()
        tasks.cancel_scope.cancel()

    async def _ask(self) -> set[tuple[str, int]]:
        request = api_pb2.FetchConsumerGroupAssignmentsRequest(
            groupId=self.group, consumerId=self.id, epoch=self._epoch
        )
        connection = await self._router.server(self._coordinator)
        raw = await connection.unary(
            "FetchConsumerGroupAssignments", request.SerializeToString(), self._options.timeout
        )
        response = api_pb2.FetchConsumerGroupAssignmentsResponse.FromString(raw)
        return {(entry.stream, number) for entry in response.assignments for number in entry.partitions}

    async def _find_coordinator(self, error: RpcError, silence: float) -> bool:
        """After an error of a poll: is it the epoch, the coordinator, or the membership? True if that
        changed."""
        try:
            group = (await self._router.metadata(groups=[self.group])).groups.get(self.group)
            if group is None:
                await self._join_again()
                return True
            if (group.coordinator, group.epoch) != (self._coordinator, self._epoch):
                self._coordinator, self._epoch = group.coordinator, group.epoch
                return True
            if error.code in (StatusCode.FAILED_PRECONDITION, StatusCode.NOT_FOUND):
                await self._join_again()
                return True
            if silence > self._coordinator_timeout:
                await self._report()
        except RpcError as second:
            logger.info("consumer %s: group %s does not answer: %s", self.id, self.group, second)
        return False

    async def _join_again(self) -> None:
        """Another member has everything now that this one had."""
        for place in list(self._places.values()):
            self._revoke(place)
        await self.join()

    async def _report(self) -> None:
        request = api_pb2.ReportConsumerGroupCoordinatorRequest(
            groupId=self.group, consumerId=self.id, coordinator=self._coordinator, epoch=self._epoch
        )
        await self._router.call(
            "ReportConsumerGroupCoordinator", request.SerializeToString(), self._options.timeout
        )

    # Partitions.

    def _apply(self, assigned: set[tuple[str, int]], tasks: anyio.abc.TaskGroup) -> None:
        for key, place in list(self._places.items()):
            if key not in assigned:
                tasks.start_soon(self._hand_over, place)
                self._revoke(place)
        for key in sorted(assigned - self._places.keys()):
            place = self._places[key] = _Place(*key)
            tasks.start_soon(self._read, place)

    def _revoke(self, place: _Place) -> None:
        place.revoked = True
        place.scope.cancel()
        if self._places.get((place.stream, place.partition)) is place:
            del self._places[place.stream, place.partition]

    async def _hand_over(self, place: _Place) -> None:
        """Store where the next owner is to go on, with the message that is being handled if it is done
        soon."""
        self._handing_over.add(place)  # when this is cancelled, `leave` does it
        with anyio.move_on_after(self._handover / 2):
            while self._current is not None and self._current[0] is place:
                self._let_go = anyio.Event()
                await self._let_go.wait()
        try:
            with anyio.move_on_after(self._handover / 2):
                await self._store(place)
        except RpcError as error:
            logger.warning("consumer %s: a last position is not stored: %s", self.id, error)
        self._handing_over.discard(place)

    async def _read(self, place: _Place) -> None:
        """Read a partition until it is taken away."""
        with place.scope:
            try:
                await self._read_messages(place)
            except ConsumerReplacedError:
                self._revoke(place)
                self._poll_now.set()
                with anyio.CancelScope(shield=True):
                    await self._hand_over(place)
            except (UnavailableError, PartitionPausedError, NotFoundError) as error:
                # The stream is gone, or its leader: the coordinator knows, or it comes back.
                logger.warning("consumer %s: %s; trying again", self.id, error)
                await anyio.sleep(_AFTER_ERROR)
                self._revoke(place)
                self._poll_now.set()
            except LiftbridgeError as error:
                if isinstance(error, RpcError) and error.code is StatusCode.FAILED_PRECONDITION:
                    self._revoke(place)  # fenced: the epoch is a newer one
                    self._poll_now.set()
                    return
                self._failure = error
                self._poll_now.set()

    async def _read_messages(self, place: _Place) -> None:
        cursor = await self._fetch_cursor(self._cursor_id, place.stream, place.partition)
        place.stored = cursor if cursor >= 0 else None
        wanted = Wanted(
            place.stream,
            place.partition,
            start=self._start if cursor < 0 else cursor + 1,
            resume=True,
            member=Member(self.group, self.id, self._epoch),
        )
        async with Subscription(self._router, wanted, self._options) as messages:
            if self._epoch:  # 0 is the epoch of the first member, before whom there is no one
                await anyio.sleep(self._handover)
                cursor = await self._fetch_cursor(self._cursor_id, place.stream, place.partition)
                place.stored = cursor if cursor >= 0 else None
            while batch := await messages.batch():
                fresh = [message for message in batch if message.offset > cursor]
                if fresh:
                    await self._sender.send((place, fresh))
