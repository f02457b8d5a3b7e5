"""What every workload takes on the command line, and the servers it then runs against."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from liftbridge.bench import disk
from liftbridge.bench.errors import BenchError
from liftbridge.bench.server import ServerUnderTest, address, own_server

SYNC_POLICIES = ("never", "interval", "always")
SYNC_UNKNOWN = "as the running server has it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every workload."""
    parser.add_argument("--messages", type=positive, default=1_000_000, help="messages in a run (1000000)")
    parser.add_argument("--size", type=positive, default=128, help="bytes in a message (128)")
    parser.add_argument("--repeat", type=positive, default=3, help="runs; the median is reported (3)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(),
        help="where the server's temporary data directory is made; its disk is measured (current directory)",
    )
    running = parser.add_argument_group(
        "a server that runs already, instead of one started for the benchmark"
    )
    running.add_argument("--server", help="its gRPC address, host:port")
    running.add_argument(
        "--nats", default="127.0.0.1:4222", help="its NATS server, host:port (127.0.0.1:4222)"
    )
    running.add_argument("--server-pid", type=positive, help="its process id, to measure its CPU time")
    running.add_argument("--nats-pid", type=positive, help="that of its NATS server")


@asynccontextmanager
async def server_under_test(options: argparse.Namespace, sync: str) -> AsyncIterator[ServerUnderTest]:
    """The server that the options name, or one of our own with the sync policy `sync`.

    Raises:
        BenchError: it does not start, or ends too early.
    """
    if options.server is not None:
        yield ServerUnderTest(
            address(options.server, 9292),
            address(options.nats, 4222),
            SYNC_UNKNOWN,
            options.server_pid,
            options.nats_pid,
        )
        return
    if not options.data_dir.is_dir():
        raise BenchError(f"--data-dir {options.data_dir} is no directory; create it, or name another")
    async with own_server(sync, options.data_dir) as server:
        yield server


async def disk_speed(server: ServerUnderTest) -> dict[str, float]:
    """What the disk under the server's data does; nothing if that is not known."""
    if server.directory is None:
        return {}
    speed = await trio.to_thread.run_sync(disk.probe, server.directory)
    return speed.as_dict()


def positive(text: str) -> int:
    """A number of at least 1 from the command line; underscores are allowed in it."""
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number
