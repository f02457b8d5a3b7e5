"""Decisions in the log: who was allowed or denied what, and from where.

A denied call is a warning, an allowed one has the level that the configuration asks for. A client whose calls
are denied as fast as it can make them must not fill the disk, nor bury the denials of others: of each client
a few lines a second are written and of all clients together a bounded number; what is left out is counted and
told, by client, when the second is over.

One line: `denied: client 'joe', action Publish, resource 'orders', peer ipv4:10.0.0.1:51234`. What clients
chose is quoted and cut.
"""

from __future__ import annotations

import logging
from collections import Counter

import trio

from liftbridge.metadata.validation import shown

logger = logging.getLogger("liftbridge.audit")

PERIOD_SECONDS = 1.0
PER_CLIENT = 10
# Clients that are counted apart in one period, and named when it ends.
MAX_COUNTED = 1000
MAX_NAMED = 5


class Audit:
    """The audit log.

    Args:
        allowed_level: the `logging` level of allowed calls.
        max_rate: lines about denied calls in one second.
    """

    def __init__(self, allowed_level: int, max_rate: int) -> None:
        self._allowed_level = allowed_level
        self._max_rate = max_rate
        self._lines = 0  # of this period
        self._lines_of: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._begun = trio.Event()
        self.calls_denied = 0
        """Calls denied since the start, and streams denied to calls of PublishAsync."""
        self.messages_denied = 0
        """Messages of PublishAsync denied since the start."""

    def allowed(self, client: str, action: str, resource: str, peer: str) -> None:
        """Note an allowed call."""
        if logger.isEnabledFor(self._allowed_level):
            logger.log(self._allowed_level, "%s", _line("allowed", client, action, resource, peer))

    def denied(self, client: str, action: str, resource: str, peer: str) -> None:
        """Note a denied call."""
        self.calls_denied += 1
        self._write(client, _line("denied", client, action, resource, peer))

    def denied_messages(self, client: str, count: int, peer: str) -> None:
        """Note how many messages of a PublishAsync call were denied, when it ends."""
        if count:
            self.messages_denied += count
            self._write(client, f"denied: client {shown(client)}, {count} messages of a call, peer {peer}")

    def _write(self, client: str, line: str) -> None:
        self._begun.set()
        if self._lines >= self._max_rate or self._lines_of[client] >= PER_CLIENT:
            known = client in self._left_out or len(self._left_out) < MAX_COUNTED
            self._left_out[client if known else ""] += 1
            return
        self._lines += 1
        self._lines_of[client] += 1
        logger.warning("%s", line)

    async def run(self) -> None:
        """End a period each second while there are denials; for ever."""
        while True:
            await self._begun.wait()
            await trio.sleep(PERIOD_SECONDS)
            self._begun = trio.Event()
            self._end_period()

    def _end_period(self) -> None:
        left_out, self._left_out = self._left_out, Counter()
        self._lines = 0
        self._lines_of.clear()
        if left_out:
            named = ", ".join(
                f"{count} of {shown(client)}" for client, count in left_out.most_common(MAX_NAMED)
            )
            more = f" and {len(left_out) - MAX_NAMED} more clients" if len(left_out) > MAX_NAMED else ""
            logger.warning("denied: %d more in a second, not listed: %s%s", left_out.total(), named, more)


def _line(what: str, client: str, action: str, resource: str, peer: str) -> str:
    return f"{what}: client {shown(client)}, action {action}, resource {shown(resource)}, peer {peer}"
