"""The server that most of these tests share: with cursors and the activity stream, otherwise as it comes."""

import socket
import sys

import pytest
from calls import NatsClient
from conformance_calls import Api
from harness import Server

SHARED = {"cursors.stream.partitions": 1, "activity.stream.enabled": True}


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("conformance"), SHARED) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(scope="session")
def api(server):
    return Api(server)


@pytest.fixture(scope="session")
def nats(server):
    with NatsClient(server.nats_url) as client:
        yield client


@pytest.fixture
def start(tmp_path):
    """A function that starts a server of a test's own with a configuration; returns it and its stubs."""
    servers = []

    def start(config=None, name="server", **options):
        servers.append(Server(tmp_path / name, config, **options))
        return servers[-1].start(), Api(servers[-1])

    yield start
    for running in servers:
        running.close()
        assert "Traceback" not in running.log


class CommandLine(Server):
    """A server with a command line of its own in the place of the harness's."""

    def __init__(self, directory, *arguments, **options):
        super().__init__(directory, **options)
        self.arguments = arguments

    def command(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        return [sys.executable, "-m", "liftbridge.cli.main", *map(str, self.arguments)]


@pytest.fixture
def command_line(tmp_path):
    """A function that makes a server with these arguments, not started yet."""
    servers = []

    def command_line(*arguments, **options):
        servers.append(CommandLine(tmp_path / f"command{len(servers)}", *arguments, **options))
        return servers[-1]

    yield command_line
    for running in servers:
        running.close()
        assert "Traceback" not in running.log


@pytest.fixture
def free_port():
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
