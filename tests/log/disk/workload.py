"""What is done to a log on the simulated disk: a table of operations, and scripts of them.

Each operation notes in the disk's journal what it is about to do and what it has been told, so that the
journal alone says at every point what a log found later has to hold (`history.py` reads the notes). The
content of a record follows from its offset and the attempt that wrote it, a number that no other append of
the same run has; so a record that should be gone is recognised wherever it turns up.

A new operation of the log is a function here and a line in OPERATIONS, and, where it changes what may be
found, a note that History knows.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from log_helpers import MEMORY, PREFIX, Record, batch, messages, open_log

from liftbridge.log import CorruptBatchError, Log, LogClosedError, LogFailedError, ReceivedBatches

Note = Callable[..., None]
Step = tuple[str, int]
SIZES = (0, 10, 30, 100, 100, 300, 600, 5000)


@lru_cache(maxsize=8192)
def record(offset: int, attempt: int) -> Record:
    """The record that an attempt writes at an offset."""
    chance = random.Random(offset * 1_000_003 + attempt)
    filling = chance.randbytes(chance.choice(SIZES))
    key = b"key%d" % chance.randrange(20) if chance.random() < 0.3 else None
    return Record(b"%d:%d:" % (offset, attempt) + filling, 1000 * offset, key=key)


@dataclass
class Workload:
    """One log and what it was told. `attempt` is the number of the last append, `log` None while not open."""

    directory: Path
    options: dict[str, int]
    note: Note
    attempt: int = 0
    log: Log | None = None
    tolerant: bool = False  # whether the disk may return errors
    errors: list[str] = field(default_factory=list)
    half_cut: Log | None = None  # a log whose truncation failed: what it still shows may be gone

    def run(self, script: list[Step]) -> None:
        """Do what a script says."""
        for name, argument in script:
            OPERATIONS[name](self, argument)

    @contextmanager
    def may_fail(self, operation: str, log: Log | None) -> Iterator[None]:
        """Around an operation: which errors are good answers of a log on a disk that returns errors."""
        try:
            yield
        except (OSError, LogFailedError, LogClosedError) as error:
            if not self.tolerant:
                raise
            if isinstance(error, LogFailedError):
                assert log is not None and log.failed is not None, (
                    "only a failed log may say that it has failed"
                )
            self.failed(operation, error)
        except CorruptBatchError as error:
            if log is None or log is not self.half_cut:
                raise
            self.failed(operation, error)

    def failed(self, operation: str, error: Exception) -> None:
        self.errors.append(f"{operation}: {type(error).__name__}: {error}")
        self.note("failed", operation=operation)


def open_it(work: Workload, _: int) -> None:
    """Close the log if it is open, and open it, as a restart of the server does."""
    if work.log is not None:
        log, work.log = work.log, None
        with work.may_fail("close", log):
            log.close()
        del log
    with work.may_fail("open", None):
        work.log = open_log(work.directory, power_lost=True, **work.options)
        damage = [str(each) for each in work.log.damage]
        work.note("opened", start=work.log.start_offset, end=work.log.next_offset, damage=damage)


def append(work: Workload, count: int) -> None:
    """Append a batch of `count` records."""
    log = work.log
    if log is None:
        return
    base = log.next_offset
    work.attempt += 1
    work.note("append", base=base, count=count, attempt=work.attempt)
    with work.may_fail("append", log):
        builder = batch(record(base + n, work.attempt) for n in range(count))
        assert log.append(builder, epoch=log.last_epoch) == base
        work.note("appended", end=log.next_offset)
        assert log.next_offset == base + count
    assert log.next_offset in (base, base + count), "a batch is appended as a whole or not at all"


def receive(work: Workload, count: int) -> None:
    """Append a batch of `count` records that has come from another log, which is on another disk."""
    log = work.log
    if log is None:
        return
    base = log.next_offset
    work.attempt += 1
    received = _sent(base, count, work.attempt, log.last_epoch)
    work.note("append", base=base, count=count, attempt=work.attempt)
    with work.may_fail("append", log):
        log.append_batches(received, 1)
        work.note("appended", end=log.next_offset)
        assert log.next_offset == base + count
    assert log.next_offset in (base, base + count), "a batch is appended as a whole or not at all"


def _sent(base: int, count: int, attempt: int, epoch: int) -> ReceivedBatches:
    """What a leader would send that has these records."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        leader = open_log(Path(directory) / "leader")
        leader.begin_at(base)
        leader.append(batch(record(base + n, attempt) for n in range(count)), epoch=epoch)
        payload, _ = leader.read_batches(base, epoch)
        leader.close()
    return ReceivedBatches(payload, base)


