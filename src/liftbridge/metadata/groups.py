"""Consumer groups: who shares the partitions of which streams, as the cluster has agreed on it.

A group is a set of members, each with the streams it wants. The partitions of these streams are shared out
among them (`assignment`), and every change of that gives the group a new epoch, the index of the operation
that caused it. A member shows the epoch it knows; a wrong one is how it learns that it must ask anew.

A `Group` is an immutable value. `Groups`, the table of all of them, is changed by `ClusterState` alone, in
the operation that is the reason: joining, leaving, another coordinator, a stream that came or went. So
brokers that applied the same operations have the same assignments at the same epochs.

Invariants:
- The epoch of a group is 0 when it begins, as clients of the original server see it, and rises with each
  change.
- A group has at least one member; the last one to leave ends it.
- Assignments are computed once, when the operation is applied, and are part of the snapshot.
- A member keeps wanting a stream that was deleted: it gets the partitions of a new one of that name.
- Everything that clients can make grow has a limit, and a request beyond it is refused as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from liftbridge.metadata.assignment import Budget, Share, assign
from liftbridge.metadata.errors import MetadataCode, MetadataError, invalid
from liftbridge.metadata.model import Stream
from liftbridge.metadata.operations import (
    GroupOperation,
    JoinGroup,
    LeaveGroup,
    OperationError,
)
from liftbridge.metadata.validation import shown
from liftbridge.proto import internal_pb2

MAX_ID_BYTES = 256
MAX_MEMBER_STREAMS = 500
MAX_MEMBERS = 1_000
MAX_GROUPS = 10_000
# Over all groups: streams that members want, and partitions that are assigned. Together they bound the
# memory, the snapshot (some MB), and how long one operation can take: with everything in one group, or every
# group waiting for one stream, two tenths of a second.
MAX_SUBSCRIPTIONS = 50_000
MAX_ASSIGNED = 250_000
# Members that balancing may look at for one operation; a tenth of a second.
BALANCING = 400_000


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a group.

    Attributes:
        consumer_id: unique in its group.
        joined: index of the operation by which it joined; an id that left and came back is another member.
        share: every stream it wants, with the partitions of it that it is to consume.
    """

    consumer_id: str
    joined: int
    share: Share


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group, as the cluster has agreed on it.

    Attributes:
        group_id: unique in the cluster.
        coordinator: id of the broker that serves the assignments and watches over the members.
        epoch: index of the last operation that changed members, assignments or coordinator; 0 in the
            beginning.
        members: by consumer id, in the order they joined. Empty in the value that tells of a group's end.
    """

    group_id: str
    coordinator: str
    epoch: int
    members: Mapping[str, Member]

    def owns(self, consumer_id: str, stream: str, partition: int) -> bool:
        """Whether a partition is assigned to a consumer."""
        member = self.members.get(consumer_id)
        return member is not None and partition in member.share.get(stream, ())


def check_ids(**ids: str) -> None:
    """Check that ids of groups, consumers and servers are given and not too long; INVALID_ARGUMENT."""
    for name, value in ids.items():
        if not value:
            raise invalid(f"{name} is empty")
        if len(value.encode()) > MAX_ID_BYTES:
            raise invalid(f"{name} {shown(value)} is longer than {MAX_ID_BYTES} bytes")


def check_join(group_id: str, consumer_id: str, streams: Collection[str]) -> tuple[str, ...]:
    """Check a request to join a group as far as no state is needed; MetadataError INVALID_ARGUMENT.

    Returns the streams as the operation has them.
    """
    check_ids(groupId=group_id, consumerId=consumer_id)
    if not streams:
        raise invalid(f"consumer {shown(consumer_id)} names no streams to consume")
    wanted = sorted(set(streams))
    if len(wanted) > MAX_MEMBER_STREAMS:
        raise invalid(
            f"consumer {shown(consumer_id)} wants {len(wanted)} streams, at most {MAX_MEMBER_STREAMS} are "
            "allowed; share them out among several groups"
        )
    return tuple(wanted)


def choose_coordinator(brokers: Collection[str], coordinated: Mapping[str, int]) -> str:
    """The broker that gets the next group: the one with the fewest, equal ones by id.

    Arguments:
        brokers: those to choose from, at least one.
        coordinated: how many groups each coordinates; one that is missing has none.
    """
    return min(brokers, key=lambda broker: (coordinated.get(broker, 0), broker))


def no_such_group(group_id: str) -> MetadataError:
    """The error for a group that does not exist."""
    return MetadataError(
        MetadataCode.NOT_FOUND,
        f"there is no consumer group {shown(group_id)}; a consumer that joins begins it",
    )


def not_a_member(group: Group, consumer_id: str) -> MetadataError:
    """The error for a consumer that is not in the group."""
    return refused(
        f"consumer {shown(consumer_id)} is not a member of group {shown(group.group_id)}; join it first"
    )


def refused(text: str) -> MetadataError:
    """The error for a request that does not fit the state of a group."""
    return MetadataError(MetadataCode.FAILED_PRECONDITION, text)


class Groups:
    """All consumer groups. Its methods that change something are for `ClusterState`, which keeps the
    order."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        # Follows from the groups: which want a stream, in the order in which they began to.
        self._wanting: dict[str, dict[str, None]] = {}
        self._coordinated: Counter[str] = Counter()
        self._subscriptions = 0
        self._assigned = 0

    @property
    def by_id(self) -> Mapping[str, Group]:
        """All groups by id, in order of creation; a live view."""
        return MappingProxyType(self._groups)

    @property
    def coordinated(self) -> Mapping[str, int]:
        """How many groups each broker coordinates; a live view."""
        return MappingProxyType(self._coordinated)

    def check(self, operation: GroupOperation, streams: Mapping[str, Stream]) -> None:
        """Raise the MetadataError with which an operation would be refused now."""
        group = self._groups.get(operation.group_id)
        if isinstance(operation, JoinGroup):
            self._check_join(operation, group, streams)
            return
        if group is None:
            raise no_such_group(operation.group_id)
        if isinstance(operation, LeaveGroup):
            member = group.members.get(operation.consumer_id)
            if member is None or member.joined != operation.joined:
                raise not_a_member(group, operation.consumer_id)
        elif operation.epoch != group.epoch:
            raise refused(
                f"group {shown(group.group_id)} has changed: its epoch is {group.epoch}, "
                f"not {operation.epoch}"
            )
        elif not operation.coordinator or operation.coordinator == group.coordinator:
            raise refused(
                f"group {shown(group.group_id)} needs another coordinator than {group.coordinator!r}"
            )

    def apply(self, index: int, operation: GroupOperation, streams: Mapping[str, Stream]) -> Group:
        """Apply an operation that `check` has let pass; returns the group as it is then."""
        group = self._groups.get(operation.group_id)
        if group is None:
            assert isinstance(operation, JoinGroup), operation
            begun = Group(operation.group_id, operation.coordinator, 0, {})
            return self._put(_balanced(_joined(begun, operation, index), streams, Budget(BALANCING)))
        if isinstance(operation, JoinGroup):
            changed = _joined(group, operation, index)
        elif isinstance(operation, LeaveGroup):
            left = {name: member for name, member in group.members.items() if name != operation.consumer_id}
            changed = replace(group, members=left)
        else:
            return self._put(replace(group, coordinator=operation.coordinator, epoch=index))
        return self._put(_balanced(replace(changed, epoch=index), streams, Budget(BALANCING)))

    def check_stream(self, name: str, partitions: int) -> None:
        """Refuse a stream whose partitions could not be assigned to those who wait for one of that name."""
        groups = len(self._wanting.get(name, ()))
        if groups and self._assigned + groups * partitions > MAX_ASSIGNED:
            raise _exhausted(
                f"{groups} consumer groups wait for a stream named {name!r}, and {partitions} partitions for "
                f"each are more than the {MAX_ASSIGNED} that may be assigned in all; choose fewer, or "
                "another name"
            )

    def stream_changed(self, index: int, name: str, streams: Mapping[str, Stream]) -> None:
        """A stream was created, deleted, or has another number of partitions."""
        budget = Budget(BALANCING)
        for group_id in list(self._wanting.get(name, ())):
            group = replace(self._groups[group_id], epoch=index)
            self._put(_balanced(group, streams, budget))

    def encode(self) -> list[internal_pb2.GroupState]:
        """The stored form of all groups."""
        return [_encode(group) for group in self._groups.values()]

    @classmethod
    def decode(cls, stored: Collection[internal_pb2.GroupState]) -> Groups:
        """What `encode` stored. Raises OperationError when it is damaged."""
        groups = cls()
        for message in stored:
            if message.group_id in groups._groups:
                raise OperationError(f"group {message.group_id!r} is there twice")
            groups._put(_decode(message))
        return groups

    def _check_join(self, operation: JoinGroup, group: Group | None, streams: Mapping[str, Stream]) -> None:
        if check_join(operation.group_id, operation.consumer_id, operation.streams) != operation.streams:
            raise invalid("the streams of a consumer are to be in order, each once")
        if group is not None and operation.consumer_id in group.members:
            raise refused(
                f"consumer {shown(operation.consumer_id)} is a member of group "
                f"{shown(operation.group_id)} already; leave first, or choose another consumerId"
            )
        if group is None and not operation.coordinator:
            raise invalid(f"group {shown(operation.group_id)} needs a coordinator")
        for name in operation.streams:
            if name not in streams:
                raise refused(f"there is no stream {shown(name)} to consume; create it first")
        if group is None and len(self._groups) >= MAX_GROUPS:
            raise _exhausted(f"there are {MAX_GROUPS} consumer groups already; no more can begin")
        if group is not None and len(group.members) >= MAX_MEMBERS:
            raise _exhausted(
                f"group {shown(group.group_id)} has {MAX_MEMBERS} members already; no more can join"
            )
        if self._subscriptions + len(operation.streams) > MAX_SUBSCRIPTIONS:
            raise _exhausted(
                f"the consumers of all groups want {MAX_SUBSCRIPTIONS} streams already, counted for each; "
                "let some leave"
            )
        new = sum(
            len(streams[name].partitions)
            for name in operation.streams
            if operation.group_id not in self._wanting.get(name, ())
        )
        if self._assigned + new > MAX_ASSIGNED:
            raise _exhausted(
                f"{self._assigned} partitions are assigned in all groups already, {new} more would exceed "
                f"the limit of {MAX_ASSIGNED}; let some consumers leave"
            )

    def _put(self, group: Group) -> Group:
        """Replace a group by a newer version of it; one without members ends."""
        old = self._groups.get(group.group_id)
        if old is not None:
            self._coordinated[old.coordinator] -= 1
            self._count(old, -1)
            wanted_before = _wanted(old)
        else:
            wanted_before = {}
        wanted = _wanted(group)
        for stream in wanted_before:
            if stream not in wanted:
                del self._wanting[stream][group.group_id]
                if not self._wanting[stream]:
                    del self._wanting[stream]
        for stream in wanted:
            self._wanting.setdefault(stream, {})[group.group_id] = None
        if group.members:
            self._groups[group.group_id] = group
            self._coordinated[group.coordinator] += 1
            self._count(group, 1)
        else:
            del self._groups[group.group_id]
        return group

    def _count(self, group: Group, sign: int) -> None:
        for member in group.members.values():
            self._subscriptions += sign * len(member.share)
            self._assigned += sign * sum(map(len, member.share.values()))


