"""Clients of a simulated cluster: who publishes, who reads, who stores cursors.

What a client publishes reaches every broker that takes itself for the leader, as NATS brings it to whoever
has subscribed. A client that hears nothing sends again, or gives up. Each record has a number of its own, so
a history says where it went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from liftbridge.replication.leader import Leader
from liftbridge.sim.cluster_messages import Ack, Cursor, Fetch, FetchCursor, Fetched, Publish, Where
from liftbridge.sim.cluster_replica import PRODUCER
from liftbridge.sim.world import MILLISECOND

if TYPE_CHECKING:
    from liftbridge.sim.cluster import Cluster

_PATIENCE = 400 * MILLISECOND


class Client:
    """Who sends messages to brokers and gets answers.

    Attributes:
        number: of its host.
        name: a number, for what it publishes.
        where: the partition that it has to do with.
    """

    def __init__(self, cluster: Cluster, name: int, where: Where) -> None:
        self.cluster = cluster
        self.name = name
        self.where = where
        self.number = cluster.world.add_host()
        self._requests = name << 32
        cluster.world.network.attach(self.number, self.receive)

    def receive(self, source: int, message: Any) -> None:
        """An answer has come."""
        raise NotImplementedError

    def request(self) -> int:
        """A number for the next request."""
        self._requests += 1
        return self._requests

    def some(self, most: int) -> int:
        """A random time."""
        return int(self.cluster.world.random.random() * most)


class Producer(Client):
    """Publishes records, one after the other or several at a time.

    Attributes:
        depth: messages that may be without an answer.
        pause: microseconds between two, at most.
        policies: of which each message has one, at random.
        acked: messages that were acked.
        checks_cursor: whether it asks for its newest record after each that was acked.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: int,
        where: Where,
        *,
        depth: int,
        pause: int,
        policies: tuple[str, ...],
        checks_cursor: bool = False,
    ) -> None:
        super().__init__(cluster, name, where)
        self.depth = depth
        self.pause = pause
        self.policies = policies
        self.acked = 0
        self.checks_cursor = checks_cursor
        self._last = 0
        self._next_offset = 0
        # By attempt: what, how often before, what was acked before, and the unclean epoch then.
        self._sent: dict[int, tuple[Publish, int, int, int]] = {}
        self._acked_to = -1
        self._unclean = 0
        self._floor = 0
        self._asked: dict[int, tuple[int, int]] = {}  # by request: least record, unclean epoch
        self._later(self.pause, self._next)

    def _later(self, most: int, action: Any, *arguments: Any) -> None:
        self.cluster.world.scheduler.after(self.some(most), action, *arguments)

    def _next(self) -> None:
        self._later(2 * self.pause, self._next)
        if not self.cluster.publishing or len(self._sent) >= self.depth:
            return
        random = self.cluster.world.random
        policy = random.choice(self.policies)
        self.publish(policy, random.choice((1, 1, 1, 2, 5)) if self.depth > 1 else 1)

    def publish(self, policy: str, count: int = 1) -> None:
        """Publish so many records as one message."""
        random = self.cluster.world.random
        first = self.name * PRODUCER + self._last + 1
        self._last += count
        expected = self._next_offset if policy == "all" and random.random() < 0.1 else -1
        unclean = self.cluster.checks.stories[self.where].unclean
        if unclean != self._unclean:
            self._unclean, self._acked_to, self._floor = unclean, -1, 0
        publish = Publish(self.where, 0, tuple(range(first, first + count)), policy, expected)
        self._send(publish, 0, self._acked_to, unclean)

    def _send(self, publish: Publish, tries: int, after: int, unclean: int) -> None:
        number = self.request()
        publish = publish._replace(number=number)
        if publish.policy != "none":
            self._sent[number] = (publish, tries, after, unclean)
            self.cluster.world.scheduler.after(_PATIENCE, self._give_up, number)
        for broker in self.cluster.leaders(self.where):
            self.cluster.world.network.send(self.number, broker.host.number, publish)

    def _give_up(self, number: int) -> None:
        sent = self._sent.pop(number, None)
        if sent is None:
            return
        publish, tries, after, unclean = sent
        if tries < 3 and self.cluster.publishing and publish.expected < 0:
            self._send(publish, tries + 1, after, unclean)

    def receive(self, source: int, message: Any) -> None:
        """An ack, or a refusal, or where a cursor is."""
        if isinstance(message, Cursor):
            self._cursor(message)
            return
        assert isinstance(message, Ack)
        sent = self._sent.get(message.number)
        if sent is None:
            return
        publish, _, after, unclean = sent
        if message.refused:
            # Another broker may have taken it; who does not hear of that sends it again.
            return
        del self._sent[message.number]
        self.acked += 1
        self.cluster.acked(message, publish)
        self._next_offset = message.offset + len(publish.records)
        if publish.policy != "all":
            return
        if not unclean == self._unclean == self.cluster.checks.stories[self.where].unclean:
            return
        if message.offset <= after:
            self.cluster.checks.fail(f"J-09: {message.offset} was sent after {after} was acked")
        self._acked_to = max(self._acked_to, message.offset)
        if self.checks_cursor:
            self._floor = max(self._floor, publish.records[-1])
            self._ask()

    def _ask(self) -> None:
        """Ask somebody who takes itself for the leader for the newest record."""
        leaders = self.cluster.leaders(self.where)
        if not leaders:
            return
        number = self.request()
        story = self.cluster.checks.stories[self.where]
        self._asked = {number: (self._floor, story.unclean)}
        broker = self.cluster.world.random.choice(leaders)
        self.cluster.world.network.send(
            self.number, broker.host.number, FetchCursor(self.where, number, self.name)
        )

    def _cursor(self, cursor: Cursor) -> None:
        least, unclean = self._asked.pop(cursor.number, (0, 0))
        if unclean != self.cluster.checks.stories[self.where].unclean:
            return
        if cursor.record < least:
            self.cluster.checks.fail(f"J-18: a cursor is at {cursor.record}, it was set to {least} before")


