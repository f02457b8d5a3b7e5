"""Model and policy files: what they mean, and that whatever is wrong with them is told with file and line."""

from pathlib import Path

import pytest

from liftbridge.broker.authz import AuthzFileError, Policy, load_policy
from liftbridge.broker.authz.policy import MAX_RESOURCE

MODEL = """\
# the model of the original
[request_definition]
r = sub, obj, act

[policy_definition]
p = sub, obj, act

[policy_effect]
e = some(where (p.eft == allow))

[matchers]
m = r.sub == p.sub && r.obj == p.obj && r.act == p.act
"""
RULES = "p, ann, orders, Publish\n"


@pytest.fixture(name="load")
def _load(tmp_path: Path):
    def load(model: str = MODEL, rules: "str | bytes" = RULES) -> Policy:
        (tmp_path / "model.conf").write_text(model)
        (tmp_path / "policy.csv").write_bytes(rules.encode() if isinstance(rules, str) else rules)
        return load_policy(tmp_path / "model.conf", tmp_path / "policy.csv")

    return load


def matcher(text: str) -> str:
    """The model with another expression."""
    return MODEL.replace("r.sub == p.sub && r.obj == p.obj && r.act == p.act", text)


def with_roles(text: str) -> str:
    """The model with roles of clients and of resources, and another expression."""
    return matcher(text) + "[role_definition]\ng = _, _\ng2 = _, _\n"


def with_effect(effect: str) -> str:
    """The model whose rules have an effect of their own."""
    return MODEL.replace("p = sub, obj, act", "p = sub, obj, act, eft").replace(
        "some(where (p.eft == allow))", effect
    )


def test_the_original_model_compares_all_three(load):
    policy = load()
    assert policy.rules == 1
    assert policy.allows("ann", "orders", "Publish")
    for client, resource, action in (
        ("bob", "orders", "Publish"),
        ("ann", "orders2", "Publish"),
        ("ann", "orders", "Subscribe"),
        ("ann", "*", "Publish"),
        ("", "", ""),
    ):
        assert not policy.allows(client, resource, action)


def test_blanks_comments_quotes_and_both_line_ends(load):
    rules = (
        "\ufeff# who may what\r\n\r\n  p ,ann,  orders , Publish\r\n"
        'p, "a, b", o#1, Publish\n#p, eve, orders, Publish\n'
    )
    policy = load(rules=rules)
    assert policy.rules == 2
    assert policy.allows("ann", "orders", "Publish")
    assert policy.allows("a, b", "o#1", "Publish")
    assert not policy.allows("eve", "orders", "Publish")


def test_a_model_may_go_on_in_the_next_line(load):
    text = MODEL.replace("&& r.obj", "\\\n  && r.obj")
    assert load(text).allows("ann", "orders", "Publish")


def test_without_rules_nothing_is_allowed(load):
    policy = load(matcher("regexMatch(r.obj, p.obj)"), "# nobody\n")
    assert not policy.allows("ann", "orders", "Publish")


