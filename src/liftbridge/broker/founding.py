"""How a server with an empty data directory comes to belong to a cluster: it begins one, or joins one.

As with the original, `clustering.raft.bootstrap.seed` says that this server begins the cluster,
`clustering.raft.bootstrap.peers` names those who begin it together, and a server with neither joins. What
differs is that nobody begins a second one where there is one: a server looks around first, by `discovery.py`,
and joins what it finds, whatever it was told. So a server whose disk was lost comes back with the command
that it was started with; as its node of the consensus is another one, votes that it has forgotten are not
given twice.

Of those who begin a cluster together one does it, the first by id, once it has heard of all of them and that
none belongs to a cluster. The others join it like anybody else. A server waits for ever: who is not
ready yet says so, and others may come later.

Invariants: the journal is begun before the directory is marked as belonging to the cluster, so that a
directory which is marked but has no journal is known to have lost it, and is not taken for a new one. A
journal is begun for a cluster that a server which was connected to has said it belongs to, never on hearsay.
"""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import trio

from liftbridge.broker.discovery import Announcement, Discovery
from liftbridge.broker.identity import DataDirectory, DataDirectoryError
from liftbridge.broker.journal import Journal, JournalError
from liftbridge.raft import Entry, EntryKind, Members, encode_members

logger = logging.getLogger("liftbridge.cluster")

METADATA_DIRECTORY = "metadata"
# A seed looks around for so long before it begins a cluster, if NATS does not say that nobody is there.
SEED_SECONDS = 1.0
ASK_SECONDS = 0.5
REMIND_SECONDS = 10.0


class FoundingError(Exception):
    """The server can belong to no cluster as things are; the text says why and what to do."""


@dataclass(frozen=True)
class Begin:
    """Begin a cluster."""


@dataclass(frozen=True)
class Join:
    """Join a cluster that those servers say they belong to."""

    cluster_id: uuid.UUID
    servers: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """It cannot be told yet; `reason` says what is missing."""

    reason: str


Decision: TypeAlias = Begin | Join | Wait


def decide(
    own_id: str, *, seed: bool, peers: Collection[str], heard: Mapping[str, Announcement], looked: bool
) -> Decision:
    """What a server without a cluster does, from what it has heard.

    Arguments: `seed` and `peers` as configured; `looked` once it has looked around for long enough to have
    heard of those who are there. Raises FoundingError.
    """
    clusters: dict[uuid.UUID, list[str]] = {}
    for server_id, announcement in heard.items():
        if announcement.cluster_id is not None:
            clusters.setdefault(announcement.cluster_id, []).append(server_id)
    if len(clusters) > 1:
        told = "; ".join(
            f"{cluster_id} with {', '.join(sorted(servers))}" for cluster_id, servers in clusters.items()
        )
        raise FoundingError(
            f"there are several clusters in this namespace: {told}. Stop the servers of all but one, or give "
            "each cluster a clustering.namespace of its own"
        )
    for cluster_id, servers in clusters.items():
        return Join(cluster_id, tuple(sorted(servers)))
    if seed:
        return Begin() if looked else Wait("looking for servers of a cluster that exists already")
    if not peers:
        return Wait(
            "no server of a cluster is heard of; start the first one of a new cluster with "
            "--raft-bootstrap-seed"
        )
    missing = sorted(set(peers) - {own_id} - heard.keys())
    if missing:
        return Wait(f"not heard of {', '.join(missing)} yet, of clustering.raft.bootstrap.peers")
    first = min({*peers, own_id})
    return Begin() if first == own_id else Wait(f"{first} is to begin the cluster")


async def find_cluster(
    data: DataDirectory,
    discovery: Discovery,
    cluster_of: Callable[[str], Awaitable[uuid.UUID | None]],
    *,
    seed: bool,
    peers: Collection[str],
) -> Decision:
    """Wait until it is clear to which cluster a server without one is to belong. Returns Begin or Join.

    `cluster_of` connects to a server and asks it for its cluster, None when it cannot be asked. Raises
    FoundingError.
    """
    began = reminded = trio.current_time()
    while True:
        await discovery.ask()
        with trio.move_on_after(ASK_SECONDS):
            await discovery.wait_news()
        now = trio.current_time()
        looked = discovery.nobody or now >= began + SEED_SECONDS
        decision = decide(data.server_id, seed=seed, peers=peers, heard=discovery.heard, looked=looked)
        if isinstance(decision, Begin):
            return decision
        if isinstance(decision, Join):
            for server_id in decision.servers:
                if await cluster_of(server_id) == decision.cluster_id:
                    return decision
            decision = Wait(f"{', '.join(decision.servers)} cannot be asked for their cluster")
        if now >= reminded + REMIND_SECONDS:
            reminded = now
            logger.info("waiting for a cluster: %s", decision.reason)


def found(data: DataDirectory, decision: Decision) -> None:
    """Make the journal of a server that begins or joins a cluster. For a worker thread.

    Raises FoundingError.
    """
    if data.cluster_id is not None:
        raise FoundingError(
            f"{data.path / METADATA_DIRECTORY} holds no metadata, but this server belongs to cluster "
            f"{data.cluster_id}; restore the directory from a copy, or remove all of it to join the cluster "
            "anew"
        )
    assert not isinstance(decision, Wait), decision
    node_id = secrets.randbelow(2**64 - 1) + 1
    entries = []
    if isinstance(decision, Begin):
        cluster_id = uuid.uuid4()
        logger.info("beginning cluster %s in %s", cluster_id, data.path)
        members = encode_members(Members(voters=frozenset({node_id})))
        entries.append(Entry(1, 1, EntryKind.MEMBERS, members))
    else:
        cluster_id = decision.cluster_id
        logger.info("joining cluster %s of %s", cluster_id, ", ".join(decision.servers))
    try:
        Journal.create(data.path / METADATA_DIRECTORY, cluster_id, node_id, entries=entries).close()
        data.join_cluster(cluster_id)
    except (JournalError, DataDirectoryError) as error:
        raise FoundingError(str(error)) from error
