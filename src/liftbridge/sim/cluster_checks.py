"""What must hold in every run of a cluster, checked at each step that could break it.

The names are those of the invariants that fault injection checks, J-01 to J-22. The checks know everything,
also what no broker knows: what was agreed on (`truth`), all logs, all disks. What a leader exposes as
committed is the measure of most: from then on it must be in every log that may count, and be read by
everybody who reads there.

| name | where |
|---|---|
| J-01, J-05, J-07 | `leads`, `looked`: what was exposed stays, and every leader has it |
| J-02, J-12 | `acks`, `_exposes`: an offset is acked for one message; nothing is committed by too few |
| J-03 | `lost_by_leaders`: what a leader acked alone is lost only with its leadership, or power |
| | `fenced`, `leased`, `acks`: another is made for its silence when its lease is over |
| J-04, J-05, J-15, J-17 | `reads` here, and the consumer, which goes on behind what it has read |
| J-06, J-10 | `appended`: records of the same epoch and offset are the same, and so is what is before them |
| J-08, J-09 | `kept`, and who publishes: what was acked is there, and in the order of sending |
| J-11 | `_members`: who is in sync, or eligible, has everything that is committed, on disk if that counts |
| J-13 | `answered`: what is old is fenced, and what is fenced changes nothing |
| J-14 | `cuts`: nothing exposed is cut off |
| J-16 | `acks`: who expects an offset gets it, or nothing |
| J-18 | the client of cursors |
| J-19 | `_groups`: a partition belongs to one member at most |
| J-20 | `entry`, `agreed`: an operation has the same outcome on every broker |
| J-21, J-22 | the run (`cluster.py`) |

What an unclean election gives up is exempt, and counted; each has to have a cause.

Invariant: nothing here changes what a broker does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from liftbridge.metadata.broker_operations import Ended, FenceBroker, RegisterBroker, WithdrawReplicas
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.model import Guarantees, Partition
from liftbridge.metadata.operations import DeleteStream, Operation
from liftbridge.metadata.replica_operations import AlterIsr, ChangeLeaders
from liftbridge.metadata.state import ClusterState, Outcome
from liftbridge.replication.follower import Follower
from liftbridge.replication.leader import Leader
from liftbridge.replication.messages import Accepted, Answer, Fenced, Statement
from liftbridge.sim.disk import DAMAGED
from liftbridge.sim.replica_log import Stored
from liftbridge.sim.world import Violation, World

if TYPE_CHECKING:
    from liftbridge.sim.cluster_broker import Broker
    from liftbridge.sim.cluster_messages import Where
    from liftbridge.sim.cluster_replica import Replica


class Story:
    """What has become of a partition.

    Attributes:
        guarantees: of its stream.
        exposed: epoch and record of what was committed, by offset.
        acked: records that were acked as committed, by offset.
        by_leader: records that a leader has acked alone, by offset and epoch.
        appenders: who leads, by epoch.
        made: when a leader began to act, by epoch, in order.
        written: record and epoch of the record before, by epoch and offset.
        doubtful: brokers that may lack what they had, and the metadata do not know yet.
        robbed: brokers whose disk has lost what it had synced, likewise.
        losers: brokers that have lost something since they were in sync.
        unclean: of the newest unclean election, the leader epoch; `given_up`: whose cost is known.
        power_lost: whether an unsynced log has lost anything, ever.
    """

    def __init__(self, guarantees: Guarantees) -> None:
        self.guarantees = guarantees
        self.exposed: list[tuple[int, int]] = []
        self.acked: dict[int, int] = {}
        self.by_leader: dict[tuple[int, int], int] = {}
        self.appenders: dict[int, str] = {}
        self.made: list[tuple[int, int]] = []
        self.written: dict[tuple[int, int], tuple[int, int]] = {}
        self.doubtful: set[str] = set()
        self.robbed: set[str] = set()
        self.losers: set[str] = set()
        self.unclean = 0
        self.given_up = 0
        self.power_lost = False

    @property
    def unsettled(self) -> bool:
        """Whether an unclean election has cost something that is not known yet."""
        return self.given_up < self.unclean


class ClusterChecks:
    """Everything that was ever claimed in a run.

    Attributes:
        truth: the metadata as they are agreed on.
        partitions: those that there are.
        stories: what has become of each partition that there ever was.
        unclean: unclean elections.
        lost: messages acked by a leader alone that were lost.
        reads: records read.
    """

    def __init__(self, world: World, lease: int) -> None:
        self.truth = ClusterState()
        self.stories: dict[Where, Story] = {}
        self.unclean = 0
        self.lost = 0
        self.reads = 0
        self._world = world
        self._lease = lease
        self._brokers: dict[str, Broker] = {}
        self._index = 0
        self._outcomes: dict[int, Outcome | MetadataError] = {}
        self.partitions: dict[Where, Partition] = {}

    def begin(self, state: bytes, index: int, brokers: dict[str, Broker]) -> None:
        """The cluster begins with these metadata, after that index."""
        self.truth.restore(state)
        self._index = index
        self._brokers = brokers
        self._look_at_partitions(None)

    def fail(self, what: str) -> None:
        """Raises Violation."""
        raise Violation(what)

    # -- the metadata

    def entry(self, index: int, operation: Operation, outcome: Outcome | MetadataError) -> None:
        """A broker has applied an operation."""
        if index <= self._index:
            if not _same(self._outcomes[index], outcome):
                self.fail(
                    f"J-20: {operation} at {index} has become {self._outcomes[index]} and then {outcome}"
                )
            return
        self._index = index
        try:
            self.truth.apply(index, operation)
        except MetadataError:
            pass
        else:
            self._look_at_partitions(operation)
        self._outcomes[index] = outcome

    def _look_at_partitions(self, operation: Operation | None) -> None:
        if isinstance(operation, FenceBroker):
            self.fenced(operation.broker, operation.broker_epoch)
        elif isinstance(operation, RegisterBroker):
            self._registered(operation)
        elif isinstance(operation, WithdrawReplicas) and operation.lost:
            for where in operation.replicas:
                self.stories[where].doubtful.discard(operation.broker)
                self.stories[where].robbed.discard(operation.broker)
        elif isinstance(operation, DeleteStream):
            for where in [where for where in self.partitions if where[0] == operation.stream_id]:
                del self.partitions[where]
        for stream in self.truth.streams.values():
            for partition in stream.partitions:
                where = (stream.stream_id, partition.id)
                before = self.partitions.get(where)
                if before is partition:
                    continue
                self.partitions[where] = partition
                story = self.stories.get(where)
                if story is None:
                    story = self.stories[where] = Story(stream.guarantees)
                if before is not None and isinstance(operation, AlterIsr):
                    story.losers -= set(partition.isr) - set(before.isr)
                    missing = set(before.adding) - set(partition.isr)
                    if missing and not partition.adding:
                        self.fail(f"J-11: {before} has moved, and {missing} are not in sync")
                if before is not None and isinstance(operation, ChangeLeaders):
                    self._recovered(where, before, partition)
                self._changed(where, story, before, partition)

    def _registered(self, operation: RegisterBroker) -> None:
        broker = self._brokers[operation.broker]
        if operation.ended is not Ended.CLEAN:
            for story in self.stories.values():
                if operation.ended is Ended.LOST or not story.guarantees.synced:
                    story.losers.add(broker.name)  # as far as anybody can tell
        if broker.incarnation == operation.incarnation:
            for where, story in self.stories.items():
                log = broker.logs.get(where)
                if log is None or not log.lost:
                    story.doubtful.discard(broker.name)
                    story.robbed.discard(broker.name)

    def _changed(self, where: Where, story: Story, before: Partition | None, after: Partition) -> None:
        if bool(after.isr) != bool(after.leader) or after.leader not in (*after.isr, ""):
            self.fail(f"J-11: led by {after.leader!r}, in sync are {after.isr}")
        if after.unclean_epoch > story.unclean:
            self.unclean += 1
            story.unclean = after.unclean_epoch
            if len(story.losers) < story.guarantees.min_isr and not story.guarantees.unclean_election:
                self.fail(
                    f"J-01: an unclean election when {story.losers} lost something: {before}, now {after}"
                )
        self._members(where, story, after)

    def _recovered(self, where: Where, before: Partition, after: Partition) -> None:
        """Of those who may lack something, and were all asked, the most complete one leads."""
        if after.unclean_epoch == before.unclean_epoch or after.leader not in before.last_known:
            return
        ends = {
            name: (log.last_epoch, log.next_offset)
            for name in before.last_known
            if (log := self._brokers[name].logs.get(where)) is not None and not log.lost
        }
        if after.leader in ends and max(ends.values()) > ends[after.leader]:
            self.fail(f"J-01: {after.leader} leads for want of anybody with everything, and they have {ends}")

    def _members(self, where: Where, story: Story, partition: Partition) -> None:
        """Who is in sync or eligible has what is committed."""
        if story.unsettled or not story.exposed:
            return
        last = len(story.exposed) - 1
        for name in (*partition.isr, *partition.elr):
            broker = self._brokers[name]
            log = broker.logs.get(where)
            if name in story.robbed or log is None:
                continue
            sound = name in story.doubtful or log.record(last) == story.exposed[last]
            if not sound and last >= log.start_offset:
                self.fail(f"J-11: {name} is in sync or eligible and lacks {last}: {partition}")
            if story.guarantees.synced and broker.durable_end(where) <= last:
                self.fail(f"J-11: {name} is in sync or eligible and has not {last} on disk: {partition}")

    def agreed(self, brokers: list[Broker]) -> None:
        """At the end: all brokers have the same state, and a snapshot of it is as good."""
        copy = ClusterState()
        expected = self.truth.snapshot()
        copy.restore(expected)
        if copy.snapshot() != expected:
            self.fail("J-20: a snapshot restored is another state")
        for broker in brokers:
            if broker.machine.cluster.snapshot() != expected:
                self.fail(f"J-20: {broker.name} has another state")
        self._groups()

    def _groups(self) -> None:
        for group in self.truth.groups.values():
            seen = set()
            for member in group.members.values():
                for stream, partitions in member.share.items():
                    for partition in partitions:
                        if (stream, partition) in seen:
                            self.fail(
                                f"J-19: {stream} {partition} belongs to two members of {group.group_id}"
                            )
                        seen.add((stream, partition))

    # -- what happens to disks

    def gone(self, broker: Broker, *, power: bool) -> None:
        """A process has ended, perhaps with its machine."""
        if not power:
            return
        for where, log in broker.logs.items():
            story = self.stories[where]
            story.doubtful.add(broker.name)
            story.power_lost = story.power_lost or log.unsynced

    def robbed(self, broker: Broker, where: Where) -> None:
        """A disk has lost what it had synced."""
        story = self.stories[where]
        for names in (story.doubtful, story.robbed, story.losers):
            names.add(broker.name)
        story.power_lost = True

    # -- what happens to logs

    def leads(self, replica: Replica, leader: Leader) -> None:
        """A leader has begun to act."""
        name = replica.broker.name
        story = self.stories[replica.where]
        if story.appenders.setdefault(leader.epoch, name) != name:
            self.fail(
                f"J-10: {name} leads in epoch {leader.epoch}, and so does {story.appenders[leader.epoch]}"
            )
        story.made.append((leader.epoch, self._world.scheduler.now))
        replica.exposed = leader.high_watermark
        log, exposed = replica.log, story.exposed
        if story.unsettled and leader.epoch >= story.unclean:
            story.given_up = story.unclean
            story.losers.discard(name)
            keep = min(len(exposed), log.next_offset)
            while keep > log.start_offset and log.record(keep - 1) != exposed[keep - 1]:
                keep -= 1
            del exposed[keep:]
            story.acked = {offset: record for offset, record in story.acked.items() if offset < keep}
        last = len(exposed) - 1
        newest = leader.epoch > max(
            (epoch for epoch, _ in story.made[:-1]), default=0
        )  # not one that was late
        sound = story.unsettled or last < log.start_offset or log.record(last) == exposed[last]
        if newest and not sound:
            self.fail(f"J-07: {name} leads in epoch {leader.epoch} and lacks {last}, which was committed")

    def appended(self, replica: Replica, batch: Stored, *, led: bool) -> None:
        """A batch was written at the end of a log; `led`: by its leader."""
        name, story, log = replica.broker.name, self.stories[replica.where], replica.log
        if led and story.appenders.get(batch.epoch) != name:
            self.fail(f"J-10: {name} appends in epoch {batch.epoch} of {story.appenders.get(batch.epoch)}")
        before = log.record(batch.first - 1)
        previous = before[0] if before is not None else -1
        for offset, record in enumerate(batch.records, batch.first):
            known = story.written.setdefault((batch.epoch, offset), (record, previous))
            other = -1 not in (known[1], previous) and known[1] != previous
            if known[0] != record or other:
                self.fail(
                    f"J-06: {name} has {record} behind {previous} at {offset} in {batch.epoch}, not {known}"
                )
            previous = batch.epoch

    def cuts(self, replica: Replica, offset: int) -> None:
        """A follower is about to cut its log off, or to drop it, from an offset on."""
        story, log = self.stories[replica.where], replica.log
        if replica.epoch < story.unclean or story.unsettled or story.unclean > log.last_epoch:
            return
        end = min(len(story.exposed), log.next_offset)
        for at in range(max(offset, log.start_offset), end):
            if log.record(at) == story.exposed[at]:
                self.fail(f"J-14: {replica.broker.name} cuts off {at}, which was committed")

    def looked(self, replica: Replica) -> None:
        """A role may have moved its high watermark."""
        role = replica.role
        assert role is not None
        mark, log = role.high_watermark, replica.log
        if mark >= log.next_offset:
            self.fail(f"J-15: {replica.broker.name} exposes {mark}, its log ends at {log.next_offset}")
        story = self.stories[replica.where]
        if isinstance(role, Leader):
            if mark < replica.exposed:
                self.fail(f"J-07: {replica.broker.name} exposes {mark}, and has exposed {replica.exposed}")
            replica.exposed = mark
        if mark < 0 or role.epoch < story.unclean or story.unsettled:
            return
        exposed = story.exposed
        if isinstance(role, Leader) and mark >= len(exposed):
            self._exposes(replica, role, story, mark)
        elif isinstance(role, Follower) and not role.readable:
            return
        if mark >= len(exposed):
            self.fail(f"J-15: {replica.broker.name} exposes {mark}, committed is up to {len(exposed) - 1}")
        if mark >= log.start_offset and log.record(mark) != exposed[mark]:
            self.fail(
                f"J-05: {replica.broker.name} exposes {log.record(mark)} at {mark}, not {exposed[mark]}"
            )

    def _exposes(self, replica: Replica, leader: Leader, story: Story, mark: int) -> None:
        if len(leader.isr.committed) < story.guarantees.min_isr:
            self.fail(f"J-12: {mark} is committed, in sync are only {leader.isr.committed}")
        story.exposed += replica.log.records(len(story.exposed), mark + 1)
        partition = self.partitions[replica.where]
        self._members(replica.where, story, partition)
        if story.doubtful:
            return
        have = 0
        for broker in self._brokers.values():
            log = broker.logs.get(replica.where)
            if log is not None and log.record(mark) == story.exposed[mark]:
                have += 1
        if have < story.guarantees.min_isr:
            self.fail(f"J-12: {mark} is committed, and {have} replicas have it")

    def answered(
        self, replica: Replica, leader: Leader, statement: Statement, answer: Answer, before: object
    ) -> None:
        """A leader has answered a statement; `before`: what it knew of that follower."""
        name, after = replica.broker.name, known(leader, statement.broker)
        stated = (statement.broker_epoch, statement.session, statement.next_offset)
        if isinstance(answer, Fenced):
            if before != after:
                self.fail(f"J-13: {name} knew {before}, and after a fenced statement {after}")
            return
        newest = replica.statements.get(statement.broker, (0, 0, 0))
        if statement.leader_epoch != leader.epoch or stated[:2] < newest[:2] or stated < newest:
            self.fail(f"J-13: {name} in {leader.epoch} takes {statement}, and had {newest}")
        replica.statements[statement.broker] = stated if isinstance(answer, Accepted) else (*stated[:2], 0)
        progress = leader.followers[statement.broker]
        if isinstance(answer, Accepted) and progress.next_offset != statement.next_offset:
            self.fail(f"J-11: {name} takes {progress.next_offset} for what {statement} says")

    # -- leases

    def fenced(self, name: str, epoch: int) -> None:
        """A broker is taken for dead: its lease has to be over, unless it has asked for it."""
        broker = self._brokers[name]
        if broker.epoch == epoch and not broker.leaving and broker.lease.until > broker.now:
            self.fail(f"J-03: {name} is fenced at {broker.now}, its lease lasts until {broker.lease.until}")

    def leased(self, broker: Broker) -> None:
        """A heartbeat was confirmed: nobody has taken the broker for dead before its lease ends."""
        record = self.truth.brokers.get(broker.name)
        if record is None or record.epoch != broker.epoch or record.alive or broker.leaving:
            return
        if broker.lease.until > broker.now:
            self.fail(f"J-03: {broker.name} is fenced, and gets a lease until {broker.lease.until}")

    # -- what clients are told

    def acks(self, replica: Replica, offset: int, record: int, policy: str, expected: int) -> None:
        """A leader acks a message."""
        leader, story = replica.role, self.stories[replica.where]
        name = replica.broker.name
        assert isinstance(leader, Leader)
        if expected not in (-1, offset):
            self.fail(f"J-16: {name} acks {record} at {offset}, expected was {expected}")
        epoch = leader.epoch
        if policy == "all":
            if epoch < story.unclean or story.unsettled:
                return
            if offset >= len(story.exposed) or story.exposed[offset][1] != record:
                self.fail(f"J-01: {name} acks {record} at {offset}, which is not committed there")
            if story.acked.setdefault(offset, record) != record:
                self.fail(f"J-02: {offset} is acked for {record}, and was for {story.acked[offset]}")
            return
        if replica.log.record(offset) not in ((epoch, record), None):
            self.fail(f"J-02: {name} acks {record} at {offset}, where it has {replica.log.record(offset)}")
        if story.by_leader.setdefault((offset, epoch), record) != record:
            self.fail(f"J-02: {offset} of {epoch} is acked for {record} and another")
        if story.guarantees.synced and replica.broker.durable_end(replica.where) <= offset:
            self.fail(f"J-03: {name} acks {offset} alone, and has it not on disk")
        now = self._world.scheduler.now
        later = next((when for other, when in story.made if other > epoch), now)
        if now > later + self._lease and epoch >= story.unclean:
            self.fail(f"J-03: {name} acks alone in epoch {epoch}, {now - later} us after another led")

    def read(self, replica: Replica, start: int, records: list[tuple[int, int]]) -> None:
        """Somebody is given what is committed, from an offset on."""
        role, story = replica.role, self.stories[replica.where]
        assert role is not None
        if role.epoch < story.unclean or story.unsettled:
            return
        self.reads += len(records)
        if story.exposed[start : start + len(records)] != records:
            self.fail(f"J-05: {replica.broker.name} gives {records} from {start} on, committed was other")

    # -- at the end

    def kept(self, where: Where, brokers: list[Broker]) -> None:
        """All replicas have all that was committed and acked, and nothing else."""
        story = self.stories[where]
        end = len(story.exposed)
        for broker in brokers:
            log = broker.logs[where]
            if log.next_offset != end:
                self.fail(f"J-06: the log of {broker.name} ends at {log.next_offset}, committed is {end}")
            start = log.start_offset
            if list(log.records(start, end)) != story.exposed[start:end]:
                self.fail(f"J-06: the log of {broker.name} is another")
        for offset, record in story.acked.items():
            if story.exposed[offset][1] != record:
                self.fail(f"J-08: {record}, acked at {offset}, is not there")
        self.lost_by_leaders(story)

    def lost_by_leaders(self, story: Story) -> None:
        """What leaders have acked alone is there, or their leadership has ended since, or power failed."""
        for (offset, epoch), record in story.by_leader.items():
            if offset < len(story.exposed) and story.exposed[offset] == (epoch, record):
                continue
            self.lost += 1
            if max(story.appenders) <= epoch and not story.power_lost:
                self.fail(f"J-03: {record}, acked at {offset} by the leader of {epoch}, is lost")


def known(leader: Leader, name: str) -> object:
    """What a leader knows of a follower, and is committed."""
    progress = leader.followers.get(name)
    if progress is None:
        return leader.high_watermark
    return (
        leader.high_watermark,
        progress.broker_epoch,
        progress.session,
        progress.verified,
        progress.next_offset,
        progress.synced_offset,
    )


def durable_end(records: Sequence[Any], *, torn: bool) -> int:
    """Where a log ends on the medium, by the records of its file; `torn`: whether power was lost."""
    end = next((at for at, record in enumerate(records) if record is DAMAGED), -1) if torn else -1
    if not records or end == 0:
        return 0
    value = records[end - 1 if end > 0 else -1][0]
    return value.next_offset if isinstance(value, Stored) else int(value)


def _same(one: Outcome | MetadataError, other: Outcome | MetadataError) -> bool:
    if isinstance(one, MetadataError) and isinstance(other, MetadataError):
        return one.text == other.text
    return one == other
