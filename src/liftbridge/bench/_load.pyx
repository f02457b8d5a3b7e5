# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The load generator's hot loop: a gRPC subscriber that counts messages and does nothing else.

What a benchmark measures is the slower of the two ends, so the receiving end must cost next to nothing.
One call receives a whole replay: the GIL is released, bytes are read in large pieces, HTTP/2 frames and gRPC
length prefixes are walked where they lie, messages are counted and never decoded.

Invariants:

- Bytes may arrive cut anywhere: the counts depend on the stream of bytes, not on how it was split.
- Nothing received is trusted: lengths are checked against what was granted, and what breaks HTTP/2 is a
  `ProtocolError` that says how.
- The server's flow control is enforced here too: a server that sends more than the window is reported.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import os

cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #include <time.h>

    /* CPU time of a process in ns, all its threads and the finished ones included; -errno on failure. */
    static long long process_cpu(pid_t pid) {
    #ifdef __linux__
        clockid_t clock;
        struct timespec t;
        int error = clock_getcpuclockid(pid, &clock);
        if (error != 0) return -(long long) error;
        if (clock_gettime(clock, &t) != 0) return -(long long) errno;
        return (long long) t.tv_sec * 1000000000LL + t.tv_nsec;
    #else
        (void) pid;
        return -(long long) ENOTSUP;
    #endif
    }

    /* Wait for bytes: 1 there are some (or the end), 0 time is up, -1 with errno. */
    static int wait_readable(int fd, int timeout_ms) {
        struct pollfd p;
        p.fd = fd;
        p.events = POLLIN;
        p.revents = 0;
        return poll(&p, 1, timeout_ms);
    }
    """
    long long process_cpu(int pid) nogil
    int wait_readable(int fd, int timeout_ms) nogil
    ssize_t c_recv "recv"(int fd, void* data, size_t size, int flags) nogil
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags) nogil

cdef enum:
    FRAME_HEADER = 9
    PREFIX = 5
    RECEIVE_BYTES = 1 << 20
    # What is collected of frames that are not DATA, and of answers to them; a peer that needs more is broken.
    MAX_CONTROL = 65536
    MAX_REPLY = 65536
    MAX_BLOCKS = 8

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

_ERRORS = {
    BAD_LENGTH: "a frame's length does not fit its type or its padding",
    BAD_STREAM: "a frame belongs to no stream of ours",
    BAD_ORDER: "frames come in an order that HTTP/2 forbids",
    BAD_PREFIX: "a gRPC message says that it is compressed, which was not offered",
    OVER_WINDOW: "the server sent more than the flow-control window allows",
    OVER_FRAME_SIZE: "a frame is longer than SETTINGS_MAX_FRAME_SIZE allows",
    TOO_MUCH_CONTROL: "the server floods the connection with control frames",
    PUSHED: "the server pushes, which was switched off",
}

STREAM_ID = 1
cdef uint32_t OUR_STREAM = 1


class ProtocolError(Exception):
    """The server broke HTTP/2 or gRPC; the text says how."""


def process_cpu_ns(int pid):
    """Return the CPU time that a process has used so far, in ns, all its threads together.

    Raises:
        ProcessLookupError: there is no such process.
        OSError: this system does not tell.
    """
    cdef long long used = process_cpu(pid)
    if used < 0:
        raise OSError(<int> -used, os.strerror(<int> -used), None)
    return used


cdef inline uint32_t big_endian(const uint8_t* p) noexcept nogil:
    return (<uint32_t> p[0] << 24) | (<uint32_t> p[1] << 16) | (<uint32_t> p[2] << 8) | p[3]


cdef class SubscribeCounter:
    """The receiving half of one HTTP/2 connection with one server-streaming gRPC call on stream 1.

    Args:
        window: flow-control window in bytes, as the caller has granted it for the stream and, if it is above
            65535, for the connection.
        max_frame: SETTINGS_MAX_FRAME_SIZE in bytes, as the caller has announced it.

    Attributes:
        messages: gRPC messages received whole.
        message_bytes: bytes of them, without their prefixes.
        data_frames: DATA frames begun.
        data_bytes: bytes of DATA frames, padding included.
        ended: whether the call has ended.
        reset_code: error code of the RST_STREAM that ended it, -1 without one.
        goaway_code: error code of the last GOAWAY, -1 without one.
    """

    cdef readonly int64_t messages
    cdef readonly int64_t message_bytes
    cdef readonly int64_t data_frames
    cdef readonly int64_t data_bytes
    cdef readonly bint ended
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
    cdef uint8_t* reply
    cdef size_t reply_have
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
    cdef uint8_t* received

    def __cinit__(self, *, int64_t window, int64_t max_frame=16384):
        if not 1 <= window < 1 << 31:
            raise ValueError(f"a flow-control window lies between 1 and 2147483647 bytes, not {window}")
        if not 16384 <= max_frame < 1 << 24:
            raise ValueError(f"the longest frame lies between 16384 and 16777215 bytes, not {max_frame}")
        self.window = window
        self.credit = window
        self.max_frame = max_frame
        self.message_left = -1
        self.reset_code = -1
        self.goaway_code = -1
        self.control = <uint8_t*> malloc(MAX_CONTROL)
        self.reply = <uint8_t*> malloc(MAX_REPLY)
        self.blocks = <uint8_t*> malloc(MAX_CONTROL)
        self.received = <uint8_t*> malloc(RECEIVE_BYTES)
        if self.control == NULL or self.reply == NULL or self.blocks == NULL or self.received == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.control)
        free(self.reply)
        free(self.blocks)
        free(self.received)

    @property
    def header_blocks(self):
        """The encoded header blocks received whole, in order: response headers, trailers."""
        cdef size_t start = 0
        found = []
        for i in range(self.block_count):
            found.append(self.blocks[start:self.block_ends[i]])
            start = self.block_ends[i]
        return found

    def feed(self, data):
        """Take received bytes; returns the bytes to send in answer: acknowledgements and window updates.

        Raises:
            ProtocolError: the bytes break HTTP/2 or gRPC.
        """
        cdef Py_buffer view
        cdef int error
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                error = self.walk(<const uint8_t*> view.buf, <size_t> view.len)
        finally:
            PyBuffer_Release(&view)
        self.check(error)
        answer = self.reply[:self.reply_have]
        self.reply_have = 0
        return answer

    def receive(self, int fd, int64_t messages, int timeout_ms):
        """Receive until `messages` messages have been counted since the start, or the call has ended.

        Args:
            fd: a connected blocking socket.
            messages: the count at which to return; it may be exceeded by what came in the same read.
            timeout_ms: how long to wait for the next byte, in ms.

        Raises:
            ProtocolError: what was received breaks HTTP/2 or gRPC.
            TimeoutError: nothing came for `timeout_ms`.
            ConnectionError: the server closed the connection before the call had ended.
            OSError: the socket failed.
        """
        cdef int error = OK
        cdef ssize_t count = 1
        cdef int ready = 1
        cdef int failure = 0
        with nogil:
            while self.messages < messages and not self.ended and error == OK:
                ready = wait_readable(fd, timeout_ms)
                if ready < 0 and errno == EINTR:
                    continue
                if ready <= 0:
                    failure = errno
                    break
                count = c_recv(fd, self.received, RECEIVE_BYTES, 0)
                if count < 0 and errno == EINTR:
                    continue
                if count <= 0:
                    failure = errno
                    break
                error = self.walk(self.received, <size_t> count)
                if not self.send_reply(fd):
                    count = -1
                    failure = errno
                    break
        self.check(error)
        if ready == 0:
            raise TimeoutError(f"nothing came from the server for {timeout_ms / 1000:.1f} s")
        if ready < 0 or count < 0:
            raise OSError(failure, os.strerror(failure))
        if count == 0:
            raise ConnectionError("the server closed the connection in the middle of the call")

    cdef check(self, int error):
        if error != OK:
            raise ProtocolError(_ERRORS[error])

    cdef bint send_reply(self, int fd) noexcept nogil:
        """Send what is to be answered; false, with errno, when the socket fails."""
        cdef size_t done = 0
        cdef ssize_t count
        while done < self.reply_have:
            count = c_send(fd, self.reply + done, self.reply_have - done, 0)
            if count < 0:
                if errno == EINTR:
                    continue
                return False
            done += <size_t> count
        self.reply_have = 0
        return True

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
        if self.frame_stream != OUR_STREAM:
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
            p += piece
            body -= piece
            self.message_left -= <int64_t> piece
            if self.message_left == 0:
                self.messages += 1
                self.message_left = -1
                self.prefix_have = 0
        return OK

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
            if self.frame_flags & ACK:
                return OK
            return self.answer(0, SETTINGS, ACK, 0, NULL)
        if kind == PING:
            if self.control_have != 8:
                return BAD_LENGTH
            if self.frame_flags & ACK:
                return OK
            return self.answer(8, PING, ACK, 0, self.control)
        if kind == RST_STREAM:
            if self.control_have != 4:
                return BAD_LENGTH
            if self.frame_stream == OUR_STREAM:
                self.reset_code = big_endian(self.control)
                self.ended = True
            return OK
        if kind == GOAWAY:
            if self.control_have < 8:
                return BAD_LENGTH
            self.goaway_code = big_endian(self.control + 4)
            return OK
        # WINDOW_UPDATE is of no interest, as nothing big is ever sent; unknown frames are ignored.
        return PUSHED if kind == PUSH_PROMISE else OK

    cdef int end_headers(self) noexcept nogil:
        """A HEADERS or CONTINUATION frame is complete: keep its piece of the block."""
        cdef size_t start = 0
        cdef size_t stop = self.control_have
        if self.frame_stream != OUR_STREAM:
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
            error = self.answer(4, WINDOW_UPDATE, 0, OUR_STREAM, increment)
        self.credit += self.consumed
        self.consumed = 0
        return error
