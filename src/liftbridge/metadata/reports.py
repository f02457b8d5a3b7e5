"""Reports of members that their coordinator does not answer, and when they are enough to choose another one.

Each member that could not reach its coordinator for a while says so. When more than half of the members have,
another coordinator is chosen. The leader of the metadata counts, in memory: reports are evidence of the
moment, and after a change of leadership they come again.

Invariants:
- A member counts once, and only as long as it is a member.
- Reports about one coordinator never count against the next: whoever has it replaced forgets them.
- They are dropped when none has come for the time-out, so that occasional ones do not add up.
- There are never more than there are members: groups that have ended are forgotten by whoever ends them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from liftbridge.metadata.groups import Group


@dataclass
class _Collected:
    """Who reported the coordinator of one group, and when the last one did."""

    coordinator: str
    last: float
    reporters: set[str] = field(default_factory=set)


class CoordinatorReports:
    """Counts reports. `timeout` is in the unit of the times that are passed in."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._collected: dict[str, _Collected] = {}

    def add(self, group: Group, consumer_id: str, now: float) -> bool:
        """A member reports the coordinator of its group; returns whether they are more than half now.

        Arguments:
            group: the group as it is; its coordinator is who is reported.
            consumer_id: the member.
            now: the time.
        """
        collected = self._collected.get(group.group_id)
        if (
            collected is None
            or collected.coordinator != group.coordinator
            or now - collected.last > self._timeout
        ):
            collected = self._collected[group.group_id] = _Collected(group.coordinator, now)
        collected.last = now
        collected.reporters.add(consumer_id)
        collected.reporters.intersection_update(group.members)
        return 2 * len(collected.reporters) > len(group.members)

    def forget(self, group_id: str) -> None:
        """The group has got another coordinator, or has ended."""
        self._collected.pop(group_id, None)

    def clear(self) -> None:
        """Forget everything: the leadership of the metadata has changed."""
        self._collected.clear()
