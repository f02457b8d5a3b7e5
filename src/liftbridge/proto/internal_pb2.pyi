from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[OperationKind]
    CREATE_STREAM: _ClassVar[OperationKind]
    DELETE_STREAM: _ClassVar[OperationKind]
    PAUSE_STREAM: _ClassVar[OperationKind]
    RESUME_STREAM: _ClassVar[OperationKind]
    SET_STREAM_READONLY: _ClassVar[OperationKind]
    ALTER_ISR: _ClassVar[OperationKind]
    CHANGE_LEADERS: _ClassVar[OperationKind]
    REASSIGN_PARTITIONS: _ClassVar[OperationKind]
    WITHDRAW_REPLICAS: _ClassVar[OperationKind]
    JOIN_GROUP: _ClassVar[OperationKind]
    LEAVE_GROUP: _ClassVar[OperationKind]
    CHANGE_GROUP_COORDINATOR: _ClassVar[OperationKind]
    REGISTER_BROKER: _ClassVar[OperationKind]
    FENCE_BROKER: _ClassVar[OperationKind]
    UNFENCE_BROKER: _ClassVar[OperationKind]
    DRAIN_BROKER: _ClassVar[OperationKind]
    UNREGISTER_BROKER: _ClassVar[OperationKind]
OPERATION_UNSPECIFIED: OperationKind
CREATE_STREAM: OperationKind
DELETE_STREAM: OperationKind
PAUSE_STREAM: OperationKind
RESUME_STREAM: OperationKind
SET_STREAM_READONLY: OperationKind
ALTER_ISR: OperationKind
CHANGE_LEADERS: OperationKind
REASSIGN_PARTITIONS: OperationKind
WITHDRAW_REPLICAS: OperationKind
JOIN_GROUP: OperationKind
LEAVE_GROUP: OperationKind
CHANGE_GROUP_COORDINATOR: OperationKind
REGISTER_BROKER: OperationKind
FENCE_BROKER: OperationKind
UNFENCE_BROKER: OperationKind
DRAIN_BROKER: OperationKind
UNREGISTER_BROKER: OperationKind

