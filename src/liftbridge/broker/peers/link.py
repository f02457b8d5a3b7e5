"""What all links have: tasks that read, send and listen for silence, and one end of them all.

A link is lost when the other server ends it, breaks its rules, or is silent for `SILENCE_SECONDS`. It sends
something at least every `HEARTBEAT_SECONDS`, so a link that works is never silent.

Invariant: however a link is lost, `run` returns, once, with the reason in `lost`; only an error of the work
that uses it goes on upwards.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from . import bounds
from .model import LinkError, Own
from .pipe import One

# Woken so much later than it wanted, this process itself stood still, and has not looked at what has come.
_STOOD_STILL = 0.1


class Link:
    """A link to a server that has proved who it is.

    Arguments:
        messages: of the connection, behind the greeting.
        other: who has been greeted.

    Attributes:
        other: who that is.
        lost: why the link is over, None while it is not.
    """

    def __init__(self, messages: One, other: Own) -> None:
        self.other = other
        self.lost: str | None = None
        self._pipe, self._come_before = messages.end()
        self._scope = trio.CancelScope()

    def lose(self, reason: str) -> None:
        """End the link; the first reason counts."""
        if self.lost is None:
            self.lost = reason
        self._scope.cancel()

    async def run(self, work: Callable[[], Awaitable[None]] | None = None) -> None:
        """Keep the link until it is lost, or until `work` returns."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for part in (self._read, self._write):
                        nursery.start_soon(self._guarded, part)
                    nursery.start_soon(self._watch)
                    if work is not None:
                        await self._guarded(work)
                        self.lose("this server has ended it")
        finally:
            self.lose("this server has ended it")
            self._ended()

    async def _guarded(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except LinkError as error:
            self.lose(str(error))

    async def _watch(self) -> None:
        excused = 0.0
        while True:
            due = max(self._pipe.last_received, excused) + bounds.SILENCE_SECONDS
            now = trio.current_time()
            if now >= due:
                self.lose(f"nothing has come for {bounds.SILENCE_SECONDS:g} seconds")
                return
            await trio.sleep_until(due)
            now = trio.current_time()
            if now > due + _STOOD_STILL:
                excused = now

    async def _receive(self) -> list[bytes]:
        """The next messages. Raises LinkError."""
        messages, self._come_before = self._come_before, []
        return messages or await self._pipe.receive()

    async def _read(self) -> None:
        """Take what comes, without ever waiting for those who want it. Raises LinkError."""
        raise NotImplementedError

    async def _write(self) -> None:
        """Send what waits, and heartbeats. Raises LinkError."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self.lost is not None:
            raise LinkError(f"the link with server {self.other.server_id} is over: {self.lost}")

    def _ended(self) -> None:
        """Tell those who wait for something of the link."""
