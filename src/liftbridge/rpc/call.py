"""One call: from its stream to the servicer's method and back to a status.

The handler runs in the stream's cancel scope, under the caller's deadline. However it ends, the client
gets exactly one status, or none if it no longer wants one. Cancellation from above (the connection is gone)
passes through.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from purerpc import Cardinality

from .context import CallContext, Request
from .errors import Status, StatusCode, rpc_error, status_of
from .framing import Frames
from .immediate import Begin, ImmediateCall
from .raw import RawCall, RawHandler, RawService
from .stream import Stream

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger("liftbridge.rpc")

_OK = Status(StatusCode.OK)
_GENERATED = "_grpc"  # how the names of purerpc's generated modules end
_RAW_REQUESTS = "_liftbridge_raw_requests"
_BEGIN = "_liftbridge_begin"
# Sees every call before its handler does: gets the context, the request (None when requests are a stream) and
# what ends the call with a status; returns what to call when it is over, or raises an RpcFailedError.
Guard = Callable[[CallContext, "Message | None", Callable[[Status], None]], "Callable[[], None] | None"]
_STREAMED_REQUESTS = frozenset({Cardinality.STREAM_UNARY, Cardinality.STREAM_STREAM})
_STREAMED_RESPONSES = frozenset({Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM})

Handler = TypeVar("Handler", bound=Callable[..., Any])


def raw_requests(handler: Handler) -> Handler:
    """Give a client-streaming handler its requests as `Frames`: all that has arrived, not decoded."""
    setattr(handler, _RAW_REQUESTS, True)
    return handler


def immediate(begin: Callable[[Any, bytes, ImmediateCall], bool]) -> Callable[[Handler], Handler]:
    """Ask `begin`, a method of the same servicer, to serve a unary call without a task before the handler is
    run: see `Begin`."""

    def mark(handler: Handler) -> Handler:
        setattr(handler, _BEGIN, begin)
        return handler

    return mark


class Method:
    """One method of a servicer, prepared for calls."""

    __slots__ = (
        "_begin",
        "_function",
        "_guard",
        "_name",
        "_raw",
        "_request_type",
        "_streamed_request",
        "_streamed_response",
    )

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        signature: Any,
        *,
        raw: bool,
        guard: "Guard | None" = None,
        begin: "Begin | None" = None,
    ) -> None:
        self._name = name
        self._begin = begin
        self._guard = guard
        self._function = function
        self._request_type: type[Message] = signature.request_type
        self._streamed_request = signature.cardinality in _STREAMED_REQUESTS
        self._streamed_response = signature.cardinality in _STREAMED_RESPONSES
        self._raw = raw
        if raw and not self._streamed_request:
            raise TypeError(f"{name} takes one request message: raw_requests is for streams of them")
        if begin is not None and self.streaming:
            raise TypeError(f"{name} takes or gives a stream of messages: immediate is for unary methods")

    @property
    def streaming(self) -> bool:
        """Whether a call may last for ever."""
        return self._streamed_request or self._streamed_response

    @property
    def immediate(self) -> bool:
        """Whether a call may be served without a task."""
        return self._begin is not None

    @property
    def internal(self) -> bool:
        """Whether it is for other servers, not for clients: see `RawService`."""
        return False

    @property
    def too_late(self) -> str:
        """What a caller is told whose deadline has passed."""
        return f"{self._name} did not end before its deadline"

    def begin(self, stream: Stream, connection: "Connection") -> bool:
        """Serve a call without a task, if its handler can; else nothing has happened, and `run` is due.

        Args:
            stream: the call's stream; the client has ended its request.
            connection: that of the stream.
        """
        data = stream.whole_request()
        if data is None or stream.finished or stream.final_status is not None:
            return False
        timeout = stream.head.timeout
        if timeout is not None and timeout <= 0:
            return False
        assert self._begin is not None, f"{self._name} needs a task"
        call = stream.pending = ImmediateCall(self, stream, connection)
        try:
            if self._guard is not None:
                message = self._decode(data)
                self._admit(stream, connection.context_of(stream), message)
            taken = self._begin(data, call)
        except Exception as error:
            call.fail(error)
            return True
        if not taken:
            stream.pending = None
            return False
        stream.release()
        call.wait()
        return True

    def _admit(self, stream: Stream, context: CallContext, message: "Message | None") -> None:
        """Ask the guard, once for each call."""
        if self._guard is not None and not stream.admitted:
            stream.admitted = True
            stream.over = self._guard(context, message, stream.abort)

    async def run(self, stream: Stream, request: Request) -> None:
        """Serve one call; returns when its handler has ended and the status is on its way.

        Args:
            stream: the call's stream.
            request: what the handler gets as its `request`; its deadline is honoured.
        """
        if stream.finished:
            stream.release()  # reset before its turn came
            return
        await self.supervise(stream, request.context, partial(self._invoke, stream, request))

    async def supervise(
        self, stream: Stream, context: CallContext, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do `work` under the caller's deadline, and end the call with the status that follows from it."""
        scope = stream.scope = trio.CancelScope(deadline=context.deadline)
        if stream.final_status is not None:
            scope.cancel()  # ended before its turn came
        try:
            with scope:
                await work()
        except Exception as error:
            stream.finish(status_of(error) or self.defect(error, context.peer))
        else:
            if scope.cancelled_caught:
                stream.finish(stream.final_status or Status(StatusCode.DEADLINE_EXCEEDED, self.too_late))
            else:
                stream.finish(_OK)
        finally:
            stream.finished = True
            stream.release()

    async def _invoke(self, stream: Stream, request: Request) -> None:
        argument: Any
        request.send = partial(_send, stream)
        if self._streamed_request:
            argument = self._batches(stream) if self._raw else self._messages(stream)
        else:
            argument = await self._only_message(stream)
        try:
            self._admit(stream, request.context, None if self._streamed_request else argument)
            if self._streamed_response:
                await self._send_all(stream, self._function(argument, request=request))
            else:
                response = await self._function(argument, request=request)
                await stream.respond(response.SerializeToString(), request.trailing)
        finally:
            if stream.over is not None:
                stream.over()
            if self._streamed_request:
                await argument.aclose()

    async def _send_all(self, stream: Stream, responses: Any) -> None:
        if not hasattr(responses, "__aiter__"):
            await responses  # a coroutine, which sends by `request.send`
            return
        async with aclosing(responses):
            async for response in responses:
                await _send(stream, response)

    async def _only_message(self, stream: Stream) -> Message:
        if stream.ended:
            return self._decode(await self._only_data(stream))
        patience = stream.request_timeout
        with trio.move_on_after(patience):
            return self._decode(await self._only_data(stream))
        text = f"the request of {self._name} was not there as a whole after {patience:g} seconds"
        raise rpc_error(StatusCode.RESOURCE_EXHAUSTED, text)

    async def _only_data(self, stream: Stream) -> bytes:
        data = await stream.receive_message()
        if data is None:
            raise rpc_error(StatusCode.INTERNAL, f"{self._name} takes one request message and got none")
        if await stream.receive_message() is not None:
            raise rpc_error(StatusCode.INTERNAL, f"{self._name} takes one request message and got more")
        return data

    async def _messages(self, stream: Stream) -> AsyncIterator[Message]:
        while (data := await stream.receive_message()) is not None:
            yield self._decode(data)
            # Messages that are there already cost no wait: others must run between them.
            await trio.lowlevel.checkpoint()

    async def _batches(self, stream: Stream) -> AsyncIterator[Frames]:
        while (data := await stream.receive_batch()) is not None:
            yield Frames(data)
            await trio.lowlevel.checkpoint()

    def _decode(self, data: bytes) -> Message:
        message = self._request_type()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            text = f"the request of {self._name} is not a {message.DESCRIPTOR.full_name}: {error}"
            raise rpc_error(StatusCode.INTERNAL, text) from None
        return message

    def defect(self, error: Exception, peer: str) -> Status:
        """Log a defect of the handler; returns what the client is told of it."""
        logger.error("%s failed for %s", self._name, peer, exc_info=error)
        return Status(StatusCode.INTERNAL, f"{self._name} failed: {type(error).__name__}")


