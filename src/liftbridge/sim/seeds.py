"""Many runs, one after the other: which seed goes with which profile, and what they have shown together.

Without a profile of the caller's the profiles take turns, so that any range of seeds has all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from liftbridge.sim.consensus import PROFILES, Result, run

_NAMES = tuple(PROFILES)


def profile_of(seed: int) -> str:
    """The profile whose turn it is."""
    return _NAMES[seed % len(_NAMES)]


def runs(first: int, count: int, profile: str | None, *, trace: bool = False) -> Iterator[Result]:
    """The results of `count` seeds from `first` on, each as soon as it is there."""
    for seed in range(first, first + count):
        yield run(seed, profile or profile_of(seed), trace=trace)


@dataclass
class Sum:
    """What many runs have done: counts, and how many found something."""

    seeds: int = 0
    problems: int = 0
    events: int = 0
    acked: int = 0
    terms: int = 0

    def add(self, result: Result) -> None:
        """One more."""
        self.seeds += 1
        self.problems += bool(result.problem)
        self.events += result.events
        self.acked += result.acked
        self.terms += result.terms

    def text(self) -> str:
        """In one line."""
        found = f"{self.problems} found something" if self.problems else "nothing found"
        return (
            f"{self.seeds} seeds, {self.events} events, {self.terms} terms, "
            f"{self.acked} commands acked: {found}"
        )
