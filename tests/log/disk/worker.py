"""The process on the simulated disk: warmed up once, it does each task in a fork of itself.

`machine.py` starts it with the shim preloaded. Tasks come as lines of JSON on standard input; for each
two lines go back: the process id of the fork, and how it ended. A task is a function here; what it returns
goes back with the second line, an exception in it as text.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import liftbridge.log.log
import liftbridge.log.recovery
from disk.workload import EVERYTHING, OPTIONS, Workload
from disk.writer import write
from liftbridge.log import LogDamagedError

WRONG = 1  # exit codes of a fork: an exception,
REFUSED = 2  # or a LogDamagedError
_SHIM = ctypes.CDLL(None)


def note(what: str, **facts: Any) -> None:
    """Write into the disk's journal what is begun or was told."""
    text = json.dumps({"what": what, **facts}).encode()
    _SHIM.disk_note(text, ctypes.c_size_t(len(text)))


def start_disk(root: str, journal: str, plan: list[int]) -> None:
    """Watch the files below `root` from now on; `plan` as in the shim."""
    _SHIM.disk_start(os.fsencode(root), os.fsencode(journal))
    set_plan(plan)


def set_plan(plan: list[int]) -> None:
    """Break what the plan says from now on."""
    kinds, at, action, error, onwards = plan
    _SHIM.disk_plan(ctypes.c_uint(kinds), ctypes.c_long(at), action, error, onwards)


def calls() -> int:
    """How many calls of the plan's kinds there were."""
    _SHIM.disk_calls.restype = ctypes.c_long
    return int(_SHIM.disk_calls())


# ---- tasks ----


def run_script(
    root: str,
    journal: str,
    plan: list[int],
    script: list[tuple[str, int]] = EVERYTHING,
    options: dict[str, int] = OPTIONS,
    attempt: int = 0,
    tolerant: bool = False,
    mutant: str = "",
) -> dict[str, Any]:
    """Run a script of operations on the log in `root`/log; a tolerant one goes on after errors."""
    if mutant:
        MUTANTS[mutant]()
    start_disk(root, journal, plan)
    work = Workload(Path(root) / "log", options, note, attempt, tolerant=tolerant)
    work.run(script)
    return {"calls": calls(), "errors": work.errors, "attempt": work.attempt}


def run_code(root: str, journal: str, plan: list[int], code: str) -> Any:
    """Run Python code in `root`, for tests of the disk itself; `result` in it goes back."""
    os.chdir(root)
    start_disk(root, journal, plan)
    names: dict[str, Any] = {"os": os, "Path": Path, "note": note, "result": None}
    exec(code, names)
    return {"calls": calls(), "result": names["result"]}


# ---- logs that are broken on purpose: the tests have to notice each ----


def _no_data_sync() -> None:
    liftbridge.log.log.sync_data = lambda fd: None


def _no_directory_sync() -> None:
    liftbridge.log.log.sync_directory = lambda directory: None


def _no_sync_in_recovery() -> None:
    liftbridge.log.recovery.sync_data = lambda fd: None


def _synced_before_it_is() -> None:
    sync_files = liftbridge.log.log.Log._sync_files

    def told_first(self, seals, active):
        note("synced", offset=active.next_offset)
        sync_files(self, seals, active)

    liftbridge.log.log.Log._sync_files = told_first


def _second_try_of_a_sync() -> None:
    def twice(fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError:
            os.fdatasync(fd)

    liftbridge.log.log.sync_data = twice


def _errors_swallowed() -> None:
    append = liftbridge.log.log.Log.append

    def swallow(self, builder, epoch=0):
        try:
            return append(self, builder, epoch)
        except OSError:
            return self.next_offset

    liftbridge.log.log.Log.append = swallow


def _failures_forgotten() -> None:
    sync = liftbridge.log.log.Log.sync

    def forget(self):
        self.failed = None
        return sync(self)

    liftbridge.log.log.Log.sync = forget


def _removed_before_it_is_noted() -> None:
    note_start, remove = liftbridge.log.log.Log._note_start, liftbridge.log.log.Log._remove_condemned

    def removed_first(self):
        liftbridge.log.log.Log._note_start = lambda self: None
        remove(self)
        liftbridge.log.log.Log._note_start = note_start
        self._note_start()

    liftbridge.log.log.Log._remove_condemned = removed_first


MUTANTS: dict[str, Callable[[], None]] = {
    "no data sync": _no_data_sync,
    "no directory sync": _no_directory_sync,
    "no sync in recovery": _no_sync_in_recovery,
    "synced before it is": _synced_before_it_is,
    "second try of a sync": _second_try_of_a_sync,
    "errors swallowed": _errors_swallowed,
    "failures forgotten": _failures_forgotten,
    "removed before it is noted": _removed_before_it_is_noted,
}

TASKS: dict[str, Callable[..., Any]] = {"script": run_script, "code": run_code, "write": write}


# ---- the loop ----


def in_fork(task: str, arguments: dict[str, Any], results: int) -> None:
    """Do a task and end the process, with a code and, in `results`, what it returned or what was wrong."""
    code = WRONG
    try:
        answer = TASKS[task](**arguments)
        code = 0
    except LogDamagedError as error:
        code, answer = REFUSED, [str(error.path), error.position, error.reason]
    except BaseException:
        answer = traceback.format_exc()
    with os.fdopen(results, "w") as pipe:
        json.dump(answer, pipe)
    os._exit(code)


def main() -> None:
    """Serve tasks until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            in_fork(request["task"], request["arguments"], writer)
        os.close(writer)
        print(json.dumps(pid), flush=True)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        _, status = os.waitpid(pid, 0)
        answer = json.loads(text) if text else None
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "answer": answer}), flush=True)


if __name__ == "__main__":
    main()
