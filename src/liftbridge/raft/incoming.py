"""A snapshot that arrives in pieces, until it is whole.

Pieces can be lost, late, doubled or of another snapshot: only the one that continues what is here is taken,
and the answer tells how much that is. The whole has to have the length and checksum that every piece names.
"""

from __future__ import annotations

import zlib

from liftbridge.raft.messages import SnapshotChunk


class Incoming:
    """What has arrived of one snapshot: the one that the last piece was of."""

    def __init__(self) -> None:
        self._first: SnapshotChunk | None = None
        self._data = bytearray()

    @property
    def received(self) -> int:
        """Bytes that have arrived, from the beginning on."""
        return len(self._data)

    def take(self, chunk: SnapshotChunk) -> bytes | None:
        """Add a piece. Returns the whole with the last one, None before that.

        A whole that is not what its checksum says is forgotten: it is asked for from the beginning.
        """
        if self._first is None or not _same_snapshot(self._first, chunk):
            self._first, self._data = chunk, bytearray()
        if chunk.offset == len(self._data):
            self._data += chunk.data
        if len(self._data) < chunk.total:
            return None
        state = bytes(self._data)
        self.clear()
        whole = len(state) == chunk.total and zlib.crc32(state) == chunk.checksum
        return state if whole else None

    def clear(self) -> None:
        """Forget what has arrived."""
        self._first, self._data = None, bytearray()

    def clear_up_to(self, index: int) -> None:
        """Forget what has arrived of a snapshot that is not newer than an entry."""
        if self._first is not None and self._first.meta.index <= index:
            self.clear()


def _same_snapshot(first: SnapshotChunk, other: SnapshotChunk) -> bool:
    return (
        first.source == other.source
        and first.incarnation == other.incarnation
        and (first.meta, first.total, first.checksum) == (other.meta, other.total, other.checksum)
    )
