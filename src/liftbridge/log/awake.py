"""Which logs have the file of their active segment open, and which are at rest.

A log needs a descriptor while it takes messages or while the end of it is read. A process may have few
descriptors and very many logs, most of them idle, so at most a fixed number of logs is awake: when one more
wakes, one that was not used for a while gives its descriptor back. It opens the file again when it is
needed, which is one system call, and no reader notices, as each holds its own reference.

The choice is the second-chance form of least recently used: the logs stand in a queue, and one that was used
since its last turn goes to the end instead. So using a log costs setting a flag, and no lock.

Only a log that has everything on disk can rest: an error in writing back what is still in the page cache is
told to those who have the file open, and there must be somebody to be told. So `add` passes over logs that
wait for a sync, and these may exceed the number until `settle`, called now and then in a worker thread, syncs
them. Should they exceed it by half, `make_room` does that at once for one of them, wherever it is called.

Invariants: a log that has its file open is in the queue, or just having its turn; the queue has no lock, each
of its steps being one operation on a dictionary, so whoever calls `add` may hold the lock of a log.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from contextlib import suppress
from typing import Protocol

from liftbridge.log.errors import LogError

DEFAULT_AWAKE_LOGS = 8192
# How many logs are looked at, at most, when one wakes: more would be felt by those who wait for its message.
LOOKED_AT = 8


class Restable(Protocol):
    """What the queue needs of a log."""

    def take_used(self) -> bool:
        """Whether the log was used since the last call."""

    def rest(self) -> bool:
        """Give the descriptor back and return true; false when that cannot be now. Does not block."""

    def sync(self) -> int:
        """Bring everything to the disk; blocking. Raises LogError."""


class AwakeLogs:
    """The queue of the logs that are awake; usable from several threads.

    Attributes: `capacity`, how many may be awake.
    """

    def __init__(self, capacity: int = DEFAULT_AWAKE_LOGS) -> None:
        self.capacity = capacity
        self._queue: OrderedDict[weakref.ref[Restable], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def make_room(self) -> None:
        """To be called before a log wakes, by somebody who holds no lock of a log; blocks in need only."""
        most = self.capacity + self.capacity // 2
        for _ in range(2 * len(self._queue)):  # once around to take the flags, once to choose
            if len(self._queue) < most:
                return
            self._give_turn(may_sync=True)

    def add(self, log: Restable) -> None:
        """`log` has opened its file; others give theirs back if there are too many. Does not block."""
        # A log that is forgotten without being closed leaves the queue by itself.
        self._queue[weakref.ref(log, self._drop)] = None
        for _ in range(LOOKED_AT):
            if len(self._queue) <= self.capacity:
                return
            self._give_turn(may_sync=False)

    def discard(self, log: Restable) -> None:
        """`log` has closed its file for good."""
        self._drop(weakref.ref(log))

    def settle(self) -> None:
        """Bring the number down to the capacity if it is above; blocking, as logs are synced for it.

        A log that is in use all the time, or that fails, stays awake.
        """
        for _ in range(2 * len(self._queue)):
            if len(self._queue) <= self.capacity:
                return
            self._give_turn(may_sync=True)

    def _give_turn(self, *, may_sync: bool) -> None:
        """Let the first in the queue rest, or send it to the end."""
        try:
            reference, _ = self._queue.popitem(last=False)
        except KeyError:
            return
        # It is taken out first: should it wake between resting and that, it must find itself back in.
        log = reference()
        if log is None or (not log.take_used() and self._let_rest(log, may_sync)):
            return
        self._queue[reference] = None

    def _let_rest(self, log: Restable, may_sync: bool) -> bool:
        if log.rest():
            return True
        if not may_sync:
            return False
        with suppress(LogError):  # whoever uses it next is told
            log.sync()
        return log.rest()

    def _drop(self, reference: weakref.ref[Restable]) -> None:
        self._queue.pop(reference, None)


# One for the process, because descriptors are the process's.
awake_logs = AwakeLogs()
