"""The command `liftbridge` as a child process, as people start it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from calls import PATIENCE
from harness import Server

COMMAND = [sys.executable, "-m", "liftbridge.cli.main"]
CONFIG = {"cursors.stream.partitions": 2, "activity.stream.enabled": True}
NOBODY = "127.0.0.1:1"


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        """What it printed with --json."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(home: Path | None = None, **more: str) -> dict[str, str]:
    """An environment in which nothing of whoever runs the tests is seen."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LIFTBRIDGE_", "XDG_", "NO_COLOR"))
    }
    return {**kept, "XDG_CONFIG_HOME": str(home or "/nonexistent"), **more}


def cli(
    server: Server | str | None,
    *arguments: str,
    status: int = 0,
    stdin: bytes = b"",
    home: Path | None = None,
    **variables: str,
) -> Done:
    """Run a command to its end; it must end with this status, and never with a traceback."""
    if server is not None:
        variables["LIFTBRIDGE_CLIENT_SERVER"] = server if isinstance(server, str) else server.address
    ran = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE * 2,
        env=environment(home, **variables),
    )
    done = Done(ran.returncode, ran.stdout.decode(errors="surrogateescape"), ran.stderr.decode())
    assert "Traceback" not in done.err
    assert done.status == status, done
    return done


@contextlib.contextmanager
def started(server: Server, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs for as long as the block."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(LIFTBRIDGE_CLIENT_SERVER=server.address),
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def on_terminal(server: Server, *arguments: str, typed: bytes = b"", **variables: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; returns its status and everything it showed there."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        env=environment(LIFTBRIDGE_CLIENT_SERVER=server.address, **{"TERM": "xterm", **variables}),
        start_new_session=True,
    )
    os.close(child)
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: nobody is on the other side any more
            while data := os.read(parent, 65536):
                shown.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        os.write(parent, typed)
        status = process.wait(PATIENCE)
        reader.join(PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    return status, shown.decode().replace("\r\n", "\n")


def line_of(pipe: Any) -> str:
    """The next line of a running command."""
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.readline()), daemon=True)
    reader.start()
    deadline = time.monotonic() + PATIENCE
    reader.join(max(0.0, deadline - time.monotonic()))
    assert found, "the line never came"
    return found[0].decode()
