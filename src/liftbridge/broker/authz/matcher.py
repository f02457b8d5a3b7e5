"""The expression of a Casbin model, `[matchers]`, compiled once and checked before the first request.

The language is what authorization models use: `==`, `!=`, `in (...)`, `&&`, `||`, `!`, parentheses, texts,
`true`, `false`, fields of the request (`r.sub`) and of the rule (`p.sub`), and functions. Every part has a
type, text or truth, so an expression that could fail on a request is refused when the file is read, with what
is wrong. It is compiled to closures: nothing of the file is ever run as Python.

`Matcher.literal` names the comparisons `r.x == p.y` that every match needs; the policy finds its rules by
them instead of trying each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from liftbridge.broker.authz.errors import MatcherError

Fields = tuple[str, ...]
Value = Callable[[Fields, Fields], "str | bool"]
Function = Callable[[str, str], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<op>&&|\|\||==|!=|!|\(|\)|,)|(?P<text>"[^"\\]*"|'[^'\\]*')|(?P<name>[A-Za-z_][\w.]*)|(?P<bad>\S))"""
)
_MAX_DEPTH = 50


@dataclass(frozen=True)
class Matcher:
    """A compiled expression.

    `matches(request, rule)` takes the fields of both as texts. `literal` has pairs of (field of the request,
    field of the rule) that are equal in every match; `patterns` has the fields of rules that are patterns,
    with the function that takes them.
    """

    matches: Callable[[Fields, Fields], bool]
    literal: tuple[tuple[int, int], ...]
    patterns: frozenset[tuple[Function, int]]


@dataclass(frozen=True)
class _Node:
    value: Value
    is_text: bool
    source: str
    request_field: int = -1
    rule_field: int = -1
    literal: tuple[tuple[int, int], ...] = ()
    constant: str | None = None


def compile_matcher(
    text: str, request: Mapping[str, int], rule: Mapping[str, int], roles: Mapping[str, Function]
) -> Matcher:
    """Compile an expression.

    Args:
        text: the expression.
        request: the index of each field of `r`.
        rule: the index of each field of `p`.
        roles: the functions of the model's role definitions, such as `g`.

    Raises:
        MatcherError: it is none, or uses what this server does not know.
    """
    parser = _Parser(text, request, rule, {**FUNCTIONS, **roles})
    node = parser.whole()
    value = node.value
    return Matcher(lambda r, p: value(r, p) is True, node.literal, frozenset(parser.patterns))


class _Parser:
    """Recursive descent over the tokens, one method a level of precedence."""

    def __init__(
        self,
        text: str,
        request: Mapping[str, int],
        rule: Mapping[str, int],
        functions: Mapping[str, Function],
    ) -> None:
        self._request = request
        self._rule = rule
        self._functions = functions
        self._tokens: list[tuple[str, str]] = []
        for found in _TOKEN.finditer(text.strip()):
            kind, token = found.lastgroup or "", found[found.lastgroup or 0]
            if kind == "bad":
                raise MatcherError(
                    f"{token!r} is not known here; there are == != in && || ! ( ) , and texts in quotes"
                )
            self._tokens.append((kind, token))
        self._position = 0
        self._depth = 0
        self.patterns: set[tuple[Function, int]] = set()

    def whole(self) -> _Node:
        node = self._truth(self._either(), "the expression")
        if self._position < len(self._tokens):
            raise MatcherError(f"{self._tokens[self._position][1]!r} is more than one expression")
        return node

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._position] if self._position < len(self._tokens) else ("end", "its end")

    def _take(self) -> tuple[str, str]:
        token = self._peek()
        self._position += 1
        return token

    def _accept(self, text: str) -> bool:
        if self._peek() in (("op", text), ("name", text)):
            self._position += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise MatcherError(f"{text!r} is missing before {self._peek()[1]}")

    @staticmethod
    def _truth(node: _Node, where: str) -> _Node:
        if node.is_text:
            raise MatcherError(f"{where} is the text {node.source} where something true or false is needed")
        return node

    @staticmethod
    def _text(node: _Node, where: str) -> _Node:
        if not node.is_text:
            raise MatcherError(f"{where} takes texts, and {node.source} is none")
        return node

    def _either(self) -> _Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise MatcherError("the expression is nested too deep")
        sides = [self._both()]
        while self._accept("||"):
            sides.append(self._both())
        self._depth -= 1
        if len(sides) == 1:
            return sides[0]
        values = [self._truth(side, "a side of ||").value for side in sides]
        return _Node(_joined(values, _or), False, "||")

    def _both(self) -> _Node:
        sides = [self._comparison()]
        while self._accept("&&"):
            sides.append(self._comparison())
        if len(sides) == 1:
            return sides[0]
        values = [self._truth(side, "a side of &&").value for side in sides]
        literal = tuple(pair for side in sides for pair in side.literal)
        return _Node(_joined(values, _and), False, "&&", literal=literal)

    def _comparison(self) -> _Node:
        left = self._single()
        if self._accept("=="):
            right = self._single()
            self._same_type(left, right)
            return _Node(_equal(left.value, right.value), False, "==", literal=_literal(left, right))
        if self._accept("!="):
            right = self._single()
            self._same_type(left, right)
            return _Node(_unequal(left.value, right.value), False, "!=")
        if self._accept("in"):
            self._expect("(")
            members = self._arguments("in")
            value = self._text(left, "in").value
            return _Node(_member(value, tuple(member.value for member in members)), False, "in")
        return left

    @staticmethod
    def _same_type(left: _Node, right: _Node) -> None:
        if left.is_text != right.is_text:
            raise MatcherError(f"{left.source} and {right.source} cannot be compared")

    def _arguments(self, function: str) -> list[_Node]:
        found = [self._text(self._either(), function)]
        while self._accept(","):
            found.append(self._text(self._either(), function))
        self._expect(")")
        return found

    def _single(self) -> _Node:
        kind, token = self._take()
        if (kind, token) == ("op", "!"):
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise MatcherError("the expression is nested too deep")
            node = self._truth(self._single(), "what ! negates")
            self._depth -= 1
            return _Node(_not(node.value), False, "!")
        if (kind, token) == ("op", "("):
            node = self._either()
            self._expect(")")
            return node
        if kind == "text":
            return _Node(_constant(token[1:-1]), True, token, constant=token[1:-1])
        if kind == "name":
            return self._name(token)
        raise MatcherError(f"{token} stands where a value is expected")

    def _name(self, name: str) -> _Node:
        if name in ("true", "false"):
            return _Node(_constant(name == "true"), False, name)
        if self._accept("("):
            return self._call(name)
        owner, _, field = name.partition(".")
        if owner == "r" and field in self._request:
            index = self._request[field]
            return _Node(lambda r, p: r[index], True, name, request_field=index)
        if owner == "p" and field in self._rule:
            index = self._rule[field]
            return _Node(lambda r, p: p[index], True, name, rule_field=index)
        raise MatcherError(f"{name} is no field of the model's request (r.) or rule (p.)")

    def _call(self, name: str) -> _Node:
        function = self._functions.get(name)
        if function is None:
            known = ", ".join(sorted(self._functions))
            raise MatcherError(f"there is no function {name}; there are {known}")
        arguments = self._arguments(name)
        if len(arguments) != 2:
            raise MatcherError(f"{name} takes 2 texts, not {len(arguments)}")
        if function in PATTERN_FUNCTIONS:
            self._check_pattern(name, function, arguments[1])
        return _Node(_called(function, arguments[0].value, arguments[1].value), False, f"{name}(...)")

    def _check_pattern(self, name: str, function: Function, pattern: _Node) -> None:
        """A pattern comes from the files, never from a client, who could choose one that takes for ever."""
        if pattern.rule_field >= 0:
            self.patterns.add((function, pattern.rule_field))
        elif pattern.constant is not None:
            try:
                function("", pattern.constant)
            except re.error as error:
                raise MatcherError(f"{pattern.source} is no regular expression: {error}") from None
        else:
            raise MatcherError(f"the pattern of {name} is its second text, a field of p or a text in quotes")


