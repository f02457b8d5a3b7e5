"""The disk is full or broken at every single call, once or from then on.

Each call that a log makes on its files fails in its turn, reads included. What comes up is an OSError or a
LogFailedError, never anything else; what was acked stays; a failed sync is final; and the log can be opened
again once the disk is good.
"""

import errno
import random
import shutil

import pytest
from disk.history import History, check_directory
from disk.machine import CALLS, Action, plan
from disk.powerloss import Disk, Kind, Order, materialise
from disk.torture import ROUNDS, SEED, case, print_seed
from disk.workload import EVERYTHING, random_script

WRITING = (Kind.CREATE, Kind.WRITE, Kind.RESIZE, Kind.ALLOCATE, Kind.RENAME, Kind.MKDIR, Kind.SYNC)
FAILURES = {
    "full, once": (WRITING, Action.FAIL, errno.ENOSPC, False),
    "full inside a write": (WRITING, Action.SHORT, errno.ENOSPC, False),
    "full from then on": (WRITING, Action.FAIL, errno.ENOSPC, True),
    "broken, once": (CALLS, Action.FAIL, errno.EIO, False),
    "broken from then on": (CALLS, Action.FAIL, errno.EIO, True),
}


def scripts():
    """What is done, once as a list of everything, then at random."""
    return [EVERYTHING] + [random_script(f"{SEED} {number}", 40) for number in range(1, ROUNDS)]


def fail_at_every_call(machine, scratch, script, failure, **arguments):
    """Run the script with an error at the first call, the second, and so on.

    Returns how many calls had their turn, and after how many the log had something to say.
    """
    kinds, action, error, onwards = FAILURES[failure]
    surfaced = 0
    at = 0
    while True:
        at += 1
        root = scratch / "root"
        root.mkdir()
        history = History()
        with case(f"call {at}"):
            how = plan(kinds, at, action, error, onwards)
            ended = machine.run("script", root, how, script=script, tolerant=True, **arguments)
            for event in ended.events:
                history.apply(event)
            check_directory(root / "log", history)
        shutil.rmtree(root)
        surfaced += bool(ended.answer["errors"])
        if ended.answer["calls"] < at:
            return at - 1, surfaced


@pytest.mark.timeout(60 + 60 * ROUNDS)
@pytest.mark.parametrize("failure", FAILURES)
def test_an_error_at_every_call(machine, scratch, failure):
    print_seed()
    for number, script in enumerate(scripts()):
        with case(f"script {number}"):
            calls, surfaced = fail_at_every_call(machine, scratch, script, failure)
        assert calls > 40 and surfaced > calls / 3


@pytest.mark.parametrize(
    ("mutant", "failure"),
    [("errors swallowed", "full, once"), ("failures forgotten", "broken, once")],
)
def test_a_log_that_takes_errors_lightly_is_caught(machine, scratch, mutant, failure):
    with pytest.raises(AssertionError):
        fail_at_every_call(machine, scratch, EVERYTHING, failure, mutant=mutant)


@pytest.mark.timeout(60 + 60 * ROUNDS)
@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_a_failed_sync_and_then_no_power(machine, scratch, order):
    """Pages that a failed sync has dropped were never vouched for."""
    print_seed()
    for number in range(4 * ROUNDS):
        name = f"{SEED} {number}"
        chance = random.Random(name)
        steps = random_script(name, 30, without=("open", "truncate"))[1:]
        script = [("open", 0), *[each for step in steps for each in (step, ("sync", 0))]]
        root = scratch / "root"
        root.mkdir()
        disk, history = Disk(root), History()
        how = plan([Kind.SYNC], chance.randint(3, 12), Action.FAIL, errno.EIO)
        ended = machine.run(
            "script", root, how, script=script, options={"segment_max_bytes": 1 << 20}, tolerant=True
        )
        assert ended.answer["errors"]
        for event in ended.events:
            disk.apply(event)
            history.apply(event)
        history.lose_power()
        for seed in range(10):
            with case(f"round {number}, seed {seed}"):
                materialise(disk.lose_power(f"{name} {seed}", order), scratch / "left")
                check_directory(scratch / "left" / "log", history)
                shutil.rmtree(scratch / "left")
        shutil.rmtree(root)
