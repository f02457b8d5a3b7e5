"""Frames that several subscribers of a partition get from one read of its log.

Subscribers at the end of a partition all wake for the same messages, and those that began together replay
the same ones; each would read and encode them anew. What one of them has read is kept here for the others, as
the bytes that go to the client: up to a bound for the process, the least recently used go first. While one
reads from the disk, those that want the same wait for it instead of reading too.

A read is known by its place, which stands for a partition in one state of its log, and the offset where it
begins. A partition takes a new place when messages below its end change, which compaction and truncation do;
so nobody has to search for what must go.

A partition with a single subscriber does not come here: what it reads would only push out what others share.

Invariants:
* What is handed out ends at or below the reader's limit.
* It is worth a send: large, or at least half of what the reader could have read by itself. The small reads of
  subscribers that follow closely are not served to one that replays, bit by bit.
* `size` is the sum of what is kept, and at most `max_bytes`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

LARGE_BYTES = 64 << 10
# Beside the frames: keys, tuple, bytes object, entry of the dictionary.
OVERHEAD_BYTES = 400

Read = tuple[bytes, int]
"""Frames, and the offset behind them."""


class FrameCache:
    """The reads that are kept, of all partitions.

    Arguments:
        max_bytes: how much to keep; with 0, every subscriber reads for itself.

    Attributes: `size` in bytes; `hits` and `misses`, reads that were shared and that were not.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[tuple[object, int], Read] = OrderedDict()
        self._reading: dict[tuple[object, int], trio.Event] = {}

    async def read(self, place: object, offset: int, limit: int, read: Callable[[], Awaitable[Read]]) -> Read:
        """Return the frames from `offset` on and below `limit`, and the offset to read on from.

        Arguments:
            place: the partition in the present state of its log.
            read: reads them, if nobody else has.

        Raises what `read` raises.
        """
        if not self.max_bytes:
            return await read()
        key = (place, offset)
        while True:
            found = self._kept.get(key)
            if found is not None and _fits(found, offset, limit):
                self._kept.move_to_end(key)
                self.hits += 1
                return found
            reading = self._reading.get(key)
            if reading is None:
                break
            await reading.wait()
        self.misses += 1
        done = self._reading[key] = trio.Event()
        try:
            result = await read()
        finally:
            # Those who wait look again, and read for themselves if this one failed.
            del self._reading[key]
            done.set()
        self._keep(key, result)
        return result

    def _keep(self, key: tuple[object, int], result: Read) -> None:
        before = self._kept.get(key)
        size = len(result[0]) + OVERHEAD_BYTES
        if (before is not None and before[1] >= result[1]) or size > self.max_bytes:
            return
        if before is not None:
            self.size -= len(before[0]) + OVERHEAD_BYTES
        self._kept[key] = result
        self._kept.move_to_end(key)
        self.size += size
        while self.size > self.max_bytes:
            _, (frames, _) = self._kept.popitem(last=False)
            self.size -= len(frames) + OVERHEAD_BYTES


def _fits(found: Read, offset: int, limit: int) -> bool:
    frames, following = found
    return following <= limit and (len(frames) >= LARGE_BYTES or 2 * (following - offset) >= limit - offset)
