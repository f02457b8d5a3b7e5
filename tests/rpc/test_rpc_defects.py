"""The defects of purerpc's own server, each shown on it and shown fixed on ours, by one scenario for both.

`both` runs a scenario first against our server, which must pass, then against purerpc's, which must not:
where that would wait for ever the wait is bounded, and running into the bound is the defect.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hyperframe.frame import DataFrame, PingFrame, RstStreamFrame, WindowUpdateFrame
from rpc_support import LARGE, Api, RawClient, length_prefixed, serve, serve_plain, uses_purerpc

from liftbridge.proto import api_grpc, api_pb2
from liftbridge.rpc.errors import leaves

MIB = 1 << 20
BOUND = 0.5  # seconds the plain server is given to show that it does not do what it should
HUGE_WINDOW = (1 << 31) - 1 - 65_535


class Defect(Exception):  # noqa: N818
    """A scenario's expectation that is not met."""


def expect(condition: bool, text: str) -> None:
    if not condition:
        raise Defect(text)


class World:
    """One server under test with its servicer, and raw clients of it."""

    def __init__(self, api: Any, plain: bool) -> None:
        self.api = api
        self.state = getattr(api, "state", None)
        self.port = 0
        self.plain = plain
        self.clients: list[RawClient] = []
        self.server_ended = trio.Event()

    async def run_server(self, task_status: Any) -> None:
        """Run the server until it ends or the scenario does."""
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                if self.plain:
                    self.port = await serve_plain(nursery, self.api)
                else:
                    self.server, self.port = await serve(nursery, self.api)
                task_status.started()
        except BaseException as error:
            if [type(leaf) for leaf in leaves(error)] != [SystemExit]:
                raise
        finally:
            self.server_ended.set()

    async def stop(self) -> None:
        """End the server as orderly as it can."""
        if self.plain:
            self.nursery.cancel_scope.cancel()
        else:
            await self.server.shutdown(5)

    async def connect(self, **options: Any) -> RawClient:
        client = await RawClient.connect(self.port, **options)
        self.clients.append(client)
        return client

    @asynccontextmanager
    async def soon(self, what: str) -> AsyncIterator[None]:
        """What the body waits for comes, or is the defect; only the plain server is given little time."""
        with trio.CancelScope() as scope:
            if self.plain:
                scope.deadline = trio.current_time() + BOUND
            yield
        expect(not scope.cancelled_caught, what)


SCENARIOS: dict[str, Any] = {}


def scenario(function: Any) -> Any:
    SCENARIOS[function.__name__] = function
    return function


@scenario
async def reset_cancels_the_handler(world: World) -> None:
    client = await world.connect()
    stream_id = await client.call("Subscribe", api_pb2.SubscribeRequest(stream="idle").SerializeToString())
    await world.state.until(lambda state: state.running == 1)
    await client.send(RstStreamFrame(stream_id, error_code=8))
    async with world.soon("the handler runs on after RST_STREAM"):
        await world.state.until(lambda state: state.running == 0)
    expect(world.state.ended == ["Subscribe cancelled"], "the handler was not cancelled")


@scenario
async def slow_reader_blocks_its_handler(world: World) -> None:
    client = await world.connect(settings={4: (1 << 31) - 1}, window=HUGE_WINDOW)
    await client.call("Subscribe", api_pb2.SubscribeRequest(stream="flood").SerializeToString())
    await world.state.until(lambda state: state.sent or state.ended)
    await trio.testing.wait_all_tasks_blocked(0.1)
    sent = world.state.sent
    expect(sent < 12 * MIB, f"{sent} bytes were produced for a client that reads nothing")


@scenario
async def busy_handler_lets_others_run(world: World) -> None:
    client = await world.connect(settings={4: (1 << 31) - 1}, window=HUGE_WINDOW)
    other = await world.connect()
    api = world.api
    await client.call("Subscribe", b"")
    await api.began.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.read)
        await other.call("Publish", b"")
        await api.answered.wait()
        nursery.cancel_scope.cancel()
    expect(api.messages_before_answer < api.most, "no other call was answered until the handler had ended")


