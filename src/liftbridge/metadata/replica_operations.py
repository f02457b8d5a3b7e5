"""Operations on the replicas of partitions: who is in sync, who leads, where they are.

Each names the state of the partition that it was decided on, its epoch. When it is applied to another one it
is refused, as a value in the outcome and not as an error: a batch changes many partitions, and what is
refused for one of them says nothing of the others. So none of the conditions has to hold when an operation
is proposed; the rules are in `metadata/replicas.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from liftbridge.metadata.stored import OperationError, decode_stream_id, envelope
from liftbridge.proto import internal_pb2


class Mode(Enum):
    """What an election may cost."""

    CLEAN = 0  # nothing: the leader has every committed message
    UNCLEAN = 1  # committed messages, as the stream allows it
    FORCED = 2  # committed messages, as an operator wants it
    RECOVERED = 3  # what the last known replicas have lost, whose most complete one this is


@dataclass(frozen=True, slots=True)
class IsrChange:
    """The leader of a partition wants these replicas to be the in-sync ones.

    Attributes:
        stream_id, partition: which partition.
        epoch: its partition epoch when this was decided.
        leader, leader_epoch: who decided it, and in which epoch.
        isr: each member with its broker epoch, the leader among them.
        lost: replicas that lack committed messages which they had, none of them in `isr`.
    """

    stream_id: uuid.UUID
    partition: int
    epoch: int
    leader: str
    leader_epoch: int
    isr: tuple[tuple[str, int], ...]
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AlterIsr:
    """Change the in-sync replicas of partitions."""

    changes: tuple[IsrChange, ...]

    def encode(self) -> bytes:
        """The stored form."""
        changes = [
            internal_pb2.IsrChange(
                stream_id=change.stream_id.bytes,
                partition=change.partition,
                epoch=change.epoch,
                leader=change.leader,
                leader_epoch=change.leader_epoch,
                isr=[
                    internal_pb2.IsrMember(broker=broker, broker_epoch=epoch) for broker, epoch in change.isr
                ],
                lost=change.lost,
            )
            for change in self.changes
        ]
        return envelope(internal_pb2.ALTER_ISR, internal_pb2.AlterIsr(changes=changes))


@dataclass(frozen=True, slots=True)
class LeaderChange:
    """The controller wants another leader for a partition; attributes as in `IsrChange`."""

    stream_id: uuid.UUID
    partition: int
    epoch: int
    leader: str
    mode: Mode = Mode.CLEAN


@dataclass(frozen=True, slots=True)
class ChangeLeaders:
    """Change the leaders of partitions: of a failover, a transfer, a return to preferred leaders."""

    changes: tuple[LeaderChange, ...]

    def encode(self) -> bytes:
        """The stored form."""
        changes = [
            internal_pb2.LeaderChange(
                stream_id=change.stream_id.bytes,
                partition=change.partition,
                epoch=change.epoch,
                leader=change.leader,
                mode=change.mode.value,
            )
            for change in self.changes
        ]
        return envelope(internal_pb2.CHANGE_LEADERS, internal_pb2.ChangeLeaders(changes=changes))


@dataclass(frozen=True, slots=True)
class Reassignment:
    """Where the replicas of a partition are to be; attributes as in `IsrChange`.

    `replicas` are all of them, the preferred leader first. New ones are added at once and fetch; old ones go
    when the new ones are in sync. Naming the old ones again ends a reassignment that is under way.
    """

    stream_id: uuid.UUID
    partition: int
    epoch: int
    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReassignPartitions:
    """Begin to move replicas of partitions."""

    changes: tuple[Reassignment, ...]

    def encode(self) -> bytes:
        """The stored form."""
        changes = [
            internal_pb2.Reassignment(
                stream_id=change.stream_id.bytes,
                partition=change.partition,
                epoch=change.epoch,
                replicas=change.replicas,
            )
            for change in self.changes
        ]
        return envelope(internal_pb2.REASSIGN_PARTITIONS, internal_pb2.ReassignPartitions(changes=changes))


PartitionChange: TypeAlias = IsrChange | LeaderChange | Reassignment
ReplicaOperation: TypeAlias = AlterIsr | ChangeLeaders | ReassignPartitions


def _decode_alter_isr(body: bytes) -> AlterIsr:
    return AlterIsr(
        tuple(
            IsrChange(
                stream_id=decode_stream_id(change.stream_id),
                partition=change.partition,
                epoch=change.epoch,
                leader=change.leader,
                leader_epoch=change.leader_epoch,
                isr=tuple((member.broker, member.broker_epoch) for member in change.isr),
                lost=tuple(change.lost),
            )
            for change in internal_pb2.AlterIsr.FromString(body).changes
        )
    )


def _decode_change_leaders(body: bytes) -> ChangeLeaders:
    return ChangeLeaders(
        tuple(
            LeaderChange(
                stream_id=decode_stream_id(change.stream_id),
                partition=change.partition,
                epoch=change.epoch,
                leader=change.leader,
                mode=_mode(change.mode),
            )
            for change in internal_pb2.ChangeLeaders.FromString(body).changes
        )
    )


def _mode(number: int) -> Mode:
    try:
        return Mode(number)
    except ValueError:
        raise OperationError(
            f"election of mode {number} is not known to this version of liftbridge"
        ) from None


def _decode_reassign_partitions(body: bytes) -> ReassignPartitions:
    return ReassignPartitions(
        tuple(
            Reassignment(
                stream_id=decode_stream_id(change.stream_id),
                partition=change.partition,
                epoch=change.epoch,
                replicas=tuple(change.replicas),
            )
            for change in internal_pb2.ReassignPartitions.FromString(body).changes
        )
    )


DECODERS: dict[int, Callable[[bytes], ReplicaOperation]] = {
    internal_pb2.ALTER_ISR: _decode_alter_isr,
    internal_pb2.CHANGE_LEADERS: _decode_change_leaders,
    internal_pb2.REASSIGN_PARTITIONS: _decode_reassign_partitions,
}
