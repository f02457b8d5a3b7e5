"""Readonly partitions of a real server: who is refused, where subscribers end, and that it holds."""

from __future__ import annotations

import time

import grpc
import pytest
from calls import (
    PATIENCE,
    NatsClient,
    RequestQueue,
    ack_of,
    create,
    drain,
    envelope,
    partition_metadata,
    publish,
    publish_many,
    read_all,
    refused,
    subscribe,
    take,
    until,
)
from harness import Server
from publish_load import Load

from liftbridge.proto import api_pb2

END = grpc.StatusCode.RESOURCE_EXHAUSTED
READONLY = api_pb2.PublishAsyncError.READONLY


def set_readonly(api, stream, *partitions, readonly=True):
    request = api_pb2.SetStreamReadonlyRequest(name=stream, partitions=partitions, readonly=readonly)
    api.SetStreamReadonly(request, timeout=PATIENCE)


def publish_async(api, stream, *values, **fields):
    """The answers to messages published in one call."""
    requests = (api_pb2.PublishRequest(stream=stream, value=value, **fields) for value in values)
    return list(api.PublishAsync(requests, timeout=PATIENCE))


def values(messages):
    return [message.value for message in messages]


def end_of(call):
    """What a subscription still delivers, its status and its text."""
    messages = []
    with pytest.raises(grpc.RpcError) as error:
        messages.extend(call)
    return values(messages), error.value.code(), error.value.details()


def assert_refuses(api, stream, partition=0):
    before = partition_metadata(api, stream, partition).newestOffset
    for policy in ("LEADER", "ALL", "NONE"):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "readonly"):
            publish(api, stream, b"no", partition=partition, ackPolicy=policy)
        (answer,) = publish_async(
            api, stream, b"no", partition=partition, ackPolicy=policy, correlationId="c"
        )
        assert (answer.asyncError.code, answer.correlationId) == (READONLY, "c")
        assert answer.HasField("ack")
    assert partition_metadata(api, stream, partition).newestOffset == before


def test_a_readonly_partition_refuses_publishes_and_is_read_to_its_end(api):
    stream = create(api, partitions=2)
    publish_many(api, stream, [b"0", b"1"])
    set_readonly(api, stream, 0)
    assert_refuses(api, stream)
    assert partition_metadata(api, stream, 0).readonly
    assert not partition_metadata(api, stream, 1).readonly
    assert publish(api, stream, b"x", partition=1).offset == 0
    end = ([b"0", b"1"], END, "End of readonly partition")
    assert end_of(subscribe(api, stream, startPosition="EARLIEST")) == end
    set_readonly(api, stream, 0, readonly=False)
    assert not partition_metadata(api, stream, 0).readonly
    assert publish(api, stream, b"2").offset == 2
    assert values(read_all(api, stream)) == [b"0", b"1", b"2"]


def test_without_partitions_all_are_meant(api):
    stream = create(api, partitions=3)
    set_readonly(api, stream)
    for partition in range(3):
        assert_refuses(api, stream, partition)
    set_readonly(api, stream, readonly=False)
    for partition in range(3):
        assert publish(api, stream, partition=partition).offset == 0


def test_what_does_not_exist_does_not_become_readonly(api):
    stream = create(api, partitions=2)
    for name, partitions in (("-", ()), ("-", (0,)), (stream, (0, 2)), (stream, (-1,))):
        with refused(grpc.StatusCode.NOT_FOUND, "No such"):
            set_readonly(api, name, *partitions)
    assert publish(api, stream).offset == 0


def test_running_subscribers_read_to_the_end_and_end_there(api):
    stream = create(api)
    publish_many(api, stream, [b"0", b"1"])
    waiting = subscribe(api, stream, startPosition="NEW_ONLY")
    future = subscribe(api, stream, startPosition="EARLIEST", stopPosition="STOP_OFFSET", stopOffset=99)
    assert values(take(future, 2)) == [b"0", b"1"]
    set_readonly(api, stream)
    for call in (waiting, future):
        assert end_of(call) == ([], END, "End of readonly partition")


@pytest.mark.parametrize(
    "fields, delivered",
    [
        ({"startPosition": "NEW_ONLY"}, []),
        ({"startPosition": "LATEST"}, [b"2"]),
        ({"startPosition": "OFFSET", "startOffset": 1}, [b"1", b"2"]),
        ({"startPosition": "OFFSET", "startOffset": 77}, []),
        ({"startPosition": "EARLIEST", "stopPosition": "STOP_LATEST"}, [b"0", b"1", b"2"]),
        ({"startPosition": "EARLIEST", "stopPosition": "STOP_OFFSET", "stopOffset": 0}, [b"0"]),
        ({"startPosition": "EARLIEST", "stopPosition": "STOP_OFFSET", "stopOffset": 9}, [b"0", b"1", b"2"]),
        ({"startPosition": "LATEST", "reverse": True}, [b"2", b"1", b"0"]),
    ],
)
def test_every_subscription_of_a_readonly_partition_ends(api, fields, delivered):
    stream = create(api)
    publish_many(api, stream, [b"0", b"1", b"2"])
    set_readonly(api, stream)
    messages, status = drain(subscribe(api, stream, **fields))
    assert (values(messages), status) == (delivered, END)


def test_an_empty_readonly_partition_ends_at_once(api):
    stream = create(api)
    set_readonly(api, stream)
    for position in ("NEW_ONLY", "EARLIEST", "LATEST"):
        assert end_of(subscribe(api, stream, startPosition=position)) == (
            [],
            END,
            "End of readonly partition",
        )
    # The explicit combination that makes no sense stays an error.
    with refused(END):
        next(api.Subscribe(api_pb2.SubscribeRequest(stream=stream, stopPosition="STOP_LATEST")))


