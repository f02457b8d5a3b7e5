"""Operations and their stored form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metadata_cases import create, creates, deletes, of_brokers, of_partitions, of_replicas

from liftbridge.metadata.model import StreamSettings, settings_of_request
from liftbridge.metadata.operations import OperationError, decode
from liftbridge.proto import api_pb2, internal_pb2


@given(creates | deletes | of_partitions | of_brokers | of_replicas)
def test_what_is_decoded_is_what_was_encoded(operation):
    assert decode(operation.encode()) == operation
    assert decode(operation.encode()).encode() == operation.encode()


def test_a_setting_of_zero_is_told_from_none():
    zeros = StreamSettings(retention_max_bytes=0, min_isr=0, compact_enabled=False)
    decoded = decode(create(settings=zeros).encode())
    assert decoded.settings == zeros
    assert decoded.settings.encryption is None
    assert decoded.settings.compact_enabled is False


@given(st.binary(max_size=200))
def test_garbage_is_an_error_that_says_so(data):
    with pytest.raises(OperationError):
        decode(data)


@given(creates | deletes | of_partitions | of_brokers | of_replicas, st.data())
def test_a_changed_byte_gives_an_operation_or_an_error(operation, data):
    stored = bytearray(operation.encode())
    position = data.draw(st.integers(0, len(stored) - 1))
    stored[position] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(stored))
    except OperationError as error:
        assert str(error)


def test_an_unknown_kind_is_named():
    with pytest.raises(OperationError, match="kind 127 is not known"):
        decode(internal_pb2.Operation(version=1, kind=127, body=b"").SerializeToString())


def test_a_newer_layout_is_named():
    with pytest.raises(OperationError, match="CREATE_STREAM has layout version 2"):
        decode(internal_pb2.Operation(version=2, kind=internal_pb2.CREATE_STREAM).SerializeToString())


def test_settings_of_a_request_count_when_present():
    request = api_pb2.CreateStreamRequest(name="orders")
    assert settings_of_request(request) == StreamSettings()

    # On the wire a wrapper with 0 or false is an empty submessage.
    request.ParseFromString(request.SerializeToString() + bytes([6 << 3 | 2, 0, 13 << 3 | 2, 0]))
    request.segmentMaxAge.value = 1500
    request.compression, request.syncPolicy = "", "never"
    assert settings_of_request(request) == StreamSettings(
        retention_max_bytes=0, compact_enabled=False, segment_max_age_ms=1500, sync_policy="never"
    )


def test_fields_of_our_own_have_numbers_that_the_contract_leaves_alone():
    numbers = {field.name: field.number for field in api_pb2.CreateStreamRequest.DESCRIPTOR.fields}
    assert {name: number for name, number in numbers.items() if number > 18} == {
        "compression": 1001,
        "syncPolicy": 1002,
    }
