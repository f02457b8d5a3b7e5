"""One HTTP/2 connection to a server, and the gRPC calls on it, on anyio: the same under Trio and asyncio.

Two tasks own a connection: the reader, which parses frames and hands their contents to the calls, and the
writer, the only one that touches the socket's sending side. A third asks a silent server whether it is there.
Frames are those of `liftbridge.http2`; why neither purerpc's client nor h2 is used is told in
docs/decisions/0018.

Invariants:
- The window of the connection is given back as data arrives, the window of a call as its reader takes
  messages. So a
  slow reader stalls its own call and no other, and holds one window at most (plus one message that is
  longer).
- When the connection is lost, every call on it ends with `UnavailableError`; none waits for ever.
- A call that is left before its end is reset (RST_STREAM), so the server stops working for it.
- `may_have_run` of an error is False only if the server cannot have seen the call, or has said that it did
  not run it.
"""

from __future__ import annotations

import ssl
import struct
import urllib.parse
from collections.abc import Callable
from types import TracebackType

import anyio
import anyio.abc
from anyio.streams.tls import TLSAttribute
from hpack import Decoder, HPACKError

from liftbridge import http2
from liftbridge.client.errors import RpcError, StatusCode, TlsError, UnavailableError, from_status
from liftbridge.client.options import Options
from liftbridge.http2 import ConnectionFailure, ErrorCode

_READ_SIZE = 256 * 1024
_MAX_FRAME_SIZE = 256 * 1024
_CONNECTION_WINDOW = http2.MAX_WINDOW
_MAX_HEADER_BLOCK = 64 * 1024
_CHUNK = 256 * 1024  # of one call at a time, so that calls take turns
_TAKE = 64 * 1024  # messages a reader gets at once
_PREFIX = struct.Struct(">BL")
_PREFIX_SIZE = _PREFIX.size
_LENGTH = struct.Struct(">L")

_STATUS_OF_RESET: dict[int, StatusCode] = {
    ErrorCode.REFUSED_STREAM: StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: StatusCode.RESOURCE_EXHAUSTED,
}


def message_frame(message: bytes) -> bytes:
    """Put the length prefix of gRPC before one serialized message."""
    return _PREFIX.pack(0, len(message)) + message


