"""The activity stream of a real server: which events, in which order, and across its end."""

import itertools

import grpc
import pytest
from calls import (
    PATIENCE,
    NatsClient,
    create,
    partition_metadata,
    publish,
    read_all,
    refused,
    subscribe,
    take,
    until,
)
from harness import Nats, Server

from liftbridge.broker.activity import MAX_WAITING
from liftbridge.proto import api_pb2

ACTIVITY = "__activity"
ENABLED = {"activity.stream.enabled": True}
# Events have the index of their operation in the log of the metadata. It begins with an entry that says who
# the members of the cluster are, and each start of a server adds some: that it leads, that it has registered,
# and that it takes part.
START = 3
FIRST = 1 + START + 1


@pytest.fixture
def settings():
    return ENABLED


@pytest.fixture
def server(tmp_path, settings):
    with Server(tmp_path / "server", settings) as running:
        yield running
        assert "Traceback" not in running.log


def delete(api, name):
    api.DeleteStream(api_pb2.DeleteStreamRequest(name=name), timeout=PATIENCE)


def event_of(message):
    assert not message.key
    return api_pb2.ActivityStreamEvent.FromString(message.value)


def events(api, count):
    """The first events of the stream; waits for as many as asked."""
    call = subscribe(api, ACTIVITY, startPosition=api_pb2.EARLIEST)
    found = [event_of(message) for message in take(call, count)]
    call.cancel()
    return found


def all_events(api, last):
    """Every event in the stream, once that of operation `last` is there."""
    call = subscribe(api, ACTIVITY, startPosition=api_pb2.EARLIEST)
    next(message for message in call if event_of(message).id == last)
    call.cancel()
    return [event_of(message) for message in read_all(api, ACTIVITY)]


def created(index, stream, partitions=(0,)):
    detail = api_pb2.CreateStreamOp(stream=stream, partitions=partitions)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.CREATE_STREAM, createStreamOp=detail)


def deleted(index, stream):
    detail = api_pb2.DeleteStreamOp(stream=stream)
    return api_pb2.ActivityStreamEvent(id=index, op=api_pb2.DELETE_STREAM, deleteStreamOp=detail)


def wait_published(server, index):
    """Wait until the server knows that an event is stored; readers may see it before that."""
    file = server.data_dir / "metadata" / "activity"
    until(lambda: file.exists() and file.read_text() == f"{index}\n")


@pytest.mark.parametrize("settings", [{**ENABLED, "cursors.stream.partitions": 2}])
def test_every_change_is_an_event_and_those_of_the_server_too(server, api):
    create(api, "orders", partitions=3)
    delete(api, "orders")
    create(api, "orders")
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        create(api, "orders")
    delete(api, "orders")
    expected = [
        created(FIRST, ACTIVITY),
        created(FIRST + 1, "__cursors", (0, 1)),
        created(FIRST + 2, "orders", (0, 1, 2)),
        deleted(FIRST + 3, "orders"),
        created(FIRST + 4, "orders"),
        deleted(FIRST + 5, "orders"),
    ]
    assert events(api, 6) == expected
    assert all_events(api, FIRST + 5) == expected


def test_the_stream_is_the_servers_own(server, api):
    request = api_pb2.FetchMetadataRequest(streams=[ACTIVITY])
    (entry,) = api.FetchMetadata(request, timeout=10).streamMetadata
    assert (entry.subject, list(entry.partitions)) == ("liftbridge-default.activity", [0])
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        create(api, ACTIVITY)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        delete(api, ACTIVITY)


@pytest.mark.parametrize("settings", [{}])
def test_there_is_no_stream_unless_it_is_asked_for(server, api):
    create(api, "orders")
    with refused(grpc.StatusCode.NOT_FOUND):
        subscribe(api, ACTIVITY)
    assert [entry.name for entry in api.FetchMetadata(api_pb2.FetchMetadataRequest()).streamMetadata] == [
        "orders"
    ]
    # Switched on later, it begins with what the journal has.
    server.stop()
    server.config.update(ENABLED)
    server.start()
    later = FIRST + 1 + START
    assert all_events(server.api(), later) == [created(FIRST, "orders"), created(later, ACTIVITY)]


@pytest.mark.parametrize("policy", ["none", "leader", "all"])
def test_every_ack_policy(tmp_path, policy):
    config = {**ENABLED, "activity.stream.publish.ack.policy": policy}
    with Server(tmp_path / "server", config) as server:
        api = server.api()
        create(api, "orders")
        assert events(api, 2) == [created(FIRST, ACTIVITY), created(FIRST + 1, "orders")]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_events_go_on_after_a_restart_without_gap_and_twice(server, end):
    """Ended at any moment: events that were not out yet follow, those that were are not repeated."""
    indexes = itertools.count(FIRST + 1)
    expected = [created(FIRST, ACTIVITY)]
    for _ in range(6):
        api = server.api()
        expected += [created(next(indexes), create(api)) for _ in range(10)]
        getattr(server, end)()
        server.start()
        for _ in range(START):
            next(indexes)
    expected.append(created(next(indexes), create(server.api())))
    assert all_events(server.api(), expected[-1].id) == expected


