"""Many connections with many subscriptions that wait, and one that never reads: what they cost the server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from pathlib import Path

import pytest
from calls import PATIENCE, create, partition_metadata, subscribe, until
from harness import Server
from hpack import Encoder
from raw_peers import LARGEST_WINDOW, RawNats, call_frames, connect, greeting

from liftbridge import http2
from liftbridge.proto import api_pb2

CONNECTIONS, SUBSCRIPTIONS, PARTITIONS = 100, 10, 100
KIB_OF_A_CONNECTION, KIB_OF_A_SUBSCRIPTION = 32, 16  # about twice what benchmarks/connections.py finds
MIB = 1 << 20
MESSAGE = bytes(32 << 10)
WRITE_BUFFER = 1 * MIB  # `write_buffer` of liftbridge.rpc.limits
ONE_READ = 256 << 10  # what a subscription has read and not sent yet
SLACK = 4 * MIB  # by what the server's memory goes up and down while messages flow


@pytest.fixture
def server(tmp_path):
    """Without the cache of what subscribers share, which has a bound of its own."""
    with Server(
        tmp_path / "server", {"streams.sync.policy": "never", "streams.read.cache.max.bytes": 0}
    ) as running:
        yield running
        assert "Traceback" not in running.log


def memory(server):
    """The server's memory in bytes."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


def descriptors(server):
    return sum(1 for _ in Path(f"/proc/{server.pid}/fd").iterdir())


class Peers:
    """Connections with subscriptions; for each the number of messages that have arrived on each stream."""

    def __init__(self, server, stream):
        self.arrived = {}
        self._selector = selectors.DefaultSelector()
        self._sockets = [self._open(server.grpc_port, number, stream) for number in range(CONNECTIONS)]

    def _open(self, port, number, stream):
        peer = connect(port)
        encoder = Encoder()
        peer.sendall(http2.PREFACE + http2.settings({}))
        for place in range(SUBSCRIPTIONS):
            partition = (number * SUBSCRIPTIONS + place) % PARTITIONS
            request = api_pb2.SubscribeRequest(stream=stream, partition=partition).SerializeToString()
            fields = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/proto.API/Subscribe"),
                (":authority", "test"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ]
            stream_id = 2 * place + 1
            self.arrived[number, stream_id] = -1  # the handshake is still to come
            peer.sendall(
                http2.frame(http2.HEADERS, http2.END_HEADERS, stream_id, encoder.encode(fields))
                + http2.frame(
                    http2.DATA,
                    http2.END_STREAM,
                    stream_id,
                    b"\0" + len(request).to_bytes(4, "big") + request,
                )
            )
        frames = http2.FrameReader(http2.DEFAULT_FRAME_SIZE)
        self._selector.register(peer, selectors.EVENT_READ, (number, frames))
        return peer

    def wait(self, messages):
        """Until each subscription has so many messages, and no other any more."""
        deadline = time.monotonic() + PATIENCE
        while min(self.arrived.values()) < messages:
            assert time.monotonic() < deadline, self.arrived
            for key, _ in self._selector.select(1):
                number, frames = key.data
                data = key.fileobj.recv(65536)
                assert data, "the server has closed a connection"
                for kind, _, stream_id, _ in frames.frames(data):
                    assert kind in (http2.SETTINGS, http2.WINDOW_UPDATE, http2.HEADERS, http2.DATA)
                    self.arrived[number, stream_id] = self.arrived.get((number, stream_id), 0) + (
                        kind == http2.DATA
                    )
            self.arrived = {place: count for place, count in self.arrived.items() if place[1]}
        assert set(self.arrived.values()) == {messages}

    def close(self):
        for peer in self._sockets:
            peer.close()
        self._selector.close()


@contextlib.contextmanager
def peers(server, stream):
    open_ones = Peers(server, stream)
    try:
        yield open_ones
    finally:
        open_ones.close()


def test_idle_subscriptions_cost_little_and_leave_nothing_behind(server):
    stream = create(server.api(), partitions=PARTITIONS)
    with contextlib.closing(RawNats(server.nats_url)) as nats:
        before, files = memory(server), descriptors(server)
        for round_ in range(4):
            with peers(server, stream) as some:
                some.wait(0)
                most = CONNECTIONS * (KIB_OF_A_CONNECTION + SUBSCRIPTIONS * KIB_OF_A_SUBSCRIPTION) << 10
                # In every round: what the first has taken is enough for all.
                assert memory(server) - before < most, f"round {round_}"
                for partition in range(PARTITIONS):
                    nats.publish(stream.encode() + (b".%d" % partition if partition else b""), b"one")
                nats.sync()
                some.wait(1)
            until(lambda: descriptors(server) <= files)


class Flow:
    """Messages that a well-behaved subscriber reads while they are published."""

    def __init__(self, server, stream):
        self._api = server.api()
        self._nats = RawNats(server.nats_url)
        self._stream = stream
        self._read = 0
        self._call = subscribe(self._api, stream)
        self._thread = threading.Thread(target=self._reader)
        self._thread.start()

    def _reader(self):
        with contextlib.suppress(Exception):  # cancelled
            for _ in self._call:
                self._read += 1

    def send(self, size):
        """Publish that many bytes; returns when they were read."""
        goal = self._read + size // len(MESSAGE)
        for number in range(size // len(MESSAGE)):
            self._nats.publish(self._stream.encode(), MESSAGE)
            if number % 100 == 99:
                until(lambda number=number: self._read >= goal - size // len(MESSAGE) + number - 100)
        until(lambda: self._read == goal)

    def close(self):
        self._call.cancel()
        self._thread.join()
        self._nats.close()


@pytest.mark.parametrize("window", [http2.DEFAULT_WINDOW, LARGEST_WINDOW])
def test_a_subscriber_that_never_reads_costs_its_window_and_the_write_buffer(server, window):
    stream = create(server.api())
    with (
        contextlib.closing(Flow(server, stream)) as flow,
        contextlib.closing(connect(server.grpc_port)) as lazy,
    ):
        flow.send(50 * MIB)  # whatever flowing messages take
        before = memory(server)
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        request = api_pb2.SubscribeRequest(stream=stream, startPosition=api_pb2.NEW_ONLY)
        lazy.sendall(greeting(window) + call_frames("Subscribe", request.SerializeToString()))
        flow.send(100 * MIB)
        assert memory(server) - before < min(window, WRITE_BUFFER) + ONE_READ + SLACK
        assert partition_metadata(server.api(), stream).newestOffset == 150 * MIB // len(MESSAGE) - 1
