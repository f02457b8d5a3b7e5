# The receiving end of a partition: messages into a batch, acks into queues. Included by _wire.pyx.
#
# Invariant: an ack carries the offset that its message gets, because the sink counts on from the log's next offset
# and the owner appends batches in the order in which it takes them.

cdef struct AckEntry:
    int64_t offset
    size_t end              # of the PUB in the queue's buffer, counted like `start`
    size_t payload          # of the PUB
    size_t commit_position  # where the commit timestamp is patched in
    size_t subject
    size_t inbox
    size_t correlation
    uint32_t subject_length
    uint32_t inbox_length
    uint32_t correlation_length
    int policy
    bint local              # for a call of this server
    int64_t reception


cdef enum:
    FIRST_ACKS = 8  # entries that a queue begins with; most partitions never have more acks waiting


cdef class AckQueue:
    """Encoded acks of one partition that wait for the log to reach their offset.

    Acks are encoded when their message is appended to a batch, as complete NATS PUB commands, and handed out in
    offset order by `release`, which fills in the commit timestamp. Acks for calls of this very server are not handed
    out: `router` gets them, as if they had come from NATS, and with them the two longest steps of their way are saved.
    Positions are counted from the first byte ever queued (`base` is that of data[0]), so they stay valid when released
    bytes are cut off.
    """

    cdef Bytes data
    cdef Sink router
    cdef size_t base
    cdef AckEntry* entries
    cdef size_t head
    cdef size_t count
    cdef size_t capacity

    def __cinit__(self):
        bytes_init(&self.data)
        self.entries = NULL
        self.base = self.head = self.count = self.capacity = 0

    def __dealloc__(self):
        bytes_free(&self.data)
        free(self.entries)

    def __len__(self):
        return self.count - self.head

    @property
    def size(self) -> int:
        """Bytes that wait in the queue."""
        return self.data.length

    cdef int push(self, AckEntry* entry) noexcept nogil:
        cdef AckEntry* grown
        cdef size_t capacity
        if self.count == self.capacity:
            if self.head > self.capacity // 2:
                memmove(self.entries, self.entries + self.head, (self.count - self.head) * sizeof(AckEntry))
                self.count -= self.head
                self.head = 0
            else:
                capacity = self.capacity * 2 if self.capacity else FIRST_ACKS
                grown = <AckEntry*> realloc(self.entries, capacity * sizeof(AckEntry))
                if grown == NULL:
                    return -1
                self.entries = grown
                self.capacity = capacity
        self.entries[self.count] = entry[0]
        self.count += 1
        return 0

    cdef void cut(self, size_t position) noexcept nogil:
        """Forget everything in front of `position`."""
        cdef size_t gone = position - self.base
        memmove(self.data.data, self.data.data + gone, self.data.length - gone)
        self.data.length -= gone
        self.base = position
        if self.head == self.count:
            self.head = self.count = 0
            if self.data.capacity > 4 * BATCH_BYTES and self.data.length == 0:
                bytes_free(&self.data)

    def release(self, int64_t below, int64_t now) -> bytes:
        """The acks of all messages with an offset smaller than `below`, as NATS protocol bytes.

        `now` is the commit timestamp in ns. Empty bytes when nothing waited, or only acks for calls of this server;
        `router` has those, and its owner is to be told.
        """
        cdef size_t end = self.base
        cdef size_t local = 0  # bytes of acks that `router` gets
        cdef size_t first = self.head
        cdef AckEntry* entry
        cdef object released
        while self.head < self.count:
            entry = &self.entries[self.head]
            if entry.offset >= below:
                break
            patch_timestamp(self.data.data + (entry.commit_position - self.base), now)
            if entry.local:
                local += entry.end - end
            end = entry.end
            self.head += 1
        if end == self.base:
            return b""
        if not local:
            released = PyBytes_FromStringAndSize(<char*> self.data.data, end - self.base)
        else:
            released = self.deliver(first, end - self.base - local, now)
        self.cut(end)
        return released

    cdef bytes deliver(self, size_t first, size_t rest, int64_t now):
        """Give `router` its acks, from entry `first` to `head`; returns the others, which take `rest` bytes."""
        cdef bytes others = PyBytes_FromStringAndSize(NULL, rest)
        cdef char* p = PyBytes_AS_STRING(others)
        cdef const uint8_t* data = self.data.data - self.base
        cdef size_t begin = self.base
        cdef size_t i
        cdef AckEntry* entry
        for i in range(first, self.head):
            entry = &self.entries[i]
            if entry.local:
                self.router.add(
                    data + entry.inbox, entry.inbox_length, NULL, 0,
                    data + entry.payload, entry.end - 2 - entry.payload, now,
                )
            else:
                memcpy(p, data + begin, entry.end - begin)
                p += entry.end - begin
            begin = entry.end
        return others

    cdef int refuse(self, int64_t first, PartitionSink sink, int64_t now) except -1:
        """Turn the acks of offsets at or above `first` into negative ones in the sink's `refusals`."""
        cdef size_t keep = self.count
        cdef size_t i
        cdef size_t end
        cdef AckEntry* entry
        cdef Envelope envelope
        while keep > self.head and self.entries[keep - 1].offset >= first:
            keep -= 1
        if keep == self.count:
            return 0
        for i in range(keep, self.count):
            entry = &self.entries[i]
            envelope.inbox = self.data.data + (entry.inbox - self.base)
            envelope.inbox_length = entry.inbox_length
            envelope.correlation = self.data.data + (entry.correlation - self.base)
            envelope.correlation_length = entry.correlation_length
            envelope.policy = entry.policy
            sink.push_refusal(
                &envelope, self.data.data + (entry.subject - self.base), entry.subject_length,
                entry.reception, now, ACK_UNKNOWN,
            )
        end = self.entries[keep - 1].end if keep > self.head else self.base
        self.count = keep
        self.data.length = end - self.base
        if self.head == self.count:
            self.head = self.count = 0
        return 0

    cdef void shrink(self) noexcept:
        """Give back the memory of an empty queue."""
        if self.head == self.count:
            bytes_free(&self.data)
            free(self.entries)
            self.entries = NULL
            self.head = self.count = self.capacity = 0


