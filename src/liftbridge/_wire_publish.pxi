# The gRPC side of publishing: requests into envelopes, acks into responses. Included by _wire.pyx.

cdef enum:
    # PublishAsyncError.Code
    ERROR_UNKNOWN = 0
    ERROR_BAD_REQUEST = 1
    ERROR_NOT_FOUND = 2
    ERROR_INTERNAL = 3
    ERROR_READONLY = 4
    ERROR_INCORRECT_OFFSET = 5
    ERROR_ENCRYPTION = 6
    ERROR_PERMISSION_DENIED = 7
    # Streams whose route and permission a call remembers.
    MAX_KNOWN = 1024
    # Room for a PUB line around subject and size, and for tags and lengths of an envelope's fields.
    PUB_OVERHEAD = 160
    GRPC_PREFIX = 5

cdef enum:
    # Of a partition, in StreamRoute.flags.
    ROUTE_READONLY = 1
    ROUTE_WAITING = 2


cdef class StreamRoute:
    """Where publishes to a stream go: what a publisher's server has to know of it.

    `subject` is the base subject; partition N > 0 is reached by `subject.N`. With `check_offsets` the stream
    has optimistic concurrency control, and a publish has to ask for an ack. Each partition may be readonly,
    and may be waited for: it is paused or still opens, and a message sent to it now would be lost.
    """

    cdef readonly bytes name
    cdef readonly bytes subject
    cdef readonly int partitions
    cdef readonly bint check_offsets
    cdef uint8_t* flags  # of each partition; NULL as long as none has any

    def __init__(self, bytes name, bytes subject, int partitions, bint check_offsets):
        self.name = name
        self.subject = subject
        self.partitions = partitions
        self.check_offsets = check_offsets

    def __dealloc__(self):
        free(self.flags)

    def mark(self, int partition, *, bint readonly, bint waiting) -> None:
        """Say what holds for a partition from now on, also for calls that know the route already."""
        if not 0 <= partition < self.partitions:
            raise IndexError(f"{self.name!r} has {self.partitions} partitions, not {partition}")
        if self.flags == NULL:
            if not readonly and not waiting:
                return
            self.flags = <uint8_t*> calloc(self.partitions, 1)
            if self.flags == NULL:
                raise MemoryError
        self.flags[partition] = (ROUTE_READONLY if readonly else 0) | (ROUTE_WAITING if waiting else 0)


cdef class RouteTable:
    """The routes of all streams by name. Calls remember the route they used last; `version` tells them when
    that memory is stale."""

    cdef dict routes
    cdef uint64_t version

    def __init__(self):
        self.routes = {}
        self.version = 1

    def put(self, StreamRoute route) -> None:
        """Add or replace the route of a stream."""
        self.routes[route.name] = route
        self.version += 1

    def remove(self, bytes name) -> None:
        """The stream is gone."""
        self.routes.pop(name, None)
        self.version += 1

    def get(self, bytes name):
        """The route of a stream, or None."""
        return self.routes.get(name)

    def touch(self) -> None:
        """Make every call ask again, for routes and permissions: what it may do has changed."""
        self.version += 1


cdef struct Request:
    const uint8_t* key
    size_t key_length
    const uint8_t* value
    size_t value_length
    const uint8_t* stream
    size_t stream_length
    const uint8_t* correlation
    size_t correlation_length
    int64_t partition
    int64_t policy
    int64_t expected_offset
    size_t headers_size        # of all entries with tag and length
    bint has_inbox             # an ack inbox of its own, which counts in unary calls only


