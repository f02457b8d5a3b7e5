"""Batches and records: what goes in is what a subscriber's protobuf library gets out."""

import os
import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from log_helpers import (
    BATCH_HEADER,
    PREFIX,
    SEGMENT_HEADER,
    Record,
    batch,
    expected,
    messages,
    numbered,
    numbers,
    open_log,
    read_all,
    read_all_reverse,
    segments,
)

from liftbridge._log import MAX_BATCH_BYTES, BatchBuilder, Segment, crc32c

texts = st.text(max_size=40).map(str.encode)
records = st.builds(
    Record,
    value=st.none() | st.binary(max_size=300),
    timestamp=st.integers(0, 2**63 - 1),
    subject=texts,
    reply=texts,
    key=st.none() | st.binary(max_size=40),
    headers=st.dictionaries(st.text(max_size=10), st.binary(max_size=30), max_size=4),
)
batches = st.lists(records, min_size=1, max_size=12).map(lambda rs: sorted(rs, key=lambda r: r.timestamp))


def new_segment(path, base_offset=0):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.pwrite(fd, bytes(SEGMENT_HEADER), 0)
    return Segment(fd, path, base_offset)


@given(batches, st.integers(0, 2**40), st.integers(1, 5000))
def test_a_subscriber_gets_what_was_published(tmp_path_factory, published, base, max_bytes):
    segment = new_segment(tmp_path_factory.getbasetemp() / "roundtrip.log", base)
    segment.append(batch(published), base, 7)
    wanted = [expected(base + n, record) for n, record in enumerate(published)]
    found, offset = [], base
    while offset < segment.next_offset:
        frames, offset = segment.read_frames(offset, segment.next_offset, PREFIX, max_bytes)
        found += messages(frames)
    assert found == wanted
    found, offset = [], segment.next_offset
    while offset >= base:
        frames, offset = segment.read_frames_reverse(offset, base, PREFIX, max_bytes)
        found += messages(frames)
    assert found == wanted[::-1]


def test_publisher_headers_named_subject_and_reply_are_overridden(tmp_path):
    segment = new_segment(tmp_path / "s.log")
    segment.append(
        batch([Record(b"v", 1, reply=b"r", headers={"subject": b"x", "reply": b"y", "z": b"1"})]), 0
    )
    (message,) = messages(segment.read_frames(0, 1, PREFIX)[0])
    assert dict(message.headers) == {"subject": b"orders", "reply": b"r", "z": b"1"}


def test_layout_on_disk(tmp_path):
    segment = new_segment(tmp_path / "s.log", 5)
    builder = batch([Record(None, 10, key=b"k"), Record(b"", 20, subject=b"")])
    segment.append(builder, 5, 9)
    data = (tmp_path / "s.log").read_bytes()[SEGMENT_HEADER:]
    magic, length, crc, attributes, version = struct.unpack_from("<IIIHH", data)
    assert magic != 0
    assert length == len(data) == builder.size
    assert crc == crc32c(data[12:])
    assert (attributes, version) == (32, 1), "a key without a value is a tombstone"
    assert struct.unpack_from("<qIIQqqqihHII", data, 16) == (
        5,
        1,
        2,
        9,
        10,
        20,
        -1,
        -1,
        -1,
        5,  # nothing was known to be on disk
        0,
        length - 80,
    )
    size, delta, flags, subject_len, reply_len, _, key_hash, key_len = struct.unpack_from(
        "<IIHHHHQI", data, BATCH_HEADER
    )
    assert (delta, flags, subject_len, reply_len) == (0, 1, 6, 0)
    assert (key_hash, key_len) == (xxhash.xxh64_intdigest(b"k"), 1)
    size2, delta, flags, *_ = struct.unpack_from("<IIHHHH", data, BATCH_HEADER + size)
    assert (delta, flags) == (1, 2)  # an empty value is a value, none is a tombstone
    assert BATCH_HEADER + size + size2 == length


def test_batches_are_chained(tmp_path):
    segment = new_segment(tmp_path / "s.log")
    segment.append(numbered(0, 1), 0)
    before, position = segment.last_crc, segment.end
    segment.append(numbered(1, 1), 1)
    data = (tmp_path / "s.log").read_bytes()
    assert struct.unpack_from("<I", data, position + 72) == (before,)


def test_a_builder_refuses_what_cannot_be_stored():
    builder = BatchBuilder()
    builder.add_record(value=b"v", timestamp=5)
    size = builder.size
    with pytest.raises(ValueError, match="65535"):
        builder.add_record(value=b"v", timestamp=5, subject=b"s" * 65536)
    with pytest.raises(ValueError, match="65535"):
        builder.add_record(value=b"v", timestamp=5, reply=b"s" * 65536)
    with pytest.raises(ValueError, match="older"):
        builder.add_record(value=b"v", timestamp=4)
    with pytest.raises(ValueError, match="MAX_BATCH_BYTES"):
        builder.add_record(value=bytes(MAX_BATCH_BYTES), timestamp=5)
    assert (builder.count, builder.size, builder.max_timestamp) == (1, size, 5)


