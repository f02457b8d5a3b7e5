"""What the controller decides: sessions, fences, who leads instead, drains, preferred leaders."""

from __future__ import annotations

import pytest
from controlled import STREAM, TICK, WHERE, Controlled

from liftbridge.metadata.broker_operations import (
    DrainBroker,
    Ended,
    FenceBroker,
    UnfenceBroker,
    UnregisterBroker,
    WithdrawReplicas,
)
from liftbridge.metadata.brokers import BrokerState
from liftbridge.metadata.control import (
    BROKERS_AT_ONCE,
    CHANGES_AT_ONCE,
    MOVES_AT_ONCE,
    Control,
    Heard,
    Position,
)
from liftbridge.metadata.replica_operations import ChangeLeaders, LeaderChange, Mode

# -- sessions


def test_who_is_not_heard_of_for_the_session_time_is_fenced():
    cluster = Controlled()
    cluster.up = {"b", "c"}
    assert cluster.run(3.0 - TICK) == []
    assert cluster.run(TICK) == [FenceBroker("a", cluster.epoch("a"))]
    assert cluster.partition.isr == ("b", "c")
    assert cluster.partition.leader == "b"


def test_next_due_is_in_time_for_the_end_of_a_session():
    cluster = Controlled()
    end = cluster.now + 3.0
    while not (operations := cluster.due()):
        cluster.now = cluster.control.next_due()
        assert cluster.now <= end
        for name in "bc":
            cluster.beat(name)
    assert cluster.now == end
    assert operations == [FenceBroker("a", cluster.epoch("a"))]


def test_a_new_controller_fences_nobody_for_the_time_before():
    cluster = Controlled()
    cluster.up = set()
    cluster.now += 1000
    cluster.begin()
    assert cluster.run(3.0 - TICK) == []
    assert {operation.broker for operation in cluster.run(TICK)} == {"a", "b", "c"}


def test_a_controller_that_was_away_itself_fences_nobody_for_that_time():
    cluster = Controlled()
    cluster.run(10)
    cluster.now += 60
    assert cluster.due() == []
    cluster.up = {"a", "b"}
    assert cluster.run(3.0 - TICK) == []
    assert cluster.run(TICK) == [FenceBroker("c", cluster.epoch("c"))]


def test_who_is_heard_again_is_unfenced():
    cluster = Controlled()
    cluster.up = {"b", "c"}
    cluster.run(4)
    assert cluster.is_("a", BrokerState.FENCED)
    cluster.up = {"a", "b", "c"}
    assert cluster.beat("a") is Heard.FENCED
    assert cluster.control.next_due() <= cluster.now
    assert cluster.due() == [UnfenceBroker("a", cluster.epoch("a"))]


def test_who_has_started_is_unfenced_when_it_is_heard_and_not_before():
    cluster = Controlled()
    cluster.register("a")
    assert cluster.due() == []
    assert cluster.beat("a") is Heard.FENCED
    assert cluster.due() == [UnfenceBroker("a", cluster.epoch("a"))]


def test_who_was_heard_long_ago_is_not_unfenced():
    cluster = Controlled()
    cluster.register("a")
    cluster.beat("a")
    cluster.up = {"b", "c"}
    # Its operation is lost, and it is heard of no more.
    assert cluster.due() == [UnfenceBroker("a", cluster.epoch("a"))]
    assert cluster.run(10) == []


def test_what_a_heartbeat_is_worth():
    cluster = Controlled()
    old = cluster.epoch("a")
    assert cluster.beat("a") is Heard.CONFIRMED
    assert cluster.control.heard("z", 1, cluster.now) is Heard.UNKNOWN
    assert cluster.control.heard("a", old + 100, cluster.now) is Heard.UNKNOWN
    cluster.register("a")
    assert cluster.control.heard("a", old, cluster.now) is Heard.REGISTERED_ANEW
    assert cluster.due() == []  # what the old run says is no sign of the new one
    cluster = Controlled("abcd")
    cluster.apply(UnregisterBroker("d", cluster.epoch("d")))
    assert cluster.beat("d") is Heard.REMOVED


