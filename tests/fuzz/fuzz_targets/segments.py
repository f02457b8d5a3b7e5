"""The files of a log after anything: bytes changed, inserted, cut out, checksums made right again.

Every input alters a small log, which the log opens and reads in both directions, `LogInspector` judges, and
`liftbridge log dump` prints. The two readers share no code, so they are each other's oracle.

Checked: opening and reading end, with messages or the errors of log/errors.py; both directions read the same;
output is what there is, not more. Where checksums were not made right again, what is served is what the
inspector finds. A payload with a right checksum is the server's own: it may be what no client can decode.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import shutil
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from fuzz_targets.memory import scratch
from fuzz_targets.script import Script, written
from liftbridge._log import BatchBuilder, crc32c
from liftbridge.cli.log_dump import Limits, dump
from liftbridge.log import CorruptBatchError, Log, LogError, LogOptions
from liftbridge.log.inspect import Batch, Finding, LogInspector
from liftbridge.log.layout import FormatError
from liftbridge.proto import api_pb2

INSTRUMENTED = ("liftbridge.log",)
MAX_LENGTH = 512
STREAM = uuid.UUID(int=5)
WORDS = (
    b"\x0e\xabBL", b"\x01\x00", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"LBSEGMNT",
    b"LBINDEX2", b"LBSTART1", bytes(8), b"\xff" * 8, b"\xff" * 7 + b"\x7f",
)  # fmt: skip

LOGS = ({}, {"compression": "lz4"}, {"compression": "zstd"})
DATA = 4096  # where batches begin
OVERWRITE, FLIP, INSERT, CUT_OUT, CUT_OFF = range(5)
_LENGTH, _CRC, _PREVIOUS = 4, 8, 72  # in a batch header
_HEADER = 80


@functools.cache
def original(which: int) -> dict[str, bytes]:
    """The files of an undamaged log: two segments of three batches."""
    directory = scratch() / "original"
    log = Log.open(
        directory, stream_id=STREAM, partition=0, options=LogOptions(segment_max_bytes=900, **LOGS[which])
    )
    for base in range(0, 12, 2):
        builder = BatchBuilder()
        for offset in (base, base + 1):
            builder.add_record(
                value=b"%d:" % offset + b"v" * 60, timestamp=1000 * offset, subject=b"s",
                reply=b"r" * (offset % 2), key=b"k%d" % (offset % 3),
                headers=api_pb2.Message(headers={"h": b"1"}).SerializeToString(),
            )  # fmt: skip
        log.append(builder, epoch=1 + base // 4)
    log.close()
    files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    shutil.rmtree(directory)
    return files


def seeds() -> Iterator[bytes]:
    """One change of each kind, with checksums left alone and made right."""
    for which in range(len(LOGS)):
        yield written(which, 0)
        for flags in range(4):
            yield written(which, flags, FLIP, 1, 1, 0, 12, 1, OVERWRITE, 1, 1, 0, 100, b"\xff\xff")
            yield written(
                which, flags, INSERT, 3, 1, 0, 80, b"xyz", CUT_OUT, 3, 1, 0, 200, 5, CUT_OFF, 0, 1, 0, 150
            )


def altered(script: Script, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files after the changes of a script."""
    contents = {name: bytearray(data) for name, data in files.items()}
    names = sorted(contents)
    while script:
        kind, name, region = script.number() % 5, names[script.number() % len(names)], script.number() % 2
        at = script.number() << 8 | script.number()
        content = contents[name]
        at = min((DATA if region and len(content) > DATA else 0) + at, len(content))
        if kind == OVERWRITE:
            new = script.string()
            content[at : at + len(new)] = new
        elif kind == FLIP:
            mask = script.number()
            if at < len(content):
                content[at] ^= mask
        elif kind == INSERT:
            content[at:at] = script.string()
        elif kind == CUT_OUT:
            del content[at : at + script.number()]
        else:
            del content[at:]
    return {name: bytes(data) for name, data in contents.items()}


