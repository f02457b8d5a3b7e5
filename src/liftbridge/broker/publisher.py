"""Publishes from gRPC clients: to NATS as envelopes, and the acks that come back.

Every publish goes through NATS, so that other subscribers of the subject and other streams on it see the
message, and the leader of the partition, wherever it runs, answers to an inbox. All inboxes of a server lie
under one prefix, `<namespace>.ack.<random>`, served by one wildcard subscription: a call costs no
subscription of its own.

Invariants: a call's inbox is live before its first message leaves; when a call has ended, its slot is free
and a late ack for it is dropped and counted.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from liftbridge._wire import (
    AckRouter,
    CollectingSink,
    PublishCall,
    RouteTable,
    decode_ack_envelope,
    encode_publish_envelope,
)
from liftbridge.nats.connection import NatsConnection, NatsPermissionError, NatsUnavailableError
from liftbridge.nats.transport import NatsCredentials
from liftbridge.proto import api_pb2
from liftbridge.sockets import Turn

# One asynchronous call may have so many messages on their way, and so many bytes of answers unread.
MAX_OUTSTANDING = 65536
MAX_ANSWERS = 4 << 20
ACK_PATIENCE = 5.0


Ready = Callable[[], Awaitable[None]]
"""Waits until a message may be sent."""

WaitReady = Callable[[bytes, int], Awaitable["str | None"]]
"""Waits until messages may be sent to a partition, of a stream by name; returns why that will not be."""


async def at_once() -> None:
    """The `Ready` of messages that wait for nothing."""


class PublishRefusedError(Exception):
    """NATS cannot carry this message; the text says why."""


class NotAnAckError(Exception):
    """Something that is no ack arrived on an ack inbox."""


class Signal:
    """An event that resets itself: `wait` returns once for all `set` calls since it last returned."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Let the one who waits go on, now or when it comes to wait."""
        self._event.set()

    async def wait(self) -> None:
        """Wait for a `set`."""
        await self._event.wait()
        self._event = trio.Event()


class Call:
    """One publish call.

    `news` is set when answers have arrived, `room` when some left for the client or acks came in; `closing`
    says that the client has sent its last request and no more acks are waited for.
    """

    def __init__(self) -> None:
        self.wire: PublishCall[Call] | None = None
        self.news = Signal()
        self.room = Signal()
        self.closing = False

    @property
    def messages(self) -> PublishCall[Call]:
        """The C side of the call."""
        assert self.wire is not None, "the call is not open"
        return self.wire

    def answered(self) -> None:
        """The router: acks have arrived."""
        self.news.set()
        self.room.set()


class UnaryPublish:
    """A unary publish that waits for its ack without a task: `on_ack` is called when that is there, and must
    call `close`, as must whoever gives up waiting."""

    __slots__ = ("_router", "on_ack", "wire")

    def __init__(self, router: AckRouter, routes: RouteTable, max_payload: int) -> None:
        self._router = router
        self.wire: PublishCall[UnaryPublish] = router.open(self, routes, max_payload, True)
        self.on_ack: Callable[[UnaryPublish], None] | None = None

    def answered(self) -> None:
        """The router: an ack has arrived."""
        if self.on_ack is not None:
            self.on_ack(self)

    def close(self) -> None:
        """Wait no more; a late ack is dropped and counted."""
        self._router.close(self.wire)


