"""How a compacted segment takes the place of others: crashes at every step, failing disks, readers."""

import errno
import os
import shutil
import threading
import uuid

import pytest
from compaction_helpers import (
    HOUR,
    UNTHROTTLED,
    Entry,
    compact,
    entries,
    keyed,
    open_compacted,
    stored,
)
from log_helpers import PREFIX, STREAM, messages, read_all, read_all_reverse, segments

import liftbridge.log.log as log_module
from liftbridge.log import (
    ForeignLogError,
    LogClosedError,
    LogDamagedError,
    LogFailedError,
    LogOptions,
    Throttle,
)
from liftbridge.log import files as files_module
from liftbridge.log.compaction_state import STATE_NAME
from liftbridge.log.files import index_path
from liftbridge.log.header import SegmentHeader
from liftbridge.log.recovery import recover
from liftbridge.log.segments import PlainBodies, open_segments
from liftbridge.log.swap import CLEANED_SUFFIX, SWAP_SUFFIX, finish_swaps, swap_steps

OPTIONS = {"segment_max_bytes": 600}


class CrashError(BaseException):
    """The process ends here."""


def build(directory, batches=30, **options):
    log = open_compacted(directory, **{**OPTIONS, **options})
    for n in range(batches):
        keyed(
            log, (b"a", b"%d" % n), (b"b%d" % (n % 5), b"x" * 30), (None, b"") if n % 10 == 0 else (b"c", b"")
        )
    log.sync()
    return log


def names(directory):
    return {path.name for path in directory.iterdir()}


def crashing(monkeypatch, after):
    """Let the process end behind so many of all steps of all swaps of a run."""
    left = [after]

    def steps(segment, end_offset):
        for step in swap_steps(segment, end_offset):
            yield lambda step=step: take(step)

    def take(step):
        if left[0] == 0:
            raise CrashError
        left[0] -= 1
        step()

    monkeypatch.setattr(log_module, "swap_steps", steps)


def check_recovered(directory, before, end):
    """All keys have their last records, nothing was changed, no file is left over."""
    log = open_compacted(directory, **OPTIONS)
    assert log.damage == ()
    found = stored(directory)
    assert found.items() <= before.items()
    latest = {m.key: m.offset for m in read_all(log)}
    assert latest == end
    assert sorted(found) == [m.offset for m in read_all(log)]
    assert {path.suffix for path in directory.iterdir()} <= {".log", ".index", ""}
    return log


def test_a_crash_behind_every_step(tmp_path, monkeypatch):
    origin = tmp_path / "origin"
    log = build(origin)
    before = stored(origin)
    end = {m.key: m.offset for m in read_all(log)}
    log.close()
    steps = 0
    finals = []
    while True:
        directory = tmp_path / f"crash-{steps}"
        shutil.copytree(origin, directory)
        log = open_compacted(directory, **OPTIONS)
        with monkeypatch.context() as patch:
            crashing(patch, steps)
            try:
                compact(log)
                break
            except CrashError:
                pass
        left = names(directory)
        log = check_recovered(directory, before, end)
        # And the run that is made up for ends as if nothing had been.
        compact(log)
        final = stored(directory)
        log.close()
        check_recovered(directory, before, end).close()
        finals.append(final)
        steps += 1
    assert all(final == finals[0] for final in finals)
    assert steps >= 2 * len(swap_steps(segments(origin)[0], 1)), "several swaps were interrupted"
    assert not any(name.endswith(CLEANED_SUFFIX) for name in left)


def test_a_crash_inside_the_removal_of_the_old_files(tmp_path, monkeypatch):
    """Any of the old files may be gone or there, and recovery itself may be interrupted at every step."""
    log = build(tmp_path / "origin", segment_max_bytes=600)
    log.options = LogOptions(compact=True, segment_max_bytes=10**6)  # all become one
    before = stored(log.directory)
    end = {m.key: m.offset for m in read_all(log)}
    with monkeypatch.context() as patch:
        crashing(patch, 2)  # the .swap is durable, nothing was removed
        with pytest.raises(CrashError):
            compact(log)
    olds = [path for path in log.directory.iterdir() if path.suffix in (".log", ".index")]
    olds.remove(segments(log.directory)[-1])
    for number in range(len(olds)):
        directory = tmp_path / f"crash-{number}"
        shutil.copytree(log.directory, directory)
        for path in olds[:number]:
            (directory / path.name).unlink()
        for after in range(4):
            again = tmp_path / f"crash-{number}-{after}"
            shutil.copytree(directory, again)
            synced = []
            with monkeypatch.context() as patch:
                patch.setattr(
                    "liftbridge.log.swap.sync_directory",
                    lambda path, synced=synced, after=after: crash_at(synced, after),
                )
                if after < 2:
                    with pytest.raises(CrashError):
                        finish_swaps(again, STREAM, 3)
                else:
                    finish_swaps(again, STREAM, 3)
            check_recovered(again, before, end)
    assert len(olds) > 5
    log.close()


