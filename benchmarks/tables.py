"""How the benchmarks of this directory tell what they measured: Markdown tables, and on which machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass
class Spent:
    """Seconds that a block took by the clock, and of CPU in all threads of this process.

    On a machine that others use as well the second is the cost, and the first what came of it.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Spent:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._began
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu


def spread(values: Sequence[float], decimals: int) -> str:
    """The median, and the smallest and the largest if they differ from it."""
    middle, low, high = (
        f"{value:,.{decimals}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column holds names, the others figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def machine_line(machine: Mapping[str, str]) -> str:
    """What a figure means nothing without, from `liftbridge.bench.machine.describe`."""
    return (
        f"{machine['cpu']}, {machine['memory']}, {machine['kernel']}, {machine['python']}, "
        f"nats-server {machine['nats_server']}, liftbridge {machine['liftbridge']} "
        f"(commit {machine['commit']}), load before {machine['load']}.\n"
    )


def summary_cell(summary: Mapping[str, float] | None, decimals: int) -> str:
    """A figure of a report of `liftbridge-bench` as `spread` tells it; n/a where it is not known."""
    return "n/a" if summary is None else spread([summary["min"], summary["median"], summary["max"]], decimals)
