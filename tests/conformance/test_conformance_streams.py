"""Streams and partitions, as clients of the original see them: a test for each row of conformance_rows."""

import time

import grpc
import pytest
from calls import NatsClient
from conformance_calls import (
    END,
    EXISTS,
    EXPIRED,
    INVALID,
    NOT_FOUND,
    NOTHING_SECONDS,
    REFUSED,
    Api,
    api_pb2,
    boolean,
    create,
    delete,
    drain,
    fill,
    follow,
    fresh,
    history,
    integer,
    integer32,
    metadata,
    offsets,
    partition_metadata,
    partitions,
    pause,
    paused,
    publish,
    publish_async,
    refused,
    set_readonly,
    streams,
    subscribe,
    take,
    until,
    values,
)
from harness import Server

MARKER = b"nobody may read this"
KEY = "LIFTBRIDGE_ENCRYPTION_KEY"


def test_create_a_stream(server, api):
    before = time.time_ns()
    name = create(api, subject="shop.orders.new", partitions=2)
    entry = streams(api)[name]
    assert (entry.name, entry.subject, entry.error) == (name, "shop.orders.new", api_pb2.StreamMetadata.OK)
    assert before <= entry.creationTimestamp <= time.time_ns()
    assert sorted(entry.partitions) == [0, 1]
    for number, partition in entry.partitions.items():
        assert (partition.id, partition.leader) == (number, server.server_id)
        assert list(partition.replicas) == list(partition.isr) == [server.server_id]
    # A stream that says nothing of partitions and replicas has one of each.
    plain = create(api)
    assert sorted(streams(api)[plain].partitions) == [0]


def test_unique_name(api):
    name = create(api)
    for subject in (name, "another.subject"):
        with refused(EXISTS):
            create(api, name, subject)
    # The name counts, not the subject.
    create(api, fresh(), name)


@pytest.mark.parametrize("name", ["__cursors", "__activity"])
def test_reserved_names(api, name):
    with refused(INVALID):
        create(api, name)
    with refused(INVALID):
        delete(api, name)
    assert name in streams(api)
    create(api, fresh("__other"))  # only these two are


@pytest.mark.parametrize("subject", ["foo bar", "", "a..b", "a\tb", "a\r\nb", ".a", "a.", "."])
def test_subject_validation(api, subject):
    name = fresh()
    with refused(INVALID):
        api.CreateStream(api_pb2.CreateStreamRequest(name=name, subject=subject), timeout=10)
    with refused(INVALID):
        api.CreateStream(api_pb2.CreateStreamRequest(name="", subject="foo"), timeout=10)
    assert name not in streams(api)


def test_several_streams_per_subject(api, nats):
    subject = fresh("subject")
    names = [create(api, subject=subject), create(api, subject=subject)]
    nats.publish(subject, b"for both")
    for name in names:
        (message,) = follow(api, name, 1)
        assert (message.offset, message.value, message.stream) == (0, b"for both", name)


def test_wildcard_subjects(api, nats):
    root = fresh("wild")
    one, rest = create(api, subject=f"{root}.*"), create(api, subject=f"{root}.>")
    nats.publish(f"{root}.a", b"one")
    nats.publish(f"{root}.a.b", b"two")
    nats.publish(root, b"neither")
    assert [(m.value, m.subject) for m in follow(api, rest, 2)] == [
        (b"one", f"{root}.a"),
        (b"two", f"{root}.a.b"),
    ]
    nats.publish(f"{root}.b", b"three")
    assert [(m.value, m.subject) for m in follow(api, one, 2)] == [
        (b"one", f"{root}.a"),
        (b"three", f"{root}.b"),
    ]
    # Published by gRPC, the wildcards themselves are the subject.
    assert publish(api, one, b"literal").msgSubject == f"{root}.*"


def test_load_balance_group(api, nats):
    subject = fresh("shared")
    workers = [create(api, subject=subject, group="workers") for _ in range(2)]
    others = [create(api, subject=subject, group="others"), create(api, subject=subject)]
    nats.publish(subject, *(b"%d" % number for number in range(100)))
    for name in others:
        assert values(follow(api, name, 100)) == [b"%d" % number for number in range(100)]

    def stored():
        return [partition_metadata(api, name).newestOffset + 1 for name in workers]

    until(lambda: sum(stored()) >= 100)
    assert sum(stored()) == 100
    numbers = [int(value) for name in workers for value in values(history(api, name))]
    assert sorted(numbers) == list(range(100))


