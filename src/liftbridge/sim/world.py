"""The world of a run: time, network, disks and clocks, one source of randomness, and a record of what
happened.

The record is bounded, as only the last events tell why something went wrong; its digest covers all of them,
and is what two runs of a seed are compared by. Text is made when it is read, as nearly all events are never
looked at.
"""

from __future__ import annotations

import zlib
from collections import deque
from random import Random
from typing import Any

from liftbridge.sim.clock import Clock
from liftbridge.sim.disk import Disk, Speed
from liftbridge.sim.network import Network, Weather
from liftbridge.sim.scheduler import MILLISECOND, SECOND, Scheduler

__all__ = ["Violation", "World", "MILLISECOND", "SECOND"]


class Violation(Exception):  # noqa: N818 - a finding, which is what a simulation is run for
    """Something that must never happen has happened; the text says what."""


class World:
    """Where one run takes place.

    Arguments: `seed`, which decides everything; `remembered`, the number of events in the trace; `digest`,
    whether all events are digested, which costs time.
    """

    def __init__(self, seed: int, *, remembered: int = 400, digest: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, self.random, Weather())
        self.disks: list[Disk] = []
        self.clocks: list[Clock] = []
        self._events: deque[tuple[int, str, tuple[Any, ...]]] = deque(maxlen=remembered)
        self._digest: int | None = 0 if digest else None

    def add_host(self) -> int:
        """Another machine, with a disk and a clock; returns its number."""
        self.disks.append(Disk(self.scheduler, self.random, Speed()))
        self.clocks.append(Clock(self.scheduler))
        return len(self.disks) - 1

    def note(self, what: str, *values: Any) -> None:
        """Add an event to the trace. The values must never change, as their text is made later."""
        self._events.append((self.scheduler.now, what, values))
        if self._digest is not None:
            self._digest = zlib.crc32(f"{self.scheduler.now} {what} {values!r}".encode(), self._digest)

    @property
    def digest(self) -> str:
        """What distinguishes this run from others; only with `digest`."""
        if self._digest is None:
            raise ValueError("the world was made without digest=True")
        return f"{self._digest:08x}"

    def trace(self, last: int | None = None) -> list[str]:
        """The last events as text, one in a line, with their times in seconds."""
        events = list(self._events)
        if last is not None:
            events = events[-last:]
        return [
            f"{now / SECOND:12.6f}  {what:<9} {' '.join(map(str, values))}".rstrip()
            for now, what, values in events
        ]
