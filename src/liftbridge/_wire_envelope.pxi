# Envelopes: what makes a NATS payload a publish or an ack, and the Message in it. Included by _wire.pyx.
#
# What fails any check is not an error: it is a plain message, stored as it is.

cdef struct Envelope:
    int64_t expected_offset
    const uint8_t* key
    Py_ssize_t key_length       # -1 = none
    const uint8_t* value
    size_t value_length
    const uint8_t* inbox
    size_t inbox_length
    const uint8_t* correlation
    size_t correlation_length
    int64_t policy
    uint32_t headers            # how many were met
    int headers_refused         # a name or their number is beyond what may be stored
    int64_t ttl                 # ns, or TTL_NONE or TTL_BAD


cdef int header_is(const uint8_t* name, size_t length, const char* reserved, size_t reserved_length) noexcept nogil:
    return length == reserved_length and memcmp(name, reserved, length) == 0


cdef int is_header_entry(const uint8_t* data, size_t length) noexcept nogil:
    """1 when the bytes are an entry of a headers map that protobuf decodes, else 0."""
    cdef const uint8_t* p = data
    cdef const uint8_t* end = data + length
    cdef Field field
    while p < end:
        p = get_field(p, end, &field)
        if p == NULL or (field.number == 1 and field.wire == 2 and not is_utf8(field.data, field.length)):
            return 0
    return 1


cdef int decode_header(const uint8_t* data, size_t length, Envelope* envelope, Bytes* headers) noexcept nogil:
    """Check one entry of the headers map and copy it to `headers` as a field 9; -1 when malformed, -2 when memory
    is short. Entries that the server sets itself (`subject`, `reply`) are left out."""
    cdef const uint8_t* p = data
    cdef const uint8_t* end = data + length
    cdef const uint8_t* name = data
    cdef size_t name_length = 0
    cdef const uint8_t* value = data
    cdef size_t value_length = 0
    cdef Field field
    while p < end:
        p = get_field(p, end, &field)
        if p == NULL:
            return -1
        if field.number == 2 and field.wire == 2:
            value = field.data
            value_length = field.length
        if field.number == 1 and field.wire == 2:
            if not is_utf8(field.data, field.length):
                return -1
            name = field.data
            name_length = field.length
    envelope.headers += 1
    if name_length > MAX_HEADER_NAME or envelope.headers > MAX_HEADERS:
        envelope.headers_refused = 1
        return 0
    if is_ttl_header(name, name_length):
        envelope.ttl = parse_ttl(value, value_length)
    if header_is(name, name_length, b"subject", 7) or header_is(name, name_length, b"reply", 5):
        return 0
    if bytes_reserve(headers, 1 + 10 + length) < 0:
        return -2
    put_byte(headers, (9 << 3) | 2)
    put_varint(headers, length)
    put(headers, data, length)
    return 0


cdef int decode_message(const uint8_t* p, size_t length, Envelope* envelope, Bytes* headers) noexcept nogil:
    """Decode the `Message` of a publish envelope; 0, -1 when it is not one, -2 when memory is short."""
    cdef const uint8_t* end = p + length
    cdef Field field
    cdef int status
    envelope.expected_offset = 0
    envelope.key = NULL
    envelope.key_length = -1
    envelope.value = NULL
    envelope.value_length = 0
    envelope.inbox = p
    envelope.inbox_length = 0
    envelope.correlation = p
    envelope.correlation_length = 0
    envelope.policy = POLICY_LEADER
    envelope.headers = 0
    envelope.headers_refused = 0
    envelope.ttl = TTL_NONE
    headers.length = 0
    while p < end:
        p = get_field(p, end, &field)
        if p == NULL:
            return -1
        if field.wire == 2:
            if field.number == 3:
                envelope.value = field.data
                envelope.value_length = field.length
            elif field.number == 2:
                # An empty key counts as none.
                envelope.key = field.data
                envelope.key_length = <Py_ssize_t> field.length if field.length else -1
            elif field.number == 9:
                status = decode_header(field.data, field.length, envelope, headers)
                if status < 0:
                    return status
            elif field.number == 10:
                if not is_utf8(field.data, field.length):
                    return -1
                envelope.inbox = field.data
                envelope.inbox_length = field.length
            elif field.number == 11:
                if not is_utf8(field.data, field.length):
                    return -1
                envelope.correlation = field.data
                envelope.correlation_length = field.length
            elif field.number == 5 or field.number == 7 or field.number == 8:
                # Not used, but text that is not text makes the message no protobuf of this type.
                if not is_utf8(field.data, field.length):
                    return -1
        elif field.wire == 0:
            if field.number == 1:
                envelope.expected_offset = <int64_t> field.value
            elif field.number == 12:
                envelope.policy = <int64_t> field.value
    return 0


cdef const uint8_t* envelope_payload(const uint8_t* data, size_t length, uint8_t kind) noexcept nogil:
    """The protobuf in an envelope of type `kind`, or NULL when the data is not one: too short, another magic,
    version or type, a header length out of bounds, a CRC that does not match."""
    cdef size_t header
    cdef uint32_t crc
    if length < ENVELOPE_HEADER or memcmp(data, MAGIC, 4) != 0 or data[4] != 0 or data[7] != kind:
        return NULL
    header = data[5]
    if header < ENVELOPE_HEADER or header > length:
        return NULL
    if data[6] & 1:
        if header != ENVELOPE_HEADER_CRC:
            return NULL
        crc = ((<uint32_t> data[8]) << 24) | ((<uint32_t> data[9]) << 16) | ((<uint32_t> data[10]) << 8) | data[11]
        if crc32c_update(0, data + header, length - header) != crc:
            return NULL
    return data + header


def decode_ack_envelope(data: bytes):
    """The serialized `Ack` in a type-1 envelope, or None when `data` is not one."""
    cdef const uint8_t* start = <const uint8_t*> PyBytes_AS_STRING(data)
    cdef const uint8_t* payload = envelope_payload(start, len(data), TYPE_ACK)
    if payload == NULL:
        return None
    return PyBytes_FromStringAndSize(<char*> payload, start + len(data) - payload)


def encode_publish_envelope(message: bytes) -> bytes:
    """A publish envelope (type 0, no CRC) around a serialized `Message`."""
    return b"\xb9\x0e\x43\xb4\x00\x08\x00\x00" + message