cdef inline void patch_timestamp(uint8_t* p, int64_t timestamp) noexcept nogil:
    cdef uint64_t value = <uint64_t> timestamp
    cdef int i
    for i in range(TIMESTAMP_BYTES - 1):
        p[i] = <uint8_t> (value | 0x80)
        value >>= 7
    p[TIMESTAMP_BYTES - 1] = <uint8_t> value


cdef inline void put_decimal(Bytes* b, size_t value) noexcept nogil:
    cdef uint8_t digits[20]
    cdef int count = 0
    while True:
        digits[count] = <uint8_t> (48 + value % 10)
        count += 1
        value //= 10
        if value == 0:
            break
    while count:
        count -= 1
        put_byte(b, digits[count])


cdef class Sink:
    """The receiving end of a NATS subscription. `add` is called without the GIL."""

    cdef readonly object owner
    cdef bint touched
    cdef int64_t ttl  # of the message that `add` is called for: ns, or TTL_NONE or TTL_BAD

    cdef int add(
        self, const uint8_t* subject, size_t subject_length, const uint8_t* reply, size_t reply_length,
        const uint8_t* payload, size_t payload_length, int64_t now,
    ) except -1 nogil:
        """Take one message: 0 to go on, 1 when the owner must empty the sink first."""
        return 0


cdef class CollectingSink(Sink):
    """Keeps messages as Python objects, for subscriptions with few of them (control traffic, tests)."""

    cdef readonly list messages

    def __init__(self, owner):
        self.owner = owner
        self.messages = []

    cdef int add(
        self, const uint8_t* subject, size_t subject_length, const uint8_t* reply, size_t reply_length,
        const uint8_t* payload, size_t payload_length, int64_t now,
    ) except -1 nogil:
        with gil:
            self.messages.append((
                PyBytes_FromStringAndSize(<char*> subject, subject_length),
                PyBytes_FromStringAndSize(<char*> reply, reply_length),
                PyBytes_FromStringAndSize(<char*> payload, payload_length),
            ))
        return 0

    def take(self) -> list:
        """The messages since the last call, as (subject, reply, payload)."""
        taken = self.messages
        self.messages = []
        return taken


