"""Altered bytes in any file: never a crash, never a wrong record, the right name, and nothing else lost."""

import os
import random
import shutil
import uuid

import pytest
from log_helpers import (
    BATCH_HEADER,
    PREFIX,
    SEGMENT_HEADER,
    STREAM,
    Record,
    batch,
    check_past_damage,
    indexes,
    messages,
    numbered,
    numbers,
    open_log,
    read_all,
    segments,
)

from liftbridge._log import Segment, crc32c
from liftbridge.log import CorruptBatchError, ForeignLogError, Log, LogDamagedError, LogOptions
from liftbridge.log.index import load_index, read_summary

SEGMENT_MAX = 700  # two batches of three records


def build(directory, batches=3, close=False, **options):
    """A log of batches of three numbered records; returns the position of each batch in the last file."""
    log = open_log(directory, **options)
    positions = []
    for n in range(batches):
        log.append(numbered(3 * n, 3))
        positions.append(log._view.active.last_position)
    log.sync()
    if close:
        log.close()
    return positions


def copies(tmp_path, original, count):
    for n in range(count):
        directory = tmp_path / f"copy{n}"
        shutil.copytree(original, directory)
        yield directory
        shutil.rmtree(directory)


def flip(path, position, mask=0x41):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def test_bytes_of_an_unclean_active_segment(tmp_path):
    """All but the last batch are proven by what follows; a bad last one cannot be told from a torn write."""
    positions = build(tmp_path / "log")
    size = segments(tmp_path / "log")[0].stat().st_size
    for index in indexes(tmp_path / "log"):
        index.unlink()
    places = [*range(0, 68, 3), 67, 100, 1023, *range(SEGMENT_HEADER, size, 3)]
    for place, directory in zip(places, copies(tmp_path, tmp_path / "log", len(places)), strict=True):
        flip(segments(directory)[0], place)
        if place >= positions[-1]:
            log = open_log(directory)
            assert (log.next_offset, log.truncated_bytes) == (6, size - positions[-1])
            assert numbers(read_all(log)) == [0, 1, 2, 3, 4, 5]
            continue
        for _ in range(2):
            log = open_log(directory)
            damaged = (
                [n for n, p in enumerate(positions) if p <= place][-1] if place >= SEGMENT_HEADER else None
            )
            position = positions[damaged] if damaged is not None else 0
            assert [(each.path, each.position) for each in log.damage] == [(segments(directory)[0], position)]
            lost = check_past_damage(log, 9)
            assert lost == (set() if damaged is None else set(range(3 * damaged, 3 * damaged + 3))), place
            assert segments(directory)[0].stat().st_size == size, "damage must not cost anything more"
            assert (log.next_offset, log.truncated_bytes) == (9, 0)
            log.close()


def test_bytes_of_a_cleanly_closed_active_segment(tmp_path):
    """The index remembers what was synced, so even the last batch is not dropped as torn."""
    positions = build(tmp_path / "log", close=True)
    size = segments(tmp_path / "log")[0].stat().st_size
    places = range(SEGMENT_HEADER, size, 3)
    for place, directory in zip(places, copies(tmp_path, tmp_path / "log", len(places)), strict=True):
        flip(segments(directory)[0], place)
        log = open_log(directory)
        damaged = [n for n, p in enumerate(positions) if p <= place][-1]
        # Only the last batch is looked at when a log is opened that was closed well.
        assert [each.position for each in log.damage] == ([positions[-1]] if damaged == 2 else [])
        assert check_past_damage(log, 9) == set(range(3 * damaged, 3 * damaged + 3))
        with pytest.raises(CorruptBatchError) as caught:
            log.read_frames(3 * damaged, 9, PREFIX)
        assert caught.value.position == positions[damaged]
        assert log.append(numbered(9, 1)) == 9
        assert log.offset_at_or_after(9000) == 9
        log.close()