class ServerState(_message.Message):
    __slots__ = ("server_id", "cluster_id", "crc")
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CRC_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    cluster_id: bytes
    crc: int
    def __init__(self, server_id: _Optional[str] = ..., cluster_id: _Optional[bytes] = ..., crc: _Optional[int] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("version", "kind", "body")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    version: int
    kind: OperationKind
    body: bytes
    def __init__(self, version: _Optional[int] = ..., kind: _Optional[_Union[OperationKind, str]] = ..., body: _Optional[bytes] = ...) -> None: ...

class StreamSettings(_message.Message):
    __slots__ = ("retention_max_bytes", "retention_max_messages", "retention_max_age_ms", "cleaner_interval_ms", "segment_max_bytes", "segment_max_age_ms", "compact_max_goroutines", "compact_enabled", "auto_pause_time_ms", "auto_pause_disable_if_subscribers", "min_isr", "optimistic_concurrency_control", "encryption", "compression", "sync_policy")
    RETENTION_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    RETENTION_MAX_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    RETENTION_MAX_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    CLEANER_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_MAX_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPACT_MAX_GOROUTINES_FIELD_NUMBER: _ClassVar[int]
    COMPACT_ENABLED_FIELD_NUMBER: _ClassVar[int]
    AUTO_PAUSE_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    AUTO_PAUSE_DISABLE_IF_SUBSCRIBERS_FIELD_NUMBER: _ClassVar[int]
    MIN_ISR_FIELD_NUMBER: _ClassVar[int]
    OPTIMISTIC_CONCURRENCY_CONTROL_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTION_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    SYNC_POLICY_FIELD_NUMBER: _ClassVar[int]
    retention_max_bytes: int
    retention_max_messages: int
    retention_max_age_ms: int
    cleaner_interval_ms: int
    segment_max_bytes: int
    segment_max_age_ms: int
    compact_max_goroutines: int
    compact_enabled: bool
    auto_pause_time_ms: int
    auto_pause_disable_if_subscribers: bool
    min_isr: int
    optimistic_concurrency_control: bool
    encryption: bool
    compression: str
    sync_policy: str
    def __init__(self, retention_max_bytes: _Optional[int] = ..., retention_max_messages: _Optional[int] = ..., retention_max_age_ms: _Optional[int] = ..., cleaner_interval_ms: _Optional[int] = ..., segment_max_bytes: _Optional[int] = ..., segment_max_age_ms: _Optional[int] = ..., compact_max_goroutines: _Optional[int] = ..., compact_enabled: bool = ..., auto_pause_time_ms: _Optional[int] = ..., auto_pause_disable_if_subscribers: bool = ..., min_isr: _Optional[int] = ..., optimistic_concurrency_control: bool = ..., encryption: bool = ..., compression: _Optional[str] = ..., sync_policy: _Optional[str] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("replicas", "leader")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedScalarFieldContainer[str]
    leader: str
    def __init__(self, replicas: _Optional[_Iterable[str]] = ..., leader: _Optional[str] = ...) -> None: ...

class Guarantees(_message.Message):
    __slots__ = ("min_isr", "unclean_election", "synced")
    MIN_ISR_FIELD_NUMBER: _ClassVar[int]
    UNCLEAN_ELECTION_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    min_isr: int
    unclean_election: bool
    synced: bool
    def __init__(self, min_isr: _Optional[int] = ..., unclean_election: bool = ..., synced: bool = ...) -> None: ...

class CreateStream(_message.Message):
    __slots__ = ("name", "subject", "group", "stream_id", "creation_ns", "settings", "partitions", "guarantees")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    CREATION_NS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    GUARANTEES_FIELD_NUMBER: _ClassVar[int]
    name: str
    subject: str
    group: str
    stream_id: bytes
    creation_ns: int
    settings: StreamSettings
    partitions: _containers.RepeatedCompositeFieldContainer[Placement]
    guarantees: Guarantees
    def __init__(self, name: _Optional[str] = ..., subject: _Optional[str] = ..., group: _Optional[str] = ..., stream_id: _Optional[bytes] = ..., creation_ns: _Optional[int] = ..., settings: _Optional[_Union[StreamSettings, _Mapping]] = ..., partitions: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., guarantees: _Optional[_Union[Guarantees, _Mapping]] = ...) -> None: ...

class DeleteStream(_message.Message):
    __slots__ = ("name", "stream_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    stream_id: bytes
    def __init__(self, name: _Optional[str] = ..., stream_id: _Optional[bytes] = ...) -> None: ...

class JoinGroup(_message.Message):
    __slots__ = ("group_id", "consumer_id", "streams", "coordinator")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    consumer_id: str
    streams: _containers.RepeatedScalarFieldContainer[str]
    coordinator: str
    def __init__(self, group_id: _Optional[str] = ..., consumer_id: _Optional[str] = ..., streams: _Optional[_Iterable[str]] = ..., coordinator: _Optional[str] = ...) -> None: ...

class LeaveGroup(_message.Message):
    __slots__ = ("group_id", "consumer_id", "joined", "expired")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    consumer_id: str
    joined: int
    expired: bool
    def __init__(self, group_id: _Optional[str] = ..., consumer_id: _Optional[str] = ..., joined: _Optional[int] = ..., expired: bool = ...) -> None: ...

class ChangeGroupCoordinator(_message.Message):
    __slots__ = ("group_id", "coordinator", "epoch")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    coordinator: str
    epoch: int
    def __init__(self, group_id: _Optional[str] = ..., coordinator: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class PauseStream(_message.Message):
    __slots__ = ("name", "stream_id", "partitions", "resume_all", "time_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    RESUME_ALL_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    stream_id: bytes
    partitions: _containers.RepeatedScalarFieldContainer[int]
    resume_all: bool
    time_ns: int
    def __init__(self, name: _Optional[str] = ..., stream_id: _Optional[bytes] = ..., partitions: _Optional[_Iterable[int]] = ..., resume_all: bool = ..., time_ns: _Optional[int] = ...) -> None: ...

class ResumeStream(_message.Message):
    __slots__ = ("name", "stream_id", "partitions", "time_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    stream_id: bytes
    partitions: _containers.RepeatedScalarFieldContainer[int]
    time_ns: int
    def __init__(self, name: _Optional[str] = ..., stream_id: _Optional[bytes] = ..., partitions: _Optional[_Iterable[int]] = ..., time_ns: _Optional[int] = ...) -> None: ...

class SetStreamReadonly(_message.Message):
    __slots__ = ("name", "stream_id", "partitions", "readonly", "time_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    READONLY_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    stream_id: bytes
    partitions: _containers.RepeatedScalarFieldContainer[int]
    readonly: bool
    time_ns: int
    def __init__(self, name: _Optional[str] = ..., stream_id: _Optional[bytes] = ..., partitions: _Optional[_Iterable[int]] = ..., readonly: bool = ..., time_ns: _Optional[int] = ...) -> None: ...

class IsrMember(_message.Message):
    __slots__ = ("broker", "broker_epoch")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    broker: str
    broker_epoch: int
    def __init__(self, broker: _Optional[str] = ..., broker_epoch: _Optional[int] = ...) -> None: ...

class IsrChange(_message.Message):
    __slots__ = ("stream_id", "partition", "epoch", "leader", "leader_epoch", "isr", "lost")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ISR_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    stream_id: bytes
    partition: int
    epoch: int
    leader: str
    leader_epoch: int
    isr: _containers.RepeatedCompositeFieldContainer[IsrMember]
    lost: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stream_id: _Optional[bytes] = ..., partition: _Optional[int] = ..., epoch: _Optional[int] = ..., leader: _Optional[str] = ..., leader_epoch: _Optional[int] = ..., isr: _Optional[_Iterable[_Union[IsrMember, _Mapping]]] = ..., lost: _Optional[_Iterable[str]] = ...) -> None: ...

class AlterIsr(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[IsrChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[IsrChange, _Mapping]]] = ...) -> None: ...

class LeaderChange(_message.Message):
    __slots__ = ("stream_id", "partition", "epoch", "leader", "mode")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    stream_id: bytes
    partition: int
    epoch: int
    leader: str
    mode: int
    def __init__(self, stream_id: _Optional[bytes] = ..., partition: _Optional[int] = ..., epoch: _Optional[int] = ..., leader: _Optional[str] = ..., mode: _Optional[int] = ...) -> None: ...

class ChangeLeaders(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[LeaderChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[LeaderChange, _Mapping]]] = ...) -> None: ...

class Reassignment(_message.Message):
    __slots__ = ("stream_id", "partition", "epoch", "replicas")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    stream_id: bytes
    partition: int
    epoch: int
    replicas: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stream_id: _Optional[bytes] = ..., partition: _Optional[int] = ..., epoch: _Optional[int] = ..., replicas: _Optional[_Iterable[str]] = ...) -> None: ...

class ReassignPartitions(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Reassignment]
    def __init__(self, changes: _Optional[_Iterable[_Union[Reassignment, _Mapping]]] = ...) -> None: ...

class ReplicaId(_message.Message):
    __slots__ = ("stream_id", "partition")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    stream_id: bytes
    partition: int
    def __init__(self, stream_id: _Optional[bytes] = ..., partition: _Optional[int] = ...) -> None: ...

class WithdrawReplicas(_message.Message):
    __slots__ = ("broker", "broker_epoch", "replicas", "lost")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    broker: str
    broker_epoch: int
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaId]
    lost: bool
    def __init__(self, broker: _Optional[str] = ..., broker_epoch: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[ReplicaId, _Mapping]]] = ..., lost: bool = ...) -> None: ...

