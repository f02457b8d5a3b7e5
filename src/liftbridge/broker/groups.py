"""Consumer groups on this server: joining and leaving, serving assignments, and noticing members that are
gone.

What a group is has been agreed on by the cluster (`metadata/groups.py`). This module is the rest: the
coordinator, which is asked for assignments, takes each question for a sign of life, and has a member removed
that gives none for `groups.consumer.timeout`; and the leader of the metadata, which counts reports that a
coordinator is gone.

Signs of life are kept in memory, by this server's own clock, and begin anew when it starts: nobody is removed
for the silence of a server. One task looks after all members. As the time-out is the same for all, they are
in order of their last sign of life, and the task sleeps until the first of them is due; a sign of life costs
a move to the end.

Invariants:
- Every member of a group that this server coordinates is watched; nobody else is.
- A member is removed only if it is still silent when that operation has its turn, and only the membership
  meant.
- Joins and leaves come one at a time to the controller: between two of them others have their turn.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import trio

from liftbridge.broker.config import GroupsConfig
from liftbridge.broker.controller import Controller
from liftbridge.broker.fencing import Fences
from liftbridge.broker.forwarding import answer, answer_elsewhere, answer_refused
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.groups import (
    Group,
    Member,
    check_ids,
    check_join,
    choose_coordinator,
    no_such_group,
    not_a_member,
    refused,
)
from liftbridge.metadata.operations import ChangeGroupCoordinator, JoinGroup, LeaveGroup, Operation
from liftbridge.metadata.reports import CoordinatorReports
from liftbridge.metadata.state import ClusterState, Outcome
from liftbridge.metadata.validation import shown
from liftbridge.proto import internal_pb2

REPORT = "group.report"
# Joins, leaves and changes of coordinators that may wait for their turn.
MAX_WAITING = 2_048
# Part of the time-out by which the watch may come late before it distrusts the clock: the process stood
# still, and signs of life may be waiting in its sockets.
LATE = 0.25

logger = logging.getLogger("liftbridge.groups")

Who = tuple[str, str]  # group id, consumer id


class Liveness:
    """When members were heard of, the most silent one first. Times are in seconds."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._heard: OrderedDict[Who, float] = OrderedDict()

    def __contains__(self, who: Who) -> bool:
        return who in self._heard

    def heard(self, who: Who, now: float) -> None:
        """A member gave a sign of life, or is watched from now on."""
        self._heard[who] = now
        self._heard.move_to_end(who)

    def forget(self, who: Who) -> None:
        """A member is not watched any more."""
        self._heard.pop(who, None)

    def all_heard(self, now: float) -> None:
        """Give everybody a full time-out again."""
        self._heard = OrderedDict.fromkeys(self._heard, now)

    def is_silent(self, who: Who, now: float) -> bool:
        """Whether a member is watched and its time is up."""
        return who in self._heard and now >= self._heard[who] + self.timeout

    def first(self) -> tuple[Who, float] | None:
        """Who is due first, and when; None when nobody is watched."""
        for who, heard in self._heard.items():
            return who, heard + self.timeout
        return None


