"""Streams of one server from outside: create, delete, metadata, restart."""

import grpc
import pytest
from harness import Server

from liftbridge.proto import api_pb2


def create(api, name="orders", subject="shop.orders", **fields):
    return api.CreateStream(api_pb2.CreateStreamRequest(name=name, subject=subject, **fields), timeout=10)


def code(error):
    return error.value.code()


def test_a_created_stream_is_in_the_metadata(server, api):
    create(api, partitions=2)
    metadata = api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=10)
    (broker,) = metadata.brokers
    assert (broker.id, broker.host, broker.port) == (server.server_id, "127.0.0.1", server.grpc_port)
    assert (broker.partitionCount, broker.leaderCount) == (2, 2)
    (stream,) = metadata.streamMetadata
    assert (stream.name, stream.subject, stream.error) == ("orders", "shop.orders", api_pb2.StreamMetadata.OK)
    assert stream.creationTimestamp > 1_700_000_000_000_000_000
    assert sorted(stream.partitions) == [0, 1]
    for number, partition in stream.partitions.items():
        assert partition.id == number
        assert partition.leader == server.server_id
        assert list(partition.replicas) == list(partition.isr) == [server.server_id]
        assert (partition.highWatermark, partition.newestOffset) == (-1, -1)
        for times in ("messagesReceivedTimestamps", "pauseTimestamps", "readonlyTimestamps"):
            assert partition.HasField(times)


def test_unknown_streams_and_groups_are_entries_not_errors(api):
    create(api)
    request = api_pb2.FetchMetadataRequest(streams=["nope", "orders", "nope"], groups=["g"])
    metadata = api.FetchMetadata(request, timeout=10)
    assert [(entry.name, entry.error) for entry in metadata.streamMetadata] == [
        ("nope", 1),
        ("orders", 0),
        ("nope", 1),
    ]
    assert [(group.groupId, group.error) for group in metadata.groupMetadata] == [("g", 1)]
    assert not metadata.streamMetadata[0].partitions


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"name": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"subject": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"subject": "a b"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"subject": "a..b"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"name": "__cursors"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"name": ".."}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"name": "a/b"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"replicationFactor": 2}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"replicationFactor": -2}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"partitions": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"retentionMaxBytes": api_pb2.NullableInt64(value=-1)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"encryption": api_pb2.NullableBool(value=True)}, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_a_stream_that_cannot_be_is_refused(api, fields, expected):
    with pytest.raises(grpc.RpcError) as error:
        create(api, **fields)
    assert code(error) == expected
    assert error.value.details()
    assert not api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=10).streamMetadata


def test_a_name_is_taken_once(api):
    create(api, compactEnabled=api_pb2.NullableBool(value=False), replicationFactor=-1)
    with pytest.raises(grpc.RpcError) as error:
        create(api, subject="another")
    assert code(error) == grpc.StatusCode.ALREADY_EXISTS


def test_a_deleted_stream_is_gone_with_its_files(server, api):
    create(api)
    api.Publish(api_pb2.PublishRequest(stream="orders", value=b"1"), timeout=10)
    subscription = api.Subscribe(api_pb2.SubscribeRequest(stream="orders", startPosition="EARLIEST"))
    assert next(subscription).value == b""
    assert next(subscription).value == b"1"
    api.DeleteStream(api_pb2.DeleteStreamRequest(name="orders"), timeout=10)
    with pytest.raises(grpc.RpcError) as error:
        next(subscription)
    assert code(error) == grpc.StatusCode.NOT_FOUND
    for name in ("orders", "never"):
        with pytest.raises(grpc.RpcError) as error:
            api.DeleteStream(api_pb2.DeleteStreamRequest(name=name), timeout=10)
        assert code(error) == grpc.StatusCode.NOT_FOUND
    create(api)
    api.Publish(api_pb2.PublishRequest(stream="orders", value=b"2"), timeout=10)
    subscription = api.Subscribe(
        api_pb2.SubscribeRequest(stream="orders", startPosition="EARLIEST"), timeout=10
    )
    assert [next(subscription).value for _ in range(2)] == [b"", b"2"]
    assert server.stop() == 0
    assert len(list((server.data_dir / "streams").iterdir())) == 1


