"""How servers that share a NATS and a namespace hear of each other: where they are, and in which cluster.

A server announces itself on one subject of the namespace when it asks for the others, and those that belong
to a cluster answer on the same. They are asked on a subject of their own: when nobody listens there NATS says
so at once, and a server that is to begin a cluster need not wait for nothing. That is all that NATS is used
for between servers: what they then have to say goes over connections of their own, which is also where each
proves who it is. So what is heard here is a hint and no more: with a secret of the cluster those who do not
know it are not heard, but what is heard may be old.

Invariants: as many servers are remembered as `MOST_HEARD`, so that strangers on NATS can fill no memory; and
however many ask, a server announces itself so often and not more.
"""

from __future__ import annotations

import hmac
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import trio
from google.protobuf.message import DecodeError

from liftbridge._wire import CollectingSink
from liftbridge.broker.identity import DataDirectoryError, check_server_id
from liftbridge.nats.connection import NatsConnection, NatsUnavailableError
from liftbridge.proto import internal_pb2

logger = logging.getLogger("liftbridge.discovery")

MOST_HEARD = 1024
# Who asks hears of everybody after so long at most, unless NATS or they are busy.
ANSWER_SECONDS = 0.1
MOST_BYTES = 1024
_CONTEXT = b"liftbridge announcement\0"


@dataclass(frozen=True)
class Announcement:
    """What a server says of itself.

    Attributes:
        server_id: who it is.
        cluster_id: the cluster that it belongs to, None for none yet.
        host, port: where other servers reach it.
        node_id: its node of the consensus, 0 while it belongs to no cluster.
    """

    server_id: str
    cluster_id: uuid.UUID | None
    host: str
    port: int
    node_id: int = 0

    def encode(self, secret: bytes) -> bytes:
        """The form on the wire; `secret` is the cluster's, empty for none."""
        message = internal_pb2.Announcement(
            server_id=self.server_id,
            cluster_id=b"" if self.cluster_id is None else self.cluster_id.bytes,
            host=self.host,
            port=self.port,
            node_id=self.node_id,
        )
        if secret:
            message.proof = _proof(secret, message)
        return message.SerializeToString()


class AnnouncementError(ValueError):
    """Bytes that announce nothing, or nothing that may be believed."""


def decode(data: bytes, secret: bytes) -> Announcement:
    """An announcement. Raises AnnouncementError."""
    message = internal_pb2.Announcement()
    if len(data) > MOST_BYTES:
        raise AnnouncementError(f"{len(data)} bytes announce no server")
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise AnnouncementError(f"no announcement: {error}") from error
    proof = message.proof
    message.ClearField("proof")
    if secret and not hmac.compare_digest(proof, _proof(secret, message)):
        raise AnnouncementError(f"server {message.server_id[:64]!r} does not know the secret of this cluster")
    try:
        check_server_id(message.server_id)
    except DataDirectoryError as error:
        raise AnnouncementError(str(error)) from error
    if len(message.cluster_id) not in (0, 16) or not message.host or not 0 < message.port < 65536:
        raise AnnouncementError(f"server {message.server_id!r} does not say where it is")
    cluster_id = uuid.UUID(bytes=message.cluster_id) if message.cluster_id else None
    return Announcement(message.server_id, cluster_id, message.host, message.port, message.node_id)


def _proof(secret: bytes, message: internal_pb2.Announcement) -> bytes:
    return hmac.digest(secret, _CONTEXT + message.SerializeToString(deterministic=True), "sha256")


class Discovery:
    """Announces this server, and remembers what others announce. `start` it, and have `run` run.

    Attributes:
        ignored: announcements that were not believed.
        nobody: whether NATS has said that no server of a cluster listens.
    """

    def __init__(
        self,
        connection: NatsConnection,
        namespace: str,
        own: Callable[[], Announcement],
        secret: bytes = b"",
    ) -> None:
        """`own` tells what to announce at the moment."""
        self.ignored = 0
        self.nobody = False
        self._connection = connection
        self._subject = f"{namespace}.servers"
        self._asking = f"{namespace}.servers.ask"
        self._own = own
        self._secret = secret
        self._sink = CollectingSink(self)
        self._questions = CollectingSink(self)
        self._heard: dict[str, Announcement] = {}
        self._asked = trio.Event()
        self._news = trio.Event()
        self._warned = False

    @property
    def heard(self) -> Mapping[str, Announcement]:
        """What other servers have announced last, by their ids; a live view."""
        return MappingProxyType(self._heard)

    async def start(self) -> None:
        """Begin to listen. Raises NatsPermissionError."""
        await self._connection.subscribe(self._subject, self._sink)

    async def ask(self) -> None:
        """Announce this server, and ask those of clusters to do so. Waits for no answer; without NATS nobody
        hears."""
        await self._announce()
        await self._publish(f"{self._asking} {self._subject}", b"")

    async def wait_news(self) -> None:
        """Wait until something is heard that was not known."""
        await self._news.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer those who ask, as this server belongs to a cluster now, until cancelled; `started` once they
        are heard. Raises NatsPermissionError."""
        await self._connection.subscribe(self._asking, self._questions)
        task_status.started()
        while True:
            await self._announce()
            await trio.sleep(ANSWER_SECONDS)
            await self._asked.wait()
            self._asked = trio.Event()

    def on_messages(self) -> None:
        """Announcements have arrived: called by the connection."""
        if self._questions.take():
            self._asked.set()
        for _, _, payload in self._sink.take():
            if not payload:
                self.nobody = True  # or a stranger says so; then the directory of a seed has just been wiped
                self._tell()
                continue
            try:
                announcement = decode(payload, self._secret)
            except AnnouncementError as error:
                self._ignore(error)
                continue
            if announcement.server_id == self._own().server_id:
                continue  # ours, or that of a twin, which will be told when it connects
            self._remember(announcement)

    def _remember(self, announcement: Announcement) -> None:
        server_id = announcement.server_id
        if self._heard.get(server_id) == announcement:
            return
        if server_id not in self._heard and len(self._heard) >= MOST_HEARD:
            self._ignore(AnnouncementError(f"more than {MOST_HEARD} servers announce themselves"))
            return
        self._heard[server_id] = announcement
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _ignore(self, error: AnnouncementError) -> None:
        self.ignored += 1
        if not self._warned:
            self._warned = True
            logger.warning(
                "an announcement on %s is ignored, as further ones will be: %s", self._subject, error
            )

    async def _announce(self) -> None:
        await self._publish(self._subject, self._own().encode(self._secret))

    async def _publish(self, where: str, payload: bytes) -> None:
        try:
            await self._connection.send(b"PUB %s %d\r\n%s\r\n" % (where.encode(), len(payload), payload))
        except NatsUnavailableError as error:
            logger.debug("this server is not announced: %s", error)
