"""Clusters that came to a standstill in simulated runs (`liftbridge sim`), in as few steps as it takes."""

from __future__ import annotations

from dataclasses import replace

from raft_nodes import SMALL, Cluster

from liftbridge.raft import Append, AppendReply, SnapshotChunk


def led(options=SMALL, voters=(1, 2, 3)):
    """A cluster that node 1 leads."""
    cluster = Cluster(options)
    cluster.begin(list(voters))
    cluster.nodes[1].core.campaign()
    cluster.after(1)
    cluster.settle()
    assert cluster.nodes[1].core.leads_durably
    return cluster


def propose(cluster, *commands):
    cluster.nodes[1].core.propose(list(commands))
    cluster.after(1)


def test_a_follower_whose_answers_got_lost_is_asked_again():
    """It has all that is under way, so nothing is missing there, and the window of the leader stays full."""
    cluster = led(replace(SMALL, max_in_flight=1))
    propose(cluster, b"a")
    answers = 0
    while cluster.messages:
        if isinstance(cluster.messages[0], AppendReply) and cluster.messages[0].source == 2:
            del cluster.messages[0]
            answers += 1
        else:
            cluster.deliver()
    assert answers
    propose(cluster, b"b")
    for _ in range(2):
        cluster.tick(1, SMALL.heartbeat_ticks)
        cluster.settle()
    assert cluster.nodes[2].core.log.last_index == cluster.nodes[1].core.log.last_index


def test_lost_answers_to_what_is_forgotten_meanwhile_bring_a_snapshot():
    """Nobody can be asked about entries that are not held any more."""
    cluster = led(replace(SMALL, max_in_flight=2))
    cluster.cut = {(2, 1)}
    for each in (b"a", b"b"):
        propose(cluster, each)
        cluster.settle()
    cluster.compact(1)
    cluster.cut = set()
    for _ in range(3):
        cluster.tick(1, SMALL.heartbeat_ticks)
        cluster.settle()
    assert cluster.nodes[2].core.commit == cluster.nodes[1].core.commit == 4


def test_who_is_behind_all_that_is_held_gets_the_snapshot():
    """Its newest entry is below the base of the leader, and the terms at both are the same."""
    cluster = led()
    cluster.cut = {(1, 3), (3, 1)}
    propose(cluster, b"a", b"b", b"c")
    cluster.settle()
    cluster.compact(1)
    assert cluster.nodes[3].core.log.last_index < cluster.nodes[1].core.log.base_index
    # A new leader knows nothing of node 3, and begins with the newest place.
    cluster.crash(1)
    cluster.start(1)
    cluster.cut = set()
    cluster.tick(2, SMALL.election_ticks)
    cluster.tick(3, SMALL.election_ticks)
    cluster.messages.clear()
    cluster.nodes[1].core.campaign()
    cluster.after(1)
    chunks = 0
    for _ in range(300):
        if not cluster.messages:
            break
        chunks += isinstance(cluster.messages[0], SnapshotChunk)
        cluster.deliver()
    assert chunks
    assert cluster.nodes[3].core.log.last_index == cluster.nodes[1].core.log.last_index


def test_who_takes_its_own_vote_away_campaigns_until_that_is_committed():
    """Nobody else has the entry, so nobody else can lead: who is left needs the vote of a longer log."""
    cluster = led(voters=(1, 2))
    cluster.nodes[1].core.demote(1)
    cluster.after(1)
    assert any(isinstance(message, Append) for message in cluster.messages)
    cluster.messages.clear()
    cluster.crash(1)
    cluster.start(1)
    cluster.tick(2, 2 * SMALL.election_ticks)
    cluster.settle()
    assert not cluster.nodes[2].core.is_leader
    cluster.tick(1, 2 * SMALL.election_ticks)
    cluster.settle()
    assert not cluster.nodes[1].core.is_leader, "it stops when its removal is committed"
    cluster.tick(2, 2 * SMALL.election_ticks)
    cluster.settle()
    assert cluster.nodes[2].core.is_leader
    assert cluster.nodes[2].core.members.voters == {2}
