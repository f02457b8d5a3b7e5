"""`liftbridge-bench publish` and the output of all workloads, against the real server."""

import argparse
import csv
import io
import json
import sys

import pytest
from harness import Server
from test_bench_commands import bench
from test_bench_delivery import leaves

from liftbridge.bench import publishing
from liftbridge.bench.errors import BenchError
from liftbridge.bench.jetstream_target import jetstream
from liftbridge.bench.main import main
from liftbridge.bench.target import Load

LATENCIES = [f"ack_{key}_us" for key in ("p50", "p90", "p99", "p99_9", "p99_99", "max")]


def figures(result: "dict[str, object]") -> "dict[str, float]":
    (run,) = result["runs"]
    return run


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--via", "nats", "--publishers", 3, "--sync", "both"], 9001),
        (["--via", "grpc", "--publishers", 2], 5000),
        (["--via", "grpc", "--window", 1, "--publishers", 2], 101),
        (["--via", "nats", "--window", 1, "--ack-policy", "all"], 100),
        (["--via", "nats", "--rate", 20_000, "--publishers", 2], 2000),
        (["--via", "grpc", "--size", 40_000, "--window", 8], 50),
    ],
)
def test_every_message_is_acked_once(tmp_path, arguments, messages):
    arguments = ["publish", *arguments, "--messages", messages, "--repeat", 1, "--json"]
    if "--sync" not in arguments:
        arguments += ["--sync", "never"]
    out, err = bench(*arguments, cwd=tmp_path)
    report = json.loads(out)
    assert err == ""
    assert [result["settings"]["sync"] for result in report["results"]] == (
        ["never", "always"] if "both" in arguments else ["never"]
    )
    for result in report["results"]:
        assert result["settings"]["target"] == "liftbridge"
        run = figures(result)
        assert (run["acks"], run["stored"], run["lost"]) == (messages, messages, 0)
        assert run["messages_per_second"] == pytest.approx(messages / run["seconds"])
        latencies = [run[name] for name in LATENCIES]
        assert latencies == sorted(latencies)
        assert latencies[0] > 0
        curve = result["latencies_us"]["ack"]
        assert curve[-1] == [100.0, pytest.approx(run["ack_max_us"])]
        if sys.platform == "linux":
            assert run["server_cpu_us_per_message"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("via", "window", "acks"), [("nats", 64, 0), ("grpc", 64, 0), ("grpc", 1, 200)])
def test_without_acks_the_stored_messages_count(tmp_path, via, window, acks):
    arguments = ["--via", via, "--window", window, "--ack-policy", "none", "--messages", 200]
    out, _ = bench("publish", *arguments, "--sync", "never", "--repeat", 1, "--json", cwd=tmp_path)
    run = figures(json.loads(out)["results"][0])
    assert (run["acks"], run["stored"], run["lost"]) == (acks, 200, 0)
    assert (run["ack_p50_us"] is None) == (acks == 0)  # a unary call has an answer all the same


def test_csv_has_a_line_for_each_run(tmp_path):
    arguments = ["publish", "--messages", 500, "--sync", "never", "--repeat", 2]
    out, err = bench(*arguments, "--csv", "-", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert err == ""
    assert [(row["command"], row["run"], row["acks"], row["sync"]) for row in rows] == [
        ("publish", "1", "500", "never"),
        ("publish", "2", "500", "never"),
    ]
    assert all(float(row["ack_p99_us"]) > 0 and row["machine_commit"] for row in rows)


def test_csv_goes_to_a_file_beside_the_text(tmp_path):
    arguments = ["publish", "--messages", 500, "--sync", "never", "--repeat", 1, "--csv", "runs.csv"]
    out, _ = bench(*arguments, cwd=tmp_path)
    assert "ack latency p99.99, us" in out
    (row,) = csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text()))
    assert row["stored"] == "500"


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["publish", "--messages", 500, "--sync", "both", "--repeat", 2, "--plot", "runs.png"]
    bench(*arguments, cwd=tmp_path)
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--json", "--csv", "-"], "one of --json and --csv -"),
        (["--csv", "missing/runs.csv"], "missing is no directory"),
        (["--plot", "runs.txt"], "ends with .png"),
    ],
)
def test_output_that_cannot_be_written_is_found_before_anything_runs(arguments, text, capsys):
    assert main(["publish", *arguments]) == 1
    assert text in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("liftbridge.bench.plot.importlib.util.find_spec", lambda name: None)
    assert main(["publish", "--plot", "runs.png"]) == 1
    assert "pip install 'liftbridge[bench]'" in capsys.readouterr().err


