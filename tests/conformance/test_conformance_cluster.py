"""What one server shows of being a cluster: a test for each row that is not about several of them."""

from calls import NatsClient
from conformance_calls import (
    Api,
    api_pb2,
    create,
    delete,
    fetch_cursor,
    follow,
    metadata,
    partitions,
    pause,
    paused,
    publish,
    set_cursor,
    set_readonly,
    streams,
    subscribe,
    values,
)
from harness import Nats, Server

INTERNAL_STREAMS = {"cursors.stream.partitions": 1, "activity.stream.enabled": True}


def test_seed_bootstrap(tmp_path):
    server = Server(tmp_path / "server", {"clustering.raft.bootstrap.seed": False})
    try:
        # Without it, it looks for a cluster to join, and says so.
        server.spawn()
        server.wait_log("start the first one of a new cluster with --raft-bootstrap-seed")
        assert server.stop() == 0
        server.config["clustering.raft.bootstrap.seed"] = True
        api = Api(server.start())
        create(api, "orders")
        assert server.stop() == 0
        # Where there is a state it is not asked for, and not minded.
        for seed in (False, True):
            server.config["clustering.raft.bootstrap.seed"] = seed
            api = Api(server.start())
            assert list(streams(api)) == ["orders"]
            assert server.stop() == 0
    finally:
        server.close()


def test_namespaces(start, tmp_path):
    with Nats(tmp_path / "nats") as nats:
        shared = {**INTERNAL_STREAMS, "nats.servers": [nats.url]}
        _, one = start({**shared, "clustering.namespace": "one"}, "one", embedded=False)
        _, two = start({**shared, "clustering.namespace": "two"}, "two", embedded=False)
        subject = "on.both"
        create(one, "orders", subject)
        create(two, "events", subject)
        assert sorted(streams(one)) == ["__activity", "__cursors", "orders"]
        assert sorted(streams(two)) == ["__activity", "__cursors", "events"]
        for api, name in ((one, "one"), (two, "two")):
            (broker,) = metadata(api).brokers
            assert {
                partition.leader for entry in streams(api).values() for partition in entry.partitions.values()
            } == {broker.id}
            assert streams(api)["__cursors"].subject == f"{name}.cursors"
            assert streams(api)["__activity"].subject == f"{name}.activity"
        set_cursor(one, "c", 5)
        assert (fetch_cursor(one, "c"), fetch_cursor(two, "c")) == (5, -1)
        # NATS is one all the same.
        with NatsClient(nats.url) as client:
            client.publish(subject, b"x")
        assert values(follow(one, "orders", 1)) == values(follow(two, "events", 1)) == [b"x"]


def test_durable_server_id(start):
    server, api = start({"clustering.server.id": "first"})
    name = create(api)
    assert server.server_id == "first"
    assert server.stop() == 0
    server.config["clustering.server.id"] = "second"
    server.start()
    assert server.server_id == "first"
    api = Api(server)
    (broker,) = metadata(api).brokers
    (partition,) = partitions(api, name)
    assert (broker.id, partition.leader, list(partition.replicas)) == ("first", "first", ["first"])
    assert publish(api, name).offset == 0


def test_raft_tuning(start):
    tuning = {"snapshot.retain": 1, "snapshot.threshold": 10, "cache.size": 4, "max.quorum.size": 3}
    server, api = start({f"clustering.raft.{key}": value for key, value in tuning.items()})
    kept = []
    for number in range(30):
        kept.append(create(api, f"kept{number}", partitions=2))
        delete(api, create(api, f"gone{number}"))
    pause(api, kept[0], 1, resume_all=True)
    set_readonly(api, kept[1], 0)
    publish(api, kept[2], b"x")
    before = streams(api)
    for end in (server.stop, server.kill):
        end()
        server.start()
        api = Api(server)
        after = streams(api)
        assert sorted(after) == sorted(before) == sorted(kept)
        for name, entry in after.items():
            assert (entry.subject, entry.creationTimestamp) == (name, before[name].creationTimestamp)
        assert paused(api, kept[0]) == [False, True]
        assert [partition.readonly for partition in partitions(api, kept[1])] == [True, False]
        assert values(follow(api, kept[2], 1)) == [b"x"]
    subscribe(api, kept[0], partition=1, resume=True, startPosition=api_pb2.EARLIEST).cancel()
    assert paused(api, kept[0]) == [False, False]
