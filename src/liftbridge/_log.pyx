# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The C core of the commit log: batches in, gRPC frames out.

Python decides when to append, read, roll and sync; everything that is done once per message is here, with
the GIL released around system calls and long loops. The layout of batches and records is documented in
`_batch.h`.

Invariants:

- Nothing read from disk is used before its bounds and its checksum were checked. What fails the check is a
  `CorruptBatchError`; no bytes on disk can crash the process.
- A `Segment`'s `end` is the end of valid data: it moves only after a whole batch has been written, and a
  write that fails is cut off again. Bytes below `end` never change.
- The fields of a `Segment` and its index are touched only with the GIL held, so a reader in one thread may
  run beside an append in another. Two appends at once, or an append beside a scan, are the caller's to
  prevent.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.stdint cimport UINT32_MAX, UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close

import os

cdef extern from "_crc32c.h" nogil:
    const char* crc32c_chosen_name
    void crc32c_init()
    uint32_t crc32c_any(uint32_t crc, const uint8_t* data, size_t length)
    uint32_t crc32c_by_table(uint32_t crc, const uint8_t* data, size_t length)
    uint64_t c_xxh64 "xxh64"(const uint8_t* data, size_t length)

cdef extern from "_batch.h" nogil:
    const uint32_t BATCH_HEADER
    const uint32_t BATCH_MAX
    const uint32_t BATCH_MAGIC

    ctypedef struct record_fields:
        const uint8_t* subject
        const uint8_t* reply
        const uint8_t* key
        const uint8_t* value
        const uint8_t* headers
        size_t subject_len
        size_t reply_len
        size_t key_len
        size_t value_len
        size_t headers_len
        bint has_key
        bint has_value
        int64_t timestamp

    ctypedef struct batch_info:
        uint32_t length
        uint32_t crc
        uint32_t last_delta
        uint32_t count
        uint32_t prev_crc
        int64_t base_offset
        int64_t base_timestamp
        int64_t max_timestamp
        uint64_t epoch

    ctypedef struct record_ref:
        int64_t offset

    ctypedef struct record_list:
        record_ref* refs
        size_t count

    size_t record_size(const record_fields* record)
    void record_write(uint8_t* out, const record_fields* record, size_t size, uint32_t delta)
    void batch_finish(uint8_t* batch, batch_info* info)
    int64_t batch_first_since(const uint8_t* batch, const batch_info* info, int64_t wanted)

cdef extern from "_segment.h" nogil:
    const size_t WINDOW_AHEAD

    ctypedef struct window:
        int fd
        int nowait
        uint8_t* data
        size_t ahead
        uint64_t end
        int error
        const char* reason
        uint64_t bad_at

    int write_all(int fd, const uint8_t* data, size_t length, uint64_t position)
    int truncate_to(int fd, uint64_t length)
    const uint8_t* window_at(window* w, uint64_t position, size_t needed)
    const uint8_t* window_bad(window* w, uint64_t position, const char* reason)
    const uint8_t* window_batch(window* w, uint64_t position, batch_info* info)
    int collect_forward(
        window* w, uint64_t position, int64_t first, int64_t limit, size_t prefix_len, size_t soft,
        size_t hard, record_list* found, size_t* total, int64_t* next_offset)
    int collect_reverse(
        window* w, uint64_t position, uint64_t stop, int64_t floor, int64_t last, size_t prefix_len,
        size_t hard, record_list* found, size_t* total, int64_t* next_offset)
    void write_frames(uint8_t* out, const record_list* found, int reverse, const uint8_t* prefix, size_t size)
    uint64_t find_batch_from(window* w, uint64_t start, int64_t next_offset)

crc32c_init()

CRC32C_IMPLEMENTATION = crc32c_chosen_name.decode()
MAX_BATCH_BYTES = BATCH_MAX

cdef enum:
    BUILDER_FIRST_CAPACITY = 64 * 1024
    BUILDER_KEPT_CAPACITY = 1024 * 1024
    INDEX_INTERVAL = 4096  # bytes of log per entry of the sparse index, at least
    HARD_LIMIT_FACTOR = 4  # a read takes part of a batch only where the whole is this often what was asked

