"""Publishing by gRPC and by NATS, as clients of the original see it: a test for each row."""

import queue
import time

import pytest
from calls import NatsClient
from conformance_calls import (
    EXPIRED,
    INVALID,
    PATIENCE,
    api_pb2,
    create,
    follow,
    fresh,
    history,
    numbered,
    partition_metadata,
    publish,
    publish_async,
    publish_to_subject,
    refused,
    values,
)

MAGIC = bytes.fromhex("B90E43B4")
PUBLISH = bytes.fromhex("B90E43B400080000")
ACK = bytes.fromhex("B90E43B400080001")
# The vectors of the envelope protocol: key "k", value "v".
WITHOUT_CRC = bytes.fromhex("B90E43B400080000 12016B1A0176")
WITH_CRC = bytes.fromhex("B90E43B4000C0100 DF5918B8 12016B1A0176")
# Expected offset -1, key "k", value "v", ack inbox "a.b", correlation id "c1", policy ALL.
ASKS_FOR_ACK = bytes.fromhex("08FFFFFFFFFFFFFFFFFF0112016B1A01765203612E625A0263316001")
ASKS_FOR_ACK_CRC = bytes.fromhex("7E011692")


def ack_in(message):
    """The ack in a NATS message."""
    assert message.data[:8] == ACK
    return api_pb2.Ack.FromString(message.data[8:])


def test_publish_with_ack(api):
    name = create(api)
    response = api.Publish(api_pb2.PublishRequest(stream=name, value=b"0"), timeout=PATIENCE)
    assert (response.ack.stream, response.ack.offset, response.ack.ackError) == (name, 0, api_pb2.Ack.OK)
    assert (response.ack.partitionSubject, response.ack.msgSubject) == (name, name)
    assert (response.correlationId, response.HasField("asyncError")) == ("", False)
    for policy in (api_pb2.LEADER, api_pb2.ALL):
        request = api_pb2.PublishRequest(stream=name, value=b"x", ackPolicy=policy)
        assert api.Publish(request) == api_pb2.PublishResponse()
    assert values(follow(api, name, 3)) == [b"0", b"x", b"x"]


def test_asynchronous_publish(api):
    name = create(api)
    responses = publish_async(api, *({"stream": name, **fields} for fields in numbered(1000)))
    assert len(responses) == 1000
    assert {response.correlationId for response in responses} == {f"{number}" for number in range(1000)}
    for response in responses:
        assert response.ack.correlationId == response.correlationId
        assert not response.HasField("asyncError")
        assert response.ack.offset == int(response.correlationId), "in the order they were sent"
    assert values(history(api, name)) == [b"%d" % number for number in range(1000)]


def test_asynchronous_errors(api):
    name = create(api)
    requests = queue.Queue()
    call = api.PublishAsync(iter(requests.get, None), timeout=PATIENCE)

    def send(**fields):
        requests.put(api_pb2.PublishRequest(**fields))
        return next(call)

    for where, correlation in (({"stream": fresh("never")}, "1"), ({}, "2"), ({"partition": 1}, "3")):
        fields = {"stream": name, **where} if where else {"stream": ""}
        response = send(**fields, value=b"no", correlationId=correlation)
        assert response.asyncError.code == api_pb2.PublishAsyncError.NOT_FOUND
        assert response.asyncError.message
        assert response.correlationId == correlation
        assert response.HasField("ack"), "clients look into it"
    response = send(stream=name, value=b"yes", correlationId="4")
    assert (response.ack.offset, response.correlationId, response.HasField("asyncError")) == (0, "4", False)
    requests.put(None)  # half-close
    assert list(call) == []
    assert values(history(api, name)) == [b"yes"]


def test_ack_policies(api):
    name = create(api)
    policies = [api_pb2.LEADER, api_pb2.ALL, api_pb2.NONE]
    assert [publish(api, name, ackPolicy=policy).offset for policy in policies[:2]] == [0, 1]
    response = api.Publish(api_pb2.PublishRequest(stream=name, ackPolicy=api_pb2.NONE), timeout=PATIENCE)
    assert response == api_pb2.PublishResponse()
    requests = [
        {"stream": name, "correlationId": f"{number}", "ackPolicy": policies[number % 3]}
        for number in range(30)
    ]
    responses = publish_async(api, *requests)
    assert sorted(int(r.correlationId) for r in responses) == [n for n in range(30) if n % 3 < 2]
    assert [r.ack.ackPolicy for r in responses] == [policies[int(r.correlationId) % 3] for r in responses]
    assert len(follow(api, name, 33)) == 33
    # An error is told whatever the policy.
    (response,) = publish_async(api, {"stream": fresh("never"), "ackPolicy": api_pb2.NONE})
    assert response.asyncError.code == api_pb2.PublishAsyncError.NOT_FOUND


