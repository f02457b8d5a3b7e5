"""The cleaner on real logs, by a clock that the tests move: when partitions come due, and how jobs end."""

import logging
import random
import threading
import uuid
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from liftbridge.broker.cleaner import Cleaner
from liftbridge.broker.partition import State
from liftbridge.log import BatchBuilder, Log, LogOptions, Throttle
from liftbridge.proto import api_pb2

NOW = 1_000_000_000
INTERVAL = 300


class Cleaned:
    """As much of a partition as the cleaner sees: a log, and what the cleaner told it."""

    def __init__(self, log=None, interval=INTERVAL, stream=0, at_a_time=10):
        self.settings = SimpleNamespace(
            cleaner_interval=interval * 10**9,
            log=LogOptions() if log is None else log.options,
            compact_partitions=at_a_time,
        )
        self.stream = SimpleNamespace(stream_id=stream)
        self.log = log
        self.state = State.OFFLINE if log is None else State.LEADING
        self.turns = 0
        self.failures = []
        self.changes = 0

    @property
    def high_watermark(self):
        return self.log.next_offset - 1

    def rest(self):
        self.turns += 1

    def messages_changed(self):
        self.changes += 1

    def fail(self, reason):
        self.failures.append(reason)
        self.state = State.OFFLINE


@pytest.fixture
def open_log(tmp_path):
    """Logs with one record in each of three segments, all but the last beyond the limits."""
    logs = []

    def open_log(**options):
        number = len(logs)
        log = Log.open(
            tmp_path / str(number),
            stream_id=uuid.UUID(int=1),
            partition=number,
            options=LogOptions(**{"segment_max_bytes": 1, **(options or {"retention_max_messages": 1})}),
        )
        logs.append(log)
        fill(log, 3)
        return log

    yield open_log
    for log in logs:
        if log.failed is None:
            log.close()


def fill(log, count):
    """Append records of one key, each in a segment of its own."""
    for _ in range(count):
        builder = BatchBuilder()
        builder.add_record(value=b"x", timestamp=NOW, key=b"k")
        log.append(builder)


async def jump(clock, seconds):
    """Let the time pass, and everything that it brings."""
    clock.jump(seconds)
    await settle()


async def settle():
    """Wait until nothing runs any more, jobs in threads included."""
    await trio.testing.wait_all_tasks_blocked()


async def until(condition):
    """Wait for the end of jobs in threads; the clock stands still."""
    while not condition():
        await trio.lowlevel.checkpoint()


@pytest.fixture
def clock(mock_clock):
    return mock_clock


@pytest.fixture
async def cleaner(nursery):
    cleaner = Cleaner(workers=2, compactions=2, throttle=Throttle(), clock=lambda: NOW)
    await nursery.start(cleaner.run)
    return cleaner


async def test_partitions_that_begin_together_do_not_come_due_together(clock, cleaner):
    random.seed(1)
    partitions = [Cleaned() for _ in range(1000)]
    for partition in partitions:
        cleaner.add(partition)
    done, steps = 0, []
    for _ in range(10):
        await jump(clock, INTERVAL / 10)
        steps.append(sum(partition.turns for partition in partitions) - done)
        done += steps[-1]
    assert sum(steps) == 1000, "each has had one turn in one interval"
    assert min(steps) > 60
    await jump(clock, INTERVAL)
    assert {partition.turns for partition in partitions} == {2}


async def test_a_job_removes_what_is_beyond_the_limits(clock, cleaner, open_log):
    partition = Cleaned(open_log())
    cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: partition.turns)
    assert (partition.log.start_offset, partition.log.next_offset) == (2, 3)
    fill(partition.log, 1)
    clock.jump(INTERVAL)
    await until(lambda: partition.turns == 2)
    assert partition.log.start_offset == 3


async def test_no_partition_has_two_jobs_at_a_time(clock, cleaner, open_log):
    busy, other = Cleaned(open_log()), Cleaned(open_log())
    cleaner.add(busy)
    cleaner.add(other)
    with busy.log._sync_lock:  # its disk is slow: the job has begun and waits
        for turn in range(1, 4):
            clock.jump(INTERVAL)
            await until(lambda turn=turn: other.turns == turn)
        assert busy.turns == 0
    await until(lambda: busy.turns)
    assert busy.turns == 1, "what it missed is not made up for"


async def test_no_more_threads_than_workers(clock, cleaner, open_log):
    slow = [Cleaned(open_log()) for _ in range(2)]
    waiting = Cleaned(open_log())
    for partition in slow:
        cleaner.add(partition)
    with slow[0].log._sync_lock, slow[1].log._sync_lock:
        await jump(clock, INTERVAL)
        cleaner.add(waiting)
        await jump(clock, INTERVAL)
        assert waiting.turns == 0
    await until(lambda: waiting.turns)


