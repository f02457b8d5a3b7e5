"""Several real servers as one cluster: streams placed, replicated and led on, whichever server is asked."""

from __future__ import annotations

import contextlib

import grpc
import pytest
from calls import PATIENCE, create, publish, publish_many, refused
from servers import Servers, described, metadata, until, values

from liftbridge.proto import api_pb2


@pytest.fixture
def three(tmp_path):
    """Three servers."""
    with Servers(tmp_path, 3) as servers:
        yield servers


def acked(api, stream: str, value: bytes) -> int:
    """The offset of a message that is committed; tried until it is, as its sender would."""

    def once() -> int | None:
        with contextlib.suppress(grpc.RpcError):
            request = api_pb2.PublishRequest(stream=stream, value=value, ackPolicy=api_pb2.ALL)
            return api.Publish(request, timeout=1).ack.offset + 1
        return None

    return until(once) - 1


def test_it_makes_no_difference_which_server_is_asked(three):
    """Streams are made, published to and removed through any server; each says the same of them."""
    first, second, third = (server.api() for server in three.all)
    create(first, "orders", partitions=6)
    for api in (second, third):
        until(lambda api=api: metadata(api, "orders").streamMetadata[0].name == "orders")
    leaders = {described(second, "orders", number).leader for number in range(6)}
    assert leaders == {"s0", "s1", "s2"}
    for number in range(6):
        ack = publish(third, "orders", b"%d" % number, partition=number, ackPolicy=api_pb2.ALL)
        assert ack.offset == 0
        leader = three.named(described(first, "orders", number).leader)
        assert values(leader.api(), "orders", 1, number) == [b"%d" % number]
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        create(second, "orders")
    third.DeleteStream(api_pb2.DeleteStreamRequest(name="orders"), timeout=PATIENCE)
    until(lambda: not metadata(first).streamMetadata and not metadata(second).streamMetadata)


def test_every_server_tells_of_all(three):
    addresses = {(f"s{number}", "127.0.0.1", server.grpc_port) for number, server in enumerate(three.all)}
    for server in three.all:
        assert {(each.id, each.host, each.port) for each in metadata(server.api()).brokers} == addresses


def test_who_does_not_lead_says_who_does(three):
    api = three.any_api()
    create(api, "orders", replicationFactor=3)
    leader = three.leader_of("orders")
    for server in three.all:
        if server is not leader:
            call = server.api().Subscribe(api_pb2.SubscribeRequest(stream="orders"), timeout=PATIENCE)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "Server not partition leader"):
                next(call)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, f"'{leader.server_id}' leads"):
                server.api().FetchPartitionMetadata(
                    api_pb2.FetchPartitionMetadataRequest(stream="orders"), timeout=PATIENCE
                )


@pytest.mark.parametrize("policy", ["always", "never"])
def test_replicas_get_everything(three, policy):
    """What is acked ALL is on every in-sync replica, in the same order."""
    create(three.any_api(), "orders", replicationFactor=3, syncPolicy=policy)
    wanted = [b"%d" % number for number in range(2000)]
    publish_many(three[1].api(), "orders", wanted, ackPolicy=api_pb2.ALL)
    for _ in three.all:
        leader = three.leader_of("orders")
        assert values(leader.api(), "orders", len(wanted)) == wanted
        if len(list(three.running())) == 2:
            break
        leader.kill()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_another_leads_when_the_leader_ends_and_nothing_acked_is_lost(three, end):
    create(three.any_api(), "orders", replicationFactor=3)
    sent = []
    for number in range(3):
        for _ in range(20):
            sent.append(b"%d-%d" % (number, len(sent)))
            acked(next(three.running()).api(), "orders", sent[-1])
        leader = three.leader_of("orders")
        getattr(leader, end)()
        successor = three.leader_of("orders")
        sent.append(b"after %d" % number)
        acked(successor.api(), "orders", sent[-1])
        leader.start()
        until(lambda: len(described(three.any_api(), "orders").isr) == 3)
    found = values(three.leader_of("orders").api(), "orders", len(sent))
    # One whose ack was lost with its leader may be there twice.
    assert list(dict.fromkeys(found)) == sent[: len(dict.fromkeys(found))]
    assert set(found) <= set(sent)


