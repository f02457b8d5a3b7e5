"""The controller: the one place where metadata changes.

It owns the state of the cluster and has operations agreed on (`consensus.py`), which stores and applies them.
One broker decides, the leader of the consensus: it lets one operation through at a time, checked against the
state. The others know the same state a moment later. What they are asked to change they decide on that state,
when it is as new as their being asked, and have the leader carry it out (`forwarding.py`); what changes
meanwhile is for the check in `ClusterState.apply`, which every operation passes. So it makes no difference to
a client which broker it asks. Subscribers are told of every operation that is applied here.

- A refused operation of the leader's never reaches the journal.
- Nothing is applied, and nobody is told, before the operation is agreed on and on this disk.
- Whoever has had something changed here finds it changed here.
- A caller that gave up may find that its operation took place. So may one whose leader was lost meanwhile: it
  is told so, if asking again could do twice what was to be done once.
- When the journal fails, whether the disk has the operation is unknown. No further operation is accepted
  until a restart has read the truth from the disk; reading metadata goes on.

A server that is its own cluster is the only member of the consensus, and always its leader.
"""

from __future__ import annotations

import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import trio

from liftbridge.broker.consensus import BusyError, Consensus, NotLeadingError, Role
from liftbridge.broker.forwarding import (
    PROPOSE,
    READ,
    REGISTER,
    AnswerError,
    Links,
    LostError,
    NotDecidingError,
    UnreachableError,
    answer,
    answer_elsewhere,
    answer_refused,
    done_before,
    index_of,
    repeatable,
)
from liftbridge.broker.founding import METADATA_DIRECTORY, Begin, FoundingError, found
from liftbridge.broker.identity import DataDirectory, DataDirectoryError
from liftbridge.broker.journal import Journal, JournalError, Recovered, read_entries
from liftbridge.broker.journal_format import snapshot_path
from liftbridge.metadata import operations
from liftbridge.metadata.broker_operations import RegisterBroker
from liftbridge.metadata.brokers import BrokerState
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.model import NO_MORE, Guarantees, Stream, StreamSettings
from liftbridge.metadata.operations import CreateStream, DeleteStream, Operation, OperationError
from liftbridge.metadata.placement import place
from liftbridge.metadata.state import ClusterState, Outcome, SnapshotError
from liftbridge.metadata.validation import (
    check_create_stream,
    check_delete_stream,
    resolve_replication_factor,
)
from liftbridge.raft import EntryKind, Message, Options, Snapshot

logger = logging.getLogger("liftbridge.metadata")

# Clients compare the whole text to tell "try again in a moment" from a failure.
LEADER_UNKNOWN_TEXT = "no known metadata leader"
OUTCOME_UNKNOWN_TEXT = (
    "the leader of the metadata was lost while it carried this out: it may have taken effect or not; look, "
    "and ask again if it has not"
)
# How long a request waits for somebody who decides.
DECISION_SECONDS = 5.0
# Between two attempts when nothing has changed meanwhile.
AGAIN_SECONDS = 0.1
# Of the operations applied last it is known what came of them, for those who had others carry them out.
OUTCOMES_KEPT = 4096

Subscriber = Callable[[int, Operation, Outcome], None]


def no_more(settings: StreamSettings) -> Guarantees:
    """The guarantees of streams on a server that has no configuration."""
    del settings
    return NO_MORE


class ControllerStartError(Exception):
    """The controller cannot start; the text says why and what to do."""


