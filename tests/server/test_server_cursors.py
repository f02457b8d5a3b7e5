"""Cursors of a real server: what is set is there, whatever comes between, and what a fetch costs."""

import asyncio
import itertools
import os
import shutil
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from calls import (
    PATIENCE,
    create,
    nullable,
    partition_metadata,
    publish,
    read_all,
    refused,
    subscribe,
    take,
    until,
)
from gufo.liftbridge.client import LiftbridgeClient
from harness import Nats, Server

from liftbridge.proto import api_pb2, internal_pb2

CURSORS = "__cursors"


@pytest.fixture
def settings():
    return {"cursors.stream.partitions": 3}


@pytest.fixture
def server(tmp_path, settings):
    with Server(tmp_path / "server", settings) as running:
        yield running
        assert "Traceback" not in running.log


def set_cursor(api, cursor_id, offset, stream="orders", partition=0):
    request = api_pb2.SetCursorRequest(stream=stream, partition=partition, cursorId=cursor_id, offset=offset)
    return api.SetCursor(request, timeout=PATIENCE)


def fetch_cursor(api, cursor_id, stream="orders", partition=0):
    request = api_pb2.FetchCursorRequest(stream=stream, partition=partition, cursorId=cursor_id)
    return api.FetchCursor(request, timeout=PATIENCE).offset


def metadata_of(api, stream):
    (entry,) = api.FetchMetadata(api_pb2.FetchMetadataRequest(streams=[stream]), timeout=10).streamMetadata
    return entry


def set_many(api, numbers, offset=0):
    """Set the cursors `c<number>` to number + offset, many at a time."""
    requests = (
        api_pb2.SetCursorRequest(stream="orders", cursorId=f"c{number}", offset=number + offset)
        for number in numbers
    )
    with ThreadPoolExecutor(16) as workers:
        list(workers.map(lambda request: api.SetCursor(request, timeout=PATIENCE), requests))


def test_the_last_set_wins(server, api):
    assert fetch_cursor(api, "c") == -1
    for offset in (5, 3, -(2**63), 2**63 - 1, 0):
        set_cursor(api, "c", offset)
        assert fetch_cursor(api, "c") == offset
    # Each is one of its own, and neither stream nor partition need exist.
    set_cursor(api, "c", 7, partition=1)
    set_cursor(api, "c", 8, stream="others")
    set_cursor(api, "c,d", 9, partition=-4)
    assert fetch_cursor(api, "c") == 0
    assert fetch_cursor(api, "c", partition=1) == 7
    assert fetch_cursor(api, "c", stream="others") == 8
    assert fetch_cursor(api, "c,d", partition=-4) == 9
    assert fetch_cursor(api, "d") == -1


def test_key_partition_and_value_are_those_of_the_original(server, api):
    known = [("abc", "foo", 2, 850748977), ("__group:g1", "orders", 0, 810843241)]
    for cursor_id, stream, partition, crc in known:
        assert zlib.crc32(f"{cursor_id},{stream},{partition}".encode()) == crc
        set_cursor(api, cursor_id, 4711, stream, partition)
        message = read_all(api, CURSORS, crc % 3)[-1]
        assert message.key == f"{cursor_id},{stream},{partition}".encode()
        assert message.value == (
            b"\x0a" + bytes([len(stream)]) + stream.encode()
            + (b"\x10" + bytes([partition]) if partition else b"")
            + b"\x1a" + bytes([len(cursor_id)]) + cursor_id.encode()
            + b"\x20\xe7\x24"
        )  # fmt: skip


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_answered_survives_the_end_of_the_server(server, end):
    set_many(server.api(), range(200))
    set_many(server.api(), range(100), offset=-50)
    set_cursor(server.api(), "last", 1)
    getattr(server, end)()
    server.start()
    api = server.api()
    assert fetch_cursor(api, "last") == 1
    assert [fetch_cursor(api, f"c{number}") for number in range(200)] == [
        number - 50 if number < 100 else number for number in range(200)
    ]
    assert fetch_cursor(api, "never") == -1
    set_cursor(api, "last", 0)
    assert fetch_cursor(api, "last") == 0


def test_ten_thousand_cursors_and_no_read_for_those_that_are_known(server, api):
    set_many(api, range(10_000))
    assert fetch_cursor(api, "never") == -1
    assert sum(partition_metadata(api, CURSORS, number).newestOffset + 1 for number in range(3)) == 10_000
    for number in range(3):  # every index is complete after this
        fetch_cursor(api, next(f"c{n}" for n in range(100) if zlib.crc32(b"c%d,orders,0" % n) % 3 == number))
    (directory,) = (server.data_dir / "streams").iterdir()
    for path in directory.glob("*/*.log"):
        os.truncate(path, 0)  # from here on a read finds nothing, and tells
    assert [fetch_cursor(api, f"c{number}") for number in range(10_000)] == list(range(10_000))
    assert fetch_cursor(api, "never") == -1
    server.kill()


