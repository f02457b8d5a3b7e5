"""Casbin model and policy files of an authorization.

Checked: files are a policy or are refused with an AuthzFileError that names the file; what was accepted
decides every request, the same way each time, without an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from fuzz_targets.memory import scratch
from fuzz_targets.script import Script, written
from liftbridge.broker.authz.errors import AuthzFileError
from liftbridge.broker.authz.policy import load_policy

INSTRUMENTED = ("liftbridge.broker.authz",)
MAX_LENGTH = 2048
WORDS = (
    b"[request_definition]\n", b"[policy_definition]\n", b"[role_definition]\n", b"[policy_effect]\n",
    b"[matchers]\n", b"r = sub, obj, act\n", b"p = sub, obj, act\n", b"p = sub, obj, act, eft\n",
    b"g = _, _\n", b"g2 = _, _\n", b"e = some(where (p.eft == allow))\n",
    b"e = !some(where (p.eft == deny))\n", b"e = priority(p.eft) || deny\n", b"m = ", b"r.sub == p.sub",
    b"g(r.sub, p.sub)", b"keyMatch(r.obj, p.obj)", b"keyMatch2(r.obj, p.obj)", b"keyMatch3(r.obj, p.obj)",
    b"regexMatch(r.obj, p.obj)", b" in ('a', 'b')", b" && ", b" || ", b"!(", b"p, ann, orders, Publish\n",
    b"g, ann, admin\n", b"allow", b"deny", b":name", b"{name}", b".*", b"\\", b"#", b"(?P<a>", b"{1,99}",
    b"\xef\xbb\xbf",
)  # fmt: skip

MODEL = (
    b"[request_definition]\nr = sub, obj, act\n[policy_definition]\np = sub, obj, act\n"
    b"[role_definition]\ng = _, _\n[policy_effect]\ne = some(where (p.eft == allow))\n[matchers]\nm = "
)
WHOLE, EXPRESSION = range(2)
# Short, as a pattern that takes for ever is the operator's own doing.
REQUESTS = [("ann", "orders", "Publish"), ("bob", "a/b", "x"), ("", "", ""), ("admin", "*", "*")]


def seeds() -> Iterator[bytes]:
    """Models and policies as operators write them."""
    usual = b"g(r.sub, p.sub) && r.obj == p.obj && r.act == p.act"
    rules = b"# who\np, ann, orders, Publish\np, admin, *, *\ng, ann, admin\n"
    yield written(EXPRESSION, usual, rules)
    for function in (b"keyMatch", b"keyMatch2", b"keyMatch3", b"regexMatch"):
        match = function + b"(r.obj, p.obj) && r.act in ('Publish', \"x\") || !(r.sub != 'root')"
        yield written(EXPRESSION, match, b"p, ann, a/:b, x\np, ann, a/{b}, y\np, bob, ^a.*$, z\n")
    whole = MODEL.replace(b"act\n[role", b"act, eft\n[role").replace(
        b"some(where (p.eft == allow))", b"priority(p.eft) || deny"
    )
    yield written(
        WHOLE, whole + b"r.sub == p.sub\n", b'p, ann, "a, b", x, deny\np, ann, orders, Publish, allow\n'
    )


def run(data: bytes) -> None:
    with warnings.catch_warnings():
        # Of a pattern that later versions of Python may read otherwise; the operator sees it.
        warnings.simplefilter("ignore", FutureWarning)
        judge(data)


def judge(data: bytes) -> None:
    script = Script(data)
    kind, model, rules = script.number() % 2, script.string(), script.string()
    model_path, rules_path = scratch() / "model.conf", scratch() / "policy.csv"
    model_path.write_bytes(model if kind == WHOLE else MODEL + model)
    rules_path.write_bytes(rules)
    try:
        policy = load_policy(model_path, rules_path)
    except AuthzFileError as error:
        assert "model.conf" in str(error) or "policy.csv" in str(error)
        return
    decisions = [policy.allows(*request) for request in REQUESTS]
    assert decisions == [load_policy(model_path, rules_path).allows(*request) for request in REQUESTS]
