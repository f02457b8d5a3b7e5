"""Placement spreads, also within one request, and is a function of its input."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from liftbridge.metadata.placement import BrokerLoad, Placement, place

broker_loads = st.lists(
    st.builds(BrokerLoad, st.text(min_size=1, max_size=3), st.integers(0, 50), st.integers(0, 50)),
    min_size=1,
    max_size=6,
    unique_by=lambda load: load.broker,
)


def test_partitions_of_one_request_go_to_different_brokers():
    idle = [BrokerLoad(broker, 0, 0) for broker in ("c", "a", "b")]
    assert place(3, 1, idle) == (
        Placement(("a",), "a"),
        Placement(("b",), "b"),
        Placement(("c",), "c"),
    )


def test_the_least_loaded_brokers_are_taken_and_the_one_that_leads_least_leads():
    loads = [BrokerLoad("a", 5, 0), BrokerLoad("b", 1, 4), BrokerLoad("c", 2, 3)]
    assert place(1, 2, loads) == (Placement(("b", "c"), "c"),)


@given(broker_loads, st.integers(1, 40), st.data())
def test_placement_is_valid_and_balanced(loads, partitions, data):
    factor = data.draw(st.integers(1, len(loads)))
    placements = place(partitions, factor, loads)

    assert len(placements) == partitions
    known = {load.broker for load in loads}
    for placement in placements:
        assert placement.leader in placement.replicas
        assert len(set(placement.replicas)) == factor
        assert set(placement.replicas) <= known
    # Whoever got a replica has, before the last it got, no more than anybody else has at the end.
    hosted = Counter({load.broker: load.partitions for load in loads})
    given_out = Counter(broker for placement in placements for broker in placement.replicas)
    hosted.update(given_out)
    if factor == 1:
        assert all(hosted[broker] - 1 <= min(hosted.values()) for broker in given_out)


@given(broker_loads, st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_order_in_which_brokers_are_listed_does_not_matter(loads, partitions, random):
    shuffled = list(loads)
    random.shuffle(shuffled)
    assert place(partitions, 1, loads) == place(partitions, 1, shuffled)
    assert place(partitions, len(loads), loads) == place(partitions, len(loads), shuffled)
