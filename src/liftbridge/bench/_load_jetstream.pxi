# An ordered consumer of JetStream that counts. Included by _load.pyx.

cdef enum:
    # What is kept of the answer to the call that makes the consumer.
    MAX_ANSWER = 65536
    # A line has at most so many words, and the subject that would ack a message so many dots.
    MAX_WORDS = 6
    ACK_DOTS = 8
    CONSUMER_SEQUENCE = 6
    # No PUB of a reply is longer.
    MAX_PUB = 1024


cdef struct Word:
    const uint8_t* data
    size_t size


cdef class JetStreamCounter(Receiver):
    """The receiving half of a NATS connection with one ordered consumer, which does what ordered consumers of NATS
    clients do: it notices a message that is missing by the consumer's sequence, and keeps the flow going.

    The connection has subscribed with the id 1 to where messages come, and with the id 2 to where the answer comes to
    the call that makes the consumer. A push consumer asks for an answer to its flow control now and then; a pull
    consumer is asked for the next `batch` messages whenever less than half of as many are still to come.

    Args:
        stamped: how many messages there are whose values begin with a stamp; 0 does not look at values.

    Attributes:
        stamps: what the stamps say.
        pending: how many messages the server had still to deliver behind the last one.
        answered: whether the call was answered.
    """

    cdef readonly Stamps stamps
    cdef readonly int64_t pending
    cdef readonly bint answered
    cdef bint look
    cdef uint8_t* answer_data
    cdef size_t answer_size
    cdef uint8_t detail[MAX_DETAIL]
    cdef size_t detail_size
    # Of a pull consumer
    cdef bytes pull_text
    cdef const uint8_t* pull_data
    cdef size_t pull_size
    cdef int64_t batch
    cdef int64_t asked

    def __cinit__(self, *, int64_t stamped=0):
        self.look = stamped > 0
        self.stamps = Stamps(stamped)
        self.answer_data = <uint8_t*> malloc(MAX_ANSWER)
        if self.answer_data == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.answer_data)

    @property
    def answer(self):
        """The answer to the call that makes the consumer."""
        return self.answer_data[:self.answer_size]

    def pull(self, bytes request, int64_t batch):
        """Ask for messages from now on.

        Args:
            request: a whole PUB that asks for `batch` messages.
            batch: at least 1.
        """
        if not 0 < len(request) <= MAX_PUB or batch < 1:
            raise ValueError(f"a request has at most {MAX_PUB} bytes and asks for one message at least")
        self.pull_text = request
        self.pull_data = request
        self.pull_size = len(request)
        self.batch = batch
        self.check(self.ask())

    cdef check(self, int error):
        if error == REFUSED:
            raise RefusedError(_ERRORS[error], "text", self.detail[:self.detail_size])
        Receiver.check(self, error)

    cdef bint waiting(self, int64_t messages) noexcept nogil:
        return self.messages < messages or not self.answered

    cdef int walk(self, const uint8_t* p, size_t size) noexcept nogil:
        cdef const uint8_t* end = p + size
        cdef size_t line, payload
        cdef int kind
        cdef int error = OK
        while p < end and error == OK:
            kind = nats_item(p, <size_t> (end - p), MAX_MESSAGE, &line, &payload)
            if kind == NATS_INCOMPLETE:
                break
            if kind == NATS_BROKEN:
                error = BAD_LINE
            elif kind == NATS_MESSAGE:
                error = self.take(p, line, p + line + 2, payload)
                p += line + 2 + payload + 2
            else:
                error = self.control(p, line)
                p += line + 2
        self.kept = <size_t> (end - p) if error == OK else 0
        memmove(self.received, p, self.kept)
        return self.ask() if error == OK else error

    cdef int ask(self) noexcept nogil:
        """Ask a pull consumer for more, if it is time to."""
        while self.batch and 2 * (self.asked - self.messages) < self.batch:
            if self.reply_have + self.pull_size > MAX_REPLY:
                return TOO_MUCH_CONTROL
            memcpy(self.reply + self.reply_have, self.pull_data, self.pull_size)
            self.reply_have += self.pull_size
            self.asked += self.batch
        return OK

    cdef int control(self, const uint8_t* p, size_t size) noexcept nogil:
        """Take a line that is no message."""
        if size == 4 and memcmp(p, b"PING", 4) == 0:
            return self.add(b"PONG\r\n", 6)
        if size >= 4 and memcmp(p, b"-ERR", 4) == 0:
            return self.refuse(p, size)
        if size >= 3 and (memcmp(p, b"+OK", 3) == 0 or memcmp(p, b"INF", 3) == 0 or memcmp(p, b"PON", 3) == 0):
            return OK
        return BAD_LINE

    cdef int take(self, const uint8_t* line, size_t size, const uint8_t* p, size_t length) noexcept nogil:
        """Take a message: MSG or HMSG, subject, id, perhaps where a reply goes, lengths."""
        cdef Word words[MAX_WORDS]
        cdef bint headers = line[0] == c'H'
        cdef int count = split(line, size, words)
        cdef bint replies = count == (6 if headers else 5)
        if not replies and count != (5 if headers else 4):
            return BAD_LINE
        if words[2].size == 1 and words[2].data[0] == c'2':
            if headers:
                return self.refuse(p, length)
            self.answer_size = min(length, <size_t> MAX_ANSWER)
            memcpy(self.answer_data, p, self.answer_size)
            self.answered = True
            return OK
        if headers:
            return self.status(&words[3], replies, p, length)
        if not replies or not self.in_order(&words[3]):
            return OUT_OF_ORDER
        self.messages += 1
        self.data_bytes += <int64_t> (size + 2 + length + 2)
        return self.stamps.take(p, length, self.now) if self.look else OK

    cdef bint in_order(self, Word* ack) noexcept nogil:
        """Whether a message is the next one of the consumer, as $JS.ACK.<stream>.<consumer>.<deliveries>.
        <stream's sequence>.<consumer's sequence>.<time>.<pending> says."""
        cdef const uint8_t* p = ack.data
        cdef const uint8_t* end = p + ack.size
        cdef int64_t number = 0
        cdef int64_t sequence = -1
        cdef int dots = 0
        while p < end:
            if p[0] == c'.':
                if dots == CONSUMER_SEQUENCE:
                    sequence = number
                dots += 1
                number = 0
            else:
                number = number * 10 + (p[0] - c'0')
            p += 1
        self.pending = number
        return dots == ACK_DOTS and sequence == self.messages + 1

    cdef int status(self, Word* reply, bint replies, const uint8_t* p, size_t length) noexcept nogil:
        """Take what the server says of the consumer: 100 is a sign of life, and may want an answer."""
        cdef const uint8_t* stalled
        cdef const uint8_t* end
        if length < 12 or memcmp(p, b"NATS/1.0 100", 12) != 0:
            return self.refuse(p, length)
        if replies:
            return self.reply_to(reply.data, reply.size)
        stalled = find(p, length, b"Nats-Consumer-Stalled: ", 23)
        if stalled == NULL:
            return OK
        stalled += 23
        end = <const uint8_t*> memchr(stalled, c'\r', <size_t> (p + length - stalled))
        return BAD_LINE if end == NULL else self.reply_to(stalled, <size_t> (end - stalled))

    cdef int reply_to(self, const uint8_t* subject, size_t size) noexcept nogil:
        if size + 16 > MAX_PUB:
            return BAD_LINE
        if self.add(b"PUB ", 4) or self.add(subject, size) or self.add(b" 0\r\n\r\n", 6):
            return TOO_MUCH_CONTROL
        return OK

    cdef int add(self, const uint8_t* p, size_t size) noexcept nogil:
        if self.reply_have + size > MAX_REPLY:
            return TOO_MUCH_CONTROL
        memcpy(self.reply + self.reply_have, p, size)
        self.reply_have += size
        return OK

    cdef int refuse(self, const uint8_t* p, size_t size) noexcept nogil:
        """Keep what a refusal says."""
        self.detail_size = min(size, <size_t> MAX_DETAIL)
        memcpy(self.detail, p, self.detail_size)
        return REFUSED


cdef int split(const uint8_t* p, size_t size, Word* words) noexcept nogil:
    """Cut a line at its spaces; returns how many words it has, one more than there is room for if they are too many."""
    cdef const uint8_t* end = p + size
    cdef const uint8_t* space
    cdef int count = 0
    while count < MAX_WORDS:
        space = <const uint8_t*> memchr(p, c' ', <size_t> (end - p))
        words[count].data = p
        words[count].size = <size_t> ((end if space == NULL else space) - p)
        count += 1
        if space == NULL:
            return count
        p = space + 1
    return MAX_WORDS + 1
