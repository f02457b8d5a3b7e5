"""What the activity stream tells of an operation: one event, made of the operation and its index alone.

The event of an operation is the same on every server and at every time, so whoever publishes it, after
whatever restart, publishes the same: a reader that gets one twice knows it by its id. Nothing of the state
goes into it, which may have moved on since.

An operation that is not in the table is not told of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from liftbridge.metadata.operations import (
    CreateStream,
    DeleteStream,
    JoinGroup,
    LeaveGroup,
    Operation,
    PauseStream,
    ResumeStream,
    SetStreamReadonly,
)
from liftbridge.proto import api_pb2


def stream_created(index: int, stream: str, partitions: Sequence[int]) -> api_pb2.ActivityStreamEvent:
    """A stream was created, with these partitions."""
    detail = api_pb2.CreateStreamOp(stream=stream, partitions=partitions)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.CREATE_STREAM, createStreamOp=detail)


def stream_deleted(index: int, stream: str) -> api_pb2.ActivityStreamEvent:
    """A stream was deleted."""
    detail = api_pb2.DeleteStreamOp(stream=stream)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.DELETE_STREAM, deleteStreamOp=detail)


def stream_paused(
    index: int, stream: str, partitions: Sequence[int], resume_all: bool
) -> api_pb2.ActivityStreamEvent:
    """These partitions were paused; `resume_all` says that a publish to one of them resumes all."""
    detail = api_pb2.PauseStreamOp(stream=stream, partitions=partitions, resumeAll=resume_all)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.PAUSE_STREAM, pauseStreamOp=detail)


def stream_resumed(index: int, stream: str, partitions: Sequence[int]) -> api_pb2.ActivityStreamEvent:
    """These partitions were resumed."""
    detail = api_pb2.ResumeStreamOp(stream=stream, partitions=partitions)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.RESUME_STREAM, resumeStreamOp=detail)


def stream_readonly(
    index: int, stream: str, partitions: Sequence[int], readonly: bool
) -> api_pb2.ActivityStreamEvent:
    """These partitions refuse new messages from now on, or accept them again."""
    detail = api_pb2.SetStreamReadonlyOp(stream=stream, partitions=partitions, readonly=readonly)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.SET_STREAM_READONLY, setStreamReadonlyOp=detail)


def group_joined(
    index: int, group: str, consumer: str, streams: Sequence[str]
) -> api_pb2.ActivityStreamEvent:
    """A consumer became a member of a group, which it may have created."""
    detail = api_pb2.JoinConsumerGroupOp(groupId=group, consumerId=consumer, streams=streams)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.JOIN_CONSUMER_GROUP, joinConsumerGroupOp=detail)


def group_left(index: int, group: str, consumer: str, expired: bool) -> api_pb2.ActivityStreamEvent:
    """A consumer is no member any more; `expired` when it was not heard of for too long."""
    detail = api_pb2.LeaveConsumerGroupOp(groupId=group, consumerId=consumer, expired=expired)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.LEAVE_CONSUMER_GROUP, leaveConsumerGroupOp=detail)


# One row an operation: the arguments are the index and the operation, of the type that the row is for.
_EVENTS: dict[type[Any], Callable[[int, Any], api_pb2.ActivityStreamEvent]] = {
    # -- streams
    CreateStream: lambda index, operation: stream_created(
        index, operation.name, range(len(operation.partitions))
    ),
    DeleteStream: lambda index, operation: stream_deleted(index, operation.name),
    # -- pausing, readonly
    PauseStream: lambda index, operation: stream_paused(
        index, operation.name, operation.partitions, operation.resume_all
    ),
    ResumeStream: lambda index, operation: stream_resumed(index, operation.name, operation.partitions),
    SetStreamReadonly: lambda index, operation: stream_readonly(
        index, operation.name, operation.partitions, operation.readonly
    ),
    # -- consumer groups
    JoinGroup: lambda index, operation: group_joined(
        index, operation.group_id, operation.consumer_id, operation.streams
    ),
    LeaveGroup: lambda index, operation: group_left(
        index, operation.group_id, operation.consumer_id, operation.expired
    ),
}


def event_of(index: int, operation: Operation) -> api_pb2.ActivityStreamEvent | None:
    """The event of the operation with that index, None when there is nothing to tell."""
    row = _EVENTS.get(type(operation))
    return None if row is None else row(index, operation)


def abridged(event: api_pb2.ActivityStreamEvent) -> api_pb2.ActivityStreamEvent:
    """The event without its lists of partitions and streams, which can be too long for one message."""
    short = api_pb2.ActivityStreamEvent()
    short.CopyFrom(event)
    for _, detail in short.ListFields():
        for name in ("partitions", "streams"):
            if name in getattr(getattr(detail, "DESCRIPTOR", None), "fields_by_name", ()):
                detail.ClearField(name)
    return short
