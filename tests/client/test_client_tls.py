"""TLS with servers that want it, with and without client certificates."""

from __future__ import annotations

import pytest
import trustme
from client_support import both_backends, run
from harness import Server

import liftbridge.client as lc


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Certificates of a server and a client, of one authority, and a second authority nobody trusts."""
    folder = tmp_path_factory.mktemp("certificates")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    for name, issuer in (("server", authority), ("client", authority), ("impostor", stranger)):
        certificate = issuer.issue_cert("127.0.0.1" if name == "server" else f"{name}@example.org")
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return folder


def tls_server(tmp_path, files, **config):
    return Server(
        tmp_path / "server",
        {"tls.cert": str(files / "server.pem"), "tls.key": str(files / "server.key"), **config},
    )


@both_backends
def test_tls(tmp_path, files, backend):
    async def scenario():
        async with lc.connect(server.address, tls=lc.tls_context(ca=files / "ca.pem")) as client:
            await client.create_stream("s")
            assert (await client.publish("s", b"value")).offset == 0
            async with client.subscribe("s", start="earliest", stop="latest") as messages:
                assert [m.value async for m in messages] == [b"value"]
        options = lc.Options(timeout=5)
        with pytest.raises(lc.TlsError, match="certificate verify failed"):
            async with lc.connect(
                server.address, tls=lc.tls_context(ca=files / "stranger.pem"), options=options
            ):
                pass
        with pytest.raises(lc.UnavailableError):
            async with lc.connect(server.address, options=lc.Options(timeout=1)):
                pass

    with tls_server(tmp_path, files) as server:
        run(backend, scenario)


@both_backends
def test_a_certificate_of_another_host_is_refused(tmp_path, files, backend):
    async def scenario():
        # The certificate is trusted, and names the address and not the host.
        address = server.address.replace("127.0.0.1", "localhost")
        with pytest.raises(lc.TlsError, match="certificate is not valid for 'localhost'"):
            async with lc.connect(address, tls=lc.tls_context(ca=files / "ca.pem")):
                pass

    with tls_server(tmp_path, files) as server:
        run(backend, scenario)


@both_backends
def test_mutual_tls(tmp_path, files, backend):
    mutual = {"tls.client.auth.enabled": True, "tls.client.auth.ca": str(files / "ca.pem")}

    def context(name):
        return lc.tls_context(
            ca=files / "ca.pem", certificate=files / f"{name}.pem", key=files / f"{name}.key"
        )

    async def scenario():
        async with lc.connect(server.address, tls=context("client")) as client:
            assert (await client.metadata()).brokers
        for refused in (lc.tls_context(ca=files / "ca.pem"), context("impostor")):
            with pytest.raises(lc.UnavailableError):
                async with lc.connect(server.address, tls=refused, options=lc.Options(timeout=2)):
                    pass

    with tls_server(tmp_path, files, **mutual) as server:
        run(backend, scenario)


def test_a_key_needs_its_certificate(files):
    with pytest.raises(ValueError, match="certificate"):
        lc.tls_context(key=files / "client.key")
