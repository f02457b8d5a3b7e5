"""Who is let in: secrets, clusters, identities, and what is no greeting at all."""

from __future__ import annotations

import uuid

import pytest
import trio
from peers_support import CLUSTER, SECRET, Ends, Node, greet, linked, net, own, refused, stranger

from liftbridge.broker.peers import GreetingError, LinkError, Reason, bounds
from liftbridge.broker.peers.greeting import Greeting, check_certificate
from liftbridge.broker.peers.model import Purpose
from liftbridge.broker.peers.pipe import framed
from liftbridge.proto import internal_pb2

LINKS = [Purpose.CONTROL, Purpose.DATA]


@pytest.mark.parametrize("secret", [SECRET, b""])
async def test_servers_with_the_same_secret_are_linked(secret):
    async with net() as made:
        nodes = [await made.add(Node(own(number), secret=secret)) for number in (1, 2, 3)]
        await linked(*nodes)
        assert sorted(nodes[0].peers.linked) == ["s2", "s3"]


@pytest.mark.parametrize("secrets", [(SECRET, b"another secret"), (SECRET, b""), (b"", SECRET)])
@pytest.mark.parametrize("purpose", LINKS)
async def test_another_secret_links_nobody(secrets, purpose, caplog):
    async with net() as made:
        one = await made.add(Node(own(1), secret=secrets[0]), dials=purpose is Purpose.CONTROL)
        other = await made.add(Node(own(2), secret=secrets[1]), dials=False)
        if purpose is Purpose.DATA:
            made.nursery.start_soon(Ends(one, other).run)
        await refused(other, Reason.SECRET)
        assert other.peers.linked == one.peers.linked == ()
    assert "clustering.secret" in caplog.text
    assert "another secret" not in caplog.text.replace("has another secret", "")


async def test_the_one_that_is_connected_to_has_to_prove_it_too():
    """A false server takes any proof, and has none of its own."""
    async with net() as made:
        victim = await made.add(Node(own(1)), dials=True)
        false = Node(own(2), secret=b"guessed")
        false.peers._secret = _Forgiving(b"guessed")
        await made.add(false, dials=False)
        await refused(victim, Reason.SECRET)
        assert victim.peers.linked == ()


class _Forgiving(bytes):
    """A secret whose holder believes everybody."""


@pytest.fixture(autouse=True)
def _forgive(monkeypatch):
    """Have servers with a `_Forgiving` secret take any proof: they are the attackers of these tests."""
    check = Greeting._check

    async def believing(self, side, server_id):
        if isinstance(self._secret, _Forgiving):
            await self._messages.receive_one()
        else:
            await check(self, side, server_id)

    monkeypatch.setattr(Greeting, "_check", believing)


async def test_a_proof_is_of_no_use_a_second_time():
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, _):
            recorded = _Recorder(messages)
            await greet(recorded, Purpose.CONTROL, own(1), node)
        async with stranger(node, Purpose.CONTROL) as (messages, _pipe):
            for message in recorded.sent:
                await messages.send_one(message)
            with pytest.raises(LinkError, match="secret"):
                while True:
                    await messages.receive_one()
        assert node.peers.refusals[Reason.SECRET] == 1


class _Recorder:
    def __init__(self, messages):
        self.messages, self.sent = messages, []

    async def receive_one(self):
        return await self.messages.receive_one()

    async def send_one(self, message):
        self.sent.append(message)
        await self.messages.send_one(message)


async def test_a_proof_for_one_kind_of_link_opens_no_other():
    """Whoever connects is made to prove for another purpose than the server is asked for."""
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        node.peers.lead(_nothing)
        async with stranger(node, Purpose.DATA) as (messages, _):
            with pytest.raises(LinkError, match="secret"):
                await greet(messages, Purpose.CONTROL, own(1), node)


async def _nothing(link):
    await trio.sleep_forever()


async def test_a_stranger_gets_no_proof_to_try_secrets_with():
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, _):
            recorded = _Received(messages)
            with pytest.raises(LinkError):
                await greet(recorded, Purpose.CONTROL, own(1), node, b"guessed")
        (challenge,) = recorded.received
        assert internal_pb2.PeerChallenge.FromString(challenge).nonce


class _Received:
    def __init__(self, messages):
        self.messages, self.received = messages, []

    async def receive_one(self):
        self.received.append(await self.messages.receive_one())
        return self.received[-1]

    async def send_one(self, message):
        await self.messages.send_one(message)