class Consumer(Client):
    """Reads what is committed from one broker and another, and goes on behind what it has read.

    Attributes:
        position: the next offset that it wants.
    """

    def __init__(self, cluster: Cluster, name: int, where: Where, *, pause: int) -> None:
        super().__init__(cluster, name, where)
        self.position = 0
        self._pause = pause
        self._waits = 0
        self._unclean = 0
        cluster.world.scheduler.after(self.some(pause), self._next)

    def _next(self) -> None:
        self.cluster.world.scheduler.after(self.some(2 * self._pause), self._next)
        story = self.cluster.checks.stories[self.where]
        if story.unclean != self._unclean or story.unsettled:
            # Some of what it has read may be gone, which was recorded.
            self._unclean = story.unclean
            self.position = min(self.position, len(story.exposed))
            self._waits = 0
        brokers = [broker for broker in self.cluster.brokers.values() if self.where in broker.replicas]
        if not brokers:
            return
        broker = self.cluster.world.random.choice(brokers)
        self._waits = self.request()
        self.cluster.world.network.send(
            self.number, broker.host.number, Fetch(self.where, self._waits, self.position)
        )

    def receive(self, source: int, message: Any) -> None:
        """Some records."""
        assert isinstance(message, Fetched)
        story = self.cluster.checks.stories[self.where]
        if message.number != self._waits or story.unclean != self._unclean or story.unsettled:
            return
        self._waits = 0
        if message.offset not in (self.position, message.log_start):
            self.cluster.checks.fail(f"J-04: {message.offset} follows {self.position - 1}")
        self.position = message.offset + len(message.records)


def leads(broker: Any, where: Where) -> bool:
    """Whether a broker takes itself for the leader of a partition."""
    replica = broker.replicas.get(where)
    return replica is not None and isinstance(replica.role, Leader) and not replica.role.retired
