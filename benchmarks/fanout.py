"""What a delivered message costs the server when many subscribe to one partition.

Two workloads for each number of subscribers. `replay`: all read a stream from its beginning, at the same
time. `tail`: all wait at its end for messages that come in blocks, so many blocks a second; this includes
storing them. The server is one of its own; its subscribers are threads of this process that count.

    python benchmarks/fanout.py [--subscribers 1 10 100] [--messages 100000] [--repeat 3]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from liftbridge.bench.publisher import greet, publish_lines

from liftbridge.bench import machine, replay, streams
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.ingest import fill
from liftbridge.bench.server import ServerUnderTest, own_server
from liftbridge.proto import api_pb2

SIZE = 128
WINDOW = 16 << 20
BLOCK_MESSAGES = 100
BLOCKS_PER_SECOND = 50
BLOCKS = 200


@asynccontextmanager
async def connections(server: ServerUnderTest, count: int) -> AsyncIterator[list[replay.Replay]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replay.connect(server.grpc, WINDOW)) for _ in range(count)]


async def replay_all(server: ServerUnderTest, stream: str, messages: int, subscribers: int) -> float:
    """Server CPU us per delivered message."""
    async with connections(server, subscribers) as all_of_them:
        cpu = CpuMeter(server.pids)
        async with trio.open_nursery() as nursery:
            for connection in all_of_them:
                nursery.start_soon(connection.run, stream, messages)
        return used(cpu) / (messages * subscribers)


async def tail_all(server: ServerUnderTest, api: streams.Streams, subscribers: int) -> float:
    """Server CPU us per delivered message."""
    messages = BLOCKS * BLOCK_MESSAGES
    async with api.temporary() as stream, connections(server, subscribers) as all_of_them:
        request = api_pb2.SubscribeRequest(
            stream=stream,
            startPosition=api_pb2.NEW_ONLY,
            stopPosition=api_pb2.STOP_OFFSET,
            stopOffset=messages - 1,
        )
        async with trio.open_nursery() as nursery:
            for connection in all_of_them:
                nursery.start_soon(connection.subscribe, request, messages)
            while not all(connection.live for connection in all_of_them):  # noqa: ASYNC110  # in threads
                await trio.sleep(0.01)
            cpu = CpuMeter(server.pids)
            await trio.to_thread.run_sync(publish_blocks, server.nats, stream)
        return used(cpu) / (messages * subscribers)


def publish_blocks(nats: tuple[str, int], subject: str) -> None:
    block = publish_lines(subject, BLOCK_MESSAGES, SIZE)
    with socket.create_connection(nats) as connection:
        greet(connection)
        start = time.monotonic()
        for number in range(BLOCKS):
            time.sleep(max(0.0, start + number / BLOCKS_PER_SECOND - time.monotonic()))
            connection.sendall(block)
        # What has not been taken when a connection is closed may be lost.
        connection.sendall(b"PING\r\n")
        answers = b""
        while b"PONG" not in answers:
            answers += connection.recv(4096)


def used(cpu: CpuMeter) -> float:
    seconds = cpu.used()["server"]
    assert seconds is not None, "this system does not tell the CPU time of another process"
    return seconds * 1e6


async def main(options: argparse.Namespace) -> None:
    # Each subscriber is a thread.
    trio.to_thread.current_default_thread_limiter().total_tokens += max(options.subscribers)
    facts = machine.describe()
    print(f"{facts['cpu']}, {facts['python']}, commit {facts['commit']}, load before {facts['load']}\n")
    print("| subscribers | replay, server CPU us/message | tail, server CPU us/message |\n|---:|---:|---:|")
    async with own_server("never", options.data_dir) as server, streams.connect(server) as api:
        async with api.temporary() as stream:
            await fill(api, server, stream, options.messages, SIZE, "filling the stream")
            await replay_all(server, stream, options.messages, 1)  # warm-up
            for count in options.subscribers:
                replays = [
                    await replay_all(server, stream, options.messages, count) for _ in range(options.repeat)
                ]
                tails = [await tail_all(server, api, count) for _ in range(options.repeat)]
                cells = (
                    f"{statistics.median(figures):.3f} ({min(figures):.3f} to {max(figures):.3f})"
                    for figures in (replays, tails)
                )
                print(f"| {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subscribers", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--messages", type=int, default=100_000, help="in the stream that is replayed")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path())
    trio.run(main, parser.parse_args())
