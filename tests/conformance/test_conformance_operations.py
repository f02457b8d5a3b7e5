"""Configuration, security, starts and stops, as operators of the original know them: a test for each row."""

import os
import re
import signal
import subprocess
import sys
import threading

import grpc
import pytest
import trustme
import yaml
from calls import NatsClient
from conformance_calls import (
    NOT_FOUND,
    PATIENCE,
    Api,
    api_pb2,
    create,
    fill,
    follow,
    fresh,
    history,
    integer,
    metadata,
    offsets,
    publish,
    publish_async,
    refused,
    streams,
    subscribe,
    take,
    until,
    values,
)
from harness import Nats, Server
from secured import Files

DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
PHRASE = "The client is not authorized to call"
COMMAND = [sys.executable, "-m", "liftbridge.cli.main"]


def ends(server, named):
    """A server cannot start, and its message names the reason."""
    server.spawn()
    assert server.wait_end() != 0
    server.wait_log(named)


def serves(server):
    """Stubs of a server that is started, once it answers; whatever it logs."""
    server.spawn()
    api = Api(server)
    grpc.channel_ready_future(api.channel).result(PATIENCE)
    return api


@pytest.mark.parametrize(
    "setting",
    [
        {"streams.retention.max.messages": 2},
        {"streams": {"retention": {"max": {"messages": 2}}}},
        {"streams": {"retention.max": {"messages": 2}}},
        {"Streams.Retention": {"MAX.messages": "2"}},
    ],
    ids=["dotted", "nested", "mixed", "case"],
)
def test_configuration_file_nested_or_dotted(start, setting):
    own = {"segmentMaxBytes": integer(1), "cleanerInterval": integer(10)}
    _, api = start(setting)
    name = create(api, **own)
    fill(api, name, 6)
    until(lambda: offsets(history(api, name)) == [4, 5])


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"streams.retention.max.massages": 2}, "streams.retention.max.massages"),
        ({"streams": {"retention": {"min": {"messages": 2}}}}, "streams.retention.min.messages"),
        ({"strems": 1}, "strems"),
        ({"nats": None}, "nats"),
    ],
)
def test_unknown_settings_refused(tmp_path, config, named):
    server = Server(tmp_path / "server", config)
    try:
        ends(server, named)
    finally:
        server.close()


def test_environment_overrides(command_line, tmp_path, free_port):
    nats = tmp_path / "nats.conf"
    nats.write_text("host: 127.0.0.1\nport: -1\n")
    file = tmp_path / "liftbridge.yaml"
    file.write_text(yaml.safe_dump({"port": 1, "nats.embedded": True, "host": "example.org"}))
    environment = {
        "LIFTBRIDGE_PORT": str(free_port),
        "LIFTBRIDGE_HOST": "127.0.0.1",
        "LIFTBRIDGE_NATS_EMBEDDED_CONFIG": str(nats),
        "LIFTBRIDGE_CLUSTERING_SERVER_ID": "from-the-environment",
        "LIFTBRIDGE_CURSORS.STREAM.PARTITIONS": "3",
        "LIFTBRIDGE_NO_SUCH_KEY": "ignored",
    }
    arguments = ("-c", file, "-d", tmp_path / "data", "--raft-bootstrap-seed")
    server = command_line(*arguments, environment=environment).start()
    (broker,) = metadata(Api(server)).brokers
    assert (broker.id, broker.host, broker.port) == ("from-the-environment", "127.0.0.1", free_port)
    assert server.grpc_port == free_port
    assert len(streams(Api(server))["__cursors"].partitions) == 3
    assert server.stop() == 0