def test_no_heartbeat_is_confirmed_while_a_fence_is_on_its_way():
    cluster = Controlled()
    cluster.up = {"b", "c"}
    cluster.run(3.0 - TICK)
    cluster.now += TICK
    (fence,) = cluster.due()
    assert isinstance(fence, FenceBroker)
    assert cluster.beat("a") is Heard.FENCED
    # Nor after a long time: it may still take effect. It is asked for again, as it cannot be taken back.
    for _ in range(8):
        cluster.now += 0.5
        assert cluster.beat("a") is Heard.FENCED
        again = [operation for operation in cluster.due() if operation == fence]
    cluster.beat("b")
    assert cluster.beat("a") is Heard.FENCED
    # Until it is known that it has no effect.
    cluster.control.resolved(fence, cluster.now)
    assert cluster.beat("a") is Heard.CONFIRMED
    assert again in ([], [fence])


def test_an_operation_that_is_on_its_way_is_not_proposed_again_before_a_time_has_passed():
    cluster = Controlled()
    cluster.up = {"b", "c"}
    cluster.run(3.0 - TICK)
    found = []
    for _ in range(24):
        cluster.now += TICK
        for name in "bc":
            cluster.beat(name)
        found += [(cluster.now, operation) for operation in cluster.due()]
    assert [operation for _, operation in found] == [FenceBroker("a", cluster.epoch("a"))] * 2
    assert found[1][0] - found[0][0] == 3.0


def test_brokers_are_fenced_in_lots():
    names = "".join(chr(ord("A") + number) for number in range(BROKERS_AT_ONCE + 5))
    cluster = Controlled(names)
    cluster.up = set()
    cluster.run(3.0 - TICK)
    cluster.now += TICK
    assert len(cluster.due()) == BROKERS_AT_ONCE
    assert cluster.control.next_due() <= cluster.now
    assert len(cluster.due()) == 5


def test_of_two_that_are_silent_neither_is_to_lead_instead_of_the_other():
    cluster = Controlled(partitions=3)
    cluster.up = {"c"}
    done = cluster.run(3.0)
    assert [operation.broker for operation in done] == ["a", "b"]
    assert done[0].wishes == tuple((STREAM, number, "c") for number in range(3))
    assert cluster.partition.leader == "c"
    assert cluster.partition.leader_epoch == cluster.partition.epoch - 1  # of the first of both


# -- partitions without a leader


def test_the_eligible_replica_that_comes_back_leads():
    cluster = Controlled(min_isr=2)
    cluster.up = set()
    cluster.run(4)
    assert (cluster.partition.leader, set(cluster.partition.elr)) == ("", {"b", "c"})
    cluster.up = {"b"}
    cluster.run(TICK)
    assert cluster.partition.leader == "b"
    assert cluster.partition.unclean_epoch == 0


def test_an_eligible_replica_that_is_there_leads():
    cluster = Controlled(min_isr=2)
    cluster.isr("a", "b")
    cluster.isr("a")
    cluster.up = {"a", "c"}
    cluster.run(4)
    cluster.apply(WithdrawReplicas("a", cluster.epoch("a"), (WHERE,)))
    partition = cluster.partition
    assert (partition.leader, set(partition.elr)) == ("", {"a", "b"})
    done = cluster.run(TICK)
    assert done == [ChangeLeaders((LeaderChange(STREAM, 0, partition.epoch, "a"),))]
    assert cluster.partition.leader == "a"


def lose_power(cluster: Controlled, *names: str) -> None:
    """All brokers stop without a proof of their end; those come back."""
    cluster.up = set(names)
    for name in "abc":
        cluster.register(name, Ended.UNCLEAN)


def test_the_most_complete_of_the_last_known_replicas_leads_when_all_have_answered():
    cluster = Controlled(min_isr=2)
    lose_power(cluster, "a", "b")
    cluster.run(TICK)
    # A had registered when the others were in sync still.
    assert cluster.partition.last_known == ("b", "c")
    # One is still away.
    assert cluster.control.wanted() == {}
    cluster.up = {"a", "b", "c"}
    cluster.run(TICK)
    assert dict(cluster.control.wanted()) == {name: [WHERE] for name in "bc"}
    cluster.state_positions("b", b=(1, 9))
    assert dict(cluster.control.wanted()) == {"c": [WHERE]}
    assert cluster.run(10) == []
    cluster.state_positions("c", c=(2, 5))
    assert cluster.control.next_due() <= cluster.now
    cluster.run(TICK)
    assert cluster.partition.leader == "c"
    assert cluster.partition.unclean_epoch == cluster.partition.leader_epoch
    assert cluster.control.wanted() == {}


