"""Leader epochs: where they begin and end, in the log itself; and cutting a log off where they diverge."""

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_helpers import SEGMENT_HEADER, indexes, numbered, numbers, open_log, read_all, segments

from liftbridge.log.epochs import end_of_epoch, epochs_of


def build(directory, **options):
    """Epoch 2 has the offsets 0 to 4, 5 has none, 6 has 5 to 9, 9 has what follows."""
    log = open_log(directory, **options)
    log.begin_epoch(2, 0)
    log.append(numbered(0, 5), 2)
    log.begin_epoch(5, 5000)
    log.begin_epoch(6, 5000)
    log.append(numbered(5, 3), 6)
    log.append(numbered(8, 2), 6)
    log.begin_epoch(9, 0)
    return log


def test_epochs_take_no_offset_and_are_not_seen(tmp_path):
    log = build(tmp_path)
    assert log.epochs == ((2, 0), (5, 5), (6, 5), (9, 10))
    assert (log.next_offset, log.last_epoch) == (10, 9)
    assert numbers(read_all(log)) == list(range(10))
    assert log.offset_at_or_after(5000) == 5
    with pytest.raises(ValueError, match="cannot begin"):
        log.begin_epoch(9, 0)
    with pytest.raises(ValueError, match="older"):
        log.append(numbered(10, 1), 8)
    assert log.sync() == 10
    log.close()


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("size", [100, 10_000])
def test_epochs_are_read_out_of_the_log(tmp_path, clean, size):
    log = build(tmp_path, segment_max_bytes=size)
    known = log.epochs
    log.sync()
    if clean:
        log.close()
    else:
        for path in indexes(tmp_path):
            path.unlink()
    log = open_log(tmp_path, segment_max_bytes=size)
    assert (log.epochs, log.last_epoch) == (known, 9)
    log.close()


def test_a_control_batch_that_is_only_written_still_needs_a_sync(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(0, 1))
    log.sync()
    log.begin_epoch(1, 0)
    assert log.unsynced_bytes == 80
    assert log.sync() == 1
    assert log.unsynced_bytes == 0
    log.close()


def test_the_epoch_that_a_log_begins_in(tmp_path):
    log = build(tmp_path, segment_max_bytes=100, retention_max_messages=3)
    assert log.retain(0, 10) > 0
    start = log.start_offset
    assert 5 <= start < 10
    assert log.epochs == ((6, start), (9, 10))
    log.close()
    log = open_log(tmp_path, segment_max_bytes=100)
    assert log.epochs == ((6, start), (9, 10))
    log.close()


def test_end_of_epoch():
    epochs = ((2, 0), (5, 5), (6, 5), (9, 10))
    assert [end_of_epoch(epochs, epoch, 12) for epoch in (2, 3, 5, 6, 8, 9, 99)] == [
        (2, 5),
        (2, 5),
        (5, 5),
        (6, 10),
        (6, 10),
        (9, 12),
        (9, 12),
    ]
    assert end_of_epoch(epochs, 1, 12) == (-1, 0)
    assert end_of_epoch((), 1, 12) == (-1, 12)


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=4), max_size=4),
    st.integers(0, 20),
)
def test_joined_epochs_ascend(pieces, start):
    joined = epochs_of([tuple(piece) for piece in pieces], start)
    assert all(before[0] < after[0] for before, after in pairwise(joined))
    assert all(begin >= start for _, begin in joined)


# -- truncation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 10_000])
@pytest.mark.parametrize(
    ("offset", "end", "epochs"),
    [
        (11, 10, ((2, 0), (5, 5), (6, 5), (9, 10))),
        (10, 10, ((2, 0), (5, 5), (6, 5))),
        (9, 8, ((2, 0), (5, 5), (6, 5))),
        (8, 8, ((2, 0), (5, 5), (6, 5))),
        (6, 5, ((2, 0),)),
        (5, 5, ((2, 0),)),
        (3, 0, ()),
        (0, 0, ()),
        (-5, 0, ()),
    ],
)
def test_truncation_goes_back_to_whole_batches(tmp_path, size, offset, end, epochs):
    log = build(tmp_path, segment_max_bytes=size)
    log.sync()
    assert log.truncate(offset) == end
    for _ in range(2):
        assert (log.start_offset, log.next_offset, log.synced_offset) == (0, end, end)
        assert log.epochs == epochs
        assert numbers(read_all(log)) == list(range(end))
        log.begin_epoch(log.last_epoch + 11, 0)
        epochs = (*epochs, (log.last_epoch, end))
        log.close()
        log = open_log(tmp_path, segment_max_bytes=size)
    assert log.append(numbered(end, 4), log.last_epoch) == end
    assert numbers(read_all(log)) == list(range(end + 4))
    assert not log.damage
    log.close()


def test_what_was_cut_off_does_not_come_back(tmp_path):
    """Also not when the process dies right after it: the files say so themselves."""
    log = build(tmp_path, segment_max_bytes=100)
    log.close()
    log = open_log(tmp_path, segment_max_bytes=100)
    log.truncate(5)
    recovered = open_log(tmp_path, segment_max_bytes=100)
    assert (recovered.next_offset, recovered.epochs) == (5, ((2, 0),))
    assert not recovered.damage
    recovered.close()


def test_readers_of_a_log_that_is_cut_off(tmp_path):
    log = build(tmp_path)
    log.truncate(5)
    assert log.read_frames(7, 10, b"") == (b"", 7)
    assert log.read_frames_reverse(9, 0, b"")[1] == -1
    log.close()


# -- where recovery begins ---------------------------------------------------------------------------------


def test_recovery_goes_on_from_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("liftbridge.log.log.CHECKPOINT_BYTES", 1000)
    log = open_log(tmp_path)
    for n in range(0, 300, 3):
        log.append(numbered(n, 3))
        log.sync()
    end = log._view.active.end
    log.append(numbered(300, 3))
    log = open_log(tmp_path)
    assert 0 < log.scanned_bytes < 1500
    assert numbers(read_all(log)) == list(range(303))
    assert log._view.active.end > end
    # A checkpoint that cannot be believed costs a scan, and nothing else.
    path = indexes(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    log = open_log(tmp_path)
    assert log.scanned_bytes == os.stat(segments(tmp_path)[0]).st_size - SEGMENT_HEADER
    assert numbers(read_all(log)) == list(range(303))
    log.close()


def test_room_ahead_of_the_data(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=3000, preallocate_bytes=1000)
    sizes = set()
    for n in range(0, 90, 3):
        log.append(numbered(n, 3))
        room = segments(tmp_path)[-1].stat().st_size - log._view.active.end
        assert 0 <= room <= 1000
        sizes.add(room)
    assert max(sizes) > 0
    log.sync()
    for path in segments(tmp_path)[:-1]:
        assert path.stat().st_size < 3000 + SEGMENT_HEADER, "a sealed segment has none"
    recovered = open_log(tmp_path, segment_max_bytes=3000)
    assert (recovered.next_offset, recovered.truncated_bytes, recovered.damage) == (90, 0, ())
    recovered.close()
    log = open_log(tmp_path, segment_max_bytes=3000, preallocate_bytes=1000)
    log.append(numbered(90, 3))
    log.close()
    assert segments(tmp_path)[-1].stat().st_size == log._view.active.end
