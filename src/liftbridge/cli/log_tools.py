"""`liftbridge log verify` and `liftbridge log dump`: what is in the files of a log, and whether it is whole.
`liftbridge log repair`, which changes files, is in `log_repair.py`.

Both read a data directory or a part of it without a server, and beside a running one: files are opened for
reading only, and nothing is locked, created or removed. What they see is `log/inspect.py`'s; here is how it
is found, shown and summed up.

Exit status: 0 all is well (a torn tail of an unclean stop included: it is told, and the next start cuts it
off), 1 damage was found, 2 the command line is wrong, or there is nothing that can be read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from liftbridge.bench.progress import Progress
from liftbridge.broker.identity import LOCK_FILE
from liftbridge.cli import log_dump, log_repair
from liftbridge.cli.log_dump import counted, finding_as_json, finding_as_text, size_as_text
from liftbridge.log.files import SEGMENT_SUFFIX
from liftbridge.log.inspect import Finding, LogInspector, is_segment_name
from liftbridge.log.layout import HEADER_BLOCK

WELL, DAMAGED, UNUSABLE = 0, 1, 2
MAX_FINDINGS = 1000  # of a partition are kept; more of them say nothing more
LIVE_ATTEMPTS = 3  # what a running server changes meanwhile looks like damage once, not every time

_DIRECTORY_HELP = "a data directory, its streams directory, the directory of a stream, or that of a partition"
_VERIFY_HELP = """Read every file of the logs below DIR and tell what is wrong with them: where it is,
which offsets it concerns, what it means and what to do. Nothing is changed; a server may be running."""
_DUMP_HELP = """Print the segments, batches and messages of the logs below DIR, and between them whatever is
wrong. Nothing is changed; a server may be running."""
_EXITS = """exit status:
  0  all is well; a torn tail of an unclean stop, too, is told and is well
  1  damage was found
  2  the command line is wrong, or DIR cannot be read
"""


class LogToolError(Exception):
    """There is nothing to look at; the text says why and what to do."""


def log(options: argparse.Namespace) -> int:
    """`liftbridge log verify|dump|repair DIR`; returns the exit status."""
    try:
        partitions = find_partitions(options.directory)
        action: Callable[[argparse.Namespace, list[Path]], int] = options.action
        status = action(options, partitions)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output wants no more of it; Python must not try to flush it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WELL
    except (LogToolError, log_repair.RepairError, OSError) as error:
        print(f"liftbridge: {_text_of(error)}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("liftbridge: interrupted; not everything was read", file=sys.stderr)
        return UNUSABLE
    return status


def _text_of(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}; run this as the user of the server, or check the path"
    return str(error)


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge log`."""
    parser = argparse.ArgumentParser(
        prog="liftbridge log", description="Look at the files of logs. No server is needed."
    )
    actions = parser.add_subparsers(metavar="verify | dump | repair", required=True)
    verify = _add(actions, "verify", "check the files of logs", _VERIFY_HELP, _verify)
    verify.add_argument(
        "--quiet", "-q", action="store_true", help="print damage only, and nothing if there is none"
    )
    dump = _add(actions, "dump", "print what is in the files of logs", _DUMP_HELP, _dump)
    dump.add_argument("--offset", type=_natural, default=0, metavar="N", help="begin with this offset")
    dump.add_argument(
        "--count",
        type=_natural,
        metavar="N",
        help="stop after this many messages (batches, with --batches-only)",
    )
    dump.add_argument(
        "--values",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="print keys, values and headers, or leave them out (default: print)",
    )
    dump.add_argument("--batches-only", action="store_true", help="print batches without their messages")
    dump.add_argument("--index", action="store_true", help="print the entries of the index files, too")
    mend = _add(actions, "repair", "give up what is damaged", log_repair.REPAIR_HELP, _repair)
    mend.epilog = log_repair.REPAIR_EXITS
    mend.add_argument(
        "--accept-loss", action="store_true", help="do it; without this, only tell what is lost"
    )
    parser.set_defaults(run=log)
    return parser


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    text: str,
    action: Callable[[argparse.Namespace, list[Path]], int],
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=summary,
        description=text,
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help=_DIRECTORY_HELP)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document a line (docs/log-tools.md)"
    )
    parser.set_defaults(action=action)
    return parser


def _natural(text: str) -> int:
    if not text.isdecimal() or not text.isascii():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


# ---- where the logs are ----


def find_partitions(directory: Path) -> list[Path]:
    """Return the directories of partitions at or below one, in order. Raises LogToolError, OSError."""
    if not directory.is_dir():
        raise LogToolError(f"{directory}: there is no such directory; name {_DIRECTORY_HELP}")
    if any(is_segment_name(entry.name) for entry in directory.iterdir()):
        return [directory]
    streams = directory / "streams"
    if streams.is_dir():
        directory = streams
    found = list(_partitions_of(directory))
    for stream in sorted(directory.iterdir()):
        if _is_uuid(stream.name) and stream.is_dir():
            found += _partitions_of(stream)
    if not found:
        raise LogToolError(f"{directory}: there is no log in it; name {_DIRECTORY_HELP}")
    return found


