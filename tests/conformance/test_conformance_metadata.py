"""Metadata, cursors, groups and activity, as clients of the original see them: a test for each row."""

import contextlib
import itertools
import time

import grpc
import pytest
from conformance_calls import (
    INTERNAL,
    INVALID,
    NOT_FOUND,
    OK,
    REFUSED,
    Api,
    api_pb2,
    assignments,
    create,
    delete,
    drain,
    event_of,
    events_about,
    fetch_cursor,
    fill,
    fresh,
    group_metadata,
    history,
    integer,
    join,
    leave,
    metadata,
    partition_metadata,
    partitions,
    pause,
    paused,
    publish,
    refused,
    set_cursor,
    set_readonly,
    streams,
    subscribe,
    take,
    until,
    values,
)

CURSORS, ACTIVITY = "__cursors", "__activity"
SECOND = 10**9


def consumer(group, consumer_id, epoch):
    """A Consumer of a subscription."""
    return api_pb2.Consumer(groupId=group, consumerId=consumer_id, groupEpoch=epoch)


def test_cluster_metadata(server, api):
    name, unknown, group = create(api, partitions=2), fresh("never"), fresh("g")
    fill(api, name, 3, partition=1)
    join(api, group, "c", name)
    answer = metadata(api, unknown, name, name, groups=("nope", group))
    (broker,) = answer.brokers
    assert (broker.id, broker.host, broker.port) == (server.server_id, "127.0.0.1", server.grpc_port)
    assert [(entry.name, entry.error) for entry in answer.streamMetadata] == [
        (unknown, api_pb2.StreamMetadata.UNKNOWN_STREAM),
        (name, api_pb2.StreamMetadata.OK),
        (name, api_pb2.StreamMetadata.OK),
    ]
    entry = answer.streamMetadata[1]
    for partition, newest in ((0, -1), (1, 2)):
        found = entry.partitions[partition]
        assert (found.id, found.leader, list(found.replicas), list(found.isr)) == (
            partition,
            broker.id,
            [broker.id],
            [broker.id],
        )
        assert (found.highWatermark, found.newestOffset) == (newest, newest)
    assert [(entry.groupId, entry.error, entry.coordinator) for entry in answer.groupMetadata] == [
        ("nope", api_pb2.ConsumerGroupMetadata.UNKNOWN_GROUP, ""),
        (group, api_pb2.ConsumerGroupMetadata.OK, broker.id),
    ]
    # Without names: all streams, those of the server too, and no groups.
    everything = metadata(api)
    assert {name, CURSORS, ACTIVITY} <= {entry.name for entry in everything.streamMetadata}
    assert list(everything.groupMetadata) == []


def test_partition_metadata(server, api):
    name = create(api, partitions=2)
    found = partition_metadata(api, name, 1)
    assert (found.id, found.highWatermark, found.newestOffset) == (1, -1, -1)
    for newest in range(3):
        publish(api, name, partition=1, ackPolicy=api_pb2.ALL)
        found = partition_metadata(api, name, 1)
        assert (found.highWatermark, found.newestOffset) == (newest, newest)
    assert (found.leader, list(found.replicas), list(found.isr)) == (
        server.server_id,
        [server.server_id],
        [server.server_id],
    )
    assert (found.paused, found.readonly) == (False, False)
    for stream, partition in ((fresh("never"), 0), (name, 2), (name, -1)):
        with refused(NOT_FOUND):
            partition_metadata(api, stream, partition)


def test_creation_and_event_times_readonly_flag(api):
    before = time.time_ns()
    name = create(api)
    assert before <= streams(api)[name].creationTimestamp <= time.time_ns()

    def times():
        (found,) = partitions(api, name)
        fields = ("messagesReceivedTimestamps", "pauseTimestamps", "readonlyTimestamps")
        assert all(found.HasField(field) for field in fields)
        return [
            (getattr(found, field).firstTimestamp, getattr(found, field).latestTimestamp) for field in fields
        ]

    def rises(number, change):
        """The first change sets both times of one event, a further one moves the latest."""
        others, changed = times(), time.time_ns()
        change()
        now = times()
        first, latest = now.pop(number)
        old_first, old_latest = others.pop(number)
        assert first == (old_first or latest)
        assert changed <= latest <= time.time_ns()
        assert latest > old_latest
        assert now == others

    assert times() == [(0, 0), (0, 0), (0, 0)]
    for _ in range(2):
        rises(0, lambda: publish(api, name))
    rises(1, lambda: pause(api, name))
    rises(1, lambda: subscribe(api, name, resume=True).cancel())
    rises(2, lambda: set_readonly(api, name))
    assert partition_metadata(api, name).readonly
    rises(2, lambda: set_readonly(api, name, readonly=False))
    assert not partition_metadata(api, name).readonly
    assert partition_metadata(api, name).pauseTimestamps.latestTimestamp == times()[1][1]


