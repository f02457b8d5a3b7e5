"""Which action on which resource each RPC is: the one table that decides what is checked.

The names are the original's, so its policies say the same here. Every method of proto.API has a row, and a
method without one is denied to everybody while authorization is on: a new RPC that somebody forgets here is
safe, not open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from liftbridge.metadata.validation import CURSORS_STREAM

SERVICE = "/proto.API/"


@dataclass(frozen=True)
class Check:
    """One action that a call needs, on the resource in `field` of its request, or on the fixed `resource`."""

    action: str
    field: str = ""
    resource: str = ""

    def resource_of(self, message: Any) -> str:
        """Return the resource that a request is about."""
        return str(getattr(message, self.field)) if self.field else self.resource


@dataclass(frozen=True)
class Row:
    """What a method needs: all of `checks`.

    `per_message`: the call may be opened by everybody and each of its messages is checked. `groups`: checked
    only when `tls.client.authz.groups.enabled` asks for it, as the original leaves consumer groups to
    everybody.
    """

    checks: tuple[Check, ...]
    per_message: bool = False
    groups: bool = False


PUBLISH = "Publish"

ROWS = {
    "CreateStream": Row((Check("CreateStream", field="name"),)),
    "DeleteStream": Row((Check("DeleteStream", field="name"),)),
    "PauseStream": Row((Check("PauseStream", field="name"),)),
    "SetStreamReadonly": Row((Check("SetStreamReadonly", field="name"),)),
    "Subscribe": Row((Check("Subscribe", field="stream"),)),
    "FetchMetadata": Row((Check("FetchMetadata", resource="*"),)),
    "FetchPartitionMetadata": Row((Check("FetchPartitionMetadata", field="stream"),)),
    "Publish": Row((Check(PUBLISH, field="stream"),)),
    "PublishAsync": Row((Check(PUBLISH, field="stream"),), per_message=True),
    "PublishToSubject": Row((Check("PublishToSubject", field="subject"),)),
    "SetCursor": Row((Check("SetCursor", field="stream"), Check(PUBLISH, resource=CURSORS_STREAM))),
    "FetchCursor": Row((Check("FetchCursor", field="stream"),)),
    "JoinConsumerGroup": Row((Check("JoinConsumerGroup", field="groupId"),), groups=True),
    "LeaveConsumerGroup": Row((Check("LeaveConsumerGroup", field="groupId"),), groups=True),
    "FetchConsumerGroupAssignments": Row(
        (Check("FetchConsumerGroupAssignments", field="groupId"),), groups=True
    ),
    "ReportConsumerGroupCoordinator": Row(
        (Check("ReportConsumerGroupCoordinator", field="groupId"),), groups=True
    ),
}
"""By the method's name. Health checks are another service and are answered to everybody."""

ACTIONS = frozenset(check.action for row in ROWS.values() for check in row.checks)
