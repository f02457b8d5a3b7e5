"""The world of the simulator does what it says: what is lost is lost, what is synced stays."""

from __future__ import annotations

from random import Random

import pytest

from liftbridge.sim.clock import Clock
from liftbridge.sim.disk import DAMAGED, Disk, DiskFullError, FuseError, Speed
from liftbridge.sim.network import Network, Weather
from liftbridge.sim.scheduler import MILLISECOND, SECOND, Scheduler
from liftbridge.sim.world import World


class Chance(Random):
    """Chance whose `random` and `choice` are given; the rest follows from a seed."""

    def __init__(self, *, roll, keep=None):
        super().__init__(1)
        self.rolls = roll
        self.keep = keep

    def random(self):
        return self.rolls.pop(0) if isinstance(self.rolls, list) else self.rolls

    def choice(self, seq):
        return self.keep if self.keep is not None else seq[0]


def disk(random=None):
    scheduler = Scheduler()
    return scheduler, Disk(scheduler, random or Random(1), Speed())


def nothing():
    pass


def synced(scheduler, what):
    what.sync(nothing)
    scheduler.run(scheduler.now + SECOND)


# ---- time ----


def test_events_happen_in_the_order_of_their_times_and_then_of_their_making():
    scheduler = Scheduler()
    seen = []
    scheduler.after(20, seen.append, "late")
    scheduler.after(10, seen.append, "first")
    scheduler.after(10, seen.append, "second")
    scheduler.run(15)
    assert (seen, scheduler.now, len(scheduler)) == (["first", "second"], 15, 1)
    scheduler.run(100)
    assert (seen, scheduler.now, scheduler.handled) == (["first", "second", "late"], 100, 3)


def test_an_event_may_schedule_others_and_stop_the_run():
    scheduler = Scheduler()
    seen = []

    def again():
        seen.append(scheduler.now)
        if len(seen) == 3:
            scheduler.stop()
        scheduler.after(5, again)

    scheduler.after(0, again)
    scheduler.run(1000)
    assert (seen, scheduler.now) == ([0, 5, 10], 10)


def test_nothing_happens_in_the_past():
    with pytest.raises(ValueError, match="3 us ago"):
        Scheduler().after(-3, nothing)


def test_a_clock_that_is_fast_and_one_that_jumps():
    scheduler = Scheduler()
    clock = Clock(scheduler, rate=2.0)
    fired = []
    clock.after(100, lambda: fired.append(scheduler.now))
    scheduler.run(1000)
    assert (fired, clock.monotonic(), clock.wall()) == ([50], 2000, 2000)
    clock.set_rate(0.5)
    clock.jump(-5000)
    scheduler.run(2000)
    assert (clock.monotonic(), clock.wall(), clock.rate) == (2500, -2500, 0.5)


# ---- network ----


def network(random=None, **weather):
    scheduler = Scheduler()
    net = Network(scheduler, random or Random(1), Weather(**weather))
    got = []
    for host in range(3):
        net.attach(host, lambda source, message, host=host: got.append((source, host, message)))
    return scheduler, net, got


def test_a_message_arrives_after_its_delay():
    scheduler, net, got = network(delay_from=100, delay_to=200)
    net.send(0, 1, "hello")
    scheduler.run(99)
    assert got == []
    scheduler.run(200)
    assert got == [(0, 1, "hello")]


def test_messages_are_lost_and_doubled_and_overtake():
    scheduler, net, got = network(loss=0.3, double=0.3, late=0.3)
    for number in range(200):
        net.send(0, 1, number)
    scheduler.run(SECOND)
    numbers = [message for _, _, message in got]
    assert 0 < net.lost < 200
    assert len(set(numbers)) == 200 - net.lost
    assert len(numbers) > len(set(numbers))
    assert numbers != sorted(numbers)


def test_a_message_can_be_held_for_long():
    scheduler, net, got = network(hold=1.0, hold_from=SECOND, hold_to=2 * SECOND)
    net.send(0, 1, "late")
    scheduler.run(SECOND)
    assert got == []
    scheduler.run(3 * SECOND)
    assert got == [(0, 1, "late")]


