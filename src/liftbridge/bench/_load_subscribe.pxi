# A gRPC subscriber that counts, and for latency looks at the stamps in the values. Included by _load.pyx.

cdef class SubscribeCounter(GrpcReceiver):
    """The receiving half of an HTTP/2 connection with a server-streaming gRPC call on stream 1, a subscription.

    Args:
        window: flow-control window in bytes, as the caller has granted it for the stream and, if it is above
            65535, for the connection.
        max_frame: SETTINGS_MAX_FRAME_SIZE in bytes, as the caller has announced it.
        stamped: how many messages there are whose values begin with a stamp: the time that counts, and a serial number
            below this. 0 does not look into messages at all.

    Attributes:
        stamps: what the stamps say.
    """

    cdef readonly Stamps stamps

    def __cinit__(self, *, int64_t window, int64_t max_frame=16384, int64_t stamped=0):
        self.offer(window, max_frame)
        self.whole = stamped > 0
        self.stamps = Stamps(stamped)

    cdef int take_message(self, const uint8_t* p, size_t size) noexcept nogil:
        """Look at the stamp of a message: protobuf `Message`, whose field 3 is the value."""
        cdef const uint8_t* end = p + size
        cdef Field field
        while p < end:
            p = get_field(p, end, &field)
            if p == NULL:
                return BAD_PROTOBUF
            if field.number == 3 and field.wire == 2:
                return self.stamps.take(field.data, <size_t> field.value, self.now)
        return OK  # the empty message that says that the subscription is live
