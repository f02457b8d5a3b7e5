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
from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport ENOMEM
from libc.stdint cimport INT64_MAX, UINT32_MAX, UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
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
    const uint16_t BATCH_CODEC
    const uint16_t BATCH_ENCRYPTED
    const uint16_t BATCH_CODED
    const uint16_t BATCH_CONTROL
    const uint16_t BATCH_TOMBSTONES
    const uint16_t BATCH_EXPIRY

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
        int64_t expiry

    ctypedef struct batch_info:
        uint32_t length
        uint32_t crc
        uint32_t last_delta
        uint32_t count
        uint32_t prev_crc
        uint32_t raw_length
        uint16_t attributes
        uint16_t unsynced
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
    int64_t batch_next(const batch_info* info)
    uint16_t unsynced_encode(int64_t records)
    int64_t unsynced_proof(uint16_t number, int64_t base_offset)
    void batch_finish(uint8_t* batch, batch_info* info)
    uint32_t batch_length(const uint8_t* batch)
    const char* batch_check(const uint8_t* batch, uint32_t length, batch_info* info)
    int64_t batch_first_since(const uint8_t* records, const batch_info* info, int64_t wanted)
    int64_t batch_last_expiry(const uint8_t* records, const batch_info* info)

cdef extern from "_segment.h" nogil:
    const size_t WINDOW_AHEAD

    ctypedef struct window
    ctypedef const uint8_t* (*body_opener)(
        window* w, const uint8_t* batch, const batch_info* info) noexcept nogil
    ctypedef struct window:
        int fd
        int nowait
        uint8_t* data
        size_t ahead
        uint64_t position
        uint64_t end
        int error
        const char* reason
        uint64_t bad_at
        int64_t bad_first
        int64_t bad_next
        int64_t now
        bint all_coded
        body_opener opener
        void* context
        int64_t expected
        int sparse

    int allocate_to(int fd, uint64_t start, uint64_t length)
    int write_all(int fd, const uint8_t* data, size_t length, uint64_t position)
    int truncate_to(int fd, uint64_t length)
    const uint8_t* window_at(window* w, uint64_t position, size_t needed)
    const uint8_t* window_bad(window* w, uint64_t position, const char* reason)
    const uint8_t* window_batch(window* w, uint64_t position, batch_info* info)
    int window_holds_batch(const window* w, uint64_t position)
    int window_follows(window* w, uint64_t position, const batch_info* info)
    const uint8_t* window_records(window* w, const uint8_t* batch, const batch_info* info)
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
ATTRIBUTE_EXPIRY = BATCH_EXPIRY  # in `attributes`: some records expire

cdef enum:
    BUILDER_FIRST_CAPACITY = 1024  # most partitions are idle, or get a message now and then
    BUILDER_KEPT_CAPACITY = 1024 * 1024
    INDEX_INTERVAL = 4096  # bytes of log per entry of the sparse index, at least
    HARD_LIMIT_FACTOR = 4  # a read takes part of a batch only where the whole is this often what was asked

SEGMENT_HEADER_BYTES = 4096  # where the first batch of a segment file begins
cdef uint64_t FIRST_POSITION = SEGMENT_HEADER_BYTES


class LogError(Exception):
    """Anything that is wrong with a log, as opposed to with how it is called."""


class CorruptBatchError(LogError):
    """Bytes in a segment file are not the batch that should be there.

    Attributes: `path` of the file, `position` of the bytes in it, `reason`; `first_offset` and `next_offset`
    of the records that are lost with them (from the one on, below the other), -1 when that is not known.
    """

    def __init__(self, path, position, reason, first_offset=-1, next_offset=-1):
        lost = f" with the offsets {first_offset} to {next_offset - 1}" if first_offset >= 0 else ""
        super().__init__(
            f"{path}: damaged at byte {position}{lost}: {reason}; restore the file from a copy, or accept the "
            "loss with `liftbridge log repair`; everything else of the log stays readable"
        )
        self.path = path
        self.position = position
        self.reason = reason
        self.first_offset = first_offset
        self.next_offset = next_offset

    def __reduce__(self):
        return type(self), (self.path, self.position, self.reason, self.first_offset, self.next_offset)


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

    The buffer is allocated by the first record and kept between batches; after a batch of unusual size it
    shrinks again.
    """

    def __cinit__(self):
        self._clear()

    def __dealloc__(self):
        free(self.buf)

    cdef void _clear(self) noexcept:
        self.length = BATCH_HEADER
        self.count = 0
        self.base_timestamp = 0
        self.max_timestamp = 0
        self.attributes = 0

    cdef int add(
        self,
        const uint8_t* subject, size_t subject_len,
        const uint8_t* reply, size_t reply_len,
        const uint8_t* key, Py_ssize_t key_len,
        const uint8_t* value, size_t value_len,
        const uint8_t* headers, size_t headers_len,
        int64_t timestamp, int64_t expiry,
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
        record.expiry = expiry
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
        if record.has_key and not record.has_value:
            self.attributes |= BATCH_TOMBSTONES
        if expiry:
            self.attributes |= BATCH_EXPIRY
        self.count += 1
        return 0

    cdef int _grow(self, size_t needed) except -1 nogil:
        cdef size_t capacity = self.capacity if self.capacity else BUILDER_FIRST_CAPACITY
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
        int64_t expiry=0,
    ):
        """Add one record; for tests and for records the server itself writes.

        Arguments:
            value: the payload, or None for a tombstone.
            timestamp: ns since the epoch, not below that of the record before.
            subject, reply: the NATS subject and reply subject, at most 65535 bytes each.
            key: the key, or None for none; an empty key is a key.
            headers: a run of encoded entries of field 9 of the client's Message.
            expiry: when readers stop seeing the record, ns since the epoch; 0 for never.

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
            timestamp, expiry,
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

    def release(self):
        """Give the buffer back, if it holds no records; the next record allocates a new one."""
        if self.count == 0:
            free(self.buf)
            self.buf = NULL
            self.capacity = 0


