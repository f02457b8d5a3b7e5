"""Control links: messages of the consensus, questions, what becomes of them when a link is lost."""

from __future__ import annotations

import pytest
import trio
from peers_support import Node, append, greet, linked, net, own, settled, stranger, timeout_now

from liftbridge.broker.forwarding import LostError, UnreachableError
from liftbridge.broker.peers import LinkError, UnansweredError, bounds
from liftbridge.broker.peers.model import Purpose
from liftbridge.broker.peers.pipe import framed
from liftbridge.raft import SnapshotChunk, SnapshotMeta, encode_message
from liftbridge.raft.messages import Members


async def two(made, **options):
    one, other = await made.add(Node(own(1), **options)), await made.add(Node(own(2), **options))
    await linked(one, other)
    return one, other


async def test_messages_go_both_ways_over_a_link_that_one_side_has_opened():
    async with net() as made:
        one = await made.add(Node(own(1)), dials=True)
        other = await made.add(Node(own(2)), dials=False)
        await linked(one, other)
        one.peers.send(timeout_now(one, other))
        other.peers.send(append(other, one, 3, 100))
        await other.until(lambda: bool(other.delivered))
        await one.until(lambda: bool(one.delivered))
        assert other.delivered == [timeout_now(one, other)]
        assert one.delivered == [append(other, one, 3, 100)]
        assert one.peers.dropped == other.peers.dropped == 0


@pytest.mark.parametrize("size", [0, 1, bounds.MAX_PIECE, 3 * bounds.MAX_PIECE, 5_000_000])
async def test_messages_of_any_size_come_as_they_were(size):
    async with net() as made:
        one, other = await two(made)
        sent = [append(one, other, sequence, size) for sequence in range(3)]
        for message in sent:
            one.peers.send(message)
        await other.until(lambda: len(other.delivered) == 3)
        assert other.delivered == sent
        answer = await one.peers.ask(2, "echo", b"q" * size)
        assert answer == b"q" * size


async def test_a_message_without_a_link_is_dropped_counted_and_has_one_opened():
    async with net() as made:
        one = await made.add(Node(own(1)))
        one.peers.send(timeout_now(one, Node(own(9))))
        assert one.peers.dropped == 1
        other = await made.add(Node(own(2)), dials=False)
        one.map.anybody = list
        one.peers.send(timeout_now(one, other))
        while not one.peers.linked:
            await trio.sleep(0.01)
        one.peers.send(timeout_now(one, other))
        await other.until(lambda: bool(other.delivered))


async def test_a_full_queue_drops_and_counts():
    async with net() as made:
        one, other = await two(made)
        most = bounds.QUEUE_BYTES[2] // 1_000_000
        for sequence in range(most + 10):  # in one turn, so that nothing leaves meanwhile
            one.peers.send(append(one, other, sequence, 1_000_000))
        assert 10 <= one.peers.dropped <= 11
        await other.until(lambda: len(other.delivered) == most + 10 - one.peers.dropped)


async def test_a_heartbeat_overtakes_a_snapshot():
    async with net() as made:
        one, other = await two(made)
        meta = SnapshotMeta(5, 1, Members(frozenset({1})))
        one.peers.send(SnapshotChunk(1, 2, 1, 5, 1, meta, 0, 3_000_000, 1, bytes(3_000_000)))
        one.peers.send(append(one, other, 7))
        await other.until(lambda: len(other.delivered) == 2)
        assert isinstance(other.delivered[1], SnapshotChunk)


async def test_a_question_is_answered_to_whoever_asked_it():
    async with net() as made:
        one, other = await two(made)

        async def answer(server_id, kind, payload):
            await trio.sleep(0.001 * (10 - payload[0]))
            return server_id.encode() + kind.encode() + payload

        other.answer = answer
        answers = {}

        async def ask(number):
            answers[number] = await one.peers.ask(2, "kind", bytes((number,)))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(ask, number)
        assert answers == {number: b"s1kind" + bytes((number,)) for number in range(10)}


async def test_what_an_answer_that_failed_means_to_the_asker(caplog):
    async with net() as made:
        one, other = await two(made)

        async def refuse(server_id, kind, payload):
            raise UnansweredError("not of that kind")

        async def fail(server_id, kind, payload):
            raise KeyError("a secret of the server")

        other.answer = refuse
        with pytest.raises(UnreachableError, match="not of that kind"):
            await one.peers.ask(2, "kind", b"")
        other.answer = fail
        with pytest.raises(LostError, match="KeyError") as caught:
            await one.peers.ask(2, "kind", b"")
        assert "a secret of the server" not in str(caught.value)
    assert "a question of server s1 of kind kind failed" in caplog.text


