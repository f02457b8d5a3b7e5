"""Attacks by name: the attacker is cut off or refused, and a client on another connection never notices.

docs/attacks.md has a row for each of them.
"""

import ssl
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trustme
from hpack import Encoder
from rpc_support import PREFACE, Api, RawClient, length_prefixed, serve

from liftbridge.proto import api_pb2
from liftbridge.rpc import Limits
from liftbridge.rpc.limits import Meter

KIB, MIB = 1 << 10, 1 << 20
ENHANCE_YOUR_CALM = 11
IDLE = api_pb2.SubscribeRequest(stream="idle").SerializeToString()
SMALL = Limits(
    max_concurrent_streams=20,
    stream_window=64 * KIB,
    connection_window=256 * KIB,
    max_partial_bytes=256 * KIB,
    max_resets=50,
    max_control_frames=200,
    abuse_period=3600.0,  # longer than any test: what is counted is never forgotten
)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def open_call(stream_id: int, method: str = "PublishAsync", *, end: bool = False, extra=()) -> bytes:
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/proto.API/{method}"),
        ("content-type", "application/grpc"),
        *extra,
    ]
    return frame(1, 5 if end else 4, stream_id, Encoder().encode(fields))


def rst(stream_id: int) -> bytes:
    return frame(3, 0, stream_id, b"\0\0\0\x08")


@asynccontextmanager
async def undisturbed(port: int):
    """Another client: it has a subscription that goes on, and makes calls all the time."""
    client = await RawClient.connect(port)
    calls = 0
    stop = False

    async def work() -> None:
        nonlocal calls
        while not stop:
            assert await client.alive()
            calls += 1

    try:
        subscription = await client.call("Subscribe", IDLE)
        assert await client.alive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            yield client
            seen = calls
            while calls < seen + 5:
                await trio.sleep(0.001)
            stop = True
        assert await client.alive()
        ended = [f for f in client.frames if f.stream_id == subscription and "END_STREAM" in f.flags]
        assert not ended, "its subscription has ended"
    finally:
        await trio.aclose_forcefully(client.stream)


async def flood(client: RawClient, data: bytes) -> None:
    """Send all of it, as long as the server takes it."""
    with suppress(trio.BrokenResourceError):
        await client.stream.send_all(data)