def test_a_negative_ack_is_the_reason(tmp_path):
    """A message that NATS takes and the server does not."""
    with Server(tmp_path / "server", {"clustering.replication.max.bytes": 1000}) as server:
        common = ["--server", server.address, "--nats", server.nats_url, "--messages", 10, "--repeat", 1]
        for via, window, text in (
            ("nats", 10, "ack with the error TOO_LARGE"),
            ("grpc", 10, "BAD_REQUEST: message exceeds clustering.replication.max.bytes"),
            ("grpc", 1, "gRPC status 3 (the message is larger than clustering.replication.max.bytes allows)"),
        ):
            arguments = ["publish", "--size", 2000, "--via", via, "--window", window, *common]
            out, err = bench(*arguments, cwd=tmp_path, status=1)
            assert out == ""
            assert text in err


def test_what_nats_does_not_take_is_the_reason(tmp_path):
    arguments = ["publish", "--size", 2_000_000, "--messages", 10, "--sync", "never"]
    _, err = bench(*arguments, cwd=tmp_path, status=1)
    assert "NATS takes messages of at most 1048576 bytes" in err


@pytest.mark.parametrize(
    "arguments", [["--window", 32, "--publishers", 2], ["--window", 1], ["--ack-policy", "none"]]
)
def test_jetstream_runs_the_same(tmp_path, arguments):
    arguments = ["publish", *arguments, "--against", "jetstream", "--messages", 300, "--repeat", 2]
    out, err = bench(*arguments, "--sync", "both", "--json", cwd=tmp_path)
    assert err == ""
    report = json.loads(out)
    assert [(result["settings"]["target"], result["settings"]["sync"]) for result in report["results"]] == [
        ("liftbridge", "never"),
        ("jetstream", "never"),
        ("liftbridge", "always"),
        ("jetstream", "always"),
    ]
    for result in report["results"]:
        assert len(result["runs"]) == 2
        for run in result["runs"]:
            assert (run["acks"], run["stored"], run["lost"]) == (0 if "none" in arguments else 300, 300, 0)
    assert [ratio["sync"] for ratio in report["ratios"]] == ["never", "always"]
    for number, ratio in enumerate(report["ratios"]):
        assert (ratio["target"], ratio["against"]) == ("liftbridge", "jetstream")
        ours, theirs = (
            report["results"][2 * number + i]["summary"]["messages_per_second"]["median"] for i in (0, 1)
        )
        assert ratio["ratios"]["messages_per_second"] == pytest.approx(ours / theirs)
    assert list(tmp_path.iterdir()) == []


def test_the_ratio_is_printed(tmp_path):
    arguments = ["publish", "--against", "jetstream", "--messages", 100, "--repeat", 1, "--sync", "never"]
    out, _ = bench(*arguments, cwd=tmp_path)
    lines = out.partition("liftbridge / jetstream, sync never, medians\n")[2].splitlines()
    assert [line.split()[0] for line in lines][:2] == ["messages/s", "MB/s"]


def test_a_comparison_needs_servers_of_its_own(tmp_path):
    _, err = bench("publish", "--against", "jetstream", "--server", "127.0.0.1:1", cwd=tmp_path, status=1)
    assert "takes no --server" in err


async def test_what_jetstream_refuses_is_the_reason(tmp_path):
    """A subject that no stream listens to: nobody answers, and NATS says so."""
    async with jetstream(argparse.Namespace(data_dir=tmp_path), "never") as target:
        async with publishing.publishers(target, "nobody", Load(10, 100, window=5)) as source:
            with pytest.raises(BaseException) as failed:  # a nursery makes a group of it
                await source.run()
        assert "NATS/1.0 503" in str(leaves(failed.value)[0])
        with pytest.raises(BenchError, match=r"JetStream refuses STREAM.INFO.nobody: stream not found"):
            await target.stored("nobody")
