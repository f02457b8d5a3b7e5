"""What the controller decides over histories: brokers die and come back, operations come late or never.

- Nobody who was heard of within the session time is fenced, unless it leaves.
- What is on its way is never in contradiction: a fence and its opposite, two leaders for one partition, a
  leadership for somebody who is about to be fenced.
- When it is calm again, each partition has a leader that is there, if anybody is there who may lead.
"""

from __future__ import annotations

import itertools
from contextlib import suppress

from controlled import STREAM, TICK, Controlled
from hypothesis import given, settings
from hypothesis import strategies as st

from liftbridge.metadata.broker_operations import (
    DrainBroker,
    Ended,
    FenceBroker,
    UnfenceBroker,
    WithdrawReplicas,
)
from liftbridge.metadata.brokers import BrokerState
from liftbridge.metadata.control import Heard
from liftbridge.metadata.elections import recoverable
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.operations import Operation
from liftbridge.metadata.replica_operations import ChangeLeaders

NAMES = "abcde"
PARTITIONS = 3
SESSION = 3.0


class Story(Controlled):
    """A cluster whose operations may be late or lost, with everything checked that `due` returns."""

    def __init__(self, **guarantees) -> None:
        self.late = 0  # rounds until what is proposed takes effect
        self.lossy = False
        self.on_the_way: list[tuple[int, Operation]] = []
        self.rounds = itertools.count()
        self.heard_at: dict[str, float] = {}
        self.left: set[str] = set()
        super().__init__(NAMES, partitions=PARTITIONS, **guarantees)

    def begin(self) -> None:
        # What the last controller had on its way is agreed on before another decides, or never is.
        if not self.lossy:
            for _, operation in self.on_the_way:
                self.carried_out(operation)
        self.on_the_way = []
        super().begin()
        self.began = self.now

    def carried_out(self, operation: Operation) -> None:
        with suppress(MetadataError):
            self.apply(operation)

    def round(self) -> None:
        self.now += TICK
        number = next(self.rounds)
        for name in sorted(self.up):
            heard = self.beat(name, leaving=name in self.leaving)
            fences = [
                operation
                for _, operation in self.on_the_way
                if isinstance(operation, FenceBroker) and operation.broker_epoch == self.epoch(name)
            ]
            alive = self.state.registry.alive(name)
            assert heard is (Heard.CONFIRMED if alive and not fences else Heard.FENCED)
            self.heard_at[name] = self.now
        self.answer()
        operations = self.due()
        self.check(operations)
        self.on_the_way += [(number + self.late, operation) for operation in operations]
        while self.on_the_way and self.on_the_way[0][0] <= number:
            _, operation = self.on_the_way.pop(0)
            if not self.lossy:
                self.carried_out(operation)
            self.control.resolved(operation, self.now)

    def answer(self) -> None:
        """Those who are up say what they have; the same every time."""
        for name in self.up:
            self.state_positions(name, **{name: (1 + len(name), ord(name))})

    def check(self, operations: list[Operation]) -> None:
        on_the_way = [operation for _, operation in self.on_the_way]
        for operation in operations:
            about = [each for each in on_the_way if run_of(each) == run_of(operation) != ("", 0)]
            if isinstance(operation, FenceBroker):
                # Asked for once more, when it was not known for long what has become of it.
                again = any(isinstance(each, FenceBroker) for each in about)
                heard = max(self.heard_at.get(operation.broker, 0.0), self.began)
                silent = self.now - heard >= SESSION
                assert silent or operation.broker in self.left or again, operation
                assert not any(isinstance(each, UnfenceBroker) for each in about) or silent
            elif isinstance(operation, UnfenceBroker | DrainBroker):
                assert self.now - self.heard_at[operation.broker] < SESSION
                assert not [each for each in about if isinstance(each, FenceBroker)]
            else:
                assert isinstance(operation, ChangeLeaders)
                self.check_leaders(operation, [*on_the_way, *operations])
            on_the_way.append(operation)

    def check_leaders(self, operation: ChangeLeaders, on_the_way: list[Operation]) -> None:
        going = {each.broker for each in on_the_way if isinstance(each, FenceBroker)}
        for change in operation.changes:
            assert change.leader not in going
            assert self.now - max(self.heard_at.get(change.leader, 0.0), self.began) < SESSION
        where = [(change.partition, change.epoch) for change in operation.changes]
        assert len(set(where)) == len(where)

    def step(self, step: tuple[object, ...]) -> None:
        kind, *arguments = step
        getattr(self, f"do_{kind}")(*arguments)

    def do_rounds(self, count: int) -> None:
        for _ in range(count):
            self.round()

    def do_silence(self, name: str) -> None:
        self.up.discard(name)

    def do_noise(self, name: str) -> None:
        self.up.add(name)

    def do_restart(self, name: str, ended: Ended) -> None:
        self.register(name, ended)
        self.leaving.discard(name)
        self.left.discard(name)
        self.up.add(name)

    def do_leave(self, name: str) -> None:
        self.leaving.add(name)
        self.left.add(name)

    def do_shrink(self, number: int, name: str) -> None:
        partition = self.state.partition("orders", number)
        members = [each for each in partition.isr if each in (name, partition.leader)]
        if partition.leader:
            self.isr(*members, partition=number)

    def do_grow(self, number: int) -> None:
        partition = self.state.partition("orders", number)
        if partition.leader in self.up:
            alive = [each for each in partition.replicas if self.state.registry.alive(each)]
            self.isr(*alive, partition=number)

    def do_withdraw(self, number: int, name: str, lost: bool) -> None:
        self.apply(WithdrawReplicas(name, self.epoch(name), ((STREAM, number),), lost))

    def do_begin(self) -> None:
        self.begin()

    def do_stall(self) -> None:
        self.now += 2 * SESSION
        self.began = self.now

    def do_late(self, rounds: int, lossy: bool) -> None:
        self.late, self.lossy = rounds, lossy


