"""Publishing from outside: Publish, PublishAsync, PublishToSubject and NATS itself, and every ack."""

import contextlib
import queue
import signal
import threading

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
    fresh,
    nullable,
    partition_metadata,
    publish,
    publish_many,
    read,
    read_all,
    refused,
    until,
)
from harness import Nats, Server, freeze

from liftbridge.proto import api_pb2
from liftbridge.proto.api_pb2 import Ack, Message, PublishAsyncError, PublishRequest, PublishToSubjectRequest

LEADER, ALL, NONE = api_pb2.LEADER, api_pb2.ALL, api_pb2.NONE
# Long enough for a server to answer, short enough to wait for when it must not.
SHORT = 0.4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("publish")) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def api(server):
    return server.api()


@pytest.fixture(scope="module")
def nats(server):
    with NatsClient(server.nats_url) as client:
        yield client


def concurrency_controlled(api, **fields):
    return create(api, optimisticConcurrencyControl=nullable(True), **fields)


def async_call(api, *requests):
    """The responses of a PublishAsync call that is half-closed behind its last request."""
    return list(api.PublishAsync(iter(requests), timeout=PATIENCE))


# -- Publish -------------------------------------------------------------------------------------------------


def test_publish_names_an_existing_stream_and_partition(api):
    stream = create(api, partitions=2)
    for name, partition, code in (
        ("", 0, grpc.StatusCode.INVALID_ARGUMENT),
        ("", 1, grpc.StatusCode.INVALID_ARGUMENT),
        (fresh(), 0, grpc.StatusCode.NOT_FOUND),
        (stream, 2, grpc.StatusCode.NOT_FOUND),
        (stream, -1, grpc.StatusCode.NOT_FOUND),
    ):
        with refused(code):
            publish(api, name, partition=partition)
        with refused(code):  # without a deadline as well
            api.Publish(PublishRequest(stream=name, partition=partition))
    assert publish(api, stream, partition=1).offset == 0


@pytest.mark.parametrize("policy", [LEADER, ALL])
def test_publish_with_a_deadline_returns_the_ack(api, policy):
    stream = create(api, partitions=2)
    request = PublishRequest(stream=stream, partition=1, value=b"v", correlationId="c1", ackPolicy=policy)
    response = api.Publish(request, timeout=PATIENCE)
    assert (response.correlationId, response.HasField("asyncError")) == ("", False)
    ack = response.ack
    assert ack.stream == ack.partitionSubject == stream
    assert ack.msgSubject == f"{stream}.1"
    assert (ack.offset, ack.correlationId, ack.ackPolicy, ack.ackError) == (0, "c1", policy, Ack.OK)
    assert ack.ackInbox.startswith("liftbridge-default.ack.")
    assert ack.receptionTimestamp <= ack.commitTimestamp
    (message,) = read_all(api, stream, 1)
    assert (message.timestamp, message.value) == (ack.receptionTimestamp, b"v")
    assert publish(api, stream, partition=1, ackPolicy=policy).offset == 1


@pytest.mark.parametrize("policy", [LEADER, ALL])
def test_publish_without_a_deadline_is_fire_and_forget(api, policy):
    stream = create(api)
    response = api.Publish(PublishRequest(stream=stream, value=b"v", ackPolicy=policy))
    assert response == api_pb2.PublishResponse()
    assert [message.value for message in read(api, stream, 1)] == [b"v"]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_policy_none_gets_no_ack(api, nats, timeout):
    stream, inbox = create(api), fresh("inbox.")
    acks = nats.subscribe(inbox)
    request = PublishRequest(stream=stream, value=b"v", ackPolicy=NONE, ackInbox=inbox)
    assert api.Publish(request, timeout=timeout) == api_pb2.PublishResponse()
    # The next one is acked on the same inbox by the same connection: no ack of the first can come behind it.
    assert publish(api, stream, ackInbox=inbox).offset == 1
    assert ack_of(acks.get(timeout=PATIENCE).data).offset == 1
    assert acks.empty()


def test_what_a_subscriber_gets_of_a_published_message(api):
    stream = create(api, partitions=2)
    ack = publish(
        api,
        stream,
        b"value",
        partition=1,
        key=b"key",
        headers={"user": b"1", "subject": b"mine", "reply": b"mine", "": b"nameless"},
        correlationId="not stored",
        ackPolicy=ALL,
        expectedOffset=77,
    )
    (message,) = read_all(api, stream, 1)
    assert message == Message(
        offset=0,
        key=b"key",
        value=b"value",
        timestamp=ack.receptionTimestamp,
        stream=stream,
        partition=1,
        subject=f"{stream}.1",
        headers={"user": b"1", "subject": f"{stream}.1".encode(), "reply": b"", "": b"nameless"},
    )


