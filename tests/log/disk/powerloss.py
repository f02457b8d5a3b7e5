"""What a loss of power leaves of files, computed from the journal that the shim writes.

Nothing is on the medium before a sync says so, and anything may be. For each file the model remembers what
was durable at the last sync and every write and change of size since. When the power goes, each page of
4 KiB that was touched may have any state it passed through, torn at sectors of 512 bytes; the file may have
any of the sizes that it had. For each directory it remembers the durable entries and every change since; a
rename within a directory is one change. How independent all of this is depends on the file system:

- ORDERED, as ext4 with ordered data and delayed allocation: changes of names reach the disk in the order in
  which they were made, over all directories; changes of a file's size in theirs, each with the data below
  the new size, but at any time later than the write. Bytes written over old ones are in doubt as everywhere.
- PREFIX: the names of each directory change in order; files and directories know nothing of each other.
- ANY: any subset of the changes of a directory.

A failed sync may have dropped what it could not write, and the kernel takes the pages for clean afterwards:
until the power goes, no later sync makes that file's doubtful bytes durable.

Invariant: with the same journal, cut and seed the same files come out.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path

PAGE = 4096
SECTOR = 512
_EVENT = struct.Struct("<IIQqII")

Tree = dict[str, "bytes | None"]  # content of each file by its path, None for a directory


class Kind(IntEnum):
    """Kinds of calls and events; `shim.c` has the same numbers."""

    OPEN = 0
    READ = 1
    CREATE = 2
    WRITE = 3
    RESIZE = 4
    ALLOCATE = 5
    RENAME = 6
    UNLINK = 7
    MKDIR = 8
    RMDIR = 9
    SYNC = 10
    SYNC_DIRECTORY = 11
    NOTE = 12


class Order(Enum):
    """How much order there is in what survives."""

    ORDERED = "ordered"
    PREFIX = "prefix"
    ANY = "any"


@dataclass(frozen=True)
class Event:
    """One entry of a journal: `position` of a write or the new length; `error` that a sync failed with."""

    kind: Kind
    inode: int
    position: int
    name: str
    data: bytes
    error: int


def read_journal(path: Path) -> list[Event]:
    """Return the events of a journal in their order."""
    content = path.read_bytes()
    events = []
    at = 0
    while at < len(content):
        length, kind, inode, position, name_length, error = _EVENT.unpack_from(content, at)
        at += _EVENT.size
        name = content[at : at + name_length].decode()
        events.append(
            Event(Kind(kind), inode, position, name, content[at + name_length : at + length], error)
        )
        at += length
    assert at == len(content), "the journal ends inside an event"
    return events


@dataclass(frozen=True)
class _Change:
    """A write (`data`) or a change of size (`data` is None) that no sync has covered."""

    position: int
    data: bytes | None

    def pages(self, size: int) -> Iterable[int]:
        """The pages whose content it changes, in a file that had `size` bytes before."""
        end = size if self.data is None else self.position + len(self.data)
        return range(self.position // PAGE, -(-end // PAGE))

    def apply(self, content: bytearray, start: int) -> None:
        """Change `content`, which lies at `start` in the file and has no end of its own."""
        if self.data is None:
            keep = max(0, self.position - start)
            content[keep:] = bytes(max(0, len(content) - keep))
            return
        first, last = max(start, self.position), min(start + len(content), self.position + len(self.data))
        if first < last:
            content[first - start : last - start] = self.data[first - self.position : last - self.position]


@dataclass(eq=False)
class _File:
    durable: bytes = b""
    pending: list[_Change] = field(default_factory=list)
    failed: bool = False  # a sync failed; nothing becomes durable any more

    def sizes(self) -> list[int]:
        """The size after each number of changes."""
        sizes = [len(self.durable)]
        for change in self.pending:
            grown = change.position + len(change.data or b"")
            sizes.append(change.position if change.data is None else max(sizes[-1], grown))
        return sizes

    def content(self) -> bytes:
        """What a reader sees."""
        sizes = self.sizes()
        content = bytearray(self.durable.ljust(max(sizes), b"\0"))
        for change in self.pending:
            change.apply(content, 0)
        return bytes(content[: sizes[-1]])

    def sync(self) -> None:
        if not self.failed:
            self.durable = self.content()
            self.pending.clear()

    def page(self, number: int, changes: list[_Change]) -> bytearray:
        content = bytearray(self.durable[number * PAGE : (number + 1) * PAGE].ljust(PAGE, b"\0"))
        for change in changes:
            change.apply(content, number * PAGE)
        return content

    def survive(self, chance: random.Random, certain: int | None) -> bytes:
        """What is left; `certain` changes are known to be there, None for no order at all."""
        sizes = self.sizes()
        size = chance.choice(_ends(sizes)) if certain is None else sizes[certain]
        touched: dict[int, list[int]] = {}
        for number, change in enumerate(self.pending):
            for page in change.pages(max(sizes)):
                touched.setdefault(page, []).append(number)
        content = bytearray(self.durable[:size].ljust(size, b"\0"))
        surely = certain or 0
        fate = chance.choice(_FATES)
        for page, numbers in touched.items():
            changes = [self.pending[number] for number in numbers]
            least = 0 if self.failed else sum(number < surely for number in numbers)
            start = page * PAGE
            survived = self._survived_page(page, changes, least, fate, chance)
            content[start : start + PAGE] = survived[: max(0, min(PAGE, size - start))]
        return bytes(content)

    def _survived_page(
        self, page: int, changes: list[_Change], least: int, fate: str, chance: random.Random
    ) -> bytearray:
        if fate == "old":
            return self.page(page, changes[:least])
        if fate == "new":
            return self.page(page, changes)
        if fate == "torn" and chance.random() < 0.5:
            torn = bytearray()
            for at in range(0, PAGE, SECTOR):
                torn += self.page(page, changes[: chance.randint(least, len(changes))])[at : at + SECTOR]
            return torn
        return self.page(
            page, changes[: chance.choice((least, len(changes), chance.randint(least, len(changes))))]
        )


_FATES = ("old", "new", "mixed", "mixed", "torn", "torn")


def _ends(sizes: list[int]) -> list[int]:
    """Sizes to choose from, the first and the last often: few crashes fall between."""
    return [sizes[0], sizes[-1], *sizes]


@dataclass(frozen=True)
class _Naming:
    """Entries of a directory that change at once; None for a name that goes."""

    order: int  # among those of all directories
    entries: tuple[tuple[str, _File | _Directory | None], ...]


@dataclass(eq=False)
class _Directory:
    durable: _Entries = field(default_factory=dict)
    pending: list[_Naming] = field(default_factory=list)

    def entries(self, changes: Iterable[_Naming] | None = None) -> _Entries:
        """The entries after some changes, all of them by default."""
        entries = dict(self.durable)
        for change in self.pending if changes is None else changes:
            for name, node in change.entries:
                if node is None:
                    entries.pop(name, None)
                else:
                    entries[name] = node
        return entries

    def sync(self) -> None:
        self.durable = self.entries()
        self.pending.clear()

    def survive(self, chance: random.Random, order: Order, committed: int) -> _Entries:
        if order is Order.ORDERED:
            return self.entries([change for change in self.pending if change.order <= committed])
        if order is Order.PREFIX:
            return self.entries(self.pending[: chance.randint(0, len(self.pending))])
        share = chance.choice((0.1, 0.5, 0.9))
        return self.entries([change for change in self.pending if chance.random() < share])


_Entries = dict[str, "_File | _Directory"]


class Disk:
    """The files below one directory, as the process sees them and as the medium may have them."""

    def __init__(self, root: Path) -> None:
        """Begin with what `root` holds now, all of it durable."""
        self._nodes: dict[
            int, _File | _Directory
        ] = {}  # by inode; a number is used again once its file is gone
        self._order = 0  # of the last change of a name
        self._committed = 0
        self._root = self._load(root)

    def _load(self, path: Path) -> _File | _Directory:
        node: _File | _Directory
        if path.is_dir():
            node = _Directory({below.name: self._load(below) for below in path.iterdir()})
        else:
            node = _File(path.read_bytes())
        self._nodes[path.stat().st_ino] = node
        return node

    # ---- what happens ----

    def apply(self, event: Event) -> None:
        """Do what an event says; notes change nothing."""
        if event.kind is Kind.NOTE:
            return
        if event.kind in (Kind.WRITE, Kind.RESIZE):
            data = event.data if event.kind is Kind.WRITE else None
            self._file(event.inode).pending.append(_Change(event.position, data))
        elif event.kind in (Kind.SYNC, Kind.SYNC_DIRECTORY):
            self._sync(event)
        else:
            self._name(event)

    def _file(self, inode: int) -> _File:
        node = self._nodes[inode]
        assert isinstance(node, _File)
        return node

    def _sync(self, event: Event) -> None:
        node = self._nodes[event.inode]
        if event.error:
            if isinstance(node, _File):
                node.failed = True
            return
        if isinstance(node, _Directory) and node.pending:
            self._committed = max(self._committed, node.pending[-1].order)
        node.sync()

    def _name(self, event: Event) -> None:
        self._order += 1
        if event.kind is Kind.RENAME:
            before, after = event.name.split("\0")
            directory, name = self._parent(before)
            other, target = self._parent(after)
            assert directory is other, "a rename into another directory is not modelled"
            moved = directory.entries()[name]
            directory.pending.append(_Naming(self._order, ((name, None), (target, moved))))
            return
        directory, name = self._parent(event.name)
        node: _File | _Directory | None = None
        if event.kind in (Kind.CREATE, Kind.MKDIR):
            node = self._nodes[event.inode] = _File() if event.kind is Kind.CREATE else _Directory()
        directory.pending.append(_Naming(self._order, ((name, node),)))

    def _parent(self, path: str) -> tuple[_Directory, str]:
        *above, name = path.split("/")
        node = self._root
        for part in above:
            assert isinstance(node, _Directory)
            node = node.entries()[part]
        assert isinstance(node, _Directory)
        return node, name

    # ---- what is there ----

    def current(self) -> Tree:
        """What the process sees."""
        return dict(self._walk(self._root, "", lambda node: node.entries(), lambda node: node.content()))

    def lose_power(self, seed: int | str, order: Order) -> Tree:
        """What is there after a loss of power now; the seed chooses among all that could be."""
        chance = random.Random(f"{seed} {order.value}")
        committed = chance.choice(
            (self._committed, chance.randint(self._committed, self._order), self._order)
        )

        def names(node: _Directory) -> _Entries:
            return node.survive(chance, order, committed)

        def content(node: _File) -> bytes:
            certain = None
            if order is Order.ORDERED:
                certain = chance.choice((0, chance.randint(0, len(node.pending)), len(node.pending)))
            return node.survive(chance, certain)

        return dict(self._walk(self._root, "", names, content))

    def _walk(
        self,
        node: _File | _Directory,
        path: str,
        names: Callable[[_Directory], _Entries],
        content: Callable[[_File], bytes],
    ) -> Iterator[tuple[str, bytes | None]]:
        if isinstance(node, _File):
            yield path, content(node)
            return
        if path:
            yield path, None
        for name, below in sorted(names(node).items()):
            yield from self._walk(below, f"{path}/{name}" if path else name, names, content)


def tree_of(directory: Path) -> Tree:
    """Return what a real directory holds."""
    return {
        path.relative_to(directory).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }


def materialise(tree: Tree, directory: Path) -> None:
    """Write a tree into a new directory."""
    directory.mkdir()
    for path, content in tree.items():
        if content is None:
            (directory / path).mkdir()
        else:
            (directory / path).write_bytes(content)