class ConsumerGroups:
    """The consumer groups of the cluster, as far as this server has to do with them.

    Attributes:
        consumer_timeout, coordinator_timeout: of the configuration, in ns.
        fences: keep a partition to one subscription of a group.
    """

    def __init__(self, controller: Controller, config: GroupsConfig) -> None:
        self.consumer_timeout = config.consumer_timeout
        self.coordinator_timeout = config.coordinator_timeout
        self.fences = Fences(controller.state)
        self._controller = controller
        self._liveness = Liveness(config.consumer_timeout / 1e9)
        self._reports = CoordinatorReports(config.coordinator_timeout / 1e9)
        self._gate = trio.Lock()
        self._watched = trio.Event()
        self._removal_fails = False

    # -- what clients ask ------------------------------------------------------------------------------

    async def join(self, group_id: str, consumer_id: str, streams: Collection[str]) -> Group:
        """Make a consumer a member of a group, which begins if it does not exist; returns the group.

        Raises MetadataError: INVALID_ARGUMENT, FAILED_PRECONDITION, RESOURCE_EXHAUSTED, INTERNAL.
        """
        wanted = check_join(group_id, consumer_id, streams)

        def make() -> JoinGroup:
            coordinator = choose_coordinator(self._brokers, self._controller.state.coordinated)
            return JoinGroup(group_id, consumer_id, wanted, coordinator)

        return await self._decide(make)

    async def leave(self, group_id: str, consumer_id: str) -> None:
        """Take a consumer out of its group.

        Raises MetadataError: INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, RESOURCE_EXHAUSTED, INTERNAL.
        """
        check_ids(groupId=group_id, consumerId=consumer_id)

        def make() -> LeaveGroup:
            member = _member(self._group(group_id), consumer_id)
            return LeaveGroup(group_id, consumer_id, member.joined)

        await self._decide(make)

    def assignments(self, group_id: str, consumer_id: str, epoch: int) -> Member:
        """What a consumer is to consume, asked of the coordinator; a success is a sign of life.

        Raises MetadataError: INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION.
        """
        check_ids(groupId=group_id, consumerId=consumer_id)
        group = self._group(group_id)
        if group.coordinator != self._controller.broker:
            raise refused(
                f"this server is not the coordinator of group {shown(group_id)}; ask {group.coordinator!r}"
            )
        _check_epoch(group, epoch)
        member = _member(group, consumer_id)
        if (group_id, consumer_id) not in self._liveness:  # just being removed
            raise refused(
                f"consumer {shown(consumer_id)} was silent for too long and leaves group {shown(group_id)}; "
                "join it again"
            )
        self._liveness.heard((group_id, consumer_id), trio.current_time())
        return member

    async def report(self, group_id: str, consumer_id: str, coordinator: str, epoch: int) -> None:
        """Have a report counted that the coordinator of a group does not answer. Another one is chosen when
        more than half of the members agree.

        Raises MetadataError: INVALID_ARGUMENT, FAILED_PRECONDITION, RESOURCE_EXHAUSTED, INTERNAL.
        """
        check_ids(groupId=group_id, consumerId=consumer_id, coordinator=coordinator)
        if self._controller.is_leader:
            await self._count_report(group_id, consumer_id, coordinator, epoch)
            return
        report = internal_pb2.CoordinatorReport(
            group_id=group_id, consumer_id=consumer_id, coordinator=coordinator, epoch=epoch
        )
        await self._controller.ask_leader(REPORT, report.SerializeToString())

    async def answer_report(self, payload: bytes) -> bytes:
        """Another broker was told that a coordinator does not answer. Returns the answer to it.

        Raises DecodeError for bytes that report nothing.
        """
        report = internal_pb2.CoordinatorReport.FromString(payload)
        if not self._controller.is_leader:
            return answer_elsewhere()
        try:
            await self._count_report(report.group_id, report.consumer_id, report.coordinator, report.epoch)
        except MetadataError as error:
            return answer_refused(error)
        return answer(self._controller.state.applied_index)

    async def _count_report(self, group_id: str, consumer_id: str, coordinator: str, epoch: int) -> None:
        def check() -> Group:
            group = self._controller.state.groups.get(group_id)
            if group is None:
                raise refused(no_such_group(group_id).text)
            if group.coordinator != coordinator:
                raise refused(
                    f"the coordinator of group {shown(group_id)} is {group.coordinator!r}, "
                    f"not {shown(coordinator)}"
                )
            _check_epoch(group, epoch)
            _member(group, consumer_id)
            return group

        def make() -> ChangeGroupCoordinator:
            group = check()
            others = [broker for broker in self._brokers if broker != group.coordinator]
            if not others:
                raise refused(
                    f"group {shown(group_id)} keeps its coordinator {group.coordinator!r}: the cluster has "
                    "no other server"
                )
            return ChangeGroupCoordinator(
                group_id, choose_coordinator(others, self._controller.state.coordinated), group.epoch
            )

        if self._reports.add(check(), consumer_id, trio.current_time()):
            logger.warning(
                "most members of group %s report that coordinator %s is gone", group_id, coordinator
            )
            await self._decide(make)

    # -- members that are gone -------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Remove members that give no sign of life, until cancelled; who is there has a full time-out."""
        for group in self._controller.state.groups.values():
            self._watch(group)
        self._controller.subscribe(self._on_operation)
        task_status.started()
        while True:
            first = self._liveness.first()
            if first is None:
                self._watched = trio.Event()
                await self._watched.wait()
                continue
            who, due = first
            if trio.current_time() < due:
                await trio.sleep_until(due)
                late = trio.current_time() - due
                if late > LATE * self._liveness.timeout:
                    logger.warning(
                        "this server stood still for %.1f s; all consumers have their time-out again", late
                    )
                    self._liveness.all_heard(trio.current_time())
            else:
                await self._remove(who)

    async def _remove(self, who: Who) -> None:
        """Have a silent member removed; when that fails it is tried again after another time-out."""
        group_id, consumer_id = who

        def make(_: ClusterState) -> LeaveGroup | None:
            if not self._liveness.is_silent(who, trio.current_time()):
                return None  # heard of meanwhile
            member = _member(self._group(group_id), consumer_id)
            self._liveness.forget(who)
            return LeaveGroup(group_id, consumer_id, member.joined, expired=True)

        try:
            await self._controller.change(make)
        except MetadataError as error:
            self._liveness.heard(who, trio.current_time())
            if not self._removal_fails:  # said once: it is the same for every member and every time-out
                logger.error("silent consumers cannot be removed: %s", error)  # noqa: TRY400
            self._removal_fails = True
        else:
            self._removal_fails = False
            logger.info(
                "consumer %s of group %s was silent for %.1f s and has been removed",
                consumer_id,
                group_id,
                self._liveness.timeout,
            )

    def _on_operation(self, index: int, operation: Operation, outcome: Outcome) -> None:
        """The controller: an operation was applied."""
        if not isinstance(outcome, Group):
            return
        if isinstance(operation, JoinGroup):
            if outcome.coordinator == self._controller.broker:
                self._hear((outcome.group_id, operation.consumer_id))
        elif isinstance(operation, LeaveGroup):
            self._liveness.forget((outcome.group_id, operation.consumer_id))
            if not outcome.members:
                self._reports.forget(outcome.group_id)
                self.fences.group_ended(outcome.group_id)
        elif isinstance(operation, ChangeGroupCoordinator):
            self._reports.forget(outcome.group_id)
            self._watch(outcome)

    def _watch(self, group: Group) -> None:
        """Watch over the members of a group from now on, or not any more."""
        for consumer_id in group.members:
            if group.coordinator == self._controller.broker:
                self._hear((group.group_id, consumer_id))
            else:
                self._liveness.forget((group.group_id, consumer_id))

    def _hear(self, who: Who) -> None:
        self._liveness.heard(who, trio.current_time())
        self._watched.set()

    # -- the rest --------------------------------------------------------------------------------------

    @property
    def _brokers(self) -> Sequence[str]:
        """Those that can coordinate."""
        return self._controller.active_brokers

    def _group(self, group_id: str) -> Group:
        group = self._controller.state.groups.get(group_id)
        if group is None:
            raise no_such_group(group_id)
        return group

    async def _decide(self, make: Callable[[], Operation]) -> Group:
        """Carry out an operation on a group, after those that came before."""
        # What is refused now does not wait for its turn.
        self._controller.state.check(make())
        async with self._turn():
            outcome = await self._controller.change(lambda _: make())
        assert isinstance(outcome, Group), outcome
        return outcome

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._gate.statistics().tasks_waiting >= MAX_WAITING:
            raise MetadataError(
                MetadataCode.RESOURCE_EXHAUSTED,
                f"{MAX_WAITING} consumers wait to join or leave their groups; try again in a moment",
            )
        async with self._gate:
            yield


def _member(group: Group, consumer_id: str) -> Member:
    member = group.members.get(consumer_id)
    if member is None:
        raise not_a_member(group, consumer_id)
    return member


def _check_epoch(group: Group, epoch: int) -> None:
    if epoch != group.epoch:
        raise refused(
            f"the epoch of group {shown(group.group_id)} is {group.epoch}, not {epoch}; "
            "go on with the current one"
        )
