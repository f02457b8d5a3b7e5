# What the data plane (_wire.pyx) uses of the log core, C to C.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t


cdef class BatchBuilder:
    # One batch under construction: room for the batch header, then records, in one growing C buffer.
    cdef uint8_t* buf            # owned, NULL before the first record; header space first
    cdef size_t length           # bytes used, header space included
    cdef size_t capacity
    cdef readonly uint32_t count  # records added
    cdef readonly int64_t base_timestamp
    cdef readonly int64_t max_timestamp
    cdef uint16_t attributes     # of the batch: has tombstones, has records that expire

    cdef void _clear(self) noexcept
    cdef int _grow(self, size_t needed) except -1 nogil

    # Append one record. `key_len` is -1 for no key; a NULL `value` is a null value (a tombstone), an empty
    # one has an address; `headers` is a run of encoded field-9 entries of the client Message (may be NULL
    # when headers_len is 0); `expiry` is 0 for never. Timestamps are ns since the epoch and must not be older
    # than that of the record before. Returns 0; raises, taking the GIL, MemoryError when memory is short and
    # ValueError when the record cannot be stored (a subject over 65535 bytes, an older timestamp, a batch over
    # BATCH_MAX); then the batch is unchanged.
    cdef int add(
        self,
        const uint8_t* subject, size_t subject_len,
        const uint8_t* reply, size_t reply_len,
        const uint8_t* key, Py_ssize_t key_len,
        const uint8_t* value, size_t value_len,
        const uint8_t* headers, size_t headers_len,
        int64_t timestamp, int64_t expiry,
    ) except -1 nogil


cdef uint32_t crc32c_update(uint32_t crc, const uint8_t* data, size_t length) noexcept nogil