cdef int decode_request(const uint8_t* p, const uint8_t* end, Request* request) noexcept nogil:
    """Decode a `PublishRequest`; -1 when it is malformed."""
    cdef Field field
    request.key = request.value = request.stream = request.correlation = p
    request.key_length = request.value_length = request.stream_length = request.correlation_length = 0
    request.partition = request.policy = request.expected_offset = 0
    request.headers_size = 0
    request.has_inbox = False
    while p < end:
        p = get_field(p, end, &field)
        if p == NULL:
            return -1
        if field.wire == 2:
            if field.number == 1:
                request.key = field.data
                request.key_length = field.length
            elif field.number == 2:
                request.value = field.data
                request.value_length = field.length
            elif field.number == 5:
                if not is_header_entry(field.data, field.length):
                    return -1
                request.headers_size += 1 + varint_size(field.length) + field.length
            elif field.number == 3 or field.number == 6 or field.number == 7:
                if not is_utf8(field.data, field.length):
                    return -1
                if field.number == 3:
                    request.stream = field.data
                    request.stream_length = field.length
                elif field.number == 7:
                    request.correlation = field.data
                    request.correlation_length = field.length
                else:
                    request.has_inbox = field.length > 0
        elif field.wire == 0:
            if field.number == 4:
                # As protobuf does with an int32: the low 32 bits count.
                request.partition = <int> <uint32_t> field.value
            elif field.number == 8:
                request.policy = <int> <uint32_t> field.value
            elif field.number == 9:
                request.expected_offset = <int64_t> field.value
    return 0


