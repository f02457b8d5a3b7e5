"""Fixtures of the tests of the log: processes on a simulated disk."""

import os
import tempfile
from pathlib import Path

import pytest
from disk.machine import Machine, build, missing

MEMORY = "/dev/shm"


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    """A worker on the simulated disk, for the whole session."""
    if reason := missing():
        pytest.skip(reason)
    with Machine(build(tmp_path_factory.mktemp("shim"))) as machine:
        yield machine


@pytest.fixture
def scratch(tmp_path):
    """An empty directory in memory where there is one: thousands of crashes need no syncs of a real disk."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="liftbridge-", dir=MEMORY) as directory:
        yield Path(directory)
