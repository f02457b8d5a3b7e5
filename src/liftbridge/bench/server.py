"""The server under test: one of our own, gone after the benchmark, or one that runs already.

Our own is the real thing, `liftbridge` with an embedded NATS as a child process, with a data directory made
for it. Its NATS gets the limits that an embedded NATS has by default, on ports of the loopback that the
system chooses. It is given no variables LIFTBRIDGE_*, which would change what is measured without a word.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import trio

from liftbridge.bench.errors import BenchError
from liftbridge.nats.embedded import MAX_PENDING_BYTES, WRITE_DEADLINE_SECONDS

START_SECONDS = 30.0
STOP_SECONDS = 20.0
LAST_LINES = 15
# Of clusters that listen on the loopback for the time of a run.
SECRET = "liftbridge-bench cluster"  # noqa: S105  # known to whoever reads this

SERVING = re.compile(r"serving clients on (\S+):(\d+) as server")
_NATS = re.compile(r"the embedded NATS server listens on (nats://\S+)")


@dataclass(frozen=True)
class ServerUnderTest:
    """Where the server is, and the processes behind it, as far as they are known.

    Attributes:
        sync: the sync policy of streams, or what is known of it.
        directory: where its data is, None if that is not known; the disk there is the one that counts.
        others: the other servers of its cluster.
    """

    grpc: tuple[str, int]
    nats: tuple[str, int]
    sync: str
    pid: int | None = None
    nats_pid: int | None = None
    directory: Path | None = None
    others: tuple[ServerUnderTest, ...] = ()

    @property
    def pids(self) -> dict[str, int | None]:
        """Processes to measure, by the name of their figure."""
        others = {f"server{number}": other.pid for number, other in enumerate(self.others, 2)}
        return {"server": self.pid, "nats": self.nats_pid, **others}


def address(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `[ipv6]:port` or a URL with one of them.

    Raises:
        BenchError: it is something else.
    """
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise BenchError(f"{text!r} is no address; write host:port")
    return host, default_port if port is None else port


@asynccontextmanager
async def own_server(sync: str, parent: Path) -> AsyncIterator[ServerUnderTest]:
    """Run a server for the block; nothing of it is left afterwards.

    Args:
        sync: `streams.sync.policy`.
        parent: an existing directory; the data directory is made in it, and so on its disk.

    Raises:
        BenchError: it does not start, or ends during the block; the text has its last log lines.
    """
    with tempfile.TemporaryDirectory(prefix="liftbridge-bench-", dir=parent) as name:
        async with run(Path(name).resolve(), sync) as life:
            yield life.server


@asynccontextmanager
async def own_cluster(sync: str, parent: Path, count: int) -> AsyncIterator[ServerUnderTest]:
    """Run a cluster of servers on one NATS server for the block; otherwise as `own_server`."""
    with tempfile.TemporaryDirectory(prefix="liftbridge-bench-", dir=parent) as name:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(run(Path(name).resolve() / "1", sync))
            host, port = first.server.nats
            others = []
            for number in range(2, count + 1):
                directory = Path(name).resolve() / str(number)
                joined = await stack.enter_async_context(run(directory, sync, joins=f"nats://{host}:{port}"))
                others.append(joined.server)
            yield replace(first.server, others=tuple(others))


