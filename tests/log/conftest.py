"""Fixtures of the tests of the log: processes on a simulated disk."""

import tempfile
from pathlib import Path

import pytest
from disk.machine import Machine, build, missing
from log_helpers import MEMORY


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
    if MEMORY is None:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="liftbridge-", dir=MEMORY) as directory:
        yield Path(directory)
