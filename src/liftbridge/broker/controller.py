"""The controller: the one place where metadata changes.

It owns the state of the cluster, and lets one operation through at a time: check against the state, have it
agreed on (`consensus.py`), which stores and applies it, tell the subscribers. The order is the invariant:

- A refused operation never reaches the journal.
- Nothing is applied, and nobody is told, before the operation is agreed on and on the disk.
- A caller that gave up may find that its operation took place.
- When the journal fails, whether the disk has the operation is unknown. No further operation is accepted
  until a restart has read the truth from the disk; reading metadata goes on.

This server is its own cluster: the only member of the consensus, the only broker.
"""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path

import trio

from liftbridge.broker.consensus import Consensus, NotLeadingError
from liftbridge.broker.identity import DataDirectory, DataDirectoryError
from liftbridge.broker.journal import Journal, JournalError, Recovered, read_entries
from liftbridge.broker.journal_format import snapshot_path
from liftbridge.metadata import operations
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.groups import Group
from liftbridge.metadata.model import Stream, StreamSettings
from liftbridge.metadata.operations import CreateStream, DeleteStream, Operation, OperationError
from liftbridge.metadata.placement import place
from liftbridge.metadata.state import ClusterState, Outcome, SnapshotError
from liftbridge.metadata.validation import (
    check_create_stream,
    check_delete_stream,
    resolve_replication_factor,
)
from liftbridge.raft import Entry, EntryKind, Members, Message, Snapshot, encode_members

logger = logging.getLogger("liftbridge.metadata")

# Clients compare the whole text to tell "try again in a moment" from a failure.
LEADER_UNKNOWN_TEXT = "no known metadata leader"
METADATA_DIRECTORY = "metadata"

Subscriber = Callable[[int, Operation, Outcome], None]


class ControllerStartError(Exception):
    """The controller cannot start; the text says why and what to do."""