def test_who_has_lost_more_is_not_chosen():
    cluster = Controlled(min_isr=2)
    lose_power(cluster, "a", "b", "c")
    cluster.run(TICK)
    cluster.state_positions(b=(1, 9), c=(1, 8), lost="b")
    cluster.run(TICK)
    assert cluster.partition.leader == "c"


def test_when_all_have_lost_more_nobody_leads():
    cluster = Controlled(min_isr=2)
    lose_power(cluster, "a", "b", "c")
    cluster.run(TICK)
    cluster.state_positions(lost="bc")
    assert cluster.run(20) == []


def test_of_equals_the_one_with_most_on_disk_leads():
    cluster = Controlled(min_isr=2)
    lose_power(cluster, "a", "b", "c")
    cluster.run(TICK)
    for name, synced in (("b", 3), ("c", 5)):
        position = Position(1, 9, synced, False)
        cluster.control.stated(name, cluster.epoch(name), {WHERE: position})
    cluster.run(TICK)
    assert cluster.partition.leader == "c"


def test_a_position_of_another_run_does_not_count():
    cluster = Controlled(min_isr=2)
    lose_power(cluster, "a", "b", "c")
    cluster.run(TICK)
    old = cluster.epoch("c")
    cluster.state_positions("c", c=(9, 9))
    cluster.register("c", Ended.UNCLEAN)
    cluster.run(TICK)
    cluster.state_positions("b", b=(1, 1))
    cluster.run(TICK)
    assert cluster.partition.leader == ""
    cluster.control.stated("c", old, {WHERE: Position(9, 9, 9, False)})
    assert dict(cluster.control.wanted()) == {"c": [WHERE]}
    cluster.state_positions("c", c=(0, 0))
    cluster.run(TICK)
    assert cluster.partition.leader == "b"


def test_what_nobody_asked_is_not_kept():
    cluster = Controlled(min_isr=2)
    cluster.control.stated("a", cluster.epoch("a"), {WHERE: Position(9, 9, 9, False)})
    cluster.control.stated("z", 1, {WHERE: Position(9, 9, 9, False)})
    lose_power(cluster, "a", "b", "c")
    cluster.run(TICK)
    assert set(cluster.control.wanted()) == {"b", "c"}


def unclean_cluster() -> Controlled:
    """A is the only replica that has everything, and does not come back; b and c are there."""
    cluster = Controlled(min_isr=1, unclean_election=True)
    cluster.isr("a")
    cluster.up = {"b", "c"}
    cluster.run(3.0 + TICK)
    assert (cluster.partition.leader, cluster.partition.elr) == ("", ("a",))
    return cluster


def test_an_unclean_election_waits_for_who_may_come_back():
    cluster = unclean_cluster()
    cluster.state_positions(b=(1, 4), c=(1, 6))
    assert cluster.run(3.0 - 2 * TICK) == []
    cluster.up = {"a", "b", "c"}
    cluster.run(TICK)
    assert cluster.partition.leader == "a"
    assert cluster.partition.unclean_epoch == 0


def test_an_unclean_election_chooses_the_most_complete():
    cluster = unclean_cluster()
    cluster.state_positions(b=(1, 4), c=(1, 6))
    done = cluster.run(3.0)
    assert [change.mode for operation in done for change in operation.changes] == [Mode.UNCLEAN]
    assert cluster.partition.leader == "c"


def test_an_unclean_election_does_not_wait_for_ever_for_an_answer():
    cluster = unclean_cluster()
    cluster.state_positions("b")
    assert cluster.run(4.0) == []
    cluster.run(2.0)
    assert cluster.partition.leader == "b"


def test_no_unclean_election_unless_the_stream_allows_it():
    cluster = Controlled(min_isr=1)
    cluster.isr("a")
    cluster.up = {"b", "c"}
    cluster.run(4.0)
    assert cluster.control.wanted() == {}
    cluster.state_positions()
    assert cluster.run(20.0) == []


def test_leaders_change_in_lots():
    cluster = Controlled(partitions=CHANGES_AT_ONCE + 10, min_isr=1)
    everywhere = tuple((STREAM, number) for number in range(CHANGES_AT_ONCE + 10))
    for number in range(CHANGES_AT_ONCE + 10):
        cluster.isr("a", partition=number)
    cluster.apply(WithdrawReplicas("a", cluster.epoch("a"), everywhere))
    (first,) = cluster.due()
    assert len(first.changes) == CHANGES_AT_ONCE
    assert cluster.control.next_due() <= cluster.now
    (second,) = cluster.due()
    assert len(second.changes) == 10


# -- leaving