def test_a_builder_is_reused_and_a_large_batch_does_not_spoil_the_next(tmp_path):
    segment = new_segment(tmp_path / "s.log")
    builder = batch([Record(bytes(3 << 20), 1)])
    segment.append(builder, 0)
    for offset in (1, 2, 3):
        builder.reset()
        assert (builder.count, builder.size) == (0, BATCH_HEADER)
        builder.add_record(value=b"%d" % offset, timestamp=offset)
        segment.append(builder, offset)
    frames, following = segment.read_frames(1, 4, PREFIX)
    assert [m.value for m in messages(frames)] == [b"1", b"2", b"3"]
    assert following == 4


def test_a_segment_refuses_a_batch_that_does_not_follow(tmp_path):
    segment = new_segment(tmp_path / "s.log")
    with pytest.raises(ValueError, match="without records"):
        segment.append(BatchBuilder(), 0)
    segment.append(numbered(5, 1), 0, 4)
    with pytest.raises(ValueError, match="1 is next"):
        segment.append(numbered(6, 1), 2, 4)
    with pytest.raises(ValueError, match="leader epoch 3"):
        segment.append(numbered(6, 1), 1, 3)
    with pytest.raises(ValueError, match="older"):
        segment.append(numbered(4, 1), 1, 4)
    assert segment.next_offset == 1
    assert (tmp_path / "s.log").stat().st_size == segment.end


def test_a_read_takes_whole_batches_and_at_least_a_record(tmp_path):
    log = open_log(tmp_path)
    for first in range(0, 100, 10):
        log.append(numbered(first, 10))
    frames, following = log.read_frames(0, 100, PREFIX, 1)
    assert len(list(messages(frames))) >= 1
    assert following == len(list(messages(frames)))
    one_batch = sum(len(f.SerializeToString()) + 5 for f in read_all(log, 10, 20))
    frames, following = log.read_frames(10, 100, PREFIX, one_batch // 2)
    assert following == 20, "a batch is not read twice"
    frames, following = log.read_frames(10, 13, PREFIX)
    assert numbers(messages(frames)) == [10, 11, 12]
    assert following == 13
    assert log.read_frames(13, 13, PREFIX) == (b"", 13)
    assert log.read_frames(500, 600, PREFIX) == (b"", 500)
    for max_bytes in (1, 100, 1000, 100_000):
        assert numbers(read_all(log, 3, 77, max_bytes)) == list(range(3, 77))
        assert numbers(read_all_reverse(log, 76, 3, max_bytes)) == list(range(76, 2, -1))
    log.close()


def test_batches_longer_than_a_read_window(tmp_path):
    log = open_log(tmp_path)
    sizes = [300_000, 10, 1_500_000, 70, 700_000]
    for n, size in enumerate(sizes):
        log.append(numbered(n, 1, size))
    for max_bytes in (10, 262144):
        assert numbers(read_all(log, max_bytes=max_bytes)) == list(range(5))
        assert numbers(read_all_reverse(log, 4, max_bytes=max_bytes)) == [4, 3, 2, 1, 0]
    log.close()


def test_reads_from_every_offset_in_both_directions(tmp_path):
    """Across batches, stretches of the sparse index, and segments, wherever a read begins or goes on."""
    log = open_log(tmp_path, segment_max_bytes=20_000)
    for size in range(30):
        log.append(numbered(log.next_offset, 1 + size % 3, 1000))
    end = log.next_offset
    assert len(log._view.sealed) > 2
    assert len(log._view.sealed[0].open().index_bytes()) > 2 * 16, "each segment has several stretches"
    for offset in range(end):
        for max_bytes in (1, 3000, 262144):
            assert numbers(read_all(log, offset, max_bytes=max_bytes)) == list(range(offset, end))
            back = read_all_reverse(log, offset, max_bytes=max_bytes)
            assert numbers(back) == list(range(offset, -1, -1))
    log.close()


@pytest.mark.parametrize("segment_max_bytes", [1, 3000, 1 << 20])
def test_time_search_is_exact(tmp_path, segment_max_bytes):
    """Many records share a timestamp, across batches, index entries and segments."""
    log = open_log(tmp_path, segment_max_bytes=segment_max_bytes)
    times = [1000 + n // 7 * 10 for n in range(400)]
    for first in range(0, 400, 5):
        log.append(batch(Record(bytes(100), time) for time in times[first : first + 5]))
    for wanted in range(990, max(times) + 15, 5):
        after = next((n for n, time in enumerate(times) if time >= wanted), 400)
        before = max((n for n, time in enumerate(times) if time <= wanted), default=-1)
        assert log.offset_at_or_after(wanted) == after
        assert log.offset_at_or_before(wanted) == before
    assert log.offset_at_or_before(2**63 - 1) == 399
    log.close()


def test_reads_without_waiting_give_the_same_or_say_that_they_would_wait(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=50_000)
    for first in range(0, 5000, 100):
        log.append(numbered(first, 100))
    log.sync()
    for path in segments(tmp_path):
        fd = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    offset, found = 0, []
    while offset < 5000:
        try:
            frames, offset = log.read_frames(offset, 5000, PREFIX, nowait=True)
        except BlockingIOError:
            frames, offset = log.read_frames(offset, 5000, PREFIX)
        found += messages(frames)
    assert numbers(found) == list(range(5000))
    log.close()


def test_a_released_builder_begins_anew():
    builder = numbered(0, 3)
    builder.release()
    assert builder.count == 3, "what holds records keeps them"
    builder.reset()
    size = builder.size
    builder.release()
    assert (builder.count, builder.size) == (0, size)
    builder.add_record(value=b"x" * 3000, timestamp=1)
    assert builder.size > size + 3000
