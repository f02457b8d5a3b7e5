"""Compaction on the simulated disk: kills, losses of power and errors at every call that it makes.

Whatever comes, no record is changed, the last of each key is there, and where a tombstone or an expired
record is gone, nothing of its key has come back to life.
"""

import errno
import shutil

import pytest
from compaction_helpers import HOUR, Entry, compact, entries, open_compacted, stored
from disk.machine import CALLS, CHANGES, Action, plan
from disk.powerloss import Disk, Kind, Order, materialise
from disk.torture import ROUNDS, SEED, case, print_seed
from log_helpers import read_all, read_all_reverse

from liftbridge.log import LogDamagedError

OPTIONS = {"segment_max_bytes": 700, "tombstone_retention_ns": HOUR, "compact_min_dirty_ratio": 0}
EXPIRED = HOUR  # for every run, and whoever reads
RUN = f"""
from compaction_helpers import compact, open_compacted
from liftbridge.log import LogError

try:
    log = open_compacted(Path("log").absolute(), **{OPTIONS!r})
    try:
        compact(log, now_ns={4 * HOUR})
    finally:
        log.close()
except (OSError, LogError) as error:
    result = type(error).__name__
"""
FIRST = [
    [Entry(b"a", b"1"), Entry(b"gone", b"1"), Entry(b"b", b"x" * 300)],
    [Entry(b"gone", None), Entry(None, b"keyless"), Entry(b"b", b"y" * 300)],
    [Entry(b"a", b"2"), Entry(b"expired", b"1"), Entry(b"c", b"z" * 300)],
]
SECOND = [
    [Entry(b"a", b"3"), Entry(b"", b"empty"), Entry(b"b", b"y" * 300)],
    [Entry(b"c", None), Entry(b"expired", b"2", EXPIRED), Entry(b"d", b"x" * 300)],
    [Entry(b"e", b"1"), Entry(b"c", b"5"), Entry(b"d", b"y" * 300)],
    [Entry(b"e", None), Entry(None, b"", EXPIRED), Entry(b"f", b"z" * 300)],
    [Entry(None, b"the active segment")],
]


class Case:
    """A log that was compacted once, and has got more since: a copy of it for every crash."""

    def __init__(self, directory):
        self.origin = directory / "origin"
        self.entries = []
        log = open_compacted(self.origin / "log", **OPTIONS)
        self.epoch = 0
        self.append(log, FIRST)
        self.append(log, [[Entry(None, b"")]])
        compact(log, now_ns=2 * HOUR)
        assert not {1, 2} & set(stored(log.directory)), "the older ones of what was overwritten and deleted"
        self.append(log, SECOND)
        log.close()
        self.before = stored(log.directory)
        self.epochs = log.epochs

    def append(self, log, batches):
        for batch in batches:
            self.epoch += 1  # each batch begins an epoch, which it must leave a trace of
            log.append(entries(batch, log.last_timestamp + 1), self.epoch)
            self.entries += batch

    def copy(self, root):
        shutil.copytree(self.origin, root)
        return root

    def check(self, directory):
        """Open the log, check it, and compact it once more: it ends as if nothing had been."""
        log = open_compacted(directory, **OPTIONS)
        assert log.damage == ()
        assert log.epochs == self.epochs
        self.check_records(log)
        compact(log, now_ns=4 * HOUR)
        self.check_records(log)
        final = set(stored(directory))
        log.close()
        assert {path.suffix for path in directory.iterdir()} <= {".log", ".index", ""}
        return final

    def check_records(self, log):
        found = stored(log.directory)
        assert found.items() <= self.before.items()
        for key in {entry.key for entry in self.entries if entry.key}:
            offsets = [offset for offset, entry in enumerate(self.entries) if entry.key == key]
            last = self.entries[offsets[-1]]
            if last.value is not None and not last.expiry:
                assert offsets[-1] in found, f"the last record of {key} is gone"
            elif offsets[-1] not in found:
                assert not found.keys() & set(offsets), f"{key} has come back to life"
        keyless = {o for o, entry in enumerate(self.entries) if not entry.key and not entry.expiry}
        assert keyless <= found.keys()
        visible = [offset for offset in sorted(found) if not self.entries[offset].expiry]
        assert [message.offset for message in read_all(log)] == visible
        assert [m.offset for m in read_all_reverse(log, log.next_offset - 1)] == visible[::-1]


@pytest.fixture
def crash(scratch):
    return Case(scratch)


def undisturbed(machine, crash, scratch):
    """What a run leaves, and how many calls it makes."""
    root = crash.copy(scratch / "sound")
    ended = machine.run("code", root, plan(CHANGES), code=RUN)
    assert ended.answer["result"] is None
    after = set(stored(root / "log"))
    assert len(after) < len(crash.before) - 5
    return after, ended.answer["calls"]


