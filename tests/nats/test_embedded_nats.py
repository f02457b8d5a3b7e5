"""The embedded NATS server: a real nats-server, started, watched, restarted and stopped."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing
import trustme

from liftbridge.nats import embedded
from liftbridge.nats.embedded import EmbeddedNats, EmbeddedNatsError, find_nats_server

LOG = logging.getLogger("test.nats.server")


def make(runtime_dir: Path, **options: object) -> EmbeddedNats:
    """An embedded server on a free port of 127.0.0.1, unless the options say otherwise."""
    if "config_file" not in options:
        options = {"host": "127.0.0.1", "port": 0} | options
    return EmbeddedNats(log_to=LOG, runtime_dir=runtime_dir, **options)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that another process does."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended but was not reaped by its new parent does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


def free(host: str, port: int) -> bool:
    """Whether a server could bind the address, as a restarted nats-server will."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError:
            return False
        return True


def accepts(url: str) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(address(url)) == 0


def guards(runtime_dir: Path) -> list[str]:
    """The processes that mention this runtime directory: nats-server and its guard."""
    lines = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in lines.splitlines() if str(runtime_dir) in line and line.split()[1][0] != "Z"]


class Client:
    """A NATS client of a few lines, with everything visible."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = b""

    async def line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            chunk = await self._stream.receive_some(65536)
            assert chunk, "the server closed the connection"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\r\n", 1)
        return line

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def connect(self) -> dict[str, object]:
        info = await self.line()
        await self.send(b'CONNECT {"verbose":false}\r\nPING\r\n')
        assert await self.line() == b"PONG"
        return json.loads(info.removeprefix(b"INFO "))


@asynccontextmanager
async def open_client(url: str) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream(*address(url)) as stream:
        yield Client(stream)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, logger=LOG.name)
    yield


async def test_a_message_passes_through_it_and_it_stops_with_us(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nats = make(tmp_path / "run")
    url = await nursery.start(nats.run)
    assert url == nats.client_url
    async with open_client(url) as client:
        info = await client.connect()
        assert "jetstream" not in info
        await client.send(b"SUB a 1\r\nPUB a 5\r\nhello\r\n")
        assert (await client.line(), await client.line()) == (b"MSG a 1 5", b"hello")
    assert len(guards(tmp_path)) == 2
    pid = nats.pid
    assert pid is not None and alive(pid)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await until(lambda: not alive(pid) and free(*address(url)))
        await until(lambda: guards(tmp_path) == [])
    assert nats.restarts == 0


async def test_no_process_is_left_when_run_has_returned(tmp_path: Path) -> None:
    nats = make(tmp_path / "run")
    async with trio.open_nursery() as nursery:
        await nursery.start(nats.run)
        pid = nats.pid
        nursery.cancel_scope.cancel()
    assert pid is not None and not alive(pid)
    assert nats.pid is None


async def test_cancelled_while_it_starts(tmp_path: Path) -> None:
    for checkpoints in range(0, 40, 4):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make(tmp_path / "run").run)
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await until(lambda: guards(tmp_path) == [])


async def test_it_is_started_again_on_the_same_port_when_it_dies(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nats = make(tmp_path / "run")
    url = await nursery.start(nats.run)
    for count in (1, 2):
        first = nats.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda count=count, first=first: nats.restarts == count and nats.pid not in (None, first))
        await until(lambda: accepts(url))
        async with open_client(url) as client:
            await client.connect()
    assert nats.client_url == url
    deaths = [record for record in caplog.records if "was killed by SIGKILL" in record.getMessage()]
    assert len(deaths) == 2 and all(record.levelno == logging.ERROR for record in deaths)
    assert [re.findall(r"[\d.]+ s$", record.getMessage()) for record in deaths] == [["0.1 s"], ["0.2 s"]]
    await until(lambda: len(guards(tmp_path)) == 2)


OWNER = """
import logging, sys, trio
from pathlib import Path
from liftbridge.nats.embedded import EmbeddedNats

async def main():
    nats = EmbeddedNats(
        host="127.0.0.1", port=int(sys.argv[2]), log_to=logging.getLogger("x"), runtime_dir=Path(sys.argv[1])
    )
    async with trio.open_nursery() as nursery:
        url = await nursery.start(nats.run)
        print(url, nats.pid, flush=True)

