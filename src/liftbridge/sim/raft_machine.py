"""A state machine for consensus to feed: it counts commands, once for each client and number.

Its state is a chain of checksums, so two states are equal exactly when the same commands went in in the
same order.

Invariant: applying raises nothing, whatever a command says.
"""

from __future__ import annotations

import json
import zlib
from typing import Protocol

from liftbridge.raft import Entry, EntryKind


def command(client: int, number: int) -> bytes:
    """The command of a client with that number, which a retry has as well."""
    return b"%d:%d" % (client, number)


class AnyMachine(Protocol):
    """What a host feeds: `index` and `term` are of the last entry applied."""

    index: int
    term: int

    def apply(self, entry: Entry) -> None:
        """Apply an entry, which follows the last one."""

    def state(self) -> bytes:
        """What `restore` takes."""

    def restore(self, state: bytes) -> None:
        """Become what `state` was."""


class Machine:
    """The state after the entry `index`.

    Attributes:
        index, term: of the last entry applied.
        chain: checksum over all commands that counted.
        numbers: of the newest command of each client.
    """

    __slots__ = ("chain", "index", "numbers", "term")

    def __init__(self) -> None:
        self.index = 0
        self.term = 0
        self.chain = 0
        self.numbers: dict[int, int] = {}

    def apply(self, entry: Entry) -> None:
        """Apply an entry, which follows the last one."""
        self.index, self.term = entry.index, entry.term
        if entry.kind is not EntryKind.COMMAND:
            return
        client, _, number = entry.data.partition(b":")
        who, which = int(client), int(number)
        if which <= self.numbers.get(who, 0):
            return
        self.numbers[who] = which
        self.chain = zlib.crc32(entry.data, self.chain)

    def state(self) -> bytes:
        """What `restore` takes."""
        return json.dumps(
            [self.index, self.term, self.chain, sorted(self.numbers.items())], separators=(",", ":")
        ).encode()

    def restore(self, state: bytes) -> None:
        """Become what `state` was."""
        self.index, self.term, self.chain, numbers = json.loads(state)
        self.numbers = dict(map(tuple, numbers))
