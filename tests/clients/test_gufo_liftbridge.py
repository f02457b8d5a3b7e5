"""gufo-liftbridge: the current asyncio client, unmodified, and the test helper that it brings."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from calls import PATIENCE, fresh, publish, read_all, until
from gufo.liftbridge.client import LiftbridgeClient
from gufo.liftbridge.error import ErrorAlreadyExists, ErrorNotFound
from gufo.liftbridge.types import AckPolicy, StartPosition

HELPER = Path(__file__).with_name("gufo_helper_user.py")


@pytest.fixture
def gufo(server):
    """Run a coroutine function with a connected client as its argument."""

    def run(scenario):
        async def main():
            async with LiftbridgeClient([server.address]) as client:
                return await asyncio.wait_for(scenario(client), PATIENCE)

        return asyncio.run(main())

    return run


async def collect(client, stream, count, **options):
    """The first messages of a subscription."""
    messages = []
    async with contextlib.aclosing(client.subscribe(stream, **options)) as subscription:
        async for message in subscription:
            messages.append(message)
            if len(messages) == count:
                break
    return messages


def test_create_publish_subscribe(gufo):
    name = fresh("gufo")

    async def scenario(client):
        await client.create_stream(name, subject=f"{name}.subject", wait_for_stream=True)
        await client.publish(b"one", stream=name)
        await client.publish(b"two", stream=name, key=b"k", headers={"h": b"1"}, ack_policy=AckPolicy.ALL)
        await client.publish(b"three", stream=name, ack_policy=AckPolicy.NONE)
        return await collect(client, name, 3, start_position=StartPosition.EARLIEST)

    messages = gufo(scenario)
    assert [(message.offset, message.value) for message in messages] == [
        (0, b"one"),
        (1, b"two"),
        (2, b"three"),
    ]
    assert (messages[1].key, messages[1].headers["h"], messages[1].subject) == (b"k", b"1", f"{name}.subject")
    assert messages[0].timestamp > 1_700_000_000_000_000_000


def test_start_positions(gufo, api):
    name = fresh("gufo")

    async def scenario(client):
        await client.create_stream(name)
        acks = [publish(api, name, b"%d" % number) for number in range(5)]
        starts = [
            {"start_position": StartPosition.EARLIEST},
            {"start_position": StartPosition.LATEST},
            {"start_offset": 3},
            {"start_offset": -1},
            {"start_timestamp": acks[2].receptionTimestamp / 1e9 - 1e-3, "allow_isr": True, "resume": True},
        ]
        return [(await collect(client, name, 1, **start))[0].offset for start in starts]

    first, latest, third, negative, timed = gufo(scenario)
    assert (first, latest, third, negative) == (0, 4, 3, 0)
    assert timed <= 2  # the client's own floating point seconds are that coarse


def test_new_messages_arrive_at_a_waiting_subscription(gufo, api):
    name = fresh("gufo")

    async def scenario(client):
        await client.create_stream(name)
        publish(api, name, b"old")
        waiting = asyncio.create_task(collect(client, name, 1))
        published = []
        while not waiting.done():  # the client does not tell when its subscription is live
            published.append(publish(api, name, b"%d" % len(published)))
            await asyncio.sleep(0)
        return await waiting

    (message,) = gufo(scenario)
    assert message.offset >= 1
    assert message.value == b"%d" % (message.offset - 1)


@pytest.mark.parametrize("policy", [AckPolicy.LEADER, AckPolicy.ALL])
@pytest.mark.parametrize("wait", [True, False])
def test_bulk_publish_gets_one_answer_per_message(gufo, api, policy, wait):
    name = fresh("gufo")

    async def scenario(client):
        await client.create_stream(name, partitions=2)
        requests = [
            client.get_publish_request(
                b"%d" % number,
                stream=name,
                partition=number % 2,
                ack_policy=policy,
                correlation_id=str(number),
            )
            for number in range(500)
        ]
        return [response async for response in client.publish_bulk(requests, wait=wait)]

    responses = gufo(scenario)
    assert sorted(int(response.ack.correlationId) for response in responses) == list(range(500))
    for response in responses:
        assert response.ack.offset == int(response.ack.correlationId) // 2
    for partition in range(2):
        values = [int(message.value) for message in read_all(api, name, partition)]
        assert values == list(range(partition, 500, 2))


def test_bulk_publish_without_correlation_ids(gufo):
    name = fresh("gufo")

    async def scenario(client):
        await client.create_stream(name)
        requests = [client.get_publish_request(b"x", stream=name) for _ in range(100)]
        return [response async for response in client.publish_bulk(requests)]

    assert [response.ack.offset for response in gufo(scenario)] == list(range(100))


def test_compressed_values_pass_through(server):
    name = fresh("gufo")
    value = b"compress me " * 1000

    async def main():
        async with LiftbridgeClient(
            [server.address], compression_method="zlib", compression_threshold=100
        ) as client:
            await client.create_stream(name)
            await client.publish(value, stream=name, auto_compress=True)
            return await collect(client, name, 1, start_position=StartPosition.EARLIEST)

    (message,) = asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert message.value == value


def test_metadata(gufo, server):
    name, unknown = fresh("gufo"), fresh("never")

    async def scenario(client):
        await client.create_stream(name, partitions=3)
        await client.publish(b"x", stream=name, partition=1)
        async with contextlib.aclosing(
            client.subscribe(name, partition=1, start_position=StartPosition.EARLIEST)
        ) as subscription:
            await anext(subscription)
        return (
            await client.get_metadata(),
            await client.get_metadata(unknown, wait_for_stream=True),
            await client.get_partition_metadata(name, 1),
        )

    everything, nothing, partition = gufo(scenario)
    (broker,) = everything.brokers
    assert f"{broker.host}:{broker.port}" == server.address
    (stream,) = [stream for stream in everything.metadata if stream.name == name]
    assert (stream.subject, sorted(stream.partitions)) == (name, [0, 1, 2])
    assert {part.leader for part in stream.partitions.values()} == {broker.id}
    assert [(stream.name, stream.partitions) for stream in nothing.metadata] == [(unknown, {})]
    assert (partition.high_watermark, partition.newest_offset, partition.paused) == (0, 0, False)


def test_errors(gufo):
    name, unknown = fresh("gufo"), fresh("never")

    async def scenario(client):
        await client.create_stream(name)
        with pytest.raises(ErrorAlreadyExists):
            await client.create_stream(name, subject="another")
        with pytest.raises(ErrorNotFound):
            await client.publish(b"x", stream=unknown)
        with pytest.raises(ErrorNotFound):
            await client.delete_stream(unknown)
        await client.delete_stream(name)
        with pytest.raises(ErrorNotFound):
            await client.delete_stream(name)
        await client.create_stream(name)
        await client.publish(b"new", stream=name)
        return await collect(client, name, 1, start_position=StartPosition.EARLIEST)

    assert [(message.offset, message.value) for message in gufo(scenario)] == [(0, b"new")]


def test_every_option_of_a_stream(gufo):
    name = fresh("gufo")

    async def scenario(client):
        await client.create_stream(
            name,
            subject=f"{name}.>",
            group="workers",
            replication_factor=1,
            minisr=1,
            partitions=1,
            enable_compact=True,
            retention_max_age=3600,
            retention_max_bytes=1 << 20,
            segment_max_age=60,
            segment_max_bytes=1 << 16,
            auto_pause_time=1,
            auto_pause_disable_if_subscribers=True,
            wait_for_stream=True,
        )
        return (await client.get_metadata(name)).metadata

    (stream,) = gufo(scenario)
    assert (stream.name, stream.subject, stream.partitions[0].paused) == (name, f"{name}.>", False)

    async def partition_of(client):
        return (await client.get_metadata(name)).metadata[0].partitions[0]

    # Pauses are in seconds there, and a publish resumes.
    until(lambda: gufo(partition_of).paused)

    async def publish_again(client):
        await client.publish(b"x", stream=name)
        return await collect(client, name, 1, start_position=StartPosition.EARLIEST)

    assert [(message.offset, message.value) for message in gufo(publish_again)] == [(0, b"x")]


def test_the_helper_of_gufo_starts_our_server(tmp_path):
    """Its command line and its configuration file, with our `liftbridge` in the place of the original."""
    nats_config = tmp_path / "nats.conf"
    nats_config.write_text("host: 127.0.0.1\nport: -1\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    liftbridge = Path(sysconfig.get_path("scripts")) / "liftbridge"
    done = subprocess.run(
        [sys.executable, HELPER, liftbridge, address],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        # The helper leaves NATS its default port, which may be taken on a machine that tests.
        env={**os.environ, "LIFTBRIDGE_NATS_EMBEDDED_CONFIG": str(nats_config)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "b'through the helper'", done.stdout + done.stderr
