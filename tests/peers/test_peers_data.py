"""Data links: statements one way, answers and batches the other, credit, loss."""

from __future__ import annotations

import uuid

import pytest
import trio
from peers_support import (
    KEY,
    STREAM,
    Ends,
    Node,
    data,
    declare,
    greet,
    linked,
    net,
    own,
    pair,
    settled,
    statement,
    stranger,
)

from liftbridge.broker.peers import LinkError, bounds
from liftbridge.broker.peers.data import FollowLink
from liftbridge.broker.peers.model import Purpose
from liftbridge.broker.peers.pipe import framed
from liftbridge.replication.codec import FollowerCodec
from liftbridge.replication.messages import Accepted, Fence, Fenced


@pytest.mark.parametrize("size", [1, bounds.INLINE_BYTES, bounds.INLINE_BYTES + 1, 300_000, 9_000_000])
async def test_batches_come_as_they_were(size):
    async with pair() as (follow, lead, _, _):
        await declare(follow, lead)
        payloads = [bytes((number,)) * size for number in range(3)]
        async with trio.open_nursery() as nursery:

            async def send():
                for number, payload in enumerate(payloads):
                    while lead.turns.credit <= 0:
                        await lead.receive()
                    lead.turns.offer(KEY)
                    lead.turns.next()
                    lead.turns.sent(KEY, size, more=False)
                    await lead.send_data(KEY, data(1, number, size), memoryview(payload))

            nursery.start_soon(send)
            come = []
            while len(come) < 3:
                for item in await follow.receive():
                    come.append(item)
                    follow.dealt_with(len(item[2]))
        assert come == [(KEY, data(1, number, size), payloads[number]) for number in range(3)]
        assert (lead.broker, follow.leader) == ("s1", "s2")


async def test_a_newer_statement_takes_the_place_of_one_that_waits():
    async with pair() as (follow, lead, _, _):
        await declare(follow, lead)
        for position in range(100):  # in one turn
            follow.send(KEY, statement("s1", next_offset=position))
        assert await lead.receive() == [(KEY, statement("s1", next_offset=99))]
        await settled()
        assert not lead._news


async def test_what_the_leader_has_not_taken_is_replaced_too():
    async with pair() as (follow, lead, _, _):
        await declare(follow, lead)
        other = (STREAM, 1)
        for position in range(5):
            follow.send(KEY, statement("s1", next_offset=position))
            follow.send(other, statement("s1", next_offset=position))
            await settled()
        assert dict(await lead.receive()) == {
            KEY: statement("s1", next_offset=4),
            other: statement("s1", next_offset=4),
        }


async def test_many_partitions_state_and_are_answered():
    keys = [(uuid.UUID(int=number), number) for number in range(5000)]
    async with pair() as (follow, lead, _, _):
        for key in keys:
            follow.send(key, statement("s1"))
        stated = {}
        while len(stated) < len(keys):
            stated.update(await lead.receive())
        for key in keys:
            lead.send(key, Accepted(4, 1, 7))
        come = []
        while len(come) < len(keys):
            come += await follow.receive()
        assert [key for key, _, _ in come] == keys


async def test_answers_go_before_data_and_the_newest_counts():
    async with pair() as (follow, lead, _, _):
        await declare(follow, lead)
        lead.send(KEY, Fenced(4, 1, Fence.NOT_LEADING))
        lead.send(KEY, Accepted(4, 2, 5))
        await lead.send_data(KEY, data(2, 0, 10), bytes(10))
        come = []
        while len(come) < 2:
            come += await follow.receive()
        assert come == [(KEY, Accepted(4, 2, 5), b""), (KEY, data(2, 0, 10), bytes(10))]


async def test_only_the_newest_position_without_batches_waits():
    async with pair() as (follow, lead, _, _):
        await declare(follow, lead)
        for mark in range(50):
            await lead.send_data(KEY, data(1, 0, high_watermark=mark), b"")
        await settled()
        assert await follow.receive() == [(KEY, data(1, 0, high_watermark=49), b"")]


# Credit.


async def test_what_was_dealt_with_is_credit_again():
    async with pair() as (follow, lead, _, _):
        await declare(follow, lead)
        window = lead.turns.credit
        lead.turns.offer(KEY)
        await lead.send_data(KEY, data(1, 0, 1000), bytes(1000))
        assert lead.turns.next() is not None
        lead.turns.sent(KEY, 1000, more=False)
        await follow.receive()
        await settled()
        assert lead.turns.credit == window - 1000
        follow.dealt_with(1000)
        assert await lead.receive() == []
        assert lead.turns.credit == window


async def _keep_sending(lead, size, count):
    for number in range(count):
        while (turn := lead.turns.next()) is None:
            await lead.receive()
            lead.turns.offer(KEY)
        await lead.send_data(turn[0], data(1, number, size), bytes(size))
        lead.turns.sent(KEY, size, more=True)


