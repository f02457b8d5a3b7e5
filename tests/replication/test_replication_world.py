"""Any order of events, as hypothesis finds it: the invariants of `world` hold, and in the end all is well."""

from __future__ import annotations

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

    @rule(name=names, count=st.integers(1, 3))
    def publish(self, name: str, count: int) -> None:
        if self._leads(name):
            self.world.publish(name, count)

    @rule(link=links, limit=st.integers(0, 3))
    def send(self, link: tuple[str, str], limit: int) -> None:
        if self._leads(link[0]):
            self.world.send(*link, limit)

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

    @rule(name=names, applied=st.booleans(), answered=st.booleans())
    def alter_isr(self, name: str, applied: bool, answered: bool) -> None:
        if self._leads(name):
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

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.settle()
        partition = world.partition
        assert partition.leader, partition
        assert set(partition.isr) == set(BROKERS), partition
        leader = world.nodes[partition.leader]
        assert leader.leader.high_watermark == leader.log.next_offset - 1
        for node in world.nodes.values():
            start = max(node.log.start_offset, leader.log.start_offset)
            for offset in range(start, leader.log.next_offset):
                assert node.log.records[offset] == leader.log.records[offset]
            assert node.log.next_offset == leader.log.next_offset
            assert node.role is not None
            assert node.role.high_watermark == leader.leader.high_watermark


Replication.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestReplication = Replication.TestCase
