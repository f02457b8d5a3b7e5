"""The reader of a log directory that the tools use: what it finds in good logs, and how it names damage."""

import os
import shutil
import struct
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_helpers import (
    PREFIX,
    SEGMENT_HEADER,
    STREAM,
    Record,
    batch,
    messages,
    numbered,
    open_log,
    read_all,
    segments,
)

from liftbridge._log import crc32c
from liftbridge.log import LogDamagedError, layout
from liftbridge.log.inspect import Batch, Finding, Index, LogInspector, Segment
from liftbridge.log.layout import FormatError, UnknownVersionError
from liftbridge.log.walk import File

texts = st.binary(max_size=30).map(lambda data: data.decode("latin-1"))
records_of_a_batch = st.lists(
    st.builds(
        Record,
        value=st.none() | st.binary(max_size=60) | st.binary(min_size=1500, max_size=3000),
        timestamp=st.integers(0, 5),  # since the record before
        subject=st.sampled_from([b"", b"orders", b"a.b.c"]),
        reply=st.sampled_from([b"", b"_INBOX.1"]),
        key=st.none() | st.binary(max_size=5),
        headers=st.dictionaries(texts, st.binary(max_size=20), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


def inspect(directory, **options):
    inspector = LogInspector(directory, **options)
    return inspector, list(inspector.items())


def of(kind, items):
    return [item for item in items if isinstance(item, kind)]


def build(directory, batches=4, close=True, **options):
    log = open_log(directory, **options)
    for n in range(batches):
        log.append(numbered(3 * n, 3), epoch=n)
    log.sync()
    if close:
        log.close()
    return directory


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.tuples(records_of_a_batch, st.integers(0, 2), st.booleans()), max_size=8),
    segment_max_bytes=st.sampled_from([500, 9000, 100_000]),
    compression=st.sampled_from(["none", "lz4", "zstd"]),
    close=st.booleans(),
)
def test_the_two_readers_agree_on_any_log(batches, segment_max_bytes, compression, close):
    """Every field of every record is the same, whichever implementation of the format reads it."""
    directory = Path(tempfile.mkdtemp(prefix="log-inspect-"))
    try:
        log = open_log(directory, segment_max_bytes=segment_max_bytes, compression=compression)
        now, epoch, epochs = 1000, 0, []
        for records, later, announced in batches:
            stamped = []
            for record in records:
                now += record.timestamp
                stamped.append(Record(**{**vars(record), "timestamp": now}))
            if later:
                epoch += later
                epochs.append((epoch, log.next_offset))
            if announced and later:
                log.begin_epoch(epoch, stamped[0].timestamp)
            log.append(batch(stamped), epoch)
        log.sync()
        served, offset = [], 0
        while offset < log.next_offset:
            frames, offset = log.read_frames(offset, log.next_offset, PREFIX)
            served += messages(frames)
        if close:
            log.close()
        inspector, items = inspect(directory)
        assert of(Finding, items) == []
        found = [record for item in of(Batch, items) for record in item.records()]
        assert [as_message_fields(record) for record in found] == [message_fields(m) for m in served]
        assert (inspector.totals.records, inspector.next_offset) == (len(served), log.next_offset)
        assert inspector.totals.size_bytes == log.size_bytes
        assert inspector.totals.epochs == epochs
        assert len(of(Segment, items)) == len(segments(directory))
        states = {item.state for item in of(Index, items)}
        assert states <= ({"valid"} if close else {"valid", "missing"})
    finally:
        shutil.rmtree(directory)


def message_fields(message):
    headers = {name: value for name, value in message.headers.items() if name not in ("subject", "reply")}
    return (
        message.offset,
        message.timestamp,
        message.key,
        message.value,
        message.subject,
        message.replySubject,
        headers,
    )


def as_message_fields(record):
    headers = {name: value for name, value in record.headers if name not in ("subject", "reply")}
    return (
        record.offset,
        record.timestamp,
        record.key or b"",
        record.value or b"",
        record.subject.decode(),
        record.reply.decode(),
        headers,
    )


def test_what_protobuf_cannot_tell_apart_is_told(tmp_path):
    log = open_log(tmp_path)
    log.append(batch([Record(None, 1, key=b"k"), Record(b"", 2, key=b""), Record(b"", 3)]))
    log.close()
    _, items = inspect(tmp_path)
    (found,) = of(Batch, items)
    assert [(r.key, r.value) for r in found.records()] == [(b"k", None), (b"", b""), (None, b"")]


@given(data=st.binary(max_size=300))
def test_no_bytes_bring_the_parsers_down(data):
    """Whatever they are given, they return or raise FormatError."""
    header = layout.BatchHeader(80 + len(data), 0, 0, 1, 5, 9, 3, 0, 0, 9, -1, -1, -1, 0, 0, len(data))
    for parse in (
        layout.parse_header_block,
        layout.parse_batch_header,
        layout.parse_index,
        lambda given: list(layout.parse_records(header, given)),
        lambda given: layout.check_batch_header(layout.parse_batch_header(layout.BATCH_MAGIC + given)),
    ):
        with suppress(FormatError):
            parse(data)


def test_every_byte_of_records_altered(tmp_path):
    """Under a good checksum too, a record is whole messages or an error."""
    log = open_log(tmp_path)
    log.append(batch([Record(b"value", n, reply=b"r", key=b"key", headers={"h": b"x"}) for n in range(3)]))
    log.close()
    _, items = inspect(tmp_path)
    (found,) = of(Batch, items)
    refused = 0
    for place in range(len(found.body)):
        for value in (0x00, 0x7F, 0xFF):
            body = bytearray(found.body)
            body[place] = value
            try:
                assert len(list(layout.parse_records(found.header, bytes(body)))) == 3
            except FormatError:
                refused += 1
    assert refused > 100


# ---- header blocks ----


def block_of(version, fields):
    content = struct.pack("<8sII", b"LBSEGMNT", version, 16 + len(fields)) + fields
    return (content + crc32c(content).to_bytes(4, "little")).ljust(SEGMENT_HEADER, b"\0")


def version_3(flags=0, end=-1, base=7):
    return struct.pack("<16sqqIIq", STREAM.bytes, base, 99, 3, flags, end)


def test_header_blocks_of_version_3():
    header = layout.parse_header_block(block_of(3, version_3()))
    assert (header.stream_id, header.partition, header.base_offset, header.created) == (STREAM, 3, 7, 99)
    assert not header.sparse
    sparse = layout.parse_header_block(block_of(3, version_3(flags=1, end=20)))
    assert sparse.sparse and sparse.end_offset == 20
    with_keys = bytearray(block_of(3, version_3()))
    with_keys[1024:1056] = b"k" * 32
    assert layout.parse_header_block(bytes(with_keys)) == header


@pytest.mark.parametrize(
    "block",
    [
        block_of(3, version_3(flags=1, end=6)),
        block_of(3, version_3(end=9)),
        block_of(3, version_3())[:1000] + b"x" + block_of(3, version_3())[1001:],
        block_of(3, version_3())[:4095],
        bytes(SEGMENT_HEADER),
    ],
)
def test_impossible_header_blocks(block):
    with pytest.raises(FormatError) as caught:
        layout.parse_header_block(block)
    assert not isinstance(caught.value, UnknownVersionError)


def test_a_header_block_of_a_later_version_is_told_from_a_damaged_one():
    with pytest.raises(UnknownVersionError, match="version 9"):
        layout.parse_header_block(block_of(9, b"whatever" * 20))
    with pytest.raises(UnknownVersionError, match="flags"):
        layout.parse_header_block(block_of(3, version_3(flags=2)))
    damaged = bytearray(block_of(3, version_3()))
    damaged[8] = 9
    with pytest.raises(FormatError, match="checksum") as caught:
        layout.parse_header_block(bytes(damaged))
    assert not isinstance(caught.value, UnknownVersionError)


def test_a_segment_of_a_later_version_is_named_and_passed_over(tmp_path):
    build(tmp_path, segment_max_bytes=300)
    middle = segments(tmp_path)[1]
    content = middle.read_bytes()
    middle.write_bytes(block_of(9, b"whatever" * 20) + content[SEGMENT_HEADER:])
    inspector, items = inspect(tmp_path)
    (finding,) = of(Finding, items)
    assert (finding.kind, finding.damage, finding.path) == ("unknown-version", True, middle)
    assert (finding.first_offset, finding.next_offset) == (3, 6)
    assert inspector.next_offset == 12


# ---- batches of the kinds that are to come ----


def write_batch(offset, body=b"", *, attributes=0, count=0, raw=None, prev_crc=0, last_delta=0, epoch=5):
    fields = struct.pack(
        "<HHqIIQqqqihHII",
        attributes,
        1,
        offset,
        last_delta,
        count,
        epoch,
        55,
        55,
        -1,
        -1,
        0xFFFF - 65536,
        0,
        prev_crc,
        len(body) if raw is None else raw,
    )
    head = layout.BATCH_MAGIC + (80 + len(body)).to_bytes(4, "little")
    return head + crc32c(fields + body).to_bytes(4, "little") + fields + body


def write_record(delta, *, flags=2, expiry=b"", payload=b"\x20\x37\x1a\x01v"):
    size = 16 + len(expiry) + len(payload)
    return struct.pack("<IIHHHH", size, delta, flags, 0, 0, 0) + expiry + payload


def segment_of(directory, *batches, flags=0, end=-1, base=7):
    path = directory / f"{base:020d}.log"
    path.write_bytes(block_of(3, version_3(flags, end, base)) + b"".join(batches))
    return path


def test_a_control_batch_begins_an_epoch_and_takes_no_offset(tmp_path):
    control = write_batch(7, attributes=layout.CONTROL, epoch=4)
    crc = int.from_bytes(control[8:12], "little")
    after = write_batch(7, write_record(0), count=1, prev_crc=crc, epoch=4)
    last = write_batch(8, attributes=layout.CONTROL, epoch=6)
    segment_of(tmp_path, control, after, last)
    inspector, items = inspect(tmp_path)
    assert of(Finding, items) == []
    assert [item.chain for item in of(Batch, items)] == ["unchecked", "good", "unchecked"]
    assert inspector.totals.epochs == [(4, 7), (6, 8)]
    assert (inspector.next_offset, inspector.totals.records) == (8, 1)


@pytest.mark.parametrize(
    "options", [{"count": 1, "raw": 40}, {"count": 1}, {"body": write_record(0)}, {"raw": 1}]
)
def test_a_control_batch_with_content_is_bad(tmp_path, options):
    segment_of(tmp_path, write_batch(7, attributes=layout.CONTROL, **options))
    _, items = inspect(tmp_path)
    assert [item.kind for item in of(Finding, items)] == ["torn-tail"]
    assert of(Batch, items)[0].problem


def test_a_control_batch_may_stand_for_offsets_without_records(tmp_path):
    segment_of(tmp_path, write_batch(7, attributes=layout.CONTROL, last_delta=5))
    inspector, items = inspect(tmp_path)
    assert of(Finding, items) == []
    assert (inspector.totals.records, inspector.next_offset) == (0, 12)


def test_an_encrypted_batch_is_checked_and_not_decoded(tmp_path):
    sealed = write_batch(7, os.urandom(28 + 100), attributes=layout.ENCRYPTED, count=3, raw=100, last_delta=2)
    segment_of(tmp_path, sealed)
    inspector, items = inspect(tmp_path)
    assert of(Finding, items) == []
    (found,) = of(Batch, items)
    assert (found.checksum, found.records()) == ("good", None)
    assert (inspector.totals.unopened, inspector.totals.records, inspector.next_offset) == (1, 3, 10)


@pytest.mark.parametrize(
    ("attributes", "size", "raw"),
    [
        (layout.ENCRYPTED, 100, 100),  # no room for nonce and tag
        (1, 100, 100),  # compressed, and no smaller
        (1, 100, 1 << 31),
        (3, 50, 100),  # no such codec
        (128, 100, 100),  # no such attribute
    ],
)
def test_impossible_coded_batches(tmp_path, attributes, size, raw):
    segment_of(tmp_path, write_batch(7, bytes(size), attributes=attributes, count=1, raw=raw))
    _, items = inspect(tmp_path)
    assert of(Batch, items)[0].problem
    assert [item.kind for item in of(Finding, items)] == ["torn-tail"]


def test_a_record_that_expires(tmp_path):
    body = write_record(0, flags=6, expiry=(12345).to_bytes(8, "little"))
    segment_of(tmp_path, write_batch(7, body, attributes=layout.HAS_EXPIRY, count=1))
    _, items = inspect(tmp_path)
    assert [(r.expiry, r.value) for r in of(Batch, items)[0].records()] == [(12345, b"v")]
    assert of(Finding, items) == []


def test_attributes_that_hide_what_is_in_the_batch(tmp_path):
    body = write_record(0, flags=6, expiry=(12345).to_bytes(8, "little"))
    segment_of(tmp_path, write_batch(7, body, count=1))
    _, items = inspect(tmp_path)
    assert [(item.kind, item.first_offset) for item in of(Finding, items)] == [("records", 7)]


def test_a_sparse_segment_may_lack_batches_and_records(tmp_path):
    first = write_batch(9, write_record(3), count=1, last_delta=4)
    second = write_batch(20, write_record(0), count=1)
    segment_of(tmp_path, first, second, flags=1, end=30)
    segment_of(tmp_path, write_batch(30, write_record(0), count=1, prev_crc=77), base=30)
    inspector, items = inspect(tmp_path)
    assert of(Finding, items) == []
    assert [r.offset for item in of(Batch, items) for r in item.records()] == [12, 20, 30]
    assert (inspector.start_offset, inspector.next_offset) == (7, 31)


def test_a_sparse_segment_keeps_its_order_and_its_range(tmp_path):
    records = [write_batch(offset, write_record(0), count=1) for offset in (9, 8, 10, 30)]
    path = segment_of(tmp_path, *records, flags=1, end=30)
    inspector, items = inspect(tmp_path)
    found = of(Finding, items)
    assert [(f.kind, f.path, f.first_offset, f.next_offset) for f in found] == [
        ("hole", path, 10, 10),
        ("hole", path, 11, 30),
    ]
    assert inspector.next_offset == 30


def test_what_an_interrupted_compaction_has_made_stands_for_what_it_replaces(tmp_path, tmp_path_factory):
    """The inspector sees the log as the next start makes it, whatever files are still there."""
    old = [segment_of(tmp_path, write_batch(n, write_record(0), count=1), base=n) for n in (7, 8, 9)]
    made = segment_of(
        tmp_path_factory.mktemp("made"), write_batch(8, write_record(0), count=1), flags=1, end=9
    )
    made.rename(tmp_path / f"{made.name}.swap")
    for gone in (None, old[0], old[1]):
        if gone is not None:
            gone.unlink()
        inspector, items = inspect(tmp_path)
        assert [(f.kind, f.damage) for f in of(Finding, items)] == [("swap-pending", False)]
        assert [r.offset for item in of(Batch, items) for r in item.records()] == [8, 9]
        assert (inspector.start_offset, inspector.next_offset) == (7, 10)
    log = open_log(tmp_path)
    assert [message.offset for message in read_all(log)] == [8, 9]
    log.close()
    inspector, items = inspect(tmp_path)
    assert of(Finding, items) == []


@pytest.mark.parametrize("base", [7, 8])
def test_a_swap_file_that_the_server_refuses_is_damage(tmp_path, base):
    """One that is not sparse, or under another name."""
    path = segment_of(tmp_path, flags=base - 7, end=20 if base == 8 else -1)
    swap = path.rename(tmp_path / f"{base:020d}.log.swap")
    _, items = inspect(tmp_path)
    finding = next(iter(of(Finding, items)))
    assert (finding.kind, finding.damage, finding.path) == ("swap", True, swap)
    with pytest.raises(LogDamagedError, match="its header is not that"):
        open_log(tmp_path)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_body_that_is_none(tmp_path, compression):
    """Its checksum is good, so only who decompresses it can tell."""
    log = open_log(tmp_path, compression=compression)
    log.append(numbered(0, 20, size=200))
    log.close()
    _, items = inspect(tmp_path)
    (found,) = of(Batch, items)
    assert found.header.codec == compression
    refused = 0
    for place in range(len(found.body)):
        body = bytearray(found.body)
        body[place] ^= 0xFF
        try:
            opened = layout.open_body(found.header.attributes, found.header, bytes(body))
            assert len(list(layout.parse_records(found.header, opened))) == 20
        except FormatError:
            refused += 1
    assert refused > len(found.body) // 2
    for size in range(len(found.body)):
        with pytest.raises(FormatError):
            layout.open_body(found.header.attributes, found.header, found.body[:size])


# ---- what is wrong, and how it is named ----


def test_holes_and_torn_tails_are_named_with_place_and_offsets(tmp_path):
    build(tmp_path, close=False)
    (path,) = segments(tmp_path)
    _, items = inspect(tmp_path)
    positions = [item.position for item in of(Batch, items)]
    content = bytearray(path.read_bytes())
    content[positions[1] + 85] ^= 1
    content[positions[3] + 85] ^= 1
    path.write_bytes(content)
    inspector, items = inspect(tmp_path)
    hole, tail = of(Finding, items)
    assert (hole.kind, hole.damage, hole.path) == ("hole", True, path)
    assert (hole.position, hole.end, hole.first_offset, hole.next_offset) == (*positions[1:3], 3, 6)
    assert (tail.kind, tail.damage, tail.position, tail.end) == (
        "torn-tail",
        False,
        positions[3],
        len(content),
    )
    assert (tail.first_offset, tail.next_offset) == (9, None)
    assert [item.checksum for item in of(Batch, items)] == ["good", "bad", "good", "bad"]
    assert (inspector.totals.batches, inspector.next_offset) == (2, 9)


def test_space_that_is_allocated_ahead_is_no_finding(tmp_path):
    build(tmp_path, close=False)
    os.truncate(segments(tmp_path)[0], 3_000_000)
    inspector, items = inspect(tmp_path)
    assert of(Finding, items) == []
    assert inspector.totals.allocated_bytes == 3_000_000 - SEGMENT_HEADER - inspector.totals.size_bytes
    assert inspector.next_offset == 12


def test_something_in_allocated_space_is_a_torn_tail(tmp_path):
    build(tmp_path, close=False)
    path = segments(tmp_path)[0]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + bytes(2_000_000) + b"x" + bytes(500))
    _, items = inspect(tmp_path)
    (finding,) = of(Finding, items)
    assert (finding.kind, finding.position) == ("torn-tail", size)


