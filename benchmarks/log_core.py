"""Speed of the commit log alone: append, sync, read as gRPC frames, scan, compact. Prints one JSON object.

No network and no server: these are the ceilings the server's own figures are to be held against. Batches have
the size that a busy ingest connection makes. Records are built before the clock starts, reads come from the
page cache.

    python benchmarks/log_core.py [--megabytes 512] [--directory .]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from pathlib import Path
from random import Random

from liftbridge._log import CRC32C_IMPLEMENTATION, crc32c
from liftbridge.log import BatchBuilder, Log, LogOptions, Throttle

BATCH_BYTES = 256 * 1024
PREFIX = b"\x2a\x05bench"
MIB = 1 << 20
TIMESTAMP = 1_700_000_000_000_000_000


def full_batch(value_size: int) -> BatchBuilder:
    """A batch as large as ingest makes them."""
    builder = BatchBuilder()
    value = bytes(value_size)
    while builder.size < BATCH_BYTES:
        builder.add_record(value=value, timestamp=TIMESTAMP, subject=b"bench.subject")
    return builder


def measure(directory: Path, value_size: int, total_bytes: int) -> dict[str, float]:
    """Write and read one log; MiB are of batches as stored."""
    stream_id = uuid.uuid4()
    options = LogOptions()
    log = Log.open(directory, stream_id=stream_id, partition=0, options=options)
    builder = full_batch(value_size)

    started = time.perf_counter()
    while log.size_bytes < total_bytes:
        log.append(builder)
    append = time.perf_counter() - started
    log.sync()

    syncs = []
    for _ in range(200):
        log.append(builder)
        started = time.perf_counter()
        log.sync()
        syncs.append(time.perf_counter() - started)
    syncs.sort()

    records, stored = log.next_offset, log.size_bytes
    forward = walk(log, records)
    backward = walk_reverse(log, records)
    log.close()

    for index in directory.glob("*.index"):
        index.unlink()
    started = time.perf_counter()
    log = Log.open(directory, stream_id=stream_id, partition=0, options=options)
    scan = time.perf_counter() - started
    assert log.next_offset == records
    log.close()

    appended = stored - 200 * builder.size
    return {
        "append_mib_s": appended / append / MIB,
        "append_records_s": appended / builder.size * builder.count / append,
        "sync_256kib_p50_ms": syncs[len(syncs) // 2] * 1e3,
        "sync_256kib_p99_ms": syncs[len(syncs) * 99 // 100] * 1e3,
        "read_frames_s": records / forward,
        "read_mib_s": stored / forward / MIB,
        "read_reverse_frames_s": records / backward,
        "recover_mib_s": stored / scan / MIB,
    }


def walk(log: Log, records: int) -> float:
    """Seconds to read the log as a subscriber would; the first of two passes fills the page cache."""
    for _ in range(2):
        started, offset = time.perf_counter(), 0
        while offset < records:
            _, offset = log.read_frames(offset, records, PREFIX)
    return time.perf_counter() - started


def walk_reverse(log: Log, records: int) -> float:
    """Seconds to read the log from its end to its start."""
    started, offset = time.perf_counter(), records - 1
    while offset >= 0:
        _, offset = log.read_frames_reverse(offset, 0, PREFIX)
    return time.perf_counter() - started


def compaction_speed(directory: Path, value_size: int, total_bytes: int) -> dict[str, float]:
    """Compact one log of which half remains; MiB are of batches as they were, and every one of them is dirty.

    Most keys have two records, in random order. What compaction waits for the disk is in the figure.
    """
    options = LogOptions(compact=True, segment_max_bytes=64 * MIB)
    log = Log.open(directory, stream_id=uuid.uuid4(), partition=0, options=options)
    random = Random(1)
    keys = max(total_bytes // (value_size + 100) // 2, 1)
    value = bytes(value_size)
    while log.size_bytes < total_bytes:
        builder = BatchBuilder()
        while builder.size < BATCH_BYTES:
            key = b"customer-%d" % random.randrange(keys)
            builder.add_record(key=key, value=value, timestamp=TIMESTAMP, subject=b"bench.subject")
        log.append(builder)
    log.sync()
    before = log.size_bytes
    started = time.perf_counter()
    did = log.compact(TIMESTAMP, log.next_offset, Throttle())
    seconds = time.perf_counter() - started
    log.close()
    return {
        "compact_mib_s": did.clean_offset / log.next_offset * before / seconds / MIB,
        "compact_records_s": did.clean_offset / seconds,
        "compact_kept": log.size_bytes / before,
    }


def checksum_speed() -> float:
    """GiB/s of CRC-32C over data in the cache."""
    data = bytes(BATCH_BYTES)
    started = time.perf_counter()
    for _ in range(2000):
        crc32c(data)
    return 2000 * len(data) / (time.perf_counter() - started) / (1 << 30)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=512, help="size of each log written")
    parser.add_argument("--directory", type=Path, default=Path(), help="where to write it")
    arguments = parser.parse_args()
    results: dict[str, object] = {
        "crc32c": CRC32C_IMPLEMENTATION,
        "crc32c_gib_s": checksum_speed(),
    }
    for value_size in (128, 1024):
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            measured = measure(Path(directory), value_size, arguments.megabytes * MIB)
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            measured |= compaction_speed(Path(directory), value_size, arguments.megabytes * MIB)
        results[f"{value_size}_bytes"] = measured
    print(json.dumps(results, indent=2, default=float))


if __name__ == "__main__":
    main()
