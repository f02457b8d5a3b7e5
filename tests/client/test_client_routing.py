"""Which server a call goes to and how often it is made, and where a subscription goes on."""

from __future__ import annotations

import grpc
import pytest
from client_support import both_backends, run
from cluster import STREAM, Cluster

import liftbridge.client as lc

OPTIONS = lc.Options(timeout=10, retry_timeout=10, retry_pause=0.01)


@pytest.fixture
def cluster():
    with Cluster() as running:
        yield running


@both_backends
def test_a_call_for_the_leader_follows_it(cluster, backend):
    async def scenario():
        async with lc.connect(*cluster.addresses, options=OPTIONS) as client:
            assert (await client.partition(STREAM)).leader == "a"
            cluster.leader = "b"
            assert (await client.partition(STREAM)).leader == "b"
            assert [server for server, _ in cluster.calls] == ["a", "a", "b"]

    run(backend, scenario)


@both_backends
def test_a_subscription_finds_the_leader_that_has_moved(cluster, backend):
    async def scenario():
        async with lc.connect(*cluster.addresses, options=OPTIONS) as client:
            await client.stream(STREAM)
            cluster.leader = "b"
            async with client.subscribe(STREAM, start=7, stop=9) as messages:
                assert [m.offset async for m in messages] == [7, 8, 9]
            assert [server for server, _ in cluster.calls] == ["a", "b"]

    run(backend, scenario)


@both_backends
@pytest.mark.parametrize(
    ("start", "stop", "reverse", "expected"),
    [
        (0, 9, False, range(10)),
        (9, None, True, range(9, -1, -1)),
        (9, 2, True, range(9, 1, -1)),
    ],
)
def test_a_subscription_goes_on_at_the_next_leader_in_both_directions(
    cluster, backend, start, stop, reverse, expected
):
    cluster.falls_after, cluster.next_leader = 4, "b"

    async def scenario():
        async with lc.connect(*cluster.addresses, options=OPTIONS) as client:
            async with client.subscribe(STREAM, start=start, stop=stop, reverse=reverse) as messages:
                assert [m.offset async for m in messages] == list(expected)
                assert messages.faults == 1
            assert cluster.calls[-1] == ("b", "Subscribe")

    run(backend, scenario)


@both_backends
@pytest.mark.parametrize(
    ("start", "stop", "reverse", "last"), [(0, 5, False, 5), (9, None, True, 0), (9, 3, True, 3)]
)
def test_a_subscription_that_has_everything_is_at_its_end_whatever_is_lost(
    cluster, backend, start, stop, reverse, last
):
    cluster.falls_after = last

    async def scenario():
        async with lc.connect(*cluster.addresses, options=OPTIONS) as client:
            async with client.subscribe(STREAM, start=start, stop=stop, reverse=reverse) as messages:
                assert [m.offset async for m in messages][-1] == last
            assert [method for _, method in cluster.calls] == ["Subscribe"]

    run(backend, scenario)


@both_backends
def test_an_in_sync_replica_is_read(cluster, backend):
    cluster.in_sync = ["b"]

    async def scenario():
        async with lc.connect(*cluster.addresses, options=OPTIONS) as client:
            async with client.subscribe(STREAM, start=8, stop=9, read_replica=True) as messages:
                assert [m.offset async for m in messages] == [8, 9]
            assert cluster.calls == [("b", "Subscribe")]

    run(backend, scenario)


@both_backends
def test_a_call_that_is_refused_is_made_once(cluster, backend):
    for server in cluster.nodes:
        cluster.refusals[server, "DeleteStream"] = grpc.StatusCode.PERMISSION_DENIED

    async def scenario():
        async with lc.connect(*cluster.addresses, options=OPTIONS) as client:
            with pytest.raises(lc.PermissionDeniedError):
                await client.delete_stream(STREAM)
            assert len(cluster.calls) == 1

    run(backend, scenario)


@both_backends
def test_a_call_goes_to_another_server_when_one_is_away(cluster, backend):
    cluster.refusals["a", "DeleteStream"] = grpc.StatusCode.UNAVAILABLE

    async def scenario():
        async with lc.connect(*cluster.addresses, options=OPTIONS) as client:
            await client.delete_stream(STREAM)
            assert [server for server, _ in cluster.calls] == ["a", "b"]

    run(backend, scenario)
