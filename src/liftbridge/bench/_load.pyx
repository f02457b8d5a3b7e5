# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The load generator's hot loops: subscribers that count, publishers that check every ack.

What a benchmark measures is the slower of the two ends, so this end must cost next to nothing. One call runs a whole
replay or publishes a whole run: the GIL is released, bytes are received and sent in large pieces, what is sent is a
template with a serial number and a time patched in, what is received is walked where it lies.

The parts, each in a file of its own that is included below:

* `Histogram` counts times in the buckets of an HdrHistogram.
* `Acks` knows which messages are outstanding: each gets exactly one ack, and how long it took is counted.
* `Stamps` knows which messages of a run have arrived, and how long they took.
* `Receiver` is the loop that receives. `GrpcReceiver` is one on HTTP/2, `SubscribeCounter` counts what a subscription
  brings, `JetStreamCounter` what an ordered consumer of JetStream does.
* `Publisher` is the loop that sends and receives, at a rate or as fast as a window of outstanding acks lets it;
  `NatsPublisher` speaks NATS, to servers with either kind of acks, `GrpcPublisher` PublishAsync and unary Publish.

Invariants:

- Bytes may arrive cut anywhere: the counts depend on the stream of bytes, not on how it was split.
- Nothing received is trusted: lengths are checked before they are used, and what breaks a protocol is a
  `ProtocolError` that says how.
- Flow control is obeyed and enforced: a server that sends more than the window is reported.
- Times are CLOCK_MONOTONIC in ns, which is one clock for all processes of a machine.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <poll.h>
    #include <stdint.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #include <time.h>
    #ifdef __linux__
    #include <sys/prctl.h>
    #endif
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif

    /* CPU time of a process in ns, all its threads and the finished ones included; -errno on failure. */
    static long long process_cpu(pid_t pid) {
    #ifdef __linux__
        clockid_t clock;
        struct timespec t;
        int error = clock_getcpuclockid(pid, &clock);
        if (error != 0) return -(long long) error;
        if (clock_gettime(clock, &t) != 0) return -(long long) errno;
        return (long long) t.tv_sec * 1000000000LL + t.tv_nsec;
    #else
        (void) pid;
        return -(long long) ENOTSUP;
    #endif
    }

    /* Wait for bytes: 1 there are some (or the end), 0 time is up, -1 with errno. */
    static int wait_readable(int fd, int timeout_ms) {
        struct pollfd p;
        p.fd = fd;
        p.events = POLLIN;
        p.revents = 0;
        return poll(&p, 1, timeout_ms);
    }

    /* Wait for bytes, or for room if `room`, for `timeout_ns` at most; -1 with errno, else a sum of 1 (there are bytes,
       an end or an error) and 2 (there is room). */
    static int wait_ready(int fd, int room, long long timeout_ns) {
        struct pollfd p;
        int count;
        p.fd = fd;
        p.events = POLLIN | (room ? POLLOUT : 0);
        p.revents = 0;
    #ifdef __linux__
        struct timespec t;
        t.tv_sec = timeout_ns / 1000000000LL;
        t.tv_nsec = timeout_ns % 1000000000LL;
        count = ppoll(&p, 1, &t, NULL);
    #else
        count = poll(&p, 1, (int) (timeout_ns / 1000000));  /* below a millisecond the caller spins */
    #endif
        if (count <= 0) return count;
        return ((p.revents & ~POLLOUT) ? 1 : 0) | ((p.revents & POLLOUT) ? 2 : 0);
    }

    /* Linux rounds the time-outs of a thread up to 50 us; at a rate of 10,000 messages a second that is half of the
       time between two of them. */
    static void wake_in_time(void) {
    #ifdef __linux__
        prctl(PR_SET_TIMERSLACK, 1000UL, 0, 0, 0);
    #endif
    }

    static long long clock_ns(clockid_t clock) {
        struct timespec t;
        clock_gettime(clock, &t);
        return (long long) t.tv_sec * 1000000000LL + t.tv_nsec;
    }
    #define monotonic_ns() clock_ns(CLOCK_MONOTONIC)
    #define thread_cpu_ns() clock_ns(CLOCK_THREAD_CPUTIME_ID)

    static inline int bits_of(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }
    """
    long long process_cpu(int pid) nogil
    int wait_readable(int fd, int timeout_ms) nogil
    int wait_ready(int fd, int room, long long timeout_ns) nogil
    void wake_in_time() nogil
    long long monotonic_ns() nogil
    long long thread_cpu_ns() nogil
    int bits_of(uint64_t value) nogil
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    ssize_t c_recv "recv"(int fd, void* data, size_t size, int flags) nogil
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags) nogil

cdef enum:
    RECEIVE_BYTES = 1 << 20
    SEND_BYTES = 1 << 18
    # What is kept of a refusal, to be told.
    MAX_DETAIL = 1024

cdef enum:
    SERIAL_DIGITS = 16
    STAMP_BYTES = 16


class ProtocolError(Exception):
    """The server broke HTTP/2 or gRPC; the text says how."""


def process_cpu_ns(int pid):
    """Return the CPU time that a process has used so far, in ns, all its threads together.

    Raises:
        ProcessLookupError: there is no such process.
        OSError: this system does not tell.
    """
    cdef long long used = process_cpu(pid)
    if used < 0:
        raise OSError(<int> -used, os.strerror(<int> -used), None)
    return used


include "_load_histogram.pxi"
include "_load_acks.pxi"
include "_load_stamps.pxi"
include "_load_receive.pxi"
include "_load_http2.pxi"
include "_load_subscribe.pxi"
include "_load_publish.pxi"
include "_load_nats.pxi"
include "_load_grpc.pxi"
include "_load_jetstream.pxi"
