"""What a stream sets for itself about its storage, against what the server sets: which of the two holds.

Every stream here is beside one that sets nothing, in a server whose settings would do the opposite.
"""

import pytest
from calls import PATIENCE, create, nullable, partition_metadata, publish, read_all, subscribe, until
from harness import Server

from liftbridge.proto import api_pb2

SOON = nullable(10)
FOR_EVER = 1 << 40
# Whatever is sealed is compacted at once.
COMPACTING = {"segment_max_bytes": 1, "cleaner_interval": "10ms", "compact_min_dirty_percent": 0}


@pytest.fixture
def start(tmp_path):
    """A function that starts a server with these settings of streams; returns it and its stubs."""
    servers = []

    def start(**settings):
        config = {"streams." + key.replace("_", "."): value for key, value in settings.items()}
        server = Server(tmp_path / "server", config)
        servers.append(server)
        return server.start(), server.api()

    yield start
    for server in servers:
        server.close()


def offsets(api, stream):
    return [message.offset for message in read_all(api, stream)]


def fill(api, *streams, count=10, **fields):
    for number in range(count):
        for stream in streams:
            publish(api, stream, b"%d" % number * 100, **fields)


def files(server, partition=0):
    """How many segments each stream has, by the subject in them."""
    return sorted(
        len(list(directory.glob(f"{partition}/*.log")))
        for directory in (server.data_dir / "streams").iterdir()
    )


def test_segment_max_bytes(start):
    server, api = start(segment_max_bytes=FOR_EVER >> 10)
    streams = create(api, segmentMaxBytes=nullable(1)), create(api)
    fill(api, *streams)
    assert files(server) == [1, 10]
    assert [offsets(api, stream) for stream in streams] == [list(range(10))] * 2


@pytest.mark.parametrize(
    ("key", "field", "limit"),
    [
        ("retention_max_messages", "retentionMaxMessages", 3),
        ("retention_max_bytes", "retentionMaxBytes", 700),
    ],
)
def test_retention_max_messages_and_bytes(start, key, field, limit):
    _, api = start(segment_max_bytes=1, cleaner_interval="10ms")
    limited, free = create(api, **{field: nullable(limit)}), create(api)
    for round_ in (1, 2):
        fill(api, free, limited)
        until(lambda: len(offsets(api, limited)) <= 3)
        assert offsets(api, limited) == list(range(round_ * 10 - 3, round_ * 10))
    assert len(offsets(api, free)) == 20


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"retention_max_messages": 3}, "retentionMaxMessages"),
        ({"retention_max_bytes": 700}, "retentionMaxBytes"),
        ({"retention_max_age": "1ms"}, "retentionMaxAge"),
    ],
    ids=["messages", "bytes", "age"],
)
@pytest.mark.parametrize("value", [0, FOR_EVER])
def test_a_stream_may_keep_what_the_server_would_remove(start, settings, field, value):
    _, api = start(segment_max_bytes=1, segment_max_age="1h", cleaner_interval="10ms", **settings)
    kept, limited = create(api, **{field: nullable(value)}), create(api)
    for _ in range(3):
        fill(api, kept, limited)
        until(lambda: len(offsets(api, limited)) <= 3)
    assert len(offsets(api, kept)) == 30


def test_retention_max_age(start):
    _, api = start(segment_max_bytes=1, cleaner_interval="10ms")
    young, old = create(api, retentionMaxAge=nullable(1)), create(api)
    fill(api, old, young)
    until(lambda: len(offsets(api, young)) == 1)
    assert offsets(api, young) == [9], "the active segment stays"
    assert len(offsets(api, old)) == 10


def test_cleaner_interval(start):
    _, api = start(segment_max_bytes=1, retention_max_messages=1, cleaner_interval="24h")
    often, never = create(api, cleanerInterval=SOON), create(api)
    fill(api, never, often)
    until(lambda: offsets(api, often) == [9])
    assert len(offsets(api, never)) == 10


def test_segment_max_age_lets_an_idle_segment_go(start):
    """Nothing is published any more, and yet everything is sealed and expires."""
    server, api = start(cleaner_interval="10ms", retention_max_age="1ms", segment_max_age="1h")
    rolls, stays = create(api, segmentMaxAge=nullable(1)), create(api)
    fill(api, stays, rolls)
    until(lambda: partition_metadata(api, rolls).newestOffset == -1)
    until(lambda: files(server) == [1, 1])
    assert len(offsets(api, stays)) == 10, "what is not sealed does not expire"
    assert publish(api, rolls).offset == 10
    assert server.stop() == 0
    assert partition_metadata(server.start().api(), stays).newestOffset == 9


def test_compact_enabled(start):
    server, api = start(**COMPACTING)
    compacted, kept = create(api, compactEnabled=nullable(True)), create(api)
    for key in (b"a", b"b", b"a", b"a", b"c"):
        for stream in (kept, compacted):
            publish(api, stream, b"value", key=key)
    until(lambda: offsets(api, compacted) == [1, 3, 4])
    assert len(offsets(api, kept)) == 5
    server.wait_log(f"{compacted}/0: compaction removed")
    assert server.stop() == 0
    api = server.start().api()
    assert offsets(api, compacted) == [1, 3, 4]
    assert publish(api, compacted).offset == 5


def test_a_stream_may_keep_what_the_server_would_compact(start):
    _, api = start(**COMPACTING, compact_enabled=True)
    kept, compacted = create(api, compactEnabled=nullable(False)), create(api)
    for _ in range(3):
        fill(api, kept, compacted, count=4, key=b"k")
        until(lambda: len(offsets(api, compacted)) <= 2)
    assert len(offsets(api, kept)) == 12


def test_subscribers_share_nothing_that_compaction_has_removed(start):
    """The subscription beside the one that reads has reads kept, and they are large enough to be shared."""
    _, api = start(**{**COMPACTING, "cleaner_interval": "500ms", "segment_max_bytes": 350_000})
    stream = create(api, compactEnabled=nullable(True))
    watching = subscribe(api, stream, timeout=3 * PATIENCE)
    for key in (b"other", *[b"k"] * 7):
        publish(api, stream, b"x" * 100_000, key=key)
    assert offsets(api, stream)[-3:] == [5, 6, 7]
    until(lambda: offsets(api, stream) == [0, 5, 6, 7])
    watching.cancel()


@pytest.mark.parametrize("value", [1, 0])
def test_compact_max_goroutines(start, value):
    """How many partitions at a time is told by the tests of the cleaner; here, that all have their turn."""
    _, api = start(**COMPACTING, compact_enabled=True)
    stream = create(api, partitions=3, compactMaxGoroutines=api_pb2.NullableInt32(value=value))
    for partition in range(3):
        fill(api, stream, count=4, key=b"k", partition=partition)
    for partition in range(3):
        until(lambda partition=partition: len(read_all(api, stream, partition)) == 2)