def test_who_leaves_leads_no_more_and_is_fenced_then():
    cluster = Controlled(min_isr=2)
    cluster.leaving = {"a"}
    done = cluster.run(1.0)
    epoch = cluster.epoch("a")
    assert done == [DrainBroker("a", epoch), FenceBroker("a", epoch)]
    assert cluster.partition.leader == "b"
    assert cluster.partition.isr == ("b", "c")
    # It is still there, and stays fenced.
    assert cluster.run(5.0) == []


def test_who_leaves_waits_for_another_to_be_in_sync():
    cluster = Controlled(min_isr=2)
    cluster.isr("a")
    cluster.leaving = {"a"}
    assert [type(each) for each in cluster.run(1.0)] == [DrainBroker]
    cluster.isr("a", "b")
    done = cluster.run(1.0)
    assert [type(each) for each in done] == [ChangeLeaders]
    assert cluster.partition.leader == "b"
    # Without it there would be one in sync, and nothing could be acked.
    cluster.isr("a", "b", "c")
    assert [type(each) for each in cluster.run(1.0)] == [FenceBroker]


def test_who_leaves_is_let_go_when_another_leads_and_not_before():
    cluster = Controlled(min_isr=1)
    cluster.isr("a")
    cluster.leaving = {"a"}
    cluster.run(1.0)
    cluster.isr("a", "b")
    assert [type(each) for each in cluster.run(1.0)] == [ChangeLeaders, FenceBroker]


def test_who_leaves_does_not_wait_for_ever():
    cluster = Controlled(min_isr=2)
    cluster.isr("a")
    cluster.leaving = {"a"}
    assert [type(each) for each in cluster.run(11.0)] == [DrainBroker]
    assert [type(each) for each in cluster.run(2.0)] == [FenceBroker]


def test_who_leaves_alone_waits_for_nobody():
    cluster = Controlled(min_isr=1)
    cluster.up = {"a"}
    cluster.run(4.0)
    cluster.leaving = {"a"}
    assert [type(each) for each in cluster.run(1.0)] == [DrainBroker, FenceBroker]
    assert cluster.partition.elr == ("a",)


def test_nobody_who_leaves_is_to_lead_instead():
    cluster = Controlled(min_isr=1)
    cluster.leaving = {"a", "b"}
    cluster.run(1.0)
    assert cluster.partition.leader == "c"
    assert cluster.partition.isr == ("c",)


# -- preferred leaders


def test_the_preferred_leader_leads_again_when_it_has_been_there_for_a_while():
    cluster = Controlled()
    cluster.up = {"b", "c"}
    cluster.run(4)
    assert cluster.partition.leader == "b"
    cluster.up = {"a", "b", "c"}
    cluster.run(1)
    cluster.isr("a", "b", "c")
    assert cluster.run(10.5) == []
    done = cluster.run(5)
    assert [type(each) for each in done] == [ChangeLeaders]
    assert cluster.partition.leader == "a"


def test_leaderships_move_back_a_few_at_a_time():
    cluster = Controlled(partitions=2 * MOVES_AT_ONCE + 1)
    for number in range(2 * MOVES_AT_ONCE + 1):
        epoch = cluster.state.partition("orders", number).epoch
        cluster.apply(ChangeLeaders((LeaderChange(STREAM, number, epoch, "b"),)))
    done = cluster.run(12)
    assert [len(each.changes) for each in done] == [MOVES_AT_ONCE]
    done = cluster.run(6)
    assert [len(each.changes) for each in done] == [MOVES_AT_ONCE, 1]
    assert cluster.state.load("b").leaders == 0


@pytest.mark.parametrize("how", ["silent", "leaving", "not in sync"])
def test_leaderships_do_not_move_to_who_is_not_quite_there(how):
    cluster = Controlled()
    cluster.run(13)
    cluster.apply(ChangeLeaders((LeaderChange(STREAM, 0, cluster.partition.epoch, "b"),)))
    if how == "silent":
        cluster.up = {"b", "c"}
    elif how == "leaving":
        cluster.leaving = {"a"}
    else:
        cluster.isr("b", "c")
    done = cluster.run(10)
    assert not [each for each in done if isinstance(each, ChangeLeaders)]


def test_a_control_without_brokers_has_nothing_to_do():
    cluster = Controlled()
    empty = Control(type(cluster.state)(), 5.0)
    assert empty.due(5.0) == []
    assert 5.0 < empty.next_due() <= 5.0 + 3.0