def _partitions_of(stream: Path) -> Iterator[Path]:
    names = [entry.name for entry in stream.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    for name in sorted(names, key=lambda name: (len(name), name)):
        yield stream / name


def _is_uuid(name: str) -> bool:
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True


def has_server(partition: Path) -> bool:
    """Whether a server runs on the data directory that the partition is in, as far as that can be told.

    The server's lock is not tried: a server that starts at that moment would find it taken. An error here is
    harmless, as the worst it does is to tell, or not to tell, of an unfinished write.
    """
    lock = partition.absolute().parent.parent.parent / LOCK_FILE
    try:
        process = int(lock.read_text())
        inode = lock.stat().st_ino
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    try:
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return True  # not Linux; the process lives, though it may be another by now
    return any(
        f" {process} " in line and line.split()[5].endswith(f":{inode}") for line in locks if "FLOCK" in line
    )


# ---- verify ----


def _verify(options: argparse.Namespace, partitions: list[Path]) -> int:
    damaged = 0
    for number, partition in enumerate(partitions, 1):
        live = has_server(partition)
        inspector, findings, damage = _inspect(partition, live, f"{number} of {len(partitions)}")
        damaged += damage > 0
        if options.json:
            print(json.dumps(_partition_as_json(inspector, findings, damage)))
        else:
            _print_partition(inspector, findings, damage, options.quiet)
    if options.json:
        print(json.dumps({"type": "total", "partitions": len(partitions), "damaged": damaged}))
    elif not options.quiet:
        print(f"{counted(len(partitions), 'partition')} verified, {damaged or 'none'} with damage")
    return DAMAGED if damaged else WELL


def _inspect(partition: Path, live: bool, label: str) -> tuple[LogInspector, list[Finding], int]:
    """Read a log; return what was read, the findings, and how many of them are damage."""
    for _ in range(LIVE_ATTEMPTS if live else 1):
        findings: list[Finding] = []
        damage = 0
        with Progress(_size_of(partition), label) as progress:
            inspector = LogInspector(partition, live=live, read=_counting(progress))
            for item in inspector.items():
                if isinstance(item, Finding):
                    damage += item.damage
                    if len(findings) < MAX_FINDINGS:
                        findings.append(item)
        if not damage:
            break
    return inspector, findings, damage


def _size_of(partition: Path) -> int:
    total = 0
    for entry in partition.iterdir():
        with suppress(FileNotFoundError):  # a running server may remove files
            if entry.suffix == SEGMENT_SUFFIX:
                total += max(0, entry.stat().st_size - HEADER_BLOCK)
    return total


def _counting(progress: Progress) -> Callable[[int], None]:
    done = 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        progress.update(done)

    return count


def _partition_as_json(inspector: LogInspector, findings: list[Finding], damage: int) -> dict[str, object]:
    totals = inspector.totals
    return {
        "type": "partition",
        "directory": str(inspector.directory),
        "stream": None if inspector.stream_id is None else str(inspector.stream_id),
        "partition": inspector.partition,
        "damaged": damage > 0,
        "running_server": inspector.live,
        "segments": totals.segments,
        "batches": totals.batches,
        "records": totals.records,
        "start_offset": inspector.start_offset,
        "next_offset": inspector.next_offset,
        "bytes": totals.size_bytes,
        "tail_bytes": totals.tail_bytes,
        "allocated_bytes": totals.allocated_bytes,
        "batches_not_decoded": totals.unopened,
        "epochs": [{"epoch": epoch, "start_offset": offset} for epoch, offset in totals.epochs],
        "findings": [finding_as_json(finding) for finding in findings],
    }


def _print_partition(inspector: LogInspector, findings: list[Finding], damage: int, quiet: bool) -> None:
    if quiet and not damage:
        return
    print(f"{inspector.directory}: {'DAMAGED' if damage else 'well'}")
    if not quiet:
        for line in _summary(inspector):
            print(f"  {line}")
    for finding in findings:
        if finding.damage or not quiet:
            print(f"  {finding_as_text(finding, inspector.directory)}")
            print(f"    -> {finding.advice}")
    if damage and len(findings) == MAX_FINDINGS:
        print(f"  further findings are left out; {damage} in all are damage")
    sys.stdout.flush()


def _summary(inspector: LogInspector) -> Iterator[str]:
    totals = inspector.totals
    start, following = inspector.start_offset, inspector.next_offset
    offsets = f"offsets {start} to {'unknown' if following is None else following - 1}"
    if following == start:
        offsets = f"no messages, {following or 0} is the next offset"
    yield (
        f"{offsets}; {counted(totals.records, 'message')} in {counted(totals.batches, 'batch')}, "
        f"{counted(totals.segments, 'segment')}, {size_as_text(totals.size_bytes)}"
    )
    if totals.epochs:
        shown = ", ".join(f"{epoch} from offset {offset}" for epoch, offset in totals.epochs[-8:])
        yield f"leader epochs: {'..., ' if len(totals.epochs) > 8 else ''}{shown}"
    if totals.unopened:
        yield f"{counted(totals.unopened, 'batch')} encrypted: checksum good, not decoded"
    if totals.allocated_bytes:
        yield f"{size_as_text(totals.allocated_bytes)} are allocated ahead"
    if inspector.live:
        yield "a server runs here: what it was writing at the end is left out"


# ---- dump ----


def _dump(options: argparse.Namespace, partitions: list[Path]) -> int:
    limits = log_dump.Limits(
        options.offset, options.count, options.values, options.batches_only, options.index, options.json
    )
    damaged = False
    for partition in partitions:
        damaged |= log_dump.dump(partition, has_server(partition), limits)
    return DAMAGED if damaged else WELL


# ---- repair ----


def _repair(options: argparse.Namespace, partitions: list[Path]) -> int:
    return log_repair.repair_all(partitions, accept_loss=options.accept_loss, as_json=options.json)
