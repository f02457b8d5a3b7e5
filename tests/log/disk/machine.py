"""Builds the shim and runs processes on the simulated disk.

Tests get a Machine from the fixture `machine` (tests/log/conftest.py). Its worker is a Python process that
has imported everything; a task runs in a fork of it, so thousands of crashes cost milliseconds each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from disk.powerloss import Event, Kind, read_journal
from liftbridge.log import LogDamagedError

HERE = Path(__file__).parent
REFUSED = 2  # exit code of a task that a damaged log has ended; `worker.py` has the same


class Action(IntEnum):
    """What happens at the call chosen; `shim.c` has the same numbers."""

    NOTHING = 0
    FAIL = 1
    SHORT = 2  # half of a write is done, the next write fails; other calls fail
    KILL_BEFORE = 3
    KILL_AFTER = 4
    KILL_TORN = 5  # half of a write is done; other calls are


CHANGES = tuple(kind for kind in Kind if kind not in (Kind.OPEN, Kind.READ, Kind.NOTE))
CALLS = tuple(kind for kind in Kind if kind is not Kind.NOTE)


def plan(
    kinds: Iterable[Kind], at: int = 0, action: Action = Action.NOTHING, error: int = 0, onwards: bool = False
) -> list[int]:
    """What to do at call number `at` of these kinds (from 1; 0 only counts), `onwards` at all after too."""
    return [sum(1 << kind for kind in kinds), at, int(action), error, int(onwards)]


@dataclass(frozen=True)
class Ended:
    """How a task ended: its exit code, minus the signal that killed it; what it returned; its journal."""

    code: int
    answer: Any
    events: list[Event]


def missing() -> str:
    """Why there can be no simulated disk here; empty when there can."""
    if sys.platform != "linux":
        return "the simulated disk needs Linux: it lies between a process and the C library"
    if shutil.which("cc") is None:
        return "the simulated disk needs a C compiler, cc"
    return ""


def build(directory: Path) -> Path:
    """Compile the shim into a directory; return the library."""
    library = directory / "shim.so"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, HERE / "shim.c"]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return library


class Machine:
    """A worker on the simulated disk; a context manager.

    Attributes: `environment` for programs on the simulated disk.
    """

    def __init__(self, library: Path) -> None:
        preload = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
        paths = [str(HERE.parent), *sys.path]
        self.environment = {**os.environ, "LD_PRELOAD": preload, "PYTHONPATH": os.pathsep.join(paths)}
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "disk.worker"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._worker.stdin and self._worker.stdout
        self._worker.stdin.close()
        self._worker.wait()
        self._worker.stdout.close()

    def begin(self, task: str, **arguments: Any) -> int:
        """Begin a task; return the id of its process."""
        assert self._worker.stdin
        self._worker.stdin.write(json.dumps({"task": task, "arguments": arguments}) + "\n")
        self._worker.stdin.flush()
        return int(self._answer())

    def end(self) -> tuple[int, Any]:
        """Wait for the end of the task; return its exit code, minus the signal, and its answer."""
        ended = self._answer()
        return ended["code"], ended["answer"]

    def _answer(self) -> Any:
        assert self._worker.stdout
        line = self._worker.stdout.readline()
        assert line, f"the worker has ended with code {self._worker.wait()}"
        return json.loads(line)

    def run(self, task: str, root: Path, plan: list[int], **arguments: Any) -> Ended:
        """Run a task on the files below `root`; its journal lies beside it until the next run.

        Raises LogDamagedError when the task did, AssertionError with any other exception's text.
        """
        journal = root.with_name(root.name + ".journal")
        journal.unlink(missing_ok=True)
        self.begin(task, root=str(root), journal=str(journal), plan=plan, **arguments)
        code, answer = self.end()
        if code == REFUSED:
            path, position, reason = answer
            raise LogDamagedError(Path(path), position, reason)
        assert code <= 0, answer
        return Ended(code, answer, read_journal(journal) if journal.exists() else [])
