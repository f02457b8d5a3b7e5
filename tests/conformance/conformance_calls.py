"""Calls as clients of the original make them, with the stubs that gufo-liftbridge was published with.

Nothing here is generated from this project's definition of the API: a number or a type that differs from the
original's shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from calls import PATIENCE, drain, fresh, refused, take, until
from gufo.liftbridge import api_pb2
from gufo.liftbridge.api_pb2_grpc import APIStub
from harness import Server

OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
END = grpc.StatusCode.RESOURCE_EXHAUSTED
INTERNAL = grpc.StatusCode.INTERNAL
UNKNOWN = grpc.StatusCode.UNKNOWN
EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED

# How long to wait for what must not come: an ack, a message. Only those tests wait that have no other way.
NOTHING_SECONDS = 0.3

__all__ = ["PATIENCE", "api_pb2", "drain", "fresh", "refused", "take", "until"]


class Api(APIStub):
    """The published stubs; `close` ends their channel."""

    def __init__(self, server: Server, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.channel = server.api(credentials).channel
        super().__init__(self.channel)


def integer(value: int) -> Any:
    """A set NullableInt64."""
    return api_pb2.NullableInt64(value=value)


def integer32(value: int) -> Any:
    """A set NullableInt32."""
    return api_pb2.NullableInt32(value=value)


def boolean(value: bool) -> Any:
    """A set NullableBool."""
    return api_pb2.NullableBool(value=value)


def create(api: Api, name: str | None = None, subject: str | None = None, **fields: Any) -> str:
    """Create a stream, on a subject of its own unless told; returns its name, by default its subject."""
    name = fresh() if name is None else name
    subject = name if subject is None else subject
    api.CreateStream(api_pb2.CreateStreamRequest(name=name, subject=subject, **fields), timeout=PATIENCE)
    return name


def delete(api: Api, name: str) -> None:
    """Delete a stream."""
    api.DeleteStream(api_pb2.DeleteStreamRequest(name=name), timeout=PATIENCE)


def pause(api: Api, name: str, *partitions: int, resume_all: bool = False) -> None:
    """Pause partitions; none are all."""
    request = api_pb2.PauseStreamRequest(name=name, partitions=partitions, resumeAll=resume_all)
    api.PauseStream(request, timeout=PATIENCE)


def set_readonly(api: Api, name: str, *partitions: int, readonly: bool = True) -> None:
    """Set the flag of partitions; none are all."""
    request = api_pb2.SetStreamReadonlyRequest(name=name, partitions=partitions, readonly=readonly)
    api.SetStreamReadonly(request, timeout=PATIENCE)


def publish(
    api: Api, stream: str, value: bytes = b"", *, timeout: float | None = PATIENCE, **fields: Any
) -> Any:
    """Publish one message and return its ack."""
    request = api_pb2.PublishRequest(stream=stream, value=value, **fields)
    return api.Publish(request, timeout=timeout).ack


def publish_async(api: Api, *requests: dict[str, Any]) -> list[Any]:
    """The responses to requests of one call, which ends as it should."""
    messages = (api_pb2.PublishRequest(**fields) for fields in requests)
    return list(api.PublishAsync(messages, timeout=PATIENCE))


def publish_to_subject(
    api: Api, subject: str, value: bytes = b"", *, timeout: float = PATIENCE, **fields: Any
) -> Any:
    """Publish to a NATS subject and return the ack."""
    request = api_pb2.PublishToSubjectRequest(subject=subject, value=value, **fields)
    return api.PublishToSubject(request, timeout=timeout).ack


def fill(api: Api, stream: str, count: int, **fields: Any) -> list[Any]:
    """Publish the numbers from 0 on, one after the other; returns the acks."""
    return [publish(api, stream, b"%d" % number, **fields) for number in range(count)]


def subscribe(api: Api, stream: str, *, timeout: float = PATIENCE, **fields: Any) -> Any:
    """Open a subscription and take its handshake."""
    call = api.Subscribe(api_pb2.SubscribeRequest(stream=stream, **fields), timeout=timeout)
    assert next(call).ByteSize() == 0
    return call


def subscribe_reverse(api: Api, stream: str, **fields: Any) -> Any:
    """The same from the newest to the oldest: field 12, which the published definition does not have."""
    known = api_pb2.SubscribeRequest(stream=stream, **fields).SerializeToString()
    call = api.Subscribe(api_pb2.SubscribeRequest.FromString(known + b"\x60\x01"), timeout=PATIENCE)
    assert next(call).ByteSize() == 0
    return call


def first_answer(api: Api, stream: str, **fields: Any) -> Any:
    """What a subscription says first: raises unless it is the handshake."""
    call = api.Subscribe(api_pb2.SubscribeRequest(stream=stream, **fields), timeout=PATIENCE)
    answer = next(call)
    call.cancel()
    return answer


def history(api: Api, stream: str, partition: int = 0) -> list[Any]:
    """The messages that a partition holds now."""
    if partition_metadata(api, stream, partition).newestOffset == -1:
        return []
    call = subscribe(
        api, stream, partition=partition, startPosition=api_pb2.EARLIEST, stopPosition=api_pb2.STOP_LATEST
    )
    messages, status = drain(call)
    assert status == END
    return messages


def follow(api: Api, stream: str, count: int, **fields: Any) -> list[Any]:
    """The next messages from the earliest on, unless told; waits for them."""
    call = subscribe(api, stream, **{"startPosition": api_pb2.EARLIEST, **fields})
    messages = take(call, count)
    call.cancel()
    return messages


def values(messages: list[Any]) -> list[bytes]:
    """Their values."""
    return [message.value for message in messages]


def offsets(messages: list[Any]) -> list[int]:
    """Their offsets."""
    return [message.offset for message in messages]


def metadata(api: Api, *streams: str, groups: tuple[str, ...] = ()) -> Any:
    """FetchMetadata of these streams; none are all."""
    request = api_pb2.FetchMetadataRequest(streams=streams, groups=groups)
    return api.FetchMetadata(request, timeout=PATIENCE)


def streams(api: Api) -> dict[str, Any]:
    """All streams, by name."""
    return {entry.name: entry for entry in metadata(api).streamMetadata}


def partitions(api: Api, stream: str) -> list[Any]:
    """What FetchMetadata says of a stream's partitions, by id."""
    (entry,) = metadata(api, stream).streamMetadata
    return [entry.partitions[number] for number in sorted(entry.partitions)]


