"""HTTP/2 header blocks of gRPC: requests decoded and checked, responses encoded.

A gRPC client repeats the same header block call after call, once its compression table holds the values; such
a block leaves the table unchanged, so what it means is remembered under its bytes until the table changes.
Others, as those of Go, put a deadline into the table with each call: such a block is decoded here, field by
field, if it is as simple as nearly all are, and what it means is remembered under all but the deadline. The
rest goes through the `hpack` library, whose table it is. Responses use literals only and thus need no table
at all: they are the same few bytes for every call.

What breaks HTTP/2 is a `StreamFailure` (or a `ConnectionFailure`, when the compression state is lost). What
breaks gRPC only is an answer: `RequestHead.refusal`.
"""

import base64
import binascii
import re
from dataclasses import dataclass

import hpack.hpack
from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from liftbridge.http2 import ConnectionFailure, ErrorCode, header_text, literal

from .context import Metadata
from .errors import Status, StatusCode

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_UPPER_CASE = re.compile(rb"[A-Z]")
_CONNECTION_HEADERS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_PSEUDO_HEADERS = frozenset({b":method", b":scheme", b":path", b":authority"})
_MAX_MESSAGE = 1024
_CACHED_BLOCKS = 64
_CACHED_HEADS = 8
_CACHED_HEAD_SIZE = 2048  # bytes of headers that are worth remembering
_LONGEST_TIMEOUT = 9  # bytes
_FIELD, _ENTRY, _LITERAL = range(3)  # of a simple block: in the table, to enter it, neither
_INTEGER_SIZE = 6  # bytes: more than enough for any index or length


_decode_integer = hpack.hpack.decode_integer


def _decode_short_integer(data: bytes, prefix_bits: int) -> tuple[int, int]:
    result: tuple[int, int] = _decode_integer(data[:_INTEGER_SIZE], prefix_bits)
    return result


# hpack reads integers of any length in quadratic time: 64 KiB of 0xff would stop the server for a second.
hpack.hpack.decode_integer = _decode_short_integer


class MalformedHeaders(Exception):  # noqa: N818  # the word of RFC 9113, 8.1.1
    """The headers of a request break HTTP/2: the stream is reset."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is answered without a handler."""

    status: Status
    http_status: int = 200


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The headers of one request."""

    scheme: str
    path: str
    timeout: "float | None"
    """Seconds, None if the caller set none."""
    metadata: Metadata
    refusal: "Refusal | None" = None

    @property
    def service(self) -> str:
        """The service's full name, "proto.API"."""
        return self.path[1:].rpartition("/")[0]

    @property
    def method(self) -> str:
        """The method's name, "Publish"."""
        return self.path.rpartition("/")[2]


class _CountingTable(HeaderTable):  # type: ignore[misc]  # hpack is untyped
    """A compression table that counts its changes."""

    changes = 0

    @property
    def state(self) -> tuple[int, int, int]:
        """Equal states, equal meaning of every index."""
        return self.changes, self._maxsize, self._current_size

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        # The decoder hands over slices of the received block, and those would keep the block alive.
        super().add(bytes(name), bytes(value))


