"""Length-prefixed gRPC messages and the DATA frames that carry them, in bulk.

A gRPC message on the wire is one byte that tells whether it is compressed, four bytes of length (big
endian) and the message. HTTP/2 carries the sequence of messages as bytes, so one DATA frame may hold a
hundred messages and one message may span many frames. `data_frames` and `whole_messages`, in C, work on whole
buffers: the sender never looks for message borders, the receiver looks for the last one only.
"""

import struct
from dataclasses import dataclass

from liftbridge._wire import data_frames, whole_messages

__all__ = ["Frames", "MESSAGE_HEADER_SIZE", "data_frames", "message_frame", "whole_messages"]

_MESSAGE_HEADER = struct.Struct(">BL")
MESSAGE_HEADER_SIZE = _MESSAGE_HEADER.size


@dataclass(frozen=True, slots=True)
class Frames:
    """One or more whole length-prefixed gRPC messages, ready for the wire or as they came from it."""

    data: "bytes | bytearray | memoryview"


def message_frame(message: bytes) -> bytes:
    """Put the length prefix before one serialized message."""
    return _MESSAGE_HEADER.pack(0, len(message)) + message
