"""The client against a real server: streams, metadata, publishing, subscribing, what each error becomes."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone

import anyio
import pytest
from calls import fresh
from client_support import both_backends, run, take
from harness import Server

import liftbridge.client as lc
from liftbridge.client.connection import message_frame
from liftbridge.proto import api_pb2


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for tests that leave it as it is; its streams have names of their own."""
    with Server(tmp_path_factory.mktemp("server") / "server") as running:
        yield running


@both_backends
def test_what_is_published_is_read_with_all_its_fields(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name, f"{name}.subject")
            ack = await client.publish(name, b"value", key=b"key", headers={"h": b"1"}, correlation_id="c")
            assert (ack.stream, ack.partition, ack.offset, ack.correlation_id) == (name, 0, 0, "c")
            async with client.subscribe(name, start="earliest") as messages:
                (message,) = await take(messages, 1)
            assert (message.offset, message.key, message.value) == (0, b"key", b"value")
            assert (message.stream, message.partition, message.subject) == (name, 0, f"{name}.subject")
            assert message.headers == {"h": b"1", "subject": f"{name}.subject".encode(), "reply": b""}
            assert message.timestamp == ack.reception_timestamp

    run(backend, scenario)


@both_backends
def test_stream_errors_are_told_apart(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            with pytest.raises(lc.StreamExistsError):
                await client.create_stream(name)
            with pytest.raises(lc.InvalidArgumentError, match="subject"):
                await client.create_stream(fresh(), "two words")
            for wrong in (
                client.delete_stream(fresh()),
                client.publish(fresh(), b""),
                client.stream(fresh()),
            ):
                with pytest.raises(lc.NotFoundError):
                    await wrong
            with pytest.raises(lc.NotFoundError):
                await client.publish(name, b"", partition=1)
            with pytest.raises(lc.NotFoundError):
                async with client.subscribe(name, 1):
                    pass
            await client.delete_stream(name)
            with pytest.raises(lc.NotFoundError):
                await client.delete_stream(name)

    run(backend, scenario)


@both_backends
def test_settings_reach_the_stream(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name, optimistic_concurrency_control=True, retention_max_messages=0)
            assert (await client.publish(name, b"a", expected_offset=0)).offset == 0
            with pytest.raises(lc.IncorrectOffsetError):
                await client.publish(name, b"b", expected_offset=7)
            async with client.publisher(name) as publisher:
                future = await publisher.send(b"b", expected_offset=7)
                with pytest.raises(lc.IncorrectOffsetError):
                    await future
            with pytest.raises(lc.InvalidArgumentError):
                await client.create_stream(fresh(), retention_max_age=timedelta(seconds=-1))

    run(backend, scenario)


@both_backends
def test_metadata_is_typed(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name, f"{name}.x", partitions=3)
            await client.publish(name, b"", partition=2)
            metadata = await client.metadata([name, "nobody"], groups=["nobody"])
            (broker,) = metadata.brokers.values()
            assert (broker.id, broker.address) == (shared.server_id, shared.address)
            assert list(metadata.streams) == [name] and not metadata.groups
            stream = metadata.streams[name]
            assert (stream.subject, sorted(stream.partitions)) == (f"{name}.x", [0, 1, 2])
            partition = await client.partition(name, 2)
            assert (partition.leader, partition.newest_offset) == (shared.server_id, 0)
            assert not partition.paused and not partition.readonly

    run(backend, scenario)


@both_backends
def test_a_call_the_server_does_not_have_says_so(shared, backend):
    """Such as one of an older server; made by hand, as this server learns more calls."""

    async def scenario():
        async with lc.connect(shared.address) as client:
            with pytest.raises(lc.UnsupportedError, match="NoSuchCall"):
                await client._router.call("NoSuchCall", b"", 5)

    run(backend, scenario)


@both_backends
@pytest.mark.parametrize(
    ("start", "stop", "offsets"),
    [
        ("earliest", "latest", [0, 1, 2, 3, 4]),
        ("latest", "latest", [4]),
        (2, 3, [2, 3]),
        (100, None, None),
        ("new", None, None),
    ],
)
def test_positions(shared, backend, start, stop, offsets):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            for _ in range(5):
                await client.publish(name, b"")
            async with client.subscribe(name, start=start, stop=stop) as messages:
                if offsets is None:
                    await client.publish(name, b"")
                    assert [m.offset for m in await take(messages, 1)] == [5]
                else:
                    assert [m.offset async for m in messages] == offsets

    run(backend, scenario)


@both_backends
def test_times_and_reverse(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            acks = [await client.publish(name, b"") for _ in range(5)]
            third = lc.Timestamp(acks[2].reception_timestamp)
            async with client.subscribe(name, start=third, stop=third) as messages:
                assert 2 in [m.offset async for m in messages]
            before = datetime.now(timezone.utc) - timedelta(hours=1)
            async with client.subscribe(name, start=before, stop="latest") as messages:
                assert [m.offset async for m in messages] == [0, 1, 2, 3, 4]
            async with client.subscribe(name, start="latest", reverse=True) as messages:
                assert [m.offset async for m in messages] == [4, 3, 2, 1, 0]

    run(backend, scenario)


@both_backends
def test_an_empty_partition_ends_at_its_latest_at_once(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.subscribe(name, start="earliest", stop="latest") as messages:
                assert [m async for m in messages] == []

    run(backend, scenario)


def test_positions_that_make_no_sense_are_refused():
    client = lc.Client(None, lc.Options())
    with pytest.raises(ValueError, match="start is"):
        client.subscribe("s", start="newest")
    with pytest.raises(ValueError, match="time zone"):
        client.subscribe("s", start=datetime(2024, 1, 1))
    with pytest.raises(ValueError, match="future"):
        client.subscribe("s", stop=datetime.now(timezone.utc) + timedelta(hours=1))


@both_backends
def test_a_read_that_is_cancelled_loses_nothing(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.subscribe(name, start="earliest") as messages:
                for _ in range(20):
                    await client.publish(name, b"")
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await take(messages, 1)
                    assert scope.cancelled_caught
                assert [m.offset for m in await take(messages, 20)] == list(range(20))

    run(backend, scenario)


@both_backends
def test_a_read_that_is_cancelled_as_its_message_arrives_loses_nothing(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.subscribe(name, start="earliest") as messages:
                taken = []

                async def read():
                    taken.extend(await take(messages, 1))

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    await anyio.wait_all_tasks_blocked()
                    # As the connection's reader does it: nothing runs between this and the cancellation.
                    arrived = api_pb2.Message(stream=name, value=b"now")
                    messages._call.feed(message_frame(arrived.SerializeToString()), 0)
                    tasks.cancel_scope.cancel()
                if not taken:
                    await read()
                assert [m.value for m in taken] == [b"now"]

    run(backend, scenario)


@both_backends
def test_a_deleted_stream_ends_its_subscriptions(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.subscribe(name) as messages:
                await client.delete_stream(name)
                with pytest.raises(lc.StreamDeletedError):
                    await take(messages, 1)

    run(backend, scenario)


@both_backends
def test_a_pipelined_publisher_keeps_order_and_answers_each_message(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.publisher(name, max_in_flight=100) as publisher:
                futures = []
                for number in range(2_000):
                    futures.append(await publisher.send(b"%d" % number))
                    assert publisher.outstanding <= 100
                await publisher.flush()
                assert all(future.done for future in futures)
            acks = [await future for future in futures]
            assert [ack.offset for ack in acks] == list(range(2_000))
            async with client.subscribe(name, start="earliest", stop="latest") as messages:
                assert [m.value async for m in messages] == [b"%d" % n for n in range(2_000)]

    run(backend, scenario)


@both_backends
def test_the_bytes_in_flight_are_bounded(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.publisher(name, max_bytes=100_000) as publisher:
                for _ in range(50):
                    await publisher.send(bytes(40_000))
                    assert publisher.outstanding <= 3
            assert (await client.partition(name)).newest_offset == 49

    run(backend, scenario)


@both_backends
def test_what_is_in_flight_is_bounded_within_a_batch(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            for bound in ({"max_in_flight": 10}, {"max_bytes": 10_000}):
                async with client.publisher(name, **bound) as publisher:

                    def messages(publisher=publisher):
                        for _ in range(100):
                            assert publisher.outstanding <= 10
                            yield bytes(1_000)

                    await publisher.send_batch(messages())
            assert (await client.partition(name)).newest_offset == 199

    run(backend, scenario)


@both_backends
def test_headers_are_of_one_message(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.publisher(name) as publisher:
                await publisher.send(b"", headers={"a": b"1"})
                await publisher.send(b"")
                await publisher.send_batch([lc.Outgoing(b"", headers={"b": b"2"}), b""])
            async with client.subscribe(name, start="earliest", stop="latest") as messages:
                found = [sorted(m.headers.keys() - {"subject", "reply"}) async for m in messages]
            assert found == [["a"], [], ["b"], []]

    run(backend, scenario)


@both_backends
def test_a_stream_that_others_have_made_anew_with_more_partitions(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client, lc.connect(shared.address) as other:
            await client.create_stream(name)
            assert list((await client.stream(name)).partitions) == [0]
            await other.delete_stream(name)
            await other.create_stream(name, partitions=2)
            await other.publish(name, b"x", partition=1)
            async with client.subscribe(name, 1, start=0, stop=0) as messages:
                assert [m.value async for m in messages] == [b"x"]

    run(backend, scenario)


@both_backends
def test_an_error_that_nobody_awaited_is_raised_by_flush(shared, backend):
    async def scenario():
        async with lc.connect(shared.address) as client:
            publisher_of_nothing = client.publisher(fresh())
            with pytest.raises(lc.NotFoundError):
                async with publisher_of_nothing as publisher:
                    await publisher.send(b"")

    run(backend, scenario)


@both_backends
def test_messages_without_acks(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.subscribe(name) as messages:
                assert await client.publish(name, b"a", ack_policy=lc.AckPolicy.NONE) is None
                async with client.publisher(name, ack_policy=lc.AckPolicy.NONE) as publisher:
                    future = await publisher.send(b"b")
                    assert await future is None
                    assert {m.value for m in await take(messages, 2)} == {b"a", b"b"}

    run(backend, scenario)


@both_backends
def test_messages_without_acks_are_with_the_server_when_the_block_is_left(shared, backend):
    name = fresh()
    values = [b"%d" % number for number in range(40)]

    async def scenario():
        async with lc.connect(shared.address) as reader:
            await reader.create_stream(name)
            async with reader.subscribe(name) as messages:
                for first in range(0, len(values), 4):
                    async with lc.connect(shared.address) as client:
                        async with client.publisher(name, ack_policy=lc.AckPolicy.NONE) as publisher:
                            await publisher.send_batch(values[first : first + 2])
                            await publisher.flush()
                            await publisher.send_batch(values[first + 2 : first + 4])
                assert [m.value for m in await take(messages, len(values))] == values

    run(backend, scenario)


@both_backends
def test_partitioners_choose(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name, partitions=3)
            ack = await client.publish(name, b"", key=b"key", partitioner=lc.by_key)
            assert ack.partition == 1
            async with client.publisher(name, partitioner=lc.RoundRobin()) as publisher:
                futures = await publisher.send_batch(
                    [b"a", b"b", lc.Outgoing(b"c"), lc.Outgoing(b"d", partition=2)]
                )
            assert [(await future).partition for future in futures] == [0, 1, 2, 2]
            with pytest.raises(ValueError, match="3 partitions"):
                await client.publish(name, b"", partitioner=lambda *_: 3)

    run(backend, scenario)


@both_backends
def test_publishing_to_a_subject(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name, f"{name}.*")
            ack = await client.publish_to_subject(f"{name}.one", b"value")
            assert (ack.stream, ack.offset, ack.subject) == (name, 0, f"{name}.one")
            with pytest.raises(lc.DeadlineExceededError):
                await client.publish_to_subject(fresh(), b"", timeout=0.2)

    run(backend, scenario)


@both_backends
def test_a_message_that_is_too_large_is_refused_and_the_others_are_stored(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.publisher(name) as publisher:
                small, large, last = await publisher.send_batch([b"a", bytes(1_100_000), b"b"])
                assert (await small).offset == 0
                with pytest.raises(lc.MessageTooLargeError):
                    await large
                assert (await last).offset == 1

    run(backend, scenario)


@both_backends
def test_messages_longer_than_the_window_arrive(shared, backend):
    name = fresh()

    async def scenario():
        options = lc.Options(stream_window=65_536)
        async with lc.connect(shared.address, options=options) as client:
            await client.create_stream(name)
            for _ in range(3):
                await client.publish(name, bytes(500_000))
            async with client.subscribe(name, start="earliest", stop="latest") as messages:
                assert [len(m.value) async for m in messages] == [500_000] * 3

    run(backend, scenario)


@both_backends
def test_a_reader_that_does_not_read_stalls_nobody_else(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.publisher(name) as publisher:
                await publisher.send_batch([bytes(10_000)] * 1_000)
            async with client.subscribe(name, start="earliest"):  # 10 MB, and a window of one
                async with client.subscribe(name, start="earliest", stop="latest") as messages:
                    assert len([m async for m in messages]) == 1_000

    run(backend, scenario)


@both_backends
def test_what_the_body_of_a_block_raises_comes_out_as_it_is(shared, backend):
    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name := fresh())
            async with client.publisher(name), client.subscribe(name):
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(backend, scenario)


@both_backends
def test_what_was_closed_says_so(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            async with client.publisher(name) as publisher:
                pass
            with pytest.raises(lc.ClientClosedError):
                await publisher.send(b"")
        with pytest.raises(lc.ClientClosedError):
            await client.publish(name, b"")

    run(backend, scenario)


@both_backends
def test_leaving_by_a_timeout_is_clean(shared, backend):
    name = fresh()

    async def scenario():
        async with lc.connect(shared.address) as client:
            await client.create_stream(name)
            with anyio.move_on_after(0.2) as scope:
                async with client.subscribe(name) as messages:
                    await take(messages, 1)
            assert scope.cancelled_caught
            assert (await client.publish(name, b"")).offset == 0

    run(backend, scenario)


def test_importing_the_client_brings_no_server_and_no_grpcio():
    code = (
        "import sys, liftbridge.client; "
        "print([n for n in ('grpc', 'purerpc', 'trio', 'nats', 'liftbridge.rpc', 'liftbridge.broker', "
        "'liftbridge.log') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
