"""Replication between brokers: the machines of `replication/` on logs and links.

Each broker has one data link to every broker that leads something it follows, and takes those of the brokers
that follow it. A link carries all their partitions: statements one way, batches and answers the other way. A
partition that has something to send takes its turn on the link of each follower (`replication/credit.py`),
so the number of partitions costs no tasks, and a busy one delays others by its share.

What a batch goes through: the leader appends it, offers its turn, and has its disk sync it meanwhile; the
turn reads it from the page cache as it is stored and sends it; the follower compares it with what was
announced, appends it as it is, and states where its log ends, under the sync policy `always` once it is on
its disk. That moves the leader's high watermark, and acks leave.

What goes wrong with a link costs a new session of each partition on it, and nothing else: nothing here
remembers what was on its way.

Invariants:
- A machine is asked before anything happens to a log of its partition, and told after it.
- While a log is cut off, by a thread, its follower has no session, so nothing is appended.
- A role that has ended touches the log no more; whoever takes up the next waits for `idle`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import trio

from liftbridge.broker.controller import Controller
from liftbridge.broker.peers import FollowLink, Key, LeadLink, LinkError, Peers
from liftbridge.log import Log, LogClosedError, LogError, ReceivedBatches
from liftbridge.metadata.broker_operations import BrokerOperation, WithdrawReplicas
from liftbridge.metadata.brokers import BrokerState
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.model import Partition as PartitionModel
from liftbridge.metadata.model import Stream
from liftbridge.metadata.operations import Operation
from liftbridge.metadata.replica_operations import AlterIsr, IsrChange
from liftbridge.metadata.replicas import Changed
from liftbridge.metadata.state import Outcome
from liftbridge.replication.acks import AckLimits
from liftbridge.replication.follower import (
    Append,
    Damaged,
    Follower,
    Restart,
    Restate,
    Truncate,
    Wait,
    sessions_of,
)
from liftbridge.replication.isr import Unknown
from liftbridge.replication.leader import Leader
from liftbridge.replication.lease import Lease
from liftbridge.replication.messages import (
    Accepted,
    Batch,
    Data,
    Fence,
    Fenced,
    Statement,
    ToFollower,
)

# What one turn of a partition reads at most; a batch that is larger goes alone.
READ_BYTES = 256 * 1024
# How often leaders look whether their in-sync replicas are to be others, when nothing has happened.
LOOK_SECONDS = 0.5
# A follower that cannot go on now tries again.
AGAIN_SECONDS = 0.5
# Of the longest lag, how often followers are heard of in any case.
HEARD_SHARE = 1 / 3

logger = logging.getLogger("liftbridge.replication")


class Replica(Protocol):
    """What roles need of a partition (`broker/partition.py`)."""

    stream: Stream
    model: PartitionModel
    high_watermark: int

    @property
    def log(self) -> Log:
        """The open log."""

    def advanced(self) -> None:
        """What its role knows to be committed may have grown, or what may be acked."""

    def written(self) -> None:
        """Something was appended that did not come from publishers."""

    def messages_changed(self) -> None:
        """Messages were removed or replaced."""

    def fail(self, reason: str) -> None:
        """What the log needs cannot be done any more."""


def key_of(partition: Replica) -> Key:
    """Which partition it is, on links."""
    return partition.stream.stream_id, partition.model.id


class Leading:
    """This broker leads a partition that has replicas elsewhere."""

    __slots__ = ("_replicator", "key", "machine", "partition")

    def __init__(self, replicator: Replicator, partition: Replica, machine: Leader) -> None:
        self._replicator = replicator
        self.partition = partition
        self.machine = machine
        self.key = key_of(partition)

    @property
    def high_watermark(self) -> int:
        """The last offset that is committed."""
        return self.machine.high_watermark

    def appended(self) -> None:
        """The log has grown: followers get it, whatever the disk does meanwhile."""
        self._replicator.offer(self)

    def commit(self) -> AckLimits:
        """Own appends or syncs have gone so far: up to where acks may leave."""
        before = self.machine.high_watermark
        self.machine.commit()
        if self.machine.high_watermark != before:
            self._replicator.offer(self)  # followers are told
        return self.machine.acks(self._replicator.lease, trio.current_time())

    def metadata(self, model: PartitionModel) -> None:
        """The metadata is so now; this broker leads still."""
        self.machine.metadata(model, self._replicator.broker_epochs(), trio.current_time())
        self._replicator.look_at(self)
        self.partition.advanced()

    def state(self, statement: Statement, link: LeadLink) -> None:
        """A follower says where it is."""
        before = self.machine.high_watermark
        answer = self.machine.state(statement, trio.current_time())
        begins = self._replicator.begins_session(link, self.key, statement)
        if begins or not isinstance(answer, Accepted):
            link.send(self.key, answer)
        if isinstance(answer, Accepted):
            self._replicator.offer_to(link, self)
            self._replicator.look_at(self)
            if self.machine.high_watermark != before:
                self._replicator.offer(self)
            self.partition.advanced()

    async def send(self, link: LeadLink, size: int) -> tuple[int, bool]:
        """Send the next batches to a follower, within its turn. Returns how many bytes, and whether there
        is more."""
        place = self.machine.send_from(link.broker)
        if place is None or not self._replicator.is_session(link, self.key, place.session):
            return 0, False
        read = partial(self.partition.log.read_batches, place.next_offset, place.last_epoch, size)
        try:
            try:
                payload, described = read(nowait=True)
            except BlockingIOError:
                payload, described = await trio.to_thread.run_sync(partial(read, nowait=False))
        except LogClosedError:
            return 0, False  # it is about to end
        except (OSError, LogError) as error:
            self._replicator.unreadable(self, error)
            return 0, False
        batches = [Batch(*each) for each in described]
        data = self.machine.data(link.broker, place.session, batches)
        if data is None:
            return 0, False
        news = self._replicator.is_news(link, self.key, data)
        if batches or news:
            await link.send_data(self.key, data, payload)
        following = self.machine.send_from(link.broker)
        more = following is not None and following.next_offset < self.partition.log.next_offset
        return len(payload), more

    def end(self) -> None:
        """This broker leads it no more."""
        self.machine.retire()
        self._replicator.forget_leading(self)


class Following:
    """This broker follows the leader of a partition."""

    __slots__ = (
        "_broker_epoch",
        "_idle",
        "_over",
        "_replicator",
        "key",
        "leader",
        "link",
        "machine",
        "partition",
    )

    def __init__(
        self, replicator: Replicator, partition: Replica, machine: Follower, leader: str, broker_epoch: int
    ) -> None:
        self._replicator = replicator
        self._broker_epoch = broker_epoch
        self.partition = partition
        self.machine = machine
        self.leader = leader
        self.key = key_of(partition)
        self.link: FollowLink | None = None
        self._over = False
        self._idle: trio.Event | None = None  # set when the log is not being cut off any more

    @property
    def high_watermark(self) -> int:
        """The last offset here that is committed."""
        return self.machine.high_watermark

    def follows(self, model: PartitionModel) -> bool:
        """Whether it goes on as the metadata is now."""
        return (
            not self._over
            and model.leader == self.leader
            and self._replicator.broker_epoch == self._broker_epoch
            and self.machine.metadata(model)
        )

    def connected(self, link: FollowLink | None) -> None:
        """There is a link to the leader, or none any more."""
        self.link = link
        self._begin()

    def _begin(self) -> None:
        if self.link is not None and self._idle is None and not self._over and not self.machine.damaged:
            self.link.send(self.key, self.machine.begin())

    def progressed(self) -> None:
        """The log has grown or was synced: the leader is told."""
        self._state(self.machine.progress())

    def heard(self) -> None:
        """The leader is to hear of this follower."""
        self._state(self.machine.position())

    def _state(self, statement: Statement | None) -> None:
        if statement is not None and self.link is not None and not self._over:
            self.link.send(self.key, statement)

    def receive(self, message: ToFollower, payload: bytes) -> None:
        """Something has come from the leader."""
        action = self.machine.receive(message)
        if isinstance(action, Append):
            assert isinstance(message, Data), message
            self._append(message, action.count, payload)
        elif isinstance(action, Truncate | Restart):
            self._idle = trio.Event()
            self._replicator.spawn(partial(self._cut, action))
        elif isinstance(action, Restate):
            if action.reason is not None:
                self._replicator.note_misfit(self, action.reason.value)
            self._begin()
        elif isinstance(action, Wait):
            if action.retry:
                self._replicator.spawn(self._begin_later)
        elif isinstance(action, Damaged):
            self._damaged(action)
        self.partition.advanced()

    def _append(self, message: Data, count: int, payload: bytes) -> None:
        log = self.partition.log
        try:
            received = _received(message, payload)
        except ValueError as error:
            self._replicator.note_misfit(self, str(error))
            self._replicator.spawn(self._begin_later)
            return
        try:
            log.append_batches(received, count)
        except (OSError, LogError) as error:
            if log.failed is not None:
                self.partition.fail(f"the log failed: {error}")
            else:
                self._replicator.note_misfit(self, f"the batches cannot be stored: {error}")
                self._replicator.spawn(self._begin_later)
            return
        self.machine.appended()
        self.partition.written()

    async def _begin_later(self) -> None:
        await trio.sleep(AGAIN_SECONDS)
        self._begin()

    async def _cut(self, action: Truncate | Restart) -> None:
        """Have a thread cut off what the leader has not."""
        assert self._idle is not None
        log = self.partition.log
        cut = log.truncate if isinstance(action, Truncate) else log.begin_at
        logger.info(
            "%s: cutting the log off at offset %d, it ended at %d",
            self.partition,
            action.offset,
            log.next_offset,
        )
        with _isolated(self.partition), trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(cut, action.offset)
                self.partition.messages_changed()
            except (OSError, LogError) as error:
                self.partition.fail(f"the log could not be cut off at offset {action.offset}: {error}")
        self._idle.set()
        self._idle = None
        self._begin()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is done to the log by a thread."""
        return self._idle is None

    async def idle(self) -> None:
        """Wait until that is so."""
        while self._idle is not None:
            await self._idle.wait()

    def _damaged(self, action: Damaged) -> None:
        self.partition.fail(
            f"its leader's log ends at offset {action.offset}, but messages up to offset "
            f"{action.high_watermark} were committed here: one of the two has lost committed messages"
        )

    def end(self) -> None:
        """This broker does not follow that leader in that epoch any more."""
        self._over = True
        self._replicator.forget_following(self)


