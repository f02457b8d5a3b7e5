"""`liftbridge-bench e2e`, `mixed`, `recover`, and `subscribe` with several, against the real server."""

import json
import os
import signal
import socket

import pytest
import trio
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame
from test_bench_commands import bench, server_of, start

from liftbridge.bench import delivery, replay
from liftbridge.bench.errors import BenchError

KEYS = ("p50", "p90", "p99", "p99_9", "p99_99", "max")


def run_of(tmp_path, *arguments: object) -> "tuple[dict, dict]":
    """The only result of a run on a server with the policy `never`, and its figures."""
    out, err = bench(*arguments, "--repeat", 1, "--json", cwd=tmp_path)
    assert err == ""
    (result,) = json.loads(out)["results"]
    (run,) = result["runs"]
    assert list(tmp_path.iterdir()) == []
    return result, run


@pytest.mark.parametrize(
    ("arguments", "deliveries"),
    [
        (["--via", "nats", "--rate", 20_000], 1000),
        (["--via", "grpc", "--rate", 20_000, "--subscribers", 3, "--publishers", 2], 3000),
        (["--via", "nats", "--rate", 0, "--window", 16, "--ack-policy", "none"], 1000),
    ],
)
def test_latency_of_each_delivery(tmp_path, arguments, deliveries):
    result, run = run_of(tmp_path, "e2e", "--messages", 1000, "--sync", "never", *arguments)
    assert run["delivered"] == deliveries
    assert run["acks"] == (0 if "none" in arguments else 1000)
    latencies = [run[f"delivery_{key}_us"] for key in KEYS]
    assert latencies == sorted(latencies)
    assert latencies[0] > 0
    assert result["latencies_us"]["delivery"][-1][1] == pytest.approx(run["delivery_max_us"])


def test_an_open_loop_takes_the_time_that_its_rate_says(tmp_path):
    """The last of 1,000 messages at 2,000 a second is due after 0.4995 s, and not sent before."""
    _, run = run_of(tmp_path, "e2e", "--messages", 1000, "--rate", 2000, "--sync", "never")
    assert run["seconds"] >= 0.4995


def test_publishers_and_subscribers_at_once(tmp_path):
    arguments = ["--messages", 5000, "--publishers", 3, "--subscribers", 2, "--sync", "always"]
    _, run = run_of(tmp_path, "mixed", *arguments)
    assert (run["acks"], run["delivered"]) == (5000, 10_000)
    assert run["messages_per_second"] == pytest.approx(2 * run["published_per_second"])


@pytest.mark.parametrize("tail", [False, True])
def test_throughput_is_the_sum_over_subscribers(tmp_path, tail):
    arguments = ["subscribe", "--messages", 4000, "--subscribers", 3, *(["--tail"] if tail else [])]
    result, run = run_of(tmp_path, *arguments)
    assert result["settings"]["subscribers"] == 3
    assert run["messages_per_second"] == pytest.approx(3 * 4000 / run["seconds"])
    assert run["wire_bytes_per_message"] > 128


@pytest.mark.parametrize("scan", [False, True])
def test_nothing_is_lost_in_a_recovery(tmp_path, scan):
    arguments = ["recover", "--messages", 20_000, *(["--scan"] if scan else [])]
    result, run = run_of(tmp_path, *arguments)
    assert run["lost"] == 0
    assert run["gib"] > 20_000 * 1024 / 2**30
    assert run["gib_per_second"] == pytest.approx(run["gib"] / run["seconds"])
    assert result["settings"]["index files"] == ("removed" if scan else "kept")


def test_recover_needs_a_server_that_it_may_kill(tmp_path):
    _, err = bench("recover", "--server", "127.0.0.1:1", cwd=tmp_path, status=1)
    assert "takes no --server" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["e2e", "--messages", 2_000_000],
        ["mixed", "--messages", 2_000_000],
        ["recover", "--messages", 2_000_000],
        ["publish", "--messages", 5_000_000, "--sync", "never"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_server_that_dies_is_the_reason(tmp_path, arguments):
    arguments = [*arguments, "--repeat", 1]
    with start(*arguments, cwd=tmp_path) as process:
        os.kill(server_of(process.pid), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the server ended by itself with status -9" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_latency_needs_room_for_a_stamp(tmp_path):
    _, err = bench("e2e", "--size", 15, "--sync", "never", cwd=tmp_path, status=1)
    assert "latency needs messages of 16 bytes at least" in err


async def test_a_message_that_is_lost_on_the_way_is_noticed(monkeypatch):
    """A server that delivers one message of two, and then nothing."""
    monkeypatch.setattr(replay, "SILENCE_MS", 100)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subscriber = replay.Replay(ours, "host:1", 1 << 20)
        headers = HeadersFrame(1, Encoder().encode([(":status", "200")]), flags=["END_HEADERS"])
        theirs.sendall(headers.serialize() + DataFrame(1, b"\0\0\0\0\0" * 2).serialize())
        with pytest.raises(BaseException) as failed:  # a nursery makes a group of it
            await subscriber.follow("orders", 2)
    (error,) = leaves(failed.value)
    assert isinstance(error, BenchError)
    assert "broke off after 1 messages: nothing came from the server for 0.1 s" in str(error)


def leaves(error: BaseException) -> "list[BaseException]":
    inner = getattr(error, "exceptions", None)
    return [error] if inner is None else [leaf for one in inner for leaf in leaves(one)]


async def test_a_subscription_that_does_not_begin_is_noticed(autojump_clock):
    class Silent:
        live = False

    with pytest.raises(BenchError, match="not live within"):
        await delivery._until_live([Silent()])
    assert trio.current_time() >= delivery.LIVE_SECONDS
