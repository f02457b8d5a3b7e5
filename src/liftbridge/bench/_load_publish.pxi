# The loop of a publisher: what it sends and when. Included by _load.pyx.

cdef enum:
    # What `close` may add to a buffer that is full.
    CLOSE_BYTES = 16

cdef enum:
    RUNNING = 0
    CLOSING
    CLOSED

cdef class Publisher:
    """One connection that publishes `messages` messages and takes their acks; a subclass speaks the protocol.

    A message is `template` with up to two things patched in: at `serial_at` its serial number, 16 hexadecimal digits,
    by which its ack is known, and at `stamp_at` 16 bytes, the time that counts in ns and the serial number, both in the
    machine's own byte order; -1 leaves them out.

    With an `interval_ns` it is an open loop: each message has a time at which it is to be sent, and its latency counts
    from then, so that waiting for a server that has fallen behind counts as well. Without, it sends when the
    window has room, and latency counts from there.

    Attributes:
        acks: what is outstanding, and the latencies.
        first_ns, sent_ns, end_ns: when the first message was due to be sent, when the last one had been, and when the
            last ack was there (without acks: when the server had taken everything).
        cpu_ns: CPU time of the loop.
    """

    cdef readonly Acks acks
    cdef readonly int64_t first_ns
    cdef readonly int64_t sent_ns
    cdef readonly int64_t end_ns
    cdef readonly int64_t cpu_ns
    cdef int64_t messages
    cdef int64_t count
    cdef bint acked
    cdef double interval_ns
    cdef int64_t phase_ns
    cdef uint64_t first_serial
    # The message that is being sent
    cdef uint8_t* template
    cdef size_t size
    cdef Py_ssize_t serial_at
    cdef Py_ssize_t stamp_at
    cdef bint patched
    # What is to be sent, what has come
    cdef uint8_t* out
    cdef size_t out_room
    cdef size_t out_have
    cdef size_t out_done
    cdef uint8_t* inp
    cdef size_t inp_have
    cdef int phase
    # Of a refusal
    cdef uint8_t detail[MAX_DETAIL]
    cdef size_t detail_size
    cdef str detail_kind

    def __cinit__(
        self,
        bytes template,
        *,
        int64_t messages,
        int64_t window,
        Py_ssize_t serial_at=-1,
        Py_ssize_t stamp_at=-1,
        bint acked=True,
        int64_t first_serial=0,
        double interval_ns=0,
        int64_t phase_ns=0,
        **other,
    ):
        self.size = len(template)
        if not -1 <= serial_at <= <Py_ssize_t> self.size - SERIAL_DIGITS:
            raise ValueError(f"a serial number at {serial_at} lies outside of a message of {self.size} bytes")
        if not -1 <= stamp_at <= <Py_ssize_t> self.size - STAMP_BYTES:
            raise ValueError(f"a stamp at {stamp_at} lies outside of a message of {self.size} bytes")
        if messages < 1 or first_serial < 0 or interval_ns < 0:
            raise ValueError("there is at least one message, serial numbers and intervals are not negative")
        self.messages = messages
        self.acked = acked
        self.serial_at = serial_at
        self.stamp_at = stamp_at
        self.first_serial = <uint64_t> first_serial
        self.interval_ns = interval_ns
        self.phase_ns = phase_ns
        self.acks = Acks(window, first_serial)
        self.out_room = SEND_BYTES + 2 * self.size
        self.template = <uint8_t*> malloc(self.size)
        self.out = <uint8_t*> malloc(self.out_room + CLOSE_BYTES)
        self.inp = <uint8_t*> malloc(RECEIVE_BYTES)
        if self.template == NULL or self.out == NULL or self.inp == NULL:
            raise MemoryError
        memcpy(self.template, <const char*> template, self.size)

    def __dealloc__(self):
        free(self.template)
        free(self.out)
        free(self.inp)

    @property
    def sent(self):
        """Messages sent so far."""
        return self.count

    def run(self, int fd, int silence_ms):
        """Publish everything, and wait for every ack.

        Args:
            fd: a connected socket.
            silence_ms: how long to wait, in ms, for a server that neither takes nor sends anything.

        Raises:
            RefusedError: the server does not want a message.
            ProtocolError: what it sent breaks its protocol, or an ack is not for a message that waits for one.
            TimeoutError: nothing moved for `silence_ms`.
            ConnectionError: the server closed the connection.
            OSError: the socket failed.
        """
        cdef int error = OK
        cdef int failure = 0
        cdef int64_t silence_ns = <int64_t> silence_ms * 1000000
        with nogil:
            wake_in_time()
            self.cpu_ns = -thread_cpu_ns()
            while error == OK and self.phase != CLOSED:
                failure = self.turn(fd, silence_ns, &error)
                if failure:
                    break
            self.cpu_ns += thread_cpu_ns()
        self.check(error)
        if failure == -1:
            raise ConnectionError("the server closed the connection")
        if failure == -2:
            raise TimeoutError(f"nothing came from the server for {silence_ms / 1000.0:.1f} s")
        if failure:
            raise OSError(failure, os.strerror(failure))

    def feed(self, data):
        """Take received bytes, and return what is to be sent after them: what `run` does without a socket.

        Raises as `run`.
        """
        cdef Py_buffer view
        cdef size_t done = 0
        cdef size_t piece
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            while True:
                piece = min(<size_t> view.len - done, <size_t> RECEIVE_BYTES - self.inp_have)
                memcpy(self.inp + self.inp_have, <const uint8_t*> view.buf + done, piece)
                self.inp_have += piece
                done += piece
                self.acks.now = monotonic_ns()
                self.check(self.receive())
                if done == <size_t> view.len:
                    break
        finally:
            PyBuffer_Release(&view)
        self.check(self.fill())
        answer = self.out[:self.out_have]
        self.out_have = 0
        return answer

    cdef check(self, int error):
        if error == OK:
            return
        if error == REFUSED or error == CALL_ENDED:
            kind = self.detail_kind if error == REFUSED else "call"
            raise RefusedError(_ERRORS[error], kind, self.detail[:self.detail_size])
        raise ProtocolError(_ERRORS[error])

    cdef int turn(self, int fd, int64_t silence_ns, int* error) noexcept nogil:
        """Send what may be sent, wait, receive. Returns 0, an errno, -1 at the end of the connection, or -2 when
        nothing moved for too long; and what is wrong with what came."""
        cdef int64_t wait_ns
        cdef ssize_t done
        cdef int ready
        error[0] = self.fill()
        if error[0] != OK:
            return 0
        if self.out_done < self.out_have:
            done = c_send(fd, self.out + self.out_done, self.out_have - self.out_done, MSG_DONTWAIT | MSG_NOSIGNAL)
            if done < 0 and errno != EAGAIN and errno != EINTR:
                return errno
            if done > 0:
                self.out_done += <size_t> done
        if self.out_done == self.out_have:
            self.out_have = self.out_done = 0
            if self.count == self.messages and not self.sent_ns:
                self.sent_ns = monotonic_ns()
        if self.phase == CLOSED:
            return 0
        wait_ns = self.idle_ns()
        ready = wait_ready(fd, self.out_have > 0, silence_ns if wait_ns < 0 else wait_ns)
        if ready < 0 and errno != EINTR:
            return errno
        if ready == 0 and wait_ns < 0:
            return -2
        if ready > 0 and ready & 1:
            done = c_recv(fd, self.inp + self.inp_have, RECEIVE_BYTES - self.inp_have, MSG_DONTWAIT)
            if done == 0:
                return -1
            if done < 0:
                return 0 if errno == EAGAIN or errno == EINTR else errno
            self.inp_have += <size_t> done
            self.acks.now = monotonic_ns()
            error[0] = self.receive()
        return 0

    cdef int64_t idle_ns(self) noexcept nogil:
        """How long there will be nothing to send, in ns; -1 while only the server can change that."""
        if self.out_have:
            return -1
        if self.patched:  # it did not fit into what was being sent, which has gone now
            return -1 if self.blocked() else 0
        if self.count == self.messages or (self.acked and self.acks.full()) or self.busy():
            return -1
        return max(<int64_t> 0, self.due_ns() - monotonic_ns()) if self.interval_ns else 0

    cdef int64_t due_ns(self) noexcept nogil:
        """When the next message is to be sent, at a rate."""
        return self.first_ns + <int64_t> (<double> self.count * self.interval_ns)

    cdef int fill(self) noexcept nogil:
        """Encode what may be sent now."""
        cdef int64_t now = monotonic_ns()
        cdef int64_t due
        self.answer()
        if not self.first_ns:
            self.first_ns = now + self.phase_ns
        while self.patched or self.count < self.messages:
            if not self.patched:
                due = self.due_ns() if self.interval_ns else now
                if due > now or (self.acked and self.acks.full()) or self.busy():
                    break
                self.patch(due)
            if not self.put():
                break
            self.patched = False
        if self.phase == RUNNING and self.count == self.messages and not self.patched and not self.busy() and (
            not self.acked or self.acks.acked == self.messages
        ):
            if self.acked:
                self.end_ns = self.acks.now
            self.phase = CLOSING
            self.close()
        return OK

    cdef void patch(self, int64_t due) noexcept nogil:
        """Make the template the next message."""
        cdef uint64_t serial = self.first_serial + <uint64_t> self.count
        if self.serial_at >= 0:
            put_serial(self.template + self.serial_at, serial)
        if self.stamp_at >= 0:
            memcpy(self.template + self.stamp_at, &due, 8)
            memcpy(self.template + self.stamp_at + 8, &serial, 8)
        if self.acked:
            self.acks.send(due)
        self.count += 1
        self.patched = True

    cdef void closed(self) noexcept nogil:
        """Everything is done."""
        self.phase = CLOSED
        if not self.acked:
            self.end_ns = monotonic_ns()

    cdef int refuse(self, const uint8_t* p, size_t size) noexcept nogil:
        """Keep what a refusal says."""
        self.detail_size = min(size, <size_t> MAX_DETAIL)
        memcpy(self.detail, p, self.detail_size)
        return REFUSED

    # What a subclass does

    cdef void answer(self) noexcept nogil:
        """Add to what is sent what the protocol wants to be answered."""

    cdef bint put(self) noexcept nogil:
        """Add the message to what is sent, or what fits of it; true once all of it is there."""
        return True

    cdef bint busy(self) noexcept nogil:
        """Whether the server has to end something before a message can begin, or before there is an end."""
        return False

    cdef bint blocked(self) noexcept nogil:
        """Whether the server has to allow more before anything can be sent."""
        return False

    cdef void close(self) noexcept nogil:
        """Everything is acked, or sent where there are no acks: ask the server whether it has everything."""

    cdef int receive(self) noexcept nogil:
        """Take what has come, and leave in `inp` only what is incomplete."""
        return OK
