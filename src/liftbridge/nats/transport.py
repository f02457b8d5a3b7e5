"""nats-py's transport on a Trio stream, and the handshake with a NATS server.

nats-py knows how to greet a NATS server: INFO, TLS upgrade, user and password, tokens, NKeys and JWT
credentials. What comes after the handshake is a byte stream with a simple protocol on it, and the data plane
has to read that one in C, in large pieces, without a task or an object per message. So nats-py is run, over
the `bridge` to asyncio, for exactly the handshake: its transport is replaced by one on a Trio stream, and its
read loop, pinger and flusher are replaced by nothing. What `open_connection` returns is the stream, ready to
use, and what the server said of itself.

Invariants:
* When `open_connection` returns or raises, no asyncio task of the client is left.
* Whoever asks for TLS gets TLS: nothing, and least of all a password, is sent in clear to a server that does
  not offer it, even if somebody on the way removed the offer.
* nats-py never sees a URL with a password in it, so none of its error texts can tell one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import ParseResult, unquote, urlsplit

import nats.errors
import trio
from nats.aio.client import Client
from nats.aio.transport import Transport

from liftbridge.nats import bridge

MAX_INFO_BYTES = 1 << 20


class NatsConnectError(Exception):
    """A NATS server could not be reached, or refused us; the text says which and why."""


@dataclass(frozen=True)
class NatsCredentials:
    """How to identify ourselves to NATS. Empty strings mean: not used.

    `credentials` is the path of a credentials file (JWT and NKey seed). A user and password, or a token, in
    the server's URL (percent-encoded) are used when none of these is set. With `tls`, only servers that offer
    TLS are used.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials: str = ""
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class NatsAddress:
    """A NATS server: its URL, and the name its certificate must have when that is not the host in the URL."""

    url: str
    tls_name: str = ""

    def __str__(self) -> str:
        return without_secrets(self.url)


@dataclass
class OpenConnection:
    """A NATS connection after the handshake.

    `address` is whom it leads to, `early` what the server sent behind its part of the handshake.
    """

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    address: NatsAddress
    early: bytes
    server_info: dict[str, Any]


class TrioTransport(Transport):
    """The transport that nats-py is given. Its methods are called from asyncio, its I/O is Trio's."""

    def __init__(self) -> None:
        self.stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] | None = None
        self.buffered = bytearray()
        self._outgoing: list[bytes] = []
        self._patience = 0.0

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        self._patience = connect_timeout

        async def open_stream() -> None:
            with fail_after(connect_timeout):
                self.stream = await trio.open_tcp_stream(uri.hostname or "", uri.port or 4222)

        await as_asyncio(open_stream)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: float
    ) -> None:
        hostname = uri if isinstance(uri, str) else uri.hostname
        assert isinstance(self.stream, trio.SocketStream), "TLS is started once, on a plain stream"
        secured = trio.SSLStream(self.stream, ssl_context, server_hostname=hostname)

        async def handshake() -> None:
            with fail_after(connect_timeout):
                await secured.do_handshake()

        await as_asyncio(handshake)
        self.stream = secured

    def write(self, payload: bytes) -> None:
        self._outgoing.append(bytes(payload))

    def writelines(self, payload: list[bytes]) -> None:
        self._outgoing.extend(payload)

    async def drain(self) -> None:
        async def send() -> None:
            assert self.stream is not None
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            if data:
                with fail_after(self._patience):
                    await self.stream.send_all(data)

        await as_asyncio(send)

    async def read(self, buffer_size: int) -> bytes:
        raise AssertionError("nats-py reads by line during the handshake, and not at all afterwards")

    async def readline(self) -> bytes:
        async def receive() -> None:
            assert self.stream is not None
            while b"\n" not in self.buffered:
                if len(self.buffered) > MAX_INFO_BYTES:
                    raise ConnectionError("the server sent no line end; it does not speak NATS")
                with fail_after(self._patience):
                    data = await self.stream.receive_some(65536)
                if not data:
                    raise ConnectionError("the server closed the connection during the handshake")
                self.buffered += data

        await as_asyncio(receive)
        end = self.buffered.index(b"\n") + 1
        line = bytes(self.buffered[:end])
        del self.buffered[:end]
        return line

    async def wait_closed(self) -> None:
        """Nothing to wait for: `open_connection` closes the stream, where it owns it."""

    def close(self) -> None:
        """See `wait_closed`."""

    def at_eof(self) -> bool:
        return False

    def __bool__(self) -> bool:
        return self.stream is not None


