"""The alarms of the cluster that scenarios run in: each goes off when what it watches over is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import raft_nodes as module
from raft_nodes import Cluster, Node
from scenario import Scenario

from liftbridge.raft import AppendReply, Entry, EntryKind, Members, Role, VoteReply, VoteRequest
from liftbridge.raft.leader import Leadership


def led(*commands):
    """A cluster that node 1 leads, in which everybody has applied these."""
    cluster = Cluster()
    cluster.begin([1, 2, 3])
    cluster.nodes[1].core.campaign()
    cluster.after(1)
    cluster.settle()
    cluster.nodes[1].core.propose([command.encode() for command in commands])
    cluster.after(1)
    cluster.settle()
    assert all(node.applied == list(commands) for node in cluster.nodes.values())
    return cluster


def changed(node: Node, index: int, **fields):
    """Make a node's log have another entry at an index, behind its back."""
    entries = node.core.log._entries
    at = index - node.core.log.base_index - 1
    entries[at] = replace(entries[at], **fields)


def lead(node: Node):
    node.core.role, node.core._lead = Role.LEADER, Leadership(node.core)


def test_two_leaders_of_a_term():
    cluster = led("a")
    lead(cluster.nodes[2])
    with pytest.raises(AssertionError, match="election safety"):
        cluster.check()


def test_logs_that_are_the_same_at_one_place_and_not_before():
    cluster = led("a", "b")
    changed(cluster.nodes[3], 3, term=1)
    with pytest.raises(AssertionError, match="the same term at 4, and not before"):
        cluster.check()


def test_entries_of_a_term_that_are_not_the_same():
    cluster = led("a", "b")
    changed(cluster.nodes[3], 4, data=b"other")
    with pytest.raises(AssertionError, match="log matching at 4"):
        cluster.check()


def test_a_leader_that_lacks_what_is_committed():
    cluster = led("a", "b")
    core = cluster.nodes[2].core
    core.log.commit = cluster.nodes[2].checked_commit = 3
    core.log.truncate(4)
    core._follow(3, None)
    lead(cluster.nodes[2])
    with pytest.raises(AssertionError, match="leader completeness: 2 lacks entry 4 in term 3"):
        cluster.check()


def test_a_leader_of_an_older_term_may_lack_what_was_committed_after_it():
    cluster = led("a")
    for name in (2, 3):
        cluster.tick(name, 10)
    cluster.messages.clear()
    cluster.cut = {(1, 2), (2, 1), (1, 3), (3, 1)}
    cluster.nodes[2].core.campaign()
    cluster.after(2)
    cluster.settle()
    assert cluster.nodes[1].core.is_leader
    assert cluster.nodes[2].core.is_leader
    assert cluster.nodes[2].core.commit > cluster.nodes[1].core.log.last_index


def test_a_commit_index_that_goes_back():
    cluster = led("a")
    cluster.nodes[2].core.log.commit -= 1
    with pytest.raises(AssertionError, match="what is committed goes back from 3 to 2"):
        cluster.check()


def test_a_commit_index_beyond_the_log():
    cluster = led("a")
    cluster.nodes[2].core.log.commit += 1
    with pytest.raises(AssertionError, match="2: commits 4, which it lacks"):
        cluster.check()


def test_an_entry_of_an_older_term_that_is_committed_by_counting():
    cluster = led("a")
    core = cluster.nodes[1].core
    core.log.append([Entry(4, 2, EntryKind.COMMAND, b"old")])
    core._hard = replace(core._hard, term=3)
    core.log.commit = 4
    with pytest.raises(AssertionError, match="1 commits an entry of term 2 in term 3"):
        cluster.check()


def test_two_entries_that_are_committed_at_one_index():
    cluster = led("a")
    for name, data in ((2, b"x"), (3, b"y")):
        core = cluster.nodes[name].core
        core.log.append([Entry(4, 2, EntryKind.COMMAND, data)])
        core.log.commit = 4
    with pytest.raises(AssertionError, match="are committed"):
        cluster.check()


def test_two_entries_that_are_applied_at_one_index():
    cluster = led("a")
    other = Entry(4, 2, EntryKind.COMMAND, b"x")
    for name in (2, 3):
        cluster.nodes[name].disk.entries.append(other)
    cluster._apply(cluster.nodes[2], other)
    cluster.nodes[3].disk.entries[-1] = replace(other, data=b"y")
    with pytest.raises(AssertionError, match="state machine safety at 4"):
        cluster._apply(cluster.nodes[3], cluster.nodes[3].disk.entries[-1])


def test_what_is_applied_and_not_on_the_disk():
    cluster = led("a")
    with pytest.raises(AssertionError, match="2 applies 4, which is not on its disk"):
        cluster._apply(cluster.nodes[2], Entry(4, 2, EntryKind.COMMAND, b"x"))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (VoteReply(2, 1, 2, 5, False, True, 77, 1), "not on the disk: 2>1 t2 vote yes"),
        (VoteReply(2, 3, 2, 5, False, True, 77, 1), "votes twice in term 2"),
        (AppendReply(2, 1, 2, 5, 77, 1, True, 9, 0, 0, 0, 9), "not on the disk: 2>1 t2 has 9"),
        (VoteRequest(2, 1, 7, 5, True, 3, 2, 1), "not on the disk: the term of 2>1 t7"),
    ],
)
def test_what_is_said_and_not_on_the_disk(message, text):
    cluster = led("a")
    disk = cluster.nodes[2].disk
    if "vote yes" in text:
        disk.hard = replace(disk.hard, vote=None)
    with pytest.raises(AssertionError, match=text):
        cluster._send([message])


def test_what_does_not_end_is_refused(monkeypatch):
    scenario = Scenario()
    scenario.run("nodes 1 2 3")
    scenario.run("campaign 1")
    monkeypatch.setattr(module, "ENOUGH", 5)
    with pytest.raises(AssertionError, match="after 5 messages there are more: it does not end"):
        scenario.run("settle")


def test_a_core_that_always_wants_something_is_refused(monkeypatch):
    cluster = led("a")
    monkeypatch.setattr(type(cluster.nodes[2].core), "has_ready", True)
    with pytest.raises(AssertionError, match="2 wants something for ever"):
        cluster.after(2)


def test_members_are_text():
    assert module.members(Members(frozenset({2, 1}), frozenset({3}))) == "members [1, 2] learning [3]"
