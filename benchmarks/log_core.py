"""Speed of the commit log alone: append, sync, read as gRPC frames, recover, compact.

No network and no server: these are the ceilings the server's own figures are to be held against. Batches have
the size that a busy ingest connection makes. Records are built before the clock starts, reads come from the
page cache. Everything is done `--repeat` times; tables show the median, and the smallest and largest figure.
Before each log as many bytes are written to a bare file and removed, twice: memory that a virtual machine has
not used for a while costs its first user several times what writing to it costs, and that is not the log's.
The second time is in the table, as the ceiling of what appends can reach.

    python benchmarks/log_core.py [--megabytes 512] [--repeat 3] [--directory .] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections import defaultdict
from pathlib import Path
from random import Random

from tables import Spent, machine_line, spread, table

from liftbridge._log import CRC32C_IMPLEMENTATION, crc32c
from liftbridge.bench import machine
from liftbridge.bench.report import percentile
from liftbridge.log import BatchBuilder, Log, LogOptions, Throttle

BATCH_BYTES = 256 * 1024
PREFIX = b"\x2a\x05bench"
MIB = 1 << 20
GIB = 1 << 30
TIMESTAMP = 1_700_000_000_000_000_000
SYNCS = 200
# What a kill leaves behind the last index file of an active segment is at most this (log.CHECKPOINT_BYTES).
CHECKPOINT_BYTES = 64 * MIB
STREAM = uuid.UUID(int=1)
# Rows of the main table: name of the figure, what it is called.
WORK = {
    "pwrite": "bare pwrite of 256 KiB",
    "append": "append",
    "read": "read, oldest first",
    "read_reverse": "read, newest first",
    "recover": "recover, no index file",
    "compact": "compact",
}

Figures = dict[str, list[float]]


def full_batch(value_size: int) -> BatchBuilder:
    """A batch as large as ingest makes them."""
    builder = BatchBuilder()
    value = bytes(value_size)
    while builder.size < BATCH_BYTES:
        builder.add_record(value=value, timestamp=TIMESTAMP, subject=b"bench.subject")
    return builder


def open_log(directory: Path, options: LogOptions | None = None) -> Log:
    return Log.open(directory, stream_id=STREAM, partition=0, options=options or LogOptions())


def note(figures: Figures, name: str, spent: Spent, stored: int, records: int) -> None:
    """Add what was done with so many bytes of batches, as stored, and records."""
    figures[f"{name}_gib_s"].append(stored / GIB / spent.wall)
    figures[f"{name}_gib_cpu_s"].append(stored / GIB / spent.cpu)
    figures[f"{name}_records_s"].append(records / spent.wall)


def write_bare(path: Path, total_bytes: int, figures: Figures) -> None:
    """Write a file of that many bytes as fast as it goes, twice, and remove it."""
    block = Random(1).randbytes(BATCH_BYTES)
    for counted in (False, True):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with Spent() as spent:
            for position in range(0, total_bytes, BATCH_BYTES):
                os.pwrite(fd, block, position)
        os.close(fd)
        path.unlink()
        if counted:
            note(figures, "pwrite", spent, total_bytes, 0)


def measure(directory: Path, value_size: int, total_bytes: int, figures: Figures) -> None:
    """Write, read and recover one log."""
    write_bare(directory / "bare", total_bytes, figures)
    log = open_log(directory)
    builder = full_batch(value_size)
    with Spent() as spent:
        append_until(log, builder, total_bytes)
    note(figures, "append", spent, log.size_bytes, log.next_offset)
    log.sync()

    waits = []
    for _ in range(SYNCS):
        log.append(builder)
        with Spent() as spent:
            log.sync()
        waits.append(spent.wall * 1e3)
    figures["sync_256kib_p50_ms"].append(percentile(waits, 50))
    figures["sync_256kib_p99_ms"].append(percentile(waits, 99))

    walk(log)  # fills the page cache
    note(figures, "read", walk(log), log.size_bytes, log.next_offset)
    note(figures, "read_reverse", walk_reverse(log), log.size_bytes, log.next_offset)
    recover(directory, log, builder, figures)


def append_until(log: Log, builder: BatchBuilder, total_bytes: int) -> None:
    while log.size_bytes < total_bytes:
        log.append(builder)


def walk(log: Log) -> Spent:
    """Read the log as a subscriber would."""
    with Spent() as spent:
        offset = 0
        while offset < log.next_offset:
            _, offset = log.read_frames(offset, log.next_offset, PREFIX)
    return spent


def walk_reverse(log: Log) -> Spent:
    """Read the log from its end to its start."""
    with Spent() as spent:
        offset = log.next_offset - 1
        while offset >= 0:
            _, offset = log.read_frames_reverse(offset, 0, PREFIX)
    return spent


def recover(directory: Path, log: Log, builder: BatchBuilder, figures: Figures) -> None:
    """Open the log as a kill leaves it: with the most there can be behind its last index file, and without
    any index file.

    A log that is not closed leaves what a kill leaves.
    """
    append_until(log, builder, log.size_bytes + CHECKPOINT_BYTES)
    log.sync()  # writes the index file
    append_until(log, builder, log.size_bytes + CHECKPOINT_BYTES - 2 * builder.size)
    log.sync()  # opening brings to the disk what is not there; the figures are not to be about the disk
    stored, records = log.size_bytes, log.next_offset
    del log
    with Spent() as spent:
        log = open_log(directory)
    assert log.next_offset == records
    figures["checkpoint_scanned_mib"].append(log.scanned_bytes / MIB)
    figures["checkpoint_ms"].append(spent.wall * 1e3)
    figures["checkpoint_cpu_ms"].append(spent.cpu * 1e3)
    del log
    for index in directory.glob("*.index"):
        index.unlink()
    with Spent() as spent:
        log = open_log(directory)
    assert (log.next_offset, log.scanned_bytes) == (records, stored)
    note(figures, "recover", spent, stored, records)
    figures["recover_s_per_gib"].append(spent.wall * GIB / stored)
    figures["recover_cpu_s_per_gib"].append(spent.cpu * GIB / stored)
    log.close()


def prepare_compaction(directory: Path, value_size: int, total_bytes: int) -> LogOptions:
    """Write a log of which less than half remains: most keys have two records or more, in random order."""
    options = LogOptions(compact=True, segment_max_bytes=64 * MIB)
    log = open_log(directory, options)
    random = Random(1)
    keys = max(total_bytes // (value_size + 100) // 2, 1)
    value = bytes(value_size)
    while log.size_bytes < total_bytes:
        builder = BatchBuilder()
        while builder.size < BATCH_BYTES:
            key = b"customer-%d" % random.randrange(keys)
            builder.add_record(key=key, value=value, timestamp=TIMESTAMP, subject=b"bench.subject")
        log.append(builder)
    log.close()
    return options


def compact(directory: Path, options: LogOptions, figures: Figures) -> None:
    """Compact a log all of which is dirty; what that waits for the disk is in the figure."""
    log = open_log(directory, options)
    before = log.size_bytes
    with Spent() as spent:
        did = log.compact(TIMESTAMP, log.next_offset, Throttle())
    compacted = did.clean_offset / log.next_offset * before
    note(figures, "compact", spent, int(compacted), did.clean_offset)
    figures["compact_kept"].append(log.size_bytes / before)
    log.close()


def checksum_speed() -> float:
    """GiB/s of CRC-32C over data in the processor's cache."""
    data = bytes(BATCH_BYTES)
    with Spent() as spent:
        for _ in range(2000):
            crc32c(data)
    return 2000 * len(data) / spent.cpu / GIB


