"""HPACK: header blocks of one connection, one after the other, as a client's HEADERS frames bring them.

Checked: a block is a request or is refused with the error of its stream or connection; the same block again,
while the compression table is the same, is the same request, although it then comes from memory; blocks that
are taken apart without the library mean what they mean to it, for the table as well, and what is remembered
without its deadline what it means at length; the table and the memory of blocks stay within their bounds.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpack import Decoder, Encoder, HPACKError

from fuzz_targets.script import Script, written
from liftbridge.http2 import ConnectionFailure, StreamFailure
from liftbridge.rpc.headers import MalformedHeaders, RequestDecoder, RequestHead, parse_request

INSTRUMENTED = ("liftbridge.rpc.headers", "hpack")
MAX_LENGTH = 1024
WORDS = (
    b":method", b":path", b":scheme", b"POST", b"te", b"trailers", b"content-type", b"application/grpc",
    b"\x83", b"\x86", b"\x44", b"\x04", b"\x40", b"\x10", b"\xbe", b"\x3f\xe1\x1f", b"\x20", b"grpc-timeout",
    b"1S", b"x-bin", b"AAAA",
)  # fmt: skip

SIZE = 512
REQUEST, TRAILERS, SKIP = range(3)
PLAIN = [(":method", "POST"), (":scheme", "http"), (":path", "/proto.API/Publish"), ("te", "trailers"),
         ("content-type", "application/grpc")]  # fmt: skip


def seeds() -> Iterator[bytes]:
    """Blocks of a real encoder."""
    encoder = Encoder()
    blocks = [
        encoder.encode(PLAIN),
        encoder.encode(PLAIN),
        encoder.encode(
            [*PLAIN, ("grpc-timeout", "5S"), ("a-bin", "AAAA,AAAA"), ("user", "ann")], huffman=False
        ),
        encoder.encode([(":method", "GET"), (":scheme", "http"), (":path", "/")]),
    ]
    yield written(*(part for block in blocks for part in (REQUEST, block)))
    yield written(TRAILERS, encoder.encode([("a", "b")]), SKIP, blocks[0], REQUEST, Encoder().encode(PLAIN))
    encoder.header_table_size = 100
    yield written(REQUEST, encoder.encode(PLAIN), REQUEST, encoder.encode([*PLAIN, ("long", "x" * 600)]))


def run(data: bytes) -> None:
    script = Script(data)
    decoder, reference = RequestDecoder(SIZE), Decoder(max_header_list_size=4 * SIZE)
    while script:
        kind, block = script.number() % 3, script.string()
        fields = decoded(reference, block)
        try:
            step(decoder, kind, block, fields)
        except (MalformedHeaders, StreamFailure):
            assert fields is not None
        except ConnectionFailure:
            assert fields is None
            return
        finally:
            assert decoder._table._current_size <= 4096 + 32
            assert len(decoder._heads) <= 64
            assert len(decoder._timeless) <= 8
        assert list(decoder._table.dynamic_entries) == [
            (bytes(name), bytes(value)) for name, value in reference.header_table.dynamic_entries
        ]


def decoded(reference: Decoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    """What a block is to the library, None when it cannot be decoded."""
    try:
        return [(bytes(name), bytes(value)) for name, value in reference.decode(block, raw=True)]
    except (HPACKError, IndexError, TypeError, ValueError):
        return None


def step(decoder: RequestDecoder, kind: int, block: bytes, fields: list[tuple[bytes, bytes]] | None) -> None:
    if kind == TRAILERS:
        decoder.trailers(block)
    elif kind == SKIP:
        decoder.skip(block)
    else:
        before = decoder._table.state
        head = decoder.request(block)
        check(head)
        assert fields is not None
        assert repr(head) == repr(parse_request(fields, SIZE))  # a Status equals itself only
        if decoder._table.state == before:
            assert decoder.request(block) == head


def check(head: RequestHead) -> None:
    assert isinstance(head.path, str) and head.path
    assert head.timeout is None or 0 <= head.timeout < 1e12
    for name, value in head.metadata:
        assert isinstance(value, bytes) == name.endswith("-bin")
    assert sum(len(name) + len(value) for name, value in head.metadata) <= SIZE or head.refusal
