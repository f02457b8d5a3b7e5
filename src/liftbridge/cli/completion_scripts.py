"""The completion scripts themselves: what `completion.py` found in the parsers, in the words of each shell.

Invariant: nothing that a server or a file says is ever evaluated. In bash names are read line by line and
quoted (`compgen -W` would run a `$(...)` in one); `compadd` of zsh and `complete -a` of fish take output as
it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from liftbridge.cli.completion import Command, Flag

# A server that is not there must not stop anybody's typing for long.
_NAMES = {
    "stream": "liftbridge stream list --timeout 2 2>/dev/null </dev/null",
    "context": "liftbridge context list 2>/dev/null",
}


def _quoted(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _paths(commands: Sequence[Command]) -> list[str]:
    return [command.path for command in commands[1:]]


def _actions(command: Command) -> list[str]:
    return [action.path.rpartition(" ")[2] for action in command.actions]


# -- bash ----------------------------------------------------------------------------------------------

_BASH = """\
# Completion of liftbridge for bash, made by `liftbridge completion bash`.

# Offers those lines of the input that begin with what was typed, quoted: a name is never evaluated.
_liftbridge_offer() {
    local word
    while IFS= read -r word; do
        if [[ -n $word && $word == "$cur"* ]]; then
            COMPREPLY+=("$(printf '%q' "$word")")
        fi
    done
}

_liftbridge() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} at=liftbridge i
    COMPREPLY=()
    if [[ $cur == '=' ]]; then
        cur=''
    elif [[ $prev == '=' ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${COMP_WORDS[i]}" in
        @PATHS@) at="$at ${COMP_WORDS[i]}" ;;
        esac
    done
    case "$at $prev" in
@VALUES@
    esac
    if [[ $cur == -* ]]; then
        case "$at" in
@FLAGS@
        esac
        return
    fi
    case "$at" in
@WORDS@
    esac
}

complete -o default -F _liftbridge liftbridge
"""


def bash(commands: Sequence[Command]) -> str:
    """The script for bash."""
    values, flags, words = [], [], []
    for command in commands:
        for flag in command.flags:
            if flag.takes:
                pattern = "|".join(shlex.quote(f"{command.path} {form}") for form in flag.spellings)
                values.append(f"    {pattern}) {_bash_offer(flag.takes, flag.choices)}return ;;")
        forms = [form for flag in command.flags for form in flag.spellings]
        flags.append(f"        {shlex.quote(command.path)}) {_bash_words(forms)} ;;")
        offers = _bash_words(_actions(command)) if command.actions else ""
        offers = offers or "".join(
            _bash_offer(takes, command.choices) for takes in dict.fromkeys(command.takes)
        )
        if offers:
            words.append(f"    {shlex.quote(command.path)}) {offers.removesuffix('; ')} ;;")
    parts = {
        "@PATHS@": "|".join(shlex.quote(path) for path in _paths(commands)),
        "@VALUES@": "\n".join(values),
        "@FLAGS@": "\n".join(flags),
        "@WORDS@": "\n".join(words),
    }
    return _filled(_BASH, parts)


def _bash_words(words: Iterable[str]) -> str:
    return f"_liftbridge_offer < <(printf '%s\\n' {_quoted(words)})"


def _bash_offer(takes: str, choices: Iterable[str]) -> str:
    if takes == "choices":
        return _bash_words(choices) + "; "
    if takes in _NAMES:
        return f"_liftbridge_offer < <({_NAMES[takes]} | cut -f1); "
    return ""  # with nothing to offer, bash offers files


# -- zsh -----------------------------------------------------------------------------------------------

_ZSH = """\
#compdef liftbridge
# Completion of liftbridge for zsh, made by `liftbridge completion zsh`.

_liftbridge() {
    local at=liftbridge i
    local -a found
    for ((i = 2; i < CURRENT; i++)); do
        case "$at ${words[i]}" in
        (@PATHS@) at="$at ${words[i]}" ;;
        esac
    done
    case "$at ${words[CURRENT - 1]}" in
@VALUES@
    esac
    if [[ ${words[CURRENT]} == -* ]]; then
        case "$at" in
@FLAGS@
        esac
        _describe -o flag found
        return
    fi
    case "$at" in
@WORDS@
    esac
}

if [[ ${funcstack[1]} == _liftbridge ]]; then
    _liftbridge "$@"