def test_messages_from_nats_get_negative_acks_and_are_not_stored(server, api):
    stream = create(api)
    set_readonly(api, stream)
    with NatsClient(server.nats_url) as client:
        acks = client.subscribe("inbox.readonly")
        client.publish(stream, b"plain")
        message = api_pb2.Message(value=b"no", ackInbox="inbox.readonly", correlationId="c")
        client.publish(stream, envelope(message))
        ack = ack_of(acks.get(timeout=PATIENCE).data)
        assert (ack.ackError, ack.correlationId, ack.offset) == (api_pb2.Ack.UNKNOWN, "c", 0)
        request = api_pb2.PublishToSubjectRequest(subject=stream, value=b"no")
        assert api.PublishToSubject(request, timeout=PATIENCE).ack.ackError == api_pb2.Ack.UNKNOWN
        set_readonly(api, stream, readonly=False)
        client.publish(stream, b"yes")
        until(lambda: partition_metadata(api, stream).newestOffset == 0)
    assert values(read_all(api, stream)) == [b"yes"]


def test_readonly_holds_while_paused_and_after_a_resume(api):
    stream = create(api, partitions=2)
    publish(api, stream, b"old")
    set_readonly(api, stream, 0)
    api.PauseStream(api_pb2.PauseStreamRequest(name=stream), timeout=PATIENCE)
    # It is refused, and not resumed to be refused.
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "readonly"):
        publish(api, stream)
    (answer,) = publish_async(api, stream, b"no")
    assert answer.asyncError.code == READONLY
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "paused"):
        partition_metadata(api, stream)
    end = ([b"old"], END, "End of readonly partition")
    assert end_of(subscribe(api, stream, startPosition="EARLIEST", resume=True)) == end
    assert_refuses(api, stream)
    # Set while the partition is paused, it holds from the resume on; so does its undoing.
    set_readonly(api, stream, 1)
    set_readonly(api, stream, 0, readonly=False)
    subscribe(api, stream, partition=1, resume=True).cancel()
    assert_refuses(api, stream, 1)
    assert publish(api, stream, b"new").offset == 1


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_readonly_survives(tmp_path, end):
    with Server(tmp_path / "server") as server:
        api = server.api()
        stream = create(api, partitions=2)
        publish(api, stream, b"old")
        set_readonly(api, stream, 0)
        times = partition_metadata(api, stream).readonlyTimestamps
        getattr(server, end)()
        server.start()
        api = server.api()
        assert_refuses(api, stream)
        assert partition_metadata(api, stream).readonlyTimestamps == times
        with NatsClient(server.nats_url) as client:
            acks = client.subscribe("inbox.again")
            client.publish(stream, envelope(api_pb2.Message(value=b"no", ackInbox="inbox.again")))
            assert ack_of(acks.get(timeout=PATIENCE).data).ackError == api_pb2.Ack.UNKNOWN
        assert end_of(subscribe(api, stream, startPosition="EARLIEST"))[:2] == ([b"old"], END)
        set_readonly(api, stream, readonly=False)
        getattr(server, end)()
        server.start()
        api = server.api()
        assert publish(api, stream, b"new").offset == 1


def test_the_times_of_readonly_are_told(api):
    stream = create(api)
    times = partition_metadata(api, stream).readonlyTimestamps
    assert (times.firstTimestamp, times.latestTimestamp) == (0, 0)
    before = time.time_ns()
    set_readonly(api, stream)
    first = partition_metadata(api, stream).readonlyTimestamps
    assert before <= first.firstTimestamp == first.latestTimestamp <= time.time_ns()
    set_readonly(api, stream)
    assert partition_metadata(api, stream).readonlyTimestamps == first
    set_readonly(api, stream, readonly=False)
    second = partition_metadata(api, stream).readonlyTimestamps
    assert second.firstTimestamp == first.firstTimestamp < second.latestTimestamp
    assert partition_metadata(api, stream).pauseTimestamps.latestTimestamp == 0


def test_a_call_goes_on_when_the_partition_is_writable_again(api):
    stream = create(api)
    requests = RequestQueue()
    answers = api.PublishAsync(iter(requests), timeout=PATIENCE)
    requests.send(stream=stream, correlationId="1")
    assert next(answers).ack.offset == 0
    set_readonly(api, stream)
    requests.send(stream=stream, correlationId="2")
    answer = next(answers)
    assert (answer.asyncError.code, answer.correlationId) == (READONLY, "2")
    set_readonly(api, stream, readonly=False)
    requests.send(stream=stream, correlationId="3")
    assert next(answers).ack.offset == 1
    requests.close()
    assert list(answers) == []


@pytest.mark.parametrize("batch_time", ["0", "50ms"])
def test_under_load_what_was_acked_is_there_and_subscribers_have_read_it(tmp_path, batch_time):
    with Server(tmp_path / "server", {"batch.max.time": batch_time}) as server:
        api = server.api()
        stream = create(api)
        running = subscribe(api, stream, startPosition="EARLIEST")
        with Load(api, stream) as load:
            load.go_on(2000)
            set_readonly(api, stream)
            seen, status, _ = end_of(running)
            until(lambda: load.errors)
        # On its way when the partition became readonly: told so by an ack, which has no word for it.
        assert {error.code for error in load.errors} <= {READONLY, api_pb2.PublishAsyncError.UNKNOWN}
        assert sorted(load.acked.values()) == list(range(len(load.acked)))
        assert (seen, status) == (values(read_all(api, stream)), END)
        assert len(seen) == len(load.acked)
