"""Named connections in a file of the user: `contexts.json` in the configuration directory (XDG).

The file holds addresses, paths and a time-out, and no secrets: keys are files of their own, which their owner
protects. It is written with mode 0600 all the same, as it tells where servers are, and in one step, so that a
crash leaves the old one or the new one. What cannot be understood in it is an error with its place, never
ignored: a connection that silently lost its TLS would be worse than none.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from liftbridge.cli.exits import CommandError, Exit

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Context:
    """A named connection. Paths are absolute; None means the default."""

    servers: tuple[str, ...] = ()
    tls: bool | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    timeout: float | None = None
    """In seconds."""


@dataclass
class Contexts:
    """All contexts, and which one is used when nothing else is said."""

    current: str | None = None
    contexts: dict[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """The context of that name. Raises CommandError, NOT_FOUND."""
        if name not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "none yet"
            text = f"there is no context {name!r}; there are: {known}. `liftbridge context save` makes one"
            raise CommandError(text, Exit.NOT_FOUND)
        return self.contexts[name]


def path(environ: Mapping[str, str]) -> Path:
    """Where the file is: in XDG_CONFIG_HOME, or in .config of the home directory."""
    base = environ.get("XDG_CONFIG_HOME", "")
    # The standard says that a relative path is to be ignored.
    directory = Path(base) if base.startswith("/") else Path.home() / ".config"
    return directory / "liftbridge" / "contexts.json"


def check_name(name: str) -> str:
    """The name, if it can be one. Raises CommandError."""
    if not _NAME.fullmatch(name):
        text = f"{name!r} is no name for a context: use letters, digits, `.`, `_` and `-`, 64 at most"
        raise CommandError(text, Exit.USAGE)
    return name


def load(file: Path) -> Contexts:
    """Read the file; no file means no contexts. Raises CommandError when it cannot be used."""
    try:
        with file.open("rb") as opened:
            return _parsed(opened.read(_MAX_BYTES + 1))
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}; check who may read it", Exit.USAGE) from error
    except (ValueError, RecursionError) as error:
        text = f"{file}: {error}; mend it, or remove it and save the contexts anew"
        raise CommandError(text, Exit.USAGE) from error


def save(file: Path, contexts: Contexts) -> None:
    """Write the file in one step. Raises CommandError when it cannot be written."""
    document = {
        "current": contexts.current,
        "contexts": {
            name: {key: value for key, value in asdict(context).items() if value is not None}
            for name, context in sorted(contexts.contexts.items())
        },
    }
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it 0600 before there is anything in it.
        descriptor, new = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(descriptor, "w") as opened:
                opened.write(json.dumps(document, indent=2) + "\n")
                opened.flush()
                os.fsync(opened.fileno())
            Path(new).replace(file)
        except BaseException:
            Path(new).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}; the contexts are as they were") from error


def _parsed(raw: bytes) -> Contexts:
    """The contexts in a file. Raises ValueError."""
    if len(raw) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    document: Any = json.loads(raw)
    entries = document.get("contexts") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or document.keys() - {"current", "contexts"}:
        raise ValueError("it must be an object with `current` and `contexts`, which is one, and nothing else")
    contexts = {name: _context(name, entry) for name, entry in entries.items()}
    current = document.get("current")
    if current is not None and current not in contexts:
        raise ValueError(f"`current` names {current!r}, which is no context")
    return Contexts(current, contexts)


def _context(name: str, entry: Any) -> Context:
    if not _NAME.fullmatch(name) or not isinstance(entry, dict):
        raise ValueError(f"context {name!r} must have a name of letters and digits, and be an object")
    unknown = sorted(entry.keys() - {known.name for known in fields(Context)})
    if unknown:
        raise ValueError(f"context {name!r}: there is no setting {unknown[0]!r}")
    values: dict[str, Any] = dict(entry)
    servers = values.pop("servers", [])
    if not isinstance(servers, list) or not all(isinstance(server, str) for server in servers):
        raise ValueError(f"context {name!r}: `servers` must be a list of addresses")
    for key, value in values.items():
        fits = isinstance(value, {"tls": bool}.get(key, str))
        if key == "timeout":
            fits = type(value) in (int, float) and value > 0
        if not fits:
            raise ValueError(f"context {name!r}: {value!r} is no value for `{key}`")
    return Context(servers=tuple(servers), **values)
