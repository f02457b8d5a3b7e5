"""Calls of a real client (grpcio) and of purerpc's: what each kind of call gives and how each ends."""

import logging
import math

import grpc
import purerpc
import pytest
import trio
from rpc_support import Api, RawApi, grpcio, length_prefixed, serve, uses_purerpc

from liftbridge.proto import api_grpc, api_pb2, health_pb2
from liftbridge.rpc import Frames, HealthServicer, Limits, RpcServer, StatusCode, raw_requests, rpc_error


@pytest.fixture
async def api(nursery):
    api = Api()
    api.server, api.port = await serve(nursery, api)
    return api


@pytest.fixture
async def client(api):
    async with grpcio(api.port) as client:
        yield client


async def test_unary(client):
    assert await client.publish() == api_pb2.PublishResponse(correlationId="c")


async def test_server_streaming(client):
    stream = client.method("Subscribe")(api_pb2.SubscribeRequest(stream="few"))
    messages = await trio.to_thread.run_sync(lambda: list(stream))
    assert [message.offset for message in messages] == [0, 1, 2, 3, 4]


async def test_bidirectional(client):
    requests = [api_pb2.PublishRequest(stream="echo", correlationId=str(number)) for number in range(100)]
    stream = client.method("PublishAsync")(iter(requests))
    responses = await trio.to_thread.run_sync(lambda: list(stream))
    assert [response.correlationId for response in responses] == [str(number) for number in range(100)]


async def test_frames_carry_many_messages(client):
    stream = client.method("Subscribe")(api_pb2.SubscribeRequest(stream="frames"))
    sizes = await trio.to_thread.run_sync(lambda: [len(message.value) for message in stream])
    assert sizes == [1000] * 10_000


async def test_raw_requests_arrive_in_batches(nursery):
    api = RawApi()
    _, port = await serve(nursery, api)
    requests = [api_pb2.PublishRequest(value=b"z" * size) for size in range(2000)]
    async with grpcio(port) as client:
        stream = client.channel.stream_stream("/proto.API/PublishAsync")
        call = stream(iter([request.SerializeToString() for request in requests]))
        responses = await trio.to_thread.run_sync(lambda: list(call))
    assert [api_pb2.PublishRequest.FromString(response) for response in responses] == requests
    assert len(api.batches) < 2000
    assert sum(api.batches) == len(length_prefixed(*(request.SerializeToString() for request in requests)))


class CoroutineApi(api_grpc.APIServicer):
    """Receives and sends in two tasks."""

    async def PublishAsync(self, input_messages, request):
        ids, seen = trio.open_memory_channel(1)

        async def answer():
            async for correlation_id in seen:
                await request.send(api_pb2.PublishResponse(correlationId=correlation_id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            async with ids:
                async for message in input_messages:
                    await ids.send(message.correlationId)


async def test_coroutine_that_sends(nursery):
    _, port = await serve(nursery, CoroutineApi())
    requests = [api_pb2.PublishRequest(correlationId=str(number)) for number in range(100)]
    async with grpcio(port) as client:
        stream = client.method("PublishAsync")(iter(requests))
        responses = await trio.to_thread.run_sync(lambda: list(stream))
    assert [response.correlationId for response in responses] == [str(number) for number in range(100)]


@uses_purerpc
async def test_purerpc_client(api):
    async with purerpc.insecure_channel("127.0.0.1", api.port) as channel:
        stub = api_grpc.APIStub(channel)
        response = await stub.Publish(api_pb2.PublishRequest(stream="echo", correlationId="p"))
        assert response.correlationId == "p"
        offsets = [message.offset async for message in stub.Subscribe(api_pb2.SubscribeRequest(stream="few"))]
        assert offsets == [0, 1, 2, 3, 4]


class TrailingApi(api_grpc.APIServicer):
    """Answers with as many bytes as asked, and metadata behind them."""

    async def Publish(self, input_message, request):
        request.trailing = (("first", "1"), ("second", "two words"))
        return api_pb2.PublishResponse(correlationId="x" * int(input_message.stream))


@pytest.mark.parametrize("size", [0, 300_000], ids=["in one piece", "larger than the window"])
async def test_trailing_metadata(nursery, size):
    _, port = await serve(nursery, TrailingApi())
    async with grpcio(port) as client:
        method = client.method("Publish")
        for _ in range(2):
            response, call = await trio.to_thread.run_sync(
                method.with_call, api_pb2.PublishRequest(stream=str(size))
            )
            assert len(response.correlationId) == size
            assert call.code() is grpc.StatusCode.OK
            assert list(call.trailing_metadata()) == [("first", "1"), ("second", "two words")]


async def test_error_of_a_handler(client):
    error = await client.publish("refuse")
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "not the leader: ask ünother 100% broker\n"


async def test_error_out_of_a_nursery(client):
    error = await client.publish("group")
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "in a nursery")


async def test_defect_of_a_handler_is_logged_and_not_told(client, caplog):
    with caplog.at_level(logging.ERROR, "liftbridge.rpc"):
        error = await client.publish("defect")
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "/proto.API/Publish failed: KeyError",
    )
    assert "a secret of the server" in caplog.text
    assert "Traceback" in caplog.text
    assert await client.publish() == api_pb2.PublishResponse(correlationId="c")


