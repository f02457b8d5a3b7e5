"""Auto-pause without a server: who is due when, at which cost, and what is kept in memory."""

from __future__ import annotations

import time
import uuid
from types import SimpleNamespace

import trio
import trio.testing

from liftbridge.broker.autopause import AutoPause, is_idle
from liftbridge.broker.partition import State
from liftbridge.metadata.errors import MetadataCode, MetadataError

MILLISECOND = 1_000_000


class Fake:
    """What auto-pause needs of a partition; `Partition` needs a log and NATS for the same."""

    def __init__(self, number=0, stream=None, *, limit_ms=1000, idle_seconds=0.0, unless_subscribed=False):
        self.stream = stream or SimpleNamespace(name="orders", stream_id=uuid.UUID(int=1))
        self.model = SimpleNamespace(id=number)
        self.settings = SimpleNamespace(
            auto_pause_time=limit_ms * MILLISECOND, auto_pause_disable_if_subscribers=unless_subscribed
        )
        self.state = State.LEADING
        self.closing = False
        self.subscribers = 0
        self.active_at = time.monotonic() - idle_seconds


async def paused_by(autopause, nursery, count):
    """Run it until it has paused so many partitions; what it paused, in one list for each call."""
    calls = []
    done = trio.Event()

    async def pause(partitions):
        calls.append(list(partitions))
        for partition in partitions:
            partition.state = State.PAUSED
            autopause.discard(partition)
        if sum(map(len, calls)) >= count:
            done.set()

    nursery.start_soon(autopause.run, pause)
    await done.wait()
    nursery.cancel_scope.cancel()
    return calls


def test_what_keeps_a_partition_from_being_idle():
    assert is_idle(Fake(idle_seconds=1.1))
    assert not is_idle(Fake(idle_seconds=0.9))
    watched = Fake(idle_seconds=9, unless_subscribed=True)
    assert is_idle(watched)
    watched.subscribers = 1
    assert not is_idle(watched)
    watched.settings.auto_pause_disable_if_subscribers = False
    assert is_idle(watched)
    for change in ({"closing": True}, {"state": State.OPENING}, {"state": State.OFFLINE}):
        partition = Fake(idle_seconds=9)
        vars(partition).update(change)
        assert not is_idle(partition)


async def test_what_is_idle_together_is_paused_by_one_call_for_each_stream(nursery):
    autopause = AutoPause()
    orders = [Fake(number, idle_seconds=5) for number in range(10_000)]
    other = Fake(stream=SimpleNamespace(name="other", stream_id=uuid.UUID(int=2)), idle_seconds=5)
    fresh = Fake(10_000)
    never = Fake(10_001, limit_ms=0, idle_seconds=5)
    for partition in (*orders, other, fresh, never):
        autopause.add(partition)
    calls = await paused_by(autopause, nursery, 10_001)
    assert sorted(map(len, calls)) == [1, 10_000]
    assert (fresh.state, never.state) == (State.LEADING, State.LEADING)
    assert len(autopause) == 1


async def test_a_message_puts_the_pause_off_by_as_long_as_there_was_left(nursery):
    autopause = AutoPause()
    partition = Fake(limit_ms=200, idle_seconds=0.15)
    autopause.add(partition)
    active = partition.active_at = time.monotonic()
    await paused_by(autopause, nursery, 1)
    assert time.monotonic() - active >= 0.2


async def test_the_shortest_wait_is_seen_although_a_longer_one_is_slept(nursery):
    autopause = AutoPause()
    autopause.add(Fake(limit_ms=3_600_000))
    soon = Fake(limit_ms=50)

    async def add_later():
        await trio.testing.wait_all_tasks_blocked()
        autopause.add(soon)

    nursery.start_soon(add_later)
    assert await paused_by(autopause, nursery, 1) == [[soon]]


async def test_a_failure_is_tried_again(nursery):
    autopause = AutoPause()
    partition = Fake(limit_ms=1, idle_seconds=5)
    autopause.add(partition)
    attempts = []
    done = trio.Event()

    async def pause(partitions):
        attempts.append(time.monotonic())
        if len(attempts) == 2:
            done.set()
        raise MetadataError(MetadataCode.INTERNAL, "no known metadata leader")

    nursery.start_soon(autopause.run, pause)
    await done.wait()
    assert attempts[1] - attempts[0] >= 1.0
    nursery.cancel_scope.cancel()


def test_what_is_over_is_not_kept_in_memory():
    autopause = AutoPause()
    for _ in range(10_000):
        partition = Fake(limit_ms=3_600_000)
        autopause.add(partition)
        autopause.discard(partition)
    assert len(autopause) == 0
    assert len(autopause._heap) <= 65