def test_publish_to_subject(api, nats):
    subject = fresh("subject")
    names = [create(api, subject=subject), create(api, subject=subject)]
    arrived = nats.subscribe(subject)
    ack = publish_to_subject(api, subject, b"x", key=b"k", correlationId="c", headers={"h": b"1"})
    assert ack.stream in names
    assert (ack.offset, ack.correlationId, ack.msgSubject) == (0, "c", subject)
    for name in names:
        (message,) = follow(api, name, 1)
        assert (message.key, message.value, message.headers["h"]) == (b"k", b"x", b"1")
    # Others on the subject get an envelope that they can decode.
    seen = arrived.get(timeout=PATIENCE).data
    assert seen[:8] == PUBLISH
    assert api_pb2.Message.FromString(seen[8:]).value == b"x"
    with refused(EXPIRED):
        publish_to_subject(api, fresh("nobody"), timeout=0.2)
    empty = api_pb2.PublishToSubjectRequest(subject=fresh("nobody"), ackPolicy=api_pb2.NONE)
    assert api.PublishToSubject(empty, timeout=PATIENCE) == api_pb2.PublishToSubjectResponse()


def test_keys_and_headers(api):
    name = create(api)
    headers = {"one": b"1", "binary": bytes(range(256)), "": b"no name", "empty": b"", "subject": b"mine"}
    publish(api, name, b"v", key=b"\x00key\xff", headers=headers)
    publish(api, name, b"v")
    full, plain = history(api, name)
    assert (full.key, full.value) == (b"\x00key\xff", b"v")
    assert dict(full.headers) == {**headers, "subject": name.encode(), "reply": b""}
    assert (plain.key, dict(plain.headers)) == (b"", {"subject": name.encode(), "reply": b""})
    assert (full.ackInbox, full.correlationId, full.ackPolicy) == ("", "", 0)


@pytest.mark.parametrize("correlation", ["c1", "", "ü\n {}", "x" * 1000])
def test_correlation_id(api, correlation):
    name = create(api)
    assert publish(api, name, correlationId=correlation).correlationId == correlation
    (response,) = publish_async(api, {"stream": name, "correlationId": correlation})
    assert (response.correlationId, response.ack.correlationId) == (correlation, correlation)
    assert publish_to_subject(api, name, correlationId=correlation).correlationId == correlation


def test_ack_inbox(api, nats):
    name, inbox = create(api), fresh("inbox.")
    arrived = nats.subscribe(inbox)
    assert publish(api, name, ackInbox=inbox, correlationId="unary").offset == 0
    # Without a deadline nobody waits for it here, and it comes there all the same.
    request = api_pb2.PublishRequest(stream=name, ackInbox=inbox, correlationId="at once")
    assert api.Publish(request) == api_pb2.PublishResponse()
    publish_to_subject(api, name, ackInbox=inbox, correlationId="to subject")
    (response,) = publish_async(api, {"stream": name, "ackInbox": inbox, "correlationId": "async"})
    assert response.ack.offset == 3
    publish(api, name, ackInbox=inbox, correlationId="last")
    acks = [ack_in(arrived.get(timeout=PATIENCE)) for _ in range(4)]
    assert [(ack.correlationId, ack.offset, ack.ackInbox) for ack in acks] == [
        ("unary", 0, inbox),
        ("at once", 1, inbox),
        ("to subject", 2, inbox),
        ("last", 4, inbox),
    ]


@pytest.mark.parametrize("policy", [api_pb2.LEADER, api_pb2.ALL])
def test_reception_commit_times_in_acks(api, policy):
    name = create(api)
    before = time.time_ns()
    acks = [publish(api, name, ackPolicy=policy) for _ in range(3)]
    (response,) = publish_async(api, {"stream": name, "ackPolicy": policy})
    acks.append(response.ack)
    for ack, message in zip(acks, history(api, name), strict=True):
        assert ack.receptionTimestamp == message.timestamp
        assert before <= ack.receptionTimestamp <= ack.commitTimestamp <= time.time_ns()
    received = partition_metadata(api, name).messagesReceivedTimestamps
    assert received.latestTimestamp == acks[-1].receptionTimestamp


