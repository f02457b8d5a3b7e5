"""Operations on brokers: they come, are taken for dead, come back, go.

What a broker's coming or going means for the partitions that it holds is part of applying the operation: so
one operation is one batch of changes for all of them, and none can be forgotten. Whom the controller would
like to lead instead it says as wishes, since it knows more than the state does, such as who has synced most.
A wish that breaks a rule is not heard.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from liftbridge.metadata.stored import OperationError, decode_stream_id, decode_uuid, envelope
from liftbridge.proto import internal_pb2

# (stream UUID, partition id, id of the broker that is to lead it)
Wishes: TypeAlias = tuple[tuple[uuid.UUID, int, str], ...]


class Ended(Enum):
    """What became of a broker's disk since it ran before."""

    UNCLEAN = 0  # what no sync had covered may be missing
    CLEAN = 1  # it has everything that it had
    LOST = 2  # anything may be missing: it is empty, another one, or damaged


@dataclass(frozen=True, slots=True)
class RegisterBroker:
    """A broker has started. It is fenced until it has caught up with the metadata (`UnfenceBroker`).

    The index of the operation is its broker epoch. FAILED_PRECONDITION for a broker that was removed.

    Attributes:
        broker: its id.
        incarnation: UUID of this run of it; the operation has no effect when it is registered already.
        addresses: where other brokers and clients reach it.
        rack: "" for none.
        feature_level: what it understands.
        ended: how its last run did. What may have lost committed messages cannot lead before it has caught
            up; a stream that counts only what is on disk has lost none in an unclean end.
        node_id: of its node of the consensus; a wiped disk is another node.
    """

    broker: str
    incarnation: uuid.UUID
    addresses: tuple[str, ...] = ()
    rack: str = ""
    feature_level: int = 0
    ended: Ended = Ended.UNCLEAN
    node_id: int = 0

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.RegisterBroker(
            broker=self.broker,
            incarnation=self.incarnation.bytes,
            addresses=self.addresses,
            rack=self.rack,
            feature_level=self.feature_level,
            ended=self.ended.value,
            node_id=self.node_id,
        )
        return envelope(internal_pb2.REGISTER_BROKER, body)


@dataclass(frozen=True, slots=True)
class FenceBroker:
    """A broker is taken for dead: it leads nothing and is in sync with nothing.

    NOT_FOUND without such a broker, FAILED_PRECONDITION when it has registered anew or was removed.

    Attributes:
        broker, broker_epoch: which run of which broker.
        wishes: who is to lead instead.
    """

    broker: str
    broker_epoch: int
    wishes: Wishes = ()

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.FenceBroker(
            broker=self.broker, broker_epoch=self.broker_epoch, wishes=_encode_wishes(self.wishes)
        )
        return envelope(internal_pb2.FENCE_BROKER, body)


@dataclass(frozen=True, slots=True)
class UnfenceBroker:
    """A broker is alive and knows the metadata: it may lead. Attributes and errors as in `FenceBroker`."""

    broker: str
    broker_epoch: int

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.UnfenceBroker(broker=self.broker, broker_epoch=self.broker_epoch)
        return envelope(internal_pb2.UNFENCE_BROKER, body)


@dataclass(frozen=True, slots=True)
class DrainBroker:
    """A broker is going to stop: others lead, where there are others. Attributes and errors as in
    `FenceBroker`; FAILED_PRECONDITION also when it is fenced."""

    broker: str
    broker_epoch: int
    wishes: Wishes = ()

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.DrainBroker(
            broker=self.broker, broker_epoch=self.broker_epoch, wishes=_encode_wishes(self.wishes)
        )
        return envelope(internal_pb2.DRAIN_BROKER, body)


@dataclass(frozen=True, slots=True)
class UnregisterBroker:
    """A broker goes for good. Attributes and errors as in `FenceBroker`; FAILED_PRECONDITION also as long as
    it holds a replica."""

    broker: str
    broker_epoch: int

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.UnregisterBroker(broker=self.broker, broker_epoch=self.broker_epoch)
        return envelope(internal_pb2.UNREGISTER_BROKER, body)


