"""Authorization on a real server: each action granted and denied, reload, revocation, and the audit log."""

import os
import re
import signal

import grpc
import pytest
from calls import PATIENCE, RequestQueue, create, drain, publish, read_all, refused, subscribe, until
from harness import METHODS, Server
from secured import Files

from liftbridge.broker.api import ApiServicer
from liftbridge.proto import api_pb2

ADMIN = [
    *(
        f"p, admin, {stream}, {action}"
        for stream in ("s1", "s2", "s3", "__cursors")
        for action in [
            "CreateStream",
            "DeleteStream",
            "PauseStream",
            "SetStreamReadonly",
            "Subscribe",
            "FetchPartitionMetadata",
            "Publish",
            "PublishToSubject",
            "SetCursor",
            "FetchCursor",
        ]
    ),
    "p, admin, *, FetchMetadata",
]
PHRASE = "The client is not authorized to call"

# One request of each RPC, on stream, group or subject s1.
REQUESTS = {
    "CreateStream": api_pb2.CreateStreamRequest(name="s1", subject="s1"),
    "DeleteStream": api_pb2.DeleteStreamRequest(name="s1"),
    "PauseStream": api_pb2.PauseStreamRequest(name="s1"),
    "SetStreamReadonly": api_pb2.SetStreamReadonlyRequest(name="s1"),
    "Subscribe": api_pb2.SubscribeRequest(stream="s1"),
    "FetchMetadata": api_pb2.FetchMetadataRequest(),
    "FetchPartitionMetadata": api_pb2.FetchPartitionMetadataRequest(stream="s1"),
    "Publish": api_pb2.PublishRequest(stream="s1", ackPolicy=api_pb2.NONE),
    "PublishToSubject": api_pb2.PublishToSubjectRequest(subject="s1", ackPolicy=api_pb2.NONE),
    "SetCursor": api_pb2.SetCursorRequest(stream="s1", cursorId="c"),
    "FetchCursor": api_pb2.FetchCursorRequest(stream="s1", cursorId="c"),
    "JoinConsumerGroup": api_pb2.JoinConsumerGroupRequest(groupId="s1", consumerId="c", streams=["s1"]),
    "LeaveConsumerGroup": api_pb2.LeaveConsumerGroupRequest(groupId="s1", consumerId="c"),
    "FetchConsumerGroupAssignments": api_pb2.FetchConsumerGroupAssignmentsRequest(
        groupId="s1", consumerId="c"
    ),
    "ReportConsumerGroupCoordinator": api_pb2.ReportConsumerGroupCoordinatorRequest(
        groupId="s1", consumerId="c", coordinator="x"
    ),
}
# What a servicer has not overridden is answered with UNIMPLEMENTED, to everybody.
SERVED = [name for name in REQUESTS if not getattr(ApiServicer, name).__module__.endswith("_grpc")]
GROUPS = [name for name in SERVED if "Group" in name]
UNARY = [name for name in SERVED if METHODS[name][0] == "unary_unary"]


@pytest.fixture(scope="module", name="files")
def _files(tmp_path_factory):
    files = Files(tmp_path_factory.mktemp("authz"))
    files.write_policy(*ADMIN)
    return files


@pytest.fixture(scope="module", name="server")
def _server(files):
    """One server for the module, which checks groups too and tells allowed calls."""
    more = {"tls.client.authz.groups.enabled": True, "tls.client.authz.audit.allowed": "info"}
    with Server(files.directory / "server", files.config() | more) as running:
        yield running


@pytest.fixture(name="admin")
def _admin(files, server):
    set_policy(files, server, *ADMIN)
    api = files.api(server, "admin")
    create(api, "s1")
    yield api
    set_policy(files, server, *ADMIN)
    api.DeleteStream(api_pb2.DeleteStreamRequest(name="s1"), timeout=PATIENCE)


def reload(server: Server, text: str = "") -> str:
    """SIGHUP, and wait for what it logs; returns the lines since."""
    before = len(server.log)
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: (text or "is in force") in server.log[before:])
    return server.log[before:]


def set_policy(files: Files, server: Server, *rules: str) -> None:
    """Put a policy in force."""
    files.write_policy(*rules)
    reload(server)


def code(api, method: str, request=None) -> tuple[grpc.StatusCode, str]:
    """The status a call ends with; of a subscription its first answer."""
    call = getattr(api, method)
    try:
        if method == "Subscribe":
            stream = call(REQUESTS[method], timeout=PATIENCE)
            next(stream)
            stream.cancel()
        else:
            call(request or REQUESTS[method], timeout=PATIENCE)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("method", SERVED)