def mended(files: dict[str, bytes]) -> dict[str, bytes]:
    """The segments with the checksums that their bytes ask for; other files would not fit them."""
    found: dict[str, bytes] = {}
    previous = None
    for name in sorted(name for name in files if name.endswith(".log")):
        content, at = bytearray(files[name]), DATA
        while at + _HEADER <= len(content):
            (length,) = struct.unpack_from("<I", content, at + _LENGTH)
            if not _HEADER <= length <= len(content) - at:
                break
            if previous is not None:
                struct.pack_into("<I", content, at + _PREVIOUS, previous)
            previous = crc32c(bytes(content[at + _CRC + 4 : at + length]))
            struct.pack_into("<I", content, at + _CRC, previous)
            at += length
        found[name] = bytes(content)
    return found


def run(data: bytes) -> None:
    script = Script(data)
    which, flags = script.number() % len(LOGS), script.number()
    files = altered(script, original(which))
    if flags & 1:
        files = mended(files)
    directory = scratch() / "altered"
    directory.mkdir()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        for name, content in files.items():
            (directory / name).write_bytes(content)
        judge(directory, power_lost=bool(flags & 2), forged=bool(flags & 1))
    finally:
        logging.disable(disabled)
        shutil.rmtree(directory)


Seen = dict[int, tuple[bytes, bytes]]


def judge(directory: Path, *, power_lost: bool, forged: bool) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for as_json in (False, True):
            dump(
                directory,
                False,
                Limits(offset=0, count=None, values=True, batches_only=False, index=True, as_json=as_json),
            )
    assert len(printed.getvalue()) < 1_000_000, "more is printed than there is"
    inspected = inspect(directory)
    try:
        log = Log.open(directory, stream_id=STREAM, partition=0, options=LogOptions(), power_lost=power_lost)
    except LogError:
        return
    try:
        frames = read(log)
        if not forged:
            served = {message.offset: (message.key, message.value) for message in map(decoded, frames)}
            assert len(served) == len(frames), "a message comes twice"
            assert all(served[offset] == inspected[offset] for offset in served.keys() & inspected.keys())
            assert power_lost or served.keys() == inspected.keys(), f"{sorted(served)}, {sorted(inspected)}"
        for timestamp in (-1, 5500, 1 << 62):
            with contextlib.suppress(CorruptBatchError):
                assert log.offset_at_or_after(timestamp) <= log.next_offset
    finally:
        log.close()


def inspect(directory: Path) -> Seen:
    """The records of good batches."""
    found: Seen = {}
    findings = 0
    for item in LogInspector(directory).items():
        if isinstance(item, Finding):
            findings += 1
            assert item.text and item.advice
        elif isinstance(item, Batch) and item.problem is None:
            try:
                records = list(item.records() or ())
            except FormatError:
                continue
            found |= {record.offset: (record.key or b"", record.value or b"") for record in records}
    assert findings < 1000
    return found


def read(log: Log) -> list[bytes]:
    """What subscribers get from the beginning, as serialized messages; the same from the end."""
    found: list[bytes] = []
    offset, rounds = log.start_offset, 0
    while offset < log.next_offset:
        rounds += 1
        assert rounds < 1000, "reading does not come to an end"
        try:
            frames, following = log.read_frames(offset, log.next_offset, b"")
            found += messages_of(frames)
        except CorruptBatchError as error:
            assert error.first_offset <= offset < error.next_offset
            following = error.next_offset
        assert following > offset
        offset = following
    backwards: list[bytes] = []
    offset = log.next_offset - 1
    while offset >= log.start_offset:
        rounds += 1
        assert rounds < 2000, "reading does not come to an end"
        try:
            frames, following = log.read_frames_reverse(offset, log.start_offset, b"")
            backwards += messages_of(frames)
        except CorruptBatchError as error:
            assert error.first_offset <= offset < error.next_offset
            following = error.first_offset - 1
        assert following < offset
        offset = following
    assert backwards[::-1] == found
    return found


def messages_of(frames: bytes) -> Iterator[bytes]:
    while frames:
        length = int.from_bytes(frames[1:5], "big")
        assert frames[0] == 0 and len(frames) >= 5 + length
        yield frames[5 : 5 + length]
        frames = frames[5 + length :]


def decoded(serialized: bytes) -> api_pb2.Message:
    return api_pb2.Message.FromString(serialized)
