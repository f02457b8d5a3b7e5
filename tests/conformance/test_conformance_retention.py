"""Retention and compaction, as clients of the original see them: a test for each row of conformance_rows."""

import pytest
from conformance_calls import (
    END,
    Api,
    api_pb2,
    boolean,
    create,
    drain,
    fill,
    follow,
    history,
    integer,
    integer32,
    offsets,
    publish,
    subscribe,
    until,
)

FOR_EVER = 24 * 3600 * 1000
OWN_FILE = {"segmentMaxBytes": integer(1)}  # every message has a segment of its own
SOON = {"cleanerInterval": integer(10)}


def newest_files(server, before):
    """The segments of the stream that was created since `before`."""
    (own,) = set((server.data_dir / "streams").iterdir()) - before
    return sorted(path.name for path in own.glob("0/*.log"))


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ({"retentionMaxMessages": integer(3)}, 3),
        ({"retentionMaxBytes": integer(2500)}, 2),
        ({"retentionMaxAge": integer(1)}, 1),
    ],
    ids=["messages", "bytes", "age"],
)
def test_retention_by_age_messages_bytes(api, limit, kept):
    name = create(api, **OWN_FILE, **SOON, **limit)
    for _ in range(10):
        publish(api, name, bytes(1000))
    until(lambda: offsets(history(api, name)) == list(range(10 - kept, 10)))
    assert publish(api, name, bytes(1000)).offset == 10
    until(lambda: offsets(history(api, name)) == list(range(11 - kept, 11)))


def test_segment_size_and_age(server, api):
    before = set((server.data_dir / "streams").iterdir())
    name = create(api, segmentMaxBytes=integer(5000))
    for _ in range(12):
        publish(api, name, bytes(1000))
    by_size = newest_files(server, before)
    assert 3 <= len(by_size) <= 4
    before = set((server.data_dir / "streams").iterdir())
    aged = create(api, segmentMaxAge=integer(1), **SOON)
    publish(api, aged, b"0")
    until(lambda: len(newest_files(server, before)) == 2)
    assert offsets(history(api, name)) == list(range(12))
    assert offsets(history(api, aged)) == [0]


def test_cleaner_interval(api):
    limit = {**OWN_FILE, "retentionMaxMessages": integer(1)}
    later, soon = create(api, **limit, cleanerInterval=integer(FOR_EVER)), create(api, **limit, **SOON)
    fill(api, later, 5)
    fill(api, soon, 5)
    until(lambda: offsets(history(api, soon)) == [4])
    assert offsets(history(api, later)) == [0, 1, 2, 3, 4]


def test_compaction(start):
    config = {"streams.segment.max.bytes": 500, "streams.cleaner.interval": "10ms"}
    server, api = start(config)
    name, plain = create(api, compactEnabled=boolean(True)), create(api)
    expected = {}
    keyless = []
    for number in range(100):
        value = b"%d" % number
        if number % 10 == 9:
            keyless.append((publish(api, name, value).offset, b"", value))
        else:
            key = b"k%d" % (number % 3)
            expected[key] = (publish(api, name, value, key=key).offset, key, value)
        publish(api, plain, value, key=b"k")

    def stored():
        return [(message.offset, message.key, message.value) for message in history(api, name)]

    # What is in the active segment stays; there is little of it.
    until(lambda: len(stored()) <= 10 + 3 + 10)
    found = stored()
    assert found == sorted(found)
    assert set(found) >= {*keyless, *expected.values()}
    # A position that is gone begins at the next that is there, and ends at the one before.
    kept = [offset for offset, _, _ in found]
    gone = next(offset for offset in range(100) if offset not in kept)
    later = [offset for offset in kept if offset > gone]
    assert offsets(follow(api, name, len(later), startPosition=api_pb2.OFFSET, startOffset=gone)) == later
    call = subscribe(
        api, name, startPosition=api_pb2.EARLIEST, stopPosition=api_pb2.STOP_OFFSET, stopOffset=gone
    )
    messages, status = drain(call)
    assert (offsets(messages), status) == (kept[: -len(later)], END)
    assert len(history(api, plain)) == 100
    assert publish(api, name, b"next").offset == 100
    assert server.stop() == 0
    server.start()
    assert offsets(history(Api(server), name)) == [*kept, 100]


def test_compaction_parallelism(start):
    _, api = start({"streams.compact.max.goroutines": 3, "streams.compact.enabled": True})
    name = create(api, compactMaxGoroutines=integer32(5), compactEnabled=boolean(True))
    assert publish(api, name, key=b"k", ackPolicy=api_pb2.ALL).offset == 0
