"""Segment files: how they are created and opened, what is remembered of a sealed one, and who keeps it open.

A sealed segment is a few numbers. Its descriptor and its index are needed only while somebody reads it, so
the process keeps at most a fixed number of sealed segments open, whatever the number of logs and their
sizes; the least recently read is let go first. A reader holds its own reference, so letting go never closes
a file under a reader.

Damage does not make a segment unreadable. `scan_through` walks to the end of a file past whatever is damaged;
what it had to pass over are the segment's holes, which reads report and nothing else is affected by.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from liftbridge._log import SEGMENT_HEADER_BYTES, Segment, find_batch
from liftbridge.log.files import FILE_MODE, replace_file, segment_path, sync_data, write_all
from liftbridge.log.header import KEY_SLOTS, SegmentHeader
from liftbridge.log.index import Summary, load_index

if TYPE_CHECKING:
    from liftbridge._log import BodyCodec

DEFAULT_OPEN_SEGMENTS = 512
ZEROS = "zeros in the middle of the log"


class Codecs(Protocol):
    """Where the segments of a log get what encodes and decodes the bodies of their batches."""

    def fresh(self) -> tuple[BodyCodec | None, bytes]:
        """The codec of a new segment, and what goes into the key slots of its header block."""

    def of(self, block: bytes, path: Path) -> BodyCodec | None:
        """The codec of an existing segment, by its header block. Raises LogError when its key is missing."""

    def plain(self) -> BodyCodec | None:
        """The codec of batches that are not encrypted."""


class PlainBodies:
    """Bodies are stored as they are."""

    def fresh(self) -> tuple[BodyCodec | None, bytes]:
        """None, and nothing."""
        return None, b""

    def of(self, block: bytes, path: Path) -> BodyCodec | None:
        """None."""
        return None

    def plain(self) -> BodyCodec | None:
        """None."""
        return None


@dataclass(frozen=True)
class Before:
    """The end of the batch in front of a segment, so that order and chain are checked across files too."""

    last_timestamp: int = 0
    last_epoch: int = 0
    last_crc: int = -1

    @classmethod
    def of(cls, segment: Segment | Summary) -> Before:
        """What the segment behind this one begins with."""
        return cls(segment.last_timestamp, segment.last_epoch, segment.last_crc)


@dataclass(frozen=True, eq=False)
class SealedSegment:
    """A segment that is never written again: its file, first offset and summary.

    `sparse` says that compaction or repair has written it, so that the batch behind it may have followed
    another than its last; `damaged` that holes were found in it: it has no index then.
    """

    path: Path
    base_offset: int
    summary: Summary
    codecs: Codecs = field(default_factory=PlainBodies, repr=False)
    sparse: bool = False
    damaged: bool = False

    @classmethod
    def of(cls, segment: Segment, codecs: Codecs) -> SealedSegment:
        """Return the sealed form of a segment that will not be appended to any more."""
        return cls(
            segment.path,
            segment.base_offset,
            Summary.of(segment),
            codecs,
            sparse=segment.end_offset >= 0,
            damaged=bool(segment.holes),
        )

    @property
    def next_offset(self) -> int:
        """The offset behind the segment's range."""
        return self.summary.next_offset

    @property
    def behind(self) -> Before:
        """What a segment behind this one begins with."""
        before = Before.of(self.summary)
        return replace(before, last_crc=-1) if self.sparse else before

    @property
    def size(self) -> int:
        """Bytes of batches, the header block not counted."""
        return self.summary.end - SEGMENT_HEADER_BYTES

    def open(self, *, believe_index: bool = True) -> Segment:
        """Open the file for reading; without a believable index file it is scanned.

        What the scan does not find although the segment once had it is a hole. Raises OSError
        (FileNotFoundError once the file was removed), LogError when the segment's key is missing.
        """
        opened, _ = open_segment(self.path, os.O_RDONLY, self.codecs, Before())
        if believe_index and not self.damaged and load_index(opened, self.summary):
            return opened
        end = os.fstat(opened.fileno()).st_size if self.damaged else self.summary.end
        scan_to(opened, end, self.next_offset)
        return opened


def open_segment(
    path: Path, flags: int, codecs: Codecs, before: Before
) -> tuple[Segment, SegmentHeader | None]:
    """Open a segment file without looking into it; return also its header, None when that is damaged.

    Raises OSError; ValueError when the header is of an unknown format; LogError when a key is missing.
    """
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        block = os.pread(fd, SEGMENT_HEADER_BYTES, 0)
        header = SegmentHeader.decode(block)
        codec = codecs.of(block, path)  # the slots have checksums of their own, so whatever the header is
    except BaseException:
        os.close(fd)
        raise
    end_offset = header.end_offset if header is not None else -1
    segment = Segment(fd, path, int(path.stem), end_offset=end_offset, codec=codec, **vars(before))
    return segment, header


def create_segment(path: Path, header: SegmentHeader, codecs: Codecs, before: Before) -> Segment:
    """Create a segment file with its header block; nothing is synced.

    Raises OSError, and then there is no file; FileExistsError when there was one.
    """
    codec, key_slots = codecs.fresh()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(fd, header.encode(key_slots), 0)
    except OSError:
        os.close(fd)
        path.unlink()
        raise
    return Segment(fd, path, header.base_offset, codec=codec, **vars(before))


