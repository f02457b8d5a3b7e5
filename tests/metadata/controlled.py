"""A cluster state with a `Control` that decides on it; heartbeats come when a test says so."""

from __future__ import annotations

import itertools
import uuid
from contextlib import suppress

from metadata_cases import create

from liftbridge.metadata.broker_operations import Ended, RegisterBroker, UnfenceBroker
from liftbridge.metadata.brokers import BrokerState
from liftbridge.metadata.control import Control, Heard, Position
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.model import Guarantees, Partition
from liftbridge.metadata.operations import Operation
from liftbridge.metadata.placement import Placement
from liftbridge.metadata.replica_operations import AlterIsr, IsrChange
from liftbridge.metadata.state import ClusterState

STREAM = uuid.UUID(int=1)
WHERE = (STREAM, 0)
TICK = 0.25


class Controlled:
    """Brokers that are active, and one stream on the first three, led by the first.

    Arguments:
        brokers: their ids, a letter each.
        partitions: of the stream.
        guarantees: of the stream.
    """

    def __init__(self, brokers: str = "abc", *, partitions: int = 1, **guarantees) -> None:
        self.state = ClusterState()
        self.now = 100.0
        self.up = set(brokers)
        self.leaving: set[str] = set()
        self.done: list[Operation] = []
        self._incarnations = itertools.count(1000)
        for name in brokers:
            self.register(name)
            self.apply(UnfenceBroker(name, self.epoch(name)))
        placed = (Placement(tuple(brokers[:3]), brokers[0]),) * partitions
        self.apply(create(partitions=placed, guarantees=Guarantees(**guarantees)))
        self.begin()

    def begin(self) -> None:
        """A controller begins to decide."""
        self.control = Control(self.state, self.now)

    @property
    def partition(self) -> Partition:
        return self.state.partition("orders", 0)

    def epoch(self, name: str) -> int:
        return self.state.brokers[name].epoch

    def is_(self, name: str, state: BrokerState) -> bool:
        return self.state.brokers[name].state is state

    def apply(self, operation: Operation):
        return self.state.apply(self.state.applied_index + 1, operation)

    def register(self, name: str, ended: Ended = Ended.CLEAN) -> None:
        self.apply(RegisterBroker(name, uuid.UUID(int=next(self._incarnations)), ended=ended))

    def isr(self, *members: str, partition: int = 0) -> None:
        found = self.state.partition("orders", partition)
        change = IsrChange(
            STREAM,
            partition,
            found.epoch,
            found.leader,
            found.leader_epoch,
            tuple((name, self.epoch(name)) for name in members),
        )
        assert self.apply(AlterIsr((change,))).results[0].refusal is None

    def beat(self, name: str, *, leaving: bool = False) -> Heard:
        return self.control.heard(name, self.epoch(name), self.now, leaving=leaving)

    def state_positions(self, *names: str, lost: str = "", **ends: tuple[int, int]) -> None:
        """Those brokers, or all, answer what they are asked; `ends`: last epoch and next offset."""
        for name, questions in self.control.wanted().items():
            if not names or name in names:
                epoch, end = ends.get(name, (1, 0))
                position = Position(epoch, end, end, name in lost)
                self.control.stated(name, self.epoch(name), dict.fromkeys(questions, position))

    def due(self) -> list[Operation]:
        return self.control.due(self.now)

    def carry_out(self) -> list[Operation]:
        """Apply what is due, until nothing is."""
        done: list[Operation] = []
        for _ in range(20):
            operations = self.due()
            if not operations:
                return done
            for operation in operations:
                with suppress(MetadataError):
                    self.apply(operation)
                self.control.resolved(operation, self.now)
                done.append(operation)
        raise AssertionError(f"there is no end to what is due: {done}")

    def run(self, seconds: float) -> list[Operation]:
        """Time passes: those who are up send heartbeats, and what is due is carried out."""
        done = []
        end = self.now + seconds
        while self.now < end:
            self.now += TICK
            for name in sorted(self.up):
                self.beat(name, leaving=name in self.leaving)
            done += self.carry_out()
        return done
