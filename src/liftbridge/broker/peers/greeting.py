"""How two brokers find out that they are who they say, before anything else is said on a link.

Four messages: the one that connects says who it is and whom it means (hello), the other one says who it is
(challenge), the first proves that it knows the secret of the cluster, and then the other one does. Who
connects proves first: a stranger who can reach the port gets no proof with which he could try secrets at
home. A proof is an HMAC of both messages as they went over the wire, and so of both nonces, identities, the
cluster and what the link is for, in a context that tells the two sides apart. The secret itself never
travels.

With client certificates (mutual TLS) and without a secret, the certificate has to be that of a server: it
names the host at which the server that it claims to be is reached. Clients of the API have certificates of
the same authority. With neither, a server with TLS links nobody, and one without TLS anybody.

Invariants:
- Nothing that the other side says is acted on before its proof was checked, but for what ends the greeting.
- A nonce is 32 random bytes and used once, so no proof is of use a second time.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from liftbridge.broker.identity import DataDirectoryError, check_server_id
from liftbridge.proto import internal_pb2

from . import bounds
from .model import GreetingError, Own, Purpose, Reason

VERSION = 1
_NONCE_BYTES = 32
_CONTEXT = b"liftbridge link\0"
_CONNECTS, _ANSWERS = b"connects", b"answers"


class Messages(Protocol):
    """What a greeting needs of a connection."""

    async def receive_one(self) -> bytes:
        """The next message."""

    async def send_one(self, message: bytes) -> None:
        """Send a message."""


class Greeting:
    """One greeting, at either side.

    Arguments:
        messages: of the connection.
        purpose: what the link is for.
        own: who this server is; None when it belongs to no cluster, then `purpose` is CLUSTER.
        secret: of the cluster; empty for none.
    """

    def __init__(self, messages: Messages, purpose: Purpose, own: Own | None, secret: bytes) -> None:
        assert own is not None or purpose is Purpose.CLUSTER, "only of the cluster may who has none speak"
        self._messages = messages
        self._purpose = purpose
        self._own = own
        self._secret = secret
        self._said = b""
        self.window = 0
        """What the other one said in its hello."""

    async def connect(self, wanted: str, window: int) -> Own | None:
        """Greet whoever was connected to; returns who it is, None when it belongs to no cluster.

        Raises GreetingError, and what `messages` raises.
        """
        hello = internal_pb2.PeerHello(
            version=VERSION, wanted=wanted, nonce=secrets.token_bytes(_NONCE_BYTES), window=window
        )
        if self._own is not None:
            hello.own.CopyFrom(_written(self._own))
        sent = hello.SerializeToString()
        await self._messages.send_one(sent)
        received = await self._messages.receive_one()
        challenge = internal_pb2.PeerChallenge()
        _read(challenge, received)
        _check_form(challenge.version, challenge.nonce)
        other = _identity(challenge.own) if challenge.HasField("own") else None
        self._look_at(other, wanted)
        self._bind(sent, received)
        await self._prove(_CONNECTS)
        await self._check(_ANSWERS, wanted)
        return other

    def _look_at(self, other: Own | None, wanted: str) -> None:
        """Whether it is of use to go on, with one that has proved nothing yet. Raises GreetingError."""
        if other is None:
            if self._purpose is not Purpose.CLUSTER:
                raise GreetingError(Reason.NO_CLUSTER, f"server {wanted} belongs to no cluster yet")
            return
        if self._own is not None and self._purpose is not Purpose.CLUSTER:
            check_identity(self._own, other)
        if other.server_id != wanted:
            raise GreetingError(
                Reason.SERVER, f"server {other.server_id} answers where {wanted} is thought to be"
            )

    async def answer(self) -> Own | None:
        """Be greeted by whoever has connected; returns who it is, None if it did not say; `welcome` is due.

        Raises GreetingError, and what `messages` raises.
        """
        received = await self._messages.receive_one()
        hello = internal_pb2.PeerHello()
        _read(hello, received)
        _check_form(hello.version, hello.nonce)
        other = _identity(hello.own) if hello.HasField("own") else None
        if other is None and self._purpose is not Purpose.CLUSTER:
            raise GreetingError(Reason.MALFORMED, "a server that links says who it is")
        self.window = hello.window
        challenge = internal_pb2.PeerChallenge(version=VERSION, nonce=secrets.token_bytes(_NONCE_BYTES))
        if self._own is not None:
            challenge.own.CopyFrom(_written(self._own))
        sent = challenge.SerializeToString()
        await self._messages.send_one(sent)
        self._bind(received, sent)
        await self._check(_CONNECTS, "the one that connects" if other is None else other.server_id)
        if self._own is not None and hello.wanted != self._own.server_id:
            raise GreetingError(Reason.SERVER, f"this is server {self._own.server_id}, not {hello.wanted}")
        return other

    async def welcome(self) -> None:
        """The last message of a greeting that was answered: there is a link now."""
        await self._prove(_ANSWERS)

    def _bind(self, hello: bytes, challenge: bytes) -> None:
        parts = (self._purpose.value.encode(), hello, challenge)
        self._said = b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def _proof(self, side: bytes) -> bytes:
        if not self._secret:
            return b""
        return hmac.digest(self._secret, _CONTEXT + side + b"\0" + self._said, "sha256")

    async def _prove(self, side: bytes) -> None:
        message = internal_pb2.PeerProof(proof=self._proof(side))
        await self._messages.send_one(message.SerializeToString())

    async def _check(self, side: bytes, server_id: str) -> None:
        message = internal_pb2.PeerProof()
        _read(message, await self._messages.receive_one())
        if not hmac.compare_digest(message.proof, self._proof(side)):
            if not self._secret:
                text = (
                    f"{server_id} has a secret of the cluster and this server has none: give all servers the "
                    "same clustering.secret"
                )
            elif not message.proof:
                text = (
                    f"{server_id} has no secret of the cluster: give all servers the same clustering.secret"
                )
            else:
                text = f"{server_id} has another secret: give all servers the same clustering.secret"
            raise GreetingError(Reason.SECRET, text)


def check_identity(own: Own, other: Own) -> None:
    """Whether another server may be linked to this one. Raises GreetingError."""
    if other.incarnation == own.incarnation:
        raise GreetingError(Reason.ITSELF, f"server {own.server_id} has connected to itself")
    if other.cluster_id != own.cluster_id:
        raise GreetingError(
            Reason.CLUSTER,
            f"server {other.server_id} belongs to cluster {other.cluster_id} and server {own.server_id} to "
            f"{own.cluster_id}: they share no links; give each cluster a namespace of its own",
        )
    if other.server_id == own.server_id:
        raise GreetingError(
            Reason.TWIN,
            f"two running servers have the id {own.server_id}: stop one, or give it another "
            "clustering.server.id and an empty data directory",
        )
    if other.node_id == own.node_id:
        raise GreetingError(
            Reason.TWIN,
            f"servers {own.server_id} and {other.server_id} run with copies of one data directory: stop one, "
            "and empty its directory",
        )


def check_certificate(
    certificate: dict[str, Any] | None, addresses: Sequence[tuple[str, int]], server_id: str
) -> None:
    """Whether a verified certificate is that of a server that is reached at one of these addresses.

    Raises GreetingError; None is no certificate.
    """
    if certificate is None:
        raise GreetingError(
            Reason.CERTIFICATE,
            f"server {server_id} cannot prove who it is: set clustering.secret on all servers, or switch on "
            "client certificates (tls.client.auth.enabled)",
        )
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    if not any(_covers(name, host) for host, _ in addresses for name in names):
        hosts = ", ".join(host for host, _ in addresses) or "an address that is not known yet"
        raise GreetingError(
            Reason.CERTIFICATE,
            f"who says to be server {server_id} has a certificate for {', '.join(names) or 'no host'}, and "
            f"that server is at {hosts}: issue it a certificate for its host, or set clustering.secret",
        )


def _covers(name: str, host: str) -> bool:
    name, host = name.lower().rstrip("."), host.lower().rstrip(".").strip("[]")
    if name.startswith("*."):
        return name[2:] == host.partition(".")[2] and not host.replace(".", "").isdecimal()
    return name == host


def _written(own: Own) -> internal_pb2.PeerIdentity:
    return internal_pb2.PeerIdentity(
        server_id=own.server_id,
        node_id=own.node_id,
        cluster_id=own.cluster_id.bytes,
        incarnation=own.incarnation.bytes,
    )


def _identity(read: internal_pb2.PeerIdentity) -> Own:
    try:
        check_server_id(read.server_id)
    except DataDirectoryError as error:
        raise GreetingError(Reason.MALFORMED, str(error)) from error
    if not read.node_id or len(read.cluster_id) != 16 or len(read.incarnation) != 16:
        raise GreetingError(Reason.MALFORMED, f"server {read.server_id} does not say who it is")
    return Own(
        read.server_id, read.node_id, uuid.UUID(bytes=read.cluster_id), uuid.UUID(bytes=read.incarnation)
    )


def _read(message: Message, data: bytes) -> None:
    if len(data) > bounds.MAX_GREETING_BYTES:
        raise GreetingError(Reason.MALFORMED, f"a greeting has {len(data)} bytes")
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise GreetingError(Reason.MALFORMED, f"a greeting cannot be read: {error}") from error


def _check_form(version: int, nonce: bytes) -> None:
    if version != VERSION:
        raise GreetingError(
            Reason.VERSION, f"the other server speaks version {version} of the links, this one {VERSION}"
        )
    if len(nonce) != _NONCE_BYTES:
        raise GreetingError(Reason.MALFORMED, f"a greeting has a nonce of {len(nonce)} bytes")