def write_segment(directory: Path, header: SegmentHeader, codecs: Codecs, content: bytes = b"") -> Path:
    """Write a segment file with a header block, a fresh codec and `content` behind it; blocking.

    Whatever has its name is replaced. Returns its path; it is on disk then. Raises OSError.
    """
    path = segment_path(directory, header.base_offset)
    _, key_slots = codecs.fresh()
    replace_file(path, header.encode(key_slots) + content)
    return path


def cut_segment(path: Path, position: int, following: int) -> None:
    """Cut a segment file off at byte `position`, which is the offset `following`; blocking.

    What stays is on disk when this returns. Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        header = SegmentHeader.decode(os.pread(fd, SEGMENT_HEADER_BYTES, 0))
        if header is not None and header.end_offset >= 0:
            # Its header names the range, so it is written anew; a rename makes the change whole.
            content = os.pread(fd, position, 0)
            block = replace(header, end_offset=following).encode(content[KEY_SLOTS:SEGMENT_HEADER_BYTES])
            replace_file(path, block + content[SEGMENT_HEADER_BYTES:])
        else:
            os.ftruncate(fd, position)
            sync_data(fd)
    finally:
        os.close(fd)


def scan_through(segment: Segment, size: int) -> str:
    """Take over all batches up to byte `size`, past damage, which the segment's `holes` tell of.

    Returns what is wrong with the bytes behind the last good batch: "" when there are none, or zeros only.
    Raises OSError.
    """
    while True:
        reason = segment.scan(size)
        if segment.end >= size:
            return ""
        start = segment.end
        if segment.holes and segment.holes[-1][3] == start:
            start += 1  # good by itself, and still not a batch that can follow
        position = find_batch(segment.fileno(), segment.path, start, size, segment.next_offset)
        if position < 0:
            return reason or ("" if is_zero(segment.fileno(), segment.end, size) else ZEROS)
        segment.skip(position, reason or ZEROS)


def scan_to(segment: Segment, size: int, following: int, missing: str = "the segment ends too early") -> None:
    """As `scan_through`, of a segment that has had all offsets below `following`: the rest is a hole.

    `missing` says what is wrong when the bytes do not. Raises OSError.
    """
    reason = scan_through(segment, size)
    if segment.next_offset < following:
        segment.lose_until(following, max(size, segment.end), reason or missing)


def is_zero(fd: int, start: int, end: int) -> bool:
    """Whether the file has nothing but zeros from byte `start` to byte `end`."""
    while start < end:
        piece = os.pread(fd, min(end - start, 1 << 20), start)
        if not piece or any(piece):
            return not piece
        start += len(piece)
    return True


def detached(segment: Segment) -> Segment:
    """Return a Segment that knows the same and has no descriptor."""
    return _copied(segment, -1)


def attached(segment: Segment) -> Segment:
    """Return a Segment that knows the same as a detached one and has its file open for reading and writing.

    Raises OSError when it cannot be opened, or is shorter than it was left.
    """
    fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
    size = os.fstat(fd).st_size
    if size < segment.end:
        os.close(fd)
        raise OSError(
            errno.EIO,
            f"the file has {size} bytes and had {segment.end}: somebody else has written to it; restart the "
            "server to have the log looked at",
            str(segment.path),
        )
    return _copied(segment, fd)


def _copied(segment: Segment, fd: int) -> Segment:
    copy = Segment(fd, segment.path, segment.base_offset, end_offset=segment.end_offset, codec=segment.codec)
    copy.load(segment.index_bytes(), **vars(Summary.of(segment)))
    copy.synced_offset = segment.synced_offset
    return copy


class OpenSegments:
    """Keeps at most `capacity` sealed segments open; usable from several threads."""

    def __init__(self, capacity: int = DEFAULT_OPEN_SEGMENTS) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._open: OrderedDict[SealedSegment, Segment] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, sealed: SealedSegment, *, nowait: bool = False) -> Segment:
        """Return the segment, opened if need be. Raises as `SealedSegment.open`.

        With `nowait`, raises BlockingIOError instead of opening it.
        """
        with self._lock:
            segment = self._open.get(sealed)
            if segment is not None:
                self._open.move_to_end(sealed)
                return segment
        if nowait:
            raise BlockingIOError(f"{sealed.path} is not open")
        segment = sealed.open()
        self.keep(sealed, segment)
        return segment

    def keep(self, sealed: SealedSegment, segment: Segment) -> None:
        """Keep `segment`, the open form of `sealed`, for the next reader."""
        with self._lock:
            self._open[sealed] = segment
            self._open.move_to_end(sealed)
            while len(self._open) > self.capacity:
                self._open.popitem(last=False)

    def forget(self, sealed: SealedSegment) -> None:
        """Let go of a segment that nobody will ask for again."""
        with self._lock:
            self._open.pop(sealed, None)


# One for the process, because descriptors are the process's.
open_segments = OpenSegments()
