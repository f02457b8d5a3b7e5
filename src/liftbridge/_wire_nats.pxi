# The NATS protocol as a client receives it. Included by _wire.pyx.

cdef enum:
    PARSE_MORE = 0
    PARSE_CONTROL = 1
    PARSE_FULL = 2
    PARSE_BAD = 3

cdef struct Line:
    const uint8_t* subject
    size_t subject_length
    const uint8_t* reply
    size_t reply_length
    uint64_t sid
    size_t header_size
    size_t size
    bint has_header


cdef inline int get_decimal(const uint8_t* p, size_t length, uint64_t* value) noexcept nogil:
    cdef uint64_t result = 0
    cdef size_t i
    if length == 0 or length > 18:
        return -1
    for i in range(length):
        if p[i] < 48 or p[i] > 57:
            return -1
        result = result * 10 + (p[i] - 48)
    value[0] = result
    return 0


cdef int parse_line(const uint8_t* p, const uint8_t* end, Line* line) noexcept nogil:
    """Parse `subject sid [reply] [header size] size` (behind MSG or HMSG, in front of CR LF)."""
    cdef const uint8_t* tokens[5]
    cdef size_t lengths[5]
    cdef int count = 0
    cdef int last
    cdef uint64_t number = 0
    cdef const uint8_t* start
    while p < end:
        while p < end and (p[0] == 32 or p[0] == 9):
            p += 1
        if p == end:
            break
        if count == 5:
            return -1
        start = p
        while p < end and p[0] != 32 and p[0] != 9:
            p += 1
        tokens[count] = start
        lengths[count] = p - start
        count += 1
    last = count - 1
    if count < (4 if line.has_header else 3) or count > (5 if line.has_header else 4):
        return -1
    if get_decimal(tokens[last], lengths[last], &number) < 0 or number > 0x7FFFFFFF:
        return -1
    line.size = <size_t> number
    line.header_size = 0
    if line.has_header:
        last -= 1
        if get_decimal(tokens[last], lengths[last], &number) < 0 or number > line.size:
            return -1
        line.header_size = <size_t> number
    if get_decimal(tokens[1], lengths[1], &line.sid) < 0:
        return -1
    line.subject = tokens[0]
    line.subject_length = lengths[0]
    line.reply = tokens[2]
    line.reply_length = lengths[2] if last == 3 else 0
    return 0


