"""What a message costs the server, against a baseline: `make bench-check`; `make bench-baseline` writes it.

A few fixed workloads are run several times, in turns, and each is compared with benchmarks/baseline.json by
the server's CPU time for a message. What makes that hold on a machine that others use as well:

- CPU time and not the clock on the wall: waiting for others is not counted.
- The best of many runs on both sides: what disturbs a run adds to its CPU time, by cold caches and a busy
  other half of the core, and the best one had the least of it. A workload that looks too dear is run again,
  up to `MOST_ROUNDS`, before it is called so.
- One processor for the server, its NATS server and the load: they alternate instead of waking each other
  across processors, so that how much meets in a read does not depend on who else runs where.
- Large windows: how many messages a read brings decides what each costs, and these fill every read.
- Data in memory, where there is /dev/shm: the file system of the disk is not the server.
- A reference (`reference.py`) measured between the runs. Where CPU, number of CPUs and Python are those of
  the baseline it can only excuse, by a machine that was slow all the time. Elsewhere the baseline is
  multiplied by what the reference takes here over what it took there; that is an estimate, and the output
  says so.

Exit status: 0 nothing is dearer, 1 something is by more than the tolerance, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import reference
from command import bench
from tables import machine_line, table

from liftbridge.bench import machine

BASELINE = Path(__file__).with_name("baseline.json")
FORMAT = 1
TOLERANCE_PERCENT = 10.0
# Each round has servers of its own: what they find in memory and where differs, and so does their speed.
ROUNDS = 6
MOST_ROUNDS = 18
REPEAT = 2
SAME = ("cpu", "python")
FIGURE = "server_cpu_us_per_message"
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Workload:
    """What is run, and with how many messages: so many that a run takes some tenths of a second of CPU."""

    name: str
    messages: int
    arguments: tuple[str, ...]


PIPELINED = ("--window", "16384", "--size", "256")
WORKLOADS = (
    Workload("ingest, never", 1_000_000, ("ingest", "--sync", "never", "--no-ceiling")),
    Workload("publish over NATS, never", 500_000, ("publish", "--sync", "never", *PIPELINED)),
    Workload("publish over NATS, always", 500_000, ("publish", "--sync", "always", *PIPELINED)),
    Workload("PublishAsync, never", 250_000, ("publish", "--via", "grpc", "--sync", "never", *PIPELINED)),
    Workload("Publish, never", 4_000, ("publish", "--via", "grpc", "--sync", "never", "--window", "1")),
    Workload("subscribe, replay", 1_500_000, ("subscribe",)),
)


class Measurement:
    """Server CPU us for a message, of all runs of each workload so far, and the reference between them.

    From here on this process, and what it starts, has one processor.
    """

    def __init__(self, directory: Path, repeat: int) -> None:
        self.facts = machine.describe()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        self.runs: dict[str, list[float]] = {}
        self.reference = reference.measure(directory)
        self._directory = directory
        self._repeat = repeat

    def once(self, workload: Workload) -> None:
        """Run a workload, with a server of its own. Raises SystemExit if that fails."""
        arguments = [*workload.arguments, "--messages", str(workload.messages)]
        arguments += ["--repeat", str(self._repeat)]
        report, failed = bench([*arguments, "--data-dir", str(self._directory)])
        if report is None or failed:
            _give_up(f"{workload.name} could not be measured; what went wrong is printed above")
        (result,) = report["results"]
        runs = [run[FIGURE] for run in result["runs"]]
        if None in runs:
            _give_up("this system does not tell the CPU time of another process")
        self.runs.setdefault(workload.name, []).extend(runs)
        now = reference.measure(self._directory)
        self.reference = {part: min(ms, now[part]) for part, ms in self.reference.items()}


def scale(
    baseline: Mapping[str, Any], facts: Mapping[str, str], now: Mapping[str, float]
) -> tuple[float, str]:
    """Return what a baseline is to be multiplied by here, and why.

    Args:
        baseline: as it was written.
        facts: this machine.
        now: the reference here, the best of all.
    """
    ratio = sum(now.values()) / sum(baseline["reference_ms"].values())
    other = [name for name in SAME if facts[name] != baseline["machine"][name]]
    if other:
        there = ", ".join(baseline["machine"][name] for name in other)
        return ratio, (
            f"The baseline is of another machine ({there}): multiplied by {ratio:.2f}, what the reference "
            "work takes here over what it took there. That is an estimate; `make bench-baseline` at the "
            "commit to compare with writes a baseline of this machine."
        )
    if ratio > 1.0:
        return (
            ratio,
            f"The reference work took {ratio:.2f} times what it did for the baseline, which excuses as much.",
        )
    return (
        1.0,
        f"The reference work took {ratio:.2f} times what it did for the baseline; nothing is multiplied.",
    )


def dearer(runs: Sequence[float], baseline: Mapping[str, Any], factor: float) -> float:
    """Return by how many percent the best run is above the baseline's best, negative below."""
    return (min(runs) / (baseline["best_us"] * factor) - 1.0) * 100.0


