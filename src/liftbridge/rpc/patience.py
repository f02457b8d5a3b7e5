"""How long a connection waits for its client: for the preface, for the rest of what has begun, for a call,
for any byte at all.

The connection's reader notes what comes; one task waits for the first of these times to be over and says
which it was.
"""

import enum
import math
from collections.abc import Callable

import trio

from .limits import Limits


class Exhausted(enum.Enum):
    """What was waited for in vain."""

    PREFACE = enum.auto()
    REST = enum.auto()
    """Of a frame or of a header block."""
    CALLS = enum.auto()
    SIGN_OF_LIFE = enum.auto()


class Patience:
    """The times of one connection, on Trio's clock."""

    __slots__ = ("_incomplete_since", "_limits", "greeted", "idle_since", "last_received")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.greeted = False
        """The client's SETTINGS have come."""
        self.last_received = trio.current_time()
        """When the client was heard last."""
        self.idle_since: float | None = self.last_received
        """When the last call has ended, None while there are calls."""
        self._incomplete_since: float | None = None  # a frame or header block has begun then

    def note_incomplete(self, *, pending: bool, in_block: bool, progress: bool) -> None:
        """Remember since when the client lets us wait for the rest of a frame or of a header block.

        Args:
            pending: a frame has begun and is not complete.
            in_block: the same of a header block.
            progress: another frame is complete now.
        """
        if not in_block and not pending:
            self._incomplete_since = None
        elif self._incomplete_since is None or (progress and not in_block):
            self._incomplete_since = self.last_received

    async def exhausted(self, ping: Callable[[], None]) -> Exhausted:
        """Wait until one of the times is over; `ping` asks the client for a sign of life."""
        limits = self._limits
        await trio.sleep(limits.preface_timeout)
        if not self.greeted:
            return Exhausted.PREFACE
        while True:
            now = trio.current_time()
            asleep = self.last_received + limits.keepalive_interval
            idle = math.inf if self.idle_since is None else self.idle_since + limits.idle_timeout
            begun = self._incomplete_since
            late = math.inf if begun is None else begun + limits.request_timeout
            if now >= late:
                return Exhausted.REST
            if now >= idle:
                return Exhausted.CALLS
            if now >= asleep:
                ping()
                await trio.sleep_until(now + limits.keepalive_timeout)
                if self.last_received < now:
                    return Exhausted.SIGN_OF_LIFE
            await trio.sleep_until(min(asleep, idle, late, now + limits.request_timeout))
