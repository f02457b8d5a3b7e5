"""`liftbridge-bench subscribe`: replay of a stream, first message to last, to a client that only counts.

The stream is filled first, which is not measured; what is replayed is in the page cache then, as what is
read soon after it was written is. The clock runs from the request until the last message has been received.
"""

from __future__ import annotations

import argparse

import trio

from liftbridge.bench import common, replay, streams
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.errors import BenchError
from liftbridge.bench.ingest import fill
from liftbridge.bench.progress import PROGRESS_SECONDS, Progress
from liftbridge.bench.report import Figure, Result, Run
from liftbridge.bench.server import ServerUnderTest

# Large enough that the server never waits for it on one machine.
DEFAULT_WINDOW = 16 << 20

FIGURES = (
    Figure("messages_per_second", "messages/s"),
    Figure("megabytes_per_second", "MB/s of payload", 1),
    Figure("server_cpu_us_per_message", "server CPU us/message", 3),
    Figure("generator_cpu_us_per_message", "subscriber CPU us/message", 3),
    Figure("seconds", "seconds", 3),
    Figure("wire_bytes_per_message", "bytes/message on the wire", 1),
    Figure("bytes_per_data_frame", "bytes/DATA frame"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this workload."""
    common.add_arguments(parser)
    parser.add_argument(
        "--window",
        type=_window,
        default=DEFAULT_WINDOW,
        help=f"HTTP/2 flow-control window in bytes ({DEFAULT_WINDOW}; {replay.HTTP2_WINDOW} is HTTP/2's own)",
    )


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; one result. Raises BenchError."""
    async with common.server_under_test(options, "never") as server:
        disk = await common.disk_speed(server)
        async with streams.connect(server) as api:
            async with api.temporary() as stream:
                filled = await fill(api, server, stream, options.messages, options.size, "filling the stream")
                if filled["lost"]:
                    raise BenchError(f"{filled['lost']} messages were lost while the stream was filled")
                await _run_once(server, stream, options, "warm-up")
                runs = [
                    await _run_once(server, stream, options, f"replay {number + 1} of {options.repeat}")
                    for number in range(options.repeat)
                ]
    settings = {
        "sync": server.sync,
        "messages": options.messages,
        "size": options.size,
        "subscribers": 1,
        "partitions": 1,
        "window": options.window,
    }
    return [Result(settings, FIGURES, runs, disk)]


async def _run_once(server: ServerUnderTest, stream: str, options: argparse.Namespace, label: str) -> Run:
    messages = options.messages
    async with replay.connect(server.grpc, options.window) as connection:
        cpu = CpuMeter(server.pids)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show, connection, messages, label)
            replayed = await connection.run(stream, messages)
            used = cpu.used()["server"]
            nursery.cancel_scope.cancel()
    seconds = replayed.duration_ns / 1e9
    return {
        "messages_per_second": messages / seconds,
        "megabytes_per_second": messages * options.size / seconds / 1e6,
        "server_cpu_us_per_message": None if used is None else used * 1e6 / messages,
        "generator_cpu_us_per_message": replayed.cpu_ns / 1e3 / messages,
        "seconds": seconds,
        "wire_bytes_per_message": replayed.data_bytes / messages,
        "bytes_per_data_frame": replayed.data_bytes / replayed.data_frames,
    }


async def _show(connection: replay.Replay, messages: int, label: str) -> None:
    with Progress(messages, label) as bar:
        while True:
            bar.update(connection.messages)
            await trio.sleep(PROGRESS_SECONDS)


def _window(text: str) -> int:
    window = int(text.replace("_", ""))
    if not replay.HTTP2_WINDOW <= window < 1 << 31:
        raise argparse.ArgumentTypeError(f"a window lies between {replay.HTTP2_WINDOW} and {2**31 - 1} bytes")
    return window
