"""A typed client of Liftbridge servers for Trio and asyncio.

    import liftbridge.client

    async with liftbridge.client.connect("127.0.0.1:9292") as client:
        await client.create_stream("greetings", "hello.world")
        await client.publish("greetings", b"Good morning")
        async with client.subscribe("greetings", start="earliest") as messages:
            async for message in messages:
                print(message.offset, message.value)

docs/client.md shows the rest. The way of a call: `client` is what users see; `routing` finds the server and
repeats what may be repeated; `pool` keeps connections, a `connection` carries calls. `publishing`,
`subscription` and `groups` are what lives longer than one call.
"""

from .client import Client, connect
from .errors import *  # noqa: F403
from .errors import __all__ as _errors
from .groups import Consumer
from .options import Options, tls_context
from .partitioners import Partitioner, RoundRobin, by_key, partition_of_key
from .publishing import Publisher, PublishFuture
from .subscription import Subscription
from .values import (
    Ack,
    AckPolicy,
    Broker,
    EventTimestamps,
    GroupInfo,
    Message,
    Metadata,
    Outgoing,
    PartitionInfo,
    StartPosition,
    StopPosition,
    StreamInfo,
    Timestamp,
)

__all__ = [
    "connect",
    "Client",
    "Options",
    "tls_context",
    "Publisher",
    "PublishFuture",
    "Outgoing",
    "Ack",
    "AckPolicy",
    "Subscription",
    "Message",
    "StartPosition",
    "StopPosition",
    "Timestamp",
    "Consumer",
    "Partitioner",
    "by_key",
    "partition_of_key",
    "RoundRobin",
    "Metadata",
    "Broker",
    "StreamInfo",
    "PartitionInfo",
    "EventTimestamps",
    "GroupInfo",
    *[name for name in _errors if name != "from_status"],
]