def test_operations_without_nats_are_told_of_when_it_is_back(tmp_path):
    with Nats(tmp_path / "nats") as nats:
        config = {**ENABLED, "nats.servers": nats.url}
        with Server(tmp_path / "server", config, embedded=False) as server:
            api = server.api()
            assert events(api, 1) == [created(FIRST, ACTIVITY)]
            wait_published(server, FIRST)
            nats.stop()
            server.wait_log("no NATS yet")
            names = [create(api) for _ in range(3)]
            server.wait_log(f"the event of operation {FIRST + 1} is not in the activity stream yet")
            nats.start()
            expected = [created(FIRST, ACTIVITY)]
            expected += [created(index, name) for index, name in enumerate(names, FIRST + 1)]
            assert all_events(api, expected[-1].id) == expected


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_a_server_without_nats_could_not_publish_comes_after_its_restart(tmp_path, end):
    with Nats(tmp_path / "nats") as nats:
        config = {**ENABLED, "nats.servers": nats.url}
        with Server(tmp_path / "server", config, embedded=False) as server:
            api = server.api()
            assert events(api, 1) == [created(FIRST, ACTIVITY)]
            wait_published(server, FIRST)
            nats.stop()
            server.wait_log("no NATS yet")
            names = [create(api) for _ in range(3)]
            getattr(server, end)()
            nats.start()
            server.start()
            expected = [created(FIRST, ACTIVITY)]
            expected += [created(index, name) for index, name in enumerate(names, FIRST + 1)]
            assert all_events(server.api(), expected[-1].id) == expected


def test_operations_beyond_those_in_memory_come_from_the_journal(tmp_path):
    with Nats(tmp_path / "nats") as nats:
        config = {**ENABLED, "nats.servers": nats.url}
        with Server(tmp_path / "server", config, embedded=False) as server:
            api = server.api()
            assert events(api, 1) == [created(FIRST, ACTIVITY)]
            wait_published(server, FIRST)
            nats.stop()
            server.wait_log("no NATS yet")
            expected = [created(FIRST, ACTIVITY)]
            for index in range(FIRST + 1, 2 * MAX_WAITING, 2):
                create(api, "again")
                delete(api, "again")
                expected += [created(index, "again"), deleted(index + 1, "again")]
            nats.start()
            assert all_events(api, expected[-1].id) == expected
            assert "lacks the operations" not in server.log


@pytest.mark.parametrize(
    "settings",
    [
        {
            **ENABLED,
            "streams.cleaner.interval": "50ms",
            "streams.retention.max.age": "100ms",
            "streams.segment.max.age": "100ms",
        }
    ],
)
def test_a_stream_that_retention_has_emptied_does_not_begin_anew(server, api):
    create(api, "orders")
    wait_published(server, FIRST + 1)
    # Only now is nothing added any more: an event whose ack comes late on a busy machine is in it twice.
    until(lambda: partition_metadata(api, ACTIVITY).newestOffset == -1)
    following = partition_metadata(api, ACTIVITY).highWatermark + 1
    assert following >= 2
    server.stop()
    server.config.update({"streams.retention.max.age": "1h"})
    server.start()
    api = server.api()
    create(api, "later")
    call = subscribe(api, ACTIVITY, startPosition=api_pb2.EARLIEST)
    (message,) = take(call, 1)
    call.cancel()
    assert (message.offset, event_of(message)) == (following, created(FIRST + 2 + START, "later"))


@pytest.mark.parametrize("settings", [{**ENABLED, "clustering.replication.max.bytes": 180}])
def test_an_event_that_is_too_large_goes_without_its_lists_or_not_at_all(server, api):
    create(api, "wide", partitions=150)
    create(api, "n" * 240)
    create(api, "last")
    short = api_pb2.ActivityStreamEvent(
        id=FIRST + 1, op=api_pb2.CREATE_STREAM, createStreamOp=api_pb2.CreateStreamOp(stream="wide")
    )
    assert all_events(api, FIRST + 3) == [created(FIRST, ACTIVITY), short, created(FIRST + 3, "last")]
    assert f"the event of operation {FIRST + 2} is left out" in server.log


@pytest.mark.parametrize("content", ["", "x", "-1", "99", "\x00"])
def test_a_position_file_that_cannot_be_is_told_of_and_not_believed(server, api, content):
    create(api, "orders")
    assert all_events(api, FIRST + 1) == [created(FIRST, ACTIVITY), created(FIRST + 1, "orders")]
    server.stop()
    (server.data_dir / "metadata" / "activity").write_text(content)
    server.start()
    create(server.api(), "later")
    assert all_events(server.api(), FIRST + 2 + START)[2:] == [created(FIRST + 2 + START, "later")]
    assert "the stream has to do without it" in server.log


def test_what_others_put_into_the_stream_moves_no_position(server, api):
    assert events(api, 1) == [created(FIRST, ACTIVITY)]
    forged = created(1 << 60, "forged")
    publish(api, ACTIVITY, forged.SerializeToString())
    publish(api, ACTIVITY, b"\xff")
    with NatsClient(server.nats_url) as nats:
        nats.publish("liftbridge-default.activity", b"noise")
    server.stop()
    server.start()
    api = server.api()
    create(api, "orders")
    call = subscribe(api, ACTIVITY, startPosition=api_pb2.EARLIEST)
    assert [message.value for message in take(call, 5)] == [
        created(FIRST, ACTIVITY).SerializeToString(),
        forged.SerializeToString(),
        b"\xff",
        b"noise",
        created(FIRST + 1 + START, "orders").SerializeToString(),
    ]
    call.cancel()
