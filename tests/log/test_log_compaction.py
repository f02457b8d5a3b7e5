"""Compaction by key: what remains, when a run is due, what it costs, and what it must not be fooled by."""

import struct

import pytest
from compaction_helpers import (
    CONTROL,
    HOUR,
    UNTHROTTLED,
    Entry,
    compact,
    entries,
    keyed,
    open_compacted,
    stored,
    stored_segments,
)
from log_helpers import BATCH_HEADER, SEGMENT_HEADER, STREAM, open_log, read_all, segments

from liftbridge._log import CompactionKeys, crc32c, siphash13
from liftbridge.log import CleaningStoppedError, Keyring, Log, LogOptions, Throttle
from liftbridge.log.compaction_state import (
    MAX_POINTS,
    STATE_NAME,
    CleanPoint,
    CleanState,
    read_state,
    truncate_state,
    write_state,
)
from liftbridge.log.keys import MasterKey

DAY = 24 * HOUR


def one_a_segment(directory, *records, **options):
    """A log with every record in a segment of its own, the last one active."""
    log = open_compacted(directory, segment_max_bytes=1, **options)
    for record in records:
        log.append(entries([record], log.last_timestamp + 1))
    log.sync()
    return log


def offsets(log):
    return sorted(stored(log.directory))


# ---- what remains ----


def test_the_last_record_of_every_key_remains(tmp_path):
    log = open_compacted(tmp_path, segment_max_bytes=400)
    for n in range(30):
        keyed(log, (b"a", b"%d" % n), (b"b%d" % (n % 3), b""), (None, b"plain"), (b"", b"empty key"))
    before = stored(tmp_path)
    last_sealed = log._view.active.base_offset
    did = compact(log)
    after = stored(tmp_path)
    assert after.items() <= before.items(), "a record was changed"
    kept = [o for o in after if o < last_sealed]
    assert [o for o in kept if o % 4 == 0] == [last_sealed - 4], "of key a the last one"
    assert [o for o in kept if o % 4 == 1] == [last_sealed - 11, last_sealed - 7, last_sealed - 3]
    assert [o for o in kept if o % 4 > 1] == [o for o in range(last_sealed) if o % 4 > 1], "keyless ones stay"
    assert [m.offset for m in read_all(log)] == sorted(after)
    assert did.records_removed == len(before) - len(after)
    assert did.clean_offset == last_sealed
    log.close()


def test_nothing_happens_unless_the_options_say_so(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=1)
    for _ in range(5):
        keyed(log, (b"a", b""))
    assert compact(log).bytes_read == 0
    assert offsets(log) == list(range(5))
    log.close()


@pytest.mark.parametrize("limit", range(7))
def test_what_is_not_below_the_limit_remains(tmp_path, limit):
    log = one_a_segment(tmp_path, *[Entry(b"a", b"")] * 6, compact_min_dirty_ratio=0)
    compact(log, limit_offset=limit)
    # The last record below the limit is that of its key there; offset 5 is in the active segment.
    assert offsets(log) == list(range(max(min(limit, 5) - 1, 0), 6))
    log.close()


def test_a_limit_inside_a_batch(tmp_path):
    log = open_compacted(tmp_path, segment_max_bytes=1)
    keyed(log, *[(b"a", b"%d" % n) for n in range(10)])
    keyed(log, (None, b""))
    before = stored(tmp_path)
    assert compact(log, limit_offset=5).clean_offset == 5
    assert offsets(log) == [4, 5, 6, 7, 8, 9, 10]
    assert stored(tmp_path).items() <= before.items()
    only = stored_segments(tmp_path)[0].batches[0]
    assert (only.base_offset, only.last_delta, only.count) == (0, 9, 6), "the batch keeps its offsets"
    log.close()