def test_load_counts_per_broker(start):
    _, api = start()

    def counts():
        (broker,) = metadata(api, "-").brokers
        return broker.partitionCount, broker.leaderCount

    assert counts() == (0, 0)
    name = create(api, partitions=3)
    create(api, partitions=2)
    until(lambda: counts() == (5, 5))
    pause(api, name, 0, 1)
    until(lambda: counts() == (3, 3))
    publish(api, name)
    until(lambda: counts() == (4, 4))
    delete(api, name)
    until(lambda: counts() == (2, 2))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_cursors(start, end):
    server, api = start({"cursors.stream.partitions": 3})
    assert fetch_cursor(api, "c") == -1
    for offset in (5, 3, 0, 2**63 - 1, 7):
        set_cursor(api, "c", offset)
        assert fetch_cursor(api, "c") == offset
    # Each of stream, partition and id counts; neither stream nor partition need exist.
    set_cursor(api, "c", 1, stream="others")
    set_cursor(api, "c", 2, partition=9)
    set_cursor(api, "d", 3)
    for _ in range(2):
        assert fetch_cursor(api, "c") == 7
        assert fetch_cursor(api, "c", stream="others") == 1
        assert fetch_cursor(api, "c", partition=9) == 2
        assert fetch_cursor(api, "d") == 3
        getattr(server, end)()
        server.start()
        api = Api(server)
    # They are in the stream where the original has them: by CRC-32 of the key, which has commas.
    set_cursor(api, "abc", 4, stream="foo", partition=2)
    (found,) = [each for each in history(api, CURSORS, 850748977 % 3) if each.key == b"abc,foo,2"]
    assert found.value == b"\x0a\x03foo\x10\x02\x1a\x03abc\x20\x04"
    for fields in ({"stream": "", "cursor": "c"}, {"stream": "orders", "cursor": ""}):
        with refused(INVALID):
            fetch_cursor(api, **fields)
        with refused(INVALID):
            set_cursor(api, **fields, offset=1)
    if end == "kill":
        return
    _, off = start(name="off")
    with refused(INTERNAL):
        fetch_cursor(off, "c")
    with refused(INTERNAL):
        set_cursor(off, "c", 1)


@pytest.mark.parametrize("factor", [-1, 1])
def test_cursors_replication_factor(start, factor):
    server, api = start({"cursors.stream.partitions": 2, "cursors.stream.replication.factor": factor})
    found = partitions(api, CURSORS)
    assert [list(partition.replicas) for partition in found] == [[server.server_id]] * 2


def test_cursors_auto_pause(start):
    _, api = start({"cursors.stream.partitions": 1, "cursors.stream.auto.pause.time": "200ms"})
    set_cursor(api, "c", 5)
    until(lambda: paused(api, CURSORS) == [True])
    assert fetch_cursor(api, "c") == 5
    assert fetch_cursor(api, "never") == -1
    until(lambda: paused(api, CURSORS) == [True])
    set_cursor(api, "c", 6)
    assert fetch_cursor(api, "c") == 6
    until(lambda: paused(api, CURSORS) == [True])
    assert fetch_cursor(api, "c") == 6


