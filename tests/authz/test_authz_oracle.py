"""The files mean what they mean to Casbin: any policy decides as the library decides, for every request."""

import logging
import tempfile
from pathlib import Path

import casbin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftbridge.broker.authz import load_policy

NAMES = ["ann", "bob", "team", "a*", "*", "b.c"]
EXPRESSIONS = [
    "r.sub == p.sub && r.obj == p.obj && r.act == p.act",
    "g(r.sub, p.sub) && r.obj == p.obj && r.act == p.act",
    "g(r.sub, p.sub) && g2(r.obj, p.obj)",
    "(r.sub == p.sub || p.sub == '*') && keyMatch(r.obj, p.obj)",
    "r.sub == 'ann' || r.sub == p.sub && keyMatch(r.obj, p.obj) && !(r.act == p.act)",
    "r.act in ('ann', 'bob') && p.obj == r.obj",
    "keyMatch2(r.obj, p.obj)",
]
EFFECTS = [
    "some(where (p.eft == allow))",
    "!some(where (p.eft == deny))",
    "some(where (p.eft == allow)) && !some(where (p.eft == deny))",
    "priority(p.eft) || deny",
]
name = st.sampled_from(NAMES)


@pytest.fixture(autouse=True)
def _quiet():
    """The library logs every decision, and every policy that it reads."""
    logger = logging.getLogger("casbin")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


@settings(deadline=None)
@given(
    expression=st.sampled_from(EXPRESSIONS),
    effect=st.sampled_from(EFFECTS),
    rules=st.lists(
        st.tuples(name, name, name, st.sampled_from(["allow", "deny"])), min_size=1, max_size=6, unique=True
    ),
    links=st.lists(st.tuples(st.sampled_from(["g", "g2"]), name, name), max_size=5, unique=True),
    requests=st.lists(st.tuples(name, name, name), min_size=1, max_size=20),
)
def test_every_policy_decides_as_casbin_does(expression, effect, rules, links, requests):
    with tempfile.TemporaryDirectory() as directory:
        model, policy = Path(directory, "model.conf"), Path(directory, "policy.csv")
        model.write_text(
            "[request_definition]\nr = sub, obj, act\n[policy_definition]\np = sub, obj, act, eft\n"
            f"[role_definition]\ng = _, _\ng2 = _, _\n[policy_effect]\ne = {effect}\n"
            f"[matchers]\nm = {expression}\n"
        )
        lines = [f"p, {', '.join(rule)}" for rule in rules] + [", ".join(link) for link in links]
        policy.write_text("\n".join(lines) + "\n")
        ours, theirs = load_policy(model, policy), casbin.Enforcer(str(model), str(policy))
        for request in requests:
            assert ours.allows(*request) == theirs.enforce(*request), request