def test_without_a_majority_nothing_is_agreed_on_and_with_it_again(three):
    create(three.any_api(), "orders", replicationFactor=3)
    for server in three.all[1:]:
        server.kill()
    with refused(grpc.StatusCode.INTERNAL, "no known metadata leader"):
        create(three[0].api(), "more")
    three[1].start()
    until(lambda: create(three[0].api(), "again"))
    assert acked(three[0].api(), "orders", b"x") >= 0


def test_all_come_back_with_all_that_was_acked(three):
    create(three.any_api(), "orders", replicationFactor=3)
    wanted = [b"%d" % number for number in range(100)]
    publish_many(three.any_api(), "orders", wanted, ackPolicy=api_pb2.ALL)
    for server in three.all:
        server.kill()
    for server in three.all:
        server.spawn()
    for server in three.all:
        server.wait_up()
    leader = three.leader_of("orders")
    assert values(leader.api(), "orders", 100) == wanted
    assert acked(leader.api(), "orders", b"more") == 100
    until(lambda: len(described(leader.api(), "orders").isr) == 3)


def test_one_that_comes_back_has_what_it_missed(three):
    create(three.any_api(), "orders", replicationFactor=3)
    leader = three.leader_of("orders")
    absent = next(server for server in three.all if server is not leader)
    absent.kill()
    until(lambda: len(described(leader.api(), "orders").isr) == 2)
    wanted = [b"%d" % number * 100 for number in range(5000)]
    publish_many(leader.api(), "orders", wanted, ackPolicy=api_pb2.ALL)
    absent.start()
    until(lambda: len(described(leader.api(), "orders").isr) == 3)
    for server in three.all:
        if server is not absent:
            server.kill()
    # Alone it decides nothing; what it has is in its log.
    (directory,) = (absent.data_dir / "streams").iterdir()
    absent.kill()
    assert sum(each.stat().st_size for each in (directory / "0").glob("*.log")) > 5000 * 100


def test_a_replica_may_be_read_by_whoever_says_so(three):
    create(three.any_api(), "orders", replicationFactor=2)
    wanted = [b"%d" % number for number in range(100)]
    publish_many(three.any_api(), "orders", wanted, ackPolicy=api_pb2.ALL)
    isr = described(three.any_api(), "orders").isr
    for server in three.all:
        request = api_pb2.SubscribeRequest(stream="orders", readISRReplica=True, startPosition="EARLIEST")
        if server.server_id in isr:
            assert values(server.api(), "orders", 100, readISRReplica=True) == wanted
            request.startPosition, request.reverse = api_pb2.LATEST, True
            call = server.api().Subscribe(request, timeout=PATIENCE)
            next(call)
            assert [next(call).value for _ in wanted] == wanted[::-1]
            call.cancel()
        else:
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "Server not partition leader"):
                next(server.api().Subscribe(request, timeout=PATIENCE))
    follower = next(three.named(each) for each in isr if three.named(each) is not three.leader_of("orders"))
    group = api_pb2.Consumer(groupId="g", consumerId="c")
    request = api_pb2.SubscribeRequest(stream="orders", readISRReplica=True, consumer=group)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        next(follower.api().Subscribe(request, timeout=PATIENCE))


def test_who_reads_a_replica_follows_what_is_committed(three):
    create(three.any_api(), "orders", replicationFactor=3)
    leader = three.leader_of("orders")
    follower = next(server for server in three.all if server is not leader)
    call = follower.api().Subscribe(
        api_pb2.SubscribeRequest(stream="orders", readISRReplica=True, startPosition="EARLIEST"),
        timeout=PATIENCE,
    )
    next(call)
    for number in range(20):
        acked(leader.api(), "orders", b"%d" % number)
        assert next(call).value == b"%d" % number
    call.cancel()
