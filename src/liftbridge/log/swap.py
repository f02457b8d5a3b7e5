"""Putting one segment file in the place of several, so that after any crash either they are there or it is.

The new file is written and synced as `<base>.log.cleaned`. Renamed to `<base>.log.swap` it has become the
truth: it holds all that shall remain of the range in its header, and whatever else lies in that range is to
go. Only then are the old files removed, and at last the new one takes its place under its own name.

Invariants:

- Before the `.swap` is durable no old file is touched; afterwards none is needed. So a `.cleaned` that is
  found at a start is deleted, and a `.swap` is completed.
- No index file of an old segment is left beside the new one: the names are durable between the removals and
  the last rename.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

from liftbridge._log import SEGMENT_HEADER_BYTES
from liftbridge.log.errors import ForeignLogError, LogDamagedError
from liftbridge.log.files import index_path, segment_path, sync_directory
from liftbridge.log.header import SegmentHeader

CLEANED_SUFFIX = ".cleaned"
SWAP_SUFFIX = ".swap"
_SEGMENT_FILE = re.compile(r"([0-9]{20})\.(?:log|index)")


def cleaned_path(segment: Path) -> Path:
    """Where the file that shall become this segment is written."""
    return segment.with_name(segment.name + CLEANED_SUFFIX)


def swap_path(segment: Path) -> Path:
    """Where it lies while it takes the place of the old ones."""
    return segment.with_name(segment.name + SWAP_SUFFIX)


def swap_steps(segment: Path, end_offset: int) -> list[Callable[[], object]]:
    """Return what brings the `.cleaned` file of a segment into its place, step by step; all of it blocks.

    The file is on disk, and the only one of the log's files with offsets in its range that is to remain; the
    range goes from the offset in its name up to `end_offset`. The steps raise OSError; once the first one has
    begun, only `finish_swaps` may judge what is there.
    """
    return [
        lambda: cleaned_path(segment).rename(swap_path(segment)),
        lambda: sync_directory(segment.parent),
        *_finishing_steps(segment, end_offset),
    ]


def _finishing_steps(segment: Path, end_offset: int) -> list[Callable[[], object]]:
    return [
        lambda: _remove_range(segment, end_offset),
        lambda: sync_directory(segment.parent),
        lambda: swap_path(segment).rename(segment),
        lambda: sync_directory(segment.parent),
    ]


def _remove_range(segment: Path, end_offset: int) -> None:
    """Remove what lies in the range, but for the segment's own name, which the rename takes over."""
    base_offset = int(segment.name.partition(".")[0])
    index_path(segment).unlink(missing_ok=True)
    for path in sorted(segment.parent.iterdir()):
        match = _SEGMENT_FILE.fullmatch(path.name)
        if match and base_offset < int(match[1]) < end_offset:
            path.unlink(missing_ok=True)


def finish_swaps(directory: Path, stream_id: uuid.UUID, partition: int) -> None:
    """Bring every segment file into its place that a crash has kept on the way; blocking.

    To be called before anything else looks at the directory. Raises LogDamagedError for a file that cannot be
    what it should be, ForeignLogError for another log's, and then has removed nothing for it; OSError.
    """
    names = sorted(entry.name for entry in directory.iterdir())
    for name in names:
        if name.endswith(CLEANED_SUFFIX):
            (directory / name).unlink()
    for name in names:
        if name.endswith(SWAP_SUFFIX):
            segment, end_offset = _judge(directory / name, stream_id, partition)
            for step in _finishing_steps(segment, end_offset):
                step()


def _judge(swap: Path, stream_id: uuid.UUID, partition: int) -> tuple[Path, int]:
    """The segment that a `.swap` file is to become, and the end of its range."""
    fd = os.open(swap, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = SegmentHeader.decode(os.pread(fd, SEGMENT_HEADER_BYTES, 0))
    except ValueError as error:
        raise LogDamagedError(swap, 0, str(error)) from None
    finally:
        os.close(fd)
    segment = swap.with_suffix("")
    if header is None or header.end_offset < 0 or segment != segment_path(swap.parent, header.base_offset):
        raise LogDamagedError(
            swap, 0, "its header is not that of the compacted segment that its name tells of"
        )
    if (header.stream_id, header.partition) != (stream_id, partition):
        raise ForeignLogError(
            f"{swap} belongs to stream {header.stream_id} partition {header.partition}, not to stream "
            f"{stream_id} partition {partition}; move the file away"
        )
    return segment, header.end_offset
