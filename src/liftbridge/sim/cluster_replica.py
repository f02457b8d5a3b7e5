"""One partition on one broker: its log, and the machine of its role, driven as a broker drives it.

What the machines of `replication` say is done here on a simulated log and sent over the network. Nothing is
decided here: which role it has say the metadata, what to append, cut off, send and ack says the machine.

Two ways of carrying messages between a follower and its leader. As *streams*, what a connection does:
messages of a link arrive in order or the link breaks, which the follower notices by silence. As *datagrams*:
every message as it comes, late, twice, never; then a follower begins anew when it has heard nothing that it
could use for a while.

Invariants: an old role has ended before the next begins; while the log is being cut off and synced nothing
else is done with it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from liftbridge.metadata.model import Guarantees, Partition, Stream
from liftbridge.metadata.replica_operations import AlterIsr
from liftbridge.metadata.replicas import Changed, Result
from liftbridge.replication.follower import Append, Damaged, Follower, Restart, Restate, Truncate, Wait
from liftbridge.replication.isr import Unknown
from liftbridge.replication.leader import Leader
from liftbridge.replication.messages import Data, Fence, Fenced, Statement, ToFollower
from liftbridge.sim.cluster_checks import known
from liftbridge.sim.cluster_messages import (
    Ack,
    Cursor,
    Fetch,
    FetchCursor,
    Fetched,
    FromLeader,
    Publish,
    ToLeader,
    Where,
)
from liftbridge.sim.disk import DiskFullError
from liftbridge.sim.replica_log import ReplicaLog, Stored
from liftbridge.sim.world import MILLISECOND

if TYPE_CHECKING:
    from liftbridge.sim.cluster_broker import Broker

PRODUCER = 1_000_000  # records of a producer are its number times this, and counted from there
_FETCHED = 20  # records in an answer
_WAITING = 200  # messages that wait for acks
_QUESTIONS = 50  # questions for cursors that wait
_STASHED = 500  # messages of a link that wait for one before them


class _Waiting(NamedTuple):
    offset: int
    publish: Publish
    client: int


class _Link:
    """One end of a connection: `number` is the follower's for it, `heard` when something came last that
    could be used; one that is `closed` is not used any more."""

    __slots__ = ("closed", "heard", "number", "received", "sent", "stash")

    def __init__(self, number: int, now: int) -> None:
        self.number = number
        self.heard = now
        self.closed = False
        self.sent = 0
        self.received = 0
        self.stash: dict[int, ToLeader | FromLeader] = {}


class Replica:
    """A partition of a running broker.

    Attributes:
        broker, where: whose, and which.
        log: its log.
        role: the machine; None when nobody leads, or while the log is being changed.
        partition: as it is in the metadata that the role was made of or told.
        epoch: leader epoch of the last role.
        guarantees: of the stream.
        statements, exposed: for the checks; broker epoch, session and next offset of the newest statement of
            each follower that counted, and the high watermark of a leader.
    """

    def __init__(self, broker: Broker, where: Where, log: ReplicaLog, high_watermark: int) -> None:
        self.broker = broker
        self.where = where
        self.log = log
        self.role: Leader | Follower | None = None
        self.partition: Partition | None = None
        self.epoch = 0
        self.guarantees = Guarantees()
        self.statements: dict[str, tuple[int, int, int]] = {}
        self.exposed = -1
        self._high_watermark = high_watermark
        self._busy = False  # with changing the log
        self._flushing = False
        self._stored_mark = high_watermark
        self._links: dict[str, _Link] = {}  # of a leader, by follower
        self._link: _Link | None = None  # of a follower
        self._by_leader: deque[_Waiting] = deque()
        self._by_all: deque[_Waiting] = deque()
        self._cursors: dict[int, int] = {}
        self._cursors_to = 0
        self._questions: deque[tuple[int, int, FetchCursor]] = deque(maxlen=_QUESTIONS)  # when, client, what

    # -- roles

    def metadata(self, stream: Stream, partition: Partition, active: dict[str, int]) -> None:
        """The metadata is so now."""
        self.guarantees = stream.guarantees
        self.partition = partition
        role = self.role
        if role is not None and role.epoch == partition.leader_epoch:
            if isinstance(role, Leader):
                role.metadata(partition, active, self.broker.now)
                self._commit()
            else:
                role.metadata(partition)
            return
        self.end_role()
        if not self._busy:
            self._begin(active)

    def end_role(self) -> None:
        """Step down; nothing is acked any more."""
        role, self.role = self.role, None
        if role is None:
            return
        self._high_watermark = role.high_watermark
        if isinstance(role, Leader):
            role.retire()
            for waiting in (*self._by_leader, *self._by_all):
                self._refuse(waiting.client, waiting.publish, "the leader has stepped down")
            self._by_leader.clear()
            self._by_all.clear()
            self._questions.clear()
        self._links.clear()
        self._link = None

    def _begin(self, active: dict[str, int]) -> None:
        """Take the role that the metadata gives."""
        partition, broker = self.partition, self.broker
        assert partition is not None and self.role is None
        if not partition.leader or partition.leader_epoch < self.epoch:
            return
        self.epoch = partition.leader_epoch
        mark = min(self._high_watermark, self.log.next_offset - 1)
        if partition.leader != broker.name:
            self.role = Follower(
                broker.name, broker.epoch, partition, self.log, high_watermark=mark, sessions=broker.sessions
            )
            broker.note("follow", self.epoch, partition.leader)
            self._connect()
            return
        try:
            batch = Stored(self.log.next_offset, partition.leader_epoch)
            self.log.append(batch)
        except DiskFullError:
            broker.withdraw(self.where)
            return
        leader = Leader(
            broker.name,
            self.where[0],
            partition,
            self.guarantees,
            self.log,
            high_watermark=mark,
            broker_epochs=active,
            max_lag=broker.settings.max_lag,
            now=broker.now,
        )
        self.role = leader
        self.statements = {}
        self._cursors, self._cursors_to = {}, self.log.start_offset
        broker.note("lead", self.epoch, self.log.next_offset, mark)
        broker.checks.leads(self, leader)
        broker.checks.appended(self, batch, led=True)
        self._commit()
        self.flush()

    def look(self) -> None:
        """Regularly: what a leader proposes and tells, what a follower states."""
        role = self.role
        if isinstance(role, Leader):
            if role.retired:
                return
            self._propose(role)
            self._commit()
            for name, link in list(self._links.items()):
                link.closed = link.closed or self._silent(link)  # something was lost: it will connect anew
                if not link.closed:
                    self._send(role, name, beat=True)
        elif role is not None and not role.damaged:
            if self._link is not None and self._silent(self._link):
                self._connect()
            elif self._link is not None:
                self._say(role.position())

    def _silent(self, link: _Link) -> bool:
        return self.broker.scheduler.now - link.heard > self.broker.settings.silence

    # -- disk

    def flush(self) -> None:
        """Have everything synced, if what counts is on disk, or it is time."""
        if self._flushing or self._busy or not self.log.unsynced:
            return
        self._flushing = True
        self.log.sync(self.broker.guarded(self._flushed))

    def _flushed(self) -> None:
        self._flushing = False
        role = self.role
        if isinstance(role, Leader):
            self._commit()
        elif role is not None:
            self._say(role.progress())
        if self.guarantees.synced:
            self.flush()

    def store_mark(self) -> None:
        """Write down what is known to be committed, for the next process."""
        mark = self.role.high_watermark if self.role is not None else self._high_watermark
        if mark != self._stored_mark and not self.broker.disk_of(self.where).full:
            self._stored_mark = mark
            self.broker.disk_of(self.where).replace("mark", [mark])

    def _cut(self, offset: int, *, drop: bool) -> None:
        """Change the log, sync it, and go on."""
        self.broker.checks.cuts(self, offset)
        self.broker.note("drop" if drop else "cut", offset, self.log.next_offset)
        try:
            if drop:
                self.log.restart(offset)
            else:
                self.log.truncate(offset)
        except DiskFullError:
            self._link = None
            self.broker.later(50 * MILLISECOND, self._reconnect, self.role)
            return
        self._busy = True
        self.log.sync(self.broker.guarded(self._is_cut))

    def _is_cut(self) -> None:
        self._busy = False
        role = self.role
        if isinstance(role, Follower):
            self._say(role.begin())
        else:
            self.broker.changed()

    def retain(self, offset: int) -> None:
        """Retention removes what is before an offset."""
        if not self._busy and not self.broker.disk_of(self.where).full:
            self.log.retain(offset)

    # -- as a leader

    def stated(self, source: int, message: ToLeader) -> None:
        """A follower says something."""
        role, statement = self.role, message.statement
        if not isinstance(role, Leader):
            known = self.partition.leader_epoch if self.partition is not None else 0
            early = statement.leader_epoch > max(known, self.epoch) or (
                statement.leader_epoch == known and role is None
            )
            reason = Fence.UNKNOWN_LEADER_EPOCH if early else Fence.NOT_LEADING
            fenced = Fenced(known, statement.session, reason)
            self.broker.send(source, FromLeader(self.where, message.link, 0, fenced, ()))
            return
        link = self._links.get(statement.broker)
        if link is None or message.link > link.number:
            link = self._links[statement.broker] = _Link(message.link, self.broker.scheduler.now)
        if message.link < link.number or link.closed:
            return
        for each in self._arrived(link, message):
            assert isinstance(each, ToLeader)
            self._answer(role, each.statement)

    def _arrived(self, link: _Link, message: ToLeader | FromLeader) -> list[ToLeader | FromLeader]:
        """What can be dealt with now that a message of a link has come."""
        now = self.broker.scheduler.now
        if self.broker.settings.datagrams:
            if isinstance(message, ToLeader) or message.batches:
                link.heard = now  # all else does not tell that nothing was lost
            return [message]
        if message.number == link.received:
            link.heard = now
            link.received += 1
            found = [message]
            while link.stash and link.received in link.stash:
                found.append(link.stash.pop(link.received))
                link.received += 1
            return found
        if message.number > link.received and len(link.stash) < _STASHED:
            link.stash[message.number] = message
        return []

    def _answer(self, leader: Leader, statement: Statement) -> None:
        if self.role is not leader:
            return
        before = known(leader, statement.broker)
        answer = leader.state(statement, self.broker.now)
        self.broker.checks.answered(self, leader, statement, answer, before)
        self._reply(statement.broker, answer, ())
        if not isinstance(answer, Fenced):
            self._commit()
            self._send(leader, statement.broker)

    def _reply(self, name: str, message: ToFollower, batches: list[Stored] | tuple[()]) -> None:
        link = self._links.get(name)
        if link is not None and not link.closed:
            number = link.sent
            link.sent += 1
            target = self.broker.number_of(name)
            self.broker.send(target, FromLeader(self.where, link.number, number, message, batches))

    def _send(self, leader: Leader, name: str, *, beat: bool = False) -> None:
        """Send a follower what it has not had, as far as the window goes; `beat`: something in any case."""
        settings, log = self.broker.settings, self.log
        while (place := leader.send_from(name)) is not None:
            batches: list[Stored] = []
            ahead = place.next_offset - leader.followers[name].next_offset
            if ahead < settings.window and place.next_offset >= log.start_offset:
                batches = log.behind(place.next_offset, place.last_epoch, settings.batches)
            if not batches and not beat:
                return
            data = leader.data(name, place.session, [batch.span for batch in batches], self.broker.now)
            if data is None:
                return
            self._reply(name, data, batches)
            if beat or not batches:
                return

    def _commit(self) -> None:
        """What is committed may have moved: acks leave."""
        leader = self.role
        if not isinstance(leader, Leader):
            return
        leader.commit()
        self.broker.checks.looked(self)
        limits = leader.acks(self.broker.lease, self.broker.now)
        for waiting, limit in ((self._by_leader, limits.leader), (self._by_all, limits.all)):
            while waiting and waiting[0].offset <= limit:
                self._ack(waiting.popleft())
        if self._questions:
            self._answer_questions(leader)

    def _ack(self, waiting: _Waiting) -> None:
        publish = waiting.publish
        first = waiting.offset - len(publish.records) + 1
        for offset, record in enumerate(publish.records, first):
            expected = publish.expected if offset == first else -1
            self.broker.checks.acks(self, offset, record, publish.policy, expected)
        self.broker.note("ack", publish.policy, first, publish.records)
        self.broker.told("ack", self)
        self.broker.send(waiting.client, Ack(publish.number, first, ""))

    def _refuse(self, client: int, publish: Publish, why: str) -> None:
        if publish.policy != "none":
            self.broker.send(client, Ack(publish.number, -1, why))

    def publish(self, client: int, publish: Publish) -> None:
        """A client's message has come; who does not lead does not get it from NATS."""
        leader, log = self.role, self.log
        if not isinstance(leader, Leader) or leader.retired:
            self._refuse(client, publish, "not the leader")
            return
        if publish.policy == "all" and leader.under_min_isr:
            self._refuse(client, publish, "too few in-sync replicas")
            return
        if publish.expected not in (-1, log.next_offset):
            self._refuse(client, publish, "incorrect expected offset")
            return
        if len(self._by_all) + len(self._by_leader) >= _WAITING:
            self._refuse(client, publish, "too many messages wait")
            return
        batch = Stored(log.next_offset, leader.epoch, publish.records)
        try:
            log.append(batch)
        except DiskFullError:
            self._refuse(client, publish, "the disk is full")
            return
        self.broker.note("append", leader.epoch, batch.first, publish.records)
        self.broker.checks.appended(self, batch, led=True)
        if publish.policy != "none":
            waiting = self._by_all if publish.policy == "all" else self._by_leader
            waiting.append(_Waiting(log.next_offset - 1, publish, client))
        for name, link in list(self._links.items()):
            if not link.closed:
                self._send(leader, name)
        self._commit()
        if self.guarantees.synced:
            self.flush()

    # -- in-sync replicas

    def _propose(self, leader: Leader) -> None:
        change = leader.propose(self.broker.now)
        if change is None:
            return
        self.broker.note("propose", [name for name, _ in change.isr], change.epoch)
        self.broker.told("propose", self)

        def told(outcome: object) -> None:
            if self.role is leader:
                result = outcome.results[0] if isinstance(outcome, Changed) else Unknown.UNKNOWN
                assert isinstance(result, Result | Unknown)
                leader.resolve(change, result, self.broker.now)
                self._commit()

        self.broker.request(AlterIsr((change,)), told)

    # -- as a follower

    def _connect(self) -> None:
        role = self.role
        assert isinstance(role, Follower)
        self._link = _Link(self.broker.new_link(), self.broker.scheduler.now)
        if not self._busy:
            self._say(role.begin())

    def _reconnect(self, role: object) -> None:
        if self.role is role and isinstance(role, Follower) and not role.damaged:
            self._connect()

    def _say(self, statement: Statement | None) -> None:
        link = self._link
        if statement is None or link is None or self._busy or self.partition is None:
            return
        number = link.sent
        link.sent += 1
        target = self.broker.number_of(self.partition.leader)
        self.broker.send(target, ToLeader(self.where, link.number, number, statement))

    def received(self, message: FromLeader) -> None:
        """A leader says something."""
        link, role = self._link, self.role
        if not isinstance(role, Follower) or link is None:
            return
        if message.link != link.number and not self.broker.settings.datagrams:
            return
        if isinstance(message.message, Fenced):  # perhaps by somebody who keeps no link
            self._act(role, message)
            return
        for each in self._arrived(link, message):
            assert isinstance(each, FromLeader)
            if self._link is link:
                self._act(role, each)

    def _act(self, follower: Follower, message: FromLeader) -> None:
        if self.role is not follower or self._busy:
            return
        action = follower.receive(message.message)
        if isinstance(action, Append):
            self._append(follower, message, action.count)
        elif isinstance(action, Truncate):
            self._cut(action.offset, drop=False)
        elif isinstance(action, Restart):
            self._cut(action.offset, drop=True)
        elif isinstance(action, Restate):
            if self.broker.settings.datagrams:
                self._link = None  # not at once, or what overtakes each other makes it begin anew for ever
                self.broker.later(5 * MILLISECOND, self._reconnect, follower)
            elif action.reason is not None:
                self.broker.checks.fail(f"{self.broker.name} got what does not fit: {action.reason}")
            else:
                self._connect()
        elif isinstance(action, Wait):
            self._link = None
            if action.retry:
                self.broker.later(30 * MILLISECOND, self._reconnect, follower)
        elif isinstance(action, Damaged):
            self.broker.checks.fail(f"J-14: {self.broker.name} takes its log for damaged: {action}")
        if self.role is follower:
            self.broker.checks.looked(self)

    def _append(self, follower: Follower, message: FromLeader, count: int) -> None:
        assert isinstance(message.message, Data)
        try:
            for batch in message.batches[len(message.batches) - count :]:
                self.log.append(batch)
                self.broker.checks.appended(self, batch, led=False)
        except DiskFullError:
            self._link = None
            self.broker.later(50 * MILLISECOND, self._reconnect, follower)
            return
        follower.appended()
        self._say(follower.progress())
        if self.guarantees.synced:
            self.flush()

    # -- readers

    def fetch(self, client: int, fetch: Fetch) -> None:
        """A client wants what is committed, which may be read from a follower as well."""
        role, log = self.role, self.log
        follower = isinstance(role, Follower)
        if role is None or (isinstance(role, Follower) and not role.readable):
            return
        start = max(fetch.offset, log.start_offset)
        end = min(role.high_watermark + 1, start + _FETCHED)
        records = list(log.records(start, end)) if end > start else []
        self.broker.checks.read(self, start, records)
        answer = Fetched(fetch.number, start, log.start_offset, records, follower)
        self.broker.send(client, answer)

    def cursor(self, client: int, fetch: FetchCursor) -> None:
        """A client wants the newest record of a producer: when it is certain that nobody else led then."""
        if isinstance(self.role, Leader):
            self._questions.append((self.broker.now, client, fetch))

    def _answer_questions(self, leader: Leader) -> None:
        questions, log = self._questions, self.log
        while questions and leader.alone(self.broker.lease, questions[0][0], self.broker.now):
            _, client, fetch = questions.popleft()
            start = max(self._cursors_to, log.start_offset)
            self._cursors_to = max(start, leader.high_watermark + 1)
            for _, each in log.records(start, self._cursors_to):
                producer = each // PRODUCER
                self._cursors[producer] = max(each, self._cursors.get(producer, 0))
            self.broker.send(client, Cursor(fetch.number, self._cursors.get(fetch.producer, 0)))
