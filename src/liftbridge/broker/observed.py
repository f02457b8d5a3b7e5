"""What a running server lets be seen of itself, for the layer above that tells it to others (`obs/`).

The server knows nothing of metrics or HTTP: it hands these parts to an observer and runs it beside its own
tasks. An observer reads counters that are there anyway; it must not keep anything that is on the data path
waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from liftbridge.broker.config import Config
from liftbridge.broker.controller import Controller
from liftbridge.broker.disk import DiskSpace
from liftbridge.broker.publisher import Publisher
from liftbridge.broker.streams import Streams
from liftbridge.log.flusher import Flusher
from liftbridge.nats.connection import NatsConnection
from liftbridge.rpc import RpcServer


@dataclass
class Observed:
    """The parts of a server that has started.

    Attributes:
        server_id: who it is.
        connections: to NATS.
        stopping: whether it is about to stop.
    """

    server_id: str
    config: Config
    controller: Controller
    streams: Streams
    publisher: Publisher
    connections: Sequence[NatsConnection]
    flusher: Flusher
    space: DiskSpace
    server: RpcServer
    stopping: bool = field(default=False)

    def unready(self) -> list[str]:
        """Why clients should not be sent here now, a sentence each; empty when there is no reason."""
        reasons = ["the server is stopping"] if self.stopping else []
        reasons += [
            f"the {connection.purpose} connection to NATS is down: {connection.last_error or 'connecting'}"
            for connection in self.connections
            if not connection.connected
        ]
        if self.controller.failure:
            reasons.append(self.controller.failure)
        if self.space.low:
            reasons.append(
                f"{self.space.free} bytes are free on the disk, less than the {self.space.min_free} of "
                "streams.disk.min.free: no message is stored"
            )
        return reasons


class Observer(Protocol):
    """Who observes a server."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Observe until cancelled. Raises OSError when that cannot begin."""


Observe = Callable[[Observed], Observer]
