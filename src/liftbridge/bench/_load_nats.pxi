# A publisher that speaks NATS, to a server that acks in one way or the other. Included by _load.pyx.

cdef enum:
    # nats-server's own limit is 4096.
    MAX_LINE = 8192
    MAX_ACK = 65536

cdef enum:
    NATS_INCOMPLETE = 0
    NATS_MESSAGE
    NATS_CONTROL
    NATS_BROKEN

cdef enum:
    ENVELOPE_ACKS = 0
    JSON_ACKS = 1

cdef enum:
    ACK_ENVELOPE_HEADER = 8
    ACK_ENVELOPE = 1

cdef uint8_t ENVELOPE_MAGIC[5]
ENVELOPE_MAGIC[:] = [0xB9, 0x0E, 0x43, 0xB4, 0]


cdef class NatsPublisher(Publisher):
    """A `Publisher` whose template is a whole PUB, payload and line end included.

    The connection has said CONNECT and subscribed to where acks go. `acks` says what these look like:

    * "envelope": Liftbridge's. The payload is an envelope with a protobuf `Ack`; its correlation id is the serial
    number.
    * "json": JetStream's. The last 16 characters of the subject are the serial number, the payload is JSON with either
      `"seq"` or `"error"`. An answer with NATS headers is a refusal too: nobody listens to the subject.
    """

    cdef int kind
    cdef int pongs_due

    def __cinit__(self, bytes template, *, str acks="envelope", **other):
        if acks not in ("envelope", "json"):
            raise ValueError(f"acks are envelope or json, not {acks}")
        self.kind = JSON_ACKS if acks == "json" else ENVELOPE_ACKS

    cdef void answer(self) noexcept nogil:
        while self.pongs_due and self.out_have + 6 <= self.out_room:
            memcpy(self.out + self.out_have, b"PONG\r\n", 6)
            self.out_have += 6
            self.pongs_due -= 1

    cdef bint put(self) noexcept nogil:
        if self.out_have + self.size > self.out_room:
            return False
        memcpy(self.out + self.out_have, self.template, self.size)
        self.out_have += self.size
        return True

    cdef void close(self) noexcept nogil:
        memcpy(self.out + self.out_have, b"PING\r\n", 6)
        self.out_have += 6

    cdef int receive(self) noexcept nogil:
        cdef const uint8_t* p = self.inp
        cdef const uint8_t* end = p + self.inp_have
        cdef size_t line, payload
        cdef int kind
        cdef int error = OK
        while p < end and error == OK:
            kind = nats_item(p, <size_t> (end - p), MAX_ACK, &line, &payload)
            if kind == NATS_INCOMPLETE:
                break
            if kind == NATS_BROKEN:
                error = BAD_LINE
            elif kind == NATS_MESSAGE:
                error = self.take(p, line, p + line + 2, payload)
                p += line + 2 + payload + 2
            else:
                error = self.control(p, line)
                p += line + 2
        self.inp_have = <size_t> (end - p)
        memmove(self.inp, p, self.inp_have)
        return error

    cdef int control(self, const uint8_t* p, size_t size) noexcept nogil:
        """Take a line that is no message."""
        if size == 4 and memcmp(p, b"PING", 4) == 0:
            self.pongs_due += 1
            return OK if self.pongs_due < MAX_LINE else TOO_MUCH_CONTROL
        if size == 4 and memcmp(p, b"PONG", 4) == 0:
            if self.phase == CLOSING:
                self.closed()
            return OK
        if size >= 4 and memcmp(p, b"-ERR", 4) == 0:
            with gil:
                self.detail_kind = "text"
            return self.refuse(p, size)
        return OK if size >= 3 and (memcmp(p, b"+OK", 3) == 0 or memcmp(p, b"INF", 3) == 0) else BAD_LINE

    cdef int take(self, const uint8_t* line, size_t size, const uint8_t* p, size_t length) noexcept nogil:
        """Take a message: an ack."""
        cdef int error
        if line[0] == c'H' or self.kind == JSON_ACKS:
            return self.take_json(line, size, p, length)
        if length < ACK_ENVELOPE_HEADER or memcmp(p, ENVELOPE_MAGIC, 5) != 0 or p[7] != ACK_ENVELOPE or not (
            ACK_ENVELOPE_HEADER <= p[5] <= length
        ):
            return NO_SERIAL
        error = take_ack(self.acks, p + p[5], length - p[5])
        if error == REFUSED:
            with gil:
                self.detail_kind = "ack"
            return self.refuse(p + p[5], length - p[5])
        return error

    cdef int take_json(self, const uint8_t* line, size_t size, const uint8_t* p, size_t length) noexcept nogil:
        cdef const uint8_t* space
        cdef uint64_t serial
        cdef int64_t offset = number_after(p, length, b'"seq":', 6)
        if line[0] == c'H' or offset < 0 or find(p, length, b'"error"', 7) != NULL:
            with gil:
                self.detail_kind = "json"
            return self.refuse(p, length)
        space = <const uint8_t*> memchr(line + 4, c' ', size - 4)
        if space == NULL or space - line < 4 + SERIAL_DIGITS:
            return NO_SERIAL
        if not get_serial(space - SERIAL_DIGITS, SERIAL_DIGITS, &serial):
            return NO_SERIAL
        return self.acks.take(serial, offset)