class LeaderWish(_message.Message):
    __slots__ = ("stream_id", "partition", "leader")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    stream_id: bytes
    partition: int
    leader: str
    def __init__(self, stream_id: _Optional[bytes] = ..., partition: _Optional[int] = ..., leader: _Optional[str] = ...) -> None: ...

class RegisterBroker(_message.Message):
    __slots__ = ("broker", "incarnation", "addresses", "rack", "feature_level", "ended", "node_id")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    FEATURE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    broker: str
    incarnation: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    rack: str
    feature_level: int
    ended: int
    node_id: int
    def __init__(self, broker: _Optional[str] = ..., incarnation: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ..., rack: _Optional[str] = ..., feature_level: _Optional[int] = ..., ended: _Optional[int] = ..., node_id: _Optional[int] = ...) -> None: ...

class FenceBroker(_message.Message):
    __slots__ = ("broker", "broker_epoch", "wishes")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    WISHES_FIELD_NUMBER: _ClassVar[int]
    broker: str
    broker_epoch: int
    wishes: _containers.RepeatedCompositeFieldContainer[LeaderWish]
    def __init__(self, broker: _Optional[str] = ..., broker_epoch: _Optional[int] = ..., wishes: _Optional[_Iterable[_Union[LeaderWish, _Mapping]]] = ...) -> None: ...

