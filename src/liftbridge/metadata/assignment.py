"""Which member of a consumer group gets which partitions: balanced, and with as few moves as that takes.

A partition that moves costs: its new owner starts from the last checkpoint and repeats what came after. So an
assignment begins with what the members have, gives them what is free, and then moves single partitions from
members with many to members with few, until nobody has two more than somebody who could take one over.

Invariants, as long as the budget lasts; the first holds in any case:
- Every partition of a stream that somebody wants belongs to exactly one member that wants it.
- A member that has a partition of a stream has at most one partition more, over all its streams, than any
  other member that wants that stream.
- Members that want the same streams differ by at most one partition in each of these streams.

Each move makes the sum of squares of the members' partitions smaller, or keeps it and makes that of their
partitions per stream smaller; so balancing ends. A budget bounds it all the same, because members choose what
they want, and chains of them could be made to pass partitions on for very long.

The result is a function of the arguments alone. It is part of what a stored operation means: brokers, and a
journal that is replayed by a later version, must come to the same assignment. Whoever changes the result
gives the operations on groups a new layout version.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

# What one member has: every stream it wants, in ascending order, with its partitions, in ascending order.
Share = Mapping[str, tuple[int, ...]]


@dataclass
class Budget:
    """What balancing may cost: `left` members may still be looked at. One budget serves one operation."""

    left: int


def assign(members: Mapping[str, Share], partitions: Mapping[str, int], budget: Budget) -> dict[str, Share]:
    """Assign the partitions of the streams that the members want.

    Arguments:
        members: by consumer id, what it wants, and has so far.
        partitions: how many partitions each stream has; one that is missing has none.
        budget: is used up by balancing.

    Returns what each member has now, in the order of `members`; what has not changed is the same object.
    """
    balance = _Balance(members, partitions, budget)
    balance.deal()
    while balance.level() and balance.spread():
        pass
    return balance.shares()


class _Balance:
    """The assignment while it is worked on.

    Lists of partitions are used as stacks: what came last leaves first, so that a partition which has been
    moved moves on before one that stays with its member.
    """

    def __init__(self, members: Mapping[str, Share], partitions: Mapping[str, int], budget: Budget) -> None:
        self._members = members
        self._partitions = partitions
        self._budget = budget
        self._total: dict[str, int] = {}
        self._touched: set[str] = set()
        held: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
        for consumer in sorted(members):
            total = 0
            for stream, share in members[consumer].items():
                count = partitions.get(stream, 0)
                if not share or share[-1] < count:
                    kept = list(share)
                else:
                    kept = [partition for partition in share if partition < count]
                    self._touched.add(consumer)
                held[stream][consumer] = kept
                total += len(kept)
            self._total[consumer] = total
        # By stream, then by consumer, both in ascending order.
        self._held = {stream: held[stream] for stream in sorted(held)}

    def deal(self) -> None:
        """Give every partition that nobody has to the member with the fewest that wants it."""
        for stream, held in self._held.items():
            count = self._partitions.get(stream, 0)
            if sum(map(len, held.values())) == count:
                continue
            taken = {partition for share in held.values() for partition in share}
            fewest = [(self._total[consumer], len(share), consumer) for consumer, share in held.items()]
            heapq.heapify(fewest)
            for partition in range(count):
                if partition not in taken:
                    total, share, consumer = fewest[0]
                    held[consumer].append(partition)
                    self._touched.add(consumer)
                    heapq.heapreplace(fewest, (total + 1, share + 1, consumer))
            for total, _, consumer in fewest:
                self._total[consumer] = total

    def level(self) -> bool:
        """Move partitions from members with many to members with few. False when the budget is used up."""
        moved = True
        while moved:
            moved = False
            # One move a stream and round, so that a member that is to give takes from all its streams alike.
            for held in self._held.values():
                if len(held) > 1:
                    if self._budget.left <= 0:
                        return False
                    self._budget.left -= len(held)
                    moved |= self._level_stream(held)
        return True

    def _level_stream(self, held: dict[str, list[int]]) -> bool:
        totals = [self._total[consumer] for consumer in held]
        if max(totals) - min(totals) < 2:
            return False  # as nearly always; what follows costs several times as much

        def load(consumer: str) -> tuple[int, int, str]:
            return self._total[consumer], len(held[consumer]), consumer

        least = min(held, key=load)
        most = max((consumer for consumer, share in held.items() if share), key=load, default=least)
        if self._total[most] - self._total[least] < 2:
            return False
        self._move(held, most, least)
        return True

    def spread(self) -> bool:
        """Even out the streams among members that want the same ones. Returns whether anything moved, so that
        it is worth to level again."""
        alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for consumer in self._total:
            alike[tuple(self._members[consumer])].append(consumer)
        moved = False
        for streams, consumers in alike.items():
            if len(streams) > 1 and len(consumers) > 1:
                for stream in streams:
                    moved |= self._spread_stream(stream, streams, consumers)
        return moved

    def _spread_stream(self, stream: str, streams: tuple[str, ...], consumers: list[str]) -> bool:
        held = self._held[stream]

        def load(consumer: str) -> tuple[int, int, str]:
            return len(held[consumer]), self._total[consumer], consumer

        moved = False
        while self._budget.left > 0:
            self._budget.left -= len(consumers) + len(streams)
            sizes = [len(held[consumer]) for consumer in consumers]
            if max(sizes) - min(sizes) < 2:
                break
            least, most = min(consumers, key=load), max(consumers, key=load)
            even = self._total[most] <= self._total[least]
            self._move(held, most, least)
            if even:
                # Totals are to stay: another stream, of which the other one has more, goes the other way.
                back = max(
                    (name for name in streams if name != stream),
                    key=lambda name: len(self._held[name][least]) - len(self._held[name][most]),
                )
                self._move(self._held[back], least, most)
            moved = True
        return moved

    def _move(self, held: dict[str, list[int]], giver: str, taker: str) -> None:
        held[taker].append(held[giver].pop())
        self._total[giver] -= 1
        self._total[taker] += 1
        self._touched |= {giver, taker}

    def shares(self) -> dict[str, Share]:
        """What each member has now."""
        result = dict(self._members)
        for consumer in self._touched:
            before = result[consumer]
            share = {stream: tuple(sorted(self._held[stream][consumer])) for stream in before}
            result[consumer] = before if share == before else share
        return result
