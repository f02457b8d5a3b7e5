"""Logging: one line per record, levels and switches."""

import io
import logging
import re
from collections.abc import Iterator

import pytest

from liftbridge.obs import logs

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (DEBUG|INFO |WARN |ERROR|FATAL) \S+: .*\n")
NAMES = ("", logs.ROOT, logs.RAFT, logs.NATS_SERVER, logs.RECOVERY)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Puts levels and handlers back."""
    levels = {name: logging.getLogger(name).level for name in NAMES}
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def heard(stream: io.StringIO, *names: str) -> list[str]:
    """Log at every level to each logger and return what came out, as logger and level."""
    stream.seek(0)
    stream.truncate()
    for name in names:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(level, "x")
    return [f"{line.split()[2].rstrip(':')} {line.split()[1]}" for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("debug", ["DEBUG", "INFO", "WARN", "ERROR"]),
        ("info", ["INFO", "WARN", "ERROR"]),
        ("warn", ["WARN", "ERROR"]),
        ("error", ["ERROR"]),
    ],
)
def test_levels(level: str, words: list[str]) -> None:
    stream = io.StringIO()
    logs.setup(level, stream=stream)
    assert heard(stream, "liftbridge.rpc") == [f"liftbridge.rpc {word}" for word in words]


def test_switched_off_loggers_still_warn_and_libraries_too() -> None:
    stream = io.StringIO()
    logs.setup("debug", stream=stream)
    names = (logs.RAFT, logs.NATS_SERVER, logs.RECOVERY, "some.library")
    assert heard(stream, *names) == [f"{name} {word}" for name in names for word in ("WARN", "ERROR")]
    logs.setup("error", stream=stream)
    assert heard(stream, *names) == [f"{name} ERROR" for name in names]


@pytest.mark.parametrize(
    ("switch", "name"), [("raft", logs.RAFT), ("nats", logs.NATS_SERVER), ("recovery", logs.RECOVERY)]
)
def test_each_switch_opens_its_own_logger(switch: str, name: str) -> None:
    stream = io.StringIO()
    logs.setup("info", stream=stream, **{switch: True})
    for other in (logs.RAFT, logs.NATS_SERVER, logs.RECOVERY):
        assert (f"{other} INFO" in heard(stream, other)) == (other == name)


def test_one_line_per_record_whatever_is_in_it() -> None:
    stream = io.StringIO()
    logs.setup("info", stream=stream)
    log = logging.getLogger("liftbridge.x")
    log.info("two\nlines\r\x1b[31m\u2028 %s", "and\nan argument")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed")
    log.warning("where", stack_info=True)
    lines = stream.getvalue().splitlines(keepends=True)
    assert len(lines) == 3
    assert all(LINE.fullmatch(line) for line in lines)
    assert r"two\nlines\r\x1b[31m\u2028 and\nan argument" in lines[0]
    assert "Traceback" in lines[1] and "ValueError: first" in lines[1]


def test_a_second_setup_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    others = list(logging.getLogger().handlers)
    logs.setup("info", stream=first)
    logs.setup("info", stream=second)
    logging.getLogger("liftbridge.x").info("once")
    assert first.getvalue() == "" and second.getvalue().count("once") == 1
    assert [handler for handler in logging.getLogger().handlers if handler in others] == others
