"""The throttle of cleaning: the rate holds, whoever works, and a stop ends every wait."""

import threading

import pytest

from liftbridge.log import CleaningStoppedError, Throttle


class Time:
    """A clock that moves only while somebody waits."""

    def __init__(self):
        self.now = 100.0
        self.waits = []

    def clock(self):
        return self.now

    def wait(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


def throttle(rate):
    time = Time()
    return Throttle(rate, clock=time.clock, wait=time.wait), time


@pytest.mark.parametrize("piece", [1, 100, 5000])
def test_the_rate_holds_whatever_the_size_of_the_pieces(piece):
    limiter, time = throttle(1000)
    for _ in range(50_000 // piece):
        limiter.take(piece)
    assert time.now - 100 == pytest.approx(50 - 0.1), "a tenth of a second's worth was saved up"


def test_what_an_idle_throttle_saves_up_is_bounded():
    limiter, time = throttle(1000)
    time.now += 3600
    limiter.take(100)
    assert time.waits == []
    limiter.take(100)
    assert time.waits == [pytest.approx(0.1)]


def test_without_a_limit_nobody_waits():
    limiter, time = throttle(0)
    limiter.take(1 << 40)
    assert time.waits == []


def test_several_workers_share_the_rate():
    clock = Time()
    lock = threading.Lock()
    owed = []

    def wait(seconds):
        with lock:
            owed.append(seconds)

    limiter = Throttle(1000, clock=clock.clock, wait=wait)
    workers = [threading.Thread(target=lambda: [limiter.take(100) for _ in range(100)]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # Time stood still, so each wait says how long after the start its piece may be followed by another.
    assert max(owed) == pytest.approx((4 * 100 * 100 - 100) / 1000)
    assert len(owed) == len({round(each, 6) for each in owed}) == 399


def test_a_stop_ends_a_wait():
    limiter = Throttle(1)
    started = threading.Event()
    caught = []

    def work():
        started.set()
        try:
            limiter.take(1_000_000)  # eleven days
        except CleaningStoppedError as error:
            caught.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    limiter.stop()
    worker.join()
    assert len(caught) == 1
    with pytest.raises(CleaningStoppedError):
        limiter.take(0)


def test_a_negative_rate_is_none():
    with pytest.raises(ValueError, match="no rate"):
        Throttle(-1)