async def test_a_slow_follower_holds_its_window_and_one_more_batch(monkeypatch):
    window, size = bounds.WINDOW, 1_000_000
    async with pair() as (follow, lead, _, _), trio.open_nursery() as nursery:
        await declare(follow, lead)
        lead.turns.offer(KEY)
        nursery.start_soon(_keep_sending, lead, size, 50)
        held, come = 0, 0
        while come < 50:
            await settled()
            items = await follow.receive()
            held += sum(len(payload) for _, _, payload in items)
            assert held <= window + size
            come += len(items)
            if held >= window or come == 50:
                follow.dealt_with(held)
                held = 0
        assert lead.lost is follow.lost is None


async def test_a_link_lives_while_its_follower_does_nothing(monkeypatch):
    monkeypatch.setattr(bounds, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(bounds, "HEARTBEAT_SECONDS", 0.1)
    async with pair() as (follow, lead, _, _), trio.open_nursery() as nursery:
        await declare(follow, lead)
        lead.turns.offer(KEY)
        nursery.start_soon(_keep_sending, lead, 1_000_000, 50)
        await trio.sleep(1.5)  # three times the silence that would end it
        assert lead.turns.credit <= 0
        assert lead.lost is follow.lost is None
        nursery.cancel_scope.cancel()


async def test_a_leader_that_sends_beyond_its_credit_loses_the_link():
    async with pair() as (follow, lead, ends, _):
        await declare(follow, lead)
        with pytest.raises(LinkError):
            for number in range(100):
                await lead.send_data(KEY, data(1, number, 1_000_000), bytes(1_000_000))
                await settled()
        assert "beyond its credit" in follow.lost
        assert sum(len(payload) for _, _, payload in follow._come) <= bounds.WINDOW + 1_000_000
        await ends.next()  # and there is another


async def test_a_follower_that_gives_back_what_it_did_not_get_loses_the_link():
    async with pair() as (follow, lead, ends, _):
        await declare(follow, lead)
        follow.dealt_with(1)
        await ends.next()
        assert "did not get" in lead.lost


async def test_who_waits_for_a_link_that_is_lost_is_told():
    async with pair() as (follow, lead, _, _):
        async with trio.open_nursery() as nursery:

            async def wait(link):
                with pytest.raises(LinkError, match="is over: the test"):
                    await link.receive()

            nursery.start_soon(wait, follow)
            nursery.start_soon(wait, lead)
            await settled()
            for link in (follow, lead):
                link.lose("the test")
        with pytest.raises(LinkError):
            await lead.send_data(KEY, data(1, 0, 10), bytes(10))


# Partitions that are gone.


async def test_what_comes_for_a_forgotten_partition_is_dropped_and_given_back():
    async with pair() as (follow, lead, _, _):
        await declare(follow, lead)
        window = lead.turns.credit
        await lead.send_data(KEY, data(1, 0, 1000), bytes(1000))
        await settled()
        lead.turns.offer(KEY)
        lead.turns.next()
        lead.turns.sent(KEY, 1000, more=True)
        follow.forget(KEY)
        await lead.send_data(KEY, data(1, 1, 500), bytes(500))  # it is on its way already
        lead.turns.next()
        lead.turns.sent(KEY, 500, more=True)
        assert await lead.receive() == []
        await settled()
        assert lead.take_forgotten() == [KEY]
        assert lead.take_forgotten() == []
        assert follow._come == []
        assert lead.turns.credit == window
        assert lead.turns.next() is None
        lead.send(KEY, Accepted(4, 1, 0))
        await lead.send_data(KEY, data(1, 2, 300), bytes(300))
        assert lead.turns.credit == window + 300  # what the caller then takes off again


async def test_a_partition_comes_back_after_it_was_forgotten():
    async with pair() as (follow, lead, _, _):
        for session in (1, 2, 3):
            await declare(follow, lead, session=session)
            await lead.send_data(KEY, data(session, 0, 10), bytes(10))
            assert await follow.receive() == [(KEY, data(session, 0, 10), bytes(10))]
            follow.dealt_with(10)
            follow.forget(KEY)
            while not lead.take_forgotten():
                await lead.receive()


async def test_a_leader_that_forgets_gives_the_turn_up():
    async with pair() as (follow, lead, _, _):
        await declare(follow, lead)
        lead.turns.offer(KEY)
        lead.send(KEY, Accepted(4, 1, 9))
        lead.forget(KEY)
        assert lead.turns.next() is None
        await settled()
        assert follow._come == []


# Loss.


async def test_after_a_loss_there_is_another_link():
    async with pair() as (follow, lead, ends, _):
        await declare(follow, lead)
        lead.lose("the test")
        follow, lead = await ends.next()
        await declare(follow, lead)
        follow.lose("the test")
        follow, lead = await ends.next()
        await declare(follow, lead)


async def test_a_follower_finds_the_leader_at_a_new_address():
    async with pair() as (_, _, ends, made):
        made.stop(ends.leader)
        again = await made.add(Node(own(2)), dials=False)
        after = Ends(ends.follower, again)
        follow, lead = await ends._follows.receive(), await after._leads.receive()
        await declare(follow, lead)


async def test_a_session_that_returns_has_its_link_made_anew():
    async with net() as made:
        follower, leader = (
            await made.add(Node(own(1)), dials=False),
            await made.add(Node(own(2)), dials=False),
        )
        ends = Ends(follower, leader)
        links = []

        async def session(link: FollowLink) -> None:
            links.append(link)
            if len(links) == 3:
                made.nursery.cancel_scope.cancel()

        made.nursery.start_soon(follower.peers.follow, "s2", session)
        await trio.sleep_forever()
    assert len(links) == 3
    assert ends


async def test_what_a_session_raises_goes_to_whoever_follows():
    async with net() as made:
        follower, leader = (
            await made.add(Node(own(1)), dials=False),
            await made.add(Node(own(2)), dials=False),
        )
        assert Ends(follower, leader)

        async def session(link: FollowLink) -> None:
            raise KeyError("a defect")

        with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
            await follower.peers.follow("s2", session)


async def test_a_newer_link_of_a_follower_ends_the_older():
    async with pair() as (_, lead, ends, _):
        async with trio.open_nursery() as nursery:
            again = Ends(ends.follower, ends.leader)
            nursery.start_soon(again.run)
            newer, _ = await again.next()
            await settled()
            assert lead.lost == "the other server has opened another"
            nursery.cancel_scope.cancel()
        assert newer


async def test_sending_that_is_cancelled_in_the_middle_loses_the_link():
    async with pair() as (follow, lead, ends, _):
        await declare(follow, lead)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lead.send_data, KEY, data(1, 0, 20_000_000), bytes(20_000_000))
            while not lead._on_way:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert lead.lost == "sending was ended in the middle"
        await ends.next()


