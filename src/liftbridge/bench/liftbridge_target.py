"""Liftbridge as what is measured: publishes over NATS or gRPC, subscriptions over gRPC."""

from __future__ import annotations

import argparse
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from liftbridge import http2
from liftbridge.bench import common, messages, replay, streams
from liftbridge.bench._load import STREAM_ID, GrpcPublisher
from liftbridge.bench.server import ServerUnderTest
from liftbridge.bench.sockets import connect
from liftbridge.bench.target import Load, Publisher, Share, Subscriber, Target, nats_publisher

# Responses are small: more than the server may have to say at once.
RECEIVE_WINDOW = 16 << 20


class LiftbridgeTarget(Target):
    """A Liftbridge server, with a connection to its API."""

    name = "liftbridge"
    first_offset = 0

    def __init__(self, server: ServerUnderTest, api: streams.Streams) -> None:
        self.server = server
        self._api = api

    def stream(self) -> AbstractAsyncContextManager[str]:
        """Make a stream with one partition for a block."""
        return self._api.temporary()

    async def stored(self, stream: str) -> tuple[int, int]:
        """Return how many messages of a stream are committed, and how many are stored."""
        high_watermark, newest = await self._api.offsets(stream)
        return high_watermark + 1, newest + 1

    def publisher(self, stream: str, load: Load, share: Share) -> tuple[socket.socket, Publisher]:
        """Connect a publisher over NATS, of `PublishAsync`, or for a window of 1 of `Publish`."""
        value = messages.value(load.size, stamped=load.stamped)
        if load.via != "grpc":
            return self._nats_publisher(stream, load, share, value)
        return self._grpc_publisher(stream, load, share, value)

    def subscriber(self, window: int, *, stamped: int = 0) -> AbstractAsyncContextManager[Subscriber]:
        """Connect a gRPC subscriber for a block."""
        return replay.connect(self.server.grpc, window, stamped=stamped)

    def _nats_publisher(
        self, stream: str, load: Load, share: Share, value: bytes
    ) -> tuple[socket.socket, Publisher]:
        inbox = f"_INBOX.{secrets.token_hex(8)}"
        if load.via == "plain":
            template = messages.plain(stream, inbox, value, load.policy)
            size = len(value)
        else:
            template = messages.envelope(stream, inbox, value, load.policy)
            size = len(template.data)
        return nats_publisher(self.server.nats, template, load, share, size=size, inbox=inbox)

    def _grpc_publisher(
        self, stream: str, load: Load, share: Share, value: bytes
    ) -> tuple[socket.socket, Publisher]:
        unary = load.window == 1
        template = messages.request(stream, value, load.policy)
        host, port = self.server.grpc
        headers = messages.headers(
            f"{host}:{port}", "Publish" if unary else "PublishAsync", messages.CALL_SECONDS if unary else None
        )
        opening = messages.opening(RECEIVE_WINDOW)
        if not unary:
            opening += http2.frame(http2.HEADERS, http2.END_HEADERS, STREAM_ID, headers)
        connection = connect(self.server.grpc)
        try:
            connection.sendall(opening)
        except BaseException:
            connection.close()
            raise
        return connection, GrpcPublisher(
            template.data,
            messages=share.messages,
            window=load.window,
            serial_at=template.serial_at,
            stamp_at=template.stamp_at,
            acked=load.acked,
            first_serial=share.first_serial,
            interval_ns=share.interval_ns,
            phase_ns=share.phase_ns,
            headers=headers if unary else b"",
            receive_window=RECEIVE_WINDOW,
            max_frame=http2.DEFAULT_FRAME_SIZE,
        )


@asynccontextmanager
async def liftbridge(options: argparse.Namespace, sync: str) -> AsyncIterator[LiftbridgeTarget]:
    """Run the server that the options ask for, for a block.

    Raises:
        BenchError: it does not start, or ends too early.
    """
    async with common.server_under_test(options, sync) as server:
        async with streams.connect(server) as api:
            yield LiftbridgeTarget(server, api)
