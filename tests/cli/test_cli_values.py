"""What people write on a command line, and what is shown to them, without a server."""

from datetime import datetime, timedelta, timezone

import pytest

from liftbridge.cli.output import bytes_as_text, plain, time_as_text
from liftbridge.cli.values import duration, header, moment, seconds, start_position, stop_position

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("250ms", timedelta(milliseconds=250)),
        ("1w1d", timedelta(days=8)),
        ("0s", timedelta()),
    ],
)
def test_durations(text, found):
    assert duration(text) == found


@pytest.mark.parametrize("text", ["", "5", "h", "-5m", "5 m", "1y", "1h30", "9" * 30 + "w"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="duration"):
        duration(text)


@pytest.mark.parametrize(("text", "found"), [("5", 5.0), ("0.5", 0.5), ("1m", 60.0)])
def test_seconds(text, found):
    assert seconds(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("now", NOW),
        ("5m ago", NOW - timedelta(minutes=5)),
        ("1d12h ago", NOW - timedelta(hours=36)),
        ("2026-02-28T23:59:59Z", datetime(2026, 2, 28, 23, 59, 59, tzinfo=timezone.utc)),
        ("2026-02-28T23:59:59.5+01:00", datetime(2026, 2, 28, 22, 59, 59, 500000, tzinfo=timezone.utc)),
        ("2026-02-28", datetime(2026, 2, 28).astimezone()),
        ("2026-02-28 10:00", datetime(2026, 2, 28, 10).astimezone()),
    ],
)
def test_times(text, found):
    # Python 3.10 reads fractions of three or six digits only.
    assert moment(text.replace(".5", ".500"), NOW) == found


@pytest.mark.parametrize(
    "text", ["", "5m", "ago", "5x ago", "2026-13-01", "tomorrow", "9999w9999w9999w9999w ago"]
)
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"is no time|is no duration|before all times|longer than any"):
        moment(text, datetime(1, 1, 2, tzinfo=timezone.utc))


def test_positions():
    assert [start_position(word) for word in ("new", "earliest", "latest", "0", "17")] == [
        *("new", "earliest", "latest"),
        *(0, 17),
    ]
    assert [stop_position(word) for word in ("latest", "3")] == ["latest", 3]
    assert isinstance(start_position("1m ago"), datetime)
    for wrong in ("new", "earliest", "-1", "1.5", "²"):
        with pytest.raises(ValueError, match="is no position"):
            stop_position(wrong)


def test_headers():
    assert header("a=b=c") == ("a", b"b=c")
    assert header("a=") == ("a", b"")
    assert header("a=\udcff") == ("a", b"\xff")
    for wrong in ("a", "=b", ""):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            header(wrong)


def test_what_is_shown_cannot_control_a_terminal():
    nasty = "\x1b]0;title\x07\u202e\x9b2J\r\n\t\x00"
    assert plain(nasty).isprintable()
    assert plain("ümlaut 漢字 🙂") == "ümlaut 漢字 🙂"
    assert bytes_as_text(b"\xff\x1b") == "\\xff\\x1b"


def test_times_that_are_shown():
    assert time_as_text(0) == "-"
    assert time_as_text(1_772_366_400_123_456_789) == "2026-03-01T12:00:00.123Z"
    assert time_as_text(2**63 - 1) == "2262-04-11T23:47:16.854Z"
