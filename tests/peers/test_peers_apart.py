"""Links and clients on one port, apart: neither has the other's rights, nor what is counted of the other."""

from __future__ import annotations

import pytest
import trio
from peers_support import Node, greet, linked, net, own, stranger

from liftbridge.broker.peers.model import Purpose
from liftbridge.broker.peers.pipe import SERVICE
from liftbridge.client.connection import message_frame, open_connection
from liftbridge.client.errors import RpcError, StatusCode, UnavailableError
from liftbridge.client.options import Options
from liftbridge.rpc import Limits, rpc_error
from liftbridge.rpc import StatusCode as ServerStatus
from liftbridge.rpc import server as rpc_server


async def fetch(node):
    """Ask the API of a server, as a client does."""
    host, port = node.address
    connection = await open_connection(f"{host}:{port}", None, Options())
    failed = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            await connection.ready()
            answer = await connection.unary("FetchMetadata", b"", 5)
        except RpcError as error:
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return answer


def refuse(context, message, end):
    raise rpc_error(ServerStatus.PERMISSION_DENIED, "clients have no business here")


async def test_the_policy_for_clients_is_not_asked_for_links():
    asked = []

    def guard(context, message, end):
        asked.append(context.method)
        return refuse(context, message, end)

    async with net() as made:
        one, other = await made.add(Node(own(1), guard=guard)), await made.add(Node(own(2), guard=guard))
        await linked(one, other)
        with pytest.raises(RpcError) as caught:
            await fetch(one)
        assert caught.value.code is StatusCode.PERMISSION_DENIED
        assert asked == ["/proto.API/FetchMetadata"]


async def test_a_link_gives_no_right_to_the_api():
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, pipe):
            connection = pipe._connection
            assert await connection.unary("FetchMetadata", b"", 5) == b""
            await greet(messages, Purpose.CONTROL, own(1), node)
            while not node.peers.linked:
                await trio.sleep(0.01)
            with pytest.raises(RpcError, match="for other servers of the cluster only"):
                await connection.unary("FetchMetadata", b"", 5)
            with await connection.call(f"/{SERVICE}/{Purpose.CONTROL.value}") as call:
                await call.send(message_frame(b""))


async def test_links_are_not_counted_among_the_connections_of_clients():
    async with net() as made:
        limits = Limits(max_connections=1)
        one, other = await made.add(Node(own(1), limits=limits)), await made.add(Node(own(2), limits=limits))
        await linked(one, other)
        while one.server.connections or other.server.connections:
            await trio.sleep(0.01)
        assert await fetch(one) == await fetch(other) == b""


async def test_links_get_in_while_clients_have_taken_all_places():
    async with net() as made:
        node = await made.add(Node(own(2), limits=Limits(max_connections=1)), dials=False)
        async with stranger(node, Purpose.CONTROL):  # takes the place, and is no link
            other = await made.add(Node(own(1)))
            await linked(other, node)
            with pytest.raises(UnavailableError, match="for other servers of the cluster only"):
                await fetch(node)


async def test_the_reserve_for_links_is_bounded_and_for_a_while(monkeypatch):
    monkeypatch.setattr(rpc_server, "_RESERVED", 2)
    monkeypatch.setattr(rpc_server, "_RESERVED_SECONDS", 0.2)
    async with net() as made:
        node = await made.add(Node(own(2), limits=Limits(max_connections=1)), dials=False)
        async with stranger(node, Purpose.CONTROL):
            streams = [await trio.open_tcp_stream(*node.address) for _ in range(3)]
            with trio.fail_after(5):
                for stream in streams:
                    while await stream.receive_some(1000):
                        pass
                    await stream.aclose()
            assert node.server.refused == 1
            other = await made.add(Node(own(1)))
            await linked(other, node)


async def test_what_a_link_holds_is_not_counted_among_what_clients_hold():
    async with net() as made:
        node = await made.add(Node(own(2)), dials=False)
        async with stranger(node, Purpose.CONTROL) as (messages, pipe):
            await greet(messages, Purpose.CONTROL, own(1), node)
            while not node.peers.linked:
                await trio.sleep(0.01)
            await pipe.send(b"\0\0\0\xff\xff" + bytes(1000))  # the rest never comes
            await trio.sleep(0.05)
            assert node.server.bytes_held == node.server.bytes_unsent == 0


async def test_small_messages_of_clients_do_not_make_links_impossible():
    """`limits.request.max.bytes` is about clients."""
    async with net() as made:
        limits = Limits(max_request_message=1, max_partial_bytes=1)
        one, other = await made.add(Node(own(1), limits=limits)), await made.add(Node(own(2), limits=limits))
        await linked(one, other)
        assert await one.peers.ask(2, "large", bytes(3_000_000)) == bytes(3_000_000)
        assert await other.peers.ask(1, "large", bytes(3_000_000)) == bytes(3_000_000)


async def test_links_end_when_the_server_stops_in_order():
    async with net() as made:
        one, other = await made.add(Node(own(1))), await made.add(Node(own(2)))
        await linked(one, other)
        with trio.fail_after(5):
            await other.server.shutdown(1)
        while one.peers.linked:
            await trio.sleep(0.01)