class UnfenceBroker(_message.Message):
    __slots__ = ("broker", "broker_epoch")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    broker: str
    broker_epoch: int
    def __init__(self, broker: _Optional[str] = ..., broker_epoch: _Optional[int] = ...) -> None: ...

class DrainBroker(_message.Message):
    __slots__ = ("broker", "broker_epoch", "wishes")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    WISHES_FIELD_NUMBER: _ClassVar[int]
    broker: str
    broker_epoch: int
    wishes: _containers.RepeatedCompositeFieldContainer[LeaderWish]
    def __init__(self, broker: _Optional[str] = ..., broker_epoch: _Optional[int] = ..., wishes: _Optional[_Iterable[_Union[LeaderWish, _Mapping]]] = ...) -> None: ...

class UnregisterBroker(_message.Message):
    __slots__ = ("broker", "broker_epoch")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    broker: str
    broker_epoch: int
    def __init__(self, broker: _Optional[str] = ..., broker_epoch: _Optional[int] = ...) -> None: ...

class BrokerRecord(_message.Message):
    __slots__ = ("broker", "incarnation", "broker_epoch", "addresses", "rack", "feature_level", "ended", "state", "node_id")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    FEATURE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    broker: str
    incarnation: bytes
    broker_epoch: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    rack: str
    feature_level: int
    ended: int
    state: int
    node_id: int
    def __init__(self, broker: _Optional[str] = ..., incarnation: _Optional[bytes] = ..., broker_epoch: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., rack: _Optional[str] = ..., feature_level: _Optional[int] = ..., ended: _Optional[int] = ..., state: _Optional[int] = ..., node_id: _Optional[int] = ...) -> None: ...

class PartitionState(_message.Message):
    __slots__ = ("replicas", "isr", "leader", "leader_epoch", "epoch", "paused", "readonly", "pause_first_ns", "pause_latest_ns", "readonly_first_ns", "readonly_latest_ns", "elr", "last_known", "unclean_epoch", "adding", "removing")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ISR_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    READONLY_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIRST_NS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_LATEST_NS_FIELD_NUMBER: _ClassVar[int]
    READONLY_FIRST_NS_FIELD_NUMBER: _ClassVar[int]
    READONLY_LATEST_NS_FIELD_NUMBER: _ClassVar[int]
    ELR_FIELD_NUMBER: _ClassVar[int]
    LAST_KNOWN_FIELD_NUMBER: _ClassVar[int]
    UNCLEAN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDING_FIELD_NUMBER: _ClassVar[int]
    REMOVING_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedScalarFieldContainer[str]
    isr: _containers.RepeatedScalarFieldContainer[str]
    leader: str
    leader_epoch: int
    epoch: int
    paused: bool
    readonly: bool
    pause_first_ns: int
    pause_latest_ns: int
    readonly_first_ns: int
    readonly_latest_ns: int
    elr: _containers.RepeatedScalarFieldContainer[str]
    last_known: _containers.RepeatedScalarFieldContainer[str]
    unclean_epoch: int
    adding: _containers.RepeatedScalarFieldContainer[str]
    removing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, replicas: _Optional[_Iterable[str]] = ..., isr: _Optional[_Iterable[str]] = ..., leader: _Optional[str] = ..., leader_epoch: _Optional[int] = ..., epoch: _Optional[int] = ..., paused: bool = ..., readonly: bool = ..., pause_first_ns: _Optional[int] = ..., pause_latest_ns: _Optional[int] = ..., readonly_first_ns: _Optional[int] = ..., readonly_latest_ns: _Optional[int] = ..., elr: _Optional[_Iterable[str]] = ..., last_known: _Optional[_Iterable[str]] = ..., unclean_epoch: _Optional[int] = ..., adding: _Optional[_Iterable[str]] = ..., removing: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamState(_message.Message):
    __slots__ = ("name", "subject", "group", "stream_id", "creation_ns", "settings", "partitions", "resume_all", "guarantees")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    CREATION_NS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    RESUME_ALL_FIELD_NUMBER: _ClassVar[int]
    GUARANTEES_FIELD_NUMBER: _ClassVar[int]
    name: str
    subject: str
    group: str
    stream_id: bytes
    creation_ns: int
    settings: StreamSettings
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionState]
    resume_all: bool
    guarantees: Guarantees
    def __init__(self, name: _Optional[str] = ..., subject: _Optional[str] = ..., group: _Optional[str] = ..., stream_id: _Optional[bytes] = ..., creation_ns: _Optional[int] = ..., settings: _Optional[_Union[StreamSettings, _Mapping]] = ..., partitions: _Optional[_Iterable[_Union[PartitionState, _Mapping]]] = ..., resume_all: bool = ..., guarantees: _Optional[_Union[Guarantees, _Mapping]] = ...) -> None: ...