@contextmanager
def _isolated(partition: Replica) -> Iterator[None]:
    """A defect that shows in one partition is to end that one, and not what all of them share."""
    try:
        yield
    except LinkError:
        raise
    except Exception as error:
        logger.exception("%s has failed", partition)
        partition.fail(f"replication has failed: {type(error).__name__}: {error}")


def _received(message: Data, payload: bytes) -> ReceivedBatches:
    """The batches that have come with a message. Raises ValueError: they are not whole, or others."""
    received = ReceivedBatches(payload, message.batches[0].first)
    if list(received) != [(each.first, each.next_offset, each.epoch, each.size) for each in message.batches]:
        raise ValueError("the batches are not those that were announced")
    return received


class _Upstream:
    """What this broker follows of one leader's broker."""

    def __init__(self) -> None:
        self.following: dict[Key, Following] = {}
        self.link: FollowLink | None = None
        self.scope = trio.CancelScope()


class _Downstream:
    """A broker that follows what is led here, on its link."""

    def __init__(self) -> None:
        self.news = trio.Event()
        self.sessions: dict[Key, int] = {}  # the newest that was answered
        self.told: dict[Key, tuple[int, int]] = {}  # high watermark and log start

    def forget(self, key: Key) -> None:
        """The link has nothing to do with a partition any more."""
        self.sessions.pop(key, None)
        self.told.pop(key, None)


