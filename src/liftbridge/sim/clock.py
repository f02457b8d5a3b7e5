"""The clocks of a host: one that only goes forward, too fast or too slow, and one that tells the time of
day and jumps.

Invariant: `monotonic` never goes backwards, however its rate is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from liftbridge.sim.scheduler import Scheduler


class Clock:
    """Time as one host sees it, in microseconds."""

    __slots__ = ("_offset", "_rate", "_scheduler", "_since", "_then")

    def __init__(self, scheduler: Scheduler, rate: float = 1.0, offset: int = 0) -> None:
        self._scheduler = scheduler
        self._rate = rate
        self._since = scheduler.now
        self._then = 0
        self._offset = offset

    @property
    def rate(self) -> float:
        """How many of its seconds pass in a second."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Go faster or slower from now on; `rate` is above 0."""
        self._then = self.monotonic()
        self._since = self._scheduler.now
        self._rate = rate

    def monotonic(self) -> int:
        """The clock that time-outs go by."""
        return self._then + int((self._scheduler.now - self._since) * self._rate)

    def wall(self) -> int:
        """The time of day, since the world began."""
        return self.monotonic() + self._offset

    def jump(self, by: int) -> None:
        """Set the time of day forward, or back."""
        self._offset += by

    def after(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen when `delay` microseconds of this clock have passed, at the rate that it
        has now.
        """
        self._scheduler.after(int(delay / self._rate), action, *arguments)
