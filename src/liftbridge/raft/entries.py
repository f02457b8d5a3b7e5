"""A node's log in memory: entries behind a base, and the members that follow from them.

The base is the entry before the first that is held, which a snapshot covers. What the members are is taken
from the newest `MEMBERS` entry of the log, committed or not, and is taken back with it when it is truncated.

Invariants: indices are consecutive, terms never go down, and nothing at or below `commit` is ever truncated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from liftbridge.raft.invariant import InvariantError
from liftbridge.raft.messages import Entry, EntryKind, Members, SnapshotMeta
from liftbridge.raft.storedmembers import decode_members


class Log:
    """The entries of one node.

    Attributes:
        base_index, base_term: of the entry before the first that is held; 0 when the log is whole.
        commit: index of the newest entry known to be committed.
        persisted: all entries up to this one are on the disk as they are here.
    """

    def __init__(self, base: SnapshotMeta | None, entries: Sequence[Entry]) -> None:
        self.base_index = 0 if base is None else base.index
        self.base_term = 0 if base is None else base.term
        self._entries: list[Entry] = []
        # Index of the entry, and members from there on; the first is what held at the base.
        self._members = [(self.base_index, Members() if base is None else base.members)]
        self.commit = self.persisted = self.base_index
        self.append(entries)
        self.persisted = self.last_index

    @property
    def last_index(self) -> int:
        """Index of the newest entry."""
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        """Term of the newest entry."""
        return self._entries[-1].term if self._entries else self.base_term

    @property
    def members(self) -> Members:
        """Who the members are, by the newest entry that says so."""
        return self._members[-1][1]

    @property
    def members_index(self) -> int:
        """Index of that entry, or of the base."""
        return self._members[-1][0]

    @property
    def members_before(self) -> Members:
        """Who they were before the newest change, as long as that is not known to be committed."""
        settled = self.members_index <= self.commit or len(self._members) == 1
        return self._members[-1 if settled else -2][1]

    def members_at(self, index: int) -> Members:
        """Who the members were after an entry."""
        return next(members for at, members in reversed(self._members) if at <= index)

    def term_at(self, index: int) -> int | None:
        """Term of an entry; None when it is not there, or before the base."""
        if index == self.base_index:
            return self.base_term
        if not self.base_index < index <= self.last_index:
            return None
        return self._entries[index - self.base_index - 1].term

    def first_of_term_at(self, index: int) -> int:
        """The first index that is held of the term of the entry at `index`."""
        term = self.term_at(index)
        assert term is not None
        if index == self.base_index:
            return index
        at = bisect_left(self._entries, term, key=lambda entry: entry.term)
        return self.base_index + 1 + at

    def hint_at(self, index: int) -> tuple[int, int]:
        """Of the entry at `index`, or of the newest before it: the first index of its term, and the term."""
        index = min(index, self.last_index)
        term = self.term_at(index)
        return (0, 0) if term is None else (self.first_of_term_at(index), term)

    def last_at_most(self, term: int, index: int) -> int:
        """The greatest index not above `index` whose entry is of no later term, or the base."""
        index = min(index, self.last_index)
        while index > self.base_index:
            found = self._entries[index - self.base_index - 1].term
            if found <= term:
                return index
            index = self.first_of_term_at(index) - 1
        return self.base_index

    def after(self, index: int, count: int | None = None) -> Sequence[Entry]:
        """The entries behind an index, at most `count`."""
        assert index >= self.base_index, (index, self.base_index)
        start = index - self.base_index
        return self._entries[start : None if count is None else start + count]

    def batch_after(self, index: int, count: int, size: int) -> tuple[Entry, ...]:
        """Entries behind an index for a message: at most `count` and `size` bytes, but at least one."""
        taken: list[Entry] = []
        start = index - self.base_index
        for entry in self._entries[start : start + count]:
            size -= len(entry.data)
            if taken and size < 0:
                break
            taken.append(entry)
        return tuple(taken)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries at the end.

        Raises InvariantError for one that cannot follow, MembersError for members that cannot be decoded.
        """
        for entry in entries:
            if entry.index != self.last_index + 1 or entry.term < self.last_term:
                end = f"{self.last_index} of term {self.last_term}"
                raise InvariantError(f"entry {entry.index} of term {entry.term} cannot follow {end}")
            if entry.kind is EntryKind.MEMBERS:
                self._members.append((entry.index, decode_members(entry.data)))
            self._entries.append(entry)

    def truncate(self, index: int) -> None:
        """Remove the entry at `index` and all behind it. Raises InvariantError for one that is committed."""
        if index <= self.commit:
            raise InvariantError(f"entry {index} is committed, up to {self.commit}, and was to be removed")
        del self._entries[index - self.base_index - 1 :]
        while self._members[-1][0] >= index and len(self._members) > 1:
            self._members.pop()
        self.persisted = min(self.persisted, index - 1)

    def forget(self, index: int) -> None:
        """Make the entry at `index` the base; a snapshot covers it."""
        if index <= self.base_index:
            return
        assert index <= self.last_index
        term = self.term_at(index)
        assert term is not None
        members = self.members_at(index)
        del self._entries[: index - self.base_index]
        self.base_index, self.base_term = index, term
        self._members = [(index, members), *(known for known in self._members if known[0] > index)]

    def restore(self, meta: SnapshotMeta) -> None:
        """Begin anew behind a snapshot of the leader, with what follows the same entry if that is here.

        Raises InvariantError for a snapshot that is not newer than what is committed.
        """
        if meta.index <= self.commit:
            raise InvariantError(
                f"a snapshot of entry {meta.index} is older than what is committed, {self.commit}"
            )
        if self.term_at(meta.index) == meta.term:
            self.forget(meta.index)
            self._members[0] = (meta.index, meta.members)
        else:
            self.base_index, self.base_term = meta.index, meta.term
            self._entries = []
            self._members = [(meta.index, meta.members)]
        self.commit = meta.index
        # The files have it only when the snapshot is on the disk.
        self.persisted = min(self.persisted, self.last_index)