async def test_a_question_without_a_link_is_not_asked(autojump_clock):
    async with net() as made:
        one = await made.add(Node(own(1)))
        with pytest.raises(UnreachableError):
            await one.peers.ask(2, "kind", b"")
        with pytest.raises(UnreachableError):
            await one.peers.ask_anybody("kind", b"")


async def test_anybody_is_one_of_those_who_may_be_asked():
    async with net() as made:
        nodes = [await made.add(Node(own(number))) for number in (1, 2, 3)]
        await linked(*nodes)
        nodes[0].map.anybody = lambda: ["s3"]
        for _ in range(10):
            assert await nodes[0].peers.ask_anybody("anybody", b"x") == b"x"
        assert [kind for _, kind, _ in nodes[1].asked].count("anybody") == 0


async def test_a_question_whose_link_is_lost_may_have_been_asked():
    async with net() as made:
        one, other = await two(made)

        async def never(server_id, kind, payload):
            await trio.sleep_forever()

        other.answer = never
        async with trio.open_nursery() as nursery:

            async def ask():
                with pytest.raises(LostError):
                    await one.peers.ask(2, "kind", b"")

            nursery.start_soon(ask)
            await other.until(lambda: ("s1", "kind", b"") in other.asked)
            made.stop(other)


async def test_whoever_stops_waiting_has_the_other_side_stop_too():
    async with net() as made:
        one, other = await two(made)
        ended = trio.Event()

        async def never(server_id, kind, payload):
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        other.answer = never
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.peers.ask, 2, "kind", b"")
            await other.until(lambda: ("s1", "kind", b"") in other.asked)
            nursery.cancel_scope.cancel()
        await ended.wait()
        other.answer = other._echo
        assert await one.peers.ask(2, "kind", b"x") == b"x"


async def test_open_questions_are_bounded(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_UNANSWERED", 3)
    async with net() as made:
        one, other = await two(made)
        release = trio.Event()

        async def wait(server_id, kind, payload):
            await release.wait()
            return payload

        other.answer = wait
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one.peers.ask, 2, "kind", b"")
            await other.until(lambda: len([kind for _, kind, _ in other.asked if kind == "kind"]) == 3)
            with pytest.raises(UnreachableError, match="3 questions"):
                await one.peers.ask(2, "kind", b"")
            monkeypatch.setattr(bounds, "MAX_UNANSWERED", 4)
            nursery.start_soon(one.peers.ask, 2, "kind", b"")
            await other.until(lambda: len([kind for _, kind, _ in other.asked if kind == "kind"]) == 4)
            release.set()


async def test_one_that_asks_too_much_is_told_so(monkeypatch):
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)

        async def never(server_id, kind, payload):
            await trio.sleep_forever()

        node.answer = never
        async with stranger(node, Purpose.CONTROL) as (messages, pipe):
            await greet(messages, Purpose.CONTROL, own(1), node)
            monkeypatch.setattr(bounds, "MAX_UNANSWERED", 2)
            for number in (1, 2, 3):
                question = b"\x02" + number.to_bytes(8, "little") + b"\x01k"
                await pipe.send(framed(b"\x81" + question))
            failed = [message async for message in _messages(messages, 1)]
            assert failed == [b"\x81\x04" + (3).to_bytes(8, "little") + b"\x01too many questions at a time"]
        assert len(node.asked) == 2


async def _messages(messages, count):
    while count:
        message = await messages.receive_one()
        if message:
            count -= 1
            yield message


HEAD = (1).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (b"\x80\x09" + HEAD, "lane CONSENSUS"),
        (b"\x81\x09" + HEAD, "kind 9"),
        (b"\x81", "kind 0"),
        (b"\x81\x02" + HEAD, "cut off"),
        (b"\x81\x02" + HEAD + b"\x00", "without a kind"),
        (b"\x81\x02" + HEAD + b"\x05kind", "without a kind"),
        (b"\x81\x02" + HEAD + b"\x41" + b"k" * 65, "without a kind"),
        (b"\x81\x02" + HEAD + b"\x01\xff", "no known kind"),
        (b"\x81\x04" + HEAD, "cut off"),
        (b"\x80\x01\xff\xff", "not a message of a node"),
        (b"\x85x", "of lane 5"),
    ],
)
async def test_what_a_server_does_not_send_ends_the_link_and_nothing_else(piece, words):
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, pipe):
            await greet(messages, Purpose.CONTROL, own(1), node)
            await pipe.send(framed(piece))
            with pytest.raises(LinkError, match=words):
                while True:
                    await messages.receive_one()
        other = await made.add(Node(own(1)))
        await linked(node, other)
        assert node.delivered == []


