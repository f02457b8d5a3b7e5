"""Servers that hear of each other, on a real NATS server."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager

import pytest
import trio
from harness import Nats

from liftbridge.broker import discovery as discovery_module
from liftbridge.broker.discovery import Announcement, AnnouncementError, Discovery, decode
from liftbridge.nats.bridge import BRIDGE
from liftbridge.nats.connection import NatsConnection
from liftbridge.nats.transport import NatsCredentials
from liftbridge.proto import internal_pb2

CLUSTER = uuid.UUID(int=7)
SECRET = b"of the cluster"


def announcement(name: str, cluster: uuid.UUID | None = None, port: int = 9292) -> Announcement:
    return Announcement(name, cluster, "127.0.0.1", port)


class Around:
    """Servers on one NATS server."""

    def __init__(self, url: str, nursery: trio.Nursery) -> None:
        self._url = url
        self._nursery = nursery

    async def discovery(self, own: Announcement, secret: bytes = b"", *, member: bool = False) -> Discovery:
        connection = NatsConnection([self._url], name="test", purpose="test", credentials=NatsCredentials())
        self._nursery.start_soon(connection.run)
        await connection.wait_connected()
        found = Discovery(connection, "test", lambda: own, secret)
        await found.start()
        if member:
            await self._nursery.start(found.run)
        return found


@asynccontextmanager
async def around(tmp_path):
    with Nats(tmp_path / "nats") as nats, trio.fail_after(60):
        async with BRIDGE.opened(), trio.open_nursery() as nursery:
            yield Around(nats.url, nursery)
            nursery.cancel_scope.cancel()


async def heard(discovery: Discovery, *names: str) -> None:
    while not set(names) <= discovery.heard.keys():
        await discovery.wait_news()


async def test_who_asks_hears_of_those_that_belong_to_a_cluster_and_they_of_it(tmp_path):
    async with around(tmp_path) as servers:
        member = await servers.discovery(announcement("b", CLUSTER), member=True)
        own = await servers.discovery(announcement("a"))
        await own.ask()
        await heard(own, "b")
        assert own.heard == {"b": announcement("b", CLUSTER)}
        await heard(member, "a")
        assert member.heard == {"a": announcement("a")}
        assert not own.nobody


async def test_nats_says_at_once_that_nobody_is_there(tmp_path):
    async with around(tmp_path) as servers:
        own = await servers.discovery(announcement("a"))
        await servers.discovery(announcement("b"))  # it belongs to no cluster either
        await own.ask()
        while not own.nobody:
            await own.wait_news()


async def test_what_is_announced_last_is_remembered(tmp_path):
    async with around(tmp_path) as servers:
        own = await servers.discovery(announcement("a"))
        await (await servers.discovery(announcement("b"))).ask()
        await heard(own, "b")
        await (await servers.discovery(announcement("b", CLUSTER, 9293))).ask()
        while own.heard["b"].cluster_id is None:
            await own.wait_news()
        assert own.heard["b"] == announcement("b", CLUSTER, 9293)


async def test_those_who_do_not_know_the_secret_are_not_heard(tmp_path):
    async with around(tmp_path) as servers:
        own = await servers.discovery(announcement("a"), SECRET)
        await (await servers.discovery(announcement("stranger"))).ask()
        await (await servers.discovery(announcement("guesser"), b"guessed")).ask()
        await (await servers.discovery(announcement("friend"), SECRET)).ask()
        await heard(own, "friend")
        assert own.heard.keys() == {"friend"}
        assert own.ignored == 2


async def test_strangers_fill_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(discovery_module, "MOST_HEARD", 3)
    async with around(tmp_path) as servers:
        own = await servers.discovery(announcement("a"))
        for number in range(5):
            await (await servers.discovery(announcement(f"s{number}"))).ask()
        while own.ignored < 2:
            await trio.sleep(0.01)
        assert own.heard.keys() == {"s0", "s1", "s2"}


async def test_however_many_ask_a_server_answers_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(discovery_module, "ANSWER_SECONDS", 3600)
    async with around(tmp_path) as servers:
        own = await servers.discovery(announcement("a"))
        await servers.discovery(announcement("b", CLUSTER), member=True)
        await heard(own, "b")  # it says so when it becomes a member
        news = []
        own._remember = news.append
        for _ in range(20):
            await own.ask()
        await own._connection.flush()
        assert not news


def test_an_announcement_survives_the_wire():
    for cluster in (None, CLUSTER):
        for secret in (b"", SECRET):
            said = announcement("server-1", cluster)
            assert decode(said.encode(secret), secret) == said


def test_whoever_needs_no_secret_hears_those_who_have_one():
    assert decode(announcement("a").encode(SECRET), b"") == announcement("a")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"x" * 2000,
        internal_pb2.Announcement(server_id="a", host="h").SerializeToString(),
        internal_pb2.Announcement(server_id="a", port=1).SerializeToString(),
        internal_pb2.Announcement(server_id="a", host="h", port=70000).SerializeToString(),
        internal_pb2.Announcement(server_id="a.b", host="h", port=1).SerializeToString(),
        internal_pb2.Announcement(host="h", port=1).SerializeToString(),
        internal_pb2.Announcement(server_id="a", host="h", port=1, cluster_id=b"short").SerializeToString(),
    ],
)
def test_garbage_announces_nobody(data):
    with pytest.raises(AnnouncementError):
        decode(data, b"")
