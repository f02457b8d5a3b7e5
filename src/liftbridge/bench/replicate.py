"""`liftbridge-bench replicate`: messages that are acked when every in-sync replica has them.

Three servers on one machine, with one NATS server, and in them streams of one replica and of three, which
take turns: what replication costs is the difference. Everything else is as in `publish`: policy `ALL`, every
ack checked, and every message stored once. All servers share the processors with the load, so this says what
a machine can do, not what three machines can.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import trio

from liftbridge.bench import common, publish, rounds, streams
from liftbridge.bench.errors import BenchError
from liftbridge.bench.liftbridge_target import LiftbridgeTarget
from liftbridge.bench.report import Result
from liftbridge.bench.server import ServerUnderTest, own_cluster
from liftbridge.bench.target import Target
from liftbridge.proto import api_pb2

SERVERS = 3
REPLICAS = (1, 3)


class ReplicatedTarget(LiftbridgeTarget):
    """A cluster, with streams of so many replicas."""

    def __init__(
        self, server: ServerUnderTest, apis: Mapping[tuple[str, int], streams.Streams], replicas: int
    ) -> None:
        super().__init__(server, apis[server.grpc])
        self.name = f"{replicas} replica{'s' if replicas > 1 else ''}"
        self._apis = apis
        self._replicas = replicas

    def stream(self) -> AbstractAsyncContextManager[str]:
        """Make a stream with one partition, and its replicas, for a block."""
        return self._api.temporary(self._replicas)

    async def stored(self, stream: str) -> tuple[int, int]:
        """Return how many messages of a stream are committed, and how many are stored, as its leader says."""
        with trio.fail_after(streams.CALL_SECONDS):
            found = await self._api.api.FetchMetadata(api_pb2.FetchMetadataRequest(streams=[stream]))
        leader = found.streamMetadata[0].partitions[0].leader
        (broker,) = (broker for broker in found.brokers if broker.id == leader)
        high_watermark, newest = await self._apis[broker.host, broker.port].offsets(stream)
        return high_watermark + 1, newest + 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this workload."""
    common.add_arguments(parser, size=256)
    common.add_sync(parser, default="both")
    publish.add_load_arguments(parser, window=publish.DEFAULT_WINDOW)
    parser.set_defaults(messages=None, ack_policy="all")


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; a result for each sync policy and number of replicas. Raises BenchError."""
    if options.server is not None:
        raise BenchError("replicate runs servers of its own, so it takes no --server")
    load = publish.load_of(options)

    async def once(target: Target, _: None, label: str, warm_up: bool) -> rounds.Measured:
        fewer = load.only(load.messages // publish.WARM_UP_SHARE)
        return await publish.run_once(target, fewer if warm_up else load, label)

    settings = publish.settings_of(load)
    return await rounds.measure(options, publish.FIGURES, settings, once, rounds.nothing, targets=_targets)


@asynccontextmanager
async def _targets(options: argparse.Namespace, sync: str) -> AsyncIterator[list[Target]]:
    common.check_data_dir(options)
    async with own_cluster(sync, options.data_dir, SERVERS) as server, AsyncExitStack() as stack:
        apis = {
            each.grpc: await stack.enter_async_context(streams.connect(each))
            for each in (server, *server.others)
        }
        yield [ReplicatedTarget(server, apis, replicas) for replicas in REPLICAS]
