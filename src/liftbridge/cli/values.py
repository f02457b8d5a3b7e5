"""What people write on a command line: `1h30m`, `5m ago`, `2026-03-01T12:00:00Z`, `latest`, numbers, headers.

Everything here raises ValueError with a text that says what is accepted, which argparse and the commands turn
into an error of the command line.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TypeVar

from liftbridge.client import StartPosition, StopPosition

_T = TypeVar("_T")

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_AGO = re.compile(r"(\S+) +ago")
_OFFSET = re.compile(r"[0-9]+")
MAX_OFFSET = 2**63 - 1
TIME_FORMS = "a time such as 2026-03-01T12:00:00Z, '5m ago' or now"


def duration(text: str) -> timedelta:
    """A duration: numbers with the units ms, s, m, h, d and w, as in `1h30m`."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration: write numbers with units, such as 90s, 1h30m or 7d")
    try:
        return sum((float(number) * _UNITS[unit] for number, unit in _PART.findall(text)), timedelta())
    except OverflowError:
        raise ValueError(f"{text!r} is longer than any duration can be") from None


def seconds(text: str) -> float:
    """A positive duration in seconds; a bare number counts as seconds."""
    value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else duration(text).total_seconds()
    if not value > 0:
        raise ValueError(f"{text!r} is no time to wait: it must be more than 0")
    return value


def moment(text: str, now: datetime) -> datetime:
    """A time: ISO 8601, in the local time zone unless it names one, `now`, or a duration with `ago`."""
    if text == "now":
        return now
    if ago := _AGO.fullmatch(text):
        try:
            return now - duration(ago[1])
        except OverflowError:
            raise ValueError(f"{text!r} is before all times") from None
    try:
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
        return found.astimezone() if found.tzinfo is None else found
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time: write {TIME_FORMS}") from None


def start_position(text: str) -> StartPosition:
    """Where to begin: `new`, `earliest`, `latest`, an offset or a time."""
    words: dict[str, StartPosition] = {"new": "new", "earliest": "earliest", "latest": "latest"}
    if text in words:
        return words[text]
    return _offset_or_time(text, "new, earliest, latest, an offset")


def stop_position(text: str) -> StopPosition:
    """Where to end: `latest`, an offset or a time."""
    return "latest" if text == "latest" else _offset_or_time(text, "latest, an offset")


def _offset_or_time(text: str, words: str) -> int | datetime:
    if _OFFSET.fullmatch(text):
        if int(text) > MAX_OFFSET:
            raise ValueError(f"{text!r} is greater than any offset")
        return int(text)
    try:
        return moment(text, datetime.now(timezone.utc))
    except ValueError:
        raise ValueError(f"{text!r} is no position: write {words}, or {TIME_FORMS}") from None


def whole(minimum: int, maximum: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of an argument that is a whole number within bounds, those of the API by default."""

    def parsed(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", text) or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {minimum} to {maximum}")
        return int(text)

    return parsed


def header(text: str) -> tuple[str, bytes]:
    """A header: `NAME=VALUE`."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise ValueError(f"{text!r} is no header: write NAME=VALUE")
    return check_text(name), raw_bytes(value)


def raw_bytes(text: str) -> bytes:
    """An argument as the bytes it was given as."""
    return text.encode(errors="surrogateescape")


def check_text(text: str) -> str:
    """An argument that must be text for the API. Raises ValueError when it is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is no UTF-8") from None
    return text


def argument(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """`parse` as the `type` of an argument: argparse hides the texts of ValueErrors."""

    def parsed(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed
