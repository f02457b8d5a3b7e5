"""Chance instead of a scenario: messages lost, doubled and reordered, disks that take their time, crashes,
compaction and changes of members, with every property checked after every step.

The simulator (`liftbridge/sim`) does this at length, with clocks and a disk that tears; here it is short,
needs nothing but the core, and a failure names the seed and can be stepped through.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_node import leading, node, store
from raft_nodes import SMALL, Cluster
from test_raft_codec import MESSAGES

from liftbridge.raft import InvariantError

STEPS = 400
KINDS = ("deliver",) * 30 + ("persist",) * 14 + ("tick",) * 8 + ("propose",) * 4 + ("start",) * 2
KINDS += ("lose", "double", "crash", "compact", "members", "members", "read", "transfer")


class Chance:
    """A cluster of five and three that may join, and what happens to it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        chosen = {
            "retained_entries": self.random.choice((0, 3)),
            "promotion_lag": self.random.choice((2, 50)),
        }
        self.cluster = Cluster(replace(SMALL, **chosen))
        self.cluster.begin([1, 2, 3, 4, 5][: self.random.choice((2, 3, 5))], new=[6, 7])
        self.cluster.nodes[1].core.campaign()
        self.cluster.after(1)
        self.cluster.settle()
        self.cluster.manual = self.random.random() < 0.7
        self.proposed = 0
        self.happened: Counter[str] = Counter()

    def step(self) -> None:
        getattr(self, self.random.choice(KINDS))()
        for each in self.cluster.nodes.values():
            for floor, index in each.reads:
                assert index >= floor, (
                    f"{each.name} reads at {index}, and {floor} was committed before it asked"
                )
                self.happened["answer"] += 1
            each.reads.clear()

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()
        self.quiet()

    def quiet(self) -> None:
        """Everything works again: somebody leads, and all members come to have the same."""
        cluster = self.cluster
        cluster.manual = False
        for name in list(cluster.down):
            cluster.start(name)
        for name in list(cluster.nodes):
            cluster.persist(name)
        for _ in range(30):
            for name in sorted(cluster.nodes):
                cluster.tick(name, self.random.choice((1, 2)))
            cluster.settle()
            if self.agreed():
                return
        for _ in range(170):
            for name in sorted(cluster.nodes):
                cluster.tick(name, self.random.choice((1, 1, 1, 2)))
            cluster.settle()
            if self.agreed():
                return
        raise AssertionError("a cluster that works comes to no agreement")

    def agreed(self) -> bool:
        leaders = [each for each in self.cluster.nodes.values() if each.core.leads_durably]
        for leader in leaders:
            members = [self.cluster.nodes[name] for name in leader.core.members.all]
            ends = {(each.applied_index, tuple(each.applied)) for each in members}
            if len(ends) == 1 and leader.applied_index == leader.core.log.last_index:
                return True
        return False

    @property
    def known(self) -> list[int]:
        return sorted([*self.cluster.nodes, *self.cluster.down])

    def any_node(self) -> int | None:
        return self.random.choice(sorted(self.cluster.nodes)) if self.cluster.nodes else None

    def leader(self) -> int | None:
        leaders = [name for name, each in sorted(self.cluster.nodes.items()) if each.core.is_leader]
        return self.random.choice(leaders) if leaders else None

    def deliver(self) -> None:
        if self.cluster.messages:
            newest = len(self.cluster.messages) - 1
            self.cluster.deliver(self.random.randint(0, newest) if self.random.random() < 0.3 else 0)

    def lose(self) -> None:
        messages = self.cluster.messages
        for _ in range(self.random.choice((1, 1, len(messages)))):
            if messages:
                messages.pop(self.random.randrange(len(messages)))

    def double(self) -> None:
        if self.cluster.messages:
            self.cluster.messages.append(self.random.choice(self.cluster.messages))

    def persist(self) -> None:
        name = self.any_node()
        if name is not None:
            waiting = len(self.cluster.nodes[name].waiting)
            self.cluster.persist(name, self.random.randint(0, waiting))

    def tick(self) -> None:
        name = self.any_node()
        if name is not None:
            self.cluster.tick(name, self.random.choice((1, 1, 1, 1, 1, 2, 2, 5, 12)))

    def propose(self) -> None:
        name = self.leader()
        if name is not None:
            self.proposed += 1
            self.cluster.nodes[name].core.propose(
                [b"%d.%d" % (self.proposed, each) for each in range(self.random.randint(1, 12))]
            )
            self.happened["propose"] += 1
            self.cluster.after(name)

    def crash(self) -> None:
        if len(self.cluster.nodes) > 2:
            self.cluster.crash(self.random.choice(sorted(self.cluster.nodes)))

    def start(self) -> None:
        if self.cluster.down:
            self.cluster.start(self.random.choice(sorted(self.cluster.down)))

    def compact(self) -> None:
        name = self.any_node()
        if name is None:
            return
        node = self.cluster.nodes[name]
        # Not while a snapshot of a leader waits for the disk: its driver would take one behind the other.
        if node.applied_index > node.disk.base and not any(each.snapshot for each in node.waiting):
            self.cluster.compact(name)
            self.happened["compact"] += 1

    def members(self) -> None:
        name = self.leader()
        if name is not None:
            core = self.cluster.nodes[name].core
            change = self.random.choice(
                (core.add_learner, core.promote, core.promote, core.demote, core.remove)
            )
            learners = sorted(core.members.learners)
            known = learners if change == core.promote and learners else self.known
            if isinstance(change(self.random.choice(known)), int):
                self.happened[change.__name__] += 1
            self.cluster.after(name)

    def read(self) -> None:
        name = self.leader()
        if name is not None:
            # Whatever anybody has committed by now has to be seen by it.
            floor = max(each.core.commit for each in self.cluster.nodes.values())
            self.happened["read"] += self.cluster.nodes[name].core.read_index(floor)
            self.cluster.after(name)

    def transfer(self) -> None:
        name = self.leader()
        if name is not None:
            self.happened["transfer"] += self.cluster.nodes[name].core.transfer(
                self.random.choice(self.known)
            )
            self.cluster.after(name)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_the_properties_hold_and_the_cluster_recovers(seed):
    Chance(seed).run()


@given(messages=st.lists(MESSAGES, max_size=6), leads=st.booleans())
def test_whatever_somebody_says_the_core_takes_it_or_names_what_is_wrong(messages, leads):
    core = leading(2) if leads else node(2)
    with contextlib.suppress(InvariantError):
        for message in messages:
            core.step(replace(message, target=1, term=min(message.term, 5)))
            core.tick(0)
            store(core)
