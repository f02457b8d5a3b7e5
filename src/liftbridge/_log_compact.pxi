# Compaction by key: walks over segments that note keys, count survivors, and copy them. Which record survives, and
# how a key is known, is in _compact.h; what is compacted and when, in log/compaction.py.
#
# A walk does its work in pieces of about a megabyte, so that whoever drives it can wait or stop in between; within a
# piece the GIL is released. A batch whose body is coded ends a piece, as opening and sealing it takes Python.

from libc.stdlib cimport calloc

cdef extern from "_compact.h" nogil:
    ctypedef struct key_slot:
        pass

    ctypedef struct key_map:
        key_slot* slots
        uint32_t capacity
        uint32_t room
        uint32_t used
        uint64_t secret[2]

    ctypedef struct survival:
        int64_t limit
        int64_t tombstones_below
        int64_t expired_below
        int64_t now
        int64_t counted_from

    ctypedef struct survivors:
        size_t length
        uint32_t count
        uint32_t tombstones
        int64_t first_timestamp
        int64_t last_timestamp
        uint16_t attributes

    uint64_t c_siphash13 "siphash13"(const uint64_t* secret, const uint8_t* data, size_t length)
    const char* keys_note(
        key_map* keys, const uint8_t* records, const batch_info* info, int64_t first, int64_t limit, int64_t* stop)
    const char* survivors_copy(
        const key_map* keys, const survival* rules, const uint8_t* records, const batch_info* info, uint8_t* out,
        survivors* kept)
    void survivors_header(batch_info* info, const survivors* kept)

cdef enum:
    COMPACT_PIECE = 1024 * 1024  # bytes that a step of a walk reads, and that are written at a time


def siphash13(const uint8_t[::1] data not None, uint64_t secret_low, uint64_t secret_high):
    """Return the SipHash-1-3 of `data` under a secret of 128 bits."""
    cdef uint8_t nothing = 0
    cdef size_t length = data.shape[0]
    cdef uint64_t[2] secret
    secret[0] = secret_low
    secret[1] = secret_high
    return c_siphash13(secret, &data[0] if length else &nothing, length)


cdef class CompactionKeys:
    """The keys of the dirty part of a log with their last offsets, and the rules by which records survive.

    Arguments:
        memory_bytes: the most that the map of keys takes.
        records: how many there are whose keys might be noted; a map for so many is large enough.
        secret: 16 random bytes.

    Raises ValueError when the memory does not suffice for one key, MemoryError when there is not so much.
    """

    cdef key_map keys
    cdef survival rules

    def __cinit__(self, uint64_t memory_bytes, uint64_t records, const uint8_t[::1] secret not None):
        cdef uint64_t most = memory_bytes // sizeof(key_slot)
        cdef uint64_t wanted = (records + 1) * 4 // 3 + 2
        if most < 2:
            raise ValueError(f"{memory_bytes} bytes are too few for a map of keys")
        if secret.shape[0] != sizeof(self.keys.secret):
            raise ValueError("the secret has 16 bytes")
        memcpy(self.keys.secret, &secret[0], sizeof(self.keys.secret))
        self.keys.capacity = <uint32_t>min(most, wanted, <uint64_t>UINT32_MAX)
        self.keys.room = max(self.keys.capacity // 4 * 3, <uint32_t>1)
        self.keys.slots = <key_slot*>calloc(self.keys.capacity, sizeof(key_slot))
        if self.keys.slots == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.keys.slots)

    def __len__(self):
        return self.keys.used

    def decide(
        self, *, int64_t limit, int64_t tombstones_below, int64_t expired_below, int64_t now, int64_t counted_from
    ):
        """Set the rules.

        Arguments:
            limit: nothing at or above this offset is removed.
            tombstones_below: a tombstone below this offset is removed.
            expired_below: a record below this offset is removed when it has expired.
            now: the time by which it has, ns since the epoch.
            counted_from: tombstones that stay are counted from this offset up to the limit.
        """
        self.rules.limit = limit
        self.rules.tombstones_below = min(tombstones_below, limit)
        self.rules.expired_below = min(expired_below, limit)
        self.rules.now = now
        self.rules.counted_from = counted_from


