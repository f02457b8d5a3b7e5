"""Logs that are compressed or encrypted: the same records as any other, and nothing of them on the disk."""

import itertools
import os
import shutil
import struct
from pathlib import Path

import pytest
from log_helpers import (
    BATCH_HEADER,
    SEGMENT_HEADER,
    STREAM,
    numbered,
    numbers,
    read_all,
    read_all_reverse,
    read_past_damage,
    segments,
)

from liftbridge._log import crc32c
from liftbridge.log import CorruptBatchError, DamagedKeyError, Keyring, Log, LogOptions, MissingKeyError
from liftbridge.log.keys import MasterKey, encode_slot

OLD = MasterKey.of(b"an old key of 32 bytes, all text", "old")
NEW = MasterKey.of(b"sixteen bytes ok", "new")
BATCH = 10
LIMITS = {"segment_max_bytes": 2000}


def open_log(
    directory: Path, keyring: Keyring | None = None, *, partition: int = 3, **options: object
) -> Log:
    return Log.open(
        directory,
        stream_id=STREAM,
        partition=partition,
        options=LogOptions(**{**LIMITS, **options}),  # type: ignore[arg-type]
        keyring=keyring,
    )


def fill(log: Log, count: int) -> None:
    """Append numbered records, ten a batch."""
    for _ in range(0, count, BATCH):
        log.append(numbered(log.next_offset, BATCH, size=60))


def check(log: Log, count: int) -> None:
    assert numbers(read_all(log)) == list(range(count))
    assert numbers(read_all_reverse(log, count - 1)) == list(range(count))[::-1]
    for offset in range(0, count, 7):
        assert log.offset_at_or_after(1000 * offset) == offset


