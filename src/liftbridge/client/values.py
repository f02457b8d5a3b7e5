"""What the client hands out and takes: messages, acks, metadata, positions; immutable and typed.

`Message` and `Ack` are named tuples, as a replay makes hundreds of thousands of them a second and nothing
else that is immutable is made as fast. All timestamps are nanoseconds since the Unix epoch, as in the API.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

from liftbridge.proto import api_pb2

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class AckPolicy(enum.IntEnum):
    """When a publish is acknowledged."""

    LEADER = 0
    """When the leader of the partition has stored the message."""
    ALL = 1
    """When it is committed: all in-sync replicas have it."""
    NONE = 2
    """Never: what goes wrong stays unknown."""


@dataclass(frozen=True)
class Timestamp:
    """A position in time, where a datetime (microseconds) is not exact enough."""

    nanoseconds: int
    """Since the Unix epoch."""


StartPosition = Literal["new", "earliest", "latest"] | int | datetime | Timestamp
"""Where a subscription begins: with what is published from now on, with the oldest message, with the newest,
at an offset, or at the first message that is not older than a time."""

StopPosition = Literal["latest"] | int | datetime | Timestamp | None
"""Where a subscription ends, inclusive: at what is the newest message now, at an offset, at the last message
that is not newer than a time; None for never."""


class Message(NamedTuple):
    """A message of a stream."""

    offset: int
    """Its place in the partition."""
    key: bytes
    """Empty if it has none: the API does not tell the two apart."""
    value: bytes
    timestamp: int
    """When the leader received it."""
    stream: str
    partition: int
    subject: str
    """The NATS subject it arrived on."""
    reply_subject: str
    headers: dict[str, bytes]
    """Those of the publisher, and `subject` and `reply`, which the server adds."""


class Ack(NamedTuple):
    """That a message is stored."""

    stream: str
    partition: int
    offset: int
    """The place the message got."""
    subject: str
    """The NATS subject it went through."""
    correlation_id: str
    reception_timestamp: int
    """Equals the stored message's timestamp."""
    commit_timestamp: int
    """When the ack was sent."""


class Outgoing(NamedTuple):
    """A message to publish, for `Publisher.send_batch`."""

    value: bytes
    key: bytes = b""
    headers: Mapping[str, bytes] = {}  # nobody writes into it
    partition: int | None = None
    """None leaves it to the partitioner."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A server of the cluster."""

    id: str
    host: str
    port: int
    partition_count: int
    """Partitions that are not paused and have a replica there."""
    leader_count: int
    """Of those, the ones it leads."""

    @property
    def address(self) -> str:
        """host:port, for connecting."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class EventTimestamps:
    """When something happened first and last since the server started; 0 for never."""

    first: int
    latest: int


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """A partition, as the server that answered knows it."""

    id: int
    leader: str
    """Server id; empty if there is none."""
    replicas: tuple[str, ...]
    isr: tuple[str, ...]
    high_watermark: int
    """Offset of the last committed message, -1 if there is none."""
    newest_offset: int
    """Offset of the last message, committed or not, -1 if there is none."""
    paused: bool
    readonly: bool
    received: EventTimestamps
    """Reception of messages; known to the leader only."""
    paused_changes: EventTimestamps
    readonly_changes: EventTimestamps


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream and its partitions by id."""

    name: str
    subject: str
    creation_timestamp: int
    partitions: Mapping[int, PartitionInfo]


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A consumer group."""

    id: str
    coordinator: str
    """Server id."""
    epoch: int
    """Changes with every change of the members, their streams or the coordinator."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a server knows of the cluster. Asked for by name, what does not exist is missing here."""

    brokers: Mapping[str, Broker]
    streams: Mapping[str, StreamInfo]
    groups: Mapping[str, GroupInfo] = field(default_factory=dict)


def message_of(raw: bytes) -> Message:
    """Decode a message.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    m = api_pb2.Message.FromString(raw)
    return Message(
        m.offset,
        m.key,
        m.value,
        m.timestamp,
        m.stream,
        m.partition,
        m.subject,
        m.replySubject,
        dict(m.headers),
    )


def ack_of(ack: Any, partition: int) -> Ack:
    """Translate an ack; the API's own does not name the partition."""
    return Ack(
        ack.stream,
        partition,
        ack.offset,
        ack.msgSubject,
        ack.correlationId,
        ack.receptionTimestamp,
        ack.commitTimestamp,
    )


def partition_of(entry: Any) -> PartitionInfo:
    """Translate the metadata of a partition."""
    return PartitionInfo(
        id=entry.id,
        leader=entry.leader,
        replicas=tuple(entry.replicas),
        isr=tuple(entry.isr),
        high_watermark=entry.highWatermark,
        newest_offset=entry.newestOffset,
        paused=entry.paused,
        readonly=entry.readonly,
        received=_events(entry.messagesReceivedTimestamps),
        paused_changes=_events(entry.pauseTimestamps),
        readonly_changes=_events(entry.readonlyTimestamps),
    )


def metadata_of(response: Any) -> Metadata:
    """Translate a FetchMetadataResponse."""
    return Metadata(
        brokers={
            b.id: Broker(b.id, b.host, b.port, b.partitionCount, b.leaderCount) for b in response.brokers
        },
        streams={
            entry.name: StreamInfo(
                name=entry.name,
                subject=entry.subject,
                creation_timestamp=entry.creationTimestamp,
                partitions={number: partition_of(entry.partitions[number]) for number in entry.partitions},
            )
            for entry in response.streamMetadata
            if entry.error == api_pb2.StreamMetadata.OK
        },
        groups={
            entry.groupId: GroupInfo(entry.groupId, entry.coordinator, entry.epoch)
            for entry in response.groupMetadata
            if entry.error == api_pb2.ConsumerGroupMetadata.OK
        },
    )


def nanoseconds_of(time: datetime | Timestamp) -> int:
    """Nanoseconds since the Unix epoch.

    Raises:
        ValueError: a datetime without a time zone, which could be any time of a day.
    """
    if isinstance(time, Timestamp):
        return time.nanoseconds
    if time.tzinfo is None:
        raise ValueError(f"{time!r} has no time zone: use datetime.now(timezone.utc) or .astimezone()")
    past = time - _EPOCH
    return (past.days * 86_400 + past.seconds) * 1_000_000_000 + past.microseconds * 1_000


def _events(entry: Any) -> EventTimestamps:
    return EventTimestamps(entry.firstTimestamp, entry.latestTimestamp)
