"""Logging: standard library only, one line per record, to standard error.

A line is time (UTC), level, logger, message. Line breaks and control characters inside a message are made
visible instead of being written, so that nothing that comes from the network can forge a line; the lines of a
traceback are joined with " | ".

Our own loggers, below "liftbridge", follow the configured level. Three of them are noisy and have a switch
each; switched off they still tell warnings and errors. Libraries are heard from warnings upwards.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, TextIO

ROOT = "liftbridge"
RAFT = "liftbridge.raft"
NATS_SERVER = "liftbridge.nats.server"
RECOVERY = "liftbridge.recovery"

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_LEVEL_NAMES = {
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO ",
    logging.WARNING: "WARN ",
    logging.ERROR: "ERROR",
    logging.CRITICAL: "FATAL",
}
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_VISIBLE |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class LineFormatter(logging.Formatter):
    """Formats a record as exactly one line, without the line break at its end."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        micros = int(record.created % 1 * 1_000_000)
        level = _LEVEL_NAMES.get(record.levelno, record.levelname)
        line = f"{seconds}.{micros:06d}Z {level} {record.name}: {record.getMessage().translate(_VISIBLE)}"
        if record.exc_info:
            line += " | " + _joined(self.formatException(record.exc_info))
        if record.stack_info:
            line += " | " + _joined(self.formatStack(record.stack_info))
        return line


def _joined(text: str) -> str:
    return " | ".join(line.strip().translate(_VISIBLE) for line in text.splitlines() if line.strip())


if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:  # Python 3.10 cannot subscript it
    _Handler = logging.StreamHandler


class _OurHandler(_Handler):
    """The handler of `setup`; its own type lets a second call replace it and nothing else."""


def setup(
    level: str,
    *,
    raft: bool = False,
    nats: bool = False,
    recovery: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Configure logging for the process. A later call replaces what an earlier one did.

    Args:
        level: "debug", "info", "warn" or "error".
        raft: whether the consensus log is heard below warnings (`logging.raft`).
        nats: the same for the embedded NATS server (`logging.nats`).
        recovery: the same for replaying state at start-up (`logging.recovery`).
        stream: where to write; standard error by default.
    """
    threshold = _LEVELS[level]
    handler = _OurHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _OurHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(threshold, logging.WARNING))
    logging.getLogger(ROOT).setLevel(threshold)
    for name, heard in ((RAFT, raft), (NATS_SERVER, nats), (RECOVERY, recovery)):
        quiet = max(threshold, logging.WARNING)
        logging.getLogger(name).setLevel(threshold if heard else quiet)
