"""Descriptors of active segments: bounded, given back by logs that are idle, taken again unnoticed."""

import gc
import os
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
from disk.torture import ROUNDS
from log_helpers import MEMORY, PREFIX, STREAM, messages, numbered, open_log, read_all, segments

from liftbridge.log import Keyring, Log, LogFailedError, LogOptions
from liftbridge.log.awake import LOOKED_AT, awake_logs
from liftbridge.log.keys import MasterKey

LOGS = 50
# As many partitions as one server is to carry, and about 3 KiB of memory each; few of them in the short form.
MANY = 100_000 if ROUNDS > 1 else 3_000


@pytest.fixture
def few(monkeypatch):
    """Not more than five logs are awake."""
    # Logs that stay open as long as the process does, as those of the fuzz targets do, are none of theirs.
    monkeypatch.setattr(awake_logs, "_queue", OrderedDict())
    monkeypatch.setattr(awake_logs, "capacity", 5)
    return 5


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def asleep(log: Log) -> bool:
    return log._view.active.fileno() < 0


def values(log: Log) -> list[bytes]:
    return [message.value for message in read_all(log)]


def test_descriptors_of_idle_logs_are_bounded(tmp_path, few):
    before = descriptors()
    logs = [open_log(tmp_path / str(number)) for number in range(LOGS)]
    assert len(awake_logs) == few
    assert descriptors() == before + few
    for turn in range(3):
        for log in logs:
            assert log.append(numbered(turn, 1)) == turn
            log.sync()
    for log in logs:
        assert values(log) == [b"%d:" % n + b"x" * 20 for n in range(3)]
    assert descriptors() <= before + few
    for log in logs:
        log.close()
    assert not len(awake_logs)
    assert descriptors() == before
    reopened = open_log(tmp_path / "0")
    assert reopened.scanned_bytes == 0, "the index that a close leaves knows everything"
    assert len(values(reopened)) == 3
    reopened.close()


def test_a_log_that_waits_for_a_sync_stays_awake_until_it_is_settled(tmp_path, few):
    logs = [open_log(tmp_path / str(number)) for number in range(few + 2)]
    for log in logs:
        log.append(numbered(0, 1))
        assert not log.rest()
    assert len(awake_logs) == few + 2, "all have been appended to, and none was synced"
    awake_logs.settle()
    assert len(awake_logs) <= few
    resting = [log for log in logs if asleep(log)]
    assert len(resting) >= 2
    for log in resting:
        assert log.synced_offset == 1
    for log in logs:
        assert len(values(log)) == 1
        log.close()


def test_half_as_many_again_are_never_exceeded_by_logs_that_wake(tmp_path, few):
    logs = [open_log(tmp_path / str(number)) for number in range(20)]
    for log in logs[:few]:
        log.append(numbered(0, 1))
    for log in logs[few:]:
        log.append(numbered(0, 1))
        assert len(awake_logs) <= few + few // 2
    for log in logs:
        assert len(values(log)) == 1
        log.close()


def test_the_logs_that_were_used_stay_awake(tmp_path, few):
    busy = [open_log(tmp_path / f"busy-{number}") for number in range(few - 1)]
    idle = []
    for number in range(LOOKED_AT * 4):
        for log in busy:
            log.append(numbered(number, 1))
            log.sync()
        idle.append(open_log(tmp_path / str(number)))
        assert not any(map(asleep, busy))
        assert sum(map(asleep, idle)) == number, "all but the newest"
    for log in busy + idle:
        log.close()


def test_a_log_that_is_dropped_leaves_the_queue(tmp_path, few):
    log = open_log(tmp_path)
    assert len(awake_logs) == 1
    del log
    gc.collect()
    assert not len(awake_logs)


def test_a_read_that_must_not_wait_does_not_wake(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(0, 3))
    log.sync()
    assert log.rest()
    assert log.rest(), "it is at rest already"
    for read in (log.read_frames, log.read_frames_reverse):
        with pytest.raises(BlockingIOError):
            read(2, 3, PREFIX, nowait=True) if read == log.read_frames else read(2, 0, PREFIX, nowait=True)
    assert asleep(log)
    assert [message.offset for message in messages(log.read_frames(1, 3, PREFIX)[0])] == [1, 2]
    assert not asleep(log)
    assert log.read_frames(1, 3, PREFIX, nowait=True)[0]
    log.close()