def test_a_tombstone_stays_until_it_was_clean_for_long_enough(tmp_path):
    options = {"tombstone_retention_ns": DAY, "compact_min_dirty_ratio": 0}
    log = one_a_segment(tmp_path, Entry(b"a", b"1"), Entry(b"a", None), Entry(None, b""), **options)
    compact(log, now_ns=10 * DAY)
    assert offsets(log) == [1, 2]
    # Only now was it seen clean, so it stays for a day from here on, however old it is.
    compact(log, now_ns=11 * DAY - 1)
    assert offsets(log) == [1, 2]
    log.close()
    log = open_compacted(tmp_path, segment_max_bytes=1, **options)
    did = compact(log, now_ns=11 * DAY)
    assert did.records_removed == 1, "an old tombstone alone makes a run due"
    assert offsets(log) == [2]
    assert compact(log, now_ns=20 * DAY).bytes_read == 0, "nothing is left to wait for"
    log.close()


def test_a_tombstone_makes_one_run_due(tmp_path):
    """Runs in between see it too, and it must not be waited for once more on their account."""
    options = {"tombstone_retention_ns": DAY, "compact_min_dirty_ratio": 0}
    log = one_a_segment(tmp_path, Entry(b"a", None), Entry(None, b""), **options)
    compact(log, now_ns=10 * DAY)
    log.append(entries([Entry(None, b"")], log.last_timestamp + 1))
    assert compact(log, now_ns=10 * DAY + HOUR).clean_offset == 2
    assert compact(log, now_ns=11 * DAY).records_removed == 1
    assert compact(log, now_ns=20 * DAY).bytes_read == 0
    log.close()


def test_a_tombstone_does_not_outlive_a_newer_record(tmp_path):
    log = one_a_segment(tmp_path, Entry(b"a", b"1"), Entry(b"a", None), Entry(b"a", b"2"), Entry(None, b""))
    compact(log)
    assert offsets(log) == [2, 3]
    log.close()


def test_a_record_without_key_and_value_is_no_tombstone(tmp_path):
    nothing = [Entry(None, None), Entry(b"", None)]
    log = one_a_segment(tmp_path, *nothing, Entry(b"a", None), *nothing, tombstone_retention_ns=0)
    compact(log)
    compact(log, now_ns=2 * HOUR)
    assert offsets(log) == [0, 1, 3, 4]
    log.close()


def test_an_expired_record_takes_the_older_ones_along(tmp_path):
    log = one_a_segment(
        tmp_path,
        Entry(b"a", b"old"),
        Entry(b"a", b"new", expiry=HOUR),
        Entry(b"b", b"", expiry=HOUR + 1),
        Entry(None, b"", expiry=HOUR),
        Entry(b"c", b"", expiry=HOUR),
    )
    compact(log, now_ns=HOUR)
    assert offsets(log) == [2, 4], "offset 4 is in the active segment"
    log.close()


def test_older_ones_of_an_expired_record_never_come_back(tmp_path):
    """Whatever segment a crash comes behind: the swaps go from the oldest to the newest."""
    records = [Entry(b"a", b"old"), Entry(b"a", b"new", expiry=HOUR), Entry(None, b"")]
    log = open_compacted(tmp_path, segment_max_bytes=1)
    for record in records:
        log.append(entries([record, Entry(None, b"x" * 2000)], log.last_timestamp + 1))
    log.options = LogOptions(compact=True, segment_max_bytes=2500)  # so that they are not merged
    seen = []
    replace = log._replace

    def spy(old, new, opened):
        replace(old, new, opened)
        seen.append(offsets(log))

    log._replace = spy
    compact(log)
    assert seen == [[1, 2, 3, 4, 5], [1, 3, 4, 5]]
    log.close()


def test_the_epochs_of_a_log_survive_its_records(tmp_path):
    log = open_compacted(tmp_path, segment_max_bytes=1)
    keyed(log, (b"a", b"0"), epoch=1)
    log.begin_epoch(3, log.last_timestamp)
    keyed(log, (b"a", b"1"), epoch=3)
    keyed(log, (b"a", b"2"), (b"a", b"3"), epoch=4)  # no control batch tells of it, nor of the next
    keyed(log, (b"a", b"4"), epoch=5)
    keyed(log, (None, b""), epoch=5)
    epochs = ((1, 0), (3, 1), (4, 2), (5, 4))
    assert log.epochs == epochs
    compact(log)
    assert offsets(log) == [4, 5]
    assert log.epochs == epochs
    controls = [b for s in stored_segments(tmp_path) for b in s.batches if b.attributes & CONTROL]
    assert [(b.epoch, b.base_offset) for b in controls] == [(1, 0), (3, 1), (4, 2)]
    log.close()
    log = open_compacted(tmp_path, segment_max_bytes=1)
    assert log.epochs == epochs
    log.close()


