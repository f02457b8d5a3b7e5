"""What one peer may cost the server: every bound of the gRPC server in one place.

A log server is shared by many clients, and none of them may take it away from the others, be it by
malice, by a bug or by being slow. Each bound has a default that no known client comes near.
All times are in seconds on Trio's clock, all sizes in bytes.
"""

from dataclasses import dataclass, fields

import trio

KIB = 1024
MIB = 1024 * KIB
SMALL_SHARE = 64 * KIB


@dataclass(frozen=True)
class Limits:
    """Bounds of the gRPC server.

    Raises:
        ValueError: a bound is not positive, or lies outside of what HTTP/2 can express.
    """

    max_connections: int = 10_000
    """Connections at a time; one more is closed at once."""
    max_connections_per_address: int = 2_000
    """Those of one IPv4 address or IPv6 /64 network, so that no single client can take them all."""
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
    max_held: int = 1024 * MIB
    """Bytes of requests that all connections together hold ahead of their handlers. Beyond it a connection
    that holds more than its share has the call ended that brings more; see `Account`."""
    write_buffer: int = 1 * MIB
    """Bytes of responses that wait for the socket; a handler with more to send waits."""
    max_unsent: int = 256 * MIB
    """Bytes of responses that wait for the sockets of all connections together. Beyond it each connection has
    room for its share only."""
    handshake_timeout: float = 10.0
    """For the TLS handshake."""
    preface_timeout: float = 10.0
    """From the connection's start to the client's preface and first SETTINGS."""
    request_timeout: float = 60.0
    """For a frame or a header block that has begun, and for the request of a unary call, to be there as a
    whole."""
    idle_timeout: float = 3_600.0
    """A connection without a call for so long is told to go away; infinite for never."""
    keepalive_interval: float = 60.0
    """Without a byte from the client for so long, it is sent a PING."""
    keepalive_timeout: float = 20.0
    """Without a byte from the client for so long after that PING, the connection is closed."""
    max_resets: int = 2_000
    """Streams reset before their end in one abuse period."""
    max_control_frames: int = 10_000
    """Frames that carry no call (PING, SETTINGS, empty DATA, ...) in one abuse period during which the
    server had nothing to send; gRPC clients measure bandwidth with PINGs while they receive. Window updates
    by a few bytes are counted apart whatever the server sends, and of all others twenty times as many are too
    many."""
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


class Account:
    """What the connections of a server hold together, and the share of each.

    Sharing is what protects the others: while all is within the bound everybody may use it, and beyond the
    bound only those are refused who hold more than an equal part. So the whole is bounded by about the limit
    and `SMALL_SHARE` for each connection, and one who holds little never notices.
    """

    __slots__ = ("_limits", "connections", "held", "unsent")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.connections = 0
        self.held = 0
        """Bytes of requests."""
        self.unsent = 0
        """Bytes of responses."""

    def too_much(self, held: int) -> bool:
        """Whether a connection that holds so many bytes of requests holds too many."""
        limit = self._limits.max_held
        return self.held > limit and held > self._share(limit)

    def write_room(self, unsent: int) -> int:
        """How many bytes of responses more a connection may let wait that has so many."""
        room = self._limits.write_buffer
        if self.unsent > self._limits.max_unsent:
            room = min(room, self._share(self._limits.max_unsent))
        return room - unsent

    def _share(self, limit: int) -> int:
        return max(SMALL_SHARE, limit // (2 * max(1, self.connections)))


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