@pytest.mark.parametrize("form", ["long", "short", "with ="])
def test_cli_flags(command_line, tmp_path, free_port, form):
    files = Files(tmp_path / "tls")
    nats = tmp_path / "nats.conf"
    nats.write_text("host: 127.0.0.1\nport: -1\n")
    file = tmp_path / "liftbridge.yaml"
    # What is given on the command line wins over the file.
    config = {"port": 1, "clustering.namespace": "file", "cursors.stream.partitions": 1, "host": "127.0.0.1"}
    file.write_text(yaml.safe_dump(config))
    flags = [
        ("--config", "-c", file),
        ("--server-id", "--id", "one"),
        ("--namespace", "--ns", "flags"),
        ("--embedded-nats-config", "--nc", nats),
        ("--data-dir", "-d", tmp_path / "data"),
        ("--port", "-p", free_port),
        ("--level", "-l", "info"),
        ("--tls-cert", "--tls-cert", files.directory / "server.pem"),
        ("--tls-key", "--tls-key", files.directory / "server.key"),
    ]
    arguments = ["--raft-bootstrap-seed", "-e" if form == "short" else "--embedded-nats"]
    for long, short, value in flags:
        if form == "with =":
            arguments.append(f"{long}={value}")
        else:
            arguments += [long if form == "long" else short, value]
    server = command_line(*arguments).start()
    api = Api(server, grpc.ssl_channel_credentials(files.ca.cert_pem.bytes()))
    answer = metadata(api)
    assert [(broker.id, broker.port) for broker in answer.brokers] == [("one", free_port)]
    assert [entry.subject for entry in answer.streamMetadata] == ["flags.cursors"]
    assert (tmp_path / "data" / "liftbridge").exists()
    assert server.stop() == 0
    with Nats(tmp_path / "nats") as other:
        servers = "-n" if form == "short" else "--nats-servers"
        plain = ["-d", tmp_path / "data2", "-p", free_port, "--raft-bootstrap-seed", "-c", file]
        server = command_line(servers, f"nats://127.0.0.1:1, {other.url}", *plain).start()
        api = Api(server)
        name = create(api)
        with NatsClient(other.url) as client:
            client.publish(name, b"x")
        assert values(follow(api, name, 1)) == [b"x"]
        assert server.stop() == 0
    if form == "long":
        _flags_that_cannot_be(command_line)


def _flags_that_cannot_be(command_line):
    for wrong, named in (
        (["--id", "a", "--server-id", "b"], "server-id"),
        (["--no-such-flag"], "--no-such-flag"),
        (["-l", "loud"], "loud"),
        (["-p", "x"], "x"),
    ):
        ends(command_line(*wrong), named)
    for ask, said in ((["--help"], "usage"), (["-h"], "usage"), (["--version"], "."), (["-v"], ".")):
        done = subprocess.run([*COMMAND, *ask], capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, said in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("config", "bound", "host", "port"),
    [
        ({"listen": "127.0.0.1:0"}, "127.0.0.1", "127.0.0.1", 0),
        ({"listen": "0.0.0.0:0"}, "0.0.0.0", "0.0.0.0", 0),
        ({"listen": "127.0.0.1:0", "port": 6060}, "127.0.0.1", "127.0.0.1", 0),
        ({"listen": "127.0.0.1:0", "host": "example.org"}, "127.0.0.1", "example.org", 9292),
        ({"listen": "127.0.0.1:0", "host": "example.org", "port": 6060}, "127.0.0.1", "example.org", 6060),
        ({"listen": "127.0.0.1:0", "host": "example.org", "port": 0}, "127.0.0.1", "example.org", 0),
        ({"host": "127.0.0.1", "port": 0}, "127.0.0.1", "127.0.0.1", 0),
        ({"port": 0}, "0.0.0.0", "localhost", 0),
    ],
)
def test_bind_and_advertised_address(command_line, tmp_path, config, bound, host, port):
    nats = tmp_path / "nats.conf"
    nats.write_text("host: 127.0.0.1\nport: -1\n")
    file = tmp_path / "liftbridge.yaml"
    file.write_text(yaml.safe_dump({**config, "nats.embedded.config": str(nats)}))
    server = command_line("-c", file, "-d", tmp_path / "data", "--raft-bootstrap-seed").start()
    assert f"serving clients on {bound}:{server.grpc_port} " in server.log
    (broker,) = metadata(Api(server)).brokers
    assert (broker.host, broker.port) == (host, port or server.grpc_port)
    assert server.stop() == 0
    if config == {"port": 0}:
        file.write_text(yaml.safe_dump({"listen": "no address"}))
        ends(server, "listen")


def test_tls(start, tmp_path):
    files = Files(tmp_path / "files")
    certificate = {
        "tls.key": str(files.directory / "server.key"),
        "tls.cert": str(files.directory / "server.pem"),
    }
    server, plain = start(certificate)
    api = Api(server, grpc.ssl_channel_credentials(files.ca.cert_pem.bytes()))
    name = create(api)
    assert publish(api, name, b"x").offset == 0
    assert values(follow(api, name, 1)) == [b"x"]
    stranger = Api(server, grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes()))
    for refused_one in (plain, stranger):
        with refused(UNAVAILABLE):
            metadata(refused_one)
    assert len(streams(api)) == 1
    for key in certificate:
        half = Server(tmp_path / "half", {key: certificate[key]})
        try:
            ends(half, "tls.")
        finally:
            half.close()


