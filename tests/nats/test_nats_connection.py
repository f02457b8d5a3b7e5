"""`NatsConnection` and a real nats-server: every way to log in, TLS, and whatever can go wrong on the way."""

import asyncio
import gc
import json
import logging
import os
import re
import signal
import sys
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trustme
from harness import Nats, freeze
from nats_jwt import decentralised

from liftbridge._wire import CollectingSink
from liftbridge.broker.config import NatsConfig
from liftbridge.broker.tls import nats_ssl_context
from liftbridge.nats import bridge
from liftbridge.nats import connection as module
from liftbridge.nats.connection import (
    MAX_PENDING,
    NatsConnection,
    NatsPermissionError,
    NatsUnavailableError,
)
from liftbridge.nats.transport import NatsCredentials, without_secrets

SECONDS = 20
SECRET = "s3cr3t/p@ss:word%"
SECRET_IN_URL = "s3cr3t%2Fp%40ss%3Aword%25"


class Log(logging.Handler):
    """What connections log; tests wait for it."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self.news = trio.Event()

    def emit(self, record):
        self.lines.append(record.getMessage())
        self.news.set()
        self.news = trio.Event()

    @property
    def text(self):
        return "\n".join(self.lines)

    async def wait(self, pattern, times=1):
        """Wait until the log contains a regular expression so many times; returns the matches."""
        with trio.move_on_after(SECONDS):
            while len(found := re.findall(pattern, self.text, re.MULTILINE)) < times:
                await self.news.wait()
            return found
        raise AssertionError(f"{pattern!r} was not logged {times} times, but:\n{self.text}")


class Inbox:
    """The owner of a sink that tests wait for."""

    def __init__(self):
        self.sink = CollectingSink(self)
        self.values = []
        self.news = trio.Event()

    def on_messages(self):
        self.values += [value for _, _, value in self.sink.take()]
        self.news.set()
        self.news = trio.Event()

    async def wait(self, count):
        with trio.fail_after(SECONDS):
            while len(self.values) < count:
                await self.news.wait()
        return self.values


BRIDGES = (
    [bridge.ThreadBridge] if sys.version_info >= (3, 14) else [bridge.TrioAsyncioBridge, bridge.ThreadBridge]
)


@pytest.fixture(autouse=True, params=BRIDGES)
def _bridge(request, monkeypatch):
    """Every test runs over every bridge that this Python has."""
    monkeypatch.setattr(bridge, "BRIDGE", request.param())


@pytest.fixture
def log():
    handler = Log()
    logger = logging.getLogger("liftbridge.nats")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@asynccontextmanager
async def running(*servers, **options):
    """A connection whose task runs; nothing of it may be left afterwards."""
    credentials = options.pop("credentials", NatsCredentials())
    connection = NatsConnection(servers, name="test", purpose="test", credentials=credentials, **options)
    async with bridge.BRIDGE.opened() as loop:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            try:
                yield connection
            finally:
                nursery.cancel_scope.cancel()
        assert loop is None or not asyncio.all_tasks(loop)


@asynccontextmanager
async def connected(*servers, **options):
    async with running(*servers, **options) as connection:
        with trio.fail_after(SECONDS):
            await connection.wait_connected()
        yield connection


def publish(subject, value):
    return b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(value), value)


async def check_works(connection, subject="works"):
    """A message comes back."""
    inbox = Inbox()
    with trio.fail_after(SECONDS):
        sid = await connection.subscribe(subject, inbox.sink)
        await connection.send(publish(subject, b"v" * 1000000))
        assert await inbox.wait(1) == [b"v" * 1000000]
    connection.unsubscribe(sid)


def start(tmp_path, config="", name="nats", port=-1):
    return Nats(tmp_path / name, config, port)


# -- logging in ----------------------------------------------------------------------------------------

USER = f'authorization {{ user: "lift", password: "{SECRET}" }}'
TOKEN = f'authorization {{ token: "{SECRET}" }}'


@pytest.mark.parametrize(
    "config, login, credentials",
    [
        (USER, "", NatsCredentials(user="lift", password=SECRET)),
        (TOKEN, "", NatsCredentials(token=SECRET)),
        (USER, f"lift:{SECRET_IN_URL}@", NatsCredentials()),
        (TOKEN, f"{SECRET_IN_URL}@", NatsCredentials()),
        (USER, "other:wrong@", NatsCredentials(user="lift", password=SECRET)),
        (TOKEN, "other:wrong@", NatsCredentials(token=SECRET)),
        ("", f"lift:{SECRET_IN_URL}@", NatsCredentials()),
    ],
    ids=[
        "user",
        "token",
        "user-in-url",
        "token-in-url",
        "user-before-url",
        "token-before-url",
        "not-asked-for",
    ],
)
async def test_a_server_lets_us_in(tmp_path, log, config, login, credentials):
    with start(tmp_path, config) as nats:
        async with connected(nats.url.replace("//", f"//{login}"), credentials=credentials) as connection:
            await check_works(connection)
            await log.wait(f"connected to NATS .* at {nats.url}$")
    assert "s3cr3t" not in log.text


@pytest.mark.parametrize(
    "config, login, credentials",
    [
        (USER, "", NatsCredentials(user="lift", password="s3cr3t")),
        (TOKEN, "", NatsCredentials(token="s3cr3t")),
        (USER, "lift:s3cr3t@", NatsCredentials()),
        (TOKEN, "s3cr3t@", NatsCredentials()),
        (USER, "", NatsCredentials()),
    ],
    ids=["user", "token", "user-in-url", "token-in-url", "nothing"],
)
async def test_a_server_that_refuses_us_is_named_and_tried_again(tmp_path, log, config, login, credentials):
    with start(tmp_path, config) as nats:
        async with running(nats.url.replace("//", f"//{login}"), credentials=credentials) as connection:
            pauses = await log.wait(rf"again in ([\d.]+) s: {nats.url}: .*Authorization Violation", times=3)
            assert not connection.connected
            assert nats.url in connection.last_error
    assert pauses[:3] == ["0.05", "0.10", "0.20"]
    assert "s3cr3t" not in log.text
    assert "s3cr3t" not in repr(credentials)


async def test_a_credentials_file(tmp_path, log):
    config, user = decentralised()
    file = tmp_path / "user.creds"
    file.write_text("this is no credentials file\n")
    with start(tmp_path, config) as nats:
        async with running(nats.url, credentials=NatsCredentials(credentials=str(file))) as connection:
            await log.wait(f"no NATS yet.*{nats.url}: ")
            file.write_text(decentralised()[1].credentials())
            await log.wait(f"no NATS yet.*{nats.url}: .*Authorization Violation")
            file.unlink()
            await log.wait(f"no NATS yet.*{nats.url}: .*No such file.*user.creds")
            file.write_text(user.credentials())
            with trio.fail_after(SECONDS):
                await connection.wait_connected()
            await check_works(connection)
    assert user.seed.decode() not in log.text


@pytest.mark.parametrize(
    "url, shown",
    [
        ("nats://u:p@h:4222", "nats://h:4222"),
        ("nats://t@h", "nats://h"),
        ("tls://u:p:@//@h:1", "tls://h:1"),
        ("u:p@h:1", "h:1"),
        ("nats://h:1", "nats://h:1"),
        ("h:1", "h:1"),
    ],
)
def test_what_is_shown_of_a_url(url, shown):
    assert without_secrets(url) == shown


# -- TLS -----------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority, a nats-server's TLS settings, and contexts as the configuration makes them."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()
        self.ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.server = self.pair("server", "127.0.0.1", "localhost")

    def pair(self, name, *identities):
        issued = self.ca.issue_cert(*identities)
        cert, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        return cert, key

    def config(self, more=""):
        cert, key = self.server
        return f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{self.ca_file}", {more} }}'

    def credentials(self, pair=(None, None)):
        config = NatsConfig(tls_ca=self.ca_file, tls_cert=pair[0], tls_key=pair[1])
        return NatsCredentials(tls=nats_ssl_context(config))


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


async def test_tls_with_a_ca_alone(tmp_path, authority):
    with start(tmp_path, authority.config()) as nats:
        async with connected(nats.url, credentials=authority.credentials()) as connection:
            await check_works(connection)
            for number in range(20):
                await connection.send(publish("many", b"%d" % number))
            await connection.flush()
            assert connection.reconnects == 0


async def test_tls_where_the_server_leaves_it_open(tmp_path, authority):
    with start(tmp_path, authority.config() + "\nallow_non_tls: true") as nats:
        async with connected(nats.url, credentials=authority.credentials()) as connection:
            assert isinstance(connection._open.stream, trio.SSLStream)
            await check_works(connection)


async def test_tls_with_a_client_certificate(tmp_path, log, authority):
    with start(tmp_path, authority.config("verify: true")) as nats:
        credentials = authority.credentials(authority.pair("client", "client@example.org"))
        async with connected(nats.url, credentials=credentials) as connection:
            await check_works(connection)
        async with running(nats.url, credentials=authority.credentials()) as connection:
            await log.wait(rf"no NATS yet.*{nats.url}: .*(certificate|closed|reset|[Bb]roke)", times=2)
            assert not connection.connected


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_a_server_of_an_unknown_authority_is_refused(tmp_path, log, authority, scheme):
    stranger = Authority(tmp_path / "stranger")
    credentials = stranger.credentials() if scheme == "nats" else NatsCredentials()
    with start(tmp_path, authority.config()) as nats:
        url = nats.url.replace("nats", scheme)
        async with running(url, credentials=credentials) as connection:
            await log.wait(rf"no NATS yet.*{url}: .*certificate verify failed", times=2)
            assert not connection.connected


class Peer:
    """A TCP server that is no NATS server: it says what it is told to and keeps what it hears."""

    def __init__(self, *lines, close=True):
        self.lines = lines
        self.close = close
        self.heard = b""
        self.connections = 0
        self.url = ""

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"nats://127.0.0.1:{listener.socket.getsockname()[1]}"
        await trio.serve_listeners(self._talk, [listener], task_status=task_status)

    async def _talk(self, stream):
        self.connections += 1
        try:
            for line in self.lines:
                await stream.send_all(line)
            if self.close:
                await stream.send_eof()
            async for data in stream:
                self.heard += data
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


async def test_no_tls_no_password(tmp_path, log, authority, nursery):
    # Whoever sits on the wire may have removed the offer of TLS; the password must not be theirs.
    peer = Peer(b'INFO {"auth_required": true, "max_payload": 1048576}\r\n', close=False)
    await nursery.start(peer.run)
    credentials = NatsCredentials(user="lift", password=SECRET, tls=authority.credentials().tls)
    async with running(peer.url, credentials=credentials):
        await log.wait(f"{peer.url}: .*offers no TLS", times=2)
    assert peer.heard == b""
    async with running(peer.url.replace("nats", "tls"), credentials=NatsCredentials(token=SECRET)):
        await log.wait("tls://.*offers no TLS", times=2)
    assert peer.heard == b""


# -- servers that come, go and misbehave ---------------------------------------------------------------


async def test_after_a_restart_all_is_as_before_and_nothing_was_kept(tmp_path, log):
    with start(tmp_path) as nats:
        async with connected(nats.url) as connection:
            inbox, grouped = Inbox(), Inbox()
            await connection.subscribe("a.*", inbox.sink)
            ended = await connection.subscribe("a.*", Inbox().sink)
            await connection.subscribe("a.b", grouped.sink, queue="g")
            nats.stop()
            await log.wait("lost the connection to NATS")
            assert not connection.connected
            with pytest.raises(NatsUnavailableError):
                await connection.send(publish("a.b", b"lost"))
            assert not connection.enqueue(publish("a.b", b"lost"))
            assert connection.refused_sends == 1
            with pytest.raises(NatsUnavailableError):
                await connection.flush()
            await connection.drain()
            connection.unsubscribe(ended)
            late = Inbox()
            await connection.subscribe("late", late.sink)
            await log.wait("no NATS yet, trying again in 0.10 s")
            await trio.to_thread.run_sync(nats.start)
            with trio.fail_after(SECONDS):
                await connection.wait_connected()
            await connection.send(publish("a.b", b"kept") + publish("late", b"kept"))
            assert await late.wait(1) == [b"kept"]
            assert await inbox.wait(1) == [b"kept"]
            assert await grouped.wait(1) == [b"kept"]
            assert connection.reconnects == 1
            assert connection.parser.unknown_subscription == 0


async def test_waiters_learn_that_the_connection_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_TIMEOUT", float("inf"))
    with start(tmp_path) as nats, trio.fail_after(SECONDS):
        async with connected(nats.url) as connection:
            freeze(nats.process.pid)
            errors = []

            async def flush():
                try:
                    await connection.flush()
                except NatsUnavailableError as error:
                    errors.append(error)

            async with trio.open_nursery() as waiting:
                waiting.start_soon(flush)
                waiting.start_soon(connection.drain)
                await trio.testing.wait_all_tasks_blocked()
                nats.stop()
            assert len(errors) == 1


async def test_the_next_server_is_used_when_one_is_gone(tmp_path, log):
    with start(tmp_path, name="a") as first, start(tmp_path, name="b") as second:
        async with connected(first.url, second.url) as connection:
            await log.wait(f"connected to NATS .* at {first.url}$")
            first.stop()
            await log.wait(f"connected to NATS .* at {second.url}$")
            await check_works(connection)
            await trio.to_thread.run_sync(first.start)
            second.stop()
            await log.wait(f"connected to NATS .* at {first.url}$", times=2)
            await check_works(connection)


async def test_servers_of_the_cluster_are_discovered(tmp_path, log):
    login = "authorization { user: u, password: s3cr3t }\n"
    cluster = login + "cluster { name: c, listen: 127.0.0.1:-1, %s }"
    with start(tmp_path, cluster % "", "a") as first:
        (ports,) = (tmp_path / "a" / "ports").iterdir()
        (route,) = json.loads(ports.read_text())["cluster"]
        async with connected(first.url.replace("//", "//u:s3cr3t@")) as connection:
            assert len(connection.servers) == 1
            with start(tmp_path, cluster % f"routes: [{route}]", "b") as second:
                with trio.fail_after(SECONDS):
                    while second.url not in map(str, connection.servers):
                        await trio.sleep(0.01)
                first.stop()
                await log.wait(f"connected to NATS .* at {second.url}$")
                await check_works(connection)
    assert "s3cr3t" not in log.text


async def test_permissions(tmp_path, log):
    denied = '{ deny: ["secret.>"] }'
    user = f"{{ user: u, password: p, permissions: {{ subscribe: {denied}, publish: {denied} }} }}"
    config = f"authorization {{ users: [{user}] }}"
    with start(tmp_path, config) as nats:
        async with connected(nats.url, credentials=NatsCredentials(user="u", password="p")) as connection:
            outcomes = {}

            async def subscribe(subject, queue):
                try:
                    outcomes[subject, queue] = await connection.subscribe(subject, Inbox().sink, queue)
                except NatsPermissionError as error:
                    outcomes[subject, queue] = str(error)

            async with trio.open_nursery() as together:
                for subject in ("secret.a", "open.a", "secret.b", "open.b"):
                    together.start_soon(subscribe, subject, "")
                    together.start_soon(subscribe, subject, "group")
            for (subject, _), outcome in outcomes.items():
                if subject.startswith("open"):
                    assert isinstance(outcome, int)
                else:
                    assert f"refuses the subscription to '{subject}'" in outcome
            assert connection.violations == 4
            # A publish is not answered: it is told in the log, and not a thousand times.
            lines = len(log.lines)
            await connection.send(publish("secret.a", b"1") * 1000)
            await connection.flush()
            assert connection.violations == 1004
            await log.wait("NATS says: Permissions Violation for Publish to")
            assert len(log.lines) - lines < 20
            await check_works(connection)
            assert connection.reconnects == 0


async def test_queue_groups_share_and_others_get_all(tmp_path):
    with start(tmp_path) as nats:
        async with connected(nats.url) as one, connected(nats.url) as other:
            shares = [Inbox(), Inbox()]
            everything = Inbox()
            await one.subscribe("work", shares[0].sink, queue="workers")
            await other.subscribe("work", shares[1].sink, queue="workers")
            await other.subscribe("work", everything.sink)
            await one.send(b"".join(publish("work", b"%d" % number) for number in range(200)))
            assert await everything.wait(200) == [b"%d" % number for number in range(200)]
            # The group's messages were sent in front of these answers.
            await one.flush()
            await other.flush()
            assert sorted(map(int, shares[0].values + shares[1].values)) == list(range(200))
            assert shares[0].values
            assert shares[1].values


HELLO = b'INFO {"version": "2.10.0", "max_payload": 1048576}\r\n'


@pytest.mark.parametrize(
    "lines",
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n",),
        (b"INFO\r\n",),
        (b"INFO {\r\n",),
        (b"INFO 17\r\n",),
        (b"INFO " + b"[" * 60000 + b"\r\n",),
        (b'INFO {"connect_urls": 3}\r\n', b"PONG\r\n"),
        (b"\xff\x00\xfe\r\n",),
        (b"",),
        (b"x" * (2 << 20),),
        (HELLO, b"-ERR 'maximum connections exceeded'\r\n"),
        (HELLO, b"-ERR\r\n"),
        (HELLO, b"what?\r\n"),
    ],
)
async def test_a_peer_that_is_no_nats_server(log, nursery, lines):
    peer = Peer(*lines)
    await nursery.start(peer.run)
    async with running(peer.url):
        await log.wait(rf"(no NATS yet.*{peer.url}: .|lost the connection to NATS)", times=2)
        assert peer.connections >= 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n",
        b"MSG a b c d e f g\r\n",
        b"MSG a 1 99999999999\r\n",
        b"MSG a 1 1\r\nxyz\r\n",
        b"\n",
        b"x" * 70000,
    ],
)
async def test_garbage_costs_the_connection_and_nothing_else(log, nursery, garbage):
    peer = Peer(HELLO, b"PONG\r\n", garbage, close=False)
    await nursery.start(peer.run)
    async with running(peer.url) as connection:
        await log.wait("not the NATS protocol")
        # A server that fails right after the greeting is not tried without a pause.
        await log.wait(
            r"lost the connection to NATS \(not the NATS protocol.*reconnecting in 0.20 s", times=1
        )
        assert peer.connections >= 3
        assert connection.reconnects >= 3


@pytest.mark.parametrize(
    "info", [b"INFO []\r\n", b"INFO {\r\n", b"INFO " + b"[" * 60000 + b"\r\n", b"INFO \xff\r\n"]
)
async def test_a_later_info_that_is_none_is_ignored(tmp_path, nursery, info):
    mark = b"MSG works 1 2\r\nok\r\n"
    peer = Peer(HELLO, b"PONG\r\n", info + mark, close=False)
    await nursery.start(peer.run)
    inbox = Inbox()
    connection = NatsConnection([peer.url], name="n", purpose="p", credentials=NatsCredentials())
    await connection.subscribe("works", inbox.sink)
    async with bridge.BRIDGE.opened(), trio.open_nursery() as tasks:
        tasks.start_soon(connection.run)
        assert await inbox.wait(1) == [b"ok"]
        assert connection.connected
        tasks.cancel_scope.cancel()


async def test_a_server_that_falls_silent_is_noticed(tmp_path, log):
    with start(tmp_path) as nats:
        async with connected(nats.url, ping_interval=0.05) as connection:
            await check_works(connection)
            freeze(nats.process.pid)
            await log.wait("lost the connection to NATS .NATS was silent for")
            os.kill(nats.process.pid, signal.SIGCONT)
            with trio.fail_after(SECONDS):
                await connection.wait_connected()
            await check_works(connection)


async def test_a_server_that_answers_is_not_given_up(tmp_path):
    with start(tmp_path) as nats:
        paced = trio.Event()

        async def pace():
            if not paced.is_set():
                paced.set()
                # Far beyond the patience with a silent server: while nobody reads, silence means nothing.
                await trio.sleep(0.5)

        async with connected(nats.url, ping_interval=0.02, pace=pace) as connection:
            await check_works(connection)
            assert paced.is_set()
            assert connection.reconnects == 0


async def test_a_slow_server_makes_senders_wait(tmp_path):
    piece = publish("slow", b"x" * 1000000)
    with start(tmp_path) as nats:
        async with connected(nats.url) as receiver, connected(nats.url) as connection:
            inbox = Inbox()
            await receiver.subscribe("slow", inbox.sink)
            freeze(nats.process.pid)
            sent = 0

            async def send():
                nonlocal sent
                for _ in range(60):
                    await connection.send(piece)
                    sent += 1

            async with trio.open_nursery() as sending:
                sending.start_soon(send)
                with trio.fail_after(SECONDS):
                    while connection.pending_bytes < MAX_PENDING:
                        await trio.sleep(0.01)
                await trio.testing.wait_all_tasks_blocked()
                assert sent < 60
                assert connection.pending_bytes < MAX_PENDING + len(piece)
                assert not connection.enqueue(b"PING\r\n")
                assert connection.refused_sends == 1
                sending.start_soon(connection.wait_room)
                os.kill(nats.process.pid, signal.SIGCONT)
            await connection.flush()
            assert connection.pending_bytes == 0
            assert len(await inbox.wait(60)) == 60


async def test_senders_that_wait_learn_of_the_end(tmp_path):
    piece = publish("slow", b"x" * 1000000)
    with start(tmp_path) as nats:
        async with connected(nats.url) as connection:
            freeze(nats.process.pid)
            ended = []

            async def send():
                with pytest.raises(NatsUnavailableError):
                    while True:
                        await connection.send(piece)
                ended.append(True)

            async with trio.open_nursery() as sending:
                sending.start_soon(send)
                with trio.fail_after(SECONDS):
                    while connection.pending_bytes < MAX_PENDING:
                        await trio.sleep(0.01)
                sending.start_soon(connection.wait_room)
                nats.stop()
            assert ended
            assert connection.pending_bytes == 0


async def test_the_server_says_how_large_a_payload_may_be(tmp_path):
    with start(tmp_path, "max_payload: 4096") as nats:
        async with connected(nats.url) as connection:
            assert connection.max_payload == 4096
            nats.stop()


# -- cancellation --------------------------------------------------------------------------------------


class StepCounter(trio.abc.Instrument):
    """Cancels a scope before the step of number `at`; steps are those of any task while it watches."""

    def __init__(self, scope, at):
        self.scope = scope
        self.left = at

    def before_task_step(self, task):
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def test_cancellation_at_any_moment_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)

    async def life(nats, at):
        """Connect, subscribe, publish; the number of steps that were left when it was over."""
        async with bridge.BRIDGE.opened() as loop:
            with trio.CancelScope() as scope:
                counter = StepCounter(scope, at)
                connection = NatsConnection(
                    ["nats://127.0.0.1:9", nats.url],
                    name="n",
                    purpose="p",
                    credentials=NatsCredentials(user="u", password="p"),
                )
                inbox = Inbox()
                trio.lowlevel.add_instrument(counter)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(connection.run)
                        await connection.wait_connected()
                        await connection.subscribe("s", inbox.sink)
                        await connection.send(publish("s", b"v"))
                        await inbox.wait(1)
                        nursery.cancel_scope.cancel()
                finally:
                    trio.lowlevel.remove_instrument(counter)
            assert not connection.connected
            assert loop is None or not asyncio.all_tasks(loop)
        return counter.left

    def descriptors():
        gc.collect()
        return len(os.listdir("/dev/fd"))

    with start(tmp_path, "authorization { user: u, password: p }") as nats:
        await life(nats, 1 << 30)
        before = descriptors()
        at = 0
        while True:
            at += 2
            if await life(nats, at) > 0:
                break
            assert descriptors() == before, f"cancelled at step {at}"
        assert at > 50
