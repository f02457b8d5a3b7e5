"""Cursors: positions that clients store under a name, in the stream `__cursors`.

A cursor is a message there: its key names the cursor, the partition is that of the key's CRC-32, which
clients compute alike, and the newest message of a key counts. Compaction keeps that one, so the log stays
about as long as there are cursors.

To set one is to publish it and to wait for the ack `ALL`: when `set` returns, the position is committed under
the sync policy of the stream. To fetch one is a look into an index in memory (`cursor_index.py`).

Sets of one cursor take turns, so the one that is answered last is the one that lies last in the log, and
wins. Those of different cursors share flushes like any other messages. A message that NATS has lost, or that
reached the subject while the partition was not there to take it, is sent again: storing the same position
twice is the same as once.

Invariants:
* A fetch after an answered set returns that position or a later one.
* No lock and no table here lives longer than the calls that use it, except the indexes, which are bounded.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf

import trio

from liftbridge.broker.cursor_index import CursorIndex, CursorsDamagedError
from liftbridge.broker.internal_publisher import InternalPublisher, NotStoredError
from liftbridge.broker.internal_streams import NotLeadingError, OwnPartitions
from liftbridge.broker.partition import Partition
from liftbridge.log import LogClosedError, LogError
from liftbridge.metadata.model import Stream
from liftbridge.metadata.state import ClusterState
from liftbridge.metadata.validation import CURSORS_STREAM, shown
from liftbridge.proto import internal_pb2
from liftbridge.rpc import StatusCode, rpc_error

# How long a call without a deadline takes at most.
PATIENCE_SECONDS = 5.0
# After so long without an ack a position is sent again.
AGAIN_SECONDS = 1.0
# Of stream and cursor together: every index, and every message, holds the key.
MAX_KEY_BYTES = 4096
NONE_SET = -1

_logger = logging.getLogger("liftbridge.cursors")


@dataclass
class _Turn:
    """The sets of one cursor that are under way: one has the lock, the others wait."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    calls: int = 0


