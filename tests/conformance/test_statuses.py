"""Status codes and texts that clients compare: an entry for each, and for each way to refuse a request.

An entry is a call, the condition it is made under, and what the answer must be; the conditions of a call
stand in the order in which they are checked. What one server cannot come into is `NEEDS_A_CLUSTER` of
conformance_rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import pytest
from conformance_calls import (
    END,
    EXISTS,
    EXPIRED,
    INTERNAL,
    INVALID,
    NOT_FOUND,
    OK,
    PATIENCE,
    REFUSED,
    UNKNOWN,
    Api,
    api_pb2,
    assignments,
    boolean,
    create,
    delete,
    drain,
    fetch_cursor,
    first_answer,
    fresh,
    integer,
    integer32,
    join,
    leave,
    metadata,
    partition_metadata,
    pause,
    publish,
    publish_async,
    publish_to_subject,
    refused,
    report,
    set_cursor,
    set_readonly,
    subscribe,
    until,
)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
EARLIEST, LATEST = api_pb2.EARLIEST, api_pb2.LATEST
STOP_OFFSET, STOP_LATEST, STOP_TIMESTAMP = 1, 2, 3


class World:
    """What the entries find: a server, and streams in each state."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.never = "there-is-no-such-stream"
        self.full, self.empty = create(api, partitions=2), create(api, partitions=2)
        self.times = [publish(api, self.full, b"%d" % number).receptionTimestamp for number in range(3)]
        self.paused, self.readonly = create(api), create(api)
        publish(api, self.paused)
        pause(api, self.paused)
        publish(api, self.readonly)
        set_readonly(api, self.readonly)
        self.checked = create(api, optimisticConcurrencyControl=boolean(True))
        publish(api, self.checked)
        self.group, self.coordinator = fresh("g"), metadata(api).brokers[0].id
        join(api, self.group, "c1", self.full)
        self.epoch = join(api, self.group, "c2", self.full).epoch


class Entry(NamedTuple):
    """A request and what it is answered with: a status, and a part of its text."""

    call: str
    condition: str
    code: grpc.StatusCode
    do: Callable[[World], Any]
    text: str = ""


def entries(call: str, *rows: tuple[Any, ...]) -> list[Entry]:
    """Entries of one call."""
    return [Entry(call, *row) for row in rows]


def new(world: World, **fields: Any) -> None:
    """Create a stream; `name` and `subject` unless told are new ones."""
    name = fields.pop("name", fresh())
    create(world.api, name, fields.pop("subject", "some.subject"), **fields)


def subscribed(world: World, stream: str, **fields: Any) -> None:
    """Subscribe and take the first answer."""
    first_answer(world.api, stream, **fields)


def to_the_end(world: World, stream: str, change: Callable[[], Any], **fields: Any) -> None:
    """Subscribe, change something, and end as the subscription ends."""
    call = subscribe(world.api, stream, **fields)
    change()
    for _ in call:
        pass


def deleted_under(world: World) -> None:
    stream = create(world.api)
    to_the_end(world, stream, lambda: delete(world.api, stream))


def paused_under(world: World) -> None:
    stream = create(world.api)
    to_the_end(world, stream, lambda: pause(world.api, stream))


def readonly_under(world: World) -> None:
    stream = create(world.api)
    to_the_end(world, stream, lambda: set_readonly(world.api, stream))


def fenced(world: World) -> None:
    stream = create(world.api)
    consumers = [api_pb2.Consumer(groupId="fenced", consumerId="c", groupEpoch=epoch) for epoch in (2, 1)]
    first = subscribe(world.api, stream, consumer=consumers[0])
    try:
        subscribed(world, stream, consumer=consumers[1])
    finally:
        first.cancel()


def nacked(world: World) -> None:
    """The original says nothing, and the publisher waits for its deadline."""
    assert publish_to_subject(world.api, world.readonly).ackError == api_pb2.Ack.UNKNOWN


def raw(world: World, path: str, data: bytes = b"", **options: Any) -> bytes:
    """Call a method by its path."""
    call = world.api.channel.unary_unary(path, lambda request: request, lambda response: response)
    return bytes(call(data, timeout=PATIENCE, **options))


