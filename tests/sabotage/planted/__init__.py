"""Bugs that the suite must catch: one line of the product each, and the narrowest tests that must fail.

A suite that has never failed proves little. Each bug here breaks one promise of the log or of what stands
around it, as a slip of the keyboard would; `run.py` plants them one by one and asks the tests. One that
survives is a gap in the tests, not in this list. A module of this package has the bugs of one area.

Invariants:

- The old text occurs in its file as often as `times` says; `test_planted.py` holds the list to that, so that
  a change of the code cannot turn a bug into none.
- With the bug the package can still be built, imported and used: what fails is what the test asserts.
"""

from __future__ import annotations

from planted.bench import MEASURING
from planted.broker import GROUPS, INTERNAL_STREAMS, PAUSING
from planted.bug import Bug
from planted.cli import CHANGING, FINDING, PRINTING
from planted.client import CALLING, CONNECTION, MEMBERS, PUBLISHING, SUBSCRIBING
from planted.cluster import DECIDING
from planted.control import CONTROL
from planted.log import AWAKE, CHECKS, COMPACTING, READING, RECOVERY, REMOVING, SYNCING
from planted.obs import OBSERVING
from planted.peers import LINKS
from planted.raft import CONSENSUS
from planted.replicas import REPLICAS
from planted.replication import ELECTIONS, REPLICATION
from planted.security import LIMITS, RELOADING, SECURITY
from planted.speed import FLUSHING, FRAMES, UNARY

__all__ = ["BUGS", "Bug"]

BUGS = (
    MEASURING
    + SYNCING
    + RECOVERY
    + CHECKS
    + READING
    + REMOVING
    + COMPACTING
    + SECURITY
    + GROUPS
    + INTERNAL_STREAMS
    + PAUSING
    + AWAKE
    + LIMITS
    + RELOADING
    + SUBSCRIBING
    + PUBLISHING
    + CALLING
    + CONNECTION
    + MEMBERS
    + PRINTING
    + FINDING
    + CHANGING
    + FRAMES
    + FLUSHING
    + UNARY
    + CONSENSUS
    + REPLICATION
    + ELECTIONS
    + OBSERVING
    + DECIDING
    + REPLICAS
    + LINKS
    + CONTROL
)