SEGMENT_HEADER_BYTES = 4096  # where the first batch of a segment file begins
cdef uint64_t FIRST_POSITION = SEGMENT_HEADER_BYTES


class LogError(Exception):
    """Anything that is wrong with a log, as opposed to with how it is called."""


class CorruptBatchError(LogError):
    """Bytes in a segment file are not the batch that should be there.

    Attributes: `path` of the file, `position` of the batch in it, `reason`.
    """

    def __init__(self, path, position, reason):
        super().__init__(
            f"{path}: the batch at byte {position} is damaged: {reason}; restore the file from a copy, "
            "or recreate the stream to give up what it holds"
        )
        self.path = path
        self.position = position
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.path, self.position, self.reason)


cdef uint32_t crc32c_update(uint32_t crc, const uint8_t* data, size_t length) noexcept nogil:
    return crc32c_any(crc, data, length)


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0):
    """Return the CRC-32C of `data`, continuing from `crc`, the CRC of what came before."""
    cdef size_t length = data.shape[0]
    if length == 0:
        return crc
    with nogil:
        crc = crc32c_any(crc, &data[0], length)
    return crc


def crc32c_software(const uint8_t[::1] data not None, uint32_t crc=0):
    """Return what `crc32c` returns, computed without the processor's instruction."""
    cdef size_t length = data.shape[0]
    if length == 0:
        return crc
    with nogil:
        crc = crc32c_by_table(crc, &data[0], length)
    return crc


def xxh64(const uint8_t[::1] data not None):
    """Return the XXH64 (seed 0) of `data`, the hash stored next to a record's key."""
    cdef uint8_t nothing = 0
    cdef size_t length = data.shape[0]
    return c_xxh64(&data[0] if length else &nothing, length)


