"""A control link: messages of the consensus, and questions with their answers.

Messages of the consensus may be lost, and are when the link's queue is full. A question is answered, or its
asker is told that the link was lost. Who stops waiting says so, and the other side stops working at it.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from liftbridge.broker.forwarding import LostError, UnreachableError
from liftbridge.raft import Append, CodecError, Message, SnapshotChunk, decode_message, encode_message

from . import bounds
from .lanes import HEARTBEAT, Incoming, Lane, Outgoing
from .link import Link
from .model import LinkError, Own, UnansweredError
from .pipe import One

logger = logging.getLogger("liftbridge.peers")

Answer: TypeAlias = Callable[[str, str, bytes], Awaitable[bytes]]

_RAFT, _QUESTION, _ANSWER, _FAILED, _CANCEL = 1, 2, 3, 4, 5
_ID = struct.Struct("<BQ")
_QUESTION_HEAD = struct.Struct("<BQB")
_FAILED_HEAD = struct.Struct("<BQB")
_NOT_LOOKED_AT, _UNKNOWN_OUTCOME = 1, 2
_TOO_LONG = f"a question or an answer has more than {bounds.MAX_QUESTION_BYTES} bytes"


class _Waiting:
    """A question that was sent."""

    __slots__ = ("answered", "error", "payload")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.payload = b""
        self.error: Exception | None = None


class ControlLink(Link):
    """A control link.

    Arguments:
        messages: of its connection, behind the greeting.
        own, other: who is at its ends.
        deliver: takes messages of the consensus.
        answer: answers questions of the other server.
    """

    def __init__(
        self, messages: One, own: Own, other: Own, deliver: Callable[[Message], None], answer: Answer
    ) -> None:
        super().__init__(messages, other)
        self._own = own
        self._deliver = deliver
        self._answer = answer
        self._out = Outgoing()
        self._in = Incoming()
        self._next_id = 1
        self._asked: dict[int, _Waiting] = {}
        self._answering: dict[int, trio.CancelScope] = {}
        self._answers: trio.Nursery | None = None

    def send(self, message: Message) -> bool:
        """Send a message of the consensus; False: it was dropped, as too much waits."""
        lane = Lane.CONSENSUS
        if isinstance(message, SnapshotChunk):
            lane = Lane.SNAPSHOTS
        elif isinstance(message, Append) and message.entries:
            lane = Lane.ENTRIES
        return self.lost is None and self._out.put(lane, b"\x01" + encode_message(message))

    async def ask(self, kind: str, payload: bytes) -> bytes:
        """Ask a question. Raises UnreachableError, LostError."""
        name = kind.encode()
        assert 0 < len(name) <= bounds.MAX_KIND_BYTES, kind
        if self.lost is not None:
            raise UnreachableError(f"the link to server {self.other.server_id} is lost: {self.lost}")
        if len(self._asked) >= bounds.MAX_UNANSWERED:
            raise UnreachableError(f"{len(self._asked)} questions to {self.other.server_id} are open already")
        number = self._next_id
        self._next_id += 1
        message = _QUESTION_HEAD.pack(_QUESTION, number, len(name)) + name + payload
        if len(message) > bounds.MAX_QUESTION_BYTES:
            raise UnreachableError(_TOO_LONG)
        if not self._out.put(Lane.QUESTIONS, message):
            raise UnreachableError(f"too much waits to be sent to server {self.other.server_id}")
        waiting = self._asked[number] = _Waiting()
        try:
            await waiting.answered.wait()
        finally:
            if self._asked.pop(number, None) is not None and self.lost is None:
                self._put(_ID.pack(_CANCEL, number))
        if waiting.error is not None:
            raise waiting.error
        return waiting.payload

    async def run(self, work: Callable[[], Awaitable[None]] | None = None) -> None:
        assert work is None, "control links do all their work themselves"
        await super().run(self._serve)

    async def _serve(self) -> None:
        async with trio.open_nursery() as self._answers:
            await trio.sleep_forever()

    async def _write(self) -> None:
        while True:
            with trio.move_on_after(bounds.HEARTBEAT_SECONDS):
                await self._out.waiting.wait()
            await self._pipe.send(self._out.take() or HEARTBEAT)

    async def _read(self) -> None:
        while True:
            for piece in await self._receive():
                message = self._in.add(piece) if piece else None
                if message is not None:
                    self._take(*message)

    def _take(self, lane: Lane, message: bytes) -> None:
        kind = message[0] if message else 0
        if kind == _RAFT:
            self._take_raft(message[1:])
            return
        if lane is not Lane.QUESTIONS or len(message) < _ID.size:
            raise LinkError(f"a message of {len(message)} bytes and of kind {kind} on lane {lane.name}")
        _, number = _ID.unpack_from(message)
        if kind == _QUESTION:
            self._take_question(number, message)
        elif kind == _ANSWER:
            self._take_answer(number, message[_ID.size :], None)
        elif kind == _FAILED:
            self._take_failure(number, message)
        elif kind == _CANCEL:
            scope = self._answering.get(number)
            if scope is not None:
                scope.cancel()
        else:
            raise LinkError(f"a message of kind {kind}")

    def _take_raft(self, data: bytes) -> None:
        try:
            message = decode_message(data)
        except CodecError as error:
            raise LinkError(str(error)) from error
        if message.source != self.other.node_id or message.target != self._own.node_id:
            raise LinkError(
                f"a message of node {message.source} to {message.target}, between {self.other.node_id} and "
                f"{self._own.node_id}"
            )
        self._deliver(message)

    # Questions of the other server.

    def _take_question(self, number: int, message: bytes) -> None:
        if len(message) < _QUESTION_HEAD.size:
            raise LinkError("a question is cut off")
        begin = _QUESTION_HEAD.size
        end = begin + message[begin - 1]
        try:
            kind = message[begin:end].decode()
        except UnicodeDecodeError as error:
            raise LinkError("a question of no known kind") from error
        if not kind or end - begin > bounds.MAX_KIND_BYTES or end > len(message):
            raise LinkError("a question without a kind")
        if number in self._answering:
            raise LinkError(f"question {number} is asked twice")
        assert self._answers is not None
        if len(self._answering) >= bounds.MAX_UNANSWERED:
            # One that keeps to the bound comes here only while those end that it has cancelled.
            self._put(_ID.pack(_FAILED, number) + bytes((_NOT_LOOKED_AT,)) + b"too many questions at a time")
            return
        scope = self._answering[number] = trio.CancelScope()
        self._answers.start_soon(self._answer_one, scope, number, kind, message[end:])

    async def _answer_one(self, scope: trio.CancelScope, number: int, kind: str, payload: bytes) -> None:
        try:
            message = await self._answered(scope, number, kind, payload)
            if message is not None:
                await self._out.put_when_there_is_room(Lane.QUESTIONS, message)
        finally:
            del self._answering[number]

    async def _answered(
        self, scope: trio.CancelScope, number: int, kind: str, payload: bytes
    ) -> bytes | None:
        """The message that answers a question, None when nobody waits for it any more."""
        answered: bytes | None = None
        failure = b""
        try:
            with scope:
                answered = await self._answer(self.other.server_id, kind, payload)
        except UnansweredError as error:
            failure = bytes((_NOT_LOOKED_AT,)) + str(error).encode()[:1024]
        except Exception as error:
            logger.exception("a question of server %s of kind %s failed", self.other.server_id, kind)
            failure = bytes((_UNKNOWN_OUTCOME,)) + type(error).__name__.encode()
        if answered is not None and len(answered) + _ID.size > bounds.MAX_QUESTION_BYTES:
            answered, failure = None, bytes((_UNKNOWN_OUTCOME,)) + _TOO_LONG.encode()
        if answered is not None:
            return _ID.pack(_ANSWER, number) + answered
        if failure:
            return _ID.pack(_FAILED, number) + failure
        return None

    # Answers of the other server.

    def _take_answer(self, number: int, payload: bytes, error: Exception | None) -> None:
        waiting = self._asked.pop(number, None)
        if waiting is not None:  # otherwise whoever asked has left since
            waiting.payload, waiting.error = payload, error
            waiting.answered.set()

    def _take_failure(self, number: int, message: bytes) -> None:
        if len(message) < _FAILED_HEAD.size:
            raise LinkError("a failure is cut off")
        text = message[_FAILED_HEAD.size :].decode("utf-8", "replace")[:1024]
        text = f"server {self.other.server_id}: {text}"
        code = message[_FAILED_HEAD.size - 1]
        self._take_answer(number, b"", UnreachableError(text) if code == _NOT_LOOKED_AT else LostError(text))

    def _put(self, message: bytes) -> None:
        """Send what must not be lost, or lose the link: the other side would count on."""
        if not self._out.put(Lane.QUESTIONS, message):
            self.lose("too much waits to be sent")

    def _ended(self) -> None:
        asked, self._asked = self._asked, {}
        for waiting in asked.values():
            waiting.error = LostError(f"the link to server {self.other.server_id} was lost: {self.lost}")
            waiting.answered.set()
