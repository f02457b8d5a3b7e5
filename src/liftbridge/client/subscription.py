"""A subscription as an async iterator that goes on after faults, without gap and without repeat.

What makes that possible is that every position is an offset before anything can fail: "new", "latest" and a
stop at the newest message are resolved with the leader first and then asked for by number, as the same words
would mean something else after a fault. After one, the subscription is opened again at the offset after the
last message that has arrived.

Invariants: messages are handed out in the order of their offsets, each once; what has arrived is handed out
before an error is raised; a fault that lasts longer than `Options.retry_timeout` is raised, and never hangs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType

import anyio
import anyio.lowlevel

from liftbridge.client.connection import Call, message_frame
from liftbridge.client.errors import (
    ClientClosedError,
    ConsumerReplacedError,
    DeadlineExceededError,
    InvalidArgumentError,
    LogTruncatedError,
    NotFoundError,
    PartitionPausedError,
    PartitionReadonlyError,
    RpcError,
    StatusCode,
    StreamDeletedError,
    TlsError,
    UnavailableError,
)
from liftbridge.client.options import Options
from liftbridge.client.routing import Pauses, Router
from liftbridge.client.values import (
    Message,
    PartitionInfo,
    StartPosition,
    StopPosition,
    Timestamp,
    message_of,
    nanoseconds_of,
    partition_of,
)
from liftbridge.proto import api_pb2

_LEADER_ATTEMPTS = 5
_STEADY = 5.0  # seconds of a live subscription after which a fault counts as a new one
_TRANSIENT = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED)


@dataclass(frozen=True)
class Member:
    """The member of a consumer group that a subscription belongs to."""

    group: str
    consumer: str
    epoch: int


@dataclass(frozen=True)
class Wanted:
    """What a subscription is to deliver."""

    stream: str
    partition: int = 0
    start: StartPosition = "new"
    stop: StopPosition = None
    reverse: bool = False
    resume: bool = False
    read_replica: bool = False
    member: Member | None = None

    def __post_init__(self) -> None:
        if isinstance(self.start, str) and self.start not in ("new", "earliest", "latest"):
            raise ValueError(f'start is "new", "earliest", "latest", an offset or a time, not {self.start!r}')
        if isinstance(self.stop, str) and self.stop != "latest":
            raise ValueError(f'stop is None, "latest", an offset or a time, not {self.stop!r}')
        for time in (self.start, self.stop):
            if isinstance(time, datetime):
                nanoseconds_of(time)
        if isinstance(self.stop, (datetime, Timestamp)):
            now = datetime.now(timezone.utc)
            if nanoseconds_of(self.stop) > nanoseconds_of(now):
                raise ValueError(
                    "the time to stop at lies in the future: messages up to it are still to come"
                )


class Subscription:
    """Messages of one partition; made by `Client.subscribe`.

    Use it as `async with client.subscribe(...) as messages: async for message in messages: ...`. Entering
    waits until
    the subscription is live. One task at a time may iterate it.

    Iteration ends when the stop position is reached, and in reverse at the oldest message. Otherwise it
    raises:

    - `StreamDeletedError`: the stream was deleted.
    - `PartitionPausedError`: the partition was paused, and the subscription is not one that resumes it.
    - `PartitionReadonlyError`: the partition is read-only and was read to its end.
    - `LogTruncatedError`: the partition does not go on where it was left.
    - `ConsumerReplacedError`: another member of the group reads the partition.
    - `UnavailableError` and other `RpcError`s: a fault lasted longer than `Options.retry_timeout`, or cannot
      be
      helped; `DATA_LOSS` in `code` means that the log is damaged there, the text tells where it goes on.
    """

    def __init__(self, router: Router, wanted: Wanted, options: Options) -> None:
        self._router = router
        self._wanted = wanted
        self._options = options
        self._name = f"partition {wanted.partition} of stream {wanted.stream!r}"
        self._request = api_pb2.SubscribeRequest()
        self._call: Call | None = None
        self._arrived: Iterator[Message] = iter(())
        self._handshake: list[bytes] = []  # what came with it
        self._last: int | None = None  # offset of the last message that has arrived
        self._lost: RpcError | None = None  # why it has to be opened again, until it is
        self._at_once = False  # whether the first attempt to do so needs no pause before it
        self._faulty: Pauses | None = None
        self._live_since = 0.0
        self._check_next = False
        self._ended = False
        self.faults = 0
        """How often the subscription had to be opened again."""

    async def __aenter__(self) -> Subscription:
        self._request = await self._resolve()
        if not self._ended:
            await self._open_first()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def live(self) -> bool:
        """Whether a server serves it now. False while it is opened again after a fault, and at its end."""
        return self._call is not None

    def close(self) -> None:
        """End the subscription: the server is told to stop. What has arrived and was not read is dropped."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._ended = True
        self._arrived = iter(())

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        for message in self._arrived:
            return message
        self._arrived = iter(await self._batch())
        for message in self._arrived:
            return message
        raise StopAsyncIteration

    async def batch(self) -> list[Message]:
        """Return the messages that have arrived, at least one; an empty list at the end.

        Raises:
            LiftbridgeError: as iteration does.
        """
        return list(self._arrived) or await self._batch()

    async def _batch(self) -> list[Message]:
        while True:
            # Here, as a cancellation behind `receive` would lose what it has returned.
            await anyio.lowlevel.checkpoint()
            if self._ended:
                return []
            if self._lost is not None:  # a read was cancelled before it was opened again
                await self._go_on(self._lost)
                continue
            call = self._call
            if call is None:
                raise ClientClosedError("a subscription is read inside of its `async with` block")
            try:
                raw = self._handshake or await call.receive()
                self._handshake = []
                if not raw:
                    self._on_clean_end()
            except RpcError as error:
                await self._on_end(error)
                continue
            return self._decode(raw)

    def _decode(self, raw: list[bytes]) -> list[Message]:
        messages = [message_of(item) for item in raw]
        first = messages[0]
        if self._check_next:
            self._check_next = False
            if self._last is not None and not self._wanted.reverse and first.offset <= self._last:
                self.close()
                raise LogTruncatedError(first.stream, first.partition, self._last + 1, first.offset)
        self._last = messages[-1].offset
        self._faulty = None
        return messages

    # Positions.

    async def _resolve(self) -> api_pb2.SubscribeRequest:
        """Make the request, with words for positions replaced by offsets."""
        wanted = self._wanted
        request = api_pb2.SubscribeRequest(
            stream=wanted.stream,
            partition=wanted.partition,
            readISRReplica=wanted.read_replica,
            resume=wanted.resume,
            reverse=wanted.reverse,
        )
        if wanted.member is not None:
            request.consumer.groupId = wanted.member.group
            request.consumer.consumerId = wanted.member.consumer
            request.consumer.groupEpoch = wanted.member.epoch
        relative = wanted.stop == "latest" or (wanted.start in ("new", "latest") and not wanted.reverse)
        newest = await self._newest() if relative else None
        if wanted.stop == "latest" and newest == -1:
            self._ended = True  # there is nothing; the server says so with an error
        self._set_start(request, newest)
        self._set_stop(request, newest)
        return request

    async def _newest(self) -> int | None:
        """The newest offset; None if the position must be left to the server."""
        wanted, options = self._wanted, self._options
        self._router.forget(wanted.stream)
        info = await self._router.partition(wanted.stream, wanted.partition)
        if info.paused:
            # The leader of a paused partition does not answer for it, and nothing is added to it.
            return info.newest_offset if info.newest_offset >= 0 else None
        if info.readonly and wanted.start == "new":
            return None  # beyond the end of what has ended there is no offset to ask for
        return (
            await leader_info(self._router, wanted.stream, wanted.partition, options.timeout)
        ).newest_offset

    def _set_start(self, request: api_pb2.SubscribeRequest, newest: int | None) -> None:
        start = self._wanted.start
        if isinstance(start, (datetime, Timestamp)):
            request.startPosition, request.startTimestamp = api_pb2.TIMESTAMP, nanoseconds_of(start)
        elif isinstance(start, int):
            request.startPosition, request.startOffset = api_pb2.OFFSET, start
        elif start == "earliest":
            request.startPosition = api_pb2.EARLIEST
        elif newest is None or self._wanted.reverse:
            request.startPosition = api_pb2.NEW_ONLY if start == "new" else api_pb2.LATEST
        else:
            request.startPosition = api_pb2.OFFSET
            request.startOffset = newest + 1 if start == "new" else max(newest, 0)

    def _set_stop(self, request: api_pb2.SubscribeRequest, newest: int | None) -> None:
        stop = self._wanted.stop
        if stop is None:
            return
        if isinstance(stop, (datetime, Timestamp)):
            request.stopPosition, request.stopTimestamp = api_pb2.STOP_TIMESTAMP, nanoseconds_of(stop)
        elif isinstance(stop, int):
            request.stopPosition, request.stopOffset = api_pb2.STOP_OFFSET, stop
        elif newest is None:
            request.stopPosition = api_pb2.STOP_LATEST
        else:
            request.stopPosition, request.stopOffset = api_pb2.STOP_OFFSET, newest

    # Opening.

    async def _open_first(self) -> None:
        pauses = Pauses(self._options.timeout, 0.01)
        refused = 0
        while True:
            try:
                await self._open(pauses)
            except TlsError:
                raise
            except RpcError as error:
                refused += error.code is StatusCode.FAILED_PRECONDITION
                again = error.code is StatusCode.UNAVAILABLE or refused
                if not again or refused >= _LEADER_ATTEMPTS or not await pauses.wait():
                    raise
            else:
                return

    async def _open(self, pauses: Pauses) -> None:
        """One attempt: find the leader, ask, wait for the handshake."""
        wanted = self._wanted
        call: Call | None = None
        try:
            with anyio.fail_after(pauses.left):
                connection = await self._router.leader(
                    wanted.stream, wanted.partition, replica=wanted.read_replica
                )
                call = await connection.call("Subscribe")
                await call.send(message_frame(self._request.SerializeToString()), last=True)
                first = await call.receive()
            _check_handshake(first)
        except BaseException as error:
            if call is not None:
                call.cancel()
            self._router.forget(wanted.stream)
            if isinstance(error, TimeoutError) and not isinstance(error, RpcError):
                text = f"{self._name} cannot be read: no answer in time"
                raise DeadlineExceededError(StatusCode.DEADLINE_EXCEEDED, text) from None
            raise
        self._call = call
        self._lost = None
        self._handshake = first[1:]
        self._check_next = True
        self._live_since = anyio.current_time()

    # Ends and faults.

    def _on_clean_end(self) -> None:
        if self._wanted.member is not None:
            self.close()
            raise ConsumerReplacedError(
                f"another member of group {self._wanted.member.group!r} reads partition "
                f"{self._wanted.partition} of stream {self._wanted.stream!r} now"
            )
        raise UnavailableError(StatusCode.UNAVAILABLE, "the server has ended the subscription")

    async def _on_end(self, error: RpcError) -> None:
        """Decide what the end of the call means: go on, be done, or raise."""
        wanted = self._wanted
        if error.code is StatusCode.RESOURCE_EXHAUSTED:
            self.close()
            if wanted.stop is None and not wanted.reverse:
                text = f"{self._name} is read-only and was read to its end"
                raise PartitionReadonlyError(error.code, text) from error
            return
        if error.code is StatusCode.NOT_FOUND:
            self.close()
            raise StreamDeletedError(error.code, f"stream {wanted.stream!r} was deleted") from error
        if error.code is StatusCode.FAILED_PRECONDITION and not wanted.resume:
            self.close()
            raise self._paused(error) from error
        if error.code not in (*_TRANSIENT, StatusCode.INTERNAL, StatusCode.FAILED_PRECONDITION):
            self.close()
            raise error
        self.faults += 1
        self._call = None
        self._lost = error
        self._at_once = self._faulty is None or anyio.current_time() - self._live_since > _STEADY
        if self._at_once:
            self._faulty = Pauses(self._options.retry_timeout, self._options.retry_pause)
        await self._go_on(error)

    def _paused(self, error: RpcError) -> PartitionPausedError:
        text = f"{self._name} is paused: publish to it, or subscribe with resume=True"
        return PartitionPausedError(error.code, text)

    async def _go_on(self, fault: RpcError) -> None:
        """Open the subscription again, where it was left; when this is cancelled, the next read does it."""
        if self._done():
            self.close()
            return
        self._continue_at_last()
        pauses, reason = self._faulty, fault
        assert pauses is not None
        at_once, self._at_once = self._at_once, False
        if not at_once and not await pauses.wait():  # it came up, delivered nothing and broke again
            self.close()
            raise self._paused(fault) if fault.code is StatusCode.FAILED_PRECONDITION else fault
        while True:
            try:
                await self._open(pauses)
            except TlsError:
                self.close()
                raise
            except RpcError as error:
                if not isinstance(error, DeadlineExceededError):
                    reason = error  # says more than that the time is over
                again = error.code in (*_TRANSIENT, StatusCode.FAILED_PRECONDITION, StatusCode.INTERNAL)
                if again and await pauses.wait():
                    continue
                self.close()
                await self._on_failed_return(reason)
                return
            else:
                return

    async def _on_failed_return(self, error: RpcError) -> None:
        """The subscription was live once and cannot be opened any more."""
        wanted = self._wanted
        if isinstance(error, NotFoundError):
            raise StreamDeletedError(error.code, f"stream {wanted.stream!r} was deleted") from error
        if isinstance(error, InvalidArgumentError):
            # Nothing is left between where it goes on and where it ends.
            if self._request.stopPosition == api_pb2.STOP_TIMESTAMP:
                return
            info: PartitionInfo = await self._router.partition(wanted.stream, wanted.partition)
            if info.readonly:
                text = f"{self._name} is read-only and was read to its end"
                raise PartitionReadonlyError(error.code, text) from error
        raise error

    def _done(self) -> bool:
        """Whether everything has arrived, so that only the word of it was lost."""
        if self._last is None:
            return False
        stop = self._request.stopOffset if self._request.stopPosition == api_pb2.STOP_OFFSET else None
        if self._wanted.reverse:
            return self._last <= (0 if stop is None else stop)
        return stop is not None and self._last >= stop

    def _continue_at_last(self) -> None:
        if self._last is not None:
            self._request.startPosition = api_pb2.OFFSET
            self._request.startOffset = self._last - 1 if self._wanted.reverse else self._last + 1


def _check_handshake(first: list[bytes]) -> None:
    """Every subscription begins with an empty message, which says that it is live."""
    if not first or first[0]:
        raise RpcError(StatusCode.INTERNAL, "the subscription does not begin with an empty message")


async def leader_info(router: Router, stream: str, partition: int, timeout: float) -> PartitionInfo:
    """What the leader of a partition says about it.

    Raises:
        NotFoundError: there is no such partition.
        RpcError: the leader does not answer, or the partition is paused.
    """
    request = api_pb2.FetchPartitionMetadataRequest(stream=stream, partition=partition)
    raw = await router.call_leader(
        "FetchPartitionMetadata", request.SerializeToString(), stream, partition, timeout
    )
    return partition_of(api_pb2.FetchPartitionMetadataResponse.FromString(raw).metadata)
