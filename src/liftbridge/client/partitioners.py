"""Which partition a message goes to, when the caller does not say it.

By key and round robin choose as the official Go client does (client-behaviour: CRC-32 IEEE of the key,
unsigned, modulo the number of partitions), so that publishers in both languages agree on where a key lives.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import Protocol


class Partitioner(Protocol):
    """Chooses partitions; any function with these parameters is one."""

    def __call__(self, stream: str, key: bytes, value: bytes, partitions: int) -> int:
        """Return a number from 0 up to but without `partitions`."""
        ...


def partition_of_key(key: bytes, partitions: int) -> int:
    """The partition of a key; a missing key is an empty one."""
    return zlib.crc32(key) % partitions


def by_key(stream: str, key: bytes, value: bytes, partitions: int) -> int:
    """Messages with the same key go to the same partition, and so stay in order."""
    return partition_of_key(key, partitions)


class RoundRobin:
    """Each message of a stream goes to the next partition, counted per stream."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, int] = defaultdict(int)

    def __call__(self, stream: str, key: bytes, value: bytes, partitions: int) -> int:
        """Return the next partition."""
        count = self._counts[stream]
        self._counts[stream] = count + 1
        return count % partitions
