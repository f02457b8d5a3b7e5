"""The tree of tasks of a server, and the order in which it comes up and goes down.

Each level of the tree is a nursery that is cancelled when the levels inside it have ended, so the order of
the `async with` lines in `serve` is the order of start-up, and read backwards the order of the stop:

    data directory -> identity -> embedded NATS -> NATS connections -> port -> metadata -> partitions ->
    cluster -> consumer groups -> API

The port is open before this server belongs to a cluster, as others have to reach it to that end; clients are
told to try again until the API is there, which is when this server may lead what it is to lead.

On the way down gRPC clients are told UNAVAILABLE first; then partitions make what they have durable and send
the acks for it while the ack connection is still there; then NATS goes. A second signal ends the process at
once: the log is made to survive that.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from liftbridge.broker.activity import Activity
from liftbridge.broker.api import ApiServicer, Self
from liftbridge.broker.authz import Audit, Authorizer, AuthzFileError
from liftbridge.broker.autopause import AutoPause
from liftbridge.broker.boot import BOOT_FILE, power_may_be_lost, remember_boot
from liftbridge.broker.cleaner import Cleaner
from liftbridge.broker.cluster import Cluster
from liftbridge.broker.config import Config, NatsConfig
from liftbridge.broker.controller import Controller
from liftbridge.broker.cursors import Cursors
from liftbridge.broker.disk import DiskSpace
from liftbridge.broker.groups import REPORT, ConsumerGroups
from liftbridge.broker.identity import DataDirectory
from liftbridge.broker.ingest import Ingest
from liftbridge.broker.internal_publisher import InternalPublisher
from liftbridge.broker.internal_streams import OwnPartitions, create_internal_streams
from liftbridge.broker.observed import Observe, Observed
from liftbridge.broker.pausing import Pausing
from liftbridge.broker.publisher import Publisher
from liftbridge.broker.reload import Reloader
from liftbridge.broker.replicator import Replicator
from liftbridge.broker.settling import SETTLED, Settling
from liftbridge.broker.streams import Streams
from liftbridge.broker.tls import nats_ssl_context, peer_ssl_context, server_ssl_context
from liftbridge.log import Flusher, Throttle
from liftbridge.nats.bridge import BRIDGE
from liftbridge.nats.connection import NatsConnection, NatsPermissionError
from liftbridge.nats.embedded import EmbeddedNats
from liftbridge.nats.transport import NatsCredentials, without_secrets
from liftbridge.rpc import HealthServicer, Limits, RpcServer
from liftbridge.sockets import Turn

# When the server stops: for those who watch its health to be told, for open calls to end by themselves, for
# acks to reach NATS.
TELL_HEALTH_SECONDS = 1.0
GRACE_SECONDS = 1.0
LAST_ACKS_SECONDS = 2.0

logger = logging.getLogger("liftbridge")


@dataclass(frozen=True)
class Addresses:
    """Where a running server can be reached: gRPC host and port as bound, and the NATS servers it uses."""

    server_id: str
    grpc_host: str
    grpc_port: int
    nats: tuple[str, ...]


class ServerStartError(Exception):
    """The server cannot start; the text says why and what to do."""


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that serve the block: they are cancelled when it is left."""
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        finally:
            nursery.cancel_scope.cancel()


