"""Several servers in one process, with links over real sockets: what the tests of links share."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from liftbridge.broker.peers import FollowLink, LeadLink, Own, Peers
from liftbridge.broker.peers import greeting as greetings
from liftbridge.broker.peers.model import Purpose
from liftbridge.broker.peers.pipe import One, dial
from liftbridge.proto import api_grpc, api_pb2
from liftbridge.raft import Append, Entry, EntryKind, Message, TimeoutNow
from liftbridge.replication.messages import Accepted, Batch, Data, Statement
from liftbridge.rpc import Limits, RpcServer

CLUSTER = uuid.UUID(int=7)
SECRET = b"a secret of the cluster"
STREAM = uuid.UUID(int=11)
KEY = (STREAM, 0)
HOST = "127.0.0.1"


class Api(api_grpc.APIServicer):
    """The API beside the links."""

    async def FetchMetadata(self, input_message: Any) -> Any:  # purerpc's name
        return api_pb2.FetchMetadataResponse()


class Map:
    """Where servers are, for one of them."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.servers: dict[str, tuple[int, list[tuple[str, int]]]] = {}

    def by_node(self, node: int) -> tuple[str, list[tuple[str, int]]] | None:
        for server_id, (of, addresses) in self.servers.items():
            if of == node:
                return server_id, addresses
        return None

    def by_server(self, server_id: str) -> list[tuple[str, int]]:
        return self.servers.get(server_id, (0, []))[1]

    def anybody(self) -> list[str]:
        return [server_id for server_id in self.servers if server_id != self.own]


class Node:
    """One server."""

    def __init__(
        self,
        own: Own | None,
        *,
        secret: bytes = SECRET,
        client_tls: ssl.SSLContext | None = None,
        server_tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
        guard: Any = None,
    ) -> None:
        self.own = own
        self.map = Map(own.server_id if own else "")
        self.delivered: list[Message] = []
        self.asked: list[tuple[str, str, bytes]] = []
        self.answer: Callable[[str, str, bytes], Awaitable[bytes]] = self._echo
        self.changed = trio.Event()
        self.peers = Peers(
            lambda: self.own,
            secret=secret,
            ssl_context=client_tls,
            whereabouts=self.map,
            deliver=self._deliver,
            answer=self._answer,
        )
        self.server = RpcServer(
            [Api().service, self.peers.service], ssl_context=server_tls, limits=limits, guard=guard
        )
        self.address = (HOST, 0)

    @property
    def node(self) -> int:
        assert self.own is not None
        return self.own.node_id

    @property
    def id(self) -> str:
        assert self.own is not None
        return self.own.server_id

    def _deliver(self, message: Message) -> None:
        self.delivered.append(message)
        self.notify()

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.changed.wait()

    async def _echo(self, server_id: str, kind: str, payload: bytes) -> bytes:
        return payload

    async def _answer(self, server_id: str, kind: str, payload: bytes) -> bytes:
        self.asked.append((server_id, kind, payload))
        self.notify()
        return await self.answer(server_id, kind, payload)


def own(number: int, **changes: Any) -> Own:
    """Who server "s<number>" is."""
    made = Own(f"s{number}", number, CLUSTER, uuid.uuid4())
    return replace(made, **changes)


@dataclass
class Net:
    """Servers that know of each other."""

    nursery: trio.Nursery
    nodes: list[Node] = field(default_factory=list)
    scopes: dict[Node, trio.CancelScope] = field(default_factory=dict)

    async def add(self, node: Node, *, dials: bool = True, known: bool = True, port: int = 0) -> Node:
        """Start a server; `dials`: it keeps control links; `known`: the others can find it."""
        started = trio.Event()
        scope = self.scopes[node] = trio.CancelScope()

        async def run() -> None:
            listeners = await trio.open_tcp_listeners(port, host=HOST)
            node.address = listeners[0].socket.getsockname()[:2]
            with scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(node.server.serve, listeners)
                    if dials:
                        await nursery.start(node.peers.run)
                    started.set()

        self.nursery.start_soon(run)
        await started.wait()
        self.nodes.append(node)
        if node.own is not None and known:
            self.tell(node)
        for other in self.nodes:
            if other.own is not None and other is not node:
                node.map.servers[other.id] = (other.node, [other.address])
        return node

    def tell(self, node: Node) -> None:
        """Have all others know where a server is."""
        for other in self.nodes:
            other.map.servers[node.id] = (node.node, [node.address])

    def stop(self, node: Node) -> None:
        """End a server at once, as if its process was killed."""
        self.scopes[node].cancel()
        self.nodes.remove(node)


