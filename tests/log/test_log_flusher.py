"""Group commit on real files: how many syncs, what the callbacks get, and that no request is lost."""

import os

import pytest
import trio
import trio.testing
from log_helpers import numbered, open_log
from test_log_failures import descriptor_replaced

from liftbridge.log import Flusher, LogFailedError
from liftbridge.log.flusher import REMEMBERED_LATENCIES
from liftbridge.sockets import Turn


class Waiter:
    """Collects what the flusher calls back."""

    def __init__(self):
        self.synced = []
        self.errors = []
        self._seen = 0
        self._changed = trio.Event()

    def done(self, offset):
        self.synced.append(offset)
        self._notify()

    def failed(self, error):
        self.errors.append(error)
        self._notify()

    def _notify(self):
        self._changed.set()
        self._changed = trio.Event()

    async def called(self):
        """Wait for one call more than the calls before this one have seen."""
        self._seen += 1
        while len(self.synced) + len(self.errors) < self._seen:
            await self._changed.wait()


@pytest.fixture
def log(tmp_path):
    with_log = open_log(tmp_path / "log")
    yield with_log
    with_log.close()


async def test_requests_before_a_flush_share_it(nursery, log):
    flusher, waiter = Flusher(), Waiter()
    await nursery.start(flusher.run)
    for n in range(100):
        log.append(numbered(n, 1))
        flusher.request(log, waiter.done, waiter.failed)
    assert log.synced_offset == 0, "a request does not wait"
    await waiter.called()
    assert (waiter.synced, waiter.errors) == ([100], [])
    assert log.synced_offset == 100
    assert len(flusher.latencies()) == 1


async def test_what_arrives_during_a_flush_joins_the_next(nursery, log):
    flusher, waiter = Flusher(), Waiter()
    await nursery.start(flusher.run)
    with log._sync_lock:  # the disk is slow: the first sync has begun and waits
        log.append(numbered(0, 1))
        flusher.request(log, waiter.done, waiter.failed)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):
            flusher.request(log, waiter.done, waiter.failed)
            await trio.lowlevel.checkpoint()
    await waiter.called()
    await waiter.called()
    assert waiter.synced == [1, 1]
    assert len(flusher.latencies()) == 2


async def test_every_requester_is_called_once(nursery, log):
    flusher, first, second = Flusher(), Waiter(), Waiter()
    log.append(numbered(0, 1))
    for waiter in (first, second, first, second):
        flusher.request(log, waiter.done, waiter.failed)
    await flusher.drain()
    assert (first.synced, second.synced) == ([1], [1])


async def test_a_failed_log_fails_alone(nursery, tmp_path):
    flusher, good, bad = Flusher(), Waiter(), Waiter()
    logs = [open_log(tmp_path / str(n)) for n in range(10)]
    for log in logs:
        log.append(numbered(0, 3))
    with descriptor_replaced(logs[4]._view.active.fileno(), "/dev/null", os.O_RDWR):
        for log in logs:
            waiter = bad if log is logs[4] else good
            flusher.request(log, waiter.done, waiter.failed)
        await flusher.drain()
    assert good.synced == [3] * 9
    assert good.errors == bad.synced == []
    assert [type(error) for error in bad.errors] == [LogFailedError]
    for log in logs:
        log.close()


async def test_a_delayed_request_waits_and_an_urgent_one_does_not(nursery, log, mock_clock):
    flusher, waiter = Flusher(), Waiter()
    await nursery.start(flusher.run)
    log.append(numbered(0, 1))
    flusher.request(log, waiter.done, waiter.failed, delay=0.05)
    mock_clock.jump(0.04)
    await trio.testing.wait_all_tasks_blocked()
    log.append(numbered(1, 1))
    flusher.request(log, waiter.done, waiter.failed, delay=0.05)
    await trio.testing.wait_all_tasks_blocked()
    assert waiter.synced == []
    mock_clock.jump(0.01)
    await waiter.called()
    assert waiter.synced == [2], "a later request does not put off an earlier one"

    log.append(numbered(2, 1))
    flusher.request(log, waiter.done, waiter.failed, delay=0.05)
    flusher.request(log, waiter.done, waiter.failed)
    await waiter.called()
    assert waiter.synced == [2, 3]


