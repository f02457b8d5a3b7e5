"""nats-py as a publisher: plain messages, envelopes, and the acks that come back to an inbox."""

import asyncio

import nats
import pytest
from calls import PATIENCE, ack_of, create, envelope, fresh, partition_metadata, read_all, until

from liftbridge.proto.api_pb2 import ALL, LEADER, NONE, Ack, Message


def test_plain_messages(server, api):
    root = fresh("plain")
    stream, subject = create(api, subject=f"{root}.>"), f"{root}.deep.er"

    async def main():
        connection = await nats.connect(server.nats_url)
        for number in range(1000):
            await connection.publish(subject, b"%d" % number)
        await connection.publish(subject, b"", reply="somewhere")
        await connection.publish(subject, b"last", headers={"Key": "value"})
        await connection.drain()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    until(lambda: partition_metadata(api, stream).newestOffset == 1001)
    messages = read_all(api, stream)
    assert [message.value for message in messages] == [
        *(b"%d" % number for number in range(1000)),
        b"",
        b"last",
    ]
    assert {message.subject for message in messages} == {subject}
    assert [message.replySubject for message in messages[-2:]] == ["somewhere", ""]


@pytest.mark.parametrize("policy", [LEADER, ALL])
def test_envelopes_and_their_acks(server, api, policy):
    stream, inbox = create(api, partitions=2), fresh("inbox.")

    async def main():
        connection = await nats.connect(server.nats_url)
        subscription = await connection.subscribe(inbox)
        await connection.flush()
        for number in range(1000):
            message = Message(
                key=b"k%d" % number,
                value=b"v%d" % number,
                headers={"number": b"%d" % number},
                ackInbox=inbox,
                correlationId=f"c{number}",
                ackPolicy=policy,
            )
            await connection.publish(f"{stream}.1", envelope(message))
        acks = [ack_of((await subscription.next_msg(PATIENCE)).data) for _ in range(1000)]
        await connection.close()
        return acks

    acks = asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE))
    messages = read_all(api, stream, 1)
    for number, (ack, message) in enumerate(zip(acks, messages, strict=True)):
        assert (ack.offset, ack.correlationId, ack.ackPolicy) == (number, f"c{number}", policy)
        assert (ack.stream, ack.partitionSubject, ack.msgSubject) == (stream, stream, f"{stream}.1")
        assert (ack.ackInbox, ack.ackError) == (inbox, Ack.OK)
        assert ack.commitTimestamp >= ack.receptionTimestamp == message.timestamp
        assert (message.key, message.value) == (b"k%d" % number, b"v%d" % number)
        assert message.headers["number"] == b"%d" % number


def test_only_envelopes_that_ask_are_acked(server, api):
    stream, inbox = create(api), fresh("inbox.")

    async def main():
        connection = await nats.connect(server.nats_url)
        subscription = await connection.subscribe(inbox)
        await connection.flush()
        await connection.publish(stream, b"plain", reply=inbox)
        await connection.publish(stream, envelope(Message(value=b"no inbox")), reply=inbox)
        await connection.publish(stream, envelope(Message(ackInbox=inbox, ackPolicy=NONE)))
        await connection.publish(stream, envelope(Message(ackInbox=inbox)))  # LEADER is the default
        ack = ack_of((await subscription.next_msg(PATIENCE)).data)
        pending = subscription.pending_msgs
        await connection.close()
        return ack, pending

    ack, pending = asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert (ack.offset, ack.ackPolicy, pending) == (3, LEADER, 0)
