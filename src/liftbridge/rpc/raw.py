"""Calls between servers: bytes in both directions, for as long as both sides want, and no protobuf.

A `RawService` stands beside the services of the API on the same port. Nobody is asked who may call it, as the
guard knows of clients only: its handlers find out themselves whom they talk to. Once they know,
`RawCall.uncount` takes the connection off what is counted of clients, and from then on it can do nothing
else: calls of the API are refused on it.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .context import CallContext

if TYPE_CHECKING:
    from .stream import Stream

_PREFIX = struct.Struct(">BL")


class RawCall:
    """A call, as its handler sees it; the call ends when the handler does.

    Attributes:
        context: what is known of the caller.
    """

    __slots__ = ("_stream", "context")

    def __init__(self, stream: Stream, context: CallContext) -> None:
        self._stream = stream
        self.context = context

    @property
    def last_received(self) -> float:
        """When any byte has come from the caller last, on Trio's clock."""
        return self._stream.connection.last_received

    def uncount(self) -> None:
        """The caller is another server: count its connection no more among those of clients."""
        self._stream.connection.uncount()

    async def receive(self) -> list[bytes]:
        """All messages that have come, at least one; none at the end. Raises RpcFailedError."""
        batch = await self._stream.receive_batch()
        return [] if batch is None else split(batch)

    async def send(self, data: bytes | memoryview) -> None:
        """Send whole length-prefixed messages, waiting for room. One task at a time; after it was cancelled
        none."""
        await self._stream.send(data)

    def send_at_once(self, data: bytes) -> bool:
        """Send if there is room for all of it; False: nothing has happened. No other task may be sending."""
        return self._stream.send_at_once(data)


def split(batch: bytes) -> list[bytes]:
    """The messages of whole length-prefixed ones."""
    messages: list[bytes] = []
    position, size = 0, len(batch)
    while position < size:
        _, length = _PREFIX.unpack_from(batch, position)
        position += _PREFIX.size
        messages.append(batch[position : position + length])
        position += length
    return messages


RawHandler: TypeAlias = Callable[[RawCall], Awaitable[None]]


@dataclass(frozen=True)
class RawService:
    """Handlers by the names of their methods.

    Attributes:
        name: of the service, "liftbridge.Peers".
        max_message: bytes of the longest message that is taken.
    """

    name: str
    methods: Mapping[str, RawHandler]
    max_message: int