NULLABLE_FIELDS = [
    "retentionMaxBytes",
    "retentionMaxMessages",
    "retentionMaxAge",
    "cleanerInterval",
    "segmentMaxBytes",
    "segmentMaxAge",
    "autoPauseTime",
]

ENTRIES = [
    *entries(
        "CreateStream",
        ("no name", INVALID, lambda w: new(w, name="")),
        ("no subject", INVALID, lambda w: new(w, subject="")),
        ("a blank in the subject", INVALID, lambda w: new(w, subject="a b")),
        ("an empty token in the subject", INVALID, lambda w: new(w, subject="a..b")),
        ("`__activity`", INVALID, lambda w: new(w, name="__activity")),
        ("`__cursors`", INVALID, lambda w: new(w, name="__cursors")),
        ("encryption without a key", REFUSED, lambda w: new(w, encryption=boolean(True))),
        ("replicationFactor -2", INVALID, lambda w: new(w, replicationFactor=-2)),
        ("replicationFactor beyond the servers", INVALID, lambda w: new(w, replicationFactor=2)),
        (
            "replicationFactor beyond the servers, name taken",
            INVALID,
            lambda w: new(w, name=w.full, replicationFactor=2),
        ),
        ("name taken", EXISTS, lambda w: new(w, name=w.full)),
        ("negative partitions", INVALID, lambda w: new(w, partitions=-1)),
        ("a name with a slash", INVALID, lambda w: new(w, name="a/b")),
        ("a name that is a directory", INVALID, lambda w: new(w, name="..")),
        ("a name with a blank", INVALID, lambda w: new(w, name="a b")),
        ("a name with a wildcard", INVALID, lambda w: new(w, name="a.>")),
        ("a name with dots", OK, lambda w: new(w, name=fresh("with.dots."))),
        ("`>` and several partitions", INVALID, lambda w: new(w, subject="a.>", partitions=2)),
        *(
            (f"negative {field}", INVALID, lambda w, field=field: new(w, **{field: integer(-1)}))
            for field in NULLABLE_FIELDS
        ),
        ("negative minIsr", INVALID, lambda w: new(w, minIsr=integer32(-1))),
    ),
    *entries(
        "DeleteStream",
        ("`__cursors`", INVALID, lambda w: delete(w.api, "__cursors")),
        ("`__activity`", INVALID, lambda w: delete(w.api, "__activity")),
        ("no such stream", NOT_FOUND, lambda w: delete(w.api, w.never)),
        ("no name", NOT_FOUND, lambda w: delete(w.api, "")),
    ),
    *entries(
        "PauseStream",
        ("no such stream", NOT_FOUND, lambda w: pause(w.api, w.never)),
        ("no such stream, a partition", NOT_FOUND, lambda w: pause(w.api, w.never, 0)),
        ("one of the partitions unknown", NOT_FOUND, lambda w: pause(w.api, w.full, 0, 2)),
        ("paused already", OK, lambda w: pause(w.api, w.paused)),
    ),
    *entries(
        "SetStreamReadonly",
        ("no such stream", NOT_FOUND, lambda w: set_readonly(w.api, w.never)),
        ("no such stream, a partition", NOT_FOUND, lambda w: set_readonly(w.api, w.never, 0)),
        ("one of the partitions unknown", NOT_FOUND, lambda w: set_readonly(w.api, w.full, 0, 2)),
        ("readonly already", OK, lambda w: set_readonly(w.api, w.readonly)),
    ),
    *entries(
        "Subscribe, first",
        (
            "group without a consumer",
            INVALID,
            lambda w: subscribed(w, w.full, consumer=api_pb2.Consumer(groupId="g")),
        ),
        ("no such stream", NOT_FOUND, lambda w: subscribed(w, w.never)),
        ("no such partition", NOT_FOUND, lambda w: subscribed(w, w.full, partition=2), "No such partition"),
        ("negative partition", NOT_FOUND, lambda w: subscribed(w, w.full, partition=-1), "No such partition"),
        ("an older epoch of a group", REFUSED, fenced),
        ("unknown start position", INVALID, lambda w: subscribed(w, w.full, startPosition=5)),
        ("unknown stop position", INVALID, lambda w: subscribed(w, w.full, stopPosition=4)),
        (
            "stop time before the first message",
            INTERNAL,
            lambda w: subscribed(
                w, w.full, startPosition=EARLIEST, stopPosition=STOP_TIMESTAMP, stopTimestamp=w.times[0] - 1
            ),
        ),
        (
            "stop time, empty",
            INTERNAL,
            lambda w: subscribed(w, w.empty, stopPosition=STOP_TIMESTAMP, stopTimestamp=w.times[0]),
        ),
        ("stop latest, empty", END, lambda w: subscribed(w, w.empty, stopPosition=STOP_LATEST)),
        (
            "stop before start",
            INVALID,
            lambda w: subscribed(w, w.full, startPosition=LATEST, stopPosition=STOP_OFFSET, stopOffset=1),
        ),
        (
            "only new ones up to the latest",
            INVALID,
            lambda w: subscribed(w, w.full, stopPosition=STOP_LATEST),
        ),
        (
            "paused, resume, no such partition",
            NOT_FOUND,
            lambda w: subscribed(w, w.paused, partition=1, resume=True),
        ),
        ("a consumer without a group", OK, lambda w: subscribed(w, w.full, consumer=api_pb2.Consumer())),
    ),
    *entries(
        "Subscribe, later",
        ("stream deleted", NOT_FOUND, deleted_under),
        ("partition paused", REFUSED, paused_under),
        ("paused before", REFUSED, lambda w: to_the_end(w, w.paused, int)),
        (
            "paused before, from earliest",
            REFUSED,
            lambda w: to_the_end(w, w.paused, int, startPosition=EARLIEST),
        ),
        ("readonly partition", END, readonly_under),
        ("readonly before", END, lambda w: to_the_end(w, w.readonly, int)),
        (
            "stop position",
            END,
            lambda w: to_the_end(w, w.full, int, startPosition=EARLIEST, stopPosition=STOP_OFFSET),
        ),
    ),
    *entries(
        "Publish",
        ("no stream", INVALID, lambda w: publish(w.api, "")),
        ("no such stream", NOT_FOUND, lambda w: publish(w.api, w.never)),
        ("no such partition", NOT_FOUND, lambda w: publish(w.api, w.full, partition=2)),
        ("negative partition", NOT_FOUND, lambda w: publish(w.api, w.full, partition=-1)),
        ("readonly", REFUSED, lambda w: publish(w.api, w.readonly)),
        ("readonly, without a deadline", REFUSED, lambda w: publish(w.api, w.readonly, timeout=None)),
        (
            "concurrency control, policy NONE",
            INVALID,
            lambda w: publish(w.api, w.checked, expectedOffset=-1, ackPolicy=api_pb2.NONE),
            "stream with concurrency control must have AckPolicy set",
        ),
        (
            "another expected offset",
            UNKNOWN,
            lambda w: publish(w.api, w.checked, expectedOffset=99),
            "incorrect expected offset",
        ),
        ("larger than NATS takes", UNKNOWN, lambda w: publish(w.api, w.full, bytes(1048577))),
        ("larger than any request", END, lambda w: publish(w.api, w.full, bytes(5 << 20))),
    ),
    *entries(
        "PublishToSubject",
        ("nobody stores it", EXPIRED, lambda w: publish_to_subject(w.api, "nobody.stores", timeout=0.2)),
        ("no subject", UNKNOWN, lambda w: publish_to_subject(w.api, "")),
        ("a subject that is none", UNKNOWN, lambda w: publish_to_subject(w.api, "a b")),
        ("readonly: a negative ack", OK, nacked),
        ("paused: lost", EXPIRED, lambda w: publish_to_subject(w.api, w.paused, timeout=0.2)),
    ),
    *entries(
        "FetchMetadata",
        ("unknown names", OK, lambda w: metadata(w.api, w.never, "", groups=(w.never, ""))),
    ),
    *entries(
        "FetchPartitionMetadata",
        ("no such stream", NOT_FOUND, lambda w: partition_metadata(w.api, w.never)),
        ("no such partition", NOT_FOUND, lambda w: partition_metadata(w.api, w.full, 2)),
        ("paused", REFUSED, lambda w: partition_metadata(w.api, w.paused)),
    ),
    *entries(
        "SetCursor",
        ("no stream", INVALID, lambda w: set_cursor(w.api, "c", 1, stream="")),
        ("no cursor id", INVALID, lambda w: set_cursor(w.api, "", 1)),
        ("a stream that is none", OK, lambda w: set_cursor(w.api, "c", 1, stream=w.never, partition=-5)),
    ),
    *entries(
        "FetchCursor",
        ("no stream", INVALID, lambda w: fetch_cursor(w.api, "c", stream="")),
        ("no cursor id", INVALID, lambda w: fetch_cursor(w.api, "")),
        ("never set", OK, lambda w: fetch_cursor(w.api, "never set")),
    ),
    *entries(
        "JoinConsumerGroup",
        ("no group", INVALID, lambda w: join(w.api, "", "c", w.full)),
        ("no consumer", INVALID, lambda w: join(w.api, "g", "", w.full)),
        ("no streams", INVALID, lambda w: join(w.api, "g", "c")),
        ("a member already", REFUSED, lambda w: join(w.api, w.group, "c1", w.full)),
        ("an unknown stream", REFUSED, lambda w: join(w.api, w.group, "c3", w.full, w.never)),
        ("an unknown stream, the first member", REFUSED, lambda w: join(w.api, fresh("g"), "c", w.never)),
    ),
    *entries(
        "LeaveConsumerGroup",
        ("no group", INVALID, lambda w: leave(w.api, "", "c1")),
        ("no consumer", INVALID, lambda w: leave(w.api, w.group, "")),
        ("no such group", NOT_FOUND, lambda w: leave(w.api, w.never, "c1")),
        ("no member", REFUSED, lambda w: leave(w.api, w.group, "c3")),
    ),
    *entries(
        "FetchConsumerGroupAssignments",
        ("no group", INVALID, lambda w: assignments(w.api, "", "c1", w.epoch)),
        ("no consumer", INVALID, lambda w: assignments(w.api, w.group, "", w.epoch)),
        ("no such group", NOT_FOUND, lambda w: assignments(w.api, w.never, "c1", w.epoch)),
        ("a lower epoch", REFUSED, lambda w: assignments(w.api, w.group, "c1", w.epoch - 1)),
        ("a higher epoch", REFUSED, lambda w: assignments(w.api, w.group, "c1", w.epoch + 1)),
        ("no member", REFUSED, lambda w: assignments(w.api, w.group, "c3", w.epoch)),
    ),
    *entries(
        "ReportConsumerGroupCoordinator",
        ("no group", INVALID, lambda w: report(w.api, "", "c1", w.coordinator, w.epoch)),
        ("no consumer", INVALID, lambda w: report(w.api, w.group, "", w.coordinator, w.epoch)),
        ("no coordinator", INVALID, lambda w: report(w.api, w.group, "c1", "", w.epoch)),
        ("no such group", REFUSED, lambda w: report(w.api, w.never, "c1", w.coordinator, w.epoch)),
        ("another coordinator", REFUSED, lambda w: report(w.api, w.group, "c1", "other", w.epoch)),
        ("another epoch", REFUSED, lambda w: report(w.api, w.group, "c1", w.coordinator, w.epoch + 1)),
        ("no member", REFUSED, lambda w: report(w.api, w.group, "c3", w.coordinator, w.epoch)),
        ("one of two members", OK, lambda w: report(w.api, w.group, "c1", w.coordinator, w.epoch)),
        ("both, no other server", REFUSED, lambda w: report(w.api, w.group, "c2", w.coordinator, w.epoch)),
    ),
    *entries(
        "other calls",
        ("an unknown method", UNIMPLEMENTED, lambda w: raw(w, "/proto.API/AddPolicy")),
        ("an unknown service", UNIMPLEMENTED, lambda w: raw(w, "/proto.Other/Publish")),
        (
            "reflection",
            UNIMPLEMENTED,
            lambda w: raw(w, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
        ),
        (
            "a compressed request",
            UNIMPLEMENTED,
            lambda w: raw(w, "/proto.API/FetchMetadata", bytes(1000), compression=grpc.Compression.Gzip),
        ),
        (
            "health of a service that is none",
            NOT_FOUND,
            lambda w: raw(w, "/grpc.health.v1.Health/Check", b"\x0a\x01x"),
        ),
    ),
]


@pytest.fixture(name="world", scope="module")
def _world(api):
    return World(api)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.call}: {entry.condition}")
