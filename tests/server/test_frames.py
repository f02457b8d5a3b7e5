"""What subscribers share: who gets which frames, how much is kept, and what happens when a read fails."""

from functools import partial

import pytest
import trio
import trio.testing
from calls import create, drain, publish_many, subscribe, take
from harness import Server

from liftbridge.broker.frames import LARGE_BYTES, OVERHEAD_BYTES, FrameCache

PLACE = object()


class Log:
    """Counts its reads; a record is one byte, and a read gives at most `largest` of them."""

    def __init__(self, largest=100):
        self.largest = largest
        self.reads = []
        self.disk = None

    async def read(self, offset, limit):
        self.reads.append((offset, limit))
        if self.disk is not None:
            await self.disk.wait()
        following = min(limit, offset + self.largest)
        return bytes(range(offset, following)), following


async def read(cache, log, offset, limit, place=PLACE):
    return await cache.read(place, offset, limit, partial(log.read, offset, limit))


async def test_the_first_reads_and_the_others_get_the_same_bytes():
    cache, log = FrameCache(10_000), Log()
    first = await read(cache, log, 3, 10)
    second = await read(cache, log, 3, 10)
    assert first == (bytes(range(3, 10)), 10)
    assert second[0] is first[0]
    assert log.reads == [(3, 10)]
    assert (cache.hits, cache.misses) == (1, 1)


async def test_nothing_beyond_the_limit_of_the_reader_is_given():
    cache, log = FrameCache(10_000), Log()
    await read(cache, log, 0, 20)
    assert (await read(cache, log, 0, 10))[1] == 10
    assert (await read(cache, log, 0, 20))[1] == 20
    assert log.reads == [(0, 20), (0, 10)], "and the shorter read does not replace the longer one"


async def test_a_reader_that_replays_is_not_fed_bit_by_bit():
    cache, log = FrameCache(10_000), Log()
    await read(cache, log, 0, 10)
    assert (await read(cache, log, 0, 20))[1] == 10, "half of what there is will do"
    assert (await read(cache, log, 0, 21))[1] == 21
    assert (await read(cache, log, 0, 21))[1] == 21
    assert log.reads == [(0, 10), (0, 21)]


async def test_what_is_large_is_worth_a_send():
    cache = FrameCache(10 * LARGE_BYTES)

    async def large():
        return bytes(LARGE_BYTES), 5

    async def never():
        raise AssertionError("it was to be shared")

    await cache.read(PLACE, 0, 5, large)
    assert (await cache.read(PLACE, 0, 1_000_000, never))[1] == 5


async def test_another_place_shares_nothing():
    cache, log = FrameCache(10_000), Log()
    await read(cache, log, 0, 10)
    await read(cache, log, 0, 10, place=object())
    assert len(log.reads) == 2


async def test_the_least_recently_used_goes_first():
    room = 3 * (10 + OVERHEAD_BYTES)
    cache, log = FrameCache(room), Log()
    for offset in (0, 10, 20):
        await read(cache, log, offset, offset + 10)
    await read(cache, log, 0, 10)
    await read(cache, log, 30, 40)
    assert cache.size == room
    log.reads.clear()
    for offset in (0, 20, 30, 10):
        await read(cache, log, offset, offset + 10)
    assert log.reads == [(10, 20)]
    await read(cache, log, 0, 11)
    assert cache.size <= room


async def test_what_is_larger_than_the_cache_is_not_kept():
    cache, log = FrameCache(OVERHEAD_BYTES + 9), Log()
    for _ in range(2):
        await read(cache, log, 0, 10)
    assert (cache.size, len(log.reads)) == (0, 2)


async def test_without_room_everybody_reads_for_himself():
    cache, log = FrameCache(0), Log()
    for _ in range(2):
        await read(cache, log, 0, 10)
    assert (len(log.reads), cache.hits, cache.misses) == (2, 0, 0)


async def test_one_reads_from_the_disk_while_the_others_wait(nursery):
    cache, log, results = FrameCache(10_000), Log(), []
    log.disk = trio.Event()

    async def reader(limit):
        results.append(await read(cache, log, 0, limit))

    for limit in (10, 10, 12, 5):  # one after another, as tasks start in any order
        nursery.start_soon(reader, limit)
        await trio.testing.wait_all_tasks_blocked()
    assert log.reads == [(0, 10)]
    log.disk.set()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(following for _, following in results) == [5, 10, 10, 10]
    assert log.reads == [(0, 10), (0, 5)]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_when_the_one_that_reads_fails_another_reads(nursery, how):
    cache, log, results = FrameCache(10_000), Log(), []
    scope, failure = trio.CancelScope(), trio.Event()

    async def fails():
        await failure.wait()
        raise OSError("the disk")

    async def first():
        with scope:
            try:
                await cache.read(PLACE, 0, 10, fails)
            except OSError:
                results.append("failed")

    async def second():
        results.append(await read(cache, log, 0, 10))

    nursery.start_soon(first)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(second)
    await trio.testing.wait_all_tasks_blocked()
    assert log.reads == []
    if how == "cancelled":
        scope.cancel()
    else:
        failure.set()
    await trio.testing.wait_all_tasks_blocked()
    assert log.reads == [(0, 10)]
    assert results[-1] == (bytes(range(10)), 10)


# -- in a server ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [0, 4096, 64 << 20])
def test_many_subscribers_get_the_same_messages(tmp_path, cache_bytes):
    """Followers from the start, others that replay from everywhere, some that stop early, one in reverse."""
    values = [b"%d" % number for number in range(3000)]
    with Server(tmp_path / "server", {"streams.read.cache.max.bytes": cache_bytes}) as server:
        api = server.api()
        create(api, "orders")
        followers = [subscribe(api, "orders", startPosition="EARLIEST") for _ in range(5)]
        publish_many(api, "orders", values[:2000])
        assert [message.value for message in take(followers[0], 2000)] == values[:2000]
        replays = {
            start: subscribe(
                api,
                "orders",
                startPosition="OFFSET",
                startOffset=start,
                stopPosition="STOP_OFFSET",
                stopOffset=start + 700,
            )
            for start in (0, 1, 500, 1299)
        }
        backwards = subscribe(
            api, "orders", startPosition="LATEST", stopPosition="STOP_OFFSET", stopOffset=0, reverse=True
        )
        publish_many(api, "orders", values[2000:])
        for start, call in replays.items():
            assert [message.value for message in drain(call)[0]] == values[start : start + 701]
        assert [message.value for message in drain(backwards)[0]] == values[1999::-1]
        assert [message.offset for message in take(followers[0], 1000)] == list(range(2000, 3000))
        for follower in followers[1:]:
            messages = take(follower, 3000)
            assert [message.value for message in messages] == values
            assert [message.offset for message in messages] == list(range(3000))
        assert server.stop() == 0
