"""What a broker that does not decide on metadata asks of the one that does, and how it is answered.

Two questions: carry out an operation, and up to which entry is all agreed on that was agreed on before now.
Both are answered with the index of an entry, which the asking broker then waits to apply itself: whoever
asked it sees what it caused when it looks there. A refusal travels as what it is, a code and a text. A third
is for who has just come, and knows of no leader: any broker has it registered.

What was sent and not answered may have been carried out. So an operation may be asked for again only when
doing it twice is doing it once, or when the second time fails in a way that tells that the first did not
(`done_before`); all operations of clients on streams are such.
"""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import DecodeError

from liftbridge.metadata.broker_operations import RegisterBroker
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.operations import (
    CreateStream,
    DeleteStream,
    Operation,
    PauseStream,
    ResumeStream,
    SetStreamReadonly,
)
from liftbridge.metadata.state import ClusterState
from liftbridge.proto import internal_pb2
from liftbridge.raft import NodeId

PROPOSE = "metadata.propose"
READ = "metadata.read"
REGISTER = "metadata.register"

# A broker registers once for each of its incarnations, however often it is asked for.
_REPEATABLE = (CreateStream, DeleteStream, PauseStream, ResumeStream, SetStreamReadonly, RegisterBroker)


class UnreachableError(Exception):
    """The other broker was not asked: there is no connection to it."""


class LostError(Exception):
    """The other broker may have been asked: the connection was lost before its answer came."""


class AnswerError(Exception):
    """An answer that cannot be read: another version has written it."""


class NotDecidingError(Exception):
    """The broker that was asked does not decide on metadata, and has done nothing."""


class Links(Protocol):
    """The way to other brokers."""

    async def ask(self, node: NodeId, kind: str, payload: bytes) -> bytes:
        """The answer of the broker with that node to a question. Raises UnreachableError, LostError."""

    async def ask_anybody(self, kind: str, payload: bytes) -> bytes:
        """The answer of whichever broker can be asked. Raises UnreachableError, LostError."""


def repeatable(operation: Operation) -> bool:
    """Whether an operation may be asked for again when it is unknown what became of it."""
    return isinstance(operation, _REPEATABLE)


def done_before(operation: Operation, refusal: MetadataError, state: ClusterState) -> bool:
    """Whether a refusal of the second attempt says that the first was carried out.

    `state` has applied all that was agreed on before the second.
    """
    if isinstance(operation, CreateStream) and refusal.code is MetadataCode.ALREADY_EXISTS:
        return state.stream_by_id(operation.stream_id) is not None
    return (
        isinstance(operation, DeleteStream)
        and refusal.code is MetadataCode.NOT_FOUND
        and operation.stream_id in state.deleted_ids
    )


def answer(index: int) -> bytes:
    """The answer that says to wait for an entry."""
    return internal_pb2.MetadataAnswer(index=index).SerializeToString()


def answer_refused(error: MetadataError) -> bytes:
    """The answer that says why not."""
    return internal_pb2.MetadataAnswer(code=error.code.value, text=error.text).SerializeToString()


def answer_elsewhere() -> bytes:
    """The answer of a broker that does not decide."""
    return internal_pb2.MetadataAnswer(not_deciding=True).SerializeToString()


def index_of(data: bytes) -> int:
    """The index that an answer tells.

    Raises MetadataError: it tells a refusal; NotDecidingError; AnswerError.
    """
    message = internal_pb2.MetadataAnswer()
    try:
        message.ParseFromString(data)
        code = MetadataCode(message.code) if message.code else None
    except (DecodeError, ValueError) as error:
        raise AnswerError(f"the leader of the metadata has answered what cannot be read: {error}") from error
    if code is not None:
        raise MetadataError(code, message.text)
    if message.not_deciding:
        raise NotDecidingError
    if not message.index:
        raise AnswerError("the leader of the metadata has answered nothing")
    return message.index