# The NATS protocol, as far as publishers and consumers need it

cdef int nats_item(
    const uint8_t* p, size_t size, int64_t limit, size_t* line, size_t* payload
) noexcept nogil:
    """Look at the line at `p`: its length without its end goes to `line`, that of the payload behind it to `payload`.

    Returns NATS_MESSAGE for a message that is there with its payload, NATS_CONTROL for a line that is none,
    NATS_INCOMPLETE while something is missing, NATS_BROKEN for what no NATS server sends, or a payload above `limit`.
    """
    cdef const uint8_t* newline = <const uint8_t*> memchr(p, c'\n', size)
    cdef int64_t length
    if newline == NULL:
        return NATS_BROKEN if size > MAX_LINE else NATS_INCOMPLETE
    line[0] = <size_t> (newline - p) - 1
    if newline - p < 2 or newline[-1] != c'\r' or line[0] > MAX_LINE:
        return NATS_BROKEN
    if line[0] < 4 or (memcmp(p, b"MSG ", 4) != 0 and memcmp(p, b"HMSG", 4) != 0):
        return NATS_CONTROL
    length = last_number(p, line[0])
    if not 0 <= length <= limit:
        return NATS_BROKEN
    payload[0] = <size_t> length
    if size < line[0] + 2 + payload[0] + 2:
        return NATS_INCOMPLETE
    return NATS_MESSAGE if memcmp(newline + 1 + payload[0], b"\r\n", 2) == 0 else NATS_BROKEN


cdef int64_t last_number(const uint8_t* line, size_t size) noexcept nogil:
    """The number at the end of a line, behind a space; -1 if there is none."""
    cdef size_t start = size
    cdef int64_t value = 0
    while start > 0 and c'0' <= line[start - 1] <= c'9':
        start -= 1
    if start == size or size - start > 9 or start == 0 or line[start - 1] != c' ':
        return -1
    for i in range(start, size):
        value = value * 10 + (line[i] - c'0')
    return value


cdef const uint8_t* find(const uint8_t* p, size_t size, const char* word, size_t length) noexcept nogil:
    """The first occurrence of a word, or NULL."""
    cdef const uint8_t* end = p + size
    while p < end:
        p = <const uint8_t*> memchr(p, word[0], <size_t> (end - p))
        if p == NULL or <size_t> (end - p) < length:
            return NULL
        if memcmp(p, word, length) == 0:
            return p
        p += 1
    return NULL


cdef int64_t number_after(const uint8_t* p, size_t size, const char* word, size_t length) noexcept nogil:
    """The number that follows a word and perhaps spaces, -1 if there is none."""
    cdef const uint8_t* end = p + size
    cdef int64_t value = 0
    cdef int digits = 0
    p = find(p, size, word, length)
    if p == NULL:
        return -1
    p += length
    while p < end and p[0] == c' ':
        p += 1
    while p < end and c'0' <= p[0] <= c'9' and digits < 18:
        value = value * 10 + (p[0] - c'0')
        digits += 1
        p += 1
    return value if digits else -1