def test_consumer_groups(server, api):
    name, group = create(api, partitions=4), fresh("g")
    first = join(api, group, "c1", name)
    assert (first.coordinator, first.epoch) == (server.server_id, 0)
    assert (first.consumerTimeout, first.coordinatorTimeout) == (15 * SECOND, 15 * SECOND)
    assert assignments(api, group, "c1") == {name: [0, 1, 2, 3]}
    second = join(api, group, "c2", name)
    assert second.epoch == group_metadata(api, group).epoch > first.epoch
    shares = [assignments(api, group, member)[name] for member in ("c1", "c2")]
    assert sorted(map(len, shares)) == [2, 2]
    assert sorted(itertools.chain(*shares)) == [0, 1, 2, 3]
    with refused(REFUSED):
        assignments(api, group, "c1", first.epoch)
    leave(api, group, "c1")
    assert group_metadata(api, group).epoch > second.epoch
    assert assignments(api, group, "c2") == {name: [0, 1, 2, 3]}
    leave(api, group, "c2")
    assert group_metadata(api, group).error == api_pb2.ConsumerGroupMetadata.UNKNOWN_GROUP
    # Members of different streams: the one of both leaves foo to the one that has nothing else.
    foo, bar, group = create(api, partitions=2), create(api, partitions=2), fresh("g")
    join(api, group, "c1", foo, bar)
    assert assignments(api, group, "c1") == {foo: [0, 1], bar: [0, 1]}
    join(api, group, "c2", foo)
    assert assignments(api, group, "c1") == {bar: [0, 1]}
    assert assignments(api, group, "c2") == {foo: [0, 1]}
    before = group_metadata(api, group).epoch
    delete(api, foo)
    assert group_metadata(api, group).epoch > before
    assert assignments(api, group, "c2") == {}


def test_member_expiry(start):
    _, api = start({"groups.consumer.timeout": "1s"})
    name = create(api, partitions=4)
    join(api, "g", "alive", name)
    before = join(api, "g", "silent", name).epoch

    def mine():
        """A poll keeps this member. If it fails the epoch has changed, or the machine stood still."""
        try:
            epoch = group_metadata(api, "g").epoch
            found = assignments(api, "g", "alive", epoch)
        except grpc.RpcError as error:
            assert error.code() in (NOT_FOUND, REFUSED), error
            with contextlib.suppress(grpc.RpcError):  # a member already
                join(api, "g", "alive", name)
            return None
        return found[name] if epoch != before and len(found[name]) == 4 else None

    assert until(mine) == [0, 1, 2, 3]
    # Nobody polls any more: the group goes.
    until(lambda: group_metadata(api, "g").error == api_pb2.ConsumerGroupMetadata.UNKNOWN_GROUP)


def test_fencing(api):
    name, group = create(api), fresh("g")
    second = subscribe(api, name, consumer=consumer(group, "c2", 2))
    with refused(REFUSED):
        subscribe(api, name, consumer=consumer(group, "c1", 1))
    publish(api, name, b"0")
    assert values(take(second, 1)) == [b"0"]
    third = subscribe(api, name, consumer=consumer(group, "c3", 3))
    assert drain(second) == ([], OK)
    again = subscribe(api, name, consumer=consumer(group, "c3", 3))
    assert drain(third) == ([], OK)
    # The end of the older one of the same consumer leaves the newer one where it is.
    with refused(REFUSED):
        subscribe(api, name, consumer=consumer(group, "c1", 2))
    others = [
        subscribe(api, name, consumer=consumer(fresh("g"), "c1", 1)),
        subscribe(api, name, consumer=consumer("", "c1", 1)),
        subscribe(api, name),
    ]
    publish(api, name, b"1")
    for call in (again, *others):
        assert values(take(call, 1)) == [b"1"]
        call.cancel()
    with refused(INVALID):
        subscribe(api, name, consumer=consumer(group, "", 9))


def test_durable_consumers(start):
    server, api = start({"cursors.stream.partitions": 1})
    name = create(api)
    fill(api, name, 20)
    seen = []

    def consume(consumer_id, count):
        """What a consumer of the official client does in its life."""
        api = Api(server)
        epoch = join(api, "g", consumer_id, name).epoch
        assert assignments(api, "g", consumer_id, epoch) == {name: [0]}
        position = fetch_cursor(api, "__group:g", name)
        call = subscribe(
            api,
            name,
            startPosition=api_pb2.EARLIEST if position == -1 else api_pb2.OFFSET,
            startOffset=position + 1,
            consumer=consumer("g", consumer_id, epoch),
        )
        messages = take(call, count)
        seen.extend(message.offset for message in messages)
        leave(api, "g", consumer_id)
        call.cancel()
        set_cursor(api, "__group:g", messages[-1].offset, name)

    consume("c1", 8)
    consume("c2", 5)
    server.kill()
    server.start()
    consume("c3", 7)
    assert seen == list(range(20))


