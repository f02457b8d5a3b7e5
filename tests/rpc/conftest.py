"""Fixtures of the gRPC server's tests."""

import gc
import warnings

import pytest
import trio
from rpc_support import RawClient


@pytest.fixture
def purerpc_leaks():
    """Let go of what purerpc leaves open (sockets, memory streams) in the test that uses it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
async def connect():
    """Open raw connections that are closed after the test."""
    clients = []

    async def connect(*args, **kwargs):
        clients.append(await RawClient.connect(*args, **kwargs))
        return clients[-1]

    yield connect
    for client in clients:
        await trio.aclose_forcefully(client.stream)
