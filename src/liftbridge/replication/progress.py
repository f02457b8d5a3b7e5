"""A follower as its leader sees it in one leader epoch.

Invariants:
- What is known of its log was stated in this leader epoch, and compared with the leader's log.
- The position is that of the newest statement, also when it is lower than before: a log that has lost its end
  counts as what is left of it.
- `last_caught_up` is a time at which the follower had, or has got since, all that the leader had then.
"""

from __future__ import annotations

from dataclasses import dataclass

from liftbridge.replication.messages import NEVER, Statement


@dataclass(slots=True)
class Progress:
    """What is known of one follower.

    Attributes:
        broker_epoch, session: of its newest statement.
        verified: whether its position was compared with the leader's log, and fits.
        next_offset, synced_offset, log_start: as it stated them last.
        sent_offset, sent_epoch: where the log of the follower will end when all has arrived that was sent:
            its next offset, and the epoch of its last batch.
        last_fetch: when it stated anything last.
        heard: when the newest message was sent that it had from this leader when it stated something: it
            followed this leader then, or later. That a statement has come says nothing of the kind, as it may
            have been on its way for long.
        last_caught_up: see above; NEVER if it never had.
    """

    broker_epoch: int = 0
    session: int = 0
    verified: bool = False
    next_offset: int = 0
    synced_offset: int = 0
    log_start: int = 0
    sent_offset: int = 0
    sent_epoch: int = 0
    last_fetch: float = NEVER
    heard: float = NEVER
    last_caught_up: float = NEVER
    _mark_offset: int | None = None
    _mark_time: float = NEVER

    def position(self, durable: bool) -> int:
        """The offset behind what counts as replicated: written, or on disk when that is asked for."""
        return self.synced_offset if durable else self.next_offset

    def renewed(self, statement: Statement) -> bool:
        """Whether the statement begins a session."""
        return (statement.broker_epoch, statement.session) > (self.broker_epoch, self.session)

    def outdated(self, statement: Statement) -> bool:
        """Whether the statement was made before one that is known."""
        known = (self.broker_epoch, self.session)
        stated = (statement.broker_epoch, statement.session)
        return stated < known or (
            stated == known and self.verified and statement.next_offset < self.next_offset
        )

    def doubted(self, statement: Statement, now: float) -> None:
        """Its log does not fit the leader's: nothing of it counts until it does."""
        self.broker_epoch, self.session = statement.broker_epoch, statement.session
        self.verified = False
        self.last_fetch = now
        self.heard = max(self.heard, statement.heard)
        self._mark_offset = None

    def stated(self, statement: Statement, end: int, durable: bool, now: float) -> None:
        """Its log fits the leader's, which ends at `end`."""
        if not self.verified or self.renewed(statement):
            self.sent_offset, self.sent_epoch = statement.next_offset, statement.last_epoch
            self._mark_offset = None
        self.broker_epoch, self.session = statement.broker_epoch, statement.session
        self.verified = True
        self.next_offset = statement.next_offset
        self.synced_offset = min(statement.synced_offset, statement.next_offset)
        self.log_start = statement.log_start
        self.last_fetch = now
        self.heard = max(self.heard, statement.heard)
        self._note_caught_up(end, self.position(durable), now)

    def _note_caught_up(self, end: int, position: int, now: float) -> None:
        """Under load the end of the leader's log moves on, so a follower that keeps up never states it. What
        it
        reaches is where the log ended before: that it did so then is noted when it has got there
            (KAFKA-4485).

        The mark stays until it is reached. With one fetch after the other it could move at each of them; but
        statements come faster than data takes to arrive, and each would move it away again.
        """
        if position >= end:
            self.last_caught_up = now
            self._mark_offset = None
        elif self._mark_offset is not None and position >= self._mark_offset:
            self.last_caught_up = max(self.last_caught_up, self._mark_time)
            self._mark_offset = None
        if self._mark_offset is None:
            self._mark_offset, self._mark_time = end, now
