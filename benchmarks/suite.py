"""The workloads that `run.py` runs with `liftbridge-bench`, and the table that each section of them gets.

The sizes are those of a quiet machine with a disk: a minute for each line, more or less. What waits for the
disk in JetStream (`always`, an fsync for each message) gets fewer messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tables import summary_cell, table

Summary = Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """A figure of `liftbridge-bench`, what it is called, and how many decimals make sense."""

    key: str
    label: str
    decimals: int = 0


@dataclass(frozen=True)
class Line:
    """One `liftbridge-bench`: what its results are called, its arguments, how many messages."""

    name: str
    messages: int
    arguments: tuple[str, ...]
    compared: bool = True


@dataclass(frozen=True)
class Section:
    """Lines that share a table."""

    name: str
    lines: tuple[Line, ...]
    columns: tuple[Column, ...]


SPEED = (
    Column("messages_per_second", "messages/s"),
    Column("server_cpu_us_per_message", "server CPU us/message", 3),
    Column("all_cpu_us_per_message", "CPU us/message of all servers", 3),
)
ACKED = (
    *SPEED,
    Column("ack_p50_us", "ack p50 us"),
    Column("ack_p99_us", "ack p99 us"),
    Column("ack_p99_9_us", "ack p99.9 us"),
)
DELIVERED = (
    Column("delivery_p50_us", "delivery p50 us"),
    Column("delivery_p99_us", "delivery p99 us"),
    Column("delivery_p99_9_us", "delivery p99.9 us"),
    Column("delivery_max_us", "longest us"),
    Column("server_cpu_us_per_message", "server CPU us/delivery", 1),
    Column("all_cpu_us_per_message", "CPU us/delivery of all servers", 1),
)
RECOVERED = (
    Column("gib_per_second", "GiB/s", 2),
    Column("seconds", "s until it serves", 2),
    Column("empty_seconds", "s without data", 2),
    Column("cpu_seconds_per_gib", "CPU s/GiB", 2),
    Column("lost", "lost"),
)

_NATS = ("publish", "--window", "8192")
_ASYNC = ("publish", "--via", "grpc", "--window", "8192")
_UNARY = ("publish", "--via", "grpc", "--window", "1")

SECTIONS = (
    Section(
        "ingest",
        (
            Line("ingest", 1_000_000, ("ingest", "--sync", "never")),
            Line("ingest", 1_000_000, ("ingest", "--sync", "always")),
        ),
        (
            *SPEED,
            Column("nats_alone_messages_per_second", "NATS alone, messages/s"),
            Column("lost", "lost"),
        ),
    ),
    Section(
        "publish",
        (
            Line("pipelined over NATS", 1_000_000, (*_NATS, "--sync", "never")),
            Line("pipelined over NATS", 100_000, (*_NATS, "--sync", "always")),
            Line("PublishAsync", 500_000, (*_ASYNC, "--sync", "never")),
            Line("PublishAsync", 100_000, (*_ASYNC, "--sync", "always")),
            Line("Publish, one at a time", 20_000, (*_UNARY, "--sync", "never")),
            Line("Publish, one at a time", 5_000, (*_UNARY, "--sync", "always")),
        ),
        ACKED,
    ),
    Section(
        "subscribe",
        (
            Line("replay", 1_000_000, ("subscribe",)),
            Line("replay, window 64 KiB", 1_000_000, ("subscribe", "--window", "65535"), compared=False),
            Line("tail", 500_000, ("subscribe", "--tail")),
        ),
        (*SPEED, Column("generator_cpu_us_per_message", "subscriber CPU us/message", 3)),
    ),
    Section(
        "e2e",
        (
            Line("10,000 messages/s", 100_000, ("e2e", "--sync", "never")),
            Line("10,000 messages/s", 100_000, ("e2e", "--sync", "always")),
        ),
        DELIVERED,
    ),
    Section(
        "recover",
        (
            Line("after kill -9", 2_000_000, ("recover",), compared=False),
            Line("after kill -9, no index files", 2_000_000, ("recover", "--scan"), compared=False),
        ),
        RECOVERED,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """The result of one line on one target."""

    section: str
    line: str
    sync: str
    target: str
    summary: Mapping[str, Summary | None]

    def median(self, key: str) -> float | None:
        """The median of a figure, None if there is none."""
        found = self.summary.get(key)
        return None if found is None else found["median"]


def outcomes(section: Section, line: Line, report: Mapping[str, Any]) -> list[Outcome]:
    """Return what a report of a line says."""
    return [
        Outcome(
            section.name,
            line.name,
            result["settings"]["sync"],
            result["settings"]["target"],
            result["summary"],
        )
        for result in report["results"]
    ]


def section_table(section: Section, found: Sequence[Outcome]) -> str:
    """Return heading and table of a section: a row for each result, and the ratio below a comparison."""
    rows = []
    for outcome in found:
        cells = [summary_cell(outcome.summary.get(column.key), column.decimals) for column in section.columns]
        rows.append([outcome.line, outcome.sync, outcome.target, *cells])
        if ours := rival(found, outcome, "liftbridge"):
            ratios = [
                _ratio(ours.median(column.key), outcome.median(column.key)) for column in section.columns
            ]
            rows.append(["", "", "ratio", *ratios])
    head = [section.name, "sync policy", "", *(column.label for column in section.columns)]
    return f"### {section.name}\n\n{table(head, rows)}"


def rival(found: Sequence[Outcome], outcome: Outcome, target: str) -> Outcome | None:
    """Return what another target did with the same line, if it is another."""
    for other in found:
        if (other.section, other.line, other.sync, other.target) == (
            outcome.section,
            outcome.line,
            outcome.sync,
            target,
        ):
            return None if other is outcome else other
    return None


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:,.2f}" if ours is not None and theirs else ""
