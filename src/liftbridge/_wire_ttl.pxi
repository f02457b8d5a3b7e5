# How long a message lives, as its publisher says: the header Nats-TTL, in an envelope or in a NATS message.
# Included by _wire.pyx.
#
# The value is what NATS takes there (ADR-43): whole seconds, a duration such as 1h30m or 250ms, or "never". A value
# that is none of these is not guessed at: the message is refused.

cdef enum:
    TTL_BAD = -1
    TTL_NONE = 0

cdef const char* TTL_HEADER = b"nats-ttl"
cdef size_t TTL_HEADER_LENGTH = 8
cdef int64_t LONGEST_TTL = <int64_t> 1 << 61  # 73 years, so that no sum with a time of today overflows


cdef inline bint is_ttl_header(const uint8_t* name, size_t length) noexcept nogil:
    cdef size_t i
    if length != TTL_HEADER_LENGTH:
        return False
    for i in range(length):
        if (name[i] | 32 if 65 <= name[i] <= 90 else name[i]) != <uint8_t> TTL_HEADER[i]:
            return False
    return True


cdef int64_t duration_unit(const uint8_t** p, const uint8_t* end) noexcept nogil:
    """The nanoseconds of the unit at `p`, which is moved behind it; 0 for none."""
    cdef size_t left = end - p[0]
    cdef int64_t unit = 0
    cdef size_t length = 2
    if left >= 2 and memcmp(p[0], b"ns", 2) == 0:
        unit = 1
    elif left >= 2 and memcmp(p[0], b"us", 2) == 0:
        unit = 1000
    elif left >= 2 and memcmp(p[0], b"ms", 2) == 0:
        unit = 1000000
    elif left >= 1:
        length = 1
        if p[0][0] == c"s":
            unit = 1000000000
        elif p[0][0] == c"m":
            unit = <int64_t> 60 * 1000000000
        elif p[0][0] == c"h":
            unit = <int64_t> 3600 * 1000000000
    p[0] += length if unit else 0
    return unit


cdef int64_t parse_ttl(const uint8_t* p, size_t length) noexcept nogil:
    """A TTL in ns, TTL_NONE for "never", TTL_BAD when it is no TTL or not above zero."""
    cdef const uint8_t* end
    cdef int64_t total = 0, unit
    cdef double part
    cdef double scale
    cdef int digits
    while length and p[0] == 32:
        p += 1
        length -= 1
    while length and p[length - 1] == 32:
        length -= 1
    end = p + length
    if length == 5 and memcmp(p, b"never", 5) == 0:
        return TTL_NONE
    while p < end:
        part = 0
        digits = 0
        while p < end and 48 <= p[0] <= 57:
            part = part * 10 + (p[0] - 48)
            digits += 1
            p += 1
        if p < end and p[0] == c".":
            p += 1
            scale = 1
            while p < end and 48 <= p[0] <= 57:
                scale /= 10
                part += scale * (p[0] - 48)
                digits += 1
                p += 1
        if digits == 0:
            return TTL_BAD
        if p == end and total == 0 and digits == <int> length:
            unit = 1000000000
        else:
            unit = duration_unit(&p, end)
            if unit == 0:
                return TTL_BAD
        if part * unit >= LONGEST_TTL or total + <int64_t> (part * unit) >= LONGEST_TTL:
            return TTL_BAD
        total += <int64_t> (part * unit)
    return total if total > 0 else TTL_BAD


cdef int64_t nats_header_ttl(const uint8_t* p, size_t length) noexcept nogil:
    """The TTL in the header block of a NATS message; TTL_NONE when it has none."""
    cdef const uint8_t* end = p + length
    cdef const uint8_t* line_end
    cdef const uint8_t* colon
    while p < end:
        line_end = <const uint8_t*> memchr(p, 13, end - p)
        if line_end == NULL:
            return TTL_NONE
        colon = <const uint8_t*> memchr(p, c":", line_end - p)
        if colon != NULL and is_ttl_header(p, colon - p):
            return parse_ttl(colon + 1, line_end - colon - 1)
        p = line_end + 2
    return TTL_NONE
