"""What the metadata tests share: generated operations, and a way to run many of them."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence

from hypothesis import strategies as st

from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.model import StreamSettings
from liftbridge.metadata.operations import (
    CreateStream,
    DeleteStream,
    Operation,
    PauseStream,
    ResumeStream,
    SetStreamReadonly,
)
from liftbridge.metadata.placement import Placement
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

histories = st.lists(creates | deletes | deletes_by_name | of_partitions | of_partitions_by_name, max_size=20)


def run(history: Sequence[Operation | str | tuple[str, Operation]]) -> list[tuple[ClusterState, Operation]]:
    """Apply a history to a new state; each accepted operation with the state before it, then the end."""
    state = ClusterState()
    accepted = []
    for step in history:
        if isinstance(step, str):
            if step not in state.streams:
                continue
            step = DeleteStream(step, state.streams[step].stream_id)
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
