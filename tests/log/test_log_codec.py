"""Bodies of batches: what comes back is what went in, at the place where it went in; nothing else does."""

import os
import subprocess
import sys
import threading
import tracemalloc
import uuid
from dataclasses import asdict, dataclass, replace

import cramjam
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from liftbridge.log.codec import CODEC_BITS, COMPRESSIONS, ENCRYPTED, MAX_RAW_LENGTH, BatchCodec

STREAM = uuid.UUID("7d8ac2c5-9d0e-4c8b-8f0c-1f2e3d4c5b6a")
KEY = bytes(range(32))
RECORDS = b'{"event":"login","user":"somebody"}' * 40


@dataclass(frozen=True)
class Header:
    """What the header of a batch says, as far as it concerns the body."""

    base_offset: int = 1000
    epoch: int = 7
    count: int = 40
    last_delta: int = 39
    base_timestamp: int = 1_700_000_000_000_000_000
    max_timestamp: int = 1_700_000_000_000_000_039


HEADER = Header()
HEADERS = st.builds(
    Header,
    base_offset=st.integers(0, (1 << 63) - 1),
    epoch=st.integers(0, (1 << 64) - 1),
    count=st.integers(0, (1 << 32) - 1),
    last_delta=st.integers(0, (1 << 32) - 1),
    base_timestamp=st.integers(-(1 << 63), (1 << 63) - 1),
    max_timestamp=st.integers(-(1 << 63), (1 << 63) - 1),
)


def codec(compression: str = "none", key: bytes | None = None, partition: int = 3) -> BatchCodec:
    return BatchCodec(STREAM, partition, compression, key)


def seal(with_codec: BatchCodec, records: bytes = RECORDS, header: Header = HEADER) -> tuple[int, bytes]:
    return with_codec.seal(records, attributes=0, **asdict(header))


def unseal(
    with_codec: BatchCodec,
    body: bytes,
    attributes: int,
    header: Header = HEADER,
    raw_length: int = len(RECORDS),
) -> bytes:
    return with_codec.open(body, attributes=attributes, raw_length=raw_length, **asdict(header))


@given(
    records=st.one_of(
        st.binary(min_size=1, max_size=3000),
        st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=9), st.integers(1, 900)),
    ),
    header=HEADERS,
    compression=st.sampled_from(list(COMPRESSIONS)),
    key=st.sampled_from([None, KEY]),
    others=st.sampled_from([0x20, 0x40, 0x60]),
    kind=st.sampled_from([bytes, bytearray, memoryview]),
)
def test_round_trip(records, header, compression, key, others, kind):
    writer = codec(compression, key)
    attributes, body = writer.seal(kind(records), attributes=others, **asdict(header))
    assert attributes & ~(CODEC_BITS | ENCRYPTED) == others
    assert bool(attributes & ENCRYPTED) == (key is not None)
    assert attributes & CODEC_BITS in (0, COMPRESSIONS[compression])
    # What a log compresses with now says nothing about what is in it.
    reader = codec("none", key)
    opened = reader.open(kind(body), attributes=attributes, raw_length=len(records), **asdict(header))
    assert opened == records


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("key", [None, KEY])
def test_what_compresses_is_stored_smaller(compression, key):
    attributes, body = seal(codec(compression, key))
    assert attributes & CODEC_BITS == COMPRESSIONS[compression]
    assert len(body) < len(RECORDS) // 4


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_what_does_not_compress_is_stored_as_it_is(compression):
    records = os.urandom(1000)
    assert seal(codec(compression), records) == (0, records)


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
def test_nothing_of_the_records_is_in_an_encrypted_body(compression):
    records = b"".join(b"secret-%06d;" % number for number in range(200))
    attributes, body = seal(codec(compression, KEY), records)
    for at in range(0, len(records) - 8, 4):
        assert records[at : at + 8] not in body
    assert unseal(codec(compression, KEY), body, attributes, raw_length=len(records)) == records


def test_no_two_bodies_are_equal():
    writer = codec("none", KEY)
    bodies = {seal(writer)[1] for _ in range(100)}
    assert len(bodies) == 100
    assert len({body[:12] for body in bodies}) == 100


