"""This server as one of a cluster: how it finds the others, and what it does for as long as it belongs to
them.

What each part does is said there: hearing of others (`discovery.py`), beginning or joining a cluster
(`founding.py`), links to the others (`peers/`), metadata and consensus (`controller.py`, `consensus.py`), the
own record (`registration.py`), members of the consensus (`membership.py`), who is alive (`sessions.py`). Here
they are put together: whose question goes where, and where others are.

A server that is its own cluster is no special case. It runs all of this, and nobody answers.

Where another broker is, two sources tell: what it has announced through NATS, which is new but hearsay, and
its record in the metadata. Whoever answers there has to prove who it is, so trying the wrong place costs
time only.
"""

from __future__ import annotations

import logging
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

import trio

from liftbridge.broker.config import Config
from liftbridge.broker.controller import Controller
from liftbridge.broker.discovery import Announcement, Discovery
from liftbridge.broker.forwarding import PROPOSE, READ, REGISTER, UnreachableError
from liftbridge.broker.founding import (
    METADATA_DIRECTORY,
    REMIND_SECONDS,
    FoundingError,
    find_cluster,
    found,
)
from liftbridge.broker.identity import DataDirectory
from liftbridge.broker.journal import Journal
from liftbridge.broker.membership import Membership
from liftbridge.broker.peers import Own, Peers, UnansweredError
from liftbridge.broker.registration import Registration
from liftbridge.broker.sessions import HEARTBEAT, LEASE_SECONDS, Positions, Sessions
from liftbridge.metadata.broker_operations import Ended, RegisterBroker
from liftbridge.metadata.model import Guarantees, Stream, StreamSettings
from liftbridge.nats.connection import NatsConnection, NatsPermissionError
from liftbridge.raft import Message, NodeId
from liftbridge.replication.lease import Lease

Address = tuple[str, int]
Answer = Callable[[bytes], Awaitable[bytes]]

# How long a server that has come waits for its vote before it serves clients without one.
VOTE_SECONDS = 5.0
# When a server stops: how long others may take to lead what it leads.
HAND_OVER_SECONDS = 5.0

logger = logging.getLogger("liftbridge.cluster")


