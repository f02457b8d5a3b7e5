"""Which links are open, with whom, and who may open another.

Invariants:
- All links with one server id are with one run of one process, and so are all with one node of the consensus:
  who comes under an id that is linked already, and is another, is a twin and is refused. If it is the same
  server that was started anew, its old links end within `SILENCE_SECONDS`, and then it is let in.
- The number of links is bounded, of all and of each server.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import TypeVar

import trio

from . import bounds
from .control import ControlLink
from .data import LeadLink
from .link import Link
from .model import GreetingError, Own, Reason

_Key = TypeVar("_Key", str, int)
_Link = TypeVar("_Link", bound=Link)


class Registry:
    """The open links. One that is lost counts as none, though its tasks have still to end."""

    def __init__(self) -> None:
        self._links: dict[str, list[Link]] = {}
        self._controls: dict[int, list[ControlLink]] = {}
        self._answered: dict[str, list[Link]] = {}  # those that others have opened
        self._count = 0
        self._changed = trio.Event()

    @property
    def servers(self) -> Iterable[str]:
        """Those that are linked."""
        return self._links.keys()

    @property
    def count(self) -> int:
        """Links that others have opened."""
        return self._count

    def control(self, node: int) -> ControlLink | None:
        """The control link to a node that has been open longest."""
        for link in self._controls.get(node, ()):
            if link.lost is None:
                return link
        return None

    def control_of(self, server_id: str) -> ControlLink | None:
        """The same, to a server."""
        for link in self._links.get(server_id, ()):
            if isinstance(link, ControlLink) and link.lost is None:
                return link
        return None

    async def wait_changed(self) -> None:
        """Wait until a link was opened or lost."""
        await self._changed.wait()

    def check(self, other: Own) -> None:
        """Whether a server that has proved who it is may be linked. Raises GreetingError."""
        for link in self._links.get(other.server_id, ()):
            if link.lost is None and link.other.incarnation != other.incarnation:
                raise GreetingError(
                    Reason.TWIN, _twins(other, f"the id {other.server_id}", link.other.incarnation)
                )
        for control in self._controls.get(other.node_id, ()):
            if control.lost is None and control.other.server_id != other.server_id:
                raise GreetingError(
                    Reason.TWIN, _twins(other, f"node {other.node_id:#x}", control.other.incarnation)
                )

    def make_room(self, link: Link) -> None:
        """Before `link`, which another server has opened, is added: `check`, and whether there are too many.

        What one server has too many of are links that it has lost and this one has not: the oldest ends.
        Raises GreetingError.
        """
        self.check(link.other)
        opened = self._answered.get(link.other.server_id, ())
        same = [each for each in opened if type(each) is type(link) and each.lost is None]
        most = 1 if isinstance(link, LeadLink) else bounds.MAX_CONTROL_LINKS
        if len(same) >= most:
            same[0].lose("the other server has opened another")
        if self._count >= bounds.MAX_LINKS:
            raise GreetingError(
                Reason.TOO_MANY,
                f"{self._count} links of other servers are open, of at most {bounds.MAX_LINKS}",
            )

    def add(self, link: Link, *, answered: bool) -> None:
        """A link is open."""
        server_id = link.other.server_id
        self._links.setdefault(server_id, []).append(link)
        if isinstance(link, ControlLink):
            self._controls.setdefault(link.other.node_id, []).append(link)
        if answered:
            self._answered.setdefault(server_id, []).append(link)
            self._count += 1
        self._tell()

    def remove(self, link: Link, *, answered: bool) -> None:
        """It is lost."""
        server_id = link.other.server_id
        _remove(self._links, server_id, link)
        if isinstance(link, ControlLink):
            _remove(self._controls, link.other.node_id, link)
        if answered:
            _remove(self._answered, server_id, link)
            self._count -= 1
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _remove(links: dict[_Key, list[_Link]], key: _Key, link: _Link) -> None:
    links[key].remove(link)
    if not links[key]:
        del links[key]


def _twins(other: Own, what: str, incarnation: uuid.UUID) -> str:
    return (
        f"two running processes have {what}, {incarnation} and now {other.incarnation}: stop one, or give it "
        "a data directory and a clustering.server.id of its own"
    )
