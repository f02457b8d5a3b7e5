"""What the client makes of a call that the server has carried out and whose answer was lost."""

from __future__ import annotations

import anyio
import pytest
from calls import PATIENCE, fresh, partition_metadata, read_all
from client_support import both_backends, in_thread, run
from harness import Server
from relay import Relay

import liftbridge.client as lc
from liftbridge.proto import api_pb2

# What is lost is told by the connection that breaks, not by a time-out.
OPTIONS = lc.Options(timeout=PATIENCE, ack_timeout=PATIENCE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for tests that leave it as it is; its streams have names of their own."""
    with Server(tmp_path_factory.mktemp("server") / "server") as running:
        yield running


@pytest.fixture
def relay(shared):
    with Relay(shared.address) as running:
        yield running


async def until(condition) -> None:
    while not await in_thread(condition):
        await anyio.sleep(0.01)


def exists(api, name) -> bool:
    response = api.FetchMetadata(api_pb2.FetchMetadataRequest(streams=[name]), timeout=30)
    return response.streamMetadata[0].error == api_pb2.StreamMetadata.OK


async def answered_in_vain(relay, carried_out, call):
    """Make a call whose first answer is lost; returns what it comes to."""
    outcome = []

    async def work():
        try:
            outcome.append(await call)
        except lc.LiftbridgeError as error:
            outcome.append(error)

    relay.lose_answers()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await until(carried_out)
        relay.cut()
    return outcome[0]


@both_backends
def test_a_stream_that_is_gone_is_deleted(shared, relay, backend):
    api = shared.api()

    async def scenario():
        async with lc.connect(relay.address, options=OPTIONS) as client:
            await client.create_stream(name := fresh())
            call = client.delete_stream(name)
            assert await answered_in_vain(relay, lambda: not exists(api, name), call) is None

    run(backend, scenario)


@both_backends
def test_a_stream_that_exists_now_may_be_our_own(shared, relay, backend):
    api = shared.api()

    async def scenario():
        async with lc.connect(relay.address, options=OPTIONS) as client:
            call = client.create_stream(name := fresh())
            error = await answered_in_vain(relay, lambda: exists(api, name), call)
            assert type(error) is lc.StreamExistsError
            assert "may have created it" in str(error)

    run(backend, scenario)


@both_backends
def test_a_message_is_not_sent_again_unless_that_is_wanted(shared, relay, backend):
    api = shared.api()

    async def scenario():
        async with lc.connect(relay.address, options=OPTIONS) as client:
            await client.create_stream(name := fresh())

            def stored() -> bool:
                return partition_metadata(api, name).newestOffset >= 0

            error = await answered_in_vain(relay, stored, client.publish(name, b"one"))
            assert type(error) is lc.UnknownOutcomeError
            assert (await client.publish(name, b"two")).offset == 1
            assert [m.value for m in await in_thread(read_all, api, name)] == [b"one", b"two"]

    run(backend, scenario)


@both_backends
def test_messages_of_a_publisher_are_not_sent_again_unless_that_is_wanted(shared, relay, backend):
    api = shared.api()

    async def scenario():
        async with lc.connect(relay.address, options=OPTIONS) as client:
            await client.create_stream(name := fresh())
            async with client.publisher(name) as publisher:
                await (await publisher.send(b"zero"))
                relay.lose_answers()
                futures = await publisher.send_batch([b"one", b"two"])
                await until(lambda: partition_metadata(api, name).newestOffset == 2)
                relay.cut()
                for future in futures:
                    with pytest.raises(lc.UnknownOutcomeError, match="its ack was lost"):
                        await future
                assert (await (await publisher.send(b"three"))).offset == 3
            values = [m.value for m in await in_thread(read_all, api, name)]
            assert values == [b"zero", b"one", b"two", b"three"]

    run(backend, scenario)


@both_backends
def test_what_is_sent_again_keeps_its_order_and_goes_before_what_is_new(shared, relay, backend):
    api = shared.api()
    values = [b"%d" % number for number in range(10)]

    async def scenario():
        async with lc.connect(relay.address, options=OPTIONS) as client:
            await client.create_stream(name := fresh())
            async with client.publisher(name, at_least_once=True) as publisher:
                await (await publisher.send(b"first"))
                relay.lose_answers()
                futures = await publisher.send_batch(values)
                await until(lambda: partition_metadata(api, name).newestOffset == 10)
                relay.cut(refuse=True)
                while publisher._open:
                    await anyio.sleep(0.01)
                futures.append(await publisher.send(b"new"))
                relay.admit()
                assert [(await future).offset for future in futures] == list(range(11, 22))
            stored = [m.value for m in await in_thread(read_all, api, name)]
            assert stored == [b"first", *values, *values, b"new"]

    run(backend, scenario)
