"""Several real servers on one real NATS server: how they are started, killed and asked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from calls import PATIENCE
from harness import Api, Nats, Server

from liftbridge.proto import api_pb2


class Servers:
    """Servers of one cluster, by number; the first begins it, the others join.

    Attributes:
        all: the servers, running or not.
        nats: the NATS server that they share.
    """

    def __init__(self, directory: Path, count: int, config: dict[str, Any] | None = None) -> None:
        self.nats = Nats(directory / "nats")
        self.all = [
            Server(
                directory / f"server{number}",
                {
                    "clustering.server.id": f"s{number}",
                    "clustering.raft.bootstrap.seed": number == 0,
                    "logging.level": "info",
                    **(config or {}),
                },
                embedded=False,
            )
            for number in range(count)
        ]

    def __enter__(self) -> Servers:
        self.nats.start()
        try:
            for server in self.all:
                server.config["nats.servers"] = [self.nats.url]
                server.start()
            self.wait_members(len(self.all))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        for server in self.all:
            server.close()
        self.nats.stop()

    def __getitem__(self, number: int) -> Server:
        return self.all[number]

    def named(self, server_id: str) -> Server:
        """The server with that id."""
        return self.all[int(server_id[1:])]

    def running(self) -> Iterator[Server]:
        """Those that run."""
        return (server for server in self.all if server.process is not None)

    def wait_members(self, count: int) -> None:
        """Wait until every running server knows of so many that take part."""
        for server in self.running():
            api = server.api()
            until(lambda api=api: len(metadata(api).brokers) == count)

    def any_api(self) -> Api:
        """Stubs to one that runs."""
        return next(self.running()).api()

    def leader_of(self, stream: str, partition: int = 0) -> Server:
        """Who leads a partition, as soon as the servers agree on somebody who runs."""
        return until(lambda: self._leader(stream, partition))

    def _leader(self, stream: str, partition: int) -> Server | None:
        leaders = {described(server.api(), stream, partition).leader for server in self.running()}
        if len(leaders) != 1 or leaders == {""}:
            return None
        leader = self.named(leaders.pop())
        return leader if leader.process is not None else None


def metadata(api: Api, *streams: str) -> Any:
    """What a server says of the cluster."""
    return api.FetchMetadata(api_pb2.FetchMetadataRequest(streams=streams), timeout=PATIENCE)


def described(api: Api, stream: str, partition: int = 0) -> Any:
    """What a server says of a partition."""
    (found,) = metadata(api, stream).streamMetadata
    return found.partitions[partition]


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until something is true; returns it. Servers that are not there (yet) make nothing true."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(grpc.RpcError):
            if found := condition():
                return found
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def values(api: Api, stream: str, count: int, partition: int = 0, **fields: Any) -> Sequence[bytes]:
    """The first values of a partition."""
    request = api_pb2.SubscribeRequest(
        stream=stream, partition=partition, startPosition=api_pb2.EARLIEST, **fields
    )
    call = api.Subscribe(request, timeout=PATIENCE)
    found: list[bytes] = []
    try:
        next(call)  # the handshake
        while len(found) < count:
            found.append(next(call).value)
    finally:
        call.cancel()
    return found
