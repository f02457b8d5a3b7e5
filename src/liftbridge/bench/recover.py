"""`liftbridge-bench recover`: how long a server takes to start after it was killed, with so much in its log.

A server stores messages until the log has `--gib`, is killed with SIGKILL, and is started again on the same
data. The clock runs from the start of the process until it serves clients, Python's start, NATS and all; the
same without any data stands beside it. All messages must be there again. Usually an index file tells what was
checked before, so that only the end of the log is read; `--scan` removes these files, so all of it is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from liftbridge.bench import common, disk, publish, server, streams
from liftbridge.bench._load import process_cpu_ns
from liftbridge.bench.errors import BenchError
from liftbridge.bench.liftbridge_target import LiftbridgeTarget
from liftbridge.bench.progress import Progress
from liftbridge.bench.report import Figure, Result, Run
from liftbridge.bench.target import Load

GIB = 1 << 30
START_SECONDS = 600.0
FILL_WINDOW = 8192

FIGURES = (
    Figure("gib_per_second", "GiB/s", 3),
    Figure("cpu_seconds_per_gib", "server CPU s/GiB", 3),
    Figure("seconds", "seconds until it serves", 3),
    Figure("cpu_seconds", "CPU seconds until then", 3),
    Figure("empty_seconds", "seconds without data", 3),
    Figure("empty_cpu_seconds", "CPU seconds without data", 3),
    Figure("gib", "GiB in the log", 3),
    Figure("lost", "messages lost"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this workload."""
    common.add_arguments(parser, size=1024)
    parser.set_defaults(messages=None, sync="never")
    parser.add_argument(
        "--gib", type=_gib, default=1.0, help="GiB of values in the log, unless --messages tells (1)"
    )
    parser.add_argument("--scan", action="store_true", help="remove index files first, so that all is read")


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; one result. Raises BenchError."""
    if options.server is not None:
        raise BenchError("recover kills and starts its server, so it takes no --server")
    common.check_data_dir(options)
    messages = options.messages or max(1, int(options.gib * GIB) // options.size)
    with tempfile.TemporaryDirectory(prefix="liftbridge-bench-", dir=options.data_dir) as name:
        root = Path(name).resolve()
        speed = disk.probe(root).as_dict()
        (root / "full").mkdir()
        stream = await _fill(root / "full", messages, options.size)
        runs = [await _run_once(root, number, stream, messages, options) for number in range(options.repeat)]
    settings = {
        "target": "liftbridge",
        "sync": "never",
        "messages": messages,
        "size": options.size,
        "partitions": 1,
        "index files": "removed" if options.scan else "kept",
    }
    return [Result(settings, FIGURES, runs, speed)]


async def _fill(directory: Path, messages: int, size: int) -> str:
    """Store messages in a new stream, and kill the server; returns the stream."""
    async with server.run(directory, "never") as life, streams.connect(life.server) as api:
        target = LiftbridgeTarget(life.server, api)
        stream = await api.create()
        load = Load(messages=messages, size=size, window=FILL_WINDOW)
        await publish.store(target, stream, load, "filling the log")
        await life.kill()
    return stream


async def _run_once(root: Path, number: int, stream: str, messages: int, options: argparse.Namespace) -> Run:
    empty = root / f"empty-{number}"
    empty.mkdir()
    async with server.run(empty, "never") as life:
        empty_seconds, empty_cpu = life.start_seconds, _cpu_seconds(life)
    full = root / "full"
    logs = sum(path.stat().st_size for path in (full / "data" / "streams").rglob("*.log"))
    if options.scan:
        for path in (full / "data" / "streams").rglob("*.index"):
            path.unlink()
    with Progress(1, f"recovery {number + 1} of {options.repeat}"):
        async with server.run(full, "never", START_SECONDS) as life, streams.connect(life.server) as api:
            cpu = _cpu_seconds(life)
            committed = (await api.offsets(stream))[0] + 1
            await life.kill()
    if committed > messages:
        raise BenchError(f"{messages} messages were acked, but {committed} are there after the kill")
    return {
        "gib_per_second": logs / GIB / life.start_seconds,
        "cpu_seconds_per_gib": None if cpu is None else cpu / (logs / GIB),
        "seconds": life.start_seconds,
        "cpu_seconds": cpu,
        "empty_seconds": empty_seconds,
        "empty_cpu_seconds": empty_cpu,
        "gib": logs / GIB,
        "lost": messages - committed,
    }


def _cpu_seconds(life: server.Life) -> float | None:
    assert life.server.pid is not None
    try:
        return process_cpu_ns(life.server.pid) / 1e9
    except OSError:
        return None


def _gib(text: str) -> float:
    gib = float(text)
    if not 0 < gib <= 1024:
        raise argparse.ArgumentTypeError("a log has more than 0 and at most 1024 GiB here")
    return gib
