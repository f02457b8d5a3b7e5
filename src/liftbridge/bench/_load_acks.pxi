# Which messages are outstanding, what their acks say, and how long they took. Included by _load.pyx.

cdef enum:
    OK = 0
    BAD_LENGTH
    BAD_STREAM
    BAD_ORDER
    BAD_PREFIX
    OVER_WINDOW
    OVER_FRAME_SIZE
    TOO_MUCH_CONTROL
    PUSHED
    TOO_LONG
    BAD_PROTOBUF
    BAD_LINE
    BAD_STAMP
    DELIVERED_TWICE
    OUT_OF_ORDER
    NO_SERIAL
    NOT_OUTSTANDING
    # Not a breach of the protocol: the server says no, `detail` has its words.
    REFUSED
    CALL_ENDED

_ERRORS = {
    BAD_LENGTH: "a frame's length does not fit its type or its padding",
    BAD_STREAM: "a frame belongs to no stream of ours",
    BAD_ORDER: "frames come in an order that HTTP/2 forbids",
    BAD_PREFIX: "a gRPC message says that it is compressed, which was not offered",
    OVER_WINDOW: "the server sent more than the flow-control window allows",
    OVER_FRAME_SIZE: "a frame is longer than SETTINGS_MAX_FRAME_SIZE allows",
    TOO_MUCH_CONTROL: "the server floods the connection with control frames",
    PUSHED: "the server pushes, which was switched off",
    TOO_LONG: "a message is longer than anything that was asked for",
    BAD_PROTOBUF: "a message cannot be decoded",
    BAD_LINE: "what came is not the NATS protocol",
    BAD_STAMP: "a message was delivered that no publisher of this run has sent",
    DELIVERED_TWICE: "a message was delivered twice",
    OUT_OF_ORDER: "a message is missing, or came out of order",
    NO_SERIAL: "an ack does not say which message it is for",
    NOT_OUTSTANDING: "an ack came for a message that is not outstanding: never sent, or acked before",
    REFUSED: "the server refuses a message",
    CALL_ENDED: "the server ended the call",
}


class RefusedError(Exception):
    """The server does not want what it was sent; `detail` has its answer as it came, `kind` says what it is:
    "ack" (protobuf `Ack`), "response" (`PublishResponse`), "json", "text" or "call" (see `header_blocks`)."""

    def __init__(self, message, kind, detail):
        super().__init__(message)
        self.kind = kind
        self.detail = detail


cdef class Acks:
    """The messages of one publisher that wait for an ack: a ring with the time of each.

    A message leaves the ring with its ack, so a second ack, and one for what was never sent, is found out.
    `window` bounds how far the newest message may be ahead of the oldest without an ack.
    """

    cdef readonly int64_t sent
    cdef readonly int64_t acked
    cdef readonly uint64_t offset_sum
    cdef readonly Histogram latency
    cdef int64_t* ring
    cdef int64_t window
    cdef int64_t oldest
    cdef int64_t now
    cdef uint64_t first_serial

    def __cinit__(self, int64_t window, uint64_t first_serial):
        if not 1 <= window <= 1 << 24:
            raise ValueError(f"a window lies between 1 and {1 << 24} messages, not {window}")
        self.window = window
        self.first_serial = first_serial
        self.latency = Histogram()
        self.ring = <int64_t*> calloc(<size_t> window, sizeof(int64_t))
        if self.ring == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.ring)

    cdef bint full(self) noexcept nogil:
        return self.sent - self.oldest >= self.window

    cdef void send(self, int64_t at_ns) noexcept nogil:
        """A message is sent whose time counts from `at_ns`; the window must not be full."""
        self.ring[self.sent % self.window] = at_ns
        self.sent += 1

    cdef int take(self, uint64_t serial, int64_t offset) noexcept nogil:
        """The ack of a message came, received at `now`."""
        cdef int64_t index = <int64_t> (serial - self.first_serial)
        cdef int64_t* slot
        if not self.oldest <= index < self.sent:
            return NOT_OUTSTANDING
        slot = &self.ring[index % self.window]
        if slot[0] == 0:
            return NOT_OUTSTANDING
        self.latency.add(self.now - slot[0])
        slot[0] = 0
        self.acked += 1
        self.offset_sum += <uint64_t> offset
        while self.oldest < self.sent and self.ring[self.oldest % self.window] == 0:
            self.oldest += 1
        return OK

    cdef int take_oldest(self) noexcept nogil:
        """An answer came that names no message, to the only one outstanding."""
        if self.oldest == self.sent:
            return NOT_OUTSTANDING
        return self.take(self.first_serial + <uint64_t> self.oldest, 0)


