"""One server for the tests that only need names of their own."""

import pytest
from cli_support import CONFIG
from harness import Server


@pytest.fixture(scope="package")
def shared(tmp_path_factory):
    """A server with cursors and the activity stream."""
    with Server(tmp_path_factory.mktemp("shared"), CONFIG) as running:
        yield running


@pytest.fixture(scope="package")
def stubs(shared):
    """grpcio stubs to it: what a command did is not checked with the client that the command uses."""
    return shared.api()
