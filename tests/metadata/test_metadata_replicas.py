"""In-sync replicas, leaders, brokers: each rule of the state machine."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from metadata_cases import create

from liftbridge.metadata.broker_operations import (
    DrainBroker,
    Ended,
    FenceBroker,
    RegisterBroker,
    UnfenceBroker,
    UnregisterBroker,
    WithdrawReplicas,
)
from liftbridge.metadata.brokers import REMOVED_KEPT, BrokerState
from liftbridge.metadata.elections import most_complete
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.model import Guarantees
from liftbridge.metadata.placement import Placement
from liftbridge.metadata.replica_operations import (
    AlterIsr,
    ChangeLeaders,
    IsrChange,
    LeaderChange,
    Mode,
    Reassignment,
    ReassignPartitions,
)
from liftbridge.metadata.replicas import Refusal, preferred_leaders, wished_leaders
from liftbridge.metadata.state import ClusterState

STREAM = uuid.UUID(int=1)


class Cluster:
    """A state with brokers a, b, c, ... and one partition on a, b and c, led by a."""

    def __init__(self, brokers: str = "abc", *, partitions: int = 1, racks=None, **guarantees) -> None:
        self.state = ClusterState()
        for name in brokers:
            self.register(name, rack=(racks or {}).get(name, ""))
            self.unfence(name)
        placed = (Placement(("a", "b", "c"), "a"),) * partitions
        self.apply(create(partitions=placed, guarantees=Guarantees(**guarantees)))

    @property
    def index(self) -> int:
        return self.state.applied_index

    @property
    def partition(self):
        return self.state.partition("orders", 0)

    def apply(self, operation):
        return self.state.apply(self.index + 1, operation)

    def epoch(self, name):
        return self.state.brokers[name].epoch

    def register(self, name, ended=Ended.CLEAN, **changes):
        return self.apply(RegisterBroker(name, uuid.UUID(int=1000 + self.index), ended=ended, **changes))

    def unfence(self, name):
        return self.apply(UnfenceBroker(name, self.epoch(name)))

    def fence(self, *names, wishes=()):
        for name in names:
            self.apply(FenceBroker(name, self.epoch(name), wishes))

    def isr(self, *members, **changes):
        partition = self.partition
        values = {
            "stream_id": STREAM,
            "partition": 0,
            "epoch": partition.epoch,
            "leader": partition.leader,
            "leader_epoch": partition.leader_epoch,
            "isr": tuple((name, self.epoch(name)) for name in members),
        }
        return self.apply(AlterIsr((IsrChange(**{**values, **changes}),))).results[0]

    def lead(self, name, mode=Mode.CLEAN, **changes):
        change = LeaderChange(STREAM, 0, self.partition.epoch, name, mode)
        return self.apply(ChangeLeaders((dataclasses.replace(change, **changes),))).results[0]

    def move(self, *replicas, **changes):
        change = Reassignment(STREAM, 0, self.partition.epoch, replicas)
        return self.apply(ReassignPartitions((dataclasses.replace(change, **changes),))).results[0]


# -- in-sync replicas


def test_the_leader_changes_the_in_sync_replicas():
    cluster = Cluster()
    before = cluster.partition
    result = cluster.isr("c", "a")
    assert result.refusal is None
    assert result.partition == cluster.partition
    assert cluster.partition.isr == ("a", "c")
    assert cluster.partition.epoch == cluster.index
    assert cluster.partition.leader_epoch == before.leader_epoch


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"stream_id": uuid.UUID(int=2)}, Refusal.NO_PARTITION),
        ({"partition": 1}, Refusal.NO_PARTITION),
        ({"epoch": 1}, Refusal.PARTITION_EPOCH),
        ({"leader": "b"}, Refusal.LEADER),
        ({"leader_epoch": 1}, Refusal.LEADER_EPOCH),
        ({"isr": (("a", 1), ("b", 2))}, Refusal.BROKER_EPOCH),
        ({"isr": (("a", 1), ("z", 2))}, Refusal.NOT_A_REPLICA),
        ({"isr": (("b", 3),)}, Refusal.LEADER_NOT_IN_SYNC),
        ({"isr": ()}, Refusal.LEADER_NOT_IN_SYNC),
    ],
)
def test_what_was_decided_on_another_state_has_no_effect(changes, refusal):
    cluster = Cluster()
    before = cluster.partition
    result = cluster.isr("a", "b", **changes)
    assert result.refusal is refusal
    assert cluster.partition is before


def test_one_refusal_says_nothing_of_the_rest_of_a_batch():
    cluster = Cluster(partitions=2)
    good = IsrChange(STREAM, 1, cluster.partition.epoch, "a", cluster.partition.epoch, (("a", 1),))
    bad = dataclasses.replace(good, partition=0, epoch=1)
    results = cluster.apply(AlterIsr((bad, good))).results
    assert [result.refusal for result in results] == [Refusal.PARTITION_EPOCH, None]
    assert cluster.state.partition("orders", 1).isr == ("a",)


def test_a_fenced_broker_is_not_admitted():
    cluster = Cluster()
    cluster.fence("c")
    assert cluster.isr("a", "b", "c").refusal is Refusal.NOT_ALIVE


# -- eligible leader replicas


def test_who_leaves_when_too_few_stay_is_eligible():
    cluster = Cluster(min_isr=2)
    cluster.isr("a", "b")
    assert cluster.partition.elr == ()
    cluster.isr("a")
    assert cluster.partition.elr == ("b",)
    cluster.isr("a", "c")
    assert cluster.partition.elr == ()


def test_who_has_lost_something_is_not_eligible():
    cluster = Cluster(min_isr=2)
    cluster.isr("a", lost=("c",))
    assert cluster.partition.elr == ("b",)


def test_an_eligible_replica_leads_when_nobody_in_sync_can():
    cluster = Cluster(min_isr=2)
    cluster.fence("c", "b", "a")
    assert cluster.partition.leader == ""
    assert cluster.partition.elr == ("a", "b")
    cluster.unfence("c")
    assert cluster.partition.leader == ""
    cluster.unfence("b")
    partition = cluster.partition
    assert (partition.leader, partition.isr, partition.elr) == ("b", ("b",), ("a",))
    assert (partition.leader_epoch, partition.epoch) == (cluster.index, cluster.index)
    assert partition.unclean_epoch == 0


# -- fencing


def test_fencing_a_broker_moves_all_that_it_leads_and_takes_it_out_everywhere():
    cluster = Cluster(partitions=4)
    before = cluster.partition.leader_epoch
    cluster.fence("a")
    partitions = cluster.state.stream("orders").partitions
    assert all(partition.isr == ("b", "c") for partition in partitions)
    assert all(partition.leader_epoch == cluster.index > before for partition in partitions)
    # Each takes half, as what a batch gives out counts at once.
    assert sorted(partition.leader for partition in partitions) == ["b", "b", "c", "c"]


def test_fencing_a_follower_leaves_the_leader_its_epoch():
    cluster = Cluster()
    before = cluster.partition
    cluster.fence("c")
    after = cluster.partition
    assert (after.leader, after.leader_epoch) == (before.leader, before.leader_epoch)
    assert (after.isr, after.epoch) == (("a", "b"), cluster.index)


def test_a_fenced_broker_leads_nothing():
    cluster = Cluster()
    cluster.fence("b")
    assert cluster.lead("b").refusal is Refusal.NOT_ALIVE
    cluster.fence("a")
    assert cluster.partition.leader == "c"


def test_who_is_wished_for_leads_if_it_may():
    cluster = Cluster()
    cluster.fence("a", wishes=((STREAM, 0, "c"),))
    assert cluster.partition.leader == "c"
    cluster = Cluster()
    cluster.isr("a", "b")
    cluster.fence("a", wishes=((STREAM, 0, "c"),))
    assert cluster.partition.leader == "b"


def test_who_has_synced_most_is_wished_for():
    cluster = Cluster(partitions=3)
    streams, registry = cluster.state.streams, cluster.state.registry
    synced = {(STREAM, 0): {"a": 9, "b": 5, "c": 7}, (STREAM, 1): {"b": 5, "c": 5}}
    wishes = wished_leaders(streams, registry, "a", synced)
    assert wishes == ((STREAM, 0, "c"),)
    assert wished_leaders(streams, registry, "b", synced) == ()
    cluster.fence("a", wishes=wishes)
    assert cluster.partition.leader == "c"


def test_of_equals_one_in_another_rack_leads():
    cluster = Cluster(racks={"a": "east", "b": "east", "c": "west"})
    cluster.fence("a")
    assert cluster.partition.leader == "c"


def test_an_earlier_run_of_a_broker_is_not_fenced_again():
    cluster = Cluster()
    old = cluster.epoch("a")
    cluster.register("a")
    with pytest.raises(MetadataError, match="has registered anew") as caught:
        cluster.apply(FenceBroker("a", old))
    assert caught.value.code is MetadataCode.FAILED_PRECONDITION
    with pytest.raises(MetadataError, match="No such broker"):
        cluster.apply(FenceBroker("z", 1))


# -- registration


def test_a_broker_that_registers_is_fenced_and_its_leaderships_go():
    cluster = Cluster()
    before = cluster.partition.leader_epoch
    changed = cluster.register("a", addresses=("a:9292",), feature_level=3)
    assert changed.broker.state is BrokerState.FENCED
    assert changed.broker.epoch == cluster.index
    assert changed.broker.addresses == ("a:9292",)
    assert [result.partition for result in changed.results] == [cluster.partition]
    assert cluster.partition.leader == "b"
    assert cluster.partition.leader_epoch > before


def test_registering_twice_in_one_run_does_nothing():
    cluster = Cluster()
    operation = RegisterBroker("a", uuid.UUID(int=5))
    cluster.apply(operation)
    cluster.unfence("a")
    before = cluster.state.brokers["a"], cluster.partition
    changed = cluster.apply(operation)
    assert (cluster.state.brokers["a"], cluster.partition) == before
    assert changed.results == ()


@pytest.mark.parametrize(
    ("ended", "synced", "eligible"),
    [
        (Ended.CLEAN, False, True),
        (Ended.UNCLEAN, False, False),
        (Ended.UNCLEAN, True, True),
        (Ended.LOST, True, False),
    ],
)
def test_who_may_have_lost_something_is_not_eligible_when_it_registers(ended, synced, eligible):
    cluster = Cluster(min_isr=2, synced=synced)
    cluster.fence("c")
    cluster.register("b", ended)
    assert cluster.partition.isr == ("a",)
    assert cluster.partition.elr == (("b",) if eligible else ())


def test_who_was_eligible_and_may_have_lost_something_is_so_no_more():
    cluster = Cluster(min_isr=2)
    cluster.fence("c", "b")
    assert cluster.partition.elr == ("b",)
    cluster.register("b", Ended.UNCLEAN)
    assert cluster.partition.elr == ()
    cluster.fence("a")
    cluster.unfence("b")
    assert cluster.partition.leader == ""


def test_the_only_replica_leads_again_with_what_it_has_left_and_it_is_recorded():
    cluster = Cluster()
    cluster.isr("a")
    cluster.register("a", Ended.UNCLEAN)
    assert (cluster.partition.leader, cluster.partition.isr) == ("", ())
    assert cluster.partition.last_known == ("a",)
    cluster.unfence("b")
    assert cluster.partition.leader == ""
    cluster.unfence("a")
    partition = cluster.partition
    assert (partition.leader, partition.isr, partition.last_known) == ("a", ("a",), ())
    assert partition.unclean_epoch == partition.leader_epoch == cluster.index


def test_a_replica_with_an_empty_disk_does_not_lead_by_itself():
    cluster = Cluster()
    cluster.isr("a")
    cluster.register("a", Ended.LOST)
    cluster.unfence("a")
    assert cluster.partition.leader == ""
    assert cluster.partition.last_known == ()


def test_the_most_complete_of_several_leads_when_all_can_be_asked():
    cluster = Cluster(min_isr=2)
    cluster.fence("c")
    for name in ("a", "b"):
        cluster.register(name, Ended.UNCLEAN)
    assert cluster.partition.last_known == ("a", "b")
    cluster.unfence("a")
    assert cluster.lead("a", Mode.RECOVERED).refusal is Refusal.NOT_ALLOWED
    cluster.unfence("b")
    assert cluster.lead("c", Mode.RECOVERED).refusal is Refusal.NOT_ALIVE
    assert cluster.lead("b", Mode.RECOVERED).refusal is None
    assert cluster.partition.unclean_epoch == cluster.index


def test_the_most_complete_has_the_highest_epoch_and_then_the_highest_offset():
    assert most_complete({"a": (3, 10), "b": (4, 5), "c": (4, 6)}) == "c"
    assert most_complete({"a": (4, 6), "b": (4, 6)}, ("b", "a")) == "b"


# -- other leaders


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"epoch": 1}, Refusal.PARTITION_EPOCH),
        ({"leader": "d"}, Refusal.NOT_A_REPLICA),
        ({"leader": "c"}, Refusal.NOT_ELIGIBLE),
        ({"leader": "c", "mode": Mode.FORCED}, Refusal.NOT_ALLOWED),  # there are others
        ({"leader": "b"}, None),
    ],
)
def test_a_leader_is_chosen_among_those_in_sync(changes, refusal):
    cluster = Cluster("abcd")
    cluster.isr("a", "b")
    assert cluster.lead("b", **changes).refusal is refusal


def test_an_election_that_may_cost_something_has_to_be_allowed():
    for unclean in (False, True):
        cluster = Cluster(unclean_election=unclean)
        cluster.isr("a", "b")
        cluster.fence("a", "b")
        assert cluster.lead("c").refusal is Refusal.NOT_ELIGIBLE
        assert (cluster.lead("c", Mode.UNCLEAN).refusal is None) == unclean
    cluster = Cluster()
    cluster.isr("a", "b")
    cluster.fence("a", "b")
    assert cluster.lead("c", Mode.FORCED).refusal is None
    partition = cluster.partition
    assert (partition.leader, partition.isr, partition.elr) == ("c", ("c",), ())
    assert partition.unclean_epoch == cluster.index


def test_preferred_leaders_are_those_in_sync_that_are_the_first_replica():
    cluster = Cluster()
    assert preferred_leaders(cluster.state.streams, cluster.state.registry) == ()
    cluster.fence("a")
    cluster.unfence("a")
    assert preferred_leaders(cluster.state.streams, cluster.state.registry) == ()
    cluster.isr("a", "b", "c")
    changes = preferred_leaders(cluster.state.streams, cluster.state.registry)
    assert [(change.leader, change.epoch) for change in changes] == [("a", cluster.index)]
    cluster.apply(ChangeLeaders(changes))
    assert cluster.partition.leader == "a"


# -- going


def test_a_broker_that_drains_gives_leaderships_to_others_and_stays_in_sync():
    cluster = Cluster()
    changed = cluster.apply(DrainBroker("a", cluster.epoch("a")))
    assert changed.broker.state is BrokerState.DRAINING
    assert cluster.partition.leader == "b"
    assert cluster.partition.isr == ("a", "b", "c")
    cluster.fence("b")
    assert cluster.partition.leader == "c"
    cluster.fence("c")
    assert cluster.partition.leader == "a"  # nobody else can
    cluster.unfence("a")
    assert cluster.state.brokers["a"].state is BrokerState.DRAINING


def test_a_broker_that_is_removed_holds_nothing_and_does_not_come_back():
    cluster = Cluster("abcd")
    with pytest.raises(MetadataError, match="holds replicas"):
        cluster.apply(UnregisterBroker("a", cluster.epoch("a")))
    cluster.apply(UnregisterBroker("d", cluster.epoch("d")))
    with pytest.raises(MetadataError, match="was removed"):
        cluster.register("d")
    with pytest.raises(MetadataError, match="was removed"):
        cluster.unfence("d")


def test_only_the_last_removed_brokers_are_remembered():
    cluster = Cluster()
    for number in range(REMOVED_KEPT + 1):
        cluster.register(f"x{number}")
        cluster.apply(UnregisterBroker(f"x{number}", cluster.epoch(f"x{number}")))
    assert "x0" not in cluster.state.brokers
    assert len(cluster.state.brokers) == REMOVED_KEPT + 3


def test_a_replica_that_is_given_up_leads_no_more():
    cluster = Cluster(min_isr=3, partitions=2)
    changed = cluster.apply(WithdrawReplicas("a", cluster.epoch("a"), ((STREAM, 0), (STREAM, 7)), lost=False))
    assert [result.partition_id for result in changed.results] == [0]
    assert (cluster.partition.leader, cluster.partition.elr) == ("b", ("a",))
    assert cluster.state.partition("orders", 1).leader == "a"
    cluster.apply(WithdrawReplicas("a", cluster.epoch("a"), ((STREAM, 0),), lost=True))
    assert cluster.partition.elr == ()


# -- moving


def test_a_replica_moves_when_the_new_one_is_in_sync():
    cluster = Cluster("abcd")
    assert cluster.move("b", "c", "d").refusal is None
    partition = cluster.partition
    assert partition.replicas == ("b", "c", "d", "a")
    assert (partition.adding, partition.removing) == (("d",), ("a",))
    assert (partition.leader, partition.isr) == ("a", ("a", "b", "c"))
    cluster.isr("a", "b", "c", "d")
    partition = cluster.partition
    assert partition.replicas == ("b", "c", "d")
    assert (partition.adding, partition.removing) == ((), ())
    assert (partition.leader, partition.isr) == ("b", ("b", "c", "d"))
    assert partition.leader_epoch == cluster.index


def test_fewer_replicas_are_fewer_at_once():
    cluster = Cluster(min_isr=2)
    cluster.move("a", "b")
    assert cluster.partition.replicas == cluster.partition.isr == ("a", "b")
    assert cluster.partition.leader_epoch < cluster.index


def test_naming_the_old_replicas_ends_a_move():
    cluster = Cluster("abcd")
    cluster.move("b", "c", "d")
    cluster.move("a", "b", "c")
    partition = cluster.partition
    assert (partition.replicas, partition.adding, partition.removing) == (("a", "b", "c"), (), ())
    assert partition.leader == "a"


@pytest.mark.parametrize("replicas", [(), ("a", "a"), ("a", "z")])
def test_replicas_are_brokers_of_the_cluster(replicas):
    cluster = Cluster()
    assert cluster.move(*replicas).refusal is Refusal.INVALID
    assert cluster.move("a", epoch=1).refusal is Refusal.PARTITION_EPOCH


# -- streams


def test_a_new_stream_has_in_sync_replicas_that_are_alive():
    cluster = Cluster()
    cluster.fence("c")
    stream = cluster.apply(create("other", 2, partitions=(Placement(("a", "b", "c"), "a"),)))
    assert stream.partitions[0].isr == ("a", "b")
    with pytest.raises(MetadataError, match="is fenced"):
        cluster.apply(create("third", 3, partitions=(Placement(("a", "c"), "c"),)))


def test_what_nobody_leads_counts_for_nobody():
    cluster = Cluster()
    cluster.fence("a", "b", "c")
    assert [cluster.state.load(name).leaders for name in ("a", "b", "c", "")] == [0, 0, 0, 0]
