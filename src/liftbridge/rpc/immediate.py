"""Unary calls without a task: a handler begins them while their request is read, and ends them by a call.

A task costs a call two passes of Trio's run loop, one to begin and one to go on, and a cancel scope; for a
publish, which only waits for its ack, that is most of what it costs. So a method may have a function beside
its handler (`immediate`) that is asked first, when the whole request was in one read: it takes the call, or
says no before anything has happened, and then the handler serves the call in a task as ever. It says no to
whatever is not the usual case.

What a task would notice by being cancelled comes as a call here: the deadline (`Deadlines`), a reset by the
client, the end of the server or of the connection. After any of them `on_end` is called, once.

Invariants: an immediate call is the `pending` of its stream from its beginning to its end; it ends once.
"""

import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from .errors import Status, StatusCode, status_of

if TYPE_CHECKING:
    from .call import Method
    from .connection import Connection
    from .stream import Stream

Begin = Callable[[bytes, "ImmediateCall"], bool]
"""Gets the request, not decoded, and the call; returns whether it takes it, or raises an RpcFailedError."""


class ImmediateCall:
    """A call that a handler has taken, or is asked to take.

    `timeout` is what the caller allows in seconds, None for ever. `on_end` may be set: it is called when the
    call is over, however it ended.
    """

    __slots__ = ("_connection", "_deadline", "_method", "_stream", "ended", "on_end", "timeout")

    def __init__(self, method: "Method", stream: "Stream", connection: "Connection") -> None:
        self._method = method
        self._stream = stream
        self._connection = connection
        self.timeout = stream.head.timeout
        self._deadline = math.inf if self.timeout is None else stream.started + self.timeout
        self.on_end: Callable[[], None] | None = None
        self.ended = False

    def wait(self) -> None:
        """The handler has taken the call and has not ended it: from now on the deadline counts."""
        if self._deadline != math.inf and not self.ended:
            self._connection.deadlines.add(self._deadline, self)

    def respond(self, frame: bytes) -> None:
        """End with OK and one response, serialized and with the length prefix; nothing if it has ended."""
        if self.ended:
            return
        if self._stream.respond_at_once(frame):
            self._end()
            return
        self._leave()  # the client must make room first, which only a task can wait for
        self._connection.start_response(self._method, self._stream, frame)

    def fail(self, error: Exception) -> None:
        """End with the status of an RpcFailedError, or as a defect; nothing if it has ended."""
        if not self.ended:
            self.abort(status_of(error) or self._method.defect(error, self._connection.peer))

    def expire(self) -> None:
        """The deadline has passed."""
        self.abort(Status(StatusCode.DEADLINE_EXCEEDED, self._method.too_late))

    def abort(self, status: "Status | None") -> None:
        """End with `status`, silently if that is None; nothing if it has ended."""
        if self.ended:
            return
        if status is None:
            self._stream.finished = True
            self._stream.release()
        else:
            self._stream.finish(status)
        self._end()

    def _end(self) -> None:
        self._leave()
        self._connection.call_ended(self._stream)

    def _leave(self) -> None:
        self.ended = True
        stream = self._stream
        stream.pending = None
        if stream.over is not None:
            stream.over()
        if self.on_end is not None:
            self.on_end()
            self.on_end = None


class Deadlines:
    """The deadlines of a server's immediate calls, in one task for all.

    Calls that have ended stay in the queue until it is mostly made of them, so that ending costs nothing:
    it holds at most about twice as many as there are calls.
    """

    _FEW = 256

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, ImmediateCall]] = []
        self._added = 0
        self._clean_at = self._FEW
        self._scope = trio.CancelScope()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, deadline: float, call: ImmediateCall) -> None:
        """Let `call` expire at `deadline`, on Trio's clock, if it has not ended by then."""
        self._added += 1
        heapq.heappush(self._queue, (deadline, self._added, call))
        if deadline < self._scope.deadline:
            self._scope.deadline = deadline
        if len(self._queue) >= self._clean_at:
            self._queue = [entry for entry in self._queue if not entry[2].ended]
            heapq.heapify(self._queue)
            self._clean_at = 2 * len(self._queue) + self._FEW

    async def run(self) -> None:
        """End calls whose time is up, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._queue[0][0] if self._queue else math.inf) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._queue and self._queue[0][0] <= now:
                heapq.heappop(self._queue)[2].expire()
