"""What `make bench` runs: everything that benchmarks/README.md tells, as the tables that stand there.

Each workload is a process of its own, so that none inherits anything from the one before. Where JetStream
can do the same it does, taking turns (`suite.py`). The tables go to standard output, the last one says which
goals were reached (`goals.py`); everything that was measured goes to JSON files, and with `--plots` there
are pictures.

    python benchmarks/run.py [--only publish --only e2e] [--share 0.1] [--plots build/plots]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from command import Report, bench
from curves import draw_partitions, draw_subscribers
from goals import goal_table
from suite import SECTIONS, Line, Outcome, Section, outcomes, section_table
from tables import machine_line

LOG_REPEAT = 3  # times 12 seconds or so
SCRIPTS = ("subscribers", "partitions", "log")
NAMES = (*(section.name for section in SECTIONS), *SCRIPTS)


def main() -> int:
    """Run the workloads; returns the exit status: 1 if one failed or lost messages."""
    options = _options()
    for directory in (options.data_dir, options.output.parent, options.plots):
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
    if options.plots is not None and importlib.util.find_spec("matplotlib") is None:
        print("--plots needs matplotlib: pip install 'liftbridge[bench]'", file=sys.stderr)
        return 1
    failed = False
    reports: list[Report] = []
    found: list[Outcome] = []
    for section in SECTIONS:
        if section.name in options.only:
            failed |= _section(section, options, reports, found)
    options.output.write_text(json.dumps(reports, indent=2) + "\n")
    for name, run in zip(SCRIPTS, (_subscribers, _partitions, _log), strict=True):
        if name in options.only:
            failed |= run(options)
    if found:
        print(goal_table(found), flush=True)
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run all benchmarks and print their results as Markdown.")
    parser.add_argument("--only", choices=NAMES, action="append", help="only these sections (all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the messages, to try it out (1)")
    parser.add_argument(
        "--repeat", type=int, default=5, help="runs; tables show the median and the spread (5)"
    )
    parser.add_argument(
        "--subscribers", type=int, nargs="+", default=[1, 10, 100, 1000], help="(1 10 100 1000)"
    )
    parser.add_argument(
        "--partitions", type=int, nargs="+", default=[100, 1000, 10_000], help="hundreds (100 1000 10000)"
    )
    parser.add_argument("--log-megabytes", type=int, default=512, help="size of the log alone (512)")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("build"), help="where the servers' data is kept (build)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/bench.json"),
        help="all results of liftbridge-bench; those of other sections beside it (build/bench.json)",
    )
    parser.add_argument("--plots", type=Path, help="directory for pictures; needs liftbridge[bench]")
    options = parser.parse_args()
    options.only = options.only or NAMES
    return options


def _section(
    section: Section, options: argparse.Namespace, reports: list[Report], found: list[Outcome]
) -> bool:
    """Run a section and print its table; returns whether something was wrong."""
    failed, here = False, []
    for number, line in enumerate(section.lines, 1):
        report, bad = bench(_arguments(section, number, line, options))
        failed |= bad
        if report is not None:
            if not reports:
                print(machine_line(report["machine"]), flush=True)
            reports.append(report)
            here += outcomes(section, line, report)
    found += here
    if here:
        print(section_table(section, here), flush=True)
    return failed


def _arguments(section: Section, number: int, line: Line, options: argparse.Namespace) -> list[str]:
    arguments = [*line.arguments, "--messages", str(_share(options, line.messages))]
    arguments += ["--repeat", str(options.repeat), "--data-dir", str(options.data_dir)]
    if line.compared:
        arguments += ["--against", "jetstream"]
    if options.plots is not None:
        arguments += ["--plot", str(options.plots / f"{section.name}-{number}.png")]
    return arguments


def _subscribers(options: argparse.Namespace) -> bool:
    """Run the curve over the number of subscribers, which prints its tables itself."""
    path = options.output.with_suffix(".subscribers.json")
    arguments = ["--subscribers", *map(str, options.subscribers), "--repeat", str(options.repeat)]
    arguments += ["--messages", str(_share(options, 100_000)), "--blocks", str(_share(options, 200))]
    if _script("fanout.py", [*arguments, "--data-dir", str(options.data_dir), "--json", str(path)]):
        return True
    if options.plots is not None:
        draw_subscribers(options.plots / "subscribers.png", json.loads(path.read_text()))
    return False


def _partitions(options: argparse.Namespace) -> bool:
    """Run the curve over the number of partitions of a server, which prints its tables itself."""
    reports = {}
    for count in options.partitions:
        path = options.output.with_suffix(f".partitions-{count}.json")
        arguments = [
            "--only",
            "server",
            "--partitions",
            str(count),
            "--idle",
            str(15.0 * min(1.0, options.share)),
        ]
        if _script("partitions.py", [*arguments, "--directory", str(options.data_dir), "--json", str(path)]):
            return True
        reports[count] = json.loads(path.read_text())
    if options.plots is not None:
        draw_partitions(options.plots / "partitions.png", reports)
    return False


def _log(options: argparse.Namespace) -> bool:
    """Run the benchmark of the log alone, which prints its tables itself."""
    arguments = ["--directory", str(options.data_dir), "--json", str(options.output.with_suffix(".log.json"))]
    arguments += ["--megabytes", str(options.log_megabytes), "--repeat", str(min(options.repeat, LOG_REPEAT))]
    return _script("log_core.py", arguments)


def _script(name: str, arguments: Sequence[str]) -> bool:
    """Run a script beside this one; returns whether it failed."""
    print(f"{name} {shlex.join(arguments)}", file=sys.stderr, flush=True)
    return subprocess.run([sys.executable, str(Path(__file__).with_name(name)), *arguments]).returncode != 0


def _share(options: argparse.Namespace, count: int) -> int:
    return max(1, int(count * options.share))


if __name__ == "__main__":
    sys.exit(main())
