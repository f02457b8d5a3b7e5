"""The brokers of the cluster: who has registered, and who may lead.

A registry has one record for each broker that ever registered and was not forgotten. Sessions, heartbeats and
anything else that has to do with time are not in it: the controller watches those, and what it concludes
becomes an operation.

Invariants:
- A broker epoch is the index of a registration: it is higher for every later run of any broker.
- What names an earlier run of a broker changes nothing.
- A broker that was removed does not come back under its id. The most recent ones are remembered for that.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from liftbridge.metadata.broker_operations import (
    BrokerOperation,
    DrainBroker,
    Ended,
    RegisterBroker,
    UnfenceBroker,
    UnregisterBroker,
    WithdrawReplicas,
    decode_ended,
)
from liftbridge.metadata.errors import MetadataCode, MetadataError, invalid
from liftbridge.metadata.stored import OperationError, decode_uuid
from liftbridge.proto import internal_pb2

REMOVED_KEPT = 1024


class BrokerState(Enum):
    """What a broker may do."""

    FENCED = 1  # nothing: it has just started, or was not heard of
    ACTIVE = 2
    DRAINING = 3  # it is about to stop: it follows, and leads only what nobody else can
    REMOVED = 4  # it has gone for good


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker, as the cluster has agreed on it; attributes as in `RegisterBroker`.

    Attributes:
        epoch: its broker epoch, the index of its registration.
        state: what it may do.
    """

    id: str
    incarnation: uuid.UUID
    epoch: int
    addresses: tuple[str, ...]
    rack: str
    feature_level: int
    ended: Ended
    node_id: int
    state: BrokerState

    @property
    def alive(self) -> bool:
        """Whether it takes part: it may follow, be in sync, and lead if need be."""
        return self.state in (BrokerState.ACTIVE, BrokerState.DRAINING)


class Brokers:
    """The registry."""

    def __init__(self, records: Iterable[Broker] = ()) -> None:
        self._by_id = {record.id: record for record in records}

    @property
    def by_id(self) -> Mapping[str, Broker]:
        """All records by id, in order of their first registration; a live view."""
        return MappingProxyType(self._by_id)

    def alive(self, broker: str) -> bool:
        """Whether a broker takes part; one that never registered does not."""
        record = self._by_id.get(broker)
        return record is not None and record.alive

    def known_dead(self, broker: str) -> bool:
        """Whether a broker has registered and does not take part now."""
        record = self._by_id.get(broker)
        return record is not None and not record.alive

    def check(self, operation: BrokerOperation, holds_replicas: bool) -> None:
        """Raise the MetadataError with which the operation would be refused.

        `holds_replicas`: whether a partition has a replica on the broker.
        """
        record = self._by_id.get(operation.broker)
        if isinstance(operation, RegisterBroker):
            if not operation.broker:
                raise invalid("a broker needs an id")
            if record is not None and record.state is BrokerState.REMOVED:
                raise _failed(
                    f"broker {operation.broker!r} was removed from the cluster; give it another id and an "
                    "empty data directory"
                )
            return
        if record is None:
            raise MetadataError(MetadataCode.NOT_FOUND, f"No such broker: {operation.broker!r}")
        if record.state is BrokerState.REMOVED:
            raise _failed(f"broker {operation.broker!r} was removed from the cluster")
        if record.epoch != operation.broker_epoch:
            raise _failed(
                f"broker {operation.broker!r} has registered anew, with epoch {record.epoch}; this was meant "
                f"for epoch {operation.broker_epoch}"
            )
        if isinstance(operation, DrainBroker) and not record.alive:
            raise _failed(f"broker {operation.broker!r} is fenced and leads nothing")
        if isinstance(operation, UnregisterBroker) and holds_replicas:
            raise _failed(f"broker {operation.broker!r} holds replicas; move them to other brokers first")

    def apply(self, index: int, operation: BrokerOperation) -> Broker:
        """Change the record as an operation, which has passed its check, says; the record as it is then."""
        record = self._by_id.get(operation.broker)
        if isinstance(operation, RegisterBroker):
            if record is not None and record.incarnation == operation.incarnation:
                return record
            record = Broker(
                operation.broker,
                operation.incarnation,
                index,
                operation.addresses,
                operation.rack,
                operation.feature_level,
                operation.ended,
                operation.node_id,
                BrokerState.FENCED,
            )
        else:
            assert record is not None, operation
            if isinstance(operation, UnfenceBroker):
                # One that drains goes on draining.
                if not record.alive:
                    record = replace(record, state=BrokerState.ACTIVE)
            elif isinstance(operation, DrainBroker):
                record = replace(record, state=BrokerState.DRAINING)
            elif isinstance(operation, UnregisterBroker):
                record = replace(record, state=BrokerState.REMOVED)
            elif not isinstance(operation, WithdrawReplicas):
                record = replace(record, state=BrokerState.FENCED)
        self._by_id[record.id] = record
        self._forget_removed()
        return record

    def _forget_removed(self) -> None:
        removed = [record.id for record in self._by_id.values() if record.state is BrokerState.REMOVED]
        for broker in removed[: max(0, len(removed) - REMOVED_KEPT)]:
            del self._by_id[broker]

    def encode(self) -> list[internal_pb2.BrokerRecord]:
        """The stored form; equal registries have equal ones."""
        return [
            internal_pb2.BrokerRecord(
                broker=record.id,
                incarnation=record.incarnation.bytes,
                broker_epoch=record.epoch,
                addresses=record.addresses,
                rack=record.rack,
                feature_level=record.feature_level,
                ended=record.ended.value,
                node_id=record.node_id,
                state=record.state.value,
            )
            for record in self._by_id.values()
        ]

    @staticmethod
    def decode(messages: Iterable[internal_pb2.BrokerRecord]) -> Brokers:
        """The registry that `encode` stored. Raises OperationError."""
        brokers = Brokers()
        for message in messages:
            try:
                state = BrokerState(message.state)
            except ValueError:
                raise OperationError(
                    f"broker {message.broker!r} is in unknown state {message.state}"
                ) from None
            if message.broker in brokers._by_id:
                raise OperationError(f"broker {message.broker!r} is listed twice")
            brokers._by_id[message.broker] = Broker(
                message.broker,
                decode_uuid(message.incarnation, "incarnation of a broker"),
                message.broker_epoch,
                tuple(message.addresses),
                message.rack,
                message.feature_level,
                decode_ended(message.ended),
                message.node_id,
                state,
            )
        return brokers


def _failed(text: str) -> MetadataError:
    return MetadataError(MetadataCode.FAILED_PRECONDITION, text)
