"""One call's stream: what has arrived and waits for the handler, and what the handler sends.

Invariants:
- The flow-control window is given back for what the handler has taken. One exception: while the handler
  waits for a message that is not complete, what has arrived of it is given back ahead, as a message may be
  longer than the window. So a stream holds at most one window and one message.
- Nothing is sent after the end of the stream, whoever ended it.
- Between waiting for room and booking it there is no checkpoint: a cancelled handler never leaks room.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from liftbridge import http2
from liftbridge._wire import InboundStream
from liftbridge.http2 import ErrorCode, StreamFailure

from . import headers
from .context import Metadata
from .errors import Status, StatusCode, rpc_error
from .framing import MESSAGE_HEADER_SIZE, data_frames, message_frame

if TYPE_CHECKING:
    from .connection import Connection
    from .immediate import ImmediateCall

_CHUNK = 256 * 1024  # at most so much at a time, so that streams of one connection take turns
_WORTH_AN_UPDATE = 4  # a window is given back in parts of at least its fourth


class Stream(InboundStream):
    """The server's end of one HTTP/2 stream.

    What arrives is in the C part, `InboundStream`, which the connection's `RequestReader` fills.
    """

    __slots__ = (
        "_ahead",
        "_arrived",
        "_connection",
        "_mid_item",
        "_needed",
        "_responding",
        "_window_changed",
        "_window_owed",
        "admitted",
        "final_status",
        "head",
        "id",
        "max_message",
        "over",
        "pending",
        "scope",
        "send_window",
        "started",
        "streaming",
    )

    def __init__(
        self,
        connection: "Connection",
        stream_id: int,
        head: headers.RequestHead,
        send_window: int,
        window: int,
    ) -> None:
        self._connection = connection
        self.id = stream_id
        self.head = head
        self.send_window = send_window
        self.receive_window = window
        self.max_message = connection.limits.max_request_message
        """Bytes of the longest request message."""
        self.started = connection.last_received
        self.ended = False
        """The client has sent everything."""
        self.finished = False
        """The server has sent everything, or nobody wants it any more."""
        self.streaming = False
        """The method's response or request is a stream, so the call may last for ever."""
        self.final_status: Status | None = None
        """How the call ends when it is cancelled by the server."""
        self.scope: trio.CancelScope | None = None
        """That of the call's task, once it runs."""
        self.pending: ImmediateCall | None = None
        """The call, while it goes on without a task."""
        self.admitted = False
        """The guard was asked."""
        self.over: Callable[[], None] | None = None
        """What the guard wants to be called when the handler has ended."""
        self._needed = 0  # bytes the waiting handler cannot do without, 0 if it does not wait
        self._arrived: trio.Event | None = None
        self._ahead = 0  # bytes of what waits whose window is given back already
        self._window_owed = 0
        self._window_changed: trio.Event | None = None
        self._responding = False
        self._mid_item = False

    @property
    def connection(self) -> "Connection":
        """The connection that it is on."""
        return self._connection

    @property
    def request_timeout(self) -> float:
        """Seconds for the request of a unary call to arrive."""
        return self._connection.limits.request_timeout

    # Receiving: called by the connection's reader.

    def feed(self, data: "bytes | bytearray", flow_length: int) -> None:
        """Take the payload of a DATA frame that the connection's `RequestReader` has not taken.

        Args:
            data: the payload without padding.
            flow_length: what the frame takes from the windows, in bytes.

        Raises:
            StreamFailure: the client ignores the window or has already ended the stream.
        """
        if self.ended:
            raise StreamFailure(self.id, ErrorCode.STREAM_CLOSED, "DATA after the end of the stream")
        self.receive_window -= flow_length
        if self.receive_window < 0:
            raise StreamFailure(self.id, ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        if self.finished:
            self._connection.give_back(flow_length)
            return
        self.add(data, flow_length - len(data))
        self.settle()

    def settle(self) -> None:
        """Account for the DATA that has come, and wake the handler if that is what it waits for."""
        size, padding = self.take_fresh()
        if padding:
            self._give_back(padding)
        if self._connection.hold(size):
            self.abort(
                Status(
                    StatusCode.RESOURCE_EXHAUSTED,
                    "the server holds as many requests as it can: wait for answers before sending more",
                )
            )
        if self._needed:
            if self.waiting >= self._needed:
                self._wake()
            else:
                self._give_back_ahead()

    def feed_end(self) -> None:
        """Note that the client has sent everything."""
        self.ended = True
        if self._needed:
            self._wake()

    def grow_window(self, increment: int) -> None:
        """Add to the send window; the peer's SETTINGS may also make it smaller, even negative.

        Raises:
            StreamFailure: the window grows beyond what HTTP/2 allows.
        """
        self.send_window += increment
        if self.send_window > http2.MAX_WINDOW:
            raise StreamFailure(self.id, ErrorCode.FLOW_CONTROL_ERROR, "the stream's window overflows")
        if self._window_changed is not None and self.send_window > 0:
            self._window_changed.set()

    def _wake(self) -> None:
        self._needed = 0
        if self._arrived is not None:
            self._arrived.set()

    def whole_request(self) -> "bytes | None":
        """Return the only message of a request that has ended, None if it is not exactly one, and well."""
        return self.only_message(self.max_message)

    # Receiving: called by the handler's task.

    async def receive_message(self) -> "bytes | None":
        """Return the next request message, None at the end of the stream.

        Raises:
            RpcFailedError: the message is too long, compressed or cut off.
        """
        while True:
            needed = MESSAGE_HEADER_SIZE
            flag, length = self.first_header()
            if length >= 0:
                self._check_message(flag, length)
                needed += length
                if self.waiting >= needed:
                    message = self.take(needed, MESSAGE_HEADER_SIZE)
                    self._consumed(needed)
                    return message
            if not await self._wait(needed):
                return None

    async def receive_batch(self) -> "bytes | None":
        """Return every whole request message that has arrived, at least one; None at the end of the stream.

        Raises:
            RpcFailedError: the next message is too long, compressed or cut off.
        """
        while True:
            end, flag, length = self.whole(self.max_message)
            if end:
                batch = self.take(end)
                self._consumed(end)
                return batch
            if length >= 0:
                self._check_message(flag, length)
            if not await self._wait(MESSAGE_HEADER_SIZE + max(length, 0)):
                return None

    def _check_message(self, flag: int, length: int) -> None:
        if flag:
            raise rpc_error(
                StatusCode.UNIMPLEMENTED if flag == 1 else StatusCode.INTERNAL,
                "compressed messages are not supported: send them uncompressed"
                if flag == 1
                else f"a message begins with {flag} where 0 is expected",
            )
        if length > self.max_message:
            raise rpc_error(
                StatusCode.RESOURCE_EXHAUSTED,
                f"a request message of {length} bytes; the limit is {self.max_message}",
            )

    async def _wait(self, needed: int) -> bool:
        """Wait until `needed` bytes are there; return False if the stream has ended before them."""
        if self.ended:
            if self.waiting:
                raise rpc_error(StatusCode.INTERNAL, "the request ends in the middle of a message")
            return False
        self._needed = needed
        self._give_back_ahead()
        self._arrived = trio.Event()
        try:
            await self._arrived.wait()
        finally:
            self._needed = 0
            self._arrived = None
        return True

    def _consumed(self, size: int) -> None:
        self._connection.hold(-size)
        ahead = min(size, self._ahead)
        self._ahead -= ahead
        self._connection.partial_bytes -= ahead
        if size > ahead:
            self._give_back(size - ahead)

    def _give_back_ahead(self) -> None:
        """Give back the window of an incomplete message, so that the rest of it can come."""
        size = self.waiting - self._ahead
        if size and self._connection.partial_bytes + size <= self._connection.limits.max_partial_bytes:
            self._ahead += size
            self._connection.partial_bytes += size
            self._give_back(size)
        elif size:
            self.abort(
                Status(
                    StatusCode.RESOURCE_EXHAUSTED,
                    "unfinished messages hold too much memory: send fewer large messages at a time",
                )
            )

    def _give_back(self, size: int) -> None:
        self._connection.give_back(size)
        self._window_owed += size
        if not self.ended and self._window_owed * _WORTH_AN_UPDATE >= self._connection.limits.stream_window:
            self.receive_window += self._window_owed
            self._connection.write_urgent(http2.window_update(self.id, self._window_owed))
            self._window_owed = 0

    # Sending: called by the handler's task.

    async def send_message(self, message: bytes) -> None:
        """Send one serialized response message."""
        await self.send(message_frame(message))

    async def send(self, data: "bytes | bytearray | memoryview") -> None:
        """Send whole length-prefixed messages, waiting while the client or the socket cannot take more."""
        assert not self._mid_item, "one task at a time sends, and none after it was cancelled"
        view = memoryview(data)
        connection = self._connection
        position, size = 0, len(view)
        while position < size:
            count = await self._reserve(min(size - position, _CHUNK))
            self._mid_item = position + count < size
            frames = data_frames(self.id, view[position : position + count], connection.peer_max_frame_size)
            connection.write(frames if self._responding else self._response_headers() + frames)
            position += count
            connection.expect_updates(count, whole=count == size)
            connection.pass_room_on()
        # Without this a handler that always has more to send would never let others run.
        await trio.lowlevel.checkpoint()

    def send_at_once(self, data: bytes) -> bool:
        """Send whole length-prefixed messages if windows and buffer have room for all of them; False: nothing
        has happened, and `send` is due. No other task may be sending."""
        connection = self._connection
        size = len(data)
        room = min(self.send_window, connection.send_room(), _CHUNK)
        if self.finished or self._mid_item or size > room:
            return False
        self.send_window -= size
        connection.send_window -= size
        frames = data_frames(self.id, data, connection.peer_max_frame_size)
        connection.write(frames if self._responding else self._response_headers() + frames)
        connection.expect_updates(size, whole=True)
        return True

    async def respond(self, message: bytes, trailing: Metadata = ()) -> None:
        """Send the only response message and end the call with OK, in one piece if the windows allow.

        Args:
            message: the response, serialized.
            trailing: metadata that goes with the status.
        """
        await self.respond_framed(message_frame(message), trailing)

    async def respond_framed(self, data: bytes, trailing: Metadata = ()) -> None:
        """Do as `respond` does, with a message that has its length prefix."""
        trailers = headers.trailers_ok(trailing) if trailing else headers.TRAILERS_OK
        if not self.respond_at_once(data, trailers):
            await self.send(data)
            if not self.finished:
                self._end(self._headers_frame(trailers, last=True))

    def respond_at_once(self, data: bytes, trailers: bytes = headers.TRAILERS_OK) -> bool:
        """Send the only response message and end the call with OK, if windows and buffer have room for all.

        Args:
            data: the response with its length prefix.
            trailers: the header block of the trailers.
        """
        connection = self._connection
        size = len(data)
        if self.finished:
            return True
        if self._responding or size > min(self.send_window, connection.send_room(), _CHUNK):
            return False
        self.send_window -= size
        connection.send_window -= size
        connection.expect_updates(size, whole=True)
        self._responding = True
        if size <= connection.peer_max_frame_size:
            head = connection.header_prefix() + headers.RESPONSE_HEADERS
            self._end(http2.whole_response(self.id, head, data, trailers))
        else:
            frames = data_frames(self.id, data, connection.peer_max_frame_size)
            self._end(self._response_headers() + frames + self._headers_frame(trailers, last=True))
        return True

    async def _reserve(self, wanted: int) -> int:
        """Book room in both windows and the write buffer; return how many bytes, at least one."""
        connection = self._connection
        while True:
            if self.finished:
                # The client has reset the stream while the handler was about to run: cancellation comes here.
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError("the call is over")
            if self.send_window <= 0:
                connection.pass_room_on()
                self._window_changed = trio.Event()
                try:
                    await self._window_changed.wait()
                finally:
                    self._window_changed = None
                continue
            room = connection.send_room()
            if room <= 0:
                await connection.wait_for_room()
                continue
            count = min(wanted, self.send_window, room)
            self.send_window -= count
            connection.send_window -= count
            return count

    # Ending.

    def finish(self, status: Status, http_status: int = 200) -> None:
        """End the response with `status`; without effect if the stream is over."""
        if self.finished:
            return
        if self._mid_item:
            # Trailers after a part of a message would be reported as a broken message, not with our status.
            # Clients map REFUSED_STREAM to UNAVAILABLE and CANCEL to CANCELLED.
            unavailable = status.status_code is StatusCode.UNAVAILABLE
            self.reset(ErrorCode.REFUSED_STREAM if unavailable else ErrorCode.CANCEL)
        elif self._responding:
            ok = status.status_code is StatusCode.OK
            block = headers.TRAILERS_OK if ok else headers.trailers(status)
            self._end(self._headers_frame(block, last=True))
        else:
            self._end(self._headers_frame(headers.trailers_only(status, http_status), last=True))

    def reset(self, code: ErrorCode) -> None:
        """End the stream in both directions at once."""
        if not self.finished:
            self.finished = True
            self._connection.write(http2.rst_stream(self.id, code))
            self._connection.reset_by_server(self.id)
            self.release()

    def abort(self, status: "Status | None") -> None:
        """Cancel the handler; the call then ends with `status`, or silently if that is None."""
        self.final_status = status
        if status is None:
            self.finished = True
        if self.pending is not None:
            self.pending.abort(status)
        elif self.scope is not None:
            self.scope.cancel()

    def release(self) -> None:
        """Give the connection back what the handler did not read."""
        self._connection.partial_bytes -= self._ahead
        dropped = self.drop()
        unread = dropped - self._ahead
        self._connection.hold(-dropped)
        self._ahead = 0
        if unread:
            self._connection.give_back(unread)

    def _end(self, last_frames: bytes) -> None:
        self.finished = True
        if not self.ended:
            # The client need not send the rest (RFC 9113, 8.1).
            last_frames += http2.rst_stream(self.id, ErrorCode.NO_ERROR)
            self._connection.reset_by_server(self.id)
        self._connection.write(last_frames)
        self.release()

    def _response_headers(self) -> bytes:
        self._responding = True
        return self._headers_frame(headers.RESPONSE_HEADERS, last=False)

    def _headers_frame(self, block: bytes, *, last: bool) -> bytes:
        flags = http2.END_HEADERS | (http2.END_STREAM if last else 0)
        return http2.frame(http2.HEADERS, flags, self.id, self._connection.header_prefix() + block)