class RequestDecoder:
    """Decodes the header blocks of one connection, in the order in which they arrive."""

    def __init__(self, max_header_list_size: int) -> None:
        self._max_size = max_header_list_size
        self._decoder = Decoder(max_header_list_size=4 * max_header_list_size)
        self._table = _CountingTable()
        self._decoder.header_table = self._table
        self._heads: dict[bytes, RequestHead] = {}
        self._timeless: dict[tuple[tuple[bytes, bytes], ...], RequestHead] = {}  # by headers, without timeout
        self._state = self._table.state

    def request(self, block: bytes) -> RequestHead:
        """Decode the headers that open a stream.

        Raises:
            MalformedHeaders: they are not a request in the sense of HTTP/2.
            ConnectionFailure: the block cannot be decoded, and nor can any later one.
        """
        if self._table.state != self._state:
            self._heads.clear()
            self._state = self._table.state
        head = self._heads.get(block)
        if head is None:
            head = self._head(self._decode(block))
            if self._table.state == self._state and len(self._heads) < _CACHED_BLOCKS:
                self._heads[block] = head
        return head

    def _head(self, fields: "list[tuple[bytes, bytes]]") -> RequestHead:
        """Do as `parse_request` does, for headers of which often only the deadline is new."""
        timeout = None
        key = fields
        for place, (name, value) in enumerate(fields):
            if name == b"grpc-timeout":
                if timeout is not None:
                    return parse_request(fields, self._max_size)
                timeout = value
                key = fields.copy()
                key[place] = (name, b"")
        known = self._timeless.get(whole := tuple(key))
        if known is not None:
            if timeout is None:
                return known
            seconds = parse_timeout(timeout.decode("latin-1"))
            if seconds is not None:
                return RequestHead(known.scheme, known.path, seconds, known.metadata)
        head = parse_request(fields, self._max_size)
        size = _LONGEST_TIMEOUT + sum(len(name) + len(value) + 32 for name, value in key)
        if head.refusal is None and size <= min(self._max_size, _CACHED_HEAD_SIZE):
            if len(self._timeless) >= _CACHED_HEADS:
                self._timeless.clear()
            self._timeless[whole] = head
        return head

    def trailers(self, block: bytes) -> None:
        """Decode headers that end a request; gRPC gives them no meaning.

        Raises:
            MalformedHeaders: a name begins with a colon.
            ConnectionFailure: the block cannot be decoded, and nor can any later one.
        """
        for name, _ in self._decode(block):
            if name.startswith(b":"):
                raise MalformedHeaders(f"trailers hold {name!r}")

    def skip(self, block: bytes) -> None:
        """Decode headers nobody wants, to keep the compression state.

        Raises:
            ConnectionFailure: the block cannot be decoded, and nor can any later one.
        """
        self._decode(block)

    def _decode(self, block: bytes) -> "list[tuple[bytes, bytes]]":
        try:
            fields = simple_fields(block)
            if fields is not None:
                return self._apply(fields)
            headers: list[tuple[bytes, bytes]] = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise ConnectionFailure(
                ErrorCode.ENHANCE_YOUR_CALM, f"headers of more than {4 * self._max_size} bytes"
            ) from None
        # hpack reports some defects of a block as the error its own code ran into.
        except (HPACKError, IndexError, TypeError, ValueError) as error:
            raise ConnectionFailure(
                ErrorCode.COMPRESSION_ERROR, f"headers cannot be decoded: {error}"
            ) from None
        return headers

    def _apply(self, fields: "list[tuple[int, int, bytes, bytes]]") -> "list[tuple[bytes, bytes]]":
        table = self._table
        headers: list[tuple[bytes, bytes]] = []
        size = 0
        for kind, index, name, value in fields:
            if index:
                known: tuple[bytes, bytes] = table.get_by_index(index)
                name = known[0]
                if kind == _FIELD:
                    value = known[1]
            if kind == _ENTRY:
                table.add(name, value)
            size += len(name) + len(value) + 32
            if size > 4 * self._max_size:
                raise OversizedHeaderListError(f"{size} bytes")
            headers.append((name, value))
        return headers


def simple_fields(block: bytes) -> "list[tuple[int, int, bytes, bytes]] | None":
    """Take a header block apart: kind, index, name and value of each field; None when it is not a simple one.

    Simple is what has indices and lengths of two octets at most and neither changes the table's size nor
    breaks a rule. Nothing is looked up.
    """
    fields = []
    position, end = 0, len(block)
    try:
        while position < end:
            first = block[position]
            position += 1
            if first & 0x80:
                kind, prefix = _FIELD, 0x7F
            elif first & 0x40:
                kind, prefix = _ENTRY, 0x3F
            elif first & 0x20:
                return None
            else:
                kind, prefix = _LITERAL, 0x0F
            index = first & prefix
            if index == prefix:
                index += block[position]
                if block[position] & 0x80:
                    return None
                position += 1
            name = value = b""
            if kind != _FIELD:
                if not index:
                    name, position = _string(block, position)
                value, position = _string(block, position)
            elif not index:
                return None
            fields.append((kind, index, name, value))
    except (IndexError, ValueError, HPACKError):
        return None
    return fields


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """Return the string that begins at `position`, and where it ends."""
    first = block[position]
    position += 1
    length = first & 0x7F
    if length == 0x7F:
        length += block[position]
        if block[position] & 0x80:
            raise ValueError("a long string")
        position += 1
    end = position + length
    value = block[position:end]
    if len(value) != length:
        raise ValueError("a string is cut off")
    return bytes(decode_huffman(value)) if first & 0x80 else value, end


def parse_timeout(text: str) -> "float | None":
    """Return the seconds of a grpc-timeout; None if it is none."""
    match = _TIMEOUT.fullmatch(text)
    return None if match is None else int(match[1]) * _TIMEOUT_UNITS[match[2]]


