# Batches that have come from another server, for `Segment.append_received`. Part of `_log.pyx`.
#
# Invariant: nothing of them is used before `batch_check` has accepted the batch, and all of them follow each
# other; whoever has a `ReceivedBatches` need not look at the bytes again.

cdef class ReceivedBatches:
    """Batches that have come from the log of another server, as `Segment.read_batches` gave them: checked as
    a whole before any of them is used.

    Arguments:
        payload: the batches, one behind the other.
        first: the first offset that they stand for; where it is below that of the first batch, or where one
            ends below the next, there are no records (any more).

    Iterating gives (first offset that it stands for, offset behind it, leader epoch, size) of each. Raises
    ValueError, which says what is wrong with them.
    """

    cdef bytes payload
    cdef const uint8_t* data
    cdef batch_info* infos
    cdef size_t* positions
    cdef readonly size_t number
    cdef readonly int64_t first

    def __cinit__(self, bytes payload not None, int64_t first):
        cdef size_t length = len(payload), position = 0, room
        cdef const char* reason = NULL
        self.payload = payload
        self.data = <const uint8_t*> PyBytes_AS_STRING(payload)
        self.first = first
        room = length // BATCH_HEADER
        self.infos = <batch_info*>malloc((room + 1) * sizeof(batch_info))
        self.positions = <size_t*>malloc((room + 1) * sizeof(size_t))
        if self.infos == NULL or self.positions == NULL:
            raise MemoryError
        with nogil:
            while position < length and reason == NULL:
                reason = self._take(position, length - position)
                position += self.infos[self.number - 1].length
        if reason != NULL:
            raise ValueError(f"batch {self.number} of those received is not usable: {reason.decode()}")

    def __dealloc__(self):
        free(self.infos)
        free(self.positions)

    cdef const char* _take(self, size_t position, size_t left) noexcept nogil:
        """Check the batch at `position`, and take it over; returns what is wrong with it."""
        cdef batch_info* info = &self.infos[self.number]
        cdef int64_t place = batch_next(info - 1) if self.number else self.first
        cdef uint64_t epoch = (info - 1).epoch if self.number else 0
        cdef const char* reason
        cdef uint32_t length = batch_length(self.data + position) if left >= BATCH_HEADER else 0
        self.positions[self.number] = position
        self.number += 1
        info.length = 0
        if length == 0 or length > left:
            return b"its length is impossible"
        reason = batch_check(self.data + position, length, info)
        if reason != NULL:
            return reason
        if info.attributes & BATCH_ENCRYPTED:
            return b"it is encrypted under a key of another log"
        if info.base_offset < place:
            return b"it does not follow the one before"
        if info.epoch < epoch:
            return b"its leader epoch is older than that of the one before"
        return NULL

    cdef const uint8_t* at(self, size_t number) noexcept nogil:
        return self.data + self.positions[number]

    def __len__(self):
        return self.number

    def __getitem__(self, size_t number):
        if number >= self.number:
            raise IndexError(number)
        cdef batch_info* info = &self.infos[number]
        return (
            batch_next(info - 1) if number else self.first, batch_next(info), info.epoch, info.length,
        )

    def base_offset(self, size_t number):
        """Return the base offset of a batch."""
        assert number < self.number
        return self.infos[number].base_offset

    def base_timestamp(self, size_t number):
        """Return the timestamp of the first record of a batch, ns since the epoch."""
        assert number < self.number
        return self.infos[number].base_timestamp
