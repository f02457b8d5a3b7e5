"""Unary calls that are served without a task: when they are, how they end, and what stays as it was."""

import pytest
import trio
import trio.testing
from hyperframe.frame import DataFrame, RstStreamFrame, WindowUpdateFrame
from rpc_support import length_prefixed

from liftbridge.proto import api_grpc, api_pb2
from liftbridge.rpc import RpcServer, StatusCode, immediate, rpc_error
from liftbridge.rpc.immediate import Deadlines


class Api(api_grpc.APIServicer):
    """Publish takes what it is told to take by the name of the stream, the handler serves the rest."""

    def __init__(self):
        self.calls = []  # taken and not answered
        self.begun = 0
        self.ended = 0
        self.by_task = 0
        self.guarded = 0
        self.port = 0
        self.server = None

    def begin(self, request, call):
        stream = api_pb2.PublishRequest.FromString(request).stream
        self.begun += 1
        if stream == "task":
            return False
        if stream == "refuse":
            raise rpc_error(StatusCode.NOT_FOUND, "not here")
        if stream == "defect":
            raise KeyError("oops")
        call.on_end = self.note_end
        if stream == "wait":
            self.calls.append(call)
        else:
            call.respond(RESPONSE)
        return True

    def note_end(self):
        self.ended += 1

    @immediate(begin)
    async def Publish(self, input_message, request):
        self.by_task += 1
        return api_pb2.PublishResponse(correlationId="task")

    @property
    def state(self):
        return self.begun, self.ended, self.by_task


RESPONSE = length_prefixed(api_pb2.PublishResponse(correlationId="at once").SerializeToString())


@pytest.fixture
async def api(nursery):
    api = Api()

    def guard(context, message, end):
        assert isinstance(message, api_pb2.PublishRequest)
        api.guarded += 1
        if message.stream == "denied":
            raise rpc_error(StatusCode.PERMISSION_DENIED, "no")

    api.server = RpcServer([api.service], guard=guard)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    api.port = listeners[0].socket.getsockname()[1]
    await nursery.start(api.server.serve, listeners)
    return api


@pytest.fixture
async def client(api, connect):
    return await connect(api.port)


async def call(client, stream, **options):
    return await client.call("Publish", api_pb2.PublishRequest(stream=stream).SerializeToString(), **options)


async def taken(api, count=1):
    while len(api.calls) < count:
        await trio.lowlevel.checkpoint()
    return api.calls[count - 1]


async def answer(client, stream_id):
    """The correlation id of the response, after the end of the call with OK."""
    assert (await client.trailers(stream_id))["grpc-status"] == "0"
    (data,) = [
        frame.data for frame in client.frames if isinstance(frame, DataFrame) and frame.stream_id == stream_id
    ]
    return api_pb2.PublishResponse.FromString(data[5:]).correlationId


async def test_a_whole_request_is_served_at_once(api, client):
    assert await answer(client, await call(client, "now")) == "at once"
    assert api.state == (1, 1, 0)


async def test_an_answer_may_come_later(api, client):
    first, second = await call(client, "wait"), await call(client, "wait")
    (await taken(api, 2)).respond(RESPONSE)
    assert await answer(client, second) == "at once"
    api.calls[0].respond(RESPONSE)
    api.calls[0].respond(RESPONSE)  # without effect
    assert await answer(client, first) == "at once"
    assert api.state == (2, 2, 0)


async def test_a_call_that_is_not_taken_goes_to_the_handler(api, client):
    assert await answer(client, await call(client, "task")) == "task"
    assert api.state == (1, 0, 1)
    assert api.guarded == 1


async def test_a_request_that_comes_in_parts_goes_to_the_handler(api, client):
    head = client.headers("/proto.API/Publish")
    await client.send(head)
    await client.ping()
    data = length_prefixed(api_pb2.PublishRequest(stream="now").SerializeToString())
    await client.send(DataFrame(head.stream_id, data, flags=["END_STREAM"]))
    assert await answer(client, head.stream_id) == "task"
    assert api.state == (0, 0, 1)


@pytest.mark.parametrize("messages", [[], [b"", b""]])
async def test_a_request_that_is_not_one_message_is_told_as_ever(api, client, messages):
    trailers = await client.trailers(await client.call("Publish", *messages))
    assert trailers["grpc-status"] == "13"
    assert "takes one request message" in trailers["grpc-message"]
    assert api.state == (0, 0, 0)


@pytest.mark.parametrize(
    "stream, code, text", [("refuse", "5", "not here"), ("defect", "13", "KeyError"), ("denied", "7", "no")]
)
async def test_a_call_may_fail_at_once(api, client, caplog, stream, code, text):
    trailers = await client.trailers(await call(client, stream))
    assert trailers["grpc-status"] == code
    assert text in trailers["grpc-message"]
    assert ("KeyError" in caplog.text) == (stream == "defect")
    assert api.by_task == 0
    assert api.guarded == 1
    assert await answer(client, await call(client, "now")) == "at once"