class Call:
    """One gRPC call. As a context manager, it is reset when the block is left before its end."""

    __slots__ = (
        "_ahead",
        "_arrived",
        "_connection",
        "_error",
        "_finished",
        "_inbound",
        "_room",
        "_window_owed",
        "id",
        "method",
        "send_window",
        "trailing",
    )

    def __init__(self, connection: Connection, call_id: int, method: str, send_window: int) -> None:
        self._connection = connection
        self.id = call_id
        self.method = method
        self.send_window = send_window
        self.trailing: dict[str, str] = {}
        """The metadata that came with the status."""
        self._inbound = bytearray()
        self._ahead = 0  # bytes of `_inbound` whose window is given back already
        self._window_owed = 0
        self._arrived: anyio.Event | None = None
        self._room: anyio.Event | None = None
        self._finished = False
        self._error: RpcError | None = None

    def __enter__(self) -> Call:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Leave the call: the server is told to stop. Without effect when it has ended."""
        if not self._finished:
            self._connection.reset(self, ErrorCode.CANCEL)
            self.end(from_status(StatusCode.CANCELLED, "the call was cancelled"))

    # Sending.

    async def send(self, data: bytes | memoryview, *, last: bool = False) -> None:
        """Send whole length-prefixed messages, waiting while the server or the socket cannot take more.

        Args:
            data: the messages; with `last` there may be none.
            last: nothing comes behind them.

        Raises:
            RpcError: the call has ended; the status says why.
        """
        view = memoryview(data)
        position, size = 0, len(view)
        if last and not size and not self._finished:
            self._connection.write_data(self.id, view, last=True)
        while position < size:
            count = await self._reserve(min(size - position, _CHUNK))
            end = position + count
            self._connection.write_data(self.id, view[position:end], last=last and end == size)
            position = end

    def send_at_once(self, data: bytes) -> bool:
        """Send whole length-prefixed messages if there is room for all of them; False: nothing has happened,
        and `send` is due. No other task may be sending."""
        connection = self._connection
        size = len(data)
        if self._finished or size > min(self.send_window, connection.send_room()):
            return False
        self.send_window -= size
        connection.send_window -= size
        connection.write_data(self.id, memoryview(data), last=False)
        return True

    async def _reserve(self, wanted: int) -> int:
        connection = self._connection
        while True:
            if self._finished:
                raise self._error or from_status(StatusCode.UNAVAILABLE, "the server has ended the call")
            room = min(self.send_window, connection.send_room())
            if room > 0:
                count = min(wanted, room)
                self.send_window -= count
                connection.send_window -= count
                return count
            self._room = anyio.Event()
            connection.waiting.add(self)
            await self._room.wait()

    def wake_sender(self) -> None:
        """There may be room again."""
        if self._room is not None:
            self._room.set()
            self._room = None
            self._connection.waiting.discard(self)

    # Receiving.

    def feed(self, data: http2.Buffer, padding: int) -> None:
        """Take the payload of a DATA frame; called by the connection's reader."""
        self._inbound += data
        if padding:
            self._give_back(padding)
        if self._arrived is not None:
            self._arrived.set()

    def end(self, error: RpcError | None, trailing: dict[str, str] | None = None) -> None:
        """Note how the call has ended, None for OK; called once, by the connection or by `cancel`."""
        self._finished = True
        self._error = error
        self.trailing = trailing or {}
        self._connection.forget(self)
        if self._arrived is not None:
            self._arrived.set()
        self.wake_sender()

    async def receive(self) -> list[bytes]:
        """Return messages that have arrived, at least one; an empty list when the call has ended with OK.

        What has arrived is returned before the error that ended the call is raised.

        Raises:
            RpcError: the call ended with another status, or what came is not gRPC.
        """
        while True:
            messages, size, needed = self._whole_messages()
            if messages:
                self._consume(size)
                return messages
            if self._finished:
                if self._error is not None:
                    raise self._error
                if self._inbound:
                    raise from_status(StatusCode.INTERNAL, "the response ends in the middle of a message")
                return []
            self._give_back_ahead()
            while len(self._inbound) < needed and not self._finished:
                self._arrived = anyio.Event()
                try:
                    await self._arrived.wait()
                finally:
                    self._arrived = None
                self._give_back_ahead_of(needed)

    def _whole_messages(self) -> tuple[list[bytes], int, int]:
        """The next whole messages, the bytes they take, and how many bytes the one after them needs."""
        inbound = self._inbound
        size = len(inbound)
        messages: list[bytes] = []
        position = 0
        limit = min(size, _TAKE)
        unpack = _PREFIX.unpack_from
        with memoryview(inbound) as view:
            while size - position >= _PREFIX_SIZE:
                flag, length = unpack(view, position)
                end = position + _PREFIX_SIZE + length
                if flag or length > self._connection.options.max_message_bytes:
                    if not messages:
                        self._refuse(flag, length)
                    break
                if end > size:
                    return messages, position, end - position
                messages.append(bytes(view[position + _PREFIX_SIZE : end]))
                position = end
                if position >= limit:
                    break
        return messages, position, _PREFIX_SIZE

    def _refuse(self, flag: int, length: int) -> None:
        """Give up a call whose next message cannot be taken."""
        self.cancel()
        if flag:
            raise from_status(StatusCode.INTERNAL, f"a message begins with {flag} where 0 is expected")
        limit = self._connection.options.max_message_bytes
        raise from_status(
            StatusCode.RESOURCE_EXHAUSTED,
            f"the server sends a message of {length} bytes, the limit is {limit}: raise max_message_bytes",
        )

    def _consume(self, size: int) -> None:
        del self._inbound[:size]
        ahead = min(size, self._ahead)
        self._ahead -= ahead
        if size > ahead:
            self._give_back(size - ahead)

    def _give_back_ahead_of(self, needed: int) -> None:
        if len(self._inbound) < needed:
            self._give_back_ahead()

    def _give_back_ahead(self) -> None:
        """Give back the window of an incomplete message, so that the rest of it can come."""
        size = len(self._inbound) - self._ahead
        if size:
            self._ahead += size
            self._give_back(size)

    def _give_back(self, size: int) -> None:
        self._window_owed += size
        if self._window_owed * 4 >= self._connection.options.stream_window and not self._finished:
            self._connection.write(http2.window_update(self.id, self._window_owed))
            self._window_owed = 0


