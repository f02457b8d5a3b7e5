"""Records that expire: readers stop seeing them, and segments of nothing else go."""

import time

from log_helpers import PREFIX, Record, batch, messages, open_log, read_all, read_all_reverse, segments

from liftbridge.log import BatchBuilder

FAR = time.time_ns() + 10**18


def expiring(log, *expiries):
    """Append one batch; an expiry of 0 means never. Values tell their offsets."""
    builder = BatchBuilder()
    for n, expiry in enumerate(expiries, log.next_offset):
        builder.add_record(value=b"%d" % n, timestamp=1000 * n, expiry=expiry)
    log.append(builder)


def values(log, now):
    active = log._view.active
    forward, _ = active.read_frames(0, log.next_offset, PREFIX, now=now)
    backward, _ = active.read_frames_reverse(log.next_offset - 1, 0, PREFIX, now=now)
    found = [int(message.value) for message in messages(forward)]
    assert [int(message.value) for message in messages(backward)] == found[::-1]
    return found


def test_readers_stop_seeing_a_record_when_it_expires(tmp_path):
    log = open_log(tmp_path)
    expiring(log, 0, 100, 200, 0)
    expiring(log, 150)
    assert values(log, 99) == [0, 1, 2, 3, 4]
    assert values(log, 100) == [0, 2, 3, 4]
    assert values(log, 150) == [0, 2, 3]
    assert values(log, 10**18) == [0, 3]
    assert log.read_frames(4, 5, PREFIX) == (b"", 5), "a read without records moves on"
    log.close()


def test_a_long_way_of_expired_records_is_gone_in_steps(tmp_path):
    """A read on the event loop looks at a bounded number of bytes, whether it finds something or not."""
    log = open_log(tmp_path)
    for _ in range(100):
        expiring(log, *[1] * 100)
    expiring(log, 0)
    steps, offset = 0, 0
    while True:
        frames, following = log.read_frames(offset, log.next_offset, PREFIX, 500)
        assert following > offset
        offset = following
        if frames:
            break
        steps += 1
    assert [int(message.value) for message in messages(frames)] == [10_000]
    assert steps > 5
    assert len(read_all(log)) == len(read_all_reverse(log, log.next_offset - 1)) == 1
    log.close()


def test_segments_of_expired_records_go(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=100)
    expiring(log, 100, 50)
    expiring(log, 100, 300)
    expiring(log, 100, 0)
    expiring(log, 100)
    assert len(segments(tmp_path)) == 4
    assert log.retain(99, 10) == 0
    assert log.retain(100, 10) == 1
    assert log.retain(299, 10) == 0
    assert log.retain(300, 3) == 0, "nothing above the limit goes"
    assert log.retain(300, 10) == 1
    assert log.retain(10**18, 10) == 0, "one record that stays keeps its segment"
    assert log.start_offset == 4
    log.close()
    log = open_log(tmp_path, segment_max_bytes=100)
    assert log.retain(10**18, 10) == 0
    log.close()


def test_a_log_tells_whether_its_records_may_expire(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=100)
    expiring(log, 0)
    assert not log.may_expire
    expiring(log, 100)
    assert log.may_expire
    expiring(log, 0, 0, 0)
    expiring(log, 0, 0, 0)
    assert log.may_expire
    log.close()
    log = open_log(tmp_path, segment_max_bytes=100)
    assert log.may_expire
    log.close()


def test_records_of_the_usual_kind_are_not_looked_at(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=100)
    for n in range(3):
        log.append(batch([Record(b"x", n)]))
    log.sync()
    for path in segments(tmp_path)[:2]:
        path.write_bytes(b"")  # nobody would notice but a reader
    assert log.retain(FAR, 10) == 0
    log.close()
