"""What many subscribers of one partition get together, and what each of them costs the server.

Two workloads for each number of subscribers. `replay`: all read a stream from its beginning, at the same
time. `tail`: all wait at its end for messages that come in blocks, so many blocks a second; this includes
storing them. The server is one of its own; its subscribers are threads of this process that count, and what
they cost is told beside it, as they take it from the same machine.

    python benchmarks/fanout.py [--subscribers 1 10 100 1000] [--messages 100000] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from tables import machine_line, spread, table

from liftbridge.bench import machine, publish, replay, streams
from liftbridge.bench import messages as encoded
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.liftbridge_target import LiftbridgeTarget
from liftbridge.bench.server import ServerUnderTest, own_server
from liftbridge.bench.sockets import allow_many, connect, greet
from liftbridge.bench.subscribe import DEFAULT_WINDOW, FILL_WINDOW
from liftbridge.bench.target import Load, Received
from liftbridge.proto import api_pb2

SIZE = 128
BLOCK_MESSAGES = 100
BLOCKS_PER_SECOND = 50
BLOCKS = 200
# So many deliveries bound a run with many subscribers, as each message goes to every one of them.
MOST_DELIVERIES = 20_000_000

Figures = dict[str, float]


@asynccontextmanager
async def connections(server: ServerUnderTest, count: int) -> AsyncIterator[list[replay.Replay]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(replay.connect(server.grpc, DEFAULT_WINDOW)) for _ in range(count)
        ]


async def replay_all(target: LiftbridgeTarget, stream: str, messages: int, subscribers: int) -> Figures:
    received: list[Received] = []

    async def one(connection: replay.Replay) -> None:
        received.append(await connection.run(stream, messages))

    async with connections(target.server, subscribers) as all_of_them:
        cpu = CpuMeter(target.server.pids)
        async with trio.open_nursery() as nursery:
            for connection in all_of_them:
                nursery.start_soon(one, connection)
        return figures(messages, received, min(one.begin_ns for one in received), cpu)


async def tail_all(target: LiftbridgeTarget, blocks: int, subscribers: int) -> Figures:
    messages = blocks * BLOCK_MESSAGES
    received: list[Received] = []

    async def one(connection: replay.Replay, request: api_pb2.SubscribeRequest) -> None:
        received.append(await connection.subscribe(request, messages))

    async with target.stream() as stream, connections(target.server, subscribers) as all_of_them:
        request = api_pb2.SubscribeRequest(
            stream=stream,
            startPosition=api_pb2.NEW_ONLY,
            stopPosition=api_pb2.STOP_OFFSET,
            stopOffset=messages - 1,
        )
        async with trio.open_nursery() as nursery:
            for connection in all_of_them:
                nursery.start_soon(one, connection, request)
            while not all(connection.live for connection in all_of_them):  # noqa: ASYNC110  # in threads
                await trio.sleep(0.01)
            cpu, begin_ns = CpuMeter(target.server.pids), time.monotonic_ns()
            await trio.to_thread.run_sync(publish_blocks, target.server.nats, stream, blocks)
        return figures(messages, received, begin_ns, cpu)


def publish_blocks(nats: tuple[str, int], subject: str, blocks: int) -> None:
    value = encoded.value(SIZE, stamped=False)
    block = encoded.nats_pub(subject, value) * BLOCK_MESSAGES
    with connect(nats) as connection:
        greet(connection)
        start = time.monotonic()
        for number in range(blocks):
            time.sleep(max(0.0, start + number / BLOCKS_PER_SECOND - time.monotonic()))
            connection.sendall(block)
        # What has not been taken when a connection is closed may be lost.
        connection.sendall(b"PING\r\n")
        answers = b""
        while b"PONG" not in answers:
            answers += connection.recv(4096)


def figures(messages: int, received: list[Received], begin_ns: int, cpu: CpuMeter) -> Figures:
    used = cpu.used()["server"]
    assert used is not None, "this system does not tell the CPU time of another process"
    deliveries = messages * len(received)
    return {
        "messages_per_second": deliveries / ((max(one.end_ns for one in received) - begin_ns) / 1e9),
        "server_cpu_us_per_message": used * 1e6 / deliveries,
        "server_cpu_ms_per_subscriber": used * 1e3 / len(received),
        "subscriber_cpu_us_per_message": sum(one.cpu_ns for one in received) / 1e3 / deliveries,
    }


COLUMNS = (
    ("messages_per_second", "messages/s, all", 0),
    ("server_cpu_us_per_message", "server CPU us/delivery", 3),
    ("server_cpu_ms_per_subscriber", "server CPU ms/subscriber", 2),
    ("subscriber_cpu_us_per_message", "subscriber CPU us/delivery", 3),
)


async def measure(
    options: argparse.Namespace, count: int, target: LiftbridgeTarget
) -> dict[str, list[Figures]]:
    """All runs with so many subscribers, by workload."""
    messages = min(options.messages, max(1, MOST_DELIVERIES // count))
    blocks = min(options.blocks, max(1, MOST_DELIVERIES // count // BLOCK_MESSAGES))
    async with target.stream() as stream:
        await publish.store(target, stream, Load(messages, SIZE, window=FILL_WINDOW), "filling the stream")
        await replay_all(target, stream, messages, 1)  # warm-up
        replays = [await replay_all(target, stream, messages, count) for _ in range(options.repeat)]
    tails = [await tail_all(target, blocks, count) for _ in range(options.repeat)]
    return {"replay": replays, "tail": tails}


async def main(options: argparse.Namespace) -> None:
    allow_many()
    facts = machine.describe()
    print(machine_line(facts), flush=True)
    curve: dict[int, dict[str, list[Figures]]] = {}
    async with own_server("never", options.data_dir) as server, streams.connect(server) as api:
        for count in options.subscribers:
            curve[count] = await measure(options, count, LiftbridgeTarget(server, api))
    for workload in ("replay", "tail"):
        print(f"### many subscribers, {workload}\n")
        rows = [
            [
                str(count),
                *(spread([run[key] for run in runs[workload]], places) for key, _, places in COLUMNS),
            ]
            for count, runs in curve.items()
        ]
        print(table(["subscribers", *(label for _, label, _ in COLUMNS)], rows), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": facts, "subscribers": curve}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subscribers", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--messages", type=int, default=100_000, help="in the stream that is replayed")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"of {BLOCK_MESSAGES} messages ({BLOCKS})")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path())
    parser.add_argument("--json", type=Path, help="file for all figures")
    trio.run(main, parser.parse_args())
