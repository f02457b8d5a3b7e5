"""Many runs, one after the other: which seed goes with which profile, and what they have shown together.

There are two kinds of runs, of the consensus core alone and of whole clusters. Without a profile of the
caller's the profiles of the kind take turns, so that any range of seeds has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from liftbridge.sim import cluster, consensus
from liftbridge.sim.results import Result

KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    consensus.KIND: tuple(consensus.PROFILES),
    cluster.KIND: tuple(cluster.PROFILES),
}
"""What can be run, and the profiles of each kind."""

_RUN: Mapping[str, Callable[..., Result]] = {consensus.KIND: consensus.run, cluster.KIND: cluster.run}


def profile_of(kind: str, seed: int) -> str:
    """The profile whose turn it is."""
    names = KINDS[kind]
    return names[seed % len(names)]


def runs(kind: str, first: int, count: int, profile: str | None, *, trace: bool = False) -> Iterator[Result]:
    """The results of `count` seeds from `first` on, each as soon as it is there."""
    for seed in range(first, first + count):
        yield _RUN[kind](seed, profile or profile_of(kind, seed), trace=trace)


@dataclass
class Sum:
    """What many runs have done: counts, and how many found something."""

    seeds: int = 0
    problems: int = 0
    events: int = 0
    acked: int = 0
    terms: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """One more."""
        self.seeds += 1
        self.problems += bool(result.problem)
        self.events += result.events
        self.acked += result.acked
        self.terms += result.terms
        for name, count in result.counts:
            known = self.counts.get(name, 0)
            self.counts[name] = max(known, count) if name == "ms without acks" else known + count

    def text(self) -> str:
        """In one line."""
        found = f"{self.problems} found something" if self.problems else "nothing found"
        more = "".join(f", {count} {name}" for name, count in self.counts.items())
        return (
            f"{self.seeds} seeds, {self.events} events, {self.terms} terms, {self.acked} acked{more}: {found}"
        )
