"""Subscribing, as clients of the original see it: a test for each row of conformance_rows."""

import threading

import pytest
from conformance_calls import (
    END,
    EXPIRED,
    INTERNAL,
    INVALID,
    NOT_FOUND,
    NOTHING_SECONDS,
    create,
    drain,
    fill,
    first_answer,
    follow,
    fresh,
    history,
    integer,
    integer32,
    offsets,
    partition_metadata,
    publish,
    publish_async,
    refused,
    subscribe,
    subscribe_reverse,
    take,
    until,
    values,
)

NEW_ONLY, OFFSET, EARLIEST, LATEST, TIMESTAMP = range(5)
STOP_ON_CANCEL, STOP_OFFSET, STOP_LATEST, STOP_TIMESTAMP = range(4)


@pytest.fixture(name="log", scope="module")
def _log(api):
    """A stream with the messages 0 to 4, and their timestamps."""
    name = create(api)
    return name, [ack.receptionTimestamp for ack in fill(api, name, 5)]


def test_subscribe_and_tail(api):
    name = create(api, partitions=2)
    fill(api, name, 3)
    running = subscribe(api, name, startPosition=EARLIEST)
    assert values(take(running, 3)) == [b"0", b"1", b"2"]
    publisher = threading.Thread(
        target=publish_async, args=(api, *({"stream": name, "value": b"%d" % n} for n in range(3, 500)))
    )
    publisher.start()
    messages = take(running, 497)
    publisher.join()
    assert [(message.offset, message.value) for message in messages] == [
        (number, b"%d" % number) for number in range(3, 500)
    ]
    assert {(message.stream, message.partition, message.subject) for message in messages} == {(name, 0, name)}
    times = [message.timestamp for message in messages]
    assert times == sorted(times)
    publish(api, name, b"other", partition=1)
    (message,) = follow(api, name, 1, partition=1)
    assert (message.partition, message.offset, message.value) == (1, 0, b"other")
    running.cancel()


def test_start_positions(api, log):
    name, times = log

    def start(position, **fields):
        fields.setdefault("stopPosition", STOP_LATEST)
        messages, status = drain(subscribe(api, name, startPosition=position, **fields))
        assert status == END
        return offsets(messages)

    assert start(EARLIEST) == [0, 1, 2, 3, 4]
    assert start(LATEST) == [4]
    assert start(OFFSET, startOffset=3) == [3, 4]
    assert start(OFFSET, startOffset=-1) == start(OFFSET) == start(EARLIEST)
    assert start(TIMESTAMP, startTimestamp=times[2]) == [2, 3, 4]
    assert start(TIMESTAMP, startTimestamp=times[2] + 1) == [3, 4]
    assert start(TIMESTAMP, startTimestamp=1) == [0, 1, 2, 3, 4]
    # Garbage in the fields that a position does not select means nothing.
    assert start(EARLIEST, startOffset=99, startTimestamp=-6795364578871345152, stopOffset=-5) == [
        *range(5),
    ]

    # What lies in the future: the next message.
    future = create(api)
    fill(api, future, 5)
    waiting = [
        subscribe(api, future),
        subscribe(api, future, startPosition=NEW_ONLY),
        subscribe(api, future, startPosition=OFFSET, startOffset=5),
        subscribe(api, future, startPosition=OFFSET, startOffset=100),
        subscribe(api, future, startPosition=TIMESTAMP, startTimestamp=2**62),
    ]
    publish(api, future, b"next")
    for call in waiting:
        assert [(message.offset, message.value) for message in take(call, 1)] == [(5, b"next")]
        call.cancel()

    # An empty partition: whatever comes first.
    empty = create(api)
    waiting = [
        subscribe(api, empty, startPosition=position, startOffset=offset, startTimestamp=offset)
        for position in (NEW_ONLY, OFFSET, EARLIEST, LATEST, TIMESTAMP)
        for offset in (0, 100)
    ]
    publish(api, empty, b"first")
    for call in waiting:
        assert offsets(take(call, 1)) == [0]
        call.cancel()

    # Below the oldest: the oldest.
    trimmed = create(
        api,
        segmentMaxBytes=integer(1),
        cleanerInterval=integer(10),
        retentionMaxMessages=integer(2),
    )
    fill(api, trimmed, 10)
    until(lambda: offsets(history(api, trimmed)) == [8, 9])
    for fields in ({"startPosition": OFFSET, "startOffset": 3}, {"startPosition": OFFSET}, {}):
        assert offsets(follow(api, trimmed, 2, **fields)) == [8, 9]
    with refused(INVALID):
        first_answer(api, name, startPosition=5)


