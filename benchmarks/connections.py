"""What connections and subscriptions cost that wait for messages: memory, idle CPU, delivery.

A real server gets 1,000 connections over TCP with 10 subscriptions each, all at the end of their partition:
once all of one partition, and once spread over 1,000 partitions. After each step the server's memory is read;
then it is left alone and its CPU time measured; then each partition gets one message, and the clock runs
until each subscription has it. In the end all connections are closed and made anew, which must need no more
memory. The client is this process: plain sockets and one selector, nothing that decodes messages.

    python benchmarks/connections.py [--connections 1000] [--subscriptions 10] [--partitions 1 1000]
        [--idle 15] [--directory .]
"""

from __future__ import annotations

import argparse
import json
import resource
import selectors
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

import purerpc
import trio
from hpack import Encoder
from partitions import Figures, Server, descriptors, memory_kib, threads
from tables import machine_line, table

from liftbridge import http2
from liftbridge.bench import machine
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.sockets import allow_many, greet
from liftbridge.proto import api_grpc, api_pb2

STREAM_PARTITIONS = 100
SPARE_DESCRIPTORS = 100
SECONDS = 120.0  # for all connections to do something
PAYLOAD = b"x" * 128
_PREFIX = struct.Struct(">BL")


class Client:
    """One connection with its subscriptions; counts what arrives."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(http2.PREFACE + http2.settings({}))
        self.greeted = False
        self.live = 0
        self.messages = 0
        self._frames = http2.FrameReader(http2.DEFAULT_FRAME_SIZE)
        self._encoder = Encoder()
        self._stream = 1

    def subscribe(self, stream: str, partition: int) -> None:
        """Ask for what is stored from now on."""
        headers = self._encoder.encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/proto.API/Subscribe"),
                (":authority", "benchmark"),
                ("te", "trailers"),
                ("content-type", "application/grpc+proto"),
            ]
        )
        request = api_pb2.SubscribeRequest(stream=stream, partition=partition).SerializeToString()
        body = _PREFIX.pack(0, len(request)) + request
        self.socket.sendall(
            http2.frame(http2.HEADERS, http2.END_HEADERS, self._stream, headers)
            + http2.frame(http2.DATA, http2.END_STREAM, self._stream, body)
        )
        self._stream += 2

    def receive(self) -> None:
        """Take what has arrived."""
        data = self.socket.recv(65536)
        if not data:
            raise SystemExit("the server has closed a connection")
        for kind, flags, _, payload in self._frames.frames(data):
            if kind == http2.DATA:
                self._count(payload)
            elif kind == http2.SETTINGS:
                self.greeted = True
            elif kind == http2.PING and not flags & http2.ACK:
                self.socket.sendall(http2.frame(http2.PING, http2.ACK, 0, bytes(payload)))
            elif kind in (http2.RST_STREAM, http2.GOAWAY) or (
                kind == http2.HEADERS and flags & http2.END_STREAM
            ):
                raise SystemExit("the server has ended a subscription")

    def _count(self, payload: http2.Buffer) -> None:
        position = 0
        while position < len(payload):  # whole messages, as they are small and the window is never used up
            _, length = _PREFIX.unpack_from(payload, position)
            position += _PREFIX.size + length
            self.live += not length
            self.messages += bool(length)


class Clients:
    """All connections, and one selector."""

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self.all = [Client(address) for _ in range(count)]
        for client in self.all:
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    def wait(self, live: int, messages: int) -> None:
        """Until all are connected, so many subscriptions are live, and so many messages are here."""
        end, wanted = time.monotonic() + SECONDS, (len(self.all), live, messages)
        while True:
            have = (
                sum(client.greeted for client in self.all),
                sum(client.live for client in self.all),
                sum(client.messages for client in self.all),
            )
            if have == wanted:
                return
            if time.monotonic() > end or have > wanted:
                raise SystemExit(f"{have} connections, subscriptions and messages, and not {wanted}")
            self.take(0.2)

    def take(self, seconds: float) -> None:
        """Take what is there, and what comes first within so many seconds."""
        for key, _ in self._selector.select(seconds):
            key.data.receive()

    def close(self) -> None:
        for client in self.all:
            client.socket.close()
        self._selector.close()


async def create(server: Server, partitions: int) -> list[tuple[str, int]]:
    """Create that many partitions; returns them as stream and number."""
    places: list[tuple[str, int]] = []
    async with purerpc.insecure_channel(*server.grpc) as channel:
        api = api_grpc.APIStub(channel)  # type: ignore[no-untyped-call]
        while len(places) < partitions:
            name, count = f"bench-{len(places)}", min(STREAM_PARTITIONS, partitions - len(places))
            request = api_pb2.CreateStreamRequest(name=name, subject=name, partitions=count)
            await api.CreateStream(request)
            places += [(name, number) for number in range(count)]
    return places


def publish(server: Server, places: list[tuple[str, int]]) -> None:
    """One plain message to each partition."""
    with socket.create_connection(server.nats) as connection:
        greet(connection)
        for stream, number in places:
            subject = f"{stream}.{number}" if number else stream
            connection.sendall(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(PAYLOAD), PAYLOAD))
        connection.sendall(b"PING\r\n")
        answers = b""
        while b"PONG" not in answers:
            answers += connection.recv(4096)


class Measurement:
    """One server with its clients, and what was found after each step."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        self.results: dict[str, Figures] = {}
        self._server = server
        self._options = options
        self._meter = self._new_meter()
        self._began = time.perf_counter()

    def run(self, partitions: int) -> None:
        options = self._options
        total = options.connections * options.subscriptions
        places = trio.run(create, self._server, partitions)
        self._look("partitions", partitions)
        clients = self._connect(places, "connections", "subscriptions")
        self._idle(clients)
        publish(self._server, places)
        clients.wait(total, total)
        self._look("a message to each", total)
        self._close(clients)
        self._look("closed", total)
        clients = self._connect(places, "connections again", "subscriptions again")
        self._close(clients)

    def _connect(self, places: list[tuple[str, int]], connected: str, subscribed: str) -> Clients:
        options = self._options
        clients = Clients(self._server.grpc, options.connections)
        clients.wait(0, 0)
        self._look(connected, options.connections)
        for number, client in enumerate(clients.all):
            for place in range(options.subscriptions):
                client.subscribe(*places[(number * options.subscriptions + place) % len(places)])
        total = options.connections * options.subscriptions
        clients.wait(total, 0)
        self._look(subscribed, total)
        return clients

    def _close(self, clients: Clients) -> None:
        clients.close()
        while descriptors(self._server.process.pid) > self.results["partitions"]["descriptors"] + 10:
            time.sleep(0.1)

    def _idle(self, clients: Clients) -> None:
        """Nothing but answers to PINGs; adds the CPU time to what was found last."""
        meter, end = self._new_meter(), time.monotonic() + self._options.idle
        while (left := end - time.monotonic()) > 0:
            clients.take(left)
        found = list(self.results.values())[-1]
        found["cpu_percent"] = (meter.used()["server"] or 0.0) / self._options.idle * 100
        self._meter, self._began = self._new_meter(), time.perf_counter()

    def _new_meter(self) -> CpuMeter:
        return CpuMeter({"server": self._server.process.pid})

    def _look(self, step: str, count: int) -> None:
        """What a step took, and what it has left behind, in all and for each of `count`."""
        pid, used = self._server.process.pid, self._meter.used()["server"] or 0.0
        rss = memory_kib(pid)
        self.results[step] = {
            "seconds": time.perf_counter() - self._began,
            "cpu_us": used * 1e6 / count,
            "rss_kib": rss,
            "more_kib": (rss - next(reversed(self.results.values()))["rss_kib"]) / count
            if self.results
            else 0.0,
            "threads": threads(pid),
            "descriptors": descriptors(pid),
        }
        self._meter, self._began = self._new_meter(), time.perf_counter()


