"""What the metadata tests share: generated operations, and a way to run many of them."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence

from hypothesis import strategies as st

from liftbridge.metadata.broker_operations import (
    DrainBroker,
    Ended,
    FenceBroker,
    RegisterBroker,
    UnfenceBroker,
    UnregisterBroker,
    WithdrawReplicas,
)
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.model import Guarantees, StreamSettings
from liftbridge.metadata.operations import (
    CreateStream,
    DeleteStream,
    Operation,
    PauseStream,
    ResumeStream,
    SetStreamReadonly,
)
from liftbridge.metadata.placement import Placement
from liftbridge.metadata.replica_operations import (
    AlterIsr,
    ChangeLeaders,
    IsrChange,
    LeaderChange,
    Mode,
    Reassignment,
    ReassignPartitions,
)
from liftbridge.metadata.state import ClusterState

BROKERS = ("alpha", "beta", "gamma")
NAMES = ("a", "b", "c", "sip:123@host")

int64s = st.integers(min_value=-(2**63), max_value=2**63 - 1)
int32s = st.integers(min_value=-(2**31), max_value=2**31 - 1)
# Few ids, so that some are used twice.
stream_ids = st.integers(min_value=0, max_value=30).map(lambda number: uuid.UUID(int=number))

settings = st.builds(
    StreamSettings,
    **{
        name: st.none() | int64s
        for name in (
            "retention_max_bytes",
            "retention_max_messages",
            "retention_max_age_ms",
            "cleaner_interval_ms",
            "segment_max_bytes",
            "segment_max_age_ms",
            "auto_pause_time_ms",
        )
    },
    **{name: st.none() | int32s for name in ("compact_max_goroutines", "min_isr")},
    **{
        name: st.none() | st.booleans()
        for name in (
            "compact_enabled",
            "auto_pause_disable_if_subscribers",
            "optimistic_concurrency_control",
            "encryption",
        )
    },
    compression=st.sampled_from([None, "none", "lz4", "zstd"]),
    sync_policy=st.sampled_from([None, "always", "interval", "never"]),
)

placements = st.lists(st.sampled_from(BROKERS), min_size=1, max_size=3, unique=True).flatmap(
    lambda replicas: st.builds(Placement, st.just(tuple(replicas)), st.sampled_from(replicas))
)

creates = st.builds(
    CreateStream,
    name=st.sampled_from(NAMES),
    subject=st.text(min_size=1, max_size=8),
    group=st.text(max_size=4),
    stream_id=stream_ids,
    creation_ns=int64s,
    settings=settings,
    partitions=st.lists(placements, min_size=1, max_size=3).map(tuple),
    guarantees=st.builds(Guarantees, st.integers(1, 3), st.booleans(), st.booleans()),
)
deletes = st.builds(DeleteStream, name=st.sampled_from(NAMES), stream_id=stream_ids)
# A delete that means a stream by name, with the UUID it has when its turn comes.
deletes_by_name = st.sampled_from(NAMES)

# Few enough that most are there, and some are not.
partition_ids = st.lists(st.integers(0, 2) | int32s, max_size=3).map(tuple)
pauses = st.builds(
    PauseStream,
    name=st.sampled_from(NAMES),
    stream_id=stream_ids,
    partitions=partition_ids,
    resume_all=st.booleans(),
    time_ns=int64s,
)
resumes = st.builds(
    ResumeStream,
    name=st.sampled_from(NAMES),
    stream_id=stream_ids,
    partitions=partition_ids,
    time_ns=int64s,
)
readonlys = st.builds(
    SetStreamReadonly,
    name=st.sampled_from(NAMES),
    stream_id=stream_ids,
    partitions=partition_ids,
    readonly=st.booleans(),
    time_ns=int64s,
)
of_partitions = pauses | resumes | readonlys
# They mean the stream that has the name when their turn comes.
of_partitions_by_name = of_partitions.map(lambda operation: ("by name", operation))

brokers = st.sampled_from(BROKERS)
epochs = st.integers(0, 2**64 - 1)
uuids = st.uuids()
wishes = st.lists(st.tuples(stream_ids, st.integers(0, 2), brokers), max_size=2).map(tuple)
registers = st.builds(
    RegisterBroker,
    brokers,
    uuids,
    st.lists(st.text(max_size=8), max_size=2).map(tuple),
    st.sampled_from(["", "east", "west"]),
    st.integers(0, 2**32 - 1),
    st.sampled_from(Ended),
)
of_brokers = (
    registers
    | st.builds(FenceBroker, brokers, epochs, wishes)
    | st.builds(UnfenceBroker, brokers, epochs)
    | st.builds(DrainBroker, brokers, epochs, wishes)
    | st.builds(UnregisterBroker, brokers, epochs)
    | st.builds(
        WithdrawReplicas,
        brokers,
        epochs,
        st.lists(st.tuples(stream_ids, st.integers(0, 2)), max_size=3).map(tuple),
        st.booleans(),
    )
)


def _batches(changes: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(changes, max_size=3).map(tuple)


of_replicas = (
    st.builds(
        AlterIsr,
        _batches(
            st.builds(
                IsrChange,
                stream_ids,
                st.integers(0, 3),
                epochs,
                brokers,
                epochs,
                st.lists(st.tuples(brokers, epochs), max_size=3).map(tuple),
                st.lists(brokers, max_size=1).map(tuple),
            )
        ),
    )
    | st.builds(
        ChangeLeaders,
        _batches(
            st.builds(LeaderChange, stream_ids, st.integers(0, 3), epochs, brokers, st.sampled_from(Mode))
        ),
    )
    | st.builds(
        ReassignPartitions,
        _batches(
            st.builds(
                Reassignment,
                stream_ids,
                st.integers(0, 3),
                epochs,
                st.lists(brokers, max_size=3, unique=True).map(tuple),
            )
        ),
    )
)
# They fit the state when their turn comes, as far as names of brokers allow it.
fitting = (of_brokers | of_replicas).map(lambda operation: ("fitting", operation))

histories = st.lists(
    creates
    | deletes
    | deletes_by_name
    | of_partitions
    | of_partitions_by_name
    | of_brokers
    | of_replicas
    | fitting,
    max_size=20,
)
# As many brokers and replicas as there can be: most of this is accepted.
cluster_histories = st.tuples(
    st.lists(registers, min_size=3, max_size=3, unique_by=lambda operation: operation.broker),
    st.lists(creates | fitting, max_size=30),
).map(
    lambda parts: [
        *parts[0],
        *(("fitting", UnfenceBroker(name, 0)) for name in BROKERS),
        *parts[1],
    ]
)


def run(history: Sequence[Operation | str | tuple[str, Operation]]) -> list[tuple[ClusterState, Operation]]:
    """Apply a history to a new state; each accepted operation with the state before it, then the end."""
    state = ClusterState()
    accepted = []
    for step in history:
        if isinstance(step, str):
            if step not in state.streams:
                continue
            step = DeleteStream(step, state.streams[step].stream_id)
        if isinstance(step, tuple) and step[0] == "fitting":
            step = fitted(state, step[1])
        if isinstance(step, tuple):
            step = step[1]
            if step.name not in state.streams:
                continue
            step = dataclasses.replace(step, stream_id=state.streams[step.name].stream_id)
        before = copy_of(state)
        try:
            state.apply(state.applied_index + 1, step)
        except MetadataError:
            continue
        accepted.append((before, step))
    return accepted


def fitted(state: ClusterState, operation: Operation) -> Operation:
    """An operation on brokers or replicas, so changed that it fits the state."""
    if isinstance(operation, RegisterBroker):
        return operation
    if isinstance(operation, AlterIsr | ChangeLeaders | ReassignPartitions):
        if not state.streams:
            return operation
        return dataclasses.replace(
            operation, changes=tuple(_fitted_change(state, change) for change in operation.changes)
        )
    record = state.brokers.get(operation.broker)
    changes: dict[str, object] = {"broker_epoch": record.epoch if record else 0}
    if isinstance(operation, WithdrawReplicas):
        changes["replicas"] = tuple(
            (stream.stream_id, partition.id)
            for stream in state.streams.values()
            for partition in stream.partitions
            if (partition.id + len(operation.replicas)) % 2
        )
    return dataclasses.replace(operation, **changes)  # type: ignore[arg-type]


def _fitted_change(state: ClusterState, change: IsrChange | LeaderChange | Reassignment) -> object:
    streams = list(state.streams.values())
    stream = streams[change.stream_id.int % len(streams)]
    partition = stream.partitions[change.partition % len(stream.partitions)]
    values = {"stream_id": stream.stream_id, "partition": partition.id, "epoch": partition.epoch}
    if isinstance(change, IsrChange):
        members = {partition.leader, *(broker for broker, _ in change.isr)} & set(state.brokers)
        values |= {
            "leader": partition.leader,
            "leader_epoch": partition.leader_epoch,
            "isr": tuple((broker, state.brokers[broker].epoch) for broker in sorted(members)),
        }
    return dataclasses.replace(change, **values)  # type: ignore[arg-type]


def copy_of(state: ClusterState) -> ClusterState:
    """An equal state, through the snapshot."""
    copy = ClusterState()
    copy.restore(state.snapshot())
    return copy


def create(name: str = "orders", number: int = 1, **changes: object) -> CreateStream:
    """A valid operation to create a stream; `number` makes its UUID."""
    values: dict[str, object] = {
        "name": name,
        "subject": name,
        "group": "",
        "stream_id": uuid.UUID(int=number),
        "creation_ns": 1_700_000_000_000_000_000,
        "settings": StreamSettings(),
        "partitions": (Placement(("alpha",), "alpha"),),
    }
    return CreateStream(**{**values, **changes})  # type: ignore[arg-type]
