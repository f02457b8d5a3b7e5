"""A command that talks to a server: its flags, its connection, and its end.

Where to connect is said by flags, else by the environment, else by a context, else it is this machine. Each
setting is looked for on its own, with one exception: whoever names a server and no context gets nothing from
the context in use, as its certificate is meant for other servers.
"""

from __future__ import annotations

import argparse
import os
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import trio

from liftbridge import client as lc
from liftbridge.cli import contexts
from liftbridge.cli.contexts import Context
from liftbridge.cli.exits import CommandError, Exit, broken_pipe, explain, interrupted
from liftbridge.cli.output import Output, as_json, plain
from liftbridge.cli.values import argument, seconds
from liftbridge.client.connection import split_address

DEFAULT_SERVER = "127.0.0.1:9292"
DEFAULT_TIMEOUT = 10.0
PREFIX = "LIFTBRIDGE_CLIENT_"
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")

Action = Callable[[argparse.Namespace, lc.Client, Output], Awaitable[None]]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors say where help is, and whose flags are never abbreviated.

    An abbreviation in a script breaks with the next flag that is added.
    """

    def __init__(self, *args: object, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and end."""
        text = plain(message)
        self.exit(Exit.USAGE, f"{self.prog}: {text}; see `{self.prog} --help`\n")


def completes(action: argparse.Action, kind: str) -> None:
    """Tell the completion of shells what an argument takes: `file`, `stream` or `context`."""
    action.completes = kind  # type: ignore[attr-defined]


def add_json(parser: argparse.ArgumentParser) -> None:
    """The flag that every command has."""
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")


def add_connection(parser: argparse.ArgumentParser) -> None:
    """The flags of every command that talks to a server."""
    add_json(parser)
    group = parser.add_argument_group("connection")
    completes(group.add_argument("--context", metavar="NAME", help="use this context"), "context")
    add_connection_settings(group)


def add_connection_settings(group: argparse._ArgumentGroup) -> None:
    """The flags that a context can hold."""
    group.add_argument(
        "--server",
        action="append",
        metavar="HOST:PORT",
        help=f"gRPC address of a server; may be repeated (default: {DEFAULT_SERVER})",
    )
    group.add_argument(
        "--tls",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="use TLS; implied by the files below",
    )
    for flag, text in (
        ("--tls-ca", "authorities that the server's certificate is verified against (default: the system's)"),
        ("--tls-cert", "certificate of this client"),
        ("--tls-key", "private key of that certificate"),
    ):
        completes(group.add_argument(flag, metavar="FILE", help=text), "file")
    group.add_argument(
        "--timeout",
        type=argument(seconds),
        metavar="SECONDS",
        help=f"how long a call may take (default: {DEFAULT_TIMEOUT:g})",
    )


@dataclass(frozen=True)
class Target:
    """Where to connect, all said and done."""

    servers: tuple[str, ...]
    tls: ssl.SSLContext | None
    timeout: float


def from_flags(options: argparse.Namespace) -> Context:
    """The settings in the flags of `add_connection_settings`. Raises CommandError."""
    servers = [item.strip() for given in options.server or () for item in given.split(",")]
    try:
        for server in servers:
            split_address(server)
    except ValueError as error:
        raise CommandError(f"--server: {error}", Exit.USAGE) from None
    return Context(
        tuple(servers), options.tls, options.tls_ca, options.tls_cert, options.tls_key, options.timeout
    )


def from_environment(environ: Mapping[str, str]) -> Context:
    """The settings in the variables LIFTBRIDGE_CLIENT_...; empty ones are not set. Raises CommandError."""
    value = {name: environ.get(PREFIX + name) or None for name in ("SERVER", "TLS", "TLS_CA", "TLS_CERT")}
    tls = (value["TLS"] or "").lower()
    if tls and tls not in (*_YES, *_NO):
        raise CommandError(f"{PREFIX}TLS is {value['TLS']!r}; set it to true or false", Exit.USAGE)
    timeout = environ.get(PREFIX + "TIMEOUT")
    try:
        servers = [item.strip() for item in (value["SERVER"] or "").split(",") if item.strip()]
        for server in servers:
            split_address(server)
        return Context(
            tuple(servers),
            tls in _YES if tls else None,
            value["TLS_CA"],
            value["TLS_CERT"],
            environ.get(PREFIX + "TLS_KEY") or None,
            seconds(timeout) if timeout else None,
        )
    except ValueError as error:
        raise CommandError(
            f"environment variables {PREFIX}SERVER, {PREFIX}TIMEOUT: {error}", Exit.USAGE
        ) from None


