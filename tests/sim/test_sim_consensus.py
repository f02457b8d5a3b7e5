"""The consensus core under simulated faults, some hundred short runs; `make sim` does more of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from liftbridge.raft import Raft
from liftbridge.sim.consensus import PROFILES, run
from liftbridge.sim.raft_faults import Faults
from liftbridge.sim.raft_host import Host
from liftbridge.sim.seeds import Sum, profile_of, runs

SEEDS = 84  # of each profile


@pytest.mark.parametrize("profile", PROFILES)
def test_no_run_finds_anything(profile):
    total = Sum()
    for result in runs("consensus", 10_000, SEEDS, profile):
        assert not result.problem, result.report()
        total.add(result)
    # Else all would be well because nothing happens.
    assert total.acked > 10 * SEEDS
    assert total.terms > 3 * SEEDS
    assert total.events > 800 * SEEDS


@pytest.mark.parametrize("profile", PROFILES)
def test_a_seed_repeats_a_run(profile):
    one, other = (run(5, profile, digest=True, trace=True) for _ in range(2))
    assert one == other
    assert one.trace
    assert one.digest != run(6, profile, digest=True).digest


def test_profiles_differ():
    assert len({run(5, profile, digest=True).digest for profile in PROFILES}) == len(PROFILES)


def test_a_run_is_the_same_in_every_process():
    program = (
        "from liftbridge.sim.consensus import run\n"
        "print([run(seed, 'everything', digest=True).digest for seed in range(4)])"
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
    assert [profile_of("consensus", seed) for seed in range(6)] == list(PROFILES)
    assert [result.profile for result in runs("consensus", 6, 6, None)] == list(PROFILES)


def test_every_fault_of_every_profile_exists():
    names = {name for profile in PROFILES.values() for name in profile}
    assert all(callable(getattr(Faults, f"_{name}", None)) for name in names)


def test_a_finding_says_what_and_how_to_see_it_again(monkeypatch):
    """A vote that is told at once, as a bug would: the first run finds it, the second repeats it."""
    real = Raft.ready

    def ready(core):
        found = real(core)
        votes = [message for message in found.later if type(message).__name__ == "VoteReply"]
        return found if not votes else _moved(found, votes)

    monkeypatch.setattr(Raft, "ready", ready)
    result = run(0, "network")
    assert "its disk" in result.problem
    text = result.report()
    assert text.startswith(f"seed 0, profile network: {result.problem}\n")
    assert text.endswith("again: liftbridge sim consensus --seed 0 --profile network --trace")
    assert any("take " in line for line in result.trace)
    assert run(0, "network") == result


def _moved(ready, votes):
    from dataclasses import replace

    later = [message for message in ready.later if message not in votes]
    return replace(ready, messages=[*ready.messages, *votes], later=later)


def test_an_error_of_a_core_is_a_finding(monkeypatch):
    def tick(core, jitter):
        raise KeyError("gone")

    monkeypatch.setattr(Raft, "tick", tick)
    result = run(0, "network")
    assert result.problem.startswith("a node failed by itself:")
    assert "KeyError: 'gone'" in result.problem


def test_a_cluster_that_stands_still_is_a_finding(monkeypatch):
    monkeypatch.setattr(Host, "rush", lambda host: None)
    monkeypatch.setattr(Raft, "campaign", lambda core: None)
    monkeypatch.setattr(Raft, "tick", lambda core, jitter: None)
    result = run(0, "network")
    assert "after all faults healed the cluster does not come to rest" in result.problem
    assert "follower in 1" in result.problem
