"""How a client behaves: time-outs, bounds and TLS, in one immutable value that everything else is given.

All times are in seconds, all sizes in bytes. The defaults follow the official Go client where it has one, and
bound what it leaves open: nothing here waits for ever.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields
from os import PathLike

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `connect` takes as keyword arguments, apart from TLS.

    Raises:
        ValueError: a value is not positive, or a window lies outside of what HTTP/2 can express.
    """

    timeout: float = 10.0
    """For one call and all its attempts, unless the method is told otherwise."""
    ack_timeout: float = 5.0
    """How long a publish waits for its ack."""
    retry_timeout: float = 30.0
    """How long a subscription tries to go on after a fault, and a publish that may be sent twice is tried."""
    retry_pause: float = 0.05
    """Between two attempts; doubled each time up to a second."""
    connect_timeout: float = 5.0
    """For one attempt to connect, TLS included."""
    keepalive_interval: float = 20.0
    """Without a byte from the server for so long while calls are open, it is sent a PING."""
    keepalive_timeout: float = 10.0
    """Without a byte for so long after that PING, the connection is given up."""
    stream_window: int = 1 * MIB
    """Bytes the server may send on one call ahead of its reader: what a slow subscription can hold."""
    max_message_bytes: int = 16 * MIB
    """The longest message accepted from a server."""
    write_buffer: int = 1 * MIB
    """Bytes that wait for the socket of a connection; who has more to send waits."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, not {getattr(self, field.name)!r}")
        if not 64 * KIB <= self.stream_window < 1 << 31:
            raise ValueError(f"stream_window must lie between 65536 and 2147483647, not {self.stream_window}")


def tls_context(
    *,
    ca: str | PathLike[str] | None = None,
    certificate: str | PathLike[str] | None = None,
    key: str | PathLike[str] | None = None,
) -> ssl.SSLContext:
    """Make the TLS context for `connect(..., tls=...)`.

    Args:
        ca: file with the certificates of the authorities that servers are verified against; without it those
            of the
            system.
        certificate: file with this client's certificate, for servers that ask for one (mutual TLS).
        key: file with its private key; may be left out if the certificate's file holds it.

    Raises:
        OSError: a file cannot be read.
        ssl.SSLError: a file cannot be used.
        ValueError: a key is given without a certificate.
    """
    if key is not None and certificate is None:
        raise ValueError("a key is of use with a certificate only: pass certificate=... as well")
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context
