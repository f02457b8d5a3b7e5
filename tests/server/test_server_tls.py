"""TLS of a running server: certificates changed by SIGHUP, while connections go on."""

import os
import signal

import grpc
import pytest
import trustme
from calls import PATIENCE, create, publish, subscribe, until
from harness import Server
from secured import Files

from liftbridge.proto import api_pb2


@pytest.fixture(name="files")
def _files(tmp_path):
    return Files(tmp_path / "files")


@pytest.fixture(name="server")
def _server(files, tmp_path):
    with Server(tmp_path / "server", files.config(authz=False)) as running:
        yield running


def reload(server: Server, text: str) -> str:
    """SIGHUP, and wait for what it logs; returns the lines since."""
    before = len(server.log)
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: text in server.log[before:])
    return server.log[before:]


def test_new_connections_get_the_new_certificate_and_old_ones_go_on(files, server):
    api = files.api(server, "joe")
    running = subscribe(api, create(api, "s"))
    old = files.shown_serial(server, "joe")
    new = files.issue_server()
    assert files.shown_serial(server, "joe") == old, "only SIGHUP makes it read"
    lines = reload(server, "new connections get the certificate")
    assert f"serial number {new:x}, valid until" in lines
    assert files.shown_serial(server, "joe") == new != old
    publish(api, "s", b"through the old connection")
    publish(files.api(server, "joe"), "s", b"through a new one")
    assert [next(running).value for _ in range(2)] == [b"through the old connection", b"through a new one"]
    running.cancel()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("server.pem", "", "tls.cert"),
        ("server.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n", "tls.cert"),
        ("server.key", None, "tls.key"),
        ("server.key", "another", "key values mismatch"),
        ("ca.pem", "no certificate", "tls.client.auth.ca"),
    ],
)
def test_what_cannot_be_used_changes_nothing(files, server, name, content, complaint):
    api = files.api(server, "joe")
    create(api, "s")
    serial = files.shown_serial(server, "joe")
    if content is None:
        (files.directory / name).unlink()
    elif content == "another":
        files.put(name, files.ca.issue_cert("localhost").private_key_pem.bytes())
    else:
        files.put(name, content)
    assert complaint in reload(server, "the certificate stays as it was")
    assert files.shown_serial(server, "joe") == serial
    publish(api, "s", b"x")
    publish(files.api(server, "joe"), "s", b"y")
    new = files.issue_server()
    files.ca.cert_pem.write_to_path(str(files.directory / "ca.pem"))
    reload(server, "new connections get the certificate")
    assert files.shown_serial(server, "joe") == new


def test_another_authority_for_clients_counts_for_new_connections(files, server):
    """Also for a client that could resume its TLS session, which would skip the check of its certificate."""
    api = files.api(server, "joe")
    create(api, "s")
    other = trustme.CA()
    files.put("ca.pem", other.cert_pem.bytes())
    reload(server, "new connections get the certificate")
    request = api_pb2.FetchMetadataRequest()
    with pytest.raises(grpc.RpcError) as error:
        files.api(server, "joe").FetchMetadata(request, timeout=PATIENCE)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    publish(api, "s", b"the open connection goes on")
    pair = other.issue_cert("ann@example.org", common_name="ann")
    known = grpc.ssl_channel_credentials(
        files.ca.cert_pem.bytes(), pair.private_key_pem.bytes(), pair.cert_chain_pems[0].bytes()
    )
    server.api(known).FetchMetadata(request, timeout=PATIENCE)


def test_without_tls_sighup_does_nothing(tmp_path):
    with Server(tmp_path / "server") as server:
        api = server.api()
        running = subscribe(api, create(api, "s"))
        reload(server, "there is nothing to reload")
        publish(api, "s", b"x")
        assert next(running).value == b"x"
        running.cancel()


def test_each_sighup_is_one_reload(files, server):
    said = "new connections get the certificate"
    for _ in range(3):
        reload(server, said)
    assert server.log.count(said) == 3


def test_many_sighups_under_load_lose_nothing(files, server):
    api = files.api(server, "joe")
    running = subscribe(api, create(api, "s"))
    for number in range(200):
        if number % 10 == 0:
            os.kill(server.pid, signal.SIGHUP)
        publish(api, "s", str(number).encode())
    assert [next(running).value for _ in range(200)] == [str(number).encode() for number in range(200)]
    running.cancel()
    assert server.process.poll() is None
