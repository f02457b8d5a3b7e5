"""The partitions that this server holds replicas of, kept equal to what the metadata says.

The controller tells of every committed operation; this module opens and closes partitions accordingly, in
tasks that end when that is done, gives them their roles, and keeps the routes that publishes are sent by. At
start it brings up what the restored metadata contains, and later reports directories that no stream owns; it
removes only those of streams that a committed operation deleted.

Until the metadata has this run of the broker, nothing leads here: that this server led before says nothing of
what its disk has kept.

A pause ends a `Partition` for good and a resume makes another one, so that both may be asked for faster than
logs open and close: what is over closes at its own pace, and what comes next opens after that.

Invariants: a partition of a deleted stream is closed, and no cleaner is at work on it, before its directory
is removed or another object opens it; a directory is named by the stream's UUID, so a new stream of an old
name never meets old files. What was opened is closed before `run` ends, however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from liftbridge._wire import AckRouter, RouteTable, StreamRoute
from liftbridge.broker.autopause import AutoPause
from liftbridge.broker.cleaner import Cleaner
from liftbridge.broker.config import Config
from liftbridge.broker.disk import DiskSpace
from liftbridge.broker.ingest import Ingest
from liftbridge.broker.partition import LOST, Partition, State
from liftbridge.broker.partition_settings import PartitionSettings, partition_settings
from liftbridge.broker.replicator import Replicator
from liftbridge.log import Flusher, delete_log
from liftbridge.log.awake import awake_logs
from liftbridge.metadata.broker_operations import RegisterBroker
from liftbridge.metadata.control import Position
from liftbridge.metadata.model import Partition as PartitionModel
from liftbridge.metadata.model import Stream
from liftbridge.metadata.operations import DeleteStream, Operation
from liftbridge.metadata.replicas import Changed
from liftbridge.metadata.state import ClusterState, Outcome
from liftbridge.metadata.validation import RESERVED_NAMES
from liftbridge.nats.connection import NatsConnection, NatsUnavailableError

MILLISECOND = 1_000_000
# Of the files that the process may open; the rest is for connections and for reading old segments.
SHARE_OF_FILES = 0.5
MOST_AWAKE_LOGS = 32768
# How often those logs that wait for a sync before they can rest are looked for.
REST_SECONDS = 1.0
# What a pause gives to messages that are on their way to the partition.
DRAIN_SECONDS = 10.0


@dataclass
class _Running:
    """The partitions of one stream that have replicas here, by their ids.

    `ending` are those that closed, or still do, after others have taken their places, and `removing` tells
    when replicas that were moved away are gone, files and all.
    """

    name: bytes
    partitions: dict[int, Partition] = field(default_factory=dict)
    ending: list[Partition] = field(default_factory=list)
    removing: dict[int, trio.Event] = field(default_factory=dict)
    deleted: bool = False


class Streams:
    """All partitions of this server.

    `broker` is its id, and `registered` tells whether the metadata has this run of it. `routes` is what
    publishers use to find a stream's subject, `autopause` watches partitions for idleness, and `published`
    waits until everything that clients have published through this server so far is with NATS.
    """

    def __init__(
        self,
        config: Config,
        data_dir: Path,
        state: ClusterState,
        *,
        broker: str,
        registered: Callable[[], bool],
        ingest: Ingest,
        acks: NatsConnection,
        router: AckRouter | None = None,
        flusher: Flusher,
        cleaner: Cleaner,
        space: DiskSpace,
        routes: RouteTable,
        power_lost: bool,
        autopause: AutoPause,
        replicator: Replicator,
        published: Callable[[], Awaitable[None]],
    ) -> None:
        self._config = config
        self._power_lost = power_lost
        self._root = data_dir / "streams"
        self._state = state
        self._broker = broker
        self._registered = registered
        self._ingest = ingest
        self._acks = acks
        self._router = router
        self._flusher = flusher
        self._cleaner = cleaner
        self._space = space
        self._autopause = autopause
        self._replicator = replicator
        self._published = published
        self._running: dict[uuid.UUID, _Running] = {}
        self._nursery: trio.Nursery | None = None
        awake_logs.capacity = _most_awake_logs()
        self._logger = logging.getLogger("liftbridge.streams")
        self.routes = routes

    def partition(self, stream: str, partition_id: int) -> Partition | None:
        """The replica here of a partition; None when there is none, or no such partition."""
        model = self._state.streams.get(stream)
        running = None if model is None else self._running.get(model.stream_id)
        return None if running is None else running.partitions.get(partition_id)

    def lack_of_room(self, count: int) -> str:
        """Why this server does not take so many more partitions; "" when it does."""
        most = self._config.streams.max_partitions
        room = most - sum(partition.state is not State.PAUSED for partition in self)
        if count <= room:
            return ""
        return (
            f"this server has room for {room} more partitions, not for {count}; delete or pause streams, or "
            "raise streams.max.partitions"
        )

    def __iter__(self) -> Iterator[Partition]:
        for running in self._running.values():
            yield from running.partitions.values()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the partitions until cancelled; `started` is reported when the logs of the restored state are
        open."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.to_thread.run_sync(partial(self._root.mkdir, parents=True, exist_ok=True))
                for stream in self._state.streams.values():
                    self.changed(stream)
                for stream in list(self._state.streams.values()):
                    await self.settled(stream)
                task_status.started()
                await self._let_logs_rest()
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True):
                await self.stop()

    async def _let_logs_rest(self) -> None:
        """Bound the open files also when logs wait for a sync that their policy never asks for."""
        while True:
            await trio.sleep(REST_SECONDS)
            if len(awake_logs) > awake_logs.capacity:
                await trio.to_thread.run_sync(awake_logs.settle)

    async def stop(self) -> None:
        """Close every partition; returns when they are closed and what they had is durable."""
        async with trio.open_nursery() as nursery:
            for running in self._running.values():
                nursery.start_soon(self._end_all, running)

    async def settled(self, stream: Stream) -> None:
        """Wait until every replica here of a stream has its role, has failed, or is paused."""
        for partition_id in range(len(stream.partitions)):
            await self.settled_replica(stream.stream_id, partition_id)

    async def settled_replica(self, stream_id: uuid.UUID, partition_id: int) -> None:
        """The same for one of them; returns at once when there is none here."""
        running = self._running.get(stream_id)
        partition = None if running is None else running.partitions.get(partition_id)
        if partition is not None:
            await partition.settled.wait()

    def positions(self, replicas: Collection[tuple[uuid.UUID, int]]) -> dict[tuple[uuid.UUID, int], Position]:
        """Where the logs of replicas here end, of those that have their logs open or have lost them."""
        found = {}
        for stream_id, partition_id in replicas:
            running = self._running.get(stream_id)
            partition = None if running is None else running.partitions.get(partition_id)
            position = LOST if partition is None else partition.position
            if position is not None:
                found[stream_id, partition_id] = position
        return found

    async def released(self, stream: Stream, partition_ids: Sequence[int]) -> None:
        """Wait until paused partitions have given back what they took up."""
        running = self._running.get(stream.stream_id)
        if running is not None:
            chosen = [running.partitions.get(partition_id) for partition_id in partition_ids]
            for partition in chosen:
                if partition is not None and partition.state is State.PAUSED:
                    await partition.wait_closed()

    # -- changes of the metadata -----------------------------------------------------------------------

    def on_operation(self, index: int, operation: Operation, outcome: Outcome) -> None:
        """The controller: an operation was applied."""
        if isinstance(operation, DeleteStream):
            assert isinstance(outcome, Stream), outcome
            self.deleted(outcome)
        elif isinstance(outcome, Stream):
            self.changed(outcome)
        elif isinstance(operation, RegisterBroker) and operation.broker == self._broker:
            self.on_restored()  # from here on this broker may lead
        elif isinstance(outcome, Changed):
            for stream_id in dict.fromkeys(result.stream_id for result in outcome.results):
                stream = self._state.stream_by_id(stream_id)
                if stream is not None:
                    self.changed(stream)

    def on_restored(self) -> None:
        """The whole state may be another one."""
        for stream_id, running in list(self._running.items()):
            if self._state.stream_by_id(stream_id) is None and not running.deleted:
                self._deleted(running, stream_id)
        for stream in self._state.streams.values():
            self.changed(stream)

    def deleted(self, stream: Stream) -> None:
        """A stream was deleted: its subscribers end now, its files go in the background."""
        self._deleted(self._running[stream.stream_id], stream.stream_id)

    def _deleted(self, running: _Running, stream_id: uuid.UUID) -> None:
        running.deleted = True
        self.routes.remove(running.name)
        for partition in running.partitions.values():
            partition.mark_gone(deleted=True)
        if self._nursery is not None:
            self._nursery.start_soon(self._remove, stream_id)

    def changed(self, stream: Stream) -> None:
        """A stream is new, or another one than it was: have its replicas here follow.

        Partitions that were paused end, and their subscribers now; what they take up is given back in the
        background. Those that were resumed begin anew on their directories.
        """
        running = self._running.get(stream.stream_id)
        settings = partition_settings(self._config, stream)
        if running is None:
            running = self._running[stream.stream_id] = _Running(stream.name.encode())
            self.routes.put(
                StreamRoute(
                    running.name, stream.subject.encode(), len(stream.partitions), settings.check_offsets
                )
            )
        opening: list[Partition] = []
        pausing: list[Partition] = []
        for model in stream.partitions:
            partition = running.partitions.get(model.id)
            if self._broker not in model.replicas:
                if partition is not None:
                    self._move_away(running, partition)
            elif partition is None or (partition.state is State.PAUSED and not model.paused):
                new = running.partitions[model.id] = self._make(stream, model, settings)
                if partition is not None:
                    new.received = partition.received
                    running.ending.append(partition)
                if not model.paused:
                    opening.append(new)
            else:
                goes_on = partition.state is not State.PAUSED
                partition.agree(stream, model, self._leads(model))
                if goes_on and partition.state is State.PAUSED:
                    pausing.append(partition)
            self._mark_route(stream, model)
        if self._nursery is not None and opening:
            self._nursery.start_soon(self._open, running, opening)
        if self._nursery is not None and pausing:
            self._nursery.start_soon(self._pause, pausing)

    def _leads(self, model: PartitionModel) -> bool:
        return model.leader == self._broker and self._registered()

    def _move_away(self, running: _Running, partition: Partition) -> None:
        """The replica here is another broker's now."""
        del running.partitions[partition.model.id]
        partition.mark_gone(deleted=False)
        if self._nursery is not None:
            before = running.removing.get(partition.model.id)
            running.removing[partition.model.id] = gone = trio.Event()
            self._nursery.start_soon(self._remove_replica, running, partition, before, gone)

    def _make(self, stream: Stream, model: PartitionModel, settings: PartitionSettings) -> Partition:
        # Cursors and the like are small, and reading goes on while the disk is nearly full.
        space = None if stream.name in RESERVED_NAMES else self._space
        return Partition(
            stream,
            model,
            self._root / str(stream.stream_id) / str(model.id),
            settings,
            leads=self._leads(model),
            ingest=self._ingest,
            acks=self._acks,
            router=self._router,
            flusher=self._flusher,
            keyring=self._config.keyring,
            power_lost=self._power_lost,
            space=space,
            spawn=self._spawn,
            replicator=self._replicator,
        )

    def mark_route(self, partition: Partition) -> None:
        """Tell publishers whether a partition takes messages."""
        if self.partition(partition.stream.name, partition.model.id) is partition:
            self._mark_route(partition.stream, partition.model)
        # else it was deleted, or another one has taken its place

    def _mark_route(self, stream: Stream, model: PartitionModel) -> None:
        route = self.routes.get(stream.name.encode())
        if route is None:
            return
        partition = self._running[stream.stream_id].partitions.get(model.id)
        waiting = model.paused
        if partition is not None and self._leads(model):
            waiting = partition.state is State.PAUSED or not partition.settled.is_set()
        route.mark(model.id, readonly=model.readonly, waiting=waiting)

    def _spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task)

    # -- the ends of partitions ------------------------------------------------------------------------

    async def _open(self, running: _Running, partitions: list[Partition]) -> None:
        """Open partitions, as far as they are not to be closed at once."""
        async with trio.open_nursery() as nursery:
            for partition in partitions:
                nursery.start_soon(self._open_one, running, partition)

    async def _open_one(self, running: _Running, partition: Partition) -> None:
        for before in [each for each in running.ending if each.model.id == partition.model.id]:
            await before.wait_closed()  # by `_pause`, which knows what is still to come
            await self._end(before)
            if before in running.ending:
                running.ending.remove(before)
        while (removed := running.removing.get(partition.model.id)) is not None:
            await removed.wait()
        await partition.open()
        self.mark_route(partition)
        if not partition.closing:
            self._cleaner.add(partition)
            self._autopause.add(partition)

    async def _pause(self, partitions: list[Partition]) -> None:
        """Close partitions that were paused, after what was published before.

        Publishers have been told. What they had sent until then is with NATS first, and then, as NATS keeps
        the order, in front of the answer to a flush of the connection that receives it.
        """
        with trio.move_on_after(DRAIN_SECONDS):
            with contextlib.suppress(NatsUnavailableError):
                await self._published()
            with contextlib.suppress(NatsUnavailableError):
                await self._ingest.connection.flush()
        async with trio.open_nursery() as nursery:
            for partition in partitions:
                nursery.start_soon(self._end, partition)

    async def _end(self, partition: Partition) -> None:
        """Close a partition; when this returns nobody uses its directory. Called again, it waits for that."""
        with trio.CancelScope(shield=True):
            self._cleaner.discard(partition)
            self._autopause.discard(partition)
            await partition.close()
            await self._cleaner.wait_idle(partition)

    async def _end_all(self, running: _Running) -> None:
        async with trio.open_nursery() as nursery:
            for partition in [*running.partitions.values(), *running.ending]:
                nursery.start_soon(self._end, partition)
            for removed in list(running.removing.values()):
                await removed.wait()

    async def _remove(self, stream_id: uuid.UUID) -> None:
        with trio.CancelScope(shield=True):
            await self._end_all(self._running[stream_id])
            await trio.to_thread.run_sync(self._delete_directory, self._root / str(stream_id))
        del self._running[stream_id]

    async def _remove_replica(
        self, running: _Running, partition: Partition, before: trio.Event | None, gone: trio.Event
    ) -> None:
        partition_id = partition.model.id
        with trio.CancelScope(shield=True):
            if before is not None:
                await before.wait()
            await self._end(partition)
            if partition_id not in running.partitions:  # otherwise it has come back meanwhile
                await trio.to_thread.run_sync(self._delete_directory, partition.directory)
        gone.set()
        if running.removing.get(partition_id) is gone:
            del running.removing[partition_id]

    # -- files -----------------------------------------------------------------------------------------

    async def clean_up(self) -> None:
        """Finish deletions that a stop interrupted, and name what belongs to nobody. For when the state is as
        new as that of others: what was agreed on meanwhile is not known before."""
        await trio.to_thread.run_sync(self._clean_up)

    def _clean_up(self) -> None:
        deleted = {str(stream_id) for stream_id in self._state.deleted_ids}
        known = {str(stream.stream_id) for stream in self._state.streams.values()}
        for directory in sorted(self._root.iterdir()):
            if directory.name in deleted:
                self._delete_directory(directory)
            elif directory.name not in known:
                self._logger.warning("%s belongs to no stream; it is left alone", directory)

    def _delete_directory(self, directory: Path) -> None:
        try:
            delete_log(directory)
        except OSError as error:
            # Nothing depends on the files being gone; the next start tries again.
            self._logger.error("%s could not be removed: %s", directory, error)  # noqa: TRY400


def _most_awake_logs() -> int:
    """Raise the process's limit of open files as far as it may be, and return how many logs may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS tells of more than it grants
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    unlimited = soft == resource.RLIM_INFINITY
    return MOST_AWAKE_LOGS if unlimited else min(MOST_AWAKE_LOGS, int(soft * SHARE_OF_FILES))