cdef class CompactionOutput:
    """Writes the batches of a compacted segment behind the header block of a new file.

    Arguments:
        fd: open for writing; stays the caller's.
        path: for messages.
        codec: seals the bodies, as that of a Segment does; None writes records as they are.

    Attributes: `end` is the position behind the last batch, `count` the number of records.
    """

    cdef int fd
    cdef object path
    cdef object codec
    cdef bint sealing
    cdef uint8_t* buf       # batches that are not in the file yet
    cdef size_t length
    cdef size_t capacity
    cdef uint64_t written
    cdef readonly uint64_t count

    def __cinit__(self, int fd, path, codec=None):
        self.fd = fd
        self.path = path
        self.codec = codec
        self.sealing = codec is not None and codec.seals
        self.written = FIRST_POSITION

    def __dealloc__(self):
        free(self.buf)

    @property
    def end(self):
        return self.written + self.length

    cdef int _make_room(self, size_t size) except -1 nogil:
        cdef size_t capacity
        cdef void* grown
        if self.length + size > self.capacity:
            capacity = max(self.length + size, <size_t>(2 * COMPACT_PIECE))
            grown = realloc(self.buf, capacity)
            if grown == NULL:
                raise MemoryError("no memory for a batch that is to be copied")
            self.buf = <uint8_t*>grown
            self.capacity = capacity
        return 0

    cdef int _finish_batch(self, batch_info* info) except -1 nogil:
        """Take over the batch whose body is in its place behind the last one, and whose header is not."""
        if self.sealing and info.count:
            with gil:
                self._seal(info)
        if self.written + self.length + info.length > UINT32_MAX:
            raise ValueError("a compacted segment would be longer than 4 GiB")
        batch_finish(self.buf + self.length, info)
        self.length += info.length
        self.count += info.count
        if self.length >= COMPACT_PIECE:
            self._flush()
        return 0

    cdef int _seal(self, batch_info* info) except -1:
        cdef bytes body
        records = PyMemoryView_FromMemory(
            <char*>self.buf + self.length + BATCH_HEADER, info.raw_length, PyBUF_READ)
        info.attributes, body = self.codec.seal(
            records, attributes=info.attributes, base_offset=info.base_offset, epoch=info.epoch,
            count=info.count, last_delta=info.last_delta, base_timestamp=info.base_timestamp,
            max_timestamp=info.max_timestamp,
        )
        self._make_room(BATCH_HEADER + <size_t>len(body))
        memcpy(self.buf + self.length + BATCH_HEADER, PyBytes_AS_STRING(body), len(body))
        info.length = <uint32_t>(BATCH_HEADER + len(body))
        return 0

    cdef int _flush(self) except -1 nogil:
        cdef int error = write_all(self.fd, self.buf, self.length, self.written)
        if error:
            with gil:
                raise OSError(error, os.strerror(error), str(self.path))
        self.written += self.length
        self.length = 0
        return 0

    def flush(self):
        """Write what is still held back. Raises OSError, after which any part may have been written."""
        with nogil:
            self._flush()