class _Inbox:
    """The owner of the sink of an inbox that a client chose itself."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.sink = CollectingSink(self)

    def on_messages(self) -> None:
        self.arrived.set()


class Publisher:
    """The publishes connection of a server. `routes` says where each stream's messages go."""

    def __init__(
        self,
        servers: Sequence[str],
        *,
        name: str,
        namespace: str,
        credentials: NatsCredentials,
        turn: Turn | None = None,
    ) -> None:
        self.connection = NatsConnection(
            servers, name=name, purpose="publishes", credentials=credentials, turn=turn
        )
        self.routes = RouteTable()
        self._leaving: set[trio.Event] = set()  # of publishes that wait for room in the connection
        prefix = f"{namespace}.ack.{secrets.token_hex(11)}"
        self._inboxes = f"{prefix}.*.*"
        self.router = AckRouter(self, prefix.encode())

    async def start(self) -> None:
        """Subscribe to the inboxes; needed once, before the first call."""
        await self.connection.subscribe(self._inboxes, self.router)

    def on_messages(self) -> None:
        """Acks have arrived: wake the calls they are for."""
        for call in self.router.take_waiting():
            call.answered()

    @asynccontextmanager
    async def call(
        self, *, first_only: bool = False, permit: Callable[[bytes], bytes | None] | None = None
    ) -> AsyncIterator[Call]:
        """Open a call with an inbox of its own. With `first_only`, only the first ack is kept, as it came.

        `permit` is asked whether the call may publish to a stream: None is yes, else the text of the refusal.
        """
        call = Call()
        call.wire = self.router.open(call, self.routes, self.connection.max_payload, first_only)
        call.wire.permit = permit
        try:
            yield call
        finally:
            self.router.close(call.wire)

    async def published(self) -> None:
        """Wait until everything that was published so far has reached NATS.

        Raises NatsUnavailableError when it does not.
        """
        for left in list(self._leaving):
            await left.wait()
        await self.connection.flush()

    async def _send(self, data: bytes) -> None:
        left = trio.Event()
        self._leaving.add(left)
        try:
            await self.connection.send(data)
        finally:
            self._leaving.discard(left)
            left.set()

    def begin(self, request: bytes, *, wait: bool) -> UnaryPublish | None:
        """Publish a serialized PublishRequest without waiting for anything; None, and nothing has happened,
        when something about it is unusual: then the other methods know what to do or what is wrong.

        Without `wait` no ack is asked for. The caller closes what is returned.
        """
        connection = self.connection
        if not connection.has_room:
            return None
        publish = UnaryPublish(self.router, self.routes, connection.max_payload)
        if not publish.wire.begin(request, wait):
            publish.close()
            return None
        connection.enqueue(publish.wire.take_publishes())
        return publish

    async def publish(self, subject: str, message: api_pb2.Message, ready: Ready = at_once) -> None:
        """Publish an envelope when `ready` has returned, and wait for nothing.

        Raises PublishRefusedError when it is larger than NATS takes, NatsUnavailableError when there is no
        NATS.
        """
        payload = encode_publish_envelope(message.SerializeToString())
        if len(payload) > self.connection.max_payload:
            raise PublishRefusedError(
                f"the message takes {len(payload)} bytes with its envelope, NATS accepts "
                f"{self.connection.max_payload} (max_payload)"
            )
        await ready()
        await self._send(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload))

    async def publish_and_wait(
        self, subject: str, message: api_pb2.Message, ready: Ready = at_once
    ) -> api_pb2.Ack:
        """Publish an envelope when `ready` has returned, and return the first ack, positive or negative, that
        comes back.

        The ack goes to `message.ackInbox`, or to an inbox of our own when that is empty. Waits for ever: the
        caller sets the deadline. Raises as `publish` does, and NotAnAckError.
        """
        if message.ackInbox:
            return await self._publish_to_inbox(subject, message, ready)
        async with self.call(first_only=True) as call:
            message.ackInbox = call.messages.inbox.decode()
            await self.publish(subject, message, ready)
            while (ack := call.messages.take_first_ack()) is None:
                await call.news.wait()
            return api_pb2.Ack.FromString(ack)

    async def _publish_to_inbox(self, subject: str, message: api_pb2.Message, ready: Ready) -> api_pb2.Ack:
        inbox = _Inbox()
        sid = await self.connection.subscribe(message.ackInbox, inbox.sink)
        try:
            await self.publish(subject, message, ready)
            await inbox.arrived.wait()
        finally:
            self.connection.unsubscribe(sid)
        ack = decode_ack_envelope(inbox.sink.take()[0][2])
        if ack is None:
            raise NotAnAckError(f"what arrived on {message.ackInbox!r} is not an ack")
        return api_pb2.Ack.FromString(ack)

    async def send_requests(
        self, call: Call, frames: bytes | bytearray | memoryview, wait_ready: WaitReady
    ) -> None:
        """Publish a batch of requests of an asynchronous call, waiting while too much of it is on its way.

        A request to a partition that takes no messages yet, and what comes after it, waits for `wait_ready`.
        While there is no NATS, every request gets an error for an answer. Raises ValueError when the batch
        holds something that is no PublishRequest.
        """
        messages = call.messages
        rest = memoryview(frames)
        failure: str | None = None
        while True:
            rest = rest[await self._send_ready(call, rest, failure) :]
            if messages.waits_for is None:
                break
            failure = await wait_ready(*messages.waits_for)
        while messages.answers_size > MAX_ANSWERS:
            await call.room.wait()
        with trio.move_on_after(ACK_PATIENCE) as patience:
            while messages.outstanding > MAX_OUTSTANDING:
                await call.room.wait()
        if patience.cancelled_caught:
            # Acks are not guaranteed; those that are missing after so long will not come.
            messages.forget_outstanding()

    async def _send_ready(self, call: Call, frames: memoryview, failure: str | None) -> int:
        """Publish requests up to one that has to wait; returns how many bytes that took."""
        messages = call.messages
        messages.connected = self.connection.connected
        messages.max_payload = self.connection.max_payload
        try:
            return messages.feed(frames, failure)
        finally:
            publishes = messages.take_publishes()
            call.news.set()  # refusals are answers as well
            if publishes:
                with suppress(NatsUnavailableError):  # lost between the two lines: no ack will come
                    await self._send(publishes)


__all__ = [
    "Call",
    "NatsPermissionError",
    "NatsUnavailableError",
    "NotAnAckError",
    "PublishRefusedError",
    "Publisher",
    "Ready",
    "UnaryPublish",
    "at_once",
]
