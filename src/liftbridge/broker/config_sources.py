"""Where settings come from: the YAML file, the environment, the command line.

Each source is turned into the same thing: a mapping of dotted lower-case keys to `Setting`. Laying them over
each other in order of precedence is then a dictionary update.

Keys of a file may be split in every way (`a: {b.c: 1}`, `a.b: {c: 1}`, `a.b.c: 1`) and written in any case.
The file is read as YAML *nodes*, not as Python objects: texts stay as they were written, duplicate keys are
seen, line numbers are known, and no tag can construct anything. Size, depth and number of values are bounded,
so that no file, aliases included, costs more than a moment.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import yaml

from liftbridge.broker.config_values import ConfigError, Raw, Setting, shown

MAX_FILE_BYTES = 64 * 1024
MAX_VALUES = 10_000
MAX_DEPTH = 32
MAX_KEY_LENGTH = 200
ENVIRONMENT_PREFIX = "LIFTBRIDGE_"
COMMAND_LINE = "command line"

_NULL_TAG = "tag:yaml.org,2002:null"


# The file


def from_file(path: str) -> dict[str, Setting]:
    """Return the settings of the YAML file at `path`. Raises ConfigError if it cannot be read or parsed."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror or error}") from None
    except ValueError as error:  # a path with a NUL in it
        raise ConfigError(f"cannot read the configuration file {shown(path)}: {error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: a configuration file may be at most {MAX_FILE_BYTES // 1024} KiB long")
    return from_yaml(data, path)


def from_yaml(data: bytes, origin: str) -> dict[str, Setting]:
    """Return the settings in YAML text.

    Args:
        data: the text, in UTF-8 or UTF-16 as YAML allows.
        origin: the name of the file, for errors.

    Raises:
        ConfigError: not YAML, not a mapping, a key given twice, or too large once aliases are expanded.
    """
    root = _compose(data, origin)
    settings: dict[str, Setting] = {}
    lines: dict[str, int] = {}
    if root is None or root.tag == _NULL_TAG:
        return settings
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{origin}: a configuration file is a mapping of keys to values, such as `port: 9292`"
        )
    for key, line, value in _Walk(origin).leaves(root, "", 0):
        if key in settings:
            raise ConfigError(f"{origin}: the key {key} is given twice, in lines {lines[key]} and {line}")
        settings[key] = Setting(value, f"{origin}, line {line}")
        lines[key] = line
    return settings


def _compose(data: bytes, origin: str) -> yaml.Node | None:
    try:
        loader = yaml.SafeLoader(data)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{origin}{place}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{origin}: not valid YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deeply, at most {MAX_DEPTH} levels are allowed") from None


class _Walk:
    """One walk over the nodes of a file, counting what it visits so that aliases cannot blow up."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._visited = 0

    def leaves(
        self, mapping: yaml.MappingNode, prefix: str, depth: int
    ) -> Iterator[tuple[str, int, Raw | None]]:
        """Yield (dotted key, line, value) for everything in `mapping` that is not a mapping itself."""
        for key_node, value_node in mapping.value:
            line = key_node.start_mark.line + 1
            self._count(line, depth)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self._origin}, line {line}: a key must be a plain text")
            key = prefix + key_node.value.strip().lower()
            if len(key) > MAX_KEY_LENGTH:
                raise ConfigError(f"{self._origin}, line {line}: unknown configuration key {shown(key)}")
            if isinstance(value_node, yaml.MappingNode):
                yield from self.leaves(value_node, key + ".", depth + 1)
            elif isinstance(value_node, yaml.SequenceNode):
                yield key, line, tuple(self._items(value_node, key, line, depth))
            else:
                yield key, line, None if value_node.tag == _NULL_TAG else value_node.value

    def _items(self, sequence: yaml.SequenceNode, key: str, line: int, depth: int) -> Iterator[str]:
        for node in sequence.value:
            self._count(line, depth)
            if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL_TAG:
                raise ConfigError(f"{self._origin}, line {line}: {key}: a list holds texts only")
            yield node.value

    def _count(self, line: int, depth: int) -> None:
        self._visited += 1
        if self._visited > MAX_VALUES:
            raise ConfigError(
                f"{self._origin}, line {line}: more than {MAX_VALUES} values, aliases expanded; "
                "this is no configuration of a server"
            )
        if depth >= MAX_DEPTH:
            raise ConfigError(
                f"{self._origin}, line {line}: nested too deeply, at most {MAX_DEPTH} levels are allowed"
            )


# The environment and the command line


def from_environment(environ: Mapping[str, str], keys: Collection[str]) -> dict[str, Setting]:
    """Return the settings in `LIFTBRIDGE_...` variables.

    A variable is named after its key in upper case, its dots kept or turned into underscores. Empty values
    count as not set, variables that name no key are ignored: other programs may own them.

    Raises:
        ConfigError: both spellings of one variable are set, to different values.
    """
    settings: dict[str, Setting] = {}
    for key in keys:
        dotted = ENVIRONMENT_PREFIX + key.upper()
        found = [name for name in dict.fromkeys((dotted.replace(".", "_"), dotted)) if environ.get(name)]
        if not found:
            continue
        if len(found) == 2 and environ[found[0]] != environ[found[1]]:
            raise ConfigError(
                f"{key}: the environment variables {found[0]} and {found[1]} differ; set one of them"
            )
        settings[key] = Setting(environ[found[0]], f"environment variable {found[0]}")
    return settings


def from_flags(flags: Mapping[str, object]) -> dict[str, Setting]:
    """Return the settings given on the command line: texts, numbers, booleans or lists of texts by key."""
    return {key: Setting(_as_text(value), COMMAND_LINE) for key, value in flags.items()}


def _as_text(value: object) -> Raw:
    if isinstance(value, (list, tuple)):
        return tuple(str(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# Unknown keys


def check_keys(settings: Mapping[str, Setting], keys: Collection[str]) -> None:
    """Raise ConfigError for the first key that is not one of `keys`, with the nearest one that is."""
    for key, setting in settings.items():
        if key not in keys:
            raise ConfigError(
                f"unknown configuration key {shown(key)} ({setting.origin}){_advice(key, keys)}"
            )


def _advice(key: str, keys: Collection[str]) -> str:
    inside = sorted(known for known in keys if known.startswith(key + "."))
    if inside:
        return f": it is a section, which needs keys under it, such as {inside[0]}"
    near = difflib.get_close_matches(key, sorted(keys), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; docs/configuration.md lists all keys"
