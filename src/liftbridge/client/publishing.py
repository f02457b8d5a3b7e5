"""Publishing: one message with its ack, or many in flight over one call with a bound on both.

A message whose ack does not come may be stored or not. The client never guesses: it raises
`UnknownOutcomeError`, or, when the caller has said that a duplicate is better than a loss (`at_least_once`),
sends the message again. What certainly did not reach a server is always sent again.

Invariants of a `Publisher`:
- Messages go to the server in the order of `send`; after a fault what has no ack yet goes first, in that
  order.
- Every future is settled: by its ack, by an answer that refuses it, by the time-out of its ack, or, while no
  server
  can be reached, after `Options.retry_timeout`.
- At most `max_in_flight` messages and `max_bytes` bytes wait for acks; `send` waits while there are more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import anyio
import anyio.lowlevel

from liftbridge.client.connection import Call, message_frame
from liftbridge.client.errors import (
    AckTimeoutError,
    ClientClosedError,
    DeadlineExceededError,
    IncorrectOffsetError,
    LiftbridgeError,
    MessageTooLargeError,
    NotFoundError,
    PartitionReadonlyError,
    PermissionDeniedError,
    PublishError,
    RpcError,
    StatusCode,
    TlsError,
    UnknownOutcomeError,
)
from liftbridge.client.options import Options
from liftbridge.client.partitioners import Partitioner
from liftbridge.client.routing import Pauses, Router
from liftbridge.client.values import Ack, AckPolicy, Outgoing, ack_of
from liftbridge.proto import api_pb2

_BATCH_BYTES = 256 * 1024
_WRONG_OFFSET = "incorrect expected offset"
_Code = api_pb2.PublishAsyncError
_ASYNC_ERRORS: dict[int, tuple[type[RpcError], StatusCode]] = {
    _Code.BAD_REQUEST: (PublishError, StatusCode.INVALID_ARGUMENT),
    _Code.NOT_FOUND: (NotFoundError, StatusCode.NOT_FOUND),
    _Code.INTERNAL: (PublishError, StatusCode.INTERNAL),
    _Code.READONLY: (PartitionReadonlyError, StatusCode.FAILED_PRECONDITION),
    _Code.INCORRECT_OFFSET: (IncorrectOffsetError, StatusCode.UNKNOWN),
    _Code.ENCRYPTION_FAILED: (PublishError, StatusCode.INTERNAL),
    _Code.PERMISSION_DENIED: (PermissionDeniedError, StatusCode.PERMISSION_DENIED),
}


async def choose_partition(
    router: Router,
    stream: str,
    key: bytes,
    value: bytes,
    partition: int | None,
    partitioner: Partitioner | None,
) -> int:
    """The partition a message goes to: the one that is named, else the partitioner's, else 0.

    Raises:
        NotFoundError: there is no such stream.
        ValueError: the partitioner chooses one that does not exist.
    """
    if partition is not None:
        return partition
    if partitioner is None:
        return 0
    count = len((await router.stream(stream)).partitions)
    return _checked(partitioner(stream, key, value, count), count)


def _checked(partition: int, count: int) -> int:
    if not 0 <= partition < count:
        raise ValueError(f"the partitioner chose {partition}; there are {count} partitions, from 0")
    return partition


async def publish_one(
    router: Router,
    request: api_pb2.PublishRequest,
    *,
    timeout: float,
    retry_timeout: float | None,
    pause: float,
) -> Ack | None:
    """Publish a message and wait for its ack; with `retry_timeout` until there is one, at the risk of
    duplicates.

    Raises:
        RpcError: as told by `Client.publish`.
    """
    pauses = Pauses(timeout if retry_timeout is None else retry_timeout, pause)
    raw = request.SerializeToString()
    sent = False
    while True:
        reached = False
        try:
            with anyio.fail_after(pauses.left):
                connection = await router.any_connection()
                reached = True
                answer = await connection.unary("Publish", raw, min(timeout, pauses.left))
            return _acknowledged(api_pb2.PublishResponse.FromString(answer), request)
        except TlsError:
            raise
        except RpcError as error:
            sent = sent or (reached and error.may_have_run)
            failure: RpcError = error
        except TimeoutError:
            sent = sent or reached
            failure = DeadlineExceededError(StatusCode.DEADLINE_EXCEEDED, "no server answered in time")
        again = _may_be_sent_again(failure, sent=sent, at_least_once=retry_timeout is not None)
        if failure.code is StatusCode.UNAVAILABLE:
            router.prefer_another()
        if not again or not await pauses.wait():
            raise _publish_error(failure, sent=sent) from failure


def _acknowledged(response: Any, request: api_pb2.PublishRequest) -> Ack | None:
    if request.ackPolicy == api_pb2.NONE:
        return None
    if not response.HasField("ack"):
        raise UnknownOutcomeError(StatusCode.UNKNOWN, "the server took the message and sent no ack")
    return ack_of(response.ack, request.partition)


def _may_be_sent_again(error: RpcError, *, sent: bool, at_least_once: bool) -> bool:
    if error.code is StatusCode.UNAVAILABLE:
        return at_least_once or not sent
    if not at_least_once or isinstance(error, UnknownOutcomeError):
        return at_least_once
    # UNKNOWN is what servers say when they have lost NATS; the text of api.md, section 14, is the exception.
    return error.code is StatusCode.DEADLINE_EXCEEDED or (
        error.code is StatusCode.UNKNOWN and error.message != _WRONG_OFFSET
    )


def _publish_error(error: RpcError, *, sent: bool) -> RpcError:
    """What the end of a publish means for its caller."""
    if isinstance(error, UnknownOutcomeError):
        return error
    if error.code is StatusCode.DEADLINE_EXCEEDED and sent:
        return AckTimeoutError(error.code, f"no ack came in time: {error.message}", may_have_run=True)
    if error.code in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED) and sent:
        text = f"the message was sent, but its ack was lost: {error.message}"
        return UnknownOutcomeError(error.code, text, may_have_run=True)
    if error.code is StatusCode.FAILED_PRECONDITION:
        return PartitionReadonlyError(error.code, error.message)
    if error.message == _WRONG_OFFSET:
        return IncorrectOffsetError(error.code, error.message)
    if error.code is StatusCode.INVALID_ARGUMENT and "larger" in error.message:
        return MessageTooLargeError(error.code, error.message)
    if error.code is StatusCode.UNKNOWN:
        return PublishError(error.code, error.message)
    return error


class PublishFuture:
    """What will become of one message: await it for its ack (None with policy NONE).

    Awaiting raises what `Client.publish` raises. Any number of tasks may await it, any number of times.
    """

    __slots__ = (
        "_ack",
        "_error",
        "_event",
        "bytes",
        "correlation_id",
        "deadline",
        "frame",
        "give_up",
        "partition",
        "seen",
    )

    def __init__(self, correlation_id: str, frame: bytes, partition: int) -> None:
        self.correlation_id = correlation_id
        self.frame = frame
        self.bytes = len(frame)
        self.partition = partition
        self.deadline = math.inf
        self.give_up = math.inf
        self.seen = False
        self._ack: Ack | None = None
        self._error: LiftbridgeError | None = None
        self._event: anyio.Event | None | bool = None  # True once it is settled

    @property
    def done(self) -> bool:
        """Whether it is settled."""
        return self._event is True

    def __await__(self) -> Generator[Any, Any, Ack | None]:
        return self._wait().__await__()

    async def _wait(self) -> Ack | None:
        if self._event is not True:
            if self._event is None:
                self._event = anyio.Event()
            assert isinstance(self._event, anyio.Event)
            await self._event.wait()
        self.seen = True
        if self._error is not None:
            raise self._error
        return self._ack

    @property
    def error(self) -> LiftbridgeError | None:
        """What went wrong, None if nothing did or it is not settled."""
        return self._error

    def settle(self, ack: Ack | None, error: LiftbridgeError | None = None) -> None:
        """Called by the publisher, once."""
        event, self._event = self._event, True
        self._ack, self._error = ack, error
        self.frame = b""
        if isinstance(event, anyio.Event):
            event.set()


class Publisher:
    """Many messages in flight to one stream; made by `Client.publisher`."""

    def __init__(
        self,
        router: Router,
        stream: str,
        options: Options,
        *,
        policy: AckPolicy,
        partitioner: Partitioner | None,
        max_in_flight: int,
        max_bytes: int,
        ack_timeout: float,
        at_least_once: bool,
    ) -> None:
        if max_in_flight < 1 or max_bytes < 1 or not ack_timeout > 0:
            raise ValueError("max_in_flight, max_bytes and ack_timeout must be positive")
        self._router = router
        self._stream = stream
        self._options = options
        self._policy = policy
        self._partitioner = partitioner
        self._partitions = 0
        self._max_in_flight = max_in_flight
        self._max_bytes = max_bytes
        self._ack_timeout = ack_timeout
        self._at_least_once = at_least_once
        self._request = api_pb2.PublishRequest(
            stream=stream,
            ackPolicy=int(policy),  # type: ignore[arg-type]
        )
        self._number = 0
        self._unsent: deque[PublishFuture] = deque()
        self._in_flight: dict[
            str, PublishFuture
        ] = {}  # by correlation id, in the order in which they were sent
        self._bytes = 0
        self._work = anyio.Event()
        self._room = anyio.Event()
        self._idle = anyio.Event()
        self._failed: list[PublishFuture] = []
        self._progress = False  # whether the call at hand has brought an answer
        self._closed = False
        self._open = False  # a call is open
        self._ending = False  # it is to be ended in order
        self._ended = anyio.Event()

    # The caller's side.

    async def send(
        self,
        value: bytes,
        *,
        key: bytes = b"",
        headers: Mapping[str, bytes] | None = None,
        partition: int | None = None,
        expected_offset: int = -1,
    ) -> PublishFuture:
        """Send a message; waits only while too many are on their way.

        Args:
            value: the payload.
            key: the key; the same key goes to the same partition with the partitioner `by_key`.
            headers: the publisher's own headers.
            partition: where it goes, None for what the partitioner says.
            expected_offset: the offset it must get, -1 for any.

        Returns:
            A future; await it for the ack.

        Raises:
            NotFoundError: the partitioner needs the number of partitions, and there is no such stream.
            ClientClosedError: the publisher is closed.
        """
        while (
            len(self._in_flight) + len(self._unsent) >= self._max_in_flight or self._bytes >= self._max_bytes
        ):
            await self._wait_for_room()
        if partition is None:
            partition = 0 if self._partitioner is None else await self._choose(key, value)
        return self._enqueue(value, key, headers, partition, expected_offset)

    async def send_batch(self, messages: Iterable[bytes | Outgoing]) -> list[PublishFuture]:
        """Send many messages; waits while too many are on their way.

        Args:
            messages: values, or messages with keys and headers.

        Returns:
            Their futures, in the same order.

        Raises:
            LiftbridgeError: as `send` does; the messages before that one are sent.
        """
        futures: list[PublishFuture] = []
        for message in messages:
            if (
                len(self._in_flight) + len(self._unsent) >= self._max_in_flight
                or self._bytes >= self._max_bytes
            ):
                await self._wait_for_room()
            if isinstance(message, Outgoing):
                value, key, headers, partition = message
            else:
                value, key, headers, partition = message, b"", None, None
            if partition is None:
                partition = 0 if self._partitioner is None else await self._choose(key, value)
            futures.append(self._enqueue(value, key, headers, partition, -1))
        return futures

    async def flush(self) -> None:
        """Wait until everything that was sent is settled; without acks, until the server has taken it.

        Raises:
            LiftbridgeError: the first error of a message whose future nobody has awaited.
        """
        while self._in_flight or self._unsent:
            self._idle = anyio.Event()
            await self._idle.wait()
        if self._policy is AckPolicy.NONE and self._open:
            await self._end_call()
        failed, self._failed = self._failed, []
        for future in failed:
            if not future.seen and future.error is not None:
                future.seen = True
                raise future.error

    async def _end_call(self) -> None:
        """Have the server say that it has read everything: it answers the end of our messages with its own.

        Without acks nothing else tells, and a connection that is closed drops what it has not sent.
        """
        self._ended = anyio.Event()
        self._ending = True
        self._work.set()
        with anyio.move_on_after(self._ack_timeout):
            await self._ended.wait()
        self._ending = False

    @property
    def outstanding(self) -> int:
        """Messages that are not settled yet."""
        return len(self._in_flight) + len(self._unsent)

    async def _wait_for_room(self) -> None:
        while self.outstanding >= self._max_in_flight or self._bytes >= self._max_bytes:
            if self._closed:
                break
            self._room = anyio.Event()
            await self._room.wait()

    async def _choose(self, key: bytes, value: bytes) -> int:
        if not self._partitions:
            self._partitions = len((await self._router.stream(self._stream)).partitions)
        assert self._partitioner is not None
        return _checked(self._partitioner(self._stream, key, value, self._partitions), self._partitions)

    def _enqueue(
        self, value: bytes, key: bytes, headers: Mapping[str, bytes] | None, partition: int, expected: int
    ) -> PublishFuture:
        if self._closed:
            raise ClientClosedError("the publisher is closed: use it inside of its `async with` block")
        self._number += 1
        # One request, filled again and again: it costs a third of making one.
        request = self._request
        request.key = key
        request.value = value
        request.partition = partition
        request.expectedOffset = expected
        request.correlationId = correlation_id = str(self._number)
        if headers:
            request.headers.update(headers)
        raw = request.SerializeToString()
        if headers:
            request.headers.clear()
        future = PublishFuture(correlation_id, message_frame(raw), partition)
        self._unsent.append(future)
        self._bytes += future.bytes
        if not self._work.is_set():
            self._work.set()
        return future

    # The publisher's own tasks.

    async def run(self) -> None:
        """Keep a call open while there is something to send; runs until it is cancelled."""
        outage: Pauses | None = None
        while True:
            try:
                while not self._unsent and not self._in_flight:
                    await self._wait_for_work()
                await self._serve_call()
            except TlsError as error:
                self._fail_all(error)
            except RpcError as error:
                self._open = False
                if self._ending:
                    self._ended.set()
                    continue
                if self._on_lost_call(error):
                    outage = None
                if outage is None:
                    outage = Pauses(self._options.retry_timeout, self._options.retry_pause)
                self._router.prefer_another()
                if not await outage.wait():
                    self._fail_all(error)
                    outage = None

    async def _wait_for_work(self) -> None:
        self._work = anyio.Event()
        if not self._unsent:
            await self._work.wait()

    async def _serve_call(self) -> None:
        """One call of PublishAsync, until it is lost; always ends with an RpcError."""
        self._progress = False
        try:
            with anyio.fail_after(self._options.connect_timeout):
                connection = await self._router.any_connection()
                call = await connection.call("PublishAsync")
        except TimeoutError as error:
            raise RpcError(StatusCode.UNAVAILABLE, "no server takes the messages") from error
        if self._in_flight:
            self._unsent.extendleft(reversed(self._in_flight.values()))
            self._in_flight = {}
        lost: list[RpcError] = []
        self._open = True
        with call:
            async with anyio.create_task_group() as tasks:
                for work in (self._send, self._receive, self._watch):
                    tasks.start_soon(self._until_lost, work, call, lost, tasks.cancel_scope)
        raise lost[0]

    async def _until_lost(
        self,
        work: Callable[[Call], Any],
        call: Call,
        lost: list[RpcError],
        scope: anyio.CancelScope,
    ) -> None:
        try:
            await work(call)
        except RpcError as error:
            lost.append(error)
            scope.cancel()

    async def _send(self, call: Call) -> None:
        unsent = self._unsent
        while True:
            while not unsent:
                if self._ending:
                    await call.send(b"", last=True)
                    await anyio.sleep(self._ack_timeout)
                    raise RpcError(StatusCode.UNAVAILABLE, "the server does not end PublishAsync")
                await self._wait_for_work()
            now = anyio.current_time()
            frames: list[bytes] = []
            size = 0
            while unsent and size < _BATCH_BYTES:
                future = unsent.popleft()
                frames.append(future.frame)
                size += future.bytes
                if self._policy is AckPolicy.NONE:
                    self._bytes -= future.bytes
                    future.settle(None)
                else:
                    future.deadline = now + self._ack_timeout
                    if future.give_up == math.inf:
                        future.give_up = now + self._options.retry_timeout
                    self._in_flight[future.correlation_id] = future
            if self._policy is AckPolicy.NONE:
                self._settled_some()
            await call.send(b"".join(frames))
            await anyio.lowlevel.checkpoint()

    async def _receive(self, call: Call) -> None:
        decode = api_pb2.PublishResponse.FromString
        while answers := await call.receive():
            for raw in answers:
                response = decode(raw)
                ack = response.ack
                future = self._in_flight.get(response.correlationId or ack.correlationId)
                if future is None:
                    continue  # it came too late
                if response.HasField("asyncError"):
                    self._on_refusal(future, response.asyncError)
                else:
                    del self._in_flight[future.correlation_id]
                    self._bytes -= future.bytes
                    future.settle(ack_of(ack, future.partition))
            self._settled_some()
            self._progress = True
            await anyio.lowlevel.checkpoint()
        raise RpcError(StatusCode.UNAVAILABLE, "the server has ended PublishAsync", may_have_run=True)

    def _on_refusal(self, future: PublishFuture, error: api_pb2.PublishAsyncError) -> None:
        too_large = "larger" in error.message
        waits = self._at_least_once and anyio.current_time() < future.give_up
        if error.code == _Code.INTERNAL and waits and not too_large:
            # Without NATS a server refuses everything: what it refused goes again, with what is behind it.
            raise RpcError(StatusCode.UNAVAILABLE, error.message, may_have_run=True)
        kind, status = _ASYNC_ERRORS.get(error.code, (PublishError, StatusCode.UNKNOWN))
        if too_large:
            kind = MessageTooLargeError
        self._settle(future, None, kind(status, error.message))

    async def _watch(self, call: Call) -> None:
        """Give up messages whose ack does not come, or send them again."""
        while True:
            if not self._in_flight:
                await anyio.sleep(self._ack_timeout / 4)
                continue
            oldest = next(iter(self._in_flight.values()))
            now = anyio.current_time()
            if oldest.deadline > now:
                await anyio.sleep(oldest.deadline - now)
                continue
            text = f"no ack came in {self._ack_timeout:g} s"
            if self._at_least_once and now < oldest.give_up:
                raise RpcError(StatusCode.UNAVAILABLE, text, may_have_run=True)
            late = [future for future in self._in_flight.values() if future.deadline <= now]
            for future in late:
                error = AckTimeoutError(StatusCode.DEADLINE_EXCEEDED, text, may_have_run=True)
                self._settle(future, None, error)
            self._settled_some()

    def _settle(self, future: PublishFuture, ack: Ack | None, error: LiftbridgeError | None = None) -> None:
        self._in_flight.pop(future.correlation_id, None)
        self._bytes -= future.bytes
        future.settle(ack, error)
        if error is not None:
            if len(self._failed) >= 1000:
                self._failed = [failed for failed in self._failed if not failed.seen][:1000]
            if len(self._failed) < 1000:
                self._failed.append(future)

    def _settled_some(self) -> None:
        self._room.set()
        if not self._in_flight and not self._unsent:
            self._idle.set()

    def _on_lost_call(self, error: RpcError) -> bool:
        """Settle what was sent and may not be sent again; True if the call had got something done."""
        if not self._at_least_once:
            text = f"the message was sent, but its ack was lost: {error.message}"
            for future in list(self._in_flight.values()):
                self._settle(future, None, UnknownOutcomeError(error.code, text, may_have_run=True))
        self._settled_some()
        progress, self._progress = self._progress, False
        return progress

    def _fail_all(self, error: RpcError) -> None:
        for future in list(self._in_flight.values()):
            text = f"the message was sent, but its ack was lost: {error.message}"
            self._settle(future, None, UnknownOutcomeError(error.code, text, may_have_run=True))
        for future in self._unsent:
            # At least once: what came back from a lost call may have been stored.
            maybe = future.give_up != math.inf
            self._settle(future, None, UnknownOutcomeError(error.code, str(error)) if maybe else error)
        self._unsent.clear()
        self._settled_some()

    def close(self, reason: str) -> None:
        """Take no more messages; what is not settled fails."""
        self._closed = True
        self._fail_all(UnknownOutcomeError(StatusCode.CANCELLED, reason, may_have_run=True))
