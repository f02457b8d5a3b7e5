"""What the tests of the gRPC server share: a servicer, both servers under test, a raw HTTP/2 client."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import purerpc
import pytest
import trio
from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from liftbridge.proto import api_grpc, api_pb2
from liftbridge.rpc import Frames, Limits, RpcServer, StatusCode, raw_requests, rpc_error

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
METHODS = {
    "Publish": ("unary_unary", api_pb2.PublishRequest, api_pb2.PublishResponse),
    "Subscribe": ("unary_stream", api_pb2.SubscribeRequest, api_pb2.Message),
    "PublishAsync": ("stream_stream", api_pb2.PublishRequest, api_pb2.PublishResponse),
    "DeleteStream": ("unary_unary", api_pb2.DeleteStreamRequest, api_pb2.DeleteStreamResponse),
    "FetchMetadata": ("unary_unary", api_pb2.FetchMetadataRequest, api_pb2.FetchMetadataResponse),
}


LARGE = api_pb2.Message(value=b"y" * 1000).SerializeToString()


def length_prefixed(*messages: bytes) -> bytes:
    return b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)


def uses_purerpc(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test in which purerpc's own client or server runs: it leaves things to the garbage collector."""
    for mark in (
        pytest.mark.usefixtures("purerpc_leaks"),
        pytest.mark.filterwarnings("ignore::ResourceWarning"),
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    ):
        test = mark(test)
    return test


class State:
    """What the handlers of one test have seen and what they are waiting for."""

    def __init__(self) -> None:
        self.running = 0
        self.ended: list[str] = []
        self.sent = 0
        self.received = 0
        self.contexts: list[Any] = []
        self.release = trio.Event()
        self.changed = trio.Event()

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, condition: Callable[["State"], bool]) -> None:
        while not condition(self):
            await self.changed.wait()


class Api(api_grpc.APIServicer):
    """Does what the name of the stream in the request says."""

    def __init__(self) -> None:
        self.state = State()

    @asynccontextmanager
    async def _running(self, name: str) -> AsyncIterator[None]:
        state = self.state
        state.running += 1
        state.notify()
        try:
            yield
        except (trio.Cancelled, GeneratorExit):  # the latter where it was waiting in a yield
            state.ended.append(f"{name} cancelled")
            raise
        except BaseException as error:
            state.ended.append(f"{name} {type(error).__name__}")
            raise
        else:
            state.ended.append(f"{name} ok")
        finally:
            state.running -= 1
            state.notify()

    async def Publish(self, input_message, request):
        self.state.contexts.append(getattr(request, "context", None))
        async with self._running("Publish"):
            return await self._publish(input_message)

    async def _publish(self, input_message):
        action = input_message.stream
        if action == "sleep":
            await trio.sleep_forever()
        if action == "wait":
            await self.state.release.wait()
        if action == "refuse":
            raise rpc_error(StatusCode.FAILED_PRECONDITION, "not the leader: ask ünother 100% broker\n")
        if action == "group":
            async with trio.open_nursery():
                raise rpc_error(StatusCode.NOT_FOUND, "in a nursery")
        if action == "exit":
            raise SystemExit(3)
        if action == "defect":
            raise KeyError("a secret of the server")
        return api_pb2.PublishResponse(correlationId=input_message.correlationId)

    async def Subscribe(self, input_message, request):
        async with self._running("Subscribe"):
            action = input_message.stream
            if action == "few":
                for number in range(5):
                    yield api_pb2.Message(offset=number, value=b"x" * 10)
            elif action == "idle":
                yield api_pb2.Message(offset=0)
                await trio.sleep_forever()
            elif action == "flood":
                message = api_pb2.Message(value=b"x" * 4096)
                while self.state.sent < 16 << 20:  # so that a server that never blocks it ends some time
                    yield message
                    self.state.sent += 4096
                    self.state.notify()
            elif action == "wait":
                await self.state.release.wait()
            elif action == "frames":
                for _ in range(10):
                    yield Frames(length_prefixed(*[LARGE] * 1000))
            elif action == "messages":
                for _ in range(10_000):
                    yield api_pb2.Message(value=b"y" * 1000)
            elif action == "flood frames":
                batch = Frames(length_prefixed(*[LARGE] * 1000))
                while True:
                    yield batch
                    self.state.sent += len(batch.data)

    async def PublishAsync(self, input_messages, request):
        async with self._running("PublishAsync"):
            async for message in input_messages:
                self.state.received += len(message.value)
                self.state.notify()
                if message.stream == "stall":
                    await self.state.release.wait()
                if message.stream == "sleep":
                    await trio.sleep_forever()
                yield api_pb2.PublishResponse(correlationId=message.correlationId)


class RawApi(api_grpc.APIServicer):
    """Counts the request messages of PublishAsync in the batches they come in."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    @raw_requests
    async def PublishAsync(self, input_messages, request):
        total = b""
        async for batch in input_messages:
            assert isinstance(batch, Frames)
            self.batches.append(len(batch.data))
            total += batch.data
        yield Frames(total)


async def serve(
    nursery: trio.Nursery, *servicers: purerpc.Servicer, limits: Limits | None = None, ssl_context: Any = None
) -> tuple[RpcServer, int]:
    """Start our server; return it and its port."""
    server = RpcServer(
        [servicer.service for servicer in servicers], limits=limits or Limits(), ssl_context=ssl_context
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await nursery.start(server.serve, listeners)
    return server, port


async def serve_plain(nursery: trio.Nursery, servicer: purerpc.Servicer) -> int:
    """Start purerpc's own server with the same servicer; return its port."""
    server = purerpc.Server(port=0)
    server.add_service(servicer.service)
    port: int = await nursery.start(server.serve_async)
    return port


