"""Opening after any end of the process before: what was synced is there, and nothing starts dirty."""

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
from log_helpers import (
    BATCH_HEADER,
    SEGMENT_HEADER,
    Record,
    batch,
    check_past_damage,
    indexes,
    numbered,
    numbers,
    open_log,
    read_all,
    segments,
)

from liftbridge.log import delete_log

WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from log_helpers import numbered, open_log
log = open_log(Path(sys.argv[1]), segment_max_bytes=20_000)
while True:
    for _ in range(3):
        log.append(numbered(log.next_offset, 7))
    print(log.sync(), flush=True)
"""


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_kill_at_any_moment(tmp_path):
    """A process that appends and syncs is killed; everything it called synced is readable, and it goes on."""
    directory = tmp_path / "log"
    chance = random.Random(1)
    synced = 0
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory), os.path.dirname(__file__)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(chance.randint(1, 30)):
            synced = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        synced = int(rest[-1]) if rest else synced
        writer.wait()
        writer.stdout.close()
        log = open_log(directory, segment_max_bytes=20_000)
        assert log.next_offset >= synced > 0
        assert numbers(read_all(log)) == list(range(log.next_offset))
        assert log.next_offset % 7 == 0, "batches are whole"
        log.close()


def test_a_kill_while_writing_at_every_length(tmp_path):
    """Whatever part of the last batch was written, recovery ends before it, and appending goes on."""
    log = open_log(tmp_path / "log")
    log.append(numbered(0, 2))
    before = log._view.active.end
    log.append(numbered(2, 2))
    whole = segments(tmp_path / "log")[0].read_bytes()
    for length in range(before, len(whole)):
        directory = tmp_path / "copy"
        shutil.copytree(tmp_path / "log", directory)
        os.truncate(segments(directory)[0], length)
        recovered = open_log(directory)
        assert (recovered.next_offset, recovered.truncated_bytes) == (2, length - before)
        assert recovered.append(numbered(2, 3)) == 2
        assert numbers(read_all(recovered)) == [0, 1, 2, 3, 4]
        shutil.rmtree(directory)
    log.close()


def test_a_torn_write_of_a_value_that_is_itself_a_batch(tmp_path):
    """A publisher who sends a whole batch as a value cannot make a torn write look like damage."""
    other = open_log(tmp_path / "other")
    other.append(numbered(0, 1))
    other.append(numbered(1, 1))
    position = other._view.active.last_position
    other.close()
    forged = segments(tmp_path / "other")[0].read_bytes()[position:]
    log = open_log(tmp_path / "log")
    log.append(numbered(0, 1))
    before = log._view.active.end
    log.append(batch([Record(forged + bytes(100), 1000)]))
    for path in segments(tmp_path / "log"):
        os.truncate(path, path.stat().st_size - 50)
    recovered = open_log(tmp_path / "log")
    assert recovered.next_offset == 1
    assert recovered._view.active.end == before
    for each in (log, recovered):
        each.close()


@pytest.mark.parametrize("left", [0, 1, 100, SEGMENT_HEADER - 1])
@pytest.mark.parametrize("batches", [0, 3])
def test_a_kill_while_rolling(tmp_path, left, batches):
    """The next segment exists without its header, as the last file or as the only one."""
    log = open_log(tmp_path)
    for n in range(batches):
        log.append(numbered(n, 1))
    log.sync()
    fresh = tmp_path / f"{batches:020d}.log"
    fresh.write_bytes(segments(tmp_path)[0].read_bytes()[:left])
    for _ in range(2):  # a kill right after opening changes nothing
        recovered = open_log(tmp_path)
        assert recovered.next_offset == recovered.synced_offset == batches
        assert len(segments(tmp_path)) == 1
    assert recovered.append(numbered(batches, 1)) == batches
    assert numbers(read_all(recovered)) == list(range(batches + 1))
    recovered.close()


def test_offsets_go_on_where_only_an_empty_segment_is_left(tmp_path):
    """Retention has removed all before; the file's name remembers the offset even without a header."""
    (tmp_path / f"{777:020d}.log").write_bytes(b"")
    for _ in range(2):
        log = open_log(tmp_path)
        assert (log.start_offset, log.next_offset) == (777, 777)
    log.close()


def test_recovery_is_idempotent(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=300)
    for n in range(6):
        log.append(numbered(n, 1, size=150))
    with segments(tmp_path)[-1].open("ab") as file:
        file.write(b"torn" * 50)
    (tmp_path / "00000000000000000000.index.tmp").write_bytes(b"half")
    (tmp_path / "00000000000000009999.index").write_bytes(b"of a segment that is gone")
    first = open_log(tmp_path, segment_max_bytes=300)
    assert first.truncated_bytes == 200
    after = content(tmp_path)
    assert all(name.endswith((".log", ".index")) and "9999" not in name for name in after)
    second = open_log(tmp_path, segment_max_bytes=300)
    assert second.truncated_bytes == 0
    assert content(tmp_path) == after
    assert numbers(read_all(second)) == list(range(6))
    second.close()


def test_index_files_change_only_how_much_is_scanned(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=2000)
    for n in range(0, 60, 3):
        log.append(numbered(n, 3, size=200))
    log.close()
    with_indexes = content(tmp_path)
    log = open_log(tmp_path, segment_max_bytes=2000)
    assert log.scanned_bytes == 0
    log.close()
    for path in indexes(tmp_path):
        path.unlink()
    log = open_log(tmp_path, segment_max_bytes=2000)
    assert log.scanned_bytes == log.size_bytes
    assert numbers(read_all(log)) == list(range(60))
    log.close()
    assert content(tmp_path) == with_indexes


def test_damage_in_a_sealed_segment_after_a_kill(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=300)
    for n in range(4):
        log.append(numbered(n, 1, size=150))
    first = segments(tmp_path)[0]
    os.truncate(first, SEGMENT_HEADER + BATCH_HEADER + 3)
    log = open_log(tmp_path)
    assert [(each.path, each.position) for each in log.damage] == [(first, SEGMENT_HEADER)]
    assert check_past_damage(log, 4) == {0}
    assert first.stat().st_size == SEGMENT_HEADER + BATCH_HEADER + 3


def test_a_new_log_has_its_directories_and_starts_at_zero(tmp_path):
    log = open_log(tmp_path / "a" / "b" / "3")
    assert (log.start_offset, log.next_offset, log.synced_offset, log.last_timestamp) == (0, 0, 0, 0)
    assert (log.size_bytes, log.unsynced_bytes, log.needs_sync) == (0, 0, False)
    assert log.offset_at_or_after(0) == 0
    assert log.offset_at_or_before(2**63 - 1) == -1
    assert log.read_frames(0, 10, b"") == (b"", 0)
    assert log.read_frames_reverse(0, 0, b"")[0] == b""
    log.close()


def test_order_in_time_and_epoch_survives_a_restart(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(5, 1), epoch=9)
    log.close()
    log = open_log(tmp_path)
    assert (log.last_timestamp, log.last_epoch) == (5000, 9)
    with pytest.raises(ValueError, match="older"):
        log.append(numbered(4, 1), epoch=9)
    with pytest.raises(ValueError, match="epoch"):
        log.append(numbered(6, 1), epoch=8)
    log.close()


def test_delete_log(tmp_path):
    open_log(tmp_path / "stream" / "0").close()
    delete_log(tmp_path / "stream")
    assert list(tmp_path.iterdir()) == []
    delete_log(tmp_path / "stream")
