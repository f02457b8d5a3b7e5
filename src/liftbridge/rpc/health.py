"""grpc.health.v1.Health: whether the API may be used, for load balancers and orchestrators.

`proto.API`, and the empty name, which is the server itself, serve from the start of the listener to the
beginning of shutdown. Those who watch are told before their calls end with the others: a load balancer that
saw nothing but a broken call would try again here.
"""

from collections.abc import AsyncIterator

import trio

from liftbridge.proto import health_grpc, health_pb2

from .context import Request
from .errors import StatusCode, rpc_error

API_SERVICE = "proto.API"

Serving = health_pb2.HealthCheckResponse.ServingStatus


class HealthServicer(health_grpc.HealthServicer):
    """The health service.

    Args:
        serving: whether the API serves already.
    """

    def __init__(self, *, serving: bool = True) -> None:
        self._serving = serving
        self._changed = trio.Event()
        self._watchers: set[object] = set()
        self._untold: set[object] = set()  # of the watchers
        self._told = trio.Event()

    def set_serving(self, serving: bool) -> None:
        """Say whether the API serves; those who watch will be told."""
        if serving != self._serving:
            self._serving = serving
            self._untold = set(self._watchers)
            self._changed.set()
            self._changed = trio.Event()

    async def all_told(self) -> None:
        """Wait until everybody who watches has been told; for ever if one does not read."""
        await trio.lowlevel.checkpoint()
        while self._untold:
            await self._told.wait()

    def _is_told(self, watcher: object) -> None:
        self._untold.discard(watcher)
        if not self._untold:
            self._told.set()
            self._told = trio.Event()

    def _status(self, service: str) -> Serving:
        if service not in ("", API_SERVICE):
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._serving:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    async def Check(  # noqa: N802
        self, input_message: health_pb2.HealthCheckRequest, request: Request
    ) -> health_pb2.HealthCheckResponse:
        """Answer for one service; NOT_FOUND for one that does not exist."""
        status = self._status(input_message.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise rpc_error(StatusCode.NOT_FOUND, f"unknown service {input_message.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, input_message: health_pb2.HealthCheckRequest, request: Request
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Tell the state of one service now and whenever it changes."""
        last = None
        watcher = object()
        self._watchers.add(watcher)
        try:
            while True:
                changed = self._changed
                status = self._status(input_message.service)
                if status != last:
                    yield health_pb2.HealthCheckResponse(status=status)
                    last = status
                    continue
                self._is_told(watcher)
                await changed.wait()
        finally:
            self._watchers.discard(watcher)
            self._is_told(watcher)
