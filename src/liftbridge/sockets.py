"""Sockets without detours: what a reader's turn writes leaves at its end, in the reader's own task.

A writer with a task of its own costs each message a wake-up, which in Trio is a pass of the run loop: twice
the system call that it leads to. So a reader opens a `Turn` while it handles what it has read; writers that
get something meanwhile send it when the turn ends, all of it in one system call, without waiting. What the
socket does not take, and what is written outside of turns, is left to the writers' tasks, which wait.

Reading waits for the socket to be readable and then reads, where Trio's streams try first, in vain if the
last read emptied the socket, as it nearly always does.

Invariants: a turn has no checkpoint; what a writer sends at once is never overtaken by what its task sends,
as it does so only while the task has nothing in hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType

import trio

AT_ONCE = 256 * 1024
"""Bytes that a writer sends at the end of a turn; more are left to its task, so that turns stay short."""


class Turn:
    """The turns of the readers of one event loop, one after the other: `with turn:` is one of them."""

    __slots__ = ("_due", "_open")

    def __init__(self) -> None:
        self._open = False
        self._due: dict[Callable[[], None], None] = {}

    def __enter__(self) -> None:
        assert not self._open, "turns do not nest: nothing in a turn waits"
        self._open = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._due:
            due, self._due = self._due, {}
            for send in due:
                send()

    def later(self, send: Callable[[], None]) -> bool:
        """Call `send` once at the end of the turn; False when there is none. `send` must not raise."""
        if self._open:
            self._due[send] = None
        return self._open


def send_now(stream: trio.SocketStream, data: bytes) -> int:
    """Send what the socket takes without waiting; returns how many bytes that was.

    0 when the socket is full, and also when it is broken: whoever then waits for room is told.
    """
    try:
        return os.write(stream.socket.fileno(), data)
    except OSError:
        return 0


async def receive(stream: trio.SocketStream, most: int) -> bytes:
    """Wait for bytes and return them, `most` at most; none at the end of the stream.

    Raises trio.BrokenResourceError and trio.ClosedResourceError, as the stream itself does.
    """
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        try:
            return os.read(stream.socket.fileno(), most)
        except BlockingIOError:
            continue
        except OSError as error:
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error


async def receive_into(stream: trio.SocketStream, room: memoryview) -> int:
    """Wait for bytes and put them into `room`; returns how many, 0 at the end of the stream.

    Raises as `receive` does.
    """
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        try:
            return os.readv(stream.socket.fileno(), [room])
        except BlockingIOError:
            continue
        except OSError as error:
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