@pytest.mark.parametrize(
    "action", (Action.KILL_BEFORE, Action.KILL_AFTER, Action.KILL_TORN), ids=lambda action: action.name
)
def test_a_kill_at_every_call_of_a_run(machine, scratch, crash, action):
    final, calls = undisturbed(machine, crash, scratch)
    assert calls > 30
    for at in range(1, calls + 1):
        root = crash.copy(scratch / "root")
        with case(f"call {at}"):
            assert machine.run("code", root, plan(CHANGES, at, action), code=RUN).code != 0
            assert crash.check(root / "log") == final
        shutil.rmtree(root)


def test_a_kill_at_every_call_of_what_completes_a_swap(machine, scratch, crash):
    final, calls = undisturbed(machine, crash, scratch)
    kills = 0
    for first in range(1, calls + 1):
        root = crash.copy(scratch / "root")
        machine.run("code", root, plan(CHANGES, first, Action.KILL_AFTER), code=RUN)
        for at in range(1, 6) if list(root.glob("log/*.swap")) else ():
            again = scratch / "again"
            shutil.copytree(root, again)
            with case(f"calls {first} and {at}"):
                machine.run("code", again, plan(CHANGES, at, Action.KILL_AFTER), code=RUN)
                assert crash.check(again / "log") == final
            shutil.rmtree(again)
            kills += 1
        shutil.rmtree(root)
    assert kills > 30


@pytest.mark.timeout(100 * ROUNDS + 20)
@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_a_loss_of_power_at_every_moment_of_a_run(machine, scratch, crash, order):
    print_seed()
    final, _ = undisturbed(machine, crash, scratch)
    root = crash.copy(scratch / "root")
    disk = Disk(root)
    ended = machine.run("code", root, plan(CALLS), code=RUN)
    for number, event in enumerate(ended.events):
        disk.apply(event)
        for again in range(8 * ROUNDS):
            with case(f"event {number}, {again}"):
                materialise(disk.lose_power(f"{SEED} {number} {again}", order), scratch / "left")
                assert crash.check(scratch / "left" / "log") == final
                shutil.rmtree(scratch / "left")
    assert len(ended.events) > 30


@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_a_loss_of_power_while_a_compacted_segment_is_cut(machine, scratch, order):
    """Its header tells its range, so it is written anew as a whole; what stays of it was durable before."""
    root = scratch / "root"
    log = open_compacted(root / "log", **OPTIONS)
    for n in range(18):
        log.append(entries([Entry(b"%d" % (n % 13), b"")], n + 1))
    compact(log)
    first = log._view.sealed[0]
    assert first.sparse and first.base_offset == 0 and first.summary.count >= 3
    log.close()
    before = stored(root / "log")
    cut = sorted(before)[2]
    disk = Disk(root)
    code = "from compaction_helpers import open_compacted\n"
    code += f"open_compacted(Path('log').absolute(), **{OPTIONS!r}).truncate({cut})"
    events = machine.run("code", root, plan(CALLS), code=code).events
    assert stored(root / "log").keys() == set(sorted(before)[:2])
    for number, event in enumerate(events):
        disk.apply(event)
        for again in range(4):
            materialise(disk.lose_power(f"{number} {again}", order), scratch / "left")
            log = open_compacted(scratch / "left" / "log", **OPTIONS)
            assert log.damage == ()
            found = stored(log.directory)
            assert found.items() <= before.items() and set(sorted(before)[:2]) <= found.keys()
            log.close()
            shutil.rmtree(scratch / "left")


@pytest.mark.parametrize("forgotten", ["swap.sync_directory", "compaction.sync_data"])
def test_a_run_that_syncs_too_little_is_caught(machine, scratch, crash, forgotten):
    root = crash.copy(scratch / "root")
    disk = Disk(root)
    module, name = forgotten.split(".")
    code = f"import liftbridge.log.{module} as module\nmodule.{name} = lambda *_: None\n{RUN}"
    ended = machine.run("code", root, plan(CALLS), code=code)
    with pytest.raises((AssertionError, LogDamagedError)):
        for number, event in enumerate(ended.events):
            disk.apply(event)
            for again in range(4):
                materialise(disk.lose_power(f"{number} {again}", Order.ANY), scratch / "left")
                crash.check(scratch / "left" / "log")
                shutil.rmtree(scratch / "left")


@pytest.mark.parametrize("onwards", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_an_error_at_every_call_of_a_run(machine, scratch, crash, error, onwards):
    final, _ = undisturbed(machine, crash, scratch)
    writing = (Kind.CREATE, Kind.WRITE, Kind.RESIZE, Kind.RENAME, Kind.SYNC)
    kinds = writing if error == errno.ENOSPC else CHANGES
    told = at = 0
    while True:
        at += 1
        root = crash.copy(scratch / "root")
        with case(f"call {at}"):
            ended = machine.run("code", root, plan(kinds, at, Action.FAIL, error, onwards), code=RUN)
            assert crash.check(root / "log") == final
        shutil.rmtree(root)
        if ended.answer["calls"] < at:
            break
        told += ended.answer["result"] is not None
    assert at > 20
    assert told > at / 2