include "_log_received.pxi"


cdef struct index_entry:
    uint32_t relative  # offset of the batch, minus the segment's base offset
    uint32_t position  # where the batch begins in the file
    int64_t before     # largest timestamp of everything before it


cdef struct epoch_entry:
    uint64_t epoch
    int64_t start  # the first offset that can belong to the epoch


cdef class _Bodies:
    """What a walk over coded batches needs and leaves: the codec, and the bodies that it has opened."""

    cdef object codec
    cdef list opened

    def __cinit__(self, codec):
        self.codec = codec
        self.opened = []


cdef const uint8_t* open_body(window* w, const uint8_t* batch, const batch_info* info) noexcept with gil:
    """The window's opener: ask the codec, once per batch."""
    cdef _Bodies bodies = <_Bodies> w.context
    cdef bytes body
    w.reason = b"its body could not be opened"
    if bodies.codec is None:
        w.reason = b"its body is compressed or encrypted, and the log was opened without the means to read it"
        return NULL
    try:
        body = bodies.codec.open(
            PyMemoryView_FromMemory(<char*> batch + BATCH_HEADER, info.length - BATCH_HEADER, PyBUF_READ),
            attributes=info.attributes, base_offset=info.base_offset, epoch=info.epoch, count=info.count,
            last_delta=info.last_delta, base_timestamp=info.base_timestamp, max_timestamp=info.max_timestamp,
            raw_length=info.raw_length,
        )
    except ValueError as error:
        body = str(error).encode()
        bodies.opened.append(body)  # the reason must live until it is raised
        w.reason = PyBytes_AS_STRING(body)
        return NULL
    except MemoryError:
        w.reason = NULL
        w.error = ENOMEM
        return NULL
    if len(body) != info.raw_length:
        w.reason = b"its body has another length than its header says"
        return NULL
    w.reason = NULL
    bodies.opened.append(body)
    return <const uint8_t*> PyBytes_AS_STRING(body)


cdef int _raise_for(window* w, path) except -1:
    """Turn what stopped a walk into the exception for it."""
    if w.reason != NULL:
        raise CorruptBatchError(path, w.bad_at, w.reason.decode(), w.bad_first, w.bad_next)
    if w.error == ENOMEM:
        raise MemoryError
    raise OSError(w.error, os.strerror(w.error), str(path))  # EAGAIN becomes BlockingIOError