def test_a_tail_that_a_running_server_may_be_writing_is_no_finding(tmp_path):
    build(tmp_path, close=False)
    with segments(tmp_path)[0].open("ab") as file:
        file.write(b"unfinished")
    inspector, items = inspect(tmp_path, live=True)
    assert of(Finding, items) == []
    assert inspector.totals.tail_bytes == 10


def test_a_payload_that_holds_a_batch_does_not_turn_a_torn_tail_into_damage(tmp_path):
    """As the log itself does, the search passes over a bad batch whose header agrees with itself."""
    build(tmp_path, close=False)
    path = segments(tmp_path)[0]
    whole = write_batch(50, write_record(0), count=1)
    log = open_log(tmp_path)
    log.append(batch([Record(b"1:" + whole * 3, 10**6)]), epoch=3)
    log.sync()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    _, items = inspect(tmp_path)
    assert [item.kind for item in of(Finding, items)] == ["torn-tail"]


def test_an_index_that_is_whole_and_wrong_is_damage(tmp_path):
    """The server believes it, so a reader would look in the wrong place."""
    log = open_log(tmp_path / "a")
    for n in range(0, 60, 3):
        log.append(numbered(n, 3, size=900))
    log.close()
    other = open_log(tmp_path / "b")
    for n in range(0, 60, 2):
        other.append(numbered(n, 2, size=900))
    other.close()
    (index,) = (tmp_path / "a").glob("*.index")
    shutil.copy(next((tmp_path / "b").glob("*.index")), index)
    size = os.path.getsize(index.with_suffix(".log"))
    _, items = inspect(tmp_path / "a")
    kinds = [item.kind for item in of(Finding, items)]
    told = layout.parse_index(index.read_bytes()).end
    assert told != size
    assert kinds == (["lost"] if told > size else ["index-wrong"])
    shutil.copy(next((tmp_path / "b").glob("*.log")), index.with_suffix(".log"))
    shutil.copy(next((tmp_path / "b").glob("*.index")), index)
    _, items = inspect(tmp_path / "a")
    assert of(Finding, items) == []