def test_partitions(api, nats):
    name = create(api, partitions=3)
    for number, subject in enumerate([name, f"{name}.1", f"{name}.2"]):
        nats.publish(subject, b"%d" % number)
    nats.publish(f"{name}.3", b"nowhere")
    nats.publish(f"{name}.0", b"nowhere")
    for number in range(3):
        # The ack comes behind all that was published by NATS before.
        ack = publish(api, name, b"by gRPC", partition=number)
        assert (ack.msgSubject, ack.partitionSubject) == (f"{name}.{number}" if number else name, name)
        assert values(history(api, name, number)) == [b"%d" % number, b"by gRPC"]
    with refused(NOT_FOUND):
        publish(api, name, partition=3)


def test_replication_factor(server, api):
    for factor in (2, 4):
        with refused(INVALID):
            create(api, replicationFactor=factor)
    with refused(INVALID):
        create(api, replicationFactor=-2)
    for factor in (-1, 0, 1):
        (partition,) = partitions(api, create(api, replicationFactor=factor))
        assert list(partition.replicas) == [server.server_id]


def test_delete_a_stream(server, api):
    directory = server.data_dir / "streams"
    before = set(directory.iterdir())
    name = create(api)
    fill(api, name, 3)
    (own,) = set(directory.iterdir()) - before
    running = subscribe(api, name, startPosition=api_pb2.EARLIEST)
    assert offsets(take(running, 3)) == [0, 1, 2]
    delete(api, name)
    assert drain(running) == ([], NOT_FOUND)
    (entry,) = metadata(api, name).streamMetadata
    assert (entry.name, entry.error) == (name, api_pb2.StreamMetadata.UNKNOWN_STREAM)
    until(lambda: not own.exists())
    with refused(NOT_FOUND):
        delete(api, name)
    with refused(NOT_FOUND):
        publish(api, name)
    create(api, name)
    assert history(api, name) == []
    assert publish(api, name, b"new").offset == 0


def test_per_stream_settings(start):
    _, api = start({"streams.segment.max.bytes": 1, "streams.cleaner.interval": "10ms"})
    limited, free = create(api, retentionMaxMessages=integer(10)), create(api)
    fill(api, free, 50)
    fill(api, limited, 50)
    until(lambda: offsets(history(api, limited)) == list(range(40, 50)))
    assert offsets(history(api, free)) == list(range(50))


def test_pause(api):
    name = create(api, partitions=2)
    publish(api, name, b"old")
    running, other = subscribe(api, name), subscribe(api, name, partition=1)
    pause(api, name, 0)
    pause(api, name, 0)  # once more changes nothing
    assert paused(api, name) == [True, False]
    assert drain(running) == ([], REFUSED)
    with refused(REFUSED):
        partition_metadata(api, name, 0)
    assert drain(subscribe(api, name, startPosition=api_pb2.EARLIEST)) == ([], REFUSED)
    assert paused(api, name) == [True, False]
    publish(api, name, b"still", partition=1)
    assert values(take(other, 1)) == [b"still"]
    pause(api, name)
    assert paused(api, name) == [True, True]
    assert drain(other) == ([], REFUSED)


@pytest.mark.parametrize("how", ["Publish", "PublishAsync"])
def test_resume_by_publish(api, nats, how):
    name = create(api)
    publish(api, name, b"old")
    pause(api, name)
    nats.publish(name, b"lost")
    with refused(EXPIRED):
        request = api_pb2.PublishToSubjectRequest(subject=name, value=b"lost too")
        api.PublishToSubject(request, timeout=NOTHING_SECONDS)
    assert paused(api, name) == [True]
    if how == "Publish":
        assert publish(api, name, b"new").offset == 1
    else:
        (response,) = publish_async(api, {"stream": name, "value": b"new"})
        assert response.ack.offset == 1
    assert paused(api, name) == [False]
    assert values(history(api, name)) == [b"old", b"new"]


