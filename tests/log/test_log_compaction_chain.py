"""A sparse segment made by hand, and the segment behind it: the chain of checksums begins anew there."""

import struct

from log_helpers import BATCH_HEADER, SEGMENT_HEADER, STREAM, numbered, numbers, open_log, read_all, segments

from liftbridge._log import crc32c
from liftbridge.log.header import SegmentHeader


def test_a_log_opens_behind_a_segment_that_has_lost_its_last_batch(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=2 * numbered(8, 2).size)
    for n in range(0, 8, 2):
        log.append(numbered(n, 2))
    log.close()
    first, _ = segments(tmp_path)
    content = first.read_bytes()
    (length,) = struct.unpack_from("<I", content, SEGMENT_HEADER + 4)
    assert length > BATCH_HEADER
    header = SegmentHeader(STREAM, 3, 0, 1, end_offset=4).encode()
    first.write_bytes(header + content[SEGMENT_HEADER : SEGMENT_HEADER + length])
    for path in tmp_path.glob("*.index"):
        path.unlink()
    for _ in range(2):  # by a scan, and by the index that this leaves
        log = open_log(tmp_path)
        assert log.damage == ()
        assert numbers(read_all(log)) == [0, 1, 4, 5, 6, 7]
        log.close()


def test_the_first_batch_of_a_sparse_segment_need_not_be_at_its_beginning(tmp_path):
    log = open_log(tmp_path, segment_max_bytes=2 * numbered(8, 2).size)
    for n in range(0, 8, 2):
        log.append(numbered(n, 2))
    log.close()
    first, _ = segments(tmp_path)
    content = first.read_bytes()
    (length,) = struct.unpack_from("<I", content, SEGMENT_HEADER + 4)
    second = bytearray(content[SEGMENT_HEADER + length :])
    struct.pack_into("<I", second, 72, 0)
    struct.pack_into("<I", second, 8, crc32c(second[12:]))
    first.write_bytes(SegmentHeader(STREAM, 3, 0, 1, end_offset=4).encode() + second)
    for path in tmp_path.glob("*.index"):
        path.unlink()
    log = open_log(tmp_path)
    assert log.damage == ()
    assert numbers(read_all(log)) == list(range(2, 8))
    log.close()
