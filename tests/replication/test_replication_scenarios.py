"""What went wrong in the original, event by event; the numbers are those of its weaknesses.

`World` checks its invariants at every step, so a scenario says what happens, and what is to come of it.
"""

from __future__ import annotations

from world import BROKERS, MAX_LAG, STREAM, World

from liftbridge.metadata.broker_operations import Ended
from liftbridge.metadata.replica_operations import ChangeLeaders, LeaderChange, Mode
from liftbridge.metadata.replicas import Refusal
from liftbridge.replication.follower import Append, Follower, Restart, Truncate
from liftbridge.replication.leader import Leader
from liftbridge.replication.lease import Lease


def written(world: World, count: int = 10) -> None:
    """The leader gets records, and everybody has them and knows it."""
    world.publish(world.partition.leader, count)
    world.pump()


def lead(world: World, name: str, *others: str) -> None:
    """`name` is made leader, and it and the others hear of it."""
    assert world.transfer(name).refusal is None
    for each in (name, *others):
        world.learn(each)


def equal(world: World) -> bool:
    a, b, c = (world.nodes[name].log.records for name in BROKERS)
    return a == b == c


def test_r01_two_failovers_in_a_row_leave_no_replica_different():
    world = World(min_isr=1)
    written(world)
    world.publish("a")  # only a has offset 10
    world.crash("a")
    world.fence("a")  # b leads
    assert world.partition.leader == "b"
    world.learn("b")
    world.learn("c")
    world.publish("b", 2)
    world.pump("b", "c")
    lead(world, "c", "b")
    # In the original c would tell a that epoch 1 ends at 10, with a's own 10 in it.
    world.start("a", Ended.CLEAN)
    world.actions.clear()
    world.pump()
    # a's offset 10 is in one batch of its own.
    assert Truncate(10) in world.actions
    assert equal(world)
    assert max(world.nodes["a"].log.records) == 11
    world.settle()


def test_r02_a_follower_with_an_old_high_watermark_keeps_what_is_committed():
    world = World(min_isr=2)
    written(world)
    world.publish("a")
    while world.send("a", "b") | world.send("a", "c"):
        pass
    for name in ("b", "c"):
        while world.deliver("a", name):
            pass
        while world.deliver(name, "a"):
            pass
    # All have offset 10 and a has committed it; b and c were not told yet.
    assert world.nodes["a"].leader.high_watermark == 10
    assert world.nodes["b"].follower.high_watermark == 9
    world.crash("a")
    world.fence("a")
    leader = world.partition.leader
    other = "c" if leader == "b" else "b"
    # The follower hears first, and asks a leader that does not lead yet.
    world.learn(other)
    world.pump(leader, other)
    assert 10 in world.nodes[other].log.records
    world.learn(leader)
    world.connect(other)
    world.pump(leader, other)
    assert world.nodes[leader].leader.high_watermark == 10
    assert Truncate(10) not in world.actions
    world.settle()


def test_r03_a_leader_that_lost_its_tail_does_not_go_on_in_its_old_epoch():
    world = World(min_isr=3)
    written(world, 8)
    for name in BROKERS:
        world.sync(name)
    written(world, 2)
    before = world.partition.leader_epoch
    world.crash("a", power=True)  # 8 and 9 are gone there, and acked
    world.start("a", Ended.UNCLEAN)
    assert world.partition.leader_epoch > before
    assert world.partition.leader != "a"
    assert "a" not in world.partition.isr
    world.unfence("a")
    for name in BROKERS:
        world.learn(name)
    world.publish(world.partition.leader)
    world.pump()
    assert equal(world)
    world.settle()
    assert set(world.exposed) == set(range(11))


def test_r03_the_same_broker_leading_again_has_a_new_epoch():
    world = World(min_isr=1)
    written(world)
    for name in ("b", "c"):
        world.crash(name)
        world.fence(name)
    before = world.partition.leader_epoch
    world.crash("a")
    world.start("a", Ended.CLEAN)
    world.unfence("a")
    assert (world.partition.leader, world.partition.isr) == ("a", ("a",))
    assert world.partition.leader_epoch > before
    world.learn("a")
    world.settle()


def test_r04_a_replica_that_lost_data_does_not_stay_in_sync():
    world = World(min_isr=2)
    written(world)
    world.crash("b", power=True)
    world.start("b", Ended.UNCLEAN)
    assert world.partition.isr == ("a", "c")
    world.unfence("b")
    world.crash("a")
    world.fence("a")
    assert world.partition.leader == "c"
    world.settle()
    assert set(world.exposed) >= set(range(10))


