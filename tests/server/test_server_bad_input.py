"""Bad input gets a clear error and costs nothing: not the process, not other clients, not memory.

What each kind of it gets is the table of docs/bad-input.md. Behind every test the same server must still
serve a client it has not met, and must have printed no traceback.
"""

import contextlib
import re
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from calls import ENVELOPE, create, fresh, partition_metadata, publish, read_all, until
from harness import METHODS, Server
from raw_peers import PREFACE, RawNats, call_frames, connect, envelope, envelope_with_crc, greeting

from liftbridge._wire import decode_ack_envelope
from liftbridge.proto import api_pb2

MAX_MESSAGE = 200_000
on_linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory and files are read from /proc"
)
VALID = api_pb2.Message(key=b"k", value=b"v").SerializeToString()
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN = grpc.StatusCode.UNKNOWN


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for all tests that it survives, which should be all."""
    config = {"clustering.replication.max.bytes": MAX_MESSAGE, "streams.sync.policy": "never"}
    with Server(tmp_path_factory.mktemp("bad-input") / "server", config) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def server(shared):
    yield shared
    check_serves(shared)


@pytest.fixture
def api(server):
    return server.api()


@pytest.fixture
def nats(server):
    client = RawNats(server.nats_url)
    yield client
    client.close()


def check_serves(server):
    """A new client is served, by the same process, and nothing broke on the way."""
    assert server.process.poll() is None, server.log
    api = server.api()
    stream = create(api)
    publish(api, stream, b"still here")
    assert [message.value for message in read_all(api, stream)] == [b"still here"]
    assert "Traceback" not in server.log, server.log
    assert "lost the connection to NATS" not in server.log, server.log


def follow(api, stream):
    subscription = api.Subscribe(
        api_pb2.SubscribeRequest(stream=stream, startPosition="EARLIEST"), timeout=30
    )
    assert next(subscription) == api_pb2.Message()
    return subscription


def refused(call, request, timeout=10):
    """The status of a call that must fail, with its text."""
    with pytest.raises(grpc.RpcError) as error:
        result = call(request, timeout=timeout)
        for _ in result:
            pass
    assert error.value.details()
    assert len(error.value.details()) <= 1024
    return error.value.code(), error.value.details()


def acks(nats):
    """The acks that a raw client has received."""
    return [api_pb2.Ack.FromString(decode_ack_envelope(payload)) for _, payload in nats.received]


def succeeds(call, *arguments, **fields):
    """Whether a call is not refused."""
    with contextlib.suppress(grpc.RpcError):
        return call(*arguments, **fields)


# -- NATS: envelopes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xb9\x0e\x43\xb4",
        b"\xb9\x0e\x43\xb4\x00\x08\x00",
        envelope(VALID, magic=b"\xb9\x0e\x43\xb5"),
        envelope(VALID, version=1),
        envelope(VALID, kind=1),
        envelope(VALID, kind=200),
        envelope(VALID, header=7),
        envelope(VALID, header=0),
        envelope(VALID, header=8 + len(VALID) + 1),
        envelope(VALID, header=255),
        envelope(VALID, flags=1),
        envelope(VALID, flags=1, header=12),
        envelope_with_crc(VALID, wrong=True),
        envelope(b"", flags=1, header=12),
        envelope(b"\x00"),
        envelope(b"\xff" * 20),
        envelope(VALID + b"\x12\x7f"),
        envelope(b"\x1b" * 100),
        envelope(b"\x52\x01\xff"),
        envelope(b"\x4a\x03\x0a\x01\xff"),
    ],
    ids=lambda data: data[:16].hex(),
)
def test_what_is_no_envelope_is_a_plain_message(api, nats, data):
    stream = create(api)
    subscription = follow(api, stream)
    nats.publish(stream.encode(), data)
    message = next(subscription)
    assert (message.value, message.key) == (data, b"")
    nats.publish(stream.encode(), envelope_with_crc(VALID))
    assert (next(subscription).value, subscription.cancel()) == (b"v", True)


@pytest.mark.parametrize(
    "inbox",
    [
        "acks\r\nPUB evil 4\r\nevil",
        "acks 0\r\n\r\nSUB > 1",
        "a b",
        "a\tb",
        "a\nb",
        "\x00",
        ".",
        "a..b",
        ".a",
        "a.",
        "x" * 3000,
        "x" * (MAX_MESSAGE - 100),
        "x." * 20000 + "x",
    ],
    ids=lambda inbox: repr(inbox[:20]),
)
def test_an_ack_inbox_cannot_inject_nats_commands(server, api, nats, inbox):
    stream = create(api)
    observer = RawNats(server.nats_url)
    observer.subscribe(b">")
    good = fresh("acks")
    message = api_pb2.Message(value=b"1", ackInbox=inbox)
    nats.publish(stream.encode(), envelope(message.SerializeToString()))
    message = api_pb2.Message(value=b"2", ackInbox=good)
    nats.publish(stream.encode(), envelope(message.SerializeToString()))
    # The good message's ack comes behind whatever the bad one's inbox has caused.
    while observer.wait(len(observer.received) + 1)[-1][0] != good.encode():
        pass
    assert [subject for subject, _ in observer.received] == [stream.encode()] * 2 + [good.encode()]
    observer.close()
    assert [message.value for message in read_all(api, stream)] == [b"1", b"2"]


@pytest.mark.parametrize(
    "headers",
    [{"n" * 32768: b"v"}, {"n" * 40000: b""}, {f"{number:x}": b"" for number in range(32768)}],
    ids=["name", "longer-name", "number"],
)
def test_headers_beyond_the_format_are_refused(server, api, nats, headers):
    stream, inbox = create(api), fresh("acks")
    nats.subscribe(inbox.encode())
    message = api_pb2.Message(ackInbox=inbox, headers=headers, ackPolicy="NONE")
    payload = envelope(message.SerializeToString())
    assert len(payload) < MAX_MESSAGE or len(headers) > 1
    nats.publish(stream.encode(), payload)
    nats.wait(1)
    expected = api_pb2.Ack.TOO_LARGE if len(payload) > MAX_MESSAGE else api_pb2.Ack.UNKNOWN
    assert [ack.ackError for ack in acks(nats)] == [expected]
    request = api_pb2.PublishRequest(stream=stream, headers=headers)
    code, _ = refused(api.Publish, request)
    assert code == (INVALID_ARGUMENT if len(payload) > MAX_MESSAGE else UNKNOWN)
    assert read_all(api, stream) == []


def test_messages_that_are_too_large(api, nats):
    stream, inbox = create(api), fresh("acks")
    nats.subscribe(inbox.encode())
    nats.publish(stream.encode(), b"x" * (MAX_MESSAGE + 1))
    for policy in ("LEADER", "ALL", "NONE"):
        message = api_pb2.Message(value=b"x" * MAX_MESSAGE, ackInbox=inbox, ackPolicy=policy)
        nats.publish(stream.encode(), envelope(message.SerializeToString()))
    nats.wait(3)
    assert [ack.ackError for ack in acks(nats)] == [api_pb2.Ack.TOO_LARGE] * 3
    request = api_pb2.PublishRequest(stream=stream, value=b"x" * MAX_MESSAGE)
    assert refused(api.Publish, request) == (
        INVALID_ARGUMENT,
        "the message is larger than clustering.replication.max.bytes allows",
    )
    code, text = refused(api.Publish, api_pb2.PublishRequest(stream=stream, value=b"x" * (1 << 20)))
    assert code == UNKNOWN
    assert "NATS accepts 1048576" in text
    code, _ = refused(api.Publish, api_pb2.PublishRequest(stream=stream, value=b"x" * (5 << 20)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    sizes = [10, MAX_MESSAGE, 1 << 20, 20]
    answers = {
        answer.correlationId: answer
        for answer in api.PublishAsync(
            (
                api_pb2.PublishRequest(stream=stream, value=b"x" * size, correlationId=str(size))
                for size in sizes
            ),
            timeout=30,
        )
    }
    codes = {
        int(size): answer.asyncError.code for size, answer in answers.items() if answer.HasField("asyncError")
    }
    assert codes == {
        MAX_MESSAGE: api_pb2.PublishAsyncError.BAD_REQUEST,
        1 << 20: api_pb2.PublishAsyncError.INTERNAL,
    }
    assert [len(message.value) for message in read_all(api, stream)] == [10, 20]


def test_subjects_that_are_not_utf8(server, api, nats):
    stream = create(api, fresh(), "bytes.>")
    for subject in (b"bytes.\xff", b"bytes.\xc0\xaf", b"bytes.\xed\xa0\x80", b"bytes." + b"x" * 3000):
        nats.publish(subject, b"x")
    nats.publish(b"bytes.ok", b"no reply", b"reply.\xff")
    nats.publish(b"bytes.\xc3\xa9", b"fine")
    nats.sync()
    nats.publish(b"bytes.end", b"end")
    subscription = follow(api, stream)
    messages = [next(subscription), next(subscription), next(subscription)]
    assert [message.subject for message in messages] == ["bytes." + "x" * 3000, "bytes.é", "bytes.end"]
    assert [message.offset for message in messages] == [0, 1, 2]


def test_an_unknown_policy_in_an_envelope_is_stored_and_not_acked(api, nats):
    stream, inbox = create(api), fresh("acks")
    nats.subscribe(inbox.encode())
    for policy in (77, -1, 0):
        message = api_pb2.Message(value=b"%d" % policy, ackInbox=inbox, ackPolicy=policy)
        nats.publish(stream.encode(), envelope(message.SerializeToString()))
    nats.wait(1)
    assert [(ack.offset, ack.ackPolicy) for ack in acks(nats)] == [(2, 0)]
    assert [message.value for message in read_all(api, stream)] == [b"77", b"-1", b"0"]


def test_garbage_on_the_inboxes_of_the_server(server, api, nats):
    stream = create(api)
    observer = RawNats(server.nats_url)
    observer.subscribe(stream.encode())
    ack = envelope(publish(api, stream, b"1").SerializeToString(), kind=1)
    ((_, message),) = observer.wait(1)
    inbox = api_pb2.Message.FromString(message[len(ENVELOPE) + 1 :]).ackInbox.encode()
    prefix = inbox.rpartition(b".")[0].rpartition(b".")[0]
    subjects = [prefix + suffix for suffix in (b".0.0", b".9999999.1", b".x.y", b".1.99999999999999999999")]
    for subject in [inbox, *subjects]:
        for payload in (
            b"",
            b"garbage",
            ack,
            ENVELOPE + b"\x01" + b"\xff" * 30,
            envelope(b"\x52\x01\xff", kind=1),
        ):
            nats.publish(subject, payload)
    nats.sync()
    observer.close()
    assert publish(api, stream, b"2").offset == 1


def test_what_is_no_ack_fails_the_publish_that_waits_for_one(api, nats):
    # On an inbox that the client chose, anybody may answer; the first one to do so is not Liftbridge.
    inbox, subject = fresh("acks"), fresh()
    nats.subscribe(subject.encode())

    def answer():
        nats.wait(1)
        nats.publish(inbox.encode(), b"this is no ack")
        nats.sync()

    thread = threading.Thread(target=answer)
    thread.start()
    request = api_pb2.PublishToSubjectRequest(subject=subject, ackInbox=inbox)
    code, text = refused(api.PublishToSubject, request)
    thread.join(30)
    assert code == UNKNOWN
    assert "is not an ack" in text


# -- gRPC: requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inbox", ["a\r\nPUB x 1\r\n1", "a b", "a\x00b", "a..b", "x" * 3000, "a.*", "a.>", ">", "."]
)
def test_subjects_in_requests_cannot_inject_nats_commands(api, inbox):
    stream = create(api)
    assert refused(api.Publish, api_pb2.PublishRequest(stream=stream, ackInbox=inbox))[0] == INVALID_ARGUMENT
    request = api_pb2.PublishToSubjectRequest(subject=stream, ackInbox=inbox)
    assert refused(api.PublishToSubject, request)[0] == INVALID_ARGUMENT
    if "*" not in inbox and ">" not in inbox:
        assert refused(api.PublishToSubject, api_pb2.PublishToSubjectRequest(subject=inbox))[0] == UNKNOWN
        request = api_pb2.CreateStreamRequest(name=fresh(), subject=inbox)
        assert refused(api.CreateStream, request)[0] == INVALID_ARGUMENT
        request = api_pb2.CreateStreamRequest(name=fresh(), subject=fresh(), group=inbox)
        if " " in inbox or "\r" in inbox or "\x00" in inbox or len(inbox) > 1024:
            assert refused(api.CreateStream, request)[0] == INVALID_ARGUMENT


def test_numbers_that_are_no_enum_values(api):
    stream = create(api)
    publish(api, stream, b"1")
    for fields in ({"startPosition": 77}, {"startPosition": -1}, {"stopPosition": 77}):
        code, text = refused(api.Subscribe, api_pb2.SubscribeRequest(stream=stream, **fields))
        assert code == INVALID_ARGUMENT
        assert "unknown" in text
    for policy in (77, -1):
        for request, call in (
            (api_pb2.PublishRequest(stream=stream, ackPolicy=policy), api.Publish),
            (api_pb2.PublishToSubjectRequest(subject=stream, ackPolicy=policy), api.PublishToSubject),
        ):
            assert refused(call, request) == (
                INVALID_ARGUMENT,
                f"unknown ack policy {policy}; it is LEADER, ALL or NONE",
            )
        requests = [api_pb2.PublishRequest(stream=stream, ackPolicy=policy, correlationId="c")]
        (answer,) = api.PublishAsync(iter(requests), timeout=10)
        assert (answer.correlationId, answer.asyncError.code) == ("c", api_pb2.PublishAsyncError.BAD_REQUEST)
    assert len(read_all(api, stream)) == 1


def test_numbers_at_the_ends_of_their_types(api):
    stream = create(api)
    publish(api, stream, b"1")
    least, most = -(1 << 63), (1 << 63) - 1
    for start in (least, -1, most):
        request = api_pb2.SubscribeRequest(
            stream=stream, startPosition="OFFSET", startOffset=start, stopPosition="STOP_LATEST"
        )
        code, _ = refused(api.Subscribe, request)
        assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, INVALID_ARGUMENT)
        request = api_pb2.SubscribeRequest(
            stream=stream,
            startPosition="TIMESTAMP",
            startTimestamp=start,
            stopPosition="STOP_TIMESTAMP",
            stopTimestamp=start,
        )
        code, _ = refused(api.Subscribe, request)
        assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
        request = api_pb2.SubscribeRequest(
            stream=stream, startPosition="EARLIEST", stopPosition="STOP_OFFSET", stopOffset=least
        )
        assert refused(api.Subscribe, request)[0] == INVALID_ARGUMENT
        assert publish(api, stream, b"2", expectedOffset=start).offset > 0
    for number in (-(1 << 31), -1, 1, (1 << 31) - 1):
        for request, call in (
            (api_pb2.SubscribeRequest(stream=stream, partition=number), api.Subscribe),
            (api_pb2.PublishRequest(stream=stream, partition=number), api.Publish),
            (
                api_pb2.FetchPartitionMetadataRequest(stream=stream, partition=number),
                api.FetchPartitionMetadata,
            ),
        ):
            assert refused(call, request)[0] == grpc.StatusCode.NOT_FOUND
    for fields in (
        {"partitions": -1},
        {"partitions": (1 << 31) - 1},
        {"replicationFactor": (1 << 31) - 1},
        {"compression": "x" * 1000},
        {"syncPolicy": "\0"},
    ):
        request = api_pb2.CreateStreamRequest(name=fresh(), subject=fresh(), **fields)
        assert refused(api.CreateStream, request)[0] in (INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    for value in (least, -1):
        wrapped = api_pb2.NullableInt64(value=value)
        request = api_pb2.CreateStreamRequest(name=fresh(), subject=fresh(), segmentMaxBytes=wrapped)
        assert refused(api.CreateStream, request)[0] == INVALID_ARGUMENT


def test_streams_that_do_not_exist(api):
    for name in ("", "nope", "x" * 100_000, "../../etc/passwd", "a\r\nb"):
        for request, call in (
            (api_pb2.SubscribeRequest(stream=name), api.Subscribe),
            (api_pb2.PublishRequest(stream=name), api.Publish),
            (api_pb2.FetchPartitionMetadataRequest(stream=name), api.FetchPartitionMetadata),
            (api_pb2.DeleteStreamRequest(name=name), api.DeleteStream),
        ):
            code, _ = refused(call, request)
            assert code in (grpc.StatusCode.NOT_FOUND, INVALID_ARGUMENT)
        (answer,) = api.PublishAsync(iter([api_pb2.PublishRequest(stream=name)]), timeout=10)
        assert answer.asyncError.code == api_pb2.PublishAsyncError.NOT_FOUND
        (entry,) = api.FetchMetadata(api_pb2.FetchMetadataRequest(streams=[name]), timeout=10).streamMetadata
        assert entry.error == api_pb2.StreamMetadata.UNKNOWN_STREAM


@pytest.mark.parametrize(
    "data", [b"\xff" * 10, b"\x0a\x7f", b"\x0b" * 1000, b"\x0a\x02\xff\xfe\x12\x02\xff\xfe\x1a\x02\xff\xfe"]
)
@pytest.mark.parametrize("method", ["CreateStream", "Subscribe", "Publish", "PublishAsync", "FetchMetadata"])
def test_garbage_where_a_request_should_be(api, method, data):
    kind = METHODS[method][0]
    call = getattr(api.channel, kind)(f"/proto.API/{method}")
    with pytest.raises(grpc.RpcError) as error:
        for _ in call(iter([data]) if kind == "stream_stream" else data, timeout=10):
            pass
    assert error.value.code() in (grpc.StatusCode.INTERNAL, INVALID_ARGUMENT)
    assert error.value.details()


def test_a_method_that_does_not_exist(api):
    for path in ("/proto.API/Nope", "/nope.API/Publish", "/", "/proto.API/../Publish"):
        with pytest.raises(grpc.RpcError) as error:
            api.channel.unary_unary(path)(b"", timeout=10)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_partitions_beyond_the_limit(tmp_path):
    with Server(tmp_path / "server", {"streams.max.partitions": 100}) as server:
        api = server.api()
        stream = create(api, partitions=60)
        request = api_pb2.CreateStreamRequest(name=fresh(), subject=fresh(), partitions=41)
        code, text = refused(api.CreateStream, request)
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "room for 40 more partitions" in text
        create(api, partitions=30)
        api.DeleteStream(api_pb2.DeleteStreamRequest(name=stream), timeout=30)
        # There is room again when its files are gone.
        until(lambda: succeeds(create, api, partitions=60))
        check_serves(server)
        assert server.stop() == 0


# -- gRPC: connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"\x00" * 4096,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
        PREFACE + b"\xff" * 4096,
        PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        PREFACE
        + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        + b"\x00\x00\x04\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff",
        PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x01\x00\x00\x00\x00\x00\x05x",
        PREFACE + b"\x00\x00\x05\x04\x00\x00\x00\x00\x00xxxxx",
    ],
    ids=["http1", "tls", "zeros", "preface", "noise", "long-frame", "hpack", "stream", "settings"],
)
def test_what_is_no_http2_is_hung_up_on(server, data):
    with connect(server.grpc_port) as peer:
        peer.sendall(data)
        with contextlib.suppress(ConnectionError):
            while peer.recv(65536):  # until the server closes the connection
                pass


@pytest.mark.parametrize("cut", [1, 10, 24, 30, 33, 40, 60, 100])
def test_a_connection_that_breaks_in_mid_frame(server, api, cut):
    stream = create(api)
    data = greeting() + call_frames("Subscribe", api_pb2.SubscribeRequest(stream=stream).SerializeToString())
    assert cut < len(data)
    with connect(server.grpc_port) as broken:
        broken.sendall(data[:cut])


VANISHING = """
import sys, itertools, grpc
sys.path.insert(0, sys.argv[3])
from harness import Api
from liftbridge.proto import api_pb2
api = Api(grpc.insecure_channel(sys.argv[1]))
stream = sys.argv[2]
subscription = api.Subscribe(api_pb2.SubscribeRequest(stream=stream, startPosition="EARLIEST"))
next(subscription)
requests = (api_pb2.PublishRequest(stream=stream, value=b"x" * 1000) for _ in itertools.count())
answers = api.PublishAsync(requests)
for number, (answer, message) in enumerate(zip(answers, subscription)):
    if number == 1000:
        print("flowing", flush=True)