@pytest.mark.parametrize("purpose", LINKS)
async def test_another_cluster_is_not_linked(purpose, caplog):
    async with net() as made:
        one = await made.add(Node(own(1)), dials=purpose is Purpose.CONTROL)
        other = await made.add(Node(own(2, cluster_id=uuid.UUID(int=8))), dials=False)
        ends = Ends(one, other)
        if purpose is Purpose.DATA:
            made.nursery.start_soon(ends.run)
        await refused(one, Reason.CLUSTER)
        async with stranger(other, purpose) as (messages, _):
            with pytest.raises(LinkError, match="belongs to cluster"):
                await greet(messages, purpose, own(1), other)
        assert one.peers.linked == other.peers.linked == ()
    assert str(CLUSTER) in caplog.text


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ({"server_id": "s2"}, Reason.TWIN),
        ({"node_id": 2}, Reason.TWIN),
        ({"itself": True}, Reason.ITSELF),
    ],
)
@pytest.mark.parametrize("purpose", LINKS)
async def test_twins_of_the_server_and_itself_are_not_linked(who, reason, purpose):
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        node.peers.lead(_nothing)
        as_who = node.own if who.get("itself") else own(1, **who)
        async with stranger(node, purpose) as (messages, _):
            with pytest.raises(LinkError):
                await greet(messages, purpose, as_who, node)
        assert node.peers.refusals[reason] == 1
        assert node.peers.linked == ()


async def test_a_server_whose_address_is_its_own_does_not_link_to_itself():
    async with net() as made:
        node = await made.add(Node(own(1)))
        node.map.servers["s2"] = (2, [node.address])
        await refused(node, Reason.ITSELF)
        assert node.peers.linked == ()


@pytest.mark.parametrize("twin", [own(1), own(3, node_id=1)])
async def test_the_twin_of_a_linked_server_is_refused_until_that_is_gone(twin):
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        first = await made.add(Node(own(1)), dials=True)
        await linked(first, node)
        async with stranger(node, Purpose.CONTROL) as (messages, _):
            assert await first.peers.ask(2, "ping", b"") == b""
            with pytest.raises(LinkError, match="two running processes"):
                await greet(messages, Purpose.CONTROL, twin, node)
        assert node.peers.refusals[Reason.TWIN] == 1
        made.stop(first)
        while node.peers.linked:
            await trio.sleep(0.01)
        async with stranger(node, Purpose.CONTROL) as (messages, _):
            await greet(messages, Purpose.CONTROL, twin, node)
            while not node.peers.linked:
                await trio.sleep(0.01)


async def test_a_server_that_was_started_anew_is_let_in():
    async with net() as made:
        node = await made.add(Node(own(2)))
        first = await made.add(Node(own(1)))
        await linked(node, first)
        made.stop(first)
        again = await made.add(Node(own(1)))
        await linked(node, again)


async def test_a_server_under_an_address_of_another_is_not_linked():
    async with net() as made:
        node = await made.add(Node(own(1)))
        other = await made.add(Node(own(3)), dials=False, known=False)
        node.map.servers["s2"] = (2, [other.address])
        await refused(node, Reason.SERVER)
        async with stranger(other, Purpose.CONTROL) as (messages, _):
            await _hello(messages, wanted="s2")
            with pytest.raises(LinkError, match="this is server s3"):
                await _prove(messages)


async def _hello(messages, **changes):
    identity = own(1)
    hello = internal_pb2.PeerHello(version=1, nonce=bytes(32), wanted=changes.get("wanted", "s2"))
    hello.own.server_id, hello.own.node_id = identity.server_id, identity.node_id
    hello.own.cluster_id, hello.own.incarnation = CLUSTER.bytes, identity.incarnation.bytes
    hello.version = changes.get("version", 1)
    hello.nonce = changes.get("nonce", bytes(32))
    if "server_id" in changes:
        hello.own.server_id = changes["server_id"]
    if changes.get("nobody"):
        hello.ClearField("own")
    if "node_id" in changes:
        hello.own.node_id = changes["node_id"]
    messages.hello = hello.SerializeToString() + changes.get("tail", b"")
    await messages.send_one(messages.hello)


async def _prove(messages):
    greeting = Greeting(messages, Purpose.CONTROL, own(1), SECRET)
    greeting._bind(messages.hello, await messages.receive_one())
    await greeting._prove(b"connects")
    await messages.receive_one()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, Reason.VERSION),
        ({"nonce": b"short"}, Reason.MALFORMED),
        ({"server_id": "a server"}, Reason.MALFORMED),
        ({"server_id": ""}, Reason.MALFORMED),
        ({"node_id": 0}, Reason.MALFORMED),
        ({"nobody": True}, Reason.MALFORMED),
        ({"tail": b"\xff\xff"}, Reason.MALFORMED),
        ({"wanted": "s" * bounds.MAX_GREETING_BYTES}, Reason.MALFORMED),
    ],
)
async def test_what_is_no_greeting_is_refused(changes, reason):
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, _):
            await _hello(messages, **changes)
            with pytest.raises(LinkError):
                await messages.receive_one()
        assert node.peers.refusals[reason] == 1
        await made.add(Node(own(1)))
        await linked(*made.nodes)