def test_an_action_is_denied_until_it_is_granted(files, server, admin, method):
    joe = files.api(server, "joe")
    status, text = code(joe, method)
    assert status is grpc.StatusCode.PERMISSION_DENIED
    resource = "*" if method == "FetchMetadata" else "s1"
    assert text == f"{PHRASE} {method} on resource {resource!r}"
    rules = [f"p, joe, {resource}, {method}"]
    if method == "SetCursor":
        set_policy(files, server, *ADMIN, *rules)
        assert code(joe, method) == (
            grpc.StatusCode.PERMISSION_DENIED,
            f"{PHRASE} Publish on resource '__cursors'",
        )
        rules.append("p, joe, __cursors, Publish")
    set_policy(files, server, *ADMIN, *rules)
    assert code(joe, method)[0] is not grpc.StatusCode.PERMISSION_DENIED
    if method == "DeleteStream":
        create(admin, "s1")


def test_what_is_granted_is_granted_for_that_resource_and_client_only(files, server, admin):
    set_policy(files, server, *ADMIN, "p, joe, s1, Publish")
    other = api_pb2.PublishRequest(stream="s2", ackPolicy=api_pb2.NONE)
    assert code(files.api(server, "joe"), "Publish")[0] is grpc.StatusCode.OK
    assert code(files.api(server, "joe"), "Publish", other)[0] is grpc.StatusCode.PERMISSION_DENIED
    assert code(files.api(server, "joe2"), "Publish")[0] is grpc.StatusCode.PERMISSION_DENIED
    assert code(files.api(server, "Joe"), "Publish")[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_denied_call_has_no_effect(files, server, admin):
    joe = files.api(server, "joe")
    for method in {"Publish", "DeleteStream", "PauseStream", "SetStreamReadonly", "PublishToSubject"} & {
        *SERVED
    }:
        assert code(joe, method)[0] is grpc.StatusCode.PERMISSION_DENIED
    publish(admin, "s1", b"admin's")
    assert [message.value for message in read_all(admin, "s1")] == [b"admin's"]


def test_a_refusal_does_not_tell_what_exists(files, server, admin):
    joe = files.api(server, "joe")
    for stream in ("s1", "nothing"):
        request = api_pb2.FetchPartitionMetadataRequest(stream=stream)
        with refused(grpc.StatusCode.PERMISSION_DENIED, PHRASE):
            joe.FetchPartitionMetadata(request, timeout=PATIENCE)


def test_a_denied_message_of_publish_async_is_answered_and_not_stored(files, server, admin):
    create(admin, "s2")
    set_policy(files, server, *ADMIN, "p, ann, s1, Publish")
    ann = files.api(server, "ann")
    streams = ["s1", "s2", "s2", "s1", "nothing", "s1"]
    requests = [
        api_pb2.PublishRequest(stream=stream, value=str(n).encode(), correlationId=str(n))
        for n, stream in enumerate(streams)
    ]
    answers = {}
    for answer in ann.PublishAsync(iter(requests), timeout=PATIENCE):
        answers[answer.correlationId] = answer
    denied = {n for n in answers if answers[n].HasField("asyncError")}
    assert denied == {"1", "2", "4"}
    for n in denied:
        assert answers[n].asyncError.code == api_pb2.PublishAsyncError.PERMISSION_DENIED
        assert answers[n].asyncError.message == f"{PHRASE} Publish on resource {streams[int(n)]!r}"
        assert answers[n].HasField("ack"), "old clients look into it"
    assert set(answers) == set("012345")
    assert [message.value for message in read_all(admin, "s1")] == [b"0", b"3", b"5"]
    assert read_all(admin, "s2") == []
    server.wait_log("denied: client 'ann', 3 messages of a call")
    admin.DeleteStream(api_pb2.DeleteStreamRequest(name="s2"), timeout=PATIENCE)


def test_a_new_policy_counts_for_the_next_message_of_an_open_call(files, server, admin):
    set_policy(files, server, *ADMIN, "p, joe, s1, Publish")
    requests = RequestQueue()
    call = files.api(server, "joe").PublishAsync(iter(requests), timeout=PATIENCE)
    requests.send(stream="s1", value=b"may")
    assert next(call).ack.offset == 0
    set_policy(files, server, *ADMIN)
    requests.send(stream="s1", value=b"may not")
    assert next(call).asyncError.code == api_pb2.PublishAsyncError.PERMISSION_DENIED
    set_policy(files, server, *ADMIN, "p, joe, s1, Publish")
    requests.send(stream="s1", value=b"may again")
    assert next(call).ack.offset == 1
    requests.close()
    assert list(call) == []


def test_a_subscription_ends_when_its_right_is_taken_away(files, server, admin):
    set_policy(files, server, *ADMIN, "p, joe, s1, Subscribe")
    his, mine = subscribe(files.api(server, "joe"), "s1"), subscribe(admin, "s1")
    set_policy(files, server, *ADMIN, "p, joe, s1, Subscribe", "p, eve, s1, Subscribe")
    publish(admin, "s1", b"one")
    assert next(his).value == next(mine).value == b"one"
    set_policy(files, server, *ADMIN)
    assert drain(his) == ([], grpc.StatusCode.PERMISSION_DENIED)
    publish(admin, "s1", b"two")
    assert next(mine).value == b"two"
    mine.cancel()


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        ("p, joe, s1\n", "policy.csv line 1: a rule has 3 fields"),
        ("p, joe, s1, Publish\nq, a, b, c\n", "policy.csv line 2: 'q' is nothing that the model"),
        (b"\xff\xfe\n", "policy.csv is no text in UTF-8"),
        ('p, "joe, s1, Publish\n', "policy.csv line 1"),
        (None, "cannot read "),
    ],
)
def test_a_policy_that_cannot_be_used_changes_nothing(files, server, admin, policy, complaint):
    running = subscribe(admin, "s1")
    if policy is None:
        files.policy.unlink()
    else:
        files.put("policy.csv", policy)
    lines = reload(server, "the policy stays as it was")
    assert complaint in lines
    publish(admin, "s1", b"still")
    assert next(running).value == b"still"
    assert code(files.api(server, "joe"), "Publish")[0] is grpc.StatusCode.PERMISSION_DENIED
    running.cancel()


