"""Encryption and compression from outside: what clients see, and what is on disk."""

import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from calls import PATIENCE, create, drain, publish, publish_many, read, refused, subscribe
from harness import Server

from liftbridge.proto import api_pb2

VARIABLE = "LIFTBRIDGE_ENCRYPTION_KEY"
KEY = "sixteen bytes ok"
OTHER_KEY = "another key of 32 bytes, as text"
MARKER = b"Nobody-May-Read-This"
ON = api_pb2.NullableBool(value=True)
OFF = api_pb2.NullableBool(value=False)


def values(count: int) -> list[bytes]:
    return [MARKER + b"%d" % number for number in range(count)]


def files_with(marker: bytes, directory: Path) -> list[str]:
    """The files of a data directory that contain the marker."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files, f"{directory} is empty"
    return sorted(path.name for path in files if marker in path.read_bytes())


def publish_marked(api, stream: str, first: int = 0, count: int = 20) -> None:
    """Messages with the marker wherever a publisher can put it."""
    for number in range(first, first + count):
        ack = publish(
            api,
            stream,
            MARKER + b"%d" % number,
            key=b"key-" + MARKER,
            headers={"h-" + MARKER.decode(): b"v-" + MARKER},
        )
        assert ack.offset == number


def check_marked(api, stream: str, count: int = 20) -> None:
    for number, message in enumerate(read(api, stream, count)):
        assert (message.offset, message.value) == (number, MARKER + b"%d" % number)
        assert message.key == b"key-" + MARKER
        assert message.headers["h-" + MARKER.decode()] == b"v-" + MARKER


def make(directory: Path, config: dict | None = None, key: str = KEY) -> Server:
    return Server(directory, config, environment={VARIABLE: key} if key else {VARIABLE: ""})


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("encrypted", [True, False])
def test_what_is_encrypted_cannot_be_found_on_disk(tmp_path, encrypted, compression):
    config = {"streams.encryption": encrypted, "streams.compression": compression}
    with make(tmp_path / "server", config) as server:
        api = server.api()
        create(api, "orders")
        publish_marked(api, "orders")
        check_marked(api, "orders")
        while_running = files_with(MARKER, server.data_dir)
        assert server.stop() == 0
        assert bool(while_running) == bool(files_with(MARKER, server.data_dir)) == (not encrypted)
        server.start()
        check_marked(server.api(), "orders")
        assert server.stop() == 0


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_stream_decides_for_itself(tmp_path, everywhere):
    with make(tmp_path / "server", {"streams.encryption": everywhere}) as server:
        api = server.api()
        for name, encryption in (("secret", ON), ("open", OFF)):
            create(api, name, encryption=encryption)
            publish(api, name, name.encode() + MARKER)
            assert read(api, name, 1)[0].value == name.encode() + MARKER
        assert server.stop() == 0
        assert files_with(b"secret" + MARKER, server.data_dir) == []
        assert files_with(b"open" + MARKER, server.data_dir) == ["00000000000000000000.log"]


def test_encryption_that_is_switched_on_holds_from_then_on(tmp_path):
    server = make(tmp_path / "server")
    with server:
        create(server.api(), "orders")
        create(server.api(), "empty")
        publish_many(server.api(), "orders", [b"early" + MARKER])
        assert server.stop() == 0
        server.config["streams.encryption"] = True
        for start in range(3):
            server.start()
            for stream, expected in (("orders", [b"early" + MARKER]), ("empty", [])):
                publish(server.api(), stream, b"late" + MARKER)
                expected += [b"late" + MARKER] * (start + 1)
                assert [each.value for each in read(server.api(), stream, len(expected))] == expected
            assert server.stop() == 0
        assert files_with(b"early" + MARKER, server.data_dir) == ["00000000000000000000.log"]
        assert files_with(b"late" + MARKER, server.data_dir) == []
        server.config["streams.encryption"] = False
        server.start()
        publish(server.api(), "orders", b"last" + MARKER)
        assert read(server.api(), "orders", 5)[4].value == b"last" + MARKER
        assert server.stop() == 0


def test_an_encrypted_stream_survives_a_kill(tmp_path):
    with make(tmp_path / "server", {"streams.encryption": True}) as server:
        create(server.api(), "orders")
        publish_marked(server.api(), "orders")
        server.kill()
        server.start()
        check_marked(server.api(), "orders")
        publish_marked(server.api(), "orders", first=20)
        check_marked(server.api(), "orders", 40)
        assert server.stop() == 0
        assert files_with(MARKER, server.data_dir) == []


def test_the_master_key_can_be_changed(tmp_path):
    server = make(tmp_path / "server", {"streams.encryption": True, "streams.segment.max.bytes": 1000})
    with server:
        create(server.api(), "orders", partitions=2)
        publish_marked(server.api(), "orders")
        assert server.stop() == 0
        assert len(list(server.data_dir.rglob("*.log"))) > 4, "rotation is to reach sealed segments too"

        (tmp_path / "old-keys").write_text(KEY + "\n")
        server.environment[VARIABLE] = OTHER_KEY
        server.config["streams.encryption.old.keys.file"] = str(tmp_path / "old-keys")
        server.start()
        check_marked(server.api(), "orders")
        publish_marked(server.api(), "orders", first=20)
        assert server.stop() == 0

        del server.config["streams.encryption.old.keys.file"]
        server.start()
        check_marked(server.api(), "orders", 40)
        assert server.stop() == 0

        server.environment[VARIABLE] = KEY
        server.start()
        with refused(grpc.StatusCode.INTERNAL, "does not have master key"):
            next(server.api().Subscribe(api_pb2.SubscribeRequest(stream="orders"), timeout=PATIENCE))
        assert server.stop() == 0


@pytest.mark.parametrize("key", [OTHER_KEY, ""], ids=["wrong key", "no key"])
def test_a_partition_without_its_key_is_offline_alone(tmp_path, key):
    server = make(tmp_path / "server")
    with server:
        api = server.api()
        create(api, "secret", encryption=ON)
        create(api, "open")
        publish(api, "secret", b"1")
        publish(api, "open", b"1")
        assert server.stop() == 0

        server.environment[VARIABLE] = key
        server.start()
        api = server.api()
        reason = (
            r"secret/0 is offline: .*\.log: the segment is encrypted, .* does not have master key [0-9a-f]{8}"
        )
        assert re.search(reason, server.log)
        with refused(grpc.StatusCode.INTERNAL, "does not have master key"):
            next(api.Subscribe(api_pb2.SubscribeRequest(stream="secret"), timeout=PATIENCE))
        with pytest.raises(grpc.RpcError):
            publish(api, "secret", b"2")
        assert publish(api, "open", b"2").offset == 1
        assert [message.value for message in read(api, "open", 2)] == [b"1", b"2"]
        assert server.stop() == 0

        server.environment[VARIABLE] = KEY
        server.start()
        api = server.api()
        assert publish(api, "secret", b"2").offset == 1
        assert [message.value for message in read(api, "secret", 2)] == [b"1", b"2"]
        assert server.stop() == 0


@pytest.mark.parametrize("key", ["", "too short"])
def test_without_a_usable_key_no_stream_is_encrypted(tmp_path, key):
    with make(tmp_path / "server", key=key) as server:
        api = server.api()
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "invalid AES key size"):
            create(api, "secret", encryption=ON)
        create(api, "open", encryption=OFF)
        metadata = api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=PATIENCE)
        assert [stream.name for stream in metadata.streamMetadata] == ["open"]
        assert server.stop() == 0
        assert ("without one no encrypted stream can be created" in server.log) == bool(key)


def test_a_server_that_is_to_encrypt_does_not_start_without_a_key(tmp_path):
    server = make(tmp_path / "server", {"streams.encryption": True}, key="too short")
    server.spawn()
    assert server.wait_end() == 1
    assert "streams.encryption: true needs a master key: LIFTBRIDGE_ENCRYPTION_KEY" in server.log
    server.close()


# -- compression --


def size_of_logs(server: Server) -> int:
    return sum(path.stat().st_size for path in server.data_dir.rglob("*.log"))


def test_compression_stores_less_and_clients_see_the_same(tmp_path):
    sent = [b'{"number":%d,"text":"the same again and again and again"}' % number for number in range(3000)]
    sizes = {}
    for compression in ("none", "lz4", "zstd"):
        with make(tmp_path / compression, {"batch.max.time": "20ms"}) as server:
            create(server.api(), "orders", compression=compression)
            publish_many(server.api(), "orders", sent)
            assert [message.value for message in read(server.api(), "orders", len(sent))] == sent
            assert server.stop() == 0
            sizes[compression] = size_of_logs(server)
            server.start()
            call = subscribe(
                server.api(), "orders", startPosition="LATEST", reverse=True, stopPosition="STOP_OFFSET"
            )
            messages, _ = drain(call)
            assert [message.value for message in messages] == sent[::-1]
            assert server.stop() == 0
    assert sizes["none"] > 3 * sizes["lz4"] > 3 * sizes["zstd"]


def test_compression_may_change_at_any_start(tmp_path):
    server = make(tmp_path / "server")
    sent = []
    with server:
        create(server.api(), "orders")
        server.stop()
        for number, compression in enumerate(["lz4", "zstd", "none", "lz4"]):
            server.config["streams.compression"] = compression
            server.start()
            sent.append(b"%d" % number * 2000)
            publish(server.api(), "orders", sent[-1])
            assert [message.value for message in read(server.api(), "orders", len(sent))] == sent
            assert server.stop() == 0
        assert size_of_logs(server) < 8000


# -- what a stream may ask for --


@pytest.mark.parametrize(
    "fields",
    [{"compression": "gzip"}, {"compression": "LZ4"}, {"syncPolicy": "sometimes"}, {"syncPolicy": " "}],
)
def test_a_setting_that_does_not_exist_is_named(api, fields):
    ((name, value),) = fields.items()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"{name} must be one of"):
        create(api, "orders", **fields)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, repr(value)):
        create(api, "orders", **fields)
    assert not api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=PATIENCE).streamMetadata


def command(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "liftbridge.cli.main", "stream", *arguments, "--server", server.address],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_the_command_creates_streams_with_these_settings(tmp_path):
    with make(tmp_path / "server", {"streams.encryption": True}) as server:
        done = command(
            server,
            *("create", "secret", "--subject", "secret", "--compression", "zstd", "--sync-policy", "never"),
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert command(server, "create", "open", "--subject", "open", "--no-encryption").returncode == 0
        for stream in ("secret", "open"):
            publish(server.api(), stream, stream.encode() + MARKER * 500)
            assert read(server.api(), stream, 1)[0].value == stream.encode() + MARKER * 500
        assert server.stop() == 0
        sizes = sorted(path.stat().st_size for path in server.data_dir.rglob("*.log"))
        assert sizes[0] < 5000 < sizes[1]
        assert files_with(b"secret" + MARKER, server.data_dir) == []
        assert files_with(b"open" + MARKER, server.data_dir) == ["00000000000000000000.log"]


def test_the_command_says_why_a_stream_cannot_be(server):
    done = command(server, "create", "secret", "--subject", "secret", "--encryption")
    assert done.returncode == 1
    assert "invalid AES key size" in done.stderr
    done = command(server, "create", "secret", "--subject", "secret", "--sync-policy", "often")
    assert done.returncode == 2
    assert "often" in done.stderr
