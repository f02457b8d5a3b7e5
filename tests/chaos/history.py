"""What clients of a cluster under faults have seen, and whether it can be: the checks of `chaos.py`.

A history has what was sent, what was acked and where, and what readers got. At the end it is compared with
what the replicas hold. That a message is stored twice is allowed, as its sender may have tried again; so is
one whose ack was lost. Everything else is a finding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping


class History:
    """Filled by many threads at once."""

    def __init__(self) -> None:
        self.sent: set[bytes] = set()
        self.acked: dict[bytes, int] = {}
        self.read: dict[int, bytes] = {}
        self.findings: list[str] = []
        self._lock = threading.Lock()

    def sends(self, value: bytes) -> None:
        """A message is about to be sent, with a value of its own."""
        with self._lock:
            self.sent.add(value)

    def acks(self, value: bytes, offset: int) -> None:
        """Its ack of policy ALL has come."""
        with self._lock:
            self.acked[value] = offset

    def reads(self, expected: int, offset: int, value: bytes) -> None:
        """A reader that was to get an offset next got this message."""
        with self._lock:
            if offset != expected:
                self.findings.append(f"a reader at {expected} got {offset}")
            if self.read.setdefault(offset, value) != value:
                self.findings.append(f"offset {offset} was {self.read[offset]!r}, and then {value!r}")

    def check(self, replicas: Mapping[str, Mapping[int, bytes]], leader: str) -> list[str]:
        """Everything that cannot be, now that all has healed; `replicas` is what each of them holds."""
        final = replicas[leader]
        found = list(self.findings)
        for value, offset in self.acked.items():
            if final.get(offset) != value:
                found.append(f"{value!r} was acked at {offset}, where {final.get(offset)!r} is")
        for offset, value in self.read.items():
            if final.get(offset) != value:
                found.append(f"{value!r} was read at {offset}, where {final.get(offset)!r} is")
        found += [f"{value!r} was never sent" for value in final.values() if value not in self.sent]
        if sorted(final) != list(range(len(final))):
            found.append("offsets are missing")
        for server, held in replicas.items():
            found += [
                f"{server} has {held.get(offset)!r} at {offset}, and {leader} has {final.get(offset)!r}"
                for offset in sorted({*held, *final})
                if held.get(offset) != final.get(offset)
            ]
        return found
