"""Long histories of a `World`, drawn from a seed: more happens in them than hypothesis dares."""

from __future__ import annotations

import random

from world import BROKERS, MAX_LAG, World

from liftbridge.metadata.broker_operations import Ended
from liftbridge.metadata.replica_operations import IsrChange, Mode
from liftbridge.replication.follower import Follower
from liftbridge.replication.leader import Leader


class History:
    """One world, and what happens to it."""

    def __init__(self, seed: int, *, forced: bool = False) -> None:
        self.random = random.Random(seed)
        self.world = World(min_isr=self.random.choice([1, 2, 2, 3]), synced=self.random.random() < 0.5)
        self.late: list[tuple[str, IsrChange]] = []
        self.forced = forced
        self.steps = [
            *[self.publish] * 10,
            *[self.send] * 12,
            *[self.deliver] * 24,
            *[self.position] * 3,
            *[self.sync] * 6,
            *[self.learn] * 6,
            *[self.pump] * 4,
            *[self.alter_isr] * 6,
            *[self.late_proposal] * 2,
            *[self.time] * 2,
            *[self.connect] * 2,
            *[self.fence] * 2,
            *[self.unfence] * 3,
            *[self.transfer] * 2,
            *[self.crash] * 2,
            *[self.start] * 5,
            *[self.retain] * 1,
            *[self.world.recover] * 2,
        ]

    def run(self, count: int) -> None:
        """So many things happen."""
        for _ in range(count):
            self.random.choice(self.steps)()

    def _name(self) -> str:
        return self.random.choice(BROKERS)

    def _leaders(self) -> list[str]:
        return [name for name, node in self.world.nodes.items() if isinstance(node.role, Leader)]

    def publish(self) -> None:
        for name in self._leaders():
            self.world.publish(name, self.random.randint(1, 3))

    def send(self) -> None:
        for name in self._leaders():
            for other in BROKERS:
                if other != name and self.random.random() < 0.7:
                    self.world.send(name, other, self.random.randint(0, 3))

    def deliver(self) -> None:
        one, other = self.random.sample(BROKERS, 2)
        for _ in range(self.random.randint(1, 4)):
            self.world.deliver(one, other)

    def position(self) -> None:
        name = self._name()
        if isinstance(self.world.nodes[name].role, Follower):
            self.world.state_position(name)

    def connect(self) -> None:
        name = self._name()
        if isinstance(self.world.nodes[name].role, Follower):
            self.world.connect(name)

    def sync(self) -> None:
        name = self._name()
        if self.world.nodes[name].up:
            self.world.sync(name)

    def learn(self) -> None:
        self.world.learn(self._name())

    def pump(self) -> None:
        self.world.pump(*self.random.sample(BROKERS, self.random.choice([2, 3])))

    def time(self) -> None:
        self.world.now += self.random.choice([0.1, MAX_LAG / 2, MAX_LAG * 1.2])

    def alter_isr(self) -> None:
        for name in self._leaders():
            change = self.world.nodes[name].leader.propose(self.world.now)
            if change is None:
                continue
            applied, answered = self.random.random() < 0.8, self.random.random() < 0.8
            if not applied:
                self.late.append((name, change))
            self.world.decide(name, change, answer=answered, apply=applied)

    def late_proposal(self) -> None:
        if self.late:
            self.world.decide(*self.late.pop(0), answer=False)

    def fence(self) -> None:
        name = self._name()
        self.world.fence(name)
        self.world.learn(self._name())

    def unfence(self) -> None:
        for name, node in self.world.nodes.items():
            if node.up and self.random.random() < 0.7:
                self.world.unfence(name)

    def transfer(self) -> None:
        partition = self.world.partition
        mode = Mode.FORCED if self.forced and not partition.leader else Mode.CLEAN
        self.world.transfer(self._name(), mode)
        self.world.learn(self._name())

    def crash(self) -> None:
        name = self._name()
        if self.world.nodes[name].up:
            self.world.crash(name, power=self.random.random() < 0.5)

    def start(self) -> None:
        name = self._name()
        if not self.world.nodes[name].up:
            clean = name not in self.world.doubtful and self.random.random() < 0.5
            self.world.start(name, Ended.CLEAN if clean else Ended.UNCLEAN)
            if self.random.random() < 0.7:
                self.world.unfence(name)
                self.world.learn(name)

    def retain(self) -> None:
        node = self.world.nodes[self._name()]
        if node.role is not None:
            node.log.retain(node.role.high_watermark - self.random.randint(0, 5))
