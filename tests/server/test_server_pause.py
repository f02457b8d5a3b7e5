"""Pausing and resuming partitions of a real server: by request, by publish, by subscription, when idle."""

from __future__ import annotations

import os
import threading
import time

import grpc
import pytest
from calls import (
    PATIENCE,
    NatsClient,
    RequestQueue,
    create,
    drain,
    fresh,
    nullable,
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

PAUSED = grpc.StatusCode.FAILED_PRECONDITION


def pause(api, stream, *partitions, resume_all=False):
    request = api_pb2.PauseStreamRequest(name=stream, partitions=partitions, resumeAll=resume_all)
    api.PauseStream(request, timeout=PATIENCE)


def metadata(api, stream):
    """What any server says of a stream's partitions, by id."""
    (entry,) = api.FetchMetadata(
        api_pb2.FetchMetadataRequest(streams=[stream]), timeout=PATIENCE
    ).streamMetadata
    return [entry.partitions[number] for number in sorted(entry.partitions)]


def paused(api, stream):
    return [partition.paused for partition in metadata(api, stream)]


def counts(api):
    (broker,) = api.FetchMetadata(api_pb2.FetchMetadataRequest(streams=["-"]), timeout=PATIENCE).brokers
    return broker.partitionCount, broker.leaderCount


def target(link):
    """What a link points to; nothing when it is gone meanwhile."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def values(messages):
    return [message.value for message in messages]


# -- pausing ---------------------------------------------------------------------------------------------


def test_a_paused_partition_says_so_and_ends_its_subscribers(api):
    stream = create(api, partitions=2)
    publish(api, stream, b"0")
    running = subscribe(api, stream, startPosition="EARLIEST")
    assert values(take(running, 1)) == [b"0"]
    other = subscribe(api, stream, partition=1)
    pause(api, stream, 0)
    assert paused(api, stream) == [True, False]
    assert drain(running) == ([], PAUSED)
    with refused(PAUSED):
        partition_metadata(api, stream, 0)
    assert not partition_metadata(api, stream, 1).paused
    publish(api, stream, b"1", partition=1)
    assert values(take(other, 1)) == [b"1"]
    # What the partition holds is known all the same.
    assert (metadata(api, stream)[0].highWatermark, metadata(api, stream)[0].newestOffset) == (0, 0)
    other.cancel()


def test_what_does_not_exist_is_not_paused(api):
    stream = create(api, partitions=2)
    for name, partitions in (("-", ()), ("", ()), ("-", (0,)), (stream, (0, 2)), (stream, (-1,))):
        with refused(grpc.StatusCode.NOT_FOUND, "No such"):
            pause(api, name, *partitions)
    assert paused(api, stream) == [False, False]


def test_a_paused_partition_takes_up_nothing_and_does_not_count(server, api):
    stream = create(api, partitions=3)
    publish_many(api, stream, [b"x"] * 3)
    descriptors = f"/proc/{server.pid}/fd"

    def open_logs():
        return sum(target(f"{descriptors}/{name}").endswith(".log") for name in os.listdir(descriptors))

    assert (open_logs(), counts(api)) == (3, (3, 3))
    pause(api, stream, 0, 1)
    pause(api, stream, 1)
    assert (open_logs(), counts(api)) == (1, (1, 1))
    publish(api, stream, b"y")
    assert (open_logs(), counts(api)) == (2, (2, 2))


def test_messages_from_nats_do_not_reach_a_paused_partition(server, api):
    stream = create(api)
    with NatsClient(server.nats_url) as client:
        publish(api, stream, b"before")
        pause(api, stream)
        client.publish(stream, b"lost")
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            api.PublishToSubject(api_pb2.PublishToSubjectRequest(subject=stream, value=b"lost"), timeout=0.2)
        assert paused(api, stream) == [True]
        publish(api, stream, b"after")
        client.publish(stream, b"plain")
        until(lambda: partition_metadata(api, stream).newestOffset == 2)
    assert values(read_all(api, stream)) == [b"before", b"after", b"plain"]


def test_what_nats_has_delivered_before_a_pause_is_stored(server, api):
    stream = create(api)
    with NatsClient(server.nats_url) as client:
        sent = [b"%d" % number for number in range(5000)]
        client.publish(stream, *sent)  # NATS has them all when this returns
        pause(api, stream)
    publish(api, stream, b"end")
    assert values(read_all(api, stream)) == [*sent, b"end"]


# -- resuming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["LEADER", "ALL", "NONE"])
def test_a_publish_resumes(api, policy):
    stream = create(api)
    publish(api, stream, b"old")
    pause(api, stream)
    ack = publish(api, stream, b"new", ackPolicy=policy)
    assert ack.offset == (0 if policy == "NONE" else 1)
    assert paused(api, stream) == [False]
    until(lambda: partition_metadata(api, stream).newestOffset == 1)
    assert [(message.offset, message.value) for message in read_all(api, stream)] == [
        (0, b"old"),
        (1, b"new"),
    ]


def test_a_publish_without_a_deadline_resumes_as_well(api):
    stream = create(api)
    pause(api, stream)
    api.Publish(api_pb2.PublishRequest(stream=stream, value=b"x"))
    assert paused(api, stream) == [False]
    until(lambda: partition_metadata(api, stream).newestOffset == 0)


def test_a_publish_to_an_own_inbox_resumes(server, api):
    stream = create(api)
    pause(api, stream)
    with NatsClient(server.nats_url) as client:
        arrived = client.subscribe("inbox.mine")
        assert publish(api, stream, b"x", ackInbox="inbox.mine").offset == 0
        assert arrived.get(timeout=PATIENCE)


def test_an_asynchronous_publish_resumes_and_keeps_the_order(api):
    stream, other = create(api, partitions=2), create(api)
    publish_many(api, stream, [b"0", b"1"])
    pause(api, stream)
    requests = RequestQueue()
    answers = api.PublishAsync(iter(requests), timeout=PATIENCE)
    for number in range(2, 6):
        requests.send(stream=stream, value=b"%d" % number, correlationId=f"{number}")
        requests.send(stream=other, value=b"%d" % number, correlationId=f"o{number}")
    requests.close()
    offsets = {answer.correlationId: answer.ack.offset for answer in answers}
    assert offsets == {f"{n}": n for n in range(2, 6)} | {f"o{n}": n - 2 for n in range(2, 6)}
    assert paused(api, stream) == [False, True]
    assert values(read_all(api, stream)) == [b"%d" % number for number in range(6)]


def test_resume_all_resumes_what_is_paused_with_one_publish(api):
    stream = create(api, partitions=4)
    pause(api, stream, 0, 1, 2, resume_all=True)
    publish(api, stream, partition=0)
    assert paused(api, stream) == [False] * 4
    for number in range(4):
        publish(api, stream, partition=number)
    # The flag is used up: the next pause says anew what is to be.
    pause(api, stream, 0, 1)
    publish(api, stream, partition=0)
    assert paused(api, stream) == [False, True, False, False]
    pause(api, stream, resume_all=True)
    pause(api, stream, 3)
    publish_many(api, stream, [b""], partition=3)
    assert paused(api, stream) == [True, True, True, False]


def test_a_subscription_without_resume_is_told_after_the_handshake(api):
    stream = create(api)
    publish(api, stream, b"old")
    pause(api, stream)
    for position in ("NEW_ONLY", "EARLIEST", "LATEST"):
        assert drain(subscribe(api, stream, startPosition=position)) == ([], PAUSED)
    assert paused(api, stream) == [True]


def test_a_subscription_resumes_if_it_says_so(api):
    stream = create(api, partitions=2)
    publish(api, stream, b"old")
    pause(api, stream)
    running = subscribe(api, stream, startPosition="EARLIEST", resume=True)
    assert values(take(running, 1)) == [b"old"]
    assert paused(api, stream) == [False, True]
    publish(api, stream, b"new")
    assert values(take(running, 1)) == [b"new"]
    running.cancel()
    with refused(grpc.StatusCode.NOT_FOUND):
        next(api.Subscribe(api_pb2.SubscribeRequest(stream=stream, partition=2, resume=True)))
    # Nothing is paused: nothing is resumed.
    before = metadata(api, stream)[0].pauseTimestamps
    subscribe(api, stream, resume=True).cancel()
    assert metadata(api, stream)[0].pauseTimestamps == before


def test_a_subscription_that_resumes_obeys_resume_all(api):
    stream = create(api, partitions=3)
    pause(api, stream, 0, 2, resume_all=True)
    subscribe(api, stream, resume=True).cancel()
    assert paused(api, stream) == [False] * 3


def test_many_publishers_resume_once(api):
    # Some of them come while the log is opened, some while NATS is asked to deliver: hence the rounds.
    for _ in range(20):
        stream = create(api)
        pause(api, stream)
        request = api_pb2.PublishRequest(stream=stream, value=b"x")
        calls = [api.Publish.future(request, timeout=PATIENCE) for _ in range(200)]
        assert sorted(call.result().ack.offset for call in calls) == list(range(200))
        times = metadata(api, stream)[0].pauseTimestamps
        assert 0 < times.firstTimestamp < times.latestTimestamp
        assert len(read_all(api, stream)) == 200


def test_the_times_of_pauses_are_told(api):
    stream = create(api, partitions=2)
    times = metadata(api, stream)[0].pauseTimestamps
    assert (times.firstTimestamp, times.latestTimestamp) == (0, 0)
    publish(api, stream)
    received = metadata(api, stream)[0].messagesReceivedTimestamps
    before = time.time_ns()
    pause(api, stream, 0)
    first = metadata(api, stream)[0].pauseTimestamps
    assert before <= first.firstTimestamp == first.latestTimestamp <= time.time_ns()
    # A pause that changes nothing is none.
    pause(api, stream, 0)
    assert metadata(api, stream)[0].pauseTimestamps == first
    assert metadata(api, stream)[0].messagesReceivedTimestamps == received
    publish(api, stream)
    second = partition_metadata(api, stream, 0).pauseTimestamps
    assert second.firstTimestamp == first.firstTimestamp < second.latestTimestamp
    kept = metadata(api, stream)[0].messagesReceivedTimestamps
    assert kept.firstTimestamp == received.firstTimestamp < kept.latestTimestamp
    assert metadata(api, stream)[1].pauseTimestamps.latestTimestamp == 0


def test_a_paused_stream_is_deleted_and_created_anew(api):
    stream = create(api, partitions=2)
    publish(api, stream, b"old")
    pause(api, stream, 0)
    api.DeleteStream(api_pb2.DeleteStreamRequest(name=stream), timeout=PATIENCE)
    with refused(grpc.StatusCode.NOT_FOUND):
        pause(api, stream)
    create(api, stream)
    assert paused(api, stream) == [False]
    assert publish(api, stream, b"new").offset == 0
    assert values(read_all(api, stream)) == [b"new"]


# -- under load ------------------------------------------------------------------------------------------


def test_every_message_of_a_stream_that_is_paused_again_and_again_is_stored_in_order(api):
    stream = create(api, partitions=2)
    with Load(api, stream) as first, Load(api, stream, 1) as second:
        for round_number in range(30):
            pause(api, stream, *[(), (0,), (0, 1)][round_number % 3], resume_all=round_number % 2 == 0)
            first.go_on(50)
            second.go_on(50)
    for partition, load in ((0, first), (1, second)):
        assert not load.errors
        # Nothing was lost, although it was on its way when the partition was paused; nothing is there twice.
        assert load.acked == {number: number for number in range(load.sent)}
        stored = read_all(api, stream, partition)
        assert values(stored) == [b"%d" % number for number in range(load.sent)]


def test_publishers_that_did_not_resume_a_partition_wait_for_it_as_well(api):
    stream = create(api)
    with Load(api, stream) as first, Load(api, stream) as second, Load(api, stream) as third:
        for _ in range(20):
            pause(api, stream)
            for load in (first, second, third):
                load.go_on(20)
    offsets = []
    for load in (first, second, third):
        assert not load.errors
        own = [load.acked[number] for number in range(load.sent)]
        assert own == sorted(own)
        offsets += own
    assert sorted(offsets) == list(range(first.sent + second.sent + third.sent))
    assert len(read_all(api, stream)) == len(offsets)


def test_a_subscriber_that_resubscribes_misses_nothing_under_pauses(api):
    stream = create(api)
    seen = []

    def follow():
        while not seen or seen[-1] != b"end":
            call = subscribe(api, stream, startPosition="OFFSET", startOffset=len(seen), resume=True)
            try:
                for message in call:
                    assert message.offset == len(seen)
                    seen.append(message.value)
                    if message.value == b"end":
                        break
            except grpc.RpcError as error:
                assert error.code() == PAUSED, error
            call.cancel()

    follower = threading.Thread(target=follow)
    follower.start()
    with Load(api, stream) as load:
        for _ in range(20):
            pause(api, stream)
            load.go_on(20)
    publish(api, stream, b"end")
    follower.join(PATIENCE)
    assert seen == [*(b"%d" % number for number in range(load.sent)), b"end"]


def test_pauses_resumes_and_deletes_at_once_leave_a_server_that_works(api):
    name = fresh()
    stop = threading.Event()
    unexpected = []

    def attempt(work):
        try:
            work()
        except grpc.RpcError as error:
            if error.code() not in (
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.ALREADY_EXISTS,
                grpc.StatusCode.DEADLINE_EXCEEDED,  # deleted when the message was on its way
                grpc.StatusCode.UNKNOWN,  # the same, with a negative ack
            ):
                unexpected.append(error)

    def hammer(work):
        while not stop.is_set():
            attempt(work)

    work = [
        lambda: create(api, name, partitions=2),
        lambda: pause(api, name),
        lambda: pause(api, name, 1, resume_all=True),
        lambda: api.Publish(api_pb2.PublishRequest(stream=name, partition=1), timeout=1),
        lambda: list(api.PublishAsync(iter([api_pb2.PublishRequest(stream=name)]), timeout=PATIENCE)),
    ]
    threads = [threading.Thread(target=hammer, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for _ in range(15):
        until(lambda: name in streams(api))
        api.DeleteStream(api_pb2.DeleteStreamRequest(name=name), timeout=PATIENCE)
    stop.set()
    for thread in threads:
        thread.join()
    assert not unexpected
    if name not in streams(api):
        create(api, name)
    publish(api, name, b"still here")


def streams(api):
    answer = api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=PATIENCE)
    return {entry.name for entry in answer.streamMetadata}


# -- over restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_pause_survives(tmp_path, end):
    with Server(tmp_path / "server") as server:
        api = server.api()
        stream = create(api, partitions=3)
        publish(api, stream, b"old", partition=1)
        pause(api, stream, 1, 2, resume_all=True)
        times = [partition.pauseTimestamps for partition in metadata(api, stream)]
        getattr(server, end)()
        server.start()
        api = server.api()
        assert paused(api, stream) == [False, True, True]
        assert [partition.pauseTimestamps for partition in metadata(api, stream)] == times
        assert counts(api) == (1, 1)
        with refused(PAUSED):
            partition_metadata(api, stream, 1)
        assert publish(api, stream, b"new", partition=1).offset == 1
        assert paused(api, stream) == [False] * 3
        getattr(server, end)()
        server.start()
        api = server.api()
        assert paused(api, stream) == [False] * 3
        assert values(read_all(api, stream, 1)) == [b"old", b"new"]


def test_a_server_stops_in_order_while_partitions_are_paused_and_resumed(tmp_path):
    with Server(tmp_path / "server") as server:
        api = server.api()
        stream = create(api)
        acked = []

        def work():
            try:
                while True:
                    acked.append(publish(api, stream, b"%d" % len(acked)).offset)
                    pause(api, stream)
            except grpc.RpcError:
                pass  # it stops

        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: len(acked) > 5)
        assert server.stop() == 0
        thread.join()
        server.start()
        api = server.api()
        publish(api, stream, b"end")
        stored = values(read_all(api, stream))
        assert stored[: len(acked)] == [b"%d" % number for number in range(len(acked))]
        assert stored[-1] == b"end"


# -- auto-pause ------------------------------------------------------------------------------------------


def wait_paused(api, stream):
    return until(lambda: all(paused(api, stream)))


def test_an_idle_partition_is_paused_by_itself_and_never_before(api):
    begun = time.monotonic()
    stream = create(api, partitions=2, autoPauseTime=nullable(400))
    wait_paused(api, stream)
    # A partition that never received anything counts as idle from its beginning.
    assert time.monotonic() - begun >= 0.4
    publish(api, stream, b"x")
    assert paused(api, stream) == [False, True]
    wait_paused(api, stream)
    partition = metadata(api, stream)[0]
    idle = partition.pauseTimestamps.latestTimestamp - partition.messagesReceivedTimestamps.latestTimestamp
    assert idle >= 400_000_000
    assert values(drain(subscribe(api, stream, startPosition="EARLIEST", resume=True))[0]) == [b"x"]


def test_a_busy_partition_is_not_paused(api):
    stream = create(api, autoPauseTime=nullable(500))
    offsets = []
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        offsets.append(publish(api, stream).offset)
        assert paused(api, stream) == [False]
    assert metadata(api, stream)[0].pauseTimestamps.latestTimestamp == 0
    assert offsets == list(range(len(offsets)))
    wait_paused(api, stream)


def test_subscribers_keep_a_partition_awake_if_told_so(api):
    stream = create(
        api, autoPauseTime=nullable(300), autoPauseDisableIfSubscribers=api_pb2.NullableBool(value=True)
    )
    without = create(api, autoPauseTime=nullable(300))
    running = subscribe(api, stream)
    ended = subscribe(api, without)
    assert drain(ended) == ([], PAUSED)
    wait_paused(api, without)
    assert paused(api, stream) == [False]
    publish(api, stream, b"x")
    assert values(take(running, 1)) == [b"x"]
    running.cancel()
    wait_paused(api, stream)


def test_the_servers_auto_pause_holds_for_streams_without_their_own(tmp_path):
    config = {
        "streams.auto.pause.time": "200ms",
        "streams.auto.pause.disable.if.subscribers": True,
    }
    with Server(tmp_path / "server", config) as server:
        api = server.api()
        stream = create(api)
        never = create(api, autoPauseTime=nullable(0))
        watched = create(api)
        running = subscribe(api, watched)
        wait_paused(api, stream)
        assert paused(api, never) == paused(api, watched) == [False]
        running.cancel()
        wait_paused(api, watched)
        # A restart gives everybody a new period, and resumes nobody.
        server.stop()
        server.start()
        api = server.api()
        assert paused(api, stream) == [True]
        assert publish(api, stream).offset == 0
        wait_paused(api, stream)
        assert paused(api, never) == [False]


def test_no_message_is_lost_to_an_auto_pause_that_is_always_near(api):
    stream = create(api, autoPauseTime=nullable(1))
    offsets = []
    while not metadata(api, stream)[0].pauseTimestamps.latestTimestamp or len(offsets) < 100:
        offsets += [publish(api, stream, b"%d" % number).offset for number in range(50)]
    assert offsets == list(range(len(offsets)))
