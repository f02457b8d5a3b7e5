"""Many runs, one after the other: which seed goes with which profile, and what they have shown together.

Without a profile of the caller's the profiles take turns, so that any range of seeds has all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from liftbridge.sim.consensus import PROFILES, Result, run

_NAMES = tuple(PROFILES)


def profile_of(seed: int) -> str:
    """The profile whose turn it is."""
    return _NAMES[seed % len(_NAMES)]


def runs(first: int, count: int, profile: str | None, *, trace: bool = False) -> Iterator[Result]:
    """The results of `count` seeds from `first` on, each as soon as it's there."""
    for seed in range(first, first + count):
        yield run(seed, profile or profile_of(seed), trace=trace)