def test_activity_stream(start):
    server, api = start({"activity.stream.enabled": True})
    create(api, "foo", partitions=2)
    pause(api, "foo", 1, resume_all=True)
    publish(api, "foo", partition=1)
    create(api, "bar", autoPauseTime=integer(1))
    until(lambda: all(paused(api, "bar")))
    server.kill()
    server.start()
    api = Api(server)
    delete(api, "foo")
    events = events_about(api, lambda event: event.op == api_pb2.DELETE_STREAM)
    ids = [event.id for event in events]
    assert ids == sorted(set(ids))
    for event in events:
        event.ClearField("id")
    expected = [
        api_pb2.ActivityStreamEvent(**fields)
        for fields in (
            {"createStreamOp": api_pb2.CreateStreamOp(stream=ACTIVITY, partitions=[0])},
            {"createStreamOp": api_pb2.CreateStreamOp(stream="foo", partitions=[0, 1])},
            {
                "op": api_pb2.PAUSE_STREAM,
                "pauseStreamOp": api_pb2.PauseStreamOp(stream="foo", partitions=[1], resumeAll=True),
            },
            {
                "op": api_pb2.RESUME_STREAM,
                "resumeStreamOp": api_pb2.ResumeStreamOp(stream="foo", partitions=[1]),
            },
            {"createStreamOp": api_pb2.CreateStreamOp(stream="bar", partitions=[0])},
            {
                "op": api_pb2.PAUSE_STREAM,
                "pauseStreamOp": api_pb2.PauseStreamOp(stream="bar", partitions=[0]),
            },
            {"op": api_pb2.DELETE_STREAM, "deleteStreamOp": api_pb2.DeleteStreamOp(stream="foo")},
        )
    ]
    assert events == expected
    (entry,) = metadata(api, ACTIVITY).streamMetadata
    assert (entry.subject, sorted(entry.partitions)) == ("liftbridge-default.activity", [0])


def test_readonly_events(api):
    running = subscribe(api, ACTIVITY)
    name = create(api, partitions=2)
    set_readonly(api, name, 1)
    set_readonly(api, name, readonly=False)
    _, on, off = map(event_of, take(running, 3))
    assert on.op == off.op == api_pb2.SET_STREAM_READONLY
    detail = api_pb2.SetStreamReadonlyOp
    assert on.setStreamReadonlyOp == detail(stream=name, partitions=[1], readonly=True)
    assert off.setStreamReadonlyOp == detail(stream=name, partitions=[0, 1], readonly=False)
    running.cancel()


def test_group_events(api, start):
    name, group = create(api), fresh("g")
    running = subscribe(api, ACTIVITY)
    join(api, group, "c1", name)
    join(api, group, "c2", name)
    leave(api, group, "c1")
    first, second, left = map(event_of, take(running, 3))
    running.cancel()
    assert (first.op, second.op) == (api_pb2.JOIN_CONSUMER_GROUP, api_pb2.JOIN_CONSUMER_GROUP)
    detail = api_pb2.JoinConsumerGroupOp
    assert first.joinConsumerGroupOp == detail(groupId=group, consumerId="c1", streams=[name])
    assert second.joinConsumerGroupOp == detail(groupId=group, consumerId="c2", streams=[name])
    assert left.op == api_pb2.LEAVE_CONSUMER_GROUP
    detail = api_pb2.LeaveConsumerGroupOp
    assert left.leaveConsumerGroupOp == detail(groupId=group, consumerId="c1", expired=False)
    _, hasty = start({"activity.stream.enabled": True, "groups.consumer.timeout": "300ms"})
    join(hasty, "g", "c", create(hasty))
    expired = events_about(hasty, lambda event: event.op == api_pb2.LEAVE_CONSUMER_GROUP)[-1]
    assert expired.leaveConsumerGroupOp == detail(groupId="g", consumerId="c", expired=True)