@pytest.mark.parametrize("settings", [{"cursors.stream.partitions": 1, "cursors.index.max.bytes": 10_000}])
def test_what_does_not_fit_into_memory_is_found_in_the_log(server, api):
    set_many(api, range(500))
    set_cursor(api, "c17", 3)
    assert [fetch_cursor(api, f"c{number}") for number in range(0, 500, 7)] == list(range(0, 500, 7))
    assert [fetch_cursor(api, f"c{number}") for number in (17, 499, 0)] == [3, 499, 0]
    assert fetch_cursor(api, "never") == fetch_cursor(api, "never") == -1
    set_cursor(api, "never", 1)
    assert fetch_cursor(api, "never") == 1


def test_concurrent_sets_of_one_cursor_are_stored_in_an_order_that_clients_saw(server, api):
    partition = zlib.crc32(b"c,orders,0") % 3
    calls = {}

    def write(offset):
        began = time.monotonic()
        set_cursor(api, "c", offset)
        calls[offset] = (began, time.monotonic())

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(write, range(300)))
    stored = [
        internal_pb2.Cursor.FromString(message.value).offset for message in read_all(api, CURSORS, partition)
    ]
    assert sorted(stored) == list(range(300))
    latest_begin = 0.0
    for offset in stored:  # none was stored behind one that began only after it had been answered
        began, ended = calls[offset]
        assert ended > latest_begin
        latest_begin = max(latest_begin, began)
    assert fetch_cursor(api, "c") == stored[-1]


def test_a_fetch_beside_sets_never_goes_back(server, api):
    stop = threading.Event()

    def write():
        for offset in itertools.count():
            set_cursor(api, "c", offset)
            if stop.is_set():
                return offset
        raise AssertionError

    with ThreadPoolExecutor(1) as worker:
        last = worker.submit(write)
        seen = [fetch_cursor(api, "c") for _ in range(500)]
        stop.set()
        assert fetch_cursor(api, "c") <= last.result() == fetch_cursor(api, "c")
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"stream": "", "cursorId": "c"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"stream": "orders", "cursorId": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"stream": "a,b", "cursorId": "c"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"stream": "orders", "cursorId": "c" * 4096}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_is_no_cursor_is_refused(server, api, fields, code):
    with refused(code):
        api.SetCursor(api_pb2.SetCursorRequest(**fields), timeout=10)
    with refused(code):
        api.FetchCursor(api_pb2.FetchCursorRequest(**fields), timeout=10)


@pytest.mark.parametrize("settings", [{}])
def test_without_the_stream_cursors_are_off(server, api):
    assert not metadata_of(api, CURSORS).partitions
    with refused(grpc.StatusCode.INTERNAL, "cursors.stream.partitions"):
        set_cursor(api, "c", 1)
    with refused(grpc.StatusCode.INTERNAL, "cursors.stream.partitions"):
        fetch_cursor(api, "c")


def test_the_stream_is_the_servers_own(server, api):
    entry = metadata_of(api, CURSORS)
    assert (entry.subject, sorted(entry.partitions)) == ("liftbridge-default.cursors", [0, 1, 2])
    assert CURSORS in {
        stream.name for stream in api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=10).streamMetadata
    }
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        create(api, CURSORS)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        api.DeleteStream(api_pb2.DeleteStreamRequest(name=CURSORS), timeout=10)
    partition = zlib.crc32(b"c,orders,0") % 3
    call = subscribe(api, CURSORS, partition=partition, startPosition=api_pb2.EARLIEST)
    set_cursor(api, "c", 5)
    assert [message.key for message in take(call, 1)] == [b"c,orders,0"]
    call.cancel()


def test_the_number_of_partitions_stays_what_it_was(server, api):
    set_many(api, range(50))
    server.stop()
    for partitions in (5, 0):
        server.config["cursors.stream.partitions"] = partitions
        server.start()
        api = server.api()
        assert len(metadata_of(api, CURSORS).partitions) == 3
        assert [fetch_cursor(api, f"c{number}") for number in range(50)] == list(range(50))
        assert f"cursors.stream.partitions is {partitions}, but" in server.log
        server.stop()


@pytest.mark.parametrize("factor", [2, 3])
def test_replicas_that_cannot_be_are_an_error_at_start(tmp_path, factor):
    config = {"cursors.stream.partitions": 1, "cursors.stream.replication.factor": factor}
    server = Server(tmp_path / "server", config)
    server.spawn()
    assert server.wait_end() == 1
    until(lambda: "__cursors cannot be created" in server.log)
    assert "Traceback" not in server.log


def test_without_nats_cursors_are_read_and_not_set(tmp_path):
    with Nats(tmp_path / "nats") as nats:
        config = {"cursors.stream.partitions": 2, "nats.servers": nats.url}
        with Server(tmp_path / "server", config, embedded=False) as server:
            api = server.api()
            set_cursor(api, "c", 1)
            nats.stop()
            server.wait_log("no NATS yet")
            with refused(grpc.StatusCode.INTERNAL, "not connected to NATS"):
                set_cursor(api, "c", 2)
            assert fetch_cursor(api, "c") == 1
            nats.start()
            until(lambda: is_set(api, "c", 3))
            assert fetch_cursor(api, "c") == 3


