# gRPC messages, the HTTP/2 DATA frames that carry them, and what every message of a subscription has in common.
# Included by _wire.pyx.

def data_frames(uint32_t stream_id, data, size_t max_frame_size) -> bytes:
    """`data` cut into HTTP/2 DATA frames of at most `max_frame_size` bytes of payload each, headers included.

    `data` is any bytes-like object of at least one byte; the END_STREAM flag is not set.
    """
    cdef Py_buffer view
    cdef size_t frames, length, done = 0
    cdef uint8_t* out
    cdef object result
    assert 0 < max_frame_size < 16777216, f"no HTTP/2 frame size: {max_frame_size}"
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        assert view.len > 0, "an empty DATA frame would say nothing"
        frames = (view.len + max_frame_size - 1) // max_frame_size
        result = PyBytes_FromStringAndSize(NULL, view.len + 9 * frames)
        out = <uint8_t*> PyBytes_AS_STRING(result)
        while done < <size_t> view.len:
            length = view.len - done
            if length > max_frame_size:
                length = max_frame_size
            out[0] = <uint8_t> (length >> 16)
            out[1] = <uint8_t> (length >> 8)
            out[2] = <uint8_t> length
            out[3] = 0
            out[4] = 0
            out[5] = <uint8_t> ((stream_id >> 24) & 0x7F)
            out[6] = <uint8_t> (stream_id >> 16)
            out[7] = <uint8_t> (stream_id >> 8)
            out[8] = <uint8_t> stream_id
            memcpy(out + 9, <uint8_t*> view.buf + done, length)
            out += 9 + length
            done += length
        return result
    finally:
        PyBuffer_Release(&view)


cdef struct Whole:
    size_t end
    int flag
    int64_t length


cdef inline size_t message_length(const uint8_t* p) noexcept nogil:
    return (<size_t> p[1] << 24) | (<size_t> p[2] << 16) | (<size_t> p[3] << 8) | p[4]


cdef void find_whole(const uint8_t* data, size_t size, size_t max_message, Whole* found) noexcept nogil:
    cdef const uint8_t* p
    cdef size_t end = 0, length
    while size - end >= GRPC_PREFIX:
        p = data + end
        length = message_length(p)
        if p[0] != 0 or length > max_message or size - end - GRPC_PREFIX < length:
            found.end, found.flag, found.length = end, p[0], length
            return
        end += GRPC_PREFIX + length
    found.end, found.flag, found.length = end, 0, -1


def whole_messages(data, size_t max_message):
    """Find how much of `data` is whole length-prefixed gRPC messages.

    `data` is any bytes-like object whose first byte begins a message; `max_message` is the longest message accepted,
    in bytes. Returns `(end, flag, length)`: the whole messages are `data[:end]`; flag and length are the header of the
    message that begins at `end`, (0, -1) if that header is incomplete. The search stops at a message whose flag is
    not 0 or which is longer than `max_message`: the caller refuses it.
    """
    cdef Py_buffer view
    cdef Whole found
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        find_whole(<const uint8_t*> view.buf, view.len, max_message, &found)
        return found.end, found.flag, found.length
    finally:
        PyBuffer_Release(&view)


def message_prefix(stream: bytes, partition: int) -> bytes:
    """The fields stream (5) and partition (6) of a `Message`, encoded: the log writes them in front of every
    record it hands to a subscriber."""
    cdef Bytes b
    bytes_init(&b)
    if bytes_reserve(&b, 32 + <size_t> len(stream)) < 0:
        raise MemoryError
    put_field(&b, 5, <const uint8_t*> PyBytes_AS_STRING(stream), len(stream))
    put_number(&b, 6, <uint64_t> <uint32_t> partition)
    try:
        return PyBytes_FromStringAndSize(<char*> b.data, b.length)
    finally:
        bytes_free(&b)
