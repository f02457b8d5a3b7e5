"""kill -9 of a process that appends as fast as it can, under each sync policy: what it told is there.

The process is a Trio program with the group commit of the server (`disk/writer.py`), forked anew for each
cycle on the same log. What it tells comes through a pipe; the kill comes after a number of lines that the
seed chooses, wherever the process then is.
"""

import os
import random
import signal

import pytest
from disk.torture import ROUNDS, SEED, case, print_seed
from disk.workload import record
from disk.writer import OPTIONS, POLICIES, TOO_EARLY
from log_helpers import expected, open_log, read_all

CYCLES = 20 * ROUNDS
# Lines told before the kill, at most: under `always` each waits for the disk.
LINES = {"always": 8, "interval": 60, "never": 60}


def kill_in_the_middle(machine, directory, pipe, policy, cycle, lines):
    """Let the writer run until it has told `lines` things, kill it, and return all that it told."""
    pid = machine.begin("write", directory=str(directory), pipe=str(pipe), policy=policy, cycle=cycle)
    with open(pipe) as reader:
        told = [reader.readline() for _ in range(lines)]
        os.kill(pid, signal.SIGKILL)
        told += reader.readlines()
    code, answer = machine.end()
    assert code == -signal.SIGKILL, answer
    return [int(line) for line in told if line.endswith("\n")]


class Cycles:
    """One log through many processes, each killed; and for each of its offsets the cycle that wrote it."""

    def __init__(self, machine, directory, policy):
        self.machine = machine
        self.directory = directory / "log"
        self.pipe = directory / "pipe"
        self.policy = policy
        self.cycle_of = []
        os.mkfifo(self.pipe)

    def run(self, cycle, lines):
        """One cycle; returns the log as it was found afterwards, open."""
        told = kill_in_the_middle(self.machine, self.directory, self.pipe, self.policy, cycle, lines)
        assert told == sorted(told) and told[0] == len(self.cycle_of), "it begins where the log ended"
        log = open_log(self.directory, **OPTIONS)
        assert log.next_offset >= told[-1], "acked records are gone"
        self.cycle_of += [cycle] * (log.next_offset - len(self.cycle_of))
        offsets = range(log.start_offset, log.next_offset)
        assert read_all(log) == [expected(n, record(n, self.cycle_of[n])) for n in offsets]
        return log


@pytest.mark.timeout(60 + 10 * ROUNDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_kill_9_under_load(machine, tmp_path, policy):
    print_seed()
    chance = random.Random(f"{SEED} {policy}")
    cycles = Cycles(machine, tmp_path, policy)
    rolled = trimmed = 0
    for cycle in range(1, CYCLES + 1):
        with case(f"cycle {cycle}"):
            log = cycles.run(cycle, chance.randint(1, LINES[policy]))
        rolled += len(log._view.sealed)
        trimmed = log.start_offset
        if chance.random() < 0.5:  # otherwise the next writer finds it as the kill has left it
            log.close()
    assert rolled and trimmed, "the cycles have never rolled, or retention has removed nothing"


def test_an_ack_that_comes_too_early_is_caught(machine, tmp_path):
    with pytest.raises(AssertionError, match="acked records are gone"):
        Cycles(machine, tmp_path, TOO_EARLY).run(1, 2)
