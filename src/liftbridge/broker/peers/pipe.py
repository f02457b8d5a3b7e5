"""The two ends of a call between servers, alike: of the one that has connected, and of the one it called.

Both send whole length-prefixed messages of gRPC, and get the messages that have come. Whatever ends the call
is a LinkError here, with what is known of the reason.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from liftbridge.client.connection import Call, Connection, open_connection
from liftbridge.client.errors import RpcError, StatusCode
from liftbridge.client.options import Options
from liftbridge.rpc import RawCall, RpcFailedError

from . import bounds
from .model import GreetingError, LinkError, Purpose

SERVICE = "liftbridge.Peers"
_PREFIX = struct.Struct(">BL")


def framed(message: bytes) -> bytes:
    """A message with its length prefix."""
    return _PREFIX.pack(0, len(message)) + message


def prefix(size: int) -> bytes:
    """The length prefix of a message that is sent behind it."""
    return _PREFIX.pack(0, size)


_REFUSALS = (
    StatusCode.UNAUTHENTICATED,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.ALREADY_EXISTS,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.UNIMPLEMENTED,
)


class Pipe(Protocol):
    """One end."""

    @property
    def last_received(self) -> float:
        """When any byte has come last, on Trio's clock."""

    async def receive(self) -> list[bytes]:
        """The messages that have come, at least one. Raises LinkError."""

    async def send(self, data: bytes | memoryview) -> None:
        """Send whole messages, waiting for room. One task at a time; after it was cancelled none. Raises
        LinkError."""

    def send_at_once(self, data: bytes) -> bool:
        """Send if there is room for all; False: nothing has happened. No other task may be sending."""


class One:
    """A pipe during the greeting: a message at a time."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._come: list[bytes] = []

    async def receive_one(self) -> bytes:
        """The next message. Raises LinkError."""
        if not self._come:
            self._come = await self._pipe.receive()
        return self._come.pop(0)

    async def send_one(self, message: bytes) -> None:
        """Send a message. Raises LinkError."""
        await self._pipe.send(framed(message))

    def end(self) -> tuple[Pipe, list[bytes]]:
        """The pipe, and what has come behind the greeting already."""
        return self._pipe, self._come


class Answered:
    """The end of the server that was called."""

    def __init__(self, call: RawCall) -> None:
        self._call = call

    @property
    def last_received(self) -> float:
        return self._call.last_received

    async def receive(self) -> list[bytes]:
        try:
            messages = await self._call.receive()
        except RpcFailedError as error:
            raise LinkError(f"the other server sends no messages: {error}") from error
        if not messages:
            raise LinkError("the other server has ended it")
        return messages

    async def send(self, data: bytes | memoryview) -> None:
        try:
            await self._call.send(data)
        except trio.ClosedResourceError as error:
            raise LinkError("the other server has ended it") from error

    def send_at_once(self, data: bytes) -> bool:
        return self._call.send_at_once(data)


class Dialed:
    """The end of the server that has connected."""

    def __init__(self, connection: Connection, call: Call) -> None:
        self._connection = connection
        self._call = call

    @property
    def last_received(self) -> float:
        return self._connection.last_received

    async def receive(self) -> list[bytes]:
        try:
            messages = await self._call.receive()
        except RpcError as error:
            raise LinkError(error.message, refused=error.code in _REFUSALS) from error
        if not messages:
            raise LinkError("the other server has ended it")
        return messages

    async def send(self, data: bytes | memoryview) -> None:
        try:
            await self._call.send(data)
        except RpcError as error:
            raise LinkError(str(error)) from error

    def send_at_once(self, data: bytes) -> bool:
        return self._call.send_at_once(data)


_OPTIONS = {
    # The links have heartbeats of their own; a greeting has a time of its own.
    Purpose.CONTROL: Options(
        connect_timeout=bounds.CONNECT_SECONDS,
        keepalive_interval=3600,
        max_message_bytes=bounds.MAX_PIECE + 1,
        write_buffer=4 * bounds.MAX_PIECE,
    ),
    Purpose.DATA: Options(
        connect_timeout=bounds.CONNECT_SECONDS,
        keepalive_interval=3600,
        stream_window=4 * bounds.MIB,
        max_message_bytes=bounds.MAX_PAYLOAD_BYTES,
    ),
    Purpose.CLUSTER: Options(
        connect_timeout=bounds.CONNECT_SECONDS,
        keepalive_interval=3600,
        max_message_bytes=bounds.MAX_GREETING_BYTES,
    ),
}


async def dial(
    address: tuple[str, int],
    tls: ssl.SSLContext | None,
    purpose: Purpose,
    work: Callable[[Dialed], Awaitable[None]],
) -> None:
    """Connect, call, and do `work`; then the connection is closed.

    Raises LinkError and GreetingError, those of `work` too.
    """
    host, port = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        connection = await open_connection(where, tls, _OPTIONS[purpose])
    except (RpcError, ValueError) as error:
        raise LinkError(str(error)) from error
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            with trio.move_on_after(bounds.GREETING_SECONDS) as scope:
                call = await _call(connection, purpose)
            if scope.cancelled_caught:
                failed = LinkError(f"{where} takes connections and does not answer")
            else:
                await work(Dialed(connection, call))
        except (LinkError, GreetingError) as error:
            failed = error  # raised outside of the nursery, which would put it into a group
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _call(connection: Connection, purpose: Purpose) -> Call:
    try:
        await connection.ready()
        return await connection.call(f"/{SERVICE}/{purpose.value}")
    except RpcError as error:
        raise LinkError(str(error)) from error