async def test_without_a_leader_nobody_follows():
    async with net() as made:
        follower, leader = (
            await made.add(Node(own(1)), dials=False),
            await made.add(Node(own(2)), dials=False),
        )
        await made.nursery.start(_follow, follower)
        while not leader.peers.refusals:
            await trio.sleep(0.01)
        assert leader.peers.linked == ()


async def _follow(follower, task_status):
    task_status.started()
    await follower.peers.follow("s2", lambda link: trio.sleep_forever())


# Hostile followers and leaders.


@pytest.mark.parametrize("window", [0, bounds.MIN_WINDOW - 1, bounds.MAX_WINDOW + 1])
async def test_a_window_beyond_all_measure_is_refused(window):
    async with net() as made:
        leader = await made.add(Node(own(2)), dials=False)
        assert Ends(leader, leader)
        async with stranger(leader, Purpose.DATA) as (messages, _):
            with pytest.raises(LinkError, match="a window of"):
                await greet(messages, Purpose.DATA, own(1), leader, window=window)


async def test_hostile_statements_end_the_link_and_nothing_else():
    async with net() as made:
        follower, leader = (
            await made.add(Node(own(1)), dials=False),
            await made.add(Node(own(2)), dials=False),
        )
        ends = Ends(follower, leader)
        async with stranger(leader, Purpose.DATA) as (messages, pipe):
            await greet(messages, Purpose.DATA, own(3), leader)
            await pipe.send(framed(FollowerCodec("s3").statement(KEY, statement("s3")) + b"\xff"))
            with pytest.raises(LinkError, match="kind 255"):
                while True:
                    await messages.receive_one()
        await ends._leads.receive()
        made.nursery.start_soon(ends.run)
        await declare(*await ends.next())


@pytest.mark.parametrize("junk", [b"\xff", b"\x01\0\0\0\0", bytes(100)])
async def test_hostile_answers_end_the_link_and_nothing_else(junk):
    async with pair() as (follow, lead, ends, _):
        await declare(follow, lead)
        await lead._pipe.send(framed(junk))
        await declare(*await ends.next())
        assert follow.lost


async def test_batches_of_another_length_than_described_end_the_link():
    async with pair() as (follow, lead, ends, _):
        await declare(follow, lead)
        await lead._pipe.send(framed(lead._codec.data(KEY, data(1, 0, 100))) + framed(bytes(99)))
        await ends.next()
        assert "99 bytes of batches where 100" in follow.lost


async def test_data_links_work_beside_control_links():
    async with net() as made:
        one, other = await made.add(Node(own(1))), await made.add(Node(own(2)))
        ends = Ends(one, other)
        made.nursery.start_soon(ends.run)
        await linked(one, other)
        await declare(*await ends.next())