def test_r04_a_disk_that_was_replaced_is_noticed_even_if_its_broker_does_not():
    world = World(min_isr=2)
    written(world)
    world.crash("c")
    world.fence("c")
    world.learn("a")
    world.crash("b")
    world.wipe("b")
    world.start("b", Ended.CLEAN)  # what it says is wrong
    world.doubtful.add("b")
    world.unfence("b")
    assert (world.partition.isr, world.partition.elr) == (("a",), ("b",))
    world.learn("a")
    world.learn("b")
    world.deliver("b", "a")
    # It states less than what is committed, so it is not eligible any more.
    assert world.alter_isr("a").refusal is None
    assert world.partition.elr == ()
    world.crash("a")
    world.fence("a")
    assert world.partition.leader == ""
    world.doubtful.discard("b")
    world.settle()
    assert set(world.exposed) >= set(range(10))


def test_r05_a_leader_for_the_second_time_does_not_know_what_others_had():
    world = World(min_isr=2)
    world.publish("a", 3)
    world.pump()
    world.publish("a", 3)
    world.send("a", "b")
    world.send("a", "c")
    for name in ("b", "c"):
        while world.deliver("a", name):
            pass
        while world.deliver(name, "a"):
            pass
    assert world.nodes["a"].leader.high_watermark == 5
    lead(world, "b", "c", "a")
    lead(world, "a")
    again = world.nodes["a"].leader
    assert again.high_watermark == 5
    world.publish("a")
    assert again.commit() == 5
    assert all(not progress.verified for progress in again.followers.values())
    world.learn("b")
    world.pump("a", "b")
    assert again.high_watermark == 5  # c is in sync, and has said nothing
    world.learn("c")
    world.pump()
    assert again.high_watermark == 6
    world.settle()


def test_r06_a_follower_exposes_no_more_than_it_has():
    world = World(min_isr=1)
    written(world)
    world.crash("b")
    world.fence("b")
    world.learn("a")
    world.publish("a", 5)
    world.pump("a", "c")
    assert world.nodes["a"].leader.high_watermark == 14
    world.start("b", Ended.CLEAN)
    world.pump("b", "a")
    follower = world.nodes["b"].follower
    assert follower.high_watermark == 14
    assert world.nodes["b"].log.next_offset == 15
    world.crash("b", power=True)
    world.doubtful.discard("b")
    world.start("b", Ended.UNCLEAN)
    # The leader tells 14 at once; the log has less.
    world.deliver("b", "a")
    world.deliver("a", "b")
    assert world.nodes["b"].follower.high_watermark < world.nodes["b"].log.next_offset < 15
    world.settle()


def test_r08_who_is_ahead_is_not_caught_up():
    world = World(min_isr=1)
    written(world)
    world.publish("a", 5)  # only there
    world.fence("a")  # it was cut off, and lives
    world.learn("b")
    world.learn("c")
    world.learn("a")
    leader = world.nodes[world.partition.leader].leader
    world.unfence("a")
    world.learn(leader.broker)
    world.deliver("a", leader.broker)
    assert not leader.followers["a"].verified
    assert leader.followers["a"].last_caught_up == float("-inf")
    assert world.alter_isr(leader.broker) is None
    world.pump()
    assert equal(world)
    world.alter_isr(leader.broker)
    assert set(world.partition.isr) == set(BROKERS)
    world.settle()


def test_r09_who_lacks_what_was_committed_is_not_admitted():
    world = World(min_isr=1)
    written(world)
    world.crash("b")
    world.fence("b")
    world.crash("c")
    world.fence("c")
    world.learn("a")
    world.start("b", Ended.CLEAN)
    world.unfence("b")
    world.learn("a")
    world.learn("b")
    world.pump("a", "b")  # caught up now, and lately
    world.now += MAX_LAG / 2
    world.publish("a", 100)  # committed by a alone
    assert world.nodes["a"].leader.high_watermark == 109
    world.state_position("b")
    world.deliver("b", "a")
    assert world.alter_isr("a") is None
    world.pump("a", "b")
    assert world.alter_isr("a").refusal is None
    assert world.partition.isr == ("a", "b")
    world.crash("a")
    world.fence("a")
    assert world.partition.leader == "b"
    world.settle()
    assert len(world.exposed) == 110


def test_r10_under_continuous_load_nobody_is_removed():
    world = World(min_isr=2)
    for _ in range(100):
        world.now += MAX_LAG / 20
        world.publish("a")
        for name in ("b", "c"):
            world.send("a", name, 1)
            while world.deliver("a", name):
                pass
        # Before what they say arrives there is more again.
        world.publish("a")
        for name in ("b", "c"):
            while world.deliver(name, "a"):
                pass
            world.send("a", name)
            while world.deliver("a", name):
                pass
        world.publish("a")
        for name in ("b", "c"):
            while world.deliver(name, "a"):
                pass
        assert world.alter_isr("a") is None
    assert world.partition.isr == BROKERS
    world.settle()


def test_r11_a_change_by_a_leader_that_was_deposed_has_no_effect():
    world = World(min_isr=1)
    written(world)
    world.now += 2 * MAX_LAG
    shrink = world.nodes["a"].leader.propose(world.now)  # of everybody but a
    assert [broker for broker, _ in shrink.isr] == ["a"]
    lead(world, "b")
    before = world.partition
    assert world.decide("a", shrink).refusal is Refusal.LEADER_EPOCH
    assert world.partition == before
    assert world.partition.isr == BROKERS
    world.settle()


