# The receiving half of an HTTP/2 connection with one gRPC call at a time. Included by _load.pyx.

cdef enum:
    FRAME_HEADER = 9
    PREFIX = 5
    # What is collected of frames that are not DATA, and of answers to them; a peer that needs more is broken.
    MAX_CONTROL = 65536
    MAX_BLOCKS = 8
    # Of a message that has to be looked at whole.
    MAX_MESSAGE = 1 << 24
    HTTP2_WINDOW = 65535
    HTTP2_FRAME = 16384

cdef enum:
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9

cdef enum:
    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20

STREAM_ID = 1


cdef inline uint32_t big_endian(const uint8_t* p) noexcept nogil:
    return (<uint32_t> p[0] << 24) | (<uint32_t> p[1] << 16) | (<uint32_t> p[2] << 8) | p[3]


cdef class GrpcReceiver(Receiver):
    """The receiving half of one HTTP/2 connection with one gRPC call at a time, the first on stream 1.

    It counts the messages of the call; one that is made with `whole` hands each to `take_message` as well.

    Args:
        window: flow-control window in bytes, as the caller has granted it for the stream and, if it is above
            65535, for the connection.
        max_frame: SETTINGS_MAX_FRAME_SIZE in bytes, as the caller has announced it.

    Attributes:
        message_bytes: bytes of the messages, without their prefixes.
        data_frames: DATA frames begun, whose bytes, padding included, are `data_bytes`.
        reset_code: error code of the RST_STREAM that ended it, -1 without one.
        goaway_code: error code of the last GOAWAY, -1 without one.
    """

    cdef readonly int64_t message_bytes
    cdef readonly int64_t data_frames
    cdef readonly int64_t reset_code
    cdef readonly int64_t goaway_code

    # The frame that is being received
    cdef uint8_t head[FRAME_HEADER]
    cdef int head_have
    cdef uint32_t frame_left
    cdef uint8_t frame_type
    cdef uint8_t frame_flags
    cdef uint32_t frame_stream
    cdef uint32_t padding
    cdef bint padding_due
    # The gRPC message that is being received
    cdef uint8_t prefix[PREFIX]
    cdef int prefix_have
    cdef int64_t message_left
    # Frames other than DATA, and what is to be answered
    cdef uint8_t* control
    cdef uint32_t control_have
    cdef uint8_t* blocks
    cdef size_t blocks_have
    cdef size_t block_ends[MAX_BLOCKS]
    cdef int block_count
    cdef bint block_open
    cdef bint ends_after_block
    # Flow control
    cdef int64_t window
    cdef int64_t max_frame
    cdef int64_t credit
    cdef int64_t consumed
    # What the server lets us send: it concerns those who publish
    cdef int64_t send_window
    cdef int64_t stream_send_window
    cdef int64_t initial_send_window
    cdef int64_t send_frame
    cdef uint32_t stream
    # Messages that are looked at
    cdef bint whole
    cdef uint8_t* message
    cdef size_t message_have
    cdef size_t message_room

    def __cinit__(self):
        self.message_left = -1
        self.reset_code = -1
        self.goaway_code = -1
        self.stream = STREAM_ID
        self.send_window = self.stream_send_window = self.initial_send_window = HTTP2_WINDOW
        self.send_frame = HTTP2_FRAME
        self.control = <uint8_t*> malloc(MAX_CONTROL)
        self.blocks = <uint8_t*> malloc(MAX_CONTROL)
        if self.control == NULL or self.blocks == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.control)
        free(self.blocks)
        free(self.message)

    cdef offer(self, int64_t window, int64_t max_frame):
        """Set what the server may send, before it sends anything."""
        if not 1 <= window < 1 << 31:
            raise ValueError(f"a flow-control window lies between 1 and 2147483647 bytes, not {window}")
        if not 16384 <= max_frame < 1 << 24:
            raise ValueError(f"the longest frame lies between 16384 and 16777215 bytes, not {max_frame}")
        self.window = window
        self.credit = window
        self.max_frame = max_frame

    @property
    def header_blocks(self):
        """The encoded header blocks received whole, in order: response headers, trailers."""
        cdef size_t start = 0
        found = []
        for i in range(self.block_count):
            found.append(self.blocks[start:self.block_ends[i]])
            start = self.block_ends[i]
        return found

    # The walk over what was received

    cdef int walk(self, const uint8_t* p, size_t size) noexcept nogil:
        """Take received bytes; returns OK or what is wrong with them."""
        cdef const uint8_t* end = p + size
        cdef size_t piece
        cdef int error
        while True:
            if self.head_have < FRAME_HEADER:
                piece = min(<size_t> (FRAME_HEADER - self.head_have), <size_t> (end - p))
                memcpy(self.head + self.head_have, p, piece)
                self.head_have += <int> piece
                p += piece
                if self.head_have < FRAME_HEADER:
                    break
                error = self.begin_frame()
                if error != OK:
                    return error
            piece = min(<size_t> self.frame_left, <size_t> (end - p))
            error = self.take_data(p, piece) if self.frame_type == DATA else self.take_control(p, piece)
            if error != OK:
                return error
            p += piece
            self.frame_left -= <uint32_t> piece
            if self.frame_left:
                break
            error = self.end_frame()
            if error != OK:
                return error
            self.head_have = 0
        return self.grant()

    cdef int begin_frame(self) noexcept nogil:
        """A frame's header is complete."""
        cdef uint32_t length = big_endian(self.head) >> 8
        self.frame_left = length
        self.frame_type = self.head[3]
        self.frame_flags = self.head[4]
        self.frame_stream = big_endian(self.head + 5) & 0x7FFFFFFF
        self.control_have = 0
        if length > self.max_frame:
            return OVER_FRAME_SIZE
        if self.block_open and self.frame_type != CONTINUATION:
            return BAD_ORDER
        if self.frame_type != DATA:
            return TOO_MUCH_CONTROL if length > MAX_CONTROL else OK
        if self.frame_stream != self.stream:
            return BAD_STREAM
        if self.ended or not self.block_count:
            return BAD_ORDER
        if <int64_t> length > self.credit:
            return OVER_WINDOW
        self.credit -= length
        self.data_frames += 1
        self.data_bytes += length
        self.padding = 0
        self.padding_due = (self.frame_flags & PADDED) != 0
        if self.padding_due and not length:
            return BAD_LENGTH
        return OK

    cdef int take_data(self, const uint8_t* p, size_t size) noexcept nogil:
        """Count the messages in a piece of a DATA frame's payload."""
        cdef size_t piece, body
        cdef size_t left = self.frame_left
        cdef int error
        self.consumed += <int64_t> size
        if not size:
            return OK
        if self.padding_due:
            self.padding = p[0]
            self.padding_due = False
            p += 1
            size -= 1
            left -= 1
            if self.padding > left:
                return BAD_LENGTH
        # `left` bytes of the frame begin at p, the last `padding` of which carry nothing.
        body = min(size, left - self.padding) if left > self.padding else 0
        while body:
            if self.message_left < 0:
                if self.prefix_have == 0 and body >= PREFIX:
                    memcpy(self.prefix, p, PREFIX)
                    piece = PREFIX
                else:
                    piece = min(<size_t> (PREFIX - self.prefix_have), body)
                    memcpy(self.prefix + self.prefix_have, p, piece)
                self.prefix_have += <int> piece
                p += piece
                body -= piece
                if self.prefix_have < PREFIX:
                    break
                if self.prefix[0]:
                    return BAD_PREFIX
                self.message_left = big_endian(self.prefix + 1)
                self.message_bytes += self.message_left
            piece = min(<size_t> self.message_left, body)
            if self.whole:
                error = self.collect(p, piece)
                if error != OK:
                    return error
            p += piece
            body -= piece
            self.message_left -= <int64_t> piece
            if self.message_left == 0:
                self.messages += 1
                self.message_left = -1
                self.prefix_have = 0
        return OK

    cdef int collect(self, const uint8_t* p, size_t size) noexcept nogil:
        """Take a piece of a message; `message_left` bytes of it begin at p. The last piece completes it."""
        cdef size_t left = <size_t> self.message_left
        cdef uint8_t* moved
        cdef int error
        if size == left and self.message_have == 0:
            return self.take_message(p, size)
        if self.message_have + left > MAX_MESSAGE:
            return TOO_LONG
        if self.message_have + left > self.message_room:
            moved = <uint8_t*> realloc(self.message, self.message_have + left)
            if moved == NULL:
                return TOO_LONG
            self.message = moved
            self.message_room = self.message_have + left
        memcpy(self.message + self.message_have, p, size)
        self.message_have += size
        if size < left:
            return OK
        error = self.take_message(self.message, self.message_have)
        self.message_have = 0
        return error

    cdef int take_message(self, const uint8_t* p, size_t size) noexcept nogil:
        """A message is complete."""
        return OK

    cdef void next_call(self) noexcept nogil:
        """The next call begins, on the stream that follows."""
        self.stream += 2
        self.ended = False
        self.messages = 0
        self.block_count = 0
        self.blocks_have = 0
        self.prefix_have = 0
        self.message_left = -1
        self.stream_send_window = self.initial_send_window

    cdef int take_control(self, const uint8_t* p, size_t size) noexcept nogil:
        """Collect a piece of the payload of any other frame; its length was checked."""
        memcpy(self.control + self.control_have, p, size)
        self.control_have += <uint32_t> size
        return OK

    cdef int end_frame(self) noexcept nogil:
        """A frame is complete."""
        cdef uint8_t kind = self.frame_type
        if kind == DATA:
            if self.frame_flags & END_STREAM:
                self.ended = True
            return OK
        if kind == HEADERS or kind == CONTINUATION:
            return self.end_headers()
        if kind == SETTINGS:
            return OK if self.frame_flags & ACK else self.take_settings()
        if kind == PING:
            if self.control_have != 8:
                return BAD_LENGTH
            if self.frame_flags & ACK:
                return OK
            return self.answer(8, PING, ACK, 0, self.control)
        if kind == RST_STREAM:
            if self.control_have != 4:
                return BAD_LENGTH
            if self.frame_stream == self.stream:
                self.reset_code = big_endian(self.control)
                self.ended = True
            return OK
        if kind == GOAWAY:
            if self.control_have < 8:
                return BAD_LENGTH
            self.goaway_code = big_endian(self.control + 4)
            return OK
        if kind == WINDOW_UPDATE:
            if self.control_have != 4:
                return BAD_LENGTH
            if self.frame_stream == 0:
                self.send_window += big_endian(self.control) & 0x7FFFFFFF
            elif self.frame_stream == self.stream:
                self.stream_send_window += big_endian(self.control) & 0x7FFFFFFF
            return OK
        return PUSHED if kind == PUSH_PROMISE else OK  # unknown frames are ignored

    cdef int take_settings(self) noexcept nogil:
        """The server's settings came: what they allow us, and an acknowledgement."""
        cdef const uint8_t* p = self.control
        cdef int64_t value
        if self.control_have % 6:
            return BAD_LENGTH
        while p < self.control + self.control_have:
            value = big_endian(p + 2)
            if p[1] == 4 and p[0] == 0:
                self.stream_send_window += value - self.initial_send_window
                self.initial_send_window = value
            elif p[1] == 5 and p[0] == 0 and value >= HTTP2_FRAME:
                self.send_frame = value
            p += 6
        return self.answer(0, SETTINGS, ACK, 0, NULL)

    cdef int end_headers(self) noexcept nogil:
        """A HEADERS or CONTINUATION frame is complete: keep its piece of the block."""
        cdef size_t start = 0
        cdef size_t stop = self.control_have
        if self.frame_stream != self.stream:
            return BAD_STREAM
        if (self.frame_type == CONTINUATION) != self.block_open:
            return BAD_ORDER
        if self.frame_type == HEADERS:
            if self.frame_flags & PADDED:
                if stop < 1 or self.control[0] > stop - 1:
                    return BAD_LENGTH
                start = 1
                stop -= self.control[0]
            if self.frame_flags & PRIORITY:
                start += 5
            if start > stop:
                return BAD_LENGTH
            self.ends_after_block = (self.frame_flags & END_STREAM) != 0
        if self.blocks_have + (stop - start) > MAX_CONTROL or self.block_count == MAX_BLOCKS:
            return TOO_MUCH_CONTROL
        memcpy(self.blocks + self.blocks_have, self.control + start, stop - start)
        self.blocks_have += stop - start
        self.block_open = (self.frame_flags & END_HEADERS) == 0
        if not self.block_open:
            self.block_ends[self.block_count] = self.blocks_have
            self.block_count += 1
            self.ended = self.ended or self.ends_after_block
        return OK

    # What is answered

    cdef int answer(
        self, uint32_t length, uint8_t kind, uint8_t flags, uint32_t stream, const uint8_t* payload
    ) noexcept nogil:
        """Queue a short frame."""
        cdef uint8_t* p = self.reply + self.reply_have
        if self.reply_have + FRAME_HEADER + length > MAX_REPLY:
            return TOO_MUCH_CONTROL
        p[0] = 0
        p[1] = <uint8_t> (length >> 8)
        p[2] = <uint8_t> length
        p[3] = kind
        p[4] = flags
        p[5] = <uint8_t> (stream >> 24)
        p[6] = <uint8_t> (stream >> 16)
        p[7] = <uint8_t> (stream >> 8)
        p[8] = <uint8_t> stream
        if length:
            memcpy(p + FRAME_HEADER, payload, length)
        self.reply_have += FRAME_HEADER + length
        return OK

    cdef int grant(self) noexcept nogil:
        """Give the server room again once half of the window has been consumed."""
        cdef uint8_t increment[4]
        cdef int error
        if self.consumed * 2 < self.window:
            return OK
        increment[0] = <uint8_t> (self.consumed >> 24)
        increment[1] = <uint8_t> (self.consumed >> 16)
        increment[2] = <uint8_t> (self.consumed >> 8)
        increment[3] = <uint8_t> self.consumed
        error = self.answer(4, WINDOW_UPDATE, 0, 0, increment)
        if error == OK and not self.ended:
            error = self.answer(4, WINDOW_UPDATE, 0, self.stream, increment)
        self.credit += self.consumed
        self.consumed = 0
        return error