class Replicator:
    """All roles of this broker in partitions with several replicas. Have `run` run."""

    def __init__(
        self,
        controller: Controller,
        peers: Peers,
        lease: Lease,
        *,
        max_lag: float,
    ) -> None:
        """`max_lag` is how long an in-sync replica need not be caught up, in seconds."""
        self.lease = lease
        self._controller = controller
        self.broker = controller.broker
        self._peers = peers
        self._max_lag = max_lag
        self._leading: dict[Key, Leading] = {}
        self._upstreams: dict[str, _Upstream] = {}
        self._downstreams: dict[LeadLink, _Downstream] = {}
        self._to_look_at: dict[Key, None] = {}
        self._look = trio.Event()
        self._sessions_epoch = 0
        self._sessions: Iterator[int] = iter(())
        self._nursery: trio.Nursery | None = None
        self.misfits: Counter[str] = Counter()

    # -- roles

    def lead(self, partition: Replica) -> Leading:
        """Take the role of the leader; the log has the beginning of the leader epoch."""
        model = partition.model
        machine = Leader(
            self.broker,
            partition.stream.stream_id,
            model,
            partition.stream.guarantees,
            partition.log,
            high_watermark=partition.high_watermark,
            broker_epochs=self.broker_epochs(),
            max_lag=self._max_lag,
            now=trio.current_time(),
        )
        leading = Leading(self, partition, machine)
        self._leading[leading.key] = leading
        return leading

    def follow(self, partition: Replica) -> Following:
        """Take the role of a follower of the leader that the metadata has."""
        model = partition.model
        epoch = self.broker_epoch
        if epoch != self._sessions_epoch:
            self._sessions_epoch, self._sessions = epoch, sessions_of(epoch)
        machine = Follower(
            self.broker,
            epoch,
            model,
            partition.log,
            high_watermark=partition.high_watermark,
            sessions=self._sessions,
        )
        following = Following(self, partition, machine, model.leader, epoch)
        upstream = self._upstreams.get(model.leader)
        if upstream is None:
            upstream = self._upstreams[model.leader] = _Upstream()
            self.spawn(partial(self._follow, model.leader, upstream))
        upstream.following[following.key] = following
        following.connected(upstream.link)
        return following

    def forget_leading(self, leading: Leading) -> None:
        """It has ended."""
        if self._leading.get(leading.key) is leading:
            del self._leading[leading.key]
            self._to_look_at.pop(leading.key, None)
            for link, downstream in self._downstreams.items():
                link.forget(leading.key)
                downstream.forget(leading.key)

    def forget_following(self, following: Following) -> None:
        """It has ended."""
        upstream = self._upstreams.get(following.leader)
        if upstream is None or upstream.following.get(following.key) is not following:
            return
        del upstream.following[following.key]
        if upstream.link is not None:
            upstream.link.forget(following.key)
        if not upstream.following:
            del self._upstreams[following.leader]
            upstream.scope.cancel()

    @property
    def broker_epoch(self) -> int:
        """Of this broker, 0 while it is not registered."""
        record = self._controller.state.brokers.get(self.broker)
        return 0 if record is None else record.epoch

    def broker_epochs(self) -> Mapping[str, int]:
        """Of the brokers that may be admitted to in-sync replicas."""
        brokers = self._controller.state.brokers.values()
        return {broker.id: broker.epoch for broker in brokers if broker.state is BrokerState.ACTIVE}

    def on_operation(self, index: int, operation: Operation, outcome: Outcome) -> None:
        """The controller, after partitions know: leaders look at the brokers that there are."""
        if isinstance(operation, BrokerOperation):
            for leading in list(self._leading.values()):
                leading.metadata(leading.partition.model)

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task for a role, as long as `run` runs."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

    # -- tasks

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Replicate until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._peers.lead(self._accept)
            nursery.start_soon(self._look_after)
            nursery.start_soon(self._let_be_heard)
            task_status.started()
            await trio.sleep_forever()

    async def _follow(self, leader: str, upstream: _Upstream) -> None:
        """Keep the link to a leader's broker for as long as something there is followed."""
        with upstream.scope:
            await self._peers.follow(leader, partial(self._run_follow_link, upstream))

    async def _run_follow_link(self, upstream: _Upstream, link: FollowLink) -> None:
        upstream.link = link
        try:
            for following in list(upstream.following.values()):
                following.connected(link)
            while True:
                for key, message, payload in await link.receive():
                    receiver = upstream.following.get(key)
                    if receiver is not None:
                        with _isolated(receiver.partition):
                            receiver.receive(message, payload)
                    link.dealt_with(len(payload))
        finally:
            upstream.link = None
            for following in upstream.following.values():
                following.connected(None)

    async def _let_be_heard(self) -> None:
        """Have leaders hear of this broker also when nothing happens."""
        while True:
            await trio.sleep(self._max_lag * HEARD_SHARE)
            for upstream in list(self._upstreams.values()):
                for following in list(upstream.following.values()):
                    following.heard()
                await trio.lowlevel.checkpoint()

    async def _accept(self, link: LeadLink) -> None:
        """Serve a broker that follows, until its link is lost."""
        downstream = self._downstreams[link] = _Downstream()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, link, downstream)
                while True:
                    statements = await link.receive()
                    for key in link.take_forgotten():
                        downstream.forget(key)
                    for key, statement in statements:
                        self._state(link, key, statement)
                    downstream.news.set()  # credit may have come back
        finally:
            del self._downstreams[link]

    def _state(self, link: LeadLink, key: Key, statement: Statement) -> None:
        leading = self._leading.get(key)
        if leading is not None:
            with _isolated(leading.partition):
                leading.state(statement, link)
            return
        stream = self._controller.state.stream_by_id(key[0])
        epoch = 0
        if stream is not None and key[1] < len(stream.partitions):
            epoch = stream.partitions[key[1]].leader_epoch
        # Whoever states an epoch that is not known here yet is to try again.
        newer = statement.leader_epoch > epoch or (stream is not None and epoch == statement.leader_epoch)
        reason = Fence.UNKNOWN_LEADER_EPOCH if newer else Fence.NOT_LEADING
        link.send(key, Fenced(epoch, statement.session, reason))

    async def _send(self, link: LeadLink, downstream: _Downstream) -> None:
        while True:
            turn = link.turns.next()
            if turn is None:
                downstream.news = trio.Event()
                await downstream.news.wait()
                continue
            key, size = turn
            leading = self._leading.get(key)
            if leading is None:
                link.turns.withdraw(key)
                continue
            sent, more = await leading.send(link, min(size, READ_BYTES))
            link.turns.sent(key, sent, more=more)
            await trio.lowlevel.checkpoint()

    # -- what leaders want

    def offer(self, leading: Leading) -> None:
        """Followers are to be sent something."""
        for link, downstream in self._downstreams.items():
            if link.broker in leading.machine.followers:
                link.turns.offer(leading.key)
                downstream.news.set()

    def offer_to(self, link: LeadLink, leading: Leading) -> None:
        """A follower may have to be sent something."""
        link.turns.offer(leading.key)
        self._downstreams[link].news.set()

    def begins_session(self, link: LeadLink, key: Key, statement: Statement) -> bool:
        """Whether the statement is the first of its session on the link."""
        downstream = self._downstreams[link]
        begins = downstream.sessions.get(key) != statement.session
        if begins:
            downstream.sessions[key] = statement.session
            downstream.told.pop(key, None)
        return begins

    def is_session(self, link: LeadLink, key: Key, session: int) -> bool:
        """Whether a session was begun on this link: that of another, which is lost, is sent nothing."""
        return self._downstreams[link].sessions.get(key) == session

    def is_news(self, link: LeadLink, key: Key, data: Data) -> bool:
        """Whether a follower does not know what data without batches says."""
        told = self._downstreams[link].told
        news = data.high_watermark, data.log_start
        if told.get(key) == news:
            return False
        told[key] = news
        return True

    def unreadable(self, leading: Leading, error: Exception) -> None:
        """What followers are to get cannot be read."""
        reason = f"what its followers are to get cannot be read: {error}"
        leading.partition.fail(reason)

    def note_misfit(self, following: Following, reason: str) -> None:
        """What has come could not be appended."""
        self.misfits[reason] += 1
        if self.misfits[reason] == 1:
            logger.warning("%s: what its leader sends is not appended: %s", following.partition, reason)

    def look_at(self, leading: Leading) -> None:
        """Its in-sync replicas may have to be others."""
        machine = leading.machine
        if len(machine.isr.committed) != len(leading.partition.model.replicas):
            self._to_look_at[leading.key] = None
            self._look.set()

    def withdraw(self, partition: Replica, *, lost: bool) -> None:
        """This replica cannot be used any more: others are to lead, if there are any."""
        if len(partition.model.replicas) > 1:
            self.spawn(partial(self._withdraw, partition, lost))

    async def _withdraw(self, partition: Replica, lost: bool) -> None:
        operation = WithdrawReplicas(self.broker, self.broker_epoch, (key_of(partition),), lost)
        try:
            await self._controller.propose(operation)
        except MetadataError as error:
            logger.warning("%s could not be given up: %s", partition, error.text)

    async def _look_after(self) -> None:
        """Have changes of in-sync replicas agreed on."""
        since = trio.current_time()
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._look.wait()
            self._look = trio.Event()
            now = trio.current_time()
            if now - since >= self._max_lag / 5:
                since = now
                candidates: Iterable[Leading] = list(self._leading.values())
            else:
                candidates = [self._leading[key] for key in self._to_look_at if key in self._leading]
            self._to_look_at.clear()
            proposals = []
            for leading in candidates:
                with _isolated(leading.partition):
                    change = leading.machine.propose(now)
                    if change is not None:
                        proposals.append((leading, change))
            if proposals:
                await self._alter(proposals)

    async def _alter(self, proposals: list[tuple[Leading, IsrChange]]) -> None:
        try:
            outcome = await self._controller.propose(AlterIsr(tuple(change for _, change in proposals)))
        except MetadataError as error:
            logger.info("in-sync replicas were not changed yet: %s", error.text)
            results = None
        else:
            assert isinstance(outcome, Changed), outcome
            results = outcome.results
        now = trio.current_time()
        for number, (leading, change) in enumerate(proposals):
            leading.machine.resolve(change, Unknown.UNKNOWN if results is None else results[number], now)
            leading.partition.advanced()
            self.offer(leading)
