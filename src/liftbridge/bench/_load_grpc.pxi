# Publishers that speak gRPC: one call for all messages, or a call for each. Included by _load.pyx.

cdef class PublishResponses(GrpcReceiver):
    """What comes back: protobuf `PublishResponse`s, with the acks of the messages."""

    cdef Acks acks
    cdef const uint8_t* refusal
    cdef size_t refusal_size

    def __cinit__(self, Acks acks, int64_t window, int64_t max_frame):
        self.offer(window, max_frame)
        self.whole = True
        self.acks = acks

    cdef int take_message(self, const uint8_t* p, size_t size) noexcept nogil:
        cdef const uint8_t* end = p + size
        cdef const uint8_t* ack = NULL
        cdef size_t ack_size = 0
        cdef Field field
        self.refusal = p
        self.refusal_size = size
        while p < end:
            p = get_field(p, end, &field)
            if p == NULL:
                return BAD_PROTOBUF
            if field.wire == 2 and field.number == 2:
                return REFUSED  # with an empty ack
            if field.wire == 2 and field.number == 1:
                ack = field.data
                ack_size = <size_t> field.value
        # Without an ack it is what a call gets that wants none.
        return self.acks.take_oldest() if ack == NULL else take_ack(self.acks, ack, ack_size)


cdef class GrpcPublisher(Publisher):
    """A `Publisher` whose template is a `PublishRequest` with its gRPC prefix.

    The connection has sent preface and settings. With `unary` each message is a call of its own, with `headers` in
    front; without, the caller has sent the headers of one `PublishAsync` on stream 1. One message is one DATA frame, as
    gRPC libraries have it, and more only where frame size or flow control ask for that.

    Args:
        headers: a header block without references to a compression table, so that it is the same for each call.
        receive_window: what the caller has granted, in bytes, for connection and stream.
        max_frame: SETTINGS_MAX_FRAME_SIZE as the caller has announced it.
    """

    cdef PublishResponses responses
    cdef uint8_t* headers
    cdef size_t headers_size
    cdef bint unary
    cdef size_t placed
    cdef bint begun     # the headers of a unary call are out
    cdef bint in_call   # and the whole request

    def __cinit__(
        self, bytes template, *, int64_t receive_window, int64_t max_frame=16384, bytes headers=b"", **other
    ):
        self.responses = PublishResponses(self.acks, receive_window, max_frame)
        self.unary = len(headers) > 0
        if self.unary and self.acks.window != 1:
            raise ValueError("there is one unary call at a time")
        if len(headers) > HTTP2_FRAME:
            raise ValueError("these headers are too long for a frame")
        self.headers_size = len(headers)
        self.headers = <uint8_t*> malloc(self.headers_size + 1)
        if self.headers == NULL:
            raise MemoryError
        memcpy(self.headers, <const char*> headers, self.headers_size)

    def __dealloc__(self):
        free(self.headers)

    @property
    def header_blocks(self):
        """The header blocks of the call that ended last or has not ended."""
        return self.responses.header_blocks

    cdef void answer(self) noexcept nogil:
        if self.responses.reply_have and self.out_have + self.responses.reply_have <= self.out_room:
            memcpy(self.out + self.out_have, self.responses.reply, self.responses.reply_have)
            self.out_have += self.responses.reply_have
            self.responses.reply_have = 0

    cdef bint put(self) noexcept nogil:
        cdef int64_t length
        cdef uint8_t flags
        if self.unary and not self.begun:
            if self.out_have + self.headers_size + FRAME_HEADER > self.out_room:
                return False
            self.frame(self.headers_size, HEADERS, END_HEADERS)
            memcpy(self.out + self.out_have, self.headers, self.headers_size)
            self.out_have += self.headers_size
            self.begun = True
        while self.placed < self.size:
            length = min(<int64_t> (self.size - self.placed), self.responses.send_frame)
            length = min(length, min(self.responses.send_window, self.responses.stream_send_window))
            if length <= 0 or self.out_have + <size_t> length + FRAME_HEADER > self.out_room:
                return False
            flags = END_STREAM if self.unary and self.placed + <size_t> length == self.size else 0
            self.frame(<size_t> length, DATA, flags)
            memcpy(self.out + self.out_have, self.template + self.placed, <size_t> length)
            self.out_have += <size_t> length
            self.placed += <size_t> length
            self.responses.send_window -= length
            self.responses.stream_send_window -= length
        self.placed = 0
        self.in_call = self.unary
        return True

    cdef void frame(self, size_t length, uint8_t kind, uint8_t flags) noexcept nogil:
        """Add the header of a frame."""
        cdef uint8_t* p = self.out + self.out_have
        p[0] = <uint8_t> (length >> 16)
        p[1] = <uint8_t> (length >> 8)
        p[2] = <uint8_t> length
        p[3] = kind
        p[4] = flags
        p[5] = <uint8_t> (self.responses.stream >> 24)
        p[6] = <uint8_t> (self.responses.stream >> 16)
        p[7] = <uint8_t> (self.responses.stream >> 8)
        p[8] = <uint8_t> self.responses.stream
        self.out_have += FRAME_HEADER

    cdef bint busy(self) noexcept nogil:
        return self.in_call

    cdef bint blocked(self) noexcept nogil:
        return min(self.responses.send_window, self.responses.stream_send_window) <= 0

    cdef void close(self) noexcept nogil:
        if self.unary:
            self.closed()
        else:
            self.frame(0, DATA, END_STREAM)

    cdef int receive(self) noexcept nogil:
        cdef int error
        error = self.responses.walk(self.inp, self.inp_have)
        if error == REFUSED:
            with gil:
                self.detail_kind = "response"
            self.refuse(self.responses.refusal, self.responses.refusal_size)
        self.inp_have = 0
        if error != OK or not self.responses.ended:
            return CALL_ENDED if error == OK and self.responses.goaway_code > 0 else error
        if self.unary:
            if self.responses.messages != 1:
                return CALL_ENDED
            self.responses.next_call()
            self.begun = self.in_call = False
            return OK
        if self.phase != CLOSING:
            return CALL_ENDED
        self.closed()
        return OK
