"""Journals for tests: their entries are `operation 1`, `operation 2` and so on, their state all of them."""

from __future__ import annotations

import uuid
from pathlib import Path

from liftbridge.broker.journal import Journal, read_entries
from liftbridge.raft import Entry, EntryKind, Members, Snapshot, SnapshotMeta

CLUSTER = uuid.UUID(int=7)
NODE = 77
MEMBERS = Members(voters=frozenset({NODE}), learners=frozenset())


def entry(index: int, data: bytes | None = None, term: int = 1) -> Entry:
    """A command."""
    return Entry(index, term, EntryKind.COMMAND, b"operation %d" % index if data is None else data)


def append(journal: Journal, index: int, payload: bytes, term: int = 1) -> None:
    """Store one command."""
    journal.save(None, [entry(index, payload, term)])


def snapshot_of(index: int, state: bytes, term: int = 1) -> Snapshot:
    """The state after an entry."""
    return Snapshot(SnapshotMeta(index, term, MEMBERS), state)


def snapshot(journal: Journal, state: bytes) -> None:
    """Take one after the newest entry."""
    journal.write_snapshot(snapshot_of(journal.last_index, state))


def read(directory: Path, after: int, last: int) -> list[tuple[int, bytes]]:
    """Index and data of entries, by `read_entries`."""
    return [(found.index, found.data) for found in read_entries(directory, after, last)]


def state_of(directory: Path) -> tuple[int, list[bytes]]:
    """What the journal says: the newest index and all payloads, snapshots being the payloads before them."""
    journal, recovered = Journal.open(directory)
    journal.close()
    payloads = []
    if recovered.snapshot is not None:
        payloads = recovered.snapshot.state.split(b"|")
        assert len(payloads) == recovered.snapshot.meta.index
        assert recovered.snapshot.meta.members == MEMBERS
    for found in recovered.entries:
        payloads.append(found.data)
        assert found.index == len(payloads)
    assert journal.last_index == len(payloads)
    assert (journal.cluster_id, journal.node_id) == (CLUSTER, NODE)
    return journal.last_index, payloads


def filled(directory: Path, payloads: list[bytes], *, snapshot_after: tuple[int, ...] = ()) -> Journal:
    """A journal of these payloads, with snapshots after the given indices."""
    journal = Journal.create(directory, CLUSTER, NODE)
    for index, payload in enumerate(payloads, 1):
        append(journal, index, payload)
        if index in snapshot_after:
            snapshot(journal, b"|".join(payloads[:index]))
    return journal


def numbered(count: int) -> list[bytes]:
    """The payloads of the first entries."""
    return [b"operation %d" % index for index in range(1, count + 1)]
