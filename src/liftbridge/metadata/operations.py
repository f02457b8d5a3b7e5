"""The operations that change what the cluster has agreed on, and their stored form.

An operation says everything that applying it needs: who leads, which UUID, what time it is. Applying is then
a pure function of state, index and operation, with the same result on every broker and at every replay.

The stored form is for ever, since journals outlive versions: a kind and a layout version, then a body. A kind
or version that this program does not know is an error that names it; it is never skipped, because a broker
that skips an operation disagrees with all the others from then on.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.message import DecodeError

from liftbridge.metadata import broker_operations, replica_operations
from liftbridge.metadata.broker_operations import BrokerOperation
from liftbridge.metadata.model import (
    NO_MORE,
    Guarantees,
    StreamSettings,
    decode_guarantees,
    decode_settings,
    encode_guarantees,
    encode_settings,
)
from liftbridge.metadata.placement import Placement
from liftbridge.metadata.replica_operations import ReplicaOperation
from liftbridge.metadata.stored import LAYOUT_VERSION, OperationError, decode_stream_id, envelope
from liftbridge.proto import internal_pb2

__all__ = [
    "ChangeGroupCoordinator",
    "ClusterOperation",
    "CreateStream",
    "DeleteStream",
    "GroupOperation",
    "JoinGroup",
    "LeaveGroup",
    "Operation",
    "OperationError",
    "PartitionOperation",
    "PauseStream",
    "ResumeStream",
    "SetStreamReadonly",
    "decode",
    "decode_stream_id",
]


@dataclass(frozen=True, slots=True)
class CreateStream:
    """Create a stream. ALREADY_EXISTS when the name is taken.

    Leader epoch and partition epoch of every partition become the index of the operation, and the in-sync
    replicas are all replicas but those known to be fenced: both follow from creating, so they are not
    in the operation.

    Attributes: as in `model.Stream`; partitions say by partition id where each is placed.
    """

    name: str
    subject: str
    group: str
    stream_id: uuid.UUID
    creation_ns: int
    settings: StreamSettings
    partitions: tuple[Placement, ...]
    guarantees: Guarantees = NO_MORE

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.CreateStream(
            name=self.name,
            subject=self.subject,
            group=self.group,
            stream_id=self.stream_id.bytes,
            creation_ns=self.creation_ns,
            settings=encode_settings(self.settings),
            partitions=[
                internal_pb2.Placement(replicas=placement.replicas, leader=placement.leader)
                for placement in self.partitions
            ],
            guarantees=encode_guarantees(self.guarantees),
        )
        return envelope(internal_pb2.CREATE_STREAM, body)


@dataclass(frozen=True, slots=True)
class DeleteStream:
    """Delete a stream. NOT_FOUND when there is none of that name, or when it is not the one meant.

    Attributes:
        name: its name.
        stream_id: its UUID: a request that was late must not delete a stream created anew under the name.
    """

    name: str
    stream_id: uuid.UUID

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.DeleteStream(name=self.name, stream_id=self.stream_id.bytes)
        return envelope(internal_pb2.DELETE_STREAM, body)


@dataclass(frozen=True, slots=True)
class PauseStream:
    """Release what partitions take up until they are resumed. NOT_FOUND as in `DeleteStream`, or for a
    partition.

    Attributes:
        name, stream_id: as in `DeleteStream`.
        partitions: their ids; none stands for all.
        resume_all: whether a publish to one paused partition resumes them all.
        time_ns: when, ns since the epoch.
    """

    name: str
    stream_id: uuid.UUID
    partitions: tuple[int, ...]
    resume_all: bool
    time_ns: int

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.PauseStream(
            name=self.name,
            stream_id=self.stream_id.bytes,
            partitions=self.partitions,
            resume_all=self.resume_all,
            time_ns=self.time_ns,
        )
        return envelope(internal_pb2.PAUSE_STREAM, body)


@dataclass(frozen=True, slots=True)
class ResumeStream:
    """Run paused partitions again; attributes and errors are those of `PauseStream`."""

    name: str
    stream_id: uuid.UUID
    partitions: tuple[int, ...]
    time_ns: int

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.ResumeStream(
            name=self.name,
            stream_id=self.stream_id.bytes,
            partitions=self.partitions,
            time_ns=self.time_ns,
        )
        return envelope(internal_pb2.RESUME_STREAM, body)


@dataclass(frozen=True, slots=True)
class SetStreamReadonly:
    """Refuse new messages, or take them again; attributes and errors are those of `PauseStream`."""

    name: str
    stream_id: uuid.UUID
    partitions: tuple[int, ...]
    readonly: bool
    time_ns: int

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.SetStreamReadonly(
            name=self.name,
            stream_id=self.stream_id.bytes,
            partitions=self.partitions,
            readonly=self.readonly,
            time_ns=self.time_ns,
        )
        return envelope(internal_pb2.SET_STREAM_READONLY, body)


@dataclass(frozen=True, slots=True)
class JoinGroup:
    """A consumer joins a group, which begins with its first member.

    FAILED_PRECONDITION when it is a member already or a stream does not exist, RESOURCE_EXHAUSTED at a limit.

    Attributes:
        group_id, consumer_id: who joins what.
        streams: names of those it wants to consume, in ascending order, each once.
        coordinator: id of the broker that coordinates the group, if this is its first member.
    """

    group_id: str
    consumer_id: str
    streams: tuple[str, ...]
    coordinator: str

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.JoinGroup(
            group_id=self.group_id,
            consumer_id=self.consumer_id,
            streams=self.streams,
            coordinator=self.coordinator,
        )
        return envelope(internal_pb2.JOIN_GROUP, body)


@dataclass(frozen=True, slots=True)
class LeaveGroup:
    """A consumer leaves its group. NOT_FOUND without such a group, FAILED_PRECONDITION when it is no member.

    Attributes:
        group_id, consumer_id: who leaves what.
        joined: index of the operation by which it joined: what was decided of an earlier membership must not
            end a later one under the same id.
        expired: whether it was not heard of for too long, instead of leaving by itself.
    """

    group_id: str
    consumer_id: str
    joined: int
    expired: bool = False

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.LeaveGroup(
            group_id=self.group_id, consumer_id=self.consumer_id, joined=self.joined, expired=self.expired
        )
        return envelope(internal_pb2.LEAVE_GROUP, body)


@dataclass(frozen=True, slots=True)
class ChangeGroupCoordinator:
    """Another broker is to coordinate a group. NOT_FOUND without such a group, FAILED_PRECONDITION when it
    has changed since this was decided.

    Attributes:
        group_id: the group.
        coordinator: id of the broker.
        epoch: of the group when this was decided.
    """

    group_id: str
    coordinator: str
    epoch: int

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.ChangeGroupCoordinator(
            group_id=self.group_id, coordinator=self.coordinator, epoch=self.epoch
        )
        return envelope(internal_pb2.CHANGE_GROUP_COORDINATOR, body)


GroupOperation: TypeAlias = JoinGroup | LeaveGroup | ChangeGroupCoordinator
PartitionOperation: TypeAlias = PauseStream | ResumeStream | SetStreamReadonly
ClusterOperation: TypeAlias = ReplicaOperation | BrokerOperation
Operation: TypeAlias = CreateStream | DeleteStream | PartitionOperation | GroupOperation | ClusterOperation


def decode(data: bytes) -> Operation:
    """The operation that `encode` stored as `data`.

    Raises OperationError when `data` is damaged or comes from a version of the program that knows more.
    """
    envelope = internal_pb2.Operation()
    try:
        envelope.ParseFromString(data)
    except DecodeError as error:
        raise OperationError(f"not an operation: {error}") from error
    decoder = _DECODERS.get(envelope.kind)
    if decoder is None:
        raise OperationError(
            f"operation of kind {envelope.kind} is not known to this version of liftbridge; "
            "start the version that wrote it, or a newer one"
        )
    if envelope.version != LAYOUT_VERSION:
        raise OperationError(
            f"operation {internal_pb2.OperationKind.Name(envelope.kind)} has layout version "
            f"{envelope.version}, this version of liftbridge knows {LAYOUT_VERSION}; "
            "start the version that wrote it, or a newer one"
        )
    try:
        return decoder(envelope.body)
    except DecodeError as error:
        raise OperationError(
            f"body of operation {internal_pb2.OperationKind.Name(envelope.kind)} is damaged: {error}"
        ) from error


def _decode_create_stream(body: bytes) -> CreateStream:
    message = internal_pb2.CreateStream.FromString(body)
    return CreateStream(
        name=message.name,
        subject=message.subject,
        group=message.group,
        stream_id=decode_stream_id(message.stream_id),
        creation_ns=message.creation_ns,
        settings=decode_settings(message.settings),
        partitions=tuple(
            Placement(replicas=tuple(placement.replicas), leader=placement.leader)
            for placement in message.partitions
        ),
        guarantees=decode_guarantees(message.guarantees),
    )


def _decode_delete_stream(body: bytes) -> DeleteStream:
    message = internal_pb2.DeleteStream.FromString(body)
    return DeleteStream(name=message.name, stream_id=decode_stream_id(message.stream_id))


def _decode_pause_stream(body: bytes) -> PauseStream:
    message = internal_pb2.PauseStream.FromString(body)
    return PauseStream(
        name=message.name,
        stream_id=decode_stream_id(message.stream_id),
        partitions=tuple(message.partitions),
        resume_all=message.resume_all,
        time_ns=message.time_ns,
    )


def _decode_resume_stream(body: bytes) -> ResumeStream:
    message = internal_pb2.ResumeStream.FromString(body)
    return ResumeStream(
        name=message.name,
        stream_id=decode_stream_id(message.stream_id),
        partitions=tuple(message.partitions),
        time_ns=message.time_ns,
    )


def _decode_set_stream_readonly(body: bytes) -> SetStreamReadonly:
    message = internal_pb2.SetStreamReadonly.FromString(body)
    return SetStreamReadonly(
        name=message.name,
        stream_id=decode_stream_id(message.stream_id),
        partitions=tuple(message.partitions),
        readonly=message.readonly,
        time_ns=message.time_ns,
    )


def _decode_join_group(body: bytes) -> JoinGroup:
    message = internal_pb2.JoinGroup.FromString(body)
    return JoinGroup(message.group_id, message.consumer_id, tuple(message.streams), message.coordinator)


def _decode_leave_group(body: bytes) -> LeaveGroup:
    message = internal_pb2.LeaveGroup.FromString(body)
    return LeaveGroup(message.group_id, message.consumer_id, message.joined, message.expired)


def _decode_change_group_coordinator(body: bytes) -> ChangeGroupCoordinator:
    message = internal_pb2.ChangeGroupCoordinator.FromString(body)
    return ChangeGroupCoordinator(message.group_id, message.coordinator, message.epoch)


_DECODERS: dict[int, Callable[[bytes], Operation]] = {
    internal_pb2.CREATE_STREAM: _decode_create_stream,
    internal_pb2.DELETE_STREAM: _decode_delete_stream,
    internal_pb2.PAUSE_STREAM: _decode_pause_stream,
    internal_pb2.RESUME_STREAM: _decode_resume_stream,
    internal_pb2.SET_STREAM_READONLY: _decode_set_stream_readonly,
    internal_pb2.JOIN_GROUP: _decode_join_group,
    internal_pb2.LEAVE_GROUP: _decode_leave_group,
    internal_pb2.CHANGE_GROUP_COORDINATOR: _decode_change_group_coordinator,
    **replica_operations.DECODERS,
    **broker_operations.DECODERS,
}