def test_files_that_do_not_belong_to_the_log(tmp_path):
    build(tmp_path, segment_max_bytes=300)
    names = ("x.tmp", "00000000000000000003.log.cleaned", "00000000000000000003.log.damaged", "notes.txt")
    for name in (*names, "compaction"):
        (tmp_path / name).write_bytes(b"?")
    _, items = inspect(tmp_path)
    found = sorted((item.kind, item.path.name) for item in of(Finding, items))
    assert found == [
        ("kept", "00000000000000000003.log.damaged"),
        ("leftover", "00000000000000000003.log.cleaned"),
        ("leftover", "x.tmp"),
        ("unknown", "notes.txt"),
    ]
    assert not any(item.damage for item in of(Finding, items))


def test_names_of_segments_on_things_that_are_none(tmp_path):
    """A directory, a pipe, a link to nowhere, an offset that none can be: findings; the rest is read."""
    build(tmp_path)
    (tmp_path / "00000000000000000100.log").mkdir()
    os.mkfifo(tmp_path / "00000000000000000101.log")
    (tmp_path / "00000000000000000102.log").symlink_to("nowhere")
    (tmp_path / "99999999999999999999.log").write_bytes(b"?" * 9000)
    inspector, items = inspect(tmp_path)
    found = [(int(item.path.stem), item.kind) for item in of(Finding, items)]
    assert found == [
        (100, "unreadable"),
        (102, "unreadable"),
        (10**20 - 1, "half-made"),
        (101, "missing"),
        (101, "header"),
    ]
    assert inspector.totals.records == 12


