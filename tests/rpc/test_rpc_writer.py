"""What leaves at the end of a reader's turn, what is left to the writer's task, and in which order."""

import random

import pytest
import trio
import trio.testing

from liftbridge.rpc.limits import Account, Limits
from liftbridge.rpc.writer import Writer
from liftbridge.sockets import AT_ONCE, Turn, receive


class Sent:
    """A writer on one end of a real connection, and what the other end gets."""

    def __init__(self, ours, theirs):
        self.turn = Turn()
        self.account = Account(Limits())
        self.broken = False
        self.theirs = theirs
        self.writer = Writer(ours, self.account, self.turn, lambda: None, self.note_broken)
        self.expected = bytearray()

    def note_broken(self):
        self.broken = True

    def write(self, data):
        self.writer.write(data)
        self.expected += data

    def there(self):
        """What has reached the other end by now, without letting any task run."""
        try:
            return self.theirs.socket._sock.recv(1 << 20)
        except BlockingIOError:
            return b""

    async def receive_all(self, before=b""):
        received = bytearray(before)
        while len(received) < len(self.expected):
            received += await receive(self.theirs, 1 << 16)
        return received


@pytest.fixture
async def sent():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    ours = await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2])
    theirs = await listeners[0].accept()
    async with ours, theirs, listeners[0]:
        yield Sent(ours, theirs)


async def test_a_turn_sends_at_its_end_in_one_piece_and_needs_no_task(sent):
    with sent.turn:
        sent.write(b"one ")
        sent.write(b"two ")
        sent.writer.write_urgent(b"now ")
        assert sent.there() == b""
    assert await sent.theirs.receive_some(100) == b"now one two "
    assert sent.writer.size == sent.account.unsent == 0


async def test_outside_of_turns_the_task_sends(sent, nursery):
    sent.write(b"one ")
    assert sent.there() == b""
    assert sent.account.unsent == 4
    nursery.start_soon(sent.writer.run)
    assert await sent.theirs.receive_some(100) == b"one "


async def test_what_the_socket_does_not_take_follows_in_order(sent, nursery):
    nursery.start_soon(sent.writer.run)
    await trio.testing.wait_all_tasks_blocked()
    rng = random.Random(1)
    while sent.writer.size <= AT_ONCE // 2:  # the other end does not read: the socket fills up
        with sent.turn:
            for _ in range(3):
                sent.write(rng.randbytes(20_000))
    waited = sent.writer.size
    for _ in range(20):
        with sent.turn:
            sent.write(rng.randbytes(50_000))
        sent.write(rng.randbytes(10))
        await trio.lowlevel.checkpoint()
    assert sent.writer.size == sent.account.unsent > waited
    assert await sent.receive_all() == sent.expected
    await trio.testing.wait_all_tasks_blocked()
    assert sent.writer.size == sent.account.unsent == 0


async def test_a_turn_does_not_overtake_what_the_task_has_in_hand(sent, nursery):
    nursery.start_soon(sent.writer.run)
    rng = random.Random(2)
    while sent.writer.size < 100_000:  # the other end does not read: the task waits with the rest
        sent.write(rng.randbytes(100_000))
        await trio.testing.wait_all_tasks_blocked()
    arrived = sent.there()
    with sent.turn:  # there is room in the socket, and the task has not run
        sent.write(rng.randbytes(1000))
    assert await sent.receive_all(arrived) == sent.expected


async def test_a_large_piece_is_left_to_the_task(sent):
    with sent.turn:
        sent.write(bytes(AT_ONCE + 1))
    assert sent.there() == b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sent.writer.run)
        assert await sent.receive_all() == sent.expected
        nursery.cancel_scope.cancel()


async def test_a_broken_connection_is_told_by_the_task(sent):
    await sent.theirs.aclose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sent.writer.run)
        while not sent.broken:
            with sent.turn:
                sent.write(b"anyone?")
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    sent.writer.settle()
    assert sent.account.unsent == 0


async def test_a_turn_ends_also_by_an_error(sent):
    with pytest.raises(ValueError, match="a bad frame"), sent.turn:
        sent.write(b"goodbye")
        raise ValueError("a bad frame")
    assert await sent.theirs.receive_some(100) == b"goodbye"