class Life:
    """A server of our own that is serving.

    Attributes:
        server: the server under test.
        start_seconds: from the start of its process until it served clients.
    """

    def __init__(
        self, process: trio.Process, log: _Log, server: ServerUnderTest, start_seconds: float
    ) -> None:
        self.server = server
        self.start_seconds = start_seconds
        self._process = process
        self._log = log

    async def kill(self) -> None:
        """End it with SIGKILL: nothing is closed, nothing is flushed."""
        self._log.ending = True
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def run(
    directory: Path, sync: str, start_seconds: float = START_SECONDS, *, joins: str = ""
) -> AsyncIterator[Life]:
    """Run a server for the block on a directory, which may have the data of one that ran before.

    Args:
        directory: absolute; stays there, and is made if it is missing.
        sync: `streams.sync.policy`.
        start_seconds: how long it may take until it serves clients.
        joins: URL of the NATS server whose cluster it is to join, empty for one of its own.

    Raises:
        BenchError: it does not start, or ends during the block; the text has its last log lines.
    """
    directory.mkdir(exist_ok=True)
    started = time.monotonic()
    process = await trio.lowlevel.open_process(
        command(directory, sync, joins),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if not key.startswith("LIFTBRIDGE_")},
        start_new_session=True,  # Ctrl-C is for us: the server is stopped after its load
    )
    try:
        async with trio.open_nursery() as nursery:
            log = _Log(process)
            nursery.start_soon(log.read)
            with trio.move_on_after(start_seconds):
                await log.serving.wait()
            took = time.monotonic() - started
            if not log.serving.is_set():
                raise BenchError(f"the server did not start within {start_seconds:.0f} s{log.tail()}")
            nats = address(joins, 4222) if joins else log.nats
            assert log.grpc is not None and nats is not None
            nats_pid = _nats_pid(directory)
            server = ServerUnderTest(log.grpc, nats, sync, process.pid, nats_pid, directory)
            yield Life(process, log, server, took)
            log.ending = True
            await _stop(process)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await _stop(process)


def command(directory: Path, sync: str, joins: str = "") -> list[str]:
    """Write the configuration of a server into `directory`; returns the command line that starts it."""
    nats = directory / "nats.conf"
    nats_settings = {
        "host": "127.0.0.1",
        "port": -1,
        "max_pending": MAX_PENDING_BYTES,
        "write_deadline": f"{WRITE_DEADLINE_SECONDS}s",
    }
    nats.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in nats_settings.items()))
    settings: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "data.dir": str(directory / "data"),
        "clustering.secret": SECRET,
        "streams.sync.policy": sync,
        "clustering.raft.bootstrap.seed": True,  # which joins the cluster that it finds, if there is one
    }
    if joins:
        settings["nats.servers"] = [joins]
    else:
        settings |= {"nats.embedded": True, "nats.embedded.config": str(nats)}
    config = directory / "liftbridge.yaml"
    config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    return [sys.executable, "-m", "liftbridge.cli.main", "--config", str(config)]


def _nats_pid(directory: Path) -> int | None:
    """The process id of the embedded NATS server, from the name of the file in which it lists its ports."""
    for path in (directory / "data" / "nats" / "ports").glob("*.ports"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdigit():
            return int(pid)
    return None


class _Log:
    """Reads what the server prints: where it listens, and its last lines for when something goes wrong."""

    def __init__(self, process: trio.Process) -> None:
        self.serving = trio.Event()
        self.ending = False
        self.grpc: tuple[str, int] | None = None
        self.nats: tuple[str, int] | None = None
        self._process = process
        self._lines: deque[str] = deque(maxlen=LAST_LINES)

    def tail(self) -> str:
        """The last lines, to go behind an error."""
        return "; its last lines:\n" + "\n".join(self._lines) if self._lines else "; it printed nothing"

    async def read(self) -> None:
        """Read until the server ends. Raises BenchError if it was not asked to."""
        assert self._process.stderr is not None
        pending = b""
        async with self._process.stderr as stderr:
            async for chunk in stderr:
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self._take(line.decode("utf-8", "replace"))
        if not self.ending:
            status = await self._process.wait()
            raise BenchError(f"the server ended by itself with status {status}{self.tail()}")

    def _take(self, line: str) -> None:
        self._lines.append(line)
        if found := _NATS.search(line):
            self.nats = address(found[1], 4222)
        if found := SERVING.search(line):
            self.grpc = (found[1], int(found[2]))
            self.serving.set()


async def _stop(process: trio.Process) -> None:
    """SIGTERM, and SIGKILL when that does not end it in time."""
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
        if process.poll() is None:
            process.kill()
    await process.wait()