cdef class CompactionWalk:
    """A walk over the batches of one segment, for one purpose, in steps.

    Arguments:
        segment: stays open until the walk is gone.
        epoch: the leader epoch in which the log was before the segment.
        start: the offset from which on batches matter.

    Attributes, of what has been walked: `next_offset` is the offset behind it; `kept_bytes` of batches would remain
    with `kept_tombstones` tombstones, and `removed` records go; `stopped` is the first offset that `note` did not
    note, -1 while there is none.

    The steps return the bytes they have read, and raise CorruptBatchError, OSError or MemoryError.
    """

    cdef Segment segment
    cdef _Bodies bodies
    cdef window w
    cdef uint64_t position
    cdef uint64_t epoch
    cdef readonly int64_t next_offset
    cdef readonly int64_t stopped
    cdef readonly uint64_t kept_bytes
    cdef readonly uint64_t kept_tombstones
    cdef readonly uint64_t removed

    def __cinit__(self, Segment segment not None, uint64_t epoch, int64_t start=-1):
        self.segment = segment
        self.epoch = epoch
        self.bodies = _Bodies(segment.codec)
        segment._open_window(&self.w, segment.end, WINDOW_AHEAD, False, self.bodies)
        self.position = segment.end
        if segment.index_count:
            self.position = segment.index[segment._entry_at(max(start, segment.base_offset))].position
        self.next_offset = segment.base_offset
        self.stopped = -1

    def __dealloc__(self):
        free(self.w.data)

    @property
    def done(self):
        """Whether there is nothing left to walk."""
        return self.position >= self.w.end

    cdef const uint8_t* _next(self, batch_info* info, const uint8_t** batch) noexcept nogil:
        """The records of the batch at the position; NULL when it is damaged."""
        cdef const uint8_t* records
        batch[0] = window_batch(&self.w, self.position, info)
        if batch[0] == NULL:
            return NULL
        records = window_records(&self.w, batch[0], info)
        if records == NULL:
            self.w.bad_at = self.position
        return records

    cdef bint _pass(self, const batch_info* info, uint64_t start) noexcept nogil:
        """Go behind a batch; true when the step that began at `start` has done enough."""
        self.position += info.length
        self.next_offset = batch_next(info)
        if info.epoch > self.epoch:
            self.epoch = info.epoch
        return info.attributes & BATCH_CODED or self.position - start >= COMPACT_PIECE

    cdef uint64_t _end_step(self, uint64_t start) except? 0:
        self.bodies.opened.clear()
        if self.w.reason != NULL or self.w.error:
            _raise_for(&self.w, self.segment.path)
        return self.position - start

    def note(self, CompactionKeys keys not None, int64_t first, int64_t limit):
        """Note the keys of the next records with first <= offset < limit."""
        cdef uint64_t start = self.position
        cdef batch_info info
        cdef const uint8_t* batch
        cdef const uint8_t* records
        cdef const char* reason
        with nogil:
            while self.position < self.w.end:
                if self.next_offset >= limit:
                    self.stopped = limit
                    break
                records = self._next(&info, &batch)
                if records == NULL:
                    break
                reason = keys_note(&keys.keys, records, &info, first, limit, &self.stopped)
                if reason != NULL:
                    window_bad(&self.w, self.position, reason)
                    break
                if self._pass(&info, start) or self.stopped >= 0:
                    break
        return self._finish_note(start)

    cdef object _finish_note(self, uint64_t start):
        cdef uint64_t size = self._end_step(start)
        if self.stopped >= 0:
            self.position = self.w.end
        return size

    def measure(self, CompactionKeys keys not None):
        """Count what would survive of the next batches."""
        cdef uint64_t start = self.position
        cdef batch_info info
        cdef survivors kept
        cdef const uint8_t* batch
        cdef const uint8_t* records
        cdef const char* reason
        with nogil:
            while self.position < self.w.end:
                records = self._next(&info, &batch)
                if records == NULL:
                    break
                reason = survivors_copy(&keys.keys, &keys.rules, records, &info, NULL, &kept)
                if reason != NULL:
                    window_bad(&self.w, self.position, reason)
                    break
                if self._count(&info, &kept):
                    # How well the rest compresses is not known before it is done.
                    self.kept_bytes += (info.length - BATCH_HEADER) * kept.length // max(info.raw_length, 1)
                if self._pass(&info, start):
                    break
        return self._end_step(start)

    cdef bint _count(self, const batch_info* info, const survivors* kept) noexcept nogil:
        """Take over what became of a batch, its body not counted; true when there is something to write."""
        self.removed += info.count - kept.count
        self.kept_tombstones += kept.tombstones
        if kept.count or info.attributes & BATCH_CONTROL or info.epoch > self.epoch:
            self.kept_bytes += BATCH_HEADER
            return True
        return False

    def copy(self, CompactionKeys keys not None, CompactionOutput output not None):
        """Write what survives of the next batches to `output`."""
        cdef uint64_t start = self.position
        cdef batch_info info, header
        cdef survivors kept
        cdef const uint8_t* batch
        cdef const uint8_t* records
        cdef const char* reason
        with nogil:
            while self.position < self.w.end:
                records = self._next(&info, &batch)
                if records == NULL:
                    break
                output._make_room(BATCH_HEADER + <size_t>info.raw_length)
                reason = survivors_copy(
                    &keys.keys, &keys.rules, records, &info, output.buf + output.length + BATCH_HEADER, &kept)
                if reason != NULL:
                    window_bad(&self.w, self.position, reason)
                    break
                if self._count(&info, &kept):
                    header = info
                    survivors_header(&header, &kept)
                    self.kept_bytes += header.length - BATCH_HEADER
                    output._finish_batch(&header)
                if self._pass(&info, start):
                    break
        return self._end_step(start)
