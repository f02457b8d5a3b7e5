"""What pausing, resuming and making readonly do to a stream: from one immutable value to the next.

Each of the three names partitions, or none for all of them, and says what time it is. A partition that is
already as it is wanted stays the same object, with the times it has: the times are those of changes, not of
requests.

Invariants:
- The first time of a change stays, the latest moves; both survive snapshots, and a pause keeps those of
  readonly.
- `resume_all` is what the last pause said, and false after any resume: whoever resumes has obeyed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.model import Partition, Stream
from liftbridge.metadata.operations import PauseStream, ResumeStream, SetStreamReadonly

PartitionsOperation = PauseStream | ResumeStream | SetStreamReadonly


def chosen_partitions(stream: Stream, wanted: Sequence[int]) -> tuple[int, ...]:
    """The ids of the partitions that a request or an operation names: each once, ascending; all for none.

    Raises MetadataError NOT_FOUND when the stream has not got one of them.
    """
    count = len(stream.partitions)
    if not wanted:
        return tuple(range(count))
    for partition_id in wanted:
        if not 0 <= partition_id < count:
            raise no_such_partition(stream, partition_id)
    return tuple(sorted(set(wanted)))


def no_such_partition(stream: Stream, partition_id: int) -> MetadataError:
    """The error for a partition that a stream has not got."""
    return MetadataError(
        MetadataCode.NOT_FOUND,
        f"No such partition: {partition_id} of stream {stream.name!r}, which has {len(stream.partitions)}",
    )


def changed(stream: Stream, operation: PartitionsOperation) -> Stream:
    """The stream as an operation, which has passed its check, makes it."""
    partitions = list(stream.partitions)
    for partition_id in operation.partitions or range(len(partitions)):
        partitions[partition_id] = _changed(partitions[partition_id], operation)
    resume_all = stream.resume_all
    if not isinstance(operation, SetStreamReadonly):
        resume_all = isinstance(operation, PauseStream) and operation.resume_all
    return replace(stream, partitions=tuple(partitions), resume_all=resume_all)


def _changed(partition: Partition, operation: PartitionsOperation) -> Partition:
    if isinstance(operation, SetStreamReadonly):
        if partition.readonly == operation.readonly:
            return partition
        times = partition.readonly_times.noted(operation.time_ns)
        return replace(partition, readonly=operation.readonly, readonly_times=times)
    paused = isinstance(operation, PauseStream)
    if partition.paused == paused:
        return partition
    return replace(partition, paused=paused, pause_times=partition.pause_times.noted(operation.time_ns))
