"""The client through everything that happens to a server in its life, while it publishes and subscribes.

The server is stopped in order and killed, so is its NATS server, and the partition is paused, one after the
other and while messages are on their way. Then what the client was told is compared with what it was sent:
every acked message is at the offset of its ack, and every offset was delivered once, in order, without gap.
The publishers may send a message twice, as they are to lose none. Their messages are in the log in the order
in which they were sent; only what is lost together with a NATS server comes behind what was not.
"""

from __future__ import annotations

import itertools
import signal
from collections import deque
from collections.abc import Awaitable, Callable

import anyio
import pytest
from calls import fresh
from client_support import both_backends, in_thread
from harness import Nats, Server

import liftbridge.client as lc

SECONDS = 100.0
OPTIONS = lc.Options(ack_timeout=1.0)
IN_FLIGHT = 200
AHEAD = 1_000  # messages that publishing may be ahead of subscribing
CALM = 50  # messages between two events

Seen = tuple[int, bytes]  # offset and value


class Traffic:
    """Two publishers and two subscribers of one partition, and what each of them has seen."""

    def __init__(self, client: lc.Client, stream: str) -> None:
        self.pipelined: list[Seen] = []
        self.one_by_one: list[Seen] = []
        self.resuming: list[Seen] = []
        self.opened_again: list[Seen] = []
        self.pauses = 0
        self.without_nats: list[range] = []
        """The messages that were on their way while NATS was lost, by their place in `pipelined`."""
        self._client = client
        self._stream = stream
        self._stopped = False

    async def run(self, events: list[tuple[str, Callable[[], Awaitable[None]]]]) -> None:
        """Let `events` happen, each when all four have got on since the one before it."""
        async with anyio.create_task_group() as subscribers:
            subscribers.start_soon(self._subscribe_and_resume)
            subscribers.start_soon(self._subscribe_again)
            async with anyio.create_task_group() as publishers:
                publishers.start_soon(self._publish_pipelined)
                publishers.start_soon(self._publish_one_by_one)
                await self._go_on()
                for name, event in events:
                    before = len(self.pipelined)
                    await event()
                    await self._go_on()
                    if "NATS" in name:
                        self.without_nats.append(range(before, len(self.pipelined) + IN_FLIGHT))
                self._stopped = True
            newest = max(offset for offset, _ in self.pipelined + self.one_by_one)
            while min(len(self.resuming), len(self.opened_again)) <= newest:
                await anyio.sleep(0.005)
            subscribers.cancel_scope.cancel()

    async def _go_on(self) -> None:
        """Wait until each of the four has got on."""
        everything = (self.pipelined, self.one_by_one, self.resuming, self.opened_again)
        goals = [len(seen) + CALM for seen in everything]
        while any(len(seen) < goal for seen, goal in zip(everything, goals, strict=True)):
            await anyio.sleep(0.005)

    async def _publish_pipelined(self) -> None:
        sent: deque[tuple[bytes, lc.PublishFuture]] = deque()
        async with self._client.publisher(
            self._stream, at_least_once=True, max_in_flight=IN_FLIGHT
        ) as publisher:
            for number in itertools.count():
                if self._stopped:
                    break
                value = b"pipelined %d" % number
                sent.append((value, await publisher.send(value)))
                while sent[0][1].done and len(sent) > 1:
                    await self._take(*sent.popleft())
                while len(self.pipelined) > len(self.resuming) + AHEAD:
                    await anyio.sleep(0.005)
            await publisher.flush()
        for value, future in sent:
            await self._take(value, future)

    async def _take(self, value: bytes, future: lc.PublishFuture) -> None:
        ack = await future
        assert ack is not None
        self.pipelined.append((ack.offset, value))

    async def _publish_one_by_one(self) -> None:
        for number in itertools.count():
            if self._stopped:
                return
            value = b"one %d" % number
            ack = await self._client.publish(self._stream, value, at_least_once=True)
            assert ack is not None
            self.one_by_one.append((ack.offset, value))

    async def _subscribe_and_resume(self) -> None:
        """One subscription, which resumes the partition when it is paused."""
        async with self._client.subscribe(self._stream, start="earliest", resume=True) as messages:
            async for message in messages:
                self.resuming.append((message.offset, message.value))

    async def _subscribe_again(self) -> None:
        """A subscription that ends with a pause, and then another one that goes on where it was."""
        while True:
            try:
                async with self._client.subscribe(self._stream, start=len(self.opened_again)) as messages:
                    async for message in messages:
                        self.opened_again.append((message.offset, message.value))
            except lc.PartitionPausedError:  # noqa: PERF203  # once for a pause
                self.pauses += 1


@both_backends
@pytest.mark.timeout(SECONDS + 20)
def test_every_acked_message_arrives_in_order_whatever_happens(tmp_path, backend):
    async def scenario(nats: Nats, server: Server) -> Traffic:
        async def restart(end, *args):
            await in_thread(end, *args)
            await in_thread(end.__self__.start)

        async with lc.connect(server.address, options=OPTIONS) as client:
            await client.create_stream(name := fresh())
            traffic = Traffic(client, name)
            events = [
                ("pause", lambda: client.pause_stream(name)),
                ("the server stops", lambda: restart(server.stop)),
                ("kill -9", lambda: restart(server.kill)),
                ("NATS stops", lambda: restart(nats.stop, signal.SIGTERM)),
                ("NATS is killed", lambda: restart(nats.stop)),
                ("pause again", lambda: client.pause_stream(name)),
                ("kill -9 again", lambda: restart(server.kill)),
            ]
            with anyio.fail_after(SECONDS):
                await traffic.run(events)
            return traffic

    with Nats(tmp_path / "nats") as nats:
        config = {"nats.servers": [nats.url]}
        with Server(tmp_path / "server", config, embedded=False) as server:
            traffic = anyio.run(scenario, nats, server, backend=backend)
            assert "Traceback" not in server.log
    for received in (traffic.resuming, traffic.opened_again):
        assert [offset for offset, _ in received] == list(range(len(received)))
    assert traffic.resuming[: len(traffic.opened_again)] == traffic.opened_again[: len(traffic.resuming)]
    delivered = set(traffic.resuming)
    assert set(traffic.pipelined) <= delivered
    assert set(traffic.one_by_one) <= delivered
    assert [offset for offset, _ in traffic.one_by_one] == sorted(offset for offset, _ in traffic.one_by_one)
    for place, (before, after) in enumerate(itertools.pairwise(traffic.pipelined)):
        assert before < after or any(place in lost for lost in traffic.without_nats), (place, before, after)
    assert traffic.pauses