def test_a_second_run_changes_nothing(tmp_path):
    log = open_compacted(tmp_path, segment_max_bytes=500, compact_min_dirty_ratio=0)
    for n in range(40):
        keyed(log, (b"k%d" % (n % 6), b"x" * 50))
    compact(log)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for _ in range(2):
        did = compact(log)
        assert (did.bytes_written, did.records_removed) == (0, 0)
    (tmp_path / STATE_NAME).unlink()
    did = compact(log)
    assert did.bytes_read > 0
    assert (did.bytes_written, did.records_removed) == (0, 0)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    log.close()


# ---- keys ----


@pytest.mark.parametrize(
    ("data", "known"),
    [
        (b"a", 0x407448D2B89B1813),
        (b"1234567", 0xA33D651594FDAE81),
        (b"12345678", 0x3489982430560A87),
        (b"123456789", 0x0FBC0F0007965FCF),
        (bytes(range(64)), 0x75E05FD5BBC870C6),
    ],
)
def test_siphash(data, known):
    """Python itself hashes with SipHash-1-3 since 3.11: these are its hash(data) under PYTHONHASHSEED=0."""
    assert siphash13(data, 0, 0) == known
    assert siphash13(data, 1, 0) != known != siphash13(data, 0, 1)


def forge(path, **fields):
    """Change fields of the only batch of a file, each given as format, value and position in the batch."""
    content = bytearray(path.read_bytes())
    for kind, value, at in fields.values():
        struct.pack_into(kind, content, SEGMENT_HEADER + at, value)
    struct.pack_into("<I", content, SEGMENT_HEADER + 72, 0)  # whatever batch was in front of it
    struct.pack_into("<I", content, SEGMENT_HEADER + 8, crc32c(content[SEGMENT_HEADER + 12 :]))
    path.write_bytes(content)


def test_keys_that_collide_in_the_stored_hash_are_different_keys(tmp_path):
    log = one_a_segment(tmp_path, Entry(b"mine", b""), Entry(b"theirs", b""), Entry(None, b""))
    log.close()
    for path in segments(tmp_path)[:2]:
        forge(path, stored_hash=("<Q", 12345, BATCH_HEADER + 16))
    forge(segments(tmp_path)[2])
    for path in tmp_path.glob("*.index"):
        path.unlink()
    log = open_compacted(tmp_path, segment_max_bytes=1)
    compact(log)
    assert [m.key for m in read_all(log)] == [b"mine", b"theirs", b""]
    log.close()


def test_keys_noted_from_a_batch_that_turns_out_malformed_remove_nothing(tmp_path):
    log = one_a_segment(tmp_path, Entry(b"a", b"1"), compact_min_dirty_ratio=0)
    keyed(log, *[(b"a", b"2")] * 100)
    keyed(log, (None, b""))
    log.close()
    path = segments(tmp_path)[1]
    content = path.read_bytes()
    (size,) = struct.unpack_from("<I", content, SEGMENT_HEADER + BATCH_HEADER)
    assert len(content) == SEGMENT_HEADER + BATCH_HEADER + 100 * size
    forge(path, last_record=("<I", 1 << 30, len(content) - SEGMENT_HEADER - size))
    forge(segments(tmp_path)[2])
    for index in tmp_path.glob("*.index"):
        index.unlink()
    log = open_compacted(tmp_path, segment_max_bytes=1, compact_min_dirty_ratio=0)
    did = compact(log)
    assert (did.clean_offset, did.records_removed) == (1, 0)
    log.close()