cdef class Segment:
    """An open segment file: its descriptor, the end of its data, its sparse index, its leader epochs.

    A new Segment believes the file to hold nothing behind its header; `scan` or `load` tell it what is
    there. The descriptor is closed when the last reference goes, so whoever holds a Segment can read it,
    deleted file or not.

    Arguments:
        fd: open for reading (and writing, to append); the Segment owns it from now on.
        path: for messages.
        base_offset: offset of the first record the file holds or will hold.
        last_timestamp, last_epoch, last_crc: of the batch before the file's first, so that order and chain
            are checked across files too; a `last_crc` of -1 means unknown.
        end_offset: for a sparse segment, one that compaction or repair has written, the offset behind its
            range, in which offsets may be missing; -1 for any other.
        codec: encodes and decodes bodies (see `liftbridge.log.codec`); None leaves them as they are.
    """

    cdef readonly int fd
    cdef readonly object path
    cdef readonly object codec
    cdef readonly int64_t base_offset
    cdef readonly int64_t next_offset
    cdef readonly int64_t end_offset
    cdef readonly uint64_t end            # position behind the last batch
    cdef readonly uint64_t last_position  # of the last batch; 0 when there is none
    cdef readonly uint64_t count          # records
    cdef readonly int64_t first_timestamp  # of the records in this file; 0 when there is none
    cdef readonly int64_t last_timestamp  # of the log up to here
    cdef readonly uint64_t last_epoch
    cdef readonly int64_t last_crc
    cdef readonly uint16_t attributes     # of all batches together
    cdef readonly bint failed             # a write failed and what it left behind `end` could not be cut off
    cdef readonly list holes              # see `skip`
    cdef readonly int64_t proven_offset   # of what `scan` has seen: all below it was on disk once
    cdef public int64_t synced_offset     # of the log; what batches to come tell
    cdef bint seals                       # whether the codec does anything to batches to come
    cdef bint encrypted                   # whether every batch must be encrypted, so that none can be forged
    cdef bint after_hole
    cdef uint64_t preallocate             # most bytes to ask for ahead of the data; 0 for none
    cdef uint64_t allocated               # the file's length, as far as it was asked for ahead
    cdef index_entry* index
    cdef size_t index_count
    cdef size_t index_capacity
    cdef epoch_entry* epoch_list
    cdef size_t epoch_count

    def __cinit__(
        self, int fd, path, int64_t base_offset, *,
        int64_t last_timestamp=0, uint64_t last_epoch=0, int64_t last_crc=-1, int64_t end_offset=-1,
        codec=None,
    ):
        self.fd = fd
        self.path = path
        self.codec = codec
        self.seals = codec is not None and codec.seals
        self.encrypted = codec is not None and codec.encrypted
        self.base_offset = base_offset
        self.next_offset = base_offset
        self.end_offset = end_offset
        self.end = FIRST_POSITION
        self.last_timestamp = last_timestamp
        self.last_epoch = last_epoch
        self.last_crc = last_crc
        self.holes = []

    def __dealloc__(self):
        free(self.index)
        free(self.epoch_list)
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
        if builder.count == 0:
            raise ValueError("a batch without records cannot be appended")
        info.attributes = builder.attributes
        info.last_delta = builder.count - 1
        info.count = builder.count
        info.raw_length = <uint32_t>(builder.length - BATCH_HEADER)
        info.base_offset = base_offset
        info.base_timestamp = builder.base_timestamp
        info.max_timestamp = builder.max_timestamp
        info.epoch = epoch
        if self.seals:
            self._write_sealed(builder.buf + BATCH_HEADER, &info)
        else:
            self._write(builder.buf, builder.length, &info)

    def append_control(self, uint64_t epoch, int64_t timestamp):
        """Write the control batch that begins a leader epoch at `next_offset`; it takes no offset itself.

        `timestamp` is ns since the epoch. Raises as `append`.
        """
        cdef batch_info info
        cdef uint8_t batch[80]
        assert sizeof(batch) == BATCH_HEADER
        memset(&info, 0, sizeof(info))
        info.attributes = BATCH_CONTROL
        info.base_offset = self.next_offset
        info.base_timestamp = info.max_timestamp = timestamp
        info.epoch = epoch
        self._write(batch, BATCH_HEADER, &info)

    def append_gap(self, int64_t next_offset):
        """Write that there are no records from `next_offset` of the segment up to the given one, as in the log
        that this one is copied from. Raises as `append`."""
        cdef batch_info info
        cdef uint8_t batch[80]
        while self.next_offset < next_offset:
            memset(&info, 0, sizeof(info))
            info.attributes = BATCH_CONTROL
            info.base_offset = self.next_offset
            info.last_delta = <uint32_t>min(next_offset - self.next_offset, UINT32_MAX)
            info.base_timestamp = info.max_timestamp = self.last_timestamp
            info.epoch = self.last_epoch
            self._write(batch, BATCH_HEADER, &info)

    def append_received(self, ReceivedBatches received not None, size_t first, size_t stop, opener):
        """Write the batches `first` to `stop` (excluded) of those received, which follow each other without a
        gap, as they are: only what their headers tell of the log that they were in becomes that of this one.

        One write to the page cache; in an encrypted segment, where each is sealed anew, one each. `opener`
        opens bodies that are compressed. Raises as `append`, and then none is there; of an encrypted
        segment, some of them may be.
        """
        assert first < stop <= received.number, (first, stop, received.number)
        if self.encrypted:
            for at in range(first, stop):
                self._seal_received(received, at, opener)
        else:
            self._write_received(received, first, stop)

    cdef int _seal_received(self, ReceivedBatches received, size_t at, opener) except -1:
        cdef batch_info info = received.infos[at]
        cdef const uint8_t* batch = received.at(at)
        cdef uint8_t control[80]
        cdef bytes opened
        if info.attributes & BATCH_CONTROL:
            self._write(control, BATCH_HEADER, &info)
            return 0
        if not info.attributes & BATCH_CODEC:
            self._write_sealed(batch + BATCH_HEADER, &info)
            return 0
        opened = opener.open(
            PyMemoryView_FromMemory(<char*> batch + BATCH_HEADER, info.length - BATCH_HEADER, PyBUF_READ),
            attributes=info.attributes, base_offset=info.base_offset, epoch=info.epoch, count=info.count,
            last_delta=info.last_delta, base_timestamp=info.base_timestamp, max_timestamp=info.max_timestamp,
            raw_length=info.raw_length,
        )
        info.attributes &= ~BATCH_CODEC
        self._write_sealed(<const uint8_t*> PyBytes_AS_STRING(opened), &info)
        return 0

    cdef int _write_received(self, ReceivedBatches received, size_t first, size_t stop) except -1:
        cdef size_t start = received.positions[first], at
        cdef size_t length = received.positions[stop - 1] + received.infos[stop - 1].length - start
        cdef batch_info* info = &received.infos[first]
        cdef bytes copied
        cdef uint8_t* out
        cdef uint32_t before = <uint32_t>self.last_crc if self.last_crc >= 0 else 0
        cdef uint64_t position = self.end
        self._check_follows(info, length)
        self._reserve(stop - first)
        copied = PyBytes_FromStringAndSize(NULL, length)
        out = <uint8_t*> PyBytes_AS_STRING(copied)
        with nogil:
            memcpy(out, received.data + start, length)
            for at in range(first, stop):
                info = &received.infos[at]
                info.unsynced = unsynced_encode(info.base_offset - self.synced_offset)
                info.prev_crc = before
                batch_finish(out + (received.positions[at] - start), info)
                before = info.crc
        self._put(out, length)
        for at in range(first, stop):
            self._note(&received.infos[at], position)
            position += received.infos[at].length
        return 0

    cdef int _write_sealed(self, const uint8_t* content, batch_info* info) except -1:
        cdef bytes body, batch
        records = PyMemoryView_FromMemory(<char*> content, info.raw_length, PyBUF_READ)
        info.attributes, body = self.codec.seal(
            records, attributes=info.attributes, base_offset=info.base_offset, epoch=info.epoch,
            count=info.count, last_delta=info.last_delta, base_timestamp=info.base_timestamp,
            max_timestamp=info.max_timestamp,
        )
        batch = PyBytes_FromStringAndSize(NULL, BATCH_HEADER + len(body))
        memcpy(PyBytes_AS_STRING(batch) + BATCH_HEADER, PyBytes_AS_STRING(body), len(body))
        return self._write(<uint8_t*> PyBytes_AS_STRING(batch), len(batch), info)

    cdef int _write(self, uint8_t* batch, size_t length, batch_info* info) except -1:
        """Write a batch whose body is in place and whose header is not, and take it over."""
        self._check_follows(info, length)
        info.length = <uint32_t>length
        info.unsynced = unsynced_encode(info.base_offset - self.synced_offset)
        info.prev_crc = <uint32_t>self.last_crc if self.last_crc >= 0 else 0
        self._reserve(1)  # what can fail comes before the write
        with nogil:
            batch_finish(batch, info)
        self._put(batch, length)
        self._note(info, self.end)
        return 0

    cdef int _check_follows(self, const batch_info* info, size_t length) except -1:
        """Raise unless `length` bytes of batches that begin with this one may be written now."""
        if self.failed:
            raise LogError(f"{self.path}: an earlier write left the file in an unknown state; reopen the log")
        if info.base_offset != self.next_offset:
            raise ValueError(f"a batch at offset {info.base_offset} cannot follow, {self.next_offset} is next")
        if info.epoch < self.last_epoch:
            raise ValueError(f"leader epoch {info.epoch} is older than the log's {self.last_epoch}")
        if info.base_timestamp < self.last_timestamp:
            raise ValueError("a batch is older than the last record; stamp with max(now, last timestamp)")
        if self.end_offset >= 0 or self.holes:
            raise ValueError(f"{self.path}: a sparse or damaged segment takes nothing; roll it first")
        if self.end + length > UINT32_MAX:
            raise ValueError(f"{self.path}: the segment would be longer than 4 GiB; roll it first")
        return 0

    cdef int _put(self, const uint8_t* data, size_t length) except -1:
        """Write finished batches behind the data; the caller takes them over."""
        cdef int error, cut = 0
        with nogil:
            if self.end + length > self.allocated and self.preallocate:
                self._allocate(self.end + length)
            error = write_all(self.fd, data, length, self.end)
            if error:
                cut = truncate_to(self.fd, self.end)
        if error:
            self.allocated = 0
            self.failed = cut != 0
            raise OSError(error, os.strerror(error), str(self.path))
        return 0

    cdef void _allocate(self, uint64_t needed) noexcept nogil:
        """Ask for room ahead of the data: as much again as there is, so that a small file stays small."""
        cdef uint64_t ahead = self.end if self.end < self.preallocate else self.preallocate
        cdef uint64_t start = self.allocated if self.allocated > self.end else self.end
        if allocate_to(self.fd, start, needed + ahead) == 0:
            self.allocated = needed + ahead
        else:
            self.preallocate = 0  # not a matter of this batch: the write itself tells what is wrong, if anything

    def preallocating(self, uint64_t most):
        """From now on ask the file system for up to `most` bytes ahead of the data; 0 ends that."""
        self.preallocate = most

    def trim(self):
        """Cut off what was asked for ahead and not used. Raises OSError."""
        cdef int error
        self.preallocate = 0
        if self.allocated > self.end:
            error = truncate_to(self.fd, self.end)
            if error:
                raise OSError(error, os.strerror(error), str(self.path))
        self.allocated = 0

    cdef int _reserve(self, size_t more) except -1 nogil:
        """Room for the index entries and the epochs of so many more batches."""
        cdef size_t capacity
        cdef void* grown
        if self.index_count + more > self.index_capacity:
            capacity = self.index_capacity * 2 if self.index_capacity else 4
            while capacity < self.index_count + more:
                capacity *= 2
            grown = realloc(self.index, capacity * sizeof(index_entry))
            if grown == NULL:
                raise MemoryError
            self.index = <index_entry*>grown
            self.index_capacity = capacity
        grown = realloc(self.epoch_list, (self.epoch_count + more) * sizeof(epoch_entry))
        if grown == NULL:
            raise MemoryError
        self.epoch_list = <epoch_entry*>grown
        return 0

    cdef void _note(self, const batch_info* info, uint64_t position) noexcept nogil:
        """Take over a batch that is in the file; _reserve has been called."""
        cdef index_entry* entry
        if (
            self.index_count == 0 or self.after_hole
            or position - self.index[self.index_count - 1].position >= INDEX_INTERVAL
        ):
            entry = &self.index[self.index_count]
            entry.relative = <uint32_t>(info.base_offset - self.base_offset)
            entry.position = <uint32_t>position
            entry.before = self.last_timestamp
            self.index_count += 1
            self.after_hole = False
        if self.count == 0 and info.count:
            self.first_timestamp = info.base_timestamp
        # The first batch of a file repeats the epoch that it is of, as the files before may be removed.
        if info.epoch > self.last_epoch or (self.epoch_count == 0 and info.epoch):
            self.epoch_list[self.epoch_count].epoch = info.epoch
            self.epoch_list[self.epoch_count].start = info.base_offset
            self.epoch_count += 1
        self.count += info.count
        self.attributes |= info.attributes
        self.last_position = position
        self.last_timestamp = info.max_timestamp
        self.last_epoch = info.epoch
        # Behind a sparse segment the chain begins anew: what the next batch followed once may be gone.
        self.last_crc = info.crc if self.end_offset < 0 else -1
        self.next_offset = batch_next(info)
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
        self._open_window(&w, size, WINDOW_AHEAD, False, None)
        try:
            with nogil:
                while not done and self.end < size:
                    done = self._scan_one(&w)
            if w.reason != NULL:
                return w.reason.decode()
            if w.error:
                _raise_for(&w, self.path)
            if self.end_offset >= 0:
                self.next_offset = self.end_offset
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
        if self.end_offset >= 0:
            if info.base_offset < self.next_offset or batch_next(&info) > self.end_offset:
                wrong = b"its offsets are not in the place that is left for them"
        elif info.base_offset != self.next_offset:
            wrong = b"its base offset is not the next one"
        if wrong != NULL:
            pass
        elif info.epoch < self.last_epoch:
            wrong = b"its leader epoch is older than the one before"
        elif info.base_timestamp < self.last_timestamp:
            wrong = b"its timestamp is older than the one before"
        elif self.end_offset < 0 and self.last_crc >= 0 and info.prev_crc not in (0, self.last_crc):
            wrong = b"the batch it follows is another one"
        if wrong != NULL:
            window_bad(w, self.end, wrong)
            return True
        self._reserve(1)
        self._note(&info, self.end)
        self.proven_offset = max(self.proven_offset, unsynced_proof(info.unsynced, info.base_offset))
        return False

    def skip(self, uint64_t position, reason):
        """Go on behind damage: the batch at `position`, not before `end`, is good, and the next for `scan`.

        What lies between becomes a hole, (first offset lost, offset behind it, position, position behind it,
        reason) in `holes`; reads that meet it raise CorruptBatchError. Raises CorruptBatchError when the
        batch is not good, or not one that may follow.
        """
        cdef window w
        cdef batch_info info
        assert position >= self.end
        self._open_window(&w, position + BATCH_MAX, 0, False, None)
        try:
            w.end = os.fstat(self.fd).st_size
            if window_batch(&w, position, &info) != NULL and info.base_offset < self.next_offset:
                window_bad(&w, position, b"its base offset is not above the one before the damage")
            if w.reason != NULL or w.error:
                _raise_for(&w, self.path)
        finally:
            free(w.data)
        self.holes.append((self.next_offset, info.base_offset, self.end, position, reason))
        self.next_offset = info.base_offset
        self.end = position
        self.last_crc = -1
        self.after_hole = True

    def lose_until(self, int64_t next_offset, uint64_t size, reason):
        """Everything from `end` to byte `size` and to `next_offset` is lost: the last hole of the file."""
        assert next_offset >= self.next_offset and size >= self.end
        self.holes.append((self.next_offset, next_offset, self.end, size, reason))
        self.next_offset = next_offset
        self.last_crc = -1

    def check_last(self):
        """Read the last batch again; raises CorruptBatchError unless it is the one this Segment knows."""
        cdef window w
        cdef batch_info info
        if self.last_position == 0:
            return
        self._open_window(&w, self.end, 0, False, None)
        try:
            with nogil:
                if window_batch(&w, self.last_position, &info) != NULL and (
                    (self.last_crc >= 0 and info.crc != self.last_crc)
                    or self.last_position + info.length != self.end
                    or (batch_next(&info) != self.next_offset and self.end_offset < 0)
                ):
                    window_bad(&w, self.last_position, b"it is not the batch the index file describes")
            if w.reason != NULL or w.error:
                _raise_for(&w, self.path)
        finally:
            free(w.data)

    def index_bytes(self):
        """Return the index as bytes, for `load`."""
        return PyBytes_FromStringAndSize(<char*>self.index, self.index_count * sizeof(index_entry))

    @property
    def epochs(self):
        """The leader epochs that begin in this file, as (epoch, first offset that can belong to it)."""
        return tuple([(self.epoch_list[i].epoch, self.epoch_list[i].start) for i in range(self.epoch_count)])

    def load(
        self, const uint8_t[::1] entries not None, *, epochs, int64_t next_offset, uint64_t end,
        uint64_t last_position, uint64_t count, int64_t first_timestamp, int64_t last_timestamp,
        uint64_t last_epoch, int64_t last_crc, uint16_t attributes,
    ):
        """Take over what `index_bytes` and the attributes of the same names said when the segment was whole.

        Raises ValueError when the entries cannot belong to such a segment.
        """
        cdef size_t size = entries.shape[0], i
        cdef size_t number = size // sizeof(index_entry), epoch_count = len(epochs)
        cdef index_entry* index
        cdef epoch_entry* epoch_list
        cdef bint empty = end == FIRST_POSITION
        if size % sizeof(index_entry) or (number == 0) != empty or end > UINT32_MAX:
            raise ValueError("the index has an impossible length")
        if not empty and not (FIRST_POSITION <= last_position < end and next_offset >= self.base_offset):
            raise ValueError("the index describes an impossible segment")
        if self.end_offset >= 0 and next_offset != self.end_offset:
            raise ValueError("the index describes another range than the segment's header")
        if empty and (last_position or count or (next_offset != self.base_offset and self.end_offset < 0)):
            raise ValueError("the index describes an impossible empty segment")
        index = <index_entry*>malloc(size if size else 1)
        epoch_list = <epoch_entry*>malloc((epoch_count + 1) * sizeof(epoch_entry))
        if index == NULL or epoch_list == NULL:
            free(index)
            free(epoch_list)
            raise MemoryError
        if size:
            memcpy(index, &entries[0], size)
        for i in range(number):
            if (
                index[i].position >= end
                or self.base_offset + index[i].relative > next_offset
                or (i == 0 and index[i].position != FIRST_POSITION)
                or (i > 0 and (index[i].position <= index[i - 1].position
                               or index[i].relative < index[i - 1].relative
                               or index[i].before < index[i - 1].before))
            ):
                free(index)
                free(epoch_list)
                raise ValueError(f"entry {i} of the index is impossible")
        for i in range(epoch_count):
            epoch_list[i].epoch, epoch_list[i].start = epochs[i]
        free(self.index)
        free(self.epoch_list)
        self.index = index
        self.index_count = self.index_capacity = number
        self.epoch_list = epoch_list
        self.epoch_count = epoch_count
        self.next_offset = next_offset
        self.end = end
        self.last_position = last_position
        self.count = count
        self.first_timestamp = first_timestamp
        self.last_timestamp = last_timestamp
        self.last_epoch = last_epoch
        self.last_crc = last_crc
        self.attributes = attributes

    # ---- reading ----

    cdef void _open_window(self, window* w, uint64_t end, size_t ahead, bint nowait, _Bodies bodies) noexcept:
        """Begin a walk; `bodies`, which must outlive it, is needed by those that look into batches."""
        memset(w, 0, sizeof(window))
        w.fd = self.fd
        w.end = end
        w.ahead = ahead
        w.nowait = nowait
        w.bad_first = w.bad_next = -1
        w.all_coded = self.encrypted
        w.opener = open_body
        w.context = <void*> bodies
        w.expected = -1
        w.sparse = self.end_offset >= 0

    cdef uint64_t _begin_at(self, window* w, size_t entry) noexcept nogil:
        """Where the stretch of an index entry begins; a walk from there knows which batch it comes to."""
        w.expected = self.base_offset + <int64_t>self.index[entry].relative
        return self.index[entry].position

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

    cdef uint64_t _stop_of(self, size_t entry):
        """Where the stretch of the file that an index entry stands for ends."""
        cdef uint64_t stop = self.index[entry + 1].position if entry + 1 < self.index_count else self.end
        for hole in self.holes:
            if self.index[entry].position < hole[2] < stop:
                stop = hole[2]
        return stop

    cdef int64_t _readable_until(self, int64_t offset, int64_t limit) except -1:
        """The limit of a forward read from `offset`: before the next hole. Raises for an offset in a hole."""
        for first, following, position, _, reason in self.holes:
            if first <= offset < following:
                raise CorruptBatchError(self.path, position, reason, first, following)
            if offset < first < limit:
                limit = first
        return limit

    cdef int64_t _readable_from(self, int64_t offset, int64_t floor) except -1:
        """The floor of a reverse read from `offset`: behind the next hole. Raises for an offset in a hole."""
        for first, following, position, _, reason in self.holes:
            if first <= offset < following:
                raise CorruptBatchError(self.path, position, reason, first, following)
            if floor < following <= offset:
                floor = following
        return floor

    def read_frames(
        self, int64_t offset, int64_t limit, const uint8_t[::1] prefix not None, size_t max_bytes=262144,
        bint nowait=False, int64_t now=0,
    ):
        """Return the records from `offset` on and below `limit` as gRPC frames, and where to read on.

        Arguments:
            offset: first offset wanted; one that is missing, or one below the segment, means the next.
            limit: first offset not wanted.
            prefix: encoded fields of Message to put into every frame.
            max_bytes: of output, about; at least one record is returned, and usually whole batches.
            nowait: raise BlockingIOError instead of waiting for the disk.
            now: records that have expired by then (ns) are left out; 0 means the clock.

        Returns (frames, next offset); no frames when the part of the range that was looked at has none.
        Raises CorruptBatchError when the first record wanted is in damage; records in front of damage are
        returned.
        """
        cdef window w
        cdef record_list found
        cdef const uint8_t* prefix_data = &prefix[0] if prefix.shape[0] else NULL
        cdef size_t prefix_len = prefix.shape[0], total = 0, soft = max_bytes if max_bytes else 1
        cdef int64_t next_offset
        cdef uint64_t position
        cdef int rc
        cdef _Bodies bodies
        if offset < self.base_offset:
            offset = self.base_offset
        if limit > self.next_offset:
            limit = self.next_offset
        if offset >= limit:
            return b"", offset
        if self.holes:
            limit = self._readable_until(offset, limit)
        if self.index_count == 0:
            return b"", limit
        next_offset = offset
        bodies = _Bodies(self.codec)
        self._open_window(&w, self.end, soft, nowait, bodies)
        position = self._begin_at(&w, self._entry_at(offset))
        w.now = now
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

    def read_batches(self, int64_t offset, uint64_t epoch, size_t max_bytes, bint nowait=False):
        """Return the batches behind a place, as a replica is to get them, and what each of them is.

        Arguments:
            offset, epoch: where the replica's log ends, and the epoch of its last batch: of the batches
                without records at that offset it has those up to that epoch.
            max_bytes: of them together, unless the first is larger.
            nowait: raise BlockingIOError instead of waiting for the disk.

        Returns (bytes, [(first offset that it stands for, offset behind it, leader epoch, size)]); nothing
        when the segment has none. They are as they are stored, but decoded when the segment is encrypted, as
        its key stays here. Raises CorruptBatchError when the first of them is damaged, OSError.
        """
        cdef window w
        cdef batch_info info
        cdef uint64_t position, start
        cdef size_t total = 0
        cdef int64_t place = offset
        cdef bint found = False
        cdef _Bodies bodies = _Bodies(self.codec)
        cdef list described = [], decoded = []
        if self.index_count == 0:
            return b"", described
        self._open_window(&w, self.end, max(max_bytes, INDEX_INTERVAL), nowait, bodies)
        try:
            position = self._place_of(&w, offset, epoch)
            with nogil:
                while position < self.end:
                    if window_batch(&w, position, &info) == NULL or not window_follows(&w, position, &info):
                        break
                    found = batch_next(&info) > offset or (info.base_offset == offset and info.epoch > epoch)
                    if found:
                        break
                    position += info.length
            if w.reason != NULL or w.error:
                _raise_for(&w, self.path)
            start = position
            while found:
                if self.encrypted:
                    decoded.append(self._decoded(&w, position, &info))
                described.append((place, batch_next(&info), info.epoch, info.length))
                place = batch_next(&info)
                total += info.length
                position += info.length if not self.encrypted else batch_length(w.data + (position - w.position))
                if position >= self.end or total >= max_bytes or not window_holds_batch(&w, position):
                    break
                with nogil:
                    found = (
                        window_batch(&w, position, &info) != NULL
                        and window_follows(&w, position, &info)
                        and total + info.length <= max_bytes
                    )
            if self.encrypted:
                return b"".join(decoded), described
            if total == 0:
                return b"", described
            return PyBytes_FromStringAndSize(<char*> w.data + (start - w.position), total), described
        finally:
            free(w.data)

    cdef uint64_t _place_of(self, window* w, int64_t offset, uint64_t epoch) except? 0:
        """Where a walk to the batches behind a place begins: at the batch there, if none can be in front of it
        that belongs to them."""
        cdef batch_info info
        cdef size_t entry = self._entry_at(offset)
        if self.base_offset + <int64_t>self.index[entry].relative == offset:
            if window_batch(w, self.index[entry].position, &info) == NULL:
                _raise_for(w, self.path)
            if info.epoch > epoch:
                entry = self._entry_at(offset - 1)
                while entry > 0 and self.index[entry].relative == self.index[entry - 1].relative:
                    entry -= 1
        return self._begin_at(w, entry)

    cdef bytes _decoded(self, window* w, uint64_t position, batch_info* info):
        """A batch without what was done to its body; `info` is that of the batch as it is returned."""
        cdef const uint8_t* batch = w.data + (position - w.position)
        cdef const uint8_t* records = window_records(w, batch, info)
        cdef bytes plain
        if records == NULL:
            w.bad_at = position
            _raise_for(w, self.path)
        plain = PyBytes_FromStringAndSize(NULL, BATCH_HEADER + info.raw_length)
        info.attributes &= ~BATCH_CODED
        info.length = BATCH_HEADER + info.raw_length
        memcpy(PyBytes_AS_STRING(plain) + BATCH_HEADER, records, info.raw_length)
        batch_finish(<uint8_t*> PyBytes_AS_STRING(plain), info)
        return plain

    def read_frames_reverse(
        self, int64_t offset, int64_t floor, const uint8_t[::1] prefix not None, size_t max_bytes=262144,
        bint nowait=False, int64_t now=0,
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
        cdef _Bodies bodies
        if offset >= self.next_offset:
            offset = self.next_offset - 1
        if floor < self.base_offset:
            floor = self.base_offset
        if offset < floor:
            return b"", offset
        if self.holes:
            floor = self._readable_from(offset, floor)
        if self.index_count == 0:
            return b"", self.base_offset - 1
        next_offset = offset
        first = last = self._entry_at(offset)
        stop = self._stop_of(last)
        while first > 0 and not self.holes and stop - self.index[first - 1].position <= soft:
            first -= 1
        bodies = _Bodies(self.codec)
        self._open_window(&w, stop, 0, nowait, bodies)
        w.now = now
        memset(&found, 0, sizeof(found))
        try:
            while True:
                position = self._begin_at(&w, first)
                with nogil:
                    rc = collect_reverse(
                        &w, position, stop, floor, offset, prefix_len, soft * HARD_LIMIT_FACTOR,
                        &found, &total, &next_offset)
                if rc == 0 or w.reason == NULL or first == last:
                    break
                # Damage farther back must not hide the newer records: read no more than the last stretch.
                first = last
                w.reason = NULL
                w.bad_first = w.bad_next = -1
                found.count = total = 0
            if rc < 0:
                _raise_for(&w, self.path)
            if found.count == 0 and first == 0:
                next_offset = self.base_offset - 1
            if found.count == 0 and next_offset >= floor and self.holes:
                next_offset = floor - 1
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
        cdef const uint8_t* records
        cdef size_t low = 0, high = self.index_count, middle
        cdef uint64_t position, stop
        cdef int64_t found = -1
        cdef _Bodies bodies
        if self.count == 0 or self.last_timestamp < timestamp:
            return -1
        # The last entry before which everything is older: the record wanted is in its stretch.
        while high - low > 1:
            middle = (low + high) // 2
            if self.index[middle].before < timestamp:
                low = middle
            else:
                high = middle
        bodies = _Bodies(self.codec)
        self._open_window(&w, self.end, INDEX_INTERVAL, False, bodies)
        try:
            while True:
                position = self._begin_at(&w, low)
                stop = self._stop_of(low)
                with nogil:
                    while position < stop and found == -1:
                        batch = window_batch(&w, position, &info)
                        if batch == NULL or not window_follows(&w, position, &info):
                            break
                        if info.count and info.max_timestamp >= timestamp:
                            records = window_records(&w, batch, &info)
                            if records == NULL:
                                w.bad_at = position
                                break
                            found = batch_first_since(records, &info, timestamp)
                            if found < 0:
                                window_bad(&w, position, b"a record in it is malformed")
                                break
                        position += info.length
                if w.reason != NULL or w.error:
                    _raise_for(&w, self.path)
                # What would have been the answer was removed, or is lost: the next that is there.
                low += 1
                if found != -1 or low == self.index_count:
                    return found
        finally:
            free(w.data)

    def last_expiry(self):
        """Return when the last record expires (ns since the epoch), 2^63 - 1 when one never does.

        Reads the whole segment. Raises CorruptBatchError, OSError.
        """
        cdef window w
        cdef batch_info info
        cdef const uint8_t* batch
        cdef const uint8_t* records
        cdef uint64_t position = FIRST_POSITION
        cdef int64_t latest = 0, expiry
        cdef _Bodies bodies = _Bodies(self.codec)
        if self.holes or not self.attributes & BATCH_EXPIRY:
            return INT64_MAX
        self._open_window(&w, self.end, WINDOW_AHEAD, False, bodies)
        try:
            while position < self.end and latest < INT64_MAX:
                with nogil:
                    batch = window_batch(&w, position, &info)
                    records = window_records(&w, batch, &info) if batch != NULL else NULL
                if records == NULL:
                    w.bad_at = position
                    _raise_for(&w, self.path)
                expiry = batch_last_expiry(records, &info)
                if expiry < 0:
                    raise CorruptBatchError(self.path, position, "a record in it is malformed")
                latest = max(latest, expiry)
                bodies.opened.clear()
                position += info.length
            return latest
        finally:
            free(w.data)

    def boundary(self, int64_t offset):
        """Return (position, offset) of the batch that holds `offset`: where a truncation is to cut.

        With the batch go the control batches that lie before it at the same offset: whoever fetches from there
        gets them again. Without such a batch it is where batches at or above `offset` begin, or the end. Raises
        CorruptBatchError, OSError.
        """
        cdef window w
        cdef batch_info info
        cdef uint64_t position, first = 0
        cdef int64_t begin = -1
        cdef size_t entry
        if self.index_count == 0 or offset > self.next_offset:
            return self.end, self.next_offset
        entry = self._entry_at(offset - 1)
        while entry > 0 and self.index[entry - 1].relative == self.index[entry].relative:
            entry -= 1
        self._open_window(&w, self.end, INDEX_INTERVAL, False, None)
        position = self._begin_at(&w, entry - 1 if entry else 0)
        try:
            while position < self.end:
                if window_batch(&w, position, &info) == NULL or not window_follows(&w, position, &info):
                    _raise_for(&w, self.path)
                if info.base_offset != begin:
                    begin = info.base_offset
                    first = position
                if batch_next(&info) > offset or begin >= offset:
                    return first, min(begin, offset)
                position += info.length
            return position, offset
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
    w.bad_first = w.bad_next = -1
    try:
        with nogil:
            position = find_batch_from(&w, start, next_offset)
        if w.error or w.reason != NULL:
            _raise_for(&w, path)
        return -1 if position == UINT64_MAX else position
    finally:
        free(w.data)


include "_log_compact.pxi"
