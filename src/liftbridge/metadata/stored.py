"""The container that every stored operation is in: kind and layout version, then the body."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from liftbridge.proto import internal_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

LAYOUT_VERSION = 1


class OperationError(ValueError):
    """Bytes that are no operation, or one that this version does not know."""


def envelope(kind: internal_pb2.OperationKind, body: Message) -> bytes:
    """The stored form of the operation of that kind."""
    return internal_pb2.Operation(
        version=LAYOUT_VERSION, kind=kind, body=body.SerializeToString(deterministic=True)
    ).SerializeToString(deterministic=True)


def decode_stream_id(data: bytes) -> uuid.UUID:
    """The UUID of a stream from its 16 bytes; OperationError for any other length."""
    return decode_uuid(data, "stream id")


def decode_uuid(data: bytes, what: str) -> uuid.UUID:
    """A UUID from its 16 bytes; OperationError that names `what` for any other length."""
    if len(data) != 16:
        raise OperationError(f"{what} has {len(data)} bytes, not 16")
    return uuid.UUID(bytes=data)
