"""Pausing, read-only partitions, cursors and consumer groups through the client."""

from __future__ import annotations

import anyio
import pytest
from calls import PATIENCE, fresh
from client_support import both_backends, in_thread, run, take
from harness import Server

import liftbridge.client as lc
from liftbridge.proto import api_pb2


@both_backends
def test_pausing_and_resuming(server, backend):
    async def scenario():
        async with lc.connect(server.address) as client:
            await client.create_stream(name := fresh())
            await client.publish(name, b"before")
            async with client.subscribe(name) as messages:
                await client.pause_stream(name)
                with pytest.raises(lc.PartitionPausedError):
                    await take(messages, 1)
            assert (await client.stream(name)).partitions[0].paused
            with pytest.raises(lc.PartitionPausedError):
                async with client.subscribe(name, start="earliest") as messages:
                    await take(messages, 1)
            async with client.subscribe(name, resume=True) as messages:
                await client.publish(name, b"after")
                assert [m.offset for m in await take(messages, 1)] == [1]
            await client.pause_stream(name)
            assert (await client.publish(name, b"resumes it")).offset == 2

    run(backend, scenario)


@both_backends
def test_a_subscription_that_resumes_goes_on_through_pauses(server, backend):
    async def scenario():
        async with lc.connect(server.address) as client:
            await client.create_stream(name := fresh())
            async with client.subscribe(name, start="earliest", resume=True) as messages:
                for number in range(3):
                    await client.publish(name, b"%d" % number)
                    assert [m.value for m in await take(messages, 1)] == [b"%d" % number]
                    await client.pause_stream(name)
                    with anyio.CancelScope() as scope:
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(take, messages, 1)
                            while (await client.stream(name)).partitions[0].paused:
                                await anyio.sleep(0.01)
                            scope.cancel()
            assert messages.faults == 3

    run(backend, scenario)


@both_backends
def test_readonly(server, backend):
    async def scenario():
        async with lc.connect(server.address) as client:
            await client.create_stream(name := fresh())
            await client.publish(name, b"one")
            await client.set_readonly(name)
            with pytest.raises(lc.PartitionReadonlyError):
                await client.publish(name, b"two")
            async with client.publisher(name) as publisher:
                with pytest.raises(lc.PartitionReadonlyError):
                    await (await publisher.send(b"two"))
            for start, expected in (("earliest", [b"one"]), ("new", [])):
                read = []
                with pytest.raises(lc.PartitionReadonlyError):
                    async with client.subscribe(name, start=start) as messages:
                        async for message in messages:
                            read.append(message.value)  # noqa: PERF401  # it ends with an error
                assert read == expected
            await client.set_readonly(name, readonly=False)
            assert (await client.publish(name, b"two")).offset == 1

    run(backend, scenario)


@pytest.fixture
def with_cursors(tmp_path):
    """A server with cursors, and groups that notice a dead member soon."""
    config = {"cursors.stream.partitions": 3, "groups.consumer.timeout": "2s"}
    with Server(tmp_path / "server", config) as server:
        yield server


@both_backends
def test_cursors(with_cursors, backend):
    async def scenario():
        async with lc.connect(with_cursors.address) as client:
            assert await client.fetch_cursor("c", "s", 1) == -1
            for offset in (7, 3):
                await client.set_cursor("c", "s", 1, offset)
                assert await client.fetch_cursor("c", "s", 1) == offset

    run(backend, scenario)


@both_backends
def test_a_server_without_cursors_is_told_from_a_cursor_that_is_missing(server, backend):
    async def scenario():
        async with lc.connect(server.address) as client:
            with pytest.raises(lc.NotFoundError, match=r"cursors\.stream\.partitions"):
                await client.fetch_cursor("c", "s")

    run(backend, scenario)


@both_backends
def test_a_group_goes_on_where_its_members_left_it(with_cursors, backend):
    async def scenario():
        async with lc.connect(with_cursors.address) as client:
            await client.create_stream(name := fresh(), partitions=2)
            handled = []
            for member in range(3):
                async with client.publisher(name, partitioner=lc.RoundRobin()) as publisher:
                    await publisher.send_batch([b""] * 20)
                async with client.consumer("g", f"m{member}", streams=[name], start="earliest") as messages:
                    async for message in messages:
                        handled.append((message.partition, message.offset))
                        if len(handled) == 20 * (member + 1):
                            with anyio.move_on_after(0.01):  # asks for the next one: this one is handled
                                await anext(messages)
                            break
            assert sorted(handled) == [(p, offset) for p in range(2) for offset in range(30)]

    run(backend, scenario)


@both_backends
def test_members_share_the_partitions(with_cursors, backend):
    async def scenario():
        async with lc.connect(with_cursors.address) as client:
            await client.create_stream(name := fresh(), partitions=4)
            async with client.consumer("g", "a", streams=[name]) as first:
                while sum(map(len, first.assignments.values())) < 4:
                    await anyio.sleep(0.01)
                async with client.consumer("g", "b", streams=[name]) as second:
                    while [sum(map(len, c.assignments.values())) for c in (first, second)] != [2, 2]:
                        await anyio.sleep(0.01)
                while sum(map(len, first.assignments.values())) < 4:
                    await anyio.sleep(0.01)

    run(backend, scenario)


def join(server, name):
    """Another member joins and says nothing more: it gets partition 1 of two."""
    request = api_pb2.JoinConsumerGroupRequest(groupId="g", consumerId="silent", streams=[name])
    server.api().JoinConsumerGroup(request, timeout=PATIENCE)


@both_backends
def test_a_member_hands_out_nothing_of_a_partition_that_was_taken_away(with_cursors, backend):
    async def scenario():
        async with lc.connect(with_cursors.address) as client:
            await client.create_stream(name := fresh(), partitions=2)
            for _ in range(10):
                await client.publish(name, b"old", partition=1)
            async with client.consumer("g", "a", streams=[name], start="earliest") as first:
                assert (await anext(first)).value == b"old"  # and nine more are here
                await in_thread(join, with_cursors, name)
                while first.assignments != {name: (0,)}:
                    await anyio.sleep(0.01)
                await client.publish(name, b"new", partition=0)
                assert (await anext(first)).value == b"new"

    run(backend, scenario)


@both_backends
def test_a_member_that_leaves_while_it_hands_over_stores_what_it_has_handled(with_cursors, backend):
    async def scenario():
        async with lc.connect(with_cursors.address) as client:
            await client.create_stream(name := fresh(), partitions=2)
            for number in range(20):
                await client.publish(name, b"", partition=number % 2)
            options = {"start": "earliest", "checkpoint_interval": 0, "handover": 2 * PATIENCE}
            async with client.consumer("g", "a", streams=[name], **options) as first:
                async for message in first:
                    if (message.partition, message.offset) == (1, 5):
                        break
                await in_thread(join, with_cursors, name)
                while first.assignments != {name: (0,)}:
                    await anyio.sleep(0.01)
            # It was busy with the sixth message until the end, so that is not handled.
            assert await client.fetch_cursor("__group:g", name, 1) == 4

    run(backend, scenario)
