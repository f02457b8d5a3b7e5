# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The codecs of the data plane: everything that touches a message between a socket and the log.

Python drives batches, this module touches messages: one call per socket read parses the NATS protocol,
recognises publish envelopes, appends records to the batch of the partition they belong to and encodes the acks
they will get. No Python object is made per message and the GIL is not held while messages are walked.

The parts, each in a file of its own that is included below, in the order of a message's way:

* `NatsParser` owns the receive buffer of one NATS connection, cuts it into messages and hands each to the sink
  of its subscription. Control lines (PING, -ERR, ...) are returned to Python, which is where they are rare.
* `PartitionSink` is the receiving end of one partition: envelope or plain message -> record in a
  `BatchBuilder`, ack into an `AckQueue`.
* `AckQueue` keeps encoded acks until the position they wait for is reached.
* `PublishCall` and `AckRouter` are the gRPC side: publish requests -> NATS envelopes, acks -> publish responses.
* `data_frames` packs gRPC messages into HTTP/2 DATA frames; `RequestReader` takes them out of what clients send.

Invariants: nothing read from a peer is used before its bounds were checked; nothing that a peer chose (subjects,
inboxes, correlation ids) reaches a NATS protocol line unless it is a valid subject of bounded length; no text that
is not UTF-8 reaches the log, as it would be a message that no client can decode.

Numbers in comments refer to the client contract: field numbers of proto/api.proto, and the envelope layout
(magic B9 0E 43 B4, version 0, header length, flags, type, then a CRC-32C when flag bit 0 is set).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, strlen

from liftbridge._log cimport BatchBuilder, crc32c_update

cdef enum:
    # A NATS control line longer than this is not from a NATS server; its own default limit is 4096.
    MAX_CONTROL_LINE = 65536
    # An ack inbox has to fit, with its PUB, into nats-server's default control line of 4096 bytes.
    MAX_INBOX = 2048
    MAX_HEADER_NAME = 32767
    MAX_HEADERS = 32767
    # A batch is closed at this size even when fewer messages than allowed are in it, so that readers
    # can take whole batches.
    BATCH_BYTES = 262144
    ENVELOPE_HEADER = 8
    ENVELOPE_HEADER_CRC = 12

cdef enum:
    TYPE_PUBLISH = 0
    TYPE_ACK = 1

cdef enum:
    POLICY_LEADER = 0
    POLICY_ALL = 1
    POLICY_NONE = 2

cdef enum:
    ACK_OK = 0
    ACK_UNKNOWN = 1
    ACK_INCORRECT_OFFSET = 2
    ACK_TOO_LARGE = 3

cdef enum:
    # Nanosecond timestamps of this era take nine bytes as a varint (up to the year 2262), which lets the commit
    # timestamp be written into an ack that was encoded earlier.
    TIMESTAMP_BYTES = 9

cdef int64_t MIN_TIMESTAMP = 1 << 56
cdef uint8_t MAGIC[4]
MAGIC[0] = 0xB9
MAGIC[1] = 0x0E
MAGIC[2] = 0x43
MAGIC[3] = 0xB4


class ProtocolError(Exception):
    """What arrived is not the NATS protocol; the connection it came from cannot be used further."""


include "_wire_bytes.pxi"
include "_wire_ttl.pxi"
include "_wire_envelope.pxi"
include "_wire_partition.pxi"
include "_wire_nats.pxi"
include "_wire_publish.pxi"
include "_wire_grpc.pxi"
include "_wire_http2.pxi"