@asynccontextmanager
async def net() -> AsyncIterator[Net]:
    """Servers, which are stopped when the block is left; what never happens fails the test."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            yield Net(nursery)
            nursery.cancel_scope.cancel()


async def linked(*nodes: Node) -> None:
    """Wait until each can ask each other."""
    for one in nodes:
        for other in nodes:
            if one is not other:
                assert await one.peers.ask(other.node, "ping", b"") == b""


async def refused(node: Node, reason: Any) -> None:
    """Wait until a greeting was refused for that reason."""
    while not node.peers.refusals[reason]:
        await trio.sleep(0.01)


def append(one: Node, other: Node, sequence: int, size: int = 0) -> Append:
    """A message of the consensus: with an entry of `size` bytes, or without one."""
    entries = (Entry(sequence + 1, 1, EntryKind.COMMAND, b"e" * size),) if size else ()
    return Append(one.node, other.node, 1, 5, sequence, sequence, 1, entries, 0)


def timeout_now(one: Node, other: Node, term: int = 1) -> TimeoutNow:
    """A small message of the consensus."""
    return TimeoutNow(one.node, other.node, term, 5)


def statement(broker: str, session: int = 1, **changes: int) -> Statement:
    """Where a log is."""
    return replace(Statement(broker, 3, 4, session, 0, 0, 0, 0), **changes)


def data(session: int, first: int, *sizes: int, high_watermark: int = -1) -> Data:
    """A Data with a batch of one record for each size."""
    batches = tuple(Batch(first + i, first + i + 1, 4, size) for i, size in enumerate(sizes))
    return Data(4, session, batches, high_watermark, 0)


class Ends:
    """Both ends of a data link, one after the other as links come and go."""

    def __init__(self, follower: Node, leader: Node) -> None:
        self.follower, self.leader = follower, leader
        self._to_follow, self._follows = trio.open_memory_channel[FollowLink](10)
        self._to_lead, self._leads = trio.open_memory_channel[LeadLink](10)
        leader.peers.lead(self._lead)

    async def _lead(self, link: LeadLink) -> None:
        await self._to_lead.send(link)
        await trio.sleep_forever()

    async def _follow(self, link: FollowLink) -> None:
        await self._to_follow.send(link)
        await trio.sleep_forever()

    async def run(self) -> None:
        """Follow until cancelled."""
        await self.follower.peers.follow(self.leader.id, self._follow)

    async def next(self) -> tuple[FollowLink, LeadLink]:
        """The ends of the link that is open now."""
        return await self._follows.receive(), await self._leads.receive()


@asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[FollowLink, LeadLink, Ends, Net]]:
    """A follower and a leader, with a data link."""
    async with net() as made:
        follower = await made.add(Node(own(1), **options), dials=False)
        leader = await made.add(Node(own(2), **options), dials=False)
        ends = Ends(follower, leader)
        made.nursery.start_soon(ends.run)
        yield (*await ends.next(), ends, made)


async def declare(follow: FollowLink, lead: LeadLink, key: Any = KEY, session: int = 1) -> None:
    """Have the leader know a partition, and the follower its answer."""
    follow.send(key, statement("s1", session))
    ((heard, stated),) = await lead.receive()
    assert (heard, stated) == (key, statement("s1", session))
    lead.send(key, Accepted(4, session, -1))
    assert await follow.receive() == [(key, Accepted(4, session, -1), b"")]


@asynccontextmanager
async def stranger(
    node: Node, purpose: Purpose, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[One, Any]]:
    """A connection to a server on which nothing was said yet."""
    async with trio.open_nursery() as nursery:
        sender, receiver = trio.open_memory_channel[Any](0)

        async def work(pipe: Any) -> None:
            await sender.send(pipe)
            await trio.sleep_forever()

        nursery.start_soon(dial, node.address, tls, purpose, work)
        pipe = await receiver.receive()
        yield One(pipe), pipe
        nursery.cancel_scope.cancel()


class Bold(greetings.Greeting):
    """Of one that greets whoever is there."""

    def _look_at(self, other: Own | None, wanted: str) -> None:
        pass


async def greet(
    messages: Any,
    purpose: Purpose,
    as_who: Own | None,
    wanted: Node,
    secret: bytes = SECRET,
    window: int = 1 << 20,
) -> Any:
    """Greet a server as another would, but for looking at who it is."""
    return await Bold(messages, purpose, as_who, secret).connect(wanted.id, window)


async def settled() -> None:
    """Everything that can happen now has happened."""
    await wait_all_tasks_blocked(0.02)
