"""Publishes of the server itself: into one of its own streams, and sure of it.

They go through NATS like all others, so that every stream and subscriber on the subject sees them. But where
a client takes the first ack that comes, the server counts only that of the stream it means: another stream,
on a wildcard, gets the message too, and what it acks says nothing of ours.

Invariants: an inbox is live before its first message leaves; a late ack, or one from another stream, wakes
nobody.
"""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass, field

import trio
from google.protobuf.message import DecodeError

from liftbridge._wire import CollectingSink, decode_ack_envelope
from liftbridge.broker.publisher import NatsUnavailableError, Publisher, PublishRefusedError
from liftbridge.metadata.model import Stream
from liftbridge.proto import api_pb2


class NotStoredError(Exception):
    """The stream has not stored the message, as far as is known; the text says why."""


class TooLargeError(NotStoredError):
    """The message is larger than NATS, or a partition, takes."""


@dataclass
class _Waiting:
    """A message without its ack."""

    stream: str
    arrived: trio.Event = field(default_factory=trio.Event)
    ack: api_pb2.Ack | None = None


class InternalPublisher:
    """Publishes by the connection of `publisher`."""

    def __init__(self, publisher: Publisher, namespace: str) -> None:
        self._publisher = publisher
        self._prefix = f"{namespace}.ack.{secrets.token_hex(11)}"
        self._sink = CollectingSink(self)
        self._numbers = itertools.count(1)
        self._waiting: dict[bytes, _Waiting] = {}

    async def start(self) -> None:
        """Subscribe to the inboxes; needed once, before the first publish. Raises NatsPermissionError."""
        await self._publisher.connection.subscribe(f"{self._prefix}.*", self._sink)

    def on_messages(self) -> None:
        """Acks have arrived: called by the connection."""
        for subject, _, payload in self._sink.take():
            waiting = self._waiting.get(subject)
            ack = None if waiting is None else _ack_of(payload)
            if waiting is not None and ack is not None and ack.stream == waiting.stream:
                waiting.ack = waiting.ack or ack
                waiting.arrived.set()

    async def publish(
        self,
        stream: Stream,
        partition_id: int,
        *,
        key: bytes = b"",
        value: bytes,
        policy: api_pb2.AckPolicy = api_pb2.ALL,
    ) -> api_pb2.Ack | None:
        """Publish, and return the ack of the stream, or at once None with the policy NONE.

        Waits for ever: the caller sets a deadline. Raises NotStoredError.
        """
        inbox = f"{self._prefix}.{next(self._numbers)}"
        subject = stream.partition_subject(partition_id)
        message = api_pb2.Message(
            key=key, value=value, stream=stream.name, subject=subject, ackInbox=inbox, ackPolicy=policy
        )
        waiting = self._waiting[inbox.encode()] = _Waiting(stream.name)
        try:
            await self._publisher.publish(subject, message)
            if policy == api_pb2.NONE:
                return None
            await waiting.arrived.wait()
        except PublishRefusedError as error:
            raise TooLargeError(str(error)) from error
        except NatsUnavailableError as error:
            raise NotStoredError(str(error)) from error
        finally:
            del self._waiting[inbox.encode()]
        ack = waiting.ack
        assert ack is not None, "an inbox was woken without an ack"
        if ack.ackError == api_pb2.Ack.TOO_LARGE:
            raise TooLargeError("the message is larger than clustering.replication.max.bytes allows")
        if ack.ackError != api_pb2.Ack.OK:
            raise NotStoredError(f"the leader of stream {stream.name} could not store the message")
        return ack


def _ack_of(payload: bytes) -> api_pb2.Ack | None:
    """The ack in an envelope; None when there is none, as anybody may write to an inbox."""
    data = decode_ack_envelope(payload)
    try:
        return None if data is None else api_pb2.Ack.FromString(data)
    except DecodeError:
        return None
