"""What several servers show: a test for each row of the documentation that needs more than one."""

import contextlib
import zlib
from collections import Counter

import grpc
import pytest
from calls import refused
from conformance_calls import (
    EXPIRED,
    INTERNAL,
    INVALID,
    NOTHING_SECONDS,
    PATIENCE,
    REFUSED,
    Api,
    api_pb2,
    create,
    drain,
    fetch_cursor,
    fill,
    first_answer,
    follow,
    group_metadata,
    history,
    join,
    metadata,
    partition_metadata,
    partitions,
    publish,
    report,
    set_cursor,
    streams,
    subscribe,
    values,
)
from harness import Nats, Server, freeze
from servers import Servers, until

MEMBERS = ["s0", "s1", "s2"]


@pytest.fixture
def cluster(tmp_path):
    """Makes clusters of servers, by number and settings."""
    running = []

    def make(count=3, config=None):
        servers = Servers(tmp_path / f"cluster{len(running)}", count, config)
        running.append(servers)
        return servers.__enter__()

    yield make
    for servers in running:
        servers.__exit__()


@pytest.fixture
def three(cluster):
    return cluster(3)


def leader_and_followers(three, stream):
    leader = three.leader_of(stream)
    return leader, [server for server in three.all if server is not leader]


def in_sync(api, stream, count):
    """Whether so many replicas are in sync, as a server says."""
    (partition,) = partitions(api, stream)
    return len(partition.isr) == count


def test_replication_factor_of_several_servers(three):
    api = Api(three[1])
    (two,) = partitions(api, create(api, replicationFactor=2))
    assert len(two.replicas) == len(set(two.replicas)) == 2
    (everywhere,) = partitions(api, create(api, replicationFactor=-1))
    assert sorted(everywhere.replicas) == sorted(everywhere.isr) == MEMBERS
    with refused(INVALID):
        create(api, replicationFactor=4)


def test_replica_placement_by_load(three):
    api = Api(three[0])
    for _ in range(30):
        create(api, replicationFactor=2)
    held = Counter(replica for name in streams(api) for replica in partitions(api, name)[0].replicas)
    led = Counter(partitions(api, name)[0].leader for name in streams(api))
    assert held == dict.fromkeys(MEMBERS, 20)
    assert led == dict.fromkeys(MEMBERS, 10)


def test_minimum_isr_of_several_servers(three):
    api = Api(three[0])
    name = create(api, replicationFactor=3, minIsr=api_pb2.NullableInt32(value=3))
    leader, (follower, _) = leader_and_followers(three, name)
    api = Api(leader)
    publish(api, name, b"0", ackPolicy=api_pb2.ALL)
    follower.kill()
    until(lambda: in_sync(api, name, 2))
    with refused(EXPIRED):
        api.Publish(api_pb2.PublishRequest(stream=name, value=b"1", ackPolicy=api_pb2.ALL), timeout=0.5)
    assert publish(api, name, b"2", ackPolicy=api_pb2.LEADER).offset == 2
    assert committed(api, name) == [b"0"]
    follower.start()
    assert values(follow(api, name, 3, startPosition=api_pb2.EARLIEST)) == [b"0", b"1", b"2"]


def test_ack_policies_of_several_servers(three):
    name = create(Api(three[0]), replicationFactor=3)
    leader, followers = leader_and_followers(three, name)
    api = Api(leader)
    for follower in followers:
        follower.kill()
    # Both are counted on until they are known to be dead, and without a majority they never are.
    with refused(EXPIRED):
        api.Publish(api_pb2.PublishRequest(stream=name, value=b"x", ackPolicy=api_pb2.ALL), timeout=0.5)
    for follower in followers:
        follower.start()
    assert publish(api, name, b"y", ackPolicy=api_pb2.ALL).offset == 1
    followers[0].kill()
    # Alone of three it is missed for a while, and then done without.
    until(lambda: in_sync(api, name, 2))
    assert publish(api, name, b"z", ackPolicy=api_pb2.ALL).offset == 2