def test_bytes_of_sealed_segments_without_index(tmp_path):
    build(tmp_path / "log", batches=5, segment_max_bytes=SEGMENT_MAX)
    first = segments(tmp_path / "log")[0]
    size = first.stat().st_size
    for index in indexes(tmp_path / "log"):
        index.unlink()
    places = [0, 20, 33, 67, *range(SEGMENT_HEADER, size, 3)]
    for place, directory in zip(places, copies(tmp_path, tmp_path / "log", len(places)), strict=True):
        flip(segments(directory)[0], place)
        log = open_log(directory, segment_max_bytes=SEGMENT_MAX)
        assert [each.path for each in log.damage] == [segments(directory)[0]]
        lost = check_past_damage(log, 15)
        assert len(lost) == (3 if place >= SEGMENT_HEADER else 0)
        log.close()


def test_every_byte_of_an_index_file(tmp_path):
    build(tmp_path / "log", batches=5, segment_max_bytes=SEGMENT_MAX)
    size = indexes(tmp_path / "log")[0].stat().st_size
    for place, directory in zip(range(size), copies(tmp_path, tmp_path / "log", size), strict=True):
        flip(indexes(directory)[0], place)
        log = open_log(directory, segment_max_bytes=SEGMENT_MAX)
        assert numbers(read_all(log)) == list(range(15))
        assert log.offset_at_or_after(4000) == 4
        log.close()


def test_no_byte_of_an_index_goes_unchecked(tmp_path):
    log = open_log(tmp_path)
    for n in range(0, 300, 10):
        log.append(numbered(n, 10, size=300))
    log.close()
    (path,), (index,) = segments(tmp_path), indexes(tmp_path)
    summary = read_summary(index, STREAM, 3, 0)
    original = index.read_bytes()
    assert load_index(Segment(-1, path, 0), summary)
    for place in range(len(original)):
        flip(index, place, 1 << place % 8)
        assert not load_index(Segment(-1, path, 0), summary)
        index.write_bytes(original)
    for length in range(len(original)):
        index.write_bytes(original[:length])
        assert not load_index(Segment(-1, path, 0), summary)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_of_any_kind(tmp_path, seed):
    """Cuts, zeros, repetitions and noise anywhere: never another record, and what is missing is told."""
    chance = random.Random(seed)
    build(
        tmp_path,
        batches=8,
        close=chance.random() < 0.5,
        segment_max_bytes=chance.choice([SEGMENT_MAX, 100_000]),
    )
    for _ in range(chance.randint(1, 3)):
        path = chance.choice(segments(tmp_path) + indexes(tmp_path))
        content = bytearray(path.read_bytes())
        start = chance.randrange(len(content))
        stop = min(len(content), start + chance.choice([1, 16, 500, 5000]))
        match chance.randrange(4):
            case 0:
                del content[start:stop]
            case 1:
                content[start:stop] = bytes(stop - start)
            case 2:
                content[start:start] = content[start:stop]
            case 3:
                content[start:stop] = chance.randbytes(stop - start)
        path.write_bytes(content)
    try:
        log = open_log(tmp_path, segment_max_bytes=SEGMENT_MAX)
    except LogDamagedError as error:
        assert str(tmp_path) in str(error)
        return
    check_past_damage(log, log.next_offset)
    log.append(numbered(log.next_offset, 2))
    check_past_damage(log, log.next_offset)
    log.close()
    log = open_log(tmp_path, segment_max_bytes=SEGMENT_MAX)
    check_past_damage(log, log.next_offset)
    log.close()


def test_a_batch_that_is_well_formed_but_not_the_next(tmp_path):
    """A repeated batch has a good checksum; its offsets tell."""
    positions = build(tmp_path, batches=3)
    path = segments(tmp_path)[0]
    content = path.read_bytes()
    path.write_bytes(content[: positions[1]] + content[positions[0] : positions[1]] + content[positions[1] :])
    log = open_log(tmp_path)
    (damage,) = log.damage
    assert (damage.position, damage.first_offset, damage.next_offset) == (positions[1], 3, 3)
    assert "base offset" in damage.reason
    assert "no offset is lost" in str(damage)
    assert check_past_damage(log, 9) == set()
    log.close()


