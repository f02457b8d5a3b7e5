"""Metrics and health of a real server, over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
from pathlib import Path

import pytest
from calls import PATIENCE, create, publish, subscribe, take, until
from harness import Nats, Server, freeze
from prometheus_client.parser import text_string_to_metric_families

from liftbridge.proto import api_pb2

DOCS = Path(__file__).parents[2] / "docs"


def endpoint(server: Server) -> tuple[str, int]:
    server.wait_log("metrics and health at")
    found = re.findall(r"metrics and health at http://(\S+):(\d+)", server.log)[-1]
    return found[0], int(found[1])


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*endpoint(server), timeout=PATIENCE)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, {name.lower(): text for name, text in response.getheaders()}, response.read()
    finally:
        connection.close()


def metrics(server: Server) -> dict[str, float]:
    """Each sample by its name and labels."""
    status, headers, body = ask(server, "/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={text}" for name, text in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}"
            assert name not in found
            found[name] = sample.value
    return found


@pytest.fixture
def settings():
    return {}


@pytest.fixture
def server(tmp_path, settings):
    with Server(tmp_path / "server", {"http.listen": "127.0.0.1:0", **settings}) as running:
        yield running
        assert "Traceback" not in running.log


def test_partitions_are_counted(server):
    api = server.api()
    create(api, "orders", partitions=2)
    for number in range(3):
        publish(api, "orders", b"%d" % number)
    call = subscribe(api, "orders", startPosition=api_pb2.EARLIEST)
    take(call, 1)
    found = metrics(server)
    labels = "{partition=0,stream=orders}"
    assert found[f"liftbridge_partition_messages_received_total{labels}"] == 3
    assert found[f"liftbridge_partition_high_watermark{labels}"] == 2
    assert found[f"liftbridge_partition_written_offset{labels}"] == 2
    assert found[f"liftbridge_partition_synced_offset{labels}"] == 2
    assert found[f"liftbridge_partition_subscribers{labels}"] == 1
    assert found["liftbridge_partition_high_watermark{partition=1,stream=orders}"] == -1
    assert found["liftbridge_messages_received_total{}"] == 3
    assert found["liftbridge_partitions{state=leading}"] == 2
    assert found["liftbridge_streams{}"] == 1
    assert found["liftbridge_ready{}"] == 1
    assert found["liftbridge_nats_connected{purpose=streams}"] == 1
    assert found["liftbridge_acks_received_total{kind=all}"] == 3
    assert found["liftbridge_grpc_connections{}"] == 1
    assert found["liftbridge_sync_seconds_count{}"] >= 1
    assert found["liftbridge_metadata_term{}"] == 2
    assert found["process_resident_memory_bytes{}"] > 1 << 20
    call.cancel()
    until(lambda: metrics(server)[f"liftbridge_partition_subscribers{labels}"] == 0)


@pytest.mark.parametrize("settings", [{"http.metrics.max.partitions": 1}])
def test_of_too_many_partitions_there_are_sums_only(server):
    api = server.api()
    create(api, "orders", partitions=2)
    publish(api, "orders", b"x")
    found = metrics(server)
    assert not any(name.startswith("liftbridge_partition_") for name in found)
    assert found["liftbridge_messages_received_total{}"] == 1


def test_every_metric_is_documented_and_there(server):
    create(server.api(), "orders")
    body = ask(server, "/metrics")[2].decode()
    told = set(re.findall(r"^# TYPE (\S+) (\S+)$", body, re.MULTILINE))
    text = (DOCS / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert documented == told


def test_health_and_what_there_is_not(server):
    assert ask(server, "/healthz")[::2] == (200, b"alive\n")
    status, headers, body = ask(server, "/readyz")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {"ready": True, "reasons": []}
    status, headers, body = ask(server, "/healthz", "HEAD")
    assert (status, headers["content-length"], body) == (200, "6", b"")
    assert ask(server, "/")[0] == 404
    assert ask(server, "/metrics", "DELETE")[0] == 405
    assert ask(server, "/metrics?x=1")[0] == 200


def test_a_connection_takes_several_requests(server):
    connection = http.client.HTTPConnection(*endpoint(server), timeout=PATIENCE)
    for _ in range(3):
        connection.request("GET", "/healthz", body=b"ignored")
        assert connection.getresponse().read() == b"alive\n"
    connection.close()


def test_a_server_without_nats_is_not_ready_and_says_why(tmp_path):
    with Nats(tmp_path / "nats") as nats:
        config = {"http.listen": "127.0.0.1:0", "nats.servers": nats.url}
        with Server(tmp_path / "server", config, embedded=False) as server:
            assert ask(server, "/readyz")[0] == 200
            nats.stop()
            until(lambda: ask(server, "/readyz")[0] == 503)
            reasons = json.loads(ask(server, "/readyz")[2])["reasons"]
            assert any("connection to NATS is down" in reason for reason in reasons)
            assert ask(server, "/healthz")[0] == 200
            assert metrics(server)["liftbridge_ready{}"] == 0
            nats.start()
            until(lambda: ask(server, "/readyz")[0] == 200)


def raw(server: Server, data: bytes) -> bytes:
    """What comes back for some bytes until the server closes."""
    with socket.create_connection(endpoint(server), timeout=PATIENCE) as peer:
        peer.sendall(data)
        answer = b""
        while chunk := peer.recv(65536):
            answer += chunk
        return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"\x00\xff\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\n\r\n", b"400"), (b"GET /" + b"x" * 20_000, b"431")],
)
def test_garbage_gets_an_error_and_costs_its_connection(server, data, status):
    assert raw(server, data).split(b" ")[1] == status
    assert ask(server, "/healthz")[0] == 200


def test_too_many_connections_are_closed_and_room_comes_back(server):
    address = endpoint(server)
    held = [socket.create_connection(address, timeout=PATIENCE) for _ in range(32)]
    for peer in held:
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 200")
    # Sooner than a connection that says nothing is closed.
    with socket.create_connection(address, timeout=10) as extra:
        assert extra.recv(1) == b""
    for peer in held:
        peer.close()
    until(lambda: answers(server))


def answers(server: Server) -> bool:
    try:
        return ask(server, "/healthz")[0] == 200
    except (ConnectionError, http.client.HTTPException):
        return False


def test_without_the_key_nothing_listens(tmp_path):
    with Server(tmp_path / "server") as server:
        create(server.api(), "orders")
        assert "metrics and health" not in server.log


def test_a_port_that_is_taken_is_a_start_up_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(tmp_path / "server", {"http.listen": f"127.0.0.1:{taken.getsockname()[1]}"})
        server.spawn()
        assert server.wait_end() == 1
        assert "choose another with the key http.listen" in server.log
        server.close()


def test_a_server_that_stops_says_that_it_is_not_ready(tmp_path):
    with Nats(tmp_path / "nats") as nats:
        config = {"http.listen": "127.0.0.1:0", "nats.servers": nats.url}
        with Server(tmp_path / "server", config, embedded=False) as server:
            api = server.api()
            create(api, "orders")
            assert nats.process is not None
            freeze(nats.process.pid)
            # It waits a second for this call, which gets no ack.
            waiting = api.Publish.future(api_pb2.PublishRequest(stream="orders"), timeout=PATIENCE)
            until(lambda: metrics(server)["liftbridge_grpc_connections{}"] == 1)
            address = endpoint(server)
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            server.wait_log("stopping")
            connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            assert response.status == 503
            assert "the server is stopping" in json.loads(response.read())["reasons"]
            connection.close()
            waiting.cancel()
            nats.process.send_signal(signal.SIGCONT)
            assert server.wait_end() == 0
