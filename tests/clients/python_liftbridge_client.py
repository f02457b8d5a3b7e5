"""A program that uses python-liftbridge 0.0.7. Run in the environment that has it, never imported.

Argument: host:port of the server. Prints what it saw as JSON; the test that runs it judges.
"""

import datetime
import itertools
import json
import sys

from python_liftbridge import ErrNoSuchStream, ErrStreamExists, Lift, Message, Stream


def values(client, stream, count):
    """The first items of a subscription, as (offset, value) pairs, the handshake included."""
    return [(item.offset, item.value.decode()) for item in itertools.islice(client.subscribe(stream), count)]


def raised(error, work):
    """Whether the work raises this error."""
    try:
        work()
    except error:
        return True
    return False


def main():
    client = Lift(ip_address=sys.argv[1], timeout=30)
    seen = {}
    client.create_stream(Stream(subject="old.subject", name="old"))
    seen["created twice"] = raised(
        ErrStreamExists, lambda: client.create_stream(Stream(subject="old.subject", name="old"))
    )
    client.publish(Message(value="hello", stream="old"))
    client.publish(Message(value="with ack", stream="old", key="k", correlation_id="c").ack_policy_all())
    client.publish_to_subject(Message(value="to subject", subject="old.subject").ack_policy_leader())
    earliest = Stream(subject="old.subject", name="old").start_at_earliest_received()
    seen["earliest"] = values(client, earliest, 4)
    seen["from offset"] = values(client, Stream(subject="old.subject", name="old").start_at_offset(1), 3)
    seen["latest"] = values(client, Stream(subject="old.subject", name="old").start_at_latest_received(), 2)
    # The client takes universal time for local time; days make up for that.
    days = datetime.timedelta(days=2)
    seen["from time"] = values(client, Stream(subject="old.subject", name="old").start_at_time_delta(days), 2)
    seen["keys"] = [item.key.decode() for item in itertools.islice(client.subscribe(earliest), 4)]
    seen["unknown to publish"] = raised(
        ErrNoSuchStream, lambda: client.publish(Message(value="x", stream="never"))
    )
    seen["unknown to subscribe"] = raised(
        ErrNoSuchStream, lambda: values(client, Stream(subject="never", name="never"), 1)
    )
    metadata = client.fetch_metadata()
    seen["streams"] = {stream.name: stream.subject for stream in metadata.metadata}
    seen["brokers"] = [f"{broker.host}:{broker.port}" for broker in metadata.brokers]
    client.close()
    print(json.dumps(seen))


main()