def test_resumeall(api):
    name = create(api, partitions=3)
    pause(api, name, 0, 1, resume_all=True)
    publish(api, name)
    assert paused(api, name) == [False, False, False]
    pause(api, name, 0, 1)
    publish(api, name)
    assert paused(api, name) == [False, True, False]


def test_resume_by_subscribe(api):
    name = create(api)
    publish(api, name, b"old")
    pause(api, name)
    running = subscribe(api, name, startPosition=api_pb2.EARLIEST, resume=True)
    assert values(take(running, 1)) == [b"old"]
    assert paused(api, name) == [False]
    publish(api, name, b"new")
    assert values(take(running, 1)) == [b"new"]
    running.cancel()


@pytest.mark.parametrize("of", ["server", "stream"])
def test_auto_pause(start, of):
    _, api = start({"streams.auto.pause.time": "200ms" if of == "server" else "0"})
    fields = {} if of == "server" else {"autoPauseTime": integer(200)}
    name, awake = create(api, **fields), create(api, autoPauseTime=integer(0))
    publish(api, name, b"x")
    until(lambda: all(paused(api, name)))
    (partition,) = partitions(api, name)
    idle = partition.pauseTimestamps.latestTimestamp - partition.messagesReceivedTimestamps.latestTimestamp
    assert idle >= 200_000_000
    assert paused(api, awake) == [False]
    assert publish(api, name, b"y").offset == 1


def test_auto_pause_exemption(api):
    exempt = {"autoPauseTime": integer(200), "autoPauseDisableIfSubscribers": boolean(True)}
    name, beside = create(api, **exempt), create(api, autoPauseTime=integer(200))
    running, ended = subscribe(api, name, resume=True), subscribe(api, beside)
    assert drain(ended) == ([], REFUSED)
    assert paused(api, beside) == [True]
    assert paused(api, name) == [False]
    publish(api, name, b"x")
    assert values(take(running, 1)) == [b"x"]
    running.cancel()
    until(lambda: all(paused(api, name)))


def test_pause_survives_restart(start):
    server, api = start()
    name = create(api, partitions=3)
    publish(api, name, b"old")
    pause(api, name, 0, 1, resume_all=True)
    assert server.stop() == 0
    server.start()
    api = Api(server)
    assert paused(api, name) == [True, True, False]
    with refused(REFUSED):
        partition_metadata(api, name)
    assert publish(api, name, b"new").offset == 1
    assert paused(api, name) == [False, False, False]
    assert values(history(api, name)) == [b"old", b"new"]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_readonly(start, end):
    server, api = start()
    name = create(api, partitions=2)
    publish(api, name, b"0")
    running = subscribe(api, name, startPosition=api_pb2.EARLIEST)
    assert values(take(running, 1)) == [b"0"]
    set_readonly(api, name, 0)
    assert drain(running) == ([], END)

    def refuses():
        assert [partition.readonly for partition in partitions(api, name)] == [True, False]
        with refused(REFUSED):
            publish(api, name, b"no")
        (response,) = publish_async(api, {"stream": name, "value": b"no", "correlationId": "c"})
        assert response.asyncError.code == api_pb2.PublishAsyncError.READONLY
        assert (response.correlationId, response.HasField("ack")) == ("c", True)

    def holds():
        refuses()
        with NatsClient(server.nats_url) as nats:
            nats.publish(name, b"dropped")
        messages, status = drain(subscribe(api, name, startPosition=api_pb2.EARLIEST, resume=True))
        assert (values(messages), status) == ([b"0"], END)
        # The default start has nothing to deliver, and ends as well.
        assert drain(subscribe(api, name)) == ([], END)
        assert publish(api, name, partition=1).offset >= 0

    holds()
    pause(api, name, 0)
    refuses()
    subscribe(api, name, resume=True).cancel()
    assert paused(api, name) == [False, False]
    holds()
    getattr(server, end)()
    server.start()
    api = Api(server)
    holds()
    set_readonly(api, name, readonly=False)
    assert publish(api, name, b"1").offset == 1
    assert values(history(api, name)) == [b"0", b"1"]


