"""Ordered consumers of JetStream: the counter on bytes and on sockets, and against the real nats-server."""

import argparse
import json
import socket
import struct
import threading
import time

import pytest
from test_bench_commands import bench
from test_bench_delivery import leaves

from liftbridge.bench import jetstream_subscriber, publish, publishing
from liftbridge.bench._load import JetStreamCounter, ProtocolError, RefusedError
from liftbridge.bench.errors import BenchError
from liftbridge.bench.jetstream_subscriber import KINDS, OrderedConsumer, consumer
from liftbridge.bench.jetstream_target import jetstream
from liftbridge.bench.target import Load

ANSWER = b'MSG _INBOX.a 2 13\r\n{"name":"one"}\r\n'.replace(b"13", b"14")


def delivery(sequence: int, value: bytes = b"value", pending: int = 0, more: int = 0) -> bytes:
    """A message as a consumer gets it; `more` says how far the stream is ahead of the consumer."""
    ack = f"$JS.ACK.orders.one.1.{sequence + more}.{sequence}.1733026000000000000.{pending}"
    return f"MSG orders 1 {ack} {len(value)}\r\n".encode() + value + b"\r\n"


def status(line: bytes, headers: bytes = b"", reply: bytes = b"") -> bytes:
    block = b"NATS/1.0 " + line + b"\r\n" + headers + b"\r\n"
    lengths = b"%d %d" % (len(block), len(block))
    return b"HMSG _INBOX.m 1 " + (reply + b" " if reply else b"") + lengths + b"\r\n" + block + b"\r\n"


def stamped(serial: int, at_ns: int) -> bytes:
    return struct.pack("=qQ", at_ns, serial) + b"rest"


def test_counts_do_not_depend_on_where_bytes_are_cut():
    data = ANSWER + delivery(1, pending=1) + b"PING\r\n" + status(b"100 Idle Heartbeat") + delivery(2, b"")
    whole = JetStreamCounter()
    assert whole.feed(data) == b"PONG\r\n"
    assert (whole.messages, whole.pending, whole.answered) == (2, 0, True)
    assert whole.answer == b'{"name":"one"}'
    assert whole.data_bytes == len(delivery(1, pending=1) + delivery(2, b""))
    for position in range(len(data) + 1):
        counter = JetStreamCounter()
        answered = counter.feed(data[:position]) + counter.feed(data[position:])
        assert (answered, counter.messages, counter.data_bytes) == (b"PONG\r\n", 2, whole.data_bytes)
    counter = JetStreamCounter()
    assert b"".join(counter.feed(bytes([byte])) for byte in data) == b"PONG\r\n"
    assert (counter.messages, counter.answer) == (2, whole.answer)


@pytest.mark.parametrize(
    "deliveries",
    [[delivery(2)], [delivery(1), delivery(3)], [delivery(1), delivery(1)], [b"MSG orders 1 5\r\nvalue\r\n"]],
)
def test_a_message_that_is_missing_is_noticed(deliveries):
    with pytest.raises(ProtocolError, match="missing, or came out of order"):
        JetStreamCounter().feed(b"".join(deliveries))


def test_the_sequence_is_that_of_the_consumer_and_not_of_the_stream():
    counter = JetStreamCounter()
    counter.feed(delivery(1, more=41) + delivery(2, more=50, pending=7))
    assert (counter.messages, counter.pending) == (2, 7)


def test_flow_control_is_answered():
    counter = JetStreamCounter()
    assert counter.feed(status(b"100 FlowControl Request", reply=b"$JS.FC.orders.one.x")) == (
        b"PUB $JS.FC.orders.one.x 0\r\n\r\n"
    )
    stalled = status(b"100 Idle Heartbeat", b"Nats-Consumer-Stalled: $JS.FC.y\r\nNats-Last-Stream: 5\r\n")
    assert counter.feed(stalled) == b"PUB $JS.FC.y 0\r\n\r\n"
    assert counter.messages == 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (status(b"409 Consumer Deleted"), b"409 Consumer Deleted"),
        (status(b"503"), b"503"),
        (b"HMSG _INBOX.a 2 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", b"503"),
        (b"-ERR 'Permissions Violation'\r\n", b"Permissions Violation"),
    ],
)
def test_what_the_server_refuses_is_the_reason(data, text):
    with pytest.raises(RefusedError) as refused:
        JetStreamCounter().feed(data)
    assert text in refused.value.detail


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"MSG a b c d e f 1\r\nx\r\n",
        b"MSG orders\r\n",
        delivery(1)[:-1] + b"x",
        b"\n",
    ],
)
def test_what_is_not_nats_is_an_error(data):
    with pytest.raises(ProtocolError, match="not the NATS protocol"):
        JetStreamCounter().feed(data)


def test_a_pull_consumer_is_asked_again_when_half_has_come():
    request = b"PUB next inbox 2\r\n{}\r\n"
    counter = JetStreamCounter()
    counter.pull(request, 4)
    assert counter.feed(ANSWER) == request
    asked = [counter.feed(delivery(sequence)) == request for sequence in range(1, 9)]
    # More than two of the four that were asked for have come: there are never fewer than two on their way.
    assert asked == [False, False, True, False, False, False, True, False]