def test_a_cut_has_one_direction_and_spares_what_is_on_its_way():
    scheduler, net, got = network()
    net.send(0, 1, "before")
    net.cut([0], [1])
    net.send(0, 1, "lost")
    net.send(1, 0, "back")
    scheduler.run(SECOND)
    assert sorted(got) == [(0, 1, "before"), (1, 0, "back")]
    assert not net.reaches(0, 1)
    net.mend([0], [1])
    net.send(0, 1, "after")
    scheduler.run(2 * SECOND)
    assert got[-1] == (0, 1, "after")


def test_who_is_isolated_reaches_nobody_outside_and_is_reached_by_nobody():
    scheduler, net, got = network()
    net.isolate([0, 1])
    for source, target in ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)):
        net.send(source, target, "m")
    scheduler.run(SECOND)
    assert sorted(got) == [(0, 1, "m"), (1, 0, "m")]
    net.heal()
    net.send(2, 0, "healed")
    scheduler.run(2 * SECOND)
    assert got[-1] == (2, 0, "healed")


def test_old_messages_come_again_but_not_through_a_cut():
    scheduler, net, got = network()
    net.send(0, 1, "one")
    net.send(0, 2, "two")
    scheduler.run(SECOND)
    got.clear()
    net.replay(10, target=2)
    scheduler.run(2 * SECOND)
    assert got == [(0, 2, "two")]
    net.cut([0], [2])
    net.replay(10)
    scheduler.run(3 * SECOND)
    assert got == [(0, 2, "two"), (0, 1, "one")]


def test_a_slow_link_is_slow_in_one_direction():
    scheduler, net, got = network()
    net.slow(0, 1, SECOND)
    net.send(0, 1, "slow")
    net.send(1, 0, "quick")
    scheduler.run(100 * MILLISECOND)
    assert got == [(1, 0, "quick")]


# ---- disks ----


def test_a_write_is_seen_at_once_and_durable_after_a_sync():
    scheduler, store = disk()
    store.append("log", "a")
    assert (list(store.read("log")), list(store.durable("log")), store.unsynced) == (["a"], [], 1)
    synced(scheduler, store)
    assert (list(store.durable("log")), store.unsynced, store.names()) == (["a"], 0, ["log"])


def test_a_sync_covers_what_was_written_before_it_began():
    scheduler, store = disk()
    done = []
    store.append("log", "a")
    store.sync(lambda: done.append(list(store.durable("log"))))
    store.append("log", "b")
    scheduler.run(SECOND)
    assert done == [["a"]]
    assert store.unsynced == 1


def test_a_loss_of_power_takes_what_no_sync_has_covered():
    scheduler, store = disk(Chance(roll=0.9, keep=0.0))
    store.append("log", "a")
    synced(scheduler, store)
    store.append("log", "b")
    store.cut("log", 0)
    store.replace("other", ["x"])
    store.power_loss()
    assert list(store.read("log")) == ["a"]
    assert store.names() == ["log"]


def test_a_kill_takes_nothing_and_syncs_nothing():
    scheduler, store = disk(Chance(roll=0.9, keep=0.0))
    done = []
    store.append("log", "a")
    store.sync(lambda: done.append("reported"))
    store.kill()
    scheduler.run(SECOND)
    assert done == [], "whoever waited is gone"
    assert (list(store.read("log")), store.unsynced) == (["a"], 1)
    store.power_loss()
    assert list(store.read("log")) == []


def test_any_subset_of_unsynced_writes_may_be_left_and_a_hole_reads_as_damage():
    # Not in order; the second of three is lost; the last one is whole.
    _, store = disk(Chance(roll=[0.9, 0.1, 0.9, 0.1, 0.9], keep=0.5))
    for record in "abc":
        store.append("log", record)
    store.power_loss()
    assert list(store.read("log")) == ["a", DAMAGED, "c"]


def test_the_last_write_that_is_left_may_be_torn():
    _, store = disk(Chance(roll=[0.1, 0.1, 0.1, 0.1], keep=0.5))
    store.append("log", "a")
    store.append("log", "b")
    store.power_loss()
    assert list(store.read("log")) == ["a", DAMAGED]


def test_a_replacement_is_whole_or_did_not_happen_with_all_that_followed_it():
    scheduler, store = disk(Chance(roll=[0.0, 0.9, 0.9, 0.1], keep=0.5))
    store.replace("file", ["old"])
    synced(scheduler, store)
    store.replace("file", ["new", "newer"])
    store.append("file", "newest")
    store.append("log", "a")
    store._random.rolls = [0.9, 0.9, 0.1, 0.9]
    store.power_loss()
    assert list(store.read("file")) == ["old"]
    assert list(store.read("log")) == ["a"]


