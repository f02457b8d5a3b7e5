"""Whether a leader may still act as one by itself: the bound on how long two act at the same time.

A leader that is cut off does not learn that another one was made. What needs the others, the high watermark,
stands still then; what needs nobody, acks of policy LEADER and reads as the leader, ends with the lease.

The controller takes a broker for dead when it has heard nothing of it for the session time. An answer to a
heartbeat that was sent at a time proves that the controller has heard it at that time or later; so with a
lease that is shorter than the session, and counted from the sending, no other leader is made for its silence
before its end, as far as clocks go at the same speed: the difference of the two is what they may differ by.
A controller answers only when a majority has confirmed, since the heartbeat came, that it still is one; and
an answer counts here when as much of the metadata is applied as was when it was given, so that a broker which
was fenced and is not any more knows what that has cost it.

While the controller is away, being elected itself, a leader goes on if all other in-sync and eligible
replicas have stated within the lease that they follow it: the next leader is one of them, and does not do so
any more, unless the election is unclean. Then, and when leadership is moved on purpose, two may act for as
long as the lease lasts. Who must not be contradicted by another leader asks `Leader.alone`.

Invariant: an answer counts for the time of its question, never for that of its arrival. So does a statement:
for when the message was sent that its follower had heard.
"""

from __future__ import annotations

from collections.abc import Iterable

from liftbridge.replication.messages import NEVER


class Lease:
    """The lease of a broker, for all partitions that it leads.

    Arguments:
        duration: how long it lasts, in the unit of all times here; shorter than the session.
    """

    def __init__(self, duration: float) -> None:
        self._duration = duration
        self._confirmed = NEVER
        self._broker_epoch = 0

    def registered(self, broker_epoch: int) -> None:
        """The broker has (again) registered, under this broker epoch: what was confirmed before is void."""
        if broker_epoch != self._broker_epoch:
            self._broker_epoch = broker_epoch
            self._confirmed = NEVER

    def confirmed(self, broker_epoch: int, sent: float) -> None:
        """The controller has answered the heartbeat that was sent at `sent` under that broker epoch."""
        if broker_epoch == self._broker_epoch:
            self._confirmed = max(self._confirmed, sent)

    @property
    def until(self) -> float:
        """When it ends, if nothing else is confirmed."""
        return self._confirmed + self._duration

    def valid(self, now: float, heard: Iterable[float] = ()) -> bool:
        """Whether a leader may act at `now`.

        `heard`: when each of those who may lead its partition next (`InSync.successors`) has followed this
        leader for certain (`Progress.heard`); empty when there is none, which proves nothing.
        """
        if now < self.until:
            return True
        return now < min(heard, default=NEVER) + self._duration