def measure(directory: Path, options: argparse.Namespace, partitions: int) -> dict[str, Figures]:
    """The figures after each step of one server's life."""
    with tempfile.TemporaryDirectory(prefix="liftbridge-bench-", dir=directory) as name:
        server = Server(Path(name).resolve())
        try:
            measurement = Measurement(server, options)
            measurement.run(partitions)
        finally:
            server.kill()
    return measurement.results


def tell(results: dict[str, Figures], options: argparse.Namespace, partitions: int) -> None:
    print(
        f"### {options.connections:,} connections with {options.subscriptions} subscriptions each, "
        f"of {partitions:,} partition{'s' * (partitions > 1)}\n"
    )
    columns = {
        "rss_kib": ("RSS, MiB", 1),
        "more_kib": ("KiB more for each", 2),
        "cpu_us": ("CPU us for each", 0),
        "seconds": ("s", 2),
        "threads": ("threads", 0),
        "descriptors": ("descriptors", 0),
        "cpu_percent": ("idle CPU, %", 2),
    }
    rows = []
    for step, figures in results.items():
        shown = {**figures, "rss_kib": figures["rss_kib"] / 1024}
        cells = (f"{shown[key]:,.{places}f}" if key in shown else "" for key, (_, places) in columns.items())
        rows.append([step, *cells])
    print(table(["", *(label for label, _ in columns.values())], rows), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--subscriptions", type=int, default=10, help="of each connection (10)")
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 1_000])
    parser.add_argument("--idle", type=float, default=15.0, help="seconds of looking at an idle server (15)")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the data is kept (.)")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    for partitions in options.partitions:
        if options.connections * options.subscriptions % partitions:
            parser.error("each partition must have as many subscriptions as any other")
    allow_many()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < options.connections + SPARE_DESCRIPTORS:
        raise SystemExit(f"`ulimit -Hn` is {hard:,}, too low for {options.connections:,} connections")
    facts = machine.describe()
    print(machine_line(facts), flush=True)
    everything: dict[str, object] = {"machine": facts}
    for partitions in options.partitions:
        everything[f"{partitions} partitions"] = results = measure(options.directory, options, partitions)
        tell(results, options, partitions)
    if options.json is not None:
        options.json.write_text(json.dumps(everything, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