def test_a_cut_that_is_lost_leaves_the_old_records_behind_the_new_one():
    scheduler, store = disk(Chance(roll=0.9, keep=0.5))
    for record in "abc":
        store.append("log", record)
    synced(scheduler, store)
    store.cut("log", 1)
    store.append("log", "B")
    assert list(store.read("log")) == ["a", "B"]
    store._random.rolls = [0.9, 0.9, 0.1, 0.9]
    store.power_loss()
    assert list(store.read("log")) == ["a", "B", "c"]


@pytest.mark.parametrize("seed", range(50))
def test_what_was_synced_is_never_lost(seed):
    """Any writes, syncs, kills and losses of power: the synced beginning of an append-only file stays."""
    chance = Random(seed)
    scheduler, store = disk(chance)
    covered = []
    written = 0
    for _ in range(200):
        what = chance.randrange(10)
        if what < 6:
            store.append("log", written)
            written += 1
        elif what < 8:
            now = list(store.read("log"))
            store.sync(lambda now=now: covered.append(len(now)))
        elif what < 9:
            scheduler.run(scheduler.now + 2 * MILLISECOND)
        else:
            if chance.random() < 0.5:
                store.kill()
            else:
                store.power_loss()
            # As a process that starts does: what is damaged is cut off, and what is left is synced.
            records = list(store.read("log"))
            good = records.index(DAMAGED) if DAMAGED in records else len(records)
            assert good >= max(covered, default=0)
            store.cut("log", good)
            written = good
            synced(scheduler, store)
            covered.append(good)
        assert list(store.read("log")) == list(range(written))


def test_a_full_disk_takes_nothing_and_still_cuts():
    _, store = disk()
    store.append("log", "a")
    store.full = True
    for write in (lambda: store.append("log", "b"), lambda: store.replace("log", ["b"])):
        with pytest.raises(DiskFullError, match="no room"):
            write()
    assert list(store.read("log")) == ["a"]
    store.cut("log", 0)
    assert list(store.read("log")) == []


def test_a_fuse_ends_the_process_before_a_write_of_a_sequence():
    _, store = disk()
    store.fuse(2)
    store.append("log", "a")
    store.append("log", "b")
    with pytest.raises(FuseError):
        store.append("log", "c")
    assert list(store.read("log")) == ["a", "b"]
    store.append("log", "c")  # the fuse is gone


def test_a_flipped_bit_is_on_the_medium():
    scheduler, store = disk()
    store.append("log", "a")
    store.append("log", "b")
    synced(scheduler, store)
    store.flip("log", 0)
    store.kill()
    assert list(store.read("log")) == [DAMAGED, "b"]
    assert list(store.durable("log")) == [DAMAGED, "b"]


def test_a_deleted_file_is_gone_when_that_is_synced():
    scheduler, store = disk(Chance(roll=0.9, keep=0.0))
    store.append("log", "a")
    synced(scheduler, store)
    store.delete("log")
    assert store.names() == []
    store.power_loss()
    assert store.names() == ["log"]
    store.delete("log")
    synced(scheduler, store)
    store.power_loss()
    assert store.names() == []


def test_slow_syncs_take_longer():
    scheduler, store = disk(Chance(roll=0.5))
    store.speed.slow, store.speed.slow_to = 1.0, SECOND
    done = []
    store.append("log", "a")
    store.sync(lambda: done.append(scheduler.now))
    scheduler.run(100 * MILLISECOND)
    assert done == []
    scheduler.run(SECOND)
    assert len(done) == 1


def test_a_new_disk_has_nothing():
    scheduler, store = disk()
    store.append("log", "a")
    synced(scheduler, store)
    store.wipe()
    assert (store.names(), list(store.durable("log"))) == ([], [])


# ---- the record of a world ----


def test_the_trace_is_bounded_and_the_digest_covers_everything():
    def world(first):
        made = World(7, remembered=2, digest=True)
        for what in (first, "b", "c"):
            made.note(what, 1)
        return made

    one, other = world("a"), world("x")
    assert [line.split() for line in one.trace()] == [["0.000000", "b", "1"], ["0.000000", "c", "1"]]
    assert one.trace() == other.trace()
    assert one.digest != other.digest
    assert one.digest == world("a").digest
    with pytest.raises(ValueError, match="digest=True"):
        _ = World(7).digest