# Protobuf, as far as acks and messages need it

cdef struct Field:
    uint32_t number
    uint32_t wire
    uint64_t value          # of a varint; the length of bytes
    const uint8_t* data     # of bytes


cdef const uint8_t* get_varint(const uint8_t* p, const uint8_t* end, uint64_t* value) noexcept nogil:
    cdef int shift = 0
    value[0] = 0
    while p < end and shift < 64:
        value[0] |= (<uint64_t> (p[0] & 0x7F)) << shift
        if p[0] < 0x80:
            return p + 1
        p += 1
        shift += 7
    return NULL


cdef const uint8_t* get_field(const uint8_t* p, const uint8_t* end, Field* field) noexcept nogil:
    """Read a field; returns where the next begins, NULL if this is none."""
    cdef uint64_t tag
    p = get_varint(p, end, &tag)
    if p == NULL:
        return NULL
    field.number = <uint32_t> (tag >> 3)
    field.wire = <uint32_t> (tag & 7)
    if field.wire == 0:
        return get_varint(p, end, &field.value)
    if field.wire == 2:
        p = get_varint(p, end, &field.value)
        if p == NULL or field.value > <uint64_t> (end - p):
            return NULL
        field.data = p
        return p + field.value
    if field.wire != 1 and field.wire != 5:
        return NULL
    field.value = 8 if field.wire == 1 else 4
    return NULL if <uint64_t> (end - p) < field.value else p + field.value


cdef int take_ack(Acks acks, const uint8_t* p, size_t size) noexcept nogil:
    """Take the ack of a message: protobuf `Ack`."""
    cdef const uint8_t* end = p + size
    cdef Field field
    cdef uint64_t serial = 0
    cdef uint64_t offset = 0
    cdef bint named = False
    while p < end:
        p = get_field(p, end, &field)
        if p == NULL:
            return BAD_PROTOBUF
        if field.number == 4 and field.wire == 0:
            offset = field.value
        elif field.number == 6 and field.wire == 2:
            named = get_serial(field.data, <size_t> field.value, &serial)
        elif field.number == 10 and field.wire == 0 and field.value:
            return REFUSED
    return acks.take(serial, <int64_t> offset) if named else NO_SERIAL


cdef bint get_serial(const uint8_t* p, size_t size, uint64_t* serial) noexcept nogil:
    """Read a serial number, which is exactly 16 hexadecimal digits; false if it is none."""
    cdef uint64_t value = 0
    cdef uint8_t digit
    cdef int i
    if size != SERIAL_DIGITS:
        return False
    for i in range(SERIAL_DIGITS):
        digit = p[i]
        if c'0' <= digit <= c'9':
            digit -= c'0'
        elif c'a' <= digit <= c'f':
            digit -= c'a' - 10
        else:
            return False
        value = value << 4 | digit
    serial[0] = value
    return True


cdef void put_serial(uint8_t* p, uint64_t serial) noexcept nogil:
    """Write a serial number."""
    cdef int i
    cdef const char* digits = b"0123456789abcdef"
    for i in range(SERIAL_DIGITS):
        p[i] = <uint8_t> digits[(serial >> (4 * (SERIAL_DIGITS - 1 - i))) & 15]
