"""Who may be sent how much: credit of a link, and turns of the partitions on it.

A link is one follower broker's connection to one leader broker, with all their partitions. The follower gives
credit in bytes, a window at first, and gives back what it has dealt with; so what is on its way, and what it
must hold, is bounded by the window and one batch. Partitions with something to send take turns. Each may send
a quantum in a turn; what goes beyond it is taken off its next turns.

Invariants:
- With any credit at all one batch goes, however large: what must go and does not fit would stop its partition
  for ever.
- A partition that has something to send gets a turn after at most one turn of each other, or several if it
  had sent more than its share before.
- What was sent is taken off the credit, also when its partition was withdrawn before that is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Link(Generic[Key]):
    """The sending half, at the leader.

    Arguments:
        window: bytes that may be on their way.
        quantum: bytes of a partition in a turn.
    """

    def __init__(self, window: int, quantum: int) -> None:
        assert window > 0, window
        assert quantum > 0, quantum
        self._credit = window
        self._quantum = quantum
        self._turns: deque[Key] = deque()
        self._turn: Key | None = None  # whose turn it is, from `next` to `sent`
        self._waiting: set[Key] = set()
        self._balance: dict[Key, int] = {}

    @property
    def credit(self) -> int:
        """Bytes that may be sent; below 0 after a batch that was larger than what was left."""
        return self._credit

    def grant(self, size: int) -> None:
        """The follower has dealt with that many bytes."""
        self._credit += size

    def offer(self, key: Key) -> None:
        """A partition has something to send."""
        if key not in self._waiting:
            self._waiting.add(key)
            self._turns.append(key)

    def withdraw(self, key: Key) -> None:
        """A partition has nothing to do with this link any more."""
        self._balance.pop(key, None)
        if key == self._turn:
            self._turn = None
        if key in self._waiting:
            self._waiting.remove(key)
            self._turns.remove(key)

    def next(self) -> tuple[Key, int] | None:
        """Whose turn it is, and how many bytes it is to send; None when nobody may send.

        One batch goes even if it is larger. `sent` tells how it went, before the next turn.
        """
        if self._credit <= 0 or not self._turns:
            return None
        self._pay_debts()
        while True:
            key = self._turns[0]
            balance = self._balance.get(key, 0) + self._quantum
            if balance > 0:
                self._turn = key
                return key, min(balance, self._credit)
            self._balance[key] = balance
            self._turns.rotate(-1)

    def _pay_debts(self) -> None:
        """Skip the rounds in which nobody would get a turn, which a large batch may have cost."""
        rounds = min(-self._balance.get(key, 0) // self._quantum for key in self._turns)
        if rounds > 0:
            for key in self._turns:
                self._balance[key] += rounds * self._quantum

    def sent(self, key: Key, size: int, *, more: bool) -> None:
        """The partition whose turn it was has sent that many bytes; `more`: whether it has still more to
        send. If it was withdrawn meanwhile, only what it has sent counts.
        """
        self._credit -= size
        if self._turn is None:
            return
        assert self._turn == self._turns[0] == key, key
        self._turn = None
        self._turns.popleft()
        self._waiting.remove(key)
        # Turns that it makes no use of are not saved; what it owes is.
        self._balance[key] = min(0, self._balance.get(key, 0) + self._quantum - size)
        if more:
            self.offer(key)
        elif self._balance[key] == 0:
            del self._balance[key]


class Receipts:
    """The receiving half, at the follower: what it gives back, not more often than is of use.

    Arguments:
        window: as in `Link`.
    """

    def __init__(self, window: int) -> None:
        self._step = max(1, window // 4)
        self._dealt_with = 0

    def dealt_with(self, size: int) -> None:
        """That many bytes were appended, or dropped."""
        self._dealt_with += size

    def grant(self, *, idle: bool = False) -> int:
        """Bytes to give back now, 0 for none; all of them when nothing else is coming."""
        if not idle and self._dealt_with < self._step:
            return 0
        grant, self._dealt_with = self._dealt_with, 0
        return grant