def sync(work: Workload, _: int) -> None:
    """Sync; a sync that has failed must fail for good."""
    log = work.log
    if log is None:
        return
    failed = log.failed
    before = log.synced_offset
    with work.may_fail("sync", log):
        work.note("synced", offset=log.sync())
        assert failed is None, "a failed log has taken a sync"
        assert log.synced_offset == log.next_offset
        return
    assert log.synced_offset == before, "a sync that failed has moved the synced offset"


def retain(work: Workload, _: int) -> None:
    """Remove what the options' limits say, nothing that is not synced."""
    log = work.log
    if log is None:
        return
    work.note("retain", limit=log.synced_offset)
    with work.may_fail("retain", log):
        log.retain(1000 * log.next_offset, log.synced_offset)
        work.note("retained", start=log.start_offset)


def begin_epoch(work: Workload, _: int) -> None:
    """Begin the next leader epoch."""
    log = work.log
    if log is None:
        return
    with work.may_fail("epoch", log):
        log.begin_epoch(log.last_epoch + 1, 1000 * log.next_offset)


def truncate(work: Workload, records: int) -> None:
    """Remove the last records, and those that share a batch with them."""
    log = work.log
    if log is None:
        return
    offset = max(log.start_offset, log.next_offset - records)
    work.note("truncate", offset=offset)
    with work.may_fail("truncate", log):
        end = log.truncate(offset)
        work.note("truncated", end=end)
        assert end == log.next_offset <= offset
        return
    assert log.failed is not None, "a truncation that failed leaves files that only recovery may judge"
    work.half_cut = log


def read(work: Workload, max_bytes: int) -> None:
    """Read everything, in pieces of about `max_bytes`."""
    log = work.log
    if log is None:
        return
    with work.may_fail("read", log):
        offset, limit = log.start_offset, log.next_offset
        while offset < limit:
            frames, following = log.read_frames(offset, limit, PREFIX, max_bytes)
            assert frames, "nothing was read below the next offset"
            for message in messages(frames):
                assert message.offset == offset and message.value.startswith(b"%d:" % offset)
                offset += 1
            assert offset == following


def search(work: Workload, part: int) -> None:
    """Look for a time that lies `part` hundredths into the log."""
    log = work.log
    if log is None or log.start_offset == log.next_offset:
        return
    with work.may_fail("search", log):
        offset = log.start_offset + (log.next_offset - 1 - log.start_offset) * part // 100
        assert log.offset_at_or_after(1000 * offset) == offset


OPERATIONS: dict[str, Callable[[Workload, int], None]] = {
    "open": open_it,
    "append": append,
    "receive": receive,
    "sync": sync,
    "retain": retain,
    "truncate": truncate,
    "epoch": begin_epoch,
    "read": read,
    "search": search,
}

OPTIONS = {"segment_max_bytes": 9000, "retention_max_messages": 30}
PREALLOCATED = {**OPTIONS, "preallocate_bytes": 20_000}

# Every operation, with rolls before, between and after syncs, and restarts.
EVERYTHING: list[Step] = [
    ("open", 0),
    ("append", 3),
    ("append", 1),
    ("sync", 0),
    ("append", 12),
    ("append", 12),
    ("read", 1000),
    ("sync", 0),
    ("retain", 0),
    ("append", 2),
    ("open", 0),
    ("epoch", 0),
    ("search", 50),
    ("append", 12),
    ("sync", 0),
    ("append", 12),
    ("append", 12),
    ("retain", 0),
    ("read", 100_000),
    ("append", 4),
    ("sync", 0),
    ("append", 1),
    ("truncate", 9),
    ("append", 1),
    ("truncate", 1),
    ("append", 1),
    ("open", 0),
    ("receive", 2),
    ("sync", 0),
    ("receive", 12),
    ("receive", 12),
    ("sync", 0),
]


def random_script(seed: int | str, length: int, without: tuple[str, ...] = ()) -> list[Step]:
    """A script of `length` operations after the first opening."""
    chance = random.Random(seed)
    choices: list[tuple[str, int, int]] = [  # operation, weight, largest argument
        ("append", 35, 14),
        ("receive", 15, 14),
        ("sync", 20, 1),
        ("retain", 6, 1),
        ("open", 5, 1),
        ("truncate", 3, 20),
        ("epoch", 3, 1),
        ("read", 3, 20_000),
        ("search", 2, 100),
    ]
    choices = [choice for choice in choices if choice[0] not in without]
    weights = [weight for _, weight, _ in choices]
    script: list[Step] = [("open", 0)]
    for name, _, most in chance.choices(choices, weights, k=length):
        script.append((name, chance.randint(1, most)))
    return script


def note_nothing(_: str, **__: Any) -> None:
    """For a log on a disk that nobody watches."""
