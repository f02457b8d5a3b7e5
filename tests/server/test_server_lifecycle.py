"""How a server comes up, lives through what happens around it, and goes down."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from calls import drain, subscribe
from harness import Api, Nats, Server, freeze

from liftbridge.proto import api_pb2, health_pb2

COMMAND = [sys.executable, "-m", "liftbridge.cli.main"]
SECONDS = 30


def create(api, name="orders", **fields):
    api.CreateStream(api_pb2.CreateStreamRequest(name=name, subject=f"shop.{name}", **fields), timeout=10)


def publish(api, value, stream="orders", seconds=10.0):
    return api.Publish(api_pb2.PublishRequest(stream=stream, value=value), timeout=seconds).ack.offset


def publish_again_and_again(api, value, stream="orders"):
    """Publish until it is acked: for the moments in which NATS is not back on all connections."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(grpc.RpcError):
            return publish(api, value, stream, 1.0)
    raise AssertionError("nothing is acked any more")


def follow(api, stream="orders", position="EARLIEST", **fields):
    """A live subscription."""
    request = api_pb2.SubscribeRequest(stream=stream, startPosition=position, **fields)
    subscription = api.Subscribe(request, timeout=60)
    assert next(subscription) == api_pb2.Message()
    return subscription


def read(api, stream="orders"):
    """The values of everything in a stream, by offset."""
    values = {}
    with pytest.raises(grpc.RpcError) as error:
        for message in follow(api, stream, stopPosition="STOP_LATEST"):
            values[message.offset] = message.value
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error.value
    return values


