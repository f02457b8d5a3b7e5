"""How late the event loop is, measured on one that is held up."""

from __future__ import annotations

import time

import trio

from liftbridge.obs.stalls import BOUNDS, Stalls


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_loop_that_is_held_up_is_noticed(nursery, caplog):
    stalls = Stalls()
    nursery.start_soon(stalls.run)
    await trio.sleep(0.1)
    hold_the_loop(0.8)
    while sum(stalls.counts) < 4:
        await trio.sleep(0.01)
    # It had been asleep for up to an interval when the loop was taken.
    assert stalls.longest >= 0.7
    assert sum(stalls.counts[list(BOUNDS).index(0.5) + 1 :]) == 1
    assert stalls.total >= stalls.longest
    (told,) = [record for record in caplog.records if record.name == "liftbridge.loop"]
    assert "hold_the_loop" in told.getMessage()


def test_delays_are_counted_by_their_bounds():
    stalls = Stalls()
    for delay in (0.0, 0.001, 0.0011, 99.0):
        stalls.note(delay)
    assert stalls.counts == [2, 1, *[0] * (len(BOUNDS) - 2), 1]
    assert (stalls.longest, round(stalls.total, 4)) == (99.0, 99.0021)