@pytest.mark.parametrize("field", list(asdict(HEADER)))
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_every_field_of_the_header_is_bound(field, compression):
    writer = codec(compression, KEY)
    attributes, body = seal(writer)
    assert unseal(writer, body, attributes) == RECORDS
    for change in (1, -1, 1 << 20):
        other = replace(HEADER, **{field: getattr(HEADER, field) + change})
        if min(asdict(other).values()) >= 0:
            with pytest.raises(ValueError, match="does not authenticate"):
                unseal(writer, body, attributes, other)


@pytest.mark.parametrize("attributes", [0x18, 0x28, 0x48, 0x08 | 1, 0x08 | 2])
def test_the_attributes_are_bound(attributes):
    _, body = seal(codec("none", KEY))
    with pytest.raises(ValueError, match="does not authenticate"):
        unseal(codec("none", KEY), body, attributes)


@pytest.mark.parametrize("length", [0, 1, len(RECORDS) - 1, len(RECORDS) + 1, MAX_RAW_LENGTH])
def test_the_length_of_the_records_is_bound(length):
    attributes, body = seal(codec("zstd", KEY))
    with pytest.raises(ValueError, match="does not authenticate"):
        unseal(codec("zstd", KEY), body, attributes, raw_length=length)


@pytest.mark.parametrize(
    "reader",
    [
        BatchCodec(uuid.UUID(int=STREAM.int ^ 1), 3, "none", KEY),
        BatchCodec(STREAM, 4, "none", KEY),
        BatchCodec(STREAM, 3, "none", bytes(32)),
    ],
    ids=["stream", "partition", "key"],
)
def test_a_body_of_another_log_is_refused(reader):
    attributes, body = seal(codec("none", KEY))
    with pytest.raises(ValueError, match="does not authenticate"):
        unseal(reader, body, attributes)


def test_batches_cannot_be_swapped():
    writer = codec("none", KEY)
    second = replace(HEADER, base_offset=HEADER.base_offset + HEADER.last_delta + 1)
    attributes, body = seal(writer)
    attributes_of_second, body_of_second = seal(writer, RECORDS[::-1], second)
    assert unseal(writer, body_of_second, attributes_of_second, second) == RECORDS[::-1]
    for found, header in ((body, second), (body_of_second, HEADER)):
        with pytest.raises(ValueError, match="does not authenticate"):
            unseal(writer, found, attributes, header)


