"""What a log found after a crash has to hold, by the notes that its workload left in the journal.

A kill leaves everything that an append returned for; a loss of power everything that was told to be synced.
In both cases more may be there: whatever was begun, up to some record. Nothing else may be there, and
nothing may be missing in front (INV-L05).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from log_helpers import batch, expected, open_log, read_past_damage, read_past_damage_reverse

from disk.powerloss import Event, Kind
from disk.workload import OPTIONS, record
from liftbridge.log import Log


class HoleError(Exception):
    """A log tells that records are lost although nothing was damaged; all that must be there is there."""


@dataclass(frozen=True)
class Found:
    """What a log held when it was opened."""

    start: int
    next: int
    content: tuple[bytes, ...]
    damage: tuple[str, ...]


@dataclass
class History:
    """Which records may and must be there.

    Attributes: `attempts` holds for each offset from 0 on which attempt wrote there, up to the last append
    begun; records below `floor` are there after a kill, below `synced` after a loss of power; the log begins
    between `start` and `start_limit`.
    """

    attempts: list[int] = field(default_factory=list)
    floor: int = 0
    synced: int = 0
    start: int = 0
    start_limit: int = 0

    def copy(self) -> History:
        """Return one that goes its own way."""
        return replace(self, attempts=list(self.attempts))

    def apply(self, event: Event) -> None:
        """Learn from an event of the journal; all but notes are ignored."""
        if event.kind is Kind.NOTE:
            note = json.loads(event.data)
            getattr(self, "_on_" + note.pop("what"))(**note)

    def lose_power(self) -> None:
        """From now on only what was synced is certain."""
        self.floor = self.synced

    def _on_append(self, base: int, count: int, attempt: int) -> None:
        # An append before at the same place was refused, or it would not be the same place.
        self.attempts[base:] = [attempt] * count

    def _on_appended(self, end: int) -> None:
        assert end == len(self.attempts)
        self.floor = end

    def _on_synced(self, offset: int) -> None:
        assert self.synced <= offset <= self.floor
        self.synced = offset

    def _on_retain(self, limit: int) -> None:
        self.start_limit = max(self.start_limit, limit)

    def _on_retained(self, start: int) -> None:
        assert self.start <= start <= self.start_limit
        self.start = start

    def _on_truncate(self, offset: int) -> None:
        while 0 < offset < len(self.attempts) and self.attempts[offset - 1] == self.attempts[offset]:
            offset -= 1  # a batch goes as a whole
        self.floor = min(self.floor, offset)
        self.synced = min(self.synced, offset)

    def _on_truncated(self, end: int) -> None:
        self.check_bounds(self.start, end)
        del self.attempts[end:]
        self.floor = self.synced = end

    def _on_opened(self, start: int, end: int, damage: list[str]) -> None:
        self.check_bounds(start, end)
        if damage:
            raise HoleError(damage[0])
        del self.attempts[end:]
        self.floor = self.synced = end

    def _on_failed(self, operation: str) -> None:
        pass

    def check_bounds(self, start: int, end: int) -> None:
        """Assert that a log of the offsets from `start` to before `end` is one that may be found."""
        assert end >= self.floor, f"the log ends at {end}; all below {self.floor} was told to be there"
        assert end <= len(self.attempts), f"the log ends at {end}; up to {len(self.attempts)} was written"
        assert self.start <= start <= min(end, max(self.start, self.start_limit)), (
            f"the log begins at {start}, not between {self.start} and {self.start_limit}"
        )

    def check(self, log: Log) -> Found:
        """Assert that an open log holds what it has to, byte for byte; return what it holds."""
        start, following = log.start_offset, log.next_offset
        self.check_bounds(start, following)
        found, errors = read_past_damage(log)
        lost = {n for error in errors for n in range(error.first_offset, error.next_offset)}
        offsets = [n for n in range(start, following) if n not in lost]
        owed = sorted(n for n in lost if self.start_limit <= n < self.floor)
        assert not owed, f"of what was told to be there, {owed} are lost"
        wanted = [expected(n, record(n, self.attempts[n])) for n in offsets]
        assert [message.offset for message in found] == offsets
        for message, due in zip(found, wanted, strict=True):
            assert message == due, f"the record at {message.offset} is another than the one written last"
        assert log.synced_offset == following
        assert read_past_damage_reverse(log) == wanted[::-1]
        assert not lost or log.damage, "recovery has not told what is lost"
        values = tuple(message.value for message in found)
        return Found(start, following, values, tuple(map(str, log.damage)))


def check_directory(directory: Path, history: History, options: dict[str, int] = OPTIONS) -> Found:
    """Open the log in a directory and check it; again, as after a kill in between; append to it; and again.

    The directory is used up. Raises AssertionError naming what is wrong; HoleError; LogError; OSError.
    """
    log = open_log(directory, power_lost=True, **options)
    found = history.check(log)
    if found.damage:
        raise HoleError(found.damage[0])
    again = open_log(directory, power_lost=True, **options)
    assert again.truncated_bytes == 0, "the first recovery has left something to cut off"
    assert history.check(again) == found, "recovery repeated ends in another state"
    history = history.copy()
    attempt = max(history.attempts, default=0) + 1
    base = again.next_offset
    history.attempts[base:] = [attempt] * 3
    assert again.append(batch(record(base + n, attempt) for n in range(3)), epoch=again.last_epoch) == base
    history.floor = again.sync()
    assert history.floor == base + 3
    again.close()
    last = open_log(directory, power_lost=True, **options)
    history.check(last)
    last.close()
    return found
