"""Virtual time: a queue of what happens next.

Times are whole microseconds, as sums of floats differ with their order. What is due at the same time
happens in the order in which it was scheduled, so a run has one order only.

Invariant: time never goes backwards, and goes forward only in `run` and `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

MILLISECOND = 1_000
SECOND = 1_000_000


class Scheduler:
    """Events and the time. There is no way to take an event back: who schedules one has it look for itself
    whether it is still wanted (a generation number is enough), which keeps the queue a plain heap."""

    __slots__ = ("_order", "_queue", "_stopped", "handled", "now")

    def __init__(self) -> None:
        self.now = 0
        """Microseconds since the beginning of the world."""
        self.handled = 0
        """Events that have happened."""
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._stopped = False

    def after(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Have `action(*arguments)` happen in `delay` microseconds, 0 for as soon as what is due now is
        done.
        """
        if delay < 0:
            raise ValueError(f"an event cannot happen {-delay} us ago")
        self._order += 1
        heappush(self._queue, (self.now + delay, self._order, action, arguments))

    def run(self, until: int) -> None:
        """Let everything happen that is due before or at `until`, an absolute time; then it is `until`.

        An error of an event ends the run where it is. `stop` ends it after the event that calls it.
        """
        queue = self._queue
        self._stopped = False
        while queue and queue[0][0] <= until:
            self.now, _, action, arguments = heappop(queue)
            self.handled += 1
            action(*arguments)
            if self._stopped:
                return
        self.now = max(self.now, until)

    def stop(self) -> None:
        """End `run` after this event."""
        self._stopped = True

    def __len__(self) -> int:
        return len(self._queue)