@given(st.data())
def test_an_altered_encrypted_body_is_refused(data):
    attributes, body = seal(codec("lz4", KEY))
    at = data.draw(st.integers(0, len(body) * 8 - 1))
    altered = bytearray(body)
    altered[at // 8] ^= 1 << at % 8
    with pytest.raises(ValueError, match="does not authenticate"):
        unseal(codec("none", KEY), altered, attributes)


@given(st.integers(0, 400))
def test_a_truncated_encrypted_body_is_refused(length):
    attributes, body = seal(codec("none", KEY))
    with pytest.raises(ValueError, match="does not authenticate" if length >= 28 else "are too few"):
        unseal(codec("none", KEY), body[:length], attributes)


@given(st.data(), st.sampled_from(["lz4", "zstd"]))
def test_an_altered_compressed_body_is_refused_or_as_long_as_it_should_be(data, compression):
    attributes, body = seal(codec(compression))
    altered = bytearray(body[: data.draw(st.integers(0, len(body)))])
    if altered:
        at = data.draw(st.integers(0, len(altered) * 8 - 1))
        altered[at // 8] ^= 1 << at % 8
    altered += data.draw(st.binary(max_size=20))
    try:
        opened = unseal(codec(), altered, attributes)
    except ValueError:
        return
    assert len(opened) == len(RECORDS)


@given(st.binary(max_size=200), st.sampled_from([1, 2]), st.integers(0, 100_000))
def test_any_bytes_may_be_given_to_be_decompressed(body, attributes, raw_length):
    try:
        opened = unseal(codec(), body, attributes, raw_length=raw_length)
    except ValueError:
        return
    assert len(opened) == raw_length


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_another_length_than_the_real_one_is_refused(compression, change):
    attributes, body = seal(codec(compression))
    with pytest.raises(ValueError, match=r"header tells|no LZ4 block"):
        unseal(codec(), body, attributes, raw_length=len(RECORDS) + change)


BOMB = bytes(64 << 20)


@pytest.mark.parametrize(
    ("attributes", "body"),
    [
        (1, bytes(cramjam.lz4.compress_block(BOMB, store_size=False))),
        (2, zstandard.ZstdCompressor().compress(BOMB)),
        (2, zstandard.ZstdCompressor(write_content_size=False).compress(BOMB)),
        # One frame of the right size, and a large one behind it.
        (2, zstandard.ZstdCompressor().compress(bytes(1000)) + zstandard.ZstdCompressor().compress(BOMB)),
    ],
    ids=["lz4", "zstd", "zstd without its size", "two frames"],
)
def test_a_bomb_does_not_go_off(attributes, body):
    codec("zstd").seal(b"warm up", attributes=0, **asdict(HEADER))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"LZ4|Zstandard"):
            unseal(codec(), body, attributes, raw_length=1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_length_that_the_body_cannot_have_costs_nothing():
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="cannot hold"):
            unseal(codec(), b"abc", 1, raw_length=MAX_RAW_LENGTH)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("raw_length", [-1, MAX_RAW_LENGTH + 1])
@pytest.mark.parametrize("attributes", [0, 1, 2, 8])
def test_an_impossible_length_is_refused(raw_length, attributes):
    with pytest.raises(ValueError, match="are the most"):
        codec("none", KEY).open(b"x", attributes=attributes, raw_length=raw_length, **asdict(HEADER))


def test_records_beyond_the_longest_batch_are_refused():
    with pytest.raises(ValueError, match="are the most"):
        seal(codec("lz4"), bytes(MAX_RAW_LENGTH + 1))


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7])
def test_a_codec_of_a_later_version_is_named(number):
    with pytest.raises(ValueError, match=f"codec {number}, which this version does not know"):
        unseal(codec(), RECORDS, number)


def test_a_segment_with_a_key_gives_back_nothing_that_was_not_encrypted():
    attributes, body = seal(codec("lz4"))
    assert not attributes & ENCRYPTED
    with pytest.raises(ValueError, match="not encrypted"):
        unseal(codec("lz4", KEY), body, attributes)


def test_without_a_key_nothing_encrypted_is_opened():
    attributes, body = seal(codec("none", KEY))
    with pytest.raises(ValueError, match="no data key"):
        unseal(codec(), body, attributes)


@pytest.mark.parametrize("attributes", [1, 2, 8, 9])
def test_a_batch_is_sealed_once(attributes):
    with pytest.raises(ValueError, match="sealed already"):
        codec().seal(RECORDS, attributes=attributes, **asdict(HEADER))


def test_what_a_codec_cannot_be_made_of():
    with pytest.raises(ValueError, match="'brotli' is not one of none, lz4, zstd"):
        codec("brotli")
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        codec("none", bytes(16))


def test_a_codec_shows_no_key():
    assert repr(codec("zstd", KEY)) == "<BatchCodec zstd, encrypted>"
    assert repr(codec("lz4")) == "<BatchCodec lz4>"


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
def test_threads_may_share_a_codec(compression):
    shared = codec(compression, KEY)
    failures: list[BaseException] = []
    together = threading.Barrier(8)

    def work(number: int) -> None:
        records = b"%d;" % number * 20_000
        header = replace(HEADER, base_offset=number)
        together.wait()
        try:
            for _ in range(50):
                attributes, body = seal(shared, records, header)
                assert unseal(shared, body, attributes, header, len(records)) == records
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_who_uses_neither_imports_neither():
    script = (
        "import sys, uuid\n"
        "from liftbridge.log.codec import BatchCodec\n"
        "import liftbridge.log, liftbridge.log.keys\n"
        "codec = BatchCodec(uuid.UUID(int=1), 0)\n"
        "header = dict(base_offset=0, epoch=0, count=1, last_delta=0, base_timestamp=0, max_timestamp=0)\n"
        "attributes, body = codec.seal(b'records', attributes=0, **header)\n"
        "assert codec.open(body, attributes=0, raw_length=7, **header) == b'records'\n"
        "print(sorted({'cryptography', 'cramjam', 'zstandard'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
