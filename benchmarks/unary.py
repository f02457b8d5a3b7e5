"""What one unary Publish costs the whole server: ack policy LEADER, a deadline, sync policy `never`.

The server is one of its own with its nats-server. The load is a blocking socket that sends requests made
before the clock starts and looks for the end of each answer only, so that the client is not what is
measured.

`one by one`: each call waits for the one before, as one synchronous publisher does; `16 at a time` keeps so
many on the connection, as many publishers behind one client do. The header block is in turn what a client
sends that keeps it in its compression table (`table`), what one sends whose deadline differs from call to
call and enters the table, as that of Go's gRPC does (`deadline`), and what one sends that uses no table
(`literal`), as `liftbridge.client` does.

    python benchmarks/unary.py [--calls 4000] [--size 256] [--repeat 5] [--sync never] [--data-dir .]
"""

from __future__ import annotations

import argparse
import socket
import time
from pathlib import Path

import trio
from tables import machine_line, spread, table

from liftbridge import http2
from liftbridge.bench import machine
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.server import ServerUnderTest, own_server
from liftbridge.bench.streams import connect
from liftbridge.proto import api_pb2

PATH = "/proto.API/Publish"
HEADERS = (":path", PATH), (":authority", "bench"), ("te", "trailers"), ("content-type", "application/grpc")
POST_HTTP = b"\x83\x86"  # of the static table
SHAPES = ("table", "deadline", "literal")
DEPTHS = (1, 16)
WARM_UP = 500  # calls


def indexed(name: str, value: str) -> bytes:
    """A header that enters the table."""
    return b"\x40" + http2.header_text(name) + http2.header_text(value)


def header_block(shape: str, number: int) -> bytes:
    """The header block of call `number` of a connection."""
    fields = [*HEADERS, ("grpc-timeout", "60S")]
    if shape == "literal":
        return POST_HTTP + b"".join(http2.literal(*field) for field in fields)
    if not number:
        return POST_HTTP + b"".join(indexed(*field) for field in fields)
    if shape == "table":
        return POST_HTTP + bytes(0x80 | 62 + place for place in reversed(range(len(fields))))
    # After call N the table holds N+1 deadlines in front of the other fields; both stay within one octet.
    number %= 50
    if not number:
        return POST_HTTP + b"".join(indexed(*field) for field in fields)
    others = bytes(0x80 | 62 + number + place for place in reversed(range(len(HEADERS))))
    return POST_HTTP + others + b"\x7e" + http2.header_text(f"{59_000_000 + number}u")


class Client:
    """One connection with one blocking socket."""

    def __init__(self, server: ServerUnderTest, shape: str, request: bytes) -> None:
        self._sock = socket.create_connection(server.grpc)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        window = http2.window_update(0, http2.MAX_WINDOW - http2.DEFAULT_WINDOW)
        self._sock.sendall(http2.PREFACE + http2.settings({}) + window)
        self._shape = shape
        self._body = b"\0" + len(request).to_bytes(4, "big") + request
        self._frames = http2.FrameReader(http2.DEFAULT_FRAME_SIZE << 4)
        self._calls = 0

    def request(self) -> bytes:
        """The frames of the next call."""
        number, stream_id = self._calls, 2 * self._calls + 1
        self._calls += 1
        block = header_block(self._shape, number)
        head = http2.frame(http2.HEADERS, http2.END_HEADERS, stream_id, block)
        return head + http2.frame(http2.DATA, http2.END_STREAM, stream_id, self._body)

    def run(self, calls: int, depth: int, pause: float = 0.0) -> list[float]:
        """Make calls, so many at a time; returns the seconds that each took."""
        requests = [(2 * self._calls + 1, self.request()) for _ in range(calls)]
        begun: dict[int, float] = {}
        taken: list[float] = []
        sent = 0
        while len(taken) < calls:
            burst = requests[sent : sent + depth - len(begun)]
            sent += len(burst)
            if pause:
                time.sleep(pause)
            now = time.perf_counter()
            begun.update((stream_id, now) for stream_id, _ in burst)
            self._sock.sendall(b"".join(frames for _, frames in burst))
            self._receive(begun, taken)
        return taken

    def _receive(self, begun: dict[int, float], taken: list[float]) -> None:
        """Read until a call has ended."""
        done = len(taken)
        while len(taken) == done:
            received = self._sock.recv(1 << 16)
            assert received, "the server has closed the connection"
            for kind, flags, stream_id, payload in self._frames.frames(received):
                if kind == http2.HEADERS and flags & http2.END_STREAM:
                    assert payload.endswith(b"grpc-status\x010"), f"a call failed: {bytes(payload)!r}"
                    taken.append(time.perf_counter() - begun.pop(stream_id))

    def close(self) -> None:
        self._sock.close()


def measure(server: ServerUnderTest, stream: str, options: argparse.Namespace) -> list[list[str]]:
    """All shapes and depths; the rows of the table."""
    request = api_pb2.PublishRequest(
        stream=stream, value=bytes(options.size), ackPolicy=api_pb2.LEADER
    ).SerializeToString()
    rows = []
    for depth in DEPTHS:
        for shape in options.shapes:
            client = Client(server, shape, request)
            client.run(WARM_UP, depth)
            rates, costs, nats, p50, p99 = [], [], [], [], []
            for _ in range(options.repeat):
                cpu, begin = CpuMeter(server.pids), time.perf_counter()
                taken = sorted(client.run(options.calls, depth, options.pause / 1e3))
                rates.append(options.calls / (time.perf_counter() - begin))
                used = cpu.used()
                costs.append((used["server"] or 0.0) * 1e6 / options.calls)
                nats.append((used["nats"] or 0.0) * 1e6 / options.calls)
                p50.append(taken[len(taken) // 2] * 1e6)
                p99.append(taken[len(taken) * 99 // 100] * 1e6)
            client.close()
            name = "one by one" if depth == 1 else f"{depth} at a time"
            figures = (rates, 0), (costs, 1), (nats, 1), (p50, 0), (p99, 0)
            rows.append([f"{name}, {shape}", *(spread(*figure) for figure in figures)])
    return rows


async def main(options: argparse.Namespace) -> None:
    print(machine_line(machine.describe()), flush=True)
    head = ["", "calls/s", "server CPU us/call", "nats-server CPU us/call", "p50 us", "p99 us"]
    async with (
        own_server(options.sync, options.data_dir) as server,
        connect(server) as streams,
        streams.temporary() as stream,
    ):
        if options.pid:
            print(f"server {server.pid}", flush=True)
        print(table(head, await trio.to_thread.run_sync(measure, server, stream, options)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=4_000)
    parser.add_argument("--size", type=int, default=256, help="bytes in a value (256)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--sync", default="never", help="the sync policy (never)")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--pause", type=float, default=0.0, help="ms before each call (0)")
    parser.add_argument("--pid", action="store_true", help="print the server's process id, for a profiler")
    parser.add_argument("--data-dir", type=Path, default=Path())
    trio.run(main, parser.parse_args())
