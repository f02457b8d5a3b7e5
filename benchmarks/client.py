"""How fast `liftbridge.client` is: messages published with an ack for each, and messages read and decoded.

`publish` sends batches through one publisher and waits for all acks; `publish one by one` waits for each
before the next; `subscribe` reads a stream from its beginning to its end as `Message` objects, by `async for`
and by `batch`. The server is one of its own, sync policy `never`; the client runs in this process, on Trio
and on asyncio.

    python benchmarks/client.py [--messages 100000] [--size 128] [--repeat 5] [--data-dir .]
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import trio
from tables import Spent, machine_line, spread, table

import liftbridge.client as lc
from liftbridge.bench import machine
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.server import ServerUnderTest, own_server

BATCH = 1_000
ONE_BY_ONE = 100  # times fewer messages


async def publish(client: lc.Client, name: str, values: list[bytes]) -> int:
    async with client.publisher(name) as publisher:
        for place in range(0, len(values), BATCH):
            await publisher.send_batch(values[place : place + BATCH])
    return len(values)


async def publish_one_by_one(client: lc.Client, name: str, values: list[bytes]) -> int:
    values = values[: len(values) // ONE_BY_ONE]
    for value in values:
        await client.publish(name, value)
    return len(values)


async def subscribe(client: lc.Client, name: str, values: list[bytes]) -> int:
    count = 0
    async with client.subscribe(name, start="earliest", stop=len(values) - 1) as messages:
        async for _ in messages:
            count += 1
    return count


async def subscribe_batches(client: lc.Client, name: str, values: list[bytes]) -> int:
    count = 0
    async with client.subscribe(name, start="earliest", stop=len(values) - 1) as messages:
        while batch := await messages.batch():
            count += len(batch)
    return count


WORKLOADS: dict[str, Callable[[lc.Client, str, list[bytes]], Awaitable[int]]] = {
    "publish": publish,
    "publish one by one": publish_one_by_one,
    "subscribe, `async for`": subscribe,
    "subscribe, `batch`": subscribe_batches,
}


async def measure(server: ServerUnderTest, options: argparse.Namespace, prefix: str) -> list[list[str]]:
    """All workloads on the running event loop; the rows of the table."""
    host, port = server.grpc
    values = [bytes(options.size)] * options.messages
    rows = []
    async with lc.connect(f"{host}:{port}") as client:
        await client.create_stream(full := f"{prefix}-full")
        await publish(client, full, values)
        for workload, work in WORKLOADS.items():
            rates, costs, server_costs = [], [], []
            for number in range(options.repeat + 1):
                name = full
                if workload.startswith("publish"):
                    await client.create_stream(name := f"{prefix}-{len(rows)}-{number}")
                cpu = CpuMeter(server.pids)
                with Spent() as spent:
                    count = await work(client, name, values)
                if number:  # the first is to warm up
                    rates.append(count / spent.wall)
                    costs.append(spent.cpu * 1e6 / count)
                    server_costs.append((cpu.used()["server"] or 0.0) * 1e6 / count)
            rows.append([workload, spread(rates, 0), spread(costs, 2), spread(server_costs, 2)])
    return rows


async def main(options: argparse.Namespace) -> None:
    facts = machine.describe()
    print(machine_line(facts), flush=True)
    head = ["", "messages/s", "client CPU us/message", "server CPU us/message"]
    async with own_server("never", options.data_dir) as server:
        for backend in ("trio", "asyncio"):
            work = functools.partial(anyio.run, measure, server, options, backend, backend=backend)
            rows = await trio.to_thread.run_sync(work)
            print(f"### {options.messages:,} messages of {options.size} bytes, {backend}\n")
            print(table(head, rows), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=128, help="bytes in a value (128)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, default=Path())
    trio.run(main, parser.parse_args())