async def test_method_not_overridden(client):
    error = await client.unary("DeleteStream", api_pb2.DeleteStreamRequest())
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("path", ["/proto.API/Nothing", "/nobody.Knows/Publish", "/", "/a/b/c"])
async def test_unknown_method(client, path):
    call = client.channel.unary_unary(path)
    with pytest.raises(grpc.RpcError) as raised:
        await trio.to_thread.run_sync(call, b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert path in raised.value.details()


async def test_request_that_is_not_protobuf(client):
    call = client.channel.unary_unary("/proto.API/Publish")
    with pytest.raises(grpc.RpcError) as raised:
        await trio.to_thread.run_sync(call, b"\xff\xff\xff")
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "is not a proto.PublishRequest" in raised.value.details()
    assert await client.publish() == api_pb2.PublishResponse(correlationId="c")


async def test_request_too_long(api):
    async with grpcio(api.port, options=[("grpc.max_send_message_length", -1)]) as client:
        error = await client.unary("Publish", api_pb2.PublishRequest(value=bytes(5 << 20)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the limit is 4194304" in error.details()
        fits = api_pb2.PublishRequest(value=bytes((4 << 20) - 100), correlationId="big")
        assert (await client.unary("Publish", fits)).correlationId == "big"


async def test_compressed_request(client):
    error = await client.publish(compression=grpc.Compression.Gzip)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "uncompressed" in error.details()


async def test_deadline(client, api):
    error = await client.publish("sleep", timeout=0.05)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await api.state.until(lambda state: state.ended)
    assert api.state.ended == ["Publish cancelled"]


async def test_context(client, api):
    before = trio.current_time()
    await client.publish(timeout=60, metadata=[("name", "value"), ("raw-bin", b"\x00\xff")])
    await client.publish()
    with_deadline, without = api.state.contexts
    assert with_deadline.has_deadline
    assert before + 50 < with_deadline.deadline <= trio.current_time() + 60
    assert ("name", "value") in with_deadline.metadata
    assert ("raw-bin", b"\x00\xff") in with_deadline.metadata
    assert with_deadline.method == "/proto.API/Publish"
    assert with_deadline.peer.startswith("ipv4:127.0.0.1:")
    assert with_deadline.peer_certificate is None
    assert not without.has_deadline
    assert without.deadline == math.inf


async def test_many_calls_at_once_on_one_connection(api, connect):
    client = await connect(api.port)
    request = api_pb2.PublishRequest(stream="wait").SerializeToString()
    ids = [await client.call("Publish", request) for _ in range(1000)]
    await api.state.until(lambda state: state.running == 1000)
    api.state.release.set()
    ended = {
        (await client.until(lambda frame: "END_STREAM" in frame.flags)).stream_id for _ in range(len(ids))
    }
    assert ended == set(ids)


HEALTH = "/grpc.health.v1.Health/"
KNOWN = health_pb2.HealthCheckResponse


def health_method(client, name, kind):
    return getattr(client.channel, kind)(
        HEALTH + name,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


@pytest.mark.parametrize("service", ["", "proto.API"])
@pytest.mark.parametrize(("serving", "status"), [(True, KNOWN.SERVING), (False, KNOWN.NOT_SERVING)])
async def test_health_check(nursery, service, serving, status):
    _, port = await serve(nursery, HealthServicer(serving=serving))
    async with grpcio(port) as client:
        check = health_method(client, "Check", "unary_unary")
        response = await trio.to_thread.run_sync(check, health_pb2.HealthCheckRequest(service=service))
    assert response.status == status


async def test_health_check_of_an_unknown_service(nursery):
    _, port = await serve(nursery, HealthServicer())
    async with grpcio(port) as client:
        check = health_method(client, "Check", "unary_unary")
        with pytest.raises(grpc.RpcError) as raised:
            await trio.to_thread.run_sync(check, health_pb2.HealthCheckRequest(service="other"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_watch(nursery):
    health = HealthServicer()
    _, port = await serve(nursery, health)
    async with grpcio(port) as client:
        watch = health_method(client, "Watch", "unary_stream")
        known = watch(health_pb2.HealthCheckRequest(service="proto.API"))
        seen = []
        for serving in (False, True, True):
            seen.append((await trio.to_thread.run_sync(next, known)).status)
            health.set_serving(serving)
        known.cancel()
        unknown = watch(health_pb2.HealthCheckRequest(service="other"))
        answer = await trio.to_thread.run_sync(next, unknown)
        unknown.cancel()
    assert seen == [KNOWN.SERVING, KNOWN.NOT_SERVING, KNOWN.SERVING]
    assert answer.status == KNOWN.SERVICE_UNKNOWN


def test_error_codes():
    for code in StatusCode:
        if code is StatusCode.OK:
            with pytest.raises(ValueError, match="OK"):
                rpc_error(code, "")
        else:
            error = rpc_error(code, "text")
            assert error.status.status_code is code
            assert error.status.status_message == "text"


async def test_services_are_checked():
    with pytest.raises(ValueError, match=r"proto\.API"):
        RpcServer([Api().service, Api().service])

    class Wrong(api_grpc.APIServicer):
        @raw_requests
        async def Publish(self, input_message):
            return Frames(b"")

    with pytest.raises(TypeError, match="raw_requests"):
        RpcServer([Wrong().service])


@pytest.mark.parametrize("wrong", [{"max_resets": 0}, {"stream_window": 1}, {"max_frame_size": 100}])
def test_limits_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)
