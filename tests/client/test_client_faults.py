"""The client while servers die and come back: no gap, no repeat, no lost ack, and no wait without an end."""

from __future__ import annotations

import os
import signal

import anyio
import pytest
from calls import fresh
from client_support import both_backends, in_thread, run, take
from harness import Nats, Server, freeze

import liftbridge.client as lc


async def _publish_until(client, name, stop, acked, refused):
    """Publish one message after the other; `acked` gets what is known to be stored."""
    number = 0
    while not stop.is_set():
        value = b"%d" % number
        number += 1
        try:
            ack = await client.publish(name, value, at_least_once=True)
        except lc.LiftbridgeError as error:
            refused.append(error)
        else:
            acked.append((ack.offset, value))


@both_backends
@pytest.mark.parametrize("how", ["stop", "kill", "nats"])
def test_every_acked_message_arrives_once_and_in_order_through_restarts(tmp_path, backend, how):
    server = Server(tmp_path / "server")
    acked: list[tuple[int, bytes]] = []
    refused: list[Exception] = []

    async def restart():
        if how == "nats":
            restarts = server.log.count("killed by SIGKILL; starting it again")
            os.kill(server.nats_pid, signal.SIGKILL)
            while server.log.count("killed by SIGKILL; starting it again") == restarts:
                await anyio.sleep(0.01)
            return
        await in_thread(server.stop if how == "stop" else server.kill)
        await in_thread(server.start)

    async def scenario():
        async with lc.connect(server.address, options=lc.Options(ack_timeout=1.0)) as client:
            await client.create_stream(name := fresh())
            received = []
            stop, done = anyio.Event(), anyio.Event()

            async def publish():
                await _publish_until(client, name, stop, acked, refused)
                done.set()

            async def subscriber(messages):
                async for message in messages:
                    received.append((message.offset, message.value))  # noqa: PERF401  # seen while it grows

            async with (
                client.subscribe(name, start="earliest") as messages,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(subscriber, messages)
                tasks.start_soon(publish)
                for _ in range(2):
                    before = len(acked)
                    while len(acked) < before + 20:
                        await anyio.sleep(0.01)
                    await restart()
                before = len(acked)
                while len(acked) < before + 20:
                    await anyio.sleep(0.01)
                stop.set()
                await done.wait()
                while not received or received[-1][0] < acked[-1][0]:
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
            assert [offset for offset, _ in received] == list(range(len(received)))
            assert set(acked) <= set(received)
            assert refused == []
            assert [offset for offset, _ in acked] == sorted(offset for offset, _ in acked)
            if how != "nats":
                assert messages.faults

    with server:
        run(backend, scenario)


@both_backends
def test_a_publisher_at_least_once_loses_nothing_when_the_server_is_killed(tmp_path, backend):
    server = Server(tmp_path / "server")

    async def scenario():
        async with lc.connect(server.address) as client:
            await client.create_stream(name := fresh())
            async with client.publisher(name, at_least_once=True, max_in_flight=500) as publisher:
                futures = [await publisher.send(b"%d" % number) for number in range(200)]
                await in_thread(server.kill)
                futures += [await publisher.send(b"%d" % number) for number in range(200, 400)]
                await in_thread(server.start)
                await publisher.flush()
            offsets = [(await future).offset for future in futures]
            assert len(set(offsets)) == 400
            async with client.subscribe(name, start="earliest", stop="latest") as messages:
                stored = {message.offset: message.value async for message in messages}
            assert [stored[offset] for offset in offsets] == [b"%d" % number for number in range(400)]

    with server:
        run(backend, scenario)


@both_backends
def test_without_that_wish_a_lost_ack_is_an_unknown_outcome(tmp_path, backend):
    server = Server(tmp_path / "server")

    async def scenario():
        async with lc.connect(server.address) as client:
            await client.create_stream(name := fresh())
            freeze(server.pid)  # it takes the bytes and does nothing with them
            outcome = []

            async def publish():
                try:
                    await client.publish(name, b"one")
                except lc.LiftbridgeError as error:
                    outcome.append(error)

            async with client.publisher(name) as publisher:
                await anyio.wait_all_tasks_blocked()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(publish)
                    await anyio.wait_all_tasks_blocked()
                    await in_thread(server.kill)
                (error,) = outcome
                assert type(error) is lc.UnknownOutcomeError and error.may_have_run
                future = await publisher.send(b"two")  # nobody is there: this one is safe to send later
                await in_thread(server.start)
                assert (await future).stream == name

    with server:
        run(backend, scenario)


@both_backends
def test_an_ack_that_does_not_come_is_a_timeout(tmp_path, backend):
    server = Server(tmp_path / "server")

    async def scenario():
        async with lc.connect(server.address) as client:
            await client.create_stream(name := fresh())
            async with client.publisher(name, ack_timeout=0.3) as publisher:
                await (await publisher.send(b"zero"))
                freeze(server.pid)
                future = await publisher.send(b"one")
                with pytest.raises(lc.AckTimeoutError):
                    await client.publish(name, b"two", timeout=0.3)
                with pytest.raises(lc.AckTimeoutError):
                    await future
                os.kill(server.pid, signal.SIGCONT)
                assert (await (await publisher.send(b"three"))).stream == name

    with server:
        run(backend, scenario)


@both_backends
def test_a_subscription_to_new_messages_misses_none_though_nothing_had_arrived(tmp_path, backend):
    """Asked for by its word, "new" would mean something else after the restart."""
    server = Server(tmp_path / "server")

    async def scenario():
        async with lc.connect(server.address) as client, lc.connect(server.address) as other:
            await client.create_stream(name := fresh())
            await client.publish(name, b"old")
            async with client.subscribe(name) as messages:
                await in_thread(server.kill)
                await in_thread(server.start)
                # The subscription sees the fault only when it is read, so this is published in between.
                assert (await other.publish(name, b"while away", at_least_once=True)).offset == 1
                assert [m.value for m in await take(messages, 1)] == [b"while away"]
                assert messages.faults == 1

    with server:
        run(backend, scenario)


@both_backends
def test_a_read_that_is_cancelled_while_the_server_is_away_ends_nothing(tmp_path, backend):
    server = Server(tmp_path / "server")

    async def scenario():
        async with lc.connect(server.address) as client:
            await client.create_stream(name := fresh())
            async with client.subscribe(name) as messages:
                await in_thread(server.kill)
                for _ in range(2):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(take, messages, 1)
                        while not messages.faults:
                            await anyio.sleep(0.01)
                        await anyio.wait_all_tasks_blocked()
                        tasks.cancel_scope.cancel()
                await in_thread(server.start)
                await client.publish(name, b"one", at_least_once=True)
                assert [m.value for m in await take(messages, 1)] == [b"one"]
                assert messages.faults == 1

    with server:
        run(backend, scenario)


@both_backends
def test_a_stream_made_anew_is_not_taken_for_the_old_one(tmp_path, backend):
    server = Server(tmp_path / "server")

    async def scenario():
        async with lc.connect(server.address) as client:
            await client.create_stream(name := fresh())
            for _ in range(3):
                await client.publish(name, b"")
            async with client.subscribe(name, start="earliest") as messages:
                await take(messages, 3)
                await in_thread(server.kill)
                await in_thread(server.start)
                async with lc.connect(server.address) as other:
                    await other.delete_stream(name)
                    await other.create_stream(name)
                    async with anyio.create_task_group() as tasks:

                        async def read():
                            with pytest.raises(lc.LogTruncatedError) as error:
                                await take(messages, 1)
                            assert (error.value.expected, error.value.found) == (3, 0)
                            tasks.cancel_scope.cancel()

                        tasks.start_soon(read)
                        while not messages.faults or messages._call is None:
                            await anyio.sleep(0.01)
                        await other.publish(name, b"new")

    with server:
        run(backend, scenario)


@both_backends
def test_a_server_that_stays_away_ends_everything_in_time(tmp_path, backend):
    server = Server(tmp_path / "server")
    options = lc.Options(timeout=0.5, retry_timeout=0.5, ack_timeout=0.5)

    async def scenario():
        async with lc.connect(server.address, options=options) as client:
            await client.create_stream(name := fresh())
            async with client.subscribe(name) as messages, client.publisher(name) as publisher:
                await (await publisher.send(b""))
                await take(messages, 1)
                await in_thread(server.kill)
                with pytest.raises(lc.UnavailableError):
                    await take(messages, 1)
                with pytest.raises(lc.UnavailableError):
                    await (await publisher.send(b""))
                for call in (client.metadata(), client.publish(name, b""), client.delete_stream(name)):
                    with pytest.raises(lc.UnavailableError, match="cannot connect"):
                        await call
        with pytest.raises(lc.UnavailableError, match="cannot connect"):
            async with lc.connect(server.address, options=options):
                pass

    with server:
        run(backend, scenario)


@both_backends
def test_a_server_that_says_nothing_is_given_up(tmp_path, backend):
    server = Server(tmp_path / "server")
    options = lc.Options(keepalive_interval=0.2, keepalive_timeout=0.2, retry_timeout=1.0, timeout=1.0)

    async def scenario():
        async with lc.connect(server.address, options=options) as client:
            await client.create_stream(name := fresh())
            async with client.subscribe(name) as messages:
                freeze(server.pid)
                with pytest.raises((lc.UnavailableError, lc.DeadlineExceededError)):
                    await take(messages, 1)
                assert messages.faults

    with server:
        run(backend, scenario)


@both_backends
def test_the_second_address_is_asked_when_the_first_is_dead(tmp_path, backend):
    server = Server(tmp_path / "server")

    async def scenario():
        async with lc.connect("127.0.0.1:1", server.address) as client:
            assert list((await client.metadata()).brokers) == [server.server_id]

    with server:
        run(backend, scenario)


@both_backends
def test_without_nats_a_publish_waits_for_it_when_it_may_be_sent_twice(tmp_path, backend):
    nats = Nats(tmp_path / "nats").start()
    server = Server(tmp_path / "server", {"nats.servers": [nats.url]}, embedded=False)

    async def scenario():
        async with lc.connect(server.address, options=lc.Options(ack_timeout=1.0)) as client:
            await client.create_stream(name := fresh())
            await in_thread(nats.stop)
            with pytest.raises((lc.PublishError, lc.UnknownOutcomeError)):
                await client.publish(name, b"lost")
            async with client.publisher(name, at_least_once=True) as publisher:
                futures = await publisher.send_batch([b"a", b"b", b"c"])
                await in_thread(nats.start)
                offsets = [(await future).offset for future in futures]
                assert offsets == sorted(offsets)
            assert (await client.publish(name, b"d", at_least_once=True)).offset > offsets[-1]

    try:
        with server:
            run(backend, scenario)
    finally:
        nats.stop()
