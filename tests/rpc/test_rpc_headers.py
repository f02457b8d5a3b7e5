"""Header blocks: those that are taken apart without hpack mean what they mean to it, call after call."""

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from liftbridge.http2 import literal
from liftbridge.rpc.headers import MalformedHeaders, RequestDecoder, parse_request, simple_fields

SIZE = 16_384
PLAIN = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/proto.API/Publish"),
    (":authority", "localhost:9292"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.60.1"),
]
NAMES = st.sampled_from(["a", "grpc-timeout", "x-bin", "te", "name-of-some-length", ":path", "grpc-encoding"])
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200) | st.sampled_from(
    ["1S", "20m", "5000u", "trailers", "identity", "AAAA"]
)
CALLS = st.lists(
    st.tuples(st.lists(st.tuples(NAMES, VALUES), max_size=4), st.booleans()), min_size=1, max_size=12
)


def outcome(decode):
    try:
        return repr(decode())  # a Status equals itself only
    except MalformedHeaders as error:
        return str(error)


@given(CALLS)
def test_requests_are_what_hpack_says(calls):
    encoder, decoder, reference = Encoder(), RequestDecoder(SIZE), Decoder(max_header_list_size=4 * SIZE)
    for extra, huffman in calls:
        block = encoder.encode([*PLAIN, *extra], huffman=huffman)
        fields = [(bytes(name), bytes(value)) for name, value in reference.decode(block, raw=True)]
        assert outcome(lambda block=block: decoder.request(block)) == outcome(
            lambda fields=fields: parse_request(fields, SIZE)
        )
        assert list(decoder._table.dynamic_entries) == [
            (bytes(name), bytes(value)) for name, value in reference.header_table.dynamic_entries
        ]


def test_deadlines_that_enter_the_table_push_everything_else_out_in_the_end():
    encoder, decoder = Encoder(), RequestDecoder(SIZE)
    for number in range(1, 500):
        block = encoder.encode([*PLAIN, ("grpc-timeout", f"{number}m")])
        assert simple_fields(block) is not None
        head = decoder.request(block)
        assert (head.path, head.timeout) == ("/proto.API/Publish", number * 1e-3)
        assert head.refusal is None
    assert len(decoder._timeless) == 1


def test_a_bad_deadline_is_refused_after_good_ones():
    decoder = RequestDecoder(SIZE)
    plain = b"".join(literal(*field) for field in PLAIN)
    assert decoder.request(plain + literal("grpc-timeout", "1S")).timeout == 1
    assert decoder.request(plain).timeout is None
    refused = decoder.request(plain + literal("grpc-timeout", "soon"))
    assert "grpc-timeout" in refused.refusal.status.status_message
    assert decoder.request(plain + literal("grpc-timeout", "2S")).timeout == 2


def test_what_is_remembered_is_bounded():
    decoder = RequestDecoder(SIZE)
    plain = b"".join(literal(*field) for field in PLAIN)
    for number in range(100):
        decoder.request(plain + literal("trace", str(number)))
        assert len(decoder._timeless) <= 8
    decoder.request(plain + literal("large", "x" * 5000))
    assert all("large" not in dict(head.metadata) for head in decoder._timeless.values())


@pytest.mark.parametrize(
    "block",
    [b"\x80", b"\x20", b"\x3f\xe1\x1f", b"\x40", b"\x40\x05abc", b"\xff\x80\x01", b"\x40\x01a\x7f\x80\x01"],
)
def test_what_is_not_simple_is_left_to_hpack(block):
    assert simple_fields(block) is None
