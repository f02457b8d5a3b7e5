"""Which acks may leave.

| policy | leaves |
|---|---|
| LEADER | when the leader has it written, or on disk if the stream counts only that; within the lease |
| ALL | when it is committed |

Invariants:
- What was once allowed stays so: a limit never falls.
- After a leader has stepped down nothing more is allowed, whatever is known then.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AckLimits:
    """Up to which offset acks may leave, by policy; -1 for none."""

    leader: int = -1
    all: int = -1


class AckGate:
    """What may be acked in one leadership. `durable`: whether only what is on disk counts."""

    def __init__(self, durable: bool) -> None:
        self._durable = durable
        self._limits = AckLimits()
        self._closed = False

    def limits(self, written: int, synced: int, high_watermark: int, *, leased: bool) -> AckLimits:
        """The limits as they are now.

        Arguments:
            written, synced: offsets behind what the leader's log has, and has on disk.
            high_watermark: the last offset that is committed.
            leased: whether the lease holds.
        """
        if not self._closed:
            own = (synced if self._durable else written) - 1
            leader = max(self._limits.leader, own) if leased else self._limits.leader
            self._limits = AckLimits(leader, max(self._limits.all, high_watermark))
        return self._limits

    def close(self) -> None:
        """The leader steps down: from now on the limits are -1."""
        self._closed = True
        self._limits = AckLimits()
