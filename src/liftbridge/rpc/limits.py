"""What one peer may cost the server: every bound of the gRPC server in one place.

A log server is shared by many clients, and none of them may take it away from the others, be it by
malice, by a bug or by being slow. Each bound has a default that no known client comes near.
All times are in seconds on Trio's clock, all sizes in bytes.
"""

from dataclasses import dataclass, fields

import trio

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Limits:
    """Bounds of the gRPC server.

    Raises:
        ValueError: a bound is not positive, or lies outside of what HTTP/2 can express.
    """

    max_connections: int = 10_000
    """Connections at a time; one more is closed at once."""
    max_concurrent_streams: int = 10_000
    """Calls at a time on one connection. Generous, as the Go client uses one connection for everything."""
    max_request_message: int = 4 * MIB
    """The longest request message; a longer one ends its call with RESOURCE_EXHAUSTED."""
    max_header_list_size: int = 16 * KIB
    """Headers of one request, decoded, as RFC 9113 counts them. A call with more is refused; a connection
    that sends four times as much, encoded or decoded, is closed."""
    max_continuations: int = 32
    """CONTINUATION frames in one header block."""
    max_frame_size: int = 256 * KIB
    """The longest frame that is accepted (SETTINGS_MAX_FRAME_SIZE)."""
    stream_window: int = 1 * MIB
    """Bytes a client may send on one stream ahead of the handler."""
    connection_window: int = 16 * MIB
    """Bytes a client may send on one connection ahead of its handlers: enough that sixteen stalled
    streams are needed to stall a connection, and a bound on what all of them can hold."""
    max_partial_bytes: int = 64 * MIB
    """Bytes of unfinished request messages one connection may hold beyond its window."""
    write_buffer: int = 1 * MIB
    """Bytes of responses that wait for the socket; a handler with more to send waits."""
    handshake_timeout: float = 10.0
    """For the TLS handshake."""
    preface_timeout: float = 10.0
    """From the connection's start to the client's preface and first SETTINGS."""
    keepalive_interval: float = 60.0
    """Without a byte from the client for so long, it is sent a PING."""
    keepalive_timeout: float = 20.0
    """Without a byte from the client for so long after that PING, the connection is closed."""
    max_resets: int = 2_000
    """Streams reset before their end in one abuse period."""
    max_control_frames: int = 10_000
    """Frames that carry no call (PING, SETTINGS, empty DATA, ...) in one abuse period during which the
    server had nothing to send; gRPC clients measure bandwidth with PINGs while they receive."""
    abuse_period: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, not {getattr(self, field.name)!r}")
        if not 16 * KIB <= self.max_frame_size < 1 << 24:
            raise ValueError(f"max_frame_size must lie between 16384 and 16777215, not {self.max_frame_size}")
        for name in ("stream_window", "connection_window"):
            if not 64 * KIB <= getattr(self, name) < 1 << 31:
                raise ValueError(f"{name} must lie between 65536 and 2147483647, not {getattr(self, name)}")


class Meter:
    """Counts events in periods of Trio's clock, to tell use from abuse."""

    __slots__ = ("_count", "_limit", "_period", "_start")

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._count = 0
        self._start = trio.current_time()

    def exceeded(self) -> bool:
        """Count one event; return whether the current period now has more than its limit."""
        self._count += 1
        if self._count <= self._limit:
            return False
        now = trio.current_time()
        if now - self._start < self._period:
            return True
        self._start = now
        self._count = 1
        return False

    def reset(self) -> None:
        """Forget what was counted. Called for what the peer cannot cause cheaply."""
        self._count = 0
