"""Master keys and the slots that hold what they wrap: reading, refusing, rotating, and crashes on the way."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_helpers import STREAM

from liftbridge.log import keys
from liftbridge.log.header import SegmentHeader
from liftbridge.log.keys import (
    DamagedKeyError,
    Keyring,
    MasterKey,
    MasterKeyError,
    MissingKeyError,
    WrappedKey,
    decode_slots,
    encode_slot,
    key_of,
    needs_rewrap,
    new_data_key,
    rewrap,
    unwrap,
)

OLD = MasterKey.of(b"an old key of 32 bytes, all text", "old")
NEW = MasterKey.of(b"sixteen bytes ok", "new")
OTHER = MasterKey.of(b"another 16 bytes", "other")
DATA_KEY = bytes(range(100, 132))
SEGMENT = SegmentHeader(STREAM, 3, 0, 1_700_000_000_000_000_000)
HEADER = SEGMENT.encode()
SLOTS = (1024, 2048)


def with_key(block: bytes, key: WrappedKey) -> bytes:
    """A header block with a key in the slot that it names."""
    position = SLOTS[key.slot]
    return block[:position] + encode_slot(key) + block[position + 512 :]


def encrypted(path: Path, ring: Keyring, data_key: bytes = DATA_KEY) -> Path:
    """A segment file with a header and some bytes behind it."""
    path.write_bytes(SEGMENT.encode(encode_slot(ring.wrap(data_key))) + b"batches" * 100)
    return path


def rotate(path: Path, ring: Keyring) -> bool:
    """Rotate; returns whether there was anything to do."""
    before = path.read_bytes()
    fd = os.open(path, os.O_RDWR)
    try:
        rewrap(fd, path, ring)
    finally:
        os.close(fd)
    block = path.read_bytes()[:4096]
    changed = block != before[:4096]
    for content, due in ((before[:4096], changed), (block, False)):
        key = key_of(content, path)
        assert (key is not None and needs_rewrap(content, key, ring)) is due
    return changed


def data_key_of(path: Path, ring: Keyring | None) -> bytes:
    key = key_of(path.read_bytes()[:4096], path)
    assert key is not None
    return unwrap(key, ring, path)


# -- master keys --


@pytest.mark.parametrize("size", [16, 32])
def test_a_key_is_the_text_as_it_is(size):
    text = ("k 0x" * 8)[:size]
    ring = Keyring.load({"LIFTBRIDGE_ENCRYPTION_KEY": text})
    assert ring.active.secret == text.encode()
    assert ring.active.id in ring


def test_a_key_need_not_be_text_in_utf8():
    raw = bytes(range(200, 216))
    assert Keyring.load({"LIFTBRIDGE_ENCRYPTION_KEY": os.fsdecode(raw)}).active.secret == raw


@pytest.mark.parametrize("size", [1, 15, 17, 24, 31, 33, 64])
def test_a_key_of_another_length_is_refused(size):
    with pytest.raises(MasterKeyError, match=r"^LIFTBRIDGE_ENCRYPTION_KEY: invalid AES key size: ") as caught:
        Keyring.load({"LIFTBRIDGE_ENCRYPTION_KEY": "k" * size})
    assert f"{size} bytes" in str(caught.value)
    assert "exactly 16 or 32 bytes" in str(caught.value)
    assert "k" * size not in str(caught.value) or size == 1


@pytest.mark.parametrize("environ", [{}, {"LIFTBRIDGE_ENCRYPTION_KEY": ""}])
def test_no_key_is_a_key_of_the_wrong_size_too(environ):
    with pytest.raises(MasterKeyError, match=r"LIFTBRIDGE_ENCRYPTION_KEY is not set .*invalid AES key size"):
        Keyring.load(environ)


def test_old_keys_come_from_a_file(tmp_path):
    path = tmp_path / "old-keys"
    path.write_bytes(OLD.secret + b"\r\n\n" + OTHER.secret)
    ring = Keyring.load({"LIFTBRIDGE_ENCRYPTION_KEY": NEW.secret.decode()}, path)
    assert all(key.id in ring for key in (OLD, NEW, OTHER))
    assert ring.active == NEW


def test_the_active_key_may_be_among_the_old_ones(tmp_path):
    path = tmp_path / "old-keys"
    path.write_bytes(NEW.secret)
    assert Keyring.load({"LIFTBRIDGE_ENCRYPTION_KEY": NEW.secret.decode()}, path).active == NEW


def test_a_bad_line_of_the_file_is_named(tmp_path):
    path = tmp_path / "old-keys"
    path.write_bytes(OLD.secret + b"\n" + OTHER.secret + b" \n")
    with pytest.raises(MasterKeyError, match=r"old-keys, line 2: invalid AES key size: 17 bytes"):
        Keyring.load({"LIFTBRIDGE_ENCRYPTION_KEY": NEW.secret.decode()}, path)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(MasterKeyError, match="No such file"):
        Keyring.load({"LIFTBRIDGE_ENCRYPTION_KEY": NEW.secret.decode()}, tmp_path / "none")
    (tmp_path / "large").write_bytes((OLD.secret + b"\n") * 2000)
    with pytest.raises(MasterKeyError, match="at most 64 KiB"):
        Keyring.load({"LIFTBRIDGE_ENCRYPTION_KEY": NEW.secret.decode()}, tmp_path / "large")


def test_two_keys_with_one_id_are_refused():
    with pytest.raises(MasterKeyError, match="id 00000007"):
        Keyring(MasterKey(7, b"a" * 16), [MasterKey(7, b"b" * 16)])


@given(st.binary(min_size=16, max_size=16))
def test_ids_are_stable_and_never_zero(secret):
    key = MasterKey.of(secret, "here")
    assert 0 < key.id < 1 << 32
    assert key == MasterKey.of(secret, "there")


def test_ids_are_for_ever():
    assert (OLD.id, NEW.id) == (0x274DEE1E, 0x826FD124)


def test_a_key_is_never_shown():
    for shown in (repr(OLD), repr(Keyring(OLD)), repr(Keyring(OLD).wrap(DATA_KEY))):
        assert "an old key" not in shown
    assert OLD.secret not in with_key(HEADER, Keyring(OLD).wrap(DATA_KEY))
    assert DATA_KEY not in with_key(HEADER, Keyring(OLD).wrap(DATA_KEY))


def test_data_keys_are_fresh():
    assert len({new_data_key() for _ in range(100)}) == 100
    assert len(new_data_key()) == 32


# -- slots --

WRAPPED = st.builds(
    WrappedKey,
    key_id=st.integers(1, (1 << 32) - 1),
    wrapped=st.binary(min_size=1, max_size=64),
    sequence=st.integers(1, (1 << 64) - 1),
    slot=st.sampled_from([0, 1]),
)


@given(WRAPPED)
def test_a_slot_comes_back(key):
    block = with_key(HEADER, key)
    assert len(block) == len(HEADER)
    assert len(encode_slot(key)) == 512
    assert decode_slots(block) == key


@given(WRAPPED, WRAPPED)
def test_the_higher_sequence_number_counts(one, two):
    one = WrappedKey(one.key_id, one.wrapped, one.sequence, 0)
    two = WrappedKey(two.key_id, two.wrapped, two.sequence, 1)
    found = decode_slots(with_key(with_key(HEADER, one), two))
    assert found is not None
    assert found.sequence == max(one.sequence, two.sequence)


def test_a_header_without_keys_has_none():
    assert decode_slots(HEADER) is None


@given(st.integers(0, 92 * 8 - 1), st.sampled_from([0, 1]))
def test_a_damaged_slot_is_not_taken_for_an_unencrypted_segment(bit, slot):
    block = bytearray(with_key(HEADER, WrappedKey(NEW.id, b"w" * 40, 1, slot)))
    block[SLOTS[slot] + bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="damaged"):
        decode_slots(bytes(block))


@given(st.binary(min_size=1, max_size=512), st.sampled_from(SLOTS))
def test_anything_may_lie_in_a_slot(content, position):
    block = HEADER[:position] + content + HEADER[position + len(content) :]
    if any(content):
        with pytest.raises(ValueError, match="damaged"):
            decode_slots(block)
    else:
        assert decode_slots(block) is None


def test_a_slot_of_a_later_version_is_refused():
    sector = bytearray(encode_slot(WrappedKey(NEW.id, b"w" * 40)))
    sector[8] = 2
    sector[88:92] = keys.crc32c(bytes(sector[:88])).to_bytes(4, "little")
    with pytest.raises(ValueError, match="newer version"):
        decode_slots(HEADER[:1024] + bytes(sector) + HEADER[1536:])


# -- unwrapping --


def test_the_key_comes_back(tmp_path):
    path = encrypted(tmp_path / "segment", Keyring(OLD))
    assert data_key_of(path, Keyring(OLD)) == DATA_KEY
    assert data_key_of(path, Keyring(NEW, [OTHER, OLD])) == DATA_KEY


@pytest.mark.parametrize("ring", [None, Keyring(NEW), Keyring(NEW, [OTHER])])
def test_a_missing_key_is_named(tmp_path, ring):
    path = encrypted(tmp_path / "segment", Keyring(OLD))
    with pytest.raises(MissingKeyError) as caught:
        data_key_of(path, ring)
    text = str(caught.value)
    assert f"{OLD.id:08x}" in text
    assert str(path) in text
    assert "LIFTBRIDGE_ENCRYPTION_KEY" in text
    assert "streams.encryption.old.keys.file" in text


def test_a_key_that_does_not_unwrap_is_damage(tmp_path):
    path = encrypted(tmp_path / "segment", Keyring(MasterKey(NEW.id, OTHER.secret)))
    with pytest.raises(DamagedKeyError, match=f"{NEW.id:08x}"):
        data_key_of(path, Keyring(NEW))


def test_a_data_key_of_another_length_is_damage(tmp_path):
    path = encrypted(tmp_path / "segment", Keyring(NEW), b"only sixteen byt")
    with pytest.raises(DamagedKeyError):
        data_key_of(path, Keyring(NEW))


def test_damaged_slots_name_the_file(tmp_path):
    path = encrypted(tmp_path / "segment", Keyring(NEW))
    with path.open("r+b") as file:
        file.seek(1040)
        file.write(b"?")
    with pytest.raises(DamagedKeyError, match=f"{path}: .*restore the file"):
        data_key_of(path, Keyring(NEW))
    with pytest.raises(DamagedKeyError):
        rotate(path, Keyring(NEW))


# -- rotation --


def test_rotation_changes_the_wrapping_and_nothing_else(tmp_path):
    path = encrypted(tmp_path / "segment", Keyring(OLD))
    before = path.read_bytes()
    assert rotate(path, Keyring(NEW, [OLD]))
    after = path.read_bytes()
    assert data_key_of(path, Keyring(NEW)) == DATA_KEY
    with pytest.raises(MissingKeyError):
        data_key_of(path, Keyring(OLD))
    assert after[1024:1536] == bytes(512), "the old slot is still there"
    assert (after[:1024], after[4096:]) == (before[:1024], before[4096:])
    assert not rotate(path, Keyring(NEW, [OLD]))
    assert path.read_bytes() == after


def test_rotations_follow_each_other(tmp_path):
    path = encrypted(tmp_path / "segment", Keyring(OLD))
    for before, after in itertools.pairwise([OLD, NEW, OTHER, OLD, NEW]):
        assert rotate(path, Keyring(after, [before]))
        assert data_key_of(path, Keyring(after)) == DATA_KEY
    block = path.read_bytes()
    assert sum(any(block[at : at + 512]) for at in SLOTS) == 1


def test_a_segment_that_is_not_encrypted_stays_so(tmp_path):
    path = tmp_path / "segment"
    path.write_bytes(HEADER)
    assert not rotate(path, Keyring(NEW))
    assert path.read_bytes() == HEADER


def test_rotation_without_the_old_key_changes_nothing(tmp_path):
    path = encrypted(tmp_path / "segment", Keyring(OLD))
    before = path.read_bytes()
    with pytest.raises(MissingKeyError, match=f"{OLD.id:08x}"):
        rotate(path, Keyring(NEW))
    assert path.read_bytes() == before


def recorded(monkeypatch: pytest.MonkeyPatch, path: Path, ring: Keyring) -> list[tuple[int, bytes] | None]:
    """Rotate; return what was written where, and None for each sync."""
    steps: list[tuple[int, bytes] | None] = []
    write_all, sync_data = keys.write_all, keys.sync_data

    def write(fd: int, data: bytes, position: int) -> None:
        steps.append((position, data))
        write_all(fd, data, position)

    def sync(fd: int) -> None:
        steps.append(None)
        sync_data(fd)

    with monkeypatch.context() as patch:
        patch.setattr(keys, "write_all", write)
        patch.setattr(keys, "sync_data", sync)
        assert rotate(path, ring)
    return steps


def images(before: bytes, steps: list[tuple[int, bytes] | None]) -> Iterator[bytes]:
    """Every file that a loss of power may leave: what was synced, and any part of what was not."""
    image, pending = before, []
    for step in [*steps, None]:
        for parts in itertools.product((0, 1, 40, 90, 300, 512), repeat=len(pending)):
            torn = bytearray(image)
            for (position, data), length in zip(pending, parts, strict=True):
                torn[position : position + length] = data[:length]
            yield bytes(torn)
        if step is not None:
            pending.append(step)
        else:
            for position, data in pending:
                image = image[:position] + data + image[position + len(data) :]
            pending = []


def test_a_crash_at_any_moment_of_a_rotation_loses_nothing(tmp_path, monkeypatch):
    path = encrypted(tmp_path / "segment", Keyring(OLD))
    before = path.read_bytes()
    steps = recorded(monkeypatch, path, Keyring(NEW, [OLD]))
    assert [step and step[0] for step in steps] == [2048, None, 1024, None]
    seen = set()
    for image in images(before, steps):
        path.write_bytes(image)
        assert data_key_of(path, Keyring(NEW, [OLD])) == DATA_KEY
        for _ in range(2):  # what was interrupted is finished, in both directions, and again
            rotate(path, Keyring(OLD, [NEW]))
            assert data_key_of(path, Keyring(OLD)) == DATA_KEY
            rotate(path, Keyring(NEW, [OLD]))
            assert data_key_of(path, Keyring(NEW)) == DATA_KEY
            block = path.read_bytes()
            assert sum(any(block[at : at + 512]) for at in SLOTS) == 1
        seen.add(image)
    assert len(seen) > 8


def test_a_crash_while_finishing_a_rotation_loses_nothing(tmp_path, monkeypatch):
    path = encrypted(tmp_path / "segment", Keyring(OLD))
    before = path.read_bytes()
    steps = recorded(monkeypatch, path, Keyring(NEW, [OLD]))
    for first in set(images(before, steps)):
        path.write_bytes(first)
        again = recorded(monkeypatch, path, Keyring(OTHER, [OLD, NEW]))
        for second in images(first, again):
            path.write_bytes(second)
            assert data_key_of(path, Keyring(OTHER, [OLD, NEW])) == DATA_KEY


def test_a_failed_sync_leaves_the_segment_readable(tmp_path, monkeypatch):
    path = encrypted(tmp_path / "segment", Keyring(OLD))

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(keys, "sync_data", fail)
        with pytest.raises(OSError, match="Input/output error"):
            rotate(path, Keyring(NEW, [OLD]))
    assert path.read_bytes()[1024:1536] == encode_slot(Keyring(OLD).wrap(DATA_KEY))
    assert data_key_of(path, Keyring(NEW, [OLD])) == DATA_KEY
    rotate(path, Keyring(NEW, [OLD]))
    assert data_key_of(path, Keyring(NEW)) == DATA_KEY
