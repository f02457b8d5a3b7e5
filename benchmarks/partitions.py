"""What many partitions cost: time to open them, memory, threads, descriptors, CPU while nothing happens.

First on the level of the log: that many logs are created, filled a little, opened after a clean stop and
after a kill, each time by a process of its own, with as many threads as `--workers` says (40 is what the
server uses). Then a real server: streams of 100 partitions are created over gRPC, the server is stopped,
started, killed and started again, and looked at while it is idle. The files are in the page cache throughout.

Logs that are idle give back their descriptor when there are many (`liftbridge.log.awake`), so the limit of
open files does not bound `--partitions`; it is raised as far as it may be.

    python benchmarks/partitions.py [--partitions 10000] [--workers 1 40] [--idle 15] [--directory .]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import purerpc
import trio
from tables import Spent, machine_line, spread, table

from liftbridge.bench import machine
from liftbridge.bench._load import process_cpu_ns
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.server import SERVING, command
from liftbridge.bench.sockets import allow_many, greet
from liftbridge.log import BatchBuilder, Log, LogOptions
from liftbridge.proto import api_grpc, api_pb2

STREAM_PARTITIONS = 100
START_SECONDS = 600.0
TIMESTAMP = 1_700_000_000_000_000_000
SEALED_SEGMENTS = 1_000
FILLED_RECORDS, FILLED_BYTES = 10, 1024
_NATS = re.compile(r"the embedded NATS server listens on nats://(\S+):(\d+)")

Figures = dict[str, float]


# ---- processes ----


def memory_kib(pid: int | str, what: str = "VmRSS") -> int:
    """A figure of /proc/PID/status in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1])
    raise ValueError(f"this kernel does not tell {what}")


