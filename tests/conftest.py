"""Fixtures of all tests: a running server, and stubs to talk to it."""

import signal

import pytest
from harness import Server

# Whoever starts the tests in the background has SIGINT ignored, and every program that a test starts and
# interrupts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def server(tmp_path):
    """A server with an embedded NATS server and nothing in it."""
    with Server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def api(server):
    """grpcio stubs to `server`."""
    return server.api()
