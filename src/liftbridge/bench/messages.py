"""What publishers send, encoded once: the templates into which `_load` patches serial numbers and times.

A template is built by the same libraries as anybody's message, with marks where the patches go, and the marks
are then searched for: so no offset is computed here, and a change of the protobuf cannot make one wrong.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from liftbridge import http2
from liftbridge.bench.errors import BenchError
from liftbridge.proto import api_pb2

STAMP_BYTES = 16
POLICIES = {"leader": api_pb2.LEADER, "all": api_pb2.ALL, "none": api_pb2.NONE}
CALL_SECONDS = 30

_SERIAL = "feedfacecafebeef"
_STAMP = b"\xf5stamp goes here"  # no text, so that no subject and no stream can contain it
_ENVELOPE_HEADER = b"\xb9\x0e\x43\xb4\x00\x08\x00\x00"  # magic, version 0, 8 bytes, no flags, a publish
_ANY_OFFSET = -1


@dataclass(frozen=True)
class Template:
    """A message ready to be sent, and where in it serial number and stamp go; -1 for nowhere."""

    data: bytes
    serial_at: int = -1
    stamp_at: int = -1


def value(size: int, *, stamped: bool) -> bytes:
    """Return a value of `size` letters; a stamped one has a mark in front where the stamp goes.

    Raises:
        BenchError: a stamp does not fit.
    """
    if stamped and size < STAMP_BYTES:
        raise BenchError(
            f"latency needs messages of {STAMP_BYTES} bytes at least: --size {size} is too small"
        )
    source = random.Random(size)  # noqa: S311  # values are to differ from zeros, not to be secret
    letters = "".join(source.choices(string.ascii_letters, k=size)).encode()
    return _STAMP + letters[STAMP_BYTES:] if stamped else letters


def envelope(subject: str, inbox: str, value: bytes, policy: str) -> Template:
    """Return a NATS PUB with a publish envelope, whose ack has the serial number as correlation id."""
    acked = policy != "none"
    message = api_pb2.Message(
        value=value,
        offset=_ANY_OFFSET,
        ackInbox=inbox if acked else "",
        correlationId=_SERIAL if acked else "",
        ackPolicy=POLICIES[policy],
    )
    return _template(nats_pub(subject, _ENVELOPE_HEADER + message.SerializeToString()))


def plain(subject: str, inbox: str, value: bytes, policy: str) -> Template:
    """Return a NATS PUB with the value alone, whose ack comes to a subject that ends with its number.

    Without acks the value begins with the number, as far as there is room, so that no two are the same.
    """
    if policy != "none":
        return _template(nats_pub(subject, value, f"{inbox}.{_SERIAL}"))
    if len(value) >= len(_SERIAL) and _STAMP not in value:
        value = _SERIAL.encode() + value[len(_SERIAL) :]
    return _template(nats_pub(subject, value))


def request(stream: str, value: bytes, policy: str) -> Template:
    """Return a `PublishRequest` with its gRPC prefix, whose correlation id is the serial number."""
    message = api_pb2.PublishRequest(
        stream=stream,
        value=value,
        correlationId=_SERIAL,
        ackPolicy=POLICIES[policy],
        expectedOffset=_ANY_OFFSET,
    ).SerializeToString()
    return _template(b"\0" + len(message).to_bytes(4, "big") + message)


def headers(authority: str, method: str, seconds: int | None = None) -> bytes:
    """Return the header block of a call, which refers to no compression table.

    Args:
        authority: host:port of the server.
        method: the method of `proto.API`.
        seconds: the deadline, None for none.
    """
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/proto.API/{method}",
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc+proto",
        "user-agent": "liftbridge-bench",
    }
    if seconds is not None:
        fields["grpc-timeout"] = f"{seconds}S"
    return b"".join(http2.literal(name, text) for name, text in fields.items())


def opening(window: int) -> bytes:
    """Preface and settings of a connection; beyond 65535 its window has to be raised, it has no setting."""
    settings = {
        http2.SETTINGS_ENABLE_PUSH: 0,
        http2.SETTINGS_INITIAL_WINDOW_SIZE: window,
        http2.SETTINGS_MAX_FRAME_SIZE: http2.DEFAULT_FRAME_SIZE,
    }
    raised = window - http2.DEFAULT_WINDOW
    return http2.PREFACE + http2.settings(settings) + (http2.window_update(0, raised) if raised > 0 else b"")


def nats_pub(subject: str, payload: bytes, reply: str = "") -> bytes:
    """Return a NATS PUB."""
    return f"PUB {subject} {reply + ' ' if reply else ''}{len(payload)}\r\n".encode() + payload + b"\r\n"


def _template(data: bytes) -> Template:
    return Template(data, data.find(_SERIAL.encode()), data.find(_STAMP))
