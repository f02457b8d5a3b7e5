"""The leader epochs of a log: which epoch began at which offset.

An epoch's start is the first offset that can belong to it: where the log ended when its leader took over,
which is where the control batch that says so lies. The list is read out of the batches themselves,
segment by segment, and kept in index files only as part of what they summarise, so there is no file that
could disagree with the log.

Invariant: epochs strictly ascend, starts never descend.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Epochs = tuple[tuple[int, int], ...]


def epochs_of(segments: Iterable[Epochs], start_offset: int) -> Epochs:
    """Join the epochs of consecutive segments of a log that begins at `start_offset`.

    Of those that began before it, the last one is kept, as if it began there. An epoch whose start is
    that of a later one has no offsets, and stays: a follower that asks for it is to learn so.
    """
    joined: list[tuple[int, int]] = []
    for entries in segments:
        for epoch, start in entries:
            if not joined or epoch > joined[-1][0]:
                joined.append((epoch, max(start, start_offset)))
    first = 0
    while first + 1 < len(joined) and joined[first + 1][1] <= start_offset:
        first += 1
    return tuple(joined[first:])


def end_of_epoch(epochs: Sequence[tuple[int, int]], epoch: int, next_offset: int) -> tuple[int, int]:
    """Return the largest epoch that is not above `epoch`, and the offset at which it ends.

    That is where the next one begins, or `next_offset` for the last (KIP-279: a follower goes on asking with
    what it gets until both agree). (-1, `epochs`' first start or `next_offset`) when all are above `epoch`.
    """
    at = bisect_right(epochs, epoch, key=lambda entry: entry[0])
    if at == 0:
        return -1, epochs[0][1] if epochs else next_offset
    return epochs[at - 1][0], epochs[at][1] if at < len(epochs) else next_offset