def test_the_client_may_choose_the_inbox(api, nats):
    stream, inbox = create(api), fresh("inbox.")
    acks = nats.subscribe(inbox)
    ack = publish(api, stream, ackInbox=inbox, correlationId="mine")
    assert (ack.ackInbox, ack.correlationId) == (inbox, "mine")
    assert ack_of(acks.get(timeout=PATIENCE).data) == ack
    api.Publish(PublishRequest(stream=stream, ackInbox=inbox, correlationId="no deadline"))
    second = ack_of(acks.get(timeout=PATIENCE).data)
    assert (second.offset, second.correlationId) == (1, "no deadline")


def test_an_inbox_that_is_no_subject_is_refused(api):
    stream = create(api)
    for inbox in ("a b", "a..b", ".a", "a\r\nPUB x 0\r\n"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            publish(api, stream, ackInbox=inbox)
    assert partition_metadata(api, stream).newestOffset == -1


@pytest.mark.parametrize("garbage", [b"", b"no ack", envelope(Message(value=b"of type 0"))])
def test_what_is_no_ack_on_the_inbox_fails_the_publish(api, nats, garbage):
    subject, inbox = fresh("nobody."), fresh("inbox.")
    request = PublishToSubjectRequest(subject=subject, ackInbox=inbox)
    call = api.PublishToSubject.future(request, timeout=PATIENCE)
    while not call.done():  # the server may not listen on the inbox yet
        nats.publish(inbox, garbage)
    with refused(grpc.StatusCode.UNKNOWN, "not an ack"):
        call.result()


def test_publishes_of_one_client_keep_their_order(api):
    stream = create(api)
    for number in range(50):
        api.Publish(PublishRequest(stream=stream, value=b"%d" % number))
    assert [message.value for message in read(api, stream, 50)] == [b"%d" % number for number in range(50)]


def test_many_publishes_at_once_each_get_their_own_ack(api):
    stream = create(api)
    calls = {
        f"c{number}": api.Publish.future(
            PublishRequest(stream=stream, value=b"%d" % number, correlationId=f"c{number}"), timeout=PATIENCE
        )
        for number in range(200)
    }
    offsets = {}
    for correlation, call in calls.items():
        ack = call.result().ack
        assert ack.correlationId == correlation
        offsets[ack.offset] = correlation[1:].encode()
    assert {message.offset: message.value for message in read_all(api, stream)} == offsets


# -- PublishToSubject ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [LEADER, ALL])
def test_publish_to_subject_with_a_deadline_returns_the_ack(api, policy):
    stream = create(api, subject=fresh("subject."))
    subject = api.FetchMetadata(api_pb2.FetchMetadataRequest(streams=[stream])).streamMetadata[0].subject
    request = PublishToSubjectRequest(
        subject=subject, key=b"k", value=b"v", headers={"a": b"b"}, correlationId="c", ackPolicy=policy
    )
    ack = api.PublishToSubject(request, timeout=PATIENCE).ack
    assert (ack.stream, ack.partitionSubject, ack.msgSubject) == (stream, subject, subject)
    assert (ack.offset, ack.correlationId, ack.ackPolicy, ack.ackError) == (0, "c", policy, Ack.OK)
    (message,) = read_all(api, stream)
    assert (message.key, message.value, message.headers["a"]) == (b"k", b"v", b"b")


def test_publish_to_subject_waits_only_for_an_ack_it_can_wait_for(api):
    stream = create(api)
    assert not api.PublishToSubject(PublishToSubjectRequest(subject=stream)).HasField("ack")
    none = PublishToSubjectRequest(subject=stream, ackPolicy=NONE)
    assert not api.PublishToSubject(none, timeout=PATIENCE).HasField("ack")
    assert not api.PublishToSubject(none).HasField("ack")
    assert len(read(api, stream, 3)) == 3
    nobody = PublishToSubjectRequest(subject=fresh("nobody."))
    assert not api.PublishToSubject(nobody).HasField("ack")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        api.PublishToSubject(nobody, timeout=SHORT)


@pytest.mark.parametrize("subject", ["", ".", "a..b", "a.", "a b", "a\tb", "a\r\nPUB b 0\r\n"])
def test_publish_to_subject_needs_a_subject(api, subject):
    with refused(grpc.StatusCode.UNKNOWN, "subject"):
        api.PublishToSubject(PublishToSubjectRequest(subject=subject), timeout=PATIENCE)


def test_publish_to_subject_returns_a_negative_ack_as_it_is(api):
    stream = concurrency_controlled(api)
    request = PublishToSubjectRequest(subject=stream, correlationId="c")
    assert (
        api.PublishToSubject(request, timeout=PATIENCE).ack.ackError == Ack.OK
    )  # it carries 0, which is next
    ack = api.PublishToSubject(request, timeout=PATIENCE).ack
    assert (ack.ackError, ack.offset, ack.correlationId) == (Ack.INCORRECT_OFFSET, 0, "c")
    assert (ack.stream, ack.msgSubject) == (stream, stream)
    assert ack.receptionTimestamp and ack.commitTimestamp


def test_every_publish_reaches_nats_as_an_envelope(api, nats):
    stream = create(api)
    seen = nats.subscribe(stream)
    api.PublishToSubject(PublishToSubjectRequest(subject=stream, key=b"k", value=b"1", ackPolicy=NONE))
    api.Publish(PublishRequest(stream=stream, value=b"2", ackPolicy=NONE, headers={"h": b"1"}))
    publish_many(api, stream, [b"3"], correlationId="c", expectedOffset=-1)
    envelopes = [seen.get(timeout=PATIENCE).data for _ in range(3)]
    assert {data[:8] for data in envelopes} == {envelope(Message())}
    first, second, third = (Message.FromString(data[8:]) for data in envelopes)
    assert (first.key, first.value, first.subject, first.ackPolicy, first.offset) == (
        b"k",
        b"1",
        stream,
        NONE,
        0,
    )
    assert (second.stream, second.subject, second.value, second.headers["h"]) == (stream, stream, b"2", b"1")
    assert (third.value, third.correlationId, third.offset) == (b"3", "c", -1)
    assert third.ackInbox


def test_acks_of_the_servers_own_calls_do_not_pass_nats(api, nats):
    stream = create(api)
    messages, acks = nats.subscribe(stream), nats.subscribe("liftbridge-default.ack.>")
    assert publish(api, stream, b"1").offset == 0
    assert len(publish_many(api, stream, [b"2", b"3"])) == 2
    inboxes = [Message.FromString(messages.get(timeout=PATIENCE).data[8:]).ackInbox for _ in range(3)]
    assert all(inbox.startswith("liftbridge-default.ack.") for inbox in inboxes)
    nats.publish("liftbridge-default.ack.end", b"")  # what was sent before has come before
    assert acks.get(timeout=PATIENCE).subject == "liftbridge-default.ack.end"


# -- PublishAsync --------------------------------------------------------------------------------------------


def test_a_thousand_messages_are_matched_with_their_acks(api):
    stream = create(api, partitions=3)
    requests = [
        PublishRequest(
            stream=stream,
            partition=number % 3,
            value=b"%d" % number,
            correlationId=f"c{number}",
            ackPolicy=ALL if number % 2 else LEADER,
        )
        for number in range(1000)
    ]
    responses = async_call(api, *requests)
    assert len(responses) == 1000
    acked = {}
    for response in responses:
        assert not response.HasField("asyncError")
        assert response.correlationId == response.ack.correlationId
        acked[response.correlationId] = response.ack
    for number in range(1000):
        ack = acked[f"c{number}"]
        # Messages of one call to one partition are stored in the order they were sent.
        assert ack.offset == number // 3
        assert ack.partitionSubject == stream
        assert ack.msgSubject == (f"{stream}.{number % 3}" if number % 3 else stream)
        assert ack.ackPolicy == (ALL if number % 2 else LEADER)
    for partition in range(3):
        values = [int(message.value) for message in read_all(api, stream, partition)]
        assert values == list(range(partition, 1000, 3))


def test_an_empty_correlation_id_stays_empty(api):
    stream = create(api)
    responses = async_call(api, *(PublishRequest(stream=stream) for _ in range(5)))
    assert [response.ack.offset for response in responses] == [0, 1, 2, 3, 4]
    assert {response.correlationId for response in responses} == {""}
    (error,) = async_call(api, PublishRequest(stream=fresh()))
    assert (error.asyncError.code, error.correlationId) == (PublishAsyncError.NOT_FOUND, "")


def test_the_inbox_of_an_asynchronous_publish_is_the_servers(api, nats):
    stream, inbox = create(api), fresh("inbox.")
    acks = nats.subscribe(inbox)
    (response,) = async_call(api, PublishRequest(stream=stream, ackInbox=inbox))
    assert response.ack.ackInbox != inbox
    (second,) = async_call(api, PublishRequest(stream=stream, ackInbox="not a subject"))
    assert second.ack.offset == 1
    publish(api, stream, ackInbox=inbox)
    assert ack_of(acks.get(timeout=PATIENCE).data).offset == 2


def test_an_error_is_an_answer_and_the_call_goes_on(api):
    stream, controlled = create(api), concurrency_controlled(api)
    requests = RequestQueue()
    call = api.PublishAsync(iter(requests), timeout=PATIENCE)
    cases = [
        ({"stream": "", "correlationId": "a"}, PublishAsyncError.NOT_FOUND),
        ({"stream": fresh(), "correlationId": "b"}, PublishAsyncError.NOT_FOUND),
        ({"stream": stream, "partition": 1, "correlationId": "c"}, PublishAsyncError.NOT_FOUND),
        ({"stream": stream, "partition": -1, "correlationId": "d"}, PublishAsyncError.NOT_FOUND),
        ({"stream": controlled, "ackPolicy": NONE, "correlationId": "e"}, PublishAsyncError.BAD_REQUEST),
        (
            {"stream": controlled, "expectedOffset": 7, "correlationId": "f"},
            PublishAsyncError.INCORRECT_OFFSET,
        ),
        ({"stream": fresh(), "ackPolicy": NONE, "correlationId": "g"}, PublishAsyncError.NOT_FOUND),
    ]
    for number, (fields, code) in enumerate(cases):
        requests.send(**fields)
        response = next(call)
        assert (response.asyncError.code, response.correlationId) == (code, fields["correlationId"])
        assert response.HasField("ack")
        assert response.ack == Ack()
        assert response.asyncError.message
        requests.send(stream=stream, correlationId="good")
        response = next(call)
        assert not response.HasField("asyncError")
        assert (response.ack.offset, response.correlationId) == (number, "good")
    requests.send(stream=controlled, ackPolicy=NONE)
    assert next(call).asyncError.message == "stream with concurrency control must have AckPolicy set"
    requests.send(stream=controlled, expectedOffset=1)
    assert next(call).asyncError.message == "incorrect expected offset"
    requests.close()
    assert drain(call) == ([], grpc.StatusCode.OK)


def test_policy_none_is_answered_only_when_it_fails(api):
    stream = create(api)
    requests = [PublishRequest(stream=stream, ackPolicy=NONE, correlationId=f"c{n}") for n in range(20)]
    requests.insert(10, PublishRequest(stream="", ackPolicy=NONE, correlationId="bad"))
    (response,) = async_call(api, *requests)
    assert (response.correlationId, response.asyncError.code) == ("bad", PublishAsyncError.NOT_FOUND)
    assert len(read(api, stream, 20)) == 20


def test_a_call_stays_open_without_traffic_and_beside_others(api):
    stream = create(api)
    requests, others = RequestQueue(), [RequestQueue() for _ in range(100)]
    call = api.PublishAsync(iter(requests), timeout=PATIENCE)
    idle = [api.PublishAsync(iter(other), timeout=PATIENCE) for other in others]
    for number in range(3):
        publish_many(api, stream, [b"x"])
        requests.send(stream=stream, correlationId="late")
        assert next(call).ack.offset == 2 * number + 1
    for requests_of_idle, idle_call in zip(others, idle, strict=True):
        requests_of_idle.close()
        assert drain(idle_call) == ([], grpc.StatusCode.OK)
    requests.close()
    assert drain(call) == ([], grpc.StatusCode.OK)


def test_a_cancelled_call_leaves_what_it_published(api):
    stream = create(api)
    requests = RequestQueue()
    call = api.PublishAsync(iter(requests), timeout=PATIENCE)
    requests.send(stream=stream, value=b"1")
    assert next(call).ack.offset == 0
    call.cancel()
    requests.close()
    assert publish(api, stream).offset == 1


def test_calls_share_the_connection_without_mixing_acks(api):
    stream = create(api)
    calls = [
        api.PublishAsync(
            iter([PublishRequest(stream=stream, correlationId=f"{call}-{n}") for n in range(100)]),
            timeout=PATIENCE,
        )
        for call in range(10)
    ]
    offsets = []
    for number, call in enumerate(calls):
        responses = list(call)
        assert [response.correlationId for response in responses] == [f"{number}-{n}" for n in range(100)]
        offsets += [response.ack.offset for response in responses]
    assert sorted(offsets) == list(range(1000))


# -- limits of size ------------------------------------------------------------------------------------------

MAX_BYTES, MAX_PAYLOAD = 4000, 8000


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server that takes messages of 4000 bytes, behind a NATS server that takes 8000."""
    config = {"clustering.replication.max.bytes": MAX_BYTES}
    directory = tmp_path_factory.mktemp("small")
    with Server(directory, config, nats=f"max_payload: {MAX_PAYLOAD}") as running:
        yield running


def test_a_message_larger_than_the_server_takes_is_too_large(small):
    api = small.api()
    stream = create(api)
    big = b"x" * (MAX_BYTES + 1)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "replication.max.bytes"):
        publish(api, stream, big)
    api.Publish(PublishRequest(stream=stream, value=big))  # nobody waits for the refusal
    ack = api.PublishToSubject(PublishToSubjectRequest(subject=stream, value=big), timeout=PATIENCE).ack
    assert (ack.ackError, ack.offset, ack.commitTimestamp) == (Ack.TOO_LARGE, 0, 0)
    assert ack.receptionTimestamp
    for policy in (LEADER, ALL, NONE):
        requests = RequestQueue()
        call = api.PublishAsync(iter(requests), timeout=PATIENCE)
        requests.send(stream=stream, value=big, correlationId="big", ackPolicy=policy)
        response = next(call)
        assert (response.asyncError.code, response.correlationId) == (PublishAsyncError.BAD_REQUEST, "big")
        assert response.HasField("ack") and response.ack == Ack()
        requests.close()
        assert drain(call) == ([], grpc.StatusCode.OK)
    assert partition_metadata(api, stream).newestOffset == -1


def test_the_limit_counts_the_whole_nats_payload(small):
    api = small.api()
    stream = create(api)
    with NatsClient(small.nats_url) as nats:
        inbox = fresh("inbox.")
        acks = nats.subscribe(inbox)
        message = Message(ackInbox=inbox, value=b"x" * MAX_BYTES)
        message.value = b"x" * (2 * MAX_BYTES - len(envelope(message)))
        assert len(envelope(message)) == MAX_BYTES
        nats.publish(stream, envelope(message), b"y" * MAX_BYTES, b"y" * (MAX_BYTES + 1))
        assert ack_of(acks.get(timeout=PATIENCE).data).ackError == Ack.OK
        message.value += b"x"
        nats.publish(stream, envelope(message))
        assert ack_of(acks.get(timeout=PATIENCE).data).ackError == Ack.TOO_LARGE
    assert publish(api, stream).offset == 2
    assert [len(m.value) for m in read_all(api, stream)] == [len(message.value) - 1, MAX_BYTES, 0]


def test_a_message_larger_than_nats_takes_never_leaves(small):
    api = small.api()
    stream = create(api)
    big = b"x" * (MAX_PAYLOAD + 1)
    for timeout in (None, PATIENCE):
        for policy in (LEADER, NONE):
            with refused(grpc.StatusCode.UNKNOWN, "max_payload"):
                api.Publish(PublishRequest(stream=stream, value=big, ackPolicy=policy), timeout=timeout)
            with refused(grpc.StatusCode.UNKNOWN, "max_payload"):
                api.PublishToSubject(
                    PublishToSubjectRequest(subject=stream, value=big, ackPolicy=policy), timeout=timeout
                )
    first, second = async_call(
        api,
        PublishRequest(stream=stream, value=big, correlationId="big"),
        PublishRequest(stream=stream, value=b"small", correlationId="small"),
    )
    assert (first.asyncError.code, first.correlationId) == (PublishAsyncError.INTERNAL, "big")
    assert first.HasField("ack")
    assert (second.ack.offset, second.correlationId) == (0, "small")


def test_a_request_larger_than_grpc_takes_is_refused(api):
    stream = create(api)
    request = PublishRequest(stream=stream, value=b"x" * (4 << 20))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        api.Publish(request, timeout=PATIENCE)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        async_call(api, request)
    assert publish(api, stream).offset == 0


def test_messages_up_to_the_default_limit_pass(api):
    stream = create(api)
    values = [bytes([number]) * ((1 << 20) - 300) for number in range(5)]
    assert [ack.offset for ack in publish_many(api, stream, values)] == list(range(5))
    assert [message.value for message in read_all(api, stream)] == values


# -- optimistic concurrency control --------------------------------------------------------------------------


def test_a_message_is_stored_only_at_the_offset_it_expects(api):
    stream = concurrency_controlled(api)
    text = "incorrect expected offset"
    assert publish(api, stream, b"0").offset == 0  # an absent expectation is 0
    with refused(grpc.StatusCode.UNKNOWN, text):
        publish(api, stream)
    assert publish(api, stream, b"1", expectedOffset=1).offset == 1
    assert publish(api, stream, b"2", expectedOffset=-1).offset == 2
    for wrong in (0, 2, 4, -2, 2**62):
        with refused(grpc.StatusCode.UNKNOWN, text):
            publish(api, stream, b"no", expectedOffset=wrong)
        with refused(grpc.StatusCode.UNKNOWN, text):
            publish(api, stream, b"no", expectedOffset=wrong, ackPolicy=ALL)
    assert [message.value for message in read_all(api, stream)] == [b"0", b"1", b"2"]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "stream with concurrency control must have AckPolicy set"):
        publish(api, stream, ackPolicy=NONE)


def test_expected_offsets_are_those_of_the_partition(api):
    stream = concurrency_controlled(api, partitions=2)
    assert publish(api, stream, partition=1, expectedOffset=0).offset == 0
    assert publish(api, stream, partition=0, expectedOffset=0).offset == 0
    assert publish(api, stream, partition=1, expectedOffset=1).offset == 1


def test_one_of_many_writers_wins_each_offset(api):
    stream = concurrency_controlled(api)
    for offset in range(5):
        calls = [
            api.Publish.future(
                PublishRequest(stream=stream, value=b"%d" % writer, expectedOffset=offset), timeout=PATIENCE
            )
            for writer in range(20)
        ]
        winners = []
        for writer, call in enumerate(calls):
            with contextlib.suppress(grpc.RpcError):
                assert call.result().ack.offset == offset
                winners.append(b"%d" % writer)
        assert [message.value for message in read_all(api, stream)[offset:]] == winners
        assert len(winners) == 1


def test_a_batch_in_one_call_expects_offset_by_offset(api):
    stream = concurrency_controlled(api)
    requests = [
        PublishRequest(stream=stream, correlationId=f"c{n}", value=b"%d" % n, expectedOffset=expected)
        for n, expected in enumerate([0, 1, 1, 2, 5, 3])
    ]
    responses = {response.correlationId: response for response in async_call(api, *requests)}
    stored = [name for name, response in responses.items() if not response.HasField("asyncError")]
    assert sorted(stored) == ["c0", "c1", "c3", "c5"]
    assert responses["c2"].asyncError.code == PublishAsyncError.INCORRECT_OFFSET
    assert [message.value for message in read_all(api, stream)] == [b"0", b"1", b"3", b"5"]


def test_nats_messages_expect_zero(api, nats):
    stream, inbox = concurrency_controlled(api), fresh("inbox.")
    acks = nats.subscribe(inbox)
    nats.publish(stream, b"first", b"second")
    for expected, error in ((0, Ack.INCORRECT_OFFSET), (1, Ack.OK), (-1, Ack.OK)):
        for policy in (NONE, LEADER) if error else (LEADER,):
            message = Message(offset=expected, ackInbox=inbox, ackPolicy=policy)
            nats.publish(stream, envelope(message))
            ack = ack_of(acks.get(timeout=PATIENCE).data)
            assert (ack.ackError, ack.ackPolicy) == (error, policy)
    assert [message.value for message in read_all(api, stream)] == [b"first", b"", b""]


def test_the_server_wide_setting_holds_for_streams_that_do_not_say(tmp_path):
    with Server(tmp_path / "server", {"streams.concurrency.control": True}) as server:
        api = server.api()
        controlled, free = create(api), create(api, optimisticConcurrencyControl=nullable(False))
        for stream in (controlled, free):
            assert publish(api, stream).offset == 0
        with refused(grpc.StatusCode.UNKNOWN, "incorrect expected offset"):
            publish(api, controlled)
        assert publish(api, free).offset == 1


# -- subjects ------------------------------------------------------------------------------------------------


def test_partitions_have_subjects_of_their_own(api, nats):
    stream = create(api, partitions=3)
    nats.publish(f"{stream}.3", b"nowhere")
    for subject in (stream, f"{stream}.1", f"{stream}.2"):
        nats.publish(subject, subject.encode())
    for partition, subject in enumerate((stream, f"{stream}.1", f"{stream}.2")):
        assert [message.value for message in read(api, stream, 1, partition)] == [subject.encode()]
        ack = publish(api, stream, partition=partition)
        assert (ack.offset, ack.partitionSubject, ack.msgSubject) == (1, stream, subject)


def test_every_stream_on_a_subject_stores_and_acks_a_message(api, nats):
    subject = fresh("shared.")
    streams = {create(api, subject=subject) for _ in range(3)}
    name = next(iter(streams))
    ack = publish(api, name, b"unary")  # the first of the three acks
    assert ack.stream in streams
    requests = RequestQueue()
    call = api.PublishAsync(iter(requests), timeout=PATIENCE)
    requests.send(stream=name, value=b"async", correlationId="c")
    responses = [next(call) for _ in range(3)]
    assert {response.ack.stream for response in responses} == streams
    assert {(response.correlationId, response.ack.offset) for response in responses} == {("c", 1)}
    requests.close()
    ack = api.PublishToSubject(
        PublishToSubjectRequest(subject=subject, value=b"subject"), timeout=PATIENCE
    ).ack
    assert ack.stream in streams
    nats.publish(subject, b"nats")
    for stream in streams:
        values = [message.value for message in read(api, stream, 4)]
        assert values == [b"unary", b"async", b"subject", b"nats"]


def test_wildcard_subjects(api, nats):
    root = fresh("wild")
    one = create(api, subject=f"{root}.*", partitions=2)
    rest = create(api, subject=f"{root}.>")
    nats.publish(f"{root}.a", b"1")
    nats.publish(f"{root}.b", b"2", reply="answer.here")
    nats.publish(f"{root}.a.1", b"3")  # partition 1 of the one, part of the other
    nats.publish(root, b"nowhere")
    assert [(m.subject, m.value, m.replySubject) for m in read(api, one, 2)] == [
        (f"{root}.a", b"1", ""),
        (f"{root}.b", b"2", "answer.here"),
    ]
    assert [(m.subject, m.value) for m in read(api, one, 1, partition=1)] == [(f"{root}.a.1", b"3")]
    assert [m.value for m in read(api, rest, 3)] == [b"1", b"2", b"3"]
    # A gRPC publish has no other subject than the wildcard text, which NATS takes literally.
    ack = publish(api, one, b"4", correlationId="c")
    assert (ack.stream in (one, rest), ack.msgSubject, ack.correlationId) == (True, f"{root}.*", "c")
    assert read(api, one, 3)[2].subject == f"{root}.*"
    assert read(api, rest, 4)[3].value == b"4"
    publish(api, one, b"5", partition=1)
    assert read(api, one, 2, partition=1)[1].subject == f"{root}.*.1"


def test_a_group_shares_the_messages_of_a_subject(api, nats):
    subject = fresh("group.")
    shared = [create(api, subject=subject, group="g") for _ in range(3)]
    other, alone = create(api, subject=subject, group="h"), create(api, subject=subject)
    values = [b"%d" % number for number in range(300)]
    nats.publish(subject, *values)
    assert [message.value for message in read(api, alone, 300)] == values
    assert [message.value for message in read(api, other, 300)] == values
    # Each message went to one stream of the group: those that took part hold them all together.
    until(lambda: sum(partition_metadata(api, stream).newestOffset + 1 for stream in shared) >= 300)
    stored = [message.value for stream in shared for message in read_all(api, stream)]
    assert sorted(stored, key=int) == values
    assert all(partition_metadata(api, stream).newestOffset < 299 for stream in shared)


def test_a_group_is_one_per_partition(api, nats):
    subject = fresh("group.")
    pair = [create(api, subject=subject, group="g", partitions=2) for _ in range(2)]
    nats.publish(f"{subject}.1", *(b"%d" % number for number in range(50)))
    until(lambda: sum(partition_metadata(api, stream, 1).newestOffset + 1 for stream in pair) >= 50)
    assert sum(len(read_all(api, stream, 1)) for stream in pair) == 50
    assert all(partition_metadata(api, stream, 0).newestOffset == -1 for stream in pair)


# -- NATS itself ---------------------------------------------------------------------------------------------


def test_plain_messages_are_recorded_as_they_are_and_never_acked(api, nats):
    stream, reply = create(api), fresh("reply.")
    replies = nats.subscribe(reply)
    nats.publish(stream, b"plain", b"", b"\x00\xff" * 1000, reply=reply)
    nats.publish(stream, b"with headers", headers={"Nats-Header": "not recorded"})
    nats.publish(reply, b"the only one")
    messages = read(api, stream, 4)
    assert [m.value for m in messages] == [b"plain", b"", b"\x00\xff" * 1000, b"with headers"]
    assert [m.key for m in messages] == [b""] * 4
    assert [m.replySubject for m in messages] == [reply] * 3 + [""]
    for message in messages:
        expected = {"subject": stream.encode(), "reply": message.replySubject.encode()}
        assert dict(message.headers) == expected
    assert [m.timestamp for m in messages] == sorted(m.timestamp for m in messages)
    assert (
        publish(api, stream).offset == 4
    )  # whatever the server had to say to the reply subject, it has said
    assert replies.get(timeout=PATIENCE).data == b"the only one"
    with pytest.raises(queue.Empty):
        replies.get_nowait()


def test_envelopes_of_any_kind(api, nats):
    stream, inbox = create(api), fresh("inbox.")
    acks = nats.subscribe(inbox)
    plain = bytes.fromhex("B90E43B40008000012016B1A0176")
    checked = bytes.fromhex("B90E43B4000C0100DF5918B812016B1A0176")
    broken = checked[:8] + b"\0\0\0\0" + checked[12:]
    long_header, ack_type = plain[:5] + b"\xff" + plain[6:], plain[:7] + b"\x01" + plain[8:]
    nats.publish(stream, plain, checked, broken, long_header, ack_type)
    message = Message(key=b"k", value=b"v", ackInbox=inbox, correlationId="c1", ackPolicy=ALL, offset=-1)
    nats.publish(stream, envelope(message))
    ack = ack_of(acks.get(timeout=PATIENCE).data)
    assert (ack.offset, ack.correlationId, ack.ackPolicy, ack.ackInbox) == (5, "c1", ALL, inbox)
    messages = read_all(api, stream)
    assert [m.key for m in messages] == [b"k", b"k", b"", b"", b"", b"k"]
    assert [m.value for m in messages] == [b"v", b"v", broken, long_header, ack_type, b"v"]


# -- NATS comes and goes -------------------------------------------------------------------------------------


def test_a_half_closed_call_waits_for_its_acks(tmp_path):
    """While NATS stands still no ack can come, so those that are waited for come after the half-close."""
    with Nats(tmp_path / "nats") as nats:
        config = {"nats.servers": [nats.url]}
        with Server(tmp_path / "server", config, embedded=False) as server:
            api = server.api()
            stream = create(api)
            exhausted = threading.Event()

            def requests():
                for number in range(100):
                    yield PublishRequest(stream=stream, ackPolicy=ALL if number % 2 else LEADER)
                exhausted.set()

            freeze(nats.process.pid)
            try:
                call = api.PublishAsync(requests(), timeout=PATIENCE)
                assert exhausted.wait(PATIENCE)
                for _ in range(3):  # behind the half-close on the same connection
                    api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=PATIENCE)
            finally:
                nats.process.send_signal(signal.SIGCONT)
            # Acks of the two policies may overtake each other.
            assert sorted(response.ack.offset for response in call) == list(range(100))


def test_publishes_fail_while_nats_is_down_and_go_on_when_it_is_back(tmp_path):
    with Nats(tmp_path / "nats") as nats:
        config = {"nats.servers": [nats.url]}
        with Server(tmp_path / "server", config, embedded=False) as server:
            api = server.api()
            stream = create(api)
            requests = RequestQueue()
            call = api.PublishAsync(iter(requests), timeout=4 * PATIENCE)
            requests.send(stream=stream, value=b"before", correlationId="0")
            assert next(call).ack.offset == 0
            subscription = api.Subscribe(
                api_pb2.SubscribeRequest(stream=stream, startPosition=api_pb2.EARLIEST), timeout=4 * PATIENCE
            )
            assert [next(subscription).value for _ in range(2)] == [b"", b"before"]
            nats.stop()
            for connection in ("streams", "acks", "publishes"):
                server.wait_log(f"liftbridge.nats.{connection}: lost the connection to NATS")
            for timeout in (None, PATIENCE):
                for policy in (LEADER, NONE):
                    with refused(grpc.StatusCode.UNKNOWN, "NATS"):
                        api.Publish(PublishRequest(stream=stream, ackPolicy=policy), timeout=timeout)
            with refused(grpc.StatusCode.UNKNOWN, "NATS"):
                api.PublishToSubject(PublishToSubjectRequest(subject=stream))
            for policy in (LEADER, NONE):
                requests.send(stream=stream, correlationId="down", ackPolicy=policy)
                response = next(call)
                assert (response.asyncError.code, response.correlationId) == (
                    PublishAsyncError.INTERNAL,
                    "down",
                )
                assert response.HasField("ack")
            nats.start()
            # Three connections come back one by one; a message is acked when all have.
            until(lambda: _stored(api, stream))
            newest = partition_metadata(api, stream).newestOffset
            requests.send(stream=stream, value=b"after", correlationId="1")
            response = next(call)
            assert (response.ack.offset, response.correlationId) == (newest + 1, "1")
            requests.close()
            assert drain(call) == ([], grpc.StatusCode.OK)
            values = [next(subscription).value for _ in range(newest + 1)]
            assert values == [b"again"] * newest + [b"after"]


def _stored(api, stream):
    try:
        return api.Publish(PublishRequest(stream=stream, value=b"again"), timeout=1).HasField("ack")
    except grpc.RpcError:
        return False


def test_acks_that_wait_for_a_commit_that_cannot_come_are_bounded(api):
    """With fewer replicas than minIsr nothing commits; publishers of ALL are told, others go on."""
    lonely, other = create(api, minIsr=api_pb2.NullableInt32(value=2)), create(api)
    requests = (
        PublishRequest(stream=lonely, ackPolicy="ALL", correlationId="x" * 500_000) for _ in range(80)
    )
    answers = api.PublishAsync(requests, timeout=60)
    assert next(answers).asyncError.code == PublishAsyncError.UNKNOWN
    answers.cancel()
    assert publish(api, other).offset == 0
    assert partition_metadata(api, lonely).highWatermark == -1
