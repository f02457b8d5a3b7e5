# What tells when a message was to be sent, and which one it is. Included by _load.pyx.

cdef class Stamps:
    """The stamps of a run's messages: each message arrives once, and how long it took is counted.

    Args:
        messages: how many messages there are; their serial numbers are below this.

    Attributes:
        total: stamped messages received, each of them for the first time.
        latency: how long they took.
    """

    cdef readonly int64_t total
    cdef readonly Histogram latency
    cdef int64_t messages
    cdef uint8_t* seen

    def __cinit__(self, int64_t messages):
        self.messages = messages
        self.latency = Histogram()
        self.seen = <uint8_t*> calloc(<size_t> messages // 8 + 1, 1)
        if self.seen == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.seen)

    cdef int take(self, const uint8_t* value, size_t size, int64_t now) noexcept nogil:
        """A value was received at `now`: it begins with a stamp."""
        cdef int64_t at_ns
        cdef uint64_t serial
        cdef uint8_t bit
        if size < STAMP_BYTES:
            return BAD_STAMP
        memcpy(&at_ns, value, 8)
        memcpy(&serial, value + 8, 8)
        if serial >= <uint64_t> self.messages:
            return BAD_STAMP
        bit = <uint8_t> (1 << (serial & 7))
        if self.seen[serial >> 3] & bit:
            return DELIVERED_TWICE
        self.seen[serial >> 3] |= bit
        self.total += 1
        self.latency.add(now - at_ns)
        return OK
