"""The cursors of one partition of `__cursors`, by key, in memory.

The index is what the log says, read once from its beginning and followed from there: after `catch_up` it has
every committed message, whoever wrote it. What `SetCursor` has just stored is taken from it (`stored`)
instead of from the log, so that a server which only answers its own clients reads nothing after the start.

It belongs to one open log. When the partition is opened anew, by whatever was between, its log is another
object, and a new index is made of it.

Memory is bounded: beyond `max_bytes` what was not asked for longest is forgotten. Whoever asks for it then
has the log searched backwards, one search at a time. Only as long as nothing was forgotten is a key that is
not here known to be in no message.

Damage in the log may hide the newest position of any cursor, and going back to an older one unasked is the
one thing that must not happen. So nothing from below it is served: those cursors are an error until they are
set anew.

Invariants:
* Every message below `next_offset` has been taken up, in order of offsets: the last one wins.
* What is here for a key is the newest below `next_offset`; None when that removed the cursor or there is
none.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import trio
from google.protobuf.message import DecodeError

from liftbridge.broker.internal_streams import messages_in
from liftbridge.broker.partition import Partition, State
from liftbridge.log import CorruptBatchError, Log
from liftbridge.proto import internal_pb2

# What an entry costs besides its key, measured with CPython 3.11.
ENTRY_BYTES = 180
# Of messages that are stored but follow one that was not heard of; beyond it they are read from the log.
MAX_EARLY = 1024
READ_BYTES = 262_144

T = TypeVar("T")

_logger = logging.getLogger("liftbridge.cursors")


class CursorsDamagedError(Exception):
    """The log is damaged where the cursor may have been; the text says what to do."""


class CursorIndex:
    """The index of one open log: of that of `partition` at the time. `max_bytes` bounds its memory.

    Attributes:
        log: the log.
        next_offset: every message below is taken up.
        reads: how often the log was read, for the curious and for tests.
    """

    def __init__(self, partition: Partition, max_bytes: int) -> None:
        self.log: Log = partition.log
        self.next_offset = self.log.start_offset
        self.reads = 0
        self._partition = partition
        self._max_bytes = max_bytes
        self._cursors: OrderedDict[bytes, int | None] = OrderedDict()
        self._bytes = 0
        self._complete = True
        self._damage = ""
        self._early: dict[int, tuple[bytes, int | None]] = {}
        self._reading = trio.Lock()
        self._searching = trio.Lock()

    def __len__(self) -> int:
        return len(self._cursors)

    def is_of(self, partition: Partition) -> bool:
        """Whether the partition leads, with this log."""
        return partition.state is State.LEADING and self.log is partition.log

    def stored(self, log_offset: int, key: bytes, cursor: int) -> None:
        """`SetCursor` has stored a position as the message at `log_offset`, which is committed."""
        if log_offset < self.next_offset:
            return
        if len(self._early) < MAX_EARLY:
            self._early[log_offset] = (key, cursor)
        self._take_early()

    def _take_early(self) -> None:
        while self.next_offset in self._early:
            key, cursor = self._early.pop(self.next_offset)
            self._put(key, cursor)
            self.next_offset += 1

    async def fetch(self, key: bytes) -> int | None:
        """The position that was set last, None when there is none.

        Raises CursorsDamagedError, and LogError or OSError when the log cannot be read.
        """
        await self.catch_up()
        if key not in self._cursors and not self._complete:
            async with self._searching:
                if key not in self._cursors:
                    await self._search(key)
        if key in self._cursors:
            self._cursors.move_to_end(key)
            return self._cursors[key]
        if self._damage:
            raise CursorsDamagedError(self._damage)
        return None

    async def catch_up(self) -> None:
        """Take up what is committed now and not here yet. Raises LogError or OSError."""
        end = self._partition.high_watermark + 1
        if self.next_offset >= end:
            return
        async with self._reading:
            while self.next_offset < end:
                await self._read_on(end)

    async def _read_on(self, end: int) -> None:
        start = self.next_offset
        try:
            found, following = await self._in_thread(partial(self._read_forward, start, end))
        except CorruptBatchError as error:
            if error.next_offset <= start:
                raise
            self._skip_damage(error)
            return
        if self.next_offset != start:
            return  # `stored` has taken up some of it meanwhile: read on from there
        for key, cursor in found.items():
            self._put(key, cursor)
        self.next_offset = following
        self._early = {offset: entry for offset, entry in self._early.items() if offset >= following}
        self._take_early()

    def _skip_damage(self, error: CorruptBatchError) -> None:
        _logger.error("%s: cursors are lost: %s", self._partition, error)
        self._damage = f"the log of the cursors is damaged where this one may be; set it anew: {error}"
        self._cursors.clear()
        self._bytes = 0
        self._complete = True  # a search would have to pass the damage as well
        self._early.clear()
        self.next_offset = error.next_offset

    def _put(self, key: bytes, cursor: int | None) -> None:
        if key not in self._cursors:
            self._bytes += len(key) + ENTRY_BYTES
        self._cursors[key] = cursor
        self._cursors.move_to_end(key)
        while self._bytes > self._max_bytes and len(self._cursors) > 1:
            forgotten, _ = self._cursors.popitem(last=False)
            self._bytes -= len(forgotten) + ENTRY_BYTES
            self._complete = False

    async def _search(self, key: bytes) -> None:
        """Find what was forgotten; afterwards the key is here, if only to say that it is nowhere."""
        start = self.next_offset
        try:
            found = await self._in_thread(partial(self._read_backward, key, start - 1))
        except CorruptBatchError as error:
            raise CursorsDamagedError(
                f"the log of the cursors is damaged where this one may be; set it anew: {error}"
            ) from error
        if key not in self._cursors:  # nor was it set while the search went on
            self._put(key, found)

    def _read_forward(self, start: int, end: int) -> tuple[dict[bytes, int | None], int]:
        """In a worker: the cursors in some messages from `start` on, and where to go on."""
        frames, following = self.log.read_frames(start, end, self._partition.prefix, READ_BYTES)
        return dict(cursors_in(frames)), following

    def _read_backward(self, key: bytes, newest: int) -> int | None:
        """In a worker: the newest position of a cursor at or below an offset."""
        offset = newest
        while offset >= self.log.start_offset:
            frames, offset = self.log.read_frames_reverse(offset, 0, self._partition.prefix, READ_BYTES)
            for found, cursor in cursors_in(frames):
                if found == key:
                    return cursor
        return None

    async def _in_thread(self, read: Callable[[], T]) -> T:
        self.reads += 1
        return await trio.to_thread.run_sync(read)


def cursors_in(frames: bytes) -> Iterator[tuple[bytes, int | None]]:
    """Key and position of every cursor in messages as `Log.read_frames` returns them.

    None stands for a cursor that was removed, by a message without a value. What is no cursor is left out:
    anybody who can publish to the subject can put something else there.
    """
    for message in messages_in(frames):
        if not message.key:
            continue
        if not message.value:
            yield message.key, None
            continue
        try:
            yield message.key, internal_pb2.Cursor.FromString(message.value).offset
        except DecodeError:
            continue
