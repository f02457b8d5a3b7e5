"""The HTTP endpoint for whoever watches a server: `/metrics`, `/healthz`, `/readyz`.

HTTP/1.1 by h11, which parses; what is here reads, answers and closes. It is for a monitoring system on a
network of its own: plain text, no authentication, nothing that changes anything. So that a stranger who
reaches it can do no harm, there are bounds on connections, on the size of a request's head, and on the time
that a request and its answer may take.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import h11
import trio

from liftbridge.broker.observed import Observed
from liftbridge.obs.exposition import CONTENT_TYPE, exposition
from liftbridge.obs.metrics import Metrics
from liftbridge.obs.stalls import Stalls

MAX_CONNECTIONS = 32
MAX_HEAD_BYTES = 16 * 1024
# For a request to come, its answer to be taken, and between two requests of a connection.
REQUEST_SECONDS = 30.0

logger = logging.getLogger("liftbridge.http")

Answer = tuple[int, str, bytes]  # status, content type, body


class Endpoint:
    """Serves a server's metrics and health; what `broker.app.Server` takes as observer.

    Attributes:
        address: where it listens, once it runs.
    """

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._loop = Stalls()
        self._metrics = Metrics(observed, self._loop)
        self._connections = 0
        self._pages: dict[str, Callable[[], Answer]] = {
            "/metrics": self._tell_metrics,
            "/healthz": lambda: (200, "text/plain; charset=utf-8", b"alive\n"),
            "/readyz": self._tell_ready,
        }
        self.address = ("", 0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises OSError when it cannot listen."""
        listen = self._observed.config.http.listen
        listeners: list[trio.SocketListener] = []
        if listen is not None:
            listeners = await trio.open_tcp_listeners(listen.port, host=listen.host or None)
        async with trio.open_nursery() as nursery:
            if listeners:
                self.address = listeners[0].socket.getsockname()[:2]
                logger.info("metrics and health at http://%s:%d", *self.address)
                nursery.start_soon(trio.serve_listeners, self._serve, listeners)
                nursery.start_soon(self._loop.run)
            task_status.started()
            await trio.sleep_forever()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Answer the requests of a connection. What a peer does wrong ends it."""
        if self._connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            async with stream:
                await self._answer_all(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.LocalProtocolError):
            pass
        finally:
            self._connections -= 1

    async def _answer_all(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        while True:
            with trio.move_on_after(REQUEST_SECONDS) as patience:
                try:
                    request = await _next_request(connection, stream)
                except h11.RemoteProtocolError as error:
                    if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                        status = error.error_status_hint
                        answer = (status, "text/plain; charset=utf-8", f"{error}\n".encode())
                        await _send(connection, stream, answer, close=True)
                    return
                if request is None:
                    return
                await _send(connection, stream, self._answer(request), head=request.method == b"HEAD")
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return
                connection.start_next_cycle()
            if patience.cancelled_caught:
                return

    def _answer(self, request: h11.Request) -> Answer:
        page = self._pages.get(request.target.split(b"?")[0].decode("ascii", "replace"))
        if page is None:
            return 404, "text/plain; charset=utf-8", b"there are /metrics, /healthz and /readyz\n"
        if request.method not in {b"GET", b"HEAD"}:
            return 405, "text/plain; charset=utf-8", b"only GET and HEAD\n"
        return page()

    def _tell_metrics(self) -> Answer:
        return 200, CONTENT_TYPE, exposition(self._metrics.collect())

    def _tell_ready(self) -> Answer:
        reasons = self._observed.unready()
        body = json.dumps({"ready": not reasons, "reasons": reasons}).encode() + b"\n"
        return 503 if reasons else 200, "application/json", body


async def _next_request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The next request, its body read and ignored; None when the peer is gone."""
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(MAX_HEAD_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return None


async def _send(
    connection: h11.Connection,
    stream: trio.SocketStream,
    answer: Answer,
    *,
    head: bool = False,
    close: bool = False,
) -> None:
    status, content_type, body = answer
    headers = [("content-type", content_type), ("content-length", str(len(body)))]
    if close:
        headers.append(("connection", "close"))
    data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    if body and not head:
        data += connection.send(h11.Data(data=body)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