def test_stamps_are_read_where_they_are_wanted():
    counter = JetStreamCounter(stamped=2)
    before = time.monotonic_ns()
    counter.feed(delivery(1, stamped(1, before - 5_000_000)) + delivery(2, stamped(0, before)))
    assert (counter.stamps.total, counter.stamps.latency.total) == (2, 2)
    assert counter.stamps.latency.max >= 5_000_000
    with pytest.raises(ProtocolError, match="delivered twice"):
        counter.feed(delivery(3, stamped(0, before)))
    with pytest.raises(ProtocolError, match="no publisher of this run"):
        JetStreamCounter(stamped=2).feed(delivery(1, b"short"))


async def test_heartbeats_are_no_messages(monkeypatch):
    """A server that goes on saying that it lives, and delivers one message of two."""
    monkeypatch.setattr(jetstream_subscriber, "SILENCE_MS", 100)
    ours, theirs = socket.socketpair()
    cut_off = []

    def live() -> None:
        stop = time.monotonic() + 20
        while time.monotonic() < stop:
            try:
                theirs.sendall(status(b"100 Idle Heartbeat"))
            except OSError:
                cut_off.append(True)
                return
            time.sleep(0.01)

    with ours, theirs:
        theirs.sendall(ANSWER + delivery(1))
        server = threading.Thread(target=live)
        server.start()
        try:
            with pytest.raises(BaseException) as failed:  # a nursery makes a group of it
                await OrderedConsumer(ours, "_INBOX.a", "push").follow("orders", 2)
        finally:
            server.join()
    (error,) = leaves(failed.value)
    assert isinstance(error, BenchError)
    assert "broke off after 1 messages: nothing came from the server for 0.1 s" in str(error)
    assert cut_off  # the consumer went while there were still heartbeats


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_is_read_from_its_beginning_and_at_its_end(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(jetstream_subscriber, "PULL_MESSAGES", 64)
    async with jetstream(argparse.Namespace(data_dir=tmp_path), "never") as target, target.stream() as stream:
        load = Load(2000, 1000, window=100)
        await publish.store(target, stream, load, "filling")
        async with consumer(target.server.nats, kind) as reader:
            received = await reader.run(stream, 2000)
        assert received.data_bytes > 2000 * 1000
        async with consumer(target.server.nats, kind) as reader:
            with pytest.raises(BaseException) as failed:
                await reader.run(stream, 1999)
        assert "of 1999 messages" in str(leaves(failed.value)[0])
        async with consumer(target.server.nats, kind) as reader:
            with pytest.raises(BaseException) as failed:
                await reader.run("nothing", 1)
        assert "JetStream refuses a consumer of nothing: stream not found" in str(leaves(failed.value)[0])


async def test_no_server_is_the_reason():
    with pytest.raises(BenchError, match="no NATS server answers at"):
        async with consumer(("127.0.0.1", 1), "push"):
            pass


def against(tmp_path, *arguments: object) -> "list[dict]":
    """The results of two rounds against JetStream, ours first; the ratios must be those of the medians."""
    out, err = bench(*arguments, "--against", "jetstream", "--repeat", 2, "--json", cwd=tmp_path)
    assert err == ""
    report = json.loads(out)
    assert [result["settings"]["target"] for result in report["results"]] == ["liftbridge", "jetstream"]
    ours, theirs = (result["summary"]["messages_per_second"]["median"] for result in report["results"])
    (ratio,) = report["ratios"]
    assert ratio["ratios"]["messages_per_second"] == pytest.approx(ours / theirs)
    assert list(tmp_path.iterdir()) == []
    return report["results"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [False, True])
def test_subscribe_runs_the_same_against_jetstream(tmp_path, kind, tail):
    arguments = ["--messages", 20_000, "--subscribers", 2, "--jetstream-consumer", kind]
    for result in against(tmp_path, "subscribe", *arguments, *(["--tail"] if tail else [])):
        for run in result["runs"]:
            assert run["messages_per_second"] == pytest.approx(2 * 20_000 / run["seconds"])
            assert run["wire_bytes_per_message"] > 128
            assert (run["bytes_per_data_frame"] is None) == (result["settings"]["target"] == "jetstream")


@pytest.mark.parametrize("kind", KINDS)
def test_delivery_runs_the_same_against_jetstream(tmp_path, kind):
    arguments = ["--messages", 2000, "--rate", 20_000, "--jetstream-consumer", kind, "--sync", "always"]
    for result in against(tmp_path, "e2e", *arguments):
        for run in result["runs"]:
            assert (run["delivered"], run["acks"]) == (2000, 2000)
            assert 0 < run["delivery_p50_us"] <= run["delivery_max_us"]


@pytest.mark.parametrize("rate", [0, 10_000])
def test_ingest_runs_the_same_against_jetstream(tmp_path, rate):
    """So few that JetStream has room for them while it falls behind."""
    arguments = ["--messages", 4000, "--publishers", 1, "--rate", rate, "--sync", "never"]
    for result in against(tmp_path, "ingest", *arguments):
        for run in result["runs"]:
            assert (run["stored"], run["lost"]) == (4000, 0)
            assert (run["nats_alone_messages_per_second"] is None) == (rate > 0)
            # The last of 4,000 messages at 10,000 a second is due after 0.3999 s, and not sent before.
            assert run["published_seconds"] >= (0.3999 if rate else 0)


async def test_no_two_plain_messages_are_the_same(tmp_path):
    async with jetstream(argparse.Namespace(data_dir=tmp_path), "never") as target, target.stream() as stream:
        load = Load(300, 128, publishers=3, via="plain", policy="none")
        async with publishing.publishers(target, stream, load) as source:
            await source.run()
        values = {
            (await target._call(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]["data"]
            for sequence in range(1, 301)
        }
    assert len(values) == 300