cdef class BatchBuilder:
    """One batch under construction: room for the batch header, then records, in one growing buffer.

    The buffer is kept between batches; after a batch of unusual size it shrinks again.
    """

    def __cinit__(self):
        self.buf = <uint8_t*>malloc(BUILDER_FIRST_CAPACITY)
        if self.buf == NULL:
            raise MemoryError
        self.capacity = BUILDER_FIRST_CAPACITY
        self._clear()

    def __dealloc__(self):
        free(self.buf)

    cdef void _clear(self) noexcept:
        self.length = BATCH_HEADER
        self.count = 0
        self.base_timestamp = 0
        self.max_timestamp = 0

    cdef int add(
        self,
        const uint8_t* subject, size_t subject_len,
        const uint8_t* reply, size_t reply_len,
        const uint8_t* key, Py_ssize_t key_len,
        const uint8_t* value, size_t value_len,
        const uint8_t* headers, size_t headers_len,
        int64_t timestamp,
    ) except -1 nogil:
        cdef record_fields record
        cdef size_t size
        record.subject = subject
        record.subject_len = subject_len
        record.reply = reply
        record.reply_len = reply_len
        record.key = key
        record.has_key = key_len >= 0
        record.key_len = key_len if key_len >= 0 else 0
        record.value = value
        record.has_value = value != NULL
        record.value_len = value_len
        record.headers = headers
        record.headers_len = headers_len
        record.timestamp = timestamp
        if subject_len > 0xFFFF or reply_len > 0xFFFF:
            raise ValueError("a subject or reply subject is longer than 65535 bytes; record not added")
        if self.count > 0 and timestamp < self.max_timestamp:
            raise ValueError("a record is older than the one before it; stamp with max(now, last timestamp)")
        # Each length is bounded before they are added up, so that the sum cannot wrap around.
        if (
            record.key_len > BATCH_MAX or value_len > BATCH_MAX or headers_len > BATCH_MAX
            or self.length + record_size(&record) > BATCH_MAX
        ):
            raise ValueError("the batch would be longer than MAX_BATCH_BYTES; append what it holds, then add")
        size = record_size(&record)
        if self.length + size > self.capacity:
            self._grow(self.length + size)
        record_write(self.buf + self.length, &record, size, self.count)
        self.length += size
        if self.count == 0:
            self.base_timestamp = timestamp
        self.max_timestamp = timestamp
        self.count += 1
        return 0

    cdef int _grow(self, size_t needed) except -1 nogil:
        cdef size_t capacity = self.capacity
        cdef uint8_t* buf
        while capacity < needed:
            capacity *= 2
        buf = <uint8_t*>realloc(self.buf, capacity)
        if buf == NULL:
            raise MemoryError("no memory for a batch; the record was not added")
        self.buf = buf
        self.capacity = capacity
        return 0

    def add_record(
        self,
        *,
        const uint8_t[::1] value,
        int64_t timestamp,
        const uint8_t[::1] subject not None=b"",
        const uint8_t[::1] reply not None=b"",
        const uint8_t[::1] key=None,
        const uint8_t[::1] headers not None=b"",
    ):
        """Add one record; for tests and for records the server itself writes.

        Arguments:
            value: the payload, or None for a tombstone.
            timestamp: ns since the epoch, not below that of the record before.
            subject, reply: the NATS subject and reply subject, at most 65535 bytes each.
            key: the key, or None for none; an empty key is a key.
            headers: a run of encoded entries of field 9 of the client's Message.

        Raises ValueError when the record cannot be added (then the batch is unchanged).
        """
        cdef uint8_t nothing = 0
        cdef const uint8_t* key_data = &nothing
        cdef const uint8_t* value_data = NULL
        if key is not None and key.shape[0]:
            key_data = &key[0]
        if value is not None:
            value_data = &value[0] if value.shape[0] else &nothing
        self.add(
            &subject[0] if subject.shape[0] else &nothing, subject.shape[0],
            &reply[0] if reply.shape[0] else &nothing, reply.shape[0],
            key_data, key.shape[0] if key is not None else -1,
            value_data, value.shape[0] if value is not None else 0,
            &headers[0] if headers.shape[0] else &nothing, headers.shape[0],
            timestamp,
        )

    @property
    def size(self):
        """Bytes of the batch as it would be written, header included."""
        return self.length

    def reset(self):
        """Forget the records, keep the buffer (or a smaller one, when the batch was far smaller than it)."""
        cdef uint8_t* buf
        if self.capacity > BUILDER_KEPT_CAPACITY and self.length < self.capacity // 4:
            buf = <uint8_t*>realloc(self.buf, BUILDER_KEPT_CAPACITY)
            if buf != NULL:  # a buffer that cannot shrink is still a buffer
                self.buf = buf
                self.capacity = BUILDER_KEPT_CAPACITY
        self._clear()


cdef struct index_entry:
    uint32_t relative  # offset of the batch, minus the segment's base offset
    uint32_t position  # where the batch begins in the file
    int64_t before     # largest timestamp of everything before it


cdef int _raise_for(window* w, path) except -1:
    """Turn what stopped a walk into the exception for it."""
    if w.reason != NULL:
        raise CorruptBatchError(path, w.bad_at, w.reason.decode())
    if w.error == ENOMEM:
        raise MemoryError
    raise OSError(w.error, os.strerror(w.error), str(path))  # EAGAIN becomes BlockingIOError


