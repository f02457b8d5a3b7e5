"""The curves of `run.py` as pictures: many subscribers of a partition, many partitions of a server."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Curve = tuple[str, Sequence[float], Sequence[float]]


def draw_subscribers(path: Path, report: Mapping[str, Any]) -> None:
    """Throughput of all subscribers and CPU time for each, over their number; `report` is of `fanout.py`."""
    counts = [int(count) for count in report["subscribers"]]

    def curves(key: str) -> list[Curve]:
        return [
            (
                workload,
                counts,
                [
                    statistics.median(run[key] for run in runs[workload])
                    for runs in report["subscribers"].values()
                ],
            )
            for workload in ("replay", "tail")
        ]

    _draw(
        path,
        "subscribers of one partition",
        [
            ("messages/s, all subscribers", curves("messages_per_second")),
            ("server CPU us/delivery", curves("server_cpu_us_per_message")),
            ("server CPU ms/subscriber", curves("server_cpu_ms_per_subscriber")),
        ],
    )


def draw_partitions(path: Path, reports: Mapping[int, Mapping[str, Any]]) -> None:
    """What so many partitions cost a server; `reports` are of `partitions.py`, by number of partitions."""
    counts = list(reports)

    def curve(key: str, divisor: float = 1.0) -> list[Curve]:
        states = ("created", "a message to each", "started after a kill")
        return [
            (state, counts, [reports[count]["server"][state][key] / divisor for count in counts])
            for state in states
        ]

    _draw(
        path,
        "partitions",
        [
            ("RSS, MiB", curve("rss_kib", 1024.0)),
            ("seconds", curve("seconds")),
            ("CPU while idle, %", curve("cpu_percent")),
        ],
    )


def _draw(path: Path, label: str, parts: Sequence[tuple[str, Sequence[Curve]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401  # no display is needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.5 * len(parts)), layout="constrained")
    for number, (what, curves) in enumerate(parts, 1):
        axes = figure.add_subplot(len(parts), 1, number)
        for name, counts, values in curves:
            axes.plot(counts, values, marker="o", label=name)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel(what)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