def test_the_path_in_a_data_directory_tells_whose_log_it_is(tmp_path):
    directory = tmp_path / str(uuid.UUID(int=7)) / "3"
    directory.mkdir(parents=True)
    build(directory)
    _, items = inspect(directory)
    assert [item.kind for item in of(Finding, items)] == ["foreign"]
    right = tmp_path / str(STREAM) / "3"
    right.parent.mkdir()
    directory.rename(right)
    _, items = inspect(right)
    assert of(Finding, items) == []


def test_segments_in_front_of_the_offset_wanted_are_not_read(tmp_path):
    build(tmp_path, segment_max_bytes=300)
    read = []
    inspector, items = inspect(tmp_path, first_offset=9, read=read.append)
    assert [item.base_offset for item in of(Segment, items)] == [9]
    assert sum(read) == segments(tmp_path)[3].stat().st_size - SEGMENT_HEADER
    assert (inspector.start_offset, inspector.next_offset) == (9, 12)


def test_memory_is_bounded_by_what_is_there_not_by_what_a_header_says(tmp_path):
    """A length of 100 MiB in a small file is compared with the file before anything is read."""
    path = tmp_path / "small"
    head = layout.BATCH_MAGIC + (100 << 20).to_bytes(4, "little")
    path.write_bytes(head.ljust(500, b"\1"))
    read = []
    with File(path, read.append) as file:
        with pytest.raises(FormatError, match="ends inside"):
            file.batch(0)
    assert sum(read) == 500