class Controller:
    """The metadata of the cluster, and the way to change it. Made by `start`; `close` ends it.

    Attributes:
        state: what the cluster has agreed on; to be read only.
        broker: id of this server.
        namespace: the cluster's namespace.
        is_leader: whether this server decides on metadata.
    """

    def __init__(
        self,
        consensus: Consensus,
        metadata: _Metadata,
        *,
        broker: str,
        namespace: str,
        clock: Callable[[], int],
        encryption_refusal: str = "",
    ) -> None:
        self.state = metadata.state
        self.broker = broker
        self.namespace = namespace
        self.is_leader = True
        self._consensus = consensus
        self._subscribers = metadata.subscribers
        self._clock = clock
        self._encryption_refusal = encryption_refusal
        self._turn = trio.Lock()

    @classmethod
    async def start(
        cls,
        data: DataDirectory,
        *,
        namespace: str,
        bootstrap: bool,
        clock: Callable[[], int],
        snapshot_entries: int = 8192,
        encryption_refusal: str = "",
    ) -> Controller:
        """Recover the metadata from the data directory, or begin a cluster.

        Arguments:
            data: the open data directory.
            namespace: the cluster's namespace.
            bootstrap: whether to begin a new cluster when the directory belongs to none.
            clock: ns since the epoch, for creation times.
            snapshot_entries: operations between two snapshots.
            encryption_refusal: why this server cannot encrypt streams; empty when it can.

        Raises ControllerStartError. Cancelling waits until the directory is in order.
        """
        journal, recovered = await trio.to_thread.run_sync(_open, data, bootstrap)
        journal.snapshot_entries = snapshot_entries
        metadata = _Metadata(journal.directory)
        try:
            consensus = Consensus(journal, recovered, metadata, _nobody)
            await consensus.start()
        except BaseException:
            journal.close()
            raise
        return cls(
            consensus,
            metadata,
            broker=data.server_id,
            namespace=namespace,
            clock=clock,
            encryption_refusal=encryption_refusal,
        )

    @property
    def term(self) -> int:
        """Term of the consensus."""
        return self._consensus.core.term

    @property
    def failure(self) -> str:
        """Why no metadata can be changed until a restart; empty while it can."""
        return self._consensus.journal.failed or ""

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber(index, operation, outcome)` for every operation from now on, once it is applied.

        Calls come in order of index, in the task that proposed the operation, before its caller hears of it.
        A subscriber does not block and does not raise. What was recovered at the start is in `state` already.
        """
        self._subscribers.append(subscriber)

    async def propose(self, operation: Operation) -> Outcome:
        """Carry out an operation: when this returns it is durable and applied, and all subscribers know.

        Returns what `ClusterState.apply` does. Raises MetadataError: a precondition does not hold, or
        INTERNAL when it could not be made durable.
        """
        outcome = await self.change(lambda _: operation)
        assert outcome is not None
        return outcome

    async def change(self, decide: Callable[[ClusterState], Operation | None]) -> Outcome | None:
        """Carry out the operation that `decide` makes of the state when it is its turn, so that nothing comes
        in between; None when it finds nothing to do.

        Returns and raises as `propose` does; what `decide` raises comes through.
        """
        async with self._turn:
            self._require_leader()
            operation = decide(self.state)
            return None if operation is None else await self._commit(operation)

    async def create_stream(
        self,
        *,
        name: str,
        subject: str,
        group: str = "",
        replication_factor: int = 0,
        partitions: int = 0,
        settings: StreamSettings | None = None,
    ) -> Stream:
        """Create a stream as a client asks for it.

        Arguments: the fields of CreateStreamRequest, unset ones 0 or empty. Returns the stream. Raises
        MetadataError: INVALID_ARGUMENT, FAILED_PRECONDITION, ALREADY_EXISTS, INTERNAL.
        """
        settings = settings or StreamSettings()
        partitions = check_create_stream(
            name=name,
            subject=subject,
            group=group,
            partitions=partitions,
            settings=settings,
            namespace=self.namespace,
        )
        self._check_available(settings)
        self._require_leader()
        brokers = [self.broker]
        replicas = resolve_replication_factor(replication_factor, len(brokers))

        def operation(state: ClusterState) -> CreateStream:
            return CreateStream(
                name=name,
                subject=subject,
                group=group,
                stream_id=uuid.uuid4(),
                creation_ns=self._clock(),
                settings=settings,
                partitions=place(partitions, replicas, [state.load(broker) for broker in brokers]),
            )

        return _stream(await self.change(operation))

    async def delete_stream(self, name: str) -> Stream:
        """Delete a stream as a client asks for it.

        Returns it as it was. Raises MetadataError: INVALID_ARGUMENT, NOT_FOUND, INTERNAL.
        """
        check_delete_stream(name)
        return _stream(await self.change(lambda state: DeleteStream(name, state.stream(name).stream_id)))

    async def operations_after(self, index: int, last: int) -> list[tuple[int, Operation | None]]:
        """The entries after `index`, up to `last`, by index, as far as the journal still has them; None for
        one that is no operation.

        Raises OSError when it cannot be read.
        """
        journal = self._consensus.journal
        entries = await trio.to_thread.run_sync(read_entries, journal.directory, index, last)
        return [
            (entry.index, operations.decode(entry.data) if entry.kind is EntryKind.COMMAND else None)
            for entry in entries
        ]

    def keep_operations_after(self, index: int) -> None:
        """Keep what follows `index` in the journal, within its bounds, also when a snapshot has it."""
        self._consensus.journal.keep_after = index

    async def close(self) -> None:
        """Wait for the operation under way and release the journal. Later operations find no leader."""
        with trio.CancelScope(shield=True):
            async with self._turn:
                self.is_leader = False
                await self._consensus.close()

    def _check_available(self, settings: StreamSettings) -> None:
        """Refuse what this server would otherwise silently not do; 0 and False ask for nothing."""
        if settings.encryption and self._encryption_refusal:
            raise MetadataError(
                MetadataCode.FAILED_PRECONDITION,
                f"this server has no master key to encrypt the stream with: {self._encryption_refusal}",
            )

    def _require_leader(self) -> None:
        if not self.is_leader:
            raise MetadataError(MetadataCode.INTERNAL, LEADER_UNKNOWN_TEXT)

    async def _commit(self, operation: Operation) -> Outcome:
        """Check, and have it agreed on. The caller holds the turn, and knows that this server leads."""
        self.state.check(operation)
        try:
            result = await self._consensus.propose(operation.encode())
        except NotLeadingError as error:
            raise MetadataError(MetadataCode.INTERNAL, LEADER_UNKNOWN_TEXT) from error
        except JournalError as error:
            # The text says it all; where in our code it happened helps nobody.
            logger.error("a metadata operation was not stored: %s", error)  # noqa: TRY400
            raise MetadataError(MetadataCode.INTERNAL, str(error)) from error
        if isinstance(result, MetadataError):
            raise result
        assert isinstance(result, Stream | Group), result
        return result


class _Metadata:
    """The state of the cluster as what the consensus is about.

    Attributes:
        state: the state.
        subscribers: told of every operation that has changed it.
    """

    def __init__(self, directory: Path) -> None:
        self.state = ClusterState()
        self.subscribers: list[Subscriber] = []
        self._directory = directory

    def apply(self, index: int, data: bytes) -> object:
        """Apply an operation. Returns what came of it, or the MetadataError with which it was refused.

        Raises ControllerStartError: another version has proposed it, and this one must not go on without it.
        """
        try:
            operation = operations.decode(data)
        except OperationError as error:
            raise ControllerStartError(
                f"operation {index} of the metadata journal in {self._directory} cannot be applied: {error}"
            ) from error
        try:
            outcome = self.state.apply(index, operation)
        except MetadataError as error:
            return error
        for subscriber in self.subscribers:
            subscriber(index, operation, outcome)
        return outcome

    def snapshot(self) -> bytes:
        """The whole state."""
        return self.state.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Become a state that was stored. Raises ControllerStartError."""
        path = snapshot_path(self._directory, snapshot.meta.index)
        try:
            self.state.restore(snapshot.state)
        except SnapshotError as error:
            raise ControllerStartError(f"{path} cannot be used: {error}") from error
        if self.state.applied_index > snapshot.meta.index:
            raise ControllerStartError(
                f"{path} holds the state of index {self.state.applied_index}; restore the directory from a "
                "copy"
            )


def _nobody(message: Message) -> None:
    raise AssertionError(f"there is nobody to send {message} to")


def _stream(outcome: Outcome | None) -> Stream:
    assert isinstance(outcome, Stream), outcome
    return outcome


def _open(data: DataDirectory, bootstrap: bool) -> tuple[Journal, Recovered]:
    """Open the journal of the data directory, or begin one.

    The journal is begun before the directory is marked as belonging to the cluster, so that a directory which
    is marked but has no journal is known to have lost it, and is not taken for a new one.
    """
    directory = data.path / METADATA_DIRECTORY
    try:
        if not Journal.exists(directory):
            _bootstrap(directory, data, bootstrap)
        journal, recovered = Journal.open(directory)
        try:
            data.join_cluster(journal.cluster_id)
        except BaseException:
            journal.close()
            raise
    except (JournalError, DataDirectoryError) as error:
        raise ControllerStartError(str(error)) from error
    except OSError as error:
        raise ControllerStartError(f"the metadata in {directory} cannot be opened: {error}") from error
    return journal, recovered


def _bootstrap(directory: Path, data: DataDirectory, bootstrap: bool) -> None:
    """Begin a cluster of this server alone."""
    if data.cluster_id is not None:
        raise ControllerStartError(
            f"{directory} holds no metadata, but this server belongs to cluster {data.cluster_id}; restore "
            "the directory from a copy"
        )
    if not bootstrap:
        raise ControllerStartError(
            f"data directory {data.path} belongs to no cluster yet; start the first server of a new cluster "
            "with --raft-bootstrap-seed, or use `liftbridge dev` to try things out"
        )
    cluster_id = uuid.uuid4()
    node_id = secrets.randbelow(2**64 - 1) + 1
    logger.info("beginning cluster %s in %s", cluster_id, data.path)
    members = Entry(1, 1, EntryKind.MEMBERS, encode_members(Members(voters=frozenset({node_id}))))
    Journal.create(directory, cluster_id, node_id, entries=[members]).close()
