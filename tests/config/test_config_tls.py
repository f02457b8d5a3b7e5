"""TLS contexts made from configured files, tried in real handshakes."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from cryptography.hazmat.primitives import serialization as s

from liftbridge.broker.config import ClusteringConfig, ConfigError, NatsConfig, TlsConfig
from liftbridge.broker.tls import nats_ssl_context, peer_ssl_context, server_ssl_context

CA = trustme.CA()
OTHER_CA = trustme.CA()


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Path:
    """A directory with server.pem, server.key, client.pem, client.key, ca.pem."""
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name, identity in (("server", "localhost"), ("client", "joe@example.org")):
        pair = CA.issue_cert(identity, common_name=identity)
        pair.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        pair.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
    return tmp_path


class HandshakeFailedError(Exception):
    """One side did not accept the other."""


async def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[str | None, object]:
    """Return the protocol and the client certificate that the server sees after a handshake."""
    ours, theirs = trio.testing.memory_stream_pair()
    server_end = trio.SSLStream(ours, server, server_side=True)
    client_end = trio.SSLStream(theirs, client, server_hostname="localhost")
    received = []

    async def exchange(end: trio.SSLStream[trio.StapledStream]) -> None:
        try:
            await end.send_all(b"x")
            received.append(await end.receive_some())
        except trio.BrokenResourceError:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange, server_end)
        nursery.start_soon(exchange, client_end)
    if received != [b"x", b"x"]:
        raise HandshakeFailedError
    return server_end.selected_alpn_protocol(), server_end.getpeercert()


def client_context(*, alpn: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(["h2"])
    return context


def test_no_files_no_tls() -> None:
    assert server_ssl_context(TlsConfig()) is None
    assert nats_ssl_context(NatsConfig()) is None
    assert peer_ssl_context(TlsConfig(), ClusteringConfig()) is None


async def test_a_client_that_trusts_the_ca_gets_h2(files: Path) -> None:
    context = server_ssl_context(TlsConfig(key=files / "server.key", cert=files / "server.pem"))
    assert context is not None and context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert await shake(context, client_context()) == ("h2", None)


async def test_client_authentication_wants_a_certificate_of_the_ca(files: Path) -> None:
    tls = TlsConfig(
        key=files / "server.key",
        cert=files / "server.pem",
        client_auth_enabled=True,
        client_auth_ca=files / "ca.pem",
    )
    context = server_ssl_context(tls)
    assert context is not None
    known = client_context()
    known.load_cert_chain(files / "client.pem", files / "client.key")
    protocol, certificate = await shake(context, known)
    assert protocol == "h2"
    assert (("commonName", "joe@example.org"),) in certificate["subject"]  # type: ignore[index]

    stranger = client_context()
    OTHER_CA.issue_cert("eve@example.org").configure_cert(stranger)
    for refused in (client_context(), stranger):
        with pytest.raises(HandshakeFailedError):
            await shake(context, refused)


async def test_a_ca_alone_verifies_the_nats_server(files: Path) -> None:
    server = server_ssl_context(TlsConfig(key=files / "server.key", cert=files / "server.pem"))
    client = nats_ssl_context(NatsConfig(tls_ca=files / "ca.pem"))
    assert server is not None and client is not None
    assert await shake(server, client) == (None, None)
    distrustful = nats_ssl_context(NatsConfig(servers=("tls://localhost",)))
    assert distrustful is not None
    with pytest.raises(HandshakeFailedError):
        await shake(server, distrustful)


async def test_a_client_certificate_for_nats(files: Path) -> None:
    tls = TlsConfig(
        key=files / "server.key",
        cert=files / "server.pem",
        client_auth_enabled=True,
        client_auth_ca=files / "ca.pem",
    )
    server = server_ssl_context(tls)
    nats = NatsConfig(tls_ca=files / "ca.pem", tls_cert=files / "client.pem", tls_key=files / "client.key")
    client = nats_ssl_context(nats)
    assert server is not None and client is not None
    _, certificate = await shake(server, client)
    assert certificate


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda d: TlsConfig(key=d / "server.key", cert=d / "no.pem"),
            "tls.cert: cannot read .*no.pem: No such file",
        ),
        (
            lambda d: TlsConfig(key=d / "no.key", cert=d / "server.pem"),
            "tls.key: cannot read .*no.key: No such file",
        ),
        (lambda d: TlsConfig(key=d, cert=d / "server.pem"), "tls.key: cannot read .*: Is a directory"),
        (lambda d: TlsConfig(key=d / "client.key", cert=d / "server.pem"), "cannot be used: .*mismatch"),
        (
            lambda d: TlsConfig(key=d / "junk", cert=d / "server.pem"),
            "tls.cert .* and tls.key .*junk cannot be used",
        ),
        (lambda d: TlsConfig(key=d / "locked.key", cert=d / "server.pem"), "without a pass phrase"),
        (
            lambda d: TlsConfig(
                key=d / "server.key",
                cert=d / "server.pem",
                client_auth_enabled=True,
                client_auth_ca=d / "junk",
            ),
            "tls.client.auth.ca .*junk cannot be used",
        ),
    ],
)
def test_unusable_files_are_named(files: Path, make: Callable[[Path], TlsConfig], message: str) -> None:
    (files / "junk").write_text("junk")
    key = s.load_pem_private_key((files / "server.key").read_bytes(), None)
    locked = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"pass"))
    (files / "locked.key").write_bytes(locked)
    with pytest.raises(ConfigError, match=message):
        server_ssl_context(make(files))


def test_an_unusable_ca_for_nats_is_named(files: Path) -> None:
    with pytest.raises(ConfigError, match=r"nats\.tls\.ca: cannot read .*none\.pem"):
        nats_ssl_context(NatsConfig(tls_ca=files / "none.pem"))


@pytest.mark.parametrize("key", ["clustering.tls.ca", "tls.client.auth.ca"])
async def test_servers_show_each_other_their_certificates(files: Path, key: str) -> None:
    tls = TlsConfig(
        key=files / "server.key",
        cert=files / "server.pem",
        client_auth_enabled=True,
        client_auth_ca=files / "ca.pem",
    )
    clustering = ClusteringConfig(tls_ca=files / "ca.pem" if key == "clustering.tls.ca" else None)
    server, client = server_ssl_context(tls), peer_ssl_context(tls, clustering)
    assert server is not None and client is not None
    protocol, certificate = await shake(server, client)
    assert protocol == "h2" and isinstance(certificate, dict)
    assert ("DNS", "localhost") in certificate["subjectAltName"]


async def test_servers_of_another_authority_are_not_connected_to(files: Path) -> None:
    tls = TlsConfig(key=files / "server.key", cert=files / "server.pem", client_auth_ca=files / "ca.pem")
    OTHER_CA.cert_pem.write_to_path(str(files / "other.pem"))
    server, client = (
        server_ssl_context(tls),
        peer_ssl_context(tls, ClusteringConfig(tls_ca=files / "other.pem")),
    )
    assert server is not None and client is not None
    with pytest.raises(HandshakeFailedError):
        await shake(server, client)
    with pytest.raises(ConfigError, match=r"clustering\.tls\.ca"):
        peer_ssl_context(tls, ClusteringConfig(tls_ca=files / "none.pem"))