def test_stop_positions(api, log):
    name, times = log

    def stop(position, **fields):
        fields.setdefault("startPosition", EARLIEST)
        messages, status = drain(subscribe(api, name, stopPosition=position, **fields))
        assert status == END
        return offsets(messages)

    assert stop(STOP_OFFSET, stopOffset=2) == [0, 1, 2]
    assert stop(STOP_OFFSET) == [0]
    assert stop(STOP_LATEST) == [0, 1, 2, 3, 4]
    assert stop(STOP_TIMESTAMP, stopTimestamp=times[3]) == [0, 1, 2, 3]
    assert stop(STOP_TIMESTAMP, stopTimestamp=times[3] - 1) == [0, 1, 2]
    assert stop(STOP_TIMESTAMP, stopTimestamp=2**62) == [0, 1, 2, 3, 4]
    assert stop(STOP_OFFSET, stopOffset=3, startPosition=OFFSET, startOffset=3) == [3]

    future = create(api)
    fill(api, future, 2)
    waiting = subscribe(api, future, startPosition=EARLIEST, stopPosition=STOP_OFFSET, stopOffset=3)
    assert offsets(take(waiting, 2)) == [0, 1]
    latest = subscribe(api, future, startPosition=EARLIEST, stopPosition=STOP_LATEST)
    fill(api, future, 3)
    assert (offsets((end := drain(waiting))[0]), end[1]) == ([2, 3], END)
    assert (offsets((end := drain(latest))[0]), end[1]) == ([0, 1], END)

    empty = create(api)
    with refused(END):  # at once and without a handshake
        first_answer(api, empty, startPosition=EARLIEST, stopPosition=STOP_LATEST)
    with refused(INTERNAL):
        first_answer(api, empty, stopPosition=STOP_TIMESTAMP, stopTimestamp=times[0])
    with refused(INTERNAL):
        first_answer(api, name, startPosition=EARLIEST, stopPosition=STOP_TIMESTAMP, stopTimestamp=1)
    for fields in (
        {"startPosition": OFFSET, "startOffset": 3, "stopPosition": STOP_OFFSET, "stopOffset": 2},
        {"startPosition": NEW_ONLY, "stopPosition": STOP_LATEST},
        {"startPosition": EARLIEST, "stopPosition": 4},
    ):
        with refused(INVALID):
            first_answer(api, name, **fields)


def test_only_committed_messages(api):
    name = create(api, minIsr=integer32(2))
    fill(api, name, 3)
    partition = partition_metadata(api, name)
    assert (partition.highWatermark, partition.newestOffset) == (-1, 2)
    for position in (EARLIEST, OFFSET, LATEST, NEW_ONLY, TIMESTAMP):
        call = subscribe(api, name, startPosition=position, startTimestamp=1, timeout=NOTHING_SECONDS)
        assert drain(call) == ([], EXPIRED)
    call = subscribe(api, name, startPosition=EARLIEST, stopPosition=STOP_LATEST, timeout=NOTHING_SECONDS)
    assert drain(call) == ([], EXPIRED)


def test_read_from_a_replica(api, log):
    name, _ = log
    assert offsets(follow(api, name, 5, readISRReplica=True)) == [0, 1, 2, 3, 4]
    for fields in ({"stream": fresh("never")}, {"stream": name, "partition": 1}):
        with refused(NOT_FOUND, "No such partition" if "partition" in fields else ""):
            first_answer(api, readISRReplica=True, **fields)


def test_reverse_order(api, log):
    name, times = log

    def descend(**fields):
        messages, status = drain(subscribe_reverse(api, name, **fields))
        assert status == END
        return offsets(messages)

    assert descend() == descend(startPosition=LATEST) == [4, 3, 2, 1, 0]
    assert descend(startPosition=OFFSET, startOffset=2) == [2, 1, 0]
    assert descend(startPosition=EARLIEST) == [0]
    assert descend(startPosition=TIMESTAMP, startTimestamp=times[3]) == [3, 2, 1, 0]
    assert descend(startPosition=LATEST, stopPosition=STOP_OFFSET, stopOffset=2) == [4, 3, 2]
    assert descend(stopPosition=STOP_OFFSET, stopOffset=1, startPosition=OFFSET, startOffset=99) == [
        4,
        3,
        2,
        1,
    ]
    assert drain(subscribe_reverse(api, create(api))) == ([], END)