def test_streams_and_messages_survive_a_restart(tmp_path):
    with Server(tmp_path / "server") as server:
        api = server.api()
        create(api, partitions=3, optimisticConcurrencyControl=api_pb2.NullableBool(value=True))
        before = api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=10).streamMetadata[0]
        for number in range(3):
            request = api_pb2.PublishRequest(
                stream="orders", partition=1, value=b"%d" % number, expectedOffset=number
            )
            assert api.Publish(request, timeout=10).ack.offset == number
        assert server.stop() == 0
        server.start()
        api = server.api()
        after = api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=10).streamMetadata[0]
        assert (after.creationTimestamp, len(after.partitions)) == (before.creationTimestamp, 3)
        assert after.partitions[1].highWatermark == after.partitions[1].newestOffset == 2
        with pytest.raises(grpc.RpcError) as error:
            api.Publish(api_pb2.PublishRequest(stream="orders", partition=1, expectedOffset=1), timeout=10)
        assert error.value.details() == "incorrect expected offset"
        assert server.stop() == 0


def test_partition_metadata_follows_the_log(api):
    create(api)
    request = api_pb2.FetchPartitionMetadataRequest(stream="orders")
    assert api.FetchPartitionMetadata(request, timeout=10).metadata.newestOffset == -1
    first = api.Publish(api_pb2.PublishRequest(stream="orders"), timeout=10).ack
    second = api.Publish(api_pb2.PublishRequest(stream="orders"), timeout=10).ack
    metadata = api.FetchPartitionMetadata(request, timeout=10).metadata
    assert (metadata.highWatermark, metadata.newestOffset) == (1, 1)
    assert metadata.messagesReceivedTimestamps.firstTimestamp == first.receptionTimestamp
    assert metadata.messagesReceivedTimestamps.latestTimestamp == second.receptionTimestamp
    for stream, partition in (("orders", 1), ("nope", 0)):
        with pytest.raises(grpc.RpcError) as error:
            api.FetchPartitionMetadata(
                api_pb2.FetchPartitionMetadataRequest(stream=stream, partition=partition), timeout=10
            )
        assert code(error) == grpc.StatusCode.NOT_FOUND


def positions(api):
    """The trailing metadata of FetchPartitionMetadata: written, synced, unsynced bytes."""
    request = api_pb2.FetchPartitionMetadataRequest(stream="orders")
    _, call = api.FetchPartitionMetadata.with_call(request, timeout=10)
    trailing = dict(call.trailing_metadata())
    names = ("written-offset", "synced-offset", "unsynced-bytes")
    return tuple(int(trailing[f"liftbridge-{name}"]) for name in names)


def test_written_and_synced_positions_are_told(api):
    create(api)
    assert positions(api) == (-1, -1, 0)
    for number in range(3):
        api.Publish(api_pb2.PublishRequest(stream="orders"), timeout=10)
        assert positions(api) == (number, number, 0), "what is acked is on disk"


@pytest.mark.parametrize("config", [{"policy": "never"}, {"policy": "interval", "interval": "1h"}])
def test_synced_is_behind_written_where_acks_do_not_wait_for_the_disk(tmp_path, config):
    with Server(
        tmp_path / "server", {f"streams.sync.{key}": value for key, value in config.items()}
    ) as server:
        api = server.api()
        create(api)
        for _ in range(3):
            api.Publish(api_pb2.PublishRequest(stream="orders", value=b"x" * 1000), timeout=10)
        written, synced, unsynced = positions(api)
        assert (written, synced) == (2, -1)
        assert unsynced > 3000
        assert server.stop() == 0
        assert positions(server.start().api()) == (2, 2, 0), "the stop has synced"
        assert server.stop() == 0