def test_a_small_map_takes_several_runs(tmp_path):
    log = open_compacted(
        tmp_path, segment_max_bytes=3000, compact_memory_bytes=1024, compact_min_dirty_ratio=0
    )
    for _ in range(2):
        for n in range(200):
            keyed(log, (b"key-%d" % n, b"x" * 20))
    keyed(log, (None, b"x" * 3000))
    most = 1024 // 24 // 4 * 3
    cleaned = [0]
    while True:
        did = compact(log)
        if did.clean_offset == cleaned[-1]:
            break
        assert did.clean_offset - cleaned[-1] >= min(most, 400 - cleaned[-1])
        cleaned.append(did.clean_offset)
    assert len(cleaned) > 400 // most
    assert offsets(log) == list(range(200, 401))
    log.close()


def test_a_map_that_is_too_small_for_anything():
    with pytest.raises(ValueError, match="too few"):
        CompactionKeys(40, 10, bytes(16))
    with pytest.raises(ValueError, match="16 bytes"):
        CompactionKeys(1000, 10, bytes(15))


# ---- when ----


def test_the_dirty_part_must_be_large_enough(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"%d" % n, b"") for n in range(10)], compact_min_dirty_ratio=0.5)
    assert compact(log).clean_offset == 9
    while log.next_offset < 18:
        log.append(entries([Entry(b"a", b"")], log.last_timestamp + 1))
        assert compact(log).bytes_read == 0, "the dirty part is smaller than the clean one"
    log.append(entries([Entry(b"a", b"")], log.last_timestamp + 1))
    assert compact(log).clean_offset == 18
    log.close()


def test_old_dirt_is_enough(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"%d" % n, b"") for n in range(10)], compact_max_lag_ns=HOUR)
    compact(log)
    log.append(entries([Entry(b"a", b"")], 10 * HOUR))
    log.append(entries([Entry(b"a", b"")], 20 * HOUR))
    assert log.next_offset == 12
    log.options = LogOptions(compact=True, compact_max_lag_ns=2 * HOUR, compact_min_dirty_ratio=1)
    (tmp_path / STATE_NAME).unlink()
    write_state(tmp_path, CleanState(10))
    assert compact(log, now_ns=12 * HOUR - 1).bytes_read == 0
    assert compact(log, now_ns=12 * HOUR).clean_offset == 11
    log.close()


def test_young_records_are_left_for_later(tmp_path):
    log = one_a_segment(
        tmp_path, *[Entry(b"a", b"")] * 5, compact_min_lag_ns=100, compact_min_dirty_ratio=0
    )  # at 1, 2, ... 5 ns
    assert compact(log, now_ns=100).bytes_read == 0
    assert compact(log, now_ns=103).clean_offset == 3
    assert offsets(log) == [2, 3, 4]
    log.close()


def test_retention_may_pass_the_clean_offset(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"%d" % n, b"") for n in range(10)])
    write_state(tmp_path, CleanState(2))
    log.options = LogOptions(compact=True, segment_max_bytes=1, retention_max_messages=4)
    log.retain(HOUR, 10)
    assert log.start_offset == 6
    assert compact(log).clean_offset == 9
    log.close()


# ---- segments ----


def test_small_neighbours_become_one_segment(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"%d" % n, b"") for n in range(20)])
    size = stored_segments(tmp_path)[0]
    log.options = LogOptions(compact=True, segment_max_bytes=10**6)
    did = compact(log)
    assert (did.segments_before, did.segments_after, did.records_removed) == (19, 1, 0)
    assert [path.stem for path in segments(tmp_path)] == [f"{0:020d}", f"{19:020d}"]
    found = stored_segments(tmp_path)[0]
    assert (size.end_offset, found.end_offset) == (-1, 19)
    assert [m.offset for m in read_all(log)] == list(range(20))
    log.close()


