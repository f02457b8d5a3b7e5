"""The error for a state that the protocol excludes.

It is an exception of its own, not an assertion, because it must hold in a run without assertions too: a node
that goes on from here may lose what it has acknowledged.
"""

from __future__ import annotations


class InvariantError(Exception):
    """The core's state contradicts the protocol: a bug, or a disk or a peer that does not tell the truth.

    The node has to stop. Its storage is what it was; start it again from there.
    """
