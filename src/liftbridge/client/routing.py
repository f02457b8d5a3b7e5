"""Which server a call goes to, and when it is tried again.

Three kinds of calls (client-behaviour of the official clients): general ones, which any server answers; those
that the leader of a partition answers; and those for one server by its id. What is known about the cluster is
kept until a call shows that it is out of date.

Invariants: an attempt is repeated only after UNAVAILABLE, or, for a leader, FAILED_PRECONDITION; every call
    has a
deadline, which covers all its attempts; what it fails with in the end is what the last attempt said.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from liftbridge.client.connection import Connection, split_address
from liftbridge.client.errors import (
    DeadlineExceededError,
    LiftbridgeError,
    NotFoundError,
    RpcError,
    StatusCode,
    TlsError,
    UnavailableError,
)
from liftbridge.client.options import Options
from liftbridge.client.pool import Pool
from liftbridge.client.values import Metadata, PartitionInfo, StreamInfo, metadata_of
from liftbridge.proto import api_pb2

_T = TypeVar("_T")
_LONGEST_PAUSE = 1.0


class Pauses:
    """The time left for attempts, and the pauses between them."""

    def __init__(self, timeout: float, pause: float) -> None:
        self.timeout = timeout
        self._deadline = anyio.current_time() + timeout
        self._pause = pause

    @property
    def left(self) -> float:
        """Seconds until the deadline; never less than a millisecond, so that it can be a time-out."""
        return max(self._deadline - anyio.current_time(), 0.001)

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return anyio.current_time() >= self._deadline

    async def wait(self) -> bool:
        """Wait before the next attempt; False if there is no time for one."""
        pause = self._pause * random.uniform(0.8, 1.2)  # noqa: S311  # spreads clients, hides nothing
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if anyio.current_time() + pause >= self._deadline:
            return False
        await anyio.sleep(pause)
        return True


class Router:
    """Finds servers and sends them calls."""

    def __init__(self, bootstrap: Sequence[str], pool: Pool, options: Options) -> None:
        for address in bootstrap:
            split_address(address)
        if not bootstrap:
            raise ValueError("a client needs the address of a server, host:port")
        self._bootstrap = list(bootstrap)
        self._pool = pool
        self._options = options
        self._known = Metadata({}, {})
        self._addresses = list(bootstrap)
        self._next = 0

    # General calls.

    async def call(self, method: str, request: bytes, timeout: float) -> bytes:
        """Make a call that any server answers, at another one after UNAVAILABLE.

        Raises:
            RpcError: `cut_off` tells of the attempts before the last.
        """

        async def attempt(left: float) -> bytes:
            connection = await self._pool.get(self._any())
            return await connection.unary(method, request, left)

        return await self._repeat(attempt, timeout, (StatusCode.UNAVAILABLE,))

    def _any(self) -> str:
        """The next address: what failed is not asked twice in a row if there is another."""
        return self._addresses[self._next % len(self._addresses)]

    def prefer_another(self) -> None:
        """The server that general calls go to does not answer: try the next one."""
        self._next += 1

    async def find_first(self) -> None:
        """Let general calls begin with the first server that can be reached now.

        Raises:
            UnavailableError: each was tried once, and this is what the last attempt said.
        """
        for attempts_left in reversed(range(len(self._addresses))):
            try:
                await self.any_connection()
            except UnavailableError:
                if not attempts_left:
                    raise
                self.prefer_another()
            else:
                return

    async def any_connection(self) -> Connection:
        """A connection to the server that general calls go to.

        Raises:
            UnavailableError: it cannot be reached; `prefer_another` before the next attempt.
        """
        return await self._pool.get(self._any())

    async def _repeat(
        self, attempt: Callable[[float], Awaitable[_T]], timeout: float, codes: Sequence[StatusCode]
    ) -> _T:
        pauses = Pauses(timeout, self._options.retry_pause)
        cut_off = False
        last: RpcError | None = None
        while True:
            try:
                with anyio.fail_after(pauses.left):
                    return await attempt(pauses.left)
            except TlsError:
                raise
            except RpcError as error:
                error.cut_off = cut_off
                if isinstance(error, DeadlineExceededError) and last is not None:
                    raise last from None  # it says more than that the time is over
                if error.code not in codes:
                    raise
                cut_off = cut_off or error.may_have_run
                last = error
            except TimeoutError:
                if last is None:
                    text = f"no server answered in {timeout:g} s"
                    last = DeadlineExceededError(StatusCode.DEADLINE_EXCEEDED, text)
                raise last from None
            self.prefer_another()
            if not await pauses.wait():
                raise last

    # Metadata.

    async def metadata(
        self, streams: Sequence[str] = (), groups: Sequence[str] = (), timeout: float | None = None
    ) -> Metadata:
        """Ask for metadata and remember what it says.

        Raises:
            RpcError: no server answered.
        """
        request = api_pb2.FetchMetadataRequest(streams=streams, groups=groups)
        raw = await self.call("FetchMetadata", request.SerializeToString(), timeout or self._options.timeout)
        found = metadata_of(api_pb2.FetchMetadataResponse.FromString(raw))
        self._remember(found, set(streams))
        return found

    def _remember(self, found: Metadata, asked: set[str]) -> None:
        streams = dict(found.streams)
        if asked:
            streams = {
                **{name: info for name, info in self._known.streams.items() if name not in asked},
                **streams,
            }
        self._known = Metadata(found.brokers, streams)
        if len(found.brokers) == 1:
            # It is the one that answered, so the address that worked is kept, whatever it advertises.
            return
        addresses = [broker.address for broker in found.brokers.values()]
        current = self._any()
        self._addresses = [*self._bootstrap, *(a for a in addresses if a not in self._bootstrap)]
        if current in self._addresses:
            self._next = self._addresses.index(current)

    def forget(self, stream: str) -> None:
        """What is known of a stream has proved wrong."""
        self._known = Metadata(
            self._known.brokers, {name: info for name, info in self._known.streams.items() if name != stream}
        )

    async def stream(self, name: str, timeout: float | None = None) -> StreamInfo:
        """What is known of a stream, asked for if nothing is.

        Raises:
            NotFoundError: there is no such stream.
            RpcError: no server answered.
        """
        info = self._known.streams.get(name)
        if info is None:
            info = (await self.metadata([name], timeout=timeout)).streams.get(name)
        if info is None:
            raise NotFoundError(StatusCode.NOT_FOUND, f"there is no stream {name!r}")
        return info

    async def partition(self, stream: str, partition: int, timeout: float | None = None) -> PartitionInfo:
        """As `stream`, for one partition of it."""
        info = await self.stream(stream, timeout)
        if partition not in info.partitions:
            # The server may have been told of it after us.
            self.forget(stream)
            info = await self.stream(stream, timeout)
        if partition not in info.partitions:
            text = f"stream {stream!r} has no partition {partition}"
            raise NotFoundError(StatusCode.NOT_FOUND, text)
        return info.partitions[partition]

    # Calls for one server.

    def address_of(self, server: str) -> str:
        """The address of a server by its id.

        Raises:
            UnavailableError: no server of that id is known.
        """
        broker = self._known.brokers.get(server)
        if broker is None:
            text = f"server {server!r} is not known" if server else "there is no leader"
            raise UnavailableError(StatusCode.UNAVAILABLE, text)
        if len(self._known.brokers) == 1:
            return self._any()
        return broker.address

    async def server(self, server: str) -> Connection:
        """A connection to a server by its id.

        Raises:
            UnavailableError: it is not known or cannot be reached.
        """
        return await self._pool.get(self.address_of(server))

    async def leader(self, stream: str, partition: int, *, replica: bool = False) -> Connection:
        """A connection to the leader of a partition, or with `replica` to any in-sync replica.

        Raises:
            NotFoundError: there is no such partition.
            UnavailableError: it is not known or cannot be reached.
        """
        info = await self.partition(stream, partition)
        server = info.leader
        if replica:
            servers = [name for name in info.isr if name in self._known.brokers]
            server = random.choice(servers) if servers else info.leader  # noqa: S311
        return await self.server(server)

    async def call_leader(
        self, method: str, request: bytes, stream: str, partition: int, timeout: float
    ) -> bytes:
        """Make a call that the leader of a partition answers; looks it up again when it is another.

        Raises:
            NotFoundError: there is no such partition.
            RpcError: as the last attempt said.
        """

        async def attempt(left: float) -> bytes:
            try:
                connection = await self.leader(stream, partition)
                return await connection.unary(method, request, left)
            except LiftbridgeError:
                self.forget(stream)
                raise

        return await self._repeat(attempt, timeout, (StatusCode.UNAVAILABLE, StatusCode.FAILED_PRECONDITION))
