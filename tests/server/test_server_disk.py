"""A disk that fills up, for real: a small file system in a mount namespace of its own."""

import logging
import os
import subprocess
from pathlib import Path

import grpc
import pytest
from calls import PATIENCE, create, publish, read_all, refused, subscribe, take
from harness import Server

from liftbridge.broker.disk import DiskSpace
from liftbridge.proto import api_pb2

MIB = 1 << 20
DISK_BYTES = 64 * MIB
REFUSED = "the partition leader could not store the message"


class Disk:
    """A tmpfs that only its own processes see under `mounted`; everybody else gets at it by `path`."""

    def __init__(self, directory):
        self.mounted = directory
        directory.mkdir()
        self._holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
                f"mount -t tmpfs -o size={DISK_BYTES} none {directory} && echo mounted && exec sleep inf",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._holder.stdout.readline() != "mounted\n":
            reason = self._holder.communicate()[1].strip()
            pytest.skip(f"no file system can be mounted here: {reason}")
        self.prefix = ("nsenter", "--target", str(self._holder.pid), "--mount")
        self.path = Path(f"/proc/{self._holder.pid}/root{directory}")
        self._filler = self.path / "filler"

    @property
    def free(self):
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def leave(self, free):
        """Take or give back space until so many bytes are free."""
        size = self._filler.stat().st_size if self._filler.exists() else 0
        wanted = size + self.free - free
        with self._filler.open("ab") as file:
            if wanted > size:
                os.posix_fallocate(file.fileno(), size, wanted - size)
            else:
                file.truncate(wanted)

    def close(self):
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path):
    if os.uname().sysname != "Linux":
        pytest.skip("mount namespaces are Linux's")
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()


@pytest.fixture
def make(disk, tmp_path):
    """A function that makes a server whose data is on the disk."""
    servers = []

    def make(**config):
        server = Server(tmp_path / "server", config, prefix=disk.prefix)
        server.data_dir = disk.mounted / "data"
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.close()


def publish_each(api, stream, values):
    """Publish in one call; returns the values that were acked and those that were refused."""
    requests = (
        api_pb2.PublishRequest(stream=stream, value=value, correlationId=str(number))
        for number, value in enumerate(values)
    )
    acked, failed = [], []
    for response in api.PublishAsync(requests, timeout=PATIENCE):
        value = values[int(response.correlationId or response.ack.correlationId)]
        (failed if response.HasField("asyncError") else acked).append(value)
    assert len(acked) + len(failed) == len(values)
    return acked, failed


# -- the floor -----------------------------------------------------------------------------------------


def test_below_the_floor_messages_are_refused_and_reading_goes_on(make, disk):
    server = make(**{"streams.disk.min.free": 16 * MIB}).start()
    api = server.api()
    create(api, "orders")
    publish(api, "orders", b"before")
    follower = subscribe(api, "orders", startPosition="EARLIEST")
    assert take(follower, 1)[0].value == b"before"

    disk.leave(10 * MIB)
    server.wait_log("ERROR liftbridge.disk")
    with refused(grpc.StatusCode.UNKNOWN, f"{REFUSED}: the disk of the server has"):
        publish(api, "orders", b"refused")
    assert publish_each(api, "orders", [b"refused"] * 3) == ([], [b"refused"] * 3)
    assert [message.value for message in read_all(api, "orders")] == [b"before"]
    create(api, "more")
    with refused(grpc.StatusCode.UNKNOWN, "streams.disk.min.free"):
        publish(api, "more")
    api.DeleteStream(api_pb2.DeleteStreamRequest(name="more"), timeout=PATIENCE)

    assert server.stop() == 0
    api = server.start().api()
    assert [message.value for message in read_all(api, "orders")] == [b"before"]
    with refused(grpc.StatusCode.UNKNOWN, "streams.disk.min.free"):
        publish(api, "orders", b"refused")
    follower = subscribe(api, "orders", startPosition="NEW_ONLY")

    disk.leave(40 * MIB)
    server.wait_log("WARN  liftbridge.disk")
    assert publish(api, "orders", b"after").offset == 1
    assert take(follower, 1)[0].value == b"after"
    assert server.stop() == 0
    assert server.log.count("ERROR liftbridge.disk") == 2, "one line for each time that it began"
    assert server.log.count("WARN  liftbridge.disk") == 1