cdef class NatsParser:
    """The receive buffer of one NATS connection and the parser of what is in it.

    The owner reads from its socket into `buffer()` and says so with `received`, then calls `parse` until it
    returns None. `max_payload` bounds a message; it is what the server announced.
    """

    cdef uint8_t* buf
    cdef size_t capacity
    cdef size_t start
    cdef size_t end
    cdef size_t wanted
    cdef size_t chunk
    cdef size_t max_payload
    cdef PyObject** sinks
    cdef PyObject** touched
    cdef size_t sinks_capacity
    cdef size_t touched_count
    cdef dict by_sid
    cdef size_t control_start
    cdef size_t control_end
    cdef int exports
    cdef readonly uint64_t messages
    cdef readonly uint64_t unknown_subscription

    def __cinit__(self, size_t chunk=524288, size_t max_payload=67108864):
        self.buf = <uint8_t*> malloc(chunk)
        if self.buf == NULL:
            raise MemoryError
        self.capacity = chunk
        self.chunk = chunk
        self.max_payload = max_payload
        self.by_sid = {}

    def __dealloc__(self):
        free(self.buf)
        free(self.sinks)
        free(self.touched)

    def reset(self) -> None:
        """Forget buffered bytes; called when the connection was replaced by a new one. Sinks are kept."""
        assert not self.exports, "the receive buffer is in use"
        self.start = self.end = self.wanted = 0

    def attach(self, uint64_t sid, Sink sink) -> None:
        """Deliver the messages of subscription `sid` to `sink`."""
        cdef size_t capacity
        cdef PyObject** grown
        assert sid not in self.by_sid, f"subscription {sid} already has a sink"
        if sid >= self.sinks_capacity:
            capacity = 64
            while capacity <= sid:
                capacity *= 2
            grown = <PyObject**> realloc(self.sinks, capacity * sizeof(PyObject*))
            if grown == NULL:
                raise MemoryError
            self.sinks = grown
            for i in range(self.sinks_capacity, capacity):
                grown[i] = NULL
            grown = <PyObject**> realloc(self.touched, capacity * sizeof(PyObject*))
            if grown == NULL:
                raise MemoryError
            self.touched = grown
            self.sinks_capacity = capacity
        self.by_sid[sid] = sink
        self.sinks[sid] = <PyObject*> sink

    def detach(self, uint64_t sid) -> None:
        """Messages of subscription `sid` that still arrive are counted as unknown and dropped."""
        cdef Sink sink = self.by_sid.pop(sid)
        self.sinks[sid] = NULL
        self.forget(sink)

    cdef void forget(self, Sink sink):
        cdef size_t i, kept = 0
        for i in range(self.touched_count):
            if self.touched[i] != <PyObject*> sink:
                self.touched[kept] = self.touched[i]
                kept += 1
        self.touched_count = kept
        sink.touched = False

    def buffer(self) -> memoryview:
        """Free room behind the buffered bytes, at least enough to complete the message that is being read."""
        cdef size_t used = self.end - self.start
        cdef size_t needed
        cdef uint8_t* grown
        assert not self.exports, "the receive buffer is in use"
        if self.start:
            memmove(self.buf, self.buf + self.start, used)
            self.start = 0
            self.end = used
        needed = self.wanted if self.wanted > used + 4096 else used + 4096
        if used == 0 and self.capacity > self.chunk and self.wanted <= self.chunk:
            needed = self.chunk
        elif needed < self.capacity:
            needed = self.capacity
        if needed != self.capacity:
            grown = <uint8_t*> realloc(self.buf, needed)
            if grown == NULL:
                raise MemoryError
            self.buf = grown
            self.capacity = needed
        return memoryview(self)[used:]

    def __getbuffer__(self, Py_buffer* view, int flags):
        self.exports += 1
        PyBuffer_FillInfo(view, self, self.buf, self.capacity, 0, flags)

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1

    def received(self, size_t count) -> None:
        """`count` bytes were read into the buffer."""
        assert self.end + count <= self.capacity, "more bytes than the buffer holds"
        self.end += count

    def feed(self, data) -> None:
        """Copy `data` in, for connections that cannot read into the buffer (TLS)."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.end + view.len > self.capacity:
                self.wanted = self.wanted if self.wanted > self.end - self.start + view.len \
                    else self.end - self.start + view.len
                self.buffer().release()
            assert self.end + view.len <= self.capacity
            memcpy(self.buf + self.end, view.buf, view.len)
            self.end += view.len
        finally:
            PyBuffer_Release(&view)

    def parse(self, int64_t now):
        """Parse what is buffered, stamping messages with `now` (ns).

        Returns None when more bytes are needed, True when a sink is full (empty the touched sinks and call again),
        or a control line as bytes (handle it and call again). Raises ProtocolError.
        """
        cdef int status
        with nogil:
            status = self.run(now)
        if status == PARSE_MORE:
            return None
        if status == PARSE_FULL:
            return True
        if status == PARSE_CONTROL:
            return PyBytes_FromStringAndSize(
                <char*> self.buf + self.control_start, self.control_end - self.control_start
            )
        raise ProtocolError(
            "not the NATS protocol: "
            f"{bytes(memoryview(self)[self.start:min(self.end, self.start + 80)])!r}"
        )

    def take_touched(self) -> list:
        """The owners of the sinks that got messages since the last call, in order of first arrival."""
        cdef list owners = []
        cdef size_t i
        cdef Sink sink
        for i in range(self.touched_count):
            sink = <Sink> self.touched[i]
            sink.touched = False
            owners.append(sink.owner)
        self.touched_count = 0
        return owners

    cdef int run(self, int64_t now) except -1 nogil:
        cdef const uint8_t* line_end
        cdef const uint8_t* p
        cdef size_t line_length, total
        cdef Line line
        cdef int status
        while True:
            p = self.buf + self.start
            line_end = <const uint8_t*> memchr(p, 10, self.end - self.start)
            if line_end == NULL:
                if self.end - self.start > MAX_CONTROL_LINE:
                    return PARSE_BAD
                self.wanted = 0
                return PARSE_MORE
            line_length = line_end - p + 1
            if line_length < 3 or (line_end - 1)[0] != 13:
                return PARSE_BAD
            if line_length > 4 and memcmp(p, b"MSG", 3) == 0 and (p[3] == 32 or p[3] == 9):
                line.has_header = False
                status = parse_line(p + 4, line_end - 1, &line)
            elif line_length > 5 and memcmp(p, b"HMSG", 4) == 0 and (p[4] == 32 or p[4] == 9):
                line.has_header = True
                status = parse_line(p + 5, line_end - 1, &line)
            else:
                self.control_start = self.start
                self.control_end = self.start + line_length - 2
                self.start += line_length
                return PARSE_CONTROL
            if status < 0 or line.size > self.max_payload:
                return PARSE_BAD
            total = line_length + line.size + 2
            if self.end - self.start < total:
                self.wanted = total
                return PARSE_MORE
            p = line_end + 1
            if p[line.size] != 13 or p[line.size + 1] != 10:
                return PARSE_BAD
            self.start += total
            self.messages += 1
            if self.deliver(&line, p, now) == 1:
                return PARSE_FULL

    cdef int deliver(self, Line* line, const uint8_t* data, int64_t now) except -1 nogil:
        """Hand a message to its sink; `data` is its header block, if it has one, and its payload."""
        cdef PyObject* sink = NULL
        if line.sid < self.sinks_capacity:
            sink = self.sinks[line.sid]
        if sink == NULL:
            self.unknown_subscription += 1
            return 0
        if not (<Sink> sink).touched:
            (<Sink> sink).touched = True
            self.touched[self.touched_count] = sink
            self.touched_count += 1
        (<Sink> sink).ttl = nats_header_ttl(data, line.header_size) if line.header_size else TTL_NONE
        return (<Sink> sink).add(
            line.subject, line.subject_length, line.reply, line.reply_length, data + line.header_size,
            line.size - line.header_size, now,
        )
