# Times, counted in the buckets of an HdrHistogram. Included by _load.pyx.
#
# The layout is that of HdrHistogram with three significant digits: 2,048 buckets one ns wide, then 1,024 for each
# doubling, so that a bucket is never wider than a thousandth of what is in it. Counting is what the hot loops do, so it
# is here, where it takes a shift and an addition; reading percentiles off the counts is a loop over an array, which
# needs no library. The tests compare both with the package hdrhistogram.

cdef enum:
    HALF_BITS = 10
    HALF = 1 << HALF_BITS
    # Up to 2^42 ns, 73 minutes; what is longer counts as that long, and `max` tells it exactly.
    DOUBLINGS = 32
    BUCKETS = (DOUBLINGS + 1) * HALF


cdef class Histogram:
    """How often each time occurred, in ns, to three significant digits.

    Attributes:
        total: how many were recorded.
        max: the longest, exactly; 0 if there is none.
    """

    cdef int64_t* counts
    cdef readonly int64_t total
    cdef readonly int64_t max

    def __cinit__(self):
        self.counts = <int64_t*> calloc(BUCKETS, sizeof(int64_t))
        if self.counts == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.counts)

    cdef void add(self, int64_t value) noexcept nogil:
        cdef int doubling
        cdef int64_t index
        if value < 0:
            value = 0
        doubling = max(0, bits_of(<uint64_t> value) - HALF_BITS - 1)
        index = (<int64_t> doubling << HALF_BITS) + (value >> doubling)
        self.counts[min(index, <int64_t> BUCKETS - 1)] += 1
        self.total += 1
        self.max = max(self.max, value)

    def record(self, int64_t value):
        """Count a time in ns."""
        self.add(value)

    def merge(self, Histogram other not None):
        """Count everything that `other` has counted."""
        cdef int i
        for i in range(BUCKETS):
            self.counts[i] += other.counts[i]
        self.total += other.total
        self.max = max(self.max, other.max)

    def percentile(self, double percent):
        """Return the time in ns that `percent` of all do not exceed, to the width of its bucket; 0 if there is none."""
        cdef int64_t wanted = max(1, <int64_t> (percent * <double> self.total / 100.0 + 0.5))
        cdef int64_t seen = 0
        cdef int i
        for i in range(BUCKETS):
            seen += self.counts[i]
            if seen >= wanted:
                return min(highest(i), self.max)
        return self.max

    def buckets(self):
        """Return what was counted as a list of (longest time of a bucket in ns, count), shortest first."""
        return [(min(highest(i), self.max), self.counts[i]) for i in range(BUCKETS) if self.counts[i]]


cdef int64_t highest(int64_t index) noexcept:
    """The longest time that bucket `index` stands for."""
    cdef int64_t doubling = max(<int64_t> 0, (index >> HALF_BITS) - 1)
    return ((index - (doubling << HALF_BITS) + 1) << doubling) - 1