FLOODS = {
    "rapid reset": b"".join(open_call(n, "Publish") + rst(n) for n in range(1, 400, 2)),
    "resets made by the server, by a window update of 0": b"".join(
        open_call(n, "Publish") + frame(8, 0, n, bytes(4)) for n in range(1, 400, 2)
    ),
    "resets made by the server, by DATA after the end": b"".join(
        open_call(n, "Publish", end=True) + frame(0, 0, n, b"x") for n in range(1, 400, 2)
    ),
    "PING": frame(6, 0, 0, b"12345678") * 500,
    "answers to PINGs that nobody sent": frame(6, 1, 0, b"12345678") * 500,
    "SETTINGS": frame(4, 0, 0, b"\0\4\0\1\0\0") * 500,
    "empty DATA": open_call(1) + frame(0, 0, 1) * 500,
    "DATA that is all padding": open_call(1) + frame(0, 8, 1, b"\x03\0\0\0") * 500,
    "PRIORITY": frame(2, 0, 1, bytes(4) + b"1") * 500,
    "frames of unknown types": frame(200, 0, 0, b"x") * 500,
    "GOAWAY": frame(7, 0, 0, bytes(8)) * 500,
    "WINDOW_UPDATE": frame(8, 0, 0, b"\0\1\0\0") * 500,
    "RST_STREAM for ended streams": open_call(1, "Publish") + rst(1) * 500,
    "CONTINUATION without end": frame(1, 0, 1) + frame(9, 0, 1) * 500,
    "CONTINUATION with bytes": frame(1, 0, 1) + frame(9, 0, 1, bytes(8000)) * 20,
    "header list bomb": frame(1, 5, 1, b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 60_000),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_frames_costs_the_connection(nursery, connect, name):
    server, port = await serve(nursery, Api(), limits=SMALL)
    async with undisturbed(port):
        attacker = await connect(port)
        await flood(attacker, FLOODS[name])
        goaway = await attacker.goaway()
        assert goaway.error_code == ENHANCE_YOUR_CALM, goaway.additional_data
        assert await attacker.read() is None
        await trio.aclose_forcefully(attacker.stream)
    while server.connections:
        await trio.sleep(0.001)
    assert server.bytes_held == server.bytes_unsent == 0


async def test_window_updates_by_a_byte_while_the_server_sends(nursery, connect):
    """Data dribble: each makes the server send a frame of one byte."""
    _, port = await serve(nursery, Api(), limits=SMALL)
    async with undisturbed(port):
        attacker = await connect(port, settings={4: 0})
        stream_id = await attacker.call(
            "Subscribe", api_pb2.SubscribeRequest(stream="messages").SerializeToString()
        )
        await flood(attacker, frame(8, 0, stream_id, b"\0\0\0\1") * 1000)
        assert (await attacker.goaway()).error_code == ENHANCE_YOUR_CALM


async def test_window_updates_by_a_byte_each_behind_the_byte_before(nursery, connect):
    """The same as slowly as it gets: no update comes before the server has sent what the last one allowed."""
    _, port = await serve(nursery, Api(), limits=SMALL)
    async with undisturbed(port):
        attacker = await connect(port, settings={4: 0})
        stream_id = await attacker.call(
            "Subscribe", api_pb2.SubscribeRequest(stream="messages").SerializeToString()
        )
        for _ in range(2 * SMALL.max_control_frames):
            await flood(attacker, frame(8, 0, stream_id, b"\0\0\0\1"))
            answer = await attacker.until(lambda read: read.type in (0, 7))
            if answer.type == 7:
                break
        assert answer.type == 7
        assert answer.error_code == ENHANCE_YOUR_CALM


async def test_a_client_that_gives_back_every_answer_at_once_is_no_attacker(nursery, connect):
    """Clients may open both windows by the few bytes of each answer; many small calls are not a flood."""
    _, port = await serve(nursery, Api(), limits=SMALL)
    client = await connect(port)
    request = api_pb2.PublishRequest(stream="echo").SerializeToString()
    for _ in range(300):
        stream_id = await client.call("Publish", request)
        await client.trailers(stream_id)
        await client.stream.send_all(frame(8, 0, stream_id, b"\0\0\0\5") + frame(8, 0, 0, b"\0\0\0\5"))
    assert await client.alive()


async def test_a_flood_under_cover_of_a_subscription(nursery, connect):
    """What the server sends forgives control frames, but not without end."""
    _, port = await serve(nursery, Api(), limits=SMALL)
    async with undisturbed(port):
        attacker = await connect(port, settings={4: (1 << 31) - 1}, window=1 << 30)
        request = api_pb2.SubscribeRequest(stream="flood frames").SerializeToString()
        await attacker.call("Subscribe", request)

        async def ask() -> None:
            while True:
                await flood(attacker, frame(6, 0, 0, b"12345678") * 100)
                await trio.sleep(0)

        async with trio.open_nursery() as asking:
            asking.start_soon(ask)
            assert (await attacker.goaway()).error_code == ENHANCE_YOUR_CALM
            asking.cancel_scope.cancel()


async def test_a_flood_between_calls(nursery, connect):
    """The same with calls: each answer forgives the control frames before it, but not without end."""
    _, port = await serve(nursery, Api(), limits=SMALL)
    async with undisturbed(port):
        attacker = await connect(port)
        for stream_id in range(1, 121, 2):
            await flood(attacker, frame(6, 0, 0, b"12345678") * 100 + open_call(stream_id, "Publish"))
            await flood(attacker, frame(0, 1, stream_id, length_prefixed(b"")))
            answer = await attacker.until(
                lambda read, wanted=stream_id: read.type == 7 or (read.stream_id, read.type) == (wanted, 0)
            )
            if answer.type == 7:
                break
        assert answer.type == 7
        assert answer.error_code == ENHANCE_YOUR_CALM


async def test_headers_that_are_too_large_cost_the_call(nursery, connect):
    _, port = await serve(nursery, Api(), limits=SMALL)
    async with undisturbed(port):
        attacker = await connect(port)
        stream_id = await attacker.call("Publish", b"", extra=[("x", "y" * 17 * KIB)])
        assert (await attacker.trailers(stream_id))["grpc-status"] == "8"
        assert await attacker.alive()


async def test_a_message_that_is_too_large_costs_the_call(nursery, connect):
    _, port = await serve(nursery, Api(), limits=SMALL)
    async with undisturbed(port):
        attacker = await connect(port)
        await flood(attacker, open_call(1, "Publish") + frame(0, 0, 1, b"\0\x7f\xff\xff\xff"))
        assert (await attacker.trailers(1))["grpc-status"] == "8"


async def test_calls_beyond_the_limit_of_a_connection_are_refused(nursery, connect):
    _, port = await serve(nursery, Api(), limits=SMALL)
    async with undisturbed(port):
        attacker = await connect(port)
        await flood(attacker, b"".join(open_call(n) for n in range(1, 43, 2)))
        assert await attacker.reset(41) == 7
        await attacker.ping()
        assert len([f for f in attacker.frames if f.type == 3]) == 1


async def bound_to(address: str, port: int) -> trio.SocketStream:
    """A connection from another address of this machine."""
    sock = trio.socket.socket()
    await sock.bind((address, 0))
    await sock.connect(("127.0.0.1", port))
    return trio.SocketStream(sock)


async def test_one_address_cannot_take_all_connections(nursery, connect):
    limits = Limits(max_connections=50, max_connections_per_address=5)
    server, port = await serve(nursery, Api(), limits=limits)
    streams = [await bound_to("127.0.0.2", port) for _ in range(20)]
    closed = 0
    for stream in streams:
        # The server greets those it takes, and closes the others at once.
        with suppress(trio.BrokenResourceError):
            if await stream.receive_some():
                continue
        closed += 1
    assert (closed, server.connections) == (15, 5)
    async with undisturbed(port):
        assert await (await connect(port)).alive()
    for stream in streams:
        await trio.aclose_forcefully(stream)
    while server.connections > 1:
        await trio.sleep(0.001)
    async with await bound_to("127.0.0.2", port) as again:
        assert await again.receive_some(), "room that was given back can be taken again"


@pytest.fixture(name="tls", scope="module")
def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


async def drip(stream: trio.SocketStream, data: bytes, seconds: float) -> float:
    """Send a byte now and then until the server has enough; returns the time that took."""
    start = trio.current_time()
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                while await stream.receive_some():
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            for byte in data:
                await stream.send_all(bytes((byte,)))
                await trio.sleep(seconds)
            await trio.sleep_forever()
    return trio.current_time() - start


SLOW = Limits(handshake_timeout=10, preface_timeout=10, request_timeout=60, keepalive_interval=30)
SLOW_STARTS = {
    "nothing": b"",
    "a preface byte by byte": PREFACE * 100,
}
OPENED = PREFACE + frame(4, 0, 0)
SLOW_FRAMES = {
    "a frame byte by byte": frame(6, 0, 0, b"12345678")[:-1],
    "a long DATA frame byte by byte": open_call(1) + frame(0, 0, 1, bytes(200 * KIB))[:1000],
    "HEADERS whose CONTINUATION never comes": frame(1, 0, 1, b"\x83"),
    "CONTINUATION one by one": frame(1, 0, 1) + frame(9, 0, 1) * 30,
}


@pytest.mark.parametrize("name", SLOW_STARTS)
@pytest.mark.parametrize("secured", [False, True])
async def test_a_slow_start_is_cut_off(nursery, tls, autojump_clock, name, secured):
    _, port = await serve(nursery, Api(), limits=SLOW, ssl_context=tls if secured else None)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        data = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(500) if secured and SLOW_STARTS[name] else b""
        assert await drip(stream, data if secured else SLOW_STARTS[name], 0.9) < 15


@pytest.mark.parametrize("name", SLOW_FRAMES)
async def test_a_frame_that_does_not_end_is_cut_off(nursery, autojump_clock, name):
    """Slowloris: each byte says that the client is alive, and none completes anything."""
    _, port = await serve(nursery, Api(), limits=SLOW)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(OPENED)
        assert 60 <= await drip(stream, SLOW_FRAMES[name], 5) < 300


async def test_a_request_that_does_not_come_costs_the_call(nursery, connect, autojump_clock):
    _, port = await serve(nursery, Api(), limits=Limits(request_timeout=60, keepalive_interval=1000))
    attacker = await connect(port)
    await flood(attacker, open_call(1, "Publish") + frame(0, 0, 1, b"\0\0\0\0\5ab"))
    trailers = await attacker.trailers(1)
    assert (trailers["grpc-status"], "was not there as a whole" in trailers["grpc-message"]) == ("8", True)
    assert trio.current_time() < 120


async def test_a_connection_without_calls_is_told_to_go(nursery, connect, autojump_clock):
    _, port = await serve(nursery, Api(), limits=Limits(idle_timeout=100, keepalive_interval=30))
    idle, busy = await connect(port), await connect(port)
    await busy.call("Subscribe", IDLE)

    async def answer(client: RawClient) -> None:
        """Say to every PING that one is there."""
        while (read := await client.read()) is not None:
            if read.type == 6 and "ACK" not in read.flags:
                await client.stream.send_all(frame(6, 1, 0, read.opaque_data))

    start = trio.current_time()
    async with trio.open_nursery() as answering:
        answering.start_soon(answer, busy)
        await answer(idle)
        answering.cancel_scope.cancel()
    assert 100 <= trio.current_time() - start < 200
    (goaway,) = [read for read in idle.frames if read.type == 7]
    assert goaway.error_code == 0
    assert not [read for read in busy.frames if read.type == 7]
    assert await busy.alive()


async def test_requests_that_nobody_handles_are_bounded_over_all_connections(nursery, connect):
    """Many connections, each within its own windows, that send what is not taken: the memory is bounded."""
    limits = Limits(max_held=2 * MIB, stream_window=512 * KIB, connection_window=4 * MIB)
    api = Api()
    server, port = await serve(nursery, api, limits=limits)
    request = api_pb2.PublishRequest(stream="stall", value=bytes(16_000)).SerializeToString()
    data = b"".join(frame(0, 0, 1, length_prefixed(request)) for _ in range(30))
    async with undisturbed(port):
        attackers = []
        highest = 0
        for _ in range(20):
            attacker = await connect(port)
            await flood(attacker, open_call(1) + data)
            await attacker.ping()
            attackers.append(attacker)
            highest = max(highest, server.bytes_held)
        assert MIB < highest < 4 * MIB  # without the bound: 20 times 480 KiB
        frames = [read for attacker in attackers for read in attacker.frames]
        refused = [read for read in frames if getattr(read, "fields", {}).get("grpc-status") == "8"]
        assert len(refused) >= 10
    for attacker in attackers:
        await trio.aclose_forcefully(attacker.stream)
    while server.bytes_held:
        await trio.sleep(0.001)


async def test_whoever_holds_little_is_refused_nothing_whatever_others_hold(nursery, connect):
    """Beyond the bound for all there is still a small share for each."""
    limits = Limits(max_held=256 * KIB)
    server, port = await serve(nursery, Api(), limits=limits)
    request = api_pb2.PublishRequest(stream="stall", value=bytes(15_000)).SerializeToString()
    data = b"".join(frame(0, 0, 1, length_prefixed(request)) for _ in range(4))
    async with undisturbed(port):
        clients = []
        for _ in range(10):
            client = await connect(port)
            await flood(client, open_call(1) + data)
            await client.ping()
            client.next_id = 3
            clients.append(client)
        assert server.bytes_held > limits.max_held
        assert not [read for client in clients for read in client.frames if read.stream_id]
        for client in clients:
            assert await client.alive()
    for client in clients:
        await trio.aclose_forcefully(client.stream)


async def test_many_clients_that_never_read_are_bounded_over_all_connections(nursery, connect):
    limits = Limits(max_unsent=2 * MIB)
    server, port = await serve(nursery, Api(), limits=limits)
    request = api_pb2.SubscribeRequest(stream="flood frames").SerializeToString()
    async with undisturbed(port):
        for _ in range(20):
            deaf = await connect(port, settings={4: (1 << 31) - 1}, window=1 << 30)
            await deaf.call("Subscribe", request)
        seen = -1
        while server.bytes_unsent != seen or seen <= MIB:  # until all of them are full
            seen = server.bytes_unsent
            await trio.sleep(0.05)
        assert seen < 5 * MIB  # without the bound: 20 times 1 MiB


async def test_resets_of_calls_that_have_not_begun_give_back_what_they_sent(nursery, connect):
    """The call's task finds it reset already; the window must be whole again all the same."""
    limits = Limits(connection_window=256 * KIB, stream_window=64 * KIB)
    server, port = await serve(nursery, Api(), limits=limits)
    client = await connect(port)
    for stream_id in range(1, 101, 2):
        await flood(client, open_call(stream_id) + frame(0, 0, stream_id, bytes(16_000)) + rst(stream_id))
        await client.ping()  # in all three times the connection's window
    assert server.bytes_held == 0
    client.next_id = 201
    assert await client.alive()


async def test_what_is_counted_is_forgotten_when_its_period_is_over(autojump_clock):
    meter = Meter(2, 10.0)
    for _ in range(3):
        assert [meter.exceeded() for _ in range(4)] == [False, False, True, True]
        await trio.sleep(10)
