"""What `make bench` runs: every workload of benchmarks/README.md, told as the tables that stand there.

Each workload is a `liftbridge-bench` of its own, so that none inherits anything from the one before. The
tables go to standard output, everything that was measured goes to JSON files.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tables import machine_line

WORKLOADS = (
    ("ingest", "--sync", "both"),
    ("subscribe",),
    ("subscribe", "--window", "65535"),
)
LOG_REPEAT = 3  # times 12 seconds or so
# The columns of the tables: which figure, what it is called, decimals.
COLUMNS = {
    "ingest": (
        ("messages_per_second", "messages/s", 0),
        ("megabytes_per_second", "MB/s", 1),
        ("server_cpu_us_per_message", "server CPU us/message", 3),
        ("nats_cpu_us_per_message", "nats-server CPU us/message", 3),
        ("nats_alone_messages_per_second", "NATS alone, messages/s", 0),
        ("lost", "lost", 0),
    ),
    "subscribe": (
        ("messages_per_second", "messages/s", 0),
        ("megabytes_per_second", "MB/s", 1),
        ("server_cpu_us_per_message", "server CPU us/message", 3),
        ("generator_cpu_us_per_message", "subscriber CPU us/message", 3),
    ),
}
VARIANT = {"ingest": ("sync", "sync policy"), "subscribe": ("window", "HTTP/2 window, bytes")}


def main() -> int:
    """Run the workloads; returns the exit status: 1 if one failed or lost messages."""
    parser = argparse.ArgumentParser(description="Run all benchmarks and print their results as Markdown.")
    parser.add_argument("--messages", type=int, default=1_000_000, help="messages in a run (1000000)")
    parser.add_argument("--size", type=int, default=128, help="bytes in a message (128)")
    parser.add_argument(
        "--repeat", type=int, default=5, help="runs; tables show the median and the spread (5)"
    )
    parser.add_argument("--log-megabytes", type=int, default=512, help="size of the log alone (512)")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("build"), help="where the servers' data is kept (build)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build/bench.json"), help="all results (build/bench.json)"
    )
    options = parser.parse_args()
    options.data_dir.mkdir(parents=True, exist_ok=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    status, reports = 0, []
    for workload in WORKLOADS:
        report, failed = _run(workload, options)
        status |= failed
        if report is not None:
            reports.append(report)
    options.output.write_text(json.dumps(reports, indent=2) + "\n")
    if reports:
        print(machine_line(reports[0]["machine"]))
    for command in COLUMNS:
        results = [
            result for report in reports if report["command"] == command for result in report["results"]
        ]
        if results:
            print(_table(command, results), flush=True)
    return status | _run_log(options)


def _run_log(options: argparse.Namespace) -> int:
    """Run the benchmark of the log alone, which prints its tables itself."""
    script = Path(__file__).with_name("log_core.py")
    arguments = ["--directory", str(options.data_dir), "--json", str(options.output.with_suffix(".log.json"))]
    arguments += ["--megabytes", str(options.log_megabytes), "--repeat", str(min(options.repeat, LOG_REPEAT))]
    print(f"{script.name} {shlex.join(arguments)}", file=sys.stderr)
    done = subprocess.run([sys.executable, str(script), *arguments])
    return int(done.returncode != 0)


def _run(workload: tuple[str, ...], options: argparse.Namespace) -> tuple[dict[str, Any] | None, int]:
    """Run one workload; returns its report, if there is one, and whether something was wrong with it."""
    arguments = [*workload, "--messages", str(options.messages), "--size", str(options.size)]
    arguments += ["--repeat", str(options.repeat), "--data-dir", str(options.data_dir), "--json"]
    print(f"liftbridge-bench {shlex.join(arguments)}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "liftbridge.bench.main", *arguments], stdout=subprocess.PIPE, text=True
    )
    return (json.loads(done.stdout) if done.stdout else None), int(done.returncode != 0)


def _table(command: str, results: list[dict[str, Any]]) -> str:
    setting, title = VARIANT[command]
    columns = COLUMNS[command]
    settings = results[0]["settings"]
    lines = [
        f"### {command}, {settings['messages']:,} messages of {settings['size']} bytes\n",
        "| " + " | ".join([title, *(label for _, label, _ in columns), "fdatasync p50 / p99, us"]) + " |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    for result in results:
        cells = [str(result["settings"][setting])]
        cells += [_cell(result["summary"][key], decimals) for key, _, decimals in columns]
        cells.append("{fdatasync_p50_us:,.0f} / {fdatasync_p99_us:,.0f}".format(**result["disk"]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(summary: dict[str, float] | None, decimals: int) -> str:
    """Median, and the spread if there is one."""
    if summary is None:
        return "n/a"
    median, low, high = (f"{summary[name]:,.{decimals}f}" for name in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