def crash_at(synced, after):
    if len(synced) == after:
        raise CrashError
    synced.append(1)


def test_a_crash_before_the_index_is_written_leaves_no_old_one(tmp_path, monkeypatch):
    log = build(tmp_path)
    before = stored(tmp_path)
    end = {m.key: m.offset for m in read_all(log)}

    def crash(segment, *_):
        assert segment.path.exists()
        assert not index_path(segment.path).exists()
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr("liftbridge.log.compaction.remember", crash)
        with pytest.raises(CrashError):
            compact(log)
    check_recovered(tmp_path, before, end).close()


def test_a_file_that_is_not_finished_is_deleted(tmp_path):
    log = build(tmp_path)
    log.close()
    before = stored(tmp_path)
    (tmp_path / f"{0:020d}.log{CLEANED_SUFFIX}").write_bytes(b"half of it")
    log = open_compacted(tmp_path, **OPTIONS)
    assert stored(tmp_path) == before
    assert not list(tmp_path.glob(f"*{CLEANED_SUFFIX}"))
    log.close()


@pytest.mark.parametrize("content", [b"", b"x" * 5000, None])
def test_a_swap_that_cannot_be_one_is_refused(tmp_path, content):
    log = build(tmp_path)
    log.close()
    before = names(tmp_path)
    swap = tmp_path / f"{0:020d}.log{SWAP_SUFFIX}"
    swap.write_bytes(segments(tmp_path)[0].read_bytes() if content is None else content)
    with pytest.raises(LogDamagedError):
        recover(tmp_path, log._stream_id, 3, PlainBodies())
    assert names(tmp_path) == {*before, swap.name}, "nothing was removed for it"


def test_a_swap_of_another_log_is_refused(tmp_path):
    log = build(tmp_path)
    log.close()
    before = names(tmp_path)
    swap = tmp_path / f"{0:020d}.log{SWAP_SUFFIX}"
    swap.write_bytes(SegmentHeader(uuid.uuid4(), 3, 0, 0, end_offset=10).encode(b""))
    with pytest.raises(ForeignLogError, match="not to stream"):
        recover(tmp_path, log._stream_id, 3, PlainBodies())
    assert names(tmp_path) == {*before, swap.name}, "nothing was removed for it"


