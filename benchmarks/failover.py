"""How long a cluster of three servers is without a leader, in several ways to lose one.

    python benchmarks/failover.py [--runs 30] [--partitions 1] [--sync always]

Each run takes one server away and brings it back. What is measured, with one message after the other of ack
policy ALL, or one stream created after the other, from a client that knows all servers:

- killed: from `kill -9` of the leader of a partition to the first ack after it,
- stopped: the longest time between two acks while the leader is told to stop (SIGTERM),
- decider killed: from `kill -9` of the server that decides on metadata to the first stream created after it,
- back in sync: from when a killed server serves clients again until it is in sync with everything.

With more partitions than one, "killed" is until the last of them has a leader. The servers, NATS and the
client share one machine. Times are of the wall clock, in seconds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from liftbridge.bench.server import Life, run
from liftbridge.client import AckPolicy, Client, LiftbridgeError, Options, connect
from liftbridge.nats.embedded import EmbeddedNats

SERVERS = 3
STREAM = "failover"
ATTEMPT_SECONDS = 0.2
PATIENCE_SECONDS = 60.0


class Member:
    """A server of the cluster, started again and again on its directory."""

    def __init__(self, directory: Path, sync: str, nats: str, nursery: trio.Nursery) -> None:
        self._run = partial(run, directory, sync, joins=nats)
        self._nursery = nursery
        self.life: Life | None = None
        self._end = trio.Event()
        self._ended = trio.Event()

    async def start(self) -> None:
        self._end, self._ended = trio.Event(), trio.Event()
        await self._nursery.start(self._live)

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        async with self._run() as self.life:
            task_status.started()
            await self._end.wait()
        self.life = None
        self._ended.set()

    async def kill(self) -> None:
        assert self.life is not None
        await self.life.kill()
        self._end.set()
        await self._ended.wait()

    async def stop(self) -> None:
        self._end.set()
        await self._ended.wait()

    @property
    def address(self) -> str:
        assert self.life is not None
        return "{}:{}".format(*self.life.server.grpc)


class Cluster:
    """The servers, and a client to them."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    @asynccontextmanager
    async def client(self):
        addresses = [member.address for member in self.members if member.life is not None]
        options = Options(
            ack_timeout=ATTEMPT_SECONDS, connect_timeout=ATTEMPT_SECONDS, timeout=PATIENCE_SECONDS
        )
        async with connect(*addresses, options=options) as client:
            yield client

    async def leader(self, client: Client) -> Member:
        """Who leads the first partition."""
        while True:
            found = await client.metadata([STREAM])
            leader = found.streams[STREAM].partitions[0].leader
            for broker in found.brokers.values():
                for member in self.members:
                    at = f":{broker.port}"
                    if broker.id == leader and member.life is not None and member.address.endswith(at):
                        return member
            await trio.sleep(0.01)


async def acked(client: Client, partition: int = 0) -> None:
    """Publish until a message is acked."""
    for _ in range(10_000):
        if await attempt(client, partition):
            return
        await trio.sleep(0.005)
    raise SystemExit(f"partition {partition} takes no messages any more")


async def attempt(client: Client, partition: int) -> bool:
    """Publish once; whether it was acked."""
    try:
        await client.publish(STREAM, b"x", partition=partition, ack_policy=AckPolicy.ALL)
    except LiftbridgeError:
        return False
    return True


async def in_sync(client: Client) -> None:
    """Wait until all replicas are."""
    while True:
        found = await client.metadata([STREAM])
        partitions = found.streams[STREAM].partitions.values()
        if all(len(each.isr) == SERVERS for each in partitions):
            return
        await trio.sleep(0.005 + len(partitions) / 10_000)  # asking for many costs the servers something


async def killed(cluster: Cluster, partitions: int) -> float:
    async with cluster.client() as client:
        leader = await cluster.leader(client)
        await acked(client)
        began = time.monotonic()
        await leader.kill()
        async with trio.open_nursery() as nursery:
            for partition in range(partitions) if partitions <= 16 else (0, partitions // 2, partitions - 1):
                nursery.start_soon(acked, client, partition)
        took = time.monotonic() - began
    await leader.start()
    return took


async def stopped(cluster: Cluster, partitions: int) -> float:
    longest = 0.0
    async with cluster.client() as client:
        leader = await cluster.leader(client)
        async with trio.open_nursery() as nursery:
            over = trio.Event()

            async def publish() -> None:
                nonlocal longest
                last = time.monotonic()
                while not over.is_set():
                    await acked(client)
                    now = time.monotonic()
                    longest, last = max(longest, now - last), now

            nursery.start_soon(publish)
            await trio.sleep(0.1)
            longest = 0.0
            await leader.stop()
            await trio.sleep(0.1)
            over.set()
    await leader.start()
    return longest


async def back_in_sync(cluster: Cluster, partitions: int) -> float:
    async with cluster.client() as client:
        leader = await cluster.leader(client)
        other = next(member for member in cluster.members if member is not leader)
        await other.kill()
        for _ in range(100):
            await acked(client)
        await other.start()
        began = time.monotonic()
        await in_sync(client)
        return time.monotonic() - began


async def decider_killed(cluster: Cluster, partitions: int) -> float:
    """Whoever it is: each server is killed in turn, and the longest time counts."""
    longest = 0.0
    for victim in cluster.members:
        await victim.kill()
        began = time.monotonic()
        async with cluster.client() as client:
            while True:
                try:
                    name = f"s{time.monotonic_ns()}"
                    await client.create_stream(name, name, timeout=1.0)
                except LiftbridgeError:
                    continue
                break
        longest = max(longest, time.monotonic() - began)
        await victim.start()
    return longest


SCENARIOS: dict[str, Callable[[Cluster, int], Awaitable[float]]] = {
    "killed": killed,
    "stopped": stopped,
    "decider killed": decider_killed,
    "back in sync": back_in_sync,
}


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="liftbridge-failover-", dir=options.data_dir) as name:
        async with trio.open_nursery() as nursery:
            nats = EmbeddedNats(
                config_file=None,
                host="127.0.0.1",
                port=0,
                log_to=logging.getLogger("nats"),
                runtime_dir=Path(name) / "nats",
            )
            url = await nursery.start(nats.run)
            members = [Member(Path(name) / str(each), options.sync, url, nursery) for each in range(SERVERS)]
            for member in members:
                await member.start()
            cluster = Cluster(members)
            async with cluster.client() as client:
                await client.create_stream(
                    STREAM, STREAM, partitions=options.partitions, replication_factor=SERVERS, min_isr=2
                )
                await acked(client)
            print(f"{options.partitions} partitions, sync {options.sync}, {options.runs} runs; seconds")
            for title in options.only or SCENARIOS:
                took = []
                for _ in range(options.runs):
                    took.append(await SCENARIOS[title](cluster, options.partitions))
                    async with cluster.client() as client:
                        await in_sync(client)
                took.sort()
                middle, last = (
                    took[len(took) // 2],
                    took[-1],
                )  # of so few runs the last is the 99th percentile
                print(f"{title:>16}  median {middle:.3f}  p99 {last:.3f}", flush=True)
            for member in members:
                await member.stop()
            nursery.cancel_scope.cancel()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--sync", choices=("never", "interval", "always"), default="always")
    parser.add_argument("--only", action="append", choices=tuple(SCENARIOS))
    parser.add_argument("--data-dir", type=Path, default=Path())
    return parser


if __name__ == "__main__":
    trio.run(main, parser().parse_args())
