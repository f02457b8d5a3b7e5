"""`liftbridge completion bash|zsh|fish`: a script for the shell, made from the parsers of the commands.

Making it from the parsers means that it cannot fall behind them. A script finds the command in the words that
were typed, and offers its actions, flags and choices; names of streams and contexts come from the program
itself. Such names were chosen by others, so no shell ever evaluates one: they are data in every script,
compared with what was typed and quoted by the shell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from liftbridge.cli import completion_scripts as scripts
from liftbridge.cli.session import Parser

PROGRAM = "liftbridge"
SHELLS = ("bash", "zsh", "fish")

_EPILOG = """to install it:
  bash   liftbridge completion bash > ~/.local/share/bash-completion/completions/liftbridge
  zsh    liftbridge completion zsh > "${fpath[1]}/_liftbridge"
  fish   liftbridge completion fish > ~/.config/fish/completions/liftbridge.fish
"""


@dataclass(frozen=True)
class Flag:
    """A flag in all its spellings."""

    spellings: tuple[str, ...]
    help: str
    takes: str = ""
    """What its value is: empty for none, `any`, `file`, `stream`, `context`, `choices`."""
    choices: tuple[str, ...] = ()


@dataclass
class Command:
    """A command or action, and what can stand behind it."""

    path: str
    """Such as `liftbridge stream create`."""
    help: str
    flags: list[Flag] = field(default_factory=list)
    takes: list[str] = field(default_factory=list)
    """What its arguments are, as `Flag.takes`."""
    choices: tuple[str, ...] = ()
    """Those of an argument that has choices."""
    actions: list[Command] = field(default_factory=list)


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge completion`."""
    top = Parser(
        prog="liftbridge completion",
        description="Print a script that completes the commands in a shell.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("shell", choices=SHELLS)
    return top


def script(shell: str, parsers: Mapping[str, tuple[argparse.ArgumentParser, str]], flags: list[Flag]) -> str:
    """The script for a shell.

    Args:
        shell: one of `SHELLS`.
        parsers: of the commands, with what they are for.
        flags: of the program itself.
    """
    root = Command(PROGRAM, "", flags=flags)
    root.actions = [command_of(f"{PROGRAM} {name}", text, parsed) for name, (parsed, text) in parsers.items()]
    makers = {"bash": scripts.bash, "zsh": scripts.zsh, "fish": scripts.fish}
    return makers[shell](list(_walk(root)))


def _walk(command: Command) -> Iterator[Command]:
    yield command
    for action in command.actions:
        yield from _walk(action)


def command_of(path: str, text: str, parsed: argparse.ArgumentParser) -> Command:
    """What a parser accepts."""
    command = Command(path, text)
    for action in parsed._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            command.actions = [
                command_of(f"{path} {name}", texts.get(name, ""), inner)
                for name, inner in action.choices.items()
            ]
        elif action.option_strings:
            if action.help is not argparse.SUPPRESS:
                command.flags.append(_flag(action))
        else:
            command.takes.append(_takes(action))
            command.choices += tuple(map(str, action.choices or ()))
    return command


def _flag(action: argparse.Action) -> Flag:
    none = action.nargs == 0
    text = (action.help or "").split(";")[0]
    takes = "" if none else _takes(action)
    return Flag(tuple(action.option_strings), text, takes, tuple(map(str, action.choices or ())))


def _takes(action: argparse.Action) -> str:
    kind: str = getattr(action, "completes", "")
    return "choices" if action.choices else kind or "any"