class Server:
    """A server with one configuration.

    `embedded_host` and `embedded_port` say where an embedded NATS without a configuration file listens: an
    address, None for all, and a port, None for 4222, 0 for any. `observe` makes who is to observe it.
    """

    def __init__(
        self,
        config: Config,
        *,
        embedded_host: str | None = None,
        embedded_port: int | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._config = config
        self._embedded_host = embedded_host
        self._embedded_port = embedded_port
        self._observe = observe
        self._stop = trio.Event()
        self._reloader = Reloader(config.tls, config.clustering)
        self._starting: trio.CancelScope | None = trio.CancelScope()

    def stop(self) -> None:
        """Begin the orderly stop. A server that is not up yet gives up coming up."""
        self._stop.set()
        if self._starting is not None:
            self._starting.cancel()

    def reload(self) -> None:
        """Read certificates and policy again, as soon as the server is up; connections stay open."""
        self._reloader.request()

    async def serve(self, task_status: trio.TaskStatus[Addresses] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until `stop`.

        `started` is reported with the addresses when clients are served, if it comes to that.

        Raises ServerStartError and the start-up errors of the parts: ConfigError, DataDirectoryError,
        ControllerStartError, FoundingError, EmbeddedNatsError, InternalStreamError.
        """
        config = self._config
        if config.keyring is not None:
            logger.info("the master key of encryption is %08x", config.keyring.active.id)
        starting = self._starting
        assert starting is not None, "a server is run once"
        ssl_context = server_ssl_context(config.tls)
        authorizer = self._authorizer()
        peer_context = peer_ssl_context(config.tls, config.clustering)
        with starting:
            async with (
                self._data_directory() as data,
                BRIDGE.opened(),
                background() as embedded,
                background() as connections,
                background() as rpc,
                AsyncExitStack() as metadata,
                background() as disk,
                background() as clustering,
                background() as partitions,
                background() as members,
                background() as internal,
                background() as observers,
            ):
                servers = await self._start_embedded(embedded, data)
                turn = Turn()
                ingest, acks, publisher = self._connections(servers, data.server_id, turn)
                to_nats = (ingest.connection, acks, publisher.connection)
                for connection in to_nats:
                    connections.start_soon(connection.run)
                listeners = await self._bind()
                host, port = listeners[0].socket.getsockname()[:2]
                await _wait_for_nats(servers, to_nats)
                own = Self(data.server_id, *config.advertised_address(port))
                cluster = Cluster(config, data, publisher.connection, (own.host, own.port), peer_context)
                health = HealthServicer(serving=False)
                server = RpcServer(
                    [health.service, cluster.peers.service],
                    limits=_limits(config),
                    ssl_context=ssl_context,
                    turn=turn,
                    starting=True,
                )
                await rpc.start(server.serve, listeners)
                controller = await metadata.enter_async_context(_open(cluster))
                flusher, cleaner, autopause = Flusher(turn), _cleaner(config), AutoPause()
                space = DiskSpace(data.path, config.streams.disk_min_free)
                for role in (flusher, cleaner, space):
                    await disk.start(role.run)
                power_lost = await trio.to_thread.run_sync(power_may_be_lost, data.path)
                replicator = Replicator(
                    controller,
                    cluster.peers,
                    cluster.lease,
                    max_lag=config.clustering.replica_max_lag_time / 1e9,
                )
                streams = Streams(
                    config,
                    data.path,
                    controller.state,
                    broker=data.server_id,
                    registered=cluster.is_registered,
                    ingest=ingest,
                    acks=acks,
                    router=publisher.router,
                    flusher=flusher,
                    cleaner=cleaner,
                    space=space,
                    routes=publisher.routes,
                    power_lost=power_lost,
                    autopause=autopause,
                    replicator=replicator,
                    published=publisher.published,
                )
                controller.subscribe(streams.on_operation, streams.on_restored)
                controller.subscribe(replicator.on_operation)
                await clustering.start(replicator.run)
                await partitions.start(streams.run)
                await _remember_boot(data.path)
                settling = Settling(controller, streams, cluster.ask_broker, cluster.is_linked)
                groups = ConsumerGroups(controller, config.groups)
                cluster.answers |= {SETTLED: settling.answer, REPORT: groups.answer_report}
                await clustering.start(partial(cluster.run, streams.positions, power_lost=power_lost))
                pausing = Pausing(controller, streams, settling, time.time_ns)
                partitions.start_soon(autopause.run, pausing.pause_idle)
                own_publisher = InternalPublisher(publisher, config.clustering.namespace)
                await _start_publisher(publisher, own_publisher)
                await cluster.wait_active()
                await streams.clean_up()
                for stream in list(controller.state.streams.values()):
                    await streams.settled(stream)
                await create_internal_streams(config, controller, streams, settling)
                own_partitions = OwnPartitions(controller.state, streams, pausing.ready)
                cursors = Cursors(
                    controller.state, own_partitions, own_publisher, config.cursors.index_max_bytes
                )
                internal.start_soon(cursors.warm)
                if config.activity.stream_enabled:
                    activity = Activity(config.activity, data.path, controller, own_partitions, own_publisher)
                    controller.subscribe(activity.note, activity.look)
                    internal.start_soon(activity.run)
                await members.start(groups.run)
                api = ApiServicer(
                    config,
                    own,
                    controller,
                    streams,
                    publisher,
                    settling,
                    pausing,
                    cursors,
                    groups,
                    authorizer,
                )
                if authorizer is not None:
                    authorizer.changed = publisher.routes.touch
                    members.start_soon(authorizer.audit.run)
                observed = Observed(
                    data.server_id,
                    config,
                    controller,
                    streams,
                    publisher,
                    to_nats,
                    flusher,
                    space,
                    server,
                )
                await self._begin_observing(observers, observed)
                server.add([api.service], guard=None if authorizer is None else authorizer.admit)
                health.set_serving(True)
                members.start_soon(self._reloader.run, server, cluster.peers, authorizer)
                self._starting = None  # from here on the stop is orderly
                logger.info("serving clients on %s:%d as server %s", host, port, data.server_id)
                task_status.started(Addresses(data.server_id, host, port, tuple(servers)))
                await self._stop.wait()
                logger.info("stopping")
                observed.stopping = True
                health.set_serving(False)
                await cluster.hand_over(settling.wait)
                with trio.move_on_after(TELL_HEALTH_SECONDS):
                    await health.all_told()
                await server.shutdown(GRACE_SECONDS)
                cleaner.stop()
                await streams.stop()
                with trio.move_on_after(LAST_ACKS_SECONDS):
                    await acks.drain()
        logger.info("stopped")

    async def _begin_observing(self, nursery: trio.Nursery, observed: Observed) -> None:
        if self._observe is None:
            return
        try:
            await nursery.start(self._observe(observed).run)
        except OSError as error:
            listen = self._config.http.listen
            raise ServerStartError(
                f"cannot listen on {listen}: {error.strerror or error}; stop what uses the port, or choose "
                "another with the key http.listen"
            ) from error

    @asynccontextmanager
    async def _data_directory(self) -> AsyncIterator[DataDirectory]:
        config = self._config
        data = await trio.to_thread.run_sync(DataDirectory.open, config.data_dir, config.clustering.server_id)
        try:
            yield data
        finally:
            data.close()

    def _authorizer(self) -> Authorizer | None:
        tls = self._config.tls
        if not tls.client_authz_enabled:
            return None
        assert tls.client_authz_model is not None, "the configuration is checked"
        assert tls.client_authz_policy is not None, "the configuration is checked"
        allowed = logging.INFO if tls.client_authz_audit_allowed == "info" else logging.DEBUG
        try:
            return Authorizer(
                tls.client_authz_model,
                tls.client_authz_policy,
                audit=Audit(allowed, tls.client_authz_audit_max_rate),
                groups=tls.client_authz_groups_enabled,
            )
        except AuthzFileError as error:
            raise ServerStartError(f"authorization cannot be switched on: {error}") from None

    async def _start_embedded(self, nursery: trio.Nursery, data: DataDirectory) -> list[str]:
        """Start the embedded NATS server when there is to be one; returns the servers to connect to."""
        nats = self._config.nats
        if not nats.embedded:
            return list(nats.servers)
        server = EmbeddedNats(
            config_file=nats.embedded_config,
            host=None if nats.embedded_config else self._embedded_host,
            port=None if nats.embedded_config else self._embedded_port,
            log_to=logging.getLogger("liftbridge.nats.server"),
            runtime_dir=data.path / "nats",
        )
        url = await nursery.start(server.run)
        logger.info("the embedded NATS server listens on %s", url)
        return [url] if nats.servers == NatsConfig().servers else list(nats.servers)

    def _connections(
        self, servers: list[str], server_id: str, turn: Turn
    ) -> tuple[Ingest, NatsConnection, Publisher]:
        nats, namespace = self._config.nats, self._config.clustering.namespace
        name = f"LIFT.{namespace}.{server_id}"
        credentials = NatsCredentials(
            user=nats.user or "",
            password=nats.password or "",
            token=nats.token or "",
            credentials=str(nats.credentials or ""),
            tls=nats_ssl_context(replace(nats, servers=tuple(servers))),
        )
        acks = NatsConnection(servers, name=name, purpose="acks", credentials=credentials, turn=turn)
        ingest = Ingest(servers, name=name, credentials=credentials, acks=acks, turn=turn)
        publisher = Publisher(servers, name=name, namespace=namespace, credentials=credentials, turn=turn)
        return ingest, acks, publisher

    async def _bind(self) -> list[trio.SocketListener]:
        host, port = self._config.bind_address
        try:
            return await trio.open_tcp_listeners(port, host=host, backlog=1024)
        except OSError as error:
            raise ServerStartError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; stop what uses the port, or "
                "choose another with --port or the key listen"
            ) from error


@asynccontextmanager
async def _open(cluster: Cluster) -> AsyncIterator[Controller]:
    controller = await cluster.open()
    try:
        yield controller
    finally:
        await controller.close()


async def _wait_for_nats(servers: Sequence[str], connections: Sequence[NatsConnection]) -> None:
    """NATS may come later than we do: wait for it, and say so."""
    if not all(connection.connected for connection in connections):
        logger.info("waiting for NATS at %s", ", ".join(map(without_secrets, servers)))
    for connection in connections:
        await connection.wait_connected()


def _cleaner(config: Config) -> Cleaner:
    streams = config.streams
    return Cleaner(
        workers=streams.cleaner_workers,
        compactions=streams.compact_max_goroutines,
        throttle=Throttle(streams.cleaner_max_rate),
    )


async def _remember_boot(data_dir: Path) -> None:
    try:
        await trio.to_thread.run_sync(remember_boot, data_dir)
    except OSError as error:
        # The next start will take it for a stop of the machine, which is the careful way.
        logger.warning("%s cannot be written: %s", data_dir / BOOT_FILE, error)


async def _start_publisher(publisher: Publisher, internal_publisher: InternalPublisher) -> None:
    try:
        await publisher.start()
        await internal_publisher.start()
    except NatsPermissionError as error:
        raise ServerStartError(f"acks cannot reach this server: {error}") from error


def _limits(config: Config) -> Limits:
    limits = config.limits
    return Limits(
        max_connections=limits.connections,
        max_connections_per_address=limits.connections_per_address,
        max_concurrent_streams=limits.streams_per_connection,
        max_request_message=limits.request_max_bytes,
        max_header_list_size=limits.headers_max_bytes,
        max_partial_bytes=limits.inflight_connection_max_bytes,
        max_held=limits.inflight_max_bytes,
        max_unsent=limits.unsent_max_bytes,
        max_resets=limits.flood_resets,
        max_control_frames=limits.flood_frames,
        abuse_period=limits.flood_period / 1e9,
        request_timeout=limits.request_timeout / 1e9,
        idle_timeout=limits.idle_timeout / 1e9 or math.inf,
        handshake_timeout=limits.handshake_timeout / 1e9,
        preface_timeout=limits.handshake_timeout / 1e9,
        keepalive_interval=limits.keepalive_interval / 1e9,
        keepalive_timeout=limits.keepalive_timeout / 1e9,
    )


class _Started:
    """Tells a function when a server is up: the part of `trio.TaskStatus` that a server needs."""

    def __init__(self, tell: Callable[[Addresses], None]) -> None:
        self._tell = tell

    def started(self, value: Any = None) -> None:
        self._tell(value)


async def run_until_signal(server: Server, started: Callable[[Addresses], None]) -> None:
    """Run a server until SIGINT or SIGTERM; a second one ends the process at once. SIGHUP is `reload`.

    `started` is called when clients are served; it never is when the signal comes first.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with background() as nursery:
            nursery.start_soon(_watch_signals, signals, server)
            await server.serve(task_status=_Started(started))


async def _watch_signals(signals: AsyncIterator[int], server: Server) -> None:
    stopping = False
    async for number in signals:
        if number == signal.SIGHUP:
            server.reload()
        elif stopping:
            logger.warning("second signal: ending at once")
            os._exit(128 + number)
        else:
            stopping = True
            logger.info("%s: stopping in order; once more ends at once", signal.Signals(number).name)
            server.stop()
