"""Whole clusters under simulated faults, two thousand short runs; `make sim` does more of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from liftbridge.metadata.control import Control
from liftbridge.replication.follower import Follower
from liftbridge.replication.leader import Leader
from liftbridge.sim.cluster import PROFILES, run
from liftbridge.sim.cluster_faults import Faults
from liftbridge.sim.seeds import Sum, profile_of, runs

SEEDS = 50  # in a part
PARTS = 5  # of each profile
# How many of them are told apart at least: else all would be well because nothing happens.
LEADERS = {"network": 1.2, "failover": 1.3}


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("profile", PROFILES)
def test_no_run_finds_anything(profile, part):
    total = Sum()
    for result in runs("cluster", 100_000 + part * SEEDS, SEEDS, profile):
        assert not result.problem, result.report()
        total.add(result)
    assert total.acked > 10 * SEEDS
    assert total.counts["reads"] > 20 * SEEDS
    assert total.counts["leaders"] > LEADERS.get(profile, 1.5) * SEEDS
    assert total.events > 1000 * SEEDS


def test_what_may_be_lost_is_lost_now_and_then():
    """Else the checks would hold because disks never lose anything."""
    total = Sum()
    for result in runs("cluster", 200_000, 60, "power"):
        total.add(result)
    assert total.counts["unclean elections"] > 0
    assert total.counts["acked by a leader alone and lost"] > 0


@pytest.mark.parametrize("profile", PROFILES)
def test_a_seed_repeats_a_run(profile):
    one, other = (run(5, profile, digest=True, trace=True) for _ in range(2))
    assert one == other
    assert one.trace
    assert one.digest != run(6, profile, digest=True).digest


def test_a_run_is_the_same_in_every_process():
    program = (
        "from liftbridge.sim.cluster import run\n"
        "print([run(seed, 'everything', digest=True).digest for seed in range(6)])"
    )
    seen = set()
    for number in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": number}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_the_profiles_take_turns():
    assert [profile_of("cluster", seed) for seed in range(8)] == list(PROFILES)


def test_every_fault_of_every_profile_exists():
    names = {name for profile in PROFILES.values() for name in profile}
    assert all(callable(getattr(Faults, f"_{name}", None)) for name in names)


def test_a_finding_says_what_and_how_to_see_it_again(monkeypatch):
    """A leader that exposes what only it has, as a bug would: a run finds it, and another repeats it."""
    real = Leader.commit

    def commit(leader):
        real(leader)
        leader._high_watermark = leader._log.next_offset - 1
        return leader.high_watermark

    monkeypatch.setattr(Leader, "commit", commit)
    result = run(0, "network")
    assert result.problem.startswith("J-1")
    text = result.report()
    assert text.startswith(f"seed 0, profile network: {result.problem}\n")
    assert text.endswith("again: liftbridge sim cluster --seed 0 --profile network --trace")
    assert any("append " in line for line in result.trace)
    assert run(0, "network") == result


def test_an_error_of_a_machine_is_a_finding(monkeypatch):
    def state(leader, statement, now):
        raise KeyError("gone")

    monkeypatch.setattr(Leader, "state", state)
    result = run(0, "network")
    assert result.problem.startswith("a broker failed by itself:")
    assert "KeyError: 'gone'" in result.problem


def test_a_follower_that_takes_nothing_is_a_finding(monkeypatch):
    monkeypatch.setattr(Follower, "progress", lambda follower: None)
    monkeypatch.setattr(Follower, "position", lambda follower: None)
    problems = [run(seed, "network").problem for seed in range(8)]
    assert any(
        problem.startswith("J-21") and "after all faults healed the cluster does not" in problem
        for problem in problems
    )


def test_a_controller_that_does_nothing_is_a_finding(monkeypatch):
    monkeypatch.setattr(Control, "due", lambda control, now: [])
    assert any(run(seed, "failover").problem.startswith("J-22") for seed in range(4))


def test_how_long_nothing_is_acked_when_a_broker_dies():
    found = [dict(run(seed, "failover").counts)["ms without acks"] for seed in range(40)]
    assert 0 < max(found) < 2000  # of a session of 600
