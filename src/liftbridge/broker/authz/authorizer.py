"""Between the gRPC server and its handlers: every call is admitted here, before its handler sees it.

The identity of a client is the common name of its verified certificate, as in the original. A call is checked
first of all, before anything else about it, so a refusal tells nothing about what exists and has no effect.

A new policy counts at once and for everything: for calls that begin, for the next message of a `PublishAsync`
call that is open, and for subscriptions that run, which end with PERMISSION_DENIED when it takes their right
away. A policy that cannot be read changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from google.protobuf.message import Message

from liftbridge.broker.authz.actions import PUBLISH, ROWS, SERVICE, Check
from liftbridge.broker.authz.audit import Audit
from liftbridge.broker.authz.errors import AuthzFileError
from liftbridge.broker.authz.policy import Policy, load_policy
from liftbridge.metadata.validation import shown
from liftbridge.rpc import CallContext, Status, StatusCode, rpc_error

logger = logging.getLogger("liftbridge.authz")

End = Callable[[Status], None]


def identity_of(context: CallContext) -> str:
    """Return the common name of a caller's verified certificate, empty when it has none, or several."""
    subject = (context.peer_certificate or {}).get("subject", ())
    names = [value for part in subject for field, value in part if field == "commonName"]
    return str(names[0]) if len(names) == 1 else ""


class Authorizer:
    """Decides about calls.

    Args:
        model: the model file.
        policy: the policy file.
        audit: where decisions are written.
        groups: whether the RPCs of consumer groups are checked.

    Raises:
        AuthzFileError: a file cannot be used.
    """

    def __init__(self, model: Path, policy: Path, *, audit: Audit, groups: bool) -> None:
        self._files = (model, policy)
        self.audit = audit
        self._groups = groups
        self.changed: Callable[[], None] = lambda: None
        """Called when another policy has come into force."""
        self._running: set[_Running] = set()
        self._policy: Policy = load_policy(model, policy)

    async def reload(self) -> None:
        """Read the files again; what is wrong with them is logged, and the old policy stays in force."""
        model, policy = self._files
        try:
            loaded = await trio.to_thread.run_sync(load_policy, model, policy)
        except AuthzFileError as error:
            logger.error("the policy stays as it was: %s", error)  # noqa: TRY400  # not a defect of ours
            return
        self._policy = loaded
        self.changed()
        ended = 0
        for running in list(self._running):
            if not loaded.allows(running.client, running.resource, running.action):
                self._running.discard(running)
                self.audit.denied(running.client, running.action, running.resource, running.peer)
                running.end(_refused(running.action, running.resource))
                ended += 1
        logger.info(
            "the policy %s is in force: %d rules; %d subscriptions ended", policy, loaded.rules, ended
        )

    def admit(self, context: CallContext, message: Message | None, end: End) -> Callable[[], None] | None:
        """Let a call pass, or refuse it; a `Guard` of the gRPC server.

        Args:
            context: the call.
            message: its request, None when requests are a stream.
            end: ends the call with a status, later.

        Returns:
            what to call when the call is over, or None.

        Raises:
            RpcFailedError: PERMISSION_DENIED.
        """
        if not context.method.startswith(SERVICE):
            return None  # health, which tells nothing and must work for probes
        method = context.method[len(SERVICE) :]
        row = ROWS.get(method)
        client = identity_of(context)
        if row is None:
            self._deny(client, Check(method), "", context.peer)
            raise AssertionError("not reached")
        if row.per_message or (row.groups and not self._groups):
            return None
        for check in row.checks:
            resource = check.resource_of(message)
            if not client or not self._policy.allows(client, resource, check.action):
                self._deny(client, check, resource, context.peer)
            self.audit.allowed(client, check.action, resource, context.peer)
        if method != "Subscribe":
            return None
        running = _Running(
            client, row.checks[0].action, row.checks[0].resource_of(message), context.peer, end
        )
        self._running.add(running)
        return lambda: self._running.discard(running)

    def _deny(self, client: str, check: Check, resource: str, peer: str) -> None:
        self.audit.denied(client, check.action, resource, peer)
        status = _refused(check.action, resource)
        raise rpc_error(status.status_code, status.status_message)

    def permit(self, context: CallContext) -> Callable[[bytes], bytes | None]:
        """Return what a `PublishCall` asks for each stream it publishes to."""
        client, peer = identity_of(context), context.peer

        def ask(name: bytes) -> bytes | None:
            resource = name.decode()
            if client and self._policy.allows(client, resource, PUBLISH):
                self.audit.allowed(client, PUBLISH, resource, peer)
                return None
            self.audit.denied(client, PUBLISH, resource, peer)
            text: str = _refused(PUBLISH, resource).status_message
            return text.encode()

        return ask

    def note_denied(self, context: CallContext, count: int) -> None:
        """A `PublishAsync` call is over, in which so many messages were denied."""
        self.audit.denied_messages(identity_of(context), count, context.peer)


class _Running:
    """A call that goes on for long, and what a new policy must still allow."""

    __slots__ = ("action", "client", "end", "peer", "resource")

    def __init__(self, client: str, action: str, resource: str, peer: str, end: End) -> None:
        self.client = client
        self.action = action
        self.resource = resource
        self.peer = peer
        self.end = end


def _refused(action: str, resource: str) -> Any:
    # Clients and tests compare the beginning, up to "call".
    text = f"The client is not authorized to call {action} on resource {shown(resource)}"
    return Status(StatusCode.PERMISSION_DENIED, text)