@scenario
async def stalled_handler_bounds_what_is_received(world: World) -> None:
    client = await world.connect()
    request = api_pb2.PublishRequest(stream="stall", value=b"x" * 10_000).SerializeToString()
    head = client.headers("/proto.API/PublishAsync")
    await client.send(head)
    chunk = length_prefixed(request)
    sent = 0
    connection_window = stream_window = 65_535

    async def watch_windows() -> None:
        nonlocal connection_window, stream_window
        while (frame := await client.read()) is not None:
            if isinstance(frame, WindowUpdateFrame) and frame.stream_id == 0:
                connection_window += frame.window_increment
            elif isinstance(frame, WindowUpdateFrame):
                stream_window += frame.window_increment
            elif type(frame).__name__ == "SettingsFrame" and 4 in frame.settings:
                stream_window += frame.settings[4] - 65_535

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_windows)
        while min(connection_window, stream_window) - sent > len(chunk) and sent < 40 * MIB:
            await client.send(DataFrame(head.stream_id, chunk))
            sent += len(chunk)
            await trio.sleep(0)
        nursery.cancel_scope.cancel()
    expect(sent < 8 * MIB, f"the server took {sent} bytes that no handler had asked for")


@scenario
async def exit_leaves_a_handler(world: World) -> None:
    """What is not an Exception (Cancelled, KeyboardInterrupt, SystemExit) belongs to the program."""
    client = await world.connect()
    await client.call("Publish", api_pb2.PublishRequest(stream="exit").SerializeToString())
    async with world.soon("SystemExit was taken for a failed call"):
        await world.server_ended.wait()


@scenario
async def messages_share_data_frames(world: World) -> None:
    client = await world.connect(settings={4: (1 << 31) - 1}, window=HUGE_WINDOW)
    stream = "messages" if world.plain else "frames"  # the same messages
    stream_id = await client.call("Subscribe", api_pb2.SubscribeRequest(stream=stream).SerializeToString())
    await client.trailers(stream_id)
    frames = [len(frame.data) for frame in client.frames if isinstance(frame, DataFrame) and frame.data]
    expect(sum(frames) == 10_000 * len(length_prefixed(LARGE)), "not all of the messages")
    expect(len(frames) < 1000, f"{len(frames)} DATA frames for 10000 messages")


@scenario
async def deadline_ends_the_call(world: World) -> None:
    client = await world.connect()
    request = api_pb2.PublishRequest(stream="sleep").SerializeToString()
    stream_id = await client.call("Publish", request, grpc_timeout="10m")
    async with world.soon("the deadline passes unheeded"):
        trailers = await client.trailers(stream_id)
        expect(trailers["grpc-status"] == "4", "another status than DEADLINE_EXCEEDED")


@scenario
async def request_without_message_costs_one_call(world: World) -> None:
    client = await world.connect()
    head = client.headers("/proto.API/Publish", end=True)
    await client.send(head)
    async with world.soon("no answer"):
        try:
            trailers = await client.trailers(head.stream_id)
        except AssertionError:
            raise Defect("the connection is broken") from None
    expect(trailers["grpc-status"] == "13", "another status than INTERNAL")
    expect(await client.alive(), "the connection is broken")


@scenario
async def foreign_content_type_costs_one_call(world: World) -> None:
    client = await world.connect()
    stream_id = await client.call("Publish", b"", content_type="text/plain")
    async with world.soon("no answer"):
        try:
            response = await client.trailers(stream_id)
        except AssertionError:
            raise Defect("the connection is broken") from None
    expect(response[":status"] == "415", "another HTTP status than 415")
    expect(await client.alive(), "the connection is broken")


