"""Reading the directory of a log without touching it: what is in it, and what is wrong with it.

`liftbridge log verify` and `liftbridge log dump` see a log by this: a second reader of the format, which
shares no code with the server's (`layout.py` says why). It goes over the files in the order of their
offsets, a batch at a time, and yields what it meets, with a `Finding` for everything that is not as it
should be. What is damage follows from the order in which the server writes (ARCHITECTURE.md):

- What was not synced may be missing at the end of the last file, and nowhere else: a bad batch there with no
  good one behind it is a torn tail, which the next start cuts off. A bad batch anywhere else, or one that an
  index file remembers as synced, is a hole in the log.
- Space is allocated ahead, so zeros behind the last batch of a file are no finding, unless offsets are
  missing.
- An index only saves time. A damaged one is a remark. One that is whole and tells something else than the
  log is damage, as the server believes it.
- A file is made before it has a header, so a last file without header and batches is a remark.
- A `.swap` file is what an interrupted compaction has made of a range of offsets. It is complete, and stands
  for the files of that range, which the next start removes.

Invariants: files are opened read-only; memory holds one batch, one index and a few numbers a segment; any
bytes whatever end in findings, not in an exception.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from liftbridge.log import layout
from liftbridge.log.found import Batch, Finding, Index, Item, Segment, Totals
from liftbridge.log.layout import HEADER_BLOCK, FormatError, UnknownVersionError
from liftbridge.log.walk import NOTHING, RESTORE, Chain, File, Walk

__all__ = ["LogInspector", "Item", "Segment", "Batch", "Index", "Finding", "is_segment_name"]

_SEGMENT_NAME = re.compile(r"[0-9]{20}\.log")
_INDEX_NAME = re.compile(r"[0-9]{20}\.index")
_SWAP = ".swap"
_HALF_MADE = (".tmp", ".cleaned")
_KEPT = ".damaged"
_START = "start"
_NOTES = (_START, "compaction", "sync-failed")  # what the server keeps beside the segments for itself


def is_segment_name(name: str) -> bool:
    """Whether a file of this name is a segment, or the index of one."""
    return bool(_SEGMENT_NAME.fullmatch(name) or _INDEX_NAME.fullmatch(name))


def _base_of(path: Path) -> int:
    """The offset in the name of a segment file, of its index, or of a file that is to become one."""
    return int(path.name[:20])


def _ignore(count: int) -> None:
    """Nobody wants to know how far it is."""


class LogInspector:
    """Reads the log of one partition: `items` yields what is there, the attributes sum it up afterwards.

    Arguments:
        directory: of the partition.
        live: a server may be writing, so an unfinished end of the last file is no finding.
        first_offset: segments that end at or below this offset are passed over.
        read: called with the number of bytes of every read, to show progress.

    Attributes: `totals`; `start_offset` and `next_offset`, None for unknown; `stream_id` and `partition`,
    None when neither the path nor a file tells.
    """

    def __init__(
        self,
        directory: Path,
        *,
        live: bool = False,
        first_offset: int = 0,
        read: Callable[[int], None] = _ignore,
    ) -> None:
        self.directory = directory
        self.live = live
        self.totals = Totals()
        self.start_offset: int | None = None
        self.next_offset: int | None = None
        self.stream_id: uuid.UUID | None = None
        self.partition: int | None = None
        self._first_offset = first_offset
        self._read = read
        self._chain = Chain()
        self._take_identity_from_path()

    def _take_identity_from_path(self) -> None:
        """In a data directory the path says whose log it is."""
        directory = self.directory.absolute()
        try:
            self.stream_id, self.partition = uuid.UUID(directory.parent.name), int(directory.name)
        except ValueError:
            self.stream_id = self.partition = None

    # ---- the directory ----

    def items(self) -> Iterator[Item]:
        """Yield everything in the order of offsets. Raises OSError when the directory cannot be listed."""
        names = sorted(entry.name for entry in self.directory.iterdir())
        names = yield from self._finish_swaps(names)
        paths = [self.directory / name for name in names if _SEGMENT_NAME.fullmatch(name.removesuffix(_SWAP))]
        in_place: list[Segment] = []
        misplaced: list[Segment] = []
        for path in paths:
            yield from self._sort_in(path, in_place, misplaced)
        yield from self._compare_with_note(in_place)
        if in_place and self._is_half_made(in_place[-1]):
            yield from self._half_made(in_place.pop())
        for segment, after in zip(in_place, [*in_place[1:], None], strict=False):
            if after is None or after.base_offset > self._first_offset:
                yield from self._segment(segment, after)
        self.next_offset = self._chain.next_offset
        for segment in misplaced:
            yield segment
            yield self._misplaced(segment)
        yield from self._other_files(names, {_base_of(path) for path in paths})

    def _compare_with_note(self, in_place: list[Segment]) -> Iterator[Finding]:
        """Take away what lies in front of the noted start, and see whether anything is missing behind it."""
        try:
            with File(self.directory / _START, _ignore) as file:
                start = layout.parse_start(file.at(0, HEADER_BLOCK))
        except (FormatError, OSError):
            return  # the log begins where its first file does
        while len(in_place) > 1 and in_place[1].base_offset <= start:
            path = in_place.pop(0).path
            if not self.live:
                text = "the server was stopped while retention removed this file"
                yield Finding("leftover", False, path, text, NOTHING)
        first = in_place[0].base_offset if in_place else None
        if first is None or first > start:
            path = self.directory / f"{start:020d}.log"
            text = f"the log begins at offset {start}, and the file that begins there is missing"
            advice = "restore the missing file from a copy or another replica"
            yield Finding("missing", True, path, text, advice, None, None, start, first)
            self.start_offset = start

    def _finish_swaps(self, names: list[str]) -> Generator[Finding, None, list[str]]:
        """Return the names that count, as if every interrupted compaction were finished."""
        for name in [name for name in names if name.endswith(_SWAP)]:
            path = self.directory / name
            found = self._range_of(path)
            if found is None:
                names = [other for other in names if other != name]
                text = (
                    "it was to replace other files, and its header is not that of the compacted segment that "
                    "its name tells of; the server does not open the log as long as it is there"
                )
                advice = "restore it from a copy; if the files of its offsets are still there, move it away"
                yield Finding("swap", True, path, text, advice, 0, HEADER_BLOCK)
                continue
            first, end = found
            names = [
                other
                for other in names
                if not (is_segment_name(other) and first <= _base_of(Path(other)) < end)
            ]
            if not self.live:
                text = f"a compaction was interrupted; this file stands for the offsets {first} to {end - 1}"
                yield Finding("swap-pending", False, path, text, NOTHING)
        return names

    def _range_of(self, swap: Path) -> tuple[int, int] | None:
        """The offsets that a `.swap` file stands for, or None when it is none that the server finishes."""
        if not _SEGMENT_NAME.fullmatch(swap.name.removesuffix(_SWAP)):
            return None
        try:
            with File(swap, _ignore) as file:
                header = layout.parse_header_block(file.at(0, HEADER_BLOCK))
        except (FormatError, OSError):
            return None
        if header.end_offset is None or header.base_offset != _base_of(swap):
            return None
        if self.stream_id is not None and (header.stream_id, header.partition) != (
            self.stream_id,
            self.partition,
        ):
            return None
        return header.base_offset, header.end_offset

    def _sort_in(self, path: Path, in_place: list[Segment], misplaced: list[Segment]) -> Iterator[Item]:
        """Look whose file it is, before any is walked: one that does not belong here is not the last one."""
        try:
            segment = self._look_at(path)
        except OSError as error:
            yield from self._unreadable(path, error)
            return
        (in_place if self._is_in_place(segment) else misplaced).append(segment)

    def _look_at(self, path: Path) -> Segment:
        """Read the header block, and find out from the first good one whose log this is."""
        with File(path, _ignore) as file:
            try:
                header = layout.parse_header_block(file.at(0, HEADER_BLOCK))
            except FormatError as error:
                unknown = isinstance(error, UnknownVersionError)
                return Segment(path, _base_of(path), file.size, None, str(error), unknown)
            if self.stream_id is None:
                self.stream_id, self.partition = header.stream_id, header.partition
            return Segment(path, _base_of(path), file.size, header, None)

    def _is_in_place(self, segment: Segment) -> bool:
        header = segment.header
        return header is None or (header.stream_id, header.partition, header.base_offset) == (
            self.stream_id,
            self.partition,
            segment.base_offset,
        )

    def _misplaced(self, segment: Segment) -> Finding:
        header, base, start = segment.header, segment.base_offset, self.start_offset
        assert header is not None
        first = following = None  # what the file of this name should hold, where that is missing at an end
        if start is None or base < start or base == self.next_offset:
            first, following = base, start if start is not None and base < start else None
        if (header.stream_id, header.partition) == (self.stream_id, self.partition):
            text = f"its header says that it begins at offset {header.base_offset}; this is not its name"
            advice = "give it its name back if that is free, else move it out of the directory"
            return Finding("misplaced", True, segment.path, text, advice, 0, HEADER_BLOCK, first, following)
        text = (
            f"it belongs to stream {header.stream_id} partition {header.partition}, and the directory to "
            f"stream {self.stream_id} partition {self.partition}"
        )
        advice = "move it out of the directory, or restore the right directory"
        return Finding("foreign", True, segment.path, text, advice, 0, HEADER_BLOCK, first, following)

    def _unreadable(self, path: Path, error: OSError) -> Iterator[Finding]:
        if self.live and isinstance(error, FileNotFoundError):
            return  # the running server has removed it meanwhile
        advice = "check the permissions of the file and the disk, then verify again"
        yield Finding("unreadable", True, path, f"it cannot be read: {error.strerror}", advice)

    # ---- a last file that was being made ----

    def _is_half_made(self, last: Segment) -> bool:
        """Whether the last file is one that a crash left without a header, and so without messages."""
        if last.header is not None or last.unknown_version:
            return False
        index = self._read_index(last).content
        if index is not None and index.count:
            return False
        try:
            with File(last.path, _ignore) as file:
                return file.find_batch(0, last.base_offset) is None
        except OSError:
            return False

    def _half_made(self, last: Segment) -> Iterator[Item]:
        yield last
        self.totals.tail_bytes += last.size
        if not self.live:
            text = f"the server was stopped while it made this file, which holds no message ({last.problem})"
            base = last.base_offset
            yield Finding("half-made", False, last.path, text, NOTHING, 0, last.size, base, None)

    # ---- one segment ----

    def _segment(self, segment: Segment, after: Segment | None) -> Iterator[Item]:
        chain = self._chain
        self.totals.segments += 1
        yield segment
        if self.start_offset is None:
            self.start_offset = segment.base_offset
        elif chain.next_offset not in (None, segment.base_offset):
            yield self._gap(segment, chain.next_offset or 0)
            chain.jump(None)
        chain.next_offset = segment.base_offset
        following = after.base_offset if after else None
        if segment.problem is not None:
            yield self._bad_header(segment, following)
        if segment.header is not None and segment.header.sparse:
            chain.last_crc = None
        try:
            if segment.unknown_version:
                chain.jump(following)
                return
            index = self._read_index(segment)
            with File(segment.path, self._read) as file:
                yield from Walk(file, segment, following, index, chain, self.totals, self.live).run()
        except OSError as error:
            yield from self._unreadable(segment.path, error)
            chain.jump(None)

    def _gap(self, segment: Segment, expected: int) -> Finding:
        base = segment.base_offset
        if base > expected:
            text = f"the file before ends at offset {expected}; what lies between is missing"
            advice = "restore the missing file from a copy or another replica"
            return Finding("missing", True, segment.path, text, advice, None, None, expected, base)
        text = f"the file before goes on to offset {expected}, beyond where this one begins"
        advice = "find out which of the two does not belong here, and move it out of the directory"
        return Finding("overlap", True, segment.path, text, advice, None, None, base, base)

    def _bad_header(self, segment: Segment, following: int | None) -> Finding:
        base, problem = segment.base_offset, segment.problem or ""
        if segment.unknown_version:
            kind, advice = "unknown-version", "read it with the version of this program that wrote it"
            return Finding(kind, True, segment.path, problem, advice, 0, HEADER_BLOCK, base, following)
        problem += "; its messages can be read all the same, unless they are encrypted"
        return Finding("header", True, segment.path, problem, RESTORE, 0, HEADER_BLOCK, base, base)

    # ---- everything else ----

    def _read_index(self, segment: Segment) -> Index:
        path = segment.path.with_suffix(".index")
        try:
            with File(path, _ignore) as file:
                content = layout.parse_index(file.at(0, layout.INDEX_MAX))
        except FileNotFoundError:
            return Index(path, "missing", None)
        except (FormatError, OSError):
            return Index(path, "damaged", None)
        identity = (content.stream_id, content.partition, content.base_offset)
        if identity != (self.stream_id, self.partition, segment.base_offset):
            return Index(path, "foreign", None)
        return Index(path, "damaged" if content.problem else "valid", content)

    def _other_files(self, names: list[str], segments: set[int]) -> Iterator[Finding]:
        if not segments:
            text = "there is no segment file; a start of the server would begin an empty log"
            yield Finding("empty", False, self.directory, text, "nothing, if nothing was ever recorded here")
        for name in names:
            path = self.directory / name
            if _INDEX_NAME.fullmatch(name):
                if _base_of(path) not in segments and not self.live:
                    yield self._orphan(path)
            elif name.endswith(_HALF_MADE):
                if not self.live:
                    text = "a temporary file that a stopped server has left behind"
                    yield Finding("leftover", False, path, text, NOTHING)
            elif name.endswith(_KEPT):
                text = "a damaged file that a repair has replaced and kept"
                yield Finding(
                    "kept", False, path, text, "delete it when nobody wants to look into it any more"
                )
            elif not _SEGMENT_NAME.fullmatch(name.removesuffix(_SWAP)) and name not in _NOTES:
                text = "it is no file of a log, and the server does not look at it"
                yield Finding("unknown", False, path, text, "move it away if nobody needs it here")

    def _orphan(self, path: Path) -> Finding:
        """Judge an index without a segment; only retention leaves one behind, and in front of the log."""
        base = _base_of(path)
        content = self._read_index(Segment(path.with_suffix(".log"), base, 0, None, None)).content
        if content is None or not content.count or base < (self.next_offset or 0):
            return Finding("leftover", False, path, "the index of a segment that is gone", NOTHING)
        following = content.next_offset
        text = f"it describes a segment with the offsets {base} to {following - 1}, and that file is missing"
        advice = "restore the .log file from a copy or another replica before the server starts again"
        return Finding("missing", True, path, text, advice, None, None, base, following)
