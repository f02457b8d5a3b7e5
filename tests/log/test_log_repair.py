"""Accepting a loss: what is good stays, byte for byte, and what is damaged is passed over from then on."""

import fcntl
import json
import os
import random
import subprocess
import sys

import pytest
from log_helpers import (
    SEGMENT_HEADER,
    STREAM,
    check_past_damage,
    indexes,
    numbered,
    numbers,
    open_log,
    read_all,
    read_all_reverse,
    segments,
)

from liftbridge.log.repair import repair
from liftbridge.log.segments import PlainBodies

LIMITS = {"segment_max_bytes": 1500}
RECORDS = 60


def build(directory, *, close=True):
    log = open_log(directory, **LIMITS)
    for n in range(0, RECORDS, 3):
        log.append(numbered(n, 3))
    log.sync()
    if close:
        log.close()


def spoil(path, position, length=1):
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(length)
        file.seek(position)
        file.write(bytes(byte ^ 0x41 for byte in old))


def accept(directory):
    return repair(directory, STREAM, 3, PlainBodies())


@pytest.mark.parametrize("seed", range(25))
def test_what_is_good_stays_and_what_is_lost_is_passed_over(tmp_path, seed):
    chance = random.Random(seed)
    build(tmp_path, close=chance.random() < 0.5)
    for _ in range(chance.randint(1, 4)):
        path = chance.choice(segments(tmp_path))
        spoil(path, chance.randrange(path.stat().st_size), chance.choice([1, 1, 400]))
    if chance.random() < 0.3:
        chance.choice(segments(tmp_path)[1:-1]).unlink()
    log = open_log(tmp_path, **LIMITS)
    end = log.next_offset
    lost = check_past_damage(log, end)
    log.close()
    repaired = accept(tmp_path)
    assert {each.path for each in repaired} <= set(segments(tmp_path))
    assert all(each.kept.exists() for each in repaired)
    kept = [offset for offset in range(end) if offset not in lost]
    for _ in range(2):
        log = open_log(tmp_path, **LIMITS)
        assert log.damage == ()
        assert (log.start_offset, log.next_offset) == (0, end)
        assert numbers(read_all(log)) == kept
        assert numbers(read_all_reverse(log, end - 1)) == kept[::-1]
        for offset in range(end):
            behind = next((each for each in kept if each >= offset), end)
            assert log.offset_at_or_after(1000 * offset) == behind
        log.close()
        for index in indexes(tmp_path):
            index.unlink()
    assert accept(tmp_path) == []
    log = open_log(tmp_path, **LIMITS)
    assert log.append(numbered(end, 3)) == end
    assert numbers(read_all(log)) == [*kept, end, end + 1, end + 2]
    log.close()


def test_a_log_without_damage_is_left_alone(tmp_path):
    build(tmp_path)
    before = {path.name: path.read_bytes() for path in segments(tmp_path)}
    assert accept(tmp_path) == []
    assert {path.name: path.read_bytes() for path in segments(tmp_path)} == before


def test_the_damaged_file_is_kept(tmp_path):
    build(tmp_path)
    path = segments(tmp_path)[0]
    spoil(path, SEGMENT_HEADER + 90)
    damaged = path.read_bytes()
    (repaired,) = accept(tmp_path)
    assert repaired.kept.read_bytes() == damaged
    assert [(each.first_offset, each.next_offset) for each in repaired.damage] == [(0, 3)]
    assert path.stat().st_size < len(damaged)


@pytest.mark.parametrize("step", ["link", "replace"])
def test_a_crash_in_between_costs_nothing(tmp_path, monkeypatch, step):
    build(tmp_path)
    spoil(segments(tmp_path)[0], SEGMENT_HEADER + 90)

    class CrashError(Exception):
        pass

    def crash(*_):
        raise CrashError

    target = os if step == "link" else type(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(target, step, crash)
        with pytest.raises(CrashError):
            accept(tmp_path)
    log = open_log(tmp_path, **LIMITS)
    assert check_past_damage(log, RECORDS) == {0, 1, 2}
    log.close()
    assert len(accept(tmp_path)) == 1
    log = open_log(tmp_path, **LIMITS)
    assert numbers(read_all(log)) == list(range(3, RECORDS))
    log.close()


# ---- the command ----


def command(*arguments, status):
    done = subprocess.run(
        [sys.executable, "-m", "liftbridge.cli.main", "log", "repair", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done
    return done.stdout + done.stderr


def test_the_command_tells_first_and_does_it_when_told(tmp_path):
    data = tmp_path / "data"
    directory = data / "streams" / str(STREAM) / "3"
    build(directory)
    (data / "lock").write_text("1\n")
    assert command(data, status=0) == ""
    path = segments(directory)[0]
    spoil(path, SEGMENT_HEADER + 90)
    damaged = path.read_bytes()
    text = command(data, status=1)
    assert "offsets 0 to 2" in text
    assert "--accept-loss" in text
    assert path.read_bytes() == damaged
    assert json.loads(command(data, "--json", status=1))["type"] == "damaged"
    with (data / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "a server runs on" in command(data, "--accept-loss", status=2)
        assert path.read_bytes() == damaged
    text = command(data, "--accept-loss", status=0)
    assert "the offsets 0 to 2 are given up" in text
    assert command(data, status=0) == ""
    log = open_log(directory, **LIMITS)
    assert numbers(read_all(log)) == list(range(3, RECORDS))
    log.close()
