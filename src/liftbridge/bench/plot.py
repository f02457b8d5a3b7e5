"""Results as a picture: a curve of percentiles for each latency, bars for what there is of throughput.

matplotlib is an extra, `liftbridge[bench]`: a server has no use for it. It is imported when there is
something to draw.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liftbridge.bench.errors import BenchError
from liftbridge.bench.report import Result

_INCHES = (8.0, 4.5)
_THROUGHPUT = "messages_per_second"


def check(path: Path) -> None:
    """Raise BenchError if nothing can be drawn into a file of this name."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise BenchError(f"--plot {path}: the name of a plot ends with .png, .svg or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError("--plot needs matplotlib: pip install 'liftbridge[bench]'")


def draw(path: Path, command: str, machine: Mapping[str, str], results: Sequence[Result]) -> None:
    """Draw results into a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401  # no display is needed
    from matplotlib.figure import Figure

    drawn = [
        part
        for part in (_draw_latencies, _draw_throughput)
        if any(result.curves if part is _draw_latencies else _speeds(result) for result in results)
    ]
    figure = Figure(figsize=(_INCHES[0], _INCHES[1] * max(1, len(drawn))), layout="constrained")
    for number, part in enumerate(drawn, 1):
        part(figure.add_subplot(len(drawn), 1, number), results)
    figure.suptitle(
        f"liftbridge-bench {command}, commit {machine['commit']}\n{machine['cpu']}, {machine['kernel']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)


def _draw_latencies(axes: Any, results: Sequence[Result]) -> None:
    """Percentiles, with as much room for each further nine."""
    for result in results:
        for name, points in result.curves.items():
            inside = [(100.0 / (100.0 - percent), us) for percent, us in points if percent < 100.0]
            axes.plot(*zip(*inside, strict=True), label=f"{_label(result)}, {name}")
    nines = [1.0, 2.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(nines, [f"{100.0 - 100.0 / nine:.6g}" for nine in nines])
    axes.set_xlabel("percentile")
    axes.set_ylabel("us")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=7)


def _draw_throughput(axes: Any, results: Sequence[Result]) -> None:
    """The median of each result, with a line from the smallest to the largest."""
    shown = [(result, speeds) for result in results if (speeds := _speeds(result))]
    medians = [speeds["median"] for _, speeds in shown]
    spread = [
        [speeds["median"] - speeds["min"] for _, speeds in shown],
        [speeds["max"] - speeds["median"] for _, speeds in shown],
    ]
    axes.bar(range(len(shown)), medians, yerr=spread, capsize=4, width=0.6)
    axes.set_xticks(range(len(shown)), [_label(result) for result, _ in shown], fontsize=7)
    axes.set_ylabel("messages/s")
    axes.grid(visible=True, axis="y", alpha=0.3)


def _speeds(result: Result) -> dict[str, float] | None:
    keys = {figure.key for figure in result.figures}
    return result.summary(_THROUGHPUT) if _THROUGHPUT in keys else None


def _label(result: Result) -> str:
    settings = result.settings
    return ", ".join(str(settings[name]) for name in ("target", "via", "sync") if name in settings)
