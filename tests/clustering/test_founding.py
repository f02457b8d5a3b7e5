"""How a server comes to belong to a cluster."""

from __future__ import annotations

import uuid

import pytest
import trio

from liftbridge.broker.discovery import Announcement
from liftbridge.broker.founding import Begin, FoundingError, Join, Wait, decide, find_cluster, found
from liftbridge.broker.identity import DataDirectory
from liftbridge.broker.journal import Journal

ONE, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


def told(**servers: uuid.UUID | None) -> dict[str, Announcement]:
    return {name: Announcement(name, cluster, "127.0.0.1", 1) for name, cluster in servers.items()}


def decided(own="b", *, seed=False, peers=(), heard=None, looked=True):
    return decide(own, seed=seed, peers=peers, heard=heard or {}, looked=looked)


def test_a_seed_begins_a_cluster_where_there_is_none():
    assert isinstance(decided(seed=True, looked=False), Wait)
    assert decided(seed=True) == Begin()
    assert decided(seed=True, heard=told(a=None)) == Begin()


def test_nobody_begins_a_second_cluster():
    for looked in (True, False):
        for arguments in ({"seed": True}, {"peers": ("b", "c")}, {"peers": ("a", "b")}, {}):
            decision = decided(heard=told(c=ONE, a=ONE), looked=looked, **arguments)
            assert decision == Join(ONE, ("a", "c"))


def test_of_those_who_begin_together_the_first_does_it():
    assert decided("a", peers=("a", "b", "c"), heard=told(b=None, c=None)) == Begin()
    assert decided("a", peers=("b", "c"), heard=told(b=None, c=None)) == Begin()
    for own in ("b", "c"):
        others = {name: None for name in "abc" if name != own}
        assert decided(own, peers=("a", "b", "c"), heard=told(**others)) == Wait("a is to begin the cluster")


def test_it_is_not_begun_before_all_are_there():
    decision = decided("a", peers=("a", "b", "c"), heard=told(c=None))
    assert decision == Wait("not heard of b yet, of clustering.raft.bootstrap.peers")


def test_who_is_told_nothing_waits_for_a_cluster():
    assert isinstance(decided(heard=told(a=None)), Wait)
    assert decided(heard=told(a=ONE)) == Join(ONE, ("a",))


def test_two_clusters_in_a_namespace_are_for_an_operator():
    with pytest.raises(FoundingError, match="several clusters in this namespace") as caught:
        decided(heard=told(a=ONE, c=OTHER))
    assert str(ONE) in str(caught.value)
    assert str(OTHER) in str(caught.value)


class Hearing:
    """What a server hears of others after so many questions."""

    def __init__(self, *steps: dict[str, Announcement], nobody: bool = False) -> None:
        self.steps = list(steps)
        self.heard: dict[str, Announcement] = {}
        self.nobody = nobody

    async def ask(self) -> None:
        if self.steps:
            self.heard = self.steps.pop(0)

    async def wait_news(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.fixture
def data(tmp_path):
    directory = DataDirectory.open(tmp_path / "data", "b")
    yield directory
    directory.close()


async def search(data, hearing, clusters, **arguments):
    asked = []

    async def cluster_of(server_id: str) -> uuid.UUID | None:
        asked.append(server_id)
        return clusters.get(server_id)

    with trio.fail_after(30):
        decision = await find_cluster(data, hearing, cluster_of, **{"seed": False, "peers": (), **arguments})
    return decision, asked


async def test_a_cluster_is_joined_that_one_of_its_servers_was_asked_for(data):
    hearing = Hearing({}, told(c=None), told(a=ONE, c=ONE))
    assert await search(data, hearing, {"c": ONE}) == (Join(ONE, ("a", "c")), ["a", "c"])


async def test_hearsay_is_not_enough(data):
    hearing = Hearing(told(x=OTHER), told(a=ONE))
    decision, asked = await search(data, hearing, {"a": ONE, "x": ONE})
    assert decision == Join(ONE, ("a",))
    assert asked == ["x", "a"]


async def test_a_seed_that_nats_has_told_that_nobody_is_there_begins_at_once(data, autojump_clock):
    assert await search(data, Hearing(nobody=True), {}, seed=True) == (Begin(), [])
    assert trio.current_time() == 0


async def test_without_a_word_of_nats_a_seed_looks_around_for_a_while(data, autojump_clock):
    class Silent(Hearing):
        async def wait_news(self) -> None:
            await trio.sleep_forever()

    assert await search(data, Silent(), {}, seed=True) == (Begin(), [])
    assert trio.current_time() >= 1
    late = Silent({}, told(a=ONE))
    assert await search(data, late, {"a": ONE}, seed=True) == (Join(ONE, ("a",)), ["a"])


def test_who_begins_is_the_only_member_and_who_joins_is_none_yet(data, tmp_path):
    found(data, Begin())
    journal, recovered = Journal.open(data.path / "metadata")
    assert journal.cluster_id == data.cluster_id
    assert len(recovered.entries) == 1
    journal.close()

    joining = DataDirectory.open(tmp_path / "joining", "c")
    found(joining, Join(ONE, ("b",)))
    joined, recovered = Journal.open(joining.path / "metadata")
    assert (joined.cluster_id, joining.cluster_id) == (ONE, ONE)
    assert recovered.entries == []
    assert joined.node_id != journal.node_id
    joined.close()
    joining.close()


def test_a_directory_that_has_lost_its_metadata_begins_nothing(data):
    data.join_cluster(ONE)
    for decision in (Begin(), Join(ONE, ("a",))):
        with pytest.raises(FoundingError, match="holds no metadata, but this server belongs to cluster"):
            found(data, decision)
