"""How one configuration value is read: its kinds, its accepted forms, its errors.

Files, environment variables and the command line all hand over text (or a list of texts), so there is one
set of readers for the three of them and a value means the same wherever it is written. In particular YAML's
own guesses are not used: `no` as a server id stays the text `no`, and `1:30` is not the number 90.

Invariant: a value is either read exactly or refused with `ConfigError`; nothing turns silently into zero
or false. Times are integer nanoseconds, sizes integer bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar
from urllib.parse import urlsplit

NANOSECOND = 1
MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

Raw: TypeAlias = "str | tuple[str, ...]"
T = TypeVar("T")


class ConfigError(Exception):
    """The configuration cannot be used; the text says which key, which value and what would be accepted."""


@dataclass(frozen=True)
class Setting:
    """One value as it was given, and where.

    Attributes:
        value: a text, a list of texts, or None where a file has a key with nothing behind it.
        origin: where it was read, as said in errors, such as "lift.yaml, line 3".
    """

    value: Raw | None
    origin: str


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One type of value.

    Attributes:
        accepts: what is accepted, in words that fit after "give".
        parse: reads the text; raises ValueError (its text, if any, is added to the error) on anything else.
        hide: makes the value fit to be shown in an error.
    """

    accepts: str
    parse: Callable[[Raw], T]
    hide: Callable[[str], str] = str

    def read(self, key: str, setting: Setting) -> T:
        """Return the value of `setting`, given for `key`. Raises ConfigError if it is not of this kind."""
        assert setting.value is not None, key
        try:
            return self.parse(setting.value)
        except ValueError as error:
            given = setting.value if isinstance(setting.value, str) else "[" + ", ".join(setting.value) + "]"
            reason = f" ({error})" if str(error) else ""
            raise ConfigError(
                f"{key}: the value {shown(self.hide(given))} ({setting.origin}) is not accepted{reason}; "
                f"give {self.accepts}"
            ) from None


def shown(text: str) -> str:
    """Return `text` quoted, on one line and not too long, for an error message."""
    short = text if len(text) <= 80 else text[:77] + "..."
    return '"' + short.encode("unicode_escape").decode("ascii") + '"'


def _single(raw: Raw) -> str:
    if not isinstance(raw, str):
        raise ValueError("a list")  # noqa: TRY004  # ValueError is what Kind.read turns into ConfigError
    return raw.strip()


# Booleans, numbers, durations

_TRUE = frozenset({"1", "t", "true", "y", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "n", "no", "off"})


def boolean() -> Kind[bool]:
    """Return the kind of true/false values: YAML's words and the short forms t, f, 1, 0; any case."""

    def parse(raw: Raw) -> bool:
        word = _single(raw).lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        raise ValueError

    return Kind("true or false", parse)


_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*(_[0-9]+)*|0x[0-9a-f]+|0o[0-7]+|0b[01]+)", re.IGNORECASE)


def integer(minimum: int = 0, maximum: int = INT64_MAX, note: str = "") -> Kind[int]:
    """Return the kind of whole numbers from `minimum` to `maximum`; `note` ends the words of an error."""
    upper = f" and at most {maximum}" if maximum < INT64_MAX else ""
    accepts = f"a whole number of at least {minimum}{upper}{note}"

    def parse(raw: Raw) -> int:
        text = _single(raw)
        if len(text) > 70 or not _INTEGER.fullmatch(text):
            raise ValueError
        number = int(text, 0)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    return Kind(accepts, parse)