cdef class Segment:
    """An open segment file: its descriptor, the end of its data, its sparse index.

    A new Segment believes the file to hold nothing behind its header; `scan` or `load` tell it what is
    there. The descriptor is closed when the last reference goes, so whoever holds a Segment can read it,
    deleted file or not.

    Arguments:
        fd: open for reading (and writing, to append); the Segment owns it from now on.
        path: for messages.
        base_offset: offset of the first record the file holds or will hold.
        last_timestamp, last_epoch, last_crc: of the batch before the file's first, so that order and chain
            are checked across files too; a `last_crc` of -1 means unknown.
    """

    cdef readonly int fd
    cdef readonly object path
    cdef readonly int64_t base_offset
    cdef readonly int64_t next_offset
    cdef readonly uint64_t end            # position behind the last batch
    cdef readonly uint64_t last_position  # of the last batch; 0 when there is none
    cdef readonly uint64_t count          # records
    cdef readonly int64_t first_timestamp  # of the records in this file; 0 when there is none
    cdef readonly int64_t last_timestamp  # of the log up to here
    cdef readonly uint64_t last_epoch
    cdef readonly int64_t last_crc
    cdef readonly bint failed             # a write failed and what it left behind `end` could not be cut off
    cdef index_entry* index
    cdef size_t index_count
    cdef size_t index_capacity

    def __cinit__(
        self, int fd, path, int64_t base_offset, *,
        int64_t last_timestamp=0, uint64_t last_epoch=0, int64_t last_crc=-1,
    ):
        self.fd = fd
        self.path = path
        self.base_offset = base_offset
        self.next_offset = base_offset
        self.end = FIRST_POSITION
        self.last_timestamp = last_timestamp
        self.last_epoch = last_epoch
        self.last_crc = last_crc

    def __dealloc__(self):
        free(self.index)
        if self.fd >= 0:
            close(self.fd)

    def __repr__(self):
        return f"<Segment {self.path} offsets {self.base_offset} to {self.next_offset}, {self.end} bytes>"

    def fileno(self):
        """Return the descriptor; it stays open as long as the Segment is referenced."""
        return self.fd

    # ---- writing ----

    def append(self, BatchBuilder builder not None, int64_t base_offset, uint64_t epoch=0):
        """Write the builder's records as one batch, with one write to the page cache.

        Raises OSError when the write fails, with the file cut back to what it was; when that fails too,
        `failed` is set and nothing may be appended any more. Raises ValueError when the batch does not
        follow the last one.
        """
        cdef batch_info info
        cdef int error, cut = 0
        if self.failed:
            raise LogError(f"{self.path}: an earlier write left the file in an unknown state; reopen the log")
        if builder.count == 0:
            raise ValueError("a batch without records cannot be appended")
        if base_offset != self.next_offset:
            raise ValueError(f"a batch at offset {base_offset} cannot follow, {self.next_offset} is next")
        if epoch < self.last_epoch:
            raise ValueError(f"leader epoch {epoch} is older than the log's {self.last_epoch}")
        if builder.base_timestamp < self.last_timestamp:
            raise ValueError("a batch is older than the last record; stamp with max(now, last timestamp)")
        if self.end + builder.length > UINT32_MAX:
            raise ValueError(f"{self.path}: the segment would be longer than 4 GiB; roll it first")
        info.length = <uint32_t>builder.length
        info.last_delta = builder.count - 1
        info.count = builder.count
        info.prev_crc = <uint32_t>self.last_crc if self.last_crc >= 0 else 0
        info.base_offset = base_offset
        info.base_timestamp = builder.base_timestamp
        info.max_timestamp = builder.max_timestamp
        info.epoch = epoch
        self._reserve_entry()  # what can fail comes before the write
        with nogil:
            batch_finish(builder.buf, &info)
            error = write_all(self.fd, builder.buf, builder.length, self.end)
            if error:
                cut = truncate_to(self.fd, self.end)
        if error:
            self.failed = cut != 0
            raise OSError(error, os.strerror(error), str(self.path))
        self._note(&info, self.end)

    cdef int _reserve_entry(self) except -1 nogil:
        cdef size_t capacity
        cdef index_entry* index
        if self.index_count == self.index_capacity:
            capacity = self.index_capacity * 2 if self.index_capacity else 16
            index = <index_entry*>realloc(self.index, capacity * sizeof(index_entry))
            if index == NULL:
                raise MemoryError
            self.index = index
            self.index_capacity = capacity
        return 0

    cdef void _note(self, const batch_info* info, uint64_t position) noexcept nogil:
        """Take over a batch that is in the file; _reserve_entry has been called."""
        cdef index_entry* entry
        if self.index_count == 0 or position - self.index[self.index_count - 1].position >= INDEX_INTERVAL:
            entry = &self.index[self.index_count]
            entry.relative = <uint32_t>(info.base_offset - self.base_offset)
            entry.position = <uint32_t>position
            entry.before = self.last_timestamp
            self.index_count += 1
        if self.count == 0:
            self.first_timestamp = info.base_timestamp
        self.count += info.count
        self.last_position = position
        self.last_timestamp = info.max_timestamp
        self.last_epoch = info.epoch
        self.last_crc = info.crc
        self.next_offset = info.base_offset + info.last_delta + 1
        self.end = position + info.length

    # ---- knowing what is there ----

    def scan(self, uint64_t size):
        """Walk the batches from `end` up to byte `size` of the file, checking each and taking it over.

        Returns what is wrong with the bytes at `end`, where the walk stopped: "" when they are the end of
        the data (the end of the file, or a zero word where a batch would begin). Raises OSError when the
        file cannot be read.
        """
        cdef window w
        cdef bint done = False
        if size > UINT32_MAX:
            raise ValueError(f"{self.path}: no segment file is longer than 4 GiB, this one has {size} bytes")
        if size < self.end:
            return "the file is shorter than its data"
        self._open_window(&w, size, WINDOW_AHEAD, False)
        try:
            with nogil:
                while not done and self.end < size:
                    done = self._scan_one(&w)
            if w.reason != NULL:
                return w.reason.decode()
            if w.error:
                _raise_for(&w, self.path)
            return ""
        finally:
            free(w.data)

    cdef bint _scan_one(self, window* w) except -1 nogil:
        """Take over the batch at `end`; true when there is none, w.reason saying why unless the data ends."""
        cdef batch_info info
        cdef const char* wrong = NULL
        cdef uint64_t left = w.end - self.end
        cdef size_t word = 4 if left > 4 else <size_t>left
        cdef const uint8_t* start = window_at(w, self.end, word)
        cdef size_t i = 0
        if start == NULL:
            return True
        while i < word and start[i] == 0:
            i += 1
        if i == word or window_batch(w, self.end, &info) == NULL:
            return True
        if info.base_offset != self.next_offset:
            wrong = b"its base offset is not the next one"
        elif info.epoch < self.last_epoch:
            wrong = b"its leader epoch is older than the one before"
        elif info.base_timestamp < self.last_timestamp:
            wrong = b"its timestamp is older than the one before"
        elif self.last_crc >= 0 and info.prev_crc != 0 and info.prev_crc != self.last_crc:
            wrong = b"the batch it follows is another one"
        if wrong != NULL:
            window_bad(w, self.end, wrong)
            return True
        self._reserve_entry()
        self._note(&info, self.end)
        return False

    def check_last(self):
        """Read the last batch again; raises CorruptBatchError unless it is the one this Segment knows."""
        cdef window w
        cdef batch_info info
        if self.last_position == 0:
            return
        self._open_window(&w, self.end, 0, False)
        try:
            with nogil:
                if window_batch(&w, self.last_position, &info) != NULL and (
                    info.crc != self.last_crc
                    or self.last_position + info.length != self.end
                    or info.base_offset + info.last_delta + 1 != self.next_offset
                ):
                    window_bad(&w, self.last_position, b"it is not the batch the index file describes")
            if w.reason != NULL or w.error:
                _raise_for(&w, self.path)
        finally:
            free(w.data)

    def index_bytes(self):
        """Return the index as bytes, for `load`."""
        return PyBytes_FromStringAndSize(<char*>self.index, self.index_count * sizeof(index_entry))

    def load(
        self, const uint8_t[::1] entries not None, *, int64_t next_offset, uint64_t end,
        uint64_t last_position, uint64_t count, int64_t first_timestamp, int64_t last_timestamp,
        uint64_t last_epoch, int64_t last_crc,
    ):
        """Take over what `index_bytes` and the attributes of the same names said when the segment was whole.

        Raises ValueError when the entries cannot belong to such a segment.
        """
        cdef size_t size = entries.shape[0], i
        cdef size_t number = size // sizeof(index_entry)
        cdef index_entry* index
        if size % sizeof(index_entry) or (number == 0) != (count == 0) or end > UINT32_MAX:
            raise ValueError("the index has an impossible length")
        if count and not (FIRST_POSITION <= last_position < end and next_offset > self.base_offset):
            raise ValueError("the index describes an impossible segment")
        if count == 0 and (last_position or end != FIRST_POSITION or next_offset != self.base_offset):
            raise ValueError("the index describes an impossible empty segment")
        index = <index_entry*>malloc(size if size else 1)
        if index == NULL:
            raise MemoryError
        if size:
            memcpy(index, &entries[0], size)
        for i in range(number):
            if (
                index[i].position >= end
                or self.base_offset + index[i].relative >= next_offset
                or (i == 0 and (index[i].position != FIRST_POSITION or index[i].relative != 0))
                or (i > 0 and (index[i].position <= index[i - 1].position
                               or index[i].relative <= index[i - 1].relative
                               or index[i].before < index[i - 1].before))
            ):
                free(index)
                raise ValueError(f"entry {i} of the index is impossible")
        free(self.index)
        self.index = index
        self.index_count = self.index_capacity = number
        self.next_offset = next_offset
        self.end = end
        self.last_position = last_position
        self.count = count
        self.first_timestamp = first_timestamp
        self.last_timestamp = last_timestamp
        self.last_epoch = last_epoch
        self.last_crc = last_crc

    # ---- reading ----

    cdef void _open_window(self, window* w, uint64_t end, size_t ahead, bint nowait) noexcept:
        memset(w, 0, sizeof(window))
        w.fd = self.fd
        w.end = end
        w.ahead = ahead
        w.nowait = nowait

    cdef size_t _entry_at(self, int64_t offset) noexcept:
        """The last index entry not above `offset`, which is one of the segment's."""
        cdef size_t low = 0, high = self.index_count, middle
        while high - low > 1:
            middle = (low + high) // 2
            if self.base_offset + <int64_t>self.index[middle].relative <= offset:
                low = middle
            else:
                high = middle
        return low

    cdef uint64_t _stop_of(self, size_t entry) noexcept:
        """Where the stretch of the file that an index entry stands for ends."""
        return self.index[entry + 1].position if entry + 1 < self.index_count else self.end

    def read_frames(
        self, int64_t offset, int64_t limit, const uint8_t[::1] prefix not None, size_t max_bytes=262144,
        bint nowait=False,
    ):
        """Return the records from `offset` on and below `limit` as gRPC frames, and where to read on.

        Arguments:
            offset: first offset wanted; one that compaction removed, or one below the segment, means the
                next.
            limit: first offset not wanted.
            prefix: encoded fields of Message to put into every frame.
            max_bytes: of output, about; at least one record is returned, and usually whole batches.
            nowait: raise BlockingIOError instead of waiting for the disk.

        Returns (frames, next offset); no frames when the segment has none in the range. Raises
        CorruptBatchError when the first record wanted is in a damaged batch; records in front of one are
        returned.
        """
        cdef window w
        cdef record_list found
        cdef const uint8_t* prefix_data = &prefix[0] if prefix.shape[0] else NULL
        cdef size_t prefix_len = prefix.shape[0], total = 0, soft = max_bytes if max_bytes else 1
        cdef int64_t next_offset
        cdef uint64_t position
        cdef int rc
        if offset < self.base_offset:
            offset = self.base_offset
        if limit > self.next_offset:
            limit = self.next_offset
        if offset >= limit:
            return b"", offset
        next_offset = offset
        position = self.index[self._entry_at(offset)].position
        self._open_window(&w, self.end, soft, nowait)
        memset(&found, 0, sizeof(found))
        try:
            with nogil:
                rc = collect_forward(
                    &w, position, offset, limit, prefix_len, soft, soft * HARD_LIMIT_FACTOR,
                    &found, &total, &next_offset)
            if rc < 0:
                _raise_for(&w, self.path)
            return self._frames(&found, total, False, prefix_data, prefix_len), next_offset
        finally:
            free(w.data)
            free(found.refs)

    def read_frames_reverse(
        self, int64_t offset, int64_t floor, const uint8_t[::1] prefix not None, size_t max_bytes=262144,
        bint nowait=False,
    ):
        """Return the records from `offset` down to `floor`, newest first, and where to read on.

        As `read_frames` in the other direction: the second value is the next offset to ask for; when it is
        below `floor`, nothing is left.
        """
        cdef window w
        cdef record_list found
        cdef const uint8_t* prefix_data = &prefix[0] if prefix.shape[0] else NULL
        cdef size_t prefix_len = prefix.shape[0], total = 0, soft = max_bytes if max_bytes else 1
        cdef size_t last, first
        cdef int64_t next_offset
        cdef uint64_t position, stop
        cdef int rc
        if offset >= self.next_offset:
            offset = self.next_offset - 1
        if floor < self.base_offset:
            floor = self.base_offset
        if offset < floor:
            return b"", offset
        next_offset = offset
        first = last = self._entry_at(offset)
        stop = self._stop_of(last)
        while first > 0 and stop - self.index[first - 1].position <= soft:
            first -= 1
        self._open_window(&w, stop, 0, nowait)
        memset(&found, 0, sizeof(found))
        try:
            while True:
                position = self.index[first].position
                with nogil:
                    rc = collect_reverse(
                        &w, position, stop, floor, offset, prefix_len, soft * HARD_LIMIT_FACTOR,
                        &found, &total, &next_offset)
                if rc == 0 or w.reason == NULL or first == last:
                    break
                # Damage farther back must not hide the newer records: read no more than the last stretch.
                first = last
                w.reason = NULL
                found.count = total = 0
            if rc < 0:
                _raise_for(&w, self.path)
            return self._frames(&found, total, True, prefix_data, prefix_len), next_offset
        finally:
            free(w.data)
            free(found.refs)

    cdef object _frames(
        self, const record_list* found, size_t total, bint reverse, const uint8_t* prefix, size_t prefix_len
    ):
        cdef bytes frames = PyBytes_FromStringAndSize(NULL, total)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(frames)
        with nogil:
            write_frames(out, found, reverse, prefix, prefix_len)
        return frames

    def offset_at_or_after(self, int64_t timestamp):
        """Return the offset of the first record not older than `timestamp` (ns), or -1 when all are older."""
        cdef window w
        cdef batch_info info
        cdef const uint8_t* batch
        cdef size_t low = 0, high = self.index_count, middle
        cdef uint64_t position, stop
        cdef int64_t found = -1
        if self.count == 0 or self.last_timestamp < timestamp:
            return -1
        # The last entry before which everything is older: the record wanted is in its stretch.
        while high - low > 1:
            middle = (low + high) // 2
            if self.index[middle].before < timestamp:
                low = middle
            else:
                high = middle
        position = self.index[low].position
        stop = self._stop_of(low)
        self._open_window(&w, stop, INDEX_INTERVAL, False)
        try:
            with nogil:
                while position < stop and found == -1:
                    batch = window_batch(&w, position, &info)
                    if batch == NULL:
                        break
                    if info.max_timestamp >= timestamp:
                        found = batch_first_since(batch, &info, timestamp)
                        if found < 0:
                            window_bad(&w, position, b"a record in it is malformed")
                            break
                    position += info.length
            if w.reason != NULL or w.error:
                _raise_for(&w, self.path)
            assert found >= 0
            return found
        finally:
            free(w.data)


def find_batch(int fd, path, uint64_t start, uint64_t size, int64_t next_offset):
    """Return the first position from `start` on at which a whole, valid batch lies, or -1.

    The file has `size` bytes. Only batches with an offset of at least `next_offset` count, and none inside
    the bad batch that begins at `start`, if one does. Tells a torn tail, behind which there is nothing, from
    damage in the middle. Raises OSError when the file cannot be read.
    """
    cdef window w
    cdef uint64_t position
    memset(&w, 0, sizeof(w))
    w.fd = fd
    w.end = size
    w.ahead = WINDOW_AHEAD
    try:
        with nogil:
            position = find_batch_from(&w, start, next_offset)
        if w.error or w.reason != NULL:
            _raise_for(&w, path)
        return -1 if position == UINT64_MAX else position
    finally:
        free(w.data)
