"""Model and policy files, read strictly: what would be ignored, or fail later, is an error with its line.

A model is an INI file with the sections of Casbin; a policy is a CSV file with one rule a line, `p, client,
resource, action`, and role links, `g, client, role`. `#` begins a comment.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from liftbridge.broker.authz.errors import AuthzFileError

MAX_FILE_BYTES = 16 << 20
_SECTIONS = {
    "request_definition": "r",
    "policy_definition": "p",
    "role_definition": "g",
    "policy_effect": "e",
    "matchers": "m",
}


class Effect(Enum):
    """How the rules that match become a decision."""

    ALLOW_OVERRIDES = "some(where(p.eft==allow))"
    DENY_OVERRIDES = "!some(where(p.eft==deny))"
    ALLOW_AND_NO_DENY = "some(where(p.eft==allow))&&!some(where(p.eft==deny))"
    FIRST = "priority(p.eft)||deny"


@dataclass(frozen=True)
class Model:
    """A model file: names of the fields of requests and rules, of role definitions, the effect, the
    expression."""

    path: Path
    request: tuple[str, ...]
    rule: tuple[str, ...]
    roles: tuple[str, ...]
    effect: Effect
    matcher: str
    matcher_line: int


@dataclass(frozen=True)
class Rules:
    """A policy file: rules in their order with their line, and the links of each role definition."""

    rules: tuple[tuple[int, tuple[str, ...]], ...]
    links: dict[str, list[tuple[str, str]]]


def read_model(path: Path) -> Model:
    """Read a model file.

    Raises:
        AuthzFileError: it cannot be read, or is no model that this server can use.
    """
    found = _definitions(path)
    (request_line, request_text), (rule_line, rule_text) = (_needed(path, found, name) for name in ("r", "p"))
    effect_line, effect_text = _needed(path, found, "e")
    matcher_line, matcher = _needed(path, found, "m")
    request = _fields(path, request_line, request_text)
    if len(request) != 3:
        raise AuthzFileError(
            f"{path} line {request_line}: a request has three fields, client, resource, action, not "
            f"{len(request)}; write r = sub, obj, act"
        )
    rule = _fields(path, rule_line, rule_text)
    try:
        effect = Effect("".join(effect_text.split()))
    except ValueError:
        known = "; ".join(item.value for item in Effect)
        raise AuthzFileError(f"{path} line {effect_line}: unknown effect; there are: {known}") from None
    roles = tuple(name for name in found if name.startswith("g"))
    for name in roles:
        line, text = found[name]
        if "".join(text.split()) != "_,_":
            raise AuthzFileError(
                f"{path} line {line}: roles of this server have no domains; write {name} = _, _"
            )
    return Model(path, request, rule, roles, effect, matcher, matcher_line)


def _needed(path: Path, found: dict[str, tuple[int, str]], name: str) -> tuple[int, str]:
    if name not in found:
        section = next(section for section, letter in _SECTIONS.items() if letter == name)
        raise AuthzFileError(f"{path} has no definition of {name}; write one into a section [{section}]")
    return found[name]


def _fields(path: Path, line: int, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or names.count(name) > 1:
            raise AuthzFileError(f"{path} line {line}: {name!r} is no name of a field, or is there twice")
    return names


def _definitions(path: Path) -> dict[str, tuple[int, str]]:
    """The assignments of a model file by their name, with line and text."""
    found: dict[str, tuple[int, str]] = {}
    section = ""
    lines = iter(enumerate(_lines(path), 1))
    for number, raw in lines:
        line = _without_comment(raw)
        start = number
        while line.endswith("\\"):
            number, raw = next(lines, (number, ""))
            line = f"{line[:-1].rstrip()} {_without_comment(raw)}"
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
            if section not in _SECTIONS:
                raise AuthzFileError(
                    f"{path} line {start}: unknown section [{section}]; there are {_listed()}"
                )
            continue
        name, equals, text = (part.strip() for part in line.partition("="))
        if not equals or not section or not text:
            raise AuthzFileError(f"{path} line {start}: neither a [section] nor name = definition in one")
        letter = _SECTIONS[section]
        if name != letter and not (letter == "g" and re.fullmatch(r"g[2-9]", name)):
            raise AuthzFileError(
                f"{path} line {start}: [{section}] of this server defines {letter}, not {name}"
            )
        if name in found:
            raise AuthzFileError(f"{path} line {start}: {name} is defined a second time")
        found[name] = (start, text)
    return found


def _listed() -> str:
    return ", ".join(f"[{name}]" for name in _SECTIONS)


def _without_comment(line: str) -> str:
    """A line without blanks around it and without its comment; a # in quotes is none."""
    line = line.strip()
    if line.startswith(";"):
        return ""
    return re.sub(r"""^((?:[^"'#]|"[^"]*"|'[^']*')*)#.*""", r"\1", line).strip()


def read_rules(path: Path, model: Model) -> Rules:
    """Read a policy file.

    Raises:
        AuthzFileError: it cannot be read, or a line is neither a rule nor a link of the model.
    """
    rules: list[tuple[int, tuple[str, ...]]] = []
    links: dict[str, list[tuple[str, str]]] = {name: [] for name in model.roles}
    effect_field = model.rule.index("eft") if "eft" in model.rule else -1
    for number, raw in enumerate(_lines(path), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{path} line {number}"
        try:
            kind, *values = (
                item.strip() for item in next(csv.reader([line], skipinitialspace=True, strict=True))
            )
        except csv.Error as error:
            raise AuthzFileError(f"{where}: {error}; a rule is p, client, resource, action") from None
        if kind == "p":
            if len(values) != len(model.rule):
                wanted = ", ".join(model.rule)
                raise AuthzFileError(
                    f"{where}: a rule has {len(model.rule)} fields ({wanted}), this one {len(values)}"
                )
            if effect_field >= 0 and values[effect_field] not in ("allow", "deny"):
                raise AuthzFileError(f"{where}: {values[effect_field]!r} is neither allow nor deny")
            rules.append((number, tuple(values)))
        elif kind in links:
            if len(values) != 2:
                raise AuthzFileError(f"{where}: {kind} has a member and a role, not {len(values)} fields")
            links[kind].append((values[0], values[1]))
        else:
            known = ", ".join(["p", *model.roles])
            raise AuthzFileError(
                f"{where}: {kind!r} is nothing that the model {model.path} defines; it has {known}"
            )
    return Rules(tuple(rules), links)


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise AuthzFileError(f"{path} is longer than {MAX_FILE_BYTES} bytes; is it the right file?")
        return data.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise AuthzFileError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise AuthzFileError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from None