cdef class PartitionSink(Sink):
    """What NATS delivers to one partition, on its way to the log.

    The owner empties the sink after every parse: it appends `builder` to the log, calls `appended` (or `refuse`
    when the append failed) and sends what `refusals`, `leader_acks` and `commit_acks` hand out.

    Arguments of the constructor: `owner` gets the batch; `stream` and `base_subject` go into acks; `next_offset` is
    the offset that the next message will get; `max_message_bytes` is the largest accepted NATS payload;
    `batch_max_messages` closes a batch; with `check_offsets`, a message is stored only at the offset that it
    expects (optimistic concurrency control); `router` takes the acks for calls of this server.
    """

    cdef readonly BatchBuilder builder
    cdef readonly AckQueue leader_acks
    cdef readonly AckQueue commit_acks
    cdef bytes stream
    cdef bytes base_subject
    cdef bytes local_inboxes  # what they begin with, None without `router`
    cdef const uint8_t* stream_data
    cdef const uint8_t* base_data
    cdef const uint8_t* local_data
    cdef size_t stream_length
    cdef size_t base_length
    cdef size_t local_length
    cdef Bytes headers
    cdef Bytes refused
    cdef int64_t batch_offset
    cdef int64_t last_timestamp
    cdef size_t max_message_bytes
    cdef public size_t max_ack_bytes
    cdef uint32_t batch_max_messages
    cdef bint check_offsets
    cdef public bint readonly
    cdef readonly uint64_t messages_received
    cdef readonly uint64_t bytes_received
    cdef readonly uint64_t messages_refused      # not stored: too large, wrong offset, readonly, not UTF-8 ...
    cdef readonly uint64_t messages_undecodable  # of these: subject or reply not UTF-8
    cdef readonly uint64_t acks_unsendable       # no valid inbox, or larger than NATS carries

    def __init__(
        self, owner, *, bytes stream, bytes base_subject, BatchBuilder builder, int64_t next_offset,
        int64_t last_timestamp, size_t max_message_bytes, uint32_t batch_max_messages, bint check_offsets,
        size_t max_ack_bytes=1048576, Sink router=None,
    ):
        if batch_max_messages < 1:
            raise ValueError(f"batch_max_messages is {batch_max_messages}; it must be at least 1")
        self.owner = owner
        self.stream = stream
        self.base_subject = base_subject
        self.stream_data = <const uint8_t*> PyBytes_AS_STRING(stream)
        self.base_data = <const uint8_t*> PyBytes_AS_STRING(base_subject)
        self.stream_length = len(stream)
        self.base_length = len(base_subject)
        self.builder = builder
        self.leader_acks = AckQueue()
        self.commit_acks = AckQueue()
        self.leader_acks.router = self.commit_acks.router = router
        if router is not None:
            self.local_inboxes = (<object> router).inboxes
            self.local_data = <const uint8_t*> PyBytes_AS_STRING(self.local_inboxes)
            self.local_length = len(self.local_inboxes)
        self.batch_offset = next_offset
        self.last_timestamp = last_timestamp
        self.max_message_bytes = max_message_bytes
        self.max_ack_bytes = max_ack_bytes
        self.batch_max_messages = batch_max_messages
        self.check_offsets = check_offsets

    def __cinit__(self):
        bytes_init(&self.headers)
        bytes_init(&self.refused)

    def __dealloc__(self):
        bytes_free(&self.headers)
        bytes_free(&self.refused)

    cdef int add(
        self, const uint8_t* subject, size_t subject_length, const uint8_t* reply, size_t reply_length,
        const uint8_t* payload, size_t payload_length, int64_t now,
    ) except -1 nogil:
        cdef Envelope envelope
        cdef const uint8_t* message
        cdef bint enveloped = False
        cdef int64_t offset
        cdef int status
        self.messages_received += 1
        self.bytes_received += payload_length
        if now < self.last_timestamp:
            now = self.last_timestamp  # timestamps of a partition never go back
        message = envelope_payload(payload, payload_length, TYPE_PUBLISH)
        if message != NULL:
            status = decode_message(message, payload_length - (message - payload), &envelope, &self.headers)
            if status == -2:
                return out_of_memory()
            enveloped = status == 0
        if not is_utf8(subject, subject_length) or not is_utf8(reply, reply_length):
            self.messages_undecodable += 1
            self.messages_refused += 1
            return 0
        if not enveloped:
            envelope.key = NULL
            envelope.key_length = -1
            envelope.value = payload
            envelope.value_length = payload_length
            envelope.inbox_length = 0
            envelope.expected_offset = 0
            envelope.headers_refused = 0
            envelope.ttl = TTL_NONE
            self.headers.length = 0
        if envelope.key_length < 0 and envelope.value == NULL:
            envelope.value = payload  # only with a key is no value something else than an empty one
        if envelope.ttl == TTL_NONE:
            envelope.ttl = self.ttl
        status = ACK_OK
        offset = self.batch_offset + self.builder.count
        if payload_length > self.max_message_bytes:
            status = ACK_TOO_LARGE
        elif (
            self.readonly or envelope.headers_refused or envelope.ttl == TTL_BAD
            or subject_length > 65535 or reply_length > 65535
        ):
            status = ACK_UNKNOWN
        elif self.check_offsets and envelope.expected_offset != -1 and envelope.expected_offset != offset:
            status = ACK_INCORRECT_OFFSET
        if status != ACK_OK:
            self.messages_refused += 1
            if envelope.inbox_length:
                if self.push_refusal(&envelope, subject, subject_length, now, now, status) < 0:
                    return out_of_memory()
            return 0
        self.builder.add(
            subject, subject_length, reply, reply_length, envelope.key, envelope.key_length,
            envelope.value, envelope.value_length, self.headers.data, self.headers.length, now,
            now + envelope.ttl if envelope.ttl > 0 else 0,
        )
        self.last_timestamp = now
        if envelope.inbox_length:
            if envelope.policy == POLICY_LEADER:
                status = self.push_ack(self.leader_acks, &envelope, subject, subject_length, offset, now)
            elif envelope.policy == POLICY_ALL:
                status = self.push_ack(self.commit_acks, &envelope, subject, subject_length, offset, now)
            if status < 0:
                return out_of_memory()
        return self.builder.count >= self.batch_max_messages or self.builder.length >= BATCH_BYTES

    cdef int push_ack(
        self, AckQueue queue, Envelope* envelope, const uint8_t* subject, size_t subject_length,
        int64_t offset, int64_t now,
    ) noexcept nogil:
        cdef AckEntry entry
        cdef int status
        entry.offset = offset
        entry.policy = <int> envelope.policy
        entry.reception = now
        entry.local = (
            self.local_length > 0 and envelope.inbox_length > self.local_length
            and memcmp(envelope.inbox, self.local_data, self.local_length) == 0
        )
        status = self.encode_ack(&queue.data, queue.base, &entry, envelope, subject, subject_length, now, now, ACK_OK)
        if status != 1:
            return status
        return queue.push(&entry)

    cdef int push_refusal(
        self, Envelope* envelope, const uint8_t* subject, size_t subject_length,
        int64_t reception, int64_t now, int error,
    ) noexcept nogil:
        """Encode a negative ack, to be sent at once."""
        cdef AckEntry entry
        entry.offset = 0
        return 0 if self.encode_ack(
            &self.refused, 0, &entry, envelope, subject, subject_length, reception, now, error,
        ) >= 0 else -1

    cdef int encode_ack(
        self, Bytes* b, size_t base, AckEntry* entry, Envelope* envelope, const uint8_t* subject,
        size_t subject_length, int64_t reception, int64_t now, int error,
    ) noexcept nogil:
        """Append `PUB <inbox> <size>` with an ack envelope to `b`; 1, 0 when it cannot be sent, -1 when memory
        is short. A refused message that was too large carries no commit timestamp."""
        cdef size_t length
        cdef size_t commit = 1 + TIMESTAMP_BYTES if error != ACK_TOO_LARGE else 0
        if now < MIN_TIMESTAMP:
            now = MIN_TIMESTAMP
        if not is_publish_subject(envelope.inbox, envelope.inbox_length, MAX_INBOX):
            self.acks_unsendable += 1
            return 0
        length = (
            ENVELOPE_HEADER + field_size(self.stream_length) + field_size(self.base_length)
            + field_size(subject_length) + number_size(<uint64_t> entry.offset) + field_size(envelope.inbox_length)
            + field_size(envelope.correlation_length) + number_size(<uint64_t> envelope.policy)
            + number_size(<uint64_t> reception) + commit + number_size(error)
        )
        if length > self.max_ack_bytes:
            self.acks_unsendable += 1
            return 0
        if bytes_reserve(b, length + envelope.inbox_length + 64) < 0:
            return -1
        put(b, b"PUB ", 4)
        put(b, envelope.inbox, envelope.inbox_length)
        put_byte(b, 32)
        put_decimal(b, length)
        put(b, b"\r\n", 2)
        entry.payload = base + b.length
        put(b, MAGIC, 4)
        put(b, b"\x00\x08\x00\x01", 4)
        put_field(b, 1, self.stream_data, self.stream_length)
        put_field(b, 2, self.base_data, self.base_length)
        put_field(b, 3, subject, subject_length)
        entry.subject = base + b.length - subject_length
        entry.subject_length = <uint32_t> subject_length
        put_number(b, 4, <uint64_t> entry.offset)
        put_field(b, 5, envelope.inbox, envelope.inbox_length)
        entry.inbox = base + b.length - envelope.inbox_length
        entry.inbox_length = <uint32_t> envelope.inbox_length
        put_field(b, 6, envelope.correlation, envelope.correlation_length)
        entry.correlation = base + b.length - envelope.correlation_length
        entry.correlation_length = <uint32_t> envelope.correlation_length
        put_number(b, 7, <uint64_t> envelope.policy)
        put_number(b, 8, <uint64_t> reception)
        if commit:
            put_byte(b, 9 << 3)
            entry.commit_position = base + b.length
            patch_timestamp(b.data + b.length, now)
            b.length += TIMESTAMP_BYTES
        put_number(b, 10, <uint64_t> error)
        put(b, b"\r\n", 2)
        entry.end = base + b.length
        return 1

    def appended(self, int64_t next_offset) -> None:
        """The batch is in the log, whose next offset is now `next_offset`."""
        assert next_offset == self.batch_offset + self.builder.count, (
            f"the log is at {next_offset}, acks were encoded up to {self.batch_offset + self.builder.count}"
        )
        self.batch_offset = next_offset
        self.builder.reset()

    def refuse(self, int64_t now) -> None:
        """The batch could not be appended: its acks become negative ones, its records are forgotten."""
        self.messages_refused += self.builder.count
        self.leader_acks.refuse(self.batch_offset, self, now)
        self.commit_acks.refuse(self.batch_offset, self, now)
        self.builder.reset()

    def refuse_waiting(self, int64_t now) -> None:
        """No ack that still waits can be kept: the log failed. All become negative."""
        self.leader_acks.refuse(0, self, now)
        self.commit_acks.refuse(0, self, now)

    def refuse_uncommitted(self, int64_t now) -> None:
        """No ack that still waits for a commit can be kept: there will be no commit. All become negative."""
        self.commit_acks.refuse(0, self, now)

    def refusals(self) -> bytes:
        """Negative acks since the last call, as NATS protocol bytes."""
        return bytes_take(&self.refused) if self.refused.length else b""

    def shrink(self) -> None:
        """Give back the memory of what is empty: for a partition that gets no messages for a while."""
        self.builder.release()
        self.leader_acks.shrink()
        self.commit_acks.shrink()
        bytes_free(&self.headers)
        if not self.refused.length:
            bytes_free(&self.refused)
