"""A disk that forgets what was not synced.

A file is a sequence of records, whatever a caller takes for the unit that is written whole, protected by a
checksum or not at all: a record that is damaged reads as `DAMAGED`, which is what a checksum tells. A
process sees all that was written, at once. The medium has what a sync has covered, and by chance anything
of the rest:

- **The process is killed**: nothing is lost, nothing more becomes durable. What was written without a sync
  is still waiting for one, so a process that starts and believes what it reads has to sync first.
- **Power is lost**: each write after the last sync has reached the medium or has not, in any combination. A
  lost record before a kept one is a hole, the last one kept may be torn: both read as `DAMAGED`. A replaced
  file is the old or the new one, never a mixture, and without the replacement later writes to it are gone,
  too.

A sync covers what was written before it began, takes virtual time, and reports when it is over, unless the
process is gone. `fuse` makes the process die inside of a sequence of writes, which is where crashes between
any two writes come from.

Invariant: what a finished sync has covered is never lost, except by `flip` and `wipe`, which are damage on
purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from liftbridge.sim.scheduler import Scheduler


class _Damaged:
    def __repr__(self) -> str:
        return "DAMAGED"


DAMAGED: Final = _Damaged()
"""What a record reads as that is torn, missing or flipped: the checksum does not fit."""


class DiskFullError(Exception):
    """A write found no room; nothing of it was written."""


class FuseError(Exception):
    """The process dies here: raised by the write or sync that a fuse was set for, which did not happen."""


@dataclass
class Speed:
    """How long a sync takes, in microseconds; may be changed at any time."""

    sync_from: int = 300
    sync_to: int = 3_000
    slow: float = 0.0
    """Probability of a sync that takes `slow_to` at most instead."""
    slow_to: int = 500_000


_APPEND, _REPLACE, _CUT, _DELETE = range(4)
_Files = dict[str, list[Any]]
_Write = tuple[int, str, int, Any]  # what, file, position, record or records


class Disk:
    """The files of one host."""

    def __init__(self, scheduler: Scheduler, random: Random, speed: Speed) -> None:
        self.speed = speed
        self.full = False
        self._scheduler = scheduler
        self._random = random
        self._seen: _Files = {}
        self._medium: _Files = {}
        self._unsynced: list[_Write] = []
        self._synced = 0  # writes that are on the medium, since the beginning
        self._process = 0  # a sync of an earlier process reports to nobody
        self._fuse = -1

    # ---- what a process does ----

    def read(self, name: str) -> Sequence[Any]:
        """The records of a file as the process sees them, DAMAGED for a bad one; none if there is no such
        file. The sequence may change with the next write.
        """
        return self._seen.get(name, ())

    def names(self) -> list[str]:
        """The files that there are, sorted."""
        return sorted(self._seen)

    def append(self, name: str, record: Any) -> None:
        """Write a record behind the last one. Raises DiskFullError, FuseError."""
        self._write(_APPEND, name, len(self._seen.get(name, ())), record)

    def replace(self, name: str, records: Iterable[Any]) -> None:
        """Write a file anew beside its place and rename it: what is read afterwards is the old or the new
        one. The new content is synced before the rename, the rename is not. Raises DiskFullError,
        FuseError.
        """
        self._write(_REPLACE, name, 0, tuple(records))

    def cut(self, name: str, length: int) -> None:
        """Shorten a file to so many records. Raises FuseError."""
        self._write(_CUT, name, length, None)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there. Raises FuseError."""
        self._write(_DELETE, name, 0, None)

    def sync(self, done: Callable[[], None]) -> None:
        """Begin to sync all files; `done` is called when what was written until now is on the medium.
        Raises FuseError."""
        self._burn()
        speed, random = self.speed, self._random.random
        if speed.slow and random() < speed.slow:
            duration = speed.sync_to + int(random() * max(0, speed.slow_to - speed.sync_to))
        else:
            duration = speed.sync_from + int(random() * (speed.sync_to - speed.sync_from))
        mark = self._synced + len(self._unsynced)
        self._scheduler.after(duration, self._sync_over, self._process, mark, done)

    @property
    def unsynced(self) -> int:
        """Writes that no sync has covered yet."""
        return len(self._unsynced)

    def _write(self, kind: int, name: str, position: int, value: Any) -> None:
        if self.full and kind in (_APPEND, _REPLACE):
            raise DiskFullError(f"no room on the disk for {name}")
        self._burn()
        write = (kind, name, position, value)
        self._unsynced.append(write)
        _apply(self._seen, write)

    def _burn(self) -> None:
        if self._fuse >= 0:
            self._fuse -= 1
            if self._fuse < 0:
                raise FuseError

    def _sync_over(self, process: int, mark: int, done: Callable[[], None]) -> None:
        if process != self._process:
            return
        count = mark - self._synced
        if count > 0:  # else a sync that began later was over earlier
            for write in self._unsynced[:count]:
                _apply(self._medium, write)
            del self._unsynced[:count]
            self._synced = mark
        done()

    # ---- what happens to it ----

    def fuse(self, writes: int) -> None:
        """Let the process die at the write or sync after so many more."""
        self._fuse = writes

    def kill(self) -> None:
        """The process is gone, the machine runs on: the kernel still has what was written."""
        self._process += 1
        self._fuse = -1

    def power_loss(self) -> None:
        """Process and kernel are gone; of what was not synced anything may be left."""
        self.kill()
        random = self._random
        keep = random.choice((0.0, 0.0, 0.5, 0.9, 1.0))
        ordered = (
            random.random() < 0.5
        )  # a prefix, as a journalling file system tends to leave, or any subset
        gone = set[str]()  # files whose replacement was lost
        last: _Write | None = None
        for write in self._unsynced:
            kind, name = write[0], write[1]
            if name in gone:
                continue
            if random.random() < keep:
                _apply(self._medium, write)
                last = write
            elif ordered:
                break
            elif kind == _REPLACE:
                gone.add(name)
        if last is not None and last[0] == _APPEND and random.random() < 0.3:
            _apply(self._medium, (_APPEND, last[1], last[2], DAMAGED))
        self._synced += len(self._unsynced)
        self._unsynced.clear()
        self._seen = {name: list(records) for name, records in self._medium.items()}

    def flip(self, name: str, position: int) -> None:
        """Damage a record on the medium."""
        for files in (self._seen, self._medium):
            if position < len(files.get(name, ())):
                files[name][position] = DAMAGED

    def wipe(self) -> None:
        """Everything is gone: a new disk."""
        self.kill()
        self.full = False
        self._synced += len(self._unsynced)
        self._unsynced.clear()
        self._seen, self._medium = {}, {}

    def durable(self, name: str) -> Sequence[Any]:
        """The records of a file that no loss of power can take any more; for checks."""
        return self._medium.get(name, ())


def _apply(files: _Files, write: _Write) -> None:
    """Do a write, which may come after one that is missing."""
    kind, name, position, value = write
    if kind == _APPEND:
        records = files.setdefault(name, [])
        while len(records) < position:
            records.append(DAMAGED)
        if position < len(records):  # the cut before it was lost; what follows is still the old
            records[position] = value
        else:
            records.append(value)
    elif kind == _REPLACE:
        files[name] = list(value)
    elif kind == _CUT:
        if name in files:
            del files[name][position:]
    else:
        files.pop(name, None)