@pytest.mark.parametrize(("source", "target"), [(3, 2), (1, 3)])
async def test_nobody_speaks_for_another_node(source, target):
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, pipe):
            await greet(messages, Purpose.CONTROL, own(1), node)
            false = timeout_now(Node(own(source)), Node(own(target)))
            await pipe.send(framed(b"\x80\x01" + encode_message(false)))
            with pytest.raises(LinkError, match=f"node {source} to {target}"):
                while True:
                    await messages.receive_one()
        assert node.delivered == []


async def test_the_same_question_number_twice_ends_the_link():
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        node.answer = lambda *_: trio.sleep_forever()
        async with stranger(node, Purpose.CONTROL) as (messages, pipe):
            await greet(messages, Purpose.CONTROL, own(1), node)
            await pipe.send(2 * framed(b"\x81\x02" + HEAD + b"\x01k"))
            with pytest.raises(LinkError, match="asked twice"):
                while True:
                    await messages.receive_one()


async def test_an_answer_nobody_waits_for_is_read_over():
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, pipe):
            await greet(messages, Purpose.CONTROL, own(1), node)
            await pipe.send(
                framed(b"\x81\x03" + HEAD)
                + framed(b"\x81\x05" + HEAD)
                + framed(b"\x81\x02" + HEAD + b"\x01ka")
            )
            assert [each async for each in _messages(messages, 1)] == [b"\x81\x03" + HEAD + b"a"]


async def test_a_silent_server_is_noticed(monkeypatch):
    """Its connection stays open, and it neither sends nor answers: half-open, or stopped."""
    monkeypatch.setattr(bounds, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(bounds, "HEARTBEAT_SECONDS", 0.1)
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, _):
            await greet(messages, Purpose.CONTROL, own(1), node)
            with pytest.raises(LinkError, match=r"nothing has come for 0\.3 seconds"):
                while True:
                    await messages.receive_one()


async def test_a_link_on_which_nothing_is_said_stays(monkeypatch):
    monkeypatch.setattr(bounds, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(bounds, "HEARTBEAT_SECONDS", 0.1)
    async with net() as made:
        one, other = await two(made)
        links = one.peers._links.control(2), other.peers._links.control(1)
        await trio.sleep(1)
        assert links == (one.peers._links.control(2), other.peers._links.control(1))
        assert [link.lost for link in links] == [None, None]


async def test_a_lost_link_is_opened_again_and_at_once_at_a_new_address():
    async with net() as made:
        one = await made.add(Node(own(1)))
        other = await made.add(Node(own(2)), dials=False)
        await linked(one, other)
        one.peers._links.control(2).lose("the test")
        await settled()
        await linked(one, other)
        made.stop(other)
        while one.peers.linked:
            await trio.sleep(0.01)
        again = await made.add(Node(own(2)), dials=False)
        await linked(one, again)


async def test_one_server_has_a_bounded_number_of_links():
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        who = own(1)
        async with trio.open_nursery() as nursery:
            for number in range(bounds.MAX_CONTROL_LINKS + 2):
                await nursery.start(_stay, node, who, number)
            await settled()
            assert node.peers._links.count == bounds.MAX_CONTROL_LINKS
            nursery.cancel_scope.cancel()


async def _stay(node, who, number, task_status):
    async with stranger(node, Purpose.CONTROL) as (messages, pipe):
        await greet(messages, Purpose.CONTROL, who, node)
        task_status.started()
        while True:
            try:
                await messages.receive_one()
            except LinkError:
                await trio.sleep_forever()
            await pipe.send(framed(b""))


async def test_links_of_all_servers_are_bounded(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_LINKS", 2)
    async with net() as made:
        node = await made.add(Node(own(9)), dials=False)
        async with trio.open_nursery() as nursery:
            for number in (1, 2):
                await nursery.start(_stay, node, own(number), number)
            await settled()
            async with stranger(node, Purpose.CONTROL) as (messages, _):
                with pytest.raises(LinkError, match="of at most 2"):
                    await greet(messages, Purpose.CONTROL, own(3), node)
            nursery.cancel_scope.cancel()
