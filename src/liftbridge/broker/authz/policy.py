"""Decisions: a model and its rules, ready for requests.

A `Policy` never changes; a reload makes a new one, and with it the memory of decisions is gone. Its
invariants: a request that no rule matches is decided as the effect says for none, so without rules nothing is
allowed that asks for one; a decision never fails, since everything in the files was tried when they were
read; and what a client can make it cost is bounded: rules are found by their literal fields, names longer
than any resource match nothing, and decisions are remembered up to a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from liftbridge.broker.authz.errors import AuthzFileError, MatcherError
from liftbridge.broker.authz.files import Effect, Model, Rules, read_model, read_rules
from liftbridge.broker.authz.matcher import Matcher, compile_matcher

# Longer than every stream name and subject; nothing with such a name exists, and no pattern is tried on it.
MAX_RESOURCE = 2048
_REMEMBERED = 4096
_ROLE_DEPTH = 10  # as Casbin has it


class Roles:
    """Who has which role, through other roles as well."""

    def __init__(self, links: Iterable[tuple[str, str]]) -> None:
        self._direct: dict[str, set[str]] = {}
        for member, role in links:
            self._direct.setdefault(member, set()).add(role)
        self._all: dict[str, frozenset[str]] = {}  # only of members in the file, so a client cannot fill it

    def has(self, member: str, role: str) -> bool:
        """Whether `member` is `role` or has it."""
        if member == role:
            return True
        if member not in self._direct:
            return False
        if member not in self._all:
            self._all[member] = self._reached(member)
        return role in self._all[member]

    def _reached(self, member: str) -> frozenset[str]:
        seen: set[str] = set()
        level = {member}
        for _ in range(_ROLE_DEPTH):
            level = {role for name in level for role in self._direct.get(name, ())} - seen
            seen |= level
            if not level:
                break
        return frozenset(seen)


class Policy:
    """A model with its rules.

    Args:
        model: the model.
        rules: the rules, read with that model.
        name: what to call the policy file in errors.

    Raises:
        AuthzFileError: the expression of the model, or a pattern in a rule, cannot be used.
    """

    def __init__(self, model: Model, rules: Rules, name: str) -> None:
        self.rules = len(rules.rules)
        """How many rules there are."""
        self._effect = model.effect
        self._eft = model.rule.index("eft") if "eft" in model.rule else -1
        roles = {kind: Roles(links) for kind, links in rules.links.items()}
        try:
            self._matcher: Matcher = compile_matcher(
                model.matcher,
                {field: index for index, field in enumerate(model.request)},
                {field: index for index, field in enumerate(model.rule)},
                {kind: roles[kind].has for kind in roles},
            )
        except MatcherError as error:
            raise AuthzFileError(f"{model.path} line {model.matcher_line}: {error}") from None
        self._check_patterns(rules, name)
        self._literal_request = tuple(pair[0] for pair in self._matcher.literal)
        literal_rule = tuple(pair[1] for pair in self._matcher.literal)
        self._index: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for _, rule in rules.rules:
            self._index.setdefault(tuple(rule[index] for index in literal_rule), []).append(rule)
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._decide)

    def allows(self, client: str, resource: str, action: str) -> bool:
        """Decide whether a client may do something."""
        if len(resource) > MAX_RESOURCE or len(client) > MAX_RESOURCE:
            return False
        return self._remembered((client, resource, action))

    def _decide(self, request: tuple[str, str, str]) -> bool:
        allowed = False
        matches, eft, effect = self._matcher.matches, self._eft, self._effect
        for rule in self._index.get(tuple(request[index] for index in self._literal_request), ()):
            if not matches(request, rule):
                continue
            denies = eft >= 0 and rule[eft] == "deny"
            if effect is Effect.FIRST:
                return not denies
            if denies:
                if effect is not Effect.ALLOW_OVERRIDES:
                    return False
            else:
                allowed = True
                if effect is Effect.ALLOW_OVERRIDES:
                    return True
        return allowed or effect is Effect.DENY_OVERRIDES

    def _check_patterns(self, rules: Rules, name: str) -> None:
        """Try every pattern once: one that is none must not fail on a request."""
        where = ""
        try:
            for line, rule in rules.rules:
                for function, field in self._matcher.patterns:
                    where = f"{name} line {line}: {rule[field]!r}"
                    function("", rule[field])
        except re.error as error:
            raise AuthzFileError(f"{where} is no regular expression: {error}") from None


def load_policy(model: Path, policy: Path) -> Policy:
    """Read both files; blocks while it does.

    Raises:
        AuthzFileError: one of them cannot be read or used; the text names the file and the line.
    """
    read = read_model(model)
    return Policy(read, read_rules(policy, read), str(policy))
