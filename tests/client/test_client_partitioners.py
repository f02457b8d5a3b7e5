"""Which partition a message goes to: the same as with the official Go client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftbridge.client import RoundRobin, by_key, partition_of_key


@pytest.mark.parametrize(
    ("key", "partitions", "expected"),
    [
        (b"key", 3, 1),  # CRC-32 2324736937; a signed remainder would be -1
        (b"", 3, 0),
        (b"abc,foo,2", 5, 2),  # CRC-32 850748977
        (b"__group:g1,orders,0", 10, 1),  # CRC-32 810843241
        (b"key", 2324736938, 2324736937),
    ],
)
def test_vectors_of_the_go_client(key, partitions, expected):
    assert partition_of_key(key, partitions) == expected
    assert by_key("any", key, b"", partitions) == expected


@given(st.binary(), st.integers(1, 1000))
def test_a_key_always_has_a_partition(key, partitions):
    assert 0 <= partition_of_key(key, partitions) < partitions


def test_round_robin_counts_each_stream_by_itself():
    choose = RoundRobin()
    assert [choose("a", b"", b"", 3) for _ in range(4)] == [0, 1, 2, 0]
    assert choose("b", b"", b"", 3) == 0
