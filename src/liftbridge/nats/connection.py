"""One connection to NATS: a reader that parses in C, a writer, a keep-alive, and reconnection, on Trio.

A server uses several of these, so that a slow one delays no other: ingest (what partitions receive), acks
(what they answer) and publishes (what gRPC clients publish, and the acks that come back for it).

The life of a connection is the task `run`: connect, replay the subscriptions, read and write until it breaks,
wait with a growing pause, and so on until it is cancelled. While it is down nothing is buffered: `send`
raises and `enqueue` refuses, because a publish that is delivered minutes later is worse than one that fails
now.

Invariants:
* A subscription is in `_subscriptions` from `subscribe` to `unsubscribe`, whatever the connection does.
* At most `MAX_PENDING` bytes, and the one piece that goes beyond, wait to be written. `send` waits for room;
  `enqueue`, which cannot wait, refuses and counts.
* Servers that a connection discovered are forgotten when a later list no longer has them, so the list is
  bounded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from liftbridge._wire import NatsParser, ProtocolError, Sink
from liftbridge.nats.transport import (
    NatsAddress,
    NatsConnectError,
    NatsCredentials,
    OpenConnection,
    discovered_servers,
    open_connection,
)
from liftbridge.sockets import AT_ONCE, Turn, receive_into, send_now

CONNECT_TIMEOUT = 5.0
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
# A connection that lasts less was none: the pause before the next one grows.
STABLE_SECONDS = 5.0
# Refused publishes are told at most so often; whoever causes them must not fill the disk with log lines.
COMPLAINT_INTERVAL = 1.0
PING_INTERVAL = 20.0
MAX_PENDING = 16 << 20
FLUSH_TIMEOUT = 10.0

_NO_SUBSCRIPTION = re.compile(
    r'permissions violation for subscription to "(?P<subject>[^"]*)"(?: using queue "(?P<queue>[^"]*)")?',
    re.IGNORECASE,
)
_NO_PUBLISH = re.compile(r"permissions violation for publish", re.IGNORECASE)


class NatsUnavailableError(Exception):
    """There is no connection to NATS at the moment."""


class NatsPermissionError(Exception):
    """NATS does not let us use a subject."""


@dataclass
class _Subscription:
    subject: str
    queue: str
    sink: Sink
    refused: str = ""

    def command(self, sid: int) -> bytes:
        return f"SUB {self.subject} {self.queue} {sid}\r\n".encode()


class NatsConnection:
    """A connection to one of `servers` that is re-made when it breaks.

    `servers` are URLs; those of the same cluster are discovered. `purpose` names the connection in the log
    and, behind `name`, in NATS monitoring. Owners of sinks that received messages are told by a call of their
    method `on_messages()`; `pace`, when given, is called after every read, and unless it returns None what it
    returns is awaited before the next, so that the owner can slow the connection down; `turn` are the
    readers' turns of the event loop, when others share them. A server that is silent for three
    `ping_interval` (seconds) although it is asked is given up.

    `reconnects` counts lost connections, `refused_sends` what `enqueue` could not take, `violations` what
    NATS did not let us publish or subscribe to.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        name: str,
        purpose: str,
        credentials: NatsCredentials,
        pace: Callable[[], Awaitable[None] | None] | None = None,
        ping_interval: float = PING_INTERVAL,
        turn: Turn | None = None,
    ) -> None:
        self._servers = [NatsAddress(url) for url in servers]
        self._discovered: list[NatsAddress] = []
        self._name = f"{name}.{purpose}"
        self.purpose = purpose
        self._credentials = credentials
        self._pace = pace
        self._ping_interval = ping_interval
        self._log = logging.getLogger(f"liftbridge.nats.{purpose}")
        self._parser = NatsParser()
        self._subscriptions: dict[int, _Subscription] = {}
        self._last_sid = 0
        self._open: OpenConnection | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._turn = turn or Turn()
        self._at_once = self._send_at_once  # one object, by which the turn knows it
        self._sending = False
        self._writable = trio.Event()
        self._room = trio.Event()
        self._pongs: list[trio.Event] = []
        self._up = trio.Event()
        self._heard = 0.0
        self._pacing = False
        self._complaints = 0
        self._complained_at = -COMPLAINT_INTERVAL
        self.last_error = ""
        self.reconnects = 0
        self.refused_sends = 0
        self.violations = 0

    # -- state -----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the connection is usable now."""
        return self._open is not None

    @property
    def servers(self) -> list[NatsAddress]:
        """All servers that are tried, in this order: those that were configured, then those discovered."""
        urls = {address.url for address in self._servers}
        return self._servers + [address for address in self._discovered if address.url not in urls]

    @property
    def parser(self) -> NatsParser:
        """The parser, for its counters."""
        return self._parser

    @property
    def max_payload(self) -> int:
        """The largest payload that the server takes, in bytes (NATS' default of 1 MiB until it is known)."""
        if self._open is None:
            return 1 << 20
        return int(self._open.server_info.get("max_payload", 1 << 20))

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._pending_bytes

    async def wait_connected(self) -> None:
        """Wait until the connection is usable."""
        while not self.connected:
            await self._up.wait()

    # -- subscriptions ---------------------------------------------------------------------------------

    async def subscribe(self, subject: str, sink: Sink, queue: str = "") -> int:
        """Deliver what is published on `subject` to `sink`; returns the subscription's id.

        When connected, returns only after the server has taken it; otherwise it is made with the next
        connection. Raises NatsPermissionError when the server refuses it.
        """
        self._last_sid += 1
        sid = self._last_sid
        subscription = self._subscriptions[sid] = _Subscription(subject, queue, sink)
        self._parser.attach(sid, sink)
        if self.connected:
            try:
                self._enqueue(subscription.command(sid))
                with contextlib.suppress(NatsUnavailableError):  # it will be made with the next connection
                    await self.flush()
            except BaseException:
                self.unsubscribe(sid)
                raise
            if subscription.refused:
                self.unsubscribe(sid)
                raise NatsPermissionError(
                    f"NATS refuses the subscription to {subject!r}: {subscription.refused}; "
                    "let the NATS user of this server subscribe there"
                )
        return sid

    def unsubscribe(self, sid: int) -> None:
        """End a subscription. Messages on their way are dropped and counted."""
        del self._subscriptions[sid]
        self._parser.detach(sid)
        if self.connected:
            self._enqueue(f"UNSUB {sid}\r\n".encode())

    # -- writing ---------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Write NATS protocol bytes, waiting for room. Raises NatsUnavailableError when there is no
        connection."""
        while True:
            if not self.connected:
                raise NatsUnavailableError("not connected to NATS")
            if self._pending_bytes < MAX_PENDING:
                break
            await self._room.wait()
        self._enqueue(data)

    def enqueue(self, data: bytes) -> bool:
        """Write NATS protocol bytes without waiting; False, and counted, when that is not possible."""
        if self._open is None or self._pending_bytes >= MAX_PENDING:
            self.refused_sends += 1
            return False
        self._enqueue(data)
        return True

    @property
    def has_room(self) -> bool:
        """Whether `enqueue` would take something now."""
        return self._open is not None and self._pending_bytes < MAX_PENDING

    @property
    def full(self) -> bool:
        """Whether as much is pending as may be."""
        return self._open is not None and self._pending_bytes >= MAX_PENDING

    async def wait_room(self) -> None:
        """Wait while the connection is `full`."""
        while self.full:
            await self._room.wait()

    async def drain(self) -> None:
        """Wait until everything enqueued has reached the server, or the connection is lost."""
        with contextlib.suppress(NatsUnavailableError):
            await self.flush()

    def _enqueue(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        if not self._turn.later(self._at_once):
            self._writable.set()

    def _send_at_once(self) -> None:
        """The end of a reader's turn: send what is pending, if the writing task has nothing in hand."""
        if self._open is None or not self._pending:
            return
        stream = self._open.stream
        if self._sending or not isinstance(stream, trio.SocketStream) or self._pending_bytes > AT_ONCE:
            self._writable.set()
            return
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        sent = send_now(stream, data)
        self._pending_bytes -= sent
        if sent == len(data):
            self._pending = []
        else:
            self._pending = [data[sent:]]
            self._writable.set()

    async def flush(self) -> None:
        """Wait until the server has processed everything sent so far.

        Raises NatsUnavailableError when the connection breaks first, or when no answer comes within 10 s.
        """
        if not self.connected:
            raise NatsUnavailableError("not connected to NATS")
        pong = trio.Event()
        connection = self._open
        self._pongs.append(pong)
        self._enqueue(b"PING\r\n")
        with trio.move_on_after(FLUSH_TIMEOUT):
            await pong.wait()
        if not pong.is_set() or self._open is not connection:
            raise NatsUnavailableError("the connection to NATS was lost")

    # -- the task --------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection until cancelled. `started` is reported at once, not when it is up."""
        task_status.started()
        pause = FIRST_PAUSE
        while True:
            try:
                opened = await open_connection(self.servers, self._name, self._credentials, CONNECT_TIMEOUT)
            except NatsConnectError as error:
                self.last_error = str(error)
                self._log.warning("no NATS yet, trying again in %.2f s: %s", pause, error)
            else:
                since = trio.current_time()
                await self._serve(opened)
                self.reconnects += 1
                if trio.current_time() - since > STABLE_SECONDS:
                    pause = FIRST_PAUSE
                self._log.warning(
                    "lost the connection to NATS (%s); reconnecting in %.2f s",
                    self.last_error or "closed",
                    pause,
                )
            await trio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _serve(self, opened: OpenConnection) -> None:
        """Use a connection until it breaks."""
        self._discover(opened, opened.server_info)
        self._parser.reset()
        self._parser.feed(opened.early)
        self._pending = [sub.command(sid) for sid, sub in self._subscriptions.items()]
        self._pending_bytes = sum(map(len, self._pending))
        self._writable.set()
        self._open = opened
        self._heard = trio.current_time()
        self.last_error = ""
        self._up.set()
        self._up = trio.Event()
        self._pacing = False
        self._log.info("connected to NATS %s at %s", opened.server_info.get("version", "?"), opened.address)
        try:
            async with trio.open_nursery() as nursery:
                for task in (self._read, self._write, self._keep_alive):
                    nursery.start_soon(self._until_broken, task, opened, nursery.cancel_scope)
        finally:
            self._open = None
            self._pending = []
            self._pending_bytes = 0
            self._wake_room()
            for pong in self._pongs:
                pong.set()
            self._pongs = []
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(opened.stream)

    def _discover(self, opened: OpenConnection, info: dict[str, Any]) -> None:
        if "connect_urls" in info:
            self._discovered = discovered_servers(info, opened.address)

    async def _until_broken(
        self, task: Callable[[OpenConnection], Any], opened: OpenConnection, scope: trio.CancelScope
    ) -> None:
        try:
            await task(opened)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.last_error = self.last_error or str(error.__cause__ or error) or type(error).__name__
        except ProtocolError as error:
            self.last_error = str(error)
            self._log.error("%s", error)
        scope.cancel()

    async def _read(self, opened: OpenConnection) -> None:
        parser = self._parser
        stream = opened.stream
        self._parse()  # what came with the handshake
        while True:
            if isinstance(stream, trio.SocketStream):
                with parser.buffer() as room:
                    count = await receive_into(stream, room)
                parser.received(count)
            else:
                data = await stream.receive_some(262144)
                count = len(data)
                parser.feed(data)
            if not count:
                return
            self._heard = trio.current_time()
            with self._turn:
                self._parse()
            if self._pace is not None and (pause := self._pace()) is not None:
                # While we do not read, silence says nothing about the server.
                self._pacing = True
                await pause
                self._pacing = False
                self._heard = trio.current_time()

    def _parse(self) -> None:
        """Parse what was read and let the owners of the sinks have it."""
        parser = self._parser
        now = time.time_ns()
        while True:
            step = parser.parse(now)
            if isinstance(step, bytes):
                self._control(step)
                continue
            for owner in parser.take_touched():
                owner.on_messages()
            if step is None:
                return

    def _control(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"PING":
            self._enqueue(b"PONG\r\n")
        elif verb == b"PONG":
            if self._pongs:
                self._pongs.pop(0).set()
        elif verb == b"-ERR":
            self._on_error(line[4:].decode("utf-8", "replace").strip().strip("'"))
        elif verb == b"INFO":
            with contextlib.suppress(ValueError, RecursionError):
                info = json.loads(line[4:])
                if isinstance(info, dict) and self._open is not None:
                    self._open.server_info.update(info)
                    self._discover(self._open, info)
        elif verb[:3] != b"+OK":
            raise ProtocolError(f"not the NATS protocol: {line[:80]!r}")

    def _on_error(self, text: str) -> None:
        """An -ERR line. The server closes the connection after most of them, but not after those of
        permissions."""
        refused = _NO_SUBSCRIPTION.search(text)
        if refused:
            self.violations += 1
            for subscription in self._subscriptions.values():
                if subscription.subject == refused["subject"] and subscription.queue == (
                    refused["queue"] or ""
                ):
                    subscription.refused = text
        elif _NO_PUBLISH.search(text):
            self.violations += 1
            self._complaints += 1
            now = trio.current_time()
            if now - self._complained_at < COMPLAINT_INTERVAL:
                return
            text += f" ({self._complaints} such refusals since the last report)"
            self._complaints, self._complained_at = 0, now
        else:
            self.last_error = text
        self._log.error("NATS says: %s", text)

    async def _write(self, opened: OpenConnection) -> None:
        while True:
            await self._writable.wait()
            self._writable = trio.Event()
            if not self._pending:
                continue
            data = b"".join(self._pending)
            self._pending = []
            self._sending = True
            try:
                await opened.stream.send_all(data)
            finally:
                self._sending = False
            self._pending_bytes -= len(data)
            if self._pending_bytes < MAX_PENDING:
                self._wake_room()

    def _wake_room(self) -> None:
        self._room.set()
        self._room = trio.Event()

    async def _keep_alive(self, opened: OpenConnection) -> None:
        while True:
            await trio.sleep(self._ping_interval)
            silent = trio.current_time() - self._heard
            if self._pacing:
                continue
            if silent > 2 * self._ping_interval:
                raise OSError(f"NATS was silent for {silent:.1f} s")
            self._pongs.append(trio.Event())
            self._enqueue(b"PING\r\n")