@pytest.mark.parametrize(("change", "lost"), [("swapped", {3, 4, 5}), ("doubled", {6, 7, 8})])
def test_batches_in_the_place_of_others_where_the_index_is_believed(tmp_path, change, lost):
    """The file has its size and every batch its checksum; no scan looks, so the read must."""
    _, *positions = build(tmp_path, batches=4, close=True)
    path = segments(tmp_path)[0]
    content = path.read_bytes()
    first, second = content[positions[0] : positions[1]], content[positions[1] : positions[2]]
    assert len(first) == len(second)
    replaced = second + first if change == "swapped" else first + first
    path.write_bytes(content[: positions[0]] + replaced + content[positions[2] :])
    log = open_log(tmp_path)
    assert log.scanned_bytes == 0, "there is nothing to test when it was scanned"
    assert log.offset_at_or_after(1000 * min(lost)) == max(lost) + 1
    assert check_past_damage(log, 12) == lost
    with pytest.raises(CorruptBatchError, match="base offset"):
        log.truncate(max(lost))
    log.close()


@pytest.mark.parametrize("synced", [True, False])
def test_after_a_loss_of_power_the_batches_tell_what_was_synced(tmp_path, synced):
    """Damage in what was on disk once is a hole; in what need not have been, the end of the log."""
    log = open_log(tmp_path)
    for n in range(0, 10, 2):
        log.append(numbered(n, 2))
        if synced:
            log.sync()
        if n == 2:
            damaged = log._view.active.last_position
    flip(segments(tmp_path)[0], damaged + BATCH_HEADER)
    log = open_log(tmp_path, power_lost=True)
    if synced:
        assert (log.next_offset, log.truncated_bytes) == (10, 0)
        assert [(each.first_offset, each.next_offset) for each in log.damage] == [(2, 4)]
        assert check_past_damage(log, 10) == {2, 3}
    else:
        assert (log.next_offset, log.damage) == (2, ())
        assert log.truncated_bytes > 0
        assert numbers(read_all(log)) == [0, 1]
    log.close()


def test_a_batch_of_another_history_is_noticed_by_the_chain(tmp_path):
    """Its checksum and offsets are good; what it was written behind is not what is there."""
    positions = build(tmp_path / "a", batches=3)
    other = open_log(tmp_path / "b")
    other.append(batch(Record(b"%d:" % n + b"y" * 20, 1000 * n) for n in range(3)))
    other.append(numbered(3, 3))
    other.close()
    path = segments(tmp_path / "a")[0]
    foreign = segments(tmp_path / "b")[0].read_bytes()
    content = path.read_bytes()
    assert len(foreign) == positions[2]
    path.write_bytes(content[: positions[1]] + foreign[positions[1] :] + content[positions[2] :])
    log = open_log(tmp_path / "a")
    assert [each.reason for each in log.damage] == ["the batch it follows is another one"] * 2
    assert check_past_damage(log, 9) == set()
    log.close()


