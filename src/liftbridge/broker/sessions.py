"""Sessions of brokers: who is alive, as the broker that decides on metadata hears it.

Each broker tells the leader of the consensus twice a second that it is there, also the leader itself. What
follows from it is decided by a pure machine (`metadata/control.py`), which is made anew whenever this broker
begins to lead, and proposed here. An answer to a heartbeat is also what the lease of a broker is made of:
until when it may act as the leader of partitions without asking anybody (`replication/lease.py`).

What the machine wants to know of replicas, to choose among those that may have lost something, travels with
heartbeats: it is asked for in an answer, and told with the next one, at once.

Invariants:
- A confirmation counts for the time at which its question was sent, and only where all is applied that was
  when it was given: else a broker that was fenced meanwhile might not know it.
- A session is confirmed after a majority has said that this broker leads, and that after the heartbeat came.
- A leader that has just begun gives everybody a whole session; nobody is fenced for the silence before.
- Only a leader proposes what the machine has decided, and what it decides anew follows from the state then.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping

import trio
from google.protobuf.message import DecodeError

from liftbridge.broker.consensus import BusyError, NotLeadingError
from liftbridge.broker.controller import Controller
from liftbridge.broker.forwarding import Links, LostError, UnreachableError
from liftbridge.broker.registration import Registration
from liftbridge.metadata.broker_operations import RegisterBroker
from liftbridge.metadata.control import Control, Heard, Position
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.operations import Operation
from liftbridge.metadata.state import Outcome
from liftbridge.metadata.stored import OperationError, decode_stream_id
from liftbridge.proto import internal_pb2
from liftbridge.replication.lease import Lease

HEARTBEAT = "session.heartbeat"
# All of these also hold while the process or the machine is busy; the difference of session and lease is what
# clocks may differ by within a session.
HEARTBEAT_SECONDS = 0.5
LEASE_SECONDS = 2.0
SESSION_SECONDS = 3.0
# Who waits longer for an answer asks whoever leads then.
ANSWER_SECONDS = 1.0

Replica = tuple[uuid.UUID, int]
Positions = Callable[[Collection[Replica]], Mapping[Replica, Position]]

logger = logging.getLogger("liftbridge.cluster")


class Sessions:
    """The session of this broker, and those of all brokers while it decides. Have `run` run.

    Attributes:
        leaving: whether it is about to stop; others lead then, where there are others.
    """

    def __init__(
        self,
        controller: Controller,
        registration: Registration,
        links: Links,
        lease: Lease,
        positions: Positions,
    ) -> None:
        """`lease` is this broker's; `positions` tells where the logs of some of its replicas end."""
        self._lease = lease
        self.leaving = False
        self._controller = controller
        self._consensus = controller.consensus
        self._registration = registration
        self._links = links
        self._positions = positions
        self._control: Control | None = None
        self._wanted: Collection[Replica] = ()
        self._beat_now = trio.Event()
        self._news = trio.Event()
        self._changed = trio.Event()
        self._refusal = ""
        controller.subscribe(self._on_operation, self._on_restored)

    @property
    def active(self) -> bool:
        """Whether this broker is registered and taken for alive."""
        return self._registration.epoch is not None and self._controller.state.registry.alive(
            self._controller.broker
        )

    async def wait_active(self) -> None:
        """Wait until it is."""
        while not self.active:
            await self._changed.wait()

    async def wait_left(self) -> None:
        """Wait until others lead what this broker led, where there are others, and count on it no more; it
        has said that it leaves."""
        while self._controller.state.registry.alive(self._controller.broker):
            await self._changed.wait()

    def leave(self) -> None:
        """This broker is about to stop."""
        self.leaving = True
        self._beat_now.set()

    async def run(self) -> None:
        """Keep the session of this broker, and decide on those of all while it leads; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_session)
            nursery.start_soon(self._decide)

    # -- the session of this broker

    async def _keep_session(self) -> None:
        while True:
            self._beat_now = trio.Event()
            await self._beat()
            with trio.move_on_after(HEARTBEAT_SECONDS):
                await self._beat_now.wait()

    async def _beat(self) -> None:
        epoch = self._registration.epoch
        if epoch is None:
            return
        self._lease.registered(epoch)
        sent = trio.current_time()
        question = internal_pb2.Heartbeat(
            broker=self._controller.broker,
            broker_epoch=epoch,
            leaving=self.leaving,
            positions=[_encode(*each) for each in self._positions(self._wanted).items()],
        ).SerializeToString()
        self._wanted = ()
        answer = await self._ask(question)
        if answer is None or answer.not_deciding:
            return
        if answer.confirmed and self._controller.state.applied_index >= answer.applied:
            self._lease.confirmed(epoch, sent)
        if answer.reason != self._refusal:
            self._refusal = answer.reason
            if answer.reason:
                logger.info("the session of this broker does not go on yet: %s", answer.reason)
        if answer.wanted:
            self._wanted = [(decode_stream_id(each.stream_id), each.partition) for each in answer.wanted]
            self._beat_now.set()

    async def _ask(self, question: bytes) -> internal_pb2.HeartbeatAnswer | None:
        leader = self._consensus.core.leader
        if leader is None:
            return None
        answer = internal_pb2.HeartbeatAnswer()
        try:
            if leader == self._consensus.core.node_id:
                with trio.move_on_after(ANSWER_SECONDS):
                    answer.ParseFromString(await self.answer_heartbeat(question))
                    return answer
                return None
            with trio.move_on_after(ANSWER_SECONDS):
                answer.ParseFromString(await self._links.ask(leader, HEARTBEAT, question))
                return answer
        except (UnreachableError, LostError):
            pass
        except DecodeError as error:
            logger.warning(
                "the leader of the metadata answers heartbeats with what cannot be read: %s", error
            )
        return None

    # -- those of all

    async def answer_heartbeat(self, payload: bytes) -> bytes:
        """A broker is there. Returns the answer to it. Raises OperationError for bytes that say nothing."""
        message = internal_pb2.Heartbeat()
        try:
            message.ParseFromString(payload)
        except DecodeError as error:
            raise OperationError(f"no heartbeat: {error}") from error
        control = self._control
        if control is None or not self._consensus.leads:
            return internal_pb2.HeartbeatAnswer(not_deciding=True).SerializeToString()
        broker, epoch = message.broker, message.broker_epoch
        heard = control.heard(broker, epoch, trio.current_time(), leaving=message.leaving)
        if message.positions:
            control.stated(broker, epoch, dict(map(_decode, message.positions)))
        self._wake()
        wanted = control.wanted().get(broker, ())
        if heard is Heard.CONFIRMED and not await self._leads_still():
            return internal_pb2.HeartbeatAnswer(not_deciding=True).SerializeToString()
        return internal_pb2.HeartbeatAnswer(
            confirmed=heard is Heard.CONFIRMED,
            reason="" if heard is Heard.CONFIRMED else heard.value,
            applied=self._controller.state.applied_index,
            wanted=[
                internal_pb2.ReplicaId(stream_id=stream_id.bytes, partition=partition)
                for stream_id, partition in wanted
            ],
        ).SerializeToString()

    async def _leads_still(self) -> bool:
        """Whether a majority says now that this broker leads: one that has stood still does not know that
        another one does, and what it confirmed would be a lease beside that of another leader."""
        if self._consensus.alone:
            return True
        try:
            await self._consensus.read_index()
        except (NotLeadingError, BusyError):
            return False
        return True

    async def _decide(self) -> None:
        """Decide for as long as this broker leads, whenever it does."""
        while True:
            role = self._consensus.role
            if role.leads:
                await self._lead(role.term)
            else:
                try:
                    await self._consensus.role_after(role)
                except NotLeadingError:
                    return  # the server stops

    async def _lead(self, term: int) -> None:
        control = self._control = Control(
            self._controller.state, trio.current_time(), session=SESSION_SECONDS
        )
        self._beat_now.set()
        try:
            while self._consensus.leads and self._consensus.core.term == term:
                self._news = trio.Event()
                operations = control.due(trio.current_time())
                if operations:
                    await self._propose(control, operations)
                    continue
                with trio.move_on_at(control.next_due()):
                    await self._news.wait()
        finally:
            self._control = None

    async def _propose(self, control: Control, operations: Iterable[Operation]) -> None:
        for operation in operations:
            if await self._propose_one(operation):
                control.resolved(operation, trio.current_time())

    async def _propose_one(self, operation: Operation) -> bool:
        """Propose an operation; returns whether it is known what came of it."""
        try:
            await self._controller.propose(operation)
        except MetadataError as error:
            logger.warning("%s was not carried out: %s", type(operation).__name__, error.text)
            return error.code is not MetadataCode.INTERNAL
        return True

    def _on_operation(self, index: int, operation: Operation, outcome: Outcome) -> None:
        if isinstance(operation, RegisterBroker):
            self._beat_now.set()
        self._on_restored()

    def _on_restored(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._wake()

    def _wake(self) -> None:
        self._news.set()


def _encode(replica: Replica, position: Position) -> internal_pb2.ReplicaPosition:
    stream_id, partition = replica
    return internal_pb2.ReplicaPosition(
        replica=internal_pb2.ReplicaId(stream_id=stream_id.bytes, partition=partition),
        last_epoch=position.last_epoch,
        next_offset=position.next_offset,
        synced_offset=position.synced_offset,
        lost=position.lost,
    )


def _decode(message: internal_pb2.ReplicaPosition) -> tuple[Replica, Position]:
    """Raises OperationError."""
    replica = decode_stream_id(message.replica.stream_id), message.replica.partition
    return replica, Position(message.last_epoch, message.next_offset, message.synced_offset, message.lost)
