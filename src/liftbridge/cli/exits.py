"""How a command ends: its exit status, and the words for what went wrong.

Every command that talks to a server uses these statuses, so a script can tell "there is no such stream" from
"no server answers" without reading texts. They are a contract: docs/cli.md has the table, and a number is
never reused. An error is one line: what is wrong, where, and what to do next.
"""

from __future__ import annotations

import enum
import sys

from liftbridge import client as lc
from liftbridge.client import StatusCode

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


class Exit(enum.IntEnum):
    """Exit statuses."""

    OK = 0
    FAILED = 1
    """The server refuses it, or something went wrong that has no status of its own."""
    USAGE = 2
    """The command line, a context or an input file is wrong; nothing was asked for."""
    NOT_FOUND = 3
    EXISTS = 4
    UNAVAILABLE = 5
    """No server answers, or the connection was lost for too long."""
    DENIED = 6
    """This client is not allowed to, or TLS with the server failed."""
    TIMED_OUT = 7
    UNKNOWN_OUTCOME = 8
    """A message was sent, and nobody knows whether it is stored."""
    NOT_OPEN = 9
    """The partition is paused or read-only."""
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot be carried out; the text says why and what to do."""

    def __init__(self, text: str, status: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.status = status


_START_ONE = "start a server with `liftbridge dev`, or name one with --server or a context"
_LIST_STREAMS = "`liftbridge stream list` shows what there is"

# The first row whose class fits; an empty advice is one that the error's own text gives.
_ROWS: tuple[tuple[type[lc.LiftbridgeError], Exit, str], ...] = (
    (lc.TlsError, Exit.DENIED, "check --tls-ca, --tls-cert and --tls-key, or those of the context"),
    (lc.UnknownOutcomeError, Exit.UNKNOWN_OUTCOME, "read the end of the stream before sending it again"),
    (lc.UnavailableError, Exit.UNAVAILABLE, _START_ONE),
    (lc.DeadlineExceededError, Exit.TIMED_OUT, "try again, or give it longer with --timeout"),
    (lc.StreamDeletedError, Exit.NOT_FOUND, ""),
    (lc.NotFoundError, Exit.NOT_FOUND, _LIST_STREAMS),
    (
        lc.StreamExistsError,
        Exit.EXISTS,
        "choose another name; `liftbridge stream info` shows the one there is",
    ),
    (
        lc.PermissionDeniedError,
        Exit.DENIED,
        "ask whoever runs the server for a rule in its policy, or use another certificate",
    ),
    (lc.PartitionPausedError, Exit.NOT_OPEN, "`liftbridge stream resume` resumes it"),
    (lc.PartitionReadonlyError, Exit.NOT_OPEN, "`liftbridge stream readonly --off` makes it writable"),
    (lc.MessageTooLargeError, Exit.FAILED, "split it, or raise max_payload of NATS"),
    (
        lc.IncorrectOffsetError,
        Exit.FAILED,
        "somebody else has published; read the newest message and decide again",
    ),
    (lc.UnsupportedError, Exit.FAILED, "this server is too old for the command"),
    (lc.LogTruncatedError, Exit.FAILED, ""),
)


def explain(error: BaseException) -> tuple[Exit, str] | None:
    """The status and the words for an exception.

    Returns:
        None when it says nothing about the request: then it is a defect, and its traceback is wanted.
    """
    if isinstance(error, BaseExceptionGroup):
        found = [explain(inner) for inner in error.exceptions]
        return None if None in found else found[0]
    if isinstance(error, CommandError):
        return error.status, str(error)
    if isinstance(error, lc.LiftbridgeError):
        for kind, status, advice in _ROWS:
            if isinstance(error, kind):
                return status, _words(error, advice)
        if isinstance(error, lc.RpcError) and error.code is StatusCode.UNAUTHENTICATED:
            return Exit.DENIED, _words(error, "")
        return Exit.FAILED, _words(error, "")
    return None


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C ended it; out of a nursery that comes in a group."""
    if isinstance(error, BaseExceptionGroup):
        return any(interrupted(inner) for inner in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


def broken_pipe(error: BaseException) -> bool:
    """Whether it ended because whoever read the output wants no more of it."""
    if isinstance(error, BaseExceptionGroup):
        return any(broken_pipe(inner) for inner in error.exceptions)
    return isinstance(error, BrokenPipeError)


def _words(error: lc.LiftbridgeError, advice: str) -> str:
    text = error.message or error.code.name if isinstance(error, lc.RpcError) else str(error)
    return f"{text}; {advice}" if advice and advice not in text else text