def paused(api: Api, stream: str) -> list[bool]:
    """Which partitions are paused."""
    return [partition.paused for partition in partitions(api, stream)]


def partition_metadata(api: Api, stream: str, partition: int = 0) -> Any:
    """FetchPartitionMetadata."""
    request = api_pb2.FetchPartitionMetadataRequest(stream=stream, partition=partition)
    return api.FetchPartitionMetadata(request, timeout=PATIENCE).metadata


def set_cursor(api: Api, cursor: str, offset: int, stream: str = "orders", partition: int = 0) -> None:
    """SetCursor."""
    request = api_pb2.SetCursorRequest(stream=stream, partition=partition, cursorId=cursor, offset=offset)
    api.SetCursor(request, timeout=PATIENCE)


def fetch_cursor(api: Api, cursor: str, stream: str = "orders", partition: int = 0) -> int:
    """FetchCursor."""
    request = api_pb2.FetchCursorRequest(stream=stream, partition=partition, cursorId=cursor)
    return int(api.FetchCursor(request, timeout=PATIENCE).offset)


def join(api: Api, group: str, consumer: str, *names: str) -> Any:
    """JoinConsumerGroup."""
    request = api_pb2.JoinConsumerGroupRequest(groupId=group, consumerId=consumer, streams=names)
    return api.JoinConsumerGroup(request, timeout=PATIENCE)


def leave(api: Api, group: str, consumer: str) -> None:
    """LeaveConsumerGroup."""
    request = api_pb2.LeaveConsumerGroupRequest(groupId=group, consumerId=consumer)
    api.LeaveConsumerGroup(request, timeout=PATIENCE)


def report(api: Api, group: str, consumer: str, coordinator: str, epoch: int) -> None:
    """ReportConsumerGroupCoordinator."""
    request = api_pb2.ReportConsumerGroupCoordinatorRequest(
        groupId=group, consumerId=consumer, coordinator=coordinator, epoch=epoch
    )
    api.ReportConsumerGroupCoordinator(request, timeout=PATIENCE)


def group_metadata(api: Api, group: str) -> Any:
    """What FetchMetadata says of a group."""
    (entry,) = metadata(api, "-", groups=(group,)).groupMetadata
    return entry


def assignments(api: Api, group: str, consumer: str, epoch: int | None = None) -> dict[str, list[int]]:
    """FetchConsumerGroupAssignments, with the group's epoch of now unless told another."""
    epoch = group_metadata(api, group).epoch if epoch is None else epoch
    request = api_pb2.FetchConsumerGroupAssignmentsRequest(groupId=group, consumerId=consumer, epoch=epoch)
    response = api.FetchConsumerGroupAssignments(request, timeout=PATIENCE)
    assert response.epoch == epoch
    return {entry.stream: list(entry.partitions) for entry in response.assignments}


def event_of(message: Any) -> Any:
    """The event in a message of `__activity`."""
    assert not message.key
    return api_pb2.ActivityStreamEvent.FromString(message.value)


def events_about(api: Api, enough: Callable[[Any], bool]) -> list[Any]:
    """All events from the earliest to the first that is `enough`."""
    call = subscribe(api, "__activity", startPosition=api_pb2.EARLIEST)
    found = []
    for message in call:
        found.append(event_of(message))
        if enough(found[-1]):
            break
    call.cancel()
    return found


def numbered(count: int) -> Iterator[dict[str, Any]]:
    """Values and correlation ids from 0 on."""
    for number in itertools.islice(itertools.count(), count):
        yield {"value": b"%d" % number, "correlationId": f"{number}"}
