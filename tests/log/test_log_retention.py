"""Retention: which segments go, when an idle one is sealed, and that nobody notices who reads or appends."""

import os
import threading
from itertools import pairwise

import pytest
from log_helpers import PREFIX, messages, numbered, numbers, open_log, read_all, read_all_reverse, segments

from liftbridge.log import LogError
from liftbridge.log.segments import open_segments

SIZES = [numbered(n, 2).size for n in range(0, 10, 2)]  # batches of two records, one to a segment


def build(directory, count=5, **options):
    log = open_log(directory, segment_max_bytes=1, **options)
    for n in range(0, 2 * count, 2):
        log.append(numbered(n, 2))
    log.sync()
    return log


def test_without_limits_nothing_goes(tmp_path):
    log = build(tmp_path)
    assert log.retain(10**18, 10) == 0
    assert log.start_offset == 0
    log.close()


@pytest.mark.parametrize(
    ("limit", "start"), [(100, 0), (10, 0), (9, 2), (8, 2), (4, 6), (3, 8), (2, 8), (1, 8)]
)
def test_at_most_so_many_messages_remain_or_the_active_segment(tmp_path, limit, start):
    log = build(tmp_path, retention_max_messages=limit)
    assert log.retain(0, 10) == start // 2
    assert (log.start_offset, log.next_offset) == (start, 10)
    assert numbers(read_all(log)) == list(range(start, 10))
    assert [int(path.stem) for path in segments(tmp_path)] == list(range(start, 10, 2))
    log.close()