def test_the_model_is_read_again_too(files, server, admin):
    joe = files.api(server, "joe")
    model = files.model.read_text()
    try:
        files.put("model.conf", model.replace("r.obj == p.obj", "keyMatch(r.obj, p.obj)"))
        set_policy(files, server, *ADMIN, "p, joe, s*, Publish")
        assert code(joe, "Publish")[0] is grpc.StatusCode.OK
    finally:
        files.put("model.conf", model)
    reload(server)
    assert code(joe, "Publish")[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_client_without_a_name_may_nothing_but_ask_for_health(files, server, admin):
    nobody = files.api(server, None)
    for method in UNARY:
        assert code(nobody, method)[0] is grpc.StatusCode.PERMISSION_DENIED
    check = nobody.channel.unary_unary("/grpc.health.v1.Health/Check", lambda _: b"", lambda data: data)
    assert check(None, timeout=PATIENCE) == b"\x08\x01"


def test_without_a_certificate_there_is_no_connection(files, server):
    anyone = server.api(grpc.ssl_channel_credentials(files.ca.cert_pem.bytes()))
    assert code(anyone, "FetchMetadata")[0] is grpc.StatusCode.UNAVAILABLE
    assert code(server.api(), "FetchMetadata")[0] is grpc.StatusCode.UNAVAILABLE


def test_decisions_are_in_the_log(files, server, admin):
    set_policy(files, server, *ADMIN, "p, bob, s1, Publish")
    bob = files.api(server, "bob")
    code(bob, "Publish")
    code(bob, "DeleteStream", api_pb2.DeleteStreamRequest(name="x\nINFO forged: line"))
    server.wait_log(
        "INFO  liftbridge.audit: allowed: client 'bob', action Publish, resource 's1', peer ipv4:127.0.0.1:"
    )
    server.wait_log(
        "WARN  liftbridge.audit: denied: client 'bob', action DeleteStream, resource 'x\\nINFO forged: line'"
    )
    assert "\nINFO forged" not in server.log


def test_a_flood_of_denials_is_counted_and_does_not_fill_the_log(files, server, admin):
    joe = files.api(server, "flooder")
    before = len(server.log)
    calls = 300
    pending = [joe.Publish.future(REQUESTS["Publish"], timeout=PATIENCE) for _ in range(calls)]
    assert {call.exception().code() for call in pending} == {grpc.StatusCode.PERMISSION_DENIED}

    def accounted() -> int:
        written = told = 0
        for line in server.log[before:].splitlines():
            if "denied: client 'flooder'" in line:
                written += 1
            elif "not listed" in line:  # others may have been denied in the same second
                told += sum(map(int, re.findall(r"(\d+) of 'flooder'", line)))
        return written + told

    until(lambda: accounted() == calls)
    assert server.log[before:].count("denied: client 'flooder'") < calls / 2
    assert code(files.api(server, "admin"), "FetchMetadata")[0] is grpc.StatusCode.OK


def test_consumer_groups_are_open_unless_told_otherwise(tmp_path):
    files = Files(tmp_path / "files")
    files.write_policy("p, admin, *, FetchMetadata")
    with Server(tmp_path / "server", files.config()) as server:
        joe = files.api(server, "joe")
        for method in GROUPS:
            assert code(joe, method)[0] is not grpc.StatusCode.PERMISSION_DENIED
        assert code(joe, "FetchMetadata")[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_file_that_cannot_be_used_stops_the_start(tmp_path):
    files = Files(tmp_path / "files")
    files.write_policy("p, joe, s1")
    server = Server(tmp_path / "server", files.config())
    try:
        server.spawn()
        assert server.wait_end() == 1
        server.wait_log("policy.csv line 1: a rule has 3 fields (sub, obj, act), this one 2")
    finally:
        server.close()