EXPRESSIONS = {
    "r.sub == 'root' || (r.sub == p.sub && r.act == p.act)": [
        ("root", "x", "y", True),
        ("ann", "x", "Publish", True),
        ("ann", "x", "y", False),
    ],
    "r.sub == p.sub && keyMatch(r.obj, p.obj) && r.act == p.act": [
        ("ann", "orders", "Publish", True),
        ("ann", "orders.eu", "Publish", False),
    ],
    "r.sub in ('ann', \"bob\") && !(r.act != p.act)": [
        ("bob", "x", "Publish", True),
        ("eve", "x", "Publish", False),
        ("bob", "x", "Subscribe", False),
    ],
    "regexMatch(r.obj, '^ord') && true != false": [
        ("eve", "orders", "x", True),
        ("eve", "xorders", "x", False),
    ],
    "p.act == r.act && p.sub == r.sub": [("ann", "any", "Publish", True), ("bob", "any", "Publish", False)],
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions(load, text):
    policy = load(matcher(text))
    for client, resource, action, allowed in EXPRESSIONS[text]:
        assert policy.allows(client, resource, action) is allowed, (client, resource, action)


@pytest.mark.parametrize(
    ("function", "key", "pattern", "found"),
    [
        ("keyMatch", "orders.eu", "orders.*", True),
        ("keyMatch", "orders", "orders.*", False),
        ("keyMatch", "a*b", "a*", True),
        ("keyMatch", "ab", "a", False),
        ("keyMatch", "anything", "*", True),
        ("keyMatch2", "/a/b/c", "/a/*", True),
        ("keyMatch2", "/a/b", "/a/:x", True),
        ("keyMatch2", "/a/b/c", "/a/:x", False),
        ("keyMatch2", "/a/b\n", "/a/b", False),
        ("keyMatch3", "/a/b", "/a/{x}", True),
        ("keyMatch3", "/a/b/c", "/a/{x}", False),
        ("regexMatch", "orders", "rder", True),
        ("regexMatch", "orders", "^rder", False),
    ],
)
def test_functions(load, function, key, pattern, found):
    policy = load(matcher(f"{function}(r.obj, p.obj)"), f"p, ann, {pattern}, Publish\n")
    assert policy.allows("ann", key, "Publish") is found


def test_roles_of_clients_and_of_resources(load):
    text = with_roles("g(r.sub, p.sub) && g2(r.obj, p.obj) && r.act == p.act")
    rules = (
        "p, writers, sales, Publish\n"
        "g, ann, writers\ng, bob, ann\ng, loop, circle\ng, circle, loop\n"
        "g2, orders, sales\n"
    )
    policy = load(text, rules)
    assert policy.allows("ann", "orders", "Publish")
    assert policy.allows("bob", "orders", "Publish"), "roles of roles"
    assert policy.allows("writers", "sales", "Publish")
    assert not policy.allows("loop", "orders", "Publish")
    assert not policy.allows("ann", "bills", "Publish")
    assert not policy.allows("orders", "orders", "Publish"), "the two kinds of roles are apart"


@pytest.mark.parametrize(
    ("effect", "allowed"),
    [
        ("some(where (p.eft == allow))", (True, True, False)),
        ("!some(where (p.eft == deny))", (False, True, True)),
        ("some(where (p.eft == allow)) && !some(where (p.eft == deny))", (False, True, False)),
        ("priority(p.eft) || deny", (True, True, False)),
    ],
)
def test_effects(load, effect, allowed):
    rules = "p, ann, both, Publish, allow\np, ann, both, Publish, deny\np, ann, one, Publish, allow\n"
    policy = load(with_effect(effect), rules)
    assert tuple(policy.allows("ann", name, "Publish") for name in ("both", "one", "none")) == allowed


@pytest.mark.parametrize(
    ("model", "line", "complaint"),
    [
        ("", None, "no definition of r"),
        (MODEL.replace("[matchers]", "[matcher]"), 11, r"unknown section \[matcher\]"),
        (MODEL + "junk\n", 13, "neither a"),
        (MODEL.replace("r = sub, obj, act", "r = sub, obj"), 3, "three fields"),
        (MODEL.replace("p = sub, obj, act", "p = sub, obj, obj"), 6, "'obj' is no name of a field"),
        (MODEL.replace("p = sub", "p2 = sub"), 6, "defines p, not p2"),
        (MODEL + "m = true\n", 13, "second time"),
        (MODEL.replace("some(where (p.eft == allow))", "most(where)"), 9, "unknown effect"),
        (MODEL + "[role_definition]\ng = _, _, _\n", 14, "no domains"),
        (matcher("r.sub == p.name"), 12, "p.name is no field"),
        (matcher("r.sub = p.sub"), 12, "'='"),
        (matcher("r.sub === p.sub"), 12, "'=' is not known"),
        (matcher("r.sub"), 12, "is the text r.sub"),
        (matcher("r.sub == true"), 12, "cannot be compared"),
        (matcher("r.sub && p.sub == 'x'"), 12, "a side of &&"),
        (matcher("(r.sub == p.sub"), 12, r"'\)' is missing"),
        (matcher("r.sub == p.sub r.obj"), 12, "more than one expression"),
        (matcher("r.sub =="), 12, "its end stands where a value is expected"),
        (matcher("system(r.sub, p.sub)"), 12, "no function system"),
        (matcher("g(r.sub, p.sub)"), 12, "no function g"),
        (matcher("keyMatch(r.sub)"), 12, "takes 2 texts, not 1"),
        (matcher("keyMatch(true, p.sub)"), 12, "takes texts"),
        (matcher("regexMatch(p.obj, r.obj)"), 12, "the pattern of regexMatch"),
        (matcher("regexMatch(r.obj, '(')"), 12, "no regular expression"),
        (matcher("regexMatch(r.obj, 'a{99999999999}')"), 12, "no regular expression: the repetition"),
        (matcher(f"regexMatch(r.obj, '{'(' * 3000}{')' * 3000}')"), 12, "nested too deep"),
        (matcher("r.sub.__class__ == p.sub"), 12, "no field"),
        (matcher("!" * 100 + "true"), 12, "nested too deep"),
        (matcher("(" * 100 + "true" + ")" * 100), 12, "nested too deep"),
    ],
)
def test_a_model_that_cannot_be_used(load, model, line, complaint):
    with pytest.raises(AuthzFileError, match=complaint) as error:
        load(model)
    assert ("model.conf" in str(error.value)) and (line is None or f"line {line}:" in str(error.value))


@pytest.mark.parametrize(
    ("rules", "line", "complaint"),
    [
        ("p, ann, orders\n", 1, r"has 3 fields \(sub, obj, act\), this one 2"),
        (RULES + "\np, ann, orders, Publish, allow\n", 3, "this one 4"),
        (RULES + "P, ann, orders, Publish\n", 2, "'P' is nothing that the model"),
        ("g, ann, admins\n", 1, "'g' is nothing"),
        (",,,\n", 1, "'' is nothing"),
        ('p, "ann, orders, Publish\n', 1, "unexpected end of data"),
        (b"p, \xff, orders, Publish\n", None, "no text in UTF-8"),
        (b"#" * ((16 << 20) + 1), None, "longer than"),
    ],
)
def test_a_policy_that_cannot_be_used(load, rules, line, complaint):
    with pytest.raises(AuthzFileError, match=complaint) as error:
        load(rules=rules)
    assert ("policy.csv" in str(error.value)) and (line is None or f"line {line}:" in str(error.value))


def test_a_pattern_of_a_rule_that_is_none_is_told_with_its_line(load):
    text = matcher("r.sub == p.sub && regexMatch(r.obj, p.obj)")
    with pytest.raises(AuthzFileError, match=r"policy\.csv line 2: '\[' is no regular expression"):
        load(text, "p, ann, ok, Publish\np, ann, [, Publish\n")


@pytest.mark.parametrize("operator", ["&&", "||"])
def test_an_expression_may_be_long(load, operator):
    text = matcher(f" {operator} ".join(["r.sub == p.sub"] * 5000))
    policy = load(text, "p, ann, orders, Publish\n")
    assert policy.allows("ann", "orders", "Publish")
    assert not policy.allows("bob", "orders", "Publish")


def test_an_effect_of_a_rule_is_allow_or_deny(load):
    with pytest.raises(AuthzFileError, match=r"line 1: 'maybe' is neither allow nor deny"):
        load(with_effect("some(where (p.eft == allow))"), "p, ann, orders, Publish, maybe\n")


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(AuthzFileError, match=r"cannot read .*none\.conf: No such file"):
        load_policy(tmp_path / "none.conf", tmp_path / "none.csv")
    with pytest.raises(AuthzFileError, match=r"cannot read .*: Is a directory"):
        load_policy(tmp_path, tmp_path)


def test_no_pattern_is_tried_on_a_name_that_nothing_has(load):
    policy = load(matcher("keyMatch(r.obj, p.obj)"), "p, ann, *, Publish\n")
    assert policy.allows("ann", "x" * MAX_RESOURCE, "Publish")
    assert not policy.allows("ann", "x" * (MAX_RESOURCE + 1), "Publish")


def test_many_rules_cost_no_more_than_one(load):
    """Rules are found by their literal fields, as a flood of denied names would else keep the server busy."""
    rules = "".join(f"p, c{number}, s{number}, Publish\n" for number in range(20_000))
    policy = load(rules=rules)
    tried = []
    matches = policy._matcher.matches
    object.__setattr__(policy._matcher, "matches", lambda r, p: tried.append(p) or matches(r, p))
    assert policy.allows("c19999", "s19999", "Publish")
    assert not policy.allows("c19999", "s1", "Publish")
    assert tried == [("c19999", "s19999", "Publish")]