@scenario
async def defect_of_a_handler_tells_no_secret(world: World) -> None:
    client = await world.connect()
    stream_id = await client.call("Publish", api_pb2.PublishRequest(stream="defect").SerializeToString())
    trailers = await client.trailers(stream_id)
    expect(trailers["grpc-status"] == "13", "another status than INTERNAL")
    expect("secret" not in trailers["grpc-message"], "the text of the exception reaches the client")


@scenario
async def flood_of_pings_ends_the_connection(world: World) -> None:
    client = await world.connect()
    async with world.soon("20000 PINGs are answered as if there were nothing else to do"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.flood, PingFrame(0, opaque_data=b"12345678").serialize() * 100, 200)
            goaway = await client.goaway()
            nursery.cancel_scope.cancel()
        expect(goaway.error_code == 11, "another error than ENHANCE_YOUR_CALM")
    expect(await (await world.connect()).alive(), "the server is gone")


@scenario
async def rapid_reset_ends_the_connection(world: World) -> None:
    client = await world.connect()
    request = api_pb2.PublishRequest(stream="sleep").SerializeToString()
    async with world.soon("3000 streams opened and reset at once, and the connection goes on"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.open_and_reset, request, 3000)
            goaway = await client.goaway()
            nursery.cancel_scope.cancel()
        expect(goaway.error_code == 11, "another error than ENHANCE_YOUR_CALM")
    expect(await (await world.connect()).alive(), "the server is gone")


@scenario
async def context_of_the_call_is_known(world: World) -> None:
    client = await world.connect()
    await client.trailers(await client.call("Publish", b""))
    host, port = client.stream.socket.getsockname()
    context = world.state.contexts[0]
    expect(context is not None, "the handler knows nothing of its client")
    expect(context.peer == f"ipv4:{host}:{port}", "another peer")


@scenario
async def only_the_given_address_is_served(world: World) -> None:
    if sys.platform != "linux":
        pytest.skip("other systems have no 127.0.0.2")
    try:
        stream = await trio.open_tcp_stream("127.0.0.2", world.port)
    except OSError:
        return
    await stream.aclose()
    raise Defect("it listens on every address")


@scenario
async def shutdown_is_announced(world: World) -> None:
    client = await world.connect()
    stream_id = await client.call("Subscribe", api_pb2.SubscribeRequest(stream="idle").SerializeToString())
    await world.state.until(lambda state: state.running == 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.stop)
        async with world.soon("neither GOAWAY nor status"):
            await client.goaway()
            trailers = await client.trailers(stream_id)
        expect(trailers["grpc-status"] == "14", "another status than UNAVAILABLE")
        await trio.aclose_forcefully(client.stream)


class BusyApi(api_grpc.APIServicer):
    """Subscribe sends without a wait of its own; Publish notes how far that has come."""

    most = 20_000

    def __init__(self) -> None:
        self.began = trio.Event()
        self.answered = trio.Event()
        self.messages = 0
        self.messages_before_answer = 0

    async def Subscribe(self, input_message: Any) -> Any:
        self.began.set()
        for _ in range(self.most):
            yield api_pb2.Message()
            self.messages += 1

    async def Publish(self, input_message: Any) -> Any:
        self.messages_before_answer = self.messages
        self.answered.set()
        return api_pb2.PublishResponse()


async def play(name: str, plain: bool) -> None:
    """Run one scenario against one server."""
    world = World(BusyApi() if name.startswith("busy") else Api(), plain=plain)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.run_server)
        try:
            await SCENARIOS[name](world)
        finally:
            for client in world.clients:
                client.stream.socket.close()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", SCENARIOS)
async def test_fixed(name):
    await play(name, plain=False)


@pytest.mark.parametrize("name", SCENARIOS)
@uses_purerpc
async def test_a_defect_of_plain_purerpc(name):
    with trio.fail_after(60), pytest.RaisesGroup(Defect, flatten_subgroups=True):
        await play(name, plain=True)