cdef class PublishCall:
    """The messages of one gRPC publish call: requests in, NATS publishes and publish responses out.

    `inbox` is where the acks of this call come back; `slot` and `generation` are how `AckRouter` finds it from
    there. `max_payload` is what the NATS server takes; while `connected` is false, requests are answered with an
    error. `outstanding` counts messages that still wait for an ack.

    `permit`, when there is one, is asked with the name of a stream whether this call may publish to it: None
    is yes, bytes are the text of the refusal. It is asked once for a stream, and again when the version of the
    table has changed; `denied` counts the messages that were refused for it.

    `waits_for` is the stream and the partition that `feed` has stopped at, because a message cannot be sent there yet;
    None when it has not stopped.
    """

    cdef RouteTable table
    cdef StreamRoute route
    cdef uint64_t route_version
    cdef readonly bytes inbox
    cdef readonly uint64_t slot
    cdef readonly uint64_t generation
    cdef public size_t max_payload
    cdef public bint connected
    cdef Bytes publishes
    cdef Bytes answers
    cdef readonly int64_t outstanding
    cdef readonly object owner
    cdef readonly object waits_for
    cdef bint touched
    cdef bint first_only
    cdef bint negative  # the first ack, with `first_only`
    cdef bint silent    # publish without an inbox
    cdef public object permit
    cdef readonly uint64_t denied
    cdef bytes refusal  # why the stream of the last request may not be published to
    cdef dict known     # with `permit`: a route, None for no stream, or the text of a refusal

    def __cinit__(self):
        bytes_init(&self.publishes)
        bytes_init(&self.answers)

    def __init__(
        self, owner, RouteTable table, bytes inbox, uint64_t slot, uint64_t generation, size_t max_payload,
        bint first_only=False,
    ):
        self.owner = owner
        self.table = table
        self.inbox = inbox
        self.slot = slot
        self.generation = generation
        self.max_payload = max_payload
        self.first_only = first_only
        self.connected = True
        self.known = {}

    def __dealloc__(self):
        bytes_free(&self.publishes)
        bytes_free(&self.answers)

    @property
    def answers_size(self) -> int:
        """Bytes of responses that wait to be sent to the client."""
        return self.answers.length

    def feed(self, frames, str failure=None) -> int:
        """Take publish requests as whole length-prefixed gRPC messages; returns how many bytes of them were taken.

        Stops in front of a request whose partition is to be waited for, and says so in `waits_for`. When `failure` is
        given, waiting for the first one was in vain, and the request is answered with that error.

        Raises ValueError when one of them is no PublishRequest; those in front of it are taken.
        """
        cdef Py_buffer view
        cdef const uint8_t* p
        cdef const uint8_t* end
        cdef size_t length
        cdef Request request
        cdef bytes error = failure.encode() if failure is not None else None
        self.waits_for = None
        PyObject_GetBuffer(frames, &view, PyBUF_SIMPLE)
        try:
            p = <const uint8_t*> view.buf
            end = p + view.len
            while p < end:
                if end - p < GRPC_PREFIX:
                    raise ValueError("a gRPC message is cut off")
                length = (<size_t> p[1] << 24) | (<size_t> p[2] << 16) | (<size_t> p[3] << 8) | p[4]
                if p[0] != 0 or <size_t> (end - p) < GRPC_PREFIX + length:
                    raise ValueError("a gRPC message is compressed or cut off")
                p += GRPC_PREFIX
                if decode_request(p, p + length, &request) < 0:
                    raise ValueError("not a PublishRequest")
                if self.publish(&request, p, p + length, error):
                    return (p - GRPC_PREFIX) - <const uint8_t*> view.buf
                error = None
                p += length
            return view.len
        finally:
            PyBuffer_Release(&view)

    def begin(self, bytes data, bint wait=True) -> bool:
        """Take the only request of a unary call, a serialized PublishRequest, if it is a usual one: it can be published
        right now, and names no inbox. Else nothing has happened; the reasons are for others to tell.

        When it asks for no ack, or nobody would `wait` for one, it is published without an inbox, and nothing is
        `outstanding`."""
        cdef Request request
        cdef const uint8_t* p = <const uint8_t*> PyBytes_AS_STRING(data)
        cdef const uint8_t* end = p + len(data)
        if decode_request(p, end, &request) < 0 or request.has_inbox:
            return False
        self.silent = not wait or request.policy == POLICY_NONE
        if self.publish(&request, p, end, None) or self.answers.length:
            self.answers.length = 0
            self.waits_for = None
            return False
        return True

    cdef StreamRoute find(self, Request* request):
        cdef StreamRoute route = self.route
        if route is not None and self.route_version == self.table.version \
                and request.stream_length == <size_t> len(route.name) \
                and memcmp(request.stream, PyBytes_AS_STRING(route.name), request.stream_length) == 0:
            return route
        if self.permit is not None:
            return self.find_permitted(request)
        self.route = self.table.routes.get(
            PyBytes_FromStringAndSize(<char*> request.stream, request.stream_length)
        )
        self.route_version = self.table.version
        return self.route

    cdef StreamRoute find_permitted(self, Request* request):
        """The route of the request's stream; None with `refusal` set when the call may not publish to it."""
        cdef bytes name = PyBytes_FromStringAndSize(<char*> request.stream, request.stream_length)
        cdef object found
        if self.route_version != self.table.version or len(self.known) >= MAX_KNOWN:
            self.known.clear()
            self.route_version = self.table.version
        if name in self.known:
            found = self.known[name]
        else:
            # Permission first: who may not publish to a stream is not told whether it exists.
            found = self.permit(name)
            if found is None:
                found = self.table.routes.get(name)
            if len(name) <= MAX_INBOX:
                self.known[name] = found
        self.route = None
        self.refusal = None
        if isinstance(found, StreamRoute):
            self.route = found
        elif found is not None:
            self.refusal = found
        return self.route

    cdef int publish(self, Request* request, const uint8_t* p, const uint8_t* end, bytes failure) except -1:
        """Answer a request with an error or encode it; 1 when its partition has to be waited for."""
        cdef StreamRoute route = self.find(request)
        cdef uint8_t flags
        if route is None:
            if self.refusal is not None:
                self.denied += 1
                return self.answer_error(request, ERROR_PERMISSION_DENIED, self.refusal)
            return self.answer_error(request, ERROR_NOT_FOUND, b"no such stream")
        if request.partition < 0 or request.partition >= route.partitions:
            return self.answer_error(request, ERROR_NOT_FOUND, b"no such partition")
        flags = route.flags[request.partition] if route.flags != NULL else 0
        if flags & ROUTE_READONLY:
            return self.answer_error(request, ERROR_READONLY, b"the partition is readonly")
        if route.check_offsets and request.policy == POLICY_NONE:
            return self.answer_error(
                request, ERROR_BAD_REQUEST, b"stream with concurrency control must have AckPolicy set"
            )
        if request.policy < POLICY_LEADER or request.policy > POLICY_NONE:
            return self.answer_error(request, ERROR_BAD_REQUEST, b"unknown ack policy; it is LEADER, ALL or NONE")
        if not self.connected:
            return self.answer_error(request, ERROR_INTERNAL, b"the server has no connection to NATS")
        if flags & ROUTE_WAITING:
            if failure is not None:
                return self.answer_error(request, ERROR_INTERNAL, failure)
            self.waits_for = (route.name, <int> request.partition)
            return 1
        return self.encode(request, route, p, end)

    cdef int encode(self, Request* request, StreamRoute route, const uint8_t* p, const uint8_t* end) except -1:
        """Append `PUB <subject> <size>` with the request as a publish envelope."""
        cdef Bytes* b = &self.publishes
        cdef const uint8_t* subject = <const uint8_t*> PyBytes_AS_STRING(route.subject)
        cdef size_t subject_length = len(route.subject)
        cdef size_t suffix = decimal_size(request.partition) + 1 if request.partition else 0
        cdef size_t inbox_length = 0 if self.silent else len(self.inbox)
        cdef size_t full_subject = subject_length + suffix
        cdef size_t length = (
            ENVELOPE_HEADER + number_size(<uint64_t> request.expected_offset) + field_size(request.key_length)
            + field_size(request.value_length) + field_size(request.stream_length) + field_size(full_subject)
            + request.headers_size + field_size(inbox_length) + field_size(request.correlation_length)
            + number_size(<uint64_t> request.policy)
        )
        cdef Field field
        if length > self.max_payload:
            return self.answer_error(request, ERROR_INTERNAL, b"the message is larger than NATS max_payload")
        if bytes_reserve(b, length + full_subject + PUB_OVERHEAD) < 0:
            raise MemoryError
        put(b, b"PUB ", 4)
        put(b, subject, subject_length)
        if suffix:
            put_byte(b, 46)
            put_decimal(b, <size_t> request.partition)
        put_byte(b, 32)
        put_decimal(b, length)
        put(b, b"\r\n", 2)
        put(b, MAGIC, 4)
        put(b, b"\x00\x08\x00\x00", 4)
        put_number(b, 1, <uint64_t> request.expected_offset)
        put_field(b, 2, request.key, request.key_length)
        put_field(b, 3, request.value, request.value_length)
        put_field(b, 5, request.stream, request.stream_length)
        put_byte(b, (7 << 3) | 2)
        put_varint(b, full_subject)
        put(b, subject, subject_length)
        if suffix:
            put_byte(b, 46)
            put_decimal(b, <size_t> request.partition)
        while request.headers_size and p < end:
            p = get_field(p, end, &field)
            if field.number == 5 and field.wire == 2:
                put_byte(b, (9 << 3) | 2)
                put_varint(b, field.length)
                put(b, field.data, field.length)
        put_field(b, 10, <const uint8_t*> PyBytes_AS_STRING(self.inbox), inbox_length)
        put_field(b, 11, request.correlation, request.correlation_length)
        put_number(b, 12, <uint64_t> request.policy)
        put(b, b"\r\n", 2)
        if not self.silent and (request.policy == POLICY_LEADER or request.policy == POLICY_ALL):
            self.outstanding += 1
        return 0

    cdef int answer_error(self, Request* request, int code, bytes text) except -1:
        if self.put_error(request.correlation, request.correlation_length, code, text) < 0:
            raise MemoryError
        return 0

    cdef int put_error(
        self, const uint8_t* correlation, size_t correlation_length, int code, const char* text,
    ) noexcept nogil:
        cdef Bytes* b = &self.answers
        cdef size_t text_length = strlen(text)
        cdef size_t detail = number_size(code) + field_size(text_length)
        cdef size_t length = 2 + 1 + varint_size(detail) + detail + field_size(correlation_length)
        if bytes_reserve(b, GRPC_PREFIX + length) < 0:
            return -1
        put_grpc_prefix(b, length)
        put(b, b"\x0a\x00", 2)  # an empty ack, which old clients look into
        put_byte(b, (2 << 3) | 2)
        put_varint(b, detail)
        put_number(b, 1, code)
        put_field(b, 2, <const uint8_t*> text, text_length)
        put_field(b, 3, correlation, correlation_length)
        return 0

    cdef int add_ack(self, const uint8_t* ack, size_t length) noexcept nogil:
        """Take a serialized Ack; 0, -1 when it is malformed, -2 when memory is short."""
        cdef const uint8_t* p = ack
        cdef const uint8_t* end = ack + length
        cdef const uint8_t* correlation = ack
        cdef size_t correlation_length = 0, size
        cdef uint64_t error = ACK_OK
        cdef Field field
        cdef Bytes* b = &self.answers
        while p < end:
            p = get_field(p, end, &field)
            if p == NULL:
                return -1
            if field.wire == 2 and (1 <= field.number <= 3 or 5 <= field.number <= 6):
                # The client gets the ack as it is, and must be able to decode it.
                if not is_utf8(field.data, field.length):
                    return -1
                if field.number == 6:
                    correlation = field.data
                    correlation_length = field.length
            elif field.number == 10 and field.wire == 0:
                error = field.value
        if self.outstanding > 0:
            self.outstanding -= 1
        if self.first_only:
            if self.answers.length == 0:
                if bytes_reserve(b, length + 1) < 0:
                    return -2
                self.negative = error != ACK_OK
                put_byte(b, 1)  # an ack of no bytes is an ack as well
                put(b, ack, length)
            return 0
        if error != ACK_OK:
            return -2 if self.put_refusal(correlation, correlation_length, error) < 0 else 0
        size = 1 + varint_size(length) + length + field_size(correlation_length)
        if bytes_reserve(b, GRPC_PREFIX + size) < 0:
            return -2
        put_grpc_prefix(b, size)
        put_byte(b, (1 << 3) | 2)
        put_varint(b, length)
        put(b, ack, length)
        put_field(b, 3, correlation, correlation_length)
        return 0

    cdef int put_refusal(self, const uint8_t* correlation, size_t length, uint64_t error) noexcept nogil:
        if error == ACK_INCORRECT_OFFSET:
            return self.put_error(correlation, length, ERROR_INCORRECT_OFFSET, "incorrect expected offset")
        if error == ACK_TOO_LARGE:
            return self.put_error(
                correlation, length, ERROR_BAD_REQUEST, "message exceeds clustering.replication.max.bytes"
            )
        if error == 4:
            return self.put_error(correlation, length, ERROR_ENCRYPTION, "the value could not be encrypted")
        return self.put_error(correlation, length, ERROR_UNKNOWN, "the partition leader could not store the message")

    def forget_outstanding(self) -> None:
        """Expect no more acks for what was published so far."""
        self.outstanding = 0

    def take_publishes(self) -> bytes:
        """NATS protocol bytes of the messages taken since the last call."""
        return bytes_take(&self.publishes) if self.publishes.length else b""

    def take_answers(self) -> bytes:
        """Publish responses as gRPC messages since the last call."""
        return bytes_take(&self.answers) if self.answers.length else b""

    def first_response(self):
        """The first ack as a PublishResponse with its gRPC prefix, for calls made with `first_only`; None when there is
        none, or when it is negative, which unary calls answer with a status."""
        cdef Bytes response
        cdef size_t length = self.answers.length - 1 if self.answers.length else 0
        cdef size_t size = 1 + varint_size(length) + length
        cdef Bytes* b = &response
        if self.answers.length == 0 or self.negative:
            return None
        bytes_init(b)
        if bytes_reserve(b, GRPC_PREFIX + size) < 0:
            raise MemoryError
        put_grpc_prefix(b, size)
        put_byte(b, (1 << 3) | 2)
        put_varint(b, length)
        put(b, self.answers.data + 1, length)
        taken = bytes_take(b)
        bytes_free(b)
        return taken

    def take_first_ack(self):
        """The serialized Ack that came first, or None; for calls made with `first_only`."""
        if self.answers.length == 0:
            return None
        return bytes_take(&self.answers)[1:]


