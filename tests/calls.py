"""What tests do with a server over and over: create streams, publish, read back, and be a NATS client.

`NatsClient` is nats-py in a thread of its own, so that tests written as plain functions can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import grpc
import nats
import pytest
from nats.aio.msg import Msg

from liftbridge.proto import api_pb2

# How long anything may take before a test gives up. Only failing tests wait so long.
PATIENCE = 30.0

ENVELOPE = b"\xb9\x0e\x43\xb4\x00\x08\x00"
_numbers = itertools.count(1)


def fresh(word: str = "s") -> str:
    """A name that no other test of this run has."""
    return f"{word}{next(_numbers)}"


def nullable(value: int | bool) -> Any:
    """A wrapped value of CreateStreamRequest."""
    if isinstance(value, bool):
        return api_pb2.NullableBool(value=value)
    return api_pb2.NullableInt64(value=value)


def create(api: Any, name: str | None = None, subject: str | None = None, **fields: Any) -> str:
    """Create a stream, on a subject of its own unless told; returns its name, by default its subject."""
    name = name or fresh()
    request = api_pb2.CreateStreamRequest(name=name, subject=subject or name, **fields)
    api.CreateStream(request, timeout=PATIENCE)
    return name


def publish(api: Any, stream: str, value: bytes = b"", **fields: Any) -> Any:
    """Publish one message and return its ack."""
    request = api_pb2.PublishRequest(stream=stream, value=value, **fields)
    return api.Publish(request, timeout=PATIENCE).ack


def publish_many(api: Any, stream: str, values: list[bytes], **fields: Any) -> list[Any]:
    """Publish messages in one call; returns their acks in the order they came, with no errors among them."""
    requests = (api_pb2.PublishRequest(stream=stream, value=value, **fields) for value in values)
    responses = list(api.PublishAsync(requests, timeout=PATIENCE))
    assert not [response for response in responses if response.HasField("asyncError")]
    return [response.ack for response in responses]


def subscribe(api: Any, stream: str, *, timeout: float = PATIENCE, **fields: Any) -> Any:
    """Open a subscription and take its handshake."""
    call = api.Subscribe(api_pb2.SubscribeRequest(stream=stream, **fields), timeout=timeout)
    assert next(call).ByteSize() == 0
    return call


def take(call: Any, count: int) -> list[Any]:
    """The next messages of a subscription."""
    return list(itertools.islice(call, count))


def read(api: Any, stream: str, count: int, partition: int = 0) -> list[Any]:
    """The first messages of a partition; waits for as many as asked."""
    call = subscribe(api, stream, partition=partition, startPosition=api_pb2.EARLIEST)
    messages = take(call, count)
    call.cancel()
    return messages


def read_all(api: Any, stream: str, partition: int = 0) -> list[Any]:
    """What a partition holds now."""
    if partition_metadata(api, stream, partition).newestOffset == -1:
        return []
    call = subscribe(
        api, stream, partition=partition, startPosition=api_pb2.EARLIEST, stopPosition=api_pb2.STOP_LATEST
    )
    messages, status = drain(call)
    assert status == grpc.StatusCode.RESOURCE_EXHAUSTED
    return messages


def drain(call: Any) -> tuple[list[Any], grpc.StatusCode]:
    """Everything that a call still delivers, and the status it ends with."""
    messages: list[Any] = []
    try:
        messages.extend(call)
    except grpc.RpcError as error:
        return messages, error.code()
    return messages, grpc.StatusCode.OK


def partition_metadata(api: Any, stream: str, partition: int = 0) -> Any:
    """The metadata of a partition."""
    request = api_pb2.FetchPartitionMetadataRequest(stream=stream, partition=partition)
    return api.FetchPartitionMetadata(request, timeout=PATIENCE).metadata


@contextlib.contextmanager
def refused(code: grpc.StatusCode, text: str = "") -> Iterator[None]:
    """The block ends with this gRPC status, and `text` is part of what it says."""
    with pytest.raises(grpc.RpcError) as error:
        yield
    assert (error.value.code(), text in error.value.details()) == (code, True), error.value


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something that another process does, and return what the condition returned."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it never came: {condition}"
        time.sleep(0.005)
    return found


def envelope(message: Any, kind: int = 0) -> bytes:
    """A protobuf in an envelope without CRC."""
    return ENVELOPE + bytes([kind]) + message.SerializeToString()


def ack_of(data: bytes) -> Any:
    """The ack in an envelope."""
    assert data[:8] == ENVELOPE + b"\x01", data
    return api_pb2.Ack.FromString(data[8:])


class RequestQueue:
    """The requests of a PublishAsync call that a test sends one at a time: iterate it in the call."""

    def __init__(self) -> None:
        self._requests: queue.Queue[Any] = queue.Queue()

    def send(self, **fields: Any) -> None:
        """Send a request."""
        self._requests.put(api_pb2.PublishRequest(**fields))

    def close(self) -> None:
        """Half-close."""
        self._requests.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._requests.get, None)


class NatsClient:
    """nats-py for plain functions: connect, publish, subscribe, close; a context manager."""

    def __init__(self, url: str, **options: Any) -> None:
        self._loop = asyncio.SelectorEventLoop()  # whatever trio-asyncio made the default
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.connection = self.call(nats.connect(url, **{"connect_timeout": 10, **options}))

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the client's thread and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def publish(self, subject: str, *payloads: bytes, **options: Any) -> None:
        """Publish, and return when the server has everything."""

        async def work() -> None:
            for payload in payloads:
                await self.connection.publish(subject, payload, **options)
            await self.connection.flush(int(PATIENCE))

        self.call(work())

    def subscribe(self, subject: str) -> queue.Queue[Msg]:
        """Subscribe; the subscription is live when this returns. What arrives is put into the queue."""
        arrived: queue.Queue[Msg] = queue.Queue()

        async def on_message(message: Msg) -> None:
            arrived.put(message)

        async def work() -> None:
            await self.connection.subscribe(subject, cb=on_message)
            await self.connection.flush(int(PATIENCE))

        self.call(work())
        return arrived

    def close(self) -> None:
        """Close the connection, broken or not, and end the thread."""
        with contextlib.suppress(OSError):
            self.call(self.connection.close())
        self.call(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def _end_tasks(self) -> None:
        """nats-py leaves its tasks behind when the connection breaks."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __enter__(self) -> NatsClient:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
