"""Messages between hosts: lost, late, overtaking, doubled, held back for long, repeated after ages, cut
off.

Nothing that is allowed to a datagram is spared the protocol, though brokers talk over connections: after a
reconnect an old message may follow a newer one, and a protocol that survives the worse survives the better.
A cut is of one direction; a partition is made of cuts. What was sent before a cut still arrives.

Two things go beyond bad luck. A message that is *held* arrives seconds later, terms later. And the network
remembers what it carried: `replay` sends old messages again, to the same receiver, whatever has been
started anew since.

Invariant: a message arrives at the host that it was sent to, unchanged, or it does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from liftbridge.sim.scheduler import Scheduler

_REMEMBERED = 400  # messages, for `replay`


@dataclass
class Weather:
    """How bad the network is; may be changed at any time. Probabilities are 0 to 1, times microseconds."""

    delay_from: int = 200
    delay_to: int = 2_000
    loss: float = 0.0
    double: float = 0.0
    """Of a message arriving twice, at different times."""
    late: float = 0.0
    """Of a delay ten times as long, so that others overtake."""
    hold: float = 0.0
    """Of being held back for `hold_from` to `hold_to`."""
    hold_from: int = 200_000
    hold_to: int = 3_000_000


class Network:
    """All links. Hosts are whole numbers."""

    def __init__(self, scheduler: Scheduler, random: Random, weather: Weather) -> None:
        self.weather = weather
        self.sent = 0
        self.lost = 0
        self._scheduler = scheduler
        self._random = random
        self._receivers: dict[int, Callable[[int, Any], None]] = {}
        self._cut: set[tuple[int, int]] = set()
        self._slow: dict[tuple[int, int], int] = {}
        self._remembered: deque[tuple[int, int, Any]] = deque(maxlen=_REMEMBERED)

    def attach(self, host: int, receive: Callable[[int, Any], None]) -> None:
        """Messages for a host go to `receive(source, message)`; whether someone is at home is up to the
        host.
        """
        self._receivers[host] = receive

    def send(self, source: int, target: int, message: Any) -> None:
        """Send a message, which must never be changed afterwards."""
        self.sent += 1
        weather, random = self.weather, self._random.random
        self._remembered.append((source, target, message))
        if (source, target) in self._cut or (weather.loss and random() < weather.loss):
            self.lost += 1
            return
        self._carry(source, target, message)
        if weather.double and random() < weather.double:
            self._carry(source, target, message)

    def _carry(self, source: int, target: int, message: Any) -> None:
        weather, random = self.weather, self._random.random
        delay = weather.delay_from + int(random() * (weather.delay_to - weather.delay_from))
        if weather.late and random() < weather.late:
            delay *= 10
        if weather.hold and random() < weather.hold:
            delay += weather.hold_from + int(random() * (weather.hold_to - weather.hold_from))
        if self._slow:
            delay += self._slow.get((source, target), 0)
        self._scheduler.after(delay, self._receivers[target], source, message)

    def replay(self, count: int, target: int | None = None) -> None:
        """Send `count` of the messages that were sent lately again, those to `target` only if that is
        given, at random and within a tenth of a second.
        """
        old = [each for each in self._remembered if target is None or each[1] == target]
        chosen = self._random.sample(old, min(count, len(old)))
        for source, destination, message in chosen:
            if (source, destination) not in self._cut:
                delay = int(self._random.random() * 100_000)
                self._scheduler.after(delay, self._receivers[destination], source, message)

    def cut(self, sources: Iterable[int], targets: Iterable[int]) -> None:
        """Let nothing that the sources send from now on reach the targets."""
        targets = tuple(targets)
        self._cut.update((source, target) for source in sources for target in targets if source != target)

    def mend(self, sources: Iterable[int], targets: Iterable[int]) -> None:
        """Take back cuts of these directions."""
        targets = tuple(targets)
        self._cut.difference_update((source, target) for source in sources for target in targets)

    def isolate(self, hosts: Iterable[int]) -> None:
        """Part these hosts from all others, in both directions; among themselves nothing changes."""
        inside = set(hosts)
        outside = [host for host in self._receivers if host not in inside]
        self.cut(inside, outside)
        self.cut(outside, inside)

    def slow(self, source: int, target: int, delay: int) -> None:
        """Add so many microseconds to each message of one direction; 0 is none."""
        self._slow[source, target] = delay

    def heal(self) -> None:
        """Take back all cuts and slow links."""
        self._cut.clear()
        self._slow.clear()

    def reaches(self, source: int, target: int) -> bool:
        """Whether that direction is not cut."""
        return (source, target) not in self._cut