# ---- a disk that fails ----


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    log = build(tmp_path)
    before, there = stored(tmp_path), names(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("liftbridge.log.compaction.sync_data", full)
        with pytest.raises(OSError, match="space"):
            compact(log)
    assert log.failed is None
    assert (stored(tmp_path), names(tmp_path)) == (before, there)
    keyed(log, (b"a", b"still usable"))
    compact(log)
    assert len(stored(tmp_path)) < len(before)
    log.close()


def test_a_swap_that_fails_ends_the_log_and_recovery_completes_it(tmp_path, monkeypatch):
    log = build(tmp_path)
    before = stored(tmp_path)
    end = {m.key: m.offset for m in read_all(log)}
    calls = []

    def failing(directory):
        calls.append(directory)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        files_module.sync_directory(directory)

    with monkeypatch.context() as patch:
        patch.setattr("liftbridge.log.swap.sync_directory", failing)
        with pytest.raises(LogFailedError):
            compact(log)
    with pytest.raises(LogFailedError):
        keyed(log, (b"a", b""))
    check_recovered(tmp_path, before, end).close()


def test_what_does_not_read_back_is_not_used(tmp_path, monkeypatch):
    log = build(tmp_path)
    before, there = stored(tmp_path), names(tmp_path)

    class Lying(log_module.Segment):
        def scan(self, size):
            os.pwrite(self.fd, b"\xff", 4096 + 40)
            return super().scan(size)

    with monkeypatch.context() as patch:
        patch.setattr("liftbridge.log.compaction.Segment", Lying)
        with pytest.raises(OSError, match="does not read back"):
            compact(log)
    assert (stored(tmp_path), names(tmp_path)) == (before, there)
    log.close()


# ---- readers ----


def test_a_reader_keeps_what_it_holds(tmp_path):
    log = build(tmp_path)
    everything = [m.offset for m in read_all(log)]
    view = log._view
    held = [open_segments.get(sealed) for sealed in view.sealed]
    compact(log)
    found = []
    for segment in held:
        frames, _ = segment.read_frames(segment.base_offset, segment.next_offset, PREFIX)
        found += [m.offset for m in messages(frames)]
    assert found == everything[: len(found)], "an old view shows what was there"
    assert len(found) > len(read_all(log))
    log.close()


def test_a_reader_with_an_old_view_begins_again_on_the_new_one(tmp_path):
    log = build(tmp_path)
    view = log._view
    compact(log)
    assert len(log._view.sealed) < len(view.sealed)
    for sealed in view.sealed:
        assert log._open_holder(view, sealed.base_offset, nowait=False) is None
        with pytest.raises(BlockingIOError):
            log._open_holder(view, sealed.base_offset, nowait=True)
    log.close()


def test_a_reader_never_opens_one_file_under_the_name_of_another(tmp_path, monkeypatch):
    """Between the moves of the files and the change of the view, an open waits."""
    log = build(tmp_path)
    view = log._view
    opened = []
    readers = []

    def steps(segment, end_offset):
        yield from swap_steps(segment, end_offset)
        for sealed in view.sealed:
            open_segments.forget(sealed)
        reader = threading.Thread(target=lambda: opened.append(log._open_holder(view, 0, nowait=False)))
        reader.start()
        readers.append(reader)

    monkeypatch.setattr(log_module, "swap_steps", steps)
    compact(log)
    for reader in readers:
        reader.join()
    assert opened == [None] * len(readers)
    assert readers
    log.close()


def test_closing_beside_a_run(tmp_path):
    """Whatever the run is at, once the log is closed it changes no file that matters and ends."""
    log = build(tmp_path / "origin")
    before = stored(log.directory)
    end = {m.key: m.offset for m in read_all(log)}
    log.close()

    class Closing(Throttle):
        left = 0

        def take(self, count):
            if self.left == 0:
                log.close()
            self.left -= 1

    for pieces in range(1000):
        directory = tmp_path / str(pieces)
        shutil.copytree(tmp_path / "origin", directory)
        log = open_compacted(directory, **OPTIONS)
        throttle = Closing()
        throttle.left = pieces
        try:
            log.compact(HOUR, log.next_offset, throttle)
        except LogClosedError:
            check_recovered(directory, before, end).close()
            continue
        log.close()
        break
    assert pieces > 20


def test_closing_waits_until_files_are_in_their_places(tmp_path, monkeypatch):
    log = build(tmp_path)
    closing = threading.Thread(target=log.close)
    closed_meanwhile = []

    def steps(segment, end_offset):
        closing.start()
        for step in swap_steps(segment, end_offset):
            yield step
            closed_meanwhile.append(log._closed)

    monkeypatch.setattr(log_module, "swap_steps", steps)
    log.options = LogOptions(compact=True, segment_max_bytes=10**6)  # one swap
    compact(log)
    closing.join()
    assert closed_meanwhile == [False] * len(closed_meanwhile)
    assert log._closed
    assert closed_meanwhile


def test_append_read_search_retain_and_compact_at_the_same_time(tmp_path):
    """Of every key a reader sees, each later pass shows the same records or fewer, and never none."""
    log = open_compacted(
        tmp_path, segment_max_bytes=4000, compact_min_dirty_ratio=0, retention_max_bytes=40_000
    )
    done, cleaned = threading.Event(), threading.Event()
    errors = []
    runs = []

    def guarded(work):
        def run():
            try:
                while not done.is_set():
                    work()
            except BaseException as error:
                errors.append(error)
                done.set()
                cleaned.set()

        return threading.Thread(target=run)

    def check(found):
        offsets = [m.offset for m in found]
        assert offsets == sorted(set(offsets))
        for message in found:
            assert message.value == b"%d" % message.offset
            assert message.key == b"key-%d" % (message.offset % 50)

    def read():
        check(read_all(log))

    def read_back():
        check(read_all_reverse(log, log.next_offset - 1)[::-1])

    def search():
        assert log.offset_at_or_after(1000 * max(log.next_offset - 100, 0)) >= 0

    def clean():
        log.sync()
        runs.append(compact(log, now_ns=HOUR))
        log.retain(HOUR, log.synced_offset)
        cleaned.set()

    threads = [guarded(work) for work in (read, read_back, search, clean)]
    for thread in threads:
        thread.start()
    for n in range(0, 6000, 5):
        if n % 300 == 0:
            cleaned.clear()
            if not done.is_set():
                cleaned.wait()  # so that the log is not ahead of its cleaning by hundreds of files
        if done.is_set():
            break
        batch = [Entry(b"key-%d" % (o % 50), b"%d" % o) for o in range(n, n + 5)]
        assert log.append(entries(batch, 1000 * (n + 1))) == n
    done.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert sum(run.records_removed for run in runs) > 1000
    log.sync()
    (tmp_path / STATE_NAME).unlink()
    log.compact(HOUR, log.next_offset, UNTHROTTLED)
    keys = [m.key for m in read_all(log) if m.offset < log._view.active.base_offset]
    assert len(keys) == len(set(keys))
    log.close()
    log = open_compacted(tmp_path)
    assert log.damage == ()
    assert {m.key for m in read_all(log)} == {b"key-%d" % n for n in range(50)}
    log.close()
