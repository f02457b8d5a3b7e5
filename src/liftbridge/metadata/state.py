"""The state machine of the cluster: what all brokers agree on, as a function of the operations so far.

Pure: no clock, no randomness, no files. `apply` is deterministic, so brokers that apply the same operations
at the same indices hold the same state, and a journal of operations is as good as the state.

Invariants:
- An operation is checked against the state inside `apply`, so a check cannot be outdated. A refused one
  changes nothing, the applied index included.
- Restoring the snapshot of any prefix and applying the rest gives the same snapshot as applying it all.
- Stream UUIDs are never used twice while the cluster remembers them. The most recently deleted are kept, so
  that a broker which was down when a stream was deleted can tell its directory from one it knows nothing of:
  only the former may be removed.
- What is counted per broker follows from the streams and is never stored.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TypeAlias

from google.protobuf.message import DecodeError

from liftbridge.metadata.broker_operations import BrokerOperation
from liftbridge.metadata.brokers import Broker, Brokers
from liftbridge.metadata.errors import MetadataCode, MetadataError, invalid
from liftbridge.metadata.groups import Group, Groups
from liftbridge.metadata.model import (
    NEVER,
    Partition,
    Stream,
    Times,
    decode_guarantees,
    decode_settings,
    encode_guarantees,
    encode_settings,
)
from liftbridge.metadata.operations import (
    ClusterOperation,
    CreateStream,
    DeleteStream,
    GroupOperation,
    Operation,
    OperationError,
    decode_stream_id,
)
from liftbridge.metadata.pausing import PartitionsOperation, changed, chosen_partitions, no_such_partition
from liftbridge.metadata.placement import BrokerLoad
from liftbridge.metadata.replica_operations import ReplicaOperation
from liftbridge.metadata.replicas import Changed, Changes
from liftbridge.proto import internal_pb2

SNAPSHOT_VERSION = 1
# 256 KiB in a snapshot, and far more deletes than happen while a broker is away.
DELETED_IDS_KEPT = 16_384

# What an operation has made of what it is about.
Outcome: TypeAlias = Stream | Group | Changed


class SnapshotError(ValueError):
    """Bytes that are no snapshot of a cluster, or one that this version does not know."""


class ClusterState:
    """Streams, partitions, consumer groups and brokers after a number of operations."""

    def __init__(self) -> None:
        self._applied_index = 0
        self._streams: dict[str, Stream] = {}
        self._by_id: dict[uuid.UUID, Stream] = {}
        self._deleted: dict[uuid.UUID, None] = {}  # an ordered set, the oldest first
        self._hosted: Counter[str] = Counter()
        self._led: Counter[str] = Counter()
        self._groups = Groups()
        self._brokers = Brokers()

    @property
    def applied_index(self) -> int:
        """Index of the newest operation applied, 0 before the first."""
        return self._applied_index

    @property
    def streams(self) -> Mapping[str, Stream]:
        """All streams by name, in order of creation; a live view."""
        return MappingProxyType(self._streams)

    @property
    def groups(self) -> Mapping[str, Group]:
        """All consumer groups by id, in order of creation; a live view."""
        return self._groups.by_id

    @property
    def coordinated(self) -> Mapping[str, int]:
        """How many consumer groups each broker coordinates; a live view."""
        return self._groups.coordinated

    @property
    def brokers(self) -> Mapping[str, Broker]:
        """All brokers that ever registered, by id; a live view."""
        return self._brokers.by_id

    @property
    def registry(self) -> Brokers:
        """The same with what elections ask of them; not to be changed."""
        return self._brokers

    @property
    def deleted_ids(self) -> Collection[uuid.UUID]:
        """UUIDs of the streams deleted most recently, the newest last; a live view."""
        return self._deleted.keys()

    def stream(self, name: str) -> Stream:
        """The stream of that name; MetadataError NOT_FOUND when there is none."""
        stream = self._streams.get(name)
        if stream is None:
            raise _no_such_stream(name)
        return stream

    def stream_by_id(self, stream_id: uuid.UUID) -> Stream | None:
        """The stream with that UUID, None when there is none (any more)."""
        return self._by_id.get(stream_id)

    def partition(self, name: str, partition_id: int) -> Partition:
        """A partition of a stream; MetadataError NOT_FOUND when stream or partition does not exist."""
        partitions = self.stream(name).partitions
        if not 0 <= partition_id < len(partitions):
            raise no_such_partition(self._streams[name], partition_id)
        return partitions[partition_id]

    def load(self, broker: str) -> BrokerLoad:
        """What a broker has to do; zeros for one that is not known."""
        return BrokerLoad(broker, self._hosted[broker], self._led[broker])

    def check(self, operation: Operation) -> None:
        """Raise the MetadataError with which `apply` would refuse the operation now."""
        if isinstance(operation, GroupOperation):
            self._groups.check(operation, self._streams)
        elif isinstance(operation, CreateStream):
            self._check_create(operation)
        elif isinstance(operation, DeleteStream):
            self._check_delete(operation)
        elif isinstance(operation, BrokerOperation):
            self._brokers.check(operation, self._hosts(operation.broker))
        elif not isinstance(operation, ReplicaOperation):
            self._check_partitions(operation)

    def apply(self, index: int, operation: Operation) -> Outcome:
        """Apply the operation that the cluster has agreed on under `index`.

        Arguments:
            index: greater than that of every operation applied before.
            operation: what to do.

        Returns the stream as created or changed, or as it was when deleted; for an operation on a consumer
        group the group as it is then, without members when it has ended; for one on replicas or on a broker
        what it changed, and what it did not. Raises MetadataError when a
        precondition does not hold; nothing is changed then.
        """
        assert index > self._applied_index, (index, self._applied_index)
        self.check(operation)
        outcome: Outcome
        if isinstance(operation, GroupOperation):
            outcome = self._groups.apply(index, operation, self._streams)
        elif isinstance(operation, CreateStream):
            outcome = self._created(index, operation)
            self._add(outcome)
            self._groups.stream_changed(index, operation.name, self._streams)
        elif isinstance(operation, DeleteStream):
            outcome = self._streams[operation.name]
            self._remove(outcome)
            self._groups.stream_changed(index, operation.name, self._streams)
        elif isinstance(operation, ClusterOperation):
            outcome = self._apply_to_cluster(index, operation)
        else:
            outcome = changed(self._streams[operation.name], operation)
            self._replace(outcome)
        self._applied_index = index
        return outcome

    def _apply_to_cluster(self, index: int, operation: ClusterOperation) -> Changed:
        changes = Changes(index, self._by_id, self._brokers, self._led)
        if isinstance(operation, BrokerOperation):
            before = self.brokers.get(operation.broker)
            outcome = changes.of_broker(operation, before, self._brokers.apply(index, operation))
        else:
            outcome = changes.of_replicas(operation)
        for stream in changes.streams():
            self._replace(stream)
        return outcome

    def snapshot(self) -> bytes:
        """The whole state; equal states give equal bytes."""
        return internal_pb2.ClusterSnapshot(
            version=SNAPSHOT_VERSION,
            applied_index=self._applied_index,
            streams=[_encode_stream(stream) for stream in self._streams.values()],
            deleted_stream_ids=[stream_id.bytes for stream_id in self._deleted],
            groups=self._groups.encode(),
            brokers=self._brokers.encode(),
        ).SerializeToString(deterministic=True)

    def restore(self, data: bytes) -> None:
        """Become the state that `snapshot` returned as `data`. Raises SnapshotError and changes nothing."""
        restored = ClusterState()
        message = internal_pb2.ClusterSnapshot()
        try:
            message.ParseFromString(data)
            if message.version != SNAPSHOT_VERSION:
                raise SnapshotError(
                    f"the snapshot has layout version {message.version}, this version of liftbridge knows "
                    f"{SNAPSHOT_VERSION}; start the version that wrote it, or a newer one"
                )
            for stored in message.streams:
                stream = _decode_stream(stored)
                if stream.name in restored._streams or stream.stream_id in restored._by_id:
                    raise SnapshotError(f"the snapshot holds stream {stream.name!r} twice")
                restored._add(stream)
            restored._deleted = dict.fromkeys(decode_stream_id(data) for data in message.deleted_stream_ids)
            restored._groups = Groups.decode(message.groups)
            restored._brokers = Brokers.decode(message.brokers)
        except (DecodeError, OperationError) as error:
            raise SnapshotError(f"the snapshot is damaged: {error}") from error
        restored._applied_index = message.applied_index
        # All of it at once: a state is never half restored.
        self.__dict__.update(restored.__dict__)

    def _check_create(self, operation: CreateStream) -> None:
        if operation.name in self._streams:
            raise MetadataError(
                MetadataCode.ALREADY_EXISTS,
                f"stream {operation.name!r} exists already; delete it first or choose another name",
            )
        if operation.stream_id in self._by_id or operation.stream_id in self._deleted:
            raise invalid(f"stream id {operation.stream_id} has been used before; take a fresh one")
        if not operation.name or not operation.subject:
            raise invalid("a stream needs a name and a subject")
        if not operation.partitions:
            raise invalid(f"stream {operation.name!r} needs at least one partition")
        self._groups.check_stream(operation.name, len(operation.partitions))
        for partition_id, placement in enumerate(operation.partitions):
            if placement.leader not in placement.replicas:
                raise invalid(
                    f"leader {placement.leader!r} of partition {partition_id} of stream "
                    f"{operation.name!r} is not among its replicas"
                )
            if len(set(placement.replicas)) != len(placement.replicas):
                raise invalid(
                    f"partition {partition_id} of stream {operation.name!r} has a replica twice on one broker"
                )
            if self._brokers.known_dead(placement.leader):
                raise MetadataError(
                    MetadataCode.FAILED_PRECONDITION,
                    f"leader {placement.leader!r} of partition {partition_id} of stream {operation.name!r} "
                    "is fenced or was removed; place it on another broker",
                )

    def _check_delete(self, operation: DeleteStream) -> None:
        if self.stream(operation.name).stream_id != operation.stream_id:
            raise _no_such_stream(operation.name)

    def _check_partitions(self, operation: PartitionsOperation) -> None:
        stream = self.stream(operation.name)
        if stream.stream_id != operation.stream_id:
            raise _no_such_stream(operation.name)
        chosen_partitions(stream, operation.partitions)

    def _created(self, index: int, operation: CreateStream) -> Stream:
        return Stream(
            name=operation.name,
            subject=operation.subject,
            group=operation.group,
            stream_id=operation.stream_id,
            creation_ns=operation.creation_ns,
            settings=operation.settings,
            partitions=tuple(
                Partition(
                    id=partition_id,
                    replicas=placement.replicas,
                    isr=tuple(each for each in placement.replicas if not self._brokers.known_dead(each)),
                    leader=placement.leader,
                    leader_epoch=index,
                    epoch=index,
                )
                for partition_id, placement in enumerate(operation.partitions)
            ),
            guarantees=operation.guarantees,
        )

    def _hosts(self, broker: str) -> bool:
        """Whether it has a replica, also of a paused partition."""
        return any(
            broker in partition.replicas
            for stream in self._streams.values()
            for partition in stream.partitions
        )

    def _add(self, stream: Stream) -> None:
        self._streams[stream.name] = stream
        self._by_id[stream.stream_id] = stream
        self._count(stream, 1)

    def _remove(self, stream: Stream) -> None:
        del self._streams[stream.name]
        del self._by_id[stream.stream_id]
        self._count(stream, -1)
        self._deleted[stream.stream_id] = None
        if len(self._deleted) > DELETED_IDS_KEPT:
            del self._deleted[next(iter(self._deleted))]

    def _replace(self, stream: Stream) -> None:
        """Put a changed stream in the place of what it was."""
        self._count(self._streams[stream.name], -1)
        self._streams[stream.name] = stream
        self._by_id[stream.stream_id] = stream
        self._count(stream, 1)

    def _count(self, stream: Stream, change: int) -> None:
        for partition in stream.partitions:
            if not partition.paused:
                if partition.leader:
                    self._led[partition.leader] += change
                for replica in partition.replicas:
                    self._hosted[replica] += change


def _no_such_stream(name: str) -> MetadataError:
    return MetadataError(MetadataCode.NOT_FOUND, f"No such stream: {name!r}")


def _encode_stream(stream: Stream) -> internal_pb2.StreamState:
    return internal_pb2.StreamState(
        name=stream.name,
        subject=stream.subject,
        group=stream.group,
        stream_id=stream.stream_id.bytes,
        creation_ns=stream.creation_ns,
        settings=encode_settings(stream.settings),
        partitions=[
            internal_pb2.PartitionState(
                replicas=partition.replicas,
                isr=partition.isr,
                leader=partition.leader,
                leader_epoch=partition.leader_epoch,
                epoch=partition.epoch,
                paused=partition.paused,
                readonly=partition.readonly,
                pause_first_ns=partition.pause_times.first_ns,
                pause_latest_ns=partition.pause_times.latest_ns,
                readonly_first_ns=partition.readonly_times.first_ns,
                readonly_latest_ns=partition.readonly_times.latest_ns,
                elr=partition.elr,
                last_known=partition.last_known,
                unclean_epoch=partition.unclean_epoch,
                adding=partition.adding,
                removing=partition.removing,
            )
            for partition in stream.partitions
        ],
        resume_all=stream.resume_all,
        guarantees=encode_guarantees(stream.guarantees),
    )


def _decode_stream(message: internal_pb2.StreamState) -> Stream:
    return Stream(
        name=message.name,
        subject=message.subject,
        group=message.group,
        stream_id=decode_stream_id(message.stream_id),
        creation_ns=message.creation_ns,
        settings=decode_settings(message.settings),
        partitions=tuple(
            Partition(
                id=partition_id,
                replicas=tuple(partition.replicas),
                isr=tuple(partition.isr),
                leader=partition.leader,
                leader_epoch=partition.leader_epoch,
                epoch=partition.epoch,
                paused=partition.paused,
                readonly=partition.readonly,
                pause_times=_times(partition.pause_first_ns, partition.pause_latest_ns),
                readonly_times=_times(partition.readonly_first_ns, partition.readonly_latest_ns),
                elr=tuple(partition.elr),
                last_known=tuple(partition.last_known),
                unclean_epoch=partition.unclean_epoch,
                adding=tuple(partition.adding),
                removing=tuple(partition.removing),
            )
            for partition_id, partition in enumerate(message.partitions)
        ),
        resume_all=message.resume_all,
        guarantees=decode_guarantees(message.guarantees),
    )


def _times(first_ns: int, latest_ns: int) -> Times:
    return Times(first_ns, latest_ns) if first_ns or latest_ns else NEVER
