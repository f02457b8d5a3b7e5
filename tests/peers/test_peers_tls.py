"""Links over TLS: which certificates open them, with and without a secret."""

from __future__ import annotations

import ssl
import uuid
from dataclasses import dataclass

import pytest
import trustme
from peers_support import HOST, SECRET, Ends, Node, data, declare, greet, linked, net, own, refused, stranger

from liftbridge.broker.peers import LinkError, Reason
from liftbridge.broker.peers.model import Purpose

KEY = (uuid.UUID(int=11), 0)


@dataclass
class Authority:
    """Issues certificates, and makes the contexts that trust them."""

    ca: trustme.CA

    def server(self, *names: str, mutual: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or (HOST,))).configure_cert(context)
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context

    def client(self, *names: str, certificate: bool = True) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if certificate:
            self.ca.issue_cert(*(names or (HOST,))).configure_cert(context)
        return context

    def node(self, number: int, secret: bytes = b"", *, mutual: bool = True) -> Node:
        return Node(
            own(number), secret=secret, client_tls=self.client(), server_tls=self.server(mutual=mutual)
        )


@pytest.fixture(scope="module")
def authority():
    return Authority(trustme.CA())


@pytest.mark.parametrize(("mutual", "secret"), [(True, b""), (True, SECRET), (False, SECRET)])
async def test_links_over_tls(authority, mutual, secret):
    async with net() as made:
        one = await made.add(authority.node(1, secret, mutual=mutual))
        other = await made.add(authority.node(2, secret, mutual=mutual))
        await linked(one, other)
        ends = Ends(one, other)
        made.nursery.start_soon(ends.run)
        follow, lead = await ends.next()
        await declare(follow, lead)
        await lead.send_data(KEY, data(1, 0, 3_000_000), bytes(3_000_000))
        assert await follow.receive() == [(KEY, data(1, 0, 3_000_000), bytes(3_000_000))]


async def test_tls_that_asks_for_nothing_else_links_nobody(authority):
    async with net() as made:
        node = await made.add(authority.node(2, mutual=False), dials=False)
        await made.add(authority.node(1, mutual=False))
        await refused(node, Reason.CERTIFICATE)
        assert node.peers.linked == ()


async def test_with_tls_and_without_client_certificates_the_secret_is_proved(authority):
    async with net() as made:
        node = await made.add(authority.node(2, SECRET, mutual=False), dials=False)
        await made.add(authority.node(1, b"another secret", mutual=False))
        await refused(node, Reason.SECRET)
        assert node.peers.linked == ()


@pytest.mark.parametrize("purpose", [Purpose.CONTROL, Purpose.DATA])
async def test_the_certificate_of_a_client_opens_no_link(authority, purpose):
    """It is of the same authority, and names no host of a server."""
    async with net() as made:
        node = await made.add(authority.node(2), dials=False)
        assert Ends(node, node)
        node.map.servers["s1"] = (1, [(HOST, 1)])
        async with stranger(node, purpose, authority.client("client.example")) as (messages, _):
            with pytest.raises(LinkError, match=r"certificate for client\.example"):
                await greet(messages, purpose, own(1), node, b"")
        assert node.peers.refusals[Reason.CERTIFICATE] == 1


async def test_a_server_that_is_not_known_yet_is_refused_until_it_is(authority):
    async with net() as made:
        node = await made.add(authority.node(2), dials=False)
        other = await made.add(authority.node(1), known=False)
        other.map.servers["s2"] = (2, [node.address])
        await refused(node, Reason.CERTIFICATE)
        made.tell(other)
        await linked(other, node)


async def test_a_certificate_of_a_stranger_does_not_connect(authority):
    async with net() as made:
        node = await made.add(authority.node(2, SECRET), dials=False)
        strange = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.ca.configure_trust(strange)
        trustme.CA().issue_cert(HOST).configure_cert(strange)
        for context in (strange, authority.client(certificate=False)):
            await made.add(Node(own(1), client_tls=context, server_tls=authority.server(mutual=True)))
            assert await made.nodes[-1].peers.cluster_of("s2") is None
        assert node.peers.linked == ()


async def test_a_server_whose_certificate_is_for_another_host_is_not_connected_to(authority):
    async with net() as made:
        false = Node(
            own(2), client_tls=authority.client(), server_tls=authority.server("other.example", mutual=True)
        )
        await made.add(false, dials=False)
        one = await made.add(authority.node(1, SECRET), dials=False)
        assert await one.peers.cluster_of("s2") is None
        assert not false.peers.refusals


async def test_plaintext_does_not_reach_a_server_with_tls(authority):
    async with net() as made:
        await made.add(authority.node(2, SECRET), dials=False)
        plain = await made.add(Node(own(1)))
        assert await plain.peers.cluster_of("s2") is None


async def test_without_a_secret_a_context_that_checks_nothing_is_not_accepted(authority):
    context = authority.client()
    context.check_hostname = False
    with pytest.raises(AssertionError, match="certificates are all"):
        Node(own(1), secret=b"", client_tls=context)
    Node(own(1), secret=SECRET, client_tls=context)


async def test_certificates_are_renewed_while_links_stay(authority):
    async with net() as made:
        one, other = await made.add(authority.node(1)), await made.add(authority.node(2))
        await linked(one, other)
        link = one.peers._links.control(2)
        one.peers.use_tls(authority.client())
        one.server.use_tls(authority.server(mutual=True))
        await linked(one, other)
        assert link.lost is None
        link.lose("the test")
        await linked(one, other)


async def test_neither_tls_nor_secret_is_warned_about(caplog):
    """Once there is somebody to whom it matters."""
    for secret, warned in (b"", True), (SECRET, False):
        async with net() as made:
            one = await made.add(Node(own(1), secret=secret))
            assert "set clustering.secret" not in caplog.text
            await linked(one, await made.add(Node(own(2), secret=secret)))
            assert ("set clustering.secret" in caplog.text) is warned
        caplog.clear()
