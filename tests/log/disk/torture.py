"""How hard and with which seed the torture tests work.

LIFTBRIDGE_TORTURE_ROUNDS=<n> makes them n times as long; LIFTBRIDGE_TORTURE_SEED=<n> repeats what a seed
did. One round has the same seed each time, so that `make test` does the same each time; more rounds have a
random one. What fails prints its case, seed included.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

ROUNDS = int(os.environ.get("LIFTBRIDGE_TORTURE_ROUNDS") or 1)
SEED = int(
    os.environ.get("LIFTBRIDGE_TORTURE_SEED")
    or (random.SystemRandom().randrange(1 << 32) if ROUNDS > 1 else 1)
)


def print_seed(rounds: int = ROUNDS) -> None:
    """Print how to repeat a test."""
    print(f"LIFTBRIDGE_TORTURE_SEED={SEED} LIFTBRIDGE_TORTURE_ROUNDS={rounds}")


@contextmanager
def case(description: str) -> Iterator[None]:
    """Print which case it was when something is wrong in it."""
    try:
        yield
    except Exception:
        print(f"in this case: {description}")
        raise