def status_of(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as error:
        result = call(*arguments, **options)
        for _ in result:
            pass
    return error.value.code(), error.value.details()


@pytest.fixture
def make(tmp_path):
    """Make servers that are gone after the test, and print no traceback whatever happened to them."""
    servers = []

    def make(name="server", config=None, **options):
        servers.append(Server(tmp_path / name, config, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
        assert "Traceback" not in server.log, server.log


@pytest.fixture
def nats(tmp_path):
    with Nats(tmp_path / "nats") as running:
        yield running


def on(nats):
    return {"nats.servers": [nats.url]}


def run(*arguments, **options):
    """A command that ends by itself: status and all output."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        **options,
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


# -- NATS comes and goes -------------------------------------------------------------------------------


def test_a_server_waits_for_nats_and_says_so(make, nats):
    nats.stop()
    server = make(config=on(nats), embedded=False)
    server.spawn()
    server.wait_log(f"waiting for NATS at {nats.url}")
    server.wait_log("no NATS yet, trying again")
    nats.start()
    api = server.wait_up().api()
    create(api)
    assert publish(api, b"1") == 0
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_waits_for_nats_can_be_stopped(make, nats, number):
    nats.stop()
    server = make(config=on(nats), embedded=False)
    server.spawn()
    server.wait_log("no NATS yet, trying again")
    assert server.stop(number) == 0
    assert "serving clients" not in server.log


def test_streams_go_on_when_nats_comes_back(make, nats):
    server = make(config=on(nats), embedded=False).start()
    api = server.api()
    create(api)
    assert publish(api, b"before") == 0
    subscription = follow(api)
    assert next(subscription).value == b"before"
    nats.stop()
    for purpose in ("streams", "acks", "publishes"):
        server.wait_log(f"liftbridge.nats.{purpose}: lost the connection to NATS")
    code, text = status_of(api.Publish, api_pb2.PublishRequest(stream="orders", value=b"lost"), timeout=10)
    assert (code, text) == (grpc.StatusCode.UNKNOWN, "not connected to NATS")
    assert list(read(api).values()) == [b"before"]
    nats.start()
    publish_again_and_again(api, b"after")
    assert next(subscription).value == b"after"
    assert b"lost" not in read(api).values()
    nats.stop()
    server.wait_log("lost the connection to NATS")
    assert server.stop() == 0


def test_a_server_stops_although_nats_hangs(make, nats):
    server = make(config=on(nats), embedded=False).start()
    create(server.api())
    freeze(nats.process.pid)
    assert server.stop() == 0


def test_an_embedded_nats_that_dies_comes_back(make):
    server = make().start()
    api = server.api()
    create(api)
    assert publish(api, b"before") == 0
    first = server.nats_pid
    os.kill(first, signal.SIGKILL)
    server.wait_log("the embedded NATS server was killed by SIGKILL; starting it again")
    publish_again_and_again(api, b"after")
    assert server.nats_pid != first
    values = list(read(api).values())
    assert values[0] == b"before"
    assert set(values[1:]) == {b"after"}
    assert server.stop() == 0


def test_a_nats_user_who_may_not_subscribe(make, tmp_path):
    deny = (
        "authorization {{ users: [{{ user: u, password: s3cr3t, "
        "permissions: {{ subscribe: {{ deny: [{}] }} }} }}] }}"
    )
    login = {"nats.user": "u", "nats.password": "s3cr3t"}
    with Nats(tmp_path / "one", deny.format('"shop.secret"')) as nats:
        server = make("one", {**on(nats), **login}, embedded=False).start()
        api = server.api()
        create(api, "secret")
        create(api, "orders")
        code, text = status_of(api.Subscribe, api_pb2.SubscribeRequest(stream="secret"), timeout=10)
        assert code == grpc.StatusCode.INTERNAL
        assert "NATS does not deliver 'shop.secret'" in text
        server.wait_log("secret/0 is offline: NATS does not deliver")
        assert publish(api, b"1") == 0
        assert server.stop() == 0
    with Nats(tmp_path / "all", deny.format('">"')) as nats:
        server = make("all", {**on(nats), **login}, embedded=False)
        server.spawn()
        assert server.wait_end() == 1
        assert (
            "liftbridge: this server cannot hear of others of its cluster: NATS refuses the subscription"
            in server.log
        )
    assert "s3cr3t" not in server.log


# -- signals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_subscriptions_with_unavailable(make, number):
    server = make().start()
    api = server.api()
    create(api)
    subscription = follow(api)
    assert publish(api, b"1") == 0
    assert next(subscription).value == b"1"
    assert server.stop(number) == 0
    with pytest.raises(grpc.RpcError) as error:
        next(subscription)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "stopped" in server.log


@pytest.mark.parametrize("service", ["", "proto.API"])
def test_who_watches_the_health_is_told_of_the_stop(make, service):
    """Load balancers stop sending because of it, so it has to come before the end of the call."""
    server = make().start()
    watch = server.api().channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    states = watch(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
    assert next(states).status == health_pb2.HealthCheckResponse.SERVING
    assert server.stop() == 0
    assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert status_of(lambda: states) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")


def test_a_stop_keeps_everything_acked(make):
    server = make().start()
    create(server.api())
    acked, lock, enough = {}, threading.Lock(), threading.Event()

    def note(offset, value):
        with lock:
            assert offset not in acked
            acked[offset] = value
            if len(acked) >= 500:
                enough.set()

    def publish_one_by_one(name):
        api = server.api()
        with contextlib.suppress(grpc.RpcError):
            for number in range(1_000_000):
                value = b"%s-%d" % (name, number)
                note(publish(api, value), value)

    def publish_many():
        # Bounded like a real publisher's, so that acks come while requests go.
        window = threading.Semaphore(1000)

        def requests():
            number = 0
            while window.acquire(timeout=10):
                yield api_pb2.PublishRequest(
                    stream="orders", value=b"async-%d" % number, correlationId=str(number), ackPolicy="ALL"
                )
                number += 1

        with contextlib.suppress(grpc.RpcError):
            for answer in server.api().PublishAsync(requests()):
                window.release()
                if answer.asyncError.ByteSize() == 0:
                    note(answer.ack.offset, b"async-" + answer.correlationId.encode())

    threads = [threading.Thread(target=publish_one_by_one, args=(b"%d" % number,)) for number in range(2)]
    threads.append(threading.Thread(target=publish_many))
    for thread in threads:
        thread.start()
    assert enough.wait(SECONDS)
    assert server.stop() == 0
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    server.start()
    stored = read(server.api())
    assert sorted(stored) == list(range(len(stored)))
    assert {offset: stored.get(offset) for offset in acked} == acked


def test_a_second_signal_ends_at_once(make):
    server = make().start()
    # Both signals are there before the server can finish what the first one asks for.
    freeze(server.pid)
    os.kill(server.pid, signal.SIGINT)
    os.kill(server.pid, signal.SIGTERM)
    os.kill(server.pid, signal.SIGCONT)
    status = server.wait_end()
    assert status in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    server.wait_log("second signal: ending at once")


def test_sighup_changes_nothing(make):
    server = make().start()
    api = server.api()
    create(api)
    os.kill(server.pid, signal.SIGHUP)
    server.wait_log("SIGHUP")
    assert publish(api, b"1") == 0
    assert server.stop() == 0


# -- starts that must fail -----------------------------------------------------------------------------


def test_a_data_directory_has_one_server(make):
    server = make().start()
    second = make("second")
    second.data_dir = server.data_dir
    second.spawn()
    assert second.wait_end() == 1
    assert f"{server.data_dir} is in use by another server (process {server.pid})" in second.log
    create(server.api())
    server.kill()
    second.start()
    assert second.stop() == 0


def test_a_port_has_one_server(make):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = make(config={"listen": address})
        server.spawn()
        assert server.wait_end() == 1
    assert f"liftbridge: cannot listen on {address}: " in server.log
    assert "--port" in server.log
    server.start()
    assert server.stop() == 0


def test_a_taken_port_of_the_embedded_nats_is_explained(make, nats):
    server = make()
    server.nats_url = nats.url
    server.spawn()
    assert server.wait_end() == 1
    assert "Another program has that port" in server.log


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"streams.sync.policy": "sometimes"}, ["streams.sync.policy", "sometimes"]),
        ({"streams.retention.max.age": "3 days"}, ["streams.retention.max.age", "3 days"]),
        ({"nonsense": {"key": 1}}, ["nonsense.key"]),
        ({"listen": "no port"}, ["listen", "no port"]),
        ({"logging.level": "loud"}, ["logging.level", "loud"]),
        ({"nats.servers": ["http://h"]}, ["nats.servers", "http://h"]),
        ({"tls.key": "/nowhere/key", "tls.cert": "/nowhere/cert"}, ["tls.cert", "/nowhere/cert"]),
        ({"nats.tls.ca": "/nowhere/ca"}, ["nats.tls.ca", "/nowhere/ca"]),
        ({"clustering.server.id": "a b"}, ["a b"]),
    ],
)
def test_a_wrong_setting_is_named(make, config, expected):
    server = make(config=config)
    server.spawn()
    assert server.wait_end() == 1
    (line,) = [line for line in server.lines if line.startswith("liftbridge: ")]
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"a: [", "liftbridge.yaml"),
        (b"\xff\xfe\x00", "liftbridge.yaml"),
        (b"- 1\n", "liftbridge.yaml"),
        (None, "No such"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, content, expected):
    file = tmp_path / "liftbridge.yaml"
    if content is not None:
        file.write_bytes(content)
    status, output = run("--config", str(file))
    assert status == 1
    assert output.startswith("liftbridge: ")
    assert expected in output


@pytest.mark.parametrize(
    "arguments, status, expected",
    [
        (["--port", "many"], 1, "many"),
        (["--port"], 2, "--port needs a value"),
        (["--colour", "red"], 2, "unknown flag --colour"),
        (["sing"], 2, "there is no command 'sing'"),
        (["--data-dir", "/dev/null/x"], 1, "/dev/null/x"),
        (["dev", "--data-dir", "/dev/null/x"], 1, "/dev/null/x"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments, status, expected):
    found, output = run(*arguments)
    assert (found, expected in output) == (status, True), output


# -- disks ---------------------------------------------------------------------------------------------


def segment(server, api, name):
    """The only segment file of a stream of one partition."""
    for directory in (server.data_dir / "streams").iterdir():
        (file,) = (directory / "0").glob("*.log")
        if b"shop." + name.encode() in file.read_bytes():
            return file
    raise AssertionError(f"no segment holds messages of {name}")


def flip(file, marker):
    """Flip one bit of the first occurrence of `marker` in a file, which has good data behind it."""
    data = bytearray(file.read_bytes())
    at = data.index(marker)
    assert len(data) - at > 1000
    data[at] ^= 1
    file.write_bytes(data)


def fill(api, *streams, **fields):
    for stream in streams:
        create(api, stream, **fields)
        for number in range(30):
            publish(api, b"%s message %d " % (stream.encode(), number) + b"x" * 100, stream)


def displace(file):
    """Give a segment file the name of another offset: something that no log can be made of."""
    data = file.read_bytes()
    target = file.with_name("00000000000000000500.log")
    file.rename(target)
    return target, data


def test_damage_found_at_start_costs_what_is_damaged(make):
    server = make().start()
    api = server.api()
    fill(api, "bad")
    file = segment(server, api, "bad")
    server.kill()
    flip(file, b"bad message 7 ")
    api = server.start().api()
    assert re.search(
        rf"ERROR liftbridge.partition: bad/0: {file} is damaged at byte \d+, the offsets 7 to 7 are lost",
        server.log,
    )
    call = subscribe(api, "bad", startPosition="EARLIEST")
    messages, status = drain(call)
    assert [message.offset for message in messages] == list(range(7))
    assert status == grpc.StatusCode.DATA_LOSS
    assert "offsets 7 to 7" in call.details()
    call = subscribe(
        api, "bad", startPosition="OFFSET", startOffset=8, stopPosition="STOP_LATEST", resume=False
    )
    messages, status = drain(call)
    assert [message.offset for message in messages] == list(range(8, 30))
    assert status == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert publish(api, b"more", "bad") == 30
    assert server.stop() == 0


def test_a_partition_whose_log_makes_no_sense_is_offline_alone(make):
    server = make().start()
    api = server.api()
    fill(api, "bad", "good")
    file = segment(server, api, "bad")
    server.kill()
    file, damaged = displace(file)
    api = server.start().api()
    assert re.search(rf"ERROR liftbridge.partition: bad/0 is offline: .*{file}: damaged at byte", server.log)
    code, text = status_of(
        api.Subscribe, api_pb2.SubscribeRequest(stream="bad", startPosition="EARLIEST"), timeout=10
    )
    assert code == grpc.StatusCode.INTERNAL
    assert "offline" in text
    assert "damaged at byte" in text
    code, text = status_of(api.Publish, api_pb2.PublishRequest(stream="bad"), timeout=10)
    assert (code, text) == (grpc.StatusCode.UNKNOWN, "the partition leader could not store the message")
    code, text = status_of(
        api.FetchPartitionMetadata, api_pb2.FetchPartitionMetadataRequest(stream="bad"), timeout=10
    )
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert len(api.FetchMetadata(api_pb2.FetchMetadataRequest(), timeout=10).streamMetadata) == 2
    assert publish(api, b"more", "good") == 30
    assert len(read(api, "good")) == 31
    assert file.read_bytes() == damaged
    api.DeleteStream(api_pb2.DeleteStreamRequest(name="bad"), timeout=10)
    create(api, "bad")
    assert publish(api, b"again", "bad") == 0
    assert server.stop() == 0


def test_an_offline_partition_leaves_its_load_balance_group(make):
    server = make().start()
    api = server.api()
    fill(api, "bad", group="g")
    file = segment(server, api, "bad")
    request = api_pb2.CreateStreamRequest(name="good", subject="shop.bad", group="g")
    api.CreateStream(request, timeout=10)
    server.kill()
    displace(file)
    api = server.start().api()
    assert "bad/0 is offline" in server.log
    for number in range(20):
        assert publish(api, b"x", "good") == number
    assert server.stop() == 0


def test_damage_behind_our_back_ends_a_subscription_with_data_loss(make):
    server = make().start()
    api = server.api()
    fill(api, "bad", "good")
    file = segment(server, api, "bad")
    assert server.stop() == 0
    flip(file, b"bad message 7 ")
    api = server.start().api()
    values = []
    with pytest.raises(grpc.RpcError) as error:
        values.extend(message.value for message in follow(api, "bad"))
    assert error.value.code() == grpc.StatusCode.DATA_LOSS
    assert len(values) == 7
    assert str(file) in server.log
    assert len(read(api, "good")) == 30
    assert publish(api, b"more", "bad") == 30
    assert server.stop() == 0


@pytest.mark.skipif(
    not hasattr(__import__("resource"), "prlimit"), reason="only Linux limits a running process"
)
@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_full_disk_refuses_and_reading_goes_on(make, policy):
    import resource

    server = make(config={"streams.sync.policy": policy}).start()
    api = server.api()
    fill(api, "orders")
    largest = max(file.stat().st_size for file in (server.data_dir / "streams").rglob("*.log"))
    limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (largest + 50, limits[1]))
    for _ in range(5):
        code, text = status_of(
            api.Publish, api_pb2.PublishRequest(stream="orders", value=b"y" * 500), timeout=10
        )
        assert (code, text) == (grpc.StatusCode.UNKNOWN, "the partition leader could not store the message")
    subscription = follow(api)
    assert [next(subscription).offset for _ in range(30)] == list(range(30))
    server.wait_log("ERROR liftbridge.partition: orders/0 cannot store messages and refuses them")
    assert server.log.count("cannot store messages") == 1
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)
    assert publish(api, b"room") == 30
    assert next(subscription).value == b"room"
    server.wait_log("orders/0 stores messages again; 5 batches were refused")
    assert server.stop() == 0
    assert len(read(server.start().api())) == 31
    assert server.stop() == 0


# -- the quick start -----------------------------------------------------------------------------------


def test_dev_prints_commands_that_work(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIFTBRIDGE_")}
    server = subprocess.Popen(
        [*COMMAND, "dev", "--port", "0", "--nats-port", "0", "--data-dir", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        printed = []
        for line in server.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        welcome = "".join(printed)
        assert "Traceback" not in welcome
        with grpc.insecure_channel(re.search(r"gRPC +(\S+)", welcome)[1]) as channel:
            api = Api(channel)
            api.SetCursor(api_pb2.SetCursorRequest(stream="s", cursorId="c", offset=5), timeout=SECONDS)
            fetched = api.FetchCursor(api_pb2.FetchCursorRequest(stream="s", cursorId="c"), timeout=SECONDS)
            assert fetched.offset == 5, "cursors are on"
            follow(api, "__activity").cancel()  # it exists
        after = printed.index("Try, in another terminal:\n") + 1
        commands = [shlex.split(line) for line in printed[after : after + 3]]
        for command, output in (commands[0], "stream greetings records hello.world\n"), (commands[1], ""):
            assert subprocess.check_output(command, text=True, timeout=SECONDS) == output
        reader = subprocess.Popen(commands[2], stdout=subprocess.PIPE, text=True)
        try:
            assert reader.stdout.readline() == "0\thello.world\tGood morning\n"
            reader.send_signal(signal.SIGINT)
            assert reader.wait(SECONDS) == 0
        finally:
            reader.kill()
            reader.wait()
            reader.stdout.close()
        server.send_signal(signal.SIGINT)
        assert "Traceback" not in server.stdout.read()
        assert server.wait(SECONDS) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
