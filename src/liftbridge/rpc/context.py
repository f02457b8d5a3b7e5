"""What a handler can know about its call besides the messages."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from purerpc.grpclib.events import RequestReceived

Metadata = tuple[tuple[str, "str | bytes"], ...]


@dataclass(frozen=True)
class CallContext:
    """One call as the server sees it.

    `Publish` and `PublishToSubject` wait for an ack only when the caller set a deadline, hence
    `has_deadline` beside `deadline`.
    """

    method: str
    """The path of the method, "/proto.API/Publish"."""
    peer: str
    """Where the call comes from, "ipv4:10.0.0.1:51234" or "ipv6:[::1]:51234"."""
    deadline: float = math.inf
    """When the caller stops waiting, on the scale of `trio.current_time()`."""
    metadata: Metadata = ()
    """The caller's own headers in their order; values of names ending in "-bin" are bytes."""
    peer_certificate: "dict[str, Any] | None" = field(default=None, repr=False)
    """The verified certificate of the client as `ssl.SSLSocket.getpeercert()` gives it, None without one."""

    @property
    def has_deadline(self) -> bool:
        """Whether the caller set a time limit."""
        return self.deadline != math.inf


class Request(RequestReceived):  # type: ignore[misc]  # purerpc is untyped
    """The `request` argument of a handler: purerpc's event with the call's context.

    `send` is for handlers of streamed responses that are coroutines instead of generators, because they
    receive and send at the same time: it sends one response, or `Frames`, waiting for the client to have
    room. One task at a time may send.

    `trailing` is metadata that a handler of a single response wants to go with the status OK: lower-case
    names, values of printable ASCII.
    """

    send: Callable[[Any], Awaitable[None]]
    trailing: Metadata = ()

    def __init__(self, stream_id: int, scheme: str, service: str, method: str, context: CallContext) -> None:
        super().__init__(stream_id, scheme, service, method, "application/grpc")
        self.custom_metadata = context.metadata
        self.context = context
