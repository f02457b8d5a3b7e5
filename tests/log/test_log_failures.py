"""Full disks and failing syncs: an error for the caller, and no second try where none is safe."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest
from log_helpers import SEGMENT_HEADER, STREAM, indexes, numbered, numbers, open_log, read_all, segments

from liftbridge.log import Log, LogClosedError, LogFailedError, LogOptions


@contextmanager
def file_size_limit(limit):
    """No file of this process can grow beyond `limit`: writes stop short there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def descriptor_replaced(fd, path, flags):
    """The descriptor belongs to another file for a while, so that real system calls on it really fail."""
    saved, other = os.dup(fd), os.open(path, flags)
    os.dup2(other, fd)
    os.close(other)
    try:
        yield
    finally:
        os.dup2(saved, fd)
        os.close(saved)


@pytest.mark.parametrize("written", [0, 1, 79, 80, 200])
def test_a_short_write_is_cut_off_and_the_log_goes_on(tmp_path, written):
    log = open_log(tmp_path)
    log.append(numbered(0, 2))
    end = log._view.active.end
    with file_size_limit(end + written), pytest.raises(OSError) as caught:
        log.append(numbered(2, 50))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(segments(tmp_path)[0])
    assert segments(tmp_path)[0].stat().st_size == end
    assert (log.next_offset, log.failed) == (2, None)
    assert log.append(numbered(2, 3)) == 2
    assert numbers(read_all(log)) == [0, 1, 2, 3, 4]
    assert log.sync() == 5
    recovered = open_log(tmp_path)
    assert (recovered.next_offset, recovered.truncated_bytes) == (5, 0)
    log.close()


def test_no_room_for_the_next_segment(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=200)
    log.append(numbered(0, 3))
    with file_size_limit(SEGMENT_HEADER - 1), pytest.raises(OSError):
        log.append(numbered(3, 3))
    assert len(segments(tmp_path)) == 1, "a segment that could not be begun leaves no file"
    assert log.failed is None
    assert log.append(numbered(3, 3)) == 3
    assert len(segments(tmp_path)) == 2
    log.close()


def test_no_room_for_an_index_costs_nothing_but_the_index(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=200)
    log.append(numbered(0, 3))
    log.append(numbered(3, 3))
    with file_size_limit(100):
        assert log.sync() == 6
    assert list(tmp_path.glob("*.index*")) == []
    with file_size_limit(100):
        log.close()
    with file_size_limit(100):
        log = open_log(tmp_path)
    assert numbers(read_all(log)) == list(range(6))
    log.close()
    assert len(indexes(tmp_path)) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_write_that_cannot_be_cut_off_fails_the_log(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(0, 2))
    with descriptor_replaced(log._view.active.fileno(), "/dev/full", os.O_RDWR):
        with pytest.raises(LogFailedError) as caught:
            log.append(numbered(2, 2))
    assert str(tmp_path) in str(caught.value)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert log.failed is caught.value.__cause__
    with pytest.raises(LogFailedError):
        log.append(numbered(2, 2))
    with pytest.raises(LogFailedError):
        log.sync()
    assert numbers(read_all(log)) == [0, 1], "what is there can still be read"
    log.close()
    recovered = open_log(tmp_path)
    assert recovered.next_offset == 2
    recovered.close()


def test_a_failed_sync_is_final(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(0, 2))
    log.sync()
    log.append(numbered(2, 2))
    with descriptor_replaced(log._view.active.fileno(), "/dev/null", os.O_RDWR):
        with pytest.raises(LogFailedError, match="restart"):
            log.sync()
    # The descriptor is good again; a second try would report success for bytes the kernel may have dropped.
    with pytest.raises(LogFailedError):
        log.sync()
    with pytest.raises(LogFailedError):
        log.append(numbered(4, 2))
    with pytest.raises(LogFailedError):
        log.retain(10**18, 4)
    assert log.synced_offset == 2
    log.close()
    assert indexes(tmp_path) == [], "a failed log leaves no word that all was well"


class AppendsDuringSync(Log):
    """Appends at the moment between the decision what to sync and the system calls."""

    def _sync_files(self, seals, active):
        self.append(numbered(self.next_offset, 1))
        super()._sync_files(seals, active)


def test_a_sync_vouches_only_for_what_was_there_when_it_began(tmp_path):
    log = AppendsDuringSync.open(tmp_path, stream_id=STREAM, partition=3, options=LogOptions())
    log.append(numbered(0, 2))
    assert log.unsynced_bytes == log.size_bytes
    before = log.size_bytes
    assert log.sync() == 2
    assert (log.synced_offset, log.next_offset) == (2, 3)
    assert log.unsynced_bytes == log.size_bytes - before
    assert log.sync() == 3
    log.close()


def test_a_closed_log(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(0, 2))
    fd = log._view.active.fileno()
    log.close()
    with pytest.raises(OSError):
        os.fstat(fd)
    assert (log.start_offset, log.next_offset, log.synced_offset) == (0, 2, 2)
    assert log.sync() == 2
    log.close()
    with pytest.raises(LogClosedError):
        log.append(numbered(2, 2))
    with pytest.raises(LogClosedError):
        log.read_frames(0, 2, b"")
    with pytest.raises(LogClosedError):
        log.retain(0, 0)
