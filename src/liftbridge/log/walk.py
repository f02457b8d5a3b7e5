"""The walk over one segment file: batch by batch, with everything that can be wrong on the way.

The walk knows what has to come next (`Chain`), looks for the next good batch behind a bad one, and decides
what a bad end is: the trace of a write that never finished, or damage. `inspect.py` says by which rules, and
puts the segments of a directory together.

Invariants: whatever the bytes are, the walk moves forward at every step and ends at the size that the file
had when it was opened; it holds one batch at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from liftbridge.log import layout
from liftbridge.log.found import Batch, Finding, Index, Item, Segment, Totals, note_epoch
from liftbridge.log.layout import (
    BATCH_HEADER,
    BATCH_MAGIC,
    FIRST_POSITION,
    BatchHeader,
    FormatError,
    IndexFile,
)

READ_AHEAD = 1024 * 1024
RESTORE = "restore the file from a copy or another replica; until then only these messages are missing"
NOTHING = "nothing: the next start of the server puts it right"
REBUILD = "stop the server and delete this index file; the next start makes it anew"


@dataclass
class Chain:
    """What the next batch has to follow; None where nothing is known."""

    next_offset: int | None = None
    last_crc: int | None = None
    last_timestamp: int | None = None
    last_epoch: int = 0

    def state(self, header: BatchHeader) -> str:
        """Whether the batch names the one in front of it."""
        if self.last_crc is None or header.prev_crc == 0 or header.base_offset != self.next_offset:
            return "unchecked"
        return "good" if header.prev_crc == self.last_crc else "bad"

    def refuses(self, header: BatchHeader) -> str | None:
        """Why a whole batch does not belong here, or None. Offsets that are left out are not judged here."""
        if self.next_offset is not None and header.base_offset < self.next_offset:
            return f"its base offset is {header.base_offset}, and {self.next_offset} is next"
        if header.epoch < self.last_epoch:
            return "its leader epoch is older than the one before"
        if self.last_timestamp is not None and header.base_timestamp < self.last_timestamp:
            return "its timestamp is older than the one before"
        if self.state(header) == "bad":
            return "the batch it follows is another one"
        return None

    def accept(self, header: BatchHeader) -> None:
        """Go on behind a batch."""
        self.next_offset = header.next_offset
        self.last_crc = header.crc
        self.last_timestamp = header.max_timestamp
        self.last_epoch = header.epoch

    def jump(self, offset: int | None) -> None:
        """Go on at an offset behind something that is missing."""
        self.next_offset = offset
        self.last_crc = None


class File:
    """A file under a window of bytes, open for reading; what is written behind its first size is not seen.

    `read` is called with the bytes of every read.
    """

    def __init__(self, path: Path, read: Callable[[int], None]) -> None:
        self.path = path
        # O_NONBLOCK: a pipe under the name of a segment must not make this wait for a writer.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self.size = os.fstat(self._fd).st_size
        self._read = read
        self._start = 0
        self._data = b""

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def at(self, position: int, length: int) -> bytes:
        """Return the bytes at a position, fewer where the file ends. Raises OSError."""
        length = max(0, min(length, self.size - position))
        start = position - self._start
        if start < 0 or start + length > len(self._data):
            self._fill(position, min(max(length, READ_AHEAD), self.size - position))
            start = 0
        return self._data[start : start + length]

    def _fill(self, position: int, length: int) -> None:
        self._start, self._data = position, b""  # the old bytes go before the new ones come
        parts: list[bytes] = []
        while length > 0:
            part = os.pread(self._fd, length, position)
            if not part:
                break
            parts.append(part)
            position += len(part)
            length -= len(part)
        self._data = b"".join(parts)
        self._read(len(self._data))

    def forget(self) -> None:
        """Read anew what is asked for next."""
        self._data = b""

    def zeros_from(self, position: int) -> bool:
        """Whether there is nothing but zeros from a position on."""
        while position < self.size:
            data = self.at(position, READ_AHEAD)
            if not data or data.count(0) != len(data):
                return False
            position += len(data)
        return True

    def batch(self, position: int) -> tuple[BatchHeader, bytes]:
        """Return header and stored body of the good batch at a position. Raises FormatError."""
        header = layout.parse_batch_header(self.at(position, BATCH_HEADER))
        data = b"" if header.length > self.size - position else self.at(position, header.length)
        if len(data) < header.length:
            raise FormatError("the file ends inside it")
        layout.check_checksum(data)
        layout.check_batch_header(header)
        return header, data[BATCH_HEADER:]

    def find_batch(self, position: int, next_offset: int) -> int | None:
        """Return where, from a position on, the first good batch of at least `next_offset` begins."""
        while self.size - position >= BATCH_HEADER:
            window = self.at(position, READ_AHEAD)
            found = window.find(BATCH_MAGIC)
            while found >= 0:
                if self._may_begin(position + found, window[found : found + BATCH_HEADER], next_offset):
                    return position + found
                found = window.find(BATCH_MAGIC, found + 1)
            position += max(1, len(window) - len(BATCH_MAGIC) + 1)
        return None

    def _may_begin(self, position: int, start: bytes, next_offset: int) -> bool:
        """Whether a good batch is there; the cheap fields first, as a payload may look like many of them."""
        try:
            header = layout.parse_batch_header(
                start if len(start) == BATCH_HEADER else self.at(position, BATCH_HEADER)
            )
            if header.base_offset < next_offset or header.length > self.size - position:
                return False
            layout.check_batch_header(header)
            self.batch(position)
        except FormatError:
            return False
        return True


class Walk:
    """One walk; `run` yields what it meets.

    Arguments:
        file: the segment's, open.
        segment: what is known of it.
        following: base offset of the file behind it; None for the last file.
        index: of the segment.
        chain, totals: of the log; the walk moves them on.
        live: a server may be writing to the last file.
    """

    def __init__(
        self,
        file: File,
        segment: Segment,
        following: int | None,
        index: Index,
        chain: Chain,
        totals: Totals,
        live: bool,
    ) -> None:
        self.file = file
        self.segment = segment
        self.following = following
        self.chain = chain
        self.totals = totals
        self.moving = live and following is None
        self.end_offset = segment.header.end_offset if segment.header else None
        self.sparse = self.end_offset is not None
        self.position = FIRST_POSITION
        self.data_end = max(file.size, FIRST_POSITION)
        self.damaged = segment.header is None
        self._index = _IndexCheck(index, segment.base_offset, self.sparse)

    def run(self) -> Iterator[Item]:
        """Yield batches and findings, then the index. Raises OSError."""
        while self.position < self.file.size:
            batch = self._batch()
            if batch is not None:
                yield batch
            if batch is None or batch.problem is not None:
                yield from self._behind(batch)
            else:
                yield from self._take(batch)
        yield from self._end()

    # ---- what is here ----

    def _batch(self) -> Batch | None:
        """The batch at the position with what is wrong with it; None when nothing like one begins here."""
        batch = self._look()
        if self.moving and (batch is None or batch.problem is not None):
            self.file.forget()  # it may have been in the middle of being written
            batch = self._look()
        return batch

    def _look(self) -> Batch | None:
        path, position, sum_state, body = self.segment.path, self.position, "good", None
        try:
            header = layout.parse_batch_header(self.file.at(position, BATCH_HEADER))
        except FormatError:
            return None
        try:
            header, body = self.file.batch(position)
            problem = self.chain.refuses(header)
            if self.end_offset is not None and header.next_offset > self.end_offset:
                problem = f"its offsets reach beyond {self.end_offset}, where the segment ends"
        except FormatError as error:
            problem = str(error)
            sum_state = self._checksum_state(header)
        chain = "unchecked" if self.sparse or body is None else self.chain.state(header)
        return Batch(path, position, header, sum_state, chain, problem, body)

    def _checksum_state(self, header: BatchHeader) -> str:
        data = (
            b""
            if header.length > self.file.size - self.position
            else self.file.at(self.position, header.length)
        )
        if len(data) < header.length:
            return "unread"
        try:
            layout.check_checksum(data)
        except FormatError:
            return "bad"
        return "good"

    def _take(self, batch: Batch) -> Iterator[Finding]:
        header, expected = batch.header, self.chain.next_offset
        if not self.sparse and expected is not None and header.base_offset > expected:
            self.damaged = True
            text = f"the batches in front of byte {self.position} are missing"
            yield self._hole("hole", text, self.position, expected, header.base_offset)
            self.chain.jump(header.base_offset)
        if not self.damaged:
            known = self.chain.last_crc is not None
            self._index.compare(batch, self.chain.last_timestamp if known else None)
        problem = self._problem_of_records(batch)
        if problem is not None:
            self.damaged = True
            end = self.position + header.length
            yield self._hole("records", problem, end, header.base_offset, header.next_offset)
        self.chain.accept(header)
        self.totals.add(header)
        self.position += header.length

    def _problem_of_records(self, batch: Batch) -> str | None:
        try:
            records = batch.records()
            if records is None:
                self.totals.unopened += 1
                return None
            tombstones = expiring = False
            for record in records:
                tombstones |= record.key is not None and record.value is None
                expiring |= record.expiry is not None
        except FormatError as error:
            return str(error)
        attributes = batch.header.attributes
        if (tombstones and not attributes & layout.HAS_TOMBSTONES) or (
            expiring and not attributes & layout.HAS_EXPIRY
        ):
            return "it has tombstones or records that expire, and does not say so"
        return None

    # ---- what is behind something bad ----

    def _behind(self, batch: Batch | None) -> Iterator[Finding]:
        """Go on at the next good batch behind bad bytes, or end."""
        problem = "its magic number or its length is wrong" if batch is None else batch.problem
        expected = self._expected()
        found = self.file.find_batch(self.position + self._extent(batch), expected)
        if found is None:
            yield from self._tail(problem or "", expected)
            return
        self.damaged = True
        header, _ = self.file.batch(found)
        yield self._hole(
            "hole", f"{problem}; a good batch follows at byte {found}", found, expected, header.base_offset
        )
        self.chain.jump(header.base_offset)
        self.position = found

    def _expected(self) -> int:
        offset = self.chain.next_offset
        return self.segment.base_offset if offset is None else offset

    def _extent(self, batch: Batch | None) -> int:
        """How many bytes cannot be another batch: all of one whose header agrees with itself.

        A payload in it may look like a batch, by chance or by malice, and must not turn a torn write into
        damage.
        """
        if batch is None:
            return 1
        header = batch.header
        if batch.checksum == "good":
            return header.length
        try:
            layout.check_batch_header(header)
        except FormatError:
            return 1
        return header.length if header.base_offset == self._expected() else 1

    def _tail(self, problem: str, expected: int) -> Iterator[Finding]:
        """Judge bad bytes with no good batch behind them in this file."""
        start, self.position = self.position, self.file.size
        self.data_end = start
        zeros = self.file.zeros_from(start)
        index = self._index.content
        sealed = self.following is not None or self.sparse
        if sealed and zeros and self._after(expected) == expected:
            self.totals.allocated_bytes += self.file.size - start
        elif sealed:
            self.damaged = True
            reason = "zeros in the middle of the log" if zeros else problem
            following = self._after(expected)
            yield self._hole("hole", reason, self.file.size, expected, following, start)
            self.chain.jump(following)
        elif index is not None and index.end > start:
            self.damaged = True
            reason = "zeros" if zeros else problem
            yield self._lost(reason, start, expected, index)
        elif zeros:
            self.totals.allocated_bytes += self.file.size - start
        else:
            self.totals.tail_bytes += self.file.size - start
            if not self.moving:
                text = f"the last write was not finished ({problem}); a stop without a shutdown leaves this"
                yield self._finding("torn-tail", False, text, NOTHING, start, self.file.size, expected, None)

    def _after(self, expected: int) -> int | None:
        """Where the log goes on behind this segment, as far as anything tells."""
        told = self.end_offset if self.following is None else self.following
        if told is None and self._index.content is not None:
            told = self._index.content.next_offset
        return told if told is None or told >= expected else expected

    def _lost(self, reason: str, start: int, expected: int, index: IndexFile) -> Finding:
        text = f"{reason}; the index file tells that all was well up to byte {index.end}"
        following = max(expected, index.next_offset)
        self.chain.jump(following)
        return self._finding("lost", True, text, RESTORE, start, max(start, index.end), expected, following)

    # ---- the end ----

    def _end(self) -> Iterator[Item]:
        index = self._index.content
        told = self.damaged and index is not None and index.next_offset <= self._expected()
        if index is not None and index.end > self.data_end and not told:
            self.damaged = True
            yield self._lost("the file is shorter than it was", self.data_end, self._expected(), index)
        last = self._expected()
        if self.end_offset is not None:
            self.chain.jump(self.end_offset)
        checked, finding = self._index.result(self.damaged, self.data_end, {last, self.end_offset})
        yield checked
        if finding is not None:
            yield finding

    def _hole(
        self, kind: str, text: str, end: int, first: int, following: int | None, start: int | None = None
    ) -> Finding:
        if first == following:
            text += "; no message is missing"
        start = self.position if start is None else start
        return self._finding(kind, True, text, RESTORE, start, end, first, following)

    def _finding(
        self,
        kind: str,
        damage: bool,
        text: str,
        advice: str,
        position: int,
        end: int,
        first: int | None,
        following: int | None,
    ) -> Finding:
        return Finding(kind, damage, self.segment.path, text, advice, position, end, first, following)


class _IndexCheck:
    """An index file held against the batches of its segment, in step with the walk."""

    def __init__(self, index: Index, base_offset: int, sparse: bool) -> None:
        self.index = index
        self.sparse = sparse
        self.content = index.content
        self.base_offset = base_offset
        self.problem: str | None = None
        self._entries = index.content.entries() if index.content else iter(())
        self._entry = next(self._entries, None)
        self._count = 0
        self._attributes = 0
        self._epochs: list[tuple[int, int]] = []
        self._first_timestamp: int | None = None
        self._last_position = 0
        self._last: BatchHeader | None = None
        self._end = FIRST_POSITION

    def compare(self, batch: Batch, before: int | None) -> None:
        """Compare the entries up to a good batch; `before` is the largest timestamp in front, if known."""
        header, content = batch.header, self.content
        if content is None or batch.position >= content.end:
            return
        if self._entry is not None and self._entry.position <= batch.position:
            entry = self._entry
            told = (entry.position, entry.relative)
            if told != (batch.position, header.base_offset - self.base_offset):
                self.problem = f"its entry for byte {entry.position} is not a batch with that offset"
            elif before is not None and entry.before != before:
                self.problem = f"its entry for byte {entry.position} has a wrong timestamp"
            self._entry = next(self._entries, None)
        elif self._last_position == 0 and content.problem is None:
            self.problem = "it has no entry for the first batch"
        if self._first_timestamp is None and header.count:
            self._first_timestamp = header.base_timestamp
        self._count += header.count
        self._attributes |= header.attributes
        note_epoch(self._epochs, header)
        self._last_position = batch.position
        self._last = header
        self._end = batch.position + header.length

    def result(self, damaged: bool, end: int, next_offsets: set[int | None]) -> tuple[Index, Finding | None]:
        """Return the index with its state, and what there is to say about it.

        `end` is that of the data, `next_offsets` what may be named as the offset behind the segment.
        """
        index, content = self.index, self.content
        state = index.state
        if state == "damaged":
            text = "the index is damaged; it is ignored"
            return index, Finding("index-damaged", False, index.path, text, NOTHING)
        if state == "foreign":
            text = "the index belongs to another log; it is ignored"
            return index, Finding("index-foreign", False, index.path, text, NOTHING)
        if content is None:
            return index, None
        if damaged:
            return Index(index.path, "unchecked", content), None
        if self.problem is None and self._entry is not None:
            self.problem = f"its entry for byte {self._entry.position} is behind the data"
        if self.problem is None:
            self.problem = self._summary_problem(content, next_offsets if content.end == end else None)
        if self.problem is not None:
            text = f"the index is whole, but it is not that of this file: {self.problem}"
            wrong = Finding("index-wrong", True, index.path, text, REBUILD)
            return Index(index.path, "wrong", content), wrong
        return Index(index.path, "valid" if content.end == end else "stale", content), None

    def _summary_problem(self, content: IndexFile, next_offsets: set[int | None] | None) -> str | None:
        if content.end != self._end:
            return f"it ends at byte {content.end}, inside a batch"
        if next_offsets is not None and content.next_offset not in next_offsets:
            return f"it names {content.next_offset} as the next offset"
        if (content.count, content.last_position) != (self._count, self._last_position):
            return "it counts other batches"
        if self._first_timestamp is not None and content.first_timestamp != self._first_timestamp:
            return "it names another first timestamp"
        told, last = (content.last_timestamp, content.last_epoch), self._last
        if last is not None and told != (last.max_timestamp, last.epoch):
            return "it describes another last batch"
        unchained = self.sparse and content.last_crc == -1  # what follows was written behind another one
        if last is not None and content.last_crc != last.crc and not unchained:
            return "it describes another last batch"
        if (content.attributes, list(content.epochs)) != (self._attributes, self._epochs):
            return "it names other leader epochs or attributes"
        return None
