"""`liftbridge sim` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys


def sim(*arguments):
    command = [sys.executable, "-m", "liftbridge.cli.main", "sim", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_seeds_that_find_nothing_end_with_0_and_one_line():
    done = sim("--seed", "3", "--seeds", "7")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("7 seeds, ")
    assert done.stdout.endswith(" acked: nothing found\n")


def test_a_trace_is_printed_and_is_the_same_each_time():
    arguments = ("--seed", "4", "--profile", "power", "--trace")
    done = sim(*arguments)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 100
    assert "heal" in done.stdout
    assert sim(*arguments).stdout == done.stdout


def test_json_is_a_line_for_each_seed():
    done = sim("--seeds", "3", "--json", "--profile", "members")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document["seed"] for document in documents] == [0, 1, 2]
    assert all(document["profile"] == "members" and document["problem"] is None for document in documents)


def test_whole_clusters():
    done = sim("cluster", "--seed", "8", "--seeds", "8", "--json")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert {document["kind"] for document in documents} == {"cluster"}
    assert len({document["profile"] for document in documents}) == 8
    assert sum(document["leaders"] for document in documents) > 8


def test_a_profile_belongs_to_a_kind():
    done = sim("consensus", "--profile", "failover")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no profile failover of consensus: network, crashes, " in done.stderr


def test_a_profile_that_does_not_exist_is_an_error_of_the_command_line():
    done = sim("--profile", "floods")
    assert done.returncode == 2
    assert "everything" in done.stderr
    assert sim("--seeds", "0").returncode == 2
