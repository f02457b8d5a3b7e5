"""Any order of events, as hypothesis finds it: the invariants of `world` hold, and in the end all is well."""

from __future__ import annotations

import pytest
from histories import History
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from world import BROKERS, MAX_LAG, World

from liftbridge.metadata.broker_operations import Ended
from liftbridge.metadata.replica_operations import IsrChange
from liftbridge.replication.follower import Follower
from liftbridge.replication.leader import Leader

names = st.sampled_from(BROKERS)
links = st.tuples(names, names).filter(lambda link: link[0] != link[1])


class Replication(RuleBasedStateMachine):
    """Three brokers; whatever can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World
        self.late: list[tuple[str, IsrChange]] = []

    @initialize(min_isr=st.integers(1, 3), synced=st.booleans())
    def begin(self, min_isr: int, synced: bool) -> None:
        self.world = World(min_isr=min_isr, synced=synced)

    def _leads(self, name: str) -> bool:
        role = self.world.nodes[name].role
        return isinstance(role, Leader) and not role.retired

    def _leaders(self) -> list[str]:
        return [name for name in BROKERS if self._leads(name)]

    @precondition(lambda self: self._leaders())
    @rule(data=st.data(), count=st.integers(1, 3))
    def publish(self, data: st.DataObject, count: int) -> None:
        self.world.publish(data.draw(st.sampled_from(self._leaders())), count)

    @precondition(lambda self: self._leaders())
    @rule(data=st.data(), limit=st.integers(0, 3))
    def send(self, data: st.DataObject, limit: int) -> None:
        name = data.draw(st.sampled_from(self._leaders()))
        self.world.send(name, data.draw(st.sampled_from([each for each in BROKERS if each != name])), limit)

    @rule(link=links, count=st.integers(1, 5))
    def deliver(self, link: tuple[str, str], count: int) -> None:
        for _ in range(count):
            self.world.deliver(*link)

    @rule(apart=st.none() | names)
    def pump(self, apart: str | None) -> None:
        self.world.pump(*(name for name in BROKERS if name != apart))

    @rule(name=names)
    def connect(self, name: str) -> None:
        if isinstance(self.world.nodes[name].role, Follower):
            self.world.connect(name)

    @rule(name=names)
    def state_position(self, name: str) -> None:
        if isinstance(self.world.nodes[name].role, Follower):
            self.world.state_position(name)

    @rule(name=names)
    def sync(self, name: str) -> None:
        if self.world.nodes[name].up:
            self.world.sync(name)

    @rule(name=names)
    def learn(self, name: str) -> None:
        self.world.learn(name)

    @rule(passed=st.sampled_from([0.1, MAX_LAG / 2, MAX_LAG * 2]))
    def time(self, passed: float) -> None:
        self.world.now += passed

    @precondition(lambda self: self._leaders())
    @rule(data=st.data(), applied=st.booleans(), answered=st.booleans())
    def alter_isr(self, data: st.DataObject, applied: bool, answered: bool) -> None:
        for name in [data.draw(st.sampled_from(self._leaders()))]:
            change = self.world.nodes[name].leader.propose(self.world.now)
            if change is not None:
                if not applied:
                    self.late.append((name, change))
                self.world.decide(name, change, answer=answered, apply=applied)

    @precondition(lambda self: self.late)
    @rule()
    def a_late_proposal_arrives(self) -> None:
        name, change = self.late.pop(0)
        self.world.decide(name, change, answer=False)

    @rule(name=names)
    def fence(self, name: str) -> None:
        self.world.fence(name)

    @rule(name=names)
    def unfence(self, name: str) -> None:
        if self.world.nodes[name].up:
            self.world.unfence(name)

    @rule(name=names)
    def transfer(self, name: str) -> None:
        self.world.transfer(name)

    @rule(name=names, power=st.booleans())
    def crash(self, name: str, power: bool) -> None:
        if self.world.nodes[name].up:
            self.world.crash(name, power=power)

    @rule(name=names, clean=st.booleans())
    def start(self, name: str, clean: bool) -> None:
        if not self.world.nodes[name].up:
            lossless = clean and name not in self.world.doubtful
            self.world.start(name, Ended.CLEAN if lossless else Ended.UNCLEAN)

    @rule(name=names)
    def retain(self, name: str) -> None:
        role = self.world.nodes[name].role
        if role is not None:
            self.world.nodes[name].log.retain(role.high_watermark - 1)

    # What usually comes together, so that much happens.

    @rule(name=names, power=st.booleans(), known=st.booleans())
    def dies(self, name: str, power: bool, known: bool) -> None:
        if self.world.nodes[name].up:
            self.world.crash(name, power=power)
            self.world.fence(name)
            for other in BROKERS:
                if known and other != name:
                    self.world.learn(other)

    @rule(name=names)
    def comes_back(self, name: str) -> None:
        world = self.world
        if not world.nodes[name].up:
            world.start(name, Ended.UNCLEAN if name in world.doubtful else Ended.CLEAN)
            world.unfence(name)
            for other in BROKERS:
                world.learn(other)
            world.pump()
            if world.partition.leader and self._leads(world.partition.leader):
                world.alter_isr(world.partition.leader)

    @rule(name=names, known=st.booleans(), itself=st.booleans())
    def hands_over(self, name: str, known: bool, itself: bool) -> None:
        before = self.world.partition.leader
        self.world.transfer(name)
        for other in BROKERS:
            if known and (itself or other != before):
                self.world.learn(other)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.settle()
        self.world.check_settled()


Replication.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestReplication = Replication.TestCase


@pytest.mark.parametrize("first", range(0, 400, 40))
def test_long_histories(first: int) -> None:
    for seed in range(first, first + 40):
        history = History(seed)
        try:
            history.run(150)
            history.world.settle()
            history.world.check_settled()
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error


def test_long_histories_with_elections_that_cost_something() -> None:
    for seed in range(10_000, 10_060):
        history = History(seed, forced=True)
        try:
            history.run(150)
            history.world.settle()
            history.world.check_settled()
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