async def test_garbage_costs_the_call_and_nothing_else():
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        for garbage in (framed(b"\xff" * 100), b"\xff" * 100, framed(bytes(bounds.MAX_PIECE + 2))):
            async with stranger(node, Purpose.CONTROL) as (_, pipe):
                await pipe.send(garbage)
                with pytest.raises(LinkError):
                    await pipe.receive()
        other = await made.add(Node(own(1)))
        await linked(node, other)


async def test_who_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(bounds, "GREETING_SECONDS", 0.1)
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, _):
            with pytest.raises(LinkError, match="no greeting within"):
                await messages.receive_one()
        async with stranger(node, Purpose.CONTROL) as (messages, _pipe):
            await _hello(messages)
            await messages.receive_one()
            with pytest.raises(LinkError, match="no greeting within"):
                await messages.receive_one()


@pytest.mark.parametrize("bound", ["MAX_GREETINGS", "MAX_GREETINGS_PER_ADDRESS"])
async def test_greetings_at_a_time_are_bounded(monkeypatch, bound):
    monkeypatch.setattr(bounds, bound, 2)
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with (
            stranger(node, Purpose.CONTROL) as (first, _),
            stranger(node, Purpose.CONTROL) as (second, _),
        ):
            for messages in (first, second):
                await _hello(messages)
                await messages.receive_one()
            async with stranger(node, Purpose.CONTROL) as (third, _):
                with pytest.raises(LinkError, match="2 servers greet"):
                    await third.receive_one()
        assert node.peers.refusals[Reason.TOO_MANY] == 1


# A server without a cluster.


async def test_a_server_without_a_cluster_asks_others_for_theirs():
    async with net() as made:
        member = await made.add(Node(own(1)), dials=False)
        newcomer = await made.add(Node(None), dials=True)
        assert await newcomer.peers.cluster_of("s1") == CLUSTER
        assert await newcomer.peers.cluster_of("nobody") is None
        assert newcomer.peers.linked == member.peers.linked == ()


async def test_of_a_server_without_a_cluster_nobody_gets_one():
    async with net() as made:
        newcomer = await made.add(Node(None), dials=False)
        member = await made.add(Node(own(1)), dials=True)
        member.map.servers["s2"] = (2, [newcomer.address])
        assert await member.peers.cluster_of("s2") is None
        await refused(newcomer, Reason.NO_CLUSTER)
        assert member.peers.linked == ()


async def test_the_cluster_is_told_to_nobody_without_the_secret():
    async with net() as made:
        await made.add(Node(own(1)), dials=False)
        newcomer = await made.add(Node(None, secret=b"another"), dials=False)
        assert await newcomer.peers.cluster_of("s1") is None
        assert newcomer.peers.refusals[Reason.SECRET] + made.nodes[0].peers.refusals[Reason.SECRET] > 0


async def test_a_server_that_has_joined_is_linked():
    async with net() as made:
        member = await made.add(Node(own(1)))
        newcomer = await made.add(Node(None))
        assert await newcomer.peers.cluster_of("s1") == CLUSTER
        newcomer.own = own(2)
        newcomer.map.own = "s2"
        made.tell(newcomer)
        await linked(member, newcomer)


# Certificates.

CERTIFICATE = {
    "subjectAltName": (("DNS", "One.example"), ("DNS", "*.two.example"), ("IP Address", "10.0.0.3"))
}


@pytest.mark.parametrize("host", ["one.example", "ONE.EXAMPLE.", "a.two.example", "10.0.0.3"])
def test_the_certificate_of_a_server_names_its_host(host):
    check_certificate(CERTIFICATE, [("else.example", 1), (host, 2)], "s1")


@pytest.mark.parametrize(
    "host", ["two.example", "a.b.two.example", "xone.example", "10.0.0.4", "one.example.org"]
)
def test_a_certificate_for_another_host_is_none(host):
    with pytest.raises(GreetingError, match=r"certificate for One\.example") as caught:
        check_certificate(CERTIFICATE, [(host, 1)], "s1")
    assert caught.value.reason is Reason.CERTIFICATE


@pytest.mark.parametrize("certificate", [None, {}, {"subjectAltName": (("URI", "one.example"),)}])
def test_without_a_name_in_the_certificate_nobody_is_a_server(certificate):
    with pytest.raises(GreetingError):
        check_certificate(certificate, [("one.example", 1)], "s1")


def test_a_server_whose_address_is_not_known_has_no_certificate_that_counts():
    with pytest.raises(GreetingError, match="not known yet"):
        check_certificate(CERTIFICATE, [], "s1")
