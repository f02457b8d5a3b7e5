"""What can go wrong for a client, as exceptions: one class for each thing a caller may want to do about it.

Every exception is a `LiftbridgeError`. Those that carry the gRPC status of an answer are `RpcError`s; a
status without a class of its own arrives as a plain `RpcError`, so that no answer is ever lost. What a
publish ended with when nobody can know is `UnknownOutcomeError`: it says that the message may be stored, and
it is raised for nothing else.
"""

from __future__ import annotations

import enum

__all__ = [
    "AckTimeoutError",
    "AlreadyMemberError",
    "ClientClosedError",
    "ConsumerReplacedError",
    "DeadlineExceededError",
    "IncorrectOffsetError",
    "InvalidArgumentError",
    "LiftbridgeError",
    "LogTruncatedError",
    "MessageTooLargeError",
    "NotFoundError",
    "PartitionPausedError",
    "PartitionReadonlyError",
    "PermissionDeniedError",
    "PublishError",
    "ResourceExhaustedError",
    "RpcError",
    "StatusCode",
    "StreamDeletedError",
    "StreamExistsError",
    "TlsError",
    "UnavailableError",
    "UnknownOutcomeError",
    "UnsupportedError",
    "from_status",
]


class StatusCode(enum.IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class LiftbridgeError(Exception):
    """The base of all errors of the client."""


class ClientClosedError(LiftbridgeError):
    """The client, publisher or subscription is used after its `async with` block has ended."""


class RpcError(LiftbridgeError):
    """A call ended with a status other than OK.

    `code` is the gRPC status, `message` the server's words. `may_have_run` tells whether the server can have
    carried
    out the call all the same: False only if it certainly has not.
    """

    def __init__(self, code: StatusCode, message: str, *, may_have_run: bool = False) -> None:
        super().__init__(message or code.name)
        self.code = code
        self.message = message
        self.may_have_run = may_have_run
        self.cut_off = False
        """An earlier attempt of the same call was cut off, and may have been carried out."""

    def __str__(self) -> str:
        return f"{self.message} ({self.code.name})" if self.message else self.code.name


class UnavailableError(RpcError):
    """No server could be reached, the connection broke, or the server is stopping."""


class TlsError(UnavailableError):
    """TLS with the server failed: a certificate is not trusted, or the server wants one. Not tried again."""


class DeadlineExceededError(RpcError, TimeoutError):
    """The call took longer than its time-out. The server may have carried it out."""


class InvalidArgumentError(RpcError):
    """The server refuses the request as such; the text says what is wrong with it."""


class NotFoundError(RpcError):
    """There is no such stream, partition, group or member."""


class StreamExistsError(RpcError):
    """A stream of that name exists. Names are unique in a cluster, subjects are not."""


class StreamDeletedError(NotFoundError):
    """The stream was deleted while it was read."""


class PartitionPausedError(RpcError):
    """The partition is paused. A publish resumes it, and so does `subscribe(..., resume=True)`."""


class PartitionReadonlyError(RpcError):
    """The partition is read-only: a publish is refused, a subscription has read it to its end."""


class PermissionDeniedError(RpcError):
    """This client is not allowed to do that."""


class ResourceExhaustedError(RpcError):
    """A limit of the server was reached; the text says which."""


class UnsupportedError(RpcError):
    """This server does not implement the call."""


class AlreadyMemberError(RpcError):
    """The group has a member of this id already, or one of the streams does not exist."""


class PublishError(RpcError):
    """The message was not stored; the text says why."""


class IncorrectOffsetError(PublishError):
    """The partition's next offset is not the expected one (optimistic concurrency control); nothing was
    stored."""


class MessageTooLargeError(PublishError):
    """The message is larger than the server or NATS accepts; nothing was stored."""


class UnknownOutcomeError(RpcError):
    """The message was sent, and nobody knows whether it is stored: no ack came before the connection broke.

    A caller for whom a duplicate is better than a loss publishes again, or asks for that with
    `at_least_once=True`.
    """


class AckTimeoutError(UnknownOutcomeError, TimeoutError):
    """No ack came in time. The message may be stored now or later."""


class LogTruncatedError(LiftbridgeError):
    """A subscription found the partition shorter than what it had already delivered.

    The stream was deleted and created anew, or its log lost messages that had not been synced. `expected` is
    the offset that was due, `found` the one that came.
    """

    def __init__(self, stream: str, partition: int, expected: int, found: int) -> None:
        super().__init__(
            f"partition {partition} of stream {stream!r} goes on at offset {found} where {expected} is due: "
            "the stream was created anew, or its log has lost messages; subscribe again from where you want "
            "to read"
        )
        self.expected = expected
        self.found = found


class ConsumerReplacedError(LiftbridgeError):
    """Another member of the consumer group reads this partition now."""


_CLASSES: dict[StatusCode, type[RpcError]] = {
    StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    StatusCode.NOT_FOUND: NotFoundError,
    StatusCode.ALREADY_EXISTS: StreamExistsError,
    StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    StatusCode.UNIMPLEMENTED: UnsupportedError,
    StatusCode.UNAVAILABLE: UnavailableError,
}


def from_status(code: StatusCode, message: str, *, may_have_run: bool = True) -> RpcError:
    """Make the exception for a status that a call ended with."""
    return _CLASSES.get(code, RpcError)(code, message, may_have_run=may_have_run)
