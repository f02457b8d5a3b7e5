"""The command `liftbridge`: `liftbridge [flags]` starts a server, `liftbridge COMMAND` does one thing and
ends.

Exit status: 0 done, 1 it failed (the reason is on standard error, in one line), 2 the command line is wrong.
`liftbridge log` has its own (`log_tools.py`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

import trio

from liftbridge.broker.app import Addresses, Server, ServerStartError, run_until_signal
from liftbridge.broker.config import Config, ConfigError, load
from liftbridge.broker.controller import ControllerStartError
from liftbridge.broker.identity import DataDirectoryError
from liftbridge.broker.internal_streams import InternalStreamError
from liftbridge.cli import commands, dev, log_tools
from liftbridge.cli.flags import parse_flags
from liftbridge.nats.embedded import EmbeddedNatsError
from liftbridge.obs import logs

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

START_ERRORS = (
    ConfigError,
    ServerStartError,
    DataDirectoryError,
    ControllerStartError,
    EmbeddedNatsError,
    InternalStreamError,
)

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "dev": lambda arguments: run_dev(arguments),
    "stream": commands.stream,
    "publish": commands.publish,
    "subscribe": commands.subscribe,
    "log": log_tools.log,
}


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    if arguments and not arguments[0].startswith("-"):
        print(
            f"liftbridge: there is no command {arguments[0]!r}; there are {', '.join(COMMANDS)}, and --help",
            file=sys.stderr,
        )
        return 2
    path, overrides = parse_flags(arguments)
    return run_server(lambda: load(path, overrides, os.environ))


def run_server(
    configure: Callable[[], Config],
    *,
    embedded_host: str | None = None,
    embedded_port: int | None = None,
    started: Callable[[Addresses], None] = lambda addresses: None,
) -> int:
    """Run a server in the foreground until a signal ends it; returns the exit status."""
    try:
        config = configure()
        logs.setup(
            config.logging.level,
            recovery=config.logging.recovery,
            raft=config.logging.raft,
            nats=config.logging.nats,
        )
        for warning in config.warnings:
            logging.getLogger("liftbridge").warning("%s", warning)
        server = Server(config, embedded_host=embedded_host, embedded_port=embedded_port)
        trio.run(run_until_signal, server, started)
    except (*START_ERRORS, BaseExceptionGroup) as error:
        reason = _start_error(error)
        if reason is None:
            raise
        print(f"liftbridge: {reason}", file=sys.stderr)
        return 1
    return 0


def _start_error(error: BaseException) -> str | None:
    """The text of the start-up error in an exception, or None when there is something else in it."""
    if isinstance(error, BaseExceptionGroup):
        texts = [_start_error(inner) for inner in error.exceptions]
        return None if None in texts else texts[0]
    return str(error) if isinstance(error, START_ERRORS) else None


def run_dev(arguments: Sequence[str]) -> int:
    """`liftbridge dev`: a server to try things out with."""
    options = dev.parse(arguments)
    return run_server(
        lambda: load(None, dev.overrides(options), os.environ),
        embedded_host="127.0.0.1",
        embedded_port=options.nats_port,
        started=lambda addresses: print(dev.welcome(addresses, options), flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