def on_disk(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("keyring", [None, Keyring(NEW)], ids=["plain", "encrypted"])
@pytest.mark.parametrize("clean", [True, False])
def test_a_log_is_the_same_however_it_is_stored(tmp_path, compression, keyring, clean):
    options = {"compression": compression, "encryption": keyring is not None}
    log = open_log(tmp_path, keyring, **options)
    fill(log, 100)
    check(log, 100)
    for following in (200, 300):
        if clean:
            log.close()
        log = open_log(tmp_path, keyring, **options)
        assert log.damage == ()
        check(log, following - 100)
        fill(log, 100)
        check(log, following)
    log.close()
    assert (b"x" * 20 in on_disk(tmp_path)) == (keyring is None and compression == "none")
    for path in tmp_path.glob("*.index"):
        path.unlink()
    check(open_log(tmp_path, keyring), 300)


def test_every_segment_has_a_key_of_its_own(tmp_path):
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    fill(log, 200)
    log.close()
    slots = {path.read_bytes()[1024:1536] for path in segments(tmp_path)}
    assert len(slots) == len(segments(tmp_path)) > 3


def test_all_settings_may_change_at_any_opening(tmp_path):
    count = 0
    for compression, encryption in [
        ("none", False),
        ("lz4", True),
        ("none", True),
        ("none", False),
        ("zstd", False),
        ("zstd", True),
        ("none", False),
    ]:
        log = open_log(tmp_path, Keyring(NEW), compression=compression, encryption=encryption)
        check(log, count)
        fill(log, 30)
        count += 30
        check(log, count)
        log.close()


@pytest.mark.parametrize("records", [0, 10, 40])
@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("clean", [True, False])
def test_encryption_begins_with_the_next_record(tmp_path, records, epochs, clean):
    log = open_log(tmp_path)
    fill(log, records)
    for epoch in range(1, epochs + 1):
        log.begin_epoch(epoch, 10**6)
    known = log.epochs
    if clean:
        log.close()
    before = on_disk(tmp_path).count(b"x" * 60)
    assert before == records
    for _ in range(2):
        log = open_log(tmp_path, Keyring(NEW), encryption=True)
        assert (log.next_offset, log.last_epoch, log.damage) == (records, epochs, ())
        log.close()
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    log.append(numbered(10**4, 10, size=60), epochs)
    log.close()
    assert on_disk(tmp_path).count(b"x" * 60) == before
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    assert len(read_all(log)) == records + 10
    assert log.epochs == known


@pytest.mark.parametrize("keyring", [None, Keyring(OLD)], ids=["no key", "wrong key"])
def test_without_its_key_a_log_does_not_open(tmp_path, keyring):
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    fill(log, 100)
    log.close()
    before = on_disk(tmp_path)
    with pytest.raises(MissingKeyError, match=f"{NEW.id:08x}"):
        open_log(tmp_path, keyring)
    assert on_disk(tmp_path) == before
    check(open_log(tmp_path, Keyring(NEW)), 100)


def test_a_log_that_is_to_be_encrypted_needs_a_key(tmp_path):
    with pytest.raises(MissingKeyError, match="LIFTBRIDGE_ENCRYPTION_KEY"):
        open_log(tmp_path, encryption=True)
    assert not segments(tmp_path)
    log = open_log(tmp_path)
    fill(log, 30)
    log.close()
    with pytest.raises(MissingKeyError, match="LIFTBRIDGE_ENCRYPTION_KEY"):
        open_log(tmp_path, encryption=True)
    check(open_log(tmp_path), 30)


def test_opening_changes_all_segments_over_to_the_active_key(tmp_path):
    log = open_log(tmp_path, Keyring(OLD), encryption=True)
    fill(log, 200)
    log.close()
    assert len(segments(tmp_path)) > 3
    batches = [path.read_bytes()[SEGMENT_HEADER:] for path in segments(tmp_path)]
    log = open_log(tmp_path, Keyring(NEW, [OLD]), encryption=True)
    check(log, 200)
    log.close()
    assert [path.read_bytes()[SEGMENT_HEADER:] for path in segments(tmp_path)] == batches
    check(open_log(tmp_path, Keyring(NEW), encryption=True), 200)
    with pytest.raises(MissingKeyError):
        open_log(tmp_path, Keyring(OLD), encryption=True)


def test_a_rotation_that_cannot_be_written_is_told_and_does_not_matter(tmp_path, caplog, monkeypatch):
    log = open_log(tmp_path, Keyring(OLD), encryption=True)
    fill(log, 100)
    log.close()

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("liftbridge.log.keys.sync_data", fail)
        check(open_log(tmp_path, Keyring(NEW, [OLD]), encryption=True), 100)
    warned = [record.message for record in caplog.records if "older master key" in record.message]
    assert {str(path) for path in segments(tmp_path)} == {text.split(" is ")[0] for text in warned}
    check(open_log(tmp_path, Keyring(NEW, [OLD]), encryption=True), 100)
    check(open_log(tmp_path, Keyring(NEW), encryption=True), 100)


# -- what somebody with a hand on the disk can do --


def batches_of(path: Path) -> list[tuple[int, int]]:
    """Where each batch of a file begins and ends."""
    content = path.read_bytes()
    found, at = [], SEGMENT_HEADER
    while at + 8 <= len(content) and struct.unpack_from("<I", content, at)[0]:
        length = struct.unpack_from("<I", content, at + 4)[0]
        found.append((at, at + length))
        at += length
    return found


def with_checksum(batch: bytes) -> bytes:
    return batch[:8] + crc32c(batch[12:]).to_bytes(4, "little") + batch[12:]


def encrypted_log(directory: Path, count: int = 30) -> Path:
    """An encrypted log of one segment; returns its file."""
    log = open_log(directory, Keyring(NEW), encryption=True, segment_max_bytes=1 << 20)
    fill(log, count)
    log.close()
    (path,) = segments(directory)
    return path


def first_offset_refused(directory: Path, reason: str) -> int:
    """Read until it fails for this reason; returns the offset where it did."""
    log = open_log(directory, Keyring(NEW))
    offset = 0
    with pytest.raises(CorruptBatchError, match=reason):
        while offset < log.next_offset:
            _, offset = log.read_frames(offset, log.next_offset, b"", 1)
    return offset


def test_a_forged_batch_that_is_not_encrypted_is_refused(tmp_path):
    path = encrypted_log(tmp_path / "log")
    other = open_log(tmp_path / "other", segment_max_bytes=1 << 20)
    fill(other, 30)
    other.close()
    (forged,) = segments(tmp_path / "other")
    path.write_bytes(path.read_bytes()[:SEGMENT_HEADER] + forged.read_bytes()[SEGMENT_HEADER:])
    for index in (tmp_path / "log").glob("*.index"):
        index.unlink()
    assert first_offset_refused(tmp_path / "log", "not encrypted") == 0
    log = open_log(tmp_path / "log", Keyring(NEW))
    with pytest.raises(CorruptBatchError, match="not encrypted"):
        log.offset_at_or_after(15_000)


def test_batches_that_change_places_are_refused(tmp_path):
    path = encrypted_log(tmp_path, 50)
    content = bytearray(path.read_bytes())
    batches = batches_of(path)
    one, two = (slice(start + BATCH_HEADER, end) for start, end in batches[2:4])
    content[one], content[two] = content[two], content[one]
    for (before, _), (start, end) in itertools.pairwise(batches):
        content[start + 72 : start + 76] = content[before + 8 : before + 12]  # the chain
        content[start:end] = with_checksum(bytes(content[start:end]))
    assert len(content) == path.stat().st_size
    path.write_bytes(content)
    for index in tmp_path.glob("*.index"):
        index.unlink()
    assert open_log(tmp_path, Keyring(NEW)).damage == ()
    assert first_offset_refused(tmp_path, "does not authenticate") == 20


def test_a_segment_of_another_partition_is_refused_even_with_its_header_changed(tmp_path):
    path = encrypted_log(tmp_path / "log")
    log = open_log(tmp_path / "other", Keyring(NEW), partition=4, encryption=True, segment_max_bytes=1 << 20)
    fill(log, 30)
    log.close()
    (other,) = segments(tmp_path / "other")
    # Its own front, the other's key and batches.
    path.write_bytes(path.read_bytes()[:1024] + other.read_bytes()[1024:])
    for index in (tmp_path / "log").glob("*.index"):
        index.unlink()
    assert first_offset_refused(tmp_path / "log", "does not authenticate") == 0


def damage(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(b"??")


def test_a_damaged_key_costs_what_is_encrypted_with_it(tmp_path, caplog):
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    fill(log, 100)
    log.close()
    paths = segments(tmp_path)
    first, following = (int(path.stem) for path in paths[1:3])
    damage(paths[1], 1050)
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    assert [record.message for record in caplog.records if str(paths[1]) in record.message]
    fill(log, 100)
    found, errors = read_past_damage(log)
    assert numbers(found) == [*range(first), *range(following, 200)]
    assert {error.reason for error in errors} == {"it is encrypted, and its segment has no data key"}


def test_nothing_is_appended_to_a_segment_whose_key_is_damaged(tmp_path):
    path = encrypted_log(tmp_path)
    damage(path, 1050)
    before = path.read_bytes()
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    fill(log, 30)
    log.close()
    assert path.read_bytes() == before
    assert b"x" * 20 not in on_disk(tmp_path)
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    assert numbers(read_all(log, 30)) == list(range(30, 60))


def test_garbage_in_the_slots_of_a_plain_segment_costs_nothing(tmp_path):
    log = open_log(tmp_path, compression="lz4")
    fill(log, 100)
    log.close()
    for path in segments(tmp_path):
        damage(path, 2100)
    check(open_log(tmp_path), 100)


def test_a_key_that_is_not_what_its_master_key_has_wrapped_is_told(tmp_path):
    path = encrypted_log(tmp_path)
    wrong = Keyring(MasterKey(NEW.id, OLD.secret)).wrap(bytes(32))
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(encode_slot(wrong))
    with pytest.raises(DamagedKeyError, match=str(path)):
        open_log(tmp_path, Keyring(NEW))


def test_a_damaged_header_costs_no_record_while_the_key_is_whole(tmp_path):
    damage(encrypted_log(tmp_path), 42)
    log = open_log(tmp_path, Keyring(NEW), encryption=True)
    assert len(log.damage) == 1
    assert numbers(read_all(log)) == list(range(30))


def test_a_batch_cut_off_and_written_anew_has_another_nonce(tmp_path):
    path = encrypted_log(tmp_path)
    (start, end) = batches_of(path)[-1]
    nonces = set()
    for _ in range(5):
        with path.open("r+b") as file:
            file.seek(start + BATCH_HEADER)
            nonces.add(file.read(12))
            file.truncate(end - 5)
        for index in tmp_path.glob("*.index"):
            index.unlink()
        log = open_log(tmp_path, Keyring(NEW), encryption=True, segment_max_bytes=1 << 20)
        assert log.next_offset == 20
        fill(log, 10)
        log.close()
        check(open_log(tmp_path, Keyring(NEW)), 30)
    assert len(nonces) == 5


def test_truncation_and_retention_need_no_more_than_any_log(tmp_path):
    log = open_log(tmp_path, Keyring(NEW), encryption=True, compression="zstd", retention_max_messages=100)
    fill(log, 200)
    log.truncate(155)
    assert log.next_offset == 150
    fill(log, 100)
    log.retain(10**9, log.next_offset)
    assert numbers(read_all(log)) == list(range(log.start_offset, 250))
    assert log.start_offset > 100
    log.close()
    assert b"x" * 20 not in on_disk(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("*.index", "copy"))
    copy = open_log(tmp_path / "copy", Keyring(NEW))
    assert numbers(read_all(copy)) == list(range(log.start_offset, 250))
    assert os.listdir(tmp_path / "copy")
