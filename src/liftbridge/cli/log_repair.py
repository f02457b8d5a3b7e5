"""`liftbridge log repair`: give up what is damaged in the logs below a directory, when told to.

Without `--accept-loss` it only tells what would be lost. With it, the lock of the data directory is held as a
server would hold it, so no server can start meanwhile; what is done is `log/repair.py`'s.

Exit status: 0 nothing is damaged (any more), 1 something is and was left as it is, 2 the command line is
wrong, a server runs, or a log could not be repaired.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from liftbridge.broker.identity import LOCK_FILE
from liftbridge.cli.log_dump import finding_as_text
from liftbridge.log import Damage, LogError
from liftbridge.log.inspect import Finding, LogInspector
from liftbridge.log.repair import Repaired, repair
from liftbridge.log.segments import PlainBodies

REPAIR_HELP = """Give up the messages that are damaged in the logs below DIR, so that subscribers pass
over them without an error. What is good is kept, byte for byte, and so is the damaged file, as
NAME.log.damaged. The server must be stopped. Restoring a file from a copy, or from another replica, is
better where there is one."""
REPAIR_EXITS = """exit status:
  0  nothing is damaged, or not any more
  1  something is damaged, and --accept-loss was not given
  2  the command line is wrong, a server runs, or a log could not be repaired
"""
NOTHING, LEFT, UNUSABLE = 0, 1, 2


class RepairError(Exception):
    """A log was not repaired; the text says why and what to do."""


def repair_all(partitions: Sequence[Path], *, accept_loss: bool, as_json: bool) -> int:
    """Repair logs, or tell what would be given up; returns the exit status. Raises RepairError, OSError."""
    status = NOTHING
    for partition in partitions:
        inspector = LogInspector(partition)
        damage = [item for item in inspector.items() if isinstance(item, Finding) and item.damage]
        if not damage:
            continue
        if not accept_loss:
            _tell_damage(partition, damage, as_json)
            status = LEFT
            continue
        if inspector.stream_id is None or inspector.partition is None:
            raise RepairError(
                f"{partition}: no file tells whose log this is; restore one segment file from a copy"
            )
        with _locked(partition):
            try:
                done = repair(partition, inspector.stream_id, inspector.partition, PlainBodies())
            except LogError as error:
                raise RepairError(str(error)) from error
        _tell_repaired(partition, done, as_json)
    if status == LEFT and not as_json:
        print("nothing was changed; --accept-loss gives up what is damaged, and keeps everything else")
    return status


@contextmanager
def _locked(partition: Path) -> Iterator[None]:
    """Hold the lock of the data directory that the partition is in, where there is one."""
    lock = partition.absolute().parent.parent.parent / LOCK_FILE
    if not lock.exists():
        yield
        return
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RepairError(f"a server runs on {lock.parent}; stop it, then repair") from error
        yield
    finally:
        os.close(descriptor)


def _tell_damage(partition: Path, damage: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        texts = [finding_as_text(each, partition) for each in damage]
        print(json.dumps({"type": "damaged", "directory": str(partition), "damage": texts}))
        return
    print(f"{partition}: DAMAGED")
    for each in damage:
        print(f"  {finding_as_text(each, partition)}")


def _tell_repaired(partition: Path, repaired: Sequence[Repaired], as_json: bool) -> None:
    if as_json:
        document = {
            "type": "repaired",
            "directory": str(partition),
            "segments": [
                {
                    "file": str(each.path),
                    "damaged_file": str(each.kept),
                    "lost": [[damage.first_offset, damage.next_offset] for damage in each.damage],
                }
                for each in repaired
            ],
        }
        print(json.dumps(document))
        return
    print(f"{partition}: repaired")
    for each in repaired:
        print(f"  {each.path.name} was written anew; the damaged file is kept as {each.kept.name}")
        for damage in each.damage:
            print(f"    {_lost(damage)}: {damage.reason}")


def _lost(damage: Damage) -> str:
    if damage.next_offset == damage.first_offset:
        return "no message was lost"
    return f"the offsets {damage.first_offset} to {damage.next_offset - 1} are given up"
