"""The log against a plain list: any order of appends, reads, searches, epochs, truncation, retention,
kills, torn writes, and records that expire."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from log_helpers import (
    BATCH_HEADER,
    MEMORY,
    SEGMENT_HEADER,
    Record,
    batch,
    expected,
    indexes,
    open_log,
    read_all,
    read_all_reverse,
    segments,
)

values = st.none() | st.binary(max_size=60) | st.binary(min_size=1500, max_size=3000)
steps = st.integers(0, 3)
parts = st.integers(0, 100).map(lambda percent: percent / 100)


@dataclass
class ModelBatch:
    base: int
    records: list[Record]
    size: int
    epoch: int = 0


class ModelSegment:
    def __init__(self, base: int) -> None:
        self.base = base
        self.batches: list[ModelBatch] = []
        self.indexed = 0  # batches that an index file remembers

    @property
    def records(self) -> list[Record]:
        return [record for each in self.batches for record in each.records]

    @property
    def size(self) -> int:
        return sum(each.size for each in self.batches)


class LogMachine(RuleBasedStateMachine):
    @initialize(
        segment_max_bytes=st.sampled_from([500, 9000, 40_000]),
        segment_max_age_ns=st.sampled_from([0, 15]),
        retention_max_bytes=st.sampled_from([0, 15_000]),
        retention_max_messages=st.sampled_from([0, 12]),
        retention_max_age_ns=st.sampled_from([0, 20]),
        preallocate_bytes=st.sampled_from([0, 10_000]),
    )
    def start(self, **options):
        self.options = options
        self.directory = Path(tempfile.mkdtemp(prefix="log-machine-", dir=MEMORY))
        self.log = open_log(self.directory, **options)
        self.segments = [ModelSegment(0)]
        self.now = 100
        self.epoch = 0

    def teardown(self):
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)

    # ---- the model ----

    @property
    def active(self):
        return self.segments[-1]

    @property
    def first(self):
        return self.segments[0].base

    @property
    def next(self):
        return self.active.base + len(self.active.records)

    @property
    def records(self):
        return {
            each.base + n: record
            for segment in self.segments
            for each in segment.batches
            for n, record in enumerate(each.records)
        }

    def model_old(self, now):
        age = self.options["segment_max_age_ns"]
        return bool(age and self.active.records and now - self.active.records[0].timestamp >= age)

    def model_append(self, records, size):
        full = self.active.records and self.active.size + size > self.options["segment_max_bytes"]
        if full or self.model_old(records[0].timestamp):
            self.segments.append(ModelSegment(self.next))
        self.active.batches.append(ModelBatch(self.next, records, size, self.epoch))

    # ---- what can happen ----

    @rule(
        entries=st.lists(st.tuples(values, st.none() | st.binary(max_size=5), steps), min_size=1, max_size=6)
    )
    def append(self, entries):
        records = []
        for value, key, step in entries:
            self.now += step
            records.append(Record(value, self.now, key=key))
        builder = batch(records)
        assert self.log.append(builder, self.epoch) == self.next
        self.model_append(records, builder.size)

    @rule(step=st.integers(1, 3))
    def begin_epoch(self, step):
        self.epoch += step
        self.log.begin_epoch(self.epoch, self.now)
        self.active.batches.append(ModelBatch(self.next, [], BATCH_HEADER, self.epoch))

    @rule()
    def sync(self):
        assert self.log.sync() == self.next

    @rule()
    def idle(self):
        self.log.sync()
        assert self.log.rest()
        assert self.log._view.active.fileno() < 0

    @rule(part=parts)
    def truncate(self, part):
        """Batches go whole: the log ends where the batch began that holds the offset."""
        offset = self.place(part)
        wanted = min(max(offset, self.first), self.next)
        batches = [each for segment in self.segments for each in segment.batches]
        end = min((each.base for each in batches if each.base + len(each.records) > wanted), default=wanted)
        gone = [each for each in batches if each.base >= end] if offset <= self.next else []
        assert self.log.truncate(offset) == end
        if not gone:
            return
        for segment in self.segments:
            segment.batches = [each for each in segment.batches if each not in gone]
            segment.indexed = 0
        self.segments = [segment for segment in self.segments if segment.base < end] + [ModelSegment(end)]
        self.epoch = self.log.last_epoch

    def place(self, part):
        """An offset in or a little beside the log."""
        return self.first - 2 + round((self.next - self.first + 4) * part)

    @rule(start=parts, length=st.integers(0, 60), max_bytes=st.sampled_from([1, 500, 262144]))
    def read(self, start, length, max_bytes):
        start = self.place(start)
        wanted = [expected(o, r) for o, r in self.records.items() if start <= o < start + length]
        assert read_all(self.log, start, start + length, max_bytes) == wanted

    @rule(start=parts, length=st.integers(0, 60), max_bytes=st.sampled_from([1, 500, 262144]))
    def read_reverse(self, start, length, max_bytes):
        start = self.place(start)
        floor = start - length
        wanted = [expected(o, r) for o, r in self.records.items() if floor <= o <= start]
        assert read_all_reverse(self.log, start, floor, max_bytes) == wanted[::-1]

    @rule(later=st.just(1) | st.integers(-60, 3))
    def search(self, later):
        time = self.now + later
        records = self.records
        assert self.log.offset_at_or_after(time) == min(
            (o for o, r in records.items() if r.timestamp >= time), default=self.next
        )
        assert self.log.offset_at_or_before(time) == max(
            (o for o, r in records.items() if r.timestamp <= time), default=-1
        )

    @rule(idle=st.integers(0, 30), protected=st.integers(0, 10))
    def retain(self, idle, protected):
        self.now += idle
        limit = self.next - protected
        if self.model_old(self.now):
            self.segments.append(ModelSegment(self.next))
        gone = self.model_expired(limit)
        assert self.log.retain(self.now, limit) == gone
        del self.segments[:gone]
        assert len(segments(self.directory)) == len(self.segments)

    def model_expired(self, limit):
        """By the letter of the rules, segment by segment."""
        sealed, gone = self.segments[:-1], 0
        if age := self.options["retention_max_age_ns"]:
            while gone < len(sealed) and sealed[gone].records[-1].timestamp < self.now - age:
                gone += 1
        for option, amount in (
            ("retention_max_messages", lambda segment: len(segment.records)),
            ("retention_max_bytes", lambda segment: segment.size),
        ):
            if most := self.options[option]:
                while gone < len(sealed) and sum(map(amount, self.segments[gone:])) > most:
                    gone += 1
        return sum(1 for segment in sealed[:gone] if segment.base + len(segment.records) <= limit)

    # ---- ends of the process ----

    def close(self):
        self.log.close()
        self.active.indexed = len(self.active.batches)

    def reopen(self):
        self.log = open_log(self.directory, **self.options)
        assert self.log.synced_offset == self.log.next_offset
        assert not self.log.damage
        self.epoch = self.log.last_epoch
        self.now = max(self.now, self.log.last_timestamp)

    @rule()
    def stop(self):
        self.close()
        self.reopen()
        assert self.log.scanned_bytes == 0, "a clean stop leaves nothing to scan"

    @rule()
    def kill(self):
        self.reopen()
        assert self.log.truncated_bytes == 0

    @rule()
    def lose_indexes(self):
        self.close()
        for path in indexes(self.directory):
            path.unlink()
        self.active.indexed = 0
        self.reopen()
        assert self.log.truncated_bytes == 0

    @rule(data=st.data())
    def spoil_an_index(self, data):
        self.close()
        path = data.draw(st.sampled_from(indexes(self.directory)))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        self.reopen()

    def forget_room(self):
        """Cut off what was asked for ahead of the data, so that a torn end is where the file ends."""
        os.truncate(segments(self.directory)[-1], SEGMENT_HEADER + self.active.size)

    @rule(junk=st.binary(min_size=1, max_size=200), zeros=st.integers(0, 5000))
    def torn_by_junk(self, junk, zeros):
        """A write that never finished left something behind the last batch."""
        self.forget_room()
        with segments(self.directory)[-1].open("ab") as file:
            file.write(junk + bytes(zeros))
        self.reopen()
        assert self.log.truncated_bytes == (len(junk) + zeros if any(junk) else 0)

    @precondition(lambda self: len(self.active.batches) > self.active.indexed)
    @rule(data=st.data())
    def torn_by_a_cut(self, data):
        """Of the last batch only a part reached the disk; it was not synced, or this could not be."""
        self.forget_room()
        last = self.active.batches.pop()
        cut = data.draw(st.integers(1, last.size - 1))
        path = segments(self.directory)[-1]
        os.truncate(path, path.stat().st_size - cut)
        self.reopen()
        assert self.log.truncated_bytes == last.size - cut
        self.now = max(self.now, self.log.last_timestamp)

    @precondition(lambda self: len(self.active.batches) > self.active.indexed)
    @rule(data=st.data())
    def torn_by_a_hole(self, data):
        """The file has its length, but a part of the last batch reached the disk as zeros."""
        self.forget_room()
        last = self.active.batches.pop()
        hole = data.draw(st.integers(BATCH_HEADER, last.size))
        path = segments(self.directory)[-1]
        size, whole = path.stat().st_size, path.read_bytes()
        os.truncate(path, size - hole)
        os.truncate(path, size)
        if path.read_bytes() == whole:
            self.active.batches.append(last)  # there were zeros only
            return
        self.reopen()
        assert self.log.truncated_bytes == (last.size if hole < last.size else 0)

    @invariant()
    def positions(self):
        if not hasattr(self, "log"):
            return
        assert (self.log.start_offset, self.log.next_offset) == (self.first, self.next)
        assert self.log.synced_offset <= self.next
        assert self.log.size_bytes == sum(segment.size for segment in self.segments)
        newest = segments(self.directory)[-1]
        room = self.options["preallocate_bytes"]
        assert 0 <= newest.stat().st_size - SEGMENT_HEADER - self.active.size <= room
        assert len(segments(self.directory)) == len(self.segments)
        assert self.log.epochs == self.model_epochs()

    def model_epochs(self):
        """The epochs that begin in the log, and the one that it begins in the midst of."""
        known = []
        for each in (each for segment in self.segments for each in segment.batches):
            if each.epoch > (known[-1][0] if known else 0):
                known.append((each.epoch, each.base))
        before = [entry for entry in known if entry[1] <= self.first]
        return tuple(before[-1:] + [entry for entry in known if entry[1] > self.first])


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)
