"""The note of where a log begins: retention and loss are told apart."""

import errno
import os
from pathlib import Path

import pytest
from log_helpers import STREAM, numbered, open_log, read_all, read_past_damage, segments

from liftbridge.log import CorruptBatchError
from liftbridge.log.files import index_path
from liftbridge.log.inspect import Finding, LogInspector
from liftbridge.log.repair import repair
from liftbridge.log.segments import PlainBodies
from liftbridge.log.start import START_NAME, note_start, read_start


def build(directory: Path, **options: int):
    """Five segments of two records."""
    log = open_log(directory, segment_max_bytes=1, **options)
    for base in range(0, 10, 2):
        log.append(numbered(base, 2))
    log.sync()
    return log


def offsets(log) -> list[int]:
    return [message.offset for message in read_all(log)]


def findings(directory: Path) -> list[Finding]:
    return [item for item in LogInspector(directory).items() if isinstance(item, Finding)]


def test_a_log_has_a_note_from_its_second_segment_on(tmp_path):
    log = open_log(tmp_path)
    log.append(numbered(0, 2))
    log.sync()
    assert read_start(tmp_path) is None
    log.close()
    build(tmp_path / "more").close()
    assert read_start(tmp_path / "more") == 0


def test_retention_moves_it(tmp_path):
    log = build(tmp_path, retention_max_messages=4)
    assert log.retain(0, 10) == 3
    assert read_start(tmp_path) == log.start_offset == 6
    log.close()
    log = open_log(tmp_path)
    assert not log.damage
    assert offsets(log) == [6, 7, 8, 9]
    log.close()


@pytest.mark.parametrize("lost", [1, 2])
def test_first_files_that_are_missing_are_a_hole(tmp_path, lost):
    build(tmp_path).close()
    for path in segments(tmp_path)[:lost]:
        path.unlink()
        index_path(path).unlink()
    found = findings(tmp_path)
    assert [(each.kind, each.damage, each.first_offset, each.next_offset) for each in found] == [
        ("missing", True, 0, 2 * lost)
    ]
    for _ in range(2):  # it stays known until somebody accepts it
        log = open_log(tmp_path, power_lost=True)
        assert [(each.first_offset, each.next_offset) for each in log.damage] == [(0, 2 * lost)]
        assert log.start_offset == 0
        with pytest.raises(CorruptBatchError) as error:
            log.read_frames(0, 10, b"")
        assert (error.value.first_offset, error.value.next_offset) == (0, 2 * lost)
        messages, errors = read_past_damage(log)
        assert [message.offset for message in messages] == list(range(2 * lost, 10))
        assert len(errors) == 1
        log.close()
    assert len(repair(tmp_path, STREAM, 3, PlainBodies())) == 1
    log = open_log(tmp_path)
    assert not log.damage
    assert offsets(log) == list(range(2 * lost, 10))
    log.close()


def test_what_an_interrupted_retention_has_left_is_removed(tmp_path):
    build(tmp_path).close()
    note_start(tmp_path, 4)
    assert [(each.kind, each.damage, each.path.stem[-1]) for each in findings(tmp_path)] == [
        ("leftover", False, "0"),
        ("leftover", False, "2"),
    ]
    log = open_log(tmp_path)
    assert not log.damage
    assert log.start_offset == 4
    assert [path.stem[-1] for path in segments(tmp_path)] == ["4", "6", "8"]
    assert [path.stem[-1] for path in sorted(tmp_path.glob("*.index"))] == ["4", "6", "8"]
    log.close()


def test_the_last_file_is_never_taken_for_a_leftover(tmp_path):
    build(tmp_path).close()
    note_start(tmp_path, 100)
    log = open_log(tmp_path)
    assert offsets(log) == [8, 9]
    log.close()


def test_a_log_without_any_file_goes_on_behind_the_note(tmp_path):
    build(tmp_path, retention_max_messages=4).retain(0, 10)
    for path in tmp_path.iterdir():
        if path.name != START_NAME:
            path.unlink()
    assert any(each.damage for each in findings(tmp_path))
    log = open_log(tmp_path)
    assert log.damage
    assert log.start_offset == log.next_offset == 6
    log.close()


@pytest.mark.parametrize("spoil", ["remove", "cut", "flip", "empty"])
def test_without_the_note_a_log_begins_where_its_first_file_does(tmp_path, spoil):
    build(tmp_path).close()
    path = tmp_path / START_NAME
    content = path.read_bytes()
    for at in range(len(content)):
        spoilt = bytearray(content)
        spoilt[at] ^= 0x10
        changed = {"cut": content[:at], "flip": bytes(spoilt), "empty": b"", "remove": None}[spoil]
        if changed is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(changed)
        assert read_start(tmp_path) is None
    segments(tmp_path)[0].unlink()
    log = open_log(tmp_path)
    assert not log.damage
    assert offsets(log) == list(range(2, 10))
    log.close()


def test_a_full_disk_does_not_keep_retention_from_making_room(tmp_path, monkeypatch):
    log = build(tmp_path, retention_max_messages=4)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("liftbridge.log.start.replace_file", full)
        assert log.retain(0, 10) == 3
    assert read_start(tmp_path) is None
    assert len(segments(tmp_path)) == 2
    log.close()
    log = open_log(tmp_path)
    assert not log.damage
    assert log.start_offset == 6
    log.close()