def parse_request(headers: "list[tuple[bytes, bytes]]", max_size: int) -> RequestHead:
    """Check the headers of a request and take from them what gRPC needs.

    Args:
        headers: names and values in their order.
        max_size: the largest header list answered by a handler, in bytes as RFC 9113 counts them.

    Raises:
        MalformedHeaders: they are not a request in the sense of HTTP/2.
    """
    pseudo, regular, size = _split(headers)
    if b":method" not in pseudo or b":scheme" not in pseudo or not pseudo.get(b":path"):
        raise MalformedHeaders("a request needs :method, :scheme and :path")
    scheme, path = pseudo[b":scheme"].decode("latin-1"), pseudo[b":path"].decode("latin-1")
    if pseudo[b":method"] != b"POST":
        return _refused(scheme, path, 405, StatusCode.INTERNAL, "gRPC calls use POST")
    if size > max_size:
        message = f"the call's metadata take {size} bytes; the limit is {max_size}"
        return _refused(scheme, path, 200, StatusCode.RESOURCE_EXHAUSTED, message)
    content_type = timeout_text = None
    encoding = "identity"
    metadata: list[tuple[str, str | bytes]] = []
    for name, raw in regular:
        value = raw.decode("latin-1")
        if name == b"content-type":
            content_type = value
        elif name == b"grpc-timeout":
            timeout_text = value
        elif name == b"grpc-encoding":
            encoding = value
        elif name.endswith(b"-bin"):
            try:
                metadata += ((name.decode("latin-1"), item) for item in _binary_values(raw))
            except binascii.Error:
                message = f"the value of {name.decode('latin-1')} is not base64"
                return _refused(scheme, path, 200, StatusCode.INVALID_ARGUMENT, message)
        elif not name.startswith(b"grpc-") and name != b"te":
            metadata.append((name.decode("latin-1"), value))
    if content_type is None or not re.match(r"application/grpc($|[+;])", content_type):
        message = f"content-type {content_type!r} is not application/grpc"
        return _refused(scheme, path, 415, StatusCode.UNKNOWN, message)
    if encoding != "identity":
        message = f"messages compressed with {encoding!r} are not supported: send them uncompressed"
        return _refused(scheme, path, 200, StatusCode.UNIMPLEMENTED, message)
    timeout = None
    if timeout_text is not None:
        timeout = parse_timeout(timeout_text)
        if timeout is None:
            message = f"grpc-timeout {timeout_text!r} is not up to 8 digits and one of H, M, S, m, u, n"
            return _refused(scheme, path, 200, StatusCode.INVALID_ARGUMENT, message)
    return RequestHead(scheme, path, timeout, tuple(metadata))


def _refused(scheme: str, path: str, http_status: int, code: StatusCode, message: str) -> RequestHead:
    return RequestHead(scheme, path, None, (), Refusal(Status(code, message), http_status))


def _split(
    headers: "list[tuple[bytes, bytes]]",
) -> "tuple[dict[bytes, bytes], list[tuple[bytes, bytes]], int]":
    """Separate the pseudo-headers from the rest, check both, count the size."""
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    size = 0
    for name, value in headers:
        size += len(name) + len(value) + 32
        if name.startswith(b":"):
            if regular or name in pseudo or name not in _PSEUDO_HEADERS:
                raise MalformedHeaders(f"{name!r} is unknown, repeated or out of place")
            pseudo[name] = value
            continue
        if not name or name in _CONNECTION_HEADERS or _UPPER_CASE.search(name):
            raise MalformedHeaders(f"{name!r} is not allowed in HTTP/2")
        if name == b"te" and value != b"trailers":
            raise MalformedHeaders(f"te is {value!r} and not trailers")
        regular.append((name, value))
    return pseudo, regular, size


def _binary_values(value: bytes) -> "list[bytes]":
    return [
        base64.b64decode(item + b"=" * (-len(item) % 4), validate=True)
        for item in (part.strip() for part in value.split(b","))
    ]


def percent_encode(message: str) -> str:
    """Encode a status message as gRPC does: printable ASCII but "%" stays, other bytes become %XX.

    A message that is too long for a header is cut.
    """
    parts: list[str] = []
    size = 0
    for byte in message.encode("utf-8", "replace"):
        part = chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}"
        size += len(part)
        if size > _MAX_MESSAGE:
            break
        parts.append(part)
    return "".join(parts)


# The static table has ":status 200" at 8, ":status" first at 8, "content-type" at 31. 0x00 begins a literal
# with a literal name, 0x0f 0x10 one with name 31; neither enters the table.
_STATUS_200 = b"\x88"
_CONTENT_TYPE = b"\x0f\x10" + header_text("application/grpc")
RESPONSE_HEADERS = _STATUS_200 + _CONTENT_TYPE
TRAILERS_OK = literal("grpc-status", "0")
NO_TABLE = b"\x20"
"""Tells the peer that the encoder uses no table: due once after the peer has made the table smaller."""


def trailers(status: Status) -> bytes:
    """Encode the trailers that end a response."""
    block = literal("grpc-status", str(status.int_value))
    if status.status_message:
        block += literal("grpc-message", percent_encode(status.status_message))
    return block


def trailers_ok(metadata: Metadata) -> bytes:
    """Encode the trailers that end a response with OK and tell more about it.

    Args:
        metadata: lower-case names, and values of printable ASCII.
    """
    block = TRAILERS_OK
    for name, value in metadata:
        assert isinstance(value, str) and not name.endswith("-bin"), f"{name} is no text"
        block += literal(name, value)
    return block


def trailers_only(status: Status, http_status: int = 200) -> bytes:
    """Encode a response that is nothing but a status."""
    first = _STATUS_200 if http_status == 200 else b"\x08" + header_text(str(http_status))
    block = first + _CONTENT_TYPE + trailers(status)
    if status.status_code is StatusCode.UNIMPLEMENTED:
        block += literal("grpc-accept-encoding", "identity")
    return block
