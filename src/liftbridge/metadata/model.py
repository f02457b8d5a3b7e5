"""What the cluster knows of streams and partitions: immutable values.

The state machine replaces values, it never changes them: whoever holds a `Stream` holds one consistent
version of it, and a snapshot can be written from another thread.

A stream is identified by its UUID. The name belongs to it as long as it exists, but deleting it and creating
another of the same name gives another UUID, so that files and messages of the first are never taken for those
of the second.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, fields
from typing import Any

from liftbridge.proto import api_pb2, internal_pb2


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What a stream sets for itself; None means that the server's setting holds. 0 and False are settings.

    Fields ending in _ms are milliseconds, those ending in _bytes bytes, as in `CreateStreamRequest`.
    """

    retention_max_bytes: int | None = None
    retention_max_messages: int | None = None
    retention_max_age_ms: int | None = None
    cleaner_interval_ms: int | None = None
    segment_max_bytes: int | None = None
    segment_max_age_ms: int | None = None
    compact_max_goroutines: int | None = None
    compact_enabled: bool | None = None
    auto_pause_time_ms: int | None = None
    auto_pause_disable_if_subscribers: bool | None = None
    min_isr: int | None = None
    optimistic_concurrency_control: bool | None = None
    encryption: bool | None = None
    compression: str | None = None
    sync_policy: str | None = None


# Each setting and the field of CreateStreamRequest it comes from.
REQUEST_FIELDS = {
    "retention_max_bytes": "retentionMaxBytes",
    "retention_max_messages": "retentionMaxMessages",
    "retention_max_age_ms": "retentionMaxAge",
    "cleaner_interval_ms": "cleanerInterval",
    "segment_max_bytes": "segmentMaxBytes",
    "segment_max_age_ms": "segmentMaxAge",
    "compact_max_goroutines": "compactMaxGoroutines",
    "compact_enabled": "compactEnabled",
    "auto_pause_time_ms": "autoPauseTime",
    "auto_pause_disable_if_subscribers": "autoPauseDisableIfSubscribers",
    "min_isr": "minIsr",
    "optimistic_concurrency_control": "optimisticConcurrencyControl",
    "encryption": "encryption",
    "compression": "compression",
    "sync_policy": "syncPolicy",
}
assert tuple(REQUEST_FIELDS) == tuple(field.name for field in fields(StreamSettings))


@dataclass(frozen=True, slots=True)
class Times:
    """When something changed first and latest, in ns since the epoch; 0 = never."""

    first_ns: int = 0
    latest_ns: int = 0

    def noted(self, now_ns: int) -> Times:
        """The times after one more change."""
        return Times(self.first_ns or now_ns, now_ns)


# Shared by all partitions to which nothing has happened, as most of them.
NEVER = Times()


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What elections must know of a stream; the same on all servers, whatever their configuration says.

    Attributes:
        min_isr: with fewer in-sync replicas nothing is committed.
        unclean_election: whether a replica that may lack committed messages may lead, if no other can.
        synced: whether only what is on disk counts as replicated, so that a loss of power loses nothing that
            was committed.
    """

    min_isr: int = 1
    unclean_election: bool = False
    synced: bool = False


# Shared by the streams that want nothing else.
NO_MORE = Guarantees()


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a stream, as the cluster has agreed on it.

    Attributes:
        id: its number in the stream, from 0.
        replicas: ids of the brokers that hold it, in order of placement.
        isr: the replicas that are in sync; the leader is always among them. None when nobody leads.
        leader: id of the broker that leads it, "" when none can: the partition is offline.
        leader_epoch: index of the operation that made it leader, or took the last one away; fences whatever
            an earlier leader does.
        epoch: index of the operation that last changed replicas, isr or leader.
        paused: whether its resources are released until it is resumed.
        readonly: whether new messages are refused.
        pause_times: when it was paused or resumed.
        readonly_times: when it became readonly or writable.
        elr: eligible leader replicas, which left the in-sync ones when nothing could be committed without
            them any more: they have every committed message (KIP-966).
        last_known: replicas that were in sync or eligible when too few stayed, and have lost what they had
            not synced: the most complete of them has what is left, should nobody else be.
        unclean_epoch: leader epoch of the last election that may have lost committed messages, 0 for none.
        adding: those of `replicas` that a reassignment adds, until they are in sync.
        removing: those of `replicas` that it removes then.
    """

    id: int
    replicas: tuple[str, ...]
    isr: tuple[str, ...]
    leader: str
    leader_epoch: int
    epoch: int
    paused: bool = False
    readonly: bool = False
    pause_times: Times = NEVER
    readonly_times: Times = NEVER
    elr: tuple[str, ...] = ()
    last_known: tuple[str, ...] = ()
    unclean_epoch: int = 0
    adding: tuple[str, ...] = ()
    removing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream, as the cluster has agreed on it.

    Attributes:
        name: unique among the streams that exist.
        subject: the NATS subject of partition 0; partition N listens on `<subject>.<N>`.
        group: NATS queue group of the subscriptions, empty for none.
        stream_id: UUID, unique for ever; directories and internal addresses carry it.
        creation_ns: when it was created, ns since the epoch.
        settings: what it overrides.
        partitions: by partition id.
        resume_all: whether a publish to one paused partition resumes them all.
        guarantees: what elections must know of it.
    """

    name: str
    subject: str
    group: str
    stream_id: uuid.UUID
    creation_ns: int
    settings: StreamSettings
    partitions: tuple[Partition, ...]
    resume_all: bool = False
    guarantees: Guarantees = NO_MORE

    def partition_subject(self, partition_id: int) -> str:
        """The NATS subject of a partition."""
        return f"{self.subject}.{partition_id}" if partition_id else self.subject


def settings_of_request(request: api_pb2.CreateStreamRequest) -> StreamSettings:
    """The settings a client asks for; a wrapper that is present counts, even when its value is 0 or false.

    Texts have no wrapper: an empty one asks for nothing.
    """
    found: dict[str, Any] = {}
    for name, field in REQUEST_FIELDS.items():
        value = getattr(request, field)
        if isinstance(value, str):
            if value:
                found[name] = value
        elif request.HasField(field):
            found[name] = value.value
    return StreamSettings(**found)


def encode_settings(settings: StreamSettings) -> internal_pb2.StreamSettings:
    """The stored form of a stream's settings."""
    message = internal_pb2.StreamSettings()
    for name in REQUEST_FIELDS:
        value = getattr(settings, name)
        if value is not None:
            setattr(message, name, value)
    return message


def decode_settings(message: internal_pb2.StreamSettings) -> StreamSettings:
    """The settings that `encode_settings` stored."""
    return StreamSettings(
        **{name: getattr(message, name) for name in REQUEST_FIELDS if message.HasField(name)}
    )


def encode_guarantees(guarantees: Guarantees) -> internal_pb2.Guarantees | None:
    """The stored form of guarantees, None for the defaults."""
    if guarantees == NO_MORE:
        return None
    return internal_pb2.Guarantees(
        min_isr=guarantees.min_isr, unclean_election=guarantees.unclean_election, synced=guarantees.synced
    )


def decode_guarantees(message: internal_pb2.Guarantees) -> Guarantees:
    """The guarantees that `encode_guarantees` stored."""
    found = Guarantees(message.min_isr or 1, message.unclean_election, message.synced)
    return NO_MORE if found == NO_MORE else found