def threads(pid: int | str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def descriptors(pid: int | str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


# ---- logs, in a process of their own ----


def log_directory(root: Path, number: int) -> Path:
    """As the server names them: one directory for a stream, one in it for each partition."""
    stream, partition = divmod(number, STREAM_PARTITIONS)
    return root / str(uuid.UUID(int=stream)) / str(partition)


def child(task: str, root: Path, count: int, workers: int) -> Figures:
    """Open logs, measured; then leave them as `task` says: "close" or "fill" them, or "kill" this process.

    "fill" appends to each and closes them. "kill" appends to each as well.
    """

    def open_one(number: int) -> Log:
        stream, partition = divmod(number, STREAM_PARTITIONS)
        return Log.open(
            log_directory(root, number),
            stream_id=uuid.UUID(int=stream),
            partition=partition,
            options=LogOptions(),
        )

    builder = BatchBuilder()
    for _ in range(FILLED_RECORDS):
        builder.add_record(value=bytes(FILLED_BYTES), timestamp=TIMESTAMP, subject=b"bench.subject")
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: time.sleep(0.01), range(workers)))  # the threads' memory is not the logs'
        gc.collect()
        before, files = memory_kib("self"), descriptors("self")
        with Spent() as opening:
            logs = list(pool.map(open_one, range(count)))
        gc.collect()
        figures = {
            "seconds": opening.wall,
            "cpu_seconds": opening.cpu,
            "kib_per_log": (memory_kib("self") - before) / count,
            "descriptors": descriptors("self") - files,
            "threads": threads("self") - workers - 1,
            "scanned_kib": sum(log.scanned_bytes for log in logs) / 1024,
        }
        if task != "close":
            for log in logs:
                log.append(builder)
        if task == "kill":
            print(json.dumps(figures), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        with Spent() as closing:
            list(pool.map(Log.close, logs))
        figures["close_seconds"] = closing.wall
    return figures


def read_sealed(root: Path) -> Figures:
    """Read a log of many segments through, oldest first, and see how many descriptors that leaves open."""
    before = descriptors("self")
    options = LogOptions(segment_max_bytes=1)
    log = Log.open(root, stream_id=uuid.UUID(int=0), partition=0, options=options)
    builder = BatchBuilder()
    builder.add_record(value=b"x", timestamp=TIMESTAMP, subject=b"bench.subject")
    for _ in range(SEALED_SEGMENTS + 1):
        log.append(builder)
    offset = 0
    while offset < log.next_offset:
        _, offset = log.read_frames(offset, log.next_offset, b"")
    written = descriptors("self") - before
    log.sync()  # lets go of those that were not synced
    return {"unsynced_descriptors": written, "descriptors": descriptors("self") - before}


def in_child(task: str, root: Path, count: int, workers: int) -> Figures:
    arguments = ["--child", task, "--partitions", str(count), "--workers", str(workers)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--directory", str(root)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, -signal.SIGKILL) or not done.stdout:
        raise SystemExit(f"the process that opens logs ended with status {done.returncode}")
    figures: Figures = json.loads(done.stdout)
    return figures


def measure_logs(directory: Path, count: int, workers: int, repeat: int) -> dict[str, list[Figures]]:
    """Create logs once; open them `repeat` times in each state that a stop can leave them in."""
    results: dict[str, list[Figures]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="liftbridge-bench-", dir=directory) as name:
        root = Path(name)
        results["created"].append(in_child("close", root, count, workers))
        for _ in range(repeat):
            results["empty, after a clean stop"].append(in_child("close", root, count, workers))
        in_child("fill", root, count, workers)
        for _ in range(repeat):
            results["with data, after a clean stop"].append(in_child("kill", root, count, workers))
            results["with data, after a kill"].append(in_child("fill", root, count, workers))
    return results


def tell_logs(results: dict[int, dict[str, list[Figures]]], count: int) -> None:
    columns = {
        "seconds": ("s", 2),
        "cpu_seconds": ("CPU s", 2),
        "kib_per_log": ("KiB/log", 2),
        "descriptors": ("descriptors", 0),
        "threads": ("threads", 0),
        "scanned_kib": ("KiB scanned", 0),
    }
    print(f"### opening {count:,} logs\n")
    rows = [
        [
            state,
            str(workers),
            *(spread([run[key] for run in runs], places) for key, (_, places) in columns.items()),
        ]
        for workers, states in results.items()
        for state, runs in states.items()
    ]
    print(table(["", "by threads", *(label for label, _ in columns.values())], rows), flush=True)


# ---- a server ----


class Server:
    """A server process on a directory that outlives it."""

    def __init__(self, directory: Path) -> None:
        began = time.perf_counter()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LIFTBRIDGE_")}
        self._log = (directory / "server.log").open("w+")
        self.process = subprocess.Popen(
            command(directory, "never"), stdin=subprocess.DEVNULL, stderr=self._log, env=environment
        )
        while True:
            text = (directory / "server.log").read_text()
            serving, nats = SERVING.search(text), _NATS.search(text)
            if serving and nats:
                break
            if self.process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                self.kill()
                raise SystemExit(f"the server did not start; its last lines:\n{text[-2000:]}")
            time.sleep(0.02)
        self.start_seconds = time.perf_counter() - began
        self.start_cpu_seconds = process_cpu_ns(self.process.pid) / 1e9
        self.grpc = serving[1], int(serving[2])
        self.nats = nats[1], int(nats[2])

    def idle(self, seconds: float) -> Figures:
        """What the server is and does while nobody does anything with it."""
        pid = self.process.pid
        meter = CpuMeter({"server": pid})
        time.sleep(seconds)
        used = meter.used()["server"]
        assert used is not None, "this system does not tell the CPU time of another process"
        return {
            "rss_kib": memory_kib(pid),
            "anonymous_kib": memory_kib(pid, "RssAnon"),
            "threads": threads(pid),
            "descriptors": descriptors(pid),
            "cpu_percent": used / seconds * 100,
        }

    def stop(self) -> float:
        """Stop in order; returns the seconds that took."""
        began = time.perf_counter()
        self.process.terminate()
        self.process.wait()
        self._log.close()
        return time.perf_counter() - began

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


async def create_streams(server: Server, partitions: int) -> None:
    async with purerpc.insecure_channel(*server.grpc) as channel:
        api = api_grpc.APIStub(channel)  # type: ignore[no-untyped-call]
        for number in range(partitions // STREAM_PARTITIONS):
            name = f"bench-{number}"
            await api.CreateStream(
                api_pb2.CreateStreamRequest(name=name, subject=name, partitions=STREAM_PARTITIONS)
            )


async def newest(server: Server, partitions: int) -> int:
    """How many messages the partitions of the last stream have."""
    async with purerpc.insecure_channel(*server.grpc) as channel:
        api = api_grpc.APIStub(channel)  # type: ignore[no-untyped-call]
        name, total = f"bench-{partitions // STREAM_PARTITIONS - 1}", 0
        for number in range(STREAM_PARTITIONS):
            request = api_pb2.FetchPartitionMetadataRequest(stream=name, partition=number)
            total += (await api.FetchPartitionMetadata(request)).metadata.newestOffset + 1
        return total


def publish_to_each(server: Server, partitions: int) -> None:
    """One message to every partition, stored when this returns."""
    payload = b"x" * 128
    with socket.create_connection(server.nats) as connection:
        greet(connection)
        for number in range(partitions):
            stream, partition = divmod(number, STREAM_PARTITIONS)
            subject = f"bench-{stream}" + (f".{partition}" if partition else "")
            connection.sendall(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload))
        connection.sendall(b"PING\r\n")
        answers = b""
        while b"PONG" not in answers:
            answers += connection.recv(4096)
    while trio.run(newest, server, partitions) < STREAM_PARTITIONS:
        time.sleep(0.1)


def measure_server(directory: Path, partitions: int, idle_seconds: float) -> dict[str, Figures]:
    results: dict[str, Figures] = {}

    def look(state: str, server: Server, seconds: float, cpu_seconds: float) -> None:
        results[state] = {"seconds": seconds, "cpu_seconds": cpu_seconds, **server.idle(idle_seconds)}

    def started(state: str) -> Server:
        server = Server(root)
        look(state, server, server.start_seconds, server.start_cpu_seconds)
        return server

    def timed(server: Server, work: Callable[[], object]) -> tuple[float, float]:
        meter, began = CpuMeter({"server": server.process.pid}), time.perf_counter()
        work()
        return time.perf_counter() - began, meter.used()["server"] or 0.0

    with tempfile.TemporaryDirectory(prefix="liftbridge-bench-", dir=directory) as name:
        root = Path(name).resolve()
        server = started("started, no partition")
        try:
            look("created", server, *timed(server, lambda: trio.run(create_streams, server, partitions)))
            server.stop()
            server = started("started after a clean stop, empty")
            look("a message to each", server, *timed(server, lambda: publish_to_each(server, partitions)))
            server.kill()
            server = started("started after a kill")
            seconds = server.stop()
            results["stopped"] = {"seconds": seconds}
            server = started("started after a clean stop")
        finally:
            if server.process.poll() is None:
                server.kill()
    return results


def tell_server(results: dict[str, Figures], partitions: int) -> None:
    none = results["started, no partition"]
    print(f"### a server with {partitions:,} partitions\n")
    head = ["", "s", "CPU s", "RSS, MiB", "KiB/partition", "threads", "descriptors", "idle CPU, %"]
    rows = []
    for state, figures in results.items():
        row = [state, f"{figures['seconds']:.2f}"]
        if "rss_kib" in figures:
            more = (figures["rss_kib"] - none["rss_kib"]) / partitions
            row += [
                f"{figures['cpu_seconds']:.2f}",
                f"{figures['rss_kib'] / 1024:.1f}",
                f"{more:.2f}" if more else "",
                f"{figures['threads']:.0f}",
                f"{figures['descriptors']:,.0f}",
                f"{figures['cpu_percent']:.2f}",
            ]
        rows.append(row + [""] * (len(head) - len(row)))
    print(table(head, rows))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--partitions", type=int, default=10_000)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 40], help="threads that open logs (1 40)"
    )
    parser.add_argument("--repeat", type=int, default=3, help="how often logs are opened in each state (3)")
    parser.add_argument("--idle", type=float, default=15.0, help="seconds of looking at an idle server (15)")
    parser.add_argument("--only", choices=("logs", "server"), help="only this part")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the data is kept (.)")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--child", choices=("close", "fill", "kill"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    directory = arguments.directory
    if arguments.child:
        print(json.dumps(child(arguments.child, directory, arguments.partitions, arguments.workers[0])))
        return 0
    allow_many()
    partitions = arguments.partitions
    facts = machine.describe()
    print(machine_line(facts), flush=True)
    everything: dict[str, object] = {"machine": facts}
    if arguments.only != "server":
        opened = {
            workers: measure_logs(directory, partitions, workers, arguments.repeat)
            for workers in arguments.workers
        }
        tell_logs(opened, partitions)
        everything["logs"] = opened
        with tempfile.TemporaryDirectory(dir=directory) as name:
            everything["sealed"] = sealed = read_sealed(Path(name))
        print(
            f"A log of {SEALED_SEGMENTS:,} sealed segments, read through: {sealed['descriptors']:,} "
            f"descriptors; before its sync {sealed['unsynced_descriptors']:,}.\n"
        )
    if arguments.only != "logs":
        server = measure_server(directory, partitions, arguments.idle)
        tell_server(server, partitions)
        everything["server"] = server
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
