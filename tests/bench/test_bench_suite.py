"""What `make bench` and `make bench-check` run, at small sizes, and what they conclude."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
MACHINE = {"cpu": "2 x Fast", "python": "CPython 3.11.7"}


@pytest.fixture
def part(monkeypatch):
    """Imports a module of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def script(name: str, *arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)


def rows(text: str, heading: str) -> "list[list[str]]":
    """The cells of the table below a heading, without its head."""
    lines = text.partition(f"### {heading}\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_make_bench_compares_with_jetstream_and_says_what_was_reached(tmp_path):
    arguments = ["--only", "ingest", "--only", "publish", "--share", 0.002, "--repeat", 1]
    done = script("run.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ingest = rows(done.stdout, "ingest")
    assert [row[:3] for row in ingest] == [
        ["ingest", "never", "liftbridge"],
        ["ingest", "never", "jetstream"],
        ["", "", "ratio"],
        ["ingest", "always", "liftbridge"],
        ["ingest", "always", "jetstream"],
        ["", "", "ratio"],
    ]
    published = rows(done.stdout, "publish")
    assert [row[0] for row in published if row[2] == "liftbridge"] == [
        *["pipelined over NATS"] * 2,
        *["PublishAsync"] * 2,
        *["Publish, one at a time"] * 2,
    ]
    ours, theirs, ratio = (float(row[3].replace(",", "")) for row in published[:3])
    assert ratio == pytest.approx(ours / theirs, abs=0.01)
    goals = rows(done.stdout, "Goals")
    assert {row[-1] for row in goals} <= {"yes", "**no**"}
    lost = ["ingest", "never", "messages lost", "at most 0", "0", "yes"]
    assert lost in goals
    reports = json.loads((tmp_path / "build" / "bench.json").read_text())
    assert [report["command"] for report in reports] == ["ingest"] * 2 + ["publish"] * 6
    assert all(len(report["results"]) == 2 for report in reports)


def test_make_bench_delivers_and_recovers(tmp_path):
    names = [name for section in ("subscribe", "e2e", "recover") for name in ("--only", section)]
    plots = ["--plots", "plots"] if importlib.util.find_spec("matplotlib") else []
    done = script("run.py", *names, *plots, "--share", 0.01, "--repeat", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = [row[0] for row in rows(done.stdout, "subscribe")]
    assert named == ["replay", "replay", "", "replay, window 64 KiB", "tail", "tail", ""]
    assert [row[2] for row in rows(done.stdout, "e2e")] == ["liftbridge", "jetstream", "ratio"] * 2
    assert [row[-1] for row in rows(done.stdout, "recover")] == ["0", "0"]
    assert [row[0] for row in rows(done.stdout, "Goals")] == [
        *["subscribe: replay"] * 2,
        *["e2e: 10,000 messages/s"] * 3,
        "recover: after kill -9",
    ]
    if plots:
        assert len(list((tmp_path / "plots").glob("*.png"))) == 7


def test_make_bench_draws_curves(tmp_path):
    names = [name for section in ("subscribers", "partitions", "log") for name in ("--only", section)]
    plots = ["--plots", "plots"] if importlib.util.find_spec("matplotlib") else []
    arguments = [
        "--share",
        0.02,
        "--repeat",
        1,
        "--subscribers",
        1,
        50,
        "--partitions",
        100,
        "--log-megabytes",
        96,
    ]
    done = script("run.py", *names, *plots, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for workload in ("replay", "tail"):
        assert [row[0] for row in rows(done.stdout, f"many subscribers, {workload}")] == ["1", "50"]
    assert "### a server with 100 partitions" in done.stdout
    assert "### log, 96 MiB in batches of 256 KiB" in done.stdout
    curve = json.loads((tmp_path / "build" / "bench.subscribers.json").read_text())["subscribers"]
    for runs in curve.values():
        assert all(run["messages_per_second"] > 0 for workload in runs.values() for run in workload)
    values = json.loads((tmp_path / "build" / "bench.log.json").read_text())["values"]
    for work in ("append", "read", "read_reverse", "recover", "compact"):
        assert all(figures[f"{work}_gib_cpu_s"][0] > 0 for figures in values.values()), work
    if plots:
        assert {path.name for path in (tmp_path / "plots").iterdir()} == {"subscribers.png", "partitions.png"}


def test_a_goal_is_reached_or_not(part):
    goals, suite = part("goals"), part("suite")

    def outcome(target, sync, speed):
        summary = {"messages_per_second": {"median": speed, "min": speed, "max": speed}}
        return suite.Outcome("publish", "pipelined over NATS", sync, target, summary)

    found = [
        outcome("liftbridge", "never", 500_000.0),
        outcome("jetstream", "never", 400_000.0),
        outcome("liftbridge", "always", 320_000.0),
        outcome("jetstream", "always", 3_000.0),
    ]
    assert [row[3:] for row in rows(goals.goal_table(found), "Goals")] == [
        ["at least 400,000", "500,000", "yes"],
        ["at least 1.5 x", "1.25 x", "**no**"],
        ["at least 50 x", "106.67 x", "yes"],
        ["at least 60%", "64%", "yes"],
    ]


def test_every_goal_is_of_a_line_that_is_run(part):
    goals, suite = part("goals"), part("suite")
    lines = {
        (section.name, line.name, column.key)
        for section in suite.SECTIONS
        for line in section.lines
        for column in section.columns
    }
    assert {(goal.section, goal.line, goal.key) for goal in goals.GOALS} <= lines


# ---- bench-check ----


NAME = "publish over NATS, never"
CHECK = ["--rounds", 1, "--most-rounds", 3, "--repeat", 1, "--share", 0.02, "--only", NAME]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the CPU time of other processes")
def test_a_message_that_has_become_dearer_fails_the_check(tmp_path):
    """The same server against what it cost, and against a baseline in which it cost a tenth."""
    baseline = tmp_path / "baseline.json"
    written = script("check.py", "--write", "--baseline", baseline, *CHECK, cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    stored = json.loads(baseline.read_text())
    workload = stored["workloads"]["publish over NATS, never"]
    assert 0 < workload["best_us"] <= workload["median_us"]
    assert {"cpu", "kernel", "python", "commit"} <= stored["machine"].keys()
    # Runs this short differ by more than real ones do.
    same = script("check.py", "--baseline", baseline, "--tolerance", 900, *CHECK, cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert "| publish over NATS, never |" in same.stdout
    workload["best_us"] /= 10
    baseline.write_text(json.dumps(stored))
    dearer = script("check.py", "--baseline", baseline, *CHECK, cwd=tmp_path)
    assert dearer.returncode == 1, dearer.stdout
    assert "More than 10 % dearer than the baseline: publish over NATS, never" in dearer.stderr
    (row,) = (line for line in dearer.stdout.splitlines() if line.startswith("| publish over NATS, never |"))
    assert int(row.split("|")[5]) == 3  # it was run again before that was said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no baseline"),
        ("{", "there is no baseline"),
        ('{"format": 0}', "another format"),
        ('{"format": 1, "workloads": {}}', "measured with another 'publish over NATS, never'"),
    ],
)
def test_a_baseline_that_cannot_be_compared_with(tmp_path, text, reason):
    baseline = tmp_path / "baseline.json"
    if text is not None:
        baseline.write_text(text)
    done = script("check.py", "--baseline", baseline, *CHECK, cwd=tmp_path)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "make bench-baseline" in done.stderr


def test_the_committed_baseline_is_of_what_is_run(part):
    check = part("check")
    baseline = check.load(check.BASELINE, check.WORKLOADS)
    assert all(baseline["workloads"][workload.name]["best_us"] > 0 for workload in check.WORKLOADS)


@pytest.mark.parametrize(
    ("facts", "reference", "factor"),
    [
        ({}, 10.0, 1.0),
        ({}, 8.0, 1.0),  # on the same machine nothing gets stricter
        ({}, 12.0, 1.2),
        ({"cpu": "2 x Slow"}, 20.0, 2.0),
        ({"cpu": "4 x Faster"}, 5.0, 0.5),
        ({"python": "CPython 3.14.0"}, 8.0, 0.8),
    ],
)
def test_another_machine_is_told_by_the_reference(part, facts, reference, factor):
    check = part("check")
    baseline = {"machine": MACHINE, "reference_ms": {"checksum": 4.0, "file": 6.0}}
    found, why = check.scale(baseline, MACHINE | facts, {"checksum": reference / 2, "file": reference / 2})
    assert found == pytest.approx(factor)
    assert ("estimate" in why) == bool(facts)
    assert check.dearer([3.0, 2.2], {"best_us": 2.0}, found) == pytest.approx((1.1 / factor - 1) * 100)


def test_the_reference_takes_cpu_time(part, tmp_path):
    found = part("reference").measure(tmp_path)
    assert set(found) == {"checksum", "interpreter", "file", "socket"}
    assert all(ms > 0 for ms in found.values())
    assert list(tmp_path.iterdir()) == []