def test_mutual_tls(start, tmp_path):
    files = Files(tmp_path / "files")
    server, plain = start(files.config(authz=False))
    named = Api(server, files.credentials("joe"))
    name = create(named)
    assert publish(named, name).offset == 0
    anyone = Api(server, grpc.ssl_channel_credentials(files.ca.cert_pem.bytes()))
    pair = trustme.CA().issue_cert("joe@example.org", common_name="joe")
    forged = grpc.ssl_channel_credentials(
        files.ca.cert_pem.bytes(), pair.private_key_pem.bytes(), pair.cert_chain_pems[0].bytes()
    )
    for refused_one in (plain, anyone, Api(server, forged)):
        with refused(UNAVAILABLE):
            metadata(refused_one)
    assert publish(named, name).offset == 1


PAIR = {"cert": "pem", "key": "key"}

# One call for each action, on the stream s1.
ACTIONS = {
    "CreateStream": api_pb2.CreateStreamRequest(name="s1", subject="s1"),
    "PauseStream": api_pb2.PauseStreamRequest(name="s1"),
    "SetStreamReadonly": api_pb2.SetStreamReadonlyRequest(name="s1"),
    "Subscribe": api_pb2.SubscribeRequest(stream="s1", resume=True),
    "FetchMetadata": api_pb2.FetchMetadataRequest(),
    "FetchPartitionMetadata": api_pb2.FetchPartitionMetadataRequest(stream="s1"),
    "Publish": api_pb2.PublishRequest(stream="s1", ackPolicy=api_pb2.NONE),
    "PublishToSubject": api_pb2.PublishToSubjectRequest(subject="s1", ackPolicy=api_pb2.NONE),
    "SetCursor": api_pb2.SetCursorRequest(stream="s1", cursorId="c"),
    "FetchCursor": api_pb2.FetchCursorRequest(stream="s1", cursorId="c"),
    "DeleteStream": api_pb2.DeleteStreamRequest(name="s1"),
}


def resource(action):
    """What the action of the example is on."""
    return "*" if action == "FetchMetadata" else "s1"


def answer(api, action):
    """Status and text of the call."""
    try:
        if action == "Subscribe":
            call = api.Subscribe(ACTIONS[action], timeout=PATIENCE)
            next(call)
            call.cancel()
        else:
            getattr(api, action)(ACTIONS[action], timeout=PATIENCE)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def test_acls(start, tmp_path):
    files = Files(tmp_path / "files")
    # A client for each action, who may do that and nothing else; and one who may do everything.
    rules = [f"p, {action}, {resource(action)}, {action}" for action in ACTIONS]
    rules += [f"p, admin, {resource(action)}, {action}" for action in ACTIONS]
    rules += [f"p, {client}, __cursors, Publish" for client in ("admin", "SetCursor")]
    files.write_policy(*rules)
    server, _ = start(files.config() | {"cursors.stream.partitions": 1})
    admin = Api(server, files.credentials("admin"))
    assert [answer(admin, action)[0] for action in ACTIONS] == [grpc.StatusCode.OK] * len(ACTIONS)
    create(admin, "s1")
    for client in ACTIONS:
        api = Api(server, files.credentials(client))
        for action in ACTIONS:
            if action == client:
                assert answer(api, action)[0] is not DENIED, action
            else:
                expected = (DENIED, f"{PHRASE} {action} on resource {resource(action)!r}")
                assert answer(api, action) == expected, client
        if client == "CreateStream":
            publish(admin, "s1", b"admin's")
    assert answer(admin, "CreateStream")[0] is grpc.StatusCode.OK  # the last client was DeleteStream
    # Messages of one call are checked one by one, and what is denied is not stored.
    writer = Api(server, files.credentials("Publish"))
    requests = [
        {"stream": stream, "value": stream.encode(), "correlationId": f"{number}"}
        for number, stream in enumerate(["s1", "s2", "__cursors", "s1"])
    ]
    found = {response.correlationId: response for response in publish_async(writer, *requests)}
    assert {number for number in found if not found[number].HasField("asyncError")} == {"0", "3"}
    for number in ("1", "2"):
        error = found[number].asyncError
        assert error.code == api_pb2.PublishAsyncError.PERMISSION_DENIED
        assert error.message.startswith(PHRASE)
        assert found[number].HasField("ack")
    reader = Api(server, files.credentials("Subscribe"))
    call = subscribe(reader, "s1", startPosition=api_pb2.EARLIEST)
    assert values(take(call, 2)) == [b"s1", b"s1"]
    call.cancel()