def test_merged_segments_keep_within_the_limit(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"%d" % n, b"x" * 100) for n in range(50)])
    log.options = LogOptions(compact=True, segment_max_bytes=1500)
    compact(log)
    sizes = [path.stat().st_size - SEGMENT_HEADER for path in segments(tmp_path)[:-1]]
    assert len(sizes) > 3
    assert max(sizes) <= 1500
    assert all(size + sizes[0] // 4 > 1500 for size in sizes[:-1]), "no room was left for another one"
    log.close()


def test_a_full_segment_that_loses_nothing_is_left_alone(tmp_path):
    log = open_compacted(tmp_path, segment_max_bytes=2000, compact_min_dirty_ratio=0)
    for n in range(8):
        keyed(log, *[(b"%d-%d" % (n, i), b"x" * 100) for i in range(10)])
    first = segments(tmp_path)[0]
    before = first.stat()
    did = compact(log)
    assert (did.records_removed, did.bytes_written) == (0, 0)
    assert did.clean_offset == log._view.active.base_offset
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    log.close()


def test_segments_that_lose_everything(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"a", b"", expiry=1)] * 10)
    assert compact(log).records_removed == 9
    assert offsets(log) == [9]
    assert read_all(log) == []
    assert (log.start_offset, log.next_offset) == (0, 10)
    assert log.offset_at_or_after(0) == 9
    log.close()
    log = open_compacted(tmp_path, segment_max_bytes=1)
    assert log.damage == ()
    keyed(log, (b"a", b""))
    assert [m.offset for m in read_all(log)] == [10]
    log.close()


# ---- bodies that are compressed or encrypted ----


@pytest.mark.parametrize(("compression", "encryption"), [("lz4", False), ("none", True), ("zstd", True)])
def test_coded_bodies_are_opened_and_sealed_anew(tmp_path, compression, encryption):
    options = LogOptions(compact=True, segment_max_bytes=300, compression=compression, encryption=encryption)
    keyring = Keyring(MasterKey.of(b"0123456789abcdef", "test")) if encryption else None

    def reopen():
        return Log.open(tmp_path, stream_id=STREAM, partition=3, options=options, keyring=keyring)

    log = reopen()
    for n in range(40):
        keyed(log, (b"a", b"marker" * 90 + b"%d" % n), (b"b%d" % (n % 4), b"%d" % n), (None, b""))
    wanted = {m.offset: m for m in read_all(log)}
    end = log._view.active.base_offset
    did = compact(log)
    assert did.segments_after < did.segments_before
    found = {m.offset: m for m in read_all(log)}
    assert found.items() <= wanted.items()
    assert [o for o in found if o % 3 == 0 and o < end] == [end - 3]
    assert [o for o in found if o % 3 == 1 and o < end] == [end - 11, end - 8, end - 5, end - 2]
    log.close()
    log = reopen()
    assert {m.offset: m for m in read_all(log)} == found
    log.close()
    for path in tmp_path.iterdir():
        assert (b"marker" * 90) not in path.read_bytes()


# ---- damage ----


def damage(path, at=SEGMENT_HEADER + BATCH_HEADER + 20):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_the_run_ends_in_front_of_damage_in_the_dirty_part(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"a", b"")] * 6, compact_min_dirty_ratio=0)
    damage(segments(tmp_path)[3])
    assert compact(log).clean_offset == 3
    assert [path.stem for path in segments(tmp_path)] == [f"{n:020d}" for n in (0, 2, 3, 4, 5)]
    assert compact(log).clean_offset == 3
    log.close()


def test_nothing_that_may_depend_on_damage_goes(tmp_path):
    """The damage may hold an older record of the key, which its tombstone keeps from coming back to life."""
    records = [Entry(b"a", b"1"), Entry(b"a", None), Entry(b"b", b"", expiry=2 * HOUR), Entry(None, b"")]
    log = one_a_segment(
        tmp_path, *records, Entry(None, b""), tombstone_retention_ns=0, compact_min_dirty_ratio=0
    )
    write_state(tmp_path, CleanState(2, (CleanPoint(2, 0, 1),)))
    damage(segments(tmp_path)[0])
    did = compact(log, now_ns=3 * HOUR)
    assert did.records_removed == 0
    assert did.clean_offset == 4
    log.close()


