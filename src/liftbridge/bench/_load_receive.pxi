# The loop of those who receive and count. Included by _load.pyx.

cdef enum:
    # A whole message of what NATS and gRPC servers take by default, and a read behind it.
    RECEIVE_ROOM = 3 * RECEIVE_BYTES
    MAX_REPLY = 65536


cdef class Receiver:
    """The receiving half of a connection that brings messages; a subclass knows the protocol.

    Attributes:
        messages: messages received whole.
        data_bytes: bytes that they took, with what the protocol adds to each.
        ended: whether the server has said that there will be no more.
    """

    cdef readonly int64_t messages
    cdef readonly int64_t data_bytes
    cdef readonly bint ended
    # When what is being looked at was received
    cdef int64_t now
    # What was received; `kept` bytes at its beginning are of an earlier read, the beginning of something incomplete
    cdef uint8_t* received
    cdef size_t kept
    # What is to be answered
    cdef uint8_t* reply
    cdef size_t reply_have

    def __cinit__(self):
        self.reply = <uint8_t*> malloc(MAX_REPLY)
        if self.reply == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.received)
        free(self.reply)

    def receive(self, int fd, int64_t messages, int timeout_ms):
        """Receive until `messages` messages have been counted since the start, or there will be no more.

        Args:
            fd: a connected blocking socket.
            messages: the count at which to return; it may be exceeded by what came in the same read.
            timeout_ms: how long to wait for the next message, in ms. What a server sends to show that it lives is none.

        Raises:
            ProtocolError: what was received breaks the protocol.
            TimeoutError: nothing came for `timeout_ms`.
            ConnectionError: the server closed the connection too early.
            OSError: the socket failed.
        """
        cdef int error = OK
        cdef ssize_t count = 1
        cdef int ready = 1
        cdef int failure = 0
        cdef int64_t counted = self.messages
        cdef int64_t deadline
        self.make_room()
        with nogil:
            self.now = monotonic_ns()
            deadline = self.now + <int64_t> timeout_ms * 1000000
            if not self.send_reply(fd):
                count = -1
                failure = errno
            while count > 0 and self.waiting(messages) and not self.ended and error == OK:
                ready = wait_readable(fd, <int> ((deadline - self.now + 999999) // 1000000))
                if ready < 0 and errno == EINTR:
                    continue
                if ready <= 0:
                    failure = errno
                    break
                count = c_recv(
                    fd, self.received + self.kept, min(RECEIVE_BYTES, RECEIVE_ROOM - <int64_t> self.kept), 0
                )
                if count < 0 and errno == EINTR:
                    count = 1
                    continue
                if count <= 0:
                    failure = errno
                    break
                self.now = monotonic_ns()
                error = self.walk(self.received, self.kept + <size_t> count)
                if self.messages > counted:
                    counted = self.messages
                    deadline = self.now + <int64_t> timeout_ms * 1000000
                elif self.now >= deadline:
                    ready = 0
                    break
                if not self.send_reply(fd):
                    count = -1
                    failure = errno
        self.check(error)
        if ready == 0:
            raise TimeoutError(f"nothing came from the server for {timeout_ms / 1000.0:.1f} s")
        if ready < 0 or count < 0:
            raise OSError(failure, os.strerror(failure))
        if count == 0:
            raise ConnectionError("the server closed the connection in the middle of the call")

    def feed(self, data):
        """Take received bytes, and return what is to be sent after them: what `receive` does without a socket.

        Raises:
            ProtocolError: the bytes break the protocol.
        """
        cdef Py_buffer view
        cdef size_t done = 0
        cdef size_t piece
        self.make_room()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            while done < <size_t> view.len:
                piece = min(<size_t> view.len - done, <size_t> RECEIVE_ROOM - self.kept)
                memcpy(self.received + self.kept, <const uint8_t*> view.buf + done, piece)
                done += piece
                self.now = monotonic_ns()
                self.check(self.walk(self.received, self.kept + piece))
        finally:
            PyBuffer_Release(&view)
        answer = self.reply[:self.reply_have]
        self.reply_have = 0
        return answer

    cdef make_room(self):
        if self.received == NULL:
            self.received = <uint8_t*> malloc(RECEIVE_ROOM)
        if self.received == NULL:
            raise MemoryError

    cdef check(self, int error):
        if error != OK:
            raise ProtocolError(_ERRORS[error])

    cdef bint send_reply(self, int fd) noexcept nogil:
        """Send what is to be answered; false, with errno, when the socket fails."""
        cdef size_t done = 0
        cdef ssize_t count
        while done < self.reply_have:
            count = c_send(fd, self.reply + done, self.reply_have - done, MSG_NOSIGNAL)
            if count < 0:
                if errno == EINTR:
                    continue
                return False
            done += <size_t> count
        self.reply_have = 0
        return True

    # What a subclass does

    cdef bint waiting(self, int64_t messages) noexcept nogil:
        """Whether what is wanted has not come yet."""
        return self.messages < messages

    cdef int walk(self, const uint8_t* p, size_t size) noexcept nogil:
        """Take received bytes; returns OK or what is wrong with them. What is incomplete goes to the beginning of
        `received`, and its size to `kept`."""
        return OK