def test_acl_reload(start, tmp_path):
    files = Files(tmp_path / "files")
    files.write_policy("p, joe, s1, CreateStream")
    server, _ = start(files.config())
    joe = Api(server, files.credentials("joe"))
    create(joe, "s1")
    with refused(DENIED, PHRASE):
        publish(joe, "s1")
    files.write_policy("p, joe, s1, CreateStream", "p, joe, s1, Publish")
    with refused(DENIED):
        publish(joe, "s1")
    os.kill(server.pid, signal.SIGHUP)
    assert until(lambda: answer(joe, "Publish")[0] is grpc.StatusCode.OK)
    # Without authorization the signal is no reason to end.
    plain, api = start(name="plain")
    os.kill(plain.pid, signal.SIGHUP)
    plain.wait_log("SIGHUP")
    create(api)


def test_nats_login_nats_tls(start, tmp_path):
    login = 'authorization { user: "lift", password: "secret" }'
    with Nats(tmp_path / "users", login) as nats:
        config = {"nats.servers": [nats.url], "nats.user": "lift", "nats.password": "secret"}
        _, api = start(config, "login", embedded=False)
        assert publish(api, create(api)).offset == 0
        wrong = Server(tmp_path / "wrong", {**config, "nats.password": "wrong"}, embedded=False)
        try:
            wrong.spawn()
            wrong.wait_log("Authorization Violation")
            assert "serving clients" not in wrong.log
            assert "wrong" not in wrong.log.replace(str(tmp_path), "")
        finally:
            wrong.close()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in ("server", "client"):
        pair = authority.issue_cert("127.0.0.1", "localhost")
        pair.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        pair.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
    tls = (
        f'tls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", '
        f'ca_file: "{tmp_path}/ca.pem", verify: true }}'
    )
    with Nats(tmp_path / "tls", tls) as nats:
        config = {"nats.servers": [nats.url], "nats.tls.ca": str(tmp_path / "ca.pem")}
        config |= {f"nats.tls.{what}": str(tmp_path / f"client.{end}") for what, end in PAIR.items()}
        _, api = start(config, "tls", embedded=False)
        assert publish(api, create(api)).offset == 0


def test_embedded_nats(server, api):
    name = create(api)
    with NatsClient(server.nats_url) as client:
        client.publish(name, b"x")
        assert values(follow(api, name, 1)) == [b"x"]
        arrived = client.subscribe(fresh("elsewhere"))
        assert arrived.empty()


def test_health_service(server, api):
    def check(service, method="Check"):
        kind = api.channel.unary_unary if method == "Check" else api.channel.unary_stream
        call = kind(f"/grpc.health.v1.Health/{method}", lambda data: data, lambda data: data)
        request = b"\x0a" + bytes([len(service)]) + service if service else b""
        return call(request, timeout=PATIENCE)

    serving, unknown = b"\x08\x01", b"\x08\x03"
    assert check(b"proto.API") == check(b"") == serving
    with refused(NOT_FOUND):
        check(b"proto.Nothing")
    for service, expected in ((b"proto.API", serving), (b"proto.Nothing", unknown)):
        call = check(service, "Watch")
        assert next(call) == expected
        call.cancel()
    assert streams(api)


@pytest.mark.parametrize(
    ("level", "seen"), [("error", set()), ("WARN", set()), ("Info", {"INFO"}), ("debug", {"INFO"})]
)
def test_logging_controls(tmp_path, free_port, level, seen):
    config = {"listen": f"127.0.0.1:{free_port}", "logging.level": level}
    config |= {"logging.recovery": True, "logging.raft": True, "logging.nats": True}
    server = Server(tmp_path / "server", config)
    server.grpc_port = free_port
    try:
        create(serves(server))
        assert server.stop() == 0
        lines = server.log
        assert seen <= set(re.findall(r" (DEBUG|INFO|WARN|ERROR) ", lines))
        assert ("INFO" in lines) == ("INFO" in seen)
        assert ("Server is ready" in lines) == ("INFO" in seen), "what the embedded NATS server says"
        if level == "debug":
            server.config["logging.nats"] = False
            before = len(server.log)
            serves(server)
            assert server.stop() == 0
            assert "Server is ready" not in server.log[before:]
            server.config["logging.level"] = "loud"
            ends(server, "logging.level")
    finally:
        server.close()


