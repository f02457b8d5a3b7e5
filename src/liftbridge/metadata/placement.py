"""Where new partitions go: the brokers with the least to do, counting what the same request placed before.

Counting within the request is what spreads a stream of many partitions over the cluster instead of putting
them all on the broker that was least loaded when the request came. Equal loads are decided by broker id, so
the same request against the same state always gives the same answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BrokerLoad:
    """What a broker has to do. Paused partitions do not count.

    Attributes:
        broker: its id.
        partitions: partitions with a replica there.
        leaders: partitions it leads.
    """

    broker: str
    partitions: int
    leaders: int


@dataclass(frozen=True, slots=True)
class Placement:
    """The brokers of one partition: ids of its replicas, and which of them leads."""

    replicas: tuple[str, ...]
    leader: str


def place(partitions: int, replication_factor: int, brokers: Sequence[BrokerLoad]) -> tuple[Placement, ...]:
    """Place the partitions of one new stream.

    Arguments:
        partitions: how many, at least 1.
        replication_factor: replicas of each, from 1 to the number of brokers.
        brokers: every broker that may hold a replica, with what it has to do already.

    Returns the placement of each partition, by partition id.
    """
    assert partitions >= 1, partitions
    assert 1 <= replication_factor <= len(brokers), (replication_factor, len(brokers))
    hosted = {load.broker: load.partitions for load in brokers}
    led = {load.broker: load.leaders for load in brokers}
    assert len(hosted) == len(brokers), "a broker is listed twice"

    placements = []
    for _ in range(partitions):
        replicas = heapq.nsmallest(replication_factor, hosted, key=lambda broker: (hosted[broker], broker))
        leader = min(replicas, key=lambda broker: (led[broker], hosted[broker], broker))
        for broker in replicas:
            hosted[broker] += 1
        led[leader] += 1
        placements.append(Placement(replicas=tuple(replicas), leader=leader))
    return tuple(placements)
