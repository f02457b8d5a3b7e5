"""Metrics as text, in the exposition format of Prometheus, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

_LABEL = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass
class Family:
    """A metric with its samples.

    Attributes:
        name: with its prefix, and with `_total` when it is a counter.
        kind: what it is.
        text: what it tells, with its unit.
        samples: suffix of the name, labels and value of each.
    """

    name: str
    kind: Kind
    text: str
    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> None:
        """Add a sample."""
        self.samples.append(("", labels, value))

    def add_histogram(self, bounds: Sequence[float], counts: Sequence[int], total: float) -> None:
        """Add the samples of a histogram.

        Arguments:
            bounds: upper bounds of all buckets but the last.
            counts: what is in each bucket, the last one included.
            total: sum of all that was observed.
        """
        assert len(counts) == len(bounds) + 1
        below = 0
        for bound, count in zip([*map(_number, bounds), "+Inf"], counts, strict=True):
            below += count
            self.samples.append(("_bucket", {"le": bound}, below))
        self.samples.append(("_sum", {}, total))
        self.samples.append(("_count", {}, below))


def exposition(families: Sequence[Family]) -> bytes:
    """The text of metrics."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.text.translate(_HELP)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for suffix, labels, value in family.samples:
            inner = ",".join(f'{name}="{text.translate(_LABEL)}"' for name, text in labels.items())
            lines.append(f"{family.name}{suffix}{'{' + inner + '}' if inner else ''} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 2**63 else repr(float(value))