def acked_under_load(server, api, name, end):
    """Publish numbers until the server has ended by `end`; returns which were acked with which offset."""
    acked = {}

    def requests():
        for number in range(10**9):
            if number > len(acked) + 500:  # as far ahead as a client would be
                until(lambda sent=number: sent <= len(acked) + 500 or ended.is_set())
            if ended.is_set():
                return
            yield api_pb2.PublishRequest(
                stream=name, value=b"%d" % number, correlationId=f"{number}", ackPolicy=number % 2
            )

    def work():
        try:
            for response in api.PublishAsync(requests()):
                acked[int(response.correlationId)] = response.ack.offset
        except grpc.RpcError:
            pass  # that is the end of the server
        ended.set()

    ended = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: len(acked) > 2000 or ended.is_set())
    status = end()
    thread.join(PATIENCE)
    assert ended.is_set()
    return acked, status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_graceful_shutdown(start, number):
    server, api = start()
    name = create(api)
    acked, status = acked_under_load(server, api, name, lambda: server.stop(number))
    assert status == 0
    server.start()
    api = Api(server)
    found = history(api, name)
    assert len(found) >= len(acked) > 2000
    assert acked == {n: n for n in range(len(acked))}, "a stop answers what it has stored"
    assert [(m.offset, m.value) for m in found] == [(n, b"%d" % n) for n in range(len(found))]
    assert publish(api, name).offset == len(found)


def test_crash_recovery(start):
    server, api = start({"streams.segment.max.bytes": 20000})
    name, other = create(api), create(api)
    publish(api, other, b"other")
    acked, _ = acked_under_load(server, api, name, server.kill)
    server.start()
    found = history(Api(server), name)
    assert all(number == offset < len(found) for number, offset in acked.items())
    assert [(m.offset, m.value) for m in found] == [(n, b"%d" % n) for n in range(len(found))]
    assert server.stop() == 0
    indexes = sorted((server.data_dir / "streams").rglob("*index*"))
    assert len(indexes) > 3
    for number, path in enumerate(indexes):
        if number % 3 == 0:
            path.write_bytes(os.urandom(1000))
        elif number % 3 == 1:
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2)
    server.start()
    api = Api(server)
    assert values(history(api, name)) == values(found)
    assert values(history(api, other)) == [b"other"]
    assert offsets(follow(api, name, 1, startPosition=api_pb2.OFFSET, startOffset=1234)) == [1234]
    assert publish(api, name).offset == len(found)


@pytest.mark.parametrize("enabled", [True, False])
def test_telemetry(start, enabled):
    server, api = start({"telemetry.enabled": enabled, "telemetry.interval.seconds": 1})
    assert publish(api, create(api)).offset == 0
    assert not (server.data_dir / ".instance_id").exists()


def test_data_directory(command_line, tmp_path, free_port):
    nats = tmp_path / "nats.conf"
    nats.write_text("host: 127.0.0.1\nport: -1\n")
    file = tmp_path / "liftbridge.yaml"
    directory = tmp_path / "made" / "for" / "it"
    config = {"data.dir": str(directory), "listen": f"127.0.0.1:{free_port}"}
    file.write_text(yaml.safe_dump({**config, "nats.embedded.config": str(nats)}))
    server = command_line("-c", file, "--raft-bootstrap-seed").start()
    api = Api(server)
    name = create(api)
    publish(api, name, b"kept")
    assert b"kept" in b"".join(path.read_bytes() for path in directory.rglob("*.log"))
    identity = directory / "liftbridge"
    assert server.server_id.encode() in identity.read_bytes()
    assert identity.stat().st_mode & 0o777 == 0o600
    assert server.stop() == 0
    server.arguments = ("-c", file)
    assert values(history(Api(server.start()), name)) == [b"kept"]
    assert server.stop() == 0