# ---- the state file ----


def test_the_state_survives(tmp_path):
    assert read_state(tmp_path) == CleanState()
    state = CleanState(7, (CleanPoint(3, -5, 1), CleanPoint(7, 9, 0)))
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


def test_a_state_that_is_damaged_is_none(tmp_path):
    state = CleanState(7, (CleanPoint(7, 9, 0),))
    write_state(tmp_path, state)
    content = (tmp_path / STATE_NAME).read_bytes()
    for n in range(len(content)):
        (tmp_path / STATE_NAME).write_bytes(content[:n])
        assert read_state(tmp_path) == CleanState()
        spoilt = bytearray(content)
        spoilt[n] ^= 1
        (tmp_path / STATE_NAME).write_bytes(spoilt)
        assert read_state(tmp_path) == CleanState()


def test_points_are_forgotten_when_nothing_waits_for_them():
    state = CleanState()
    for n in range(1, 11):
        state = state.after(CleanPoint(n, n * HOUR, 1), since_ns=(n - 5) * HOUR)
    assert [point.offset for point in state.points] == [6, 7, 8, 9, 10]
    assert state.tombstones_below(8 * HOUR) == 8
    assert state.has_tombstones(6 * HOUR)
    assert not state.has_tombstones(6 * HOUR - 1)


def test_the_points_are_bounded():
    state = CleanState()
    for n in range(5 * MAX_POINTS):
        state = state.after(CleanPoint(n + 1, n, 1), since_ns=-1)
        assert len(state.points) <= MAX_POINTS
    assert sum(point.tombstones for point in state.points) == 5 * MAX_POINTS, "none is forgotten"
    for time in range(0, 5 * MAX_POINTS, 7):
        assert state.tombstones_below(time) <= time + 1, "none is taken for older than it is"


def test_truncation_takes_back_what_is_clean(tmp_path):
    write_state(tmp_path, CleanState(9, (CleanPoint(4, 1, 1), CleanPoint(9, 2, 1))))
    truncate_state(tmp_path, 9)
    assert read_state(tmp_path).offset == 9
    truncate_state(tmp_path, 6)
    assert read_state(tmp_path) == CleanState(6, (CleanPoint(4, 1, 1), CleanPoint(6, 2, 1)))


def test_a_truncated_log_is_compacted_anew(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"%d" % n, b"") for n in range(10)], compact_min_dirty_ratio=0)
    compact(log)
    log.truncate(4)
    start = log.next_offset
    assert start <= 4
    while log.next_offset < 10:
        log.append(entries([Entry(b"a", b"")], log.last_timestamp + 1))
    compact(log)
    assert offsets(log) == [*range(start), 8, 9]
    log.close()


# ---- being stopped ----


def test_a_run_can_be_stopped_and_leaves_nothing_behind(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"a", b"")] * 20)
    names = {path.name for path in tmp_path.iterdir()}

    class Stopping(Throttle):
        left = 0

        def take(self, count):
            self.left -= 1
            if self.left < 0:
                self.stop()
            super().take(count)

    before = stored(tmp_path)
    pieces = 0
    while stored(tmp_path) == before:
        throttle = Stopping()
        throttle.left = pieces
        pieces += 1
        try:
            log.compact(HOUR, 20, throttle)
        except CleaningStoppedError:
            assert {path.name for path in tmp_path.iterdir()} == names
    assert pieces > 40, "it was stopped at every piece of the work"
    assert offsets(log) == [18, 19]
    log.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compact_min_dirty_ratio", 1.01),
        ("compact_min_dirty_ratio", -0.1),
        ("compact_memory_bytes", 1023),
        ("tombstone_retention_ns", -1),
    ],
)
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=option):
        LogOptions(**{option: value})


def test_a_closed_log_is_not_compacted(tmp_path):
    log = one_a_segment(tmp_path, *[Entry(b"a", b"")] * 3)
    log.close()
    from liftbridge.log import LogClosedError

    with pytest.raises(LogClosedError):
        log.compact(HOUR, 3, UNTHROTTLED)
