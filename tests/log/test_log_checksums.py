"""CRC-32C and XXH64 of the core against published values, each other, and an independent implementation."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from liftbridge._log import CRC32C_IMPLEMENTATION, crc32c, crc32c_software, xxh64

# RFC 3720, appendix B.4, and the customary check value.
VECTORS = [
    (b"", 0),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
]


@pytest.mark.parametrize("function", [crc32c, crc32c_software])
@pytest.mark.parametrize(("data", "value"), VECTORS)
def test_published_values(function, data, value):
    assert function(data) == value


# Lengths around the width of a step and of the three interleaved lanes.
@pytest.mark.parametrize("length", [1, 7, 8, 9, 63, 1023, 3071, 3072, 3073, 6144, 9999, 100_001])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_hardware_equals_software_at_every_length_and_alignment(length, start):
    data = memoryview(bytes(n * 7 % 251 for n in range(length + start)))[start:]
    assert crc32c(data) == crc32c_software(data)


@given(st.binary(max_size=8000), st.integers(0, 2**32 - 1))
def test_hardware_equals_software(data, before):
    assert crc32c(data, before) == crc32c_software(data, before)


@given(st.binary(max_size=4000), st.binary(max_size=4000))
def test_crc_continues(first, second):
    assert crc32c(second, crc32c(first)) == crc32c(first + second)


@given(st.binary(max_size=300))
def test_xxh64(data):
    assert xxh64(data) == xxhash.xxh64_intdigest(data)


def test_implementation_is_named():
    assert CRC32C_IMPLEMENTATION in ("hardware", "table")