class Cursors:
    """All cursors that this server leads. `max_bytes` is what the indexes may take together."""

    def __init__(
        self, state: ClusterState, partitions: OwnPartitions, publisher: InternalPublisher, max_bytes: int
    ) -> None:
        self._state = state
        self._partitions = partitions
        self._publisher = publisher
        self._max_bytes = max_bytes
        self._indexes: dict[int, CursorIndex] = {}
        self._turns: dict[bytes, _Turn] = {}

    async def set(self, stream: str, partition: int, cursor_id: str, offset: int, *, deadline: bool) -> None:
        """Store a position; when this returns it is committed.

        Arguments:
            stream, partition: what the cursor is a position in; it need not exist.
            cursor_id: its name.
            offset: the position, any int64.
            deadline: whether the caller has set one, which then bounds the call.

        Raises RpcFailedError with the status for the client.
        """
        key = cursor_key(stream, partition, cursor_id)
        value = internal_pb2.Cursor(
            stream=stream, partition=partition, cursor_id=cursor_id, offset=offset
        ).SerializeToString()
        async with _bounded(deadline, "stored"), self._turn(key):
            cursors, number = self._find(key)
            stored_at = await self._store(cursors, number, key, value)
            # What an index does not hear of, it reads before it answers.
            leader, index = self._partitions.find(CURSORS_STREAM, number), self._indexes.get(number)
            if leader is not None and index is not None and index.is_of(leader):
                index.stored(stored_at, key, offset)

    async def fetch(self, stream: str, partition: int, cursor_id: str, *, deadline: bool) -> int:
        """The position that was stored last, -1 when there is none. Arguments and errors as for `set`."""
        key = cursor_key(stream, partition, cursor_id)
        async with _bounded(deadline, "read"):
            _, number = self._find(key)
            found = await self._read(number, key)
        return NONE_SET if found is None else found

    async def _read(self, number: int, key: bytes) -> int | None:
        while True:
            leader = await self._leading(number)
            try:
                return await self._index(leader).fetch(key)
            except LogClosedError:
                continue  # it was paused, or the server stops
            except (CursorsDamagedError, LogError, OSError) as error:
                raise rpc_error(StatusCode.INTERNAL, f"the cursor could not be read: {error}") from error

    async def warm(self) -> None:
        """Build the indexes of all partitions, so that the first fetch after a start need not wait for it."""
        cursors = self._state.streams.get(CURSORS_STREAM)
        for model in cursors.partitions if cursors is not None else ():
            if model.paused:
                continue
            try:
                await self._index(await self._partitions.leading(CURSORS_STREAM, model.id)).catch_up()
            except (LookupError, NotLeadingError):
                continue
            except (LogError, OSError) as error:
                # The first fetch tries again, and tells its client.
                _logger.warning("cursors in partition %d could not be read: %s", model.id, error)

    def _find(self, key: bytes) -> tuple[Stream, int]:
        """The stream of the cursors, and the partition that a key belongs to."""
        cursors = self._state.streams.get(CURSORS_STREAM)
        if cursors is None:
            raise rpc_error(
                StatusCode.INTERNAL,
                f"cursors are off, there is no stream {CURSORS_STREAM}; set cursors.stream.partitions",
            )
        return cursors, zlib.crc32(key) % len(cursors.partitions)

    async def _leading(self, number: int) -> Partition:
        try:
            return await self._partitions.leading(CURSORS_STREAM, number)
        except LookupError as error:
            raise rpc_error(StatusCode.INTERNAL, str(error)) from error
        except NotLeadingError as error:
            raise rpc_error(
                StatusCode.FAILED_PRECONDITION, f"Server not partition leader: {error}"
            ) from error

    def _index(self, partition: Partition) -> CursorIndex:
        """The index of a partition that leads: of the log that it has open now."""
        number = partition.model.id
        index = self._indexes.get(number)
        if index is None or not index.is_of(partition):
            share = self._max_bytes // len(partition.stream.partitions)
            index = self._indexes[number] = CursorIndex(partition, share)
        return index

    async def _store(self, cursors: Stream, number: int, key: bytes, value: bytes) -> int:
        """Have a message stored, and return its offset."""
        while True:
            await self._leading(number)
            with trio.move_on_after(AGAIN_SECONDS):
                try:
                    ack = await self._publisher.publish(cursors, number, key=key, value=value)
                except NotStoredError as error:
                    text = f"the cursor could not be stored: {error}"
                    raise rpc_error(StatusCode.INTERNAL, text) from error
                assert ack is not None, "a message with the policy ALL has an ack"
                return ack.offset

    @asynccontextmanager
    async def _turn(self, key: bytes) -> AsyncIterator[None]:
        turn = self._turns.setdefault(key, _Turn())
        turn.calls += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.calls -= 1
            if not turn.calls:
                del self._turns[key]


def cursor_key(stream: str, partition: int, cursor_id: str) -> bytes:
    """The key of a cursor, as clients compute it. Raises RpcFailedError INVALID_ARGUMENT."""
    if not stream or not cursor_id:
        raise rpc_error(StatusCode.INVALID_ARGUMENT, "a cursor needs a stream and a cursorId")
    if "," in stream:
        # No stream has such a name, and its key could be that of another cursor.
        raise rpc_error(StatusCode.INVALID_ARGUMENT, f"the stream {shown(stream)} has a comma in its name")
    key = f"{cursor_id},{stream},{partition}".encode()
    if len(key) > MAX_KEY_BYTES:
        raise rpc_error(
            StatusCode.INVALID_ARGUMENT,
            f"stream and cursorId take {len(key)} bytes together; at most {MAX_KEY_BYTES} are allowed",
        )
    return key


@asynccontextmanager
async def _bounded(deadline: bool, done: str) -> AsyncIterator[None]:
    """Give up after the patience of the server, when the caller has set no deadline."""
    with trio.move_on_after(inf if deadline else PATIENCE_SECONDS) as scope:
        yield
    if scope.cancelled_caught:
        text = f"the cursor could not be {done} within {PATIENCE_SECONDS:g} seconds"
        raise rpc_error(StatusCode.INTERNAL, text)
