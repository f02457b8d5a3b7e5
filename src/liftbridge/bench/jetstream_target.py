"""JetStream of the bundled nats-server as what is measured, to have a figure of the same minute beside ours.

The same nats-server program with the same Go settings and limits that Liftbridge's embedded one has, a stream
of one replica in a file, and the sync policy in its words: `sync_interval: always` is an fsync before each
ack, as `always` is here; `never` is an interval longer than any run. Publishing is what JetStream calls
asynchronous: each message has a reply subject of its own, below one that the publisher subscribes to, and the
ack comes there as JSON. Subscribing is an ordered consumer (`jetstream_subscriber.py`).
"""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from liftbridge.bench import common, messages
from liftbridge.bench.errors import BenchError
from liftbridge.bench.jetstream_subscriber import KINDS, consumer
from liftbridge.bench.server import ServerUnderTest, address
from liftbridge.bench.sockets import connect, greet
from liftbridge.bench.target import Load, Publisher, Share, Subscriber, Target, nats_publisher
from liftbridge.nats.embedded import (
    MAX_PENDING_BYTES,
    WRITE_DEADLINE_SECONDS,
    EmbeddedNats,
    EmbeddedNatsError,
)

SYNC_INTERVALS = {"never": "24h", "interval": "50ms", "always": "always"}
ANSWER_BYTES = 1 << 20


class JetStreamTarget(Target):
    """A nats-server with JetStream."""

    name = "jetstream"
    via = "nats"
    first_offset = 1

    def __init__(self, server: ServerUnderTest, consumer_kind: str = KINDS[0]) -> None:
        self.server = server
        self._consumer_kind = consumer_kind

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[str]:
        """Make a stream of one subject in a file, for a block."""
        name = f"bench-{secrets.token_hex(4)}"
        settings = {"name": name, "subjects": [name], "storage": "file", "num_replicas": 1}
        await self._call(f"STREAM.CREATE.{name}", settings)
        try:
            yield name
        finally:
            with trio.move_on_after(common.STOP_SECONDS, shield=True):
                await self._call(f"STREAM.DELETE.{name}", {})

    async def stored(self, stream: str) -> tuple[int, int]:
        """Return how many messages of a stream are stored, twice: what is stored is what is committed."""
        count = int((await self._call(f"STREAM.INFO.{stream}", {}))["state"]["messages"])
        return count, count

    def publisher(self, stream: str, load: Load, share: Share) -> tuple[socket.socket, Publisher]:
        """Connect a publisher."""
        inbox = f"_INBOX.{secrets.token_hex(8)}"
        value = messages.value(load.size, stamped=load.stamped)
        template = messages.plain(stream, inbox, value, load.policy)
        return nats_publisher(
            self.server.nats,
            template,
            load,
            share,
            size=len(value),
            inbox=f"{inbox}.*",
            headers=True,
            acks="json",
        )

    def subscriber(self, window: int, *, stamped: int = 0) -> AbstractAsyncContextManager[Subscriber]:
        """Connect an ordered consumer for a block; flow-control windows are HTTP/2's, it has none of them."""
        return consumer(self.server.nats, self._consumer_kind, stamped=stamped)

    async def _call(self, method: str, request: dict[str, object]) -> dict[str, Any]:
        """Call JetStream's API. Raises BenchError if it refuses."""
        answer = await trio.to_thread.run_sync(self._ask, f"$JS.API.{method}", json.dumps(request).encode())
        if "error" in answer:
            raise BenchError(f"JetStream refuses {method}: {answer['error'].get('description', answer)}")
        return answer

    def _ask(self, subject: str, payload: bytes) -> dict[str, Any]:
        inbox = f"_INBOX.{secrets.token_hex(8)}"
        try:
            with connect(self.server.nats) as connection:
                greet(connection, f"SUB {inbox} 1\r\n".encode())
                connection.sendall(messages.nats_pub(subject, payload, inbox))
                return _answer(connection)
        except OSError as error:
            raise BenchError(f"JetStream does not answer {subject}: {error}") from error


def _answer(connection: socket.socket) -> dict[str, Any]:
    """Receive one message, and return its JSON."""
    received = b""
    while len(received) < ANSWER_BYTES:
        line, separator, rest = received.partition(b"\r\n")
        if separator and not line.startswith(b"MSG "):
            received = rest  # a PING, which may wait for as long as a call takes
            continue
        if separator and len(rest) >= int(line.split()[-1]) + 2:
            answer: dict[str, Any] = json.loads(rest[: int(line.split()[-1])])
            return answer
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError("the connection was closed")
        received += chunk
    raise ConnectionError("the answer is too long")


@asynccontextmanager
async def jetstream(options: argparse.Namespace, sync: str) -> AsyncIterator[JetStreamTarget]:
    """Run a nats-server with JetStream for a block; nothing of it is left afterwards.

    Raises:
        BenchError: it does not start, or there is no place for its data.
    """
    common.check_data_dir(options)
    with tempfile.TemporaryDirectory(prefix="liftbridge-bench-", dir=options.data_dir) as name:
        directory = Path(name).resolve()
        config = directory / "nats.conf"
        settings = {
            "host": "127.0.0.1",
            "port": -1,
            "max_pending": MAX_PENDING_BYTES,
            "write_deadline": f"{WRITE_DEADLINE_SECONDS}s",
            "jetstream": {"store_dir": str(directory / "data"), "sync_interval": SYNC_INTERVALS[sync]},
        }
        config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
        log = logging.getLogger("liftbridge.bench.jetstream")
        log.setLevel(logging.CRITICAL + 1)  # what it says when it does not start is in the error
        nats = EmbeddedNats(config_file=config, log_to=log, runtime_dir=directory / "run")
        async with trio.open_nursery() as nursery:
            try:
                url = await nursery.start(nats.run)
            except EmbeddedNatsError as error:
                raise BenchError(f"JetStream does not start: {error}") from error
            where = address(url, 4222)
            server = ServerUnderTest(where, where, sync, nats.pid, None, directory)
            yield JetStreamTarget(server, getattr(options, "jetstream_consumer", KINDS[0]))
            nursery.cancel_scope.cancel()
