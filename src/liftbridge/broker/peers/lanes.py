"""The messages of a control link, in lanes: what is urgent overtakes what is large.

A message longer than a piece goes in pieces, and between two of them whatever is more urgent. So a heartbeat
of the consensus waits for one piece at most, however large a snapshot is on its way. Within a lane messages
stay in order. A piece is a message of gRPC: a byte, the lane and whether it is the last, and bytes.

Invariants: a lane holds as many bytes as it may and no more, at the sender, except that one message always
has room; at the receiver, of each lane one message that is not complete.
"""

from __future__ import annotations

import struct
from collections import deque
from enum import IntEnum

import trio

from . import bounds
from .model import LinkError

_PREFIX = struct.Struct(">BLB")  # length prefix of gRPC, and the byte that begins a piece
_LAST = 0x80
HEARTBEAT = b"\0\0\0\0\0"
"""A message of gRPC without any bytes: it only says that the sender is there."""


class Lane(IntEnum):
    """Most urgent first."""

    CONSENSUS = 0
    """What the consensus says, but for entries and snapshots."""
    QUESTIONS = 1
    ENTRIES = 2
    SNAPSHOTS = 3


_MOST = {
    Lane.CONSENSUS: bounds.MAX_RAFT_BYTES,
    Lane.QUESTIONS: bounds.MAX_QUESTION_BYTES,
    Lane.ENTRIES: bounds.MAX_RAFT_BYTES,
    Lane.SNAPSHOTS: bounds.MAX_RAFT_BYTES,
}


class Outgoing:
    """What waits to be sent.

    Attributes:
        waiting: is set while anything does.
    """

    def __init__(self) -> None:
        self.waiting = trio.Event()
        self._queues: list[deque[bytes]] = [deque() for _ in Lane]
        self._sizes = [0] * len(Lane)
        self._sent = [0] * len(Lane)  # bytes of the first message that have gone
        self._room = trio.lowlevel.ParkingLot()

    def put(self, lane: Lane, message: bytes) -> bool:
        """Have a message sent; False: the lane is full, or the message is too long for it."""
        size = len(message)
        if size > _MOST[lane] or (self._queues[lane] and self._sizes[lane] + size > bounds.QUEUE_BYTES[lane]):
            return False
        self._queues[lane].append(message)
        self._sizes[lane] += size
        self.waiting.set()
        return True

    async def put_when_there_is_room(self, lane: Lane, message: bytes) -> None:
        """As `put`, but wait; the message must not be too long."""
        assert len(message) <= _MOST[lane], len(message)
        while not self.put(lane, message):
            await self._room.park()

    def take(self) -> bytes:
        """Pieces to send now, at least one, most urgent first; as many as fit in about one piece."""
        parts: list[bytes] = []
        room = bounds.MAX_PIECE
        for lane, queue in enumerate(self._queues):
            while queue and room > 0:
                message, begin = queue[0], self._sent[lane]
                end = min(len(message), begin + room)
                last = end == len(message)
                parts.append(_PREFIX.pack(0, 1 + end - begin, lane | (_LAST if last else 0)))
                parts.append(message[begin:end])
                room -= end - begin + _PREFIX.size
                if last:
                    queue.popleft()
                    self._sizes[lane] -= len(message)
                    self._sent[lane] = 0
                    self._room.unpark_all()
                else:
                    self._sent[lane] = end
        if not any(self._queues):
            self.waiting = trio.Event()
        return b"".join(parts)


class Incoming:
    """Pieces become messages again."""

    def __init__(self) -> None:
        self._parts: list[bytearray | None] = [None] * len(Lane)

    def add(self, piece: bytes) -> tuple[Lane, bytes] | None:
        """A piece has come; returns the message that it completes. Raises LinkError."""
        number = piece[0] & ~_LAST
        if number >= len(Lane) or len(piece) > bounds.MAX_PIECE + 1:
            raise LinkError(f"a piece of {len(piece)} bytes of lane {number}")
        lane = Lane(number)
        part = self._parts[lane]
        if part is None:
            if piece[0] & _LAST:
                return lane, piece[1:]
            part = self._parts[lane] = bytearray()
        with memoryview(piece) as view:
            part += view[1:]
        if len(part) > _MOST[lane]:
            raise LinkError(f"a message of lane {lane.name} has more than {_MOST[lane]} bytes")
        if not piece[0] & _LAST:
            return None
        self._parts[lane] = None
        return lane, bytes(part)
