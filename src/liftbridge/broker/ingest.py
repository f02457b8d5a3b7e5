"""The ingest connection and what slows it down.

All partitions that this server leads receive through one NATS connection, whose reader parses and appends. It
goes on reading as long as what the reads cause can be carried: acks leave by a connection of their own, and
the acks of messages that are not on disk yet wait in memory. When one of the two grows beyond its bound,
reading stops, TCP fills up and NATS slows the publishers down, or, being at most once, drops the connection
for being slow; that is logged and counted by the connection.

A flood of messages for whose acks nobody waits is read in larger pieces: after a read that brought many, the
next one is put off by a millisecond. Each read then does more, which leaves more of the processor to NATS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

import trio

from liftbridge.nats.connection import NatsConnection
from liftbridge.nats.transport import NatsCredentials
from liftbridge.sockets import Turn

# A read of so many messages is part of a flood.
FLOOD_MESSAGES = 256
FLOOD_PAUSE_SECONDS = 0.001

if TYPE_CHECKING:
    from liftbridge.broker.partition import Partition


class Ingest:
    """The ingest connection; `hold` and `unhold` are for partitions with too many waiting acks."""

    def __init__(
        self,
        servers: Sequence[str],
        *,
        name: str,
        credentials: NatsCredentials,
        acks: NatsConnection,
        turn: Turn | None = None,
    ) -> None:
        self.connection = NatsConnection(
            servers, name=name, purpose="streams", credentials=credentials, pace=self._pace, turn=turn
        )
        self._acks = acks
        self._holding: set[Partition] = set()
        self._released = trio.Event()
        self._hurried = False
        self._messages = 0

    def hurry(self) -> None:
        """Somebody waits for an ack of what was just read: go on reading without a pause."""
        self._hurried = True

    def hold(self, partition: Partition) -> None:
        """Stop reading until the partition is unheld."""
        self._holding.add(partition)

    def unhold(self, partition: Partition) -> None:
        """The partition can take messages again, or is gone."""
        self._holding.discard(partition)
        if not self._holding:
            self._released.set()

    def _pace(self) -> Awaitable[None] | None:
        """What the reader has to wait for before it reads again; None, as is usual, for nothing."""
        messages = self.connection.parser.messages
        flood = messages - self._messages >= FLOOD_MESSAGES and not self._hurried
        self._messages, self._hurried = messages, False
        if not flood and not self._holding and not self._acks.full:
            return None
        return self._pause(flood=flood)

    async def _pause(self, *, flood: bool) -> None:
        if flood:
            await trio.sleep(FLOOD_PAUSE_SECONDS)
        while self._holding:
            self._released = trio.Event()
            await self._released.wait()
        await self._acks.wait_room()
