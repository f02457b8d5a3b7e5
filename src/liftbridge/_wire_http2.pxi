# What a client sends over HTTP/2: frames cut, and DATA put into the buffers of the calls it is for. Included by
# _wire.pyx.
#
# A client that sends one message in each DATA frame, as all known gRPC libraries do, would cost several small
# functions of Python for each. Here it costs a copy and a comparison with two windows. Only what is usual is taken:
# DATA with at least one byte, for an open stream, within both windows, not the last of its stream. All else is
# returned, so that every refusal is in one place, rpc/connection.py.
#
# The GIL is kept: a read of 64 KiB is walked in some microseconds, less than it may take to get the GIL again from a
# thread that runs Python.

cdef enum:
    FRAME_HEADER = 9
    FRAME_DATA = 0
    FLAG_END_STREAM = 0x1
    FLAG_PADDED = 0x8
    MAX_STREAM_ID = 0x7FFFFFFF
    # What an empty buffer may keep; thousands of streams wait for their next message with nothing in it.
    KEPT_BUFFER = 4096


cdef class InboundStream:
    """What has arrived of one call's requests and waits for the handler, and the window for more.

    Subclasses define `settle`, which `RequestReader` calls for those that got data, before anything that came
    behind that data is handled.

    Attributes: `ended`, the client has sent everything; `finished`, nobody wants any more of it; `receive_window`,
    bytes the client may send; `waiting`, bytes that have arrived and were not taken.
    """

    cdef public bint ended
    cdef public bint finished
    cdef public int64_t receive_window
    cdef Bytes inbound
    cdef size_t start
    cdef size_t fresh
    cdef size_t padding
    cdef bint touched

    def __dealloc__(self):
        bytes_free(&self.inbound)

    @property
    def waiting(self) -> int:
        return self.inbound.length - self.start

    cdef int append(self, const uint8_t* data, size_t size, size_t padding) except -1:
        if self.start:
            memmove(self.inbound.data, self.inbound.data + self.start, self.inbound.length - self.start)
            self.inbound.length -= self.start
            self.start = 0
        if bytes_reserve(&self.inbound, size) < 0:
            raise MemoryError("no memory for what a client sends")
        put(&self.inbound, data, size)
        self.fresh += size
        self.padding += padding
        return 0

    def add(self, data, size_t padding) -> None:
        """Append the payload of a DATA frame that had so many bytes of padding, its length included."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.append(<const uint8_t*> view.buf, view.len, padding)
        finally:
            PyBuffer_Release(&view)

    def take_fresh(self):
        """How many bytes of messages and of padding have come since the last call."""
        cdef size_t fresh = self.fresh, padding = self.padding
        self.fresh = self.padding = 0
        return fresh, padding

    def first_header(self):
        """Flag and length of the message that has begun, (0, -1) while its header is incomplete."""
        cdef const uint8_t* p = self.inbound.data + self.start
        if self.inbound.length - self.start < GRPC_PREFIX:
            return 0, -1
        return p[0], message_length(p)

    def only_message(self, size_t max_message):
        """The message, without its header and not removed, that is all that has arrived; None if something else
        has."""
        cdef const uint8_t* p = self.inbound.data + self.start
        cdef size_t size = self.inbound.length - self.start
        if size < GRPC_PREFIX or size - GRPC_PREFIX > max_message:
            return None
        size -= GRPC_PREFIX
        if p[0] != 0 or message_length(p) != size:
            return None
        return PyBytes_FromStringAndSize(<char*> p + GRPC_PREFIX, size)

    def whole(self, size_t max_message):
        """`whole_messages` of what waits."""
        cdef Whole found
        find_whole(self.inbound.data + self.start, self.inbound.length - self.start, max_message, &found)
        return found.end, found.flag, found.length

    def take(self, size_t size, size_t skipped=0) -> bytes:
        """Remove the first `size` bytes; return them without the first `skipped` of them."""
        cdef object taken
        assert skipped <= size <= self.inbound.length - self.start, "more is taken than has arrived"
        if size == skipped:
            taken = b""
        else:
            taken = PyBytes_FromStringAndSize(<char*> self.inbound.data + self.start + skipped, size - skipped)
        self.start += size
        if self.start == self.inbound.length:
            self.start = self.inbound.length = 0
            if self.inbound.capacity > KEPT_BUFFER:
                bytes_free(&self.inbound)
        return taken

    def drop(self) -> int:
        """Remove everything; return how many bytes that was, without those that `take_fresh` has not told of."""
        cdef size_t size = self.inbound.length - self.start - self.fresh
        bytes_free(&self.inbound)
        self.start = self.fresh = self.padding = 0
        return size

    def settle(self) -> None:
        raise NotImplementedError


cdef class RequestReader:
    """Cuts a client's bytes into frames, holding at most one incomplete frame, and takes the DATA it can.

    Arguments: `streams`, the InboundStreams by id, which the owner keeps; `max_frame_size` in bytes; `too_long`, called
    with the length of a frame that is longer, must raise.

    Attributes: `window`, bytes the client may send on the connection; `in_header_block`, set by the owner while
    nothing but CONTINUATION may come; `progress`, whether the last `frames` has completed a frame; `pending`, whether
    a frame has begun and is not complete.
    """

    cdef dict streams
    cdef size_t max_frame_size
    cdef object too_long
    cdef Bytes rest
    cdef bytes received      # what is walked, None when it is `rest`
    cdef const uint8_t* p
    cdef size_t size
    cdef size_t position
    cdef list touched
    cdef public int64_t window
    cdef public bint in_header_block
    cdef readonly bint progress

    def __cinit__(self, dict streams, size_t max_frame_size, int64_t window, too_long):
        self.streams = streams
        self.max_frame_size = max_frame_size
        self.window = window
        self.too_long = too_long
        self.touched = []

    def __dealloc__(self):
        bytes_free(&self.rest)

    @property
    def pending(self) -> bool:
        return self.rest.length > 0

    def frames(self, received):
        """Iterate over the frames that `received` completes, as (type, flags, stream id, payload), without the DATA
        that went to its stream. To be used up, or never used again."""
        cdef Py_buffer view
        self.progress = False
        self.position = 0
        if self.rest.length or not isinstance(received, bytes):
            PyObject_GetBuffer(received, &view, PyBUF_SIMPLE)
            try:
                if bytes_reserve(&self.rest, view.len) < 0:
                    raise MemoryError("no memory for what a client sends")
                put(&self.rest, view.buf, view.len)
            finally:
                PyBuffer_Release(&view)
            self.received = None
            self.p = self.rest.data
            self.size = self.rest.length
        else:
            self.received = received
            self.p = <const uint8_t*> PyBytes_AS_STRING(received)
            self.size = len(<bytes> received)
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef const uint8_t* p
        cdef size_t length
        cdef uint32_t stream_id, known = 0
        cdef InboundStream stream = None
        while self.size - self.position >= FRAME_HEADER:
            p = self.p + self.position
            length = (<size_t> p[0] << 16) | (<size_t> p[1] << 8) | p[2]
            if length > self.max_frame_size:
                self.settle()
                self.too_long(length)
            if self.size - self.position - FRAME_HEADER < length:
                break
            stream_id = (
                (<uint32_t> p[5] << 24) | (<uint32_t> p[6] << 16) | (<uint32_t> p[7] << 8) | p[8]
            ) & MAX_STREAM_ID
            self.position += FRAME_HEADER + length
            self.progress = True
            if p[3] == FRAME_DATA and not p[4] & FLAG_END_STREAM and not self.in_header_block:
                if stream_id != known:
                    known, stream = stream_id, self.streams.get(stream_id)
                if stream is not None and self.put_data(stream, p[4], p + FRAME_HEADER, length):
                    continue
            self.settle()
            return p[3], p[4], stream_id, PyBytes_FromStringAndSize(<char*> p + FRAME_HEADER, length)
        self.keep_rest()
        self.settle()
        raise StopIteration

    cdef int put_data(self, InboundStream stream, uint8_t flags, const uint8_t* data, size_t length) except -1:
        """Give a stream the payload of a DATA frame; 0, and nothing has happened, if it is an unusual one."""
        cdef size_t size = length
        if flags & FLAG_PADDED:
            if length == 0 or data[0] >= length:
                return 0
            size = length - 1 - data[0]
            data += 1
        if size == 0 or stream.ended or stream.finished:
            return 0
        if <int64_t> length > self.window or <int64_t> length > stream.receive_window:
            return 0
        stream.append(data, size, length - size)
        self.window -= length
        stream.receive_window -= length
        if not stream.touched:
            stream.touched = True
            self.touched.append(stream)
        return 1

    cdef int settle(self) except -1:
        """Tell the streams that got data."""
        cdef InboundStream stream
        cdef list touched
        if self.touched:
            touched, self.touched = self.touched, []
            for stream in touched:
                stream.touched = False
                stream.settle()
        return 0

    cdef int keep_rest(self) except -1:
        cdef size_t left = self.size - self.position
        if self.received is None:
            if self.position:
                memmove(self.rest.data, self.rest.data + self.position, left)
                self.rest.length = left
        elif left:
            if bytes_reserve(&self.rest, left) < 0:
                raise MemoryError("no memory for what a client sends")
            put(&self.rest, self.p + self.position, left)
        if not left and self.rest.capacity > KEPT_BUFFER:
            bytes_free(&self.rest)
        self.received = None
        self.p = NULL
        self.size = self.position = 0
        return 0
