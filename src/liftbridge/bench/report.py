"""Results as people and programs read them.

A run is a flat mapping of figures; a result is several runs under the same settings. What is told of them
is the median, as one disturbed run must not decide, and the smallest and largest, as a median alone hides
how much they differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FORMAT_VERSION = 1

Run = Mapping[str, float | None]
Settings = Mapping[str, str | int | bool]


@dataclass(frozen=True)
class Figure:
    """One thing that is measured: its key in a run, what it is called, and how many decimals make sense."""

    key: str
    label: str
    decimals: int = 0

    def show(self, value: float | None) -> str:
        """The value as text; n/a for None."""
        return "n/a" if value is None else f"{value:,.{self.decimals}f}"


@dataclass(frozen=True)
class Result:
    """Several runs of one workload under the same settings.

    Attributes:
        settings: what was set, such as the sync policy.
        figures: which figures the runs have, in the order in which they are shown.
        runs: at least one.
        disk: what the disk did under these settings.
        curves: (percentile, us) of each kind of latency, of all runs together.
    """

    settings: Settings
    figures: Sequence[Figure]
    runs: Sequence[Run]
    disk: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def summary(self, key: str) -> dict[str, float] | None:
        """Return median, min and max of one figure; None when a run does not know it."""
        values = [run[key] for run in self.runs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return {"median": statistics.median(known), "min": min(known), "max": max(known)}


def ratios(results: Sequence[Result]) -> list[dict[str, object]]:
    """Return how the first target compares with each other one, under each sync policy.

    Each has `target`, `against`, `sync`, and `ratios`: by figure, its median divided by the other's.
    """
    return [
        {
            "target": first.settings["target"],
            "against": other.settings["target"],
            "sync": first.settings["sync"],
            "ratios": _ratios(first, other),
        }
        for first in results
        for other in results
        if "target" in first.settings
        and first.settings["target"] == results[0].settings["target"] != other.settings["target"]
        and first.settings["sync"] == other.settings["sync"]
    ]


def _ratios(first: Result, other: Result) -> dict[str, float]:
    """Median by median, of what both know."""
    found = {}
    for figure in first.figures:
        ours, theirs = first.summary(figure.key), other.summary(figure.key)
        if ours is not None and theirs is not None and theirs["median"]:
            found[figure.key] = ours["median"] / theirs["median"]
    return found


def ratio_table(results: Sequence[Result]) -> str:
    """Return the ratios as lines of text, empty without any."""
    labels = {figure.key: figure.label for result in results for figure in result.figures}
    lines = []
    for compared in ratios(results):
        lines.append("{target} / {against}, sync {sync}, medians".format(**compared))
        found = compared["ratios"]
        assert isinstance(found, dict)
        lines += [f"  {labels[key]:<32}{ratio:>14,.3f}" for key, ratio in found.items()]
    return "\n".join(lines)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of `values` that `percent` of them do not exceed (nearest rank)."""
    assert values, "there is no percentile of nothing"
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def as_json(command: str, machine: Mapping[str, str], results: Sequence[Result]) -> dict[str, object]:
    """Return everything that is known about results, ready for `json.dumps`."""
    return {
        "format": FORMAT_VERSION,
        "command": command,
        "machine": dict(machine),
        "results": [
            {
                "settings": dict(result.settings),
                "disk": dict(result.disk),
                "runs": [dict(run) for run in result.runs],
                "summary": {figure.key: result.summary(figure.key) for figure in result.figures},
                "latencies_us": {
                    name: [list(point) for point in curve] for name, curve in result.curves.items()
                },
            }
            for result in results
        ],
        "ratios": ratios(results),
    }


def header(command: str, machine: Mapping[str, str]) -> str:
    """Return what comes before the figures."""
    return "\n".join(
        [
            f"liftbridge-bench {command}, liftbridge {machine['liftbridge']} (commit {machine['commit']})",
            f"{machine['cpu']}, {machine['memory']}, {machine['kernel']}",
            f"{machine['python']}, nats-server {machine['nats_server']}, load before {machine['load']}",
        ]
    )


def table(result: Result) -> str:
    """Return the figures of one result, one line each."""
    lines = [
        ", ".join(f"{name.replace('_', ' ')} {_setting(value)}" for name, value in result.settings.items())
    ]
    if result.disk:
        lines.append(
            "disk: append of {append_bytes:.0f} bytes and fdatasync p50 {fdatasync_p50_us:,.0f} us, "
            "p99 {fdatasync_p99_us:,.0f} us ({samples:.0f} samples)".format(**result.disk)
        )
    lines.append(f"{'':34}{'median':>14}{'min':>14}{'max':>14}")
    for figure in result.figures:
        summary = result.summary(figure.key) or dict.fromkeys(("median", "min", "max"))
        cells = "".join(f"{figure.show(summary[name]):>14}" for name in ("median", "min", "max"))
        lines.append(f"  {figure.label:<32}{cells}")
    return "\n".join(lines)


def _setting(value: str | int | bool) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
