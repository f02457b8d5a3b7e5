"""The client: one object for everything a Liftbridge server offers, on Trio or asyncio.

`connect` is the way in; it owns the tasks of all connections, so nothing runs on when its block is left.
"""

from __future__ import annotations

import secrets
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.abc

from liftbridge.client.errors import LiftbridgeError, NotFoundError, RpcError, StatusCode, StreamExistsError
from liftbridge.client.groups import Consumer
from liftbridge.client.options import Options
from liftbridge.client.partitioners import Partitioner
from liftbridge.client.pool import Pool
from liftbridge.client.publishing import Publisher, choose_partition, publish_one
from liftbridge.client.routing import Router
from liftbridge.client.subscription import Subscription, Wanted, leader_info
from liftbridge.client.values import (
    Ack,
    AckPolicy,
    Metadata,
    PartitionInfo,
    StartPosition,
    StopPosition,
    StreamInfo,
    ack_of,
)
from liftbridge.proto import api_pb2

CURSORS = "__cursors"


class Client:
    """A client; made by `connect`. Every method may be used by many tasks at a time.

    Every call ends by its time-out, `Options.timeout` unless told otherwise. All raise `UnavailableError`
    when no
    server could be reached in that time, `DeadlineExceededError` when one did not answer,
    `PermissionDeniedError`,
    `UnsupportedError` when the server does not have the call, and other `RpcError`s as the server says.
    """

    def __init__(self, router: Router, options: Options) -> None:
        self._router = router
        self._options = options

    # -- streams ---------------------------------------------------------------------------------------

    async def create_stream(
        self,
        name: str,
        subject: str | None = None,
        *,
        partitions: int = 1,
        replication_factor: int = 1,
        group: str = "",
        retention_max_bytes: int | None = None,
        retention_max_messages: int | None = None,
        retention_max_age: timedelta | None = None,
        cleaner_interval: timedelta | None = None,
        segment_max_bytes: int | None = None,
        segment_max_age: timedelta | None = None,
        compact_enabled: bool | None = None,
        compact_max_goroutines: int | None = None,
        auto_pause_time: timedelta | None = None,
        auto_pause_disable_if_subscribers: bool | None = None,
        min_isr: int | None = None,
        optimistic_concurrency_control: bool | None = None,
        encryption: bool | None = None,
        compression: str | None = None,
        sync_policy: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Create a stream and wait until its partitions are led.

        Args:
            name: unique in the cluster.
            subject: the NATS subject to record, wildcards allowed; the name if it is None.
            partitions: partition 0 records the subject, partition n `<subject>.<n>`.
            replication_factor: copies; -1 for one on every server.
            group: load-balance group, a NATS queue group.
            timeout: in seconds.

        The other arguments override the server's settings for this stream, None leaves them;
        docs/configuration.md tells
        what they mean. Sizes are bytes.

        Raises:
            StreamExistsError: a stream of that name exists. If an earlier attempt of this call was cut off,
                the text says
                so: that one may have created it.
            InvalidArgumentError: the server refuses name, subject or a setting.
        """
        request = api_pb2.CreateStreamRequest(
            name=name,
            subject=name if subject is None else subject,
            group=group,
            partitions=partitions,
            replicationFactor=replication_factor,
            compression=compression or "",
            syncPolicy=sync_policy or "",
        )
        settings: dict[str, Any] = {
            "retentionMaxBytes": retention_max_bytes,
            "retentionMaxMessages": retention_max_messages,
            "retentionMaxAge": retention_max_age,
            "cleanerInterval": cleaner_interval,
            "segmentMaxBytes": segment_max_bytes,
            "segmentMaxAge": segment_max_age,
            "compactEnabled": compact_enabled,
            "compactMaxGoroutines": compact_max_goroutines,
            "autoPauseTime": auto_pause_time,
            "autoPauseDisableIfSubscribers": auto_pause_disable_if_subscribers,
            "minIsr": min_isr,
            "optimisticConcurrencyControl": optimistic_concurrency_control,
            "encryption": encryption,
        }
        for field, value in settings.items():
            if value is not None:
                number = value // timedelta(milliseconds=1) if isinstance(value, timedelta) else value
                wrapper = getattr(request, field)
                wrapper.SetInParent()
                wrapper.value = number
        try:
            await self._call("CreateStream", request, timeout)
        except StreamExistsError as error:
            if error.cut_off:
                error.message += "; an earlier attempt of this call was cut off and may have created it"
            raise
        finally:
            self._router.forget(name)

    async def delete_stream(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a stream and its messages.

        Raises:
            NotFoundError: there is no such stream. After an attempt that was cut off that counts as success.
        """
        try:
            await self._call("DeleteStream", api_pb2.DeleteStreamRequest(name=name), timeout)
        except NotFoundError as error:
            if not error.cut_off:
                raise
        finally:
            self._router.forget(name)

    async def pause_stream(
        self,
        name: str,
        partitions: Sequence[int] = (),
        *,
        resume_all: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Pause partitions of a stream: they record nothing until a publish or a subscription resumes them.

        Args:
            name: the stream.
            partitions: which ones, none for all.
            resume_all: a publish to one resumes all that are paused.
            timeout: in seconds.

        Raises:
            NotFoundError: there is no such stream or partition; nothing was paused.
        """
        request = api_pb2.PauseStreamRequest(name=name, partitions=partitions, resumeAll=resume_all)
        await self._call("PauseStream", request, timeout)
        self._router.forget(name)

    async def set_readonly(
        self,
        name: str,
        partitions: Sequence[int] = (),
        *,
        readonly: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Make partitions of a stream read-only, or writable again.

        Args:
            name: the stream.
            partitions: which ones, none for all.
            readonly: the new state.
            timeout: in seconds.

        Raises:
            NotFoundError: there is no such stream or partition; nothing was changed.
        """
        request = api_pb2.SetStreamReadonlyRequest(name=name, partitions=partitions, readonly=readonly)
        await self._call("SetStreamReadonly", request, timeout)
        self._router.forget(name)

    # -- metadata --------------------------------------------------------------------------------------

    async def metadata(
        self, streams: Sequence[str] = (), groups: Sequence[str] = (), *, timeout: float | None = None
    ) -> Metadata:
        """Ask a server what it knows of the cluster.

        Args:
            streams: names, none for all streams.
            groups: ids of consumer groups.
            timeout: in seconds.

        Returns:
            Servers, streams and groups. What does not exist is missing.
        """
        return await self._router.metadata(streams, groups, timeout)

    async def stream(self, name: str, *, timeout: float | None = None) -> StreamInfo:
        """Ask for one stream.

        Raises:
            NotFoundError: there is no such stream.
        """
        self._router.forget(name)
        return await self._router.stream(name, timeout)

    async def partition(
        self, stream: str, partition: int = 0, *, timeout: float | None = None
    ) -> PartitionInfo:
        """Ask the leader of a partition, who knows its positions exactly.

        Raises:
            NotFoundError: there is no such partition.
            RpcError: FAILED_PRECONDITION, nobody leads it: it is paused.
        """
        return await leader_info(self._router, stream, partition, timeout or self._options.timeout)

    # -- publishing ------------------------------------------------------------------------------------

    async def publish(
        self,
        stream: str,
        value: bytes,
        *,
        key: bytes = b"",
        headers: Mapping[str, bytes] | None = None,
        partition: int | None = None,
        partitioner: Partitioner | None = None,
        ack_policy: AckPolicy = AckPolicy.LEADER,
        expected_offset: int = -1,
        correlation_id: str = "",
        timeout: float | None = None,
        at_least_once: bool = False,
    ) -> Ack | None:
        """Publish a message and wait for its ack.

        Args:
            stream: its name.
            value: the payload.
            key: the key, for partitioners and compaction.
            headers: names and values that subscribers get.
            partition: where it goes; None for what the partitioner says, 0 without one.
            partitioner: `by_key`, a `RoundRobin()`, or a function of your own.
            ack_policy: when it is acknowledged.
            expected_offset: the offset it must get, on streams with optimistic concurrency control; -1 for
                any.
            correlation_id: comes back with the ack.
            timeout: for the ack, in seconds; `Options.ack_timeout` if None.
            at_least_once: send it again when no ack came, for up to `Options.retry_timeout` in all. The
                message may then
                be stored twice.

        Returns:
            The ack; None with `AckPolicy.NONE`.

        Raises:
            UnknownOutcomeError: it was sent and its ack was lost; `AckTimeoutError`: no ack came in time.
            UnavailableError: it could not be sent.
            NotFoundError: there is no such stream or partition.
            PartitionReadonlyError: the partition is read-only.
            IncorrectOffsetError: it would have got another offset than expected.
            MessageTooLargeError: the server refuses it for its size.
            PublishError: it was not stored for another reason.
        """
        request = api_pb2.PublishRequest(
            key=key,
            value=value,
            stream=stream,
            partition=await choose_partition(self._router, stream, key, value, partition, partitioner),
            headers=headers,
            correlationId=correlation_id,
            ackPolicy=int(ack_policy),  # type: ignore[arg-type]
            expectedOffset=expected_offset,
        )
        options = self._options
        return await publish_one(
            self._router,
            request,
            timeout=timeout or options.ack_timeout,
            retry_timeout=max(options.retry_timeout, timeout or 0) if at_least_once else None,
            pause=options.retry_pause,
        )

    async def publish_to_subject(
        self,
        subject: str,
        value: bytes,
        *,
        key: bytes = b"",
        headers: Mapping[str, bytes] | None = None,
        ack_policy: AckPolicy = AckPolicy.LEADER,
        correlation_id: str = "",
        timeout: float | None = None,
    ) -> Ack | None:
        """Publish a message on a NATS subject, for whatever streams record it, and wait for the first ack.

        Returns:
            The ack, whose `partition` is -1, as the server does not tell it; None with `AckPolicy.NONE`.

        Raises:
            DeadlineExceededError: no ack came in time; perhaps no stream records the subject.
            RpcError: as the server says; the message is not stored if it says so in an ack.
        """
        request = api_pb2.PublishToSubjectRequest(
            key=key,
            value=value,
            subject=subject,
            headers=headers,
            correlationId=correlation_id,
            ackPolicy=int(ack_policy),  # type: ignore[arg-type]
        )
        # One attempt: after a fault nobody knows whether it was stored.
        connection = await self._router.any_connection()
        raw = await connection.unary(
            "PublishToSubject", request.SerializeToString(), timeout or self._options.ack_timeout
        )
        response = api_pb2.PublishToSubjectResponse.FromString(raw)
        if ack_policy is AckPolicy.NONE:
            return None
        if response.ack.ackError != api_pb2.Ack.OK:
            name = api_pb2.Ack.Error.Name(response.ack.ackError)
            raise RpcError(StatusCode.UNKNOWN, f"the message was refused: {name}")
        return ack_of(response.ack, -1)

    @asynccontextmanager
    async def publisher(
        self,
        stream: str,
        *,
        ack_policy: AckPolicy = AckPolicy.LEADER,
        partitioner: Partitioner | None = None,
        max_in_flight: int = 10_000,
        max_bytes: int = 8 << 20,
        ack_timeout: float | None = None,
        at_least_once: bool = False,
    ) -> AsyncIterator[Publisher]:
        """Publish many messages without waiting for each ack: `async with client.publisher("s") as
        publisher`.

        Leaving the block waits until everything is settled, and raises the first error nobody has awaited;
        leaving it with
        an exception gives up what is not settled.

        Args:
            stream: its name.
            ack_policy: for all messages.
            partitioner: for messages that name no partition.
            max_in_flight: messages without an ack at a time; `send` waits for room.
            max_bytes: the same in bytes.
            ack_timeout: in seconds, `Options.ack_timeout` if None.
            at_least_once: send messages again whose acks were lost, at the risk of duplicates.
        """
        publisher = Publisher(
            self._router,
            stream,
            self._options,
            policy=ack_policy,
            partitioner=partitioner,
            max_in_flight=max_in_flight,
            max_bytes=max_bytes,
            ack_timeout=ack_timeout or self._options.ack_timeout,
            at_least_once=at_least_once,
        )
        async with owned_tasks() as tasks:
            tasks.start_soon(publisher.run)
            try:
                yield publisher
                await publisher.flush()
            finally:
                publisher.close("the publisher was left")

    # -- subscribing -----------------------------------------------------------------------------------

    def subscribe(
        self,
        stream: str,
        partition: int = 0,
        *,
        start: StartPosition = "new",
        stop: StopPosition = None,
        reverse: bool = False,
        resume: bool = False,
        read_replica: bool = False,
    ) -> Subscription:
        """Read a partition: `async with client.subscribe("s", start="earliest") as messages: async for ...`.

        After a fault it goes on where it was, without gap and without repeat, for up to
        `Options.retry_timeout`.

        Args:
            stream: its name.
            partition: its number.
            start: where to begin.
            stop: where to end, inclusive.
            reverse: from start towards older messages; ends at the oldest.
            resume: resume the partition if it is paused, now or while it is read.
            read_replica: any in-sync replica may answer, and may lag behind.

        Returns:
            The subscription; entering it raises what `Subscription` tells, and `NotFoundError`.

        Raises:
            ValueError: a position makes no sense.
        """
        wanted = Wanted(stream, partition, start, stop, reverse, resume, read_replica)
        return Subscription(self._router, wanted, self._options)

    @asynccontextmanager
    async def consumer(
        self,
        group: str,
        consumer_id: str | None = None,
        *,
        streams: Sequence[str],
        start: StartPosition = "new",
        checkpoint_interval: float = 5.0,
        handover: float = 0.5,
    ) -> AsyncIterator[Consumer]:
        """Become a member of a consumer group: `async with client.consumer("g", streams=["s"]) as messages`.

        Leaving the block stores what was handled and leaves the group.

        Args:
            group: its id; the first member creates it.
            consumer_id: unique in the group, random if None.
            streams: what this member wants to read.
            start: where a partition begins that the group has not read yet.
            checkpoint_interval: seconds between two checkpoints, 0 for none but the last.
            handover: seconds a new owner of a partition gives the old one to store how far it came.

        Raises:
            RpcError: FAILED_PRECONDITION: there is such a member already, or no such stream.
        """
        consumer = Consumer(
            self._router,
            self._options,
            group=group,
            consumer=consumer_id or secrets.token_urlsafe(16),
            streams=streams,
            start=start,
            checkpoint_interval=checkpoint_interval,
            handover=handover,
            fetch_cursor=self.fetch_cursor,
            set_cursor=self.set_cursor,
        )
        await consumer.join()
        try:
            async with owned_tasks() as tasks:
                tasks.start_soon(consumer.run)
                yield consumer
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._options.timeout):
                await consumer.leave()

    # -- cursors ---------------------------------------------------------------------------------------

    async def set_cursor(
        self, cursor_id: str, stream: str, partition: int, offset: int, *, timeout: float | None = None
    ) -> None:
        """Store an offset under a name, for one partition.

        Raises:
            UnsupportedError: the server has no cursors.
            NotFoundError: the server has cursors switched off (`cursors.stream.partitions`).
        """
        request = api_pb2.SetCursorRequest(
            stream=stream, partition=partition, cursorId=cursor_id, offset=offset
        )
        await self._call_for_cursor("SetCursor", request, timeout)

    async def fetch_cursor(
        self, cursor_id: str, stream: str, partition: int = 0, *, timeout: float | None = None
    ) -> int:
        """Return the offset last stored, -1 if there is none.

        Raises:
            LiftbridgeError: as `set_cursor` does.
        """
        request = api_pb2.FetchCursorRequest(stream=stream, partition=partition, cursorId=cursor_id)
        raw = await self._call_for_cursor("FetchCursor", request, timeout)
        return api_pb2.FetchCursorResponse.FromString(raw).offset

    async def _call_for_cursor(self, method: str, request: Any, timeout: float | None) -> bytes:
        timeout = timeout or self._options.timeout
        try:
            count = len((await self._router.stream(CURSORS, timeout)).partitions)
        except NotFoundError as error:
            text = "the server keeps no cursors: set cursors.stream.partitions in its configuration"
            raise NotFoundError(error.code, text) from error
        key = f"{request.cursorId},{request.stream},{request.partition}"
        place = zlib.crc32(key.encode()) % count
        return await self._router.call_leader(method, request.SerializeToString(), CURSORS, place, timeout)

    async def _call(self, method: str, request: Any, timeout: float | None) -> bytes:
        return await self._router.call(method, request.SerializeToString(), timeout or self._options.timeout)


@asynccontextmanager
async def connect(
    *addresses: str,
    tls: ssl.SSLContext | None = None,
    options: Options | None = None,
    fail_fast: bool = False,
) -> AsyncIterator[Client]:
    """Connect to a cluster: `async with connect("host:9292") as client`.

    Args:
        addresses: of one server or several, "host:port"; the others are found through them.
        tls: a context, such as `tls_context` makes; plaintext without one.
        options: time-outs and bounds.
        fail_fast: try each address once, instead of all of them again and again until `Options.timeout`.

    Raises:
        UnavailableError: none of them could be reached within `Options.timeout`.
        TlsError: TLS with the server failed.
        ValueError: an address is not of the form host:port.
    """
    options = options or Options()
    async with owned_tasks() as tasks:
        pool = Pool(tasks, tls, options)
        router = Router(addresses, pool, options)
        if fail_fast:
            await router.find_first()
        await router.metadata()
        try:
            yield Client(router, options)
        finally:
            pool.close()


@asynccontextmanager
async def owned_tasks() -> AsyncIterator[anyio.abc.TaskGroup]:
    """Tasks that live as long as the block; its own exception comes out as it is, not inside of a group."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as error:  # raised again below
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


__all__ = ["Client", "LiftbridgeError", "connect", "owned_tasks"]