else
    compdef _liftbridge liftbridge
fi
"""


def zsh(commands: Sequence[Command]) -> str:
    """The script for zsh."""
    values, flags, words = [], [], []
    for command in commands:
        for flag in command.flags:
            if flag.takes:
                pattern = "|".join(shlex.quote(f"{command.path} {form}") for form in flag.spellings)
                values.append(f"    ({pattern}) {_zsh_offer(flag.takes, flag.choices)}; return ;;")
        forms = [_zsh_described(form, flag.help) for flag in command.flags for form in flag.spellings]
        flags.append(f"        ({shlex.quote(command.path)}) found=({_quoted(forms)}) ;;")
        if command.actions:
            described = [
                _zsh_described(name, action.help)
                for name, action in zip(_actions(command), command.actions, strict=True)
            ]
            offers = f"found=({_quoted(described)}); _describe command found"
        else:
            offers = "; ".join(_zsh_offer(takes, command.choices) for takes in dict.fromkeys(command.takes))
        if offers:
            words.append(f"    ({shlex.quote(command.path)}) {offers} ;;")
    parts = {
        "@PATHS@": "|".join(shlex.quote(path) for path in _paths(commands)),
        "@VALUES@": "\n".join(values),
        "@FLAGS@": "\n".join(flags),
        "@WORDS@": "\n".join(words),
    }
    return _filled(_ZSH, parts)


def _zsh_described(word: str, text: str) -> str:
    return f"{word.replace(':', chr(92) + ':')}:{text}" if text else word


def _zsh_offer(takes: str, choices: Iterable[str]) -> str:
    if takes == "choices":
        return f"compadd -- {_quoted(choices)}"
    if takes in _NAMES:
        return f'compadd -- ${{(f)"$({_NAMES[takes]} | cut -f1)"}}'
    return "_files" if takes == "file" else ":"


# -- fish ----------------------------------------------------------------------------------------------

_FISH = """\
# Completion of liftbridge for fish, made by `liftbridge completion fish`.

set -g __liftbridge_paths @PATHS@

# Whether what was typed so far is this command.
function __liftbridge_at
    set -l at liftbridge
    for word in (commandline -opc)[2..-1]
        if contains -- "$at $word" $__liftbridge_paths
            set at "$at $word"
        end
    end
    test "$at" = "$argv[1]"
end

complete -c liftbridge -e
complete -c liftbridge -f
@LINES@
"""


def fish(commands: Sequence[Command]) -> str:
    """The script for fish."""
    lines = []
    for command in commands:
        begin = f"complete -c liftbridge -n {_fish_quoted(f'__liftbridge_at {_fish_quoted(command.path)}')}"
        lines += [f"{begin} {_fish_flag(flag)}" for flag in command.flags]
        for name, action in zip(_actions(command), command.actions, strict=True):
            lines.append(f"{begin} -a {_fish_quoted(name)}{_fish_described(action.help)}")
        if not command.actions:
            lines += [
                f"{begin} {offer}"
                for takes in dict.fromkeys(command.takes)
                if (offer := _fish_offer(takes, command.choices))
            ]
    parts = {
        "@PATHS@": " ".join(map(_fish_quoted, _paths(commands))),
        "@LINES@": "\n".join(lines),
    }
    return _filled(_FISH, parts)


def _fish_flag(flag: Flag) -> str:
    forms = [f"-s {form[1:]}" if len(form) == 2 else f"-l {form[2:]}" for form in flag.spellings]
    words = " ".join(forms)
    if flag.takes == "file":
        words += " -r -F"
    elif flag.takes:
        words += " -x"
        offer = _fish_offer(flag.takes, flag.choices)
        words += f" {offer}" if offer else ""
    return words + _fish_described(flag.help)


def _fish_offer(takes: str, choices: Iterable[str]) -> str:
    if takes == "choices":
        return f"-a {_fish_quoted(' '.join(choices))}"
    if takes in _NAMES:
        return f"-a {_fish_quoted(f'({_NAMES[takes]} | cut -f1)')}"
    return "-F" if takes == "file" else ""


def _fish_described(text: str) -> str:
    return f" -d {_fish_quoted(text)}" if text else ""


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _filled(template: str, parts: dict[str, str]) -> str:
    for mark, text in parts.items():
        template = template.replace(mark, text)
    return template