def run(directory: Path, value_size: int, total_bytes: int, repeat: int) -> Figures:
    """All workloads with one size of values, on new logs each time."""
    figures: Figures = defaultdict(list)
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=directory) as own:
            measure(Path(own), value_size, total_bytes, figures)
    with tempfile.TemporaryDirectory(dir=directory) as own:
        template = Path(own) / "template"
        options = prepare_compaction(template, value_size, total_bytes)
        for number in range(repeat):
            copy = Path(own) / str(number)
            shutil.copytree(template, copy)
            compact(copy, options, figures)
            shutil.rmtree(copy)
    return figures


def tell(results: dict[int, Figures], megabytes: int) -> None:
    """Print the tables."""
    print(f"### log, {megabytes:,} MiB in batches of 256 KiB\n")
    rows = [
        [
            label,
            f"{size:,}",
            spread(figures[f"{name}_gib_s"], 2),
            spread(figures[f"{name}_gib_cpu_s"], 2),
            spread(figures[f"{name}_records_s"], 0),
        ]
        for name, label in WORK.items()
        for size, figures in results.items()
    ]
    print(table(["", "bytes in a value", "GiB/s", "GiB per CPU second", "records/s"], rows))
    head = [
        "bytes in a value",
        "no index file: s/GiB",
        "CPU s/GiB",
        "after a checkpoint: MiB scanned",
        "ms",
        "CPU ms",
        "sync of 256 KiB p50 / p99, ms",
    ]
    names = ("recover_s_per_gib", "recover_cpu_s_per_gib", "checkpoint_scanned_mib", "checkpoint_ms")
    rows = [
        [
            f"{size:,}",
            *(spread(figures[name], 2) for name in (*names, "checkpoint_cpu_ms")),
            f"{spread(figures['sync_256kib_p50_ms'], 2)} / {spread(figures['sync_256kib_p99_ms'], 2)}",
        ]
        for size, figures in results.items()
    ]
    print(table(head, rows))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=512, help="size of each log written (512)")
    parser.add_argument("--repeat", type=int, default=3, help="how often everything is done (3)")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the logs are written (.)")
    parser.add_argument("--json", type=Path, help="file for all figures, each repetition included")
    arguments = parser.parse_args()
    facts = machine.describe()
    checksum = checksum_speed()
    results = {
        size: run(arguments.directory, size, arguments.megabytes * MIB, arguments.repeat)
        for size in (128, 1024)
    }
    print(machine_line(facts))
    tell(results, arguments.megabytes)
    print(f"CRC-32C ({CRC32C_IMPLEMENTATION}): {checksum:.1f} GiB per CPU second.")
    if arguments.json is not None:
        everything = {
            "machine": facts,
            "megabytes": arguments.megabytes,
            "crc32c": CRC32C_IMPLEMENTATION,
            "crc32c_gib_cpu_s": checksum,
            "values": results,
        }
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