@dataclass(frozen=True, slots=True)
class WithdrawReplicas:
    """A broker gives replicas up: it leads them no more and is in sync with them no more, until it has caught
    up. Errors as in `FenceBroker`; partitions that do not exist (any more) are passed over.

    Attributes:
        broker, broker_epoch: as in `FenceBroker`.
        replicas: (stream UUID, partition id) of each.
        lost: whether they may lack committed messages.
    """

    broker: str
    broker_epoch: int
    replicas: tuple[tuple[uuid.UUID, int], ...]
    lost: bool = False

    def encode(self) -> bytes:
        """The stored form."""
        body = internal_pb2.WithdrawReplicas(
            broker=self.broker,
            broker_epoch=self.broker_epoch,
            replicas=[
                internal_pb2.ReplicaId(stream_id=stream_id.bytes, partition=partition)
                for stream_id, partition in self.replicas
            ],
            lost=self.lost,
        )
        return envelope(internal_pb2.WITHDRAW_REPLICAS, body)


BrokerOperation: TypeAlias = (
    RegisterBroker | FenceBroker | UnfenceBroker | DrainBroker | UnregisterBroker | WithdrawReplicas
)


def decode_ended(number: int) -> Ended:
    """How a run ended, from its stored number; OperationError for one that is not known."""
    try:
        return Ended(number)
    except ValueError:
        raise OperationError(f"end of kind {number} is not known to this version of liftbridge") from None


def _encode_wishes(wishes: Wishes) -> list[internal_pb2.LeaderWish]:
    return [
        internal_pb2.LeaderWish(stream_id=stream_id.bytes, partition=partition, leader=leader)
        for stream_id, partition, leader in wishes
    ]


def _decode_wishes(wishes: RepeatedCompositeFieldContainer[internal_pb2.LeaderWish]) -> Wishes:
    return tuple((decode_stream_id(wish.stream_id), wish.partition, wish.leader) for wish in wishes)


def _decode_register(body: bytes) -> RegisterBroker:
    message = internal_pb2.RegisterBroker.FromString(body)
    return RegisterBroker(
        broker=message.broker,
        incarnation=decode_uuid(message.incarnation, "incarnation of a broker"),
        addresses=tuple(message.addresses),
        rack=message.rack,
        feature_level=message.feature_level,
        ended=decode_ended(message.ended),
        node_id=message.node_id,
    )


def _decode_fence(body: bytes) -> FenceBroker:
    message = internal_pb2.FenceBroker.FromString(body)
    return FenceBroker(message.broker, message.broker_epoch, _decode_wishes(message.wishes))


def _decode_unfence(body: bytes) -> UnfenceBroker:
    message = internal_pb2.UnfenceBroker.FromString(body)
    return UnfenceBroker(message.broker, message.broker_epoch)


def _decode_drain(body: bytes) -> DrainBroker:
    message = internal_pb2.DrainBroker.FromString(body)
    return DrainBroker(message.broker, message.broker_epoch, _decode_wishes(message.wishes))


def _decode_unregister(body: bytes) -> UnregisterBroker:
    message = internal_pb2.UnregisterBroker.FromString(body)
    return UnregisterBroker(message.broker, message.broker_epoch)


def _decode_withdraw(body: bytes) -> WithdrawReplicas:
    message = internal_pb2.WithdrawReplicas.FromString(body)
    return WithdrawReplicas(
        broker=message.broker,
        broker_epoch=message.broker_epoch,
        replicas=tuple((decode_stream_id(each.stream_id), each.partition) for each in message.replicas),
        lost=message.lost,
    )


DECODERS: dict[int, Callable[[bytes], BrokerOperation]] = {
    internal_pb2.REGISTER_BROKER: _decode_register,
    internal_pb2.FENCE_BROKER: _decode_fence,
    internal_pb2.UNFENCE_BROKER: _decode_unfence,
    internal_pb2.DRAIN_BROKER: _decode_drain,
    internal_pb2.UNREGISTER_BROKER: _decode_unregister,
    internal_pb2.WITHDRAW_REPLICAS: _decode_withdraw,
}