class Cluster:
    """The cluster, as this server takes part in it: `open` it, then have `run` run.

    Attributes:
        peers: links to the others; its service is to be served from the start.
        answers: who answers which kind of question of other brokers; others may add theirs.
        lease: until when this broker may act as a leader of partitions by itself.
    """

    def __init__(
        self,
        config: Config,
        data: DataDirectory,
        connection: NatsConnection,
        address: Address,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        """Arguments:
        connection: to NATS, for discovery.
        address: where others reach this server.
        ssl_context: for connecting to others; None without TLS.
        """
        self._config = config
        self._data = data
        self._address = address
        self._incarnation = uuid.uuid4()
        self._fresh = False
        self._controller: Controller | None = None
        self._sessions: Sessions | None = None
        secret = (config.clustering.secret or "").encode()
        self._discovery = Discovery(connection, config.clustering.namespace, self._announcement, secret)
        self.answers: dict[str, Answer] = {}
        self.lease = Lease(LEASE_SECONDS)
        self.peers = Peers(
            self._own,
            secret=secret,
            ssl_context=ssl_context,
            whereabouts=self,
            deliver=self._deliver,
            answer=self._answer,
        )

    @property
    def sessions(self) -> Sessions:
        """Sessions of brokers; once `run` has begun."""
        assert self._sessions is not None, "the cluster is not run yet"
        return self._sessions

    def is_registered(self) -> bool:
        """Whether the metadata has this run of this server."""
        controller = self._controller
        record = None if controller is None else controller.state.brokers.get(controller.broker)
        return record is not None and record.incarnation == self._incarnation

    # -- coming up

    async def open(self) -> Controller:
        """Begin or find a cluster, if this server has none yet, and take up its metadata.

        Waits for as long as there is none. Raises FoundingError, ControllerStartError.
        """
        clustering = self._config.clustering
        try:
            await self._discovery.start()
        except NatsPermissionError as error:
            raise FoundingError(f"this server cannot hear of others of its cluster: {error}") from error
        if not Journal.exists(self._data.path / METADATA_DIRECTORY):
            decision = await find_cluster(
                self._data,
                self._discovery,
                self.peers.cluster_of,
                seed=clustering.raft_bootstrap_seed,
                peers=clustering.raft_bootstrap_peers,
            )
            await trio.to_thread.run_sync(found, self._data, decision)
            self._fresh = True
        self._controller = await Controller.start(
            self._data,
            namespace=clustering.namespace,
            bootstrap=False,
            clock=time.time_ns,
            encryption_refusal=self._config.keyring_problem,
            send=self.peers.send,
            links=self.peers,
            guarantees=self._guarantees,
            reaches=self.is_linked,
        )
        return self._controller

    async def run(
        self,
        positions: Positions,
        *,
        power_lost: bool,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take part until cancelled; `started` once others can reach this server.

        Arguments:
            positions: tells where the logs of some replicas of this broker end.
            power_lost: whether the machine may have stopped since this server ran last.
        """
        controller = self._controller
        assert controller is not None, "open comes first"
        ended = Ended.LOST if self._fresh else Ended.UNCLEAN if power_lost else Ended.CLEAN
        record = RegisterBroker(
            controller.broker,
            self._incarnation,
            addresses=("{}:{}".format(*self._address),),
            ended=ended,
            node_id=controller.consensus.core.node_id,
        )
        registration = Registration(controller, record)
        sessions = self._sessions = Sessions(controller, registration, self.peers, self.lease, positions)
        max_voters = self._config.clustering.raft_max_quorum_size
        membership = Membership(controller.consensus, controller.state, max_voters)
        self.answers |= {
            PROPOSE: controller.answer_propose,
            READ: controller.answer_read,
            REGISTER: controller.answer_register,
            HEARTBEAT: sessions.answer_heartbeat,
        }
        async with trio.open_nursery() as nursery:
            await nursery.start(self.peers.run)
            await nursery.start(self._discovery.run)
            nursery.start_soon(controller.consensus.run)
            await self._discovery.ask()
            task_status.started()
            for role in (registration, sessions, membership):
                nursery.start_soon(role.run)

    async def wait_active(self) -> None:
        """Wait until this server takes part, and has its vote if it is to have one, so that a server which
        has come up is one that others can do without another for."""
        assert self._controller is not None, "open comes first"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_remind)
            await self.sessions.wait_active()
            nursery.cancel_scope.cancel()
        with trio.move_on_after(VOTE_SECONDS):
            await self._controller.consensus.wait_vote(self._config.clustering.raft_max_quorum_size)

    # -- going down

    async def hand_over(self, settled: Callable[[Stream, Sequence[int]], Awaitable[None]]) -> None:
        """Have others lead what this server leads, partitions and metadata, as far as there are others.

        Returns when they do, or after a while. `settled` waits until partitions take messages where they are
        led.
        """
        controller = self._controller
        assert controller is not None, "the cluster is not open"
        if not self._others:
            return
        led = [
            (stream.stream_id, partition.id)
            for stream in controller.state.streams.values()
            for partition in stream.partitions
            if partition.leader == controller.broker
        ]
        with trio.move_on_after(HAND_OVER_SECONDS):
            self.sessions.leave()
            await self.sessions.wait_left()
            async with trio.open_nursery() as nursery:
                for stream_id in dict.fromkeys(stream_id for stream_id, _ in led):
                    stream = controller.state.stream_by_id(stream_id)
                    if stream is not None:
                        ids = [number for where, number in led if where == stream_id]
                        nursery.start_soon(settled, stream, ids)
        nodes = [broker.node_id for broker in controller.state.brokers.values() if broker.alive]
        await controller.consensus.hand_over(nodes)

    @property
    def _others(self) -> bool:
        """Whether other servers take part."""
        controller = self._controller
        assert controller is not None, "the cluster is not open"
        return any(
            broker.alive and broker.id != controller.broker for broker in controller.state.brokers.values()
        )

    def is_linked(self, broker: str) -> bool:
        """Whether there is a link to another broker now."""
        return broker in self.peers.linked

    async def ask_broker(self, broker: str, kind: str, payload: bytes) -> bytes:
        """Ask a broker something. Raises UnreachableError, LostError."""
        assert self._controller is not None, "open comes first"
        record = self._controller.state.brokers.get(broker)
        if record is None:
            raise UnreachableError
        return await self.peers.ask(record.node_id, kind, payload)

    # -- what links ask for

    def _own(self) -> Own | None:
        controller, cluster_id = self._controller, self._data.cluster_id
        if controller is None or cluster_id is None:
            return None
        node = controller.consensus.core.node_id
        return Own(self._data.server_id, node, cluster_id, self._incarnation)

    def _guarantees(self, settings: StreamSettings) -> Guarantees:
        """What a stream is to guarantee: its own settings, and for the rest those of this server."""
        streams, clustering = self._config.streams, self._config.clustering
        return Guarantees(
            min_isr=settings.min_isr or clustering.min_insync_replicas,
            synced=(settings.sync_policy or streams.sync_policy) == "always",
        )

    def _announcement(self) -> Announcement:
        host, port = self._address
        node = 0 if self._controller is None else self._controller.consensus.core.node_id
        return Announcement(self._data.server_id, self._data.cluster_id, host, port, node)

    def _deliver(self, message: Message) -> None:
        if self._controller is not None:
            self._controller.consensus.deliver(message)

    async def _answer(self, asker: str, kind: str, payload: bytes) -> bytes:
        """Raises UnansweredError for a question that this version, or this server by now, cannot answer."""
        if kind not in self.answers:
            raise UnansweredError(f"this server has no answer to {kind!r}")
        return await self.answers[kind](payload)

    # -- where others are

    def by_node(self, node: NodeId) -> tuple[str, Sequence[Address]] | None:
        """Server id and addresses of the broker with a node, None when it is not known."""
        if self._controller is not None:
            for broker in self._controller.state.brokers.values():
                if broker.node_id == node:
                    return broker.id, self.by_server(broker.id)
        for announcement in self._discovery.heard.values():
            if announcement.node_id == node and announcement.cluster_id == self._data.cluster_id:
                return announcement.server_id, self.by_server(announcement.server_id)
        return None

    def by_server(self, server_id: str) -> Sequence[Address]:
        """Where a server may be, the likeliest first."""
        found: list[Address] = []
        heard = self._discovery.heard.get(server_id)
        if heard is not None:
            found.append((heard.host, heard.port))
        record = None if self._controller is None else self._controller.state.brokers.get(server_id)
        if record is not None:
            found += [_address(text) for text in record.addresses]
        return tuple(dict.fromkeys(found))

    def anybody(self) -> Sequence[str]:
        """The other servers of this cluster, as far as they are known."""
        heard = [
            each.server_id
            for each in self._discovery.heard.values()
            if each.cluster_id == self._data.cluster_id
        ]
        brokers = () if self._controller is None else self._controller.state.brokers
        return [each for each in dict.fromkeys([*heard, *brokers]) if each != self._data.server_id]


async def _remind() -> None:
    while True:
        await trio.sleep(REMIND_SECONDS)
        logger.info("still waiting to be taken into the cluster")


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)
