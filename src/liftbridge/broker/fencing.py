"""One member of a consumer group reads a partition at a time: who is late is refused, who is newer takes
over.

Members learn of a new assignment one after the other. Until all have, two of them may take a partition for
theirs, so the leader of the partition decides by the group's epoch that each subscription shows:

- Who shows an older epoch than the subscription that is there is refused.
- Anybody else takes over: the subscription that is there ends, with status OK.
- Who shows an epoch that is not newer than the group's own must also own the partition by the group's
  assignment. So a member that comes back late is refused even after a restart, when nothing is remembered of
  subscriptions. A newer epoch is one that this server has not heard of yet, and is believed.

What is remembered lives as long as the subscription it is about: the table is as large as the number of open
subscriptions of groups. The data path is not touched, except that a batch of messages for a member of a group
is waited for in a cancel scope of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import trio

from liftbridge.broker.partition import Partition
from liftbridge.metadata.groups import Group
from liftbridge.metadata.state import ClusterState
from liftbridge.metadata.validation import shown
from liftbridge.proto import api_pb2
from liftbridge.rpc import Frames, StatusCode, rpc_error

# Lower than the epoch of any subscription.
_NONE = -1


@dataclass(eq=False)
class _Holder:
    """A subscription that holds a partition for its group."""

    epoch: int
    replaced: bool = False
    waiting: trio.CancelScope = field(default_factory=trio.CancelScope)

    def replace(self) -> None:
        """End the subscription: at once if it waits for messages, else when those on the way are sent."""
        self.replaced = True
        self.waiting.cancel()


class Fences:
    """Which subscription reads which partition for which group."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._holders: dict[str, dict[tuple[uuid.UUID, int], _Holder]] = {}

    def check(self, partition: Partition, consumer: api_pb2.Consumer) -> None:
        """Refuse a subscription that comes too late, with RpcFailedError FAILED_PRECONDITION."""
        holder = self._holders.get(consumer.groupId, {}).get(_place(partition))
        if holder is not None and holder.epoch > consumer.groupEpoch:
            raise rpc_error(
                StatusCode.FAILED_PRECONDITION,
                f"group {shown(consumer.groupId)} reads partition {partition} with epoch {holder.epoch} "
                f"already, which is newer than {consumer.groupEpoch}; fetch the assignments anew",
            )
        group: Group | None = self._state.groups.get(consumer.groupId)
        if (
            group is not None
            and consumer.groupEpoch <= group.epoch
            and not group.owns(consumer.consumerId, partition.stream.name, partition.model.id)
        ):
            raise rpc_error(
                StatusCode.FAILED_PRECONDITION,
                f"partition {partition} is not assigned to consumer {shown(consumer.consumerId)} of group "
                f"{shown(group.group_id)} in its epoch {group.epoch}; fetch the assignments anew",
            )

    async def hold(
        self, partition: Partition, consumer: api_pb2.Consumer, batches: AsyncGenerator[Frames, None]
    ) -> AsyncGenerator[Frames, None]:
        """Deliver `batches` until another subscription takes over; an earlier one ends now.

        Raises RpcFailedError as `check`, and what `batches` raises.
        """
        self.check(partition, consumer)  # again, as finding the positions may have taken time
        place = _place(partition)
        holders = self._holders.setdefault(consumer.groupId, {})
        before = holders.get(place)
        holder = holders[place] = _Holder(consumer.groupEpoch)
        if before is not None:
            before.replace()
        try:
            while not holder.replaced:
                # Never open while the batch is sent, as a message must not be cut off in the middle.
                with trio.CancelScope() as holder.waiting:
                    frames = await anext(batches)
                if holder.replaced:
                    break
                yield frames
        finally:
            if holders.get(place) is holder:
                del holders[place]
                if not holders and self._holders.get(consumer.groupId) is holders:
                    del self._holders[consumer.groupId]
            await batches.aclose()

    def group_ended(self, group_id: str) -> None:
        """A group has no members any more. Its epochs begin anew with the next one, so whoever subscribes
        then takes over from those who did not notice."""
        for holder in self._holders.get(group_id, {}).values():
            holder.epoch = _NONE


def _place(partition: Partition) -> tuple[uuid.UUID, int]:
    return partition.stream.stream_id, partition.model.id
