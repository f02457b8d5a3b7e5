"""The controllers of several servers: it makes no difference which one is asked."""

from __future__ import annotations

import shutil

import pytest
import trio
from controllers import controllers_of
from metadata_cases import create

from liftbridge.broker import controller as controller_module
from liftbridge.broker.controller import LEADER_UNKNOWN_TEXT, OUTCOME_UNKNOWN_TEXT
from liftbridge.broker.forwarding import AnswerError, NotDecidingError, answer, answer_elsewhere, index_of
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.operations import DeleteStream, JoinGroup, PauseStream


async def test_what_any_server_is_asked_for_is_there_on_that_server_at_once(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        await controllers.leader()
        for name, controller in controllers.running.items():
            heard = []
            controller.subscribe(lambda index, operation, outcome, heard=heard: heard.append(operation))
            stream = await controller.create_stream(name=f"s{name}", subject=f"s{name}")
            assert controller.state.stream(f"s{name}") == stream
            assert heard[-1].name == f"s{name}"
        # Whoever is asked next knows of what another one was told, whether it has heard of it already or not.
        for name, controller in controllers.running.items():
            gone = name % 3 + 1
            assert (await controller.delete_stream(f"s{gone}")).name == f"s{gone}"
            with pytest.raises(MetadataError, match="No such stream"):
                await controller.delete_stream(f"s{gone}")
        states = {controller.state.snapshot() for controller in controllers.running.values()}
        indices = {controller.consensus.applied for controller in controllers.running.values()}
        assert len(indices) > 1 or len(states) == 1


async def test_a_refusal_is_the_same_wherever_it_comes_from(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        leader = controllers.running[await controllers.leader()]
        await leader.create_stream(name="orders", subject="orders")
        refusals = []
        for controller in controllers.running.values():
            with pytest.raises(MetadataError) as caught:
                await controller.create_stream(name="orders", subject="orders")
            refusals.append((caught.value.code, caught.value.text))
        assert len(set(refusals)) == 1
        assert refusals[0][0] is MetadataCode.ALREADY_EXISTS


async def test_creates_at_all_servers_at_once_are_created_once_each(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        await controllers.leader()
        created, refused = [], []

        async def create_one(controller, number: int) -> None:
            try:
                created.append(await controller.create_stream(name=f"s{number}", subject="s"))
            except MetadataError as error:
                assert error.code is MetadataCode.ALREADY_EXISTS
                refused.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(30):
                for controller in controllers.running.values():
                    nursery.start_soon(create_one, controller, number)
        assert sorted(stream.name for stream in created) == sorted(f"s{number}" for number in range(30))
        assert len(refused) == 60


async def test_a_lost_leader_costs_its_clients_nothing_but_time(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        leader = await controllers.leader()
        asked = await controllers.follower()
        await controllers.stop(leader)
        stream = await controllers.running[asked].create_stream(name="orders", subject="orders")
        await controllers.start(leader)
        assert await controllers.running[leader].delete_stream("orders") == stream


async def test_an_answer_that_is_lost_is_asked_for_again_and_done_once(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        leader, asked = await controllers.leader(), await controllers.follower()
        controllers.swallow = [leader] * 2
        stream = await controllers.running[asked].create_stream(name="orders", subject="orders")
        assert controllers.swallow == []
        assert controllers.running[leader].state.stream("orders") == stream
        controllers.swallow = [leader]
        pause = PauseStream("orders", stream.stream_id, (0,), False, 5)
        assert (await controllers.running[asked].propose(pause)).partitions[0].paused
        controllers.swallow = [leader]
        deleted = await controllers.running[asked].delete_stream("orders")
        assert deleted.stream_id == stream.stream_id
        assert controllers.swallow == []


async def test_what_must_not_be_done_twice_is_not_asked_for_again(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        leader, asked = await controllers.leader(), await controllers.follower()
        await controllers.running[asked].create_stream(name="orders", subject="orders")
        controllers.swallow = [leader]
        join = JoinGroup("g", "c", ("orders",), "node1")
        with pytest.raises(MetadataError) as caught:
            await controllers.running[asked].propose(join)
        assert caught.value.text == OUTCOME_UNKNOWN_TEXT
        assert "g" in controllers.running[leader].state.groups


async def test_a_server_that_is_cut_off_says_that_nobody_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(controller_module, "DECISION_SECONDS", 0.5)
    async with controllers_of(tmp_path) as controllers:
        leader, asked = await controllers.leader(), await controllers.follower()
        controllers.cut.add(asked)
        with pytest.raises(MetadataError) as caught:
            await controllers.running[asked].create_stream(name="orders", subject="orders")
        assert (caught.value.code, caught.value.text) == (MetadataCode.INTERNAL, LEADER_UNKNOWN_TEXT)
        # The leader steps down when it hears of nobody; what it was asked meanwhile may yet be agreed on.
        controllers.cut = {leader}
        with pytest.raises(MetadataError) as caught:
            await controllers.running[leader].create_stream(name="orders", subject="orders")
        assert caught.value.text in (LEADER_UNKNOWN_TEXT, OUTCOME_UNKNOWN_TEXT)
        controllers.cut.clear()


async def test_a_leader_that_is_cut_off_has_what_it_was_asked_for_when_it_is_back(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        leader = await controllers.leader()
        controllers.cut = {leader}
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                stream = await controllers.running[leader].create_stream(name="orders", subject="orders")
                assert controllers.running[leader].state.stream("orders") == stream

            nursery.start_soon(ask)
            other = await controllers.leader()
            assert other != leader
            controllers.cut.clear()
        assert await controllers.running[other].delete_stream("orders")


async def test_a_server_that_was_away_for_long_knows_what_is_deleted(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        away = await controllers.follower()
        asked = controllers.running[await controllers.leader()]
        kept = await asked.create_stream(name="kept", subject="kept")
        await asked.create_stream(name="orders", subject="orders")
        await controllers.stop(away)
        for _ in range(20):
            await asked.delete_stream("orders")
            await asked.create_stream(name="orders", subject="orders")
        await asked.delete_stream("orders")
        back = await controllers.start(away)
        with pytest.raises(MetadataError, match="No such stream"):
            await back.delete_stream("orders")
        assert back.state.streams == {"kept": kept}


async def test_only_who_decides_carries_out_what_others_ask(tmp_path):
    async with controllers_of(tmp_path) as controllers:
        follower = controllers.running[await controllers.follower()]
        leader = controllers.running[await controllers.leader()]
        assert await follower.answer_read(b"") == answer_elsewhere()
        assert await follower.answer_propose(create("orders").encode()) == answer_elsewhere()
        assert index_of(await leader.answer_read(b"")) == leader.consensus.core.commit
        with pytest.raises(MetadataError, match="No such stream"):
            index_of(await leader.answer_propose(DeleteStream("orders", create("orders").stream_id).encode()))
        with pytest.raises(MetadataError) as caught:
            index_of(await leader.answer_propose(b"\xff"))
        assert caught.value.code is MetadataCode.FAILED_PRECONDITION


async def members_are(controllers, names: set[int], *, voters: bool = True) -> None:
    """Wait until all know that those are the members, all with a vote."""
    nodes = {controllers.running[name].consensus.core.node_id for name in names}
    for name in names:
        core = controllers.running[name].consensus.core
        while core.members.voters != nodes:
            await trio.sleep(0.02)
            core = controllers.running[name].consensus.core


async def registered(controllers, *names: int) -> None:
    for name in names:
        await controllers.register(name, incarnation=100 + name)
        await controllers.unfence(name)


async def test_a_server_joins_and_gets_a_vote(tmp_path):
    async with controllers_of(tmp_path, 1) as controllers:
        await registered(controllers, 1)
        stream = await controllers.running[1].create_stream(name="orders", subject="orders")
        for name in (2, 3):
            controllers.create_joining(name)
            joined = await controllers.start(name)
            await registered(controllers, name)
            assert joined.state.stream("orders") == stream
        await members_are(controllers, {1, 2, 3})
        # Whoever joined can do without who began.
        await controllers.stop(1)
        assert await controllers.running[3].delete_stream("orders") == stream


async def test_a_server_whose_disk_was_replaced_is_another_node(tmp_path):
    async with controllers_of(tmp_path, 3) as controllers:
        await registered(controllers, 1, 2, 3)
        await members_are(controllers, {1, 2, 3})
        gone = await controllers.follower()
        old = controllers.running[gone].consensus.core.node_id
        await controllers.stop(gone)
        shutil.rmtree(tmp_path / f"node{gone}")
        controllers.create_joining(gone)
        await controllers.start(gone)
        await controllers.register(gone, incarnation=200)
        await controllers.unfence(gone)
        await members_are(controllers, {1, 2, 3})
        assert old not in controllers.running[gone].consensus.core.members.voters


async def test_each_run_of_a_server_has_an_epoch_of_its_own(tmp_path):
    async with controllers_of(tmp_path, 3) as controllers:
        await registered(controllers, 1, 2, 3)
        name = await controllers.follower()
        first = await controllers.register(name, incarnation=100 + name)
        assert first.epoch == controllers.running[name].state.brokers[f"node{name}"].epoch
        second = await controllers.register(name, incarnation=300)
        assert first.epoch is None or first.epoch > second.epoch
        assert second.epoch is not None


async def test_only_a_registration_is_taken_from_who_belongs_to_nothing(tmp_path):
    async with controllers_of(tmp_path, 1) as controllers:
        controller = controllers.running[1]
        with pytest.raises(MetadataError, match="only a registration"):
            index_of(await controller.answer_register(create("orders").encode()))
        assert "orders" not in controller.state.streams


def test_an_answer_is_an_index_or_says_why_not():
    assert index_of(answer(7)) == 7
    with pytest.raises(NotDecidingError):
        index_of(answer_elsewhere())
    for garbage in (b"", b"\xff", b"\x10\x63"):
        with pytest.raises(AnswerError):
            index_of(garbage)
