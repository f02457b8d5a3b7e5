"""Streams for a benchmark, through the server's own API: made, watched while they fill, deleted."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import purerpc
import trio

from liftbridge.bench.errors import BenchError
from liftbridge.bench.server import ServerUnderTest
from liftbridge.proto import api_grpc, api_pb2

CALL_SECONDS = 60.0


class Streams:
    """The API of the server under test, as far as a benchmark needs it."""

    def __init__(self, api: api_grpc.APIStub) -> None:
        self.api = api

    @asynccontextmanager
    async def temporary(self, replicas: int = 1) -> AsyncIterator[str]:
        """Create a stream with one partition for the block. Yields its name, which is its subject as well."""
        name = await self.create(replicas)
        try:
            yield name
        finally:
            with trio.move_on_after(CALL_SECONDS, shield=True):
                await self.api.DeleteStream(api_pb2.DeleteStreamRequest(name=name))

    async def create(self, replicas: int = 1) -> str:
        """Create a stream with one partition; returns its name, which is its subject as well."""
        # Short, as every message carries stream and subject to the subscriber.
        name = f"bench-{secrets.token_hex(4)}"
        with trio.fail_after(CALL_SECONDS):
            await self.api.CreateStream(
                api_pb2.CreateStreamRequest(name=name, subject=name, partitions=1, replicationFactor=replicas)
            )
        return name

    async def offsets(self, stream: str) -> tuple[int, int]:
        """Return high watermark and newest offset of a stream's only partition."""
        with trio.fail_after(CALL_SECONDS):
            response = await self.api.FetchPartitionMetadata(
                api_pb2.FetchPartitionMetadataRequest(stream=stream, partition=0)
            )
        return response.metadata.highWatermark, response.metadata.newestOffset


@asynccontextmanager
async def connect(server: ServerUnderTest) -> AsyncIterator[Streams]:
    """Connect to the server's API for the block.

    Raises:
        BenchError: it cannot be reached.
    """
    host, port = server.grpc
    async with AsyncExitStack() as stack:
        try:
            channel = await stack.enter_async_context(purerpc.insecure_channel(host, port))
        except OSError as error:
            raise BenchError(f"no server answers at {host}:{port}: {error}") from error
        yield Streams(api_grpc.APIStub(channel))  # type: ignore[no-untyped-call]
