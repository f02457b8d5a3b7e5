"""The command `liftbridge`: `liftbridge [flags]` starts a server, `liftbridge COMMAND` does one thing and
ends.

Exit statuses: `exits.py`, and `log_tools.py` for `liftbridge log`. A command is a module of this package with
a `parser`, whose `run` does it. Modules are imported when they are wanted, as a command that asks a server
one question should not wait for the code of a server.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable

from liftbridge.cli.flags import COMMANDS, parse_flags, spellings

_MODULES = {"log": "log_tools"}


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        options = _parser(arguments[0]).parse_args(arguments[1:])
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    if arguments and not arguments[0].startswith("-"):
        print(
            f"liftbridge: there is no command {arguments[0]!r}; there are {', '.join(COMMANDS)}, and --help",
            file=sys.stderr,
        )
        return 2
    path, overrides = parse_flags(arguments)
    from liftbridge.broker.config import load
    from liftbridge.cli.server import run_server

    return run_server(lambda: load(path, overrides, os.environ))


def _parser(command: str) -> argparse.ArgumentParser:
    module = importlib.import_module(f"liftbridge.cli.{_MODULES.get(command, command)}")
    parser: argparse.ArgumentParser = module.parser()
    if command == "completion":
        parser.set_defaults(run=_complete)
    return parser


def _complete(options: argparse.Namespace) -> int:
    from liftbridge.cli.completion import Flag, script

    parsers = {name: (_parser(name), text) for name, text in COMMANDS.items()}
    flags = [Flag(forms, text, "any" if takes else "") for forms, text, takes in spellings()]
    print(script(options.shell, parsers, flags), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
