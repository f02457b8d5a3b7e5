"""Pause, resume and readonly in the state machine."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from hypothesis import given
from metadata_cases import copy_of, create, histories, run

from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.model import NEVER, Partition, Times
from liftbridge.metadata.operations import (
    DeleteStream,
    PauseStream,
    ResumeStream,
    SetStreamReadonly,
    decode,
)
from liftbridge.metadata.placement import BrokerLoad, Placement
from liftbridge.metadata.state import ClusterState

ID = uuid.UUID(int=1)
THREE = (Placement(("alpha",), "alpha"),) * 3


def pause(*partitions: int, resume_all: bool = False, at: int = 10, stream_id: uuid.UUID = ID) -> PauseStream:
    return PauseStream("orders", stream_id, partitions, resume_all, at)


def resume(*partitions: int, at: int = 10, stream_id: uuid.UUID = ID) -> ResumeStream:
    return ResumeStream("orders", stream_id, partitions, at)


def readonly(
    *partitions: int, value: bool = True, at: int = 10, stream_id: uuid.UUID = ID
) -> SetStreamReadonly:
    return SetStreamReadonly("orders", stream_id, partitions, value, at)


def after(*operations) -> ClusterState:
    state = ClusterState()
    for operation in (create(partitions=THREE), *operations):
        state.apply(state.applied_index + 1, operation)
    return state


def flags(state: ClusterState) -> list[tuple[bool, bool]]:
    return [(partition.paused, partition.readonly) for partition in state.stream("orders").partitions]


def test_only_the_partitions_named_are_paused_and_none_stands_for_all():
    assert flags(after(pause(1))) == [(False, False), (True, False), (False, False)]
    assert flags(after(pause(2, 0, 2))) == [(True, False), (False, False), (True, False)]
    assert flags(after(pause())) == [(True, False)] * 3
    assert flags(after(pause(), resume(0, 2))) == [(False, False), (True, False), (False, False)]
    assert flags(after(pause(), resume())) == [(False, False)] * 3
    assert flags(after(pause(0), readonly(), readonly(1, value=False))) == [
        (True, True),
        (False, False),
        (False, True),
    ]


def test_what_is_paused_does_not_count():
    state = after(pause(0, 1))
    assert state.load("alpha") == BrokerLoad("alpha", 1, 1)
    state.apply(3, pause(0))
    assert state.load("alpha") == BrokerLoad("alpha", 1, 1)
    state.apply(4, resume())
    assert state.load("alpha") == BrokerLoad("alpha", 3, 3)
    state.apply(5, pause())
    state.apply(6, DeleteStream("orders", ID))
    assert state.load("alpha") == BrokerLoad("alpha", 0, 0)


def test_each_pause_replaces_resume_all_and_each_resume_clears_it():
    state = after(pause(0, resume_all=True))
    assert state.stream("orders").resume_all
    assert copy_of(state).stream("orders").resume_all
    state.apply(3, readonly())
    assert state.stream("orders").resume_all
    state.apply(4, pause(1))
    assert not state.stream("orders").resume_all
    state.apply(5, pause(1, resume_all=True))
    assert state.stream("orders").resume_all
    state.apply(6, resume(1))
    assert not state.stream("orders").resume_all


def test_times_are_those_of_changes_the_first_stays_and_the_latest_moves():
    state = after(pause(0, at=10), pause(0, at=20), readonly(0, at=25))
    first, second, _ = state.stream("orders").partitions
    assert (first.pause_times, first.readonly_times) == (Times(10, 10), Times(25, 25))
    assert (second.pause_times, second.readonly_times) == (NEVER, NEVER)
    for operation in (resume(at=30), readonly(0, value=False, at=40), readonly(value=False, at=50)):
        state.apply(state.applied_index + 1, operation)
    for restored in (state, copy_of(state)):
        first, second, _ = restored.stream("orders").partitions
        assert (first.pause_times, first.readonly_times) == (Times(10, 30), Times(25, 40))
        assert (second.pause_times, second.readonly_times) == (NEVER, NEVER)


def test_a_partition_that_is_as_it_should_be_stays_the_same():
    state = after(pause(0), readonly(1))
    before = state.stream("orders").partitions
    for operation in (pause(0, at=99), resume(1, 2, at=99), readonly(1, at=99)):
        state.apply(state.applied_index + 1, operation)
    assert all(now is then for now, then in zip(state.stream("orders").partitions, before, strict=True))


@pytest.mark.parametrize("make", [pause, resume, readonly])
@pytest.mark.parametrize("partitions", [(3,), (-1,), (0, 7)])
def test_one_unknown_partition_refuses_all_of_it(make, partitions):
    state = after()
    before = state.snapshot()
    with pytest.raises(MetadataError, match=f"No such partition: {partitions[-1]} of") as caught:
        state.apply(2, make(*partitions))
    assert caught.value.code is MetadataCode.NOT_FOUND
    assert state.snapshot() == before


@pytest.mark.parametrize("make", [pause, resume, readonly])
def test_a_late_operation_does_not_hit_a_stream_created_anew(make):
    state = after(DeleteStream("orders", ID), create("orders", 2))
    with pytest.raises(MetadataError, match="No such stream: 'orders'") as caught:
        state.apply(4, make(0))
    assert caught.value.code is MetadataCode.NOT_FOUND
    state.apply(4, make(0, stream_id=uuid.UUID(int=2)))


@given(histories)
def test_nothing_but_its_own_operations_pauses_a_partition_or_makes_it_readonly(history):
    for before, operation in run(history):
        after_it = copy_of(before)
        after_it.apply(before.applied_index + 1, decode(operation.encode()))
        for name in before.streams.keys() & after_it.streams.keys():
            old, new = before.stream(name), after_it.stream(name)
            if old.stream_id != new.stream_id:
                continue
            touched = isinstance(operation, PauseStream | ResumeStream | SetStreamReadonly)
            if not touched or operation.name != name:
                assert new.resume_all == old.resume_all
                assert [what_was_set(now) for now in new.partitions] == [
                    what_was_set(then) for then in old.partitions
                ]
                continue
            for then, now in zip(old.partitions, new.partitions, strict=True):
                if operation.partitions and then.id not in operation.partitions:
                    assert now == then
                assert but_for_what_was_set(now) == but_for_what_was_set(then)
                if now.paused != then.paused:
                    assert isinstance(operation, PauseStream) == now.paused
                if now.readonly != then.readonly:
                    assert isinstance(operation, SetStreamReadonly)


def what_was_set(partition: Partition) -> tuple[bool, bool, Times, Times]:
    return partition.paused, partition.readonly, partition.pause_times, partition.readonly_times


def but_for_what_was_set(partition: Partition) -> Partition:
    return dataclasses.replace(
        partition, epoch=0, paused=False, readonly=False, pause_times=NEVER, readonly_times=NEVER
    )


def test_the_stored_forms_are_for_ever():
    assert pause(0, 2, resume_all=True, at=5).encode().hex() == (
        "080110031a220a066f72646572731210000000000000000000000000000000011a02000220012805"
    )
    assert resume(1, at=5).encode().hex() == (
        "080110041a1f0a066f72646572731210000000000000000000000000000000011a01012005"
    )
    assert readonly(at=5).encode().hex() == (
        "080110051a1e0a066f726465727312100000000000000000000000000000000120012805"
    )