class RawMethod(Method):
    """A method of a `RawService`."""

    __slots__ = ("_handler", "_max_message")

    def __init__(self, name: str, handler: RawHandler, max_message: int) -> None:
        self._name = name
        self._handler = handler
        self._max_message = max_message
        self._begin = None
        self._guard = None
        self._streamed_request = self._streamed_response = True

    @property
    def internal(self) -> bool:
        return True

    async def _invoke(self, stream: Stream, request: Request) -> None:
        stream.max_message = self._max_message
        await self._handler(RawCall(stream, request.context))


async def _send(stream: Stream, response: "Frames | Message") -> None:
    """Send one response, or a batch of them; waits for the client to have room."""
    if isinstance(response, Frames):
        await stream.send(response.data)
    else:
        await stream.send_message(response.SerializeToString())


class Methods:
    """The methods of a server by path, "/proto.API/Publish".

    A method that a servicer has not overridden is left out, and so answered with UNIMPLEMENTED.

    Attributes:
        starting: whether more are to come.
    """

    def __init__(self, starting: bool = False) -> None:
        self.starting = starting
        self._by_path: dict[str, Method] = {}
        self._services: set[str] = set()

    @property
    def internal(self) -> bool:
        """Whether there are methods for other servers."""
        return any(method.internal for method in self._by_path.values())

    def get(self, path: str) -> "Method | None":
        """Return the method of a path, None when there is none (yet)."""
        return self._by_path.get(path)

    def refusal(self, path: str) -> Status:
        """Return what a call of a method is told that is not there."""
        if self.starting:
            return Status(StatusCode.UNAVAILABLE, f"this server is starting and has no {path} yet; try again")
        return Status(StatusCode.UNIMPLEMENTED, f"{path} is no method of this server")

    def add(self, services: "Sequence[Any]", guard: "Guard | None" = None) -> None:
        """Add the methods of purerpc services.

        Raises:
            ValueError: two services have one name.
            TypeError: `raw_requests` decorates a handler without a stream of requests.
        """
        for service in services:
            if service.name in self._services:
                raise ValueError(f"the service {service.name} is given twice")
            self._services.add(service.name)
            if isinstance(service, RawService):
                for name, handler in service.methods.items():
                    path = f"/{service.name}/{name}"
                    self._by_path[path] = RawMethod(path, handler, service.max_message)
                continue
            for name, bound in service.methods.items():
                written = _written(bound.method_fn)
                if not written.__module__.endswith(_GENERATED):
                    path = f"/{service.name}/{name}"
                    self._by_path[path] = _method(path, bound, written, guard)


def _method(path: str, bound: Any, written: Callable[..., Any], guard: "Guard | None") -> Method:
    begin = getattr(written, _BEGIN, None)
    if begin is not None:
        begin = partial(begin, written.__self__)  # type: ignore[attr-defined]
    raw = bool(getattr(written, _RAW_REQUESTS, False))
    return Method(path, bound.method_fn, bound.signature, raw=raw, guard=guard, begin=begin)


def _written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the servicer's own function.

    purerpc wraps a handler that does not take `request`; the original is in the wrapper's closure.
    """
    if function.__name__ == "method_fn_with_headers" and function.__closure__:
        original: Callable[..., Any] = function.__closure__[0].cell_contents
        return original
    return function