async def test_a_call_may_fail_later(api, client):
    stream_id = await call(client, "wait")
    (await taken(api)).fail(rpc_error(StatusCode.UNKNOWN, "not stored"))
    assert (await client.trailers(stream_id))["grpc-status"] == "2"
    assert api.state == (1, 1, 0)


async def test_deadlines(api, client, autojump_clock):
    begin = trio.current_time()
    late = await call(client, "wait", grpc_timeout="20S")
    await taken(api, 1)
    early = await call(client, "wait", grpc_timeout="10S")
    await call(client, "wait")
    await taken(api, 3)
    trailers = await client.trailers(early)
    assert (trailers["grpc-status"], trio.current_time() - begin) == ("4", pytest.approx(10, abs=1))
    assert trailers["grpc-message"] == "/proto.API/Publish did not end before its deadline"
    assert (await client.trailers(late))["grpc-status"] == "4"
    assert trio.current_time() - begin == pytest.approx(20, abs=1)
    assert api.state == (3, 2, 0)
    api.calls[0].respond(RESPONSE)  # too late: without effect
    await client.ping()
    assert api.ended == 2


async def test_a_deadline_that_is_over_already_is_left_to_the_handlers_scope(api, client):
    assert await answer(client, await call(client, "now", grpc_timeout="0S")) == "task"
    assert api.begun == 0


async def test_a_reset_ends_the_call(api, client):
    stream_id = await call(client, "wait")
    await taken(api)
    await client.send(RstStreamFrame(stream_id, error_code=8))
    await client.ping()
    assert api.state == (1, 1, 0)
    api.calls[0].respond(RESPONSE)
    await client.ping()
    assert not any(frame.stream_id == stream_id for frame in client.frames)


async def test_the_end_of_the_connection_ends_its_calls(api, client):
    await call(client, "wait")
    await taken(api)
    await client.stream.aclose()
    while api.server.connections:
        await trio.lowlevel.checkpoint()
    assert api.state == (1, 1, 0)
    api.calls[0].respond(RESPONSE)  # without effect


async def test_shutdown_waits_for_calls(api, client):
    stream_id = await call(client, "wait")
    await taken(api)
    async with trio.open_nursery() as ending:
        ending.start_soon(api.server.shutdown, 60)
        await client.goaway()
        api.calls[0].respond(RESPONSE)
        assert await answer(client, stream_id) == "at once"
        assert await client.read() is None
        await client.stream.aclose()


async def test_shutdown_is_bounded(api, client, autojump_clock):
    streams = [await call(client, "wait") for _ in range(3)]
    await taken(api, 3)
    async with trio.open_nursery() as ending:
        ending.start_soon(api.server.shutdown, 5)
        for stream_id in streams:
            assert (await client.trailers(stream_id))["grpc-status"] == "14"
        await client.stream.aclose()
    assert api.state == (3, 3, 0)


async def test_an_answer_waits_for_the_clients_window(api, connect):
    client = await connect(api.port, settings={4: 5})
    stream_id = await call(client, "now")
    first = await client.until(lambda frame: frame.stream_id == stream_id and isinstance(frame, DataFrame))
    assert len(first.data) == 5
    assert api.state == (1, 1, 0)
    await client.send(WindowUpdateFrame(stream_id, window_increment=1000))
    assert (await client.trailers(stream_id))["grpc-status"] == "0"
    data = b"".join(frame.data for frame in client.frames if isinstance(frame, DataFrame))
    assert data == RESPONSE


async def test_the_deadline_holds_while_an_answer_waits_for_the_window(api, connect, autojump_clock):
    client = await connect(api.port, settings={4: 0})
    stream_id = await call(client, "now", grpc_timeout="10S")
    assert (await client.trailers(stream_id))["grpc-status"] == "4"


async def test_a_call_among_others_in_one_read(api, client):
    requests, streams = b"", ["now", "task", "wait", "now"]
    for stream in streams:
        head = client.headers("/proto.API/Publish")
        data = length_prefixed(api_pb2.PublishRequest(stream=stream).SerializeToString())
        requests += head.serialize() + DataFrame(head.stream_id, data, flags=["END_STREAM"]).serialize()
    await client.stream.send_all(requests)
    (await taken(api)).respond(RESPONSE)
    for stream_id in (1, 3, 5, 7):
        if not any(frame.stream_id == stream_id and "END_STREAM" in frame.flags for frame in client.frames):
            await client.trailers(stream_id)
    assert api.state == (4, 3, 1)


class Ended:
    ended = True


def test_deadlines_of_calls_that_have_ended_are_forgotten():
    deadlines = Deadlines()
    for number in range(100_000):
        deadlines.add(1e9 - number, Ended())
        assert len(deadlines) <= 512


async def test_only_unary_methods_are_served_without_a_task():
    class Wrong(api_grpc.APIServicer):
        @immediate(lambda self, request, call: True)
        async def Subscribe(self, input_message, request):
            yield api_pb2.Message()

    with pytest.raises(TypeError, match="immediate"):
        RpcServer([Wrong().service])
