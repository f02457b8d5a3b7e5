"""A log that begins anew, and a crash at any moment of it: what is found is never a mixture.

It is the log as it was, or its beginning, or one without records that begins at 0 or at the new place; and
none of these has damage.
"""

import shutil

import pytest
from disk.machine import CALLS, CHANGES, Action, plan
from disk.powerloss import Disk, Order, materialise
from disk.torture import ROUNDS, SEED, case, print_seed
from log_helpers import numbered, numbers, open_log, read_all

RECORDS = 60
OPTIONS = {"segment_max_bytes": 700, "retention_max_messages": 40}
PLACES = [0, 25, RECORDS, 5000]


def code(offset):
    """Python that has the log begin at an offset."""
    return (
        "from log_helpers import open_log\n"
        f"log = open_log(Path('log').absolute(), **{OPTIONS!r})\n"
        f"log.begin_at({offset})\n"
        f"assert (log.start_offset, log.next_offset) == ({offset}, {offset})\n"
    )


@pytest.fixture
def before(scratch):
    """A directory with a log that has several segments and has lost its first ones, all of it on disk."""
    root = scratch / "before"
    log = open_log(root / "log", **OPTIONS)
    for first in range(0, RECORDS, 5):
        log.append(numbered(first, 5), max(3, log.last_epoch))
        if first == 30:
            log.begin_epoch(5, 1000 * (first + 5))
    log.sync()
    log.retain(0, RECORDS)
    assert 0 < log.start_offset < RECORDS
    log.close()
    return root


def check(root, before, offset):
    """Check what a start finds; returns what it is."""
    original = open_log(before / "log", **OPTIONS)
    log = open_log(root / "log", power_lost=True, **OPTIONS)
    assert log.damage == ()
    found = numbers(read_all(log))
    if found:
        assert found == list(range(original.start_offset, log.next_offset))
        kind = "whole" if log.next_offset == RECORDS else "cut"
    else:
        assert log.start_offset == log.next_offset
        assert log.next_offset in (0, offset, original.start_offset)
        kind = "cut" if log.next_offset == original.start_offset else "anew"
    log.append(numbered(log.next_offset, 5), 9)
    log.close()
    original.close()
    return kind


@pytest.mark.parametrize(
    "action", (Action.KILL_BEFORE, Action.KILL_AFTER, Action.KILL_TORN), ids=lambda action: action.name
)
@pytest.mark.parametrize("offset", PLACES)
def test_a_kill_at_every_call(machine, scratch, before, offset, action):
    seen = set()
    for at in range(1, 1000):
        root = scratch / "root"
        shutil.copytree(before, root)
        with case(f"call {at}"):
            ended = machine.run("code", root, plan(CHANGES, at, action), code=code(offset))
            seen.add(check(root, before, offset))
        shutil.rmtree(root)
        if ended.code == 0:
            break
    assert at > 10
    assert seen == {"whole", "cut", "anew"}


@pytest.mark.timeout(100 * ROUNDS + 20)
@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
@pytest.mark.parametrize("offset", PLACES)
def test_a_loss_of_power_at_every_moment(machine, scratch, before, offset, order):
    print_seed()
    root = scratch / "root"
    shutil.copytree(before, root)
    disk = Disk(root)
    ended = machine.run("code", root, plan(CALLS), code=code(offset))
    assert ended.code == 0
    for number, event in enumerate(ended.events):
        disk.apply(event)
        for again in range(ROUNDS):
            with case(f"event {number}, {again}"):
                materialise(disk.lose_power(f"{SEED} {number} {again}", order), scratch / "left")
                check(scratch / "left", before, offset)
                shutil.rmtree(scratch / "left")
    assert len(ended.events) > 20
