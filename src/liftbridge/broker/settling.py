"""Waiting until partitions take messages, wherever they are led.

A stream is created when the cluster has agreed on it, a partition resumed likewise; but what is published
before its leader listens on NATS is lost. So whoever asked for a stream is answered when the leaders listen,
or are known not to. Of those that are elsewhere each leader is asked once, and answers when it has got so
far. How long to wait is up to the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio
from google.protobuf.message import DecodeError

from liftbridge.broker.controller import Controller
from liftbridge.broker.forwarding import LostError, UnreachableError
from liftbridge.broker.streams import Streams
from liftbridge.metadata.model import Stream
from liftbridge.metadata.stored import OperationError, decode_stream_id
from liftbridge.proto import internal_pb2

SETTLED = "partitions.settled"
# How long others may take to hear of a stream before they are not waited for.
KNOWN_SECONDS = 1.0

# Asks a broker. Raises UnreachableError, LostError.
AskBroker = Callable[[str, str, bytes], Awaitable[bytes]]

logger = logging.getLogger("liftbridge.cluster")


class Settling:
    """Waits for partitions here and elsewhere.

    `ask` asks another broker by its id, and `linked` tells whether there is a link to it now.
    """

    def __init__(
        self, controller: Controller, streams: Streams, ask: AskBroker, linked: Callable[[str], bool]
    ) -> None:
        self._controller = controller
        self._streams = streams
        self._ask = ask
        self._linked = linked

    async def wait(self, stream: Stream, partition_ids: Iterable[int] | None = None) -> None:
        """Wait until partitions of a stream, all of them for None, take messages or do not for a reason.

        And until the other servers know of the stream as it is here, which is a matter of milliseconds, so
        that whoever is told that there is a stream can ask any of them for it; they are not waited for longer
        than a moment.
        """
        ids = range(len(stream.partitions)) if partition_ids is None else partition_ids
        elsewhere: dict[str, list[int]] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_known, stream)
            for partition_id in ids:
                leader = stream.partitions[partition_id].leader
                if leader not in ("", self._controller.broker):
                    elsewhere.setdefault(leader, []).append(partition_id)
            for broker, theirs in elsewhere.items():
                nursery.start_soon(self._wait_elsewhere, broker, stream, theirs)
            for partition_id in ids:
                await self._streams.settled_replica(stream.stream_id, partition_id)

    async def _wait_known(self, stream: Stream) -> None:
        with trio.move_on_after(KNOWN_SECONDS):
            async with trio.open_nursery() as nursery:
                for broker in self._controller.state.brokers.values():
                    if broker.alive and self._linked(broker.id):
                        nursery.start_soon(self._wait_elsewhere, broker.id, stream, [])

    async def _wait_elsewhere(self, broker: str, stream: Stream, partition_ids: list[int]) -> None:
        question = internal_pb2.AwaitPartitions(
            stream_id=stream.stream_id.bytes,
            partitions=partition_ids,
            applied=self._controller.state.applied_index,
        )
        try:
            await self._ask(broker, SETTLED, question.SerializeToString())
        except (UnreachableError, LostError):
            # Whoever publishes with an ack finds out; there is nothing else to wait for.
            logger.info("%s does not say what it knows of stream %s", broker, stream.name)

    async def answer(self, payload: bytes) -> bytes:
        """Another broker waits for partitions that are led here. Returns the answer, which says no more.

        Raises OperationError for bytes that say nothing.
        """
        message = internal_pb2.AwaitPartitions()
        try:
            message.ParseFromString(payload)
        except DecodeError as error:
            raise OperationError(f"no question for partitions: {error}") from error
        await self._controller.consensus.wait_applied(message.applied)
        stream_id = decode_stream_id(message.stream_id)
        for partition_id in message.partitions:
            await self._streams.settled_replica(stream_id, partition_id)
        return b""