"""


def descriptors(server):
    """How many files and sockets the process has open."""
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def peak_memory(server):
    """The most resident memory that the process has ever had, in bytes."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) << 10


@on_linux
def test_a_client_that_vanishes(server, api):
    stream = create(api)
    before = descriptors(server)
    client = subprocess.Popen(
        [sys.executable, "-c", VANISHING, server.address, stream, str(Path(__file__).parent.parent)],
        stdout=subprocess.PIPE,
    )
    try:
        assert client.stdout.readline() == b"flowing\n"
        assert descriptors(server) > before
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    until(lambda: descriptors(server) <= before)
    messages = read_all(api, stream)
    assert len(messages) >= 1000
    assert [message.offset for message in messages] == list(range(len(messages)))


@on_linux
def test_clients_that_never_read(tmp_path):
    size, count = 100_000, 1500
    # What subscribers share is bounded for the process, whatever they do; here it would cover up the rest.
    config = {"streams.sync.policy": "never", "streams.read.cache.max.bytes": 0}
    with (
        Server(tmp_path / "server", config) as server,
        contextlib.ExitStack() as opened,
    ):
        api = server.api(**{"grpc.max_receive_message_length": -1})
        stream = create(api)
        nats = RawNats(server.nats_url)
        for _ in range(count):
            nats.publish(stream.encode(), b"x" * size)
        nats.close()
        until(lambda: partition_metadata(api, stream).newestOffset == count - 1)
        before = peak_memory(server)
        request = api_pb2.SubscribeRequest(stream=stream, startPosition="EARLIEST").SerializeToString()
        for _ in range(10):
            peer = opened.enter_context(connect(server.grpc_port))
            peer.sendall(greeting() + call_frames("Subscribe", request))
        # While one client reads it all, the server has the time it needs to send it to the others as well.
        for _ in range(2):
            assert len(read_all(api, stream)) == count
        assert peak_memory(server) - before < 80_000_000
        check_serves(server)
        opened.close()
        assert server.stop() == 0


@on_linux
def test_a_publisher_that_never_reads_its_acks(tmp_path):
    with Server(tmp_path / "server", {"streams.sync.policy": "never"}) as server:
        api, other = server.api(), server.api()
        stream = create(api)
        publish(api, stream, b"first")
        before = peak_memory(server)
        sent = 0

        def requests():
            nonlocal sent
            for _ in range(2_000_000):
                sent += 1
                yield api_pb2.PublishRequest(stream=stream, value=b"v", correlationId="c" * 1000)

        flood = api.PublishAsync(requests())
        # The server has stopped taking requests when it takes none while it serves two hundred others.
        taken = -1
        while taken != sent:
            taken = sent
            for _ in range(200):
                publish(other, stream, b"between")
        assert 0 < sent < 2_000_000
        assert peak_memory(server) - before < 150_000_000
        flood.cancel()
        check_serves(server)
        assert server.stop() == 0