trio.run(main)
"""


async def test_it_dies_with_its_owner_even_on_sigkill(tmp_path: Path) -> None:
    port = 0
    for _ in range(3):  # each owner takes over the port of the one before
        command = [sys.executable, "-c", OWNER, str(tmp_path), str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            line = await trio.to_thread.run_sync(owner.stdout.readline)
            url, pid = line.split()
            host, port = address(url)
            assert alive(int(pid)) and not free(host, port)
            owner.send_signal(signal.SIGKILL)
        await until(lambda pid=pid, host=host, port=port: not alive(int(pid)) and free(host, port))
        await until(lambda: guards(tmp_path) == [])


async def test_ctrl_c_at_the_terminal_does_not_reach_it(nursery: trio.Nursery, tmp_path: Path) -> None:
    nats = make(tmp_path)
    await nursery.start(nats.run)
    assert nats.pid is not None
    assert os.getpgid(nats.pid) != os.getpgid(0)
    assert os.getsid(nats.pid) != os.getsid(0)


async def fails(nats: EmbeddedNats) -> str:
    """Run a server that cannot start and return what the error says."""
    with pytest.raises(EmbeddedNatsError) as error:
        await nats.run()
    return str(error.value)


async def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = await fails(make(tmp_path, port=taken.getsockname()[1]))
    assert "does not start: it ended with status 1" in message
    assert "address already in use" in message and "--nats-servers" in message


async def test_a_broken_file_is_a_clear_error(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("port: -1\nfoo: bar\n")
    assert 'unknown field "foo"' in await fails(make(tmp_path / "run", config_file=config))
    assert "no such file" in await fails(make(tmp_path / "run", config_file=tmp_path / "none.conf"))


async def test_a_runtime_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in await fails(make(tmp_path / "file" / "run"))


async def test_a_program_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    assert "ended with status 127" in await fails(make(tmp_path, program=tmp_path / "no-such-program"))


async def test_a_server_that_never_listens_is_given_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    program = tmp_path / "sleeper"
    program.write_text("#!/bin/sh\necho '[1] [INF] thinking' >&2\nexec sleep 1000\n")
    program.chmod(0o755)
    message = await fails(make(tmp_path / "run", program=program))
    assert "does not start: it did not accept clients within 10 s" in message
    assert guards(tmp_path) == []


async def test_a_server_that_ignores_sigterm_is_killed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    program = tmp_path / "stubborn"
    program.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    program.chmod(0o755)
    assert "within 10 s" in await fails(make(tmp_path / "run", program=program))
    assert guards(tmp_path) == []


async def test_the_users_file_decides_everything(nursery: trio.Nursery, tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    store, log_file = tmp_path / "js", tmp_path / "nats.log"
    config.write_text(
        f"host: 127.0.0.1\nport: -1\nmax_payload: 4321\n"
        f'log_file: "{log_file}"\njetstream {{ store_dir: "{store}" }}\n'
    )
    text = config.read_text()
    url = await nursery.start(make(tmp_path / "run", config_file=config).run)
    async with open_client(url) as client:
        info = await client.connect()
    assert info["max_payload"] == 4321 and info["jetstream"] is True
    assert config.read_text() == text and "Server is ready" in log_file.read_text()


async def test_a_file_with_tls(nursery: trio.Nursery, tmp_path: Path) -> None:
    pair = trustme.CA().issue_cert("localhost")
    pair.private_key_pem.write_to_path(str(tmp_path / "key"))
    pair.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    for first in ("false", "true"):
        config = tmp_path / f"{first}.conf"
        config.write_text(
            f"host: 127.0.0.1\nport: -1\n"
            f'tls {{ cert_file: "{tmp_path}/cert", key_file: "{tmp_path}/key", handshake_first: {first} }}\n'
        )
        url = await nursery.start(make(tmp_path / f"run-{first}", config_file=config).run)
        assert url.startswith("tls://127.0.0.1:")


async def test_all_interfaces_are_reached_through_loopback(nursery: trio.Nursery, tmp_path: Path) -> None:
    nats = make(tmp_path, host=None)
    url = await nursery.start(nats.run)
    assert address(url)[0] == "127.0.0.1"
    assert '"0.0.0.0"' in (tmp_path / "nats-server.conf").read_text()


def test_the_defaults_are_those_of_nats(tmp_path: Path) -> None:
    nats = EmbeddedNats(log_to=LOG, runtime_dir=tmp_path)
    text = nats._write_config().read_text()
    assert 'host: "0.0.0.0"\nport: 4222\n' in text
    assert "http" not in text and "jetstream" not in text


async def test_a_subscriber_may_lag_by_a_burst(nursery: trio.Nursery, tmp_path: Path) -> None:
    """With the settings that nats-server has by itself a reader is cut off when it is 64 MiB behind."""
    url = await nursery.start(make(tmp_path).run)
    async with open_client(url) as reader, open_client(url) as writer:
        await reader.connect()
        await writer.connect()
        await reader.send(b"SUB burst 1\r\nPING\r\n")
        assert await reader.line() == b"PONG"
        message = b"PUB burst 1000000\r\n" + b"x" * 1_000_000 + b"\r\n"
        for _ in range(90):
            await writer.send(message)
        await writer.send(b"PING\r\n")
        assert await writer.line() == b"PONG"
        await reader.send(b"PING\r\n")
        wanted = 90 * (len(b"MSG burst 1 1000000\r\n") + 1_000_000 + 2) + len(b"PONG\r\n")
        with trio.fail_after(60):
            received = len(reader._buffer)
            while received < wanted:
                chunk = await reader._stream.receive_some(1 << 20)
                assert chunk, f"cut off after {received} bytes"
                received += len(chunk)
        assert received == wanted


async def test_its_log_lines_arrive_with_their_levels(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("host: 127.0.0.1\nport: -1\ndebug: true\n")
    url = await nursery.start(make(tmp_path / "run", config_file=config).run)
    async with open_client(url) as client:
        await client.line()
        await client.send(b"nonsense\r\n")
        while await client.line() != b"-ERR 'Unknown Protocol Operation'":
            pass

    def seen(level: int, part: str) -> bool:
        return any(record.levelno == level and part in record.getMessage() for record in caplog.records)

    await until(lambda: seen(logging.INFO, "Server is ready"))
    await until(lambda: seen(logging.DEBUG, "Client connection created"))
    await until(lambda: seen(logging.ERROR, "parse") or seen(logging.ERROR, "parser"))
    assert all(record.getMessage() == record.getMessage().strip() for record in caplog.records)


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        (b"[1] 2026/01/02 03:04:05.678901 [INF] text [x]", logging.INFO, "text [x]"),
        (b"[1] 2026/01/02 03:04:05.678901 +0200 [INF] text", logging.INFO, "text"),
        (b"[1] [INF]   Version:  2", logging.INFO, "Version:  2"),
        (b"[1] [TRC] t", logging.DEBUG, "t"),
        (b"[1] [DBG] d", logging.DEBUG, "d"),
        (b"[1] [WRN] w", logging.WARNING, "w"),
        (b"[1] [ERR] e", logging.ERROR, "e"),
        (b"[1] [FTL] f", logging.CRITICAL, "f"),
        (
            b"[1] [INF] 127.0.0.1 - Slow Consumer Detected: x",
            logging.WARNING,
            "127.0.0.1 - Slow Consumer Detected: x",
        ),
        (b"panic: something", logging.WARNING, "panic: something"),
        (b"\xff\xfe", logging.WARNING, "\ufffd\ufffd"),
        (b"%s [1] %d", logging.WARNING, "%s [1] %d"),
    ],
)
def test_levels_of_log_lines(
    line: bytes, level: int, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path)._fold_line(line)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(level, message)]


async def test_an_endless_line_costs_no_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = tmp_path / "babbler"
    program.write_text("#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' x >&2\n")
    program.chmod(0o755)
    assert "ended with status 0" in await fails(make(tmp_path / "run", program=program))
    assert max(len(record.getMessage()) for record in caplog.records) <= embedded._LINE_MAX_BYTES


def test_the_program_of_the_wheel_is_found_first() -> None:
    found = find_nats_server()
    assert found.name == "nats-server"
    output = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    assert output.startswith("nats-server: v2.")