def test_only_committed_messages_of_several_servers(three):
    name = create(Api(three[0]), replicationFactor=3)
    leader, followers = leader_and_followers(three, name)
    api = Api(leader)
    publish(api, name, b"0", ackPolicy=api_pb2.ALL)
    for follower in followers:
        freeze(follower.pid)
    publish(api, name, b"1", ackPolicy=api_pb2.NONE)
    until(lambda: partition_metadata(api, name).newestOffset == 1)
    assert partition_metadata(api, name).highWatermark == 0
    assert committed(api, name) == [b"0"]


def test_read_from_a_replica_of_several_servers(three):
    name = create(Api(three[0]), replicationFactor=3)
    leader, followers = leader_and_followers(three, name)
    for number in range(10):
        publish(Api(leader), name, b"%d" % number, ackPolicy=api_pb2.ALL)
    for follower in followers:
        found = follow(Api(follower), name, 10, startPosition=api_pb2.EARLIEST, readISRReplica=True)
        assert values(found) == [b"%d" % number for number in range(10)]


def test_wrong_leader_refused(three):
    name = create(Api(three[0]), replicationFactor=3)
    _, followers = leader_and_followers(three, name)
    for follower in followers:
        with refused(REFUSED):
            first_answer(Api(follower), name)


def test_cluster_metadata_of_several_servers(three):
    name = create(Api(three[0]), replicationFactor=3)
    for server in three.all:
        answer = metadata(Api(server))
        assert sorted(broker.id for broker in answer.brokers) == MEMBERS
        assert {broker.port for broker in answer.brokers} == {each.grpc_port for each in three.all}
        (partition,) = partitions(Api(server), name)
        assert sorted(partition.isr) == MEMBERS
        assert partition.leader in MEMBERS


def test_broker_list_cache(three):
    api = Api(three[0])
    three[2].kill()
    until(lambda: sorted(broker.id for broker in metadata(api).brokers) == ["s0", "s1"])
    three[2].start()
    until(lambda: sorted(broker.id for broker in metadata(api).brokers) == MEMBERS)


def test_partition_metadata_of_several_servers(three):
    name = create(Api(three[0]), replicationFactor=3)
    leader, followers = leader_and_followers(three, name)
    publish(Api(leader), name, b"x", ackPolicy=api_pb2.ALL)
    assert partition_metadata(Api(leader), name).newestOffset == 0
    for follower in followers:
        with refused(REFUSED):
            partition_metadata(Api(follower), name)


def test_cursor_routing(cluster):
    three = cluster(3, {"cursors.stream.partitions": 6})
    api = Api(three[0])
    cursors = partitions(api, "__cursors")
    name = create(api)
    for number in range(6):
        key = f"c{number},{name},0".encode()
        leader = cursors[zlib.crc32(key) % 6].leader
        for server in three.all:
            if server.server_id == leader:
                set_cursor(Api(server), f"c{number}", number, name)
                assert fetch_cursor(Api(server), f"c{number}", name) == number
            else:
                with refused(REFUSED):
                    set_cursor(Api(server), f"c{number}", number, name)
                with refused(REFUSED):
                    fetch_cursor(Api(server), f"c{number}", name)


def test_coordinator_fail_over(three):
    api = Api(three[0])
    name = create(api)
    first = join(api, "g", "one", name)
    join(api, "g", "two", name)
    coordinator = three.named(first.coordinator)
    coordinator.kill()
    api = Api(next(server for server in three.all if server is not coordinator))
    epoch = group_metadata(api, "g").epoch
    for consumer in ("one", "two"):
        # The servers may have found out by themselves, and then the report is of an epoch that is over.
        with contextlib.suppress(grpc.RpcError):
            report(api, "g", consumer, coordinator.server_id, epoch)
    changed = until(lambda: _changed(api, coordinator.server_id))
    assert changed.epoch > epoch


def _changed(api, before):
    group = group_metadata(api, "g")
    return group if group.coordinator not in ("", before) else None


def committed(api, stream):
    """What a subscriber gets who waits for a while."""
    call = subscribe(api, stream, timeout=2 * NOTHING_SECONDS, startPosition=api_pb2.EARLIEST)
    messages, status = drain(call)
    assert status == EXPIRED
    return values(messages)


