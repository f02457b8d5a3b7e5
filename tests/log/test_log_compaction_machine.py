"""Compaction against a plain dict: any order of appends, runs, ends, and losses of what may be lost."""

import shutil
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from compaction_helpers import (
    CONTROL,
    EXPIRY,
    TOMBSTONES,
    UNTHROTTLED,
    Entry,
    Stored,
    entries,
    open_compacted,
    stored,
    stored_segments,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from log_helpers import MEMORY, SEGMENT_HEADER, indexes, read_all, read_all_reverse, segments

from liftbridge.log.compaction_state import STATE_NAME

KEYS = [None, b"", *(b"key-%d" % n for n in range(9)), b"a key that is longer than two words of the hash"]
values = st.none() | st.binary(max_size=30) | st.binary(min_size=600, max_size=1500)
expiries = st.sampled_from([0, 0, 0, 0, 0, 150, 300])  # ns; all long past for whoever reads
records = st.builds(Entry, st.sampled_from(KEYS), values, expiries)
steps = st.integers(0, 5)
parts = st.integers(0, 100).map(lambda percent: percent / 100)


@dataclass
class ModelRecord:
    entry: Entry
    timestamp: int
    stored: Stored
    clean_since: int | None = None

    @property
    def is_tombstone(self):
        return bool(self.entry.key) and self.entry.value is None


class CompactionMachine(RuleBasedStateMachine):
    @initialize(
        segment_max_bytes=st.sampled_from([500, 3000, 20_000]),
        compact_min_dirty_ratio=st.sampled_from([0.0, 0.0, 0.5]),
        compact_min_lag_ns=st.sampled_from([0, 0, 20]),
        tombstone_retention_ns=st.sampled_from([0, 30, 10**9]),
        memory=st.sampled_from([1024, 128 << 20]),
    )
    def start(self, memory, **options):
        self.options = {**options, "compact_memory_bytes": memory}
        self.directory = Path(tempfile.mkdtemp(prefix="compaction-machine-", dir=MEMORY))
        self.log = open_compacted(self.directory, **self.options)
        self.records = {}
        self.now = 100
        self.epoch = 0
        self.fresh = 0  # keys that were used only once

    def teardown(self):
        if hasattr(self, "directory"):
            self.log.close()
            shutil.rmtree(self.directory)

    def append_all(self, batch):
        self.now = max(self.now, self.log.last_timestamp)
        base = self.log.append(entries(batch, self.now), self.epoch)
        written = stored_segments(self.directory)[-1].batches[-1]
        assert written.base_offset == base
        for n, entry in enumerate(batch):
            self.records[base + n] = ModelRecord(entry, self.now + n, written.records[base + n])
        self.now += len(batch) - 1

    @rule(batches=st.lists(st.lists(records, min_size=1, max_size=8), min_size=1, max_size=8), later=steps)
    def append(self, batches, later):
        for batch in batches:
            self.now += later
            self.append_all(batch)

    @rule(count=st.integers(10, 60), repeat=st.integers(1, 4))
    def append_many_keys(self, count, repeat):
        """More keys than a small map has room for."""
        names = [b"fresh-%d" % (self.fresh + n) for n in range(count)]
        self.fresh += count // 2
        for _ in range(repeat):
            self.append_all([Entry(name, b"x" * 20) for name in names])

    @rule(told=st.booleans())
    def begin_epoch(self, told):
        """With a control batch, or as a log of a time before there were any has it."""
        self.epoch += 1
        if told:
            self.log.begin_epoch(self.epoch, self.now)

    @rule(idle=st.integers(0, 50), part=parts)
    def compact(self, idle, part):
        self.now += idle
        self.log.sync()
        limit_offset = round(self.log.start_offset + part * (self.log.next_offset - self.log.start_offset))
        epochs, size = self.log.epochs, len(segments(self.directory))
        active = segments(self.directory)[-1]
        before = active.read_bytes()
        did = self.log.compact(self.now, limit_offset, UNTHROTTLED)
        assert active.read_bytes() == before, "the active segment was touched"
        assert len(segments(self.directory)) == did.segments_after + 1
        assert size == did.segments_before + 1
        assert self.log.epochs == epochs
        self.check_limit(did.clean_offset, limit_offset)
        self.take_over(did)
        found = stored(self.directory)
        assert found == {offset: record.stored for offset, record in self.records.items()}

    def check_limit(self, clean, limit_offset):
        """What has become clean is sealed, below the limit and old enough."""
        became = {o: r for o, r in self.records.items() if o < clean and r.clean_since is None}
        assert all(offset < limit_offset for offset in became)
        old = self.now - self.options["compact_min_lag_ns"]
        assert all(record.timestamp <= old for record in became.values())

    def take_over(self, did):
        count = len(self.records)
        if did.bytes_read:
            self.model_compact(did.clean_offset)
        assert count - len(self.records) == did.records_removed

    def model_compact(self, clean):
        """What remains, by the letter of the rules."""
        latest = {record.entry.key: offset for offset, record in self.records.items() if offset < clean}
        old = self.now - self.options["tombstone_retention_ns"]
        for offset, record in list(self.records.items()):
            if offset >= clean:
                continue
            entry = record.entry
            expired = 0 < entry.expiry <= self.now
            superseded = entry.key and latest[entry.key] > offset
            outlived = record.is_tombstone and record.clean_since is not None and record.clean_since <= old
            if expired or superseded or outlived:
                del self.records[offset]
            elif record.clean_since is None:
                record.clean_since = self.now

    @rule()
    def compact_all_that_can_be(self):
        """With nothing in the way, repeated runs leave one record a key in front of the active segment."""
        self.log.sync()
        before = -1
        while True:
            did = self.log.compact(self.now, self.log.next_offset, UNTHROTTLED)
            self.take_over(did)
            if did.clean_offset == before:
                break
            before = did.clean_offset
        keys = [record.entry.key for offset, record in self.records.items() if offset < before]
        keys = [key for key in keys if key]
        assert len(keys) == len(set(keys))

    # ---- reading ----

    @property
    def visible(self):
        return {o: r for o, r in self.records.items() if not r.entry.expiry}

    @rule(start=parts, length=st.integers(0, 80), max_bytes=st.sampled_from([1, 500, 262144]))
    def read(self, start, length, max_bytes):
        start = round(start * self.log.next_offset)
        limit = min(start + length, self.log.next_offset)
        found = read_all(self.log, start, limit, max_bytes)
        self.check_messages(found, [o for o in self.visible if start <= o < limit])
        floor = max(start - length, 0)
        found = read_all_reverse(self.log, start, floor, max_bytes)
        self.check_messages(found, [o for o in self.visible if floor <= o <= start][::-1])

    def check_messages(self, found, offsets):
        assert [message.offset for message in found] == offsets
        for message in found:
            record = self.records[message.offset]
            assert (message.key, message.value) == (record.entry.key or b"", record.entry.value or b"")
            assert message.timestamp == record.timestamp

    @rule(later=st.just(1) | st.integers(-80, 3))
    def search(self, later):
        time = self.now + later
        offset = self.log.offset_at_or_after(time)
        assert all((o >= offset) == (r.timestamp >= time) for o, r in self.records.items())
        offset = self.log.offset_at_or_before(time)
        assert all((o <= offset) == (r.timestamp <= time) for o, r in self.records.items())

    # ---- what else happens to a log ----

    @rule(end=st.sampled_from(["stop", "kill", "lose the indexes"]))
    def restart(self, end):
        epochs = self.log.epochs
        if end != "kill":
            self.log.close()
        if end == "lose the indexes":
            for path in indexes(self.directory):
                path.unlink()
        self.log = open_compacted(self.directory, **self.options)
        assert self.log.damage == ()
        assert self.log.epochs == epochs
        assert end != "stop" or self.log.scanned_bytes == 0

    @rule(spoil=st.booleans())
    def lose_state(self, spoil):
        path = self.directory / STATE_NAME
        if spoil and path.exists():
            path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
        else:
            path.unlink(missing_ok=True)
        for record in self.records.values():
            record.clean_since = None

    @invariant()
    def the_files_are_well_formed(self):
        if not hasattr(self, "log"):
            return
        found = stored_segments(self.directory)
        for segment, following in pairwise(found):
            assert segment.end_offset in (-1, following.base_offset)
        sizes = [path.stat().st_size - SEGMENT_HEADER for path in segments(self.directory)]
        assert sum(sizes) == self.log.size_bytes
        for segment in found:
            for each in segment.batches:
                self.check_batch(each, segment.end_offset >= 0)
        assert {path.suffix for path in self.directory.iterdir()} <= {".log", ".index", ""}

    def check_batch(self, each, sparse):
        if sparse:
            assert each.prev_crc == 0
        if not each.records:
            assert (each.attributes, each.last_delta) == (CONTROL, 0)
            return
        known = [self.records[offset] for offset in each.records]
        assert (each.base_timestamp, each.max_timestamp) == (known[0].timestamp, known[-1].timestamp)
        tombstones = any(r.entry.key is not None and r.entry.value is None for r in known)
        expiry = any(r.entry.expiry for r in known)
        assert each.attributes == (TOMBSTONES if tombstones else 0) | (EXPIRY if expiry else 0)


TestCompactionMachine = CompactionMachine.TestCase
TestCompactionMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