def test_an_entry(world, entry):
    if entry.code is OK:
        entry.do(world)
    else:
        with refused(entry.code, entry.text):
            entry.do(world)


ERRORS = api_pb2.PublishAsyncError
ASYNC = [
    ("no stream", {"stream": ""}, ERRORS.NOT_FOUND, ""),
    ("no such stream", {"stream": "never"}, ERRORS.NOT_FOUND, ""),
    ("no such partition", {"stream": "full", "partition": 2}, ERRORS.NOT_FOUND, ""),
    ("readonly", {"stream": "readonly"}, ERRORS.READONLY, ""),
    (
        "concurrency control, policy NONE",
        {"stream": "checked", "ackPolicy": api_pb2.NONE, "expectedOffset": -1},
        ERRORS.BAD_REQUEST,
        "stream with concurrency control must have AckPolicy set",
    ),
    (
        "another expected offset",
        {"stream": "checked", "expectedOffset": 99},
        ERRORS.INCORRECT_OFFSET,
        "incorrect expected offset",
    ),
    ("larger than NATS takes", {"stream": "full", "value": bytes(1048570)}, ERRORS.INTERNAL, ""),
]


@pytest.mark.parametrize(
    ("fields", "code", "text"), [row[1:] for row in ASYNC], ids=[row[0] for row in ASYNC]
)
def test_an_asynchronous_error(world, fields, code, text):
    name = getattr(world, fields["stream"]) if fields["stream"] else ""
    bad = {**fields, "stream": name, "correlationId": "bad"}
    responses = publish_async(world.api, bad, {"stream": world.full, "correlationId": "good"})
    found = {response.correlationId: response for response in responses}
    assert set(found) == {"bad", "good"}
    assert found["bad"].asyncError.code == code
    assert (found["bad"].asyncError.message == text) if text else found["bad"].asyncError.message
    assert found["bad"].HasField("ack")
    assert not found["bad"].ack.correlationId
    assert not found["good"].HasField("asyncError")