class GroupSubscription(_message.Message):
    __slots__ = ("stream", "partitions")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    partitions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stream: _Optional[int] = ..., partitions: _Optional[_Iterable[int]] = ...) -> None: ...

class GroupMember(_message.Message):
    __slots__ = ("consumer_id", "joined", "subscriptions")
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTIONS_FIELD_NUMBER: _ClassVar[int]
    consumer_id: str
    joined: int
    subscriptions: _containers.RepeatedCompositeFieldContainer[GroupSubscription]
    def __init__(self, consumer_id: _Optional[str] = ..., joined: _Optional[int] = ..., subscriptions: _Optional[_Iterable[_Union[GroupSubscription, _Mapping]]] = ...) -> None: ...

class GroupState(_message.Message):
    __slots__ = ("group_id", "coordinator", "epoch", "streams", "members")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    coordinator: str
    epoch: int
    streams: _containers.RepeatedScalarFieldContainer[str]
    members: _containers.RepeatedCompositeFieldContainer[GroupMember]
    def __init__(self, group_id: _Optional[str] = ..., coordinator: _Optional[str] = ..., epoch: _Optional[int] = ..., streams: _Optional[_Iterable[str]] = ..., members: _Optional[_Iterable[_Union[GroupMember, _Mapping]]] = ...) -> None: ...

class ClusterSnapshot(_message.Message):
    __slots__ = ("version", "applied_index", "streams", "deleted_stream_ids", "groups", "brokers")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    DELETED_STREAM_IDS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    version: int
    applied_index: int
    streams: _containers.RepeatedCompositeFieldContainer[StreamState]
    deleted_stream_ids: _containers.RepeatedScalarFieldContainer[bytes]
    groups: _containers.RepeatedCompositeFieldContainer[GroupState]
    brokers: _containers.RepeatedCompositeFieldContainer[BrokerRecord]
    def __init__(self, version: _Optional[int] = ..., applied_index: _Optional[int] = ..., streams: _Optional[_Iterable[_Union[StreamState, _Mapping]]] = ..., deleted_stream_ids: _Optional[_Iterable[bytes]] = ..., groups: _Optional[_Iterable[_Union[GroupState, _Mapping]]] = ..., brokers: _Optional[_Iterable[_Union[BrokerRecord, _Mapping]]] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("stream", "partition", "cursor_id", "offset")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    CURSOR_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    stream: str
    partition: int
    cursor_id: str
    offset: int
    def __init__(self, stream: _Optional[str] = ..., partition: _Optional[int] = ..., cursor_id: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class RaftMembers(_message.Message):
    __slots__ = ("voters", "learners")
    VOTERS_FIELD_NUMBER: _ClassVar[int]
    LEARNERS_FIELD_NUMBER: _ClassVar[int]
    voters: _containers.RepeatedScalarFieldContainer[int]
    learners: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, voters: _Optional[_Iterable[int]] = ..., learners: _Optional[_Iterable[int]] = ...) -> None: ...

class RaftEntry(_message.Message):
    __slots__ = ("index", "term", "kind", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    kind: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., kind: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RaftSnapshotMeta(_message.Message):
    __slots__ = ("index", "term", "members")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    members: RaftMembers
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., members: _Optional[_Union[RaftMembers, _Mapping]] = ...) -> None: ...

class RaftVoteRequest(_message.Message):
    __slots__ = ("pre", "last_index", "last_term", "ballot", "forced")
    PRE_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TERM_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    pre: bool
    last_index: int
    last_term: int
    ballot: int
    forced: bool
    def __init__(self, pre: bool = ..., last_index: _Optional[int] = ..., last_term: _Optional[int] = ..., ballot: _Optional[int] = ..., forced: bool = ...) -> None: ...

class RaftVoteReply(_message.Message):
    __slots__ = ("pre", "granted", "to_incarnation", "ballot")
    PRE_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    TO_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    pre: bool
    granted: bool
    to_incarnation: int
    ballot: int
    def __init__(self, pre: bool = ..., granted: bool = ..., to_incarnation: _Optional[int] = ..., ballot: _Optional[int] = ...) -> None: ...

class RaftAppend(_message.Message):
    __slots__ = ("sequence", "prev_index", "prev_term", "entries", "commit")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PREV_INDEX_FIELD_NUMBER: _ClassVar[int]
    PREV_TERM_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    prev_index: int
    prev_term: int
    entries: _containers.RepeatedCompositeFieldContainer[RaftEntry]
    commit: int
    def __init__(self, sequence: _Optional[int] = ..., prev_index: _Optional[int] = ..., prev_term: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[RaftEntry, _Mapping]]] = ..., commit: _Optional[int] = ...) -> None: ...

