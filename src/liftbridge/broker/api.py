"""The servicer of the client API: every RPC, its checks in their order, and the status each failure has.

Handlers are thin: they check, translate between protobuf and the broker's own objects, and leave the work to
the controller (metadata), the publisher (publishing) and the subscriptions. Which RPCs exist but are not
served yet is decided by not overriding them: the gRPC layer answers UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import trio

from liftbridge.broker.authz import Authorizer
from liftbridge.broker.config import Config
from liftbridge.broker.controller import Controller
from liftbridge.broker.cursors import Cursors
from liftbridge.broker.frames import FrameCache
from liftbridge.broker.groups import ConsumerGroups
from liftbridge.broker.partition import Partition, State
from liftbridge.broker.pausing import NoRoomError, Pausing
from liftbridge.broker.publisher import (
    Call,
    NatsPermissionError,
    NatsUnavailableError,
    NotAnAckError,
    Publisher,
    PublishRefusedError,
    Ready,
    UnaryPublish,
    at_once,
)
from liftbridge.broker.settling import Settling
from liftbridge.broker.streams import Streams
from liftbridge.broker.subscriptions import deliver, ended, led_elsewhere, refuse_paused, resolve
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.groups import check_ids
from liftbridge.metadata.model import Partition as PartitionModel
from liftbridge.metadata.model import Stream, settings_of_request
from liftbridge.metadata.validation import check_ack_inbox, check_publish_subject, shown
from liftbridge.proto import api_grpc, api_pb2
from liftbridge.rpc import (
    Frames,
    ImmediateCall,
    Request,
    RpcFailedError,
    StatusCode,
    immediate,
    message_frame,
    raw_requests,
    rpc_error,
)

# What PublishAsync waits for acks that are on their way when the client has sent its last message.
LAST_ACKS_SECONDS = 5.0
# The response to a publish without an ack, with its length prefix.
NO_ACK = message_frame(api_pb2.PublishResponse().SerializeToString())
# How long CreateStream waits for the leaders when the caller sets no deadline.
LEADERS_SECONDS = 5.0


@dataclass
class Self:
    """What this server says of itself in metadata: id and advertised address."""

    id: str
    host: str
    port: int


class ApiServicer(api_grpc.APIServicer):
    """The service proto.API."""

    def __init__(
        self,
        config: Config,
        own: Self,
        controller: Controller,
        streams: Streams,
        publisher: Publisher,
        settling: Settling,
        pausing: Pausing,
        cursors: Cursors,
        groups: ConsumerGroups,
        authorizer: Authorizer | None = None,
    ) -> None:
        self._config = config
        self._own = own
        self._controller = controller
        self._streams = streams
        self._publisher = publisher
        self._settling = settling
        self._pausing = pausing
        self._cursors = cursors
        self._groups = groups
        self._authorizer = authorizer
        self._shared = FrameCache(config.streams.read_cache_max_bytes)

    # -- streams ---------------------------------------------------------------------------------------

    async def CreateStream(
        self, input_message: api_pb2.CreateStreamRequest, request: Request
    ) -> api_pb2.CreateStreamResponse:
        if lack := self._streams.lack_of_room(input_message.partitions):
            raise rpc_error(StatusCode.RESOURCE_EXHAUSTED, lack)
        try:
            stream = await self._controller.create_stream(
                name=input_message.name,
                subject=input_message.subject,
                group=input_message.group,
                replication_factor=input_message.replicationFactor,
                partitions=input_message.partitions,
                settings=settings_of_request(input_message),
            )
        except MetadataError as error:
            raise _status(error) from error
        with trio.move_on_after(LEADERS_SECONDS):
            await self._settling.wait(stream)
        return api_pb2.CreateStreamResponse()

    async def DeleteStream(
        self, input_message: api_pb2.DeleteStreamRequest, request: Request
    ) -> api_pb2.DeleteStreamResponse:
        try:
            await self._controller.delete_stream(input_message.name)
        except MetadataError as error:
            raise _status(error) from error
        return api_pb2.DeleteStreamResponse()

    async def PauseStream(
        self, input_message: api_pb2.PauseStreamRequest, request: Request
    ) -> api_pb2.PauseStreamResponse:
        try:
            await self._pausing.pause(
                input_message.name, input_message.partitions, resume_all=input_message.resumeAll
            )
        except MetadataError as error:
            raise _status(error) from error
        return api_pb2.PauseStreamResponse()

    async def SetStreamReadonly(
        self, input_message: api_pb2.SetStreamReadonlyRequest, request: Request
    ) -> api_pb2.SetStreamReadonlyResponse:
        try:
            await self._pausing.set_readonly(
                input_message.name, input_message.partitions, readonly=input_message.readonly
            )
        except MetadataError as error:
            raise _status(error) from error
        return api_pb2.SetStreamReadonlyResponse()

    # -- metadata --------------------------------------------------------------------------------------

    async def FetchMetadata(
        self, input_message: api_pb2.FetchMetadataRequest, request: Request
    ) -> api_pb2.FetchMetadataResponse:
        state = self._controller.state
        response = api_pb2.FetchMetadataResponse()
        self._describe_brokers(response)
        for name in input_message.streams or list(state.streams):
            entry = response.streamMetadata.add(name=name)
            stream = state.streams.get(name)
            if stream is None:
                entry.error = api_pb2.StreamMetadata.UNKNOWN_STREAM
            else:
                self._describe_stream(entry, stream)
        for group_id in input_message.groups:
            description = response.groupMetadata.add(groupId=group_id)
            group = state.groups.get(group_id)
            if group is None:
                description.error = api_pb2.ConsumerGroupMetadata.UNKNOWN_GROUP
            else:
                description.coordinator = group.coordinator
                description.epoch = group.epoch
        return response

    async def FetchPartitionMetadata(
        self, input_message: api_pb2.FetchPartitionMetadataRequest, request: Request
    ) -> api_pb2.FetchPartitionMetadataResponse:
        partition = self._find(input_message.stream, input_message.partition)
        if partition.state is not State.LEADING:
            status = ended(partition)
            if partition.state not in (State.FOLLOWING, State.MOVED):
                text = f"Server not partition leader: {status.status.status_message}"
                status = rpc_error(StatusCode.FAILED_PRECONDITION, text)
            raise status
        response = api_pb2.FetchPartitionMetadataResponse()
        self._describe_partition(response.metadata, partition)
        # The clients' messages have no fields for these.
        request.trailing = (
            ("liftbridge-written-offset", str(partition.written_offset)),
            ("liftbridge-synced-offset", str(partition.synced_offset)),
            ("liftbridge-unsynced-bytes", str(partition.unsynced_bytes)),
        )
        return response

    def _describe_brokers(self, response: api_pb2.FetchMetadataResponse) -> None:
        """Those that take part, and this one in any case: it has been reached."""
        state = self._controller.state
        addresses = {
            broker.id: broker.addresses[0].rpartition(":")
            for broker in state.brokers.values()
            if broker.alive and broker.addresses
        }
        addresses[self._own.id] = self._own.host, ":", str(self._own.port)
        for broker, (host, _, port) in addresses.items():
            load = state.load(broker)
            response.brokers.add(
                id=broker,
                host=host,
                port=int(port),
                partitionCount=load.partitions,
                leaderCount=load.leaders,
            )

    def _describe_stream(self, entry: api_pb2.StreamMetadata, stream: Stream) -> None:
        entry.subject = stream.subject
        entry.creationTimestamp = stream.creation_ns
        for model in stream.partitions:
            partition = self._streams.partition(stream.name, model.id)
            if partition is not None:
                self._describe_partition(entry.partitions[model.id], partition)
            else:
                # Where its messages end is known by those who have them.
                entry.partitions[model.id].highWatermark = entry.partitions[model.id].newestOffset = -1
                _describe_model(entry.partitions[model.id], model)

    def _describe_partition(self, entry: api_pb2.PartitionMetadata, partition: Partition) -> None:
        entry.highWatermark = partition.high_watermark
        entry.newestOffset = partition.newest_offset
        entry.messagesReceivedTimestamps.firstTimestamp = partition.received.first
        entry.messagesReceivedTimestamps.latestTimestamp = partition.received.latest
        _describe_model(entry, partition.model)

    # -- subscribing -----------------------------------------------------------------------------------

    async def Subscribe(
        self, input_message: api_pb2.SubscribeRequest, request: Request
    ) -> AsyncIterator[Frames]:
        consumer = input_message.consumer
        if consumer.groupId:
            try:
                check_ids(groupId=consumer.groupId, consumerId=consumer.consumerId)
            except MetadataError as error:
                raise _status(error) from error
        partition = self._find(input_message.stream, input_message.partition)
        if input_message.resume:
            await self._resume_to_read(input_message.stream, input_message.partition)
            partition = self._find(input_message.stream, input_message.partition)
        while partition.state is State.OPENING:
            await partition.settled.wait()
        if partition.state is State.PAUSED:
            async for frames in refuse_paused(partition):
                yield frames
        if not (partition.readable if input_message.readISRReplica else partition.state is State.LEADING):
            raise ended(partition)
        if consumer.groupId and partition.state is not State.LEADING:
            raise rpc_error(
                StatusCode.INVALID_ARGUMENT, "a consumer of a group reads from the leader; not readISRReplica"
            )
        if consumer.groupId:
            self._groups.fences.check(partition, consumer)
        batches = deliver(partition, await resolve(partition, input_message), self._shared)
        if consumer.groupId:
            batches = self._groups.fences.hold(partition, consumer, batches)
        async with aclosing(batches):
            async for frames in batches:
                yield frames

    async def _resume_to_read(self, stream: str, partition_id: int) -> None:
        try:
            await self._pausing.ready(stream, partition_id)
        except MetadataError as error:
            raise _status(error) from error
        except NoRoomError as error:
            raise rpc_error(StatusCode.INTERNAL, str(error)) from error

    def _find(self, stream: str, partition_id: int) -> Partition:
        partition = self._streams.partition(stream, partition_id)
        if partition is not None:
            return partition
        model = self._controller.state.streams.get(stream)
        if model is None:
            raise rpc_error(StatusCode.NOT_FOUND, f"No such partition: there is no stream {shown(stream)}")
        if not 0 <= partition_id < len(model.partitions):
            raise rpc_error(
                StatusCode.NOT_FOUND,
                f"No such partition: stream {shown(stream)} has no partition {partition_id}",
            )
        raise led_elsewhere(
            model.partitions[partition_id].leader, f"partition {partition_id} of stream {stream!r}"
        )

    # -- cursors ---------------------------------------------------------------------------------------

    async def SetCursor(
        self, input_message: api_pb2.SetCursorRequest, request: Request
    ) -> api_pb2.SetCursorResponse:
        await self._cursors.set(
            input_message.stream,
            input_message.partition,
            input_message.cursorId,
            input_message.offset,
            deadline=request.context.has_deadline,
        )
        return api_pb2.SetCursorResponse()

    async def FetchCursor(
        self, input_message: api_pb2.FetchCursorRequest, request: Request
    ) -> api_pb2.FetchCursorResponse:
        offset = await self._cursors.fetch(
            input_message.stream,
            input_message.partition,
            input_message.cursorId,
            deadline=request.context.has_deadline,
        )
        return api_pb2.FetchCursorResponse(offset=offset)

    # -- publishing ------------------------------------------------------------------------------------

    def _begin_publish(self, request: bytes, call: ImmediateCall) -> bool:
        """Serve a usual `Publish` without a task: one that waits for nothing but an ack."""
        publish = self._publisher.begin(request, wait=call.timeout is not None)
        if publish is None:
            return False
        if not publish.wire.outstanding:
            publish.close()
            call.respond(NO_ACK)
            return True
        call.on_end = publish.close
        publish.on_ack = partial(self._end_publish, request, call)
        return True

    def _end_publish(self, request: bytes, call: ImmediateCall, publish: UnaryPublish) -> None:
        response = publish.wire.first_response()
        if response is not None:
            call.respond(response)
            return
        ack = api_pb2.Ack.FromString(publish.wire.take_first_ack() or b"")
        call.fail(self._negative(api_pb2.PublishRequest.FromString(request), ack))

    @immediate(_begin_publish)
    async def Publish(
        self, input_message: api_pb2.PublishRequest, request: Request
    ) -> api_pb2.PublishResponse:
        stream = self._check_publish(input_message)
        subject = stream.partition_subject(input_message.partition)
        message = api_pb2.Message(
            offset=input_message.expectedOffset,
            key=input_message.key,
            value=input_message.value,
            stream=input_message.stream,
            subject=subject,
            headers=input_message.headers,
            ackInbox=input_message.ackInbox,
            correlationId=input_message.correlationId,
            ackPolicy=input_message.ackPolicy,
        )
        ready = partial(self._pausing.ready, input_message.stream, input_message.partition)
        ack = await self._publish(subject, message, request, ready)
        if ack is None:
            return api_pb2.PublishResponse()
        if ack.ackError != api_pb2.Ack.OK:
            raise self._negative(input_message, ack)
        return api_pb2.PublishResponse(ack=ack)

    def _negative(self, message: api_pb2.PublishRequest, ack: api_pb2.Ack) -> RpcFailedError:
        """The status of a publish that got a negative ack."""
        partition = self._streams.partition(message.stream, message.partition)
        if partition is not None and partition.model.readonly and ack.ackError == api_pb2.Ack.UNKNOWN:
            return _readonly(partition.stream.name, partition.model.id)
        return _refusal(ack, partition.refusal if partition is not None else "")

    async def PublishToSubject(
        self, input_message: api_pb2.PublishToSubjectRequest, request: Request
    ) -> api_pb2.PublishToSubjectResponse:
        try:
            check_publish_subject(input_message.subject.encode())
        except MetadataError as error:
            raise rpc_error(StatusCode.UNKNOWN, error.text) from error
        message = api_pb2.Message(
            key=input_message.key,
            value=input_message.value,
            subject=input_message.subject,
            headers=input_message.headers,
            ackInbox=input_message.ackInbox,
            correlationId=input_message.correlationId,
            ackPolicy=input_message.ackPolicy,
        )
        ack = await self._publish(input_message.subject, message, request)
        return api_pb2.PublishToSubjectResponse(ack=ack)

    def _check_publish(self, message: api_pb2.PublishRequest) -> Stream:
        if not message.stream:
            raise rpc_error(StatusCode.INVALID_ARGUMENT, "a publish needs the name of a stream")
        stream = self._controller.state.streams.get(message.stream)
        if stream is None:
            raise rpc_error(StatusCode.NOT_FOUND, f"there is no stream {shown(message.stream)}")
        if not 0 <= message.partition < len(stream.partitions):
            raise rpc_error(
                StatusCode.NOT_FOUND,
                f"No such partition: stream {shown(message.stream)} has no partition {message.partition}",
            )
        if stream.partitions[message.partition].readonly:
            raise _readonly(stream.name, message.partition)
        route = self._streams.routes.get(message.stream.encode())
        if route is not None and route.check_offsets and message.ackPolicy == api_pb2.NONE:
            raise rpc_error(
                StatusCode.INVALID_ARGUMENT, "stream with concurrency control must have AckPolicy set"
            )
        return stream

    async def _publish(
        self, subject: str, message: api_pb2.Message, request: Request, ready: Ready = at_once
    ) -> api_pb2.Ack | None:
        """Publish when `ready` has returned; wait for the ack when the message wants one and the caller has a
        deadline."""
        if message.ackPolicy not in api_pb2.AckPolicy.values():
            raise rpc_error(
                StatusCode.INVALID_ARGUMENT,
                f"unknown ack policy {message.ackPolicy}; it is LEADER, ALL or NONE",
            )
        try:
            if message.ackInbox:
                check_ack_inbox(message.ackInbox.encode())
            if message.ackPolicy == api_pb2.NONE or not request.context.has_deadline:
                await self._publisher.publish(subject, message, ready)
                return None
            return await self._publisher.publish_and_wait(subject, message, ready)
        except MetadataError as error:
            raise _status(error) from error
        except NoRoomError as error:
            raise rpc_error(StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
        except (PublishRefusedError, NatsUnavailableError, NatsPermissionError, NotAnAckError) as error:
            raise rpc_error(StatusCode.UNKNOWN, str(error)) from error

    @raw_requests
    async def PublishAsync(self, input_messages: AsyncIterator[Frames], request: Request) -> None:
        authorizer = self._authorizer
        permit = None if authorizer is None else authorizer.permit(request.context)
        async with self._publisher.call(permit=permit) as call:
            try:
                await self._run_publish_call(call, input_messages, request)
            finally:
                if authorizer is not None:
                    authorizer.note_denied(request.context, call.messages.denied)

    async def _run_publish_call(
        self, call: Call, input_messages: AsyncIterator[Frames], request: Request
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_answers, call, request)
            await self._take_requests(call, input_messages)
            with trio.move_on_after(LAST_ACKS_SECONDS):
                while call.messages.outstanding:
                    await call.room.wait()
            call.closing = True
            call.news.set()

    async def _take_requests(self, call: Call, requests: AsyncIterator[Frames]) -> None:
        async for frames in requests:
            try:
                await self._publisher.send_requests(call, frames.data, self._wait_ready)
            except ValueError as error:
                raise rpc_error(StatusCode.INTERNAL, f"the call is broken: {error}") from error

    async def _wait_ready(self, stream: bytes, partition_id: int) -> str | None:
        """Resume a partition for PublishAsync; returns why it could not be."""
        try:
            await self._pausing.ready(stream.decode(), partition_id)
        except MetadataError as error:
            return error.text
        except NoRoomError as error:
            return str(error)
        return None

    async def _send_answers(self, call: Call, request: Request) -> None:
        """Send answers as they come, until the call is closing and none are left."""
        while True:
            answers = call.messages.take_answers()
            if answers:
                await request.send(Frames(answers))
                call.room.set()
            elif call.closing:
                return
            else:
                await call.news.wait()

    # -- consumer groups -------------------------------------------------------------------------------

    async def JoinConsumerGroup(
        self, input_message: api_pb2.JoinConsumerGroupRequest, request: Request
    ) -> api_pb2.JoinConsumerGroupResponse:
        try:
            group = await self._groups.join(
                input_message.groupId, input_message.consumerId, input_message.streams
            )
        except MetadataError as error:
            raise _status(error) from error
        return api_pb2.JoinConsumerGroupResponse(
            coordinator=group.coordinator,
            epoch=group.epoch,
            consumerTimeout=self._groups.consumer_timeout,
            coordinatorTimeout=self._groups.coordinator_timeout,
        )

    async def LeaveConsumerGroup(
        self, input_message: api_pb2.LeaveConsumerGroupRequest, request: Request
    ) -> api_pb2.LeaveConsumerGroupResponse:
        try:
            await self._groups.leave(input_message.groupId, input_message.consumerId)
        except MetadataError as error:
            raise _status(error) from error
        return api_pb2.LeaveConsumerGroupResponse()

    async def FetchConsumerGroupAssignments(
        self, input_message: api_pb2.FetchConsumerGroupAssignmentsRequest, request: Request
    ) -> api_pb2.FetchConsumerGroupAssignmentsResponse:
        try:
            member = self._groups.assignments(
                input_message.groupId, input_message.consumerId, input_message.epoch
            )
        except MetadataError as error:
            raise _status(error) from error
        response = api_pb2.FetchConsumerGroupAssignmentsResponse(epoch=input_message.epoch)
        for stream, partitions in member.share.items():
            if partitions:
                response.assignments.add(stream=stream, partitions=partitions)
        return response

    async def ReportConsumerGroupCoordinator(
        self, input_message: api_pb2.ReportConsumerGroupCoordinatorRequest, request: Request
    ) -> api_pb2.ReportConsumerGroupCoordinatorResponse:
        try:
            await self._groups.report(
                input_message.groupId,
                input_message.consumerId,
                input_message.coordinator,
                input_message.epoch,
            )
        except MetadataError as error:
            raise _status(error) from error
        return api_pb2.ReportConsumerGroupCoordinatorResponse()


def _describe_model(entry: api_pb2.PartitionMetadata, model: PartitionModel) -> None:
    entry.id = model.id
    entry.leader = model.leader
    entry.replicas.extend(model.replicas)
    entry.isr.extend(model.isr)
    entry.paused = model.paused
    entry.readonly = model.readonly
    entry.messagesReceivedTimestamps.SetInParent()
    # Present, and empty, as long as nothing was paused or made readonly.
    entry.pauseTimestamps.SetInParent()
    entry.pauseTimestamps.firstTimestamp = model.pause_times.first_ns
    entry.pauseTimestamps.latestTimestamp = model.pause_times.latest_ns
    entry.readonlyTimestamps.SetInParent()
    entry.readonlyTimestamps.firstTimestamp = model.readonly_times.first_ns
    entry.readonlyTimestamps.latestTimestamp = model.readonly_times.latest_ns


_CODES = {code.name: code for code in StatusCode}


def _status(error: MetadataError) -> RpcFailedError:
    """The gRPC status of a refused metadata operation."""
    return rpc_error(_CODES[error.code.name], error.text)


def _readonly(stream: str, partition_id: int) -> RpcFailedError:
    """The status of a publish to a partition that takes no messages."""
    return rpc_error(
        StatusCode.FAILED_PRECONDITION,
        f"partition {partition_id} of stream {stream!r} is readonly; SetStreamReadonly makes it writable",
    )


def _refusal(ack: api_pb2.Ack, reason: str) -> RpcFailedError:
    """The status of a publish whose message was not stored; an ack has no words, so `reason` adds them."""
    if ack.ackError == api_pb2.Ack.INCORRECT_OFFSET:
        return rpc_error(StatusCode.UNKNOWN, "incorrect expected offset")
    if ack.ackError == api_pb2.Ack.TOO_LARGE:
        return rpc_error(
            StatusCode.INVALID_ARGUMENT, "the message is larger than clustering.replication.max.bytes allows"
        )
    if ack.ackError == api_pb2.Ack.ENCRYPTION:
        return rpc_error(StatusCode.INTERNAL, "the value could not be encrypted")
    text = "the partition leader could not store the message"
    return rpc_error(StatusCode.UNKNOWN, f"{text}: {reason}" if reason else text)
