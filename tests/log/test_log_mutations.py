"""Every kind of damage at every kind of place, judged twice: by the log itself, and by `LogInspector`.

A small log of several segments, once stopped cleanly and once not, is copied, and one thing in the copy is
altered: bytes flipped, zeroed, cut off, cut out or repeated in every region of every kind of file, batches
repeated, swapped and removed, files deleted and copied under another name. Then:

- nothing crashes, and no message is served that was not written at its offset, or twice, or out of order;
- what cannot be had any more is covered by a finding, and a finding of damage is no false alarm;
- a torn tail is called one by both, with the same bytes.

Some hundred mutations, chosen by a seed, run each time. With LIFTBRIDGE_TORTURE_ROUNDS set, all of them do:
every byte is flipped, every file cut at every byte, and that many stretches of each region zeroed, cut out
and repeated.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from log_helpers import (
    Record,
    batch,
    expected,
    open_log,
    read_past_damage,
    read_past_damage_reverse,
    segments,
)

from liftbridge.log import CorruptBatchError, Log, LogDamagedError, LogError
from liftbridge.log.inspect import Batch, Finding, Index, LogInspector, Segment
from liftbridge.log.start import START_NAME
from liftbridge.proto import api_pb2

ROUNDS = int(os.environ.get("LIFTBRIDGE_TORTURE_ROUNDS", "0"))
SAMPLES = 6  # places in each region, in the short form
SHORT = 130  # mutations of each kind that run in the short form
OPTIONS = {"segment_max_bytes": 7400}
ALLOCATED = 3000
NAMES = ["00000000000000000000", "00000000000000000012", "00000000000000000024"]


# ---- the log that is damaged ----


def build(directory: Path, clean: bool) -> dict[int, Record]:
    """Three segments, with values long enough for several index entries; returns what was written.

    Without a clean stop, the last one has space behind its data, as it is allocated ahead.
    """
    log = open_log(directory, **OPTIONS)
    written: dict[int, Record] = {}
    for base in range(0, 36, 3):
        records = [
            Record(b"%d:" % n + b"v" * 700, 1000 * n, reply=b"r" * (n % 3), key=b"key-%d" % (n % 5))
            for n in range(base, base + 3)
        ]
        records[1] = Record(None, records[1].timestamp, key=b"gone", headers={"h": b"%d" % base})
        assert log.append(batch(records), epoch=1 + base // 10) == base
        written.update(zip(range(base, base + 3), records, strict=True))
    log.sync()
    if clean:
        log.close()
    else:
        last = segments(directory)[-1]
        os.truncate(last, last.stat().st_size + ALLOCATED)
    assert [path.stem for path in segments(directory)] == NAMES
    return written


@dataclass(frozen=True)
class Region:
    """A stretch of a file that means one thing."""

    file: str
    name: str
    start: int
    end: int


def regions(directory: Path) -> Iterator[Region]:
    """Every region of every file, from what the inspector says of the undamaged log."""
    end = 0
    for item in LogInspector(directory).items():
        match item:
            case Segment():
                yield Region(item.path.name, "segment header", 0, 128)
                yield Region(item.path.name, "rest of the header block", 128, 4096)
            case Batch():
                body, end = item.position + 80, item.position + item.header.length
                yield Region(item.path.name, "batch header", item.position, body)
                yield Region(item.path.name, "record header", body, body + 28)
                yield Region(item.path.name, "payload", body + 28, end)
            case Index(content=content, path=path) if content is not None:
                entries = content.start + len(content.data)
                yield Region(path.name, "index summary", 0, content.start)
                yield Region(path.name, "index entries", content.start, entries)
                yield Region(path.name, "index digest", entries, entries + 16)
    yield Region(START_NAME, "start", 0, (directory / START_NAME).stat().st_size)
    last = segments(directory)[-1]
    if last.stat().st_size > end:
        yield Region(last.name, "allocated space", end, last.stat().st_size)


# ---- what is done to it ----


@dataclass(frozen=True)
class Mutation:
    """A name, and what it does to a copy of the log."""

    name: str
    apply: Callable[[Path], None]


def rewriting(name: str, file: str, change: Callable[[bytearray], None]) -> Mutation:
    def apply(directory: Path) -> None:
        content = bytearray((directory / file).read_bytes())
        change(content)
        (directory / file).write_bytes(content)

    return Mutation(f"{name} of {file}", apply)


def flipped(region: Region, at: int, bit: int) -> Mutation:
    def change(content: bytearray) -> None:
        content[at] ^= 1 << bit

    return rewriting(f"bit {bit} at {at} ({region.name})", region.file, change)


def cut_off(region: Region, at: int) -> Mutation:
    def change(content: bytearray) -> None:
        del content[at:]

    return rewriting(f"everything from {at} on ({region.name}) cut off", region.file, change)


def zeroed(region: Region, start: int, end: int) -> Mutation:
    def change(content: bytearray) -> None:
        content[start:end] = bytes(min(end, len(content)) - start)

    return rewriting(f"zeros from {start} to {end} ({region.name})", region.file, change)


def cut_out(region: Region, start: int, end: int) -> Mutation:
    def change(content: bytearray) -> None:
        del content[start:end]

    return rewriting(f"bytes {start} to {end} ({region.name}) cut out", region.file, change)


def repeated(region: Region, start: int, end: int) -> Mutation:
    def change(content: bytearray) -> None:
        content[end:end] = content[start:end]

    return rewriting(f"bytes {start} to {end} ({region.name}) repeated", region.file, change)


def byte_mutations(region: Region, chance: random.Random) -> Iterator[Mutation]:
    """All kinds in one region: at a few places, or in the long form at every one."""
    places = range(region.start, region.end)
    few = places if ROUNDS else sorted(chance.sample(places, min(SAMPLES, len(places))))
    for at in few:
        yield flipped(region, at, chance.randrange(8))
        yield cut_off(region, at)
    for _ in range(max(1, ROUNDS)):
        for change in (zeroed, cut_out, repeated):
            yield change(region, region.start, region.end)
            for at in chance.sample(places, min(2, len(places))):
                yield change(region, at, at + chance.choice([1, 4, 80, 500, 5000]))


def batch_mutations(directory: Path) -> Iterator[Mutation]:
    """Whole good batches in places that are not theirs."""
    places: dict[str, list[slice]] = {}
    for item in LogInspector(directory).items():
        if isinstance(item, Batch):
            stretch = slice(item.position, item.position + item.header.length)
            places.setdefault(item.path.name, []).append(stretch)
    for file, batches in places.items():
        for n, one in enumerate(batches):

            def doubled(content: bytearray, one: slice = one) -> None:
                content[one.stop : one.stop] = content[one]

            def appended(content: bytearray, one: slice = one) -> None:
                content += content[one]

            def removed(content: bytearray, one: slice = one) -> None:
                del content[one]

            yield rewriting(f"batch {n} doubled", file, doubled)
            yield rewriting(f"batch {n} appended again", file, appended)
            yield rewriting(f"batch {n} removed", file, removed)
            for other in batches[n + 1 :]:

                def swapped(content: bytearray, one: slice = one, other: slice = other) -> None:
                    first, second = content[one], content[other]
                    content[other], content[one] = first, second

                def overwritten(content: bytearray, one: slice = one, other: slice = other) -> None:
                    if one.stop - one.start == other.stop - other.start:
                        content[other] = content[one]

                yield rewriting(f"batch {n} swapped with that at {other.start}", file, swapped)
                yield rewriting(f"batch {n} written over that at {other.start}", file, overwritten)


def file_mutations(directory: Path) -> Iterator[Mutation]:
    """Whole files deleted, emptied, and copied over each other or under a new name."""
    files = sorted(path.name for path in directory.iterdir())
    for file in files:
        yield Mutation(f"{file} deleted", lambda copy, file=file: (copy / file).unlink())
        yield Mutation(f"{file} emptied", lambda copy, file=file: (copy / file).write_bytes(b""))
        suffix = Path(file).suffix
        strange = [f"{n:020d}{suffix}" for n in (6, 18, 36, 99)] + [file + ".tmp", file + ".swap", "notes"]
        for name in [other for other in files if other != file and other.endswith(suffix)] + strange:
            yield Mutation(
                f"{file} copied to {name}",
                lambda copy, file=file, name=name: shutil.copy(copy / file, copy / name),
            )


# ---- what the two make of it ----


@dataclass
class Served:
    """What the log serves of a damaged copy: the offsets read, those that errors tell to be lost.

    `damaged` says that opening or reading has told of damage; `refused` is why the log did not open, `torn`
    how many bytes were cut off when it did.
    """

    offsets: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    damaged: bool = False
    refused: LogError | None = None
    torn: int = 0


def serve(directory: Path, written: dict[int, Record]) -> Served:
    """Open and read the log as a server would, in both directions.

    Only files that are in each other's place may keep it from opening; any other damage is a hole.
    """
    served = Served()
    try:
        log = open_log(directory, **OPTIONS)
    except LogDamagedError as error:
        assert str(directory) in str(error)
        assert re.search("its header (says|is not that)|the next file begins at", error.reason)
        served.refused, served.damaged = error, True
        return served
    served.torn = log.truncated_bytes
    found, errors = read_past_damage(log)
    check(found, written)
    assert read_past_damage_reverse(log) == found[::-1]
    served.offsets = {message.offset for message in found}
    served.lost = {offset for error in errors for offset in range(error.first_offset, error.next_offset)}
    served.damaged = bool(errors or log.damage)
    search(log, written, served)
    log.close()
    return served


def check(found: list[api_pb2.Message], written: dict[int, Record]) -> None:
    """Whether these are messages that were written, in their order."""
    for message in found:
        assert message == expected(message.offset, written[message.offset])
    offsets = [message.offset for message in found]
    assert offsets == sorted(set(offsets)), "a message came twice, or out of order"


def search(log: Log, written: dict[int, Record], served: Served) -> None:
    """A search by time finds a message that can be had, and the first such one where nothing is damaged."""
    for timestamp in (0, 17_500, 40_000):
        try:
            found = log.offset_at_or_after(timestamp)
        except CorruptBatchError:
            assert served.damaged
            continue
        wanted = [offset for offset in served.offsets if written[offset].timestamp >= timestamp]
        assert found == min(wanted, default=log.next_offset)


def covered(findings: list[Finding], missing: set[int]) -> set[int]:
    """Those of the missing offsets that a finding accounts for."""
    told = set()
    for finding in findings:
        if finding.first_offset is not None:
            end = 1 << 62 if finding.next_offset is None else finding.next_offset
            told |= {offset for offset in missing if finding.first_offset <= offset < end}
    return told


def judge(mutation: Mutation, directory: Path, written: dict[int, Record], clean: bool) -> None:
    """Hold what the log does against what the inspector says, and both against what was written."""
    inspector = LogInspector(directory)
    items = list(inspector.items())
    findings = [item for item in items if isinstance(item, Finding)]
    whole = {
        record.offset
        for item in items
        if isinstance(item, Batch) and item.problem is None
        for record in item.records() or ()
    }
    damage = [finding for finding in findings if finding.damage]
    served = serve(directory, written)
    assert whole <= set(written)
    missing = set(written) - whole
    told = covered(findings, missing) | without_a_trace(missing, clean)
    assert told >= missing, f"{mutation.name}: {missing} but {findings}"
    assert bool(damage) == served.damaged, f"{mutation.name}: {damage} but {served}"
    if served.refused is None:
        assert served.offsets == whole, f"{mutation.name}: {findings}"
        if not damage:  # a damaged last segment is sealed as it is
            assert served.torn == inspector.totals.tail_bytes, f"{mutation.name}: {findings}"
        assert not served.lost & whole, mutation.name
    torn = [finding for finding in findings if finding.kind in ("torn-tail", "half-made") and finding.end]
    assert bool(torn) == bool(inspector.totals.tail_bytes), mutation.name


def without_a_trace(missing: set[int], clean: bool) -> set[int]:
    """Those of the missing offsets that nothing in the directory can tell of.

    What an unclean stop leaves looks the same whether it lost its last batches or they were never written, if
    it ends with a whole one.
    """
    if not clean and missing == set(range(min(missing, default=0), 36)) and min(missing, default=0) >= 24:
        return missing
    return set()


def all_mutations(directory: Path) -> dict[str, list[Mutation]]:
    """Every mutation of the log by its kind; in the short form as many of each as the seed chooses."""
    chance = random.Random(20240229)
    found = {
        "bytes": [m for region in regions(directory) for m in byte_mutations(region, chance)],
        "batches": list(batch_mutations(directory)),
        "files": list(file_mutations(directory)),
    }
    if not ROUNDS:
        found = {kind: chance.sample(some, min(SHORT, len(some))) for kind, some in found.items()}
    return found


@pytest.mark.timeout(0 if ROUNDS else 120)
@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "killed"])
@pytest.mark.parametrize("kind", ["bytes", "batches", "files"])
def test_mutations(tmp_path, kind, clean):
    written = build(tmp_path / "log", clean)
    mutations = all_mutations(tmp_path / "log")[kind]
    assert len(mutations) >= 50
    for mutation in mutations:
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "log", copy)
        mutation.apply(copy)
        judge(mutation, copy, written, clean)
        shutil.rmtree(copy)


@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "killed"])
def test_an_unaltered_log_has_no_findings(tmp_path, clean):
    """What the mutations are compared with: without one, both say that all is well."""
    written = build(tmp_path, clean)
    inspector = LogInspector(tmp_path)
    assert not [item for item in inspector.items() if isinstance(item, Finding)]
    assert (inspector.totals.records, inspector.next_offset) == (36, 36)
    served = serve(tmp_path, written)
    assert not served.damaged and served.offsets == set(range(36))