def test_r11_a_change_that_was_decided_on_another_state_has_no_effect():
    world = World(min_isr=1)
    written(world)
    world.now += 2 * MAX_LAG
    shrink = world.nodes["a"].leader.propose(world.now)
    world.crash("c")
    world.fence("c")
    assert world.decide("a", shrink).refusal is Refusal.PARTITION_EPOCH
    assert world.partition.isr == ("a", "b")
    world.settle()


def test_r12_a_report_about_the_leader_before_says_nothing_of_this_one():
    # There are no reports to be left over: who decides names the state that it was decided on.
    world = World(min_isr=1)
    written(world)
    before = world.partition.epoch
    lead(world, "b", "a", "c")
    world.pump()
    late = world.apply(ChangeLeaders((LeaderChange(STREAM, 0, before, "c"),)))
    assert late.results[0].refusal is Refusal.PARTITION_EPOCH
    assert world.partition.leader == "b"
    world.settle()


def test_r14_what_is_larger_than_everything_is_sent():
    world = World(min_isr=2)
    world.nodes["a"].log.append(world.partition.leader_epoch, "x" * 10_000_000)
    for name in ("b", "c"):
        assert world.deliver(name, "a")
        assert world.send("a", name, 1)  # the beginning of the epoch
        assert world.send("a", name, 1)
    world.pump()
    assert world.nodes["a"].leader.high_watermark == 0
    assert Append(1) in world.actions
    world.settle()


def test_r15_a_lost_connection_costs_one_statement():
    world = World(min_isr=2)
    written(world)
    world.publish("a", 3)
    world.send("a", "b")
    world.connect("b")  # what was on its way is lost
    world.send("a", "b")
    world.actions.clear()
    assert world.deliver("b", "a")
    assert world.send("a", "b")
    while world.deliver("a", "b"):
        pass
    assert world.nodes["b"].log.next_offset == 13
    world.settle()


def test_a_leader_that_is_cut_off_acks_nothing_by_itself_after_its_lease():
    world = World(min_isr=2)
    lease = Lease(2.0)
    lease.confirmed(0, 0.0)
    written(world)
    leader = world.nodes["a"].leader
    assert leader.acks(lease, 1.0).leader == 9
    world.fence("a")
    world.learn("b")
    world.learn("c")
    world.publish("a")
    assert leader.acks(lease, 2.5).leader == 9
    assert leader.acks(lease, 2.5).all == 9
    world.pump()
    world.learn("a")
    world.pump()
    assert equal(world)
    world.settle()


def test_eligible_replicas_lead_when_nobody_in_sync_is_left():
    world = World(min_isr=2)
    written(world)
    for name in ("c", "b"):
        world.crash(name)
        world.fence(name)
    assert (world.partition.isr, world.partition.elr) == (("a",), ("b",))
    world.crash("a")
    world.fence("a")
    assert (world.partition.leader, world.partition.isr, world.partition.elr) == ("", (), ("a", "b"))
    world.start("c")
    world.unfence("c")
    assert world.partition.leader == ""  # c is not known to have everything
    world.start("b")
    world.unfence("b")
    assert (world.partition.leader, world.partition.isr, world.partition.elr) == ("b", ("b",), ("a",))
    assert world.partition.unclean_epoch == 0
    world.settle()
    assert set(world.exposed) >= set(range(10))


def test_an_unclean_election_is_recorded_and_the_others_follow_it():
    world = World(min_isr=1)
    written(world)
    world.crash("c")
    world.fence("c")
    world.learn("a")
    world.publish("a", 5)
    world.pump("a", "b")
    assert world.nodes["b"].follower.high_watermark == 14
    for name in ("b", "a"):
        world.crash(name)
        world.fence(name)
    world.start("c")
    world.unfence("c")
    assert world.transfer("c").refusal is Refusal.NOT_ELIGIBLE
    assert world.transfer("c", Mode.UNCLEAN).refusal is Refusal.NOT_ALLOWED
    assert world.transfer("c", Mode.FORCED).refusal is None
    assert world.partition.unclean_epoch == world.partition.leader_epoch
    world.learn("c")
    world.publish("c")
    world.start("a")
    world.start("b")
    world.settle()
    assert equal(world)
    assert max(world.exposed) == 10


def test_a_follower_that_was_away_for_longer_than_the_log_lasts_begins_where_it_does():
    world = World(min_isr=1)
    written(world)
    world.crash("c")
    world.fence("c")
    world.learn("a")
    for _ in range(4):
        world.publish("a", 5)
    world.pump("a", "b")
    world.sync("a")
    world.nodes["a"].log.retain(20)
    world.start("c")
    world.pump("a", "c")
    assert Restart(20) in world.actions
    assert min(world.nodes["c"].log.records) == 20
    assert isinstance(world.nodes["c"].role, Follower)
    assert isinstance(world.nodes["a"].role, Leader)
    world.settle()
