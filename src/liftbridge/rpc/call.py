"""One call: from its stream to the servicer's method and back to a status.

The handler runs in the stream's cancel scope, under the caller's deadline. However it ends, the client
gets exactly one status, or none if it no longer wants one. Cancellation from above (the connection is gone)
passes through.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from purerpc import Cardinality

from .context import CallContext, Request
from .errors import Status, StatusCode, rpc_error, status_of
from .framing import Frames
from .stream import Stream

logger = logging.getLogger("liftbridge.rpc")

_OK = Status(StatusCode.OK)
_GENERATED = "_grpc"  # how the names of purerpc's generated modules end
_RAW_REQUESTS = "_liftbridge_raw_requests"
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


class Method:
    """One method of a servicer, prepared for calls."""

    __slots__ = (
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
    ) -> None:
        self._name = name
        self._guard = guard
        self._function = function
        self._request_type: type[Message] = signature.request_type
        self._streamed_request = signature.cardinality in _STREAMED_REQUESTS
        self._streamed_response = signature.cardinality in _STREAMED_RESPONSES
        self._raw = raw
        if raw and not self._streamed_request:
            raise TypeError(f"{name} takes one request message: raw_requests is for streams of them")

    @property
    def streaming(self) -> bool:
        """Whether a call may last for ever."""
        return self._streamed_request or self._streamed_response

    async def run(self, stream: Stream, request: Request) -> None:
        """Serve one call; returns when its handler has ended and the status is on its way.

        Args:
            stream: the call's stream.
            request: what the handler gets as its `request`; its deadline is honoured.
        """
        if stream.finished:
            stream.release()  # reset before its turn came
            return
        stream.scope.deadline = request.context.deadline
        try:
            with stream.scope:
                await self._invoke(stream, request)
        except Exception as error:
            stream.finish(status_of(error) or self._defect(error, request))
        else:
            if stream.scope.cancelled_caught:
                stream.finish(
                    stream.final_status
                    or Status(StatusCode.DEADLINE_EXCEEDED, f"{self._name} did not end before its deadline")
                )
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
        over = None
        try:
            if self._guard is not None:
                message = None if self._streamed_request else argument
                over = self._guard(request.context, message, stream.abort)
            if self._streamed_response:
                await self._send_all(stream, self._function(argument, request=request))
            else:
                response = await self._function(argument, request=request)
                await stream.respond(response.SerializeToString(), request.trailing)
        finally:
            if over is not None:
                over()
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

    def _defect(self, error: Exception, request: Request) -> Status:
        logger.error("%s failed for %s", self._name, request.context.peer, exc_info=error)
        return Status(StatusCode.INTERNAL, f"{self._name} failed: {type(error).__name__}")


async def _send(stream: Stream, response: "Frames | Message") -> None:
    """Send one response, or a batch of them; waits for the client to have room."""
    if isinstance(response, Frames):
        await stream.send(response.data)
    else:
        await stream.send_message(response.SerializeToString())


def methods_of(services: "list[Any]", guard: "Guard | None" = None) -> "dict[str, Method]":
    """Return the methods of purerpc services by path, "/proto.API/Publish".

    A method that a servicer has not overridden is left out, and so answered with UNIMPLEMENTED.

    Raises:
        ValueError: two services have one name.
        TypeError: `raw_requests` decorates a handler without a stream of requests.
    """
    names = [service.name for service in services]
    if len(set(names)) < len(names):
        raise ValueError(f"a service is given twice among {names}")
    methods: dict[str, Method] = {}
    for service in services:
        for name, bound in service.methods.items():
            written = _written(bound.method_fn)
            if not written.__module__.endswith(_GENERATED):
                path = f"/{service.name}/{name}"
                raw = bool(getattr(written, _RAW_REQUESTS, False))
                methods[path] = Method(path, bound.method_fn, bound.signature, raw=raw, guard=guard)
    return methods


def _written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the servicer's own function.

    purerpc wraps a handler that does not take `request`; the original is in the wrapper's closure.
    """
    if function.__name__ == "method_fn_with_headers" and function.__closure__:
        original: Callable[..., Any] = function.__closure__[0].cell_contents
        return original
    return function
