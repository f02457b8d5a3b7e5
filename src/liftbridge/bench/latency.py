"""Latencies as figures: percentiles of what `_load` has counted in the buckets of an HdrHistogram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from liftbridge.bench._load import Histogram
from liftbridge.bench.report import Figure

PERCENTILES = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99_9", 99.9), ("p99_99", 99.99))
# Of the curve that is drawn and put into JSON: ten points for each further nine.
CURVE = tuple(100.0 * (1.0 - 10.0 ** (-step / 10.0)) for step in range(61))


def figures(prefix: str, what: str) -> tuple[Figure, ...]:
    """Return the figures of one kind of latency, such as ("ack", "ack latency")."""
    named = tuple(
        Figure(f"{prefix}_{key}_us", f"{what} {key.replace('_', '.')}, us", 1) for key, _ in PERCENTILES
    )
    return (*named, Figure(f"{prefix}_max_us", f"{what} max, us", 1))


def run_figures(prefix: str, histogram: Histogram) -> dict[str, float | None]:
    """Return the figures of one run, None each when nothing was recorded."""
    values: dict[str, float | None] = {
        f"{prefix}_{key}_us": histogram.percentile(percent) / 1e3 if histogram.total else None
        for key, percent in PERCENTILES
    }
    return values | {f"{prefix}_max_us": histogram.max / 1e3 if histogram.total else None}


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return one histogram with everything that several have counted."""
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


def curve(histogram: Histogram) -> Sequence[tuple[float, float]]:
    """Return (percentile, us) from the fastest to the slowest, as far as so many were recorded."""
    if not histogram.total:
        return []
    finest = 100.0 * (1.0 - 1.0 / histogram.total)
    points = [(percent, histogram.percentile(percent) / 1e3) for percent in CURVE if percent <= finest]
    return [*points, (100.0, histogram.max / 1e3)]
