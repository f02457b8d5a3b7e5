"""What the crash tests publish with, and what they remember of it to check the server by.

Every value tells which it is and is as long as its number wants it, so that what is found can be checked byte
by byte. No message is sent twice: what the server has must be an ordered selection of what was sent, with
every acked message at the offset of its ack.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import nats
from calls import PATIENCE, NatsClient, ack_of, drain, envelope, fresh, partition_metadata, subscribe
from harness import Api, Server
from nats.aio.msg import Msg

from liftbridge.proto import api_pb2
from liftbridge.proto.api_pb2 import ALL, LEADER

# Messages of one publisher that may wait for their acks.
WINDOW = 200


def value_of(stream: str, number: int) -> bytes:
    """The value of a stream's message."""
    return b"%s %d " % (stream.encode(), number) + b"%d" % number * (number * 7919 % 60)


class History:
    """What was sent to one stream, what was acked, and how far the server's log was checked."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.sent = 0
        self.acked: dict[int, int] = {}  # number of the message by offset
        self._acked_numbers: set[int] = set()
        self._checked = 0  # the offset behind the last message checked
        self._last = -1  # its number

    def send(self) -> tuple[int, bytes]:
        """The number and the value of the next message."""
        number = self.sent
        self.sent += 1
        return number, value_of(self.stream, number)

    def ack(self, ack: Any) -> None:
        """The server has acked a message."""
        number = int(ack.correlationId)
        assert ack.ackError == api_pb2.Ack.OK, f"{self.stream}: {ack}"
        assert ack.stream == self.stream, f"an ack for {ack.stream} came to {self.stream}"
        assert ack.offset not in self.acked, f"{self.stream}: offset {ack.offset} was acked twice"
        assert number not in self._acked_numbers, f"{self.stream}: message {number} was acked twice"
        self.acked[ack.offset] = number
        self._acked_numbers.add(number)

    def check(self, api: Api, *, whole: bool) -> None:
        """Check what the server has: the `whole` stream, or what is new since the last check."""
        newest = partition_metadata(api, self.stream).newestOffset
        assert newest >= max(self.acked, default=-1), f"{self.stream} ends at {newest}, before acked messages"
        begin, last = (0, -1) if whole else (self._checked, self._last)
        if newest < begin:
            assert newest == begin - 1, f"{self.stream} ends at {newest}, before what was read"
            return
        call = subscribe(
            api,
            self.stream,
            startPosition=api_pb2.OFFSET,
            startOffset=begin,
            stopPosition=api_pb2.STOP_LATEST,
        )
        messages, status = drain(call)
        assert status == grpc.StatusCode.RESOURCE_EXHAUSTED
        offsets = [message.offset for message in messages]
        assert offsets == list(range(begin, newest + 1)), f"{self.stream} has a gap, or an offset twice"
        for message in messages:
            number = int(message.value.split(b" ", 2)[1])
            assert message.value == value_of(self.stream, number)
            assert last < number < self.sent, f"{self.stream}: {number} is stored behind {last}"
            expected = self.acked.get(message.offset, number)
            assert expected == number, f"{self.stream}: {number} is where {expected} was acked"
            last = number
        self._checked, self._last = newest + 1, last


class Publisher:
    """One life of a publisher: `publish` runs in a thread until the server is gone; `stop` waits for that."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.first_ack = threading.Event()  # or it has failed, and `stop` will tell why
        self._stopping = False
        self._room = threading.Semaphore(WINDOW)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def publish(self) -> None:
        """Publish what `next_messages` gives until the server is gone."""
        raise NotImplementedError

    def next_messages(self) -> Iterator[tuple[int, bytes]]:
        """Numbers and values to send, as acks make room for them, until the publisher is told to end."""
        while True:
            self._room.acquire()
            if self._stopping:
                return
            yield self.history.send()

    def acked(self, ack: Any) -> None:
        """An ack has come."""
        try:
            self.history.ack(ack)
        except AssertionError as error:
            self._failure = self._failure or error
        self._room.release()
        self.first_ack.set()

    def end(self) -> None:
        """Send no more."""
        self._stopping = True
        self._room.release()

    def _run(self) -> None:
        try:
            self.publish()
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self.end()
            self.first_ack.set()

    def stop(self) -> None:
        """The server is gone: return when the publisher has ended. Raises what went wrong in it."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"the publisher of {self.history.stream} outlived its server"
        if self._failure is not None:
            raise self._failure


class AsyncPublisher(Publisher):
    """Publishes by PublishAsync with one ack policy."""

    def __init__(self, server: Server, history: History, policy: int) -> None:
        super().__init__(history)
        self._policy = policy
        self._api = server.api()
        self._thread.start()

    def _requests(self) -> Iterator[Any]:
        for number, value in self.next_messages():
            yield api_pb2.PublishRequest(
                stream=self.history.stream, value=value, correlationId=str(number), ackPolicy=self._policy
            )

    def publish(self) -> None:
        try:
            for response in self._api.PublishAsync(self._requests()):
                assert not response.HasField("asyncError"), response
                self.acked(response.ack)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self._api.channel.close()


class NatsPublisher(Publisher):
    """Publishes envelopes with an ack inbox to NATS, with both ack policies in turn."""

    def __init__(self, server: Server, history: History) -> None:
        super().__init__(history)
        self._inbox = fresh("crash.inbox.")
        self._client = NatsClient(server.nats_url, allow_reconnect=False, error_cb=_ignore)
        self._client.call(self._client.connection.subscribe(self._inbox, cb=self._on_message))
        self._thread.start()

    async def _on_message(self, message: Msg) -> None:
        self.acked(ack_of(message.data))

    def publish(self) -> None:
        for number, value in self.next_messages():
            message = api_pb2.Message(
                value=value,
                correlationId=str(number),
                ackInbox=self._inbox,
                ackPolicy=(LEADER, ALL)[number % 2],
            )
            try:
                self._client.call(self._client.connection.publish(self.history.stream, envelope(message)))
            except (nats.errors.Error, OSError):
                return  # an embedded NATS goes with its server

    def stop(self) -> None:
        self.end()  # NATS may live on, and no ack will come that tells
        try:
            super().stop()
        finally:
            self._client.close()


async def _ignore(error: Exception) -> None:
    """A NATS server that goes down is what these tests are about."""
