"""What gufo-liftbridge's own tests find as their conftest.py: their published sources come without one.

Copied next to them, never imported by tests. The environment names the server program and the host:port it
is to listen on.
"""

import os

import pytest
from gufo.liftbridge.liftbridge import Liftbridge


@pytest.fixture(scope="session")
def liftbridge():
    """A server that gufo's helper runs: `-c FILE -d DIR --embedded-nats --raft-bootstrap-seed`."""
    with Liftbridge(os.environ["GUFO_PROGRAM"], os.environ["GUFO_BROKER"]) as running:
        yield running
