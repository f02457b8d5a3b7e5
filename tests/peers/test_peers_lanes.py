"""Lanes of a control link: order, priority, bounds."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from liftbridge.broker.peers import LinkError, bounds
from liftbridge.broker.peers.lanes import Incoming, Lane, Outgoing
from liftbridge.rpc.raw import split


def taken(out):
    return split(out.take())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Lane), st.integers(0, 200_000)), max_size=12), st.data())
def test_messages_come_whole_and_in_the_order_of_their_lane(messages, data):
    async def check():
        out, incoming = Outgoing(), Incoming()
        sent, come = {lane: [] for lane in Lane}, {lane: [] for lane in Lane}
        waiting = [(lane, bytes((number,)) * size) for number, (lane, size) in enumerate(messages)]
        while waiting or out.waiting.is_set():
            if waiting and (not out.waiting.is_set() or data.draw(st.booleans())):
                lane, message = waiting.pop(0)
                if out.put(lane, message):
                    sent[lane].append(message)
            else:
                for piece in taken(out):
                    assert len(piece) <= bounds.MAX_PIECE + 1
                    whole = incoming.add(piece)
                    if whole:
                        come[whole[0]].append(whole[1])
        assert come == sent

    trio.run(check)


async def test_a_small_message_waits_for_one_piece_of_a_large_one():
    out = Outgoing()
    out.put(Lane.SNAPSHOTS, bytes(10 * bounds.MAX_PIECE))
    assert sum(map(len, taken(out))) <= bounds.MAX_PIECE + 1
    out.put(Lane.CONSENSUS, b"urgent")
    assert taken(out)[0] == b"\x80urgent"


async def test_a_lane_holds_what_it_may_and_one_message_always():
    out = Outgoing()
    large = bytes(bounds.QUEUE_BYTES[Lane.CONSENSUS] + 1)
    assert out.put(Lane.CONSENSUS, large)
    assert not out.put(Lane.CONSENSUS, b"one more")
    assert out.put(Lane.QUESTIONS, b"in another lane")
    assert not Outgoing().put(Lane.QUESTIONS, bytes(bounds.MAX_QUESTION_BYTES + 1))


async def test_who_must_not_lose_a_message_waits_for_room(autojump_clock):
    out = Outgoing()
    out.put(Lane.QUESTIONS, bytes(bounds.QUEUE_BYTES[Lane.QUESTIONS]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out.put_when_there_is_room, Lane.QUESTIONS, b"late")
        await trio.sleep(1)
        pieces = []
        while out.waiting.is_set():
            pieces += taken(out)
            await trio.sleep(1)
    assert pieces[-1] == b"\x81late"


@pytest.mark.parametrize("piece", [b"\x04", b"\x84x", bytes(bounds.MAX_PIECE + 2)])
def test_what_is_no_piece_ends_the_link(piece):
    with pytest.raises(LinkError):
        Incoming().add(piece)


def test_a_message_that_never_ends_ends_the_link():
    incoming = Incoming()
    piece = b"\x01" + bytes(bounds.MAX_PIECE)
    for _ in range(bounds.MAX_QUESTION_BYTES // bounds.MAX_PIECE):
        assert incoming.add(piece) is None
    with pytest.raises(LinkError, match="QUESTIONS has more than"):
        incoming.add(piece)
