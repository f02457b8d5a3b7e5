"""The command line of the server: `liftbridge [flags]`.

Flags and their forms are those of the original, so scripts and test helpers written for it work: long names
with two dashes or one, one-letter aliases, a value after a blank or `=`. Only flags that were given end up in
the result, so a flag's default never hides a value of the file. Values are not judged here but by
`liftbridge.broker.config.load`, in the same way as those of the file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

import liftbridge

PROGRAM = "liftbridge"


class _Takes(Enum):
    """What follows a flag."""

    VALUE = "value"
    ITEMS = "items"
    NOTHING = "nothing"


@dataclass(frozen=True)
class _Flag:
    name: str
    alias: str
    takes: _Takes
    argument: str
    key: str
    help: str

    @property
    def forms(self) -> tuple[str, ...]:
        return (self.name, self.alias) if self.alias else (self.name,)

    def spelled(self) -> str:
        forms = ", ".join(("-" if len(form) == 1 else "--") + form for form in reversed(self.forms))
        return f"{forms} {self.argument}".rstrip()


_CONFIG = "config"
_FLAGS = (
    _Flag(_CONFIG, "c", _Takes.VALUE, "FILE", "", "read this YAML file; without it no file is read"),
    _Flag(
        "server-id", "id", _Takes.VALUE, "ID", "clustering.server.id", "id of this server (default: random)"
    ),
    _Flag(
        "namespace",
        "ns",
        _Takes.VALUE,
        "NAME",
        "clustering.namespace",
        "separates clusters that share one NATS (default: liftbridge-default)",
    ),
    _Flag(
        "nats-servers",
        "n",
        _Takes.ITEMS,
        "URL[,URL...]",
        "nats.servers",
        "NATS servers to connect to; may be repeated (default: nats://127.0.0.1:4222)",
    ),
    _Flag("embedded-nats", "e", _Takes.NOTHING, "", "nats.embedded", "run a NATS server beside this one"),
    _Flag(
        "embedded-nats-config",
        "nc",
        _Takes.VALUE,
        "FILE",
        "nats.embedded.config",
        "configuration file of that NATS server; implies --embedded-nats",
    ),
    _Flag(
        "data-dir",
        "d",
        _Takes.VALUE,
        "DIR",
        "data.dir",
        "data directory (default: /tmp/liftbridge/<namespace>)",
    ),
    _Flag(
        "port",
        "p",
        _Takes.VALUE,
        "PORT",
        "port",
        "port to bind, unless the file sets listen, and to advertise (default: 9292)",
    ),
    _Flag("tls-cert", "", _Takes.VALUE, "FILE", "tls.cert", "certificate of the gRPC API (PEM)"),
    _Flag("tls-key", "", _Takes.VALUE, "FILE", "tls.key", "private key of that certificate (PEM)"),
    _Flag("level", "l", _Takes.VALUE, "LEVEL", "logging.level", "debug, info, warn or error (default: info)"),
    _Flag(
        "raft-bootstrap-seed",
        "",
        _Takes.NOTHING,
        "",
        "clustering.raft.bootstrap.seed",
        "start a new cluster if there is no state yet",
    ),
    _Flag(
        "raft-bootstrap-peers",
        "",
        _Takes.ITEMS,
        "ID[,ID...]",
        "clustering.raft.bootstrap.peers",
        "start a new cluster of this server and these; may be repeated",
    ),
    _Flag("help", "h", _Takes.NOTHING, "", "", "print this text and exit"),
    _Flag("version", "v", _Takes.NOTHING, "", "", "print the version and exit"),
)
_BY_FORM = {form: flag for flag in _FLAGS for form in flag.forms}
_FLAG_TOKEN = re.compile(r"--?([A-Za-z][A-Za-z-]*)(?:=(.*))?", re.DOTALL)
_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false"})


class FlagError(Exception):
    """The command line cannot be understood; the text says why."""


# The commands and what they are for, in the order of `--help`. Each is a module of this package.
COMMANDS = {
    "dev": "start a server to try things out, with a NATS server beside it",
    "stream": "create, list, look at, delete, pause, resume streams, make them read-only",
    "publish": "publish messages: one, or the lines of a file",
    "subscribe": "print the messages of a stream",
    "cursor": "read and set stored positions",
    "group": "look at consumer groups and their lag",
    "top": "show streams and how fast they grow",
    "events": "print what happens to streams and groups",
    "context": "keep connections under names",
    "log": "check, print and repair the files of logs; no server is needed",
    "sim": "run the consensus core under simulated faults; no server is needed",
    "completion": "print a script that completes commands in bash, zsh or fish",
}


def spellings() -> list[tuple[tuple[str, ...], str, bool]]:
    """Return the flags as they are typed, with their help and whether a value follows."""
    return [
        (
            tuple(("-" if len(form) == 1 else "--") + form for form in flag.forms),
            flag.help,
            flag.takes is not _Takes.NOTHING,
        )
        for flag in _FLAGS
    ]


def help_text() -> str:
    """Return what `--help` prints: the commands, and the flags of the server, one or two lines each."""
    width = 30
    lines = [
        f"usage: {PROGRAM} [flags]",
        f"       {PROGRAM} COMMAND ...",
        "",
        "Start a Liftbridge server, or do one thing and end.",
        "",
        "commands:",
        *(f"  {name:<{width - 2}}{text}" for name, text in COMMANDS.items()),
        "",
        f"`{PROGRAM} COMMAND --help` tells more; so does docs/cli.md.",
        "",
        "flags of the server:",
    ]
    for flag in _FLAGS:
        spelled = "  " + flag.spelled()
        if len(spelled) >= width:
            lines.append(spelled)
            spelled = ""
        lines.append(f"{spelled:<{width}}{flag.help}")
    lines += [
        "",
        "Flags override environment variables (LIFTBRIDGE_PORT for the key port, and so on), which override",
        "the file. All keys of the file: docs/configuration.md.",
    ]
    return "\n".join(lines)


def version_text() -> str:
    """Return what `--version` prints."""
    return f"{PROGRAM} version {liftbridge.__version__}"


def parse_flags(argv: Sequence[str]) -> tuple[str | None, dict[str, object]]:
    """Parse the command line of the server.

    Args:
        argv: the arguments, without the name of the program.

    Returns:
        The path given with `--config`, or None, and the settings of all other flags by configuration key, for
        `liftbridge.broker.config.load`.

    Raises:
        SystemExit: with status 0 after printing the help or the version, with 2 after printing what is wrong.
    """
    try:
        given = _parse(argv)
    except FlagError as error:
        _fail(str(error))
    if "help" in given:
        print(help_text())
        raise SystemExit(0)
    if "version" in given:
        print(version_text())
        raise SystemExit(0)
    path = given.pop(_CONFIG, None)
    assert path is None or isinstance(path, str)
    settings = {_BY_FORM[name].key: value for name, value in given.items()}
    if "nats.embedded.config" in settings:
        settings.setdefault("nats.embedded", True)
    return path, settings


def _fail(message: str) -> NoReturn:
    print(f"{PROGRAM}: {message}\nTry '{PROGRAM} --help'.", file=sys.stderr)
    raise SystemExit(2)


def _parse(argv: Sequence[str]) -> dict[str, object]:
    """Return the value of each flag in `argv` by the flag's name. Raises FlagError."""
    given: dict[str, object] = {}
    used: dict[str, str] = {}
    tokens = iter(argv)
    for token in tokens:
        match = _FLAG_TOKEN.fullmatch(token)
        if match is None:
            raise FlagError(f"unexpected argument {token!r}")
        form, attached = match[1], match[2]
        flag = _BY_FORM.get(form)
        if flag is None:
            raise FlagError(f"unknown flag {token.split('=')[0]}")
        if used.setdefault(flag.name, form) != form:
            raise FlagError(f"--{flag.name} is given in both its forms, {' and '.join(flag.forms)}; use one")
        value = _switch(flag, attached) if flag.takes is _Takes.NOTHING else attached
        if value is None:
            value = next(tokens, None)
            if value is None or _is_flag(value):
                raise FlagError(f"--{flag.name} needs a value: {flag.argument}")
        if flag.takes is _Takes.ITEMS:
            earlier = given.get(flag.name, [])
            assert isinstance(earlier, list) and isinstance(value, str)
            value = earlier + [item.strip() for item in value.split(",") if item.strip()]
        given[flag.name] = value
    return given


def _is_flag(token: str) -> bool:
    match = _FLAG_TOKEN.fullmatch(token)
    return match is not None and match[1] in _BY_FORM


def _switch(flag: _Flag, attached: str | None) -> bool:
    word = "true" if attached is None else attached.lower()
    if word not in _TRUE | _FALSE:
        raise FlagError(f"--{flag.name}={attached}: a value of this flag is true or false")
    return word in _TRUE