def rewritten(path, position, change):
    """Alter a batch and give it a good checksum again: what only a faulty writer could leave."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[position + 4 : position + 8], "little")
    change(memoryview(content)[position : position + length])
    checksum = crc32c(bytes(content[position + 12 : position + length]))
    content[position + 8 : position + 12] = checksum.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (slice(14, 16), b"\x02\0", "version"),
        (slice(12, 14), b"\x80\0", "attributes"),
        (slice(12, 14), b"\x03\0", "attributes"),
        (slice(12, 14), b"\x10\0", "do not match"),
        (slice(16, 24), b"\xff" * 8, "impossible"),
        (slice(24, 28), b"\x01\0\0\0", "do not match"),
        (slice(28, 32), bytes(4), "do not match"),
        (slice(28, 32), b"\xff" * 4, "do not match"),
        (slice(48, 56), bytes(8), "timestamps"),
        (slice(76, 80), bytes(4), "do not match"),
    ],
)
def test_impossible_headers_with_a_good_checksum(tmp_path, field, value, reason):
    positions = build(tmp_path)
    rewritten(segments(tmp_path)[0], positions[1], lambda batch: batch.__setitem__(field, value))
    log = open_log(tmp_path)
    (damage,) = log.damage
    assert (damage.position, damage.first_offset, damage.next_offset) == (positions[1], 3, 6)
    assert reason in damage.reason
    assert check_past_damage(log, 9) == {3, 4, 5}
    log.close()


def test_a_record_that_goes_beyond_its_batch(tmp_path):
    """A search by time stops at the record it wants; it must not take one that cannot be whole."""
    (position,) = build(tmp_path, batches=1)
    path = segments(tmp_path)[0]
    rewritten(
        path, position, lambda batch: batch.__setitem__(slice(BATCH_HEADER, BATCH_HEADER + 4), b"\0\0\1\0")
    )
    log = open_log(tmp_path)
    for read in (
        lambda: log.offset_at_or_after(0),
        lambda: log.read_frames(0, 3, PREFIX),
        lambda: log.read_frames_reverse(2, 0, PREFIX),
    ):
        with pytest.raises(CorruptBatchError, match="malformed"):
            read()
    log.close()


def test_every_byte_of_records_altered_under_a_good_checksum(tmp_path):
    """No content of a record, however it came about, makes a reader run wild: an error or whole messages."""
    (position,) = build(tmp_path, batches=1)
    path = segments(tmp_path)[0]
    original = path.read_bytes()
    refused = 0
    for place in range(BATCH_HEADER, len(original) - position):
        for value in (0x00, 0x7F, 0xFF):
            path.write_bytes(original)
            rewritten(path, position, lambda batch, n=place, v=value: batch.__setitem__(n, v))
            segment = Segment(os.open(path, os.O_RDONLY), path, 0)
            assert segment.scan(len(original)) == ""
            try:
                for frames in (segment.read_frames(0, 3, b"")[0], segment.read_frames_reverse(2, 0, b"")[0]):
                    assert len(list(split_frames(frames))) == 3
                assert -1 <= segment.offset_at_or_after(1) < 3
            except CorruptBatchError as error:
                assert error.position == position
                refused += 1
    assert refused > 100


def split_frames(frames):
    while frames:
        length = int.from_bytes(frames[1:5], "big")
        assert len(frames) >= 5 + length
        yield frames[5 : 5 + length]
        frames = frames[5 + length :]


def test_a_missing_segment_is_named(tmp_path):
    build(tmp_path, batches=6, segment_max_bytes=SEGMENT_MAX)
    _, missing, last, *_ = segments(tmp_path)
    first_lost, behind = int(missing.stem), int(last.stem)
    missing.unlink()
    log = open_log(tmp_path, segment_max_bytes=SEGMENT_MAX)
    (damage,) = log.damage
    assert (damage.path, damage.first_offset, damage.next_offset) == (
        segments(tmp_path)[0],
        first_lost,
        behind,
    )
    assert "missing" in damage.reason
    assert check_past_damage(log, 18) == set(range(first_lost, behind))
    log.close()


@pytest.mark.parametrize("missing", [1, 2])
def test_missing_last_segments_are_named(tmp_path, missing):
    """Their index files tell that they were there; without that the offsets would be given out again."""
    build(tmp_path, batches=6, close=True, segment_max_bytes=SEGMENT_MAX)
    lost = segments(tmp_path)[-missing:]
    first_lost = int(lost[0].stem)
    for path in lost:
        path.unlink()
    for _ in range(2):
        log = open_log(tmp_path, segment_max_bytes=SEGMENT_MAX)
        (damage,) = log.damage
        assert (damage.first_offset, damage.next_offset) == (first_lost, 18)
        assert "missing" in damage.reason
        assert check_past_damage(log, 18) == set(range(first_lost, 18))
        assert log.next_offset == 18, "an offset that was given once is not given again"
        log.close()


def test_offsets_of_a_log_that_has_lost_all_its_segments_are_not_given_again(tmp_path):
    build(tmp_path, batches=6, close=True, segment_max_bytes=SEGMENT_MAX)
    for path in segments(tmp_path):
        path.unlink()
    log = open_log(tmp_path)
    (damage,) = log.damage
    assert (damage.first_offset, damage.next_offset) == (0, 18)
    assert (log.start_offset, log.next_offset) == (18, 18)
    log.close()


@pytest.mark.parametrize("size", [0, 100, 4095])
def test_a_last_segment_cut_below_its_header_after_a_clean_stop(tmp_path, size):
    """It looks like a file that was being made, but the index tells what was in it."""
    build(tmp_path, batches=6, close=True, segment_max_bytes=SEGMENT_MAX)
    path = segments(tmp_path)[-1]
    os.truncate(path, size)
    log = open_log(tmp_path, segment_max_bytes=SEGMENT_MAX)
    assert check_past_damage(log, 18) == set(range(int(path.stem), 18))
    assert log.next_offset == 18
    log.close()


def test_a_segment_shorter_than_what_was_synced(tmp_path):
    build(tmp_path, close=True)
    path = segments(tmp_path)[0]
    os.truncate(path, path.stat().st_size - 10)
    for _ in range(2):
        log = open_log(tmp_path)
        (damage,) = log.damage
        assert (damage.first_offset, damage.next_offset) == (6, 9)
        assert check_past_damage(log, 9) == {6, 7, 8}
        assert log.next_offset == 9, "an offset that was given once is not given again"
        log.close()


@pytest.mark.parametrize(("change", "lost"), [(-10, {6, 7, 8}), (1, set()), (500, set())])
def test_a_sealed_segment_of_another_length_than_its_index_says(tmp_path, change, lost):
    log = open_log(tmp_path, segment_max_bytes=SEGMENT_MAX)
    for n in range(0, 15, 3):
        log.append(numbered(n, 3))
    log.close()
    path = segments(tmp_path)[0]
    size = path.stat().st_size
    os.truncate(path, size + change)
    log = open_log(tmp_path, segment_max_bytes=SEGMENT_MAX)
    assert [each.path for each in log.damage] == ([path] if lost else [])
    assert check_past_damage(log, 15) == lost
    assert path.stat().st_size == (size + change if lost else size), "zeros behind the data are no damage"
    log.close()


@pytest.mark.parametrize(("stream_id", "partition"), [(uuid.uuid4(), 3), (STREAM, 4)])
def test_files_of_another_stream_are_not_adopted(tmp_path, stream_id, partition):
    build(tmp_path, close=True)
    with pytest.raises(ForeignLogError, match=str(STREAM)):
        Log.open(tmp_path, stream_id=stream_id, partition=partition, options=LogOptions())


def test_a_newer_format_is_refused_not_removed(tmp_path):
    open_log(tmp_path).close()
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[8] = 4
    content[64:68] = crc32c(bytes(content[:64])).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(LogDamagedError, match="format"):
        open_log(tmp_path)
    assert path.exists()


def test_values_that_look_like_a_batch_header_do_not_stop_the_search_behind_them(tmp_path):
    """The probe for what follows a bad batch passes over magic numbers in payloads."""
    log = open_log(tmp_path)
    header = segments(tmp_path)[0].read_bytes()
    log.append(numbered(0, 1))
    magic = segments(tmp_path)[0].read_bytes()[len(header) : len(header) + 8]
    log.append(batch([Record(b"1:" + (magic + b"xyz") * 300, 1000)]))
    bad = log._view.active.last_position
    log.append(numbered(2, 1))
    log.sync()
    flip(segments(tmp_path)[0], bad + 5)  # its length, so where it ends is unknown
    log = open_log(tmp_path)
    assert [each.position for each in log.damage] == [bad]
    assert check_past_damage(log, 3) == {1}
    log.close()


def test_records_behind_a_body_that_cannot_be_opened_are_read_backwards(tmp_path):
    """Whole as the checksum says, and no LZ4 block: so the search for damage does not see it."""
    positions = build(tmp_path, compression="lz4")
    (path,) = segments(tmp_path)
    content = bytearray(path.read_bytes())
    first, second = positions[1], positions[2]
    content[first + BATCH_HEADER : second] = b"\xff" * (second - first - BATCH_HEADER)
    content[first + 8 : first + 12] = crc32c(bytes(content[first + 12 : second])).to_bytes(4, "little")
    path.write_bytes(content)
    log = open_log(tmp_path)
    frames, following = log.read_frames_reverse(8, 0, PREFIX)
    assert (numbers(messages(frames)), following) == ([8, 7, 6], 5)
    with pytest.raises(CorruptBatchError) as damage:
        log.read_frames_reverse(5, 0, PREFIX)
    assert (damage.value.first_offset, damage.value.next_offset) == (3, 6)
    assert check_past_damage(log, 9) == {3, 4, 5}