async def test_after_discard_a_job_ends_and_none_begins(clock, cleaner, open_log):
    working, idle = Cleaned(open_log()), Cleaned()
    cleaner.add(working)
    with working.log._sync_lock:
        await jump(clock, INTERVAL)
        cleaner.add(idle)
        cleaner.discard(idle)
        cleaner.discard(working)
        with trio.move_on_after(1) as patience:
            clock.jump(2)
            await cleaner.wait_idle(working)
        assert patience.cancelled_caught, "the job is still at work"
    await cleaner.wait_idle(working)
    await cleaner.wait_idle(idle)
    await jump(clock, 10 * INTERVAL)
    assert (working.turns, idle.turns) == (1, 0)
    cleaner.discard(working)
    cleaner.add(working)
    clock.jump(INTERVAL)
    await until(lambda: working.turns == 2)


async def test_what_was_discarded_is_not_kept(cleaner):
    for _ in range(1000):
        partition = Cleaned()
        cleaner.add(partition)
        cleaner.discard(partition)
    assert len(cleaner._heap) <= 65


async def test_a_failed_log_fails_its_partition_only(clock, cleaner, open_log):
    failing, other = Cleaned(open_log()), Cleaned(open_log())
    failing.log.failed = OSError("the disk is gone")
    cleaner.add(failing)
    cleaner.add(other)
    clock.jump(INTERVAL)
    await until(lambda: failing.turns and other.turns)
    (reason,) = failing.failures
    assert "the disk is gone" in reason
    assert other.failures == []
    clock.jump(INTERVAL)
    await until(lambda: failing.turns == 2 and other.turns == 2)
    assert len(failing.failures) == 1, "a partition that does not lead is left alone"


async def test_what_cannot_be_removed_is_tried_again(clock, cleaner, open_log, caplog):
    partition = Cleaned(open_log())
    (first, *_) = sorted(partition.log.directory.glob("*.log"))
    first.unlink()
    first.mkdir()
    cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: partition.turns)
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(first) in line.getMessage()
    assert partition.state is State.LEADING
    first.rmdir()
    clock.jump(INTERVAL)
    await until(lambda: partition.turns == 2)
    assert len(list(partition.log.directory.glob("*.log"))) == 1


async def test_a_log_that_is_closed_meanwhile_is_no_failure(clock, cleaner, open_log):
    partition = Cleaned(open_log())
    partition.log.close()
    cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: partition.turns)
    assert partition.failures == []


async def test_stop_waits_for_the_jobs_at_work(clock, nursery, open_log):
    cleaner = Cleaner(workers=2, compactions=2, throttle=Throttle(), clock=lambda: NOW)
    ended = trio.Event()

    async def run(task_status=trio.TASK_STATUS_IGNORED):
        await cleaner.run(task_status)
        ended.set()

    await nursery.start(run)
    partition = Cleaned(open_log())
    cleaner.add(partition)
    with partition.log._sync_lock:
        await jump(clock, INTERVAL)
        cleaner.stop()
        await settle()
        assert not ended.is_set()
    await ended.wait()
    assert partition.turns == 1


# -- compaction ----------------------------------------------------------------------------------------


def offsets(log):
    """Where the messages of a log are."""
    found, offset = [], 0
    while True:
        frames, offset = log.read_frames(offset, log.next_offset, b"")
        if not frames:
            return found
        while frames:
            length = int.from_bytes(frames[1:5], "big")
            found.append(api_pb2.Message.FromString(frames[5 : 5 + length]).offset)
            frames = frames[5 + length :]


async def test_a_stream_that_is_compacted_keeps_the_last_of_each_key(clock, cleaner, open_log):
    compacted, other = Cleaned(open_log(compact=True)), Cleaned(open_log(retention_max_messages=10))
    cleaner.add(compacted)
    cleaner.add(other)
    clock.jump(INTERVAL)
    await until(lambda: compacted.changes)
    # The last sealed one and the one in the active segment, which is not touched.
    assert offsets(compacted.log) == [1, 2]
    assert (offsets(other.log), other.changes) == ([0, 1, 2], 0)
    fill(compacted.log, 2)
    clock.jump(INTERVAL)
    await until(lambda: compacted.changes == 2)
    assert offsets(compacted.log) == [3, 4]


async def test_a_run_that_removes_nothing_changes_nothing(clock, cleaner, open_log):
    partition = Cleaned(open_log(compact=True))
    cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: partition.changes)
    for turn in (2, 3):
        clock.jump(INTERVAL)
        await until(lambda turn=turn: partition.turns == turn and cleaner._heap)
    assert partition.changes == 1


