"""What an inspection of a log yields: segments, batches, indexes, findings, and sums of them.

Plain values; only `Batch.records` does something: it opens and parses a body when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from liftbridge.log import layout
from liftbridge.log.layout import BatchHeader, HeaderBlock, IndexFile, Record


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: a name that stays, for programs; docs/log-tools.md lists them.
        damage: whether something that was written once is missing or altered; otherwise it is a remark.
        path: of the file, or of the directory.
        text: what it means.
        advice: what to do.
        position, end: the bytes concerned, from the one on, below the other; None when it is not about bytes.
        first_offset, next_offset: the offsets that cannot be had, from the one on, below the other; None for
            unknown, and equal when no message is missing.
    """

    kind: str
    damage: bool
    path: Path
    text: str
    advice: str
    position: int | None = None
    end: int | None = None
    first_offset: int | None = None
    next_offset: int | None = None


@dataclass(frozen=True)
class Segment:
    """A segment file. `header` is None, and `problem` says why, when its header block is not a good one."""

    path: Path
    base_offset: int
    size: int
    header: HeaderBlock | None
    problem: str | None
    unknown_version: bool = False


@dataclass(frozen=True)
class Batch:
    """A batch, good or bad.

    Attributes:
        path, position: where it begins.
        header: its fields; when the checksum is bad they may be anything.
        checksum: "good", "bad", or "unread" when the file ends inside the batch.
        chain: whether it names the batch in front of it: "good", "bad", or "unchecked" when there is nothing
            to compare with.
        problem: what is wrong with it, or None.
        body: as stored; None unless the checksum is good.
    """

    path: Path
    position: int
    header: BatchHeader
    checksum: str
    chain: str
    problem: str | None
    body: bytes | None

    def records(self) -> Iterator[Record] | None:
        """Return the records, or None when this program cannot open the body. They raise FormatError."""
        if self.header.control or self.body is None:
            return iter(())
        opened = layout.open_body(self.header.attributes, self.header, self.body)
        return None if opened is None else layout.parse_records(self.header, opened)


@dataclass(frozen=True)
class Index:
    """The index file of a segment and what it is worth.

    `state` is "valid" when it describes the file as it is, "stale" when it describes an earlier end of it,
    "missing", "damaged", "foreign" (of another log), "wrong" (whole, but not what the log says), or
    "unchecked" when the segment has damage and there is nothing to compare it with.
    """

    path: Path
    state: str
    content: IndexFile | None


Item = Segment | Batch | Index | Finding


def note_epoch(epochs: list[tuple[int, int]], header: BatchHeader) -> None:
    """Add the leader epoch of a batch, if it is a new one, with its first offset; 0 is no epoch."""
    if header.epoch and (not epochs or header.epoch > epochs[-1][0]):
        epochs.append((header.epoch, header.base_offset))


@dataclass
class Totals:
    """What a walk adds up. Bytes and counts are those of good batches.

    `tail_bytes` were written at the end and are not whole, `allocated_bytes` are zeros behind the data,
    `unopened` counts batches whose records cannot be read here; `epochs` are leader epochs with their first
    offsets.
    """

    segments: int = 0
    batches: int = 0
    records: int = 0
    size_bytes: int = 0
    tail_bytes: int = 0
    allocated_bytes: int = 0
    unopened: int = 0
    epochs: list[tuple[int, int]] = field(default_factory=list)

    def add(self, header: BatchHeader) -> None:
        """Count a good batch."""
        self.batches += 1
        self.records += header.count
        self.size_bytes += header.length
        note_epoch(self.epochs, header)