_UNITS = {
    "ns": NANOSECOND,
    "us": MICROSECOND,
    "\u00b5s": MICROSECOND,  # micro sign
    "\u03bcs": MICROSECOND,  # Greek mu
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_DURATION_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_DIGITS_MAX = 30  # more digits than any duration has; keeps int() cheap


def parse_duration(text: str) -> int:
    """Return the nanoseconds that a duration means.

    Args:
        text: numbers with units, such as "1h30m", "1.5s" or "250ms"; a bare number is nanoseconds.

    Raises:
        ValueError: the text is no duration, or one of more than 292 years.
    """
    sign = -1 if text.startswith("-") else 1
    body = text.lstrip("+-") if text[:1] in ("+", "-") and text[1:2] not in ("+", "-") else text
    if body.isascii() and body.isdigit() and len(body) <= _DIGITS_MAX:
        total = int(body)
    else:
        total = _sum_of_parts(body)
    if total > INT64_MAX:
        raise ValueError("too long")
    return sign * total


def _sum_of_parts(body: str) -> int:
    total, position = 0, 0
    while position < len(body):
        part = _DURATION_PART.match(body, position)
        if part is None:
            raise ValueError(_hint_on_duration(body))
        whole, fraction, unit = part[1], part[2] or "", _UNITS[part[3]]
        if not whole + fraction or len(whole) > _DIGITS_MAX or len(fraction) > _DIGITS_MAX:
            raise ValueError
        total += int(whole or "0") * unit
        if fraction:
            total += int(fraction) * unit // 10 ** len(fraction)
        position = part.end()
    if position == 0:
        raise ValueError
    return total


def _hint_on_duration(body: str) -> str:
    return "there is no unit for days: one day is 24h" if re.fullmatch(r"[0-9.]+ *(d|days?)", body) else ""


def duration(minimum: int = 0) -> Kind[int]:
    """Return the kind of times of at least `minimum` nanoseconds, read as integer nanoseconds."""
    accepts = "a duration such as 1h30m, 1.5s or 250ms (a bare number is nanoseconds)"
    if minimum > 0:
        accepts += " of more than nothing"

    def parse(raw: Raw) -> int:
        nanoseconds = parse_duration(_single(raw))
        if nanoseconds < minimum:
            raise ValueError("negative" if nanoseconds < 0 else "")
        return nanoseconds

    return Kind(accepts, parse)


# Texts

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")


def text() -> Kind[str | None]:
    """Return the kind of free texts on one line; an empty one counts as not given."""

    def parse(raw: Raw) -> str | None:
        value = _single(raw)
        if _CONTROL.search(value):
            raise ValueError
        return value or None

    return Kind("a text on one line", parse)


def secret(shortest: int = 0) -> Kind[str | None]:
    """Return the kind of passwords and tokens: a text whose value no error shows. Blanks are kept.

    Args:
        shortest: characters that it has at least, if it is given.
    """

    def parse(raw: Raw) -> str | None:
        if not isinstance(raw, str) or _CONTROL.search(raw) or 0 < len(raw) < shortest:
            raise ValueError
        return raw or None

    accepts = "a text on one line" + (f" of at least {shortest} characters" if shortest else "")
    return Kind(accepts, parse, lambda value: "(hidden)")


def name(default: str | None = None) -> Kind[str | None]:
    """Return the kind of server ids and namespaces, which become parts of NATS subjects and of paths.

    An empty text counts as not given and means `default`.
    """

    def parse(raw: Raw) -> str | None:
        value = _single(raw)
        if not value:
            return default
        if not _NAME.fullmatch(value):
            raise ValueError
        return value

    return Kind("a name of at most 255 characters without blanks, dots, slashes, * and >", parse)


def file_path() -> Kind[Path | None]:
    """Return the kind of paths; an empty text counts as not given. Nothing is looked up here."""

    def parse(raw: Raw) -> Path | None:
        value = _single(raw)
        if _CONTROL.search(value):
            raise ValueError
        return Path(value) if value else None

    return Kind("a path", parse)


def choice(*words: str, any_case: bool = False) -> Kind[str]:
    """Return the kind of fixed lower-case words; with `any_case` they may be written in capitals."""

    def parse(raw: Raw) -> str:
        word = _single(raw)
        word = word.lower() if any_case else word
        if word not in words:
            raise ValueError
        return word

    return Kind("one of " + ", ".join(words), parse)


# Addresses and lists

_LISTEN = re.compile(r"(?:(\[[^\[\]]*\]|[^:\[\]]*):)?([0-9]{1,5})")
_HOST = re.compile(r"[^\s/@\x00-\x1f\x7f]{0,255}")


@dataclass(frozen=True)
class ListenAddress:
    """Where to listen: `host` is empty for all interfaces, `port` 0 lets the system choose."""

    host: str
    port: int


def listen_address() -> Kind[ListenAddress | None]:
    """Return the kind of `host:port`, `[ipv6]:port`, `:port` and `port`."""

    def parse(raw: Raw) -> ListenAddress | None:
        value = _single(raw)
        if not value:
            return None
        match = _LISTEN.fullmatch(value)
        if match is None or not value.isascii():
            raise ValueError
        host, port = (match[1] or "").strip("[]"), int(match[2])
        if port > 65535 or not _HOST.fullmatch(host):
            raise ValueError
        return ListenAddress(host, port)

    return Kind("host:port with a port from 0 to 65535, such as 0.0.0.0:9292 or [::]:9292", parse)


def host_name() -> Kind[str | None]:
    """Return the kind of host names and addresses (IPv6 with or without brackets)."""

    def parse(raw: Raw) -> str | None:
        value = _single(raw)
        value = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if not _HOST.fullmatch(value):
            raise ValueError
        return value or None

    return Kind("a host name or an IP address, without a port", parse)


def split_list(raw: Raw) -> tuple[str, ...]:
    """Return the items of a list; a single text is split at commas and white space."""
    items = re.split(r"[,\s]+", raw) if isinstance(raw, str) else raw
    return tuple(item.strip() for item in items if item.strip())


def list_of_names() -> Kind[tuple[str, ...]]:
    """Return the kind of lists of server ids."""

    def parse(raw: Raw) -> tuple[str, ...]:
        items = split_list(raw)
        if not all(_NAME.fullmatch(item) for item in items):
            raise ValueError
        return items

    return Kind("a list of server ids", parse)


def nats_urls() -> Kind[tuple[str, ...]]:
    """Return the kind of lists of NATS servers; `nats://` is put before an item without a scheme."""

    def parse(raw: Raw) -> tuple[str, ...]:
        urls = tuple(_nats_url(item) for item in split_list(raw))
        if not urls:
            raise ValueError("an empty list")
        return urls

    return Kind("a list of NATS servers such as nats://127.0.0.1:4222 or tls://host:4222", parse, _hide_user)


def _nats_url(item: str) -> str:
    url = item if "://" in item else "nats://" + item
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("not a URL") from None  # urlsplit's own text may hold the password
    if parts.scheme not in ("nats", "tls"):
        raise ValueError("only the schemes nats and tls are supported")
    if not host or _CONTROL.search(url) or " " in url:
        raise ValueError("a URL without a host")
    return url


def _hide_user(value: str) -> str:
    return re.sub(r"(^|//|[\s,\[])[^/\s,]*@", r"\1***@", value)
