"""One client's connection: HTTP/2 state, flow control of the whole, and the tasks that serve it.

Three tasks own a connection: the reader, which parses frames and begins calls, most with a task of their own
and some without (`immediate`); the writer, to which handlers hand finished frames (`writer`); and the watch,
which ends connections that say nothing.

Invariants:
- The write buffer holds at most `Limits.write_buffer` of DATA. What else is written (headers, trailers,
  answers to control frames) is bounded as the reader stops while the buffer is twice as full.
- Frames of one stream leave in their order. Urgent frames (PING answers, window updates) go ahead of the
  rest.
- Header blocks are decoded in their order, wanted or not: the compression state depends on it.
- Whatever the peer does ends this connection at worst.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import trio

from liftbridge import http2
from liftbridge._wire import RequestReader
from liftbridge.http2 import ConnectionFailure, ErrorCode, StreamFailure
from liftbridge.sockets import Turn, receive

from . import headers
from .abuse import Floods
from .call import Method, Methods
from .context import CallContext, Request
from .errors import Status, StatusCode
from .immediate import Deadlines
from .limits import Account, Limits
from .patience import Exhausted, Patience
from .stream import Stream
from .writer import Writer

logger = logging.getLogger("liftbridge.rpc")

_READ_SIZE = 64 * 1024
_REMEMBERED_RESETS = 1_000
_LINGER = 1.0  # seconds for the last frames to reach the peer
_ONLY_SERVERS = "this connection is for other servers of the cluster only: connect anew"
_SHUTTING_DOWN = "the server is shutting down"


class Connection:
    """Serves one connection until it ends."""

    def __init__(
        self,
        transport: trio.abc.Stream,
        methods: Methods,
        limits: Limits,
        peer: str,
        peer_certificate: "dict[str, Any] | None",
        account: Account,
        turn: Turn,
        deadlines: Deadlines,
        *,
        internal: bool = False,
        on_uncount: "Callable[[], None] | None" = None,
    ) -> None:
        """`internal`: only calls of other servers are taken. `on_uncount` is called once by `uncount`."""
        self.limits = limits
        self.deadlines = deadlines
        self._account = account
        self._internal = internal
        self._on_uncount = on_uncount
        self._own_account: Account | None = None  # of a link
        self._held = 0  # bytes of requests that no handler has taken
        self.peer = peer
        self.peer_max_frame_size = http2.DEFAULT_FRAME_SIZE
        self.send_window = http2.DEFAULT_WINDOW
        self.partial_bytes = 0
        """Bytes of incomplete messages beyond the window."""
        self._peer_certificate = peer_certificate
        self._transport = transport
        self._methods = methods
        self._decoder = headers.RequestDecoder(limits.max_header_list_size)
        self._streams: dict[int, Stream] = {}  # those with a running handler
        self._frames = RequestReader(
            self._streams, limits.max_frame_size, limits.connection_window, partial(_too_long, limits)
        )
        self._undecided: dict[int, Method] = {}  # of the current read: may be served without a task
        self._reset_streams: OrderedDict[int, None] = OrderedDict()  # ended before the client ended them
        self._highest_stream = 0
        self._accepted_stream = http2.MAX_STREAM_ID  # the last one served, once the connection is ending
        self._header_block: bytearray | None = None  # while CONTINUATION frames are due
        self._header_stream = 0
        self._header_flags = 0
        self._continuations = 0
        self._peer_initial_window = http2.DEFAULT_WINDOW
        self._no_table_due = False
        self._window_owed = 0
        self._floods = Floods(limits)
        self.expect_updates = self._floods.expect_updates
        self._turn = turn
        self._writer = Writer(transport, account, turn, self.pass_room_on, self._break)
        self.write_urgent = self._writer.write_urgent
        """Send a PING or WINDOW_UPDATE frame ahead of what is waiting."""
        self._waiting_for_room = trio.lowlevel.ParkingLot()
        self._read_scope = trio.CancelScope()
        self._calls: trio.Nursery | None = None
        self._patience = Patience(limits)
        self._broken = False
        self._handlers = {
            http2.DATA: self._on_data,
            http2.HEADERS: self._on_headers,
            http2.PRIORITY: self._on_priority,
            http2.RST_STREAM: self._on_rst_stream,
            http2.SETTINGS: self._on_settings,
            http2.PUSH_PROMISE: self._on_push_promise,
            http2.PING: self._on_ping,
            http2.GOAWAY: self._on_goaway,
            http2.WINDOW_UPDATE: self._on_window_update,
            http2.CONTINUATION: self._on_continuation,
        }

    @property
    def last_received(self) -> float:
        """When the client was heard last, on Trio's clock."""
        return self._patience.last_received

    # Life of the connection.

    async def serve(self) -> None:
        """Serve the connection until the client leaves, breaks the protocol, or `shut_down` has ended it."""
        self._write_preface()
        async with trio.open_nursery() as io:
            io.start_soon(self._writer.run)
            io.start_soon(self._watch)
            async with trio.open_nursery() as calls:
                self._calls = calls
                try:
                    with self._read_scope:
                        await self._read()
                finally:
                    self._forget_calls()
                # With the reader gone nobody tells a handler that its client is gone.
                calls.cancel_scope.cancel()
            await self._linger()
            io.cancel_scope.cancel()

    def shut_down(self, reason: str = _SHUTTING_DOWN) -> None:
        """Accept no more calls, end streaming ones with UNAVAILABLE, close when the last call has ended."""
        if self._accepted_stream != http2.MAX_STREAM_ID:
            return
        self._accepted_stream = self._highest_stream
        self.write(http2.goaway(self._highest_stream, ErrorCode.NO_ERROR, reason))
        for stream in list(self._streams.values()):
            if stream.streaming:
                stream.abort(Status(StatusCode.UNAVAILABLE, _SHUTTING_DOWN))
        if not self._streams:
            self._read_scope.cancel()

    def end_calls(self) -> None:
        """End every call with UNAVAILABLE; the second step after `shut_down`."""
        for stream in list(self._streams.values()):
            stream.abort(Status(StatusCode.UNAVAILABLE, _SHUTTING_DOWN))

    def _forget_calls(self) -> None:
        """Nobody reads any more: end the calls without a task, which no cancellation reaches."""
        for stream in list(self._streams.values()):
            if stream.pending is not None:
                stream.abort(None)

    def settle(self) -> None:
        """Take what the connection held off the server's account; it has ended."""
        self._account.held -= self._held
        self._held = 0
        self._writer.settle()

    def _write_preface(self) -> None:
        limits = self.limits
        self.write(
            http2.settings(
                {
                    http2.SETTINGS_MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                    http2.SETTINGS_INITIAL_WINDOW_SIZE: limits.stream_window,
                    http2.SETTINGS_MAX_FRAME_SIZE: limits.max_frame_size,
                    http2.SETTINGS_MAX_HEADER_LIST_SIZE: limits.max_header_list_size,
                }
            )
        )
        if limits.connection_window > http2.DEFAULT_WINDOW:
            self.write(http2.window_update(0, limits.connection_window - http2.DEFAULT_WINDOW))

    async def _read(self) -> None:
        try:
            await self._read_preface()
            while received := await self._receive():
                with self._turn:
                    try:
                        for kind, flags, stream_id, payload in self._frames.frames(received):
                            self._handle(kind, flags, stream_id, payload)
                    finally:
                        if self._undecided:
                            self._decide()
                self._patience.note_incomplete(
                    pending=self._frames.pending,
                    in_block=self._header_block is not None,
                    progress=self._frames.progress,
                )
                if self._writer.size > 2 * self.limits.write_buffer:
                    await self._wait_drained()
        except ConnectionFailure as failure:
            logger.info("closing the connection of %s: %s (%s)", self.peer, failure, failure.code.name)
            self._accepted_stream = min(self._accepted_stream, self._highest_stream)
            self.write(http2.goaway(self._highest_stream, failure.code, str(failure)))
        except Exception:
            logger.exception("closing the connection of %s after a defect of the server", self.peer)
            self.write(http2.goaway(self._highest_stream, ErrorCode.INTERNAL_ERROR))

    async def _read_preface(self) -> None:
        missing = http2.PREFACE
        while missing and not self._broken:
            received = await self._receive(len(missing))
            if not missing.startswith(received):
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "the client does not speak HTTP/2")
            missing = missing[len(received) :]

    async def _receive(self, most: int = _READ_SIZE) -> "bytes | bytearray":
        received: bytes | bytearray
        try:
            if isinstance(self._transport, trio.SocketStream):
                received = await receive(self._transport, most)
            else:
                received = await self._transport.receive_some(most)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("the connection of %s broke: %r", self.peer, error.__cause__ or error)
            received = b""
        if not received:
            self._broken = True
        self._patience.last_received = trio.current_time()
        return received

    async def _watch(self) -> None:
        """End a connection without a preface, or one whose client lets us wait for too long."""
        exhausted = await self._patience.exhausted(self._ping)
        if exhausted is Exhausted.REST:
            self._give_up("a frame or a header block takes too long")
        elif exhausted is Exhausted.CALLS:
            logger.debug("closing the connection of %s: no calls for long", self.peer)
            self.shut_down("no calls for long; connect again")
        else:
            silent = exhausted is Exhausted.SIGN_OF_LIFE
            why = "it does not answer" if silent else "no HTTP/2 preface in time"
            logger.info("closing the connection of %s: %s", self.peer, why)
            self._break()

    def _ping(self) -> None:
        self.write_urgent(http2.frame(http2.PING, 0, 0, b"liftlive"))

    def _give_up(self, reason: str) -> None:
        """End the connection for a client that is not worth it."""
        logger.info("closing the connection of %s: %s", self.peer, reason)
        self._accepted_stream = min(self._accepted_stream, self._highest_stream)
        self.write(http2.goaway(self._highest_stream, ErrorCode.ENHANCE_YOUR_CALM, reason))
        self._read_scope.cancel()

    def _break(self) -> None:
        self._broken = True
        self._read_scope.cancel()

    async def _linger(self) -> None:
        """Get the last frames to the peer: a socket closed with unread input would destroy them."""
        if self._broken:
            return
        with trio.move_on_after(_LINGER):
            while self._writer.size:
                await self._wait_drained()
                if self._broken:
                    return
            if isinstance(self._transport, trio.SocketStream):
                try:
                    await self._transport.send_eof()
                except trio.BrokenResourceError:
                    return
            for _ in range(1_000):
                if not await self._receive():
                    return

    # Writing.

    def write(self, frames: bytes) -> None:
        """Append complete frames to what the writer sends."""
        self._writer.write(frames)
        self._floods.forgive()

    async def _wait_drained(self) -> None:
        if self._broken:
            return
        await self._writer.wait_drained()

    def send_room(self) -> int:
        """Return how many bytes of DATA may be written now: the lesser of window and buffer."""
        return min(self.send_window, self._account.write_room(self._writer.size))

    async def wait_for_room(self) -> None:
        """Wait in line until `send_room` may be positive."""
        await self._waiting_for_room.park()

    def pass_room_on(self) -> None:
        """Wake the first in line if there is room. Who leaves room unused must call this."""
        if self._waiting_for_room and self.send_room() > 0:
            self._waiting_for_room.unpark()

    def header_prefix(self) -> bytes:
        """Return what the next header block must begin with."""
        if not self._no_table_due:
            return b""
        self._no_table_due = False
        return headers.NO_TABLE

    def uncount(self) -> None:
        """It is a link to another server: what it holds counts no more among what clients hold, and calls of
        clients are refused on it."""
        if self._account is self._own_account:
            return
        account = self._own_account = Account(Limits())
        self._account.held -= self._held
        account.held += self._held
        self._account = account
        self._writer.move_to(account)
        default = Limits()
        self.limits = replace(
            self.limits, max_partial_bytes=default.max_partial_bytes, write_buffer=default.write_buffer
        )
        self._internal = True
        if self._on_uncount is not None:
            self._on_uncount()

    # Flow control of received data.

    def hold(self, change: int) -> bool:
        """Count bytes of requests that wait for a handler; return whether this connection holds too many."""
        self._held += change
        self._account.held += change
        return change > 0 and self._account.too_much(self._held)

    def give_back(self, size: int) -> None:
        """Return `size` bytes of the connection's receive window to the client, together with others."""
        self._window_owed += size
        if self._window_owed * 4 >= self.limits.connection_window:
            self._frames.window += self._window_owed
            self.write_urgent(http2.window_update(0, self._window_owed))
            self._window_owed = 0

    def reset_by_server(self, stream_id: int) -> None:
        """Remember a stream the server ended first: frames of it that are under way are no error."""
        self._reset_streams[stream_id] = None
        if len(self._reset_streams) > _REMEMBERED_RESETS:
            self._reset_streams.popitem(last=False)

    # Frames.

    def _handle(self, kind: int, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        in_block = self._header_block is not None
        if in_block and (kind != http2.CONTINUATION or stream_id != self._header_stream):
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "another frame inside of a header block")
        if not self._patience.greeted and (kind != http2.SETTINGS or flags & http2.ACK):
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        handler = self._handlers.get(kind)
        if handler is None:
            self._floods.count_control_frame()  # an unknown type: to be ignored
            return
        try:
            handler(flags, stream_id, payload)
        except StreamFailure as failure:
            self._fail_stream(failure)

    def _fail_stream(self, failure: StreamFailure) -> None:
        logger.debug("resetting stream %d of %s: %s", failure.stream_id, self.peer, failure)
        self._floods.count_reset()
        stream = self._streams.get(failure.stream_id)
        if stream is not None and not stream.finished:
            stream.reset(failure.code)
            stream.abort(None)
        else:
            self.write(http2.rst_stream(failure.stream_id, failure.code))
            self.reset_by_server(failure.stream_id)

    def _on_data(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        """DATA that the reader has not taken: it ends a request, or something about it is unusual."""
        flow_length = len(payload)
        data = http2.without_padding(flags, payload)
        self._frames.window -= flow_length
        if self._frames.window < 0:
            raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        last = flags & http2.END_STREAM
        if not data and not last:
            self._floods.count_control_frame()
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "DATA")
            self.give_back(flow_length)
            if stream_id not in self._reset_streams:
                raise StreamFailure(stream_id, ErrorCode.STREAM_CLOSED, "DATA for a stream that has ended")
            return
        if flow_length:
            stream.feed(data, flow_length)
        if last:
            self._end_request(stream)

    def _end_request(self, stream: Stream) -> None:
        if stream.ended:
            raise StreamFailure(stream.id, ErrorCode.STREAM_CLOSED, "the stream is ended twice")
        stream.feed_end()
        if self._undecided:
            method = self._undecided.pop(stream.id, None)
            if method is not None and not method.begin(stream, self):
                self._start(method, stream)

    def _decide(self) -> None:
        """The rest of these requests is still to come: a task waits for it."""
        undecided, self._undecided = self._undecided, {}
        for stream_id, method in undecided.items():
            self._start(method, self._streams[stream_id])

    def _on_headers(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        if not stream_id & 1:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"HEADERS for stream {stream_id}")
        block, self_dependent = http2.header_block_fragment(flags, stream_id, payload)
        self._check_block_size(len(block))
        if not flags & http2.END_HEADERS:
            self._header_block = bytearray(block)
            self._frames.in_header_block = True
            self._header_stream, self._header_flags, self._continuations = stream_id, flags, 0
        else:
            self._on_header_block(flags, stream_id, bytes(block))
        if self_dependent:
            raise StreamFailure(stream_id, ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")

    def _on_continuation(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        if self._header_block is None:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._continuations += 1
        self._check_block_size(len(self._header_block) + len(payload))
        if self._continuations > self.limits.max_continuations:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "too many CONTINUATION frames")
        self._header_block += payload
        if flags & http2.END_HEADERS:
            block, self._header_block = bytes(self._header_block), None
            self._frames.in_header_block = False
            self._on_header_block(self._header_flags, stream_id, block)

    def _check_block_size(self, size: int) -> None:
        if size > 4 * self.limits.max_header_list_size:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of {size} bytes or more")

    def _on_header_block(self, flags: int, stream_id: int, block: bytes) -> None:
        last = bool(flags & http2.END_STREAM)
        if stream_id > self._highest_stream:
            self._highest_stream = stream_id
            self._open(stream_id, block, last=last)
            return
        stream = self._streams.get(stream_id)
        try:
            if stream is not None and not stream.ended:
                self._decoder.trailers(block)
                if not last:
                    raise StreamFailure(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers not at the end")
                self._end_request(stream)
                return
        except headers.MalformedHeaders as error:
            raise StreamFailure(stream_id, ErrorCode.PROTOCOL_ERROR, str(error)) from None
        self._decoder.skip(block)
        if stream is not None:
            raise StreamFailure(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the end of the stream")
        if stream_id not in self._reset_streams:
            raise ConnectionFailure(ErrorCode.STREAM_CLOSED, "HEADERS for a stream that has ended")

    def _open(self, stream_id: int, block: bytes, *, last: bool) -> None:
        """Begin a call: start its handler, or answer it at once."""
        try:
            head = self._decoder.request(block)
        except headers.MalformedHeaders as error:
            raise StreamFailure(stream_id, ErrorCode.PROTOCOL_ERROR, str(error)) from None
        if stream_id > self._accepted_stream:
            raise StreamFailure(stream_id, ErrorCode.REFUSED_STREAM, _SHUTTING_DOWN)
        if len(self._streams) >= self.limits.max_concurrent_streams:
            raise StreamFailure(stream_id, ErrorCode.REFUSED_STREAM, "too many concurrent streams")
        stream = Stream(self, stream_id, head, self._peer_initial_window, self.limits.stream_window)
        stream.ended = last
        if head.refusal is not None:
            stream.finish(head.refusal.status, head.refusal.http_status)
            return
        method = self._methods.get(head.path)
        if method is None:
            stream.finish(self._methods.refusal(head.path))
            return
        if self._internal and not method.internal:
            stream.finish(Status(StatusCode.UNAVAILABLE, _ONLY_SERVERS))
            return
        stream.streaming = method.streaming
        self._streams[stream_id] = stream
        self._patience.idle_since = None
        if method.immediate and not last:
            self._undecided[stream_id] = method
        else:
            self._start(method, stream)

    def _start(self, method: Method, stream: Stream) -> None:
        assert self._calls is not None
        self._calls.start_soon(self._run_call, method, stream)

    def context_of(self, stream: Stream) -> CallContext:
        """Return what the handler of a stream's call, and the guard, may know of it."""
        head = stream.head
        deadline = math.inf if head.timeout is None else stream.started + head.timeout
        return CallContext(head.path, self.peer, deadline, head.metadata, self._peer_certificate)

    async def _run_call(self, method: Method, stream: Stream) -> None:
        head = stream.head
        request = Request(stream.id, head.scheme, head.service, head.method, self.context_of(stream))
        try:
            await method.run(stream, request)
        finally:
            self.call_ended(stream)

    def start_response(self, method: Method, stream: Stream, frame: bytes) -> None:
        """Start a task that sends the response of a call that had none, when the client has room for it."""

        async def respond() -> None:
            try:
                await method.supervise(stream, self.context_of(stream), partial(stream.respond_framed, frame))
            finally:
                self.call_ended(stream)

        assert self._calls is not None
        self._calls.start_soon(respond)

    def call_ended(self, stream: Stream) -> None:
        """A call is over."""
        del self._streams[stream.id]
        self.pass_room_on()
        if not self._streams:
            self._patience.idle_since = trio.current_time()
            if self._accepted_stream != http2.MAX_STREAM_ID:
                self._read_scope.cancel()

    def _on_priority(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        self._floods.count_control_frame()
        http2.check_priority(stream_id, payload)

    def _on_rst_stream(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        code = http2.parse_uint32(payload, "RST_STREAM")
        self._check_not_idle(stream_id, "RST_STREAM")
        stream = self._streams.get(stream_id)
        if stream is None:
            self._floods.count_control_frame()
            return
        self._floods.count_reset()
        logger.debug("%s reset stream %d (error code %d)", self.peer, stream_id, code)
        stream.ended = True
        stream.abort(None)

    def _on_settings(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"SETTINGS for stream {stream_id}")
        self._floods.count_control_frame()
        if flags & http2.ACK:
            if payload:
                raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "an ACK of SETTINGS with settings")
            return
        self._patience.greeted = True
        for name, value in http2.parse_settings(payload):
            if name == http2.SETTINGS_MAX_FRAME_SIZE:
                self.peer_max_frame_size = value
            elif name == http2.SETTINGS_HEADER_TABLE_SIZE:
                self._no_table_due = self._no_table_due or value < http2.DEFAULT_TABLE_SIZE
            elif name == http2.SETTINGS_INITIAL_WINDOW_SIZE:
                self._change_windows(value - self._peer_initial_window)
                self._peer_initial_window = value
        self._writer.write(http2.SETTINGS_ACK)  # not our `write`: that would forgive a flood of SETTINGS

    def _change_windows(self, change: int) -> None:
        try:
            for stream in self._streams.values():
                stream.grow_window(change)
        except StreamFailure as failure:
            raise ConnectionFailure(failure.code, str(failure)) from None

    def _on_push_promise(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a client must not push")

    def _on_ping(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"PING for stream {stream_id}")
        if len(payload) != 8:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"a PING of {len(payload)} bytes")
        self._floods.count_control_frame()
        if not flags & http2.ACK:
            self.write_urgent(http2.frame(http2.PING, http2.ACK, 0, bytes(payload)))

    def _on_goaway(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"GOAWAY for stream {stream_id}")
        # The client opens no more streams; those it has go on until it closes the connection.
        self._floods.count_control_frame()

    def _on_window_update(self, flags: int, stream_id: int, payload: http2.Buffer) -> None:
        increment = http2.parse_uint32(payload, "WINDOW_UPDATE") & http2.MAX_WINDOW
        self._floods.count_window_update(increment)
        if not stream_id:
            self.send_window += increment
            if not increment:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            if self.send_window > http2.MAX_WINDOW:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
            self.pass_room_on()
            return
        self._check_not_idle(stream_id, "WINDOW_UPDATE")
        if not increment:
            raise StreamFailure(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.grow_window(increment)

    def _check_not_idle(self, stream_id: int, frame: str) -> None:
        if not stream_id or stream_id > self._highest_stream or not stream_id & 1:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"{frame} for idle stream {stream_id}")


def _too_long(limits: Limits, length: int) -> NoReturn:
    raise ConnectionFailure(
        ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes; the limit is {limits.max_frame_size}"
    )
