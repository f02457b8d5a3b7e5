"""Connections by address: one for each, opened when it is needed, opened anew when it was lost.

Connections live in the client's task group; whoever asks for one waits until it is ready, and all who ask at
the same time wait for the same.
"""

from __future__ import annotations

import ssl

import anyio
import anyio.abc

from liftbridge.client.connection import Connection, open_connection
from liftbridge.client.errors import ClientClosedError
from liftbridge.client.options import Options


class Pool:
    """The connections of a client."""

    def __init__(self, tasks: anyio.abc.TaskGroup, tls: ssl.SSLContext | None, options: Options) -> None:
        self._tasks = tasks
        self._tls = tls
        self._options = options
        self._connections: dict[str, Connection] = {}
        self._locks: dict[str, anyio.Lock] = {}
        self._closed = False

    async def get(self, address: str) -> Connection:
        """Return a connection that takes calls.

        Raises:
            UnavailableError: the server cannot be reached.
            TlsError: TLS with it failed.
            ClientClosedError: the client is closed.
        """
        if self._closed:
            raise ClientClosedError("the client is closed: use it inside of its `async with` block")
        connection = self._connections.get(address)
        if connection is not None and connection.lost is None and not connection.draining:
            return connection
        async with self._locks.setdefault(address, anyio.Lock()):
            connection = self._connections.get(address)
            if connection is None or connection.lost is not None or connection.draining:
                connection = await self._open(address)
            return connection

    async def _open(self, address: str) -> Connection:
        connection = await open_connection(address, self._tls, self._options)
        # From here on the client's task group owns it, so that giving up the wait leaks nothing.
        self._tasks.start_soon(connection.run)
        with anyio.move_on_after(self._options.connect_timeout):
            await connection.ready()
            self._connections[address] = connection
            return connection
        connection.close("it sends no HTTP/2 settings")
        await connection.ready()
        raise AssertionError("a connection that was closed is not ready")

    def close(self) -> None:
        """End every connection, and with them every call."""
        self._closed = True
        for connection in self._connections.values():
            connection.close("the client was closed")
