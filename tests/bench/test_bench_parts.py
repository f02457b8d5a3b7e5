"""The parts around the workloads: statistics, reports, CPU times, disk probe, loss, the publisher's bytes."""

import argparse
import io
import os
import subprocess
import sys

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from liftbridge.bench import disk, machine, main, messages, report
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.errors import BenchError
from liftbridge.bench.progress import Progress
from liftbridge.bench.server import address
from liftbridge.bench.stored import SETTLE_SECONDS, until_stored

FIGURES = (report.Figure("speed", "messages/s"), report.Figure("cpu", "CPU us", 3))


def result(*runs):
    return report.Result({"sync": "never", "messages": 1_000_000}, FIGURES, runs)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0, 100))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(values, percent):
    found = report.percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    assert sum(value < found for value in values) <= max(0, len(values) * percent / 100)


def test_a_summary_is_median_and_spread():
    assert result({"speed": 5.0}, {"speed": 1.0}, {"speed": 2.0}).summary("speed") == {
        "median": 2.0,
        "min": 1.0,
        "max": 5.0,
    }


def test_what_one_run_does_not_know_is_not_summed_up():
    one = result({"speed": 5.0, "cpu": 0.5}, {"speed": 1.0, "cpu": None})
    assert one.summary("cpu") is None
    assert report.as_json("ingest", {}, [one])["results"][0]["summary"]["cpu"] is None
    assert report.table(one).splitlines()[-1].split()[-3:] == ["n/a"] * 3


def test_a_table_has_settings_and_figures():
    text = report.table(result({"speed": 1234567.0, "cpu": 0.1234}))
    assert text.splitlines()[0] == "sync never, messages 1,000,000"
    assert text.splitlines()[-2].split() == ["messages/s"] + ["1,234,567"] * 3
    assert text.splitlines()[-1].split() == ["CPU", "us"] + ["0.123"] * 3


def test_lost_messages_fail_the_command(capsys):
    assert main._verdict([result({"lost": 0}, {"lost": 0})]) == 0
    assert main._verdict([result({"lost": 0}), result({"lost": 3})]) == 1
    assert "3 messages were lost" in capsys.readouterr().err


def test_every_machine_tells_what_it_is():
    described = machine.describe()
    assert all(described.values())
    assert report.header("ingest", described).startswith("liftbridge-bench ingest, liftbridge ")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the CPU time of other processes")
def test_cpu_time_of_another_process():
    code = (
        "import sys\nsys.stdin.readline()\nsum(range(3_000_000))\nprint(1, flush=True)\nsys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        meter = CpuMeter({"child": child.pid, "nobody": None})
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        used = meter.used()
        child.stdin.write(b"\n")
    assert used["nobody"] is None
    # Three million additions take far more than a millisecond of CPU, and the clock is exact.
    assert used["child"] > 0.001
    assert CpuMeter({"child": child.pid}).used() == {"child": None}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the CPU time of other processes")
def test_cpu_time_of_this_process_agrees_with_its_own_count():
    before = os.times()
    meter = CpuMeter({"self": os.getpid()})
    sum(range(3_000_000))
    used = meter.used()["self"]
    after = os.times()
    # os.times counts ticks of 10 ms, one may be missing at either end.
    assert used <= after.user + after.system - before.user - before.system + 0.03


def test_the_disk_probe_leaves_nothing(tmp_path):
    speed = disk.probe(tmp_path, samples=20)
    assert 0 < speed.fdatasync_p50_us <= speed.fdatasync_p99_us
    assert speed.samples == 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 16, 128])
def test_plain_messages_are_never_taken_for_envelopes(size):
    template = messages.plain("bench.1", "", messages.value(size, stamped=False), "none")
    head, value, _ = template.data.split(b"\r\n")
    assert head == f"PUB bench.1 {size}".encode()
    assert len(value) == size
    assert value.isalnum()
    assert template.serial_at == (len(head) + 2 if size >= 16 else -1)


async def test_loss_is_found_when_nothing_more_comes(autojump_clock):
    answers = iter([0, 4, 7])
    asked_at = []

    async def committed():
        asked_at.append(autojump_clock.current_time())
        return next(answers, 7)

    with Progress(10, "") as bar:
        stored, _ = await until_stored(committed, 10, bar)
    assert stored == 7
    assert asked_at[-1] - asked_at[2] > SETTLE_SECONDS


async def test_slow_progress_is_no_loss(autojump_clock):
    counts = iter(range(10))
    last = 0

    async def committed():
        nonlocal last
        await trio.sleep(0.9 * SETTLE_SECONDS)
        last = next(counts, 10)
        return last

    with Progress(10, "") as bar:
        stored, _ = await until_stored(committed, 10, bar)
    assert stored == 10


def test_what_another_system_loses_is_not_ours(capsys):
    ours, theirs = (
        report.Result({"target": name}, FIGURES, [{"lost": lost}]) for name, lost in (("a", 0), ("b", 5))
    )
    assert main._verdict([ours, theirs]) == 0
    assert main._verdict([theirs, ours]) == 1
    assert "5 messages were lost" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_for_terminals():
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        with Progress(4, "run", stream) as bar:
            bar.update(2)
        assert ("50%" in stream.getvalue()) is shown
        assert bool(stream.getvalue()) is shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", ("host", 9292)),
        ("host:1", ("host", 1)),
        ("nats://127.0.0.1:4222", ("127.0.0.1", 4222)),
        ("[::1]:5", ("::1", 5)),
    ],
)
def test_addresses(text, expected):
    assert address(text, 9292) == expected


@pytest.mark.parametrize("text", ["", ":1", "host:port", "host:99999999"])
def test_what_is_no_address(text):
    with pytest.raises(BenchError, match="host:port"):
        address(text, 1)


@pytest.mark.parametrize(
    "arguments",
    [["ingest", "--messages", "0"], ["ingest", "--sync", "often"], ["subscribe", "--window", "1"], []],
)
def test_a_wrong_command_line_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main.parser().parse_args(arguments)
    assert ended.value.code == 2
    assert "usage: liftbridge-bench" in capsys.readouterr().err


def test_options_have_the_documented_defaults():
    options = main.parser().parse_args(["subscribe"])
    assert isinstance(options, argparse.Namespace)
    assert (options.messages, options.size, options.repeat, options.window) == (1_000_000, 128, 3, 16 << 20)
