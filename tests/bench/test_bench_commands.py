"""`liftbridge-bench` as a user runs it, against the real server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import Server

from liftbridge.proto import api_pb2

MESSAGES = 20_000


def start(*arguments: object, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "liftbridge.bench.main", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bench(*arguments: object, cwd: Path, status: int = 0) -> "tuple[str, str]":
    """Run to the end; returns what was printed on standard output and standard error."""
    with start(*arguments, cwd=cwd) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == status, err
    return out, err


def test_ingest_stores_every_message(tmp_path):
    out, err = bench(
        "ingest", "--messages", MESSAGES, "--sync", "both", "--repeat", 2, "--json", cwd=tmp_path
    )
    report = json.loads(out)
    assert err == ""  # no progress bar, no warnings
    assert report["command"] == "ingest"
    assert [result["settings"]["sync"] for result in report["results"]] == ["never", "always"]
    for result in report["results"]:
        assert len(result["runs"]) == 2
        for run in result["runs"]:
            assert (run["stored"], run["lost"]) == (MESSAGES, 0)
            assert run["messages_per_second"] == pytest.approx(MESSAGES / run["seconds"])
            assert run["published_seconds"] > 0
            assert run["nats_alone_messages_per_second"] > 0
        speeds = [run["messages_per_second"] for run in result["runs"]]
        summary = result["summary"]["messages_per_second"]
        assert (summary["min"], summary["max"]) == (min(speeds), max(speeds))
        assert 0 < result["disk"]["fdatasync_p50_us"] <= result["disk"]["fdatasync_p99_us"]
        if sys.platform == "linux":
            assert all(run["server_cpu_us_per_message"] > 0 for run in result["runs"])
            assert all(run["nats_cpu_us_per_message"] > 0 for run in result["runs"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("window", [65535, 16 << 20])
def test_subscribe_delivers_every_message(tmp_path, window):
    out, err = bench(
        "subscribe",
        "--messages",
        MESSAGES,
        "--size",
        100,
        "--window",
        window,
        "--repeat",
        1,
        "--json",
        cwd=tmp_path,
    )
    report = json.loads(out)
    assert err == ""
    (result,) = report["results"]
    assert result["settings"]["window"] == window
    (run,) = result["runs"]
    assert run["messages_per_second"] == pytest.approx(MESSAGES / run["seconds"])
    assert run["wire_bytes_per_message"] > 100
    assert list(tmp_path.iterdir()) == []


def test_the_ceiling_can_be_left_out(tmp_path):
    arguments = ["--messages", 1000, "--sync", "never", "--repeat", 1, "--json", "--no-ceiling"]
    out, _ = bench("ingest", *arguments, cwd=tmp_path)
    (result,) = json.loads(out)["results"]
    assert result["runs"][0]["nats_alone_messages_per_second"] is None
    assert result["summary"]["nats_alone_messages_per_second"] is None


def test_the_report_for_people(tmp_path):
    out, _ = bench("ingest", "--messages", 1000, "--sync", "never", "--repeat", 1, cwd=tmp_path)
    assert "liftbridge-bench ingest, liftbridge " in out
    assert "sync never, messages 1,000, size 128" in out
    assert "fdatasync p50" in out
    (lost,) = (line for line in out.splitlines() if "messages lost" in line)
    assert lost.split()[-3:] == ["0", "0", "0"]


def test_a_server_that_runs_already(tmp_path):
    with Server(tmp_path / "server") as server:
        assert server.process is not None
        common = [
            "--server",
            server.address,
            "--nats",
            server.nats_url,
            "--messages",
            3000,
            "--repeat",
            1,
            "--json",
        ]
        out, _ = bench("ingest", *common, "--server-pid", server.process.pid, cwd=tmp_path)
        ingest = json.loads(out)["results"][0]
        subscribe = json.loads(bench("subscribe", *common, cwd=tmp_path)[0])["results"][0]
        # It is left as it was found.
        assert not server.api().FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=10).streamMetadata
    assert ingest["settings"]["sync"] == subscribe["settings"]["sync"] == "as the running server has it"
    assert ingest["runs"][0]["lost"] == 0
    assert (ingest["runs"][0]["server_cpu_us_per_message"] is not None) == (sys.platform == "linux")
    assert ingest["runs"][0]["nats_cpu_us_per_message"] is None
    assert ingest["disk"] == {}


def test_a_message_that_nats_does_not_take(tmp_path):
    _, err = bench("ingest", "--messages", 10, "--size", 2_000_000, "--sync", "never", cwd=tmp_path, status=1)
    assert "NATS takes messages of at most 1048576 bytes" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--server", "127.0.0.1:1"], "no server answers at 127.0.0.1:1"),
        (["--server", "nowhere:port"], "write host:port"),
        (["--data-dir", "missing"], "missing is no directory"),
    ],
)
def test_what_cannot_be_run_is_explained(tmp_path, arguments, text):
    _, err = bench("ingest", *arguments, cwd=tmp_path, status=1)
    assert err.startswith("liftbridge-bench: ")
    assert text in err
    assert "Traceback" not in err


def test_a_server_that_dies_is_reported_and_nothing_is_left(tmp_path):
    with start("ingest", "--messages", 3_000_000, "--sync", "never", cwd=tmp_path) as process:
        pid = server_of(process.pid)
        os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the server ended by itself with status -9" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    with start("ingest", "--messages", 3_000_000, "--sync", "never", cwd=tmp_path) as process:
        pid = server_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "liftbridge-bench: stopped\n"
    assert not alive(pid)
    assert list(tmp_path.iterdir()) == []


def server_of(pid: int) -> int:
    """The process id of the server that a benchmark has started, once it has."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        lines = subprocess.run(
            ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        for line in lines.splitlines():
            child, parent, command = line.split(None, 2)
            if int(parent) == pid and "liftbridge.cli.main" in command:
                return int(child)
        time.sleep(0.01)
    raise AssertionError("the benchmark started no server")


def alive(pid: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")
