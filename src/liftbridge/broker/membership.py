"""Who is a member of the consensus on metadata: the brokers that have registered, one step at a time.

The leader of the consensus looks after it. A broker registers first, in the metadata, and then its node gets
the log, and once it has it a vote, as long as there are not more votes than there are to be. A node whose
broker is another node now, since its disk was replaced, or that has gone for good, is removed.

Members change one at a time, and each change is agreed on before the next: `changes` is a function of what
is, so a new leader goes on where the last one stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import trio

from liftbridge.broker.consensus import Consensus, MembersError, NotLeadingError
from liftbridge.broker.journal import JournalError
from liftbridge.metadata.brokers import Broker, BrokerState
from liftbridge.metadata.state import ClusterState
from liftbridge.raft import Members, NodeId, Raft, Refusal

logger = logging.getLogger("liftbridge.cluster")

# How often the leader looks; nothing waits for a member to be added but itself.
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Add:
    """Let a node have the log."""

    node: NodeId


@dataclass(frozen=True)
class Promote:
    """Give a node a vote, as soon as it has the log."""

    node: NodeId


@dataclass(frozen=True)
class Demote:
    """Take a vote away, so that another node can have it."""

    node: NodeId


@dataclass(frozen=True)
class Remove:
    """Remove a node."""

    node: NodeId


Change: TypeAlias = Add | Promote | Demote | Remove


def changes(
    members: Members, brokers: Mapping[str, Broker], max_voters: int, own: NodeId
) -> Sequence[Change]:
    """What is to be changed, first things first; any one of them, as the next follow from what is then.

    Arguments: `max_voters` bounds the votes, 0 for no bound; `own` is the node that leads, which is left
    alone.
    """
    present = {
        broker.node_id: broker
        for broker in brokers.values()
        if broker.node_id and broker.state is not BrokerState.REMOVED
    }
    nodes = members.voters | members.learners
    found: list[Change] = [Remove(node) for node in sorted(nodes - present.keys() - {own})]
    found += [Add(node) for node in sorted(present.keys() - nodes)]
    waiting = [node for node in sorted(members.learners & present.keys()) if present[node].alive]
    if not max_voters or len(members.voters) < max_voters:
        found += [Promote(node) for node in waiting]
    elif waiting:
        voters = members.voters - {own}
        found += [Demote(node) for node in sorted(voters & present.keys()) if not present[node].alive]
    return found


class Membership:
    """Keeps the members what they are to be, while this broker leads.

    `max_voters` is the key `clustering.raft.max.quorum.size`.
    """

    def __init__(self, consensus: Consensus, state: ClusterState, max_voters: int) -> None:
        self._consensus = consensus
        self._state = state
        self._max_voters = max_voters

    async def run(self) -> None:
        """Look after the members until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            while await self._change_one():
                pass

    async def _change_one(self) -> bool:
        """Make one change, if there is one that can be made now; whether it was."""
        core = self._consensus.core
        if not self._consensus.leads:
            return False
        for change in changes(core.members, self._state.brokers, self._max_voters, core.node_id):
            try:
                await self._consensus.change_members(partial(_ask_core, change=change))
            except MembersError as error:
                # Most are over in a moment; this one is for an operator, as a change would end all agreement.
                if error.refusal is Refusal.TOO_FEW:
                    logger.warning("%s is not possible: %s", change, error)
                continue
            except (NotLeadingError, JournalError) as error:
                logger.info("%s was not agreed on: %s", change, error)
                return False
            logger.info("members of the consensus: %s", change)
            return True
        return False


def _ask_core(core: Raft, change: Change) -> int | Refusal:
    if isinstance(change, Add):
        return core.add_learner(change.node)
    if isinstance(change, Promote):
        return core.promote(change.node)
    if isinstance(change, Demote):
        return core.demote(change.node)
    return core.remove(change.node)
