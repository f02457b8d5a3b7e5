"""The table of RPCs is complete, and the guard goes by it."""

from pathlib import Path

import pytest
import trio
from secured import MODEL

from liftbridge.broker.authz import ROWS, Audit, Authorizer, identity_of
from liftbridge.broker.authz.actions import ACTIONS
from liftbridge.proto import api_pb2
from liftbridge.rpc import CallContext, RpcFailedError, StatusCode

SERVICE = api_pb2.DESCRIPTOR.services_by_name["API"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "authorization.md"


def call(method: str, name: str = "joe") -> CallContext:
    """A call of a client with this common name."""
    subject = ((("organizationName", "x"),), (("commonName", name),))
    return CallContext(method, "ipv4:10.0.0.1:1", peer_certificate={"subject": subject})


def authorizer(directory: Path, *rules: str, groups: bool = True, model: str = MODEL) -> Authorizer:
    (directory / "model.conf").write_text(model)
    (directory / "policy.csv").write_text("\n".join(rules))
    return Authorizer(directory / "model.conf", directory / "policy.csv", audit=Audit(10, 100), groups=groups)


def request_of(method: str, resource: str):
    """A request of a method, about a resource."""
    message = getattr(api_pb2, SERVICE.methods_by_name[method].input_type.name)()
    for check in ROWS[method].checks:
        if check.field:
            setattr(message, check.field, resource)
    return message


def test_every_method_has_a_row_and_every_row_a_method():
    assert set(ROWS) == {method.name for method in SERVICE.methods}


def test_every_row_names_a_field_of_its_request():
    for name, row in ROWS.items():
        fields = SERVICE.methods_by_name[name].input_type.fields_by_name
        assert row.checks
        for check in row.checks:
            assert bool(check.field) != bool(check.resource)
            assert not check.field or fields[check.field].type == fields[check.field].TYPE_STRING


def test_every_action_is_documented():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in ROWS:
        assert f"| `{name}` |" in text
    for action in ACTIONS:
        assert f"`{action}`" in text


@pytest.mark.parametrize("method", [name for name in ROWS if not ROWS[name].per_message])
async def test_each_method_needs_each_of_its_actions(tmp_path, method):
    checks = ROWS[method].checks
    rules = [f"p, joe, {check.resource or 'r1'}, {check.action}" for check in checks]
    context, request = call(f"/proto.API/{method}"), request_of(method, "r1")
    over = authorizer(tmp_path, *rules).admit(context, request, lambda status: None)
    assert (over is not None) == (method == "Subscribe")
    for missing in rules:
        some = authorizer(tmp_path, *(rule for rule in rules if rule != missing))
        with pytest.raises(RpcFailedError) as error:
            some.admit(context, request, lambda status: None)
        assert error.value.status.status_code is StatusCode.PERMISSION_DENIED
        assert error.value.status.status_message.startswith("The client is not authorized to call ")
        assert some.audit.calls_denied == 1


async def test_a_method_without_a_row_is_denied(tmp_path):
    with pytest.raises(RpcFailedError, match="not authorized to call Whatever"):
        authorizer(tmp_path).admit(call("/proto.API/Whatever"), None, lambda status: None)


async def test_health_is_for_everybody(tmp_path):
    context = CallContext("/grpc.health.v1.Health/Check", "unix:")
    assert authorizer(tmp_path).admit(context, None, lambda status: None) is None


async def test_a_client_without_a_name_is_denied_what_everybody_may(tmp_path):
    everybody = MODEL.replace("r.sub == p.sub && ", "")
    guard = authorizer(tmp_path, "p, , s, DeleteStream", "p, , s, Publish", model=everybody)
    request, named = api_pb2.DeleteStreamRequest(name="s"), call("/proto.API/DeleteStream")
    assert guard.admit(named, request, lambda status: None) is None
    assert guard.permit(named)(b"s") is None
    nobody = CallContext("/proto.API/DeleteStream", "ipv4:10.0.0.1:1")
    with pytest.raises(RpcFailedError, match="not authorized"):
        guard.admit(nobody, request, lambda status: None)
    assert b"not authorized" in guard.permit(nobody)(b"s")


def test_a_certificate_with_two_names_has_none():
    names = ((("commonName", "joe"),), (("commonName", "admin"),))
    assert identity_of(CallContext("", "", peer_certificate={"subject": names})) == ""
    assert identity_of(CallContext("", "", peer_certificate={"subject": ()})) == ""
    assert identity_of(CallContext("", "")) == ""
    assert identity_of(call("", "joe")) == "joe"


async def test_each_client_has_lines_of_its_own_in_a_second(autojump_clock, caplog):
    audit = Audit(10, 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audit.run)
        for _ in range(100):
            audit.denied("flooder", "Publish", "s", "unix:")
        audit.denied("joe", "Publish", "s", "unix:")
        for number in range(2000):
            audit.denied(f"client {number}", "Publish", "s", "unix:")
        written = [record.getMessage() for record in caplog.records]
        assert sum("'flooder'" in line for line in written) == 10
        assert sum("'joe'" in line for line in written) == 1
        assert len(written) == 30
        await trio.sleep(1.5)
        (told,) = [record.getMessage() for record in caplog.records][30:]
        assert told.startswith("denied: 2071 more in a second, not listed: ")
        assert "90 of 'flooder'" in told
        caplog.clear()
        audit.denied("flooder", "Publish", "s", "unix:")
        assert len(caplog.records) == 1
        await trio.sleep(1.5)
        assert len(caplog.records) == 1
        nursery.cancel_scope.cancel()
    assert audit.calls_denied == 2102