def run_of(operation: Operation) -> tuple[str, int]:
    """Which run of which broker it is about."""
    return getattr(operation, "broker", ""), getattr(operation, "broker_epoch", 0)


names = st.sampled_from(NAMES)
numbers = st.integers(0, PARTITIONS - 1)
steps = st.one_of(
    st.tuples(st.just("rounds"), st.integers(1, 20)),
    st.tuples(st.just("silence"), names),
    st.tuples(st.just("noise"), names),
    st.tuples(st.just("restart"), names, st.sampled_from(Ended)),
    st.tuples(st.just("leave"), names),
    st.tuples(st.just("shrink"), numbers, names),
    st.tuples(st.just("grow"), numbers),
    st.tuples(st.just("withdraw"), numbers, names, st.booleans()),
    st.tuples(st.just("begin")),
    st.tuples(st.just("stall")),
    st.tuples(st.just("late"), st.integers(0, 16), st.booleans()),
)


@given(
    st.lists(steps, max_size=25),
    st.lists(names, min_size=3, unique=True),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=200)
def test_whoever_may_lead_leads_when_it_is_calm(history, survivors, min_isr, unclean):
    story = Story(min_isr=min_isr, unclean_election=unclean)
    for step in history:
        story.step(step)
    story.late, story.lossy, story.leaving = 0, False, set()
    for name in NAMES:
        if name not in survivors:
            story.up.discard(name)
        elif name not in story.up or name in story.left or not story.is_(name, BrokerState.ACTIVE):
            story.do_restart(name, Ended.CLEAN)
    # A session until the dead are fenced, one for what is on its way, two until an unclean election, and one
    # more, as what was proposed meanwhile may be refused.
    story.do_rounds(int(5 * SESSION / TICK) + 8)
    for name in survivors:
        assert story.is_(name, BrokerState.ACTIVE)
    for partition in story.state.stream("orders").partitions:
        there = [each for each in partition.replicas if each in survivors]
        if partition.leader:
            assert partition.leader in survivors
        else:
            assert not set(partition.elr) & set(survivors), partition
            assert not recoverable(partition, story.state.registry), partition
            assert not unclean or not there, partition
    # And it stays calm: at most preferred leaders lead again.
    story.do_rounds(int(5 * SESSION / TICK))
    before = [partition.epoch for partition in story.state.stream("orders").partitions]
    story.do_rounds(int(3 * SESSION / TICK))
    assert before == [partition.epoch for partition in story.state.stream("orders").partitions]