async def test_cancellation_finishes_what_runs_and_drain_does_the_rest(tmp_path):
    flusher, waiter = Flusher(), Waiter()
    logs = [open_log(tmp_path / str(n)) for n in range(2)]
    for log in logs:
        log.append(numbered(0, 2))
    async with trio.open_nursery() as nursery:
        await nursery.start(flusher.run)
        with logs[0]._sync_lock:
            flusher.request(logs[0], waiter.done, waiter.failed)
            await trio.testing.wait_all_tasks_blocked()
            flusher.request(logs[1], waiter.done, waiter.failed)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks, "the flusher has left a sync alone"
        # leaving the nursery waits for the sync that is running
    assert waiter.synced == [2]
    assert (logs[0].synced_offset, logs[1].synced_offset) == (2, 0)
    await flusher.drain()
    assert waiter.synced == [2, 2]
    assert logs[1].synced_offset == 2
    for log in logs:
        log.close()


async def test_a_request_cancelled_before_its_turn_is_kept(log):
    flusher, waiter = Flusher(), Waiter()
    log.append(numbered(0, 2))
    flusher.request(log, waiter.done, waiter.failed)
    with trio.CancelScope() as scope:
        scope.cancel()
        await flusher.drain()
    assert waiter.synced == []
    await flusher.drain()
    assert waiter.synced == [2]


async def test_a_request_for_which_there_is_no_thread_is_kept(log, monkeypatch):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    flusher, waiter = Flusher(), Waiter()
    log.append(numbered(0, 2))
    flusher.request(log, waiter.done, waiter.failed)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="new thread"):
        patch.setattr(trio.lowlevel, "start_thread_soon", no_thread)
        await flusher.drain()
    assert waiter.synced == []
    await flusher.drain()
    assert waiter.synced == [2]


async def test_a_request_of_a_turn_begins_its_flush_at_the_end_of_the_turn(nursery, log):
    """And what is asked for in the turn of the callbacks begins the next one: no task is woken for either."""
    turn = Turn()
    flusher = Flusher(turn)
    sent = []

    def send():
        sent.append(log.synced_offset)

    class Acks(Waiter):
        def done(self, offset):
            assert turn.later(send), "what a callback sends leaves at the end of a turn"
            assert sent == [] if offset == 2 else [2]
            super().done(offset)
            if offset == 2:
                log.append(numbered(2, 1))
                flusher.request(log, self.done, self.failed)

    waiter = Acks()
    await nursery.start(flusher.run)
    await trio.testing.wait_all_tasks_blocked()
    with log._sync_lock:
        with turn:
            log.append(numbered(0, 1))
            flusher.request(log, waiter.done, waiter.failed)
            assert not flusher._running, "not before the turn is over, as others may ask in it"
            log.append(numbered(1, 1))
        assert flusher._running == 1
        assert not flusher._wake.is_set()
    await waiter.called()
    await waiter.called()
    assert waiter.synced == [2, 3]
    assert sent == [2, 3]
    assert not flusher._wake.is_set()


async def test_a_turn_before_the_task_is_there_leaves_the_flush_to_it(nursery, log):
    turn = Turn()
    flusher, waiter = Flusher(turn), Waiter()
    log.append(numbered(0, 1))
    with turn:
        flusher.request(log, waiter.done, waiter.failed)
    assert not flusher._running
    await nursery.start(flusher.run)
    await waiter.called()
    assert waiter.synced == [1]


async def test_a_defect_of_a_callback_ends_the_flusher(log):
    flusher = Flusher()

    def done(offset):
        raise KeyError("a defect")

    log.append(numbered(0, 1))
    flusher.request(log, done, pytest.fail)
    with pytest.RaisesGroup(pytest.RaisesExc(KeyError, match="a defect"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(flusher.run)


async def test_acks_may_append_and_ask_again(nursery, log):
    """A callback runs where appends run, so a log under load is flushed again and again."""
    flusher = Flusher()
    finished = trio.Event()

    def done(offset):
        assert log.synced_offset >= offset
        if offset < 10:
            log.append(numbered(offset, 1))
            flusher.request(log, done, pytest.fail)
        else:
            finished.set()

    log.append(numbered(0, 1))
    flusher.request(log, done, pytest.fail)
    await nursery.start(flusher.run)
    await finished.wait()
    assert len(flusher.latencies()) == 10


async def test_latencies_are_bounded(log):
    flusher, waiter = Flusher(), Waiter()
    flusher._latencies.extend(range(REMEMBERED_LATENCIES))
    flusher.request(log, waiter.done, waiter.failed)
    await flusher.drain()
    latencies = flusher.latencies()
    assert len(latencies) == REMEMBERED_LATENCIES
    assert latencies[0] == 1
    assert latencies[-1] < 1
