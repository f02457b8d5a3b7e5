"""One partition that this server holds a replica of. While it leads: from NATS into the log, from the log to
subscribers, acks back to NATS.

Which role it has says the metadata (`agree`). One that does not lead has its log open and takes nothing.

A partition has no task of its own, so that an idle one costs a few KiB and no time: `open` opens the log and,
to lead, subscribes to the subject; `close` undoes both, and in between others call. The ingest connection's
reader calls `on_messages` after every socket read, which appends what the read brought in one batch; the
flusher calls back when it is on disk; what other replicas have to do with it is in `replicator.py`; the
cleaner looks after old segments. What becomes visible and acked is decided in one place, `_commit`.

A paused partition has given back its log, its descriptor and its subscription. That is final for the object:
what resumes is another one in the same directory, so whoever holds this one knows what became of it. Pausing
takes messages until `close`, since what was published before it is still on its way.

A partition that fails (damaged log, I/O error, refused subscription) fails alone: it becomes offline with a
reason, its publishers get negative acks, its subscribers a status, and the rest of the server lives on.

Invariants:
* Messages are stored from the beginning of a leadership until its end, `close` or a failure, `_storing`,
  whatever readers are told.
* Whoever was leader and is not any more stores nothing and acks nothing: what still waits is refused.
* `high_watermark` < `log.next_offset`, and under the sync policy `always` < `log.synced_offset`.
* No ack leaves for an offset above what its policy and the sync policy demand.
* Readers wake at every change of the high watermark or of the state, and only then: a commit schedules each
  reader that waits, once, and one that is still busy with what came before not at all; it looks at the high
  watermark when it comes round.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from liftbridge._log import BatchBuilder
from liftbridge._wire import AckRouter, PartitionSink, message_prefix
from liftbridge.broker.disk import DiskSpace
from liftbridge.broker.ingest import Ingest
from liftbridge.broker.partition_settings import PartitionSettings
from liftbridge.broker.replicator import Following, Leading, Replicator
from liftbridge.log import Flusher, Keyring, Log, LogClosedError, LogError
from liftbridge.metadata.control import Position
from liftbridge.metadata.model import Partition as PartitionModel
from liftbridge.metadata.model import Stream
from liftbridge.nats.connection import NatsConnection, NatsPermissionError

# Of a replica whose log cannot be read.
LOST = Position(0, 0, 0, lost=True)
# Acks of one partition that wait for the disk; ingest pauses beyond this.
MAX_WAITING_ACK_BYTES = 32 << 20


class State(enum.Enum):
    """What a partition is doing."""

    OPENING = "opening"
    LEADING = "leading"
    FOLLOWING = "following"
    PAUSED = "paused"
    OFFLINE = "offline"
    DELETED = "deleted"
    MOVED = "moved"
    CLOSED = "closed"


@dataclass
class EventTimes:
    """When something happened first and last since the start of the server, in ns; 0 = never."""

    first: int = 0
    latest: int = 0

    def note(self, now: int) -> None:
        """It happened at `now`."""
        self.first = self.first or now
        self.latest = now


class Partition:
    """A replica of one partition.

    `leads` says whether it is to lead, as the metadata is now. `directory` holds its log, `keyring` the
    master keys for it; `power_lost` is `Log.open`'s. `ingest` delivers its messages, `acks` takes its acks,
    and `router` those for calls of this server. While `space` is low it stores nothing; None exempts it.
    `spawn` starts a task that may outlive the partition, and `replicator` has to do with replicas elsewhere.

    `place` stands for the partition, and for the messages in its log as they are now (`broker/frames.py`).
    """

    # There may be thousands, and Python shares the names of at most 30 attributes among objects.
    __slots__ = (
        "_acks",
        "_batch_waits",
        "_clock",
        "_closed",
        "_flusher",
        "_ingest",
        "_keyring",
        "_last_bounds",
        "_leads",
        "_log",
        "_logger",
        "_messages_before",
        "_opened",
        "_opening",
        "_power_lost",
        "_readers",
        "_refused_batches",
        "_replicator",
        "_role",
        "_router",
        "_sid",
        "_sink",
        "_space",
        "_spawn",
        "_storing",
        "active_at",
        "directory",
        "high_watermark",
        "model",
        "place",
        "prefix",
        "reason",
        "received",
        "settings",
        "settled",
        "state",
        "stream",
        "subject",
        "subscribers",
    )

    def __init__(
        self,
        stream: Stream,
        model: PartitionModel,
        directory: Path,
        settings: PartitionSettings,
        *,
        leads: bool,
        ingest: Ingest,
        acks: NatsConnection,
        router: AckRouter | None,
        flusher: Flusher,
        keyring: Keyring | None,
        power_lost: bool,
        space: DiskSpace | None,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
        replicator: Replicator,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.stream = stream
        self.model = model
        self.settings = settings
        self.prefix = message_prefix(stream.name.encode(), model.id)
        self.subject = stream.partition_subject(model.id)
        self.state = State.PAUSED if model.paused else State.OPENING
        self.reason = ""
        self.high_watermark = -1
        self.active_at = 0.0  # when it began or received messages, by the monotonic clock in seconds
        self.received = EventTimes()
        self.subscribers = 0
        self.place = object()
        self.settled = trio.Event()
        self._closed: trio.Event | None = None
        if model.paused:  # it has never begun
            self._closed = trio.Event()
            self.settled.set()
            self._closed.set()
        self.directory = directory
        self._ingest = ingest
        self._acks = acks
        self._router = router
        self._flusher = flusher
        self._keyring = keyring
        self._power_lost = power_lost
        self._clock = clock
        self._leads = leads
        self._log: Log | None = None
        self._storing = False
        self._last_bounds = (0, 0)
        self._opening: trio.CancelScope | None = None
        self._opened: trio.Event | None = None
        self._sink: PartitionSink | None = None
        self._sid: int | None = None
        self._readers = trio.lowlevel.ParkingLot()
        self._space = space
        self._spawn = spawn
        self._replicator = replicator
        self._role: Leading | Following | None = None  # None: it has no others, or nobody leads
        self._batch_waits = False
        self._messages_before = -1
        self._refused_batches = 0
        self._logger = logging.getLogger("liftbridge.partition")

    def __str__(self) -> str:
        return f"{self.stream.name}/{self.model.id}"

    # -- what others ask -------------------------------------------------------------------------------

    @property
    def log(self) -> Log:
        """The open log. Raises LogClosedError when there is none (any more)."""
        if self._log is None:
            raise LogClosedError(f"{self} has no open log; it is {self.state.value}")
        return self._log

    @property
    def _bounds(self) -> tuple[int, int]:
        """First and next offset of the log; those it had when a pause has closed it."""
        return self._last_bounds if self._log is None else (self._log.start_offset, self._log.next_offset)

    @property
    def newest_offset(self) -> int:
        """Offset of the last message in the log, -1 when it is empty."""
        start, following = self._bounds
        return -1 if start == following else following - 1

    @property
    def oldest_offset(self) -> int:
        """Offset of the first message in the log, -1 when it is empty."""
        start, following = self._bounds
        return -1 if start == following else start

    @property
    def written_offset(self) -> int:
        """Offset of the last message that was written, to the page cache at least; -1 before the first."""
        return self._bounds[1] - 1

    @property
    def synced_offset(self) -> int:
        """Offset of the last message that a loss of power cannot take any more; -1 before the first."""
        return -1 if self._log is None else self._log.synced_offset - 1

    @property
    def position(self) -> Position | None:
        """Where the log ends, for whoever is to choose a leader; None as long as it is not open."""
        if self.state is State.OFFLINE:
            return LOST
        log = self._log
        return None if log is None else Position(log.last_epoch, log.next_offset, log.synced_offset, False)

    @property
    def unsynced_bytes(self) -> int:
        """Bytes that were written since the last sync began."""
        return 0 if self._log is None else self._log.unsynced_bytes

    @property
    def readable(self) -> bool:
        """Whether subscribers who accept a replica may read here what is committed."""
        if self.state is not State.FOLLOWING:
            return self.state is State.LEADING
        return (
            isinstance(self._role, Following)
            and self._role.machine.readable
            and self._replicator.broker in self.model.isr
        )

    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._closed is not None

    @property
    def refusal(self) -> str:
        """Why the server refuses messages that the partition could store, "" while it does not."""
        if self._space is not None and self._space.low:
            return (
                f"the disk of the server has {self._space.free} bytes free, less than the "
                f"{self._space.min_free} of streams.disk.min.free"
            )
        return ""

    @property
    def sink(self) -> PartitionSink | None:
        """The receiving end, for its counters."""
        return self._sink

    def messages_changed(self) -> None:
        """Messages below the end of the log were removed or replaced: frames that were read before are not
        to be shared any more."""
        self.place = object()

    async def wait_change(self) -> None:
        """Wait for the high watermark or the state to change."""
        await self._readers.park()

    # -- its life --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the log, and receive messages if this replica is to lead; what fails makes the partition
        offline. Cancelled, or ended by `close`, it only needs to be closed; does nothing after that."""
        await self._begin(self._open)

    async def _begin(self, open_log: Callable[[], Awaitable[bool]] | None) -> None:
        """Take up the role that is due, when the log is open; what `close` has to end first."""
        if self._closed is not None:
            return
        self._opened = trio.Event()
        try:
            with trio.CancelScope() as self._opening:
                if not ((open_log is None or await open_log()) and await self._take_role()):
                    await self._refuse_messages()
        finally:
            self._opening = None
            self._opened.set()
            self._opened = None

    async def _open(self) -> bool:
        """Open the log; False when the partition went offline instead."""
        try:
            self._log = await trio.to_thread.run_sync(
                partial(
                    Log.open,
                    self.directory,
                    stream_id=self.stream.stream_id,
                    partition=self.model.id,
                    options=self.settings.log,
                    keyring=self._keyring,
                    power_lost=self._power_lost,
                )
            )
        except Exception as error:
            # Whatever is wrong with this log, the other partitions are not to suffer for it.
            self._go_offline(f"the log cannot be opened: {error}")
            return False
        for damage in self._log.damage:
            self._logger.error("%s: %s", self, damage)
        return True

    async def _take_role(self) -> bool:
        """Lead or follow, whatever is due when this ends; False when the partition went offline instead."""
        while self.state in (State.OPENING, State.PAUSED):
            if isinstance(self._role, Following):
                self._role.end()
                await self._role.idle()
                self._role = None
            if not self._leads:
                if self.state is State.OPENING:
                    self.state = State.FOLLOWING
                    self._follow()
                break
            if not await self._lead():
                return False
            if self._storing or self.state is not State.OPENING:
                break
        self.settled.set()
        return True

    async def _lead(self) -> bool:
        """Receive messages; False when the partition went offline instead. Whoever does not lead any more
        when NATS has answered has given up receiving."""
        log = self.log
        if len(self.model.replicas) > 1:
            try:
                self._lead_others()
            except (OSError, LogError, ValueError) as error:
                self._go_offline(f"the leader epoch cannot begin: {error}")
                return False
        sink = self._sink = self._make_sink(log.next_offset, log.last_timestamp)
        sink.readonly = self.model.readonly
        self._storing = True
        # A single replica that has the tail, as the policy demands, is every replica.
        self._commit(log.synced_offset if self.settings.sync_policy == "always" else log.next_offset)
        if log.synced_offset < log.next_offset:
            self._request_sync(log)
        try:
            sid = await self._ingest.connection.subscribe(self.subject, sink, self.stream.group)
        except Exception as error:
            if not self._storing:
                return True
            self._go_offline(f"NATS does not deliver {self.subject!r}: {error}")
            return False
        if not self._storing:
            self._ingest.connection.unsubscribe(sid)
            return True
        self._sid = sid
        self.active_at = time.monotonic()
        if self.state is State.OPENING:
            self.state = State.LEADING
            self._logger.info("%s leads at offset %d on subject %s", self, log.next_offset, self.subject)
        return True

    def _make_sink(self, next_offset: int, last_timestamp: int) -> PartitionSink:
        return PartitionSink(
            self,
            stream=self.stream.name.encode(),
            base_subject=self.stream.subject.encode(),
            builder=BatchBuilder(),
            next_offset=next_offset,
            last_timestamp=last_timestamp,
            max_message_bytes=self.settings.max_message_bytes,
            batch_max_messages=self.settings.batch_max_messages,
            check_offsets=self.settings.check_offsets,
            router=self._router,
        )

    async def _refuse_messages(self) -> None:
        """Without a log: receive only to tell publishers, at once, that nothing is stored."""
        if self._sink is not None or self.stream.group or not self._leads:
            return  # NATS does not deliver; or it had better deliver to another member of the group
        self._sink = self._make_sink(0, 0)
        self._sink.readonly = True
        with contextlib.suppress(NatsPermissionError):
            self._sid = await self._ingest.connection.subscribe(self.subject, self._sink)

    def rest(self) -> None:
        """Called now and then: give back the memory of buffers if no message came since the last call."""
        sink = self._sink
        if sink is not None:
            if sink.messages_received == self._messages_before:
                sink.shrink()
            self._messages_before = sink.messages_received

    def fail(self, reason: str) -> None:
        """What the log needs cannot be done any more: the partition goes offline."""
        self._go_offline(reason)

    def agree(self, stream: Stream, model: PartitionModel, leads: bool) -> None:
        """The cluster has agreed on another value of the partition; `leads` is whether this replica is to
        lead.

        A pause ends what goes on with it and is followed by `close`. Readonly holds from here on: what has
        come before is stored. A partition that was resumed is another object.
        """
        self.stream, self.model = stream, model
        if model.paused and self.state in (
            State.OPENING,
            State.LEADING,
            State.FOLLOWING,
            State.OFFLINE,
        ):
            self.state = State.PAUSED
            self.settled.set()
        if self._leads and not (leads and self._is_epoch_of(model)):
            self._leads = False
            self._step_down()
        if leads and not self._leads:
            self._leads = True
            self._step_up()
        elif leads:
            self._go_on_leading()
        elif self.state is State.FOLLOWING:
            self._follow()
        if self._storing and self._sink is not None and self._sink.readonly != model.readonly:
            self._append()
            if self._storing:
                self._sink.readonly = model.readonly
        self._readers.unpark_all()

    def _is_epoch_of(self, model: PartitionModel) -> bool:
        """Whether a leadership goes on. A replica without others has no use for its end."""
        return not isinstance(self._role, Leading) or self._role.machine.epoch == model.leader_epoch

    def _go_on_leading(self) -> None:
        if isinstance(self._role, Leading):
            self._role.metadata(self.model)
        elif self._storing and len(self.model.replicas) > 1:
            try:
                self._lead_others()  # it has got others
            except (OSError, LogError, ValueError) as error:
                self._go_offline(f"the leader epoch cannot begin: {error}")

    def _lead_others(self) -> None:
        """Lead replicas elsewhere. Raises OSError, LogError; ValueError when the log has a newer epoch."""
        log, epoch = self.log, self.model.leader_epoch
        if log.last_epoch != epoch:
            log.begin_epoch(epoch, self._clock())
            self._request_sync(log)
        self._role = self._replicator.lead(self)

    def _follow(self) -> None:
        """Follow whoever leads, if that is somebody else than before."""
        model, role = self.model, self._role
        assert not isinstance(role, Leading), f"{self} follows while it leads"
        if role is not None:
            if role.follows(model):
                return
            role.end()
            if not role.is_idle:
                self._spawn(partial(self._follow_later, role))
                return
            self._role = None
        if model.leader and model.leader != self._replicator.broker and self._replicator.broker_epoch:
            self._role = self._replicator.follow(self)
            self._logger.info("%s follows %s", self, model.leader)

    async def _follow_later(self, role: Following) -> None:
        await role.idle()
        if self._role is role and self.state is State.FOLLOWING and self._closed is None:
            self._follow()

    def _step_up(self) -> None:
        if self.state is State.FOLLOWING:
            self.state = State.OPENING
            self.settled = trio.Event()
            if self._opening is None:  # otherwise it finds out when it looks what is due
                self._spawn(partial(self._begin, None))
        elif self.state is State.OFFLINE and self._opening is None:
            self._spawn(partial(self._begin, self._stays_offline))

    async def _stays_offline(self) -> bool:
        """It could not be opened before it was to lead; only its publishers have to be told."""
        return False

    def _step_down(self) -> None:
        """Another broker leads, or nobody: nothing that comes after this is stored or acked here."""
        if self._storing:
            self._storing = False
            self._refuse_all()
            self._ingest.unhold(self)
        self._stop_receiving()
        if isinstance(self._role, Leading):
            self._role.end()
            self._role = None
        if self.state is State.LEADING:
            self.state = State.FOLLOWING
            self._logger.info("%s leads no more, at offset %d", self, self.log.next_offset)
            self._follow()

    async def close(self) -> None:
        """Stop receiving, make everything durable, tell everybody who waits; whoever comes second waits for
        the first. Not to be cancelled."""
        if self._closed is not None:
            await self._closed.wait()
            return
        self._closed = trio.Event()
        if self._opening is not None and self._opened is not None:
            self._opening.cancel()
            await self._opened.wait()
        self._stop_receiving()
        if self._storing:
            self._append()
        if isinstance(self._role, Following):
            self._role.end()
            await self._role.idle()
        if self._log is not None:
            await self._close_log(self._log)
        if isinstance(self._role, Leading):
            self._role.end()
        self._storing = False
        if self.state in (State.OPENING, State.LEADING, State.FOLLOWING):
            self.state = State.CLOSED
        elif self.state is State.PAUSED:
            self._give_back()
        self._ingest.unhold(self)
        self.settled.set()
        self._closed.set()
        self._readers.unpark_all()

    async def wait_closed(self) -> None:
        """Wait until `close` is over, whoever calls it."""
        while self._closed is None or not self._closed.is_set():
            await self._readers.park()

    async def _close_log(self, log: Log) -> None:
        try:
            await trio.to_thread.run_sync(log.close)
        except Exception as error:
            if self._storing:
                self._go_offline(f"the log could not be closed: {error}")
        else:
            if self._storing:
                self._commit(log.next_offset)

    def _give_back(self) -> None:
        """What a paused partition does without. Offsets are still asked for."""
        if self._sink is not None:
            self._sink.refuse_waiting(
                self._clock()
            )  # for a commit that a too small in-sync set has not allowed
            self._send_refusals()
        self._last_bounds = self._bounds
        self._log = self._sink = None

    def _stop_receiving(self) -> None:
        if self._sid is not None:
            self._ingest.connection.unsubscribe(self._sid)
            self._sid = None

    def mark_gone(self, *, deleted: bool) -> None:
        """The stream was deleted, or the replica was moved to another broker; `close` is about to be
        called."""
        self.state = State.DELETED if deleted else State.MOVED
        self._storing = False
        self._refuse_all()
        self._readers.unpark_all()

    def _refuse_all(self) -> None:
        """From here on every message is refused, with a negative ack for those that want one."""
        if self._sink is not None:
            self._sink.readonly = True
            self._sink.refuse(self._clock())
            self._sink.refuse_waiting(self._clock())
            self._send_refusals()

    def _go_offline(self, reason: str) -> None:
        gone = self.state in (State.DELETED, State.MOVED)
        if gone or (self.state is State.PAUSED and not self._storing):
            return
        self._storing = False
        self.reason = reason
        if self.state is not State.PAUSED:  # that is over when it is resumed, which opens the log anew
            self.state = State.OFFLINE
        self._logger.error("%s is offline: %s", self, reason)
        if self._role is not None:
            self._role.end()
            self._role = None
        self._replicator.withdraw(self, lost=True)
        self._refuse_all()
        if self.stream.group:
            # What we would refuse, another member of the load-balance group can store.
            self._stop_receiving()
        self._ingest.unhold(self)
        self.settled.set()
        self._readers.unpark_all()

    # -- the data path ---------------------------------------------------------------------------------

    def on_messages(self) -> None:
        """Messages are in the sink: called by the ingest connection after each read."""
        sink = self._sink
        assert sink is not None, f"{self} received messages without a sink"
        self.active_at = time.monotonic()
        if self.settings.batch_max_time and not self._batch_is_full(sink):
            if not self._batch_waits:
                self._batch_waits = True
                self._spawn(self._complete_batch)
        else:
            self._append()
        self._send_refusals()

    async def _complete_batch(self) -> None:
        """Append a batch that has not filled up in `batch_max_time`, with what has joined it."""
        await trio.sleep(self.settings.batch_max_time / 1e9)
        self._batch_waits = False
        if self._sink is not None:  # otherwise it was paused, and has appended it
            self._append()
            self._send_refusals()

    def _batch_is_full(self, sink: PartitionSink) -> bool:
        return sink.builder.count >= self.settings.batch_max_messages or sink.builder.size >= 262144

    def _append(self) -> None:
        """Append the batch in the sink, and have it committed as the sync policy says."""
        sink, log = self._sink, self._log
        assert sink is not None
        if not sink.builder.count or not self._storing:
            return
        assert log is not None, f"{self} stores without a log"
        if self._space is not None and self._space.low:
            sink.refuse(self._clock())
            self._send_refusals()
            return
        size = sink.builder.size
        self.received.note(sink.builder.max_timestamp)
        try:
            log.append(sink.builder, self.model.leader_epoch)
        except Exception as error:
            sink.refuse(self._clock())
            if log.failed is not None:
                self._go_offline(f"the log failed: {error}")
            else:
                self._note_refused_batch(error)
            self._send_refusals()
            return
        if self._refused_batches:
            self._logger.warning(
                "%s stores messages again; %d batches were refused", self, self._refused_batches
            )
            self._refused_batches = 0
        sink.appended(log.next_offset)
        if isinstance(self._role, Leading):
            self._role.appended()
        if self._space is not None:
            self._space.stored(size)
        if len(sink.leader_acks) or len(sink.commit_acks):
            self._ingest.hurry()
        if self.settings.sync_policy != "always":
            self._commit(log.next_offset)
        self._request_sync(log)
        if sink.leader_acks.size + sink.commit_acks.size > MAX_WAITING_ACK_BYTES:
            self._bound_waiting_acks(sink)

    def _bound_waiting_acks(self, sink: PartitionSink) -> None:
        """Too many acks wait: for the disk, which receiving can wait for; or for a commit, while the in-sync
        set is too small, which may last: publishers that asked for one are then told that there is none."""
        if len(self.model.isr) < self.stream.guarantees.min_isr:
            sink.refuse_uncommitted(self._clock())
            self._send_refusals()
        else:
            self._ingest.hold(self)

    def _note_refused_batch(self, error: Exception) -> None:
        """A batch could not be stored, later ones may be: one line for all of them, as the disk may be
        full."""
        if not self._refused_batches:
            self._logger.error(
                "%s cannot store messages and refuses them until that changes; reading goes on: %s",
                self,
                error,
            )
        self._refused_batches += 1

    def _request_sync(self, log: Log) -> None:
        """Ask for the log to be on disk: now, within the interval, or only what even `never` needs there."""
        settings = self.settings
        if settings.sync_policy == "interval" and log.unsynced_bytes < settings.sync_bytes:
            self._flusher.request(
                log, self._on_synced, self._on_sync_failed, delay=settings.sync_interval / 1e9
            )
        elif settings.sync_policy != "never" or log.needs_sync:
            self._flusher.request(log, self._on_synced, self._on_sync_failed)

    def _on_synced(self, synced_offset: int) -> None:
        """The flusher: everything below `synced_offset` is on disk."""
        if isinstance(self._role, Following):
            self._role.progressed()
        elif self._storing and self.settings.sync_policy == "always":
            self._commit(synced_offset)
        self._ingest.unhold(self)

    def _on_sync_failed(self, error: Exception) -> None:
        """The flusher: the disk could not be trusted; final for this log."""
        self._go_offline(f"fsync failed, nothing written since can be trusted: {error}")

    def _commit(self, offset: int) -> None:
        """Everything below `offset` is as durable as the sync policy demands on this replica."""
        role = self._role
        if isinstance(role, Leading):
            limits = role.commit()
            self._release(limits.leader + 1, limits.all + 1, role.high_watermark)
        elif len(self.model.isr) >= self.stream.guarantees.min_isr:
            self._release(offset, offset, offset - 1)
        else:
            self._release(offset, self.high_watermark + 1, self.high_watermark)

    def _release(self, leader: int, committed: int, high_watermark: int) -> None:
        """Let acks leave below these offsets, by policy, and readers read up to the high watermark."""
        sink = self._sink
        assert sink is not None
        now = self._clock()
        released = sink.leader_acks.release(leader, now) if len(sink.leader_acks) else b""
        if len(sink.commit_acks):
            released += sink.commit_acks.release(committed, now)
        self._advance(high_watermark)
        if released:
            self._acks.enqueue(released)
        if self._router is not None and self._router.news:
            self._router.owner.on_messages()

    def _advance(self, high_watermark: int) -> None:
        if high_watermark > self.high_watermark:
            self.high_watermark = high_watermark
            if self._readers:
                self._readers.unpark_all()

    # -- replication, as roles call it -----------------------------------------------------------------

    def advanced(self) -> None:
        """What its role knows to be committed may have grown, or what may be acked."""
        role = self._role
        if isinstance(role, Following):
            self._advance(role.high_watermark)
        elif isinstance(role, Leading) and self._storing and self._sink is not None:
            self._commit(self.log.next_offset)

    def written(self) -> None:
        """A follower has appended what its leader has sent."""
        role, log = self._role, self.log
        assert isinstance(role, Following), f"{self} was sent batches and does not follow"
        if self.settings.sync_policy != "always":
            role.progressed()
        self._request_sync(log)

    def _send_refusals(self) -> None:
        assert self._sink is not None
        refusals = self._sink.refusals()
        if refusals:
            self._acks.enqueue(refusals)