class HandshakeClient(Client):
    """nats-py's client, reduced to the handshake. With `tls_wanted` it speaks to nobody without TLS."""

    def __init__(self, *, tls_wanted: bool) -> None:
        super().__init__()
        self._tls_wanted = tls_wanted

    async def _process_info(self, info: Any, initial_connection: bool = False) -> None:
        if not isinstance(info, dict):
            raise nats.errors.Error("the server's INFO is no JSON object")
        if self._tls_wanted and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise nats.errors.Error(
                    "the server offers no TLS, and TLS is configured; nothing was sent to it"
                )
            info["tls_required"] = True  # to nats-py the only reason for TLS

    async def _connect_to_server(self, s: Any) -> None:
        self._transport = TrioTransport()
        await self._transport.connect(s.uri, 0, self.options["connect_timeout"])

    async def _read_loop(self) -> None:
        """Reading is the caller's."""

    async def _ping_interval(self) -> None:
        """Pinging is the caller's."""

    async def _flusher(self) -> None:
        """Writing is the caller's."""


async def as_asyncio(function: Any) -> None:
    """Run a Trio function from asyncio, with the exceptions that nats-py knows."""
    try:
        await bridge.BRIDGE.call_trio(function)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionError(str(error.__cause__ or error) or "the connection broke") from error


@contextlib.contextmanager
def fail_after(seconds: float) -> Iterator[None]:
    """`trio.fail_after` with asyncio's exception, which is the one that nats-py expects."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise asyncio.TimeoutError("no answer in time") from None


async def open_connection(
    servers: Sequence[NatsAddress], name: str, credentials: NatsCredentials, connect_timeout: float
) -> OpenConnection:
    """Connect to the first of `servers` that answers.

    Must run inside `bridge.BRIDGE.opened()`. `name` is shown in NATS monitoring; `connect_timeout` is in
    seconds and holds for each step of the handshake. Raises NatsConnectError when none of the servers takes
    us.
    """
    failures = []
    for server in servers:
        opened = await _try_one(server, name, credentials, connect_timeout)
        if isinstance(opened, OpenConnection):
            return opened
        failures.append(opened)
    raise NatsConnectError("; ".join(failures))


async def _try_one(
    server: NatsAddress, name: str, credentials: NatsCredentials, connect_timeout: float
) -> OpenConnection | str:
    """A connection, or why there is none."""
    try:
        return await _open_one(server, name, credentials, connect_timeout)
    except Exception as error:
        # A peer that speaks something else can make nats-py raise anything.
        return f"{server}: {str(error) or type(error).__name__}"


async def _open_one(
    server: NatsAddress, name: str, credentials: NatsCredentials, connect_timeout: float
) -> OpenConnection:
    client = HandshakeClient(tls_wanted=credentials.tls is not None or server.url.startswith("tls://"))
    credentials = login(server.url, credentials)

    async def ignore(error: Exception) -> None:
        """nats-py reports here what it also raises."""

    failed = True
    try:
        connect: Callable[[], Coroutine[Any, Any, None]] = partial(
            client.connect,
            servers=[without_secrets(server.url)],
            name=name,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=connect_timeout,  # type: ignore[arg-type]  # it may be a fraction
            error_cb=ignore,
            user=credentials.user or None,
            password=credentials.password or None,
            token=credentials.token or None,
            user_credentials=credentials.credentials or None,
            tls=credentials.tls,
            tls_hostname=server.tls_name or None,
        )
        await bridge.BRIDGE.call_asyncio(connect)
        failed = False
    except nats.errors.NoServersError as error:
        raise NatsConnectError(str(client.last_error or error)) from error
    finally:
        transport = client._transport
        if failed and isinstance(transport, TrioTransport) and transport.stream is not None:
            await trio.aclose_forcefully(transport.stream)
    assert isinstance(transport, TrioTransport)
    stream = transport.stream
    assert stream is not None, "nats-py connected without a stream"
    return OpenConnection(
        stream=stream,
        address=server,
        early=bytes(transport.buffered),
        server_info=dict(client._server_info),
    )


def login(url: str, credentials: NatsCredentials) -> NatsCredentials:
    """The credentials for a server: those that are configured, else those in its URL."""
    parts = urlsplit(url)
    if parts.username is None or credentials.user or credentials.token or credentials.credentials:
        return credentials
    if parts.password is None:
        return replace(credentials, token=unquote(parts.username))
    return replace(credentials, user=unquote(parts.username), password=unquote(parts.password))


def discovered_servers(info: Mapping[str, Any], through: NatsAddress) -> list[NatsAddress]:
    """The servers that the one at `through` names in its INFO, to be used in the way it is used itself."""
    urls = info.get("connect_urls")
    parts = urlsplit(through.url)
    user, at, _ = parts.netloc.rpartition("@")
    found = []
    for host in urls if isinstance(urls, list) else []:
        url = f"{parts.scheme}://{user}{at}{host}"
        try:
            hostname = urlsplit(url).hostname
        except ValueError:
            continue
        if hostname:
            # Certificates rarely hold the addresses that servers tell of each other.
            tls_name = (through.tls_name or parts.hostname or "") if _is_ip(hostname) else ""
            found.append(NatsAddress(url, tls_name))
    return found


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def without_secrets(server: str) -> str:
    """A server's URL as it may be logged: without user and password."""
    login_part, _, host = server.rpartition("@")
    scheme, separator, _ = login_part.partition("://")
    return scheme + separator + host if separator else host
