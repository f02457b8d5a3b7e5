"""Who looks on while hosts run: what a host tells, and what it asks.

A host calls a hook at each step that a check, or whatever lives on the host besides consensus, may want to
know of. Here none of them does anything; `raft_checks.Checks` holds each step against all that was ever
claimed, and a whole cluster (`cluster_broker`) takes from them when its process begins and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from liftbridge.raft import Entry, Message, NodeId, Raft, Ready

if TYPE_CHECKING:
    from liftbridge.sim.raft_host import Host
    from liftbridge.sim.raft_storage import Storage


class Watch:
    """Looks on and says nothing.

    Attributes:
        power: whether a process that dies at a write may take the power with it.
    """

    def __init__(self, *, power: bool) -> None:
        self.power = power

    def started(self, host: Host) -> None:
        """A process has a core, made of what its disk has."""

    def gone(self, host: Host, *, power: bool) -> None:
        """A process has ended; `power`: the machine with it."""

    def durable(self, node: NodeId, storage: Storage, records: Sequence[Any]) -> None:
        """A disk has more than before."""

    def ticked(self, host: Host, core: Raft) -> None:
        """After a tick."""

    def before(self, host: Host, core: Raft, message: Message) -> Any:
        """Before a message is stepped; `stepped` gets what this returns."""

    def stepped(self, host: Host, core: Raft, message: Message, before: Any) -> None:
        """After a message was."""

    def sent(self, host: Host, message: Message) -> None:
        """A message leaves."""

    def told(self, host: Host, core: Raft, ready: Ready) -> None:
        """A core has said what it wants done."""

    def look(self, host: Host, core: Raft) -> None:
        """A core may have changed."""

    def settled(self, host: Host, core: Raft) -> None:
        """A core wants nothing any more."""

    def applies(self, host: Host, core: Raft, entry: Entry) -> None:
        """An entry is going to be applied."""

    def applied(self, host: Host) -> None:
        """The state machine has changed."""

    def answered(self, host: Host, core: Raft, read: Any, index: int) -> None:
        """A read is answered."""