class Controller:
    """The metadata of the cluster, and the way to change it. Made by `start`; `close` ends it.

    Attributes:
        state: what the cluster has agreed on; to be read only.
        broker: id of this server.
        namespace: the cluster's namespace.
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
        links: Links | None = None,
        guarantees: Callable[[StreamSettings], Guarantees] = no_more,
        reaches: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.state = metadata.state
        self.broker = broker
        self.namespace = namespace
        self._closed = False
        self._consensus = consensus
        self._metadata = metadata
        self._links = links
        self._guarantees = guarantees
        self._reaches = reaches
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
        send: Callable[[Message], None] | None = None,
        links: Links | None = None,
        options: Options | None = None,
        guarantees: Callable[[StreamSettings], Guarantees] = no_more,
        reaches: Callable[[str], bool] = lambda _: True,
    ) -> Controller:
        """Recover the metadata from the data directory, or begin a cluster.

        Arguments:
            data: the open data directory.
            namespace: the cluster's namespace.
            bootstrap: whether to begin a new cluster when the directory belongs to none.
            clock: ns since the epoch, for creation times.
            snapshot_entries: operations between two snapshots.
            encryption_refusal: why this server cannot encrypt streams; empty when it can.
            send, links: how other members are reached, by messages that may be lost and by questions; None
                for a server that is its own cluster.
            options: bounds and times of the consensus.
            guarantees: what a stream with some settings is to guarantee, by the configuration of this server.
            reaches: whether a broker can be reached now.

        Raises ControllerStartError. Cancelling waits until the directory is in order.
        """
        journal, recovered = await trio.to_thread.run_sync(_open, data, bootstrap)
        journal.snapshot_entries = snapshot_entries
        metadata = _Metadata(journal.directory)
        try:
            consensus = Consensus(journal, recovered, metadata, send or _nobody, options)
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
            links=links,
            guarantees=guarantees,
            reaches=reaches,
        )

    @property
    def consensus(self) -> Consensus:
        """The node of this server; with other members somebody has to run it, and deliver their messages."""
        return self._consensus

    @property
    def is_leader(self) -> bool:
        """Whether this server decides on metadata."""
        return not self._closed and (self._consensus.alone or self._consensus.leads)

    @property
    def term(self) -> int:
        """Term of the consensus."""
        return self._consensus.core.term

    @property
    def failure(self) -> str:
        """Why no metadata can be changed until a restart; empty while it can."""
        return self._consensus.journal.failed or ""

    def subscribe(self, subscriber: Subscriber, restored: Callable[[], None] | None = None) -> None:
        """Call `subscriber(index, operation, outcome)` for every operation from now on, once it is applied,
        and `restored()` when operations came as a snapshot instead, so that the state is to be looked at.

        Calls come in order of index, in the task that proposed the operation, before its caller hears of it.
        A subscriber does not block and does not raise. What was recovered at the start is in `state` already.
        """
        self._metadata.subscribers.append(subscriber)
        if restored is not None:
            self._metadata.restored.append(restored)

    async def propose(self, operation: Operation) -> Outcome:
        """Carry out an operation: when this returns it is durable and applied, and all subscribers know.

        Returns what `ClusterState.apply` does. Raises MetadataError: a precondition does not hold, or
        INTERNAL when nobody decides, or when it could not be made durable.
        """
        outcome = await self.change(lambda _: operation)
        assert outcome is not None
        return outcome

    async def change(self, decide: Callable[[ClusterState], Operation | None]) -> Outcome | None:
        """Carry out the operation that `decide` makes of the state, so that nothing comes in between here;
        None when it finds nothing to do.

        The state has all that was agreed on before this was called. Returns and raises as `propose` does;
        what `decide` raises comes through.
        """
        deadline = trio.current_time() + DECISION_SECONDS
        await self._catch_up(deadline)
        begun = False
        # Those who have others decide need not wait for each other.
        async with self._turn if self.is_leader else nullcontext():
            operation = decide(self.state)
            if operation is None:
                return None
            if self.is_leader:
                try:
                    return (await self._commit(operation))[1]
                except NotLeadingError as error:
                    begun = error.begun
        return await self._have_committed(operation, begun, deadline)

    async def register(self, operation: RegisterBroker) -> None:
        """Have a broker registered: this one, which may not have heard yet of anybody who decides.

        When this returns it is agreed on, and will be applied here. Raises MetadataError.
        """
        if self._links is None or self.is_leader or self._consensus.core.leader is not None:
            await self.propose(operation)
            return
        try:
            index_of(await self._links.ask_anybody(REGISTER, operation.encode()))
        except (UnreachableError, LostError, NotDecidingError):
            raise _no_leader() from None
        except AnswerError as error:
            raise MetadataError(MetadataCode.INTERNAL, str(error)) from error

    async def ask_leader(self, kind: str, payload: bytes) -> None:
        """Have the broker that decides on metadata do something that may be done twice; when this returns,
        what came of it is applied here.

        Raises MetadataError: it refuses, or INTERNAL when nobody decides.
        """
        try:
            await self._consensus.wait_applied(await self._ask(kind, payload))
        except (NotDecidingError, UnreachableError, LostError):
            raise _no_leader() from None

    async def answer_register(self, payload: bytes) -> bytes:
        """A broker that has just come wants to be registered. Returns the answer to it."""
        try:
            await self.propose(_registration(payload))
        except OperationError as error:
            return answer_refused(MetadataError(MetadataCode.FAILED_PRECONDITION, str(error)))
        except MetadataError as error:
            return answer_refused(error)
        return answer(self._consensus.applied)

    async def answer_propose(self, payload: bytes) -> bytes:
        """Another broker wants an operation carried out. Returns the answer to it."""
        try:
            operation = operations.decode(payload)
            async with self._turn:
                if not self.is_leader:
                    return answer_elsewhere()
                index, _ = await self._commit(operation)
        except OperationError as error:
            return answer_refused(MetadataError(MetadataCode.FAILED_PRECONDITION, str(error)))
        except MetadataError as error:
            return answer_refused(error)
        except NotLeadingError as error:
            if not error.begun:
                return answer_elsewhere()
            return answer_refused(MetadataError(MetadataCode.INTERNAL, OUTCOME_UNKNOWN_TEXT))
        return answer(index)

    async def answer_read(self, payload: bytes) -> bytes:
        """Another broker wants to know how much is agreed on. Returns the answer to it."""
        del payload  # there is nothing to say yet
        try:
            if not self.is_leader:
                return answer_elsewhere()
            return answer(await self._newest())
        except BusyError as error:
            return answer_refused(MetadataError(MetadataCode.RESOURCE_EXHAUSTED, str(error)))
        except NotLeadingError:
            return answer_elsewhere()

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

        def operation(state: ClusterState) -> CreateStream:
            return self.creation(
                state,
                name=name,
                subject=subject,
                group=group,
                replication_factor=replication_factor,
                partitions=partitions,
                settings=settings,
            )

        return _stream(await self.change(operation))

    def creation(
        self,
        state: ClusterState,
        *,
        name: str,
        subject: str,
        group: str = "",
        replication_factor: int,
        partitions: int,
        settings: StreamSettings,
    ) -> CreateStream:
        """The operation that creates a stream, placed on the brokers that may lead now.

        Arguments as for `create_stream`, which has checked them. Raises MetadataError: INVALID_ARGUMENT for
        a replication factor that the cluster has not enough brokers for.
        """
        brokers = self.active_brokers
        replicas = resolve_replication_factor(replication_factor, len(brokers))
        # One that has just died is still active, until its session ends.
        reached = [broker for broker in brokers if broker == self.broker or self._reaches(broker)]
        if len(reached) >= replicas:
            brokers = reached
        return CreateStream(
            name=name,
            subject=subject,
            group=group,
            stream_id=uuid.uuid4(),
            creation_ns=self._clock(),
            settings=settings,
            partitions=place(partitions, replicas, [state.load(broker) for broker in brokers]),
            guarantees=self._guarantees(settings),
        )

    @property
    def active_brokers(self) -> Sequence[str]:
        """The brokers that may be given something to do; this one while none is registered."""
        active = [broker.id for broker in self.state.brokers.values() if broker.state is BrokerState.ACTIVE]
        return active or [self.broker]

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
                self._closed = True
                await self._consensus.close()

    def _check_available(self, settings: StreamSettings) -> None:
        """Refuse what this server would otherwise silently not do; 0 and False ask for nothing."""
        if settings.encryption and self._encryption_refusal:
            raise MetadataError(
                MetadataCode.FAILED_PRECONDITION,
                f"this server has no master key to encrypt the stream with: {self._encryption_refusal}",
            )

    async def _newest(self) -> int:
        """Index of an entry with which all is applied that was agreed on before now, at the leader."""
        if self._consensus.alone:
            return self._consensus.applied
        return await self._consensus.read_index()

    async def _catch_up(self, deadline: float) -> None:
        """Apply all that was agreed on before now. Raises MetadataError when nobody decides in time."""
        with trio.CancelScope(deadline=deadline) as scope:
            while not self.is_leader:
                self._check_open()
                role = self._consensus.role
                try:
                    index = await self._ask(READ, b"")
                except (NotDecidingError, UnreachableError, LostError):
                    await self._wait_role(role)
                else:
                    await self._consensus.wait_applied(index)
                    return
        if scope.cancelled_caught:
            raise _no_leader()

    async def _have_committed(self, operation: Operation, begun: bool, deadline: float) -> Outcome:
        """Have whoever leads carry out an operation; `begun` when it may have been carried out already."""
        while not begun or repeatable(operation):
            self._check_open()
            role = self._consensus.role
            try:
                if self.is_leader:
                    async with self._turn:
                        return (await self._commit(operation))[1]
                with trio.CancelScope(deadline=deadline) as scope:
                    return await self._ask_for(operation)
            except MetadataError as refusal:
                if not begun:
                    raise
                await self._catch_up(deadline)
                if not done_before(operation, refusal, self.state):
                    raise
                return self._metadata.outcome_of(operation)
            except (NotDecidingError, UnreachableError):
                pass
            except NotLeadingError as error:
                begun = begun or error.begun
            except LostError:
                begun = True
            else:
                assert scope.cancelled_caught
                break
            if trio.current_time() >= deadline:
                raise _no_leader()
            await self._wait_role(role)
        raise MetadataError(MetadataCode.INTERNAL, OUTCOME_UNKNOWN_TEXT)

    async def _wait_role(self, known: Role) -> None:
        """Wait for another leader, or a little: what cannot be reached now may be reached then."""
        with trio.move_on_after(AGAIN_SECONDS), suppress(NotLeadingError):
            await self._consensus.role_after(known)

    def _check_open(self) -> None:
        if self._closed:
            raise _no_leader()

    async def _ask_for(self, operation: Operation) -> Outcome:
        """Have the leader carry out an operation, and wait until it is applied here."""
        index = await self._ask(PROPOSE, operation.encode())
        await self._consensus.wait_applied(index)
        return self._metadata.outcome_at(index)

    async def _ask(self, kind: str, payload: bytes) -> int:
        """Ask the leader; the index that it answers with.

        Raises MetadataError, NotDecidingError, UnreachableError, LostError.
        """
        leader = self._consensus.core.leader
        if self._links is None or leader is None or leader == self._consensus.core.node_id:
            raise UnreachableError
        try:
            return index_of(await self._links.ask(leader, kind, payload))
        except AnswerError as error:
            raise MetadataError(MetadataCode.INTERNAL, str(error)) from error

    async def _commit(self, operation: Operation) -> tuple[int, Outcome]:
        """Check, and have it agreed on. Returns its index, and what came of it.

        The caller holds the turn, and knows that this server leads. Raises MetadataError, NotLeadingError.
        """
        self.state.check(operation)
        try:
            applied = await self._consensus.propose(operation.encode())
        except BusyError as error:
            raise MetadataError(MetadataCode.RESOURCE_EXHAUSTED, str(error)) from error
        except JournalError as error:
            # The text says it all; where in our code it happened helps nobody.
            logger.error("a metadata operation was not stored: %s", error)  # noqa: TRY400
            raise MetadataError(MetadataCode.INTERNAL, str(error)) from error
        assert isinstance(applied, _Applied), applied
        return applied.index, applied.take()


class _Applied:
    """An operation that was applied, and what came of it."""

    __slots__ = ("index", "operation", "outcome")

    def __init__(self, index: int, operation: Operation, outcome: Outcome | MetadataError) -> None:
        self.index, self.operation, self.outcome = index, operation, outcome

    def take(self) -> Outcome:
        """What came of it. Raises the MetadataError with which it was refused."""
        if isinstance(self.outcome, MetadataError):
            raise MetadataError(self.outcome.code, self.outcome.text)
        return self.outcome


class _Metadata:
    """The state of the cluster as what the consensus is about.

    Attributes:
        state: the state.
        subscribers: told of every operation that has changed it.
        restored: told when it was replaced.
    """

    def __init__(self, directory: Path) -> None:
        self.state = ClusterState()
        self.subscribers: list[Subscriber] = []
        self.restored: list[Callable[[], None]] = []
        self._directory = directory
        self._recent: OrderedDict[int, _Applied] = OrderedDict()

    def outcome_at(self, index: int) -> Outcome:
        """What came of the operation of an entry that was applied a moment ago. Raises MetadataError."""
        applied = self._recent.get(index)
        if applied is None:  # it came in a snapshot, or among very many
            raise MetadataError(MetadataCode.INTERNAL, OUTCOME_UNKNOWN_TEXT)
        return applied.take()

    def outcome_of(self, operation: Operation) -> Outcome:
        """What came of an operation that was applied not long ago. Raises MetadataError."""
        for applied in reversed(self._recent.values()):
            if applied.operation == operation and not isinstance(applied.outcome, MetadataError):
                return applied.outcome
        raise MetadataError(MetadataCode.INTERNAL, OUTCOME_UNKNOWN_TEXT)

    def apply(self, index: int, data: bytes) -> _Applied:
        """Apply an operation.

        Raises ControllerStartError: another version has proposed it, and this one must not go on without it.
        """
        try:
            operation = operations.decode(data)
        except OperationError as error:
            raise ControllerStartError(
                f"operation {index} of the metadata journal in {self._directory} cannot be applied: {error}"
            ) from error
        outcome: Outcome | MetadataError
        try:
            outcome = self.state.apply(index, operation)
        except MetadataError as error:
            outcome = error
        else:
            for subscriber in self.subscribers:
                subscriber(index, operation, outcome)
        applied = self._recent[index] = _Applied(index, operation, outcome)
        if len(self._recent) > OUTCOMES_KEPT:
            self._recent.popitem(last=False)
        return applied

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
        for restored in self.restored:
            restored()


def _nobody(message: Message) -> None:
    raise AssertionError(f"there is nobody to send {message} to")


def _registration(payload: bytes) -> RegisterBroker:
    operation = operations.decode(payload)
    if not isinstance(operation, RegisterBroker):
        raise OperationError("only a registration can be asked for so")
    return operation


def _no_leader() -> MetadataError:
    return MetadataError(MetadataCode.INTERNAL, LEADER_UNKNOWN_TEXT)


def _stream(outcome: Outcome | None) -> Stream:
    assert isinstance(outcome, Stream), outcome
    return outcome


def _open(data: DataDirectory, bootstrap: bool) -> tuple[Journal, Recovered]:
    """Open the journal of the data directory, or begin one."""
    directory = data.path / METADATA_DIRECTORY
    try:
        if not Journal.exists(directory):
            if not bootstrap and data.cluster_id is None:
                raise ControllerStartError(
                    f"data directory {data.path} belongs to no cluster yet; start the first server of a new "
                    "cluster with --raft-bootstrap-seed, or use `liftbridge dev` to try things out"
                )
            found(data, Begin())
        journal, recovered = Journal.open(directory)
        try:
            data.join_cluster(journal.cluster_id)
        except BaseException:
            journal.close()
            raise
    except (JournalError, DataDirectoryError, FoundingError) as error:
        raise ControllerStartError(str(error)) from error
    except OSError as error:
        raise ControllerStartError(f"the metadata in {directory} cannot be opened: {error}") from error
    return journal, recovered