def is_set(api, cursor_id, offset):
    try:
        set_cursor(api, cursor_id, offset)
    except grpc.RpcError:
        return False
    return True


def test_a_partition_that_is_offline_has_no_leader(server, api):
    set_cursor(api, "c", 1)
    set_cursor(api, "d", 2)
    numbers = {name: zlib.crc32(f"{name},orders,0".encode()) % 3 for name in "cd"}
    assert numbers["c"] != numbers["d"]
    server.stop()
    (stream,) = (server.data_dir / "streams").iterdir()
    shutil.rmtree(stream / str(numbers["c"]))
    (stream / str(numbers["c"])).write_text("no directory")
    server.start()
    api = server.api()
    for call in (lambda: fetch_cursor(api, "c"), lambda: set_cursor(api, "c", 1)):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "Server not partition leader"):
            call()
    assert fetch_cursor(api, "d") == 2


def test_what_others_write_into_the_stream_counts_too(server, api):
    """An index follows the log, not only the calls: other tools write cursors as messages."""
    key = b"c,orders,0"
    partition = zlib.crc32(key) % 3
    set_cursor(api, "c", 5)
    assert fetch_cursor(api, "c") == 5
    value = internal_pb2.Cursor(stream="orders", cursor_id="c", offset=6).SerializeToString()
    publish(api, CURSORS, value, key=key, partition=partition)
    assert fetch_cursor(api, "c") == 6
    publish(api, CURSORS, b"\xff\xff", key=key, partition=partition)  # no cursor
    publish(api, CURSORS, b"no key", partition=partition)
    assert fetch_cursor(api, "c") == 6
    set_cursor(api, "c", 4)
    assert fetch_cursor(api, "c") == 4
    publish(api, CURSORS, b"", key=key, partition=partition)  # what compaction takes for removal
    assert fetch_cursor(api, "c") == -1


def test_the_ack_of_another_stream_is_not_taken_for_ours(server, api):
    """A stream on a wildcard gets the message as well, and acks it: that says nothing of `__cursors`."""
    create(api, "everything", ">", optimisticConcurrencyControl=nullable(True))
    publish(api, CURSORS, b"x", expectedOffset=0)  # from here on the expected offset is wrong there
    for offset in range(50):
        set_cursor(api, "c", offset)
        assert fetch_cursor(api, "c") == offset


@pytest.mark.parametrize(
    "settings",
    [
        {
            "cursors.stream.partitions": 1,
            "streams.cleaner.interval": "100ms",
            "streams.retention.max.messages": 10,
            "streams.retention.max.age": "1s",
            "streams.segment.max.age": "1s",
            "streams.concurrency.control": True,
        }
    ],
)
def test_neither_compaction_nor_retention_loses_a_cursor(server, api):
    set_many(api, range(100))
    for number in range(100, 200):
        set_cursor(api, "again", number)
    server.wait_log("__cursors/0: compaction removed")
    assert fetch_cursor(api, "again") == 199
    server.kill()
    server.start()
    api = server.api()
    assert [fetch_cursor(api, f"c{number}") for number in range(100)] == list(range(100))
    assert fetch_cursor(api, "again") == 199


@pytest.mark.parametrize("settings", [{"cursors.stream.partitions": 1}])
def test_damage_makes_cursors_unknown_until_they_are_set_anew(server, api):
    """Older positions than the damage are not served: a newer one may be what was lost."""
    for cursor_id, offset in [("c", 1), ("other", 1), ("c", 2), ("after", 3)]:
        set_cursor(api, cursor_id, offset)
    server.stop()
    (log,) = (server.data_dir / "streams").glob("*/0/*.log")
    content = bytearray(log.read_bytes())
    content[content.rindex(b"c,orders,0")] ^= 1
    log.write_bytes(content)
    server.start()
    api = server.api()
    for cursor_id in ("c", "other", "never"):
        with refused(grpc.StatusCode.INTERNAL, "damaged"):
            fetch_cursor(api, cursor_id)
    assert fetch_cursor(api, "after") == 3
    set_cursor(api, "c", 2)
    assert fetch_cursor(api, "c") == 2


@pytest.mark.parametrize("settings", [{"cursors.stream.partitions": 1}])
def test_gufo_liftbridge_which_sets_no_deadline(server):
    async def main():
        async with LiftbridgeClient([server.address]) as client:
            before = await client.get_cursor("orders", 0, "c")
            await client.set_cursor("orders", 0, "c", 17)
            return before, await client.get_cursor("orders", 0, "c")

    # The client stores where it is to go on.
    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == (-1, 18)
    assert fetch_cursor(server.api(), "c") == 18