class Call:
    """grpcio calls from threads, so that a real client talks to the server in this loop."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def method(self, name: str) -> Any:
        kind, request_type, response_type = METHODS[name]
        return getattr(self.channel, kind)(
            f"/proto.API/{name}",
            request_serializer=request_type.SerializeToString,
            response_deserializer=response_type.FromString,
        )

    async def unary(self, name: str, request: Any, **options: Any) -> Any:
        """Return the response, or the RpcError it ends with."""

        def call() -> Any:
            try:
                return self.method(name)(request, **options)
            except grpc.RpcError as error:
                return error

        return await trio.to_thread.run_sync(call)

    async def publish(self, stream: str = "echo", **options: Any) -> Any:
        request = api_pb2.PublishRequest(stream=stream, correlationId="c", value=b"v")
        return await self.unary("Publish", request, **options)


@asynccontextmanager
async def grpcio(
    port: int, credentials: Any = None, options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[Call]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), *options]
    if credentials is None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
    else:
        channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
    try:
        yield Call(channel)
    finally:
        await trio.to_thread.run_sync(channel.close)


class RawClient:
    """HTTP/2 frame by frame, to do what no gRPC library would."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.buffer = b""
        self.next_id = 1
        self.frames: list[Frame] = []

    @classmethod
    async def connect(cls, port: int, settings: dict[int, int] | None = None, window: int = 0) -> "RawClient":
        client = cls(await trio.open_tcp_stream("127.0.0.1", port))
        await client.send(SettingsFrame(0, settings=settings or {}), preface=PREFACE)
        if window:
            await client.send(WindowUpdateFrame(0, window_increment=window))
        return client

    async def send(self, *frames: Frame, preface: bytes = b"") -> None:
        await self.stream.send_all(preface + b"".join(frame.serialize() for frame in frames))

    def headers(self, path: str, end: bool = False, extra: Any = (), **replaced: str) -> HeadersFrame:
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        fields.update({name.replace("_", "-"): value for name, value in replaced.items()})
        data = self.encoder.encode([*fields.items(), *extra])
        frame = HeadersFrame(self.next_id, data, flags=["END_HEADERS"] + ["END_STREAM"] * end)
        self.next_id += 2
        return frame

    async def call(
        self, method: str, *messages: bytes, end: bool = True, extra: Any = (), **replaced: str
    ) -> int:
        """Send a whole request; return its stream id."""
        head = self.headers(f"/proto.API/{method}", extra=extra, **replaced)
        data = DataFrame(head.stream_id, length_prefixed(*messages), flags=["END_STREAM"] * end)
        await self.send(head, data)
        return head.stream_id

    async def read(self) -> Frame | None:
        """Return the next frame, None at the end of the connection."""
        while True:
            if len(self.buffer) >= 9:
                frame, length = Frame.parse_frame_header(self.buffer[:9])
                if len(self.buffer) >= 9 + length:
                    frame.parse_body(memoryview(self.buffer[9 : 9 + length]))
                    self.buffer = self.buffer[9 + length :]
                    if isinstance(frame, HeadersFrame):
                        frame.fields = dict(self.decoder.decode(frame.data))
                    self.frames.append(frame)
                    return frame
            try:
                received = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not received:
                return None
            self.buffer += received

    async def until(self, condition: Callable[[Frame], bool]) -> Frame:
        """Read up to the frame that meets the condition."""
        while (frame := await self.read()) is not None:
            if condition(frame):
                return frame
        raise AssertionError(f"the connection ended after {self.frames}")

    async def trailers(self, stream_id: int) -> dict[str, str]:
        """Read up to the end of a stream; return its last headers."""
        frame = await self.until(lambda frame: frame.stream_id == stream_id and "END_STREAM" in frame.flags)
        return frame.fields

    async def goaway(self) -> GoAwayFrame:
        return await self.until(lambda frame: isinstance(frame, GoAwayFrame))

    async def reset(self, stream_id: int) -> int:
        """Read up to the reset of a stream; return its error code."""
        frame = await self.until(
            lambda frame: isinstance(frame, RstStreamFrame) and frame.stream_id == stream_id
        )
        return frame.error_code

    async def ping(self, data: bytes = b"12345678") -> None:
        """Wait until the server has processed what was sent before."""
        await self.send(PingFrame(0, opaque_data=data))
        await self.until(lambda frame: isinstance(frame, PingFrame) and frame.opaque_data == data)

    async def flood(self, data: bytes, times: int) -> None:
        """Send the same bytes many times; the server may close the connection meanwhile."""
        try:
            for _ in range(times):
                await self.stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async def open_and_reset(self, request: bytes, times: int) -> None:
        """Open streams and reset each at once; the server may close the connection meanwhile."""
        try:
            for _ in range(times):
                stream_id = await self.call("Publish", request)
                await self.send(RstStreamFrame(stream_id, error_code=8))
        except trio.BrokenResourceError:
            pass

    async def alive(self) -> bool:
        """Tell whether the server still answers calls on this connection."""
        stream_id = await self.call("Publish", b"")
        return (await self.trailers(stream_id))["grpc-status"] == "0"