def chosen_context(options: argparse.Namespace, environ: Mapping[str, str]) -> str | None:
    """The name of the context that a command uses, None for none. Raises CommandError."""
    named: str | None = options.context or environ.get(PREFIX + "CONTEXT")
    if named or options.server or environ.get(PREFIX + "SERVER"):
        return named or None
    return contexts.load(contexts.path(environ)).current


def target(options: argparse.Namespace, environ: Mapping[str, str]) -> Target:
    """Where a command connects to. Raises CommandError when that makes no sense."""
    name = chosen_context(options, environ)
    chosen = contexts.load(contexts.path(environ)).get(name) if name else Context()
    for over in (from_environment(environ), from_flags(options)):
        given = {key: value for key, value in vars(over).items() if value not in (None, ())}
        chosen = replace(chosen, **given)
    try:
        for server in chosen.servers:
            split_address(server)
    except ValueError as error:
        raise CommandError(f"context {name!r}: {error}; save it anew", Exit.USAGE) from None
    files = (chosen.ca, chosen.certificate, chosen.key)
    wanted = any(files) if chosen.tls is None else chosen.tls
    try:
        tls = lc.tls_context(ca=chosen.ca, certificate=chosen.certificate, key=chosen.key) if wanted else None
    except ssl.SSLError as error:
        shown = ", ".join(file for file in files if file)
        text = (
            f"{shown}: cannot be used for TLS ({error.reason}); give PEM files, and the certificate's own key"
        )
        raise CommandError(text, Exit.USAGE) from error
    except OSError as error:
        missing = next((file for file in files if file and not os.access(file, os.R_OK)), "a file of TLS")
        raise CommandError(f"{missing}: {error.strerror}; check the path", Exit.USAGE) from error
    except ValueError as error:
        raise CommandError(f"--tls-key: {error}", Exit.USAGE) from error
    return Target(chosen.servers or (DEFAULT_SERVER,), tls, chosen.timeout or DEFAULT_TIMEOUT)


def run(
    options: argparse.Namespace,
    action: Action,
    *,
    endless: bool = False,
    outlast: bool = False,
) -> int:
    """Connect, do it, and end; returns the exit status.

    Args:
        options: the command line.
        action: what to do with the client.
        endless: it runs until it is stopped, so Ctrl-C is its regular end.
        outlast: subscriptions wait for servers for as long as it takes.
    """

    async def connected() -> None:
        where = target(options, os.environ)
        settings = lc.Options(timeout=where.timeout, ack_timeout=where.timeout)
        settings = replace(settings, connect_timeout=min(settings.connect_timeout, where.timeout))
        if outlast:
            settings = replace(settings, retry_timeout=float("inf"))
        async with lc.connect(*where.servers, tls=where.tls, options=settings, fail_fast=True) as client:
            await action(options, client, Output(as_json=options.json))

    return ending(options, lambda: trio.run(connected), endless=endless)


def ending(options: argparse.Namespace, work: Callable[[], None], *, endless: bool = False) -> int:
    """Do the work of a command and turn whatever ends it into an exit status."""
    try:
        work()
    except BaseException as error:
        if interrupted(error):
            return Exit.OK if endless else Exit.INTERRUPTED
        if broken_pipe(error):
            return Exit.OK
        reason = explain(error)
        if reason is None:
            raise
        return fail(options, *reason)
    return Exit.OK


def fail(options: argparse.Namespace, status: Exit, text: str) -> int:
    """Say on standard error why a command ends; returns the status."""
    if options.json:
        sys.stderr.write(as_json({"error": text, "exit": int(status)}).decode())
    else:
        sys.stderr.write(f"liftbridge: {plain(text)}\n")
    return status