def test_peer_bootstrap(tmp_path):
    with Nats(tmp_path / "nats") as nats:
        config = {
            "clustering.raft.bootstrap.seed": False,
            "clustering.raft.bootstrap.peers": MEMBERS,
            "nats.servers": [nats.url],
        }
        servers = [
            Server(tmp_path / name, {**config, "clustering.server.id": name}, embedded=False)
            for name in MEMBERS
        ]
        try:
            for server in servers:
                server.spawn()
            for server in servers:
                api = Api(server.wait_up())
                until(lambda api=api: sorted(broker.id for broker in metadata(api).brokers) == MEMBERS)
            create(Api(servers[2]), replicationFactor=3)
        finally:
            for server in servers:
                server.close()


def test_automatic_join(cluster):
    three = cluster(3)
    fourth = Server(
        three[0].directory.parent / "fourth",
        {**three[1].config, "clustering.server.id": "s3"},
        embedded=False,
    )
    three.all.append(fourth)
    fourth.start()
    for server in three.all:
        api = Api(server)
        until(lambda api=api: sorted(broker.id for broker in metadata(api).brokers) == [*MEMBERS, "s3"])


def test_two_seeds_detected(cluster):
    """A second seed finds the cluster, and joins it; a cluster of another namespace's is none of its own."""
    three = cluster(2)
    second = Server(
        three[0].directory.parent / "seed",
        {**three[0].config, "clustering.server.id": "s2"},
        embedded=False,
    )
    three.all.append(second)
    second.start()
    api = Api(second)
    until(lambda: sorted(broker.id for broker in metadata(api).brokers) == MEMBERS)


def test_limited_quorum(cluster):
    five = cluster(5, {"clustering.raft.max.quorum.size": 3})
    for server in five.all[3:]:
        server.kill()
    create(Api(five[0]))


def test_metadata_leader_fail_over(three):
    for server in three.all[:2]:
        server.kill()
        others = [each for each in three.all if each is not server]
        until(lambda others=others: create(Api(others[0])))
        create(Api(others[1]))
        server.start()


def test_partition_leader_fail_over(three):
    name = create(Api(three[0]), replicationFactor=3)
    leader, followers = leader_and_followers(three, name)
    sent = [b"%d" % number for number in range(50)]
    fill(Api(leader), name, 50, ackPolicy=api_pb2.ALL)
    leader.kill()
    successor = three.leader_of(name)
    assert successor in followers
    assert values(follow(Api(successor), name, 50, startPosition=api_pb2.EARLIEST)) == sent


def test_isr_shrink_and_growth(three):
    name = create(Api(three[0]), replicationFactor=3)
    leader, (follower, _) = leader_and_followers(three, name)
    follower.kill()
    until(lambda: in_sync(Api(leader), name, 2))
    follower.start()
    until(lambda: in_sync(Api(leader), name, 3))


def test_log_truncation_by_leader_epoch(three):
    name = create(Api(three[0]), replicationFactor=3, minIsr=api_pb2.NullableInt32(value=2))
    leader, followers = leader_and_followers(three, name)
    publish(Api(leader), name, b"0", ackPolicy=api_pb2.ALL)
    for follower in followers:
        follower.kill()
    for number in range(5):
        publish(Api(leader), name, b"alone %d" % number, ackPolicy=api_pb2.NONE)
    until(lambda: partition_metadata(Api(leader), name).newestOffset == 5)
    leader.kill()
    for follower in followers:
        follower.spawn()
    for follower in followers:
        follower.wait_up()
    successor = three.leader_of(name)
    for number in range(3):
        until(lambda number=number: publish(Api(successor), name, b"then %d" % number))
    leader.start()
    until(lambda: in_sync(Api(successor), name, 3))
    ours = values(history(Api(successor), name))
    assert ours[0] == b"0"
    assert not any(value.startswith(b"alone") for value in ours)
    found = follow(Api(leader), name, len(ours), startPosition=api_pb2.EARLIEST, readISRReplica=True)
    assert values(found) == ours


def test_forwarding(three):
    for server in three.all:
        name = create(Api(server))
        for other in three.all:
            until(lambda other=other, name=name: name in streams(Api(other)))
    with refused(INTERNAL):
        three[1].kill()
        three[2].kill()
        Api(three[0]).CreateStream(api_pb2.CreateStreamRequest(name="x", subject="x"), timeout=PATIENCE)