def test_plain_nats_messages(api, nats):
    name, inbox = create(api), fresh("inbox.")
    arrived = nats.subscribe(inbox)
    nats.publish(name, b"plain", b"")
    nats.publish(name, b"with reply", reply=inbox)
    nats.publish(name, b"with headers", headers={"Some": "header"})
    publish(api, name, b"last", ackInbox=inbox, correlationId="last")
    messages = history(api, name)
    assert values(messages) == [b"plain", b"", b"with reply", b"with headers", b"last"]
    for message, reply in zip(messages[:4], ["", "", inbox, ""], strict=True):
        assert (message.key, message.subject, message.replySubject) == (b"", name, reply)
        assert dict(message.headers) == {"subject": name.encode(), "reply": reply.encode()}
    # Nothing but the ack that was asked for is sent to the reply subject.
    assert ack_in(arrived.get(timeout=PATIENCE)).correlationId == "last"
    assert arrived.empty()


def test_envelope(api, nats):
    name, inbox = create(api), "a.b"
    arrived = nats.subscribe(inbox)
    nats.publish(name, WITHOUT_CRC, WITH_CRC)
    broken = [
        WITH_CRC[:8] + b"\0\0\0\0" + WITH_CRC[12:],  # a wrong CRC
        WITH_CRC[:5] + b"\x0d" + WITH_CRC[6:],  # with a CRC the header has 12 bytes
        WITHOUT_CRC[:5] + b"\xff" + WITHOUT_CRC[6:],  # a header longer than the message
        WITHOUT_CRC[:5] + b"\x07" + WITHOUT_CRC[6:],  # a header shorter than itself
        WITHOUT_CRC[:4] + b"\x01" + WITHOUT_CRC[5:],  # another version
        WITHOUT_CRC[:7] + b"\x01" + WITHOUT_CRC[8:],  # an ack
        WITHOUT_CRC[:8] + b"\xff\xff",  # no protobuf
        MAGIC,
        b"\0" + WITHOUT_CRC[1:],
    ]
    nats.publish(name, *broken)
    nats.publish(name, PUBLISH + ASKS_FOR_ACK)
    crc = WITH_CRC[:8] + ASKS_FOR_ACK_CRC + ASKS_FOR_ACK
    nats.publish(name, crc)
    acks = [ack_in(arrived.get(timeout=PATIENCE)) for _ in range(2)]
    for number, ack in enumerate(acks):
        assert (ack.correlationId, ack.ackPolicy, ack.ackInbox) == ("c1", api_pb2.ALL, "a.b")
        assert (ack.offset, ack.ackError) == (len(broken) + 2 + number, api_pb2.Ack.OK)
        assert (ack.stream, ack.msgSubject, ack.partitionSubject) == (name, name, name)
    messages = history(api, name)
    for message in (*messages[:2], *messages[-2:]):
        assert (message.key, message.value) == (b"k", b"v")
    assert values(messages[2:-2]) == broken
    assert {message.key for message in messages[2:-2]} == {b""}


def test_maximum_message_size(start):
    server, api = start({"clustering.replication.max.bytes": 1024})
    name = create(api)
    with refused(INVALID):
        publish(api, name, bytes(2000))
    (response,) = publish_async(api, {"stream": name, "value": bytes(2000), "correlationId": "c"})
    assert response.asyncError.code == api_pb2.PublishAsyncError.BAD_REQUEST
    assert (response.correlationId, response.HasField("ack")) == ("c", True)
    assert publish_to_subject(api, name, bytes(2000)).ackError == api_pb2.Ack.TOO_LARGE
    with NatsClient(server.nats_url) as nats:
        arrived = nats.subscribe("in.box")
        nats.publish(name, bytes(1025), bytes(1024))
        message = api_pb2.Message(value=bytes(2000), ackInbox="in.box", correlationId="c")
        nats.publish(name, PUBLISH + message.SerializeToString())
        ack = ack_in(arrived.get(timeout=PATIENCE))
    assert (ack.ackError, ack.offset, ack.correlationId) == (api_pb2.Ack.TOO_LARGE, 0, "c")
    assert publish(api, name, bytes(500)).offset == 1
    assert [len(value) for value in values(history(api, name))] == [1024, 500]


def test_batching(start):
    _, api = start({"batch.max.time": "1s", "batch.max.messages": 5})
    name = create(api)
    before = time.monotonic()
    assert publish(api, name).offset == 0
    assert time.monotonic() - before >= 0.9, "an ack comes when the batch is written"
    # A full batch does not wait for more, one that is not full does.
    responses = publish_async(api, *({"stream": name, **fields} for fields in numbered(7)))
    assert [response.ack.offset for response in responses] == list(range(1, 8))
    waited = [response.ack.commitTimestamp - response.ack.receptionTimestamp for response in responses]
    assert waited[5] >= 900_000_000
    assert waited[4] < waited[5]
    assert len(history(api, name)) == 8