@pytest.mark.parametrize("key", ["", "short", "seventeen bytes k"])
def test_the_text_of_a_key_that_is_none(start, key):
    _, api = start(environment={"LIFTBRIDGE_ENCRYPTION_KEY": key})
    with refused(REFUSED, "invalid AES key size" if key else ""):
        create(api, encryption=boolean(True))
    assert publish(api, create(api)).offset == 0


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_that_ends_is_unavailable(start, end):
    """To what runs, and to what comes. A PublishAsync that ended with OK would be believed to be complete."""
    server, api = start({"cursors.stream.partitions": 1})
    name = create(api)
    running = subscribe(api, name)

    def requests():
        yield api_pb2.PublishRequest(stream=name)
        until(lambda: server.process is None)

    publishing = api.PublishAsync(requests(), timeout=PATIENCE)
    assert next(publishing).ack.offset == 0
    next(running)
    getattr(server, end)()
    assert drain(running) == ([], UNAVAILABLE)
    assert drain(publishing) == ([], UNAVAILABLE)
    fresh_api = Api(server)
    for call in (
        lambda: create(fresh_api),
        lambda: metadata(fresh_api),
        lambda: publish(fresh_api, name),
        lambda: first_answer(fresh_api, name),
        lambda: partition_metadata(fresh_api, name),
        lambda: set_cursor(fresh_api, "c", 1),
        lambda: fetch_cursor(fresh_api, "c"),
    ):
        with refused(UNAVAILABLE):
            call()