def check(options: argparse.Namespace, chosen: Sequence[Workload], measurement: Measurement) -> int:
    """Compare with the baseline; returns the exit status."""
    baseline = load(options.baseline, chosen)
    facts = measurement.facts
    for _ in range(options.rounds):
        for workload in chosen:
            measurement.once(workload)
    for _ in range(options.most_rounds - options.rounds):
        factor, _ = scale(baseline, facts, measurement.reference)
        suspects = [
            workload
            for workload in chosen
            if dearer(measurement.runs[workload.name], baseline["workloads"][workload.name], factor)
            > options.tolerance
        ]
        for workload in suspects:
            measurement.once(workload)
    factor, why = scale(baseline, facts, measurement.reference)
    print(machine_line(facts) + "\n" + why + "\n")
    rows, bad = [], []
    for workload in chosen:
        runs, before = measurement.runs[workload.name], baseline["workloads"][workload.name]
        percent = dearer(runs, before, factor)
        if percent > options.tolerance:
            bad.append(workload.name)
        rows.append(
            [
                workload.name,
                f"{before['best_us'] * factor:,.3f}",
                f"{min(runs):,.3f}",
                f"{statistics.median(runs):,.3f}",
                str(len(runs)),
                f"{percent:+.1f} %",
                "dearer" if percent > options.tolerance else "ok",
            ]
        )
    head = ["server CPU us/message", "baseline", "best", "median", "runs", "best against baseline", ""]
    print(table(head, rows))
    if bad:
        print(
            f"More than {options.tolerance:g} % dearer than the baseline: {', '.join(bad)}", file=sys.stderr
        )
    return int(bool(bad))


def write(options: argparse.Namespace, chosen: Sequence[Workload], measurement: Measurement) -> int:
    """Measure, and write the baseline; returns the exit status."""
    for _ in range(2 * options.rounds):
        for workload in chosen:
            measurement.once(workload)
    facts = measurement.facts
    baseline = {
        "format": FORMAT,
        "machine": facts,
        "reference_ms": measurement.reference,
        "workloads": {
            workload.name: {
                "arguments": list(workload.arguments),
                "messages": workload.messages,
                "best_us": min(measurement.runs[workload.name]),
                "median_us": statistics.median(measurement.runs[workload.name]),
                "runs": len(measurement.runs[workload.name]),
            }
            for workload in chosen
        },
    }
    options.baseline.write_text(json.dumps(baseline, indent=2) + "\n")
    print(machine_line(facts) + f"\nwritten to {options.baseline}")
    return 0


def load(path: Path, chosen: Sequence[Workload]) -> dict[str, Any]:
    """Read a baseline that has these workloads, as they are run now. Raises SystemExit if it has not."""
    try:
        baseline: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        _give_up(f"there is no baseline to compare with ({error}); write one: make bench-baseline")
    if baseline.get("format") != FORMAT:
        _give_up(f"{path} has another format; write it anew: make bench-baseline")
    for workload in chosen:
        before = baseline["workloads"].get(workload.name)
        if before is None or (before["arguments"], before["messages"]) != (
            list(workload.arguments),
            workload.messages,
        ):
            _give_up(
                f"{path} was measured with another {workload.name!r}; write it anew: make bench-baseline"
            )
    return baseline


def _give_up(reason: str) -> NoReturn:
    print(f"bench-check: {reason}", file=sys.stderr)
    raise SystemExit(2)


def main() -> int:
    """Run the command line; returns the exit status."""
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description="Compare what a message costs the server with a baseline.")
    parser.add_argument("--write", action="store_true", help="write the baseline, with twice as many rounds")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help=f"({BASELINE.name} beside this file)")
    parser.add_argument("--only", choices=names, action="append", help="only this workload")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds at least ({ROUNDS})")
    parser.add_argument(
        "--most-rounds", type=int, default=MOST_ROUNDS, help=f"of what looks too dear ({MOST_ROUNDS})"
    )
    parser.add_argument("--repeat", type=int, default=REPEAT, help=f"runs in a round ({REPEAT})")
    parser.add_argument("--share", type=float, default=1.0, help="of the messages, to try it out (1)")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE_PERCENT, help=f"percent ({TOLERANCE_PERCENT:g})"
    )
    parser.add_argument(
        "--data-dir", type=Path, help=f"where the data is kept ({MEMORY}, or a temporary one)"
    )
    options = parser.parse_args()
    chosen = [
        replace(workload, messages=max(1, int(workload.messages * options.share)))
        for workload in WORKLOADS
        if not options.only or workload.name in options.only
    ]
    parent = options.data_dir or (MEMORY if MEMORY.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="liftbridge-bench-", dir=parent) as directory:
        measurement = Measurement(Path(directory), options.repeat)
        return (write if options.write else check)(options, chosen, measurement)


if __name__ == "__main__":
    sys.exit(main())
