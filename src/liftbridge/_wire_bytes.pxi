# Bytes: a growing buffer, protobuf's wire format, and the checks of text that a peer chose. Included by _wire.pyx.
#
# Readers return NULL or -1 for what is malformed and never look beyond the end they were given; writers rely on
# room that their caller reserved.

cdef struct Bytes:
    uint8_t* data
    size_t length
    size_t capacity


cdef inline void bytes_init(Bytes* b) noexcept nogil:
    b.data = NULL
    b.length = 0
    b.capacity = 0


cdef inline void bytes_free(Bytes* b) noexcept nogil:
    free(b.data)
    bytes_init(b)


cdef int bytes_reserve(Bytes* b, size_t more) noexcept nogil:
    """Make room for `more` bytes behind the used ones; 0, or -1 when memory is short."""
    cdef size_t wanted = b.length + more
    cdef size_t capacity
    cdef uint8_t* grown
    if wanted <= b.capacity:
        return 0
    capacity = b.capacity * 2 if b.capacity else 1024
    if capacity < wanted:
        capacity = wanted
    grown = <uint8_t*> realloc(b.data, capacity)
    if grown == NULL:
        return -1
    b.data = grown
    b.capacity = capacity
    return 0


cdef inline void put(Bytes* b, const void* data, size_t length) noexcept nogil:
    # Room was reserved by the caller.
    if length:
        memcpy(b.data + b.length, data, length)
        b.length += length


cdef inline void put_byte(Bytes* b, uint8_t value) noexcept nogil:
    b.data[b.length] = value
    b.length += 1


cdef object bytes_take(Bytes* b):
    """The content as a bytes object; the buffer is empty afterwards (and smaller, when it had grown large)."""
    cdef object taken = PyBytes_FromStringAndSize(<char*> b.data, b.length)
    b.length = 0
    if b.capacity > 4 * BATCH_BYTES:
        bytes_free(b)
    return taken


cdef int out_of_memory() except -1 nogil:
    with gil:
        raise MemoryError("no memory for the messages of a socket read")


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline void put_varint(Bytes* b, uint64_t value) noexcept nogil:
    while value >= 0x80:
        put_byte(b, <uint8_t> (value | 0x80))
        value >>= 7
    put_byte(b, <uint8_t> value)


cdef inline size_t field_size(size_t length) noexcept nogil:
    """Bytes of a length-delimited field with a one-byte tag; 0 when it is empty and so is left out."""
    return 1 + varint_size(length) + length if length else 0


cdef inline void put_field(Bytes* b, uint8_t number, const uint8_t* data, size_t length) noexcept nogil:
    if length:
        put_byte(b, (number << 3) | 2)
        put_varint(b, length)
        put(b, data, length)


cdef inline size_t number_size(uint64_t value) noexcept nogil:
    return 1 + varint_size(value) if value else 0


cdef inline void put_number(Bytes* b, uint8_t number, uint64_t value) noexcept nogil:
    if value:
        put_byte(b, number << 3)
        put_varint(b, value)


cdef inline const uint8_t* get_varint(const uint8_t* p, const uint8_t* end, uint64_t* value) noexcept nogil:
    """Read a varint; the position behind it, or NULL when it does not end in time."""
    cdef uint64_t result = 0
    cdef int shift = 0
    if p < end and p[0] < 0x80:
        value[0] = p[0]
        return p + 1
    while p < end and shift < 70:
        if shift < 64:
            result |= (<uint64_t> (p[0] & 0x7F)) << shift
        if p[0] < 0x80:
            value[0] = result
            return p + 1
        p += 1
        shift += 7
    return NULL


cdef struct Field:
    uint64_t number
    int wire          # 0 varint, 1 fixed64, 2 length-delimited, 5 fixed32, -1 a skipped group
    uint64_t value    # of a varint
    const uint8_t* data
    size_t length     # of a length-delimited field


cdef const uint8_t* skip_group(const uint8_t* p, const uint8_t* end, uint64_t number, int depth) noexcept nogil:
    """Skip the rest of a group whose start tag was read; NULL when it is malformed or nested too deeply."""
    cdef Field field
    while depth:
        p = get_scalar(p, end, &field)
        if p == NULL:
            return NULL
        if field.wire == 4:
            return p if field.number == number else NULL
        if field.wire == 3:
            p = skip_group(p, end, field.number, depth - 1)
            if p == NULL:
                return NULL
    return NULL


cdef const uint8_t* get_scalar(const uint8_t* p, const uint8_t* end, Field* field) noexcept nogil:
    cdef uint64_t tag = 0, length = 0
    p = get_varint(p, end, &tag)
    if p == NULL or tag >> 3 == 0 or tag >> 3 > 0x1FFFFFFF:
        return NULL
    field.number = tag >> 3
    field.wire = tag & 7
    field.length = 0
    field.data = p
    if field.wire == 0:
        return get_varint(p, end, &field.value)
    if field.wire == 2:
        p = get_varint(p, end, &length)
        if p == NULL or length > <uint64_t> (end - p):
            return NULL
        field.data = p
        field.length = <size_t> length
        return p + length
    if field.wire == 1:
        return p + 8 if end - p >= 8 else NULL
    if field.wire == 5:
        return p + 4 if end - p >= 4 else NULL
    if field.wire == 3 or field.wire == 4:
        return p
    return NULL


cdef inline const uint8_t* get_field(const uint8_t* p, const uint8_t* end, Field* field) noexcept nogil:
    """Read one field of a message; the position behind it, or NULL when the message is malformed."""
    p = get_scalar(p, end, field)
    if p == NULL or field.wire == 4:
        return NULL
    if field.wire == 3:
        field.wire = -1
        return skip_group(p, end, field.number, 64)
    return p


cdef int is_utf8(const uint8_t* p, size_t length) noexcept nogil:
    """1 when the bytes are valid UTF-8 (RFC 3629: no surrogates, no overlong forms), else 0."""
    cdef const uint8_t* end = p + length
    cdef uint64_t word
    cdef uint8_t c, second
    while p < end:
        if end - p >= 8:
            memcpy(&word, p, 8)
            if word & <uint64_t> 0x8080808080808080 == 0:
                p += 8
                continue
        c = p[0]
        if c < 0x80:
            p += 1
            continue
        if c < 0xC2 or c > 0xF4:
            return 0
        if c < 0xE0:
            if end - p < 2 or (p[1] & 0xC0) != 0x80:
                return 0
            p += 2
            continue
        if end - p < 3:
            return 0
        second = p[1]
        if (second & 0xC0) != 0x80 or (p[2] & 0xC0) != 0x80:
            return 0
        if c < 0xF0:
            if (c == 0xE0 and second < 0xA0) or (c == 0xED and second > 0x9F):
                return 0
            p += 3
            continue
        if end - p < 4 or (p[3] & 0xC0) != 0x80:
            return 0
        if (c == 0xF0 and second < 0x90) or (c == 0xF4 and second > 0x8F):
            return 0
        p += 4
    return 1


cdef int is_publish_subject(const uint8_t* p, size_t length, size_t limit) noexcept nogil:
    """1 when the bytes can stand as a subject in a PUB line: bounded, no white space or control characters,
    no empty token. Wildcards are allowed, as nats-server takes them literally."""
    cdef size_t i
    cdef uint8_t previous = 46
    if length == 0 or length > limit:
        return 0
    for i in range(length):
        if p[i] <= 32 or p[i] == 127:
            return 0
        if p[i] == 46 and previous == 46:
            return 0
        previous = p[i]
    return previous != 46