def _literal(left: _Node, right: _Node) -> tuple[tuple[int, int], ...]:
    for one, other in ((left, right), (right, left)):
        if one.request_field >= 0 and other.rule_field >= 0:
            return ((one.request_field, other.rule_field),)
    return ()


def _constant(value: str | bool) -> Value:
    return lambda r, p: value


def _joined(values: Sequence[Value], join: Callable[[Value, Value], Value]) -> Value:
    """All of them by halves: a long chain must not become as many calls in each other."""
    if len(values) == 1:
        return values[0]
    middle = (len(values) + 1) // 2
    return join(_joined(values[:middle], join), _joined(values[middle:], join))


def _or(left: Value, right: Value) -> Value:
    return lambda r, p: left(r, p) or right(r, p)


def _and(left: Value, right: Value) -> Value:
    return lambda r, p: left(r, p) and right(r, p)


def _not(value: Value) -> Value:
    return lambda r, p: not value(r, p)


def _equal(left: Value, right: Value) -> Value:
    return lambda r, p: left(r, p) == right(r, p)


def _unequal(left: Value, right: Value) -> Value:
    return lambda r, p: left(r, p) != right(r, p)


def _member(value: Value, members: tuple[Value, ...]) -> Value:
    return lambda r, p: any(value(r, p) == member(r, p) for member in members)


def _called(function: Function, first: Value, second: Value) -> Value:
    return lambda r, p: function(str(first(r, p)), str(second(r, p)))


# The functions that Casbin brings along, with the meaning they have in the original server.


def key_match(key: str, pattern: str) -> bool:
    """Whether `key` is `pattern`, whose first `*` stands for any end: `orders.*` takes `orders.eu`."""
    prefix, star, _ = pattern.partition("*")
    return key.startswith(prefix) if star else key == pattern


def key_match2(key: str, pattern: str) -> bool:
    """As `key_match` for paths, `:name` standing for one part; the rest is a regular expression."""
    if pattern == "*":
        return True
    return _compiled(re.sub(r":[^/]+", "[^/]+", pattern.replace("/*", "/.*"))).fullmatch(key) is not None


def key_match3(key: str, pattern: str) -> bool:
    """As `key_match2` with `{name}`."""
    return _compiled(re.sub(r"\{[^/]+?\}", "[^/]+", pattern.replace("/*", "/.*"))).fullmatch(key) is not None


def regex_match(key: str, pattern: str) -> bool:
    """Whether the regular expression matches somewhere in `key`: give `^` and `$` for all of it."""
    return _compiled(pattern).search(key) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except OverflowError as error:
        raise re.error(str(error)) from None
    except RecursionError:
        raise re.error("it is nested too deep") from None


FUNCTIONS: dict[str, Function] = {
    "keyMatch": key_match,
    "keyMatch2": key_match2,
    "keyMatch3": key_match3,
    "regexMatch": regex_match,
}
PATTERN_FUNCTIONS = (key_match2, key_match3, regex_match)