cdef inline size_t decimal_size(uint64_t value) noexcept nogil:
    cdef size_t size = 1
    while value >= 10:
        value //= 10
        size += 1
    return size


cdef inline void put_grpc_prefix(Bytes* b, size_t length) noexcept nogil:
    put_byte(b, 0)
    put_byte(b, <uint8_t> (length >> 24))
    put_byte(b, <uint8_t> (length >> 16))
    put_byte(b, <uint8_t> (length >> 8))
    put_byte(b, <uint8_t> length)


cdef class AckRouter(Sink):
    """Brings acks from NATS to the publish call that waits for them.

    All inboxes of a server are `<prefix>.<slot>.<generation>`, so one wildcard subscription serves every call. The
    generation keeps a late ack of an ended call from the call that got its slot.
    """

    cdef bytes prefix
    cdef readonly bytes inboxes            # what all of them begin with
    cdef list calls
    cdef list free_slots
    cdef PyObject** slots
    cdef PyObject** waiting
    cdef size_t capacity
    cdef size_t waiting_count
    cdef uint64_t generation
    cdef readonly uint64_t acks_received
    cdef readonly uint64_t acks_late       # the call they were for has ended
    cdef readonly uint64_t acks_malformed  # no ack envelope

    def __init__(self, owner, bytes prefix):
        self.owner = owner
        self.prefix = prefix
        self.inboxes = prefix + b"."
        self.calls = []
        self.free_slots = []

    def __dealloc__(self):
        free(self.slots)
        free(self.waiting)

    def open(self, owner, RouteTable table, size_t max_payload, bint first_only=False) -> PublishCall:
        """A new call with an inbox of its own. `close` must follow."""
        cdef uint64_t slot
        cdef PublishCall call
        cdef size_t capacity
        cdef PyObject** grown
        slot = self.free_slots.pop() if self.free_slots else len(self.calls)
        if slot >= self.capacity:
            capacity = self.capacity * 2 if self.capacity else 64
            grown = <PyObject**> realloc(self.slots, capacity * sizeof(PyObject*))
            if grown == NULL:
                raise MemoryError
            self.slots = grown
            grown = <PyObject**> realloc(self.waiting, capacity * sizeof(PyObject*))
            if grown == NULL:
                raise MemoryError
            self.waiting = grown
            for i in range(self.capacity, capacity):
                self.slots[i] = NULL
            self.capacity = capacity
        self.generation += 1
        inbox = b"%s.%d.%d" % (self.prefix, slot, self.generation)
        call = PublishCall(owner, table, inbox, slot, self.generation, max_payload, first_only)
        if slot == <uint64_t> len(self.calls):
            self.calls.append(call)
        else:
            self.calls[slot] = call
        self.slots[slot] = <PyObject*> call
        return call

    def close(self, PublishCall call) -> None:
        """The call has ended; acks that still come for it are dropped and counted."""
        cdef size_t i, kept = 0
        assert self.calls[call.slot] is call, f"slot {call.slot} belongs to another call"
        for i in range(self.waiting_count):
            if self.waiting[i] != <PyObject*> call:
                self.waiting[kept] = self.waiting[i]
                kept += 1
        self.waiting_count = kept
        self.slots[call.slot] = NULL
        self.calls[call.slot] = None
        self.free_slots.append(call.slot)

    def __len__(self):
        return len(self.calls) - len(self.free_slots)

    @property
    def news(self) -> bool:
        """Whether there are calls for `take_waiting`."""
        return self.waiting_count > 0

    def take_waiting(self) -> list:
        """The owners of the calls that got acks since the last call."""
        cdef list owners = []
        cdef size_t i
        cdef PublishCall call
        for i in range(self.waiting_count):
            call = <PublishCall> self.waiting[i]
            call.touched = False
            owners.append(call.owner)
        self.waiting_count = 0
        return owners

    cdef int add(
        self, const uint8_t* subject, size_t subject_length, const uint8_t* reply, size_t reply_length,
        const uint8_t* payload, size_t payload_length, int64_t now,
    ) except -1 nogil:
        cdef uint64_t slot = 0, generation = 0
        cdef const uint8_t* ack
        cdef PyObject* call
        cdef int status
        self.acks_received += 1
        ack = envelope_payload(payload, payload_length, TYPE_ACK)
        if ack == NULL or parse_inbox(subject, subject_length, &slot, &generation) < 0:
            self.acks_malformed += 1
            return 0
        if slot >= self.capacity or self.slots[slot] == NULL or \
                (<PublishCall> self.slots[slot]).generation != generation:
            self.acks_late += 1
            return 0
        call = self.slots[slot]
        status = (<PublishCall> call).add_ack(ack, payload_length - (ack - payload))
        if status == -2:
            return out_of_memory()
        if status == -1:
            self.acks_malformed += 1
            return 0
        if not (<PublishCall> call).touched:
            (<PublishCall> call).touched = True
            self.waiting[self.waiting_count] = call
            self.waiting_count += 1
        return 0


cdef int parse_inbox(const uint8_t* p, size_t length, uint64_t* slot, uint64_t* generation) noexcept nogil:
    """The last two tokens of an inbox; -1 when they are no numbers."""
    cdef size_t second = length
    cdef size_t first
    while second > 0 and p[second - 1] != 46:
        second -= 1
    if second < 2:
        return -1
    first = second - 1
    while first > 0 and p[first - 1] != 46:
        first -= 1
    if get_decimal(p + first, second - 1 - first, slot) < 0:
        return -1
    return get_decimal(p + second, length - second, generation)