class Connection:
    """A connection; made by `open_connection`, alive as long as `run` runs."""

    def __init__(self, transport: anyio.abc.ByteStream, address: str, scheme: str, options: Options) -> None:
        self.address = address
        self.options = options
        self.send_window = http2.DEFAULT_WINDOW
        self.lost: str | None = None
        """Why the connection is over, None while it is not."""
        self.draining = False
        """The server takes no new calls on it."""
        self.waiting: set[Call] = set()
        """Calls that wait for room to send."""
        self._tls_failed = False
        self._transport = transport
        self._head = _request_head(scheme, address)
        self._frames = http2.FrameReader(_MAX_FRAME_SIZE)
        self._decoder = Decoder(max_header_list_size=_MAX_HEADER_BLOCK)
        self._calls: dict[int, Call] = {}
        self._next_id = 1
        self._max_calls = 100  # until the server has told
        self._peer_window = http2.DEFAULT_WINDOW
        self._peer_frame_size = http2.DEFAULT_FRAME_SIZE
        self._block: bytearray | None = None  # while CONTINUATION frames are due
        self._block_call = 0
        self._block_flags = 0
        self._heads: dict[int, dict[str, str]] = {}  # response headers of open calls
        self._window_owed = 0
        self._out: list[bytes] = []
        self._out_size = 0
        self._wake = anyio.Event()
        self._settled = anyio.Event()
        self._slot = anyio.Event()
        self._last_received = anyio.current_time()
        self._last_wanted = self._last_received  # when there were no calls last, as far as the keep-alive saw
        self._scope = anyio.CancelScope()
        self._handlers: dict[int, Callable[[int, int, http2.Buffer], None]] = {
            http2.DATA: self._on_data,
            http2.HEADERS: self._on_headers,
            http2.RST_STREAM: self._on_rst_stream,
            http2.SETTINGS: self._on_settings,
            http2.PUSH_PROMISE: self._on_push_promise,
            http2.PING: self._on_ping,
            http2.GOAWAY: self._on_goaway,
            http2.WINDOW_UPDATE: self._on_window_update,
            http2.CONTINUATION: self._on_continuation,
        }

    # Life of the connection.

    async def run(self) -> None:
        """Serve the connection until it is lost or closed; raises nothing for what the server does."""
        self._write_preface()
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._read)
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._keep_alive)
        finally:
            self._lose("the client was closed")
            await anyio.aclose_forcefully(self._transport)

    @property
    def last_received(self) -> float:
        """When any byte has come from the server last, on anyio's clock."""
        return self._last_received

    def close(self, reason: str) -> None:
        """End the connection and every call on it."""
        self._lose(reason)

    async def ready(self) -> None:
        """Wait until the server has sent its settings, so that it is known to be a server.

        Raises:
            UnavailableError: the connection ended before.
        """
        await self._settled.wait()
        if self.lost is not None:
            raise (TlsError if self._tls_failed else UnavailableError)(StatusCode.UNAVAILABLE, self.lost)

    def _write_preface(self) -> None:
        self.write(
            http2.PREFACE
            + http2.settings(
                {
                    http2.SETTINGS_ENABLE_PUSH: 0,
                    http2.SETTINGS_INITIAL_WINDOW_SIZE: self.options.stream_window,
                    http2.SETTINGS_MAX_FRAME_SIZE: _MAX_FRAME_SIZE,
                    http2.SETTINGS_MAX_HEADER_LIST_SIZE: _MAX_HEADER_BLOCK,
                }
            )
            + http2.window_update(0, _CONNECTION_WINDOW - http2.DEFAULT_WINDOW)
        )

    def _lose(self, reason: str) -> None:
        """End every call: the connection is over."""
        if self.lost is not None:
            return
        self.lost = f"the connection to {self.address} is over: {reason}"
        for call in list(self._calls.values()):
            call.end(UnavailableError(StatusCode.UNAVAILABLE, self.lost, may_have_run=True))
        self._settled.set()
        self._slot.set()
        self._scope.cancel()

    async def _read(self) -> None:
        reason = "the server has closed it"
        try:
            while True:
                received = await self._transport.receive(_READ_SIZE)
                self._last_received = anyio.current_time()
                for kind, flags, call_id, payload in self._frames.frames(received):
                    self._handle(kind, flags, call_id, payload)
        except anyio.EndOfStream:
            pass
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            reason = _words(error)
            self._tls_failed = _is_tls(error)
        except ConnectionFailure as failure:
            reason = f"the server breaks HTTP/2: {failure}"
        self._lose(reason)

    async def _write(self) -> None:
        while True:
            while not self._out:
                self._wake = anyio.Event()
                await self._wake.wait()
            data = b"".join(self._out)
            self._out = []
            try:
                await self._transport.send(data)
            except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                self._lose(_words(error))
                return
            self._out_size -= len(data)
            self._wake_senders()

    async def _keep_alive(self) -> None:
        """Give up a connection whose server says nothing, not even to a PING."""
        options = self.options
        while True:
            due = max(self._last_received, self._last_wanted) + options.keepalive_interval
            if anyio.current_time() < due:
                await anyio.sleep_until(due)
                continue
            if not self._calls:
                self._last_wanted = anyio.current_time()
                continue
            asked = anyio.current_time()
            self.write(http2.frame(http2.PING, 0, 0, b"liftlive"))
            await anyio.sleep_until(asked + options.keepalive_timeout)
            if self._last_received < asked:
                self._lose("the server does not answer any more")
                return

    # Calls.

    async def call(self, method: str, timeout: float | None = None) -> Call:
        """Open a call, waiting while the server has no room for one more.

        Args:
            method: its name in `proto.API`, "Publish"; or its path, which begins with a slash.
            timeout: what the server is told, in seconds; keeping it is up to the caller.

        Raises:
            UnavailableError: the connection takes no calls any more; the call was not sent.
        """
        while True:
            if self.lost is not None or self.draining:
                reason = self.lost or f"the server at {self.address} is stopping"
                raise UnavailableError(StatusCode.UNAVAILABLE, reason)
            if self._next_id >= http2.MAX_STREAM_ID - 2:
                self.draining = True
                continue
            if len(self._calls) < self._max_calls:
                break
            self._slot = anyio.Event()
            await self._slot.wait()
        call = Call(self, self._next_id, method, self._peer_window)
        self._next_id += 2
        self._calls[call.id] = call
        block = self._head + http2.literal(
            ":path", method if method.startswith("/") else f"/proto.API/{method}"
        )
        if timeout is not None:
            block += http2.literal("grpc-timeout", _timeout(timeout))
        # Pseudo-headers come first.
        self.write(http2.frame(http2.HEADERS, http2.END_HEADERS, call.id, block + _REGULAR_HEADERS))
        return call

    async def unary(self, method: str, request: bytes, timeout: float) -> bytes:
        """Make a call with one request and one response.

        Args:
            method: its name.
            request: the serialized request.
            timeout: in seconds; the server is told as well.

        Raises:
            RpcError: as `from_status` makes it.
        """
        response, _ = await self.unary_with_trailing(method, request, timeout)
        return response

    async def unary_with_trailing(
        self, method: str, request: bytes, timeout: float
    ) -> tuple[bytes, dict[str, str]]:
        """As `unary`; returns the trailing metadata as well."""
        with anyio.move_on_after(timeout):
            with await self.call(method, timeout) as call:
                await call.send(message_frame(request), last=True)
                messages: list[bytes] = []
                while more := await call.receive():
                    messages += more
                if len(messages) != 1:
                    raise from_status(StatusCode.INTERNAL, f"{method} was answered {len(messages)} times")
                return messages[0], call.trailing
        raise from_status(
            StatusCode.DEADLINE_EXCEEDED, f"{method}: no answer from {self.address} in {timeout:g} s"
        )

    def forget(self, call: Call) -> None:
        """The call has ended."""
        self._calls.pop(call.id, None)
        self._heads.pop(call.id, None)
        self._slot.set()
        if self.draining and not self._calls:
            self._lose("the server has ended it")

    def reset(self, call: Call, code: ErrorCode) -> None:
        """Tell the server that nobody wants the call any more."""
        self.write(http2.rst_stream(call.id, code))

    # Writing.

    def write(self, frames: bytes) -> None:
        """Append complete frames to what the writer sends."""
        self._out.append(frames)
        self._out_size += len(frames)
        self._wake.set()

    def write_data(self, call_id: int, data: memoryview, *, last: bool) -> None:
        """Append DATA frames; the caller has reserved the room."""
        size, step = len(data), self._peer_frame_size
        for position in range(0, size or 1, step):  # the end may come without data
            end = min(position + step, size)
            flags = http2.END_STREAM if last and end == size else 0
            self.write(http2.frame(http2.DATA, flags, call_id, bytes(data[position:end])))

    def send_room(self) -> int:
        """How many bytes of DATA may be written now: the lesser of window and buffer."""
        return min(self.send_window, self.options.write_buffer - self._out_size)

    def _wake_senders(self) -> None:
        for call in tuple(self.waiting):
            call.wake_sender()

    # Frames.

    def _handle(self, kind: int, flags: int, call_id: int, payload: http2.Buffer) -> None:
        if self._block is not None and (kind != http2.CONTINUATION or call_id != self._block_call):
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "another frame inside of a header block")
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(flags, call_id, payload)

    def _on_data(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        size = len(payload)
        self._window_owed += size
        if self._window_owed >= 1 << 20:
            self.write(http2.window_update(0, self._window_owed))
            self._window_owed = 0
        call = self._calls.get(call_id)
        if call is None:
            return  # it was cancelled
        data = http2.without_padding(flags, payload)
        call.feed(data, size - len(data))
        if flags & http2.END_STREAM:
            self._end(call, {})

    def _on_headers(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        block, _ = http2.header_block_fragment(flags, call_id, payload)
        self._block, self._block_call, self._block_flags = bytearray(block), call_id, flags
        if flags & http2.END_HEADERS:
            self._on_header_block()

    def _on_continuation(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        if self._block is None:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        if len(self._block) > _MAX_HEADER_BLOCK:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "a header block that is too long")
        if flags & http2.END_HEADERS:
            self._on_header_block()

    def _on_header_block(self) -> None:
        assert self._block is not None
        try:
            # Whoever it is for: the compression state depends on it.
            headers = dict(self._decoder.decode(bytes(self._block)))
        except (HPACKError, IndexError, TypeError, ValueError) as error:
            raise ConnectionFailure(
                ErrorCode.COMPRESSION_ERROR, f"headers cannot be decoded: {error}"
            ) from None
        self._block = None
        call = self._calls.get(self._block_call)
        if call is None:
            return
        if self._block_flags & http2.END_STREAM:
            self._end(call, headers)
        elif headers.get(":status") != "200" or not _is_grpc(headers):
            self.reset(call, ErrorCode.CANCEL)
            self._end(call, headers)
        else:
            self._heads[call.id] = headers

    def _end(self, call: Call, trailers: dict[str, str]) -> None:
        """The server has ended a call; its trailers tell how."""
        head = self._heads.get(call.id, trailers)
        call.end(_status_error(head, trailers), trailers)

    def _on_rst_stream(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        code = http2.parse_uint32(payload, "RST_STREAM")
        call = self._calls.get(call_id)
        if call is not None:
            name = ErrorCode(code).name if code <= max(ErrorCode) else str(code)
            status = _STATUS_OF_RESET.get(code, StatusCode.INTERNAL)
            refused = code == ErrorCode.REFUSED_STREAM and call.id not in self._heads
            text = f"the server at {self.address} has reset the call ({name})"
            call.end(from_status(status, text, may_have_run=not refused))

    def _on_settings(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        if flags & http2.ACK:
            return
        for name, value in http2.parse_settings(payload):
            if name == http2.SETTINGS_MAX_FRAME_SIZE:
                self._peer_frame_size = min(value, _MAX_FRAME_SIZE)
            elif name == http2.SETTINGS_MAX_CONCURRENT_STREAMS:
                self._max_calls = value
            elif name == http2.SETTINGS_INITIAL_WINDOW_SIZE:
                for call in self._calls.values():
                    call.send_window += value - self._peer_window
                self._peer_window = value
        if not self._settled.is_set():
            if self._max_calls == 100 and not _names(payload, http2.SETTINGS_MAX_CONCURRENT_STREAMS):
                self._max_calls = http2.MAX_STREAM_ID
            self._settled.set()
        self.write(http2.SETTINGS_ACK)
        self._slot.set()
        self._wake_senders()

    def _on_push_promise(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a push, which was declined")

    def _on_ping(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        if len(payload) != 8:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"a PING of {len(payload)} bytes")
        if not flags & http2.ACK:
            self.write(http2.frame(http2.PING, http2.ACK, 0, bytes(payload)))

    def _on_goaway(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        if len(payload) < 8:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"a GOAWAY of {len(payload)} bytes")
        last = _LENGTH.unpack_from(payload)[0] & http2.MAX_STREAM_ID
        text = bytes(payload[8:]).decode("utf-8", "replace") or "no reason given"
        self.draining = True
        for call in list(self._calls.values()):
            if call.id > last:  # never looked at, so it is safe elsewhere
                call.end(UnavailableError(StatusCode.UNAVAILABLE, f"{self.address} takes no calls: {text}"))
        self._slot.set()
        if not self._calls:
            self._lose(text)

    def _on_window_update(self, flags: int, call_id: int, payload: http2.Buffer) -> None:
        increment = http2.parse_uint32(payload, "WINDOW_UPDATE") & http2.MAX_WINDOW
        if not call_id:
            self.send_window += increment
            self._wake_senders()
        elif (call := self._calls.get(call_id)) is not None:
            call.send_window += increment
            call.wake_sender()


async def open_connection(address: str, tls: ssl.SSLContext | None, options: Options) -> Connection:
    """Connect to a server; the caller then runs `Connection.run`.

    Args:
        address: "host:port".
        tls: the context for TLS, None for plaintext.
        options: time-outs and bounds.

    Raises:
        UnavailableError: it cannot be reached, or does not speak TLS as it should.
        ValueError: the address is not of the form host:port.
    """
    host, port = split_address(address)
    try:
        with anyio.fail_after(options.connect_timeout):
            transport: anyio.abc.ByteStream
            if tls is None:
                transport = await anyio.connect_tcp(host, port)
            else:
                transport = await anyio.connect_tcp(
                    host, port, tls=True, ssl_context=tls, tls_standard_compatible=False
                )
    except TimeoutError:
        text = f"cannot connect to {address}: no answer in {options.connect_timeout:g} s"
        raise UnavailableError(StatusCode.UNAVAILABLE, text) from None
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        kind = TlsError if _is_tls(error) else UnavailableError
        raise kind(StatusCode.UNAVAILABLE, f"cannot connect to {address}: {_words(error)}") from error
    if tls is not None and transport.extra(TLSAttribute.alpn_protocol) not in ("h2", None):  # noqa: S610  # not Django
        await anyio.aclose_forcefully(transport)
        text = f"cannot connect to {address}: it does not offer HTTP/2 over TLS"
        raise TlsError(StatusCode.UNAVAILABLE, text)
    return Connection(transport, address, "http" if tls is None else "https", options)


def split_address(address: str) -> tuple[str, int]:
    """Take an address apart; IPv6 addresses stand in brackets.

    Raises:
        ValueError: it is not of the form host:port.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"the address {address!r} is not of the form host:port")
    return host, int(port)


def _is_tls(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, ssl.SSLError) or _is_tls(error.__cause__))


def _words(error: BaseException) -> str:
    """What an error of a socket says; anyio hides the words of the system in its causes."""
    words = type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if str(cause):
            words = str(cause)
        inner = getattr(cause, "exceptions", None)
        cause = inner[0] if inner else cause.__cause__
    return words


_REGULAR_HEADERS = (
    http2.literal("te", "trailers")
    + http2.literal("content-type", "application/grpc")
    + http2.literal("user-agent", "liftbridge-python")
)


def _request_head(scheme: str, authority: str) -> bytes:
    return (
        http2.literal(":method", "POST")
        + http2.literal(":scheme", scheme)
        + http2.literal(":authority", authority)
    )


def _timeout(seconds: float) -> str:
    """A grpc-timeout: at most eight digits and a unit. Never 0, which would be over before it began."""
    milliseconds = max(1, round(seconds * 1000))
    return f"{milliseconds}m" if milliseconds < 100_000_000 else f"{min(round(seconds), 99_999_999)}S"


def _names(settings: http2.Buffer, wanted: int) -> bool:
    return any(name == wanted for name, _ in http2.parse_settings(settings))


def _is_grpc(headers: dict[str, str]) -> bool:
    return headers.get("content-type", "").startswith("application/grpc")


def _status_error(head: dict[str, str], trailers: dict[str, str]) -> RpcError | None:
    """What the end of a response means, None for OK."""
    text = urllib.parse.unquote(trailers.get("grpc-message", ""))
    status = trailers.get("grpc-status", "")
    if status.isdecimal():
        number = int(status)
        if number == 0:
            return None
        if number > StatusCode.UNAUTHENTICATED:
            return from_status(StatusCode.UNKNOWN, f"unknown gRPC status {number}: {text}")
        return from_status(StatusCode(number), text)
    if head.get(":status", "200") != "200" or not _is_grpc(head):
        http_status = head.get(":status", "none")
        unavailable = http_status in ("429", "502", "503", "504")
        return from_status(
            StatusCode.UNAVAILABLE if unavailable else StatusCode.INTERNAL,
            f"the server does not speak gRPC here: HTTP status {http_status}, "
            f"content-type {head.get('content-type')!r}",
        )
    return from_status(StatusCode.INTERNAL, "the response ends without a status")
