"""The client's HTTP/2 connection against peers that a real server is not: silent, rude, refusing, dying.

The peer is a plain socket in a thread; what it sends is built by hand.
"""

from __future__ import annotations

import contextlib
import socket
import threading

import anyio
import pytest
from client_support import both_backends, in_thread, run

import liftbridge.client as lc
from liftbridge import http2
from liftbridge.client.connection import open_connection

OK = b"\x88\x0f\x10\x10application/grpc"  # :status 200 and the content type, as literals
TRAILERS_OK = b"\x00\x0bgrpc-status\x010"
END = http2.END_HEADERS | http2.END_STREAM


class Peer:
    """Accepts one connection; `send` frames, `wait` for a frame of a kind."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.frames: list[http2.Frame] = []
        self._arrived = threading.Condition()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._socket, _ = self._listener.accept()
            self._socket.sendall(http2.settings({}))
            reader = http2.FrameReader(1 << 20)
            left = len(http2.PREFACE)
            while data := self._socket.recv(65536):
                data, left = data[left:], max(0, left - len(data))
                with self._arrived:
                    self.frames += reader.frames(data)
                    self._arrived.notify_all()

    def send(self, *frames: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(b"".join(frames))

    def wait(self, kind: int) -> http2.Frame:
        """The first frame of this kind."""
        with self._arrived:
            found = self._arrived.wait_for(lambda: [f for f in self.frames if f[0] == kind], 20)
        return found[0]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._socket is not None:
            self._thread.join(10)
            self._socket.close()


@contextlib.asynccontextmanager
async def connected(peer, **options):
    connection = await open_connection(peer.address, None, lc.Options(**options))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.run)
        await connection.ready()
        yield connection
        connection.close("done")


def message(data: bytes, call_id: int = 1) -> bytes:
    return http2.frame(http2.DATA, 0, call_id, b"\0" + len(data).to_bytes(4, "big") + data)


def headers(block: bytes, flags: int = http2.END_HEADERS, call_id: int = 1) -> bytes:
    return http2.frame(http2.HEADERS, flags, call_id, block)


@both_backends
def test_a_call_that_is_left_is_reset(backend):
    async def scenario():
        async with connected(peer) as connection:
            with await connection.call("Subscribe"):
                await in_thread(peer.wait, http2.HEADERS)
            frame = await in_thread(peer.wait, http2.RST_STREAM)
            assert frame[2:] == (1, http2.ErrorCode.CANCEL.to_bytes(4, "big"))
            # What was under way for it is no error.
            peer.send(headers(OK), message(b"late"))
            call = await connection.call("Subscribe")
            peer.send(headers(OK, call_id=3), message(b"x", 3), headers(TRAILERS_OK, END, 3))
            assert await call.receive() == [b"x"]
            assert await call.receive() == []

    with Peer() as peer:
        run(backend, scenario)


@both_backends
def test_statuses_behind_a_goaway_still_arrive_and_calls_beyond_it_never_ran(backend):
    async def scenario():
        async with connected(peer) as connection:
            first, second = await connection.call("Publish"), await connection.call("Publish")
            peer.send(http2.goaway(1, 0, "stopping"))
            with pytest.raises(lc.UnavailableError, match="stopping") as error:
                await second.receive()
            assert not error.value.may_have_run
            peer.send(headers(OK), message(b"answer"), headers(TRAILERS_OK, END))
            assert await first.receive() == [b"answer"]
            assert await first.receive() == []
            with pytest.raises(lc.UnavailableError):
                await connection.call("Publish")

    with Peer() as peer:
        run(backend, scenario)


@both_backends
@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (http2.frame(http2.DATA, 0, 1, b"\1\0\0\0\1x"), "begins with 1"),
        (http2.frame(http2.DATA, 0, 1, b"\0\xff\0\0\0"), "max_message_bytes"),
        (http2.frame(http2.DATA, http2.END_STREAM, 1, b"\0\0\0\0\2x"), "without a status"),
        (http2.rst_stream(1, 2), "INTERNAL_ERROR"),
        (b"\xff\xff\xff\0\0\0\0\0\1", "breaks HTTP/2"),
        (headers(b"\xff" * 40), "breaks HTTP/2"),
        (http2.frame(http2.PUSH_PROMISE, 0, 1, b"1234"), "push"),
    ],
)
def test_what_a_server_does_wrong_is_an_error_that_names_it(backend, frames, text):
    async def scenario():
        async with connected(peer) as connection:
            call = await connection.call("Subscribe")
            peer.send(headers(OK), frames)
            with pytest.raises(lc.RpcError, match=text):
                while await call.receive():
                    pass

    with Peer() as peer:
        run(backend, scenario)


@both_backends
def test_a_lost_connection_ends_every_call(backend):
    async def scenario():
        async with connected(peer) as connection:
            calls = [await connection.call("Subscribe") for _ in range(3)]
            peer.send(headers(OK), message(b"before the end"))
            peer._socket.shutdown(socket.SHUT_RDWR)
            assert await calls[0].receive() == [b"before the end"]
            for call in calls:
                with pytest.raises(lc.UnavailableError) as error:
                    await call.receive()
                assert error.value.may_have_run

    with Peer() as peer:
        run(backend, scenario)


@both_backends
def test_a_deadline_is_told_and_kept(backend):
    async def scenario():
        async with connected(peer) as connection:
            with pytest.raises(lc.DeadlineExceededError):
                await connection.unary("Publish", b"", 0.25)
            assert b"grpc-timeout\x04250m" in (await in_thread(peer.wait, http2.HEADERS))[3]
            await in_thread(peer.wait, http2.RST_STREAM)

    with Peer() as peer:
        run(backend, scenario)


@both_backends
def test_a_sender_waits_for_the_window(backend):
    async def scenario():
        async with connected(peer) as connection:
            call = await connection.call("PublishAsync")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call.send, bytes(100_000))
                while sum(len(f[3]) for f in peer.frames if f[0] == http2.DATA) < 65_535:
                    await anyio.sleep(0.01)
                assert connection.send_room() == 0
                peer.send(http2.window_update(0, 100_000), http2.window_update(1, 100_000))
            while sum(len(f[3]) for f in peer.frames if f[0] == http2.DATA) < 100_000:
                await anyio.sleep(0.01)

    with Peer() as peer:
        run(backend, scenario)


@both_backends
def test_windows_are_given_back_that_of_the_connection_at_once_that_of_a_call_as_it_is_read(backend):
    window = 1 << 20
    chunk = bytes(256 * 1024 - 5)

    def updates(call_id):
        return sum(
            int.from_bytes(f[3], "big")
            for f in peer.frames
            if f[0] == http2.WINDOW_UPDATE and f[2] == call_id
        )

    async def scenario():
        async with connected(peer, stream_window=window) as connection:
            call = await connection.call("Subscribe")
            await in_thread(peer.wait, http2.WINDOW_UPDATE)
            at_first = updates(0)
            peer.send(headers(OK), message(chunk) * 4, http2.frame(http2.PING, 0, 0, b"are you?"))
            await in_thread(peer.wait, http2.PING)  # by its answer all that came before has been dealt with
            assert (updates(0) - at_first, updates(1)) == (window, 0)
            taken = []
            while len(taken) < 4:
                taken += await call.receive()
            assert taken == [chunk] * 4
            while updates(1) < window:
                await anyio.sleep(0.01)

    with Peer() as peer:
        run(backend, scenario)


@both_backends
@pytest.mark.parametrize(("code", "error", "ran"), [(7, lc.UnavailableError, False), (2, lc.RpcError, True)])
def test_a_call_that_was_refused_has_not_run(backend, code, error, ran):
    async def scenario():
        async with connected(peer) as connection:
            call = await connection.call("Publish")
            peer.send(http2.rst_stream(1, code))
            with pytest.raises(error) as raised:
                await call.receive()
            assert raised.value.may_have_run is ran

    with Peer() as peer:
        run(backend, scenario)
