"""The state machine: preconditions, determinism, snapshots."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metadata_cases import BROKERS, cluster_histories, copy_of, create, histories, run

from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.operations import DeleteStream, decode
from liftbridge.metadata.placement import BrokerLoad, Placement
from liftbridge.metadata.state import DELETED_IDS_KEPT, ClusterState, SnapshotError
from liftbridge.proto import internal_pb2


def replayed(operations, state=None):
    """Apply operations in their stored form at the indices after those of `state`."""
    state = state or ClusterState()
    for operation in operations:
        state.apply(state.applied_index + 1, decode(operation.encode()))
    return state


@given(histories | cluster_histories)
def test_replay_equals_snapshot_plus_rest_at_every_prefix(history):
    accepted = run(history)
    operations = [operation for _, operation in accepted]
    whole = replayed(operations)
    for done, (before, _) in enumerate(accepted):
        assert before.snapshot() == replayed(operations[:done]).snapshot()
        rest = replayed(operations[done:], copy_of(before))
        assert rest.snapshot() == whole.snapshot()
        assert list(rest.streams.values()) == list(whole.streams.values())
        assert [rest.load(broker) for broker in BROKERS] == [whole.load(broker) for broker in BROKERS]
        assert list(rest.deleted_ids) == list(whole.deleted_ids)
        assert list(rest.brokers.values()) == list(whole.brokers.values())


@given(histories | cluster_histories)
def test_counts_follow_from_the_streams(history):
    state = replayed([operation for _, operation in run(history)])
    partitions = [partition for stream in state.streams.values() for partition in stream.partitions]
    for broker in BROKERS:
        assert state.load(broker) == BrokerLoad(
            broker,
            sum(broker in partition.replicas for partition in partitions if not partition.paused),
            sum(broker == partition.leader for partition in partitions if not partition.paused),
        )
    for stream in state.streams.values():
        assert state.stream_by_id(stream.stream_id) is stream


@given(histories, st.data())
def test_a_refused_operation_changes_nothing(history, data):
    accepted = run(history)
    state = replayed([operation for _, operation in accepted])
    before = state.snapshot()
    refused = [DeleteStream("unknown", uuid.UUID(int=1))]
    refused += [create(stream.name, 1000) for stream in state.streams.values()]
    refused += [create("fresh", stream_id=used) for used in state.deleted_ids]
    refused += [DeleteStream(stream.name, uuid.UUID(int=1000)) for stream in state.streams.values()]
    operation = data.draw(st.sampled_from(refused))
    for attempt in (lambda: state.check(operation), lambda: state.apply(1000, operation)):
        with pytest.raises(MetadataError):
            attempt()
        assert state.snapshot() == before


def test_create_stamps_the_epochs_and_puts_all_replicas_in_sync():
    state = ClusterState()
    placed = (Placement(("alpha", "beta"), "beta"), Placement(("beta",), "beta"))
    stream = state.apply(7, create(partitions=placed))
    assert state.applied_index == 7
    assert state.stream("orders") is stream
    first, second = stream.partitions
    assert (first.id, second.id) == (0, 1)
    assert (first.replicas, first.isr, first.leader) == (("alpha", "beta"), ("alpha", "beta"), "beta")
    assert (first.leader_epoch, first.epoch) == (7, 7)
    assert not first.paused
    assert not first.readonly
    assert not stream.resume_all
    assert state.partition("orders", 1) is second


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (create("orders", 2), MetadataCode.ALREADY_EXISTS),
        (create("other", 1), MetadataCode.INVALID_ARGUMENT),
        (create("other", 2, partitions=()), MetadataCode.INVALID_ARGUMENT),
        (create("other", 2, partitions=(Placement(("a",), "b"),)), MetadataCode.INVALID_ARGUMENT),
        (create("other", 2, partitions=(Placement(("a", "a"), "a"),)), MetadataCode.INVALID_ARGUMENT),
        (create("", 2, subject="x"), MetadataCode.INVALID_ARGUMENT),
        (create("other", 2, subject=""), MetadataCode.INVALID_ARGUMENT),
        (DeleteStream("other", uuid.UUID(int=1)), MetadataCode.NOT_FOUND),
        (DeleteStream("orders", uuid.UUID(int=2)), MetadataCode.NOT_FOUND),
    ],
)
def test_preconditions(operation, code):
    state = ClusterState()
    state.apply(1, create())
    with pytest.raises(MetadataError) as caught:
        state.apply(2, operation)
    assert caught.value.code is code
    assert state.applied_index == 1


def test_a_stream_created_anew_is_another_one():
    state = ClusterState()
    first = state.apply(1, create("orders", 1))
    assert state.apply(2, DeleteStream("orders", first.stream_id)) == first
    assert state.stream_by_id(first.stream_id) is None
    assert list(state.deleted_ids) == [first.stream_id]
    second = state.apply(3, create("orders", 2))
    assert second.partitions[0].leader_epoch == 3
    with pytest.raises(MetadataError) as caught:
        state.apply(4, DeleteStream("orders", first.stream_id))
    assert caught.value.code is MetadataCode.NOT_FOUND
    assert state.stream("orders") is second


@pytest.mark.parametrize(
    ("name", "partition", "text"),
    [
        ("other", 0, "No such stream: 'other'"),
        ("orders", 1, "No such partition: 1"),
        ("orders", -1, "No such partition: -1"),
    ],
)
def test_lookups_of_what_does_not_exist(name, partition, text):
    state = ClusterState()
    state.apply(1, create())
    with pytest.raises(MetadataError, match=text) as caught:
        state.partition(name, partition)
    assert caught.value.code is MetadataCode.NOT_FOUND


def test_paused_and_readonly_survive_a_snapshot_and_paused_does_not_count():
    state = ClusterState()
    stream = state.apply(1, create(partitions=(Placement(("alpha",), "alpha"),) * 2))
    paused = dataclasses.replace(stream.partitions[0], paused=True, readonly=True, isr=("alpha",), epoch=9)
    message = internal_pb2.ClusterSnapshot.FromString(state.snapshot())
    message.streams[0].resume_all = True
    stored = message.streams[0].partitions[0]
    stored.paused, stored.readonly, stored.epoch = True, True, 9
    state.restore(message.SerializeToString(deterministic=True))
    assert state.partition("orders", 0) == paused
    assert state.stream("orders").resume_all
    assert state.load("alpha") == BrokerLoad("alpha", 1, 1)
    assert copy_of(state).snapshot() == state.snapshot()


def test_only_the_most_recently_deleted_ids_are_kept():
    state = ClusterState()
    index = 0
    for number in range(DELETED_IDS_KEPT + 2):
        state.apply(index + 1, create("orders", number))
        state.apply(index + 2, DeleteStream("orders", uuid.UUID(int=number)))
        index += 2
    kept = list(state.deleted_ids)
    assert len(kept) == DELETED_IDS_KEPT
    assert kept[0] == uuid.UUID(int=2)
    assert kept[-1] == uuid.UUID(int=DELETED_IDS_KEPT + 1)


@given(st.binary(max_size=100))
def test_restoring_garbage_is_an_error_and_changes_nothing(data):
    state = ClusterState()
    state.apply(3, create())
    before = state.snapshot()
    with pytest.raises(SnapshotError):
        state.restore(data)
    assert state.snapshot() == before


def test_a_snapshot_of_a_newer_version_or_with_a_stream_twice_is_refused():
    state = ClusterState()
    state.apply(1, create())
    message = internal_pb2.ClusterSnapshot.FromString(state.snapshot())
    message.version = 2
    with pytest.raises(SnapshotError, match="layout version 2"):
        state.restore(message.SerializeToString())
    message.version = 1
    message.streams.append(message.streams[0])
    with pytest.raises(SnapshotError, match="twice"):
        state.restore(message.SerializeToString())
