"""Messages that expire, seen from outside: by every way to publish, and by subscribers who share reads."""

import time

import grpc
import pytest
from calls import NatsClient, create, drain, publish, subscribe
from harness import Server

from liftbridge.proto.api_pb2 import PublishRequest

PATIENCE = 20


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path / "server") as server:
        yield server


def values(api, **options):
    call = subscribe(api, "orders", startPosition="EARLIEST", stopPosition="STOP_LATEST", **options)
    messages, status = drain(call)
    assert status == grpc.StatusCode.RESOURCE_EXHAUSTED
    return [message.value for message in messages]


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_expired_messages_are_not_delivered_any_more(server):
    api = server.api()
    create(api, "orders", subject="orders")
    publish(api, "orders", b"stays")
    client = NatsClient(server.nats_url)
    client.call(client.connection.publish("orders", b"by NATS", headers={"Nats-TTL": "2s"}))
    client.call(client.connection.flush())
    request = PublishRequest(stream="orders", value=b"by gRPC", headers={"Nats-TTL": b"2s"})
    assert api.Publish(request, timeout=PATIENCE).ack.offset == 2
    # Another subscriber of the partition, so that reads are shared.
    other = subscribe(api, "orders", startPosition="EARLIEST")
    assert [next(other).value for _ in range(3)] == [b"stays", b"by NATS", b"by gRPC"]
    until(lambda: values(api) == [b"stays"])
    publish(api, "orders", b"later")
    assert values(api) == [b"stays", b"later"]
    assert next(other).offset == 3
    call = subscribe(api, "orders", startPosition="LATEST", stopPosition="STOP_OFFSET", reverse=True)
    messages, _ = drain(call)
    assert [message.offset for message in messages] == [3, 0]
    client.close()
    assert server.stop() == 0


def test_a_ttl_that_is_none_is_refused(server):
    api = server.api()
    create(api, "orders", subject="orders")
    request = PublishRequest(stream="orders", value=b"x", headers={"Nats-TTL": b"soon"})
    with pytest.raises(grpc.RpcError) as caught:
        api.Publish(request, timeout=PATIENCE)
    assert caught.value.code() == grpc.StatusCode.UNKNOWN
    assert publish(api, "orders", b"x").offset == 0
