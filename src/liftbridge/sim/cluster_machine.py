"""The state machine of a simulated cluster: the metadata, fed by consensus.

What it applies is the product's `ClusterState`. Whoever lives on the host is told of each operation, and does
what follows from it later: nothing that is done here can fail.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.operations import Operation, decode
from liftbridge.metadata.state import ClusterState, Outcome
from liftbridge.raft import Entry, EntryKind

_PLACE = struct.Struct("<QQ")


class Decoded:
    """Operations by their stored form, so that what each broker applies is decoded once in a run."""

    def __init__(self) -> None:
        self._known: dict[bytes, Operation] = {}

    def __call__(self, data: bytes) -> Operation:
        """The operation that is stored as `data`."""
        operation = self._known.get(data)
        if operation is None:
            operation = self._known[data] = decode(data)
        return operation


class MetadataMachine:
    """The metadata after the entry `index`.

    Attributes:
        index, term: of the last entry applied.
        cluster: the state.
        outcome: of the last operation: what it made, or why it was refused.

    Arguments:
        decoded: shared by all brokers of a run.
        applied: told of each operation that was applied, refused or not.
    """

    def __init__(
        self, decoded: Decoded, applied: Callable[[int, Operation, Outcome | MetadataError], None]
    ) -> None:
        self.index = 0
        self.term = 0
        self.cluster = ClusterState()
        self.outcome: Outcome | MetadataError | None = None
        self._decoded = decoded
        self._applied = applied

    def apply(self, entry: Entry) -> None:
        """Apply an entry, which follows the last one."""
        self.index, self.term = entry.index, entry.term
        if entry.kind is not EntryKind.COMMAND:
            return
        operation = self._decoded(entry.data)
        try:
            self.outcome = self.cluster.apply(entry.index, operation)
        except MetadataError as error:
            self.outcome = error
        self._applied(entry.index, operation, self.outcome)

    def state(self) -> bytes:
        """What `restore` takes."""
        return _PLACE.pack(self.index, self.term) + self.cluster.snapshot()

    def restore(self, state: bytes) -> None:
        """Become what `state` was."""
        self.index, self.term = _PLACE.unpack_from(state)
        self.cluster.restore(state[_PLACE.size :])
