"""Who is linked to whom: the values and protocols of `broker.peers` that others use."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True)
class Own:
    """Who a server of a cluster is.

    Attributes:
        server_id: its id.
        node_id: of its node of the consensus.
        cluster_id: the cluster that it belongs to.
        incarnation: of this run of its process.
    """

    server_id: str
    node_id: int
    cluster_id: uuid.UUID
    incarnation: uuid.UUID


class Whereabouts(Protocol):
    """Where other servers are, as far as this one knows."""

    def by_node(self, node: int) -> tuple[str, Sequence[tuple[str, int]]] | None:
        """Server id and addresses (host, port) of the broker with that node; None when it is not known."""

    def by_server(self, server_id: str) -> Sequence[tuple[str, int]]:
        """Addresses of a server, none when it is not known."""

    def anybody(self) -> Sequence[str]:
        """Ids of servers that may be asked, without this one."""


class UnansweredError(Exception):
    """Raised by who answers questions: it was not looked at, and nothing was done. The text says why."""


class Purpose(Enum):
    """What a link is for; also the name of its method."""

    CONTROL = "Control"
    DATA = "Data"
    CLUSTER = "Cluster"


class Reason(Enum):
    """Why somebody is not linked."""

    MALFORMED = "what it says is no greeting"
    VERSION = "it speaks another version of the links"
    SECRET = "it does not know the secret of the cluster"  # noqa: S105  # no secret
    CERTIFICATE = "its certificate is not that of a server of the cluster"
    NO_CLUSTER = "it belongs to no cluster yet"
    CLUSTER = "it belongs to another cluster"
    SERVER = "another server is meant"
    ITSELF = "it is this server itself"
    TWIN = "another process with that identity is linked"
    TOO_MANY = "too many are linked"
    REFUSED = "it refuses this server"


class GreetingError(Exception):
    """A greeting has failed, and there is no link. The text says whose and why, and what to do."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class LinkError(Exception):
    """A link cannot go on; the text says why.

    Attributes:
        refused: the other server has ended it, and says why.
    """

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused
