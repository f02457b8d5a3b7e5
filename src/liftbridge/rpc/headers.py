"""HTTP/2 header blocks of gRPC: requests decoded and checked, responses encoded.

Requests go through the `hpack` library. A gRPC client repeats the same header block call after call, once
its compression table holds the values; such a block leaves the table unchanged, so what it means is
remembered under its bytes until the table changes. Responses use literals only and thus need no
table at all: they are the same few bytes for every call.

What breaks HTTP/2 is a `StreamFailure` (or a `ConnectionFailure`, when the compression state is lost). What
breaks gRPC only is an answer: `RequestHead.refusal`.
"""

import base64
import binascii
import re
from dataclasses import dataclass

import hpack.hpack
from hpack import Decoder, HPACKError, OversizedHeaderListError
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
            head = parse_request(self._decode(block), self._max_size)
            if self._table.state == self._state and len(self._heads) < _CACHED_BLOCKS:
                self._heads[block] = head
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
        match = _TIMEOUT.fullmatch(timeout_text)
        if match is None:
            message = f"grpc-timeout {timeout_text!r} is not up to 8 digits and one of H, M, S, m, u, n"
            return _refused(scheme, path, 200, StatusCode.INVALID_ARGUMENT, message)
        timeout = int(match[1]) * _TIMEOUT_UNITS[match[2]]
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
