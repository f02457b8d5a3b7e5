"""What the server is to reach, and what it reached: the table that says whether it is fast enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suite import Outcome, rival
from tables import table

OURS, THEIRS = "liftbridge", "jetstream"


@dataclass(frozen=True)
class Goal:
    """A figure of a line, and what it is to be.

    Attributes:
        section, line, sync: which.
        key: which figure. what: what it is called. decimals: how many make sense.
        limit: at least this, or with `most` at most; None for no such goal.
        ratio: the same for the figure divided by JetStream's in the same run.
        of_never: at least this share of what the policy `never` gave.
    """

    section: str
    line: str
    sync: str
    key: str
    what: str
    limit: float | None = None
    most: bool = False
    ratio: float | None = None
    of_never: float | None = None
    decimals: int = 0


_RATE = ("messages_per_second", "messages/s")
GOALS = (
    Goal("ingest", "ingest", "never", *_RATE, limit=1_200_000),
    Goal(
        "ingest",
        "ingest",
        "never",
        "server_cpu_us_per_message",
        "server CPU us/message",
        0.5,
        True,
        decimals=3,
    ),
    Goal("ingest", "ingest", "never", "lost", "messages lost", 0, True),
    Goal("publish", "pipelined over NATS", "never", *_RATE, limit=400_000, ratio=1.5),
    Goal("publish", "PublishAsync", "never", *_RATE, limit=150_000),
    Goal("publish", "Publish, one at a time", "never", *_RATE, limit=4_000),
    Goal("publish", "Publish, one at a time", "never", "ack_p99_us", "p99, us", 1_000, True),
    Goal("publish", "pipelined over NATS", "always", *_RATE, ratio=50, of_never=0.6),
    Goal("publish", "PublishAsync", "always", *_RATE, ratio=50, of_never=0.6),
    Goal("publish", "Publish, one at a time", "always", *_RATE, ratio=50),
    Goal("subscribe", "replay", "never", *_RATE, limit=2_000_000, ratio=1.5),
    Goal("e2e", "10,000 messages/s", "never", "delivery_p99_us", "p99, us", 2_000, True, ratio=1.0),
    Goal("e2e", "10,000 messages/s", "never", "delivery_p99_9_us", "p99.9, us", 5_000, True),
    Goal("recover", "after kill -9", "never", "gib_per_second", "GiB/s", 1.0, decimals=2),
)


def goal_table(found: Sequence[Outcome]) -> str:
    """Return what became of the goals whose lines were run."""
    rows = [row for goal in GOALS for row in _rows(goal, found)]
    return f"### Goals\n\n{table(['', 'sync policy', 'figure', 'wanted', 'median', 'reached'], rows)}"


def _rows(goal: Goal, found: Sequence[Outcome]) -> list[list[str]]:
    ours = _outcome(goal, found, goal.sync)
    value = None if ours is None else ours.median(goal.key)
    if ours is None or value is None:
        return []
    name = f"{goal.section}: {goal.line}" if goal.section != goal.line else goal.line
    sign = "at most" if goal.most else "at least"
    rows = []
    if goal.limit is not None:
        reached = value <= goal.limit if goal.most else value >= goal.limit
        limit = f"{sign} {goal.limit:,.{goal.decimals}f}"
        rows.append([name, goal.sync, goal.what, limit, f"{value:,.{goal.decimals}f}", _word(reached)])
    theirs = rival(found, ours, THEIRS)
    other = None if theirs is None else theirs.median(goal.key)
    if goal.ratio is not None and other:
        ratio = value / other
        reached = ratio <= goal.ratio if goal.most else ratio >= goal.ratio
        what = f"{goal.what}, of JetStream's {other:,.{goal.decimals}f}"
        rows.append([name, goal.sync, what, f"{sign} {goal.ratio:g} x", f"{ratio:,.2f} x", _word(reached)])
    never = _outcome(goal, found, "never")
    base = None if never is None else never.median(goal.key)
    if goal.of_never is not None and base:
        share = value / base
        wanted = f"at least {goal.of_never:.0%}"
        rows.append(
            [
                name,
                goal.sync,
                f"{goal.what}, of `never`",
                wanted,
                f"{share:.0%}",
                _word(share >= goal.of_never),
            ]
        )
    return rows


def _outcome(goal: Goal, found: Sequence[Outcome], sync: str) -> Outcome | None:
    wanted = (goal.section, goal.line, sync, OURS)
    for outcome in found:
        if (outcome.section, outcome.line, outcome.sync, outcome.target) == wanted:
            return outcome
    return None


def _word(reached: bool) -> str:
    return "yes" if reached else "**no**"
