"""What `liftbridge log dump` prints: the items of a `LogInspector`, for people or as JSON lines.

For people, bytes are shown as text when they are UTF-8, with everything that is not printable escaped, as
hexadecimal digits otherwise, and cut when they are long: nothing that a publisher has sent reaches the
terminal as a control sequence. In JSON bytes are complete: `base64`, and `text` beside it for UTF-8.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from liftbridge.log.inspect import Batch, Finding, Index, LogInspector, Segment
from liftbridge.log.layout import FormatError, Record

_SHOWN = 64  # characters of a value that people get to see


@dataclass(frozen=True)
class Limits:
    """What of a log is printed: from an offset on, so many messages (or batches), and which parts of them."""

    offset: int
    count: int | None
    values: bool
    batches_only: bool
    index: bool
    as_json: bool


def dump(partition: Path, live: bool, limits: Limits) -> bool:
    """Print a log. Returns whether damage was met; raises OSError when the directory cannot be listed."""
    inspector = LogInspector(partition, live=live, first_offset=limits.offset)
    if not limits.as_json:
        print(f"{partition}:")
    left = limits.count
    damaged = False
    for item in inspector.items():
        if isinstance(item, Finding):
            damaged |= item.damage
            _print(limits, finding_as_json(item), finding_as_text(item, partition))
        elif isinstance(item, Segment):
            _print(limits, _segment_as_json(item), _segment_as_text(item))
        elif isinstance(item, Index):
            _dump_index(item, limits)
        elif item.header.next_offset > limits.offset or item.problem is not None:
            left = _dump_batch(item, limits, left)
        if left == 0:
            break
    return damaged


def _print(limits: Limits, document: dict[str, object], text: str) -> None:
    print(json.dumps(document) if limits.as_json else text)


# ---- findings ----


def finding_as_json(finding: Finding) -> dict[str, object]:
    """Return a finding as a JSON document."""
    return {
        "type": "finding",
        "kind": finding.kind,
        "damage": finding.damage,
        "file": str(finding.path),
        "position": finding.position,
        "end": finding.end,
        "first_offset": finding.first_offset,
        "next_offset": finding.next_offset,
        "text": finding.text,
        "advice": finding.advice,
    }


def finding_as_text(finding: Finding, directory: Path) -> str:
    """Return a finding as a line, without its advice."""
    path = finding.path.relative_to(directory) if finding.path != directory else finding.path
    where = [str(path)]
    if finding.position is not None and finding.end is not None:
        end = finding.end
        where.append(f"bytes {finding.position} to {end - 1}" if end > finding.position else f"byte {end}")
    if finding.first_offset is not None:
        where.append(_offsets(finding.first_offset, finding.next_offset))
    return f"{'damage' if finding.damage else 'note'} [{finding.kind}] {', '.join(where)}: {finding.text}"


def _offsets(first: int, following: int | None) -> str:
    if following is None:
        return f"offsets from {first} on"
    if following <= first:
        return f"at offset {first}"
    return f"offset {first}" if following == first + 1 else f"offsets {first} to {following - 1}"


# ---- segments, batches, records ----


def _segment_as_json(segment: Segment) -> dict[str, object]:
    header = segment.header
    document: dict[str, object] = {
        "type": "segment",
        "file": str(segment.path),
        "size": segment.size,
        "base_offset": segment.base_offset,
        "problem": segment.problem,
    }
    if header is not None:
        document |= {
            "version": header.version,
            "stream": str(header.stream_id),
            "partition": header.partition,
            "created": header.created,
            "sparse": header.sparse,
            "end_offset": header.end_offset,
        }
    return document


def _segment_as_text(segment: Segment) -> str:
    header = segment.header
    if header is None:
        return f"segment {segment.path.name}: {segment.problem}"
    sparse = f", sparse, up to offset {header.end_offset}" if header.sparse else ""
    return (
        f"segment {segment.path.name}: format {header.version}, stream {header.stream_id} partition "
        f"{header.partition}, created {time_as_text(header.created)}, {segment.size} bytes{sparse}"
    )


def _dump_batch(batch: Batch, limits: Limits, left: int | None) -> int | None:
    """Print a batch and its messages; return how much may still be printed."""
    _print(limits, _batch_as_json(batch), _batch_as_text(batch))
    if limits.batches_only:
        return None if left is None else left - 1
    if batch.problem is not None or batch.header.control:
        return left
    with suppress(FormatError):  # a finding tells of it
        for record in _wanted(batch, limits):
            if left == 0:
                break
            _print(limits, _record_as_json(record, limits), _record_as_text(record, limits))
            left = None if left is None else left - 1
    return left


def _wanted(batch: Batch, limits: Limits) -> Iterator[Record]:
    for record in batch.records() or ():
        if record.offset >= limits.offset:
            yield record


def _is_decoded(batch: Batch) -> bool:
    """Whether the records of a batch can be had here: not without its key, and not from a broken body."""
    try:
        return batch.records() is not None
    except FormatError:
        return False


def _batch_as_json(batch: Batch) -> dict[str, object]:
    header = batch.header
    return {
        "type": "batch",
        "position": batch.position,
        "length": header.length,
        "base_offset": header.base_offset,
        "next_offset": header.next_offset,
        "count": header.count,
        "epoch": header.epoch,
        "base_timestamp": header.base_timestamp,
        "max_timestamp": header.max_timestamp,
        "attributes": header.attributes,
        "codec": header.codec,
        "encrypted": header.encrypted,
        "control": header.control,
        "raw_length": header.raw_length,
        "crc": header.crc,
        "prev_crc": header.prev_crc,
        "producer_id": header.producer_id,
        "producer_epoch": header.producer_epoch,
        "first_sequence": header.first_sequence,
        "unsynced": header.unsynced,
        "checksum": batch.checksum,
        "chain": batch.chain,
        "problem": batch.problem,
        "decoded": batch.problem is None and _is_decoded(batch),
    }


def _batch_as_text(batch: Batch) -> str:
    header = batch.header
    if batch.problem is not None:
        return f"  batch at byte {batch.position}: BAD, {batch.problem}"
    if header.control:
        begins = f"leader epoch {header.epoch} begins at offset {header.base_offset}"
        return f"  batch at byte {batch.position}: {begins}"
    notes = [] if header.codec == "none" else [header.codec]
    notes += ["encrypted"] if header.encrypted else []
    if not _is_decoded(batch):
        notes.append("not decoded")
    return (
        f"  batch at byte {batch.position}: {_offsets(header.base_offset, header.next_offset)}, "
        f"{counted(header.count, 'message')}, epoch {header.epoch}, {header.length} bytes, "
        f"checksum {batch.checksum}, chain {batch.chain}{''.join(f', {note}' for note in notes)}"
    )


def _record_as_json(record: Record, limits: Limits) -> dict[str, object]:
    document: dict[str, object] = {
        "type": "record",
        "offset": record.offset,
        "timestamp": record.timestamp,
        "subject": _bytes_as_json(record.subject),
        "reply": _bytes_as_json(record.reply),
        "flags": record.flags,
        "expiry": record.expiry,
    }
    if limits.values:
        document |= {
            "key": _bytes_as_json(record.key),
            "value": _bytes_as_json(record.value),
            "headers": [{"name": name, "value": _bytes_as_json(value)} for name, value in record.headers],
        }
    return document


def _record_as_text(record: Record, limits: Limits) -> str:
    parts = [f"{record.offset:>10}", time_as_text(record.timestamp), _plain(record.subject)]
    if record.reply:
        parts.append(f"reply={_plain(record.reply)}")
    if record.expiry is not None:
        parts.append(f"expires={time_as_text(record.expiry)}")
    if limits.values:
        if record.key is not None:
            parts.append(f"key={bytes_as_text(record.key)}")
        parts += [f"{bytes_as_text(name.encode())}={bytes_as_text(value)}" for name, value in record.headers]
        parts.append("no value" if record.value is None else bytes_as_text(record.value))
    return "  ".join(parts)


def _plain(data: bytes) -> str:
    """A subject, which needs no quotes when it is what subjects usually are."""
    quoted = bytes_as_text(data)
    return quoted[1:-1] if data and quoted == f'"{quoted[1:-1]}"' and " " not in quoted else quoted


# ---- indexes ----


def _dump_index(index: Index, limits: Limits) -> None:
    content = index.content
    document: dict[str, object] = {"type": "index", "file": str(index.path), "state": index.state}
    text = f"index {index.path.name}: {index.state}"
    if content is not None:
        document |= {
            "base_offset": content.base_offset,
            "next_offset": content.next_offset,
            "end": content.end,
            "last_position": content.last_position,
            "count": content.count,
            "first_timestamp": content.first_timestamp,
            "last_timestamp": content.last_timestamp,
            "last_epoch": content.last_epoch,
            "last_crc": content.last_crc,
        }
        last = content.next_offset - 1
        text += f", {counted(content.count, 'message')} up to offset {last}, byte {content.end}"
    _print(limits, document, text)
    if content is None or not limits.index:
        return
    for entry in content.entries():
        offset = content.base_offset + entry.relative
        entry_document: dict[str, object] = {
            "type": "index-entry",
            "offset": offset,
            "position": entry.position,
            "timestamp_before": entry.before,
        }
        before = f"behind {time_as_text(entry.before)}" if entry.before else "with nothing before it"
        _print(limits, entry_document, f"  offset {offset} at byte {entry.position}, {before}")


# ---- values ----


def counted(number: int, noun: str) -> str:
    """Return a number of things, the noun in its plural where it belongs."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}es" if noun.endswith("ch") else f"{number} {noun}s"


def size_as_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{size} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"


def time_as_text(nanoseconds: int) -> str:
    """Return a time (ns since the epoch) in UTC; the number itself when no calendar has it."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return f"{nanoseconds} ns"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def bytes_as_text(data: bytes) -> str:
    """Return bytes for people: quoted text or hexadecimal digits, cut when they are long."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        half = _SHOWN // 2
        return f"0x{data[:half].hex()}" + (f"... ({len(data)} bytes)" if len(data) > half else "")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_SHOWN])
    return f'"{shown}"' + (f"... ({len(data)} bytes)" if len(text) > _SHOWN else "")


def _bytes_as_json(data: bytes | None) -> dict[str, str] | None:
    if data is None:
        return None
    document = {"base64": base64.b64encode(data).decode()}
    with suppress(UnicodeDecodeError):
        document["text"] = data.decode()
    return document