@pytest.mark.parametrize(("limit", "start"), [(sum(SIZES), 0), (sum(SIZES) - 1, 2), (SIZES[-1], 8), (1, 8)])
def test_at_most_so_many_bytes_remain_or_the_active_segment(tmp_path, limit, start):
    log = build(tmp_path, retention_max_bytes=limit)
    log.retain(0, 10)
    assert log.start_offset == start
    assert log.size_bytes == sum(SIZES[start // 2 :])
    log.close()


@pytest.mark.parametrize(
    ("now", "start"), [(0, 0), (1000 + 500, 0), (1001 + 500, 2), (5001 + 500, 6), (10**9, 8)]
)
def test_segments_go_by_the_age_of_their_last_record(tmp_path, now, start):
    log = build(tmp_path, retention_max_age_ns=500)
    log.retain(now, 10)
    assert log.start_offset == start
    log.close()


@pytest.mark.parametrize(("limit_offset", "start"), [(0, 0), (1, 0), (2, 2), (5, 4), (100, 8)])
def test_nothing_at_or_above_the_limit_goes(tmp_path, limit_offset, start):
    log = build(tmp_path, retention_max_messages=1)
    log.retain(0, limit_offset)
    assert log.start_offset == start
    log.close()


def test_the_start_survives_a_restart(tmp_path):
    log = build(tmp_path, retention_max_messages=4)
    log.retain(0, 10)
    for _ in range(2):
        log = open_log(tmp_path, segment_max_bytes=1)
        assert (log.start_offset, log.next_offset) == (6, 10)
    assert numbers(messages(log.read_frames(0, 10, PREFIX)[0])) == [6, 7], "below the start means the start"
    assert log.offset_at_or_after(0) == 6
    assert log.offset_at_or_before(5999) == -1
    log.close()


def test_an_idle_active_segment_is_sealed_by_age_and_then_expires(tmp_path):
    log = open_log(tmp_path, segment_max_age_ns=1000, retention_max_age_ns=5000)
    log.append(numbered(1, 3))  # the first is at 1000, the last at 3000
    assert log.retain(1999, 3) == 0
    assert len(segments(tmp_path)) == 1
    assert log.retain(2000, 3) == 0
    assert len(segments(tmp_path)) == 2
    assert not log.needs_sync
    assert (log.start_offset, log.next_offset, log.synced_offset) == (0, 3, 3)
    assert log.offset_at_or_after(1500) == 1, "an empty active segment hides nothing from a search"
    assert log.offset_at_or_after(3001) == 3
    assert log.retain(8000, 3) == 0
    assert log.retain(8001, 3) == 1
    assert (log.start_offset, log.next_offset, log.size_bytes) == (3, 3, 0)
    assert log.retain(10**12, 3) == 0
    assert len(segments(tmp_path)) == 1, "an empty segment is never sealed"
    log.close()
    log = open_log(tmp_path)
    assert (log.start_offset, log.next_offset) == (3, 3)
    log.close()


def test_appending_rolls_by_age(tmp_path):
    log = open_log(tmp_path, segment_max_age_ns=5000)
    for n in range(0, 12, 2):
        log.append(numbered(n, 2))
    assert [int(path.stem) for path in segments(tmp_path)] == [0, 6]
    assert log.needs_sync
    log.sync()
    assert not log.needs_sync
    log.close()


def test_a_reader_of_a_removed_segment_goes_on_at_the_start(tmp_path):
    log = build(tmp_path, retention_max_messages=4)
    sealed = log._view.sealed[0]
    held = open_segments.get(sealed)
    before = log._view
    log.retain(0, 10)
    assert not sealed.path.exists()
    assert numbers(messages(held.read_frames(0, 2, PREFIX)[0])) == [0, 1], "who holds it can still read it"
    # A read that looked up its segment before it was removed finds the file gone, and begins again.
    assert log._open_holder(before, 0, nowait=False) is None
    assert numbers(read_all(log)) == [6, 7, 8, 9]
    log.close()


def test_descriptors_are_bounded(tmp_path):
    capacity = open_segments.capacity
    build(tmp_path, count=30).close()
    log = open_log(tmp_path)
    try:
        open_segments.capacity = 3
        before = len(os.listdir("/dev/fd"))
        assert numbers(read_all(log)) == list(range(60))
        assert numbers(read_all_reverse(log, 59)) == list(range(59, -1, -1))
        assert len(open_segments) <= 3
        assert len(os.listdir("/dev/fd")) <= before + 3
    finally:
        open_segments.capacity = capacity
        log.close()


def test_append_read_sync_and_retain_at_the_same_time(tmp_path):
    """One thread appends, others read both ways, search, sync, retain; all they see is whole and in order."""
    log = open_log(tmp_path, segment_max_bytes=5000, retention_max_messages=300)
    done = threading.Event()
    errors = []

    def guarded(work):
        def run():
            try:
                while not done.is_set():
                    work()
            except Exception as error:
                errors.append(error)
                done.set()

        return threading.Thread(target=run)

    def read():
        found = numbers(read_all(log))
        start = log.start_offset
        for before, after in pairwise(found):  # retention may have overtaken the reader
            assert after == before + 1 or before < after <= start

    def read_back():
        found = numbers(read_all_reverse(log, log.next_offset - 1))
        assert found == list(range(found[0], found[0] - len(found), -1)) if found else True

    def search():
        offset = log.offset_at_or_after(1000 * (log.next_offset - 1))
        assert offset >= 0

    def sync():
        before = log.next_offset
        assert log.sync() >= before
        assert log.synced_offset >= before

    def retain():
        log.retain(0, log.synced_offset)

    threads = [guarded(work) for work in (read, read_back, search, sync, retain)]
    for thread in threads:
        thread.start()
    for n in range(0, 6000, 5):
        if done.is_set():
            break
        assert log.append(numbered(n, 5)) == n
    done.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    log.sync()
    log.retain(0, 6000)
    assert log.next_offset - log.start_offset <= 300
    log.close()
    assert open_log(tmp_path).next_offset == 6000


def test_errors_share_a_base(tmp_path):
    log = build(tmp_path)
    log.close()
    with pytest.raises(LogError):
        log.append(numbered(10, 2))