def _exhausted(text: str) -> MetadataError:
    return MetadataError(MetadataCode.RESOURCE_EXHAUSTED, text)


def _wanted(group: Group) -> dict[str, None]:
    """The streams that the members want, in a fixed order."""
    return dict.fromkeys(stream for member in group.members.values() for stream in member.share)


def _joined(group: Group, operation: JoinGroup, index: int) -> Group:
    member = Member(operation.consumer_id, index, dict.fromkeys(operation.streams, ()))
    return replace(group, members={**group.members, operation.consumer_id: member})


def _balanced(group: Group, streams: Mapping[str, Stream], budget: Budget) -> Group:
    """The group with the partitions of its streams shared out anew."""
    partitions = {name: len(streams[name].partitions) for name in _wanted(group) if name in streams}
    shares = assign({name: member.share for name, member in group.members.items()}, partitions, budget)
    members = {
        name: member if shares[name] is member.share else replace(member, share=shares[name])
        for name, member in group.members.items()
    }
    return replace(group, members=members)


def _encode(group: Group) -> internal_pb2.GroupState:
    places = {stream: place for place, stream in enumerate(_wanted(group))}
    return internal_pb2.GroupState(
        group_id=group.group_id,
        coordinator=group.coordinator,
        epoch=group.epoch,
        streams=places,
        members=[
            internal_pb2.GroupMember(
                consumer_id=member.consumer_id,
                joined=member.joined,
                subscriptions=[
                    internal_pb2.GroupSubscription(stream=places[stream], partitions=share)
                    for stream, share in member.share.items()
                ],
            )
            for member in group.members.values()
        ],
    )


def _decode(message: internal_pb2.GroupState) -> Group:
    members: dict[str, Member] = {}
    taken: set[tuple[int, int]] = set()
    for stored in message.members:
        share: dict[str, tuple[int, ...]] = {}
        for subscription in stored.subscriptions:
            if subscription.stream >= len(message.streams):
                raise OperationError(
                    f"group {message.group_id!r} wants stream {subscription.stream}, not listed"
                )
            partitions = tuple(subscription.partitions)
            owned = {(subscription.stream, partition) for partition in partitions}
            if len(owned) != len(partitions) or not taken.isdisjoint(owned):
                raise OperationError(f"group {message.group_id!r} has a partition assigned twice")
            taken |= owned
            share[message.streams[subscription.stream]] = partitions
        members[stored.consumer_id] = Member(stored.consumer_id, stored.joined, share)
    if len(members) != len(message.members) or not members:
        raise OperationError(f"group {message.group_id!r} has no members, or one of them twice")
    return Group(message.group_id, message.coordinator, message.epoch, members)