def test_everything_works_on_a_log_at_rest(tmp_path):
    log = open_log(tmp_path, segment_max_age_ns=5_000)

    def rested() -> Log:
        log.sync()
        assert log.rest()
        assert asleep(log)
        return log

    assert rested().append(numbered(0, 3)) == 0
    rested().begin_epoch(7, 2_000)
    assert rested().append(numbered(3, 2), epoch=7) == 3
    assert rested().epochs == ((0, 0), (7, 3)) or rested().epochs == ((7, 3),)
    assert rested().offset_at_or_after(2_000) == 2
    assert rested().truncate(3) == 3
    assert len(values(rested())) == 3
    assert rested().append(numbered(3, 2), epoch=8) == 3
    rested().retain(100_000, 5)
    assert len(segments(tmp_path)) == 3, "what is old is sealed, also when it is at rest"
    assert rested().append(numbered(5, 1), epoch=8) == 5
    assert rested().sync() == 6
    rested().close()
    log.close()
    again = open_log(tmp_path, segment_max_age_ns=5_000)
    assert len(values(again)) == 6
    assert again.last_epoch == 8
    again.close()


def test_an_encrypted_log_rests_and_wakes(tmp_path):
    options = LogOptions(encryption=True, compression="zstd")
    keyring = Keyring(MasterKey.of(b"0123456789abcdef0123456789abcdef", "test"))
    log = Log.open(tmp_path, stream_id=STREAM, partition=3, options=options, keyring=keyring)
    for n in range(5):
        log.append(numbered(n, 1))
        log.sync()
        assert log.rest()
    assert len(values(log)) == 5
    log.close()


def test_room_asked_for_ahead_is_given_back(tmp_path):
    log = open_log(tmp_path, preallocate_bytes=1 << 20)
    for n in range(4):
        log.append(numbered(n, 1, size=5_000))
        log.sync()
        path = segments(tmp_path)[0]
        assert path.stat().st_size > log._view.active.end
        assert log.rest()
        assert path.stat().st_size == log._view.active.end
    assert len(values(log)) == 4
    log.close()


def test_a_file_that_has_become_shorter_takes_nothing(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(0, 3))
    log.sync()
    assert log.rest()
    path = segments(tmp_path)[0]
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 1)
    with pytest.raises(OSError, match="somebody else has written to it; restart the server"):
        log.append(numbered(3, 1))
    with pytest.raises(OSError, match="somebody else"):
        log.read_frames(0, 3, PREFIX)
    assert log.next_offset == 3
    path.write_bytes(whole)
    assert log.append(numbered(3, 1)) == 3
    path.unlink()
    log.sync()
    assert log.rest()
    with pytest.raises(FileNotFoundError):
        log.append(numbered(4, 1))


def test_a_failed_log_keeps_its_descriptor(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(0, 1))
    log.sync()
    log.failed = OSError(5, "an fsync failed")
    assert not log.rest()
    with pytest.raises(LogFailedError):
        log.append(numbered(1, 1))
    assert values(log)
    log.failed = None
    log.close()


def test_many_threads_use_more_logs_than_may_be_awake(tmp_path, few):
    """Appends, syncs and reads of 30 logs by six threads, five of them awake at a time; all is there."""
    logs = [open_log(tmp_path / str(number)) for number in range(30)]
    failures: list[BaseException] = []
    appending = threading.Event()
    appending.set()

    def append(mine: list[Log]) -> None:
        for n in range(40):
            for log in mine:
                assert log.append(numbered(n, 1)) == n
                if n % 3 == 0:
                    log.sync()

    def read() -> None:
        while appending.is_set():
            for log in logs:
                read_all(log, max(0, log.next_offset - 3))

    def settle() -> None:
        while appending.is_set():
            awake_logs.settle()

    def guarded(work, *arguments) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            failures.append(error)
            appending.clear()

    writers = [threading.Thread(target=guarded, args=(append, logs[at::3])) for at in range(3)]
    others = [threading.Thread(target=guarded, args=(work,)) for work in (read, read, settle)]
    for thread in (*writers, *others):
        thread.start()
    for thread in writers:
        thread.join()
    appending.clear()
    for thread in others:
        thread.join()
    assert not failures
    awake_logs.settle()
    assert len(awake_logs) <= few
    for log in logs:
        assert [int(value.partition(b":")[0]) for value in values(log)] == list(range(40))
        log.close()


@pytest.mark.timeout(1800)
def test_very_many_logs(few, monkeypatch):
    """Descriptors and threads do not grow with the number of logs, and idle ones cost no CPU."""
    monkeypatch.setattr(awake_logs, "capacity", 100)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        files, threads = descriptors(), threading.active_count()
        logs = [open_log(Path(name) / str(number)) for number in range(MANY)]
        for log in logs:
            log.append(numbered(0, 1))
            log.sync()
        assert descriptors() < files + 150, "the capacity, and half of it while logs were just used"
        assert threading.active_count() == threads
        spent = time.process_time()
        threading.Event().wait(0.5)
        assert time.process_time() - spent < 0.05
        for log in (logs[0], logs[MANY // 2], logs[-1]):
            assert log.append(numbered(1, 1)) == 1
            assert len(values(log)) == 2
        for log in logs:
            log.close()
    assert descriptors() == files