class RaftAppendReply(_message.Message):
    __slots__ = ("to_incarnation", "sequence", "accepted", "match", "prev_index", "hint_index", "hint_term", "last_index")
    TO_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    PREV_INDEX_FIELD_NUMBER: _ClassVar[int]
    HINT_INDEX_FIELD_NUMBER: _ClassVar[int]
    HINT_TERM_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    to_incarnation: int
    sequence: int
    accepted: bool
    match: int
    prev_index: int
    hint_index: int
    hint_term: int
    last_index: int
    def __init__(self, to_incarnation: _Optional[int] = ..., sequence: _Optional[int] = ..., accepted: bool = ..., match: _Optional[int] = ..., prev_index: _Optional[int] = ..., hint_index: _Optional[int] = ..., hint_term: _Optional[int] = ..., last_index: _Optional[int] = ...) -> None: ...

class RaftSnapshotChunk(_message.Message):
    __slots__ = ("sequence", "meta", "offset", "total", "checksum", "data")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    meta: RaftSnapshotMeta
    offset: int
    total: int
    checksum: int
    data: bytes
    def __init__(self, sequence: _Optional[int] = ..., meta: _Optional[_Union[RaftSnapshotMeta, _Mapping]] = ..., offset: _Optional[int] = ..., total: _Optional[int] = ..., checksum: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RaftSnapshotReply(_message.Message):
    __slots__ = ("to_incarnation", "sequence", "index", "received", "installed")
    TO_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    INSTALLED_FIELD_NUMBER: _ClassVar[int]
    to_incarnation: int
    sequence: int
    index: int
    received: int
    installed: bool
    def __init__(self, to_incarnation: _Optional[int] = ..., sequence: _Optional[int] = ..., index: _Optional[int] = ..., received: _Optional[int] = ..., installed: bool = ...) -> None: ...

class RaftTimeoutNow(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RaftRemoved(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class RaftMessage(_message.Message):
    __slots__ = ("source", "target", "term", "incarnation", "vote_request", "vote_reply", "append", "append_reply", "snapshot_chunk", "snapshot_reply", "timeout_now", "removed")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VOTE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    VOTE_REPLY_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    APPEND_REPLY_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_CHUNK_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_REPLY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_NOW_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    source: int
    target: int
    term: int
    incarnation: int
    vote_request: RaftVoteRequest
    vote_reply: RaftVoteReply
    append: RaftAppend
    append_reply: RaftAppendReply
    snapshot_chunk: RaftSnapshotChunk
    snapshot_reply: RaftSnapshotReply
    timeout_now: RaftTimeoutNow
    removed: RaftRemoved
    def __init__(self, source: _Optional[int] = ..., target: _Optional[int] = ..., term: _Optional[int] = ..., incarnation: _Optional[int] = ..., vote_request: _Optional[_Union[RaftVoteRequest, _Mapping]] = ..., vote_reply: _Optional[_Union[RaftVoteReply, _Mapping]] = ..., append: _Optional[_Union[RaftAppend, _Mapping]] = ..., append_reply: _Optional[_Union[RaftAppendReply, _Mapping]] = ..., snapshot_chunk: _Optional[_Union[RaftSnapshotChunk, _Mapping]] = ..., snapshot_reply: _Optional[_Union[RaftSnapshotReply, _Mapping]] = ..., timeout_now: _Optional[_Union[RaftTimeoutNow, _Mapping]] = ..., removed: _Optional[_Union[RaftRemoved, _Mapping]] = ...) -> None: ...

class MetadataAnswer(_message.Message):
    __slots__ = ("index", "code", "text", "not_deciding")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NOT_DECIDING_FIELD_NUMBER: _ClassVar[int]
    index: int
    code: int
    text: str
    not_deciding: bool
    def __init__(self, index: _Optional[int] = ..., code: _Optional[int] = ..., text: _Optional[str] = ..., not_deciding: bool = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("server_id", "cluster_id", "host", "port", "node_id", "proof")
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    cluster_id: bytes
    host: str
    port: int
    node_id: int
    proof: bytes
    def __init__(self, server_id: _Optional[str] = ..., cluster_id: _Optional[bytes] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., node_id: _Optional[int] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("broker", "broker_epoch", "leaving", "positions")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    broker: str
    broker_epoch: int
    leaving: bool
    positions: _containers.RepeatedCompositeFieldContainer[ReplicaPosition]
    def __init__(self, broker: _Optional[str] = ..., broker_epoch: _Optional[int] = ..., leaving: bool = ..., positions: _Optional[_Iterable[_Union[ReplicaPosition, _Mapping]]] = ...) -> None: ...

class ReplicaPosition(_message.Message):
    __slots__ = ("replica", "last_epoch", "next_offset", "synced_offset", "lost")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    LAST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    SYNCED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    replica: ReplicaId
    last_epoch: int
    next_offset: int
    synced_offset: int
    lost: bool
    def __init__(self, replica: _Optional[_Union[ReplicaId, _Mapping]] = ..., last_epoch: _Optional[int] = ..., next_offset: _Optional[int] = ..., synced_offset: _Optional[int] = ..., lost: bool = ...) -> None: ...

class HeartbeatAnswer(_message.Message):
    __slots__ = ("not_deciding", "confirmed", "reason", "wanted", "applied")
    NOT_DECIDING_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    not_deciding: bool
    confirmed: bool
    reason: str
    wanted: _containers.RepeatedCompositeFieldContainer[ReplicaId]
    applied: int
    def __init__(self, not_deciding: bool = ..., confirmed: bool = ..., reason: _Optional[str] = ..., wanted: _Optional[_Iterable[_Union[ReplicaId, _Mapping]]] = ..., applied: _Optional[int] = ...) -> None: ...

class CoordinatorReport(_message.Message):
    __slots__ = ("group_id", "consumer_id", "coordinator", "epoch")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    consumer_id: str
    coordinator: str
    epoch: int
    def __init__(self, group_id: _Optional[str] = ..., consumer_id: _Optional[str] = ..., coordinator: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class AwaitPartitions(_message.Message):
    __slots__ = ("stream_id", "partitions", "applied")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    stream_id: bytes
    partitions: _containers.RepeatedScalarFieldContainer[int]
    applied: int
    def __init__(self, stream_id: _Optional[bytes] = ..., partitions: _Optional[_Iterable[int]] = ..., applied: _Optional[int] = ...) -> None: ...

class PeerIdentity(_message.Message):
    __slots__ = ("server_id", "node_id", "cluster_id", "incarnation")
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    node_id: int
    cluster_id: bytes
    incarnation: bytes
    def __init__(self, server_id: _Optional[str] = ..., node_id: _Optional[int] = ..., cluster_id: _Optional[bytes] = ..., incarnation: _Optional[bytes] = ...) -> None: ...

class PeerHello(_message.Message):
    __slots__ = ("version", "own", "wanted", "nonce", "window")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    version: int
    own: PeerIdentity
    wanted: str
    nonce: bytes
    window: int
    def __init__(self, version: _Optional[int] = ..., own: _Optional[_Union[PeerIdentity, _Mapping]] = ..., wanted: _Optional[str] = ..., nonce: _Optional[bytes] = ..., window: _Optional[int] = ...) -> None: ...

class PeerChallenge(_message.Message):
    __slots__ = ("version", "own", "nonce")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    version: int
    own: PeerIdentity
    nonce: bytes
    def __init__(self, version: _Optional[int] = ..., own: _Optional[_Union[PeerIdentity, _Mapping]] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class PeerProof(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...
