"""Consumer groups as the cluster agrees on them: assignments, epochs, limits, snapshots, reports."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from metadata_cases import copy_of, create

from liftbridge.metadata import groups as limits
from liftbridge.metadata.assignment import Budget, assign
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.groups import Group, Member, choose_coordinator
from liftbridge.metadata.operations import (
    ChangeGroupCoordinator,
    DeleteStream,
    JoinGroup,
    LeaveGroup,
    OperationError,
    decode,
)
from liftbridge.metadata.placement import Placement
from liftbridge.metadata.reports import CoordinatorReports
from liftbridge.metadata.state import ClusterState, SnapshotError
from liftbridge.proto import internal_pb2

ONE = Placement(("alpha",), "alpha")
STREAMS = ("a", "b", "c", "d")
CONSUMERS = tuple(f"c{number}" for number in range(6))

numbers = itertools.count(1)


def stream(name: str, partitions: int) -> object:
    return create(name, next(numbers), partitions=(ONE,) * partitions)


def with_streams(**partitions: int) -> ClusterState:
    state = ClusterState()
    for name, count in partitions.items():
        state.apply(state.applied_index + 1, stream(name, count))
    return state


def act(state: ClusterState, operation: object) -> object:
    return state.apply(state.applied_index + 1, operation)


def join(state: ClusterState, consumer: str, *streams: str, group: str = "g") -> Group:
    return act(state, JoinGroup(group, consumer, tuple(sorted(streams)), "alpha"))


def leave(state: ClusterState, consumer: str, group: str = "g") -> Group:
    member = state.groups[group].members[consumer]
    return act(state, LeaveGroup(group, consumer, member.joined))


def shares(state: ClusterState, group: str = "g") -> dict:
    return {
        name: {stream: list(share) for stream, share in member.share.items() if share}
        for name, member in state.groups[group].members.items()
    }


def check_assignment(members: dict, partitions: dict) -> None:
    """The invariants of `assignment`, of what each member has."""
    wanted = {name for share in members.values() for name in share}
    for name in wanted:
        owned = [partition for share in members.values() for partition in share.get(name, ())]
        assert sorted(owned) == list(range(partitions.get(name, 0))), (
            "each partition has one owner that wants it"
        )
    total = {consumer: sum(map(len, share.values())) for consumer, share in members.items()}
    for one, other in itertools.permutations(members, 2):
        if any(members[one][name] for name in members[one].keys() & members[other].keys()):
            assert total[one] - total[other] <= 1, "nobody has two more than somebody who could take one"
        if members[one].keys() == members[other].keys():
            for name, share in members[one].items():
                assert len(share) - len(members[other][name]) <= 1, "equals are even in each stream"
    for share in members.values():
        assert list(share) == sorted(share)
        assert all(list(owned) == sorted(owned) for owned in share.values())


# -- assignments ---------------------------------------------------------------------------------------------


def test_two_members_share_four_partitions_and_the_last_gets_all():
    state = with_streams(a=4)
    join(state, "c1", "a")
    assert shares(state) == {"c1": {"a": [0, 1, 2, 3]}}
    join(state, "c2", "a")
    assert shares(state) == {"c1": {"a": [0, 1]}, "c2": {"a": [2, 3]}}
    leave(state, "c1")
    assert shares(state) == {"c2": {"a": [0, 1, 2, 3]}}


def test_the_example_of_the_original():
    state = with_streams(bar=2, foo=2)
    join(state, "c1", "foo", "bar")
    join(state, "c2", "foo")
    assert shares(state) == {"c1": {"bar": [0, 1]}, "c2": {"foo": [0, 1]}}


def test_members_of_two_streams_are_even_in_both():
    state = with_streams(a=2, b=2)
    join(state, "c1", "a", "b")
    join(state, "c2", "a", "b")
    assert shares(state) == {"c1": {"a": [0], "b": [0]}, "c2": {"a": [1], "b": [1]}}


@pytest.mark.parametrize("partitions", [1, 2, 5, 7, 64])
def test_who_joins_takes_no_more_than_it_lacks_and_who_leaves_moves_nobody_else(partitions):
    state = with_streams(a=partitions)
    before: dict = {}
    for number in range(8):
        join(state, f"c{number}", "a")
        now = shares(state)
        for consumer, share in before.items():
            assert set(now[consumer].get("a", ())) <= set(share.get("a", ()))
        assert len(now[f"c{number}"].get("a", ())) == partitions // (number + 1)
        before = now
    for number in range(7):
        leave(state, f"c{number}")
        now = shares(state)
        for consumer, share in now.items():
            assert set(before[consumer].get("a", ())) <= set(share.get("a", ()))
        before = now


subscriptions = st.dictionaries(
    st.sampled_from(CONSUMERS), st.sets(st.sampled_from(STREAMS), min_size=1), min_size=1
)
sizes = st.dictionaries(st.sampled_from(STREAMS), st.integers(1, 9))


@settings(max_examples=300)
@given(subscriptions, sizes, sizes)
def test_any_change_gives_a_balanced_assignment(wanted, before, after):
    """From nothing, and from any assignment to other numbers of partitions."""
    empty = {consumer: dict.fromkeys(sorted(names), ()) for consumer, names in wanted.items()}
    first = assign(empty, before, Budget(10**9))
    check_assignment(first, before)
    second = assign(first, after, Budget(10**9))
    check_assignment(second, after)
    assert assign(second, after, Budget(10**9)) == second, "what is balanced stays"
    assert all(share is second[name] for name, share in assign(second, after, Budget(10**9)).items())
    order = dict(reversed(first.items()))
    assert assign(order, after, Budget(10**9)) == second, "the order of the members means nothing"


@given(subscriptions, sizes, st.integers(0, 30))
def test_without_budget_every_partition_has_its_owner_all_the_same(wanted, partitions, budget):
    empty = {consumer: dict.fromkeys(sorted(names), ()) for consumer, names in wanted.items()}
    members = assign(empty, partitions, Budget(budget))
    for name in {name for share in members.values() for name in share}:
        owned = [partition for share in members.values() for partition in share.get(name, ())]
        assert sorted(owned) == list(range(partitions.get(name, 0)))


def test_what_operations_mean_does_not_change():
    """A journal written by an earlier version must give the same assignments: if this fails, the operations
    on groups need a new layout version."""
    state = with_streams(a=7, b=4, c=1)
    for number, wanted in enumerate(["abc", "ab", "a", "bc", "ab", "c", "abc", "b"]):
        join(state, f"c{number}", *wanted)
    act(state, DeleteStream("b", state.streams["b"].stream_id))
    leave(state, "c2")
    act(state, create("b", 10**6, partitions=(ONE,) * 5))
    leave(state, "c0")
    assert shares(state) == {
        "c1": {"a": [1, 2, 4]},
        "c3": {"b": [0, 3]},
        "c4": {"a": [3, 6]},
        "c5": {"c": [0]},
        "c6": {"a": [0, 5], "b": [2]},
        "c7": {"b": [1, 4]},
    }


# -- operations ----------------------------------------------------------------------------------------------


def test_epochs_begin_with_0_and_are_the_index_of_the_change_then():
    state = with_streams(a=2, b=1)
    assert join(state, "c1", "a").epoch == 0
    assert join(state, "c2", "a", "b").epoch == 4
    assert act(state, ChangeGroupCoordinator("g", "beta", 4)) == state.groups["g"]
    assert (state.groups["g"].coordinator, state.groups["g"].epoch) == ("beta", 5)
    assert leave(state, "c2").epoch == 6
    act(state, DeleteStream("b", state.streams["b"].stream_id))
    assert state.groups["g"].epoch == 6, "nobody wants it any more"
    act(state, DeleteStream("a", state.streams["a"].stream_id))
    assert state.groups["g"].epoch == 8
    act(state, stream("a", 3))
    assert state.groups["g"].epoch == 9
    assert shares(state) == {"c1": {"a": [0, 1, 2]}}
    assert leave(state, "c1") == Group("g", "beta", 10, {})
    assert dict(state.groups) == {}
    assert join(state, "c1", "a").epoch == 0


def test_who_coordinates_is_told_by_the_join_that_begins_a_group():
    state = with_streams(a=1)
    assert act(state, JoinGroup("g", "c1", ("a",), "beta")).coordinator == "beta"
    assert act(state, JoinGroup("g", "c2", ("a",), "gamma")).coordinator == "beta"
    assert {broker: count for broker, count in state.coordinated.items() if count} == {"beta": 1}
    assert choose_coordinator(["gamma", "beta", "alpha"], state.coordinated) == "alpha"
    assert choose_coordinator(["beta", "gamma"], state.coordinated) == "gamma"
    assert choose_coordinator(["beta"], state.coordinated) == "beta"


INVALID = MetadataCode.INVALID_ARGUMENT
REFUSED = MetadataCode.FAILED_PRECONDITION
FULL = MetadataCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (JoinGroup("", "c", ("a",), "alpha"), INVALID),
        (JoinGroup("g", "", ("a",), "alpha"), INVALID),
        (JoinGroup("g", "c", (), "alpha"), INVALID),
        (JoinGroup("g", "c", ("b", "a"), "alpha"), INVALID),
        (JoinGroup("g", "c", ("a", "a"), "alpha"), INVALID),
        (JoinGroup("new", "c", ("a",), ""), INVALID),
        (JoinGroup("g", "c", tuple(f"s{number:04}" for number in range(501)), "alpha"), INVALID),
        (JoinGroup("g" * 257, "c", ("a",), "alpha"), INVALID),
        (JoinGroup("g", "c1", ("a",), "alpha"), REFUSED),
        (JoinGroup("g", "c", ("a", "nope"), "alpha"), REFUSED),
        (JoinGroup("new", "c", ("nope",), "alpha"), REFUSED),
        (LeaveGroup("new", "c1", 3), MetadataCode.NOT_FOUND),
        (LeaveGroup("g", "c", 3), REFUSED),
        (LeaveGroup("g", "c1", 2), REFUSED),
        (ChangeGroupCoordinator("new", "beta", 4), MetadataCode.NOT_FOUND),
        (ChangeGroupCoordinator("g", "beta", 3), REFUSED),
        (ChangeGroupCoordinator("g", "alpha", 4), REFUSED),
        (ChangeGroupCoordinator("g", "", 4), REFUSED),
    ],
)
def test_preconditions(operation, code):
    state = with_streams(a=2, b=1)
    join(state, "c1", "a")
    join(state, "c2", "a")
    before = state.snapshot()
    for attempt in (state.check, lambda operation: act(state, operation)):
        with pytest.raises(MetadataError) as caught:
            attempt(operation)
        assert caught.value.code is code
        assert caught.value.text
    assert state.snapshot() == before


def test_a_late_decision_does_not_end_the_membership_that_followed():
    state = with_streams(a=1)
    join(state, "c1", "a")
    first = join(state, "c2", "a").members["c2"].joined
    leave(state, "c2")
    join(state, "c2", "a")
    with pytest.raises(MetadataError, match="not a member"):
        act(state, LeaveGroup("g", "c2", first, expired=True))
    assert "c2" in state.groups["g"].members


def test_limits(monkeypatch):
    state = with_streams(a=3, b=3, c=1)
    join(state, "c1", "a")
    join(state, "c1", "c", group="h")

    def full(operation: object, text: str) -> None:
        with pytest.raises(MetadataError, match=text) as caught:
            state.check(operation)
        assert caught.value.code is FULL

    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_GROUPS", 2)
        full(JoinGroup("new", "c", ("a",), "alpha"), "2 consumer groups")
        state.check(JoinGroup("g", "c", ("a",), "alpha"))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_MEMBERS", 1)
        full(JoinGroup("g", "c", ("a",), "alpha"), "1 members")
        state.check(JoinGroup("new", "c", ("a",), "alpha"))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_SUBSCRIPTIONS", 3)
        full(JoinGroup("g", "c", ("a", "b"), "alpha"), "want 3 streams")
        state.check(JoinGroup("g", "c", ("a",), "alpha"))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_ASSIGNED", 6)
        full(JoinGroup("g", "c", ("b",), "alpha"), "3 more would exceed the limit of 6")
        state.check(JoinGroup("g", "c", ("a", "c"), "alpha"))  # of which a is counted already
        act(state, DeleteStream("c", state.streams["c"].stream_id))
        full(create("c", 10**6, partitions=(ONE,) * 4), "wait for a stream named 'c'")
        state.check(create("c", 10**6, partitions=(ONE,) * 3))
        state.check(create("d", 10**6, partitions=(ONE,) * 100))


# -- snapshots -----------------------------------------------------------------------------------------------


def test_a_snapshot_keeps_assignments_instead_of_computing_them():
    state = with_streams(a=4)
    join(state, "c1", "a")
    join(state, "c2", "a")
    message = internal_pb2.ClusterSnapshot.FromString(state.snapshot())
    (group,) = message.groups
    for member, owned in zip(group.members, ([1, 3], [0, 2]), strict=True):
        del member.subscriptions[0].partitions[:]
        member.subscriptions[0].partitions.extend(owned)
    state.restore(message.SerializeToString(deterministic=True))
    assert shares(state) == {"c1": {"a": [1, 3]}, "c2": {"a": [0, 2]}}
    join(state, "c3", "a")
    assert shares(state) == {"c1": {"a": [1, 3]}, "c2": {"a": [0]}, "c3": {"a": [2]}}


def _twice(group):
    group.members[1].subscriptions[0].partitions.append(0)


def _not_listed(group):
    group.members[0].subscriptions[0].stream = 1


def _same_member(group):
    group.members[1].consumer_id = "c1"


def _nobody(group):
    del group.members[:]


@pytest.mark.parametrize("damage", [_twice, _not_listed, _same_member, _nobody])
def test_a_group_that_cannot_be_is_no_snapshot(damage):
    state = with_streams(a=4)
    join(state, "c1", "a")
    join(state, "c2", "a")
    before = state.snapshot()
    message = internal_pb2.ClusterSnapshot.FromString(before)
    damage(message.groups[0])
    with pytest.raises(SnapshotError, match="group 'g'"):
        state.restore(message.SerializeToString())
    message = internal_pb2.ClusterSnapshot.FromString(before)
    message.groups.append(message.groups[0])
    with pytest.raises(SnapshotError, match="twice"):
        state.restore(message.SerializeToString())
    assert state.snapshot() == before


# -- everything together -------------------------------------------------------------------------------------


class GroupMachine(RuleBasedStateMachine):
    """Streams and members come and go; beside the state a second one lives on snapshots of it, and a third is
    replayed from the stored operations at the end."""

    members = Bundle("members")

    def __init__(self) -> None:
        super().__init__()
        self.state = ClusterState()
        self.copy = ClusterState()
        self.operations: list[bytes] = []
        self.epochs: dict[str, int] = {}

    def act(self, operation: object) -> bool:
        index = self.state.applied_index + 1
        before = self.state.snapshot()
        known = dict(self.state.groups)
        try:
            self.state.apply(index, operation)
        except MetadataError:
            assert self.state.snapshot() == before
            return False
        self.copy.apply(index, operation)
        self.operations.append(operation.encode())
        for group_id, group in self.state.groups.items():
            old = known.get(group_id)
            if old is None:
                assert group.epoch == 0
            elif group is not old:
                assert group.epoch == index > old.epoch
        return True

    @rule(name=st.sampled_from(STREAMS), partitions=st.integers(1, 7))
    def create_stream(self, name, partitions):
        self.act(create(name, len(self.operations), partitions=(ONE,) * partitions))

    @rule(name=st.sampled_from(STREAMS))
    def delete_stream(self, name):
        if name in self.state.streams:
            self.act(DeleteStream(name, self.state.streams[name].stream_id))

    @rule(
        target=members,
        group=st.sampled_from(["g", "h"]),
        consumer=st.sampled_from(CONSUMERS),
        streams=st.sets(st.sampled_from(STREAMS), min_size=1),
    )
    def join(self, group, consumer, streams):
        if self.act(JoinGroup(group, consumer, tuple(sorted(streams)), "alpha")):
            return group, consumer, self.state.groups[group].members[consumer].joined
        return multiple()

    @rule(member=consumes(members), expired=st.booleans())
    def leave(self, member, expired):
        assert self.act(LeaveGroup(*member, expired=expired))

    @rule(group=st.sampled_from(["g", "h"]), broker=st.sampled_from(["alpha", "beta"]))
    def change_coordinator(self, group, broker):
        if group in self.state.groups:
            self.act(ChangeGroupCoordinator(group, broker, self.state.groups[group].epoch))

    @rule()
    def restore(self):
        self.copy = copy_of(self.state)

    @invariant()
    def every_group_is_balanced(self):
        partitions = {name: len(stream.partitions) for name, stream in self.state.streams.items()}
        for group in self.state.groups.values():
            assert group.members
            check_assignment({name: member.share for name, member in group.members.items()}, partitions)

    @invariant()
    def all_copies_are_equal(self):
        assert self.copy.snapshot() == self.state.snapshot()
        assert self.copy.groups == self.state.groups
        for state in (self.state, self.copy):
            count = {broker: count for broker, count in state.coordinated.items() if count}
            coordinators = [group.coordinator for group in state.groups.values()]
            assert count == {broker: coordinators.count(broker) for broker in set(coordinators)}
            assert state._groups._assigned == sum(
                len(share)
                for group in state.groups.values()
                for member in group.members.values()
                for share in member.share.values()
            )

    def teardown(self):
        replayed = ClusterState()
        for index, stored in enumerate(self.operations, 1):
            replayed.apply(index, decode(stored))
        assert replayed.snapshot() == self.state.snapshot()


TestGroupMachine = GroupMachine.TestCase
TestGroupMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

ids = st.text(max_size=6)
group_operations = (
    st.builds(JoinGroup, ids, ids, st.lists(ids, max_size=4).map(tuple), ids)
    | st.builds(LeaveGroup, ids, ids, st.integers(0, 2**64 - 1), st.booleans())
    | st.builds(ChangeGroupCoordinator, ids, ids, st.integers(0, 2**64 - 1))
)


@given(group_operations, st.data())
def test_stored_operations(operation, data):
    assert decode(operation.encode()) == operation
    damaged = bytearray(operation.encode())
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(damaged))
    except OperationError as error:
        assert str(error)


# -- reports -------------------------------------------------------------------------------------------------


def group_of(count: int, coordinator: str = "alpha") -> Group:
    members = {f"c{number}": Member(f"c{number}", number, {}) for number in range(count)}
    return Group("g", coordinator, 1, members)


@pytest.mark.parametrize(("members", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_more_than_half_of_the_members_are_enough(members, needed):
    reports = CoordinatorReports(10.0)
    group = group_of(members)
    for number in range(members):
        for _ in range(2):  # the same member again changes nothing
            assert reports.add(group, f"c{number}", 0.0) == (number + 1 >= needed)


def test_reports_are_dropped_when_none_comes_for_the_timeout():
    reports = CoordinatorReports(10.0)
    group = group_of(3)
    assert not reports.add(group, "c0", 0.0)
    assert not reports.add(group, "c1", 10.5)
    assert reports.add(group, "c2", 20.5)


def test_members_that_left_do_not_count():
    reports = CoordinatorReports(10.0)
    assert not reports.add(group_of(4), "c3", 0.0)
    assert not reports.add(group_of(3), "c0", 0.0)
    assert reports.add(group_of(3), "c1", 0.0)


def test_reports_about_one_coordinator_do_not_count_against_the_next():
    reports = CoordinatorReports(10.0)
    assert not reports.add(group_of(3), "c0", 0.0)
    assert not reports.add(group_of(3, "beta"), "c1", 0.0)
    for forget in (lambda: reports.forget("g"), reports.clear):
        forget()
        assert not reports.add(group_of(3), "c0", 0.0)
        assert reports.add(group_of(3), "c1", 0.0)
