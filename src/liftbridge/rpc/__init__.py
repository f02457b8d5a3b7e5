"""The gRPC server on Trio: purerpc's services and messages on a transport fit for a log server.

The way of a call: `server` accepts, `connection` reads frames (`http2`) and headers (`headers`), a
`stream` holds what has arrived and sends what is answered, `call` runs the servicer's method. `limits`
bounds what a peer may cost, `context` is what a handler knows about its call, `framing` is the bulk form of
messages. `immediate` are calls that need no task, `raw` those between servers, `writer` is what waits for the
socket.
"""

from .call import immediate, raw_requests
from .context import CallContext, Request
from .errors import RpcFailedError, Status, StatusCode, rpc_error
from .framing import Frames, message_frame
from .health import HealthServicer
from .immediate import ImmediateCall
from .limits import Limits
from .raw import RawCall, RawHandler, RawService
from .server import RpcServer

__all__ = [
    "RpcServer",
    "Limits",
    "Frames",
    "CallContext",
    "Request",
    "Status",
    "StatusCode",
    "RpcFailedError",
    "rpc_error",
    "raw_requests",
    "immediate",
    "message_frame",
    "ImmediateCall",
    "RawCall",
    "RawHandler",
    "RawService",
    "HealthServicer",
]
