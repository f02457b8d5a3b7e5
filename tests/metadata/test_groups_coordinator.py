"""The coordinator of consumer groups on a real controller and journal, under a clock that the test moves."""

from __future__ import annotations

import pytest
import trio
from metadata_cases import create

from liftbridge.broker.config import GroupsConfig
from liftbridge.broker.controller import Controller
from liftbridge.broker.groups import ConsumerGroups, Liveness
from liftbridge.broker.identity import DataDirectory
from liftbridge.broker.journal import Journal, JournalError
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.operations import ChangeGroupCoordinator, CreateStream, JoinGroup, LeaveGroup
from liftbridge.metadata.placement import Placement

SECOND = 10**9
FOUR = (Placement(("node1",), "node1"),) * 4


@pytest.fixture
def data(tmp_path):
    directory = DataDirectory.open(tmp_path / "data", "node1")
    yield directory
    directory.close()


@pytest.fixture
async def controller(data, nursery):
    controller = await Controller.start(
        data, namespace="test", bootstrap=True, clock=lambda: 1, snapshot_entries=20
    )
    await controller.propose(create("a", partitions=FOUR))
    yield controller
    await controller.close()


@pytest.fixture
async def groups(controller, nursery):
    groups = ConsumerGroups(controller, GroupsConfig(consumer_timeout=10 * SECOND))
    await nursery.start(groups.run)
    return groups


def applied(controller):
    """Operations that are applied from now on, by kind and what they are about."""
    seen = []
    controller.subscribe(lambda index, operation, outcome: seen.append(operation))
    return seen


async def settle(controller):
    """Let everything happen that is due, an operation under way included."""
    await trio.testing.wait_all_tasks_blocked()
    async with controller._turn:
        pass
    await trio.testing.wait_all_tasks_blocked()


async def until(condition):
    """Wait for what needs no time to pass, but perhaps the disk."""
    while not condition():
        await trio.lowlevel.checkpoint()


async def test_each_member_is_removed_when_its_own_time_is_up(controller, groups, mock_clock):
    seen = applied(controller)
    members = {name: (await groups.join("g", name, ["a"])).members[name] for name in ("c1", "c2", "c3")}
    epoch = controller.state.groups["g"].epoch
    mock_clock.jump(9)
    groups.assignments("g", "c2", epoch)
    await settle(controller)
    assert [operation for operation in seen if isinstance(operation, LeaveGroup)] == []
    mock_clock.jump(1)
    await until(lambda: list(controller.state.groups["g"].members) == ["c2"])
    assert {operation for operation in seen if isinstance(operation, LeaveGroup)} == {
        LeaveGroup("g", name, members[name].joined, expired=True) for name in ("c1", "c3")
    }
    mock_clock.jump(8)
    await settle(controller)
    assert "g" in controller.state.groups
    mock_clock.jump(1)
    await until(lambda: "g" not in controller.state.groups)


async def test_who_joins_anew_has_its_own_time(controller, groups, mock_clock):
    await groups.join("g", "c1", ["a"])
    await groups.join("g", "c2", ["a"])
    mock_clock.jump(5)
    await groups.leave("g", "c1")
    await groups.join("g", "c1", ["a"])
    mock_clock.jump(5)
    await until(lambda: list(controller.state.groups["g"].members) == ["c1"])
    mock_clock.jump(5)
    await until(lambda: "g" not in controller.state.groups)


async def test_a_sign_of_life_while_others_are_written_counts(controller, groups, mock_clock):
    """It comes when the time is up, but the removal waits for its turn."""
    epoch = (await groups.join("g", "c1", ["a"])).epoch
    seen = applied(controller)
    async with controller._turn:
        mock_clock.jump(10)
        await trio.testing.wait_all_tasks_blocked()
        groups.assignments("g", "c1", epoch)
    await controller.propose(create("b", 2))
    assert [type(operation) for operation in seen] == [CreateStream]
    assert "c1" in controller.state.groups["g"].members


async def test_who_is_just_being_removed_is_told(controller, groups, mock_clock, monkeypatch):
    epoch = (await groups.join("g", "c1", ["a"])).epoch
    written, go_on = trio.Event(), trio.Event()
    save = Journal.save

    def slow(*arguments):
        trio.from_thread.run_sync(written.set)
        trio.from_thread.run(go_on.wait)
        save(*arguments)

    monkeypatch.setattr(Journal, "save", slow)
    mock_clock.jump(10)
    await written.wait()
    with pytest.raises(MetadataError, match="silent for too long") as caught:
        groups.assignments("g", "c1", epoch)
    assert caught.value.code is MetadataCode.FAILED_PRECONDITION
    go_on.set()
    await until(lambda: "g" not in controller.state.groups)


async def test_a_removal_that_cannot_be_stored_is_tried_again(
    controller, groups, mock_clock, monkeypatch, caplog
):
    await groups.join("g", "c1", ["a"])
    await groups.join("g", "c2", ["a"])
    tried = []

    def failing(*arguments):
        tried.append(arguments)
        raise JournalError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", failing)
        mock_clock.jump(10)
        await until(lambda: len(tried) == 2)
        await settle(controller)
        groups.assignments("g", "c1", controller.state.groups["g"].epoch)
        mock_clock.jump(9.5)
        await settle(controller)
        assert len(tried) == 2, "it waits for another time-out"
    mock_clock.jump(0.5)
    await until(lambda: "g" not in controller.state.groups)
    complaints = [entry for entry in caplog.records if "cannot be removed" in entry.message]
    assert len(complaints) == 1, "once for all of them"


