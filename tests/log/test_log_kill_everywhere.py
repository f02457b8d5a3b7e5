"""A process that uses a log is killed at every call that changes a file: before it, after it, in a write.

The page cache outlives the process, so everything that an append returned for is there. Recovery is killed
the same way.
"""

import shutil
import signal
from itertools import count

import pytest
from disk.history import History, HoleError, check_directory
from disk.machine import CHANGES, Action, plan
from disk.torture import ROUNDS, SEED, case, print_seed
from disk.workload import EVERYTHING, random_script

KILLS = (Action.KILL_BEFORE, Action.KILL_AFTER, Action.KILL_TORN)
AGAIN = [("open", 0), ("append", 14), ("sync", 0), ("append", 1), ("retain", 0), ("open", 0)]


def scripts():
    """What is done, once as a list of everything, then at random."""
    return [EVERYTHING] + [random_script(f"{SEED} {number}", 40) for number in range(1, ROUNDS)]


def killed(machine, root, history, script, at, action, **arguments):
    """Run a script until the kill; bring the history up to it. Returns whether the kill came."""
    ended = machine.run("script", root, plan(CHANGES, at, action), script=script, **arguments)
    for event in ended.events:
        history.apply(event)
    assert ended.code in (0, -signal.SIGKILL)
    return ended.code != 0


def kill_at_every_call(machine, scratch, script, action, **arguments):
    """Run the script until the first call, the second, and so on; returns how many kills that were."""
    at = 0
    while True:
        at += 1
        root = scratch / "root"
        root.mkdir()
        history = History()
        with case(f"call {at}"):
            came = killed(machine, root, history, script, at, action, **arguments)
            check_directory(root / "log", history)
        shutil.rmtree(root)
        if not came:
            return at - 1


@pytest.mark.timeout(60 + 60 * ROUNDS)
@pytest.mark.parametrize("action", KILLS, ids=lambda action: action.name)
def test_a_kill_at_every_call(machine, scratch, action):
    print_seed()
    kills = 0
    for number, script in enumerate(scripts()):
        with case(f"script {number}"):
            kills += kill_at_every_call(machine, scratch, script, action)
    assert kills > 60 * ROUNDS


@pytest.mark.timeout(60 + 60 * ROUNDS)
@pytest.mark.parametrize("action", KILLS, ids=lambda action: action.name)
def test_a_kill_at_every_call_of_recovery(machine, scratch, action):
    """Kills in the middle of the script leave something to recover; then every step of that is killed."""
    print_seed()
    kills = 0
    for number, script in enumerate(scripts()):
        for first in range(7, 200, 9 if ROUNDS == 1 else 3):
            root = scratch / "root"
            root.mkdir()
            history = History()
            if not killed(machine, root, history, script, first, Action.KILL_TORN):
                shutil.rmtree(root)
                break
            for at in count(1):
                copy, told = scratch / "copy", history.copy()
                shutil.copytree(root, copy)
                with case(f"script {number}, calls {first} and {at}"):
                    came = killed(machine, copy, told, AGAIN, at, action, attempt=1000)
                    check_directory(copy / "log", told)
                shutil.rmtree(copy)
                if not came:
                    break
                kills += 1
            shutil.rmtree(root)
    assert kills > 60 * ROUNDS


def test_a_retention_that_removes_before_it_notes_the_start_is_caught(machine, scratch):
    with pytest.raises(HoleError, match="missing"):
        kill_at_every_call(
            machine, scratch, EVERYTHING, Action.KILL_AFTER, mutant="removed before it is noted"
        )


@pytest.mark.parametrize("action", KILLS, ids=lambda action: action.name)
def test_a_kill_while_everything_is_truncated(machine, scratch, action):
    """A log that has begun at 0 once, and does no more, goes on where it was cut; never at 0 again."""
    script = [
        ("open", 0),
        *[("append", 14)] * 6,
        ("sync", 0),
        ("retain", 0),
        ("truncate", 1000),
        ("append", 3),
    ]
    kill_at_every_call(machine, scratch, script, action)