@pytest.mark.parametrize("of", ["server", "stream"])
def test_minimum_isr(start, of):
    _, api = start({"clustering.min.insync.replicas": 2 if of == "server" else 1})
    name = create(api, **({} if of == "server" else {"minIsr": integer32(2)}))
    running = subscribe(api, name, startPosition=api_pb2.EARLIEST)
    assert publish(api, name, b"0").offset == 0
    with refused(EXPIRED):
        publish(api, name, b"1", ackPolicy=api_pb2.ALL, timeout=NOTHING_SECONDS)
    last = publish(api, name, b"2").offset
    partition = partition_metadata(api, name)
    assert (partition.highWatermark, partition.newestOffset) == (-1, last)
    running.cancel()
    assert drain(running) == ([], grpc.StatusCode.CANCELLED)
    enough = create(api, minIsr=integer32(1))
    assert publish(api, enough, ackPolicy=api_pb2.ALL).offset == 0


@pytest.mark.parametrize("of", ["server", "stream"])
def test_optimistic_concurrency(start, of):
    _, api = start({"streams.concurrency.control": of == "server"})
    name = create(api, **({} if of == "server" else {"optimisticConcurrencyControl": boolean(True)}))
    assert publish(api, name, expectedOffset=0).offset == 0
    with refused(grpc.StatusCode.UNKNOWN, "incorrect expected offset"):
        publish(api, name, expectedOffset=0)
    assert publish(api, name, expectedOffset=-1).offset == 1
    policy = "stream with concurrency control must have AckPolicy set"
    with refused(INVALID, policy):
        publish(api, name, expectedOffset=-1, ackPolicy=api_pb2.NONE)
    responses = publish_async(
        api,
        {"stream": name, "expectedOffset": 2, "correlationId": "right"},
        {"stream": name, "expectedOffset": 2, "correlationId": "wrong"},
        {"stream": name, "expectedOffset": -1, "ackPolicy": api_pb2.NONE, "correlationId": "policy"},
        {"stream": name, "correlationId": "absent is 0"},
        {"stream": name, "expectedOffset": -1, "correlationId": "any"},
    )
    codes = api_pb2.PublishAsyncError
    assert {r.correlationId: (r.ack.offset, r.asyncError.code, r.asyncError.message) for r in responses} == {
        "right": (2, 0, ""),
        "wrong": (0, codes.INCORRECT_OFFSET, "incorrect expected offset"),
        "policy": (0, codes.BAD_REQUEST, policy),
        "absent is 0": (0, codes.INCORRECT_OFFSET, "incorrect expected offset"),
        "any": (3, 0, ""),
    }
    without = create(api, optimisticConcurrencyControl=boolean(False))
    assert [publish(api, without, expectedOffset=7).offset for _ in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("of", "key"), [("server", "sixteen bytes ok"), ("stream", "this key has thirty-two bytes ok")]
)
def test_encryption_at_rest(start, tmp_path, of, key):
    _without, api = start(name="without")
    with refused(REFUSED):
        create(api, encryption=boolean(True))
    server, api = start({"streams.encryption": of == "server"}, environment={KEY: key})

    def hidden():
        files = [path for path in server.data_dir.rglob("*") if path.is_file()]
        assert files
        return not any(MARKER in path.read_bytes() for path in files)

    name = create(api, **({} if of == "server" else {"encryption": boolean(True)}))
    for policy in (api_pb2.LEADER, api_pb2.ALL):
        publish(api, name, MARKER, ackPolicy=policy)
    assert values(history(api, name)) == [MARKER, MARKER]
    assert hidden()
    assert server.stop() == 0
    assert hidden()
    server.start()
    api = Api(server)
    assert values(history(api, name)) == [MARKER, MARKER]
    plain = create(api, encryption=boolean(False))
    publish(api, plain, MARKER)
    assert not hidden()
    if of == "server":
        keyless = Server(tmp_path / "keyless", {"streams.encryption": True}, environment={KEY: ""})
        keyless.spawn()
        assert keyless.wait_end() != 0
        keyless.wait_log(KEY)
