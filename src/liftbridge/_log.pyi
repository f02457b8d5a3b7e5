"""Types of the C core of the commit log; what each thing does is documented in `_log.pyx`."""

from pathlib import Path
from typing import Final, Protocol

from typing_extensions import Buffer

CRC32C_IMPLEMENTATION: Final[str]
MAX_BATCH_BYTES: Final[int]
ATTRIBUTE_EXPIRY: Final[int]
SEGMENT_HEADER_BYTES: Final[int]

class LogError(Exception): ...

class CorruptBatchError(LogError):
    path: Path
    position: int
    reason: str
    first_offset: int
    next_offset: int
    def __init__(
        self, path: Path, position: int, reason: str, first_offset: int = -1, next_offset: int = -1
    ) -> None: ...

class BodyCodec(Protocol):
    """Encodes and decodes the bodies of the batches of one segment; for annotations only.

    `encrypted` says that all batches of the segment are, `seals` whether anything is done to those to come.
    `seal` returns the attributes with the bits of what it did, and the body to store. `open` returns
    `raw_length` bytes; it raises ValueError when the body is not what the header says. Both may run in
    several threads at once.
    """

    @property
    def encrypted(self) -> bool: ...
    @property
    def seals(self) -> bool: ...
    def seal(
        self,
        records: Buffer,
        *,
        attributes: int,
        base_offset: int,
        epoch: int,
        count: int,
        last_delta: int,
        base_timestamp: int,
        max_timestamp: int,
    ) -> tuple[int, bytes]: ...
    def open(
        self,
        body: Buffer,
        *,
        attributes: int,
        base_offset: int,
        epoch: int,
        count: int,
        last_delta: int,
        base_timestamp: int,
        max_timestamp: int,
        raw_length: int,
    ) -> bytes: ...

def crc32c(data: Buffer, crc: int = 0) -> int: ...
def crc32c_software(data: Buffer, crc: int = 0) -> int: ...
def xxh64(data: Buffer) -> int: ...
def find_batch(fd: int, path: Path, start: int, size: int, next_offset: int) -> int: ...

class BatchBuilder:
    @property
    def count(self) -> int: ...
    @property
    def base_timestamp(self) -> int: ...
    @property
    def max_timestamp(self) -> int: ...
    @property
    def size(self) -> int: ...
    def add_record(
        self,
        *,
        value: Buffer | None,
        timestamp: int,
        subject: Buffer = b"",
        reply: Buffer = b"",
        key: Buffer | None = None,
        headers: Buffer = b"",
        expiry: int = 0,
    ) -> None: ...
    def reset(self) -> None: ...

class Segment:
    def __init__(
        self,
        fd: int,
        path: Path,
        base_offset: int,
        *,
        last_timestamp: int = 0,
        last_epoch: int = 0,
        last_crc: int = -1,
        end_offset: int = -1,
        codec: BodyCodec | None = None,
    ) -> None: ...
    @property
    def fd(self) -> int: ...
    @property
    def path(self) -> Path: ...
    @property
    def base_offset(self) -> int: ...
    @property
    def next_offset(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def last_position(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def first_timestamp(self) -> int: ...
    @property
    def last_timestamp(self) -> int: ...
    @property
    def last_epoch(self) -> int: ...
    @property
    def last_crc(self) -> int: ...
    @property
    def failed(self) -> bool: ...
    @property
    def codec(self) -> BodyCodec | None: ...
    @property
    def end_offset(self) -> int: ...
    @property
    def attributes(self) -> int: ...
    @property
    def holes(self) -> list[tuple[int, int, int, int, str]]: ...
    @property
    def epochs(self) -> tuple[tuple[int, int], ...]: ...
    def fileno(self) -> int: ...
    def append(self, builder: BatchBuilder, base_offset: int, epoch: int = 0) -> None: ...
    def append_control(self, epoch: int, timestamp: int) -> None: ...
    def preallocating(self, most: int) -> None: ...
    def trim(self) -> None: ...
    def scan(self, size: int) -> str: ...
    def skip(self, position: int, reason: str) -> None: ...
    def lose_until(self, next_offset: int, size: int, reason: str) -> None: ...
    def check_last(self) -> None: ...
    def index_bytes(self) -> bytes: ...
    def load(
        self,
        entries: Buffer,
        *,
        next_offset: int,
        end: int,
        last_position: int,
        count: int,
        first_timestamp: int,
        last_timestamp: int,
        last_epoch: int,
        last_crc: int,
        attributes: int,
        epochs: tuple[tuple[int, int], ...],
    ) -> None: ...
    def read_frames(
        self,
        offset: int,
        limit: int,
        prefix: Buffer,
        max_bytes: int = 262144,
        nowait: bool = False,
        now: int = 0,
    ) -> tuple[bytes, int]: ...
    def read_frames_reverse(
        self,
        offset: int,
        floor: int,
        prefix: Buffer,
        max_bytes: int = 262144,
        nowait: bool = False,
        now: int = 0,
    ) -> tuple[bytes, int]: ...
    def offset_at_or_after(self, timestamp: int) -> int: ...
    def last_expiry(self) -> int: ...
    def boundary(self, offset: int) -> tuple[int, int]: ...