def test_a_flood_does_not_fill_the_disk(make, disk):
    """The floor is watched by what is stored, not only by the clock."""
    floor = 32 * MIB
    server = make(**{"streams.disk.min.free": floor, "streams.sync.policy": "never"}).start()
    api = server.api()
    create(api, "orders")
    values = [bytes([number]) * 200_000 for number in range(250)]
    acked, failed = publish_each(api, "orders", values)
    assert failed, "more was published than there is room for"
    assert disk.free > floor - 4 * MIB
    assert [message.value for message in read_all(api, "orders")] == acked
    assert server.stop() == 0


def test_storing_begins_again_when_a_tenth_more_is_free(disk, caplog):
    space = DiskSpace(disk.path, 16 * MIB)
    assert not space.low
    for free, low in [(15, True), (17, True), (15, True), (18, False), (17, False), (15, True)]:
        disk.leave(free * MIB)
        space.look()
        assert (space.low, space.free) == (low, free * MIB)
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.ERROR, logging.WARNING, logging.ERROR]
    assert all(
        str(free * MIB) in r.getMessage() for free, r in zip([15, 18, 15], caplog.records, strict=True)
    )


def test_what_is_stored_brings_the_next_look(disk):
    space = DiskSpace(disk.path, 16 * MIB)
    disk.leave(MIB)
    space.stored(MIB - 1)
    assert not space.low
    space.stored(1)
    assert space.low


def test_the_default_floor_fits_a_small_disk(disk):
    assert DiskSpace(disk.path).min_free == DISK_BYTES // 20
    assert DiskSpace(disk.path, 5).min_free == 5


def test_without_a_floor_nothing_is_refused(disk):
    disk.leave(0)
    space = DiskSpace(disk.path, 0)
    space.look()
    space.stored(1 << 40)
    assert not space.low


# -- full to the last byte -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_full_disk_costs_only_what_does_not_fit(make, disk, policy):
    server = make(**{"streams.disk.min.free": 0, "streams.sync.policy": policy}).start()
    api = server.api()
    create(api, "orders")
    create(api, "rolls", segmentMaxBytes=api_pb2.NullableInt64(value=100_000))
    values = [b"%d:" % number + b"x" * 20_000 for number in range(150)]
    stored = {name: publish_each(api, name, values[:50])[0] for name in ("orders", "rolls")}
    assert [len(stored[name]) for name in stored] == [50, 50]

    disk.leave(MIB)
    for name in stored:
        acked, failed = publish_each(api, name, values)
        assert failed
        stored[name] += acked
    assert len(stored["orders"]) > 50, "a batch that fits is stored"
    assert disk.free < 300_000, "there is no room for a whole batch, which is 256 KiB and a message at most"
    for name in stored:
        assert [message.value for message in read_all(api, name)] == stored[name]
        server.wait_log(f"{name}/0 cannot store messages and refuses them")

    disk.leave(30 * MIB)
    for name in stored:
        acked, failed = publish_each(api, name, values[:20])
        assert (len(acked), failed) == (20, [])
        stored[name] += acked
        server.wait_log(f"{name}/0 stores messages again")
    server.kill()
    api = server.start().api()
    for name in stored:
        assert [message.value for message in read_all(api, name)] == stored[name]
    assert server.stop() == 0


def test_room_that_retention_makes_is_used(make, disk):
    """With limits that fit the disk, a partition that filled it goes on without anybody's help."""
    server = make(**{"streams.disk.min.free": 16 * MIB, "streams.sync.policy": "never"}).start()
    api = server.api()
    create(
        api,
        "orders",
        segmentMaxBytes=api_pb2.NullableInt64(value=MIB),
        retentionMaxBytes=api_pb2.NullableInt64(value=4 * MIB),
        cleanerInterval=api_pb2.NullableInt64(value=100),
    )
    disk.leave(18 * MIB)
    _, failed = publish_each(api, "orders", [b"x" * 200_000] * 20)
    server.wait_log("ERROR liftbridge.disk")
    assert failed
    disk.leave(22 * MIB)
    server.wait_log("WARN  liftbridge.disk")
    assert publish(api, "orders", b"after").offset > 0
    assert server.stop() == 0
