"""Master keys, and the data keys of segments that they wrap.

A master key is 16 or 32 bytes that an operator chose: the text of LIFTBRIDGE_ENCRYPTION_KEY as it is, and one
line of a file for each older one. It encrypts no message. Every segment has a data key of its own, 32 random
bytes, which lies in the segment's header block, wrapped with a master key by AES-KWP (RFC 5649). To change
the master key therefore means to wrap a few bytes of each segment again, not to write the log anew.

The header block has two slots for the wrapped key, so that the old one stays until the new one is on disk.
Each begins a 512-byte sector of its own, at 1024 and 2048, and is zero when it is free; little-endian:

    0    8s  magic, "LBDATKEY"
    8   u16  slot version, 1
   10   u16  length of the wrapped key
   12   u32  id of the master key
   16   u64  sequence number, from 1; the slot with the higher one counts
   24  64s   wrapped key, zeros behind it
   88   u32  CRC-32C of everything before

The id of a master key is the beginning of a hash of it. It only says which key to try; whether it is the
right one, the integrity check of AES-KWP tells. So an id gives away nothing that a wrapped key does not.

Invariants:

- After a crash at any moment of a rotation one slot is whole, and its key is the segment's data key.
- A slot that is neither free nor whole is never taken for "not encrypted".
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from liftbridge._log import SEGMENT_HEADER_BYTES, crc32c
from liftbridge.log.errors import LogError
from liftbridge.log.files import sync_data, write_all

VARIABLE = "LIFTBRIDGE_ENCRYPTION_KEY"
OLD_KEYS_SETTING = "streams.encryption.old.keys.file"
MAX_OLD_KEYS_BYTES = 65536
SLOT_POSITIONS = (1024, 2048)
SLOT_BYTES = 512
DATA_KEY_BYTES = 32

_KEY_SIZES = (16, 32)
_ID_DOMAIN = b"liftbridge master key id\0"
_MAGIC = b"LBDATKEY"
_SLOT_VERSION = 1
_FIELDS = struct.Struct("<8sHHIQ64s")
_CHECKSUM = struct.Struct("<I")
_WRAPPED_ROOM = 64


class MasterKeyError(ValueError):
    """A master key that was given cannot be used, or none was given; the text says where and what to do."""


class MissingKeyError(LogError):
    """A segment is encrypted, and this server does not have the master key for its data key."""


class DamagedKeyError(LogError):
    """The wrapped data key of a segment cannot be read; without it, neither can what is encrypted with it."""


class _UnknownSlotError(ValueError):
    """A slot was written by a later version."""


@dataclass(frozen=True)
class MasterKey:
    """A key that wraps data keys. `id` is 1 to 2^32 - 1 and tells it from others."""

    id: int
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes, origin: str) -> MasterKey:
        """Make one of its bytes; MasterKeyError, which names `origin`, unless they are 16 or 32."""
        if len(secret) not in _KEY_SIZES:
            raise MasterKeyError(
                f"{origin}: invalid AES key size: {len(secret)} bytes; "
                "a key is a text of exactly 16 or 32 bytes"
            )
        (number,) = struct.unpack_from("<I", hashlib.sha256(_ID_DOMAIN + secret).digest())
        return cls(number or 1, secret)


@dataclass(frozen=True)
class WrappedKey:
    """A data key as it lies in a slot: wrapped with the master key `key_id`, in slot 0 or 1."""

    key_id: int
    wrapped: bytes
    sequence: int = 1
    slot: int = 0


class Keyring:
    """The master keys of a server: one that wraps new data keys, and older ones to unwrap with.

    Raises MasterKeyError when two different keys have the same id.
    """

    def __init__(self, active: MasterKey, older: Iterable[MasterKey] = ()) -> None:
        self.active = active
        self._keys = {active.id: active}
        for key in older:
            if self._keys.setdefault(key.id, key).secret != key.secret:
                raise MasterKeyError(
                    f"two different master keys have the id {key.id:08x}; one of them must be chosen anew"
                )

    @classmethod
    def load(cls, environ: Mapping[str, str], old_keys: Path | None = None) -> Keyring:
        """Return the keys of the environment variable LIFTBRIDGE_ENCRYPTION_KEY and of a file of older ones.

        The file has one key a line; empty lines do not count. Raises MasterKeyError.
        """
        text = environ.get(VARIABLE, "")
        if not text:
            raise MasterKeyError(
                f"{VARIABLE} is not set (invalid AES key size: 0 bytes); "
                "set it to a text of exactly 16 or 32 bytes, the same at every start"
            )
        active = MasterKey.of(os.fsencode(text), VARIABLE)
        return cls(active, [] if old_keys is None else _read_old_keys(old_keys))

    def __contains__(self, key_id: int) -> bool:
        return key_id in self._keys

    def wrap(self, data_key: bytes) -> WrappedKey:
        """Wrap a data key with the active master key."""
        from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

        return WrappedKey(self.active.id, aes_key_wrap_with_padding(self.active.secret, data_key))

    def unwrap(self, key: WrappedKey, path: Path) -> bytes:
        """Return the data key of the segment file at `path`. Raises MissingKeyError, DamagedKeyError."""
        from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding

        master = self._keys.get(key.key_id)
        if master is None:
            raise _missing(key, path)
        try:
            data_key = aes_key_unwrap_with_padding(master.secret, key.wrapped)
        except InvalidUnwrap:
            data_key = b""
        if len(data_key) != DATA_KEY_BYTES:
            raise DamagedKeyError(
                f"{path}: the key of the segment does not unwrap with master key {key.key_id:08x}, which it "
                "names; restore the file from a copy, or delete the stream to give up what it holds"
            )
        return data_key


def new_data_key() -> bytes:
    """Return a fresh key for a segment."""
    return os.urandom(DATA_KEY_BYTES)


def unwrap(key: WrappedKey, keyring: Keyring | None, path: Path) -> bytes:
    """Return the data key of the segment file at `path`, or say that a server without keys has none.

    Raises MissingKeyError, DamagedKeyError.
    """
    if keyring is None:
        raise _missing(key, path)
    return keyring.unwrap(key, path)


def _missing(key: WrappedKey, path: Path) -> MissingKeyError:
    return MissingKeyError(
        f"{path}: the segment is encrypted, and this server does not have master key {key.key_id:08x}; "
        f"start it with that key in {VARIABLE}, or, if it is an older one, in the file named by "
        f"{OLD_KEYS_SETTING}"
    )


def _read_old_keys(path: Path) -> list[MasterKey]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_OLD_KEYS_BYTES + 1)
    except OSError as error:
        raise MasterKeyError(f"cannot read the old keys in {path}: {error.strerror or error}") from None
    if len(content) > MAX_OLD_KEYS_BYTES:
        raise MasterKeyError(
            f"{path}: a file of old keys may be at most {MAX_OLD_KEYS_BYTES // 1024} KiB long"
        )
    lines = enumerate(content.replace(b"\r\n", b"\n").split(b"\n"), start=1)
    return [MasterKey.of(line, f"{path}, line {number}") for number, line in lines if line]


# ---- slots ----


def encode_slot(key: WrappedKey) -> bytes:
    """Return the sector that holds the key."""
    assert 0 < len(key.wrapped) <= _WRAPPED_ROOM, f"a wrapped key of {len(key.wrapped)} bytes has no room"
    fields = _FIELDS.pack(_MAGIC, _SLOT_VERSION, len(key.wrapped), key.key_id, key.sequence, key.wrapped)
    return (fields + _CHECKSUM.pack(crc32c(fields))).ljust(SLOT_BYTES, b"\0")


def decode_slots(block: bytes) -> WrappedKey | None:
    """Return the key that counts in a header block, or None when both slots are free.

    Raises ValueError when there is something in the slots, but no whole key: it is damaged, or of a format
    that this version does not know.
    """
    slots = [block[position : position + SLOT_BYTES] for position in SLOT_POSITIONS]
    keys = [key for slot, sector in enumerate(slots) if (key := _decode_slot(sector, slot)) is not None]
    if keys:
        return max(keys, key=lambda key: key.sequence)
    if any(map(any, slots)):
        raise ValueError("the wrapped key of the segment is damaged")
    return None


def _decode_slot(sector: bytes, slot: int) -> WrappedKey | None:
    """Return the key in a sector, or None when it is free or torn."""
    if len(sector) != SLOT_BYTES:
        return None
    fields = sector[: _FIELDS.size]
    if not any(fields) or _CHECKSUM.unpack_from(sector, _FIELDS.size) != (crc32c(fields),):
        return None
    magic, version, length, key_id, sequence, wrapped = _FIELDS.unpack(fields)
    if magic != _MAGIC or version != _SLOT_VERSION or length > _WRAPPED_ROOM:
        raise _UnknownSlotError(
            "its key is in a format that this version does not know; use the newer version"
        )
    return WrappedKey(key_id, wrapped[:length], sequence, slot)


def key_of(block: bytes, path: Path) -> WrappedKey | None:
    """Return the wrapped key in the header block of the file at `path`, or None when it is not encrypted.

    Raises DamagedKeyError when the slots are damaged, LogError when they are a later version's.
    """
    try:
        return decode_slots(block)
    except _UnknownSlotError as error:
        raise LogError(f"{path}: {error}") from None
    except ValueError as error:
        raise DamagedKeyError(
            f"{path}: {error}; restore the file from a copy, or delete the stream to give up what it holds"
        ) from None


def needs_rewrap(block: bytes, key: WrappedKey, keyring: Keyring) -> bool:
    """Whether `rewrap` has something to do for a file with this header block and key."""
    position = SLOT_POSITIONS[1 - key.slot]
    return key.key_id != keyring.active.id or any(block[position : position + SLOT_BYTES])


def rewrap(fd: int, path: Path, keyring: Keyring) -> None:
    """Have the data key of a segment file wrapped with the active master key, and with no other; blocking.

    Finishes what a crash interrupted. `fd` is open for writing. When this returns, the change is on disk.
    Raises MissingKeyError, DamagedKeyError; OSError, and then the segment is as readable as before.
    """
    block = os.pread(fd, SEGMENT_HEADER_BYTES, 0)
    key = key_of(block, path)
    if key is None:
        return
    other = 1 - key.slot
    if key.key_id != keyring.active.id:
        fresh = keyring.wrap(keyring.unwrap(key, path))
        slot = WrappedKey(fresh.key_id, fresh.wrapped, key.sequence + 1, other)
        write_all(fd, encode_slot(slot), SLOT_POSITIONS[other])
        sync_data(fd)
        other = key.slot
    elif not needs_rewrap(block, key, keyring):
        return
    # The old key must not open the segment any more, and a torn slot must not stay.
    write_all(fd, bytes(SLOT_BYTES), SLOT_POSITIONS[other])
    sync_data(fd)