async def test_a_process_that_stood_still_blames_nobody(controller, groups, mock_clock):
    await groups.join("g", "c1", ["a"])
    await settle(controller)
    mock_clock.jump(13)
    await settle(controller)
    mock_clock.jump(9.9)
    await settle(controller)
    assert "g" in controller.state.groups
    mock_clock.jump(0.1)
    await until(lambda: "g" not in controller.state.groups)


async def test_who_is_restored_has_a_full_timeout(controller, mock_clock, nursery):
    await controller.propose(JoinGroup("g", "c1", ("a",), "node1"))
    await controller.propose(JoinGroup("other", "c1", ("a",), "node2"))
    mock_clock.jump(1000)
    groups = ConsumerGroups(controller, GroupsConfig(consumer_timeout=10 * SECOND))
    await nursery.start(groups.run)
    mock_clock.jump(9.9)
    await settle(controller)
    assert groups.assignments("g", "c1", 0).share == {"a": (0, 1, 2, 3)}
    for step in (0.1, 9.8):
        mock_clock.jump(step)
        await settle(controller)
        assert "g" in controller.state.groups
    mock_clock.jump(0.1)
    await until(lambda: "g" not in controller.state.groups)
    mock_clock.jump(100)
    await settle(controller)
    assert "other" in controller.state.groups, "another server coordinates it"
    with pytest.raises(MetadataError, match="not the coordinator") as caught:
        groups.assignments("other", "c1", 0)
    assert caught.value.code is MetadataCode.FAILED_PRECONDITION


async def test_a_coordinator_watches_from_when_it_is_one(controller, groups, mock_clock):
    await controller.propose(JoinGroup("g", "c1", ("a",), "node2"))
    mock_clock.jump(100)
    group = await controller.propose(ChangeGroupCoordinator("g", "node1", 0))
    mock_clock.jump(9.9)
    await settle(controller)
    groups.assignments("g", "c1", group.epoch)
    await controller.propose(ChangeGroupCoordinator("g", "node2", group.epoch))
    mock_clock.jump(100)
    await settle(controller)
    assert "g" in controller.state.groups


async def test_a_reported_coordinator_is_replaced_once_and_its_reports_forgotten(
    controller, groups, monkeypatch
):
    """With a second broker, as a cluster will have one."""
    monkeypatch.setattr(ConsumerGroups, "_brokers", ("node1", "node2", "node3"))
    for name in ("c1", "c2", "c3"):
        await groups.join("g", name, ["a"])
    await controller.propose(JoinGroup("h", "c", ("a",), "node2"))
    group = controller.state.groups["g"]
    await groups.report("g", "c1", "node1", group.epoch)
    assert controller.state.groups["g"] is group
    await groups.report("g", "c2", "node1", group.epoch)
    moved = controller.state.groups["g"]
    assert (moved.coordinator, moved.members) == ("node3", group.members)
    assert moved.epoch > group.epoch
    with pytest.raises(MetadataError, match="is 'node3', not 'node1'"):
        await groups.report("g", "c3", "node1", group.epoch)
    await groups.report("g", "c3", "node3", moved.epoch)
    assert controller.state.groups["g"] is moved


async def test_between_two_joins_others_have_their_turn(controller, groups):
    seen = applied(controller)
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(groups.join, "g", f"c{number}", ["a"])
        await until(lambda: seen)
        await controller.propose(create("b", 2))
    (place,) = (place for place, operation in enumerate(seen) if isinstance(operation, CreateStream))
    assert place <= 3
    assert len(seen) == 201


async def test_who_waits_for_its_turn_is_bounded(controller, groups, monkeypatch):
    monkeypatch.setattr("liftbridge.broker.groups.MAX_WAITING", 5)
    codes = []

    async def join(name):
        try:
            await groups.join("g", name, ["a"])
        except MetadataError as error:
            codes.append(error.code)

    async with trio.open_nursery() as nursery:
        async with controller._turn:
            for number in range(10):
                nursery.start_soon(join, f"c{number}")
            await trio.testing.wait_all_tasks_blocked()
            assert codes == [MetadataCode.RESOURCE_EXHAUSTED] * 4
            with pytest.raises(MetadataError) as caught:
                await groups.join("", "c", ["a"])
            assert caught.value.code is MetadataCode.INVALID_ARGUMENT, "who is refused does not wait"
    assert len(controller.state.groups["g"].members) == 6


async def test_coming_and_going_for_long_takes_no_more_room(controller, groups, data):
    def size():
        return sum(path.stat().st_size for path in (data.path / "metadata").iterdir())

    sizes = []
    for _ in range(4):
        for number in range(50):
            await groups.join("g", f"c{number % 3}", ["a"])
            await groups.leave("g", f"c{number % 3}")
        sizes.append(size())
    assert max(sizes) < 2 * min(sizes)


def test_signs_of_life_are_in_order():
    liveness = Liveness(10.0)
    assert liveness.first() is None
    for place, name in enumerate("abc"):
        liveness.heard(("g", name), float(place))
    assert liveness.first() == (("g", "a"), 10.0)
    liveness.heard(("g", "a"), 3.0)
    assert liveness.first() == (("g", "b"), 11.0)
    assert liveness.is_silent(("g", "b"), 11.0)
    assert not liveness.is_silent(("g", "b"), 10.9)
    liveness.forget(("g", "b"))
    assert not liveness.is_silent(("g", "b"), 100.0)
    liveness.all_heard(20.0)
    assert liveness.first() == (("g", "c"), 30.0)
