"""What a call and a megabyte cost the gRPC server, without a broker behind it.

The server runs in a process of its own and reports its CPU time; the load comes from this process over raw
HTTP/2, so that the client is not what is measured. `--plain` runs purerpc's own server instead.

    python benchmarks/rpc.py [--plain] [--calls 20000] [--connections 4] [--concurrent 16] [--megabytes 2000]
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import purerpc
import trio

from liftbridge.proto import api_grpc, api_pb2
from liftbridge.rpc import Frames, RpcServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MESSAGE_SIZE = 128
BATCH = 1 << 20


def length_prefixed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


class Api(api_grpc.APIServicer):  # type: ignore[misc]
    """Answers at once; streams the same batch again and again."""

    async def Publish(self, input_message: Any) -> Any:  # noqa: N802
        return api_pb2.PublishResponse(correlationId=input_message.correlationId)

    async def Subscribe(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
        one = length_prefixed(api_pb2.Message(value=bytes(MESSAGE_SIZE)).SerializeToString())
        batch = Frames(one * (BATCH // len(one)))
        while True:
            yield batch


class PlainApi(Api):
    """The same without batches, which purerpc does not know."""

    async def Subscribe(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
        message = api_pb2.Message(value=bytes(MESSAGE_SIZE))
        for number in range(1_000_000):
            yield message
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()


async def serve(plain: bool) -> None:
    async with trio.open_nursery() as nursery:
        if plain:
            server = purerpc.Server(port=0)
            server.add_service(PlainApi().service)
            port = await nursery.start(server.serve_async)
        else:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            await nursery.start(RpcServer([Api().service]).serve, listeners)
        print(port, flush=True)

        def report() -> None:
            for _ in sys.stdin:
                print(time.process_time(), flush=True)

        await trio.to_thread.run_sync(report)
        nursery.cancel_scope.cancel()


class Server:
    """The server's process."""

    def __init__(self, plain: bool) -> None:
        command = [sys.executable, __file__, "--serve", *(["--plain"] if plain else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._ask, self._answers = self.process.stdin, self.process.stdout
        self.port = int(self._answers.readline())

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        print(file=self._ask, flush=True)
        return float(self._answers.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """An indexed literal: after the first request the whole header block is six bytes of indices."""
    return b"\x40" + bytes((len(name),)) + name + bytes((len(value),)) + value


def header_blocks(path: bytes) -> tuple[bytes, bytes]:
    """The header block of the first request of a connection and that of all others."""
    start = b"\x83\x86"  # POST, http
    fields = [
        (b":path", path),
        (b":authority", b"bench"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    first = start + b"".join(literal(name, value) for name, value in fields)
    return first, start + bytes(0x80 | (62 + index) for index in reversed(range(len(fields))))


async def call_many(port: int, calls: int, concurrent: int, latencies: list[float]) -> None:
    """Make `calls` unary calls on one connection, `concurrent` at a time."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    request = length_prefixed(api_pb2.PublishRequest(correlationId="x" * 16).SerializeToString())
    first, other = header_blocks(b"/proto.API/Publish")
    started: dict[int, float] = {}
    sent = done = 0
    out = PREFACE + frame(4, 0, 0) + frame(8, 0, 0, (1 << 30).to_bytes(4, "big"))
    pending = b""
    async with stream:
        while done < calls:
            while sent < calls and sent - done < concurrent:
                stream_id = 2 * sent + 1
                block = other if sent else first
                out += frame(1, 4, stream_id, block) + frame(0, 1, stream_id, request)
                started[stream_id] = time.perf_counter()
                sent += 1
            if out:
                await stream.send_all(out)
                out = b""
            pending += await stream.receive_some(65_536)
            position = 0
            while len(pending) - position >= 9:
                end = position + 9 + int.from_bytes(pending[position : position + 3], "big")
                if end > len(pending):
                    break
                if pending[position + 3] == 1 and pending[position + 4] & 1:
                    stream_id = int.from_bytes(pending[position + 5 : position + 9], "big")
                    latencies.append(time.perf_counter() - started.pop(stream_id))
                    done += 1
                position = end
            pending = pending[position:]


async def unary(server: Server, calls: int, connections: int, concurrent: int) -> dict[str, Any]:
    latencies: list[float] = []
    cpu, begin = server.cpu(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(call_many, server.port, calls // connections, concurrent, latencies)
    seconds, used = time.perf_counter() - begin, server.cpu() - cpu
    latencies.sort()
    return {
        "connections": connections,
        "concurrent_per_connection": concurrent,
        "calls_per_second": round(len(latencies) / seconds),
        "server_cpu_us_per_call": round(used / len(latencies) * 1e6, 1),
        "latency_p50_us": round(latencies[len(latencies) // 2] * 1e6),
        "latency_p99_us": round(latencies[len(latencies) * 99 // 100] * 1e6),
    }


def stream_bytes(server: Server, megabytes: int, frame_size: int) -> dict[str, Any]:
    """Receive a subscription without looking into it."""
    sock = socket.create_connection(("127.0.0.1", server.port))
    settings = (4).to_bytes(2, "big") + ((1 << 31) - 1).to_bytes(4, "big")
    settings += (5).to_bytes(2, "big") + frame_size.to_bytes(4, "big")
    window = ((1 << 31) - 1 - 65_535).to_bytes(4, "big")
    first, _ = header_blocks(b"/proto.API/Subscribe")
    sock.sendall(PREFACE + frame(4, 0, 0, settings) + frame(8, 0, 0, window))
    sock.sendall(frame(1, 4, 1, first) + frame(0, 1, 1, length_prefixed(b"")))
    wanted, received = megabytes << 20, 0
    buffer = bytearray(1 << 20)
    cpu, begin = server.cpu(), time.perf_counter()
    while received < wanted:
        count = sock.recv_into(buffer)
        if not count:
            break
        received += count
    seconds, used = time.perf_counter() - begin, server.cpu() - cpu
    sock.close()
    messages = received / (MESSAGE_SIZE + 8)
    return {
        "frame_size": frame_size,
        "megabytes_per_second": round(received / seconds / 1e6),
        "messages_per_second": round(messages / seconds),
        "server_cpu_us_per_message": round(used / messages * 1e6, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help="measure purerpc's own server")
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--megabytes", type=int, default=1_500, help="at most 2000, the largest window")
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve, arguments.plain)
        return
    server = Server(arguments.plain)
    try:
        result = {
            "server": "purerpc" if arguments.plain else "liftbridge.rpc",
            "unary": [
                trio.run(unary, server, arguments.calls // 4, 1, 1),
                trio.run(unary, server, arguments.calls, arguments.connections, arguments.concurrent),
            ],
            "stream": [
                stream_bytes(server, 50 if arguments.plain else arguments.megabytes, size)
                for size in (16_384, 1 << 20)
            ],
        }
    finally:
        server.close()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
