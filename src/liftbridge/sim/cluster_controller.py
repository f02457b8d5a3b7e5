"""What a broker does while it decides: it hears heartbeats, and proposes what `Control` says.

It decides while it leads the consensus and has applied an entry of its own term, so that everything agreed on
before is known to it. A heartbeat is confirmed only when a majority has confirmed, after it came, that this
broker leads still: one that was cut off or stood still would confirm leases beside another that fences.

Invariant: a `Control` lasts for one leadership.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from liftbridge.metadata.control import Control, Heard
from liftbridge.metadata.operations import Operation
from liftbridge.sim.cluster_messages import Beat, BeatAnswer, Positions, Question

if TYPE_CHECKING:
    from liftbridge.sim.cluster_broker import Broker


class Barrier(NamedTuple):
    """Heartbeats that wait until a majority has confirmed who leads, with what they are to be answered."""

    control: Control
    answers: tuple[tuple[int, BeatAnswer], ...]


class Controller:
    """The part of a broker that decides, when it is its turn.

    Attributes:
        control: what decides; None when this broker does not.
    """

    def __init__(self, broker: Broker) -> None:
        self.control: Control | None = None
        self._broker = broker
        self._term = 0
        self._answers: list[tuple[int, BeatAnswer]] = []
        self._waiting = False
        self._asked_at = 0.0

    def look(self) -> None:
        """Regularly: begin or end to decide, and propose what is due."""
        broker = self._broker
        core = broker.host.core
        if core is None or not core.leads_durably or broker.machine.index < _start(broker):
            self._end()
            return
        now = broker.now
        if self.control is None or self._term != core.term:
            self._end()
            self._term = core.term
            self.control = Control(broker.machine.cluster, now, session=broker.settings.session)
            broker.note("decide", core.term)
        for operation in self.control.due(now):
            self._propose(self.control, operation)
        if now >= self._asked_at + broker.settings.beat:
            self._asked_at = now
            for name, partitions in self.control.wanted().items():
                broker.send(broker.number_of(name), Question(partitions))
        self._ask()

    def _end(self) -> None:
        self.control = None
        self._answers.clear()
        self._waiting = False

    def _propose(self, control: Control, operation: Operation) -> None:
        broker = self._broker
        broker.note("due", operation)

        def told(index: int | None) -> None:
            if index is not None:
                control.resolved(operation, broker.now)

        if not broker.host.propose(operation.encode(), told):
            control.resolved(operation, broker.now)

    def beat(self, source: int, beat: Beat) -> None:
        """A heartbeat has come."""
        if self.control is None:
            return
        broker = self._broker
        heard = self.control.heard(beat.broker, beat.broker_epoch, broker.now, leaving=beat.leaving)
        answer = BeatAnswer(beat.broker_epoch, beat.sent, heard, broker.machine.index)
        if heard is Heard.CONFIRMED:
            self._answers.append((source, answer))
        else:
            broker.send(source, answer)

    def _ask(self) -> None:
        """Ask a majority whether this broker leads still, for all heartbeats that wait."""
        core = self._broker.host.core
        if not self._answers or self._waiting or core is None or self.control is None:
            return
        if core.read_index(Barrier(self.control, tuple(self._answers))):
            self._answers.clear()
            self._waiting = True
            self._broker.host.work()

    def confirmed(self, barrier: Barrier) -> None:
        """It did, when the heartbeats came."""
        self._waiting = False
        if barrier.control is self.control:
            for source, answer in barrier.answers:
                self._broker.send(source, answer)

    def positions(self, positions: Positions) -> None:
        """A broker has answered what it has."""
        if self.control is not None:
            self.control.stated(positions.broker, positions.broker_epoch, positions.positions)


def _start(broker: Broker) -> int:
    core = broker.host.core
    assert core is not None and core.leadership is not None
    return core.leadership.start
