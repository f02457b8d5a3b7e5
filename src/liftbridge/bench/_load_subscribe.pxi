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
        stamps: stamped messages received, each of them for the first time.
        latency: how long they took.
    """

    cdef readonly int64_t stamps
    cdef readonly Histogram latency
    cdef int64_t stamped
    cdef uint8_t* seen
    cdef uint8_t* received

    def __cinit__(self, *, int64_t window, int64_t max_frame=16384, int64_t stamped=0):
        self.offer(window, max_frame)
        self.stamped = stamped
        self.whole = stamped > 0
        self.latency = Histogram()
        self.received = <uint8_t*> malloc(RECEIVE_BYTES)
        self.seen = <uint8_t*> calloc(<size_t> stamped // 8 + 1, 1)
        if self.received == NULL or self.seen == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.received)
        free(self.seen)

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
                self.now = monotonic_ns()
                error = self.walk(self.received, <size_t> count)
                if not self.send_reply(fd):
                    count = -1
                    failure = errno
                    break
        self.check(error)
        if ready == 0:
            raise TimeoutError(f"nothing came from the server for {timeout_ms / 1000.0:.1f} s")
        if ready < 0 or count < 0:
            raise OSError(failure, os.strerror(failure))
        if count == 0:
            raise ConnectionError("the server closed the connection in the middle of the call")

    cdef int take_message(self, const uint8_t* p, size_t size) noexcept nogil:
        """Look at the stamp of a message: protobuf `Message`, whose field 3 is the value."""
        cdef const uint8_t* end = p + size
        cdef Field field
        cdef int64_t at_ns
        cdef uint64_t serial
        cdef uint8_t bit
        while p < end:
            p = get_field(p, end, &field)
            if p == NULL:
                return BAD_PROTOBUF
            if field.number != 3 or field.wire != 2:
                continue
            if field.value < STAMP_BYTES:
                return BAD_STAMP
            memcpy(&at_ns, field.data, 8)
            memcpy(&serial, field.data + 8, 8)
            if serial >= <uint64_t> self.stamped:
                return BAD_STAMP
            bit = <uint8_t> (1 << (serial & 7))
            if self.seen[serial >> 3] & bit:
                return DELIVERED_TWICE
            self.seen[serial >> 3] |= bit
            self.stamps += 1
            self.latency.add(self.now - at_ns)
            return OK
        return OK  # the empty message that says that the subscription is live