@pytest.fixture
def stuck():
    """Throttles at which every compaction stands still until `release` is set, or the throttle is stopped."""

    class Stuck(Throttle):
        def __init__(self):
            super().__init__(1, wait=self._wait_here)
            self.waiting = 0
            self.most = 0
            self.release = threading.Event()
            self._changed = threading.Lock()

        def _wait_here(self, seconds):
            with self._changed:
                self.waiting += 1
                self.most = max(self.most, self.waiting)
            while not self.release.wait(0.001) and not self._stopped.is_set():
                pass
            with self._changed:
                self.waiting -= 1

    return Stuck()


async def started(nursery, throttle, **limits):
    cleaner = Cleaner(throttle=throttle, clock=lambda: NOW, **limits)
    await nursery.start(cleaner.run)
    return cleaner


async def test_compactions_do_not_hold_up_retention(clock, nursery, open_log, stuck):
    cleaner = await started(nursery, stuck, workers=1, compactions=1)
    slow, other = Cleaned(open_log(compact=True)), Cleaned(open_log())
    cleaner.add(slow)
    clock.jump(INTERVAL)
    await until(lambda: stuck.waiting)
    cleaner.add(other)
    clock.jump(INTERVAL)
    await until(lambda: other.turns)
    assert (slow.turns, slow.changes) == (1, 0)
    stuck.release.set()
    await until(lambda: slow.changes)


@pytest.mark.parametrize(
    ("limits", "at_a_time", "most"),
    [
        ({"workers": 3, "compactions": 10}, 10, 3),
        ({"workers": 3, "compactions": 2}, 10, 2),
        ({"workers": 3, "compactions": 10}, 1, 1),
    ],
    ids=["workers", "compactions", "of one stream"],
)
async def test_so_many_are_compacted_at_a_time(clock, nursery, open_log, stuck, limits, at_a_time, most):
    cleaner = await started(nursery, stuck, **limits)
    partitions = [Cleaned(open_log(compact=True), at_a_time=at_a_time) for _ in range(4)]
    for partition in partitions:
        cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: stuck.waiting == most and all(partition.turns for partition in partitions))
    stuck.release.set()
    await until(lambda: all(partition.changes for partition in partitions))
    assert stuck.most == most


async def test_another_stream_passes_one_that_waits_for_its_own(clock, nursery, open_log, stuck):
    cleaner = await started(nursery, stuck, workers=2, compactions=2)
    first = [Cleaned(open_log(compact=True), at_a_time=1) for _ in range(2)]
    other = Cleaned(open_log(compact=True), stream=1, at_a_time=1)
    for partition in first:
        cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: all(partition.turns for partition in first))
    cleaner.add(other)
    clock.jump(INTERVAL)
    await until(lambda: stuck.waiting == 2)
    assert other.turns == 1
    stuck.release.set()
    await until(lambda: other.changes and all(partition.changes for partition in first))


async def test_a_partition_that_waits_for_its_turn_is_discarded_at_once(clock, nursery, open_log, stuck):
    cleaner = await started(nursery, stuck, workers=1, compactions=1)
    partitions = [Cleaned(open_log(compact=True)) for _ in range(2)]
    for partition in partitions:
        cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: stuck.waiting and all(partition.turns for partition in partitions))
    (waiting,) = [partition for partition in partitions if cleaner._entries[partition].idle is None]
    cleaner.discard(waiting)
    await cleaner.wait_idle(waiting)
    stuck.release.set()
    (working,) = {*partitions} - {waiting}
    await until(lambda: working.changes)
    assert waiting.changes == 0


async def test_a_log_that_is_closed_ends_its_compaction(clock, nursery, open_log, stuck):
    cleaner = await started(nursery, stuck, workers=1, compactions=1)
    partition = Cleaned(open_log(compact=True))
    cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: stuck.waiting)
    cleaner.discard(partition)
    await trio.to_thread.run_sync(partition.log.close)
    stuck.release.set()
    await cleaner.wait_idle(partition)
    assert (partition.failures, partition.changes) == ([], 0)


async def test_stop_ends_compactions_that_wait_for_their_share(clock, nursery, open_log, stuck):
    cleaner = await started(nursery, stuck, workers=1, compactions=1)
    partition = Cleaned(open_log(compact=True))
    cleaner.add(partition)
    clock.jump(INTERVAL)
    await until(lambda: stuck.waiting)
    cleaner.stop()
    await cleaner.wait_idle(partition)
    assert (stuck.waiting, partition.failures, partition.changes) == (0, [], 0)
