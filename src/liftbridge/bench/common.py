"""What every workload takes on the command line, and the servers it then runs against."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from liftbridge.bench import disk, output
from liftbridge.bench.errors import BenchError
from liftbridge.bench.server import ServerUnderTest, address, own_server

SYNC_POLICIES = ("never", "interval", "always")
STOP_SECONDS = 20.0
SYNC_UNKNOWN = "as the running server has it"


def add_arguments(
    parser: argparse.ArgumentParser, *, messages: int = 1_000_000, size: int = 128, repeat: int = 3
) -> None:
    """Add the options of every workload, with these defaults."""
    parser.add_argument("--messages", type=positive, default=messages, help=f"messages in a run ({messages})")
    parser.add_argument("--size", type=positive, default=size, help=f"bytes in a message ({size})")
    parser.add_argument(
        "--repeat", type=positive, default=repeat, help=f"runs; the median is reported ({repeat})"
    )
    output.add_arguments(parser)
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


def add_sync(parser: argparse.ArgumentParser, default: str = "always") -> None:
    """Add `--sync`."""
    parser.add_argument(
        "--sync",
        choices=(*SYNC_POLICIES, "both"),
        default=default,
        help=f"sync policy of the server that is started ({default}); both: never, then always",
    )


def sync_policies(options: argparse.Namespace) -> list[str]:
    """The policies that `--sync` names; a server that runs already has the one it has."""
    return ["never", "always"] if options.sync == "both" and options.server is None else [options.sync]


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
    check_data_dir(options)
    async with own_server(sync, options.data_dir) as server:
        yield server


def check_data_dir(options: argparse.Namespace) -> None:
    """Raise BenchError if there is no `--data-dir`."""
    if not options.data_dir.is_dir():
        raise BenchError(f"--data-dir {options.data_dir} is no directory; create it, or name another")


async def disk_speed(server: ServerUnderTest) -> dict[str, float]:
    """What the disk under the server's data does; nothing if that is not known."""
    if server.directory is None:
        return {}
    speed = await trio.to_thread.run_sync(disk.probe, server.directory)
    return speed.as_dict()


def check_fits(size: int, limit: int) -> None:
    """Raise BenchError if a NATS server with this limit does not take messages of `size` bytes."""
    if size > limit:
        raise BenchError(
            f"NATS takes messages of at most {limit} bytes, not of {size}; choose a smaller --size"
        )


def positive(text: str) -> int:
    """A number of at least 1 from the command line; underscores are allowed in it."""
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number
